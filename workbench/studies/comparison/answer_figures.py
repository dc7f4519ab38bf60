"""What policies said to held-out prompts: how their scores are distributed, and the answers side by side."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench import WorkbenchError
from workbench.analysis.statistics import mean_and_error
from workbench.plots.menus import AT_ONCE, drawn_of, headlines, shortened, spread_out, with_menu
from workbench.plots.theme import (
    FAINT,
    GREY,
    INK,
    NOTHING,
    PALETTE,
    axis_label,
    completion_hover,
    headline_of,
    number,
    require_columns,
    styled,
    table_text,
    transparent,
)

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
    figure = styled(_table(columns), title="two lines of title " * 8, reading=reading, height=height)
    return with_menu(figure.update_layout(margin={"l": 10, "r": 10, "b": 10}), states, layouts)


def _table(columns: Sequence[str]) -> go.Figure:
    """A table without rows: policies, scores, completions."""
    look = {"align": "left", "font": {"color": INK, "size": 13}, "line": {"color": FAINT}}
    header = {"values": ["policy", *columns, "completion"], "fill": {"color": FAINT}, "height": 28, **look}
    widths = [NAME_WIDTH, *[SCORE_WIDTH] * len(columns), TEXT_WIDTH]
    return go.Figure(go.Table(columnwidth=widths, header=header, cells={"height": LINE + 6, **look}))


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
