"""One folder per execution: parameters, provenance, metrics, samples, tables, model, checkpoints, resume.

run.json        parameters, seed, hashes of inputs, threads, versions, commit, status, seconds, memory
metrics.jsonl   one row per step; no clock values, so equal runs have equal bytes
samples.jsonl   what the model wrote at some steps
summary.json    key numbers          timing.json   seconds per session
tables/*.jsonl  data frames          model/        safetensors
checkpoint/     training state, from which a killed run continues bit-identically
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from workbench import WorkbenchError
from workbench.runs import files
from workbench.runs.progress import check_sinks, open_progress, open_sinks
from workbench.runs.record import (
    Session,
    held_record,
    now,
    provenance,
    read_record,
    requested,
    thread_count,
    use_threads,
)
from workbench.runs.resume import Trainer, Training, interrupt_held, interrupt_waits, rows_path

if TYPE_CHECKING:
    import pandas as pd

NOTHING: Mapping = MappingProxyType({})
# how names of runs that repeat one another end: _world1_seed2, _world1, _seed2, -seed2
UNIT = re.compile(r"(?:[-_]world(?P<world>\d+))?(?:[-_]seed(?P<seed>\d+))?$")


class Unit(NamedTuple):
    """What a run repeats, its name without the ending, and in which world and with which seed."""

    experiment: str
    world: int
    seed: int


class Run:
    """One execution's folder, opened by `Run.open` for work or by `Run.read` for looking."""

    def __init__(self, folder: Path, record: dict, *, sinks: Sequence[str], read_only: bool):
        self.dir = folder
        self.record = record  # what run.json holds
        self.sinks = tuple(sinks)
        self.read_only = read_only
        self._session = Session(folder / "timing.json")

    @classmethod
    def open(
        cls,
        run_dir: str | Path,
        parameters: Mapping[str, str | int | float | bool],
        *,
        inputs: Mapping[str, str | Path] = NOTHING,
        seed: int | None = None,
        sinks: Sequence[str] = (),
    ) -> Run:
        """Start a run, or continue the one in `run_dir`; WorkbenchError where that one was asked for other work."""
        folder = files.resolve(run_dir)
        check_sinks(sinks)
        asked = requested(parameters, inputs=inputs, seed=seed, threads=thread_count(folder))
        record = held_record(folder, asked)
        use_threads(asked["threads"])
        if not record:
            record = {**asked, **provenance(), "started_at": now(), "status": "unfinished"}
            files.write_json(folder / "run.json", record)
        return cls(folder, record, sinks=sinks, read_only=False)

    @classmethod
    def read(cls, run_dir: str | Path) -> Run:
        """Open a run to look at it; WorkbenchError where the folder is not a run."""
        folder = files.resolve(run_dir)
        return cls(folder, read_record(folder), sinks=(), read_only=True)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.dir.name

    @property
    def parameters(self) -> dict[str, str | int | float | bool]:
        """What the run was asked to do."""
        return self.record["parameters"]

    @property
    def seed(self) -> int:
        """The one seed of the run."""
        return self.record["seed"]

    @property
    def unit(self) -> Unit:
        """The world is that of the parameters, or else of the name; 0 where neither says.

        The seed is the name's where it has one: a run of a unit may have another seed of its own, as 05_seed101 does.
        """
        ending, given = UNIT.search(self.name), self.parameters
        world = given.get("world_seed", ending["world"] or 0)
        return Unit(self.name[: ending.start()], int(world), int(ending["seed"] or given.get("seed", 0)))

    @property
    def finished(self) -> bool:
        """Whether `finish` was reached."""
        return self.record["status"] == "finished"

    def train(
        self,
        trainer: Trainer,
        *,
        steps: int | None = None,
        checkpoint_every: int = 50,
        sample_every: int = 10,
        name: str = "train",
    ) -> Iterator[dict[str, float]]:
        """Yield each new row up to `steps` (default `trainer.total_steps`), continuing from the checkpoint.

        The caller may break: the checkpoint then stands at the row it saw last. What the caller does with a row comes
        before that row's checkpoint, and before a Ctrl-C that arrived during the step: neither can part them. A
        finished run yields nothing and only restores the trainer. Another `name` is another training in the same run,
        with its own metrics and checkpoint.
        """
        self._refuse_when_read_only()
        for option, value in (("checkpoint_every", checkpoint_every), ("sample_every", sample_every)):
            if value < 1:
                raise WorkbenchError(f"{option} is {value}: give a whole number of steps, at least 1.")
        steps = trainer.total_steps if steps is None else steps
        training = Training(self.dir, _checked_name(name), trainer, steps=steps)
        if self.finished:
            training.restore()
            return
        with files.locked(self.dir / ".lock"):
            training.resume()
            if training.step < training.steps:
                yield from self._rows(training, checkpoint_every=checkpoint_every, sample_every=sample_every)

    def _rows(self, training: Training, *, checkpoint_every: int, sample_every: int) -> Iterator[dict[str, float]]:
        with self._watched(training) as show:
            try:
                while training.step < training.steps:
                    with interrupt_held() as interrupted:
                        began = time.perf_counter()
                        row = training.advance(sample_every=sample_every)
                        self._session.add_step(time.perf_counter() - began)
                    show(row)
                    try:
                        yield row
                    finally:  # the caller has dealt with the row, perhaps for the last time
                        if interrupted:
                            raise KeyboardInterrupt
                    if training.step % checkpoint_every == 0:
                        with interrupt_waits():
                            self._save(training)
            finally:  # also when the caller breaks or Ctrl-C arrives between two steps
                self._save(training)

    def _save(self, training: Training) -> None:
        if training.save():
            self._session.write()

    @contextmanager
    def _watched(self, training: Training) -> Iterator[Callable[[dict], None]]:
        """What shows a row as progress and gives it to the trackers."""
        label = self.name if training.name == "train" else f"{self.name}-{training.name}"
        made = f"{self.dir} {training.name} {self.record['started_at']}"
        identity = hashlib.sha256(made.encode()).hexdigest()[:16]
        about = {"label": label, "identity": identity, "parameters": self.parameters}
        keys = getattr(training.trainer, "progress_keys", ())
        bar = open_progress(label, start=training.step, total=training.steps, keys=keys)
        with closing(bar) as progress, open_sinks(self.sinks, self.dir, **about) as track:
            yield lambda row: (progress.update(row), track(row))

    def metrics(self, name: str = "train") -> pd.DataFrame:
        """One row per step, NaN where a number is undefined; empty where nothing was trained."""
        return _frame(files.read_json_lines(rows_path(self.dir, "metrics", name)), columns=["step"])

    def samples(self, name: str = "train") -> pd.DataFrame:
        """What the model wrote, a column `step` and the trainer's own; empty where nothing was trained."""
        return _frame(files.read_json_lines(rows_path(self.dir, "samples", name)), columns=["step"])

    def summary(self, values: Mapping[str, float | str] = NOTHING) -> dict[str, float | str]:
        """Key numbers so far, after merging `values` into summary.json; NaN and infinity are kept as None."""
        path = self.dir / "summary.json"
        merged = files.read_json(path) if path.exists() else {}
        if values:
            self._refuse_when_read_only()
            merged |= files.plain(values)
            files.write_json(path, merged)
        return merged

    def save_model(self, model, tokenizer, name: str = "model") -> Path:
        """Folder with weights (safetensors), config and tokenizer, as `from_pretrained` reads them."""
        self._refuse_when_read_only()
        from workbench.runs.resume import quiet

        with files.replace_folder(self.path(name)) as folder, quiet():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return self.path(name)

    def save_table(self, name: str, frame: pd.DataFrame) -> Path:
        """Write a data frame, without its index, to tables/<name>.jsonl; every digit is kept."""
        return self._write_rows(name, frame.to_dict("records"))

    def add_to_table(self, name: str, frame: pd.DataFrame, *, key: str | Sequence[str]) -> Path:
        """Write `frame` into tables/<name>.jsonl, in order of `key`, in place of rows with one of its values of `key`.

        So what is measured again, after a run was killed, does not stand there twice. Each row keeps its own columns.
        """
        values = itemgetter(*([key] if isinstance(key, str) else key))
        rows = frame.to_dict("records")
        again = set(map(values, rows))
        held = files.read_json_lines(self.dir / "tables" / f"{_checked_name(name)}.jsonl")
        return self._write_rows(name, sorted([row for row in held if values(row) not in again] + rows, key=values))

    def _write_rows(self, name: str, rows: Sequence[Mapping]) -> Path:
        self._refuse_when_read_only()
        path = self.dir / "tables" / f"{_checked_name(name)}.jsonl"
        files.write_text(path, "".join(f"{files.json_line(row)}\n" for row in rows))
        return path

    def table(self, name: str) -> pd.DataFrame:
        """A saved data frame; WorkbenchError names those that exist."""
        path = self.dir / "tables" / f"{name}.jsonl"
        if not path.exists():
            found = ", ".join(sorted(other.stem for other in path.parent.glob("*.jsonl"))) or "none"
            raise WorkbenchError(f"{files.shown(self.dir)} has no table {name!r}: choose from those it has ({found}).")
        return _frame(files.read_json_lines(path), columns=[])

    def path(self, name: str) -> Path:
        """Path of a file or folder inside the run."""
        return self.dir / name

    def finish(self) -> None:
        """Mark the run finished, with wall and CPU seconds summed over its sessions and peak memory in MiB."""
        self._refuse_when_read_only()
        if self.finished:
            return
        sessions = self._session.write()
        self.record |= {
            "status": "finished",
            "finished_at": now(),
            "wall_seconds": round(sum(session["seconds"] for session in sessions), 3),
            "cpu_seconds": round(sum(session["cpu_seconds"] for session in sessions), 3),
            "peak_memory_mib": max(session["peak_memory_mib"] for session in sessions),
        }
        files.write_json(self.dir / "run.json", self.record)

    def _refuse_when_read_only(self) -> None:
        if self.read_only:
            raise WorkbenchError(f"{files.shown(self.dir)} was opened for reading: use Run.open to write in it.")


def parameters_of(namespace: Mapping) -> dict[str, str | int | float | bool]:
    """The annotated variables of a notebook, which are those of its parameters cell, with their values now.

    `namespace` is the notebook's `globals()`; what papermill injected has replaced the defaults by then.
    """
    return {name: namespace[name] for name in namespace["__annotations__"]}


def names_in(text: str) -> list[str]:
    """What a parameter lists with commas, without the blanks around and what is empty."""
    return [name for name in map(str.strip, text.split(",")) if name]


def _frame(rows: list[dict], *, columns: list[str]) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(rows) if rows else pd.DataFrame(columns=columns)
    # a column of nothing but None is a number that was never defined
    return frame.astype({column: float for column in frame if rows and frame[column].isna().all()})


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"[\w-]+", name):
        raise WorkbenchError(f"{name!r} is not a name: use letters, digits, - and _ only.")
    return name
