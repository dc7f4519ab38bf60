"""Reward model from comparisons, rankings, ratings or verdicts. Christiano et al. 2017; Stiennon et al. 2020."""

from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor

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
from workbench.models import ranks
from workbench.models.examples import Examples
from workbench.models.load import without_dropout
from workbench.models.rewards import raw_rewards
from workbench.models.scoring import Predictions, ban_unsayable, chosen, completion_states, spread
from workbench.models.tokens import batches_by_length, collate_pairs
from workbench.records import PairExample, Sequences
from workbench.trainers.descent import Descent, EpochBatches, Share, Stateful, require_examples
from workbench.trainers.feedback_kinds import Objective, Tensors
from workbench.trainers.settings import Settings, require_in, require_positive


@dataclass(frozen=True, kw_only=True)
class RewardObjective(Objective):
    """A row of OBJECTIVES."""

    column: str  # what the rows must have beyond texts
    ties: bool = False  # whether comparisons that nobody decided teach it something
    settings: tuple[str, ...] = ("lm_coef",)  # of the optional settings those that mean something here


def _with_margin(chosen_rewards: Tensor, rejected_rewards: Tensor, margin: Tensor) -> Tensor:
    return bradley_terry_loss(chosen_rewards, rejected_rewards, margin=margin)


def _of_steps(rewards: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    return process_reward_loss(rewards, labels, mask)[mask]


COMPARED = ("center_rewards_coefficient", "lm_coef")
PAIRS = RewardObjective(loss=bradley_terry_loss, column="chosen", settings=COMPARED)
RANKINGS = RewardObjective(loss=pairwise_ranking_loss, data="rankings", column="ranking", settings=COMPARED)
OBJECTIVES = {
    "bradley_terry": PAIRS,
    "bradley_terry_margin": replace(PAIRS, loss=_with_margin, column="margin"),
    "soft": replace(
        PAIRS, loss=soft_preference_loss, column="preference", ties=True, settings=(*COMPARED, "error_rate")
    ),
    "pairwise_ranking": RANKINGS,
    "plackett_luce": replace(RANKINGS, loss=plackett_luce_loss),
    "best_of_k": replace(RANKINGS, loss=best_of_k_loss),
    "rating": RewardObjective(loss=rating_loss, data="ratings", column="rating", settings=()),
    "outcome": RewardObjective(loss=outcome_loss, data="labelled", column="label"),
    "process": RewardObjective(loss=_of_steps, data="steps", column="labels"),
}


def objective_named(name: str) -> RewardObjective:
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
        train, held_out = task.rows(objective.kind.schema, count, ties=objective.ties)
    except WorkbenchError as error:
        raise WorkbenchError(f"{needs}: {error}") from error
    if objective.column not in train.column_names or train[objective.column][:].count(None) == len(train):
        found = ", ".join(train.column_names)
        raise WorkbenchError(f"{needs}, which the data does not have (found: {found}): add it, or take another one.")
    return train, held_out


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig(Settings):
    """How a reward model is trained."""

    objective: str = "bradley_terry"  # what is minimised: a name in OBJECTIVES
    epochs: int = 2  # passes over the examples; more than two overfit (Stiennon et al. 2020 take one)
    batch_size: int = 64  # examples per step: comparisons, rankings or completions
    learning_rate: float = 5e-4  # peak, at width 64; 1e-6 .. 1e-5 for large pretrained models
    weight_decay: float = 0.01  # on matrices only
    center_rewards_coefficient: float = 0.0  # weight of the penalty on mean rewards other than 0; .01 is usual
    lm_coef: float = 0.0  # weight of the LM loss on the preferred completions, per nat and token
    error_rate: float = 0.0  # share of labels taken for coin tosses, objective "soft"; Christiano et al. 2017 take .1
    evaluate_every: int = 25  # steps between measurements on held-out examples
    seed: int = 0  # order of the examples

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "epochs", "batch_size", "learning_rate", "max_grad_norm", "evaluate_every")
        require_in(0, 1, self, "weight_decay", "error_rate")
        require_in(0, float("inf"), self, "center_rewards_coefficient", "lm_coef")
        known = objective_named(self.objective).settings
        for name in ("center_rewards_coefficient", "lm_coef", "error_rate"):
            if getattr(self, name) and name not in known:
                others = ", ".join(other for other, row in OBJECTIVES.items() if name in row.settings)
                raise WorkbenchError(
                    f"{name} is {getattr(self, name)}, which means nothing for objective {self.objective!r}: set it "
                    f"to 0, or choose one of {others}."
                )


class RewardModelTrainer(Stateful):
    """Minimises one of OBJECTIVES with a sequence classifier that has one output.

    `examples` and `held_out` are of the kind that the objective learns from. The auxiliary LM loss (Askell et al. 2021,
    who add it for the good one of two texts) has no head of its own: the input embedding serves as one. That is the
    policy's own head where it ties the two, and a new one to learn where it does not.
    """

    def __init__(self, reward_model, examples: list, held_out: list, config: RewardModelConfig):
        require_examples(examples, held_out)
        self.config, self.objective = config, objective_named(config.objective)
        self.kind = self.objective.kind
        self.model = without_dropout(reward_model)
        self.model.config.update({"step_end_ids": [], "pessimism": 0.0})  # what it may have been before
        if isinstance(examples, Examples):  # it will read texts as long as it was trained on
            cuts = ("max_prompt_length", "max_completion_length")
            self.model.config.update({name: getattr(examples.report, name) for name in cuts})
        self.examples, self.held_out = self.kind.prepared(reward_model, examples, held_out)
        lengths = list(map(self.kind.length, self.examples))
        self.batches = EpochBatches(lengths, config.batch_size, seed=config.seed)
        self.total_steps = config.epochs * self.batches.per_epoch
        self.descent = Descent(reward_model, config, steps=self.total_steps)

    @property
    def progress_keys(self) -> tuple[str, ...]:
        """Loss and fit, by what the objective calls it."""
        return "loss", self.kind.measure, f"held_out_{self.kind.measure}"

    def step(self) -> dict[str, float | None]:
        """One optimiser step; `loss` without what is added to it, `mean_reward` and `margin` raw (log-odds)."""
        self.step_number += 1
        parts = self._parts([self.examples[index] for index in self.batches.next()])
        examples, learning_rate = list(chain(*parts)), self.descent.learning_rate
        said, grad_norm = self.descent.step(parts, partial(self._share, examples), trainer_step=self.step_number)
        rewards = torch.cat([each for _, (each, _) in said])
        given = self.kind.arguments({"rewards": rewards}, examples)
        reported = {"lm_loss": sum(lm_loss for _, (_, lm_loss) in said)} if self.config.lm_coef else {}
        fit = self.kind.fit(given)
        held_out = self.evaluate(self.held_out) if self.due else dict.fromkeys(["loss", *fit])
        return {
            "step": self.step_number,
            "loss": self._losses(given).mean().item(),
            **fit,
            "mean_reward": rewards.mean().item(),
            **reported,
            **{f"held_out_{name}": value for name, value in held_out.items()},
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
        }

    @torch.no_grad()
    def evaluate(self, examples: list) -> dict[str, float]:
        """Loss and fit on examples such as `held_out`."""
        examples = sorted(examples, key=self.kind.length)  # batches of like lengths do less, and the order is nothing
        size = self.config.batch_size
        batches = [self._parts(examples[start : start + size]) for start in range(0, len(examples), size)]
        parts = list(chain(*batches))
        rewards = torch.cat(ranks.shared(parts, lambda part: self._forward(part)[2]))
        given = self.kind.arguments({"rewards": rewards}, list(chain(*parts)))
        return {"loss": self._losses(given).mean().item(), **self.kind.fit(given)}

    @torch.no_grad()
    def margins(self, pairs: list[PairExample]) -> Tensor:
        """Raw reward of chosen minus rejected per comparison, in the given order, (N,) log-odds on the CPU.

        Whatever the objective: a completion's reward is `rewards.raw_rewards`.
        """
        margins = torch.zeros(len(pairs))
        longest = [len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) for p in pairs]
        for rows in batches_by_length(longest, self.config.batch_size):
            batch = collate_pairs([pairs[row] for row in rows], self.model.config.pad_token_id).to(self.model.device)
            chosen, rejected = raw_rewards(self.model, batch, group_size=2).view(-1, 2).unbind(1)
            margins[rows] = (chosen - rejected).cpu()
        return margins

    def comparisons(self, radius: float) -> tuple[list[list[int]], list[list[list[int]]]]:
        """Prompts and compared completions of the training examples, for `rewards.make_pessimistic` with this radius.

        Ask for them before training: WorkbenchError where there can be no such reward.
        """
        if not radius > 0:
            raise WorkbenchError(f"pessimism is {radius}: give a radius above 0, or 0 to leave the reward as it is.")
        if not self.kind.comparative:
            raise WorkbenchError(
                f"pessimism needs completions that were compared, which objective {self.config.objective!r} has not: "
                "set it to 0, or choose an objective of comparisons or rankings."
            )
        return [e.prompt_ids for e in self.examples], [self.kind.completions(e) for e in self.examples]

    def _parts(self, examples: list) -> list[list]:
        """The examples of a batch that go through the model at a time; all completions of one stay together."""
        sizes = [self.kind.length(each) * len(self.kind.completions(each)) for each in examples]
        return self.micro_batches(examples, sizes)

    def _share(self, examples: list, part: list) -> Share:
        """What a part of the examples adds to the loss, and its rows; its rewards, and what it adds to the LM loss."""
        batch, states, rewards = self._forward(part)
        losses = self._losses(self.kind.arguments({"rewards": rewards}, part))
        added, lm_loss = self._added(part, examples, batch, states, rewards)
        return losses.sum() / sum(map(self.kind.terms, examples)) + added, batch, (rewards.detach(), lm_loss)

    def _added(
        self, part: list, examples: list, batch: Sequences, states: Tensor, rewards: Tensor
    ) -> tuple[Tensor, float]:
        """What a part of the examples adds to the loss beside its own, a scalar, and how much of the LM loss it is."""
        added, lm_loss, kind = rewards.new_zeros(()), rewards.new_zeros(()), self.kind
        if self.config.center_rewards_coefficient:
            means = rewards.view(len(part), -1).mean(1)  # of K completions twice their mean stands for the sum
            penalty = reward_centering_penalty(means, means).sum() / len(examples)
            added = added + self.config.center_rewards_coefficient * penalty
        if self.config.lm_coef:
            liked = [flag for example in part for flag in kind.liked(example)]
            said = [zip(kind.completions(each), kind.liked(each), strict=True) for each in examples]
            tokens = sum(len(ids) * flag for ids, flag in chain(*said))
            lm_loss = self._lm_losses(batch.rows(liked), states[liked]).sum() / max(1, tokens)
            added = added + self.config.lm_coef * lm_loss
        return added, lm_loss.item()

    def _forward(self, examples: list) -> tuple[Sequences, Tensor, Tensor]:
        """The batch of all completions, their last hidden states and the flat rewards of the objective."""
        batch = self.kind.collated(examples, pad_id=self.model.config.pad_token_id).to(self.model.device)
        states = completion_states(self.model, batch, group_size=len(batch) // len(examples))
        return batch, states, self.kind.read(self.model, states, batch, examples)

    def _losses(self, given: Tensors) -> Tensor:
        """The loss of every example or step."""
        taken = {"error_rate": self.config.error_rate} if "error_rate" in self.objective.settings else {}
        return self.objective.losses(given, taken)

    def _lm_losses(self, liked: Sequences, states: Tensor) -> Tensor:
        """Cross-entropy of each completion token of these rows, (B, R) nats, 0 where not counted."""
        before = states[:, :-1][liked.completion_mask]
        words, config = self.model.get_input_embeddings().weight, self.model.config
        said = Predictions(before, lambda some, rows: ban_unsayable((some @ words.T).float(), config))
        return -spread(*said.read(chosen(liked.counted)), liked)
