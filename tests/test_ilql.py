"""Implicit language Q-learning: losses token by token, targets, what never moves, resuming, learning by heart."""

import math

import pytest
import torch
from tiny_models import EOS, FAMILIES, plain_logprobs, same_weights, tiny_model, weights_of
from trainer_checks import continued_rows, rows_equal

from workbench import NonFiniteLoss, WorkbenchError
from workbench.models import add_lora
from workbench.records import LabelledExample
from workbench.trainers.ilql import IlqlConfig, IlqlTrainer


def example(prompt, completion, label) -> LabelledExample:
    return LabelledExample(prompt_ids=prompt, completion_ids=completion, label=label)


EXAMPLES = [
    example([4, 6, 7, 8], [9, EOS], 1),
    example([4, 6, 7, 8], [10, 11, 12, EOS], 0),
    example([5, 12], [14, 14, EOS], 1),
    example([5, 12], [15, 4], 0),
]
HELD_OUT = [example([8, 8], [9, EOS], 1), example([8], [5, 6, EOS], 0), example([9], [7, 7, EOS], 1)]


def trainer_for(family="llama", *, examples=EXAMPLES, held_out=HELD_OUT, **config) -> IlqlTrainer:
    config = {"epochs": 3, "batch_size": 2, "learning_rate": 5e-3, "warmup_steps": 2, "evaluate_every": 4} | config
    return IlqlTrainer(tiny_model(family), tiny_model(family), examples, held_out, IlqlConfig(**config))


@torch.no_grad()
def token_by_token(policy, given: LabelledExample):
    """Q of both heads, both target Q and V before every token of one completion, and V after the last; unpadded."""
    rows = []
    for index in range(len(given.completion_ids) + 1):
        ids = given.prompt_ids + given.completion_ids[:index]
        state = policy.values(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        heads = [[head(state).double() for head in group] for group in (policy.q_heads, policy.target_heads)]
        rows.append((*heads, policy.v_head(state).item()))
    return rows


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_reports_the_losses_of_its_tokens(family):
    settings = {"batch_size": 4, "gamma": 0.9, "expectile": 0.8, "conservatism": 0.3}
    before, trainer = trainer_for(family, **settings), trainer_for(family, **settings)
    torch.nn.init.normal_(before.policy.target_heads[1][2].bias, generator=torch.Generator().manual_seed(0))
    trainer.policy.target_heads.load_state_dict(before.policy.target_heads.state_dict())
    q_loss = v_loss = conservative = count = 0
    for given in EXAMPLES:
        rows = token_by_token(before.policy, given)
        for index, token in enumerate(given.completion_ids):
            heads, targets, value = rows[index]
            last = index + 1 == len(given.completion_ids)
            aim = given.label if last else 0.9 * rows[index + 1][2]  # what follows the last token counts for nothing
            q_loss += sum((aim - head[token].item()) ** 2 for head in heads)
            error = min(target[token].item() for target in targets) - value
            v_loss += (0.8 if error > 0 else 0.2) * error**2
            conservative += sum(math.log(sum(head.exp())) - head[token].item() for head in heads)
            count += 1
    row = trainer.step()
    expected = q_loss / count, v_loss / count, conservative / count
    assert (row["q_loss"], row["v_loss"], row["conservative_loss"]) == pytest.approx(expected, rel=1e-4)
    assert row["loss"] == pytest.approx(expected[0] + expected[1] + 0.3 * expected[2], rel=1e-4)


def test_the_value_of_a_completion_is_the_lower_target_of_its_last_token():
    trainer = trainer_for(batch_size=4)
    lasts = []
    for given in EXAMPLES:
        _, targets, _ = token_by_token(trainer.policy, given)[-2]
        lasts.append(min(target[given.completion_ids[-1]].item() for target in targets))
    row = trainer.step()
    assert row["chosen_reward"] == pytest.approx((lasts[0] + lasts[2]) / 2, abs=1e-5)
    assert row["rejected_reward"] == pytest.approx((lasts[1] + lasts[3]) / 2, abs=1e-5)
    assert row["accuracy"] == sum((last > 0.5) == bool(e.label) for last, e in zip(lasts, EXAMPLES, strict=True)) / 4


def test_target_heads_follow_by_their_share_and_are_not_trained():
    trainer = trainer_for(polyak=0.25)
    before = weights_of(trainer.targets)
    trainer.step()
    after, trained = weights_of(trainer.targets), weights_of(trainer.policy.q_heads)
    for name, value in before.items():
        torch.testing.assert_close(after[name], 0.75 * value + 0.25 * trained[name], rtol=1e-5, atol=1e-7)
    assert not any(parameter.requires_grad for parameter in trainer.targets.parameters())


def test_the_reference_inside_the_policy_never_moves():
    trainer = trainer_for()
    start = weights_of(trainer.policy.reference)
    values = weights_of(trainer.policy.values)
    for _ in range(3):
        trainer.step()
    assert same_weights(start, weights_of(trainer.policy.reference))
    assert same_weights(start, weights_of(tiny_model()))
    assert not same_weights(values, weights_of(trainer.policy.values))  # the trunk under the heads learns


@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns_four_labels_by_heart_and_says_what_was_good(family):
    trainer = trainer_for(family, epochs=100, batch_size=4, polyak=0.4, learning_rate=1e-2, beta=12.0)
    rows = [trainer.step() for _ in range(trainer.total_steps)]
    assert rows[-1]["accuracy"] == 1 and rows[-1]["margin"] > 0.9 and rows[-1]["q_loss"] < 0.02
    for good, bad in (EXAMPLES[:2], EXAMPLES[2:]):
        ours, before = (
            sum(plain_logprobs(model, good.prompt_ids, good.completion_ids[:1]))
            - sum(plain_logprobs(model, bad.prompt_ids, bad.completion_ids[:1]))
            for model in (trainer.policy, tiny_model(family))
        )
        assert ours > before + 3  # the first token already leads to the good end


def test_ratings_are_rewards_too():
    examples = [
        example(e.prompt_ids, e.completion_ids, rating) for e, rating in zip(EXAMPLES, (7, 2, 5, 1), strict=True)
    ]
    trainer = trainer_for(examples=examples, epochs=150, batch_size=4, polyak=0.4, learning_rate=1e-2, gamma=1.0)
    rows = [trainer.step() for _ in range(trainer.total_steps)]
    assert rows[-1]["chosen_reward"] == pytest.approx(6, abs=0.2)
    assert rows[-1]["rejected_reward"] == pytest.approx(1.5, abs=0.2)


def test_held_out_accuracy_comes_when_due():
    trainer = trainer_for()
    rows = [trainer.step() for _ in range(6)]
    assert trainer.total_steps == 6
    assert [row["held_out_accuracy"] is not None for row in rows] == [False, False, False, True, False, True]
    assert trainer.held_out_accuracies().shape == (3,)


def test_a_batch_of_one_kind_has_no_margin():
    trainer = trainer_for(examples=[EXAMPLES[0], EXAMPLES[2], EXAMPLES[1]], batch_size=1, epochs=1)
    rows = [trainer.step() for _ in range(3)]
    assert all(row["margin"] is None and math.isfinite(row["loss"]) for row in rows)


@pytest.mark.parametrize("before", [1, 2, 5])
def test_a_stopped_training_continues_bit_for_bit(before, tmp_path):
    straight = trainer_for()
    expected = [straight.step() for _ in range(6)]
    rows, continued = continued_rows(trainer_for, tmp_path / "state.pt", before=before, after=6 - before)
    assert rows_equal(rows, expected)
    assert same_weights(weights_of(continued.policy), weights_of(straight.policy))  # the target heads are in it


def test_the_seed_decides_the_heads():
    first, again, other = (trainer_for(seed=seed).policy for seed in (0, 0, 1))
    assert same_weights(weights_of(first), weights_of(again))
    assert not same_weights(weights_of(first.q_heads), weights_of(other.q_heads))
    assert same_weights(weights_of(first.q_heads), weights_of(first.target_heads))


def test_a_loss_that_is_nan_is_named_and_moves_nothing():
    trainer = trainer_for(examples=[example([4], [9, EOS], math.nan), *EXAMPLES], batch_size=5)
    before = weights_of(trainer.policy)
    with pytest.raises(NonFiniteLoss, match="step 1"):
        trainer.step()
    assert same_weights(before, weights_of(trainer.policy))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("beta", 0.0), ("expectile", 0.4), ("expectile", 1.1), ("gamma", 1.5), ("polyak", 0.0), ("learning_rate", -1.0)],
)
def test_a_wrong_setting_is_named_with_its_value(setting, value):
    with pytest.raises(WorkbenchError, match=f"{setting} is {value}"):
        IlqlConfig(**{setting: value})


def test_nothing_to_train_on_or_to_measure_on_is_refused():
    with pytest.raises(WorkbenchError, match="0 training"):
        trainer_for(examples=[])
    with pytest.raises(WorkbenchError, match="0 held-out"):
        trainer_for(held_out=[])


def test_adapters_are_refused():
    pytest.importorskip("peft")
    with pytest.raises(WorkbenchError, match="lora_rank to 0"):
        IlqlTrainer(add_lora(tiny_model(), rank=2), tiny_model(), EXAMPLES, HELD_OUT, IlqlConfig())
