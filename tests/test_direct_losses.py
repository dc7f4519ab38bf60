"""Direct alignment objectives against TRL's numbers, hand arithmetic in forty digits, closed forms and enumeration."""

import inspect
import itertools
import json
import math
from decimal import Decimal
from pathlib import Path

import pytest
import torch

from workbench.losses import direct

TRL = json.loads((Path(__file__).parent / "oracles" / "trl_direct.json").read_text())
BETA = {"beta": 0.5}
PAIR_LOSSES = {
    **dict.fromkeys(
        ("dpo_loss", "ipo_loss", "ipo_normalised_loss", "hinge_loss", "apo_zero_loss", "apo_down_loss"), BETA
    ),
    **dict.fromkeys(("forward_kl_dpo_loss", "jensen_shannon_dpo_loss", "cpo_loss"), BETA),
    "conservative_dpo_loss": {"beta": 0.5, "label_smoothing": 0.2},
    "robust_dpo_loss": {"beta": 0.5, "label_smoothing": 0.2},
    "alpha_dpo_loss": {"beta": 0.5, "alpha": 0.3},
    "simpo_loss": {"beta": 2.0, "gamma": 0.7},
    "orpo_loss": {"beta": 0.4},
    "slic_loss": {"delta": 1.0},
    "nll_loss": {},
    "xpo_loss": {"beta": 0.5, "alpha": 0.2},
}
EVERY_PAIR_LOSS = [pytest.param(vars(direct)[name], row, id=name) for name, row in PAIR_LOSSES.items()]


def inputs_of(loss, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those tensors that the loss takes."""
    return {name: tensors[name] for name in inspect.signature(loss).parameters if name in tensors}


def pair(chosen: float, rejected: float, reference_chosen: float = 0.0, reference_rejected: float = 0.0):
    """The tensors of one pair of 2 and 3 tokens, its policy log-probabilities with gradients."""
    chosen_logprobs = torch.tensor([chosen], requires_grad=True)
    return {
        "chosen_logprobs": chosen_logprobs,
        "rejected_logprobs": torch.tensor([rejected], requires_grad=True),
        "reference_chosen_logprobs": torch.tensor([reference_chosen]),
        "reference_rejected_logprobs": torch.tensor([reference_rejected]),
        "chosen_lengths": torch.tensor([2]),
        "rejected_lengths": torch.tensor([3]),
    } | {"rival_logprobs": chosen_logprobs}


def negative_log_sigmoid(x: str) -> float:
    """In forty digits."""
    return float((1 + (-Decimal(x)).exp()).ln())


# TRL's own numbers


@pytest.mark.parametrize("name", TRL["losses"])
def test_losses_and_gradients_of_pairs_are_those_of_trl(name):
    frozen = TRL["losses"][name]
    loss = vars(direct)[name]
    tensors = {key: torch.tensor(value) for key, value in TRL["logprobs"].items()}
    policy = [tensors[key].requires_grad_() for key in ("chosen_logprobs", "rejected_logprobs")]
    theirs = {"simpo_gamma": "gamma", "f_alpha_divergence_coef": "alpha"}
    settings = {theirs.get(key, key): value for key, value in frozen["settings"].items()}
    taken = {key: settings[key] for key in inspect.signature(loss).parameters if key in settings}
    values = loss(**inputs_of(loss, tensors), **taken)
    torch.testing.assert_close(values, torch.tensor(frozen["values"]), rtol=1e-5, atol=1e-7)
    if "gradients" in frozen:  # the trainers whose methods take log-probabilities give none
        values.sum().backward()
        gradients = torch.stack([side.grad for side in policy], 1)
        torch.testing.assert_close(gradients, torch.tensor(frozen["gradients"]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", ["above", "below"])
def test_losses_gradients_and_reference_point_of_labelled_completions_are_those_of_trl(case):
    frozen, mismatched = TRL["kto"][case], TRL["kto"]["mismatched"][case]
    point = direct.kto_reference_point(**{name: torch.tensor(value) for name, value in mismatched.items()})
    assert point.item() == pytest.approx(frozen["reference_point"], rel=1e-6)
    sides = [[*TRL["logprobs"][f"{part}chosen_logprobs"], *TRL["logprobs"][f"{part}rejected_logprobs"]]
             for part in ("", "reference_")]  # fmt: skip
    logprobs, reference = torch.tensor(sides[0], requires_grad=True), torch.tensor(sides[1])
    desirable = torch.arange(len(logprobs)) < len(logprobs) // 2
    values = direct.kto_loss(logprobs, reference, desirable, point, **TRL["kto"]["settings"])
    values.sum().backward()
    torch.testing.assert_close(values, torch.tensor(frozen["values"]), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(logprobs.grad, torch.tensor(frozen["gradients"]), rtol=1e-5, atol=1e-7)


# Hand arithmetic and closed forms


def test_dpo_starts_at_log_two():
    logprobs = torch.tensor([-3.0, -40.0]), torch.tensor([-5.0, -1.0])
    loss = direct.dpo_loss(*logprobs, *logprobs, beta=0.7)
    assert loss.tolist() == pytest.approx([math.log(2)] * 2, rel=1e-6)


def test_dpo_of_a_hand_example():
    # chosen -4 vs -6 under the reference: +2; rejected -9 vs -8: -1; difference 3, times beta .1 = .3
    # chosen -7 vs -5: -2; rejected -3 vs -6: +3; difference -5, times .1 = -.5
    loss = direct.dpo_loss(*torch.tensor([[-4.0, -7.0], [-9.0, -3.0], [-6.0, -5.0], [-8.0, -6.0]]), beta=0.1)
    assert loss.tolist() == pytest.approx([negative_log_sigmoid("0.3"), negative_log_sigmoid("-0.5")], rel=1e-5)


def test_hopeless_pairs_have_a_finite_loss_and_gradient():
    chosen = torch.tensor([-500.0, 500.0], requires_grad=True)
    values = direct.dpo_loss(chosen, torch.zeros(2), torch.zeros(2), torch.zeros(2), beta=1.0)
    values.sum().backward()
    assert values.tolist() == pytest.approx([500.0, 0.0])
    assert chosen.grad.tolist() == pytest.approx([-1.0, 0.0])


@pytest.mark.parametrize("label_smoothing", [0.1, 0.4])
def test_conservative_dpo_rests_where_the_implied_probability_is_that_of_a_right_label(label_smoothing):
    margin = math.log((1 - label_smoothing) / label_smoothing) / 0.3  # sigma(.3 margin) = 1 - label_smoothing
    tensors = pair(-6.0 + margin, -9.0, -6.0, -9.0)
    loss = direct.conservative_dpo_loss
    values = loss(**inputs_of(loss, tensors), beta=0.3, label_smoothing=label_smoothing)
    values.backward()
    assert tensors["chosen_logprobs"].grad.item() == pytest.approx(0, abs=1e-7)
    entropy = -sum(p * math.log(p) for p in (label_smoothing, 1 - label_smoothing))
    assert values.item() == pytest.approx(entropy, rel=1e-6)  # what cross-entropy with the right chance comes to


@pytest.mark.parametrize("label_smoothing", [0.05, 0.3, 0.45])
def test_robust_dpo_is_dpo_on_average_over_flipped_labels(label_smoothing):
    sides = (torch.tensor([-4.0, -7.0]), torch.tensor([-6.0, -5.0])), (torch.tensor([-9.0, -3.0]), torch.zeros(2) - 8)
    expected = torch.zeros(2)
    for flipped, chance in ((False, 1 - label_smoothing), (True, label_smoothing)):
        (chosen, reference_chosen), (rejected, reference_rejected) = reversed(sides) if flipped else sides
        logprobs = chosen, rejected, reference_chosen, reference_rejected
        expected += chance * direct.robust_dpo_loss(*logprobs, beta=0.3, label_smoothing=label_smoothing)
    (chosen, reference_chosen), (rejected, reference_rejected) = sides
    clean = direct.dpo_loss(chosen, rejected, reference_chosen, reference_rejected, beta=0.3)
    torch.testing.assert_close(expected, clean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("preference", [1.0, 0.75, 0.5])
@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_ipos_optimum_is_a_margin_of_one_over_two_beta_times_how_sure_the_label_is(preference, beta):
    margin = (2 * preference - 1) / (2 * beta)
    tensors = pair(-6.0 + margin, -9.0, -6.0, -9.0)
    stated = inputs_of(direct.ipo_loss, tensors)
    flipped = {name: tensors[swapped(name)] for name in stated}
    losses = [direct.ipo_loss(**arguments, beta=beta) for arguments in (stated, flipped)]
    (preference * losses[0] + (1 - preference) * losses[1]).backward()
    assert tensors["chosen_logprobs"].grad.item() == pytest.approx(0, abs=1e-5)
    assert losses[0].item() == pytest.approx((margin - 1 / (2 * beta)) ** 2, rel=1e-4, abs=1e-10)


def swapped(name: str) -> str:
    """The same of the other completion."""
    return name.replace("chosen", "*").replace("rejected", "chosen").replace("*", "rejected")


def test_simpo_is_even_where_the_margin_per_token_is_gamma_over_beta():
    tensors = pair(-4.0, -9.0)  # -2 and -3 nats per token: a margin of 1
    even = direct.simpo_loss(**inputs_of(direct.simpo_loss, tensors), beta=2.0, gamma=2.0)
    assert even.item() == pytest.approx(math.log(2), rel=1e-6)
    loss = direct.simpo_loss(**inputs_of(direct.simpo_loss, tensors), beta=2.0, gamma=0.5)
    assert loss.item() == pytest.approx(negative_log_sigmoid("1.5"), rel=1e-6)


def test_cpo_is_dpo_with_a_uniform_reference():
    logprobs = torch.tensor([-4.0, -7.0]), torch.tensor([-9.0, -3.0])
    uniform = torch.full((2,), -11.0)
    expected = direct.dpo_loss(*logprobs, uniform, uniform, beta=0.3)
    torch.testing.assert_close(direct.cpo_loss(*logprobs, beta=0.3), expected)


@pytest.mark.parametrize("logprobs", [("-0.00002", "-3"), ("-0.69", "-0.7"), ("-40", "-0.0001"), ("-60", "-90")])
def test_orpo_takes_exact_odds_at_both_ends(logprobs):
    def log_odds(mean: Decimal) -> Decimal:
        return (mean.exp() / (1 - mean.exp())).ln()

    chosen, rejected = map(Decimal, logprobs)
    difference = log_odds(chosen) - log_odds(rejected)
    sums = [torch.tensor([float(mean) * length]) for mean, length in ((chosen, 4), (rejected, 5))]
    loss = direct.orpo_loss(*sums, torch.tensor([4]), torch.tensor([5]), beta=0.4)
    assert loss.item() == pytest.approx(0.4 * negative_log_sigmoid(str(difference)), rel=1e-4)


def test_orpo_of_a_certain_completion_is_finite_with_a_finite_gradient():
    certain, other = torch.zeros(2, requires_grad=True), torch.tensor([-2.0, 0.0], requires_grad=True)
    loss = direct.orpo_loss(certain, other, torch.tensor([3, 3]), torch.tensor([2, 2]), beta=1.0)
    loss.sum().backward()
    assert loss.isfinite().all() and loss[0] < 1e-4 and loss[1].item() == pytest.approx(math.log(2))
    assert certain.grad.isfinite().all() and other.grad.isfinite().all()


def test_slic_asks_for_delta_nats_and_no_more():
    losses = direct.slic_loss(torch.tensor([-4.0, -4.0, -9.0]), torch.tensor([-9.0, -4.5, -4.0]), delta=2.0)
    assert losses.tolist() == pytest.approx([0.0, 1.5, 7.0])


def test_the_likelihood_of_the_chosen_is_a_mean_over_its_tokens():
    assert direct.nll_loss(torch.tensor([-6.0, -6.0]), torch.tensor([2, 12])).tolist() == [3.0, 0.5]


def test_kto_saturates_on_both_sides_and_is_half_lost_at_the_reference_point():
    ratios, point = torch.tensor([-90.0, 2.0, 90.0, -90.0, 2.0, 90.0]), torch.tensor(2.0)
    logprobs = (ratios - 5).requires_grad_()
    desirable = torch.tensor([True] * 3 + [False] * 3)
    weights = {"desirable_weight": 3.0, "undesirable_weight": 0.5}
    losses = direct.kto_loss(logprobs, torch.full((6,), -5.0), desirable, point, beta=0.7, **weights)
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([3.0, 1.5, 0.0, 0.0, 0.25, 0.5], abs=1e-6)
    # the slope of a sigmoid at its middle is a quarter
    steepest = [0, -3 * 0.7 / 4, 0, 0, 0.5 * 0.7 / 4, 0]
    assert logprobs.grad.tolist() == pytest.approx(steepest, abs=1e-6)


def test_ktos_reference_point_is_a_clamped_mean_without_a_gradient():
    logprobs = torch.tensor([-5.0, -2.0], requires_grad=True)
    above = direct.kto_reference_point(logprobs, torch.tensor([-8.0, -3.0]))
    below = direct.kto_reference_point(logprobs, torch.tensor([-1.0, -3.0]))
    assert (above.item(), below.item()) == (2.0, 0.0)
    assert not above.requires_grad


def test_rrhf_is_the_sum_over_couples_found_one_by_one():
    generator = torch.Generator().manual_seed(0)
    logprobs = -20 * torch.rand(6, 4, generator=generator)
    lengths = torch.randint(1, 9, (6, 4), generator=generator)
    rankings = list(itertools.permutations(range(4)))[5::4]
    losses = direct.rrhf_loss(logprobs, lengths, torch.tensor(rankings))
    for row, ranking in enumerate(rankings):
        means = [logprobs[row, k].item() / lengths[row, k].item() for k in range(4)]
        couples = itertools.combinations(ranking, 2)
        expected = sum(max(0.0, means[worse] - means[better]) for better, worse in couples)
        assert losses[row].item() == pytest.approx(expected, rel=1e-5)


DIVERGENCES = {  # generators f of D = E_ref[f(policy / ref)], as Wang et al. write them
    "forward_kl": (lambda u: -u.ln(), direct.forward_kl_dpo_loss, {}),
    "reverse_kl": (lambda u: u * u.ln(), direct.alpha_dpo_loss, {"alpha": 1.0}),
    "jensen_shannon": (lambda u: u * u.ln() - (u + 1) * ((u + 1) / 2).ln(), direct.jensen_shannon_dpo_loss, {}),
    "alpha": (  # their alpha is .3
        lambda u: (u ** Decimal("0.7") - Decimal("0.7") * u - Decimal("0.3")) / (Decimal("0.3") * Decimal("-0.7")),
        direct.alpha_dpo_loss,
        {"alpha": 0.7},
    ),
}


def slope(function, u: float) -> float:
    """f'(u) by a central difference in forty digits."""
    width = Decimal("1e-9")
    return float((function(Decimal(u) + width) - function(Decimal(u) - width)) / (2 * width))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_implied_reward_is_the_slope_of_the_divergences_generator(name):
    generator, loss, settings = DIVERGENCES[name]
    chosen, rejected = 1.7, -0.6  # log-ratios
    tensors = pair(chosen - 4, rejected - 5, -4.0, -5.0)
    value = loss(**inputs_of(loss, tensors), beta=0.5, **settings).item()
    implied = -math.log(math.expm1(value))  # -log sigma(x) is the value at this x
    expected = 0.5 * (slope(generator, math.exp(chosen)) - slope(generator, math.exp(rejected)))
    assert implied == pytest.approx(expected, rel=1e-4)


def test_ratios_beyond_fp32_stay_finite_in_every_divergence():
    tensors = pair(-300.0, -350.0, -3.0, -4.0)
    for loss in (direct.forward_kl_dpo_loss, direct.jensen_shannon_dpo_loss):
        value = loss(**inputs_of(loss, tensors), beta=0.5)
        assert value.isfinite().all(), loss.__name__


REWARDS = torch.tensor([1.5, -0.5, 0.3, 2.2, -1.0, 0.0], dtype=torch.float64)
REFERENCE = torch.tensor([0.30, 0.25, 0.15, 0.04, 0.16, 0.10], dtype=torch.float64)


def converged(loss, **settings) -> torch.Tensor:
    """The distribution over six completions that is best at all pairs with their exact Bradley-Terry labels."""
    logits = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    first, second = torch.triu_indices(6, 6, 1)
    preference = torch.sigmoid(REWARDS[first] - REWARDS[second])
    reference = REFERENCE.log()
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-11, tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        policy = logits.log_softmax(0)
        stated = loss(policy[first], policy[second], reference[first], reference[second], **settings)
        flipped = loss(policy[second], policy[first], reference[second], reference[first], **settings)
        value = (preference * stated + (1 - preference) * flipped).mean()
        value.backward()
        return value

    optimizer.step(closure)
    return logits.detach().softmax(0)


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_dpo_on_exact_preferences_ends_at_the_reference_tilted_by_the_reward(beta):
    tilted = REFERENCE * (REWARDS / beta).exp()
    torch.testing.assert_close(converged(direct.dpo_loss, beta=beta), tilted / tilted.sum(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["forward_kl", "jensen_shannon", "alpha"])
def test_other_divergences_on_exact_preferences_end_where_their_own_optimum_is(name):
    # Karush-Kuhn-Tucker: beta f'(policy / reference) - reward is the same for every completion
    generator, loss, settings = DIVERGENCES[name]
    policy = converged(loss, beta=3.0, **settings)
    rows = zip((policy / REFERENCE).tolist(), REWARDS.tolist(), strict=True)
    multipliers = [3 * slope(generator, ratio) - reward for ratio, reward in rows]
    assert multipliers == pytest.approx([multipliers[0]] * 6, abs=1e-3)


def test_xpo_is_dpo_at_alpha_zero_and_else_lowers_what_the_reference_wrote_whichever_side_that_is():
    tensors = pair(-2.0, -5.0, -3.0, -4.5)
    plain = direct.dpo_loss(**inputs_of(direct.dpo_loss, tensors), beta=0.5)
    for side in ("chosen_logprobs", "rejected_logprobs"):
        given = inputs_of(direct.xpo_loss, tensors) | {"rival_logprobs": tensors[side]}
        assert direct.xpo_loss(**given, beta=0.5, alpha=0.0).item() == pytest.approx(plain.item(), abs=1e-6)
        # the margin is (-2 + 3) - (-5 + 4.5) = 1.5 nats
        hand = negative_log_sigmoid("0.75") + 0.2 * tensors[side].item()
        loss = direct.xpo_loss(**given, beta=0.5, alpha=0.2)
        assert loss.item() == pytest.approx(hand, abs=1e-6)
        slope = 0.5 / (1 + math.exp(0.75))
        expected = {"chosen_logprobs": -slope, "rejected_logprobs": slope}
        expected[side] += 0.2  # a step against the gradient lowers it
        grads = torch.autograd.grad(loss, [tensors[name] for name in expected])
        assert [grad.item() for grad in grads] == pytest.approx(list(expected.values()), abs=1e-6)


# What can not be said, and what can not be told apart


@pytest.mark.parametrize(("loss", "settings"), EVERY_PAIR_LOSS)
def test_impossible_completions_give_a_value_and_never_a_nan(loss, settings):
    for values in itertools.product([-torch.inf, -3.0], repeat=4):
        tensors = pair(*values)
        value = loss(**inputs_of(loss, tensors), **settings)
        assert not value.isnan().any(), values
        if value.isfinite().all():
            value.sum().backward()
            grads = [tensors[name].grad for name in ("chosen_logprobs", "rejected_logprobs")]
            assert not any(grad.isnan().any() for grad in grads if grad is not None), values


def test_impossible_labelled_and_ranked_completions_give_a_value_and_never_a_nan():
    for logprob, reference, point in itertools.product([-torch.inf, -3.0], [-torch.inf, -3.0], [0.0, torch.inf]):
        logprobs = torch.tensor([logprob, logprob], requires_grad=True)
        desirable = torch.tensor([True, False])
        values = direct.kto_loss(logprobs, torch.full((2,), reference), desirable, torch.tensor(point), beta=0.5)
        values.sum().backward()
        assert values.isfinite().all() and logprobs.grad.isfinite().all()
    logprobs = torch.tensor([[-torch.inf, -torch.inf, -3.0]], requires_grad=True)
    loss = direct.rrhf_loss(logprobs, torch.tensor([[2, 3, 4]]), torch.tensor([[2, 0, 1]]))
    loss.sum().backward()
    assert loss.item() == 0 and not logprobs.grad.isnan().any()
    impossible = torch.full((2,), -torch.inf)
    assert direct.kto_reference_point(impossible, impossible).item() == 0


@pytest.mark.parametrize(("loss", "settings"), [row for row in EVERY_PAIR_LOSS if row.id not in {"nll_loss"}])
def test_equal_completions_move_nothing_but_their_common_probability(loss, settings):
    common = torch.tensor([-6.0], requires_grad=True)
    tensors = pair(0.0, 0.0, -6.0, -6.0) | dict.fromkeys(
        ("chosen_logprobs", "rejected_logprobs", "rival_logprobs"), common
    )
    tensors["rejected_lengths"] = tensors["chosen_lengths"]
    value = loss(**inputs_of(loss, tensors), **settings)
    value.sum().backward()
    assert value.isfinite().all()
    # a difference has no slope; APO-down lowers both, XPO what the reference wrote
    falls = {direct.apo_down_loss: 0.5 / 4, direct.xpo_loss: 0.2}.get(loss, 0.0)
    assert common.grad.item() == pytest.approx(falls, abs=1e-7)
