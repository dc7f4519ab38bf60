"""Texts -> token ids -> batches: rows of similar length together, padded into the one layout of `records.Sequences`.

Trainers, rewards and samplers all read a conversation here, and so the same ids of it. A prompt has the special tokens
of the tokenizer or of its chat template, but no EOS; a completion has none but its end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from workbench import WorkbenchError
from workbench.analysis.statistics import finite_array
from workbench.models.chat_templates import Messages, end_ids, rendered, rendered_answer, turn_of
from workbench.records import PairExample, PromptExample, Sequences

if TYPE_CHECKING:
    from datasets import Dataset
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


def batches_by_length(lengths: list[int], batch_size: int) -> list[list[int]]:
    """Every index once, the shortest first: for what does not depend on the order, and so little is padded."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


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


# --- Prompts and completions of a dataset -> token ids that fit, with a report of what had to be cut.
#
# Texts and conversations are tokenised as `batches` says. Tokens that end, begin or pad texts, and those that
# control them, are refused inside what somebody wrote: a policy could not say them, or would stop there.


@dataclass(frozen=True, kw_only=True)
class TokenizationReport:
    """What tokenisation had to cut."""

    rows: int  # rows of the dataset
    max_prompt_length: int = 0  # to which they were cut, in tokens
    max_completion_length: int = 0
    cut_prompts: int  # prompts that kept only their BOS and their last tokens, max_prompt_length together
    lost_system: int = 0  # of these, conversations that so lost their system turn, or its beginning
    marked_prompts: int = 0  # prompts given as plain text that hold EOS, or BOS behind their beginning
    cut_completions: int = 0  # completions that lost their end, and with it EOS
    dropped_pairs: int = 0  # pairs whose completions became equal when cut
    dropped_rankings: int = 0  # rankings of which two completions became equal when cut
    dropped_steps: int = 0  # judged steps that did not fit whole

    def __str__(self) -> str:
        """The report as a sentence."""
        cuts = {
            "prompts cut on the left": self.cut_prompts,
            "system turns lost with that": self.lost_system,
            "prompts with BOS or EOS inside their text": self.marked_prompts,
            "completions cut on the right (no EOS)": self.cut_completions,
            "pairs dropped because their completions became equal": self.dropped_pairs,
            "rankings dropped because two of their completions became equal": self.dropped_rankings,
            "judged steps dropped because they were cut": self.dropped_steps,
        }
        found = [f"{count} {what}" for what, count in cuts.items() if count]
        return f"{self.rows} rows: {', '.join(found) or 'nothing had to be cut'}."


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The prompts of a dataset."""

    asked: Asked  # as they are, whole
    ids: list[list[int]]  # at most max_prompt_length tokens: BOS and the last ones
    report: TokenizationReport  # on a dataset with these prompts, of which nothing else is cut yet
    context: int  # tokens that the model can read, 0 = unknown

    def rooms(self, max_length: int) -> list[int]:
        """How many tokens each completion may have."""
        return [min(max_length, self.context - len(ids)) if self.context else max_length for ids in self.ids]

    def shortage(self, max_length: int) -> str:
        """Which setting makes completions so short, as a cure."""
        rooms = self.rooms(max_length)
        if min(rooms) == max_length:
            return f"{max_length} tokens: raise max_completion_length"
        also = "" if max(rooms) < max_length else f", and raise max_completion_length above {max_length}"
        context = f"the {min(rooms)} tokens that the model's context of {self.context} leaves behind a prompt"
        return f"{context}: lower max_prompt_length, or take a model with a longer context{also}"


def tokenized_prompts(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, context: int) -> Prompts:
    """The prompts as text and as at most `max_length` tokens each.

    WorkbenchError for an empty prompt, for one that fills the `context` (tokens, 0 = unknown), and for one that holds
    tokens which mean something else.
    """
    if max_length < 1:
        raise WorkbenchError(f"max_prompt_length is {max_length}, but a prompt has at least 1 token: raise it.")
    asked = read_prompts(tokenizer, dataset["prompt"][:])
    for row, prompt in enumerate(asked.ids):
        length = min(len(prompt), max_length)
        if length == 0:
            raise WorkbenchError(f"Row {row} has a prompt of 0 tokens ({asked.texts[row]!r}): give it a prompt.")
        if 0 < context <= length:
            raise WorkbenchError(
                f"Row {row} has a prompt of {length} tokens ({asked.texts[row][:30]!r}...), which leaves nothing of "
                f"the model's context of {context} for a completion: set max_prompt_length below {context}, or take a "
                "model with a longer context."
            )
    report = _report(asked, tokenizer, max_length)
    return Prompts(
        asked=asked, ids=[cut_prompt(ids, max_length, tokenizer) for ids in asked.ids], report=report, context=context
    )


def _report(asked: Asked, tokenizer: PreTrainedTokenizerBase, max_length: int) -> TokenizationReport:
    """What becomes of prompts; refuses those that hold what nobody may write."""
    unsayable = {tokenizer.pad_token_id, *control_token_ids(tokenizer)}
    marks, written = {tokenizer.bos_token_id, tokenizer.eos_token_id}, _marks(tokenizer)
    cut = lost = marked = 0
    for row, (prompt, ids, chat) in enumerate(zip(asked.given, asked.ids, asked.chat, strict=True)):
        refuse_inside(row, "its prompt", ids, unsayable, tokenizer)
        if not isinstance(prompt, str):
            _refuse_marks(row, "a message", prompt, written)
        cut += len(ids) > max_length
        lost += len(ids) > max_length and not isinstance(prompt, str) and prompt[0]["role"] == "system"
        marked += not chat and bool(marks.intersection(ids[1:]))
    found = {"cut_prompts": cut, "lost_system": lost, "marked_prompts": marked}
    return TokenizationReport(rows=len(asked.ids), max_prompt_length=max_length, **found)


def tokenized_completions(
    answers: list, tokenizer: PreTrainedTokenizerBase, prompts: Prompts, max_length: int
) -> tuple[list[list[int]], int]:
    """One answer to each prompt, with its end unless cut to `max_length` tokens or the context; how many were cut.

    `answers` are texts, or messages that go on from the conversation of their prompt. WorkbenchError for one that
    holds what ends it, begins or pads texts before its end.
    """
    if max_length < 1:
        raise WorkbenchError(f"max_completion_length is {max_length}, but a completion has at least 1 token: raise it.")
    completions = read_answers(tokenizer, prompts.asked, answers, [True] * len(answers))
    ends, written = set(end_ids(tokenizer)), _marks(tokenizer)
    never = {tokenizer.bos_token_id, tokenizer.pad_token_id, *control_token_ids(tokenizer)} - ends
    inside = sorted({*written}.difference(tokenizer.convert_ids_to_tokens(list(ends))))  # an end may be at the end
    for row, (answer, ids) in enumerate(zip(answers, completions, strict=True)):
        if isinstance(answer, str):
            _refuse_marks(row, "a completion", [{"content": answer}], inside)
        else:
            _refuse_marks(row, "a message", answer, written)
        several = not isinstance(answer, str) and len(answer) > 1
        refuse_inside(row, "a completion", ids[:-1], never if several else never | ends, tokenizer)
        refuse_inside(row, "a completion", ids[-1:], never, tokenizer)
    fitting = [ids[:room] for ids, room in zip(completions, prompts.rooms(max_length), strict=True)]
    return fitting, sum(len(ids) > len(kept) for ids, kept in zip(completions, fitting, strict=True))


def refuse_inside(row: int, where: str, ids: list[int], banned: Iterable[int], tokenizer) -> None:
    """WorkbenchError where `ids`, which somebody wrote as text, hold a banned one."""
    found = next((index for index in ids if index in banned), None)
    if found is not None:
        _refuse(row, where, tokenizer.convert_ids_to_tokens(found), tokenizer.decode(ids))


def _marks(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """How the tokens are written that a message may not hold, for a template writes them itself between messages."""
    ids = [*end_ids(tokenizer), *control_token_ids(tokenizer)]
    own = {*tokenizer.all_special_tokens, *tokenizer.convert_ids_to_tokens(ids)} - {tokenizer.unk_token}
    return sorted(token for token in own if token.strip())


def _refuse_marks(row: int, where: str, messages: Messages, marks: list[str]) -> None:
    for message in messages:
        for mark in marks:
            if mark in message["content"]:
                _refuse(row, where, mark, message["content"])


def _refuse(row: int, where: str, mark: str, text: str) -> None:
    place = text.find(mark)
    raise WorkbenchError(
        f"Row {row} has {mark!r} inside {where} ({text[max(0, place - 30) : place + 50]!r}), which this tokenizer "
        "takes for the end, the beginning, the padding or the control of a text and not for words: remove it there."
    )


# --- Control tokens: what a policy reads before a prompt and can never say, here how good its answer shall be.
#
# A policy learns each text after the token of that text's reward, and is asked with the best one. Good and bad
# are Korbak et al. 2023's, quantiles of the reward Lu et al. 2022's. The tokens travel with the tokenizer; a
# model that is loaded with it keeps their ids in `config.control_token_ids`, where sampling and scoring find what
# can not be said.


BAD_GOOD = ("<|bad|>", "<|good|>")  # worst first, as all of them
QUANTILES = tuple(f"<|reward_{index}|>" for index in range(5))
PATTERN = re.compile(r"<\|(bad|good|reward_\d+)\|>")


def add_control_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> list[int]:
    """Their ids, after adding those that `tokenizer` does not have yet; load or build the models after this."""
    known = tokenizer.get_vocab()
    new = [token for token in tokens if token not in known]
    tokenizer.add_special_tokens({"additional_special_tokens": new}, replace_extra_special_tokens=False)
    return tokenizer.convert_tokens_to_ids(list(tokens))


def control_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of all control tokens that `tokenizer` has, in the order in which they were added."""
    return sorted(index for token, index in tokenizer.get_added_vocab().items() if PATTERN.fullmatch(token))


def conditioned(prompts: Sequence[PromptExample], token_id: int) -> list[PromptExample]:
    """The same prompts after a control token; their rows, which is what rewards read, stay as they are."""
    return [replace(prompt, prompt_ids=[token_id, *prompt.prompt_ids]) for prompt in prompts]


def unconditioned(sequences: Sequences, model) -> Sequences:
    """The same rows for a reader who is not told: the control tokens of `model` are left out of every prompt."""
    ids = getattr(model.config, "control_token_ids", ())
    told = torch.isin(sequences.tokens, torch.tensor(list(ids), device=sequences.tokens.device, dtype=torch.long))
    return replace(sequences, attention_mask=sequences.attention_mask & ~told) if told.any() else sequences


def quantile_indices(scores: Sequence[float], count: int) -> list[int]:
    """Which of `count` quantiles of all scores each one lies in, 0 the worst; equal scores lie in the same.

    With rewards of few values a quantile may be empty, but never the best one. Raises WorkbenchError where a score is
    not finite.
    """
    scores = finite_array(scores, name="scores")
    worse = np.searchsorted(np.sort(scores), scores)  # how many scores are lower
    indices = np.minimum(count * worse // max(1, len(scores) - 1), count - 1)
    return np.where(scores == scores.max(), count - 1, indices).tolist()
