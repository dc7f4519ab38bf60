"""Pretraining and supervised fine-tuning against the library's own labels loss."""

import itertools
import math

import pytest
import torch
from tiny_models import EOS, FAMILIES, PAD, tiny_config, tiny_model, weights_of
from trainer_checks import assert_continues
from transformers import AutoModelForCausalLM

from workbench import NonFiniteLoss, WorkbenchError
from workbench.models.packing import (
    collate_demonstrations,
    collate_packed,
    pack_documents,
    target_losses,
    token_lengths,
)
from workbench.records import CompletionExample
from workbench.trainers.language_model import LanguageModelConfig, LanguageModelTrainer

TALKS = [([4, 6, 7, 8], [9, 10, EOS]), ([11], [12, 13, 14, 15, EOS]), ([5, 5, 12], [EOS]), ([4, 6, 7], [13, 9, EOS])]
DEMONSTRATIONS = [CompletionExample(prompt_ids=prompt, completion_ids=completion) for prompt, completion in TALKS]
DOCUMENTS = [[4, 5, 6, 7, EOS], [5, 8, 9, EOS], [6, 4, 4, 10, 11, EOS], [7, 12, EOS]]


def sft_trainer(model=None, examples=DEMONSTRATIONS, held_out=DEMONSTRATIONS[:3], **config):
    sizes = {"steps": 6, "batch_size": 3, "learning_rate": 1e-2, "warmup_steps": 2, "evaluate_every": 4}
    read = {"collate": collate_demonstrations, "lengths": token_lengths(examples)}
    return LanguageModelTrainer(
        model or tiny_model(), examples, held_out, LanguageModelConfig(**sizes | config), **read
    )


@torch.no_grad()
def library_losses(model, examples) -> tuple[list[float], list[int]]:
    """The library's mean loss of each demonstration alone, its prompt labelled -100, and the number of tokens in it."""
    losses = []
    for example in examples:
        ids = torch.tensor([example.prompt_ids + example.completion_ids])
        labels = torch.tensor([[-100] * len(example.prompt_ids) + example.completion_ids])
        losses.append(model(input_ids=ids, labels=labels).loss.item())
    return losses, [len(example.completion_ids) for example in examples]


def weighted_mean(losses: list[float], counts: list[int]) -> float:
    return sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sft_loss_is_the_librarys_over_completion_tokens_with_eos(family):
    model = tiny_model(family)
    losses, counts = library_losses(model, DEMONSTRATIONS)
    with torch.no_grad():
        ours = target_losses(model, collate_demonstrations(DEMONSTRATIONS, PAD))
    for part, expected in zip(ours.split(counts), losses, strict=True):
        assert part.mean().item() == pytest.approx(expected, abs=1e-5)


def test_a_step_reports_the_mean_over_the_tokens_of_its_batch():
    row = sft_trainer(batch_size=4).step()
    losses, counts = library_losses(tiny_model(), DEMONSTRATIONS)
    assert row["loss"] == pytest.approx(weighted_mean(losses, counts), abs=1e-5)
    assert row["target_tokens"] == sum(counts)


def test_the_held_out_loss_is_the_mean_over_all_its_tokens_and_comes_when_due():
    rows = [(trainer := sft_trainer(batch_size=2)).step()]
    rows += [trainer.step() for _ in range(5)]
    assert [row["held_out_loss"] is not None for row in rows] == [False, False, False, True, False, True]
    losses, counts = library_losses(trainer.model, DEMONSTRATIONS[:3])
    assert rows[-1]["held_out_loss"] == pytest.approx(weighted_mean(losses, counts), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns_four_demonstrations_by_heart(family):
    trainer = sft_trainer(tiny_model(family), steps=80, batch_size=4, learning_rate=2e-2)
    rows = [trainer.step() for _ in range(trainer.total_steps)]
    assert rows[0]["loss"] > 2 and rows[-1]["loss"] < 0.05
    assert [row["step"] for row in rows] == list(range(1, 81))


def test_it_learns_four_packed_documents_by_heart():
    rows = pack_documents(DOCUMENTS, 12)
    config, read = LanguageModelConfig(steps=80, batch_size=4, learning_rate=2e-2), {"collate": collate_packed}
    trainer = LanguageModelTrainer(tiny_model(), rows, rows, config, lengths=token_lengths(rows), **read)
    losses = [trainer.step()["loss"] for _ in range(80)]
    assert losses[0] > 2 and losses[-1] < 0.1  # every document starts with a token that tells which it is


def test_dropout_is_off():
    config = tiny_config("gpt2")
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.5
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).train()
    trainer = sft_trainer(model)
    batch = collate_demonstrations(DEMONSTRATIONS, PAD)
    assert torch.equal(target_losses(trainer.model, batch), target_losses(trainer.model, batch))


def test_the_rate_warms_up_and_falls_to_a_tenth():
    rates = [row["learning_rate"] for row in map(lambda trainer: trainer.step(), itertools.repeat(sft_trainer(), 6))]
    assert rates[0] == pytest.approx(0.5e-2) and rates[1] == max(rates)
    assert rates[3] == pytest.approx(1e-2 * (1 + 0.1) / 2)


@pytest.mark.parametrize("before", [1, 2, 5])
def test_a_stopped_training_continues_bit_for_bit(before, tmp_path):
    assert_continues(sft_trainer, tmp_path, steps=6, before=before)


def test_a_loss_that_is_nan_is_named_and_moves_nothing():
    trainer = sft_trainer()
    trainer.step()
    with torch.no_grad():
        trainer.model.lm_head.weight[4, 0] = math.nan
    before = weights_of(trainer.model)
    with pytest.raises(NonFiniteLoss, match="step 2") as caught:
        trainer.step()
    assert set(caught.value.batch) == {"tokens", "attention_mask", "position_ids", "target_mask"}
    after = weights_of(trainer.model)
    assert all(torch.equal(before[name].nan_to_num(9), after[name].nan_to_num(9)) for name in before)


@pytest.mark.parametrize(("empty", "says"), [("examples", "0 training"), ("held_out", "0 held-out")])
def test_nothing_to_train_on_or_to_measure_on_is_refused(empty, says):
    with pytest.raises(WorkbenchError, match=says):
        sft_trainer(**{empty: []})
