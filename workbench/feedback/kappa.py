"""Agreement beyond chance: Cohen's and Fleiss' kappa and Krippendorff's alpha, 1 - observed / expected disagreement.

They differ in what chance is: two labelers who keep their own habits (Cohen), or all verdicts thrown together (Fleiss,
Krippendorff). Tables are those of `workbench.feedback.verdicts`. Where all verdicts are the same, nothing could have
differed: 0 / 0 is refused in a sentence. Otherwise the values are defined, even for one item; the intervals need two.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import combinations

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.statistics import Interval, interval_over_items, per_item
from workbench.feedback.verdicts import Labels, comparable_labels

WEIGHTS = {"equal": 0, "linear": 1, "quadratic": 2}  # powers of |a - b|
LEVELS = {"nominal": 0, "interval": 2, "ordinal": None}

# What each item adds to the sums, (M, K), and what those sums (..., K) come to, (...), NaN where that is undefined.
Statistic = tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]


def cohen_kappa(table: pd.DataFrame, *, weights: str = "equal", seed: int = 0) -> Interval:
    """Kappa of the two labelers in the table, with a 95% bootstrap interval over the items that both judged.

    Cohen 1960; with weights Cohen 1968: two values differ by |a - b| ("linear") or its square ("quadratic") and
    must then be numbers, else by 1. WorkbenchError for another number of labelers, and where both always gave one same
    verdict: agreement is complete, kappa undefined.
    """
    labels = _of_two(table)
    return _interval(_cohen(labels, (0, 1), weights), labels, seed)


def cohen_kappa_value(table: pd.DataFrame, *, weights: str = "equal") -> float:
    """`cohen_kappa` without the interval; one item is enough."""
    labels = _of_two(table)
    return _value(_cohen(labels, (0, 1), weights), labels)


def cohen_kappa_matrix(table: pd.DataFrame, *, weights: str = "equal") -> pd.DataFrame:
    """Kappa of each labeler (row) with each other (column).

    NaN on the diagonal, where two share no item, and where both always gave one same verdict.
    """
    labels = comparable_labels(table)
    matrix = np.full((len(labels.labelers),) * 2, np.nan)
    for pair in combinations(range(len(labels.labelers)), 2):
        rows, kappa = _cohen(labels, pair, weights)
        if len(rows):
            matrix[pair] = matrix[pair[::-1]] = kappa(rows.sum(axis=0))
    return pd.DataFrame(matrix, index=labels.labelers, columns=labels.labelers)


def fleiss_kappa(table: pd.DataFrame, *, seed: int = 0) -> Interval:
    """Kappa of any labelers, with the same number of verdicts on every item, and a 95% bootstrap interval over items.

    Fleiss 1971. WorkbenchError where items have different numbers of verdicts (`equally_judged` keeps those with
    the most common number, `krippendorff_alpha` takes all), and where all verdicts are the same.
    """
    labels = comparable_labels(table)
    return _interval(_fleiss(labels), labels, seed)


def fleiss_kappa_value(table: pd.DataFrame) -> float:
    """`fleiss_kappa` without the interval; one item is enough."""
    labels = comparable_labels(table)
    return _value(_fleiss(labels), labels)


def equally_judged(table: pd.DataFrame) -> pd.DataFrame:
    """The verdicts on items with the most common number of verdicts out of 2 and more; the larger one where two are."""
    labels = comparable_labels(table)
    judged = labels.counts.sum(axis=1).astype(int)
    frequency = np.bincount(judged[judged > 1])
    most_common = len(frequency) - 1 - frequency[::-1].argmax()
    frame = labels.index[labels.unit].to_frame(index=False)
    frame["labeler"] = [labels.labelers[number] for number in labels.labeler]
    frame["value"] = pd.Series([labels.values[number] for number in labels.value], dtype=object)
    return frame[judged[labels.unit] == most_common].reset_index(drop=True)


def krippendorff_alpha(table: pd.DataFrame, *, level: str, seed: int = 0) -> Interval:
    """Alpha of any labelers, each of whom judged some of the items, with a 95% bootstrap interval over items.

    Krippendorff 2011, sections C and D. `level` says how far two values differ: "nominal" by 1, "interval" by the
    square of their difference, "ordinal" by the square of how many verdicts lie between them; the latter two need
    numbers. Items that one labeler judged are left out. WorkbenchError where all verdicts are the same.
    """
    labels = comparable_labels(table)
    return _interval(_alpha(labels, level), labels, seed)


def krippendorff_alpha_value(table: pd.DataFrame, *, level: str) -> float:
    """`krippendorff_alpha` without the interval; one item is enough."""
    labels = comparable_labels(table)
    return _value(_alpha(labels, level), labels)


def _of_two(table: pd.DataFrame) -> Labels:
    labels = comparable_labels(table)
    if len(labels.labelers) != 2:
        raise WorkbenchError(
            f"Cohen's kappa compares 2 labelers, but the table holds {labels.labelers}: keep two of them, or use "
            "cohen_kappa_matrix."
        )
    return labels


def _cohen(labels: Labels, pair: tuple[int, int], weights: str) -> Statistic:
    """Kappa from the sums of: disagreement, the first labeler's verdicts by value (C), the second's (C)."""
    if weights not in WEIGHTS:
        raise WorkbenchError(f"There are no weights {weights!r}: use {', '.join(WEIGHTS)}.")
    distances = _distances(labels.values, WEIGHTS[weights])
    given = labels.given[:, pair]
    both = (given >= 0).all(axis=1)
    first, second = given[both].T
    one_hot = np.eye(len(labels.values))
    rows = np.concatenate([distances[first, second][:, None], one_hot[first], one_hot[second]], axis=1)
    return _by_item(rows, labels.item[both]), partial(_cohen_kappa_of, distances=distances)


def _cohen_kappa_of(sums: np.ndarray, *, distances: np.ndarray) -> np.ndarray:
    first, second = np.split(sums[..., 1:], 2, axis=-1)
    return _corrected(sums[..., 0] * first.sum(axis=-1), ((first @ distances) * second).sum(axis=-1))


def _fleiss(labels: Labels) -> Statistic:
    """Kappa from the sums of: pairs of verdicts that differ, verdicts by value (C)."""
    counts = labels.counts
    judged = counts.sum(axis=1)
    if judged.min() != judged.max():
        raise WorkbenchError(
            f"Items have {judged.min():.0f} to {judged.max():.0f} verdicts, but Fleiss' kappa needs the same number on "
            "each: keep some of them with equally_judged, or use krippendorff_alpha."
        )
    differ = judged**2 - (counts**2).sum(axis=1)
    rows = np.concatenate([differ[:, None], counts], axis=1)
    return _by_item(rows, labels.item), partial(_fleiss_kappa_of, per_unit=judged[0])


def _fleiss_kappa_of(sums: np.ndarray, *, per_unit: float) -> np.ndarray:
    counts = sums[..., 1:]
    total = counts.sum(axis=-1)
    expected = total**2 - (counts**2).sum(axis=-1)
    return _corrected(sums[..., 0] * total / (per_unit - 1), expected)


def _alpha(labels: Labels, level: str) -> Statistic:
    """Alpha from the sums of coincidences: how often two values were given to one unit, each verdict counting once.

    Ordinal distances depend on all of them, (C * C); else their disagreement and totals by value, (1 + C), suffice.
    """
    if level not in LEVELS:
        raise WorkbenchError(f"There is no level {level!r}: use {', '.join(LEVELS)}.")
    counts = labels.counts
    several = counts.sum(axis=1) > 1
    counts, item = counts[several], labels.item[several]
    others = counts.sum(axis=1, keepdims=True) - 1
    if level == "ordinal":
        _numbers(labels.values)
        pairs = counts[:, :, None] * (counts[:, None, :] - np.eye(counts.shape[1]))
        return _by_item((pairs / others[:, :, None]).reshape(len(counts), -1), item), _ordinal_alpha_of
    distances = _distances(labels.values, LEVELS[level])
    disagreement = ((counts @ distances) * counts).sum(axis=1, keepdims=True) / others
    rows = np.concatenate([disagreement, counts], axis=1)
    return _by_item(rows, item), partial(_alpha_of, distances=distances)


def _alpha_of(sums: np.ndarray, *, distances: np.ndarray) -> np.ndarray:
    counts = sums[..., 1:]
    expected = ((counts @ distances) * counts).sum(axis=-1)
    return _corrected(sums[..., 0] * (counts.sum(axis=-1) - 1), expected)


def _ordinal_alpha_of(sums: np.ndarray) -> np.ndarray:
    size = int(sums.shape[-1] ** 0.5)
    coincidences = sums.reshape(*sums.shape[:-1], size, size)
    counts = coincidences.sum(axis=-1)
    ranks = counts.cumsum(axis=-1) - counts / 2  # half of a value's own verdicts lie below it
    distances = (ranks[..., :, None] - ranks[..., None, :]) ** 2
    observed = (coincidences * distances).sum(axis=(-2, -1)) * (counts.sum(axis=-1) - 1)
    return _corrected(observed, (counts[..., :, None] * counts[..., None, :] * distances).sum(axis=(-2, -1)))


def _corrected(observed: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """1 - observed / expected, NaN where no disagreement is expected."""
    undefined = np.full(np.shape(expected), np.nan)
    return 1 - np.divide(observed, expected, out=undefined, where=expected > 0)


def _distances(values: list, power: int) -> np.ndarray:
    """|a - b| ** power, (C, C), and 1 between any two values where the power is 0."""
    if power == 0:
        return 1 - np.eye(len(values))
    numbers = _numbers(values)
    return np.abs(numbers[:, None] - numbers) ** power


def _numbers(values: list) -> np.ndarray:
    texts = [value for value in values if isinstance(value, str)]
    if texts:
        raise WorkbenchError(
            f"The verdict {texts[0]!r} is no number: how far verdicts differ is known of numbers; use level='nominal' "
            "or weights='equal'."
        )
    return np.array(values, dtype=float)


def _by_item(rows: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Sums of the rows of each item that has any, (M, K)."""
    return per_item(rows, np.unique(item, return_inverse=True)[1]) if len(rows) else rows


def _value(statistic: Statistic, labels: Labels) -> float:
    """WorkbenchError where the value is undefined."""
    rows, value_of = statistic
    value = float(value_of(rows.sum(axis=0)))
    if np.isnan(value):
        counts = labels.counts
        only = labels.values[counts[counts.sum(axis=1) > 1].sum(axis=0).argmax()]
        raise WorkbenchError(
            f"Every verdict that can be compared is {only!r}: agreement is complete, but what chance would give is "
            "unknown, and kappa and alpha are undefined; report pairwise_agreement, or collect verdicts that differ."
        )
    return value


def _interval(statistic: Statistic, labels: Labels, seed: int) -> Interval:
    _value(statistic, labels)
    return interval_over_items(*statistic, seed=seed)
