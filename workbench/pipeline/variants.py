"""The stages of a sweep: each once for all points that share it, in a folder whose name says what it depends on."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from workbench import WorkbenchError
from workbench.pipeline.grids import Grid
from workbench.pipeline.notebooks import Value
from workbench.pipeline.recipes import Entry, Stage, input_paths, placed_stage
from workbench.runs.files import resolve

# Runs that differ only in these are put together where figures are drawn, by the ends of their names.
REPETITIONS = {"world_seed": "world", "seed": "seed"}
LONGEST_VALUE = 40  # characters of a folder's name


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A stage at certain values of the axes that it, or what it builds on, depends on."""

    entry: str  # the recipe's name for it
    stage: Stage  # in its own folder, reading those of its kin; needs only the stages whose folders it names
    gathers: tuple[str, ...]  # entries that it reads as part of the whole folder
    values: Mapping[str, Value]  # by axis


class Variants:
    """The variant that each stage of a recipe has at each point of a grid."""

    def __init__(self, entries: list[Entry], grid: Grid, out: str):
        self.entries, self.grid, self.out = {entry.name: entry for entry in entries}, grid, out
        self.titles = same_work(self.entries, grid)
        self.made: dict[str, Variant] = {}  # by folder
        self._placed: dict[tuple, tuple[Stage, list[str]]] = {}

    def at(self, point: Mapping[str, Value]) -> dict[str, Variant]:
        """The variant of every entry at a point."""
        found: dict[str, Variant] = {}
        for name in self.entries:
            own = {axis.name: point[axis.name] for axis in self.grid.axes_of(name)}
            placed, direct = self._place(name, own)
            used = set(own).union(*(found[need].values for need in direct))
            values = {axis.name: point[axis.name] for axis in self.grid.axes if axis.name in used}
            moved = {need: found[need].stage.name for need in direct}
            found[name] = self._make(name, placed, moved=moved, values=values)
        return found

    def _place(self, name: str, own: Mapping[str, Value]) -> tuple[Stage, list[str]]:
        """The entry with its own values of the axes in the folder of its name, and its `direct_needs`; made once."""
        key = (name, *own.values())
        if key not in self._placed:
            entry = self.entries[name]
            swept = {axis.parameter: own[axis.name] for axis in self.grid.axes_of(name)}
            given = entry.given | dict(self.grid.constants[name]) | swept
            placed = placed_stage(name, entry.notebook, given=given, out=self.out, names=list(self.entries))
            self._placed[key] = placed, direct_needs(placed, resolve(self.out))
        return self._placed[key]

    def _make(self, name: str, placed: Stage, *, moved: Mapping[str, str], values: Mapping[str, Value]) -> Variant:
        """The variant in its folder; the one that is there already where it is the same work."""
        title = self.titles[name]
        folder = folder_name(title, values)
        if folder not in self.made:
            stage = moved_stage(placed, folder, moved=moved, out=self.out)
            gathers = tuple(need for need in placed.needs if need not in moved)
            self.made[folder] = Variant(entry=title, stage=stage, gathers=gathers, values=values)
        if (self.made[folder].entry, self.made[folder].values) != (title, values):
            raise WorkbenchError(f"Two stages of this sweep would share the folder {folder}: rename one in the recipe.")
        return self.made[folder]


def gathering_entries(entries: list[Entry], constants: Mapping[str, Mapping[str, Value]], out: str) -> set[str]:
    """Names of the entries that read the folder of the whole sweep, or all folders in it that fit a pattern."""
    names, found = [entry.name for entry in entries], set()
    for entry in entries:
        given = entry.given | dict(constants.get(entry.name, {}))
        placed = placed_stage(entry.name, entry.notebook, given=given, out=out, names=names)
        if set(placed.needs) - set(direct_needs(placed, resolve(out))):
            found.add(entry.name)
    return found


def direct_needs(stage: Stage, root: Path) -> list[str]:
    """Stages that one of the inputs is, or lies in."""
    return [need for need in stage.needs if any(path.is_relative_to(root / need) for path in stage.inputs)]


def same_work(entries: Mapping[str, Entry], grid: Grid) -> dict[str, str]:
    """By entry, the shortest name of those that do the same: equal notebook, parameters, axes and inputs."""
    first: dict[str, str] = {}  # the first entry that does the same, by entry
    seen: dict[str, str] = {}
    for name, entry in entries.items():
        axes = {axis.parameter: axis.name for axis in grid.axes_of(name)}
        values = entry.notebook.defaults | entry.given | dict(grid.constants[name])
        plain = {key: value for key, value in values.items() if key not in ("run_dir", *axes)}
        reads = {key: with_entries(value, first) for key, value in plain.items()}
        whole = name if any(str(value) == "{out}" or "*" in str(value) for value in reads.values()) else ""
        work = json.dumps([str(entry.notebook.path), sorted(reads.items()), sorted(axes.items()), whole])
        first[name] = seen.setdefault(work, name)
    groups = {name: [other for other in first if first[other] == first[name]] for name in first}
    return {name: min(group, key=len) for name, group in groups.items()}


def with_entries(value: Value, first: Mapping[str, str]) -> Value:
    """Text with every {out}/ENTRY replaced by the first entry that does the same."""
    if not isinstance(value, str):
        return value
    return re.sub(r"(?<=\{out\}/)[\w.+=-]+", lambda found: first.get(found[0], found[0]), value)


def moved_stage(placed: Stage, folder: str, *, moved: Mapping[str, str], out: str) -> Stage:
    """The stage in another folder below `out`, with every path into a folder of `moved` leading to its new name."""
    root = resolve(out)
    given = dict(placed.given)
    for name, value in placed.values.items():
        if isinstance(value, str) and (other := moved_paths(value, moved, out=out)) != value:
            given[name] = other
    if "run_dir" in placed.notebook.parameters:
        given["run_dir"] = f"{out}/{folder}"
    inputs = input_paths(placed.notebook.defaults | given, root / folder)
    needs = tuple(dict.fromkeys(moved.values()))
    return replace(placed, name=folder, folder=root / folder, given=given, inputs=inputs, needs=needs)


def moved_paths(text: str, moved: Mapping[str, str], *, out: str) -> str:
    """A path, or several with commas, with those in a folder of `moved` leading to its new name."""
    return ",".join(_moved_path(piece, moved, out=out) for piece in text.split(","))


def _moved_path(piece: str, moved: Mapping[str, str], *, out: str) -> str:
    if not any(old in piece for old in moved) or ("/" not in piece and not Path(piece).suffix):  # a word is no path
        return piece
    path = Path(os.path.normpath(resolve(piece.strip())))
    for old, new in moved.items():
        if old != new and path.is_relative_to(resolve(out) / old):
            return f"{out}/{(Path(new) / path.relative_to(resolve(out) / old)).as_posix()}"
    return piece


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


def repeated_entry_named_by(variant: Variant, folders: Mapping[str, list[str]]) -> str:
    """An entry that a stage looks for by name in the whole folder, where it has other names; "" where there is none.

    `folders` has the folders of every entry.
    """
    texts = [value for value in variant.stage.values.values() if isinstance(value, str)] if variant.gathers else []
    return next((text for text in texts if folders.get(text, [text]) != [text]), "")
