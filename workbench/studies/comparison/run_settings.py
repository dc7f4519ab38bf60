"""In what runs differ: their parameters, and the versions of what made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from workbench.runs import Run
from workbench.studies.run_folders import UNFINISHED, experiment_of

ALIKE = 0.7  # share of parameter names in common from which two runs are of one notebook, perhaps of two versions of it
EVERYWHERE_DIFFERENT = ("run_dir", "seed", "world_seed")
RECORDED = ("python", "platform", "threads")


def differing_parameters(runs: Mapping[str, Run]) -> dict[str, pd.DataFrame]:
    """By what their runs are called alike, one table per kind of run: a row per experiment, a column per parameter.

    Runs that take the same parameters, but for a few, are of one kind. Columns are experiment, runs, and the parameters
    in which experiments differ, folders without their parents and seeds; none for a kind in which nothing differs.
    """
    tables = {}
    for kind in _kinds(runs):
        groups: dict[str, list[Run]] = {}
        for name, run in kind.items():
            groups.setdefault(experiment_of(name), []).append(run)
        names = dict.fromkeys(key for run in kind.values() for key in run.parameters)
        rows = [
            {"experiment": experiment, "runs": len(group)} | {name: _values(group, name) for name in names}
            for experiment, group in groups.items()
        ]
        frame = pd.DataFrame(rows)
        differing = [name for name in names if _differs(name, frame[name])]
        if differing:
            tables[_called_alike(list(groups))] = frame[["experiment", "runs", *differing]]
    return tables


def _kinds(runs: Mapping[str, Run]) -> list[dict[str, Run]]:
    """Runs in groups with nearly the same parameter names."""
    kinds: list[tuple[set, dict[str, Run]]] = []
    for name, run in runs.items():
        own = set(run.parameters)
        for names, kind in kinds:
            if len(own & names) >= ALIKE * len(own | names):
                kind[name] = run
                break
        else:
            kinds.append((own, {name: run}))
    return [kind for _, kind in kinds]


def _values(runs: Sequence[Run], name: str) -> str:
    """All values of a parameter in these runs, as text; "" where none has it."""
    found = {_shown(run.parameters[name]) for run in runs if name in run.parameters}
    return ", ".join(sorted(found))


def _shown(value) -> str:
    """A value as text: of a number its digits, of paths their last parts without seed."""
    if isinstance(value, str) and "/" in value:
        return ", ".join(experiment_of(Path(part.strip()).name) for part in value.split(","))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _differs(name: str, values: pd.Series) -> bool:
    return name not in EVERYWHERE_DIFFERENT and values[values != ""].nunique() > 1


def _called_alike(names: Sequence[str]) -> str:
    """What names begin with, up to the last whole word; of names without a common start the first and how many more."""
    words = [name.removesuffix(UNFINISHED).split("_") for name in names]
    common = [group[0] for group in zip(*words, strict=False) if len(set(group)) == 1]
    together = "_".join(common) if all(word[: len(common)] == common for word in words) else ""
    return together or f"{names[0]} and {len(names) - 1} more"


def differing_versions(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Packages, Python, machine, threads and commit in which runs differ: what, version, runs (how many), which.

    "not recorded" stands for runs that do not say; no rows where all runs agree.
    """
    records = {name: _versions(run.record) for name, run in runs.items()}
    rows = []
    for what in dict.fromkeys(key for record in records.values() for key in record):
        held: dict[str, list[str]] = {}
        for name, record in records.items():
            held.setdefault(record.get(what, "not recorded"), []).append(name)
        if len(held) > 1:
            for version, names in sorted(held.items(), key=lambda item: -len(item[1])):
                rows.append({"what": what, "version": version, "runs": len(names), "which": _examples(names)})
    return pd.DataFrame(rows, columns=["what", "version", "runs", "which"])


def _examples(names: Sequence[str]) -> str:
    different = list(dict.fromkeys(map(experiment_of, names)))
    return ", ".join(different[:5]) + (f" and {len(different) - 5} more" if len(different) > 5 else "")


def _versions(record: Mapping) -> dict[str, str]:
    """What made a run, as far as its record says."""
    git = record.get("git") or {}
    commit = {"commit": git["commit"][:12] + (", with changes" if git.get("dirty") else "")} if "commit" in git else {}
    told = {name: str(record[name]) for name in RECORDED if name in record}
    return {**(record.get("packages") or {}), **told, **commit}
