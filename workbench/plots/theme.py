"""What all figures share: colours, axis names with units, hover text, checks of their tables."""

from __future__ import annotations

import html
import math
import re
import textwrap
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench import WorkbenchError

GROUND, INK = "white", "#3D4350"  # a figure brings its own ground, so that it reads alike on light and dark pages
# As far apart as Okabe and Ito's for any colour vision, and 3 : 1 or more with white and with the dark of notebooks
PALETTE = ["#3B66E6", "#B8862B", "#27765A", "#BE3A12", "#95509F", "#1AA0BA"]
SYMBOLS = ["circle", "square", "diamond", "cross", "triangle-up", "x", "star", "hexagon"]
DASHES = ["solid", "dash", "dot", "dashdot", "longdash"]
PATTERNS = dict(zip(DASHES, ["", "/", ".", "x", "|"], strict=True))  # of bars
GREY = "#767676"  # lines that are no data
FAINT = "rgba(128, 128, 128, 0.25)"
NOTHING = "rgba(0, 0, 0, 0)"
ROLE_COLORS = {"proxy": PALETTE[0], "reward": PALETTE[0], "gold": PALETTE[1]}

AXIS_LABELS = {
    "step": "training step",
    "loss": "loss (nats)",
    "held_out_loss": "held-out loss (nats)",
    "kl": "KL from the reference (nats)",
    "entropy": "entropy (nats per token)",
    "completion_length": "completion length (tokens)",
    "gold": "gold reward",
    "proxy": "reward model's score (proxy)",
    "accuracy": "accuracy (share of pairs)",
    "held_out_accuracy": "held-out accuracy (share of pairs)",
    "explained_variance": "explained variance (share)",
    "finished": "finished (share of completions)",
}


LOOK = {
    "template": "none",
    "paper_bgcolor": GROUND,
    "plot_bgcolor": GROUND,
    "colorway": PALETTE,
    "font": {"family": "system-ui, Segoe UI, Helvetica, Arial, sans-serif", "size": 13, "color": INK},
    "legend": {"orientation": "h", "x": 0, "y": 0.01, "yref": "container", "yanchor": "bottom"},
    "hoverlabel": {"align": "left", "bgcolor": GROUND, "font": {"color": INK, "size": 12}},
    "hovermode": "closest",
    "modebar": {"orientation": "v", "bgcolor": NOTHING, "color": GREY},  # beside the figure and its title
    "uirevision": "keep",  # zoom and hidden traces survive a redraw
}
AXIS_LOOK = {
    "gridcolor": FAINT,
    "linecolor": GREY,
    "tickcolor": FAINT,
    "ticks": "outside",
    "zeroline": False,
    "exponentformat": "power",  # 1.5×10⁻⁷, where plotly would write 150n
    "title": {"font": {"size": 13}, "standoff": 8},  # wide numbers push the name of their axis away
}
LOG_AXIS = {"tickformat": ".4~g"}


def styled(figure: go.Figure, *, title: str, reading: str, height: int = 440) -> go.Figure:
    """`figure` with the common look: `title` states the finding, `reading` below it says how to read the figure."""
    headline, lines = headline_of(title, reading)
    _tell_apart(figure)
    legend_rows = _legend_rows(figure)
    figure.update_layout(
        **LOOK,
        height=height,
        title={"text": headline, "font": {"size": 17}, "x": 0.01, "y": 1 - 22 / height, "yanchor": "top"},
        margin={"l": 70, "r": 30, "b": max(62, 53 + 30 * legend_rows), "t": 32 + 20 * lines + room_above(figure)},
        showlegend=legend_rows > 0,
    )
    figure.update_annotations(font={"size": 13})
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(AXIS_LOOK)
        update(LOG_AXIS, selector={"type": "log"})
    return figure.update_yaxes(automargin=True)


def room_above(figure: go.Figure) -> int:
    """Pixels that a second axis and the names of panels take between the figure and its title."""
    top_axis = "xaxis2" in figure.layout and figure.layout.xaxis2.side == "top"
    panels_named = any(note.yref == "paper" and note.yanchor == "bottom" for note in figure.layout.annotations)
    return 40 * top_axis + 24 * panels_named


def styled_beside(figure: go.Figure, *, title: str, reading: str, height: int = 440) -> go.Figure:
    """`styled` with the names at the right instead of below, for many names; as high as they need."""
    names = _legend_names(figure)
    figure = styled(figure, title=title, reading=reading, height=max(height, 150 + 19 * len(names)))
    legend = {"orientation": "v", "x": 1.01, "xanchor": "left", "y": 1, "yref": "paper", "yanchor": "top"}
    width = min(340, 85 + 7 * max(map(len, names), default=0))
    return figure.update_layout(legend=legend, margin={"r": width, "b": 62})


def headline_of(title: str, reading: str) -> tuple[str, int]:
    """Title and reading as wrapped, escaped text of one plotly title, and the number of its lines.

    A line is 720 pixels wide in a broad font: a notebook in a window of 900, less its margins and plotly's buttons.
    """
    titles, readings = (textwrap.wrap(text, width) for text, width in ((title, 70), (reading, 104)))
    small = "<br>".join(html.escape(line) for line in readings)
    text = f"<b>{'<br>'.join(html.escape(line) for line in titles)}</b><br><span style='font-size:13px'>{small}</span>"
    return text, len(titles) + len(readings)


def _tell_apart(figure: go.Figure) -> None:
    """Dashes, symbols and patterns where there are more names than colours and nothing else tells them apart."""
    names = list(dict.fromkeys(_legend_names(figure)))
    if len(names) <= len(PALETTE):
        return
    for name, look in zip(names, looks(len(names)), strict=True):
        for trace in figure.select_traces({"name": name}):
            if trace.type == "bar":
                trace.marker.pattern.shape = trace.marker.pattern.shape or PATTERNS[look["dash"]]
            elif trace.type == "scatter":
                trace.line.dash = trace.line.dash or look["dash"]
                trace.marker.symbol = look["symbol"] if trace.marker.symbol is None else trace.marker.symbol


def _legend_names(figure: go.Figure) -> list[str]:
    return [trace.name for trace in figure.data if trace.name and trace.showlegend is not False]


def _legend_rows(figure: go.Figure) -> int:
    """Rows that the legend takes at 900 pixels, so that the margin below holds them; one name needs no legend."""
    names = _legend_names(figure)
    return math.ceil(sum(7 * len(name) + 50 for name in names) / 760) if len(names) > 1 else 0


def looks(count: int) -> list[dict[str, str]]:
    """Colour, dash and symbol of each of `count` methods; of more than there are colours, dash and symbol tell, too."""
    dashes = DASHES if count > len(PALETTE) else DASHES[:1]
    return [
        {"color": PALETTE[i % len(PALETTE)], "dash": dashes[i % len(dashes)], "symbol": SYMBOLS[i % len(SYMBOLS)]}
        for i in range(count)
    ]


def spoken(experiment: str) -> str:
    """The name of an experiment's folder as one says it: "PPO, KL price 0.15" for ppo_kl0.15."""
    words = re.sub(r"(?<=_)kl(?=[\d.])", "KL price ", str(experiment)).replace("_KL price", ", KL price")
    return re.sub(r"\b(a2c|ilql|kto|rloo|sft|[a-z]{1,3}po)\b", lambda found: found[0].upper(), words.replace("_", " "))


def number(value: float) -> str:
    """Two decimals with a real minus sign and no negative zero, for titles."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def axis_label(column: str) -> str:
    """The name of a column with its unit."""
    return AXIS_LABELS.get(column, column.replace("_", " "))


def hover_text(text: object, *, width: int = 60, limit: int = 480) -> str:
    """Text as plotly may show it: escaped, its lines wrapped at `width`, and cut after `limit` characters."""
    text = str(text)
    text = text if len(text) <= limit else f"{text[:limit]} …"
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, width) or [""]]
    return "<br>".join(html.escape(line) for line in lines)


def table_text(text: object) -> str:
    """Text as a cell of a plotly table may show it: escaped, with its line breaks."""
    return "<br>".join(html.escape(line) for line in str(text).strip().splitlines())


def completion_hover(frame: pd.DataFrame) -> list[str]:
    """One hover block per row: the completion, after its prompt where there is one, or nothing without completions."""
    if "completion" not in frame:
        return [""] * len(frame)
    prompts = frame["prompt"] if "prompt" in frame else [""] * len(frame)
    pairs = zip(prompts, frame["completion"], strict=True)
    return [
        f"<br>{hover_text(prompt)}<br><b>{hover_text(text)}</b>".replace("<br><br>", "<br>") for prompt, text in pairs
    ]


def require_columns(frame: pd.DataFrame, columns: Iterable[str], figure: str) -> None:
    """WorkbenchError unless `frame` has rows and all `columns`."""
    if len(frame) == 0:
        raise WorkbenchError(f"{figure} got a table without rows: give it a run that has written some.")
    missing = [column for column in columns if column not in frame]
    if missing:
        raise WorkbenchError(f"{figure} needs the columns {missing}: the table has {list(frame.columns)}.")


def has_gold(frame: pd.DataFrame, column: str = "gold") -> bool:
    """Whether the gold reward was measured: on real data nobody knows it, and gold traces are left out."""
    return column in frame and bool(frame[column].notna().any())


def shown_columns(frame: pd.DataFrame, columns: Sequence[str], figure: str) -> list[str]:
    """`columns` without the gold ones nobody measured; WorkbenchError when none is left or another is missing."""
    shown = [column for column in columns if "gold" not in column.split("_") or has_gold(frame, column)]
    require_columns(frame, ["step", *shown], figure)
    if not shown:
        raise WorkbenchError(f"{figure} has nothing to show: none of {list(columns)} was measured.")
    return shown


def measured_score(frame: pd.DataFrame, figure: str) -> str:
    """The column to compare runs by: "gold" where it was measured, else "proxy"."""
    score = "gold" if has_gold(frame) else "proxy"
    require_columns(frame, [score], figure)
    return score


def run_groups(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """(run name, its rows) in order of appearance; a table without a run column is one nameless run."""
    return list(frame.groupby("run", sort=False)) if "run" in frame else [("", frame)]


def smoothed(values: pd.Series, window: int) -> pd.Series:
    """Centred running mean, or the values themselves when there are fewer than four windows of them."""
    return values.rolling(window, center=True, min_periods=1).mean() if len(values) >= 4 * window else values


def transparent(color: str, opacity: float) -> str:
    """A "#RRGGBB" colour with an opacity."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {round(opacity, 4)})"  # plotly reads no 1e-05


def root_kl(kl: pd.Series) -> pd.Series:
    """√KL; sampled estimates below zero count as zero."""
    return np.sqrt(kl.clip(lower=0))


def add_root_kl_axes(figure: go.Figure, largest_kl: float) -> go.Figure:
    """√KL below, on which reward grows about linearly at first (Gao et al. 2022), and KL itself above, both nats."""
    end = 1.06 * math.sqrt(max(largest_kl, 0.01))
    ticks = root_kl_ticks(end, 0.08 * end)
    figure.update_xaxes(title="√KL from the reference (√nats)", range=[-0.03 * end, end], rangemode="tozero")
    return add_top_axis(figure, ticks, [f"{place**2:.3g}" for place in ticks], "KL (nats)")


def root_kl_ticks(end: float, apart: float) -> list[float]:
    """Places on an axis of √KL up to `end` whose KL is a plain number, so far apart that their names fit."""
    ticks = [0.0]
    for kl in (0.01, 0.03, 0.1, 0.3, 1, 2, 4, 8, 16, 32, 64, 128, 256):
        if ticks[-1] + apart < math.sqrt(kl) <= end:
            ticks.append(math.sqrt(kl))
    return ticks


def add_top_axis(figure: go.Figure, places: Sequence[float], labels: Sequence[str], title: str) -> go.Figure:
    """A second scale above the figure that follows the first when it is zoomed."""
    figure.add_scatter(x=[places[0]], y=[None], xaxis="x2", showlegend=False, hoverinfo="skip")  # an axis needs a trace
    return figure.update_layout(
        xaxis2={
            "overlaying": "x",
            "side": "top",
            "matches": "x",
            "type": figure.layout.xaxis.type,
            "range": figure.layout.xaxis.range,
            "tickvals": list(places),
            "ticktext": list(labels),
            "title": {"text": title, "standoff": 4},
            "showgrid": False,
        }
    )
