"""Sweeps: a recipe or notebook at every point of a grid, what points share executed once, and one table of the results.

    sweep = plan_sweep("tour", ["kl_coef=0,.05,.15,.5", "seed=0:3"], out="runs/kl")
    run_sweep(sweep)
    sweep_table("runs/kl")

`run_sweep` takes any concurrent.futures executor as well, such as that of a Dask cluster. In the folder sweep.json says
what was asked for last and what became of it, and sweep.csv is the table.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from workbench import DONE, WorkbenchError
from workbench.pipeline.cluster import Elsewhere, ticket
from workbench.pipeline.grids import Grid, read_assignment, read_grid
from workbench.pipeline.ledger import FINISHED, NOT_RUN, Ledger, record_path
from workbench.pipeline.notebooks import Notebook, Value, checked, find, read_notebook
from workbench.pipeline.recipe_files import read_recipe
from workbench.pipeline.recipes import Entry, Plan, Stage, check_folder, preset, recipe_entries, recipe_paths
from workbench.pipeline.schedule import Codes, Execution, refuse_what_can_not_run, run_stages
from workbench.pipeline.variants import Variant, Variants, gathering_entries, repeated_entry_named_by
from workbench.pipeline.workers import Processes
from workbench.runs import files
from workbench.runs.record import thread_count

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep that was checked."""

    plan: Plan
    record: dict  # grid: values by axis; points: values and folders; runs by folder: stage, values, status
    notes: tuple[str, ...]  # stages of the recipe that are not run, and why


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is swept: a recipe, or a notebook as a recipe of one stage."""

    name: str
    out: str
    jobs: int
    entries: list[Entry]


def plan_sweep(target: str, assignments: list[str], *, out: str = "", preset_name: str = "") -> Sweep:
    """The sweep of a recipe or notebook; WorkbenchError before anything starts where something does not fit.

    `assignments` are as on the command line: ["kl_coef=0,.05", "seed=0:3"]. `out` "" is the recipe's folder and _sweep.
    """
    source = read_source(target, preset_name)
    out = out or source.out
    check_folder(files.resolve(out))
    grid = grid_for(source.entries, assignments, out)
    variants = Variants(source.entries, grid, out)
    found = [variants.at(point) for point in grid.points]
    stages, notes = arranged(found)
    notes += [f"{name}: the same work as {title}, run once" for name, title in variants.titles.items() if name != title]
    record = {"target": target, "preset": preset_name, "assignments": assignments}
    record["grid"] = {axis.name: list(axis.values) for axis in grid.axes}
    record["points"] = [point_record(point, at, stages) for point, at in zip(grid.points, found, strict=True)]
    record["runs"] = {name: run_record(variants.made[name]) for name in stages}
    folder, ordered = files.resolve(out), tuple(stages.values())
    plan = Plan(name=source.name, folder=folder, stages=ordered, jobs=source.jobs, report=False)
    return Sweep(plan=plan, record=record, notes=tuple(notes))


def point_record(point: Mapping[str, Value], at: Mapping[str, Variant], stages: Mapping[str, Stage]) -> dict:
    """A point's values and the folder of each stage of the recipe."""
    folders = {entry: variant.stage.name for entry, variant in at.items() if variant.stage.name in stages}
    return {"parameters": dict(point), "folders": folders}


def run_record(variant: Variant) -> dict:
    """A run's stage of the recipe and the values that it depends on."""
    return {"stage": variant.entry, "parameters": dict(variant.values), "status": NOT_RUN, "problem": ""}


def read_source(target: str, preset_name: str) -> Source:
    """The recipe or notebook that was named, with the parameters of a preset."""
    path = find(target, recipe_paths())
    if path.suffix == ".ipynb":
        notebook = read_notebook(path)
        given = checked(notebook, preset(preset_name).get(notebook.name, {}), f"preset {preset_name}")
        entries = [Entry(name=notebook.name, notebook=notebook, given=given)]
        return Source(name=notebook.name, out=f"runs/{notebook.name}_sweep", jobs=1, entries=entries)
    recipe = read_recipe(path, preset_name)
    entries = recipe_entries(recipe, path, preset_name)
    return Source(name=recipe["name"], out=f"{recipe['out']}_sweep", jobs=recipe.get("jobs", 1), entries=entries)


def grid_for(entries: list[Entry], assignments: list[str], out: str) -> Grid:
    """The grid of `-p NAME=VALUES` over the stages of a recipe."""
    notebooks: dict[str, Notebook] = {entry.name: entry.notebook for entry in entries}
    given = [read_assignment(text, notebooks) for text in assignments]
    constants = read_grid(given, notebooks, gathering=()).constants
    return read_grid(given, notebooks, gathering=gathering_entries(entries, constants, out))


def arranged(points: list[Mapping[str, Variant]]) -> tuple[dict[str, Stage], list[str]]:
    """The stages of all points by folder, in the recipe's order and with all they need; notes on those left out."""
    folders = {entry: list(dict.fromkeys(at[entry].stage.name for at in points)) for entry in points[0]}
    made = {at[entry].stage.name: at[entry] for entry in points[0] for at in points}
    stages: dict[str, Stage] = {}
    notes: dict[str, str] = {}  # by entry
    for folder, variant in made.items():
        repeated = repeated_entry_named_by(variant, folders)
        missing = [need for need in variant.stage.needs if need not in stages]
        if repeated or missing:
            other = f"it looks for the folder {repeated}" if repeated else f"it needs {missing[0]}"
            notes[variant.entry] = f"{variant.entry}: left out, for {other}, which is not there in this sweep"
            continue
        gathered = [name for entry in variant.gathers for name in folders[entry] if name in stages]
        needs = dict.fromkeys([*variant.stage.needs, *gathered])
        stages[folder] = replace(variant.stage, needs=tuple(needs))
    return stages, list(notes.values())


def run_sweep(sweep: Sweep, *, executor: Executor | None = None, retries: int = 0) -> int:
    """Run what is not finished, `plan.jobs` at a time on this machine or on an executor; the exit code.

    A failed stage stops only those that need it. WorkbenchError where the folder holds other work or another sweep
    writes in it.
    """
    plan = replace(sweep.plan, jobs=len(sweep.plan.stages)) if executor else sweep.plan  # a cluster decides itself
    refuse_what_can_not_run(plan)
    if record_path(plan.folder).exists():
        read_record(plan.folder)
    elif (plan.folder / "sweep.csv").exists():
        raise WorkbenchError(f"{files.shown(plan.folder)} holds a sweep.csv of something else: choose another --out.")
    with nullcontext() if executor else closing(Processes(thread_count())) as here, alone_in(plan.folder) as valid:
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
    path = record_path(folder)
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
