"""What made a run: versions, commit, machine, time and memory."""

import os
import platform
import re
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

from workbench import files
from workbench.errors import WorkbenchError

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "datasets", "numpy", "pandas", "peft")


def provenance() -> dict:
    """Versions of what numbers depend on and, inside a git repository, the commit."""
    return {
        "packages": package_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **git_state(files.repository_root()),
    }


def thread_count() -> int:
    """Threads that a run computes with: WORKBENCH_THREADS, else one, whatever OMP_NUM_THREADS of the shell says.

    One is fastest for tiny models, and another count sums in another order. WorkbenchError for what is no such count.
    """
    threads = os.environ.get("WORKBENCH_THREADS", "1")
    if not re.fullmatch("[0-9]{1,4}", threads) or int(threads) < 1:
        raise WorkbenchError(f"WORKBENCH_THREADS is {threads!r}: give a whole number of threads, 1 to 9999.")
    return int(threads)


def thread_settings(threads: int) -> dict[str, str]:
    """Environment variables that give every library this many threads, and tell it to what is started from here."""
    names = ("WORKBENCH_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(names, str(threads)) | {"OMP_DYNAMIC": "FALSE"}


def use_threads(threads: int) -> None:
    """Let torch compute with this many threads, also where it was imported before."""
    os.environ.update(thread_settings(threads))
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def package_versions() -> dict[str, str]:
    """Installed version per package, without those that are not installed."""
    found = {name: _version(name) for name in PACKAGES}
    return {name: version for name, version in found.items() if version}


@cache  # what is installed does not change under a process that has imported it
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_state(root: Path) -> dict:
    """{"git": {"commit", "dirty"}} of the repository at `root`, {} where there is none or no commit."""
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return {"git": {"commit": commit, "dirty": bool(_git(root, "status", "--porcelain"))}}
    except (OSError, subprocess.CalledProcessError):
        return {}


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", root, *arguments], check=True, capture_output=True, encoding="utf-8"
    ).stdout.strip()


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
