"""What a policy-gradient step passes on: samples, then what is learned from them, and what is measured on both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench import NonFiniteLoss
from workbench.analysis.kl import sequence_kl_summary
from workbench.losses.advantages import masked_variance
from workbench.losses.policy import kl_k1
from workbench.records import PromptExample, ScoredRollout, Sequences, known_mean
from workbench.trainers.descent import tensors_of

if TYPE_CHECKING:
    from workbench.trainers.policy_gradient_config import PolicyGradientConfig


@dataclass(frozen=True, kw_only=True)
class Samples(ScoredRollout):
    """A scored rollout, and what its sampler could choose from."""

    allowed: Tensor  # (B, R, V) bool, True where the token could be chosen; (B, 0, 0) where every one could


@dataclass(frozen=True, kw_only=True)
class Experience(Samples):
    """What a policy and a critic learn from."""

    kl: Tensor  # (B, R) nats from the reference, by the chosen estimator
    advantages: Tensor  # (B, R) in reward units or standard deviations, 0 where not counted
    values: Tensor  # (B, R) in reward units, 0 without a critic; with a graph where they can serve the first update
    returns: Tensor  # (B, R) in reward units


def joined(first: Samples, second: Samples) -> Samples:
    """The rows of both, padded to the longer prompt and the longer completion."""
    width = max(first.completion_mask.shape[1], second.completion_mask.shape[1])
    prompt = max(first.prompt_length, second.prompt_length)
    parts = [_widened(part, prompt, width) for part in (first, second)]
    return Samples(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def _widened(part: Samples, prompt: int, width: int) -> dict[str, Tensor]:
    """Every field padded to `prompt` and `width` tokens; masks leave the padding out, so it may hold zeros."""
    left, right = prompt - part.prompt_length, width - part.completion_mask.shape[1]
    padding = {"tokens": (left, right), "attention_mask": (left, right), "scores": (), "finished": ()}
    padding["allowed"] = (0, 0, 0, right if part.allowed.numel() else 0)
    return {field.name: F.pad(getattr(part, field.name), padding.get(field.name, (0, right))) for field in fields(part)}


def equal_groups(scores: Tensor, group_size: int) -> Tensor:
    """True for every group whose completions all earned the same, (prompts,) bool; never for groups of one."""
    groups = scores.view(-1, group_size)
    return (groups == groups[:, :1]).all(1) & (group_size > 1)


def rows_of_groups(groups: Tensor, group_size: int) -> Tensor:
    """The rows of the chosen groups, side by side, (len(groups) * group_size,)."""
    return (groups[:, None] * group_size + torch.arange(group_size, device=groups.device)).flatten()


def placed(values: Tensor, rows: Any, batch: Sequences) -> Tensor:
    """Values of some rows in their places in the batch, (B, R), 0 elsewhere: means over all of it are then shares."""
    if isinstance(rows, slice):  # all of them
        return values
    return values.new_zeros(batch.completion_mask.shape).index_put((rows,), values)


def overlong_penalty(lengths: Tensor, *, longest: int, cache: int) -> Tensor:
    """0 up to `longest - cache` tokens, then rising to 1 at `longest`, (B,); 0 everywhere where `cache` is 0.

    `lengths` (B,) in tokens. DAPO's soft overlong punishment with the sign turned, Yu et al. 2025, eq. 13.
    """
    return ((lengths - (longest - cache)) / max(cache, 1)).clamp(0, 1) * (cache > 0)


def earned(rollout: Samples, config: PolicyGradientConfig) -> Tensor:
    """The score of every completion less what is taken off for its length, (B,) in reward units."""
    lengths = rollout.completion_mask.sum(1)
    overlong = overlong_penalty(lengths, longest=config.max_completion_length, cache=config.soft_punish_cache)
    return rollout.scores - config.missing_eos_penalty * ~rollout.finished - overlong


def require_finite(rollout: Samples, *, step: int) -> None:
    """Raises NonFiniteLoss where a log-probability or a score is NaN or infinite."""
    parts = (rollout.logprobs, rollout.reference_logprobs, rollout.scores)
    if not all(torch.isfinite(part).all() for part in parts):
        raise NonFiniteLoss(step, tensors_of(rollout))


def batch_means(rollout: Samples, samples: list[dict[str, Any]]) -> dict[str, float]:
    """Means over completions: reward, its parts, monitors, chance to win, length in tokens, share that ended."""
    others = [name for name in samples[0] if name not in ("prompt", "completion", "rival", "reward")]
    return {
        "reward": torch.tensor([sample["reward"] for sample in samples]).mean().item(),
        **{name: known_mean(sample[name] for sample in samples) for name in others},
        "completion_length": rollout.completion_mask.sum(1).float().mean().item(),
        "finished": rollout.finished.float().mean().item(),
    }


def held_out_table(
    prompts: list[PromptExample], samples: list[dict], kl: list[dict], judged: Mapping[str, list[float]]
) -> list[dict[str, Any]]:
    """A row per prompt: its own columns, what was sampled and earned, its KL, and what each judge says."""
    scores = [dict(zip(judged, row, strict=True)) for row in zip(*judged.values(), strict=True)] or [{}] * len(samples)
    rows = zip(prompts, samples, kl, scores, strict=True)
    return [{**prompt.row, **sample, **measured, **said} for prompt, sample, measured, said in rows]


def divergence(experience: Experience, config: PolicyGradientConfig) -> dict[str, float]:
    """KL from the reference, nats per completion, its standard error over prompts; what the critic explains."""
    mask = experience.completion_mask
    kl = kl_k1(experience.logprobs, experience.reference_logprobs)
    prompts = [row // config.num_generations for row in range(len(experience))]
    mean, error = map(float, sequence_kl_summary(kl.cpu(), mask.cpu(), prompts))
    row = {"kl": mean, "kl_se": error}
    if config.kl_estimator == "exact":
        row["kl_exact"] = experience.kl.sum(1).mean().item()
    if config.has_critic:
        errors = experience.returns - experience.values.detach()
        unexplained = masked_variance(errors, mask) / masked_variance(experience.returns, mask)
        row["explained_variance"] = 1 - unexplained.item()
    return row
