"""What runs measured, over any set of run folders: the one reader of the table `measured`, and means over runs."""

from __future__ import annotations

import glob
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.evaluations import NEEDED, flaw_of, summarise_evaluation
from workbench.analysis.statistics import UNKNOWN, interval_over_units, mean_and_error, mean_over_units
from workbench.runs import UNIT, Run, files, names_in
from workbench.runs.reward_names import with_sources

UNFINISHED = " (unfinished)"  # behind a name: keeps the run apart from its finished seeds, and says so in every figure
NOTHING_MEASURED = "None of these runs holds an evaluation: run a notebook from 06 to 08 first."
SCORES = ("gold", "proxy")
OLDER = ("path", "evaluation", "curve")  # tables of before `measured`
DRAWN = ["draw", "step", "row", "temperature"]  # columns of `measured` that say when and how a row was drawn
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
    for place in names_in(where):
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
    known = measured.dropna(axis=1, how="all")  # the draw's own columns
    return known if len(measured) else pd.DataFrame(columns=["draw", "step"])


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


class Evaluation(NamedTuple):
    """Answers at several temperatures, `nth` counting those to one prompt from 0, and how many rows were left out."""

    rows: pd.DataFrame
    undefined: int


def read_evaluation(run: Run, when: str = "after") -> Evaluation:
    """How the policy of a run answered held-out prompts at the end, or the one it started from, "before"; perhaps none.

    A score that no row has is no column; a row without one that others have is left out. A finished run without
    evaluations stands where its path begins and ends. WorkbenchError for a table of another form.
    """
    rows, undefined = _evaluation(run.dir, when, written_at(run))
    return Evaluation(rows.copy(deep=False), undefined)


def written_at(run: Run) -> tuple:
    """When each table was last written."""
    return tuple(sorted((path.name, path.stat().st_mtime_ns) for path in run.path("tables").glob("*.jsonl")))


@lru_cache(maxsize=512)  # a comparison reads each of a hundred runs several times
def _evaluation(folder: Path, when: str, _stamps: tuple) -> Evaluation:
    run = Run.read(folder)
    rows = read_measured(run, "evaluation")
    if rows.empty and run.finished:
        rows = read_measured(run, "path")
    table = rows[rows["step"] == (0 if when == "before" else rows["step"].max() or math.nan)]
    if table.empty:
        return Evaluation(table, 0)
    table = table.dropna(axis=1, how="all").reset_index(drop=True)
    if missing := {"prompt", "completion", "temperature"} - set(table):
        lacks = f"column {', '.join(sorted(missing))}"
        raise WorkbenchError(f"{place_of(run)} has no {lacks}: another version made it.")
    table = table.assign(nth=table.groupby(["temperature", "prompt"]).cumcount())
    kept = table["completion"].notna() & table[[score for score in SCORES if score in table]].notna().all(axis=1)
    if "kl" in table:
        kept &= table["kl"].notna() | (table["temperature"] != 1)
    return Evaluation(table[kept], int((~kept).sum()))


def place_of(run: Run) -> str:
    """The file that holds what a run measured, in words."""
    return f"{files.shown(run.dir)}/tables/measured.jsonl"


def is_evaluated(run: Run, when: str) -> bool:
    """Whether there is an evaluation of that policy, in whatever form."""
    try:
        rows, undefined = read_evaluation(run, when)
    except WorkbenchError:
        return True
    return len(rows) + undefined > 0


def read_pool(run: Run) -> pd.DataFrame:
    """The samples that best-of-n chose from, all of a prompt under one another; WorkbenchError for another form."""
    pool = run.table("pool")
    if missing := {"prompt_index", "prompt", "completion", "proxy"} - set(pool):
        raise WorkbenchError(f"{files.shown(run.dir)}/tables/pool.jsonl has no column {', '.join(sorted(missing))}.")
    return pool


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


def means_by(rows: pd.DataFrame, by: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Means over the runs of each group: `by`, runs, and of each column the mean, `_low` and `_high`.

    95% over runs, with worlds as in `interval_over_units`; NaN ends where a single one is known.
    """
    table = []
    for key, part in rows.groupby(list(by), sort=False):
        row = {**dict(zip(by, key, strict=True)), "runs": len(part)}
        for column in columns:
            known = part.dropna(subset=column)
            row |= (interval_over_units(known[column], known["world"]) if len(known) else UNKNOWN).columns(column)
        table.append(row)
    return pd.DataFrame(table)


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
    means = over_runs(_curves(named(runs)), ("experiment", "temperature"), SCORES)
    return means.assign(run=means["experiment"])


def _curves(runs: Mapping[str, Run]) -> pd.DataFrame:
    """The same run by run."""
    curves = [summarise_evaluation(rows).assign(**whose) for whose, rows in [*_pretrained(runs), *_policies(runs)]]
    for name, world in worlds_of(runs, {}).items():
        for rows in (best_of_n_curves(runs[name], draw) for draw in ("best of n", "decided best of n")):
            for row in [row for row in rows if row["n"] <= CHOSEN_OF][-1:]:
                experiment = f"{experiment_of(name)}, n = {row['n']}"
                curves.append(pd.DataFrame([row | {"run": name, "world": world, "experiment": experiment}]))
    return pd.concat(curves)


def margins_over_seeds(runs: Runs, *, score: str = "gold") -> pd.DataFrame:
    """How far each policy stands above the one that its run started from, sampled at temperature 1 and greedy (0).

    One row per experiment, its start and temperature: `runs`, `margin` (their mean) with the ends of its 95% interval
    over units, the `least` of a run, and `above`, in how many runs it is above 0. Best-of-n, which is never greedy, has
    its low temperature there. No rows where no start was measured by itself.
    """
    runs = named(runs)
    rows = _curves(runs).reset_index(drop=True)
    rows["start"] = rows["run"].map(start_names(runs))
    chosen = rows["experiment"].str.contains(", n = ") & (rows["temperature"] < 1)
    rows["decoded"] = rows["temperature"].mask(chosen, 0.0)
    starts = rows[["run", "temperature", "experiment", score]]
    pairs = rows[rows["decoded"].isin([1.0, 0.0])].merge(
        starts, left_on=["start", "decoded"], right_on=["run", "temperature"], suffixes=("", "_start")
    )
    table = []
    for (start, name, decoded), part in pairs.groupby(["experiment_start", "experiment", "decoded"], sort=False):
        margin = part[score] - part[f"{score}_start"]
        row = {"experiment": name, "start": start, "temperature": decoded, "runs": len(part)}
        row |= interval_over_units(margin, part["world"]).columns("margin")
        table.append({**row, "least": margin.min(), "above": int((margin > 0).sum())})
    return pd.DataFrame(table)


def _pretrained(runs: Mapping[str, Run]) -> list[tuple[dict, pd.DataFrame]]:
    """(whose, answers) of the policies that were measured, and neither beside their start nor as one."""
    whole = {name: run for name, run in runs.items() if is_evaluated(run, "after")}
    starts = start_names({name: run for name, run in whole.items() if is_evaluated(run, "before")})
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
