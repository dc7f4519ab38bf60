"""What run.json says: the work that was asked for, and whether a folder already holds other work."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

from workbench import files
from workbench.errors import WorkbenchError

ABSENT = "absent"  # how a parameter that only one of two runs has is shown


def requested(parameters: Mapping, *, inputs: Mapping[str, str | Path], seed: int | None) -> dict:
    """The part of run.json that says which work is asked for; WorkbenchError on a value that is no plain scalar."""
    for key, value in parameters.items():
        if not isinstance(value, str | int | float | bool) or (isinstance(value, float) and not math.isfinite(value)):
            raise WorkbenchError(f"The parameter {key} is {value!r}: give text, a finite number, True or False.")
    seed = parameters.get("seed") if seed is None else seed
    if not isinstance(seed, int):
        raise WorkbenchError(f"The seed is {seed!r}: give a whole number, as a parameter `seed` or by seed=.")
    hashed = {name: {"path": files.shown(path), "sha256": files.sha256(path)} for name, path in inputs.items()}
    return {"parameters": dict(parameters), "seed": seed, "inputs": hashed}


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


def refuse_other_work(folder: Path, record: dict, asked: dict) -> None:
    """WorkbenchError where a run of other parameters, seed or input contents already lives in the folder."""
    old, new = _identity(record), _identity(asked)
    keys = [key for key in (new | old) if old.get(key, ABSENT) != new.get(key, ABSENT)]
    if not keys:
        return
    holds = ", ".join(f"{key}={old.get(key, ABSENT)}" for key in keys)
    wants = ", ".join(f"{key}={new.get(key, ABSENT)}" for key in keys)
    suffix = "".join(f"-{key}={new.get(key, ABSENT)}" for key in keys[:3])
    other = files.shown(folder) + re.sub(r"[^\w.=+-]+", "_", suffix)[:80]
    raise WorkbenchError(
        f"{files.shown(folder)} holds a run with {holds} where now {wants} is asked for: "
        f"choose another run_dir, for example {other}, or delete that folder."
    )


def _identity(record: dict) -> dict:
    """What makes two executions the same work: parameters but for the folder, seed, contents of inputs."""
    contents = {f"{name}_contents": entry["sha256"][:12] for name, entry in record["inputs"].items()}
    parameters = {key: value for key, value in record["parameters"].items() if key != "run_dir"}
    return {**parameters, "seed": record["seed"], **contents}
