"""Numbers of many runs in one figure whose menu chooses which: metrics against step, and key numbers."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench import WorkbenchError
from workbench.analysis.statistics import mean_and_error
from workbench.plots.marks import (
    AT_ONCE,
    DASHED,
    add_buttons,
    band,
    cells,
    drawn_of,
    half_width,
    headlines,
    heat,
    interval,
    points,
    shortened,
    spread_out,
    with_menu,
)
from workbench.plots.theme import (
    FAINT,
    GREY,
    NOTHING,
    PALETTE,
    add_top_axis,
    axis_label,
    completion_hover,
    headline_of,
    looks,
    number,
    require_columns,
    styled,
    styled_beside,
    table_text,
    transparent,
)
from workbench.studies.comparison.tables import metric_curve

POINTS = 80  # of one line: more are not seen, and every metric of the menu travels with the page
SCALES = [
    {"label": name, "method": "relayout", "args": [{"xaxis.type": kind}]}
    for name, kind in {"steps": "linear", "log of steps": "log"}.items()
]
BARS = "Bars: 95% over runs, of each alone. Grey ticks: the lowest and the highest run. A single run has neither."


def plot_metric_curves(curves: Mapping[str, pd.DataFrame], *, window: int = 15, most: int = AT_ONCE) -> go.Figure:
    """Metrics against step, one line per experiment, 95% over its runs as a band; a menu of metrics.

    `curves` maps metrics to tables of `metric_curve`, which took running means over `window` steps: experiment, step,
    value, value_se, freedom. Of more than `most` experiments some are drawn, evenly spaced by where they end.
    """
    if not curves:
        raise WorkbenchError("plot_metric_curves has nothing to show: none of these runs wrote a number per step.")
    drawn = {}
    for metric, curve in curves.items():
        require_columns(curve, ["experiment", "step", "value", "value_se"], "plot_metric_curves")
        drawn[metric] = spread_out(curve.groupby("experiment")["value"].last(), most)
    names = [name for each in drawn.values() for name in each]
    found, slots = _looks(names, most), max(map(len, drawn.values()))
    states = {metric: _metric_state(curves[metric], each, found, slots) for metric, each in drawn.items()}
    titles = {metric: _ends(curve, metric, len(drawn[metric])) for metric, curve in curves.items()}
    reading = f"Running means over {window} steps. Bands: 95% over the runs of an experiment."
    hover = "%{fullData.name}<br>step %{x}<br>%{y:.4g}<extra></extra>"
    lines = [points([], [], look={"width": 2.2}, hover=hover) for _ in range(slots)]
    figure = go.Figure([*(band([], [], [], GREY) for _ in range(slots)), *lines])
    figure.update_xaxes(title=axis_label("step")).update_yaxes(title=" ")
    height, longest = max(500, 200 + 21 * slots), max(map(len, names))
    figure = styled_beside(figure, title=max(titles.values(), key=len), reading=reading, height=height)
    figure.update_layout(showlegend=True, margin={"r": min(330, 70 + 7 * longest)})
    layouts = headlines(titles, reading, "yaxis", {metric: axis_label(metric) for metric in titles})
    return add_buttons(with_menu(figure, states, layouts), SCALES, x=0.7)


def plot_chosen_metric(
    rows: pd.DataFrame, *, metric: str | None, experiments: Sequence[str], each_run: bool, steps: int
) -> go.Figure:
    """One metric of `metric_rows`, None where there is none, of chosen experiments, or of `each_run` of them.

    Running means over `steps`. WorkbenchError where none of them measured it.
    """
    if metric is None:
        return plot_metric_curves({})
    chosen = rows[rows["experiment"].isin(experiments)]
    curve = metric_curve(chosen.assign(experiment=chosen["run"]) if each_run else chosen, metric, window=steps)
    if curve.empty:
        raise WorkbenchError(f"None of the chosen experiments measured {metric}: choose others, or another metric.")
    return plot_metric_curves({metric: curve}, window=steps, most=len(curve))


def _looks(names: Sequence[str], most: int) -> dict[str, dict[str, str]]:
    """The look of each name, the same in every state of the menu; none where there are too many."""
    different = sorted(set(names))
    return dict(zip(different, looks(len(different)), strict=True)) if len(different) <= most else {}


def _metric_state(curve: pd.DataFrame, names: Sequence[str], found: Mapping, slots: int) -> dict[str, list]:
    """What the bands and then the lines of all slots show, by attribute; slots without an experiment are hidden."""
    hidden = {"x": [], "y": [], "name": "", "visible": False, "showlegend": False}
    hidden |= {"fillcolor": FAINT, "line.color": PALETTE[0], "line.dash": "solid"}
    bands, lines = [hidden] * slots, [hidden] * slots
    for place, (name, own) in enumerate(zip(names, looks(len(names)), strict=True)):
        rows = curve[curve["experiment"] == name]
        rows = rows.iloc[np.unique(np.linspace(0, len(rows) - 1, min(POINTS, len(rows))).astype(int))]
        look = found.get(name, own)
        spread = rows.dropna(subset=["value_se"])
        low, high = (spread["value"] + sign * half_width(spread, "value_se") for sign in (-1, 1))
        around = {"x": [*spread["step"], *spread["step"][::-1]], "y": _digits([*high, *low[::-1]])}
        opacity = 0.2 if len(names) <= 4 else 0.09  # many bands over one another hide the lines
        bands[place] = {**hidden, **around, "visible": True, "fillcolor": transparent(look["color"], opacity)}
        line = {"x": list(rows["step"]), "y": _digits(rows["value"]), "name": html.escape(str(name))}
        line |= {"line.color": look["color"], "line.dash": look["dash"]}
        lines[place] = {**hidden, **line, "visible": True, "showlegend": True}
    return {key: [trace[key] for trace in [*bands, *lines]] for key in hidden}


def _digits(values) -> list[float]:
    """Four significant digits, as Python's floats: a tenth of the page's size."""
    return [float(f"{value:.4g}") for value in values]


def _ends(curve: pd.DataFrame, metric: str, drawn: int) -> str:
    """Who ends highest and lowest, in a sentence, and how many are not drawn."""
    last = curve.groupby("experiment")["value"].last()
    name = axis_label(metric).split(" (")[0]
    if len(last) == 1:
        values = curve["value"]
        return f"{name} of {last.index[0]} goes from {_said(values.iloc[0])} to {_said(values.iloc[-1])}"
    ends = f"{last.idxmax()} ends highest ({_said(last.max())}), {last.idxmin()} lowest ({_said(last.min())})"
    return f"{name}: {ends}{drawn_of(drawn, len(last))}"


def _said(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def plot_key_numbers(table: pd.DataFrame, *, first: str = "", most: int = 40) -> go.Figure:
    """Each experiment's mean of a key number as a dot, 95% over its runs as a bar; a menu of numbers.

    `table` is one of `summaries_over_seeds`; ticks mark the lowest and the highest run. `first` is shown before the
    menu is used; of more than `most` experiments some are drawn.
    """
    require_columns(table, ["stage", "number", "mean", "standard_error", "lowest", "highest"], "plot_key_numbers")
    shared = table.groupby("number")["stage"].nunique().sort_values(ascending=False, kind="stable")
    order = [first] * (first in shared) + [name for name in shared.index if name != first]
    states, layouts = {}, {}
    for name in order:
        rows = table[table["number"] == name].set_index("stage")
        rows = rows.loc[spread_out(rows["mean"], most)][::-1]
        states[name] = _number_state(rows)
        title = headline_of(_extremes(name, rows) + drawn_of(len(rows), shared[name]), BARS)[0]
        height = 230 + 22 * max(4, len(rows))
        layouts[name] = {"title.text": title, "xaxis.title.text": name, "height": height, "title.y": 1 - 22 / height}
    hover = "%{y}<br>%{x:.4g}<br>%{customdata}<extra></extra>"
    ticks = points([], [], look={"symbol": "line-ns", "size": 9})
    dots = points(
        [], [], look={"size": 9, "color": PALETTE[0]}, hover=hover, bars={"error_x": {"thickness": 2, "width": 0}}
    )
    figure = go.Figure([ticks.update(marker={"line": {"width": 2, "color": GREY}}), dots])
    figure.update_xaxes(title=" ").update_yaxes(automargin=True, type="category")
    figure = styled(figure, title="two lines of title " * 5, reading=BARS)  # room for the longest
    return with_menu(figure.update_layout(showlegend=False, margin={"b": 62}), states, layouts)


def _number_state(rows: pd.DataFrame) -> dict[str, list]:
    """Ticks at the lowest and the highest run of each experiment, and dots with bars."""
    names, several = [html.escape(str(name)) for name in rows.index], rows["runs"] > 1
    ends = _digits([*rows.loc[several, "lowest"], *rows.loc[several, "highest"]])
    ticks = {"x": ends, "y": [name for name, more in zip(names, several, strict=True) if more] * 2}
    dots = {"x": _digits(rows["mean"]), "y": names, "customdata": [f"{n} run{'s' * (n > 1)}" for n in rows["runs"]]}
    dots["error_x.array"] = _digits(half_width(rows, "standard_error").fillna(0))
    return {key: [ticks.get(key), dots[key]] for key in dots}


def _extremes(name: str, rows: pd.DataFrame) -> str:
    """Who has the largest and the smallest mean, in a sentence."""
    low, high = rows["mean"].idxmin(), rows["mean"].idxmax()
    if low == high:
        return f"{name}: {low} has {_said(rows['mean'].iloc[0])}"
    return f"{name}: highest in {high} ({_said(rows['mean'].max())}), lowest in {low} ({_said(rows['mean'].min())})"


# --- What policies said to held-out prompts: how their scores are distributed, and the answers side by side.


DOTS, VALUES = 30, 300  # of one distribution: dots carry their completions
MEANS = "Grey: the mean and two standard errors over prompts. Point at a dot for its prompt and completion."
NAME_WIDTH, SCORE_WIDTH, TEXT_WIDTH = 180, 60, 560  # of the columns of a table, in about 900 pixels
LINE, CHARACTER, TALLEST = 20, 6.4, 820  # pixels of a table's text, and of a table


def plot_score_distributions(answers: pd.DataFrame, *, scores: Sequence[str], most: int = AT_ONCE) -> go.Figure:
    """How the scores of each policy's answers are distributed, the highest mean on top; a menu chooses the score.

    Columns policy, prompt and `scores`; hover shows completions. Of more than `most` policies some are drawn, evenly
    spaced from the highest mean of the first score to the lowest.
    """
    require_columns(answers, ["policy", "prompt", *scores], "plot_score_distributions")
    names = spread_out(answers.groupby("policy")[scores[0]].mean(), most)[::-1]  # the last one is drawn on top
    if not names:
        raise WorkbenchError(f"plot_score_distributions has nothing to show: {scores[0]} was not measured.")
    parts = {name: answers[answers["policy"] == name] for name in names}
    shown = {name: rows.sample(min(VALUES, len(rows)), random_state=0) for name, rows in parts.items()}
    means = {score: _means(parts, score) for score in scores}
    figure = go.Figure([trace for place, name in enumerate(names) for trace in _violins(name, shown[name], place)])
    figure.add_trace(_mean_markers([html.escape(str(name)) for name in names]))
    states = {score: _score_state(shown, score, means[score]) for score in scores}
    total = answers["policy"].nunique()
    titles = {score: _highest_and_lowest(means[score]) + drawn_of(len(names), total) for score in scores}
    figure.update_xaxes(title=" ").update_yaxes(automargin=True, type="category")
    height = 210 + 42 * len(names)
    figure = styled(figure, title=max(titles.values(), key=len), reading=MEANS, height=height)
    figure.update_layout(showlegend=False, violinmode="overlay", margin={"b": 62})
    layouts = headlines(titles, MEANS, "xaxis", {score: axis_label(score) for score in scores})
    return with_menu(figure, states, layouts)


def _violins(name: str, rows: pd.DataFrame, place: int) -> list[go.Violin]:
    """A half violin that will show the values, and an invisible one below it that will carry the dots."""
    color, label = PALETTE[place % len(PALETTE)], html.escape(str(name))
    shared = {"orientation": "h", "y0": label, "name": label, "scalemode": "width", "hoveron": "points"}
    half = go.Violin(points=False, side="positive", width=1.3, hoverinfo="skip", line={"color": color}, **shared)
    dots = go.Violin(
        customdata=completion_hover(rows.head(DOTS)),
        hovertemplate="%{x:.2f}%{customdata}<extra></extra>",
        points="all",
        pointpos=-0.7,
        jitter=0.5,
        width=0.5,
        marker={"size": 4, "opacity": 0.55, "color": color},
        line={"width": 0},
        fillcolor=NOTHING,
        **shared,
    )
    return [half.update(line={"width": 1.3}), dots]


def _mean_markers(names: Sequence[str]) -> go.Scatter:
    bars = {"thickness": 2, "width": 5, "color": GREY}
    look = {"symbol": "line-ns", "size": 12, "line": {"width": 3, "color": GREY}}
    hover = "%{y}<br>mean %{x:.3f} ± %{text} (standard error)<extra></extra>"
    return go.Scatter(y=list(names), mode="markers", marker=look, error_x=bars, hovertemplate=hover)


def _score_state(shown: Mapping[str, pd.DataFrame], score: str, means: pd.DataFrame) -> dict[str, list]:
    """The values of all violins, dots and means; what was not measured is hidden."""
    values = [each for rows in shown.values() for each in (rows[score].dropna(), rows.head(DOTS)[score])]
    visible = [bool(rows[score].notna().any()) for rows in shown.values() for _ in range(2)]
    none = [None] * len(visible)
    return {
        "x": [*map(_rounded, values), _rounded(means["mean"])],
        "visible": [*visible, True],
        "text": [*none, [f"{error:.3f}" for error in means["error"]]],
        "error_x.array": [*none, _rounded(2 * means["error"].fillna(0))],
    }


def _rounded(values) -> list:
    return [None if math.isnan(value) else round(float(value), 3) for value in values]


def _means(parts: Mapping[str, pd.DataFrame], score: str) -> pd.DataFrame:
    """Mean of each policy and its standard error over prompts, by policy; NaN where it was not measured."""
    rows = {}
    for name, part in parts.items():
        measured = part.dropna(subset=[score])
        rows[name] = mean_and_error(measured[score], measured["prompt"]) if len(measured) else (np.nan, np.nan)
    return pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "error"], dtype=float).rename_axis(score)


def _highest_and_lowest(means: pd.DataFrame) -> str:
    measured = means["mean"].dropna()
    if measured.empty:
        return f"{means.index.name} was not measured of these policies"
    ends = [
        f"{end} mean {number(measured[name])} ± {means.loc[name, 'error']:.2f} ({name})"
        for end, name in {"highest": measured.idxmax(), "lowest": measured.idxmin()}.items()
    ]
    return f"{means.index.name}: {', '.join(ends if len(measured) > 1 else ends[:1])}"


def plot_side_by_side(rows: pd.DataFrame, *, score: str, most: int = 40) -> go.Figure:
    """A table of policies and what each said to one prompt, the highest `score` on top; a menu chooses the prompt.

    `rows` are those of `side_by_side_answers`. Of more than `most` policies some are shown, from best to worst.
    """
    require_columns(rows, ["policy", "prompt", "completion", score], "plot_side_by_side")
    names = spread_out(rows.groupby("policy")[score].mean(), most)
    columns = [score, *[other for other in ("gold", "proxy") if other in rows and other != score]]
    largest = {column: rows[column].abs().max() or 1.0 for column in columns}
    groups = {
        prompt: said.set_index("policy").loc[[name for name in names if name in set(said["policy"])]]
        for prompt, said in rows.groupby("prompt", sort=False)
    }
    height = min(TALLEST, 250 + max(sum(map(_row_height, said["completion"])) for said in groups.values()))
    reading = "Red scores are below 0, blue ones above. The menu's last prompt is where scores differ most."
    reading += " The table scrolls." * (height == TALLEST)
    states, layouts = {}, {}
    for prompt, said in groups.items():
        said = said.sort_values(score, ascending=False, kind="stable")
        title = _contrast(prompt, said[score]) + drawn_of(len(names), rows["policy"].nunique())
        states[prompt] = _cells(said, columns, largest)
        layouts[prompt] = {"title.text": headline_of(title, reading)[0]}
    header, widths = ["policy", *columns, "completion"], [NAME_WIDTH, *[SCORE_WIDTH] * len(columns), TEXT_WIDTH]
    table = go.Figure(cells(header, [[] for _ in header], widths, height=LINE + 6))
    figure = styled(table, title="two lines of title " * 8, reading=reading, height=height)
    return with_menu(figure.update_layout(margin={"l": 10, "r": 10, "b": 10}), states, layouts)


def _cells(said: pd.DataFrame, columns: Sequence[str], largest: Mapping[str, float]) -> dict[str, list]:
    """Texts of the cells, column by column, and their shades."""
    texts = [[table_text(text) for text in each] for each in (said.index, said["completion"])]
    numbers = [["" if math.isnan(value) else number(value) for value in said[column]] for column in columns]
    shades = [[_shade(value / largest[column]) for value in said[column]] for column in columns]
    return {"cells.values": [[texts[0], *numbers, texts[1]]], "cells.fill.color": [[NOTHING, *shades, NOTHING]]}


def _shade(share: float) -> str:
    """Blue above 0, red below, stronger towards 1 and -1."""
    return NOTHING if math.isnan(share) else transparent(PALETTE[0 if share > 0 else 3], 0.45 * min(1.0, abs(share)))


def _contrast(prompt: str, scores: pd.Series) -> str:
    """The prompt, who did best and who worst, in a sentence."""
    best, worst = scores.index[0], scores.index[-1]
    found = f"{best} {number(scores.iloc[0])}" + (f", {worst} {number(scores.iloc[-1])}" if len(scores) > 1 else "")
    return f"“{shortened(prompt, 110)}”: {scores.name} {found}"


def _row_height(text: str) -> float:
    return 8 + LINE * sum(math.ceil(max(1, len(line) * CHARACTER / TEXT_WIDTH)) for line in str(text).splitlines())


# --- Policies against each other: who wins how often, and how strong each is.


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


def _heat(met: pd.DataFrame, order: list[str]) -> go.Heatmap:
    table = met["win_rate"].unstack().reindex(index=order, columns=order)
    reach = max(10.0, 100 * float((table - 0.5).abs().max().max()))
    texts, told = ([[said(met, one, other) for other in order] for one in order] for said in (_written, _details))
    drawn = heat(order, 100 * table.to_numpy(), texts, ends=(50 - reach, 50 + reach), title="wins (%)")
    drawn.update(customdata=told, hovertemplate="%{customdata}<extra></extra>", xgap=1, ygap=1)
    drawn.texttemplate = drawn.texttemplate if len(order) <= WRITTEN else None
    return drawn.update(colorscale=[(0, LOSS), (0.5, EVEN), (1, WIN)])


def beyond_chance(rates: pd.DataFrame | pd.Series) -> pd.Series | bool:
    """Whether each win rate, or that of one row, differs from one half when all pairs are judged together."""
    return rates["p_value"] < 0.05


def _written(met: pd.DataFrame, one: str, other: str) -> str:
    if (one, other) not in met.index:
        return ""
    row = met.loc[(one, other)]
    text = f"{100 * row['win_rate']:.0f}"
    return f"<b>{text}</b>" if beyond_chance(row) else text


def _details(met: pd.DataFrame, one: str, other: str) -> str:
    if (one, other) not in met.index:
        return ""
    row = met.loc[(one, other)]
    said = f"{html.escape(str(one))} against {html.escape(str(other))}<br>{row['win_rate']:.1%}"
    said += f" ± {half_width(row, 'win_rate_se'):.1%}, ties {row['ties']:.0%}<br>{row['comparisons']} comparisons"
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
    names, told = [html.escape(str(name)) for name in rows["name"]], 1 / (1 + np.exp(-rows[["score", "low", "high"]]))
    bars, look = {"error_x": interval(rows["score"], rows["low"], rows["high"])}, {"size": 9, "color": PALETTE[0]}
    figure = go.Figure(points(rows["score"], names, look=look, told=told, hover=STRENGTH, bars=bars))
    figure.add_vline(x=0, line=DASHED)
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
