"""Oracles: every subset enumerated, every n-tuple enumerated, Monte Carlo, hand cases."""

import itertools
import math

import numpy as np
import pytest

from workbench.analysis.best_of_n import best_of_n_curve, best_of_n_kl
from workbench.analysis.kl import sequence_kl_summary
from workbench.analysis.statistics import bootstrap_interval, mean_and_error
from workbench.errors import WorkbenchError


def subset_means(proxy, gold, n):
    """Mean proxy and gold of the proxy's favourites over all subsets of size n, ties shared equally."""
    proxies, golds = [], []
    for subset in itertools.combinations(range(len(proxy)), n):
        best = max(proxy[i] for i in subset)
        winners = [gold[i] for i in subset if proxy[i] == best]
        proxies.append(best)
        golds.append(sum(winners) / len(winners))
    return sum(proxies) / len(proxies), sum(golds) / len(golds)


@pytest.mark.parametrize("levels", [1, 3, 1000])  # 1: all tied, 3: many ties, 1000: none to speak of
def test_the_curve_is_the_mean_over_all_subsets(levels):
    generator = np.random.default_rng(levels)
    proxy = generator.integers(levels, size=(5, 8)).astype(float)
    gold = generator.normal(size=(5, 8))
    curve = best_of_n_curve(proxy, gold, range(1, 9))
    for row in curve.itertuples():
        oracle = np.array([subset_means(p, g, row.n) for p, g in zip(proxy, gold, strict=True)])
        np.testing.assert_allclose([row.proxy, row.gold], oracle.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose([row.proxy_se, row.gold_se], oracle.std(axis=0, ddof=1) / math.sqrt(5), atol=1e-12)


def test_the_order_of_the_samples_does_not_matter_even_with_ties():
    generator = np.random.default_rng(0)
    proxy, gold = generator.integers(3, size=(4, 10)).astype(float), generator.normal(size=(4, 10))
    shuffle = generator.permutation(10)
    first, second = (
        best_of_n_curve(proxy, gold, [1, 2, 5]),
        best_of_n_curve(proxy[:, shuffle], gold[:, shuffle], [1, 2, 5]),
    )
    np.testing.assert_allclose(first.to_numpy(), second.to_numpy(), rtol=1e-10)


def test_the_curve_estimates_fresh_best_of_n_and_its_error_covers_it():
    generator = np.random.default_rng(1)
    misses = []
    for _ in range(200):
        skill = generator.normal(size=(60, 16))
        curve = best_of_n_curve(skill, 0.5 * skill + generator.normal(size=skill.shape), [4])
        misses.append(
            abs(curve["gold"][0] - 0.5 * 1.0294) / curve["gold_se"][0]
        )  # E max of 4 standard normals = 1.0294
    assert 0.90 <= np.mean(np.array(misses) < 1.96) <= 0.99
    fresh = generator.normal(size=(200_000, 4)).max(axis=1).mean()
    assert abs(fresh - 1.0294) < 0.01


def test_one_sample_is_the_random_control():
    generator = np.random.default_rng(2)
    curve = best_of_n_curve(generator.normal(size=(6, 9)), generator.normal(size=(6, 9)), [1, 9])
    assert curve["gold"][0] == pytest.approx(curve["random_gold"][0])
    assert curve["random_gold"].nunique() == 1


def test_the_kl_formula_bounds_the_exact_kl_and_meets_it_as_the_outcomes_multiply():
    def exact_kl(probabilities, n):
        chosen = np.zeros(len(probabilities))  # rewards rise with the index; n-tuples enumerated
        for draw in itertools.product(range(len(probabilities)), repeat=n):
            chosen[max(draw)] += np.prod([probabilities[i] for i in draw])
        kept = chosen > 0
        return float((chosen[kept] * np.log(chosen[kept] / np.asarray(probabilities)[kept])).sum())

    uneven = [0.5, 0.25, 0.15, 0.1]
    for n in (1, 2, 3, 4):
        assert exact_kl(uneven, n) <= best_of_n_kl(n) + 1e-12
    assert exact_kl(uneven, 3) < best_of_n_kl(3) - 0.05
    gaps = [best_of_n_kl(2) - exact_kl([1 / size] * size, 2) for size in (10, 30, 100)]
    assert gaps[0] > gaps[1] > gaps[2] >= 0
    assert gaps[2] < 1e-3
    assert best_of_n_kl(1) == 0


def test_without_gold_there_are_no_gold_columns():
    curve = best_of_n_curve([[1.0, 2.0], [3.0, 5.0]], None, [1, 2])
    assert list(curve.columns) == ["n", "kl", "proxy", "proxy_se"]
    assert curve["proxy"].tolist() == [2.75, 3.5]


@pytest.mark.parametrize(
    ("proxy", "gold", "ns", "words"),
    [
        ([[1.0, 2.0]], None, [3], "between 1 and the 2 samples"),
        ([[1.0, 2.0]], None, [], "between 1 and the 2 samples"),
        ([[1.0, 2.0]], [[1.0]], [1], "same samples"),
        ([1.0, 2.0], None, [1], "one row per prompt"),
        ([[1.0, float("nan")]], None, [1], "NaN"),
        ([], None, [1], "empty"),
    ],
)
def test_bad_samples_get_a_sentence(proxy, gold, ns, words):
    with pytest.raises(WorkbenchError, match=words):
        best_of_n_curve(proxy, gold, ns)


def test_best_of_nothing_gets_a_sentence():
    with pytest.raises(WorkbenchError, match="at least 1 sample"):
        best_of_n_kl(0)


def test_sequence_kl_is_a_sum_over_counted_tokens_with_its_error_over_prompts():
    token_kl = [[1.0, 2.0, np.nan], [3.0, 99.0, 99.0], [1.0, 1.0, 1.0], [0.0, 1.0, 2.0]]
    mask = [[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 1]]
    summary = sequence_kl_summary(token_kl, mask, ["a", "a", "b", "c"])
    assert summary.mean == 3.0
    assert summary.standard_error == 0.0
    alone = sequence_kl_summary([[1.0], [3.0]], [[1], [1]], ["a", "b"])
    assert alone == (2.0, 1.0)  # standard deviation sqrt 2 over sqrt 2 prompts
    twice = sequence_kl_summary([[1.0], [1.0], [3.0], [3.0]], [[1]] * 4, ["a", "a", "b", "b"])
    assert twice == (2.0, 1.0)  # the same two prompts, sampled twice
    with pytest.raises(WorkbenchError, match="one mask value per token"):
        sequence_kl_summary([[1.0, 2.0]], [[1]], ["a"])


def test_repeating_every_row_in_its_cluster_does_not_shrink_the_error():
    values = np.array([0.3, 1.2, -0.4, 2.0])
    once = mean_and_error(values)
    thrice = mean_and_error(np.repeat(values, 3), clusters=np.repeat(["a", "b", "c", "d"], 3))
    assert once.standard_error == pytest.approx(np.std(values, ddof=1) / 2)
    assert thrice == pytest.approx(once)
    assert np.isnan(mean_and_error([1.0]).standard_error)


def test_the_bootstrap_interval_of_a_mean_covers_it():
    generator = np.random.default_rng(3)
    samples = generator.normal(size=(150, 60, 1))
    intervals = [bootstrap_interval(sample, np.mean, seed=i, resamples=200) for i, sample in enumerate(samples)]
    assert 0.88 <= np.mean([low <= 0 <= high for _, low, high in intervals]) <= 0.99
    assert intervals[0] == bootstrap_interval(samples[0], np.mean, seed=0, resamples=200)
