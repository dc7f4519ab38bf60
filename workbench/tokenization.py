"""Prompts and completions of a dataset -> token ids that fit, with a report of what had to be cut.

Texts are tokenised as `workbench.batches` says. Conversations are rendered by the tokenizer's chat
template: the prompt ends where the template asks for an answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.batches import encode_completions, encode_prompts
from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class TokenizationReport:
    """What tokenisation had to cut."""

    rows: int  # rows of the dataset
    cut_prompts: int  # prompts that kept only their last max_prompt_length tokens
    cut_completions: int = 0  # completions that lost their end, and with it EOS
    dropped_pairs: int = 0  # pairs whose completions became equal when cut
    dropped_rankings: int = 0  # rankings of which two completions became equal when cut
    dropped_steps: int = 0  # judged steps that did not fit whole

    def __str__(self) -> str:
        """The report as a sentence."""
        cuts = {
            "prompts cut on the left": self.cut_prompts,
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

    texts: list[str]  # what the policy continues, whole
    ids: list[list[int]]  # its last max_prompt_length tokens
    cut: int  # how many were longer
    context: int  # tokens that the model can read, 0 = unknown

    @property
    def report(self) -> TokenizationReport:
        """The report on a dataset with these prompts, of which nothing else is cut yet."""
        return TokenizationReport(rows=len(self.texts), cut_prompts=self.cut)


def tokenized_prompts(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, context: int) -> Prompts:
    """The prompts as text and as at most `max_length` tokens each.

    WorkbenchError for an empty prompt, and for one that fills the `context` (tokens, 0 = unknown).
    """
    if max_length < 1:
        raise WorkbenchError(f"max_prompt_length is {max_length}, but a prompt has at least 1 token: raise it.")
    prompts = dataset["prompt"][:]
    if prompts and not isinstance(prompts[0], str):  # a chat template writes its own special tokens
        texts = [_render(prompt, tokenizer, row=row, ask=True) for row, prompt in enumerate(prompts)]
        ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    else:
        texts = prompts
        ids = encode_prompts(tokenizer, texts)
    for row, prompt in enumerate(ids):
        length = min(len(prompt), max_length)
        if length == 0:
            raise WorkbenchError(f"Row {row} has a prompt of 0 tokens ({texts[row]!r}): give it a prompt.")
        if 0 < context <= length:
            raise WorkbenchError(
                f"Row {row} has a prompt of {length} tokens ({texts[row][:30]!r}...), which leaves nothing of the "
                f"model's context of {context} for a completion: set max_prompt_length below {context}, or take a "
                "model with a longer context."
            )
    cut = sum(len(prompt) > max_length for prompt in ids)
    return Prompts(texts=texts, ids=[prompt[-max_length:] for prompt in ids], cut=cut, context=context)


def tokenized_completions(
    dataset: Dataset, answers: list, tokenizer: PreTrainedTokenizerBase, prompts: Prompts, max_length: int
) -> tuple[list[list[int]], int]:
    """One answer to each prompt, ending with EOS unless cut to `max_length` tokens or the context; how many were cut.

    `answers` are texts, or conversations that go on from the `prompt` of the dataset's row.
    """
    if max_length < 1:
        raise WorkbenchError(f"max_completion_length is {max_length}, but a completion has at least 1 token: raise it.")
    if answers and not isinstance(answers[0], str):
        answers = _rendered_completions(dataset["prompt"][:], answers, tokenizer, prompts.texts)
    completions = encode_completions(tokenizer, answers, [True] * len(answers))
    rooms = [min(max_length, prompts.context - len(ids)) if prompts.context else max_length for ids in prompts.ids]
    fitting = [completion[:room] for completion, room in zip(completions, rooms, strict=True)]
    return fitting, sum(len(ids) > len(kept) for ids, kept in zip(completions, fitting, strict=True))


def _rendered_completions(
    prompts: list[list], answers: list[list], tokenizer: PreTrainedTokenizerBase, prompt_texts: list[str]
) -> list[str]:
    """What the chat template writes after each prompt, without the line breaks that follow a closing EOS."""
    completions = []
    for row, (prompt, answer, prompt_text) in enumerate(zip(prompts, answers, prompt_texts, strict=True)):
        text = _render([*prompt, *answer], tokenizer, row=row, ask=False)
        if not text.startswith(prompt_text):
            raise WorkbenchError(
                f"The chat template of {tokenizer.name_or_path!r} writes the prompt of row {row} differently once an "
                "answer follows it, so the two cannot be told apart: use another template, or give plain text."
            )
        completion = text[len(prompt_text) :]
        ended = completion.rstrip()
        completions.append(ended if tokenizer.eos_token and ended.endswith(tokenizer.eos_token) else completion)
    return completions


def _render(messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, *, row: int, ask: bool) -> str:
    """A conversation through the chat template, ending with its request for an answer if `ask`."""
    if not tokenizer.chat_template:
        raise WorkbenchError(
            f"Row {row} is a conversation but the tokenizer {tokenizer.name_or_path!r} has no chat template: "
            "use the tokenizer of a chat model, set tokenizer.chat_template, or give prompts as plain text."
        )
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    except Exception as error:  # a template may raise anything, often about the order of roles
        roles = ", ".join(message["role"] for message in messages)
        raise WorkbenchError(
            f"The chat template of {tokenizer.name_or_path!r} refused row {row}, whose roles are {roles} "
            f"({error}): give roles in the order that it expects."
        ) from error
