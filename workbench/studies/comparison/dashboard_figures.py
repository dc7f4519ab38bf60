"""Numbers of many runs in one figure whose menu chooses which: metrics against step, and key numbers."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench import WorkbenchError
from workbench.plots.menus import AT_ONCE, add_buttons, drawn_of, headlines, spread_out, with_menu
from workbench.plots.theme import (
    FAINT,
    GREY,
    PALETTE,
    axis_label,
    half_width,
    headline_of,
    looks,
    require_columns,
    styled,
    styled_beside,
    transparent,
)

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
    figure = go.Figure([*_bands(slots), *_lines(slots)]).update_xaxes(title=axis_label("step")).update_yaxes(title=" ")
    height, longest = max(500, 200 + 21 * slots), max(map(len, names))
    figure = styled_beside(figure, title=max(titles.values(), key=len), reading=reading, height=height)
    figure.update_layout(showlegend=True, margin={"r": min(330, 70 + 7 * longest)})
    layouts = headlines(titles, reading, "yaxis", {metric: axis_label(metric) for metric in titles})
    return add_buttons(with_menu(figure, states, layouts), SCALES, x=0.7)


def _looks(names: Sequence[str], most: int) -> dict[str, dict[str, str]]:
    """The look of each name, the same in every state of the menu; none where there are too many."""
    different = sorted(set(names))
    return dict(zip(different, looks(len(different)), strict=True)) if len(different) <= most else {}


def _bands(slots: int) -> list[go.Scatter]:
    shared = {"mode": "lines", "fill": "toself", "hoverinfo": "skip", "showlegend": False, "line": {"width": 0}}
    return [go.Scatter(**shared) for _ in range(slots)]


def _lines(slots: int) -> list[go.Scatter]:
    hover = "%{fullData.name}<br>step %{x}<br>%{y:.4g}<extra></extra>"
    return [go.Scatter(mode="lines", line={"width": 2.2}, hovertemplate=hover) for _ in range(slots)]


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
    ticks = {"symbol": "line-ns", "size": 9, "line": {"width": 2, "color": GREY}}
    figure = go.Figure([go.Scatter(mode="markers", marker=ticks, hoverinfo="skip"), go.Scatter(mode="markers")])
    figure.data[1].update(marker={"size": 9, "color": PALETTE[0]}, error_x={"thickness": 2, "width": 0})
    figure.data[1].hovertemplate = "%{y}<br>%{x:.4g}<br>%{customdata}<extra></extra>"
    figure.update_xaxes(title=" ").update_yaxes(automargin=True, type="category")
    figure = styled(figure, title="two lines of title " * 5, reading=BARS)  # room for the longest
    return with_menu(figure.update_layout(showlegend=False, margin={"b": 62}), states, layouts)


def _number_state(rows: pd.DataFrame) -> dict[str, list]:
    """Ticks at the lowest and the highest run of each experiment, and dots with bars."""
    names, several = [html.escape(str(name)) for name in rows.index], rows["runs"] > 1
    ends = _digits([*rows.loc[several, "lowest"], *rows.loc[several, "highest"]])
    ticks = {"x": ends, "y": [name for name, more in zip(names, several, strict=True) if more] * 2}
    dots = {
        "x": _digits(rows["mean"]),
        "y": names,
        "error_x.array": _digits(half_width(rows, "standard_error").fillna(0)),
    }
    dots["customdata"] = [f"{runs} run{'s' * (runs > 1)}" for runs in rows["runs"]]
    return {key: [ticks.get(key), dots[key]] for key in dots}


def _extremes(name: str, rows: pd.DataFrame) -> str:
    """Who has the largest and the smallest mean, in a sentence."""
    low, high = rows["mean"].idxmin(), rows["mean"].idxmax()
    if low == high:
        return f"{name}: {low} has {_said(rows['mean'].iloc[0])}"
    return f"{name}: highest in {high} ({_said(rows['mean'].max())}), lowest in {low} ({_said(rows['mean'].min())})"
