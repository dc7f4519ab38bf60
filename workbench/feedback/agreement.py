"""How far labelers agree, from a table of judgements or of `verdicts`.

Items are what was drawn independently, so every interval resamples items and keeps all that belongs to one together.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from workbench.analysis.statistics import Interval, interval_over_items, per_item
from workbench.feedback.verdicts import Labels, comparable_labels


def pairwise_agreement(table: pd.DataFrame, *, seed: int = 0) -> Interval:
    """Share of equal verdicts over all pairs of labelers of an item, with a 95% bootstrap interval over items.

    Equal values (two ties included) agree, a tie against a choice counts half, skips and missing values are no verdict.
    Of rankings and best-of-k choices, every two completions that both labelers put in order are compared: 50% is
    guessing for any number of completions. Ratings agree only where they are the same number; how far apart they are is
    what `krippendorff_alpha` measures. WorkbenchError when fewer than two labelers, or fewer than two items judged by
    two, leave nothing to measure. Where all verdicts agree, the interval has no width.
    """
    labels = comparable_labels(table)
    return _agreement(labels, _half_for_ties(labels), seed)


def strict_agreement(table: pd.DataFrame, *, seed: int = 0) -> Interval:
    """As `pairwise_agreement`, except that a tie agrees only with a tie: against a choice it counts nothing.

    Ouyang et al. 2022 (InstructGPT), section 3.4, gives 72.6% without saying how ties count. This is the plain reading:
    labelers may say better, worse or equal, and agree where they say the same. With ties it is the lower of the two.
    """
    labels = comparable_labels(table)
    return _agreement(labels, np.eye(len(labels.values)), seed)


def agreement_matrix(table: pd.DataFrame) -> pd.DataFrame:
    """Agreement of each labeler (row) with each other (column), counted as in `pairwise_agreement`.

    NaN on the diagonal, where nothing was compared, and where two labelers share no item.
    """
    labels = comparable_labels(table)
    given, credit = labels.given, np.pad(_half_for_ties(labels), (0, 1))  # the row and column of "none" earn nothing
    agreed = sum((given == value).T.astype(float) @ credit[value][given] for value in range(len(labels.values)))
    judged = (given >= 0).astype(float)
    compared = judged.T @ judged
    np.fill_diagonal(compared, 0)
    shares = np.divide(agreed, compared, out=np.full(compared.shape, np.nan), where=compared > 0)
    return _square(shares, labels)


def common_items(table: pd.DataFrame) -> pd.DataFrame:
    """Number of items that each labeler (row) and each other (column) both judged; on the diagonal, that one judged.

    The labelers are those of `agreement_matrix`, so that the two tables lie on each other.
    """
    labels = comparable_labels(table)
    judged = np.zeros((labels.item.max() + 1, len(labels.labelers)))
    judged[labels.item[labels.unit], labels.labeler] = 1
    return _square(judged.T @ judged, labels).fillna(0).astype(int)


def labeler_vs_rest(table: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Agreement of each labeler with all others, counted as in `pairwise_agreement`.

    Rows labeler, agreement, low, high (95%, over items), items: those that somebody else judged, too. No row for a
    labeler with fewer than two.
    """
    labels = comparable_labels(table)
    given, counts, credit = labels.given, labels.counts, np.pad(_half_for_ties(labels), ((0, 1), (0, 0)))
    rows = []
    for column, name in enumerate(labels.labelers):
        own = given[:, column]
        others = counts - (own[:, None] == np.arange(len(labels.values)))
        sums = np.stack([(credit[own] * others).sum(1), np.where(own >= 0, others.sum(1), 0)], axis=1)
        items = per_item(sums, labels.item)
        items = items[items[:, 1] > 0]
        if len(items) > 1:
            rows.append([name, *interval_over_items(items, _ratio, seed=seed), len(items)])
    return pd.DataFrame(rows, columns=["labeler", "agreement", "low", "high", "items"])


def _agreement(labels: Labels, credit: np.ndarray, seed: int) -> Interval:
    """Mean credit (C, C) over the pairs of verdicts of a unit; equal ones have credit 1."""
    counts = labels.counts
    verdicts_given = counts.sum(axis=1)
    agreed = ((counts @ credit - 1) * counts).sum(axis=1) / 2  # without each verdict's pair with itself
    rows = per_item(np.stack([agreed, verdicts_given * (verdicts_given - 1) / 2], axis=1), labels.item)
    return interval_over_items(rows[rows[:, 1] > 0], _ratio, seed=seed)


def _ratio(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def _half_for_ties(labels: Labels) -> np.ndarray:
    """How far two values agree, (C, C): 1 where equal, a half for a tie against a choice, else 0."""
    tie = np.array([value == "tie" for value in labels.values])
    return np.where(tie[:, None] != tie, 0.5, np.eye(len(tie)))


def _square(values: np.ndarray, labels: Labels) -> pd.DataFrame:
    """A table of labelers against labelers, with those who only skipped, too."""
    square, names = pd.DataFrame(values, index=labels.labelers, columns=labels.labelers), labels.everybody
    return square.reindex(index=names, columns=names)
