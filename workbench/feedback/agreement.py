"""How far labelers agree, from a table of judgements or of `verdicts`.

Items are what was drawn independently, so every interval resamples items and keeps all that belongs to one together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.statistics import Interval, interval_over_items, per_item
from workbench.feedback.kinds import KINDS
from workbench.feedback.tables import read


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
    square = pd.DataFrame(shares, index=labels.labelers, columns=labels.labelers)
    return square.reindex(index=labels.everybody, columns=labels.everybody)  # with those who only skipped


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


# --- Agreement beyond chance: Cohen's and Fleiss' kappa and Krippendorff's alpha, 1 - observed / expected
# disagreement.
#
# They differ in what chance is: two labelers who keep their own habits (Cohen), or all verdicts thrown together
# (Fleiss, Krippendorff). Tables are those of `workbench.feedback.agreement`. Where all verdicts are the same,
# nothing could have differed: 0 / 0 is refused in a sentence. Otherwise the values are defined, even for one
# item; the intervals need two.


WEIGHTS = {"equal": 0, "linear": 1, "quadratic": 2}  # powers of |a - b|
LEVELS = {"nominal": 0, "interval": 2, "ordinal": None}

# What each item adds to the sums, (M, K), and what those sums (..., K) come to, (...), NaN where that is undefined.
Statistic = tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]


def cohen_kappa(table: pd.DataFrame, *, weights: str = "equal", seed: int = 0) -> Interval:
    """Kappa of the two labelers in the table, with a 95% bootstrap interval over the items that both judged.

    Cohen 1960; with weights Cohen 1968: two values differ by |a - b| ("linear") or its square ("quadratic") and
    must then be numbers, else by 1. WorkbenchError for another number of labelers, and where both always gave one same
    verdict: agreement is complete, kappa undefined.
    """
    labels = comparable_labels(table)
    if len(labels.labelers) != 2:
        raise WorkbenchError(
            f"Cohen's kappa compares 2 labelers, but the table holds {labels.labelers}: keep two of them."
        )
    return _interval(_cohen(labels, weights), labels, seed)


def fleiss_kappa(table: pd.DataFrame, *, seed: int = 0) -> Interval:
    """Kappa of any labelers, with the same number of verdicts on every item, and a 95% bootstrap interval over items.

    Fleiss 1971. WorkbenchError where items have different numbers of verdicts (`equally_judged` keeps those with
    the most common number, `krippendorff_alpha` takes all), and where all verdicts are the same.
    """
    labels = comparable_labels(table)
    return _interval(_fleiss(labels), labels, seed)


def equally_judged(table: pd.DataFrame) -> pd.DataFrame:
    """The verdicts on items with the most common number of verdicts out of 2 and more; the larger one where two are."""
    labels = comparable_labels(table)
    judged = labels.counts.sum(axis=1).astype(int)
    frequency = np.bincount(judged[judged > 1])
    most_common = len(frequency) - 1 - frequency[::-1].argmax()
    frame = labels.index[labels.unit].to_frame(index=False)
    frame["labeler"] = [labels.labelers[number] for number in labels.labeler]
    frame["value"] = pd.Series([labels.values[number] for number in labels.value], dtype=object)
    return frame[judged[labels.unit] == most_common].reset_index(drop=True)


def krippendorff_alpha(table: pd.DataFrame, *, level: str, seed: int = 0) -> Interval:
    """Alpha of any labelers, each of whom judged some of the items, with a 95% bootstrap interval over items.

    Krippendorff 2011, sections C and D. `level` says how far two values differ: "nominal" by 1, "interval" by the
    square of their difference, "ordinal" by the square of how many verdicts lie between them; the latter two need
    numbers. Items that one labeler judged are left out. WorkbenchError where all verdicts are the same.
    """
    labels = comparable_labels(table)
    return _interval(_alpha(labels, level), labels, seed)


def _cohen(labels: Labels, weights: str) -> Statistic:
    """Kappa from the sums of: disagreement, the first labeler's verdicts by value (C), the second's (C)."""
    if weights not in WEIGHTS:
        raise WorkbenchError(f"There are no weights {weights!r}: use {', '.join(WEIGHTS)}.")
    distances = _distances(labels.values, WEIGHTS[weights])
    both = (labels.given >= 0).all(axis=1)
    first, second = labels.given[both].T
    one_hot = np.eye(len(labels.values))
    rows = np.concatenate([distances[first, second][:, None], one_hot[first], one_hot[second]], axis=1)
    return _by_item(rows, labels.item[both]), partial(_cohen_kappa_of, distances=distances)


def _cohen_kappa_of(sums: np.ndarray, *, distances: np.ndarray) -> np.ndarray:
    first, second = np.split(sums[..., 1:], 2, axis=-1)
    return _corrected(sums[..., 0] * first.sum(axis=-1), ((first @ distances) * second).sum(axis=-1))


def _fleiss(labels: Labels) -> Statistic:
    """Kappa from the sums of: pairs of verdicts that differ, verdicts by value (C)."""
    counts = labels.counts
    judged = counts.sum(axis=1)
    if judged.min() != judged.max():
        raise WorkbenchError(
            f"Items have {judged.min():.0f} to {judged.max():.0f} verdicts, but Fleiss' kappa needs the same number on "
            "each: keep some of them with equally_judged, or use krippendorff_alpha."
        )
    differ = judged**2 - (counts**2).sum(axis=1)
    rows = np.concatenate([differ[:, None], counts], axis=1)
    return _by_item(rows, labels.item), partial(_fleiss_kappa_of, per_unit=judged[0])


def _fleiss_kappa_of(sums: np.ndarray, *, per_unit: float) -> np.ndarray:
    counts = sums[..., 1:]
    total = counts.sum(axis=-1)
    expected = total**2 - (counts**2).sum(axis=-1)
    return _corrected(sums[..., 0] * total / (per_unit - 1), expected)


def _alpha(labels: Labels, level: str) -> Statistic:
    """Alpha from the sums of coincidences: how often two values were given to one unit, each verdict counting once.

    Ordinal distances depend on all of them, (C * C); else their disagreement and totals by value, (1 + C), suffice.
    """
    if level not in LEVELS:
        raise WorkbenchError(f"There is no level {level!r}: use {', '.join(LEVELS)}.")
    counts = labels.counts
    several = counts.sum(axis=1) > 1
    counts, item = counts[several], labels.item[several]
    others = counts.sum(axis=1, keepdims=True) - 1
    if level == "ordinal":
        _numbers(labels.values)
        pairs = counts[:, :, None] * (counts[:, None, :] - np.eye(counts.shape[1]))
        return _by_item((pairs / others[:, :, None]).reshape(len(counts), -1), item), _ordinal_alpha_of
    distances = _distances(labels.values, LEVELS[level])
    disagreement = ((counts @ distances) * counts).sum(axis=1, keepdims=True) / others
    rows = np.concatenate([disagreement, counts], axis=1)
    return _by_item(rows, item), partial(_alpha_of, distances=distances)


def _alpha_of(sums: np.ndarray, *, distances: np.ndarray) -> np.ndarray:
    counts = sums[..., 1:]
    expected = ((counts @ distances) * counts).sum(axis=-1)
    return _corrected(sums[..., 0] * (counts.sum(axis=-1) - 1), expected)


def _ordinal_alpha_of(sums: np.ndarray) -> np.ndarray:
    size = int(sums.shape[-1] ** 0.5)
    coincidences = sums.reshape(*sums.shape[:-1], size, size)
    counts = coincidences.sum(axis=-1)
    ranks = counts.cumsum(axis=-1) - counts / 2  # half of a value's own verdicts lie below it
    distances = (ranks[..., :, None] - ranks[..., None, :]) ** 2
    observed = (coincidences * distances).sum(axis=(-2, -1)) * (counts.sum(axis=-1) - 1)
    return _corrected(observed, (counts[..., :, None] * counts[..., None, :] * distances).sum(axis=(-2, -1)))


def _corrected(observed: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """1 - observed / expected, NaN where no disagreement is expected."""
    undefined = np.full(np.shape(expected), np.nan)
    return 1 - np.divide(observed, expected, out=undefined, where=expected > 0)


def _distances(values: list, power: int) -> np.ndarray:
    """|a - b| ** power, (C, C), and 1 between any two values where the power is 0."""
    if power == 0:
        return 1 - np.eye(len(values))
    numbers = _numbers(values)
    return np.abs(numbers[:, None] - numbers) ** power


def _numbers(values: list) -> np.ndarray:
    texts = [value for value in values if isinstance(value, str)]
    if texts:
        raise WorkbenchError(
            f"The verdict {texts[0]!r} is no number: how far verdicts differ is known of numbers; use level='nominal' "
            "or weights='equal'."
        )
    return np.array(values, dtype=float)


def _by_item(rows: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Sums of the rows of each item that has any, (M, K)."""
    return per_item(rows, np.unique(item, return_inverse=True)[1]) if len(rows) else rows


def _interval(statistic: Statistic, labels: Labels, seed: int) -> Interval:
    """WorkbenchError where the value is undefined."""
    rows, value_of = statistic
    if np.isnan(value_of(rows.sum(axis=0))):
        counts = labels.counts
        only = labels.values[counts[counts.sum(axis=1) > 1].sum(axis=0).argmax()]
        raise WorkbenchError(
            f"Every verdict that can be compared is {only!r}: agreement is complete, but what chance would give is "
            "unknown, and kappa and alpha are undefined; report pairwise_agreement, or collect verdicts that differ."
        )
    return interval_over_items(*statistic, seed=seed)


# --- The verdicts in a table of judgements, taken apart so that they can be compared, and as numbers.
#
# `pd.DataFrame(judgements)` makes a table of judgements from a list of `Judgement`; `verdicts` takes it apart. A
# table of verdicts has item_id, labeler and value, and part where an item has several units, such as the pairs of
# a ranking.


VERDICT = ("item_id", "labeler", "kind", "value")  # columns of a judgement
OTHERS = ("shown_order", "repeat", "elapsed_ms")  # that it may have, too


@dataclass(frozen=True, kw_only=True)
class Labels:
    """N verdicts of L labelers on U units as numbers; C different values were given."""

    unit: np.ndarray  # (N,) which unit was judged
    labeler: np.ndarray  # (N,) index into labelers
    value: np.ndarray  # (N,) index into values
    item: np.ndarray  # (U,) number of the item that a unit belongs to, in the order of the item ids
    index: pd.Index  # (U,) the item_id of each unit, with its part where items have parts
    labelers: list[str] | list[int]  # sorted
    everybody: list[str] | list[int]  # with those who gave no verdict at all
    values: list[Any]  # numbers in order, then texts

    @property
    def counts(self) -> np.ndarray:
        """How often each unit was given each value, (U, C)."""
        counts = np.zeros((len(self.item), len(self.values)))
        np.add.at(counts, (self.unit, self.value), 1)
        return counts

    @property
    def given(self) -> np.ndarray:
        """Index of the value that each labeler gave each unit, (U, L), -1 where there is none."""
        given = np.full((len(self.item), len(self.labelers)), -1)
        given[self.unit, self.labeler] = self.value
        return given


def verdicts(judgements: pd.DataFrame) -> pd.DataFrame:
    """The verdicts in judgements of one kind: rows item_id, labeler, value, and part where an item has several units.

      pair             its value
      ranking, best_of for every two completions i < j that it puts in order, part "i-j": 0, 1 or "tie", as of a pair
      rating           for every completion i that was rated, part "i": the number
    Skips and second judgements of an item (`repeat` 1) are left out. WorkbenchError for several kinds at once, for
    corrections, which are texts, and for a value that its kind can not have.
    """
    judgements = read_judgements(judgements)
    kinds = judgements["kind"].unique().tolist()
    comparable = [name for name, kind in KINDS.items() if kind.groups or kind.units]
    if len(kinds) != 1 or kinds[0] not in comparable:
        raise WorkbenchError(
            f"Verdicts are compared within one kind out of {comparable}, but the table holds {kinds}: keep one, as in "
            "judgements[judgements['kind'] == 'pair']."
        )
    first = judgements[judgements["repeat"] == 0] if "repeat" in judgements else judgements
    table = parts_of(first)[["item_id", "labeler", "value", "part"]]
    return table.drop(columns="part") if KINDS[kinds[0]].most == 2 else table  # two completions are one part


def read_judgements(judgements: pd.DataFrame, columns: Sequence[str] = VERDICT) -> pd.DataFrame:
    """The table as typed values (see `tables`); WorkbenchError for an event that it holds twice."""
    judgements = read(judgements, columns, perhaps=[each for each in OTHERS if each not in columns])
    events = judgements["event_id"] if "event_id" in judgements else pd.Series(dtype=object)
    if events.duplicated().any():
        raise WorkbenchError(
            f"The event {events[events.duplicated()].iloc[0]!r} is in the table twice: keep one row of each, as in "
            "judgements.drop_duplicates('event_id')."
        )
    return judgements


def parts_of(judgements: pd.DataFrame) -> pd.DataFrame:
    """Every judgement taken apart as in `verdicts`: rows item_id, labeler, kind, part, value, shown_order.

    Judgements of any kinds may be mixed, and come first or a second time. Skips and corrections have no parts.
    """
    orders = judgements["shown_order"] if "shown_order" in judgements else [None] * len(judgements)
    columns = [judgements[name] for name in ("item_id", "labeler", "kind", "value")]
    rows = [
        (item, labeler, kind, part, verdict, order)
        for item, labeler, kind, value, order in zip(*columns, orders, strict=True)
        if kind in KINDS and is_verdict(value)
        for part, verdict in KINDS[kind].parts(value, order) or ()
    ]
    names = ["item_id", "labeler", "kind", "part", "value", "shown_order"]
    return pd.DataFrame(rows, columns=names).astype({"value": object})


def is_verdict(value: Any) -> bool:
    """Whether something was said: no skip, and not missing."""
    return value is not None and value != "skip"


def labels_of(table: pd.DataFrame) -> Labels:
    """The verdicts of a table as numbers, without skips and missing values; judgements are taken apart by `verdicts`.

    WorkbenchError for missing columns, what can not be read (see `tables`), and values that are lists.
    """
    judged = "kind" in table
    table = read(table, ["item_id", "labeler", "value"], perhaps=["part"]) if not judged else read_judgements(table)
    everybody = sorted(set(table["labeler"]))
    table = verdicts(table) if judged else table
    table = table[np.array([is_verdict(value) for value in table["value"]], dtype=bool)]
    units = table.groupby(["item_id", "part"] if "part" in table else ["item_id"], sort=True)
    index = units.size().index
    labeler, labelers = pd.factorize(table["labeler"], sort=True)
    value, values = _numbered(table["value"].tolist())
    return Labels(
        unit=units.ngroup().to_numpy(),
        labeler=labeler,
        value=value,
        item=pd.factorize(index.get_level_values("item_id"))[0],
        index=index,
        labelers=list(labelers),
        everybody=everybody,
        values=values,
    )


def _numbered(values: list) -> tuple[np.ndarray, list]:
    """Each value's place among the different ones, (N,), and these: numbers in order, then texts."""
    if any(isinstance(value, list) for value in values):
        raise WorkbenchError("The table holds values that are lists: add the column kind, and they are taken apart.")
    different = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    place = {value: number for number, value in enumerate(different)}
    return np.array([place[value] for value in values], dtype=int), different


def comparable_labels(table: pd.DataFrame) -> Labels:
    """`labels_of` a table in which labelers can be compared, each with one verdict at most per item (or part of it)."""
    labels = labels_of(table)
    cells, first, count = np.unique(_cells(labels), return_index=True, return_counts=True)
    if len(cells) < len(labels.unit):
        row = first[count.argmax()]
        labeler, item = labels.labelers[labels.labeler[row]], labels.index[labels.unit[row]]
        raise WorkbenchError(
            f"Labeler {labeler!r} judged item {item!r} more than once: keep one verdict of each labeler per item."
        )
    require_common_items(labels)
    return labels


def require_common_items(labels: Labels) -> None:
    """WorkbenchError unless there are two labelers, and two of them judged one item (or part of it)."""
    if len(labels.labelers) < 2:
        raise WorkbenchError(
            f"The table holds verdicts of {len(labels.labelers)} labeler(s): agreement needs at least 2."
        )
    if len(np.unique(_cells(labels))) == len(labels.item):
        raise WorkbenchError("No item was judged by two labelers: give at least two of them the same items.")


def _cells(labels: Labels) -> np.ndarray:
    """A number for the unit and the labeler of each verdict, (N,)."""
    return labels.unit * len(labels.labelers) + labels.labeler
