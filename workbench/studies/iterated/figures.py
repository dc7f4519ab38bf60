"""Figures of a policy whose reward model is fitted anew between rounds: what it earns, and what the models know."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.plots.theme import (
    GREY,
    PALETTE,
    ROLE_COLORS,
    SYMBOLS,
    axis_label,
    band,
    completion_hover,
    number,
    require_columns,
    styled,
    transparent,
)


def plot_rounds(means: pd.DataFrame, rounds: pd.DataFrame, title: str = "") -> go.Figure:
    """Gold and proxy against the training step, KL below, a dashed line where a reward model was fitted.

    `means` has step, kl, gold, proxy, their errors as <name>_se and perhaps a completion to show; `rounds` is that of
    `iterated.round_table`. The proxy is that of the round's own reward model, so its line begins anew with each.
    """
    require_columns(means, ["step", "kl", "gold", "proxy"], "plot_rounds")
    require_columns(rounds, ["round", "reward_model", "start", "end", "proxy_start"], "plot_rounds")
    means = means.sort_values("step").assign(said=completion_hover(means))
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.7, 0.3], vertical_spacing=0.06)
    figure.add_traces(_line(means, "gold", ROLE_COLORS["gold"]), rows=1, cols=1)
    for place, part in enumerate(rounds.to_dict("records")):
        inside = means[(means["step"] > part["start"]) & (means["step"] <= part["end"])]
        begin = {"step": part["start"], "proxy": part["proxy_start"], "proxy_se": part.get("proxy_start_se", 0.0)}
        lines = _line(pd.concat([pd.DataFrame([begin]), inside]), "proxy", ROLE_COLORS["proxy"])
        lines[-1].update(showlegend=not place, legendgroup="proxy")
        figure.add_traces(lines, rows=1, cols=1)
    figure.add_traces(_line(means, "kl", PALETTE[2]), rows=2, cols=1)
    for start in rounds.loc[rounds["reward_model"] == rounds["round"], "start"]:
        figure.add_vline(x=start, line={"color": GREY, "width": 1, "dash": "dash"})
    figure.update_yaxes(title="reward", row=1, col=1).update_yaxes(title="KL (nats)", rangemode="tozero", row=2, col=1)
    figure.update_xaxes(title=axis_label("step"), row=2, col=1)
    reading = "Dashed: a reward model was fitted; the proxy is that of the latest. Bands: 95% over held-out prompts."
    return styled(figure, title=title or _rounds_finding(means), reading=reading, height=560)


def _line(frame: pd.DataFrame, column: str, color: str) -> list[go.Scatter]:
    """The band of a column and its line, which the legend names."""
    errors = frame[f"{column}_se"].fillna(0) if f"{column}_se" in frame else 0.0
    steps, said = frame["step"].tolist(), frame["said"].fillna("")
    around = band(steps, frame[column] - 1.96 * errors, frame[column] + 1.96 * errors, color, 0.18)
    line = go.Scatter(
        x=steps,
        y=frame[column],
        name={"kl": "KL"}.get(column, column),
        mode="lines+markers",
        line={"color": color, "width": 2.2},
        marker={"size": 6},
        customdata=[f"step {step}{text}" for step, text in zip(steps, said, strict=True)],
        hovertemplate="%{customdata}<br>%{y:.2f}",
    )
    return [around, line]


def _rounds_finding(means: pd.DataFrame) -> str:
    """Where gold ends and where it was highest, in a sentence."""
    gold = means.sort_values("step")["gold"]
    first, last = gold.iloc[0], gold.iloc[-1]
    fall = gold.max() - last
    ended = f"Gold reward goes from {number(first)} to {number(last)}"
    return f"{ended}, {number(fall)} below its highest point" if fall >= 0.05 else f"{ended}, about its highest"


def plot_arms(curves: pd.DataFrame) -> go.Figure:
    """Gold against the training step for each way of asking for labels, KL below: a thin line per run, and their means.

    `curves` is that of `iterated_arms.iterated_arms`: label, run, step, gold, kl.
    """
    require_columns(curves, ["label", "run", "step", "gold", "kl"], "plot_arms")
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.6, 0.4], vertical_spacing=0.06)
    labels, ends = sorted(curves["label"].unique()), []
    for i, label in enumerate(labels):
        runs, color = curves[curves["label"] == label], PALETTE[i % len(PALETTE)]
        mean = runs.groupby("step", as_index=False)[["gold", "kl"]].mean()
        ends.append(f"{number(mean['gold'].iloc[-1])} with {label}")
        for place, column in enumerate(("gold", "kl"), start=1):
            for run, part in runs.groupby("run"):
                thin = {"color": transparent(color, 0.4), "width": 1}
                figure.add_trace(_plain_line(part, column, line=thin, name=run, showlegend=False), row=place, col=1)
            thick = {"line": {"color": color, "width": 3}, "legendgroup": label, "showlegend": place == 1}
            figure.add_trace(_plain_line(mean, column, name=label, **thick), row=place, col=1)
    figure.update_yaxes(title="gold reward", row=1, col=1)
    figure.update_yaxes(title="KL (nats)", rangemode="tozero", row=2, col=1)
    figure.update_xaxes(title=axis_label("step"), row=2, col=1)
    reading = "Thick: means over units (one world and seed each); thin: single units."
    return styled(figure, title="Gold ends at " + ", ".join(ends), reading=reading, height=520)


def _plain_line(frame: pd.DataFrame, column: str, **look) -> go.Scatter:
    """A line of a column against the step, whose hover names it."""
    found = {"x": frame["step"], "y": frame[column], "mode": "lines"}
    return go.Scatter(**found, hovertemplate=f"step %{{x}}: {axis_label(column)} %{{y:.2f}}", **look)


def plot_reward_model_reach(reach: pd.DataFrame, rounds: pd.DataFrame, title: str = "") -> go.Figure:
    """Accuracy against gold of every round's reward model on what the policy said at each step.

    `reach` is the table of `iterated.reach_of_rewards`, `rounds` that of `iterated.round_table`. Strong where the model
    was in use, with 95% intervals over prompts; faint before and after.
    """
    require_columns(reach, ["reward_model", "step", "accuracy", "accuracy_se"], "plot_reward_model_reach")
    require_columns(rounds, ["reward_model", "start", "end"], "plot_reward_model_reach")
    figure = go.Figure()
    figure.add_hline(y=0.5, line={"color": GREY, "width": 1, "dash": "dash"}, annotation_text="a coin")
    for i, (fitted, part) in enumerate(reach.groupby("reward_model")):
        used = rounds[rounds["reward_model"] == fitted]
        part = part.sort_values("step")
        now = part[part["step"].between(used["start"].min(), used["end"].max())]
        color, name = PALETTE[i % len(PALETTE)], f"fitted in round {fitted}"
        faint = {"color": transparent(color, 0.4), "width": 1.5, "dash": "dot"}
        figure.add_scatter(
            x=part["step"], y=part["accuracy"], mode="lines", line=faint, showlegend=False, hoverinfo="skip"
        )
        figure.add_scatter(
            x=now["step"],
            y=now["accuracy"],
            error_y={"type": "data", "array": 1.96 * now["accuracy_se"].fillna(0), "thickness": 1.5, "width": 4},
            name=name,
            mode="lines+markers",
            line={"color": color, "width": 2.6},
            marker={"size": 9, "symbol": SYMBOLS[i % len(SYMBOLS)]},
            hovertemplate="answers at step %{x}<br>%{y:.1%} ordered as by gold",
        )
    figure.update_xaxes(title="training step at which the policy answered")
    figure.update_yaxes(title="accuracy against gold (share of pairs)", tickformat=".0%")
    reading = "Strong: while it was the policy's reward, 95% over prompts. Dotted: the same model on other answers."
    return styled(figure, title=title or _reach_finding(reach, rounds), reading=reading)


def _reach_finding(reach: pd.DataFrame, rounds: pd.DataFrame) -> str:
    """How far the model in use could tell the final policy's answers apart, in a sentence."""
    last = rounds.iloc[-1]
    found = reach[(reach["reward_model"] == last["reward_model"]) & (reach["step"] == last["end"])].iloc[0]
    if pd.isna(found["accuracy"]):
        return "The final policy's answers are equally good: there is nothing to order"
    share, known = f"{found['accuracy']:.0%}", "The last reward model orders"
    if pd.isna(found["accuracy_se"]):
        return f"{known} {share} of the final pairs like gold"
    error = 1.96 * found["accuracy_se"]
    verdict = "no surer than a coin"
    if abs(found["accuracy"] - 0.5) > error:
        verdict = "better than a coin" if found["accuracy"] > 0.5 else "worse than a coin"
    return f"{known} {share} of the final pairs like gold: {verdict}"
