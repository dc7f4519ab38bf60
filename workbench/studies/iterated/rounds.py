"""Labels on what the current policy says, round after round, and a reward model fitted to them in each.

Bai et al. 2022 ("iterated online RLHF"). A batch of labels is what labelers say of one round's pairs of answers. The
control asks for as many, in as many rounds, but always about the answers of the policy that everything started from.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset

from workbench import WorkbenchError
from workbench.analysis.calibration import pairwise_accuracy
from workbench.analysis.effects import effects_against, judged_together
from workbench.analysis.overoptimization import held_out_peak
from workbench.analysis.statistics import MeanAndError, mean_and_error
from workbench.feedback.kinds import training_rows
from workbench.models.load import frozen
from workbench.models.rewards import CombinedReward, LearnedReward, Reward, normalise
from workbench.models.sampling import reward_arguments, sample
from workbench.records import PromptExample, scores_of
from workbench.runs import Run
from workbench.studies.measurements import read_measured
from workbench.studies.overoptimization.tables import curve_of
from workbench.tasks.world import Labeler, World, judge_pairs

ARMS = {"fresh": "fresh labels", "none": "none fresh, refitted", "one_shot": "all labels at once"}
CONTROL = ARMS["none"]
SPARE = 2  # prompts drawn for each pair that is wanted: some are answered alike twice

Rows = list[dict[str, Any]]


def batches_known(labels: str, number: int, rounds: int) -> list[int]:
    """Which of the label batches 1 to `rounds` a reward model of round `number` (from 1) learns from.

    `labels` is "fresh" or "none", where a batch comes with every round, or "one_shot", where all come with the first.
    """
    if labels not in ARMS:
        raise WorkbenchError(f"labels is {labels!r}: choose one of {', '.join(ARMS)}.")
    return list(range(1, (rounds if labels == "one_shot" else number) + 1))


def require_rounds(labels: str, rounds: int, *, pairs: int, steps_per_round: int, evaluate_every: int) -> None:
    """WorkbenchError unless the arm exists, there is something to do, and every round ends with a measurement."""
    for name, value in {"rounds": rounds, "pairs": pairs, "steps_per_round": steps_per_round}.items():
        if value < 1:
            raise WorkbenchError(f"{name} is {value}: give at least 1.")
    batches_known(labels, 1, rounds)
    if evaluate_every < 1 or steps_per_round % evaluate_every:
        raise WorkbenchError(
            f"steps_per_round is {steps_per_round} but evaluate_every is {evaluate_every}: give a divisor of it, so "
            "that every round ends with a measurement."
        )


def two_answers(
    policy, tokenizer, prompts: Sequence[PromptExample], *, max_completion_length: int, temperature: float, seed: int
) -> Rows:
    """Two answers to each prompt, one after the other: its own columns, completion, finished."""
    generator = torch.Generator().manual_seed(seed)
    return _two_answers(policy, tokenizer, prompts, max_completion_length, temperature, generator)


def pairs_to_judge(
    policy,
    tokenizer,
    prompts: Sequence[PromptExample],
    *,
    wanted: int,
    max_completion_length: int,
    temperature: float,
    seed: int,
) -> Rows:
    """`wanted` items of two different answers, or as many as there are among all `prompts`.

    The more decided a policy is, the more prompts it answers alike twice; further prompts take their place, so that
    every batch costs the labelers as much. WorkbenchError where no two answers differ.
    """
    generator, answers, asked = torch.Generator().manual_seed(seed), [], 0
    while (missing := wanted - len(_differing(answers))) > 0 and asked < len(prompts):
        more = prompts[asked : asked + SPARE * missing] if asked else prompts[:wanted]
        answers += _two_answers(policy, tokenizer, more, max_completion_length, temperature, generator)
        asked += len(more)
    return different_pairs(answers)[:wanted]


def different_pairs(answers: Rows) -> Rows:
    """Items of two answers that read differently, of `two_answers`: what `judge_pairs` takes, with their own columns.

    People are spared answers that were cut; here they are judged as what they are, for a policy that forgets how to end
    must hear of it. Of `max_completion_length`, they are learned without an end. WorkbenchError where none differ.
    """
    items = _differing(answers)
    if not items:
        raise WorkbenchError(
            f"All {len(answers) // 2} pairs of answers read the same, so nobody can prefer one: raise the temperature, "
            "or end with an earlier round."
        )
    return items


def _differing(answers: Rows) -> Rows:
    items = []
    for number, (first, second) in enumerate(zip(answers[::2], answers[1::2], strict=True)):
        if first["completion"].split() != second["completion"].split():
            both = {"completions": [first["completion"], second["completion"]]}
            both["finished"] = [first["finished"], second["finished"]]
            about = {name: value for name, value in first.items() if name != "completion"}
            items.append({"item_id": f"pair-{number:06d}", **about, **both})
    return items


def judged(world: World, labelers: Sequence[Labeler], items: Rows, *, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The comparisons that simulated labelers decided, one judgement an item, and the ties and skips among them.

    WorkbenchError where they decided none.
    """
    rows, undecided = training_rows("pair", items, judge_pairs(world, labelers, items, random.Random(seed)))
    if not rows:
        raise WorkbenchError(f"None of {len(items)} pairs was decided: ask for more pairs.")
    about = pd.DataFrame(items)[[name for name in ("item_id", "kind", "tier") if name in items[0]]]
    columns = ["prompt", "completions", "reason", "labeler", "item_id"]
    return pd.DataFrame(rows).merge(about, on="item_id", how="left"), pd.DataFrame(undecided, columns=columns)


def collect_batch(run: Run, batch: int, ask: Callable[[int], tuple[pd.DataFrame, pd.DataFrame]]) -> None:
    """Keep what `ask(batch)` brings in the run's tables `preferences` and `left_out`, unless that batch is there.

    A run that is continued asks nobody twice: its policy may have moved on.
    """
    if _holds(run, "preferences", "batch", batch):
        return
    decided, undecided = ask(batch)
    if len(undecided):
        run.add_to_table("left_out", undecided.assign(batch=batch), key="batch")
    run.add_to_table("preferences", decided.assign(batch=batch), key="batch")


def collect_answers(run: Run, step: int, answer: Callable[[], Rows]) -> None:
    """Keep what `answer()` brings in the run's table `answers`, unless that step is there."""
    if not _holds(run, "answers", "step", step):
        run.add_to_table("answers", pd.DataFrame(answer()).assign(step=step), key="step")


def comparisons(rows: pd.DataFrame, batches: Iterable[int]) -> Dataset:
    """Rows prompt, chosen, rejected of these batches; WorkbenchError where nobody decided anything."""
    kept = rows.loc[rows["batch"].isin(list(batches)), ["prompt", "chosen", "rejected"]]
    if kept.empty:
        raise WorkbenchError("No pair was decided, so there is nothing to learn from: ask for more pairs.")
    return Dataset.from_pandas(kept, preserve_index=False)


def epochs_of(examples: Sequence, *, epochs: int, batch_size: int, steps: int) -> int:
    """Passes over these examples: `epochs`, or as many as it takes to come to `steps` steps.

    A first batch of labels alone is small; passed over no more often than all of them, it would hardly be learned.
    """
    return max(epochs, -(-steps * batch_size // max(1, len(examples))))


def fitted_reward(run: Run, learner, tokenizer, *, number: int, samples: Rows, max_length: int) -> LearnedReward:
    """The reward model of round `number`, trained by `learner` and kept in the run, in the unit of all rounds.

    `samples` (prompt, completion, finished) are of the starting policy, whose answers score mean 0 and standard
    deviation 1 in every round.
    """
    for _ in run.train(learner, name=f"reward_model_round{number}"):
        pass
    reward = LearnedReward(frozen(learner.model), tokenizer, max_length=max_length)
    texts = [[row[name] for row in samples] for name in ("prompt", "completion", "finished")]
    normalise(reward, *texts[:2], finished=texts[2])
    run.save_model(learner.model, tokenizer, name=f"reward_model_round{number}")
    return reward


def with_verifiers(fitted: Reward, verifiers: Mapping[str, Reward]) -> Reward:
    """The reward of a round and what is added to it, each a part by its name; the reward alone where nothing is."""
    parts = {"fitted": fitted, **verifiers}
    return CombinedReward(parts, [dict.fromkeys(parts, 1.0)]) if verifiers else fitted


def _two_answers(
    policy, tokenizer, prompts, max_completion_length: int, temperature: float, generator: torch.Generator
) -> Rows:
    twice = [prompt for prompt in prompts for _ in range(2)]
    limits = {"max_completion_length": max_completion_length, "temperature": temperature}
    rollout = sample(policy, [prompt.prompt_ids for prompt in twice], generator=generator, **limits)
    (_, completions), columns = reward_arguments(tokenizer, twice, rollout)
    answers = zip(twice, completions, columns["finished"], strict=True)
    return [{**prompt.row, "completion": text, "finished": ended} for prompt, text, ended in answers]


def _holds(run: Run, table: str, column: str, value: int) -> bool:
    """Whether the run's table has such a row."""
    return run.path(f"tables/{table}.jsonl").exists() and bool((run.table(table)[column] == value).any())


# --- What labels on the current policy are worth: the reward model of each round, and what it still knows in the
# next.


def reach_of_rewards(answers: pd.DataFrame, rewards: Mapping[int, Reward], gold: Reward) -> pd.DataFrame:
    """How well the reward model of each round orders what the policy said at each step, against gold.

    `answers` are two per prompt, one after the other, with `step`. Columns reward_model (the round it was fitted in),
    step, pairs (of different gold), accuracy and accuracy_se (over prompts; NaN where pairs are too few).
    """
    rows = []
    for step, part in answers.groupby("step"):
        texts, ended = (part["prompt"].tolist(), part["completion"].tolist()), {"finished": part["finished"].tolist()}
        scores, prompts = scores_of({"gold": gold, **rewards}, texts, ended), part["prompt"].to_numpy()[::2]
        for number in rewards:
            accuracy, pairs = _accuracy(np.array(scores[number]), np.array(scores["gold"]), prompts)
            measured = {"accuracy": float(accuracy.mean), "accuracy_se": float(accuracy.standard_error)}
            rows.append({"reward_model": number, "step": step, "pairs": pairs, **measured})
    return pd.DataFrame(rows)


def round_table(path: pd.DataFrame, reach: pd.DataFrame, rewards: Mapping[int, Reward]) -> pd.DataFrame:
    """One row per round: its reward model and the policy where the round began (`_start`) and where it ended (`_end`).

    `path` is the table of that name with `round`, `reach` that of `reach_of_rewards`. Columns round, reward_model,
    start and end (steps); kl, gold, proxy and accuracy (of this round's reward model) at either; errors over prompts.
    """
    rows, start = [], 0
    for number, part in path[path["step"] > 0].groupby("round"):
        fitted, end = max(each for each in rewards if each <= number), int(part["step"].max())
        row = {"round": number, "reward_model": fitted, "start": start, "end": end}
        for name, step in (("start", start), ("end", end)):
            said = path[path["step"] == step]
            texts = said["prompt"].tolist(), said["completion"].tolist()
            scores = {"kl": said["kl"], "gold": said["gold"]}
            ended = {"finished": said["finished"].tolist()}
            scores["proxy"] = scores_of({fitted: rewards[fitted]}, texts, ended)[fitted]
            for score, values in scores.items():
                row[f"{score}_{name}"], row[f"{score}_{name}_se"] = map(float, mean_and_error(values))
            known = reach[(reach["reward_model"] == fitted) & (reach["step"] == step)].iloc[0]
            row |= {f"accuracy_{name}": known["accuracy"], f"accuracy_{name}_se": known["accuracy_se"]}
        rows.append(row)
        start = end
    return pd.DataFrame(rows)


def labels_by_round(run: Run, known: Sequence[Sequence[int]], gold: Reward) -> pd.DataFrame:
    """What was asked until each round: round, asked and decided (judgements so far), label_accuracy of the new ones.

    `known` are the batches of each round (`iterated.batches_known`). label_accuracy is the share of new comparisons, of
    answers of different gold, whose chosen one has more; NaN where nothing is new.
    """
    decided = run.table("preferences")
    left_out = run.table("left_out")["batch"] if run.path("tables/left_out.jsonl").exists() else pd.Series(dtype=int)
    chosen, rejected = (
        np.array(gold(decided["prompt"].tolist(), decided[side].tolist(), finished=[True] * len(decided)))
        for side in ("chosen", "rejected")
    )
    right, before, rows = np.where(np.abs(chosen - rejected) > 1e-9, chosen > rejected, np.nan), [], []
    for number, batches in enumerate(known, 1):
        new = pd.Series(right[decided["batch"].isin(batches) & ~decided["batch"].isin(before)]).dropna()
        counts = {"decided": int(decided["batch"].isin(batches).sum())}
        counts["asked"] = counts["decided"] + int(left_out.isin(batches).sum())
        rows.append({"round": number, **counts, "label_accuracy": float(new.mean())})
        before = batches
    return pd.DataFrame(rows)


def _accuracy(scores: np.ndarray, truth: np.ndarray, prompts: np.ndarray) -> tuple[MeanAndError, int]:
    """Share of pairs (rows 2i and 2i + 1) of different truth that scores order alike, and how many those are."""
    margins, differences = scores[::2] - scores[1::2], truth[::2] - truth[1::2]
    kept = np.abs(differences) > 1e-9  # equal gold has no order
    if not kept.any():
        return MeanAndError(float("nan"), float("nan")), 0
    accuracy = pairwise_accuracy(margins[kept], (differences[kept] > 0).astype(float), prompts=prompts[kept])
    return accuracy, int(kept.sum())


# --- Runs beside each other, by whose answers were judged: fresh ones, the start's, or all at once.


OUTCOMES = {"gold": "gold at the end", "saved": "less fall from the peak"}
OUTCOMES |= {"accuracy": "accuracy of the last reward model"}


def iterated_arms(runs: Iterable[Run]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Curves and ends of the finished runs of 13, without rows where there are none.

    Curves are those of `curve_of` with label (the arm), world, seed, run. Ends have one row per run: label, world,
    seed, run, kl and gold at the end, saved (the fall of gold from its held-out peak, with its sign turned) and
    accuracy (of the last reward model, against gold, on what the policy says at the end); NaN where not measured.
    """
    curves, ends = [], []
    for run in runs:
        arm = ARMS.get(run.parameters.get("labels", ""))
        if arm is None or not run.finished or (path := read_measured(run, "path")).empty:
            continue
        about = {"label": arm, "world": run.unit.world, "seed": run.unit.seed, "run": run.name}
        curve = curve_of(path)
        curves.append(curve.assign(**about))
        last = {name: curve[name].iloc[-1] if name in curve else np.nan for name in ("kl", "gold")}
        accuracy = run.summary().get("last accuracy")
        ends.append(about | last | {"saved": -_drop(path), "accuracy": np.nan if accuracy is None else accuracy})
    columns = ["label", "world", "seed", "run", "kl", "gold", "saved", "accuracy"]
    return pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(), pd.DataFrame(ends, columns=columns)


def arm_effects(ends: pd.DataFrame) -> pd.DataFrame:
    """Differences of each arm from the control within units, rows for `plot_effects`; none without a unit of both."""
    known = [name for name in OUTCOMES if ends[name].notna().any()] if CONTROL in set(ends["label"]) else []
    rows = []
    for outcome in known:
        try:
            effects = effects_against(ends, "label", outcome, baseline=CONTROL)
        except WorkbenchError:  # no unit has another arm, too
            continue
        rows.append(effects.assign(group=OUTCOMES[outcome]))
    return judged_together(rows)


def _drop(path: pd.DataFrame) -> float:
    try:
        return held_out_peak(path)["drop"]
    except WorkbenchError:
        return np.nan
