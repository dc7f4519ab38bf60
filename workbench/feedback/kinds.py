"""Kinds of judgement: one record says what is valid, how it is read, compared, trained on, imported and simulated.

A new kind is a record in `KINDS`, its form `widget/<kind>.js` and a test: stores, queues, widgets, agreement, exports,
imports and simulated labelers go by the record. An item is a dict item_id, prompt, completions and anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple, Protocol

from workbench import WorkbenchError
from workbench.feedback.tables import LARGEST
from workbench.records import Judgement

STRENGTHS = (1, 2, 3, 4)  # of a preference: negligibly, slightly, better, significantly (Touvron et al. 2023)
Rows = list[dict[str, Any]]
Details = dict[str, Any]
Groups = tuple[list[list[int]], list[int]]  # of indices, best first, ties in one group; those below in no known order


class Simulated(Protocol):
    """What a simulated labeler can say of the completions of an item; everything but flags may be "skip"."""

    def comparison(self) -> tuple[int | str, int]:
        """The better of two, or "tie", and its strength, one of `STRENGTHS`."""

    def order(self) -> list[int] | str:
        """All, best first."""

    def ratings(self) -> list[int] | str:
        """A number for each."""

    def flags(self) -> list[list[str]]:
        """What was noticed in each."""

    def text(self) -> str:
        """What should have been written instead of the first."""


class File(NamedTuple):
    """Training rows in the standard columns that an export writes."""

    noun: str  # what one of them is
    rows: Callable[[Judgement, Mapping[str, Any]], Iterator[dict[str, Any]]]  # those with a `reason` are left out


@dataclass(frozen=True, kw_only=True)
class Kind:
    """All that is particular to a kind; values name unshuffled completions by index, and "skip" is always one."""

    fewest: int = 1  # completions of an item
    most: int | None = None
    valid: Callable[[Any, int], bool]  # (value, number of completions)
    expected: str  # what to give instead of what is not
    read: Callable[[Mapping[str, Any], Sequence[int]], tuple[Any, Details]]  # (answer by places, shown order) -> value
    answer: Callable[[Any, Mapping[str, Any], Sequence[int]], Details]  # (value, details, shown order), for the widget
    said: Callable[[Simulated], tuple[Any, Details]]  # value and details
    files: Mapping[str, File]  # of training rows that it gives, by name, its own first
    columns: tuple[str, ...]  # of its own file, after prompt
    from_row: Callable[[Mapping[str, Any], list, str], tuple[Any, Details]]  # (row, completions, where) -> value
    groups: Callable[[Any, Sequence[int] | None], Groups] | None = None  # (value, shown order), if it compares
    units: Callable[[Any], Iterator[tuple[str, Any]]] | None = None  # if it does not: parts that labelers agree on
    shape: str  # of a value: "choice" of one completion, "order", "numbers" of each, or "text"
    controls: tuple[str, ...] = ()  # sorts of Label Studio results that say something of it

    @property
    def file(self) -> str:
        """The name of its own file."""
        return next(iter(self.files))

    def parts(self, value: Any, shown_order: Sequence[int] | None) -> Iterator[tuple[str, Any]] | None:
        """What labelers can agree on: ("i", what was said) or ("i-j", 0, 1 or "tie"); None where there is nothing."""
        if self.groups is None:
            return self.units(value) if self.units else None
        pairs = sorted((min(a, b), max(a, b), a, tied) for a, b, tied in compared(*self.groups(value, shown_order)))
        return ((f"{i}-{j}", "tie" if tied else int(better == j)) for i, j, better, tied in pairs)


def compared(groups: list[list[int]], rest: list[int]) -> list[tuple[int, int, bool]]:
    """Every two completions that a verdict compares: the better one, the other one, whether they are tied instead."""
    ranked = [(index, place) for place, group in enumerate(groups) for index in group]
    pairs = [(first, second, place == other) for (first, place), (second, other) in combinations(ranked, 2)]
    return pairs + [(better, worse, False) for better, _ in ranked for worse in rest]


# --- Values: what is valid, and what tables of verdicts hold instead.


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


def _pair_groups(value: Any, shown_order: Sequence[int] | None) -> Groups:
    if value not in (0, 1, "tie"):
        raise WorkbenchError(f"A pair was judged {value!r}: give 0, 1, 'tie' or 'skip'.")
    return ([[0, 1]] if value == "tie" else [[value], [1 - value]]), []


def _ranking_groups(value: Any, shown_order: Sequence[int] | None) -> Groups:
    if not (isinstance(value, list) and all(isinstance(group, list) for group in value)):
        raise WorkbenchError(f"A ranking is {value!r}: give groups of indices, best first, such as [[2], [0, 3], [1]].")
    if not _is_ranking(value, sum(map(len, value))):
        raise WorkbenchError(f"The ranking {value!r} does not name each of its completions once, counted from 0.")
    return value, []


def _best_of_groups(value: Any, shown_order: Sequence[int] | None) -> Groups:
    if shown_order is None or value not in shown_order:
        raise WorkbenchError(f"The best is {value!r} out of the shown {shown_order!r}: give the index of one of them.")
    return [[value]], [index for index in sorted(shown_order) if index != value]


def _rating_units(value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, list) or any(isinstance(number, str | list) for number in value):
        raise WorkbenchError(f"A rating is {value!r}: give one number, or None, for each completion.")
    return ((str(index), number) for index, number in enumerate(value) if number is not None)


# --- Answers, which speak of places on the screen: pair {"choice": place or "tie", "strength"?}, ranking {"groups":
# [[place, ...], ...]}, best_of {"best": place}, rating {"ratings": [by place], "flags"?: [[name, ...] by place]},
# correction {"text", "completion": place or None}.


def _read_pair(answer: Mapping[str, Any], order: Sequence[int]) -> tuple[Any, Details]:
    value = "tie" if answer["choice"] == "tie" else _index(answer["choice"], order)
    strength = answer.get("strength")
    return value, {} if strength is None or value == "tie" else {"strength": strength}


def _read_ranking(answer: Mapping[str, Any], order: Sequence[int]) -> tuple[Any, Details]:
    return [sorted(_index(place, order) for place in group) for group in answer["groups"]], {}


def _read_rating(answer: Mapping[str, Any], order: Sequence[int]) -> tuple[Any, Details]:
    flags = answer.get("flags") or [[] for _ in order]
    details = {"flags": _unshuffled(flags, order)} if any(flags) else {}
    return _unshuffled(answer["ratings"], order), details


def _answer_rating(value: Any, details: Mapping[str, Any], order: Sequence[int]) -> Details:
    flags = details.get("flags", [[] for _ in order])
    return {"ratings": [value[index] for index in order], "flags": [flags[index] for index in order]}


def _read_correction(answer: Mapping[str, Any], order: Sequence[int]) -> tuple[Any, Details]:
    place = answer.get("completion")
    return answer["text"], {} if place is None else {"completion": _index(place, order)}


def _answer_correction(value: Any, details: Mapping[str, Any], order: Sequence[int]) -> Details:
    return {"text": value, "completion": order.index(details["completion"]) if "completion" in details else None}


def _index(place: Any, order: Sequence[int]) -> int:
    if not _is_index(place, len(order)):
        raise IndexError(place)
    return order[place]


def _unshuffled(by_place: Sequence[Any], order: Sequence[int]) -> list[Any]:
    if len(by_place) != len(order):
        raise IndexError(len(by_place))
    return [by_place[list(order).index(index)] for index in range(len(order))]


# --- Training rows of a judgement that is no check, repeat or skip.


def _pair_rows(judgement: Judgement, item: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows prompt, chosen, rejected, labeler, item_id of each decided pair, in the order of the verdict.

    Where a strength was said, the row has a `margin`, 0 to 1 in thirds: the smaller ones of Touvron et al. 2023 (Llama
    2). Pairs of one ranking are no independent evidence: batches that part them overfit (Ouyang et al. 2022, section
    3.5); `item_id` and `labeler` say which belong together.
    """
    texts, strength = item["completions"], judgement.details.get("strength")
    margin = {} if strength is None else {"margin": STRENGTHS.index(strength) / (len(STRENGTHS) - 1)}
    for better, worse, tied in comparisons(judgement, item):
        chosen, rejected = texts[better], texts[worse]
        if tied or chosen == rejected:
            both = [texts[index] for index in sorted((better, worse))]
            yield left_out_row(judgement, item, "tie" if tied else "identical", both)
        else:
            yield {"prompt": item["prompt"], "chosen": chosen, "rejected": rejected, **_who(judgement), **margin}


def _ranking_rows(judgement: Judgement, item: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A row prompt, completions, ranking (indices, best first), labeler, item_id of a complete order without ties."""
    completions = list(item["completions"])
    if any(len(group) > 1 for group in judgement.value):
        yield left_out_row(judgement, item, "tie")  # of which the pairs keep what was decided
    elif any(text in completions[:place] for place, text in enumerate(completions)):
        yield left_out_row(judgement, item, "identical")
    else:
        order = [index for group in judgement.value for index in group]
        yield {"prompt": item["prompt"], "completions": completions, "ranking": order, **_who(judgement)}


def _best_of_rows(judgement: Judgement, item: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A row prompt, completions, best (its index), labeler, item_id."""
    completions, best = list(item["completions"]), judgement.value
    if completions.count(completions[best]) > 1:
        yield left_out_row(judgement, item, "identical")
    else:
        yield {"prompt": item["prompt"], "completions": completions, "best": best, **_who(judgement)}


def _rating_rows(judgement: Judgement, item: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows prompt, completion, rating, labeler, item_id, and `flags` where there are any, of each rated completion."""
    flags = judgement.details.get("flags") or []
    if flags and len(flags) != len(judgement.value):
        raise WorkbenchError(
            f"Judgement {judgement.event_id!r} has {len(flags)} lists of flags for {len(judgement.value)} ratings: "
            "give one list for each."
        )
    for place, (completion, rating) in enumerate(zip(item["completions"], judgement.value, strict=True)):
        if rating is None:
            yield left_out_row(judgement, item, "unrated", [completion])
        else:
            flagged = {"flags": list(flags[place])} if flags else {}
            rated = {"prompt": item["prompt"], "completion": completion, "rating": rating}
            yield {**rated, **flagged, **_who(judgement)}


def _correction_rows(judgement: Judgement, item: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A row prompt, completion, labeler, item_id: a demonstration."""
    completion = judgement.value
    if not isinstance(item["prompt"], str):  # a conversation is continued by a message
        completion = [{"role": "assistant", "content": completion}]
    yield {"prompt": item["prompt"], "completion": completion, **_who(judgement)}


# --- Rows of a file in the standard columns as what was judged.


def _pair_of(record: Mapping[str, Any], completions: list, where: str) -> tuple[int | str, Details]:
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


def _ranking_of(record: Mapping[str, Any], completions: list, where: str) -> tuple[list[list[int]], Details]:
    if not isinstance(record["ranking"], list):
        raise WorkbenchError(f"{where} has the ranking {record['ranking']!r}: give indices, the best first.")
    return [[index] for index in record["ranking"]], {}


def _rating_of(record: Mapping[str, Any], completions: list, where: str) -> tuple[float, Details]:
    """The rating of one completion."""
    rating = record["rating"]
    if isinstance(rating, bool) or not isinstance(rating, int | float):
        raise WorkbenchError(f"{where} has the rating {rating!r}: give a number.")
    return rating, {}


def _correction_of(record: Mapping[str, Any], completions: list, where: str) -> tuple[str, Details]:
    text = record["completion"]
    if isinstance(text, list) and len(text) == 1 and isinstance(text[0], Mapping):
        text = text[0].get("content")
    if not isinstance(text, str):
        raise WorkbenchError(f"{where} has the completion {text!r:.60}: give text or a single message.")
    return text, {}


# --- What simulated labelers say.


def _said_pair(by: Simulated) -> tuple[Any, Details]:
    value, strength = by.comparison()
    return value, {"strength": strength} if value in (0, 1) else {}


def _said_ranking(by: Simulated) -> tuple[Any, Details]:
    order = by.order()
    return order if order == "skip" else [[index] for index in order], {}


def _said_best(by: Simulated) -> tuple[Any, Details]:
    order = by.order()
    return order if order == "skip" else order[0], {}


def _said_rating(by: Simulated) -> tuple[Any, Details]:
    ratings, flags = by.ratings(), by.flags()
    return ratings, {"flags": flags} if ratings != "skip" and any(flags) else {}


def _said_correction(by: Simulated) -> tuple[Any, Details]:
    text = by.text()
    return text, {} if text == "skip" else {"completion": 0}


PAIRS = File("pair", _pair_rows)
KINDS = {
    "pair": Kind(
        fewest=2,
        most=2,
        valid=lambda value, count: _is_index(value, count) or value == "tie",
        expected="0, 1 or 'tie'",
        read=_read_pair,
        answer=lambda value, details, order: {"choice": value if value == "tie" else order.index(value), **details},
        said=_said_pair,
        files={"preferences": PAIRS},
        columns=("chosen", "rejected"),
        from_row=_pair_of,
        groups=_pair_groups,
        shape="choice",
        controls=("pairwise", "choices"),
    ),
    "ranking": Kind(
        fewest=2,
        valid=_is_ranking,
        expected="groups of the completions' indices, each index once, the best first",
        read=_read_ranking,
        answer=lambda value, details, order: {"groups": [[order.index(each) for each in group] for group in value]},
        said=_said_ranking,
        files={"rankings": File("ranking", _ranking_rows), "preferences": PAIRS},
        columns=("completions", "ranking"),
        from_row=_ranking_of,
        groups=_ranking_groups,
        shape="order",
        controls=("ranker",),
    ),
    "best_of": Kind(
        fewest=2,
        valid=_is_index,
        expected="the index of the best completion",
        read=lambda answer, order: (_index(answer["best"], order), {}),
        answer=lambda value, details, order: {"best": order.index(value)},
        said=_said_best,
        files={"best_of": File("row", _best_of_rows), "preferences": PAIRS},
        columns=("completions", "best"),
        from_row=lambda record, completions, where: (record["best"], {}),
        groups=_best_of_groups,
        shape="choice",
        controls=("choices",),
    ),
    "rating": Kind(
        valid=_are_ratings,
        expected="a number or None for each completion, not None for all",
        read=_read_rating,
        answer=_answer_rating,
        said=_said_rating,
        files={"ratings": File("rating", _rating_rows)},
        columns=("completion", "rating"),
        from_row=_rating_of,
        units=_rating_units,
        shape="numbers",
        controls=("rating",),
    ),
    "correction": Kind(
        valid=lambda value, count: isinstance(value, str) and bool(value.strip()),
        expected="the text that should have been written",
        read=_read_correction,
        answer=_answer_correction,
        said=_said_correction,
        files={"demonstrations": File("demonstration", _correction_rows)},
        columns=("completion",),
        from_row=_correction_of,
        shape="text",
        controls=("textarea",),
    ),
}
COMPARING = tuple(name for name, kind in KINDS.items() if kind.groups)


def require_kind(kind: str) -> None:
    """WorkbenchError lists the kinds of judgement that exist."""
    if kind not in KINDS:
        raise WorkbenchError(f"There is no judgement of kind {kind!r}: use one of {', '.join(KINDS)}.")


def require_size(item: Mapping[str, Any], kind: str) -> None:
    """WorkbenchError where an item has too few or too many completions for a kind of judgement."""
    require_kind(kind)
    count, fewest, most = len(item["completions"]), KINDS[kind].fewest, KINDS[kind].most
    if not fewest <= count <= (most or count):
        needed = f"exactly {fewest}" if most else f"at least {fewest}"
        raise WorkbenchError(
            f"Item {item['item_id']!r} has {count} completion{'s' * (count != 1)}: a judgement of kind {kind!r} needs "
            f"{needed}."
        )


def require_verdict(judgement: Judgement, item: Mapping[str, Any]) -> None:
    """WorkbenchError where a judgement says nothing about the completions of its item."""
    require_size(item, judgement.kind)
    count, kind = len(item["completions"]), KINDS[judgement.kind]
    named = f"The {judgement.kind} of item {judgement.item_id!r} by {judgement.labeler!r}"
    if sorted(judgement.shown_order) != list(range(count)):
        raise WorkbenchError(f"{named} was shown as {judgement.shown_order}: name each completion once.")
    if judgement.value != "skip" and not kind.valid(judgement.value, count):
        raise WorkbenchError(f"{named} has the value {judgement.value!r}: give {kind.expected}.")
    strength = judgement.details.get("strength")
    if strength is not None and strength not in STRENGTHS:
        raise WorkbenchError(f"{named} has the strength {strength!r}: give one of {STRENGTHS}.")


def comparisons(judgement: Judgement, item: Mapping[str, Any]) -> list[tuple[int, int, bool]]:
    """`compared` of a judgement of one of the `COMPARING` kinds."""
    return compared(*KINDS[judgement.kind].groups(judgement.value, range(len(item["completions"]))))


def training_rows(
    kind: str, items: Iterable[Mapping], judgements: Iterable[Judgement], *, file: str = ""
) -> tuple[Rows, Rows]:
    """Judgements of a kind as the rows of its own file, or of another that it gives, and what was left out.

    So that nothing is dropped in silence, each row of the latter has a `reason`:
        check      the item is an attention check (`expected` says what a labeler who reads must answer)
        repeat     asked a second time, to measure self-consistency
        skip       the labeler passed it over
        tie        neither is better
        identical  the completions are the same text, between which there is nothing to learn
        unrated    this completion got no number
    WorkbenchError for an item that is unknown or repeated, a judgement of another kind, or a value not of its kind.
    """
    rows, left_out = [], []
    for judgement, item, reason in judged(items, judgements, kind):
        if reason:
            left_out.append(left_out_row(judgement, item, reason))
            continue
        for row in KINDS[kind].files[file or KINDS[kind].file].rows(judgement, item):
            (left_out if "reason" in row else rows).append(row)
    return rows, left_out


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


def left_out_row(judgement: Judgement, item: Mapping, reason: str, completions: list | None = None) -> dict[str, Any]:
    """What was left out: prompt, completions (all of the item's, or those named), reason, value, labeler, item_id."""
    texts = list(item["completions"]) if completions is None else completions
    said = {"reason": reason, "value": judgement.value}
    return {"prompt": item["prompt"], "completions": texts, **said, **_who(judgement)}


def _who(judgement: Judgement) -> dict[str, str]:
    return {"labeler": judgement.labeler, "item_id": judgement.item_id}
