"""What labels on the current policy are worth: the reward model of each round, and what it still knows in the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from workbench.analysis.calibration import pairwise_accuracy
from workbench.analysis.statistics import MeanAndError, mean_and_error
from workbench.records import scores_of
from workbench.runs import Run

Reward = Callable[..., list[float]]


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
            scores["proxy"] = scores_of({fitted: rewards[fitted]}, texts, {"finished": said["finished"].tolist()})[
                fitted
            ]
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
    return pairwise_accuracy(margins[kept], (differences[kept] > 0).astype(float), prompts=prompts[kept]), int(
        kept.sum()
    )
