"""Oracles: scikit-learn's calibration curve, hand cases, outcomes simulated from the stated probabilities."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.calibration import calibration_curve

from workbench import WorkbenchError
from workbench.analysis.calibration import (
    accuracy_by_group,
    expected_calibration_error,
    pair_probabilities,
    pairwise_accuracy,
    rank_correlation,
    reliability_table,
)


def test_the_table_equals_scikit_learn():
    generator = np.random.default_rng(0)
    probability = generator.beta(2, 2, size=500)
    outcome = generator.integers(2, size=500)
    table = reliability_table(probability, outcome, 7)
    observed, predicted = calibration_curve(outcome, probability, n_bins=7)
    np.testing.assert_allclose(table["observed"], observed)
    np.testing.assert_allclose(table["predicted"], predicted)
    assert table["count"].sum() == 500
    for row in table.itertuples():
        exact = stats.binomtest(round(row.observed * row.count), row.count).proportion_ci(method="exact")
        assert (row.observed_low, row.observed_high) == pytest.approx((exact.low, exact.high))
    assert ((table["low"] <= table["predicted"]) & (table["predicted"] <= table["high"])).all()


def test_the_error_of_a_hand_case():
    # bin [0, .5): predicted .2, observed .5, two samples; bin [.5, 1]: predicted .9, observed .5, two samples
    assert expected_calibration_error([0.1, 0.3, 0.8, 1.0], [0, 1, 1, 0], bins=2) == pytest.approx((0.3 + 0.4) / 2)
    table = reliability_table([0.1, 0.3, 0.8, 1.0], [0, 1, 1, 0], bins=2)
    assert table["observed_se"].tolist() == pytest.approx([0.5, 0.5])


def test_a_calibrated_model_has_a_small_error_and_an_overconfident_one_a_large_one():
    generator = np.random.default_rng(1)
    margins = generator.normal(scale=1.5, size=20_000)
    labels = (generator.random(20_000) < 1 / (1 + np.exp(-margins))).astype(float)
    assert expected_calibration_error(*pair_probabilities(margins, labels)) < 0.01
    assert expected_calibration_error(*pair_probabilities(3 * margins, labels)) > 0.1


def test_the_errors_in_the_table_cover_the_truth():
    generator = np.random.default_rng(2)
    z = []
    for _ in range(60):
        margins = generator.normal(size=400)
        labels = (generator.random(400) < 1 / (1 + np.exp(-margins))).astype(float)
        table = reliability_table(*pair_probabilities(margins, labels), 6)
        table = table[table["count"] > 60]  # smaller bins may hold equal outcomes only
        z.extend((table["observed"] - table["predicted"]) / table["observed_se"])
    assert 0.9 < np.std(z) < 1.1


def test_which_completion_comes_first_changes_nothing():
    margins, labels = np.array([2.0, -0.3, 0.7, 1.1]), np.array([1, 0, 0, 0.5])
    flipped = pair_probabilities([-2.0, -0.3, -0.7, 1.1], [0, 0, 1, 0.5])
    error = expected_calibration_error(*pair_probabilities(margins, labels))
    assert error == pytest.approx(expected_calibration_error(*flipped))
    probability, _ = pair_probabilities([1000.0, 0.0], [1, 1])
    assert probability.tolist() == [1.0, 0.5, 0.0, 0.5]


def test_accuracy_counts_undecided_pairs_half_and_clusters_by_prompt():
    accuracy = pairwise_accuracy([1.0, 2.0, -1.0, 0.0, 3.0], [1, 0, 0, 1, 0.5])
    assert accuracy.mean == pytest.approx((1 + 0 + 1 + 0.5 + 0.5) / 5)
    alone = pairwise_accuracy([1, -1, 1, 1], [1, 1, 1, 1])
    assert alone.standard_error == pytest.approx(0.25)  # sample variance .25 over 4 pairs
    doubled = pairwise_accuracy([1, 1, -1, -1, 1, 1, 1, 1], [1] * 8, prompts=[0, 0, 1, 1, 2, 2, 3, 3])
    assert doubled == pytest.approx(alone)


@pytest.mark.parametrize(
    ("measure", "given", "words"),
    [
        (reliability_table, ([0.5, 1.2], [0, 1], 10), "within 0 and 1"),
        (reliability_table, ([0.5], [0, 1], 10), "equally long"),
        (reliability_table, ([0.5], [1], 0), "bins is 0"),
        (reliability_table, ([], [], 10), "empty"),
        (pairwise_accuracy, ([1.0], [2]), "labels must hold"),
    ],
)
def test_bad_probabilities_and_labels_get_a_sentence(measure, given, words):
    with pytest.raises(WorkbenchError, match=words):
        measure(*given)


def test_accuracy_is_told_for_all_pairs_and_for_each_kind_against_every_label():
    pairs = pd.DataFrame({"margin": [1.0, -1.0, 2.0, 3.0], "prompt": list("abcd"), "kind": ["qa"] * 2 + ["sum"] * 2})
    table = accuracy_by_group(pairs, {"labels": np.ones(4), "gold": [1, 0, np.nan, np.nan]})
    found = {(row.measured_against, row.group): (row.accuracy, row.pairs) for row in table.itertuples()}
    assert found == {
        ("labels", "all"): (0.75, 4),
        ("labels", "qa"): (0.5, 2),
        ("labels", "sum"): (1.0, 2),
        ("gold", "all"): (1.0, 2),  # pairs without an order by gold do not count
        ("gold", "qa"): (1.0, 2),
    }
    ends = table.set_index(["measured_against", "group"]).loc[("labels", "sum"), ["accuracy_low", "accuracy_high"]]
    exact = stats.binomtest(2, 2).proportion_ci(method="exact")  # two of two prove little
    assert ends.tolist() == pytest.approx([exact.low, exact.high])
    assert accuracy_by_group(pairs.drop(columns="kind"), {"labels": np.ones(4)})["group"].tolist() == ["all"]


def test_judgements_of_one_prompt_are_one_draw_in_the_error_of_a_group():
    once = pd.DataFrame({"margin": [1.0, -1.0, 1.0, 1.0], "prompt": list("abcd")})
    twice = pd.concat([once, once], ignore_index=True)
    tables = [accuracy_by_group(frame, {"x": np.ones(len(frame))}) for frame in (once, twice)]
    (alone,), (doubled,) = (table.itertuples() for table in tables)
    assert doubled.accuracy_se == pytest.approx(alone.accuracy_se) == pytest.approx(0.25)


def scored(prompts=6, samples=5) -> pd.DataFrame:
    """Scores with ties, offsets between prompts, and rows in no order."""
    rng = np.random.default_rng(0)
    prompt = np.repeat([f"p{index}" for index in range(prompts)], samples)
    frame = pd.DataFrame({"prompt": prompt, "proxy": rng.normal(size=len(prompt)) + np.repeat(range(prompts), samples)})
    frame["gold"] = (frame["proxy"] + rng.normal(size=len(prompt))).round()
    return frame.sample(frac=1, random_state=1)


def test_rank_correlation_is_scipys_within_each_prompt_and_averaged():
    frame = scored()
    each = [stats.spearmanr(part["proxy"], part["gold"])[0] for _, part in frame.groupby("prompt")]
    found = rank_correlation(frame)
    assert found.mean == pytest.approx(np.mean(each))
    assert found.standard_error == pytest.approx(stats.sem(each))


def test_prompts_whose_answers_are_all_equally_good_are_left_out():
    frame = scored()
    expected = rank_correlation(frame)
    flat = pd.DataFrame({"prompt": "flat", "proxy": [1.0, 2.0, 3.0], "gold": 0.5})
    alone = pd.DataFrame({"prompt": ["alone"], "proxy": [1.0], "gold": [1.0]})
    assert rank_correlation(pd.concat([frame, flat, alone])) == pytest.approx(expected)
    assert all(map(math.isnan, rank_correlation(flat)))
