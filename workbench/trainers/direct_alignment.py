"""Direct alignment: a policy from comparisons without a reward model. Rafailov et al. 2023."""

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.batches import collate_pairs
from workbench.epochs import EpochBatches
from workbench.losses.direct import dpo_loss
from workbench.models import without_dropout
from workbench.optimization import Descent, require_examples, require_positive
from workbench.records import PairExample, Sequences
from workbench.scoring import completion_logprobs
from workbench.trainers.stateful import Stateful


@dataclass(frozen=True, kw_only=True)
class DirectAlignmentConfig:
    """How a policy is aligned directly."""

    beta: float = 0.1  # strength of the implied KL penalty, per nat; larger stays closer to the reference
    epochs: int = 1  # passes over the comparisons
    batch_size: int = 64  # comparisons per step
    learning_rate: float = 2e-4  # peak, at width 64; 5e-7 .. 5e-6 for large pretrained models
    warmup_steps: int = 10  # steps of linear warm-up; then a cosine down to 10%
    max_grad_norm: float = 1.0  # gradients are clipped to this norm
    evaluate_every: int = 25  # steps between measurements on held-out comparisons
    seed: int = 0  # order of the examples

    def __post_init__(self):
        require_positive(beta=self.beta, epochs=self.epochs, batch_size=self.batch_size)
        require_positive(learning_rate=self.learning_rate, max_grad_norm=self.max_grad_norm)
        require_positive(evaluate_every=self.evaluate_every)


class DirectAlignmentTrainer(Stateful):
    """Minimises DPO's loss; the reference is frozen and scored on each batch.

    `policy` and `reference` start from the same weights. Log-probabilities are sums over the completion's tokens.
    """

    progress_keys = ("loss", "accuracy", "held_out_accuracy")

    def __init__(
        self,
        policy,
        reference,
        pairs: list[PairExample],
        held_out: list[PairExample],
        config: DirectAlignmentConfig,
    ):
        require_examples(pairs, held_out)
        self.policy, self.reference = without_dropout(policy), without_dropout(reference)
        self.pairs, self.held_out, self.config = pairs, held_out, config
        lengths = [len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) for p in pairs]
        self.batches = EpochBatches(lengths, config.batch_size, seed=config.seed)
        self.total_steps = config.epochs * self.batches.per_epoch
        self.descent = Descent(
            policy,
            learning_rate=config.learning_rate,
            steps=self.total_steps,
            warmup_steps=config.warmup_steps,
            max_grad_norm=config.max_grad_norm,
        )

    def step(self) -> dict[str, float | None]:
        """One optimiser step; `loss` nats per pair, rewards and `margin` (chosen - rejected) are beta * log-ratio."""
        self.step_number += 1
        batch = self._batch([self.pairs[index] for index in self.batches.next()])
        chosen, rejected, reference_chosen, reference_rejected = self._sums(batch)
        beta = self.config.beta
        loss = dpo_loss(chosen, rejected, reference_chosen, reference_rejected, beta=beta).mean()
        learning_rate = self.descent.learning_rate
        grad_norm = self.descent.step(loss, trainer_step=self.step_number, batch=batch)
        chosen_reward = beta * (chosen - reference_chosen).detach()
        rejected_reward = beta * (rejected - reference_rejected).detach()
        due = self.step_number % self.config.evaluate_every == 0 or self.step_number == self.total_steps
        return {
            "step": self.step_number,
            "loss": loss.item(),
            "accuracy": (chosen_reward > rejected_reward).float().mean().item(),
            "margin": (chosen_reward - rejected_reward).mean().item(),
            "chosen_reward": chosen_reward.mean().item(),
            "rejected_reward": rejected_reward.mean().item(),
            "held_out_accuracy": (self.margins(self.held_out) > 0).float().mean().item() if due else None,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
        }

    @torch.no_grad()
    def margins(self, pairs: list[PairExample]) -> Tensor:
        """Implied reward of chosen minus rejected per pair, in the given order, (N,) on the CPU."""
        size = self.config.batch_size
        parts = []
        for start in range(0, len(pairs), size):
            chosen, rejected, reference_chosen, reference_rejected = self._sums(
                self._batch(pairs[start : start + size])
            )
            parts.append((chosen - reference_chosen) - (rejected - reference_rejected))
        return self.config.beta * torch.cat(parts).cpu()

    def _batch(self, pairs: list[PairExample]) -> Sequences:
        return collate_pairs(pairs, self.policy.config.pad_token_id).to(self.policy.device)

    def _sums(self, batch: Sequences) -> tuple[Tensor, ...]:
        """Log-probabilities of completions, each (B,) nats: policy chosen, rejected, reference chosen, rejected."""
        policy = completion_logprobs(self.policy, batch).sum(1).chunk(2)
        with torch.no_grad():
            reference = completion_logprobs(self.reference, batch).sum(1).chunk(2)
        return *policy, *reference
