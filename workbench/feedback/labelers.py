"""What each labeler's judgements look like: habits, care and speed, a row per labeler.

Judgements are a table, `pd.DataFrame` of a list of `Judgement`; items are dicts, or a table, with item_id and
completions. Pairs, rankings and best-of-k choices are read alike, as the pairs of completions that they put in order,
and an item is one draw: it counts by the mean over its pairs, and 95% intervals are Wilson's (1927) for as many draws
as items, which are never of width 0, and too wide rather than too narrow where an item's mean is neither 0 nor 1.
Labelers who were not measured have no row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.statistics import expanded_levels, share_interval
from workbench.feedback.agreement import (
    Labels,
    is_verdict,
    labeler_vs_rest,
    labels_of,
    parts_of,
    read_judgements,
    require_common_items,
)
from workbench.feedback.kinds import COMPARING
from workbench.feedback.tables import name_of, read

JUDGEMENT = ("item_id", "labeler", "kind", "value", "shown_order", "repeat")


def keep(judgements: pd.DataFrame, *, labelers: Sequence[str] = (), slower_than_ms: int = 0) -> pd.DataFrame:
    """The judgements by these labelers that took at least so long; () and 0 leave nothing out.

    Those whose time nobody measured (0) stay. WorkbenchError for a labeler that the table does not have.
    """
    judgements = read(judgements, ["labeler", "elapsed_ms"])
    names, wanted = judgements["labeler"].astype(str), {str(name_of(each)) for each in labelers}
    if unknown := sorted(wanted.difference(names)):
        raise WorkbenchError(f"No judgement has the labeler {unknown[0]!r}: choose from {sorted(set(names))}.")
    elapsed = judgements["elapsed_ms"]
    return judgements[(names.isin(wanted) | (not wanted)) & ((elapsed == 0) | (elapsed >= slower_than_ms))]


def position_bias(judgements: pd.DataFrame) -> pd.DataFrame:
    """Share of the decided pairs in which the completion that was shown before the other is preferred: .5 if unbiased.

    Rows labeler, share, low, high, items. Ties and second judgements of an item are left out.
    """
    pairs = _decided(judgements)
    earlier = [
        order.index(winner) < order.index(loser)
        for order, winner, loser in zip(pairs["shown_order"], pairs["winner"], pairs["loser"], strict=True)
    ]
    return _shares(pairs, np.array(earlier, dtype=float))


def length_bias(judgements: pd.DataFrame, items: pd.DataFrame | Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Share of the decided pairs of different length in which the longer completion is preferred.

    Length is the number of words, of all messages where a completion is a list of them. Rows as in `position_bias`.
    WorkbenchError for a judgement of an unknown item.
    """
    pairs, known = _decided(judgements), _column(items, "completions")
    pairs = pairs.assign(item_id=[str(item) for item in pairs["item_id"]])
    unknown = set(pairs["item_id"]).difference(known)
    if unknown:
        raise WorkbenchError(f"Item {min(unknown)!r} was judged, but is not among the {len(known)} items: give all.")
    gaps = []
    for item, i, j in pairs[["item_id", "winner", "loser"]].to_numpy():
        try:
            gaps.append(_words(known[item][i]) - _words(known[item][j]))
        except (TypeError, IndexError, KeyError, AttributeError):
            raise WorkbenchError(
                f"Item {item!r} has the completions {known[item]!r:.60}, of which {i} and {j} were compared: give a "
                "text or messages for each."
            ) from None
    gap = np.array(gaps, dtype=int)
    return _shares(pairs[gap != 0], (gap[gap != 0] > 0).astype(float))


def self_consistency(judgements: pd.DataFrame) -> pd.DataFrame:
    """Agreement of labelers with themselves, where they judged an item a second time (`repeat` 1).

    Rows labeler, share, low, high, items. Verdicts are compared as in `pairwise_agreement`, a tie against a choice
    counting half; ratings agree where they are the same number. An item that was skipped once is left out.
    """
    judgements = read_judgements(judgements, JUDGEMENT)
    first, again = (parts_of(judgements[judgements["repeat"] == number]) for number in (0, 1))
    pairs = first.merge(again, on=["item_id", "labeler", "kind", "part"])
    one, other = pairs["value_x"], pairs["value_y"]
    half = ((one == "tie") != (other == "tie")) / 2
    return _shares(pairs, np.where(one == other, 1.0, half))


def attention_checks(judgements: pd.DataFrame, items: pd.DataFrame | Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Share of the items with an `expected` verdict in which the labeler gave just this one, and did not skip.

    Rows labeler, share, low, high, items. Second judgements are left out. In a ranking, tied completions have no order.
    """
    judgements = read_judgements(judgements, JUDGEMENT)
    expected = {item: value for item, value in _column(items, "expected").items() if value is not None}
    judgements = judgements.assign(item_id=[str(item) for item in judgements["item_id"]])
    rows = judgements[(judgements["repeat"] == 0) & judgements["item_id"].isin(list(expected))]
    passed = [_plain(value) == _plain(expected[item]) for item, value in rows[["item_id", "value"]].to_numpy()]
    return _shares(rows, np.array(passed, dtype=float))


def seconds_per_item(judgements: pd.DataFrame) -> pd.DataFrame:
    """How long labelers took: rows labeler, median, p10, p90 (seconds), measured, unmeasured (judgements).

    Judgements whose time nobody measured (0) are counted and left out; second judgements and skips took time, too.
    """
    judgements = read(judgements, ["labeler", "elapsed_ms"])
    rows = []
    for labeler, elapsed in judgements.groupby("labeler")["elapsed_ms"]:
        measured = elapsed[elapsed > 0]
        if len(measured):
            median, low, high = np.quantile(measured / 1000, [0.5, 0.1, 0.9]).tolist()
            rows.append([labeler, median, low, high, len(measured), len(elapsed) - len(measured)])
    return pd.DataFrame(rows, columns=["labeler", "median", "p10", "p90", "measured", "unmeasured"])


def labeler_summary(
    judgements: pd.DataFrame, items: pd.DataFrame | Iterable[Mapping[str, Any]], *, seed: int = 0
) -> pd.DataFrame:
    """All of this in a row per labeler: labeler, judgements, skipped (counts), and what was measured of anybody.

    agreement (with all others, `labeler_vs_rest` of what was put in order), prefers_first, prefers_longer, consistency
    and attention, each with <name>_low and <name>_high; seconds (median). Missing where that labeler was not measured.
    """
    judgements = read_judgements(judgements, [*JUDGEMENT, "elapsed_ms"])
    skipped = judgements["value"].map(lambda value: not is_verdict(value)).groupby(judgements["labeler"]).sum()
    summary = pd.DataFrame({"judgements": judgements["labeler"].value_counts(), "skipped": skipped}).sort_index()
    tables = {
        "agreement": _agreement(judgements, seed),
        "prefers_first": position_bias(judgements),
        "prefers_longer": length_bias(judgements, items),
        "consistency": self_consistency(judgements),
        "attention": attention_checks(judgements, items),
    }
    for name, table in tables.items():
        if len(table):
            columns = {"share": name, "low": f"{name}_low", "high": f"{name}_high"}
            summary = summary.join(table.set_index("labeler")[list(columns)].rename(columns=columns))
    seconds = seconds_per_item(judgements).set_index("labeler")["median"].rename("seconds")
    summary = summary.join(seconds) if len(seconds) else summary
    return summary.rename_axis("labeler").reset_index()


def wilson_interval(share: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """Ends of the interval of a share of `count` independent draws (Wilson 1927)."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5 / (1 + z**2 / count)
    return max(0.0, middle - half), min(1.0, middle + half)  # rounding aside, it never leaves them


def _shares(rows: pd.DataFrame, scores: np.ndarray) -> pd.DataFrame:
    """Mean over each labeler's items of the mean score, 0 to 1, of an item's rows."""
    means = rows[["labeler", "item_id"]].assign(score=scores).groupby(["labeler", "item_id"])["score"].mean()
    table = []
    for labeler, own in means.groupby("labeler"):
        table.append([labeler, own.mean(), *wilson_interval(own.mean(), len(own)), len(own)])
    return pd.DataFrame(table, columns=["labeler", "share", "low", "high", "items"])


def _decided(judgements: pd.DataFrame) -> pd.DataFrame:
    """The pairs of completions of which one is preferred: item_id, labeler, winner, loser (indices), shown_order."""
    pairs = _in_order(judgements)
    pairs = pairs[pairs["value"] != "tie"].reset_index(drop=True)
    ends = pairs["part"].str.split("-", expand=True).reindex(columns=[0, 1]).astype(int)
    for item, order, one, other in zip(pairs["item_id"], pairs["shown_order"], ends[0], ends[1], strict=True):
        if order is None or not {one, other} <= set(order):
            raise WorkbenchError(
                f"Item {item!r} was shown as {order!r}, but {one} and {other} were compared: give both."
            )
    first = pairs["value"] == 0
    return pairs.assign(winner=ends[0].where(first, ends[1]), loser=ends[1].where(first, ends[0]))


def _in_order(judgements: pd.DataFrame) -> pd.DataFrame:
    """The parts of first judgements that say which of two completions is better."""
    judgements = read_judgements(judgements, JUDGEMENT)
    return parts_of(judgements[(judgements["repeat"] == 0) & judgements["kind"].isin(COMPARING)])


def _agreement(judgements: pd.DataFrame, seed: int) -> pd.DataFrame:
    """`labeler_vs_rest` over all kinds that put completions in order; empty where no two labelers can be compared."""
    pairs = _in_order(judgements)
    pairs = pairs.assign(part=pairs["kind"] + " " + pairs["part"]).drop(columns="kind")
    if pairs.groupby(["item_id", "part"])["labeler"].nunique().max() > 1:
        return labeler_vs_rest(pairs, seed=seed).rename(columns={"agreement": "share"})
    return pd.DataFrame()


def _column(items: pd.DataFrame | Iterable[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Each item's entry by the text of its item_id, None where it has none."""
    table = items if isinstance(items, pd.DataFrame) else pd.DataFrame([dict(item) for item in items])
    table = read(table, ["item_id"], perhaps=["expected"])
    return dict(zip(map(str, table["item_id"]), table.get(name, [None] * len(table)), strict=True))


def _words(completion: str | Sequence[Mapping[str, Any]]) -> int:
    texts = [completion] if isinstance(completion, str) else [message["content"] for message in completion]
    return sum(len(text.split()) for text in texts)


def _plain(value: Any) -> Any:
    """A ranking with the indices of each group in order; anything else as it is."""
    if isinstance(value, list) and all(isinstance(group, list) for group in value):
        return [sorted(group) for group in value]
    return value


# --- What labelers go by: how often they choose the longer, the more flattering, the better completion.


def choice_shares(choices: pd.DataFrame, features: Sequence[str]) -> pd.DataFrame:
    """Of each labeler's choices that differ in a feature, the share in which the chosen completion has more of it.

    `choices` has labeler and, for every feature, chosen_<feature> and rejected_<feature>. Rows labeler, feature, share,
    share_low, share_high, pairs (those that differ); none where a labeler saw no difference. WorkbenchError for missing
    columns and for what is no number.
    """
    choices = read(
        choices, ["labeler", *(f"{side}_{feature}" for feature in features for side in ("chosen", "rejected"))]
    )
    rows = []
    for labeler, own in choices.groupby("labeler"):
        for feature in features:
            gap = own[f"chosen_{feature}"] - own[f"rejected_{feature}"]
            gap = gap[gap.abs() > 1e-9]  # sums of weighted parts may differ in the last bit
            if len(gap):
                rows.append([labeler, feature, *share_interval(int((gap > 0).sum()), len(gap)), len(gap)])
    return pd.DataFrame(rows, columns=["labeler", "feature", "share", "share_low", "share_high", "pairs"])


def standing_out(shares: pd.DataFrame) -> pd.DataFrame:
    """For each feature of `choice_shares` the labeler furthest from all others together, the clearest case first.

    Rows feature, labeler, share, others (their share), difference, standard_errors (how many of them the difference
    is); features that fewer than two labelers saw a difference in have none.
    """
    rows = []
    for feature, table in shares.groupby("feature", sort=False):
        if len(table) > 1:
            share, pairs = table["share"], table["pairs"]
            rest = pairs.sum() - pairs
            others = ((share * pairs).sum() - share * pairs) / rest
            difference = share - others
            spread = np.sqrt(share * (1 - share) / pairs + others * (1 - others) / rest)
            errors = (difference / spread).where(difference != 0, 0.0)
            furthest = errors.abs().idxmax()
            values = [column[furthest] for column in (table["labeler"], share, others, difference, errors)]
            rows.append([feature, *values])
    columns = ["feature", "labeler", "share", "others", "difference", "standard_errors"]
    found = pd.DataFrame(rows, columns=columns)
    return found.sort_values("standard_errors", key=abs, ascending=False, ignore_index=True)


# --- What is true and how reliable each labeler is, both from verdicts alone (Dawid and Skene 1979).
#
# Every item has a true class, and a labeler who sees an item of class j says l with a probability of their own:
# row j of their confusion matrix. Given the class, verdicts are independent. So whom the others contradict weighs
# less, and who always errs in the same way is corrected. Two labelers do not determine the model; three do where
# most are right.


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
