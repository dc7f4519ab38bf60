"""From a loss per token to a loss per batch; the choice decides how much a long completion weighs.

The mean over all counted tokens (DAPO, Yu et al. 2025, eq. 8) is `advantages.masked_mean`: there a completion weighs as
much as it is long. Masks are True where a position counts; `values` and `mask` (B, R).
"""

import torch
from torch import Tensor


def completion_means(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over each completion's counted tokens, (B,); 0 where none counts."""
    return torch.where(mask, values, 0).sum(1) / mask.sum(1).clamp(min=1)


def sequence_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the completions' means, a scalar: all weigh the same. GRPO, Shao et al. 2024, eq. 3."""
    return completion_means(values, mask).mean()


def constant_length(values: Tensor, mask: Tensor, *, length: float) -> Tensor:
    """Sum over counted tokens, divided by B and by one length for all completions, a scalar.

    `length` in tokens: the longest a completion may be (Dr. GRPO, Liu et al. 2025, section 3.2), the mean over the
    generation batch of which these rows are one mini-batch (DAPO's token mean, not moved by how the batch was split),
    or 1 (the gradient of an expected reward: REINFORCE, RLOO).
    """
    return torch.where(mask, values, 0).sum() / (len(values) * length)


def per_token(logprobs: Tensor, lengths: Tensor) -> Tensor:
    """Mean over the completion's tokens, nats per token."""
    return logprobs / lengths.clamp(min=1)


# --- What every comparison of two policies is made of.


def log_ratio(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """How much likelier the first is than the second, nats, of the shape of both; 0 where both are infinite alike.

    So a token or completion that neither side can say is no evidence, and no NaN reaches a gradient.
    """
    undecided = (logprobs == other_logprobs) & logprobs.isinf()
    return torch.where(undecided, 0.0, logprobs - other_logprobs)
