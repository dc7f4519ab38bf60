"""The one place where standard errors and intervals are computed; what was drawn independently is the unit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from workbench import WorkbenchError


class MeanAndError(NamedTuple):
    """A mean and its standard error, floats, or (K,) arrays when K quantities were averaged at once."""

    mean: float | np.ndarray
    standard_error: float | np.ndarray

    @property
    def half_width(self) -> float | np.ndarray:
        """Half of its 95% interval where many were averaged, such as prompts; for means over runs see below."""
        return self.standard_error * student_quantile(0.975, math.inf)


class MeanOverUnits(NamedTuple):
    """A mean, its standard error, and Student's t's degrees of freedom, which end its interval; NaN for a single draw.

    Floats, or (K,) arrays when K quantities were averaged at once.
    """

    mean: float | np.ndarray
    standard_error: float | np.ndarray
    freedom: float


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval, NaN where a single draw says nothing about its spread."""

    value: float
    low: float
    high: float

    def columns(self, name: str) -> dict[str, float]:
        """As columns of a table: `name`, and the ends as _low and _high."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


UNKNOWN = Interval(math.nan, math.nan, math.nan)


def nats(value: float, digits: int = 6) -> str:
    """A number of nats in words: "1 nat", "0.5 nats"."""
    text = f"{value:.{digits}g}"
    return f"{text} nat" if text == "1" else f"{text} nats"


class MeanCovariance(NamedTuple):
    """Mean (K,) of rows, covariance (K, K) of that mean, and the degrees of freedom of Student's t for it."""

    mean: np.ndarray
    covariance: np.ndarray
    freedom: float


def mean_and_error(values, clusters: Sequence | None = None) -> MeanAndError:
    """Mean over the rows of `values`, (M,) or (M, K), with its cluster-robust standard error.

    Rows with equal `clusters` (M,), such as samples of one prompt, count as one draw; without it every row is its own.
    One cluster has no measurable spread, so its standard error is NaN; WorkbenchError for no rows or values not finite.
    """
    values = finite_array(values, name="values")
    groups = np.arange(len(values)) if clusters is None else _group_indices(clusters, values)
    mean, count = values.mean(axis=0), groups.max() + 1
    residuals = np.zeros((count, *values.shape[1:]))
    np.add.at(residuals, groups, values - mean)
    if count == 1:
        return MeanAndError(mean, mean * np.nan)
    # reduces to the sample standard deviation over sqrt(M) when every row is its own cluster
    error = np.sqrt(count / (count - 1) * (residuals**2).sum(axis=0)) / len(values)
    return MeanAndError(mean, error)


def draws(values, clusters: Sequence | None = None) -> np.ndarray:
    """What was drawn independently, (D,) or (D, K): the mean of each of `clusters` (M,), or `values` where it is one.

    Seeds share the model of their world, so that worlds are what was drawn; seeds of one world speak of it alone.
    """
    values = finite_array(values, name="values")
    if clusters is None or (groups := _group_indices(clusters, values)).max() == 0:
        return values
    sums = np.zeros((groups.max() + 1, *values.shape[1:]))
    np.add.at(sums, groups, values)
    return sums / np.bincount(groups).reshape(-1, *[1] * (values.ndim - 1))


def covariance_of_mean(rows, clusters: Sequence | None = None) -> MeanCovariance:
    """Mean over the `draws` of `rows` (M, K), its covariance, and degrees of freedom; NaN where there is one draw.

    Student's t over means of clusters is exact for normal draws in clusters of one size, and never too sure at 5% or
    less where sizes or spreads differ (Ibragimov and Müller 2010). Three worlds leave two degrees: low power is honest.
    """
    rows = draws(rows, clusters)
    count = len(rows)
    if count == 1:
        return MeanCovariance(rows[0], np.full((rows.shape[1],) * 2, np.nan), math.nan)
    return MeanCovariance(rows.mean(axis=0), np.cov(rows.T).reshape((rows.shape[1],) * 2) / count, count - 1)


def ratio_interval(law: MeanCovariance, *, level: float = 0.95) -> Interval:
    """mean[0] / mean[1] of a `law` of two, and the ratios r for which mean[0] - r mean[1] = 0 is not rejected.

    Fieller 1954: right where the ratio is far from normal. Where the divisor may be 0, ratios of its other sign are not
    counted, and the end towards which the ratio then goes is inf or -inf; both are where both numbers may be 0. Raises
    WorkbenchError for a divisor of 0.
    """
    (a, b), ((aa, ab), (_, bb)) = law.mean, law.covariance
    if b == 0:
        raise WorkbenchError("The divisor is 0: there is no ratio.")
    t2 = student_quantile((1 + level) / 2, law.freedom) ** 2
    square, linear, constant = b * b - t2 * bb, a * b - t2 * ab, a * a - t2 * aa
    if square <= 0 and constant <= 0:
        return Interval(a / b, -math.inf, math.inf)
    root = math.sqrt(max(linear**2 - square * constant, 0.0))  # a / b is never rejected, so only rounding is below 0
    if square > 0:
        return Interval(a / b, (linear - root) / square, (linear + root) / square)
    # the solutions in the form that holds at square = 0, too; of two, one is above 0 and the other below
    solutions = [constant / (linear + sign * root) for sign in (-1, 1) if linear + sign * root != 0]
    if a / b > 0:
        return Interval(a / b, max(solutions), math.inf)
    return Interval(a / b, -math.inf, min(solutions))


def mean_over_units(values, clusters: Sequence | None = None) -> MeanOverUnits:
    """Mean over runs of `values`, (M,) or (M, K), one row per run: every interval of a mean over runs ends by its t.

    `clusters` (M,), the runs' worlds, are what was drawn, as in `draws` and `covariance_of_mean`.
    """
    own = draws(values, clusters)
    return MeanOverUnits(*mean_and_error(own), len(own) - 1 if len(own) > 1 else math.nan)


def interval_over_units(values, clusters: Sequence | None = None, *, level: float = 0.95) -> Interval:
    """Student's t interval of the `mean_over_units` of `values` (M,)."""
    mean, error, freedom = mean_over_units(values, clusters)
    half = student_quantile((1 + level) / 2, freedom) * error
    return Interval(float(mean), float(mean - half), float(mean + half))


def p_value_over_units(values, clusters: Sequence | None = None) -> float:
    """Two-sided p-value of a mean of 0, of the t test that belongs to `interval_over_units`; NaN for one draw.

    D draws that all agree have no spread to measure: theirs is 2^(1 - D), as far as signs alone can tell.
    """
    mean, error, freedom = mean_over_units(values, clusters)
    if error <= 1e-9 * abs(mean):
        return 2.0**-freedom if mean else 1.0
    return float(2 * special.stdtr(freedom, -abs(mean / error)))


def student_quantile(probability: float, freedom: float) -> float:
    """Where Student's t distribution with `freedom` degrees has this cumulative `probability`."""
    return float(special.stdtrit(freedom, probability))


def _group_indices(clusters: Sequence, rows: np.ndarray) -> np.ndarray:
    groups = np.unique(np.asarray(clusters), return_inverse=True)[1]
    if len(groups) != len(rows):
        raise WorkbenchError(f"{len(groups)} clusters came with {len(rows)} values: give one cluster per value.")
    return groups


def share_interval(successes: float, count: float, *, level: float = 0.95) -> Interval:
    """Share of `count` independent draws and its exact interval, never too narrow (Clopper and Pearson 1934).

    Neither need be whole, where other draws say as much as so many independent ones.
    """
    if not 0 <= successes <= count or count == 0:
        raise WorkbenchError(
            f"{successes} of {count} is no share: give counts with 0 <= successes <= count, count > 0."
        )
    tail, failures = (1 - level) / 2, count - successes
    low = float(special.betaincinv(successes, failures + 1, tail)) if successes else 0.0
    high = float(special.betaincinv(successes + 1, failures, 1 - tail)) if failures else 1.0
    return Interval(successes / count, low, high)


def share_by_error(share: float, error: float, draws: int) -> Interval:
    """Interval of a mean of values from 0 to 1 with this standard error, which is 0 or NaN where all `draws` agree.

    That of `share_interval` for as many independent draws as have this error, or for `draws` (Korn and Graubard 1998):
    within 0 and 1, and never nothing wide.
    """
    count = 1 + share * (1 - share) / error**2 if error > 0 else draws
    return share_interval(share * count, count)


def share_over_prompts(values, prompts: Sequence) -> Interval:
    """`share_by_error` of values from 0 to 1, (M,), such as which answers are false, with `prompts` (M,) drawn."""
    return share_by_error(*mean_and_error(values, prompts), len(np.unique(np.asarray(prompts))))


def share_over_units(happened, clusters: Sequence | None = None) -> Interval:
    """Share of runs (M,) in which something happened: `interval_over_units` within 0 and 1.

    Where all draws agree, no spread is not certainty: the interval is that of `share_interval` for as many draws.
    """
    share, low, high = interval_over_units(happened, clusters)
    if high - low > 1e-9:
        return Interval(share, max(0.0, low), min(1.0, high))
    count = len(draws(happened, clusters))
    return share_interval(round(share * count), count)._replace(value=share)


def holm(p_values) -> np.ndarray:
    """p-values (M,) raised so that the chance of any false one below .05 is .05 at most (Holm 1979); NaN stay NaN."""
    p_values = np.asarray(p_values, dtype=float)
    adjusted, order = p_values.copy(), np.argsort(p_values)  # NaN last
    known = order[: np.isfinite(p_values).sum()]
    adjusted[known] = np.minimum(1.0, np.maximum.accumulate(p_values[known] * np.arange(len(known), 0, -1)))
    return adjusted


def finite_array(values, *, name: str) -> np.ndarray:
    """`values` as a float array with at least one row, or WorkbenchError when it is empty or holds NaN or infinity."""
    array = np.asarray(values, dtype=float)
    if array.ndim == 0 or array.size == 0:
        raise WorkbenchError(f"{name} is empty: give at least one number.")
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise WorkbenchError(f"{name} holds {bad} values that are NaN or infinite: give finite numbers.")
    return array


# --- Bootstrap intervals over items: they are what was drawn independently, so all that belongs to one stays
# together.


RESAMPLES = 1000
UNDEFINED_SHARE = 0.05  # of resamples in which a statistic may be undefined


def per_item(rows: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Sums of the rows (U, K) of each item, (M, K); `item` (U,) says which rows are its own."""
    sums = np.zeros((item.max() + 1, *rows.shape[1:]))
    np.add.at(sums, item, rows)
    return sums


def interval_over_items(rows: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], *, seed: int) -> Interval:
    """95% interval of a `statistic` of sums over items, by resampling the items with replacement (Efron 1979).

    `rows` (M, K) hold what each item adds to the sums; `statistic` maps sums (..., K) to values (...). Percentiles of
    1000 resamples alone are too narrow for few items, like a normal interval with the variance divided by M; they are
    moved out as far as Student's t demands (Hesterberg 2015, the expanded percentile interval): in simulations they
    then cover 92 to 96% from 20 items on. Resamples without a defined value (NaN) are left out. WorkbenchError for one
    item, or where over 5% are left out.
    """
    if len(rows) < 2:
        raise WorkbenchError(
            f"Only {len(rows)} item was judged by two labelers: agreement with an interval needs at least 2 such items."
        )
    draws = statistic(resampled_sums(rows, seed=seed))
    undefined = np.isnan(draws)
    if undefined.mean() > UNDEFINED_SHARE:
        raise WorkbenchError(
            f"{undefined.mean():.0%} of the resamples of {len(rows)} items hold a single value, where the statistic is "
            "undefined: an interval needs more items that differ."
        )
    low, high = np.quantile(draws[~undefined], expanded_levels(len(rows)))
    return Interval(float(statistic(rows.sum(axis=0))), float(low), float(high))


def resampled_sums(rows: np.ndarray, *, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Sums of `rows` (M, K) over M of them drawn with replacement, (resamples, K)."""
    generator, count = np.random.default_rng(seed), len(rows)
    block = max(1, 2**20 // count)  # how often each item was drawn takes 8 MB at a time
    sums = []
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = generator.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        sums.append(times @ rows)
    return np.concatenate(sums)


def expanded_levels(count: int, level: float = 0.95) -> tuple[float, float]:
    """Which quantiles of the resamples of `count` items end an interval of this level (Hesterberg 2015)."""
    student = student_quantile((1 + level) / 2, count - 1)
    tail = float(special.ndtr(-student * (count / (count - 1)) ** 0.5))
    return tail, 1 - tail
