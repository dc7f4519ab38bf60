"""The one place where standard errors and intervals are computed; what was drawn independently is the unit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from workbench.errors import WorkbenchError


class MeanAndError(NamedTuple):
    """A mean and its standard error, floats, or (K,) arrays when K quantities were averaged at once."""

    mean: float | np.ndarray
    standard_error: float | np.ndarray


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval."""

    value: float
    low: float
    high: float


def mean_and_error(values, clusters: Sequence | None = None) -> MeanAndError:
    """Mean over the rows of `values`, (M,) or (M, K), with its cluster-robust standard error.

    Rows with equal `clusters` (M,), such as samples of one prompt, count as one draw; without it every row is its own.
    One cluster has no measurable spread, so its standard error is NaN; WorkbenchError for no rows or values not finite.
    """
    values = finite_array(values, name="values")
    groups = np.arange(len(values)) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    if len(groups) != len(values):
        raise WorkbenchError(f"{len(groups)} clusters came with {len(values)} values: give one cluster per value.")
    mean, count = values.mean(axis=0), groups.max() + 1
    residuals = np.zeros((count, *values.shape[1:]))
    np.add.at(residuals, groups, values - mean)
    if count == 1:
        return MeanAndError(mean, mean * np.nan)
    # reduces to the sample standard deviation over sqrt(M) when every row is its own cluster
    error = np.sqrt(count / (count - 1) * (residuals**2).sum(axis=0)) / len(values)
    return MeanAndError(mean, error)


def bootstrap_interval(
    items,
    statistic: Callable[[np.ndarray], float],
    *,
    seed: int,
    resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of `statistic` over rows of `items`, (M, ...), drawn with replacement (Efron 1979).

    A row must hold everything that belongs to one independent item, so that dependent judgements stay together.
    """
    items = finite_array(items, name="items")
    if len(items) < 2:
        raise WorkbenchError("1 item has no measurable spread: an interval needs at least 2 items.")
    generator = np.random.default_rng(seed)
    draws = [statistic(items[generator.integers(len(items), size=len(items))]) for _ in range(resamples)]
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(items)), float(low), float(high))


def finite_array(values, *, name: str) -> np.ndarray:
    """`values` as a float array with at least one row, or WorkbenchError when it is empty or holds NaN or infinity."""
    array = np.asarray(values, dtype=float)
    if array.ndim == 0 or array.size == 0:
        raise WorkbenchError(f"{name} is empty: give at least one number.")
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise WorkbenchError(f"{name} holds {bad} values that are NaN or infinite: give finite numbers.")
    return array
