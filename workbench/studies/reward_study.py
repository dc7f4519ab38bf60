"""How good reward models are: their order within prompts, and their accuracy by size and start over several runs."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.statistics import MeanAndError, mean_and_error
from workbench.runs import Run
from workbench.studies.frontier import SEED
from workbench.studies.run_folders import mean_over_runs


def rank_correlation(samples: pd.DataFrame, first: str = "proxy", second: str = "gold") -> MeanAndError:
    """Spearman's rank correlation of two columns within each `prompt`, mean and standard error over prompts.

    Prompts of which either column does not vary have no order and are left out; both are NaN where none remains.
    """
    ranks = samples.groupby("prompt")[[first, second]].rank()
    centred = ranks - ranks.groupby(samples["prompt"]).transform("mean")
    sums = pd.DataFrame(
        {"both": centred[first] * centred[second], "first": centred[first] ** 2, "second": centred[second] ** 2}
    )
    sums = sums.groupby(samples["prompt"]).sum()
    sums = sums[(sums["first"] > 0) & (sums["second"] > 0)]
    if sums.empty:
        return MeanAndError(float("nan"), float("nan"))
    return mean_and_error(sums["both"] / np.sqrt(sums["first"] * sums["second"]))


def accuracy_by_size(runs: Iterable[Run]) -> pd.DataFrame:
    """Held-out accuracy of reward models, averaged over runs whose names differ only in their seed.

    Against gold where it is known, else against labels. Rows model (the run's name without its seed), start,
    parameters and policy_parameters (counts of weights), runs, measured_against, accuracy, accuracy_se: the error over
    runs, with its freedom, or over prompts where there is one run. Smaller ones first. WorkbenchError where no run has
    the numbers.
    """
    rows = [row for run in runs for row in _accuracies(run)]
    if not rows:
        raise WorkbenchError(
            "None of these runs holds a reward model's accuracy: give a folder of 05_reward_model runs."
        )
    frame = pd.DataFrame(rows)
    against = "gold" if (frame["measured_against"] == "gold").any() else "labels"
    frame = frame[frame["measured_against"] == against]
    table = []
    for _, part in frame.groupby("model", sort=False):
        row = {**part.iloc[0], "runs": len(part)}
        if len(part) > 1:
            row["accuracy"], row["accuracy_se"], row["freedom"] = mean_over_runs(part["accuracy"], part["run"])
        table.append(row)
    return pd.DataFrame(table).sort_values(["start", "parameters"], ignore_index=True)


def _accuracies(run: Run) -> list[dict]:
    """The overall rows of a run's table `accuracy`, with what kind of model it is; none for other runs."""
    summary = run.summary()
    finished = "parameters" in summary and run.path("tables/accuracy.jsonl").exists()
    if not finished or run.parameters.get("study_runs"):  # one that shows the study is not part of it
        return []
    table = run.table("accuracy")
    shared = {"run": run.name, "model": SEED.sub("", run.name), "start": run.parameters["start"]}
    shared |= {name: summary.get(name) for name in ("parameters", "policy_parameters")}
    columns = ["measured_against", "accuracy", "accuracy_se"]
    return [shared | row for row in table.loc[table["group"] == "all", columns].to_dict("records")]
