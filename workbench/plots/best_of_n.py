"""Best-of-n: reward against the number of samples chosen from."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from workbench.plots.theme import (
    GREY,
    ROLE_COLORS,
    add_top_axis,
    axis_label,
    band,
    has_gold,
    number,
    require_columns,
    styled,
)


def plot_best_of_n(curve: pd.DataFrame, title: str = "") -> go.Figure:
    """A `best_of_n_curve`: proxy, gold and the random control against n (log scale), KL above, 95% bands."""
    require_columns(curve, ["n", "kl", "proxy", "proxy_se"], "plot_best_of_n")
    figure = go.Figure()
    names = {"proxy": axis_label("proxy")} | ({"gold": axis_label("gold")} if has_gold(curve) else {})
    for column, name in names.items():
        figure.add_traces(_line_with_band(curve, column, name))
    reading = "Bands: 95% over prompts."
    if has_gold(curve, "random_gold"):
        line = {"color": GREY, "dash": "dash", "width": 1.6}
        control = {"name": "gold, picked at random", "hovertemplate": "%{y:.2f}"}
        figure.add_scatter(x=curve["n"], y=curve["random_gold"], mode="lines", line=line, **control)
        reading += " Compare gold with picking at random. A highest point flatters a noisy curve."
    ticks = curve if len(curve) <= 9 else curve[curve["n"].map(lambda n: int(n) & (int(n) - 1) == 0)]  # powers of two
    figure.update_xaxes(title="n, completions per prompt to choose from", type="log", tickvals=ticks["n"])
    add_top_axis(figure, list(ticks["n"]), [f"{kl:.2f}" for kl in ticks["kl"]], "KL (nats, upper bound)")
    figure.update_yaxes(title="reward of the chosen completion")
    return styled(figure, title=title or _finding(curve), reading=reading, height=480)


def _line_with_band(curve: pd.DataFrame, column: str, name: str) -> list[go.Scatter]:
    """The line with hover and, behind it, its interval."""
    color, half = ROLE_COLORS[column], 1.96 * curve[f"{column}_se"].fillna(0)
    around = band(curve["n"], curve[column] - half, curve[column] + half, color, 0.2).update(legendgroup=name)
    line = go.Scatter(
        x=curve["n"],
        y=curve[column],
        name=name,
        legendgroup=name,
        mode="lines+markers" if len(curve) <= 12 else "lines",
        line={"color": color, "width": 2.4},
        customdata=curve[["kl", f"{column}_se"]],
        hovertemplate="n = %{x}<br>%{y:.2f} ± %{customdata[1]:.2f} (standard error)<br>KL ≤ %{customdata[0]:.2f} nats",
    )
    return [around, line]


def _finding(curve: pd.DataFrame) -> str:
    """Where gold is highest, in a sentence; the proxy rises with n by construction."""
    first, last = curve.iloc[0], curve.iloc[-1]
    if not has_gold(curve):
        return f"The proxy rises from {number(first['proxy'])} to {number(last['proxy'])}, as choosing by it must"
    best = curve.loc[curve["gold"].idxmax()]
    end = f"{number(last['gold'])} at n = {last['n']:.0f}"
    if best["n"] == last["n"]:
        return f"Gold is still highest at the largest n: {end}"
    return f"Gold is highest near n = {best['n']:.0f} ({number(best['gold'])}) and {end}, while the proxy rises"
