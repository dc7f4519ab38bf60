"""Oracles: every tuple enumerated, a general optimiser, the envelope theorem, random policies, hand cases."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import softmax

from workbench import WorkbenchError
from workbench.analysis.best_of_n import best_of_n_kl
from workbench.studies.exact import optimum as exact

EOS, WORDS = 1, [2, 3, 4]
COMPLETIONS = exact.enumerate_completions(WORDS, eos=EOS, longest=3)
TREE = exact.build_tree(COMPLETIONS)


def random_policies(count, *, columns=40, seed=0, concentration=1.0):
    """Rows drawn from a Dirichlet distribution, (count, columns)."""
    return np.random.default_rng(seed).dirichlet([concentration] * columns, size=count)


REFERENCE = random_policies(2)
REWARDS = np.random.default_rng(1).normal(size=REFERENCE.shape)
SCENE = {"reference": REFERENCE, "rewards": REWARDS}


def objective(policy, *, beta, reference=REFERENCE, rewards=REWARDS):
    """Expected reward minus beta times KL, in plain loops."""
    total = 0.0
    for row, start, worth in zip(policy, reference, rewards, strict=True):
        for p, q, r in zip(row, start, worth, strict=True):
            total += p * (r - beta * math.log(p / q))
    return total / len(policy)


def least(loss, logits):
    """The policy, among all of softmax form, that a general optimiser finds to have the least loss."""
    found = minimize(lambda logits: loss(softmax(logits)), logits, method="BFGS", options={"gtol": 1e-9}).x
    return softmax(found)


def test_who_takes_its_own_actions_for_an_experts_acts_as_histories_counted_by_hand_say():
    sure, pay = 0.95, 0.75
    game = exact.self_delusion(5, skill=sure, payoff=pay)
    good = game.pivot(index="turn", columns="model", values="good")
    assert good.loc[1].tolist() == pytest.approx([0.5, 0.5])
    # at turn 2 the first arm and one outcome are known
    follow = pay * sure + (1 - pay) * (1 - sure)  # stay where it paid, by the outcome alone
    assert good.loc[2, "only outcomes do"] == pytest.approx(pay * follow + (1 - pay) * (1 - follow))
    for name, own in (("its own actions count as evidence", True), ("only outcomes do", False)):
        total = 0.0  # at turn 5, arm 0 the good one: every history of four arms and outcomes, in plain loops
        for history in itertools.product(itertools.product((0, 1), repeat=2), repeat=4):
            chance, beliefs = 1.0, [0.5, 0.5]
            for arm, paid in history:
                chance *= sum(b * (sure if arm == truth else 1 - sure) for truth, b in enumerate(beliefs))
                chance *= pay if (arm == 0) == paid else 1 - pay
                seen = [b * (pay if (arm == truth) == paid else 1 - pay) for truth, b in enumerate(beliefs)]
                seen = [b * (sure if arm == truth else 1 - sure) if own else b for truth, b in enumerate(seen)]
                beliefs = [b / sum(seen) for b in seen]
            total += chance * (beliefs[0] * sure + beliefs[1] * (1 - sure))
        assert good.loc[5, name] == pytest.approx(total)


# Completions and their tree


def test_every_completion_is_listed_once_and_ends_with_its_only_eos_or_at_the_limit():
    assert len(COMPLETIONS) == len(set(COMPLETIONS)) == 1 + 3 + 9 + 27
    for ids in COMPLETIONS:
        assert EOS not in ids[:-1]
        assert ids[-1] == EOS or len(ids) == 3
    assert exact.enumerate_completions([7], eos=EOS, longest=1) == [(EOS,), (7,)]
    with pytest.raises(WorkbenchError, match="3 words and completions of at most 0 tokens"):
        exact.enumerate_completions(WORDS, eos=EOS, longest=0)


def test_the_probabilities_of_a_coin_tossed_until_heads_multiply_along_the_tree():
    completions = exact.enumerate_completions([2], eos=EOS, longest=3)  # stop, go stop, go go stop, go go go
    tree = exact.build_tree(completions)
    steps = np.array([[[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]])  # EOS has the lower id and so the first column
    expected = {(1,): 0.9, (2, 1): 0.1 * 0.8, (2, 2, 1): 0.1 * 0.2 * 0.7, (2, 2, 2): 0.1 * 0.2 * 0.3}
    found = exact.completion_probabilities(steps, tree)[0]
    assert dict(zip(completions, found, strict=True)) == pytest.approx(expected, rel=1e-12)


def test_any_distribution_is_the_product_of_its_next_token_probabilities():
    policy = random_policies(4, seed=5, concentration=0.3)
    steps = exact.step_probabilities(policy, TREE)
    np.testing.assert_allclose(steps.sum(-1), 1, rtol=1e-12)
    np.testing.assert_allclose(exact.completion_probabilities(steps, TREE), policy, rtol=1e-9, atol=1e-15)


# The optimum


def test_a_general_optimiser_finds_the_same_optimum():
    reference, rewards, beta = REFERENCE[:1, :5] / REFERENCE[:1, :5].sum(), REWARDS[:1, :5], 0.4

    found = least(lambda policy: -objective([policy], beta=beta, reference=reference, rewards=rewards), np.zeros(5))
    np.testing.assert_allclose(exact.optimal_policy(reference, rewards, beta)[0], found, atol=1e-6)


@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_the_optimum_is_stationary_and_every_other_policy_falls_short_by_beta_times_its_kl(beta):
    optimum = exact.optimal_policy(**SCENE, beta=beta)
    best = objective(optimum, beta=beta)
    generator = np.random.default_rng(2)
    for other in np.stack([random_policies(20, seed=2), random_policies(20, seed=3)], 1):
        noise = generator.normal(size=optimum.shape)
        away = optimum * (noise - (optimum * noise).sum(1, keepdims=True))  # sums to 0: still a distribution
        rise = [objective(optimum + sign * 1e-4 * away, beta=beta) - best for sign in (1, -1)]
        assert max(rise) < 0
        assert abs(rise[0] - rise[1]) / 2e-4 < 1e-7
        assert best - objective(other, beta=beta) == pytest.approx(beta * exact.mean_kl(other, optimum), rel=1e-9)


def test_a_price_of_zero_has_no_optimum_and_a_hopeless_completion_stays_so():
    with pytest.raises(WorkbenchError, match="beta is 0: give a price above 0"):
        exact.optimal_policy(**SCENE, beta=0)
    never = np.array([[0.5, 0.5, 0.0]])
    assert exact.optimal_policy(never, np.array([[0.0, 0.0, 9.0]]), 0.1)[0, 2] == 0
    assert exact.mean_kl(np.array([[0.4, 0.4, 0.2]]), never) == math.inf
    assert exact.mean_kl(never, np.array([[0.4, 0.4, 0.2]])) == pytest.approx(math.log(1.25))


# The frontier


def test_the_frontier_rises_concavely_from_the_reference_with_beta_as_its_slope():
    betas = np.geomspace(0.05, 50, 60)
    frontier = exact.exact_frontier(**SCENE, betas=betas).sort_values("kl")
    assert (np.diff(frontier["kl"]) > 0).all() and (np.diff(frontier["reward"]) > 0).all()
    slopes = np.diff(frontier["reward"]) / np.diff(frontier["kl"])
    assert (np.diff(slopes) < 0).all()
    for beta in (0.1, 0.5, 2.0):  # envelope theorem
        near = exact.exact_frontier(**SCENE, betas=[beta * 1.0001, beta / 1.0001])
        assert np.diff(near["reward"])[0] / np.diff(near["kl"])[0] == pytest.approx(beta, rel=1e-6)
    assert frontier["kl"].iloc[0] < 1e-3
    assert frontier["reward"].iloc[0] == pytest.approx(exact.mean_reward(REFERENCE, REWARDS), abs=0.05)


def test_no_random_policy_lies_above_the_frontier():
    away = np.random.default_rng(3)
    for size in range(40):
        other = np.stack([random_policies(2, seed=100 + size, concentration=away.choice([0.1, 1, 10]))])[0]
        mixed = 0.9 * exact.optimal_policy(**SCENE, beta=away.uniform(0.1, 2)) + 0.1 * other
        for policy in (other, mixed):
            place = exact.standing(policy, **SCENE, beta=1.0)
            assert place["wasted_kl"] > 1e-6 and place["missed_reward"] > 1e-6


@pytest.mark.parametrize("column", ["kl", "reward"])
def test_a_place_on_the_frontier_is_found_by_either_coordinate_and_its_end_beyond_it(column):
    wanted = exact.exact_frontier(**SCENE, betas=[0.3]).iloc[0]
    found = exact.frontier_point(**SCENE, column=column, value=wanted[column])
    assert found == pytest.approx(wanted.to_dict(), rel=1e-9)
    end = exact.frontier_point(**SCENE, column=column, value=100.0)
    assert end["reward"] == pytest.approx(REWARDS.max(1).mean(), rel=1e-9)
    start = exact.frontier_point(**SCENE, column=column, value=-100.0)
    assert start["kl"] == pytest.approx(0, abs=1e-12)


def test_the_optimum_stands_at_no_distance_and_wastes_nothing():
    place = exact.standing(exact.optimal_policy(**SCENE, beta=0.5), **SCENE, beta=0.5)
    assert [place[name] for name in ("kl_to_optimum", "wasted_kl", "missed_reward")] == pytest.approx([0] * 3, abs=1e-9)
    worse = exact.standing(exact.optimal_policy(REFERENCE, -REWARDS, 0.5), **SCENE, beta=0.5)
    assert worse["reward"] < exact.mean_reward(**{"policy": REFERENCE, "rewards": REWARDS})
    assert worse["wasted_kl"] == pytest.approx(worse["kl"], rel=1e-9)


# Best-of-n


def tuples_best_of_n(reference, rewards, n):
    """Probability of each completion over all n-tuples of draws, a tie going to each tied draw alike."""
    chance = np.zeros(len(reference))
    for draws in itertools.product(range(len(reference)), repeat=n):
        best = max(rewards[draw] for draw in draws)
        winners = [draw for draw in draws if rewards[draw] == best]
        for winner in winners:
            chance[winner] += math.prod(reference[draw] for draw in draws) / len(winners)
    return chance


@pytest.mark.parametrize("n", [1, 2, 4])
def test_best_of_n_is_what_all_tuples_say_with_and_without_ties(n):
    reference = random_policies(2, columns=6, seed=4)
    rewards = np.stack([np.random.default_rng(5).normal(size=6), [0, 1, 1, 2, 2, 2]])
    expected = [tuples_best_of_n(*both, n) for both in zip(reference, rewards, strict=True)]
    np.testing.assert_allclose(exact.best_of_n_policy(reference, rewards, n), expected, rtol=1e-12)


def test_best_of_n_agrees_with_simulation_and_costs_at_most_its_bound():
    draws = np.random.default_rng(6)
    for n in (2, 8, 64):
        policy = exact.best_of_n_policy(**SCENE, n=n)
        np.testing.assert_allclose(policy.sum(1), 1, rtol=1e-12)
        sampled = draws.choice(len(COMPLETIONS), size=(100_000, n), p=REFERENCE[0])
        mean = REWARDS[0][sampled].max(1)
        assert abs(mean.mean() - policy[0] @ REWARDS[0]) < 4 * mean.std() / math.sqrt(len(mean))
        assert 0 < exact.mean_kl(policy, REFERENCE) < best_of_n_kl(n)
    with pytest.raises(WorkbenchError, match="n is 0"):
        exact.best_of_n_policy(**SCENE, n=0)


def test_the_bound_of_best_of_n_is_nearly_met_where_no_two_draws_are_alike():
    reference, rewards = np.full((1, 20_000 // 20), 1e-3), np.arange(1000.0)[None]
    spent = exact.mean_kl(exact.best_of_n_policy(reference, rewards, 4), reference)
    assert spent == pytest.approx(best_of_n_kl(4), abs=2e-3)


# Other optima


def test_ipo_on_all_pairs_has_its_optimum_at_the_win_rates():
    reference, rewards, beta = REFERENCE[0, :6] / REFERENCE[0, :6].sum(), REWARDS[0, :6], 0.3

    def loss(policy):
        ratios = np.log(policy / reference)
        total = 0.0
        for first, second in itertools.permutations(range(6), 2):  # first chosen, second rejected
            chance = 1 / (1 + math.exp(rewards[second] - rewards[first]))
            total += chance * (ratios[first] - ratios[second] - 1 / (2 * beta)) ** 2
        return total

    found = least(loss, np.log(reference))
    expected = exact.optimal_policy(reference[None], exact.win_rates(rewards[None]), beta)[0]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_rational_answer_is_the_best_under_a_price_on_the_reverse_kl():
    reference, rewards, beta = REFERENCE[:1, :5] / REFERENCE[:1, :5].sum(), REWARDS[:1, :5], 0.4

    worth = lambda policy: -(policy @ rewards[0] + beta * reference[0] @ np.log(policy))  # noqa: E731
    found = least(worth, np.log(reference[0]))
    np.testing.assert_allclose(exact.rational_policy(reference, rewards, beta)[0], found, atol=1e-6)


def test_the_rational_answer_follows_the_reference_at_a_high_price_and_the_best_reward_at_a_low_one():
    np.testing.assert_allclose(exact.rational_policy(**SCENE, beta=1e9), REFERENCE, rtol=1e-6)
    assert (exact.rational_policy(**SCENE, beta=1e-9).argmax(1) == REWARDS.argmax(1)).all()
    tied = exact.rational_policy(np.array([[0.2, 0.3, 0.5]]), np.ones((1, 3)), 0.7)
    np.testing.assert_allclose(tied, [[0.2, 0.3, 0.5]], rtol=1e-12)
    by_prompt = exact.rational_policy(**SCENE, beta=np.array([[0.1], [5.0]]))
    np.testing.assert_allclose(by_prompt[1], exact.rational_policy(**SCENE, beta=5.0)[1], rtol=1e-12)


def test_with_one_token_a_penalty_in_the_loss_rests_where_its_answer_does():
    completions = exact.enumerate_completions(WORDS, eos=EOS, longest=1)
    tree = exact.build_tree(completions)
    reference = random_policies(2, columns=4, seed=8)
    rewards = REWARDS[:, :4]
    order = np.argsort([ids[0] for ids in completions])  # the tree's columns are ordered by token
    for answer in (exact.optimal_policy, exact.rational_policy):
        found = exact.penalty_in_loss_optimum(reference, rewards, tree, partial(answer, beta=0.3))
        expected = answer(reference[:, order], rewards[:, order], 0.3)
        np.testing.assert_allclose(found[:, order], expected, rtol=1e-12)


def test_groups_of_one_deviation_leave_beta_as_it_is():
    completions = exact.enumerate_completions([2], eos=EOS, longest=1)
    tree, reference, rewards = exact.build_tree(completions), np.array([[0.5, 0.5]]), np.array([[0.0, 3.0]])
    policy = exact.group_relative_optimum(reference, rewards, tree, 0.4)
    deviation = 3 * math.sqrt(policy[0, 0] * policy[0, 1])
    np.testing.assert_allclose(policy, exact.rational_policy(reference, rewards, 0.4 * deviation), rtol=1e-6)
