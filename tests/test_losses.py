"""Objectives against hand arithmetic, scipy, exact expectations and TRL's own numbers."""

import json
import math
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import special, stats

from workbench.losses.direct import dpo_loss
from workbench.losses.policy import clipped_surrogate_loss, clipped_value_loss, entropy, exact_kl, kl_k1
from workbench.losses.preference import bradley_terry_loss

TRL = json.loads((Path(__file__).parent / "oracles" / "trl_ppo.json").read_text())


def trl_tensors(section: str) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in TRL[section].items()}


def random_logits(seed: int, shape=(3, 4, 7)) -> torch.Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Policy


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [(1.5, 1.0, False), (1.5, -1.0, True), (0.5, 1.0, True), (0.5, -1.0, False), (1.0, 1.0, True), (1.0, -1.0, True)],
)
def test_the_clip_stops_the_gradient_only_where_the_ratio_already_went_the_way_of_the_advantage(
    ratio, advantage, moves
):
    logprobs = torch.tensor([[math.log(ratio) - 2.0]], requires_grad=True)
    clipped_surrogate_loss(logprobs, torch.tensor([[-2.0]]), torch.tensor([[advantage]])).sum().backward()
    # d(-A ratio)/d(log-probability) = -A ratio
    assert logprobs.grad.item() == pytest.approx(-advantage * ratio if moves else 0.0, rel=1e-6)


def test_a_higher_upper_clip_leaves_the_lower_one_alone():
    old = torch.zeros(1, 4)
    logprobs = torch.tensor([[1.25, 1.35, 0.75, 0.85]]).log().requires_grad_()
    advantages = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    clipped_surrogate_loss(logprobs, old, advantages, cliprange=0.2, cliprange_high=0.3).sum().backward()
    assert (logprobs.grad != 0).tolist() == [[True, False, False, True]]


def test_an_unmoved_policy_pays_minus_the_advantage():
    advantages = torch.tensor([[0.3, -2.0]])
    loss = clipped_surrogate_loss(torch.tensor([[-1.0, -4.0]]), torch.tensor([[-1.0, -4.0]]), advantages)
    assert torch.equal(loss, -advantages)


def test_policy_and_value_losses_are_those_of_trl():
    frozen, arguments = trl_tensors("losses"), TRL["arguments"]
    mask = frozen["mask"]
    policy = clipped_surrogate_loss(
        frozen["logprobs"], frozen["old_logprobs"], frozen["advantages"], cliprange=arguments["cliprange"]
    )
    value = clipped_value_loss(
        frozen["values"], frozen["old_values"], frozen["returns"], cliprange_value=arguments["cliprange_value"]
    )
    torch.testing.assert_close(policy[mask].mean(), frozen["policy_loss"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(value[mask].mean(), frozen["value_loss"], rtol=1e-5, atol=1e-7)


def test_the_value_loss_stops_its_gradient_once_the_value_went_far_enough_towards_the_return():
    old, returns = torch.zeros(1, 3), torch.tensor([[1.0, 1.0, 1.0]])
    values = torch.tensor([[0.1, 0.5, -0.5]], requires_grad=True)  # inside, beyond it, beyond it the wrong way
    losses = clipped_value_loss(values, old, returns, cliprange_value=0.2)
    losses.sum().backward()
    assert losses.tolist()[0] == pytest.approx([0.5 * 0.9**2, 0.5 * 0.8**2, 0.5 * 1.5**2])
    assert values.grad.tolist()[0] == pytest.approx([-0.9, 0.0, -1.5])


# KL and entropy


def test_exact_kl_is_scipys_relative_entropy_of_the_policy_from_the_reference():
    logits, reference = random_logits(0), random_logits(1)
    policy, other = (special.softmax(tensor.double().numpy(), -1) for tensor in (logits, reference))
    expected = special.rel_entr(policy, other).sum(-1)
    np.testing.assert_allclose(exact_kl(logits, reference), expected, rtol=1e-5)
    assert not np.allclose(expected, special.rel_entr(other, policy).sum(-1), rtol=0.05)  # the other side differs


def test_the_expectation_of_k1_under_the_policy_is_the_exact_kl():
    logits, reference = random_logits(2).double(), random_logits(3).double()
    chance = logits.softmax(-1)
    every_token = kl_k1(logits.log_softmax(-1), reference.log_softmax(-1))  # one sample of each token
    exact = special.rel_entr(chance.numpy(), reference.softmax(-1).numpy()).sum(-1)
    np.testing.assert_allclose((chance * every_token).sum(-1), exact, atol=1e-6)
    assert (every_token < 0).any()


def test_entropy_is_scipys():
    logits = random_logits(4)
    expected = stats.entropy(special.softmax(logits.double().numpy(), -1), axis=-1)
    np.testing.assert_allclose(entropy(logits), expected, rtol=1e-5)


def test_an_impossible_token_makes_no_nan():
    logits, reference = random_logits(5), random_logits(6)
    logits[..., 2] = reference[..., 2] = -1e9
    without = [torch.cat([tensor[..., :2], tensor[..., 3:]], -1) for tensor in (logits, reference)]
    torch.testing.assert_close(exact_kl(logits, reference), exact_kl(*without))
    torch.testing.assert_close(entropy(logits), entropy(without[0]))


def test_kl_and_entropy_of_half_precision_logits_are_in_fp32():
    logits, reference = random_logits(7).bfloat16(), random_logits(8).bfloat16()
    wide = logits.double().numpy(), reference.double().numpy()
    expected = special.rel_entr(special.softmax(wide[0], -1), special.softmax(wide[1], -1)).sum(-1)
    kl = exact_kl(logits, reference)
    assert kl.dtype == entropy(logits).dtype == torch.float32
    np.testing.assert_allclose(kl, expected, rtol=1e-5)
    np.testing.assert_allclose(entropy(logits), stats.entropy(special.softmax(wide[0], -1), axis=-1), rtol=1e-5)


# Preferences


def negative_log_sigmoid(x: str) -> float:
    """In forty digits."""
    return float((1 + (-Decimal(x)).exp()).ln())


def test_dpo_starts_at_log_two():
    logprobs = torch.tensor([-3.0, -40.0]), torch.tensor([-5.0, -1.0])
    loss = dpo_loss(*logprobs, *logprobs, beta=0.7)
    assert loss.tolist() == pytest.approx([math.log(2)] * 2, rel=1e-6)


def test_dpo_of_a_hand_example():
    # chosen -4 vs -6 under the reference: +2; rejected -9 vs -8: -1; difference 3, times beta .1 = .3
    # chosen -7 vs -5: -2; rejected -3 vs -6: +3; difference -5, times .1 = -.5
    loss = dpo_loss(
        torch.tensor([-4.0, -7.0]),
        torch.tensor([-9.0, -3.0]),
        torch.tensor([-6.0, -5.0]),
        torch.tensor([-8.0, -6.0]),
        beta=0.1,
    )
    assert loss.tolist() == pytest.approx([negative_log_sigmoid("0.3"), negative_log_sigmoid("-0.5")], rel=1e-5)


def test_dpo_pushes_the_chosen_up_and_the_rejected_down_with_the_weight_of_its_error():
    chosen, rejected = torch.tensor([-4.0], requires_grad=True), torch.tensor([-9.0], requires_grad=True)
    dpo_loss(chosen, rejected, torch.tensor([-6.0]), torch.tensor([-8.0]), beta=0.1).backward()
    wrong = 1 / (1 + math.exp(0.3))  # the implied probability of the other label
    assert chosen.grad.item() == pytest.approx(-0.1 * wrong, rel=1e-5)
    assert rejected.grad.item() == pytest.approx(0.1 * wrong, rel=1e-5)


def test_bradley_terry_gives_both_orders_together_probability_one():
    first, second = torch.tensor([0.3, -2.0, 5.0]), torch.tensor([1.1, -2.0, -4.0])
    either = (-bradley_terry_loss(first, second)).exp() + (-bradley_terry_loss(second, first)).exp()
    torch.testing.assert_close(either, torch.ones(3))
    np.testing.assert_allclose(
        bradley_terry_loss(first, second), -special.log_expit((first - second).numpy()), rtol=1e-5
    )


def test_a_margin_is_how_much_better_the_chosen_one_must_score():
    rewards = torch.tensor([2.0, 2.0]), torch.tensor([0.5, 0.5])
    loss = bradley_terry_loss(*rewards, margin=torch.tensor([0.0, 1.5]))
    assert loss.tolist() == pytest.approx([negative_log_sigmoid("1.5"), math.log(2)], rel=1e-6)


@pytest.mark.parametrize("loss", [bradley_terry_loss, lambda a, b: dpo_loss(a, b, 0 * a, 0 * b, beta=1.0)])
def test_hopeless_pairs_have_a_finite_loss_and_gradient(loss):
    chosen = torch.tensor([-500.0, 500.0], requires_grad=True)
    values = loss(chosen, torch.zeros(2))
    values.sum().backward()
    assert values.tolist() == pytest.approx([500.0, 0.0])
    assert chosen.grad.tolist() == pytest.approx([-1.0, 0.0])
