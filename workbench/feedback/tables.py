"""Tables of verdicts or comparisons that somebody else made, read once, at the border.

Names (of labelers, items, rivals) are texts that print, without blanks at their ends, in one Unicode form, or whole
numbers where a column has nothing else. Verdicts are finite numbers or texts; "1", 1 and True are one. Whatever can not
be read is refused with its row and column.
"""

from __future__ import annotations

import datetime
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from numbers import Integral, Real
from operator import index
from typing import Any

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.records import is_message
from workbench.runs.files import WIDTHLESS, whole_characters

NOTHING = {"nan", "NaN", "NAN", "None", "<NA>", "NaT", "null"}  # what a missing value leaves where it became text
NUMBER = re.compile(r"[+-]?(inf|Infinity|(\d+|\d*\.\d+|\d+\.\d*)([eE][+-]?\d+)?)")
MOST_TIED = 12  # names: all orders of a group count, and their stages double with each name
LONGEST_NAME = 100  # characters
LARGEST = 1e100  # of a verdict: its square is a number, too
WORDS = {"tie": "tie", "skip": "skip", "true": 1, "false": 0, "": None}
TRUTHS = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False, "1.0": True, "0.0": False}


def read(table: pd.DataFrame, columns: Sequence[str], *, perhaps: Sequence[str] = ()) -> pd.DataFrame:
    """The table with these `columns`, and `perhaps` others where it has them, as typed values; the rest as it is.

    WorkbenchError for a column that is missing or there twice, and for the first value that says nothing.
    """
    require_columns(table, columns)
    found = {}
    for column in [*columns, *(name for name in perhaps if name in table)]:
        found[column] = _column(table, column)
    for group in (["winner", "loser"], *([each] for each in NAMES)):
        names = {each: found[each] for each in group if each in found}
        found |= dict(zip(names, of_one_sort(*names.values()), strict=True))
    typed = {
        name: pd.Series(values, index=table.index, dtype=object if name in MIXED else None)
        for name, values in found.items()
    }
    return table.assign(**typed)


def name_of(value: Any) -> str | int:
    """A name as it is compared; ValueError where the value is none, or two names could look the same."""
    if type(value) is int:  # most are
        return value
    if isinstance(value, str):
        name = " ".join(unicodedata.normalize("NFC", value).split())
    elif isinstance(value, Real | Decimal) and not isinstance(value, bool) and value == value // 1:
        return int(value)
    elif isinstance(value, datetime.date) and value == value:  # NaT differs from itself
        name = str(value)
    else:
        raise ValueError
    if not name or name in NOTHING or not name.isprintable():
        raise ValueError
    return name


def of_one_sort(*columns: Iterable[str | int]) -> list[list]:
    """Names that are compared with each other: whole numbers where all of them are, else texts."""
    lists = [list(column) for column in columns]
    mixed = any(isinstance(name, str) for names in lists for name in names)
    return [[str(name) for name in names] if mixed else names for names in lists]


def verdict_value(value: Any) -> Any:
    """A number, text or list of a verdict, None where nothing was said; ValueError where it is none of these."""
    if isinstance(value, str):
        seen = value if value.isascii() else WIDTHLESS.sub("", unicodedata.normalize("NFC", whole_characters(value)))
        text = " ".join(seen.split())
        if text in NOTHING:
            raise ValueError
        if not NUMBER.fullmatch(text):
            return WORDS.get(text.lower(), text)
        value = float(text) if set(text) & set(".eE") else int(text)
    if isinstance(value, list | tuple | np.ndarray):
        return [verdict_value(each) for each in value]
    if value is None or value is pd.NA or value is pd.NaT or value != value:
        return None
    if isinstance(value, bool | np.bool_ | Integral):
        value = int(value)
    elif isinstance(value, Real | Decimal):
        value = float(value)
    if not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise ValueError
    return int(value) if value == int(value) else value  # 1.0 is an index, too


def _groups(value: Any) -> list[list[str | int]]:
    groups = [[name_of(name) for name in group] for group in value if not isinstance(group, str)]
    if not groups or len(groups) < len(value) or not all(groups) or max(map(len, groups)) > MOST_TIED:
        raise ValueError
    return groups


def _rest(value: Any) -> list[str | int]:
    if isinstance(value, str):
        raise ValueError
    return [] if pd.api.types.is_scalar(value) and pd.isna(value) else [name_of(name) for name in value]


def _truth(value: Any) -> bool:
    said = verdict_value(value)
    found = False if said is None else TRUTHS.get(str(said).lower())
    if found is None:
        raise ValueError
    return found


def _number(value: Any) -> float:
    number = verdict_value(value)
    if not isinstance(number, int | float):
        raise ValueError
    return number


def _count(value: Any) -> float:
    """A number that is not negative, 0 where there is none."""
    number = verdict_value(value) or 0
    if isinstance(number, str | list) or number < 0:
        raise ValueError
    return number


def _order(value: Any) -> list[int] | None:
    order = verdict_value(value)
    if order is not None and sorted(order) != list(range(len(order))):
        raise ValueError
    return order


NAME = "a text that prints or a whole number"
READERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "item_id": (name_of, NAME),
    "labeler": (name_of, f"the name of who judged, {NAME}"),
    "kind": (name_of, "a kind of judgement"),
    "part": (name_of, NAME),
    "winner": (name_of, f"{NAME} (compare two different names)"),
    "loser": (name_of, f"{NAME} (compare two different names)"),
    "groups": (_groups, f"groups of names, best first, at most {MOST_TIED} level, as in [['a'], ['b', 'c']]"),
    "rest": (_rest, "a list of names, or nothing"),
    "tie": (_truth, "true or false"),
    "value": (verdict_value, "a finite number or a text"),
    "expected": (verdict_value, "a verdict, or nothing"),
    "repeat": (lambda value: index(_count(value)), "0, or 1 where an item was judged again"),
    "elapsed_ms": (_count, "milliseconds, 0 where nobody measured"),
    "shown_order": (_order, "each index of the completions once, counted from 0"),
}

NAMES = ("item_id", "labeler", "part")  # columns, each of one sort of names
MIXED = (
    "value",
    "expected",
    "shown_order",
    "groups",
    "rest",
)  # columns in which pandas would turn None into NaN, and 1 into 1.0


def names_in(table: pd.DataFrame, column: str) -> list[str | int]:
    """A column of any name, whose values say what belongs together."""
    return of_one_sort(_column(table, column, (name_of, NAME)))[0]


def _column(table: pd.DataFrame, column: str, otherwise: tuple[Callable, str] | None = None) -> list:
    if isinstance(table[column], pd.DataFrame):
        raise WorkbenchError(f"The table has {table[column].shape[1]} columns {column!r}: keep one of them.")
    reader, expected = READERS.get(column, otherwise or (_number, "a finite number"))
    read_values = []
    for row, value in enumerate(table[column].tolist()):
        try:
            read_values.append(reader(value))
        except (ValueError, TypeError, ArithmeticError):
            said = " ".join(repr(value).split())
            raise WorkbenchError(
                f"Row {row} (the first is 0) has the {column} {said:.60}: give {expected}, or leave the row out."
            ) from None
    return read_values


def require_columns(table: pd.DataFrame, names: Sequence[str]) -> None:
    """WorkbenchError where the table lacks one of the columns, or is no table."""
    if not isinstance(table, pd.DataFrame):
        raise WorkbenchError(
            f"Verdicts are a {type(table).__name__}: give a table, as pd.DataFrame makes one of a list."
        )
    missing = sorted(set(names) - set(table.columns))
    if missing:
        raise WorkbenchError(f"The table lacks {missing}: it has {list(table.columns)}.")


# --- What may be stored: items that can be judged, labelers with a name, content that JSON can write.


def labeler_name(name: Any) -> str:
    """The name in its one form, as tables compare it; WorkbenchError where nobody could be told apart by it."""
    try:
        name = name_of(name if isinstance(name, str) else None)
    except ValueError:
        raise WorkbenchError(
            f"labeler is {name!r}: give the name of who judges without characters that do not print, as in "
            "labeler='ada'."
        ) from None
    if len(name) > LONGEST_NAME:
        raise WorkbenchError(
            f"The labeler's name has {len(name)} characters ({name[:20]!r}...): give one of at most {LONGEST_NAME}."
        )
    return name


def require_items(items: Sequence[Mapping[str, Any]]) -> None:
    """WorkbenchError names the first item that lacks an id, a prompt or completions, or repeats an id."""
    known = set()
    for place, item in enumerate(items):
        where = f"Item {item.get('item_id', place)!r}" if isinstance(item, Mapping) else f"Item {place}"
        if not isinstance(item, Mapping) or {"item_id", "prompt", "completions"} - set(item):
            raise WorkbenchError(f"{where} lacks item_id, prompt or completions: give all three.")
        try:
            name = name_of(item["item_id"] if isinstance(item["item_id"], str) else None)  # as tables compare it
        except ValueError:
            raise WorkbenchError(
                f"The item at place {place} has the id {item['item_id']!r}: give it a text that prints."
            ) from None
        if name in known:
            raise WorkbenchError(f"Item {item['item_id']!r} appears twice: give every item its own item_id.")
        known.add(name)
        _require_texts(item, where)


def _require_texts(item: Mapping[str, Any], where: str) -> None:
    completions = item["completions"]
    if isinstance(completions, str) or not isinstance(completions, Sequence) or not completions:
        raise WorkbenchError(f"{where} has completions {completions!r:.60}: give a list of texts.")
    for name, text in [("prompt", item["prompt"]), *(("completion", each) for each in completions)]:
        if not isinstance(text, str) and not (isinstance(text, Sequence) and text and all(map(is_message, text))):
            raise WorkbenchError(
                f"{where} has a {name} that is {text!r:.60}: give text or a list of messages with 'role' and 'content'."
            )


def jsonable(value: Any, what: str) -> str:
    """JSON of `value`, in whole characters; WorkbenchError where it can not be stored as such."""
    try:
        return whole_characters(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise WorkbenchError(f"{what} can not be stored ({error}): give texts, numbers, lists and dicts.") from None
