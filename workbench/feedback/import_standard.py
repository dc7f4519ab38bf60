"""Files of training data in the standard columns, such as `export` writes, as items and judgements."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workbench import WorkbenchError
from workbench.feedback.import_records import (
    Feedback,
    Records,
    digest,
    judgement_of,
    named,
    others_of,
    records_of,
    with_repeats,
)
from workbench.feedback.validity import STRENGTHS
from workbench.records import Judgement

COLUMNS = {  # of the standard files, after prompt
    "preferences": ("chosen", "rejected"),
    "rankings": ("completions", "ranking"),
    "best_of": ("completions", "best"),
    "unpaired": ("completion", "label"),
    "ratings": ("completion", "rating"),
    "demonstrations": ("completion",),
}
KINDS = {"preferences": "pair", "rankings": "ranking", "best_of": "best_of", "demonstrations": "correction"}
OF_THE_JUDGEMENT = ("margin", "preference", "flags", "labeler", "item_id")  # columns that do not describe the item


def standard_feedback(path: str | Path, *, schema: str = "preferences", labeler: str = "imported") -> Feedback:
    """A JSON or JSON-lines file in standard columns, such as `export` writes, as the judgements that it is made of.

    In `preferences`, a preference of .5 is a tie and a `margin` the strength it stands for; other pairs with the same
    item_id become items of their own. Rows of `ratings` and `unpaired` with one item_id and prompt are completions of
    one item; a label is a rating of 1 or 0. Without a column labeler, the n-th judgement of an item is by another one.
    Columns with another name go to the item, "expected" as "file_expected".
    """
    if schema not in COLUMNS:
        raise WorkbenchError(f"There is no schema {schema!r} to import: use one of {', '.join(COLUMNS)}.")
    records = records_of(path)
    for where, record in records:
        for name in ("prompt", *COLUMNS[schema]):
            if record.get(name) is None:
                raise WorkbenchError(f"{where} has no {name!r}, which {schema} need: correct the file.")
    items, judgements = [], []
    for item, rows in _grouped(records, schema, Path(path).stem):
        judgements += (_rated if schema in ("ratings", "unpaired") else _judged)(item, rows, schema, labeler)
        items.append(item)
    return with_repeats(items, judgements, path)


def _grouped(records: Records, schema: str, stem: str) -> list[tuple[dict[str, Any], Records]]:
    """The items that rows are about, and the rows of each; the completions of ratings are still to come."""
    groups: dict[str, Records] = defaultdict(list)
    first = {}
    for number, (where, record) in enumerate(records):
        texts = record["completions"] if "completions" in COLUMNS[schema] else []
        if schema == "preferences":  # in an order that does not tell which was chosen
            texts = sorted((record["chosen"], record["rejected"]), key=digest)
        name = named(record.get("item_id"), "item_id", where, otherwise=" ")
        key = digest([name, record["prompt"], texts])
        first.setdefault(key, (number, texts))
        groups[key].append((where, record))
    names: Counter = Counter()
    items = []
    for key, rows in groups.items():
        (number, texts), (where, record) = first[key], rows[0]
        name = named(record.get("item_id"), "item_id", where, otherwise=f"{stem}-{number:06d}")
        others = others_of(record, (*OF_THE_JUDGEMENT, *COLUMNS[schema]))
        item_id = f"{name}/{names[name]}" if names[name] else name
        items.append(({**others, "item_id": item_id, "completions": texts}, rows))
        names[name] += 1
    return items


def _judged(item: dict[str, Any], rows: Records, schema: str, labeler: str) -> list[Judgement]:
    """One judgement for each row about an item."""
    if schema == "demonstrations":
        texts = {digest(record["completion"]): record["completion"] for _, record in rows}
        item["completions"] = list(texts.values())
    judgements = []
    for turn, (where, record) in enumerate(rows, 1):
        value, details = VALUES[schema](record, item["completions"], where)
        who = named(record.get("labeler"), "labeler", where, otherwise=labeler if turn == 1 else f"{labeler}-{turn}")
        judgements.append(judgement_of(item, KINDS[schema], value, labeler=who, where=where, details=details))
    return judgements


def _rated(item: dict[str, Any], rows: Records, schema: str, labeler: str) -> list[Judgement]:
    """One judgement for each labeler of an item, whose completions are all that anybody rated.

    Equal texts that one labeler rated are as many completions.
    """
    places: dict[tuple[str, int], int] = {}
    said: dict[str, dict[int, tuple]] = defaultdict(dict)
    seen: Counter = Counter()
    for where, record in rows:
        who = named(record.get("labeler"), "labeler", where, otherwise=labeler)
        text = digest(record["completion"])
        place = places.setdefault((text, seen[who, text]), len(places))
        seen[who, text] += 1
        if place == len(item["completions"]):
            item["completions"] = [*item["completions"], record["completion"]]
        flags = record.get("flags")
        if not isinstance(flags, list | None):
            raise WorkbenchError(f"{where} has the flags {flags!r:.60}: give a list of names.")
        said[who][place] = (_number(record, schema, where), flags, where)
    judgements = []
    for who, ratings in said.items():
        numbers = [ratings.get(place, (None,))[0] for place in range(len(places))]
        flags = [list(ratings[place][1] or []) if place in ratings else [] for place in range(len(places))]
        details = {"flags": flags} if any(each[1] is not None for each in ratings.values()) else {}
        where = next(iter(ratings.values()))[2]
        judgements.append(judgement_of(item, "rating", numbers, labeler=who, where=where, details=details))
    return judgements


def _number(record: Mapping[str, Any], schema: str, where: str) -> float:
    """A rating, or 1 or 0 for a label."""
    value = record[COLUMNS[schema][-1]]
    if schema == "unpaired" and value in (0, 1):
        return int(value)
    if schema == "unpaired" or isinstance(value, bool) or not isinstance(value, int | float):
        expected = "true or false" if schema == "unpaired" else "a number"
        raise WorkbenchError(f"{where} has the {COLUMNS[schema][-1]} {value!r}: give {expected}.")
    return value


def _preference(record: Mapping[str, Any], completions: list, where: str) -> tuple[int | str, dict[str, int]]:
    """0, 1 or "tie", and the strength that a margin of thirds stands for."""
    chosen, likely, margin = completions.index(record["chosen"]), record.get("preference"), record.get("margin")
    if likely not in (None, 0, 0.5, 1):
        raise WorkbenchError(
            f"{where} has the preference {likely!r}, which several labelers make together: a single one has 1, 0, "
            "or .5 for a tie; train on the file as it is."
        )
    details = {}
    if margin is not None and likely != 0.5:
        strength = 1 + margin * (len(STRENGTHS) - 1) if isinstance(margin, int | float) else 0
        if not any(abs(strength - each) < 1e-6 for each in STRENGTHS):
            raise WorkbenchError(f"{where} has the margin {margin!r}: strengths are 0, 1/3, 2/3, 1; drop the column.")
        details = {"strength": round(strength)}
    return ("tie" if likely == 0.5 else 1 - chosen if likely == 0 else chosen), details


def _ranking(record: Mapping[str, Any], completions: list, where: str) -> tuple[list[list[int]], dict]:
    if not isinstance(record["ranking"], list):
        raise WorkbenchError(f"{where} has the ranking {record['ranking']!r}: give indices, the best first.")
    return [[index] for index in record["ranking"]], {}


def _demonstration(record: Mapping[str, Any], completions: list, where: str) -> tuple[str, dict]:
    text = record["completion"]
    if isinstance(text, list) and len(text) == 1 and isinstance(text[0], Mapping):
        text = text[0].get("content")
    if not isinstance(text, str):
        raise WorkbenchError(f"{where} has the completion {text!r:.60}: give text or a single message.")
    return text, {}


VALUES: dict[str, Callable[[Mapping[str, Any], list, str], tuple[Any, dict]]] = {
    "preferences": _preference,
    "rankings": _ranking,
    "best_of": lambda record, completions, where: (record["best"], {}),
    "demonstrations": _demonstration,
}
