"""Oracles: scipy, statsmodels, intervals found by trial, simulation."""

import math

import numpy as np
import pytest
from scipy import special, stats
from statsmodels.stats.multitest import multipletests

from workbench.analysis.distributions import incomplete_beta, student_p_value, student_quantile
from workbench.analysis.statistics import (
    Interval,
    MeanCovariance,
    covariance_of_mean,
    holm,
    interval_over_units,
    p_value_over_units,
    ratio_interval,
    share_interval,
)
from workbench.errors import WorkbenchError

WORLDS = np.repeat([0, 1, 2], 3)


def test_the_beta_and_t_distributions_are_those_of_scipy():
    generator = np.random.default_rng(0)
    for _ in range(200):
        a, b = 10 ** generator.uniform(-1, 4, size=2)
        x = stats.beta.ppf(generator.uniform(), a, b)
        assert incomplete_beta(x, a, b) == pytest.approx(special.betainc(a, b, x), abs=1e-9)
    assert (incomplete_beta(0.0, 2, 3), incomplete_beta(1.0, 2, 3)) == (0, 1)
    for freedom in (0.5, 1, 1.7, 2, 8, 50, 1000):
        for probability in (0.025, 0.3, 0.6, 0.975, 0.9995):
            assert student_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-6)
        for t in (-3.0, 0.0, 0.4, 12.0):
            assert student_p_value(t, freedom) == pytest.approx(2 * stats.t.sf(abs(t), freedom), abs=1e-9)
    assert student_quantile(0.5, 3) == 0
    for probability, freedom in ((0, 3), (1, 3), (0.5, 0), (0.5, math.nan)):
        with pytest.raises(WorkbenchError, match="no quantile"):
            student_quantile(probability, freedom)


@pytest.mark.parametrize(("successes", "count"), [(0, 9), (1, 1), (4, 9), (9, 9), (37, 1000)])
def test_the_interval_of_a_share_is_clopper_and_pearsons(successes, count):
    for level in (0.9, 0.95):
        theirs = stats.binomtest(successes, count).proportion_ci(level, method="exact")
        found = share_interval(successes, count, level=level)
        assert found == pytest.approx((successes / count, theirs.low, theirs.high), abs=1e-9)


def test_a_share_of_nothing_is_refused():
    for successes, count in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(WorkbenchError, match=f"{successes} of {count}"):
            share_interval(successes, count)


def test_holms_p_values_are_those_of_statsmodels_and_nan_counts_for_nothing():
    p_values = np.array([0.04, 0.001, 0.6, 0.03, 0.03, 0.9])
    np.testing.assert_allclose(holm(p_values), multipletests(p_values, method="holm")[1], rtol=1e-12)
    with_gap = holm([0.04, math.nan, 0.001])
    np.testing.assert_allclose(with_gap, [0.04, math.nan, 0.002], rtol=1e-12)
    assert len(holm([])) == 0


def test_without_clusters_the_interval_is_students():
    values = np.random.default_rng(1).normal(0.4, 1, size=7)
    theirs = stats.ttest_1samp(values, 0)
    assert interval_over_units(values) == pytest.approx((values.mean(), *theirs.confidence_interval()), rel=1e-6)
    assert interval_over_units(values, level=0.8)[1:] == pytest.approx(theirs.confidence_interval(0.8), rel=1e-6)
    assert p_value_over_units(values) == pytest.approx(theirs.pvalue, abs=1e-9)


def test_worlds_are_the_draws_only_where_their_seeds_are_more_alike_than_chance_makes_them():
    generator, seen = np.random.default_rng(2), set()
    for _ in range(20):
        values = generator.normal(size=9)
        by_world = values.reshape(3, 3)
        clustered = stats.f_oneway(*by_world).statistic > 1
        theirs = stats.ttest_1samp(by_world.mean(axis=1) if clustered else values, 0)
        assert interval_over_units(values, WORLDS)[1:] == pytest.approx(theirs.confidence_interval(), rel=1e-6)
        assert p_value_over_units(values, WORLDS) == pytest.approx(theirs.pvalue, abs=1e-9)
        seen.add(bool(clustered))
    assert seen == {True, False}


@pytest.mark.parametrize("shared", [0.0, 0.4, 0.9])  # part of the variance that seeds of a world have in common
def test_the_interval_over_three_worlds_of_three_seeds_covers(shared):
    generator, draws = np.random.default_rng(3), 1000
    values = generator.normal(size=(draws, 3, 1)) * shared**0.5
    values = (values + generator.normal(size=(draws, 3, 3)) * (1 - shared) ** 0.5).reshape(draws, 9)
    intervals = [interval_over_units(row, WORLDS) for row in values]
    assert 0.92 <= np.mean([low <= 0 <= high for _, low, high in intervals]) <= 0.985
    if shared == 0.9:  # what ignoring worlds would claim
        assert np.mean([low <= 0 <= high for _, low, high in map(interval_over_units, values)]) < 0.75


def test_several_columns_share_one_decision_and_their_covariance_is_that_of_the_means():
    generator = np.random.default_rng(4)
    rows = generator.normal(size=(9, 2)) + [[0, 1]] * np.repeat(generator.normal(size=3), 3)[:, None]
    mean, covariance, freedom = covariance_of_mean(rows, WORLDS)
    means = rows.reshape(3, 3, 2).mean(axis=1)
    np.testing.assert_allclose(covariance, np.cov(means.T) / 3, rtol=1e-9)
    assert freedom == 2 and list(mean) == pytest.approx(rows.mean(axis=0))
    assert covariance_of_mean(rows).freedom == 8
    np.testing.assert_allclose(covariance_of_mean(rows).covariance, np.cov(rows.T) / 9, rtol=1e-9)


def test_one_value_has_no_interval_and_nothing_about_it_is_significant():
    found = interval_over_units([2.0], ["a"])
    assert found.value == 2 and math.isnan(found.low) and math.isnan(found.high) and not found.significant
    assert math.isnan(p_value_over_units([2.0]))
    assert Interval(1, 0.5, 1.5).significant and Interval(-1, -1.5, -0.5).significant
    assert not Interval(1, -0.5, 1.5).significant


def test_one_world_is_judged_by_its_seeds_and_equal_values_by_themselves():
    values = [0.1, 0.5, 0.3]
    assert interval_over_units(values, [7, 7, 7]) == interval_over_units(values)
    assert interval_over_units([0.5, 0.5]) == (0.5, 0.5, 0.5) and p_value_over_units([0.5, 0.5]) == 0
    assert p_value_over_units([0.0, 0.0]) == 1
    with pytest.raises(WorkbenchError, match="2 clusters came with 3 values"):
        interval_over_units(values, [0, 1])
    with pytest.raises(WorkbenchError, match="NaN"):
        interval_over_units([0.1, math.nan])


def test_unbalanced_worlds_still_cover():
    generator, worlds = np.random.default_rng(5), np.array([0, 0, 0, 1, 1, 1, 2, 2, 3])
    effects = generator.normal(size=(1000, 4)) * 0.7
    values = effects[:, worlds] + generator.normal(size=(1000, 9)) * 0.7
    inside = [interval.low <= 0 <= interval.high for interval in (interval_over_units(row, worlds) for row in values)]
    assert 0.91 <= np.mean(inside) <= 0.98


def test_the_interval_of_a_ratio_holds_just_the_ratios_that_are_not_rejected():
    generator, open_ends = np.random.default_rng(7), {0: 0, 1: 0, 2: 0}
    for _ in range(500):
        mean, root = generator.normal(size=2), generator.normal(size=(2, 2)) * 10 ** generator.uniform(-1, 0.5)
        law = MeanCovariance(mean, root @ root.T, int(generator.integers(2, 12)))
        value, low, high = ratio_interval(law)
        assert value == mean[0] / mean[1] and low <= value <= high

        def accepted(ratio, law=law):
            combination = np.array([1, -ratio])
            error = np.sqrt(combination @ law.covariance @ combination)
            return abs(combination @ law.mean) <= stats.t.ppf(0.975, law.freedom) * error

        for end, outwards in ((low, -1), (high, 1)):
            step = outwards * 1e-6 * max(abs(end), 1e-3)
            assert math.isinf(end) or (accepted(end - step) and not accepted(end + step))
        infinite = math.isinf(low) + math.isinf(high)
        open_ends[infinite] += 1
        if infinite:
            assert accepted(math.copysign(1e9, value))  # where the divisor is almost 0
    assert min(open_ends.values()) > 20
    with pytest.raises(WorkbenchError, match="divisor is 0"):
        ratio_interval(MeanCovariance(np.array([1.0, 0.0]), np.eye(2), 3))
