"""Does a reward model mean what it says: P(first is better) = sigmoid(margin), margin = reward of first - of second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.statistics import MeanAndError, finite_array, mean_and_error, share_by_error


def pair_probabilities(margins, labels) -> tuple[np.ndarray, np.ndarray]:
    """Predicted probability and outcome, (2M,) each, of M pairs in both orders.

    `labels` (M,) are 1 where the first is better, 0 the second, .5 a tie; chosen minus rejected always has label 1.
    Those alone could never look calibrated, since the outcome would always be 1. Flipping half of them at random adds
    noise; taking each pair once as (first, second) and once as (second, first) does not. With an even number of bins
    the two orders fall in mirrored bins, so the errors within a bin stay those of independent pairs.
    """
    margins, labels = _pairs(margins, labels)
    probability = 0.5 * (1 + np.tanh(margins / 2))  # sigmoid without overflow
    return np.concatenate([probability, 1 - probability]), np.concatenate([labels, 1 - labels])


def reliability_table(probability, outcome, bins: int = 10) -> pd.DataFrame:
    """Mean prediction and observed share in each of `bins` equal bins of [0, 1] that is not empty.

    Columns low, high, predicted, observed, count, observed_se (NaN where count is 1), observed_low, observed_high.
    Inputs (M,), both in [0, 1].
    """
    probability, outcome = finite_array(probability, name="probability"), finite_array(outcome, name="outcome")
    if bins < 1:
        raise WorkbenchError(f"bins is {bins}: give a whole number of at least 1.")
    if (
        probability.shape != outcome.shape
        or min(probability.min(), outcome.min()) < 0
        or max(probability.max(), outcome.max()) > 1
    ):
        raise WorkbenchError(
            "probability and outcome must be equally long and within 0 and 1: turn margins into pair_probabilities."
        )
    index = np.minimum((probability * bins).astype(int), bins - 1)  # 1.0 belongs to the last bin
    rows = []
    for k in np.unique(index):
        inside = index == k
        observed, error = mean_and_error(outcome[inside])
        row = [k / bins, (k + 1) / bins, probability[inside].mean(), observed, int(inside.sum()), error]
        rows.append([*row, *share_by_error(observed, error, inside.sum())[1:]])
    columns = ["low", "high", "predicted", "observed", "count", "observed_se", "observed_low", "observed_high"]
    return pd.DataFrame(rows, columns=columns)


def expected_calibration_error(probability, outcome, bins: int = 10) -> float:
    """Mean over samples of |predicted - observed| of their bin, 0 when calibrated (Guo et al. 2017, eq. 3)."""
    table = reliability_table(probability, outcome, bins)
    return float(np.average((table["predicted"] - table["observed"]).abs(), weights=table["count"]))


def pairwise_accuracy(margins, labels, prompts: Sequence | None = None) -> MeanAndError:
    """Share of pairs (M,) whose better completion has the higher reward, with its standard error over `prompts`.

    A margin of 0 and a tied label (.5) count half: nothing was decided.
    """
    margins, labels = _pairs(margins, labels)
    return mean_and_error(0.5 + np.sign(margins) * (labels - 0.5), clusters=prompts)


def accuracy_by_group(pairs: pd.DataFrame, labels: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """Pairwise accuracy over all pairs and, where they have one, over each `kind`, against each of several labels.

    `pairs` has margin and prompt, the unit of the standard error; a label (as in `pairwise_accuracy`) is NaN where none
    is known. Rows group, measured_against, accuracy, its _se, _low and _high, pairs; none without a labelled pair.
    """
    groups = {"all": np.ones(len(pairs), dtype=bool)}
    if "kind" in pairs:
        groups |= {str(kind): (pairs["kind"] == kind).to_numpy() for kind in sorted(pairs["kind"].unique())}
    rows = []
    for name, values in labels.items():
        values = np.asarray(values, dtype=float)
        for group, inside in groups.items():
            kept = inside & ~np.isnan(values)
            if kept.any():
                part = pairs[kept]
                accuracy = pairwise_accuracy(part["margin"], values[kept], prompts=part["prompt"])
                ends = share_by_error(*accuracy, part["prompt"].nunique())[1:]
                rows.append([group, name, *map(float, accuracy), *ends, len(part)])
    accuracy = ["accuracy", "accuracy_se", "accuracy_low", "accuracy_high"]
    return pd.DataFrame(rows, columns=["group", "measured_against", *accuracy, "pairs"])


def _pairs(margins, labels) -> tuple[np.ndarray, np.ndarray]:
    margins, labels = finite_array(margins, name="margins"), finite_array(labels, name="labels")
    if margins.shape != labels.shape or labels.min() < 0 or labels.max() > 1:
        raise WorkbenchError("labels must hold one number from 0 (second better) to 1 (first better) for each margin.")
    return margins, labels


def rank_correlation(samples: pd.DataFrame, first: str = "proxy", second: str = "gold") -> MeanAndError:
    """Spearman's rank correlation of two columns within each `prompt`, mean and standard error over prompts.

    Prompts of which either column does not vary have no order and are left out; both are NaN where none remains.
    """
    ranks = samples.groupby("prompt")[[first, second]].rank()
    centred = ranks - ranks.groupby(samples["prompt"]).transform("mean")
    sums = pd.DataFrame(
        {"both": centred[first] * centred[second], "first": centred[first] ** 2, "second": centred[second] ** 2}
    )
    sums = sums.groupby(samples["prompt"]).sum()
    sums = sums[(sums["first"] > 0) & (sums["second"] > 0)]
    if sums.empty:
        return MeanAndError(float("nan"), float("nan"))
    return mean_and_error(sums["both"] / np.sqrt(sums["first"] * sums["second"]))
