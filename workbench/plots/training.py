"""Figures of a run's metrics against its steps."""

from __future__ import annotations

import html
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench import WorkbenchError
from workbench.plots.marks import points
from workbench.plots.theme import (
    GREY,
    PALETTE,
    ROLE_COLORS,
    axis_label,
    require_columns,
    shown_columns,
    smoothed,
    styled,
    transparent,
)


def plot_learning_curve(
    metrics: pd.DataFrame,
    columns: Sequence[str],
    *,
    title: str = "",
    unit: str = "loss (nats per token)",
    window: int = 15,
) -> go.Figure:
    """Several columns of one unit against step; noisy ones as a running mean over `window` rows, the raw line faint.

    The title says from where to where the last column goes, which is the one to look at.
    """
    columns = shown_columns(metrics, columns, "plot_learning_curve")
    figure = go.Figure()
    for column, color in zip(columns, PALETTE * len(columns), strict=False):
        figure.add_traces(_line_with_raw(metrics, column, color=color, window=window, legend=True))
    figure.update_xaxes(title=axis_label("step"), rangemode="nonnegative").update_yaxes(title=unit)
    return styled(figure, title=title or _course(metrics, columns[-1]), reading=_reading(window))


def _course(metrics: pd.DataFrame, column: str) -> str:
    """From where to where a column goes, in a sentence."""
    measured, name = metrics[["step", column]].dropna(), axis_label(column).split(" (")[0]
    name = name[0].upper() + name[1:]
    if measured.empty:
        return f"{name} was not measured"
    (start, first), (end, last) = measured.iloc[[0, -1]].to_numpy()
    return f"{name} goes from {first:.3g} at step {start:.0f} to {last:.3g} at step {end:.0f}"


def plot_training_panels(metrics: pd.DataFrame, columns: Sequence[str], *, title: str, window: int = 15) -> go.Figure:
    """One small panel per column against step, three in a row, each with its own unit."""
    columns = shown_columns(metrics, columns, "plot_training_panels")
    across = min(3, len(columns))
    down = -(-len(columns) // across)
    names = [axis_label(column) for column in columns]
    figure = make_subplots(
        rows=down, cols=across, subplot_titles=names, horizontal_spacing=0.08, vertical_spacing=0.28 / down
    )
    for i, column in enumerate(columns):
        color = ROLE_COLORS.get(column, PALETTE[2])
        where = {"row": i // across + 1, "col": i % across + 1}
        traces = _line_with_raw(metrics, column, color=color, window=window, legend=False)
        figure.add_traces(traces, rows=where["row"], cols=where["col"])
        if i + across >= len(columns):  # nothing below it
            figure.update_xaxes(title=axis_label("step"), **where)
    return styled(figure, title=title, reading=_reading(window), height=120 + 230 * down)


def _reading(window: int) -> str:
    return (
        f"Strong lines: running means over {window} points. Faint lines: the raw values. Few points are not smoothed."
    )


def _line_with_raw(metrics: pd.DataFrame, column: str, *, color: str, window: int, legend: bool) -> list[go.Scatter]:
    """The smoothed line with hover, and the raw one behind it where it differs."""
    measured = metrics[["step", column]].dropna()  # evaluations come every so many steps
    values = measured[column]
    line = smoothed(values, window)
    look = {"color": color, "width": 2.2} | ({"size": 6} if len(measured) <= 40 else {})
    name, hover = axis_label(column).split(" (")[0], "step %{x}<br>%{y:.3g}"
    main = points(measured["step"], line, name, look, hover=hover, legend=legend)
    raw = points(measured["step"], values, look={"color": transparent(color, 0.3), "width": 1})
    return [main] if line is values else [raw, main]


# --- Which tokens of a packed row see which.


def plot_attention_mask(mask: pd.DataFrame, title: str = "") -> go.Figure:
    """Squares of a square boolean table: True where the row's token may see the column's; columns name the tokens."""
    require_columns(mask, [], "plot_attention_mask")
    if mask.shape[0] != mask.shape[1]:
        raise WorkbenchError(f"plot_attention_mask got a table of shape {mask.shape}: give one row for each column.")
    words, seen = [html.escape(str(word)) for word in mask.columns], mask.to_numpy(dtype=bool)
    heat = go.Heatmap(
        z=seen.astype(int),
        zmin=0,
        zmax=1,
        colorscale=[(0, transparent(GREY, 0.12)), (1, PALETTE[0])],
        showscale=False,
        xgap=1,
        ygap=1,
        text=[
            [
                f"“{row}” {'sees' if sees else 'does not see'} “{column}”"
                for column, sees in zip(words, line, strict=True)
            ]
            for row, line in zip(words, seen, strict=True)
        ],
        hovertemplate="%{text}<extra></extra>",
    )
    starts = sum(seen[i, i] and (i == 0 or not seen[i, i - 1]) for i in range(len(seen)))
    title = title or f"{len(seen)} tokens of one row hold {starts} documents, and none sees another"
    reading = (
        "Filled: the token on the left may look at the token below. Each triangle is a document, read from its start."
    )
    ticks = {"tickvals": list(range(len(words))), "ticktext": words, "tickfont": {"size": 9}, "showgrid": False}
    figure = go.Figure(heat).update_xaxes(title="token that is seen", tickangle=-90, automargin=True, **ticks)
    figure.update_yaxes(
        title={"text": "token that looks", "standoff": 16}, autorange="reversed", automargin=True, **ticks
    )
    return styled(figure, title=title, reading=reading, height=760)
