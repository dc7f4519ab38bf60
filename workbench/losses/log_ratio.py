"""What every comparison of two policies is made of."""

import torch
from torch import Tensor


def log_ratio(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """How much likelier the first is than the second, nats, of the shape of both; 0 where both are infinite alike.

    So a token or completion that neither side can say is no evidence, and no NaN reaches a gradient.
    """
    undecided = (logprobs == other_logprobs) & logprobs.isinf()
    return torch.where(undecided, 0.0, logprobs - other_logprobs)
