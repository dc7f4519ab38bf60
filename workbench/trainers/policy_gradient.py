"""Policy gradient on sampled completions with a KL budget: PPO as in RLHF. Ziegler et al. 2019; Ouyang et al. 2022."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.advantages import (
    adaptive_kl_coef,
    gae,
    masked_mean,
    masked_rescale,
    masked_variance,
    masked_whiten,
    token_rewards,
)
from workbench.analysis.kl import sequence_kl_summary
from workbench.epochs import EpochBatches
from workbench.errors import WorkbenchError
from workbench.losses.policy import clipped_surrogate_loss, clipped_value_loss, entropy, kl_k1
from workbench.models import without_dropout
from workbench.optimization import Descent, linear_schedule, require_examples, require_in, require_positive
from workbench.records import PromptExample, ScoredRollout
from workbench.sampling import reward_arguments, sample
from workbench.scoring import completion_logits, completion_logprobs, completion_values, token_logprobs
from workbench.trainers.stateful import Stateful


@dataclass(frozen=True, kw_only=True)
class PolicyGradientConfig:
    """How a policy learns from its own samples."""

    steps: int = 100  # rounds of sampling and learning
    batch_size: int = 64  # completions per step, one per prompt
    learning_rate: float = 8e-4  # of the policy at first, at width 64, falling to 0; 1e-6 for large models
    critic_learning_rate: float = 1e-3  # of the critic
    kl_coef: float = 0.15  # price of one nat of KL from the reference, in standard deviations of the reward
    kl_target: float = 0.0  # nats per completion that an adaptive coefficient aims at; 0 keeps it fixed
    kl_horizon: int = 10_000  # completions over which the adaptive coefficient may move by 20%
    temperature: float = 1.0  # of sampling, and of every log-probability
    max_completion_length: int = 40  # tokens
    num_ppo_epochs: int = 1  # passes over each batch of samples
    num_mini_batches: int = 2  # updates per pass
    cliprange: float = 0.2  # of the probability ratio
    cliprange_value: float = 0.2  # of the value, in reward units
    gamma: float = 1.0  # discount per token
    lam: float = 0.95  # trade of bias and variance in the advantages; 1 is Monte Carlo
    missing_eos_penalty: float = 1.0  # taken off the score of a completion that hit the length limit
    whiten_rewards: bool = False  # scale token rewards to variance 1 within a batch
    warmup_steps: int = 10  # updates of linear warm-up; then a line down to 0
    max_grad_norm: float = 1.0  # gradients are clipped to this norm
    evaluate_every: int = 10  # steps between measurements on held-out prompts
    seed: int = 0  # order of prompts, samples, mini-batches

    def __post_init__(self):
        require_positive(steps=self.steps, batch_size=self.batch_size, learning_rate=self.learning_rate)
        require_positive(critic_learning_rate=self.critic_learning_rate, temperature=self.temperature)
        require_positive(max_completion_length=self.max_completion_length, num_ppo_epochs=self.num_ppo_epochs)
        require_positive(cliprange=self.cliprange, cliprange_value=self.cliprange_value, kl_horizon=self.kl_horizon)
        require_positive(max_grad_norm=self.max_grad_norm, num_mini_batches=self.num_mini_batches)
        require_positive(evaluate_every=self.evaluate_every)
        require_in(0, 1, gamma=self.gamma, lam=self.lam)
        require_in(0, 1e6, kl_coef=self.kl_coef, kl_target=self.kl_target, missing_eos_penalty=self.missing_eos_penalty)
        if self.num_mini_batches > self.batch_size:
            raise WorkbenchError(
                f"num_mini_batches is {self.num_mini_batches} but batch_size is {self.batch_size}: "
                "give at most one per completion."
            )
        if self.kl_target > 0 and self.kl_coef == 0:
            raise WorkbenchError("kl_target needs a starting kl_coef above 0: the controller multiplies it.")


class PolicyGradientTrainer(Stateful):
    """PPO: sample, score, reference log-probabilities, rewards, advantages, updates.

    `reward` is any reward callable; `monitors` are others that are evaluated on the same completions and never learned
    from (the gold reward). `critic` is a token classifier with one output. Left out: value-function warm-up, sharing of
    policy and critic, PPO-ptx.
    """

    parts = ("policy_descent", "critic_descent", "batches", "generator", "kl_coef")
    progress_keys = ("kl", "reward", "gold")

    def __init__(
        self,
        policy,
        reference,
        critic,
        reward: Callable[..., list[float]],
        prompts: list[PromptExample],
        held_out: list[PromptExample],
        tokenizer,
        config: PolicyGradientConfig,
        *,
        monitors: dict[str, Callable[..., list[float]]],
    ):
        require_examples(prompts, held_out)
        if len(prompts) < config.batch_size:
            raise WorkbenchError(
                f"There are {len(prompts)} prompts but batch_size is {config.batch_size}: give more prompts."
            )
        self.policy, self.reference, self.critic = map(without_dropout, (policy, reference, critic))
        self.reward, self.monitors, self.tokenizer = reward, monitors, tokenizer
        self.prompts, self.held_out = prompts, held_out
        self.config = config
        self.batches = EpochBatches([1] * len(prompts), config.batch_size, seed=config.seed, whole=True)
        self.generator = torch.Generator().manual_seed(config.seed + 1)
        self.kl_coef = config.kl_coef
        self.last_samples: list[dict[str, Any]] = []
        self.total_steps = config.steps
        updates = config.steps * config.num_ppo_epochs * config.num_mini_batches
        shared = {
            "steps": updates,
            "schedule": linear_schedule,
            "warmup_steps": config.warmup_steps,
            "eps": 1e-5,  # Huang et al. 2022: Adam's usual 1e-8 makes early PPO updates erratic
            "max_grad_norm": config.max_grad_norm,
        }
        self.policy_descent = Descent(policy, learning_rate=config.learning_rate, **shared)
        self.critic_descent = Descent(critic, learning_rate=config.critic_learning_rate, **shared)

    def step(self) -> dict[str, float]:
        """Sample a batch, score it, learn from it; KL is nats per completion, rewards are in the reward's unit."""
        self.step_number += 1
        config = self.config
        indices = self.batches.next()
        rollout, monitored = self.rollout([self.prompts[index] for index in indices], self.generator)
        mask = rollout.completion_mask
        kl = kl_k1(rollout.logprobs, rollout.reference_logprobs)
        scores = rollout.scores - config.missing_eos_penalty * ~rollout.finished
        rewards = token_rewards(kl, scores, mask, kl_coef=self.kl_coef)
        if config.whiten_rewards:
            rewards = masked_rescale(rewards, mask)
        with torch.no_grad():
            values = completion_values(self.critic, rollout)
        advantages, returns = gae(rewards, values, mask, gamma=config.gamma, lam=config.lam)
        kl_mean, kl_se = map(float, sequence_kl_summary(kl.cpu(), mask.cpu(), indices))
        row = {"step": self.step_number, **_means(rollout, monitored), "kl": kl_mean, "kl_se": kl_se}
        row |= {"kl_coef": self.kl_coef, "learning_rate": self.policy_descent.learning_rate}
        row |= self.update(rollout, masked_whiten(advantages, mask), values, returns)
        unexplained = masked_variance(returns - values, mask) / masked_variance(returns, mask)
        row["explained_variance"] = 1 - unexplained.item()
        if self.step_number % config.evaluate_every == 0 or self.step_number == config.steps:
            row |= self.evaluate()
        self._adapt_kl_coef(kl_mean, episodes=len(rollout))
        return row

    @torch.no_grad()
    def rollout(
        self, prompts: list[PromptExample], generator: torch.Generator
    ) -> tuple[ScoredRollout, dict[str, list[float]]]:
        """Completions of the current policy with rewards and reference log-probabilities, and what the monitors say."""
        sampled = sample(
            self.policy,
            [prompt.prompt_ids for prompt in prompts],
            max_completion_length=self.config.max_completion_length,
            temperature=self.config.temperature,
            generator=generator,
        )
        arguments, columns = reward_arguments(self.tokenizer, prompts, sampled)
        scores = list(self.reward(*arguments, **columns))
        monitored = {name: list(monitor(*arguments, **columns)) for name, monitor in self.monitors.items()}
        names = ("prompt", "completion", "reward", *monitored)
        self.last_samples = [
            dict(zip(names, values, strict=True))
            for values in zip(*arguments, scores, *monitored.values(), strict=True)
        ]
        scored = ScoredRollout(
            **vars(sampled),
            reference_logprobs=completion_logprobs(self.reference, sampled, temperature=self.config.temperature),
            scores=torch.tensor(scores, dtype=torch.float32, device=sampled.tokens.device),
        )
        return scored, monitored

    def update(self, rollout: ScoredRollout, advantages: Tensor, values: Tensor, returns: Tensor) -> dict[str, float]:
        """All passes over one batch of samples; returns the mean of what each mini-batch reports."""
        reports = []
        for _ in range(self.config.num_ppo_epochs):
            permutation = torch.randperm(len(rollout), generator=self.generator)
            for rows in permutation.tensor_split(self.config.num_mini_batches):
                reports.append(
                    self._update_mini_batch(rollout.rows(rows), advantages[rows], values[rows], returns[rows])
                )
        return {name: sum(report[name] for report in reports) / len(reports) for name in reports[0]}

    def evaluate(self) -> dict[str, float]:
        """Reward, KL and monitors on held-out prompts after this step's updates, from the same random numbers."""
        last = self.last_samples
        rollout, monitored = self.rollout(self.held_out, torch.Generator().manual_seed(self.config.seed + 2))
        self.last_samples = last
        kl = kl_k1(rollout.logprobs, rollout.reference_logprobs).sum(1).mean().item()
        means = _means(rollout, monitored) | {"kl": kl}
        return {f"held_out_{name}": value for name, value in means.items()}

    def samples(self) -> list[dict[str, Any]]:
        """The last batch: prompt, completion, reward and the monitors' values."""
        return self.last_samples

    def _adapt_kl_coef(self, kl: float, *, episodes: int) -> None:
        config = self.config
        if config.kl_target > 0:
            self.kl_coef = adaptive_kl_coef(
                self.kl_coef, kl, target=config.kl_target, episodes=episodes, horizon=config.kl_horizon
            )

    def _update_mini_batch(
        self, part: ScoredRollout, advantages: Tensor, values: Tensor, returns: Tensor
    ) -> dict[str, float]:
        config, mask = self.config, part.completion_mask
        logits = completion_logits(self.policy, part, temperature=config.temperature)
        logprobs = token_logprobs(logits, part)
        surrogate = clipped_surrogate_loss(logprobs, part.logprobs, advantages, cliprange=config.cliprange)
        policy_loss = masked_mean(surrogate, mask)
        policy_norm = self.policy_descent.step(policy_loss, trainer_step=self.step_number, batch=part)
        new_values = completion_values(self.critic, part)
        value_losses = clipped_value_loss(new_values, values, returns, cliprange_value=config.cliprange_value)
        value_loss = masked_mean(value_losses, mask)
        self.critic_descent.step(value_loss, trainer_step=self.step_number, batch=part)
        with torch.no_grad():
            log_ratio = logprobs - part.logprobs
            clipped = (log_ratio.exp() - 1).abs() > config.cliprange
            return {
                "policy_loss": policy_loss.item(),
                "value_loss": value_loss.item(),
                "entropy": masked_mean(entropy(logits), mask).item(),
                "approx_kl": masked_mean(0.5 * log_ratio.square(), mask).item(),
                "clip_fraction": masked_mean(clipped.float(), mask).item(),
                "policy_grad_norm": policy_norm,
            }


def _means(rollout: ScoredRollout, monitored: dict[str, list[float]]) -> dict[str, float]:
    """Means over completions: reward, monitors, length in tokens, share that ended with EOS."""
    return {
        "reward": rollout.scores.mean().item(),
        **{name: sum(values) / len(values) for name, values in monitored.items()},
        "completion_length": rollout.completion_mask.sum(1).float().mean().item(),
        "finished": rollout.finished.float().mean().item(),
    }
