"""Skills of the policies in run folders: which policies there are and in what order, means over units, figures."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench import WorkbenchError
from workbench.analysis.skills import TIERS
from workbench.plots.marks import colored, error_bar, half_width, points
from workbench.plots.theme import INK, PALETTE, number, require_columns, spoken, styled, transparent
from workbench.runs import Run, files
from workbench.studies.measurements import experiment_of, over_runs, start_names

BY = ["experiment", "skill", "part", "temperature"]
GOLD = "all prompts"  # parts of the skills gold and diversity
DIVERSITY = ("within a prompt", "across prompts")
SAID = {"not sure": 0, "right": 2, "false": 3}  # colours of what is said about a fact


def policies_of(runs: Mapping[str, Run]) -> list[dict[str, str | int]]:
    """Each policy that a finished run saved, after those it was trained from, as columns of the table `skills`.

    `start` is the run that it was trained from, "" of one that was trained from nothing; `stage` counts how many there
    were, one after another. WorkbenchError where there is no policy.
    """
    kept = {name: run for name, run in runs.items() if run.finished and _writes(run)}
    if not kept:
        raise WorkbenchError("None of these runs holds a policy: give a folder of runs of 01, 02, 06 or 08.")
    starts = start_names({name: run for name, run in kept.items() if run.parameters.get("model")})

    def stage(name: str) -> int:
        return 1 + stage(starts[name]) if name in starts else 0

    rows = [
        {"run": name, "experiment": experiment_of(name), "start": starts.get(name, ""), "stage": stage(name)}
        | {"world": run.unit.world, "seed": run.unit.seed}
        for name, run in kept.items()
    ]
    return sorted(rows, key=lambda row: (row["stage"], row["run"]))


def _writes(run: Run) -> bool:
    """Whether the run's model writes, where a reward model scores."""
    path = run.path("model/config.json")
    return path.exists() and str(files.read_json(path).get("architectures")).endswith("ForCausalLM']")


def with_equal_gold(table: pd.DataFrame) -> pd.DataFrame:
    """The table `skills`, and of each policy how much more diverse it is than its start where both have the same gold.

    Colder answers are better and more alike: the curves of both over temperatures are compared, linear between two, on
    average over the gold that both reach. No row where there is none.
    """
    warm = table[(table["temperature"] > 0) & table["part"].isin([GOLD, *DIVERSITY])]
    curves = warm.pivot(index=["run", "temperature"], columns="part", values="value")
    curves = curves.reindex(columns=[GOLD, *DIVERSITY]).dropna().sort_values(GOLD)
    by_run, rows = dict(list(curves.groupby(level="run"))), []
    for row in table.drop_duplicates("run").to_dict("records"):
        pair = [by_run[name] for name in (row["run"], row["start"]) if name in by_run]
        low, high = curves[GOLD].min(), curves[GOLD].max()
        for each in pair:
            low, high = max(low, each[GOLD].min()), min(high, each[GOLD].max())
        for part in DIVERSITY if len(pair) == 2 and low <= high else ():
            own, start = (np.interp(np.linspace(low, high, 50), each[GOLD], each[part]) for each in pair)
            told = {"skill": "diversity", "part": f"{part}, less start's at equal gold", "temperature": np.nan}
            told |= dict.fromkeys(("value_se", "value_low", "value_high"), np.nan)
            rows.append({**row, **told, "better": 0, "value": (own - start).mean()})
    return pd.concat([table, pd.DataFrame(rows)], ignore_index=True)


def skills_over_units(table: pd.DataFrame) -> pd.DataFrame:
    """One row per experiment, skill, part and temperature by `over_runs`, in the order of stages.

    `value` with `value_low` and `value_high`: of one run over prompts, of several over worlds (over seeds, of one).
    Shares keep the ends that they have over prompts where all runs agree: no spread is not certainty.
    """
    require_columns(table, [*BY, "stage", "world", "value", "value_se"], "skills_over_units")
    means = over_runs(table, BY, ["value"]).sort_values("stage", kind="stable", ignore_index=True)
    half, own = half_width(means, "value_se"), means.reindex(columns=["value_low", "value_high"])
    share, alone = own["value_low"].notna(), (means["runs"] == 1) | (half == 0)
    for end, sign in (("value_low", -1), ("value_high", 1)):
        over = means["value"] + sign * half
        means[end] = own[end].where(share & alone, over.where(~share, over.clip(0, 1)))
    return means


# --- Figures, of `skills_over_units`.


def plot_skills(means: pd.DataFrame, *, temperature: float = 1.0) -> go.Figure:
    """Stage x skill with the number in each cell and its interval in the hover text."""
    rows = means[means["temperature"].fillna(temperature) == temperature]
    require_columns(rows, [*BY, "better", "runs", "value", "value_low", "value_high"], "plot_skills")
    rows = rows.assign(name=rows["skill"] + ": " + rows["part"], stage=rows["experiment"].map(_called))
    rows = rows.assign(score=_scores(rows), text=rows["value"].map(number), told=_told(rows))
    names, stages = rows["name"].unique(), rows["stage"].unique()
    grids = [rows.pivot(index="name", columns="stage", values=key) for key in ("score", "text", "told")]
    grids = [grid.reindex(names, columns=stages).astype(object) for grid in grids]
    scores, texts, told = (grid.where(grid.notna(), "").to_numpy() for grid in grids)
    ends = [(0, transparent(PALETTE[3], 0.5)), (0.5, "rgb(255, 255, 255)"), (1, transparent(PALETTE[0], 0.5))]
    bar = {"tickvals": [-1, 0, 1], "ticktext": ["worse", "mean", "better"], "thickness": 14, "outlinewidth": 0}
    cells = {
        "z": np.where(scores == "", None, scores),
        "text": texts,
        "customdata": told,
        "texttemplate": "%{text}",
        "textfont": {"color": INK},
    }
    look = {"zmin": -1, "zmax": 1, "colorscale": ends, "colorbar": bar, "xgap": 2, "ygap": 2, "hoverongaps": False}
    heat = go.Heatmap(x=stages, y=names, hovertemplate="%{customdata}<extra></extra>", **cells, **look)
    figure = go.Figure(heat).update_yaxes(autorange="reversed")
    figure.update_xaxes(tickangle=0 if len(stages) < 9 else 90, automargin=True)
    reading = "Each row has its own scale; a pale one varies no more than its intervals, or has no better end."
    return (
        styled(figure, title=_leader(rows), reading=reading, height=210 + 24 * len(names))
        .update_xaxes(showgrid=False)
        .update_yaxes(showgrid=False)
    )


def _called(experiment: str) -> str:
    """The experiment as an axis names it, in short lines."""
    return "<br>".join(textwrap.wrap(html.escape(spoken(experiment)), 12))


def _scores(rows: pd.DataFrame) -> pd.Series:
    """How much better than its row's mean each value is, from -1 to 1; small where intervals are wide."""
    off = rows["value"] - rows.groupby("name")["value"].transform("mean")
    half = np.fmax(rows["value_high"] - rows["value"], rows["value"] - rows["value_low"]).fillna(0)
    return rows["better"] * off / np.maximum(off.abs(), half).groupby(rows["name"]).transform("max").replace(0, 1)


def _told(rows: pd.DataFrame) -> pd.Series:
    """Each value with its interval, in words."""
    over = rows["runs"].map(lambda runs: "prompts, one run" if runs == 1 else f"{runs} runs")
    ends = [*zip(rows["value"], rows["value_low"], rows["value_high"], strict=True)]
    spans = [
        number(value) + (", no interval" if np.isnan(low) else f" ({number(low)} to {number(high)})")
        for value, low, high in ends
    ]
    return rows["stage"] + "<br>" + rows["name"] + "<br>" + spans + "<br>95% over " + over


def _leader(rows: pd.DataFrame) -> str:
    """Which experiment is ahead of all others in most of the skills that have a better end; ties are nobody's."""
    judged = rows[rows["better"] != 0]
    first = judged["score"] == judged.groupby("name")["score"].transform("max")
    alone = first & (first.groupby(judged["name"]).transform("sum") == 1)
    ahead = judged.loc[alone, "experiment"].map(spoken).value_counts()
    told = [
        f"{name} is ahead in {count} of {ahead.sum()} skills that have a better end" for name, count in ahead.items()
    ]
    return [*told, "What each policy does"][0]


def plot_facts(means: pd.DataFrame, *, temperature: float = 1.0, title: str = "") -> go.Figure:
    """How often each stage is right, false and not sure about facts of each tier."""
    rows = means[means["skill"].isin(TIERS.values()) & (means["temperature"] == temperature)]
    require_columns(rows, BY, "plot_facts")
    never = rows[rows["skill"] == TIERS["never"]].set_index(["part", "experiment"])["value"]
    false, unsure = never["false"], never["not sure"]
    finding = f"What nobody told it, {spoken(false.idxmax())} states falsely in {false.max():.0%} of its answers; "
    finding += f"{spoken(unsure.idxmin())} is not sure in {unsure.min():.0%}"
    reading = "Right and not sure are honest, false is not; other answers say nothing. Intervals are 95%."
    return plot_shares(rows, panels="skill", colors="part", title=title or finding, reading=reading)


def plot_shares(
    rows: pd.DataFrame, *, panels: str, colors: str, title: str, reading: str, axis: str = "share of answers"
) -> go.Figure:
    """Shares of every experiment, or their changes, with intervals: a panel and a colour per value of two columns."""
    require_columns(rows, [panels, colors, "experiment", "value", "value_low", "value_high"], "plot_shares")
    names, each = list(rows[panels].unique()), list(rows[colors].unique())
    figure = make_subplots(1, len(names), subplot_titles=names, shared_yaxes=True, horizontal_spacing=0.03)
    for (panel, name), group in rows.groupby([panels, colors], sort=False):
        look = colored(SAID.get(name, each.index(name)), size=10, group=name)
        shown = {"hover": "%{y}: %{x:.2f}", "bars": {"error_x": error_bar(group, "value")}, "legend": panel == names[0]}
        dots = points(group["value"], group["experiment"].map(_called), name, look, **shown)
        figure.add_trace(dots.update(orientation="h"), 1, names.index(panel) + 1)
    ends = rows[["value", "value_low", "value_high"]].to_numpy()
    low, high = (0, 1) if np.nanmin(ends) >= 0 else (np.nanmin(ends), max(0, np.nanmax(ends)))
    figure.update_xaxes(range=[low - 0.03 * (high - low), high + 0.03 * (high - low)], title=axis)
    figure.update_yaxes(autorange="reversed").update_layout(scattermode="group", scattergap=0.5)
    return styled(figure, title=title, reading=reading, height=200 + 60 * rows["experiment"].nunique())
