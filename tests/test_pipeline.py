"""The whole pipeline through the command line: it ends, repeats nothing, survives kill -9, and is the same twice."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest

from workbench.checkpoints import load_checkpoint

AT_ONCE = 2
CHECKPOINT_EVERY = 50  # steps, the default of `Run.train`
# Enough steps that a checkpoint lies behind the kill and work before it.
SETTINGS = {
    "02_sft": ("steps=120", "batch_size=16", "learning_rate=0.003"),
    "05_reward_model": ("batch_size=4", "epochs=6"),
    "06_policy_gradient": ("steps=75", "batch_size=8"),
    "08_direct_alignment": ("batch_size=4", "epochs=8"),
}
INPUTS = {  # as in the recipe
    "02_sft": ("model=01_pretrain",),
    "05_reward_model": ("model=02_sft", "dataset=03_preferences", "policy=02_sft"),
    "06_policy_gradient": ("model=02_sft", "reward_model=05_reward_model"),
    "08_direct_alignment": ("model=02_sft", "dataset=03_preferences", "reward_model=05_reward_model"),
}


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A command that ended."""

    code: int
    printed: str
    complained: str
    seconds: float


def start(*words: str | Path) -> subprocess.Popen:
    """The command in a group of its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", "workbench.cli", *map(str, words)], start_new_session=True, **pipes)


def execute(*words: str | Path) -> Ended:
    """Run the command to its end."""
    began, process = time.monotonic(), start(*words)
    printed, complained = process.communicate(timeout=600)
    return Ended(code=process.returncode, printed=printed, complained=complained, seconds=time.monotonic() - began)


def tour_command(out: Path, *settings: str) -> list[str]:
    given = [f"{stage}.{setting}" for stage, values in SETTINGS.items() for setting in values]
    return ["run", "tour", "--preset", "smoke", "--out", str(out), *assignments(*given, *settings)]


def stage_command(notebook: str, tour: Path, out: Path, *settings: str) -> list[str]:
    """The notebook alone, on the same inputs as its stage of the tour."""
    inputs = [setting.replace("=", f"={tour}/") for setting in INPUTS[notebook]]
    return ["run", notebook, "--preset", "smoke", "--out", str(out), *assignments(*inputs, *settings)]


def assignments(*settings: str) -> Iterator[str]:
    for setting in settings:
        yield from ("-p", setting)


def rows_of(folder: Path) -> dict[str, bytes]:
    """The bytes of every metrics and samples file."""
    return {path.name: path.read_bytes() for path in [*folder.glob("metrics*"), *folder.glob("samples*")]}


@dataclass(frozen=True, kw_only=True)
class Tour:
    """The executed tour and what its command printed."""

    folder: Path
    ended: Ended


@pytest.fixture(scope="module")
def tour(tmp_path_factory) -> Tour:
    """The recipe at smoke size; the trainings that are killed below are longer."""
    folder = tmp_path_factory.mktemp("pipeline") / "tour"
    return Tour(folder=folder, ended=execute(*tour_command(folder)))


# Killed and continued


@dataclass(frozen=True, kw_only=True)
class Continued:
    """A training that was killed in the middle, and what the same command then did."""

    folder: Path
    rows_when_killed: int
    checkpoint_when_killed: int
    left_running: list[int]
    ended: Ended


@pytest.fixture(scope="module")
def continued(tour, tmp_path_factory) -> Iterator[dict[str, Future]]:
    """Each trainer's notebook, killed and continued in a folder of its own."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        longest_first = ("06_policy_gradient", "08_direct_alignment", "05_reward_model", "02_sft")
        folders = {notebook: tmp_path_factory.mktemp("killed") / notebook for notebook in longest_first}
        yield {
            notebook: pool.submit(kill_and_continue, notebook, tour.folder, folder)
            for notebook, folder in folders.items()
        }
        pool.shutdown(cancel_futures=True)


def kill_and_continue(notebook: str, tour: Path, folder: Path) -> Continued:
    command = stage_command(notebook, tour, folder, *SETTINGS[notebook])
    process = start(*command)
    try:
        wait_for_rows(folder / "metrics.jsonl", CHECKPOINT_EVERY + 3, process)
    finally:
        killed = kill_with_descendants(process)
    return Continued(
        folder=folder,
        rows_when_killed=len(whole_lines(folder / "metrics.jsonl")),
        checkpoint_when_killed=load_checkpoint(folder / "checkpoint" / "train.pt")["step"],
        left_running=[number for number in killed if is_running(number)],
        ended=execute(*command),
    )


def whole_lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def wait_for_rows(path: Path, count: int, process: subprocess.Popen) -> None:
    began = time.monotonic()
    while len(whole_lines(path)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - began < 300, "waited too long"
        time.sleep(0.005)


def kill_with_descendants(process: subprocess.Popen) -> list[int]:
    """SIGKILL for the kernel first, then for whatever started it, so that nobody can end anything in order."""
    family = [process.pid]
    for number in family:  # grows while it is read
        family += children(number)
    for number in reversed(family):
        os.kill(number, signal.SIGKILL)
    process.communicate()
    until = time.monotonic() + 30  # a loaded machine takes its time to bury them
    while any(map(is_running, family)) and time.monotonic() < until:
        time.sleep(0.05)
    return family


def children(parent: int) -> list[int]:
    numbers = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal())
    return [number for number in numbers if state_of(number)[1:2] == [str(parent)]]


def state_of(number: int) -> list[str]:
    """State, parent, ... of a process, nothing where it is gone."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def is_running(number: int) -> bool:
    return state_of(number)[:1] not in ([], ["Z"])


# Repeated


@pytest.fixture(scope="module")
def repeated(tour, continued, tmp_path_factory) -> Iterator[dict[int, Future]]:
    """The tour's shortest policy training by its notebook alone, for two seeds."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        commands = {}
        for seed in (0, 1):
            out = tmp_path_factory.mktemp("repeated") / "run"
            commands[seed] = stage_command("06_policy_gradient", tour.folder, out, "kl_coef=0.0", f"seed={seed}")
        yield {seed: pool.submit(execute, *command) for seed, command in commands.items()}
        pool.shutdown(cancel_futures=True)


def test_the_tour_ends_with_every_stage_executed_summarised_and_reported(tour):
    assert tour.ended.code == 0, tour.ended
    stages = re.findall(r"\] (\w+) \.\.\. done in", tour.ended.printed)
    assert len(stages) == len(set(stages)) == 11
    for stage in stages:
        notebook = nbformat.read(tour.folder / stage / "notebook.ipynb", as_version=4)
        assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
        record = json.loads((tour.folder / stage / "run.json").read_text())
        assert record["status"] == "finished" and record["wall_seconds"] > 0
        assert json.loads((tour.folder / stage / "summary.json").read_text())
        assert (tour.folder / "report" / f"{stage}.html").stat().st_size > 1000
    index = (tour.folder / "report" / "index.html").read_text()
    assert all(f"{stage}.html" in index for stage in stages)
    assert tour.ended.printed.endswith(f"report: {tour.folder}/report/index.html\n")
    assert not [path for path in tour.folder.rglob("*") if re.search(r"\.part\b|partial|failed", path.name)]


@pytest.mark.parametrize("notebook", SETTINGS)
def test_a_training_killed_in_the_middle_continues_to_the_same_bytes(notebook, tour, continued):
    outcome = continued[notebook].result()
    undisturbed = rows_of(tour.folder / notebook)
    steps = undisturbed["metrics.jsonl"].count(b"\n")
    assert CHECKPOINT_EVERY <= outcome.checkpoint_when_killed <= outcome.rows_when_killed < steps
    assert outcome.left_running == []
    assert outcome.ended.code == 0, outcome.ended
    first_step = int(re.search(rf"step (\d+)/{steps}", outcome.ended.printed)[1])
    assert first_step == outcome.checkpoint_when_killed + 1
    assert rows_of(outcome.folder) == undisturbed


def test_the_same_command_twice_gives_equal_bytes_and_another_seed_others(tour, repeated):
    expected = rows_of(tour.folder / "06_policy_gradient_free")
    assert set(expected) == {"metrics.jsonl", "samples.jsonl"}
    outcomes = {seed: future.result() for seed, future in repeated.items()}
    assert [outcome.code for outcome in outcomes.values()] == [0, 0], outcomes
    folders = {seed: Path(outcome.printed.split()[-1]) for seed, outcome in outcomes.items()}
    assert rows_of(folders[0]) == expected
    assert all(rows != expected[name] for name, rows in rows_of(folders[1]).items())


def test_a_second_tour_skips_everything(tour):
    before = {path: path.stat().st_mtime_ns for path in tour.folder.glob("[0-9]*/*")}
    again = execute(*tour_command(tour.folder))
    assert again.code == 0
    assert again.printed.count("... finished before, skipped") == 11 and " started" not in again.printed
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert again.seconds < tour.ended.seconds / 4


def test_another_parameter_is_refused_until_the_folder_is_gone_and_then_repeats_what_depends_on_it(tour):
    command = tour_command(tour.folder, "12_compare_runs.prompts_shown=2")
    refused = execute(*command)
    assert refused.code == 2 and refused.printed == "" and refused.complained.count("\n") == 1
    assert "12_compare_runs holds a run with prompts_shown=5 where now prompts_shown=2" in refused.complained
    shutil.rmtree(tour.folder / "12_compare_runs")
    repeated = execute(*command)
    assert repeated.code == 0, repeated
    assert re.findall(r"\] (\w+) started", repeated.printed) == ["12_compare_runs", "00_tour"]
    assert repeated.printed.count("skipped") == 9
