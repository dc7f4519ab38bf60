"""Figures of reward against KL: what a run gained for how far it moved, and whether the gain is real."""

from __future__ import annotations

import html

import pandas as pd
import plotly.graph_objects as go

from workbench.plots.marks import DASHED, colored, error_bar, half_width, points
from workbench.plots.theme import (
    PALETTE,
    ROLE_COLORS,
    add_root_kl_axes,
    axis_label,
    completion_hover,
    has_gold,
    measured_score,
    number,
    require_columns,
    root_kl,
    run_groups,
    smoothed,
    styled,
    styled_beside,
    transparent,
)

NAMES_BELOW = 12  # more methods than this, and their names stand beside the figure


def plot_reward_kl_path(
    metrics: pd.DataFrame, *, proxy: str = "proxy", gold: str = "gold", title: str = "", window: int = 15
) -> go.Figure:
    """The path of training in the plane of √KL and reward, one per run where the table has a `run` column.

    Columns step, kl (nats), `proxy` and `gold`; no gold line where gold was not measured.
    """
    require_columns(metrics, ["step", "kl", proxy], "plot_reward_kl_path")
    scores = {"gold": gold, "proxy": proxy} if has_gold(metrics, gold) else {"proxy": proxy}
    figure, runs = go.Figure(), run_groups(metrics)
    for i, (run, rows) in enumerate(runs):
        for role, column in scores.items():
            if len(runs) == 1:
                figure.add_traces(_path(rows, column, name=role, color=ROLE_COLORS[role], window=window))
            else:
                line = _path(rows, column, name=run, color=PALETTE[i % len(PALETTE)], window=window)[1]
                first = role == next(iter(scores))  # one legend entry a run
                line.update(legendgroup=run, showlegend=first, line={"dash": "solid" if first else "dot"})
                figure.add_trace(line)
    add_root_kl_axes(figure, max(smoothed(rows["kl"], window).max() for _, rows in runs))
    figure.update_yaxes(title="reward")
    means = f"Running means over {window} steps, from" if window > 1 else "From"
    reading = f"{means} the start of training to the large dot at its end."
    if len(scores) == 2:
        reading += " A highest point flatters a noisy line." + (" Dotted: proxy." if len(runs) > 1 else "")
    return styled(figure, title=title or _path_finding(runs, scores, window), reading=reading, height=480)


def _path(rows: pd.DataFrame, column: str, *, name: str, color: str, window: int) -> list[go.Scatter]:
    """The raw points, faint, and the smoothed path with its end marked."""
    rows = rows.dropna(subset=["kl", column]).sort_values("step")
    kl, texts = smoothed(rows["kl"], window), completion_hover(rows)
    raw = points(root_kl(rows["kl"]), rows[column], look={"color": transparent(color, 0.25), "size": 3})
    told = [f"step {s:g}, KL {k:.2f} nats{text}" for s, k, text in zip(rows["step"], kl, texts, strict=True)]
    look = {"color": color, "width": 2.4, "size": [0] * (len(rows) - 1) + [11]}
    y, hover = smoothed(rows[column], window), "%{customdata}<br>%{y:.2f}"
    return [raw, points(root_kl(kl), y, name, look, told=told, hover=hover)]


def _path_finding(runs: list[tuple[str, pd.DataFrame]], scores: dict[str, str], window: int) -> str:
    """What the paths show, in a sentence."""
    if "gold" not in scores:
        return "The proxy is bought with KL: watch what each further nat adds"
    lines = [smoothed(rows[scores["gold"]].dropna(), window) for _, rows in runs]
    fall = max(line.max() - line.iloc[-1] for line in lines if len(line))
    if fall < 0.05:
        return "Gold reward is at its highest when training ends"
    return f"Gold reward ends {'up to ' if len(runs) > 1 else ''}{fall:.2f} below its highest point"


def plot_frontier(runs: pd.DataFrame, title: str = "") -> go.Figure:
    """Every run as a point, a colour per method: gold, or the proxy where gold was not measured, against √KL.

    Columns run, method, kl (nats), gold or proxy; gold_se or proxy_se give 95% intervals, completion the hover.
    """
    score = measured_score(runs, "plot_frontier")
    require_columns(runs, ["run", "method", "kl"], "plot_frontier")
    figure = go.Figure()
    for i, (method, rows) in enumerate(runs.groupby("method", sort=False)):
        shown = {"told": _point_details(rows), "hover": "%{customdata}<extra></extra>"}
        bars = {"error_y": error_bar(rows, score)}
        figure.add_trace(points(root_kl(rows["kl"]), rows[score], method, colored(i, size=11), bars=bars, **shown))
    add_root_kl_axes(figure, runs["kl"].max())
    figure.update_yaxes(title=axis_label(score))
    best = runs.loc[runs[score].idxmax()]
    title = title or f"Highest {score}: {best['run']} with {number(best[score])} at {best['kl']:.2f} nats"
    reading = "Up is better, left is closer to the reference. Point at a run for one of its completions."
    look = styled if len(figure.data) <= NAMES_BELOW else styled_beside
    return look(figure, title=title, reading=reading, height=480)


def _point_details(rows: pd.DataFrame) -> list[str]:
    """Hover block of each run: its name, KL, the scores that were measured and a completion."""
    scores = [column for column in ("gold", "proxy") if column in rows]
    lines = []
    for (_, row), text in zip(rows.iterrows(), completion_hover(rows), strict=True):
        numbers = "".join(f"<br>{column} {number(row[column])}" for column in scores if pd.notna(row[column]))
        lines.append(f"{html.escape(str(row['run']))}<br>KL {row['kl']:.2f} nats{numbers}{text}")
    return lines


def plot_gains(gains: pd.DataFrame, title: str = "") -> go.Figure:
    """What each run gained over its start, one line per run, the largest gain on top: at temperature 1 and at greedy.

    Columns run, kl (nats), gain, greedy_gain in reward units; gain_se and greedy_gain_se give 95% intervals.
    """
    require_columns(gains, ["run", "kl", "gain", "greedy_gain"], "plot_gains")
    rows = gains.sort_values("gain")
    figure = go.Figure()
    figure.add_vline(x=0, line=DASHED)
    told = [f"{html.escape(str(run))}<br>KL {kl:.2f} nats" for run, kl in zip(rows["run"], rows["kl"], strict=True)]
    hover = "%{customdata}<br>gain %{x:.2f}<extra>%{fullData.name}</extra>"
    for place, column, name, symbol in (
        (1, "greedy_gain", "greedy", "diamond-open"),
        (0, "gain", "temperature 1", "circle"),
    ):
        look, bars = colored(place, size=8) | {"symbol": symbol}, {"error_x": error_bar(rows, column)}
        figure.add_trace(points(rows[column], rows["run"], name, look, told=told, hover=hover, bars=bars))
    figure.update_xaxes(title="gain in reward over the starting policy").update_yaxes(automargin=True)
    title = title or _gains_finding(rows)
    reading = "Bars: 95%, of each alone. A filled dot without its diamond to the right of 0 has only sharpened."
    return styled(figure, title=title, reading=reading, height=220 + 22 * len(rows))


def _gains_finding(rows: pd.DataFrame) -> str:
    """How many runs, the largest gain last, gain more than their interval; where no error is known, more than 0."""
    measured = "gain_se" in rows and rows["gain_se"].notna().any()
    least = half_width(rows, "gain_se").fillna(0.0) if measured else 0.0
    beyond = " beyond their own 95% interval" if measured else ""
    gained = int((rows["gain"] > least).sum())
    return f"{gained} of {len(rows)} gain at temperature 1{beyond}; most: {rows['run'].iloc[-1]}"


def plot_sharpening_control(frame: pd.DataFrame, title: str = "") -> go.Figure:
    """Gold (or proxy) reward of each `run` sampled at each `temperature`, 0 meaning greedy, 95% intervals."""
    score = measured_score(frame, "plot_sharpening_control")
    require_columns(frame, ["run", "temperature"], "plot_sharpening_control")
    figure = go.Figure()
    for i, (run, rows) in enumerate(run_groups(frame)):
        rows = rows.sort_values("temperature", ascending=False)
        names, bars = [_temperature_name(value) for value in rows["temperature"]], {"error_y": error_bar(rows, score)}
        look = colored(i, size=9, width=2.2)
        figure.add_trace(points(names, rows[score], run, look, hover="%{x}<br>%{y:.2f}", bars=bars))
    order = [_temperature_name(value) for value in sorted(frame["temperature"].unique(), reverse=True)]
    figure.update_xaxes(title="sampling temperature", type="category", categoryorder="array", categoryarray=order)
    figure.update_yaxes(title=axis_label(score)).update_layout(scattermode="group", scattergap=0.8)  # bars side by side
    reading = "A gain that the starting model has at greedy is sharpening; a gap that stays at greedy is new behaviour."
    return styled(figure, title=title or _sharpening_finding(frame, score), reading=reading)


def _sharpening_finding(frame: pd.DataFrame, score: str) -> str:
    """Which run is how far above which at the highest and at the lowest temperature, in a sentence."""
    named = frame if "run" in frame else frame.assign(run=axis_label(score))
    told = []
    for value in dict.fromkeys([frame["temperature"].max(), frame["temperature"].min()]):
        scores = named[named["temperature"] == value].set_index("run")[score]
        best, worst, gap = scores.idxmax(), scores.idxmin(), scores.max() - scores.min()
        above = f"{best} is {gap:.2f} above {worst}" if len(scores) > 1 else f"{best} is {number(scores.max())}"
        told.append(f"at {_temperature_name(value)} {above}")
    return f"A{'; '.join(told)[1:]}"


def _temperature_name(value: float) -> str:
    return "greedy" if value == 0 else f"T = {value:g}"
