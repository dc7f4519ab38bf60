"""One optimiser step against torch's own parts, hand arithmetic and invariants; which examples come next."""

import copy
import math
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from workbench import NonFiniteLoss, WorkbenchError
from workbench.trainers.best_of_n import BestOfNConfig
from workbench.trainers.descent import (
    Descent,
    EpochBatches,
    cosine_schedule,
    linear_schedule,
    make_optimizer,
    require_examples,
)
from workbench.trainers.direct_alignment import DirectAlignmentConfig
from workbench.trainers.ilql import IlqlConfig
from workbench.trainers.imitation import ImitationConfig
from workbench.trainers.language_model import LanguageModelConfig
from workbench.trainers.policy_gradient_config import PolicyGradientConfig
from workbench.trainers.reward_model import RewardModelConfig
from workbench.trainers.settings import require_in, require_positive


@dataclass(frozen=True, kw_only=True)
class Batch:
    inputs: Tensor  # (B, 4)


BATCH = Batch(inputs=torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))


def small_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 1))


def descent(model, *, schedule=cosine_schedule, eps=1e-8, **changes) -> Descent:
    config = SimpleNamespace(**({"learning_rate": 0.1, "warmup_steps": 0, "max_grad_norm": 1.0} | changes))
    return Descent(model, config, steps=10, schedule=schedule, eps=eps)


def take_step(descent: Descent, *, scale: float = 1.0, step: int = 1) -> float:
    def share(part):
        return scale * descent.model(part.inputs).square().mean(), part, None

    return descent.step([BATCH], share, trainer_step=step)[1]


def test_a_step_is_adamw_after_clipping_at_the_scheduled_rate():
    model, twin = small_model(), small_model()
    ours = descent(model, schedule=linear_schedule, warmup_steps=3, weight_decay=0.1, max_grad_norm=0.5, eps=1e-5)
    matrices = [p for p in twin.parameters() if p.dim() == 2]
    vectors = [p for p in twin.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.95), eps=1e-5)
    for step, share in enumerate([1 / 3 * 1.0, 2 / 3 * 0.9, 0.8, 0.7]):
        for group in theirs.param_groups:
            group["lr"] = 0.1 * share
        theirs.zero_grad()
        (7 * twin(BATCH.inputs).square().mean()).backward()
        norm = nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        theirs.step()
        assert ours.learning_rate == pytest.approx(0.1 * share)
        assert take_step(ours, scale=7.0, step=step) == pytest.approx(norm.item(), rel=1e-5)
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("eps", "share"), [(1e-8, 1 / 1.001), (1e-5, 1 / 2)])
def test_eps_decides_how_far_a_tiny_gradient_moves_a_weight(eps, share):
    weight = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(weight.weight)
    optimizer = make_optimizer(weight, learning_rate=1.0, eps=eps)
    weight.weight.grad = torch.full((1, 1), 1e-5)  # Adam's first step is lr * g / (|g| + eps)
    optimizer.step()
    assert weight.weight.item() == pytest.approx(-share, rel=1e-3)


def test_only_matrices_decay():
    model = small_model()
    nn.init.ones_(model[0].bias)
    optimizer = make_optimizer(model, learning_rate=0.1, weight_decay=0.5)
    before = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model[0].weight, before[0].weight * 0.95)
    assert torch.equal(model[0].bias, before[0].bias) and torch.equal(model[1].weight, before[1].weight)


def test_frozen_parameters_are_not_optimised():
    model = small_model()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    take_step(descent(model, weight_decay=0.5))
    assert torch.equal(model[0].weight, before)


def test_the_linear_schedule_warms_up_and_reaches_zero_after_the_last_step():
    shares = [linear_schedule(step, 10, warmup=2) for step in range(11)]
    assert shares == pytest.approx([0.5, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0])
    assert linear_schedule(12, 10, warmup=2) == 0


def test_the_cosine_schedule_warms_up_and_falls_to_a_tenth():
    assert [cosine_schedule(step, 100, warmup=4) for step in range(3)] == pytest.approx([0.25, 0.5, 0.75], rel=1e-2)
    assert cosine_schedule(50, 100, warmup=4) == pytest.approx((1 + 0.1) / 2)  # half way between peak and floor
    assert cosine_schedule(25, 100, warmup=4) == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    assert cosine_schedule(100, 100, warmup=4) == pytest.approx(0.1)


@pytest.mark.parametrize(("scale", "offset"), [(math.nan, 0), (math.inf, 0), (1, math.nan), (1, -math.inf)])
def test_a_loss_that_is_not_finite_moves_nothing_and_brings_its_batch(scale, offset):
    model = small_model()
    before, ours = copy.deepcopy(model.state_dict()), descent(model)
    with pytest.raises(NonFiniteLoss, match="step 17") as caught:  # also where its gradient would be finite
        loss = scale * model(BATCH.inputs).square().mean() + offset
        ours.step([BATCH], lambda part: (loss, part, None), trainer_step=17)
    assert caught.value.step == 17 and torch.equal(caught.value.batch["inputs"], BATCH.inputs)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert ours.done == 0


def test_a_gradient_that_is_not_finite_moves_nothing_and_leaves_nothing_behind():
    model, twin = small_model(), small_model()
    ours, theirs = descent(model), descent(twin)
    root = model(BATCH.inputs - BATCH.inputs).sum() * 0 + (model[0].weight * 0).sum().sqrt()  # 0, its slope infinite
    with pytest.raises(NonFiniteLoss, match="step 3"):
        ours.step([BATCH], lambda part: (root, part, None), trainer_step=3)
    for one in (ours, theirs):
        take_step(one)
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a_restored_descent_continues_bit_for_bit():
    def run(steps, start=None):
        ours = descent(small_model(), schedule=linear_schedule, warmup_steps=3)
        if start is not None:
            ours.load_state_dict(start)
        norms = [take_step(ours) for _ in range(steps)]
        return norms, ours

    whole, straight = run(7)
    first, stopped = run(3)
    rest, continued = run(4, copy.deepcopy(stopped.state_dict()))
    assert first + rest == whole
    for mine, other in zip(continued.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(mine, other)


NAN = math.nan
WRONG = {
    PolicyGradientConfig: {
        "learning_rate": [-1e-3, NAN],
        "critic_learning_rate": [0.0],
        "batch_size": [0],
        "lam": [NAN],
    }
    | {"steps": [-1], "temperature": [0.0], "max_completion_length": [0], "num_ppo_epochs": [0], "gamma": [1.5]}
    | {"cliprange": [-0.2], "cliprange_high": [0.0], "kl_coef": [-0.1], "kl_stop": [-1.0], "num_generations": [0]}
    | {"missing_eos_penalty": [-1.0], "entropy_coef": [NAN], "ptx_coef": [-0.1], "soft_punish_cache": [41]}
    | {"mask_top_p": [1.5, 0.0], "resampling_rounds": [-1]},
    ImitationConfig: {"learning_rate": [-1e-3], "kl_coef": [-0.1, NAN], "steps": [0], "temperature": [0.0]},
    IlqlConfig: {"beta": [0.0], "expectile": [0.4, 1.1], "gamma": [1.5], "polyak": [0.0], "learning_rate": [-1.0]},
    BestOfNConfig: {"num_generations": [0], "prompts_per_step": [0], "temperature": [0.0, NAN]},
    partial(LanguageModelConfig, steps=1): {"learning_rate": [-1e-3, NAN], "batch_size": [0], "steps": [0]}
    | {"evaluate_every": [0], "max_grad_norm": [0.0], "weight_decay": [-0.1]},
    RewardModelConfig: {"learning_rate": [-1e-3, NAN], "batch_size": [0], "epochs": [0], "weight_decay": [2.0]}
    | {"error_rate": [1.5], "lm_coef": [-0.1], "center_rewards_coefficient": [-0.1]},
    DirectAlignmentConfig: {"learning_rate": [-1e-3, NAN], "batch_size": [0], "beta": [0.0, -0.1], "nll_coef": [-1.0]},
}


@pytest.mark.parametrize(("config", "setting"), [(config, name) for config, rows in WRONG.items() for name in rows])
def test_a_wrong_setting_of_a_trainer_is_named_with_its_value(config, setting):
    for value in WRONG[config][setting]:
        with pytest.raises(WorkbenchError, match=f"{setting} is {value}"):
            config(**{setting: value})


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_a_number_that_must_be_positive_is_named(value):
    with pytest.raises(WorkbenchError, match=f"learning_rate is {value}: give a finite number above 0"):
        require_positive(SimpleNamespace(batch_size=3, learning_rate=value), "batch_size", "learning_rate")


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_number_outside_its_range_is_named(value):
    with pytest.raises(WorkbenchError, match=f"gamma is {value}: give a number between 0 and 1"):
        require_in(0, 1, SimpleNamespace(lam=0.5, gamma=value), "lam", "gamma")


def test_no_examples_are_refused_with_their_count():
    with pytest.raises(WorkbenchError, match="0 training and 2 held-out"):
        require_examples([], [1, 2])
    with pytest.raises(WorkbenchError, match="1 training and 0 held-out"):
        require_examples([1], [])


# Every example once per epoch, in another order each time, resumable anywhere.


LENGTHS = [3, 9, 4, 1, 7, 7, 2, 5, 8, 6, 3]


def epoch(batches: EpochBatches) -> list[list[int]]:
    return [batches.next() for _ in range(batches.per_epoch)]


@pytest.mark.parametrize("lengths", [LENGTHS, [1] * 11])
@pytest.mark.parametrize("batch_size", [1, 4, 11, 50])
def test_each_epoch_uses_every_example_once(lengths, batch_size):
    batches = EpochBatches(lengths, batch_size, seed=0)
    for _ in range(3):
        drawn = epoch(batches)
        assert sorted(index for batch in drawn for index in batch) == list(range(11))
        assert max(map(len, drawn)) == min(batch_size, 11)


def test_each_epoch_is_a_new_permutation_and_the_seed_decides_it():
    batches = EpochBatches([1] * 30, 5, seed=0)
    first, second = epoch(batches), epoch(batches)
    assert first != second
    assert first == epoch(EpochBatches([1] * 30, 5, seed=0))
    assert first != epoch(EpochBatches([1] * 30, 5, seed=1))


@pytest.mark.parametrize("taken", range(9))
def test_a_restored_cursor_continues_where_it_stood(taken):
    batches = EpochBatches(LENGTHS, 3, seed=2)
    for _ in range(taken):
        batches.next()
    restored = EpochBatches(LENGTHS, 3, seed=99)
    restored.next()
    restored.load_state_dict(batches.state_dict())
    assert [restored.next() for _ in range(12)] == [batches.next() for _ in range(12)]


def test_whole_batches_leave_out_other_examples_each_epoch():
    batches = EpochBatches([1] * 11, 4, seed=0, whole=True)
    left_out = set()
    for _ in range(60):
        drawn = [index for batch in (batches.next(), batches.next()) for index in batch]
        assert len(set(drawn)) == 8
        left_out |= set(range(11)) - set(drawn)
    assert left_out == set(range(11))
