"""Direct alignment objectives against a reference, one value per pair or labelled completion, to minimise.

Log-probabilities are sums over a completion's tokens, EOS included, in nats; lengths count those tokens. A completion
that neither side can say (-inf twice) is no evidence: its difference is 0. Where the loss itself is infinite, so it is
returned, without a NaN in its gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.losses.reductions import log_ratio, per_token

STEEPEST = 80.0  # nats: the exponential of more overflows in fp32


# Pairs against a reference


def dpo_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    reference_chosen_logprobs: Tensor,
    reference_rejected_logprobs: Tensor,
    *,
    beta: float,
) -> Tensor:
    """Direct preference optimisation per pair, (B,) nats; log 2 where the policy equals the reference.

    Log-probabilities (B,). `beta` is the strength of the implied KL penalty, per nat. Rafailov et al. 2023, eq. 7.
    """
    margin = _margin(chosen_logprobs, rejected_logprobs, reference_chosen_logprobs, reference_rejected_logprobs)
    return -F.logsigmoid(beta * margin)


def xpo_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    reference_chosen_logprobs: Tensor,
    reference_rejected_logprobs: Tensor,
    rival_logprobs: Tensor,
    *,
    beta: float,
    alpha: float,
) -> Tensor:
    """DPO plus `alpha` times the log-probability of what the reference wrote, (B,) nats; unbounded below.

    Minimising pushes that down, however it was judged, and so all else up: optimism about what is new. `rival_logprobs`
    (B,), of the completion that is the reference's, under the policy; `alpha` below `beta`, per nat; the rest as in
    `dpo_loss`. Xie et al. 2024, algorithm 1.
    """
    logprobs = (chosen_logprobs, rejected_logprobs, reference_chosen_logprobs, reference_rejected_logprobs)
    loss = dpo_loss(*logprobs, beta=beta)
    return loss + torch.where(loss.isinf(), 0, alpha * rival_logprobs)  # the limit, where both are infinite


def conservative_dpo_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    reference_chosen_logprobs: Tensor,
    reference_rejected_logprobs: Tensor,
    *,
    beta: float,
    label_smoothing: float,
) -> Tensor:
    """DPO against the label that is wrong with probability `label_smoothing`, (B,) nats.

    It is smallest at a finite margin: where the implied probability of the label is 1 - `label_smoothing`. Arguments as
    in `dpo_loss`. Mitchell 2023, a note on DPO with noisy preferences.
    """
    chosen, rejected = (chosen_logprobs, reference_chosen_logprobs), (rejected_logprobs, reference_rejected_logprobs)
    kept, flipped = _both_directions(chosen, rejected, beta=beta)
    return (1 - label_smoothing) * kept + label_smoothing * flipped


def robust_dpo_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    reference_chosen_logprobs: Tensor,
    reference_rejected_logprobs: Tensor,
    *,
    beta: float,
    label_smoothing: float,
) -> Tensor:
    """Estimate of DPO's loss under the true labels from labels of which `label_smoothing` < .5 are flipped, (B,) nats.

    Unbiased over the flips, hence negative for some pairs. Arguments as in `dpo_loss`. Chowdhury et al. 2024.
    """
    chosen, rejected = (chosen_logprobs, reference_chosen_logprobs), (rejected_logprobs, reference_rejected_logprobs)
    kept, flipped = _both_directions(chosen, rejected, beta=beta)
    return ((1 - label_smoothing) * kept - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def ipo_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    reference_chosen_logprobs: Tensor,
    reference_rejected_logprobs: Tensor,
    *,
    beta: float,
) -> Tensor:
    """Squared distance of the margin of log-ratios from 1 / (2 beta), (B,) nats squared.

    Arguments as in `dpo_loss`; `beta` is the paper's tau. Azar et al. 2023, eq. 17.
    """
    margin = _margin(chosen_logprobs, rejected_logprobs, reference_chosen_logprobs, reference_rejected_logprobs)
    return (margin - 1 / (2 * beta)).square()


def ipo_normalised_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    reference_chosen_logprobs: Tensor,
    reference_rejected_logprobs: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float,
) -> Tensor:
    """`ipo_loss` of log-probabilities per token, (B,); lengths (B,) in tokens.

    Azar et al. 2023 do not write it, but their experiments used it, as TRL's documentation says.
    """
    chosen = (per_token(logprobs, chosen_lengths) for logprobs in (chosen_logprobs, reference_chosen_logprobs))
    rejected = (per_token(logprobs, rejected_lengths) for logprobs in (rejected_logprobs, reference_rejected_logprobs))
    (chosen, reference_chosen), (rejected, reference_rejected) = chosen, rejected
    return ipo_loss(chosen, rejected, reference_chosen, reference_rejected, beta=beta)


def hinge_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    reference_chosen_logprobs: Tensor,
    reference_rejected_logprobs: Tensor,
    *,
    beta: float,
) -> Tensor:
    """What the implied reward's margin lacks to 1, (B,): SLiC's hinge on DPO's reward. Arguments as in `dpo_loss`.

    Liu et al. 2023 (statistical rejection sampling), there "hinge-norm".
    """
    margin = _margin(chosen_logprobs, rejected_logprobs, reference_chosen_logprobs, reference_rejected_logprobs)
    return F.relu(1 - beta * margin)


def apo_zero_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    reference_chosen_logprobs: Tensor,
    reference_rejected_logprobs: Tensor,
    *,
    beta: float,
) -> Tensor:
    """Chosen up and rejected down, each for itself, (B,) in [0, 2]; for data better than the policy.

    Arguments as in `dpo_loss`. D'Oosterlinck et al. 2024, eq. 7.
    """
    chosen = log_ratio(chosen_logprobs, reference_chosen_logprobs)
    rejected = log_ratio(rejected_logprobs, reference_rejected_logprobs)
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


def apo_down_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    reference_chosen_logprobs: Tensor,
    reference_rejected_logprobs: Tensor,
    *,
    beta: float,
) -> Tensor:
    """Both down, the rejected further, (B,) in [0, 2]; for a policy better than the data.

    Arguments as in `dpo_loss`. D'Oosterlinck et al. 2024, eq. 8.
    """
    margin = _margin(chosen_logprobs, rejected_logprobs, reference_chosen_logprobs, reference_rejected_logprobs)
    chosen = log_ratio(chosen_logprobs, reference_chosen_logprobs)
    return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * margin)


# DPO under other divergences than KL(policy || reference)


def alpha_dpo_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    reference_chosen_logprobs: Tensor,
    reference_rejected_logprobs: Tensor,
    *,
    beta: float,
    alpha: float,
) -> Tensor:
    """DPO whose implied penalty is an alpha-divergence, (B,) nats; `alpha` 1 is DPO, 0 the forward KL.

    The implied reward is beta f'(u) with f'(u) = (u^(alpha - 1) - 1) / (alpha - 1) and u the ratio policy : reference;
    the paper's alpha is 1 - `alpha`, TRL's is ours. Arguments as in `dpo_loss`. Wang et al. 2023.
    """
    chosen = log_ratio(chosen_logprobs, reference_chosen_logprobs)
    rejected = log_ratio(rejected_logprobs, reference_rejected_logprobs)
    return -F.logsigmoid(beta * log_ratio(_alpha_slope(chosen, alpha), _alpha_slope(rejected, alpha)))


def forward_kl_dpo_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    reference_chosen_logprobs: Tensor,
    reference_rejected_logprobs: Tensor,
    *,
    beta: float,
) -> Tensor:
    """DPO whose implied penalty is KL(reference || policy), (B,) nats: f'(u) = 1 - 1/u. Wang et al. 2023."""
    logprobs = (chosen_logprobs, rejected_logprobs, reference_chosen_logprobs, reference_rejected_logprobs)
    return alpha_dpo_loss(*logprobs, beta=beta, alpha=0.0)


def jensen_shannon_dpo_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    reference_chosen_logprobs: Tensor,
    reference_rejected_logprobs: Tensor,
    *,
    beta: float,
) -> Tensor:
    """DPO whose implied penalty is the Jensen-Shannon divergence, (B,) nats: f'(u) = log(2u / (1 + u)).

    Arguments as in `dpo_loss`. Wang et al. 2023.
    """
    chosen = F.logsigmoid(log_ratio(chosen_logprobs, reference_chosen_logprobs))  # the log 2 of both cancels
    rejected = F.logsigmoid(log_ratio(rejected_logprobs, reference_rejected_logprobs))
    return -F.logsigmoid(beta * log_ratio(chosen, rejected))


# Labelled completions


def kto_loss(
    logprobs: Tensor,
    reference_logprobs: Tensor,
    desirable: Tensor,
    reference_point: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Lost value of completions that need no partner, (B,) in [0, weight].

    Log-probabilities (B,); `desirable` (B,) bool; `reference_point` () nats from `kto_reference_point`; `beta` per nat.
    The weights balance unequal numbers of both labels. Ethayarajh et al. 2024, eq. 7.
    """
    gain = log_ratio(log_ratio(logprobs, reference_logprobs), reference_point)
    sign = torch.where(desirable, 1.0, -1.0)
    weight = torch.where(desirable, desirable_weight, undesirable_weight)
    return weight * torch.sigmoid(-beta * sign * gain)


def kto_reference_point(mismatched_logprobs: Tensor, reference_mismatched_logprobs: Tensor) -> Tensor:
    """KTO's z0: the mean log-ratio of completions behind prompts that are not theirs, at least 0, () nats, detached.

    A biased, cheap stand-in for KL(policy || reference). Both arguments (B,). Ethayarajh et al. 2024.
    """
    return log_ratio(mismatched_logprobs, reference_mismatched_logprobs).mean().clamp(min=0).detach()


def _margin(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    reference_chosen_logprobs: Tensor,
    reference_rejected_logprobs: Tensor,
) -> Tensor:
    """Difference of the log-ratios of a pair, (B,) nats."""
    chosen = log_ratio(chosen_logprobs, reference_chosen_logprobs)
    return log_ratio(chosen, log_ratio(rejected_logprobs, reference_rejected_logprobs))


def _both_directions(
    chosen: tuple[Tensor, Tensor], rejected: tuple[Tensor, Tensor], *, beta: float
) -> tuple[Tensor, Tensor]:
    """DPO's loss with the label as it stands and flipped; each side is (policy, reference) log-probabilities."""
    (policy_chosen, reference_chosen), (policy_rejected, reference_rejected) = chosen, rejected
    kept = dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=beta)
    flipped = dpo_loss(policy_rejected, policy_chosen, reference_rejected, reference_chosen, beta=beta)
    return kept, flipped


def _alpha_slope(ratio: Tensor, alpha: float) -> Tensor:
    """f' of the alpha-divergence at the ratio exp(`ratio`), (B,); flat where it would overflow."""
    power = alpha - 1
    return ratio if power == 0 else torch.expm1((power * ratio).clamp(max=STEEPEST)) / power


# --- Direct alignment objectives without a reference, one value per pair or ranking, to minimise.
#
# Log-probabilities are sums over a completion's tokens, EOS included, in nats; lengths count those tokens. What
# keeps the policy near where it began is `nll_loss` of the chosen completion, or nothing. Infinite sums count as
# above.


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
    chosen_logprobs: Tensor, rejected_logprobs: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor, *, beta: float
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
