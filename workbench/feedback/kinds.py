"""Which kinds of feedback are collected."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from workbench import WorkbenchError
from workbench.feedback.tables import LARGEST, name_of
from workbench.records import Judgement, is_message
from workbench.runs.files import whole_characters

KINDS = ("pairs", "margins", "rankings", "ratings", "steps")


def parse_kinds(text: str, *, completions_per_prompt: int) -> set[str]:
    """`"pairs,ratings"` as {"pairs", "ratings"}; WorkbenchError lists the kinds that exist, and asks for pairs.

    Rankings need at least 2 `completions_per_prompt`.
    """
    kinds = {part.strip() for part in text.split(",")} - {""}
    unknown = sorted(kinds.difference(KINDS))
    if unknown:
        raise WorkbenchError(f"There is no kind of feedback {unknown[0]!r} (kinds={text!r}): use {', '.join(KINDS)}.")
    if "pairs" not in kinds:
        raise WorkbenchError(f"kinds is {text!r}, but only pairs can be asked how far labelers agree: add pairs to it.")
    if "rankings" in kinds and completions_per_prompt < 2:
        raise WorkbenchError(
            f"completions_per_prompt is {completions_per_prompt}, but a ranking has at least 2: raise it."
        )
    return kinds


# --- What may be stored: items that can be judged, labelers with a name, verdicts that mean something.


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


# --- Judgements as training data in the standard columns.
#
# Every function returns its rows and what it left out, each with a `reason`, so that nothing is dropped in
# silence: check the item is an attention check (`expected` says what a labeler who reads must answer) repeat
# asked a second time, to measure self-consistency skip the labeler passed it over tie neither is better identical
# the completions are the same text, between which there is nothing to learn unrated this completion got no number
# An item is a dict item_id, prompt, completions and anything else. WorkbenchError for an item that is unknown or
# repeated, a judgement of another kind, or a value that is not of its kind.


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
