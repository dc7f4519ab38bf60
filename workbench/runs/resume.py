"""Training state on disk, written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import workbench.runs.files as files
from workbench import NonFiniteLoss, WorkbenchError


def save_checkpoint(path: str | Path, state: dict) -> None:
    """Replace a checkpoint by `state`: tensors, numbers and text, in dicts and lists; WorkbenchError on a full disk."""
    import torch

    # Through a Python file, because torch's own writer hides why the disk refused.
    with files.replace_file(path) as partial, open(partial, "wb") as file:
        torch.save(state, file)


def load_checkpoint(path: str | Path) -> dict:
    """State, tensors on the CPU, without running code from the file; WorkbenchError where it is missing or broken."""
    import torch

    path = files.resolve(path)
    if not path.exists():
        raise WorkbenchError(
            f"{files.shown(path)} does not exist: run the notebook that makes it or give another path."
        )
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged file fails as RuntimeError, EOFError, UnpicklingError, KeyError, ...
        raise WorkbenchError(
            f"{files.shown(path)} is not a whole checkpoint of tensors, numbers and text: delete it to train again."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without the library's progress bars and notices, of a new head or of a saved shard."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


# --- A training that a killed process continues bit-identically.


class Trainer(Protocol):
    """What `Run.train` drives; it may also have `progress_keys: tuple[str, ...]` and `samples() -> list[dict]`."""

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""

    def step(self) -> dict[str, float]:
        """Do one optimisation step; the flat row has `step` = 1, 2, ... and numbers, None where one is undefined."""

    def state_dict(self) -> dict:
        """Everything the next step depends on (weights, optimiser, RNG, cursor) as tensors, numbers, text."""

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict()`."""


class Training:
    """Files of one `train` call and where it stands in them."""

    def __init__(self, folder: Path, name: str, trainer: Trainer, *, steps: int):
        self.folder, self.name, self.trainer, self.steps = folder, name, trainer, steps
        self.metrics, self.samples = rows_path(folder, "metrics", name), rows_path(folder, "samples", name)
        self.checkpoint = folder / "checkpoint" / f"{name}.pt"
        self.step = 0  # steps done
        self.saved_step = -1  # step of the checkpoint
        self.whole = True  # False while trainer and files are in the middle of a step

    def restore(self) -> None:
        """Put the trainer where the checkpoint stands."""
        state = load_checkpoint(self.checkpoint)
        self.trainer.load_state_dict(state["trainer"])
        self.step = self.saved_step = state["step"]

    def resume(self) -> None:
        """Put trainer and files where the checkpoint stands; rows that a killed process wrote later are recomputed."""
        if not self.checkpoint.exists():
            self.save()  # so that a first step, too, can be repeated from exactly where it began
        self.restore()
        rows = _cut_after(self.metrics, self.step)
        _cut_after(self.samples, self.step)
        if rows != self.step:
            raise WorkbenchError(
                f"{files.shown(self.metrics)} has {rows} of the {self.step} rows that its checkpoint counts: "
                f"delete {files.shown(self.checkpoint)} to train again from the start."
            )

    def advance(self, *, sample_every: int) -> dict[str, float]:
        """Do one step, append its row and, at the first, the last and every `sample_every`-th step, its samples."""
        self.whole = False
        row = self._checked_row(self._row_or_batch())
        self.step += 1
        files.append_lines(self.metrics, [files.json_line(row)])
        if hasattr(self.trainer, "samples") and (self.step in (1, self.steps) or self.step % sample_every == 0):
            rows = ({"step": self.step, **sample} for sample in self.trainer.samples())
            files.append_lines(self.samples, [files.json_line(row) for row in rows])
        self.whole = True
        return {key: math.nan if value is None else value for key, value in row.items()}

    def _row_or_batch(self) -> dict:
        """The trainer's row; where its loss is not finite, the batch that made it is saved and named in the error."""
        try:
            return self.trainer.step()
        except NonFiniteLoss as error:
            path = self.folder / "nonfinite_batch.pt"
            save_checkpoint(path, error.batch)
            error.args = (
                f"The loss became NaN or infinite at step {error.step} on the batch saved in {files.shown(path)}: "
                "lower learning_rate in a new run_dir.",
            )
            raise

    def _checked_row(self, row: dict) -> dict:
        """The row as JSON holds it; WorkbenchError where it has other than numbers or another step than the next."""
        row = files.plain(row)
        for key, value in row.items():
            if value is not None and not isinstance(value, int | float):
                raise WorkbenchError(f"The metric {key} is {value!r}: give a number, or None where it is undefined.")
        if row.get("step") != self.step + 1:
            trainer = type(self.trainer).__name__
            raise WorkbenchError(
                f"{trainer}.step() returned step {row.get('step')} where {self.step + 1} comes next: "
                "build a new trainer, which counts its steps from 1."
            )
        return row

    def save(self) -> bool:
        """Write the checkpoint if the last step is whole and not in it yet; say whether it was written."""
        if not self.whole or self.saved_step == self.step:
            return False
        self.whole = False  # a save that fails is not tried again on the way out
        for path in (self.metrics, self.samples):
            if path.exists():
                files.flush_to_disk(path)  # a checkpoint never counts rows that a power cut could take
        save_checkpoint(self.checkpoint, {"step": self.step, "trainer": self.trainer.state_dict()})
        self.saved_step, self.whole = self.step, True
        return True


@contextmanager
def interrupt_held() -> Iterator[list[int]]:
    """Hold Ctrl-C back during the block, and say in the list whether it came; a second one takes effect at once."""
    received, previous = [], signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield received
        return

    def hold(number, frame):
        received.append(number)
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, hold)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def interrupt_waits() -> Iterator[None]:
    """Let Ctrl-C take effect after the block, so that it is whole; a second Ctrl-C takes effect at once."""
    with interrupt_held() as received:
        yield
    if received:
        raise KeyboardInterrupt


def _cut_after(path: Path, step: int) -> int:
    """Remove rows after `step` and a half-written last line; the number of rows that stay."""
    if not path.exists():
        return 0
    rows = kept_bytes = 0
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n") or json.loads(line)["step"] > step:
            break
        rows, kept_bytes = rows + 1, kept_bytes + len(line)
    with files.explain_write_errors(path):
        os.truncate(path, kept_bytes)
    return rows


def rows_path(folder: Path, kind: str, name: str) -> Path:
    """File of one training's rows; `kind` is "metrics" or "samples"."""
    return folder / (f"{kind}.jsonl" if name == "train" else f"{kind}-{name}.jsonl")
