"""Experiment trackers that receive the same rows as metrics.jsonl; each is imported only when it is named."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Protocol

from workbench import WorkbenchError

PROJECT = "rlhf-workbench"


class Sink(Protocol):
    """Receives each metrics row once; `folder` is the run's, `identity` the same whenever the run resumes."""

    def __init__(self, *, folder: Path, label: str, identity: str, parameters: dict): ...
    def write(self, row: dict[str, float]) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run's folder: `tensorboard --logdir runs`."""

    def __init__(self, *, folder: Path, label: str, identity: str, parameters: dict):
        from tensorboard.summary import Writer

        self.writer = Writer(str(folder / "tensorboard" / label))

    def write(self, row: dict[str, float]) -> None:
        for key, value in row.items():
            if key != "step":
                self.writer.add_scalar(key, value, step=row["step"])

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A Weights & Biases run; its own environment variables choose account and offline mode."""

    def __init__(self, *, folder: Path, label: str, identity: str, parameters: dict):
        import wandb

        self.wandb = wandb
        names = {"project": PROJECT, "name": label, "id": identity}
        wandb.init(**names, dir=str(folder), config=parameters, resume="allow")

    def write(self, row: dict[str, float]) -> None:
        self.wandb.log({key: value for key, value in row.items() if key != "step"}, step=row["step"])

    def close(self) -> None:
        self.wandb.finish()


class Trackio:
    """A trackio run, kept on this machine unless its own environment variables say otherwise."""

    def __init__(self, *, folder: Path, label: str, identity: str, parameters: dict):
        import trackio

        self.trackio = trackio
        # trackio knows runs by name alone, and folders in different places share names
        trackio.init(project=PROJECT, name=f"{label}-{identity[:6]}", config=parameters, resume="allow")

    def write(self, row: dict[str, float]) -> None:
        self.trackio.log({key: value for key, value in row.items() if key != "step"}, step=row["step"])

    def close(self) -> None:
        self.trackio.finish()


SINKS: dict[str, type[Sink]] = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}  # name = package


def check_sinks(names: Sequence[str]) -> None:
    """WorkbenchError where a name is unknown or its package is missing."""
    for name in names:
        if name not in SINKS:
            raise WorkbenchError(f"{name!r} is not a tracker: choose from {', '.join(SINKS)}.")
        try:
            import_module(name)
        except ImportError as error:
            raise WorkbenchError(
                f"The tracker {name} is not installed: run `pip install -e '.[trackers]'` or leave it out."
            ) from error


@contextmanager
def open_sinks(
    names: Sequence[str], *, folder: Path, label: str, identity: str, parameters: dict
) -> Iterator[list[Sink]]:
    """Sinks that are closed when the block ends, however it ends."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                closing(SINKS[name](folder=folder, label=label, identity=identity, parameters=parameters))
            )
            for name in names
        ]
