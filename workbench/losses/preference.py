"""Reward-model objectives, one value per comparison, to minimise."""

import torch.nn.functional as F
from torch import Tensor


def bradley_terry_loss(chosen_rewards: Tensor, rejected_rewards: Tensor, *, margin: Tensor | float = 0.0) -> Tensor:
    """Negative log-probability that the chosen completion wins, (B,) nats.

    `chosen_rewards`, `rejected_rewards` (B,); `margin` (B,) or a number: how much better the chosen one should score
    (Llama 2, Touvron et al. 2023, eq. 2). Ouyang et al. 2022, eq. 1 with K = 2.
    """
    return -F.logsigmoid(chosen_rewards - rejected_rewards - margin)
