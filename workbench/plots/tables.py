"""Tables whose texts are shown whole, as text."""

from html import escape
from numbers import Number

import numpy as np
import pandas as pd
from IPython.display import HTML

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
