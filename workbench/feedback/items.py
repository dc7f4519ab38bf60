"""Completions of one prompt, two at a time, as items that a labeler can judge."""

from collections.abc import Iterable, Mapping
from typing import Any

NOT_AN_ITEM_COLUMN = ("prompt_index", "completion", "finished", "logprob")


def pair_items(completions: Iterable[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Items of two completions each, and how many pairs were left out for which reason.

    `completions` come two per prompt, one after the other, as `BestOfNTrainer.pool` holds them: prompt, completion,
    finished and the prompt's own columns. Pairs that read the same or that hit the length limit are left out: nobody
    can prefer one, or judge an ending that is not there. An item has item_id, prompt, completions, finished, columns.
    """
    rows = list(completions)
    items, left_out = [], {"identical": 0, "unfinished": 0}
    for number, (first, second) in enumerate(zip(rows[::2], rows[1::2], strict=True)):
        if first["completion"].split() == second["completion"].split():
            left_out["identical"] += 1
        elif not (first["finished"] and second["finished"]):
            left_out["unfinished"] += 1
        else:
            columns = {name: value for name, value in first.items() if name not in NOT_AN_ITEM_COLUMN}
            completions_of = [first["completion"], second["completion"]]
            items.append({"item_id": f"pair-{number:06d}", "completions": completions_of, "finished": [True, True]} | columns)
    return items, left_out
