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

from workbench import WorkbenchError
from workbench.analysis.statistics import expanded_levels
from workbench.feedback.verdicts import Labels, labels_of, require_common_items

SMALLEST = 1e-300  # instead of a probability of 0, which has no logarithm
RIGHT = 300  # times as much is added to the counts of right verdicts as to those of wrong ones
DRAW_TOLERANCE, DRAW_ITERATIONS = 1e-7, 200  # of the fits to resampled items, which start from the fit to all
AS_LIKELY, APART = 2.0, 0.05  # nats, and difference in a class's share: between fits that verdicts hardly tell apart


@dataclass(frozen=True, kw_only=True)
class DawidSkene:
    """A fit of C classes to the verdicts of L labelers on U items."""

    posterior: pd.DataFrame  # (U, C) probability of each class; index item_id, with part where items have parts
    prevalence: pd.Series  # (C,) share of each class
    confusion: pd.DataFrame  # (L * C, C) row: labeler and true class, column: verdict; rows sum to 1
    log_likelihood: np.ndarray  # (I,) in nats after each iteration, with the log prior that smoothing amounts to
    caution: str  # where verdicts hardly determine classes and reliabilities, a sentence that says so, else ""


class _Patterns(NamedTuple):
    """The P different sets of verdicts on a unit, as E entries: few labelers make few of them, however many units."""

    pattern: np.ndarray  # (E,) that the entry is of; those of one pattern stand together
    verdict: np.ndarray  # (E,) labeler * C + value
    times: np.ndarray  # (E,) how often this labeler gave this value
    starts: np.ndarray  # (P,) where in E each pattern begins
    of_unit: np.ndarray  # (U,) the pattern of each unit
    labelers: int  # L
    classes: int  # C


class _Step(NamedTuple):
    posterior: np.ndarray  # (P, C) of each pattern
    prevalence: np.ndarray  # (C,)
    confusion: np.ndarray  # (L, C, C) labeler, true class, verdict
    evidence: float  # log-likelihood
    log_likelihood: float  # with the log prior
    gain: float  # by which that rose


def dawid_skene(
    table: pd.DataFrame, *, smoothing: float = 0.01, tolerance: float = 1e-9, max_iterations: int = 20_000
) -> DawidSkene:
    """Maximum likelihood by EM, from judgements of one kind or a table of `verdicts`.

    It starts from each item's shares of votes (eq. 3.1) and ends when an iteration raises the log-likelihood by less
    than `tolerance` nats per verdict. A labeler may judge an item several times. `smoothing` is added to every count of
    a confusion matrix, `RIGHT` times as much to its diagonal: the paper adds nothing, where a single odd verdict can
    rule a class out, and a class that nobody needs (ties given at random) takes over what is another's; with 0, a row
    that no verdict informs is even. WorkbenchError where no item was judged by two, and where `max_iterations` are not
    enough.
    """
    labels = labels_of(table)
    require_common_items(labels)
    patterns = _patterns(labels)
    units, enough = np.bincount(patterns.of_unit), tolerance * len(labels.unit)
    steps = []
    for step in islice(_em(_votes(patterns), patterns, units, smoothing), max_iterations):
        if step.gain < enough:
            return _named([*steps, step], labels, patterns.of_unit)
        steps.append(step._replace(posterior=np.empty(0), confusion=np.empty(0)))  # of which only the last ones count
    raise WorkbenchError(
        f"After {max_iterations} iterations the log-likelihood still rises by {tolerance} nats per verdict or more, as "
        "where verdicts hardly tell classes apart: have items judged by more labelers, or raise max_iterations."
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
    patterns, size = _patterns(labels), len(labels.values)
    start = np.zeros((len(patterns.starts), size))
    start[patterns.of_unit] = fit.posterior.to_numpy()
    items, count = labels.item.max() + 1, len(labels.labelers)
    item, labeler = np.divmod(np.unique(labels.item[labels.unit] * count + labels.labeler), count)  # who judged what
    generator, draws = np.random.default_rng(seed), []
    for _ in range(resamples):
        times = np.bincount(generator.integers(items, size=items), minlength=items)
        units = np.bincount(patterns.of_unit, weights=times[labels.item])
        step = _settled(start, patterns, units, smoothing)
        judged = np.bincount(labeler, weights=times[item], minlength=count) > 0
        draws.append(np.where(judged, _accuracy(step.prevalence, step.confusion), np.nan))
    values = _accuracy(fit.prevalence.to_numpy(), fit.confusion.to_numpy().reshape(-1, size, size))
    own_items, rows = np.bincount(labeler, minlength=count), []
    for name, value, own, found in zip(labels.labelers, values, own_items, np.transpose(draws), strict=True):
        if own > 1:
            rows.append([name, value, *np.nanquantile(found, expanded_levels(own)), int(own)])
    return pd.DataFrame(rows, columns=["labeler", "reliability", "low", "high", "items"])


def _em(posterior: np.ndarray, patterns: _Patterns, units: np.ndarray, smoothing: float) -> Iterator[_Step]:
    """One iteration after the other, without end; `units` (P,) say how many have each pattern."""
    prior = smoothing * (1 + (RIGHT - 1) * np.eye(patterns.classes))
    before = -np.inf
    while True:
        prevalence, confusion = _maximised(posterior, patterns, units, prior)
        posterior, evidences = _expected(prevalence, confusion, patterns)
        evidence = float(units @ evidences)
        log_likelihood = evidence + float((prior * np.log(np.maximum(confusion, SMALLEST))).sum())
        yield _Step(posterior, prevalence, confusion, evidence, log_likelihood, log_likelihood - before)
        before = log_likelihood


def _maximised(
    posterior: np.ndarray, patterns: _Patterns, units: np.ndarray, prior: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Prevalence (C,) and confusion (L, C, C) given the classes: eqs. 2.4 and 2.3."""
    weighted, size = posterior * units[:, None], patterns.labelers * patterns.classes
    entries = weighted[patterns.pattern] * patterns.times[:, None]
    said = np.stack([np.bincount(patterns.verdict, weights=column, minlength=size) for column in entries.T])
    counts = said.reshape(len(said), patterns.labelers, -1).transpose(1, 0, 2) + prior
    totals = counts.sum(axis=2, keepdims=True)
    confusion = np.divide(counts, totals, out=np.full(counts.shape, 1 / patterns.classes), where=totals > 0)
    return weighted.sum(axis=0) / units.sum(), confusion


def _expected(prevalence: np.ndarray, confusion: np.ndarray, patterns: _Patterns) -> tuple[np.ndarray, np.ndarray]:
    """Posterior (P, C) of the classes, eq. 2.5, and the log probability (P,) of each pattern, eq. 2.7."""
    said = np.log(np.maximum(confusion, SMALLEST)).transpose(0, 2, 1).reshape(-1, len(prevalence))
    entries = said[patterns.verdict] * patterns.times[:, None]
    joint = np.log(np.maximum(prevalence, SMALLEST)) + np.add.reduceat(entries, patterns.starts, axis=0)
    evidence = np.logaddexp.reduce(joint, axis=1)
    return np.exp(joint - evidence[:, None]), evidence


def _settled(posterior: np.ndarray, patterns: _Patterns, units: np.ndarray, smoothing: float) -> _Step:
    """The step where EM stands still, or the last of `DRAW_ITERATIONS`."""
    enough = DRAW_TOLERANCE * float(units[patterns.pattern] @ patterns.times)
    for step in islice(_em(posterior, patterns, units, smoothing), DRAW_ITERATIONS):
        if step.gain < enough:
            break
    return step


def _patterns(labels: Labels) -> _Patterns:
    classes = len(labels.values)
    size = len(labels.labelers) * classes
    cells, times = np.unique(labels.unit * size + labels.labeler * classes + labels.value, return_counts=True)
    unit, verdict = np.divmod(cells, size)
    different, of_unit, entries = {}, [], []
    for own in np.split(np.arange(len(cells)), np.flatnonzero(np.diff(unit)) + 1):
        key = verdict[own].tobytes(), times[own].tobytes()
        if key not in different:
            different[key] = len(different)
            entries.append(own)
        of_unit.append(different[key])
    pattern, chosen = np.repeat(np.arange(len(entries)), [len(own) for own in entries]), np.concatenate(entries)
    return _Patterns(
        pattern=pattern,
        verdict=verdict[chosen],
        times=times[chosen].astype(float),
        starts=np.searchsorted(pattern, np.arange(len(entries))),
        of_unit=np.array(of_unit),
        labelers=len(labels.labelers),
        classes=classes,
    )


def _votes(patterns: _Patterns) -> np.ndarray:
    """Share of the verdicts in each pattern that name each class, (P, C)."""
    votes = np.zeros((len(patterns.starts), patterns.classes))
    np.add.at(votes, (patterns.pattern, patterns.verdict % patterns.classes), patterns.times)
    return votes / votes.sum(axis=1, keepdims=True)


def _accuracy(prevalence: np.ndarray, confusion: np.ndarray) -> np.ndarray:
    """Probability of a right verdict, (L,)."""
    return confusion.diagonal(axis1=1, axis2=2) @ prevalence


def _caution(steps: list[_Step], labels: Labels) -> str:
    """What the way of EM to its end says of how well the verdicts determine it."""
    if np.bincount(labels.unit).max() < 3:
        return (
            "No item has three verdicts: two can not tell labelers who err from classes that are rare. Read "
            "reliabilities as an order, not as shares."
        )
    last = steps[-1]
    apart = max(np.abs(s.prevalence - last.prevalence).max() for s in steps if s.evidence > last.evidence - AS_LIKELY)
    if apart <= APART:
        return ""
    return (
        f"These verdicts hardly tell classes apart: fits whose shares of a class differ by {apart:.0%} explain them as "
        "well. Have items judged by more labelers before you read reliabilities as shares."
    )


def _named(steps: list[_Step], labels: Labels, pattern: np.ndarray) -> DawidSkene:
    step = steps[-1]
    classes = pd.Index(labels.values, name="class", dtype=object)
    cells = pd.MultiIndex.from_product([labels.labelers, labels.values], names=["labeler", "class"])
    verdict = classes.rename("verdict")
    return DawidSkene(
        posterior=pd.DataFrame(step.posterior[pattern], index=labels.index, columns=classes),
        prevalence=pd.Series(step.prevalence, index=classes),
        confusion=pd.DataFrame(step.confusion.reshape(-1, len(classes)), index=cells, columns=verdict),
        log_likelihood=np.array([each.log_likelihood for each in steps]),
        caution=_caution(steps, labels),
    )
