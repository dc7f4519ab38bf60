"""Which tokens of a packed row see which."""

from __future__ import annotations

import html

import pandas as pd
import plotly.graph_objects as go

from workbench import WorkbenchError
from workbench.plots.theme import GREY, PALETTE, require_columns, styled, transparent


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
