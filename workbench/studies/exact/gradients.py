"""Gradients over every completion: the mean and the spread of what a single sample would have said.

The policy is a table of logits (P, N, A): a next-token distribution after each prefix of a `Tree`, for each prompt, in
fp64. A sample is one prompt, all alike likely, and one completion of it. The losses are those that trainers minimise.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench.losses.advantages import gae, token_rewards
from workbench.losses.policy import clipped_surrogate_loss, kl_k1, kl_k2, kl_k3, kl_k3_weighted, policy_gradient_loss
from workbench.studies.exact.optimum import Tree, mean_kl, step_probabilities

ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


class ExactSamples:
    """Every completion with its tokens' log-probabilities, and how likely a sample is to be that one.

    `policy`, that samples, and `reference` (P, C) are probabilities above 0; `rewards` (P, C).
    """

    def __init__(self, policy: np.ndarray, reference: np.ndarray, rewards: np.ndarray, tree: Tree):
        self.policy, self.tree = policy, tree
        self.states, self.actions = torch.from_numpy(tree.states), torch.from_numpy(tree.actions)
        self.mask = torch.from_numpy(tree.mask).repeat(len(policy), 1)  # (P*C, R)
        self.logits = torch.from_numpy(step_probabilities(policy, tree)).log()  # (P, N, A)
        self.old_logprobs = self.logprobs(self.logits)  # (P*C, R)
        self.reference_logprobs = self.logprobs(torch.from_numpy(step_probabilities(reference, tree)).log())
        self.scores = torch.from_numpy(rewards).flatten()  # (P*C,)
        self.weights = torch.from_numpy(policy).flatten() / len(policy)  # (P*C,) sum 1

    def logprobs(self, logits: Tensor) -> Tensor:
        """Log-probability of every token under a table of logits, (P*C, R) nats, 0 where not counted."""
        chosen = logits.log_softmax(-1)[:, self.states, self.actions].flatten(0, 1)
        return torch.where(self.mask, chosen, 0)

    def at_prefixes(self, values: Tensor) -> Tensor:
        """Numbers (P, N) of the prefixes, each before the token that follows it, (P*C, R)."""
        return torch.where(self.mask, values[:, self.states].flatten(0, 1), 0)

    def moments(self, values: Tensor) -> tuple[Tensor, float]:
        """Mean of one row per completion, (P*C, ...), and the root of the summed variances, over samples."""
        weights = self.weights.view(-1, *[1] * (values.dim() - 1))
        mean = (weights * values).sum(0)
        return mean, (weights * (values - mean).square()).sum().sqrt().item()

    def gradients(self, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """Gradient of each completion's summed loss with respect to the logits, (P*C, P*N*A).

        `loss` takes log-probabilities (P*C, R) and gives a loss per token of that shape.
        """
        summed = torch.func.jacrev(lambda logits: torch.where(self.mask, loss(self.logprobs(logits)), 0).sum(1))
        return summed(self.logits).flatten(1)

    def objective(self, logits: Tensor, *, beta: float, unit: float = 1.0) -> Tensor:
        """`unit` times the expected reward minus `beta` times the KL from the reference, a scalar."""
        logprobs = self.logprobs(logits).sum(1)
        worth = unit * self.scores - beta * (logprobs - self.reference_logprobs.sum(1))
        return (logprobs.exp() * worth).sum() / len(logits)

    def numerical_gradient(self, *, beta: float, unit: float = 1.0, step: float = 1e-5) -> Tensor:
        """Gradient of the objective by central differences, (P*N*A,): nothing is derived."""
        size = self.logits.numel()
        moves = step * torch.eye(size, dtype=self.logits.dtype).view(size, *self.logits.shape)
        values = torch.vmap(lambda logits: self.objective(logits, beta=beta, unit=unit))
        return (values(self.logits + moves) - values(self.logits - moves)) / (2 * step)

    def token_rewards(self, *, kl_coef: float, unit: float = 1.0) -> Tensor:
        """What each token earns, (P*C, R): the price of its log-ratio, and the score at the end."""
        kl = kl_k1(self.old_logprobs, self.reference_logprobs)
        return token_rewards(kl, unit * self.scores, self.mask, kl_coef=kl_coef)

    def advantages(self, rewards: Tensor, baseline: Tensor) -> Tensor:
        """Rewards to come minus a baseline, both (P*C, R): generalised advantage estimation at lambda 1."""
        return gae(rewards, baseline, self.mask, gamma=1.0, lam=1.0)[0]

    def prefix_values(self, rewards: Tensor) -> Tensor:
        """The expected reward to come before each token, (P*C, R): what a perfect critic says."""
        to_come = self.advantages(rewards, torch.zeros_like(rewards)) * self.weights[:, None]
        prompts, count = self.logits.shape[:2]
        places = self.states + count * torch.arange(prompts)[:, None, None]  # (P, C, R)
        sums = torch.zeros(2, prompts * count, dtype=rewards.dtype)
        shares = torch.where(self.mask, self.weights[:, None], 0)
        sums.index_add_(1, places.flatten(), torch.stack([to_come.flatten(), shares.flatten()]))
        return self.at_prefixes((sums[0] / sums[1]).view(prompts, count))


def kl_estimates(samples: ExactSamples) -> pd.DataFrame:
    """What one completion says about KL(policy || reference): kl, estimator, mean, bias and sd, nats per completion."""
    kl = -samples.objective(samples.logits, beta=1.0, unit=0.0).item()
    rows = []
    for name, estimator in ESTIMATORS.items():
        said = estimator(samples.old_logprobs, samples.reference_logprobs)
        mean, deviation = samples.moments(torch.where(samples.mask, said, 0).sum(1))
        rows.append({"kl": kl, "estimator": name, "mean": mean.item(), "bias": mean.item() - kl, "sd": deviation})
    return pd.DataFrame(rows)


def kl_gradients(samples: ExactSamples) -> pd.DataFrame:
    """What the gradient of one completion's KL estimate says about that of the KL itself.

    Each estimator as a loss on the policy's own samples, and k1 as a price in the rewards. Columns kl (nats),
    estimator, cosine of the mean gradient with the true one (NaN where the mean is 0), and error and sd, sizes of
    the bias and of the deviation of one sample, as shares of the true gradient's size.
    """
    true = -samples.numerical_gradient(beta=1.0, unit=0.0)
    reference = samples.reference_logprobs
    losses = {
        f"{name} as a loss": lambda logprobs, estimator=estimator: estimator(logprobs, reference)
        for name, estimator in ESTIMATORS.items()
    }
    losses["weighted k3 as a loss"] = lambda logprobs: kl_k3_weighted(logprobs, samples.old_logprobs, reference)
    price = samples.token_rewards(kl_coef=1.0, unit=0.0)
    advantages = samples.advantages(price, samples.prefix_values(price))
    losses["k1 in the reward"] = _reinforce(advantages)
    kl = -samples.objective(samples.logits, beta=1.0, unit=0.0).item()
    rows = []
    for name, loss in losses.items():
        mean, deviation = samples.moments(samples.gradients(loss))
        shares = {"error": (mean - true).norm() / true.norm(), "sd": deviation / true.norm()}
        cosine = mean @ true / (mean.norm() * true.norm()) if mean.norm() > 1e-9 * true.norm() else np.nan
        rows.append({"kl": kl, "estimator": name, "cosine": float(cosine)} | {k: float(v) for k, v in shares.items()})
    return pd.DataFrame(rows)


def policy_gradient_theorem(samples: ExactSamples, *, beta: float, seed: int) -> pd.DataFrame:
    """What the score times the reward to come says on average, against the gradient of the objective by differences.

    Columns objective, baseline, unbiased (whether the theorem promises it), gradient, the largest entry of the true
    one, difference, the largest from it over all logits, and sd of one sample. Williams 1992; Sutton et al. 1999.
    """
    rows = []
    for objective, kl_coef in {"reward": 0.0, f"reward − {beta:g} KL": beta}.items():
        rewards = samples.token_rewards(kl_coef=kl_coef)
        true = samples.numerical_gradient(beta=kl_coef)
        for name, baseline in _baselines(samples, rewards, seed=seed).items():
            mean, deviation = samples.moments(-samples.gradients(_reinforce(samples.advantages(rewards, baseline))))
            row = {"objective": objective, "baseline": name, "unbiased": "token" not in name}
            sizes = {"gradient": true.abs().max().item(), "difference": (mean - true).abs().max().item()}
            rows.append(row | sizes | {"sd": deviation})
    return pd.DataFrame(rows)


def _baselines(samples: ExactSamples, rewards: Tensor, *, seed: int) -> dict[str, Tensor]:
    """Four that know only the prefix, and one that may not be: it sees the token it judges; all (P*C, R)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples.logits.shape, generator=generator, dtype=samples.logits.dtype)
    critic, peeking = samples.prefix_values(rewards), noise[:, samples.states, samples.actions].flatten(0, 1)
    return {
        "none": torch.zeros_like(rewards),
        "mean of the prompt": critic[:, :1].expand_as(critic),
        "random number per prefix": samples.at_prefixes(noise[..., 0]),
        "perfect critic": critic,
        "random number per token": torch.where(samples.mask, peeking, 0),
    }


def _reinforce(advantages: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda logprobs: policy_gradient_loss(logprobs, advantages)


def improvement_estimates(samples: ExactSamples, new: np.ndarray, *, cliprange: float) -> pd.DataFrame:
    """What one old completion says about the expected reward that a `new` policy (P, C) adds.

    Weighed by the ratio of the whole completion, by the same one clipped, and by PPO's clipped ratios of tokens, whose
    advantages come from a perfect critic. Columns kl (nats from old to new), estimator, improvement (the true one),
    mean, bias and sd, and kept, the share of samples that is left of their number: 1 / E[ratio^2].
    """
    rewards, old = samples.token_rewards(kl_coef=0.0), samples.old_logprobs
    logprobs = samples.logprobs(torch.from_numpy(step_probabilities(new, samples.tree)).log())
    critic = samples.prefix_values(rewards)
    gain, ratio = samples.scores - critic[:, 0], (logprobs - old).sum(1).exp()
    tokens = clipped_surrogate_loss(logprobs, old, samples.advantages(rewards, critic), cliprange=cliprange)
    estimates = {
        "ratio of the completion": ratio * gain,
        "the same, clipped": -clipped_surrogate_loss(logprobs.sum(1), old.sum(1), gain, cliprange=cliprange),
        "ratios of tokens, clipped": -tokens.sum(1),
    }
    truth, squares = (samples.moments(values)[0].item() for values in (ratio * gain, ratio.square()))
    shared = {"kl": mean_kl(new, samples.policy), "improvement": truth, "kept": 1 / squares}
    rows = []
    for name, values in estimates.items():
        mean, deviation = samples.moments(values)
        rows.append({"estimator": name, **shared, "mean": mean.item(), "bias": mean.item() - truth, "sd": deviation})
    return pd.DataFrame(rows)
