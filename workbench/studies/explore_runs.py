"""Any metric of any selection of runs, redrawn by a running kernel; exported pages have the menu of its figure."""

from __future__ import annotations

import ipywidgets
import pandas as pd
import plotly.graph_objects as go

from workbench import WorkbenchError
from workbench.studies.comparison.figures import plot_metric_curves
from workbench.studies.comparison.tables import SMOOTHED, metric_curve, metrics_in


def explore_metrics(rows: pd.DataFrame) -> ipywidgets.VBox:
    """Controls over `metric_rows`: the metric, which experiments, whether their runs stand apart, and the smoothing.

    Where a choice leaves nothing to draw, the figure stays and a line below says why. WorkbenchError without metrics.
    """
    metric, which, apart, window = controls = _controls(rows)
    figure = go.FigureWidget(_drawn(rows, metric.value, which.value, apart.value, window.value))
    said = ipywidgets.Label()

    def redraw(_change: dict) -> None:
        try:
            drawn = _drawn(rows, metric.value, which.value, apart.value, window.value)
        except WorkbenchError as error:
            said.value = str(error)
            return
        said.value = ""
        with figure.batch_update():
            figure.data = ()
            figure.add_traces(drawn.data)
            figure.layout = drawn.layout

    for control in controls:
        control.observe(redraw, names="value")
    return ipywidgets.VBox([ipywidgets.HBox([which, ipywidgets.VBox([metric, apart, window])]), figure, said])


def _controls(rows: pd.DataFrame) -> tuple[ipywidgets.Widget, ...]:
    """Metric, experiments, runs apart, window; at first those experiments that measured the first metric."""
    metrics, experiments = metrics_in(rows), list(dict.fromkeys(rows["experiment"]))
    if not metrics:
        raise WorkbenchError("explore_metrics has nothing to show: none of these runs wrote a number per step.")
    measured = list(dict.fromkeys(rows.loc[rows[metrics[0]].notna(), "experiment"]))
    shown = {"options": experiments, "value": measured, "rows": min(12, len(experiments))}
    steps = {"value": SMOOTHED, "min": 1, "max": 101, "step": 2, "continuous_update": False}
    return (
        ipywidgets.Dropdown(options=metrics, description="metric"),
        ipywidgets.SelectMultiple(description="experiments", **shown),
        ipywidgets.Checkbox(description="each run on its own"),
        ipywidgets.IntSlider(description="steps", **steps),
    )


def _drawn(rows: pd.DataFrame, metric: str, experiments, apart: bool, window: int) -> go.Figure:
    """All chosen experiments; WorkbenchError where none of them measured the metric."""
    chosen = rows[rows["experiment"].isin(experiments)]
    curve = metric_curve(chosen.assign(experiment=chosen["run"]) if apart else chosen, metric, window=window)
    if curve.empty:
        raise WorkbenchError(f"None of the chosen experiments measured {metric}: choose others, or another metric.")
    return plot_metric_curves({metric: curve}, window=window, most=len(curve))
