"""Reward-model objectives as rows of a table: the data each needs, what it minimises and how its fit is measured.

Rewards are flat, (M,): one per completion (or step) of the first example, then those of the next. Examples are those of
`workbench.records`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from workbench import WorkbenchError
from workbench.losses.preference import (
    best_of_k_loss,
    bradley_terry_loss,
    outcome_loss,
    pairwise_ranking_loss,
    plackett_luce_loss,
    process_reward_loss,
    rating_loss,
    reward_centering_penalty,
    soft_preference_loss,
)
from workbench.models.examples import labelled_examples, pair_examples, ranking_examples, stepwise_examples
from workbench.models.rewards import last_states, scalar_outputs
from workbench.models.scoring import completion_logprobs
from workbench.models.tokens import collate_groups
from workbench.records import LabelledExample, PairExample, RankingExample, Sequences, StepwiseExample

STEP_MARKS = 8  # more different last tokens of steps than this, and no rule could find the steps of new completions


def _whole(model, states: Tensor, sequences: Sequences, examples: list) -> Tensor:
    """The head's output at the last token of every completion."""
    return scalar_outputs(model, last_states(states, sequences))


def _as_they_are(model, examples: list, held_out: list) -> tuple[list, list]:
    return examples, held_out


@dataclass(frozen=True, kw_only=True)
class Objective:
    """How a reward model learns from one kind of example."""

    rows: Callable[[Any, int], tuple]  # (task, count) -> training and held-out rows
    column: str  # what the rows must have beyond texts
    examples: Callable[..., list]  # their builder in `workbench.models.examples`
    completions: Callable[[Any], list[list[int]]]  # of one example
    liked: Callable[[Any], list[bool]]  # which of them are worth imitating (lm_coef)
    loss: Callable[[Tensor, list, float], Tensor]  # (rewards, examples, error_rate) -> a value per example or step
    fit: Callable[[Tensor, list], dict[str, float]]  # (rewards, examples) -> how well they agree
    settings: tuple[str, ...]  # of the optional settings those that mean something here
    read: Callable[[Any, Tensor, Sequences, list], Tensor] = _whole  # (model, states, sequences, examples) -> rewards
    prepared: Callable[[Any, list, list], tuple[list, list]] = _as_they_are  # (model, examples, held out) -> both

    @property
    def comparative(self) -> bool:
        """Whether only differences within an example are learned."""
        return "center_rewards_coefficient" in self.settings


def objective_named(name: str) -> Objective:
    """The row of `OBJECTIVES`; WorkbenchError lists those that exist."""
    if name not in OBJECTIVES:
        raise WorkbenchError(f"There is no objective {name!r}: choose one of {', '.join(OBJECTIVES)}.")
    return OBJECTIVES[name]


def objective_rows(name: str, task, count: int) -> tuple:
    """Training rows (at most `count`, 0 = all) and held-out rows that the objective learns from.

    WorkbenchError names the objective and the column where the task does not have them.
    """
    objective = objective_named(name)
    needs = f"objective {name!r} needs column {objective.column!r}"
    try:
        parts = objective.rows(task, count)
    except WorkbenchError as error:
        raise WorkbenchError(f"{needs}: {error}") from error
    train = parts[0]
    if objective.column not in train.column_names or train[objective.column][:].count(None) == len(train):
        found = ", ".join(train.column_names)
        raise WorkbenchError(f"{needs}, which the data does not have (found: {found}): add it, or take another one.")
    return parts


def centering(rewards: Tensor, examples: list) -> Tensor:
    """`reward_centering_penalty` of each example, (B,); of K completions twice their mean stands for the sum."""
    means = rewards.view(len(examples), -1).mean(1)
    return reward_centering_penalty(means, means)


# Comparisons: two completions, the first preferred


def _sides(rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards of chosen and of rejected completions, (B,) each."""
    return rewards.view(-1, 2).unbind(1)


def _bradley_terry(rewards: Tensor, pairs: list[PairExample], error_rate: float) -> Tensor:
    return bradley_terry_loss(*_sides(rewards))


def _bradley_terry_margin(rewards: Tensor, pairs: list[PairExample], error_rate: float) -> Tensor:
    return bradley_terry_loss(*_sides(rewards), margin=rewards.new_tensor([pair.margin for pair in pairs]))


def _soft(rewards: Tensor, pairs: list[PairExample], error_rate: float) -> Tensor:
    preference = rewards.new_tensor([pair.preference for pair in pairs])
    return soft_preference_loss(*_sides(rewards), preference, error_rate=error_rate)


def _pair_fit(rewards: Tensor, pairs: list[PairExample]) -> dict[str, float]:
    """Share of decided pairs in the right order, and the mean margin in log-odds."""
    chosen, rejected = _sides(rewards)
    decided = torch.tensor([pair.preference != 0.5 for pair in pairs], device=rewards.device)
    right = (chosen > rejected)[decided].float().mean().item()
    return {"accuracy": right, "margin": (chosen - rejected).mean().item()}


# Rankings: K completions, equally many in all examples


def _ranked(rewards: Tensor, rankings: list[RankingExample]) -> tuple[Tensor, Tensor]:
    """Rewards and rankings, (B, K) each."""
    return rewards.view(len(rankings), -1), torch.tensor([each.ranking for each in rankings], device=rewards.device)


def _pairwise_ranking(rewards: Tensor, rankings: list[RankingExample], error_rate: float) -> Tensor:
    return pairwise_ranking_loss(*_ranked(rewards, rankings))


def _plackett_luce(rewards: Tensor, rankings: list[RankingExample], error_rate: float) -> Tensor:
    return plackett_luce_loss(*_ranked(rewards, rankings))


def _best_of_k(rewards: Tensor, rankings: list[RankingExample], error_rate: float) -> Tensor:
    values, ranking = _ranked(rewards, rankings)
    return best_of_k_loss(values, ranking[:, 0])


def _ranking_fit(rewards: Tensor, rankings: list[RankingExample]) -> dict[str, float]:
    """Share of pairs within a prompt in the right order, and share of prompts whose best completion scores highest."""
    values, ranking = _ranked(rewards, rankings)
    ordered = values.gather(1, ranking)
    right = (ordered[:, :, None] > ordered[:, None, :]).triu(diagonal=1).sum()
    pairs = len(rankings) * math.comb(ordered.shape[1], 2)
    first = (ordered.argmax(1) == 0).float().mean()
    return {"accuracy": right.item() / pairs, "best_accuracy": first.item()}


# Completions with a number each


def _labels(rewards: Tensor, examples: list[LabelledExample]) -> Tensor:
    return rewards.new_tensor([example.label for example in examples])


def _rating(rewards: Tensor, examples: list[LabelledExample], error_rate: float) -> Tensor:
    return rating_loss(rewards, _labels(rewards, examples))


def _outcome(rewards: Tensor, examples: list[LabelledExample], error_rate: float) -> Tensor:
    return outcome_loss(rewards, _labels(rewards, examples))


def _rating_fit(rewards: Tensor, examples: list[LabelledExample]) -> dict[str, float]:
    """Pearson's correlation; NaN where either does not vary."""
    return {"correlation": torch.corrcoef(torch.stack([rewards, _labels(rewards, examples)]))[0, 1].item()}


def _outcome_fit(rewards: Tensor, examples: list[LabelledExample]) -> dict[str, float]:
    """Share of completions on the right side of even odds."""
    return {"accuracy": ((rewards > 0) == (_labels(rewards, examples) > 0)).float().mean().item()}


def _standardised(model, examples: list[LabelledExample], held_out: list[LabelledExample]) -> tuple[list, list]:
    """Ratings at mean 0 and standard deviation 1 of the training ones: a head starts near 0, and scales differ."""
    ratings = torch.tensor([example.label for example in examples], dtype=torch.float64)
    mean, std = ratings.mean().item(), ratings.std(correction=0).item()
    if not std > 0:
        raise WorkbenchError(f"All {len(examples)} ratings are {mean:g}: give ratings that differ.")
    return tuple(
        [replace(example, label=(example.label - mean) / std) for example in part] for part in (examples, held_out)
    )


# Completions in steps


def _steps(examples: list[StepwiseExample]) -> list[int]:
    return [len(example.labels) for example in examples]


def _at_steps(model, states: Tensor, sequences: Sequences, examples: list[StepwiseExample]) -> Tensor:
    """The head's output at the last token of every step."""
    rows = torch.repeat_interleave(torch.arange(len(examples)), torch.tensor(_steps(examples)))
    ends = [torch.tensor([len(step) for step in example.step_ids]).cumsum(0) for example in examples]
    return scalar_outputs(model, states[rows.to(states.device), torch.cat(ends).to(states.device)])


def _step_labels(rewards: Tensor, examples: list[StepwiseExample]) -> Tensor:
    return rewards.new_tensor([float(label) for example in examples for label in example.labels])


def _process(rewards: Tensor, examples: list[StepwiseExample], error_rate: float) -> Tensor:
    values, labels = (
        pad_sequence(part.split(_steps(examples)), batch_first=True)
        for part in (rewards, _step_labels(rewards, examples))
    )
    mask = torch.arange(values.shape[1]) < torch.tensor(_steps(examples))[:, None]
    mask = mask.to(rewards.device)
    return process_reward_loss(values, labels, mask)[mask]


def _step_fit(rewards: Tensor, examples: list[StepwiseExample]) -> dict[str, float]:
    """Share of steps on the right side of even odds."""
    return {"accuracy": ((rewards > 0) == (_step_labels(rewards, examples) > 0)).float().mean().item()}


def _with_step_marks(model, examples: list[StepwiseExample], held_out: list[StepwiseExample]) -> tuple[list, list]:
    """Both as they are; the model's config learns which tokens end a step, to find the steps of new completions."""
    marks = {step[-1] for example in examples for step in example.step_ids[:-1]}
    if len(marks) > STEP_MARKS:
        raise WorkbenchError(
            f"The steps end in {len(marks)} different tokens, so nobody could find the steps of a new completion: end "
            "each step with the same mark, a full stop or a line break."
        )
    ends = model.config.eos_token_id  # one or several
    model.config.step_end_ids = sorted(marks or ([ends] if isinstance(ends, int) else ends))
    return examples, held_out


PAIRS = Objective(
    rows=lambda task, count: task.rows("preferences", count),
    column="chosen",
    examples=pair_examples,
    completions=lambda pair: [pair.chosen_ids, pair.rejected_ids],
    liked=lambda pair: [pair.preference > 0.5, pair.preference < 0.5],
    loss=_bradley_terry,
    fit=_pair_fit,
    settings=("center_rewards_coefficient", "lm_coef"),
)
RANKINGS = Objective(
    rows=lambda task, count: task.rows("rankings", count),
    column="ranking",
    examples=ranking_examples,
    completions=lambda example: example.completion_ids,
    liked=lambda example: [index == example.ranking[0] for index in range(len(example.ranking))],
    loss=_pairwise_ranking,
    fit=_ranking_fit,
    settings=("center_rewards_coefficient", "lm_coef"),
)
OUTCOMES = Objective(
    rows=lambda task, count: task.rows("unpaired", count),
    column="label",
    examples=labelled_examples,
    completions=lambda example: [example.completion_ids],
    liked=lambda example: [example.label > 0],
    loss=_outcome,
    fit=_outcome_fit,
    settings=("lm_coef",),
)
OBJECTIVES = {
    "bradley_terry": PAIRS,
    "bradley_terry_margin": replace(PAIRS, column="margin", loss=_bradley_terry_margin),
    "soft": replace(
        PAIRS,
        rows=lambda task, count: task.rows("preferences", count, ties=True),
        column="preference",
        loss=_soft,
        settings=(*PAIRS.settings, "error_rate"),
    ),
    "pairwise_ranking": RANKINGS,
    "plackett_luce": replace(RANKINGS, loss=_plackett_luce),
    "best_of_k": replace(RANKINGS, loss=_best_of_k),
    "rating": replace(
        OUTCOMES,
        rows=lambda task, count: task.rows("ratings", count),
        column="rating",
        examples=lambda rows, tokenizer, **limits: labelled_examples(rows, tokenizer, column="rating", **limits),
        loss=_rating,
        fit=_rating_fit,
        settings=(),
        prepared=_standardised,
    ),
    "outcome": OUTCOMES,
    "process": Objective(
        rows=lambda task, count: task.rows("stepwise", count),
        column="labels",
        examples=stepwise_examples,
        completions=lambda example: [[token for step in example.step_ids for token in step]],
        liked=lambda example: [all(example.labels)],
        loss=_process,
        fit=_step_fit,
        settings=("lm_coef",),
        read=_at_steps,
        prepared=_with_step_marks,
    ),
}


# --- Three kinds of feedback as the arguments of a direct loss: pairs, labelled completions, rankings.
#
# Every example is one prompt with K completions (1, 2 or more). A kind says which completions those are, what a
# loss learns about them, and whether rewards put them in the order that was asked for.


Arguments = dict[str, Tensor]  # by the names of the losses' parameters


@dataclass(frozen=True, kw_only=True)
class Scored:
    """K completions of each of B prompts under policy and reference."""

    logprobs: Tensor  # (B, K) nats, summed over the completion
    reference_logprobs: Tensor  # (B, K) nats, 0 where the loss needs no reference
    lengths: Tensor  # (B, K) tokens


def summed_logprobs(model, batch: Sequences, *, group_size: int) -> Tensor:
    """Log-probability of every whole completion, (B, K) nats; K = `group_size` neighbouring rows share a prompt."""
    return completion_logprobs(model, batch, group_size=group_size).sum(1).view(-1, group_size)


class RememberedLogprobs:
    """`summed_logprobs` under a model that never changes, computed when an example is met for the first time."""

    def __init__(self, model, *, count: int, group_size: int):
        self.model, self.values = model, torch.full((count, group_size), torch.nan)

    def of(self, indices: list[int], batch: Sequences) -> Tensor:
        """Those of the examples with these indices, (B, K) nats, whose rows are in `batch`."""
        if self.values[indices].isnan().any():
            with torch.no_grad():
                self.values[indices] = summed_logprobs(self.model, batch, group_size=self.values.shape[1]).cpu()
        return self.values[indices].to(batch.tokens.device)

    def state_dict(self) -> dict[str, Tensor]:
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.values = state["values"]


class Pairs:
    """Two completions of one prompt, the chosen one first, perhaps with the probability that it is the better one."""

    title, columns = "pairs", "prompt, chosen, rejected"
    record, encode = PairExample, staticmethod(pair_examples)

    @staticmethod
    def rows(task, count: int, ties: bool):
        """Training and held-out rows of a task."""
        return task.rows("preferences", count, ties=ties)

    @staticmethod
    def completions(pair: PairExample) -> list[list[int]]:
        """Token ids of both."""
        return [pair.chosen_ids, pair.rejected_ids]

    @staticmethod
    def directions(scored: Scored, pairs: list[PairExample]) -> list[tuple[Tensor | float, Arguments]]:
        """What the loss is computed on, each with its weight, (B,): also the flipped pairs where a label is soft."""
        stated = Pairs._arguments(scored, chosen=0, rejected=1)
        preference = _preferences(pairs, scored.logprobs.device)
        if (preference == 1).all():
            return [(1.0, stated)]
        return [(preference, stated), (1 - preference, Pairs._arguments(scored, chosen=1, rejected=0))]

    @staticmethod
    def better_and_worse(rewards: Tensor, pairs: list[PairExample]) -> tuple[Tensor, Tensor]:
        """Rewards (B, 2) of the chosen and of the rejected completions."""
        return rewards.unbind(1)

    @staticmethod
    def accuracies(rewards: Tensor, pairs: list[PairExample]) -> Tensor:
        """Probability that the completion with the higher reward is the better one, (B,); a draw is wrong."""
        preference = _preferences(pairs, rewards.device)
        chosen, rejected = rewards.unbind(1)
        return preference * (chosen > rejected) + (1 - preference) * (rejected > chosen)

    @staticmethod
    def _arguments(scored: Scored, *, chosen: int, rejected: int) -> Arguments:
        return {
            "chosen_logprobs": scored.logprobs[:, chosen],
            "rejected_logprobs": scored.logprobs[:, rejected],
            "reference_chosen_logprobs": scored.reference_logprobs[:, chosen],
            "reference_rejected_logprobs": scored.reference_logprobs[:, rejected],
            "chosen_lengths": scored.lengths[:, chosen],
            "rejected_lengths": scored.lengths[:, rejected],
        }


class Labelled:
    """One completion with a label, desirable or not."""

    title, columns = "labelled completions", "prompt, completion, label"
    record, encode = LabelledExample, staticmethod(labelled_examples)

    @staticmethod
    def rows(task, count: int, ties: bool):
        """Training and held-out rows of a task; a tie labels neither completion."""
        return task.rows("unpaired", count)

    @staticmethod
    def completions(example: LabelledExample) -> list[list[int]]:
        """Token ids of the one."""
        return [example.completion_ids]

    @staticmethod
    def directions(scored: Scored, examples: list[LabelledExample]) -> list[tuple[float, Arguments]]:
        """What the loss is computed on, with its weight."""
        arguments = {
            "logprobs": scored.logprobs[:, 0],
            "reference_logprobs": scored.reference_logprobs[:, 0],
            "lengths": scored.lengths[:, 0],
            "desirable": _desirable(examples, scored.logprobs.device),
        }
        return [(1.0, arguments)]

    @staticmethod
    def better_and_worse(rewards: Tensor, examples: list[LabelledExample]) -> tuple[Tensor, Tensor]:
        """Rewards (B, 1) of the desirable and of the undesirable completions."""
        desirable = _desirable(examples, rewards.device)
        return rewards[desirable, 0], rewards[~desirable, 0]

    @staticmethod
    def accuracies(rewards: Tensor, examples: list[LabelledExample]) -> Tensor:
        """Share of the completions with the other label that lie on the right side of each, (B,); NaN without any."""
        desirable = _desirable(examples, rewards.device)
        better, worse = (side.sort().values for side in Labelled.better_and_worse(rewards, examples))
        shares = torch.empty(len(examples), device=rewards.device)
        shares[desirable] = torch.searchsorted(worse, rewards[desirable, 0]) / len(worse) if len(worse) else torch.nan
        above = len(better) - torch.searchsorted(better, rewards[~desirable, 0], right=True)
        shares[~desirable] = above / len(better) if len(better) else torch.nan
        return shares

    @staticmethod
    def mismatched(examples: list[LabelledExample], *, context: int) -> list[LabelledExample]:
        """Each prompt with the completion before it in the batch, cut to `context` tokens in all (0 = no limit)."""
        return [
            replace(
                example, completion_ids=before.completion_ids[: context - len(example.prompt_ids) if context else None]
            )
            for example, before in zip(examples, [examples[-1], *examples[:-1]], strict=True)
        ]


class Rankings:
    """K completions of one prompt in an order."""

    title, columns = "rankings", "prompt, completions, ranking"
    record, encode = RankingExample, staticmethod(ranking_examples)

    @staticmethod
    def rows(task, count: int, ties: bool):
        """Training and held-out rows of a task; rankings have no ties."""
        return task.rows("rankings", count)

    @staticmethod
    def completions(example: RankingExample) -> list[list[int]]:
        """Token ids of all K."""
        return example.completion_ids

    @staticmethod
    def directions(scored: Scored, examples: list[RankingExample]) -> list[tuple[float, Arguments]]:
        """What the loss is computed on, with its weight; `chosen` is the best one."""
        ranking = _rankings(examples, scored.logprobs.device)
        best = ranking[:, :1]
        arguments = {
            "logprobs": scored.logprobs,
            "reference_logprobs": scored.reference_logprobs,
            "lengths": scored.lengths,
            "ranking": ranking,
            "chosen_logprobs": scored.logprobs.gather(1, best)[:, 0],
            "chosen_lengths": scored.lengths.gather(1, best)[:, 0],
        }
        return [(1.0, arguments)]

    @staticmethod
    def better_and_worse(rewards: Tensor, examples: list[RankingExample]) -> tuple[Tensor, Tensor]:
        """Rewards (B, K) of the best completions and of all others."""
        ordered = rewards.gather(1, _rankings(examples, rewards.device))
        return ordered[:, 0], ordered[:, 1:]

    @staticmethod
    def accuracies(rewards: Tensor, examples: list[RankingExample]) -> Tensor:
        """Share of the couples of a prompt's completions whose rewards are in the right order, (B,); a draw is not."""
        ordered = rewards.gather(1, _rankings(examples, rewards.device))
        better, worse = torch.triu_indices(ordered.shape[1], ordered.shape[1], 1, device=rewards.device)
        return (ordered[:, better] > ordered[:, worse]).float().mean(1)


DATA = {"pairs": Pairs, "labelled": Labelled, "rankings": Rankings}


def require_kind(kind: str, examples: list, *, loss: str) -> None:
    """WorkbenchError where examples are of another kind than the loss learns from, or of different sizes K."""
    wanted = DATA[kind]
    other = next((example for example in examples if not isinstance(example, wanted.record)), None)
    if other is not None:
        raise WorkbenchError(
            f"The loss {loss!r} learns from {wanted.title} (columns {wanted.columns}), not from "
            f"{type(other).__name__}: give it such data, or choose a loss for the data that you have."
        )
    sizes = sorted({len(wanted.completions(example)) for example in examples})
    if len(sizes) > 1:
        raise WorkbenchError(
            f"The loss {loss!r} got prompts with {sizes[0]} and with {sizes[-1]} completions: give every row as many."
        )


def load_examples(task, tokenizer, *, loss: str, kind: str, count: int, ties: bool = False, **limits: int):
    """Training rows of a task, their examples and the held-out examples of the kind that a loss learns from.

    `count` rows (0 = all); comparisons that nobody decided only with `ties`; `limits` as the builders of
    `workbench.models.examples` take them. WorkbenchError names the loss and what its data lack.
    """
    try:
        train, held_out = DATA[kind].rows(task, count, ties)
    except WorkbenchError as error:
        raise WorkbenchError(f"The loss {loss!r} learns from {DATA[kind].title}: {error}") from error
    return train, *(DATA[kind].encode(rows, tokenizer, **limits) for rows in (train, held_out))


def collate_examples(kind: str, examples: list, *, pad_id: int) -> Sequences:
    """B examples with K completions each as B*K rows, those of one prompt side by side."""
    completions = [DATA[kind].completions(example) for example in examples]
    return collate_groups([example.prompt_ids for example in examples], completions, pad_id=pad_id)


def _preferences(pairs: list[PairExample], device) -> Tensor:
    return torch.tensor([pair.preference for pair in pairs], device=device)


def _desirable(examples: list[LabelledExample], device) -> Tensor:
    return torch.tensor([example.label > 0 for example in examples], device=device)


def _rankings(examples: list[RankingExample], device) -> Tensor:
    return torch.tensor([example.ranking for example in examples], device=device)
