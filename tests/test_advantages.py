"""Masked statistics, token rewards and advantages against numpy, sums, closed forms and TRL's own numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from workbench import WorkbenchError
from workbench.losses.advantages import (
    adaptive_kl_coef,
    batch_normalised_returns,
    gae,
    group_centered,
    group_relative,
    leave_one_out,
    masked_mean,
    masked_rescale,
    masked_variance,
    masked_whiten,
    reward_to_go,
    token_rewards,
)

TRL = json.loads((Path(__file__).parent / "oracles" / "trl_ppo.json").read_text())
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]]).bool()


def trl_tensors(section: str) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in TRL[section].items()}


def randoms(seed: int, *, outside: float = 0.0) -> torch.Tensor:
    values = torch.randn(MASK.shape, generator=torch.Generator().manual_seed(seed)) * 3 + 1
    return torch.where(MASK, values, outside)


@pytest.mark.parametrize("outside", [0.0, 1e6, float("nan")])
def test_mean_and_variance_are_numpys_over_counted_positions_whatever_the_others_hold(outside):
    values = randoms(0, outside=outside)
    counted = values[MASK].numpy()
    assert masked_mean(values, MASK).item() == pytest.approx(counted.mean(), rel=1e-5)
    assert masked_variance(values, MASK).item() == pytest.approx(counted.var(ddof=1), rel=1e-5)


def test_statistics_of_nothing_are_zero():
    nothing = torch.zeros_like(MASK)
    assert masked_mean(randoms(0), nothing).item() == 0
    assert masked_variance(randoms(0), nothing).item() == 0


@pytest.mark.parametrize("outside", [0.0, float("nan")])
def test_whitening_is_numpys_and_zero_outside(outside):
    values = randoms(1, outside=outside)
    counted = values[MASK].numpy()
    whitened = masked_whiten(values, MASK)
    np.testing.assert_allclose(whitened[MASK], (counted - counted.mean()) / counted.std(ddof=1), rtol=1e-4, atol=1e-6)
    assert whitened[~MASK].abs().sum() == 0


def test_rescaling_keeps_the_mean_that_whitening_removes():
    values = randoms(2)
    rescaled, whitened = masked_rescale(values, MASK), masked_whiten(values, MASK)
    assert rescaled[MASK].mean().item() == pytest.approx(values[MASK].mean().item(), rel=1e-5)
    assert whitened[MASK].mean().item() == pytest.approx(0, abs=1e-6)
    assert rescaled[MASK].std().item() == pytest.approx(1, rel=1e-5)
    assert rescaled[~MASK].abs().sum() == 0


def test_equal_values_are_whitened_to_zero_and_not_nan():
    assert torch.equal(masked_whiten(torch.full(MASK.shape, 2.5), MASK), torch.zeros(MASK.shape))


def test_both_kinds_of_whitening_are_those_of_trl():
    frozen = trl_tensors("whiten")
    mask = frozen["mask"]
    for ours, theirs in ((masked_whiten, "shifted"), (masked_rescale, "kept_mean")):
        torch.testing.assert_close(ours(frozen["values"], mask)[mask], frozen[theirs][mask], rtol=1e-5, atol=1e-6)


def test_every_counted_token_pays_its_kl_and_the_last_one_gets_the_score():
    kl = torch.tensor([[0.5, -0.2, 0.1, 9.0], [1.0, 9.0, 9.0, 9.0], [0.1, 0.2, 0.3, 0.4]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
    rewards = token_rewards(kl, torch.tensor([2.0, -1.0, 0.5]), mask, kl_coef=0.1)
    expected = [[-0.05, 0.02, 2 - 0.01, 0], [-1 - 0.1, 0, 0, 0], [-0.01, -0.02, -0.03, 0.5 - 0.04]]
    np.testing.assert_allclose(rewards, expected, rtol=1e-6)


def test_token_rewards_of_full_completions_are_those_of_trl():
    frozen, arguments = trl_tensors("rewards"), TRL["arguments"]
    kl = frozen["logprobs"] - frozen["reference_logprobs"]
    rewards = token_rewards(kl, frozen["penalised_scores"], torch.ones_like(kl).bool(), kl_coef=arguments["kl_coef"])
    torch.testing.assert_close(rewards, frozen["rewards"], rtol=1e-5, atol=1e-7)


def double_sum(rewards, values, lengths, gamma, lam):
    """Advantages straight from the definition: sums of discounted TD errors, in fp64."""
    rewards, values = rewards.double().numpy(), values.double().numpy()
    advantages = np.zeros(rewards.shape)
    for row, length in enumerate(lengths):
        for start in range(length):
            for later in range(start, length):
                after = values[row, later + 1] if later + 1 < length else 0.0
                error = rewards[row, later] + gamma * after - values[row, later]
                advantages[row, start] += (gamma * lam) ** (later - start) * error
    return advantages


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 0.0), (0.97, 1.0), (1.0, 1.0)])
def test_gae_is_the_double_sum_of_its_definition(gamma, lam):
    rewards, values = randoms(3, outside=7.0), randoms(4, outside=float("nan"))
    advantages, returns = gae(rewards, values, MASK, gamma=gamma, lam=lam)
    expected = double_sum(rewards, values, [6, 3, 1], gamma, lam)
    np.testing.assert_allclose(advantages, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(returns[MASK], (expected + values.numpy())[MASK.numpy()], rtol=1e-4, atol=1e-5)
    assert returns[~MASK].abs().sum() == 0


def test_lambda_zero_is_one_td_error_and_the_end_is_worth_nothing():
    rewards, values = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[10.0, 20.0, 40.0]])
    advantages, _ = gae(rewards, values, torch.tensor([[True, True, False]]), gamma=0.5, lam=0.0)
    assert advantages.tolist() == [[1 + 0.5 * 20 - 10, 2 + 0 - 20, 0]]


def test_advantages_and_returns_are_those_of_trl_whose_returns_are_not_whitened():
    frozen, arguments = trl_tensors("gae"), TRL["arguments"]
    mask = frozen["mask"]
    advantages, returns = gae(frozen["rewards"], frozen["values"], mask, gamma=arguments["gamma"], lam=arguments["lam"])
    torch.testing.assert_close(masked_whiten(advantages, mask), frozen["whitened_advantages"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(returns, frozen["returns"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(6.0, 0.1), (6.6, 0.1 * 1.01), (60.0, 0.1 * 1.02), (5.4, 0.1 * 0.99), (-3.0, 0.1 * 0.98)],
)
def test_the_adaptive_coefficient_follows_the_kl_by_at_most_a_fifth_per_horizon(kl, expected):
    # 1,000 episodes of a horizon of 10,000: a tenth of the proportional error
    assert adaptive_kl_coef(0.1, kl, target=6.0, episodes=1000, horizon=10_000) == pytest.approx(expected)


@pytest.mark.parametrize("horizon", [1, 10, 12, 64, 10_000])
def test_the_adaptive_coefficient_never_pays_for_leaving_the_reference(horizon):
    low = adaptive_kl_coef(0.1, -50.0, target=2.0, episodes=64, horizon=horizon)
    high = adaptive_kl_coef(0.1, 50.0, target=2.0, episodes=64, horizon=horizon)
    assert 0.08 <= low < 0.1 < high <= 0.12  # a fifth of .1 at most, however many episodes an update has


@pytest.mark.parametrize("kl", [float("nan"), float("inf")])
def test_a_kl_that_was_not_measured_moves_no_price(kl):
    with pytest.raises(WorkbenchError, match=f"measured KL is {kl}"):
        adaptive_kl_coef(0.1, kl, target=2.0, episodes=64, horizon=10_000)


# Without a critic


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
def test_reward_to_go_is_the_discounted_sum_of_what_comes(gamma):
    rewards = randoms(11, outside=float("nan"))
    expected = np.zeros(MASK.shape)
    for row, length in enumerate([6, 3, 1]):
        for start in range(length):
            expected[row, start] = sum(gamma ** (at - start) * rewards[row, at].item() for at in range(start, length))
    found = reward_to_go(rewards, MASK, gamma=gamma)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_returns_of_token_penalties_are_the_score_minus_the_penalty_to_come_and_normalised_over_the_batch():
    kl, scores, kl_coef = randoms(12).numpy(), np.array([2.0, -1.0, 0.5]), 0.3
    rewards = token_rewards(torch.tensor(kl), torch.tensor(scores), MASK, kl_coef=kl_coef)
    found = batch_normalised_returns(rewards, MASK, gamma=1.0)
    lengths = (6, 3, 1)
    places = [(row, start, length) for row, length in enumerate(lengths) for start in range(length)]
    returns = [scores[row] - kl_coef * kl[row, start:length].sum() for row, start, length in places]
    expected = (returns - np.mean(returns)) / np.std(returns, ddof=1)
    np.testing.assert_allclose(found[MASK], expected, rtol=1e-4, atol=1e-6)
    assert found[~MASK].abs().sum() == 0


SCORES = torch.tensor([0.3, -1.2, 2.0, 0.7, 1.0, 1.0, -0.5, 0.1, 5.0, 5.1, 4.9, 90.0])


@pytest.mark.parametrize("group_size", [2, 3, 4, 6, 12])
def test_group_advantages_are_those_of_each_group_by_itself(group_size):
    groups = SCORES.double().numpy().reshape(-1, group_size)
    others = [[np.mean(np.delete(group, one)) for one in range(group_size)] for group in groups]
    means, deviations = groups.mean(1, keepdims=True), groups.std(1, ddof=1, keepdims=True)
    for estimator, expected in (
        (leave_one_out, groups - others),
        (group_centered, groups - means),
        (group_relative, (groups - means) / (deviations + 1e-4)),
    ):
        found = estimator(SCORES, group_size)
        np.testing.assert_allclose(found, expected.flatten(), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.view(-1, group_size).sum(1), 0, atol=1e-4)


@pytest.mark.parametrize("estimator", [leave_one_out, group_centered, group_relative])
@pytest.mark.parametrize("score", [0.1, -3.7e5, 1 / 3])
@pytest.mark.parametrize("group_size", [2, 3, 7])
def test_a_group_of_equal_scores_has_no_advantage_at_all(estimator, score, group_size):
    advantages = estimator(torch.tensor([score] * group_size + [1.0, *[0.0] * (group_size - 1)]), group_size)
    assert advantages[:group_size].tolist() == [0.0] * group_size
    assert advantages[group_size] > 0


def test_only_the_deviation_forgets_the_scale_of_the_scores():
    assert torch.allclose(group_relative(1000 * SCORES, 4), group_relative(SCORES, 4), rtol=1e-3)
    torch.testing.assert_close(group_centered(1000 * SCORES, 4), 1000 * group_centered(SCORES, 4))


@pytest.mark.parametrize("estimator", [leave_one_out, group_centered, group_relative])
@pytest.mark.parametrize(
    ("group_size", "sentence"),
    [
        (1, "group_size is 1: give at least 2"),
        (0, "group_size is 0: give at least 2"),
        (5, "There are 12 scores but group_size is 5: give a multiple"),
    ],
)
def test_scores_that_are_no_groups_are_refused(estimator, group_size, sentence):
    with pytest.raises(WorkbenchError, match=sentence):
        estimator(SCORES, group_size)
