"""Padding, length bucketing, tokenisation of plain texts; packed rows against the same documents alone."""

import itertools
import random
from itertools import chain

import pytest
import torch
from tiny_models import EOS, FAMILIES, PAD, tiny_model
from tiny_tokenizers import byte_bpe

from workbench import WorkbenchError
from workbench.models.packing import (
    collate_demonstrations,
    collate_packed,
    pack_documents,
    target_losses,
    token_lengths,
)
from workbench.models.tokens import (
    CHUNK_BATCHES,
    collate,
    collate_pairs,
    encode_texts,
    length_bucketed_batches,
    read_prompts,
)
from workbench.records import CompletionExample, PairExample


def batches_of(lengths, batch_size, seed=0):
    return length_bucketed_batches(lengths, batch_size, generator=torch.Generator().manual_seed(seed))


def padding_share(batches, lengths):
    """Share of padded slots in batches padded to their longest row."""
    slots = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    return 1 - sum(lengths) / slots


def skewed_lengths(count):
    rng = random.Random(1)
    return [1 + min(int(rng.expovariate(1 / 40)), 400) for _ in range(count)]


def test_prompts_are_padded_on_the_left_and_completions_on_the_right():
    # prompts "a b" and "c", completions "x <eos>" and "y z <eos>", as drawn in records.py
    a, b, c, x, y, z, eos, pad = 10, 11, 12, 13, 14, 15, 2, 0
    batch = collate([[a, b], [c]], [[x, eos], [y, z, eos]], pad_id=pad)
    assert batch.tokens.tolist() == [[a, b, x, eos, pad], [pad, c, y, z, eos]]
    assert batch.attention_mask.tolist() == [[True, True, True, True, False], [False, True, True, True, True]]
    assert batch.completion_mask.tolist() == [[True, True, False], [True, True, True]]
    assert batch.prompt_length == 2
    assert batch.completions.tolist() == [[x, eos, pad], [y, z, eos]]
    kinds = [part.dtype for part in (batch.tokens, batch.attention_mask, batch.completion_mask)]
    assert kinds == [torch.int64, torch.bool, torch.bool]


def test_masks_come_from_lengths_so_a_real_token_may_have_the_padding_id():
    batch = collate([[0], [5, 0]], [[0, 2], [7]], pad_id=0)
    assert batch.attention_mask.tolist() == [[False, True, True, True], [True, True, True, False]]
    assert batch.completion_mask.tolist() == [[True, True], [True, False]]


def test_prompts_alone_make_a_batch_without_completions():
    batch = collate([[5], [6, 7]], [[], []], pad_id=0)
    assert batch.tokens.tolist() == [[0, 5], [6, 7]]
    assert batch.completion_mask.shape == (2, 0)


def test_a_pairs_completions_are_neighbouring_rows_chosen_first():
    examples = [
        PairExample(prompt_ids=[4], chosen_ids=[5, 2], rejected_ids=[6, 7, 2], margin=0.0),
        PairExample(prompt_ids=[8, 9], chosen_ids=[10, 2], rejected_ids=[2], margin=0.0),
    ]
    batch = collate_pairs(examples, 0)
    assert batch.tokens.tolist() == [[0, 4, 5, 2, 0], [0, 4, 6, 7, 2], [8, 9, 10, 2, 0], [8, 9, 2, 0, 0]]
    assert batch.completion_mask.sum(1).tolist() == [2, 3, 2, 1]


@pytest.mark.parametrize(
    ("prompts", "completions", "says"),
    [
        ([[3], []], [[2], [2]], r"Row 1 .* 0 tokens"),
        ([[3]], [[2], [2]], "1 prompts and 2 completions"),
        ([], [], "at least one"),
    ],
)
def test_rows_that_make_no_batch_are_refused(prompts, completions, says):
    with pytest.raises(WorkbenchError, match=says):
        collate(prompts, completions, pad_id=0)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100, 8 * CHUNK_BATCHES + 3, 16 * CHUNK_BATCHES + 5])
def test_every_index_comes_once_and_at_most_one_batch_is_smaller(count):
    batches = batches_of(skewed_lengths(count), 8)
    assert sorted(chain.from_iterable(batches)) == list(range(count))
    assert sum(len(batch) < 8 for batch in batches) == (count % 8 > 0)
    assert max(map(len, batches)) <= 8


def test_bucketing_wastes_less_than_a_third_of_the_padding_of_random_batches():
    lengths = skewed_lengths(4000)
    order = random.Random(0).sample(range(4000), 4000)
    shuffled = padding_share([order[i : i + 16] for i in range(0, 4000, 16)], lengths)
    bucketed = padding_share(batches_of(lengths, 16), lengths)
    assert shuffled > 0.5  # the case is one where padding matters
    assert bucketed < shuffled / 3


def test_the_same_generator_state_gives_the_same_batches_and_the_next_epoch_others():
    lengths = skewed_lengths(500)
    generator = torch.Generator().manual_seed(3)
    first, second = (length_bucketed_batches(lengths, 16, generator=generator) for _ in range(2))
    assert first == batches_of(lengths, 16, seed=3)
    assert first != second
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}


def test_batches_do_not_come_in_order_of_length():
    lengths = skewed_lengths(16 * CHUNK_BATCHES)
    means = [sum(lengths[i] for i in batch) / len(batch) for batch in batches_of(lengths, 16)]
    assert means != sorted(means) and means != sorted(means, reverse=True)


def test_the_smaller_batch_is_not_always_made_of_the_longest_rows():
    lengths = list(range(17))
    left_over = {batch[0] for seed in range(60) for batch in batches_of(lengths, 4, seed) if len(batch) == 1}
    assert len(left_over) > 8  # expected about 16.6 of 17


def test_nothing_to_batch_is_one_sentence():
    with pytest.raises(WorkbenchError, match="no examples"):
        batches_of([], 4)
    with pytest.raises(WorkbenchError, match="batch_size is 0"):
        batches_of([1, 2], 0)


def test_prompts_keep_the_tokenizers_bos_and_lose_its_eos():
    plain, both = byte_bpe(), byte_bpe(before="<bos>", after="<eos>")
    (bare,) = read_prompts(plain, ["a day"]).ids
    assert plain.decode(bare) == "a day"
    assert read_prompts(both, ["a day"]).ids == [[both.bos_token_id, *bare]]
    assert read_prompts(plain, []).ids == []


def test_a_text_that_already_starts_with_bos_gets_no_second_one():
    tokenizer = byte_bpe(before="<bos>")
    assert read_prompts(tokenizer, ["<bos>a day"]).ids == read_prompts(tokenizer, ["a day"]).ids


def test_completions_end_with_one_eos_where_they_finished():
    tokenizer = byte_bpe(before="<bos>", after="<eos>")
    eos = tokenizer.eos_token_id
    said = [" hours", " hours", " hours<eos>", ""]
    _, (cut, whole, written, empty) = encode_texts(tokenizer, ["four"] * 4, said, [False, True, True, True])
    assert tokenizer.decode(cut) == " hours" and tokenizer.bos_token_id not in cut
    assert whole == [*cut, eos] and written == whole
    assert empty == [eos]


def test_prompt_and_completion_join_to_the_original_text():
    tokenizer = byte_bpe()
    prompts, completions = encode_texts(tokenizer, ["Answer:", "hé "], [" four\n", "łódź 😀"], [True, False])
    whole = [tokenizer.decode(prompt + completion) for prompt, completion in zip(prompts, completions, strict=True)]
    assert whole == ["Answer: four\n<eos>", "hé łódź 😀"]


def test_a_tokenizer_without_eos_is_refused():
    tokenizer = byte_bpe()
    tokenizer.eos_token = None
    with pytest.raises(WorkbenchError, match="no EOS"):
        encode_texts(tokenizer, ["a"], ["b"], [True])


# Packed rows against the same documents alone; demonstrations learn their completion only.


ROWS = [[[4, 5, 6, EOS], [7, 8, EOS], [9, 10, 11, 12, 13, EOS]], [[14, 15, 4, EOS], [16, EOS]]]
ATTENTION = ("sdpa", "eager")


def model_with(family, attention):
    model = tiny_model(family)
    model.set_attn_implementation(attention)
    return model


@torch.no_grad()
def losses_alone(model, document) -> list[float]:
    """Cross-entropy of each token but the first, from the library's own unpadded pass, in fp64."""
    logprobs = model(input_ids=torch.tensor([document])).logits[0].double().log_softmax(-1)
    return [-logprobs[index, token].item() for index, token in enumerate(document[1:])]


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_document_has_the_losses_it_has_alone(family, attention):
    model = model_with(family, attention)
    with torch.no_grad():
        packed = target_losses(model, collate_packed(ROWS, PAD)).tolist()
    alone = [losses_alone(model, document) for row in ROWS for document in row]
    assert packed == pytest.approx(list(itertools.chain(*alone)), abs=1e-5)


def test_the_first_token_of_a_document_and_padding_are_no_targets():
    batch = collate_packed(ROWS, PAD)
    assert batch.target_mask.int().tolist() == [[0, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 1] + [0] * 7]
    assert batch.position_ids[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 4, 5]
    assert batch.tokens[1].tolist() == [14, 15, 4, EOS, 16, EOS] + [PAD] * 7


def test_packing_keeps_every_token_and_every_document_whole():
    rng = random.Random(0)
    tokens = itertools.count()
    documents = [[next(tokens) for _ in range(rng.randint(1, 12))] for _ in range(200)]
    rows = pack_documents(documents, 16)
    assert sorted(document for row in rows for document in row) == documents
    assert max(sum(map(len, row)) for row in rows) <= 16
    assert len(rows) <= 1.05 * sum(map(len, documents)) / 16


def test_a_document_longer_than_a_row_is_cut_into_pieces_in_order():
    rows = pack_documents([list(range(10)), [20]], 4)
    assert rows == [[[0, 1, 2, 3]], [[4, 5, 6, 7]], [[8, 9], [20]]]


def test_nothing_to_pack_is_refused():
    with pytest.raises(WorkbenchError, match="no documents to pack"):
        pack_documents([], 8)


def test_demonstrations_learn_every_completion_token_with_eos_and_none_of_the_prompt():
    examples = [
        CompletionExample(prompt_ids=[4, 5, 6], completion_ids=[7, EOS]),
        CompletionExample(prompt_ids=[8], completion_ids=[9, 10, 11, EOS]),
    ]
    batch = collate_demonstrations(examples, PAD)
    targets = [row[mask].tolist() for row, mask in zip(batch.tokens, batch.target_mask, strict=True)]
    assert targets == [[7, EOS], [9, 10, 11, EOS]]
    assert batch.tokens.tolist() == [[4, 5, 6, 7, EOS], [8, 9, 10, 11, EOS]]  # as wide as the longest, not wider
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_demonstration_has_the_losses_it_has_alone_whatever_pads_it(family, attention):
    model = model_with(family, attention)
    examples = [
        CompletionExample(prompt_ids=[4, 5, 6], completion_ids=[7, EOS]),
        CompletionExample(prompt_ids=[8], completion_ids=[9, 10, 11, 12, 13, EOS]),
    ]
    expected = [losses_alone(model, [4, 5, 6, 7, EOS])[2:], losses_alone(model, [8, 9, 10, 11, 12, 13, EOS])]
    for pad_id in (PAD, 19):
        with torch.no_grad():
            losses = target_losses(model, collate_demonstrations(examples, pad_id))
        assert losses.tolist() == pytest.approx([*expected[0], *expected[1]], abs=1e-5)


def test_a_demonstration_without_a_prompt_is_refused_by_its_row():
    examples = [CompletionExample(prompt_ids=ids, completion_ids=[7, EOS]) for ids in ([4], [])]
    with pytest.raises(WorkbenchError, match="Row 1"):
        collate_demonstrations(examples, PAD)


def test_lengths_count_the_tokens_of_demonstrations_and_of_packed_rows():
    assert token_lengths([CompletionExample(prompt_ids=[4, 5, 6], completion_ids=[7, EOS])]) == [5]
    assert token_lengths(ROWS) == [13, 6]
