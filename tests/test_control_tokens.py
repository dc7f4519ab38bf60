"""Control tokens: read, never said, never shown to the reference, kept with the run; quantiles against pandas."""

import statistics

import pandas as pd
import pytest
import torch
from datasets import Dataset
from tiny_models import EOS, FAMILIES, PAD, assert_plain_logprobs, saved, tiny_model, word_tokenizer
from transformers import AutoModelForSequenceClassification

from workbench import WorkbenchError, models
from workbench.models.examples import text_documents
from workbench.models.rewards import LearnedReward
from workbench.models.sampling import completion_texts, sample
from workbench.models.scoring import completion_logprobs
from workbench.models.tokens import (
    BAD_GOOD,
    QUANTILES,
    add_control_tokens,
    collate,
    conditioned,
    control_token_ids,
    quantile_indices,
    unconditioned,
)
from workbench.records import PromptExample
from workbench.trainers.language_model import conditional_documents


@pytest.fixture
def folder(tmp_path):
    """A folder with a tiny policy and its tokenizer, as an earlier run leaves them."""
    return saved(tiny_model(vocab_size=20), word_tokenizer(), tmp_path / "policy")


def extended(folder, tokens=QUANTILES):
    tokenizer, _ = models.load_tokenizer(folder)
    ids = add_control_tokens(tokenizer, tokens)
    return tokenizer, models.load_policy(folder, tokenizer), ids


def test_tokens_are_added_once_and_in_order(folder):
    tokenizer, _ = models.load_tokenizer(folder)
    assert control_token_ids(tokenizer) == []
    assert add_control_tokens(tokenizer, BAD_GOOD) == [20, 21] == add_control_tokens(tokenizer, BAD_GOOD)
    assert add_control_tokens(tokenizer, QUANTILES) == [22, 23, 24, 25, 26]
    assert control_token_ids(tokenizer) == [20, 21, 22, 23, 24, 25, 26] and len(tokenizer) == 27
    assert tokenizer("<|good|> the sky")["input_ids"] == [21, 7, 8]
    assert tokenizer.decode([20, 7, 24, 8], skip_special_tokens=True) == "the sky"


def test_a_policy_that_never_heard_of_them_predicts_what_it_did(folder):
    tokenizer, policy, _ = extended(folder)
    plain = models.load_policy(folder, models.load_tokenizer(folder)[0])
    batch = collate([[4, 6], [9]], [[7, EOS], [8, 8, EOS]], pad_id=PAD)
    assert policy.config.vocab_size == len(tokenizer) == 25
    with torch.no_grad():
        torch.testing.assert_close(completion_logprobs(policy, batch), completion_logprobs(plain, batch))
    assert not hasattr(plain.config, "control_token_ids")  # nothing is written where there are none


def test_they_travel_with_the_run(folder, tmp_path):
    tokenizer, policy, ids = extended(folder)
    run = saved(policy, tokenizer, tmp_path / "run")
    again, notes = models.load_tokenizer(run)
    loaded = models.load_policy(run, again)
    assert notes == [] and control_token_ids(again) == ids == loaded.config.control_token_ids
    assert add_control_tokens(again, QUANTILES) == ids
    batch = collate([[ids[-1], 6], [ids[0], 6]], [[7, EOS], [7, EOS]], pad_id=PAD)
    with torch.no_grad():
        expected = completion_logprobs(policy, batch)
        assert torch.equal(completion_logprobs(loaded, batch), expected)
    assert not torch.allclose(expected[0], expected[1])  # the token is read


def test_a_policy_built_from_nothing_knows_them():
    tokenizer = word_tokenizer()
    ids = add_control_tokens(tokenizer, BAD_GOOD)
    assert models.build_policy("llama-64x2", tokenizer).config.control_token_ids == ids


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_they_are_never_said_and_cost_no_probability(folder, temperature):
    tokenizer, policy, ids = extended(folder)
    with torch.no_grad():  # every hidden state makes some of them by far the most likely token
        policy.lm_head.weight[ids] = 50 * torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    prompts = [[ids[-1], 4, 6]] * 200
    generator = torch.Generator().manual_seed(0)
    rollout = sample(policy, prompts, max_completion_length=6, temperature=temperature, generator=generator)
    assert not torch.isin(rollout.completions, torch.tensor(ids)).any()
    assert not any("<|" in text for text in completion_texts(tokenizer, rollout))
    said = [row[mask].tolist() for row, mask in zip(rollout.completions[:3], rollout.completion_mask, strict=False)]
    assert_plain_logprobs(rollout.logprobs[:3], policy, prompts[:3], said, tolerance=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(completion_logprobs(policy, rollout), rollout.logprobs, rtol=1e-4, atol=1e-4)


def test_conditioning_changes_what_the_policy_reads_and_not_what_a_reward_reads():
    prompts = [PromptExample(prompt_ids=[4, 6], row={"prompt": "user :", "kind": "qa"})]
    (told,) = conditioned(prompts, 24)
    assert told.prompt_ids == [24, 4, 6] and told.row == prompts[0].row and prompts[0].prompt_ids == [4, 6]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reader_who_is_not_told_reads_the_rest_as_if_the_token_were_not_there(family):
    model = tiny_model(family, vocab_size=25)
    model.config.control_token_ids = [20, 21, 22, 23, 24]
    prompts, completions = [[23, 4, 6, 7], [24, 9], [8, 8]], [[10, EOS], [11, 12, 13, EOS], [5]]
    batch = collate(prompts, completions, pad_id=PAD)
    with torch.no_grad():
        logprobs = completion_logprobs(model, unconditioned(batch, model))
    assert_plain_logprobs(logprobs, model, [[4, 6, 7], [9], [8, 8]], completions)
    assert unconditioned(batch, tiny_model(family)) is batch  # without tokens there is nothing to leave out


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("size", [7, 40, 41, 1000])
def test_quantiles_are_those_of_pandas(count, size):
    scores = torch.randn(size, generator=torch.Generator().manual_seed(size), dtype=torch.float64).tolist()
    from_the_best = pd.qcut([-score for score in scores], count, labels=False)  # pandas closes its bins on the right
    assert quantile_indices(scores, count) == (count - 1 - from_the_best).tolist()


@pytest.mark.parametrize("share", [0.05, 0.4, 0.9])
def test_equal_scores_share_a_quantile_and_the_best_are_always_told_from_the_rest(share):
    good = round(100 * share)
    indices = quantile_indices([0.0] * (100 - good) + [1.0] * good, 5)
    assert set(indices[: 100 - good]) == {0} and set(indices[100 - good :]) == {4}
    assert quantile_indices([2.0] * 7, 5) == [4] * 7 and quantile_indices([1.0], 2) == [1]


def test_a_score_that_is_not_a_number_is_refused():
    with pytest.raises(WorkbenchError, match="scores holds 1 values that are NaN"):
        quantile_indices([1.0, float("nan")], 2)


# Documents with control tokens: who is judged, by which half, and what stays plain.


WORDS = ["user", "assistant", ":", "the", "sky", "is", "red", "green", "blue", "grass", "yes", "no", "what"]
TEXTS = [" ".join(WORDS[: 1 + 7 * row % 13]) for row in range(60)]  # lengths 1 to 13
SORTS = ["dialogue", "sums", "dialogue"] * 20


def words_said(prompts, completions, *, finished) -> list[float]:
    assert all(finished)
    return [float(len((prompt + completion).split())) for prompt, completion in zip(prompts, completions, strict=True)]


def plain_documents():
    return text_documents(Dataset.from_dict({"text": TEXTS}), word_tokenizer())


def test_dialogues_follow_the_token_of_their_half_and_other_documents_none():
    tokenizer, dataset = word_tokenizer(), Dataset.from_dict({"text": TEXTS, "sort": SORTS})
    documents = conditional_documents(dataset, tokenizer, words_said, seed=0, plain=0.0)
    bad, good = tokenizer.convert_tokens_to_ids(["<|bad|>", "<|good|>"])
    judged = [len(text.split()) for text, sort in zip(TEXTS, SORTS, strict=True) if sort == "dialogue"]
    for document, text, sort, plain in zip(documents, TEXTS, SORTS, plain_documents(), strict=True):
        liked = sum(length < len(text.split()) for length in judged) >= (len(judged) - 1) / 2
        assert document == ([good if liked else bad] if sort == "dialogue" else []) + plain
        assert document[-1] == EOS
    assert (bad, good) == (20, 21)


def test_without_sorts_everything_is_judged():
    tokenizer = word_tokenizer()
    documents = conditional_documents(Dataset.from_dict({"text": TEXTS}), tokenizer, words_said, seed=0, plain=0.0)
    assert {document[0] for document in documents} == {20, 21}


def test_a_share_stays_plain_and_the_seed_decides_which():
    dataset = Dataset.from_dict({"text": TEXTS * 20})

    def plain_rows(seed, plain):
        documents = conditional_documents(dataset, word_tokenizer(), words_said, seed=seed, plain=plain)
        return [row for row, document in enumerate(documents) if document[0] < 20]

    tenth = plain_rows(0, 0.1)
    assert 0.08 < len(tenth) / 1200 < 0.12
    assert tenth == plain_rows(0, 0.1) != plain_rows(1, 0.1)
    assert 0.003 < len(plain_rows(0, 0.01)) / 1200 < 0.02 and plain_rows(0, 0.0) == []


def test_a_learned_reward_reads_the_whole_document():
    tokenizer = word_tokenizer()
    model = tiny_model(auto=AutoModelForSequenceClassification)
    reward = LearnedReward(model, tokenizer, max_length=40)
    texts = sorted(set(TEXTS))
    whole = reward(texts, [""] * len(texts), finished=[True] * len(texts))
    documents = conditional_documents(Dataset.from_dict({"text": texts}), word_tokenizer(), reward, seed=0, plain=0.0)
    median = statistics.median(whole)
    assert [document[0] == 21 for document in documents] == [score >= median for score in whole]


def test_empty_rows_are_left_out_and_nothing_to_judge_is_no_error():
    texts = Dataset.from_dict({"text": ["the sky", " ", "is red"], "sort": ["sums", "dialogue", "sums"]})
    assert conditional_documents(texts, word_tokenizer(), words_said, seed=0) == [[7, 8, EOS], [9, 10, EOS]]


def test_a_share_outside_0_to_1_is_refused():
    with pytest.raises(WorkbenchError, match=r"plain is 1\.5"):
        conditional_documents(Dataset.from_dict({"text": TEXTS}), word_tokenizer(), words_said, seed=0, plain=1.5)
