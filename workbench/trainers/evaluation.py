"""What a policy does on held-out prompts: samples, rewards, and its distance from a reference."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from itertools import chain, zip_longest
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset

from workbench import WorkbenchError
from workbench.analysis.evaluations import NEEDED, flaw_of
from workbench.analysis.skills import with_features
from workbench.losses.policy import kl_k1, kl_k3
from workbench.models import ranks
from workbench.models.examples import completion_examples, prompt_examples, text_documents
from workbench.models.packing import collate_demonstrations, target_losses, token_lengths
from workbench.models.sampling import reward_arguments, sample
from workbench.models.scoring import chosen, kl_from, predictions, spread
from workbench.models.tokens import batches_by_length, unconditioned
from workbench.records import CompletionExample, PromptExample, Rollout, ScoredRollout
from workbench.runs import Run
from workbench.runs.resume import interrupt_waits
from workbench.tasks import Task
from workbench.tasks.world import World
from workbench.tasks.world.lexicon import KINDS

Reward = Callable[..., list[float]]
TEMPERATURES = (1.0, 0.7, 0.5, 0.0)  # a gain that shows at 1 but not at 0 (greedy) is only sharpening
WARM = (1.5, 1.25, 1.0, 0.85, 0.7, 0.5)  # of answers that are compared at the same gold
NO_LIMIT = 10**6  # tokens


def evaluate_policy(
    policy,
    tokenizer,
    prompts: list[PromptExample],
    rewards: dict[str, Reward],
    *,
    max_completion_length: int,
    temperature: float = 1.0,
    seed: int = 0,
) -> tuple[pd.DataFrame, Rollout]:
    """One completion per prompt at `temperature` (0 is greedy) with every reward, and the rollout behind the table.

    Columns: those of the prompts, `completion`, `finished`, `completion_length` in tokens, one per reward.
    """
    rollout = sample(
        policy,
        [example.prompt_ids for example in prompts],
        max_completion_length=max_completion_length,
        temperature=temperature,
        generator=torch.Generator().manual_seed(seed),
    )
    arguments, columns = reward_arguments(tokenizer, prompts, rollout)
    frame = pd.DataFrame([example.row for example in prompts])
    frame["completion"], frame["finished"] = arguments[1], columns["finished"]
    frame["completion_length"] = rollout.completion_mask.sum(1).tolist()
    for name, scores in ranks.shared_scores(rewards, arguments, columns).items():
        frame[name] = scores
    return frame, rollout


def evaluate_at_temperatures(
    policy,
    tokenizer,
    prompts: list[PromptExample],
    rewards: dict[str, Reward],
    *,
    reference,
    max_completion_length: int,
    seed: int = 0,
    temperatures: tuple[float, ...] = TEMPERATURES,
) -> pd.DataFrame:
    """`evaluate_policy` at every temperature under one another, with columns `temperature` and `kl`.

    `kl` is the exact-per-token KL from `reference` in nats per completion, measured at temperature 1, NaN at others.
    """
    frames = []
    for temperature in temperatures:
        frame, rollout = evaluate_policy(
            policy,
            tokenizer,
            prompts,
            rewards,
            max_completion_length=max_completion_length,
            temperature=temperature,
            seed=seed,
        )
        kl = sequence_kl(policy, reference, rollout) if temperature == 1 else [float("nan")] * len(frame)
        frames.append(frame.assign(temperature=temperature, kl=kl))
    return pd.concat(frames, ignore_index=True)


@torch.no_grad()
def sequence_kl(policy, reference, rollout: Rollout, *, temperature: float = 1.0, batch_size: int = 128) -> list[float]:
    """KL(policy || reference) summed over each completion, B nats: exact at every token, sampled over prefixes.

    `rollout` was sampled from `policy` at `temperature`; the sum over tokens is then an unbiased estimate of the
    sequence KL with less variance than the log-ratio of the sample (the Rao-Blackwellised one; Amini et al. 2025).
    Control tokens that the policy was asked with are not shown to `reference`.
    """

    def sums(start: int) -> list[float]:
        part = rollout.rows(slice(start, start + batch_size))
        said = predictions(policy, part, temperature=temperature)
        reference_said = predictions(reference, unconditioned(part, policy), temperature=temperature)
        return spread(*said.read(kl_from(reference_said)), part).sum(1).tolist()

    return list(chain(*ranks.shared(range(0, len(rollout), batch_size), sums)))


def held_out_kl(rollout: ScoredRollout, token_kl: torch.Tensor) -> list[dict[str, Any]]:
    """Length and KL of each completion, B dicts; `token_kl` (B, R) nats is exact over the vocabulary at every token.

    kl, kl_k1 and kl_k3 are sums over the completion, in nats: of `token_kl`, and of two estimates from the sampled
    tokens alone (Schulman 2020). token_kl lists the first sum's terms.
    """
    lengths = rollout.completion_mask.sum(1).tolist()
    sampled = (rollout.logprobs, rollout.reference_logprobs)
    columns = {
        "finished": rollout.finished.tolist(),
        "completion_length": lengths,
        "kl": token_kl.sum(1).tolist(),
        "kl_k1": kl_k1(*sampled).sum(1).tolist(),
        "kl_k3": kl_k3(*sampled).sum(1).tolist(),
        "token_kl": [row[:length] for row, length in zip(token_kl.tolist(), lengths, strict=True)],
    }
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


@torch.no_grad()
def held_out_rows(
    policy,
    reference,
    tokenizer,
    prompts: list[PromptExample],
    rewards: dict[str, Reward],
    *,
    max_completion_length: int,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """A row per prompt: its columns, a completion at temperature 1, every reward, and what `held_out_kl` says."""
    limits = {"max_completion_length": max_completion_length, "seed": seed}
    frame, rollout = evaluate_policy(policy, tokenizer, prompts, rewards, **limits)
    reference_said = predictions(reference, unconditioned(rollout, policy))
    reference_logprobs = reference_said.read(chosen(rollout.counted))
    scored = ScoredRollout(
        **{field.name: getattr(rollout, field.name) for field in fields(rollout)},
        reference_logprobs=spread(*reference_logprobs, rollout),
        scores=torch.zeros(len(rollout)),
    )
    kl = held_out_kl(scored, spread(*predictions(policy, rollout).read(kl_from(reference_said)), rollout))
    return [row | measured for row, measured in zip(frame.to_dict("records"), kl, strict=True)]


# --- What skills are computed from.


def skill_tables(
    policy, reference, tokenizer, task: Task, texts: Dataset, *, count: int, samples: int, seed: int = 0, **limits: int
) -> dict[str, pd.DataFrame]:
    """The tables of `analysis.skills` for a policy.

    Answers to `count` held-out prompts, of the world of each kind: `samples` at every temperature above 0 and a greedy
    one, `kl` from `reference` unless it is None; how sure it is of facts; the loss of each token of `texts`, perhaps
    none. `limits` are max_prompt_length and max_completion_length, in tokens.
    """
    rewards = {"gold": task.reward} if task.reward else {}
    asked = _skill_prompts(task, count, seed=seed)
    examples = prompt_examples(asked, tokenizer, max_prompt_length=limits["max_prompt_length"])
    given = {"reference": reference or policy, "max_completion_length": limits["max_completion_length"], "seed": seed}
    answers = [
        evaluate_at_temperatures(policy, tokenizer, prompts, rewards, **given, temperatures=temperatures)
        for prompts, temperatures in ((list(examples) * samples, WARM), (examples, (0.0,)))
    ]
    tables = {"answers": pd.concat(answers, ignore_index=True).drop(columns=[] if reference else ["kl"])}
    tables["answers"]["nth"] = tables["answers"].groupby(["temperature", "prompt"]).cumcount()
    if task.world:
        tables["answers"] = with_features(tables["answers"], task.world)
        tables["chances"] = answer_chances(policy, tokenizer, asked, task.world)
    if len(texts):
        tables["texts"] = _text_losses(policy, tokenizer, texts, longest=sum(limits.values()))
    return tables


def _skill_prompts(task: Task, count: int, *, seed: int) -> Dataset:
    """`count` prompts, of the world so many different ones of each kind, twice of questions, all where it has fewer."""
    if not task.world:
        return task.prompts(count, seed, split="test")
    draws = {"count": 8 * count, "rng": random.Random(seed), "split": "test"}
    drawn = {kind: pd.DataFrame(task.world.prompts(**draws, kind=kind)).drop_duplicates("prompt") for kind in KINDS}
    drawn = [rows.head(2 * count if kind == "qa" else count) for kind, rows in drawn.items()]  # of three tiers
    return Dataset.from_pandas(pd.concat(drawn), preserve_index=False)


def answer_chances(policy, tokenizer, asked: Dataset, world: World) -> pd.DataFrame:
    """Of each plain question the value that the policy finds likeliest, how likely among all, and whether it is right.

    Likely as the bare statement: what an answer may open or go on with is left out. An opinion would be a hint.
    """
    plain = (row for row in asked if not world.features(row["prompt"], "")["opinion"])
    possible = [(row, *answer) for row in plain for answer in world.possible_answers(row["prompt"]).items()]
    table = pd.DataFrame([{**row, "completion": text, "right": right} for row, text, right in possible])
    longest = {"max_prompt_length": NO_LIMIT, "max_completion_length": NO_LIMIT}
    examples = completion_examples(Dataset.from_pandas(table), tokenizer, **longest)
    losses = _token_losses(policy, [replace(each, completion_ids=each.completion_ids[:-1]) for each in examples])
    table["chance"] = np.exp(-losses.groupby("row")["loss"].sum())
    chances = table.groupby("prompt", sort=False)["chance"]
    table["probability"] = table["chance"] / chances.transform("sum")
    return table.loc[chances.idxmax(), ["prompt", "tier", "probability", "right"]]


def _text_losses(policy, tokenizer, texts: Dataset, *, longest: int) -> pd.DataFrame:
    """The loss of each token but the first of up to `longest` of each text, whose number is `prompt`."""
    ids = [ids[:longest] for ids in text_documents(texts, tokenizer) if len(ids) > 1]
    parts = [CompletionExample(prompt_ids=text[:1], completion_ids=text[1:]) for text in ids]
    return _token_losses(policy, parts).rename(columns={"row": "prompt"})


@torch.no_grad()
def _token_losses(policy, examples: Sequence[CompletionExample]) -> pd.DataFrame:
    """Cross-entropy of every completion token, nats: columns row and loss."""
    rows, losses = [], []
    for batch in batches_by_length(token_lengths(examples), 128):
        chosen = [examples[row] for row in batch]
        part = collate_demonstrations(chosen, policy.config.pad_token_id).to(policy.device)
        losses += target_losses(policy, part).tolist()
        rows += [row for row, each in zip(batch, chosen, strict=True) for _ in each.completion_ids]
    return pd.DataFrame({"row": rows, "loss": losses})


# --- The one table of what a run measured, whatever its stage.


Components = Callable[[str, str, bool], dict[str, float]]
VARIED = {"path": (), "evaluation": ("temperature",)}  # what the rows of each draw say themselves
VARIED |= {"best of n": ("n",), "decided best of n": ("n",)}


def record_measured(
    run: Run,
    rows: pd.DataFrame | list[dict[str, Any]],
    *,
    step: int,
    draw: str = "path",
    components: Components | None = None,
    **columns,
) -> None:
    """Add what a policy did at `step`, 0 where it started, to the run's table `measured`; nothing without rows.

    `draw` says whose answers they are: "path", one per held-out prompt every few steps of training; "evaluation", by
    other random numbers at several temperatures; "best of n", means by `n`, and "decided best of n", those of a low
    temperature. `rows` are those of `held_out_rows`, of a trainer's `last_held_out` or of `evaluate_at_temperatures`,
    and need the columns prompt, completion, kl (nats) and, of an evaluation, temperature; of best of n, only n and kl.
    WorkbenchError where one is missing or of another type. `row` counts those of one n and temperature.
    `components` splits gold into parts, kept as gold_<part>; `columns` are added to every row. Measured again, a step
    replaces itself, so a run that was killed and resumed ends with the same tables. Where KL is spent by position
    (token_kl) goes to the table `kl_positions`.
    """
    frame = pd.DataFrame(rows)
    if frame.empty:
        return
    if draw not in NEEDED:
        raise WorkbenchError(f"What was measured cannot be of the draw {draw!r}: choose from {', '.join(NEEDED)}.")
    same = {name: value for name, value in {"n": 1, "temperature": 1.0}.items() if name not in VARIED[draw]}
    if flaw := flaw_of(frame.assign(**same | columns | {"row": 0, "step": step}), draw):
        raise WorkbenchError(f"What was measured at step {step} holds {flaw}: `record_measured` says what rows need.")
    frame = frame if "proxy" in frame else frame.rename(columns={"reward": "proxy"})
    measured = with_components(frame.drop(columns="token_kl", errors="ignore"), components)
    measured = measured.assign(**same | columns, step=step, draw=draw)  # whatever columns of these names prompts have
    measured["row"] = measured.groupby(["n", "temperature"]).cumcount()
    with interrupt_waits():
        run.add_to_table("measured", measured, key=("step", "draw"))
        if "token_kl" in frame:
            run.add_to_table("kl_positions", kl_positions(frame).assign(**columns, step=step), key="step")


def with_components(frame: pd.DataFrame, components: Components | None) -> pd.DataFrame:
    """`frame` (prompt, completion, finished) with a column gold_<part> for each part of gold, which adds up to it."""
    if components is None:
        return frame
    texts = zip(frame["prompt"], frame["completion"], frame["finished"], strict=True)
    parts = pd.DataFrame([components(*text) for text in texts], index=frame.index)
    return frame.join(parts.add_prefix("gold_"))


def kl_positions(path: pd.DataFrame) -> pd.DataFrame:
    """Where in the completion the KL is spent: columns kind ("all" and each), position (from 1), completions, kl.

    `path` has token_kl, a list of nats per token, and perhaps kind. kl is the sum over completions of what they spend
    at that position, over their number, ended ones included: over positions it adds up to the mean sequence KL.
    """
    parts = {"all": path} | (dict(list(path.groupby("kind"))) if "kind" in path else {})
    tables = []
    for kind, part in parts.items():
        spent = [math.fsum(terms) / len(part) for terms in zip_longest(*part["token_kl"], fillvalue=0.0)]
        positions = range(1, len(spent) + 1)
        tables.append(pd.DataFrame({"kind": kind, "position": positions, "completions": len(part), "kl": spent}))
    return pd.concat(tables, ignore_index=True)
