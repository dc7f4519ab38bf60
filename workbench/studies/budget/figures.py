"""What a KL budget buys, drawn: mean paths with their intervals, and where every method stands at a few budgets."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench import WorkbenchError
from workbench.analysis.statistics import nats
from workbench.plots.theme import (
    GREY,
    GROUND,
    INK,
    PALETTE,
    add_root_kl_axes,
    axis_label,
    band,
    headline_of,
    looks,
    number,
    require_columns,
    root_kl,
    spoken,
    styled,
    styled_beside,
)

AT_BOUND = " (bound)"  # ends the name of best-of-n that stands at the bound on its KL, and is no method of its own
FRONTIER_READING = (
    "Lines: means over runs at equal KL, up to where the first run ends; bands: 95% over runs. Symbols: where runs end "
    "on average. A line that lies above another buys more with the same KL."
)
NAMES_BELOW = 12  # more methods than this, and their names stand beside the figure
VERDICT_SYMBOLS = {"highest": "star", "not told apart": "circle-open", "behind": "circle"}
VERDICT_COLORS = {"highest": PALETTE[3], "not told apart": PALETTE[0], "behind": GREY}


def method_looks(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """The `looks` of each method, in alphabetical order."""
    different = sorted(set(names))
    return dict(zip(different, looks(len(different)), strict=True))


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
    findings = {score: headline_of(title or frontier_finding(curves, score), FRONTIER_READING)[0] for score in scores}
    menu = score_menu(curves, ends, {score: {"title.text": text} for score, text in findings.items()}) | {"y": 1}
    return figure.update_layout(updatemenus=[menu] if len(scores) > 1 else [])


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
        end = ends[ends["experiment"] == name]
        traces += [_band(rows, score, name, found[name]), _line(rows, score, name, found[name])]
        traces.append(_end(end, score, name, found[name]))
    return traces


def _band(rows: pd.DataFrame, score: str, name: str, look: dict[str, str]) -> go.Scatter:
    known = rows if _measured_often(rows) else rows.iloc[:0]
    drawn = band(root_kl(known["kl"]), known[f"{score}_low"], known[f"{score}_high"], look["color"], 0.1)
    return drawn.update(legendgroup=name)


def _line(rows: pd.DataFrame, score: str, name: str, look: dict[str, str]) -> go.Scatter:
    known, label = rows.dropna(subset=score), html.escape(spoken(name))
    known = known if _measured_often(rows) else known.iloc[:0]
    return go.Scatter(
        x=root_kl(known["kl"]),
        y=known[score],
        name=label,
        legendgroup=name,
        showlegend=False,
        mode="lines",
        line={"color": look["color"], "dash": look["dash"], "width": 2.2},
        customdata=known[["kl"]],
        hovertemplate=f"{label}<br>KL %{{customdata[0]:.2f}} nats: %{{y:.2f}}<extra></extra>",
    )


def _measured_often(rows: pd.DataFrame) -> bool:
    """Whether there is a path at all; between a start and an end alone any line would be invented."""
    return "measured" not in rows or rows["measured"].min() > 2


def _end(end: pd.DataFrame, score: str, name: str, look: dict[str, str]) -> go.Scatter:
    bars = {"thickness": 1.3, "width": 4, "type": "data"}
    return go.Scatter(
        x=root_kl(end["kl"]),
        y=end[score],
        error_y={"array": (end[f"{score}_high"] - end[score]).fillna(0), **bars},
        error_x={"array": (np.sqrt(end["kl_high"]) - np.sqrt(end["kl"])).fillna(0), **bars},
        name=html.escape(spoken(name)),
        legendgroup=name,
        mode="lines+markers",  # the legend shows both
        line={"color": look["color"], "dash": look["dash"], "width": 2.2},
        marker={"size": 10, "color": look["color"], "symbol": look["symbol"]},
        customdata=end[["kl", "runs"]],
        hovertemplate=f"{html.escape(name)}, end<br>KL %{{customdata[0]:.2f}} nats: %{{y:.2f}}"
        "<br>runs: %{customdata[1]}<extra></extra>",
    )


def score_menu(curves: pd.DataFrame, ends: pd.DataFrame, layouts: Mapping[str, dict]) -> dict:
    """A menu that puts another score into the traces of `frontier_traces`, which must be the first of their figure.

    `layouts` says what else of the figure's layout each score changes.
    """
    buttons = []
    for score in frontier_scores(curves, "score_menu"):
        traces = frontier_traces(curves, ends, score)
        errors = [trace.error_y.array for trace in traces]
        drawn = {
            "y": [list(trace.y) for trace in traces],
            "error_y.array": [None if error is None else list(error) for error in errors],
        }
        axis = {"yaxis.title.text": axis_label(score), "yaxis.range": score_range(curves, ends, score)}
        layout = {**axis, **layouts.get(score, {})}
        args = [drawn, layout, list(range(len(traces)))]
        buttons.append({"label": axis_label(score), "method": "update", "args": args})
    place = {"x": 1, "xanchor": "right", "yanchor": "bottom", "pad": {"b": 34}}
    opaque = {"bgcolor": GROUND, "font": {"color": INK}}  # it opens over the lines
    return {"buttons": buttons, "showactive": True, **place, **opaque}


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
    color = VERDICT_COLORS.get(verdict, GREY)
    half = (rows["high"] - rows["value"]).fillna(0)
    return go.Scatter(
        x=rows["value"],
        y=[html.escape(spoken(name)) for name in rows["experiment"]],
        error_x={"type": "data", "array": half, "thickness": 1.4, "width": 3},
        mode="markers",
        marker={"size": 11, "color": color, "symbol": VERDICT_SYMBOLS.get(verdict, "x-thin-open")},
        name=verdict,
        customdata=rows[["verdict", "reached", "runs"]],
        hovertemplate="%{y}: %{x:.2f}<br>%{customdata[0]}<br>%{customdata[1]} of %{customdata[2]} runs spend that much"
        "<extra></extra>",
    )


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
    places = highest.groupby("experiment", sort=False)["budget"].apply(
        lambda budgets: " and ".join([*map("{:g}".format, budgets[:-1]), nats(budgets.iloc[-1])])
    )
    return (
        f"Most {axis_label(score)}: {'; '.join(f'{spoken(name)} at {there}' for name, there in places.items())}{apart}"
    )
