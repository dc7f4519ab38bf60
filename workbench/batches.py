"""Texts -> token ids -> batches: rows of similar length together, padded into the one layout of `records.Sequences`.

A prompt gets the tokenizer's own special tokens (a BOS where it has one) but no EOS; a completion gets none but EOS.
The two are tokenised apart, so that a policy is trained on exactly the boundary it meets when it samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from workbench.errors import WorkbenchError
from workbench.records import PairExample, Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK_BATCHES = 32  # batches sorted together: larger wastes less padding, smaller mixes lengths better between epochs


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, prompts: list[str], completions: list[str], finished: list[bool]
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of prompts and of their completions, the latter with EOS where finished."""
    return encode_prompts(tokenizer, prompts), encode_completions(tokenizer, completions, finished)


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> list[list[int]]:
    """Token ids of prompts with the tokenizer's special tokens, one BOS at most and no EOS."""
    if not prompts:
        return []
    ids = tokenizer(prompts, verbose=False)["input_ids"]
    if tokenizer.eos_token_id is not None and tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]:
        ids = [prompt[:-1] for prompt in ids]  # some tokenizers end every text, but this one goes on
    bos = tokenizer.bos_token_id  # chat templates write BOS into the text, and the tokenizer puts another before it
    return [prompt[1:] if bos is not None and prompt[:2] == [bos, bos] else prompt for prompt in ids]


def encode_completions(
    tokenizer: PreTrainedTokenizerBase, completions: list[str], finished: list[bool]
) -> list[list[int]]:
    """Token ids of completions without special tokens, ending with one EOS where finished."""
    eos = eos_id(tokenizer)
    if not completions:
        return []
    ids = tokenizer(completions, add_special_tokens=False, verbose=False)["input_ids"]
    return [
        [*completion, eos] if ended and completion[-1:] != [eos] else completion
        for completion, ended in zip(ids, finished, strict=True)
    ]


def eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a completion; WorkbenchError where the tokenizer has none."""
    if tokenizer.eos_token_id is None:
        raise WorkbenchError(
            f"The tokenizer {tokenizer.name_or_path!r} has no EOS token, so no completion could end: "
            "set tokenizer.eos_token."
        )
    return tokenizer.eos_token_id


def length_bucketed_batches(lengths: list[int], batch_size: int, *, generator: torch.Generator) -> list[list[int]]:
    """One epoch of index batches, every index once, rows of similar length (tokens) together; one batch may be smaller.

    Each call draws a new permutation from `generator`. WorkbenchError when there is nothing to batch.
    """
    if batch_size < 1:
        raise WorkbenchError(f"batch_size is {batch_size}, but a batch holds at least 1 example: raise it.")
    if not lengths:
        raise WorkbenchError("There are no examples to make batches of: check the dataset and its limit.")
    order = torch.randperm(len(lengths), generator=generator).tolist()
    # The remainder is drawn before sorting; taken after it, the longest rows would always sit in the small batch.
    whole = len(order) - len(order) % batch_size
    batches = [order[whole:]] if whole < len(order) else []
    chunk = CHUNK_BATCHES * batch_size
    for start in range(0, whole, chunk):
        similar = sorted(order[start : min(start + chunk, whole)], key=lengths.__getitem__)
        batches += [similar[i : i + batch_size] for i in range(0, len(similar), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def collate(prompt_ids: list[list[int]], completion_ids: list[list[int]], *, pad_id: int) -> Sequences:
    """B prompts left-padded to P and their completions right-padded to R tokens: Sequences of (B, P+R) and (B, R).

    A completion may be empty, a prompt may not: WorkbenchError names the row.
    """
    if not prompt_ids or len(prompt_ids) != len(completion_ids):
        raise WorkbenchError(
            f"A batch needs as many completions as prompts and at least one, not {len(prompt_ids)} prompts "
            f"and {len(completion_ids)} completions: pass one completion per prompt."
        )
    if [] in prompt_ids:
        raise WorkbenchError(f"Row {prompt_ids.index([])} of the batch has a prompt of 0 tokens: give it at least one.")
    longest_prompt, longest_completion = max(map(len, prompt_ids)), max(map(len, completion_ids))
    tokens, attention, completion = [], [], []
    for prompt, answer in zip(prompt_ids, completion_ids, strict=True):
        left, right = longest_prompt - len(prompt), longest_completion - len(answer)
        tokens.append([pad_id] * left + prompt + answer + [pad_id] * right)
        completion.append([True] * len(answer) + [False] * right)
        attention.append([False] * left + [True] * len(prompt) + completion[-1])
    return Sequences(
        tokens=torch.tensor(tokens, dtype=torch.long),
        attention_mask=torch.tensor(attention, dtype=torch.bool),
        completion_mask=torch.tensor(completion, dtype=torch.bool),
    )


def collate_groups(prompt_ids: list[list[int]], completion_ids: list[list[list[int]]], *, pad_id: int) -> Sequences:
    """B prompts with K completions each as B*K rows, those of a prompt side by side: `values.view(B, K)` parts them."""
    prompts = [prompt for prompt, group in zip(prompt_ids, completion_ids, strict=True) for _ in group]
    return collate(prompts, [completion for group in completion_ids for completion in group], pad_id=pad_id)


def collate_pairs(examples: list[PairExample], pad_id: int) -> Sequences:
    """B pairs as 2B rows, each chosen completion followed by the rejected one: `values.view(B, 2)` parts them."""
    completions = [[example.chosen_ids, example.rejected_ids] for example in examples]
    return collate_groups([example.prompt_ids for example in examples], completions, pad_id=pad_id)
