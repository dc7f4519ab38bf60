"""Documents -> rows in which no document sees another; demonstrations -> rows that learn the completion only."""

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from workbench.batches import collate
from workbench.errors import WorkbenchError
from workbench.records import CompletionExample
from workbench.scoring import position_ids


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """Rows for next-token prediction."""

    tokens: Tensor  # (B, T) int64
    attention_mask: Tensor  # (B, T) bool, or (B, 1, T, T) bool: query may see key
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
    width = max(sum(map(len, row)) for row in rows)
    tokens = torch.full((len(rows), width), pad_id)
    documents = torch.arange(-1, -width - 1, -1).repeat(len(rows), 1)  # padding: a document of its own per slot
    positions = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        start = 0
        for number, document in enumerate(row):
            stop = start + len(document)
            tokens[index, start:stop] = torch.tensor(document)
            documents[index, start:stop] = number
            positions[index, start:stop] = torch.arange(len(document))
            start = stop
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return TokenBatch(
        tokens=tokens,
        attention_mask=same & torch.ones(width, width, dtype=torch.bool).tril(),
        position_ids=positions,
        target_mask=(documents >= 0) & (positions > 0),
    )


def collate_demonstrations(examples: list[CompletionExample], pad_id: int) -> TokenBatch:
    """Demonstrations as one batch whose targets are the completion's tokens, EOS included, and no others."""
    batch = collate([e.prompt_ids for e in examples], [e.completion_ids for e in examples], pad_id=pad_id)
    target_mask = torch.zeros_like(batch.attention_mask)
    target_mask[:, batch.prompt_length :] = batch.completion_mask
    return TokenBatch(
        tokens=batch.tokens,
        attention_mask=batch.attention_mask,
        position_ids=position_ids(batch.attention_mask),
        target_mask=target_mask,
    )


def token_lengths(examples: list) -> list[int]:
    """Tokens of each demonstration or packed row."""
    return [
        len(example.prompt_ids) + len(example.completion_ids)
        if isinstance(example, CompletionExample)
        else sum(map(len, example))
        for example in examples
    ]
