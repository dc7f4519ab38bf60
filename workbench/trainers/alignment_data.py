"""Three kinds of feedback as the arguments of a direct loss: pairs, labelled completions, rankings.

Every example is one prompt with K completions (1, 2 or more). A kind says which completions those are, what a loss
learns about them, and whether rewards put them in the order that was asked for.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workbench import WorkbenchError
from workbench.models.examples import labelled_examples, pair_examples, ranking_examples
from workbench.models.scoring import completion_logprobs
from workbench.models.tokens import collate_groups
from workbench.records import LabelledExample, PairExample, RankingExample, Sequences

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
        return task.preferences(count, ties=ties)

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
        return task.labelled(count)

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
        return task.rankings(count)

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
