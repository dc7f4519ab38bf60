"""Next-token prediction: pretraining on packed documents, supervised fine-tuning on completions."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from workbench.models.load import without_dropout
from workbench.models.packing import TokenBatch, target_losses
from workbench.trainers.descent import Descent, EpochBatches, Stateful, require_examples, require_in, require_positive


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """How a language model is trained."""

    steps: int  # optimiser steps
    batch_size: int = 64  # rows per step
    learning_rate: float = 1e-3  # peak; 5e-3 from nothing at width 64, 1e-5 .. 1e-4 for large pretrained models
    warmup_steps: int = 10  # steps of linear warm-up; then a cosine down to 10%
    weight_decay: float = 0.0  # on matrices only
    max_grad_norm: float = 1.0  # gradients are clipped to this norm
    evaluate_every: int = 25  # steps between measurements of the held-out loss
    seed: int = 0  # order of the examples

    def __post_init__(self):
        require_positive(steps=self.steps, batch_size=self.batch_size, learning_rate=self.learning_rate)
        require_positive(max_grad_norm=self.max_grad_norm, evaluate_every=self.evaluate_every)
        require_in(0, 1, weight_decay=self.weight_decay)


class LanguageModelTrainer(Stateful):
    """Minimises the mean cross-entropy per target token.

    `collate(examples, pad_id) -> TokenBatch` decides what a row is and which of its tokens are targets:
    `packing.collate_packed` for documents, `packing.collate_demonstrations` for completions. Left out: dropout (off, as
    in every trainer here) and gradient accumulation.
    """

    progress_keys = ("loss", "held_out_loss")

    def __init__(
        self,
        model,
        examples: list,
        held_out: list,
        config: LanguageModelConfig,
        *,
        collate: Callable[[list, int], TokenBatch],
        lengths: list[int],
    ):
        require_examples(examples, held_out)
        self.model, self.examples, self.held_out, self.config = without_dropout(model), examples, held_out, config
        self.collate = collate
        self.descent = Descent(
            model,
            learning_rate=config.learning_rate,
            steps=config.steps,
            warmup_steps=config.warmup_steps,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
        )
        self.batches = EpochBatches(lengths, config.batch_size, seed=config.seed)
        self.total_steps = config.steps

    def step(self) -> dict[str, float | None]:
        """One optimiser step; `loss` and `held_out_loss` are nats per target token."""
        self.step_number += 1
        batch = self._batch([self.examples[index] for index in self.batches.next()])
        loss = target_losses(self.model, batch).mean()
        learning_rate = self.descent.learning_rate
        grad_norm = self.descent.step(loss, trainer_step=self.step_number, batch=batch)
        due = self.step_number % self.config.evaluate_every == 0 or self.step_number == self.total_steps
        return {
            "step": self.step_number,
            "loss": loss.item(),
            "held_out_loss": self.held_out_loss() if due else None,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "target_tokens": int(batch.target_mask.sum()),
        }

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Mean cross-entropy over all held-out target tokens, nats per token."""
        size = self.config.batch_size
        parts = [self._batch(self.held_out[i : i + size]) for i in range(0, len(self.held_out), size)]
        return torch.cat([target_losses(self.model, part) for part in parts]).mean().item()

    def _batch(self, examples: list) -> TokenBatch:
        return self.collate(examples, self.model.config.pad_token_id).to(self.model.device)
