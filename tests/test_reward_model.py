"""Reward model training against the library's scores and hand arithmetic."""

import math

import pytest
import torch
from tiny_models import EOS, FAMILIES, same_weights, tiny_model, weights_of
from trainer_checks import continued_rows, rows_equal
from transformers import AutoModelForSequenceClassification

from workbench.errors import NonFiniteLoss, WorkbenchError
from workbench.records import PairExample
from workbench.trainers.reward_model import RewardModelConfig, RewardModelTrainer


def pair(prompt, chosen, rejected, margin=0.0) -> PairExample:
    return PairExample(prompt_ids=prompt, chosen_ids=chosen, rejected_ids=rejected, margin=margin)


PAIRS = [
    pair([4, 6, 7, 8], [9, EOS], [10, 11, 12, EOS]),
    pair([4], [10, 11, 12, 13, EOS], [9, 9, EOS], margin=0.5),
    pair([5, 12], [14, EOS], [15, EOS], margin=2.0),
    pair([5, 13], [15, 4], [14, EOS]),
]
HELD_OUT = [pair([8, 8], [9, EOS], [12, EOS]), pair([8], [5, 6, EOS], [4, EOS]), pair([9], [4, EOS], [7, 7, EOS])]


def scorer(family="llama", seed=0):
    return tiny_model(family, auto=AutoModelForSequenceClassification, seed=seed)


def trainer_for(model=None, pairs=PAIRS, held_out=HELD_OUT, **config) -> RewardModelTrainer:
    config = {"epochs": 3, "batch_size": 2, "learning_rate": 1e-2, "warmup_steps": 2, "evaluate_every": 4} | config
    return RewardModelTrainer(model or scorer(), pairs, held_out, RewardModelConfig(**config))


@torch.no_grad()
def plain_margin(model, pair: PairExample) -> float:
    """Chosen minus rejected by the library, one unpadded text at a time."""
    score = lambda ids: model(input_ids=torch.tensor([pair.prompt_ids + ids])).logits[0, 0].item()  # noqa: E731
    return score(pair.chosen_ids) - score(pair.rejected_ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_margins_are_the_librarys_in_the_given_order(family):
    model = scorer(family)
    expected = [plain_margin(model, pair) for pair in PAIRS + HELD_OUT]
    margins = trainer_for(scorer(family)).margins(PAIRS + HELD_OUT)
    assert margins.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_step_reports_loss_accuracy_and_margin_of_its_batch():
    row = trainer_for(batch_size=4).step()
    margins = [plain_margin(scorer(), pair) for pair in PAIRS]
    losses = [math.log1p(math.exp(pair.margin - margin)) for pair, margin in zip(PAIRS, margins, strict=True)]
    assert row["loss"] == pytest.approx(sum(losses) / 4, abs=1e-5)
    assert row["margin"] == pytest.approx(sum(margins) / 4, abs=1e-5)
    assert row["accuracy"] == sum(margin > 0 for margin in margins) / 4


def test_held_out_numbers_are_of_the_model_after_the_step_and_come_when_due():
    trainer = trainer_for()
    rows = [trainer.step() for _ in range(6)]
    assert trainer.total_steps == 6
    assert [row["held_out_loss"] is not None for row in rows] == [False, False, False, True, False, True]
    margins = [plain_margin(trainer.model, pair) for pair in HELD_OUT]
    expected = sum(math.log1p(math.exp(-margin)) for margin in margins) / 3
    assert rows[-1]["held_out_loss"] == pytest.approx(expected, abs=1e-5)
    assert rows[-1]["held_out_accuracy"] == pytest.approx(sum(margin > 0 for margin in margins) / 3)


def test_a_model_that_cannot_tell_pays_log_two():
    model = scorer()
    torch.nn.init.zeros_(model.score.weight)
    row = trainer_for(model, pairs=[PAIRS[0], PAIRS[3]]).step()
    assert row["loss"] == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns_four_comparisons_by_heart(family):
    trainer = trainer_for(scorer(family, seed=3), epochs=60, batch_size=4)
    rows = [trainer.step() for _ in range(trainer.total_steps)]
    assert rows[-1]["accuracy"] == 1 and rows[-1]["loss"] < 0.05 < rows[0]["loss"]


@pytest.mark.parametrize("before", [1, 2, 5])
def test_a_stopped_training_continues_bit_for_bit(before, tmp_path):
    straight = trainer_for()
    expected = [straight.step() for _ in range(6)]
    rows, continued = continued_rows(trainer_for, tmp_path / "state.pt", before=before, after=6 - before)
    assert rows_equal(rows, expected)
    assert same_weights(weights_of(continued.model), weights_of(straight.model))


def test_a_loss_that_is_nan_is_named_and_moves_nothing():
    trainer = trainer_for(pairs=[pair([4], [5, EOS], [6, EOS], margin=math.nan)] * 2)
    before = weights_of(trainer.model)
    with pytest.raises(NonFiniteLoss, match="step 1") as caught:
        trainer.step()
    assert caught.value.batch["tokens"].shape == (4, 3)
    assert same_weights(before, weights_of(trainer.model))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("learning_rate", -1e-3), ("learning_rate", math.nan), ("batch_size", 0), ("epochs", 0), ("weight_decay", 2.0)],
)
def test_a_wrong_setting_is_named_with_its_value(setting, value):
    with pytest.raises(WorkbenchError, match=f"{setting} is {value}"):
        RewardModelConfig(**{setting: value})


def test_nothing_to_train_on_or_to_measure_on_is_refused():
    with pytest.raises(WorkbenchError, match="0 training"):
        trainer_for(pairs=[])
    with pytest.raises(WorkbenchError, match="0 held-out"):
        trainer_for(held_out=[])
