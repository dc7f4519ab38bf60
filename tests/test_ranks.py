"""One notebook in several processes: what each sees, what is left, and what becomes of all where one of them ends."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import torch
from test_micro_batches import CASES, assert_same_update, taken

from workbench import BAD_INPUT, DONE, FAILED
from workbench.pipeline.ranks import free_port
from workbench.pipeline.workers import Processes, imported_by
from workbench.runs import files

CELLS = "import os, json\nfrom pathlib import Path\nrank = int(os.environ['RANK'])\nfolder = Path(run_dir)"


@pytest.fixture(scope="module")
def processes():
    processes = Processes()
    yield processes
    processes.close()


@pytest.fixture
def run(processes, tmp_path):
    """Runs cells with two processes in `tmp_path`/run: exit code, last words, lines of rank 0 and of rank 1."""

    def run(*cells: str) -> tuple[int, str, list[str], list[str]]:
        path, code, lines = tmp_path / "a.ipynb", (CELLS, *cells), []
        sources = [nbformat.v4.new_code_cell('run_dir: str = ""', metadata={"tags": ["parameters"]})]
        sources += [nbformat.v4.new_code_cell(cell) for cell in code]
        nbformat.write(nbformat.v4.new_notebook(cells=sources), path)
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        job = {"name": "a", "notebook": str(path), "folder": str(folder), "imports": imported_by(code), "defaults": {}}
        job |= {"parameters": {"run_dir": str(folder)}, "threads": 1, "processes": 2, "metadata": {"key": "k"}}
        ended = processes.run_process(job, lines.append)
        assert not (folder / ".ranks").exists() and not processes.running
        return *ended, lines, (folder / "rank1.log").read_text().splitlines()

    return run


def test_ranks_begin_with_what_the_first_holds_and_only_it_is_kept(run, tmp_path):
    files.write_text(tmp_path / "run" / "metrics.jsonl", '{"step": 1}\n')
    files.write_text(tmp_path / "run" / "checkpoint" / "train.pt", "state")
    append = "with open(folder / 'metrics.jsonl', 'a') as file: file.write(f'{rank}\\n')"
    replace = "(folder / 'new').write_text(f'{rank}'); (folder / 'new').replace(folder / 'checkpoint' / 'train.pt')"
    code, _, first, second = run("print((folder / 'checkpoint' / 'train.pt').read_text(), rank)", append, replace)
    assert code == DONE and (first, second) == (["state 0"], ["state 1"])
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == '{"step": 1}\n0\n'
    assert (tmp_path / "run" / "checkpoint" / "train.pt").read_text() == "0"
    assert (tmp_path / "run" / "notebook.ipynb").is_file()


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        ("from workbench import WorkbenchError\nif rank: raise WorkbenchError('No.')", BAD_INPUT, "No."),
        ("if rank: os.kill(os.getpid(), 9)", FAILED, "its kernel ended"),
    ],
)
def test_where_one_rank_ends_all_stop_and_the_sentence_names_it(run, ending, code, said):
    began = time.monotonic()
    found, sentence, *_ = run(ending, "import time\ntime.sleep(50)")
    assert found == code and said in sentence and "(rank 1 of 2, see " in sentence and "rank1.log)" in sentence
    assert time.monotonic() - began < 30


def test_where_the_first_rank_is_killed_the_others_stop(run):
    found, sentence, *_ = run("if not rank: os.kill(os.getpid(), 9)", "import time\ntime.sleep(50)")
    assert found == FAILED and "its kernel ended" in sentence and "(rank" not in sentence


def test_work_is_shared_and_what_came_out_is_known_to_all(run):
    code, _, *said = run(
        "import torch\nfrom workbench.models import ranks\nranks.meet('cpu')",
        "print(ranks.shared([3, 4, 5], lambda part: (rank, part, torch.tensor([part]))))",
        "sums = [torch.full((2, 2), rank + 1.0), torch.tensor(10.0**rank)]",
        "ranks.BUCKET = 4\nranks.add_up(sums)\nprint(sums)",
    )
    assert code == DONE and said[0] == said[1]
    assert said[0][0] == "[(0, 3, tensor([3])), (1, 4, tensor([4])), (0, 5, tensor([5]))]"
    assert "".join(said[0][1:]).replace(" ", "") == "[tensor([[3.,3.],[3.,3.]]),tensor(11.)]"


@pytest.fixture(scope="module")
def steps(tmp_path_factory) -> list[dict]:
    """What each of two processes made of one step of every trainer."""
    folder, running = tmp_path_factory.mktemp("steps"), []
    meeting = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for rank in "01":
        command = [sys.executable, str(Path(__file__).with_name("ranks_cases.py")), str(folder / rank)]
        running.append(subprocess.Popen(command, env=meeting | {"RANK": rank, "LOCAL_RANK": rank}))
    assert [process.wait(300) for process in running] == [0, 0]
    return [torch.load(folder / rank, weights_only=False) for rank in "01"]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_learn_what_one_does(name, steps, monkeypatch):
    first, second = (step[name] for step in steps)
    assert str(first[0]) == str(second[0])  # NaN is NaN
    assert all(map(torch.equal, first[1], second[1])) and first[2] > 0 and second[2] > 0
    alone = taken(CASES[name], monkeypatch)
    assert_same_update(first, alone)


TRAINING = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_micro_batches import DEMONSTRATIONS, ONE_STEP
from tiny_models import tiny_model
from workbench.models import ranks
from workbench.models.packing import collate_demonstrations, token_lengths
from workbench.runs import Run
from workbench.trainers.language_model import LanguageModelConfig, LanguageModelTrainer
ranks.meet("cpu")
data, config = DEMONSTRATIONS * 2, LanguageModelConfig(steps=6, **ONE_STEP)
trainer = LanguageModelTrainer(
    tiny_model(), data, data[:3], config, collate=collate_demonstrations, lengths=token_lengths(data)
)
"""
LOOP = """
for row in Run.open(run_dir, {"seed": 0}).train(trainer, checkpoint_every=2):
    if row["step"] == 5 and rank == killed:
        os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("killed", [0, 1])
def test_a_training_of_which_one_rank_is_killed_continues_to_the_same_bytes(killed, run, tmp_path):
    code, sentence, *_ = run(TRAINING, f"killed = {killed}", LOOP)
    assert code == FAILED and "kernel ended" in sentence
    held = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert 4 <= len(held) < 6
    assert run(TRAINING, "killed = None", LOOP)[0] == DONE
    continued = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "run")
    assert run(TRAINING, "killed = None", LOOP)[0] == DONE
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == continued
