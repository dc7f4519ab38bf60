"""What pushing a proxy further buys: proxy and gold against √KL, reward model by reward model, and the fitted laws."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.analysis.statistics import nats
from workbench.plots.theme import (
    GREY,
    PALETTE,
    ROLE_COLORS,
    band,
    completion_hover,
    has_gold,
    headline_of,
    number,
    require_columns,
    root_kl,
    styled,
    transparent,
)

KL_TICKS = (0, 0.1, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256)
MEAN = "mean over units"
PUSH_READING = (
    "Thick: mean over units at equal KL, bands 95% over units, as far as the first of them goes; thin: single units. "
    "Point at a thin line for a completion, the case in which gold falls most. The menus choose reward model and unit."
)


def plot_pushes(curves: pd.DataFrame, means: pd.DataFrame, title: str = "") -> go.Figure:
    """Proxy and gold against √KL, a panel per optimiser; one menu chooses the reward model, another a single unit.

    `curves` has label (of the reward model), optimiser, world, seed, kl (nats), proxy, gold where known, completion;
    `means` the same without unit, with _low and _high. The first label is shown first. `title` stands over all of them.
    """
    require_columns(curves, ["label", "optimiser", "world", "seed", "kl", "proxy"], "plot_pushes")
    require_columns(means, ["label", "optimiser", "kl", "proxy", "proxy_low", "proxy_high"], "plot_pushes")
    optimisers, labels = list(means["optimiser"].unique()), list(means["label"].unique())
    figure = panels(optimisers, largest_kl=[curves.loc[curves["optimiser"] == name, "kl"].max() for name in optimisers])
    owners = []  # (label, unit or MEAN) of every trace
    for label in labels:
        for column, optimiser in enumerate(optimisers, 1):
            own = [part[(part["label"] == label) & (part["optimiser"] == optimiser)] for part in (curves, means)]
            for trace, unit in _push_traces(*own, names_shown=column == 1 or len(own[0]) == 0):
                figure.add_trace(trace.update(visible=label == labels[0]), row=1, col=column)
                owners.append((label, unit))
    titles = {label: title or push_finding(means[means["label"] == label]) for label in labels}
    figure.update_yaxes(title="reward", col=1)
    figure = styled(figure, title=titles[labels[0]], reading=PUSH_READING, height=540)
    return _with_menus(figure, owners, titles)


def panels(names: list[str], *, largest_kl: list[float]) -> go.Figure:
    """Panels side by side with a common vertical axis, and √KL with KL's numbers below each."""
    figure = make_subplots(cols=len(names), shared_yaxes=True, subplot_titles=names, horizontal_spacing=0.04)
    for column, kl in enumerate(largest_kl, 1):
        end = 1.05 * math.sqrt(max(kl, 0.01))
        places = [0.0]
        for value in KL_TICKS:
            if places[-1] + 0.09 * end * min(2, len(names)) < math.sqrt(value) <= end:
                places.append(math.sqrt(value))
        ticks = {"tickvals": places, "ticktext": [f"{place**2:.3g}" for place in places]}
        figure.update_xaxes(title="KL (nats), on the scale of √KL", range=[-0.02 * end, end], col=column, **ticks)
    return figure


def _push_traces(curves: pd.DataFrame, means: pd.DataFrame, *, names_shown: bool) -> list[tuple[go.Scatter, str]]:
    """(trace, unit) of one reward model in one panel: per score a band, the mean, and every unit."""
    traces = []
    for score in ("proxy", "gold"):
        if not has_gold(curves, score):
            continue
        color = ROLE_COLORS[score]
        several = curves.groupby(["world", "seed"]).ngroups > 1
        if several and means[f"{score}_low"].notna().any():
            around = band(root_kl(means["kl"]), means[f"{score}_low"], means[f"{score}_high"], color, 0.2)
            traces.append((around.update(legendgroup=score), MEAN))
        for (world, seed), rows in curves.groupby(["world", "seed"]):
            traces.append((_unit_line(rows, score, color, several=several), f"world {world}, seed {seed}"))
        line = go.Scatter(x=root_kl(means["kl"]), y=means[score], name=score, legendgroup=score, mode="lines")
        line.update(line={"color": color, "width": 3.2}, showlegend=names_shown)
        line.update(
            customdata=means[["kl", "runs"]],
            hovertemplate=f"{score} %{{y:.2f}}<br>KL %{{customdata[0]:.2f}} nats"
            "<br>mean of %{customdata[1]} units<extra></extra>",
        )
        traces.append((line, MEAN))
    return traces


def _unit_line(rows: pd.DataFrame, score: str, color: str, *, several: bool) -> go.Scatter:
    texts = completion_hover(rows) if score == "gold" or not has_gold(rows) else [""] * len(rows)
    places = zip(rows["step"], rows["kl"], texts, strict=True)
    what = "n =" if (rows["optimiser"] == "best of n").all() else "step"
    unit = f"world {rows['world'].iloc[0]}, seed {rows['seed'].iloc[0]}"
    return go.Scatter(
        x=root_kl(rows["kl"]),
        y=rows[score],
        mode="lines+markers",
        line={"color": color, "width": 1},
        marker={"size": 3.5},
        opacity=0.35 if several else 1,
        legendgroup=score,
        showlegend=False,
        customdata=[f"{unit}, {what} {step:g}, KL {kl:.2f} nats{text}" for step, kl, text in places],
        hovertemplate=f"{score} %{{y:.2f}}<br>%{{customdata}}<extra></extra>",
    )


def push_finding(means: pd.DataFrame) -> str:
    """What one reward model's pushes did to gold, in a sentence."""
    label, parts = means["label"].iloc[0], []
    for optimiser, rows in means.groupby("optimiser", sort=False):
        if not has_gold(rows):
            parts.append(
                f"the proxy rises by {number(rows['proxy'].iloc[-1] - rows['proxy'].iloc[0])} under {optimiser}"
            )
            continue
        rows = rows.dropna(subset=["gold"])
        best, last = rows.loc[rows["gold"].idxmax()], rows["gold"].iloc[-1]
        fall = best["gold"] - last
        end = f"ends {number(fall)} below its highest mean" if fall >= 0.05 else "is highest at the end"
        parts.append(f"gold {end} under {optimiser}")
    return f"{label}: {', '.join(parts)}"


def _with_menus(figure: go.Figure, owners: list[tuple[str, str]], titles: dict[str, str]) -> go.Figure:
    """A menu of reward models that shows their traces, and one of units that brings theirs forward."""
    models = []
    for label, title in titles.items():
        shown = {"visible": [owner == label for owner, _ in owners]}
        args = [shown, {"title.text": headline_of(title, PUSH_READING)[0]}]
        models.append({"label": html.escape(label), "method": "update", "args": args})
    units = [MEAN, *dict.fromkeys(unit for _, unit in owners if unit != MEAN)]
    views = [{"label": unit, "method": "restyle", "args": [_view(owners, unit)]} for unit in units]
    look = {"y": 1.1, "yanchor": "bottom", "xanchor": "left", "showactive": True, "font": {"size": 12}}
    menus = [look | {"buttons": models, "x": 0}] if len(models) > 1 else []
    menus += [look | {"buttons": views, "x": 0.5}] if len(units) > 2 else []
    return figure.update_layout(updatemenus=menus, margin={"t": figure.layout.margin.t + 50 * bool(menus)})


def _view(owners: list[tuple[str, str]], chosen: str) -> dict[str, list]:
    """How clearly every trace is seen while a unit, or the mean, is chosen, and whether it answers to the pointer."""
    if chosen == MEAN:
        return {"opacity": [1 if unit == MEAN else 0.35 for _, unit in owners], "hoverinfo": ["all"] * len(owners)}
    opacity = [{chosen: 1, MEAN: 0.3}.get(unit, 0) for _, unit in owners]
    return {"opacity": opacity, "hoverinfo": ["all" if unit == chosen else "skip" for _, unit in owners]}


def plot_laws(points: pd.DataFrame, laws: pd.DataFrame, peaks: pd.DataFrame, title: str = "") -> go.Figure:
    """Gold gained against √KL with the laws of Gao et al. 2022 fitted to it, a panel per optimiser.

    `points` has optimiser, run, kl (nats), gold_gain; `laws` optimiser, law, kl, predicted, low, high, better (one is);
    `peaks` optimiser, kind ("measured" or "predicted"), kl, kl_low, kl_high, gain.
    """
    require_columns(points, ["optimiser", "run", "kl", "gold_gain"], "plot_laws")
    optimisers = list(points["optimiser"].unique())
    figure = panels(optimisers, largest_kl=[points.loc[points["optimiser"] == name, "kl"].max() for name in optimisers])
    for column, optimiser in enumerate(optimisers, 1):
        own = {name: part[part["optimiser"] == optimiser] for name, part in (("points", points), ("peaks", peaks))}
        for trace in _law_traces(own["points"], laws[laws["optimiser"] == optimiser], own["peaks"]):
            figure.add_trace(trace.update(showlegend=column == 1 and trace.name is not None), row=1, col=column)
    low, high = min(0, points["gold_gain"].min()), max(0, points["gold_gain"].max())
    room = 0.1 * (high - low) + 0.02
    figure.update_yaxes(range=[low - room, high + room])  # a law may run far out beyond the points
    figure.update_yaxes(title="gold gained over the reference", col=1)
    reading = "Dots: measured, a colour per law. Band: 95% of the better law. Peaks with 95% intervals of their place."
    return styled(figure, title=title or _laws_finding(laws, peaks), reading=reading, height=500)


def _laws_finding(laws: pd.DataFrame, peaks: pd.DataFrame) -> str:
    """The better law of each optimiser, with the peak that it predicts and the one that was measured."""
    parts = []
    for optimiser, rows in laws[laws["better"]].groupby("optimiser", sort=False):
        places = peaks[peaks["optimiser"] == optimiser].set_index("kind")["kl"].dropna()
        told = [f"{kind} at {nats(places[kind], 2)}" for kind in ("predicted", "measured") if kind in places]
        where = f", peak {', '.join(told)}" if "predicted" in places else ", no peak predicted"
        parts.append(f"{optimiser}: {rows['law'].iloc[0]} fits better{where}")
    return "; ".join(parts).replace(" - ", " − ") or "Too few points to fit a law to"


def _law_traces(points: pd.DataFrame, laws: pd.DataFrame, peaks: pd.DataFrame) -> list[go.Scatter]:
    dots = {"x": root_kl(points["kl"]), "y": points["gold_gain"], "hovertext": points["run"].map(html.escape)}
    marker = {"color": transparent(GREY, 0.85), "size": 5}
    traces = [go.Scatter(**dots, mode="markers", marker=marker, name="measured")]
    for i, (law, rows) in enumerate(laws.groupby("law")):
        color = (PALETTE[0], PALETTE[3])[i % 2]
        if rows["better"].all() and rows["low"].notna().any():
            traces.append(band(root_kl(rows["kl"]), rows["low"], rows["high"], color, 0.2))
        line = {"color": color, "width": 3 if rows["better"].all() else 1.8, "dash": ("solid", "dash")[i % 2]}
        drawn = {"x": root_kl(rows["kl"]), "y": rows["predicted"], "name": law.replace(" - ", " − ")}
        traces.append(go.Scatter(**drawn, mode="lines", line=line))
    return [*traces, *_peak_marks(peaks, beyond=1.3 * points["kl"].max())]


def _peak_marks(peaks: pd.DataFrame, *, beyond: float) -> list[go.Scatter]:
    """Measured and predicted peaks with the intervals of their place; an open end reaches to `beyond` nats."""
    marks = []
    for kind, symbol, color in (("measured", "diamond", PALETTE[1]), ("predicted", "star", PALETTE[2])):
        rows = peaks[peaks["kind"] == kind].dropna(subset=["kl"])
        place, high = root_kl(rows["kl"]), root_kl(rows["kl_high"].clip(upper=np.maximum(rows["kl"], beyond)))
        bar = {"array": high - place, "arrayminus": place - root_kl(rows["kl_low"])}
        bar |= {"type": "data", "symmetric": False, "thickness": 1.6, "width": 5}
        marker = {"size": 13, "symbol": symbol, "color": color, "line": {"color": "white", "width": 1}}
        look = {"mode": "markers", "name": f"peak, {kind}", "marker": marker}
        marks.append(go.Scatter(x=place, y=rows["gain"], error_x=bar, **look))
    return marks


# --- Alarms that need no gold reward: what they look at, and when they came.


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
