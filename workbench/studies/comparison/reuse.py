"""How often samples can be used again: passes over them and the clip's width, against samples drawn and seconds."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench import WorkbenchError
from workbench.analysis.effects import effects_against
from workbench.plots.marks import error_bar, points
from workbench.plots.theme import axis_label, looks, require_columns, styled
from workbench.runs import Run
from workbench.studies.measurements import experiment_of, means_by, worlds_of

NO_CLIP = 100.0  # a cliprange from here on stops nothing
USUAL_CLIP = 0.2  # Schulman et al. 2017
VARIED = ["passes", "clip"]
CALLED = {"none": "no clip", "penalty": "penalty on KL"}  # that of ppo_penalty, in place of a clip


def reuse_rows(runs: Mapping[str, Run]) -> pd.DataFrame:
    """One row per run of 06 and measured step: run, experiment, world, seed, passes, clip ("0.2", "none", "penalty" for
    ppo_penalty), samples drawn until then, CPU seconds (the run's, spread evenly over steps), score, clip_fraction.

    `score` names the held-out score that was measured, gold where it is known. WorkbenchError where no two runs differ
    in passes or clip.
    """
    tables, worlds = [], worlds_of(runs, {})
    for name, run in runs.items():
        given, metrics = run.parameters, run.metrics()
        score = next((each for each in ("held_out_gold", "held_out_reward") if each in metrics), "")
        if not score or "cliprange" not in given or "cpu_seconds" not in run.record or given["num_ppo_epochs"] < 1:
            continue
        width = "none" if given["cliprange"] >= NO_CLIP else f"{given['cliprange']:g}" if given["cliprange"] > 0 else ""
        about = {"passes": given["num_ppo_epochs"], "clip": "penalty" if given["algorithm"] == "ppo_penalty" else width}
        about |= {"run": name, "experiment": experiment_of(name), "world": worlds[name], "seed": run.unit.seed}
        about["score"] = score
        clipped = metrics["clip_fraction"].expanding().mean()
        rows = metrics[["step"]].assign(clip_fraction=clipped, value=metrics[score], **about).dropna(subset="value")
        rows["samples"] = rows["step"] * given["batch_size"]
        rows["seconds"] = rows["step"] * run.record["cpu_seconds"] / given["steps"]
        tables.append(rows[rows["clip"] != ""])
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=VARIED)
    if len(table[VARIED].drop_duplicates()) < 2:
        raise WorkbenchError("no two runs of 06 differ in num_ppo_epochs and cliprange: `workbench run clipping`.")
    return table


def reuse_ends(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each number of passes and clip over runs: value (mean of the last three measurements) and clip_fraction."""
    return means_by(_ends(rows).sort_values(VARIED), VARIED, ["value", "clip_fraction"])


def reuse_effects(rows: pd.DataFrame) -> pd.DataFrame:
    """By how much every setting ends above the one with the fewest passes and, of those, the clip nearest to 0.2.

    Differences within units as in `effects_against`, judged together.
    """
    ends = _ends(rows)
    ends["setting"] = [f"clip {clip}, passes {passes}" for passes, clip in ends[VARIED].to_numpy()]
    width = pd.to_numeric(ends["clip"], errors="coerce")
    usual = ends.assign(away=(width - USUAL_CLIP).abs()).sort_values(["passes", "away"])["setting"].iloc[0]
    found = effects_against(ends, "setting", "value", baseline=usual)
    return found.assign(label=found["level"] + f" less {usual}")


def _ends(rows: pd.DataFrame) -> pd.DataFrame:
    last = rows.groupby(["run", "world", "seed", *VARIED], sort=False)
    return last.agg(
        value=("value", lambda its: its.tail(3).mean()), clip_fraction=("clip_fraction", "last")
    ).reset_index()


def _spoken(clip: str) -> str:
    return f"clip {clip}" if clip[0].isdigit() else clip


def plot_reuse(rows: pd.DataFrame) -> go.Figure:
    """Where training ends and how much is clipped, by clip and passes; below, the runs of each clip."""
    require_columns(rows, [*VARIED, "run", "samples", "seconds", "value", "clip_fraction"], "plot_reuse")
    rows = rows.replace({"clip": CALLED})
    ends, score = reuse_ends(rows), axis_label(rows["score"].iloc[0])
    clips = sorted(rows["clip"].unique(), key=lambda clip: (not clip[0].isdigit(), clip))
    upper, lower = {"colspan": len(clips)}, [{"colspan": 2}, None] * len(clips)
    specs = [[upper, *[None] * (len(clips) - 1)] * 2, lower, lower]
    titles = [f"{score} at the end", "tokens outside the clip", *map(_spoken, clips)]
    spaces = {"vertical_spacing": 0.11, "horizontal_spacing": 0.2 / len(clips), "row_heights": [3, 2, 2]}
    figure = make_subplots(3, 2 * len(clips), specs=specs, subplot_titles=titles, **spaces)
    found = dict(zip(sorted(rows["passes"].unique()), looks(rows["passes"].nunique()), strict=True))
    for passes, look in found.items():
        name = "1 pass" if passes == 1 else f"{passes} passes"
        own = ends[ends["passes"] == passes].set_index("clip").reindex(clips).reset_index()
        for column, place in (("value", 1), ("clip_fraction", 1 + len(clips))):
            shown = {"bars": {"error_y": error_bar(own, column)}}
            shown |= {"legend": place == 1, "hover": "%{x}: %{y:.3f}<extra>%{fullData.name}</extra>"}
            line = points(own["clip"], own[column], name, {**look, "size": 8, "width": 2, "group": name}, **shown)
            figure.add_trace(line, 1, place)
        for (clip, *_), part in rows[rows["passes"] == passes].groupby(["clip", "run"]):
            faint = {"color": look["color"], "width": 1.5, "group": name}
            hover = f"{name}, {_spoken(clip)}<br>%{{x:.0f}}: %{{y:.2f}}<extra></extra>"
            for row, column in ((2, "samples"), (3, "seconds")):
                line = points(part[column], part["value"], name, faint, legend=False, hover=hover)
                figure.add_trace(line, row, 1 + 2 * clips.index(clip))
    figure.update_xaxes(title="clip (cliprange)", type="category", categoryorder="array", categoryarray=clips, row=1)
    for row, column, name in ((2, "samples", "samples drawn"), (3, "seconds", "CPU seconds")):
        figure.update_xaxes(range=[0, 1.02 * rows[column].max()], nticks=4, row=row).update_yaxes(
            range=[rows["value"].min() - 0.05, rows["value"].max() + 0.05], showticklabels=False, row=row
        )
        figure.update_xaxes(title=name, row=row, col=1)
        figure.update_yaxes(title=score, showticklabels=True, row=row, col=1)
    figure.update_yaxes(tickformat=".0%", row=1, col=1 + len(clips))
    best, most = ends.loc[ends["value"].idxmax()], ends.loc[ends["clip_fraction"].idxmax()]
    title = f"Highest at the end: {_spoken(best['clip'])}, passes {best['passes']}"
    title += f"; at most {most['clip_fraction']:.1%} of tokens are outside"
    reading = "Above: means over units, bars 95% over worlds. Below: every run. A line further left needs less of it."
    return styled(figure, title=title, reading=reading, height=900)
