"""Does anything that needs no gold reward say when a policy has gone too far? Signals, alarms and how right they are.

Every signal is a drift from the reference at step 0, so that a threshold means the same in every run. An alarm is the
first measurement above it, and stops the run there. Thresholds are chosen on some worlds or seeds, judged on others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.overoptimization import held_out_peak
from workbench.analysis.statistics import UNKNOWN, holm, interval_over_units, p_value_over_units, share_over_units

SIGNALS = ("disagreement", "split_gap", "length", "repetition", "kl")
RIGHT, EARLY = ("in time", "quiet"), ("too early", "false alarm")


def repeated_trigrams(text: str) -> float:
    """Share of the trigrams of words that stood in the text before, 0 where it has fewer than three words."""
    words = text.split()
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0


def path_signals(path: pd.DataFrame, *, members: Sequence[str] = (), other: str = "") -> pd.DataFrame:
    """One row per step: step, kl, gold where known, and those of `SIGNALS` that the run's table `path` allows.

    disagreement and split_gap are in standard deviations of the reward, length in tokens, repetition in the share of
    trigrams, kl, the naive one, in nats.

    `members` are columns of reward models on one scale (std 1 on the reference's samples), two or more, whose standard
    deviation per completion is `disagreement`; `other` is a reward model of other labels, which the proxy should not
    leave behind. All signals but kl are means over prompts less those of step 0; length is taken without its sign.
    """
    found = pd.DataFrame({"step": path["step"], "kl": path["kl"], "length": path["completion_length"]})
    found["repetition"] = path["completion"].map(repeated_trigrams)
    if len(members) > 1 and set(members) <= set(path):
        found["disagreement"] = path[list(members)].std(axis=1, ddof=0)
    if other in path and "proxy" in path:
        found["split_gap"] = path["proxy"] - path[other]
    if "gold" in path and path["gold"].notna().all():
        found["gold"] = path["gold"]
    means = found.groupby("step").mean()
    for column in means.columns.difference(["kl", "gold"]):
        means[column] -= means[column].iloc[0]
    means["length"] = means["length"].abs()
    return means.reset_index()


def gold_outcome(path: pd.DataFrame, *, tolerance: float = 0.05) -> dict[str, float]:
    """What a run's gold did: keys peak_step, peak_kl, good_from, good_until, drop, drop_low, falls.

    The run is good at the measurements around the peak whose mean gold stays within `tolerance` of it, steps
    `good_from` to `good_until`. It falls when the drop of `held_out_peak` exceeds `tolerance` and its 95% interval, in
    which the choice of the peak is included, is above 0.
    """
    means = path.groupby("step")[["gold", "kl"]].mean()
    peak = means["gold"].idxmax()
    bad = means.index[means["gold"] < means["gold"].max() - tolerance]
    before, after = bad[bad < peak], bad[bad > peak]
    place = {"peak_step": int(peak), "peak_kl": float(means["kl"].loc[peak])}
    place["good_from"] = int(means.index[means.index > before[-1]][0]) if len(before) else int(means.index[0])
    place["good_until"] = int(means.index[means.index < after[0]][-1]) if len(after) else int(means.index[-1])
    measured = held_out_peak(path)
    drop, low = measured["drop"], measured["drop_low"]
    return place | {"drop": drop, "drop_low": low, "falls": drop > tolerance and low > 0 and len(after) > 0}


def watched_runs(
    paths: Mapping[str, pd.DataFrame],
    units: pd.DataFrame,
    *,
    members: Sequence[str] = (),
    other: str = "",
    tolerance: float = 0.05,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`path_signals` and `gold_outcome` of several runs: signals with run, world, seed and falls; outcomes with run.

    `units` has run, world and seed. Signals are compared on the same runs: where some runs have more signals than
    others, only they are watched. Without gold there are no outcomes, and falls is NaN. Runs whose peak can not be
    measured are left out.
    """
    signals, outcomes = {}, []
    for run, path in paths.items():
        known = path_signals(path, members=members, other=other)
        if "gold" in known:
            try:
                outcomes.append({"run": run, **gold_outcome(path, tolerance=tolerance)})
            except WorkbenchError:
                continue
        signals[run] = known.assign(run=run)
    most = max((len(set(SIGNALS) & set(known)) for known in signals.values()), default=0)
    kept = [known for known in signals.values() if len(set(SIGNALS) & set(known)) == most]
    if not kept:
        return pd.DataFrame(columns=["run", "world", "seed", "step", "kl", "falls"]), pd.DataFrame()
    table = pd.concat(kept, ignore_index=True).merge(units[["run", "world", "seed"]].drop_duplicates(), on="run")
    falls = {outcome["run"]: outcome["falls"] for outcome in outcomes}
    return table.assign(falls=table["run"].map(falls)), pd.DataFrame(outcomes)


def best_threshold(values: Mapping[str, np.ndarray], gold: Mapping[str, np.ndarray]) -> float:
    """The threshold at which stopping each run at its first alarm keeps most gold on average; inf never stops.

    Both map runs to (T,) values at the same measurements, T differing between runs. Thresholds lie between values that
    were seen, for an alarm that rings whatever happens is none. Of equal thresholds the highest.
    """
    seen = np.unique(np.concatenate(list(values.values())))
    candidates = np.append((seen[1:] + seen[:-1]) / 2, np.inf)
    kept = np.zeros(len(candidates))
    for run, signal in values.items():
        # (candidates, T - 1), step 0 never alarms
        above = np.maximum.accumulate(signal[1:])[None] > candidates[:, None]
        kept += gold[run][np.where(above.any(1), 1 + above.argmax(1), len(signal) - 1)]
    best = np.flatnonzero(kept >= kept.max() - 1e-12)
    return float(candidates[best[-1]])


def held_out_alarms(signals: pd.DataFrame, outcomes: pd.DataFrame) -> pd.DataFrame:
    """One row per run and signal, at the threshold that other worlds (with one world: other seeds) chose.

    `signals` has run, world, seed and the columns of `path_signals`; `outcomes` has run and those of `gold_outcome`.
    Columns run, world, seed, signal, threshold, verdict, lead_steps and lead_nats (how long before the peak of gold the
    alarm came, negative after it; NaN without an alarm or a fall), kept (gold at the alarm less that at the end) and
    drop. Verdicts: "in time" and "quiet" are right; "too early" before gold is near its peak; "late"; "missed";
    "false alarm" in a run that never fell. WorkbenchError without gold, or a second world or seed.
    """
    if outcomes.empty:
        raise WorkbenchError("Alarms can not be judged: no watched run has a path whose gold is known.")
    fold = next((name for name in ("world", "seed") if signals[name].nunique() > 1), None)
    if fold is None:
        raise WorkbenchError("Alarms can not be judged: their thresholds need runs of another world or seed.")
    rows = []
    for name in [name for name in SIGNALS if name in signals and signals[name].notna().any()]:
        known = signals.dropna(subset=[name, "gold"])
        for held_out, judged in known.groupby(fold):
            others = dict(list(known[known[fold] != held_out].groupby("run")))
            if not others:
                continue
            series = ({run: part[column].to_numpy() for run, part in others.items()} for column in (name, "gold"))
            threshold = best_threshold(*series)
            for run, part in judged.groupby("run"):
                outcome = outcomes[outcomes["run"] == run].iloc[0]
                row = {"run": run, "world": part["world"].iloc[0], "seed": part["seed"].iloc[0], "signal": name}
                rows.append(row | {"threshold": threshold} | _judged(part, name, threshold, outcome))
    return pd.DataFrame(rows)


def _judged(part: pd.DataFrame, signal: str, threshold: float, outcome: pd.Series) -> dict:
    """Verdict, lead and kept gold of one run."""
    alarms = part.iloc[1:].loc[part[signal] > threshold]
    stop = alarms.iloc[0] if len(alarms) else None
    judged = {"verdict": _verdict(stop, outcome), "lead_steps": np.nan, "lead_nats": np.nan, "drop": outcome["drop"]}
    judged["kept"] = 0.0 if stop is None else float(stop["gold"] - part["gold"].iloc[-1])
    if stop is not None and outcome["falls"]:
        judged |= {"lead_steps": float(outcome["peak_step"] - stop["step"])}
        judged |= {"lead_nats": float(outcome["peak_kl"] - stop["kl"])}
    return judged


def _verdict(stop: pd.Series | None, outcome: pd.Series) -> str:
    if stop is None:
        return "missed" if outcome["falls"] else "quiet"
    if not outcome["falls"]:
        return "false alarm"
    if stop["step"] < outcome["good_from"]:
        return "too early"
    return "in time" if stop["step"] <= outcome["good_until"] else "late"


def alarm_scores(alarms: pd.DataFrame) -> pd.DataFrame:
    """One row per signal, the one that keeps most gold first: what its alarms were worth, with 95% intervals.

    Columns signal, runs, falling, quiet_runs, and right, false_alarms (of all runs: too early, or in a run that never
    fell), missed (of the falling runs), lead_steps, lead_nats (of alarms in falling runs), kept (gold, all runs), each
    with _low and _high: over runs' units (a world and seed), whose worlds may differ; ends are NaN where one unit is
    left. `share_kept` is the gold kept in falling runs over what they drop; `p_value` that kept is what KL alone keeps
    (Holm's over the other signals).
    """
    rows, p_values = [], _p_values_against_kl(alarms)
    for signal, part in alarms.groupby("signal", sort=False):
        never = part["verdict"].isin(["quiet", "false alarm"])
        falling, raised = part[~never], part[part["lead_steps"].notna()]
        row = {"signal": signal, "runs": len(part), "falling": len(falling), "quiet_runs": int(never.sum())}
        row |= _over_units(part, part["verdict"].isin(RIGHT), "right", share=True)
        row |= _over_units(part, part["verdict"].isin(EARLY), "false_alarms", share=True)
        row |= _over_units(falling, falling["verdict"] == "missed", "missed", share=True)
        for column in ("lead_steps", "lead_nats"):
            row |= _over_units(raised, raised[column], column)
        row |= _over_units(part, part["kept"], "kept")
        dropped = falling["drop"].sum()
        row["share_kept"] = falling["kept"].sum() / dropped if dropped > 0 else np.nan
        rows.append(row | {"p_value": p_values.get(signal, np.nan)})
    return pd.DataFrame(rows).sort_values("kept", ascending=False, ignore_index=True)


def _p_values_against_kl(alarms: pd.DataFrame) -> dict[str, float]:
    kept = alarms.groupby(["world", "seed", "signal"])["kept"].mean().unstack("signal")
    others = kept.columns.difference(["kl"]) if "kl" in kept else []
    differences = [(kept[name] - kept["kl"]).dropna() for name in others]
    alone = [p_value_over_units(each, each.index.get_level_values("world")) for each in differences]
    return dict(zip(others, holm(alone), strict=True))


def _over_units(part: pd.DataFrame, values: pd.Series, name: str, *, share: bool = False) -> dict[str, float]:
    """Mean over units and its interval, as columns; NaN where there is no row."""
    if part.empty:
        return UNKNOWN.columns(name)
    units = values.astype(float).groupby([part["world"], part["seed"]]).mean()
    measure = share_over_units if share else interval_over_units
    return measure(units.to_numpy(), units.index.get_level_values("world")).columns(name)


def alarms_sentence(scores: pd.DataFrame) -> str:
    """What the best signal of `alarm_scores` is worth beside KL alone, in words."""
    best, naive = scores.iloc[0], scores[scores["signal"] == "kl"]
    rates = "right in {right:.0%} of runs, false alarms in {false_alarms:.0%}".format
    name = "KL alone" if best["signal"] == "kl" else best["signal"].replace("_", " ").capitalize()
    apart = scores["p_value"] < 0.05
    if best["signal"] == "kl":
        beside = f", told apart from {apart.sum()} of {len(scores) - 1} others" if len(scores) > 1 else ""
    else:
        beside = "" if naive.empty or apart[0] else ", not told apart from KL alone"
    text = f"{name} keeps most gold{beside}: {rates(**best[['right', 'false_alarms']])}"
    if np.isfinite(best["lead_steps"]):
        text += f", {abs(best['lead_steps']):.0f} steps {'before' if best['lead_steps'] >= 0 else 'after'} the peak"
    if best["signal"] == "kl" or naive.empty:
        return text
    return f"{text}; KL alone {rates(**naive.iloc[0][['right', 'false_alarms']])}"


def readable_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """`alarm_scores` with each interval in the cell of its mean, "value (low to high)"; the value alone without one."""
    table = scores[["signal", "runs", "falling", "quiet_runs"]].copy()
    for name in ("right", "false_alarms", "missed", "lead_steps", "lead_nats", "kept"):
        cells = zip(scores[name], scores[f"{name}_low"], scores[f"{name}_high"], strict=True)
        table[name] = [_cell(*cell) for cell in cells]
    return table.assign(share_kept=scores["share_kept"])


def _cell(value: float, low: float, high: float) -> str:
    if np.isnan(value):
        return "none"
    return f"{value:.2f}" + ("" if np.isnan(low) else f" ({low:.2f} to {high:.2f})")
