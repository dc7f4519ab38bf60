"""One labeler at work: what is shown, in which order, and what becomes of the answer. No widget code."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from IPython.display import display

from workbench import WorkbenchError
from workbench.feedback.kinds import labeler_name, require_kind
from workbench.feedback.queues import Desk, Queue, Turn
from workbench.feedback.store import AlreadyJudged, Store
from workbench.records import Judgement
from workbench.runs.files import shown


def shown_order(labeler: str, item_id: str, count: int) -> list[int]:
    """Permutation of range(count), order[position] = index of the completion shown there.

    A hash of labeler and item: the same after a restart and in every process, each order equally likely.
    """
    digest = hashlib.sha256(json.dumps([labeler, item_id]).encode()).digest()
    number, order = int.from_bytes(digest, "big"), list(range(count))
    for last in range(count - 1, 0, -1):  # Fisher-Yates with the digits of the hash
        number, position = divmod(number, last + 1)
        order[last], order[position] = order[position], order[last]
    return order


RECENT = 20  # judgements that the time left is estimated from
LISTED = 200  # judgements in the list of past ones


@dataclass(frozen=True, kw_only=True)
class View:
    """What a labeler sees; item_id is "" where nothing is left, and `message` says why."""

    item_id: str
    repeat: int
    prompt: Any  # text or messages
    completions: Sequence[Any]  # in the order shown
    shown_order: list[int]  # shown_order[position] = index of the completion shown there
    done: int
    total: int
    seconds_left: float | None  # None before the first judgement
    agreement: str  # how far labelers agree so far, "" where nothing can be said
    message: str
    can_undo: bool
    earlier: Mapping[str, Any]  # what was said of it before, where that is looked at again: see `Session.past`


@dataclass(kw_only=True)
class Session:
    """Judgements of one kind by one labeler, through a queue into a store."""

    store: Store
    queue: Queue
    labeler: str
    kind: str
    _turn: Turn = field(default=Turn(), init=False)
    _again: str = field(default="", init=False)  # an item whose judgement was just undone
    _past: dict[str, dict] = field(default_factory=dict, init=False)  # judgements that were listed, by event id
    _reviewed: dict[str, Any] = field(default_factory=dict, init=False)  # the one that is looked at again

    def __post_init__(self) -> None:
        self.labeler = labeler_name(self.labeler)
        require_kind(self.kind)
        self.queue.register(self.store, self.kind)

    def view(self) -> View:
        """The item to judge now; the same until it is judged, after a restart too."""
        if before := self._reviewed:
            self._turn = replace(self._turn, item_id=before["item_id"], repeat=before["repeat"])
        else:
            self._turn = self.queue.turn(self.store, self.labeler, self.kind, first=self._again)
        item = self.store.item(self._turn.item_id) if self._turn.item_id else {"prompt": "", "completions": []}
        order, desk = self._order(), self.queue.desk(self.store, self.labeler, self.kind)
        return View(
            item_id=self._turn.item_id,
            repeat=self._turn.repeat,
            prompt=item["prompt"],
            completions=[item["completions"][index] for index in order],
            shown_order=order,
            done=self._turn.done,
            total=self._turn.total,
            seconds_left=self._seconds_left(desk),
            agreement=desk.agreement.sentence() if self.kind in ("pair", "best_of") else "",  # others are never equal
            message=self._turn.reason,
            can_undo=self._turn.done > 0 and not before,
            earlier=self._said(before) if before else {},
        )

    def judge(
        self, item_id: str, event_id: str, action: str, *, answer: Mapping[str, Any], elapsed_ms: float, note: str = ""
    ) -> str:
        """Write the answer to the disk; what happened, in a word.

        Nothing happens for an item that is not the one shown, or an event that was saved before. `answer` speaks of
        places as shown: see `verdict`. WorkbenchError where it says nothing, or could not be written.
        """
        if item_id != self._turn.item_id:
            if self.store.knows(event_id):
                return "saved"
            return "an answer to an earlier item was ignored"
        if action not in ("label", "skip"):
            raise WorkbenchError(f"The action {action!r} is unknown: use 'label' or 'skip'.")
        order = self._order()
        value, details = ("skip", {}) if action == "skip" else verdict(self.kind, answer, order)
        judgement = Judgement(
            item_id=item_id,
            labeler=self.labeler,
            kind=self.kind,
            value=value,
            details=details,
            shown_order=order,
            elapsed_ms=max(0, round(elapsed_ms)),
            note=note,
            event_id=event_id,
            repeat=self._turn.repeat,
        )
        if self._reviewed:
            self.store.replace(judgement)
            self._reviewed = {}
            return "changed"
        try:
            self.store.record(judgement)
        except AlreadyJudged:
            return "judged before, in another tab: nothing was changed"
        self._again = ""
        return "skipped" if action == "skip" else "saved"

    def undo(self, event_id: str) -> str:
        """Take back the last judgement and show its item again."""
        item_id = self.store.undo(self.labeler, self.kind, event_id=event_id)
        self._again = item_id
        return "undone" if item_id else "there is nothing to undo"

    def past(self) -> list[dict[str, Any]]:
        """The labeler's last judgements, the latest first: event_id, item_id, created_at, note, prompt and answer.

        The prompt is its beginning; the answer speaks of places as they were shown, and is {} for a skip.
        """
        self._past = {row["event_id"]: row for row in self.store.latest(self.labeler, self.kind, LISTED)}
        return [self._said(row) for row in self._past.values()]

    def review(self, event_id: str) -> str:
        """Show the item of a listed judgement, to change it; with "" that stays, and the next item is shown."""
        self._reviewed = self._past[event_id] if event_id else {}
        return "" if event_id else "left as it was"

    def _said(self, row: Mapping[str, Any]) -> dict[str, Any]:
        prompt = self.store.item(row["item_id"])["prompt"]
        told = {name: row[name] for name in ("event_id", "item_id", "created_at", "note")}
        return told | {"prompt": prompt if isinstance(prompt, str) else prompt[-1]["content"], "answer": answer(row)}

    def _order(self) -> list[int]:
        """Another order when the item comes again, so that places remembered do not count as consistency."""
        if self._reviewed or not self._turn.item_id:
            return self._reviewed.get("shown_order", [])
        shown_as = self._turn.item_id if not self._turn.repeat else f"{self._turn.item_id} again {self._turn.repeat}"
        return shown_order(self.labeler, shown_as, len(self.store.item(self._turn.item_id)["completions"]))

    def _seconds_left(self, desk: Desk) -> float | None:
        times = desk.recent_seconds(RECENT)
        return statistics.median(times) * (self._turn.total - self._turn.done) if times else None


def verdict(kind: str, answer: Mapping[str, Any], order: Sequence[int]) -> tuple[Any, dict[str, Any]]:
    """Value and details of a `Judgement`, from an answer that speaks of places on the screen.

    pair {"choice": place or "tie", "strength"?}, ranking {"groups": [[place, ...], ...]}, best_of {"best": place},
    rating {"ratings": [by place], "flags"?: [[name, ...] by place]}, correction {"text", "completion": place or None}.
    WorkbenchError where a part is missing or is no place.
    """
    try:
        return _READ[kind](answer, order)
    except (KeyError, IndexError, TypeError) as error:
        raise WorkbenchError(f"The answer {dict(answer)!r:.200} is no {kind} ({error!r}): answer again.") from None


def _pair(answer: Mapping[str, Any], order: Sequence[int]) -> tuple[Any, dict[str, Any]]:
    value = "tie" if answer["choice"] == "tie" else _index(answer["choice"], order)
    strength = answer.get("strength")
    return value, {} if strength is None or value == "tie" else {"strength": strength}


def _ranking(answer: Mapping[str, Any], order: Sequence[int]) -> tuple[Any, dict[str, Any]]:
    return [sorted(_index(place, order) for place in group) for group in answer["groups"]], {}


def _best_of(answer: Mapping[str, Any], order: Sequence[int]) -> tuple[Any, dict[str, Any]]:
    return _index(answer["best"], order), {}


def _rating(answer: Mapping[str, Any], order: Sequence[int]) -> tuple[Any, dict[str, Any]]:
    ratings = _unshuffled(answer["ratings"], order)
    flags = answer.get("flags") or [[] for _ in order]
    return ratings, {"flags": _unshuffled(flags, order)} if any(flags) else {}


def _correction(answer: Mapping[str, Any], order: Sequence[int]) -> tuple[Any, dict[str, Any]]:
    place = answer.get("completion")
    return answer["text"], {} if place is None else {"completion": _index(place, order)}


_READ = {"pair": _pair, "ranking": _ranking, "best_of": _best_of, "rating": _rating, "correction": _correction}


def answer(judged: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of which `verdict` made the value and the details of a judgement; {} of a skip."""
    kind, value, details, order = (judged[name] for name in ("kind", "value", "details", "shown_order"))
    place = {index: place for place, index in enumerate(order)}
    if value == "skip":
        return {}
    if kind == "pair":
        return {"choice": place.get(value, value), **details}
    if kind == "ranking":
        return {"groups": [[place[index] for index in group] for group in value]}
    if kind == "best_of":
        return {"best": place[value]}
    if kind == "correction":
        return {"text": value, "completion": place.get(details.get("completion"))}
    flags = details.get("flags", [[] for _ in order])
    return {"ratings": [value[index] for index in order], "flags": [flags[index] for index in order]}


def _index(place: Any, order: Sequence[int]) -> int:
    if type(place) is not int or not 0 <= place < len(order):
        raise IndexError(place)
    return order[place]


def _unshuffled(by_place: Sequence[Any], order: Sequence[int]) -> list[Any]:
    if len(by_place) != len(order):
        raise IndexError(len(by_place))
    return [by_place[list(order).index(index)] for index in range(len(order))]


# --- Judgements by simulated labelers, by a person in a widget, or by both, in one store.


WHO = ("simulated", "human", "mixed")
Items = Sequence[Mapping[str, Any]]
NO_PRIORITIES: Mapping[str, float] = MappingProxyType({})


class Collection:
    """What a notebook collects: the same calls in batch, where programs judge, and in JupyterLab, where people do."""

    def __init__(self, path: str | Path, *, labelers: str, labeler: str) -> None:
        """Collect in the store at `path`; WorkbenchError where nobody of that sort exists, or has no name."""
        if labelers not in WHO:
            raise WorkbenchError(f"labelers is {labelers!r}: use one of {', '.join(WHO)}.")
        self.labelers, self.labeler = labelers, labeler_name(labeler)
        self.store = Store(path)

    def ask(self, kind: str, items: Items, simulate: Callable[[], list[Judgement]]) -> None:
        """Put the items up for judgement, and write what simulated labelers say, unless only a person judges.

        The same judgements again are none, so a notebook may be run again.
        """
        self.store.add_items(items)
        if self.labelers != "human":
            self.store.record_all(simulate())

    def widget(
        self, kind: str, items: Items, *, priorities: Mapping[str, float] = NO_PRIORITIES, **settings: Any
    ) -> Any:
        """Where the person judges; None where only programs judge.

        First come the items of the highest `priorities` (by item_id), without any those judged least; what simulated
        labelers have judged is open to the person, too. `settings` are those of `widgets.annotate`.
        """
        if self.labelers == "simulated":
            return None
        from workbench.feedback.widget import annotate  # a batch run needs no widgets

        others = max((len(judged) for judged in self._by_item(kind, items).values()), default=0)
        order = {"order": "uncertain", "priorities": priorities} if priorities else {"order": "fewest"}
        queue = Queue(items=items, judgements_per_item=others + 1, **order)
        return annotate(items, self.labeler, self.store, kind=kind, queue=queue, **settings)

    def collected(self, kind: str, items: Items, simulate: Callable[[], list[Judgement]]) -> list[Judgement]:
        """`ask`, show the `widget`, and `judgements`: a cell to be run again after a person judged."""
        self.ask(kind, items, simulate)
        widget = self.widget(kind, items)
        if widget is not None:
            display(widget)
        return self.judgements(kind, items)

    def judgements(self, kind: str, items: Items) -> list[Judgement]:
        """What stands about these items; WorkbenchError asks the person to judge where nothing does yet."""
        found = [each for judged in self._by_item(kind, items).values() for each in judged]
        if not found:
            raise WorkbenchError(
                f"Nobody has judged any of {len(items)} items yet (kind {kind!r}, {shown(self.store.path)}): judge "
                "some in the widget above, then run this cell and those below it."
            )
        return found

    def _by_item(self, kind: str, items: Items) -> dict[str, list[Judgement]]:
        """Judgements of each item that has any, items in their order."""
        known: dict[str, list[Judgement]] = {item["item_id"]: [] for item in items}
        for judgement in self.store.judgements(kind):
            if judgement.item_id in known:
                known[judgement.item_id].append(judgement)
        return {item_id: judged for item_id, judged in known.items() if judged}
