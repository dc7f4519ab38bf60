"""How far labelers agree so far, in a line that is quick enough to show after every judgement."""

from __future__ import annotations

from itertools import combinations, groupby
from operator import itemgetter

from workbench.analysis.statistics import mean_and_error
from workbench.feedback.store import Store

FEWEST = 5  # items judged by two, before a share of them says anything
TIE = '"tie"'


def live_agreement(store: Store, kind: str) -> str:
    """For example "labelers agree on 74% ± 9% of 24 items judged by two"; "" where too few were.

    Two standard errors over items; a tie against a choice counts half, as in `agreement.pairwise_agreement`. Only
    choices can be equal or not: "" for rankings, ratings and corrections.
    """
    if kind not in ("pair", "best_of"):
        return ""
    agreements, numbers = [], []
    for number, (_, verdicts) in enumerate(groupby(store.verdicts_of_several(kind), key=itemgetter(0))):
        for (_, first), (_, second) in combinations(verdicts, 2):
            numbers.append(number)
            agreements.append(1.0 if first == second else 0.5 if TIE in (first, second) else 0.0)
    judged_by_two = len(set(numbers))
    if judged_by_two < FEWEST:
        return ""
    mean, error = mean_and_error(agreements, numbers)
    return f"labelers agree on {mean:.0%} ± {2 * error:.0%} of {judged_by_two} items judged by two"
