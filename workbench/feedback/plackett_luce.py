"""Scores of models or completions from orders of several of them (Plackett 1975), with intervals.

Luce 1959: one of several is chosen with a probability in proportion to its strength exp(score). Plackett's order is
such a choice of the best, then of the best of those that are left, and so on; two in order are a Bradley-Terry
comparison, and the best of several is one choice. All are one concave likelihood of `choices`, which `most_likely`
maximises; the pairs of `paired_comparison` go through it, too.

Ties: the order within a group was not said, so its likelihood is the geometric mean over all orders of the group, each
as likely. For two that is half a win for each. Scores are in nats of strength (for two: log-odds), their mean is 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations, islice
from typing import Any

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.feedback.choices import Choices, choices_made, cluster_of, intervals, most_likely, require_prior
from workbench.feedback.linked import require_linked
from workbench.feedback.named_rankings import completion_rankings
from workbench.feedback.tables import of_one_sort, read, require_columns
from workbench.records import Judgement


def completion_scores(
    items: Iterable[Mapping], judgements: Iterable[Judgement], *, prior_sd: float = 1.0
) -> pd.DataFrame:
    """Scores of the completions of every judged item, with mean 0 in it: item_id, completion (number), score, verdicts.

    A handful of verdicts leaves a completion that always won without a finite score; the normal prior with standard
    deviation `prior_sd` gives it one.
    """
    rankings, _ = completion_rankings(items, judgements)
    rows = []
    for item_id, own in rankings.groupby("item_id", sort=False):
        scores = plackett_luce_scores(own, prior_sd=prior_sd)
        rows += [(item_id, number, score, len(own)) for number, score in scores.items()]
    return pd.DataFrame(rows, columns=["item_id", "completion", "score", "verdicts"])


def plackett_luce_scores(rankings: pd.DataFrame, *, prior_sd: float = math.inf) -> pd.Series:
    """Most likely score of every name in `rankings`, by name.

    `rankings` has groups and perhaps rest, as `model_rankings` gives them. WorkbenchError where no finite scores fit
    best: every name must be linked to every other by wins in both directions (Ford 1957; Hunter 2004, assumption 1).
    With a finite `prior_sd`, the standard deviation of a normal prior on each score, there always are some.
    """
    names, choices = _choices(rankings, clusters="", prior_sd=prior_sd)
    return pd.Series(most_likely(choices, prior_sd=prior_sd), index=names, name="score")


def plackett_luce(
    rankings: pd.DataFrame,
    *,
    prior_sd: float = math.inf,
    clusters: str = "item_id",
    seed: int = 0,
    resamples: int = 1000,
) -> pd.DataFrame:
    """`plackett_luce_scores` with 95% bootstrap intervals: name, score, low, high, rankings, first; the best first.

    Rows with equal `clusters` (a column; "" for none) are one draw. `rankings` counts those with the name, `first` how
    often it stood first, ties shared. WorkbenchError as for the scores, and for a single cluster.
    """
    names, choices = _choices(rankings, clusters=clusters, prior_sd=prior_sd)
    best, low, high = intervals(choices, prior_sd=prior_sd, seed=seed, resamples=resamples)
    appeared, first = Counter(), Counter()
    for groups, rest in _orders(rankings):
        appeared.update({name for group in [*groups, rest] for name in group})
        for name in groups[0]:
            first[name] += 1 / len(groups[0])
    counts = {"rankings": [appeared[name] for name in names], "first": [float(first[name]) for name in names]}
    table = pd.DataFrame({"name": names, "score": best, "low": low, "high": high, **counts})
    return table.sort_values("score", ascending=False, ignore_index=True)


def order_probability(order: Sequence[Hashable], scores: Mapping[Hashable, float]) -> float:
    """Probability of a complete order of names, best first. Plackett 1975."""
    strengths = np.exp(np.array([scores[name] for name in order], dtype=float))
    return float(np.prod(strengths / np.cumsum(strengths[::-1])[::-1]))


def _choices(rankings: pd.DataFrame, *, clusters: str, prior_sd: float) -> tuple[list, Choices]:
    """All names and the choices that put them in order."""
    require_prior(prior_sd)
    made = []
    for cluster, order in zip(cluster_of(rankings, clusters), _orders(rankings), strict=True):
        made += [(cluster, choice, times) for choice, times in _stages(*order)]
    names = sorted({name for _, (chosen, others), _ in made for name in (chosen, *others)})
    if len(names) < 2:
        raise WorkbenchError(f"The rankings compare {names}: scores need at least 2 names.")
    number = {name: place for place, name in enumerate(names)}
    if math.isinf(prior_sd):
        above = np.zeros((len(names), len(names)), dtype=bool)
        for _, (chosen, others), _ in made:
            above[number[chosen], [number[name] for name in others]] = True
        require_linked(names, above)
    return names, choices_made(made, lambda name: {number[name]: 1.0}, scores=len(names), size=len(names))


def _orders(rankings: pd.DataFrame) -> list[tuple[list[list], list]]:
    """The groups and the rest of every row, as names that can be compared."""
    require_columns(rankings, ["groups"])
    if rankings.empty:
        raise WorkbenchError("The table of rankings has 0 rows: give at least one.")
    table = read(rankings if "rest" in rankings else rankings.assign(rest=None), ["groups", "rest"])
    lists = [[*groups, rest] for groups, rest in zip(table["groups"], table["rest"], strict=True)]
    names = iter(of_one_sort(name for groups in lists for names in groups for name in names)[0])
    lists = [[list(islice(names, len(group))) for group in groups] for groups in lists]
    return [(groups, rest) for *groups, rest in lists]


def _stages(groups: Sequence[Sequence], rest: Sequence) -> Iterator[tuple[tuple[Any, tuple], float]]:
    """The choices ((chosen, others), weight) of an order: of a group in a random order, every part may be what is left.

    A part of size s of a group of t is left with probability 1 / C(t, s), and each of its members is then the next one
    with probability 1 / s.
    """
    for place, group in enumerate(groups):
        below = [name for later in groups[place + 1 :] for name in later] + list(rest)
        for size in range(len(group), 0, -1):
            for left in combinations(group, size):
                for index, chosen in enumerate(left):
                    others = (*left[:index], *left[index + 1 :], *below)
                    if others:
                        yield (chosen, tuple(sorted(others, key=str))), 1 / (math.comb(len(group), size) * size)
