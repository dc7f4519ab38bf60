"""What becomes of each run of a sweep: kept in sweep.json as it happens, with retries, time left and what failed."""

import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from workbench import BAD_INPUT, DONE, FAILED, STOPPED, WorkbenchError
from workbench.pipeline.cluster import wait_until_free
from workbench.pipeline.recipes import Stage
from workbench.pipeline.schedule import Codes, Execution
from workbench.runs import files
from workbench.runs.progress import duration

NOT_RUN, FINISHED, BROKEN, SKIPPED, CUT_SHORT = "not run", "finished", "failed", "skipped", "stopped"
SECONDS_BETWEEN_WRITES = 1.0


class Ledger:
    """Runs the stages of an execution and notes how each of them ended."""

    def __init__(self, execution: Execution, record: dict, *, retries: int):
        self.execution, self.record, self.retries = execution, record, retries
        self.began, self.written_at = time.monotonic(), -float("inf")
        self.writing = threading.Lock()
        self.write()

    def run_stage(self, stage: Stage) -> int:
        """Execute one stage, again where it failed for another reason than bad input; its exit code."""
        code = self._attempt(stage)
        for number in range(1, 1 + self.retries):
            if code in (DONE, BAD_INPUT) or self.execution.stopped:
                break
            self.execution.say(stage, f"retry {number} of {self.retries}")
            code = self._attempt(stage)
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

    def progress(self) -> str:
        """How many stages are done, and about how long the others will take."""
        runs, stages = self.record["runs"], self.execution.plan.stages
        statuses = [run["status"] for run in runs.values()]
        failed = f", {statuses.count(BROKEN)} failed" if BROKEN in statuses else ""
        done = f"{statuses.count(FINISHED)} of {len(statuses)} stages done{failed}"
        seconds = dict(self.execution.seconds)
        taken = [
            (stage.notebook.name, seconds[stage.name])
            for stage in stages
            if runs[stage.name]["status"] == FINISHED and stage.name in seconds
        ]
        waiting = [stage.notebook.name for stage in stages if runs[stage.name]["status"] == NOT_RUN]
        if not taken or not waiting:
            return done
        left = seconds_left(waiting, taken, elapsed=time.monotonic() - self.began)
        return f"{done}, about {duration(left)} left"

    def conclude(self, codes: Codes) -> int:
        """Note what was not run and why, and say what failed; the exit code of the sweep."""
        runs = self.record["runs"]
        for stage in self.execution.plan.stages:
            lost = [need for need in stage.needs if runs[need]["status"] in (BROKEN, SKIPPED)]
            if codes[stage.name] is None and lost:
                runs[stage.name] |= {"status": SKIPPED, "problem": f"{stage.name} needs {', '.join(lost)}."}
        self.write()
        say_what_failed(runs)
        left = [name for name, run in runs.items() if run["status"] in (NOT_RUN, CUT_SHORT)]
        if left:
            print(f"stopped at stage {left[0]}: run the same command again to continue", file=sys.stderr)
        return STOPPED if left else FAILED if any(run["status"] == BROKEN for run in runs.values()) else DONE

    def write(self) -> None:
        """Write sweep.json."""
        self.written_at = time.monotonic()
        files.write_json(record_path(self.execution.plan.folder), self.record)


def record_path(folder: Path) -> Path:
    """Where a sweep's record is."""
    return folder / "sweep.json"


def say_what_failed(runs: Mapping[str, dict]) -> None:
    """On stderr, the sentence of every run that failed, and what was not run because of it."""
    failed, skipped = ([run for run in runs.values() if run["status"] == status] for status in (BROKEN, SKIPPED))
    if failed:
        because = f", {len(skipped)} were not run because they need them" if skipped else ""
        print(f"{len(failed)} of {len(runs)} stages failed{because}:", file=sys.stderr)
        for run in [*failed, *skipped]:
            print(f"  {run['problem']}", file=sys.stderr)
        print("run the same command again to try them again", file=sys.stderr)


def seconds_left(waiting: list[str], taken: list[tuple[str, float]], *, elapsed: float) -> float:
    """Estimate for the stages that wait, by their notebooks: the mean of those that ran, at the pace until now.

    `taken` has the notebook and the seconds of every stage that ran. They may have run side by side, or waited on a
    cluster: `elapsed` over their sum is what one second of a stage has cost so far.
    """
    every = [seconds for _, seconds in taken]
    total = 0.0
    for notebook in waiting:
        same = [seconds for name, seconds in taken if name == notebook] or every
        total += sum(same) / len(same)
    return total * elapsed / sum(every)
