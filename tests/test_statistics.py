"""Oracles: scipy, statsmodels, intervals found by trial, simulation."""

import math

import numpy as np
import pytest
from scipy import stats
from simulate_statistics import (
    ICCS,
    claims_at_a_budget,
    claims_of_effects,
    courses,
    falls_called,
    interval_of_mean,
    one_mean,
    peak,
    share,
)
from statsmodels.stats.multitest import multipletests

from workbench import WorkbenchError
from workbench.analysis.statistics import (
    MeanCovariance,
    covariance_of_mean,
    holm,
    interval_over_units,
    mean_over_units,
    p_value_over_units,
    ratio_interval,
    share_interval,
    share_over_prompts,
    share_over_units,
)

WORLDS = np.repeat([0, 1, 2], 3)


@pytest.mark.parametrize(("successes", "count"), [(0, 9), (1, 1), (4, 9), (9, 9), (37, 1000)])
def test_the_interval_of_a_share_is_clopper_and_pearsons(successes, count):
    for level in (0.9, 0.95):
        theirs = stats.binomtest(successes, count).proportion_ci(level, method="exact")
        found = share_interval(successes, count, level=level)
        assert found == pytest.approx((successes / count, theirs.low, theirs.high), abs=1e-9)


@pytest.mark.parametrize(("successes", "count"), [(0, 9), (1, 9), (4, 9), (9, 9), (2, 113)])
def test_the_interval_of_a_share_of_answers_is_the_exact_one_of_as_many_prompts(successes, count):
    theirs = stats.binomtest(successes, count).proportion_ci(method="exact")
    once = np.arange(count) < successes
    expected = pytest.approx((successes / count, theirs.low, theirs.high), abs=1e-9)
    assert share_over_prompts(once, np.arange(count)) == expected
    assert share_over_prompts(np.tile(once, 4), np.tile(np.arange(count), 4)) == expected  # the same answer each time


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_the_interval_of_a_rare_share_holds_it_nineteen_times_in_twenty(share):
    rng, prompts = np.random.default_rng(0), np.repeat(np.arange(60), 4)
    held = []
    for _ in range(400):
        chances = rng.beta(share, 1 - share, 60).repeat(4)  # answers to one prompt are much alike
        found = share_over_prompts(rng.random(240) < chances, prompts)
        held.append(0 <= found.low <= share <= found.high <= 1)
    assert np.mean(held) > 0.94


def test_a_share_of_nothing_is_refused():
    for successes, count in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(WorkbenchError, match=f"{successes} of {count}"):
            share_interval(successes, count)


def test_a_share_that_never_varies_is_not_certain_and_no_share_leaves_0_to_1():
    assert share_over_units([1] * 9, WORLDS) == share_interval(3, 3)
    varied = share_over_units([1, 1, 1, 1, 1, 1, 1, 1, 0], WORLDS)
    expected = stats.ttest_1samp([1, 1, 2 / 3], 0).confidence_interval()
    assert varied == pytest.approx((8 / 9, expected.low, 1.0))
    alike = share_over_units([1, 0, 0] * 3, WORLDS)  # every world has one in three
    assert alike.value == pytest.approx(1 / 3) and alike[1:] == share_interval(1, 3)[1:]
    assert share_over_units([True]) == share_interval(1, 1)


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


def test_three_seeds_have_students_interval_and_worlds_are_what_was_drawn():
    mean, low, high = interval_over_units([0.70, 0.75, 0.81])
    assert (mean, high - mean, mean - low) == pytest.approx((0.7533, 0.137, 0.137), abs=5e-4)  # not .062
    assert mean_over_units([1.0, 2.0, 6.0]) == pytest.approx((3.0, math.sqrt(7 / 3), 2))  # variance 7
    values, worlds = [0.0, 2.0, 3.0, 5.0, 9.0, 11.0], np.repeat(["0", "1", "2"], 2)
    error = np.array([1.0, 4.0, 10.0]).std(ddof=1) / math.sqrt(3)  # as many runs in each: of the three means
    assert mean_over_units(values, worlds) == pytest.approx((5.0, error, 2))
    assert mean_over_units(values[:2], worlds[:2]) == pytest.approx((1.0, 1.0, 1))  # one world: its seeds
    several = mean_over_units(np.column_stack([values, values]), worlds)
    assert several.standard_error == pytest.approx([error] * 2) and several.freedom == 2
    assert math.isnan(mean_over_units([1.0]).standard_error)


def test_worlds_are_the_draws_though_their_seeds_differ_by_no_less():
    generator = np.random.default_rng(2)
    for _ in range(20):
        values = generator.normal(size=9)
        theirs = stats.ttest_1samp(values.reshape(3, 3).mean(axis=1), 0)
        assert interval_over_units(values, WORLDS)[1:] == pytest.approx(theirs.confidence_interval(), rel=1e-6)
        assert p_value_over_units(values, WORLDS) == pytest.approx(theirs.pvalue, abs=1e-9)


def within(found, expected, count):
    """Whether a simulated share is no further from the expected one than 4 Monte Carlo standard errors."""
    return abs(found - expected) <= 4 * (expected * (1 - expected) / count) ** 0.5


@pytest.mark.parametrize("icc", ICCS)
def test_p_values_hold_in_the_tail_and_intervals_cover_whatever_seeds_of_a_world_have_in_common(icc):
    assert within(one_mean(0.05, icc, 1500), 0.05, 1500)
    assert one_mean(0.001, icc, 3000) <= 0.0035  # a third of what a choice between worlds and runs gave
    assert within(interval_of_mean(icc, 1000), 0.95, 1000)


def test_claims_hold_after_the_choice_of_the_highest_and_among_all_that_a_figure_shows():
    most = 0.05 + 3.2 * (0.05 * 0.95 / 50) ** 0.5
    assert claims_at_a_budget(0.5, 8, 50) <= most and claims_of_effects(0.5, 50) <= most
    assert share(0.8, 0.7, 200) >= 0.95


def test_the_interval_of_a_peak_includes_its_choice():
    populations = courses()
    for name in ("best of n", "only falls"):  # in one the peak is broad, in the other it is the start
        for part, rate in peak(populations[name], 100).items():
            assert rate >= 0.95 - 4 * (0.95 * 0.05 / 100) ** 0.5, (name, part)
    assert falls_called(populations["flat"], 30) <= 0.1 and falls_called(populations["only falls"], 10) > 0.9


def test_the_covariance_of_several_columns_is_that_of_the_means_of_worlds():
    generator = np.random.default_rng(4)
    rows = generator.normal(size=(9, 2)) + [[0, 1]] * np.repeat(generator.normal(size=3), 3)[:, None]
    mean, covariance, freedom = covariance_of_mean(rows, WORLDS)
    means = rows.reshape(3, 3, 2).mean(axis=1)
    np.testing.assert_allclose(covariance, np.cov(means.T) / 3, rtol=1e-9)
    assert freedom == 2 and list(mean) == pytest.approx(rows.mean(axis=0))
    assert covariance_of_mean(rows).freedom == 8
    np.testing.assert_allclose(covariance_of_mean(rows).covariance, np.cov(rows.T) / 9, rtol=1e-9)


def test_one_value_has_no_interval_and_no_p_value():
    found = interval_over_units([2.0], ["a"])
    assert found.value == 2 and math.isnan(found.low) and math.isnan(found.high)
    assert math.isnan(p_value_over_units([2.0]))


def test_one_world_is_judged_by_its_seeds_and_equal_values_by_themselves():
    values = [0.1, 0.5, 0.3]
    assert interval_over_units(values, [7, 7, 7]) == interval_over_units(values)
    assert interval_over_units([0.5, 0.5]) == (0.5, 0.5, 0.5)
    assert p_value_over_units([0.5] * 2) == 0.5 and p_value_over_units([-0.1] * 9) == 2 * 0.5**9  # two signs of 2^9
    assert p_value_over_units([0.1 * 3, 0.3, 0.3]) == 0.25  # equal but for rounding
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
