"""The likelihood of choices of one among several (Luce 1959): the parameters that maximise it, with intervals.

One of several is chosen with a probability in proportion to its strength, and log-strengths are linear in the
parameters: the log-likelihood is concave. `plackett_luce` and `paired_comparison` say what is chosen among what.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import WorkbenchError
from workbench.feedback.resampling import expanded_levels

NEWTON_STEPS, HALVINGS = 200, 40
LAST_STEP, LAST_STEP_OF_DRAWS = 1e-8, 1e-3  # nats; a step of Newton's method leaves about its square as error
LARGEST_BATCH = 2_000_000  # numbers held at once while resampling


@dataclass(frozen=True, kw_only=True)
class Choices:
    """D different choices of one among up to 1 + A, with P parameters, and by which of C clusters they were made."""

    # (D, A, P) how the log-strength of each that was passed over depends on the parameters, less that of the chosen one
    rivals: np.ndarray
    present: np.ndarray  # (D, A) bool, False on padding
    cluster: np.ndarray  # (E,) of each time that a choice was made, those of one choice after those of the one before
    times: np.ndarray  # (E,) 1, or a part of it where a tie was split
    starts: np.ndarray  # (D,) where in E each choice begins
    clusters: int  # C
    scores: int  # of the P parameters the first ones, which mean nothing but their differences

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        """How often each choice was made, (R, D), by clusters with these weights, (R, C)."""
        return np.add.reduceat(weights[:, self.cluster] * self.times, self.starts, axis=1)


def intervals(
    choices: Choices, *, prior_sd: float, seed: int, resamples: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The most likely parameters, (P,), and the lower and upper ends of their 95% intervals.

    The clusters get random weights with mean 1 (the Bayesian bootstrap, Rubin 1981): unlike how often each is drawn
    with replacement, none is 0, so that what is linked stays linked.
    """
    if choices.clusters < 2:
        raise WorkbenchError("1 item has no measurable spread: an interval needs verdicts on at least 2.")
    best = most_likely(choices, prior_sd=prior_sd)
    generator, draws = np.random.default_rng(seed), []
    batch = max(1, LARGEST_BATCH // max(len(choices.cluster), len(choices.rivals) * max(choices.rivals.shape[1:])))
    for start in range(0, resamples, batch):
        weights = generator.exponential(size=(min(batch, resamples - start), choices.clusters))
        weights *= choices.clusters / weights.sum(axis=1, keepdims=True)
        draws.append(_maximised(choices, weights, np.tile(best, (len(weights), 1)), prior_sd, LAST_STEP_OF_DRAWS))
    low, high = np.quantile(np.concatenate(draws), expanded_levels(choices.clusters), axis=0)
    return best, low, high


def most_likely(choices: Choices, *, prior_sd: float) -> np.ndarray:
    """Parameters, (P,), that maximise the likelihood of all choices, and of the scores under a normal prior.

    WorkbenchError where they run away to infinity.
    """
    start = np.zeros((1, choices.rivals.shape[2]))
    return _maximised(choices, np.ones((1, choices.clusters)), start, prior_sd, LAST_STEP)[0]


def choices_made(
    made: Sequence[tuple[Hashable, tuple[Any, tuple], float]],
    strengths: Callable[[Any], np.ndarray],
    *,
    scores: int,
) -> Choices:
    """Choices from (cluster, (chosen, others), times), each alternative with its log-strength (P,) by parameters."""
    different = {choice: place for place, choice in enumerate(dict.fromkeys(choice for _, choice, _ in made))}
    clusters = {cluster: place for place, cluster in enumerate(dict.fromkeys(cluster for cluster, _, _ in made))}
    widest = max(len(others) for _, others in different)
    size = len(strengths(next(iter(different))[0]))
    rivals, present = np.zeros((len(different), widest, size)), np.zeros((len(different), widest), dtype=bool)
    for (chosen, others), place in different.items():
        rivals[place, : len(others)] = [strengths(other) - strengths(chosen) for other in others]
        present[place, : len(others)] = True
    which = np.array([different[choice] for _, choice, _ in made])
    order = np.argsort(which, kind="stable")
    return Choices(
        rivals=rivals,
        present=present,
        cluster=np.array([clusters[cluster] for cluster, _, _ in made])[order],
        times=np.array([times for _, _, times in made])[order],
        starts=np.searchsorted(which[order], np.arange(len(different))),
        clusters=len(clusters),
        scores=scores,
    )


def require_prior(prior_sd: float) -> None:
    """WorkbenchError unless it is a positive number, perhaps infinite."""
    if not prior_sd > 0:
        raise WorkbenchError(f"prior_sd is {prior_sd!r}: give a standard deviation above 0, or math.inf for no prior.")


def in_order(names: Iterable[Hashable]) -> list:
    """Every name once, numbers before texts."""
    return sorted(set(names), key=lambda name: (isinstance(name, str), name))


def cluster_of(table: pd.DataFrame, clusters: str) -> list[Hashable]:
    """Which rows are one draw: the values of a column, or each row on its own for ""."""
    if not clusters:
        return list(range(len(table)))
    if clusters not in table:
        raise WorkbenchError(
            f'The table has no column {clusters!r} (it has {list(table.columns)}): name another, or "" for rows that '
            "are independent."
        )
    return table[clusters].tolist()


def _maximised(choices: Choices, weights: np.ndarray, start: np.ndarray, prior_sd: float, enough: float) -> np.ndarray:
    """The most likely parameters, (R, P), for each row of weights of the clusters, (R, C), from `start` (R, P).

    Newton's method with halved steps, on a concave function for each row, until no step is larger than `enough`.
    """
    times = choices.weighted(weights)
    precision = np.where(np.arange(start.shape[1]) < choices.scores, prior_sd**-2, 0.0)
    found, value = start, _objective(start, choices, times, precision)
    for _ in range(NEWTON_STEPS):
        step = _newton_step(found, choices, times, precision)
        found, value = _uphill(found, step, value, lambda at: _objective(at, choices, times, precision))
        if np.abs(step).max() < enough:
            return found
    raise WorkbenchError("No finite scores fit these verdicts best: compare more, or give prior_sd=1.")


def _uphill(
    found: np.ndarray, step: np.ndarray, value: np.ndarray, objective: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Where each row's step, halved until it is no step down, leads to, and the objective there."""
    size = np.ones((len(found), 1))
    for _ in range(HALVINGS):
        reached = objective(found + size * step)
        worse = reached < value - 1e-12 * np.abs(value)
        if not worse.any():
            break
        size[worse] /= 2
    return found + size * step, reached


def _shares(found: np.ndarray, choices: Choices) -> tuple[np.ndarray, np.ndarray]:
    """Probability of each that was passed over, (R, D, A), and minus the log-probability of the chosen one, (R, D)."""
    different, others, size = choices.rivals.shape
    gaps = (found @ choices.rivals.reshape(-1, size).T).reshape(-1, different, others)
    gaps = np.where(choices.present, gaps, -np.inf)
    top = np.maximum(gaps.max(axis=2), 0)
    parts = np.exp(gaps - top[..., None])
    total = np.exp(-top) + parts.sum(axis=2)
    return parts / total[..., None], top + np.log(total)


def _objective(found: np.ndarray, choices: Choices, times: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Log-likelihood of each row, (R,), with the log-density of the prior."""
    _, surprise = _shares(found, choices)
    return -(times * surprise).sum(axis=1) - (precision * found**2).sum(axis=1) / 2


def _newton_step(found: np.ndarray, choices: Choices, times: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """(R, P): the inverse observed information times the gradient, with scores that keep their mean."""
    size = len(precision)
    shares, _ = _shares(found, choices)
    weighted = times[..., None] * shares
    flat = choices.rivals.reshape(-1, size)
    squares = (flat[:, :, None] * flat[:, None, :]).reshape(-1, size**2)
    means = np.einsum("rda,dap->rdp", shares, choices.rivals)
    information = (weighted.reshape(len(found), -1) @ squares).reshape(-1, size, size)
    information -= np.matmul((times[..., None] * means).transpose(0, 2, 1), means)
    gradient = -weighted.reshape(len(found), -1) @ flat - precision * found
    same = (np.arange(size) < choices.scores).astype(float)  # a common shift of all scores changes nothing: fix it
    information += np.diag(precision) + np.outer(same, same)
    return np.linalg.solve(information, gradient[..., None])[..., 0]
