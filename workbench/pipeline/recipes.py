"""Recipe files: YAML whose keys are checked, with stages that are repeated for lists of values."""

import fnmatch
import functools
import glob
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from workbench import WorkbenchError
from workbench.pipeline.notebooks import (
    Notebook,
    Value,
    checked,
    find,
    nearest,
    notebook_paths,
    read_notebook,
    unknown_parameter,
)
from workbench.runs.files import file_and_function, refuse_everything, repository_root, resolve, shown
from workbench.runs.reward_names import KINDS, OF_WORLD, PARAMETERS, read_rewards, require_reward, sources_of

RECIPE_KEYS = ("name", "title", "out", "jobs", "report", "each", "presets", "stages")
COUNTS = ("threads", "processes")
STAGE_KEYS = ("name", "notebook", "parameters", "each", "threads", "processes")


def read_recipe(path: Path, preset_name: str = "") -> dict:
    """A recipe's content with its keys and stage names checked, and with the lists that it gives `preset_name`."""
    recipe, owner = {"name": path.stem, "out": f"runs/{path.stem}"} | read_mapping(path), shown(path)
    check_keys(recipe, RECIPE_KEYS, owner)
    if not isinstance(recipe.get("stages"), list) or not recipe["stages"]:
        raise WorkbenchError(f"{owner} has no stages: list at least one `- name: ...` with its `notebook: ...`.")
    if type(recipe.get("jobs", 1)) is not int or recipe.get("jobs", 1) < 1:
        raise WorkbenchError(f"{owner} has jobs {recipe['jobs']!r}: give a whole number of at least 1.")
    if not isinstance(recipe["out"], str) or not recipe["out"]:
        raise WorkbenchError(f"{owner} needs the name of a folder as `out`.")
    lists, instead = checked_each(recipe, owner), lists_of_preset(recipe, preset_name, owner)
    stages = (repeated for stage in recipe["stages"] for repeated in repetitions(stage, lists, instead, owner))
    recipe["stages"] = [checked_stage(stage, owner) for stage in stages]
    names = [stage["name"] for stage in recipe["stages"]]
    for name in names:
        if names.count(name) > 1:
            raise WorkbenchError(f"{owner} has {names.count(name)} stages named {name}: give each its own name.")
    report = recipe.get("report", False)
    named = report if isinstance(report, list) else []
    if type(report) not in (bool, list) or not all(name in names for name in named):
        raise WorkbenchError(
            f"{owner} has report {report!r}: write true (a page per stage), false, or a list of names of its stages."
        )
    return recipe


def read_mapping(path: Path) -> dict:
    """Content of a YAML file; WorkbenchError where it is no YAML mapping."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
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


def lists_of_preset(recipe: dict, name: str, owner: str) -> dict[str, list[Value]]:
    """What `presets: {smoke: {each: ...}}` puts in the place of longer lists: a check needs no three seeds."""
    presets = recipe.get("presets") or {}
    if not isinstance(presets, dict) or not all(isinstance(chosen, dict) for chosen in presets.values()):
        raise WorkbenchError(f"{owner} has presets {presets!r}: write `presets: {{smoke: {{each: {{seed: [0]}}}}}}`.")
    check_keys(presets.get(name, {}), ("each",), f"Preset {name} of {owner}")
    return checked_each(presets.get(name, {}), f"Preset {name} of {owner}")


def repetitions(
    stage: object, lists: dict[str, list[Value]], instead: dict[str, list[Value]], owner: str
) -> list[object]:
    """The stage once for every combination of the values whose {names} its own name holds; a single one needs none."""
    if not isinstance(stage, dict) or not isinstance(stage.get("name"), str):
        return [stage]
    lists = lists | checked_each(stage, f"Stage {stage['name']} of {owner}")
    lists |= {name: values for name, values in instead.items() if name in lists}
    used = {name: values for name, values in lists.items() if f"{{{name}}}" in stage["name"] or len(values) == 1}
    parameters = stage.get("parameters") if isinstance(stage.get("parameters"), dict) else {}
    for name in lists:
        if name not in used and any(f"{{{name}}}" in str(value) for value in parameters.values()):
            raise WorkbenchError(
                f"Stage {stage['name']} of {owner} uses {{{name}}} in a parameter: put it into its name as well, "
                "so that every repetition has a folder of its own."
            )
    plain = {key: value for key, value in stage.items() if key != "each"}
    return [replaced(plain, values) for values in combinations(used)]


def combinations(lists: Mapping[str, Sequence[Value]]) -> list[dict[str, Value]]:
    """One value of each list, in every way; the last list changes first."""
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


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


def checked_stage(stage: object, owner: str) -> dict:
    """A recipe's entry with its keys checked; its name defaults to the notebook's."""
    if not isinstance(stage, dict) or not isinstance(stage.get("notebook"), str):
        raise WorkbenchError(f"{owner} has the stage {stage!r} without a notebook: write `notebook: 02_sft`.")
    check_keys(stage, STAGE_KEYS, f"A stage of {owner}")
    stage = {"name": Path(stage["notebook"]).stem} | stage
    named = isinstance(stage["name"], str) and re.fullmatch(r"\w[\w.+=-]*", stage["name"])
    if not named or stage["name"] == "report":
        said = "choose the plain name of a folder" + ("" if isinstance(stage["name"], str) else ", in quotes")
        raise WorkbenchError(f"{owner} has a stage named {stage['name']!r}: {said}.")
    parameters = stage.get("parameters") or {}
    if not isinstance(parameters, dict) or "run_dir" in parameters:
        raise WorkbenchError(
            f"Stage {stage['name']} of {owner} needs `name: value` parameters without run_dir: "
            "that is always the recipe's folder and the stage's name."
        )
    for name in COUNTS:
        if type(count := stage.get(name, 1)) is not int or not 1 <= count <= 9999:
            raise WorkbenchError(
                f"Stage {stage['name']} of {owner} has {name} {count!r}: give a whole number, 1 to 9999."
            )
    return stage


def check_keys(content: dict, known: tuple[str, ...], owner: str) -> None:
    for key in content:
        if key not in known:
            raise WorkbenchError(f"{owner} has the key {key!r}{nearest(str(key), known)}: use {', '.join(known)}.")


# Plans: one notebook or a recipe of several, with presets and given parameters, checked before anything starts

# Parameters that name what a notebook reads: runs, model folders and Hub ids, files and folders of data.
SOURCES = (
    *("model", "tokenizer", "reward_model", "judges", "judge", "policy", "dataset", "comparisons", "ptx_dataset"),
    *("verifier", "lexicon", "feedback", "ask_first", "study_runs", "runs", "others", "mixed_with", "skills_run"),
    *("reference_model", "rival_model"),
)
MODELS = ("model", "reward_model", "policy", "others", "reference_model", "rival_model")
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".txt", ".yaml")
# Objectives of 05 and losses of 08 that learn from more than pairs: what notebook 03 calls it in its `kinds`.
FEEDBACK = {"bradley_terry_margin": "margins", "rating": "ratings", "process": "steps"}
FEEDBACK |= dict.fromkeys(("pairwise_ranking", "plackett_luce", "best_of_k", "rrhf"), "rankings")
MAKE = {"tour": "`make run`", "study": "`make study`"}  # the recipes that make knows


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A notebook with its parameters, as a stage of a recipe that has no folder yet: {out} stands for that of all."""

    name: str
    notebook: Notebook
    given: dict[str, Value]  # parameters that were set by recipe, preset or command line
    threads: int = 1  # that it begins with: WORKBENCH_THREADS has the last word
    processes: int = 1  # that share its work, each with as many threads

    @property
    def values(self) -> dict[str, Value]:
        """Every parameter with the value that the notebook will see."""
        return self.notebook.defaults | self.given


@dataclass(frozen=True, kw_only=True)
class Stage(Entry):
    """One notebook with its parameters and the folder that its results go to."""

    folder: Path
    inputs: tuple[Path, ...]  # paths that its parameters point at
    needs: tuple[str, ...]  # earlier stages that these paths lie in


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The stages of one command, in order."""

    name: str
    folder: Path
    stages: tuple[Stage, ...]
    jobs: int  # stages that may run side by side
    report: bool  # whether the report is written at the end
    shown: tuple[str, ...] = ()  # stages that it shows, all where it is empty


def plan_notebook(path: Path, *, assignments: list[str], out: str, preset_name: str, processes: int = 1) -> Plan:
    """Plan of one notebook: default < preset < -p; `out` "" leaves the notebook's own run_dir."""
    entry = notebook_entry(path, preset_name)
    notebook, given = entry.notebook, entry.given
    given |= checked(notebook, dict(split_assignment(text) for text in assignments), "-p")
    if out and "run_dir" in notebook.parameters:
        given["run_dir"] = out
    folder = resolve(out or (notebook.defaults | given).get("run_dir", f"runs/{notebook.name}"))
    check_folder(folder)
    inputs = input_paths(notebook.defaults | given, folder)
    placed = {"folder": folder, "given": given, "inputs": inputs, "needs": (), "processes": processes}
    stage = Stage(name=notebook.name, notebook=notebook, **placed)
    return Plan(name=notebook.name, folder=folder, stages=(stage,), jobs=1, report=False)


def plan_recipe(path: Path, *, assignments: list[str], out: str, preset_name: str) -> Plan:
    """Plan of a recipe: default < recipe < preset < -p; `out` "" leaves the recipe's own folder."""
    recipe = read_recipe(path, preset_name)
    out = out or recipe["out"]
    entries = recipe_entries(recipe, path, preset_name)
    check_folder(resolve(out))
    names = [entry.name for entry in entries]
    extra = assigned(assignments, {entry.name: entry.notebook for entry in entries})
    given = [checked(entry.notebook, extra[entry.name], "-p") for entry in entries]
    stages = [placed_stage(entry, own, out=out, names=names) for entry, own in zip(entries, given, strict=True)]
    return Plan(
        name=recipe["name"],
        folder=resolve(out),
        stages=tuple(stages),
        jobs=recipe.get("jobs", 1),
        report=bool(recipe.get("report", False)),
        shown=tuple(recipe["report"]) if isinstance(recipe.get("report"), list) else (),
    )


def notebook_entry(path: Path, preset_name: str) -> Entry:
    """A notebook as the one stage of a recipe, with what the preset sets."""
    notebook = read_notebook(path)
    given = checked(notebook, preset(preset_name).get(notebook.name, {}), f"preset {preset_name}")
    return Entry(name=notebook.name, notebook=notebook, given=given)


def recipe_entries(recipe: dict, path: Path, preset_name: str) -> list[Entry]:
    """The stages of a recipe that `read_recipe` read at `path`, with what recipe and preset set."""
    chosen, entries, read = preset(preset_name), [], functools.cache(read_notebook)
    for stage in recipe["stages"]:
        notebook = read(find_notebook(stage["notebook"], path))
        given = checked(notebook, stage.get("parameters") or {}, f"stage {stage['name']} of {path.name}")
        given |= checked(notebook, chosen.get(notebook.name, {}), f"preset {preset_name}")
        counts = {name: stage.get(name, 1) for name in COUNTS}
        entries.append(Entry(name=stage["name"], notebook=notebook, given=given, **counts))
    return entries


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
        for owner in owners_of(target, notebooks, f"-p {text}"):
            given[owner][target.rpartition(".")[2]] = value
    return given


def owners_of(target: str, notebooks: dict[str, Notebook], source: str) -> list[str]:
    """The stages that have the parameter `name` or `STAGE.name`; WorkbenchError where there is none."""
    stage, _, name = target.rpartition(".")
    if stage and stage not in notebooks:
        choices = f"{nearest(stage, notebooks)}: its stages are {', '.join(notebooks)}"
        raise WorkbenchError(f"{source} names no stage of the recipe{choices}.")
    if name == "run_dir":
        raise WorkbenchError(f"{source} would take a stage out of the recipe's folder: use --out.")
    asked = [stage] if stage else list(notebooks)
    owners = [owner for owner in asked if name in notebooks[owner].parameters]
    if not owners:
        known = dict.fromkeys(key for owner in asked for key in notebooks[owner].parameters)
        raise unknown_parameter(
            name, known, f"{source}: {asked[0] if len(asked) == 1 else 'Every stage of the recipe'}"
        )
    return owners


def placed_stage(entry: Entry, given: dict[str, Value], *, out: str, names: list[str]) -> Stage:
    """The entry, also with these values, in its folder below `out`: {out} replaced, with the stages it builds on."""
    name, notebook, given, root = entry.name, entry.notebook, entry.given | given, resolve(out)
    if "run_dir" in notebook.parameters:
        given = given | {"run_dir": f"{{out}}/{name}"}
    inputs = input_paths(replace_out(notebook.defaults | given, str(root)), root / name)
    needs = needed_stages(name, inputs, out=root, names=names)
    given = replace_out(given, out)
    changed = {"given": given, "folder": root / name, "inputs": inputs, "needs": needs}
    return Stage(**vars(entry) | changed)


def replace_out(given: dict[str, Value], out: str) -> dict[str, Value]:
    return {key: value.replace("{out}", out) if isinstance(value, str) else value for key, value in given.items()}


def input_paths(values: dict[str, Value], own: Path) -> tuple[Path, ...]:
    """Paths that the text parameters could mean (lists are split at commas), the stage's own folder left out."""
    texts = {name: value for name, value in values.items() if isinstance(value, str)}
    split = {name: sources_of(text) if name in PARAMETERS else text.split(",") for name, text in texts.items()}
    pieces = [piece.strip() for listed in split.values() for piece in listed]
    # A word such as "world" is the name of something, not the folder of that name.
    named = [piece for piece in pieces if "/" in piece or Path(piece).suffix]
    paths = [Path(os.path.normpath(resolve(file_and_function(piece)[0]))) for piece in named]
    return tuple(path for path in dict.fromkeys(paths) if path != own)


def needed_stages(stage: str, inputs: tuple[Path, ...], *, out: Path, names: list[str]) -> tuple[str, ...]:
    """Earlier stages that the inputs lie in, contain or match; WorkbenchError where one comes later."""
    earlier, needed = names[: names.index(stage)], set()
    for path in inputs:
        within = path.relative_to(out).parts[:1] if path.is_relative_to(out) else ()
        if later := set(within) & set(names) - {*earlier, stage}:
            name = later.pop()
            raise WorkbenchError(f"Stage {stage} reads stage {name}, which comes after it: list {name} first.")
        if set(within) & set(earlier):
            needed.add(within[0])
        elif set("*?[") & set(str(path)) or out.is_relative_to(path):
            needed.update(name for name in earlier if _reaches(path, out / name))
    return tuple(name for name in earlier if name in needed)


def refuse_missing_inputs(stage: Stage) -> None:
    """WorkbenchError where a parameter names no reward, or what neither is there nor is made before."""
    its = ((), ()) if resolve(str(stage.values.get("dataset", ""))).is_file() else (OF_WORLD, KINDS)
    rewards = (read_rewards(str(stage.values.get(name, ""))) for name in PARAMETERS)
    for source in (source for read in rewards for named in read.values() for source in named.sources.values()):
        require_reward(source, *its)
    made = [stage.folder.parent / need for need in stage.needs]
    for name in SOURCES:
        for path in input_paths({name: stage.values.get(name, "")}, stage.folder):
            refuse_everything(path)
            problem = "" if path.exists() or glob.glob(str(path), recursive=True) else "does not exist"
            if name in MODELS and (path / "run.json").exists() and not (path / "model").exists():
                problem = "holds a run without a model"
            if problem and not any(_reaches(path, folder) for folder in made) and not _may_be_hub_id(path):
                raise WorkbenchError(
                    f"{shown(path)} {problem}, and {stage.name} reads it ({name}): {how_to_make(path)}."
                )


def refuse_missing_feedback(plan: Plan) -> None:
    """WorkbenchError where a stage learns from feedback that the stage which it reads does not make."""
    stages = {stage.folder: stage for stage in plan.stages}
    for stage in plan.stages:
        learns = stage.values.get("objective", stage.values.get("loss"))
        for folder in input_paths({"dataset": stage.values.get("dataset", "")}, stage.folder) if learns else ():
            maker, asked = stages.get(folder), FEEDBACK.get(learns, "pairs")
            kinds = maker.notebook.parameters.get("kinds") if maker else None
            made = maker.values["kinds"] if kinds and "pairs" in kinds.choices else ""
            if maker and asked not in map(str.strip, made.split(",")):
                cure = f'give {maker.name} kinds: "pairs,{asked}"' if made else "read a stage of 03_preferences"
                raise WorkbenchError(
                    f"Stage {stage.name} learns from {asked} ({learns}), but {maker.name}, which it reads as dataset, "
                    f"makes {made or 'no feedback'}: {cure}."
                )


def _reaches(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder, holds it or is a pattern that it fits."""
    return path.is_relative_to(folder) or folder.is_relative_to(path) or fnmatch.fnmatchcase(str(folder), str(path))


def _may_be_hub_id(path: Path) -> bool:
    """Whether a path that is not there could be OWNER/NAME: two words, no file's ending, no folder of this name."""
    root = repository_root()
    parts = path.relative_to(root).parts if path.is_relative_to(root) else ()
    ending = path.suffix.lower() in ENDINGS
    return len(parts) < 3 and bool(parts) and not ending and parts[0] != "runs" and not (root / parts[0]).exists()


def how_to_make(path: Path) -> str:
    """The command that makes a path that is missing, where a notebook or recipe of the repository does."""
    ways = []
    for notebook in map(read_notebook, notebook_paths()):
        own = resolve(str(notebook.defaults.get("run_dir", f"runs/{notebook.name}")))
        if path.is_relative_to(own):
            ways.append(f"`workbench run {notebook.name}`")
        elif notebook.name in (path.name, path.parent.name):
            out = path if path.name == notebook.name else path.parent
            ways.append(f"`workbench run {notebook.name} --out {shown(out)}`")
    for recipe in recipe_paths():
        if path.is_relative_to(resolve(read_recipe(recipe)["out"])):
            ways.append(MAKE.get(recipe.stem, f"`workbench run {recipe.stem}`"))
    return f"make it with {' or '.join(ways)}" if ways else "check the path (relative ones start at the repository)"


def check_folder(folder: Path) -> None:
    """WorkbenchError where the folder, or the nearest one above it that exists, cannot be written to."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise WorkbenchError(f"{shown(existing)} is a file: choose another output folder with --out.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise WorkbenchError(f"{shown(existing)} cannot be written to: choose another output folder with --out.")
