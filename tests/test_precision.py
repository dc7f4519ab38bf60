"""Layers in bf16 beside the same in fp32: near in what they say, equal in where they start, fp32 in what is kept."""

import math

import pytest
import torch
from policy_gradient_cases import tiny_critic, trainer_for
from safetensors.torch import load_file
from test_micro_batches import CASES, DEMONSTRATIONS, aligned, language_model, taken
from tiny_models import COMPLETIONS, FAMILIES, PAD, PROMPTS, saved, tiny_model, word_tokenizer
from trainer_checks import assert_continues
from transformers import AutoModelForSequenceClassification

from workbench import WorkbenchError
from workbench.models import computing
from workbench.models.computing import compute_in, sampler_of
from workbench.models.load import add_lora, frozen, load_policy, without_dropout
from workbench.models.packing import collate_demonstrations
from workbench.models.rewards import raw_rewards
from workbench.models.sampling import sample
from workbench.models.scoring import completion_logprobs
from workbench.models.tokens import collate
from workbench.tasks.stage import Stage
from workbench.trainers.direct_alignment import DirectAlignmentConfig, DirectAlignmentTrainer
from workbench.trainers.ilql import IlqlConfig

NEAR = 0.1  # nats per token, of weights that are twenty times as large as usual
SEQUENCES = collate(PROMPTS, COMPLETIONS, pad_id=PAD)
pytestmark = pytest.mark.skipif(not computing._cpu_has_bf16(), reason="this CPU has no bf16")


def by_autocast(model):
    compute_in(without_dropout(model), "bf16")
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_in_bf16_are_near_those_in_fp32(family):
    exact = completion_logprobs(without_dropout(tiny_model(family)), SEQUENCES)
    rounded = completion_logprobs(by_autocast(tiny_model(family)), SEQUENCES)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < NEAR


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_model_says_what_the_policy_that_starts_from_it_says(family):
    reference, policy = frozen(tiny_model(family), precision="bf16"), by_autocast(tiny_model(family))
    assert torch.equal(completion_logprobs(reference, SEQUENCES), completion_logprobs(policy, SEQUENCES))
    kept = {
        weight.dtype for layer in computing.layers_of(reference) for weight in layer.parameters() if weight.dim() > 1
    }
    assert kept == {torch.bfloat16}
    assert reference.dtype == torch.float32  # of embeddings and head
    assert {weight.dtype for weight in policy.parameters()} == {torch.float32}


def test_losses_of_training_in_bf16_are_near_and_what_is_saved_is_fp32(tmp_path):
    losses = {}
    for precision in ("fp32", "bf16"):
        trainer = language_model(collate_demonstrations, DEMONSTRATIONS, precision=precision, steps=6)
        losses[precision] = [trainer.step()["loss"] for _ in range(6)]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16"] != losses["fp32"] and losses["bf16"][-1] < 0.98 * losses["bf16"][0]
    trainer.model.save_pretrained(tmp_path)
    assert {weight.dtype for weight in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}


def test_what_samples_is_all_in_bf16_and_is_scored_as_training_scores(tmp_path):
    folder = saved(tiny_model(), word_tokenizer(), tmp_path / "model")
    policy, plain = by_autocast(tiny_model()), load_policy(folder, word_tokenizer(), dtype="bfloat16")
    draws = [torch.Generator().manual_seed(1) for _ in range(2)]
    mine, its = (
        sample(model, 4 * PROMPTS, max_completion_length=8, generator=draw)
        for model, draw in zip((policy, plain), draws, strict=True)
    )
    assert torch.equal(mine.tokens, its.tokens)
    assert torch.equal(mine.logprobs, completion_logprobs(policy, mine))
    assert sampler_of(plain) is plain


def test_a_comparison_with_a_reference_in_bf16_starts_at_log_2():
    policy, reference = tiny_model(), frozen(tiny_model(), precision="bf16")
    pairs = aligned("dpo").examples
    config = DirectAlignmentConfig(precision="bf16", batch_size=8)
    row = DirectAlignmentTrainer(policy, reference, pairs, pairs, config).step()
    assert row["loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert row["chosen_reward"] == row["rejected_reward"] == 0


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "nlpo"])
def test_the_first_update_in_bf16_has_a_ratio_of_one_and_no_kl(algorithm):
    reference = frozen(tiny_model(), precision="bf16")
    settings = {"num_mini_batches": 1, "precision": "bf16", "micro_batch_tokens": 40, "checkpoint_activations": True}
    settings["evaluate_every"] = 1
    row = trainer_for(reference=reference, algorithm=algorithm, critic=None, **settings).step()
    assert row["kl"] == pytest.approx(0, abs=1e-6)
    assert row["approx_kl"] == pytest.approx(0, abs=1e-9)
    assert row["clip_fraction"] == 0
    assert math.isfinite(row["policy_grad_norm"]) and row["held_out_kl"] > 0


@pytest.mark.parametrize("name", ["demonstrations", "soft", "loss dpo", "plackett_luce"])
def test_gradients_in_bf16_point_where_those_in_fp32_do(name, monkeypatch):
    exact, rounded = (taken(CASES[name], monkeypatch, precision=each)[1] for each in ("fp32", "bf16"))
    first, second = (torch.cat([gradient.flatten() for gradient in each]) for each in (exact, rounded))
    assert torch.cosine_similarity(first, second, dim=0) > 0.99


def test_adapters_learn_in_bf16():
    policy = add_lora(tiny_model(), rank=2)
    before = completion_logprobs(without_dropout(policy), SEQUENCES)
    rounded = completion_logprobs(by_autocast(policy), SEQUENCES)
    assert 0 < (rounded - before).abs().max() < NEAR
    assert computing.in_bf16(policy.merge_and_unload())


def test_a_frozen_reward_model_in_bf16_scores_nearly_alike():
    scorers = [tiny_model(auto=AutoModelForSequenceClassification) for _ in range(2)]
    exact, rounded = (
        raw_rewards(frozen(scorer, precision=precision), SEQUENCES)
        for scorer, precision in zip(scorers, ("fp32", "bf16"), strict=True)
    )
    assert rounded.dtype == torch.float32
    assert 0 < (exact - rounded).abs().max() < 0.05 * exact.abs().max()


def test_a_stage_freezes_in_its_precision_and_trains_in_fp32(tmp_path):
    folder = saved(tiny_model(), word_tokenizer(), tmp_path / "model")
    stage = Stage({"model": folder, "precision": "bf16", "seed": 0})
    assert computing.in_bf16(stage.reference) and not computing.in_bf16(stage.policy)
    assert {weight.dtype for weight in stage.policy.parameters()} == {torch.float32}


def test_precisions_that_are_not_there_are_refused(monkeypatch):
    with pytest.raises(WorkbenchError, match="precision is 'fp16': choose one of fp32, bf16"):
        frozen(tiny_model(), precision="fp16")
    with pytest.raises(WorkbenchError, match="precision is 'bf16', but ILQL saves"):
        IlqlConfig(precision="bf16")
    monkeypatch.setattr(computing, "_cpu_has_bf16", lambda: False)
    with pytest.raises(WorkbenchError, match="precision is 'bf16', which this machine's cpu cannot compute: take fp32"):
        trainer_for(critic=tiny_critic(), precision="bf16")


@pytest.mark.parametrize("name", ["loss dpo", "policy ppo"])
def test_a_training_in_bf16_and_in_parts_is_resumed_as_if_nothing_had_happened(name, tmp_path):
    settings = {"precision": "bf16", "micro_batch_tokens": 40, "checkpoint_activations": True}
    assert_continues(lambda: CASES[name](**settings), tmp_path, steps=2, before=1)
