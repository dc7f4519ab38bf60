"""Oracles: choix, scipy on likelihoods written from the papers, Davidson's puddings, games scored by hand, coverage."""

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
from workbench.feedback.strengths import (
    bradley_terry,
    bradley_terry_scores,
    comparisons_of,
    davidson,
    elo,
    plackett_luce_scores,
)

SCORES = np.array([0.9, 0.2, -0.3, -0.8])
NAMES = list("abcd")


def played(count, generator, *, scores=SCORES, tie=0.0):
    """Comparisons of names drawn at random; `tie` is Davidson's parameter."""
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
    found = bradley_terry_scores(table)
    assert list(found.index) == NAMES and abs(found.sum()) < 1e-9
    theirs = choix.ilsr_pairwise(4, numbered(table), tol=1e-12)
    np.testing.assert_allclose(found, theirs - theirs.mean(), atol=1e-6)
    for alpha in (0.05, 2.0):  # choix's penalty alpha |scores|^2 is a normal prior
        theirs = choix.opt_pairwise(4, numbered(table), alpha=alpha, tol=1e-12)
        np.testing.assert_allclose(bradley_terry_scores(table, prior_sd=1 / math.sqrt(2 * alpha)), theirs, atol=1e-6)


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
    found = bradley_terry_scores(table)
    assert found["x"] - found["y"] == pytest.approx(math.log(7 / 3), abs=1e-9)
    groups = [[[winner], [loser]] for winner, loser in zip(table["winner"], table["loser"], strict=True)]
    pd.testing.assert_series_equal(found, plackett_luce_scores(pd.DataFrame({"groups": groups})))


def davidson_surprise(parameters, table):
    """Minus the log-likelihood of Davidson 1970: p1 : p2 : tie sqrt(p1 p2)."""
    scores, tie = dict(zip(NAMES, parameters[:4], strict=True)), math.exp(parameters[4])
    total = parameters[:4].sum() ** 2  # fixes the mean
    for winner, loser, level in zip(table["winner"], table["loser"], table["tie"], strict=True):
        first, second = math.exp(scores[winner]), math.exp(scores[loser])
        between = tie * math.sqrt(first * second)
        total -= math.log((between if level else first) / (first + second + between))
    return total


@pytest.mark.parametrize("seed", range(2))
def test_davidson_maximises_the_likelihood_of_the_paper(seed):
    table = played(100, np.random.default_rng(seed), tie=0.8)
    best = minimize(davidson_surprise, np.zeros(5), args=(table,), method="BFGS", options={"gtol": 1e-7})
    found = davidson(table, resamples=50)
    np.testing.assert_allclose(found.scores.set_index("name").loc[NAMES, "score"], best.x[:4], atol=1e-5)
    assert found.tie.value == pytest.approx(math.exp(best.x[4]), abs=1e-5)
    assert found.tie.low < found.tie.value < found.tie.high


# preferences for the first, for the second and neither: Davidson 1970, example 2
PUDDINGS = {
    (1, 2): (19, 22, 16),
    (1, 3): (16, 19, 12),
    (2, 3): (19, 19, 10),
    (1, 4): (18, 23, 13),
    (2, 4): (23, 19, 9),
    (3, 4): (19, 20, 15),
    (1, 5): (13, 19, 18),
    (2, 5): (16, 20, 12),
    (3, 5): (16, 15, 17),
    (4, 5): (17, 14, 16),
    (1, 6): (18, 21, 12),
    (2, 6): (22, 20, 12),
    (3, 6): (13, 18, 10),
    (4, 6): (14, 19, 18),
    (5, 6): (11, 21, 12),
}


def test_the_puddings_of_davidson_are_worth_what_he_found():
    rows = []
    for (first, second), (wins, losses, ties) in PUDDINGS.items():
        rows += [(first, second, False)] * wins + [(second, first, False)] * losses + [(first, second, True)] * ties
    found = davidson(pd.DataFrame(rows, columns=["winner", "loser", "tie"]), clusters="", resamples=20)
    worth = np.exp(found.scores.set_index("name").loc[range(1, 7), "score"])
    published = [0.1388005, 0.1729985, 0.1617420, 0.1653930, 0.1586805, 0.2023855]  # after 7 iterations
    np.testing.assert_allclose(worth / worth.sum(), published, atol=5e-5)
    assert found.tie.value == pytest.approx(0.7468147, abs=1e-4)


def test_ratings_move_as_counted_by_hand_and_depend_on_the_order():
    table = pd.DataFrame({"winner": ["x", "y", "x"], "loser": ["y", "z", "z"], "tie": [False, False, True]})
    first = 1000 + 16, 1000 - 16, 1000.0
    gain = 32 * (1 - 1 / (1 + 10 ** (16 / 400)))  # y, at 984, beats z, at 1000
    second = first[0], first[1] + gain, first[2] - gain
    back = 32 * (0.5 - 1 / (1 + 10 ** ((second[2] - second[0]) / 400)))
    found = elo(table).set_index("name")
    assert found["rating"].to_dict() == pytest.approx({"x": second[0] + back, "y": second[1], "z": second[2] - back})
    assert found["rating"].is_monotonic_decreasing and found["rating"].sum() == pytest.approx(3000)
    assert found["wins"].to_dict() == {"x": 1.5, "y": 1.0, "z": 0.5}
    other = elo(table.iloc[::-1]).set_index("name")["rating"]
    assert abs(other - found["rating"]).max() > 0.5, "which came last matters to Elo"


def test_many_small_steps_of_elo_reach_bradley_terry():
    table = played(300, np.random.default_rng(4)).sample(frac=70, replace=True, random_state=0)
    found, scores = elo(table, k=0.6).set_index("name")["rating"], bradley_terry_scores(table)
    np.testing.assert_allclose(scores, (found.loc[NAMES] - 1000) * math.log(10) / 400, atol=0.08)


def test_rankings_fall_into_the_pairs_that_they_decide_or_tie():
    rankings = pd.DataFrame(
        {
            "item_id": ["i", "j", "k"],
            "labeler": ["ada", "bob", "ada"],
            "groups": [[["a"], ["b", "c"]], [["c"]], [["a"], ["a"], ["b"]]],
            "rest": [[], ["a", "b"], []],
        }
    )
    assert comparisons_of(rankings).to_numpy().tolist() == [
        ["i", "ada", "a", "b", False],
        ["i", "ada", "a", "c", False],
        ["i", "ada", "b", "c", True],
        ["j", "bob", "c", "a", False],
        ["j", "bob", "c", "b", False],
        ["k", "ada", "a", "b", False],
        ["k", "ada", "a", "b", False],
    ]


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
        bradley_terry_scores(table)
    assert np.isfinite(bradley_terry_scores(table, prior_sd=1)).all()


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
            assert np.isfinite(bradley_terry_scores(table)).all()
        else:
            with pytest.raises(WorkbenchError):
                bradley_terry_scores(table)
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("score", "table", "words"),
    [
        (bradley_terry_scores, table_of(""), "0 rows"),
        (bradley_terry_scores, pd.DataFrame({"winner": ["a"]}), r"lacks \['loser'\]"),
        (elo, [{"winner": "a", "loser": "b"}], "are a list: give a table"),
        (elo, table_of("aa"), "compare two different names"),
        (bradley_terry_scores, pd.DataFrame({"winner": ["a"], "loser": [None]}), "compare two different names"),
        (bradley_terry, table_of("ab ba"), "no column 'item_id'"),
        (bradley_terry, table_of("ab ba").assign(item_id=1), "at least 2"),
        (davidson, table_of("ab ba").assign(item_id=[1, 2]), "none are ties"),
        (davidson, table_of("a=b b=a").assign(item_id=[1, 2]), "all are ties"),
        (davidson, table_of("ab a=b").assign(item_id=[1, 2]), "would call them certain"),
    ],
)
def test_bad_tables_get_a_sentence(score, table, words):
    with pytest.raises(WorkbenchError, match=words):
        score(table)


def test_ties_can_be_scored_exactly_where_their_likelihood_has_a_maximum():
    """Brute force: the likelihood along 2,000 directions to infinity, in which it must fall."""
    generator = np.random.default_rng(3)
    directions = [*itertools.product((-1, -0.5, 0, 0.5, 1), (-1, -0.5, 0, 0.5, 1), (-1, -0.5, 0, 0.5, 1), (0.5, 0.25))]
    seen = set()
    for _ in range(60):
        pairs = [generator.choice(3, size=2, replace=False) for _ in range(5)]
        rows = [(NAMES[first], NAMES[second], generator.random() < 0.4) for first, second in pairs]
        table = pd.DataFrame(rows, columns=["winner", "loser", "tie"]).assign(item_id=range(5))
        if table["tie"].nunique() < 2 or len({*table["winner"], *table["loser"]}) < 3:
            continue
        try:
            bradley_terry_scores(table)
        except WorkbenchError:
            continue  # not linked even by ties
        certain = any(certain_along(direction, rows) for direction in directions)
        seen.add(certain)
        if certain:
            with pytest.raises(WorkbenchError, match="would call them certain"):
                davidson(table, resamples=10)
        else:
            assert np.isfinite(davidson(table, resamples=10).scores["score"]).all()
    assert seen == {True, False}


def certain_along(direction, rows):
    """Whether every outcome is among the likeliest where scores and log tie go far along `direction`."""
    scores, tie = dict(zip(NAMES, direction[:3], strict=False)), direction[3]
    for winner, loser, level in rows:
        between = (scores[winner] + scores[loser]) / 2 + tie
        likeliest = max(scores[winner], scores[loser], between)
        if (between if level else scores[winner]) < likeliest:
            return False
    return True


@pytest.mark.parametrize("tie", [0.0, 0.7])
def test_intervals_cover_planted_scores_as_often_as_they_say(tie):
    """Each of 70 items is judged by two who see the same: one draw is an item, not a verdict."""
    generator, covered, ties = np.random.default_rng(2), [], []
    for _ in range(100):
        table = pd.concat([played(70, generator, tie=tie)] * 2)
        if tie:
            found, width = davidson(table, resamples=200)
            ties.append(width.low < tie < width.high)
        else:
            found = bradley_terry(table, resamples=200)
        found = found.set_index("name").loc[NAMES]
        covered.append((found["low"] < SCORES) & (found["high"] > SCORES))
    assert 0.92 < np.mean(covered) < 0.98
    assert not tie or 0.9 < np.mean(ties) < 0.99


def drawn(generator, scores, *, comparisons, tie=0.0):
    """Comparisons of pairs drawn at random, in a model with these scores; a share of them called level instead."""
    size = len(scores)
    one = generator.integers(size, size=comparisons)
    other = (one + generator.integers(1, size, size=comparisons)) % size
    first = generator.random(comparisons) < 1 / (1 + np.exp(scores[other] - scores[one]))
    winner, loser = np.where(first, one, other), np.where(first, other, one)
    ties = generator.random(comparisons) < tie
    return pd.DataFrame({"item_id": range(comparisons), "winner": winner, "loser": loser, "tie": ties})


def test_intervals_are_those_of_weighted_fits_by_a_general_optimiser():
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
    scores = np.random.default_rng(1).normal(size=200) / 2
    table = drawn(np.random.default_rng(2), scores - scores.mean(), comparisons=6000, tie=0.1)
    tracemalloc.start()
    found = bradley_terry(table, resamples=10).set_index("name").sort_index()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6  # bytes; (comparisons, names squared) would be 2 GB
    gap = found["score"][table["loser"]].to_numpy() - found["score"][table["winner"]].to_numpy()
    surprise = (
        1 / (1 + np.exp(-gap)) - table["tie"] / 2
    )  # the likeliest scores expect of each name the wins that it had
    balance = surprise.groupby(table["winner"]).sum().sub(surprise.groupby(table["loser"]).sum(), fill_value=0)
    assert balance.abs().max() < 1e-5
