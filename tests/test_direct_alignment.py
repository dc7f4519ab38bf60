"""DPO against TRL's trainer, plain re-scoring and invariants."""

import json
import math
from pathlib import Path

import pytest
import torch
from tiny_models import EOS, FAMILIES, plain_logprobs, same_weights, tiny_model, weights_of
from trainer_checks import continued_rows, rows_equal
from transformers import LlamaConfig, LlamaForCausalLM

from workbench.errors import NonFiniteLoss, WorkbenchError
from workbench.records import PairExample
from workbench.trainers.direct_alignment import DirectAlignmentConfig, DirectAlignmentTrainer

TRL = json.loads((Path(__file__).parent / "oracles" / "trl_dpo.json").read_text())


def pair(prompt, chosen, rejected) -> PairExample:
    return PairExample(prompt_ids=prompt, chosen_ids=chosen, rejected_ids=rejected, margin=0.0)


PAIRS = [
    pair([4, 6, 7, 8], [9, EOS], [10, 11, 12, EOS]),
    pair([4], [10, 11, 12, 13, EOS], [9, 9, EOS]),
    pair([5, 12], [14, EOS], [15, EOS]),
    pair([5, 13], [15, 4], [14, EOS]),
]
HELD_OUT = [pair([8, 8], [9, EOS], [12, EOS]), pair([8], [5, 6, EOS], [4, EOS]), pair([9], [4, EOS], [7, 7, EOS])]


def trainer_for(family="llama", *, reference_seed=0, pairs=PAIRS, held_out=HELD_OUT, **config):
    config = {"epochs": 3, "batch_size": 2, "learning_rate": 5e-3, "warmup_steps": 2, "evaluate_every": 4} | config
    return DirectAlignmentTrainer(
        tiny_model(family), tiny_model(family, seed=reference_seed), pairs, held_out, DirectAlignmentConfig(**config)
    )


def plain_margin(policy, reference, pair: PairExample) -> float:
    """Difference of log-ratios of whole completions, one token at a time, in nats."""

    def log_ratio(ids):
        ours, theirs = (sum(plain_logprobs(model, pair.prompt_ids, ids)) for model in (policy, reference))
        return ours - theirs

    return log_ratio(pair.chosen_ids) - log_ratio(pair.rejected_ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_margins_are_beta_times_the_difference_of_plain_log_ratios(family):
    trainer = trainer_for(family, reference_seed=1, beta=0.3)
    expected = [0.3 * plain_margin(trainer.policy, trainer.reference, pair) for pair in PAIRS]
    assert trainer.margins(PAIRS).tolist() == pytest.approx(expected, abs=1e-5)


def test_a_step_reports_loss_accuracy_and_margin_of_its_batch():
    trainer = trainer_for(reference_seed=1, batch_size=4, beta=0.3)
    margins = [0.3 * plain_margin(tiny_model(), tiny_model(seed=1), pair) for pair in PAIRS]
    row = trainer.step()
    assert row["loss"] == pytest.approx(sum(math.log1p(math.exp(-margin)) for margin in margins) / 4, abs=1e-5)
    assert row["accuracy"] == sum(margin > 0 for margin in margins) / 4
    assert row["margin"] == pytest.approx(sum(margins) / 4, abs=1e-5)
    assert row["chosen_reward"] - row["rejected_reward"] == pytest.approx(row["margin"], abs=1e-6)


def test_held_out_accuracy_is_of_the_policy_after_the_step_and_comes_when_due():
    trainer = trainer_for()
    rows = [trainer.step() for _ in range(6)]
    assert trainer.total_steps == 6
    assert [row["held_out_accuracy"] is not None for row in rows] == [False, False, False, True, False, True]
    right = sum(plain_margin(trainer.policy, tiny_model(), pair) > 0 for pair in HELD_OUT)
    assert rows[-1]["held_out_accuracy"] == pytest.approx(right / 3)


def test_it_starts_at_log_two_with_the_reference_equal_to_the_policy_and_never_moves_the_reference():
    trainer = trainer_for()
    start = weights_of(trainer.reference)
    assert same_weights(start, weights_of(trainer.policy))
    row = trainer.step()
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-6)
    for _ in range(5):
        trainer.step()
    assert same_weights(start, weights_of(trainer.reference))
    assert not same_weights(start, weights_of(trainer.policy))


@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns_four_comparisons_by_heart(family):
    trainer = trainer_for(family, epochs=60, batch_size=4, beta=0.5)
    rows = [trainer.step() for _ in range(trainer.total_steps)]
    assert rows[-1]["accuracy"] == 1 and rows[-1]["loss"] < 0.05
    assert rows[-1]["margin"] > 3 > abs(rows[0]["margin"])


def oracle_model(phase: float) -> LlamaForCausalLM:
    """The model that the script beside the frozen numbers describes."""
    config = LlamaConfig(
        vocab_size=10,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for index, (_, parameter) in enumerate(sorted(model.named_parameters())):
            count = torch.arange(parameter.numel(), dtype=torch.float64)
            parameter.copy_((0.4 * torch.sin(1.7 * count + index + phase)).reshape(parameter.shape))
    return model


def test_loss_gradient_and_implied_rewards_are_those_of_trls_trainer(monkeypatch):
    # TRL's model can say its padding; ours is kept from it, so the comparison lets it
    monkeypatch.setattr("workbench.scoring.ban_padding", lambda logits, pad_token_id: logits)
    pairs = [pair(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in TRL["pairs"]]
    config = DirectAlignmentConfig(beta=TRL["beta"], batch_size=3)
    row = DirectAlignmentTrainer(oracle_model(0.0), oracle_model(0.5), pairs, pairs, config).step()
    for ours, theirs in (
        ("loss", "loss"),
        ("grad_norm", "gradient_norm"),
        ("chosen_reward", "chosen_reward"),
        ("rejected_reward", "rejected_reward"),
        ("accuracy", "accuracy"),
    ):
        assert row[ours] == pytest.approx(TRL[theirs], rel=1e-5, abs=1e-6), ours


@pytest.mark.parametrize("before", [1, 2, 5])
def test_a_stopped_training_continues_bit_for_bit(before, tmp_path):
    straight = trainer_for()
    expected = [straight.step() for _ in range(6)]
    rows, continued = continued_rows(trainer_for, tmp_path / "state.pt", before=before, after=6 - before)
    assert rows_equal(rows, expected)
    assert same_weights(weights_of(continued.policy), weights_of(straight.policy))


def test_a_loss_that_is_nan_is_named_and_moves_nothing():
    trainer = trainer_for()
    trainer.step()
    with torch.no_grad():
        trainer.reference.lm_head.weight.fill_(math.nan)
    before = weights_of(trainer.policy)
    with pytest.raises(NonFiniteLoss, match="step 2") as caught:
        trainer.step()
    assert set(caught.value.batch) == {"tokens", "attention_mask", "completion_mask"}
    assert same_weights(before, weights_of(trainer.policy))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("learning_rate", -1e-3), ("learning_rate", math.nan), ("batch_size", 0), ("beta", 0.0), ("beta", -0.1)],
)
def test_a_wrong_setting_is_named_with_its_value(setting, value):
    with pytest.raises(WorkbenchError, match=f"{setting} is {value}"):
        DirectAlignmentConfig(**{setting: value})


def test_nothing_to_train_on_or_to_measure_on_is_refused():
    with pytest.raises(WorkbenchError, match="0 training"):
        trainer_for(pairs=[])
    with pytest.raises(WorkbenchError, match="0 held-out"):
        trainer_for(held_out=[])
