"""Figures of a policy whose reward model is fitted anew between rounds: what it earns, and what the models know."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.plots.marks import DASHED, banded, colored, error_bar, half_width, points
from workbench.plots.theme import (
    PALETTE,
    ROLE_COLORS,
    axis_label,
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
        figure.add_vline(x=start, line=DASHED)
    figure.update_yaxes(title="reward", row=1, col=1).update_yaxes(title="KL (nats)", rangemode="tozero", row=2, col=1)
    figure.update_xaxes(title=axis_label("step"), row=2, col=1)
    reading = "Dashed: a reward model was fitted; the proxy is that of the latest. Bands: 95% over held-out prompts."
    return styled(figure, title=title or _rounds_finding(means), reading=reading, height=560)


def _line(frame: pd.DataFrame, column: str, color: str) -> list[go.Scatter]:
    """The band of a column and its line, which the legend names."""
    half = half_width(frame, f"{column}_se").fillna(0) if f"{column}_se" in frame else 0.0
    told = [f"step {step}{text}" for step, text in zip(frame["step"], frame["said"].fillna(""), strict=True)]
    look, y = {"color": color, "width": 2.2, "size": 6}, frame[column]
    shown = {"told": told, "hover": "%{customdata}<br>%{y:.2f}", "opacity": 0.18}
    return banded(frame["step"], y, y - half, y + half, {"kl": "KL"}.get(column, column), look, **shown)


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
            hover, where = f"step %{{x}}: {axis_label(column)} %{{y:.2f}}", {"row": place, "col": 1}
            for run, part in runs.groupby("run"):
                thin = {"color": transparent(color, 0.4), "width": 1}
                line = points(part["step"], part[column], run, thin, hover=hover, legend=False)
                figure.add_trace(line, **where)
            thick = {"color": color, "width": 3, "group": label}
            line = points(mean["step"], mean[column], label, thick, hover=hover, legend=place == 1)
            figure.add_trace(line, **where)
    figure.update_yaxes(title="gold reward", row=1, col=1)
    figure.update_yaxes(title="KL (nats)", rangemode="tozero", row=2, col=1)
    figure.update_xaxes(title=axis_label("step"), row=2, col=1)
    reading = "Thick: means over units (one world and seed each); thin: single units."
    return styled(figure, title="Gold ends at " + ", ".join(ends), reading=reading, height=520)


def plot_reward_model_reach(reach: pd.DataFrame, rounds: pd.DataFrame, title: str = "") -> go.Figure:
    """Accuracy against gold of every round's reward model on what the policy said at each step.

    `reach` is the table of `iterated.reach_of_rewards`, `rounds` that of `iterated.round_table`. Strong where the model
    was in use, with 95% intervals over prompts; faint before and after.
    """
    require_columns(reach, ["reward_model", "step", "accuracy", "accuracy_se"], "plot_reward_model_reach")
    require_columns(rounds, ["reward_model", "start", "end"], "plot_reward_model_reach")
    figure = go.Figure()
    figure.add_hline(y=0.5, line=DASHED, annotation_text="a coin")
    for i, (fitted, part) in enumerate(reach.groupby("reward_model")):
        used = rounds[rounds["reward_model"] == fitted]
        part = part.sort_values("step")
        now = part[part["step"].between(used["start"].min(), used["end"].max())]
        look = colored(i, width=2.6, size=9)
        faint = {"color": transparent(look["color"], 0.4), "width": 1.5, "dash": "dot"}
        shown = {"hover": "answers at step %{x}<br>%{y:.1%} ordered as by gold"}
        shown["bars"] = {"error_y": error_bar(now, "accuracy")}
        line = points(now["step"], now["accuracy"], f"fitted in round {fitted}", look, **shown)
        figure.add_traces([points(part["step"], part["accuracy"], look=faint), line])
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
    error = half_width(found.to_frame().T, "accuracy_se").iloc[0]
    verdict = "no surer than a coin"
    if abs(found["accuracy"] - 0.5) > error:
        verdict = "better than a coin" if found["accuracy"] > 0.5 else "worse than a coin"
    return f"{known} {share} of the final pairs like gold: {verdict}"
