"""Ensembles against hand-made tables, members whose errors are planted, and what must hold of any ensemble."""

import math

import numpy as np
import pytest

from workbench import WorkbenchError
from workbench.analysis.ensembles import ENSEMBLES, ensemble_scores, shared_errors

SCORES = np.array([[1.0, 0.0, -2.0], [3.0, 0.0, 4.0], [2.0, 0.0, 1.0]])  # 3 members, 3 completions


@pytest.mark.parametrize(
    "how, expected",
    [
        ("mean", [2.0, 0.0, 1.0]),
        ("min", [1.0, 0.0, -2.0]),
        ("uncertainty", [2 - 0.5 * 2 / 3, 0.0, 1 - 0.5 * 6.0]),  # variances over the three members: 2/3, 0 and 6
    ],
)
def test_ensembles_of_three_members_by_hand(how, expected):
    assert ensemble_scores(SCORES, how) == pytest.approx(expected)


@pytest.mark.parametrize("how", ENSEMBLES)
def test_one_member_or_equal_members_are_the_member_itself(how):
    assert ensemble_scores(SCORES[:1], how) == pytest.approx(SCORES[0])
    assert ensemble_scores(SCORES[[0, 0, 0]], how, coef=9.0) == pytest.approx(SCORES[0])


@pytest.mark.parametrize("how", ENSEMBLES)
def test_order_of_members_does_not_matter_and_no_ensemble_exceeds_its_most_hopeful_member(how):
    scores = np.random.default_rng(0).normal(size=(4, 50))
    assert ensemble_scores(scores, how) == pytest.approx(ensemble_scores(scores[::-1], how))
    assert (ensemble_scores(scores, how) <= scores.max(axis=0)).all()


def test_doubt_costs_in_proportion_to_its_weight():
    assert ensemble_scores(SCORES, "uncertainty", coef=0.0) == pytest.approx(ensemble_scores(SCORES, "mean"))
    costs = [ensemble_scores(SCORES, "mean") - ensemble_scores(SCORES, "uncertainty", coef=coef) for coef in (0.1, 0.4)]
    assert costs[1] == pytest.approx(4 * costs[0])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((SCORES, "median"), "ensemble 'median' is not known: choose one of mean, min, uncertainty"),
        ((SCORES[0], "mean"), r"shape \(3,\)"),
        ((SCORES * np.nan, "mean"), "NaN"),
    ],
)
def test_wrong_ensembles_get_a_sentence(arguments, message):
    with pytest.raises(WorkbenchError, match=message):
        ensemble_scores(*arguments)


def test_a_negative_weight_of_doubt_gets_a_sentence():
    with pytest.raises(WorkbenchError, match="weight of the uncertainty is -1"):
        ensemble_scores(SCORES, "uncertainty", coef=-1)


def planted(shared: float, *, prompts=400, samples=64, seed=0):
    """Gold and two members: half gold, half errors of which the share `shared` of the variance is in common."""
    rng = np.random.default_rng(seed)
    gold, common, *own = rng.normal(size=(4, prompts, samples))
    members = [
        math.sqrt(0.5) * gold + math.sqrt(0.5) * (math.sqrt(shared) * common + math.sqrt(1 - shared) * part)
        for part in own
    ]
    scale = rng.uniform(0.5, 3, size=(prompts, 1))  # prompts differ in level and spread, which must not matter
    return {"a": members[0] * scale + 5 * scale, "b": 2 * members[1] - 7}, gold * scale


@pytest.mark.parametrize("shared", [0.0, 0.3, 0.9, 1.0])
def test_planted_errors_in_common_are_found(shared):
    row = shared_errors(*planted(shared)).iloc[0]
    assert (row["first"], row["second"]) == ("a", "b")
    assert row["errors_given_gold"] == pytest.approx(shared, abs=0.02)
    # errors z - g: variance 2 - 2r, covariance r_ab - 2r + 1, with r = sqrt(.5) and r_ab = .5 + .5 shared
    r = math.sqrt(0.5)
    assert row["errors"] == pytest.approx((0.5 + 0.5 * shared - 2 * r + 1) / (2 - 2 * r), abs=0.02)


def test_members_that_err_independently_still_seem_to_share_errors_unless_gold_is_regressed_out():
    row = shared_errors(*planted(0.0)).iloc[0]
    assert row["errors"] == pytest.approx((1 - math.sqrt(0.5)) / 2, abs=0.02) and abs(row["errors_given_gold"]) < 0.02


def test_every_pair_of_members_has_a_row():
    scores, gold = planted(0.5, prompts=20)
    table = shared_errors(scores | {"c": scores["a"]}, gold)
    assert list(zip(table["first"], table["second"], strict=True)) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert table["errors"].tolist()[1] == pytest.approx(1.0)


def test_prompts_without_an_order_are_left_out():
    scores, gold = planted(0.5, prompts=30)
    expected = shared_errors({name: values[1:] for name, values in scores.items()}, gold[1:])
    gold[0] = 0.1 + 0.2
    assert shared_errors(scores, gold).equals(expected)


def test_where_nothing_varies_the_correlations_are_said_to_be_missing():
    table = shared_errors({"a": np.ones((2, 3)), "b": np.ones((2, 3))}, np.ones((2, 3)))
    assert table[["errors", "errors_given_gold"]].isna().all(axis=None)


def test_a_single_member_and_unequal_samples_get_a_sentence():
    scores, gold = planted(0.5, prompts=4)
    with pytest.raises(WorkbenchError, match="at least 2"):
        shared_errors({"a": scores["a"]}, gold)
    with pytest.raises(WorkbenchError, match="same samples"):
        shared_errors({"a": scores["a"], "b": scores["b"][:, :5]}, gold)
