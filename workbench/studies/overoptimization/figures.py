"""What pushing a proxy further buys: proxy and gold against √KL, reward model by reward model, and the fitted laws."""

from __future__ import annotations

import html
import math

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
