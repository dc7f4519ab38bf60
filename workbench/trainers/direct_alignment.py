"""Direct alignment: a policy from people's judgements without a reward model. Rafailov et al. 2023 and their kin."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench import WorkbenchError
from workbench.losses import direct
from workbench.losses.direct import cpo_loss, nll_loss, orpo_loss, rrhf_loss, simpo_loss, slic_loss
from workbench.losses.reductions import log_ratio, per_token
from workbench.models.load import model_context, without_dropout
from workbench.records import Sequences
from workbench.trainers.descent import Descent, EpochBatches, Stateful, require_examples, require_in, require_positive
from workbench.trainers.feedback_kinds import (
    DATA,
    Arguments,
    RememberedLogprobs,
    Scored,
    collate_examples,
    require_kind,
    summed_logprobs,
)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A row of LOSSES. What the loss needs is read off the names of its parameters."""

    title: str
    loss: Callable[..., Tensor]  # of `losses`
    settings: Mapping[str, float]  # its keyword arguments as they did well on the embedded world
    learning_rate: float = 2e-4  # peak, at width 64
    nll_coef: float = 0.0  # weight of the chosen completion's negative log-likelihood
    data: str = "pairs"  # key of feedback_kinds.DATA
    paper: str

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tensors that the loss takes."""
        parameters = inspect.signature(self.loss).parameters.values()
        return tuple(parameter.name for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY)

    @property
    def needs_reference(self) -> bool:
        """Whether the loss looks at a reference policy."""
        return any(name.startswith("reference") for name in self.inputs)

    @property
    def normalised(self) -> bool:
        """Whether the loss looks at log-probabilities per token instead of sums."""
        return any(name.endswith("lengths") for name in self.inputs)

    @property
    def defaults(self) -> dict[str, float]:
        """What a configuration takes where it says nothing."""
        return {**self.settings, "nll_coef": self.nll_coef, "learning_rate": self.learning_rate}

    def described(self) -> dict[str, str]:
        """The row as it is shown in a table."""
        return {
            "title": self.title,
            "data": self.data,
            "reference": "yes" if self.needs_reference else "no",
            "log-probability": "per token" if self.normalised else "sum",
            "defaults": ", ".join(f"{name} {value:g}" for name, value in self.settings.items()),
            "adds likelihood of chosen": f"{self.nll_coef:g} times" if self.nll_coef else "no",
            "paper": self.paper,
        }


LOSSES = {
    "dpo": Objective(title="DPO", loss=direct.dpo_loss, settings={"beta": 0.1}, paper="Rafailov et al. 2023"),
    "conservative_dpo": Objective(
        title="conservative DPO",
        loss=direct.conservative_dpo_loss,
        settings={"beta": 0.1, "label_smoothing": 0.1},
        paper="Mitchell 2023",
    ),
    "robust_dpo": Objective(
        title="robust DPO",
        loss=direct.robust_dpo_loss,
        settings={"beta": 0.1, "label_smoothing": 0.1},
        paper="Chowdhury et al. 2024",
    ),
    "ipo": Objective(title="IPO", loss=direct.ipo_loss, settings={"beta": 0.1}, paper="Azar et al. 2023"),
    "ipo_normalised": Objective(
        title="IPO per token", loss=direct.ipo_normalised_loss, settings={"beta": 1.0}, paper="Azar et al. 2023"
    ),
    "hinge": Objective(
        title="hinge on DPO's reward", loss=direct.hinge_loss, settings={"beta": 0.1}, paper="Liu et al. 2023"
    ),
    "slic": Objective(title="SLiC", loss=slic_loss, settings={"delta": 1.0}, nll_coef=10.0, paper="Zhao et al. 2023"),
    "kto": Objective(
        title="KTO",
        loss=direct.kto_loss,
        settings={"beta": 0.5, "desirable_weight": 1.0, "undesirable_weight": 1.0},
        data="labelled",
        paper="Ethayarajh et al. 2024",
    ),
    "orpo": Objective(title="ORPO", loss=orpo_loss, settings={"beta": 1.0}, nll_coef=1.0, paper="Hong et al. 2024"),
    "simpo": Objective(title="SimPO", loss=simpo_loss, settings={"beta": 2.0, "gamma": 1.0}, paper="Meng et al. 2024"),
    "cpo": Objective(title="CPO", loss=cpo_loss, settings={"beta": 0.1}, nll_coef=1.0, paper="Xu et al. 2024"),
    "apo_zero": Objective(
        title="APO-zero", loss=direct.apo_zero_loss, settings={"beta": 0.1}, paper="D'Oosterlinck et al. 2024"
    ),
    "apo_down": Objective(
        title="APO-down",
        loss=direct.apo_down_loss,
        settings={"beta": 0.1},
        learning_rate=5e-5,  # it lowers chosen completions without end: at 2e-4 the policy leaves the language
        paper="D'Oosterlinck et al. 2024",
    ),
    "rrhf": Objective(
        title="RRHF", loss=rrhf_loss, settings={}, nll_coef=10.0, data="rankings", paper="Yuan et al. 2023"
    ),
    "f_dpo_forward_kl": Objective(
        title="f-DPO, forward KL", loss=direct.forward_kl_dpo_loss, settings={"beta": 0.1}, paper="Wang et al. 2023"
    ),
    "f_dpo_js": Objective(
        title="f-DPO, Jensen-Shannon",
        loss=direct.jensen_shannon_dpo_loss,
        settings={"beta": 0.1},
        paper="Wang et al. 2023",
    ),
    "f_dpo_alpha": Objective(
        title="f-DPO, alpha-divergence",
        loss=direct.alpha_dpo_loss,
        settings={"beta": 0.1, "alpha": 0.5},
        paper="Wang et al. 2023",
    ),
    "sft_chosen": Objective(
        title="fine-tuning on chosen", loss=nll_loss, settings={}, paper="control without any comparison"
    ),
}
SETTINGS = sorted({name for objective in LOSSES.values() for name in objective.settings})
RANGES = {"label_smoothing": (0, math.nextafter(0.5, 0)), "alpha": (0, 1), "gamma": (0, 1e6)}  # others are above 0


@dataclass(frozen=True, kw_only=True)
class DirectAlignmentConfig:
    """How a policy is aligned directly; None takes what LOSSES says, and is all that is left to a loss without it."""

    loss: str = "dpo"  # row of LOSSES
    beta: float | None = None  # strength of the implied KL penalty, per nat; larger stays closer to the reference
    label_smoothing: float | None = None  # probability that a label is wrong, below .5
    gamma: float | None = None  # margin that SimPO asks of the reward
    delta: float | None = None  # nats by which SLiC's chosen completion should be likelier
    alpha: float | None = None  # of the alpha-divergence: 1 is KL from the reference, 0 its reverse
    desirable_weight: float | None = None  # of desirable completions in KTO
    undesirable_weight: float | None = None  # of undesirable ones; balances unequal numbers
    nll_coef: float | None = None  # weight of the chosen completion's negative log-likelihood, which every loss may add
    epochs: int = 1  # passes over the examples
    batch_size: int = 64  # examples per step
    learning_rate: float | None = None  # peak, at width 64; 5e-7 .. 5e-6 for large pretrained models
    warmup_steps: int = 10  # steps of linear warm-up; then a cosine down to 10%
    max_grad_norm: float = 1.0  # gradients are clipped to this norm
    evaluate_every: int = 25  # steps between measurements on held-out examples
    seed: int = 0  # order of the examples

    def __post_init__(self):
        if self.loss not in LOSSES:
            raise WorkbenchError(f"There is no loss {self.loss!r}: choose one of {', '.join(LOSSES)}.")
        self._refuse_what_the_loss_does_not_take()
        for name, default in self.objective.defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        require_positive(epochs=self.epochs, batch_size=self.batch_size, learning_rate=self.learning_rate)
        require_positive(max_grad_norm=self.max_grad_norm, evaluate_every=self.evaluate_every)
        require_in(0, 1e6, nll_coef=self.nll_coef)
        for name, value in self.settings.items():
            if name in RANGES:
                require_in(*RANGES[name], **{name: value})
            else:
                require_positive(**{name: value})
        if "reference_point" in self.objective.inputs and self.batch_size < 2:
            raise WorkbenchError(
                f"batch_size is {self.batch_size}, but the loss {self.loss!r} compares each completion with others of "
                "its batch: give at least 2."
            )

    @property
    def objective(self) -> Objective:
        """The row of LOSSES."""
        return LOSSES[self.loss]

    @property
    def title(self) -> str:
        """The method with its settings, for figures and tables."""
        return ", ".join([self.objective.title, *(f"{name} {value:g}" for name, value in self.settings.items())])

    @property
    def settings(self) -> dict[str, float]:
        """The keyword arguments of the loss."""
        return {name: getattr(self, name) for name in self.objective.settings}

    def _refuse_what_the_loss_does_not_take(self) -> None:
        for name in SETTINGS:
            if getattr(self, name) is not None and name not in self.objective.settings:
                takes = ", ".join([*self.objective.settings, "nll_coef"])
                raise WorkbenchError(f"The loss {self.loss!r} has no {name}: it takes {takes}, so leave {name} out.")
        if self.nll_coef and self.objective.data == "labelled":
            raise WorkbenchError(f"The loss {self.loss!r} knows no chosen completion: leave nll_coef at 0.")


class DirectAlignmentTrainer(Stateful):
    """Minimises a loss of LOSSES; the reference is frozen, and not even run where the loss needs none.

    `policy` and `reference` start from the same weights; `examples` and `held_out` are of the kind that the loss learns
    from. A completion's implied reward is beta times its log-ratio (log-probability without a reference), per token
    where the loss is.
    """

    parts = ("descent", "batches", "references")
    progress_keys = ("loss", "accuracy", "held_out_accuracy")

    def __init__(self, policy, reference, examples: list, held_out: list, config: DirectAlignmentConfig):
        require_examples(examples, held_out)
        self.config, self.objective, self.kind = config, config.objective, DATA[config.objective.data]
        require_kind(self.objective.data, [*examples, *held_out], loss=config.loss)
        self.policy, self.reference = without_dropout(policy), without_dropout(reference)
        self.examples, self.held_out = examples, held_out
        self.group_size = len(self.kind.completions(examples[0]))
        self.references = RememberedLogprobs(self.reference, count=len(examples), group_size=self.group_size)
        self.held_out_references = RememberedLogprobs(self.reference, count=len(held_out), group_size=self.group_size)
        self.batches = EpochBatches(self._lengths(examples), config.batch_size, seed=config.seed)
        self.total_steps = config.epochs * self.batches.per_epoch
        self.descent = Descent(
            policy,
            learning_rate=config.learning_rate,
            steps=self.total_steps,
            warmup_steps=config.warmup_steps,
            max_grad_norm=config.max_grad_norm,
        )

    def step(self) -> dict[str, float | None]:
        """One optimiser step; `margin` is the mean reward of better completions less that of worse ones.

        KTO adds its `reference_point` in nats. A share or mean over nothing is None, such as the accuracy of a batch in
        which all labels are alike.
        """
        self.step_number += 1
        indices = self.batches.next()
        examples = [self.examples[index] for index in indices]
        batch = self._collated(examples)
        scored = self._scored(batch, indices, self.references)
        common = self._common_inputs(examples)
        loss = self._losses(scored, examples, common).mean()
        learning_rate = self.descent.learning_rate
        grad_norm = self.descent.step(loss, trainer_step=self.step_number, batch=batch)
        due = self.step_number % self.config.evaluate_every == 0 or self.step_number == self.total_steps
        return {
            "step": self.step_number,
            "loss": loss.item(),
            **{name: value.item() for name, value in common.items()},
            **self._reward_statistics(self._rewards(scored), examples),
            "held_out_accuracy": _defined_mean(self.held_out_accuracies()) if due else None,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
        }

    def held_out_accuracies(self) -> Tensor:
        """How far the implied rewards agree with each held-out example, (N,) from 0 to 1, on the CPU."""
        return self.kind.accuracies(self.held_out_rewards(), self.held_out)

    @torch.no_grad()
    def held_out_rewards(self) -> Tensor:
        """Implied rewards of the completions of each held-out example, (N, K) on the CPU."""
        rewards, lengths = torch.empty(len(self.held_out), self.group_size), self._lengths(self.held_out)
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        for start in range(0, len(order), self.config.batch_size):
            indices = order[start : start + self.config.batch_size]
            batch = self._collated([self.held_out[index] for index in indices])
            rewards[indices] = self._rewards(self._scored(batch, indices, self.held_out_references)).cpu()
        return rewards

    def _scored(self, batch: Sequences, indices: list[int], references: RememberedLogprobs) -> Scored:
        logprobs = summed_logprobs(self.policy, batch, group_size=self.group_size)
        needed = self.objective.needs_reference
        return Scored(
            logprobs=logprobs,
            reference_logprobs=references.of(indices, batch) if needed else torch.zeros_like(logprobs),
            lengths=batch.completion_mask.sum(1).view_as(logprobs),
        )

    def _losses(self, scored: Scored, examples: list, common: Arguments) -> Tensor:
        """The loss of every example, (B,)."""
        directions = self.kind.directions(scored, examples)
        return sum(weight * self._loss_of(arguments | common) for weight, arguments in directions)

    def _loss_of(self, arguments: Arguments) -> Tensor:
        inputs = {name: arguments[name] for name in self.objective.inputs}
        losses = self.objective.loss(**inputs, **self.config.settings)
        if self.config.nll_coef == 0:
            return losses
        return losses + self.config.nll_coef * nll_loss(arguments["chosen_logprobs"], arguments["chosen_lengths"])

    @torch.no_grad()
    def _common_inputs(self, examples: list) -> Arguments:
        """What a loss takes of the whole batch: KTO's `reference_point`, () nats, 0 where the batch holds but one."""
        if "reference_point" not in self.objective.inputs:
            return {}
        if len(examples) == 1:
            return {"reference_point": torch.zeros((), device=self.policy.device)}
        batch = self._collated(self.kind.mismatched(examples, context=model_context(self.policy)))
        sums = [summed_logprobs(model, batch, group_size=1)[:, 0] for model in (self.policy, self.reference)]
        return {"reference_point": direct.kto_reference_point(*sums)}

    def _rewards(self, scored: Scored) -> Tensor:
        """Implied rewards, (B, K)."""
        ratio = log_ratio(scored.logprobs, scored.reference_logprobs).detach()
        reward = per_token(ratio, scored.lengths) if self.objective.normalised else ratio
        return self.config.settings.get("beta", 1.0) * reward

    def _reward_statistics(self, rewards: Tensor, examples: list) -> dict[str, float | None]:
        better, worse = map(_defined_mean, self.kind.better_and_worse(rewards, examples))
        return {
            "accuracy": _defined_mean(self.kind.accuracies(rewards, examples)),
            "margin": None if better is None or worse is None else better - worse,
            "chosen_reward": better,
            "rejected_reward": worse,
        }

    def _collated(self, examples: list) -> Sequences:
        batch = collate_examples(self.objective.data, examples, pad_id=self.policy.config.pad_token_id)
        return batch.to(self.policy.device)

    def _lengths(self, examples: list) -> list[int]:
        """Tokens of each example's longest sequence."""
        return [len(example.prompt_ids) + max(map(len, self.kind.completions(example))) for example in examples]


def _defined_mean(values: Tensor) -> float | None:
    """The mean, None where it has no meaning: of nothing, or where a value is NaN."""
    mean = values.float().mean().item()
    return None if math.isnan(mean) else mean
