"""The nouns that flow between stages.

Every batch of text has one layout: prompts left-padded to P tokens, completions right-padded to R tokens, so the
completion is always `tokens[:, P:]` and nobody recomputes indices. Masks are True where a position counts.

>>> # prompt "a b" and "c", completions "x <eos>" and "y z <eos>", pad "."
>>> # tokens          [[a b x <eos> .], [. c y z <eos>]]      P = 2, R = 3
>>> # attention_mask  [[1 1 1 1 0],     [0 1 1 1 1]]
>>> # completion_mask [[1 1 0],         [1 1 1]]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, Self

from workbench import WorkbenchError

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 3.4e38  # of a reward, as of fp32


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """B prompts with their completions."""

    tokens: Tensor  # (B, P+R) int64
    attention_mask: Tensor  # (B, P+R) bool, False on both kinds of padding
    completion_mask: Tensor  # (B, R) bool, True up to and including EOS

    @property
    def prompt_length(self) -> int:
        """P, the padded prompt length in tokens."""
        return self.tokens.shape[1] - self.completion_mask.shape[1]

    @property
    def completions(self) -> Tensor:
        """Completion tokens, (B, R)."""
        return self.tokens[:, self.prompt_length :]

    @property
    def counted(self) -> Tensor:
        """The completion tokens that count, row by row, (N,)."""
        return self.completions[self.completion_mask]

    def __len__(self) -> int:
        """B, the number of rows."""
        return self.tokens.shape[0]

    def rows(self, index: Any) -> Self:
        """The chosen rows of every field; `index` is a slice, a list or an index tensor."""
        return replace(self, **{each.name: getattr(self, each.name)[index] for each in fields(self)})

    def to(self, device: Any) -> Self:
        """The same rows on another device."""
        return replace(self, **{each.name: getattr(self, each.name).to(device) for each in fields(self)})

    def trimmed(self) -> Self:
        """The same rows without the columns that are padding in all of them (at least one completion column stays)."""
        start = int(self.attention_mask.any(0).int().argmax())
        stop = max(1, int(self.completion_mask.any(0).sum()))
        prompt, width = self.prompt_length, self.completion_mask.shape[1]
        cut = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if value.dim() == 2:
                value = value[:, :stop] if value.shape[1] == width else value[:, start : prompt + stop]
            cut[each.name] = value
        return replace(self, **cut)


@dataclass(frozen=True, kw_only=True)
class Rollout(Sequences):
    """Sequences that a policy sampled."""

    logprobs: Tensor  # (B, R) nats under the sampling policy at its temperature, 0 where not counted
    finished: Tensor  # (B,) bool, False where the length limit came before EOS


@dataclass(frozen=True, kw_only=True)
class ScoredRollout(Rollout):
    """A rollout with what the reward and the reference policy say about it."""

    reference_logprobs: Tensor  # (B, R) nats under the reference at the same temperature, 0 where not counted
    scores: Tensor  # (B,) reward of the whole completion


@dataclass(frozen=True, kw_only=True)
class PromptExample:
    """A prompt to sample from."""

    prompt_ids: list[int]
    row: dict[str, Any]  # the dataset row it came from: `prompt` and every other column


@dataclass(frozen=True, kw_only=True)
class CompletionExample:
    """A demonstration."""

    prompt_ids: list[int]
    completion_ids: list[int]  # ends with EOS unless it was truncated


@dataclass(frozen=True, kw_only=True)
class PairExample:
    """Two completions of one prompt, the first preferred."""

    prompt_ids: list[int]
    chosen_ids: list[int]  # ends with EOS unless it was truncated
    rejected_ids: list[int]  # ends with EOS unless it was truncated
    margin: float  # how much better, 0 where nobody said
    preference: float = 1.0  # probability that the chosen one is better: .5 is a tie
    rival: str = ""  # "chosen" or "rejected": which one the reference wrote, where one of them is known to be its own


@dataclass(frozen=True, kw_only=True)
class LabelledExample:
    """A completion with a number that somebody gave it."""

    prompt_ids: list[int]
    completion_ids: list[int]  # ends with EOS unless it was truncated
    label: float  # 1 or 0 (desirable or not, correct or not), or a rating


@dataclass(frozen=True, kw_only=True)
class RankingExample:
    """K >= 2 completions of one prompt in somebody's order."""

    prompt_ids: list[int]
    completion_ids: list[list[int]]  # K completions, each ending with EOS unless it was truncated
    ranking: list[int]  # indices of all K, best first


@dataclass(frozen=True, kw_only=True)
class StepwiseExample:
    """A completion in S >= 1 steps, each judged."""

    prompt_ids: list[int]
    step_ids: list[list[int]]  # S steps, in order; the last ends with EOS unless it was truncated
    labels: list[bool]  # whether each step is right


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One labeler's verdict on the completions of one item. The store keeps these; training rows are made from them.

    value, where indices are of the unshuffled completions and "skip" is possible everywhere:
      pair        0, 1 or "tie"
      ranking     groups of indices, best first, ties in one group: [[2], [0, 3], [1]]
      best_of     index of the best
      rating      one number per completion, or None for one that was not rated: [6, None]
      correction  text that should have been written
    details, only what was said: strength (pair: 1 negligibly to 4 significantly better), flags (rating: a list of names
    per completion),
    completion (correction: index of the one corrected).
    """

    item_id: str
    labeler: str
    kind: str  # of `workbench.feedback.kinds`
    value: Any
    shown_order: list[int]  # shown_order[position] = index of the completion shown there
    elapsed_ms: int = 0  # milliseconds between showing and judging, 0 where nobody measured
    note: str = ""
    event_id: str  # unique per judgement, so that a repeated message is stored once
    details: Mapping[str, Any] = field(default_factory=dict)
    repeat: int = 0  # 1 where a labeler judges the same item a second time, to measure self-consistency


def is_message(value: Any) -> bool:
    """Whether it has a role and content, both of them text."""
    return isinstance(value, Mapping) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def scores_of(rewards: Mapping[str, Callable], texts: tuple[list, list], columns: Mapping) -> dict[str, list[float]]:
    """What each reward, called with `texts` (prompts, completions) and `columns`, says of every completion.

    A list, array or tensor of numbers; WorkbenchError names the reward that fails, and the row that it gave no finite
    number. One that has `explained` says by name what its parts say, too: NaN where a part was not asked.
    """
    scores: dict[str, list[float]] = {}
    for name, reward in rewards.items():
        own, parts = _scores(name, reward, texts, columns)
        scores |= {name: own} | {part: said for part, said in parts.items() if part not in rewards}
    return scores


def known_mean(values: Iterable[float]) -> float:
    """The mean of the values that are not NaN, NaN of none."""
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else math.nan


def _scores(name: str, reward: Callable, texts: tuple[list, list], columns: Mapping) -> tuple[list[float], Mapping]:
    code, completions = getattr(reward, "__code__", None), texts[1]
    named = f"{code.co_filename}:{reward.__qualname__}" if code else f"{name} ({type(reward).__name__})"
    own = f"The reward {named}"
    try:
        explained = getattr(reward, "explained", None)
        given, parts = explained(*texts, **columns) if explained else (reward(*texts, **columns), {})
        given = list(given) if isinstance(given, Iterator) else given  # a generator fails as it is read
    except WorkbenchError:
        raise
    except (Exception, SystemExit) as error:  # of somebody's own function
        said = f"{type(error).__name__}: {error}"
        where = _failing(reward, texts, columns) or f"{len(completions)} completions, though on none by itself"
        raise WorkbenchError(
            f"{own} failed on {where} ({said:.200}): correct it; the columns that it is given are {', '.join(columns)}."
        ) from error
    values = given.tolist() if hasattr(given, "tolist") else given
    values = values if isinstance(values, list | tuple) else None
    if values is None or len(values) != len(completions):
        gave = f"{len(values)} numbers" if values is not None else f"{type(given).__name__} {str(given)[:40]!r}"
        asked = f"for {len(completions)} completions: return a list of one number for each"
        raise WorkbenchError(f"{own} gave {gave} {asked}.")
    values = [value.item() if getattr(value, "ndim", 1) == 0 else value for value in values]
    for row, value in enumerate(values):
        if not isinstance(value, Real) or not abs(value) < LARGEST:  # NaN is not less either
            raise WorkbenchError(
                f"{own} gave {str(value)[:40]!r} ({type(value).__name__}) for {_answer(row, texts)}: "
                "return a finite number, an int or a float, for each."
            )
    return [float(value) for value in values], parts


def _failing(reward: Callable, texts: tuple[list, list], columns: Mapping) -> str:
    """The first row on which a reward fails by itself, "" where there is none."""
    for row in range(len(texts[1])):
        try:
            own = {name: each[row : row + 1] for name, each in columns.items()}
            said = reward(*(each[row : row + 1] for each in texts), **own)
            list(said if isinstance(said, Iterator) else ())
        except (Exception, SystemExit):
            return _answer(row, texts)
    return ""


def _answer(row: int, texts: tuple[list, list]) -> str:
    prompt, completion = (str(each[row])[:60] for each in texts)
    return f"row {row}, the completion {completion!r} of the prompt {prompt!r}"
