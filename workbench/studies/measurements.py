"""What runs measured, over any set of run folders: the one reader of the table `measured`, and means over runs."""

from __future__ import annotations

import glob
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.best_of_n import expected_of_best, measured_best_of_n_kl
from workbench.analysis.evaluations import NEEDED, flaw_of, summarise_evaluation
from workbench.analysis.statistics import UNKNOWN, interval_over_units, mean_and_error, mean_over_units
from workbench.runs import UNIT, Run, files
from workbench.runs.reward_names import with_sources

UNFINISHED = " (unfinished)"  # behind a name: keeps the run apart from its finished seeds, and says so in every figure
NOTHING_MEASURED = "None of these runs holds an evaluation: run a notebook from 06 to 08 first."
SCORES = ("gold", "proxy")
OLDER = ("path", "evaluation", "curve")  # tables of before `measured`
DRAWN = ["draw", "step", "row", "temperature"]  # columns of `measured` that say when and how a row was drawn
POOL_SIZES = (4, 16, 64)  # of which n best-of-n stands among the policies
CHOSEN_OF = 16  # of which n it stands beside them at each temperature
Runs = Mapping[str, Run] | Iterable[Run]  # with names, or named by `named`


class FoundRuns(NamedTuple):
    """Runs by name, and a sentence for each place that named none or could not be read."""

    runs: dict[str, Run]
    unread: list[str]


class Gathered(NamedTuple):
    """Rows of many runs, and a sentence for each part that could not be used."""

    rows: pd.DataFrame
    left_out: list[str]


# --- Which runs there are, and what they are called.


def find_runs(where: str, *, without: str | Path = "") -> FoundRuns:
    """Every run in the folders or patterns that `where` lists with commas, at any depth; not that in `without`.

    Relative places start at the repository root; a pattern is as in a shell, with ** for any depth. WorkbenchError
    where there is no run at all.
    """
    runs, unread = {}, []
    for place in filter(None, map(str.strip, where.split(","))):
        folders = list(_run_folders(place))
        if not folders:
            unread.append(f"{place!r} holds no runs.")
        for folder in folders:
            try:
                runs.setdefault(folder, Run.read(folder))
            except WorkbenchError as error:
                unread.append(str(error))
    if without:
        runs.pop(files.resolve(without).resolve(), None)
    if not runs:
        said = "".join(f" {sentence}" for sentence in unread if "holds no runs" not in sentence)
        raise WorkbenchError(
            f"{where!r} holds no runs: give the folder that holds run folders, such as runs/tour.{said}"
        )
    return FoundRuns(named(runs.values()), list(dict.fromkeys(unread)))


def _run_folders(place: str) -> Iterator[Path]:
    """Folders with a run.json in what a folder or pattern names, in order of their names; hidden ones are passed by."""
    folder = files.resolve(place)
    tops = [folder] if folder.is_dir() else [Path(found) for found in glob.glob(str(folder), recursive=True)]
    for top in sorted(tops):
        for path, inner, names in os.walk(top):
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            if "run.json" in names:
                yield Path(path).resolve()


def runs_below(folder: str) -> list[Run]:
    """Every run in `folder`, by name; WorkbenchError where there is none, or one cannot be read."""
    found = find_runs(folder)
    if found.unread:
        raise WorkbenchError(found.unread[0])
    return list(found.runs.values())


def named(runs: Runs) -> dict[str, Run]:
    """Runs by their folder's name, with parents where it is not the only one, and marked where they are unfinished.

    Runs that already have names keep them.
    """
    if isinstance(runs, Mapping):
        return dict(runs)
    runs = list(runs)
    names = distinct_names([run.dir for run in runs])
    return {name if run.finished else name + UNFINISHED: run for name, run in zip(names, runs, strict=True)}


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path; where another path ends alike, with as many parents as tell them apart.

    Paths of one experiment, which differ in their seed, get equally many, so that seeds stay together.
    """
    groups = defaultdict(set)
    for folder in folders:
        groups[experiment_of(folder.name)].add(folder)
    depths = {}
    for experiment, different in groups.items():
        depths[experiment] = 1
        while len({folder.parts[-depths[experiment] :] for folder in different}) < len(different):
            depths[experiment] += 1
    return ["/".join(folder.parts[-depths[experiment_of(folder.name)] :]) for folder in folders]


def by_experiment(runs: Mapping[str, Run]) -> dict[str, list[Run]]:
    """The runs that repeat one another, by what their names share."""
    groups = defaultdict(list)
    for name, run in runs.items():
        groups[experiment_of(name)].append(run)
    return dict(groups)


def experiment_of(name: str) -> str:
    """What repetitions with other seeds and worlds share: the name without its ending."""
    return UNIT.sub("", name)


def experiments_named(text: str) -> list[str]:
    """The experiments behind paths with commas or rewards by name: runs/x/rm_seed1*0.5 is rm*0.5."""
    return [with_sources(part.strip(), lambda it: experiment_of(Path(it).name)) for part in text.split(",")]


def repetition_of(name: str) -> str:
    """The ending that tells repetitions apart, such as _world1_seed2; "" without one."""
    return name[len(experiment_of(name)) :]


def start_names(runs: Mapping[str, Run]) -> dict[str, str]:
    """What the policy is called that each run, by name, started from.

    It is looked for beside the run, where it was when the run was made, even if both were moved.
    """
    folders = {}
    for name, run in runs.items():
        model = Path(str(run.parameters.get("model", "reference")))
        beside = model.parent.name == run.dir.parent.name
        folders[name] = run.dir.parent / model.name if beside else files.resolve(model)
    places = list(dict.fromkeys([run.dir for run in runs.values()] + list(folders.values())))
    names = dict(zip(places, distinct_names(places), strict=True))
    return {name: names[folder] for name, folder in folders.items()}


def worlds_of(runs: Mapping[str, Run], starts: Mapping[str, str]) -> dict[str, str]:
    """The world of each run: that of `Run.unit` where it says one, or of a run with the same start, or ""."""
    said = [name for name, run in runs.items() if "world_seed" in run.parameters or UNIT.search(run.name)["world"]]
    told = {name: str(runs[name].unit.world) for name in said}
    of_start = {start: told[name] for name, start in starts.items() if name in told}
    return {name: told.get(name, of_start.get(starts.get(name, ""), "")) for name in runs}


# --- The table `measured`, and its parts.


def has_table(run: Run, name: str) -> bool:
    """Whether the run has saved this table."""
    return run.path(f"tables/{name}.jsonl").exists()


def read_measured(run: Run, draw: str) -> pd.DataFrame:
    """The rows of one `draw` in a run's table `measured` (see `record_measured`) with the columns that it has.

    No rows where it was not drawn. WorkbenchError for a damaged table, of a finished run also for one without rows or
    that ends in a half line, and for a run of an older version, whose tables were others.
    """
    path, flaw = run.path("tables/measured.jsonl"), ""
    if older := [name for name in OLDER if has_table(run, name) and not path.exists()]:
        made = f"{files.shown(run.dir)}/tables/{older[0]}.jsonl was made by an older version"
        raise WorkbenchError(f"{made}: run the stage again in a new folder, or delete this one.")
    rows = files.read_json_lines(path)
    if not all(isinstance(row, dict) and {"draw", "step"} <= set(row) for row in rows):
        flaw = "a row without draw and step"
    elif unknown := [row["draw"] for row in rows if row["draw"] not in list(NEEDED)]:
        flaw = f"a row of the draw {unknown[0]!r}, not of {', '.join(NEEDED)}"
    elif run.finished and path.exists() and not (rows and path.read_bytes().endswith(b"\n")):
        flaw = "a half line at its end" if rows else "no measurement, though the run is finished"
    measured = pd.DataFrame([] if flaw else [row for row in rows if row["draw"] == draw])
    flaw = flaw or (flaw_of(measured, draw) if len(measured) else "")
    if flaw or (draw == "path" and len(measured) and measured["kl"].isna().all()):
        said = "another version made it, or it is damaged; delete the run or run the stage again"
        raise WorkbenchError(f"{files.shown(path)} holds {flaw or 'no kl'}: {said}.")
    return _known(measured) if len(measured) else pd.DataFrame(columns=["draw", "step"])


def readable_runs(folder: str) -> tuple[list[Run], list[str]]:
    """`runs_below` whose table `measured` can be read, and a sentence for each other; WorkbenchError where none can."""
    kept, left_out = [], []
    for run in runs_below(folder):
        try:
            for draw in NEEDED:
                read_measured(run, draw)
            kept.append(run)
        except WorkbenchError as error:
            left_out.append(f"{run.name} was left out: {error}")
    if not kept:
        raise WorkbenchError(" ".join(left_out))
    return kept, left_out


def _known(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows without the columns that are empty."""
    return rows.dropna(axis=1, how="all").reset_index(drop=True) if len(rows) else rows


class Evaluation(NamedTuple):
    """Answers at several temperatures, `nth` counting those to one prompt from 0, and how many rows were left out."""

    rows: pd.DataFrame
    undefined: int


def read_evaluation(run: Run, when: str = "after") -> Evaluation:
    """How the policy of a run answered held-out prompts at the end, or the one it started from, "before"; perhaps none.

    A score that no row has is no column; a row without one that others have is left out. A finished run without
    evaluations stands where its path begins and ends. WorkbenchError for a table of another form.
    """
    rows, undefined = _evaluation(run.dir, when, _stamps(run))
    return Evaluation(rows.copy(deep=False), undefined)


def _stamps(run: Run) -> tuple:
    """When each table was last written."""
    return tuple(sorted((path.name, path.stat().st_mtime_ns) for path in run.path("tables").glob("*.jsonl")))


@lru_cache(maxsize=512)  # a comparison reads each of a hundred runs several times
def _evaluation(folder: Path, when: str, _stamps: tuple) -> Evaluation:
    run = Run.read(folder)
    rows = read_measured(run, "evaluation")
    if rows.empty and run.finished:
        rows = read_measured(run, "path")
    table = _known(rows[rows["step"] == (0 if when == "before" else rows["step"].max() or math.nan)])
    if table.empty:
        return Evaluation(table, 0)
    if missing := {"prompt", "completion", "temperature"} - set(table):
        lacks = f"column {', '.join(sorted(missing))}"
        raise WorkbenchError(f"{_place(run)} has no {lacks}: another version made it.")
    table = table.assign(nth=table.groupby(["temperature", "prompt"]).cumcount())
    kept = table["completion"].notna() & table[[score for score in SCORES if score in table]].notna().all(axis=1)
    if "kl" in table:
        kept &= table["kl"].notna() | (table["temperature"] != 1)
    return Evaluation(table[kept], int((~kept).sum()))


def _place(run: Run) -> str:
    """The file that holds what a run measured, in words."""
    return f"{files.shown(run.dir)}/tables/measured.jsonl"


def read_pool(run: Run) -> pd.DataFrame:
    """The samples that best-of-n chose from, all of a prompt under one another; WorkbenchError for another form."""
    pool = run.table("pool")
    if missing := {"prompt_index", "prompt", "completion", "proxy"} - set(pool):
        raise WorkbenchError(f"{files.shown(run.dir)}/tables/pool.jsonl has no column {', '.join(sorted(missing))}.")
    return pool


def best_of_first(pool: pd.DataFrame, sizes: Iterable[int]) -> Iterator[tuple[int, pd.DataFrame]]:
    """(n, of each prompt the sample with the highest proxy among its first n), for each n of `sizes` that it holds."""
    known = pool.dropna(subset=["proxy", "completion"])
    place = known.groupby("prompt_index").cumcount()
    for n in (n for n in sizes if n <= place.max() + 1):
        yield n, known.loc[known[place < n].groupby("prompt_index")["proxy"].idxmax()]


# --- Means over runs.


def over_runs(rows: pd.DataFrame, by: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """One row per group of `by`: the first of its rows, how many `runs`, and of `columns` the mean over its runs.

    Errors `<column>_se` and their `freedom` are those of `mean_over_units` with `world` as the unit; a single run keeps
    its own errors, over prompts. What only some runs measured is averaged over those.
    """
    table = []
    for _, part in rows.groupby(list(by), sort=False, dropna=False):
        row = {**part.iloc[0], "runs": len(part)}
        for column in [name for name in columns if name in part and len(part) > 1]:
            known = part.dropna(subset=column)
            if len(known):
                row[column], row[f"{column}_se"], freedom = mean_over_units(known[column], known["world"])
                row["freedom"] = np.fmin(row.get("freedom", np.nan), freedom)  # one for all columns: never too narrow
        table.append(row)
    return pd.DataFrame(table)


def means_over_runs(runs: pd.DataFrame, columns: Sequence[str]) -> dict[str, float]:
    """Mean of each column over runs, with the ends of its interval as `_low` and `_high`."""
    means = {}
    for column in columns:
        known = runs.dropna(subset=column)
        mean = interval_over_units(known[column], known["world"]) if len(known) else UNKNOWN
        means |= mean.columns(column)
    return means


def _evaluated(runs: Runs) -> list[tuple[dict, pd.DataFrame, pd.DataFrame]]:
    """(whose, before, after) of each run that evaluated both, whose: run, experiment, world, and the start's name."""
    both, runs = {}, named(runs)
    for name, run in runs.items():
        with suppress(WorkbenchError):
            tables = [read_evaluation(run, when).rows for when in ("before", "after")]
            both |= {name: tables} if all(map(len, tables)) else {}
    starts = start_names({name: runs[name] for name in both})
    worlds = worlds_of(runs, starts)
    whose = {name: _whose(name) | {"world": worlds[name], "start": starts[name]} for name in both}
    return [(whose[name], *tables) for name, tables in both.items()]


def _whose(name: str) -> dict[str, str]:
    return {"run": name, "experiment": experiment_of(name)}


def _policies(runs: Runs) -> list[tuple[dict, pd.DataFrame]]:
    """(whose, answers) of the policies that runs started from, each once, and then of those trained from them.

    A start bears the name of the folder that its runs started from; it is at KL 0 from itself.
    """
    found = _evaluated(runs)
    starts = {whose["start"]: (whose | _whose(whose["start"]), before) for whose, before, _ in reversed(found)}
    first = dict.fromkeys(whose["start"] for whose, _, _ in found)
    return [starts[name] for name in first] + [(whose, after) for whose, _, after in found]


def run_points(runs: Runs) -> pd.DataFrame:
    """One point per start, per policy trained from one and per n of best-of-n: run, method, kl (nats), scores.

    Policies are read at temperature 1, with `greedy_gold` beside it. WorkbenchError where no run holds any.
    """
    runs = named(runs)
    points = [whose | _point(rows, whose["experiment"]) for whose, rows in _policies(runs)]
    for name, world in worlds_of(runs, {}).items():
        whose = {**_whose(name), "world": world, "method": "best of n"}
        points += [whose | row | {"run": f"{name}, n = {row['n']}"} for row in best_of_n_curves(runs[name])]
    points = [point for point in points if pd.notna(point.get("kl")) and any(score in point for score in SCORES)]
    if not points:
        raise WorkbenchError(NOTHING_MEASURED)
    return pd.DataFrame(points).drop(columns=["start", *DRAWN], errors="ignore")


def best_of_n_curves(run: Run, draw: str = "best of n") -> list[dict]:
    """A row per n of best-of-n; none where it was not measured, or nobody can read it."""
    with suppress(WorkbenchError):
        return [row for row in read_measured(run, draw).to_dict("records") if "n" in row]
    return []


def _point(evaluation: pd.DataFrame, experiment: str) -> dict:
    """Means at temperature 1, {} where a policy was not measured there."""
    summary = summarise_evaluation(evaluation).set_index("temperature")
    if 1.0 not in summary.index:
        return {}
    greedy = {"greedy_gold": summary.loc[0.0, "gold"]} if "gold" in summary and 0.0 in summary.index else {}
    method = evaluation["method"].iloc[0] if "method" in evaluation else experiment
    said = evaluation.loc[evaluation["temperature"] == 1, "completion"].iloc[0]
    return {"method": method, **summary.loc[1.0].to_dict(), **greedy, "completion": said}


def points_over_seeds(points: pd.DataFrame) -> pd.DataFrame:
    """`run_points` with one point per experiment, and per n of it, by `over_runs`.

    The `method` of a policy is then its experiment: what tells it apart is more than its algorithm.
    """
    sizes = points["n"] if "n" in points else pd.Series(np.nan, index=points.index)
    means = over_runs(points.assign(n=sizes), ("experiment", "n"), ("kl", *SCORES))
    policy = means["n"].isna()
    ending = means["n"].map(lambda n: "" if pd.isna(n) else f", n = {n:.0f}")
    return means.assign(run=means["experiment"] + ending, method=means["experiment"].where(policy, means["method"]))


def gains_over_seeds(runs: Runs) -> pd.DataFrame:
    """One row per experiment, by `over_runs`: what its policy gained over the one it started from, and at what KL.

    Columns run, method, runs; kl, proxy, gold at temperature 1, `gain` of gold over the start there, `greedy_gain` at
    greedy, each with `_se`: of a single run that of paired differences over prompts; `seeds_above` counts runs whose
    score at temperature 1 rose. `score` says what was gained: gold, or without it the proxy.
    """
    single = [whose | _gain(whose["experiment"], before, after) for whose, before, after in _evaluated(runs)]
    single = [row for row in single if "gain" in row]
    if not single:
        raise WorkbenchError(NOTHING_MEASURED)
    frame = pd.DataFrame(single).drop(columns="start")
    table = over_runs(frame, ["experiment"], ("kl", "proxy", "gold", "gain", "greedy_gain"))
    above = (frame["gain"] > 0).groupby(frame["experiment"], sort=False).sum()
    return table.assign(run=table["experiment"], seeds_above=above.to_numpy())


def _gain(experiment: str, before: pd.DataFrame, after: pd.DataFrame) -> dict:
    """What one run gained on the prompts of both tables; without "gain" where nothing was measured in both."""
    score = next((score for score in SCORES if score in after and score in before), "")
    point = _point(after, experiment)
    if not score or not point:
        return {}
    row = {"method": point["method"], "score": score}
    row |= dict.fromkeys(("kl", "greedy_gain", "greedy_gain_se"), math.nan)  # where they were not measured
    row |= {name: value for name, value in point.items() if name.removesuffix("_se") in ("kl", "proxy", "gold")}
    for temperature, column in ((1.0, "gain"), (0.0, "greedy_gain")):
        columns = ["prompt", "nth", score]
        first, last = (table.loc[table["temperature"] == temperature, columns] for table in (before, after))
        both = last.merge(first, on=columns[:2], suffixes=("", "_before"))
        if len(both):
            row[column], row[f"{column}_se"] = map(float, mean_and_error(both[score] - both[f"{score}_before"]))
    return row


def curves_over_seeds(runs: Runs) -> pd.DataFrame:
    """`summarise_evaluation` of every policy, by `over_runs`: run (the experiment), temperature, scores.

    With the pretrained models, and the best of `CHOSEN_OF` (of fewer, where there were fewer) at its temperatures.
    """
    runs = named(runs)
    curves = [summarise_evaluation(rows).assign(**whose) for whose, rows in [*_pretrained(runs), *_policies(runs)]]
    for name, world in worlds_of(runs, {}).items():
        for rows in (best_of_n_curves(runs[name], draw) for draw in ("best of n", "decided best of n")):
            for row in [row for row in rows if row["n"] <= CHOSEN_OF][-1:]:
                experiment = f"{experiment_of(name)}, n = {row['n']}"
                curves.append(pd.DataFrame([row | {"run": name, "world": world, "experiment": experiment}]))
    means = over_runs(pd.concat(curves), ("experiment", "temperature"), SCORES)
    return means.assign(run=means["experiment"])


def _pretrained(runs: Mapping[str, Run]) -> list[tuple[dict, pd.DataFrame]]:
    """(whose, answers) of the policies that were measured, and neither beside their start nor as one."""
    whole = {name: run for name, run in runs.items() if _holds(run, "after")}
    starts = start_names({name: run for name, run in whole.items() if _holds(run, "before")})
    found, worlds = [], worlds_of(whole, starts)
    for name in [name for name in whole if name not in starts.keys() | set(starts.values())]:
        with suppress(WorkbenchError):
            found.append((_whose(name) | {"world": worlds[name]}, read_evaluation(whole[name]).rows))
    return found


def summaries_over_seeds(runs: Runs) -> pd.DataFrame:
    """Every key number of runs that differ only in seed and world, by `over_runs`: stage (what their names share),
    number, runs, mean, standard_error (NaN for a single run) and freedom, lowest, highest.

    A run whose summary is damaged has none.
    """
    runs, rows = named(runs), []
    for name, world in worlds_of(runs, {}).items():
        with suppress(WorkbenchError):
            numbers = {key: value for key, value in runs[name].summary().items() if isinstance(value, int | float)}
            rows += [(experiment_of(name), world, key, value, value, value) for key, value in numbers.items()]
    by, ends = ["stage", "number"], {"lowest": "min", "highest": "max"}
    frame = pd.DataFrame(rows, columns=["stage", "world", "number", "mean", *ends])
    extremes = frame.groupby(by, sort=False).agg(ends).to_numpy()
    table = over_runs(frame, by, ["mean"]).rename(columns={"mean_se": "standard_error"})
    table = table.assign(**dict(zip(ends, extremes.T, strict=True))) if len(table) else table
    return table.reindex(columns=["stage", "number", "runs", "mean", "standard_error", "freedom", *ends])


def accuracy_by_size(runs: Iterable[Run]) -> pd.DataFrame:
    """Held-out accuracy of reward models, by `over_runs`; against gold where it is known, else against labels.

    Rows model (the run's name without its seed), start, parameters and policy_parameters (counts of weights), runs,
    measured_against, accuracy, accuracy_se. Smaller ones first. WorkbenchError where no run has the numbers.
    """
    tables = []
    for run in runs:
        summary = run.summary()
        # a run that shows the study is not part of it
        if "parameters" in summary and has_table(run, "accuracy") and not run.parameters.get("study_runs"):
            whose = {"run": run.name, "model": experiment_of(run.name), "world": run.unit.world}
            whose |= {"start": run.parameters["start"]}
            whose |= {name: summary.get(name) for name in ("parameters", "policy_parameters")}
            table = run.table("accuracy").query("group == 'all'")
            tables.append(table[["measured_against", "accuracy", "accuracy_se"]].assign(**whose))
    if not tables:
        raise WorkbenchError(
            "None of these runs holds a reward model's accuracy: give a folder of 05_reward_model runs."
        )
    frame = pd.concat(tables)
    against = "gold" if (frame["measured_against"] == "gold").any() else "labels"
    table = over_runs(frame[frame["measured_against"] == against], ["model"], ["accuracy"])
    return table.sort_values(["start", "parameters"], ignore_index=True)


# --- Paths in the plane of KL and reward.


STAGE = re.compile(r"^\d+_")
LEAST_LARGER = 1.25  # ratio of the n of best-of-n that follow one another on its path


def unit_of(run: Run) -> dict[str, str | int]:
    """experiment (without the number of its notebook), world and seed of a run."""
    return {**run.unit._asdict(), "experiment": STAGE.sub("", run.unit.experiment)}


def comparable_runs(runs: Iterable[Run], names: str = "") -> list[Run]:
    """Runs whose paths may be compared: the experiments in `names` (commas between), or all that share their inputs.

    With "", those that start from the model and have the reward of most runs; the first of several rewards.
    Raises WorkbenchError where none is left, or a name is not among the experiments.
    """
    found = [run for run in runs if source_of(run)]
    if names:
        wanted = [name.strip() for name in names.split(",")]
        known = {unit_of(run)["experiment"] for run in found}
        if set(wanted) - known:
            raise WorkbenchError(f"No runs of {sorted(set(wanted) - known)}: choose from {sorted(known)}.")
        return [run for run in found if unit_of(run)["experiment"] in wanted]
    if not found:
        raise WorkbenchError("None of these runs measured a policy: run a notebook from 06 to 08 first.")
    inputs = pd.Series([_inputs(run) for run in found])
    return [run for run, its in zip(found, inputs, strict=True) if its == inputs.mode()[0]]


def _inputs(run: Run) -> str:
    """Experiments that a run's policy and reward come from."""
    sources = [str(run.parameters.get(name, "")) for name in ("model", "reward_model")]
    several = "," in sources[1] and "ensemble" in run.parameters
    names = [experiments_named(source)[0] for source in sources]
    return " ".join([*names, "ensemble"] if several else names)


def source_of(run: Run) -> str:
    """The most telling that a run has of its policy: path or evaluation; of best-of-n pool or curve; else "".

    What was fine-tuned on a choice of samples is a policy, though it holds the pool that it was chosen from, too.
    """
    if len(means := _policy_means(run.dir, _stamps(run))):
        return means["source"].iloc[0]
    return "pool" if has_table(run, "pool") else "curve" if len(read_measured(run, "best of n")) else ""


def budget_paths(runs: Iterable[Run]) -> pd.DataFrame:
    """One row per run and measured step, 0 the reference (of best-of-n: per n), in the order of training.

    Columns run, experiment, world, seed, source (see `source_of`), step, kl (nats, mean over prompts) and kl_se, of
    best-of-n also kl_bound, the mean of every score that was measured, completions, left_out (those with NaN).
    """
    tables = []
    for run in runs:
        if source := source_of(run):
            path = _best_of_n_path(run) if source in ("pool", "curve") else _policy_means(run.dir, _stamps(run))
            tables.append(path.assign(run=run.name, **unit_of(run), source=source))
    if not tables:
        raise WorkbenchError("None of these runs measured a policy: run a notebook from 06 to 08 first.")
    paths = pd.concat(tables, ignore_index=True).dropna(subset="kl")
    first = ["run", "experiment", "world", "seed", "source", "step", "kl"]
    return paths[[*first, *(column for column in paths if column not in first)]]


def score_columns(frame: pd.DataFrame) -> list[str]:
    """The scores that were measured: gold, proxy, then the components of gold."""
    names = [name for name in frame if str(name).startswith("gold_") and not name.endswith(("_low", "_high", "_se"))]
    names = [name for name in names if pd.api.types.is_numeric_dtype(frame[name])]  # not what a prompt calls gold_text
    return [name for name in ("gold", "proxy", *names) if name in frame and frame[name].notna().any()]


@lru_cache(maxsize=512)
def _policy_means(folder: Path, _stamps: tuple) -> pd.DataFrame:
    """Means over the completions of each step, of the path or, where none was kept, of both evaluations.

    A score of which some are NaN takes those completions with it.
    """
    run = Run.read(folder)
    source, table = "path", read_measured(run, "path")
    if table.empty:
        source, table = "evaluation", read_measured(run, "evaluation")
        ends = table[table["temperature"] == 1] if "temperature" in table else table.iloc[:0]
        ends = ends.reindex(columns=list(dict.fromkeys([*ends, "kl"])))  # perhaps nobody measured it
        table = ends.assign(kl=ends["kl"].where(ends["step"] > 0, 0.0)) if ends["step"].nunique() > 1 else ends.iloc[:0]
    scores, rows = score_columns(table), []
    for step, part in table.groupby("step"):
        known = part.dropna(subset=["kl", *(name for name in scores if part[name].notna().any())])
        if len(known):
            counts = {"completions": len(known), "left_out": len(part) - len(known), "source": source}
            kl, kl_se = map(float, mean_and_error(known["kl"]))
            rows.append({"step": step, "kl": kl, "kl_se": kl_se, **known[scores].mean(), **counts})
    return pd.DataFrame(rows)


def _best_of_n_path(run: Run) -> pd.DataFrame:
    """Best-of-n from a pool, with the KL that it measures; at the bound on its KL where the pool does not tell it."""
    pool = read_pool(run) if has_table(run, "pool") else pd.DataFrame()
    if "logprob" not in pool:
        curve = read_measured(run, "best of n").drop(columns="step").rename(columns={"n": "step"})
        return curve[["step", "kl", *score_columns(curve)]].assign(kl_bound=curve["kl"], left_out=0)
    scores = score_columns(pool)
    bad = pool.loc[pool[["logprob", *scores]].isna().any(axis=1), "prompt_index"]
    whole = pool[~pool["prompt_index"].isin(bad)]  # all of a prompt's pool: what is left would be another policy's
    size = whole.groupby("prompt_index").size().min()
    matrices = {name: _matrix(whole, name, size) for name in ("logprob", *scores)}
    texts = _matrix(whole.assign(text=marked_texts(whole)), "text", size)
    ns = sizes_up_to(size)
    path = measured_best_of_n_kl(matrices["proxy"], matrices["logprob"], texts, ns).rename(columns={"n": "step"})
    for name in scores:
        path[name] = expected_of_best(matrices["proxy"], matrices[name], ns).mean(axis=0)
    return path.assign(completions=texts.size, left_out=len(pool) - len(whole))


def marked_texts(pool: pd.DataFrame) -> pd.Series:
    """What the completions of a pool say, those that were cut marked: cut or ended are two different events.

    A pool that does not say which were cut is taken as it is.
    """
    if "finished" not in pool:
        return pool["completion"]
    return pool["completion"] + pool["finished"].map({True: "", False: " …"})


def _matrix(pool: pd.DataFrame, column: str, size: int) -> np.ndarray:
    return np.stack([part.to_numpy()[:size] for _, part in pool.groupby("prompt_index")[column]])


def sizes_up_to(largest: int) -> list[int]:
    """1, 2, 3, 4, 5, 7, ...: each n at least `LEAST_LARGER` times the one before, up to `largest`, the last."""
    sizes = [1]
    while sizes[-1] < largest:
        sizes.append(min(largest, max(sizes[-1] + 1, round(LEAST_LARGER * sizes[-1]))))
    return sizes


# --- What policies said.


def answers(runs: Mapping[str, Run], *, temperature: float = 1.0) -> Gathered:
    """What every policy said to held-out prompts at one temperature: one row per policy, run, prompt and `nth` of it.

    Policies are experiments, the ones that they started from and, at temperature 1, the best of the first n of a pool
    by the proxy. Columns policy, run, repetition (its seed and world by name), world, judge (the reward model behind
    `proxy`), judge_id (one per set of its weights), and those of the evaluation: prompt, completion, and scores.
    """
    frames, left_out = [], []
    starts = start_names({name: run for name, run in runs.items() if _holds(run, "before")})
    worlds = worlds_of(runs, starts)
    for name, source, policy in _sources(runs, starts):
        if source == "pool" and temperature != 1:
            continue
        run = runs[name]
        try:
            found = _best_of_n(run, name) if source == "pool" else [_said(run, source, policy, temperature)]
            frames += [rows.assign(world=worlds[name]) for rows in found]
        except WorkbenchError as error:
            left_out.append(str(error))
            continue
        if source != "pool" and (lost := read_evaluation(run, source).undefined):
            left_out.append(f"{_place(run)}: {lost} rows lack a score.")
    return Gathered(pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["policy"]), left_out)


def _sources(runs: Mapping[str, Run], starts: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Run, what of it, and the policy: each start once by each reward model, and every run's own policy."""
    known = set()
    for name, run in runs.items():
        if name in starts and (starts[name], _judge(run)) not in known:
            known.add((starts[name], _judge(run)))
            yield name, "before", starts[name]
        # a start is measured by those that started from it, on their reward model
        if name not in starts.values() and _holds(run, "after"):
            yield name, "after", name
        if has_table(run, "pool"):
            yield name, "pool", name


def _holds(run: Run, when: str) -> bool:
    """Whether there is an evaluation of that policy, in whatever form."""
    try:
        rows, undefined = read_evaluation(run, when)
    except WorkbenchError:
        return True
    return len(rows) + undefined > 0


def _said(run: Run, when: str, policy: str, temperature: float) -> pd.DataFrame:
    """Answers of an evaluation; WorkbenchError where it has another form, or none at that temperature."""
    frame = read_evaluation(run, when).rows
    part = frame[frame["temperature"] == temperature]
    if part.empty:
        found = ", ".join(f"{value:g}" for value in sorted(frame["temperature"].unique()))
        raise WorkbenchError(f"{policy} was not measured at temperature {temperature:g}, only at {found}.")
    return _told(part.drop(columns=["n", *DRAWN], errors="ignore"), run, policy)


def _best_of_n(run: Run, name: str) -> Iterator[pd.DataFrame]:
    """Answers of the sample with the highest proxy among the first n of each prompt, for some n."""
    for n, best in best_of_first(read_pool(run), POOL_SIZES):
        best = best.drop(columns="prompt_index").assign(nth=best.groupby("prompt").cumcount())
        yield _told(best, run, name).assign(policy=f"{experiment_of(name)}, n = {n}", run=f"{name}, n = {n}")


def _told(rows: pd.DataFrame, run: Run, policy: str) -> pd.DataFrame:
    """The answers with whose they are; other reward models' scores by their names without seeds."""
    label, identity = _judge(run)
    of_run = {"policy": experiment_of(policy), "run": policy, "repetition": repetition_of(policy)}
    of_run |= {"judge": label, "judge_id": identity}
    judges = {name: experiment_of(name) for name in rows if name.startswith("judge_")}
    return rows.drop(columns=["method", "logprob"], errors="ignore").rename(columns=judges).assign(**of_run)


def _judge(run: Run) -> tuple[str, str]:
    """What the reward model behind a run's proxy is called, seeds aside, and one text per set of weights.

    Of several reward models a run with an `ensemble` uses all, another one the first.
    """
    sources = str(run.parameters.get("reward_model", ""))
    inputs = run.record.get("inputs") or {}
    weights = [entry["sha256"] for name, entry in sorted(inputs.items()) if name.startswith("reward_model")]
    names = experiments_named(sources)
    if "ensemble" not in run.parameters:
        names, weights = names[:1], weights[:1]
    how = f" ({run.parameters['ensemble']})" if len(names) > 1 else ""
    return ", ".join(names) + how, "+".join(weights) + how if weights else sources


def side_by_side_answers(answered: pd.DataFrame, *, score: str, count: int) -> pd.DataFrame:
    """`count` of `prompts_in_turn` with the answer of every policy, by that run of it which comes first by name.

    The last prompt is where the scores differ most. Columns as in `answers`; prompts without a `score` are left out.
    """
    first = answered.groupby("policy")["run"].transform("min")
    rows = answered[(answered["run"] == first) & (answered["nth"] == 0)].dropna(subset=[score])
    rows = rows.drop_duplicates(["policy", "prompt"])
    order, scores = prompts_in_turn(rows, "policy"), rows.groupby("prompt", sort=False)[score]
    widest = (scores.max() - scores.min()).loc[order].idxmax() if order else ""
    chosen = [*[prompt for prompt in order if prompt != widest][: count - 1], widest]
    return in_order(rows, chosen)


def prompts_in_turn(rows: pd.DataFrame, who: str) -> list[str]:
    """Prompts that most of the column `who` answered, in the order of the rows, those of each `kind` by turns."""
    asked = rows.groupby("prompt", sort=False)[who].nunique()
    once = rows.drop_duplicates("prompt")
    once = once[once["prompt"].map(asked) == asked.max()]
    kinds = once["kind"].fillna("") if "kind" in once else pd.Series("", index=once.index)
    return list(once["prompt"].loc[kinds.groupby(kinds).cumcount().sort_values(kind="stable").index])


def in_order(rows: pd.DataFrame, prompts: Sequence[str]) -> pd.DataFrame:
    """The rows of these prompts, in their order, with their `place` in it."""
    place = rows["prompt"].map({prompt: number for number, prompt in enumerate(prompts)})
    return rows.assign(place=place).dropna(subset=["place"]).sort_values("place", kind="stable", ignore_index=True)


def scores_in(answered: pd.DataFrame) -> list[str]:
    """Which scores any answer has: gold, proxy, parts of gold, other reward models."""
    numbers = [column for column in answered.select_dtypes("number") if answered[column].notna().any()]
    others = [column for column in numbers if column.startswith(("gold_", "judge_"))]
    return [*[score for score in SCORES if score in numbers], *others]
