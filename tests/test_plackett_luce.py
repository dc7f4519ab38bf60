"""Oracles: choix, brute force with scipy, sums over all orders, and coverage of planted scores."""

import itertools
import math
import random

import choix
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from workbench import WorkbenchError
from workbench.feedback.strengths import plackett_luce

SCORES = np.array([0.9, 0.3, 0.0, -0.4, -0.8])


def drawn(count, generator, *, size=4, scores=SCORES):
    """Orders of `size` names each, drawn with Gumbel noise (Yellott 1977)."""
    orders = []
    for _ in range(count):
        among = generator.choice(len(scores), size=size, replace=False)
        seen = scores[among] + generator.gumbel(size=size)
        orders.append(tuple(int(name) for name in among[np.argsort(-seen)]))
    return orders


def table(orders, rest=None):
    groups = [[[name] for name in order] for order in orders]
    return pd.DataFrame({"item_id": range(len(orders)), "groups": groups, "rest": rest or [[]] * len(orders)})


def scores_of(rankings, **settings):
    """The score of every name, by name."""
    return plackett_luce(rankings, clusters="", resamples=1, **settings).set_index("name")["score"].sort_index()


def centred(scores):
    return np.asarray(scores) - np.mean(scores)


@pytest.mark.parametrize("seed", range(3))
def test_scores_of_complete_orders_are_those_of_choix(seed):
    orders = drawn(60, np.random.default_rng(seed))
    found = scores_of(table(orders))
    assert list(found.index) == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(found, centred(choix.ilsr_rankings(5, orders, tol=1e-10)), atol=1e-6)


@pytest.mark.parametrize("alpha", [0.05, 2.0])
def test_a_normal_prior_is_the_penalty_of_choix(alpha):
    orders = drawn(20, np.random.default_rng(0))
    theirs = choix.opt_rankings(5, orders, alpha=alpha, method="BFGS", tol=1e-8)
    ours = scores_of(table(orders), prior_sd=1 / math.sqrt(2 * alpha))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_scores_of_the_best_of_several_are_those_of_choix(seed):
    orders = drawn(80, np.random.default_rng(seed))
    best = pd.DataFrame({"groups": [[[order[0]]] for order in orders], "rest": [list(order[1:]) for order in orders]})
    theirs = choix.opt_top1(5, [(order[0], order[1:]) for order in orders], alpha=0.0, tol=1e-12)
    np.testing.assert_allclose(scores_of(best), centred(theirs), atol=1e-6)


def all_orders(groups, rest):
    """Every complete order of the groups' names that breaks their ties, before the rest."""
    for broken in itertools.product(*map(itertools.permutations, groups)):
        yield [name for group in broken for name in group], rest


def log_probability(order, rest, scores):
    """Of the names in order, ahead of the rest."""
    left = [*order, *rest]
    total = 0.0
    for name in order:
        total += scores[name] - np.logaddexp.reduce([scores[each] for each in left])
        left.remove(name)
    return total


@pytest.mark.parametrize("seed", range(4))
def test_ties_are_the_mean_over_all_orders_of_their_group(seed):
    draw = random.Random(seed)
    rows = []
    for _ in range(25):
        order = draw.sample(range(4), 4)
        cuts = sorted(draw.sample(range(1, 4), draw.randrange(3)))
        groups = [order[start:stop] for start, stop in itertools.pairwise([0, *cuts, 4])]
        rest = groups.pop() if len(groups) > 1 and draw.random() < 0.4 else []
        rows.append((groups, rest))

    def surprise(scores):
        means = [np.mean([log_probability(*order, scores) for order in all_orders(*row)]) for row in rows]
        return -sum(means) + scores.mean() ** 2

    best = minimize(surprise, np.zeros(4), method="BFGS", options={"gtol": 1e-9})
    found = scores_of(pd.DataFrame(rows, columns=["groups", "rest"]))
    np.testing.assert_allclose(found, centred(best.x), atol=2e-6)


def test_the_table_counts_rankings_and_first_places():
    orders = [[["old"], ["new"]], [["new", "old"]], [["base"], ["new", "old"], ["old"]], [["new"]]]
    rankings = pd.DataFrame({"groups": orders, "rest": [[], [], [], ["old", "base", "old"]]})
    found = plackett_luce(rankings, clusters="", resamples=50).set_index("name")
    assert found["rankings"].to_dict() == {"new": 4, "old": 4, "base": 2}
    assert found["first"].to_dict() == {"new": 1.5, "old": 1.5, "base": 1.0}
    assert found["score"].is_monotonic_decreasing and abs(found["score"].mean()) < 1e-9
    assert (found["low"] < found["score"]).all() and (found["score"] < found["high"]).all()


def test_the_same_seed_gives_the_same_intervals_and_prior_narrows_them():
    rankings = table(drawn(40, np.random.default_rng(1)))
    first, again = (plackett_luce(rankings, seed=3, resamples=200) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    tight = plackett_luce(rankings, seed=3, resamples=200, prior_sd=0.3)
    assert ((tight["high"] - tight["low"]) < 0.7 * (first["high"] - first["low"])).all()


@pytest.mark.parametrize(
    ("orders", "words"),
    [
        ([("a", "b", "c"), ("a", "c", "b")], "'a' never lost to any of the others"),
        ([("a", "b", "c"), ("b", "a", "c")], "'c' never won against any of the others"),
        ([("a", "b"), ("b", "a"), ("c", "d"), ("d", "c")], "'a', 'b' and 'c', 'd' were never compared"),
        ([("a", "b"), ("b", "a"), ("c", "d"), ("d", "c"), ("a", "c")], "'a', 'b' never lost to any of the others"),
        ([("a",), ("a",)], "needs? at least 2 names|compare"),
        ([], "0 rows"),
    ],
)
def test_what_can_not_be_scored_says_who_is_to_blame(orders, words):
    with pytest.raises(WorkbenchError, match=words):
        scores_of(table(orders))
    if len({name for order in orders for name in order}) > 1:
        assert np.isfinite(scores_of(table(orders), prior_sd=1)).all()


def test_bad_arguments_get_a_sentence():
    rankings = table(drawn(30, np.random.default_rng(0)))
    with pytest.raises(WorkbenchError, match="prior_sd is 0"):
        scores_of(rankings, prior_sd=0)
    with pytest.raises(WorkbenchError, match="no column 'prompt'"):
        plackett_luce(rankings, clusters="prompt")
    with pytest.raises(WorkbenchError, match="at least 2"):
        plackett_luce(rankings.assign(item_id="one"))


def test_intervals_cover_planted_scores_as_often_as_they_say():
    """Two labelers who see the same order each of 60 items: one draw is an item, not a verdict."""
    generator, truth, covered, naive = np.random.default_rng(5), centred(SCORES), [], []
    for number in range(60):
        rankings = pd.concat([table(drawn(60, generator, size=3))] * 2)
        found = plackett_luce(rankings, resamples=200).set_index("name").loc[range(5)]
        covered.append((found["low"] < truth) & (truth < found["high"]))
        if number < 20:
            found = plackett_luce(rankings, clusters="", resamples=200).set_index("name").loc[range(5)]
            naive.append((found["low"] < truth) & (truth < found["high"]))
    assert 0.92 < np.mean(covered) < 0.98
    assert np.mean(naive) < 0.9, "verdicts on one item are no independent evidence"
