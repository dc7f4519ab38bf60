"""Settings that every trainer has, and what makes a configuration valid."""

import math
from dataclasses import dataclass

from workbench import WorkbenchError
from workbench.models.computing import require_precision


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How models move, and how they are computed: of the latter, learning is independent but for rounding."""

    warmup_steps: int = 10  # updates of linear warm-up; then down, see the trainer's schedule
    max_grad_norm: float = 1.0  # gradients are clipped to this norm
    micro_batch_tokens: int = 0  # at most so many, padding counted, go through a model at a time; 0: the whole batch
    checkpoint_activations: bool = False  # compute layers twice instead of keeping what they made: less memory
    precision: str = "fp32"  # bf16: layers compute in it; weights, losses and log-probabilities stay in fp32

    def __post_init__(self):
        if not self.micro_batch_tokens >= 0:
            raise WorkbenchError(f"micro_batch_tokens is {self.micro_batch_tokens}: give at least 1, or 0.")
        if self.checkpoint_activations not in (True, False):
            raise WorkbenchError(f"checkpoint_activations is {self.checkpoint_activations}: give True or False.")
        require_precision(self.precision)


def require_positive(config, *names: str) -> None:
    """Raises WorkbenchError for the first of these settings that is not a finite number above 0, by its name."""
    for name in names:
        value = getattr(config, name)
        if not (math.isfinite(value) and value > 0):
            raise WorkbenchError(f"{name} is {value}: give a finite number above 0.")


def require_in(low: float, high: float, config, *names: str) -> None:
    """Raises WorkbenchError for the first of these settings outside [low, high], by its name; NaN is outside."""
    for name in names:
        value = getattr(config, name)
        if not low <= value <= high:
            raise WorkbenchError(f"{name} is {value}: give a number between {low} and {high}.")
