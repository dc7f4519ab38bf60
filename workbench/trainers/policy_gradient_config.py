"""The settings of policy-gradient training, and what makes them, the models and the prompts fit together."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from workbench import WorkbenchError
from workbench.trainers.algorithms import ALGORITHMS, SAMPLED_KL, Algorithm, find_algorithm
from workbench.trainers.settings import Settings, require_in, require_positive

CHOICES = {"kl_in": ("reward", "loss"), "kl_estimator": (*SAMPLED_KL, "exact")}
POSITIVE = ("steps", "batch_size", "num_generations", "learning_rate", "critic_learning_rate", "temperature")
POSITIVE += ("max_completion_length", "num_ppo_epochs", "num_mini_batches", "cliprange", "cliprange_high", "kl_horizon")
POSITIVE += ("cliprange_value", "penalty_coef", "max_grad_norm", "evaluate_every", "mask_top_p", "mask_refresh_every")
NOT_NEGATIVE = ("kl_coef", "kl_target", "missing_eos_penalty", "kl_stop", "penalty_target", "entropy_coef")
NOT_NEGATIVE += ("ptx_coef", "resampling_rounds")


@dataclass(frozen=True, kw_only=True)
class PolicyGradientConfig(Settings):
    """How a policy learns from its own samples; None takes the algorithm's own value."""

    algorithm: str = "ppo"  # a row of ALGORITHMS
    steps: int = 100  # rounds of sampling and learning
    batch_size: int = 64  # completions per step
    num_generations: int | None = None  # completions per prompt
    rival_mixture: float | None = None  # compete with policy^(1-b) reference^b, this b; else the reward itself counts
    learning_rate: float | None = None  # of the policy at first, at width 64, falling to 0; 1e-6 for large models
    critic_learning_rate: float = 1e-3  # of the critic
    kl_coef: float | None = None  # price of one nat of KL from the reference, in standard deviations of the reward
    kl_in: str | None = None  # "reward": part of what a token earns; "loss": a term with a gradient of its own
    kl_estimator: str | None = None  # k1 (no push on average in a loss), k2, k3, k3_weighted, exact (slower)
    kl_target: float = 0.0  # nats per completion that an adaptive coefficient aims at; 0 keeps it fixed
    kl_horizon: int = 10_000  # completions over which the adaptive coefficient may move by 20%
    kl_stop: float = 0.0  # nats per token from the policy that sampled, above which a step's updates end; 0 never
    temperature: float = 1.0  # of sampling, and of every log-probability
    max_completion_length: int = 40  # tokens
    num_ppo_epochs: int | None = None  # passes over each batch of samples
    num_mini_batches: int | None = None  # updates per pass
    cliprange: float | None = None  # of the probability ratio
    cliprange_high: float | None = None  # of the ratio above 1, where it is another
    cliprange_value: float = 0.2  # of the value, in reward units
    penalty_coef: float = 1.0  # first price of a nat from the policy that sampled; for ppo_penalty
    penalty_target: float | None = None  # nats per token that this price adapts to; 0 keeps it fixed
    gamma: float = 1.0  # discount per token, where tokens have returns of their own
    lam: float = 0.95  # trade of bias and variance in a critic's advantages; 1 is Monte Carlo
    missing_eos_penalty: float = 1.0  # taken off the score of a completion that hit the length limit
    soft_punish_cache: int = 0  # tokens before the limit over which the score falls by up to 1; 0 takes nothing off
    whiten_rewards: bool = False  # scale token rewards to variance 1 within a batch
    whiten_advantages: bool | None = None  # shift and scale them to mean 0 and variance 1 within a batch
    entropy_coef: float = 0.0  # bonus per nat of entropy
    ptx_coef: float = 0.0  # weight of the language-model loss on other texts, in nats per token
    resampling_rounds: int | None = None  # of other prompts, in place of groups whose completions all earned the same
    mask_top_p: float = 0.9  # probability that the masking policy leaves to sample from; for nlpo
    mask_refresh_every: int = 20  # steps after which the masking policy becomes the current one; for nlpo
    evaluate_every: int = 10  # steps between measurements on held-out prompts
    seed: int = 0  # order of prompts, samples, mini-batches

    def __post_init__(self):
        super().__post_init__()
        row = find_algorithm(self.algorithm)
        own = {field.name: getattr(row, field.name) for field in fields(self) if getattr(self, field.name) is None}
        for name, value in own.items():
            object.__setattr__(self, name, self.cliprange if name == "cliprange_high" and value is None else value)
        require_positive(self, *POSITIVE)
        require_in(0, 1, self, "gamma", "lam", "mask_top_p", *["rival_mixture"] * (self.rival_mixture is not None))
        require_in(0, 1e6, self, *NOT_NEGATIVE)
        require_in(0, self.max_completion_length, self, "soft_punish_cache")
        _require_choices(self)
        _require_fitting(self, row)

    @property
    def has_critic(self) -> bool:
        """Whether the algorithm has to be given a critic."""
        return find_algorithm(self.algorithm).has_critic

    @property
    def prompts_per_step(self) -> int:
        """Groups in one batch of samples."""
        return self.batch_size // self.num_generations

    @property
    def updates_per_step(self) -> int:
        """Optimiser steps per batch of samples, where nothing stops them."""
        return self.num_ppo_epochs * self.num_mini_batches


def _require_choices(config: PolicyGradientConfig) -> None:
    for name, choices in CHOICES.items():
        if getattr(config, name) not in choices:
            raise WorkbenchError(f"{name} is {getattr(config, name)!r}: choose one of {', '.join(choices)}.")
    if config.kl_target > 0 and config.kl_coef == 0:
        raise WorkbenchError("kl_target needs a starting kl_coef above 0: the controller multiplies it.")
    if config.kl_target > 0 and config.kl_horizon < config.batch_size:
        raise WorkbenchError(
            f"kl_horizon is {config.kl_horizon}, less than the {config.batch_size} completions of one step "
            "(batch_size), after each of which the price of KL moves: give at least that, such as 10000."
        )


def _require_fitting(config: PolicyGradientConfig, row: Algorithm) -> None:
    size, groups = config.num_generations, config.prompts_per_step
    if row.compares and getattr(config, row.compares) < 2:
        raise WorkbenchError(
            f"{row.compares} is {getattr(config, row.compares)} but {config.algorithm} compares completions with one "
            "another: give at least 2."
        )
    if config.batch_size % size:
        raise WorkbenchError(
            f"batch_size is {config.batch_size} but num_generations is {size}: give a multiple of num_generations."
        )
    if config.num_mini_batches > groups:
        raise WorkbenchError(
            f"num_mini_batches is {config.num_mini_batches} but batch_size is {config.batch_size}, with "
            f"num_generations {size}: give at most {groups}, one per prompt."
        )
    if config.updates_per_step > 1 and not row.has_ratio:
        raise WorkbenchError(
            f"num_ppo_epochs times num_mini_batches is {config.updates_per_step} but {config.algorithm} has no ratio "
            "that would allow for a policy that has moved since it sampled: set both to 1."
        )


def require_models(policy, reference, critic, config: PolicyGradientConfig) -> None:
    """Raises WorkbenchError where the reference would move with the policy, or a critic is missing or idle."""
    if {id(weight) for weight in policy.parameters()} & {id(weight) for weight in reference.parameters()}:
        raise WorkbenchError("policy and reference share weights, so the reference would move too: load it once more.")
    if config.has_critic != (critic is not None):
        without = ", ".join(name for name, each in ALGORITHMS.items() if not each.has_critic)
        choose = f"build one, or set algorithm to one of {without}"
        given, todo = ("one was given", "pass None") if critic is not None else ("none was given", choose)
        has = "needs a critic" if config.has_critic else "has no critic"
        raise WorkbenchError(f"algorithm {config.algorithm} {has} but {given}: {todo}.")


def require_texts(prompts: list, pretraining: Sequence, config: PolicyGradientConfig) -> None:
    """Raises WorkbenchError where there are fewer prompts than a step needs, or nothing for `ptx_coef`."""
    if len(prompts) < config.prompts_per_step:
        raise WorkbenchError(
            f"There are {len(prompts)} prompts but batch_size is {config.batch_size}, with num_generations "
            f"{config.num_generations}: give at least {config.prompts_per_step} prompts."
        )
    if config.ptx_coef > 0 and not pretraining:
        raise WorkbenchError(f"ptx_coef is {config.ptx_coef} but there are no pretraining texts: give some.")
