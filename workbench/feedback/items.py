"""Completions of one prompt, two at a time, as items that a labeler can judge."""

from collections.abc import Iterable, Mapping
from typing import Any

from workbench.errors import WorkbenchError

NOT_AN_ITEM_COLUMN = ("prompt_index", "completion", "finished", "logprob")


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
            columns = {name: value for name, value in first.items() if name not in NOT_AN_ITEM_COLUMN}
            completions_of = [first["completion"], second["completion"]]
            own = {"item_id": f"pair-{number:06d}", "completions": completions_of, "finished": [True, True]}
            items.append(own | columns | own)  # the item's own come first, and win where a dataset has such names
    if not items:
        counts = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise WorkbenchError(
            f"None of {len(rows) // 2} pairs can be judged ({counts}): train the model longer, raise "
            "max_completion_length or sample at a higher temperature."
        )
    return items, left_out
