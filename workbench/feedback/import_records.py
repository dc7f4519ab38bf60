"""Records of files as items and judgements: what the imports of every format share.

Each import returns (items, judgements) that a store takes. WorkbenchError names the record (the first is 0), what is
missing in it and what to do. Names are never guessed: keywords say which fields are meant. Where a labeler judged an
item again, the later judgements are repeats.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench import WorkbenchError
from workbench.feedback.tables import name_of
from workbench.feedback.validity import labeler_name, require_items, require_verdict
from workbench.records import Judgement
from workbench.runs.files import parse_json, resolve, shown

Records = list[tuple[str, dict[str, Any]]]  # where it stands, for messages, and what it says
Feedback = tuple[list[dict[str, Any]], list[Judgement]]
OTHER_NAMES = {"expected": "file_expected"}
SIDES = {"left": 0, "right": 1, "tie": "tie", "skip": "skip"}  # what pairs are usually labelled with


def records_of(path: str | Path) -> Records:
    """Where each record of a JSON list or a JSON-lines file stands, for messages, and the record."""
    try:
        text = resolve(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise WorkbenchError(f"{shown(path)} can not be read as text ({error}): check the path.") from None
    whole = text.lstrip().startswith("[")
    records = []
    for number, part in enumerate([text] if whole else [line for line in text.split("\n") if line.strip()]):
        try:
            found = parse_json(part)
        except ValueError as error:
            what = "the file" if whole else f"record {number} (the first is 0)"
            raise WorkbenchError(f"{shown(path)}: {what} is not JSON ({error}): export it again.") from None
        records += found if whole else [found]
    if not records:
        raise WorkbenchError(f"{shown(path)} has no records: export it again.")
    places = [f"{shown(path)}: record {number} (the first is 0)" for number in range(len(records))]
    for where, record in zip(places, records, strict=True):
        if not isinstance(record, dict):
            raise WorkbenchError(f"{where} is {record!r:.60}, not an object with named fields: export it again.")
    return list(zip(places, records, strict=True))


def field_of(record: Mapping[str, Any], name: str, where: str) -> Any:
    """What a record says under a name; WorkbenchError where it says nothing."""
    if not isinstance(record, Mapping):
        raise WorkbenchError(f"{where} is {record!r:.60}, not an object with named fields: export it again.")
    if record.get(name) is None:
        found = "it is null" if name in record else f"found: {', '.join(map(str, record))}"
        raise WorkbenchError(f"{where} has no {name!r} ({found}): name the right field, or export it again.")
    return record[name]


@contextmanager
def shaped(where: str) -> Iterator[None]:
    """WorkbenchError where a record has text or a number in the place of an object or a list."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError):
        raise WorkbenchError(f"{where} has another shape than records of its format: export it again.") from None


def verdict_of(label: Any, meaning: Mapping[str, Any], where: str) -> Any:
    """The verdict that a label stands for; 1, 1.0 and "1" are one label."""
    verdicts = {_text(known): verdict for known, verdict in meaning.items()}
    if _text(label) not in verdicts:
        raise WorkbenchError(f"{where} is labelled {label!r}: say what it means, as in labels={{{label!r}: 0}}.")
    return verdicts[_text(label)]


def _text(label: Any) -> str:
    return str(int(label) if isinstance(label, float) and label.is_integer() else label)


def named(name: Any, what: str, where: str, *, otherwise: str = "") -> str:
    """A name in a record as text, 0 as any other; `otherwise`, or WorkbenchError where there is none."""
    if name is None and otherwise:
        return otherwise
    try:
        return str(name_of(name))
    except (ValueError, ArithmeticError):
        raise WorkbenchError(f"{where} has the {what} {name!r:.60}: give each a name that prints.") from None


def others_of(columns: Mapping[str, Any], own: Iterable[str] = ()) -> dict[str, Any]:
    """What goes to the item as it is, without its `own` columns; "expected" as "file_expected".

    An item's `expected` verdict makes it an attention check, which nobody meant by a column of that name.
    """
    return {OTHER_NAMES.get(name, name): value for name, value in columns.items() if name not in own}


def judgement_of(
    item: Mapping[str, Any],
    kind: str,
    value: Any,
    *,
    labeler: str,
    where: str,
    details: Mapping[str, Any] | None = None,
    seconds: Any = None,  # what a file says of the time taken, perhaps nothing
) -> Judgement:
    """A judgement shown in the order of the completions; its event_id depends on what was said by whom of what."""
    said = [item["item_id"], item["prompt"], item["completions"], kind, value, labeler]
    timed = isinstance(seconds, int | float) and 0 <= seconds < math.inf
    try:
        require_items([item])
        labeler = labeler_name(labeler)
    except WorkbenchError as error:
        raise WorkbenchError(f"{where}: {error}") from None
    judgement = Judgement(
        item_id=item["item_id"],
        labeler=labeler,
        kind=kind,
        value=value,
        shown_order=list(range(len(item["completions"]))),
        elapsed_ms=round(1000 * seconds) if timed else 0,
        note="",
        event_id=f"import-{digest(said)[:24]}",
        details=details or {},
    )
    try:
        require_verdict(judgement, item)
    except WorkbenchError as error:
        raise WorkbenchError(f"{where}: {error}") from None
    return judgement


def with_repeats(items: list[dict[str, Any]], judgements: list[Judgement], path: str | Path) -> Feedback:
    """Both, with valid items, and the later judgements of an item by the same labeler as repeats."""
    try:
        require_items(items)
    except WorkbenchError as error:
        raise WorkbenchError(f"{shown(path)}: {error}") from None
    turns: Counter = Counter()
    numbered = []
    for judgement in judgements:
        turn = turns[judgement.item_id, judgement.labeler]
        numbered.append(replace(judgement, repeat=turn, event_id=f"{judgement.event_id}-{turn}"))
        turns[judgement.item_id, judgement.labeler] += 1
    return items, numbered


def digest(value: Any) -> str:
    """64 letters and digits that depend on nothing but a value that JSON can write."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
