"""Recipe files: YAML whose keys are checked, with stages that are repeated for lists of values."""

import itertools
import re
from pathlib import Path

import yaml

from workbench import WorkbenchError
from workbench.pipeline.notebooks import Value, nearest
from workbench.runs.files import shown

RECIPE_KEYS = ("name", "title", "out", "jobs", "report", "each", "presets", "stages")
STAGE_KEYS = ("name", "notebook", "parameters", "each")


def read_recipe(path: Path, preset_name: str = "") -> dict:
    """A recipe's content with its keys and stage names checked, and with the lists that it gives `preset_name`."""
    recipe = {"name": path.stem, "out": f"runs/{path.stem}"} | read_mapping(path)
    check_keys(recipe, RECIPE_KEYS, shown(path))
    if not isinstance(recipe.get("stages"), list) or not recipe["stages"]:
        raise WorkbenchError(f"{shown(path)} has no stages: list at least one `- name: ...` with its `notebook: ...`.")
    if type(recipe.get("jobs", 1)) is not int or recipe.get("jobs", 1) < 1:
        raise WorkbenchError(f"{shown(path)} has jobs {recipe['jobs']!r}: give a whole number of at least 1.")
    if not isinstance(recipe["out"], str) or not recipe["out"]:
        raise WorkbenchError(f"{shown(path)} needs the name of a folder as `out`.")
    each, instead = checked_each(recipe, shown(path)), lists_of_preset(recipe, preset_name, path)
    stages = (repeated for stage in recipe["stages"] for repeated in repetitions(stage, each, path, instead))
    recipe["stages"] = [checked_stage(stage, path) for stage in stages]
    names = [stage["name"] for stage in recipe["stages"]]
    for name in names:
        if names.count(name) > 1:
            raise WorkbenchError(f"{shown(path)} has {names.count(name)} stages named {name}: give each its own name.")
    check_report(recipe.get("report", False), names, shown(path))
    return recipe


def check_report(report: object, stages: list[str], owner: str) -> None:
    """WorkbenchError unless `report` is true, false or a list of some of the stages."""
    named = report if isinstance(report, list) else []
    unknown = [name for name in named if name not in stages]
    if type(report) not in (bool, list) or unknown:
        raise WorkbenchError(
            f"{owner} has report {report!r}: write true (a page per stage), false, or a list of names of its stages."
        )


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


def lists_of_preset(recipe: dict, name: str, path: Path) -> dict[str, list[Value]]:
    """What `presets: {smoke: {each: ...}}` puts in the place of longer lists: a check needs no three seeds."""
    presets = recipe.get("presets") or {}
    if not isinstance(presets, dict) or not all(isinstance(chosen, dict) for chosen in presets.values()):
        example = "presets: {smoke: {each: {seed: [0]}}}"
        raise WorkbenchError(f"{shown(path)} has presets {presets!r}: write `{example}`.")
    chosen = presets.get(name, {})
    check_keys(chosen, ("each",), f"Preset {name} of {shown(path)}")
    return checked_each(chosen, f"Preset {name} of {shown(path)}")


def repetitions(
    stage: object, each: dict[str, list[Value]], path: Path, instead: dict[str, list[Value]]
) -> list[object]:
    """The stage once for every combination of the values whose {names} its own name holds."""
    if not isinstance(stage, dict) or not isinstance(stage.get("name"), str):
        return [stage]
    lists = each | checked_each(stage, f"Stage {stage['name']} of {shown(path)}")
    lists |= {name: values for name, values in instead.items() if name in lists}
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
