"""Policy-gradient objectives and KL estimates, one value per token, to minimise."""

import torch
from torch import Tensor


def clipped_surrogate_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    cliprange: float = 0.2,
    cliprange_high: float | None = None,
) -> Tensor:
    """Clipped surrogate per token, (B, R). Schulman et al. 2017, eq. 7.

    `logprobs` under the policy being trained, `old_logprobs` under the one that sampled, both (B, R) nats at the
    sampling temperature; `advantages` (B, R). The ratio is clipped to [1 - cliprange, 1 + cliprange_high];
    `cliprange_high` None means the same as `cliprange` (a wider one is DAPO's clip-higher, Yu et al. 2025).
    """
    ratio = (logprobs - old_logprobs).exp()
    high = cliprange if cliprange_high is None else cliprange_high
    clipped = ratio.clamp(1 - cliprange, 1 + high)
    return torch.maximum(-advantages * ratio, -advantages * clipped)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, cliprange_value: float = 0.2) -> Tensor:
    """Half the squared error of the critic, the worse of free and clipped, (B, R).

    All arguments (B, R) in reward units; `values` may move `cliprange_value` away from `old_values` before the
    gradient stops. Schulman et al. 2017 leave it out; it is in their code and in Ziegler et al. 2019's.
    """
    clipped = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())


def kl_k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) per token sampled from the policy, (B, R) nats.

    Unbiased, high variance, negative for single tokens: its mean over on-policy samples is not. Schulman 2020, "k1".
    """
    return logprobs - reference_logprobs


def exact_kl(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """KL(policy || reference) of the next-token distribution over the whole vocabulary, (B, R) nats, in fp32.

    `logits`, `reference_logits` (B, R, V), already divided by the sampling temperature.
    """
    logprobs = logits.float().log_softmax(-1)
    reference_logprobs = reference_logits.float().log_softmax(-1)
    return (logprobs.exp() * (logprobs - reference_logprobs)).sum(-1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the next-token distribution, (B, R) nats, in fp32; `logits` (B, R, V) at the sampling temperature."""
    logprobs = logits.float().log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)
