"""Alarms that need no gold reward: what they look at, and when they came."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.plots.theme import GREY, PALETTE, has_gold, require_columns, styled, transparent

SIGNALS = {  # column of `path_signals`: what it is, and its unit
    "disagreement": "disagreement of reward models (std)",
    "split_gap": "proxy above a model of other labels (std)",
    "length": "drift of length (tokens)",
    "repetition": "repeated trigrams (share)",
    "kl": "KL alone (nats)",
}
VERDICTS = {  # verdict: colour and pattern; the right ones are plain
    "in time": (PALETTE[2], ""),
    "quiet": (PALETTE[5], ""),
    "late": (PALETTE[1], "/"),
    "too early": (PALETTE[3], "\\"),
    "false alarm": (PALETTE[4], "x"),
    "missed": (GREY, "."),
}
SPACING = {"vertical_spacing": 0.09, "horizontal_spacing": 0.08}
COURSES = {True: ("falls", PALETTE[3]), False: ("never falls", PALETTE[0])}
UNKNOWN = ("gold unknown", GREY)


def plot_signals(signals: pd.DataFrame, thresholds: Mapping[str, float], title: str = "") -> go.Figure:
    """Every signal along training, a panel each and gold in the last: one line per run, a colour for runs that fall.

    Columns run, step, falls and some of `SIGNALS`; `thresholds` are dashed where known.
    """
    require_columns(signals, ["run", "step", "falls"], "plot_signals")
    names = {name: words for name, words in SIGNALS.items() if has_gold(signals, name)}
    names |= {"gold": "gold reward, unseen"} if has_gold(signals) else {}
    rows = -(-len(names) // 2)
    figure = make_subplots(rows=rows, cols=2, shared_xaxes=True, subplot_titles=list(names.values()), **SPACING)
    for place, name in enumerate(names):
        where = {"rows": place // 2 + 1, "cols": place % 2 + 1}
        figure.add_traces(_signal_lines(signals.dropna(subset=[name]), name, named=place == 0), **where)
        if abs(thresholds.get(name, math.inf)) < math.inf:
            line = {"dash": "dash", "color": GREY}
            figure.add_hline(y=thresholds[name], line=line, row=where["rows"], col=where["cols"])
    for column in (1, 2):
        last = rows - (column == 2 and len(names) % 2)
        figure.update_xaxes(title="training step", showticklabels=True, row=last, col=column)
    reading = (
        "A line per run; drift from the reference. Dashed: the alarm. A good signal crosses it only where gold falls."
    )
    return styled(figure, title=title or _signals_finding(signals), reading=reading, height=170 + 190 * rows)


def _signal_lines(signals: pd.DataFrame, name: str, *, named: bool) -> list[go.Scatter]:
    """A line per run in the colour of its course, in the legend once per course where `named`."""
    lines, told = [], set()
    for (run, falls), part in signals.groupby(["run", "falls"], sort=False, dropna=False):
        course, color = UNKNOWN if pd.isna(falls) else COURSES[bool(falls)]
        look = {"mode": "lines", "line": {"color": transparent(color, 0.85), "width": 1.3}}
        hover = f"{html.escape(str(run))}<br>step %{{x}}<br>%{{y:.3g}}<extra></extra>"
        line = go.Scatter(x=part["step"], y=part[name], name=course, hovertemplate=hover, **look)
        lines.append(line.update(legendgroup=course, showlegend=named and course not in told))
        told.add(course)
    return lines


def _signals_finding(signals: pd.DataFrame) -> str:
    """How many of the watched runs fall."""
    falls = signals.groupby("run")["falls"].first().dropna()
    if falls.empty:
        return f"What drifts in {signals['run'].nunique()} runs; whether their gold falls is not known"
    return f"Gold falls in {int(falls.sum())} of {len(falls)} runs: which signals tell them from the others?"


def plot_alarms(alarms: pd.DataFrame, title: str) -> go.Figure:
    """How alarms were judged: shares of verdicts per signal, and for runs that fell how long before the peak they came.

    `alarms` is of `held_out_alarms`, one row per run and signal.
    """
    require_columns(alarms, ["run", "signal", "verdict", "lead_steps"], "plot_alarms")
    names = [name for name in SIGNALS if name in set(alarms["signal"])]
    titles = ["verdicts (share of runs)", "alarm before (+) or after (−) the peak"]
    figure = make_subplots(cols=2, shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.08)
    words = [SIGNALS[name].split(" (")[0] for name in names]
    shares = alarms.groupby("signal")["verdict"].value_counts(normalize=True).unstack(fill_value=0).reindex(names)
    for verdict, (color, pattern) in VERDICTS.items():
        if verdict not in shares:
            continue
        look = {"color": color, "pattern": {"shape": pattern}}
        bar = {"orientation": "h", "marker": look, "name": verdict, "legendgroup": verdict}
        figure.add_bar(x=shares[verdict], y=words, hovertemplate="%{y}<br>%{x:.0%}", **bar, row=1, col=1)
        raised = alarms[(alarms["verdict"] == verdict) & alarms["lead_steps"].notna()]
        figure.add_trace(_leads(raised, dict(zip(names, words, strict=True)), color), row=1, col=2)
    figure.add_vline(x=0, line={"dash": "dash", "color": GREY}, row=1, col=2)
    figure.update_xaxes(title="share of runs", tickformat=".0%", range=[0, 1], col=1)
    figure.update_xaxes(title="steps", col=2).update_yaxes(automargin=True, autorange="reversed")
    figure.update_layout(barmode="stack")
    reading = "Thresholds were chosen on other worlds or seeds. In time and quiet are right. Large dots: more runs."
    return styled(figure, title=title, reading=reading, height=270 + 44 * len(names))


def _leads(raised: pd.DataFrame, words: Mapping[str, str], color: str) -> go.Scatter:
    """A dot per signal and lead, larger the more runs it stands for."""
    dots = raised.groupby(["signal", "lead_steps"])["run"].agg(list).reset_index()
    sizes = [6 + 4 * len(runs) ** 0.5 for runs in dots["run"]]
    told = [
        f"{len(runs)} runs: " + html.escape(", ".join(map(str, runs[:3]))) + " …" * (len(runs) > 3)
        for runs in dots["run"]
    ]
    return go.Scatter(
        x=dots["lead_steps"],
        y=dots["signal"].map(words),
        mode="markers",
        marker={"color": transparent(color, 0.85), "size": sizes, "line": {"width": 0.5, "color": "white"}},
        showlegend=False,
        customdata=told,
        hovertemplate="%{x:+g} steps<br>%{customdata}<extra></extra>",
    )
