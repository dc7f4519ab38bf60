"""Documents -> rows in which no document sees another; demonstrations -> rows that learn the completion only.

And the loss of such rows, which every trainer that predicts tokens shares.
"""

from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor

from workbench import WorkbenchError
from workbench.models.layouts import additive_mask
from workbench.models.scoring import Predictions, chosen, states_at
from workbench.records import CompletionExample


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """Rows for next-token prediction."""

    tokens: Tensor  # (B, T) int64
    attention_mask: Tensor  # (B, T) bool, padding on the right; or (B, 1, T, T) bool: query may see key
    position_ids: Tensor  # (B, T) int64
    target_mask: Tensor  # (B, T) bool, True where the token is predicted (from those before it)

    def to(self, device: Any) -> Self:
        """The same rows on another device."""
        return replace(self, **{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def pack_documents(documents: list[list[int]], row_length: int) -> list[list[list[int]]]:
    """Rows of whole documents with at most `row_length` tokens together, first fit in the given order.

    A document longer than a row is cut into pieces of `row_length`, each a document of its own. Raises WorkbenchError
    where there is nothing to pack.
    """
    if row_length < 2:
        raise WorkbenchError(f"row_length is {row_length}: give at least 2 tokens, one to read and one to predict.")
    pieces = [text[i : i + row_length] for text in documents for i in range(0, len(text), row_length)]
    if not pieces:
        raise WorkbenchError("There are no documents to pack: check the dataset and its limit.")
    rows, open_rows = [], []
    for piece in pieces:
        fitting = next((row for row in open_rows if sum(map(len, row)) + len(piece) <= row_length), None)
        if fitting is None:
            fitting = []
            rows.append(fitting)
            open_rows = [*open_rows[-15:], fitting]  # a short look-back packs within 2% of all rows, in linear time
        fitting.append(piece)
    return rows


def collate_packed(rows: list[list[list[int]]], pad_id: int) -> TokenBatch:
    """Packed rows as one batch: attention is causal within a document, positions start at 0 in each.

    The first token of a document is not a target: nothing before it belongs to it.
    """
    sizes = [list(map(len, row)) for row in rows]
    slots = list(range(max(map(sum, sizes))))
    apart = [-1 - slot for slot in slots]  # padding: a document of its own per slot

    def padded(parts: list[list[int]], padding: list[int]) -> Tensor:
        return torch.tensor([part + padding[len(part) :] for part in parts])

    tokens = padded([list(chain(*row)) for row in rows], [pad_id] * len(slots))
    documents = padded([[number for number, size in enumerate(each) for _ in range(size)] for each in sizes], apart)
    positions = padded([[slot for size in each for slot in range(size)] for each in sizes], [0] * len(slots))
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return TokenBatch(
        tokens=tokens,
        attention_mask=same & torch.ones(len(slots), len(slots), dtype=torch.bool).tril(),
        position_ids=positions,
        target_mask=(documents >= 0) & (positions > 0),
    )


def collate_demonstrations(examples: list[CompletionExample], pad_id: int) -> TokenBatch:
    """Demonstrations as one batch whose targets are the completion's tokens, EOS included, and no others.

    Prompt and completion stand side by side, so rows of one length need no padding, however they are made up.
    """
    rows = [example.prompt_ids + example.completion_ids for example in examples]
    slots = torch.arange(max(map(len, rows)))
    starts, stops = (torch.tensor(sizes)[:, None] for sizes in (_prompt_sizes(examples), list(map(len, rows))))
    tokens = torch.tensor([row + [pad_id] * (len(slots) - len(row)) for row in rows])
    return TokenBatch(
        tokens=tokens,
        attention_mask=slots < stops,
        position_ids=torch.minimum(slots, stops - 1),
        target_mask=(slots >= starts) & (slots < stops),
    )


def _prompt_sizes(examples: list[CompletionExample]) -> list[int]:
    sizes = [len(example.prompt_ids) for example in examples]
    if 0 in sizes:
        raise WorkbenchError(f"Row {sizes.index(0)} of the batch has a prompt of 0 tokens: give it at least one.")
    return sizes


def token_lengths(examples: list) -> list[int]:
    """Tokens of each demonstration or packed row."""
    return [
        len(example.prompt_ids) + len(example.completion_ids)
        if isinstance(example, CompletionExample)
        else sum(map(len, example))
        for example in examples
    ]


def target_losses(model, batch: TokenBatch) -> Tensor:
    """Cross-entropy of every target token given those before it, (number of targets,) nats."""
    row, slot = batch.target_mask.nonzero(as_tuple=True)
    states, head = states_at(model, model.get_output_embeddings(), _inputs(batch, model.dtype), (row, slot - 1))
    return -Predictions(states, lambda some, rows: head(some).float()).read(chosen(batch.tokens[row, slot]))[0]


def _inputs(batch: TokenBatch, dtype: torch.dtype) -> dict[str, Tensor]:
    """What a model is called with; it needs no mask to be causal, and padding on the right may hold any known token."""
    if batch.attention_mask.dim() == 2:
        return {"input_ids": torch.where(batch.attention_mask, batch.tokens, batch.tokens[:, :1])}
    mask = additive_mask(batch.attention_mask, dtype)
    return {"input_ids": batch.tokens, "attention_mask": mask, "position_ids": batch.position_ids}
