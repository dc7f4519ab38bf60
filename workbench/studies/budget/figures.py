"""What a KL budget buys, drawn: mean paths with their intervals, and where every method stands at a few budgets."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench import WorkbenchError
from workbench.analysis.statistics import nats
from workbench.plots.marks import DASHED, add_buttons, banded, button, cells, error_bar, half_width, interval, points
from workbench.plots.theme import (
    FAINT,
    GREY,
    INK,
    PALETTE,
    PATTERNS,
    add_root_kl_axes,
    axis_label,
    headline_of,
    looks,
    number,
    require_columns,
    root_kl,
    spoken,
    styled,
    styled_beside,
    table_text,
)

AT_BOUND = " (bound)"  # ends the name of best-of-n that stands at the bound on its KL, and is no method of its own
FRONTIER_READING = (
    "Lines: means over runs at equal KL, up to where the first run ends; bands: 95% over runs. Symbols: where runs end "
    "on average. A line that lies above another buys more with the same KL."
)
NAMES_BELOW = 12  # more methods than this, and their names stand beside the figure
VERDICTS = {
    "highest": {"color": PALETTE[3], "symbol": "star"},
    "not told apart": {"color": PALETTE[0], "symbol": "circle-open"},
    "behind": {"color": GREY, "symbol": "circle"},
}


def method_looks(names: Iterable[str]) -> dict[str, dict]:
    """The `looks` of lines of each method, in alphabetical order."""
    different = sorted(set(names))
    drawn = [{**look, "width": 2.2, "group": name} for name, look in zip(different, looks(len(different)), strict=True)]
    return dict(zip(different, drawn, strict=True))


def plot_budget_frontier(curves: pd.DataFrame, ends: pd.DataFrame, title: str = "") -> go.Figure:
    """Every method's mean path and mean end in the plane of √KL and reward; a menu chooses the score.

    `curves` has experiment, kl (nats), measured (points per run), and every score with `_low` and `_high`; `ends` has
    experiment, kl and the scores, with intervals of kl, too. The first score is shown first. Methods measured at two
    points only have no line.
    """
    scores = frontier_scores(curves, "plot_budget_frontier")
    figure = go.Figure(frontier_traces(curves, ends, scores[0]))
    add_root_kl_axes(figure, max(curves["kl"].max(), ends["kl"].max()))
    figure.update_yaxes(title=axis_label(scores[0]), range=score_range(curves, ends, scores[0]))
    look = styled if curves["experiment"].nunique() <= NAMES_BELOW else styled_beside
    figure = look(figure, title=title or frontier_finding(curves, scores[0]), reading=FRONTIER_READING, height=600)
    titles = {score: headline_of(title or frontier_finding(curves, score), FRONTIER_READING)[0] for score in scores}
    return _score_menu(figure, curves, ends, scores, {score: {"title.text": text} for score, text in titles.items()})


def frontier_scores(curves: pd.DataFrame, figure: str) -> list[str]:
    """The scores of a table of mean paths: those that have an interval; WorkbenchError where there is none."""
    require_columns(curves, ["experiment", "kl"], figure)
    scores = [name.removesuffix("_low") for name in curves if name.endswith("_low") and name != "kl_low"]
    if not scores:
        raise WorkbenchError(f"{figure} has nothing to show: neither gold nor a proxy was measured.")
    return scores


def score_range(curves: pd.DataFrame, ends: pd.DataFrame, score: str) -> list[float]:
    """From where to where the axis of a score goes: around lines and ends. Long bars and wide bands may leave it."""
    shown = pd.concat([curves[score], ends[score]]).dropna()
    if shown.empty:
        return [0.0, 1.0]
    low, high = shown.min(), shown.max()
    room = 0.25 * (high - low) or 0.5
    return [float(low - room), float(high + room)]


def frontier_traces(curves: pd.DataFrame, ends: pd.DataFrame, score: str) -> list[go.Scatter]:
    """Band, line and end of every method, three traces each, in the order of `curves`."""
    found, traces = method_looks(curves["experiment"]), []
    for name, rows in curves.groupby("experiment", sort=False):
        if "measured" in rows and rows["measured"].min() <= 2:  # between a start and an end any line would be invented
            rows = rows.iloc[:0]
        values = (rows[f"{score}{end}"] for end in ("", "_low", "_high"))
        shown = {"told": rows[["kl"]], "legend": False, "opacity": 0.1}
        shown["hover"] = "%{fullData.name}<br>KL %{customdata[0]:.2f} nats: %{y:.2f}<extra></extra>"
        traces += banded(root_kl(rows["kl"]), *values, spoken(name), found[name], **shown)
        traces.append(_end(ends[ends["experiment"] == name], score, name, found[name]))
    return traces


def _end(end: pd.DataFrame, score: str, name: str, look: dict) -> go.Scatter:
    place, low, high = (root_kl(end[name]) for name in ("kl", "kl_low", "kl_high"))
    bars = {"error_x": interval(place, low, high), "error_y": error_bar(end, score)}
    hover = "%{fullData.name}, end<br>KL %{customdata[0]:.2f} nats: %{y:.2f}<br>runs: %{customdata[1]}<extra></extra>"
    shown = {"told": end[["kl", "runs"]], "hover": hover, "bars": bars}  # the legend shows line and symbol
    return points(place, end[score], spoken(name), {**look, "size": 10}, **shown)


def _score_menu(figure: go.Figure, curves, ends, scores: Sequence[str], layouts: Mapping[str, dict]) -> go.Figure:
    """The figure with a menu that puts another score into its first traces, those of `frontier_traces`.

    `layouts` says what else of the figure's layout each score changes.
    """
    buttons = []
    for score in scores:
        traces = frontier_traces(curves, ends, score)
        drawn = {"y": [list(trace.y) for trace in traces]}
        for side in ("array", "arrayminus"):
            errors = [trace.error_y[side] for trace in traces]
            drawn[f"error_y.{side}"] = [None if error is None else list(error) for error in errors]
        axis = {"yaxis.title.text": axis_label(score), "yaxis.range": score_range(curves, ends, score)}
        buttons.append(button(axis_label(score), drawn, axis | layouts.get(score, {}), range(len(traces))))
    return add_buttons(figure, buttons, x=0) if len(buttons) > 1 else figure


def frontier_finding(curves: pd.DataFrame, score: str) -> str:
    """Who has the most and the least of a score at the KL that half of the methods reach, in a sentence."""
    measured = curves[~curves["experiment"].str.endswith(AT_BOUND)]
    parts = {name: rows.dropna(subset=score) for name, rows in measured.groupby("experiment", sort=False)}
    furthest = pd.Series({name: rows["kl"].max() for name, rows in parts.items() if len(rows)})
    if furthest.empty:
        return f"No method was measured by its {axis_label(score)}"
    kl = furthest.quantile(0.5, interpolation="higher")
    there = furthest.index[furthest >= kl]
    values = pd.Series({name: np.interp(kl**0.5, root_kl(parts[name]["kl"]), parts[name][score]) for name in there})
    best, worst = values.idxmax(), values.idxmin()
    text = f"At {nats(kl, 2)} {spoken(best)} has the most {axis_label(score)}: {number(values[best])}"
    return text if best == worst else f"{text}; {spoken(worst)} the least: {number(values[worst])}"


def plot_at_budgets(comparison: pd.DataFrame, title: str = "", score: str = "gold") -> go.Figure:
    """A panel per budget: every method's mean with its 95% interval, a star for the highest.

    Columns of `compared_at_budget`: budget (nats), experiment, value, low, high, verdict, reached, runs.
    """
    needed = ["budget", "experiment", "value", "low", "high", "verdict", "reached", "runs"]
    require_columns(comparison, needed, "plot_at_budgets")
    budgets = sorted(comparison["budget"].unique())
    names = [f"at {nats(budget)}" for budget in budgets]
    figure = make_subplots(rows=1, cols=len(budgets), shared_yaxes=True, subplot_titles=names, horizontal_spacing=0.02)
    for column, budget in enumerate(budgets, start=1):
        rows = comparison[comparison["budget"] == budget].dropna(subset="value")
        for verdict, part in rows.groupby("verdict", sort=False):
            figure.add_trace(_dots(part, verdict), row=1, col=column)
    order = sorted(comparison["experiment"].unique(), reverse=True)
    names = [html.escape(spoken(name)) for name in order]
    figure.update_yaxes(categoryorder="array", categoryarray=names, automargin=True)
    figure.update_yaxes(range=[-0.6, len(order) - 0.4]).update_xaxes(title=axis_label(score), matches="x")
    title = title or _budgets_finding(comparison, score)
    reading = (
        "Star: the most at that budget. Open circles: not told apart from it (paired, Holm at 5% over all pairs "
        "there); full circles: less. Crosses: too few runs to say. Nothing where none is there. Bars: 95%, each alone."
    )
    if comparison["low"].isna().all():
        reading = "Star: the most at that budget. One run of each method: nothing says what another seed would do."
    figure = styled(figure, title=title, reading=reading, height=230 + 26 * len(order))
    return figure.update_layout(showlegend=False, margin={"b": 60})


def _dots(rows: pd.DataFrame, verdict: str) -> go.Scatter:
    names, look = [html.escape(spoken(name)) for name in rows["experiment"]], {"color": GREY, "symbol": "x-thin-open"}
    hover = "%{y}: %{x:.2f}<br>%{customdata[0]}<br>%{customdata[1]} of %{customdata[2]} runs spend that much"
    bars = {"error_x": interval(rows["value"], rows["low"], rows["high"])}
    shown = {"told": rows[["verdict", "reached", "runs"]], "hover": f"{hover}<extra></extra>", "bars": bars}
    return points(rows["value"], names, verdict, VERDICTS.get(verdict, look) | {"size": 11}, **shown)


def _budgets_finding(comparison: pd.DataFrame, score: str) -> str:
    """Who is highest at each budget, and from how many of the others it is told apart, in a sentence."""
    highest = comparison[comparison["verdict"] == "highest"].sort_values("budget")
    if highest.empty:
        return "No method spends any of these budgets in most of its runs"
    judged, behind = (comparison["verdict"].isin(names) for names in (("behind", "not told apart"), ("behind",)))
    apart = f", told apart from {behind.sum()} of {judged.sum()} others" if judged.any() else ""
    if highest["experiment"].nunique() == 1:
        name = spoken(highest["experiment"].iloc[0])
        return f"{name} has the most {axis_label(score)} at every budget that is reached{apart}"
    told = []
    for name, budgets in highest.groupby("experiment", sort=False)["budget"]:
        places = [*map("{:g}".format, budgets[:-1]), nats(budgets.iloc[-1])]
        told.append(f"{spoken(name)} at {' and '.join(places)}")
    return f"Most {axis_label(score)}: {'; '.join(told)}{apart}"


# --- A budget that can be moved: a line on the frontier, the table of methods there, and what they write there.


SLIDER_READING = (
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
    scores = sorted(frontier_scores(curves, "plot_budget_slider"), key=lambda name: name != score)
    require_columns(comparison, COLUMNS, "plot_budget_slider")
    budgets, methods = sorted(comparison["budget"].unique()), comparison["experiment"].nunique()
    places = [_place(budget, comparison, completions, score) for budget in budgets]
    active = int(np.argmin(np.abs(np.sqrt(budgets) - shown**0.5)))
    figure = go.Figure([*frontier_traces(curves, ends, scores[0]), *places[active]["tables"]])
    add_root_kl_axes(figure, max(curves["kl"].max(), ends["kl"].max(), budgets[0]))
    figure.update_yaxes(title=axis_label(scores[0]), range=score_range(curves, ends, scores[0]))
    figure = styled(figure, title=places[active]["title"], reading=SLIDER_READING)
    figure = _score_menu(figure, curves, ends, scores, {})
    heights = [FRONTIER, BETWEEN, ROW * (methods + 3), *([TEXT_ROW * (methods + 1)] if len(completions) else [])]
    middle, place = _stack(figure, heights), budgets[active] ** 0.5
    figure.add_shape(type="line", x0=place, x1=place, y0=0, y1=1, yref="y domain", line={**DASHED, "width": 2})
    tables = [index for index, trace in enumerate(figure.data) if trace.type == "table"]
    return figure.update_layout(sliders=[_slider(budgets, places, tables) | {"active": active, "y": middle}])


def _stack(figure: go.Figure, heights: Sequence[int]) -> float:
    """Give the frontier, the room below it and each table their `heights` (pixels); the place for a slider there."""
    total, margin = sum(heights), {"t": figure.layout.margin.t, "b": 20}
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
        said = completions[completions["budget"] == budget].set_index(["experiment", "prompt"])
        tables.append(_texts(rows, said, list(completions["prompt"].unique()), score))
    return {"title": _place_finding(budget, rows, score), "tables": tables}


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
    return cells(list(columns), list(columns.values()), [1.8, 0.8, 1.6, 1.6, 1.3, 0.7][: len(columns)], height=ROW - 2)


def _texts(rows: pd.DataFrame, said: pd.DataFrame, prompts: Sequence[str], score: str) -> go.Table:
    """A row per method, a column per prompt; a method that never spends that much writes nothing."""
    columns = [[html.escape(spoken(name)) for name in rows["experiment"]]]
    for prompt in prompts:
        places = [(name, prompt) for name in rows["experiment"]]
        columns.append([_written(said.loc[place], score) if place in said.index else "—" for place in places])
    header = ["", *(f"<i>{html.escape(str(prompt))}</i>" for prompt in prompts)]
    return cells(header, columns, [1.2] + [2.2] * len(prompts), height=ROW - 2)


def _written(row: pd.Series, score: str) -> str:
    """A completion with its score, escaped."""
    text = str(row["completion"]).strip()
    text = table_text(text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} …")
    return f"<b>{number(row[score])}</b> {text}" if score in row and pd.notna(row[score]) else text


def _interval(value: float, low: float, high: float) -> str:
    """A number with its interval where there is one, "" where there is none at all."""
    if not math.isfinite(value):
        return ""
    return f"{number(value)} ({number(low)} to {number(high)})" if math.isfinite(low) else number(value)


def _place_finding(budget: float, rows: pd.DataFrame, score: str) -> str:
    best = rows[rows["verdict"] == "highest"]
    if best.empty:
        return f"At {nats(budget)} no method is there in most of its runs"
    others = int((rows["verdict"] == "not told apart").sum())
    leader, value = spoken(best["experiment"].iloc[0]), number(best["value"].iloc[0])
    text = f"At {nats(budget)} {leader} has the most {score}: {value}"
    return text + (f", and {others} more cannot be told from it" if others else "")


def _slider(budgets: Sequence[float], places: Sequence[dict], tables: list[int]) -> dict:
    steps = []
    for budget, place in zip(budgets, places, strict=True):
        values = {"cells.values": [[list(column) for column in table.cells.values] for table in place["tables"]]}
        layout = {"title.text": headline_of(place["title"], SLIDER_READING)[0]}
        layout |= {"shapes[0].x0": budget**0.5, "shapes[0].x1": budget**0.5}
        steps.append(button(f"{budget:g}", values, layout, tables))
    current = {"prefix": "budget (nats): ", "font": {"size": 14}}
    return {"steps": steps, "currentvalue": current, "pad": {"t": 0}, "font": {"color": INK}, "yanchor": "top"}


# --- KL itself, drawn: what best-of-n costs, where in a completion it is spent, at what price, how well it is known.


PRICES = ("kl_coef", "kl", "gold", "reward")  # panels of `plot_coefficients`, those that were written
PRICE_LABELS = {"kl_coef": "coefficient (reward per nat)", "reward": "reward that is optimised"}


def plot_best_of_n_kl(curve: pd.DataFrame, title: str = "") -> go.Figure:
    """The KL of best-of-n against n (log scale): the bound log n - (n-1)/n, what pools measured, and the gap below.

    Columns n, kl_bound, kl and, where there are several pools, kl_low and kl_high (nats, 95%).
    """
    require_columns(curve, ["n", "kl_bound", "kl"], "plot_best_of_n_kl")
    n, bound = curve["n"], curve["kl_bound"]
    low, high = (curve.get(name, curve["kl"] * math.nan) for name in ("kl_low", "kl_high"))
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.62, 0.38])
    said = "n = %{x}<br>at most %{y:.3f} nats"
    figure.add_trace(points(n, bound, "bound", {**DASHED, "width": 2}, hover=said), row=1, col=1)
    look = {"color": PALETTE[0], "width": 2.4, "size": 6}
    for row, values, ends in ((1, curve["kl"], (low, high)), (2, bound - curve["kl"], (bound - high, bound - low))):
        shown = {"hover": "n = %{x}<br>%{y:.4f} nats", "legend": row == 1}
        figure.add_traces(banded(n, values, *ends, "measured from pools", look, **shown), rows=row, cols=1)
    figure.update_xaxes(type="log", tickvals=[2**power for power in range(int(n.max()).bit_length())])
    figure.update_xaxes(title="n, completions per prompt to choose from", row=2)
    figure.update_yaxes(title="KL(best-of-n || policy) (nats)", row=1).update_yaxes(title="bound less it (nats)", row=2)
    last = f"n = {n.iloc[-1]:.0f} best-of-n costs {number(curve['kl'].iloc[-1])} nats"
    reading = (
        "The bound is met where no two draws are alike. A likely completion that comes again and again costs less."
    )
    finding = f"At {last}, its bound says {number(bound.iloc[-1])}"
    return styled(figure, title=title or finding, reading=reading, height=520)


def plot_kl_positions(positions: pd.DataFrame, title: str = "", among: Iterable[str] = ()) -> go.Figure:
    """Where KL is spent: nats at each token position of every method, and below them nats per kind of prompt.

    Columns of `positions_at`: experiment, kind ("all" and each), position (from 1), kl (nats per completion), low,
    high. A method has the colour that it has `among` all of these.
    """
    require_columns(positions, ["experiment", "kind", "position", "kl", "low", "high"], "plot_kl_positions")
    kinds = positions[positions["kind"] != "all"].groupby(["experiment", "kind"], sort=False)["kl"].sum().reset_index()
    rows, found = 1 + (kinds["kind"].nunique() > 1), method_looks([*positions["experiment"], *among])
    figure = make_subplots(rows=rows, cols=1, vertical_spacing=0.18)
    for name, part in positions[positions["kind"] == "all"].groupby("experiment", sort=False):
        hover = "%{fullData.name}<br>position %{x}: %{y:.3f} nats<extra></extra>"
        figure.add_traces(_method_line(part, "position", "kl", found[name], hover), rows=1, cols=1)
        here = kinds[kinds["experiment"] == name]
        look = {"color": found[name]["color"], "pattern": {"shape": PATTERNS[found[name]["dash"]]}}
        if rows == 2:
            hover = f"{html.escape(spoken(name))}<br>%{{x}}: %{{y:.2f}} nats<extra></extra>"
            group = {"legendgroup": name, "showlegend": False, "hovertemplate": hover}
            figure.add_bar(x=here["kind"], y=here["kl"], marker=look, **group, row=2, col=1)
    figure.update_xaxes(title="token position in the completion", row=1).update_yaxes(title="KL at it (nats)", row=1)
    if rows == 2:
        figure.update_xaxes(title="kind of prompt", row=2).update_yaxes(title="KL per completion (nats)", row=2)
    reading = (
        "Above: summed over positions a line gives its method's KL; bands: 95% over runs. Below: the same by kind."
    )
    title = title or _spending_finding(positions[positions["kind"] == "all"], kinds)
    return styled(figure, title=title, reading=reading, height=430 + 250 * (rows == 2))


def _method_line(
    rows: pd.DataFrame, x: str, column: str, look: dict, hover: str, *, legend: bool = True
) -> list[go.Scatter]:
    """Band and line of one method's `column`, the band from its _low to its _high, or from low to high."""
    rows = rows.dropna(subset=column).sort_values(x)
    ends = [rows[f"{column}_{end}"] if f"{column}_{end}" in rows else rows[end] for end in ("low", "high")]
    return banded(rows[x], rows[column], *ends, spoken(look["group"]), look, hover=hover, legend=legend)


def _spending_finding(everything: pd.DataFrame, kinds: pd.DataFrame) -> str:
    """By which position half of the KL is spent, over all methods, and on which kind of prompt most."""
    shares = everything.groupby("position")["kl"].sum().sort_index()
    half = int((shares.cumsum() >= shares.sum() / 2).idxmax())
    text = f"Half of the KL is spent within the first {f'{half} tokens' if half > 1 else 'token'}"
    if kinds["kind"].nunique() < 2:
        return text
    most = kinds.groupby("kind")["kl"].mean()
    return f"{text}; most per completion on {most.idxmax()}, least on {most.idxmin()}"


def plot_coefficients(
    training: pd.DataFrame, title: str = "", *, target: float = 0.0, among: Iterable[str] = ()
) -> go.Figure:
    """Price of KL, KL and reward along training of every experiment, panels below one another, bands 95% over runs.

    Columns of `training_over_units`: experiment, step and any of `PRICES` with `_low`, `_high`; `target` in nats.
    A method has the colour that it has `among` all of these.
    """
    shown = [column for column in PRICES if column in training][:3]
    require_columns(training, ["experiment", "step", "kl_coef", "kl"], "plot_coefficients")
    found = method_looks([*training["experiment"], *among])
    figure = make_subplots(rows=len(shown), cols=1, shared_xaxes=True, vertical_spacing=0.05)
    hover = "%{fullData.name}<br>step %{x}: %{y:.3f}<extra></extra>"
    for name, part in training.groupby("experiment", sort=False):
        for row, column in enumerate(shown, start=1):
            figure.add_traces(_method_line(part, "step", column, found[name], hover, legend=row == 1), rows=row, cols=1)
    for row, column in enumerate(shown, start=1):
        figure.update_yaxes(title=PRICE_LABELS.get(column, axis_label(column)), row=row)
    if target:
        figure.add_hline(y=target, line={"dash": "dot", "color": GREY}, row=2, col=1)
    figure.update_xaxes(title="training step", row=len(shown))
    reading = "Running means over 5 steps, and over runs; bands: 95% over runs." + (
        " Dotted: the target." * (target > 0)
    )
    title = title or _price_finding(training, target)
    return styled(figure, title=title, reading=reading, height=210 + 190 * len(shown))


def _price_finding(training: pd.DataFrame, target: float) -> str:
    """Where the KL of each experiment ends, lowest and highest, in a sentence."""
    ends = training.sort_values("step").groupby("experiment")["kl"].last()
    text = (
        f"Training ends between {number(ends.min())} nats ({spoken(ends.idxmin())}) and {number(ends.max())} "
        f"({spoken(ends.idxmax())})"
    )
    return text + (f"; the target was {target:g}" if target else "")


def plot_estimator_errors(errors: pd.DataFrame, title: str = "") -> go.Figure:
    """How far k1 and k3 are from the exact KL of the same completions on average, and how much one completion scatters.

    Columns of `estimators_along`: estimator, step, mean, bias, bias_se, sd (nats per completion). Both against the KL.
    """
    require_columns(errors, ["estimator", "step", "mean", "bias", "bias_se", "sd"], "plot_estimator_errors")
    truth = errors[errors["estimator"] == "exact"].set_index("step")["mean"]
    errors = errors[errors["step"].isin(truth.index[truth > 0])]
    if errors.empty:
        raise WorkbenchError("The exact KL is 0 at every step: these policies never left the one they started from.")
    names = ("mean difference from the exact KL (share of it)", "spread of one completion (nats)")
    figure = make_subplots(rows=1, cols=2, subplot_titles=names, horizontal_spacing=0.09)
    colors = dict(zip(("exact", "k1", "k3"), (GREY, PALETTE[0], PALETTE[1]), strict=True))
    for name, rows in errors.groupby("estimator", sort=False):
        rows = rows.assign(kl=rows["step"].map(truth)).sort_values("kl")
        look = {"color": colors[name], "width": 2, "size": 6, "group": name}
        hover = f"{name}<br>KL %{{x:.2f}} nats: %{{y:.3f}}<extra></extra>"
        if name != "exact":
            shares = rows.assign(bias=rows["bias"] / rows["kl"], bias_se=rows["bias_se"] / rows["kl"])
            bars = {"error_y": error_bar(shares, "bias")}
            drawn = points(rows["kl"], shares["bias"], name, look, hover=hover, bars=bars, legend=False)
            figure.add_trace(drawn, row=1, col=1)
        figure.add_trace(points(rows["kl"], rows["sd"], name, look, hover=hover), row=1, col=2)
    figure.add_hline(y=0, line={"color": FAINT, "width": 2}, row=1, col=1)
    figure.update_xaxes(title="exact KL (nats)", type="log", dtick=1).update_yaxes(type="log", dtick=1, row=1, col=2)
    figure.update_yaxes(tickformat=".0%", row=1, col=1)
    reading = "One point per measured step, all runs together; bars: 95% over completions. Left, 0 is no bias."
    return styled(figure, title=title or _estimator_finding(errors), reading=reading)


def _estimator_finding(errors: pd.DataFrame) -> str:
    """How often the means agree within their errors, and how much more a completion scatters, in a sentence."""
    sampled = errors[errors["estimator"] != "exact"]
    agree = int((sampled["bias"].abs() <= half_width(sampled, "bias_se")).sum())
    spread = errors.pivot_table(index="step", columns="estimator", values="sd")
    spread = spread[spread["exact"] > 0]
    text = f"{agree} of {len(sampled)} means agree with the exact KL"
    if spread.empty:
        return text
    times = {name: f"{(spread[name] / spread['exact']).median():.1f} times ({name})" for name in ("k1", "k3")}
    return f"{text}; a completion scatters {times['k1']} and {times['k3']} as much"
