"""Labelers against each other."""

from __future__ import annotations

import html

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.errors import WorkbenchError
from workbench.plots.theme import GREY, PALETTE, SYMBOLS, error_bar, require_columns, styled


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
        colorbar={"title": {"text": "agreement (%)", "font": {"size": 13}}, "outlinewidth": 0},
    )
    reading = "Share of common items with the same verdict, a tie against a choice counting half. 50% is guessing."
    figure = styled(go.Figure(heat), title=title or _finding(matrix.mean()), reading=reading)
    return figure.update_xaxes(showgrid=False).update_yaxes(showgrid=False, autorange="reversed", automargin=True)


def plot_choice_shares(shares: pd.DataFrame, title: str = "") -> go.Figure:
    """Dots of a `choice_shares` table: one row per feature, one colour per labeler, 95% intervals, in percent."""
    require_columns(shares, ["labeler", "feature", "share", "pairs"], "plot_choice_shares")
    figure = go.Figure()
    features = list(shares["feature"].unique())
    for i, (labeler, rows) in enumerate(shares.groupby("labeler")):
        figure.add_scatter(
            x=[html.escape(str(feature)) for feature in rows["feature"]],
            y=rows["share"],
            error_y=error_bar(rows, "share"),
            mode="markers",
            name=html.escape(str(labeler)),
            marker={"size": 10, "color": PALETTE[i % len(PALETTE)], "symbol": SYMBOLS[i % len(SYMBOLS)]},
            customdata=rows["pairs"],
            hovertemplate="%{x}<br>%{y:.0%} of %{customdata} pairs",
        )
    figure.add_hline(y=0.5, line={"dash": "dash", "color": GREY})
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=[html.escape(str(f)) for f in features])
    figure.update_yaxes(title="chose the completion with more of it", tickformat=".0%")
    figure.update_layout(scattermode="group", scattergap=0.6)
    reading = "Only pairs that differ in the feature count; 95% intervals. Dashed: the feature does not matter."
    return styled(figure, title=title or _habit(shares), reading=reading)


def _habit(shares: pd.DataFrame) -> str:
    """The labeler who stands furthest from the others in one feature, in a sentence."""
    others = shares.groupby("feature")["share"].transform("median")
    row = shares.loc[(shares["share"] - others).abs().idxmax()]
    return (
        f"“{row['labeler']}” stands out on “{row['feature']}”: {row['share']:.0%} where the typical labeler has "
        f"{others[row.name]:.0%}"
    )


def _finding(means: pd.Series) -> str:
    low, high = means.idxmin(), means.idxmax()
    return f"“{low}” agrees least with the others ({means[low]:.0%} on average), “{high}” most ({means[high]:.0%})"
