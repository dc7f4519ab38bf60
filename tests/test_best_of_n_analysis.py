"""Oracles: every subset enumerated, every n-tuple enumerated, Monte Carlo, hand cases."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from workbench import WorkbenchError
from workbench.analysis.best_of_n import (
    accuracy_by_choice,
    best_of_n_curve,
    best_of_n_kl,
    majority_vote,
    measured_best_of_n_kl,
    pass_at_k,
)
from workbench.analysis.kl import sequence_kl_summary
from workbench.analysis.statistics import mean_and_error


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
    first = best_of_n_curve(proxy, gold, [1, 2, 5])
    second = best_of_n_curve(proxy[:, shuffle], gold[:, shuffle], [1, 2, 5])
    np.testing.assert_allclose(first.to_numpy(), second.to_numpy(), rtol=1e-10)


def test_the_curve_estimates_fresh_best_of_n_and_its_error_covers_it():
    generator = np.random.default_rng(1)
    misses = []
    for _ in range(200):
        skill = generator.normal(size=(60, 16))
        curve = best_of_n_curve(skill, 0.5 * skill + generator.normal(size=skill.shape), [4])
        misses.append(abs(curve["gold"][0] - 0.5 * 1.0294) / curve["gold_se"][0])  # E max of 4 normals = 1.0294
    assert 0.90 <= np.mean(np.array(misses) < 1.96) <= 0.99
    fresh = generator.normal(size=(200_000, 4)).max(axis=1).mean()
    assert abs(fresh - 1.0294) < 0.01


def test_one_sample_is_the_random_control():
    generator = np.random.default_rng(2)
    curve = best_of_n_curve(generator.normal(size=(6, 9)), generator.normal(size=(6, 9)), [1, 9])
    assert curve["gold"][0] == pytest.approx(curve["random_gold"][0])
    assert curve["random_gold"].nunique() == 1


def enumerated_kl(probabilities, rewards, n):
    """KL of best-of-n from the policy over all n-tuples, a tie in the reward going to each tied draw equally."""
    chosen = np.zeros(len(probabilities))
    for draw in itertools.product(range(len(probabilities)), repeat=n):
        best = max(rewards[i] for i in draw)
        winners = [i for i in draw if rewards[i] == best]
        for winner in winners:
            chosen[winner] += np.prod([probabilities[i] for i in draw]) / len(winners)
    kept = chosen > 0
    return float((chosen[kept] * np.log(chosen[kept] / np.asarray(probabilities)[kept])).sum())


def test_the_kl_formula_bounds_the_exact_kl_and_meets_it_as_the_outcomes_multiply():
    def exact_kl(probabilities, n):
        return enumerated_kl(probabilities, range(len(probabilities)), n)

    uneven = [0.5, 0.25, 0.15, 0.1]
    for n in (1, 2, 3, 4):
        assert exact_kl(uneven, n) <= best_of_n_kl(n) + 1e-12
    assert exact_kl(uneven, 3) < best_of_n_kl(3) - 0.05
    gaps = [best_of_n_kl(2) - exact_kl([1 / size] * size, 2) for size in (10, 30, 100)]
    assert gaps[0] > gaps[1] > gaps[2] >= 0
    assert gaps[2] < 1e-3 and best_of_n_kl(1) == 0
    with pytest.raises(WorkbenchError, match="at least 1 sample"):
        best_of_n_kl(0)


def pools(probabilities, rewards, *, count, size, seed=0):
    """Proxy, log-probability and name of `count` pools of `size` draws."""
    draws = np.random.default_rng(seed).choice(len(probabilities), p=probabilities, size=(count, size))
    return np.asarray(rewards)[draws], np.log(probabilities)[draws], draws.astype(str)


@pytest.mark.parametrize(
    ("probabilities", "rewards"),
    [
        ([0.5, 0.25, 0.15, 0.1], [1.0, 2.0, 3.0, 4.0]),
        ([0.5, 0.25, 0.15, 0.1], [4.0, 3.0, 2.0, 1.0]),  # the likeliest is the best
        ([0.4, 0.3, 0.2, 0.1], [1.0, 2.0, 2.0, 1.0]),  # ties in the proxy
        ([0.2] * 5, [0.0] * 5),  # nothing to choose by
    ],
)
def test_the_measured_kl_of_best_of_n_is_that_of_the_enumerated_tuples(probabilities, rewards):
    measured = measured_best_of_n_kl(*pools(probabilities, rewards, count=40, size=128), [1, 2, 3, 4, 5])
    exact = [enumerated_kl(probabilities, rewards, n) for n in (1, 2, 3, 4, 5)]
    assert (measured["kl"] <= measured["kl_bound"] + 1e-12).all()
    np.testing.assert_allclose(measured["kl"], exact, atol=0.005)
    np.testing.assert_allclose(measured["kl_bound"], [best_of_n_kl(n) for n in (1, 2, 3, 4, 5)])


def test_with_large_n_the_measured_kl_levels_off_at_the_cost_of_the_best_completion():
    probabilities, rewards = [0.6, 0.3, 0.1], [1.0, 2.0, 3.0]
    measured = measured_best_of_n_kl(*pools(probabilities, rewards, count=60, size=256), [128, 256])
    np.testing.assert_allclose(measured["kl"], -math.log(0.1), atol=0.02)
    assert measured["kl_bound"].iloc[0] > 3.8


def test_completions_that_never_coincide_cost_the_bound_and_the_only_answer_nothing():
    proxy = np.random.default_rng(0).normal(size=(5, 64))
    rare, names = np.full(proxy.shape, -40.0), np.arange(proxy.size).reshape(proxy.shape)
    measured = measured_best_of_n_kl(proxy, rare, names, [1, 4, 64])
    np.testing.assert_allclose(measured["kl"], measured["kl_bound"], atol=1e-12)

    measured = measured_best_of_n_kl(np.ones((3, 16)), np.zeros((3, 16)), np.full((3, 16), "yes"), [1, 2, 16])
    np.testing.assert_allclose(measured["kl"], 0, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_no_pool_is_measured_above_the_bound_whatever_its_probabilities_say(seed):
    generator = np.random.default_rng(seed)
    shape = (6, 40)
    proxy, names = generator.integers(8, size=shape).astype(float), generator.integers(20, size=shape)
    measured = measured_best_of_n_kl(proxy, -generator.exponential(4, size=shape), names, [1, 2, 7, 40, 1000])
    assert (measured["kl"] <= measured["kl_bound"] + 1e-12).all() and (measured["kl"] >= 0).all()


def test_the_bias_of_the_measured_kl_is_small_and_falls_with_the_pool():
    size = 400  # most completions are rare, three are not; rewards rise with the index
    probabilities = np.full(size, 0.4 / (size - 3))
    probabilities[[50, 200, 350]] = 0.2
    draws = np.random.default_rng(0).choice(size, p=probabilities, size=(20_000, 8)).max(axis=1)
    share = np.bincount(draws, minlength=size) / len(draws)  # best-of-8 as it happens
    exact = sum(p * math.log(p / q) for p, q in zip(share, probabilities, strict=True) if p > 0)
    exact -= (np.count_nonzero(share) - 1) / 2 / len(draws)  # bias of a plugged-in entropy, Miller 1955
    bias = [
        measured_best_of_n_kl(*pools(probabilities, np.arange(size), count=400, size=pool), [8])["kl"].item() - exact
        for pool in (16, 128)
    ]
    assert exact < best_of_n_kl(8) - 0.04
    assert abs(bias[1]) < 0.01 and abs(bias[1]) < abs(bias[0]) + 0.005


def test_the_order_of_a_pool_does_not_matter_to_the_measured_kl():
    proxy, logprob, names = pools([0.4, 0.3, 0.2, 0.1], [1.0, 2.0, 2.0, 0.0], count=3, size=32)
    shuffle = np.random.default_rng(1).permutation(32)
    first = measured_best_of_n_kl(proxy, logprob, names, [2, 8])
    second = measured_best_of_n_kl(proxy[:, shuffle], logprob[:, shuffle], names[:, shuffle], [2, 8])
    np.testing.assert_allclose(first.to_numpy(), second.to_numpy(), rtol=1e-9)


@pytest.mark.parametrize(
    ("proxy", "logprob", "names", "ns", "words"),
    [
        ([[1.0, 2.0]], [[-1.0]], [["a", "b"]], [1], "have shapes"),
        ([[1.0, 2.0]], [[-1.0, 0.5]], [["a", "b"]], [1], "logprob is 0.5"),
        ([[1.0, 2.0]], [[-1.0, float("nan")]], [["a", "b"]], [1], "NaN"),
        ([[1.0, 2.0]], [[-1.0, -1.0]], [["a", "b"]], [0, 1], "at least 1"),
        ([[1.0, 2.0]], [[-1.0, -1.0]], [["a", "b"]], [], "at least 1"),
    ],
)
def test_a_pool_that_can_not_be_measured_gets_a_sentence(proxy, logprob, names, ns, words):
    with pytest.raises(WorkbenchError, match=words):
        measured_best_of_n_kl(proxy, logprob, names, ns)


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


def test_sequence_kl_is_a_sum_over_counted_tokens_with_its_error_over_prompts():
    token_kl = [[1.0, 2.0, np.nan], [3.0, 99.0, 99.0], [1.0, 1.0, 1.0], [0.0, 1.0, 2.0]]
    mask = [[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 1]]
    summary = sequence_kl_summary(token_kl, mask, ["a", "a", "b", "c"])
    assert summary == (3.0, 0.0)
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


# Where answers are right or wrong: oracles are all subsets


SAID = np.random.default_rng(3).integers(0, 4, size=(6, 7))
RIGHT, TEXTS = (SAID == 1).astype(float), np.where(SAID == 3, "", SAID.astype(str))  # 3 gives no answer


def over_subsets(judge, n: int) -> np.ndarray:
    return np.array([np.mean([judge(row, list(s)) for s in itertools.combinations(range(7), n)]) for row in range(6)])


def wins(row: int, subset: list[int]) -> float:
    """The share of a right answer in the win."""
    votes = Counter(text for text in TEXTS[row, subset] if text)
    leaders = [text for text, count in votes.items() if count == max(votes.values())]
    return leaders.count("1") / max(len(leaders), 1)


def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer():
    oracle = np.stack([over_subsets(lambda row, subset: RIGHT[row, subset].any(), k) for k in range(1, 8)], axis=1)
    np.testing.assert_allclose(pass_at_k(RIGHT, range(1, 8)), oracle, atol=1e-12)
    large = pass_at_k(np.eye(1, 2000), [1, 1000])  # binomials beyond any float
    np.testing.assert_allclose(large, [[1 / 2000, 0.5]], rtol=1e-12)


def test_a_majority_is_right_as_often_as_over_all_subsets():
    oracle = np.stack([over_subsets(wins, n) for n in range(1, 8)], axis=1)
    found = majority_vote(TEXTS, RIGHT, range(1, 8), orders=5000)
    np.testing.assert_allclose(found, oracle, atol=0.02)
    np.testing.assert_allclose(found[:, [0, -1]], oracle[:, [0, -1]], atol=1e-12)  # one of them, and all


def test_choices_are_compared_on_the_same_completions():
    table = accuracy_by_choice(RIGHT, TEXTS, {"itself": RIGHT, "its opposite": -RIGHT}, [1, 3, 7])
    rates = table.pivot(index="n", columns="choice", values="accuracy")
    np.testing.assert_allclose(rates["best by itself"], rates["oracle (pass@n)"], atol=1e-12)
    np.testing.assert_allclose(rates["one at random"], RIGHT.mean(), atol=1e-12)
    np.testing.assert_allclose(rates.loc[1], RIGHT.mean(), atol=1e-12)  # of one there is no choice
    assert rates.loc[7, "best by its opposite"] == np.mean(RIGHT.all(axis=1))


def test_verdicts_are_1_or_0():
    with pytest.raises(WorkbenchError, match=r"right holds 0\.5: give 1 for each"):
        pass_at_k([[0.5, 1.0]], [1])
