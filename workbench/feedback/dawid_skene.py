"""What is true and how reliable each labeler is, both from verdicts alone (Dawid and Skene 1979).

Every item has a true class, and a labeler who sees an item of class j says l with a probability of their own: row j of
their confusion matrix. Given the class, verdicts are independent. So whom the others contradict weighs less, and who
always errs in the same way is corrected. Two labelers do not determine the model; three do where most are right.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import pandas as pd

from workbench.errors import WorkbenchError
from workbench.feedback.resampling import expanded_levels, per_item
from workbench.feedback.verdicts import Labels, labels_of, require_common_items

SMALLEST = 1e-300  # instead of a probability of 0, which has no logarithm
DRAW_TOLERANCE, DRAW_ITERATIONS = 1e-4, 200  # of the fits to resampled items, which start from the fit to all


@dataclass(frozen=True, kw_only=True)
class DawidSkene:
    """A fit of C classes to the verdicts of L labelers on U items."""

    posterior: pd.DataFrame  # (U, C) probability of each class; index item_id, with part where items have parts
    prevalence: pd.Series  # (C,) share of each class
    confusion: pd.DataFrame  # (L * C, C) row: labeler and true class, column: verdict; rows sum to 1
    log_likelihood: np.ndarray  # (I,) in nats after each iteration, with the log prior that smoothing amounts to


class _Step(NamedTuple):
    posterior: np.ndarray  # (P, C) of each pattern of responses
    prevalence: np.ndarray  # (C,)
    confusion: np.ndarray  # (L, C, C) labeler, true class, verdict
    log_likelihood: float
    gain: float  # by which it rose


def dawid_skene(
    table: pd.DataFrame, *, smoothing: float = 0.01, tolerance: float = 1e-6, max_iterations: int = 20_000
) -> DawidSkene:
    """Maximum likelihood by EM, from judgements of one kind or a table of `verdicts`.

    It starts from each item's shares of votes (eq. 3.1) and ends when an iteration raises the log-likelihood by less
    than `tolerance` nats. A labeler may judge an item several times. `smoothing` is added to every count of a confusion
    matrix: the paper adds nothing, where a single odd verdict can rule a class out; with 0, a row that no verdict
    informs is even. WorkbenchError where no item was judged by two, and where `max_iterations` are not enough.
    """
    labels = labels_of(table)
    require_common_items(labels)
    responses, pattern = _patterns(labels)
    history = []
    for step in islice(_em(_votes(responses), responses, np.bincount(pattern), smoothing), max_iterations):
        history.append(step.log_likelihood)
        if step.gain < tolerance:
            return _named(step, labels, pattern, np.array(history))
    raise WorkbenchError(
        f"After {max_iterations} iterations the log-likelihood still rises by {tolerance} nats or more, as where "
        "verdicts hardly tell classes apart: have items judged by more labelers, or raise max_iterations."
    )


def labeler_reliability(
    table: pd.DataFrame, *, smoothing: float = 0.01, seed: int = 0, resamples: int = 200
) -> pd.DataFrame:
    """How probably each labeler's verdict on an item drawn at random is its true class, by `dawid_skene`.

    Rows labeler, reliability (accuracy in each class, weighted by prevalence), low, high, items. The 95% interval
    resamples items and fits again, from the posteriors of the whole fit, so that classes keep their names; resamples
    without an item of the labeler are left out. No row for a labeler with fewer than two items.
    """
    labels = labels_of(table)
    fit = dawid_skene(table, smoothing=smoothing)
    responses, pattern = _patterns(labels)
    start = np.zeros((len(responses), len(labels.values)))
    start[pattern] = fit.posterior.to_numpy()
    judged = per_item(responses.sum(axis=2)[pattern], labels.item) > 0  # (M, L)
    generator, draws = np.random.default_rng(seed), []
    for _ in range(resamples):
        times = np.bincount(generator.integers(len(judged), size=len(judged)), minlength=len(judged))
        step = _settled(start, responses, np.bincount(pattern, weights=times[labels.item]), smoothing)
        draws.append(np.where(times @ judged, _accuracy(step.prevalence, step.confusion), np.nan))
    values = _accuracy(fit.prevalence.to_numpy(), fit.confusion.to_numpy().reshape(-1, *start.shape[1:] * 2))
    rows = []
    for name, value, own, found in zip(labels.labelers, values, judged.sum(axis=0), np.transpose(draws), strict=True):
        if own > 1:
            rows.append([name, value, *np.nanquantile(found, expanded_levels(own)), int(own)])
    return pd.DataFrame(rows, columns=["labeler", "reliability", "low", "high", "items"])


def _em(posterior: np.ndarray, responses: np.ndarray, weights: np.ndarray, smoothing: float) -> Iterator[_Step]:
    """One iteration after the other, without end; `weights` (P,) say how many items have each pattern of responses."""
    before = -np.inf
    while True:
        prevalence, confusion = _maximised(posterior, responses, weights, smoothing)
        posterior, evidence = _expected(prevalence, confusion, responses)
        prior = smoothing * np.log(np.maximum(confusion, SMALLEST)).sum()
        log_likelihood = float(weights @ evidence + prior)
        yield _Step(posterior, prevalence, confusion, log_likelihood, log_likelihood - before)
        before = log_likelihood


def _maximised(
    posterior: np.ndarray, responses: np.ndarray, weights: np.ndarray, smoothing: float
) -> tuple[np.ndarray, np.ndarray]:
    """Prevalence (C,) and confusion (L, C, C) given the classes: eqs. 2.4 and 2.3."""
    weighted = posterior * weights[:, None]
    patterns, labelers, classes = responses.shape
    counts = (weighted.T @ responses.reshape(patterns, -1)).reshape(classes, labelers, classes) + smoothing
    totals = counts.sum(axis=2, keepdims=True)
    confusion = np.divide(counts, totals, out=np.full(counts.shape, 1 / classes), where=totals > 0)
    return weighted.sum(axis=0) / weights.sum(), confusion.transpose(1, 0, 2)


def _expected(prevalence: np.ndarray, confusion: np.ndarray, responses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Posterior (P, C) of the classes, eq. 2.5, and the log probability (P,) of each pattern, eq. 2.7."""
    said = np.log(np.maximum(confusion, SMALLEST)).transpose(0, 2, 1).reshape(-1, len(prevalence))
    joint = np.log(np.maximum(prevalence, SMALLEST)) + responses.reshape(len(responses), -1) @ said
    evidence = np.logaddexp.reduce(joint, axis=1)
    return np.exp(joint - evidence[:, None]), evidence


def _settled(posterior: np.ndarray, responses: np.ndarray, weights: np.ndarray, smoothing: float) -> _Step:
    """The step where EM stands still, or the last of `DRAW_ITERATIONS`."""
    for step in islice(_em(posterior, responses, weights, smoothing), DRAW_ITERATIONS):
        if step.gain < DRAW_TOLERANCE:
            break
    return step


def _patterns(labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """How often each labeler gave each value, in all patterns that occur (P, L, C), and which one a unit has, (U,).

    Few labelers make few patterns, and a fit to many items costs no more than one to these.
    """
    responses = np.zeros((len(labels.item), len(labels.labelers), len(labels.values)))
    np.add.at(responses, (labels.unit, labels.labeler, labels.value), 1)
    patterns, pattern = np.unique(responses, axis=0, return_inverse=True)
    return patterns, pattern.ravel()


def _votes(responses: np.ndarray) -> np.ndarray:
    """Share of the verdicts in each pattern that name each class, (P, C)."""
    votes = responses.sum(axis=1)
    return votes / votes.sum(axis=1, keepdims=True)


def _accuracy(prevalence: np.ndarray, confusion: np.ndarray) -> np.ndarray:
    """Probability of a right verdict, (L,)."""
    return confusion.diagonal(axis1=1, axis2=2) @ prevalence


def _named(step: _Step, labels: Labels, pattern: np.ndarray, history: np.ndarray) -> DawidSkene:
    classes = pd.Index(labels.values, name="class", dtype=object)
    cells = pd.MultiIndex.from_product([labels.labelers, labels.values], names=["labeler", "class"])
    verdict = classes.rename("verdict")
    return DawidSkene(
        posterior=pd.DataFrame(step.posterior[pattern], index=labels.index, columns=classes),
        prevalence=pd.Series(step.prevalence, index=classes),
        confusion=pd.DataFrame(step.confusion.reshape(-1, len(classes)), index=cells, columns=verdict),
        log_likelihood=history,
    )
