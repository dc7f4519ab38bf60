"""Masked statistics and advantage estimators; masks are True where a position counts."""

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over all counted positions, a scalar; 0 where nothing counts. `values` and `mask` of one shape."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)


def masked_variance(values: Tensor, mask: Tensor) -> Tensor:
    """Unbiased (n - 1) variance over all counted positions, a scalar; 0 where fewer than two count."""
    squares = torch.where(mask, (values - masked_mean(values, mask)).square(), 0)
    return squares.sum() / (mask.sum() - 1).clamp(min=1)


def masked_whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Shifted to mean 0 and scaled to variance 1 (n - 1) over counted positions, 0 elsewhere; for advantages."""
    scaled = (values - masked_mean(values, mask)) * torch.rsqrt(masked_variance(values, mask) + 1e-8)
    return torch.where(mask, scaled, 0)


def masked_rescale(values: Tensor, mask: Tensor) -> Tensor:
    """Scaled to variance 1 (n - 1) around the mean, which is kept, over counted positions; for rewards.

    Ziegler et al. 2019 whiten rewards this way: shifting them would move the penalty for length.
    """
    return torch.where(mask, masked_whiten(values, mask) + masked_mean(values, mask), 0)


def token_rewards(kl: Tensor, scores: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    """Reward per token, (B, R): minus the KL penalty on every counted token, plus the score on the last one.

    `kl` (B, R) nats, `scores` (B,), `mask` (B, R) with at least one counted position per row. Ziegler et al. 2019,
    eq. 2; Ouyang et al. 2022, eq. 2.
    """
    rewards = torch.where(mask, -kl_coef * kl, 0)
    last = mask.sum(1) - 1
    return rewards.scatter_add(1, last[:, None], scores[:, None].to(rewards.dtype))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and the returns they imply, both (B, R), 0 where not counted.

    `rewards`, `values` (B, R), `mask` (B, R) a run of True from the first position. The value after the last counted
    token is 0: the end of a text is terminal, whether EOS or the length limit made it. Schulman et al. 2016, eq. 16.
    """
    rewards, values = torch.where(mask, rewards, 0), torch.where(mask, values, 0)
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for position in reversed(range(rewards.shape[1])):
        is_last = position + 1 == rewards.shape[1]
        next_value = torch.zeros_like(following) if is_last else values[:, position + 1]
        td_error = rewards[:, position] + gamma * next_value - values[:, position]
        following = torch.where(mask[:, position], td_error + gamma * lam * following, 0)
        advantages[:, position] = following
    return advantages, torch.where(mask, advantages + values, 0)


def adaptive_kl_coef(kl_coef: float, kl: float, *, target: float, episodes: int, horizon: int) -> float:
    """The next KL coefficient: up where the measured KL is above the target, by at most 20% per horizon.

    `kl` and `target` nats per sequence, `episodes` sampled since the last update, `horizon` in episodes. Ziegler et
    al. 2019, section 2.2.
    """
    error = min(0.2, max(-0.2, kl / target - 1))
    return kl_coef * (1 + error * episodes / horizon)
