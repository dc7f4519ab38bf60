"""Imitation of one's own better samples: RAFT, its random control, ReST-EM, Quark, conditional training.

Dong et al. 2023 and Touvron et al. 2023 (rejection sampling), section 3.2; Singh et al. 2023; Lu et al. 2022; Korbak
et al. 2023.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from workbench import WorkbenchError
from workbench.analysis.kl import sequence_kl_summary
from workbench.losses.policy import kl_k1
from workbench.models import ranks
from workbench.models.computing import compute_in
from workbench.models.load import without_dropout
from workbench.models.packing import token_lengths
from workbench.models.sampling import reward_arguments, sample
from workbench.models.scoring import chosen, completion_logprobs, kl_from, predictions
from workbench.models.tokens import (
    BAD_GOOD,
    QUANTILES,
    collate,
    conditioned,
    length_bucketed_batches,
    quantile_indices,
    unconditioned,
)
from workbench.records import CompletionExample, PromptExample, Rollout, known_mean
from workbench.trainers.descent import Descent, EpochBatches, Share, Stateful
from workbench.trainers.settings import Settings, require_in, require_positive


def best_of_each(scores: Tensor, generator: torch.Generator) -> Tensor:
    """The highest score of every row, the first of equal ones, as True in (B, n); Dong et al. 2023, algorithm 1."""
    return torch.arange(scores.shape[1]) == scores.argmax(1, keepdim=True)


def any_of_each(scores: Tensor, generator: torch.Generator) -> Tensor:
    """One of every row, whatever its score, as True in (B, n): as many updates as with the best, without selection."""
    return torch.arange(scores.shape[1]) == torch.randint(scores.shape[1], (len(scores), 1), generator=generator)


def passed_of_each(scores: Tensor, generator: torch.Generator) -> Tensor:
    """All above 0, which a verifier passed, as True in (B, n); Singh et al. 2023, eq. 5, without their limit of ten."""
    return scores > 0


def all_of_each(scores: Tensor, generator: torch.Generator) -> Tensor:
    """Everything, (B, n)."""
    return torch.ones_like(scores, dtype=torch.bool)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is learned from n scored completions per prompt."""

    label: str  # name in tables and figures
    paper: str
    choose: Callable[[Tensor, torch.Generator], Tensor]  # scores (B, n) on the CPU -> which are learned, (B, n) bool
    control_tokens: tuple[str, ...] = ()  # worst first; each text is learned after the token of its quantile
    afresh: bool = False  # every round learns from the reference on, with a new optimiser, what the last policy sampled


SELECTIONS = {
    "raft": Selection(label="RAFT", paper="Dong et al. 2023", choose=best_of_each),
    "rest_em": Selection(label="ReST-EM", paper="Singh et al. 2023", choose=passed_of_each, afresh=True),
    "random": Selection(label="random control", paper="control without selection", choose=any_of_each),
    "quark": Selection(label="Quark", paper="Lu et al. 2022", choose=all_of_each, control_tokens=QUANTILES),
    "conditional": Selection(
        label="conditional", paper="Korbak et al. 2023", choose=all_of_each, control_tokens=BAD_GOOD
    ),
}


def find_selection(name: str) -> Selection:
    """A row of SELECTIONS; WorkbenchError names them all."""
    if name not in SELECTIONS:
        raise WorkbenchError(f"There is no selection {name!r}: choose one of {', '.join(SELECTIONS)}.")
    return SELECTIONS[name]


@dataclass(frozen=True, kw_only=True)
class ImitationConfig(Settings):
    """How a policy imitates what it sampled."""

    selection: str = "raft"  # a row of SELECTIONS
    steps: int = 20  # rounds of sampling and learning
    prompts_per_step: int = 128  # prompts sampled for in a round
    num_generations: int = 8  # n, completions per prompt
    updates_per_step: int = 4  # optimiser steps in a round
    batch_size: int = 64  # completions per optimiser step
    learning_rate: float = 1e-3  # peak, at width 64; 1e-6 .. 1e-5 for large pretrained models
    kl_coef: float = 0.0  # price of one nat of exact KL from the reference per token; Lu et al. 2022 take .05
    temperature: float = 1.0  # of sampling; what is kept is learned at temperature 1, as in SFT
    max_completion_length: int = 40  # tokens
    missing_eos_penalty: float = 1.0  # taken off the score of a completion that hit the length limit
    seed: int = 0  # order of prompts, samples, batches

    def __post_init__(self):
        super().__post_init__()
        tokens = find_selection(self.selection).control_tokens
        require_positive(
            self,
            "steps",
            "prompts_per_step",
            "batch_size",
            "num_generations",
            "updates_per_step",
            "learning_rate",
            "max_grad_norm",
            "temperature",
            "max_completion_length",
        )
        require_in(0, 1e6, self, "kl_coef", "missing_eos_penalty")
        if self.num_generations == 1 and not tokens:
            raise WorkbenchError(
                f"num_generations is 1, so {self.selection!r} has nothing to choose from: give at least 2."
            )


class ImitationTrainer(Stateful):
    """Rounds of sampling, scoring, selecting, and cross-entropy on what was selected.

    A selection without control tokens learns from this round's choice, "rest_em" from the reference on. One with
    control tokens keeps every completion in a pool, learns each after the token of its quantile in the whole pool, and
    samples after the best token from the second round on. `reward` is any reward callable; `monitors` are others on the
    same completions, never learned from.
    Left out of Quark: its entropy bonus. Its KL penalty is KL(policy || reference), as in its authors' code.
    """

    parts = ("descent", "batches", "generator", "pool")
    progress_keys = ("kl", "reward", "gold")

    def __init__(
        self,
        policy,
        reference,
        reward: Callable[..., list[float]],
        prompts: list[PromptExample],
        tokenizer,
        config: ImitationConfig,
        *,
        monitors: dict[str, Callable[..., list[float]]],
    ):
        if len(prompts) < config.prompts_per_step:
            raise WorkbenchError(
                f"There are {len(prompts)} prompts but prompts_per_step is {config.prompts_per_step}: give more."
            )
        self.policy, self.reference = without_dropout(policy), without_dropout(reference)
        compute_in(self.reference, config.precision)  # its weights stay: a round may begin with them
        self.rewards, self.tokenizer = {"reward": reward, **monitors}, tokenizer
        self.prompts, self.config = prompts, config
        self.selection = find_selection(config.selection)
        self.token_ids = _known_ids(tokenizer, policy, self.selection.control_tokens)
        self.batches = EpochBatches([1] * len(prompts), config.prompts_per_step, seed=config.seed, whole=True)
        self.generator = torch.Generator().manual_seed(config.seed + 1)
        self.pool: list[dict[str, Any]] = []  # what is learned from: prompt_ids, completion_ids, score
        self.last_samples: list[dict[str, Any]] = []
        self.total_steps = config.steps
        rounds = 1 if self.selection.afresh else config.steps
        self.descent = Descent(policy, config, steps=rounds * config.updates_per_step)

    def _begin_again(self) -> None:
        """The reference's weights and a new optimiser: the M-step of Singh et al. 2023, section 3."""
        self.policy.load_state_dict(self.reference.state_dict())
        self.descent = Descent(self.policy, self.config, steps=self.config.updates_per_step)

    def step(self) -> dict[str, float]:
        """Sample, score, select, imitate; `kl` in nats per sampled completion, `loss` in nats per token."""
        self.step_number += 1
        indices = [index for index in self.batches.next() for _ in range(self.config.num_generations)]
        examples = [self.prompts[index] for index in indices]
        rollout = self._sample(examples)
        values = self._values(examples, rollout)
        scores = torch.tensor(values["reward"]) - self.config.missing_eos_penalty * ~rollout.finished.cpu()
        kept = self.selection.choose(scores.view(-1, self.config.num_generations), self.generator).flatten()
        self._remember(examples, rollout, scores, kept)
        row = {"step": self.step_number, **{name: known_mean(parts) for name, parts in values.items()}}
        row |= {f"kept_{name}": torch.tensor(parts)[kept].nanmean().item() for name, parts in values.items()}
        row |= self._distance(rollout, indices)
        if not kept.any():
            raise WorkbenchError(
                f"No completion of round {self.step_number} passed, so there is nothing to learn from: give easier "
                "prompts, more of them (prompts_per_step), or a policy that is sometimes right."
            )
        if self.selection.afresh:
            row["kept_share"] = kept.float().mean().item()
            self._begin_again()
        return row | {"learning_rate": self.descent.learning_rate} | self._imitate()

    def conditioned(self, prompts: list[PromptExample]) -> list[PromptExample]:
        """The prompts as the trained policy is to read them: after the best control token where there is one."""
        return conditioned(prompts, self.token_ids[-1]) if self.token_ids else prompts

    def lessons(self) -> list[CompletionExample]:
        """What the next update draws from: the pool, each text after the control token of its quantile in it."""
        starts: list[list[int]] = [[] for _ in self.pool]
        if self.token_ids:
            quantiles = quantile_indices([row["score"] for row in self.pool], len(self.token_ids))
            starts = [[self.token_ids[quantile]] for quantile in quantiles]
        return [
            CompletionExample(prompt_ids=start + row["prompt_ids"], completion_ids=row["completion_ids"])
            for start, row in zip(starts, self.pool, strict=True)
        ]

    def samples(self) -> list[dict[str, Any]]:
        """What was kept of the last round: prompt, completion, reward and the monitors' values."""
        return self.last_samples

    def _sample(self, examples: list[PromptExample]) -> Rollout:
        asked = examples if self.step_number == 1 else self.conditioned(examples)  # no token means anything at first
        return sample(
            self.policy,
            [example.prompt_ids for example in asked],
            max_completion_length=self.config.max_completion_length,
            temperature=self.config.temperature,
            generator=self.generator,
        )

    def _values(self, examples: list[PromptExample], rollout: Rollout) -> dict[str, list[float]]:
        """The reward and every monitor of every completion."""
        arguments, columns = reward_arguments(self.tokenizer, examples, rollout)
        values = ranks.shared_scores(self.rewards, arguments, columns)
        columns = {"prompt": arguments[0], "completion": arguments[1], **values}
        self.last_samples = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return values

    def _remember(self, examples: list[PromptExample], rollout: Rollout, scores: Tensor, kept: Tensor) -> None:
        """Control tokens let the pool grow by what was kept; without them it is replaced."""
        tokens, masks = rollout.completions.tolist(), rollout.completion_mask.sum(1).tolist()
        new = [
            {
                "prompt_ids": examples[row].prompt_ids,
                "completion_ids": tokens[row][: masks[row]],
                "score": scores[row].item(),
            }
            for row in kept.nonzero()[:, 0].tolist()
        ]
        self.last_samples = [sampled for sampled, keep in zip(self.last_samples, kept.tolist(), strict=True) if keep]
        self.pool = [*self.pool, *new] if self.token_ids else new

    @torch.no_grad()
    def _distance(self, rollout: Rollout, indices: list[int]) -> dict[str, float]:
        """KL of what was sampled from the reference, which reads no control token; lengths in tokens."""
        asked, temperature = unconditioned(rollout, self.policy), self.config.temperature
        reference_logprobs = ranks.by_rows(
            lambda rows: completion_logprobs(self.reference, asked.rows(rows), temperature=temperature), len(asked)
        )
        kl, mask = kl_k1(rollout.logprobs, reference_logprobs), rollout.completion_mask
        mean, error = map(float, sequence_kl_summary(kl.cpu(), mask.cpu(), indices))
        length, finished = mask.sum(1).float().mean().item(), rollout.finished.float().mean().item()
        return {"kl": mean, "kl_se": error, "completion_length": length, "finished": finished}

    def _imitate(self) -> dict[str, float]:
        """All updates of a round; the mean of what each reports."""
        lessons, batches = self.lessons(), []
        lengths = [len(lesson.prompt_ids) + len(lesson.completion_ids) for lesson in lessons]
        while len(batches) < self.config.updates_per_step:
            batches += length_bucketed_batches(lengths, self.config.batch_size, generator=self.generator)
        # One length for all batches: a mean over each batch's own tokens would give more weight to short texts, which
        # share a batch with their like, and a policy that learns from itself would become shorter round by round.
        average = sum(len(lesson.completion_ids) for lesson in lessons) / len(lessons)
        chosen = batches[: self.config.updates_per_step]
        reports = [self._update([lessons[index] for index in batch], average) for batch in chosen]
        return {name: sum(report[name] for report in reports) / len(reports) for name in reports[0]}

    def _update(self, lessons: list[CompletionExample], average: float) -> dict[str, float]:
        """One optimiser step on cross-entropy and priced exact KL, nats per token of texts with `average` tokens."""
        parts = self.micro_batches(lessons, token_lengths(lessons))
        share = partial(self._share, len(lessons) * average)
        said, grad_norm = self.descent.step(parts, share, trainer_step=self.step_number)
        reports = [report for _, report in said]
        return {name: sum(each[name] for each in reports) for name in reports[0]} | {"grad_norm": grad_norm}

    def _share(self, tokens: float, lessons: list[CompletionExample]) -> Share:
        """What some of the lessons add to the loss per token, and their rows; what is reported, its two halves."""
        prompts, completions = [e.prompt_ids for e in lessons], [e.completion_ids for e in lessons]
        batch = collate(prompts, completions, pad_id=self.policy.config.pad_token_id).to(self.policy.device)
        readers = [chosen(batch.counted)]
        if self.config.kl_coef > 0:
            with torch.no_grad():
                reference = predictions(self.reference, unconditioned(batch, self.policy))
            readers.append(kl_from(reference))
        logprobs, *kl = predictions(self.policy, batch).read(*readers)
        loss = -logprobs.sum() / tokens
        report = {"loss": loss.item()}
        for each in kl:
            penalty = each.sum() / tokens
            loss, report["kl_penalty"] = loss + self.config.kl_coef * penalty, penalty.item()
        return loss, batch, report


def _known_ids(tokenizer, policy, tokens: tuple[str, ...]) -> list[int]:
    """The ids of control tokens; WorkbenchError where they are missing in the tokenizer or in the policy's config."""
    vocabulary, known = tokenizer.get_vocab(), getattr(policy.config, "control_token_ids", ())
    missing = [token for token in tokens if vocabulary.get(token) not in known]
    if missing:
        raise WorkbenchError(
            f"The tokenizer or the policy lacks {', '.join(missing)}: call add_control_tokens, then load the policy."
        )
    return [vocabulary[token] for token in tokens]
