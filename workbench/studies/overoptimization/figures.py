"""What pushing a proxy further buys: proxy and gold against √KL, reward model by reward model, and the fitted laws."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench import WorkbenchError
from workbench.analysis.statistics import nats
from workbench.plots.marks import DASHED, add_buttons, band, banded, button, colored, error_bar, interval, points
from workbench.plots.theme import (
    GREY,
    PALETTE,
    ROLE_COLORS,
    SYMBOLS,
    add_root_kl_axes,
    axis_label,
    completion_hover,
    has_gold,
    headline_of,
    number,
    require_columns,
    root_kl,
    root_kl_ticks,
    styled,
    transparent,
)

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
    figure = panels(curves.groupby("optimiser")["kl"].max()[optimisers].to_dict())
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


def panels(largest_kl: Mapping[str, float]) -> go.Figure:
    """Panels side by side by name, with a common vertical axis, and √KL with KL's numbers below each."""
    names = list(largest_kl)
    figure = make_subplots(cols=len(names), shared_yaxes=True, subplot_titles=names, horizontal_spacing=0.04)
    for column, kl in enumerate(largest_kl.values(), 1):
        end = 1.05 * math.sqrt(max(kl, 0.01))
        places = root_kl_ticks(end, 0.09 * end * min(2, len(names)))
        ticks = {"tickvals": places, "ticktext": [f"{place**2:.3g}" for place in places]}
        figure.update_xaxes(title="KL (nats), on the scale of √KL", range=[-0.02 * end, end], col=column, **ticks)
    return figure


def _push_traces(curves: pd.DataFrame, means: pd.DataFrame, *, names_shown: bool) -> list[tuple[go.Scatter, str]]:
    """(trace, unit) of one reward model in one panel: per score a band, the mean, and every unit."""
    traces, x = [], root_kl(means["kl"])
    for score in ("proxy", "gold"):
        if not has_gold(curves, score):
            continue
        look = {"color": ROLE_COLORS[score], "width": 3.2, "group": score}
        hover = (
            f"{score} %{{y:.2f}}<br>KL %{{customdata[0]:.2f}} nats<br>mean of %{{customdata[1]}} units<extra></extra>"
        )
        shown = {"told": means[["kl", "runs"]], "hover": hover, "legend": names_shown, "opacity": 0.2}
        around, line = banded(x, means[score], means[f"{score}_low"], means[f"{score}_high"], score, look, **shown)
        several = curves.groupby(["world", "seed"]).ngroups > 1
        if several and means[f"{score}_low"].notna().any():
            traces.append((around, MEAN))
        for (world, seed), rows in curves.groupby(["world", "seed"]):
            unit = f"world {world}, seed {seed}"
            traces.append((_unit_line(rows, score, unit).update(opacity=0.35 if several else 1), unit))
        traces.append((line, MEAN))
    return traces


def _unit_line(rows: pd.DataFrame, score: str, unit: str) -> go.Scatter:
    texts = completion_hover(rows) if score == "gold" or not has_gold(rows) else [""] * len(rows)
    what = "n =" if (rows["optimiser"] == "best of n").all() else "step"
    places = zip(rows["step"], rows["kl"], texts, strict=True)
    told = [f"{unit}, {what} {step:g}, KL {kl:.2f} nats{text}" for step, kl, text in places]
    look = {"color": ROLE_COLORS[score], "width": 1, "size": 3.5, "group": score}
    hover = f"{score} %{{y:.2f}}<br>%{{customdata}}<extra></extra>"
    return points(root_kl(rows["kl"]), rows[score], look=look, told=told, hover=hover)


def push_finding(means: pd.DataFrame) -> str:
    """What one reward model's pushes did to gold, in a sentence."""
    label, parts = means["label"].iloc[0], []
    for optimiser, rows in means.groupby("optimiser", sort=False):
        if not has_gold(rows):
            risen = number(rows["proxy"].iloc[-1] - rows["proxy"].iloc[0])
            parts.append(f"the proxy rises by {risen} under {optimiser}")
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
        models.append(button(label, shown, {"title.text": headline_of(title, PUSH_READING)[0]}))
    units = [MEAN, *dict.fromkeys(unit for _, unit in owners if unit != MEAN)]
    views = [button(unit, _view(owners, unit), {}) for unit in units]
    for x, menu in [(0, models)] * (len(models) > 1) + [(0.5, views)] * (len(units) > 2):
        figure = add_buttons(figure, menu, x=x)
    return figure


def _view(owners: list[tuple[str, str]], chosen: str) -> dict[str, list]:
    """How clearly every trace is seen while a unit, or the mean, is chosen, and whether it answers to the pointer."""
    if chosen == MEAN:
        return {"opacity": [1 if unit == MEAN else 0.35 for _, unit in owners], "hoverinfo": ["all"] * len(owners)}
    opacity = [{chosen: 1, MEAN: 0.3}.get(unit, 0) for _, unit in owners]
    return {"opacity": opacity, "hoverinfo": ["all" if unit == chosen else "skip" for _, unit in owners]}


def plot_laws(measured: pd.DataFrame, laws: pd.DataFrame, peaks: pd.DataFrame, title: str = "") -> go.Figure:
    """Gold gained against √KL with the laws of Gao et al. 2022 fitted to it, a panel per optimiser.

    `measured` has optimiser, run, kl (nats), gold_gain; `laws` optimiser, law, kl, predicted, low, high, better (one
    is); `peaks` optimiser, kind ("measured" or "predicted"), kl, kl_low, kl_high, gain.
    """
    require_columns(measured, ["optimiser", "run", "kl", "gold_gain"], "plot_laws")
    names = measured["optimiser"].unique()
    parts = {name: [table[table["optimiser"] == name] for table in (measured, laws, peaks)] for name in names}
    figure = panels({name: own[0]["kl"].max() for name, own in parts.items()})
    for column, own in enumerate(parts.values(), 1):
        for trace in _law_traces(*own):
            figure.add_trace(trace.update(showlegend=column == 1 and trace.name is not None), row=1, col=column)
    low, high = min(0, measured["gold_gain"].min()), max(0, measured["gold_gain"].max())
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


def _law_traces(measured: pd.DataFrame, laws: pd.DataFrame, peaks: pd.DataFrame) -> list[go.Scatter]:
    look = {"color": transparent(GREY, 0.85), "size": 5}
    dots = points(root_kl(measured["kl"]), measured["gold_gain"], "measured", look)
    traces = [dots.update(hovertext=measured["run"].map(html.escape), hoverinfo=None)]
    for i, (law, rows) in enumerate(laws.groupby("law")):
        better, x, color = rows["better"].all(), root_kl(rows["kl"]), (PALETTE[0], PALETTE[3])[i % 2]
        if better and rows["low"].notna().any():
            traces.append(band(x, rows["low"], rows["high"], color, 0.2))
        look = {"color": color, "width": 3 if better else 1.8, "dash": ("solid", "dash")[i % 2]}
        traces.append(points(x, rows["predicted"], law.replace(" - ", " − "), look, hover="%{y:.2f}"))
    return [*traces, *_peak_marks(peaks, beyond=1.3 * measured["kl"].max())]


def _peak_marks(peaks: pd.DataFrame, *, beyond: float) -> list[go.Scatter]:
    """Measured and predicted peaks with the intervals of their place; an open end reaches to `beyond` nats."""
    marks = []
    for kind, symbol, color in (("measured", "diamond", PALETTE[1]), ("predicted", "star", PALETTE[2])):
        rows = peaks[peaks["kind"] == kind].dropna(subset=["kl"])
        place, high = root_kl(rows["kl"]), root_kl(rows["kl_high"].clip(upper=np.maximum(rows["kl"], beyond)))
        bars = {"error_x": interval(place, root_kl(rows["kl_low"]), high)}
        look = {"size": 13, "symbol": symbol, "color": color}
        marks.append(points(place, rows["gain"], f"peak, {kind}", look, bars=bars, hover="%{y:.2f}"))
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
            figure.add_hline(y=thresholds[name], line=DASHED, row=where["rows"], col=where["cols"])
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
        look = {"color": transparent(color, 0.85), "width": 1.3, "group": course}
        shown = {"hover": f"{html.escape(str(run))}<br>step %{{x}}<br>%{{y:.3g}}<extra></extra>"}
        lines.append(points(part["step"], part[name], course, look, legend=named and course not in told, **shown))
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
    figure.add_vline(x=0, line=DASHED, row=1, col=2)
    figure.update_xaxes(title="share of runs", tickformat=".0%", range=[0, 1], col=1)
    figure.update_xaxes(title="steps", col=2).update_yaxes(automargin=True, autorange="reversed")
    figure.update_layout(barmode="stack")
    reading = "Thresholds were chosen on other worlds or seeds. In time and quiet are right. Large dots: more runs."
    return styled(figure, title=title, reading=reading, height=270 + 44 * len(names))


def _leads(raised: pd.DataFrame, words: Mapping[str, str], color: str) -> go.Scatter:
    """A dot per signal and lead, larger the more runs it stands for."""
    dots = raised.groupby(["signal", "lead_steps"])["run"].agg(list).reset_index()
    told = [
        f"{len(runs)} runs: " + html.escape(", ".join(map(str, runs[:3]))) + " …" * (len(runs) > 3)
        for runs in dots["run"]
    ]
    look = {"color": transparent(color, 0.85), "size": [6 + 4 * len(runs) ** 0.5 for runs in dots["run"]]}
    hover = "%{x:+g} steps<br>%{customdata}<extra></extra>"
    return points(dots["lead_steps"], dots["signal"].map(words), look=look, told=told, hover=hover)


# --- What was varied in a study and what it did: levels of a factor, paired differences, penalties against stopping.


OUTCOMES = {"peak_gold": "gold at the peak", "peak_root_kl": "√KL of the peak (√nats)"}


def plot_sweeps(tables: Mapping[str, pd.DataFrame], title: str = "") -> go.Figure:
    """Height and place of the peak of gold against what was varied: a column per factor, a colour per optimiser.

    `tables` maps the name of a numeric factor, which is a column of its table (log scale), to rows with optimiser,
    world, seed, peak_gold, peak_kl (nats): thin lines are units, thick ones their means.
    """
    if not tables:
        raise WorkbenchError("plot_sweeps got no tables: give at least one factor.")
    figure = make_subplots(rows=2, cols=len(tables), shared_xaxes=True, shared_yaxes="rows", vertical_spacing=0.06)
    for factor, table in tables.items():
        require_columns(table, ["optimiser", "world", "seed", factor, "peak_gold", "peak_kl"], "plot_sweeps")
    optimisers = sorted({name for table in tables.values() for name in table["optimiser"]})
    for column, (factor, table) in enumerate(tables.items(), 1):
        _add_sweep(figure, table, factor, column=column, optimisers=optimisers)
    for row, name in enumerate(OUTCOMES.values(), 1):
        figure.update_yaxes(title=name, row=row, col=1)
    named = [trace for trace in figure.data if trace.name]
    for trace in named:  # each optimiser once in the legend, whichever columns it is in
        trace.showlegend = trace is next(other for other in named if other.name == trace.name)
    reading = "Thick: mean over units (one world and seed each), thin: single units. Every level has the same epochs."
    return styled(figure, title=title or _sweeps_finding(tables), reading=reading, height=620)


def _add_sweep(figure: go.Figure, table: pd.DataFrame, factor: str, *, column: int, optimisers: list[str]) -> None:
    """Both outcomes of one factor in their column."""
    table = table.assign(peak_root_kl=root_kl(table["peak_kl"]))
    for row, outcome in enumerate(OUTCOMES, 1):
        for optimiser, rows in table.groupby("optimiser"):
            look = colored(optimisers.index(optimiser), width=3, size=9)
            figure.add_traces(_levels(rows, factor, outcome, look, name=optimiser), rows=row, cols=column)
    sizes = sorted(table[factor].unique())
    ticks = {"tickvals": sizes, "ticktext": [f"{size:,.0f}" for size in sizes]}
    figure.update_xaxes(type="log", col=column, **ticks).update_xaxes(title=f"{factor} (log scale)", row=2, col=column)


def _sweeps_finding(tables: Mapping[str, pd.DataFrame]) -> str:
    """What gold at the peak is at the lowest and highest level of each factor, under each optimiser."""
    parts = []
    for factor, table in tables.items():
        means = table.groupby(["optimiser", factor])["peak_gold"].mean()
        ends = {name: means[name] for name in table["optimiser"].unique() if len(means[name]) > 1}
        spans = [f"{number(part.iloc[0])} to {number(part.iloc[-1])} ({name})" for name, part in ends.items()]
        told = " and ".join(spans)
        levels = sorted(table[factor].unique())
        parts.append(f"from {levels[0]:,.0f} to {levels[-1]:,.0f} {factor} {told}" if told else "")
    return "Gold at the peak: " + "; ".join(filter(None, parts))


def _levels(rows: pd.DataFrame, factor: str, outcome: str, look: dict, *, name: str) -> list[go.Scatter]:
    units, traces = rows.groupby(["world", "seed"]), []
    for (world, seed), unit in units if units.ngroups > 1 else []:
        unit, said = unit.sort_values(factor), f"world {world}, seed {seed}<br>%{{y:.2f}}<extra></extra>"
        faint = {"color": transparent(look["color"], 0.3), "width": 1}
        traces.append(points(unit[factor], unit[outcome], look=faint, hover=said))
    means, said = rows.groupby(factor)[outcome].mean(), "%{x:,}<br>mean %{y:.2f}<extra>%{fullData.name}</extra>"
    return [*traces, points(means.index, means, name, look, hover=said)]


def plot_effects(effects: pd.DataFrame, title: str = "", *, axis: str) -> go.Figure:
    """Mean differences with 95% intervals, one line each, grouped; the dashed line is no difference.

    Columns group (a colour), level, value, low, high (NaN without an interval), units, significant (a full symbol, the
    others are open). `axis` names the difference.
    """
    require_columns(effects, ["group", "level", "value", "low", "high", "units", "significant"], "plot_effects")
    effects = effects.assign(level=[html.escape(str(level)) for level in effects["level"]])
    figure = go.Figure()
    figure.add_vline(x=0, line=DASHED)
    for i, (group, rows) in enumerate(effects.groupby("group", sort=False)):
        figure.add_trace(_differences(rows, str(group), i))
    levels = list(effects["level"].unique())
    figure.update_yaxes(automargin=True, type="category", categoryorder="array", categoryarray=levels[::-1])
    ends = np.append(effects[["value", "low", "high"]].to_numpy(), 0.0)
    room = 0.06 * (np.nanmax(ends) - np.nanmin(ends)) + 0.005
    figure.update_xaxes(title=axis, range=[np.nanmin(ends) - room, np.nanmax(ends) + room])
    figure.update_layout(scattermode="group", scattergap=0.5)
    reading = (
        "Differences within units (one world and seed); bars: 95% over worlds, each alone. Full symbols are beyond "
        "chance when all differences of this figure are judged together (Holm at 5%), open ones are no finding."
    )
    if effects["low"].isna().all():
        reading = "One unit only, so there are no intervals: take nothing here for a finding."
    height = 230 + 26 * len(levels) + 6 * len(effects)
    return styled(figure, title=title or _effects_finding(effects), reading=reading, height=height)


def _differences(rows: pd.DataFrame, name: str, place: int) -> go.Scatter:
    """The dots of one group with their intervals."""
    told = [f"{row.level}<br>{number(row.value)}, {row.units} units" for row in rows.itertuples()]
    look = colored(place, size=9)
    look["symbol"] = [look["symbol"] if sure else f"{look['symbol']}-open" for sure in rows["significant"]]
    shown = {"told": told, "hover": "%{customdata}<extra>%{fullData.name}</extra>"}
    shown["bars"] = {"error_x": interval(rows["value"], rows["low"], rows["high"])}
    dots = points(rows["value"], rows["level"], name, look, **shown)
    dots.marker.line = {"width": 2, "color": look["color"]}
    return dots.update(orientation="h")  # so that groups stand beside each other on their line


def _effects_finding(effects: pd.DataFrame) -> str:
    """How many differences are significant, and the largest of them."""
    beyond = effects[effects["significant"].astype(bool)]
    if effects["low"].isna().all():
        return f"{len(effects)} differences in a single unit"
    if beyond.empty:
        return f"None of {len(effects)} differences is beyond chance"
    most = beyond.loc[beyond["value"].abs().idxmax()]
    found = f"{len(beyond)} of {len(effects)} differences are beyond chance"
    return f"{found}; most: {most['level']}, {number(most['value'])}"


def plot_score_paths(paths: pd.DataFrame, title: str, *, score: str = "gold") -> go.Figure:
    """A score of several kinds of runs against √KL, one line per label: columns label, kl (nats) and the score.

    Means have its _low and _high, which become bands; a single run may have completion, which becomes its hover.
    """
    require_columns(paths, ["label", "kl", score], "plot_score_paths")
    figure = go.Figure()
    for i, (label, rows) in enumerate(paths.groupby("label", sort=False)):
        figure.add_traces(_score_line(rows, score, str(label), PALETTE[i % len(PALETTE)]))
    add_root_kl_axes(figure, paths["kl"].max())
    figure.update_yaxes(title=axis_label(score))
    banded = f"{score}_low" in paths and paths[f"{score}_low"].notna().any()
    reading = "Means over units at equal KL, as far as the first of their runs goes; bands 95% over units."
    return styled(figure, title=title, reading=reading if banded else "No bands: they need several units.", height=480)


def plot_chosen_pushes(
    curves: pd.DataFrame,
    means: pd.DataFrame,
    *,
    pushed: Sequence[str],
    by: str,
    unit: tuple[int, int] | None,
    score: str,
) -> go.Figure:
    """`plot_score_paths` of the reward models `pushed` by one optimiser: of a unit (world, seed), None for means.

    `curves` and `means` are those of `plot_pushes`. WorkbenchError where there are none.
    """
    table = means if unit is None else curves[(curves["world"] == unit[0]) & (curves["seed"] == unit[1])]
    kept = table[(table["optimiser"] == by) & table["label"].isin(pushed)].dropna(subset=[score])
    if kept.empty:
        chosen = ", ".join(pushed) or "nothing"
        raise WorkbenchError(f"No runs of {by} against {chosen} in this unit: choose another reward model or unit.")
    ends = kept.groupby("label", sort=False)[score].last()
    title = f"{score} under {by}: " + ", ".join(f"{label} ends at {value:.2f}" for label, value in ends.items())
    return plot_score_paths(kept, title, score=score)


def _score_line(rows: pd.DataFrame, score: str, name: str, color: str) -> list[go.Scatter]:
    """The band of a mean, where there is one, and its line."""
    x, look = root_kl(rows["kl"]), {"color": color, "width": 3} | ({"size": 6} if len(rows) < 20 else {})
    told = [f"KL {kl:.2f} nats{text}" for kl, text in zip(rows["kl"], completion_hover(rows), strict=True)]
    shown = {"told": told, "hover": "%{y:.2f}<br>%{customdata}"}
    if f"{score}_low" not in rows or rows[f"{score}_low"].isna().all():
        return [points(x, rows[score], name, look, **shown)]
    return banded(x, rows[score], rows[f"{score}_low"], rows[f"{score}_high"], name, look, opacity=0.18, **shown)


def plot_stopping(means: pd.DataFrame, stopped: pd.DataFrame, title: str) -> go.Figure:
    """Gold on the way of the free runs, and where runs with a price on KL end: above the line, the price gave more.

    `means` has kl (nats), gold, gold_low, gold_high of the free runs; `stopped` one row per kind of priced run: level
    (its name), kl, gold, gold_low, gold_high.
    """
    require_columns(means, ["kl", "gold", "gold_low", "gold_high"], "plot_stopping")
    require_columns(stopped, ["level", "kl", "gold", "gold_low", "gold_high"], "plot_stopping")
    figure = go.Figure(_score_line(means, "gold", "free run, stopped there", PALETTE[1]))
    for i, (_, row) in enumerate(stopped.sort_values("kl").groupby("level", sort=False)):
        look = {"size": 12, "symbol": SYMBOLS[(i + 1) % len(SYMBOLS)], "color": [PALETTE[0], *PALETTE[2:]][i % 5]}
        shown = {"told": row["kl"], "hover": "KL %{customdata:.2f} nats<br>gold %{y:.2f}"}
        shown["bars"] = {"error_y": error_bar(row, "gold")}
        figure.add_trace(points(root_kl(row["kl"]), row["gold"], row["level"].iloc[0], look, **shown))
    add_root_kl_axes(figure, max(means["kl"].max(), stopped["kl"].max()))
    figure.update_yaxes(title="gold reward")
    reading = "Line: mean of the free runs at equal KL. Compare a marker with the line above or below it."
    reading += " Band and bars: 95% over units." if means["gold_low"].notna().any() else " One unit: no intervals."
    return styled(figure, title=title, reading=reading, height=480)
