"""Scores of models from comparisons of two (Bradley and Terry 1952) and orders of several (Plackett 1975).

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
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.statistics import expanded_levels
from workbench.feedback.tables import names_in, of_one_sort, read, require_columns

Order = tuple[list[list], list]  # groups of names, best first, ties in one group; names below them in no known order
Choice = tuple[tuple[Any, tuple], float]  # (chosen, others), how often


def plackett_luce(
    rankings: pd.DataFrame,
    *,
    prior_sd: float = math.inf,
    clusters: str = "item_id",
    seed: int = 0,
    resamples: int = 1000,
) -> pd.DataFrame:
    """Most likely score of every name with its interval: name, score, low, high, rankings, first; the best first.

    `rankings` counts those with the name, `first` how often it stood first, ties shared.
    """
    orders, own = _orders(rankings), cluster_of(rankings, clusters)
    return _scored(orders, own, ("rankings", "first"), prior_sd=prior_sd, seed=seed, resamples=resamples)


def bradley_terry(
    comparisons: pd.DataFrame,
    *,
    prior_sd: float = math.inf,
    clusters: str = "item_id",
    seed: int = 0,
    resamples: int = 1000,
) -> pd.DataFrame:
    """Most likely score of every name with its interval: name, score, low, high, comparisons, wins; the best first.

    A tie is half a win for each.
    """
    orders, own = _orders_of_two(comparisons), cluster_of(comparisons, clusters)
    return _scored(orders, own, ("comparisons", "wins"), prior_sd=prior_sd, seed=seed, resamples=resamples)


def _scored(
    orders: Sequence[Order],
    clusters: Sequence[Hashable],
    counts: tuple[str, str],
    *,
    prior_sd: float,
    seed: int,
    resamples: int,
) -> pd.DataFrame:
    """Rows name, score, low, high, and under the names in `counts`: in how many orders, and how often first."""
    if not prior_sd > 0:
        raise WorkbenchError(f"prior_sd is {prior_sd!r}: give a standard deviation above 0, or math.inf for no prior.")
    names, choices = _choices(orders, clusters, linked=math.isinf(prior_sd))
    score, low, high = intervals(choices, precision=prior_sd**-2, seed=seed, resamples=resamples)
    appeared, first = Counter(), Counter()
    for groups, rest in orders:
        appeared.update({name for group in [*groups, rest] for name in group})
        for name in groups[0]:
            first[name] += 1 / len(groups[0])
    counted = {column: [count[name] for name in names] for column, count in zip(counts, (appeared, first), strict=True)}
    table = pd.DataFrame({"name": names, "score": score, "low": low, "high": high, **counted})
    return table.sort_values("score", ascending=False, ignore_index=True)


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


def _orders_of_two(comparisons: pd.DataFrame) -> list[Order]:
    """Comparisons as orders of two."""
    require_columns(comparisons, ["winner", "loser"])
    if comparisons.empty:
        raise WorkbenchError("The table of comparisons has 0 rows: give at least one.")
    table = read(comparisons if "tie" in comparisons else comparisons.assign(tie=False), ["winner", "loser", "tie"])
    same = table["winner"] == table["loser"]
    if same.any():
        name = table["winner"][same].iloc[0]
        raise WorkbenchError(f"A comparison is of {name!r} with {name!r}: compare two different names.")
    rows = zip(table["winner"], table["loser"], table["tie"], strict=True)
    return [([[winner, loser]] if tie else [[winner], [loser]], []) for winner, loser, tie in rows]


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


# --- The likelihood of choices, which is concave in the scores.


NEWTON_STEPS, HALVINGS = 200, 40
LAST_STEP, LAST_STEP_OF_DRAWS = 1e-8, 1e-3  # nats; a step of Newton's method leaves about its square as error
MOST_FOR_OWN_INFORMATION = 64  # names
LARGEST_BATCH = 2_000_000  # numbers held at once while resampling


@dataclass(frozen=True, kw_only=True)
class Choices:
    """D different choices of one among up to A of P names, and by which of C clusters they were made."""

    names: np.ndarray  # (D, A) the numbers of the names, the chosen one first
    present: np.ndarray  # (D, A) bool, False on padding
    cluster: np.ndarray  # (N,) of each time that a choice was made, those of one choice after those of the one before
    times: np.ndarray  # (N,) 1, or a part of it where a tie was split
    starts: np.ndarray  # (D,) where in N each choice begins
    clusters: int  # C
    size: int  # P

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        """How often each choice was made, (R, D), by clusters with these weights, (R, C)."""
        return np.add.reduceat(weights[:, self.cluster] * self.times, self.starts, axis=1)

    def shares(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probability of each alternative, (R, D, A), and minus the log-probability of the chosen one, (R, D)."""
        strengths = scores[:, self.names]
        gaps = np.where(self.present, strengths - strengths[..., :1], -np.inf)
        top = gaps.max(axis=2, keepdims=True)
        parts = np.exp(gaps - top)
        total = parts.sum(axis=2, keepdims=True)
        return parts / total, (top + np.log(total))[..., 0]

    def gradient(self, shares: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Slope of the log-likelihood in the scores, (R, P), where the choices have these shares."""
        surplus = -times[..., None] * shares  # what was chosen less what was to be expected
        surplus[..., 0] += times
        return self.added(surplus)

    def added(self, values: np.ndarray) -> np.ndarray:
        """The sum for each name, (R, P), of a value for each alternative, (R, D, A)."""
        cells = np.arange(len(values))[:, None] * self.size + self.names.ravel()
        return np.bincount(cells.ravel(), values.ravel(), len(values) * self.size).reshape(-1, self.size)

    def information(self, shares: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Minus its second derivatives, (R, P, P)."""
        alternatives = np.eye(self.names.shape[1])
        covariance = shares[..., None] * (alternatives - shares[..., None, :]) * times[..., None, None]
        pairs = (self.names[:, :, None] * self.size + self.names[:, None, :]).ravel()
        cells = np.arange(len(shares))[:, None] * self.size**2 + pairs
        found = np.bincount(cells.ravel(), covariance.ravel(), len(shares) * self.size**2)
        return found.reshape(-1, self.size, self.size)


def intervals(
    choices: Choices, *, precision: float, seed: int, resamples: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The most likely scores, (P,), and the lower and upper ends of their 95% intervals.

    The clusters get random weights with mean 1 (the Bayesian bootstrap, Rubin 1981): unlike how often each is drawn
    with replacement, none is 0, so that what is linked stays linked. `precision` is that of the prior on each score.
    """
    if choices.clusters < 2:
        raise WorkbenchError("1 item has no measurable spread: an interval needs verdicts on at least 2.")
    once = choices.weighted(np.ones((1, choices.clusters)))
    best = _most_likely(choices, once, np.zeros((1, choices.size)), precision, LAST_STEP)
    near = None  # of many names the information at the best scores serves every draw: a step costs P², not P³
    if choices.size > MOST_FOR_OWN_INFORMATION:
        information = choices.information(choices.shares(best)[0], once)[0] + _fixed(choices, precision)
        near = np.diag(information), np.linalg.inv(information)
    generator, draws = np.random.default_rng(seed), []
    held = max(len(choices.cluster), choices.names.size * choices.names.shape[1], 0 if near else choices.size**2)
    batch = max(1, LARGEST_BATCH // held)
    for start in range(0, resamples, batch):
        weights = generator.exponential(size=(min(batch, resamples - start), choices.clusters))
        weights *= choices.clusters / weights.sum(axis=1, keepdims=True)
        times = choices.weighted(weights)
        begin = np.tile(best, (len(times), 1))
        draws.append(_most_likely(choices, times, begin, precision, LAST_STEP_OF_DRAWS, near))
    low, high = np.quantile(np.concatenate(draws), expanded_levels(choices.clusters), axis=0)
    return best[0], low, high


def _most_likely(
    choices: Choices,
    times: np.ndarray,
    start: np.ndarray,
    precision: float,
    enough: float,
    near: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """The most likely scores, (R, P), for each row of how often choices were made, (R, D), from `start` (R, P).

    Newton's method, each row's step halved until it is no step down, until no step is larger than `enough`; with
    `near`, the diagonal (P,) and the inverse (P, P) of an information near by, that is scaled to each row's diagonal.
    WorkbenchError where scores run away to infinity.
    """
    found, value = start, _objective(start, choices, times, precision)
    for _ in range(NEWTON_STEPS):
        shares = choices.shares(found)[0]
        slope = choices.gradient(shares, times) - precision * found
        if near is None:
            own = choices.information(shares, times) + _fixed(choices, precision)
            step = np.linalg.solve(own, slope[..., None])[..., 0]
        else:
            own = choices.added(shares * (1 - shares) * times[..., None]) + precision + 1
            scale = np.sqrt(near[0] / own)
            step = scale * ((scale * slope) @ near[1])
        size = np.ones((len(found), 1))
        for _ in range(HALVINGS):
            reached = _objective(found + size * step, choices, times, precision)
            worse = reached < value - 1e-12 * np.abs(value)
            if not worse.any():
                break
            size[worse] /= 2
        found, value = found + size * step, reached
        if np.abs(step).max() < (enough if near is None else enough / 4):  # such steps shrink by a part, not a square
            return found
    raise WorkbenchError("No finite scores fit these verdicts best: compare more, or give prior_sd=1.")


def _fixed(choices: Choices, precision: float) -> np.ndarray:
    """What the prior adds to the information, and 1, so that the mean of all scores, which changes nothing, stays."""
    return precision * np.eye(choices.size) + 1


def _objective(found: np.ndarray, choices: Choices, times: np.ndarray, precision: float) -> np.ndarray:
    """Log-likelihood of each row, (R,), with the log-density of the prior."""
    return -(times * choices.shares(found)[1]).sum(axis=1) - precision * (found**2).sum(axis=1) / 2


def _choices(orders: Sequence[Order], clusters: Sequence[Hashable], *, linked: bool) -> tuple[list, Choices]:
    """All names and the choices that put them in order; WorkbenchError where they must be `linked` and are not."""
    made = [(cluster, *stage) for cluster, order in zip(clusters, orders, strict=True) for stage in _stages(*order)]
    names = sorted({name for _, (chosen, others), _ in made for name in (chosen, *others)})
    if len(names) < 2:
        raise WorkbenchError(f"The rankings compare {names}: scores need at least 2 names.")
    number = {name: place for place, name in enumerate(names)}
    different = {choice: place for place, choice in enumerate(dict.fromkeys(choice for _, choice, _ in made))}
    own = {cluster: place for place, cluster in enumerate(dict.fromkeys(cluster for cluster, _, _ in made))}
    numbers = np.zeros((len(different), 1 + max(len(others) for _, others in different)), dtype=int)
    present = np.zeros(numbers.shape, dtype=bool)
    for (chosen, others), place in different.items():
        numbers[place, : 1 + len(others)] = [number[name] for name in (chosen, *others)]
        present[place, : 1 + len(others)] = True
    if linked:
        above = np.zeros((len(names), len(names)), dtype=bool)
        above[np.broadcast_to(numbers[:, :1], numbers.shape)[present], numbers[present]] = True
        require_linked(names, above)
    which = np.array([different[choice] for _, choice, _ in made])
    order = np.argsort(which, kind="stable")
    return names, Choices(
        names=numbers,
        present=present,
        cluster=np.array([own[cluster] for cluster, _, _ in made])[order],
        times=np.array([times for _, _, times in made])[order],
        starts=np.searchsorted(which[order], np.arange(len(different))),
        clusters=len(own),
        size=len(names),
    )


def require_linked(names: Sequence, above: np.ndarray) -> None:
    """WorkbenchError unless wins lead from every name to every other: else no finite scores fit best (Ford 1957).

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
