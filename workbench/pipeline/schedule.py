"""Executes a plan: what is finished is skipped, what does not depend on each other may run side by side.

A `Ledger` keeps in sweep.json what becomes of each run of a sweep as it happens.
"""

import glob
import hashlib
import json
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TextIO

from workbench import BAD_INPUT, DONE, FAILED, STOPPED, WorkbenchError
from workbench.pipeline.recipes import Plan, Stage, refuse_missing_feedback, refuse_missing_inputs
from workbench.pipeline.workers import Processes, imported_by
from workbench.runs.files import locked, read_json, sha256, shown, write_json
from workbench.runs.progress import duration
from workbench.runs.record import refuse_other_parameters, thread_count

Codes = dict[str, int | None]  # exit codes by stage, None for a stage that was not begun
NOT_RUN, FINISHED, BROKEN, SKIPPED, CUT_SHORT = "not run", "finished", "failed", "skipped", "stopped"
SECONDS_BETWEEN_WRITES = 1.0
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_FOR_A_PREDECESSOR = 120  # to notice that whoever started it is gone, and to stop


def run_plan(plan: Plan) -> int:
    """Execute the stages in order, `plan.jobs` at a time, printing as they go; exit code of the first that failed."""
    refuse_what_can_not_run(plan)
    with closing(Processes()) as processes:
        execution = Execution(plan, processes)
        codes = run_stages(execution, execution.run_stage, hopeless=after_any_failure)
    left = [stage.name for stage in plan.stages if codes[stage.name] != DONE]
    if execution.stopped and left:
        print(f"stopped at stage {left[0]}: run the same command again to continue", file=sys.stderr)
        return STOPPED
    return next((codes[stage.name] for stage in plan.stages if codes[stage.name]), DONE)


def refuse_what_can_not_run(plan: Plan) -> None:
    """WorkbenchError where a stage's folder holds other work or something that it reads is missing or never made."""
    refuse_missing_feedback(plan)
    for stage in plan.stages:
        if stage.notebook.path == stage.folder / "notebook.ipynb":
            raise WorkbenchError(f"{shown(stage.notebook.path)} would be replaced by its own results: choose an --out.")
        defaults = stage.notebook.defaults
        refuse_other_parameters(stage.folder, stage.values, defaults=defaults, threads=threads_of(stage))
        refuse_missing_inputs(stage)
        refuse_too_many_processes(stage)


def refuse_too_many_processes(stage: Stage) -> None:
    """WorkbenchError where a stage asks for more processes than this machine has cores, or has nothing to share."""
    asked, cores = stage.processes, os.cpu_count() or 1
    if asked > cores:
        raise WorkbenchError(
            f"{stage.name} asks for {asked} processes and this machine has {cores} cores: ask for less."
        )
    if asked > 1 and "run_dir" not in stage.notebook.parameters:
        raise WorkbenchError(f"{stage.name} asks for {asked} processes and trains nothing: leave processes out.")


def threads_of(stage: Stage) -> int:
    """Threads that the stage computes with."""
    return thread_count(stage.folder, asked=stage.threads)


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
            for ended in wait(running, return_when=FIRST_COMPLETED).done:
                codes[running.pop(ended).name] = ended.result()
    return codes


class Execution:
    """The stages of one plan as they run, and the lines that are printed about them.

    `processes` may be anything with the methods `run_process` and `stop`, such as `cluster.Elsewhere`.
    """

    def __init__(self, plan: Plan, processes: Processes):
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
    """What the process of a stage has to know, and the one that it is forked from."""
    notebook = stage.notebook
    return {
        "name": stage.name,
        "notebook": str(notebook.path),
        "imports": imported_by(notebook.sources),
        "folder": str(stage.folder),
        "parameters": stage.given,
        "defaults": notebook.defaults,
        "threads": threads_of(stage),  # decided here, not where it runs
        "processes": stage.processes,
        "metadata": {"key": key, "execution": uuid.uuid4().hex, "notebook": notebook.name, "stage": stage.name},
    }


# What is finished


def stage_key(stage: Stage) -> str:
    """Hash of everything that the executed notebook follows from: cells, parameters, threads and its inputs now."""
    inputs = {shown(path): identity(path, stage) for path in stage.inputs}
    content = [stage.notebook.sources, sorted(stage.values.items()), sorted(inputs.items()), threads_of(stage)]
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


def wait_until_free(folder: Path, *, until: Callable[[], bool]) -> None:
    """Wait for an earlier attempt that still writes in a stage's folder, for some time and `until` it is pointless."""
    lock, began = folder / ".notebook.lock", time.monotonic()
    while lock.exists() and time.monotonic() - began < SECONDS_FOR_A_PREDECESSOR and not until():
        with suppress(WorkbenchError), locked(lock):
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)


# What becomes of each run of a sweep


class Ledger:
    """Runs the stages of an execution, again where they failed, and notes in sweep.json how each of them ended."""

    def __init__(self, execution: Execution, record: dict, *, retries: int):
        self.execution, self.record, self.retries = execution, record, retries
        self.began, self.written_at = time.monotonic(), -float("inf")
        self.writing = threading.Lock()
        self.write()

    def run_stage(self, stage: Stage) -> int:
        """Execute one stage, again where it failed for another reason than bad input; its exit code."""
        for number in count(1):
            code = self._attempt(stage)
            if code in (DONE, BAD_INPUT) or self.execution.stopped or number > self.retries:
                break
            self.execution.say(stage, f"retry {number} of {self.retries}")
        status = FINISHED if code == DONE else CUT_SHORT if self.execution.stopped else BROKEN
        problem = self.execution.sentences.get(stage.name, "") if status == BROKEN else ""
        with self.writing:
            self.record["runs"][stage.name] |= {"status": status, "problem": problem}
            if time.monotonic() - self.written_at > SECONDS_BETWEEN_WRITES:
                self.write()
            if stage.name in self.execution.seconds and not self.execution.stopped:
                self.execution.print_line(self.progress())
        return code

    def _attempt(self, stage: Stage) -> int:
        wait_until_free(stage.folder, until=lambda: self.execution.stopped)
        try:
            return self.execution.run_stage(stage)
        except (WorkbenchError, OSError) as error:
            sentence = f"{stage.name} failed: {error}"
            self.execution.sentences[stage.name] = sentence
            self.execution.print_line(sentence, file=sys.stderr)
            return BAD_INPUT if isinstance(error, WorkbenchError) else FAILED

    def named(self, *statuses: str) -> list[str]:
        """The runs that have one of these statuses."""
        return [name for name, run in self.record["runs"].items() if run["status"] in statuses]

    def progress(self) -> str:
        """How many stages are done, and about how long the others will take at the pace until now."""
        finished, failed, waiting = (len(self.named(status)) for status in (FINISHED, BROKEN, NOT_RUN))
        done = f"{finished} of {len(self.record['runs'])} stages done" + (f", {failed} failed" if failed else "")
        ran = len(self.execution.seconds)
        if not ran or not waiting:
            return done
        return f"{done}, about {duration((time.monotonic() - self.began) * waiting / ran)} left"

    def conclude(self, codes: Codes) -> int:
        """Note what was not run and why, and say what failed; the exit code of the sweep."""
        runs = self.record["runs"]
        for stage in self.execution.plan.stages:
            lost = [need for need in stage.needs if runs[need]["status"] in (BROKEN, SKIPPED)]
            if codes[stage.name] is None and lost:
                runs[stage.name] |= {"status": SKIPPED, "problem": f"{stage.name} needs {', '.join(lost)}."}
        self.write()
        failed, skipped, left = self.named(BROKEN), self.named(SKIPPED), self.named(NOT_RUN, CUT_SHORT)
        if failed:
            because = f", {len(skipped)} were not run because they need them" if skipped else ""
            print(f"{len(failed)} of {len(codes)} stages failed{because}:", file=sys.stderr)
            print(*(f"  {runs[name]['problem']}" for name in failed + skipped), sep="\n", file=sys.stderr)
            print("run the same command again to try them again", file=sys.stderr)
        if left:
            print(f"stopped at stage {left[0]}: run the same command again to continue", file=sys.stderr)
        return STOPPED if left else FAILED if failed else DONE

    def write(self) -> None:
        """Write sweep.json."""
        self.written_at = time.monotonic()
        write_json(self.execution.plan.folder / "sweep.json", self.record)
