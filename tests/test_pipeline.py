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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest

from workbench.runs import files
from workbench.runs.resume import load_checkpoint

AT_ONCE = 2
CHECKPOINT_EVERY = 50  # steps, the default of `Run.train`
SHORT = "max_completion_length=12"
# Enough steps that a checkpoint lies behind the kill and work before it.
SETTINGS = {
    "02_sft": ("steps=80", "batch_size=16", "learning_rate=0.003", SHORT),
    "05_reward_model": ("batch_size=4", "epochs=4"),
    "06_policy_gradient": ("steps=58", "batch_size=8", SHORT),
    "08_direct_alignment": ("batch_size=4", "epochs=5", SHORT),
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
    return ["run", "tour", "--preset", "smoke", "--out", str(out), *assignments(*all_settings(), *settings)]


def stage_command(notebook: str, tour: Path, out: Path, *settings: str) -> list[str]:
    """The notebook alone, on the same inputs as its stage of the tour."""
    inputs = [f"{name}={path}" for name, path in inputs_of(notebook, tour).items()]
    return ["run", notebook, "--preset", "smoke", "--out", str(out), *assignments(*inputs, *settings)]


def inputs_of(notebook: str, tour: Path) -> dict[str, str]:
    return {name: f"{tour}/{stage}" for name, stage in (text.split("=") for text in INPUTS[notebook])}


def all_settings() -> list[str]:
    return [f"{stage}.{setting}" for stage, values in SETTINGS.items() for setting in values]


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


# Killed and continued, repeated


@dataclass(frozen=True, kw_only=True)
class Killed:
    """A training that was killed in the middle."""

    rows: int
    checkpoint: int
    left_running: list[int]


@dataclass(frozen=True, kw_only=True)
class Continued:
    """Every trainer's notebook, killed by itself, and what one command then did that continues them all."""

    folder: Path
    killed: dict[str, Killed]
    ended: Ended


@pytest.fixture(scope="module")
def continued(tour, tmp_path_factory) -> Continued:
    """Beside what was killed the command trains the tour's shortest policy again, with its own seed and another."""
    folder = tmp_path_factory.mktemp("killed")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        each = pool.map(lambda name: start_and_kill(name, tour.folder, folder / name), SETTINGS)
        killed = dict(zip(SETTINGS, each, strict=True))
    stages = [{"name": name, "notebook": name, "parameters": inputs_of(name, tour.folder)} for name in SETTINGS]
    policy = {"notebook": "06_policy_gradient"}
    given = {**inputs_of("06_policy_gradient", tour.folder), "kl_coef": 0.0}
    stages += [{**policy, "name": f"seed{seed}", "parameters": {**given, "seed": seed}} for seed in (0, 1)]
    recipe = folder / "all.yaml"
    recipe.write_text(json.dumps({"out": str(folder), "jobs": AT_ONCE, "stages": stages}))  # JSON is YAML
    ended = execute("run", recipe, "--preset", "smoke", *assignments(*all_settings()))
    return Continued(folder=folder, killed=killed, ended=ended)


def start_and_kill(notebook: str, tour: Path, folder: Path) -> Killed:
    process = start(*stage_command(notebook, tour, folder, *SETTINGS[notebook]))
    try:
        wait_for_rows(folder / "metrics.jsonl", CHECKPOINT_EVERY + 3, process)
    finally:
        killed = kill_with_descendants(process)
    return Killed(
        rows=len(whole_lines(folder / "metrics.jsonl")),
        checkpoint=load_checkpoint(folder / "checkpoint" / "train.pt")["step"],
        left_running=[number for number in killed if is_running(number)],
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
    killed = continued.killed[notebook]
    undisturbed = rows_of(tour.folder / notebook)
    steps = undisturbed["metrics.jsonl"].count(b"\n")
    assert CHECKPOINT_EVERY <= killed.checkpoint <= killed.rows < steps
    assert killed.left_running == []
    assert continued.ended.code == 0, continued.ended
    first_step = int(re.search(rf"^{notebook} \| .* step (\d+)/{steps}", continued.ended.printed, re.M)[1])
    assert first_step == killed.checkpoint + 1
    assert rows_of(continued.folder / notebook) == undisturbed


def test_the_same_work_twice_gives_equal_bytes_and_another_seed_others(tour, continued):
    expected = rows_of(tour.folder / "06_policy_gradient_free")
    assert set(expected) == {"metrics.jsonl", "samples.jsonl"}
    assert continued.ended.code == 0, continued.ended
    assert rows_of(continued.folder / "seed0") == expected
    assert all(rows != expected[name] for name, rows in rows_of(continued.folder / "seed1").items())


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
    made_before = files.read_json(tour.folder / "00_tour" / "run.json")
    del made_before["parameters"]["direct"]  # as if the notebook had it since
    files.write_json(tour.folder / "00_tour" / "run.json", made_before)
    repeated = execute(*command)
    assert repeated.code == 0, repeated
    assert re.findall(r"\] (\w+) started", repeated.printed) == ["12_compare_runs", "00_tour"]
    assert repeated.printed.count("skipped") == 9
