"""Which items would teach a reward model most: priorities for `Queue(order="uncertain")`, from its scores.

`scores` are (M, N, K): M reward models of an ensemble, N items, K completions of each.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice
from typing import Any

import numpy as np

from workbench import WorkbenchError
from workbench.analysis.statistics import mean_and_error
from workbench.feedback.kinds import is_check, require_size
from workbench.feedback.store import Store
from workbench.feedback.tables import require_items


def ensemble_disagreement(scores: np.ndarray) -> np.ndarray:
    """Variance over the ensemble of the preferred probability, mean over pairs of completions, (N,).

    The probability is Bradley-Terry's, the logistic of the difference of scores; what Christiano et al. 2017,
    section 2.2.4, choose their queries by. WorkbenchError for fewer than two models.
    """
    probabilities = _preferred(scores)
    if len(probabilities) < 2:
        raise WorkbenchError("An ensemble of 1 reward model can not disagree: give at least 2, or use closeness.")
    return probabilities.var(axis=0).mean(axis=-1)


def closeness(scores: np.ndarray) -> np.ndarray:
    """How near a coin toss the mean model finds each item, from 0 (sure) to 1 (a tie), mean over pairs, (N,)."""
    return (1 - np.abs(2 * _preferred(scores).mean(axis=0) - 1)).mean(axis=-1)


def _preferred(scores: np.ndarray) -> np.ndarray:
    """Probability that the first of each pair of completions is preferred, (M, N, pairs)."""
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 3 or scores.shape[2] < 2:
        raise WorkbenchError(
            f"scores have the shape {scores.shape}: give (models, items, completions), at least 2 completions."
        )
    if not np.isfinite(scores).all():
        raise WorkbenchError("scores hold NaN or infinity: give finite numbers.")
    differences = [
        scores[..., first] - scores[..., second] for first, second in combinations(range(scores.shape[2]), 2)
    ]
    return 1 / (1 + np.exp(-np.clip(np.stack(differences, axis=-1), -50, 50)))


# --- Which item a labeler judges next, and when enough is judged.
#
# Each item is judged by `judgements_per_item` labelers and by none of them twice, but for hidden repeats, which
# measure self-consistency. Items with a known answer (`expected`) check attention: every labeler gets all of
# them.


ORDERS = ("random", "given", "fewest", "uncertain")
CLAIM_SECONDS = 1800  # that an item on somebody's screen is kept from others
LEAST_GAP = 5  # judgements between an item and its repeat
CLAIMED = "SELECT item_id, COUNT(*) FROM claim WHERE kind = ? AND labeler <> ? AND until > ? GROUP BY item_id"


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What a labeler is to judge; no item where nothing is left, for the reason given."""

    item_id: str = ""
    repeat: int = 0
    done: int = 0  # judgements of this labeler
    total: int = 0  # those, and what is left for this labeler now
    reason: str = ""


@dataclass(kw_only=True, eq=False)
class Queue:
    """Items and the rule by which they are handed out."""

    items: Sequence[Mapping[str, Any]]
    judgements_per_item: int = 1  # by different labelers
    order: str = "random"  # "given", "fewest" judgements first, or "uncertain": highest priority first
    priorities: Mapping[str, float] | None = None  # of item ids, for "uncertain": as `ensemble_disagreement` gives them
    repeat_share: float = 0.0  # of a labeler's judgements that repeat an earlier item
    budget: int = 0  # judgements of all labelers after which everybody stops, 0 for none
    seed: int = 0  # of the random order, which differs between labelers
    _plain: dict[str, None] = field(init=False, repr=False)  # ids of the items without checks, in their order
    _members: set[str] = field(init=False, repr=False)  # ids of all items
    _orders: dict[str, tuple[list[str], list[str]]] = field(init=False, repr=False, default_factory=dict)
    _desks: dict[tuple[Store, str, str], Desk] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        require_items(self.items)
        self._members = {item["item_id"] for item in self.items}
        self._plain = dict.fromkeys(item["item_id"] for item in self.items if not is_check(item))
        if self.order not in ORDERS:
            raise WorkbenchError(f"order is {self.order!r}: use one of {', '.join(ORDERS)}.")
        if self.judgements_per_item < 1 or self.budget < 0:
            raise WorkbenchError(
                f"judgements_per_item is {self.judgements_per_item} and budget {self.budget}: give at least 1 judgement"
                " per item, and a budget above 0 or 0 for none."
            )
        if not 0 <= self.repeat_share <= 0.5:
            raise WorkbenchError(f"repeat_share is {self.repeat_share}: give a share from 0 to 0.5.")
        lacking = [item_id for item_id in self._plain if item_id not in (self.priorities or {})]
        if self.order == "uncertain" and lacking:
            raise WorkbenchError(
                f"order is 'uncertain', but {len(lacking)} items have no priority, the first is {lacking[0]!r}: give "
                "priorities, a number for each item_id."
            )

    def register(self, store: Store, kind: str) -> None:
        """Add the items to the store; WorkbenchError where one can not be judged in this way."""
        for item in self.items:
            require_size(item, kind)
        store.add_items(self.items)

    def turn(self, store: Store, labeler: str, kind: str, *, first: str = "") -> Turn:
        """What `labeler` is to judge now, claimed in the store so that nobody else is given it meanwhile.

        `first` is an item to come before all others, if it may come at all: the one whose judgement was just undone.
        """
        desk = self.desk(store, labeler, kind)
        with store.transaction() as db:
            desk.read(db)
            claims = dict(db.execute(CLAIMED, (kind, labeler, time.time())).fetchall())
            turn = self._next(desk, claims, first)
            db.execute("DELETE FROM claim WHERE kind = ? AND labeler = ?", (kind, labeler))
            if turn.item_id and not turn.repeat:
                until = time.time() + CLAIM_SECONDS
                db.execute("INSERT INTO claim VALUES(?, ?, ?, ?)", (turn.item_id, labeler, kind, until))
        return turn

    def desk(self, store: Store, labeler: str, kind: str) -> Desk:
        """What the labeler has judged and may still judge, as of the last `turn`."""
        if (store, labeler, kind) not in self._desks:
            self._desks[store, labeler, kind] = Desk(labeler, kind, self._members)
        return self._desks[store, labeler, kind]

    def _next(self, desk: Desk, claims: Mapping[str, int], first: str) -> Turn:
        done, (items, checks) = len(desk.events), self._ordered(desk.labeler)
        checks = [item_id for item_id in checks if not desk.own[item_id]]
        wanted = self.judgements_per_item
        left_open = [
            item_id
            for item_id in items
            if not desk.own[item_id] and desk.counts[item_id] + claims.get(item_id, 0) < wanted
        ]
        left = len(checks) + len(left_open) + (self._repeats_left(desk) if left_open else 0)
        if self.budget:
            left = min(left, max(0, self.budget - desk.all_judgements))
        counts = {"done": done, "total": done + left}
        if not left:
            return Turn(**counts, reason=self._reason(desk, claims))
        if first in checks or first in left_open:
            return Turn(item_id=first, **counts)
        if due := self._repeat_due(desk) if left_open else "":
            return Turn(item_id=due, repeat=1, **counts)
        if checks and self._check_due(done, len(left_open)):
            return Turn(item_id=checks[0], **counts)
        following = min(left_open, key=desk.counts.__getitem__) if self.order == "fewest" else left_open[0]
        return Turn(item_id=following, **counts)

    def _check_due(self, done: int, opened: int) -> bool:
        """Checks are spread evenly among the items, and come at the end if they were not reached."""
        every = max(2, len(self._members) // (1 + len(self._members) - len(self._plain)))
        return not opened or done % every == every - 1

    def _ordered(self, labeler: str) -> tuple[list[str], list[str]]:
        """Items and checks in the order of one labeler, before anything is judged."""
        if labeler not in self._orders:
            items = list(self._plain)
            if self.order != "given":
                items = _shuffled(items, self.seed, labeler)
            if self.order == "uncertain":
                items.sort(key=lambda item_id: -self.priorities[item_id])
            checks = sorted(self._members.difference(self._plain))
            self._orders[labeler] = items, _shuffled(checks, self.seed, labeler)
        return self._orders[labeler]

    def _repeats_left(self, desk: Desk) -> int:
        """About how many repeats are still to come for this labeler."""
        return max(0, round(self.repeat_share * len(self.items) / (1 - self.repeat_share)) - len(desk.repeated))

    def _repeat_due(self, desk: Desk) -> str:
        """The item judged longest ago that is due again, or "" where none is."""
        repeated = desk.repeated
        if not self.repeat_share or len(repeated) + 1 > self.repeat_share * (len(desk.events) + 1):
            return ""
        old = islice(desk.events.values(), max(0, len(desk.events) - LEAST_GAP))
        plain = (item for item, repeat in old if not repeat and item in self._plain)
        return next((item for item in plain if item not in repeated), "")

    def _reason(self, desk: Desk, claims: Mapping[str, int]) -> str:
        if self.budget and desk.all_judgements >= self.budget:
            return f"The budget of {self.budget} judgements is used up."
        if claims:
            return "What is left is on other labelers' screens: come back later."
        times = f"{self.judgements_per_item} labelers" if self.judgements_per_item > 1 else "a labeler"
        return f"Nothing is left for you: each of {len(self.items)} items is judged by {times} or by you."


def _shuffled(item_ids: Sequence[str], seed: int, labeler: str) -> list[str]:
    """In an order of the labeler's own, the same after a restart."""

    def place(item_id: str) -> bytes:
        return hashlib.sha256(json.dumps([seed, labeler, item_id]).encode()).digest()

    return sorted(item_ids, key=place)


# --- Completions of one prompt as items that a labeler can judge: two at a time, or several.


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


# --- What one labeler has judged and may still judge, kept up to date by the rows of the log that are new.
#
# The log is the truth, whoever writes it: rows are only ever added, each with a higher number, so those after the
# last one that was read are all that can have changed.


FEWEST = 5  # items judged by two, before a share of them says anything
TIE = '"tie"'
NEW_ROWS = """
    SELECT new.seq, new.action = 'undo', standing.seq, standing.item_id, standing.labeler, standing.repeat,
        standing.action = 'label', standing.value, standing.elapsed_ms
    FROM judgement AS new JOIN judgement AS standing ON standing.seq = coalesce(new.undoes, new.seq)
    WHERE new.seq > ? AND +new.kind = ? ORDER BY new.seq"""  # the + keeps SQLite from reading all rows of the kind


class Desk:
    """Judgements of one kind as one labeler meets them; skipped items are the labeler's own, but not judged."""

    def __init__(self, labeler: str, kind: str, members: set[str]) -> None:
        self.labeler, self.kind, self.members = labeler, kind, members
        self.own: Counter = Counter()  # items that this labeler judged or skipped, how often
        self.events: dict[int, tuple[str, int]] = {}  # (item, repeat) of this labeler by number, the oldest first
        self.counts: Counter = Counter()  # labelers who judged each item
        self.all_judgements = 0  # of all labelers, repeats included
        self._verdicts: dict[str, Counter] = defaultdict(Counter)  # first verdicts on each item, as JSON
        self._agreed: dict[
            str, tuple[float, int]
        ] = {}  # of items judged by two the share of pairs that agree, and pairs
        self._seconds: dict[int, float] = {}  # that the labeler's judgements took, where somebody measured
        self._last = 0  # number of the last row that was read

    def read(self, db: sqlite3.Connection) -> None:
        """Take in what anybody wrote since the last time."""
        for row in db.execute(NEW_ROWS, (self._last, self.kind)):
            self._last = row[0]
            self._count(-1 if row[1] else 1, *row[2:])

    @property
    def repeated(self) -> set[str]:
        """Items that this labeler judged twice."""
        return {item for item, repeat in self.events.values() if repeat}

    def recent_seconds(self, count: int) -> list[float]:
        """What the labeler's last `count` measured judgements took."""
        return list(islice(reversed(self._seconds.values()), count))

    def agreement(self) -> str:
        """For example "labelers agree on 74% ± 9% of 24 items judged by two"; "" where too few were.

        Two standard errors over items; a tie against a choice counts half, as in `agreement.pairwise_agreement`.
        """
        if len(self._agreed) < FEWEST:
            return ""
        shares, pairs = zip(*self._agreed.values(), strict=True)
        mean, error = mean_and_error(np.repeat(shares, pairs), np.repeat(np.arange(len(pairs)), pairs))
        return f"labelers agree on {mean:.0%} ± {2 * error:.0%} of {len(pairs)} items judged by two"

    def _count(
        self, sign: int, seq: int, item_id: str, labeler: str, repeat: int, label: bool, value: str, elapsed_ms: int
    ) -> None:
        if label and not repeat:
            verdicts = self._verdicts[item_id]
            verdicts[value] += sign
            self._agreed.pop(item_id, None)
            if verdicts.total() > 1:
                self._agreed[item_id] = _agreed(verdicts)
        if labeler == self.labeler and elapsed_ms > 0:
            self._seconds[seq] = elapsed_ms / 1000
        if sign < 0:
            self._seconds.pop(seq, None)
        if item_id not in self.members:
            return
        self.all_judgements += sign * label
        self.counts[item_id] += sign * (label and not repeat)
        if labeler == self.labeler:
            self.own[item_id] += sign
            if sign > 0:
                self.events[seq] = item_id, repeat
            else:
                del self.events[seq]


def _agreed(verdicts: Counter) -> tuple[float, int]:
    """The share of pairs of verdicts that agree, and how many pairs there are."""
    given, ties = verdicts.total(), verdicts[TIE]
    pairs = given * (given - 1) // 2
    equal = sum(count * (count - 1) / 2 for count in verdicts.values())
    return (equal + ties * (given - ties) / 2) / pairs, pairs
