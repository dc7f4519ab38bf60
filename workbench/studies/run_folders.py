"""Runs by name: those that folders and patterns hold, what each is called, and which are one experiment repeated."""

from __future__ import annotations

import glob
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.statistics import draws, mean_and_error
from workbench.runs import Run, files

# how runs that differ only in their seed, or in their world and seed, end: _seed2, -seed2, _world1_seed2, _world1
SEED = re.compile(r"([-_]world\d+)?[-_]seed\d+$|[-_]world\d+$")
UNFINISHED = " (unfinished)"  # behind a name: keeps the run apart from its finished seeds, and says so in every figure


class FoundRuns(NamedTuple):
    """Runs by name, and a sentence for each place that named none or could not be read."""

    runs: dict[str, Run]
    unread: list[str]


class MeanOverRuns(NamedTuple):
    """A mean over runs, its standard error (NaN for a single one) and the freedom of Student's t, which ends intervals.

    Floats, or (K,) arrays when K quantities were averaged at once.
    """

    mean: float | np.ndarray
    standard_error: float | np.ndarray
    freedom: int


class Gathered(NamedTuple):
    """Rows of many runs, and a sentence for each part that could not be used."""

    rows: pd.DataFrame
    left_out: list[str]


def find_runs(where: str, *, without: str | Path = "") -> FoundRuns:
    """Every run in the folders or patterns that `where` lists with commas, at any depth; not that in `without`.

    Relative places start at the repository root; a pattern is as in a shell, with ** for any depth. WorkbenchError
    where there is no run at all.
    """
    runs, unread = {}, []
    for place in filter(None, map(str.strip, where.split(","))):
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


def named(runs: Mapping[str, Run] | Iterable[Run]) -> dict[str, Run]:
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
    groups = defaultdict(list)
    for folder in folders:
        groups[experiment_of(folder.name)].append(folder)
    depths = {}
    for experiment, group in groups.items():
        different, depth = set(group), 1
        while len({folder.parts[-depth:] for folder in different}) < len(different):
            depth += 1
        depths[experiment] = depth
    return ["/".join(folder.parts[-depths[experiment_of(folder.name)] :]) for folder in folders]


def has_table(run: Run, name: str) -> bool:
    """Whether the run has saved this table, in whatever form."""
    return run.path(f"tables/{name}.jsonl").exists()


def experiment_of(name: str) -> str:
    """What repetitions with other seeds and worlds share: the name without its ending."""
    return SEED.sub("", name)


def repetition_of(name: str) -> str:
    """The ending that tells repetitions apart, such as _world1_seed2; "" without one."""
    return name[len(experiment_of(name)) :]


def mean_over_runs(values, names: Sequence[str]) -> MeanOverRuns:
    """Mean of `values` (M,) or (M, K) over the runs of one experiment, of which worlds are the `draws`."""
    own = draws(values, [re.sub(r"[-_]seed\d+$", "", repetition_of(name)) for name in names])
    return MeanOverRuns(*mean_and_error(own), len(own) - 1)
