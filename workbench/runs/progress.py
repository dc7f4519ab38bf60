"""Progress of a training loop: bar and growing curves in JupyterLab, plain lines everywhere else; and trackers."""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from importlib import import_module
from pathlib import Path

from workbench import WorkbenchError

SECONDS_BETWEEN_LINES = 5.0
SHARE_OF_TIME = 0.01  # that drawing the curves may take
LEAST_WAIT = 1.0  # seconds between two drawings


def open_progress(label: str, *, start: int, total: int, keys: tuple[str, ...]) -> "Bar | Lines":
    """Progress from step `start` to `total`, showing the row's `keys` (its first three numbers if there are none)."""
    kind = Bar if in_jupyterlab() else Lines
    return kind(label, start=start, total=total, keys=keys)


def in_jupyterlab() -> bool:
    """Whether a browser is watching: a kernel that a Jupyter server started, not one that papermill started."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return "JPY_SESSION_NAME" in os.environ and getattr(shell, "kernel", None) is not None


class Curves:
    """Panels of what the bar says in numbers, drawn anew as seldom as keeps drawing to `SHARE_OF_TIME`."""

    def __init__(self, label: str, keys: tuple[str, ...]):
        self.label, self.keys, self.rows, self.shown = label, keys, [], None
        self.panels: tuple[list[str], dict] = ([], {})  # names of the columns, and plotly's specification of them
        self._bundle([{"step": 0, **dict.fromkeys(keys or ["loss"], 0.0)}])  # which loads plotly
        self.due = time.monotonic() + LEAST_WAIT

    def update(self, row: dict) -> None:
        self.rows.append(row)
        began = time.monotonic()
        if began >= self.due:
            self._draw()
            ended = time.monotonic()
            self.due = ended + max(LEAST_WAIT, (ended - began) / SHARE_OF_TIME)

    def close(self) -> None:
        if self.shown:
            self._draw()

    def _draw(self) -> None:
        from IPython.display import display

        bundle = self._bundle(self.rows)
        if self.shown:
            self.shown.update(bundle, raw=True)
        elif bundle:
            self.shown = display(bundle, raw=True, display_id=True)

    def _bundle(self, rows: list[dict]) -> dict:
        """The figure of these rows as a front end takes it, nothing while they hold no number."""
        import pandas as pd

        from workbench.plots.theme import headline_of, smoothed
        from workbench.plots.training import plot_training_panels

        known = {key: value for row in rows for key, value in row.items() if not math.isnan(value)}
        keys = chosen_keys(known, self.keys)
        if not keys:
            return {}
        if keys != self.panels[0]:
            self.panels = keys, json.loads(plot_training_panels(pd.DataFrame([known]), keys, title="").to_json())
        spec = self.panels[1]
        for key, trace in zip(keys, spec["data"], strict=True):
            measured = pd.DataFrame(rows, columns=["step", key]).dropna()
            trace |= {"x": measured["step"].tolist(), "y": smoothed(measured[key], 15).tolist()}
        title = f"{self.label}, step {known['step']}: {numbers(known, self.keys)}"
        spec["layout"]["title"]["text"] = headline_of(title, "Running means over 15 points.")[0]
        return {"application/vnd.plotly.v1+json": spec}


class Bar(Curves):
    """tqdm's widget, with time left, and the curves below it."""

    def __init__(self, label: str, *, start: int, total: int, keys: tuple[str, ...]):
        from tqdm.notebook import tqdm

        self.bar = tqdm(desc=label, initial=start, total=total)
        super().__init__(label, keys)

    def update(self, row: dict) -> None:
        self.bar.set_postfix_str(numbers(row, self.keys), refresh=False)
        self.bar.update(1)
        super().update(row)

    def close(self) -> None:
        self.bar.close()
        super().close()


class Lines:
    """One line per five seconds, and always the first and the last."""

    def __init__(self, label: str, *, start: int, total: int, keys: tuple[str, ...]):
        self.label, self.start, self.total, self.keys = label, start, total, keys
        self.began = time.monotonic()
        self.printed_at, self.waiting = -float("inf"), {}

    def update(self, row: dict) -> None:
        self.waiting = row
        if time.monotonic() - self.printed_at >= SECONDS_BETWEEN_LINES:
            self._print()

    def close(self) -> None:
        if self.waiting:
            self._print()

    def _print(self) -> None:
        row, step = self.waiting, self.waiting["step"]
        seconds = time.monotonic() - self.began
        left = seconds / (step - self.start) * (self.total - step)
        shown = numbers(row, self.keys)
        print(
            f"{self.label}  step {step}/{self.total}  {shown}  {duration(seconds)}, {duration(left)} left", flush=True
        )
        self.printed_at, self.waiting = time.monotonic(), {}


def numbers(row: dict, keys: tuple[str, ...]) -> str:
    """The row's `chosen_keys` to three digits: "kl 1.73  reward 0.6"."""
    chosen = chosen_keys(row, keys)
    return "  ".join(f"{key} {row[key]}" if isinstance(row[key], int) else f"{key} {row[key]:.3g}" for key in chosen)


def chosen_keys(row: dict, keys: tuple[str, ...]) -> list[str]:
    """The `keys` that are defined in the row, or its first three numbers that are."""
    defined = [key for key, value in row.items() if key != "step" and not math.isnan(value)]
    return [key for key in keys if key in defined] or defined[:3]


def duration(seconds: float) -> str:
    """Rounded for reading: "18 s", "3 min", "2 h 5 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


# Experiment trackers that receive the same rows as metrics.jsonl; each is imported only when it is named

PROJECT = "rlhf-workbench"
Write = Callable[..., None]  # of (numbers, step=)


@contextmanager
def tensorboard(folder: Path, *, label: str, identity: str, parameters: dict) -> Iterator[Write]:
    """Event files in the run's folder: `tensorboard --logdir runs`."""
    from tensorboard.summary import Writer

    with closing(Writer(str(folder / "tensorboard" / label))) as writer:
        yield lambda numbers, step: [writer.add_scalar(key, value, step=step) for key, value in numbers.items()]


@contextmanager
def wandb(folder: Path, *, label: str, identity: str, parameters: dict) -> Iterator[Write]:
    """A Weights & Biases run; its own environment variables choose account and offline mode."""
    yield from _online("wandb", name=label, id=identity, dir=str(folder), config=parameters)


@contextmanager
def trackio(folder: Path, *, label: str, identity: str, parameters: dict) -> Iterator[Write]:
    """A trackio run, kept on this machine unless its own environment variables say otherwise."""
    # it knows runs by name alone, and folders share names
    yield from _online("trackio", name=f"{label}-{identity[:6]}", config=parameters)


def _online(package: str, **about) -> Iterator[Write]:
    tracker = import_module(package)
    tracker.init(project=PROJECT, resume="allow", **about)
    try:
        yield tracker.log
    finally:
        tracker.finish()


# by package; `folder` is the run's, `identity` the same whenever the run resumes
SINKS = {"tensorboard": tensorboard, "wandb": wandb, "trackio": trackio}


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
    names: Sequence[str], folder: Path, *, label: str, identity: str, parameters: dict
) -> Iterator[Callable[[dict], None]]:
    """What gives a row to each of these trackers, which are closed when the block ends, however it ends."""
    with ExitStack() as stack:
        opened = [SINKS[name](folder, label=label, identity=identity, parameters=parameters) for name in names]
        writers = [stack.enter_context(sink) for sink in opened]

        def track(row: dict) -> None:
            for write in writers:
                write({key: value for key, value in row.items() if key != "step"}, step=row["step"])

        yield track
