"""Direct alignment objectives, one value per pair, to minimise."""

import torch.nn.functional as F
from torch import Tensor


def dpo_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    reference_chosen_logprobs: Tensor,
    reference_rejected_logprobs: Tensor,
    *,
    beta: float,
) -> Tensor:
    """Direct preference optimisation per pair, (B,) nats; log 2 where the policy equals the reference.

    Log-probabilities (B,) in nats are sums over the completion's tokens, EOS included. `beta` is the strength of the
    implied KL penalty, per nat. Rafailov et al. 2023, eq. 7.
    """
    chosen_ratio = chosen_logprobs - reference_chosen_logprobs
    rejected_ratio = rejected_logprobs - reference_rejected_logprobs
    return -F.logsigmoid(beta * (chosen_ratio - rejected_ratio))
