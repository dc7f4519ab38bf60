"""Masked statistics and advantage estimators; masks are True where a position counts."""

import math

import torch
from torch import Tensor

from workbench import WorkbenchError


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


def reward_to_go(rewards: Tensor, mask: Tensor, *, gamma: float) -> Tensor:
    """Discounted sum of the rewards from each token on, (B, R), 0 where not counted. Williams 1992.

    `rewards` (B, R), `mask` (B, R) a run of True from the first position.
    """
    return gae(rewards, torch.zeros_like(rewards), mask, gamma=gamma, lam=1.0)[1]


def batch_normalised_returns(rewards: Tensor, mask: Tensor, *, gamma: float) -> Tensor:
    """Reward to go, whitened over every counted token of the batch, (B, R), 0 where not counted.

    `rewards` (B, R) hold the KL penalty of each token; no critic and no group. REINFORCE++, Hu et al. 2025, section 3.
    """
    return masked_whiten(reward_to_go(rewards, mask, gamma=gamma), mask)


def leave_one_out(scores: Tensor, group_size: int) -> Tensor:
    """Score minus the mean score of the other completions of the same prompt, (B,); sums to 0 in a group.

    `scores` (B,), those of a prompt side by side. WorkbenchError where they are not whole groups of at least two.
    Kool et al. 2019; Ahmadian et al. 2024, "RLOO".
    """
    return group_centered(scores, group_size) * (group_size / (group_size - 1))


def group_centered(scores: Tensor, group_size: int) -> Tensor:
    """Score minus the mean score of all completions of the same prompt, (B,). Dr. GRPO, Liu et al. 2025, section 3.2.

    Arguments and errors as in `leave_one_out`.
    """
    return _centered_groups(scores, group_size).flatten()


def group_relative(scores: Tensor, group_size: int) -> Tensor:
    """Score minus the group's mean, divided by its standard deviation, (B,). GRPO, Shao et al. 2024, section 4.1.2.

    Arguments and errors as in `leave_one_out`. The paper names neither the kind of deviation nor what keeps it off 0:
    as in TRL, it is the unbiased one (n - 1) plus 1e-4. A group of equal scores gives exactly 0.
    """
    groups = _centered_groups(scores, group_size)
    return (groups / (groups.std(1, keepdim=True) + 1e-4)).flatten()


def adaptive_kl_coef(kl_coef: float, kl: float, *, target: float, episodes: int, horizon: int) -> float:
    """The next KL coefficient: up where the measured KL is above the target, by at most 20% per horizon or update.

    `kl` and `target` nats per sequence, `episodes` sampled since the last update, `horizon` in episodes. Ziegler et
    al. 2019, section 2.2, whose gain K (`episodes` over `horizon`) is .1; it counts as 1 where it is more, or the
    price could fall below 0 and pay for leaving the reference. WorkbenchError where `kl` is NaN or infinite.
    """
    if not math.isfinite(kl):
        raise WorkbenchError(f"The measured KL is {kl}, to which no price can adapt: lower learning_rate.")
    error = min(0.2, max(-0.2, kl / target - 1))
    return kl_coef * (1 + error * min(1, episodes / horizon))


def _centered_groups(scores: Tensor, group_size: int) -> Tensor:
    """Scores minus their group's mean, (prompts, group_size)."""
    if group_size < 2:
        raise WorkbenchError(f"group_size is {group_size}: give at least 2, completions are compared within a group.")
    if len(scores) % group_size:
        raise WorkbenchError(f"There are {len(scores)} scores but group_size is {group_size}: give a multiple of it.")
    groups = scores.view(-1, group_size)
    groups = groups - groups[:, :1]  # equal scores become 0 before a mean can round them
    return groups - groups.mean(1, keepdim=True)
