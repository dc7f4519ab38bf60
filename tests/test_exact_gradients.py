"""Oracles: sums in plain loops, differences of exact values, closed forms of a coin, the gradient another way."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch

from workbench.losses.advantages import gae, token_rewards
from workbench.losses.policy import (
    clipped_surrogate_loss,
    kl_k1,
    kl_k2,
    kl_k3,
    kl_k3_weighted,
    policy_gradient_loss,
    sequence_ratio_loss,
)
from workbench.studies.exact import gradients, optimum

EOS = 1
COMPLETIONS = optimum.enumerate_completions([2, 3], eos=EOS, longest=3)
TREE = optimum.build_tree(COMPLETIONS)
GENERATOR = np.random.default_rng(0)
REFERENCE = GENERATOR.dirichlet([1.0] * len(COMPLETIONS), size=2)
REWARDS = GENERATOR.normal(size=REFERENCE.shape)
POLICY = optimum.optimal_policy(REFERENCE, REWARDS, 0.8)
ESTIMATORS = {"k1": lambda x: x, "k2": lambda x: x * x / 2, "k3": lambda x: math.exp(-x) - 1 + x}


def samples(policy=POLICY, reference=REFERENCE, rewards=REWARDS, tree=TREE):
    return gradients.ExactSamples(policy, reference, rewards, tree)


def token_log_ratios(policy, reference, completion):
    """Log-ratio of each token of one completion, from sums over the completions that share its prefix."""

    def mass(probabilities, prefix):
        return sum(p for p, ids in zip(probabilities, COMPLETIONS, strict=True) if ids[: len(prefix)] == prefix)

    ratios = []
    for end in range(1, len(completion) + 1):
        chances = [mass(p, completion[:end]) / mass(p, completion[: end - 1]) for p in (policy, reference)]
        ratios.append(math.log(chances[0] / chances[1]))
    return ratios


def differences(value, logits, step=1e-5):
    """Gradient of a scalar by central differences, one logit at a time."""
    found = torch.zeros_like(logits)
    for place in itertools.product(*map(range, logits.shape)):
        moved = [logits.clone() for _ in range(2)]
        moved[0][place] += step
        moved[1][place] -= step
        found[place] = (value(moved[0]) - value(moved[1])) / (2 * step)
    return found.flatten()


# Values


def test_the_estimators_have_the_mean_and_spread_of_a_plain_sum_over_completions():
    table = gradients.kl_estimates(samples()).set_index("estimator")
    kl = optimum.mean_kl(POLICY, REFERENCE)
    for name, estimator in ESTIMATORS.items():
        chances, said = [], []
        for policy, reference in zip(POLICY, REFERENCE, strict=True):
            for chance, completion in zip(policy, COMPLETIONS, strict=True):
                chances.append(chance / 2)
                said.append(sum(map(estimator, token_log_ratios(policy, reference, completion))))
        mean = math.fsum(c * s for c, s in zip(chances, said, strict=True))
        variance = math.fsum(c * (s - mean) ** 2 for c, s in zip(chances, said, strict=True))
        row = table.loc[name]
        assert row["kl"] == pytest.approx(kl, rel=1e-12)
        assert row["mean"] == pytest.approx(mean, rel=1e-12)
        assert row["bias"] == pytest.approx(mean - kl, abs=1e-12)
        assert row["sd"] == pytest.approx(math.sqrt(variance), rel=1e-12)
    assert table.loc["k1", "bias"] == pytest.approx(0, abs=1e-12)
    assert table.loc["k3", "bias"] == pytest.approx(0, abs=1e-12)


def test_the_estimators_of_a_coin_have_their_closed_forms():
    p, q = 0.7, 0.4
    completions = optimum.enumerate_completions([2], eos=EOS, longest=1)
    coin = samples(np.array([[p, 1 - p]]), np.array([[q, 1 - q]]), np.zeros((1, 2)), optimum.build_tree(completions))
    table = gradients.kl_estimates(coin).set_index("estimator")
    logit = math.log(p / q) - math.log((1 - p) / (1 - q))
    assert table.loc["k1", "sd"] == pytest.approx(math.sqrt(p * (1 - p)) * logit, rel=1e-12)
    spread = q / p - (1 - q) / (1 - p) + logit  # of k3's two values
    assert table.loc["k3", "sd"] == pytest.approx(math.sqrt(p * (1 - p)) * abs(spread), rel=1e-12)
    half = (math.log(p / q) ** 2 * p + math.log((1 - p) / (1 - q)) ** 2 * (1 - p)) / 2
    assert table.loc["k2", "mean"] == pytest.approx(half, rel=1e-12)


def test_a_perfect_critic_knows_the_mean_of_what_is_to_come():
    scene = samples()
    rewards = scene.token_rewards(kl_coef=0.5)
    values = scene.prefix_values(rewards).view(2, len(COMPLETIONS), -1)
    for prompt, (policy, reference) in enumerate(zip(POLICY, REFERENCE, strict=True)):
        for prefix in ((), (2,), (3, 2)):
            chances, returns = [], []
            for chance, ids, reward in zip(policy, COMPLETIONS, REWARDS[prompt], strict=True):
                if ids[: len(prefix)] == prefix:
                    chances.append(chance)
                    returns.append(reward - 0.5 * sum(token_log_ratios(policy, reference, ids)[len(prefix) :]))
            expected = np.average(returns, weights=chances)
            row = next(row for row, ids in enumerate(COMPLETIONS) if ids[: len(prefix)] == prefix)
            assert values[prompt, row, len(prefix)].item() == pytest.approx(expected, rel=1e-12)


# Gradients


@pytest.mark.parametrize(("beta", "unit"), [(0.0, 1.0), (0.7, 1.0), (1.0, 0.0)])
def test_the_numerical_gradient_is_that_of_autograd(beta, unit):
    scene = samples()
    logits = scene.logits.clone().requires_grad_(True)
    scene.objective(logits, beta=beta, unit=unit).backward()
    found = scene.numerical_gradient(beta=beta, unit=unit)
    torch.testing.assert_close(found, logits.grad.flatten(), rtol=0, atol=1e-9)
    expected = unit * optimum.mean_reward(POLICY, REWARDS) - beta * optimum.mean_kl(POLICY, REFERENCE)
    assert scene.objective(scene.logits, beta=beta, unit=unit).item() == pytest.approx(expected, rel=1e-12)


def test_the_gradient_of_each_completion_is_its_own():
    scene = samples()
    found = scene.gradients(lambda logprobs: kl_k3(logprobs, scene.reference_logprobs))
    for row in (4, len(COMPLETIONS) + 7):
        expected = differences(
            lambda logits, row=row: kl_k3(scene.logprobs(logits), scene.reference_logprobs)[row].sum(), scene.logits
        )
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-9)


def test_as_a_loss_k1_pushes_nowhere_and_k2_and_k3_push_down_the_kl_of_each_token_either_way_round():
    """Visits are held fixed: what a penalty at one token does to later prefixes is what these gradients forget."""
    scene, table = samples(), gradients.kl_gradients(samples()).set_index("estimator")
    start = torch.from_numpy(optimum.step_probabilities(REFERENCE, TREE))
    visits = torch.zeros(2, len(TREE.finished), dtype=torch.float64)
    for prompt, row in itertools.product(range(2), range(len(COMPLETIONS))):
        for place in range(len(COMPLETIONS[row])):
            visits[prompt, TREE.states[row, place]] += POLICY[prompt, row] / 2

    def forward(logits):
        logprobs = logits.log_softmax(-1)
        return (visits[..., None] * logprobs.exp() * (logprobs - start.log())).sum()

    def reverse(logits):
        return (visits[..., None] * start * (start.log() - logits.log_softmax(-1))).sum()

    for estimator, value in ((kl_k2, forward), (kl_k3, reverse)):
        mean, _ = scene.moments(scene.gradients(lambda logprobs, k=estimator: k(logprobs, scene.reference_logprobs)))
        torch.testing.assert_close(mean, differences(value, scene.logits), rtol=0, atol=1e-9)
    mean, _ = scene.moments(scene.gradients(lambda logprobs: kl_k1(logprobs, scene.reference_logprobs)))
    assert mean.abs().max() < 1e-15
    assert table.loc["k1 as a loss", "error"] == pytest.approx(1, abs=1e-9)
    assert math.isnan(table.loc["k1 as a loss", "cosine"])
    assert table.loc["k1 in the reward", "error"] < 1e-8
    assert 0.02 < table.loc["k2 as a loss", "error"] < table.loc["k3 as a loss", "error"]
    assert table.loc["weighted k3 as a loss", "error"] == pytest.approx(table.loc["k2 as a loss", "error"], rel=1e-9)


def test_for_a_single_token_k2_has_the_gradient_of_the_kl_itself():
    tree = optimum.build_tree(optimum.enumerate_completions([2, 3], eos=EOS, longest=1))
    policy, reference = GENERATOR.dirichlet([1.0] * 3, size=(2, 2))
    table = gradients.kl_gradients(samples(policy, reference, np.zeros((2, 3)), tree)).set_index("estimator")
    assert table.loc["k2 as a loss", "error"] < 1e-8
    assert table.loc["k3 as a loss", "error"] > 0.02


@pytest.mark.parametrize("seed", range(3))
def test_the_policy_gradient_theorem_holds_for_baselines_that_know_the_prefix_and_only_for_those(seed):
    table = gradients.policy_gradient_theorem(samples(), beta=0.3, seed=seed)
    assert set(table["objective"]) == {"reward", "reward − 0.3 KL"}
    assert table.groupby("objective")["unbiased"].sum().tolist() == [4, 4]
    assert table.loc[table["unbiased"], "difference"].max() < 1e-9
    assert table.loc[~table["unbiased"], "difference"].min() > 0.01
    spread = table.set_index(["objective", "baseline"])["sd"].unstack()
    assert (spread["perfect critic"] < spread["none"]).all()


def test_a_first_ppo_update_follows_the_gradient_of_the_objective():
    """The trainer's own functions, put together as in a first update: ratio 1, so nothing is clipped."""
    scene, beta = samples(), 0.3
    kl = kl_k1(scene.old_logprobs, scene.reference_logprobs)
    rewards = token_rewards(kl, scene.scores, scene.mask, kl_coef=beta)
    advantages, _ = gae(rewards, scene.prefix_values(rewards), scene.mask, gamma=1.0, lam=0.95)  # any lam: V is exact
    mean, _ = scene.moments(
        scene.gradients(lambda logprobs: clipped_surrogate_loss(logprobs, scene.old_logprobs, advantages))
    )
    torch.testing.assert_close(-mean, scene.numerical_gradient(beta=beta), rtol=0, atol=1e-9)


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_where_a_penalty_in_the_loss_rests_the_mean_of_its_gradients_is_zero(beta):

    def weighted(logprobs, reference_logprobs):
        return kl_k3_weighted(logprobs, logprobs.detach(), reference_logprobs)

    answers = {kl_k2: optimum.optimal_policy, weighted: optimum.optimal_policy, kl_k3: optimum.rational_policy}
    for penalty, answer in answers.items():
        policy = optimum.penalty_in_loss_optimum(REFERENCE, REWARDS, TREE, partial(answer, beta=beta))
        np.testing.assert_allclose(policy.sum(1), 1, rtol=1e-12)
        scene = samples(policy)
        scores = scene.scores[:, None].expand_as(scene.old_logprobs)

        def loss(logprobs, scene=scene, scores=scores, penalty=penalty):
            return policy_gradient_loss(logprobs, scores) + beta * penalty(logprobs, scene.reference_logprobs)

        mean, deviation = scene.moments(scene.gradients(loss))
        assert mean.abs().max() < 1e-12
        assert deviation > 0.1
        away, _ = samples(REFERENCE).moments(samples(REFERENCE).gradients(loss))
        assert away.abs().max() > 1e-3


def clipped_tokens(logprobs, old_logprobs, advantages, mask):
    return clipped_surrogate_loss(logprobs, old_logprobs, advantages)


@pytest.mark.parametrize("surrogate", [clipped_tokens, sequence_ratio_loss], ids=["GRPO", "GSPO"])
def test_where_grpo_and_gspo_rest_rewards_in_deviations_balance_their_penalty(surrogate):
    policy = optimum.group_relative_optimum(REFERENCE, REWARDS, TREE, 0.5)
    scene = samples(policy)
    means = (policy * REWARDS).sum(1, keepdims=True)
    deviations = np.sqrt((policy * (REWARDS - means) ** 2).sum(1, keepdims=True))
    scores = torch.from_numpy((REWARDS - means) / deviations).flatten()[:, None].expand_as(scene.old_logprobs)

    def loss(logprobs):  # a completion is the mean of its tokens
        penalty = 0.5 * kl_k3(logprobs, scene.reference_logprobs)
        return (surrogate(logprobs, scene.old_logprobs, scores, scene.mask) + penalty) / scene.mask.sum(1)[:, None]

    mean, _ = scene.moments(scene.gradients(loss))
    assert mean.abs().max() < 1e-9


# Old samples


def test_old_samples_weighed_by_their_ratio_tell_the_improvement_and_clipped_ones_less():
    scene = samples(REFERENCE)
    truth = optimum.mean_reward(POLICY, REWARDS) - optimum.mean_reward(REFERENCE, REWARDS)
    table = gradients.improvement_estimates(scene, POLICY, cliprange=0.2).set_index("estimator")
    assert table["kl"].tolist() == pytest.approx([optimum.mean_kl(POLICY, REFERENCE)] * 3, rel=1e-12)
    assert table["improvement"].tolist() == pytest.approx([truth] * 3, rel=1e-12)
    assert table.loc["ratio of the completion", "bias"] == pytest.approx(0, abs=1e-12)
    ratios = POLICY / REFERENCE
    assert table["kept"].iloc[0] == pytest.approx(2 / (REFERENCE * ratios**2).sum(), rel=1e-12)
    gains = REWARDS - (REFERENCE * REWARDS).sum(1, keepdims=True)
    squares = (REFERENCE * (ratios * gains) ** 2).sum() / 2
    assert table.loc["ratio of the completion", "sd"] == pytest.approx(math.sqrt(squares - truth**2), rel=1e-12)
    worst = np.minimum(ratios * gains, np.clip(ratios, 0.8, 1.2) * gains)
    assert table.loc["the same, clipped", "mean"] == pytest.approx((REFERENCE * worst).sum() / 2, rel=1e-12)
    assert table.loc["the same, clipped", "bias"] < -0.01
    assert table.loc["ratios of tokens, clipped", "sd"] < 3 * table.loc["the same, clipped", "sd"]


def test_a_policy_that_has_not_moved_improves_nothing_and_keeps_every_sample():
    table = gradients.improvement_estimates(samples(), POLICY, cliprange=0.2)
    assert table["mean"].abs().max() < 1e-12
    assert table["kept"].tolist() == pytest.approx([1.0] * 3)
    assert table["kl"].abs().max() < 1e-12


def test_for_one_token_clipping_tokens_is_clipping_completions():
    tree = optimum.build_tree(optimum.enumerate_completions([2, 3], eos=EOS, longest=1))
    old, new = GENERATOR.dirichlet([1.0] * 3, size=(2, 2))
    table = gradients.improvement_estimates(samples(old, old, REWARDS[:, :3], tree), new, cliprange=0.1)
    whole, tokens = table["mean"].iloc[1:]
    assert whole == pytest.approx(tokens, rel=1e-12)
