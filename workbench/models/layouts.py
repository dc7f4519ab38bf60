"""Sequences -> the rows that a model computes: each prompt once for its completions, and little padding.

A prompt with several completions becomes a tree in one row, prompt first, then one completion after the other, none of
which sees another; short trees share a row. A mask says who sees whom, position ids go on from the prompt in every
branch, so each token is computed as if its sequence stood alone. Where neither pays, rows are plain sequences padded on
the right, which a causal model needs no mask for.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench import WorkbenchError
from workbench.records import Sequences

# A slot costs `MATRIX_COST` * width for the matrix products and the row's length for attention, in the same unit.
MATRIX_COST = 6.0
TREE_COST = 1.03  # of building and reading a mask, relative to plain rows


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a model is called with, and where its answers stand: for B sequences and R completion tokens."""

    inputs: dict[str, Tensor]  # input_ids (N, T); for trees also position_ids (N, T), attention_mask (N, 1, T, T)
    row: Tensor  # (M,) int64 in [0, N): row of each place to read, in the order of the sequences
    slot: Tensor  # (M,) int64 in [0, T)


def layout_of(sequences: Sequences, read: Tensor, *, group_size: int, width: int, trees: bool, dtype) -> Layout:
    """The cheapest layout in which every place of `read` can be read.

    `read` (B, R+1) is True at [b, t] where the state after t completion tokens is wanted: t = 0 is the prompt's last
    token. `group_size` rows side by side have the same prompt, `width` is the model's; without `trees` rows stay plain.
    Raises WorkbenchError where the rows of a group differ in their prompt, or a prompt is empty.
    """
    counts = _Counts(sequences, read, group_size)
    sizes = [size for size in range(1, group_size + 1) if group_size % size == 0] if trees else [1]
    plans = [
        _plan(counts.lengths(size), size, width=width, packed=packed) for size in sizes for packed in (False, trees)
    ]
    best = min(plans, key=lambda plan: plan.cost)
    return _filled(sequences, counts, best, read, dtype)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Which row each tree goes to, and where in it."""

    branches: int  # completions per tree
    rows: list[int]
    offsets: list[int]
    length: int  # T, slots of the longest row
    plain: bool  # one sequence per row
    cost: float


class _Counts:
    """How many tokens of each row are needed."""

    def __init__(self, sequences: Sequences, read: Tensor, group_size: int):
        prompts, completions = sequences.attention_mask.tensor_split([sequences.prompt_length], dim=1)
        self.prompt_mask, self.prompt = prompts, prompts.sum(1)  # (B, P), (B,)
        _require_groups(sequences, prompts, group_size)
        self.before = F.pad(completions.long().cumsum(1), (1, 0))  # (B, R+1) completion tokens read at each place
        self.needed = (self.before * read).amax(1)  # (B,)
        self.completion_mask = completions & (self.before[:, :-1] < self.needed[:, None])

    def lengths(self, branches: int) -> list[int]:
        """Tokens of each tree of that many completions."""
        return (self.prompt[::branches] + self.needed.view(-1, branches).sum(1)).tolist()


def _require_groups(sequences: Sequences, mask: Tensor, group_size: int) -> None:
    if not mask.any(1).all():
        row = int((~mask.any(1)).nonzero()[0])
        raise WorkbenchError(f"Row {row} has a prompt of 0 tokens: give it at least one to predict from.")
    if len(sequences) % group_size:
        raise WorkbenchError(
            f"{len(sequences)} rows are no groups of {group_size}: pass as many rows for every prompt."
        )
    prompts = torch.where(mask, sequences.tokens[:, : sequences.prompt_length], -1).unflatten(0, (-1, group_size))
    if group_size > 1 and not (prompts == prompts[:, :1]).all():
        raise WorkbenchError(
            f"group_size is {group_size} but the prompts within a group differ: put equal ones together."
        )


def _plan(lengths: list[int], branches: int, *, width: int, packed: bool) -> _Plan:
    rows, offsets = _packed(lengths) if packed else (list(range(len(lengths))), [0] * len(lengths))
    count, longest = max(rows) + 1, max(lengths)
    plain = branches == 1 and count == len(lengths)
    cost = count * longest * (MATRIX_COST * width + longest) * (1 if plain else TREE_COST)
    return _Plan(branches=branches, rows=rows, offsets=offsets, length=longest, plain=plain, cost=cost)


def _packed(lengths: list[int]) -> tuple[list[int], list[int]]:
    """Row and offset of each length in rows as long as the longest: best fit, in decreasing order."""
    longest, rows, offsets = max(lengths), [0] * len(lengths), [0] * len(lengths)
    free: list[tuple[int, int]] = []  # (free slots, row), fewest first
    count = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = bisect_left(free, (lengths[index], -1))
        if place < len(free):
            room, row = free.pop(place)
        else:
            room, row, count = longest, count, count + 1
        rows[index], offsets[index] = row, longest - room
        if room > lengths[index]:
            insort(free, (room - lengths[index], row))
    return rows, offsets


def _filled(sequences: Sequences, counts: _Counts, plan: _Plan, read: Tensor, dtype) -> Layout:
    device, size = sequences.tokens.device, plan.branches
    row, offset = torch.tensor([plan.rows, plan.offsets], device=device).repeat_interleave(size, 1)  # (B,) each
    needed = counts.needed.view(-1, size)
    start = offset + counts.prompt + (needed.cumsum(1) - needed).flatten()  # (B,) slot of each first completion token
    place = torch.where(counts.before > 0, start[:, None] + counts.before - 1, (offset + counts.prompt - 1)[:, None])
    firsts = torch.arange(len(sequences), device=device) % size == 0
    in_prompt = counts.prompt_mask & firsts[:, None]
    mask = torch.cat([in_prompt, counts.completion_mask], 1)  # (B, P+R) what is computed
    rank = torch.cat([counts.prompt_mask.long().cumsum(1) - 1, counts.before[:, :-1]], 1)
    begin = torch.cat([offset[:, None].expand_as(in_prompt), start[:, None].expand_as(counts.completion_mask)], 1)
    at = row[:, None].expand_as(rank)[mask], (begin + rank)[mask]
    shape = max(plan.rows) + 1, plan.length
    tokens = sequences.tokens[mask]
    inputs = {"input_ids": tokens[0].expand(shape).contiguous().index_put(at, tokens)}  # padding: any known token
    if not plan.plain:
        first = counts.prompt[:, None] * (torch.arange(mask.shape[1], device=device) >= sequences.prompt_length)
        inputs["position_ids"] = rank.new_zeros(shape).index_put(at, (rank + first)[mask])
        index = torch.arange(len(sequences), device=device)[:, None]
        tree = rank.new_full(shape, -1).index_put(at, (index // size).expand_as(rank)[mask])
        branch = rank.new_zeros(shape).index_put(at, torch.where(first > 0, index + 1, 0)[mask])
        inputs["attention_mask"] = _tree_mask(tree, branch, dtype)
    return Layout(inputs=inputs, row=row[:, None].expand_as(place)[read], slot=place[read])


def _tree_mask(tree: Tensor, branch: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, 1, T, T) in numbers added to attention scores: 0 for the prompt of the own tree and the own branch before."""
    own = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    seen = (tree[:, None, :] == tree[:, :, None]) & own
    seen &= torch.ones(seen.shape[1:], dtype=torch.bool, device=seen.device).tril()
    return additive_mask(seen[:, None], dtype)


def additive_mask(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `seen`, else the lowest number: what every attention implementation understands (eager ones add it)."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
