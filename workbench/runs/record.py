"""What run.json says: the work that was asked for, and whether a folder already holds other work."""

import math
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

import workbench.runs.files as files
from workbench import WorkbenchError

MARK_OF_REPORT = b"default-src 'self' file: data: blob: 'unsafe-inline'"  # in every page of report.html
OURS = ("run.json", "notebook.failed.ipynb", "notebook.part.ipynb")  # names that nobody else gives
COUNT = re.compile("0*[1-9][0-9]{0,3}")  # of threads
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
        found = files.listed(folder) or "nothing"
        raise WorkbenchError(
            f"{files.shown(folder)} is not a run: it holds {found} but no run.json; give a run's folder."
        )
    record = files.read_json(folder / "run.json")
    inputs = record.get("inputs", {})  # older records lack them, and the seed
    maps = [record.get("parameters"), record.get("defaults", {}), inputs]
    objects = [*maps, *(inputs.values() if isinstance(inputs, dict) else [])]
    sound = isinstance(record.get("status", ""), str) and isinstance(record.get("seed", 0), int)
    if not sound or not all(isinstance(each, dict) for each in objects):
        raise WorkbenchError(
            f"{files.shown(folder)}/run.json is no record of a run: give another folder, or delete this folder."
        )
    return {"status": "unfinished"} | record


def held_record(folder: Path, asked: dict) -> dict:
    """run.json of the work that `asked` continues, {} where none was done; WorkbenchError where it is other work.

    A run that was refused for bad input did no work, so that the corrected one may take its folder. A parameter that
    came after the run counts as its default. One that is gone is refused: nothing says any more what it did.
    """
    refuse_foreign(folder)
    record = read_record(folder) if (folder / "run.json").exists() else {}
    if not record or not _did_work(folder):
        return {}
    wanted = _identity(asked)
    later = {name: value for name, value in record.get("defaults", {}).items() if name in wanted}
    _refuse_difference(folder, later | _identity(record), wanted)
    return record


def keep_defaults(folder: Path, defaults: Mapping) -> None:
    """Note in run.json what the parameters that came after its run are by default, which a kernel does not know."""
    if not (folder / "run.json").exists():
        return
    record = read_record(folder)
    held = {"run_dir", *record["parameters"], *record.get("defaults", {})}
    if later := {name: value for name, value in defaults.items() if name not in held}:
        files.write_json(folder / "run.json", record | {"defaults": record.get("defaults", {}) | later})


def refuse_other_parameters(folder: Path, values: Mapping, *, defaults: Mapping, threads: int) -> None:
    """`held_record`'s refusal before a kernel starts, by the parameters of the notebook and threads alone."""
    refuse_foreign(folder)
    if not (folder / "run.json").exists() or not _did_work(folder):
        return
    record, values = read_record(folder), {**values, **_threads({"threads": threads})}
    later = {**defaults, "seed": record.get("seed", defaults.get("seed")), **record.get("defaults", {})}
    held = {**record["parameters"], **_threads({"threads": threads} | record)}
    for known in (held, later | held):  # first what it was asked for, which says most
        shared = [name for name in values if name in known and name != "run_dir"]
        _refuse_difference(folder, {name: known[name] for name in shared}, {name: values[name] for name in shared})


def refuse_foreign(folder: Path) -> None:
    """WorkbenchError where a folder holds other things than a run or an executed notebook, which might be overwritten.

    What makes it ours is a run.json, a notebook that says that we executed it, or one that failed or was cut short.
    """
    if not folder.is_dir() or any((folder / name).exists() for name in OURS):
        return
    with suppress(WorkbenchError, KeyError, TypeError):
        if "workbench" in files.read_json(folder / "notebook.ipynb")["metadata"]:
            return
    if listed := files.listed(folder):
        other = files.shown(folder / "run")
        raise WorkbenchError(
            f"{files.shown(folder)} holds {listed} and no run of the workbench, which overwrites only what it made: "
            f"choose another folder (run_dir or --out), for example {other}."
        )


def refuse_other_report(folder: Path) -> None:
    """WorkbenchError where `folder`/report holds anything but pages of ours, which a new report replaces."""
    report = folder / "report"
    with files.explain_write_errors(report):
        inside = list(report.iterdir()) if report.is_dir() and not report.is_symlink() else [report]
        pages = [
            path
            for path in inside
            if path.suffix == ".html" and path.is_file() and MARK_OF_REPORT in path.read_bytes()[:2000]
        ]
    known = {".DS_Store", "style.css", "plotly.min.js"} if report / "index.html" in pages else set()
    others = [path.name for path in inside if path not in pages and path.name not in known]
    if report.is_symlink() or (report.exists() and others):
        raise WorkbenchError(
            f"{files.shown(report)} holds what is no report of the workbench ({', '.join(others[:6])}) and would be "
            f"lost: rename it, for example to {files.shown(report)}-1."
        )


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
    inputs = record.get("inputs", {})
    contents = {f"{name}_contents": str(entry.get("sha256"))[:12] for name, entry in inputs.items()}
    parameters = {key: value for key, value in record["parameters"].items() if key != "run_dir"}
    return {**parameters, "seed": record.get("seed"), **_threads(record), **contents}


def _threads(record: Mapping) -> dict[str, str]:
    """With how many threads a run computes, which older records hold as text, named as what says so."""
    return {"WORKBENCH_THREADS": str(record.get("threads", ABSENT))}


# What made a run: versions, commit, machine, time and memory

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "datasets", "numpy", "pandas", "peft")


def provenance() -> dict:
    """Versions of what numbers depend on and, inside a git repository, the commit."""
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "packages": {name: version for name, version in versions.items() if version},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
        **git_state(files.repository_root()),
    }


def thread_count(folder: Path, *, asked: int = 1) -> int:
    """Threads that a run computes with: WORKBENCH_THREADS, else as many as it began with in its folder, else `asked`.

    OMP_NUM_THREADS of the shell says nothing here. One is fastest for tiny models side by side, and another count sums
    in another order. WorkbenchError for what is no such count.
    """
    if threads := os.environ.get("WORKBENCH_THREADS"):
        if not COUNT.fullmatch(threads):
            raise WorkbenchError(f"WORKBENCH_THREADS is {threads!r}: give a whole number of threads, 1 to 9999.")
        return int(threads)
    begun = (folder / "run.json").exists() and _did_work(folder)
    held = str(read_record(folder).get("threads")) if begun else ""
    return int(held) if COUNT.fullmatch(held) else asked


def thread_settings(threads: int) -> dict[str, str]:
    """Environment variables that give every library, here and in what is started from here, this many threads.

    They sleep while they wait for each other: where something else computes, spinning makes a step ten times as long.
    """
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(names, str(threads)) | {"OMP_DYNAMIC": "FALSE", "OMP_WAIT_POLICY": "PASSIVE"}


def use_threads(threads: int) -> None:
    """Let torch compute with this many threads, also where it was imported before."""
    os.environ.update(thread_settings(threads))
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


@cache  # what is installed does not change under a process that has imported it
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_state(root: Path) -> dict:
    """{"git": {"commit", "dirty"}} of the repository at `root`, {} where there is none or no commit."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", root, *words], check=True, capture_output=True, encoding="utf-8").stdout

    try:
        commit = git("rev-parse", "HEAD").strip()
        return {"git": {"commit": commit, "dirty": bool(git("status", "--porcelain"))}}
    except (OSError, subprocess.CalledProcessError):
        return {}


def now() -> str:
    """Time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def peak_memory_mib() -> int:
    """Largest resident memory of this process so far, MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 2**20 if sys.platform == "darwin" else peak / 2**10)


class Session:
    """Time that one process spent in one run; `write` keeps timing.json current, so a kill loses only the end."""

    def __init__(self, path: Path):
        self.path = path
        self.earlier = files.read_json(path).get("sessions", []) if path.exists() else []
        self.started_at, self.wall, self.cpu = now(), time.perf_counter(), time.process_time()
        self.steps, self.training_seconds = 0, 0.0

    def add_step(self, seconds: float) -> None:
        """Count one optimisation step."""
        self.steps += 1
        self.training_seconds += seconds

    def record(self) -> dict:
        """This session so far: seconds, CPU seconds, MiB, steps and steps per second of training."""
        return {
            "started_at": self.started_at,
            "seconds": round(time.perf_counter() - self.wall, 3),
            "cpu_seconds": round(time.process_time() - self.cpu, 3),
            "peak_memory_mib": peak_memory_mib(),
            "steps": self.steps,
            "steps_per_second": round(self.steps / self.training_seconds, 3) if self.steps else 0.0,
        }

    def write(self) -> list[dict]:
        """Write timing.json and return every session of the run, this one last."""
        sessions = [*self.earlier, self.record()]
        files.write_json(self.path, {"sessions": sessions})
        return sessions
