"""Judgements as training data in the standard columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any

from workbench.errors import WorkbenchError
from workbench.records import Judgement

STRONGEST = 4  # of a preference: significantly better


def preference_rows(
    items: Iterable[Mapping], judgements: Iterable[Judgement], strengths: Iterable[Judgement] = ()
) -> tuple[list[dict], list[dict]]:
    """Rows prompt, chosen, rejected, labeler, item_id of every decided pair, and the judgements that were left out.

    `items` are dicts with item_id, prompt and two completions. Left out, each with a `reason`: ties, skips, and choices
    between identical completions, which teach nothing. The two lists together are as long as `judgements`. Where
    labelers stated `strengths`, too, rows have a `margin`, 0 to 1 in thirds: the smaller ones of Touvron et al. 2023.
    WorkbenchError for an item that is unknown or repeated, or a judgement that is not of a pair.
    """
    known = _by_id(items)
    margins = {(each.labeler, each.item_id): (each.value - 1) / (STRONGEST - 1) for each in strengths}
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
            margin = {"margin": margins[judgement.labeler, judgement.item_id]} if margins else {}
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, **shared, **margin})
    return rows, left_out


def ranking_rows(items: Iterable[Mapping], judgements: Iterable[Judgement]) -> tuple[list[dict], list[dict]]:
    """Rows prompt, completions, ranking, labeler, item_id of every ranking, and what was skipped, with a `reason`."""
    rows, left_out = [], []
    for judged, shared in _judged(items, judgements, "ranking"):
        order, completions = judged.pop("value"), judged["completions"]
        if order == "skip":
            left_out.append({**judged, "reason": "skip", **shared})
        elif isinstance(order, list) and sorted(order) == list(range(len(completions))):
            rows.append({**judged, "ranking": order, **shared})
        else:
            raise WorkbenchError(
                f"Item {shared['item_id']!r} is ranked {order!r}: name each of its {len(completions)} completions "
                "once, the best first."
            )
    return rows, left_out


def rating_rows(items: Iterable[Mapping], judgements: Iterable[Judgement]) -> tuple[list[dict], list[dict]]:
    """Rows prompt, completion, rating, labeler, item_id of every rated completion, and the items that were skipped."""
    rows, left_out = [], []
    for judged, shared in _judged(items, judgements, "rating"):
        ratings, completions = judged.pop("value"), judged["completions"]
        if ratings == "skip":
            left_out.append({**judged, "reason": "skip", **shared})
        elif isinstance(ratings, list) and len(ratings) == len(completions):
            for completion, rating in zip(completions, ratings, strict=True):
                rows.append({"prompt": judged["prompt"], "completion": completion, "rating": rating, **shared})
        else:
            raise WorkbenchError(
                f"Item {shared['item_id']!r} is rated {ratings!r}: give one rating for each of its {len(completions)} "
                "completions."
            )
    return rows, left_out


def ranking_pairs(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each ranking as its C(K, 2) pairs, one after the other: rows prompt, chosen, rejected and its other columns.

    Pairs of one ranking are no independent evidence: batches that part them overfit (Ouyang et al. 2022, section 3.5);
    `item_id` and `labeler` say which belong together.
    """
    pairs = []
    for row in rows:
        others = {name: value for name, value in row.items() if name not in ("completions", "ranking")}
        for better, worse in combinations(row["ranking"], 2):
            sides = {"chosen": row["completions"][better], "rejected": row["completions"][worse]}
            pairs.append({"prompt": row["prompt"], **sides, **others})
    return pairs


def placed(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each ranked completion with its place, 1 the best: rows prompt, completion, place."""
    return [
        {"prompt": row["prompt"], "completion": row["completions"][index], "place": place}
        for row in rows
        for place, index in enumerate(row["ranking"], 1)
    ]


def _by_id(items: Iterable[Mapping]) -> dict[str, Mapping]:
    """Items by their id; WorkbenchError where two share one."""
    known: dict[str, Mapping] = {}
    for item in items:
        if item["item_id"] in known:
            raise WorkbenchError(f"Item {item['item_id']!r} appears twice: give every item its own item_id.")
        known[item["item_id"]] = item
    return known


def _judged(items: Iterable[Mapping], judgements: Iterable[Judgement], kind: str) -> Iterator[tuple[dict, dict]]:
    """For each judgement its prompt, completions and value, and its labeler and item_id.

    WorkbenchError for an unknown item or another kind of judgement.
    """
    known = _by_id(items)
    for judgement in judgements:
        _require_known(known, judgement)
        if judgement.kind != kind:
            raise WorkbenchError(
                f"Judgement {judgement.event_id!r} is a {judgement.kind}: rows of {kind}s need kind {kind!r}."
            )
        item = known[judgement.item_id]
        judged = {"prompt": item["prompt"], "completions": list(item["completions"]), "value": judgement.value}
        yield judged, {"labeler": judgement.labeler, "item_id": judgement.item_id}


def _require_known(known: Mapping[str, Mapping], judgement: Judgement) -> None:
    if judgement.item_id not in known:
        raise WorkbenchError(
            f"Judgement {judgement.event_id!r} is about item {judgement.item_id!r}, which is not among the items."
        )


def _judged_pair(known: Mapping[str, Mapping], judgement: Judgement) -> list:
    """The two completions, unshuffled, that a valid `judgement` is about."""
    _require_known(known, judgement)
    if judgement.kind != "pair" or judgement.value not in (0, 1, "tie", "skip"):
        raise WorkbenchError(
            f"Judgement {judgement.event_id!r} is a {judgement.kind} with value {judgement.value!r}: "
            "preference rows need kind 'pair' and value 0, 1, 'tie' or 'skip'."
        )
    completions = list(known[judgement.item_id]["completions"])
    if len(completions) != 2:
        raise WorkbenchError(f"Item {judgement.item_id!r} has {len(completions)} completions: a pair has 2.")
    return completions
