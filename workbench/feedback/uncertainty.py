"""Which items would teach a reward model most: priorities for `Queue(order="uncertain")`, from its scores.

`scores` are (M, N, K): M reward models of an ensemble, N items, K completions of each.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from workbench import WorkbenchError


def ensemble_disagreement(scores: np.ndarray) -> np.ndarray:
    """Variance over the ensemble of the preferred probability, mean over pairs of completions, (N,).

    The probability is Bradley-Terry's, the logistic of the difference of scores; what Christiano et al. 2017,
    section 2.2.4, choose their queries by. WorkbenchError for fewer than two models.
    """
    probabilities = _preferred(scores)
    if len(probabilities) < 2:
        raise WorkbenchError("An ensemble of 1 reward model can not disagree: give at least 2, or use closeness.")
    return probabilities.var(axis=0).mean(axis=-1)


def closeness(scores: np.ndarray) -> np.ndarray:
    """How near a coin toss the mean model finds each item, from 0 (sure) to 1 (a tie), mean over pairs, (N,)."""
    return (1 - np.abs(2 * _preferred(scores).mean(axis=0) - 1)).mean(axis=-1)


def _preferred(scores: np.ndarray) -> np.ndarray:
    """Probability that the first of each pair of completions is preferred, (M, N, pairs)."""
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 3 or scores.shape[2] < 2:
        raise WorkbenchError(
            f"scores have the shape {scores.shape}: give (models, items, completions), at least 2 completions."
        )
    if not np.isfinite(scores).all():
        raise WorkbenchError("scores hold NaN or infinity: give finite numbers.")
    differences = [
        scores[..., first] - scores[..., second] for first, second in combinations(range(scores.shape[2]), 2)
    ]
    return 1 / (1 + np.exp(-np.clip(np.stack(differences, axis=-1), -50, 50)))
