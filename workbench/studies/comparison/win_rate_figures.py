"""Policies against each other: who wins how often, and how strong each is."""

from __future__ import annotations

import html
import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.plots.theme import GREY, PALETTE, add_top_axis, heat_look, number, require_columns, styled, transparent

LOSS, EVEN, WIN = transparent(PALETTE[3], 0.45), transparent(GREY, 0.12), transparent(PALETTE[0], 0.45)
WRITTEN = 16  # policies up to which the cells hold their numbers
STRENGTH = (
    "%{y}<br>strength %{x:.2f}<br>beats a policy of strength 0 on %{customdata[0]:.0%} (%{customdata[1]:.0%} to "
    "%{customdata[2]:.0%}) of prompts<extra></extra>"
)
CHANCES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)


def plot_win_rates(rates: pd.DataFrame, *, order: list[str], by: str, title: str = "") -> go.Figure:
    """Heat map of how often the row beats the column, in percent, `order` from top and left; blank where none met.

    `by` names the judge; `rates` has both ways round the columns of `win_rates`.
    """
    columns = ["first", "second", "win_rate", "win_rate_se", "p_value", "ties", "comparisons", "seeds"]
    require_columns(rates, columns, "plot_win_rates")
    reading = f"How often the row beats the column by {by}, a tie half a win."
    reading += " Bold: not 50% (Holm at 5% over all pairs)." if len(order) <= WRITTEN else " Hover for numbers."
    height = 240 + 27 * max(6, len(order))
    figure = go.Figure(_heat(rates.set_index(["first", "second"]), order))
    figure = styled(figure, title=title or _undecided(rates, order), reading=reading, height=height)
    figure.update_xaxes(showgrid=False, automargin=True, tickangle=-45, type="category")
    return figure.update_yaxes(showgrid=False, automargin=True, autorange="reversed", type="category")


def _heat(cells: pd.DataFrame, order: list[str]) -> go.Heatmap:
    names = [html.escape(str(name)) for name in order]
    table = cells["win_rate"].unstack().reindex(index=order, columns=order)
    reach = max(10.0, 100 * float((table - 0.5).abs().max().max()))
    return go.Heatmap(
        x=names,
        y=names,
        z=100 * table.to_numpy(),
        zmin=50 - reach,
        zmax=50 + reach,
        text=[[_written(cells, one, other) for other in order] for one in order],
        texttemplate="%{text}" if len(order) <= WRITTEN else None,
        customdata=[[_details(cells, one, other) for other in order] for one in order],
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=False,
        xgap=1,
        ygap=1,
        **heat_look("wins (%)") | {"colorscale": [(0, LOSS), (0.5, EVEN), (1, WIN)]},
    )


def beyond_chance(rates: pd.DataFrame | pd.Series) -> pd.Series | bool:
    """Whether each win rate, or that of one row, differs from one half when all pairs are judged together."""
    return rates["p_value"] < 0.05


def _written(cells: pd.DataFrame, one: str, other: str) -> str:
    if (one, other) not in cells.index:
        return ""
    row = cells.loc[(one, other)]
    text = f"{100 * row['win_rate']:.0f}"
    return f"<b>{text}</b>" if beyond_chance(row) else text


def _details(cells: pd.DataFrame, one: str, other: str) -> str:
    if (one, other) not in cells.index:
        return ""
    row = cells.loc[(one, other)]
    said = f"{html.escape(str(one))} against {html.escape(str(other))}<br>{row['win_rate']:.1%}"
    said += f" ± {1.96 * row['win_rate_se']:.1%}, ties {row['ties']:.0%}<br>{row['comparisons']} comparisons"
    return said + (f"<br>by seed: {row['seeds']}" if row["seeds"] else "")


def _undecided(rates: pd.DataFrame, order: list[str]) -> str:
    """The policy that beats most others beyond chance, and how many pairs are undecided, in a sentence."""
    decided = beyond_chance(rates)
    beaten = rates[decided & (rates["win_rate"] > 0.5)].groupby("first").size().reindex(order, fill_value=0)
    open_pairs = int((~decided).sum()) // 2
    if open_pairs == len(rates) // 2:
        return "No policy beats another beyond chance"
    found = f"{beaten.idxmax()} beats {beaten.max()} of {len(order) - 1} others beyond chance"
    undecided = "1 is" if open_pairs == 1 else f"{open_pairs} are"
    return f"{found}; of {len(rates) // 2} pairs {undecided} undecided"


def plot_strengths(table: pd.DataFrame, rates: pd.DataFrame, *, by: str, title: str = "") -> go.Figure:
    """Bradley-Terry strengths with their 95% intervals, the strongest on top, and above what they mean as win rates.

    `table` has name, score, low and high in log-odds against the mean of all; `rates` of the pairs serve the title,
    `by` names the judge.
    """
    require_columns(table, ["name", "score", "low", "high"], "plot_strengths")
    rows = table.sort_values("score")
    spread = {"array": rows["high"] - rows["score"], "arrayminus": rows["score"] - rows["low"], "symmetric": False}
    figure = go.Figure(
        go.Scatter(
            x=rows["score"],
            y=[html.escape(str(name)) for name in rows["name"]],
            error_x={"thickness": 1.5, "width": 4, **spread},
            mode="markers",
            marker={"size": 9, "color": PALETTE[0]},
            customdata=[[_chance(value) for value in row] for row in rows[["score", "low", "high"]].to_numpy()],
            hovertemplate=STRENGTH,
        )
    )
    figure.add_vline(x=0, line={"dash": "dash", "color": GREY, "width": 1})
    _add_chances(figure, rows["low"].min(), rows["high"].max())
    reading = f"By {by}. Intervals: 95% over prompts, for these runs; of two that overlap one may still be better."
    figure = styled(figure, title=title or _strongest(rows, rates), reading=reading, height=230 + 24 * len(rows))
    return figure.update_layout(showlegend=False, margin={"b": 62}).update_yaxes(automargin=True, type="category")


def _add_chances(figure: go.Figure, low: float, high: float) -> None:
    """Strengths from `low` to `high` below, and above what they mean as win rates."""
    room = 0.06 * max(high - low, 0.1)
    figure.update_xaxes(title="strength (log-odds against the mean of all)", range=[low - room, high + room])
    places = {math.log(chance / (1 - chance)): f"{chance:.0%}" for chance in CHANCES}
    places = {place: label for place, label in places.items() if low - room <= place <= high + room} or {0.0: "50%"}
    places = _apart(places, (high - low) / 14)
    add_top_axis(figure, list(places), list(places.values()), "wins against a policy of strength 0")


def _apart(places: dict[float, str], least: float) -> dict[float, str]:
    """Ticks with room for their labels, those next to 50% first."""
    kept: dict[float, str] = {}
    for place in sorted(places, key=abs):
        if all(abs(place - other) >= least for other in kept):
            kept[place] = places[place]
    return kept


def _chance(score: float) -> float:
    return 1 / (1 + float(np.exp(-score)))


def _strongest(rows: pd.DataFrame, rates: pd.DataFrame) -> str:
    """The strongest policy, and which others it does not beat beyond chance, in a sentence."""
    best = rows.iloc[-1]
    if best["score"] - rows["score"].iloc[0] < 1e-6:
        return "All policies are equally strong"
    found = f"{best['name']} is strongest ({number(best['score'])}, {number(best['low'])} to {number(best['high'])})"
    even = rates[(rates["first"] == best["name"]) & ~beyond_chance(rates)]["second"].tolist()
    if not even:
        return f"{found} and beats every other beyond chance"
    return f"{found}; not beyond chance against {', '.join(even[:4])}{f' and {len(even) - 4} more' * (len(even) > 4)}"
