"""Figures of rewards: how they are distributed, how honest the reward model is, what the gold reward is made of."""

from __future__ import annotations

import html

import pandas as pd
import plotly.graph_objects as go

from workbench.plots.marks import DASHED, banded, colored, error_bar, half_width, points
from workbench.plots.theme import (
    GREY,
    NOTHING,
    PALETTE,
    ROLE_COLORS,
    add_top_axis,
    axis_label,
    completion_hover,
    has_gold,
    number,
    require_columns,
    run_groups,
    styled,
    transparent,
)

QUARTILES = ["lowest gold", "second", "third", "highest gold"]
DOTS = 200  # dots drawn per violin: each carries its completion, thousands would make a heavy page


def plot_reward_distributions(
    samples: pd.DataFrame, by: str = "kind", score: str = "proxy", title: str = ""
) -> go.Figure:
    """Violins of `score` for each value of the column `by`; "gold_quartile" cuts the samples into quarters by gold."""
    require_columns(samples, [score], "plot_reward_distributions")
    if by == "gold_quartile":
        require_columns(samples, ["gold"], "plot_reward_distributions by gold quartile")
        rank = samples["gold"].rank(method="first")  # equal golds are common: quarters by rank, not by value
        samples = samples.assign(gold_quartile=pd.qcut(rank, 4, labels=QUARTILES))
    require_columns(samples, [by], "plot_reward_distributions")
    figure = go.Figure()
    for i, (group, rows) in enumerate(samples.groupby(by, observed=True)):
        figure.add_traces(_violin_with_dots(html.escape(str(group)), rows, score, PALETTE[i % len(PALETTE)]))
    figure.update_xaxes(title=by.replace("_", " ")).update_yaxes(title=axis_label(score))
    medians = samples.groupby(by, observed=True)[score].median()
    title = title or (
        f"“{medians.idxmax()}” has the highest median score ({number(medians.max())}), "
        f"“{medians.idxmin()}” the lowest ({number(medians.min())})"
    )
    return styled(figure, title=title, reading="Box: middle half and median. Point at a dot for its completion.")


def _violin_with_dots(name: str, rows: pd.DataFrame, score: str, color: str) -> list[go.Violin]:
    """The violin of all rows, and an invisible one that carries the dots of some of them."""
    some = rows if len(rows) <= DOTS else rows.sample(DOTS, random_state=0)
    violin = go.Violin(x=[name] * len(rows), y=rows[score], points=False, hoverinfo="skip", box={"width": 0.1})
    dots = go.Violin(
        x=[name] * len(some),
        y=some[score],
        customdata=completion_hover(some),
        hovertemplate="%{y:.2f}%{customdata}<extra></extra>",
        hoveron="points",
        points="all",
        pointpos=0,
        jitter=0.6,
        marker={"size": 3, "opacity": 0.5, "color": color},
        line={"width": 0},
        fillcolor=NOTHING,
    )
    return [violin.update(line={"color": color, "width": 1.5}), dots]


def plot_calibration(table: pd.DataFrame, title: str = "") -> go.Figure:
    """Observed share against predicted probability in each bin of a `reliability_table`, with 95% intervals."""
    require_columns(table, ["predicted", "observed", "count"], "plot_calibration")
    figure = go.Figure(points([0, 1], [0, 1]))
    look = {"color": PALETTE[0], "width": 1.2, "size": 6 + 10 * (table["count"] / table["count"].max()) ** 0.5}
    shown = {"told": table["count"], "bars": {"error_y": error_bar(table, "observed")}}
    shown["hover"] = "predicted %{x:.2f}<br>observed %{y:.2f}<br>%{customdata} samples<extra></extra>"
    figure.add_trace(points(table["predicted"], table["observed"], look=look, **shown))
    figure.update_xaxes(title="predicted probability that the first is better")
    figure.update_yaxes(title="share in which it was")
    gap = (table["observed"] - table["predicted"]).abs()
    worst = table.loc[gap.idxmax()]
    found = f"Largest gap {gap.max():.2f}: predicted {worst['predicted']:.2f}, observed {worst['observed']:.2f}"
    reading = (
        "On the dashed line probabilities mean what they say; flatter is overconfident. Larger dots hold more pairs."
    )
    return styled(figure, title=title or found, reading=reading)


def plot_accuracy_bars(table: pd.DataFrame, title: str = "") -> go.Figure:
    """Pairwise accuracy per `group`, one bar for each thing it was `measured_against` (labels, gold), 95% intervals."""
    require_columns(table, ["group", "measured_against", "accuracy"], "plot_accuracy_bars")
    figure = go.Figure()
    for i, (against, rows) in enumerate(table.groupby("measured_against", sort=False)):
        figure.add_trace(_bars(rows["group"], rows, "accuracy", name=f"against {against}", place=i))
    figure.add_hline(y=0.5, line=DASHED)
    figure.update_yaxes(title=axis_label("accuracy"), range=[0, 1.02])
    worst, best = table.loc[table["accuracy"].idxmin()], table.loc[table["accuracy"].idxmax()]
    title = title or (
        f"Most accurate on {best['group']} ({best['accuracy']:.2f} against {best['measured_against']}), "
        f"least on {worst['group']} ({worst['accuracy']:.2f} against {worst['measured_against']})"
    )
    reading = "Share of pairs put in the right order, with 95% intervals. Dashed: guessing."
    return styled(figure, title=title, reading=reading)


def plot_gold_components(frame: pd.DataFrame, title: str = "") -> go.Figure:
    """Mean of each gold `component` for each `run`, with 95% intervals where the table has value_se."""
    require_columns(frame, ["run", "component", "value"], "plot_gold_components")
    figure = go.Figure()
    for i, (run, rows) in enumerate(run_groups(frame)):
        figure.add_trace(_bars(rows["component"], rows, "value", name=run, place=i))
    figure.add_hline(y=0, line={"color": GREY, "width": 1})
    figure.update_yaxes(title="part of the gold reward")
    values = frame.groupby("component")["value"]
    spread = values.max() - values.min()
    title = title or f"Runs differ most in “{spread.idxmax()}”: {number(spread.max())} of gold reward between them"
    reading = "The bars of one run add up to its gold reward. Look for a part that fell while others rose."
    return styled(figure, title=title, reading=reading)


def _bars(names: pd.Series, rows: pd.DataFrame, column: str, *, name: str, place: int) -> go.Bar:
    """Pale bars, so that the error bars inside them are seen on any page."""
    color = PALETTE[place % len(PALETTE)]
    look = {"color": transparent(color, 0.45), "line": {"color": color, "width": 1.2}}
    shown = {"x": [html.escape(str(each)) for each in names], "hovertemplate": "%{x}<br>%{y:.3f}", "marker": look}
    return go.Bar(y=rows[column], error_y={**error_bar(rows, column), "color": color}, name=html.escape(name), **shown)


# --- Reward models by size: what more weights and a trained start are worth.


STARTS = {"sft": "from the SFT model", "scratch": "from scratch"}


def plot_accuracy_by_size(table: pd.DataFrame, title: str = "") -> go.Figure:
    """Held-out accuracy against the number of weights (log scale), one line per start, 95% intervals.

    `table` is that of `accuracy_by_size`; the dashed line is the size of the policy whose answers are judged.
    """
    require_columns(table, ["model", "start", "parameters", "accuracy", "measured_against"], "plot_accuracy_by_size")
    figure = go.Figure()
    for i, (start, rows) in enumerate(table.groupby("start", sort=False)):
        told = [html.escape(str(model)) for model in rows["model"]]
        shown = {"told": told, "hover": "%{customdata}<br>%{x:,} weights<br>accuracy %{y:.3f}"}
        shown["bars"], look = {"error_y": error_bar(rows, "accuracy")}, colored(i, size=9, width=2)
        figure.add_trace(points(rows["parameters"], rows["accuracy"], STARTS.get(start, start), look, **shown))
    sizes = sorted(table["parameters"].unique())
    ticks = {"tickvals": sizes, "ticktext": [f"{size:,.0f}" for size in sizes]}
    figure.update_xaxes(title="weights of the reward model", type="log", **ticks)
    figure.update_yaxes(title=f"accuracy against {table['measured_against'].iloc[0]} (share of pairs)")
    reading = "Error bars: 95%, over runs that differ in their seed, or over prompts where there is one run."
    if "policy_parameters" in table and table["policy_parameters"].notna().any():
        size = table["policy_parameters"].dropna().iloc[0]
        figure.add_vline(x=size, line=DASHED)
        reading += " Dashed: the policy's size."
    return styled(figure, title=title or _size_finding(table), reading=reading)


def _size_finding(table: pd.DataFrame) -> str:
    """What the best model of each start reaches."""
    best = table.loc[table.groupby("start")["accuracy"].idxmax()]
    parts = [
        f"{STARTS.get(row.start, row.start)} {number(row.accuracy)} at {row.parameters:,.0f} weights"
        for row in best.sort_values("accuracy", ascending=False).itertuples()
    ]
    return f"Best accuracy: {', '.join(parts)}"


# --- Best-of-n: reward against the number of samples chosen from.


def plot_best_of_n(curve: pd.DataFrame, title: str = "") -> go.Figure:
    """A `best_of_n_curve`: proxy, gold and the random control against n (log scale), KL above, 95% bands."""
    require_columns(curve, ["n", "kl", "proxy", "proxy_se"], "plot_best_of_n")
    figure = go.Figure()
    names = {"proxy": axis_label("proxy")} | ({"gold": axis_label("gold")} if has_gold(curve) else {})
    for column, name in names.items():
        figure.add_traces(_line_with_band(curve, column, name))
    reading = "Bands: 95% over prompts."
    if has_gold(curve, "random_gold"):
        figure.add_trace(points(curve["n"], curve["random_gold"], "gold, picked at random", hover="%{y:.2f}"))
        reading += " Compare gold with picking at random. A highest point flatters a noisy curve."
    ticks = curve if len(curve) <= 9 else curve[curve["n"].map(lambda n: int(n) & (int(n) - 1) == 0)]  # powers of two
    figure.update_xaxes(title="n, completions per prompt to choose from", type="log", tickvals=ticks["n"])
    add_top_axis(figure, list(ticks["n"]), [f"{kl:.2f}" for kl in ticks["kl"]], "KL (nats, upper bound)")
    figure.update_yaxes(title="reward of the chosen completion")
    return styled(figure, title=title or _peak_finding(curve), reading=reading, height=480)


def _line_with_band(curve: pd.DataFrame, column: str, name: str) -> list[go.Scatter]:
    """The line with hover and, behind it, its interval."""
    half, y = half_width(curve, f"{column}_se").fillna(0), curve[column]
    look = {"color": ROLE_COLORS[column], "width": 2.4} | ({"size": 6} if len(curve) <= 12 else {})
    hover = "n = %{x}<br>%{y:.2f} ± %{customdata[1]:.2f} (standard error)<br>KL ≤ %{customdata[0]:.2f} nats"
    told = curve[["kl", f"{column}_se"]]
    return banded(curve["n"], y, y - half, y + half, name, look, opacity=0.2, told=told, hover=hover)


def _peak_finding(curve: pd.DataFrame) -> str:
    """Where gold is highest, in a sentence; the proxy rises with n by construction."""
    first, last = curve.iloc[0], curve.iloc[-1]
    if not has_gold(curve):
        return f"The proxy rises from {number(first['proxy'])} to {number(last['proxy'])}, as choosing by it must"
    best = curve.loc[curve["gold"].idxmax()]
    end = f"{number(last['gold'])} at n = {last['n']:.0f}"
    if best["n"] == last["n"]:
        return f"Gold is still highest at the largest n: {end}"
    return f"Gold is highest near n = {best['n']:.0f} ({number(best['gold'])}) and {end}, while the proxy rises"


def plot_accuracy_by_choice(table: pd.DataFrame, title: str = "", reading: str = "") -> go.Figure:
    """An `accuracy_by_choice` table: share of right choices against n (log scale), a line per choice, 95% bands."""
    require_columns(table, ["n", "choice", "accuracy", "accuracy_se"], "plot_accuracy_by_choice")
    figure, ends = go.Figure(), {}
    for place, (choice, rows) in enumerate(table.groupby("choice", sort=False)):
        half, y, look = half_width(rows, "accuracy_se").fillna(0), rows["accuracy"], colored(place, width=2.2, size=7)
        hover = "n = %{x}<br>%{y:.1%}"
        figure.add_traces(banded(rows["n"], y, (y - half).clip(0), (y + half).clip(upper=1), choice, look, hover=hover))
        ends[choice] = y.iloc[-1]
    sizes = sorted(table["n"].unique())
    figure.update_xaxes(title="n, completions per prompt to choose from", type="log", tickvals=sizes)
    figure.update_yaxes(title="share of prompts answered right", tickformat=".0%")
    told = ", ".join(f"{choice} {value:.0%}" for choice, value in sorted(ends.items(), key=lambda end: -end[1]))
    usual = "Bands: 95% over prompts. What lies below the oracle is there and was not chosen; chance knows nothing."
    return styled(figure, title=title or f"Right of {sizes[-1]}: {told}", reading=reading or usual, height=480)
