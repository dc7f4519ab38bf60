"""Runs as points in the plane of KL and reward, and their key numbers over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.evaluations import summarise_evaluation
from workbench.analysis.statistics import mean_and_error
from workbench.runs import Run, files
from workbench.studies.run_folders import SEED as SEED
from workbench.studies.run_folders import distinct_names, experiment_of, find_runs, mean_over_runs, named

Runs = Mapping[str, Run] | Iterable[Run]  # with names, or named by `named`
NOTHING_MEASURED = "None of these runs holds an evaluation: run a notebook from 06 to 08 first."
SCORES = ("gold", "proxy")


def runs_below(folder: str) -> list[Run]:
    """Every run in `folder`, by name; WorkbenchError where there is none, or one cannot be read."""
    found = find_runs(folder)
    if found.unread:
        raise WorkbenchError(found.unread[0])
    return list(found.runs.values())


def read_evaluation(run: Run, name: str = "evaluation") -> pd.DataFrame:
    """A table of `evaluate_at_temperatures` without undefined rows; `nth` counts the rows of one prompt from 0.

    A score that no row has is no column; a row without one that others have is left out. WorkbenchError where there is
    no such table, or it has another form.
    """
    return _defined_rows(run.dir, name, _changed(run, name))[0].copy(deep=False)


def undefined_rows(run: Run, name: str = "evaluation") -> int:
    """How many rows `read_evaluation` leaves out."""
    return _defined_rows(run.dir, name, _changed(run, name))[1]


def _changed(run: Run, name: str) -> int:
    path = run.path(f"tables/{name}.jsonl")
    return path.stat().st_mtime_ns if path.exists() else 0


@lru_cache(maxsize=512)  # a comparison reads each of a hundred runs several times
def _defined_rows(folder: Path, name: str, _changed: int) -> tuple[pd.DataFrame, int]:
    table = Run.read(folder).table(name)
    missing = {"prompt", "completion", "temperature"} - set(table)
    if missing or table.empty:
        lacks = f"column {', '.join(sorted(missing))}" if missing else "rows"
        raise WorkbenchError(f"{files.shown(folder)}/tables/{name}.jsonl has no {lacks}: another version made it.")
    table["nth"] = table.groupby(["temperature", "prompt"]).cumcount()
    measured = [score for score in SCORES if score in table and table[score].notna().any()]
    kept = table["completion"].notna() & table[measured].notna().all(axis=1)
    if "kl" in table:
        kept &= table["kl"].notna() | (table["temperature"] != 1)
    defined = table[kept].drop(columns=[score for score in SCORES if score in table and score not in measured])
    return defined, len(table) - len(defined)


def evaluations(runs: Runs) -> dict[str, pd.DataFrame]:
    """Tables of `evaluate_at_temperatures` by name: each reference policy once, then every policy trained from one.

    A reference bears the name of the folder that its runs started from; it is at KL 0 from itself. Runs without both
    tables are passed over.
    """
    both = _before_and_after(named(runs))
    starts = reference_names({name: run for name, (run, _, _) in both.items()})
    references = {}
    for name, (_, before, _) in both.items():
        references.setdefault(starts[name], before)
    return references | {name: after for name, (_, _, after) in both.items()}


def reference_names(runs: Mapping[str, Run]) -> dict[str, str]:
    """What the policy is called that each run, by name, started from."""
    folders = {name: _reference_folder(run) for name, run in runs.items()}
    places = list(dict.fromkeys([run.dir for run in runs.values()] + list(folders.values())))
    names = dict(zip(places, distinct_names(places), strict=True))
    return {name: names[folder] for name, folder in folders.items()}


def _reference_folder(run: Run) -> Path:
    """Where the starting policy is: beside the run, where it was when the run was made, even if both were moved."""
    model = Path(str(run.parameters.get("model", "reference")))
    return run.dir.parent / model.name if model.parent.name == run.dir.parent.name else files.resolve(model)


def _before_and_after(runs: Mapping[str, Run]) -> dict[str, tuple[Run, pd.DataFrame, pd.DataFrame]]:
    """Those runs that have both tables in the form they have today, by name, with the tables."""
    both = {}
    for name, run in runs.items():
        try:
            both[name] = run, read_evaluation(run, "evaluation_before"), read_evaluation(run)
        except WorkbenchError:
            continue
    return both


def run_points(runs: Runs) -> pd.DataFrame:
    """One point per reference, per policy trained from one and per n of best-of-n: run, method, kl (nats), scores.

    Policies are read at temperature 1, with `greedy_gold` beside it; best-of-n from the table `curve`. Raises
    WorkbenchError where no run holds either.
    """
    runs = named(runs)
    points = [_policy_point(name, table) for name, table in evaluations(runs).items()]
    for name, run in runs.items():
        if run.path("tables/curve.jsonl").exists():
            curve = run.table("curve").assign(method="best of n")
            if {"n", "kl"} <= set(curve):
                points += curve.assign(run=[f"{name}, n = {n}" for n in curve["n"]]).to_dict("records")
    points = [point for point in points if pd.notna(point.get("kl")) and any(score in point for score in SCORES)]
    if not points:
        raise WorkbenchError(NOTHING_MEASURED)
    return pd.DataFrame(points)


def points_over_seeds(points: pd.DataFrame) -> pd.DataFrame:
    """`run_points` with one point per experiment, and per n of it: means over runs, gold and proxy with their errors
    and their `freedom`, NaN for a single run.

    The error of a mean is over runs, or that over prompts where there is a single one. The `method` of a policy is its
    experiment: what tells it apart is more than its algorithm.
    """
    points = points.reset_index(drop=True)
    names = points["run"].str.replace(r", n = \d+$", "", regex=True)
    experiments, n = names.map(experiment_of), points["n"] if "n" in points else pd.Series(0, index=points.index)
    rows = []
    for (experiment, size), part in points.groupby([experiments, n.fillna(0)], sort=False):
        ending = part["run"].iloc[0].removeprefix(names[part.index[0]])
        row = {**part.iloc[0], "run": experiment + ending, "runs": len(part)}
        row |= {} if size else {"method": experiment}
        for column in ("kl", *SCORES):
            if column in part and len(part) > 1 and part[column].notna().all():
                row[column], row[f"{column}_se"], row["freedom"] = mean_over_runs(part[column], names[part.index])
        rows.append(row)
    return pd.DataFrame(rows)


def _policy_point(name: str, evaluation: pd.DataFrame) -> dict:
    """The row of a policy, {} where it was not measured at temperature 1."""
    sampled = evaluation[evaluation["temperature"] == 1]
    if sampled.empty:
        return {}
    summary = summarise_evaluation(evaluation).set_index("temperature")
    point = {"run": name, "method": _method(sampled, name), **summary.loc[1.0].to_dict()}
    if "gold" in summary and 0.0 in summary.index:
        point["greedy_gold"] = summary.loc[0.0, "gold"]
    return point | {"completion": sampled["completion"].iloc[0]}


def _method(table: pd.DataFrame, name: str) -> str:
    return table["method"].iloc[0] if "method" in table else experiment_of(name)


def gains_over_seeds(runs: Runs) -> pd.DataFrame:
    """One row per experiment, seeds put together: what its policy gained over the one it started from, and at what KL.

    Columns run, method, runs; kl, proxy, gold at temperature 1, `gain` of gold over the start there, `greedy_gain` at
    greedy, each with `_se`; `seeds_above` counts runs whose gold at temperature 1 rose. Errors are over seeds, or for a
    single run over prompts (of paired differences). `score` says what was gained: gold, or without it the proxy.
    """
    single = [_gain(name, before, after) for name, (_, before, after) in _before_and_after(named(runs)).items()]
    single = [row for row in single if "gain" in row]
    if not single:
        raise WorkbenchError(NOTHING_MEASURED)
    frame, rows = pd.DataFrame(single), []
    for name, part in frame.groupby(frame["run"].map(experiment_of), sort=False):
        row = {**part.iloc[0].to_dict(), "run": name, "runs": len(part), "seeds_above": int((part["gain"] > 0).sum())}
        for column in ("kl", "proxy", "gold", "gain", "greedy_gain"):
            if column in part and len(part) > 1:
                row[column], row[f"{column}_se"], row["freedom"] = mean_over_runs(part[column], part["run"])
        rows.append(row)
    return pd.DataFrame(rows)


def _gain(name: str, before: pd.DataFrame, after: pd.DataFrame) -> dict:
    """What one run gained on the prompts of both tables; without "gain" where nothing was measured in both."""
    score = next((score for score in SCORES if score in after and score in before), "")
    row = {"run": name, "method": _method(after, name), "score": score}
    summary = summarise_evaluation(after).set_index("temperature")
    if not score or 1.0 not in summary.index:
        return row
    hot = summary.loc[1.0]
    row |= dict.fromkeys(("kl", "greedy_gain", "greedy_gain_se"), float("nan"))  # where they were not measured
    row |= {column: hot[column] for column in hot.index if column.removesuffix("_se") in ("kl", "proxy", "gold")}
    for temperature, column in ((1.0, "gain"), (0.0, "greedy_gain")):
        columns = ["prompt", "nth", score]
        first, last = (table.loc[table["temperature"] == temperature, columns] for table in (before, after))
        both = last.merge(first, on=columns[:2], suffixes=("", "_before"))
        if len(both):
            row[column], row[f"{column}_se"] = map(float, mean_and_error(both[score] - both[f"{score}_before"]))
    return row


def curves_over_seeds(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """`summarise_evaluation` of every table, averaged over those whose names differ only in their seed.

    The error of a mean over seeds is that over seeds; a single run keeps its own, over prompts.
    """
    curves = pd.concat([summarise_evaluation(table).assign(name=name) for name, table in tables.items()])
    curves["run"] = curves["name"].map(experiment_of)
    rows = []
    for (run, temperature), part in curves.groupby(["run", "temperature"], sort=False):
        first = part.iloc[0].drop(["run", "temperature", "name"])
        row = {"run": run, "temperature": temperature, "runs": len(part), **first}
        for score in SCORES:
            if score in part and len(part) > 1:
                row[score], row[f"{score}_se"], row["freedom"] = mean_over_runs(part[score], part["name"])
        rows.append(row)
    return pd.DataFrame(rows)


def key_numbers_of(run: Run) -> dict[str, float | str]:
    """What the run's summary says; nothing where the file is damaged."""
    try:
        return run.summary()
    except WorkbenchError:
        return {}


def summaries_over_seeds(runs: Runs) -> pd.DataFrame:
    """Every key number of runs that differ only in seed: stage, number, runs, lowest, highest, and mean,
    standard_error and freedom of `mean_over_runs`.

    Runs belong together when their names are equal but for an ending like `_seed0`. The error is NaN for a single run.
    """
    rows = [
        {"stage": experiment_of(name), "run": name, "number": number, "value": value}
        for name, run in named(runs).items()
        for number, value in key_numbers_of(run).items()
        if isinstance(value, int | float)
    ]
    table = []
    for (stage, number), part in pd.DataFrame(rows).groupby(["stage", "number"], sort=False) if rows else ():
        mean, error, freedom = mean_over_runs(part["value"], part["run"])
        row = {"stage": stage, "number": number, "runs": len(part), "mean": mean, "standard_error": error}
        row["freedom"] = freedom
        table.append(row | {"lowest": part["value"].min(), "highest": part["value"].max()})
    columns = ["stage", "number", "runs", "mean", "standard_error", "freedom", "lowest", "highest"]
    return pd.DataFrame(table, columns=columns)
