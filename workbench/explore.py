"""Figures that a running kernel redraws when a control moves; in exported pages plotly's own menus do it."""

from __future__ import annotations

import ipywidgets
import pandas as pd
import plotly.graph_objects as go

from workbench.errors import WorkbenchError
from workbench.feedback.agreement import agreement_matrix, pairwise_agreement
from workbench.feedback.quality import keep
from workbench.plots.agreement import plot_agreement_filters


def explore_agreement(judgements: pd.DataFrame) -> ipywidgets.VBox:
    """Agreement of the labelers that are ticked, in answers of one kind that took long enough.

    Where a choice leaves nothing to compare, the figure stays and a line below says why.
    """
    labelers, kinds = sorted(judgements["labeler"].unique()), sorted(judgements["kind"].unique())
    slowest = round(judgements["elapsed_ms"].quantile(0.9) / 1000)
    who = ipywidgets.SelectMultiple(options=labelers, value=labelers, description="labelers", rows=len(labelers))
    kind = ipywidgets.Dropdown(options=kinds, description="kind")
    seconds = ipywidgets.IntSlider(max=max(1, slowest), description="at least (s)", continuous_update=False)
    figure, said = go.FigureWidget(_figure(judgements, kind=kinds[0], labelers=labelers, seconds=0)), ipywidgets.Label()

    def redraw(_change: dict) -> None:
        try:
            drawn = _figure(judgements, kind=kind.value, labelers=who.value, seconds=seconds.value)
        except WorkbenchError as error:
            said.value = str(error)
            return
        said.value = ""
        with figure.batch_update():
            figure.data[0].update(drawn.data[0].to_plotly_json())
            figure.layout.title.text = drawn.layout.title.text

    for control in (who, kind, seconds):
        control.observe(redraw, names="value")
    return ipywidgets.VBox([ipywidgets.HBox([who, ipywidgets.VBox([kind, seconds])]), figure, said])


def _figure(judgements: pd.DataFrame, *, kind: str, labelers, seconds: int) -> go.Figure:
    kept = keep(judgements, labelers=labelers, kinds=[kind], slower_than_ms=1000 * seconds)
    name = f"{len(kept)} judgements"
    figure = plot_agreement_filters({name: agreement_matrix(kept)}, {name: pairwise_agreement(kept)})
    return figure.update_layout(updatemenus=[])
