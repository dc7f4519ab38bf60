"""Packed rows against the same documents alone; demonstrations learn their completion only."""

import itertools
import random

import pytest
import torch
from tiny_models import EOS, FAMILIES, PAD, tiny_model

from workbench import WorkbenchError
from workbench.models.packing import (
    collate_demonstrations,
    collate_packed,
    pack_documents,
    target_losses,
    token_lengths,
)
from workbench.records import CompletionExample

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


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_document_sees_another_or_padding(family, attention):
    model = model_with(family, attention)
    changed = [[ROWS[0][0], [17, 18, 19], ROWS[0][2]], ROWS[1]]
    with torch.no_grad():
        before = target_losses(model, collate_packed(ROWS, PAD))
        after = target_losses(model, collate_packed(changed, pad_id=19))
    others = [0, 1, 2, *range(5, 14)]  # targets: 3 of the first document, 2 of the changed one, 5, 3 and 1
    assert torch.equal(before[others], after[others])
    assert (before[3:5] - after[3:5]).abs().min() > 1e-3


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
