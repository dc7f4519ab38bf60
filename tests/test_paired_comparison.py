"""Oracles: choix, scipy on likelihoods written from the papers, coverage of planted scores."""

import itertools
import math
import tracemalloc

import choix
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from workbench import WorkbenchError
from workbench.analysis.statistics import expanded_levels
from workbench.feedback import strengths
from workbench.feedback.strengths import bradley_terry, plackett_luce

SCORES = np.array([0.9, 0.2, -0.3, -0.8])
NAMES = list("abcd")


def scores_of(table, **settings):
    """The score of every name, by name."""
    return bradley_terry(table, clusters="", resamples=1, **settings).set_index("name")["score"].sort_index()


def played(count, generator, *, scores=SCORES, tie=0.0):
    """Comparisons of names drawn at random, with ties by Davidson 1970: p1 : p2 : tie sqrt(p1 p2)."""
    rows = []
    for item in range(count):
        first, second = generator.choice(len(scores), size=2, replace=False)
        strength = np.exp(scores[[first, second]])
        odds = np.array([*strength, tie * math.sqrt(strength.prod())])
        result = generator.choice(3, p=odds / odds.sum())
        pair = (second, first) if result == 1 else (first, second)
        rows.append((item, *(NAMES[name] for name in pair), result == 2))
    return pd.DataFrame(rows, columns=["item_id", "winner", "loser", "tie"])


def numbered(table):
    return [
        (NAMES.index(winner), NAMES.index(loser)) for winner, loser in zip(table["winner"], table["loser"], strict=True)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_choix(seed):
    table = played(80, np.random.default_rng(seed)).drop(columns="tie")
    found = scores_of(table)
    assert list(found.index) == NAMES and abs(found.sum()) < 1e-9
    theirs = choix.ilsr_pairwise(4, numbered(table), tol=1e-12)
    np.testing.assert_allclose(found, theirs - theirs.mean(), atol=1e-6)
    for alpha in (0.05, 2.0):  # choix's penalty alpha |scores|^2 is a normal prior
        theirs = choix.opt_pairwise(4, numbered(table), alpha=alpha, tol=1e-12)
        np.testing.assert_allclose(scores_of(table, prior_sd=1 / math.sqrt(2 * alpha)), theirs, atol=1e-6)


def test_a_tie_is_half_a_win_for_each():
    table = played(120, np.random.default_rng(1), tie=1.0)
    decided, ties = numbered(table[~table["tie"]]), numbered(table[table["tie"]])
    halves = [*decided, *decided, *ties, *((loser, winner) for winner, loser in ties)]
    theirs = choix.ilsr_pairwise(4, halves, tol=1e-12)
    found = bradley_terry(table, resamples=50).set_index("name").loc[NAMES]
    np.testing.assert_allclose(found["score"], theirs - theirs.mean(), atol=1e-6)
    wins = [sum(pair[0] == name for pair in halves) / 2 for name in range(4)]
    np.testing.assert_array_equal(found["wins"], wins)
    assert found["comparisons"].sum() == 2 * len(table)


def test_two_names_have_a_closed_form_and_pairs_are_rankings_of_two():
    table = pd.DataFrame({"winner": ["x"] * 7 + ["y"] * 3, "loser": ["y"] * 7 + ["x"] * 3})
    found = scores_of(table)
    assert found["x"] - found["y"] == pytest.approx(math.log(7 / 3), abs=1e-9)
    groups = [[[winner], [loser]] for winner, loser in zip(table["winner"], table["loser"], strict=True)]
    rankings = plackett_luce(pd.DataFrame({"groups": groups}), clusters="").set_index("name")
    same = {"rankings": "comparisons", "first": "wins"}
    pd.testing.assert_frame_equal(rankings.rename(columns=same), bradley_terry(table, clusters="").set_index("name"))


def table_of(text):
    """ "ab" is a win of a against b, "a=b" a tie."""
    rows = [(pair[0], pair[-1], "=" in pair) for pair in text.split()]
    return pd.DataFrame(rows, columns=["winner", "loser", "tie"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ab ba ac bc", "'c' never won against any of the others"),
        ("ab ac bc cb", "'a' never lost to any of the others"),
        ("ab ba cd dc", "'a', 'b' and 'c', 'd' were never compared"),
        ("a=b ac bc", "'c' never won"),
        ("ab ba cd dc ac", "'a', 'b' never lost"),
    ],
)
def test_what_can_not_be_scored_says_who_is_to_blame(text, words):
    table = table_of(text)
    with pytest.raises(WorkbenchError, match=f"{words}.*prior_sd"):
        scores_of(table)
    assert np.isfinite(scores_of(table, prior_sd=1)).all()


def linked(wins):
    """Ford's condition by brute force: in every split of the names in two, each side beat the other."""
    names = range(len(wins))
    splits = (set(part) for size in range(1, len(wins)) for part in itertools.combinations(names, size))
    return all(any(wins[i][j] for i in part for j in set(names) - part) for part in splits)


def test_scores_exist_exactly_where_ford_says_so():
    generator = np.random.default_rng(0)
    seen = set()
    for _ in range(150):
        wins = (generator.random((4, 4)) < 0.35) & ~np.eye(4, dtype=bool)
        if not wins.any():
            continue
        rows = [(NAMES[i], NAMES[j]) for i in range(4) for j in range(4) if wins[i, j]]
        table = pd.DataFrame(rows, columns=["winner", "loser"])
        names = sorted({*table["winner"], *table["loser"]})
        among = [NAMES.index(name) for name in names]
        expected = linked(wins[np.ix_(among, among)])
        seen.add(expected)
        if expected:
            assert np.isfinite(scores_of(table)).all()
        else:
            with pytest.raises(WorkbenchError):
                scores_of(table)
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("score", "table", "words"),
    [
        (scores_of, table_of(""), "0 rows"),
        (scores_of, pd.DataFrame({"winner": ["a"]}), r"lacks \['loser'\]"),
        (bradley_terry, [{"winner": "a", "loser": "b"}], "are a list: give a table"),
        (bradley_terry, table_of("aa"), "compare two different names"),
        (scores_of, pd.DataFrame({"winner": ["a"], "loser": [None]}), "compare two different names"),
        (bradley_terry, table_of("ab ba"), "no column 'item_id'"),
        (bradley_terry, table_of("ab ba").assign(item_id=1), "at least 2"),
    ],
)
def test_bad_tables_get_a_sentence(score, table, words):
    with pytest.raises(WorkbenchError, match=words):
        score(table)


def test_intervals_cover_planted_scores_as_often_as_they_say():
    """Each of 70 items is judged by two who see the same: one draw is an item, not a verdict."""
    generator, covered = np.random.default_rng(2), []
    for _ in range(100):
        found = bradley_terry(pd.concat([played(70, generator)] * 2), resamples=200).set_index("name").loc[NAMES]
        covered.append((found["low"] < SCORES) & (found["high"] > SCORES))
    assert 0.92 < np.mean(covered) < 0.98


def drawn(generator, scores, *, comparisons, tie=0.0):
    """Comparisons of pairs drawn at random, in a model with these scores; a share of them called level instead."""
    size = len(scores)
    one = generator.integers(size, size=comparisons)
    other = (one + generator.integers(1, size, size=comparisons)) % size
    first = generator.random(comparisons) < 1 / (1 + np.exp(scores[other] - scores[one]))
    winner, loser = np.where(first, one, other), np.where(first, other, one)
    ties = generator.random(comparisons) < tie
    return pd.DataFrame({"item_id": range(comparisons), "winner": winner, "loser": loser, "tie": ties})


@pytest.mark.parametrize("names_with_own_information", [0, 64])
def test_intervals_are_those_of_weighted_fits_by_a_general_optimiser(names_with_own_information, monkeypatch):
    monkeypatch.setattr(strengths, "MOST_FOR_OWN_INFORMATION", names_with_own_information)
    table, names, resamples = drawn(np.random.default_rng(0), np.linspace(-1, 1, 6), comparisons=60), range(6), 60
    weights = np.random.default_rng(3).exponential(size=(resamples, len(table)))
    winner, loser = table["winner"].to_numpy(), table["loser"].to_numpy()

    def fitted(weight):
        def loss(scores):
            return weight @ np.logaddexp(0, scores[loser] - scores[winner]) + scores @ scores / 2

        return minimize(loss, np.zeros(6), method="BFGS", options={"gtol": 1e-7}).x

    draws = np.stack([fitted(weight * len(table) / weight.sum()) for weight in weights])
    low, high = np.quantile(draws, expanded_levels(len(table)), axis=0)
    found = bradley_terry(table, prior_sd=1, seed=3, resamples=resamples).set_index("name").loc[names]
    assert found["low"].to_numpy() == pytest.approx(low, abs=1e-3)
    assert found["high"].to_numpy() == pytest.approx(high, abs=1e-3)


def test_hundreds_of_names_are_scored_without_a_table_of_their_squares_for_each_comparison():
    scores = np.random.default_rng(1).normal(size=100) / 2
    table = drawn(np.random.default_rng(2), scores - scores.mean(), comparisons=3000, tie=0.1)
    tracemalloc.start()
    found = bradley_terry(table, resamples=10).set_index("name").sort_index()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6  # bytes; (comparisons, names squared) would be 240 MB
    gap = found["score"][table["loser"]].to_numpy() - found["score"][table["winner"]].to_numpy()
    surprise = (
        1 / (1 + np.exp(-gap)) - table["tie"] / 2
    )  # the likeliest scores expect of each name the wins that it had
    balance = surprise.groupby(table["winner"]).sum().sub(surprise.groupby(table["loser"]).sum(), fill_value=0)
    assert balance.abs().max() < 1e-5
