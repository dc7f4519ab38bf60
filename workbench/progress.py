"""Progress of a training loop: a bar in JupyterLab, plain lines everywhere else."""

import math
import os
import sys
import time

SECONDS_BETWEEN_LINES = 5.0


def open_progress(label: str, *, start: int, total: int, keys: tuple[str, ...]) -> "Bar | Lines":
    """Progress from step `start` to `total`, showing the row's `keys` (its first three numbers if there are none)."""
    kind = Bar if in_jupyterlab() else Lines
    return kind(label, start=start, total=total, keys=keys)


def in_jupyterlab() -> bool:
    """Whether a browser is watching: a kernel that a Jupyter server started, not one that papermill started."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return "JPY_SESSION_NAME" in os.environ and getattr(shell, "kernel", None) is not None


class Bar:
    """tqdm's widget, with time left."""

    def __init__(self, label: str, *, start: int, total: int, keys: tuple[str, ...]):
        from tqdm.notebook import tqdm

        self.keys = keys
        self.bar = tqdm(desc=label, initial=start, total=total)

    def update(self, row: dict) -> None:
        self.bar.set_postfix_str(numbers(row, self.keys), refresh=False)
        self.bar.update(1)

    def close(self) -> None:
        self.bar.close()


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
    """The row's `keys`, or its first three numbers, to three digits, without undefined ones: "kl 1.73  reward 0.6"."""
    defined = [key for key, value in row.items() if key != "step" and not math.isnan(value)]
    chosen = [key for key in keys if key in defined] or defined[:3]
    return "  ".join(f"{key} {row[key]}" if isinstance(row[key], int) else f"{key} {row[key]:.3g}" for key in chosen)


def duration(seconds: float) -> str:
    """Rounded for reading: "18 s", "3 min", "2 h 5 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
