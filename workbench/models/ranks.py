"""Several processes that run the same program and share its work: torch.distributed, begun through accelerate.

Every process knows everything: the batch, the weights, what came out. Only the work is shared, a part of a batch at a
time, and what each has made is given to all. So two processes do what one does, but for the order of some sums.
"""

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, distributed

from workbench import WorkbenchError
from workbench.records import scores_of

PATIENCE = timedelta(hours=6)  # for what only one of them does, such as writing a large model
BUCKET = 2**24  # elements that are summed at a time
Part, Result = TypeVar("Part"), TypeVar("Result")


def rank() -> int:
    """Which of the processes this is, from 0: the variable RANK of accelerate's and torchrun's launchers."""
    return int(os.environ.get("RANK", 0))


def size() -> int:
    """How many there are: WORLD_SIZE of the same."""
    return int(os.environ.get("WORLD_SIZE", 1))


@cache
def meet(device: str) -> None:
    """Wait until all processes are there; with "cuda" each takes the GPU of its rank.

    Raises WorkbenchError where there are fewer GPUs.
    """
    if size() == 1:
        return
    from accelerate import PartialState

    if device != "cpu" and size() > torch.cuda.device_count():
        raise WorkbenchError(
            f"{size()} processes want a GPU each and {torch.cuda.device_count()} are here: ask for less."
        )
    PartialState(cpu=device == "cpu", timeout=PATIENCE)


def shared(parts: Sequence[Part], do: Callable[[Part], Result]) -> list[Result]:
    """`do(part)` of every part, in order: each is done by one process and known to all.

    Results are tensors, numbers or text, also in tuples, lists and dicts; tensors carry no gradient.
    """
    return gathered([do(part) for part in own(parts)], len(parts))


def by_rows(do: Callable[[slice], Tensor], count: int, *, group_size: int = 1) -> Tensor:
    """`do(rows)` of all `count` rows, (count, ...): as many at a time as there are processes, groups stay whole."""
    return torch.cat(shared(row_shares(count, group_size), do))


def shared_scores(
    rewards: Mapping[str, Callable], texts: tuple[list, list], columns: Mapping
) -> dict[str, list[float]]:
    """`scores_of` these rewards, every completion judged by one process: a judge may cost money."""

    def some(rows: slice) -> dict[str, list[float]]:
        its = {name: values[rows] for name, values in columns.items()}
        return scores_of(rewards, (texts[0][rows], texts[1][rows]), its)

    parts = shared(row_shares(len(texts[0])), some)
    return {name: [score for part in parts for score in part[name]] for name in parts[0]}


def row_shares(count: int, group_size: int = 1) -> list[slice]:
    """All rows, a share for each process."""
    if size() == 1:
        return [slice(None)]
    ends = [group_size * (count // group_size * part // size()) for part in range(size() + 1)]
    return [slice(*share) for share in itertools.pairwise(ends) if share[0] < share[1]]


def own(parts: Sequence[Part]) -> Sequence[Part]:
    """The parts that this process does."""
    return parts[rank() :: size()]


def gathered(results: list[Result], count: int) -> list[Result]:
    """What all processes have made of their own parts, in the order of all `count` parts."""
    if size() == 1:
        return results
    from accelerate import PartialState
    from accelerate.utils import send_to_device

    every: list[list[Result]] = [[] for _ in range(size())]
    distributed.all_gather_object(every, send_to_device(results, "cpu"))
    ordered = [every[part % size()][part // size()] for part in range(count)]
    return send_to_device(ordered, PartialState().device)


def add_up(tensors: Iterable[Tensor]) -> None:
    """Every tensor becomes its sum over the processes."""
    if size() == 1:
        return
    bucket: list[Tensor] = []
    for tensor in (*tensors, None):
        if bucket and (tensor is None or sum(map(Tensor.numel, bucket)) + tensor.numel() > BUCKET):
            flat = torch.cat([each.flatten() for each in bucket])
            distributed.all_reduce(flat)
            for each, part in zip(bucket, flat.split(list(map(Tensor.numel, bucket))), strict=True):
                each.copy_(part.view_as(each))
            bucket = []
        bucket.append(tensor)
