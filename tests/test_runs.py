"""A run that is killed, interrupted or stopped ends with the same bytes as one that never was."""

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny_models import tiny_model, word_tokenizer

from workbench import NonFiniteLoss, WorkbenchError
from workbench.runs import Run, files, names_in, progress, resume
from workbench.runs import record as provenance
from workbench.runs.record import keep_defaults, refuse_other_parameters


class Walk:
    """A toy trainer: a random walk whose next step depends on weights, two generators and a counter."""

    total_steps = 40
    progress_keys = ("loss",)

    def __init__(self, seed: int = 0):
        self.rng, self.generator = random.Random(seed), torch.Generator().manual_seed(seed)
        self.weights, self.done = torch.zeros(8), 0

    def step(self) -> dict:
        self.weights += torch.randn(8, generator=self.generator) * self.rng.random()
        self.done += 1
        return {"step": self.done, "loss": self.weights.square().mean(), "undefined": None}

    def samples(self) -> list[dict]:
        return [{"prompt": "how are you ?", "completion": f"{self.rng.random()}\u2028\r", "score": 0.5}] * 2

    def state_dict(self) -> dict:
        states = {"rng": self.rng.getstate(), "generator": self.generator.get_state()}
        return {**states, "weights": self.weights, "done": self.done}

    def load_state_dict(self, state: dict) -> None:
        self.rng.setstate(state["rng"])
        self.generator.set_state(state["generator"])
        self.weights, self.done = state["weights"].clone(), state["done"]


PARAMETERS = {"seed": 0, "kl_coef": 0.1, "run_dir": "runs/somewhere"}


def run_to_the_end(folder: Path, seed: int = 0, **options) -> Run:
    run = Run.open(folder, {**PARAMETERS, "seed": seed})
    for _ in run.train(Walk(seed), **options):
        pass
    run.finish()
    return run


def rows_on_disk(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}


def names_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@contextmanager
def refused(*named: str, kind: type[Exception] = WorkbenchError) -> Iterator[None]:
    """The block raises this error, which is one sentence that says all of these words."""
    with pytest.raises(kind) as caught:
        yield
    text = str(caught.value)
    assert text.endswith(".") and ". " not in text and "\n" not in text, text
    assert [part for part in named if part not in text] == [], text


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Run:
    """The oracle: a run that nothing happened to."""
    return run_to_the_end(tmp_path_factory.mktemp("undisturbed") / "run")


# --- same seed, same bytes; killed, same bytes


def test_equal_runs_have_equal_bytes_and_another_seed_has_others(tmp_path, undisturbed):
    expected = rows_on_disk(undisturbed.dir)
    assert set(expected) == {"metrics.jsonl", "samples.jsonl"}
    assert rows_on_disk(run_to_the_end(tmp_path / "same").dir) == expected
    other = rows_on_disk(run_to_the_end(tmp_path / "other", seed=1).dir)
    assert all(other[name] != expected[name] for name in expected)


KILLED_OVER_AND_OVER = """
import os, random, signal, sys, time
sys.path.insert(0, sys.argv[2])
from test_runs import PARAMETERS, Run, Walk
class SlowWalk(Walk):
    def step(self):
        time.sleep(0.002)
        return super().step()
def work():
    run = Run.open(sys.argv[1], PARAMETERS)
    for row in run.train(SlowWalk(), checkpoint_every=7):
        pass
    run.finish()
rng, kills = random.Random(5), 0
for attempt in range(60):
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    time.sleep(rng.uniform(0.0, 0.08) if kills < 12 else 30 if attempt == 59 else 0.5)
    finished, status = os.waitpid(child, os.WNOHANG)
    if not finished:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
    else:
        assert status == 0
        break
print("kills", kills)
"""


def test_killing_a_run_at_random_moments_does_not_change_a_byte(tmp_path, undisturbed):
    command = [sys.executable, "-c", KILLED_OVER_AND_OVER, str(tmp_path / "run"), str(Path(__file__).parent)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert int(re.search(r"kills (\d+)", result.stdout)[1]) >= 3
    assert rows_on_disk(tmp_path / "run") == rows_on_disk(undisturbed.dir)
    assert Run.read(tmp_path / "run").finished


@pytest.mark.parametrize("moment", range(1, 12))
def test_a_run_killed_after_any_write_ends_with_the_same_bytes(tmp_path, undisturbed, moment, monkeypatch):
    """Stop at the n-th write of any kind, without any of the cleaning up that a live process would do."""
    calls, real = [], {name: getattr(files, name) for name in ("append_lines", "write_json", "flush_to_disk")}

    class Killed(BaseException):
        pass

    def counted(name):
        def call(*arguments):
            real[name](*arguments)
            calls.append(name)
            if len(calls) == moment * 4:
                raise Killed

        return call

    with monkeypatch.context() as patch:
        for name in real:
            patch.setattr(files, name, counted(name))
        patch.setattr(
            resume.Training, "save", lambda self, save=resume.Training.save: len(calls) < moment * 4 and save(self)
        )
        with pytest.raises(Killed):
            run_to_the_end(tmp_path / "run", checkpoint_every=3)
    run_to_the_end(tmp_path / "run", checkpoint_every=3)
    assert rows_on_disk(tmp_path / "run") == rows_on_disk(undisturbed.dir)


def test_rows_after_the_checkpoint_and_half_lines_are_computed_again(tmp_path, undisturbed):
    run = Run.open(tmp_path / "run", PARAMETERS)
    for row in run.train(Walk()):
        if row["step"] == 20:
            break
    for name in ("metrics", "samples"):
        with open(tmp_path / "run" / f"{name}.jsonl", "a") as file:
            file.write('{"step": 21, "loss": 123.0}\n{"step": 22, "lo')
    assert len(Run.read(tmp_path / "run").metrics()) == 21  # a reader meanwhile: whole lines only
    rows = list(Run.open(tmp_path / "run", PARAMETERS).train(Walk()))
    assert [row["step"] for row in rows] == list(range(21, 41))
    assert rows_on_disk(tmp_path / "run") == rows_on_disk(undisturbed.dir)


def test_a_caller_who_breaks_goes_on_where_it_stopped(tmp_path, undisturbed):
    steps = []
    for last in (1, 13, 14, 40):
        run = Run.open(tmp_path / "run", PARAMETERS)
        for row in run.train(Walk()):
            steps.append(row["step"])
            if row["step"] == last:
                break
    assert steps == list(range(1, 41))
    assert rows_on_disk(tmp_path / "run") == rows_on_disk(undisturbed.dir)


def test_an_error_in_the_callers_loop_loses_no_step(tmp_path, undisturbed):
    run = Run.open(tmp_path / "run", PARAMETERS)
    with pytest.raises(ZeroDivisionError):
        for row in run.train(Walk()):
            1 / (17 - row["step"])
    assert next(iter(run.train(Walk())))["step"] == 18
    run_to_the_end(tmp_path / "run")
    assert rows_on_disk(tmp_path / "run") == rows_on_disk(undisturbed.dir)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C that is heard, also where whoever started the tests ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class InterruptedWalk(Walk):
    """Ctrl-C arrives `times` times in the middle of step 9, when the weights have moved and the counter has not."""

    times = 1

    def step(self) -> dict:
        self.weights += torch.randn(8, generator=self.generator) * self.rng.random()
        for _ in range(self.times if self.done == 8 else 0):
            os.kill(os.getpid(), signal.SIGINT)
        self.done += 1
        return {"step": self.done, "loss": self.weights.square().mean(), "undefined": None}


@pytest.mark.parametrize(("times", "saved"), [(1, 9), (2, 6)])
def test_ctrl_c_waits_for_the_step_and_a_second_one_falls_back_to_the_last_checkpoint(
    tmp_path, undisturbed, ctrl_c, times, saved
):
    run, trainer = Run.open(tmp_path / "run", PARAMETERS), InterruptedWalk()
    trainer.times = times
    with pytest.raises(KeyboardInterrupt):
        list(run.train(trainer, checkpoint_every=6))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert resume.load_checkpoint(tmp_path / "run" / "checkpoint" / "train.pt")["step"] == saved
    run_to_the_end(tmp_path / "run")
    assert rows_on_disk(tmp_path / "run") == rows_on_disk(undisturbed.dir)


def test_the_caller_sees_the_row_during_which_ctrl_c_came(tmp_path, ctrl_c):
    run, seen = Run.open(tmp_path / "run", PARAMETERS), []
    with pytest.raises(KeyboardInterrupt):
        for row in run.train(InterruptedWalk()):
            seen.append(row["step"])
    assert seen == list(range(1, 10))
    seen += [row["step"] for row in Run.open(tmp_path / "run", PARAMETERS).train(Walk())]
    assert seen == list(range(1, 41))


def test_a_caller_who_breaks_at_that_row_is_interrupted_nevertheless(tmp_path, ctrl_c):
    with pytest.raises(KeyboardInterrupt):
        rows = Run.open(tmp_path / "run", PARAMETERS).train(InterruptedWalk())
        while next(rows)["step"] < 9:
            pass
        rows.close()
    assert next(Run.open(tmp_path / "run", PARAMETERS).train(Walk()))["step"] == 10


def test_ctrl_c_that_is_ignored_stays_so(tmp_path, undisturbed, ctrl_c):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a background job
    assert len(list(Run.open(tmp_path / "run", PARAMETERS).train(InterruptedWalk()))) == 40
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert rows_on_disk(tmp_path / "run") == rows_on_disk(undisturbed.dir)


def test_a_row_is_in_no_checkpoint_before_the_caller_has_dealt_with_it(tmp_path):
    run, found = Run.open(tmp_path / "run", PARAMETERS), []
    for row in run.train(Walk(), checkpoint_every=10):
        found.append(resume.load_checkpoint(run.dir / "checkpoint" / "train.pt")["step"])
        assert found[-1] < row["step"]
    assert sorted(set(found)) == [0, 10, 20, 30]


def test_a_trainer_that_failed_halfway_can_be_used_again(tmp_path, undisturbed):
    run, trainer = Run.open(tmp_path / "run", PARAMETERS), Walk()
    with pytest.raises(KeyboardInterrupt):
        for row in run.train(trainer):
            if row["step"] == 3:
                raise KeyboardInterrupt
    trainer.step()  # moved on without the run
    list(run.train(trainer))
    assert rows_on_disk(tmp_path / "run") == rows_on_disk(undisturbed.dir)


def test_a_finished_run_trains_nothing_and_gives_back_the_trained_state(tmp_path, undisturbed, monkeypatch):
    before = {name: (undisturbed.dir / name).read_bytes() for name in names_below(undisturbed.dir)}
    trained, restored = Walk(), Walk()
    list(Run.open(tmp_path / "run", PARAMETERS).train(trained))
    monkeypatch.setattr(restored, "step", None)
    run = Run.open(undisturbed.dir, PARAMETERS)
    assert list(run.train(restored)) == []
    run.finish()
    assert torch.equal(restored.weights, trained.weights) and restored.done == 40
    assert {name: (undisturbed.dir / name).read_bytes() for name in names_below(undisturbed.dir)} == before


def test_a_run_stopped_early_and_finished_stays_stopped(tmp_path):
    run = Run.open(tmp_path / "run", PARAMETERS)
    for row in run.train(Walk()):
        if row["step"] == 5:
            break
    run.finish()
    trainer = Walk()
    assert list(Run.open(tmp_path / "run", PARAMETERS).train(trainer)) == [] and trainer.done == 5
    (run.dir / "checkpoint" / "train.pt").unlink()
    with pytest.raises(WorkbenchError, match=r"checkpoint/train\.pt does not exist"):
        list(run.train(Walk()))


def test_several_trainings_in_one_run_keep_apart(tmp_path, undisturbed):
    run = Run.open(tmp_path / "run", PARAMETERS)
    list(run.train(Walk(7), name="critic", steps=4))
    list(run.train(Walk()))
    assert (
        len(run.metrics("critic")) == 4 and len(run.samples("critic")) == 4
    )  # two rows at the first step and the last
    expected = rows_on_disk(undisturbed.dir)
    assert {name: data for name, data in rows_on_disk(run.dir).items() if "critic" not in name} == expected


def test_metrics_that_lost_rows_are_not_continued(tmp_path):
    run = Run.open(tmp_path / "run", PARAMETERS)
    list(run.train(Walk(), steps=10))
    os.truncate(tmp_path / "run" / "metrics.jsonl", 30)
    with refused("0 of the 10 rows", "delete", "checkpoint/train.pt"):
        list(run.train(Walk()))


def test_a_used_trainer_in_a_new_training_is_refused(tmp_path):
    run, trainer = Run.open(tmp_path / "run", PARAMETERS), Walk()
    trainer.step()
    with refused("Walk.step() returned step 2", "1 comes next"):
        list(run.train(trainer))


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    run = Run.open(tmp_path / "run", PARAMETERS)
    code = "import sys\nfrom workbench.runs import files\nwith files.locked(sys.argv[1]): pass"
    for _ in run.train(Walk()):
        command = [sys.executable, "-c", code, str(tmp_path / "run" / ".lock")]
        assert "Another process is writing" in subprocess.run(command, capture_output=True, text=True).stderr
        break


# --- checkpoints


def test_a_checkpoint_reads_back_as_it_was(tmp_path):
    state = {"tensor": torch.arange(5), "nested": [{"a": (1, 2.5, "x", None, True)}], "big": 2**100}
    resume.save_checkpoint(tmp_path / "a.pt", state)
    loaded = resume.load_checkpoint(tmp_path / "a.pt")
    assert torch.equal(loaded.pop("tensor"), state.pop("tensor")) and loaded == state


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\0" * len(data)]
)
def test_a_damaged_checkpoint_says_what_to_delete(tmp_path, damage):
    path = tmp_path / "train.pt"
    resume.save_checkpoint(path, {"a": torch.arange(5)})
    path.write_bytes(damage(path.read_bytes()))
    with refused(str(path), "delete it"):
        resume.load_checkpoint(path)


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"a": Evil()}, tmp_path / "train.pt")
    with pytest.raises(WorkbenchError):
        resume.load_checkpoint(tmp_path / "train.pt")
    assert not (tmp_path / "ran").exists()


def test_an_interrupted_save_leaves_the_previous_state(tmp_path, monkeypatch):
    resume.save_checkpoint(tmp_path / "a.pt", {"step": 1})

    def interrupted(state, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        resume.save_checkpoint(tmp_path / "a.pt", {"step": 2})
    assert resume.load_checkpoint(tmp_path / "a.pt") == {"step": 1} and names_below(tmp_path) == {"a.pt"}


FULL_DISK_AT_A_CHECKPOINT = """
import resource, signal, sys, torch
sys.path.insert(0, sys.argv[2])
from test_runs import PARAMETERS, Run, Walk
class Growing(Walk):
    def state_dict(self):
        return {**super().state_dict(), "ballast": torch.zeros(100_000 if self.done >= 20 else 1)}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    list(Run.open(sys.argv[1], PARAMETERS).train(Growing(), checkpoint_every=10))
except ValueError as error:
    print(error)
"""


def test_a_disk_that_fills_up_leaves_the_last_checkpoint_and_the_run_goes_on_later(tmp_path, undisturbed):
    command = [sys.executable, "-c", FULL_DISK_AT_A_CHECKPOINT, str(tmp_path / "run"), str(Path(__file__).parent)]
    output = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
    assert "checkpoint/train.pt was not written because the disk is full" in output.splitlines()[-1]
    assert resume.load_checkpoint(tmp_path / "run" / "checkpoint" / "train.pt")["step"] == 10
    assert not any(name.endswith(".partial") for name in names_below(tmp_path))
    run_to_the_end(tmp_path / "run")
    assert rows_on_disk(tmp_path / "run") == rows_on_disk(undisturbed.dir)


def test_no_space_at_the_rename_is_the_same_sentence(tmp_path, monkeypatch):
    resume.save_checkpoint(tmp_path / "a.pt", {"step": 1})

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with refused(str(tmp_path / "a.pt"), "disk is full"):
        resume.save_checkpoint(tmp_path / "a.pt", {"step": 2})
    assert resume.load_checkpoint(tmp_path / "a.pt") == {"step": 1} and names_below(tmp_path) == {"a.pt"}


def test_a_save_that_failed_is_not_tried_again_on_the_way_out(tmp_path, monkeypatch):
    tries, replace = [], os.replace

    def full_after_the_start(source, target):
        tries.append(target.name)
        if tries.count("train.pt") > 1:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full_after_the_start)
    with pytest.raises(WorkbenchError, match="disk is full"):
        list(Run.open(tmp_path / "run", PARAMETERS).train(Walk(), checkpoint_every=10))
    assert tries.count("train.pt") == 2  # the start and step 10


# --- run.json


def test_run_json_says_what_was_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_THREADS", "1")
    (tmp_path / "data.txt").write_bytes(b"abc")
    Run.open(tmp_path / "run", PARAMETERS, inputs={"data": tmp_path / "data.txt"})
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["parameters"] == PARAMETERS and record["seed"] == 0 and record["status"] == "unfinished"
    assert record["packages"]["torch"] == metadata.version("torch") and record["threads"] == 1
    assert record["inputs"]["data"]["sha256"].startswith("ba7816bf8f01cfea")  # FIPS 180-2, appendix B.1
    assert record["python"] == ".".join(map(str, sys.version_info[:3]))


@pytest.fixture
def threads_of_torch(monkeypatch) -> Iterator[None]:
    """Puts the number of threads back."""
    before = torch.get_num_threads()
    for name in provenance.thread_settings(1):
        monkeypatch.setenv(name, "3")
    monkeypatch.delenv("WORKBENCH_THREADS", raising=False)
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_the_workbench_and_not_the_shell_says_with_how_many_threads_a_run_computes(
    tmp_path, threads_of_torch, monkeypatch
):
    run = Run.open(tmp_path / "run", PARAMETERS)
    seen = "import torch; print(torch.get_num_threads())"
    later = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True)
    assert (torch.get_num_threads(), run.record["threads"], later.stdout) == (1, 1, "1\n")
    run.summary({"gold": 1.0})
    monkeypatch.setenv("WORKBENCH_THREADS", "2")
    with refused("WORKBENCH_THREADS=1 where now WORKBENCH_THREADS=2 is", "run-WORKBENCH_THREADS=2"):
        Run.open(tmp_path / "run", PARAMETERS)
    with pytest.raises(WorkbenchError, match="WORKBENCH_THREADS=1 where now WORKBENCH_THREADS=2 is"):
        refuse_other_parameters(run.dir, {}, defaults={}, threads=2)  # before a kernel starts
    refuse_other_parameters(run.dir, PARAMETERS, defaults={}, threads=1)
    assert torch.get_num_threads() == 1
    other = Run.open(tmp_path / "other", PARAMETERS)
    assert other.record["threads"] == torch.get_num_threads() == 2
    other.summary({"gold": 1.0})
    monkeypatch.delenv("WORKBENCH_THREADS")  # goes on as it began, also in JupyterLab
    Run.open(tmp_path / "run", PARAMETERS)
    assert torch.get_num_threads() == 1
    Run.open(tmp_path / "other", PARAMETERS)
    assert torch.get_num_threads() == provenance.thread_count(tmp_path / "other") == 2


def test_a_record_whose_threads_are_text_is_continued_and_one_that_followed_the_shell_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_THREADS", "1")
    run = Run.open(tmp_path / "run", PARAMETERS)
    run.summary({"gold": 1.0})
    files.write_json(run.path("run.json"), run.record | {"threads": "1"})
    Run.open(tmp_path / "run", PARAMETERS)
    files.write_json(run.path("run.json"), run.record | {"threads": "default"})
    with pytest.raises(WorkbenchError, match="WORKBENCH_THREADS=default where now WORKBENCH_THREADS=1"):
        Run.open(tmp_path / "run", PARAMETERS)


def test_the_commit_and_whether_it_was_changed_are_known_inside_git_only(tmp_path):
    assert provenance.git_state(tmp_path) == {}

    def git(*arguments):
        settings = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(
            ["git", "-C", tmp_path, *settings, *arguments], capture_output=True, text=True, check=True
        )

    git("init")
    (tmp_path / "a").write_text("a")
    git("add", "a")
    assert provenance.git_state(tmp_path) == {}  # no commit yet
    git("commit", "-m", "a")
    state = provenance.git_state(tmp_path)["git"]
    assert state["commit"] == git("log", "--format=%H").stdout.strip() and state["dirty"] is False
    (tmp_path / "a").write_text("b")
    assert provenance.git_state(tmp_path)["git"]["dirty"] is True


def test_seconds_are_summed_over_sessions_and_memory_is_the_largest(tmp_path):
    Run.open(tmp_path / "run", PARAMETERS)
    earlier = {"seconds": 1000.0, "cpu_seconds": 500.0, "peak_memory_mib": 10**6, "steps": 3}
    files.write_json(tmp_path / "run" / "timing.json", {"sessions": [earlier]})
    run = run_to_the_end(tmp_path / "run")
    assert 1000 < run.record["wall_seconds"] < 1060 and 500 < run.record["cpu_seconds"] < 560
    assert run.record["peak_memory_mib"] == 10**6
    sessions = json.loads((run.dir / "timing.json").read_text())["sessions"]
    assert [session["steps"] for session in sessions] == [3, 40] and sessions[1]["steps_per_second"] > 1
    assert 50 < sessions[1]["peak_memory_mib"] < 10_000  # torch is loaded: hundreds of MiB


def test_other_parameters_in_the_same_folder_are_refused_before_anything_is_written(tmp_path):
    run_to_the_end(tmp_path / "06_policy_gradient")
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in names_below(tmp_path)}
    with refused("kl_coef=0.1", "kl_coef=0.05", f"{tmp_path}/06_policy_gradient-kl_coef=0.05"):
        Run.open(tmp_path / "06_policy_gradient", {**PARAMETERS, "kl_coef": 0.05})
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in names_below(tmp_path)} == before


def test_a_parameter_that_only_one_run_has_is_named_and_paths_make_a_plain_folder_name(tmp_path):
    Run.open(tmp_path / "run", PARAMETERS).summary({"gold": 1.0})
    with refused("model=absent", f"{tmp_path}/run-model=runs_tour_02_sft_model,"):
        Run.open(tmp_path / "run", {**PARAMETERS, "model": "runs/tour/02_sft/model"})


def open_by_the_pipeline(folder: Path, values: dict, *, defaults: dict) -> Run:
    refuse_other_parameters(folder, values, defaults=defaults, threads=1)
    keep_defaults(folder, defaults)
    return Run.open(folder, values)


def test_a_parameter_that_came_after_a_run_counts_as_the_default_that_it_came_with(tmp_path):
    run_to_the_end(tmp_path / "run")
    before, now = rows_on_disk(tmp_path / "run"), {**PARAMETERS, "rival": "", "share": 0.5}
    run = open_by_the_pipeline(tmp_path / "run", now, defaults=now)
    assert run.finished and rows_on_disk(run.dir) == before
    assert Run.open(run.dir, now).finished  # and from then on without the pipeline
    assert open_by_the_pipeline(run.dir, now, defaults=now | {"share": 0.9}).finished


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"rival": "x"}, "a run with rival= where now rival=x is"),
        ({"share": 0.25}, "a run with share=0.5 where now share=0.25 is"),
        ({"kl_coef": 0.2}, "a run with kl_coef=0.1 where now kl_coef=0.2 is"),
        ({"seed": 1}, "a run with seed=0 where now seed=1 is"),
    ],
)
def test_another_value_than_the_default_of_a_later_parameter_is_refused_before_and_in_the_kernel(
    tmp_path, asked, sentence
):
    run_to_the_end(tmp_path / "run")
    defaults = {**PARAMETERS, "rival": "", "share": 0.5}
    with refused(sentence):
        refuse_other_parameters(tmp_path / "run", defaults | asked, defaults=defaults, threads=1)
    keep_defaults(tmp_path / "run", defaults)
    with refused(sentence):
        Run.open(tmp_path / "run", defaults | asked)


def test_a_parameter_that_is_gone_is_refused_as_nothing_says_any_more_what_it_did(tmp_path):
    run_to_the_end(tmp_path / "run")
    fewer = {name: value for name, value in PARAMETERS.items() if name != "kl_coef"}
    with refused("a run with kl_coef=0.1 where now kl_coef=absent is"):
        open_by_the_pipeline(tmp_path / "run", fewer, defaults=fewer)


def test_what_a_notebook_does_not_give_to_its_run_is_no_part_of_it_afterwards(tmp_path):
    run_to_the_end(tmp_path / "run")
    keep_defaults(tmp_path / "run", PARAMETERS | {"columns_shown": 3})
    assert Run.open(tmp_path / "run", PARAMETERS).finished


def test_a_run_that_did_no_work_leaves_its_folder_to_the_corrected_one(tmp_path):
    Run.open(tmp_path / "run", {**PARAMETERS, "kl_coef": -1.0})
    (tmp_path / "run" / "notebook.failed.ipynb").write_text("{}")
    run = Run.open(tmp_path / "run", PARAMETERS)
    assert run.parameters["kl_coef"] == Run.read(tmp_path / "run").parameters["kl_coef"] == 0.1
    for name in ("metrics.jsonl", "metrics-held_out.jsonl", "checkpoint", "tables", "summary.json", "model"):
        (tmp_path / "run" / name).touch()
        with pytest.raises(WorkbenchError, match=r"kl_coef=0\.1 where now kl_coef=-1\.0 is asked for"):
            Run.open(tmp_path / "run", {**PARAMETERS, "kl_coef": -1.0})
        (tmp_path / "run" / name).unlink()


def test_the_folder_may_be_renamed_and_other_input_contents_are_refused(tmp_path):
    (tmp_path / "data.txt").write_text("abc")
    Run.open(tmp_path / "run", PARAMETERS, inputs={"data": tmp_path / "data.txt"}).summary({"gold": 1.0})
    (tmp_path / "run").rename(tmp_path / "moved")
    inputs = {"data": tmp_path / "data.txt"}
    Run.open(tmp_path / "moved", {**PARAMETERS, "run_dir": "moved"}, inputs=inputs)
    (tmp_path / "data.txt").write_text("abcd")
    with refused("data_contents=ba7816bf8f01"):
        Run.open(tmp_path / "moved", PARAMETERS, inputs=inputs)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"lrs": [1, 2]}, "lrs is [1, 2]"), ({"lr": math.nan}, "lr is nan"), ({"seed": "x"}, "seed is 'x'")],
)
def test_a_parameter_that_is_no_plain_value_is_named(tmp_path, change, named):
    with refused(named):
        Run.open(tmp_path / "run", {**PARAMETERS, **change})
    assert names_below(tmp_path) == set()


def test_a_folder_that_cannot_be_made_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with refused(f"{tmp_path}/file/run", "cannot be written"):
        Run.open(tmp_path / "file" / "run", PARAMETERS)


def test_a_missing_input_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(WorkbenchError, match="sft does not exist"):
        Run.open(tmp_path / "run", PARAMETERS, inputs={"model": tmp_path / "sft"})
    assert names_below(tmp_path) == set()


# --- rows


class Metric(Walk):
    value: object = None

    def step(self) -> dict:
        return {**super().step(), "value": self.value}


@pytest.mark.parametrize("value", [math.nan, math.inf, None, torch.tensor(math.nan)])
def test_what_is_undefined_is_null_in_the_file_and_nan_in_the_row_and_the_frame(tmp_path, value):
    run, trainer = Run.open(tmp_path / "run", PARAMETERS), Metric()
    trainer.value = value
    rows = list(run.train(trainer, steps=2))
    assert math.isnan(rows[0]["value"])
    assert json.loads((run.dir / "metrics.jsonl").read_text().splitlines()[0])["value"] is None
    assert run.metrics()["value"].isna().all() and run.metrics()["value"].dtype == float


def test_a_metric_that_is_no_number_is_named(tmp_path):
    run, trainer = Run.open(tmp_path / "run", PARAMETERS), Metric()
    trainer.value = "high"
    with refused("value is 'high'"):
        list(run.train(trainer))


def test_a_non_finite_loss_saves_the_batch_and_names_step_and_file(tmp_path):
    class Diverging(Walk):
        def step(self):
            if self.done == 4:
                raise NonFiniteLoss(5, {"tokens": torch.arange(6)})
            return super().step()

    run = Run.open(tmp_path / "run", PARAMETERS)
    path = run.dir / "nonfinite_batch.pt"
    with refused("step 5", str(path), kind=NonFiniteLoss):
        list(run.train(Diverging()))
    assert torch.equal(resume.load_checkpoint(path)["tokens"], torch.arange(6))
    assert len(run.metrics()) == 4


def test_samples_come_at_the_first_the_last_and_every_nth_step(undisturbed):
    samples = undisturbed.samples()
    assert samples["step"].unique().tolist() == [1, 10, 20, 30, 40] and len(samples) == 10
    assert samples["completion"].str.endswith("\u2028\r").all()


def test_a_run_without_training_has_empty_metrics(tmp_path):
    run = Run.open(tmp_path / "run", PARAMETERS)
    assert run.metrics().empty and list(run.samples().columns) == ["step"]


@pytest.mark.parametrize("options", [{"checkpoint_every": 0}, {"sample_every": -1}, {"name": "a/b"}])
def test_options_that_make_no_sense_are_refused(tmp_path, options):
    with refused():
        list(Run.open(tmp_path / "run", PARAMETERS).train(Walk(), **options))


# --- summary, tables, models, reading


def test_the_summary_merges_and_keeps_none_for_undefined(tmp_path):
    run = Run.open(tmp_path / "run", PARAMETERS)
    run.summary({"gold": 0.5, "note": "fine"})
    run.summary({"gold": torch.tensor(0.75), "accuracy": math.nan})
    assert Run.read(run.dir).summary() == {"gold": 0.75, "note": "fine", "accuracy": None}


def test_a_table_reads_back_exactly(tmp_path):
    run = Run.open(tmp_path / "run", PARAMETERS)
    frame = pd.DataFrame(
        {"x": [0.1 + 0.2, math.nan], "n": [1, 2**53 + 1], "text": ["a\nb", "ü\u2028"], "ids": [[1], []]}
    )
    run.save_table("pairs", frame)
    pd.testing.assert_frame_equal(Run.read(run.dir).table("pairs"), frame, check_exact=True)
    with refused("pears", "(pairs)"):
        run.table("pears")


class Saved:
    """Stands for a model or a tokenizer."""

    def __init__(self, name: str, error: Exception | None = None):
        self.name, self.error = name, error

    def save_pretrained(self, folder: Path) -> None:
        (folder / self.name).write_text(self.name)
        if self.error:
            raise self.error


def test_a_model_is_saved_without_the_librarys_progress_bar(tmp_path, capfd):
    assert Run.open(tmp_path / "run", PARAMETERS).save_model(tiny_model(), word_tokenizer()).is_dir()
    assert "shards" not in "".join(capfd.readouterr())


def test_a_model_is_saved_whole_or_not_at_all(tmp_path):
    run = Run.open(tmp_path / "run", PARAMETERS)
    assert run.save_model(Saved("weights"), Saved("tokenizer")) == run.path("model")
    with refused(f"{run.dir}/model", "disk is full"):
        run.save_model(Saved("other"), Saved("tokenizer", OSError(28, "No space left on device")))
    assert names_below(run.dir) == {"run.json", "model/weights", "model/tokenizer"}


def test_reading_changes_nothing_and_refuses_to_write(undisturbed):
    before = names_below(undisturbed.dir)
    run = Run.read(undisturbed.dir)
    writes = (run.finish, lambda: run.summary({"a": 1}), lambda: list(run.train(Walk())))
    for write in (*writes, lambda: run.save_table("a", pd.DataFrame()), lambda: run.save_model(Saved("a"), Saved("b"))):
        with pytest.raises(WorkbenchError, match="opened for reading"):
            write()
    assert len(run.metrics()) == 40 and run.finished and run.seed == 0 and names_below(undisturbed.dir) == before
    assert Run.read(undisturbed.dir).name == "run"


def test_a_folder_that_is_no_run_is_named_with_what_is_there(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "figures").mkdir()
    with refused(str(tmp_path), "figures/, notes.txt"):
        Run.read(tmp_path)
    with pytest.raises(WorkbenchError, match="nowhere does not exist"):
        Run.read(tmp_path / "nowhere")


# --- progress


def test_plain_lines_show_the_first_and_the_last_step_and_no_flood(tmp_path, capsys):
    run_to_the_end(tmp_path / "06_toy")
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"06_toy  step 1/40  loss \S+  0 s, \d+ s left", lines[0])
    assert [line.split("  ")[1] for line in lines] == ["step 1/40", "step 40/40"]


def test_time_left_is_what_the_remaining_steps_take_at_the_pace_of_this_session(capsys, monkeypatch):
    clock = iter([0.0, 10.0, 10.0, 10.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    progress.Lines("run", start=20, total=50, keys=()).update(
        {"step": 30, "kl": 1.7321, "no": math.nan, "c": 3, "d": 4, "e": 5}
    )
    assert capsys.readouterr().out == "run  step 30/50  kl 1.73  c 3  d 4  10 s, 20 s left\n"


@pytest.mark.parametrize(("seconds", "text"), [(18.4, "18 s"), (185, "3 min"), (7500, "2 h 5 min")])
def test_durations_are_rounded_for_reading(seconds, text):
    assert progress.duration(seconds) == text


def test_jupyterlab_gets_a_bar_that_starts_where_the_run_stands(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(progress, "in_jupyterlab", lambda: True)
    monkeypatch.setattr(
        "tqdm.notebook.tqdm.close", lambda bar: seen.append((bar.initial, bar.n, bar.total, bar.postfix))
    )
    run = Run.open(tmp_path / "run", PARAMETERS)
    list(run.train(Walk(), steps=10))
    list(run.train(Walk()))
    assert {bar[:3] for bar in seen} == {(0, 10, 10), (10, 40, 40)}  # the widget closes itself a second time
    assert all(bar[3].startswith("loss ") for bar in seen)


def test_curves_of_what_the_bar_says_grow_and_take_a_hundredth_of_the_time_at_most(monkeypatch):
    shown, clock = [], [0.0]

    def draw(bundle, **options):
        clock[0] += 0.2  # that it takes
        shown.append(bundle)
        return types.SimpleNamespace(update=draw)

    monkeypatch.setattr("IPython.display.display", draw)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    curves = progress.Curves("run", ("kl",))
    curves.update({"step": 0, "kl": math.nan})
    for step in range(1, 1001):
        clock[0] += 0.1
        curves.update({"step": step, "kl": 0.1 * step, "gold": math.nan})
    assert 5 <= len(shown) <= 6  # of 100 seconds, one each 20
    curves.close()
    (figure,) = shown[-1].values()
    assert "run, step 1000: kl 100" in figure["layout"]["title"]["text"]
    assert [note["text"] for note in figure["layout"]["annotations"]] == ["KL from the reference (nats)"]


def test_nothing_is_drawn_of_a_training_without_a_number_or_with_an_end_before_the_first_drawing(monkeypatch):
    monkeypatch.setattr("IPython.display.display", lambda *given, **options: pytest.fail("drawn"))
    curves = progress.Curves("run", ("kl",))
    curves.due = 0.0
    curves.update({"step": 1, "kl": math.nan})
    progress.Curves("run", ("kl",)).update({"step": 1, "kl": 0.5})
    curves.close()


def test_only_a_kernel_that_a_server_started_counts_as_jupyterlab(monkeypatch):
    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert not progress.in_jupyterlab()
    monkeypatch.setenv("JPY_SESSION_NAME", "06.ipynb")
    assert progress.in_jupyterlab()
    shell.kernel = None
    assert not progress.in_jupyterlab()


# --- trackers


def train_with(tmp_path: Path, tracker: str) -> Run:
    run = Run.open(tmp_path / "run", PARAMETERS, sinks=[tracker])
    list(run.train(Walk(), steps=3))
    return run


def test_tensorboard_reads_back_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    run = train_with(tmp_path, "tensorboard")
    events = EventAccumulator(str(run.dir / "tensorboard" / "run"))
    events.Reload()
    logged = [(event.step, float(make_ndarray(event.tensor_proto))) for event in events.Tensors("loss")]
    assert logged == [(row.step, pytest.approx(row.loss, rel=1e-6)) for row in run.metrics().itertuples()]


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_online_trackers_get_the_same_rows_and_one_identity_per_run(tmp_path, monkeypatch, tracker):
    calls = []
    fake = types.ModuleType(tracker)
    for name in ("init", "log", "finish"):
        setattr(fake, name, lambda *row, _name=name, **options: calls.append((_name, row, options)))
    monkeypatch.setitem(sys.modules, tracker, fake)
    run = train_with(tmp_path, tracker)
    list(Run.open(run.dir, PARAMETERS, sinks=[tracker]).train(Walk(), steps=4))
    assert [call[0] for call in calls] == ["init", "log", "log", "log", "finish", "init", "log", "finish"]
    assert calls[0][2] == calls[5][2] and calls[0][2]["config"] == PARAMETERS and calls[0][2]["resume"] == "allow"
    losses = run.metrics()["loss"].tolist()
    logged = [(call[2]["step"], call[1][0]["loss"]) for call in calls if call[0] == "log"]
    assert logged == list(zip([1, 2, 3, 4], losses, strict=True))


def test_a_missing_tracker_names_the_extra_and_an_unknown_one_the_choices(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    for name, parts in (("wandb", ["wandb", "[trackers]"]), ("mlflow", ["'mlflow'", *progress.SINKS])):
        with refused(*parts):
            Run.open(tmp_path / "run", PARAMETERS, sinks=[name])
    assert names_below(tmp_path) == set()


def test_opening_a_run_imports_neither_torch_nor_pandas(tmp_path):
    code = (
        "import sys; from workbench.runs import Run; Run.open(sys.argv[1], {'seed': 0}).finish(); "
        "print({'torch', 'pandas'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True)
    assert result.stdout == "set()\n", result.stderr


def test_names_between_commas_have_no_blanks_and_none_is_empty():
    assert names_in(" runs/a ,b,, runs/with blank,") == ["runs/a", "b", "runs/with blank"] and names_in(" ") == []
