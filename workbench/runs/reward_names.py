"""Rewards by name: what a parameter such as `reward_model` may say is read here alone.

runs/x/05_reward_model       a reward model: a run, a model folder or a Hub id
my_file.py:score             a function of one's own
task:sums                    what the task itself can check of an answer (`Task.rewards`)
task:sums*2 + runs/x/rm*0.3  a sum, each + between spaces; a part of weight 0 is only measured
task:sums else runs/x/rm     the first for prompts that it judges, the second for all others
runs/x/safety*2 for harm     a part that is asked about prompts of one kind alone
first, second                several
"""

import ast
import re
from collections import Counter
from collections.abc import Callable, Collection
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from workbench import WorkbenchError
from workbench.runs.files import file_and_function, resolve, shown

TAKEN = {"step", "row", "n", "kl", "reward", "proxy", "gold", "prompt", "completion", "finished"}  # columns of tables
TAKEN |= {"rival", "won"}
PARAMETERS = ("reward_model", "judges", "verifier")  # of notebooks, in which rewards are named
OF_TASK = "task:"
CHECKS = ("sums", "steps", "format", "facts", "false_facts", "unsure", "refusals", "gold")
OF_WORLD, KINDS = tuple(OF_TASK + name for name in CHECKS), ("suggest", "qa", "harm", "math")  # of the embedded one
SIGNATURE = "(prompts, completions, *, finished, **columns)"  # of a reward
WEIGHT = r"\s*\*\s*[-+]?\d*\.?\d+(?:e[-+]?\d+)?"
FOR = r"\s+for\s+\w+"
BETWEEN = re.compile(rf"(\s*,\s*|\s+\+\s+|\s+else\s+|(?:{FOR}|{WEIGHT})(?=[\s,*]|$))")


class Named(NamedTuple):
    """A reward that a text names."""

    sources: dict[str, str]  # of its parts, by their names
    sums: list[Counter[str]]  # the weight of each part; for a prompt the first sum that judges it counts


def with_sources(text: str, change: Callable[[str], str]) -> str:
    """`text` with `change` of every source in the place of it."""
    return "".join(change(piece) if piece and not at % 2 else piece for at, piece in enumerate(BETWEEN.split(text)))


def sources_of(text: str) -> list[str]:
    """Where the rewards that `text` names are read from, in order."""
    return [piece.strip() for piece in BETWEEN.split(text)[::2] if piece.strip()]


def is_model(source: str) -> bool:
    """Whether it is a reward model, and no function or check of the task."""
    return not source.startswith(OF_TASK) and not file_and_function(source)[1]


def read_rewards(text: str) -> dict[str, Named]:
    """The rewards that `text` lists, by their names; WorkbenchError where it can not be read."""
    rewards: dict[str, Named] = {}
    for spelled in filter(None, map(str.strip, text.split(","))):
        name, sources, sums = with_sources(spelled, _name), {}, []
        for one in re.split(r"\s+else\s+", spelled):
            sums.append(Counter())
            for source, weight in map(weighted, re.split(r"\s+\+\s+", one)):
                sums[-1][_name(source)] += weight
                if name in rewards or sources.setdefault(_name(source), source) != source:
                    raise WorkbenchError(f"{text!r} names two rewards {_name(source)!r}: rename one of them.")
        if len(sources) > 1 and (taken := TAKEN.intersection(sources)):
            raise WorkbenchError(f"{spelled!r} has a part {taken.pop()!r}, a column of every table: rename the part.")
        if not any(weight for one in sums for weight in one.values()):
            raise WorkbenchError(
                f"{spelled!r} counts nothing: give a part a weight other than 0 (one of weight 0 is only measured)."
            )
        rewards[name] = Named(sources, sums)
    return rewards


def require_reward(source: str, of_task: Collection[str], kinds: Collection[str]) -> None:
    """WorkbenchError where `source` can be seen to be no reward without running it; the task's are given by name."""
    alone, kind = without_kind(source)
    if alone.startswith(OF_TASK) and alone not in of_task:
        known = f"choose one of {', '.join(of_task)}" if of_task else "only the embedded world checks answers itself"
        raise WorkbenchError(
            f"This task has no reward {alone!r}: {known}; or write my_file.py:score, which is given every column."
        )
    if kind and kind not in kinds:
        known = f"choose one of {', '.join(kinds)}" if kinds else "only the embedded world knows kinds"
        raise WorkbenchError(f"{source!r} is for prompts of a kind that there is not: {known}.")
    file, function = file_and_function(alone)
    if file.endswith(".py"):
        _require_function(file, function)
    elif ":" in Path(alone).name and not alone.startswith(OF_TASK) and not resolve(alone).exists():
        raise WorkbenchError(f"The reward {alone!r} names no file and function: write my_file.py:score, or task:sums.")


def _require_function(file: str, function: str) -> None:
    """WorkbenchError where a Python file is not there, can not be read or nowhere speaks of the function."""
    path, reward = resolve(file), f"The reward {file}:{function}".removesuffix(":")
    if not path.is_file():
        raise WorkbenchError(f"{reward} names a file that does not exist: check the path.")
    try:
        nodes = [*ast.walk(ast.parse(path.read_bytes()))]
    except (SyntaxError, ValueError, OSError) as error:
        said = f"{type(error).__name__}: {error}"
        raise WorkbenchError(f"{shown(path)}, the file of a reward, does not run ({said:.200}): correct it.") from error
    named = {getattr(node, "asname", None) or getattr(node, "name", getattr(node, "id", "")) for node in nodes}
    if not function or not {function, "*"} & named:
        known = ", ".join(node.name for node in nodes if isinstance(node, ast.FunctionDef)) or "none"
        told = f"name one that takes {SIGNATURE}, as in {path.name}:score"
        raise WorkbenchError(f"{reward} names no function of its file, which has {known}: {told}.")


def without_kind(source: str) -> tuple[str, str]:
    """A source, and the kind of prompts that it is for, "" where it is for all."""
    alone, *kind = re.split(rf"(?={FOR}$)", source)
    return alone, "".join(kind).strip().removeprefix("for").strip()


def weighted(text: str) -> tuple[str, float]:
    """What is given a weight, and that, 1 where none is written; WorkbenchError where neither can be read."""
    text, kind = without_kind(re.sub(rf"({FOR})({WEIGHT})$", r"\2\1", text.strip()))
    named = re.sub(rf"{WEIGHT}$", "", text)
    weight = float(text[len(named) :].strip(" *") or 1)
    plain = not {"+", "else"}.intersection(named.split()) and (OF_TASK not in named or re.fullmatch(r"task:\w*", named))
    if not plain or not named or "*" in named or not isfinite(weight):
        raise WorkbenchError(
            f"{text!r} can not be read: write each weight behind its name, as in task:sums*2 + runs/mine/rm*0.5."
        )
    return f"{named} for {kind}" if kind else named, weight


def _name(source: str) -> str:
    """That of the function, or the last of the folder; "task:sums" is a name already."""
    return file_and_function(source)[1] or Path(source).name
