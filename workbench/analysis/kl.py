"""How far a policy moved: KL(policy || reference) of whole completions, and where on its path a run spent how much."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.statistics import MeanAndError, finite_array, mean_and_error

ESTIMATORS = {"exact": "kl", "k1": "kl_k1", "k3": "kl_k3"}  # column of each in a table of completions


def sequence_kl_summary(token_kl, completion_mask, prompts: Sequence) -> MeanAndError:
    """Mean sequence KL, nats, and its standard error over prompts.

    `token_kl` (B, R) nats holds any per-token estimate, `completion_mask` (B, R) is True where one counts, `prompts`
    (B,) says which rows share a prompt. A sum over the completion, never a mean; WorkbenchError for unequal shapes.
    """
    mask = np.asarray(completion_mask, dtype=bool)
    if mask.shape != np.shape(token_kl):
        raise WorkbenchError(
            f"completion_mask has shape {mask.shape}, token_kl {np.shape(token_kl)}: give one mask value per token."
        )
    counted = np.where(mask, np.asarray(token_kl, dtype=float), 0.0)  # padding may hold anything, NaN included
    return mean_and_error(finite_array(counted, name="token_kl").sum(axis=1), clusters=prompts)


def places_on_path(kl, budgets) -> np.ndarray:
    """Where a path first spends each of `budgets` (B,), as a place between its points, (B,): 2.4 is 40% from 2 to 3.

    `kl` (M,) nats in the order of training; between points it is √KL that is taken to grow evenly, for that is the
    scale on which reward does. NaN where a path never gets that far, and where it begins beyond.
    """
    root = np.sqrt(np.maximum(finite_array(kl, name="kl"), 0.0))
    places = []
    for budget in np.sqrt(finite_array(np.atleast_1d(budgets), name="budgets")):
        reached = np.flatnonzero(root >= budget - 1e-9)
        first = reached[0] if len(reached) else -1
        if first < 0 or (first == 0 and root[0] > budget + 1e-9):
            places.append(np.nan)
        elif first == 0:
            places.append(0.0)
        else:
            places.append(first - max(0.0, root[first] - budget) / (root[first] - root[first - 1]))
    return np.array(places)


def values_at_places(values, places) -> np.ndarray:
    """`values` (M,) or (M, K) of a path's points at `places` (B,) between them, linearly; NaN where a place is NaN."""
    values, places = np.asarray(values, dtype=float), np.asarray(places, dtype=float)
    known = np.nan_to_num(places)
    below = np.floor(known).astype(int)
    above = np.minimum(below + 1, len(values) - 1)
    share, missing = (known - below, np.isnan(places))
    if values.ndim == 2:
        share, missing = share[:, None], missing[:, None]
    # a share of 0 leaves the next point out even where it is NaN
    between = np.where(share > 0, values[below] + share * (values[above] - values[below]), values[below])
    return np.where(missing, np.nan, between)


def estimator_errors(completions: pd.DataFrame) -> pd.DataFrame:
    """What k1 and k3 say of the KL of the same completions, and how far from the exact per-token KL that is on average.

    `completions` has columns of `ESTIMATORS`, nats per completion. One row per estimator: estimator, completions, mean,
    bias, the mean difference from the exact one, bias_se, and sd, the spread of one completion. Rows with NaN are left
    out. Both estimators are unbiased whatever the policy; Schulman 2020. WorkbenchError without those columns or rows.
    """
    missing = [column for column in ESTIMATORS.values() if column not in completions]
    if missing:
        raise WorkbenchError(f"There is no {missing}: this table is of a run that did not estimate its KL.")
    known = completions[list(ESTIMATORS.values())].dropna()
    if known.empty:
        raise WorkbenchError("No completion has all of kl, kl_k1 and kl_k3: there is nothing to compare.")
    rows = []
    for name, column in ESTIMATORS.items():
        bias, error = map(float, mean_and_error(known[column] - known["kl"]))
        spread = {"mean": known[column].mean(), "bias": bias, "bias_se": error, "sd": known[column].std()}
        rows.append({"estimator": name, "completions": len(known), **spread})
    return pd.DataFrame(rows)
