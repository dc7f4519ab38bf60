"""Several reward models as one, and how much their mistakes have in common. Coste et al. 2023."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.statistics import finite_array

# what each row of scores (K members, N completions) becomes, given the weight of the uncertainty
ENSEMBLES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "mean": lambda scores, coef: scores.mean(axis=0),
    "min": lambda scores, coef: scores.min(axis=0),
    "uncertainty": lambda scores, coef: scores.mean(axis=0) - coef * scores.var(axis=0),
}


def ensemble_scores(scores, how: str, *, coef: float = 0.5) -> np.ndarray:
    """One score per completion, (N,), from those of K members, (K, N), each with standard deviation 1 on one sample.

    `how` is "mean", "min" (worst case) or "uncertainty": the mean less `coef` times the population variance over the
    members. Coste et al. 2023, section 3, who took .5 for best-of-n and .1 for PPO. Raises WorkbenchError for another
    name, a `coef` below zero, scores that are not a table of finite numbers.
    """
    if how not in ENSEMBLES:
        raise WorkbenchError(f"The ensemble {how!r} is not known: choose one of {', '.join(ENSEMBLES)}.")
    if not coef >= 0:
        raise WorkbenchError(f"The weight of the uncertainty is {coef}: give 0 or more, it is taken off the mean.")
    scores = finite_array(scores, name="scores")
    if scores.ndim != 2:
        raise WorkbenchError(f"scores has shape {scores.shape}: give one row per member and one column per completion.")
    return ENSEMBLES[how](scores, coef)


def shared_errors(scores: dict[str, Sequence], gold) -> pd.DataFrame:
    """How alike the mistakes of reward models are: one row per pair of members, columns first, second and correlations.

    `scores` maps members to (prompts, N) scores of the same samples, `gold` (prompts, N) is their true reward; all are
    standardised within prompts. `errors` correlates what is left when gold is taken off each score. Taking the same
    gold off both correlates even members that err independently, (1 - r) / 2 when both are correlated r with gold;
    `errors_given_gold` regresses gold out instead, and is 0 for those. Prompts of which gold or a score does not vary
    have no order and are left out. NaN where none remains, or where no errors are left. Raises WorkbenchError for
    fewer than two members and for unequal shapes.
    """
    if len(scores) < 2:
        raise WorkbenchError(f"{len(scores)} reward model was given: errors in common need at least 2.")
    shapes = {np.shape(gold)} | {np.shape(values) for values in scores.values()}
    if len(shapes) > 1 or len(np.shape(gold)) != 2:
        raise WorkbenchError(f"Scores and gold have shapes {sorted(shapes)}: score the same samples of each prompt.")
    named = [("gold", gold), *scores.items()]
    tables = np.stack([_within_prompts(values, name) for name, values in named])
    tables = tables[:, ~np.isnan(tables).any(axis=(0, 2))]
    gold, members = tables[0], tables[1:]
    slopes = (members * gold).mean(axis=2, keepdims=True)
    errors, residuals = members - gold, members - slopes * gold
    rows = [
        {"first": first, "second": second, "errors": _cosine(errors[i], errors[j])}
        | {"errors_given_gold": _cosine(residuals[i], residuals[j])}
        for (i, first), (j, second) in combinations(enumerate(scores), 2)
    ]
    return pd.DataFrame(rows)


def _within_prompts(values, name: str) -> np.ndarray:
    """(prompts, N) at mean 0 and standard deviation 1 in each row, NaN in rows that do not vary."""
    values = finite_array(values, name=name)
    centred = values - values.mean(axis=1, keepdims=True)
    spread = centred.std(axis=1, keepdims=True)
    # what rounding leaves of equal scores is no order
    varies = spread > 1e-9 * np.maximum(1.0, np.abs(values).max(axis=1, keepdims=True))
    return np.divide(centred, spread, out=np.full_like(centred, np.nan), where=varies)


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of values whose mean is 0 in every prompt."""
    size = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / size) if size > 0 else float("nan")
