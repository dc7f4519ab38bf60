"""Judgements as training data in the standard columns.

Every function returns its rows and what it left out, each with a `reason`, so that nothing is dropped in silence:
    check      the item is an attention check (`expected` says what a labeler who reads must answer)
    repeat     asked a second time, to measure self-consistency
    skip       the labeler passed it over
    tie        neither is better
    identical  the completions are the same text, between which there is nothing to learn
    unrated    this completion got no number
An item is a dict item_id, prompt, completions and anything else. WorkbenchError for an item that is unknown or
repeated, a judgement of another kind, or a value that is not of its kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any

from workbench import WorkbenchError
from workbench.feedback.validity import STRENGTHS, require_verdict
from workbench.records import Judgement

Rows = list[dict[str, Any]]


def preference_rows(items: Iterable[Mapping], judgements: Iterable[Judgement]) -> tuple[Rows, Rows]:
    """Rows prompt, chosen, rejected, labeler, item_id of every decided pair, and the judgements that were left out.

    Where the labeler said a strength, the row has a `margin`, 0 to 1 in thirds: the smaller ones of Touvron et al. 2023
    (Llama 2). The two lists together are as long as `judgements`.
    """
    return _pairs(items, judgements, "pair")


def ranking_pairs(items: Iterable[Mapping], judgements: Iterable[Judgement]) -> tuple[Rows, Rows]:
    """Each ranking as its C(K, 2) pairs, one after the other: rows as those of `preference_rows`.

    Tied pairs are left out one by one, so that the decided pairs of a ranking with ties stay. Pairs of one ranking are
    no independent evidence: batches that part them overfit (Ouyang et al. 2022, section 3.5); `item_id` and `labeler`
    say which belong together.
    """
    return _pairs(items, judgements, "ranking")


def best_of_pairs(items: Iterable[Mapping], judgements: Iterable[Judgement]) -> tuple[Rows, Rows]:
    """The best of each item against each of the K - 1 others: rows as those of `preference_rows`."""
    return _pairs(items, judgements, "best_of")


def with_ties(rows: Iterable[Mapping], left_out: Iterable[Mapping]) -> tuple[Rows, Rows]:
    """The pairs with `preference`, the probability that the chosen one is better: 1, and .5 for those left out as ties.

    A preference that a row has stays as it is. What one labeler said of one item stays together. Ties between identical
    texts remain left out.
    """
    soft = [{**row, "preference": row.get("preference", 1.0)} for row in rows]
    rest = []
    for row in left_out:
        if row["reason"] == "tie" and len(row["completions"]) == 2 and row["completions"][0] != row["completions"][1]:
            chosen, rejected = row["completions"]
            pair = {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected}
            others = {name: row[name] for name in row if name not in ("prompt", "completions", "reason", "value")}
            soft.append({**pair, **others, "preference": 0.5})
        else:
            rest.append(dict(row))
    places: dict[tuple, int] = {}
    for row in soft:
        places.setdefault((row["item_id"], row.get("labeler")), len(places))
    return sorted(soft, key=lambda row: places[row["item_id"], row.get("labeler")]), rest


def ranking_rows(items: Iterable[Mapping], judgements: Iterable[Judgement]) -> tuple[Rows, Rows]:
    """Rows prompt, completions, ranking (indices, best first), labeler, item_id of every complete order.

    A list has no place for ties: a ranking with any is left out here, while `ranking_pairs` keeps what it decided.
    """
    rows, left_out = [], []
    for judgement, item, reason in judged(items, judgements, "ranking"):
        completions = list(item["completions"])
        if not reason and any(len(group) > 1 for group in judgement.value):
            reason = "tie"
        if not reason and any(text in completions[:place] for place, text in enumerate(completions)):
            reason = "identical"
        if reason:
            left_out.append(left_out_row(judgement, item, reason))
        else:
            order = [index for group in judgement.value for index in group]
            rows.append({"prompt": item["prompt"], "completions": completions, "ranking": order, **_who(judgement)})
    return rows, left_out


def best_of_rows(items: Iterable[Mapping], judgements: Iterable[Judgement]) -> tuple[Rows, Rows]:
    """Rows prompt, completions, best (its index), labeler, item_id of every choice of one among several."""
    rows, left_out = [], []
    for judgement, item, reason in judged(items, judgements, "best_of"):
        completions = list(item["completions"])
        if not reason and completions.count(completions[judgement.value]) > 1:
            reason = "identical"
        if reason:
            left_out.append(left_out_row(judgement, item, reason))
        else:
            best = {"completions": completions, "best": judgement.value}
            rows.append({"prompt": item["prompt"], **best, **_who(judgement)})
    return rows, left_out


def rating_rows(items: Iterable[Mapping], judgements: Iterable[Judgement]) -> tuple[Rows, Rows]:
    """Rows prompt, completion, rating, labeler, item_id of every rated completion, and its `flags` where there are any.

    Left out are whole judgements, and the single completions that got no number.
    """
    rows, left_out = [], []
    for judgement, item, reason in judged(items, judgements, "rating"):
        if reason:
            left_out.append(left_out_row(judgement, item, reason))
            continue
        flags = _flags(judgement)
        for place, (completion, rating) in enumerate(zip(item["completions"], judgement.value, strict=True)):
            if rating is None:
                left_out.append(left_out_row(judgement, item, "unrated", [completion]))
            else:
                flagged = {"flags": flags[place]} if flags else {}
                rated = {"prompt": item["prompt"], "completion": completion, "rating": rating}
                rows.append({**rated, **flagged, **_who(judgement)})
    return rows, left_out


def correction_rows(items: Iterable[Mapping], judgements: Iterable[Judgement]) -> tuple[Rows, Rows]:
    """Rows prompt, completion, labeler, item_id of every text that a labeler wrote: demonstrations."""
    rows, left_out = [], []
    for judgement, item, reason in judged(items, judgements, "correction"):
        if reason:
            left_out.append(left_out_row(judgement, item, reason))
        else:
            completion = judgement.value
            if not isinstance(item["prompt"], str):  # a conversation is continued by a message
                completion = [{"role": "assistant", "content": completion}]
            rows.append({"prompt": item["prompt"], "completion": completion, **_who(judgement)})
    return rows, left_out


def placed(rows: Iterable[Mapping[str, Any]]) -> Rows:
    """Each completion of `ranking_rows` with its place, 1 the best: rows prompt, completion, place."""
    return [
        {"prompt": row["prompt"], "completion": row["completions"][index], "place": place}
        for row in rows
        for place, index in enumerate(row["ranking"], 1)
    ]


def account(rows: Iterable, left_out: Iterable[Mapping], *, judgements: int, noun: str = "pair") -> str:
    """What became of the judgements: "412 pairs from 430 judgements; left out: 11 tie, 4 skip, 3 check"."""
    made = sum(1 for _ in rows)
    counts = Counter(row["reason"] for row in left_out)
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common()) or "nothing"
    said = f"{judgements} judgement{'s' * (judgements != 1)}"
    return f"{made} {noun}{'s' * (made != 1)} from {said}; left out: {reasons}"


def judged(
    items: Iterable[Mapping], judgements: Iterable[Judgement], *kinds: str
) -> Iterator[tuple[Judgement, Mapping, str]]:
    """Each judgement, which must be of one of `kinds`, its item, and why it teaches nothing ("" where it does)."""
    known: dict[str, Mapping] = {}
    for item in items:
        if item["item_id"] in known:
            raise WorkbenchError(f"Item {item['item_id']!r} appears twice: give every item its own item_id.")
        known[item["item_id"]] = item
    for judgement in judgements:
        if judgement.item_id not in known:
            raise WorkbenchError(
                f"Judgement {judgement.event_id!r} is about item {judgement.item_id!r}, which is not among the items."
            )
        if judgement.kind not in kinds:
            raise WorkbenchError(
                f"Judgement {judgement.event_id!r} is a {judgement.kind}: these rows are made of kind "
                f"{' or '.join(map(repr, kinds))}."
            )
        item = known[judgement.item_id]
        require_verdict(judgement, item)
        reasons = {"check": is_check(item), "repeat": judgement.repeat > 0, "skip": judgement.value == "skip"}
        yield judgement, item, next((reason for reason, holds in reasons.items() if holds), "")


def is_check(item: Mapping) -> bool:
    """Whether the item is an attention check: nobody's taste is asked, only whether the labeler reads."""
    expected = item.get("expected")
    return not (expected is None or expected != expected)  # NaN, which a table has where nothing was expected


def groups_and_rest(judgement: Judgement, count: int) -> tuple[list[list[int]], list[int]]:
    """A pair, ranking or best_of verdict on `count` completions as groups of indices, best first, ties in one group.

    The rest are worse than all of them, in an order that nobody asked for: those not chosen as the best.
    """
    if judgement.kind == "best_of":
        return [[judgement.value]], [index for index in range(count) if index != judgement.value]
    if judgement.kind == "ranking":
        return [list(group) for group in judgement.value], []
    return ([[0, 1]] if judgement.value == "tie" else [[judgement.value], [1 - judgement.value]]), []


def compared(judgement: Judgement, count: int) -> list[tuple[int, int, bool]]:
    """Every two completions that a verdict compares: the better one, the other one, whether they are tied instead."""
    groups, rest = groups_and_rest(judgement, count)
    ranked = [(index, place) for place, group in enumerate(groups) for index in group]
    pairs = [(first, second, place == other) for (first, place), (second, other) in combinations(ranked, 2)]
    return pairs + [(better, worse, False) for better, _ in ranked for worse in rest]


def left_out_row(judgement: Judgement, item: Mapping, reason: str, completions: list | None = None) -> dict[str, Any]:
    """What was left out: prompt, completions (all of the item's, or those named), reason, value, labeler, item_id."""
    texts = list(item["completions"]) if completions is None else completions
    said = {"reason": reason, "value": judgement.value}
    return {"prompt": item["prompt"], "completions": texts, **said, **_who(judgement)}


def _pairs(items: Iterable[Mapping], judgements: Iterable[Judgement], kind: str) -> tuple[Rows, Rows]:
    """Rows prompt, chosen, rejected, labeler, item_id and margin of each decided pair, and what was left out."""
    rows, left_out = [], []
    for judgement, item, reason in judged(items, judgements, kind):
        if reason:
            left_out.append(left_out_row(judgement, item, reason))
            continue
        texts, margin = item["completions"], _margin(judgement)
        for better, worse, tied in compared(judgement, len(texts)):
            chosen, rejected = texts[better], texts[worse]
            if tied or chosen == rejected:
                reason = "tie" if tied else "identical"
                both = [texts[index] for index in sorted((better, worse))]
                left_out.append(left_out_row(judgement, item, reason, both))
            else:
                pair = {"prompt": item["prompt"], "chosen": chosen, "rejected": rejected}
                rows.append({**pair, **_who(judgement), **margin})
    return rows, left_out


def _margin(judgement: Judgement) -> dict[str, float]:
    strength = judgement.details.get("strength")
    return {} if strength is None else {"margin": STRENGTHS.index(strength) / (len(STRENGTHS) - 1)}


def _who(judgement: Judgement) -> dict[str, str]:
    return {"labeler": judgement.labeler, "item_id": judgement.item_id}


def _flags(judgement: Judgement) -> list[list[str]]:
    """What was noted of each rated completion, nothing at all where nobody was asked."""
    flags = judgement.details.get("flags") or []
    if flags and len(flags) != len(judgement.value):
        raise WorkbenchError(
            f"Judgement {judgement.event_id!r} has {len(flags)} lists of flags for {len(judgement.value)} ratings: "
            "give one list for each."
        )
    return [list(names) for names in flags]
