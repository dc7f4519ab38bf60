"""Completions of one prompt as items that a labeler can judge: two at a time, or several."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workbench import WorkbenchError

NOT_AN_ITEM_COLUMN = ("prompt_index", "completion", "finished", "logprob", "prompt_messages")


def pair_items(completions: Iterable[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Items of two completions each, and how many pairs were left out for which reason.

    `completions` come two per prompt, one after the other, as `BestOfNTrainer.pool` holds them: prompt, completion,
    finished and the prompt's own columns. Pairs that read the same or that hit the length limit are left out: nobody
    can prefer one, or judge an ending that is not there. An item has item_id, prompt, completions, finished, columns.
    WorkbenchError where two in a row are of different prompts, or where no pair is left.
    """
    rows = list(completions)
    if len(rows) % 2:
        raise WorkbenchError(f"{len(rows)} completions make no pairs: sample two for each prompt (num_generations=2).")
    items, left_out = [], {"identical": 0, "unfinished": 0}
    for number, (first, second) in enumerate(zip(rows[::2], rows[1::2], strict=True)):
        if first["prompt"] != second["prompt"]:
            raise WorkbenchError(
                f"Completions {2 * number} and {2 * number + 1} answer different prompts: sample two for each."
            )
        if first["completion"].split() == second["completion"].split():
            left_out["identical"] += 1
        elif not (first["finished"] and second["finished"]):
            left_out["unfinished"] += 1
        else:
            items.append(_item(f"pair-{number:06d}", [first, second]))
    _require_items(items, left_out, f"{len(rows) // 2} pairs")
    return items, left_out


def ranking_items(
    completions: Iterable[Mapping[str, Any]], *, sampled: int, kept: int
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Items of the first `kept` completions that end and read differently, and how many prompts have too few of them.

    `completions` come `sampled` per prompt; items are as those of `pair_items`. WorkbenchError where fewer than 2 are
    to be kept or more than were sampled, and where no item is left.
    """
    rows = list(completions)
    if not 2 <= kept <= sampled or len(rows) % sampled:
        raise WorkbenchError(
            f"{kept} of {sampled} completions of each prompt can not be ranked, of {len(rows)} in all: keep from 2 to "
            "as many as were sampled for each."
        )
    items, left_out = [], {"too few different": 0}
    for number, group in enumerate(rows[start : start + sampled] for start in range(0, len(rows), sampled)):
        if any(row["prompt"] != group[0]["prompt"] for row in group):
            raise WorkbenchError(f"The {sampled} completions from {number * sampled} on answer different prompts.")
        different = _different(group)[:kept]
        if len(different) < kept:
            left_out["too few different"] += 1
        else:
            items.append(_item(f"ranking-{number:06d}", different))
    _require_items(items, left_out, f"{len(rows) // sampled} prompts")
    return items, left_out


def _different(group: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The completions that end, the first of those that read the same."""
    different: dict[str, Mapping[str, Any]] = {}
    for row in group:
        if row["finished"]:
            different.setdefault(" ".join(row["completion"].split()), row)
    return list(different.values())


def _item(item_id: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The item of finished completions of one prompt, with the prompt's own columns.

    Its id ends in a hash of what is shown, so that no judgement is ever taken for one of other texts. What a chat
    template wrote for one model is a conversation again, which every template can write.
    """
    columns = {name: value for name, value in rows[0].items() if name not in NOT_AN_ITEM_COLUMN}
    completions = [row["completion"] for row in rows]
    digest = hashlib.sha256(json.dumps([rows[0]["prompt"], completions]).encode()).hexdigest()[:8]
    if messages := rows[0].get("prompt_messages"):
        columns["prompt"] = messages
        completions = [[{"role": "assistant", "content": text}] for text in completions]
    own = {"item_id": f"{item_id}-{digest}", "completions": completions, "finished": [True] * len(rows)}
    return own | columns | own  # the item's own come first, and win where a dataset has such names


def _require_items(items: Sequence, left_out: Mapping[str, int], tried: str) -> None:
    if not items:
        counts = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise WorkbenchError(
            f"None of {tried} can be judged ({counts}): train the model longer, raise max_completion_length or sample "
            "at a higher temperature."
        )
