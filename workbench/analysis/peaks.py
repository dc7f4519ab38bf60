"""Where a mean over prompts is highest among several places (steps, sizes), without flattering what is found there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.statistics import Interval, finite_array, student_quantile

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
