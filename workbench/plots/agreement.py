"""Labelers against each other."""

from __future__ import annotations

import html

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.errors import WorkbenchError
from workbench.plots.theme import require_columns, styled


def plot_agreement_matrix(matrix: pd.DataFrame, title: str = "") -> go.Figure:
    """Heat map of an `agreement_matrix`, in percent; blank where two labelers share no item."""
    require_columns(matrix, [], "plot_agreement_matrix")
    names = [html.escape(str(name)) for name in matrix.columns]
    if matrix.isna().all(axis=None):
        raise WorkbenchError("plot_agreement_matrix has nothing to show: no two labelers share an item.")
    values = 100 * matrix.to_numpy(dtype=float)
    heat = go.Heatmap(
        x=names,
        y=names,
        z=values,
        zmin=np.nanmin(values) - 5,
        zmax=np.nanmax(values),
        colorscale=[(0, "#D6E6F2"), (1, "#0072B2")],  # the palest cell still differs from a blank one
        text=[["" if np.isnan(value) else f"{value:.0f}%" for value in row] for row in values],
        texttemplate="%{text}",
        hovertemplate="%{y} and %{x}<br>%{z:.1f}%<extra></extra>",
        hoverongaps=False,
        xgap=2,
        ygap=2,
        colorbar={"title": "agreement (%)", "outlinewidth": 0},
    )
    reading = "Share of common items with the same verdict, a tie against a choice counting half. 50% is guessing."
    figure = styled(go.Figure(heat), title=title or _finding(matrix.mean()), reading=reading)
    return figure.update_xaxes(showgrid=False).update_yaxes(showgrid=False, autorange="reversed", automargin=True)


def _finding(means: pd.Series) -> str:
    low, high = means.idxmin(), means.idxmax()
    return f"“{low}” agrees least with the others ({means[low]:.0%} on average), “{high}” most ({means[high]:.0%})"
