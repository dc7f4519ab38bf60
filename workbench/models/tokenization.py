"""Prompts and completions of a dataset -> token ids that fit, with a report of what had to be cut.

Texts and conversations are tokenised as `batches` says. Tokens that end, begin or pad texts, and those that
control them, are refused inside what somebody wrote: a policy could not say them, or would stop there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench import WorkbenchError
from workbench.models.batches import Asked, cut_prompt, read_answers, read_prompts
from workbench.models.chat_templates import Messages, end_ids
from workbench.models.control_tokens import control_token_ids

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


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
