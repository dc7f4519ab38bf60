"""Stages forked from a process that has imported everything: what they print, how they end, what they inherit."""

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import pytest

from workbench.pipeline.warm_start import WarmStart, imported_by, is_possible
from workbench.pipeline.workers import Processes

pytestmark = pytest.mark.skipif(not is_possible(), reason="only Linux forks what it has imported")


def write_notebook(path: Path, *code: str) -> Path:
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in code]), path)
    return path


def job(notebook: Path, folder: Path) -> dict:
    names = {"name": notebook.stem, "notebook": str(notebook), "folder": str(folder)}
    return {**names, "parameters": {}, "metadata": {"key": "k", "stage": notebook.stem}}


@pytest.fixture(scope="module")
def warm():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a background job or under many CI runners
    server = WarmStart(dict(os.environ) | {"FOR_STAGES": "seen"})
    signal.signal(signal.SIGINT, before)
    yield server
    server.close()
    assert not server.alive


def run(warm: WarmStart, notebook: Path, folder: Path) -> tuple[int, list[str], str]:
    """Exit code, lines and the last words of a stage."""
    with tempfile.TemporaryFile("w+") as errors:
        process = warm.popen(str(notebook), errors)
        process.stdin.write(json.dumps(job(notebook, folder)) + "\n")
        process.stdin.flush()
        lines = [line.rstrip("\n") for line in process.stdout]
        code = process.wait()
        process.stdin.close()
        errors.seek(0)
        return code, lines, errors.read().rstrip("\n").split("\n")[-1]


def test_a_stage_finds_what_its_notebook_imports_already_there(warm, tmp_path):
    seen = "import sys\nprint('pandas' in sys.modules, 'plotly' in sys.modules)"
    notebook = write_notebook(tmp_path / "with.ipynb", seen, "import pandas as pd", "%time pass\nimport plotly")
    code, lines, _ = run(warm, notebook, tmp_path / "with")
    assert code == 0
    assert lines[0] == "True False"  # a cell that is not plain Python says nothing about imports


def test_stages_share_nothing_but_what_was_imported(warm, tmp_path):
    leave = "import os, numpy\nnumpy.left_behind = os.getpid()\nprint(os.environ['FOR_STAGES'], os.getppid())"
    look = "import os, numpy\nprint(hasattr(numpy, 'left_behind'), os.getcwd())"
    first = run(warm, write_notebook(tmp_path / "leave.ipynb", leave), tmp_path / "leave")
    second = run(warm, write_notebook(tmp_path / "look.ipynb", look), tmp_path / "look")
    assert first[0] == second[0] == 0
    assert first[1][0].startswith("seen ")
    assert second[1][0].startswith("False ")
    done = nbformat.read(tmp_path / "look" / "notebook.ipynb", as_version=4)
    assert done.metadata["workbench"]["stage"] == "look"


def test_a_notebook_that_fails_says_so_as_it_does_in_a_process_of_its_own(warm, tmp_path, monkeypatch):
    notebook = write_notebook(tmp_path / "bad.ipynb", "import missing_module_of_this_test")
    code, _, sentence = run(warm, notebook, tmp_path / "warm")
    monkeypatch.setattr("workbench.pipeline.workers.is_possible", lambda: False)
    cold_code, cold_sentence = Processes(1).run_process(job(notebook, tmp_path / "cold"), lambda line: None)
    assert code == cold_code == 1
    assert "missing_module_of_this_test" in sentence
    assert sentence.replace("warm", "cold") == cold_sentence


def test_a_killed_kernel_and_a_killed_stage_are_reported(warm, tmp_path):
    notebook = write_notebook(tmp_path / "killed.ipynb", "import os\nos.kill(os.getpid(), 9)")
    code, _, sentence = run(warm, notebook, tmp_path / "killed")
    assert (code, "kernel ended" in sentence) == (1, True)
    asleep = write_notebook(tmp_path / "asleep.ipynb", "import time\nprint('on', flush=True)\ntime.sleep(60)")
    with tempfile.TemporaryFile("w+") as errors:
        process = warm.popen(str(asleep), errors)
        process.stdin.write(json.dumps(job(asleep, tmp_path / "asleep")) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "on\n"
        assert process.poll() is None
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert warm.alive


def test_a_stage_whose_starter_is_gone_ends(warm, tmp_path):
    where = tmp_path / "pid"
    write = (
        f"import os, time\nopen({str(where)!r}, 'w').write(str(os.getpid()))\nprint('on', flush=True)\ntime.sleep(60)"
    )
    notebook = write_notebook(tmp_path / "left.ipynb", write)
    with tempfile.TemporaryFile("w+") as errors:
        process = warm.popen(str(notebook), errors)
        process.stdin.write(json.dumps(job(notebook, tmp_path / "left")) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "on\n"
        process.stdin.close()
        assert process.wait() == 130
    deadline = time.monotonic() + 60
    while Path(f"/proc/{where.read_text()}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{where.read_text()}").exists()  # nor does its kernel stay


def test_a_stage_that_is_stopped_before_it_listens_ends_at_once(warm, tmp_path):
    processes, asleep = Processes(1), write_notebook(tmp_path / "asleep.ipynb", "import time\ntime.sleep(300)")
    processes._warm, processes.stopped = warm, True
    began = time.monotonic()
    code, _ = processes.run_process(job(asleep, tmp_path / "asleep"), lambda line: None)
    assert code in (130, -signal.SIGTERM) and time.monotonic() - began < 120
    assert not list(tmp_path.glob("asleep/*.ipynb"))


def test_a_server_that_died_is_replaced(tmp_path):
    processes, notebook = Processes(1), write_notebook(tmp_path / "plain.ipynb", "print('on')")
    try:
        assert processes.run_process(job(notebook, tmp_path / "one"), lambda line: None)[0] == 0
        os.kill(processes._warm._server.pid, signal.SIGKILL)
        processes._warm._server.wait()
        assert processes.run_process(job(notebook, tmp_path / "two"), lambda line: None)[0] == 0
    finally:
        processes.close()


def test_only_known_modules_are_imported_for_a_notebook(tmp_path):
    code = "import pandas.api, os\nfrom plotly import graph_objects\nimport my_own_module\nfrom . import nothing"
    names = imported_by(str(write_notebook(tmp_path / "x.ipynb", code, "!ls", "import torch")))
    assert names == ["pandas.api", "plotly", "plotly.graph_objects", "torch"]
    assert "my_own_module" not in sys.modules


def test_nothing_is_imported_for_a_notebook_that_is_gone_or_half_written(tmp_path):
    (tmp_path / "half.ipynb").write_text('{"cells": [')
    assert imported_by(str(tmp_path / "half.ipynb")) == imported_by(str(tmp_path / "gone.ipynb")) == []
