"""What figures are drawn with: points, lines and bands, intervals, heat maps, menus, tables."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from numbers import Number

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from IPython.display import HTML
from scipy import special

from workbench.plots.theme import (
    FAINT,
    GREY,
    GROUND,
    INK,
    NOTHING,
    PALETTE,
    SYMBOLS,
    headline_of,
    room_above,
    transparent,
)

AT_ONCE = 15  # experiments drawn in one figure: their colours and dashes can be told apart
DASHED = {"color": GREY, "width": 1.5, "dash": "dash"}  # where no finding would be
LOOKS = {"line": ("width", "color", "dash"), "marker": ("size", "color", "symbol")}


def points(
    x,
    y,
    name="",
    look: Mapping = DASHED,
    *,
    hover: str = "",
    told=None,
    legend: bool = True,
    bars: Mapping | None = None,
) -> go.Scatter:
    """Values joined where their `look` has a width (and dash), marked where it has a size (and symbol), in its color.

    The name, escaped, stands in the legend, those of one group (of the look) together; `told` are the customdata of
    `hover`, without which the pointer finds nothing; `bars` are intervals, by error_x or error_y.
    """
    parts = {part: {key: look.get(key) for key in keys} for part, keys in LOOKS.items() if keys[0] in look}
    if not isinstance(look.get("size", 0), Number):  # plotly would rim them and let them shine through
        parts["marker"] |= {"opacity": 1, "line": {"width": 0}}
    return go.Scatter(
        x=x,
        y=y,
        name=html.escape(str(name), quote=False) or None,
        mode="+".join(f"{part}s" for part in parts),
        customdata=told,
        hovertemplate=hover or None,
        hoverinfo=None if hover else "skip",
        showlegend=legend and str(name) != "",
        legendgroup=look.get("group"),
        **parts,
        **(bars or {}),
    )


def banded(x, y, low, high, name, look: Mapping, *, opacity: float = 0.15, hover: str = "", told=None, legend=True):
    """The `band` from `low` to `high` and over it the line of `points`, two traces; the legend hides both at once."""
    look = {"group": str(name), **look}
    around = band(x, low, high, look["color"], opacity).update(legendgroup=look["group"])
    return [around, points(x, y, name, look, hover=hover, told=told, legend=legend)]


def band(x: Sequence, low: Sequence, high: Sequence, color: str, opacity: float = 0.15) -> go.Scatter:
    """An interval along a line as one closed shape, where both of its ends are known."""
    rows = pd.DataFrame({"x": np.asarray(x), "low": np.asarray(low), "high": np.asarray(high)}).dropna()
    places, ends = [*rows["x"], *rows["x"][::-1]], [*rows["low"], *rows["high"][::-1]]
    look = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    return go.Scatter(x=places, y=ends, fill="toself", fillcolor=transparent(color, opacity), **look)


def half_width(frame: pd.DataFrame, error: str) -> pd.Series:
    """Half the 95% interval of each row from its standard error in column `error`, NaN where that is.

    Student's t where the mean is over few draws and the frame says their `freedom`, else (over prompts) the normal.
    """
    freedom = frame["freedom"].fillna(np.inf) if "freedom" in frame else np.inf
    return frame[error] * special.stdtrit(freedom, 0.975)


def error_bar(frame: pd.DataFrame, column: str) -> dict:
    """95% interval of `column` as a plotly error bar: its own ends _low and _high, else its _se; invisible without."""
    if f"{column}_low" in frame:
        return interval(*(frame[f"{column}{end}"] for end in ("", "_low", "_high")))
    if f"{column}_se" in frame:
        return {"type": "data", "array": half_width(frame, f"{column}_se").fillna(0), "thickness": 1.5, "width": 4}
    return {"visible": False}


def interval(values: pd.Series, low: pd.Series, high: pd.Series) -> dict:
    """An interval whose ends are known as a plotly error bar, none where they are NaN."""
    ends = {"array": (high - values).fillna(0), "arrayminus": (values - low).fillna(0), "symmetric": False}
    return {"type": "data", "thickness": 1.5, "width": 4, **ends}


def colored(place: int, **look) -> dict:
    """The look of the n-th of several things: its colour and symbol, and what else is given."""
    return {"color": PALETTE[place % len(PALETTE)], "symbol": SYMBOLS[place % len(SYMBOLS)], **look}


def heat(names: Sequence, values: np.ndarray, texts: list, *, ends: tuple[float, float], title: str) -> go.Heatmap:
    """A square of numbers (K, K), nothing where NaN, under `texts` of its cells, in colours that bear them.

    Their bar has its name beside it, clear of plotly's buttons.
    """
    names = [html.escape(str(name)) for name in names]
    bar = {"title": {"text": title, "side": "right", "font": {"size": 13}}, "outlinewidth": 0, "xpad": 24}
    return go.Heatmap(
        x=names,
        y=names,
        z=[[None if np.isnan(value) else value for value in row] for row in values],  # a widget's JSON has no NaN
        zmin=ends[0],
        zmax=ends[1],
        text=texts,
        texttemplate="%{text}",
        textfont={"color": INK},
        hoverongaps=False,
        xgap=2,
        ygap=2,
        colorbar=bar,
        colorscale=[(0, transparent(PALETTE[0], 0.1)), (1, transparent(PALETTE[0], 0.5))],  # the palest is no blank
    )


# --- A menu above a figure that chooses what it shows, in exported pages, too; and what of much is shown at once.


def with_menu(
    figure: go.Figure, states: Mapping[str, Mapping[str, list]], layouts: Mapping[str, Mapping[str, object]]
) -> go.Figure:
    """The figure in its first state, with a menu of all: by name the values of each trace, and changes of the layout.

    `states` maps names to lists with a value per trace, by attribute such as "x" or "line.color". One state needs no
    menu.
    """
    first = next(iter(states))
    for trace, values in zip(figure.data, by_trace(states[first]), strict=True):
        trace.update({name: value for name, value in values.items() if value is not None})
    figure.update_layout({name.replace(".", "_"): value for name, value in layouts[first].items()})
    if len(states) < 2:
        return figure
    return add_buttons(figure, [button(name, state, layouts[name]) for name, state in states.items()], x=0)


def headlines(titles: Mapping[str, str], reading: str, axis: str, labels: Mapping[str, str]) -> dict[str, dict]:
    """Changes of the layout for `with_menu`: a title by name, and what one axis, such as "xaxis", is then called."""
    return {
        name: {"title.text": headline_of(title, reading)[0], f"{axis}.title.text": labels[name]}
        for name, title in titles.items()
    }


def button(name: str, traces: Mapping[str, list], layout: Mapping[str, object], places: Sequence[int] = ()) -> dict:
    """An entry of a menu or a place of a slider: what it changes in all traces or those at `places`, and around."""
    args = [dict(traces), dict(layout), *([list(places)] if places else [])]
    return {"label": html.escape(shortened(name), quote=False), "method": "update", "args": args}


def add_buttons(figure: go.Figure, buttons: Sequence[Mapping], *, x: float) -> go.Figure:
    """The figure with a drop-down menu right above it and the names there, its left end at `x`, 0 to 1 of its width."""
    where = {"x": x, "xanchor": "left", "y": 1, "yanchor": "bottom", "pad": {"b": 4 + room_above(figure)}}
    look = {"bgcolor": GROUND, "bordercolor": GREY, "font": {"color": INK}, "showactive": True}
    top = 0 if figure.layout.updatemenus else 46
    menus = [*figure.layout.updatemenus, {"buttons": list(buttons), **where, **look}]
    return figure.update_layout(updatemenus=menus, margin={"t": figure.layout.margin.t + top})


def by_trace(state: Mapping[str, list]) -> list[dict]:
    """A dictionary per trace from lists with a value per trace."""
    return [dict(zip(state, values, strict=True)) for values in zip(*state.values(), strict=True)]


def shortened(text: str, limit: int = 80) -> str:
    """The text, or its beginning with an ellipsis."""
    return text if len(text) <= limit else f"{text[:limit].rstrip()} …"


def spread_out(values: pd.Series, most: int = AT_ONCE) -> list[str]:
    """Names in the order of their values, the highest first; of more than `most`, both ends and some between."""
    names = list(values.dropna().sort_values(ascending=False, kind="stable").index)
    if len(names) <= most:
        return names
    return [names[place] for place in np.unique(np.linspace(0, len(names) - 1, most).round().astype(int))]


def drawn_of(drawn: int, all_of_them: int) -> str:
    """How a title ends that does not show everything."""
    return f"; {drawn} of {all_of_them} drawn" if drawn < all_of_them else ""


# --- Tables: in a figure, and in the page, where texts are shown whole, as text.


def cells(header: Sequence[str], columns: Sequence[Sequence[str]], widths: Sequence[float], *, height: int) -> go.Table:
    """A table of escaped texts in a figure, a header over its columns; widths in any unit, a row's height in pixels."""
    look = {"align": "left", "font": {"color": INK, "size": 12}, "line": {"color": FAINT}}
    header = {"values": [f"<b>{name}</b>" for name in header], "fill": {"color": NOTHING}, **look}
    body = {"values": list(columns), "fill": {"color": NOTHING}, "height": height, **look}
    return go.Table(columnwidth=list(widths), header=header, cells=body)


AS_TEXT = "mathjax_ignore tex2jax_ignore"  # or JupyterLab reads a completion's dollars as mathematics


def text_table(frame: pd.DataFrame, *, digits: int = 3) -> HTML:
    """The table as HTML that scrolls in itself, numbers flush right, every text whole, escaped, with its line breaks.

    What a model wrote is never run.
    """
    rows = frame.astype(object).to_numpy()
    heads = [_cell("th", name, right=all(map(_is_number, column))) for name, column in zip(frame, rows.T, strict=True)]
    lines = [[_cell("td", _written(value, digits), right=_is_number(value)) for value in row] for row in rows]
    body = "\n".join(f"<tr>{''.join(line)}</tr>" for line in lines)
    table = f'<table class="dataframe"><thead><tr>{"".join(heads)}</tr></thead>\n<tbody>\n{body}\n</tbody></table>'
    return HTML(f'<div class="{AS_TEXT}" style="overflow-x: auto">{table}</div>')


def _is_number(value: object) -> bool:
    return isinstance(value, Number) and not isinstance(value, bool)


def _written(value: object, digits: int) -> str:
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return ""
    return f"{round(value, digits) + 0.0:.{digits}f}" if isinstance(value, float | np.floating) else str(value)


def _cell(tag: str, text: object, *, right: bool) -> str:
    look = f"text-align: {'right' if right else 'left'}; white-space: pre-wrap"
    return f'<{tag} style="{look}">{html.escape(str(text))}</{tag}>'
