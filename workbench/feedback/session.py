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
from workbench.feedback.kinds import KINDS, require_kind
from workbench.feedback.queues import Desk, Queue, Turn
from workbench.feedback.store import AlreadyJudged, Store
from workbench.feedback.tables import labeler_name
from workbench.records import Judgement
from workbench.runs import names_in
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
            agreement=desk.agreement() if KINDS[self.kind].shape == "choice" else "",  # others are never equal
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
    """Value and details of a `Judgement`, from an answer that speaks of places on the screen (see `kinds`).

    WorkbenchError where a part is missing or is no place.
    """
    try:
        return KINDS[kind].read(answer, order)
    except (KeyError, IndexError, TypeError) as error:
        raise WorkbenchError(f"The answer {dict(answer)!r:.200} is no {kind} ({error!r}): answer again.") from None


def answer(judged: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of which `verdict` made the value and the details of a judgement; {} of a skip."""
    kind, value, details, order = (judged[name] for name in ("kind", "value", "details", "shown_order"))
    return {} if value == "skip" else KINDS[kind].answer(value, details, order)


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
        labelers have judged is open to the person, too. `settings` are those of `widget.annotate`.
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


COLLECTED = ("pairs", "margins", "rankings", "ratings", "steps")


def parse_kinds(text: str, *, completions_per_prompt: int) -> set[str]:
    """`"pairs,ratings"` as {"pairs", "ratings"}; WorkbenchError lists the kinds that exist, and asks for pairs.

    Rankings need at least 2 `completions_per_prompt`.
    """
    kinds = set(names_in(text))
    unknown = sorted(kinds.difference(COLLECTED))
    if unknown:
        known = ", ".join(COLLECTED)
        raise WorkbenchError(f"There is no kind of feedback {unknown[0]!r} (kinds={text!r}): use {known}.")
    if "pairs" not in kinds:
        raise WorkbenchError(f"kinds is {text!r}, but only pairs can be asked how far labelers agree: add pairs to it.")
    if "rankings" in kinds and completions_per_prompt < 2:
        raise WorkbenchError(
            f"completions_per_prompt is {completions_per_prompt}, but a ranking has at least 2: raise it."
        )
    return kinds
