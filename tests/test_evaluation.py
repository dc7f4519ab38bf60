"""Evaluation tables, and KL against exact enumeration."""

import math

import pandas as pd
import pytest
import torch
from tiny_models import EOS, PAD, every_completion, plain_next_logprobs, tiny_model, word_tokenizer

from workbench.analysis.evaluations import summarise_evaluation
from workbench.models.sampling import sample
from workbench.models.tokens import collate, conditioned
from workbench.records import PromptExample, Rollout
from workbench.trainers.evaluation import evaluate_at_temperatures, evaluate_policy, sequence_kl

TEXTS = ["user : what colour is the sky assistant :", "the grass", "user : thanks assistant :"]


def prompt_examples() -> list[PromptExample]:
    return [
        PromptExample(prompt_ids=word_tokenizer()(text)["input_ids"], row={"prompt": text, "kind": kind})
        for text, kind in zip(TEXTS * 4, ["qa", "suggest", "qa", "harm"] * 3, strict=True)
    ]


def count_words(prompts, completions, *, finished, **columns) -> list[float]:
    assert len(prompts) == len(finished) == 12 and list(columns) == ["kind"] and columns["kind"][3] == "harm"
    return [float(len(completion.split())) for completion in completions]


def test_the_table_has_the_columns_of_the_prompts_what_was_said_and_every_reward():
    frame, rollout = evaluate_policy(
        tiny_model(), word_tokenizer(), prompt_examples(), {"words": count_words}, max_completion_length=5
    )
    assert list(frame) == ["prompt", "kind", "completion", "finished", "completion_length", "words"]
    assert frame["prompt"].tolist() == TEXTS * 4
    for row, (_, record) in enumerate(frame.iterrows()):
        tokens = rollout.completions[row][rollout.completion_mask[row]].tolist()
        assert record["completion_length"] == len(tokens)
        assert record["finished"] == (tokens[-1] == EOS)
        assert record["words"] == sum(token > 3 for token in tokens)  # ids up to 3 are special
        assert len(tokens) <= 5


def test_the_seed_decides_what_is_said_and_greedy_needs_none():
    def said(**arguments):
        return evaluate_policy(
            tiny_model(), word_tokenizer(), prompt_examples(), {}, max_completion_length=6, **arguments
        )[0]["completion"].tolist()

    assert said(seed=1) == said(seed=1) != said(seed=2)
    assert said(seed=1, temperature=0.0) == said(seed=2, temperature=0.0)
    assert said(temperature=0.0)[:3] == said(temperature=0.0)[3:6]  # equal prompts, equal answers


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sequence_kl_has_the_exact_kl_of_whole_completions_as_its_expectation(temperature):
    policy, reference = tiny_model(vocab_size=6, layers=1), tiny_model(vocab_size=6, layers=1, seed=1)
    prompt = [4, 5]
    ours = every_completion(policy, prompt, 3, temperature=temperature)
    theirs = every_completion(reference, prompt, 3, temperature=temperature)
    exact = sum(chance * math.log(chance / theirs[completion]) for completion, chance in ours.items())
    batch = collate([prompt] * len(ours), list(map(list, ours)), pad_id=PAD)
    rollout = Rollout(
        **vars(batch), logprobs=torch.zeros(batch.completion_mask.shape), finished=torch.ones(len(ours)).bool()
    )
    sums = sequence_kl(policy, reference, rollout, temperature=temperature, batch_size=7)
    expectation = sum(chance * value for chance, value in zip(ours.values(), sums, strict=True))
    assert exact > 0.1 and expectation == pytest.approx(exact, abs=1e-5)
    assert min(sums) > 0  # exact at every token, unlike the log-ratio of a sample


def test_a_reference_is_measured_without_the_control_token_that_the_policy_was_asked_with():
    policy, reference = tiny_model(vocab_size=6, layers=1), tiny_model(vocab_size=6, layers=1, seed=1)
    policy.config.control_token_ids = reference.config.control_token_ids = [5]
    ours, theirs = every_completion(policy, [5, 4, 3], 3), every_completion(reference, [4, 3], 3)
    exact = sum(chance * math.log(chance / theirs[completion]) for completion, chance in ours.items())
    prompts = conditioned([PromptExample(prompt_ids=[4, 3], row={"prompt": "x"})], 5) * len(ours)
    batch = collate([prompt.prompt_ids for prompt in prompts], list(map(list, ours)), pad_id=PAD)
    rollout = Rollout(
        **vars(batch), logprobs=torch.zeros(batch.completion_mask.shape), finished=torch.ones(len(ours)).bool()
    )
    sums = sequence_kl(policy, reference, rollout)
    assert exact > 0.1 and sum(c * kl for c, kl in zip(ours.values(), sums, strict=True)) == pytest.approx(
        exact, abs=1e-5
    )


def test_sequence_kl_of_one_token_is_the_kl_of_the_next_token():
    policy, reference = tiny_model(), tiny_model(seed=1)
    prompts = [[4, 6, 7], [9], [10, 11, 12, 13]]
    rollout = sample(policy, prompts, max_completion_length=1, generator=torch.Generator().manual_seed(0))
    for prompt, value in zip(prompts, sequence_kl(policy, reference, rollout), strict=True):
        ours, theirs = (plain_next_logprobs(model, prompt)[1:] for model in (policy, reference))
        assert value == pytest.approx((ours.exp() * (ours - theirs)).sum().item(), abs=1e-5)


def test_every_temperature_is_evaluated_and_kl_is_measured_at_one():
    policy, reference = tiny_model(), tiny_model(seed=1)
    arguments = policy, word_tokenizer(), prompt_examples(), {"gold": count_words}
    frame = evaluate_at_temperatures(*arguments, reference=reference, max_completion_length=5, seed=3)
    assert frame["temperature"].tolist() == [1.0] * 12 + [0.7] * 12 + [0.5] * 12 + [0.0] * 12
    alone, rollout = evaluate_policy(*arguments, max_completion_length=5, seed=3)
    assert frame["completion"][:12].tolist() == alone["completion"].tolist()
    assert frame["kl"][:12].tolist() == sequence_kl(policy, reference, rollout)
    assert frame["kl"][12:].isna().all()


def test_the_summary_has_means_and_their_errors_over_prompts():
    frame = pd.DataFrame(
        {
            "temperature": [1.0, 1.0, 1.0, 0.0, 0.0, 0.0],
            "gold": [1.0, 2.0, 6.0, 4.0, 4.0, 4.0],
            "kl": [0.5, 1.5, 1.0, *[math.nan] * 3],
            "completion_length": [2, 4, 6, 1, 1, 1],
        }
    )
    hot, greedy = summarise_evaluation(frame).to_dict("records")
    assert (hot["temperature"], hot["count"], hot["gold"], hot["kl"], hot["completion_length"]) == (1.0, 3, 3.0, 1.0, 4)
    assert hot["gold_se"] == pytest.approx(math.sqrt(7 / 3))  # variance (4 + 1 + 9) / 2 = 7, of 3 prompts
    assert (greedy["gold"], greedy["gold_se"]) == (4.0, 0.0) and math.isnan(greedy["kl"])
