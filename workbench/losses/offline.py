"""Offline reinforcement learning on text that others wrote: implicit language Q-learning, one value per token.

Snell et al. 2023 (ILQL), after Kostrikov et al. 2021 (implicit Q-learning). All values are in reward units.
"""

import torch.nn.functional as F
from torch import Tensor


def td_loss(q_values: Tensor, rewards: Tensor, next_values: Tensor, *, gamma: float) -> Tensor:
    """Squared temporal-difference error per token, (B, R). Snell et al. 2023, eq. 2, first term.

    `q_values` Q(h, a) of the token that was written, `rewards` for writing it, `next_values` V of what is then read, 0
    after the last token; all (B, R). The gradient stops at the target.
    """
    return (rewards + gamma * next_values.detach() - q_values).square()


def expectile_loss(targets: Tensor, values: Tensor, *, expectile: float) -> Tensor:
    """Squared error per token, (B, R), in which targets above the value weigh `expectile` and those below the rest.

    Its minimum over many targets is their expectile: the mean at .5, towards the maximum at 1, so that V becomes what
    the better continuations in the data lead to. `targets` are the target network's Q of the token that was written.
    Snell et al. 2023, eq. 2, second term; Kostrikov et al. 2021, eq. 5.
    """
    errors = targets.detach() - values
    return (expectile - (errors < 0).to(errors)).abs() * errors.square()


def conservative_loss(q_values: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy of the written token under softmax(Q), (B, R) nats: it lowers Q of tokens that nobody wrote.

    `q_values` (B, R, V) of every token, `tokens` (B, R) those written. Kumar et al. 2020, eq. 4 (CQL); Snell et al.
    2023, section 4.2.
    """
    return F.cross_entropy(q_values.flatten(0, -2), tokens.flatten(), reduction="none").view(tokens.shape)
