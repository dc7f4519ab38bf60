"""Reward-model objectives, one value per comparison, completion or step, to minimise.

Rewards are the model's raw outputs, so differences are log-odds. Infinite rewards give an infinite or NaN loss or
gradient, which `descent.Descent` refuses; large finite ones do not overflow.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry_loss(chosen_rewards: Tensor, rejected_rewards: Tensor, *, margin: Tensor | float = 0.0) -> Tensor:
    """Negative log-probability that the chosen completion wins, (B,) nats.

    Ouyang et al. 2022, eq. 1 with K = 2. `chosen_rewards`, `rejected_rewards` (B,); `margin` (B,) or a number: how much
    better the chosen one should score (Llama 2, Touvron et al. 2023, eq. 2).
    """
    return -F.logsigmoid(chosen_rewards - rejected_rewards - margin)


def soft_preference_loss(
    chosen_rewards: Tensor, rejected_rewards: Tensor, preference: Tensor, *, error_rate: float = 0.0
) -> Tensor:
    """Cross-entropy of graded preferences, (B,) nats.

    `preference` (B,) is the probability that the chosen one is better: 1, 0, or .5 for a tie. A share `error_rate` of
    the labels is taken to be a coin toss, so that no label is surer than 1 - error_rate / 2. Christiano et al. 2017,
    section 2.2.3, with .1.
    """
    margins = chosen_rewards - rejected_rewards
    known = math.log1p(-error_rate) if error_rate < 1 else -math.inf
    tossed = torch.full_like(margins, math.log(error_rate / 2) if error_rate > 0 else -math.inf)
    first, second = (torch.logaddexp(known + F.logsigmoid(side), tossed) for side in (margins, -margins))
    return -(preference * first + (1 - preference) * second)


def pairwise_ranking_loss(rewards: Tensor, ranking: Tensor) -> Tensor:
    """Mean Bradley-Terry loss over all C(K, 2) pairs of each prompt, (B,) nats. Ouyang et al. 2022, eq. 1.

    `rewards` (B, K); `ranking` (B, K) indices, best first. All pairs of a prompt are one element of the batch; a
    ranking of one has no pair and costs 0.
    """
    ordered = rewards.gather(1, ranking)
    better, worse = torch.triu_indices(ordered.shape[1], ordered.shape[1], offset=1, device=ordered.device)
    return bradley_terry_loss(ordered[:, better], ordered[:, worse]).sum(1) / max(1, len(better))


def plackett_luce_loss(rewards: Tensor, ranking: Tensor) -> Tensor:
    """Negative log-probability of the whole ranking, (B,) nats: the best of all, then the best of the rest, and so on.

    `rewards` (B, K); `ranking` (B, K) indices, best first. Plackett 1975; Zhu et al. 2023, eq. 4.
    """
    ordered = rewards.gather(1, ranking)
    remaining = ordered.flip(1).logcumsumexp(1).flip(1)  # of each place and all below it
    return (remaining - ordered).sum(1)


def best_of_k_loss(rewards: Tensor, best: Tensor) -> Tensor:
    """Negative log-probability that the best completion is chosen of all K, (B,) nats. Ziegler et al. 2019, eq. 1.

    `rewards` (B, K); `best` (B,) indices.
    """
    return F.cross_entropy(rewards, best, reduction="none")


def reward_centering_penalty(chosen_rewards: Tensor, rejected_rewards: Tensor) -> Tensor:
    """Squared sum of both rewards, (B,), which pulls their mean to 0. Eisenstein et al. 2023, section 2.

    Comparisons teach only differences; this chooses one of the equally good offsets.
    """
    return (chosen_rewards + rejected_rewards).square()


def rating_loss(rewards: Tensor, ratings: Tensor) -> Tensor:
    """Squared error of predicted ratings, (B,), in squared units of `ratings` (B,)."""
    return (rewards - ratings).square()


def outcome_loss(rewards: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of whether each completion is right, of the shape of both, nats; `rewards` are its log-odds.

    `labels` are 1 or 0. Cobbe et al. 2021, section 4, whose verifiers predict at every token and not only the last.
    """
    return F.binary_cross_entropy_with_logits(rewards, labels, reduction="none")


def process_reward_loss(rewards: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of whether each step is right, (B, S) nats, 0 where `mask` (B, S) is False.

    `rewards` (B, S) are log-odds at the last token of each step, `labels` (B, S) 1 or 0. Lightman et al. 2023,
    section 2.6.
    """
    return torch.where(mask, outcome_loss(torch.where(mask, rewards, 0), labels), 0)
