"""Sweeps: a recipe or notebook at every point of a grid, what points share executed once, one table of the results.

sweep = plan_sweep("tour", ["kl_coef=0,.05,.15,.5", "seed=0:3"], out="runs/kl")
run_sweep(sweep)
sweep_table("runs/kl")

`run_sweep` takes any concurrent.futures executor as well, such as that of a Dask cluster. In the folder sweep.json says
what was asked for last and what became of it, and sweep.csv is the table.
"""

from __future__ import annotations

import copy
import csv
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from workbench import DONE, WorkbenchError
from workbench.pipeline.cluster import Elsewhere, ticket
from workbench.pipeline.notebooks import Notebook, Parameter, Value, find
from workbench.pipeline.recipes import (
    Entry,
    Plan,
    Stage,
    check_folder,
    combinations,
    notebook_entry,
    owners_of,
    placed_stage,
    read_recipe,
    recipe_entries,
    recipe_paths,
    split_assignment,
)
from workbench.pipeline.schedule import (
    FINISHED,
    NOT_RUN,
    Codes,
    Execution,
    Ledger,
    refuse_what_can_not_run,
    run_stages,
)
from workbench.pipeline.workers import Processes
from workbench.runs import files
from workbench.runs.files import resolve

if TYPE_CHECKING:
    import pandas as pd

LARGEST = 10_000  # points; more is a slip of the pen
RANGED = ("int", "float")  # kinds of parameters
RANGE = r"[+-]?\d{1,9}(:[+-]?\d{1,9}){1,2}"
# Runs that differ only in these are put together where figures are drawn, by the ends of their names.
REPETITIONS = {"world_seed": "world", "seed": "seed"}
LONGEST_VALUE = 40  # characters of a folder's name


# Grids: which parameters vary and which stages that reaches, read from `-p NAME=VALUES` and checked


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One `-p NAME=VALUES`: a parameter that varies, or one value that is the same everywhere."""

    name: str  # NAME or STAGE.NAME as given; of an axis just NAME, unless two stages' NAME vary apart
    parameter: str
    stages: tuple[str, ...]  # that take its value
    values: tuple[Value, ...]
    swept: bool  # written as a list or a range


def read_grid(assignments: list[str], entries: list[Entry], out: str) -> tuple[list[Axis], list[Entry]]:
    """What varies, and the stages with what is the same everywhere; of what is given twice for one the later counts.

    Stages that read the folder of the whole sweep take varied values only where they are named. Raises WorkbenchError
    for an axis that reaches no stage, one that is given twice and more than `LARGEST` points.
    """
    if not assignments:
        raise WorkbenchError("A sweep varies something: write for example -p seed=0:3, or use `workbench run`.")
    notebooks = {entry.name: entry.notebook for entry in entries}
    given = [read_assignment(text, notebooks) for text in assignments]
    settled = {(stage, each.parameter): each for each in given for stage in each.stages}
    constants = {entry.name: {} for entry in entries}
    for (stage, parameter), each in settled.items():
        if not each.swept:
            constants[stage][parameter] = each.values[0]
    entries = [replace(entry, given=entry.given | constants[entry.name]) for entry in entries]
    gathering, axes = gathering_entries(entries, out), []
    for text, each in zip(assignments, given, strict=True):
        if not each.swept:
            continue
        if sum(other.name == each.name for other in given) > 1:
            raise WorkbenchError(f"-p {each.name} is given twice: write its values as one list, {each.name}=A,B.")
        reached = [stage for stage in each.stages if settled[stage, each.parameter] is each]
        if each.name == each.parameter:
            reached = [stage for stage in reached if stage not in gathering] or reached
        if not reached:
            raise WorkbenchError(f"-p {text} reaches no stage: later -p set {each.parameter} for each of them.")
        alone = sum(other.swept and other.parameter == each.parameter for other in given) == 1
        axes.append(replace(each, name=each.parameter if alone else each.name, stages=tuple(reached)))
    if math.prod(len(axis.values) for axis in axes) > LARGEST:
        sizes = " x ".join(f"{len(axis.values)} of {axis.name}" for axis in axes)
        raise WorkbenchError(f"The grid has {sizes} points: a sweep holds at most {LARGEST}.")
    return axes, entries


def read_assignment(text: str, notebooks: dict[str, Notebook]) -> Axis:
    """`-p NAME=VALUES` with the type of its parameter; WorkbenchError where a stage, name or value does not fit."""
    target, given = split_assignment(text)
    owners = owners_of(target, notebooks, f"-p {text}")
    name = target.rpartition(".")[2]
    found = {notebooks[owner].parameters[name].kind: notebooks[owner].parameters[name] for owner in owners}
    if len(found) > 1:
        kinds = f"{' and '.join(found)} in {', '.join(owners)}"
        raise WorkbenchError(f"-p {text}: {name} is {kinds}: name the stage, {owners[0]}.{name}=VALUES.")
    values, swept = read_values(given, *found.values(), source=f"-p {text}")
    return Axis(name=target, parameter=name, stages=tuple(owners), values=tuple(values), swept=swept)


def read_values(given: str, parameter: Parameter, *, source: str) -> tuple[list[Value], bool]:
    """Values between commas, "quoted" where they hold commas, and for numbers ranges; whether any of it is a list."""
    try:
        pieces = next(csv.reader([given], strict=True, skipinitialspace=True), [])
    except csv.Error as error:
        raise WorkbenchError(f'{source} is no list ({error}): write A,B or, with commas inside, "A,B","C".') from error
    if parameter.kind == "str":
        texts = [piece.strip() for piece in pieces] or [""]
    else:
        texts = [text for piece in pieces for text in read_range(piece.strip(), parameter, source)]
    if not texts:
        problem = "holds no number, for the end of a range is not part of it" if pieces else "has no value"
        raise WorkbenchError(f"{source} {problem}: write a list or a range, such as {parameter.name}=0,1,2 or 0:3.")
    values = [parameter.read(text, "-p") for text in texts]
    value, count = Counter(values).most_common(1)[0]
    if count > 1:
        raise WorkbenchError(f"{source} has {value!r} {count} times: every point must be another.")
    return values, len(pieces) > 1 or (parameter.kind in RANGED and ":" in given)


def read_range(piece: str, parameter: Parameter, source: str) -> list[str]:
    """The numbers of `start:stop` or `start:stop:step`, stop left out; anything without a colon as it is."""
    if ":" not in piece or parameter.kind not in RANGED:
        return [piece]
    numbers = [int(part) for part in piece.split(":")] if re.fullmatch(RANGE, piece) else [0, 0, 0]
    if numbers[2:] == [0]:
        raise WorkbenchError(f"{source}: {piece!r} is no range: write whole numbers, start:stop or start:stop:step.")
    if len(range(*numbers)) > LARGEST:
        raise WorkbenchError(f"{source} has {len(range(*numbers))} values: a sweep holds at most {LARGEST} points.")
    return [str(number) for number in range(*numbers)]


# The stages of a sweep: each once for all points that share it, in a folder whose name says what it depends on


REFERENCE = re.compile(r"\{out\}/([\w.+=-]+)")  # how a recipe's parameters name the folder of another stage


class Varied(NamedTuple):
    """The stages of a recipe at all points of a grid."""

    stages: dict[str, Stage]  # by folder, in the recipe's order
    runs: dict[str, dict]  # of each folder the entry that it is of, and its values by axis
    folders: list[dict[str, str]]  # of each point, by entry
    notes: list[str]  # entries that are not run, and why


def varied(axes: list[Axis], entries: list[Entry], points: list[Mapping[str, Value]], out: str) -> Varied:
    """Every entry once for all points that share what it depends on; a path into another's folder leads to its variant.

    Left out is what looks in the whole folder for one that has other names here, and what needs that.
    """
    own = {entry.name: [axis for axis in axes if entry.name in axis.stages] for entry in entries}
    titles, used, gathering = same_work(entries, own), used_axes(entries, own), gathering_entries(entries, out)
    values = [{name: {axis: point[axis] for axis in point if axis in used[name]} for name in own} for point in points]
    folders = [{name: folder_name(titles[name], known[name]) for name in own} for known in values]
    stages, runs, left_out = {}, {}, {}
    for entry in entries:
        name, axes_of = entry.name, own[entry.name]
        if lost := lost_folder(entry, reads_of(entry, axes_of) & left_out.keys(), folders if name in gathering else []):
            left_out[name] = f"{name}: left out, for {lost}, which is not there in this sweep"
            continue
        for point, at, known in zip(points, folders, values, strict=True):
            folder, run = at[name], {"stage": titles[name], "parameters": known[name]}
            if runs.setdefault(folder, run) != run:
                raise WorkbenchError(
                    f"Two stages of this sweep would share the folder {folder}: rename one in the recipe."
                )
            if folder not in stages:
                given = entry.given | {axis.parameter: point[axis.name] for axis in axes_of}
                moved = {key: with_folders(value, at) for key, value in given.items()}
                variant = replace(entry, name=folder, given=moved)
                stages[folder] = placed_stage(variant, {}, out=out, names=[*stages, folder])
    once = [f"{name}: the same work as {title}, run once" for name, title in titles.items() if name != title]
    return Varied(stages, runs, folders, [*left_out.values(), *once])


def used_axes(entries: list[Entry], own: Mapping[str, list[Axis]]) -> dict[str, set[str]]:
    """By entry, the names of the axes that it, or what it builds on, depends on."""
    used: dict[str, set[str]] = {}
    for entry in entries:
        reads = reads_of(entry, own[entry.name]) & used.keys()
        used[entry.name] = {axis.name for axis in own[entry.name]}.union(*(used[read] for read in reads))
    return used


def lost_folder(entry: Entry, lost: set[str], folders: Sequence[Mapping[str, str]]) -> str:
    """What an entry misses, "" for nothing: one of `lost`, or one that it names and that has other names."""
    if lost:
        return f"it needs {min(lost)}"
    texts = [
        str(value) for value in entry.values.values() if {at.get(str(value)) for at in folders} - {str(value), None}
    ]
    return f"it looks for the folder {texts[0]}" if texts else ""


def reads_of(entry: Entry, axes: Sequence[Axis] = ()) -> set[str]:
    """Names of folders that the entry's parameters, or values of these axes, lead into."""
    texts = [*entry.given.values(), *(value for axis in axes for value in axis.values)]
    return {name for text in texts if isinstance(text, str) for name in REFERENCE.findall(text)}


def with_folders(value: Value, folders: Mapping[str, str]) -> Value:
    """Text with every {out}/NAME as what `folders` call it."""
    if not isinstance(value, str):
        return value
    return REFERENCE.sub(lambda name: f"{{out}}/{folders.get(name[1], name[1])}", value)


def gathering_entries(entries: list[Entry], out: str) -> set[str]:
    """Names of the entries that read the folder of the whole sweep, or all folders in it that fit a pattern."""
    names = [entry.name for entry in entries]
    return {
        entry.name for entry in entries if set(placed_stage(entry, {}, out=out, names=names).needs) - reads_of(entry)
    }


def same_work(entries: list[Entry], own: Mapping[str, list[Axis]]) -> dict[str, str]:
    """By entry, the shortest name of those that do the same: equal notebook, parameters, axes and inputs."""
    first: dict[str, str] = {}  # the first entry that does the same, by entry
    seen: dict[tuple, str] = {}
    for entry in entries:
        swept = {axis.parameter: axis.name for axis in own[entry.name]}
        reads = {key: with_folders(value, first) for key, value in entry.values.items() if key not in swept}
        whole = entry.name if any(str(value) == "{out}" or "*" in str(value) for value in reads.values()) else ""
        work = json.dumps([str(entry.notebook.path), {**reads, "run_dir": ""}, swept, whole], sort_keys=True)
        first[entry.name] = seen.setdefault(work, entry.name)
    return {name: min((other for other in first if first[other] == first[name]), key=len) for name in first}


def folder_name(entry: str, values: Mapping[str, Value]) -> str:
    """The entry's name and the values, worlds and seeds last: 06_ppo_kl_coef=0.1_world1_seed2."""
    base, world, seed = re.fullmatch(r"(.+?)([-_]world\d+)?([-_]seed\d+)?", entry).groups(default="")
    short = [axis.rpartition(".")[2] for axis in values]  # without the stage, where that is clear
    named = {name if short.count(name) == 1 else axis: values[axis] for name, axis in zip(short, values, strict=True)}
    other = "".join(f"_{name}={shown_value(value)}" for name, value in named.items() if name not in REPETITIONS)
    worlds, seeds = (f"_{end}{shown_value(named[name])}" if name in named else "" for name, end in REPETITIONS.items())
    return f"{base}{other}{world}{worlds}{seed}{seeds}"


def shown_value(value: Value) -> str:
    """A value as part of a folder's name; text that is long or is no plain word is cut and told apart by its hash."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    text = str(value)
    if re.fullmatch(rf"[\w.+-]{{0,{LONGEST_VALUE}}}", text):
        return text
    last = re.sub(r"[^\w.+-]+", "_", text.rstrip("/").rpartition("/")[2])[: LONGEST_VALUE - 7]
    return f"{last}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


# Planned, run and read


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep that was checked."""

    plan: Plan
    record: dict  # grid: values by axis; points: values and folders; runs by folder: stage, values, status
    notes: tuple[str, ...]  # stages of the recipe that are not run, and why


def plan_sweep(target: str, assignments: list[str], *, out: str = "", preset_name: str = "") -> Sweep:
    """The sweep of a recipe or notebook; WorkbenchError before anything starts where something does not fit.

    `assignments` are as on the command line: ["kl_coef=0,.05", "seed=0:3"]. `out` "" is the recipe's folder and _sweep.
    """
    recipe, entries = read_source(target, preset_name)
    out = out or f"{recipe['out']}_sweep"
    folder = resolve(out)
    check_folder(folder)
    axes, entries = read_grid(assignments, entries, out)
    grid = {axis.name: list(axis.values) for axis in axes}
    points = combinations(grid)
    found = varied(axes, entries, points, out)
    record = {"target": target, "preset": preset_name, "assignments": assignments, "grid": grid}
    record["points"] = [
        {"parameters": point, "folders": {entry: name for entry, name in names.items() if name in found.stages}}
        for point, names in zip(points, found.folders, strict=True)
    ]
    status = {"status": NOT_RUN, "problem": ""}
    record["runs"] = {name: run | status for name, run in found.runs.items()}
    stages, jobs = tuple(found.stages.values()), recipe.get("jobs", 1)
    plan = Plan(name=recipe["name"], folder=folder, stages=stages, jobs=jobs, report=False)
    return Sweep(plan=plan, record=record, notes=tuple(found.notes))


def read_source(target: str, preset_name: str) -> tuple[dict, list[Entry]]:
    """The recipe that was named, or a notebook as one of a single stage, and its stages with a preset's parameters."""
    path = find(target, recipe_paths())
    if path.suffix != ".ipynb":
        recipe = read_recipe(path, preset_name)
        return recipe, recipe_entries(recipe, path, preset_name)
    entry = notebook_entry(path, preset_name)
    return {"name": entry.name, "out": f"runs/{entry.name}"}, [entry]


def run_sweep(sweep: Sweep, *, executor: Executor | None = None, retries: int = 0) -> int:
    """Run what is not finished, `plan.jobs` at a time on this machine or on an executor; the exit code.

    A failed stage stops only those that need it. WorkbenchError where the folder holds other work or another sweep
    writes in it.
    """
    plan = replace(sweep.plan, jobs=len(sweep.plan.stages)) if executor else sweep.plan  # a cluster decides itself
    refuse_what_can_not_run(plan)
    if (plan.folder / "sweep.json").exists():
        read_record(plan.folder)
    elif (plan.folder / "sweep.csv").exists():
        raise WorkbenchError(f"{files.shown(plan.folder)} holds a sweep.csv of something else: choose another --out.")
    with nullcontext() if executor else closing(Processes()) as here, alone_in(plan.folder) as valid:
        print(f"{len(sweep.record['points'])} points, {len(plan.stages)} stages in {files.shown(plan.folder)}")
        print(*(f"{note}\n" for note in sweep.notes), sep="", end="", flush=True)
        execution = Execution(plan, here or Elsewhere(executor, valid))
        ledger = Ledger(execution, copy.deepcopy(sweep.record), retries=retries)
        code = ledger.conclude(run_stages(execution, ledger.run_stage, hopeless=without_what_it_needs))
        files.write_text(plan.folder / "sweep.csv", sweep_table(plan.folder).to_csv(index=False))
    print(f"table: {files.shown(plan.folder / 'sweep.csv')}")
    return code


@contextmanager
def alone_in(folder: Path) -> Iterator[Path]:
    """Make the folder and keep other sweeps out of it while the block runs, which is given a `ticket`."""
    with files.explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder / ".sweep.lock"), ticket(folder) as path:
        yield path


def without_what_it_needs(stage: Stage, codes: Codes) -> bool:
    """Whether something that the stage needs failed or was not begun."""
    return any(codes.get(name, DONE) != DONE for name in stage.needs)


def sweep_table(folder: str | Path) -> pd.DataFrame:
    """One row per run of the sweep that was last asked for: swept parameters, stage, folder, status, its key numbers.

    A parameter is empty where the run does not depend on it. Runs that are not finished have no numbers; `problem` says
    why. A number that has the name of a swept parameter is called summary_NAME. WorkbenchError without a sweep.json.
    """
    import pandas as pd

    folder = files.resolve(folder)
    record = read_record(folder)
    frame = pd.DataFrame([_row(folder / name, run, record["grid"]) for name, run in record["runs"].items()])
    for axis, values in record["grid"].items():
        kinds = {type(value) for value in values}
        if kinds <= {int}:
            frame[axis] = frame[axis].astype("Int64")
        elif kinds <= {bool}:
            frame[axis] = frame[axis].astype("boolean")
    return frame


def read_record(folder: Path) -> dict:
    """What sweep.json says; WorkbenchError where it is missing or damaged."""
    path = folder / "sweep.json"
    if not path.exists():
        raise WorkbenchError(f"{files.shown(folder)} holds no sweep.json: give the folder of a `workbench sweep`.")
    record = files.read_json(path)
    if not all(isinstance(record.get(key), dict) for key in ("grid", "runs")):
        raise WorkbenchError(f"{files.shown(path)} is no record of a sweep: run the sweep again in another folder.")
    return record


def _row(folder: Path, run: dict, axes: Mapping[str, list]) -> dict:
    row = {axis: run["parameters"].get(axis) for axis in axes}
    row |= {"stage": run["stage"], "folder": files.shown(folder), "status": run["status"], "problem": run["problem"]}
    path = folder / "summary.json"
    if run["status"] != FINISHED or not path.exists():
        return row
    try:
        numbers = files.read_json(path)
    except WorkbenchError as error:
        return row | {"problem": str(error)}
    plain = {key: value for key, value in numbers.items() if isinstance(value, int | float | None)}
    return row | {f"summary_{key}" if key in row else key: value for key, value in plain.items()}
