"""Judgements as training data in the standard columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from workbench.errors import WorkbenchError
from workbench.records import Judgement


def preference_rows(items: Iterable[Mapping], judgements: Iterable[Judgement]) -> tuple[list[dict], list[dict]]:
    """Rows prompt, chosen, rejected, labeler, item_id of every decided pair, and the judgements that were left out.

    `items` are dicts with item_id, prompt and two completions. Left out, each with a `reason`: ties, skips, and choices
    between identical completions, which teach nothing. The two lists together are as long as `judgements`.
    WorkbenchError for an item that is unknown or repeated, or a judgement that is not of a pair.
    """
    known: dict[str, Mapping] = {}
    for item in items:
        if item["item_id"] in known:
            raise WorkbenchError(f"Item {item['item_id']!r} appears twice: give every item its own item_id.")
        known[item["item_id"]] = item
    rows, left_out = [], []
    for judgement in judgements:
        first, second = _judged_pair(known, judgement)
        shared = {"labeler": judgement.labeler, "item_id": judgement.item_id}
        prompt = known[judgement.item_id]["prompt"]
        if judgement.value in ("tie", "skip") or first == second:
            reason = judgement.value if judgement.value in ("tie", "skip") else "identical"
            left_out.append({"prompt": prompt, "completions": [first, second], "reason": reason, **shared})
        else:
            chosen, rejected = (first, second) if judgement.value == 0 else (second, first)
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, **shared})
    return rows, left_out


def _judged_pair(known: Mapping[str, Mapping], judgement: Judgement) -> list:
    """The two completions, unshuffled, that a valid `judgement` is about."""
    if judgement.item_id not in known:
        raise WorkbenchError(
            f"Judgement {judgement.event_id!r} is about item {judgement.item_id!r}, which is not among the items."
        )
    if judgement.kind != "pair" or judgement.value not in (0, 1, "tie", "skip"):
        raise WorkbenchError(
            f"Judgement {judgement.event_id!r} is a {judgement.kind} with value {judgement.value!r}: "
            "preference rows need kind 'pair' and value 0, 1, 'tie' or 'skip'."
        )
    completions = list(known[judgement.item_id]["completions"])
    if len(completions) != 2:
        raise WorkbenchError(f"Item {judgement.item_id!r} has {len(completions)} completions: a pair has 2.")
    return completions
