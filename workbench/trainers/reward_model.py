"""Reward model from comparisons: Bradley-Terry. Christiano et al. 2017; Stiennon et al. 2020, section 3.4."""

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.batches import collate_pairs
from workbench.epochs import EpochBatches
from workbench.losses.preference import bradley_terry_loss
from workbench.models import without_dropout
from workbench.optimization import Descent, require_examples, require_in, require_positive
from workbench.records import PairExample
from workbench.scoring import sequence_rewards
from workbench.trainers.stateful import Stateful


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig:
    """How a reward model is trained."""

    epochs: int = 2  # passes over the comparisons; more than two overfit (Stiennon et al. 2020 take one)
    batch_size: int = 64  # comparisons per step
    learning_rate: float = 5e-4  # peak, at width 64; 1e-6 .. 1e-5 for large pretrained models
    warmup_steps: int = 10  # steps of linear warm-up; then a cosine down to 10%
    weight_decay: float = 0.01  # on matrices only
    max_grad_norm: float = 1.0  # gradients are clipped to this norm
    evaluate_every: int = 25  # steps between measurements on held-out comparisons
    seed: int = 0  # order of the examples

    def __post_init__(self):
        require_positive(epochs=self.epochs, batch_size=self.batch_size, learning_rate=self.learning_rate)
        require_positive(max_grad_norm=self.max_grad_norm, evaluate_every=self.evaluate_every)
        require_in(0, 1, weight_decay=self.weight_decay)


class RewardModelTrainer(Stateful):
    """Maximises the probability of the labels under Bradley-Terry.

    `reward_model` is a sequence classifier with one output. Left out: K-wise losses and the auxiliary LM loss.
    """

    progress_keys = ("loss", "accuracy", "held_out_accuracy")

    def __init__(self, reward_model, pairs: list[PairExample], held_out: list[PairExample], config: RewardModelConfig):
        require_examples(pairs, held_out)
        self.model, self.pairs, self.held_out, self.config = without_dropout(reward_model), pairs, held_out, config
        lengths = [len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) for p in pairs]
        self.batches = EpochBatches(lengths, config.batch_size, seed=config.seed)
        self.total_steps = config.epochs * self.batches.per_epoch
        self.descent = Descent(
            reward_model,
            learning_rate=config.learning_rate,
            steps=self.total_steps,
            warmup_steps=config.warmup_steps,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
        )

    def step(self) -> dict[str, float | None]:
        """One optimiser step; `loss` in nats per comparison, `margin` in the model's raw units (log-odds)."""
        self.step_number += 1
        pairs = [self.pairs[index] for index in self.batches.next()]
        batch = collate_pairs(pairs, self.model.config.pad_token_id).to(self.model.device)
        chosen, rejected = sequence_rewards(self.model, batch).chunk(2)
        margins = torch.tensor([pair.margin for pair in pairs], device=chosen.device)
        loss = bradley_terry_loss(chosen, rejected, margin=margins).mean()
        learning_rate = self.descent.learning_rate
        grad_norm = self.descent.step(loss, trainer_step=self.step_number, batch=batch)
        due = self.step_number % self.config.evaluate_every == 0 or self.step_number == self.total_steps
        held_out = self.margins(self.held_out) if due else None
        return {
            "step": self.step_number,
            "loss": loss.item(),
            "accuracy": (chosen > rejected).float().mean().item(),
            "margin": (chosen - rejected).mean().item(),
            "held_out_loss": bradley_terry_loss(held_out, torch.zeros(())).mean().item() if due else None,
            "held_out_accuracy": (held_out > 0).float().mean().item() if due else None,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
        }

    @torch.no_grad()
    def margins(self, pairs: list[PairExample]) -> Tensor:
        """Raw reward of chosen minus rejected per comparison, in the given order, (N,) log-odds on the CPU."""
        size = self.config.batch_size
        parts = []
        for start in range(0, len(pairs), size):
            batch = collate_pairs(pairs[start : start + size], self.model.config.pad_token_id).to(self.model.device)
            chosen, rejected = sequence_rewards(self.model, batch).chunk(2)
            parts.append((chosen - rejected).cpu())
        return torch.cat(parts)
