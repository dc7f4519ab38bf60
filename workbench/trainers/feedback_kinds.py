"""What training feedback there is, one record per kind; reward-model objectives and direct losses are rows over it.

Every example is one prompt with K completions (1, 2 or more) and what somebody said of them. A kind says how rows
become examples, what a loss is given by the names of its parameters, and how far rewards agree with what was said.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from workbench import WorkbenchError
from workbench.models.examples import labelled_examples, pair_examples, ranking_examples, stepwise_examples
from workbench.models.rewards import last_states, scalar_outputs
from workbench.models.tokens import collate_groups
from workbench.records import LabelledExample, PairExample, RankingExample, Sequences, StepwiseExample
from workbench.tasks.schemas import SCHEMAS

STEP_MARKS = 8  # more different last tokens of steps than this, and no rule could find the steps of new completions

Tensors = dict[str, Tensor]  # by name


def _whole(model, states: Tensor, sequences: Sequences, examples: list) -> Tensor:
    """The head's output at the last token of every completion."""
    return scalar_outputs(model, last_states(states, sequences))


def _as_they_are(model, examples: list, held_out: list) -> tuple[list, list]:
    return examples, held_out


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of feedback.

    `arguments` makes of values of the completions, such as {"rewards": (B, K) or flat (B*K,)}, what losses take: the
    same by name, chosen and rejected ones apart where there are such, and what was said of the examples. `fit`,
    `better_and_worse` and `accuracies` take what it makes of rewards.
    """

    title: str
    schema: str  # of the rows, a key of `columns.SCHEMAS`
    record: type  # of an example
    encode: Callable[..., list]  # (rows, tokenizer, **limits) -> examples
    completions: Callable[[Any], list[list[int]]]  # token ids of the K completions of an example
    liked: Callable[[Any], list[bool]]  # which of them are worth imitating
    arguments: Callable[[Tensors, list], Tensors]  # (values, examples) -> what losses take
    fit: Callable[[Tensors], dict[str, float]]  # how well a reward model's outputs, log-odds, agree with what was said
    terms: Callable[[Any], int] = lambda example: 1  # how many losses an example has
    measure: str = "accuracy"  # of those numbers the one to watch
    comparative: bool = False  # whether completions of one prompt are compared, so that one of them is the chosen one
    read: Callable[[Any, Tensor, Sequences, list], Tensor] = _whole  # (model, states, sequences, examples) -> rewards
    prepared: Callable[[Any, list, list], tuple[list, list]] = _as_they_are  # (model, examples, held out) -> both
    better_and_worse: Callable[[Tensors], tuple[Tensor, Tensor]] | None = None  # rewards; None: for no direct loss
    accuracies: Callable[[Tensors], Tensor] | None = None  # of each example, (B,) from 0 to 1

    @property
    def columns(self) -> str:
        """What its rows have."""
        return ", ".join(SCHEMAS[self.schema].columns)

    def length(self, example) -> int:
        """Tokens of the prompt and the longest completion."""
        return len(example.prompt_ids) + max(map(len, self.completions(example)))

    def collated(self, examples: list, *, pad_id: int) -> Sequences:
        """B examples with K completions each as B*K rows, those of one prompt side by side."""
        prompts = [example.prompt_ids for example in examples]
        return collate_groups(prompts, list(map(self.completions, examples)), pad_id=pad_id)

    def directions(self, values: Tensors, examples: list) -> list[tuple[Tensor | float, Tensors]]:
        """What a loss is computed on, each with its weight, (B,): also the flipped pairs where a label is soft."""
        stated = self.arguments(values, examples)
        preference = stated.get("preference")
        if preference is None or (preference == 1).all():
            return [(1.0, stated)]
        flipped = self.arguments({name: value.flip(1) for name, value in values.items()}, examples)
        flipped |= {name: value for name, value in stated.items() if name == "rival_logprobs"}  # no side of a label
        return [(preference, stated), (1 - preference, flipped)]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Something to minimise. What it needs is read off the names of its parameters."""

    loss: Callable[..., Tensor]  # of `losses`
    data: str = "pairs"  # key of KINDS

    @property
    def kind(self) -> Kind:
        """What it learns from."""
        return KINDS[self.data]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tensors that the loss takes."""
        parameters = inspect.signature(self.loss).parameters.values()
        return tuple(parameter.name for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY)

    def losses(self, arguments: Tensors, settings: dict[str, float]) -> Tensor:
        """The loss of every example (or step), (B,)."""
        return self.loss(**{name: arguments[name] for name in self.inputs}, **settings)


def _sided(name: str, side: str) -> str:
    """`reference_logprobs` of the chosen completion is `reference_chosen_logprobs`."""
    start, _, noun = name.rpartition("_")
    return "_".join(filter(None, (start, side, noun)))


# Pairs: two completions of one prompt, the chosen one first, perhaps with the probability that it is the better one


def _of_pairs(values: Tensors, pairs: list[PairExample]) -> Tensors:
    arguments = {}
    for name, value in values.items():
        sides = value.view(len(pairs), 2).unbind(1)
        arguments |= {_sided(name, side): of for side, of in zip(("chosen", "rejected"), sides, strict=True)}
    device = next(iter(values.values())).device
    margin = torch.tensor([pair.margin for pair in pairs], device=device)
    if "logprobs" in values and all(pair.rival for pair in pairs):
        second = torch.tensor([[pair.rival == "rejected"] for pair in pairs], device=device)
        arguments["rival_logprobs"] = values["logprobs"].gather(1, second.long())[:, 0]
    return arguments | {
        "margin": margin,
        "preference": torch.tensor([pair.preference for pair in pairs], device=device),
    }


def _pair_fit(given: Tensors) -> dict[str, float]:
    """Share of decided pairs in the right order, and the mean margin in log-odds."""
    chosen, rejected = given["chosen_rewards"], given["rejected_rewards"]
    right = (chosen > rejected)[given["preference"] != 0.5].float().mean().item()
    return {"accuracy": right, "margin": (chosen - rejected).mean().item()}


def _pair_accuracies(given: Tensors) -> Tensor:
    """Probability that the completion with the higher reward is the better one; a draw is wrong."""
    preference, chosen, rejected = given["preference"], given["chosen_rewards"], given["rejected_rewards"]
    return preference * (chosen > rejected) + (1 - preference) * (rejected > chosen)


# Rankings: K completions, equally many in all examples, in somebody's order


def _of_rankings(values: Tensors, rankings: list[RankingExample]) -> Tensors:
    """`chosen` is the best one."""
    values = {name: value.view(len(rankings), -1) for name, value in values.items()}
    ranking = torch.tensor([each.ranking for each in rankings], device=next(iter(values.values())).device)
    chosen = {_sided(name, "chosen"): value.gather(1, ranking[:, :1])[:, 0] for name, value in values.items()}
    return values | chosen | {"ranking": ranking, "best": ranking[:, 0]}


def _ordered(given: Tensors) -> Tensor:
    """Rewards, (B, K), the best completion's first."""
    return given["rewards"].gather(1, given["ranking"])


def _ranking_fit(given: Tensors) -> dict[str, float]:
    """Share of pairs within a prompt in the right order, and share of prompts whose best completion scores highest."""
    ordered = _ordered(given)
    right = (ordered[:, :, None] > ordered[:, None, :]).triu(diagonal=1).sum()
    pairs = len(ordered) * math.comb(ordered.shape[1], 2)
    first = (ordered.argmax(1) == 0).float().mean()
    return {"accuracy": right.item() / pairs, "best_accuracy": first.item()}


def _ranking_accuracies(given: Tensors) -> Tensor:
    """Share of the couples of a prompt's completions whose rewards are in the right order; a draw is not."""
    ordered = _ordered(given)
    better, worse = torch.triu_indices(ordered.shape[1], ordered.shape[1], 1, device=ordered.device)
    return (ordered[:, better] > ordered[:, worse]).float().mean(1)


# Completions with a number each: desirable or not, right or not, or a rating


def _of_labelled(values: Tensors, examples: list[LabelledExample]) -> Tensors:
    labels = torch.tensor([example.label for example in examples], device=next(iter(values.values())).device)
    values = {name: value.view(len(examples)) for name, value in values.items()}
    return values | {"labels": labels, "ratings": labels, "desirable": labels > 0}


def _label_fit(given: Tensors) -> dict[str, float]:
    """Share of completions on the right side of even odds."""
    return {"accuracy": ((given["rewards"] > 0) == given["desirable"]).float().mean().item()}


def _rating_fit(given: Tensors) -> dict[str, float]:
    """Pearson's correlation; NaN where either does not vary."""
    return {"correlation": torch.corrcoef(torch.stack([given["rewards"], given["ratings"]]))[0, 1].item()}


def _desirable_and_not(given: Tensors) -> tuple[Tensor, Tensor]:
    return given["rewards"][given["desirable"]], given["rewards"][~given["desirable"]]


def _label_accuracies(given: Tensors) -> Tensor:
    """Share of the completions with the other label that lie on the right side of each; NaN without any."""
    rewards, desirable = given["rewards"], given["desirable"]
    better, worse = (side.sort().values for side in _desirable_and_not(given))
    shares = torch.empty(len(rewards), device=rewards.device)
    shares[desirable] = torch.searchsorted(worse, rewards[desirable]) / len(worse) if len(worse) else torch.nan
    above = len(better) - torch.searchsorted(better, rewards[~desirable], right=True)
    shares[~desirable] = above / len(better) if len(better) else torch.nan
    return shares


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


def _of_steps(values: Tensors, examples: list[StepwiseExample]) -> Tensors:
    """Values and labels of steps, (B, S), and the mask of those that there are."""
    steps = [len(example.labels) for example in examples]
    device = next(iter(values.values())).device
    flat = {
        **values,
        "labels": torch.tensor([float(label) for each in examples for label in each.labels], device=device),
    }
    padded = {name: pad_sequence(value.split(steps), batch_first=True) for name, value in flat.items()}
    mask = torch.arange(max(steps)) < torch.tensor(steps)[:, None]
    return padded | {"mask": mask.to(device)}


def _at_steps(model, states: Tensor, sequences: Sequences, examples: list[StepwiseExample]) -> Tensor:
    """The head's output at the last token of every step."""
    steps = torch.tensor([len(example.labels) for example in examples])
    rows = torch.repeat_interleave(torch.arange(len(examples)), steps)
    ends = [torch.tensor([len(step) for step in example.step_ids]).cumsum(0) for example in examples]
    return scalar_outputs(model, states[rows.to(states.device), torch.cat(ends).to(states.device)])


def _step_fit(given: Tensors) -> dict[str, float]:
    """Share of steps on the right side of even odds."""
    right = (given["rewards"] > 0) == (given["labels"] > 0)
    return {"accuracy": right[given["mask"]].float().mean().item()}


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


LABELLED = Kind(
    title="labelled completions",
    schema="unpaired",
    record=LabelledExample,
    encode=labelled_examples,
    completions=lambda example: [example.completion_ids],
    liked=lambda example: [example.label > 0],
    arguments=_of_labelled,
    fit=_label_fit,
    better_and_worse=_desirable_and_not,
    accuracies=_label_accuracies,
)
KINDS = {
    "pairs": Kind(
        title="pairs",
        schema="preferences",
        record=PairExample,
        encode=pair_examples,
        completions=lambda pair: [pair.chosen_ids, pair.rejected_ids],
        liked=lambda pair: [pair.preference > 0.5, pair.preference < 0.5],
        arguments=_of_pairs,
        fit=_pair_fit,
        comparative=True,
        better_and_worse=lambda given: (given["chosen_rewards"], given["rejected_rewards"]),
        accuracies=_pair_accuracies,
    ),
    "rankings": Kind(
        title="rankings",
        schema="rankings",
        record=RankingExample,
        encode=ranking_examples,
        completions=lambda example: example.completion_ids,
        liked=lambda example: [index == example.ranking[0] for index in range(len(example.ranking))],
        arguments=_of_rankings,
        fit=_ranking_fit,
        comparative=True,
        better_and_worse=lambda given: (_ordered(given)[:, 0], _ordered(given)[:, 1:]),
        accuracies=_ranking_accuracies,
    ),
    "labelled": LABELLED,
    "ratings": replace(
        LABELLED,
        title="ratings",
        schema="ratings",
        encode=lambda rows, tokenizer, **limits: labelled_examples(rows, tokenizer, column="rating", **limits),
        fit=_rating_fit,
        measure="correlation",
        prepared=_standardised,
    ),
    "steps": Kind(
        title="judged steps",
        schema="stepwise",
        record=StepwiseExample,
        encode=stepwise_examples,
        completions=lambda example: [[token for step in example.step_ids for token in step]],
        liked=lambda example: [all(example.labels)],
        arguments=_of_steps,
        terms=lambda example: len(example.labels),
        fit=_step_fit,
        read=_at_steps,
        prepared=_with_step_marks,
    ),
}


def require_kind(kind: str, examples: list, *, loss: str) -> None:
    """WorkbenchError where examples are of another kind than the loss learns from, or of different sizes K."""
    wanted = KINDS[kind]
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
    wanted = KINDS[kind]
    try:
        train, held_out = task.rows(wanted.schema, count, ties=ties)
    except WorkbenchError as error:
        raise WorkbenchError(f"The loss {loss!r} learns from {wanted.title}: {error}") from error
    return train, *(wanted.encode(rows, tokenizer, **limits) for rows in (train, held_out))
