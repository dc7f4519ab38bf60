"""Scores of models or completions from comparisons of two: Bradley-Terry, Davidson's ties, and Elo beside them.

Comparisons are a table with the columns winner and loser; where there are ties, a column tie says in which rows the two
are level, in any order. Scores are log-odds against a rival of score 0, and their mean is 0; 1 is 174 points of Elo.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.statistics import Interval
from workbench.feedback.choices import Choices, choices_made, cluster_of, intervals, most_likely, require_prior
from workbench.feedback.linked import require_linked
from workbench.feedback.tables import read, require_columns


class Davidson(NamedTuple):
    """Scores, and how likely ties are: between equals, the odds of a tie against a win of a certain one of them."""

    scores: pd.DataFrame
    tie: Interval


def comparisons_of(rankings: pd.DataFrame) -> pd.DataFrame:
    """All pairs that rankings decide or tie: item_id, labeler, winner, loser, tie.

    `rankings` are those of `model_rankings`. Pairs of one ranking are no independent evidence: keep them together by
    `clusters="item_id"`. Nobody is compared with itself.
    """
    rows = []
    for row in rankings.to_dict("records"):
        who = row["item_id"], row["labeler"]
        placed = [(name, place) for place, group in enumerate(row["groups"]) for name in group]
        rows += [(*who, one, other, first == second) for (one, first), (other, second) in combinations(placed, 2)]
        rows += [(*who, one, other, False) for one, _ in placed for other in row["rest"]]
    table = pd.DataFrame(rows, columns=["item_id", "labeler", "winner", "loser", "tie"])
    return table[table["winner"] != table["loser"]].reset_index(drop=True)


def bradley_terry_scores(comparisons: pd.DataFrame, *, prior_sd: float = math.inf) -> pd.Series:
    """Most likely score of every name, by name. Bradley and Terry 1952; a tie is half a win for each.

    WorkbenchError where no finite scores fit best: wins must lead from every name to every other (Ford 1957). With a
    finite `prior_sd`, the standard deviation of a normal prior on each score, there always are some.
    """
    names, choices = _choices(comparisons, clusters="", prior_sd=prior_sd)
    return pd.Series(most_likely(choices, prior_sd=prior_sd), index=names, name="score")


def bradley_terry(
    comparisons: pd.DataFrame,
    *,
    prior_sd: float = math.inf,
    clusters: str = "item_id",
    seed: int = 0,
    resamples: int = 1000,
) -> pd.DataFrame:
    """`bradley_terry_scores` with 95% bootstrap intervals: name, score, low, high, comparisons, wins; the best first.

    Rows with equal `clusters` (a column; "" for none) are one draw; a tie is half a win. WorkbenchError as for the
    scores, and for a single cluster.
    """
    names, choices = _choices(comparisons, clusters=clusters, prior_sd=prior_sd)
    best, low, high = intervals(choices, prior_sd=prior_sd, seed=seed, resamples=resamples)
    return _with_wins(names, {"score": best, "low": low, "high": high}, _checked(comparisons))


def davidson(
    comparisons: pd.DataFrame,
    *,
    prior_sd: float = math.inf,
    clusters: str = "item_id",
    seed: int = 0,
    resamples: int = 1000,
) -> Davidson:
    """Scores as those of `bradley_terry` in a model of ties. Davidson 1970.

    With strengths p = exp(score), the first wins, the second wins and a tie are as likely as p1 : p2 : tie sqrt(p1 p2).
    WorkbenchError as for `bradley_terry`, and where there are only ties, or none.
    """
    names, choices = _choices(comparisons, clusters=clusters, prior_sd=prior_sd, ties_apart=True)
    best, low, high = intervals(choices, prior_sd=prior_sd, seed=seed, resamples=resamples)
    tie = Interval(*(float(np.exp(each[-1])) for each in (best, low, high)))
    return Davidson(_with_wins(names, {"score": best, "low": low, "high": high}, _checked(comparisons)), tie)


def win_probabilities(scores: pd.DataFrame, *, tie: float = 0.0) -> pd.DataFrame:
    """Probability that the row wins against the column, from a table of name and score.

    `tie` is Davidson's parameter; what two opposite cells lack to 1 is the probability of a tie. Against itself a name
    would win as often as it would lose.
    """
    score = scores["score"].to_numpy(dtype=float)
    gap = score[None, :] - score[:, None]
    values = 1 / (1 + np.exp(gap) + tie * np.exp(gap / 2))
    return pd.DataFrame(values, index=list(scores["name"]), columns=list(scores["name"]))


def elo(comparisons: pd.DataFrame, *, k: float = 32, start: float = 1000) -> pd.DataFrame:
    """Ratings after all comparisons, one after the other: name, rating, comparisons, wins; the best first. Elo 1978.

    A comparison moves both names by `k` times what it surprised by: a rival 400 points below is beaten with odds of 10
    to 1. The result depends on the order of the rows, and the last ones count most: it follows players who change. For
    models, which do not, `bradley_terry` uses every comparison alike.
    """
    table = _checked(comparisons)
    ratings = dict.fromkeys(sorted({*table["winner"], *table["loser"]}), float(start))
    for winner, loser, tie in zip(table["winner"], table["loser"], table["tie"], strict=True):
        expected = 1 / (1 + 10 ** ((ratings[loser] - ratings[winner]) / 400))
        change = k * ((0.5 if tie else 1.0) - expected)
        ratings[winner] += change
        ratings[loser] -= change
    return _with_wins(list(ratings), {"rating": np.array(list(ratings.values()))}, table)


def _choices(
    comparisons: pd.DataFrame, *, clusters: str, prior_sd: float, ties_apart: bool = False
) -> tuple[list, Choices]:
    """All names, and each comparison as a choice: of two, half each way for a tie, or of three, the third the tie."""
    require_prior(prior_sd)
    table = _checked(comparisons)
    names = sorted({*table["winner"], *table["loser"]})
    number = {name: place for place, name in enumerate(names)}
    pairs = [(number[winner], number[loser]) for winner, loser in zip(table["winner"], table["loser"], strict=True)]
    if math.isinf(prior_sd):
        above = np.zeros((len(names), len(names)), dtype=bool)
        for (winner, loser), tie in zip(pairs, table["tie"], strict=True):
            above[winner, loser] = True
            above[loser, winner] |= tie
        require_linked(names, above)
    if ties_apart:
        _require_tie(pairs, table["tie"], size=len(names))
    rows = zip(cluster_of(table, clusters), pairs, table["tie"], strict=True)
    outcome = _of_three if ties_apart else _of_two
    made = [(cluster, choice, times) for cluster, pair, tie in rows for choice, times in outcome(pair, tie)]
    size = len(names) + ties_apart
    return names, choices_made(made, lambda name: _log_strength(name, size), scores=len(names), size=size)


def _require_tie(pairs: Sequence[tuple[int, int]], ties: pd.Series, *, size: int) -> None:
    """WorkbenchError unless Davidson's parameter of ties has a finite likeliest value above 0.

    It grows without end, and all outcomes become certain, where scores exist that are at least 1 apart for every win
    and at most 1 for every tie: where no cycle of these inequalities contradicts itself.
    """
    if ties.nunique() < 2:
        found = "all" if ties.all() else "none"
        raise WorkbenchError(
            f"Of {len(pairs)} comparisons {found} are ties, but Davidson's model needs both: use bradley_terry."
        )
    most = np.full((size, size), np.inf)  # by how much the column may be above the row
    for (winner, loser), tie in zip(pairs, ties, strict=True):
        most[winner, loser] = min(most[winner, loser], 1.0 if tie else -1.0)
        if tie:
            most[loser, winner] = min(most[loser, winner], 1.0)
    for middle in range(size):  # Floyd and Warshall's shortest paths
        most = np.minimum(most, most[:, [middle]] + most[[middle], :])
    if not (np.diag(most) < 0).any():
        raise WorkbenchError(
            "The wins and ties contradict each other nowhere, so that Davidson's model would call them certain: "
            "compare more, or use bradley_terry."
        )


def _of_two(pair: tuple[int, int], tie: bool) -> list[tuple[tuple[Any, tuple], float]]:
    first, second = pair
    return [((first, (second,)), 0.5), ((second, (first,)), 0.5)] if tie else [((first, (second,)), 1.0)]


def _of_three(pair: tuple[int, int], tie: bool) -> list[tuple[tuple[Any, tuple], float]]:
    level = tuple(sorted(pair))
    return [((level, level), 1.0)] if tie else [((pair[0], (pair[1], level)), 1.0)]


def _log_strength(alternative: int | tuple[int, int], size: int) -> dict[int, float]:
    """Of a name: its score; of a tie: the mean of both scores and the last parameter, the log of Davidson's."""
    if isinstance(alternative, tuple):
        return {**dict.fromkeys(alternative, 0.5), size - 1: 1.0}
    return {alternative: 1.0}


def _checked(comparisons: pd.DataFrame) -> pd.DataFrame:
    """The table as typed values, with a column tie; WorkbenchError where there is nothing to score."""
    require_columns(comparisons, ["winner", "loser"])
    if comparisons.empty:
        raise WorkbenchError("The table of comparisons has 0 rows: give at least one.")
    table = read(comparisons if "tie" in comparisons else comparisons.assign(tie=False), ["winner", "loser", "tie"])
    same = table["winner"] == table["loser"]
    if same.any():
        name = table["winner"][same].iloc[0]
        raise WorkbenchError(f"A comparison is of {name!r} with {name!r}: compare two different names.")
    return table


def _with_wins(names: Sequence, columns: Mapping[str, np.ndarray], table: pd.DataFrame) -> pd.DataFrame:
    """Rows name, `columns`, comparisons, wins (half of one for a tie), the largest of the first column first."""
    comparisons, wins = Counter([*table["winner"], *table["loser"]]), Counter()
    for winner, loser, tie in zip(table["winner"], table["loser"], table["tie"], strict=True):
        wins[winner] += 0.5 if tie else 1.0
        wins[loser] += 0.5 if tie else 0.0
    counts = {"comparisons": [comparisons[name] for name in names], "wins": [wins[name] for name in names]}
    scored = pd.DataFrame({"name": names, **{name: values[: len(names)] for name, values in columns.items()}, **counts})
    return scored.sort_values(next(iter(columns)), ascending=False, ignore_index=True)
