"""Oracles: scikit-learn, statsmodels, the krippendorff package, published examples, planted agreement."""

import krippendorff
import numpy as np
import pandas as pd
import pytest
from percentile_bootstrap import bootstrap_interval
from scipy import stats
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import fleiss_kappa as statsmodels_fleiss_kappa

from workbench import WorkbenchError
from workbench.feedback.agreement import (
    LEVELS,
    cohen_kappa,
    cohen_kappa_matrix,
    cohen_kappa_value,
    equally_judged,
    fleiss_kappa,
    fleiss_kappa_value,
    krippendorff_alpha,
    krippendorff_alpha_value,
)

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
    assert cohen_kappa_value(long([first, second]), weights=weights) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_matrix_is_that_of_scikit_learn_over_common_items(seed):
    cells = random_cells(np.random.default_rng(seed), missing=0.3)
    matrix = cohen_kappa_matrix(long(cells))
    for i in range(4):
        for j in range(4):
            both = ~np.isnan(cells[i]) & ~np.isnan(cells[j])
            expected = np.nan if i == j else cohen_kappa_score(cells[i, both].astype(int), cells[j, both].astype(int))
            assert matrix.loc[f"l{i}", f"l{j}"] == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_the_matrix_is_empty_where_nothing_is_shared_and_where_kappa_is_undefined():
    none = np.nan
    matrix = cohen_kappa_matrix(long([[1, 1, none, none], [1, 1, 2, none], [none, none, 1, 2]]))
    assert np.isnan(matrix.loc["l0", "l1"])  # both always said 1
    assert np.isnan(matrix.loc["l0", "l2"])  # no common item
    assert matrix.loc["l1", "l2"] == 0


@pytest.mark.parametrize("seed", range(5))
def test_fleiss_kappa_is_that_of_statsmodels(seed):
    cells = random_cells(np.random.default_rng(seed))
    counts = np.stack([(cells == value).sum(axis=0) for value in (1, 2, 3, 5, 7)], axis=1)
    assert fleiss_kappa_value(long(cells)) == pytest.approx(statsmodels_fleiss_kappa(counts), abs=1e-9)


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
    assert round(krippendorff_alpha_value(PUBLISHED_ALPHA_TABLE, level=level), 3) == alpha


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("level", LEVELS)
def test_alpha_is_that_of_the_krippendorff_package(level, seed):
    cells = random_cells(np.random.default_rng(seed), missing=0.5)
    expected = krippendorff.alpha(cells, level_of_measurement=level)
    assert krippendorff_alpha_value(long(cells), level=level) == pytest.approx(expected, abs=1e-9)


def test_alpha_of_pair_verdicts_takes_ties_as_a_third_value():
    words = {0: 0, 1: 1, 2: "tie"}
    cells = random_cells(np.random.default_rng(7), values=(0, 1, 2))
    frame = long(cells)
    frame["value"] = [words[value] for value in frame["value"]]
    expected = krippendorff.alpha(cells, level_of_measurement="nominal")
    assert krippendorff_alpha_value(frame, level="nominal") == pytest.approx(expected, abs=1e-9)


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


def coverage(truth, intervals):
    return np.mean([low <= truth <= high for _, low, high in intervals])


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
    "value",
    [cohen_kappa_value, fleiss_kappa_value, *(lambda t, k=k: krippendorff_alpha_value(t, level=k) for k in LEVELS)],
)
def test_one_item_has_a_value_and_equal_verdicts_get_a_sentence(value):
    assert value(long([[1], [2]])) <= 0  # one disagreement
    with pytest.raises(WorkbenchError, match=r"Every verdict that can be compared is 3: agreement is complete"):
        value(long([[3, 3, 3], [3, 3, 3]]))


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
