"""Figures of a study that a running kernel redraws when a control moves; exported pages have plotly's own menus."""

from __future__ import annotations

import ipywidgets
import pandas as pd
import plotly.graph_objects as go

from workbench import WorkbenchError
from workbench.studies.overoptimization.effect_figures import plot_score_paths
from workbench.studies.overoptimization.figures import MEAN


def explore_overoptimization(curves: pd.DataFrame, means: pd.DataFrame) -> ipywidgets.VBox:
    """Any reward models and policies of a study in one figure: the chosen score, optimiser and unit (or their mean).

    `curves` and `means` are those of `plot_pushes`. Where a choice leaves nothing, the figure stays and a line says so.
    """
    models, optimiser, unit, score = controls = _controls(curves, means)
    said = ipywidgets.Label()

    def drawn() -> go.Figure:
        table = means if unit.value is None else curves[_of_unit(curves, unit.value)]
        return _figure(table, optimiser=optimiser.value, labels=models.value, score=score.value)

    figure = go.FigureWidget(drawn())

    def redraw(_change: dict) -> None:
        try:
            new = drawn()
        except WorkbenchError as error:
            said.value = str(error)
            return
        said.value = ""
        with figure.batch_update():
            figure.data = []
            figure.add_traces(new.data)
            figure.layout = new.layout

    for control in controls:
        control.observe(redraw, names="value")
    return ipywidgets.VBox([ipywidgets.HBox([models, ipywidgets.VBox([optimiser, unit, score])]), figure, said])


def _controls(curves: pd.DataFrame, means: pd.DataFrame) -> tuple[ipywidgets.Widget, ...]:
    """What chooses reward models, optimiser, unit (None is their mean) and score."""
    labels = list(means["label"].unique())
    units = sorted(set(zip(curves["world"], curves["seed"], strict=True)))
    named = {MEAN: None, **{f"world {world}, seed {seed}": (world, seed) for world, seed in units}}
    scores = [name for name in ("gold", "proxy") if name in means and means[name].notna().any()]
    models = ipywidgets.SelectMultiple(options=labels, value=labels[:1], description="pushed", rows=min(8, len(labels)))
    models.layout.width = "420px"
    optimiser = ipywidgets.Dropdown(options=list(means["optimiser"].unique()), description="by")
    unit = ipywidgets.Dropdown(options=named, value=None, description="unit")
    return models, optimiser, unit, ipywidgets.Dropdown(options=scores, description="score")


def _of_unit(curves: pd.DataFrame, unit: tuple[int, int]) -> pd.Series:
    return (curves["world"] == unit[0]) & (curves["seed"] == unit[1])


def _figure(table: pd.DataFrame, *, optimiser: str, labels, score: str) -> go.Figure:
    """The chosen lines; WorkbenchError where there are none."""
    kept = table[(table["optimiser"] == optimiser) & table["label"].isin(labels)].dropna(subset=[score])
    if kept.empty:
        chosen = ", ".join(labels) or "nothing"
        raise WorkbenchError(
            f"No runs of {optimiser} against {chosen} in this unit: choose another reward model or unit."
        )
    ends = kept.groupby("label", sort=False)[score].last()
    title = f"{score} under {optimiser}: " + ", ".join(f"{label} ends at {value:.2f}" for label, value in ends.items())
    return plot_score_paths(kept, title, score=score)
