"""Plans: one notebook or a recipe of several, with presets and given parameters, checked before anything starts."""

import fnmatch
import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from workbench.errors import WorkbenchError
from workbench.files import repository_root, resolve, shown
from workbench.notebooks import Notebook, Value, checked, find, nearest, read_notebook, unknown_parameter

RECIPE_KEYS = ("name", "title", "out", "jobs", "report", "each", "stages")
STAGE_KEYS = ("name", "notebook", "parameters", "each")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One notebook with its parameters and the folder that its results go to."""

    name: str
    notebook: Notebook
    folder: Path
    given: dict[str, Value]  # parameters that were set by recipe, preset or command line
    inputs: tuple[Path, ...]  # paths that its parameters point at
    needs: tuple[str, ...]  # earlier stages that these paths lie in

    @property
    def values(self) -> dict[str, Value]:
        """Every parameter with the value that the notebook will see."""
        return self.notebook.defaults | self.given


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The stages of one command, in order."""

    name: str
    folder: Path
    stages: tuple[Stage, ...]
    jobs: int  # stages that may run side by side
    report: bool  # whether the report is written at the end


def plan_notebook(path: Path, *, assignments: list[str], out: str, preset_name: str) -> Plan:
    """Plan of one notebook: default < preset < -p; `out` "" leaves the notebook's own run_dir."""
    notebook = read_notebook(path)
    given = checked(notebook, preset(preset_name).get(notebook.name, {}), f"preset {preset_name}")
    given |= checked(notebook, dict(split_assignment(text) for text in assignments), "-p")
    if out and "run_dir" in notebook.parameters:
        given["run_dir"] = out
    folder = resolve(out or (notebook.defaults | given).get("run_dir", f"runs/{notebook.name}"))
    check_folder(folder)
    inputs = input_paths(notebook.defaults | given, folder)
    stage = Stage(name=notebook.name, notebook=notebook, folder=folder, given=given, inputs=inputs, needs=())
    return Plan(name=notebook.name, folder=folder, stages=(stage,), jobs=1, report=False)


def plan_recipe(path: Path, *, assignments: list[str], out: str, preset_name: str) -> Plan:
    """Plan of a recipe: default < recipe < preset < -p; `out` "" leaves the recipe's own folder."""
    recipe, chosen = read_recipe(path), preset(preset_name)
    out = out or recipe["out"]
    check_folder(resolve(out))
    entries = {stage["name"]: stage for stage in recipe["stages"]}
    notebooks = {name: read_notebook(find_notebook(entry["notebook"], path)) for name, entry in entries.items()}
    extra = assigned(assignments, notebooks)
    stages = []
    for name, notebook in notebooks.items():
        given = checked(notebook, entries[name].get("parameters") or {}, f"stage {name} of {path.name}")
        given |= checked(notebook, chosen.get(notebook.name, {}), f"preset {preset_name}")
        given |= checked(notebook, extra[name], "-p")
        stages.append(placed_stage(name, notebook, given=given, out=out, names=list(entries)))
    return Plan(
        name=recipe["name"],
        folder=resolve(out),
        stages=tuple(stages),
        jobs=recipe.get("jobs", 1),
        report=recipe.get("report", False),
    )


def recipe_paths() -> list[Path]:
    """The recipes of the repository."""
    return sorted((repository_root() / "notebooks" / "recipes").glob("*.yaml"))


def preset(name: str) -> dict[str, dict[str, Value]]:
    """Parameters of one preset by notebook name, none for the name ""; WorkbenchError lists the presets that exist."""
    path = repository_root() / "notebooks" / "presets.yaml"
    known = read_mapping(path) if path.exists() else {}
    if name and name not in known:
        choices = ", ".join(known) or "none (notebooks/presets.yaml is missing)"
        raise WorkbenchError(f"There is no preset {name!r}{nearest(name, known)}: choose one of {choices}.")
    chosen = known.get(name) or {}
    if not isinstance(chosen, dict) or not all(isinstance(given or {}, dict) for given in chosen.values()):
        raise WorkbenchError(f"Preset {name} of {shown(path)} must map names of notebooks to `name: value` lines.")
    return {notebook: given or {} for notebook, given in chosen.items()}


def read_recipe(path: Path) -> dict:
    """A recipe's content with its keys and stage names checked."""
    recipe = {"name": path.stem, "out": f"runs/{path.stem}"} | read_mapping(path)
    check_keys(recipe, RECIPE_KEYS, shown(path))
    if not isinstance(recipe.get("stages"), list) or not recipe["stages"]:
        raise WorkbenchError(f"{shown(path)} has no stages: list at least one `- name: ...` with its `notebook: ...`.")
    if type(recipe.get("jobs", 1)) is not int or recipe.get("jobs", 1) < 1:
        raise WorkbenchError(f"{shown(path)} has jobs {recipe['jobs']!r}: give a whole number of at least 1.")
    if not isinstance(recipe["out"], str) or not recipe["out"] or type(recipe.get("report", False)) is not bool:
        raise WorkbenchError(f"{shown(path)} needs the name of a folder as `out` and true or false as `report`.")
    each = checked_each(recipe, shown(path))
    stages = (repeated for stage in recipe["stages"] for repeated in repetitions(stage, each, path))
    recipe["stages"] = [checked_stage(stage, path) for stage in stages]
    names = [stage["name"] for stage in recipe["stages"]]
    for name in names:
        if names.count(name) > 1:
            raise WorkbenchError(f"{shown(path)} has {names.count(name)} stages named {name}: give each its own name.")
    return recipe


def read_mapping(path: Path) -> dict:
    """Content of a YAML file; WorkbenchError where it is no YAML mapping."""
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise WorkbenchError(f"{shown(path)} is not valid YAML ({reason}): correct that line.") from error
    if not isinstance(content, dict):
        raise WorkbenchError(f"{shown(path)} holds {type(content).__name__} and must hold `name: value` lines.")
    return content


def checked_each(content: dict, owner: str) -> dict[str, list[Value]]:
    """The lists of `each`, for whose every value a stage is repeated."""
    each = content.get("each") or {}
    lists = each.values() if isinstance(each, dict) else [None]
    plain = all(isinstance(values, list) and values for values in lists)
    if not plain or not all(isinstance(value, str | int | float) for values in lists for value in values):
        raise WorkbenchError(
            f"{owner} has each {each!r}: write `each: {{seed: [0, 1, 2]}}`, one list of values per name."
        )
    return each


def repetitions(stage: object, each: dict[str, list[Value]], path: Path) -> list[object]:
    """The stage once for every combination of the values whose {names} its own name holds."""
    if not isinstance(stage, dict) or not isinstance(stage.get("name"), str):
        return [stage]
    lists = each | checked_each(stage, f"Stage {stage['name']} of {shown(path)}")
    used = [name for name in lists if f"{{{name}}}" in stage["name"]]
    parameters = stage.get("parameters") if isinstance(stage.get("parameters"), dict) else {}
    for name in lists:
        if name not in used and any(f"{{{name}}}" in str(value) for value in parameters.values()):
            raise WorkbenchError(
                f"Stage {stage['name']} of {shown(path)} uses {{{name}}} in a parameter: put it into its name as well, "
                "so that every repetition has a folder of its own."
            )
    combinations = itertools.product(*(lists[name] for name in used))
    plain = {key: value for key, value in stage.items() if key != "each"}
    return [replaced(plain, dict(zip(used, values, strict=True))) for values in combinations]


def replaced(entry: object, values: dict[str, Value]) -> object:
    """A stage, or a part of it, with {name} replaced; text that is nothing but {name} takes the value's type."""
    if isinstance(entry, dict):
        return {key: replaced(part, values) for key, part in entry.items()}
    if not isinstance(entry, str):
        return entry
    for name, value in values.items():
        if entry == f"{{{name}}}":
            return value
        entry = entry.replace(f"{{{name}}}", str(value))
    return entry


def checked_stage(stage: object, path: Path) -> dict:
    """A recipe's entry with its keys checked; its name defaults to the notebook's."""
    if not isinstance(stage, dict) or not isinstance(stage.get("notebook"), str):
        raise WorkbenchError(f"{shown(path)} has the stage {stage!r} without a notebook: write `notebook: 02_sft`.")
    check_keys(stage, STAGE_KEYS, f"A stage of {shown(path)}")
    stage = {"name": Path(stage["notebook"]).stem} | stage
    if not re.fullmatch(r"\w[\w.+=-]*", str(stage["name"])) or stage["name"] == "report":
        raise WorkbenchError(f"{shown(path)} has a stage named {stage['name']!r}: choose the plain name of a folder.")
    parameters = stage.get("parameters") or {}
    if not isinstance(parameters, dict) or "run_dir" in parameters:
        raise WorkbenchError(
            f"Stage {stage['name']} of {shown(path)} needs `name: value` parameters without run_dir: "
            "that is always the recipe's folder and the stage's name."
        )
    return stage | {"name": str(stage["name"])}


def check_keys(content: dict, known: tuple[str, ...], owner: str) -> None:
    for key in content:
        if key not in known:
            raise WorkbenchError(f"{owner} has the key {key!r}{nearest(str(key), known)}: use {', '.join(known)}.")


def find_notebook(text: str, recipe: Path) -> Path:
    """A recipe's notebook: a name, or a path that starts at the recipe's folder or at the repository root."""
    beside = recipe.parent / text
    path = beside.resolve() if beside.is_file() else find(text, recipe_paths())
    if path.suffix != ".ipynb":
        raise WorkbenchError(f"{text} is a recipe and {shown(recipe)} needs a notebook: see `workbench list`.")
    return path


def split_assignment(text: str) -> tuple[str, str]:
    """`-p name=value` as its two sides; WorkbenchError where one is missing."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise WorkbenchError(f"-p {text} is not of the form name=value: write for example -p kl_coef=0.05.")
    return name, value


def assigned(assignments: list[str], notebooks: dict[str, Notebook]) -> dict[str, dict[str, str]]:
    """By stage: `-p name=value` for every stage that has the parameter, `-p STAGE.name=value` for one."""
    given: dict[str, dict[str, str]] = {stage: {} for stage in notebooks}
    for text in assignments:
        target, value = split_assignment(text)
        stage, _, name = target.rpartition(".")
        if stage and stage not in notebooks:
            choices = f"{nearest(stage, notebooks)}: its stages are {', '.join(notebooks)}"
            raise WorkbenchError(f"-p {text} names no stage of the recipe{choices}.")
        if name == "run_dir":
            raise WorkbenchError(f"-p {text} would take a stage out of the recipe's folder: use --out.")
        asked = [stage] if stage else list(notebooks)
        owners = [owner for owner in asked if name in notebooks[owner].parameters]
        if not owners:
            known = dict.fromkeys(key for owner in asked for key in notebooks[owner].parameters)
            raise unknown_parameter(name, known, f"-p {text}: {stage or 'Every stage of the recipe'}")
        for owner in owners:
            given[owner][name] = value
    return given


def placed_stage(name: str, notebook: Notebook, *, given: dict[str, Value], out: str, names: list[str]) -> Stage:
    """The stage in its folder below `out`, with `{out}` replaced and the stages that it builds on."""
    root = resolve(out)
    if "run_dir" in notebook.parameters:
        given = given | {"run_dir": f"{{out}}/{name}"}
    inputs = input_paths(replace_out(notebook.defaults | given, str(root)), root / name)
    needs = needed_stages(name, inputs, out=root, names=names)
    given = replace_out(given, out)
    return Stage(name=name, notebook=notebook, folder=root / name, given=given, inputs=inputs, needs=needs)


def replace_out(given: dict[str, Value], out: str) -> dict[str, Value]:
    return {key: value.replace("{out}", out) if isinstance(value, str) else value for key, value in given.items()}


def input_paths(values: dict[str, Value], own: Path) -> tuple[Path, ...]:
    """Paths that the text parameters could mean (lists are split at commas), the stage's own folder left out."""
    pieces = [piece.strip() for value in values.values() if isinstance(value, str) for piece in value.split(",")]
    # A word such as "world" is the name of something, not the folder of that name.
    named = [piece for piece in pieces if "/" in piece or Path(piece).suffix]
    paths = [Path(os.path.normpath(resolve(piece))) for piece in named]
    return tuple(path for path in dict.fromkeys(paths) if path != own)


def needed_stages(stage: str, inputs: tuple[Path, ...], *, out: Path, names: list[str]) -> tuple[str, ...]:
    """Earlier stages that the inputs lie in, contain or match; WorkbenchError where one comes later."""
    earlier, needed = names[: names.index(stage)], set()
    for path in inputs:
        for name in names:
            folder = out / name
            inside = path.is_relative_to(folder) or fnmatch.fnmatchcase(str(folder), str(path))
            if path.is_relative_to(folder) and name not in (*earlier, stage):
                raise WorkbenchError(f"Stage {stage} reads stage {name}, which comes after it: list {name} first.")
            if name in earlier and (inside or folder.is_relative_to(path)):
                needed.add(name)
    return tuple(name for name in earlier if name in needed)


def check_folder(folder: Path) -> None:
    """WorkbenchError where the folder, or the nearest one above it that exists, cannot be written to."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise WorkbenchError(f"{shown(existing)} is a file: choose another output folder with --out.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise WorkbenchError(f"{shown(existing)} cannot be written to: choose another output folder with --out.")
