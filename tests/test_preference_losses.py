"""Reward-model objectives against hand arithmetic, enumeration, scikit-learn and what TRL's trainer computed."""

import json
import math
from decimal import Decimal
from fractions import Fraction
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles.tiny_llama import waved, waved_llama
from scipy import special
from sklearn import metrics
from transformers import LlamaForSequenceClassification

from workbench.losses.preference import (
    best_of_k_loss,
    bradley_terry_loss,
    outcome_loss,
    pairwise_ranking_loss,
    plackett_luce_loss,
    process_reward_loss,
    rating_loss,
    reward_centering_penalty,
    soft_preference_loss,
)

TRL = json.loads((Path(__file__).parent / "oracles" / "trl_reward.json").read_text())
CHOSEN, REJECTED = torch.tensor([0.3, -2.0, 5.0]), torch.tensor([1.1, -2.0, -4.0])


def negative_log_sigmoid(x: str) -> float:
    """In forty digits."""
    return float((1 + (-Decimal(x)).exp()).ln())


def log_strengths(*strengths: int) -> torch.Tensor:
    """Rewards whose exponentials are these whole numbers, so that probabilities are fractions."""
    return torch.tensor(strengths, dtype=torch.float64).log()


def probability_of_order(strengths: tuple[int, ...], order: tuple[int, ...]) -> Fraction:
    """Draw without replacement, each time in proportion to strength: the probability of this order."""
    left, probability = list(strengths), Fraction(1)
    for index in order:
        probability *= Fraction(strengths[index], sum(left))
        left.remove(strengths[index])
    return probability


def random_rankings(rows: int, size: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards and rankings, (rows, size) each."""
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(rows, size, generator=generator, dtype=torch.float64)
    return rewards, torch.stack([torch.randperm(size, generator=generator) for _ in range(rows)])


def gradient(loss, *rewards: torch.Tensor) -> list[torch.Tensor]:
    leaves = [reward.clone().requires_grad_() for reward in rewards]
    loss(*leaves).sum().backward()
    return [leaf.grad for leaf in leaves]


# Two completions


def test_bradley_terry_gives_both_orders_together_probability_one():
    either = (-bradley_terry_loss(CHOSEN, REJECTED)).exp() + (-bradley_terry_loss(REJECTED, CHOSEN)).exp()
    torch.testing.assert_close(either, torch.ones(3))
    expected = -special.log_expit((CHOSEN - REJECTED).numpy())
    np.testing.assert_allclose(bradley_terry_loss(CHOSEN, REJECTED), expected, rtol=1e-5)


def test_a_margin_is_how_much_better_the_chosen_one_must_score():
    rewards = torch.tensor([2.0, 2.0]), torch.tensor([0.5, 0.5])
    loss = bradley_terry_loss(*rewards, margin=torch.tensor([0.0, 1.5]))
    assert loss.tolist() == pytest.approx([negative_log_sigmoid("1.5"), math.log(2)], rel=1e-6)


def test_hopeless_pairs_have_a_finite_loss_and_gradient():
    chosen = torch.tensor([-500.0, 500.0], requires_grad=True)
    values = bradley_terry_loss(chosen, torch.zeros(2))
    values.sum().backward()
    assert values.tolist() == pytest.approx([500.0, 0.0])
    assert chosen.grad.tolist() == pytest.approx([-1.0, 0.0])


def test_a_sure_preference_is_bradley_terry_on_that_side():
    for preference, sides in ((torch.ones(3), (CHOSEN, REJECTED)), (torch.zeros(3), (REJECTED, CHOSEN))):
        torch.testing.assert_close(soft_preference_loss(CHOSEN, REJECTED, preference), bradley_terry_loss(*sides))


@pytest.mark.parametrize("preference", [0.0, 0.2, 0.5, 1.0])
def test_a_graded_preference_is_scikit_learns_log_loss_at_the_same_odds(preference):
    """`log_loss` of both outcomes, weighted by how probable each is."""
    margins = (CHOSEN - REJECTED).double()
    loss = soft_preference_loss(CHOSEN.double(), REJECTED.double(), torch.full((3,), preference, dtype=torch.float64))
    for margin, value in zip(margins, loss, strict=True):
        probabilities, weights = [special.expit(margin.item())] * 2, [preference, 1 - preference]
        expected = metrics.log_loss([1, 0], probabilities, sample_weight=weights, labels=[0, 1])
        assert value.item() == pytest.approx(expected, rel=1e-6)


def test_a_tie_is_least_costly_where_both_rewards_are_equal():
    tie = torch.full((3,), 0.5)
    rewards = torch.tensor([0.0, 1.0, -1.0]), torch.zeros(3)
    first, second = gradient(lambda a, b: soft_preference_loss(a, b, tie), *rewards)
    assert first[0] == 0 and first[1] > 0 > first[2]
    torch.testing.assert_close(first, -second)
    assert soft_preference_loss(torch.ones(1), torch.ones(1), torch.tensor([0.5])).item() == pytest.approx(math.log(2))


def test_a_share_of_coin_tosses_moves_every_probability_that_far_towards_one_half():
    """At odds of 3 to 1 a labeler who tosses a coin one time in ten says "first" with .9 * 3/4 + .05 = 29/40."""
    rewards, preference = (log_strengths(3), log_strengths(1)), torch.ones(1, dtype=torch.float64)
    loss = soft_preference_loss(*rewards, preference, error_rate=0.1)
    assert loss.item() == pytest.approx(math.log(40 / 29), rel=1e-12)
    other = soft_preference_loss(*rewards, 1 - preference, error_rate=0.1)
    assert math.exp(-loss) + math.exp(-other) == pytest.approx(1, rel=1e-12)
    assert soft_preference_loss(*rewards, preference, error_rate=1.0).item() == pytest.approx(math.log(2))


def test_with_coin_tosses_no_label_can_cost_more_than_its_being_one_nor_pull_on_a_hopeless_pair():
    chosen = torch.tensor([-500.0], requires_grad=True)
    loss = soft_preference_loss(chosen, torch.zeros(1), torch.ones(1), error_rate=0.1)
    loss.sum().backward()
    assert loss.item() == pytest.approx(math.log(20), rel=1e-6)
    assert chosen.grad.item() == pytest.approx(0, abs=1e-6)


# K completions


def test_all_pairs_of_a_prompt_weigh_as_much_as_one_pair():
    rewards, ranking = random_rankings(5, 4)
    values = pairwise_ranking_loss(rewards, ranking)
    for row, value in enumerate(values):
        order = [rewards[row, index].item() for index in ranking[row]]
        pairs = [negative_log_sigmoid(repr(better - worse)) for better, worse in combinations(order, 2)]
        assert len(pairs) == 6
        assert value.item() == pytest.approx(sum(pairs) / 6, rel=1e-9)


def test_plackett_luce_is_drawing_without_replacement_and_all_orders_sum_to_one():
    strengths = (1, 2, 5, 9)
    orders = list(permutations(range(4)))
    losses = plackett_luce_loss(log_strengths(*strengths).expand(len(orders), 4), torch.tensor(orders))
    assert (-losses).exp().sum().item() == pytest.approx(1, rel=1e-12)
    for order, loss in zip(orders, losses, strict=True):
        assert math.exp(-loss) == pytest.approx(float(probability_of_order(strengths, order)), rel=1e-12)


def test_two_completions_are_bradley_terry_for_every_objective_of_rankings():
    rewards, ranking = random_rankings(6, 2)
    ordered = rewards.gather(1, ranking)
    expected = bradley_terry_loss(ordered[:, 0], ordered[:, 1])
    torch.testing.assert_close(plackett_luce_loss(rewards, ranking), expected)
    torch.testing.assert_close(pairwise_ranking_loss(rewards, ranking), expected)
    torch.testing.assert_close(best_of_k_loss(rewards, ranking[:, 0]), expected)


def test_the_best_of_k_is_chosen_in_proportion_to_strength():
    strengths = (4, 1, 3, 2)
    losses = best_of_k_loss(log_strengths(*strengths).expand(4, 4), torch.arange(4))
    assert (-losses).exp().tolist() == pytest.approx([0.4, 0.1, 0.3, 0.2], rel=1e-12)


@pytest.mark.parametrize("loss", [pairwise_ranking_loss, plackett_luce_loss])
def test_a_ranking_of_one_says_nothing(loss):
    rewards = torch.tensor([[3.0], [-1.0]], requires_grad=True)
    costs = loss(rewards, torch.zeros(2, 1, dtype=torch.long))
    costs.sum().backward()
    assert costs.tolist() == [0, 0] and rewards.grad.tolist() == [[0], [0]]


@pytest.mark.parametrize("loss", [pairwise_ranking_loss, plackett_luce_loss])
def test_rankings_pull_the_best_up_and_the_worst_down_and_the_sum_nowhere(loss):
    (pull,) = gradient(lambda values: loss(values, torch.tensor([[2, 0, 1]])), torch.zeros(1, 3))
    assert pull[0, 2] < 0 < pull[0, 1]
    assert pull.sum().item() == pytest.approx(0, abs=1e-6)


def test_hopeless_rankings_have_a_finite_loss_and_gradient():
    rewards, ranking = torch.tensor([[-500.0, 0.0, 500.0]]), torch.tensor([[0, 1, 2]])
    for loss, expected in ((plackett_luce_loss, 1500.0), (pairwise_ranking_loss, 2000 / 3)):
        assert loss(rewards, ranking).item() == pytest.approx(expected)
        (pull,) = gradient(lambda values, loss=loss: loss(values, ranking), rewards)
        assert pull.isfinite().all() and pull[0, 0] < 0


# Numbers, verdicts and steps


def test_ratings_cost_their_squared_error():
    rewards, ratings = torch.tensor([0.5, -1.0, 3.0]), torch.tensor([1.0, 2.0, 3.0])
    assert rating_loss(rewards, ratings).tolist() == [0.25, 9.0, 0.0]
    expected = metrics.mean_squared_error(ratings, rewards)
    assert rating_loss(rewards, ratings).mean().item() == pytest.approx(expected)


def test_an_outcome_costs_scikit_learns_log_loss():
    rewards, labels = CHOSEN.double(), torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    expected = metrics.log_loss(labels, special.expit(rewards.numpy()))
    assert outcome_loss(rewards, labels).mean().item() == pytest.approx(expected, rel=1e-9)
    assert outcome_loss(torch.tensor([-500.0]), torch.tensor([1.0])).item() == pytest.approx(500)


def test_every_step_costs_its_own_log_loss_and_what_is_no_step_costs_and_teaches_nothing():
    rewards = torch.tensor([[1.0, -2.0, math.nan], [0.5, math.inf, -math.inf]])
    labels = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    losses = process_reward_loss(rewards, labels, mask)
    assert losses.shape == (2, 3)
    expected = metrics.log_loss(labels[mask], special.expit(rewards[mask].numpy()))
    assert losses[mask].mean().item() == pytest.approx(expected, rel=1e-6)
    (pull,) = gradient(lambda values: process_reward_loss(values, labels, mask), rewards)
    assert (losses[~mask] == 0).all() and (pull[~mask] == 0).all()
    assert pull[0, 0] < 0 and pull[0, 1] < 0 < pull[1, 0]


# What infinite rewards do: a loss or a gradient that is not finite, which `Descent` refuses


ONE = torch.ones(1)
FIRST = torch.tensor([[0, 1, 2]])


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(
    "loss",
    [
        lambda reward: bradley_terry_loss(reward, 0 * ONE),
        lambda reward: soft_preference_loss(reward, 0 * ONE, ONE / 2),
        lambda reward: pairwise_ranking_loss(torch.stack([reward, ONE, 0 * ONE], 1), FIRST),
        lambda reward: plackett_luce_loss(torch.stack([reward, ONE, 0 * ONE], 1), FIRST),
        lambda reward: best_of_k_loss(torch.stack([reward, ONE, 0 * ONE], 1), FIRST[:, 0]),
        lambda reward: rating_loss(reward, ONE),
        lambda reward: outcome_loss(reward, ONE),
        lambda reward: process_reward_loss(reward[None], ONE[None], ONE[None].bool()),
    ],
)
def test_an_infinite_reward_is_never_trained_on(loss, value):
    """Through a head of weight 1 on an infinite feature: what reaches the weight is not finite, or the loss is not."""
    weight = torch.ones(1, requires_grad=True)
    result = loss(weight * value)
    if result.isfinite().all():
        result.sum().backward()
        assert not weight.grad.isfinite().all()


# What TRL's RewardTrainer computes


def trl_model():
    """The classifier of the oracle."""
    config = waved_llama(0.0).config
    config.num_labels = 1
    model = waved(LlamaForSequenceClassification(config), TRL["inputs"]["phase"])
    model.score.weight.data *= TRL["inputs"]["head"]
    return model


def trl_rewards(model) -> torch.Tensor:
    """Rewards of the oracle's pairs one text at a time, (3, 2): chosen, rejected."""
    texts = [
        pair["prompt_ids"] + pair[f"{side}_ids"] for pair in TRL["inputs"]["pairs"] for side in ("chosen", "rejected")
    ]
    return torch.stack([model(input_ids=torch.tensor([ids])).logits[0, 0] for ids in texts]).view(-1, 2)


@pytest.mark.parametrize("case", ["plain", "margin", "centred", "margin_centred"])
def test_loss_and_gradient_are_those_of_trls_trainer(case):
    model, expected = trl_model(), TRL[case]
    chosen, rejected = trl_rewards(model).unbind(1)
    margins = torch.tensor([pair["margin"] for pair in TRL["inputs"]["pairs"]])
    margin = margins if expected["settings"].get("margin") else 0.0
    coefficient = expected["settings"].get("center_rewards_coefficient", 0.0)
    loss = bradley_terry_loss(chosen, rejected, margin=margin).mean()
    loss = loss + coefficient * reward_centering_penalty(chosen, rejected).mean()
    loss.backward()
    norm = torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]).norm()
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-5)
    assert norm.item() == pytest.approx(expected["gradient_norm"], rel=1e-5)
