"""Executes a plan: what is finished is skipped, what does not depend on each other may run side by side."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.exit_codes import DONE, STOPPED
from workbench.files import sha256, shown
from workbench.progress import duration
from workbench.recipes import Plan, Stage
from workbench.run_record import refuse_other_parameters

SECONDS_TO_STOP = 60  # then what still runs is killed
# On import jsonschema compiles a grammar of web addresses, for 1.7 seconds; checking notebooks works without it.
START = "import sys; sys.modules['rfc3987_syntax'] = None; from workbench.execute import main; sys.exit(main())"


def run_plan(plan: Plan) -> int:
    """Execute the stages in order, `plan.jobs` at a time, printing as they go; exit code of the first that failed."""
    for stage in plan.stages:
        refuse_other_parameters(stage.folder, stage.values)
    execution, waiting, running, codes = Execution(plan), list(plan.stages), {}, {}
    with stopping_on_signals(execution), ThreadPoolExecutor(plan.jobs) as pool:
        while waiting or running:
            if execution.stopped or any(codes.values()):
                waiting.clear()  # what runs may end, nothing new starts
            for stage in [stage for stage in waiting if all(name in codes for name in stage.needs)]:
                if len(running) < plan.jobs:
                    waiting.remove(stage)
                    running[pool.submit(execution.run_stage, stage)] = stage
            collect(running, codes)
    left = [stage.name for stage in plan.stages if codes.get(stage.name) != DONE]
    if execution.stopped and left:
        print(f"stopped at stage {left[0]}: run the same command again to continue", file=sys.stderr)
        return STOPPED
    return next((codes[stage.name] for stage in plan.stages if codes.get(stage.name)), DONE)


def collect(running: dict[Future, Stage], codes: dict[str, int]) -> None:
    """Wait for a running stage and move it to the exit codes by name."""
    ended, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in ended:
        codes[running.pop(future).name] = future.result()


class Execution:
    """The processes of one plan, and the lines that are printed about them."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.processes: dict[str, subprocess.Popen] = {}  # by stage
        self.stopped = False
        self.environment = environment()
        self.printing = threading.Lock()

    def run_stage(self, stage: Stage) -> int:
        """Execute one stage unless it is finished; its exit code."""
        key, began = stage_key(stage), time.monotonic()
        if executed(stage.folder).get("key") == key:
            self.say(stage, "... finished before, skipped")
            return DONE
        self.say(stage, "started")
        code, sentence = self.run_process(stage, key)
        took = duration(time.monotonic() - began)
        ending = "done in" if code == DONE else "stopped after" if self.stopped else "failed after"
        self.say(stage, f"... {ending} {took}")
        if ending == "failed after":
            print(sentence, file=sys.stderr, flush=True)
        return code

    def say(self, stage: Stage, what: str) -> None:
        number = 1 + self.plan.stages.index(stage)
        self.print_line(f"[{number}/{len(self.plan.stages)}] {stage.name} {what}")

    def print_line(self, line: str) -> None:
        with self.printing:
            print(line, flush=True)

    def run_process(self, stage: Stage, key: str) -> tuple[int, str]:
        """Run the stage in its own process, passing on what it prints; exit code and the sentence for a failure."""
        prefix = f"{stage.name} | " if self.plan.jobs > 1 else ""
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                [sys.executable, "-c", START],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=self.environment,
                start_new_session=True,  # Ctrl-C in the terminal reaches only us, who pass it on
            )
            self.processes[stage.name] = process
            process.stdin.write(json.dumps(job(stage, key)) + "\n")
            process.stdin.flush()
            if self.stopped:
                process.send_signal(signal.SIGINT)
            for line in process.stdout:
                self.print_line(prefix + line.rstrip("\n"))
            code = process.wait()
            process.stdin.close()
            errors.seek(0)
            lines = errors.read().split("\n")
        return code, next((line for line in reversed(lines) if line), f"{stage.name} ended with code {code}.")

    def stop(self, number, frame) -> None:
        """Signal handler: pass it on to every stage that runs, and kill those that do not end in time."""
        self.stopped = True
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                killer = threading.Timer(SECONDS_TO_STOP, process.kill)
                killer.daemon = True
                killer.start()


@contextmanager
def stopping_on_signals(execution: Execution) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM stop the execution in order while the block runs."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, execution.stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def environment() -> dict[str, str]:
    """Environment of a stage: one thread unless asked otherwise, which is fastest for tiny models."""
    threads = os.environ.get("WORKBENCH_THREADS", "1")
    if not threads.isdecimal() or int(threads) < 1:
        raise WorkbenchError(f"WORKBENCH_THREADS is {threads!r}: give a whole number of at least 1.")
    chosen = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads} | os.environ
    chosen.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' bars, too, would fill executed notebooks
    chosen.pop("JPY_SESSION_NAME", None)  # of the notebook that this was started from: nobody watches this one
    return chosen


def job(stage: Stage, key: str) -> dict:
    """What `workbench.execute` has to know."""
    metadata = {"key": key, "execution": uuid.uuid4().hex, "notebook": stage.notebook.name, "stage": stage.name}
    return {
        "name": stage.name,
        "notebook": str(stage.notebook.path),
        "folder": str(stage.folder),
        "parameters": stage.given,
        "metadata": metadata,
    }


# What is finished


def stage_key(stage: Stage) -> str:
    """Hash of everything that the executed notebook follows from: cells, parameters and what its inputs are now."""
    inputs = {shown(path): identity(path, stage) for path in stage.inputs}
    content = [stage.notebook.sources, sorted(stage.values.items()), sorted(inputs.items())]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def identity(path: Path, stage: Stage) -> str:
    """What tells one state of an input from another: its executions where stages made it, its bytes otherwise."""
    if path.is_dir() and stage.folder.is_relative_to(path):  # a folder of runs, this stage's own among them
        names = stage.needs or [other.name for other in sorted(path.iterdir()) if other != stage.folder]
        places = [path / name for name in names]
    else:
        places = sorted(path.parent.glob(path.name)) if "*" in path.name else [path]
    made = [executed(folder).get("execution", "") for place in places for folder in (place, *place.parents[:2])]
    if any(made):
        return " ".join(made)
    return " ".join(sha256(place) for place in places if place.exists() and not stage.folder.is_relative_to(place))


def executed(folder: Path) -> dict:
    """What the finished notebook in a folder says about its execution, nothing where there is none."""
    try:
        return json.loads((folder / "notebook.ipynb").read_text())["metadata"].get("workbench", {})
    except (OSError, ValueError, KeyError):
        return {}
