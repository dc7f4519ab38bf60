"""Direct alignment: a policy from people's judgements without a reward model. Rafailov et al. 2023 and their kin."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from workbench import WorkbenchError
from workbench.losses import direct
from workbench.losses.reductions import log_ratio, per_token
from workbench.models import ranks
from workbench.models.load import model_context, without_dropout
from workbench.models.scoring import completion_logprobs
from workbench.models.tokens import batches_by_length
from workbench.records import LabelledExample, Sequences
from workbench.trainers.descent import Descent, EpochBatches, Share, Stateful, require_examples
from workbench.trainers.feedback_kinds import Objective, Tensors, require_kind
from workbench.trainers.settings import Settings, require_in, require_positive


@dataclass(frozen=True, kw_only=True)
class Loss(Objective):
    """A row of LOSSES."""

    title: str
    settings: Mapping[str, float]  # its keyword arguments as they did well on the embedded world
    learning_rate: float = 2e-4  # peak, at width 64
    nll_coef: float = 0.0  # weight of the chosen completion's negative log-likelihood
    paper: str

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


_BETA, _NOISY = {"beta": 0.1}, {"beta": 0.1, "label_smoothing": 0.1}
_KTO = {"beta": 0.5, "desirable_weight": 1.0, "undesirable_weight": 1.0}
_APO, _F_DPO = "D'Oosterlinck et al. 2024", "Wang et al. 2023"

LOSSES = {
    "dpo": Loss(
        title="DPO", loss=direct.dpo_loss, settings={"beta": 0.3}, learning_rate=3e-4, paper="Rafailov et al. 2023"
    ),
    "xpo": Loss(
        title="XPO",
        loss=direct.xpo_loss,
        settings={"beta": 0.3, "alpha": 0.01},
        learning_rate=3e-4,
        paper="Xie et al. 2024",
    ),
    "conservative_dpo": Loss(
        title="conservative DPO", loss=direct.conservative_dpo_loss, settings=_NOISY, paper="Mitchell 2023"
    ),
    "robust_dpo": Loss(title="robust DPO", loss=direct.robust_dpo_loss, settings=_NOISY, paper="Chowdhury et al. 2024"),
    "ipo": Loss(title="IPO", loss=direct.ipo_loss, settings=_BETA, paper="Azar et al. 2023"),
    "ipo_normalised": Loss(
        title="IPO per token", loss=direct.ipo_normalised_loss, settings={"beta": 1.0}, paper="Azar et al. 2023"
    ),
    "hinge": Loss(title="hinge on DPO's reward", loss=direct.hinge_loss, settings=_BETA, paper="Liu et al. 2023"),
    "slic": Loss(title="SLiC", loss=direct.slic_loss, settings={"delta": 1.0}, nll_coef=10.0, paper="Zhao et al. 2023"),
    "kto": Loss(title="KTO", loss=direct.kto_loss, settings=_KTO, data="labelled", paper="Ethayarajh et al. 2024"),
    "orpo": Loss(title="ORPO", loss=direct.orpo_loss, settings={"beta": 1.0}, nll_coef=1.0, paper="Hong et al. 2024"),
    "simpo": Loss(
        title="SimPO", loss=direct.simpo_loss, settings={"beta": 2.0, "gamma": 1.0}, paper="Meng et al. 2024"
    ),
    "cpo": Loss(title="CPO", loss=direct.cpo_loss, settings=_BETA, nll_coef=1.0, paper="Xu et al. 2024"),
    "apo_zero": Loss(title="APO-zero", loss=direct.apo_zero_loss, settings=_BETA, paper=_APO),
    "apo_down": Loss(  # it lowers chosen completions without end: at 2e-4 the policy leaves the language
        title="APO-down", loss=direct.apo_down_loss, settings=_BETA, learning_rate=5e-5, paper=_APO
    ),
    "rrhf": Loss(
        title="RRHF", loss=direct.rrhf_loss, settings={}, nll_coef=10.0, data="rankings", paper="Yuan et al. 2023"
    ),
    "f_dpo_forward_kl": Loss(title="f-DPO, forward KL", loss=direct.forward_kl_dpo_loss, settings=_BETA, paper=_F_DPO),
    "f_dpo_js": Loss(title="f-DPO, Jensen-Shannon", loss=direct.jensen_shannon_dpo_loss, settings=_BETA, paper=_F_DPO),
    "f_dpo_alpha": Loss(
        title="f-DPO, alpha-divergence", loss=direct.alpha_dpo_loss, settings=_BETA | {"alpha": 0.5}, paper=_F_DPO
    ),
    "sft_chosen": Loss(
        title="fine-tuning on chosen", loss=direct.nll_loss, settings={}, paper="control without any comparison"
    ),
}
SETTINGS = sorted({name for objective in LOSSES.values() for name in objective.settings})
RANGES = {"label_smoothing": (0, math.nextafter(0.5, 0)), "alpha": (0, 1), "gamma": (0, 1e6)}  # others are above 0


@dataclass(frozen=True, kw_only=True)
class DirectAlignmentConfig(Settings):
    """How a policy is aligned directly; None takes what LOSSES says, and is all that is left to a loss without it."""

    loss: str = "dpo"  # row of LOSSES
    beta: float | None = None  # strength of the implied KL penalty, per nat; larger stays closer to the reference
    label_smoothing: float | None = None  # probability that a label is wrong, below .5
    gamma: float | None = None  # margin that SimPO asks of the reward
    delta: float | None = None  # nats by which SLiC's chosen completion should be likelier
    alpha: float | None = None  # of the alpha-divergence: 1 is KL from the reference, 0 its reverse; of XPO's optimism
    desirable_weight: float | None = None  # of desirable completions in KTO
    undesirable_weight: float | None = None  # of undesirable ones; balances unequal numbers
    nll_coef: float | None = None  # weight of the chosen completion's negative log-likelihood, which every loss may add
    epochs: int = 1  # passes over the examples
    batch_size: int = 64  # examples per step
    learning_rate: float | None = None  # peak, at width 64; 5e-7 .. 5e-6 for large pretrained models
    evaluate_every: int = 25  # steps between measurements on held-out examples
    seed: int = 0  # order of the examples

    def __post_init__(self):
        super().__post_init__()
        if self.loss not in LOSSES:
            raise WorkbenchError(f"There is no loss {self.loss!r}: choose one of {', '.join(LOSSES)}.")
        self._refuse_what_the_loss_does_not_take()
        for name, default in self.objective.defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        require_positive(self, "epochs", "batch_size", "learning_rate", "max_grad_norm", "evaluate_every")
        require_in(0, 1e6, self, "nll_coef")
        for name in self.settings:
            if name in RANGES:
                require_in(*RANGES[name], self, name)
            else:
                require_positive(self, name)
        if "rival_logprobs" in self.objective.inputs and self.alpha >= self.beta:
            raise WorkbenchError(
                f"alpha is {self.alpha:g} but beta is {self.beta:g}: {self.loss!r} would make what the reference wrote "
                f"ever unlikelier, even where it won; give an alpha far below beta, such as {self.beta / 30:.1g}."
            )
        if "reference_point" in self.objective.inputs and self.batch_size < 2:
            raise WorkbenchError(
                f"batch_size is {self.batch_size}, but the loss {self.loss!r} compares each completion with others of "
                "its batch: give at least 2."
            )

    @property
    def objective(self) -> Loss:
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
        if self.nll_coef and not self.objective.kind.comparative:
            raise WorkbenchError(f"The loss {self.loss!r} knows no chosen completion: leave nll_coef at 0.")


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


def mismatched(examples: list[LabelledExample], *, context: int) -> list[LabelledExample]:
    """Each prompt with the completion before it in the batch, cut to `context` tokens in all (0 = no limit)."""
    return [
        replace(example, completion_ids=before.completion_ids[: context - len(example.prompt_ids) if context else None])
        for example, before in zip(examples, [examples[-1], *examples[:-1]], strict=True)
    ]


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
        self.config, self.objective, self.kind = config, config.objective, config.objective.kind
        require_kind(self.objective.data, [*examples, *held_out], loss=config.loss)
        if "rival_logprobs" in self.objective.inputs and not all(pair.rival for pair in examples):
            raise WorkbenchError(
                f"The loss {config.loss!r} has to know which completion of a pair the reference wrote: give a column "
                "'rival' (chosen or rejected), as 03_preferences writes it where rival_model is set."
            )
        self.policy, self.reference = without_dropout(policy), without_dropout(reference)
        self.examples, self.held_out = examples, held_out
        self.group_size = len(self.kind.completions(examples[0]))
        self.references = RememberedLogprobs(self.reference, count=len(examples), group_size=self.group_size)
        self.held_out_references = RememberedLogprobs(self.reference, count=len(held_out), group_size=self.group_size)
        self.batches = EpochBatches(list(map(self.kind.length, examples)), config.batch_size, seed=config.seed)
        self.total_steps = config.epochs * self.batches.per_epoch
        self.descent = Descent(policy, config, steps=self.total_steps)

    def step(self) -> dict[str, float | None]:
        """One optimiser step; `margin` is the mean reward of better completions less that of worse ones.

        KTO adds its `reference_point` in nats. A share or mean over nothing is None, such as the accuracy of a batch in
        which all labels are alike.
        """
        self.step_number += 1
        indices = self.batches.next()
        common = self._common_inputs([self.examples[index] for index in indices])  # of the whole batch
        sizes = [self.batches.lengths[index] * self.group_size for index in indices]
        parts, learning_rate = self.micro_batches(indices, sizes), self.descent.learning_rate
        share = partial(self._share, len(indices), common)
        said, grad_norm = self.descent.step(parts, share, trainer_step=self.step_number)
        examples = [self.examples[index] for index in chain(*parts)]
        return {
            "step": self.step_number,
            "loss": sum(loss for loss, _ in said),
            **{name: value.item() for name, value in common.items()},
            **self._reward_statistics(torch.cat([rewards for _, rewards in said]), examples),
            "held_out_accuracy": _defined_mean(self.held_out_accuracies()) if self.due else None,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
        }

    def _share(self, count: int, common: Tensors, indices: list[int]) -> Share:
        """What some examples, all completions of each, add to the mean loss of `count`; their rows, implied rewards."""
        examples = [self.examples[index] for index in indices]
        batch = self._collated(examples)
        scored = self._scored(batch, indices, self.references)
        return self._losses(scored, examples, common).sum() / count, batch, self._rewards(scored)

    def held_out_accuracies(self) -> Tensor:
        """How far the implied rewards agree with each held-out example, (N,) from 0 to 1, on the CPU."""
        return self.kind.accuracies(self.kind.arguments({"rewards": self.held_out_rewards()}, self.held_out))

    @torch.no_grad()
    def held_out_rewards(self) -> Tensor:
        """Implied rewards of the completions of each held-out example, (N, K) on the CPU."""

        def some(indices: list[int]) -> Tensor:
            batch = self._collated([self.held_out[index] for index in indices])
            return self._rewards(self._scored(batch, indices, self.held_out_references)).cpu()

        batches = batches_by_length(list(map(self.kind.length, self.held_out)), self.config.batch_size)
        rewards = torch.cat(ranks.shared(batches, some)).cpu()
        return rewards[torch.tensor(list(chain(*batches))).argsort()]

    def _scored(self, batch: Sequences, indices: list[int], references: RememberedLogprobs) -> Tensors:
        """K completions of each of B prompts under policy and reference, (B, K) nats, and their tokens."""
        logprobs = summed_logprobs(self.policy, batch, group_size=self.group_size)
        needed = self.objective.needs_reference
        return {
            "logprobs": logprobs,
            "reference_logprobs": references.of(indices, batch) if needed else torch.zeros_like(logprobs),
            "lengths": batch.completion_mask.sum(1).view_as(logprobs),
        }

    def _losses(self, scored: Tensors, examples: list, common: Tensors) -> Tensor:
        """The loss of every example, (B,)."""
        directions = self.kind.directions(scored, examples)
        return sum(weight * self._loss_of(arguments | common) for weight, arguments in directions)

    def _loss_of(self, arguments: Tensors) -> Tensor:
        losses = self.objective.losses(arguments, self.config.settings)
        if self.config.nll_coef == 0:
            return losses
        return losses + self.config.nll_coef * direct.nll_loss(
            arguments["chosen_logprobs"], arguments["chosen_lengths"]
        )

    @torch.no_grad()
    def _common_inputs(self, examples: list) -> Tensors:
        """What a loss takes of the whole batch: KTO's `reference_point`, () nats, 0 where the batch holds but one."""
        if "reference_point" not in self.objective.inputs:
            return {}
        if len(examples) == 1:
            return {"reference_point": torch.zeros((), device=self.policy.device)}
        batch = self._collated(mismatched(examples, context=model_context(self.policy)))
        sums = [summed_logprobs(model, batch, group_size=1)[:, 0] for model in (self.policy, self.reference)]
        return {"reference_point": direct.kto_reference_point(*sums)}

    def _rewards(self, scored: Tensors) -> Tensor:
        """Implied rewards, (B, K)."""
        ratio = log_ratio(scored["logprobs"], scored["reference_logprobs"]).detach()
        reward = per_token(ratio, scored["lengths"]) if self.objective.normalised else ratio
        return self.config.settings.get("beta", 1.0) * reward

    def _reward_statistics(self, rewards: Tensor, examples: list) -> dict[str, float | None]:
        given = self.kind.arguments({"rewards": rewards}, examples)
        better, worse = map(_defined_mean, self.kind.better_and_worse(given))
        return {
            "accuracy": _defined_mean(self.kind.accuracies(given)),
            "margin": None if better is None or worse is None else better - worse,
            "chosen_reward": better,
            "rejected_reward": worse,
        }

    def _collated(self, examples: list) -> Sequences:
        return self.kind.collated(examples, pad_id=self.policy.config.pad_token_id).to(self.policy.device)


def _defined_mean(values: Tensor) -> float | None:
    """The mean, None where it has no meaning: of nothing, or where a value is NaN."""
    mean = values.float().mean().item()
    return None if math.isnan(mean) else mean
