"""Rewards by name: what a parameter such as `reward_model` may say is read here alone.

runs/x/05_reward_model       a reward model: a run, a model folder or a Hub id
my_file.py:score             a function of one's own
task:sums                    what the task itself can check of an answer (`Task.rewards`)
task:sums*2 + runs/x/rm*0.3  a sum, each + between spaces; a part of weight 0 is only measured
task:sums else runs/x/rm     the first for prompts that it judges, the second for all others
first, second                several
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from workbench import WorkbenchError
from workbench.runs.files import file_and_function

TAKEN = {
    "step",
    "row",
    "n",
    "temperature",
    "kl",
    "reward",
    "proxy",
    "gold",
    "prompt",
    "completion",
    "finished",
}  # columns
PARAMETERS = ("reward_model", "judges", "verifier")  # of notebooks, in which rewards are named
OF_TASK = "task:"
WEIGHT = r"\s*\*\s*([-+]?\d*\.?\d+(?:e[-+]?\d+)?)"
BETWEEN = re.compile(rf"(\s*,\s*|\s+\+\s+|\s+else\s+|{WEIGHT.replace('([', '(?:[')}(?=\s|,|$))")


class Part(NamedTuple):
    """A reward of a sum, and what one of its points is worth there."""

    source: str
    weight: float

    @property
    def name(self) -> str:
        """That of the function, or the last of the folder; "task:sums" is a name already."""
        return file_and_function(self.source)[1] or Path(self.source).name


Sums = tuple[tuple[Part, ...], ...]  # the first that judges a prompt counts


def with_sources(text: str, change: Callable[[str], str]) -> str:
    """`text` with `change` of every source in the place of it."""
    return "".join(change(piece) if piece and not at % 2 else piece for at, piece in enumerate(BETWEEN.split(text)))


def sources_of(text: str) -> list[str]:
    """Where the rewards that `text` names are read from, in order."""
    return [piece.strip() for piece in BETWEEN.split(text)[::2] if piece.strip()]


def is_model(source: str) -> bool:
    """Whether it is a reward model, and no function or check of the task."""
    return not source.startswith(OF_TASK) and not file_and_function(source)[1]


def read_rewards(text: str) -> dict[str, Sums]:
    """The rewards that `text` lists, by their names; WorkbenchError where it can not be read."""
    rewards: dict[str, Sums] = {}
    for spelled in filter(None, map(str.strip, text.split(","))):
        sums = tuple(tuple(map(_part, re.split(r"\s+\+\s+", one))) for one in re.split(r"\s+else\s+", spelled))
        parts = [part for one in sums for part in one]
        name = with_sources(spelled, lambda source: Part(source, 1).name)
        if name in rewards or len({part.name for part in parts}) < len({part.source for part in parts}):
            raise WorkbenchError(f"{text!r} names two rewards {name!r}: rename one of them.")
        if len(parts) > 1 and (taken := TAKEN.intersection(part.name for part in parts)):
            raise WorkbenchError(f"{spelled!r} has a part {taken.pop()!r}, a column of every table: rename the part.")
        rewards[name] = sums
    return rewards


def _part(text: str) -> Part:
    found = re.fullmatch(rf"(.*?)(?:{WEIGHT})?", text.strip())
    source, weight = found[1], found[2] or "1"
    if not source or "*" in source or {"+", "else"}.intersection(source.split()):
        raise WorkbenchError(f"The reward {text!r} can not be read: write it as in task:sums*2 + runs/mine/rm*0.5.")
    return Part(source, float(weight))
