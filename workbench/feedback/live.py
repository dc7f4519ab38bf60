"""How far labelers agree so far, in a line that is quick enough to show after every judgement."""

from __future__ import annotations

from collections import Counter, defaultdict

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
