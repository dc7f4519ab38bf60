"""Tables over any set of runs: what each holds, and its metrics over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.plots.theme import smoothed
from workbench.runs import Run
from workbench.studies.frontier import SCORES
from workbench.studies.run_folders import UNFINISHED, FoundRuns, Gathered, experiment_of, has_table, mean_over_runs

SMOOTHED = 15  # steps
LISTED = 8  # names that a sentence lists before it counts the rest
FIRST_METRICS = ("held_out_gold", "gold", "held_out_reward", "reward", "held_out_kl", "kl", "held_out_loss", "loss")


def metric_rows(runs: Mapping[str, Run]) -> Gathered:
    """One row per run and step with every number that any run has measured: run, experiment, step, and a column each.

    Undefined numbers are NaN. A run without metrics has no rows.
    """
    frames, left_out = [], []
    for name, run in runs.items():
        try:
            table = run.metrics()
        except WorkbenchError as error:
            left_out.append(str(error))
            continue
        if table.empty or "step" not in table:
            continue
        numbers = table.select_dtypes("number").replace([np.inf, -np.inf], np.nan)
        numbers = numbers.dropna(subset=["step"]).drop_duplicates("step", keep="last")
        frames.append(numbers.assign(run=name, experiment=experiment_of(name)))
    rows = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["run", "experiment", "step"])
    return Gathered(rows, left_out)


def metrics_in(rows: pd.DataFrame) -> list[str]:
    """Names of what was measured, rewards, KL and loss first, then by how many runs measured it."""
    others = [column for column in rows if column not in ("run", "experiment", "step") and rows[column].notna().any()]
    spread = {column: rows.loc[rows[column].notna(), "run"].nunique() for column in others}
    place = {name: number for number, name in enumerate(FIRST_METRICS)}
    return sorted(others, key=lambda column: (place.get(column, len(place)), -spread[column], column))


def metric_curve(rows: pd.DataFrame, metric: str, *, window: int = SMOOTHED) -> pd.DataFrame:
    """One metric of `metric_rows` over the runs of each experiment: experiment, step, value, value_se, freedom, runs.

    Each run is a running mean over `window` steps where it is long; the mean over runs covers the steps that all have.
    Runs of one experiment without common steps stay apart, as do single ones, whose error is NaN.
    """
    curves = []
    for experiment, part in rows.dropna(subset=[metric]).groupby("experiment", sort=False):
        lines = {run: smoothed(one.set_index("step")[metric], window) for run, one in part.groupby("run", sort=False)}
        together = pd.DataFrame(lines).dropna()
        if len(lines) == 1 or together.empty:
            for name, line in lines.items():
                curves.append(_curve(name if len(lines) > 1 else experiment, line.index, line, np.nan, 1))
        else:
            mean, error, freedom = mean_over_runs(together.T.to_numpy(), list(together))
            curves.append(_curve(experiment, together.index, mean, error, len(lines)).assign(freedom=freedom))
    columns = ["experiment", "step", "value", "value_se", "freedom", "runs"]
    return pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(columns=columns)


def _curve(name: str, steps, values, errors, runs: int) -> pd.DataFrame:
    columns = {"step": np.asarray(steps), "value": np.asarray(values), "value_se": errors, "runs": runs}
    return pd.DataFrame({"experiment": name, **columns})


def overview(runs: Mapping[str, Run], metrics: pd.DataFrame, answered: pd.DataFrame) -> pd.DataFrame:
    """One row per experiment: its runs, status, last step, what was measured of its policy, and minutes of all runs.

    `metrics` and `answered` are the rows of `metric_rows` and `answers`.
    """
    steps = metrics.groupby("experiment")["step"].max() if len(metrics) else {}
    groups: dict[str, list[Run]] = {}
    for name, run in runs.items():
        groups.setdefault(experiment_of(name), []).append(run)
    rows = []
    for experiment, group in groups.items():
        row = {"experiment": experiment.removesuffix(UNFINISHED), "runs": len(group)}
        row |= {"status": "unfinished" if experiment.endswith(UNFINISHED) else "finished"}
        row |= {"last step": f"{steps[experiment]:.0f}" if experiment in steps else ""}
        row |= {"measured": _measured(group, answered[answered["policy"] == experiment])}
        rows.append(row | {"minutes": sum(run.record.get("wall_seconds", np.nan) for run in group) / 60})
    return pd.DataFrame(rows)


def _measured(runs: Sequence[Run], said: pd.DataFrame) -> str:
    """What is known of a policy, from its answers, or of the best of n; "" for nothing."""
    if said.empty:
        return "gold and proxy by n" if any(has_table(run, "curve") for run in runs) else ""
    scores = [score for score in SCORES if score in said and said[score].notna().any()]
    return f"{' and '.join(scores) or 'completions'} on {said.groupby(['run', 'judge_id']).size().max()} prompts"


def to_know(found: FoundRuns, *left_out: Sequence[str], scores: Sequence[str]) -> str:
    """What a reader must know before the figures, one line each: what is not there, and what was left out.

    `scores` are those that any answer has.
    """
    runs, said = found.runs, []
    repeated = len(set(map(experiment_of, runs))) < len(runs)
    if unfinished := [name.removesuffix(UNFINISHED) for name in runs if name.endswith(UNFINISHED)]:
        said.append(f"Unfinished, and shown apart: {listed(unfinished)}.")
    if not repeated:
        said.append("Every experiment is a single run: there are no errors over seeds, only over prompts.")
    if "gold" not in scores:
        instead = "scores are the proxy's, what a reward model says" if "proxy" in scores else "nor was a proxy"
        said.append(f"Gold was not measured: {instead}.")
    lost = list(dict.fromkeys(sentence for each in (found.unread, *left_out) for sentence in each))
    said += [f"Left out: {sentence}" for sentence in lost[:LISTED]]
    said += [f"Left out: {len(lost) - LISTED} more."] * (len(lost) > LISTED)
    return "\n".join([f"{len(runs)} runs of {len(set(map(experiment_of, runs)))} experiments.", *said])


def listed(names: Sequence[str]) -> str:
    """Names with commas, the first ones, and how many more."""
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
