"""How often samples can be used again: passes over them and the clip's width, against samples drawn and seconds."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench import WorkbenchError
from workbench.plots.marks import error_bar, points
from workbench.plots.theme import axis_label, looks, require_columns, styled, transparent
from workbench.runs import Run
from workbench.studies.measurements import experiment_of, means_by, worlds_of

NO_CLIP = 100.0  # a cliprange from here on stops nothing
VARIED = ["passes", "clip"]


def reuse_rows(runs: Mapping[str, Run]) -> pd.DataFrame:
    """One row per run of 06 and measured step: run, experiment, world, passes, clip ("0.2", "none", "penalty" for
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
        about |= {"run": name, "experiment": experiment_of(name), "world": worlds[name], "score": score}
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
    last = rows.groupby(["run", "world", *VARIED], sort=False)
    ends = last.agg(
        value=("value", lambda its: its.tail(3).mean()), clip_fraction=("clip_fraction", "last")
    ).reset_index()
    return means_by(ends.sort_values(VARIED), VARIED, ["value", "clip_fraction"])


def plot_reuse(rows: pd.DataFrame) -> go.Figure:
    """Where training ends and how much is clipped, by clip and passes; and every run against samples and seconds."""
    require_columns(rows, [*VARIED, "run", "samples", "seconds", "value", "clip_fraction"], "plot_reuse")
    ends, score = reuse_ends(rows), axis_label(rows["score"].iloc[0])
    titles = [f"{score} at the end", "tokens outside the clip", f"{score} by samples", f"{score} by CPU seconds"]
    figure = make_subplots(2, 2, subplot_titles=titles, vertical_spacing=0.16, horizontal_spacing=0.1)
    clips = sorted(rows["clip"].unique(), key=lambda clip: (not clip[0].isdigit(), clip))
    found = dict(zip(sorted(rows["passes"].unique()), looks(rows["passes"].nunique()), strict=True))
    for passes, look in found.items():
        name = "1 pass" if passes == 1 else f"{passes} passes"
        own = ends[ends["passes"] == passes].set_index("clip").reindex(clips).reset_index()
        for column, place in (("value", 1), ("clip_fraction", 2)):
            shown = {"bars": {"error_y": error_bar(own[[column, f"{column}_low", f"{column}_high"]], column)}}
            shown |= {"legend": place == 1, "hover": "%{x}: %{y:.3f}<extra>%{fullData.name}</extra>"}
            line = points(own["clip"], own[column], name, {**look, "size": 8, "width": 2, "group": name}, **shown)
            figure.add_trace(line, 1, place)
        for (clip, *_), part in rows[rows["passes"] == passes].groupby(["clip", "run"]):
            faint = {"color": transparent(look["color"], 0.45), "width": 1.2, "group": name}
            hover = f"{name}, clip {clip}<br>%{{x:.0f}}: %{{y:.2f}}<extra></extra>"
            for column, place in (("samples", 1), ("seconds", 2)):
                figure.add_trace(points(part[column], part["value"], name, faint, legend=False, hover=hover), 2, place)
    figure.update_xaxes(title="cliprange", type="category", categoryorder="array", categoryarray=clips, row=1)
    figure.update_xaxes(title="samples drawn", row=2, col=1).update_xaxes(title="CPU seconds", row=2, col=2)
    figure.update_yaxes(tickformat=".0%", row=1, col=2)
    best, most = ends.loc[ends["value"].idxmax()], ends.loc[ends["clip_fraction"].idxmax()]
    title = f"Highest at the end: clip {best['clip']}, passes {best['passes']}"
    title += f"; at most {most['clip_fraction']:.1%} of tokens are outside"
    reading = "Above: means over units, bars 95% over worlds. Below: every run. A line further left needs less of it."
    return styled(figure, title=title, reading=reading, height=760)
