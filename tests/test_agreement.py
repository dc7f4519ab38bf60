"""Oracles: tables counted by hand, brute force over all pairs, Kendall's tau, agreement planted in simulations."""

from itertools import combinations

import krippendorff
import numpy as np
import pandas as pd
import pytest
from judgements import judged as judgement
from percentile_bootstrap import bootstrap_interval
from scipy import stats
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import fleiss_kappa as statsmodels_fleiss_kappa

from workbench import WorkbenchError
from workbench.analysis.statistics import expanded_levels
from workbench.feedback.agreement import (
    LEVELS,
    agreement_matrix,
    cohen_kappa,
    equally_judged,
    fleiss_kappa,
    krippendorff_alpha,
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


# Kappa and alpha. Oracles: scikit-learn, statsmodels, the krippendorff package, published examples, planted agreement.


# Krippendorff 2011, sections C and D: 4 observers, 12 units, 0 where an observer said nothing
PUBLISHED_ALPHA = ["123321412000", "123322412503", "033323422510", "123324412510"]
# Fleiss 1971, table 1: how many of 6 psychiatrists gave each of 30 patients each of 5 diagnoses
PUBLISHED_FLEISS = """
    00060 03003 01401 00006 03030 20400 00402 20310 20040 00006 10050 11040 03300 10050 02031
    00501 30012 51000 02040 10203 00006 01050 02013 20040 10041 05010 40002 02040 10500 00006
"""


def long(cells):
    """Rows item_id, labeler, value of cells (labelers, items), NaN where there is no verdict."""
    cells = np.asarray(cells, dtype=float)
    rows = [(i, f"l{k}", cells[k, i]) for k in range(cells.shape[0]) for i in range(cells.shape[1])]
    return pd.DataFrame(rows, columns=["item_id", "labeler", "value"])


def random_cells(generator, *, labelers=4, items=25, values=(1, 2, 3, 5, 7), missing=0.0):
    """Cells that agree more often than by chance, each missing with this probability."""
    truth = generator.choice(values, size=items)
    cells = np.where(generator.random((labelers, items)) < 0.6, truth, generator.choice(values, (labelers, items)))
    return np.where(generator.random((labelers, items)) < missing, np.nan, cells)


PUBLISHED_ALPHA_TABLE = long([[int(digit) or np.nan for digit in row] for row in PUBLISHED_ALPHA])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("weights", ["equal", "linear", "quadratic"])
def test_cohens_kappa_is_that_of_scikit_learn(weights, seed):
    first, second = random_cells(np.random.default_rng(seed), labelers=2).astype(int)
    known = None if weights == "equal" else weights
    expected = cohen_kappa_score(first, second, labels=range(1, 8), weights=known)
    assert cohen_kappa(long([first, second]), weights=weights).value == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_fleiss_kappa_is_that_of_statsmodels(seed):
    cells = random_cells(np.random.default_rng(seed))
    counts = np.stack([(cells == value).sum(axis=0) for value in (1, 2, 3, 5, 7)], axis=1)
    assert fleiss_kappa(long(cells)).value == pytest.approx(statsmodels_fleiss_kappa(counts), abs=1e-9)


def test_fleiss_kappa_of_the_psychiatrists():
    rows = [
        (patient, f"rater {sum(map(int, row[:diagnosis])) + k}", diagnosis)
        for patient, row in enumerate(PUBLISHED_FLEISS.split())
        for diagnosis in range(5)
        for k in range(int(row[diagnosis]))
    ]
    interval = fleiss_kappa(pd.DataFrame(rows, columns=["item_id", "labeler", "value"]))
    assert round(interval.value, 3) == 0.430
    assert interval.low < 0.430 < interval.high


def test_items_with_other_numbers_of_verdicts_are_refused_and_can_be_left_out():
    cells = random_cells(np.random.default_rng(0))
    cells[0, :10] = np.nan
    with pytest.raises(WorkbenchError, match="3 to 4 verdicts"):
        fleiss_kappa(long(cells))
    kept = equally_judged(long(cells))  # 10 items with 3 verdicts, 15 with 4
    assert set(kept["item_id"]) == set(range(10, 25))
    assert fleiss_kappa(kept) == fleiss_kappa(long(cells)[lambda rows: rows["item_id"] >= 10])


def test_of_two_equally_common_numbers_of_verdicts_the_larger_is_kept():
    cells = [[1, 1, 1, 1, 2], [1, 2, 1, 2, np.nan], [1, 2, np.nan, np.nan, np.nan]]
    assert set(equally_judged(long(cells))["item_id"]) == {0, 1}


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_the_published_example_of_alpha(level, alpha):
    assert round(krippendorff_alpha(PUBLISHED_ALPHA_TABLE, level=level).value, 3) == alpha


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("level", LEVELS)
def test_alpha_is_that_of_the_krippendorff_package(level, seed):
    cells = random_cells(np.random.default_rng(seed), missing=0.5)
    expected = krippendorff.alpha(cells, level_of_measurement=level)
    assert krippendorff_alpha(long(cells), level=level).value == pytest.approx(expected, abs=1e-9)


def test_alpha_of_pair_verdicts_takes_ties_as_a_third_value():
    words = {0: 0, 1: 1, 2: "tie"}
    cells = random_cells(np.random.default_rng(7), values=(0, 1, 2))
    frame = long(cells)
    frame["value"] = [words[value] for value in frame["value"]]
    expected = krippendorff.alpha(cells, level_of_measurement="nominal")
    assert krippendorff_alpha(frame, level="nominal").value == pytest.approx(expected, abs=1e-9)


def test_ratings_of_several_completions_of_an_item_stay_together_in_the_interval():
    cells = random_cells(np.random.default_rng(1), items=40, labelers=3)
    rated = [
        {"item_id": i, "labeler": f"l{k}", "kind": "rating", "value": cells[k, 4 * i : 4 * i + 4].tolist()}
        for k in range(3)
        for i in range(10)
    ]
    interval = krippendorff_alpha(pd.DataFrame(rated), level="interval")
    assert interval.value == pytest.approx(krippendorff.alpha(cells, level_of_measurement="interval"), abs=1e-9)
    copies = [{**row, "value": row["value"] * 20} for row in rated]  # more of the same says nothing new
    again = krippendorff_alpha(pd.DataFrame(copies), level="interval")
    assert again.high - again.low == pytest.approx(interval.high - interval.low, rel=0.03)


@pytest.mark.parametrize("level", LEVELS)
def test_the_interval_is_the_bootstrap_of_the_package_over_items(level):
    cells = random_cells(np.random.default_rng(2), items=15, missing=0.2)
    cells = cells[:, (~np.isnan(cells)).sum(axis=0) > 1]
    count = cells.shape[1]
    student = stats.t.ppf(0.975, count - 1) * np.sqrt(count / (count - 1))

    def alpha(rows):  # missing verdicts come as 0: the bootstrap takes no NaN
        return krippendorff.alpha(np.where(rows.T == 0, np.nan, rows.T), level_of_measurement=level)

    expected = bootstrap_interval(np.nan_to_num(cells.T), alpha, seed=6, level=2 * stats.norm.cdf(student) - 1)
    assert krippendorff_alpha(long(cells), level=level, seed=6) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("items", [20, 100])
def test_the_interval_covers_the_planted_nominal_alpha(items):
    # of three classes with these shares, a labeler names the true one, or with probability .4 any as common as it is
    shares, guess = np.array([0.5, 0.3, 0.2]), 0.4
    truth = (1 - guess) ** 2  # two labelers both know: else they differ as often as by chance
    generator, intervals = np.random.default_rng(0), []
    for seed in range(150):
        known = generator.choice(3, size=items, p=shares)
        guessed = generator.choice(3, size=(4, items), p=shares)
        cells = np.where(generator.random((4, items)) < guess, guessed, known).astype(float)
        cells[generator.random((4, items)) < 0.25] = np.nan
        intervals.append(krippendorff_alpha(long(cells), level="nominal", seed=seed))
    assert 0.92 <= coverage(truth, intervals) <= 0.98


def test_the_interval_covers_the_planted_interval_alpha():
    # a rating is the true quality, 1 to 5, and an error of -1, 0 or 1: variances 2 and 2/3
    truth = 2 / (2 + 2 / 3)
    generator, intervals = np.random.default_rng(1), []
    for seed in range(150):
        cells = generator.integers(1, 6, size=60) + generator.integers(-1, 2, size=(3, 60))
        intervals.append(krippendorff_alpha(long(cells), level="interval", seed=seed))
    assert 0.92 <= coverage(truth, intervals) <= 0.98


def test_the_interval_covers_the_planted_cohens_kappa():
    shares, guess = np.array([0.6, 0.4]), 0.3
    generator, intervals = np.random.default_rng(2), []
    for seed in range(150):
        known = generator.choice(2, size=60, p=shares)
        cells = np.where(generator.random((2, 60)) < guess, generator.choice(2, size=(2, 60), p=shares), known)
        intervals.append(cohen_kappa(long(cells), seed=seed))
    assert 0.92 <= coverage((1 - guess) ** 2, intervals) <= 0.98


@pytest.mark.parametrize(
    "interval", [cohen_kappa, fleiss_kappa, *(lambda t, k=k: krippendorff_alpha(t, level=k) for k in LEVELS)]
)
@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ([[1], [2]], "Only 1 item"),
        ([[1, 2, 3]], "1 labeler"),
        ([[1, np.nan], [np.nan, 2]], "No item was judged by two"),
        ([[3, 3, 3], [3, 3, 3]], "agreement is complete"),
        ([[1] + 19 * [2], [1] + 19 * [2]], "of the resamples of 20 items hold a single value"),
    ],
)
def test_tables_without_an_interval_get_a_sentence(interval, cells, words):
    with pytest.raises(WorkbenchError, match=words):
        interval(long(cells))


def test_resamples_with_a_single_value_are_left_out():
    cells = np.array([[1] * 5 + [2] * 15, [1] * 4 + [2] * 16])  # all 2 in .75^20 = .3% of the resamples
    interval = krippendorff_alpha(long(cells), level="nominal")
    assert 0 < interval.low < interval.value < interval.high <= 1


@pytest.mark.parametrize(
    ("measure", "words"),
    [
        (lambda t: krippendorff_alpha(t, level="ordinal"), "'a' is no number"),
        (lambda t: krippendorff_alpha(t, level="interval"), "'a' is no number"),
        (lambda t: krippendorff_alpha(t, level="ratio"), "no level 'ratio'"),
        (lambda t: cohen_kappa(t, weights="cubic"), "no weights 'cubic'"),
        (lambda t: cohen_kappa(t, weights="linear"), "'a' is no number"),
        (lambda t: cohen_kappa(t.assign(labeler=range(4), item_id=1)), "compares 2 labelers"),
    ],
)
def test_what_can_not_be_measured_gets_a_sentence(measure, words):
    frame = pd.DataFrame({"item_id": [1, 1, 2, 2], "labeler": list("xyxy"), "value": list("abbb")})
    with pytest.raises(WorkbenchError, match=words):
        measure(frame)
