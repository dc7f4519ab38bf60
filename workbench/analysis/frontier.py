"""Runs as points in the plane of KL and reward, and their key numbers over seeds."""

import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from workbench import files
from workbench.analysis.comparison import summarise_evaluation
from workbench.analysis.statistics import mean_and_error
from workbench.errors import WorkbenchError
from workbench.runs import Run

SEED = re.compile(r"[-_]seed\d+$")  # how stages that differ only in their seed are named


def runs_below(folder: str) -> list[Run]:
    """Every run in `folder`, by name; WorkbenchError where there is none."""
    found = [Run.read(path.parent) for path in sorted(Path(files.resolve(folder)).glob("*/run.json"))]
    if not found:
        raise WorkbenchError(f"{folder!r} holds no runs: give the folder that holds run folders, such as runs/tour.")
    return found


def run_points(runs: Iterable[Run]) -> pd.DataFrame:
    """One point per evaluated policy and per n of best-of-n: run, method, kl (nats), gold, proxy, errors, completion.

    Policies are read at temperature 1 from the table `evaluation`, `greedy_gold` beside it; best-of-n from `curve`.
    """
    points = []
    for run in runs:
        tables = {path.stem for path in run.path("tables").glob("*.jsonl")}
        if "evaluation" in tables:
            points.append(_policy_point(run, run.table("evaluation")))
        if "curve" in tables:
            curve = run.table("curve").assign(method="best of n")
            points += curve.assign(run=[f"{run.name}, n = {n}" for n in curve["n"]]).to_dict("records")
    if not points:
        raise WorkbenchError("None of these runs holds an evaluation: run a notebook from 02 or 06 to 08 first.")
    return pd.DataFrame(points)


def summaries_over_seeds(runs: Iterable[Run]) -> pd.DataFrame:
    """Every key number of runs that differ only in seed: stage, number, runs, mean, standard_error, lowest, highest.

    Runs belong together when their names are equal but for an ending like `_seed0`. The error is NaN for a single run.
    """
    rows = [
        {"stage": SEED.sub("", run.name), "number": name, "value": value}
        for run in runs
        for name, value in run.summary().items()
        if isinstance(value, int | float)
    ]
    table = []
    for (stage, number), part in pd.DataFrame(rows).groupby(["stage", "number"], sort=False):
        mean, error = mean_and_error(part["value"])
        extremes = {"lowest": part["value"].min(), "highest": part["value"].max()}
        table.append(
            {"stage": stage, "number": number, "runs": len(part), "mean": float(mean), "standard_error": float(error)}
            | extremes
        )
    return pd.DataFrame(table)


def _policy_point(run: Run, evaluation: pd.DataFrame) -> dict:
    summary = summarise_evaluation(evaluation).set_index("temperature")
    sampled = evaluation[evaluation["temperature"] == 1]
    point = {"run": run.name, "method": sampled["method"].iloc[0], **summary.loc[1.0].to_dict()}
    if "gold" in summary and 0.0 in summary.index:
        point["greedy_gold"] = summary.loc[0.0, "gold"]
    return point | {"completion": sampled["completion"].iloc[0], "kl": point.get("kl", 0.0)}


def differing_parameters(runs: Iterable[Run]) -> pd.DataFrame:
    """One row per run with those parameters in which runs differ, paths and the folder itself left out."""
    frame = pd.DataFrame([{"run": run.name, **run.parameters} for run in runs])
    varying = [name for name in frame if name != "run_dir" and frame[name].dropna().nunique() > 1]
    paths = [name for name in varying if frame[name].astype(str).str.contains("/").any()]
    return frame[[name for name in varying if name not in paths]]
