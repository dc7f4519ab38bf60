"""Several processes that run the same program and share its work: torch.distributed, begun through accelerate.

Every process knows everything: the batch, the weights, what came out. Only the work is shared, a part of a batch at a
time, and what each has made is given to all. So two processes do what one does, but for the order of some sums.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, distributed

from workbench import WorkbenchError

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


def spread(parts: Sequence[Part], do: Callable[[Part], Result]) -> list[Result]:
    """`do(part)` of every part, in order: each is done by one process and known to all.

    Results are tensors, numbers or text, also in tuples, lists and dicts; tensors carry no gradient.
    """
    return gathered([do(part) for part in own(parts)], len(parts))


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
