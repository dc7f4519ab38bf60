"""Implicit language Q-learning: a policy from labelled text alone, without a sample of its own. Snell et al. 2023."""

from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from workbench import WorkbenchError
from workbench.losses.advantages import masked_mean
from workbench.losses.offline import conservative_loss, expectile_loss, td_loss
from workbench.models import ranks
from workbench.models.load import frozen, seeded, without_dropout
from workbench.models.scoring import completion_states
from workbench.models.tokens import collate
from workbench.models.value_guided import guide, lowest
from workbench.records import LabelledExample, Sequences
from workbench.trainers.descent import Descent, EpochBatches, Share, Stateful, require_examples
from workbench.trainers.feedback_kinds import LABELLED
from workbench.trainers.settings import Settings, require_in, require_positive


@dataclass(frozen=True, kw_only=True)
class IlqlConfig(Settings):
    """How values are learned, and how strongly they guide."""

    beta: float = 16.0  # logits per unit of reward by which values move the reference; training does not depend on it
    expectile: float = 0.7  # of the values: .5 is the mean over the data, towards 1 the best that is in it
    gamma: float = 0.99  # discount per token
    conservatism: float = 0.01  # weight of the cross-entropy that keeps Q of unwritten tokens low
    polyak: float = 0.2  # share of the way that the target heads go after each step; Snell et al. 2023 take .005
    epochs: int = 2  # passes over the examples
    batch_size: int = 64  # completions per step
    learning_rate: float = 1e-3  # peak, at width 64; 1e-5 .. 1e-4 for large pretrained models
    evaluate_every: int = 25  # steps between measurements on held-out examples
    seed: int = 0  # first weights of the heads, order of the examples

    def __post_init__(self):
        super().__post_init__()
        require_positive(
            self, "beta", "epochs", "batch_size", "learning_rate", "max_grad_norm", "polyak", "evaluate_every"
        )
        require_in(0.5, 1, self, "expectile")
        require_in(0, 1, self, "gamma", "polyak")
        require_in(0, 1e6, self, "conservatism")
        if self.precision != "fp32":
            raise WorkbenchError(f"precision is {self.precision!r}, but ILQL saves its reference, too: take fp32.")

    @property
    def title(self) -> str:
        """The method with its settings, for figures and tables."""
        return f"ILQL, beta {self.beta:g}"


class IlqlTrainer(Stateful):
    """Learns Q and V of every token from completions with a number each; `policy` is the reference under them.

    The number, 1 or 0 or a rating, is the reward of the last token; every other token's is 0, and the end of a text is
    terminal whether EOS or the length limit made it. `values` starts from the same weights as `reference`; its trunk is
    trained with the heads. Left out: values of whole utterances, and a policy that is distilled from the values.
    """

    parts = ("descent", "targets", "batches")
    progress_keys = ("loss", "accuracy", "held_out_accuracy")

    def __init__(
        self, values, reference, examples: list[LabelledExample], held_out: list[LabelledExample], config: IlqlConfig
    ):
        require_examples(examples, held_out)
        if hasattr(values, "merge_and_unload"):
            raise WorkbenchError("ILQL trains values beside the policy and no adapters: set lora_rank to 0.")
        self.examples, self.held_out, self.config = examples, held_out, config
        with seeded(config.seed):
            self.policy = guide(frozen(reference), without_dropout(values), beta=config.beta)
        self.targets = frozen(self.policy.target_heads)
        self.boundary = sum(example.label for example in examples) / len(examples)  # a better label than this is good
        self.batches = EpochBatches(list(map(LABELLED.length, examples)), config.batch_size, seed=config.seed)
        self.total_steps = config.epochs * self.batches.per_epoch
        self.descent = Descent(self.policy, config, steps=self.total_steps)

    def step(self) -> dict[str, float | None]:
        """One optimiser step; losses per token, `chosen_reward` and `rejected_reward` the expected ones of the last."""
        self.step_number += 1
        parts = self._parts([self.examples[index] for index in self.batches.next()])
        tokens, learning_rate = sum(len(each.completion_ids) for each in chain(*parts)), self.descent.learning_rate
        said, grad_norm = self.descent.step(parts, partial(self._share, tokens), trainer_step=self.step_number)
        self._follow()
        losses, last_values = zip(*(each for _, each in said), strict=True)
        return {
            "step": self.step_number,
            "loss": sum(loss for loss, _ in said),
            **{name: sum(part[name] for part in losses).item() for name in losses[0]},
            **self._told_apart(torch.cat(last_values), list(chain(*parts))),
            "held_out_accuracy": self.held_out_accuracies().mean().item() if self.due else None,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
        }

    @torch.no_grad()
    def held_out_accuracies(self) -> Tensor:
        """Whether the value of each held-out completion lies on the side of its label, (N,) 1 or 0, on the CPU."""
        size = self.config.batch_size
        batches = (self._parts(self.held_out[start : start + size]) for start in range(0, len(self.held_out), size))

        def right(part: list[LabelledExample]) -> Tensor:
            return self._right(self._losses(self._batch(part), part)[1], part)

        return torch.cat(ranks.shared(list(chain(*batches)), right)).cpu()

    def _parts(self, examples: list[LabelledExample]) -> list[list[LabelledExample]]:
        """The completions of a batch that go through the model at a time."""
        return self.micro_batches(examples, list(map(LABELLED.length, examples)))

    def _share(self, tokens: int, part: list[LabelledExample]) -> Share:
        """What a part adds to the loss, by its share of the tokens; its rows; its share of each loss, its values."""
        batch = self._batch(part)
        losses, last_values = self._losses(batch, part)
        losses = {name: loss * (int(batch.completion_mask.sum()) / tokens) for name, loss in losses.items()}
        loss = losses["q_loss"] + losses["v_loss"] + self.config.conservatism * losses["conservative_loss"]
        return loss, batch, ({name: each.detach() for name, each in losses.items()}, last_values.detach())

    def _losses(self, batch: Sequences, examples: list[LabelledExample]) -> tuple[dict[str, Tensor], Tensor]:
        """Means over the tokens, and the target network's Q of each completion's last token, (B,)."""
        mask, tokens = batch.completion_mask, batch.completions.masked_fill(~batch.completion_mask, 0)
        states = completion_states(self.policy.values, batch)
        rewards, is_last = _terminal_rewards(mask, examples)
        values = self.policy.v_head(states)[..., 0]
        next_values = torch.where(is_last, 0, values[:, 1:])
        targets = _of(lowest(self.targets, states[:, :-1]), tokens)
        q_values = [head(states[:, :-1]) for head in self.policy.q_heads]
        td_losses = sum(
            td_loss(_of(q_value, tokens), rewards, next_values, gamma=self.config.gamma) for q_value in q_values
        )
        losses = {
            "q_loss": masked_mean(td_losses, mask),
            "v_loss": masked_mean(expectile_loss(targets, values[:, :-1], expectile=self.config.expectile), mask),
            "conservative_loss": masked_mean(sum(conservative_loss(q_value, tokens) for q_value in q_values), mask),
        }
        return losses, targets[is_last].detach()

    @torch.no_grad()
    def _follow(self) -> None:
        """The target heads come a little closer to the trained ones."""
        pairs = zip(self.targets.parameters(), self.policy.q_heads.parameters(), strict=True)
        for target, trained in pairs:
            target.lerp_(trained, self.config.polyak)

    def _told_apart(self, last_values: Tensor, examples: list[LabelledExample]) -> dict[str, float | None]:
        good = self._good(examples)
        parts = last_values[good], last_values[~good]
        chosen, rejected = (part.mean().item() if len(part) else None for part in parts)
        return {
            "accuracy": self._right(last_values, examples).mean().item(),
            "margin": None if chosen is None or rejected is None else chosen - rejected,
            "chosen_reward": chosen,
            "rejected_reward": rejected,
        }

    def _right(self, last_values: Tensor, examples: list[LabelledExample]) -> Tensor:
        return ((last_values > self.boundary) == self._good(examples)).float()

    def _good(self, examples: list[LabelledExample]) -> Tensor:
        return torch.tensor([example.label > self.boundary for example in examples], device=self.policy.device)

    def _batch(self, examples: list[LabelledExample]) -> Sequences:
        prompts, completions = [e.prompt_ids for e in examples], [e.completion_ids for e in examples]
        return collate(prompts, completions, pad_id=self.policy.config.pad_token_id).to(self.policy.device)


def _terminal_rewards(mask: Tensor, examples: list[LabelledExample]) -> tuple[Tensor, Tensor]:
    """Reward per token, (B, R), and where a completion's last token is, (B, R) bool."""
    is_last = mask & ~nn.functional.pad(mask[:, 1:], (0, 1))
    labels = torch.tensor([float(example.label) for example in examples], device=mask.device)
    return torch.where(is_last, labels[:, None], 0), is_last


def _of(values: Tensor, tokens: Tensor) -> Tensor:
    """The values (B, R, V) of the tokens (B, R) that were written."""
    return values.gather(-1, tokens[..., None])[..., 0]
