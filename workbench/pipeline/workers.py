"""The stages that run on this machine, each in a process of its own: started, listened to, stopped."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable

from workbench.pipeline.warm_start import WITHOUT_GRAMMAR, WarmProcess, WarmStart, is_possible
from workbench.runs.record import thread_settings

SECONDS_TO_STOP = 60  # then what still runs is killed
START = WITHOUT_GRAMMAR + "from workbench.pipeline.execute import main; sys.exit(main())"


class Processes:
    """The processes of the stages that run now."""

    def __init__(self, threads: int):
        self.running: dict[str, subprocess.Popen | WarmProcess] = {}  # by stage
        self.stopped = False
        self.environment = environment(threads)
        self._warm: WarmStart | None = None
        self._starting = threading.Lock()

    def run_process(self, job: dict, pass_on: Callable[[str], None]) -> tuple[int, str]:
        """Run a stage in its own process, passing on what it prints; exit code and the sentence for a failure."""
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
            process = self.start(job["notebook"], errors)
            self.running[job["name"]] = process
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            if self.stopped:
                process.send_signal(signal.SIGTERM)
            for line in process.stdout:
                pass_on(line.rstrip("\n"))
            code = process.wait()
            process.stdin.close()
            errors.seek(0)
            lines = errors.read().split("\n")
        return code, next((line for line in reversed(lines) if line), f"{job['name']} ended with code {code}.")

    def start(self, notebook: str, errors) -> subprocess.Popen | WarmProcess:
        """A process that waits for its job on stdin: forked from one that has imported everything where that works."""
        if is_possible():
            with self._starting:
                if self._warm is None or not self._warm.alive:
                    self._warm = WarmStart(self.environment)
            return self._warm.popen(notebook, errors)
        return subprocess.Popen(
            [sys.executable, "-c", START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            env=self.environment,
            start_new_session=True,  # Ctrl-C in the terminal reaches only us, who pass it on
        )

    def close(self) -> None:
        """End the process that others are forked from."""
        if self._warm is not None:
            self._warm.close()
            self._warm = None

    def stop(self) -> None:
        """Interrupt every stage that runs, and kill those that do not end in time."""
        self.stopped = True
        for process in list(self.running.values()):  # others may begin meanwhile
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)  # SIGINT is ignored by what a background job starts
                killer = threading.Timer(SECONDS_TO_STOP, process.kill)
                killer.daemon = True
                killer.start()


def environment(threads: int) -> dict[str, str]:
    """Environment of a stage that computes with this many threads."""
    chosen = os.environ | thread_settings(threads) | {"PYTHONUTF8": "1"}
    chosen.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' bars, too, would fill executed notebooks
    chosen.pop("JPY_SESSION_NAME", None)  # of the notebook that this was started from: nobody watches this one
    return chosen
