"""Runs as points in the plane of KL and reward, and their key numbers over seeds."""

import re
from collections.abc import Iterable, Mapping
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


def evaluations(runs: Iterable[Run]) -> dict[str, pd.DataFrame]:
    """Tables of `evaluate_at_temperatures` by name: each reference policy once, then every policy trained from one.

    A reference bears the name of the folder that its runs started from; it is at KL 0 from itself.
    """
    references, policies = {}, {}
    for run in runs:
        if run.path("tables/evaluation_before.jsonl").exists() and run.path("tables/evaluation.jsonl").exists():
            references.setdefault(Path(str(run.parameters["model"])).name, run.table("evaluation_before"))
            policies[run.name] = run.table("evaluation")
    return references | policies


def run_points(runs: Iterable[Run]) -> pd.DataFrame:
    """One point per reference, per policy trained from one and per n of best-of-n: run, method, kl (nats), scores.

    Policies are read at temperature 1, with `greedy_gold` beside it; best-of-n from the table `curve`. Raises
    WorkbenchError where no run holds either.
    """
    runs = list(runs)
    points = [_policy_point(name, table) for name, table in evaluations(runs).items()]
    for run in runs:
        if run.path("tables/curve.jsonl").exists():
            curve = run.table("curve").assign(method="best of n")
            points += curve.assign(run=[f"{run.name}, n = {n}" for n in curve["n"]]).to_dict("records")
    if not points:
        raise WorkbenchError("None of these runs holds an evaluation: run a notebook from 06 to 08 first.")
    return pd.DataFrame(points)


def gains_over_seeds(runs: Iterable[Run]) -> pd.DataFrame:
    """One row per experiment, seeds put together: what its policy gained over the one it started from, and at what KL.

    Columns run, method, runs; kl, proxy, gold at temperature 1, `gain` of gold over the start there, `greedy_gain` at
    greedy, each with `_se`; `seeds_above` counts runs whose gold at temperature 1 rose. Errors are over seeds, or for a
    single run over prompts (of paired differences). Without gold the gains are those of the proxy.
    """
    single = [_gain(run) for run in runs if {"evaluation", "evaluation_before"} <= _tables(run)]
    if not single:
        raise WorkbenchError("None of these runs holds an evaluation: run a notebook from 06 to 08 first.")
    frame, rows = pd.DataFrame(single), []
    for name, part in frame.groupby(frame["run"].str.replace(SEED, "", regex=True), sort=False):
        row = {**part.iloc[0].to_dict(), "run": name, "runs": len(part), "seeds_above": int((part["gain"] > 0).sum())}
        for column in ("kl", "proxy", "gold", "gain", "greedy_gain"):
            if column in part and len(part) > 1:
                row[column], row[f"{column}_se"] = map(float, mean_and_error(part[column]))
        rows.append(row)
    return pd.DataFrame(rows)


def _gain(run: Run) -> dict:
    before, after = run.table("evaluation_before"), run.table("evaluation")
    score = "gold" if "gold" in after else "proxy"
    row = {"run": run.name, "method": after["method"].iloc[0]}
    summary = summarise_evaluation(after).set_index("temperature").loc[1.0]
    row |= {name: summary[name] for name in summary.index if name.removesuffix("_se") in ("kl", "proxy", "gold")}
    for temperature, name in ((1.0, "gain"), (0.0, "greedy_gain")):
        last, first = (table.loc[table["temperature"] == temperature, score].to_numpy() for table in (after, before))
        if len(last) and score in before:
            row[name], row[f"{name}_se"] = map(float, mean_and_error(last - first))
    return row


def _tables(run: Run) -> set[str]:
    return {path.stem for path in run.path("tables").glob("*.jsonl")}


def curves_over_seeds(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """`summarise_evaluation` of every table, averaged over those whose names differ only in their seed.

    The error of a mean over seeds is that over seeds; a single run keeps its own, over prompts.
    """
    curves = pd.concat([summarise_evaluation(table).assign(run=name) for name, table in tables.items()])
    curves["run"] = curves["run"].str.replace(SEED, "", regex=True)
    rows = []
    for (run, temperature), part in curves.groupby(["run", "temperature"], sort=False):
        row = {"run": run, "temperature": temperature, "runs": len(part), **part.iloc[0].drop(["run", "temperature"])}
        for score in ("gold", "proxy"):
            if score in part and len(part) > 1:
                row[score], row[f"{score}_se"] = map(float, mean_and_error(part[score]))
        rows.append(row)
    return pd.DataFrame(rows)


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


def differing_parameters(runs: Iterable[Run]) -> pd.DataFrame:
    """One row per run with those parameters in which runs differ, paths and the folder itself left out."""
    frame = pd.DataFrame([{"run": run.name, **run.parameters} for run in runs])
    varying = [name for name in frame if name != "run_dir" and frame[name].dropna().nunique() > 1]
    paths = [name for name in varying if frame[name].astype(str).str.contains("/").any()]
    return frame[[name for name in varying if name not in paths]]


def _policy_point(name: str, evaluation: pd.DataFrame) -> dict:
    summary = summarise_evaluation(evaluation).set_index("temperature")
    sampled = evaluation[evaluation["temperature"] == 1]
    point = {"run": name, "method": sampled["method"].iloc[0], **summary.loc[1.0].to_dict()}
    if "gold" in summary and 0.0 in summary.index:
        point["greedy_gold"] = summary.loc[0.0, "gold"]
    return point | {"completion": sampled["completion"].iloc[0]}
