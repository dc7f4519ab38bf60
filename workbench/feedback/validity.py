"""What may be stored: items that can be judged, labelers with a name, verdicts that mean something."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workbench import WorkbenchError
from workbench.feedback.tables import LARGEST, name_of
from workbench.records import Judgement, is_message
from workbench.runs.files import whole_characters

FEWEST = {"pair": 2, "ranking": 2, "best_of": 2, "rating": 1, "correction": 1}  # completions of an item
MOST = {"pair": 2}
LONGEST_NAME = 100  # characters
STRENGTHS = (1, 2, 3, 4)  # of a preference: negligibly, slightly, better, significantly (Touvron et al. 2023)


def require_kind(kind: str) -> None:
    """WorkbenchError lists the kinds of judgement that exist."""
    if kind not in FEWEST:
        raise WorkbenchError(f"There is no judgement of kind {kind!r}: use one of {', '.join(FEWEST)}.")


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


def require_size(item: Mapping[str, Any], kind: str) -> None:
    """WorkbenchError where an item has too few or too many completions for a kind of judgement."""
    require_kind(kind)
    count = len(item["completions"])
    fewest, most = FEWEST[kind], MOST.get(kind, count)
    if not fewest <= count <= most:
        needed = f"exactly {fewest}" if kind in MOST else f"at least {fewest}"
        raise WorkbenchError(
            f"Item {item['item_id']!r} has {count} completion{'s' * (count != 1)}: a judgement of kind {kind!r} needs "
            f"{needed}."
        )


def require_verdict(judgement: Judgement, item: Mapping[str, Any]) -> None:
    """WorkbenchError where a judgement says nothing about the completions of its item."""
    require_size(item, judgement.kind)
    count = len(item["completions"])
    if sorted(judgement.shown_order) != list(range(count)):
        raise WorkbenchError(f"{_named(judgement)} was shown as {judgement.shown_order}: name each completion once.")
    if judgement.value != "skip" and not VERDICTS[judgement.kind](judgement.value, count):
        raise WorkbenchError(f"{_named(judgement)} has the value {judgement.value!r}: give {EXPECTED[judgement.kind]}.")
    strength = judgement.details.get("strength")
    if strength is not None and strength not in STRENGTHS:
        raise WorkbenchError(f"{_named(judgement)} has the strength {strength!r}: give one of {STRENGTHS}.")


def jsonable(value: Any, what: str) -> str:
    """JSON of `value`, in whole characters; WorkbenchError where it can not be stored as such."""
    try:
        return whole_characters(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise WorkbenchError(f"{what} can not be stored ({error}): give texts, numbers, lists and dicts.") from None


def _named(judgement: Judgement) -> str:
    return f"The {judgement.kind} of item {judgement.item_id!r} by {judgement.labeler!r}"


def _require_texts(item: Mapping[str, Any], where: str) -> None:
    completions = item["completions"]
    if isinstance(completions, str) or not isinstance(completions, Sequence) or not completions:
        raise WorkbenchError(f"{where} has completions {completions!r:.60}: give a list of texts.")
    for name, text in [("prompt", item["prompt"]), *(("completion", each) for each in completions)]:
        if not isinstance(text, str) and not (isinstance(text, Sequence) and text and all(map(is_message, text))):
            raise WorkbenchError(
                f"{where} has a {name} that is {text!r:.60}: give text or a list of messages with 'role' and 'content'."
            )


def _is_index(value: Any, count: int) -> bool:
    return type(value) is int and 0 <= value < count


def _is_ranking(value: Any, count: int) -> bool:
    if not isinstance(value, list) or not all(isinstance(group, list) and group for group in value):
        return False
    placed = [index for group in value for index in group]
    return all(_is_index(index, count) for index in placed) and sorted(placed) == list(range(count))


def _are_ratings(value: Any, count: int) -> bool:
    if not isinstance(value, list) or len(value) != count or all(each is None for each in value):
        return False
    return all(each is None or (type(each) in (int, float) and abs(each) <= LARGEST) for each in value)


VERDICTS: dict[str, Callable[[Any, int], bool]] = {
    "pair": lambda value, count: _is_index(value, count) or value == "tie",
    "ranking": _is_ranking,
    "best_of": _is_index,
    "rating": _are_ratings,
    "correction": lambda value, count: isinstance(value, str) and bool(value.strip()),
}
EXPECTED = {
    "pair": "0, 1 or 'tie'",
    "ranking": "groups of the completions' indices, each index once, the best first",
    "best_of": "the index of the best completion",
    "rating": "a number or None for each completion, not None for all",
    "correction": "the text that should have been written",
}
