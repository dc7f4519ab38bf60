"""Stages forked from a process that has imported everything: what they print, how they end, what they inherit."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import nbformat
import pytest
from test_cli import is_running, wait_for

from workbench.pipeline import workers
from workbench.pipeline.workers import Processes, imported_by, is_possible

pytestmark = pytest.mark.skipif(not is_possible(), reason="only Linux forks what it has imported")


def job(folder: Path, *code: str) -> dict:
    """A job for a notebook of these cells in `folder`, which gives the stage its name."""
    notebook = folder.with_suffix(".ipynb")
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in code]), notebook)
    names = {"name": folder.name, "notebook": str(notebook), "folder": str(folder), "imports": imported_by(code)}
    job = {"parameters": {}, "defaults": {}, "threads": 1, "processes": 1}
    return {**names, **job, "metadata": {"key": "k", "stage": folder.name}}


@pytest.fixture(scope="module")
def warm():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOR_STAGES", "seen")
        processes = Processes()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a background job or under many CI runners
    processes._start_server()
    signal.signal(signal.SIGINT, before)
    yield processes
    server = processes._server
    assert server.poll() is None  # whatever became of its stages
    processes.close()
    assert server.poll() == 0 and not processes.running


def run(processes: Processes, job: dict) -> tuple[int, str, list[str]]:
    """Exit code, last words and lines of a stage."""
    lines = []
    return *processes.run_process(job, lines.append), lines


def test_a_stage_finds_what_its_notebook_imports_already_there(warm, tmp_path):
    seen = "import sys\nprint('pandas' in sys.modules, 'plotly' in sys.modules)"
    code, _, lines = run(warm, job(tmp_path / "with", seen, "import pandas as pd", "%time pass\nimport plotly"))
    assert code == 0
    assert lines[0] == "True False"  # a cell that is not plain Python says nothing about imports


def test_stages_share_nothing_but_what_was_imported(warm, tmp_path):
    leave = "import os, numpy\nnumpy.left_behind = os.getpid()\nprint(os.environ['FOR_STAGES'], os.getppid())"
    look = "import os, numpy\nprint(hasattr(numpy, 'left_behind'), os.getcwd())"
    first, second = run(warm, job(tmp_path / "leave", leave)), run(warm, job(tmp_path / "look", look))
    assert first[0] == second[0] == 0
    assert first[2][0].startswith("seen ")
    assert second[2][0].startswith("False ")
    done = nbformat.read(tmp_path / "look" / "notebook.ipynb", as_version=4)
    assert done.metadata["workbench"]["stage"] == "look"


def test_a_notebook_that_fails_says_so_as_it_does_in_a_process_of_its_own(warm, tmp_path, monkeypatch):
    bad = job(tmp_path / "warm", "import missing_module_of_this_test")
    code, sentence, _ = run(warm, bad)
    monkeypatch.setattr(workers, "is_possible", lambda: False)
    cold_code, cold_sentence, _ = run(Processes(), bad | {"folder": str(tmp_path / "cold"), "name": "cold"})
    assert code == cold_code == 1
    assert "missing_module_of_this_test" in sentence
    assert sentence.replace("warm", "cold") == cold_sentence


def test_a_killed_kernel_is_reported(warm, tmp_path):
    code, sentence, _ = run(warm, job(tmp_path / "killed", "import os\nos.kill(os.getpid(), 9)"))
    assert (code, "kernel ended" in sentence) == (1, True)


@pytest.mark.parametrize(
    "end, expected", [(lambda process: process.kill(), -signal.SIGKILL), (lambda process: process.stdin.close(), 130)]
)
def test_neither_a_killed_stage_nor_one_whose_starter_is_gone_leaves_a_kernel(warm, tmp_path, end, expected):
    asleep = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)"
    kernels, codes = [], []
    stage = job(tmp_path / "asleep", asleep)
    running = threading.Thread(target=lambda: codes.append(warm.run_process(stage, kernels.append)[0]), daemon=True)
    running.start()
    wait_for(lambda: kernels)
    end(warm.running["asleep"])
    running.join(60)
    assert codes == [expected]
    wait_for(lambda: not is_running(int(kernels[0])))


def test_a_stage_that_is_stopped_before_it_listens_ends_at_once(warm, tmp_path, monkeypatch):
    monkeypatch.setattr(warm, "stopped", True)
    began = time.monotonic()
    code, _, _ = run(warm, job(tmp_path / "asleep", "import time\ntime.sleep(300)"))
    assert code in (130, -signal.SIGTERM) and time.monotonic() - began < 120
    assert not list(tmp_path.glob("asleep/*.ipynb"))


def test_a_server_that_died_is_replaced_and_its_death_ends_the_wait_for_its_stages(tmp_path):
    processes, codes = Processes(), []
    plain, asleep = job(tmp_path / "plain", "print('on')"), job(tmp_path / "asleep", "import time\ntime.sleep(300)")
    try:
        running = threading.Thread(target=lambda: codes.append(run(processes, asleep)[0]), daemon=True)
        running.start()
        wait_for(lambda: "asleep" in processes.running)
        os.kill(processes._server.pid, signal.SIGKILL)
        processes._server.wait()
        assert run(processes, plain)[0] == 0
        os.kill(processes.running["asleep"].pid, signal.SIGKILL)
        running.join(60)
        assert codes == [-signal.SIGKILL]
    finally:
        processes.close()


def test_only_known_modules_are_imported_for_a_notebook():
    code = "import pandas.api, os\nfrom plotly import graph_objects\nimport my_own_module\nfrom . import nothing"
    names = imported_by([code, "!ls", "*prose* that imports torch", "import torch"])
    assert names == ["pandas.api", "plotly", "plotly.graph_objects", "torch"]
    assert "my_own_module" not in sys.modules
