"""Rows in the standard columns -> examples as token ids, with a report of what had to be cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from workbench import WorkbenchError
from workbench.models.chat_templates import end_ids, turn_of
from workbench.models.tokens import (
    TokenizationReport,
    answer_spans,
    control_token_ids,
    read_prompts,
    refuse_inside,
    tokenized_completions,
    tokenized_prompts,
)
from workbench.records import (
    CompletionExample,
    LabelledExample,
    PairExample,
    PromptExample,
    RankingExample,
    StepwiseExample,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


class Examples(list):
    """A list of examples with the report of how they were made and, for each, the number of its row in the dataset."""

    def __init__(self, examples: list, report: TokenizationReport, rows: Sequence[int]):
        super().__init__(examples)
        self.report, self.rows = report, list(rows)


def prompt_examples(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_prompt_length: int, context: int = 0
) -> Examples:
    """PromptExamples of a dataset with a `prompt` column; lengths in tokens, `context` 0 where the model's is unknown.

    In `row` a conversation is replaced by its rendered text, which is what a reward function reads; its messages go
    with it as `prompt_messages`, for those who render it otherwise.
    """
    prompts = tokenized_prompts(dataset, tokenizer, max_prompt_length, context)
    examples = [
        PromptExample(
            prompt_ids=ids,
            row=row if row["prompt"] == text else {**row, "prompt": text, "prompt_messages": row["prompt"]},
        )
        for ids, row, text in zip(prompts.ids, dataset, prompts.asked.texts, strict=True)
    ]
    return Examples(examples, prompts.report, range(len(examples)))


class _Answered:
    """The prompts of a dataset and answers to them, no longer than the limits in tokens; `context` 0 where unknown."""

    def __init__(self, dataset: Dataset, tokenizer, *, max_prompt_length: int, max_completion_length: int, context=0):
        self.tokenizer, self.most, self.cut = tokenizer, max_completion_length, 0
        self.prompts = tokenized_prompts(dataset, tokenizer, max_prompt_length, context)
        self.ids = self.prompts.ids

    def completions(self, answers: list) -> list[list[int]]:
        """Token ids of one answer to each prompt; how many had to be cut is kept for the report."""
        completions, cut = tokenized_completions(answers, self.tokenizer, self.prompts, self.most)
        self.cut += cut
        return completions

    def kept(self, rows: Iterable[int], otherwise: str) -> list[int]:
        """The rows; WorkbenchError where there is none."""
        if not (rows := list(rows)):
            raise WorkbenchError(f"All {otherwise} {self.prompts.shortage(self.most)}.")
        return rows

    def different(self, columns: list[list], lost: str) -> tuple[list[list[list[int]]], list[int]]:
        """The completions of each row, one of each column, and the rows in which all differ once cut."""
        groups = [list(group) for group in zip(*map(self.completions, columns), strict=True)]
        differ = (row for row, group in enumerate(groups) if len(set(map(tuple, group))) == len(group))
        return groups, self.kept(differ, f"{lost} in")

    def examples(self, examples: list, rows: Sequence[int], **dropped: int) -> Examples:
        """Examples of these rows, with the report."""
        cut = {"max_completion_length": self.most, "cut_completions": self.cut, **dropped}
        return Examples(examples, replace(self.prompts.report, **cut), rows)


def completion_examples(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, **limits: int) -> Examples:
    """CompletionExamples of a dataset with `prompt` and `completion`.

    `limits`, here and below: max_prompt_length, max_completion_length and, where it is known, the model's context, in
    tokens.
    """
    given = _Answered(dataset, tokenizer, **limits)
    answered = zip(given.ids, given.completions(dataset["completion"][:]), strict=True)
    examples = [CompletionExample(prompt_ids=prompt, completion_ids=completion) for prompt, completion in answered]
    return given.examples(examples, range(len(examples)))


def pair_examples(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, **limits: int) -> Examples:
    """PairExamples of a dataset with `prompt`, `chosen`, `rejected`, perhaps `margin`, `preference` and `rival`.

    A pair whose completions are equal once cut is dropped and counted; WorkbenchError when none is left.
    """
    given = _Answered(dataset, tokenizer, **limits)
    groups, rows = given.different([dataset["chosen"][:], dataset["rejected"][:]], "pairs are equal")
    others = {"margin": 0.0, "preference": 1.0, "rival": ""}
    columns = zip(*(_given(dataset, name, default) for name, default in others.items()), strict=True)
    said = [dict(zip(others, values, strict=True)) for values in columns]
    examples = [
        PairExample(prompt_ids=given.ids[row], chosen_ids=groups[row][0], rejected_ids=groups[row][1], **said[row])
        for row in rows
    ]
    return given.examples(examples, rows, dropped_pairs=len(dataset) - len(rows))


def ranking_examples(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, **limits: int) -> Examples:
    """RankingExamples of a dataset with `prompt`, K `completions` (one K for all rows) and `ranking`.

    A ranking of which two completions are equal once cut is dropped and counted; WorkbenchError when none is left.
    """
    given = _Answered(dataset, tokenizer, **limits)
    rankings, places = dataset["ranking"][:], [list(column) for column in zip(*dataset["completions"][:], strict=True)]
    groups, rows = given.different(places, "rankings have equal completions")
    examples = [
        RankingExample(prompt_ids=given.ids[row], completion_ids=groups[row], ranking=rankings[row]) for row in rows
    ]
    return given.examples(examples, rows, dropped_rankings=len(dataset) - len(rows))


def labelled_examples(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, column: str = "label", **limits: int
) -> Examples:
    """LabelledExamples of a dataset with `prompt`, `completion` and a truth value or number in `column`."""
    written = completion_examples(dataset, tokenizer, **limits)
    labels = zip(written, dataset[column][:], strict=True)
    examples = [LabelledExample(**vars(example), label=float(label)) for example, label in labels]
    return Examples(examples, written.report, written.rows)


def stepwise_examples(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, **limits: int) -> Examples:
    """StepwiseExamples of a dataset with `prompt`, `completions` (steps, joined as they are) and `labels`.

    Steps that do not fit whole are dropped and counted, and so are rows of which no step fits; WorkbenchError when none
    is left, and where two steps share a token.
    """
    given = _Answered(dataset, tokenizer, **limits)
    steps, labels = dataset["completions"][:], dataset["labels"][:]
    whole = ["".join(texts) for texts in steps]
    kept, ends = given.completions(whole), _step_ends(steps, answer_spans(tokenizer, given.prompts.asked, whole))
    parts = list(map(_whole_steps, kept, ends))
    rows = given.kept((row for row, fitting in enumerate(parts) if fitting), "first steps are longer than")
    examples = [
        StepwiseExample(prompt_ids=given.ids[row], step_ids=parts[row], labels=labels[row][: len(parts[row])])
        for row in rows
    ]
    return given.examples(examples, rows, dropped_steps=sum(map(len, steps)) - sum(map(len, parts)))


def _whole_steps(ids: list[int], ends: list[int]) -> list[list[int]]:
    """The steps of a completion that fit whole into its `ids`; EOS belongs to the last of all."""
    fitting = [end for end in ends if end <= len(ids)]
    if len(fitting) == len(ends):
        fitting[-1] = len(ids)
    return [ids[start:end] for start, end in pairwise([0, *fitting])]


def _step_ends(steps: list[list[str]], spans: list[list[int]]) -> list[list[int]]:
    """For each row, how many tokens of its whole text each step and those before it take.

    The whole is tokenised at once, as a policy's completion is: steps tokenised apart may have other tokens. `spans`
    says where its tokens stop, in characters.
    """
    rows = []
    for row, (texts, stops) in enumerate(zip(steps, spans, strict=True)):
        ends = [sum(stop <= end for stop in stops) for end in accumulate(map(len, texts))]
        shared = next((step for step, (start, end) in enumerate(pairwise([0, *ends])) if start == end), None)
        if shared is not None:
            raise WorkbenchError(
                f"Row {row}: step {shared} (the first is 0) has no token that ends in it, so nothing marks where it "
                "ends: start each step with a space or a line break, or join it with its neighbour."
            )
        rows.append(ends)
    return rows


def _given(dataset: Dataset, column: str, otherwise: float | str) -> list:
    """The values of an optional column, `otherwise` where nobody gave one."""
    given = dataset[column][:] if column in dataset.column_names else [None] * len(dataset)
    return [otherwise if value is None else type(otherwise)(value) for value in given]


def pair_completions(rows: Dataset) -> list[dict[str, Any]]:
    """Both completions of every comparison as a reward function reads them: rows prompt, completion, finished."""
    sides = ((row, side) for row in rows for side in ("chosen", "rejected"))
    return [{"prompt": row["prompt"], "completion": row[side], "finished": True} for row, side in sides]


def text_documents(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each row of `text`, ending with EOS; empty rows, separators in many corpora, are left out.

    WorkbenchError for a row with BOS, padding or control inside, or EOS where it does not end the turns of a chat.
    """
    eos, bos = end_ids(tokenizer)[0], tokenizer.bos_token_id
    banned = {tokenizer.pad_token_id, bos, *control_token_ids(tokenizer)}
    banned |= set() if turn_of(tokenizer).end == tokenizer.eos_token else {eos}
    rows = [row for row, text in enumerate(dataset["text"][:]) if text.strip()]
    if not rows:
        raise WorkbenchError(f"All {len(dataset)} rows of column 'text' are empty: give documents with text in them.")
    documents = read_prompts(tokenizer, [dataset["text"][row] for row in rows]).ids
    documents = [ids if ids[-1:] == [eos] else [*ids, eos] for ids in documents]
    for row, ids in zip(rows, documents, strict=True):
        refuse_inside(row, "its text", ids[ids[0] == bos : -1], banned, tokenizer)
    return documents
