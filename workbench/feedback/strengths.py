"""Scores of models from comparisons of two (Bradley and Terry 1952) and orders of several (Plackett 1975), and Elo.

Luce 1959: one of several is chosen with a probability in proportion to its strength exp(score). Plackett's order is
such a choice of the best, then of the best of those that are left, and so on; a comparison is an order of two, the best
of several is one choice. All are one concave likelihood. Scores are in nats of strength (for two: log-odds; 1 is 174
points of Elo), and their mean is 0.

Ties: the order within a group was not said, so its likelihood is the geometric mean over all orders of the group, each
as likely. For two that is half a win for each.

Comparisons are a table with the columns winner and loser; where there are ties, a column tie says in which rows the two
are level, in any order. Rankings are a table with groups of names, best first, and perhaps rest, the names below them.
Both raise WorkbenchError where no finite scores fit best: wins must lead from every name to every other (Ford 1957;
Hunter 2004, assumption 1). With a finite `prior_sd`, the standard deviation of a normal prior on each score, there
always are some. In 95% intervals rows with equal `clusters` (a column; "" for none) are one draw; there must be two.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, islice
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.statistics import Interval, expanded_levels
from workbench.feedback.kinds import COMPARING, KINDS, compared, judged
from workbench.feedback.tables import names_in, of_one_sort, read, require_columns
from workbench.records import Judgement

Order = tuple[list[list], list]  # groups of names, best first, ties in one group; names below them in no known order
Choice = tuple[tuple[Any, tuple], float]  # (chosen, others), how often


class Davidson(NamedTuple):
    """Scores, and how likely ties are: between equals, the odds of a tie against a win of a certain one of them."""

    scores: pd.DataFrame
    tie: Interval


def model_rankings(items: Iterable[Mapping], judgements: Iterable[Judgement]) -> tuple[pd.DataFrame, dict[str, int]]:
    """Verdicts of the comparing kinds on the writers of the completions, and how many were left out and why.

    Rows item_id, labeler, groups, rest. The names stand in an item's `models`, one per completion; WorkbenchError where
    they do not.
    """
    rows, left_out = [], Counter()
    for judgement, item, reason in judged(items, judgements, *COMPARING):
        if reason:
            left_out[reason] += 1
            continue
        names, count = item.get("models"), len(item["completions"])
        if not isinstance(names, Sequence) or isinstance(names, str) or len(names) != count:
            raise WorkbenchError(
                f"Item {item['item_id']!r} has models {names!r}: name the writer of each of its {count} completions."
            )
        groups, rest = KINDS[judgement.kind].groups(judgement.value, range(count))
        named = [[names[index] for index in group] for group in groups]
        rows.append((judgement.item_id, judgement.labeler, named, [names[index] for index in rest]))
    return pd.DataFrame(rows, columns=["item_id", "labeler", "groups", "rest"]), dict(left_out)


def comparisons_of(rankings: pd.DataFrame) -> pd.DataFrame:
    """All pairs that `model_rankings` decide or tie: item_id, labeler, winner, loser, tie.

    Pairs of one ranking are no independent evidence: keep them together by `clusters="item_id"`. Nobody is compared
    with itself.
    """
    rows = [
        (row["item_id"], row["labeler"], *pair)
        for row in rankings.to_dict("records")
        for pair in compared(row["groups"], row["rest"])
    ]
    table = pd.DataFrame(rows, columns=["item_id", "labeler", "winner", "loser", "tie"])
    return table[table["winner"] != table["loser"]].reset_index(drop=True)


def plackett_luce_scores(rankings: pd.DataFrame, *, prior_sd: float = math.inf) -> pd.Series:
    """Most likely score of every name in `rankings`, by name."""
    return _scores(_orders(rankings), prior_sd)


def bradley_terry_scores(comparisons: pd.DataFrame, *, prior_sd: float = math.inf) -> pd.Series:
    """Most likely score of every name in `comparisons`, by name; a tie is half a win for each."""
    return _scores(_of_two(_checked(comparisons)), prior_sd)


def plackett_luce(
    rankings: pd.DataFrame,
    *,
    prior_sd: float = math.inf,
    clusters: str = "item_id",
    seed: int = 0,
    resamples: int = 1000,
) -> pd.DataFrame:
    """`plackett_luce_scores` with intervals: name, score, low, high, rankings, first; the best first.

    `rankings` counts those with the name, `first` how often it stood first, ties shared.
    """
    orders = _orders(rankings)
    names, choices = _choices(orders, cluster_of(rankings, clusters), prior_sd)
    columns = dict(zip(INTERVAL, intervals(choices, prior_sd=prior_sd, seed=seed, resamples=resamples), strict=True))
    appeared, first = Counter(), Counter()
    for groups, rest in orders:
        appeared.update({name for group in [*groups, rest] for name in group})
        for name in groups[0]:
            first[name] += 1 / len(groups[0])
    return _sorted(names, columns | {"rankings": appeared, "first": first})


def bradley_terry(
    comparisons: pd.DataFrame,
    *,
    prior_sd: float = math.inf,
    clusters: str = "item_id",
    seed: int = 0,
    resamples: int = 1000,
) -> pd.DataFrame:
    """`bradley_terry_scores` with intervals: name, score, low, high, comparisons, wins; the best first."""
    table = _checked(comparisons)
    names, choices = _choices(_of_two(table), cluster_of(table, clusters), prior_sd)
    columns = dict(zip(INTERVAL, intervals(choices, prior_sd=prior_sd, seed=seed, resamples=resamples), strict=True))
    return _sorted(names, columns | _wins(table))


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
    WorkbenchError also where there are only ties, or none.
    """
    table = _checked(comparisons)
    orders, own = _of_two(table), cluster_of(table, clusters)
    names, _ = _choices(orders, own, prior_sd)
    number = {name: place for place, name in enumerate(names)}
    pairs = [(number[one], number[other]) for one, other in zip(table["winner"], table["loser"], strict=True)]
    _require_tie(pairs, table["tie"], size=len(names))
    made = []  # of each comparison the choice of one of three: either name, or the tie
    for cluster, pair, tie in zip(own, pairs, table["tie"], strict=True):
        level = tuple(sorted(pair))
        made.append((cluster, (level, level) if tie else (pair[0], (pair[1], level)), 1.0))
    choices = choices_made(made, partial(_log_strength, last=len(names)), scores=len(names), size=len(names) + 1)
    ends = intervals(choices, prior_sd=prior_sd, seed=seed, resamples=resamples)
    columns = {name: values[:-1] for name, values in zip(INTERVAL, ends, strict=True)}
    tie = Interval(*(float(np.exp(values[-1])) for values in ends))
    return Davidson(_sorted(names, columns | _wins(table)), tie)


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
    return _sorted(list(ratings), {"rating": ratings} | _wins(table))


INTERVAL = ("score", "low", "high")


def _scores(orders: Sequence[Order], prior_sd: float) -> pd.Series:
    names, choices = _choices(orders, range(len(orders)), prior_sd)
    return pd.Series(most_likely(choices, prior_sd=prior_sd), index=names, name="score")


def _choices(orders: Sequence[Order], clusters: Sequence[Hashable], prior_sd: float) -> tuple[list, Choices]:
    """All names and the choices that put them in order."""
    if not prior_sd > 0:
        raise WorkbenchError(f"prior_sd is {prior_sd!r}: give a standard deviation above 0, or math.inf for no prior.")
    made = [(cluster, *stage) for cluster, order in zip(clusters, orders, strict=True) for stage in _stages(*order)]
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


def _orders(rankings: pd.DataFrame) -> list[Order]:
    """The groups and the rest of every row, as names that can be compared."""
    require_columns(rankings, ["groups"])
    if rankings.empty:
        raise WorkbenchError("The table of rankings has 0 rows: give at least one.")
    table = read(rankings if "rest" in rankings else rankings.assign(rest=None), ["groups", "rest"])
    lists = [[*groups, rest] for groups, rest in zip(table["groups"], table["rest"], strict=True)]
    names = iter(of_one_sort(name for groups in lists for names in groups for name in names)[0])
    lists = [[list(islice(names, len(group))) for group in groups] for groups in lists]
    return [(groups, rest) for *groups, rest in lists]


def _stages(groups: Sequence[Sequence], rest: Sequence) -> Iterator[Choice]:
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


def _of_two(table: pd.DataFrame) -> list[Order]:
    """Comparisons as orders of two."""
    rows = zip(table["winner"], table["loser"], table["tie"], strict=True)
    return [([[winner, loser]] if tie else [[winner], [loser]], []) for winner, loser, tie in rows]


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


def _log_strength(alternative: int | tuple[int, int], *, last: int) -> dict[int, float]:
    """Of a name: its score; of a tie: the mean of both scores and the last parameter, the log of Davidson's."""
    if isinstance(alternative, tuple):
        return {**dict.fromkeys(alternative, 0.5), last: 1.0}
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


def _wins(table: pd.DataFrame) -> dict[str, Counter]:
    """In how many comparisons each name was, and how many it won, half of one for a tie."""
    wins = Counter()
    for winner, loser, tie in zip(table["winner"], table["loser"], table["tie"], strict=True):
        wins[winner] += 0.5 if tie else 1.0
        wins[loser] += 0.5 if tie else 0.0
    return {"comparisons": Counter([*table["winner"], *table["loser"]]), "wins": wins}


def _sorted(names: Sequence, columns: Mapping[str, np.ndarray | Mapping]) -> pd.DataFrame:
    """Rows name and `columns`, in the order of the names or by name, the largest of the first column first."""
    values = {
        column: [given[name] for name in names] if isinstance(given, Mapping) else given
        for column, given in columns.items()
    }
    table = pd.DataFrame({"name": names, **values})
    return table.sort_values(next(iter(columns)), ascending=False, ignore_index=True)


# --- The likelihood of choices: log-strengths are linear in the parameters, so the log-likelihood is concave.


NEWTON_STEPS, HALVINGS = 200, 40
LAST_STEP, LAST_STEP_OF_DRAWS = 1e-8, 1e-3  # nats; a step of Newton's method leaves about its square as error
LARGEST_BATCH = 500_000  # numbers held at once while resampling
Step = Callable[[np.ndarray, np.ndarray], np.ndarray]  # how far to go from (R, P), with these times (R, D): (R, P)
Derivatives = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Choices:
    """D different choices of one among up to A, with P parameters, and by which of C clusters they were made.

    The log-strength of an alternative is a sum of a few parameters: up to S of them, each times its part. The E = A * S
    entries of a choice are so few that P, which may be thousands, is met only where they are added up.
    """

    names: np.ndarray  # (D, A, S) which parameters each alternative's log-strength is made of; the chosen one is first
    parts: np.ndarray  # (D, A, S) how often each is in it, 0 on padding
    present: np.ndarray  # (D, A) bool, False on padding
    cluster: np.ndarray  # (N,) of each time that a choice was made, those of one choice after those of the one before
    times: np.ndarray  # (N,) 1, or a part of it where a tie was split
    starts: np.ndarray  # (D,) where in N each choice begins
    clusters: int  # C
    scores: int  # of the P parameters the first ones, which mean nothing but their differences
    size: int  # P

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        """How often each choice was made, (R, D), by clusters with these weights, (R, C)."""
        return np.add.reduceat(weights[:, self.cluster] * self.times, self.starts, axis=1)

    def added(self, values: np.ndarray) -> np.ndarray:
        """The sum for each parameter, (R, P), of a value for each entry, (R, D, A, S)."""
        cells = np.arange(len(values))[:, None] * self.size + self.names.ravel()
        return np.bincount(cells.ravel(), values.ravel(), len(values) * self.size).reshape(-1, self.size)


def intervals(
    choices: Choices, *, prior_sd: float, seed: int, resamples: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The most likely parameters, (P,), and the lower and upper ends of their 95% intervals.

    The clusters get random weights with mean 1 (the Bayesian bootstrap, Rubin 1981): unlike how often each is drawn
    with replacement, none is 0, so that what is linked stays linked.
    """
    if choices.clusters < 2:
        raise WorkbenchError("1 item has no measurable spread: an interval needs verdicts on at least 2.")
    best = most_likely(choices, prior_sd=prior_sd)
    precision = _precision(choices, prior_sd)
    scaled, newton = _scaled_steps(choices, precision, best), _newton_steps(choices, precision)
    generator, draws = np.random.default_rng(seed), []
    batch = max(1, LARGEST_BATCH // max(len(choices.cluster), choices.parts.size))
    for start in range(0, resamples, batch):
        weights = generator.exponential(size=(min(batch, resamples - start), choices.clusters))
        weights *= choices.clusters / weights.sum(axis=1, keepdims=True)
        times = choices.weighted(weights)
        for_all = partial(_maximised, choices, precision=precision, enough=LAST_STEP_OF_DRAWS)
        try:
            draws.append(for_all(times, np.tile(best, (len(times), 1)), step_from=scaled))
        except WorkbenchError:  # so little is known that another matrix is needed for each
            draws += [for_all(row[None], best[None], step_from=newton) for row in times]
    low, high = np.quantile(np.concatenate(draws), expanded_levels(choices.clusters), axis=0)
    return best, low, high


def most_likely(choices: Choices, *, prior_sd: float) -> np.ndarray:
    """Parameters, (P,), that maximise the likelihood of all choices, and of the scores under a normal prior.

    WorkbenchError where they run away to infinity.
    """
    precision, times = _precision(choices, prior_sd), choices.weighted(np.ones((1, choices.clusters)))
    start, step = np.zeros((1, choices.size)), _newton_steps(choices, precision)
    return _maximised(choices, times, start, precision, LAST_STEP, step)[0]


def choices_made(
    made: Sequence[tuple[Hashable, tuple[Any, tuple], float]],
    strengths: Callable[[Any], Mapping[int, float]],
    *,
    scores: int,
    size: int,
) -> Choices:
    """Choices from (cluster, (chosen, others), times), each alternative with the parameters in its log-strength."""
    different = {choice: place for place, choice in enumerate(dict.fromkeys(choice for _, choice, _ in made))}
    clusters = {cluster: place for place, cluster in enumerate(dict.fromkeys(cluster for cluster, _, _ in made))}
    sums = {each: strengths(each) for chosen, others in different for each in (chosen, *others)}
    shape = len(different), 1 + max(len(others) for _, others in different), max(map(len, sums.values()))
    names, parts, present = np.zeros(shape, dtype=int), np.zeros(shape), np.zeros(shape[:2], dtype=bool)
    for (chosen, others), place in different.items():
        for number, each in enumerate((chosen, *others)):
            names[place, number, : len(sums[each])] = list(sums[each])
            parts[place, number, : len(sums[each])] = list(sums[each].values())
        present[place, : 1 + len(others)] = True
    which = np.array([different[choice] for _, choice, _ in made])
    order = np.argsort(which, kind="stable")
    return Choices(
        names=names,
        parts=parts,
        present=present,
        cluster=np.array([clusters[cluster] for cluster, _, _ in made])[order],
        times=np.array([times for _, _, times in made])[order],
        starts=np.searchsorted(which[order], np.arange(len(different))),
        clusters=len(clusters),
        scores=scores,
        size=size,
    )


def cluster_of(table: pd.DataFrame, clusters: str) -> list[Hashable]:
    """Which rows are one draw: the values of a column, or each row on its own for ""."""
    if not clusters:
        return list(range(len(table)))
    if clusters not in table:
        raise WorkbenchError(
            f'The table has no column {clusters!r} (it has {list(table.columns)}): name another, or "" for rows that '
            "are independent."
        )
    return names_in(table, clusters)


def _precision(choices: Choices, prior_sd: float) -> np.ndarray:
    """Of the normal prior on each parameter, (P,): 0 where there is none."""
    return np.where(np.arange(choices.size) < choices.scores, prior_sd**-2, 0.0)


def _maximised(
    choices: Choices, times: np.ndarray, start: np.ndarray, precision: np.ndarray, enough: float, step_from: Step
) -> np.ndarray:
    """The most likely parameters, (R, P), for each row of how often choices were made, (R, D), from `start` (R, P).

    Halved steps up a concave function for each row, until no step is larger than `enough`.
    """
    found, value = start, _objective(start, choices, times, precision)
    for _ in range(NEWTON_STEPS):
        step = step_from(found, times)
        found, value = _uphill(found, step, value, lambda at: _objective(at, choices, times, precision))
        if np.abs(step).max() < enough:
            return found
    raise WorkbenchError("No finite scores fit these verdicts best: compare more, or give prior_sd=1.")


def _uphill(
    found: np.ndarray, step: np.ndarray, value: np.ndarray, objective: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Where each row's step, halved until it is no step down, leads to, and the objective there."""
    size = np.ones((len(found), 1))
    for _ in range(HALVINGS):
        reached = objective(found + size * step)
        worse = reached < value - 1e-12 * np.abs(value)
        if not worse.any():
            break
        size[worse] /= 2
    return found + size * step, reached


def _shares(found: np.ndarray, choices: Choices) -> tuple[np.ndarray, np.ndarray]:
    """Probability of each alternative, (R, D, A), and minus the log-probability of the chosen one, (R, D)."""
    strengths = np.einsum("rdas,das->rda", found[:, choices.names], choices.parts)
    gaps = np.where(choices.present, strengths - strengths[..., :1], -np.inf)
    top = gaps.max(axis=2, keepdims=True)
    parts = np.exp(gaps - top)
    total = parts.sum(axis=2, keepdims=True)
    return parts / total, (top + np.log(total))[..., 0]


def _objective(found: np.ndarray, choices: Choices, times: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Log-likelihood of each row, (R,), with the log-density of the prior."""
    _, surprise = _shares(found, choices)
    return -(times * surprise).sum(axis=1) - (precision * found**2).sum(axis=1) / 2


def _gradient(shares: np.ndarray, times: np.ndarray, choices: Choices) -> np.ndarray:
    """Of the log-likelihood, (R, P): what was chosen less what was to be expected."""
    surplus = -shares
    surplus[..., 0] += 1
    return choices.added((times[..., None] * surplus)[..., None] * choices.parts)


def _newton_steps(choices: Choices, precision: np.ndarray) -> Step:
    """Steps of the inverse observed information times the gradient, with scores that keep their mean."""
    derivatives = _derivatives(choices)

    def step(found: np.ndarray, times: np.ndarray) -> np.ndarray:
        gradient, information = derivatives(_shares(found, choices)[0], times)
        gradient = gradient - precision * found
        return np.linalg.solve(information + _fixed(choices, precision), gradient[..., None])[..., 0]

    return step


def _derivatives(choices: Choices) -> Derivatives:
    """Gradient, (1, P), and information, (1, P, P), of the log-likelihood of a row with these shares, (1, D, A)."""
    entries = choices.parts[0].size
    alternative = np.repeat(np.arange(choices.parts.shape[1]), choices.parts.shape[2])  # (E,) that an entry is of
    names, parts = choices.names.reshape(-1, entries), choices.parts.reshape(-1, entries)
    cells = (names[:, :, None] * choices.size + names[:, None, :]).ravel()

    def derivatives(shares: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        share = shares[0][:, alternative]
        covariance = share[..., None] * (np.equal.outer(alternative, alternative) - share[:, None, :])
        covariance *= times[0][:, None, None] * (parts[:, :, None] * parts[:, None, :])
        information = np.bincount(cells, covariance.ravel(), choices.size**2)
        return _gradient(shares, times, choices), information.reshape(1, choices.size, choices.size)

    return derivatives


def _fixed(choices: Choices, precision: np.ndarray) -> np.ndarray:
    """(P, P) of the prior, and of the mean of the scores: a common shift of all of them changes nothing."""
    same = (np.arange(choices.size) < choices.scores).astype(float)
    return np.diag(precision) + np.outer(same, same)


def _scaled_steps(choices: Choices, precision: np.ndarray, best: np.ndarray) -> Step:
    """Steps near the most likely parameters, by the information there, scaled to what each row knows of each of them.

    One inverted matrix serves all rows: one for each would take hours for a thousand names.
    """

    def spread(found: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shares, _ = _shares(found, choices)
        known = (times[..., None] * shares * (1 - shares))[..., None] * choices.parts**2
        return shares, np.sqrt(choices.added(known) + precision)

    once = choices.weighted(np.ones((1, choices.clusters)))
    shares, usual = spread(best[None], once)
    inverse = np.linalg.inv(_derivatives(choices)(shares, once)[1][0] + _fixed(choices, precision))

    def step(found: np.ndarray, times: np.ndarray) -> np.ndarray:
        shares, known = spread(found, times)
        scale = usual / known
        moved = scale * ((scale * (_gradient(shares, times, choices) - precision * found)) @ inverse)
        moved[:, : choices.scores] -= moved[:, : choices.scores].mean(axis=1, keepdims=True)
        return moved

    return step


# --- Whether wins link all names to each other; where they do not, no finite scores fit best (Ford 1957).


def require_linked(names: Sequence, above: np.ndarray) -> None:
    """WorkbenchError unless wins lead from every name to every other (Ford 1957).

    above (n, n) bool: row placed above column, or level with it, at least once.
    """
    from scipy.sparse.csgraph import connected_components  # takes a third of a second

    count, group = connected_components(above, connection="strong")
    if count == 1:
        return
    cure = "no finite scores fit best: compare more, or give prior_sd=1, which draws scores towards 0"
    apart, part = connected_components(above, connection="weak")
    if apart > 1:
        here = part == part[0]
        raise WorkbenchError(f"{_listed(names, here)} and {_listed(names, ~here)} were never compared: {cure}.")
    better, worse = (group[side] for side in np.nonzero(above))
    outside = better != worse
    top, bottom = (group == group[~np.isin(group, side[outside])][0] for side in (worse, better))
    if top.sum() <= bottom.sum():
        raise WorkbenchError(f"{_listed(names, top)} never lost to any of the others: {cure}.")
    raise WorkbenchError(f"{_listed(names, bottom)} never won against any of the others: {cure}.")


def _listed(names: Sequence, chosen: np.ndarray) -> str:
    listed = [repr(name) for name, among in zip(names, chosen, strict=True) if among]
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
