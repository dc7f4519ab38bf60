"""Policy objectives and KL estimates against enumeration, hand arithmetic, scipy and TRL's own numbers."""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles.tiny_llama import waved_llama_with_padding
from scipy import special, stats

from workbench.losses.advantages import group_centered, group_relative, leave_one_out, masked_mean
from workbench.losses.policy import (
    clipped_surrogate_loss,
    clipped_value_loss,
    clipped_weight_loss,
    entropy,
    exact_kl,
    kl_k1,
    kl_k2,
    kl_k3,
    kl_k3_weighted,
    kl_penalised_surrogate_loss,
    policy_gradient_loss,
    sequence_ratio_loss,
)
from workbench.losses.reductions import completion_means, constant_length, sequence_mean
from workbench.models.scoring import completion_logprobs
from workbench.models.tokens import collate

ORACLES = Path(__file__).parent / "oracles"
TRL = json.loads((ORACLES / "trl_ppo.json").read_text())
TRL_POLICY = json.loads((ORACLES / "trl_policy.json").read_text())
SAMPLES = {name: torch.tensor(value) for name, value in TRL_POLICY["samples"].items()}
INF = math.inf


def trl_tensors(section: str) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in TRL[section].items()}


def random_logits(seed: int, shape=(3, 4, 7)) -> torch.Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


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
    policy = (frozen[name] for name in ("logprobs", "old_logprobs", "advantages"))
    value = (frozen[name] for name in ("values", "old_values", "returns"))
    policy = clipped_surrogate_loss(*policy, cliprange=arguments["cliprange"])
    value = clipped_value_loss(*value, cliprange_value=arguments["cliprange_value"])
    for losses, theirs in ((policy, "policy_loss"), (value, "value_loss")):
        torch.testing.assert_close(losses[frozen["mask"]].mean(), frozen[theirs], rtol=1e-5, atol=1e-7)


def test_the_value_loss_stops_its_gradient_once_the_value_went_far_enough_towards_the_return():
    old, returns = torch.zeros(1, 3), torch.tensor([[1.0, 1.0, 1.0]])
    values = torch.tensor([[0.1, 0.5, -0.5]], requires_grad=True)  # inside, beyond it, beyond it the wrong way
    losses = clipped_value_loss(values, old, returns, cliprange_value=0.2)
    losses.sum().backward()
    assert losses.tolist()[0] == pytest.approx([0.5 * 0.9**2, 0.5 * 0.8**2, 0.5 * 1.5**2])
    assert values.grad.tolist()[0] == pytest.approx([-0.9, 0.0, -1.5])


# Infinities


@pytest.mark.parametrize(
    ("logprob", "old_logprob", "advantage", "expected", "slope"),
    [
        (-1.0, -500.0, 2.0, -2.0 * 1.2, 0.0),  # the ratio overflows, but the clip holds it
        (-1.0, -INF, 2.0, -2.0 * 1.2, 0.0),
        (-1.0, -INF, 0.0, 0.0, 0.0),
        (-500.0, -1.0, 2.0, 0.0, 0.0),  # the ratio underflows
        (-INF, -1.0, 2.0, 0.0, 0.0),
        (-INF, -1.0, -2.0, 2.0 * 0.8, 0.0),
        (-INF, -INF, 2.0, -2.0, 0.0),  # impossible before and after: nothing moved
    ],
)
def test_a_ratio_out_of_range_has_a_finite_clipped_loss_and_gradient(logprob, old_logprob, advantage, expected, slope):
    logprobs = torch.tensor([[logprob]], requires_grad=True)
    loss = clipped_surrogate_loss(logprobs, torch.tensor([[old_logprob]]), torch.tensor([[advantage]]))
    loss.sum().backward()
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert logprobs.grad.item() == slope


def test_a_ratio_that_overflows_against_its_advantage_costs_infinitely_much_and_is_no_nan():
    logprobs, old, mask = torch.tensor([[-1.0]]), torch.tensor([[-500.0]]), torch.tensor([[True]])
    assert clipped_surrogate_loss(logprobs, old, torch.tensor([[-1.0]])).item() == INF
    assert sequence_ratio_loss(logprobs, old, torch.tensor([[-1.0]]), mask).item() == INF


def test_a_completion_that_became_impossible_has_ratio_zero_and_no_gradient():
    logprobs = torch.tensor([[-1.0, -INF]] * 2, requires_grad=True)
    advantages = torch.tensor([[2.0, 2.0], [-2.0, -2.0]])
    loss = sequence_ratio_loss(logprobs, -torch.ones(2, 2), advantages, torch.ones(2, 2).bool(), cliprange=0.1)
    loss.sum().backward()
    np.testing.assert_allclose(loss.detach(), [[0, 0], [1.8, 1.8]], rtol=1e-6)
    assert torch.equal(logprobs.grad, torch.zeros(2, 2))


def test_a_token_without_advantage_costs_nothing_even_where_it_is_impossible():
    logprobs = torch.tensor([[-INF, -3.0, -INF]], requires_grad=True)
    loss = policy_gradient_loss(logprobs, torch.tensor([[0.0, 2.0, 1.0]]))
    assert loss.tolist() == [[0.0, 6.0, INF]]
    loss[:, :2].sum().backward()
    assert logprobs.grad.tolist() == [[0.0, -2.0, 0.0]]


@pytest.mark.parametrize(
    ("logprob", "reference", "k1", "k2", "k3"),
    [
        (-1.0, -INF, INF, INF, INF),
        (-INF, -1.0, -INF, INF, INF),
        (-INF, -INF, 0.0, 0.0, 0.0),
        (-200.0, -1.0, -199.0, 19800.5, INF),
    ],
)
def test_kl_estimates_of_impossible_tokens_are_limits(logprob, reference, k1, k2, k3):
    pair = torch.tensor([[logprob]]), torch.tensor([[reference]])
    assert [estimate(*pair).item() for estimate in (kl_k1, kl_k2, kl_k3)] == [k1, k2, k3]


# The policy gradient, by enumeration. A policy over texts of at most three tokens out of EOS, a and b: a row of
# logits per text so far, and the parameters are these logits.

PREFIXES = ["", "a", "b", "aa", "ab", "ba", "bb"]
TEXTS = ["E", "aE", "bE", *(first + second + last for first in "ab" for second in "ab" for last in "Eab")]
REWARDS = torch.randn(len(TEXTS), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
MASK = torch.tensor([[position < len(text) for position in range(3)] for text in TEXTS])


def text_logprobs(parameters: torch.Tensor) -> torch.Tensor:
    """Log-probability of every token of every text, (texts, 3), NaN where a text has ended."""
    table, rows = parameters.log_softmax(-1), torch.full((len(TEXTS), 3), math.nan, dtype=parameters.dtype)
    places = [
        (row, at, PREFIXES.index(text[:at]), "Eab".index(text[at]))
        for row, text in enumerate(TEXTS)
        for at in range(len(text))
    ]
    row, at, prefix, token = torch.tensor(places).T
    return rows.index_put((row, at), table[prefix, token])


def text_chances(parameters: torch.Tensor) -> torch.Tensor:
    """Probability of every text, (texts,)."""
    return torch.where(MASK, text_logprobs(parameters), 0).sum(1).exp()


def policy_parameters(seed: int) -> torch.Tensor:
    return torch.randn(len(PREFIXES), 3, generator=torch.Generator().manual_seed(seed)).double().requires_grad_()


def gradient(value: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(value, parameters)[0]


def expected_reward_gradient(parameters: torch.Tensor) -> torch.Tensor:
    """Of the sum over all texts of probability times reward."""
    return gradient((text_chances(parameters) * REWARDS).sum(), parameters)


def expected_loss_gradient(losses: torch.Tensor, parameters: torch.Tensor, sampler: torch.Tensor) -> torch.Tensor:
    """Mean gradient of the texts' summed token losses over samples of the policy with parameters `sampler`."""
    sums = torch.where(MASK, losses, 0).sum(1)
    return gradient((text_chances(sampler).detach() * sums).sum(), parameters)


def test_the_texts_are_all_there_are():
    assert text_chances(policy_parameters(0)).sum().item() == pytest.approx(1, abs=1e-12)


BEFORE_IT_MOVED = {
    "reinforce": lambda logprobs, advantages: policy_gradient_loss(logprobs, advantages),
    "reinforce, baseline": lambda logprobs, advantages: policy_gradient_loss(logprobs, advantages - 5.0),
    "clipped": lambda logprobs, advantages: clipped_surrogate_loss(logprobs, logprobs.detach(), advantages),
    "clipped weight": lambda logprobs, advantages: clipped_weight_loss(
        logprobs, logprobs.detach(), advantages, cliprange=1.0, cliprange_high=4.0
    ),
    "penalised": lambda logprobs, advantages: kl_penalised_surrogate_loss(
        logprobs, logprobs.detach(), advantages, beta=0.7
    ),
}


@pytest.mark.parametrize("loss", BEFORE_IT_MOVED)
@pytest.mark.parametrize("seed", [0, 1])
def test_before_the_policy_moved_a_loss_has_the_gradient_of_the_expected_reward_whatever_the_baseline(loss, seed):
    parameters = policy_parameters(seed)
    losses = BEFORE_IT_MOVED[loss](text_logprobs(parameters), REWARDS[:, None].expand(-1, 3))
    found = expected_loss_gradient(losses, parameters, parameters)
    torch.testing.assert_close(found, -expected_reward_gradient(parameters), rtol=1e-9, atol=1e-12)


def test_the_sum_per_completion_keeps_the_direction_of_the_reward_and_the_mean_per_completion_does_not():
    parameters = policy_parameters(2)
    exact = -expected_reward_gradient(parameters)

    def found(aggregate):
        losses = policy_gradient_loss(text_logprobs(parameters), REWARDS[:, None].expand(-1, 3))
        one_by_one = [aggregate(losses[[i]], MASK[[i]]) for i in range(len(TEXTS))]
        return gradient((text_chances(parameters).detach() * torch.stack(one_by_one)).sum(), parameters)

    torch.testing.assert_close(found(partial(constant_length, length=1)), exact, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found(partial(constant_length, length=40)), exact / 40, rtol=1e-9, atol=1e-12)
    mean = found(sequence_mean)
    assert torch.cosine_similarity(mean.flatten(), exact.flatten(), dim=0) < 0.99


def test_advantages_within_a_group_have_the_gradient_of_the_expected_reward_over_all_pairs_of_samples():
    parameters = policy_parameters(4)
    exact = -expected_reward_gradient(parameters)
    chances = text_chances(parameters).detach()
    pairs = torch.cartesian_prod(torch.arange(len(TEXTS)), torch.arange(len(TEXTS))).flatten()
    chance = (chances[:, None] * chances[None]).flatten()
    for estimator, share in ((leave_one_out, 1.0), (group_centered, 1 / 2)):  # the centred one is (G - 1) / G of it
        advantages = estimator(REWARDS[pairs], 2)[:, None].expand(-1, 3)
        losses = policy_gradient_loss(text_logprobs(parameters)[pairs], advantages)
        per_pair = torch.where(MASK[pairs], losses, 0).sum(1).view(-1, 2).mean(1)
        found = gradient((chance * per_pair).sum(), parameters)
        torch.testing.assert_close(found, share * exact, rtol=1e-9, atol=1e-12)


def test_samples_of_an_older_policy_weighted_by_the_ratio_of_texts_give_the_expected_reward_of_the_new_one():
    new, old = policy_parameters(5), policy_parameters(6)
    sums = [torch.where(MASK, text_logprobs(parameters), 0).sum(1) for parameters in (new, old)]
    losses = clipped_surrogate_loss(sums[0], sums[1].detach(), REWARDS, cliprange=1.0, cliprange_high=1e9)
    found = (text_chances(old).detach() * losses).sum()
    assert found.item() == pytest.approx(-(text_chances(new) * REWARDS).sum().item(), rel=1e-9)
    torch.testing.assert_close(gradient(found, new), -expected_reward_gradient(new), rtol=1e-9, atol=1e-12)


def test_the_clipped_surrogate_never_promises_more_than_the_free_one():
    logprobs, old, advantages = random_logits(20), random_logits(21), random_logits(22)
    free = -advantages * (logprobs - old).exp()
    clipped = clipped_surrogate_loss(logprobs, old, advantages, cliprange=0.1, cliprange_high=0.3)
    assert (clipped >= free * (1 - 1e-6 * free.sign())).all()
    inside = ((logprobs - old).exp() - 1.1).abs() < 0.2
    torch.testing.assert_close(clipped[inside], free[inside])


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_clipped_weight_keeps_the_gradient_of_every_token_where_a_clipped_ratio_drops_it(advantage):
    ratios = torch.tensor([[0.5, 1.0, 3.0, 20.0]]).double()
    logprobs, old = (ratios.log() - 4).requires_grad_(), torch.full((1, 4), -4.0).double()
    advantages = torch.full((1, 4), advantage).double()
    given = {"cliprange": 1.0, "cliprange_high": 4.0}  # the weight is at most 5, and free below
    clipped_weight_loss(logprobs, old, advantages, **given).sum().backward()
    # weight times the gradient of the log-probability, which is 1 for the token's own
    assert logprobs.grad.tolist()[0] == pytest.approx([-advantage * weight for weight in (0.5, 1.0, 3.0, 5.0)])
    free = torch.autograd.grad((-advantages * (logprobs - old).exp()).sum(), logprobs)[0]
    torch.testing.assert_close(logprobs.grad[:, :3], free[:, :3])  # in range: that of the ratio, whose slope it is


def test_a_clipped_weight_of_a_token_that_was_given_up_is_0_and_of_one_out_of_float_range_the_highest():
    logprobs = torch.tensor([[-INF, -1.0]], requires_grad=True)
    loss = clipped_weight_loss(
        logprobs, torch.tensor([[-1.0, -500.0]]), torch.ones(1, 2), cliprange=1.0, cliprange_high=4
    )
    loss.sum().backward()
    assert loss.tolist()[0] == pytest.approx([0.0, 5.0])  # ratio times its log goes to 0; 5 times 1 nat
    assert logprobs.grad.tolist()[0] == pytest.approx([0.0, -5.0])


def test_the_penalised_surrogate_subtracts_the_kl_of_the_old_policy_from_the_new():
    new, old = (random_logits(seed, (7,)).double() for seed in (23, 24))
    new.requires_grad_()
    advantages, beta = random_logits(25, (7,)).double(), 0.6
    chance = old.softmax(-1)
    losses = kl_penalised_surrogate_loss(new.log_softmax(-1), old.log_softmax(-1), advantages, beta=beta)
    kl = torch.nn.functional.kl_div(new.log_softmax(-1), chance, reduction="sum")  # KL(old || new)
    exact = beta * kl - (new.softmax(-1) * advantages).sum()
    torch.testing.assert_close((chance * losses).sum(), exact, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient((chance * losses).sum(), new), gradient(exact, new), rtol=1e-9, atol=1e-12)


# One ratio per completion


def test_the_sequence_ratio_is_the_root_of_the_ratio_of_the_texts_probabilities_and_so_is_its_gradient():
    new, old = policy_parameters(7), policy_parameters(8)
    lengths = MASK.sum(1).double()
    given = text_logprobs(new), text_logprobs(old).detach(), REWARDS[:, None].expand(-1, 3), MASK
    losses = sequence_ratio_loss(*given, cliprange=1.0, cliprange_high=1e9)
    roots = (text_chances(new) / text_chances(old)) ** (1 / lengths)
    expected = -(REWARDS * roots)
    torch.testing.assert_close(losses[MASK], expected[:, None].expand(-1, 3)[MASK], rtol=1e-9, atol=1e-12)
    found = gradient(sequence_mean(losses, MASK), new)
    # Zheng et al. 2025, eq. 10: ratio times advantage times the mean gradient of the token log-probabilities
    weights = (REWARDS * roots / lengths).detach()
    by_hand = -(weights * torch.where(MASK, text_logprobs(new), 0).sum(1)).mean()
    torch.testing.assert_close(found, gradient(by_hand, new), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"), [(1.5, 1.0, False), (1.5, -1.0, True), (0.5, 1.0, True), (0.5, -1.0, False)]
)
def test_the_clip_stops_whole_completions(ratio, advantage, moves):
    logprobs = torch.tensor([[0.0, 2 * math.log(ratio), 9.0]], requires_grad=True)  # mean log ratio over two tokens
    mask = torch.tensor([[True, True, False]])
    losses = sequence_ratio_loss(logprobs, torch.zeros(1, 3), torch.full((1, 3), advantage), mask, cliprange=0.2)
    sequence_mean(losses, mask).backward()
    expected = -advantage * ratio / 2 if moves else 0.0
    assert logprobs.grad.tolist()[0] == pytest.approx([expected, expected, 0.0], rel=1e-5)


# From tokens to a batch


@pytest.mark.parametrize("outside", [0.0, math.nan])
def test_three_ways_to_weigh_completions_of_three_and_one_tokens(outside):
    values = torch.tensor([[1.0, 2.0, 6.0, outside], [5.0, outside, outside, outside]])
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    assert completion_means(values, mask).tolist() == [3.0, 5.0]
    assert masked_mean(values, mask).item() == pytest.approx(14 / 4)
    assert sequence_mean(values, mask).item() == pytest.approx((3 + 5) / 2)
    assert constant_length(values, mask, length=4).item() == pytest.approx(14 / (2 * 4))


def test_a_completion_without_tokens_weighs_nothing_and_is_no_nan():
    values, mask = torch.full((2, 3), math.nan), torch.tensor([[False] * 3] * 2)
    assert completion_means(values, mask).tolist() == [0.0, 0.0]
    assert constant_length(values, mask, length=3).item() == 0.0


def test_the_token_mean_of_a_batch_is_the_mean_of_its_mini_batches_at_the_batchs_mean_length():
    values, mask = random_logits(30)[..., 0], torch.arange(4) < torch.tensor([[4], [2], [1]])
    length = mask.sum().item() / len(mask)
    parts = [constant_length(values[[i]], mask[[i]], length=length) for i in range(3)]
    torch.testing.assert_close(torch.stack(parts).mean(), masked_mean(values, mask))


# TRL's GRPO and RLOO trainers


def surrogate(case: str, logprobs: torch.Tensor, rows: slice) -> torch.Tensor:
    """Our loss on TRL's samples with TRL's settings."""
    settings = TRL_POLICY[case]["settings"]
    clip = {"cliprange": settings["epsilon"], "cliprange_high": settings.get("epsilon_high")}
    old, mask = SAMPLES["old_logprobs"][rows], SAMPLES["mask"][rows]
    advantages = torch.tensor(TRL_POLICY[case]["advantages"])[rows]
    if case.startswith("rloo"):
        sums = (torch.where(mask, values, 0).sum(1) for values in (logprobs, old))
        return clipped_surrogate_loss(*sums, advantages, **clip).mean()
    per_token = advantages[:, None].expand_as(logprobs)
    if case == "gspo":
        return sequence_mean(sequence_ratio_loss(logprobs, old, per_token, mask, **clip), mask)
    losses = clipped_surrogate_loss(logprobs, old, per_token, **clip)
    reference = SAMPLES["reference_logprobs"][rows]
    weighted = case == "grpo_with_weighted_kl"
    kl = kl_k3_weighted(logprobs, old, reference) if weighted else kl_k3(logprobs, reference)
    losses = losses + settings.get("beta", 0.0) * kl
    longest, mean = settings["max_completion_length"], SAMPLES["mask"].sum().item() / len(SAMPLES["mask"])
    aggregate = {
        "grpo": sequence_mean,
        "bnpo": masked_mean,
        "dapo": masked_mean,
        "dr_grpo": partial(constant_length, length=longest),
        "dapo_mini_batch": partial(constant_length, length=mean),
    }
    return aggregate[case.removesuffix("_with_kl").removesuffix("_with_weighted_kl")](losses, mask)


CASES = [name for name in TRL_POLICY if "loss" in TRL_POLICY[name]]


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_trls_trainer(case):
    frozen = TRL_POLICY[case]
    theirs = torch.tensor(frozen["gradient"])
    rows = slice(len(theirs))
    logprobs = SAMPLES["logprobs"][rows].clone().requires_grad_()
    loss = surrogate(case, logprobs, rows)
    loss.backward()
    torch.testing.assert_close(loss.item(), frozen["loss"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(logprobs.grad, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_advantages_are_those_of_trls_trainer(case):
    scores, settings = torch.tensor(TRL_POLICY["inputs"]["scores"]), TRL_POLICY[case]["settings"]
    estimator = group_centered if settings.get("scale_rewards") == "none" else group_relative
    if case.startswith("rloo"):
        estimator = leave_one_out
        kl = kl_k1(SAMPLES["old_logprobs"], SAMPLES["reference_logprobs"])
        scores = scores - settings["beta"] * torch.where(SAMPLES["mask"], kl, 0).sum(1)
    ours = estimator(scores, TRL_POLICY["inputs"]["group_size"])
    torch.testing.assert_close(ours, torch.tensor(TRL_POLICY[case]["advantages"]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("case", "estimate", "when"), [("grpo_with_kl", kl_k3, "logprobs"), ("rloo_with_kl", kl_k1, "old_logprobs")]
)
def test_the_mean_kl_is_that_of_trls_trainer(case, estimate, when):
    kl = masked_mean(estimate(SAMPLES[when], SAMPLES["reference_logprobs"]), SAMPLES["mask"])
    assert kl.item() == pytest.approx(TRL_POLICY[case]["kl"], rel=1e-5)


@pytest.mark.parametrize("case", ["grpo", "dapo"])
def test_as_many_tokens_are_clipped_as_in_trls_trainer(case):
    logprobs, mask = SAMPLES["logprobs"].clone().requires_grad_(), SAMPLES["mask"]
    surrogate(case, logprobs, slice(None)).backward()
    weighs = torch.tensor(TRL_POLICY[case]["advantages"])[:, None] != 0
    stopped = masked_mean(((logprobs.grad == 0) & weighs).float(), mask).item()
    theirs = TRL_POLICY[case]["clip_ratio/low_mean"] + TRL_POLICY[case]["clip_ratio/high_mean"]
    assert stopped == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_from_tokens_to_the_gradient_of_the_weights_all_is_as_in_trls_trainer(case):
    inputs, frozen = TRL_POLICY["inputs"], TRL_POLICY[case]
    rows = slice(len(frozen["gradient"]))
    model = waved_llama_with_padding(inputs["phase"])
    sequences = collate(inputs["prompt_ids"][rows], inputs["completion_ids"][rows], pad_id=10)
    logprobs = completion_logprobs(model, sequences, temperature=frozen["settings"]["temperature"])
    surrogate(case, logprobs, rows).backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
    assert norm.item() == pytest.approx(frozen["gradient_norm"], rel=1e-5)


# KL and entropy


def test_exact_kl_is_scipys_relative_entropy_of_the_policy_from_the_reference():
    logits, reference = random_logits(0), random_logits(1)
    policy, other = (special.softmax(tensor.double().numpy(), -1) for tensor in (logits, reference))
    expected = special.rel_entr(policy, other).sum(-1)
    np.testing.assert_allclose(exact_kl(logits, reference), expected, rtol=1e-5)
    assert not np.allclose(expected, special.rel_entr(other, policy).sum(-1), rtol=0.05)  # the other side differs


def every_token(seed: int, *, closeness: float = 1.0):
    """Log-probabilities of every token under a policy and a reference, both (12, 7), the policy's as parameters."""
    logits = random_logits(seed, (12, 7)).double()
    reference = logits + closeness * random_logits(seed + 1, (12, 7)).double()
    return logits.log_softmax(-1).requires_grad_(), reference.log_softmax(-1)


def expectation(estimate, logprobs, reference) -> torch.Tensor:
    """Exact mean of an estimate over tokens of the policy, (12,)."""
    return (logprobs.exp().detach() * estimate(logprobs, reference)).sum(-1)


def relative_entropy(logprobs, other) -> np.ndarray:
    return special.rel_entr(logprobs.detach().exp().numpy(), other.detach().exp().numpy()).sum(-1)


@pytest.mark.parametrize("estimate", [kl_k1, kl_k3])
def test_the_expectation_under_the_policy_is_the_exact_kl(estimate):
    logprobs, reference = every_token(40)
    found = expectation(estimate, logprobs, reference).detach()
    np.testing.assert_allclose(found, relative_entropy(logprobs, reference), rtol=1e-9, atol=1e-12)


def test_k2_is_biased_by_the_third_order_of_the_difference():
    biases = []
    for closeness in (0.04, 0.02):
        logprobs, reference = every_token(42, closeness=closeness)
        found = expectation(kl_k2, logprobs, reference).detach().numpy()
        biases.append(np.abs(found - relative_entropy(logprobs, reference)).sum())
    assert biases[0] / biases[1] == pytest.approx(8, rel=0.1)  # half the difference, an eighth of the bias
    logprobs, reference = every_token(42)
    far = expectation(kl_k2, logprobs, reference).detach().numpy() / relative_entropy(logprobs, reference)
    assert far.max() > 1.2


def test_k1_has_both_signs_and_k2_and_k3_have_one():
    logprobs, reference = every_token(44)
    assert (kl_k1(logprobs, reference) < 0).any()
    assert (kl_k2(logprobs, reference) >= 0).all()
    assert (kl_k3(logprobs, reference) >= 0).all()
    assert torch.equal(kl_k3(reference, reference), torch.zeros(12, 7).double())


def test_k3_varies_less_than_k1_near_the_reference():
    logprobs, reference = every_token(46, closeness=0.1)
    chance, exact = logprobs.exp(), torch.tensor(relative_entropy(logprobs, reference))[:, None]
    variances = [(chance * (estimate(logprobs, reference) - exact).square()).sum() for estimate in (kl_k1, kl_k3)]
    assert variances[1] < 0.05 * variances[0]


def test_as_a_loss_k1_has_no_gradient_k2_that_of_the_kl_and_k3_that_of_the_kl_the_other_way_round():
    parameters, (_, reference) = random_logits(48, (12, 7)).double().requires_grad_(), every_token(49)
    logprobs = parameters.log_softmax(-1)
    forwards = gradient((logprobs.exp() * (logprobs - reference)).sum(), parameters)
    backwards = gradient((reference.exp() * (reference - parameters.log_softmax(-1))).sum(), parameters)
    for estimate, exact in ((kl_k1, 0 * forwards), (kl_k2, forwards), (kl_k3, backwards)):
        found = gradient(expectation(estimate, parameters.log_softmax(-1), reference).sum(), parameters)
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("moved", [0.0, 0.7])
def test_weighted_k3_has_the_value_and_the_gradient_of_the_kl_wherever_the_policy_went_since_it_sampled(moved):
    _, reference = every_token(49)
    old = random_logits(50, (12, 7)).double()
    parameters = (old + moved * random_logits(51, (12, 7))).requires_grad_()
    old = old.log_softmax(-1)
    exact = (parameters.softmax(-1) * (parameters.log_softmax(-1) - reference)).sum()
    found = (old.exp() * kl_k3_weighted(parameters.log_softmax(-1), old, reference)).sum()
    assert found.item() == pytest.approx(exact.item(), rel=1e-12)
    torch.testing.assert_close(gradient(found, parameters), gradient(exact, parameters), rtol=1e-9, atol=1e-12)


def test_weighted_k3_of_a_token_that_was_given_up_is_its_limit_and_of_one_that_the_reference_excludes_infinite():
    logprobs = torch.tensor([-INF, -1e4, -40.0], dtype=torch.double, requires_grad=True)
    old, reference = torch.full((3,), -1.0).double(), torch.full((3,), -2.0).double()
    costs = kl_k3_weighted(logprobs, old, reference)
    np.testing.assert_allclose(costs.detach(), math.exp(-1), rtol=1e-12)  # reference / old
    costs.sum().backward()
    assert logprobs.grad.isfinite().all()
    assert kl_k3_weighted(old, old, -INF * torch.ones(3)).tolist() == [INF] * 3


def test_entropy_is_scipys():
    logits = random_logits(4)
    expected = stats.entropy(special.softmax(logits.double().numpy(), -1), axis=-1)
    np.testing.assert_allclose(entropy(logits), expected, rtol=1e-5)


@pytest.mark.parametrize("impossible", [-1e9, -INF])
def test_an_impossible_token_changes_nothing_and_makes_no_nan(impossible):
    logits, reference = random_logits(5), random_logits(6)
    kept = [0, 1, 3, 4, 5, 6]
    for function, others in ((exact_kl, (reference,)), (entropy, ())):
        without = logits[..., kept].clone().requires_grad_()
        expected = function(without, *(other[..., kept] for other in others))
        banned = logits.clone()
        banned[..., 2] = impossible
        banned.requires_grad_()
        references = [other.clone().index_fill(-1, torch.tensor([2]), impossible) for other in others]
        found = function(banned, *references)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(gradient(found.sum(), banned)[..., kept], gradient(expected.sum(), without))


def test_the_kl_from_a_reference_that_excludes_what_the_policy_says_is_infinite():
    reference = random_logits(6).index_fill(-1, torch.tensor([2]), -INF)
    assert (exact_kl(random_logits(5), reference) == INF).all()
    assert torch.isfinite(exact_kl(reference, random_logits(5))).all()


def test_kl_and_entropy_of_half_precision_logits_are_in_fp32():
    logits, reference = random_logits(7).bfloat16(), random_logits(8).bfloat16()
    wide = logits.double().numpy(), reference.double().numpy()
    expected = special.rel_entr(special.softmax(wide[0], -1), special.softmax(wide[1], -1)).sum(-1)
    kl = exact_kl(logits, reference)
    assert kl.dtype == entropy(logits).dtype == torch.float32
    np.testing.assert_allclose(kl, expected, rtol=1e-5)
    np.testing.assert_allclose(entropy(logits), stats.entropy(special.softmax(wide[0], -1), axis=-1), rtol=1e-5)
