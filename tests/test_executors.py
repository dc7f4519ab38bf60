"""Stages that run on an executor: a real Dask cluster with a worker killed, and what every way of failing says."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import pandas as pd
import pytest
from test_cli import wait_for, write_notebook

from workbench import WorkbenchError, cli
from workbench.pipeline import cluster as executors
from workbench.pipeline.cluster import Elsewhere, dask_executor, run_job, ticket, wait_until_free
from workbench.pipeline.schedule import executed
from workbench.pipeline.sweeps import plan_sweep, run_sweep
from workbench.runs import files

# A stage that does not stop at once: each line is a tenth of a second of work of one process.
BEATS = """
import os, time
for beat in range(15):
    try:
        with open(run_dir + "/beats", "a") as file:
            file.write(f"{os.getpid()}\\n")
        time.sleep(0.1)
    except KeyboardInterrupt:
        for late in range(8):
            with open(run_dir + "/beats", "a") as file:
                file.write(f"{os.getpid()}\\n")
            time.sleep(0.1)
        raise
"""


@pytest.fixture
def beats(tmp_path) -> Path:
    """A notebook that works for some seconds and leaves a trace."""
    write_notebook(tmp_path / "beats.ipynb", BEATS, parameters='run_dir: str = "runs/unused"\nn: int = 0')
    return tmp_path


def processes_in_turn(folder: Path) -> list[str]:
    """Processes that wrote beats in a folder, each as often as it began anew."""
    return [process for process, _ in groupby((folder / "beats").read_text().split())]


# A cluster


def test_a_killed_worker_costs_no_point_and_its_stage_never_writes_beside_the_next_attempt(beats, capsys):
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    out = beats / "out"
    folders = [out / f"beats_n={n}" for n in range(3)]
    with distributed.LocalCluster(**options, host="127.0.0.1", silence_logs=50) as cluster:
        killed = []
        killer = threading.Thread(target=kill_a_busy_worker, args=(cluster, folders, killed), daemon=True)
        killer.start()
        address = cluster.scheduler_address.replace("tcp://", "dask://")
        command = ["sweep", str(beats / "beats.ipynb"), "-p", "n=0:3", "--out", str(out), "--executor", address]
        assert cli.main(command) == 0
        killer.join()
    assert len(killed) == 1
    printed = capsys.readouterr().out
    assert f"{address}: workers: 2, stages at a time: 2" in printed
    assert [printed.count(f"beats_n={n} ... done in") for n in range(3)] == [1, 1, 1]
    assert list(pd.read_csv(out / "sweep.csv")["status"]) == ["finished"] * 3
    turns = [processes_in_turn(folder) for folder in folders]
    assert sorted(map(len, turns)) == [1, 1, 2]  # one was begun again, and only after its first process had ended
    assert all(len(set(turn)) == len(turn) for turn in turns)
    assert all(executed(folder)["stage"] == folder.name for folder in folders)
    assert not list(out.glob("*/*.part.ipynb")) and not list(out.glob("*/*.failed.ipynb"))


def kill_a_busy_worker(cluster, folders: list[Path], killed: list[int]) -> None:
    """Kill the worker of one of two stages that are in the middle of their work."""
    from distributed import Client

    with Client(cluster, set_as_default=False) as client:
        wait_for(lambda: sum((folder / "beats").exists() for folder in folders) == 2)
        worker = next(iter(client.nthreads()))
        killed.append(client.run(os.getpid, workers=[worker])[worker])
    os.kill(killed[0], signal.SIGKILL)


# Schedulers that are not there


def test_a_scheduler_that_is_not_there_is_named_within_seconds(beats, capsys, monkeypatch):
    monkeypatch.setattr(executors, "SECONDS_TO_CONNECT", 0.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"dask://127.0.0.1:{free.getsockname()[1]}"
    began = time.monotonic()
    command = ["sweep", str(beats / "beats.ipynb"), "-p", "n=0:3", "--out", str(beats / "out"), "--executor", address]
    assert cli.main(command) == 2
    assert time.monotonic() - began < 25  # Dask itself would try for 30 seconds
    message = capsys.readouterr().err
    assert message.startswith(f"workbench: No Dask scheduler answers at {address}") and message.count("\n") == 1
    assert not (beats / "out").exists()


def test_something_else_that_listens_there_is_no_scheduler(monkeypatch):
    monkeypatch.setattr(executors, "SECONDS_TO_CONNECT", 0.5)
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"dask://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(WorkbenchError, match=f"No Dask scheduler answers at {address}"), dask_executor(address):
            pass
    assert time.monotonic() - began < 20


def test_dask_that_is_not_installed_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(WorkbenchError, match=r"pip install -e .\[dask\]"), dask_executor("dask://here:1"):
        pass


# Any executor


class Answers(Executor):
    """An executor whose every job has the same answer."""

    def __init__(self, answer: Exception | None):
        self.answer = answer

    def submit(self, call, job):
        future = Future()
        if self.answer is None:
            future.cancel()
            future.set_running_or_notify_cancel()
        else:
            future.set_exception(self.answer)
        return future


class KilledWorker(Exception):
    """What Dask raises for a task whose workers die one after another."""


@pytest.mark.parametrize(
    "answer, says",
    [
        (
            KilledWorker("Attempted on 4 workers, but all\ndied. See https://x."),
            "KilledWorker: Attempted on 4 workers, ",
        ),
        (ModuleNotFoundError("No module named 'workbench'"), "No module named 'workbench'): look at the worker's log."),
        (WorkbenchError("the worker on n7 does not see /x: choose"), "failed: the worker on n7 does not see /x"),
        (None, "its executor gave it up"),
    ],
)
def test_what_goes_wrong_on_a_worker_names_the_point_and_stops_only_that(beats, capsys, answer, says):
    sweep = plan_sweep(str(beats / "beats.ipynb"), ["n=0:2"], out=str(beats / "out"))
    assert run_sweep(sweep, executor=Answers(answer)) == 1
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len([line for line in lines if says in line]) == 4  # both points, when it happens and at the end
    assert any(line.startswith("  beats_n=1 failed") for line in lines)
    assert list(pd.read_csv(beats / "out" / "sweep.csv")["status"]) == ["failed", "failed"]


def test_ctrl_c_reaches_stages_that_no_signal_reaches(beats, capsys):
    out = beats / "out"
    sweep = plan_sweep(str(beats / "beats.ipynb"), ["n=0:2"], out=str(out))

    def interrupt() -> None:
        wait_for(lambda: list(out.glob("*/beats")))
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with ThreadPoolExecutor(1) as workers:  # one stage at a time, whichever reached it first
        assert run_sweep(sweep, executor=workers) == 130
    assert "stopped at stage beats_n=0: run the same command again" in capsys.readouterr().err
    (begun,) = out.glob("*/beats")
    assert len(begun.read_text().split()) < 23  # it was interrupted
    assert len(list(out.glob("beats_n=*"))) == 1 and not list(out.glob("*/*.ipynb"))


def job_in(folder: Path, call: str, **changes) -> dict:
    """A job whose stage is never started in these tests."""
    place = {"root": str(files.repository_root()), "ticket": str(folder / ".sweep.ticket"), "call": call}
    stage = {"name": "a", "folder": str(folder / "a"), "metadata": {"key": "k"}}
    return stage | place | changes


def test_a_worker_runs_nothing_for_a_sweep_that_is_over_or_of_another_checkout_or_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "Processes", None)  # to start a stage would be an error
    with ticket(tmp_path) as path:
        call = path.read_text()
        with pytest.raises(WorkbenchError, match=r"uses the checkout .*: start workers from /other"):
            run_job(job_in(tmp_path, call, root="/other"))
        with pytest.raises(WorkbenchError, match="does not see /nowhere: choose a folder that all machines share"):
            run_job(job_in(tmp_path, call, ticket="/nowhere/.sweep.ticket"))
        assert run_job(job_in(tmp_path, "of an earlier call")) == (130, "stopped")
    assert run_job(job_in(tmp_path, call)) == (130, "stopped")


def test_a_stage_that_an_earlier_attempt_finished_is_not_run_again(tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "Processes", None)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notebook.ipynb").write_text('{"metadata": {"workbench": {"key": "k"}}}')
    with ticket(tmp_path) as path:
        assert run_job(job_in(tmp_path, path.read_text())) == (0, "")


@contextmanager
def written_by_another(folder: Path, seconds: float) -> Iterator[subprocess.Popen]:
    """A stage's folder in which another process writes for some seconds."""
    hold = (
        "import sys, time; from workbench.runs.files import locked\n"
        "with locked(sys.argv[1]): print('held', flush=True); time.sleep(float(sys.argv[2]))"
    )
    command = [sys.executable, "-c", hold, str(folder / ".notebook.lock"), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        yield holder


def test_an_earlier_attempt_that_still_writes_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "Processes", None)
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "notebook.ipynb").write_text('{"metadata": {"workbench": {"key": "k"}}}')
    with ticket(tmp_path) as path, written_by_another(folder, seconds=1) as other:
        wait_until_free(folder, until=lambda: True)  # pointless: not waited for
        assert other.poll() is None
        assert run_job(job_in(tmp_path, path.read_text())) == (0, "")
        with files.locked(folder / ".notebook.lock"):  # the other has let go of it by then
            pass


def test_a_second_interrupt_lets_go_of_what_never_began(tmp_path):
    class NeverBegins(Executor):
        def submit(self, call, job):
            return Future()

    answers = []
    with ticket(tmp_path) as path:
        elsewhere = Elsewhere(NeverBegins(), path)
        run = threading.Thread(target=lambda: answers.append(elsewhere.run_process({"name": "a"}, print)), daemon=True)
        run.start()
        elsewhere.stop()
        assert not path.exists()
        run.join(1)
        assert not answers  # a minute for what stops in order
        elsewhere.stop()
        run.join(10)
        assert answers == [(130, "stopped")]
