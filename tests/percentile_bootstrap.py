"""An oracle of intervals: Efron's percentile bootstrap, one resample after the other."""

import numpy as np


def bootstrap_interval(items, statistic, *, seed: int, level: float, resamples: int = 1000):
    """(value, low, high) of `statistic` over rows of `items`, (M, ...), drawn with replacement (Efron 1979)."""
    generator = np.random.default_rng(seed)
    draws = [statistic(items[generator.integers(len(items), size=len(items))]) for _ in range(resamples)]
    return statistic(items), *np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
