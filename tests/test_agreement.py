"""Oracles: tables counted by hand, brute force over all pairs, Kendall's tau, agreement planted in simulations."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from judgements import judged as judgement
from percentile_bootstrap import bootstrap_interval
from scipy import stats

from workbench import WorkbenchError
from workbench.analysis.statistics import expanded_levels
from workbench.feedback.agreement import (
    agreement_matrix,
    labeler_vs_rest,
    pairwise_agreement,
    strict_agreement,
    verdicts,
)


def table(text):
    """One 'item labeler value' per line; digits become ints as in a Judgement."""
    rows = [line.split() for line in text.strip().splitlines()]
    return pd.DataFrame(
        [(item, labeler, int(value) if value.isdigit() else value) for item, labeler, value in rows],
        columns=["item_id", "labeler", "value"],
    )


HAND = table(
    """
    1 ada 0
    1 bob 0
    1 cy  1
    2 ada tie
    2 bob 1
    3 ada tie
    3 bob tie
    4 ada 1
    4 cy  skip
    5 bob 0
    """
)


def judged(item, labeler, kind, value, *, shown=(0, 1, 2, 3), repeat=0):
    order = [0, 1] if kind == "pair" else shown
    return judgement(item, value, labeler, kind=kind, shown_order=order, repeat=repeat)


def random_table(generator, *, items=30, labelers=5):
    """Verdicts 0, 1 and "tie" in two thirds of the cells."""
    rows = [
        (f"item {i}", f"l{j}", [0, 1, "tie"][generator.integers(3)])
        for i in range(items)
        for j in range(labelers)
        if generator.random() < 0.67
    ]
    return pd.DataFrame(rows, columns=["item_id", "labeler", "value"])


def brute_force(frame, tie_credit):
    """(item, labeler, other, credit) of every two verdicts of an item, one after the other."""
    return [
        (item, a.labeler, b.labeler, 1.0 if a.value == b.value else tie_credit if "tie" in (a.value, b.value) else 0.0)
        for item, rows in frame.groupby("item_id")
        for a, b in combinations(list(rows.itertuples()), 2)
    ]


def test_a_table_counted_by_hand():
    # item 1: ab 1, ac 0, bc 0; item 2: ab half; item 3: ab 1; items 4 and 5 have one verdict
    assert pairwise_agreement(HAND).value == pytest.approx(2.5 / 5)
    assert strict_agreement(HAND).value == pytest.approx(2 / 5)


def test_the_matrix_counted_by_hand():
    matrix = agreement_matrix(HAND)
    assert list(matrix.index) == list(matrix.columns) == ["ada", "bob", "cy"]
    assert matrix.loc["ada", "bob"] == matrix.loc["bob", "ada"] == pytest.approx(2.5 / 3)
    assert matrix.loc["ada", "cy"] == matrix.loc["cy", "bob"] == 0
    assert np.isnan(np.diag(matrix)).all()


def test_labelers_who_share_no_item_have_no_agreement():
    matrix = agreement_matrix(table("1 ada 0\n1 bob 0\n2 bob 1\n2 cy 1"))
    assert np.isnan(matrix.loc["ada", "cy"])
    assert matrix.loc["bob", "cy"] == 1


def test_who_only_skipped_has_an_empty_row():
    frame = table("1 ada 0\n1 bob 0\n2 cy skip")
    assert agreement_matrix(frame).loc["cy"].isna().all()


@pytest.mark.parametrize("seed", range(3))
def test_every_figure_is_that_of_brute_force_over_all_pairs(seed):
    frame = random_table(np.random.default_rng(seed))
    pairs = pd.DataFrame(brute_force(frame, 0.5), columns=["item", "one", "other", "credit"])
    assert pairwise_agreement(frame).value == pytest.approx(pairs["credit"].mean(), abs=1e-12)
    strict = [credit for *_, credit in brute_force(frame, 0.0)]
    assert strict_agreement(frame).value == pytest.approx(np.mean(strict), abs=1e-12)
    matrix = agreement_matrix(frame)
    rest = labeler_vs_rest(frame).set_index("labeler")
    for name in matrix.index:
        own = pairs[(pairs["one"] == name) | (pairs["other"] == name)]
        assert rest.loc[name, "agreement"] == pytest.approx(own["credit"].mean(), abs=1e-12)
        assert rest.loc[name, "items"] == own["item"].nunique()
        for other in matrix.index.drop(name):
            both = own[(own["one"] == other) | (own["other"] == other)]
            assert matrix.loc[name, other] == pytest.approx(both["credit"].mean(), abs=1e-12)


def test_a_labeler_with_one_common_item_has_no_interval_with_the_rest():
    frame = table("1 ada 0\n1 bob 0\n2 ada 0\n2 bob 1\n2 cy 1")
    assert labeler_vs_rest(frame)["labeler"].tolist() == ["ada", "bob"]


def test_verdicts_of_pairs_leave_out_skips_and_second_judgements():
    frame = pd.DataFrame(
        [
            judged("1", "ada", "pair", 1),
            judged("1", "ada", "pair", 0, repeat=1),
            judged("1", "bob", "pair", "skip"),
            judged("2", "bob", "pair", "tie"),
        ]
    )
    assert verdicts(frame).to_numpy().tolist() == [["1", "ada", 1], ["2", "bob", "tie"]]
    assert list(verdicts(frame)) == ["item_id", "labeler", "value"]


def test_a_ranking_is_its_pairs():
    found = verdicts(pd.DataFrame([judged("1", "ada", "ranking", [[2], [0, 3], [1]])]))
    assert dict(zip(found["part"], found["value"], strict=True)) == {
        "0-1": 0, "0-2": 1, "0-3": "tie", "1-2": 1, "1-3": 1, "2-3": 0,
    }  # fmt: skip
    assert (found["item_id"] == "1").all()


def test_the_best_of_several_is_its_pairs_with_the_others():
    found = verdicts(pd.DataFrame([judged("1", "ada", "best_of", 1)]))
    assert dict(zip(found["part"], found["value"], strict=True)) == {"0-1": 1, "1-2": 0, "1-3": 0}


def test_ratings_are_a_number_per_rated_completion():
    found = verdicts(pd.DataFrame([judged("1", "ada", "rating", [6, None, 2])]))
    assert dict(zip(found["part"], found["value"], strict=True)) == {"0": 6, "2": 2}


def test_agreement_of_two_rankings_is_kendalls_tau():
    generator = np.random.default_rng(0)
    judgements, taus = [], []
    for item in range(20):
        orders = [generator.permutation(5).tolist() for _ in range(2)]
        judgements += [
            judged(str(item), f"labeler {k}", "ranking", [[index] for index in order]) for k, order in enumerate(orders)
        ]
        taus.append(stats.kendalltau(*[np.argsort(order) for order in orders]).statistic)
    assert pairwise_agreement(pd.DataFrame(judgements)).value == pytest.approx((1 + np.mean(taus)) / 2, abs=1e-12)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_guessing_the_best_of_several_agrees_in_half_of_the_pairs(size):
    judgements = [
        judged(f"{one} {other}", name, "best_of", best, shown=range(size))
        for one in range(size)
        for other in range(size)
        for name, best in (("ada", one), ("bob", other))
    ]  # every two choices once: what two guessers expect
    assert pairwise_agreement(pd.DataFrame(judgements)).value == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("judgements", "words"),
    [
        ([judged("1", "a", "pair", 0), judged("1", "b", "best_of", 0)], r"holds \['pair', 'best_of'\]"),
        ([judged("1", "a", "correction", "text")], r"holds \['correction'\]"),
        ([judged("1", "a", "pair", 2)], "A pair was judged 2"),
        ([judged("1", "a", "ranking", [2, 0, 1])], "give groups of indices"),
        ([judged("1", "a", "ranking", [[0], [0, 1]])], "each of its completions once"),
        ([judged("1", "a", "ranking", [[0], [2]])], "each of its completions once"),
        ([judged("1", "a", "best_of", 4)], "The best is 4"),
        ([judged("1", "a", "rating", 4)], "one number, or None"),
    ],
)
def test_judgements_that_hold_no_comparable_verdicts_get_a_sentence(judgements, words):
    with pytest.raises(WorkbenchError, match=words):
        verdicts(pd.DataFrame(judgements))


def simulated(generator, *, items, labelers, difficulty):
    """Verdicts that hit a per-item truth with a per-item probability, so that judgements of an item are dependent."""
    chance = generator.choice(difficulty, size=items)
    correct = generator.random((items, labelers)) < chance[:, None]
    item, labeler = np.indices(correct.shape)
    return pd.DataFrame({"item_id": item.ravel(), "labeler": labeler.ravel(), "value": correct.ravel().astype(int)})


def coverage(truth, intervals):
    return np.mean([low <= truth <= high for _, low, high in intervals])


@pytest.mark.parametrize(("items", "labelers"), [(12, 5), (25, 2), (60, 4)])
def test_the_interval_covers_the_planted_agreement(items, labelers):
    generator = np.random.default_rng(0)
    difficulty = np.array([0.5, 0.8, 1.0])
    truth = np.mean(difficulty**2 + (1 - difficulty) ** 2)
    sizes = {"items": items, "labelers": labelers, "difficulty": difficulty}
    intervals = [pairwise_agreement(simulated(generator, **sizes), seed=i) for i in range(150)]
    assert 0.92 <= coverage(truth, intervals) <= 0.98
    values = [interval.value for interval in intervals]
    assert abs(np.mean(values) - truth) < 3 * np.std(values) / len(values) ** 0.5


def test_the_interval_covers_the_planted_agreement_of_rankings():
    # everybody knows the order of half of the items, and guesses that of the others
    generator = np.random.default_rng(1)
    intervals = []
    for seed in range(120):
        known = generator.random(20) < 0.5
        orders = [[[0, 1, 2, 3] if known[i] else generator.permutation(4).tolist() for _ in "abc"] for i in range(20)]
        judgements = [
            {"item_id": i, "labeler": name, "kind": "ranking", "value": [[place] for place in order]}
            for i in range(20)
            for name, order in zip("abc", orders[i], strict=True)
        ]
        intervals.append(pairwise_agreement(pd.DataFrame(judgements), seed=seed))
    assert 0.92 <= coverage(0.75, intervals) <= 0.98


def test_the_interval_resamples_items_not_judgements():
    # every labeler agrees on easy items and nobody on hard ones: 10 judgements of an item say one thing
    frame = pd.concat([table("\n".join(f"{i} l{k} {0 if i % 2 else k}" for k in range(10))) for i in range(20)])
    interval = pairwise_agreement(frame)
    assert interval.value == pytest.approx(0.5)
    assert interval.high - interval.low > 0.35  # 20 coin flips: about .44; 900 pairs would give .07


def test_the_interval_is_the_bootstrap_of_the_items_at_the_expanded_level():
    frame = random_table(np.random.default_rng(5))
    pairs = pd.DataFrame(brute_force(frame, 0.5), columns=["item", "one", "other", "credit"])
    items = pairs.groupby("item")["credit"].agg(["sum", "count"]).to_numpy()
    student = stats.t.ppf(0.975, len(items) - 1) * np.sqrt(len(items) / (len(items) - 1))
    level = 2 * stats.norm.cdf(student) - 1
    expected = bootstrap_interval(items, lambda rows: rows[:, 0].sum() / rows[:, 1].sum(), seed=3, level=level)
    assert pairwise_agreement(frame, seed=3) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("count", [2, 6, 10, 40, 1000])
def test_the_levels_are_moved_out_as_far_as_students_t_demands(count):
    low, high = expanded_levels(count)
    assert low == pytest.approx(stats.norm.cdf(stats.t.ppf(0.025, count - 1) * (count / (count - 1)) ** 0.5), abs=1e-9)
    assert low + high == pytest.approx(1)


def test_the_same_seed_gives_the_same_interval():
    frame = simulated(np.random.default_rng(1), items=20, labelers=3, difficulty=[0.8])
    assert pairwise_agreement(frame, seed=4) == pairwise_agreement(frame.sample(frac=1, random_state=0), seed=4)


def test_all_equal_labels_agree_completely():
    assert pairwise_agreement(table("1 ada 0\n1 bob 0\n2 ada 0\n2 bob 0")) == (1.0, 1.0, 1.0)


def test_a_list_of_judgements_is_such_a_table():
    values = [("1", "ada", 0), ("1", "bob", "tie"), ("2", "ada", 1), ("2", "bob", 1)]
    judgements = [judged(item, labeler, "pair", value) for item, labeler, value in values]
    assert pairwise_agreement(pd.DataFrame(judgements)).value == 0.75


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 ada 0\n2 ada 1", "1 labeler"),
        ("1 ada 0\n2 bob 1", "No item was judged by two"),
        ("1 ada 0\n1 bob skip\n2 bob 1", "No item was judged by two"),
        ("1 ada 0\n1 bob 1\n2 bob 1", "Only 1 item"),
        ("1 ada 0\n1 ada 1\n1 bob 1", "'ada' judged item '1' more than once"),
        ("1 ada skip", "0 labeler"),
    ],
)
def test_degenerate_tables_get_a_sentence(text, words):
    with pytest.raises(WorkbenchError, match=words):
        pairwise_agreement(table(text))


def test_an_empty_table_gets_a_sentence():
    with pytest.raises(WorkbenchError, match="0 labeler"):
        pairwise_agreement(HAND.head(0))


def test_a_missing_column_gets_a_sentence():
    with pytest.raises(WorkbenchError, match=r"lacks \['labeler'\]"):
        agreement_matrix(HAND.drop(columns="labeler"))


def test_lists_without_their_kind_get_a_sentence():
    frame = pd.DataFrame([judged("1", name, "ranking", [[0], [1]]) for name in ("ada", "bob")])
    with pytest.raises(WorkbenchError, match="add the column kind"):
        pairwise_agreement(frame.drop(columns="kind"))
