"""The verdicts in a table of judgements, taken apart so that they can be compared, and as numbers.

`pd.DataFrame(judgements)` makes a table of judgements from a list of `Judgement`; `verdicts` takes it apart. A table of
verdicts has item_id, labeler and value, and part where an item has several units, such as the pairs of a ranking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.feedback.tables import read
from workbench.feedback.validity import VERDICTS

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
    if len(kinds) != 1 or kinds[0] not in PARTS:
        raise WorkbenchError(
            f"Verdicts are compared within one kind out of {list(PARTS)}, but the table holds {kinds}: keep one, as in "
            "judgements[judgements['kind'] == 'pair']."
        )
    first = judgements[judgements["repeat"] == 0] if "repeat" in judgements else judgements
    table = parts_of(first)[["item_id", "labeler", "value", "part"]]
    return table.drop(columns="part") if kinds == ["pair"] else table


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
        if kind in PARTS and is_verdict(value)
        for part, verdict in PARTS[kind](value, order)
    ]
    names = ["item_id", "labeler", "kind", "part", "value", "shown_order"]
    return pd.DataFrame(rows, columns=names).astype({"value": object})


def is_verdict(value: Any) -> bool:
    """Whether something was said: no skip, and not missing."""
    return value is not None and value != "skip"


def _pair_parts(value: Any, _: Sequence[int] | None) -> Iterator[tuple[str, Any]]:
    if value not in (0, 1, "tie"):
        raise WorkbenchError(f"A pair was judged {value!r}: give 0, 1, 'tie' or 'skip'.")
    yield "0-1", value


def _ranking_parts(value: Any, _: Sequence[int] | None) -> Iterator[tuple[str, Any]]:
    if not (isinstance(value, list) and all(isinstance(group, list) for group in value)):
        raise WorkbenchError(f"A ranking is {value!r}: give groups of indices, best first, such as [[2], [0, 3], [1]].")
    if not VERDICTS["ranking"](value, sum(map(len, value))):
        raise WorkbenchError(f"The ranking {value!r} does not name each of its completions once, counted from 0.")
    place = {index: number for number, group in enumerate(value) for index in group}
    for i, j in combinations(range(len(place)), 2):
        yield f"{i}-{j}", "tie" if place[i] == place[j] else int(place[i] > place[j])


def _best_of_parts(value: Any, order: Sequence[int] | None) -> Iterator[tuple[str, Any]]:
    if order is None or value not in order:
        raise WorkbenchError(f"The best is {value!r} out of the shown {order!r}: give the index of one of them.")
    for other in sorted(order):
        if other != value:
            yield f"{min(value, other)}-{max(value, other)}", int(other < value)


def _rating_parts(value: Any, _: Sequence[int] | None) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, list) or any(isinstance(number, str | list) for number in value):
        raise WorkbenchError(f"A rating is {value!r}: give one number, or None, for each completion.")
    for index, number in enumerate(value):
        if is_verdict(number):
            yield str(index), number


PARTS: dict[str, Callable[[Any, Sequence[int] | None], Iterable[tuple[str, Any]]]] = {
    "pair": _pair_parts,
    "ranking": _ranking_parts,
    "best_of": _best_of_parts,
    "rating": _rating_parts,
}


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
