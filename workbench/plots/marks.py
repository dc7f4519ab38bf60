"""A menu above a figure that chooses what it shows, in exported pages, too; and what of much is shown at once."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from html import escape
from numbers import Number

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from IPython.display import HTML

from workbench.plots.theme import GREY, GROUND, INK, headline_of

AT_ONCE = 15  # experiments drawn in one figure: their colours and dashes can be told apart
LOOK = {"bgcolor": GROUND, "bordercolor": GREY, "font": {"color": INK}, "pad": {"b": 4}}


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
    buttons = [
        {"label": html.escape(shortened(name)), "method": "update", "args": [dict(state), dict(layouts[name])]}
        for name, state in states.items()
    ]
    return add_buttons(figure, buttons, x=0)


def headlines(titles: Mapping[str, str], reading: str, axis: str, labels: Mapping[str, str]) -> dict[str, dict]:
    """Changes of the layout for `with_menu`: a title by name, and what one axis, such as "xaxis", is then called."""
    return {
        name: {"title.text": headline_of(title, reading)[0], f"{axis}.title.text": labels[name]}
        for name, title in titles.items()
    }


def add_buttons(figure: go.Figure, buttons: Sequence[Mapping], *, x: float) -> go.Figure:
    """The figure with a drop-down menu right above it, its left end at `x`, 0 to 1 of the figure's width."""
    where = {"x": x, "xanchor": "left", "y": 1, "yanchor": "bottom", "showactive": True}
    top = 0 if figure.layout.updatemenus else 46
    menus = [*figure.layout.updatemenus, {"buttons": list(buttons), **where, **LOOK}]
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


# --- Tables whose texts are shown whole, as text.


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
    return (
        f'<{tag} style="text-align: {"right" if right else "left"}; white-space: pre-wrap">{escape(str(text))}</{tag}>'
    )
