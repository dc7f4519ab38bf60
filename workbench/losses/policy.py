"""Policy-gradient objectives and KL estimates, one value per token, to minimise.

Log-probabilities of -inf and ratios that overflow give the limit of the formula, infinite where the limit is: an
infinite loss stops training with a sentence, and a finite loss has a finite gradient.
"""

import math

import torch
from torch import Tensor

from workbench.losses.reductions import completion_means, log_ratio


def policy_gradient_loss(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """Minus advantage times log-probability per token, (B, R); its gradient is REINFORCE's. Williams 1992.

    `logprobs` under the policy that sampled, (B, R) nats at the sampling temperature; `advantages` (B, R). A token
    without advantage costs 0, whatever its log-probability.
    """
    return torch.where(advantages == 0, 0, -advantages * logprobs)


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
    `cliprange_high` None means the same as `cliprange` (a wider one is DAPO's clip-higher, Yu et al. 2025). Sums over
    completions, all of shape (B,), clip the ratio of whole completions.
    """
    moved = log_ratio(logprobs, old_logprobs)
    high = cliprange if cliprange_high is None else cliprange_high
    # The sign of the advantage says which end binds; clipped before exp, a ratio out of range cannot overflow.
    least = math.log1p(-cliprange) if cliprange < 1 else -math.inf
    kept = torch.where(advantages < 0, moved.clamp(min=least), moved.clamp(max=math.log1p(high)))
    return -advantages * kept.exp()


def sequence_ratio_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    cliprange: float = 3e-4,
    cliprange_high: float | None = 4e-4,
) -> Tensor:
    """Clipped surrogate with one ratio per completion, repeated on its tokens, (B, R). Zheng et al. 2025, eq. 5.

    Arguments as in `clipped_surrogate_loss`, `mask` (B, R). The ratio is the geometric mean of the token ratios (eq.
    7), so the cliprange is far smaller than for tokens. Mean it per completion: that is the paper's objective.
    """
    moved = completion_means(log_ratio(logprobs, old_logprobs), mask)[:, None].expand_as(logprobs)
    unmoved = torch.zeros_like(moved)
    return clipped_surrogate_loss(moved, unmoved, advantages, cliprange=cliprange, cliprange_high=cliprange_high)


def clipped_weight_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, cliprange: float, cliprange_high: float
) -> Tensor:
    """REINFORCE weighed by the clipped ratio, which has no gradient of its own, (B, R). MiniMax 2025 (M1), eq. 4.

    Arguments as in `clipped_surrogate_loss`; a `cliprange` of 1 leaves the ratio free below, as in the paper. A token
    out of range keeps a gradient, where a clipped surrogate drops it.
    """
    least = math.log1p(-cliprange) if cliprange < 1 else -math.inf
    weight = log_ratio(logprobs, old_logprobs).detach().clamp(least, math.log1p(cliprange_high)).exp()
    return torch.where(weight == 0, 0, weight * policy_gradient_loss(logprobs, advantages))  # 0 times infinity: 0


def kl_penalised_surrogate_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, beta: float) -> Tensor:
    """Surrogate without a clip, minus `beta` times KL(old || new), per token, (B, R). Schulman et al. 2017, eq. 8.

    Arguments as in `clipped_surrogate_loss`; `beta` above 0, reward per nat. The KL is estimated by k3 on the sampled
    tokens, so that no distribution of the old policy is kept; the paper's doubling and halving of `beta` is not here.
    """
    ratio = log_ratio(logprobs, old_logprobs).exp()
    return beta * kl_k3(old_logprobs, logprobs) - advantages * ratio


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, cliprange_value: float = 0.2) -> Tensor:
    """Half the squared error of the critic, the worse of free and clipped, (B, R).

    All arguments (B, R) in reward units; `values` may move `cliprange_value` away from `old_values` before the
    gradient stops. Schulman et al. 2017 leave it out; it is in their code and in Ziegler et al. 2019's.
    """
    clipped = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())


def kl_k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) per token sampled from the policy, (B, R) nats.

    Unbiased, high variance, negative for single tokens: its mean over on-policy samples is not. A penalty for rewards
    only: as a loss its gradient is 0 on average. Schulman 2020, "k1".
    """
    return log_ratio(logprobs, reference_logprobs)


def kl_k2(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Half the squared log-ratio, (B, R) nats, for tokens sampled from the policy.

    Biased by the third order of the difference, low variance, never negative; the gradient of its mean is that of the
    token's own KL, without bias, and forgets what the token does to those after it. Schulman 2020, "k2".
    """
    return 0.5 * log_ratio(logprobs, reference_logprobs).square()


def kl_k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """k1 plus a control variate of mean 0, (B, R) nats, for tokens sampled from the policy.

    Unbiased, low variance near the reference, never negative; heavy-tailed where the reference likes what the policy
    avoids, and the gradient of its mean is that of KL(reference || policy). Schulman 2020, "k3"; GRPO's penalty.
    """
    away = log_ratio(reference_logprobs, logprobs)
    return away.expm1() - away.clamp(max=torch.finfo(away.dtype).max)  # inf - inf would be NaN


def kl_k3_weighted(logprobs: Tensor, old_logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """k3 weighed by the ratio to the policy that sampled, (B, R) nats, for tokens sampled from `old_logprobs`.

    Unbiased for the token's own KL(policy || reference) in value and, unlike k3, in gradient, after updates too.
    DeepSeek-AI 2025 (V3.2), section 3.1; TRL's `use_bias_correction_kl`. ratio * k3 with the exponentials joined, so
    that a token which the policy has given up costs its limit and not 0 times infinity.
    """
    away = log_ratio(reference_logprobs, logprobs)
    ratio = log_ratio(logprobs, old_logprobs).exp()
    finite = away.clamp(max=torch.finfo(away.dtype).max)
    return log_ratio(reference_logprobs, old_logprobs).exp() - ratio * (1 + finite)


def exact_kl(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """KL(policy || reference) of the next-token distribution over the whole vocabulary, (B, R) nats, in fp32.

    `logits`, `reference_logits` (B, R, V), already divided by the sampling temperature; infinite where the reference
    excludes (-inf) a token that the policy does not.
    """
    logprobs = logits.float().log_softmax(-1)
    differences = logprobs - reference_logits.float().log_softmax(-1)
    return (logprobs.exp() * differences.masked_fill(logprobs.isneginf(), 0)).sum(-1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the next-token distribution, (B, R) nats, in fp32; `logits` (B, R, V) at the sampling temperature."""
    logprobs = logits.float().log_softmax(-1)
    return -(logprobs.exp() * logprobs.masked_fill(logprobs.isneginf(), 0)).sum(-1)
