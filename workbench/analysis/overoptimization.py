"""Where a mean over prompts is highest among several places (steps, sizes), without flattering what is found there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.statistics import (
    Interval,
    finite_array,
    interval_over_units,
    mean_and_error,
    share_over_units,
    student_quantile,
)

PARTS, SPLITS, RESAMPLES = 3, 7, 200


def crossfit_peak(
    values, reads: Mapping[str, np.ndarray], *, prompts: Sequence | None = None, seed: int = 0
) -> dict[str, Interval]:
    """What the place with the highest mean of `values` (M, S) is worth, chosen and read on different prompts.

    The highest of S noisy means is too high. So two thirds of the prompts choose the place and the last third is read
    there, each third in turn, over `SPLITS` splits: chance then sets the peak too low on average, never too high. Keys
    height, rise (over the first place), fall (to the last) and each of `reads` (M, S) at the place chosen; and place,
    the highest of all prompts, 0..S-1. Rows of equal `prompts` (M,) are one draw. Intervals have level .95, over
    prompts drawn anew, of which the place is chosen anew, so they include the choice: .94 to .97 of simulated heights
    hold the highest true mean, and of rises and falls .94 to 1 (1 where all are equal or the peak itself is the place
    compared with). WorkbenchError for fewer than two places or prompts, and values that are not finite.
    """
    values = finite_array(values, name="values")
    groups = np.arange(len(values)) if prompts is None else pd.factorize(np.asarray(prompts))[0]
    if values.shape[1] < 2 or groups.max() < 1:
        raise WorkbenchError(f"{values.shape[1]} steps of {groups.max() + 1} prompts: a peak needs 2 of each.")
    read, means = _drawn_anew(np.stack([values, *reads.values()], axis=2), groups, np.random.default_rng(seed))
    half = student_quantile(0.975, groups.max())
    found = {
        name: _interval(read[:, k], read[1:, k].std(ddof=1), half) for k, name in enumerate(("height", *reads.keys()))
    }
    for name, place in (("rise", 0), ("fall", -1)):
        change = read[:, 0] - means[:, place]
        found[name] = _interval(change, _least_error(change, means, place), half)
    places = means.argmax(axis=1)
    ends = np.quantile(places[1:], [0.025, 0.975], method="nearest")
    return found | {"place": Interval(int(places[0]), *map(int, ends))}


def _drawn_anew(rows: np.ndarray, groups: np.ndarray, generator) -> tuple[np.ndarray, np.ndarray]:
    """What is read of `rows` (M, S, Q) at the place chosen, (B, Q), and the means (B, S) of what chooses, the first Q.

    First of the prompts (`groups`, (M,)) as they are, then of `RESAMPLES` times as many drawn with replacement.
    """
    count = groups.max() + 1
    sums = np.zeros((count, *rows.shape[1:]))
    np.add.at(sums, groups, rows)
    times = generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    times = np.concatenate([np.ones((1, count)), times])  # how often each prompt is there
    drawn = (times @ np.bincount(groups))[:, None, None]
    every, samples = np.tensordot(times, sums, axes=1) / drawn, np.arange(len(times))
    read = np.zeros((len(times), rows.shape[2]))
    for parts in generator.permuted(np.tile(np.arange(count) % PARTS, (SPLITS, 1)), axis=1):
        for own in (parts == part for part in range(PARTS)):
            held_out = np.tensordot(times[:, own], sums[own], axes=1) / drawn
            read += held_out[samples, (every - held_out)[:, :, 0].argmax(axis=1)] / SPLITS
    return read, every[:, :, 0]


def _least_error(change: np.ndarray, means: np.ndarray, place: int) -> float:
    """Standard error of a change (B,) from `place`, at least that of the best other place.

    Where the place itself seems highest, all choose it: a change of 0 without spread, and no less uncertain.
    """
    others = np.delete(means, place, axis=1)
    best = others[1:, others[0].argmax()] - means[1:, place]
    return max(change[1:].std(ddof=1), best.std(ddof=1))


def _interval(values: np.ndarray, error: float, half: float) -> Interval:
    return Interval(float(values[0]), float(values[0] - half * error), float(values[0] + half * error))


# --- How far training runs went past their best: the peak of gold, and the fall from there. Gao et al. 2022.


SCORES = ("kl", "kl_k1", "kl_k3", "proxy", "gold", "completion_length", "finished")
SCORE_PREFIXES = ("gold_", "judge_")


def peak_and_fall(metrics: pd.DataFrame, *, window: int = 10) -> dict[str, float]:
    """Step, KL and gold of a run at its best, and how much lower it ended; nats and gold units.

    The peak is chosen where the running mean of `gold` over `window` training batches is highest, and its gold is read
    from the next measurement on held-out prompts (`held_out_gold`), which had no part in choosing it; so is the end's.
    Batches after the last measurement are left out.
    Keys peak_step, peak_kl, peak_gold, end_gold, fall. Raises WorkbenchError where nothing was measured.
    """
    if "held_out_gold" not in metrics or metrics["held_out_gold"].isna().all():
        raise WorkbenchError("The metrics hold no held_out_gold: this run has no gold reward, or never measured it.")
    measured = metrics.dropna(subset=["held_out_gold"])
    followed = metrics[metrics["step"] <= measured["step"].iloc[-1]]  # a run may stop between two measurements
    running = followed["gold"].rolling(window, min_periods=1, center=True).mean()
    peak_step = followed.loc[running.idxmax(), "step"]
    after = measured[measured["step"] >= peak_step].iloc[0]
    end = measured.iloc[-1]
    return {
        "peak_step": int(after["step"]),
        "peak_kl": float(after["held_out_kl"]),
        "peak_gold": float(after["held_out_gold"]),
        "end_gold": float(end["held_out_gold"]),
        "fall": float(after["held_out_gold"] - end["held_out_gold"]),
    }


def path_means(path: pd.DataFrame) -> pd.DataFrame:
    """One row per step of a run's table `path`: prompts, and mean and standard error over prompts of every score.

    Scores are the KL (nats, exact and by estimators), proxy, gold and its components, judges, completion_length and
    finished, errors are named <score>_se. gold_gain and proxy_gain are taken prompt by prompt over the first step, so
    their errors are of that difference. A score with NaN at a step has NaN there: a mean of the rest would mislead.
    """
    steps = [(step, part) for step, part in path.groupby("step")]
    measured = {name: _by_prompt(path, name) for name in _scores(path)}
    for name in ("gold", "proxy"):
        if name in measured:
            measured[f"{name}_gain"] = measured[name].sub(measured[name].iloc[0], axis=1)
    means = pd.DataFrame({"step": [step for step, _ in steps], "prompts": [len(part) for _, part in steps]})
    for name, rows in measured.items():
        pairs = [_mean_of_known(row) for row in rows.to_numpy(dtype=float)]
        means[name], means[f"{name}_se"] = np.array(pairs).T
    return means


def _scores(path: pd.DataFrame) -> list[str]:
    named = [name for name in path if name in SCORES or name.startswith(SCORE_PREFIXES)]
    return [name for name in named if path[name].notna().any()]


def _by_prompt(path: pd.DataFrame, score: str) -> pd.DataFrame:
    """Steps by prompts, in order of training; WorkbenchError unless every step answers the same prompts once."""
    if path.duplicated(["step", "row"]).any() or path.groupby("step")["row"].nunique().nunique() > 1:
        raise WorkbenchError(
            "The table path does not hold each prompt once per step: it is of several runs, or cut off."
        )
    return path.pivot(index="step", columns="row", values=score)


def _mean_of_known(row: np.ndarray) -> tuple[float, float]:
    return tuple(map(float, mean_and_error(row))) if np.isfinite(row).all() else (np.nan, np.nan)


def held_out_peak(path: pd.DataFrame) -> dict[str, float]:
    """Where the gold of a run is highest and how far it falls from there to its end, without flattering the peak.

    Each third of the prompts of the table `path` is read at the step (step 0, the start, among them) where the mean
    gold of the others is highest: see `crossfit_peak`. Keys peak_kl (nats), peak_gold; rise (peak - start) and drop
    (peak - end), each of these with _low and _high, 95% over prompts, the choice included; peak_step, the highest of
    all prompts; start_gold, end_gold, end_kl. Raises WorkbenchError without gold, for gold or KL that is NaN, and for
    fewer than two steps or two prompts.
    """
    if "gold" not in path or path["gold"].isna().all():
        raise WorkbenchError("The table path holds no gold: this run has no gold reward to fall from.")
    gold, kl = _by_prompt(path, "gold"), _by_prompt(path, "kl")
    wrong = gold.index[~(np.isfinite(gold) & np.isfinite(kl)).all(axis=1)]
    if len(wrong):
        raise WorkbenchError(f"gold or KL is NaN or infinite at step {wrong[0]}: drop the steps from there on.")
    prompts = path.drop_duplicates("row").set_index("row").loc[gold.columns, "prompt"]
    found = crossfit_peak(gold.T.to_numpy(), {"kl": kl.T.to_numpy()}, prompts=prompts)
    peak = {"peak_step": int(gold.index[found["place"].value])}
    names = {"peak_kl": "kl", "peak_gold": "height", "rise": "rise", "drop": "fall"}
    for name, key in names.items():
        peak |= dict(zip((name, f"{name}_low", f"{name}_high"), found[key], strict=True))
    ends = {"start_gold": gold.iloc[0], "end_gold": gold.iloc[-1], "end_kl": kl.iloc[-1]}
    return peak | {name: float(values.mean()) for name, values in ends.items()}


class RiseAndFall(NamedTuple):
    """How regularly runs rose and then fell; intervals of level .95 over runs, worlds as in `covariance_of_mean`."""

    share: Interval  # of runs that did both
    rise: Interval  # gold units, start to peak
    drop: Interval  # peak to end
    runs: int
    worlds: int
    by: float

    @property
    def sentence(self) -> str:
        """The finding in words."""
        count = round(self.share.value * self.runs)
        text = f"Gold rises by more than {self.by:g} and then falls by more than that in {count} of {self.runs} runs"
        if self.runs == 1:
            return f"{text}: up {self.rise.value:.2f}, down {self.drop.value:.2f}; one run has no interval."
        parts = (f"{value:.2f} ({low:.2f} to {high:.2f})" for value, low, high in (self.rise, self.drop))
        return (
            f"{text} ({self.share.low:.0%} to {self.share.high:.0%}): up {next(parts)}, down {next(parts)} on average."
        )


def rise_and_fall(peaks: pd.DataFrame, *, by: float = 0.1) -> RiseAndFall:
    """Share of runs that rise and then fall by more than `by` gold each, and the mean rise and drop, with intervals.

    `peaks` has a row per run: world, rise, drop. Runs whose rise is NaN are left out; WorkbenchError where all are.
    """
    known = peaks[peaks["rise"].notna()]
    if known.empty:
        raise WorkbenchError(f"None of {len(peaks)} runs has a peak to count: they need gold at the start and later.")
    both = (known["rise"] > by) & (known["drop"] > by)
    return RiseAndFall(
        share=share_over_units(both, known["world"])._replace(value=float(both.mean())),
        rise=interval_over_units(known["rise"], known["world"]),
        drop=interval_over_units(known["drop"], known["world"]),
        runs=len(known),
        worlds=known["world"].nunique(),
        by=by,
    )
