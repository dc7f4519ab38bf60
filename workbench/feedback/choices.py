"""The likelihood of choices of one among several (Luce 1959): the parameters that maximise it, with intervals.

One of several is chosen with a probability in proportion to its strength, and log-strengths are linear in the
parameters: the log-likelihood is concave. `plackett_luce` and `paired_comparison` say what is chosen among what.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.statistics import expanded_levels
from workbench.feedback.tables import names_in

NEWTON_STEPS, HALVINGS = 200, 40
LAST_STEP, LAST_STEP_OF_DRAWS = 1e-8, 1e-3  # nats; a step of Newton's method leaves about its square as error
LARGEST_BATCH = 500_000  # numbers held at once while resampling
Step = Callable[[np.ndarray, np.ndarray], np.ndarray]  # how far to go from (R, P), with these times (R, D): (R, P)
Derivatives = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Choices:
    """D different choices of one among up to A, with P parameters, and by which of C clusters they were made.

    The log-strength of an alternative is a sum of a few parameters: up to S of them, each times its part. The E = A * S
    entries of a choice are so few that P, which may be thousands, is met only where they are added up.
    """

    names: np.ndarray  # (D, A, S) which parameters each alternative's log-strength is made of; the chosen one is first
    parts: np.ndarray  # (D, A, S) how often each is in it, 0 on padding
    present: np.ndarray  # (D, A) bool, False on padding
    cluster: np.ndarray  # (N,) of each time that a choice was made, those of one choice after those of the one before
    times: np.ndarray  # (N,) 1, or a part of it where a tie was split
    starts: np.ndarray  # (D,) where in N each choice begins
    clusters: int  # C
    scores: int  # of the P parameters the first ones, which mean nothing but their differences
    size: int  # P

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        """How often each choice was made, (R, D), by clusters with these weights, (R, C)."""
        return np.add.reduceat(weights[:, self.cluster] * self.times, self.starts, axis=1)

    def added(self, values: np.ndarray) -> np.ndarray:
        """The sum for each parameter, (R, P), of a value for each entry, (R, D, A, S)."""
        cells = np.arange(len(values))[:, None] * self.size + self.names.ravel()
        return np.bincount(cells.ravel(), values.ravel(), len(values) * self.size).reshape(-1, self.size)


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
    precision = _precision(choices, prior_sd)
    scaled, newton = _scaled_steps(choices, precision, best), _newton_steps(choices, precision)
    generator, draws = np.random.default_rng(seed), []
    batch = max(1, LARGEST_BATCH // max(len(choices.cluster), choices.parts.size))
    for start in range(0, resamples, batch):
        weights = generator.exponential(size=(min(batch, resamples - start), choices.clusters))
        weights *= choices.clusters / weights.sum(axis=1, keepdims=True)
        times = choices.weighted(weights)
        for_all = partial(_maximised, choices, precision=precision, enough=LAST_STEP_OF_DRAWS)
        try:
            draws.append(for_all(times, np.tile(best, (len(times), 1)), step_from=scaled))
        except WorkbenchError:  # so little is known that another matrix is needed for each
            draws += [for_all(row[None], best[None], step_from=newton) for row in times]
    low, high = np.quantile(np.concatenate(draws), expanded_levels(choices.clusters), axis=0)
    return best, low, high


def most_likely(choices: Choices, *, prior_sd: float) -> np.ndarray:
    """Parameters, (P,), that maximise the likelihood of all choices, and of the scores under a normal prior.

    WorkbenchError where they run away to infinity.
    """
    precision, times = _precision(choices, prior_sd), choices.weighted(np.ones((1, choices.clusters)))
    start, step = np.zeros((1, choices.size)), _newton_steps(choices, precision)
    return _maximised(choices, times, start, precision, LAST_STEP, step)[0]


def choices_made(
    made: Sequence[tuple[Hashable, tuple[Any, tuple], float]],
    strengths: Callable[[Any], Mapping[int, float]],
    *,
    scores: int,
    size: int,
) -> Choices:
    """Choices from (cluster, (chosen, others), times), each alternative with the parameters in its log-strength."""
    different = {choice: place for place, choice in enumerate(dict.fromkeys(choice for _, choice, _ in made))}
    clusters = {cluster: place for place, cluster in enumerate(dict.fromkeys(cluster for cluster, _, _ in made))}
    sums = {each: strengths(each) for chosen, others in different for each in (chosen, *others)}
    shape = len(different), 1 + max(len(others) for _, others in different), max(map(len, sums.values()))
    names, parts, present = np.zeros(shape, dtype=int), np.zeros(shape), np.zeros(shape[:2], dtype=bool)
    for (chosen, others), place in different.items():
        for number, each in enumerate((chosen, *others)):
            names[place, number, : len(sums[each])] = list(sums[each])
            parts[place, number, : len(sums[each])] = list(sums[each].values())
        present[place, : 1 + len(others)] = True
    which = np.array([different[choice] for _, choice, _ in made])
    order = np.argsort(which, kind="stable")
    return Choices(
        names=names,
        parts=parts,
        present=present,
        cluster=np.array([clusters[cluster] for cluster, _, _ in made])[order],
        times=np.array([times for _, _, times in made])[order],
        starts=np.searchsorted(which[order], np.arange(len(different))),
        clusters=len(clusters),
        scores=scores,
        size=size,
    )


def require_prior(prior_sd: float) -> None:
    """WorkbenchError unless it is a positive number, perhaps infinite."""
    if not prior_sd > 0:
        raise WorkbenchError(f"prior_sd is {prior_sd!r}: give a standard deviation above 0, or math.inf for no prior.")


def cluster_of(table: pd.DataFrame, clusters: str) -> list[Hashable]:
    """Which rows are one draw: the values of a column, or each row on its own for ""."""
    if not clusters:
        return list(range(len(table)))
    if clusters not in table:
        raise WorkbenchError(
            f'The table has no column {clusters!r} (it has {list(table.columns)}): name another, or "" for rows that '
            "are independent."
        )
    return names_in(table, clusters)


def _precision(choices: Choices, prior_sd: float) -> np.ndarray:
    """Of the normal prior on each parameter, (P,): 0 where there is none."""
    return np.where(np.arange(choices.size) < choices.scores, prior_sd**-2, 0.0)


def _maximised(
    choices: Choices, times: np.ndarray, start: np.ndarray, precision: np.ndarray, enough: float, step_from: Step
) -> np.ndarray:
    """The most likely parameters, (R, P), for each row of how often choices were made, (R, D), from `start` (R, P).

    Halved steps up a concave function for each row, until no step is larger than `enough`.
    """
    found, value = start, _objective(start, choices, times, precision)
    for _ in range(NEWTON_STEPS):
        step = step_from(found, times)
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
    """Probability of each alternative, (R, D, A), and minus the log-probability of the chosen one, (R, D)."""
    strengths = np.einsum("rdas,das->rda", found[:, choices.names], choices.parts)
    gaps = np.where(choices.present, strengths - strengths[..., :1], -np.inf)
    top = gaps.max(axis=2, keepdims=True)
    parts = np.exp(gaps - top)
    total = parts.sum(axis=2, keepdims=True)
    return parts / total, (top + np.log(total))[..., 0]


def _objective(found: np.ndarray, choices: Choices, times: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Log-likelihood of each row, (R,), with the log-density of the prior."""
    _, surprise = _shares(found, choices)
    return -(times * surprise).sum(axis=1) - (precision * found**2).sum(axis=1) / 2


def _gradient(shares: np.ndarray, times: np.ndarray, choices: Choices) -> np.ndarray:
    """Of the log-likelihood, (R, P): what was chosen less what was to be expected."""
    surplus = -shares
    surplus[..., 0] += 1
    return choices.added((times[..., None] * surplus)[..., None] * choices.parts)


def _newton_steps(choices: Choices, precision: np.ndarray) -> Step:
    """Steps of the inverse observed information times the gradient, with scores that keep their mean."""
    derivatives = _derivatives(choices)

    def step(found: np.ndarray, times: np.ndarray) -> np.ndarray:
        gradient, information = derivatives(_shares(found, choices)[0], times)
        gradient = gradient - precision * found
        return np.linalg.solve(information + _fixed(choices, precision), gradient[..., None])[..., 0]

    return step


def _derivatives(choices: Choices) -> Derivatives:
    """Gradient, (1, P), and information, (1, P, P), of the log-likelihood of a row with these shares, (1, D, A)."""
    entries = choices.parts[0].size
    alternative = np.repeat(np.arange(choices.parts.shape[1]), choices.parts.shape[2])  # (E,) that an entry is of
    names, parts = choices.names.reshape(-1, entries), choices.parts.reshape(-1, entries)
    cells = (names[:, :, None] * choices.size + names[:, None, :]).ravel()

    def derivatives(shares: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        share = shares[0][:, alternative]
        covariance = share[..., None] * (np.equal.outer(alternative, alternative) - share[:, None, :])
        covariance *= times[0][:, None, None] * (parts[:, :, None] * parts[:, None, :])
        information = np.bincount(cells, covariance.ravel(), choices.size**2)
        return _gradient(shares, times, choices), information.reshape(1, choices.size, choices.size)

    return derivatives


def _fixed(choices: Choices, precision: np.ndarray) -> np.ndarray:
    """(P, P) of the prior, and of the mean of the scores: a common shift of all of them changes nothing."""
    same = (np.arange(choices.size) < choices.scores).astype(float)
    return np.diag(precision) + np.outer(same, same)


def _scaled_steps(choices: Choices, precision: np.ndarray, best: np.ndarray) -> Step:
    """Steps near the most likely parameters, by the information there, scaled to what each row knows of each of them.

    One inverted matrix serves all rows: one for each would take hours for a thousand names.
    """

    def spread(found: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shares, _ = _shares(found, choices)
        known = (times[..., None] * shares * (1 - shares))[..., None] * choices.parts**2
        return shares, np.sqrt(choices.added(known) + precision)

    once = choices.weighted(np.ones((1, choices.clusters)))
    shares, usual = spread(best[None], once)
    inverse = np.linalg.inv(_derivatives(choices)(shares, once)[1][0] + _fixed(choices, precision))

    def step(found: np.ndarray, times: np.ndarray) -> np.ndarray:
        shares, known = spread(found, times)
        scale = usual / known
        moved = scale * ((scale * (_gradient(shares, times, choices) - precision * found)) @ inverse)
        moved[:, : choices.scores] -= moved[:, : choices.scores].mean(axis=1, keepdims=True)
        return moved

    return step
