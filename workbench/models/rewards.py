"""Rewards: any callable `(prompts, completions, *, finished, **columns) -> list[float]`.

The learned one reads texts and conversations with its own tokenizer and template, so it can serve a policy with others.
What kind of reward model it is stands in the model's config, and what it doubts in its weights, so that both travel
with its folder.
"""

import inspect
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from math import nan
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from workbench import WorkbenchError
from workbench.analysis.ensembles import ensemble_scores
from workbench.models.chat_templates import Messages, rendered, turn_of
from workbench.models.load import frozen, load_own_tokenizer, load_reward_model, model_context
from workbench.models.scoring import completion_states, scalar_head
from workbench.models.tokens import batches_by_length, collate, collate_groups, cut_prompt, encode_texts
from workbench.records import Sequences, scores_of
from workbench.runs import NOTHING
from workbench.runs.files import file_and_function, resolve, shown
from workbench.runs.reward_names import SIGNATURE, read_rewards, require_reward, without_kind

Reward = Callable[..., list[float]]
RIDGE = 0.01  # lambda of the pessimistic reward, in mean squared feature differences: what nothing was compared on


class LearnedReward:
    """A reward model as a reward: its output at mean 0 and standard deviation 1 on reference samples.

    The shift and scale live in the model's config (`reward_mean`, `reward_std`), so that they travel with its folder.
    So do the limits of its training (`max_prompt_length`, `max_completion_length`), to which texts are cut again.
    """

    def __init__(self, model, tokenizer, *, max_length: int, batch_size: int = 512):
        self.model, self.tokenizer = _with_doubts(model), tokenizer
        self.max_length, self.batch_size = max_length, batch_size  # tokens of prompt + completion; rows per forward

    def __call__(self, prompts, completions, *, finished, prompt_messages=(), **columns) -> list[float]:
        raw = self.raw(prompts, completions, finished=finished, prompt_messages=prompt_messages)
        config = self.model.config
        return ((raw - getattr(config, "reward_mean", 0.0)) / getattr(config, "reward_std", 1.0)).tolist()

    @property
    def log_odds(self) -> float:
        """Of one unit of it: what differences of scores are multiplied with to be Bradley and Terry's."""
        return getattr(self.model.config, "reward_std", 1.0)

    def _own(self, text: str, messages: Messages) -> str | Messages:
        """The text where this template would write it, too, so that a completion goes on from it; else the messages."""
        marked = bool(turn_of(self.tokenizer).request.strip())  # or nobody would know it for a template's work
        return text if marked and rendered(messages, self.tokenizer, row=0, ask=True) == text else messages

    def _cut(self, prompt: list[int], completion: list[int]) -> tuple[list[int], list[int]]:
        """Both as training cut them where that is known, and in any case to `max_length`; a prompt keeps its end."""
        config, context = self.model.config, model_context(self.model) or float("inf")
        if getattr(config, "max_prompt_length", 0):
            prompt = cut_prompt(prompt, config.max_prompt_length, self.tokenizer)
            return prompt, completion[: min(config.max_completion_length, context - len(prompt))]
        room = min(self.max_length, context)
        completion = completion[: room - 1]  # the prompt keeps one token or more
        return cut_prompt(prompt, room - len(completion), self.tokenizer), completion

    @torch.no_grad()
    def raw(self, prompts, completions, *, finished, prompt_messages=()) -> Tensor:
        """Unnormalised outputs, (N,) fp32: the unit of the training loss, in which differences are log-odds.

        `prompts` and `completions` are texts, or conversations and what is added to them; `prompt_messages` are the
        conversations behind texts that another template may have written.
        """
        asked = {text: told for text, told in zip(prompts, prompt_messages, strict=False) if isinstance(told, list)}
        own = {text: self._own(text, told) for text, told in asked.items()}  # each is written once
        prompts = [own.get(text, text) for text in prompts] if own else list(prompts)
        read = encode_texts(self.tokenizer, prompts, list(completions), list(finished))
        prompt_ids, completion_ids = zip(*map(self._cut, *read), strict=True) if prompts else ((), ())
        lengths = [len(prompt) + len(completion) for prompt, completion in zip(prompt_ids, completion_ids, strict=True)]
        scores = torch.zeros(len(prompts))
        for rows in batches_by_length(lengths, self.batch_size):
            ids = [prompt_ids[row] for row in rows], [completion_ids[row] for row in rows]
            batch = collate(*ids, pad_id=self.tokenizer.pad_token_id)
            scores[rows] = raw_rewards(self.model, batch.to(self.model.device)).cpu()
        return scores


class EnsembleReward:
    """Several rewards as one: their mean, the worst of them, or their mean less what they disagree on.

    `how` and `coef` are those of `ensemble_scores` (Coste et al. 2023). Members are on one scale: each scores the
    starting policy's samples with mean 0 and standard deviation 1.
    """

    def __init__(self, members: list[Reward], *, how: str, coef: float):
        self.members, self.how, self.coef = members, how, coef

    def __call__(self, prompts, completions, *, finished, **columns) -> list[float]:
        return self.explained(prompts, completions, finished=finished, **columns)[0]

    def explained(self, prompts, completions, **columns) -> tuple[list[float], dict[str, list[float]]]:
        """The scores, and what the parts of members that are sums say."""
        named = {getattr(member, "__name__", f"{number}"): member for number, member in enumerate(self.members, 1)}
        scores = scores_of(named, (prompts, completions), columns)
        members = [scores.pop(name) for name in named]
        return ensemble_scores(members, self.how, coef=self.coef).tolist(), scores


class CombinedReward:
    """Rewards as one: for each prompt the first of `sums` of which a part judges it, at the weights of its parts.

    A part that has `judges(prompts) -> list[bool]` is asked about those prompts alone, any other about all.
    """

    def __init__(self, parts: Mapping[str, Reward], sums: Sequence[Mapping[str, float]]):
        self.parts, self.sums = parts, sums

    def __call__(self, prompts, completions, *, finished, **columns) -> list[float]:
        return self.explained(prompts, completions, finished=finished, **columns)[0]

    def explained(self, prompts, completions, **columns) -> tuple[list[float], dict[str, list[float]]]:
        """The scores, and what each part says by its name, NaN where it was not asked."""
        total, said = [0.0] * len(prompts), {name: [nan] * len(prompts) for name in self.parts}
        left = list(range(len(prompts)))
        for weights in self.sums:
            asked = {name: self._judged(name, prompts, left) for name in weights}
            if weights is self.sums[-1] and set(left).difference(*asked.values()):
                asked[next(iter(weights))] = left  # nobody judges them all: the first says what it does judge
            for name, rows in asked.items():
                texts = [[values[row] for row in rows] for values in (prompts, completions)]
                others = {column: [values[row] for row in rows] for column, values in columns.items()}
                scores = scores_of({name: self.parts[name]}, tuple(texts), others)[name] if rows else []
                for row, score in zip(rows, scores, strict=True):
                    said[name][row], total[row] = score, total[row] + weights[name] * score
            judged = set().union(*asked.values())
            left = [row for row in left if row not in judged]
        return total, said

    def _judged(self, name: str, prompts: Sequence, rows: list[int]) -> list[int]:
        """Those of `rows` whose prompts a part judges."""
        judges = getattr(self.parts[name], "judges", None)
        known = judges([prompts[row] for row in rows]) if judges else [True] * len(rows)
        return [row for row, its in zip(rows, known, strict=True) if its]

    def in_log_odds(self) -> "CombinedReward":
        """The same with each part in its own log-odds, times its weight: then differences are a preference's."""
        units = {name: getattr(part, "log_odds", 1.0) for name, part in self.parts.items()}
        return CombinedReward(self.parts, [{name: at * units[name] for name, at in one.items()} for one in self.sums])

    def judges(self, prompts: Sequence) -> list[bool]:
        """Whether any part judges each prompt."""
        rows = set().union(*(self._judged(name, prompts, [*range(len(prompts))]) for name in self.parts))
        return [row in rows for row in range(len(prompts))]


def preferred(reward: Reward, prompts, completions, rivals, columns: Mapping[str, list]) -> list[float]:
    """The probability that each completion is preferred to its rival: Bradley and Terry's, of the scores of both.

    A reward model's scores count in log-odds, in a sum times its weight; any other's are taken for log-odds. A reward
    that takes `rivals` says it itself: such preferences need no score behind them, and may go in circles. `columns`
    hold `finished` and `rivals_finished`.
    """
    if isinstance(reward, EnsembleReward):
        said = [preferred(member, prompts, completions, rivals, columns) for member in reward.members]
        return ensemble_scores(said, reward.how, coef=reward.coef).tolist()
    if isinstance(reward, CombinedReward):
        reward = reward.in_log_odds()
    if "rivals" in inspect.signature(reward).parameters:
        said = scores_of({"reward": reward}, (prompts, completions), {**columns, "rivals": rivals})["reward"]
        if odd := [chance for chance in said if not 0 <= chance <= 1]:
            raise WorkbenchError(f"A reward that takes rivals gave {odd[0]:g}: return a probability from 0 to 1.")
        return said
    sides = (completions, columns), (rivals, {**columns, "finished": columns["rivals_finished"]})
    ours, theirs = (torch.tensor(scores_of({"reward": reward}, (prompts, own), its)["reward"]) for own, its in sides)
    return torch.sigmoid(getattr(reward, "log_odds", 1.0) * (ours - theirs)).tolist()


def rewards_named(
    sources: str,
    tokenizer,
    *,
    max_length: int,
    device="cpu",
    precision: str = "fp32",
    of_task: Mapping = NOTHING,
    kinds: Mapping = NOTHING,
) -> dict[str, Reward]:
    """The rewards that `sources` lists (`workbench.runs.reward_names` says how), by their names; none for "".

    A reward model reads with its own tokenizer, whatever the policy's family; `tokenizer` is for a folder that holds
    none. Where `max_length` is more than one was trained to read, that is said. `of_task` are those of the task, and
    `kinds` make one for prompts of a kind (`Task.rewards`, `Task.kinds`).
    """
    made: dict[str, Reward] = {}
    rewards: dict[str, Reward] = {}
    for name, (read, sums) in read_rewards(sources).items():
        for source in read.values():
            require_reward(source, of_task, kinds)
            alone, kind = without_kind(source)
            if alone not in made:
                settings = {"max_length": max_length, "device": device, "precision": precision}
                made[alone] = _reward_of(alone, tokenizer, **settings, of_task=of_task)
            if (kind or sums != [{name: 1}]) and "rivals" in inspect.signature(made[alone]).parameters:
                raise WorkbenchError(
                    f"{alone!r} takes rivals, so it stands alone: without weight, sum, `for` and `else`."
                )
            made[source] = kinds[kind](name=source, reward=made[alone]) if kind else made[alone]
        parts = {part: made[source] for part, source in read.items()}
        rewards[name] = parts[name] if sums == [{name: 1}] else CombinedReward(parts, sums)
    return rewards


def _reward_of(
    source: str, tokenizer, *, max_length: int, device: str, precision: str, of_task: Mapping[str, Reward]
) -> Reward:
    """The one reward that a source names."""
    file, function = file_and_function(source)
    if function:
        return own_reward(file, function)
    if source in of_task:
        return of_task[source]
    own = load_own_tokenizer(source) or tokenizer
    model = frozen(load_reward_model(source, own, device=device), precision=precision)
    name = Path(source).name
    limits = [getattr(model.config, f"max_{part}_length", 0) for part in ("prompt", "completion")]
    if 0 < sum(limits) < max_length:
        print(f"{name} reads {limits[0]} tokens of a prompt and {limits[1]} of a completion, as in its training.")
    return LearnedReward(model, own, max_length=max_length)


def own_reward(file: str, function: str) -> Reward:
    """The reward that a Python file defines; WorkbenchError where it does not, or could not be called as one."""
    path = resolve(file)
    sys.path.insert(0, str(path.parent))  # what stands beside it can be imported, though only the file is hashed
    try:
        names = runpy.run_path(str(path))
    except (Exception, SystemExit) as error:
        said = f"{type(error).__name__}: {error}"
        raise WorkbenchError(f"{shown(path)}, the file of a reward, does not run ({said:.200}): correct it.") from error
    finally:
        sys.path.remove(str(path.parent))
    reward = names.get(function)
    if not callable(reward):
        raise WorkbenchError(f"{shown(path)} defines no function {function!r}: define {function}{SIGNATURE}.")
    try:
        signature = inspect.signature(reward)
        named = {each.name: [] for each in signature.parameters.values() if each.kind is each.KEYWORD_ONLY}
        signature.bind([], [], **{"finished": [], "of_the_prompt": [], **named})
    except (TypeError, ValueError) as error:  # ValueError: some of Python's own functions say nothing of how
        raise WorkbenchError(
            f"{shown(path)}:{function} can not be called as a reward ({error}): take {SIGNATURE}."
        ) from error
    return reward


def normalise(reward: LearnedReward, prompts, completions, *, finished, prompt_messages=()) -> dict[str, float]:
    """Set the model's shift and scale so that these reference samples score mean 0 and standard deviation 1.

    Ziegler et al. 2019 normalise on samples of the starting policy; the KL coefficient has a meaning only in this unit.
    Returns the raw mean and standard deviation. Raises WorkbenchError where the raw scores do not vary.
    """
    raw = reward.raw(prompts, completions, finished=finished, prompt_messages=prompt_messages)
    mean, std = raw.mean().item(), raw.std().item() if len(raw) > 1 else 0.0
    if not std > 0:
        raise WorkbenchError(
            f"The reward model gives all {len(raw)} reference samples {mean:.3g}: train it longer or give more samples."
        )
    reward.model.config.reward_mean, reward.model.config.reward_std = mean, std
    return {"reward_mean": mean, "reward_std": std}


def raw_rewards(model, sequences: Sequences, *, group_size: int = 1) -> Tensor:
    """One reward per row, (B,) fp32, in log-odds: that of the whole completion, whatever kind of model it is.

    The head's output at the last token; of a process reward model (`config.step_end_ids`) the log-odds that all steps
    are right; of a pessimistic one (`config.pessimism`) the lower end of its confidence interval.
    """
    states = completion_states(model, sequences, group_size=group_size)
    if getattr(model.config, "step_end_ids", None):
        return all_right(scalar_outputs(model, states), step_ends(sequences, model.config))
    last = last_states(states, sequences)
    if getattr(model.config, "pessimism", 0) and hasattr(model, "doubt_root"):
        return lower_confidence(
            last.float(),
            scalar_head(model).weight[0].float(),
            centre=model.doubt_centre,
            root=model.doubt_root,
            radius=model.config.pessimism,
        )
    return scalar_outputs(model, last)


def scalar_outputs(model, states: Tensor) -> Tensor:
    """The head's output on states (..., d), fp32 (...)."""
    return scalar_head(model)(states)[..., 0].float()


def last_states(states: Tensor, sequences: Sequences) -> Tensor:
    """Of states (B, R+1, d) those at the last token of each row, (B, d); an empty completion's is its prompt's last."""
    return states[torch.arange(len(states), device=states.device), sequences.completion_mask.sum(1)]


def step_ends(sequences: Sequences, config) -> Tensor:
    """Where steps end, (B, R+1) beside `completion_states`: at each of `config.step_end_ids`, and at the last token.

    A mark right before the last token ends no step of its own where that token is EOS. An empty completion is one step.
    """
    mask, tokens = sequences.completion_mask, sequences.completions
    marks = torch.isin(tokens, torch.tensor(config.step_end_ids, device=tokens.device)) & mask
    last = mask & ~F.pad(mask[:, 1:], (0, 1))
    ends = torch.tensor(config.eos_token_id, device=tokens.device)  # one or several
    before_eos = F.pad((last & torch.isin(tokens, ends))[:, 1:], (0, 1))
    return torch.cat([~mask.any(1, keepdim=True), last | (marks & ~before_eos)], dim=1)


def all_right(log_odds: Tensor, mask: Tensor) -> Tensor:
    """Log-odds that all steps of a row are right, (B,), where the steps' own `log_odds` (B, S) are independent.

    The product of step probabilities, as Lightman et al. 2023, section 2.6 score a solution (the minimum is their other
    choice), in the unit of every other reward. `mask` (B, S) says what is a step, one or more per row.
    """
    cost = torch.where(mask, F.softplus(-log_odds), 0).sum(1).clamp(min=torch.finfo(log_odds.dtype).tiny)
    return -cost - torch.log(-torch.expm1(-cost))  # finite, even where every step is certain


def lower_confidence(features: Tensor, theta: Tensor, *, centre: Tensor, root: Tensor, radius: float) -> Tensor:
    """The least reward of features (B, d) that any linear reward near `theta` (d,) gives, (B,), relative to `centre`.

    theta.(phi - v) - B ||phi - v|| in the norm of Sigma's inverse: the minimum over the ellipsoid of all parameters
    within `radius` B of theta in the norm of Sigma. `root` (d, d) is the inverse of Sigma's Cholesky factor. Zhu, Jiao
    and Jordan 2023, section 3.2, who take the minimum of a policy's mean; here it is taken per completion, which is
    lower still.
    """
    offsets = features - centre
    return offsets @ theta - radius * (offsets @ root.T).norm(dim=1)


@torch.no_grad()
def make_pessimistic(
    model, prompt_ids: list[list[int]], completions: list[list[list[int]]], *, radius: float, batch_size: int = 64
) -> None:
    """Make a reward model that was trained on these comparisons doubt what they do not cover.

    `completions` holds the K >= 2 compared completions of each prompt. Features are the last layer at the last token;
    Sigma is the mean of the outer products of their differences, plus `RIDGE` of its mean diagonal; v is their mean.
    """
    features, differences = [], []
    for start in range(0, len(completions), batch_size):
        groups = completions[start : start + batch_size]
        batch = collate_groups(prompt_ids[start : start + batch_size], groups, pad_id=model.config.pad_token_id)
        batch = batch.to(model.device)
        last = last_states(completion_states(model, batch), batch).float()
        features.append(last)
        for group in last.split([len(group) for group in groups]):
            differences += [first - second for first, second in combinations(group, 2)]
    differences = torch.stack(differences)
    sigma = differences.T @ differences / len(differences)
    sigma += RIDGE * sigma.diagonal().mean() * torch.eye(len(sigma), device=sigma.device)
    model.config.pessimism = radius
    model.register_buffer("doubt_centre", torch.cat(features).mean(0))
    model.register_buffer("doubt_root", torch.linalg.inv(torch.linalg.cholesky(sigma)))


def _with_doubts(model):
    """The model with what it doubts, which the library's loader leaves in the folder's weights: not its own names."""
    if getattr(model.config, "pessimism", 0) and not hasattr(model, "doubt_root"):
        found = {}
        for path in sorted(Path(model.name_or_path).glob("*.safetensors")):
            with safe_open(path, framework="pt") as weights:
                names = weights.keys()
                found |= {name: weights.get_tensor(name) for name in names if name.startswith("doubt_")}
        if set(found) != {"doubt_centre", "doubt_root"}:
            raise WorkbenchError(
                f"The reward model of {model.name_or_path!r} is pessimistic, but its weights hold no doubt_root: load "
                "it from the folder that 05_reward_model made."
            )
        for name, value in found.items():
            model.register_buffer(name, value.to(model.device))
    return model
