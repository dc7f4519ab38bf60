"""Figures of a world in which everything can be enumerated: paths against the exact frontier, and what samples say."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.plots.marks import points
from workbench.plots.theme import (
    FAINT,
    GREY,
    PALETTE,
    looks,
    require_columns,
    root_kl,
    root_kl_ticks,
    styled,
    styled_beside,
)

TRUTH = {"color": GREY, "width": 2, "dash": "dot"}
LEAST_KL = 1e-3  # nats, shown for all that is less


def plot_exact_paths(
    frontier: pd.DataFrame, paths: pd.DataFrame, *, optimum: tuple[float, float], title: str = ""
) -> go.Figure:
    """Where each method went below the frontier that nothing can pass, and the KL it spent beyond it, log scale.

    `frontier` has kl (nats) and reward; `paths` method, kl, reward, wasted_kl and place (hover: a step, an n), in the
    order of each path; `optimum` is KL and reward of the policy that all aim at. Above reward, below wasted KL.
    """
    require_columns(frontier, ["kl", "reward"], "plot_exact_paths")
    require_columns(paths, ["method", "kl", "reward", "wasted_kl", "place"], "plot_exact_paths")
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.05)
    _add_frontier(figure, frontier.sort_values("kl"))
    for (method, rows), look in _methods(paths):
        for row, column in enumerate(("reward", "wasted_kl"), start=1):
            shown = rows.assign(wasted_kl=rows["wasted_kl"].clip(lower=LEAST_KL))
            figure.add_trace(_exact_path(method, shown, column, look), row=row, col=1)
    star = {"size": 17, "symbol": "star-open", "color": GREY, "line": {"width": 2}}
    for row, y in enumerate((optimum[1], LEAST_KL), start=1):
        look = {"mode": "markers", "marker": star, "showlegend": row == 1, "legendgroup": "π*"}
        figure.add_scatter(x=[math.sqrt(optimum[0])], y=[y], name="π*", **look, row=row, col=1)
    end = 1.06 * math.sqrt(max(paths["kl"].max(), optimum[0]))
    places = root_kl_ticks(end, 0.07 * end)
    ticks = {"tickvals": places, "ticktext": [f"{place**2:.3g}" for place in places]}
    figure.update_xaxes(range=[-0.02 * end, end], **ticks).update_xaxes(title="KL from the reference (nats)", row=2)
    low, high = min(0, paths["reward"].min()), frontier.loc[frontier["kl"] <= end**2, "reward"].max()
    figure.update_yaxes(title="expected reward", range=[low - 0.05 * high, 1.08 * high], row=1)
    figure.update_yaxes(title="wasted KL (nats)", type="log", dtick=1, range=[-3.2, 0.3], row=2)
    reading = "Exact at every point, not sampled. Large symbol: the end. Above the grey line lies no policy at all."
    return styled_beside(figure, title=title or _paths_finding(paths), reading=reading, height=760)


def _exact_path(method: str, rows: pd.DataFrame, column: str, look: dict[str, str]) -> go.Scatter:
    """The path of one method, its end marked."""
    said = zip(rows["place"], rows["kl"], rows["reward"], strict=True)
    told = [f"{html.escape(str(place))}<br>KL {kl:.3f} nats, reward {reward:.3f}" for place, kl, reward in said]
    look = look | {"width": 1.6, "size": [0] * (len(rows) - 1) + [10], "group": method}
    shown = {"told": told, "hover": "%{fullData.name}, %{customdata}<extra></extra>", "legend": column == "reward"}
    return points(root_kl(rows["kl"]), rows[column], method, look, **shown)


def _add_frontier(figure: go.Figure, frontier: pd.DataFrame) -> None:
    """The line, and what lies above it shaded."""
    x, top = root_kl(frontier["kl"]), 2 * frontier["reward"].max()
    forbidden = {"x": [0, *x, x.max(), 0], "y": [0, *frontier["reward"], top, top], "mode": "lines"}
    area = {"fill": "toself", "fillcolor": FAINT, "line": {"width": 0}, "showlegend": False, "hoverinfo": "skip"}
    figure.add_scatter(**forbidden, **area, row=1, col=1)
    hover = "most reward for %{customdata[0]:.3f} nats: %{y:.3f}<extra></extra>"
    look = {"color": GREY, "width": 3}
    line = points(x, frontier["reward"], "exact frontier", look, told=frontier[["kl"]], hover=hover)
    figure.add_trace(line, row=1, col=1)


def _methods(paths: pd.DataFrame) -> Iterator[tuple[tuple[str, pd.DataFrame], dict[str, str]]]:
    """Each method with its rows, and its look."""
    groups = paths.groupby("method", sort=False)
    return zip(groups, looks(groups.ngroups), strict=True)


def _paths_finding(paths: pd.DataFrame) -> str:
    """Who wasted least and who most at the end, in a sentence."""
    ends = paths.groupby("method", sort=False)["wasted_kl"].last()
    return f"{ends.idxmin()} ends {ends.min():.3f} nats from the frontier, {ends.idxmax()} {ends.max():.2f} nats"


def plot_distance_to_optimum(paths: pd.DataFrame, title: str = "") -> go.Figure:
    """KL from each method's policy to the optimum against the share of its training, log scale.

    Columns method, share (of training, 0 to 1) and kl_to_optimum (nats).
    """
    require_columns(paths, ["method", "share", "kl_to_optimum"], "plot_distance_to_optimum")
    figure = go.Figure()
    for (method, rows), look in _methods(paths):
        distance = rows["kl_to_optimum"].clip(lower=1e-5)  # fp32 sees nothing below
        look = {"color": look["color"], "dash": look["dash"], "width": 2}
        hover = "%{fullData.name}<br>%{y:.4f} nats<extra></extra>"
        figure.add_trace(points(rows["share"], distance, method, look, hover=hover))
    figure.update_xaxes(title="share of training", tickformat=".0%", range=[0, 1])
    figure.update_yaxes(title="KL(policy || π*) (nats)", type="log", dtick=1)
    ends = paths.groupby("method", sort=False)["kl_to_optimum"].last()
    near = f"{(ends < 0.02).sum()} of {len(ends)} methods end within 0.02 nats of π*"
    reading = (
        "A line that falls to the end would fall further with more steps; one that levels off has another optimum."
    )
    return styled_beside(figure, title=title or near, reading=reading, height=480)


def plot_kl_estimators(estimates: pd.DataFrame, gradients: pd.DataFrame, title: str = "") -> go.Figure:
    """Three panels against the true KL: each estimator's mean, its spread, and the error of its gradient.

    `estimates` is a table of `kl_estimates`, `gradients` one of `kl_gradients`, of policies at several distances.
    """
    require_columns(estimates, ["kl", "estimator", "mean", "sd"], "plot_kl_estimators")
    require_columns(gradients, ["kl", "estimator", "error"], "plot_kl_estimators")
    names = ("mean (nats)", "spread of one sample (nats)", "error of the gradient (share)")
    figure = make_subplots(rows=1, cols=3, subplot_titles=names, horizontal_spacing=0.08)
    colors = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(gradients["estimator"].unique())}
    short = {name: name.removesuffix(" as a loss") for name in colors}
    for column, (frame, value) in enumerate([(estimates, "mean"), (estimates, "sd"), (gradients, "error")], start=1):
        for name, color in colors.items():
            rows = frame[frame["estimator"].isin([name, short[name]])]
            if len(rows):
                line = _estimator_line(rows, value, short[name], color, legend=frame is gradients)
                figure.add_trace(line, row=1, col=column)
    truth = estimates.drop_duplicates("kl").sort_values("kl")["kl"]
    figure.add_trace(points(truth, truth, "truth", TRUTH), row=1, col=1)
    figure.update_xaxes(title="KL from the reference (nats)", type="log", dtick=1)
    figure.update_yaxes(type="log", dtick=1, row=1, col=2)
    figure.update_yaxes(tickformat=".0%", range=[-0.05, 1.6], row=1, col=3)
    reading = "Each point is one policy, further and further from the reference. An error of 100%: no gradient at all."
    return styled(figure, title=title or _estimators_finding(estimates), reading=reading)


def _estimator_line(rows: pd.DataFrame, value: str, name: str, color: str, *, legend: bool) -> go.Scatter:
    rows, look = rows.sort_values("kl"), {"color": color, "width": 2, "size": 6}
    hover = "%{fullData.name}<br>%{x:.3f} nats: %{y:.3g}<extra></extra>"
    return points(rows["kl"], rows[value], name, look, hover=hover, legend=legend)


def _estimators_finding(estimates: pd.DataFrame) -> str:
    """Up to where k3 scatters less than k1, in a sentence."""
    sizes = estimates.pivot_table(index="kl", columns="estimator", values="sd").sort_index()
    closer = sizes.index[sizes["k3"] < sizes["k1"]]
    if len(closer) == 0:
        return "k3 scatters more than k1 at every distance"
    far = sizes.iloc[-1]
    return (
        f"k3 scatters less than k1 up to about {closer[-1]:.1g} nats, "
        f"and {far['k3'] / far['k1']:,.0f} times as much at {sizes.index[-1]:.1f}"
    )


def plot_improvement_estimates(estimates: pd.DataFrame, title: str = "") -> go.Figure:
    """Two panels against the KL between old and new policy: what old samples say of the improvement, and their spread.

    `estimates` is a table of `improvement_estimates` of new policies at several distances.
    """
    require_columns(estimates, ["kl", "estimator", "improvement", "mean", "sd", "kept"], "plot_improvement_estimates")
    names = ("mean estimate of the improvement", "standard deviation of one sample")
    figure = make_subplots(rows=1, cols=2, subplot_titles=names, horizontal_spacing=0.09)
    groups = list(estimates.groupby("estimator", sort=False))
    for column, value in enumerate(("mean", "sd"), start=1):
        for i, (estimator, rows) in enumerate(groups):
            line = _estimator_line(rows, value, str(estimator), PALETTE[i % len(PALETTE)], legend=column == 1)
            figure.add_trace(line, row=1, col=column)
    truth = groups[0][1].sort_values("kl")
    figure.add_trace(points(truth["kl"], truth["improvement"], "truth", TRUTH, hover="%{y:.3f}"), row=1, col=1)
    figure.update_xaxes(title="KL from the old policy (nats)", type="log", dtick=1).update_yaxes(title="reward")
    figure.update_yaxes(type="log", dtick=math.log10(2), col=2)
    far = truth.iloc[-1]
    finding = f"At {far['kl']:.1f} nats a thousand old samples are worth {1000 * far['kept']:.0f} new ones"
    reading = "All samples come from the old policy. Clipping keeps the spread down by disbelieving large improvements."
    return styled(figure, title=title or finding, reading=reading)
