"""Grids: which parameters a sweep varies and which stages that reaches, read from `-p NAME=VALUES` and checked."""

import csv
import itertools
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from workbench import WorkbenchError
from workbench.pipeline.notebooks import Notebook, Parameter, Value
from workbench.pipeline.recipes import owners_of, split_assignment

LARGEST = 10_000  # points; more is a slip of the pen
RANGED = ("int", "float")  # kinds of parameters
RANGE = r"[+-]?\d{1,9}(:[+-]?\d{1,9}){1,2}"


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One `-p NAME=VALUES`."""

    text: str
    target: str  # NAME or STAGE.NAME
    parameter: str
    owners: tuple[str, ...]  # stages that have it
    values: tuple[Value, ...]
    swept: bool  # written as a list or a range; otherwise a constant


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A parameter that varies."""

    name: str  # NAME, or STAGE.NAME where two stages' NAME vary apart
    parameter: str
    stages: tuple[str, ...]  # that take its value
    values: tuple[Value, ...]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Every combination of the values of the axes, with constants for the rest."""

    axes: tuple[Axis, ...]
    constants: Mapping[str, Mapping[str, Value]]  # by stage and parameter

    @property
    def points(self) -> list[dict[str, Value]]:
        """Each combination as a value per axis; the last axis changes first."""
        names = [axis.name for axis in self.axes]
        return [
            dict(zip(names, values, strict=True)) for values in itertools.product(*(axis.values for axis in self.axes))
        ]

    def axes_of(self, stage: str) -> list[Axis]:
        """Those whose value the stage itself takes."""
        return [axis for axis in self.axes if stage in axis.stages]


def read_grid(assignments: list[Assignment], notebooks: Mapping[str, Notebook], *, gathering: Collection[str]) -> Grid:
    """The grid; where one parameter of a stage is given twice, the later counts.

    Stages that read the folder of the whole sweep (`gathering`) take varied values only where they are named. Raises
    WorkbenchError for an axis that reaches no stage, one that is given twice and more than `LARGEST` points.
    """
    if not assignments:
        raise WorkbenchError("A sweep varies something: write for example -p seed=0:3, or use `workbench run`.")
    settled = {(owner, each.parameter): each for each in assignments for owner in each.owners}
    constants = {stage: {} for stage in notebooks}
    for (stage, parameter), each in settled.items():
        if not each.swept:
            constants[stage][parameter] = each.values[0]
    axes = []
    for each in assignments:
        reached = [owner for owner in each.owners if settled[owner, each.parameter] is each]
        if each.swept:
            axes.append(_axis(each, reached, assignments, gathering=gathering))
    if math.prod(len(axis.values) for axis in axes) > LARGEST:
        sizes = " x ".join(f"{len(axis.values)} of {axis.name}" for axis in axes)
        raise WorkbenchError(f"The grid has {sizes} points: a sweep holds at most {LARGEST}.")
    return Grid(axes=tuple(axes), constants=constants)


def _axis(each: Assignment, reached: list[str], assignments: list[Assignment], *, gathering: Collection[str]) -> Axis:
    targets = [other.target for other in assignments]
    if targets.count(each.target) > 1:
        raise WorkbenchError(f"-p {each.target} is given twice: write its values as one list, {each.target}=A,B.")
    if each.target == each.parameter:
        reached = [stage for stage in reached if stage not in gathering] or reached
    if not reached:
        raise WorkbenchError(f"-p {each.text} reaches no stage: later -p set {each.parameter} for each of them.")
    alone = sum(other.swept and other.parameter == each.parameter for other in assignments) == 1
    name = each.parameter if alone else each.target
    return Axis(name=name, parameter=each.parameter, stages=tuple(reached), values=each.values)


def read_assignment(text: str, notebooks: dict[str, Notebook]) -> Assignment:
    """`-p NAME=VALUES` with the type of its parameter; WorkbenchError where a stage, name or value does not fit."""
    target, given = split_assignment(text)
    owners = owners_of(target, notebooks, f"-p {text}")
    parameter = target.rpartition(".")[2]
    found = {notebooks[owner].parameters[parameter].kind: notebooks[owner].parameters[parameter] for owner in owners}
    if len(found) > 1:
        kinds = f"{' and '.join(found)} in {', '.join(owners)}"
        raise WorkbenchError(f"-p {text}: {parameter} is {kinds}: name the stage, {owners[0]}.{parameter}=VALUES.")
    values, swept = read_values(given, *found.values(), source=f"-p {text}")
    return Assignment(
        text=text, target=target, parameter=parameter, owners=tuple(owners), values=tuple(values), swept=swept
    )


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
