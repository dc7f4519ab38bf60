"""Texts -> token ids -> batches: rows of similar length together, padded into the one layout of `records.Sequences`.

Trainers, rewards and samplers all read a conversation here, and so the same ids of it. A prompt has the special tokens
of the tokenizer or of its chat template, but no EOS; a completion has none but its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from workbench import WorkbenchError
from workbench.models.chat_templates import Messages, end_ids, rendered, rendered_answer, turn_of
from workbench.records import PairExample, Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK_BATCHES = 32  # batches sorted together: larger wastes less padding, smaller mixes lengths better between epochs


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Prompts as a tokenizer reads them, whole."""

    given: list[str | Messages]  # texts or conversations
    texts: list[str]  # what an answer continues
    chat: list[bool]  # whether a chat template wrote that text: its answers end as it ends them
    special: list[bool]  # whether the tokenizer adds its own special tokens: a template writes them itself
    ids: list[list[int]]  # one BOS at most and no EOS


def read_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str | Messages]) -> Asked:
    """Prompts as text and token ids; a text that ends with the chat template's request is taken for its work."""
    turn, bos = turn_of(tokenizer), tokenizer.bos_token or ""
    texts, chat, special = [], [], []
    for row, prompt in enumerate(prompts):
        talk = not isinstance(prompt, str)
        texts.append(rendered(prompt, tokenizer, row=row, ask=True) if talk else prompt)
        chat.append(talk or (bool(turn.request.strip()) and prompt.endswith(turn.request)))
        begun = talk or prompt.startswith(bos) == turn.start.startswith(bos)  # else its BOS was taken off
        special.append(not (chat[-1] and begun))
    known: dict[tuple[str, bool], list[int]] = {}  # every text is read once
    for adds in set(special):
        part = list(dict.fromkeys(text for text, its in zip(texts, special, strict=True) if its == adds))
        known |= {(text, adds): ids for text, (ids, _) in zip(part, _read(tokenizer, part, special=adds), strict=True)}
    ids = [known[key] for key in zip(texts, special, strict=True)]
    return Asked(given=list(prompts), texts=texts, chat=chat, special=special, ids=ids)


def read_answers(
    tokenizer: PreTrainedTokenizerBase, asked: Asked, answers: Sequence[str | Messages], finished: Sequence[bool]
) -> list[list[int]]:
    """Token ids of one answer to each prompt; one that finished ends with EOS, or as the chat template ends it.

    They are those of prompt and answer in one text, unless a token would reach across the boundary: a policy meets its
    prompt as it is and goes on from there.
    """
    turn, texts = turn_of(tokenizer), list(answers)
    for row, (prompt, answer) in enumerate(zip(asked.given, answers, strict=True)):
        if not isinstance(prompt, str):
            told = rendered_answer(prompt, answer, tokenizer, asked=asked.texts[row], turn=turn, row=row)
            texts[row] = told + turn.closing if finished[row] else told
        elif asked.chat[row]:
            texts[row] = turn.written(answer, finished=finished[row])
    rows = zip(_following(tokenizer, asked, texts, "input_ids"), asked.chat, finished, strict=True)
    ends = end_ids(tokenizer)
    return [_ended(ids, ends, chat) if ended else ids for ids, chat, ended in rows]


def answer_spans(tokenizer: PreTrainedTokenizerBase, asked: Asked, texts: Sequence[str]) -> list[list[int]]:
    """Where each token of `read_answers` stops in the text of its answer, in characters, but for a last EOS."""
    return _following(tokenizer, asked, texts, "offset_mapping")


def encode_texts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Messages],
    completions: Sequence[str | Messages],
    finished: Sequence[bool],
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of prompts and of their completions, the latter with their end where finished and nowhere else.

    Completions are messages, or words as `completion_texts` reads them off samples. A special token that a policy only
    spelt is text: its letters say nothing, and end nothing.
    """
    asked, turn, ends = read_prompts(tokenizer, prompts), turn_of(tokenizer), end_ids(tokenizer)
    rows = zip(completions, asked.chat, finished, strict=True)
    answers = [turn.said(text, finished=end) if chat and isinstance(text, str) else text for text, chat, end in rows]
    ids = read_answers(tokenizer, asked, answers, finished)
    special = {*ends, tokenizer.bos_token_id, tokenizer.pad_token_id}
    for row, (said, ended) in enumerate(zip(answers, finished, strict=True)):
        if isinstance(said, str) and special.intersection(ids[row][:-1] if ended else ids[row]):
            said = turn.written(said, finished=ended).removesuffix(turn.end) if asked.chat[row] else said
            spelt = _continuing(tokenizer, [said], "input_ids", split_special_tokens=True)[0]
            ids[row] = _ended(spelt, ends, asked.chat[row]) if ended else spelt
    return asked.ids, ids


def cut_prompt(ids: list[int], length: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The last `length` tokens of a prompt, the first of which is BOS where the prompt began with it."""
    if len(ids) <= length:
        return ids
    begins = length > 1 and ids[0] == tokenizer.bos_token_id
    return [ids[0], *ids[1 - length :]] if begins else ids[-length:]


def _ended(ids: list[int], ends: list[int], chat: bool) -> list[int]:
    """The ids with one end: the template's, which comes last in `ends`, in a chat, else EOS."""
    return ids if ids and ids[-1] in ends else [*ids, ends[-1] if chat else ends[0]]


def _following(tokenizer, asked: Asked, texts: Sequence[str], column: str) -> list[list]:
    """What a tokenizer's `column` says of the tokens that texts add to their prompts."""
    rows: list[list | None] = [None] * len(texts)
    for adds in set(asked.special):
        part = [row for row, its in enumerate(asked.special) if its == adds]
        wholes = _read(tokenizer, [asked.texts[row] + texts[row] for row in part], special=adds, column=column)
        for row, (ids, values) in zip(part, wholes, strict=True):
            start = asked.ids[row]  # an unknown word may go on in the answer, and still be one token
            if ids[: len(start)] == start and not (start and start[-1] == tokenizer.unk_token_id):
                rows[row] = _moved(values[len(start) :], len(asked.texts[row]))
    apart = [row for row, values in enumerate(rows) if values is None]
    for row, values in zip(apart, _continuing(tokenizer, [texts[row] for row in apart], column), strict=True):
        rows[row] = values
    return rows


def _continuing(tokenizer, texts: Sequence[str], column: str, **settings: bool) -> list[list]:
    """The same for texts that go on from another: read behind a character, for some tokenizers put a blank first."""
    rows: list[list | None] = [None] * len(texts)
    for before in ("\n", "a", ""):
        ((start, _),) = _read(tokenizer, [before], special=False, **settings)
        wholes = _read(tokenizer, [before + text for text in texts], special=False, column=column, **settings)
        for row, (ids, values) in enumerate(wholes):
            if rows[row] is None and ids[: len(start)] == start:
                rows[row] = _moved(values[len(start) :], len(before))
    return rows


def _moved(values: list, by: int) -> list:
    """Ids as they are, of offsets where they stop, `by` characters earlier."""
    return [value if isinstance(value, int) else value[1] - by for value in values]


def _read(
    tokenizer, texts: list[str], *, special: bool, column: str = "input_ids", **settings: bool
) -> list[tuple[list[int], list]]:
    """Ids of each text and what `column` says of them; of `special` tokens one BOS is kept, and no EOS."""
    if not texts:
        return []
    wanted = {"add_special_tokens": special, "return_offsets_mapping": column != "input_ids", **settings}
    read, bos, eos = tokenizer(texts, verbose=False, **wanted), tokenizer.bos_token_id, tokenizer.eos_token_id
    closes = special and eos is not None and tokenizer("a")["input_ids"][-1:] == [eos]  # but these texts go on
    rows = []
    for ids, values in zip(read["input_ids"], read[column], strict=True):
        first, last = int(special and bos is not None and ids[:2] == [bos, bos]), len(ids) - closes
        rows.append((ids[first:last], values[first:last]))
    return rows


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
