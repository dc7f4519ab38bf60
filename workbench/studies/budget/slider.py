"""A budget that can be moved: a line on the frontier, the table of methods there, and what they write there."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.analysis.statistics import nats
from workbench.plots.theme import (
    FAINT,
    GREY,
    INK,
    NOTHING,
    add_root_kl_axes,
    axis_label,
    headline_of,
    number,
    require_columns,
    spoken,
    styled,
    table_text,
)
from workbench.studies.budget.figures import frontier_scores, frontier_traces, score_menu, score_range

READING = (
    "Move the slider: the dashed line, both tables and this title follow it. The menu changes the score of the lines."
)
COLUMNS = ["budget", "experiment", "runs", "reached", "value", "low", "high", "behind", "behind_low", "verdict"]
FRONTIER, BETWEEN, ROW, TEXT_ROW = 380, 200, 26, 58  # pixels: frontier, legend and slider, a row of numbers, of texts
MOST_TEXT = 170  # characters of a completion in its cell


def plot_budget_slider(
    curves: pd.DataFrame,
    ends: pd.DataFrame,
    comparison: pd.DataFrame,
    completions: pd.DataFrame,
    *,
    score: str = "gold",
    shown: float = 1.0,
) -> go.Figure:
    """`plot_budget_frontier` with a slider of budgets, which moves a line on it and what the tables below it show.

    `comparison` is one of `compared_at_budget` by `score`, with a place of the slider for each of its budgets (nats);
    `completions` one of `side_by_side_at`: budget, experiment, prompt, completion and perhaps scores. It may be empty.
    The slider stands at the budget nearest to `shown`.
    """
    scores = frontier_scores(curves, "plot_budget_slider")
    require_columns(comparison, COLUMNS, "plot_budget_slider")
    budgets, methods = sorted(comparison["budget"].unique()), comparison["experiment"].nunique()
    places = [_place(budget, comparison, completions, score) for budget in budgets]
    active = int(np.argmin(np.abs(np.sqrt(budgets) - shown**0.5)))
    figure = go.Figure([*frontier_traces(curves, ends, scores[0]), *places[active]["tables"]])
    add_root_kl_axes(figure, max(curves["kl"].max(), ends["kl"].max(), budgets[0]))
    figure.update_yaxes(title=axis_label(scores[0]), range=score_range(curves, ends, scores[0]))
    figure = styled(figure, title=places[active]["title"], reading=READING)
    heights = [FRONTIER, BETWEEN, ROW * (methods + 3), *([TEXT_ROW * (methods + 1)] if len(completions) else [])]
    middle = _stack(figure, heights)
    figure.add_shape(**_line(budgets[active]))
    tables = [index for index, trace in enumerate(figure.data) if trace.type == "table"]
    slider = _slider(budgets, places, tables) | {"active": active, "y": middle, "yanchor": "top"}
    return figure.update_layout(sliders=[slider], updatemenus=[score_menu(curves, ends, {}) | {"y": 1}])


def _stack(figure: go.Figure, heights: Sequence[int]) -> float:
    """Give the frontier, the room below it and each table their `heights` (pixels); the place for a slider there."""
    total, margin = sum(heights), {"t": figure.layout.margin.t + 30, "b": 20}
    edges = 1 - np.cumsum([0, *heights]) / total
    figure.update_layout(height=total + sum(margin.values()), margin=margin, yaxis={"domain": [edges[1], 1]})
    title = figure.layout.title.y
    figure.update_layout(title={"y": 1 - 22 / figure.layout.height} if title else {})
    for table, low, high in zip(figure.select_traces({"type": "table"}), edges[3:], edges[2:], strict=False):
        table.domain = {"x": [0, 1], "y": [max(0.0, low + 24 / total), high]}
    figure.update_layout(legend={"y": edges[1] - 48 / total, "yref": "paper", "yanchor": "top", "x": 0})
    return edges[2] + 92 / total


def _place(budget: float, comparison: pd.DataFrame, completions: pd.DataFrame, score: str) -> dict:
    """What one place of the slider shows: its title and the tables."""
    rows = comparison[comparison["budget"] == budget]
    tables = [_numbers(rows, score)]
    if len(completions):
        tables.append(
            _texts(rows, completions[completions["budget"] == budget], list(completions["prompt"].unique()), score)
        )
    return {"title": _finding(budget, rows, score), "tables": tables}


def _numbers(rows: pd.DataFrame, score: str) -> go.Table:
    """A row per method: how many of its runs spend that much, and its score there."""
    columns = {
        "method": [html.escape(spoken(name)) for name in rows["experiment"]],
        "runs there": [f"{reached} of {runs}" for reached, runs in zip(rows["reached"], rows["runs"], strict=True)],
        f"{score} (95%)": [_interval(*row) for row in rows[["value", "low", "high"]].to_numpy()],
        "behind it (95%)": [_interval(*row) for row in rows[["behind", "behind_low", "behind_high"]].to_numpy()],
        "verdict": list(rows["verdict"]),
    }
    if "proxy" in rows and score != "proxy":
        columns["proxy"] = [_interval(value, math.nan, math.nan) for value in rows["proxy"]]
    return _table(list(columns), list(columns.values()), [1.8, 0.8, 1.6, 1.6, 1.3, 0.7][: len(columns)])


def _texts(rows: pd.DataFrame, completions: pd.DataFrame, prompts: Sequence[str], score: str) -> go.Table:
    """A row per method, a column per prompt; a method that never spends that much writes nothing."""
    said = completions.set_index(["experiment", "prompt"])
    cells = {prompt: [] for prompt in prompts}
    for name in rows["experiment"]:
        for prompt in prompts:
            found = said.loc[(name, prompt)] if (name, prompt) in said.index else None
            cells[prompt].append("—" if found is None else _written(found, score))
    header = ["", *(f"<i>{html.escape(str(prompt))}</i>" for prompt in prompts)]
    names = [html.escape(spoken(name)) for name in rows["experiment"]]
    return _table(header, [names, *cells.values()], [1.2] + [2.2] * len(prompts))


def _written(row: pd.Series, score: str) -> str:
    """A completion with its score, escaped."""
    text = str(row["completion"]).strip()
    text = table_text(text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} …")
    return f"<b>{number(row[score])}</b> {text}" if score in row and pd.notna(row[score]) else text


def _table(header: list[str], columns: list[list[str]], widths: list[float]) -> go.Table:
    look = {"align": "left", "fill": {"color": NOTHING}, "line": {"color": FAINT}}
    font = {"color": INK, "size": 12}
    return go.Table(
        header={"values": [f"<b>{name}</b>" for name in header], "font": font, **look},
        cells={"values": columns, "font": font, "height": ROW - 2, **look},
        columnwidth=widths,
    )


def _interval(value: float, low: float, high: float) -> str:
    """A number with its interval where there is one, "" where there is none at all."""
    if not math.isfinite(value):
        return ""
    return f"{number(value)} ({number(low)} to {number(high)})" if math.isfinite(low) else number(value)


def _finding(budget: float, rows: pd.DataFrame, score: str) -> str:
    best = rows[rows["verdict"] == "highest"]
    if best.empty:
        return f"At {nats(budget)} no method is there in most of its runs"
    others = int((rows["verdict"] == "not told apart").sum())
    leader, value = spoken(best["experiment"].iloc[0]), number(best["value"].iloc[0])
    text = f"At {nats(budget)} {leader} has the most {score}: {value}"
    return text + (f", and {others} more cannot be told from it" if others else "")


def _line(budget: float) -> dict:
    look = {"color": GREY, "width": 2, "dash": "dash"}
    return {"type": "line", "x0": budget**0.5, "x1": budget**0.5, "y0": 0, "y1": 1, "yref": "y domain", "line": look}


def _slider(budgets: Sequence[float], places: Sequence[dict], tables: list[int]) -> dict:
    steps = []
    for budget, place in zip(budgets, places, strict=True):
        cells = {"cells.values": [[list(column) for column in table.cells.values] for table in place["tables"]]}
        layout = {"title.text": headline_of(place["title"], READING)[0]}
        layout |= {"shapes[0].x0": budget**0.5, "shapes[0].x1": budget**0.5}
        steps.append({"label": f"{budget:g}", "method": "update", "args": [cells, layout, tables]})
    current = {"prefix": "budget (nats): ", "font": {"size": 14}}
    return {"steps": steps, "currentvalue": current, "pad": {"t": 0}, "font": {"color": INK}}
