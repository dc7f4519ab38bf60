"""Direct alignment objectives without a reference, one value per pair or ranking, to minimise.

Log-probabilities are sums over a completion's tokens, EOS included, in nats; lengths count those tokens. What keeps
the policy near where it began is `nll_loss` of the chosen completion, or nothing. Infinite sums count as in `direct`.
"""

import torch.nn.functional as F
from torch import Tensor

from workbench.losses.aggregation import per_token
from workbench.losses.log_ratio import log_ratio

LIKELIEST = -1e-6  # nats: odds of a completion that is surer than this are not told apart in fp32


def nll_loss(chosen_logprobs: Tensor, chosen_lengths: Tensor) -> Tensor:
    """Negative log-likelihood of the chosen completion, (B,) nats per token; both arguments (B,).

    What CPO, ORPO, SLiC and RRHF add to their comparison, and what fine-tuning on chosen completions is. Zhao et al.
    2023, Yuan et al. 2023 and Xu et al. 2024 write the sum over tokens; a mean does not count long completions more,
    and stands for the sum when it is weighted by the usual length.
    """
    return -per_token(chosen_logprobs, chosen_lengths)


def cpo_loss(chosen_logprobs: Tensor, rejected_logprobs: Tensor, *, beta: float) -> Tensor:
    """DPO with a uniform reference, (B,) nats; `nll_loss` keeps the policy at the chosen completions.

    Log-probabilities (B,), `beta` per nat. Xu et al. 2024, eq. 3 (its first part).
    """
    return -F.logsigmoid(beta * log_ratio(chosen_logprobs, rejected_logprobs))


def simpo_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float,
    gamma: float,
) -> Tensor:
    """Logistic loss of the margin per token, which should exceed `gamma`, (B,) nats.

    Log-probabilities and lengths (B,); `beta` per nat per token; `gamma` has the unit of the reward, beta times nats
    per token. Meng et al. 2024, eq. 6.
    """
    margin = log_ratio(per_token(chosen_logprobs, chosen_lengths), per_token(rejected_logprobs, rejected_lengths))
    return -F.logsigmoid(beta * margin - gamma)


def orpo_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float,
) -> Tensor:
    """`beta` times the logistic loss of the log odds ratio, (B,) nats; to be added to `nll_loss`.

    The odds are p / (1 - p) of the geometric mean p of a completion's token probabilities. Log-probabilities and
    lengths (B,); `beta` is the paper's lambda. Hong et al. 2024, eq. 7 (odds: eq. 4).
    """
    chosen, rejected = per_token(chosen_logprobs, chosen_lengths), per_token(rejected_logprobs, rejected_lengths)
    return -beta * F.logsigmoid(log_ratio(_log_odds(chosen), _log_odds(rejected)))


def slic_loss(chosen_logprobs: Tensor, rejected_logprobs: Tensor, *, delta: float) -> Tensor:
    """What the chosen completion lacks to be `delta` nats likelier, (B,) nats; to be added to `nll_loss`.

    Log-probabilities (B,). Zhao et al. 2023 (SLiC-HF), eq. 1; their regulariser may also take another target than the
    chosen completion.
    """
    return F.relu(delta - log_ratio(chosen_logprobs, rejected_logprobs))


def rrhf_loss(logprobs: Tensor, lengths: Tensor, ranking: Tensor) -> Tensor:
    """How far worse completions are likelier per token than better ones, summed over all couples, (B,) nats per token.

    `logprobs`, `lengths` and `ranking` (B, K), the last of indices, best first; to be added to `nll_loss` of the best.
    Yuan et al. 2023, eq. 2.
    """
    ordered = per_token(logprobs, lengths).gather(1, ranking)
    excess = log_ratio(ordered[:, None, :], ordered[:, :, None])  # [b, i, j]: j over i
    return F.relu(excess).triu(1).sum((1, 2))


def _log_odds(logprobs: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p, (B,); the clamp keeps the odds of what is certain finite."""
    logprobs = logprobs.clamp(max=LIKELIEST)
    return logprobs - (-logprobs.expm1()).log()
