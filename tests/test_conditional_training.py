"""Documents with control tokens: who is judged, by which half, and what stays plain."""

import statistics

import pytest
from datasets import Dataset
from tiny_models import EOS, tiny_model, word_tokenizer
from transformers import AutoModelForSequenceClassification

from workbench import WorkbenchError
from workbench.models.examples import text_documents
from workbench.models.rewards import LearnedReward
from workbench.trainers.conditional import conditional_documents

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
