"""How far labelers agree so far, in a line that is quick enough to show after every judgement."""

from __future__ import annotations

import heapq
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

FEWEST = 5  # items judged by two, before a share of them says anything
TIE = '"tie"'


class LiveAgreement:
    """Sums over items that each new verdict changes, so that saying them costs the same however many there are."""

    def __init__(self) -> None:
        self._verdicts: dict[str, Counter] = defaultdict(Counter)  # of each item, as JSON
        self._sums = [0.0] * 6

    def count(self, sign: int, item_id: str, value: str) -> None:
        """Add a first verdict on an item, or take it back (sign -1)."""
        verdicts = self._verdicts[item_id]
        before = _terms(verdicts)
        verdicts[value] += sign
        self._sums = [sum_ - old + new for sum_, old, new in zip(self._sums, before, _terms(verdicts), strict=True)]

    def sentence(self) -> str:
        """For example "labelers agree on 74% ± 9% of 24 items judged by two"; "" where too few were.

        Two standard errors over items (see `mean_and_error`); a tie against a choice counts half, as in
        `agreement.pairwise_agreement`.
        """
        items, pairs, agreed, agreed2, both, pairs2 = self._sums
        if items < FEWEST:
            return ""
        mean = agreed / pairs
        squares = agreed2 - 2 * mean * both + mean**2 * pairs2  # of what each item's sum differs from its mean
        error = (items / (items - 1) * max(0.0, squares)) ** 0.5 / pairs
        return f"labelers agree on {mean:.0%} ± {2 * error:.0%} of {items:.0f} items judged by two"


def _terms(verdicts: Counter) -> tuple[float, ...]:
    """What an item adds: 1, its pairs of verdicts, how many agree, and the squares and product of these two."""
    given, ties = verdicts.total(), verdicts[TIE]
    pairs = given * (given - 1) / 2
    if not pairs:
        return (0.0,) * 6
    agreed = sum(count * (count - 1) / 2 for count in verdicts.values()) + ties * (given - ties) / 2
    return 1, pairs, agreed, agreed**2, agreed * pairs, pairs**2


# --- What one labeler has judged and may still judge, kept up to date by the rows of the log that are new.
#
# The log is the truth, whoever writes it: rows are only ever added, each with a higher number, so those after the
# last one that was read are all that can have changed. What a view costs does not grow with the judgements in the
# store.


NEW_ROWS = """
    SELECT new.seq, new.action = 'undo', standing.seq, standing.item_id, standing.labeler, standing.repeat,
        standing.action = 'label', standing.value, standing.elapsed_ms
    FROM judgement AS new JOIN judgement AS standing ON standing.seq = coalesce(new.undoes, new.seq)
    WHERE new.seq > ? AND +new.kind = ? ORDER BY new.seq"""  # the + keeps SQLite from reading all rows of the kind


class Desk:
    """Judgements of one kind as one labeler meets them; skipped items are the labeler's own, but not judged."""

    def __init__(
        self, labeler: str, kind: str, *, order: Sequence[str], members: Iterable[str], wanted: int, fewest: bool
    ) -> None:
        """`order` names the items to be handed out, `members` those and the checks, `wanted` how many judge each."""
        self.labeler, self.kind, self.members, self.wanted, self.fewest = labeler, kind, set(members), wanted, fewest
        self.own: Counter = Counter()  # items that this labeler judged or skipped, how often
        self.events: dict[int, tuple[str, int]] = {}  # (item, repeat) of this labeler by number, the oldest first
        self.repeated: set[str] = set()  # items that this labeler judged twice
        self.counts: Counter = Counter()  # labelers who judged each item
        self.all_judgements = 0  # of all labelers, repeats included
        self.agreement = LiveAgreement()
        self._seconds: dict[int, float] = {}  # that the labeler's judgements took, where somebody measured
        self._place = {item_id: place for place, item_id in enumerate(order)}
        self._open = {item_id: (0, place) for item_id, place in self._place.items()}  # and which comes first
        self._heap = [(key, item_id) for item_id, key in self._open.items()]  # with keys of before, which are skipped
        self._last = 0  # number of the last row that was read

    def read(self, db: sqlite3.Connection) -> None:
        """Take in what anybody wrote since the last time."""
        for row in db.execute(NEW_ROWS, (self._last, self.kind)):
            self._last = row[0]
            self._count(-1 if row[1] else 1, *row[2:])

    def following(self, claims: Mapping[str, int]) -> tuple[str, int]:
        """The next item that needs more judgements than it has or is on others' screens for, and how many do."""
        blocked = {
            item_id
            for item_id, count in claims.items()
            if item_id in self._open and self.counts[item_id] + count >= self.wanted
        }
        aside, found = [], ""
        while self._heap and not found:
            key, item_id = self._heap[0]
            if self._open.get(item_id) != key:
                heapq.heappop(self._heap)
            elif item_id in blocked:
                aside.append(heapq.heappop(self._heap))
            else:
                found = item_id
        for each in aside:
            heapq.heappush(self._heap, each)
        return found, len(self._open) - len(blocked)

    def is_open(self, item_id: str, claims: Mapping[str, int]) -> bool:
        """Whether this labeler may be given an item now."""
        return item_id in self._open and self.counts[item_id] + claims.get(item_id, 0) < self.wanted

    def longest_ago(self, gap: int) -> str:
        """The item judged once, the longest ago, and more than `gap` judgements ago; "" where there is none."""
        old = islice(self.events.values(), max(0, len(self.events) - gap))
        return next(
            (item for item, repeat in old if not repeat and item in self._place and item not in self.repeated), ""
        )

    def recent_seconds(self, count: int) -> list[float]:
        """What the labeler's last `count` measured judgements took."""
        return list(islice(reversed(self._seconds.values()), count))

    def _count(
        self, sign: int, seq: int, item_id: str, labeler: str, repeat: int, label: bool, value: str, elapsed_ms: int
    ) -> None:
        if label and not repeat:
            self.agreement.count(sign, item_id, value)
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
            if repeat:
                (self.repeated.add if sign > 0 else self.repeated.discard)(item_id)
        self._refresh(item_id)

    def _refresh(self, item_id: str) -> None:
        if item_id not in self._place or self.own[item_id] or self.counts[item_id] >= self.wanted:
            self._open.pop(item_id, None)
            return
        key = (self.counts[item_id] if self.fewest else 0, self._place[item_id])
        if self._open.get(item_id) != key:
            self._open[item_id] = key
            heapq.heappush(self._heap, (key, item_id))
