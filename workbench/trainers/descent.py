"""One optimiser step, learning-rate schedules, and which examples come next."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from workbench import NonFiniteLoss, WorkbenchError
from workbench.models import ranks
from workbench.models.computing import compute_in, compute_twice
from workbench.models.memory import memory_line
from workbench.models.tokens import length_bucketed_batches
from workbench.trainers.settings import require_in

Part = TypeVar("Part")
Share = tuple[Tensor, Any, Any]  # what it adds to the loss, the record that this was computed from, what else it says


def require_examples(examples: list, held_out: list) -> None:
    """Raises WorkbenchError where there is nothing to train on or nothing to measure on."""
    if not examples or not held_out:
        raise WorkbenchError(
            f"There are {len(examples)} training and {len(held_out)} held-out examples: give at least one of each."
        )


def make_optimizer(model: nn.Module, *, learning_rate: float, weight_decay: float = 0.0, eps: float = 1e-8):
    """AdamW with betas (.9, .95) over the trainable parameters; norms and biases are not decayed."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), eps=eps, fused=True)


def cosine_schedule(step: int, total: int, *, warmup: int) -> float:
    """Share of the peak learning rate at `step` (from 0): linear warm-up, then a cosine down to 10%."""
    return min(1.0, (step + 1) / max(1, warmup)) * (0.1 + 0.45 * (1 + math.cos(math.pi * step / total)))


def linear_schedule(step: int, total: int, *, warmup: int) -> float:
    """Share of the peak learning rate at `step` (from 0): linear warm-up, then a line down to 0 after the last step."""
    return min(1.0, (step + 1) / max(1, warmup)) * max(0.0, 1 - step / total)


class Descent:
    """A model, its optimiser and its place in the schedule; `step(losses)` moves all three.

    `config` has a `learning_rate`, `warmup_steps`, a `max_grad_norm`, maybe a `weight_decay`, a `precision` and whether
    to `checkpoint_activations`; `steps` counts optimiser steps, and `schedule(step, total, warmup=...)` gives the share
    of the rate.
    """

    def __init__(self, model: nn.Module, config, *, steps: int, schedule=cosine_schedule, eps: float = 1e-8):
        require_in(0, 1e6, config, "warmup_steps")
        self.model, self.peak, self.steps, self.schedule = model, config.learning_rate, steps, schedule
        compute_in(model, getattr(config, "precision", "fp32"))
        if getattr(config, "checkpoint_activations", False):
            compute_twice(model)
        self.warmup_steps, self.max_grad_norm = config.warmup_steps, config.max_grad_norm
        decay = getattr(config, "weight_decay", 0.0)
        self.optimizer = make_optimizer(model, learning_rate=self.peak, weight_decay=decay, eps=eps)
        self.done = 0  # optimiser steps taken
        self.batch: Any = None  # the record that its gradients are of, the last one where there are several

    @property
    def learning_rate(self) -> float:
        """The rate that the next step uses."""
        return self.peak * self.schedule(self.done, self.steps, warmup=self.warmup_steps)

    def step(self, parts: Sequence[Part], share: Callable[[Part], Share], *, trainer_step: int) -> tuple[list, float]:
        """Backward, clip, update: what `add_gradients` says of each part of a batch, the gradient norm before clipping.

        Raises NonFiniteLoss, before anything moved, where a loss or the gradient is NaN or infinite.
        """
        said = add_gradients(parts, share, [self], trainer_step=trainer_step)
        return said, move_together([self], trainer_step=trainer_step)[0]

    def clip(self) -> Tensor:
        """Clips the gradients to `max_grad_norm`; returns their norm before that."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        return nn.utils.clip_grad_norm_(parameters, self.max_grad_norm, foreach=True)

    def move(self) -> None:
        """Changes the weights by the gradients that they hold, and forgets those."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1

    def state_dict(self) -> dict:
        """Trainable weights, optimiser state and place in the schedule."""
        weights = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        return {"weights": weights, "optimizer": self.optimizer.state_dict(), "done": self.done}

    def load_state_dict(self, state: dict) -> None:
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in state["weights"].items():
                parameters[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = state["done"]


def move_together(descents: list[Descent], *, trainer_step: int) -> list[float]:
    """The update of models that learn from the same batch, by what `add_gradients` gave; norms before clipping.

    Raises NonFiniteLoss with the batch's tensors, before any of the models moved, where a gradient is NaN or infinite.
    """
    for descent in descents:
        add_up_gradients(descent.model.parameters())
    norms = [descent.clip() for descent in descents]
    if not all(torch.isfinite(norm) for norm in norms):
        forget_gradients(descents)
        raise NonFiniteLoss(trainer_step, tensors_of(descents[0].batch))
    for descent in descents:
        descent.move()
    return [norm.item() for norm in norms]


def add_gradients(
    parts: Sequence[Part], share: Callable[[Part], Share], descents: list[Descent], *, trainer_step: int
) -> list[tuple[float, Any]]:
    """The backward passes of a loss of a step that `move_together` completes: what every part adds, and what it says.

    `share(part)` is what a part of the batch adds to the loss, the record that this was computed from, and what else
    there is to say of it. The next is made when the graph of the one before is gone; processes that train together do
    some parts each. Raises NonFiniteLoss where a loss is NaN or infinite, and the `descents` then hold no gradients.
    """
    said = []
    for part in ranks.own(parts):
        loss, batch, saying = share(part)
        if not torch.isfinite(loss):
            forget_gradients(descents)
            raise NonFiniteLoss(trainer_step, tensors_of(batch))
        loss.backward()
        descents[0].batch = batch
        said.append((loss.item(), saying))
    return ranks.gathered(said, len(parts))


def add_up_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Every process gets the sum of the gradients of all: each of them has done a part of the batch, or none."""
    if ranks.size() > 1:
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        ranks.add_up([parameter.grad for parameter in trained])


def forget_gradients(descents: list[Descent]) -> None:
    """The step that had begun is not taken."""
    for descent in descents:
        descent.optimizer.zero_grad(set_to_none=True)


def tensors_of(batch) -> dict[str, Tensor]:
    """The fields of a record, without the graphs that they may be part of; for NonFiniteLoss."""
    return {field.name: getattr(batch, field.name).detach() for field in fields(batch)}


# --- Which examples come next: a new permutation each epoch, every example once in it, resumable anywhere.


class EpochBatches:
    """Endless batches of indices; the state is the generator at the start of the epoch and the place in it.

    `lengths` gives each example's tokens, so that a batch holds similar lengths; all equal means plain permutation.
    Where `whole` is set, an epoch leaves out the few examples that fill no batch, other ones each time.
    """

    def __init__(self, lengths: list[int], batch_size: int, *, seed: int, whole: bool = False):
        self.lengths, self.batch_size, self.whole = lengths, batch_size, whole
        self.generator = torch.Generator().manual_seed(seed)
        self.epoch_start = self.generator.get_state()
        self.batches: list[list[int]] = []
        self.position = 0

    @property
    def per_epoch(self) -> int:
        """Batches in one epoch, the last one may be smaller."""
        return -(-len(self.lengths) // self.batch_size)

    def next(self) -> list[int]:
        """The next batch of indices."""
        if self.position >= len(self.batches):
            self._start_epoch()
        batch = self.batches[self.position]
        self.position += 1
        return batch

    def state_dict(self) -> dict:
        return {"epoch_start": self.epoch_start, "position": self.position}

    def load_state_dict(self, state: dict) -> None:
        self.generator.set_state(state["epoch_start"])
        self.batches, self.position = [], 0
        if state["position"]:
            self._start_epoch()
        self.position = state["position"]

    def _start_epoch(self) -> None:
        self.epoch_start = self.generator.get_state()
        batches = length_bucketed_batches(self.lengths, self.batch_size, generator=self.generator)
        self.batches = [batch for batch in batches if len(batch) == self.batch_size or not self.whole]
        self.position = 0


# --- What a trainer saves: its step number and the state of its parts.


class Stateful:
    """`state_dict` and `load_state_dict` from the attributes named in `parts`; all else is built from the arguments."""

    parts: tuple[str, ...] = ("descent", "batches")
    step_number: int = 0

    @property
    def due(self) -> bool:
        """Whether this step measures on held-out examples: every `evaluate_every`-th does, and the last one."""
        return self.step_number % self.config.evaluate_every == 0 or self.step_number == self.total_steps

    def micro_batches(self, items: list, sizes: list[int]) -> list[list]:
        """The items of a batch that go through a model at a time: like sizes together, none split, padding counted.

        `sizes` are the tokens of each item; one of more than `micro_batch_tokens` stands alone, and 0 leaves together
        what falls to each of the processes. What a part adds to the loss is its share of that of the batch: gradients
        add up to it.
        """
        tokens, parts = self.config.micro_batch_tokens, []
        if not tokens:
            return [items[first :: ranks.size()] for first in range(min(ranks.size(), len(items)))]
        for place in sorted(range(len(items)), key=lambda place: -sizes[place]):
            if parts and sizes[parts[-1][0]] * (len(parts[-1]) + 1) <= tokens:
                parts[-1].append(place)
            else:
                parts.append([place])
        return [[items[place] for place in part] for part in parts]

    def memory(self) -> str:
        """What `memory_line` says of the longest batch, or part of one."""
        config, own = self.config, [*vars(self).values(), *getattr(getattr(self, "reward", None), "members", ())]
        held = [each if isinstance(each, nn.Module) else getattr(each, "model", None) for each in own]
        sampled, prompts = getattr(config, "max_completion_length", 0), getattr(self, "prompts", [])
        longest = max([len(each.prompt_ids) for each in prompts] or self.batches.lengths) + sampled
        rows = config.batch_size // getattr(config, "num_mini_batches", 1)
        rows *= len(self.kind.completions(self.examples[0])) if hasattr(self, "kind") else 1
        tokens = config.micro_batch_tokens or -(-rows // ranks.size()) * longest
        learner = self.policy if hasattr(self, "policy") else self.model
        return memory_line(held, learner, tokens=tokens, twice=config.checkpoint_activations)

    def state_dict(self) -> dict[str, Any]:
        """Everything that makes the next step what it would have been."""
        states = {name: _state(getattr(self, name)) for name in self.parts}
        return {"step": self.step_number, **states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.step_number = state["step"]
        for name in self.parts:
            part = getattr(self, name)
            if isinstance(part, torch.Generator):
                part.set_state(state[name])
            elif hasattr(part, "load_state_dict"):
                part.load_state_dict(state[name])
            else:
                setattr(self, name, state[name])


def _state(part: Any) -> Any:
    """A number or list as it is, a generator or a stateful object as its state."""
    if isinstance(part, torch.Generator):
        return part.get_state()
    return part.state_dict() if hasattr(part, "state_dict") else part
