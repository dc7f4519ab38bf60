"""Reward models by size: what more weights and a trained start are worth."""

from __future__ import annotations

import html

import pandas as pd
import plotly.graph_objects as go

from workbench.plots.theme import GREY, PALETTE, SYMBOLS, error_bar, number, require_columns, styled

STARTS = {"sft": "from the SFT model", "scratch": "from scratch"}


def plot_accuracy_by_size(table: pd.DataFrame, title: str = "") -> go.Figure:
    """Held-out accuracy against the number of weights (log scale), one line per start, 95% intervals.

    `table` is that of `accuracy_by_size`; the dashed line is the size of the policy whose answers are judged.
    """
    require_columns(table, ["model", "start", "parameters", "accuracy", "measured_against"], "plot_accuracy_by_size")
    figure = go.Figure()
    for i, (start, rows) in enumerate(table.groupby("start", sort=False)):
        figure.add_scatter(
            x=rows["parameters"],
            y=rows["accuracy"],
            error_y={**error_bar(rows, "accuracy"), "color": PALETTE[i % len(PALETTE)]},
            name=STARTS.get(start, html.escape(str(start))),
            mode="lines+markers",
            marker={"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 9},
            line={"color": PALETTE[i % len(PALETTE)]},
            customdata=[html.escape(str(model)) for model in rows["model"]],
            hovertemplate="%{customdata}<br>%{x:,} weights<br>accuracy %{y:.3f}",
        )
    sizes = sorted(table["parameters"].unique())
    ticks = {"tickvals": sizes, "ticktext": [f"{size:,.0f}" for size in sizes]}
    figure.update_xaxes(title="weights of the reward model", type="log", **ticks)
    figure.update_yaxes(title=f"accuracy against {table['measured_against'].iloc[0]} (share of pairs)")
    reading = "Error bars: 95%, over runs that differ in their seed, or over prompts where there is one run."
    if "policy_parameters" in table and table["policy_parameters"].notna().any():
        size = table["policy_parameters"].dropna().iloc[0]
        figure.add_vline(x=size, line={"dash": "dash", "color": GREY})
        reading += " Dashed: the policy's size."
    return styled(figure, title=title or _finding(table), reading=reading)


def _finding(table: pd.DataFrame) -> str:
    """What the best model of each start reaches."""
    best = table.loc[table.groupby("start")["accuracy"].idxmax()]
    parts = [
        f"{STARTS.get(row.start, row.start)} {number(row.accuracy)} at {row.parameters:,.0f} weights"
        for row in best.sort_values("accuracy", ascending=False).itertuples()
    ]
    return f"Best accuracy: {', '.join(parts)}"
