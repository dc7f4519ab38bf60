"""Labelers against each other."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench import WorkbenchError
from workbench.analysis.statistics import Interval
from workbench.plots.marks import DASHED, add_buttons, button, colored, error_bar, heat, interval, points
from workbench.plots.theme import headline_of, require_columns, styled

MATRIX_READING = "Share of common items with the same verdict, a tie against a choice counting half. 50% is guessing."
# column of a `labeler_summary`, its panel, where nobody would be
MEASURES = (
    ("agreement", "agrees with the others", None),
    ("prefers_first", "prefers what is shown first", 0.5),
    ("prefers_longer", "prefers the longer one", 0.5),
    ("consistency", "agrees with oneself", None),
    ("attention", "passes attention checks", None),
)


def plot_agreement_matrix(matrix: pd.DataFrame, rest: pd.DataFrame, title: str = "") -> go.Figure:
    """Heat map of an `agreement_matrix`, in percent; blank where two labelers share no item.

    `rest` is the `labeler_vs_rest` of the same verdicts: it names who agrees least and most.
    """
    require_columns(matrix, [], "plot_agreement_matrix")
    if matrix.isna().all(axis=None):
        raise WorkbenchError("plot_agreement_matrix has nothing to show: no two labelers share an item.")
    return _heat_maps([matrix], title or _least_like(rest), height=440)


def plot_agreement_filters(matrices: Mapping[str, pd.DataFrame], overall: Mapping[str, Interval]) -> go.Figure:
    """`plot_agreement_matrix` of several selections of the judgements, one at a time: a menu chooses by name.

    `overall` has the agreement of each selection; all matrices have the same labelers. The first one is shown.
    """
    if not matrices or all(matrix.isna().all(axis=None) for matrix in matrices.values()):
        raise WorkbenchError("plot_agreement_filters has nothing to show: give a selection that two labelers share.")
    titles = {name: _selection(name, overall[name]) for name in matrices}
    figure = _heat_maps(list(matrices.values()), next(iter(titles.values())), height=480)
    figure.update_layout(showlegend=False, margin={"b": 62})
    buttons = []
    for place, (trace, (name, title)) in enumerate(zip(figure.data, titles.items(), strict=True)):
        trace.update(visible=place == 0, name=name)
        shown = {"visible": [other == place for other in range(len(titles))]}
        buttons.append(button(name, shown, {"title.text": headline_of(title, MATRIX_READING)[0]}))
    return add_buttons(figure, buttons, x=0) if len(buttons) > 1 else figure


def plot_labeler_measures(summary: pd.DataFrame, title: str = "") -> go.Figure:
    """A `labeler_summary` as dots with 95% intervals, in percent: a row per labeler, a panel per measure in it."""
    require_columns(summary, ["labeler", "judgements"], "plot_labeler_measures")
    measures = [measure for measure in MEASURES if measure[0] in summary and summary[measure[0]].notna().any()]
    if not measures:
        raise WorkbenchError("plot_labeler_measures has nothing to show: nothing was measured of any labeler.")
    titles = [name for _, name, _ in measures]
    figure = make_subplots(rows=1, cols=len(measures), shared_yaxes=True, subplot_titles=titles)
    names = [html.escape(str(name)) for name in summary["labeler"]]
    for column, (measure, name, neutral) in enumerate(measures, 1):
        values, low, high = (100 * summary[f"{measure}{end}"] for end in ("", "_low", "_high"))
        hover = f"%{{y}} {name}: %{{x:.1f}}%<extra></extra>"
        bars = {"error_x": interval(values, low, high)}
        figure.add_trace(points(values, names, look=colored(0, size=10), hover=hover, bars=bars), row=1, col=column)
        if neutral is not None:
            figure.add_vline(x=100 * neutral, line=DASHED, row=1, col=column)
    reading = "Shares in percent with 95% intervals. Dashed: no preference. Compare labelers within a panel."
    height = max(380, 190 + 34 * len(names))
    figure = styled(figure, title=title or _least_like(summary), reading=reading, height=height)
    figure.update_layout(margin={"b": 50})
    return figure.update_xaxes(ticksuffix="%").update_yaxes(autorange="reversed", automargin=True)


def plot_choice_shares(shares: pd.DataFrame, title: str = "") -> go.Figure:
    """Dots of a `choice_shares` table: one row per feature, one colour per labeler, 95% intervals, in percent."""
    require_columns(shares, ["labeler", "feature", "share", "pairs"], "plot_choice_shares")
    figure = go.Figure()
    features = list(shares["feature"].unique())
    for i, (labeler, rows) in enumerate(shares.groupby("labeler")):
        names, bars = [html.escape(str(feature)) for feature in rows["feature"]], {"error_y": error_bar(rows, "share")}
        hover = {"told": rows["pairs"], "hover": "%{x}<br>%{y:.0%} of %{customdata} pairs"}
        figure.add_trace(points(names, rows["share"], labeler, colored(i, size=10), bars=bars, **hover))
    figure.add_hline(y=0.5, line=DASHED)
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


def _heat_maps(matrices: Sequence[pd.DataFrame], title: str, *, height: int) -> go.Figure:
    """Heat maps over one another, on one scale."""
    values = [100 * matrix.to_numpy(dtype=float) for matrix in matrices]
    ends, maps = (np.nanmin(np.stack(values)) - 5, np.nanmax(np.stack(values))), []
    for matrix, shares in zip(matrices, values, strict=True):
        texts = [["" if np.isnan(share) else f"{share:.0f}%" for share in row] for row in shares]
        drawn = heat(matrix.columns, shares, texts, ends=ends, title="agreement (%)")
        maps.append(drawn.update(hovertemplate="%{y} and %{x}<br>%{z:.1f}%<extra></extra>"))
    figure = styled(go.Figure(maps), title=title, reading=MATRIX_READING, height=height)
    return figure.update_xaxes(showgrid=False).update_yaxes(showgrid=False, autorange="reversed", automargin=True)


def _selection(name: str, agreement: Interval) -> str:
    return f"{name}: two labelers agree on {agreement.value:.1%} ({agreement.low:.1%} to {agreement.high:.1%})"


def _least_like(summary: pd.DataFrame) -> str:
    """Who agrees least with the others, in a sentence."""
    if "agreement" not in summary or summary["agreement"].notna().sum() < 2:
        return "What is known of each labeler"
    known = summary.set_index("labeler")["agreement"].dropna()
    least, most = known.idxmin(), known.idxmax()
    return f"“{least}” agrees least with the others ({known[least]:.0%}), “{most}” most ({known[most]:.0%})"
