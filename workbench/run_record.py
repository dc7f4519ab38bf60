"""What run.json says: the work that was asked for, and whether a folder already holds other work."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

from workbench import files
from workbench.errors import WorkbenchError

ABSENT = "absent"  # how a parameter that only one of two runs has is shown
WORK = ("metrics*.jsonl", "checkpoint", "tables", "summary.json", "model")  # what a run that got anywhere has left


def requested(parameters: Mapping, *, inputs: Mapping[str, str | Path], seed: int | None, threads: int) -> dict:
    """The part of run.json that says which work is asked for; WorkbenchError on a value that is no plain scalar."""
    for key, value in parameters.items():
        if not isinstance(value, str | int | float | bool) or (isinstance(value, float) and not math.isfinite(value)):
            raise WorkbenchError(f"The parameter {key} is {value!r}: give text, a finite number, True or False.")
    seed = parameters.get("seed") if seed is None else seed
    if not isinstance(seed, int) or seed < 0:
        raise WorkbenchError(f"The seed is {seed!r}: give a whole number from 0, as a parameter `seed` or by seed=.")
    hashed = {name: {"path": files.shown(path), "sha256": files.sha256(path)} for name, path in inputs.items()}
    return {"parameters": dict(parameters), "seed": seed, "inputs": hashed, "threads": threads}


def read_record(folder: Path) -> dict:
    """What run.json holds; WorkbenchError where the folder is missing or not a run."""
    if not folder.is_dir():
        raise WorkbenchError(
            f"{files.shown(folder)} does not exist: run the notebook that makes it or give another run."
        )
    if not (folder / "run.json").exists():
        found = sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir())
        listed = ", ".join(found[:6] + ["..."] * (len(found) > 6)) or "nothing"
        raise WorkbenchError(
            f"{files.shown(folder)} is not a run: it holds {listed} but no run.json; give a run's folder."
        )
    try:
        return json.loads((folder / "run.json").read_text())
    except ValueError as error:
        raise WorkbenchError(f"{files.shown(folder)}/run.json is damaged ({error}): delete this folder.") from error


def held_record(folder: Path, asked: dict) -> dict:
    """run.json of the work that `asked` continues, {} where none was done; WorkbenchError where it is other work.

    A run that was refused for bad input did no work, so that the corrected one may take its folder.
    """
    record = read_record(folder) if (folder / "run.json").exists() else {}
    if not record or not _did_work(folder):
        return {}
    _refuse_difference(folder, _identity(record), _identity(asked))
    return record


def refuse_other_parameters(folder: Path, values: Mapping) -> None:
    """`held_record`'s refusal before a kernel starts, by those parameters alone that run.json names, too."""
    if not (folder / "run.json").exists() or not _did_work(folder):
        return
    held = read_record(folder).get("parameters", {})
    shared = [name for name in values if name in held and name != "run_dir"]
    _refuse_difference(folder, {name: held[name] for name in shared}, {name: values[name] for name in shared})


def _did_work(folder: Path) -> bool:
    return any(path for pattern in WORK for path in folder.glob(pattern))


def _refuse_difference(folder: Path, old: dict, new: dict) -> None:
    keys = [key for key in (new | old) if old.get(key, ABSENT) != new.get(key, ABSENT)]
    if not keys:
        return
    holds = ", ".join(f"{key}={old.get(key, ABSENT)}" for key in keys)
    wants = ", ".join(f"{key}={new.get(key, ABSENT)}" for key in keys)
    suffix = "".join(f"-{key}={new.get(key, ABSENT)}" for key in keys[:3])
    other = files.shown(folder) + re.sub(r"[^\w.=+-]+", "_", suffix)[:80]
    raise WorkbenchError(
        f"{files.shown(folder)} holds a run with {holds} where now {wants} is asked for: "
        f"choose another folder (run_dir or --out), for example {other}, or delete that one."
    )


def _identity(record: dict) -> dict:
    """What makes two executions the same work: parameters but for the folder, seed, threads, contents of inputs."""
    contents = {f"{name}_contents": entry["sha256"][:12] for name, entry in record["inputs"].items()}
    parameters = {key: value for key, value in record["parameters"].items() if key != "run_dir"}
    threads = str(record.get("threads", ABSENT))  # text in older records
    return {**parameters, "seed": record["seed"], "threads": threads, **contents}
