"""Policy-gradient algorithms as a table: from which functions each is made, and its own settings.

A new algorithm is a row of `ALGORITHMS`, and a function where none below does what it needs. Baselines take token
rewards, values and the mask, all (B, R), and give each token's advantage and what it earned, both (B, R); surrogates
take log-probabilities (B, R) and the mini-batch they belong to and give a loss per token; aggregates make it a scalar.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workbench import WorkbenchError
from workbench.losses import reductions
from workbench.losses.advantages import (
    batch_normalised_returns,
    gae,
    group_centered,
    group_relative,
    leave_one_out,
    masked_mean,
    reward_to_go,
)
from workbench.losses.policy import (
    clipped_surrogate_loss,
    clipped_weight_loss,
    kl_k1,
    kl_k2,
    kl_k3,
    kl_k3_weighted,
    kl_penalised_surrogate_loss,
    policy_gradient_loss,
    sequence_ratio_loss,
)

if TYPE_CHECKING:
    from workbench.trainers.experience import Experience
    from workbench.trainers.policy_gradient_config import PolicyGradientConfig

    Worth = tuple[Tensor, Tensor]


# Estimates from log-probabilities alone: the policy's, those under which the tokens were sampled, the reference's.
SAMPLED_KL = {
    "k1": lambda logprobs, old_logprobs, reference_logprobs: kl_k1(logprobs, reference_logprobs),
    "k2": lambda logprobs, old_logprobs, reference_logprobs: kl_k2(logprobs, reference_logprobs),
    "k3": lambda logprobs, old_logprobs, reference_logprobs: kl_k3(logprobs, reference_logprobs),
    "k3_weighted": kl_k3_weighted,
}


# What a reward is compared with


def critic(rewards: Tensor, values: Tensor, mask: Tensor, config: PolicyGradientConfig) -> Worth:
    """What the critic expected: generalised advantage estimates."""
    return gae(rewards, values, mask, gamma=config.gamma, lam=config.lam)


def nothing(rewards: Tensor, values: Tensor, mask: Tensor, config: PolicyGradientConfig) -> Worth:
    """All that came after the token counts."""
    returns = reward_to_go(rewards, mask, gamma=config.gamma)
    return returns, returns


def other_completions(rewards: Tensor, values: Tensor, mask: Tensor, config: PolicyGradientConfig) -> Worth:
    """The mean return of all other completions of the batch, which leaves the expected gradient as it is."""
    returns = reward_to_go(rewards, mask, gamma=config.gamma)
    baseline = returns[:, 0] - leave_one_out(returns[:, 0], len(returns))
    return torch.where(mask, returns - baseline[:, None], 0), returns


def batch_in_deviations(rewards: Tensor, values: Tensor, mask: Tensor, config: PolicyGradientConfig) -> Worth:
    """The mean return of all tokens of the batch, in its standard deviations."""
    returns = reward_to_go(rewards, mask, gamma=config.gamma)
    return batch_normalised_returns(rewards, mask, gamma=config.gamma), returns


def others_of_the_prompt(rewards: Tensor, values: Tensor, mask: Tensor, config: PolicyGradientConfig) -> Worth:
    """The mean of the prompt's other completions."""
    return _per_completion(leave_one_out, rewards, mask, config)


def group(rewards: Tensor, values: Tensor, mask: Tensor, config: PolicyGradientConfig) -> Worth:
    """The mean of all of the prompt's completions."""
    return _per_completion(group_centered, rewards, mask, config)


def group_in_deviations(rewards: Tensor, values: Tensor, mask: Tensor, config: PolicyGradientConfig) -> Worth:
    """The mean of all of the prompt's completions, in their standard deviations."""
    return _per_completion(group_relative, rewards, mask, config)


def _per_completion(compared: Callable, rewards: Tensor, mask: Tensor, config: PolicyGradientConfig) -> Worth:
    """One advantage for all tokens of a completion; what it earned is its score less the price of its KL."""
    earned = rewards.sum(1)
    advantages = compared(earned, config.num_generations)
    return torch.where(mask, advantages[:, None], 0), torch.where(mask, earned[:, None], 0)


# What is minimised


def log_probability(logprobs: Tensor, part: Experience, config: PolicyGradientConfig, *, penalty_coef: float) -> Tensor:
    """No ratio: right for the policy that sampled, so for one update."""
    return policy_gradient_loss(logprobs, part.advantages)


def clipped_ratio(logprobs: Tensor, part: Experience, config: PolicyGradientConfig, *, penalty_coef: float) -> Tensor:
    """A ratio per token."""
    clip = {"cliprange": config.cliprange, "cliprange_high": config.cliprange_high}
    return clipped_surrogate_loss(logprobs, part.logprobs, part.advantages, **clip)


def clipped_completion_ratio(
    logprobs: Tensor, part: Experience, config: PolicyGradientConfig, *, penalty_coef: float
) -> Tensor:
    """A ratio per completion."""
    clip = {"cliprange": config.cliprange, "cliprange_high": config.cliprange_high}
    return sequence_ratio_loss(logprobs, part.logprobs, part.advantages, part.completion_mask, **clip)


def clipped_weight(logprobs: Tensor, part: Experience, config: PolicyGradientConfig, *, penalty_coef: float) -> Tensor:
    """A ratio per token, as a weight: no token loses its gradient."""
    clip = {"cliprange": config.cliprange, "cliprange_high": config.cliprange_high}
    return clipped_weight_loss(logprobs, part.logprobs, part.advantages, **clip)


def penalised_ratio(logprobs: Tensor, part: Experience, config: PolicyGradientConfig, *, penalty_coef: float) -> Tensor:
    """A ratio per token, and a price on the distance from the policy that sampled."""
    return kl_penalised_surrogate_loss(logprobs, part.logprobs, part.advantages, beta=penalty_coef)


def adapted_penalty_coef(penalty_coef: float, kl: float, *, target: float) -> float:
    """The next price on that distance: doubled above 1.5 times the target, halved below the target / 1.5.

    `kl` and `target` nats per token. Schulman et al. 2017, section 4.
    """
    if kl > 1.5 * target:
        return 2 * penalty_coef
    return penalty_coef / 2 if kl < target / 1.5 else penalty_coef


def each_token(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """The log-ratio that a clip applies to, (B, R): that of the token."""
    return log_ratio


def whole_completion(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """The log-ratio that a clip applies to, (B, R): the mean over the completion."""
    return reductions.completion_means(log_ratio, mask)[:, None].expand_as(log_ratio)


# How tokens become one number


def token_mean(losses: Tensor, mask: Tensor, config: PolicyGradientConfig, *, mean_length: float) -> Tensor:
    """Over the counted tokens of the mini-batch."""
    return masked_mean(losses, mask)


def batch_token_mean(losses: Tensor, mask: Tensor, config: PolicyGradientConfig, *, mean_length: float) -> Tensor:
    """Over the counted tokens of the whole batch, however it was split."""
    return reductions.constant_length(losses, mask, length=mean_length)


def completion_mean(losses: Tensor, mask: Tensor, config: PolicyGradientConfig, *, mean_length: float) -> Tensor:
    """Over tokens, then over completions: all weigh the same."""
    return reductions.sequence_mean(losses, mask)


def longest_length(losses: Tensor, mask: Tensor, config: PolicyGradientConfig, *, mean_length: float) -> Tensor:
    """Sums over completions, divided by the length limit: a token weighs the same wherever it stands."""
    return reductions.constant_length(losses, mask, length=config.max_completion_length)


def completion_sum(losses: Tensor, mask: Tensor, config: PolicyGradientConfig, *, mean_length: float) -> Tensor:
    """The mean of sums over completions: the gradient of the expected reward itself."""
    return reductions.constant_length(losses, mask, length=1)


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """A row: its parts, and its own values of the settings that `PolicyGradientConfig` leaves open."""

    paper: str
    baseline: Callable[..., Worth]
    surrogate: Callable[..., Tensor]
    aggregate: Callable[..., Tensor]
    clipped: Callable[..., Tensor] = each_token
    compares: str = ""  # the setting that says how many completions are compared with one another
    rival_mixture: float | None = None  # share of the reference in whom a completion competes with
    masked: bool = False  # samples from what a masking policy finds likely, and scores accordingly

    learning_rate: float = 8e-4
    kl_coef: float = 0.15
    kl_in: str = "reward"
    kl_estimator: str = "k1"
    num_generations: int = 1
    num_ppo_epochs: int = 1
    num_mini_batches: int = 2
    cliprange: float = 0.2
    cliprange_high: float | None = None  # None: as cliprange
    penalty_target: float = 0.0
    whiten_advantages: bool = False
    resampling_rounds: int = 0

    @property
    def has_critic(self) -> bool:
        """Whether a critic has to be built."""
        return self.baseline is critic

    @property
    def has_ratio(self) -> bool:
        """Whether more than one update can be made of the same samples."""
        return self.surrogate is not log_probability


_ONE_UPDATE = {"surrogate": log_probability, "num_mini_batches": 1}
_PPO = {"baseline": critic, "aggregate": token_mean, "whiten_advantages": True}
_GROUP = {"compares": "num_generations", "num_generations": 4}
_KL_IN_LOSS = {"kl_in": "loss", "kl_estimator": "k3"}
_IN_DEVIATIONS = {"baseline": group_in_deviations, "kl_coef": 0.4}  # a nat costs deviations of a group, which are small

# Settings are those that did well on the world at width 64 with 100 steps of 64 completions. Where a paper has no price
# on KL (Dr. GRPO, DAPO, GSPO, REINFORCE) the one here is ours: kl_coef=0 is the paper's.
ALGORITHMS = {
    "reinforce": Algorithm(paper="Williams 1992", baseline=nothing, aggregate=completion_sum, **_ONE_UPDATE),
    "reinforce_baseline": Algorithm(
        paper="Williams 1992, Kool et al. 2019",
        baseline=other_completions,
        aggregate=completion_sum,
        compares="batch_size",
        **_ONE_UPDATE,
    ),
    "a2c": Algorithm(paper="Mnih et al. 2016", baseline=critic, aggregate=token_mean, **_ONE_UPDATE),
    "ppo": Algorithm(paper="Schulman et al. 2017, eq. 7", surrogate=clipped_ratio, **_PPO),
    "ppo_penalty": Algorithm(
        paper="Schulman et al. 2017, eq. 8",
        surrogate=penalised_ratio,
        penalty_target=2e-4,  # about what a clipped update spends at these rates, which never reach the paper's .01
        **_PPO,
    ),
    "rloo": Algorithm(
        paper="Ahmadian et al. 2024", baseline=others_of_the_prompt, aggregate=completion_sum, **_GROUP, **_ONE_UPDATE
    ),
    "grpo": Algorithm(
        paper="Shao et al. 2024",
        surrogate=clipped_ratio,
        aggregate=completion_mean,
        **_GROUP,
        **_IN_DEVIATIONS,
        **_KL_IN_LOSS,
    ),
    "dr_grpo": Algorithm(
        paper="Liu et al. 2025",
        baseline=group,
        surrogate=clipped_ratio,
        aggregate=longest_length,
        **_GROUP,
        **_KL_IN_LOSS,
    ),
    "dapo": Algorithm(
        paper="Yu et al. 2025",
        surrogate=clipped_ratio,
        aggregate=batch_token_mean,
        cliprange_high=0.28,
        resampling_rounds=3,
        **_GROUP,
        **_IN_DEVIATIONS,
        **_KL_IN_LOSS,
    ),
    "gspo": Algorithm(
        paper="Zheng et al. 2025",
        surrogate=clipped_completion_ratio,
        aggregate=completion_mean,
        clipped=whole_completion,
        cliprange=0.01,  # at these rates the paper's 3e-4 and 4e-4 clip nine tokens in ten of a second mini-batch
        cliprange_high=0.0133,
        **_GROUP,
        **_IN_DEVIATIONS,
        **_KL_IN_LOSS,
    ),
    "cispo": Algorithm(
        paper="MiniMax 2025",
        surrogate=clipped_weight,
        aggregate=batch_token_mean,
        cliprange=1.0,  # free below, and high above: a ratio of at most 5 (Khatri et al. 2025)
        cliprange_high=4.0,
        resampling_rounds=3,
        **_GROUP,
        **_IN_DEVIATIONS,
        **_KL_IN_LOSS,
    ),
    "nash_md": Algorithm(
        paper="Munos et al. 2023",
        baseline=nothing,
        aggregate=completion_sum,
        rival_mixture=0.25,  # the paper's best were from 0.125 to 0.375
        kl_coef=0.05,  # in chances of winning
        **_ONE_UPDATE,
    ),
    "reinforce_pp": Algorithm(
        paper="Hu et al. 2025", baseline=batch_in_deviations, surrogate=clipped_ratio, aggregate=token_mean
    ),
    "nlpo": Algorithm(paper="Ramamurthy et al. 2023", surrogate=clipped_ratio, masked=True, **_PPO),
}


def find_algorithm(name: str) -> Algorithm:
    """The row of that name; WorkbenchError lists those that exist."""
    if name not in ALGORITHMS:
        raise WorkbenchError(f"There is no algorithm {name!r}: choose one of {', '.join(ALGORITHMS)}.")
    return ALGORITHMS[name]


def algorithm_table() -> list[dict[str, str]]:
    """Every row in words: what scores are and are compared with, the loss, how tokens are averaged, where KL goes."""
    parts = ("baseline", "surrogate", "aggregate")
    return [
        {
            "algorithm": name,
            **{part: getattr(row, part).__name__.replace("_", " ") for part in parts},
            "score": "reward" if row.rival_mixture is None else "chance of beating a rival",
            "KL price in": f"{row.kl_in} ({row.kl_estimator})",
            "completions per prompt": str(row.num_generations),
            "paper": row.paper,
        }
        for name, row in ALGORITHMS.items()
    ]
