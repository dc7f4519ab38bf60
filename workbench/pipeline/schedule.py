"""Executes a plan: what is finished is skipped, what does not depend on each other may run side by side."""

import glob
import hashlib
import json
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Protocol, TextIO

from workbench import DONE, STOPPED, WorkbenchError
from workbench.pipeline.recipes import Plan, Stage, refuse_missing_inputs
from workbench.pipeline.workers import Processes
from workbench.runs.files import read_json, sha256, shown
from workbench.runs.progress import duration
from workbench.runs.record import refuse_other_parameters, thread_count

Codes = dict[str, int | None]  # exit codes by stage, None for a stage that was not begun


def run_plan(plan: Plan) -> int:
    """Execute the stages in order, `plan.jobs` at a time, printing as they go; exit code of the first that failed."""
    refuse_what_can_not_run(plan)
    with closing(Processes(thread_count())) as processes:
        execution = Execution(plan, processes)
        codes = run_stages(execution, execution.run_stage, hopeless=after_any_failure)
    left = [stage.name for stage in plan.stages if codes[stage.name] != DONE]
    if execution.stopped and left:
        print(f"stopped at stage {left[0]}: run the same command again to continue", file=sys.stderr)
        return STOPPED
    return next((codes[stage.name] for stage in plan.stages if codes[stage.name]), DONE)


def refuse_what_can_not_run(plan: Plan) -> None:
    """WorkbenchError where a stage's folder holds other work or something that it reads is missing."""
    for stage in plan.stages:
        if stage.notebook.path == stage.folder / "notebook.ipynb":
            raise WorkbenchError(f"{shown(stage.notebook.path)} would be replaced by its own results: choose an --out.")
        refuse_other_parameters(stage.folder, stage.values, threads=thread_count())
        refuse_missing_inputs(stage)


def after_any_failure(stage: Stage, codes: Codes) -> bool:
    """Whether anything failed: what runs may end, nothing new starts."""
    return any(codes.values())


def run_stages(
    execution: "Execution", run_stage: Callable[[Stage], int], *, hopeless: Callable[[Stage, Codes], bool]
) -> Codes:
    """Call `run_stage` on the plan's stages, each after those it needs; a stage that is `hopeless` is not begun."""
    waiting, running, codes = list(execution.plan.stages), {}, {}
    jobs = execution.plan.jobs
    with stopping_on_signals(execution), ThreadPoolExecutor(jobs) as pool:
        while waiting or running:
            for stage in list(waiting):
                if execution.stopped or hopeless(stage, codes):
                    waiting.remove(stage)
                    codes[stage.name] = None
                elif len(running) < jobs and all(name in codes for name in stage.needs):
                    waiting.remove(stage)
                    running[pool.submit(run_stage, stage)] = stage
            collect(running, codes)
    return codes


def collect(running: dict[Future, Stage], codes: Codes) -> None:
    """Wait for a running stage and move it to the exit codes by name."""
    ended, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in ended:
        codes[running.pop(future).name] = future.result()


class RunsProcesses(Protocol):
    """`Processes`, or what has its two methods and runs the stages elsewhere."""

    def run_process(self, job: dict, pass_on: Callable[[str], None]) -> tuple[int, str]: ...

    def stop(self) -> None: ...


class Execution:
    """The stages of one plan as they run, and the lines that are printed about them."""

    def __init__(self, plan: Plan, processes: RunsProcesses):
        self.plan, self.processes = plan, processes
        self.numbers = {stage.name: number for number, stage in enumerate(plan.stages, 1)}
        self.seconds: dict[str, float] = {}  # that stages took, without those that were skipped
        self.sentences: dict[str, str] = {}  # why stages failed
        self.stopped = False
        self.printing = threading.Lock()

    def run_stage(self, stage: Stage) -> int:
        """Execute one stage unless it is finished; its exit code."""
        key, began = stage_key(stage), time.monotonic()
        if executed(stage.folder).get("key") == key:
            self.say(stage, "... finished before, skipped")
            return DONE
        self.say(stage, "started")
        prefix = f"{stage.name} | " if self.plan.jobs > 1 else ""
        code, sentence = self.processes.run_process(job(stage, key), lambda line: self.print_line(prefix + line))
        self.seconds[stage.name] = time.monotonic() - began
        ending = "done in" if code == DONE else "stopped after" if self.stopped else "failed after"
        self.say(stage, f"... {ending} {duration(self.seconds[stage.name])}")
        if ending == "failed after":
            self.sentences[stage.name] = sentence
            self.print_line(sentence, file=sys.stderr)
        return code

    def say(self, stage: Stage, what: str) -> None:
        self.print_line(f"[{self.numbers[stage.name]}/{len(self.plan.stages)}] {stage.name} {what}")

    def print_line(self, line: str, file: TextIO | None = None) -> None:
        """Print to stdout, or another file, while no other line is printed."""
        with self.printing:
            print(line, file=file, flush=True)

    def stop(self, number, frame) -> None:
        """Signal handler: nothing new starts, and what runs is stopped."""
        self.stopped = True
        self.processes.stop()


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


def job(stage: Stage, key: str) -> dict:
    """What `workbench.pipeline.execute` has to know."""
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
    """Hash of everything that the executed notebook follows from: cells, parameters, threads and its inputs now."""
    inputs = {shown(path): identity(path, stage) for path in stage.inputs}
    content = [stage.notebook.sources, sorted(stage.values.items()), sorted(inputs.items()), thread_count()]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def identity(path: Path, stage: Stage) -> str:
    """What tells one state of an input from another: its executions where stages made it, its bytes otherwise."""
    if path.is_dir() and stage.folder.is_relative_to(path):  # a folder of runs, this stage's own among them
        names = stage.needs or [other.name for other in sorted(path.iterdir()) if other != stage.folder]
        places = [path / name for name in names]
    else:
        places = list(map(Path, sorted(glob.glob(str(path), recursive=True)))) if "*" in path.name else [path]
    made = [executed(folder).get("execution", "") for place in places for folder in (place, *place.parents[:2])]
    if any(made):
        return " ".join(made)
    return " ".join(sha256(place) for place in places if place.exists() and not stage.folder.is_relative_to(place))


def executed(folder: Path) -> dict:
    """What the finished notebook in a folder says about its execution, nothing where there is none."""
    about = {}
    with suppress(WorkbenchError, KeyError, TypeError):
        about = read_json(folder / "notebook.ipynb")["metadata"]["workbench"]
    return about if isinstance(about, dict) else {}
