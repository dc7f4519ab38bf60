"""KL itself, drawn: what best-of-n costs, where in a completion it is spent, at what price, how well it is known."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench import WorkbenchError
from workbench.plots.theme import (
    FAINT,
    GREY,
    PALETTE,
    PATTERNS,
    axis_label,
    band,
    number,
    require_columns,
    spoken,
    styled,
)
from workbench.studies.budget.figures import method_looks

PRICES = ("kl_coef", "kl", "gold", "reward")  # panels of `plot_coefficients`, those that were written
PRICE_LABELS = {"kl_coef": "coefficient (reward per nat)", "reward": "reward that is optimised"}


def plot_best_of_n_kl(curve: pd.DataFrame, title: str = "") -> go.Figure:
    """The KL of best-of-n against n (log scale): the bound log n - (n-1)/n, what pools measured, and the gap below.

    Columns n, kl_bound, kl and, where there are several pools, kl_low and kl_high (nats, 95%).
    """
    require_columns(curve, ["n", "kl_bound", "kl"], "plot_best_of_n_kl")
    n, bound = curve["n"], curve["kl_bound"]
    low, high = (curve.get(name, curve["kl"] * math.nan) for name in ("kl_low", "kl_high"))
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.62, 0.38])
    dashed = {"mode": "lines", "line": {"color": GREY, "width": 2, "dash": "dash"}, "name": "bound"}
    figure.add_scatter(x=n, y=bound, hovertemplate="n = %{x}<br>at most %{y:.3f} nats", **dashed, row=1, col=1)
    line = {"mode": "lines+markers", "line": {"color": PALETTE[0], "width": 2.4}, "marker": {"size": 6}}
    for row, values, ends in ((1, curve["kl"], (low, high)), (2, bound - curve["kl"], (bound - high, bound - low))):
        look = {"name": "measured from pools", "showlegend": row == 1, "hovertemplate": "n = %{x}<br>%{y:.4f} nats"}
        figure.add_trace(band(n, *ends, PALETTE[0]), row=row, col=1)
        figure.add_scatter(x=n, y=values, **line, **look, row=row, col=1)
    figure.update_xaxes(type="log", tickvals=[2**power for power in range(int(n.max()).bit_length())])
    figure.update_xaxes(title="n, completions per prompt to choose from", row=2)
    figure.update_yaxes(title="KL(best-of-n || policy) (nats)", row=1).update_yaxes(title="bound less it (nats)", row=2)
    last = f"n = {n.iloc[-1]:.0f} best-of-n costs {number(curve['kl'].iloc[-1])} nats"
    reading = (
        "The bound is met where no two draws are alike. A likely completion that comes again and again costs less."
    )
    finding = f"At {last}, its bound says {number(bound.iloc[-1])}"
    return styled(figure, title=title or finding, reading=reading, height=520)


def plot_kl_positions(positions: pd.DataFrame, title: str = "", among: Iterable[str] = ()) -> go.Figure:
    """Where KL is spent: nats at each token position of every method, and below them nats per kind of prompt.

    Columns of `positions_at`: experiment, kind ("all" and each), position (from 1), kl (nats per completion), low,
    high. A method has the colour that it has `among` all of these.
    """
    require_columns(positions, ["experiment", "kind", "position", "kl", "low", "high"], "plot_kl_positions")
    kinds = positions[positions["kind"] != "all"].groupby(["experiment", "kind"], sort=False)["kl"].sum().reset_index()
    rows, looks = 1 + (kinds["kind"].nunique() > 1), method_looks([*positions["experiment"], *among])
    figure = make_subplots(rows=rows, cols=1, vertical_spacing=0.18)
    for name, part in positions[positions["kind"] == "all"].groupby("experiment", sort=False):
        for trace in _spending(part.sort_values("position"), name, looks[name]):
            figure.add_trace(trace, row=1, col=1)
        here = kinds[kinds["experiment"] == name]
        bars = {"marker": {"color": looks[name]["color"], "pattern": {"shape": PATTERNS[looks[name]["dash"]]}}}
        if rows == 2:
            hover = f"{html.escape(spoken(name))}<br>%{{x}}: %{{y:.2f}} nats<extra></extra>"
            group = {"legendgroup": name, "showlegend": False, "hovertemplate": hover}
            figure.add_bar(x=here["kind"], y=here["kl"], **bars, **group, row=2, col=1)
    figure.update_xaxes(title="token position in the completion", row=1).update_yaxes(title="KL at it (nats)", row=1)
    if rows == 2:
        figure.update_xaxes(title="kind of prompt", row=2).update_yaxes(title="KL per completion (nats)", row=2)
    reading = (
        "Above: summed over positions a line gives its method's KL; bands: 95% over runs. Below: the same by kind."
    )
    title = title or _spending_finding(positions[positions["kind"] == "all"], kinds)
    return styled(figure, title=title, reading=reading, height=430 + 250 * (rows == 2))


def _spending(rows: pd.DataFrame, name: str, look: dict[str, str]) -> list[go.Scatter]:
    line = go.Scatter(
        x=rows["position"],
        y=rows["kl"],
        name=html.escape(spoken(name)),
        legendgroup=name,
        mode="lines",
        line={"color": look["color"], "dash": look["dash"], "width": 2.2},
        hovertemplate=f"{html.escape(spoken(name))}<br>position %{{x}}: %{{y:.3f}} nats<extra></extra>",
    )
    return [band(rows["position"], rows["low"], rows["high"], look["color"]).update(legendgroup=name), line]


def _spending_finding(everything: pd.DataFrame, kinds: pd.DataFrame) -> str:
    """By which position half of the KL is spent, over all methods, and on which kind of prompt most."""
    shares = everything.groupby("position")["kl"].sum().sort_index()
    half = int((shares.cumsum() >= shares.sum() / 2).idxmax())
    text = f"Half of the KL is spent within the first {f'{half} tokens' if half > 1 else 'token'}"
    if kinds["kind"].nunique() < 2:
        return text
    most = kinds.groupby("kind")["kl"].mean()
    return f"{text}; most per completion on {most.idxmax()}, least on {most.idxmin()}"


def plot_coefficients(
    training: pd.DataFrame, title: str = "", *, target: float = 0.0, among: Iterable[str] = ()
) -> go.Figure:
    """Price of KL, KL and reward along training of every experiment, panels below one another, bands 95% over runs.

    Columns of `training_over_units`: experiment, step and any of `PRICES` with `_low`, `_high`; `target` in nats.
    A method has the colour that it has `among` all of these.
    """
    shown = [column for column in PRICES if column in training][:3]
    require_columns(training, ["experiment", "step", "kl_coef", "kl"], "plot_coefficients")
    looks = method_looks([*training["experiment"], *among])
    figure = make_subplots(rows=len(shown), cols=1, shared_xaxes=True, vertical_spacing=0.05)
    for name, part in training.groupby("experiment", sort=False):
        for row, column in enumerate(shown, start=1):
            for trace in _course(part, column, name, looks[name], legend=row == 1):
                figure.add_trace(trace, row=row, col=1)
    for row, column in enumerate(shown, start=1):
        figure.update_yaxes(title=PRICE_LABELS.get(column, axis_label(column)), row=row)
    if target:
        figure.add_hline(y=target, line={"dash": "dot", "color": GREY}, row=2, col=1)
    figure.update_xaxes(title="training step", row=len(shown))
    reading = "Running means over 5 steps, and over runs; bands: 95% over runs." + (
        " Dotted: the target." * (target > 0)
    )
    title = title or _price_finding(training, target)
    return styled(figure, title=title, reading=reading, height=210 + 190 * len(shown))


def _course(rows: pd.DataFrame, column: str, name: str, look: dict[str, str], *, legend: bool) -> list[go.Scatter]:
    rows = rows.dropna(subset=column).sort_values("step")
    line = go.Scatter(
        x=rows["step"],
        y=rows[column],
        name=html.escape(spoken(name)),
        legendgroup=name,
        showlegend=legend,
        mode="lines",
        line={"color": look["color"], "dash": look["dash"], "width": 2.2},
        hovertemplate=f"{html.escape(spoken(name))}<br>step %{{x}}: %{{y:.3f}}<extra></extra>",
    )
    around = band(rows["step"], rows[f"{column}_low"], rows[f"{column}_high"], look["color"])
    return [around.update(legendgroup=name), line]


def _price_finding(training: pd.DataFrame, target: float) -> str:
    """Where the KL of each experiment ends, lowest and highest, in a sentence."""
    ends = training.sort_values("step").groupby("experiment")["kl"].last()
    text = (
        f"Training ends between {number(ends.min())} nats ({spoken(ends.idxmin())}) and {number(ends.max())} "
        f"({spoken(ends.idxmax())})"
    )
    return text + (f"; the target was {target:g}" if target else "")


def plot_estimator_errors(errors: pd.DataFrame, title: str = "") -> go.Figure:
    """How far k1 and k3 are from the exact KL of the same completions on average, and how much one completion scatters.

    Columns of `estimators_along`: estimator, step, mean, bias, bias_se, sd (nats per completion). Both against the KL.
    """
    require_columns(errors, ["estimator", "step", "mean", "bias", "bias_se", "sd"], "plot_estimator_errors")
    truth = errors[errors["estimator"] == "exact"].set_index("step")["mean"]
    errors = errors[errors["step"].isin(truth.index[truth > 0])]
    if errors.empty:
        raise WorkbenchError("The exact KL is 0 at every step: these policies never left the one they started from.")
    names = ("mean difference from the exact KL (share of it)", "spread of one completion (nats)")
    figure = make_subplots(rows=1, cols=2, subplot_titles=names, horizontal_spacing=0.09)
    colors = dict(zip(("exact", "k1", "k3"), (GREY, PALETTE[0], PALETTE[1]), strict=True))
    for name, rows in errors.groupby("estimator", sort=False):
        rows = rows.assign(kl=rows["step"].map(truth)).sort_values("kl")
        look = {"name": name, "legendgroup": name, "mode": "lines+markers", "line": {"color": colors[name], "width": 2}}
        hover = f"{name}<br>KL %{{x:.2f}} nats: %{{y:.3f}}<extra></extra>"
        bars = {"type": "data", "array": 1.96 * rows["bias_se"] / rows["kl"], "thickness": 1.4, "width": 4}
        if name != "exact":
            shown = {"x": rows["kl"], "y": rows["bias"] / rows["kl"], "error_y": bars, "showlegend": False}
            figure.add_trace(go.Scatter(**shown, hovertemplate=hover, **look), row=1, col=1)
        figure.add_trace(go.Scatter(x=rows["kl"], y=rows["sd"], hovertemplate=hover, **look), row=1, col=2)
    figure.add_hline(y=0, line={"color": FAINT, "width": 2}, row=1, col=1)
    figure.update_xaxes(title="exact KL (nats)", type="log", dtick=1).update_yaxes(type="log", dtick=1, row=1, col=2)
    figure.update_yaxes(tickformat=".0%", row=1, col=1)
    reading = "One point per measured step, all runs together; bars: 95% over completions. Left, 0 is no bias."
    return styled(figure, title=title or _estimator_finding(errors), reading=reading)


def _estimator_finding(errors: pd.DataFrame) -> str:
    """How often the means agree within their errors, and how much more a completion scatters, in a sentence."""
    sampled = errors[errors["estimator"] != "exact"]
    agree = int((sampled["bias"].abs() <= 1.96 * sampled["bias_se"]).sum())
    spread = errors.pivot_table(index="step", columns="estimator", values="sd")
    spread = spread[spread["exact"] > 0]
    text = f"{agree} of {len(sampled)} means agree with the exact KL"
    if spread.empty:
        return text
    times = {name: f"{(spread[name] / spread['exact']).median():.1f} times ({name})" for name in ("k1", "k3")}
    return f"{text}; a completion scatters {times['k1']} and {times['k3']} as much"
