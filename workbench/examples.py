"""Rows in the standard columns -> examples as token ids, with a report of what had to be cut.

Texts are tokenised as `workbench.batches` says. Conversations are rendered by the tokenizer's chat
template: the prompt ends where the template asks for an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.batches import encode_completions, encode_prompts, eos_id
from workbench.errors import WorkbenchError
from workbench.records import CompletionExample, PairExample, PromptExample

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class TokenizationReport:
    """What tokenisation had to cut."""

    rows: int  # rows of the dataset
    cut_prompts: int  # prompts that kept only their last max_prompt_length tokens
    cut_completions: int  # completions that lost their end, and with it EOS
    dropped_pairs: int  # pairs whose completions became equal when cut

    def __str__(self) -> str:
        """The report as a sentence."""
        cuts = {
            "prompts cut on the left": self.cut_prompts,
            "completions cut on the right (no EOS)": self.cut_completions,
            "pairs dropped because their completions became equal": self.dropped_pairs,
        }
        found = [f"{count} {what}" for what, count in cuts.items() if count]
        return f"{self.rows} rows: {', '.join(found) or 'nothing had to be cut'}."


class Examples(list):
    """A list of examples with the report of how they were made and, for each, the number of its row in the dataset."""

    def __init__(self, examples: list, report: TokenizationReport, rows: Sequence[int]):
        super().__init__(examples)
        self.report, self.rows = report, list(rows)


def prompt_examples(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_prompt_length: int, context: int = 0
) -> Examples:
    """PromptExamples of a dataset with a `prompt` column; lengths in tokens, `context` 0 where the model's is unknown.

    In `row` a conversation is replaced by its rendered text, which is what a reward function reads.
    """
    prompts = _prompts(dataset, tokenizer, max_prompt_length, context)
    examples = [
        PromptExample(prompt_ids=ids, row={**row, "prompt": text})
        for ids, row, text in zip(prompts.ids, dataset, prompts.texts, strict=True)
    ]
    return Examples(examples, prompts.report(), range(len(examples)))


def completion_examples(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_length: int,
    max_completion_length: int,
    context: int = 0,
) -> Examples:
    """CompletionExamples of a dataset with `prompt` and `completion`; lengths in tokens, `context` 0 where unknown."""
    prompts = _prompts(dataset, tokenizer, max_prompt_length, context)
    completions, cut = _completions(dataset, "completion", tokenizer, prompts, max_completion_length)
    examples = [
        CompletionExample(prompt_ids=prompt, completion_ids=completion)
        for prompt, completion in zip(prompts.ids, completions, strict=True)
    ]
    return Examples(examples, prompts.report(cut_completions=cut), range(len(examples)))


def pair_examples(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_length: int,
    max_completion_length: int,
    context: int = 0,
) -> Examples:
    """PairExamples of a dataset with `prompt`, `chosen`, `rejected` and perhaps `margin`; lengths in tokens.

    A pair whose completions are equal once cut is dropped and counted; WorkbenchError when none is left.
    """
    prompts = _prompts(dataset, tokenizer, max_prompt_length, context)
    chosen, cut_chosen = _completions(dataset, "chosen", tokenizer, prompts, max_completion_length)
    rejected, cut_rejected = _completions(dataset, "rejected", tokenizer, prompts, max_completion_length)
    margins = _margins(dataset)
    rows = [row for row in range(len(dataset)) if chosen[row] != rejected[row]]
    if not rows:
        raise WorkbenchError(f"All pairs are equal in {max_completion_length} tokens: raise max_completion_length.")
    examples = [
        PairExample(
            prompt_ids=prompts.ids[row], chosen_ids=chosen[row], rejected_ids=rejected[row], margin=margins[row]
        )
        for row in rows
    ]
    dropped = len(dataset) - len(rows)
    return Examples(examples, prompts.report(cut_completions=cut_chosen + cut_rejected, dropped_pairs=dropped), rows)


def pair_completions(pairs: list[PairExample], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Both completions of every pair as a reward function reads them: rows prompt, completion, finished."""
    rows = []
    for pair in pairs:
        prompt = tokenizer.decode(pair.prompt_ids, clean_up_tokenization_spaces=False)
        for ids in (pair.chosen_ids, pair.rejected_ids):
            finished = ids[-1:] == [eos_id(tokenizer)]
            text = tokenizer.decode(ids[:-1] if finished else ids, clean_up_tokenization_spaces=False)
            rows.append({"prompt": prompt, "completion": text, "finished": finished})
    return rows


def _margins(dataset: Dataset) -> list[float]:
    """How much better each chosen completion is, 0 where nobody said."""
    given = dataset["margin"][:] if "margin" in dataset.column_names else [None] * len(dataset)
    return [0.0 if margin is None else float(margin) for margin in given]


def text_documents(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each row of `text`, ending with EOS; empty rows, separators in many corpora, are left out."""
    eos = eos_id(tokenizer)
    texts = [text for text in dataset["text"][:] if text.strip()]
    if not texts:
        raise WorkbenchError(f"All {len(dataset)} rows of column 'text' are empty: give documents with text in them.")
    return [ids if ids[-1:] == [eos] else [*ids, eos] for ids in encode_prompts(tokenizer, texts)]


@dataclass(frozen=True, kw_only=True)
class _Prompts:
    """The prompts of a dataset."""

    texts: list[str]  # what the policy continues, whole
    ids: list[list[int]]  # its last max_prompt_length tokens
    cut: int  # how many were longer
    context: int  # tokens that the model can read, 0 = unknown

    def report(self, *, cut_completions: int = 0, dropped_pairs: int = 0) -> TokenizationReport:
        """The report on a dataset with these prompts."""
        return TokenizationReport(
            rows=len(self.texts), cut_prompts=self.cut, cut_completions=cut_completions, dropped_pairs=dropped_pairs
        )


def _prompts(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, context: int) -> _Prompts:
    """The prompts as text and as at most `max_length` tokens each."""
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
    return _Prompts(texts=texts, ids=[prompt[-max_length:] for prompt in ids], cut=cut, context=context)


def _completions(
    dataset: Dataset, column: str, tokenizer: PreTrainedTokenizerBase, prompts: _Prompts, max_length: int
) -> tuple[list[list[int]], int]:
    """The completions, each ending with EOS unless cut to `max_length` tokens or to the context; how many were cut."""
    if max_length < 1:
        raise WorkbenchError(f"max_completion_length is {max_length}, but a completion has at least 1 token: raise it.")
    texts = dataset[column][:]
    if texts and not isinstance(texts[0], str):
        texts = _rendered_completions(dataset["prompt"][:], texts, tokenizer, prompts.texts)
    completions = encode_completions(tokenizer, texts, [True] * len(texts))
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
