"""What was varied in a study and what it did: levels of a factor, paired differences, penalties against stopping."""

from __future__ import annotations

import html
from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench import WorkbenchError
from workbench.plots.theme import (
    GREY,
    PALETTE,
    SYMBOLS,
    add_root_kl_axes,
    axis_label,
    band,
    completion_hover,
    number,
    require_columns,
    root_kl,
    styled,
    transparent,
)

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
            i = optimisers.index(optimiser)
            color, symbol = PALETTE[i % len(PALETTE)], SYMBOLS[i % len(SYMBOLS)]
            traces = _levels(rows, factor, outcome, color=color, symbol=symbol, name=optimiser)
            figure.add_traces(traces, rows=row, cols=column)
    sizes = sorted(table[factor].unique())
    ticks = {"tickvals": sizes, "ticktext": [f"{size:,.0f}" for size in sizes]}
    figure.update_xaxes(type="log", col=column, **ticks).update_xaxes(title=f"{factor} (log scale)", row=2, col=column)


def _sweeps_finding(tables: Mapping[str, pd.DataFrame]) -> str:
    """What gold at the peak is at the lowest and highest level of each factor, under each optimiser."""
    parts = []
    for factor, table in tables.items():
        means = table.groupby(["optimiser", factor])["peak_gold"].mean()
        ends = {name: means[name] for name in table["optimiser"].unique() if len(means[name]) > 1}
        told = " and ".join(
            f"{number(part.iloc[0])} to {number(part.iloc[-1])} ({name})" for name, part in ends.items()
        )
        levels = sorted(table[factor].unique())
        parts.append(f"from {levels[0]:,.0f} to {levels[-1]:,.0f} {factor} {told}" if told else "")
    return "Gold at the peak: " + "; ".join(filter(None, parts))


def _levels(rows: pd.DataFrame, factor: str, outcome: str, *, color: str, symbol: str, name: str) -> list[go.Scatter]:
    units = rows.groupby(["world", "seed"])
    faint = {"mode": "lines", "line": {"color": transparent(color, 0.3), "width": 1}, "showlegend": False}
    traces = []
    for (world, seed), unit in units if units.ngroups > 1 else []:
        unit, told = unit.sort_values(factor), f"world {world}, seed {seed}<br>%{{y:.2f}}<extra></extra>"
        traces.append(go.Scatter(x=unit[factor], y=unit[outcome], hovertemplate=told, **faint))
    means = rows.groupby(factor)[outcome].mean()
    look = {"mode": "lines+markers", "line": {"color": color, "width": 3}, "marker": {"size": 9, "symbol": symbol}}
    told = "%{x:,}<br>mean %{y:.2f}<extra>" + html.escape(name) + "</extra>"
    return [*traces, go.Scatter(x=means.index, y=means, name=html.escape(name), hovertemplate=told, **look)]


def plot_effects(effects: pd.DataFrame, title: str = "", *, axis: str) -> go.Figure:
    """Mean differences with 95% intervals, one line each, grouped; the dashed line is no difference.

    Columns group (a colour), level, value, low, high (NaN without an interval), units, significant (a full symbol, the
    others are open). `axis` names the difference.
    """
    require_columns(effects, ["group", "level", "value", "low", "high", "units", "significant"], "plot_effects")
    effects = effects.assign(level=[html.escape(str(level)) for level in effects["level"]])
    figure = go.Figure()
    figure.add_vline(x=0, line={"color": GREY, "width": 1, "dash": "dash"})
    for i, (group, rows) in enumerate(effects.groupby("group", sort=False)):
        figure.add_trace(_differences(rows, html.escape(str(group)), i))
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
    bar = {"array": rows["high"] - rows["value"], "arrayminus": rows["value"] - rows["low"], "symmetric": False}
    told = [f"{row.level}<br>{number(row.value)}, {row.units} units" for row in rows.itertuples()]
    color, symbol = PALETTE[place % len(PALETTE)], SYMBOLS[place % len(SYMBOLS)]
    symbols = [symbol if significant else f"{symbol}-open" for significant in rows["significant"]]
    return go.Scatter(
        x=rows["value"],
        y=rows["level"],
        error_x={"type": "data", "thickness": 1.6, "width": 4, **bar},
        orientation="h",  # so that groups stand beside each other on their line
        mode="markers",
        name=name,
        marker={"size": 9, "color": color, "symbol": symbols, "line": {"width": 2, "color": color}},
        customdata=told,
        hovertemplate="%{customdata}<extra>" + name + "</extra>",
    )


def _effects_finding(effects: pd.DataFrame) -> str:
    """How many differences are significant, and the largest of them."""
    beyond = effects[effects["significant"].astype(bool)]
    if effects["low"].isna().all():
        return f"{len(effects)} differences in a single unit"
    if beyond.empty:
        return f"None of {len(effects)} differences is beyond chance"
    most = beyond.loc[beyond["value"].abs().idxmax()]
    return (
        f"{len(beyond)} of {len(effects)} differences are beyond chance; most: {most['level']}, {number(most['value'])}"
    )


def plot_score_paths(paths: pd.DataFrame, title: str, *, score: str = "gold") -> go.Figure:
    """A score of several kinds of runs against √KL, one line per label: columns label, kl (nats) and the score.

    Means have its _low and _high, which become bands; a single run may have completion, which becomes its hover.
    """
    require_columns(paths, ["label", "kl", score], "plot_score_paths")
    figure = go.Figure()
    for i, (label, rows) in enumerate(paths.groupby("label", sort=False)):
        figure.add_traces(_score_line(rows, score, html.escape(str(label)), PALETTE[i % len(PALETTE)]))
    add_root_kl_axes(figure, paths["kl"].max())
    figure.update_yaxes(title=axis_label(score))
    banded = f"{score}_low" in paths and paths[f"{score}_low"].notna().any()
    reading = "Means over units at equal KL, as far as the first of their runs goes; bands 95% over units."
    return styled(figure, title=title, reading=reading if banded else "No bands: they need several units.", height=480)


def _score_line(rows: pd.DataFrame, score: str, name: str, color: str) -> list[go.Scatter]:
    """The band of a mean, where there is one, and its line."""
    line = go.Scatter(x=root_kl(rows["kl"]), y=rows[score], name=name, line={"color": color, "width": 3})
    texts = zip(rows["kl"], completion_hover(rows), strict=True)
    line.update(mode="lines+markers" if len(rows) < 20 else "lines", hovertemplate="%{y:.2f}<br>%{customdata}")
    line.update(customdata=[f"KL {kl:.2f} nats{text}" for kl, text in texts])
    if f"{score}_low" not in rows or rows[f"{score}_low"].isna().all():
        return [line]
    return [band(root_kl(rows["kl"]), rows[f"{score}_low"], rows[f"{score}_high"], color, 0.18), line]


def plot_stopping(means: pd.DataFrame, stopped: pd.DataFrame, title: str) -> go.Figure:
    """Gold on the way of the free runs, and where runs with a price on KL end: above the line, the price gave more.

    `means` has kl (nats), gold, gold_low, gold_high of the free runs; `stopped` one row per kind of priced run: level
    (its name), kl, gold, gold_low, gold_high.
    """
    require_columns(means, ["kl", "gold", "gold_low", "gold_high"], "plot_stopping")
    require_columns(stopped, ["level", "kl", "gold", "gold_low", "gold_high"], "plot_stopping")
    figure = go.Figure(_score_line(means, "gold", "free run, stopped there", PALETTE[1]))
    for i, row in enumerate(stopped.sort_values("kl").to_dict("records")):
        bar = {"array": [row["gold_high"] - row["gold"]], "arrayminus": [row["gold"] - row["gold_low"]]}
        figure.add_scatter(
            x=[np.sqrt(max(row["kl"], 0))],
            y=[row["gold"]],
            error_y={"type": "data", "symmetric": False, "thickness": 1.6, "width": 5, **bar},
            mode="markers",
            name=html.escape(str(row["level"])),
            marker={"size": 12, "symbol": SYMBOLS[(i + 1) % len(SYMBOLS)], "color": [PALETTE[0], *PALETTE[2:]][i % 5]},
            hovertemplate=f"KL {row['kl']:.2f} nats<br>gold %{{y:.2f}}",
        )
    add_root_kl_axes(figure, max(means["kl"].max(), stopped["kl"].max()))
    figure.update_yaxes(title="gold reward")
    reading = "Line: mean of the free runs at equal KL. Compare a marker with the line above or below it."
    reading += " Band and bars: 95% over units." if means["gold_low"].notna().any() else " One unit: no intervals."
    return styled(figure, title=title, reading=reading, height=480)
