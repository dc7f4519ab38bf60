"""Bad input through the real command line: one sentence, an exit code, nothing half-written; a table of all at the end.

Every case has a kernel of its own where it comes to that; those of most are forked from one process that has imported
everything, as the stages of a recipe are.
"""

import contextlib
import ctypes
import functools
import gzip
import io
import json
import os
import random
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_models import tiny_model, word_tokenizer
from transformers import AutoModelForSequenceClassification

from workbench import WorkbenchError, cli
from workbench.models import add_lora, build_policy, load_policy, load_reward_model
from workbench.models.packing import pack_documents
from workbench.models.sampling import sample
from workbench.pipeline import schedule, workers
from workbench.runs.record import requested
from workbench.runs.resume import load_checkpoint
from workbench.tasks import FileTask, WorldTask
from workbench.tasks.world import build_tokenizer

CONTEXT = 48  # tokens that the model of these tests can read
LARGEST_FILE = 1_000_000  # bytes: the first checkpoint, without Adam's moments, fits, the next does not
DROP_FROM_BOUNDING_SET, OVERRIDE_PERMISSIONS, READ_ANYTHING = 24, 1, 2  # of Linux' prctl and capabilities


def obey_permissions() -> None:
    """In the child: root, too, is refused what the permission bits refuse."""
    for capability in (OVERRIDE_PERMISSIONS, READ_ANYTHING):
        ctypes.CDLL(None).prctl(DROP_FROM_BOUNDING_SET, capability, 0, 0, 0)


def fill_the_disk() -> None:
    """In the child: larger files fail as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))


@dataclass(frozen=True)
class Case:
    """A command line ({here} is the folder of the inputs, {out} the case's own) and what must come of it."""

    name: str
    command: str
    says: str  # parts of the sentence, with "; ": the value, what was expected, what to do
    code: int = 2
    started: bool = True  # whether a kernel was; where not, the output folder must not even exist
    prepare: Callable[[], None] = os.getpid  # runs in the child before the command


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command left behind."""

    code: int
    printed: str
    complained: str
    out: Path


SFT = "run 02_sft --preset smoke --out {out} -p max_completion_length=12 "
FILE = SFT + "-p model={here}/model -p dataset={here}/"
MODEL = SFT + "-p dataset={here}/good.jsonl -p model={here}/"
DIRECT = "run 08_direct_alignment --preset smoke --out {out} -p model={here}/model "
REWARDED = "run 07_best_of_n --preset smoke --out {out} -p model={here}/model -p max_prompt_length=12 "
REWARDED += "-p max_completion_length=12 "
CHECKED = REWARDED + "-p reward_model=task:sums "
OWN_REWARDS = """
def right(prompts, completions, *, finished, **columns):
    return [1.0 for _ in completions]

def short(prompts, completions):
    return [0.0 for _ in completions]

def words(prompts, completions, *, finished, **columns):
    return ["yes" for _ in completions]
"""
early = functools.partial(Case, started=False)
CASES = [
    early("unknown notebook", "run 02_stf --out {out}", "'02_stf'; did you mean 02_sft?; choose one of"),
    early("unknown parameter", SFT + "-p learning_rat=1e-3", "learning_rat ; did you mean learning_rate?; batch_size"),
    early("unknown parameter in a recipe", "run tour --out {out} -p 02_sft.stepps=4", "stepps; did you mean steps?"),
    early("unknown preset", "run 02_sft --preset smoek --out {out}", "'smoek'; did you mean smoke?; laptop"),
    early("wrong type", SFT + "-p steps=many", "steps; 'many'; whole number"),
    early("learning rate NaN", SFT + "-p learning_rate=nan", "learning_rate; 'nan'; finite number"),
    early(
        "output folder not writable",
        "run 02_sft --out {here}/locked/run",
        "locked cannot be written to; --out",
        prepare=obey_permissions,
    ),
    early("output folder is a file", "run 02_sft --out {here}/good.jsonl", "good.jsonl is a file; --out"),
    early(
        "output folder of another run",
        SFT.replace("{out}", "{here}/other") + "-p learning_rate=2e-3",
        "other holds a run with learning_rate=0.001; learning_rate=0.002; choose another; delete",
    ),
    early(
        "output folder of other things",
        "run 02_sft --out {here}/model -p model={here}/model",
        "model holds config.json; overwrites only what it made; /model/run",
    ),
    early(
        "run.json of something else",
        "run 02_sft --out {here}/listed -p model={here}/model",
        "listed/run.json holds a list; repair it",
    ),
    early("name of 300 characters", "run 02_sft --out {here}/" + "a" * 300, "over 255 bytes; another path"),
    early(
        "home of nobody",
        "run 02_sft --out {out} -p model=~no_such_user/model",
        "'~no_such_user/model'; a user who is not there",
    ),
    early(
        "everything as a dataset",
        "run 02_sft --out {out} -p model={here}/model -p dataset=/",
        "/ holds the workbench itself; give a folder",
    ),
    early(
        "misspelled choice",
        "run 06_policy_gradient --out {out} -p algorithm=pppo",
        "algorithm is 'pppo'; did you mean ppo?; choose one of; grpo",
    ),
    early(
        "misspelled choice among several",
        "sweep 03_preferences --out {out} -p kinds=pairs -p seed=0,1 -p panel=bias",
        "panel is 'bias'; did you mean biased?; noise",
    ),
    early(
        "missing predecessor",
        "run 06_policy_gradient --out {out} -p model=runs/none/02_sft",
        "runs/none/02_sft does not exist; (model); `workbench run 02_sft --out runs/none/02_sft`",
    ),
    early(
        "missing tour",
        "run 12_compare_runs --out {out} -p runs=runs/tour/none",
        "runs/tour/none does not exist; `make run`",
    ),
    early(
        "report of somebody else",
        "report {here}/shown",
        "shown/report holds what is no report; (mine.html); shown/report-1",
    ),
    early(
        "report on a notebook without cells",
        "report {here}/cellless",
        "cellless; damaged file or no notebook of nbformat 4; --only",
    ),
    Case("learning rate negative", FILE + "good.jsonl -p learning_rate=-0.001", "learning_rate is -0.001; above 0"),
    early("data file missing", FILE + "missing.jsonl", "missing.jsonl does not exist; (dataset); check the path"),
    early(
        "data file unreadable",
        FILE + "secret.jsonl",
        "secret.jsonl cannot be read; permissions",
        prepare=obey_permissions,
    ),
    Case("gzip truncated", FILE + "truncated.jsonl.gz", "truncated.jsonl.gz; truncated; again"),
    Case(
        "row without prompt", FILE + "promptless.jsonl", "promptless.jsonl: row 5; 'prompt'; missing; correct the row"
    ),
    Case("file empty", FILE + "empty.jsonl", "empty.jsonl holds no rows; at least one"),
    Case(
        "chosen and rejected identical",
        DIRECT + "-p dataset={here}/identical.jsonl",
        "1 rows whose chosen and rejected are identical; row 3; remove",
    ),
    Case("model folder without weights", MODEL + "weightless", "weightless; model.safetensors"),
    Case(
        "model folder with weights of other names",
        MODEL + "renamed",
        "renamed' are not those of the LlamaForCausalLM; "
        "21 missing (lm_head.weight, model.embed; 20 unexpected (base.embed",
    ),
    Case(
        "reward that the task does not have",
        REWARDED + "-p reward_model=task:smus",
        "no reward 'task:smus'; choose one of task:sums; task:gold; my_file.py:score",
        started=False,
    ),
    Case(
        "verifier on data without a world",
        REWARDED + "-p dataset={here}/good.jsonl -p reward_model=task:sums",
        "no reward 'task:sums'; only the embedded world; my_file.py:score",
        started=False,
    ),
    Case(
        "verifier asked about prompts of another kind",
        REWARDED + "-p reward_model=task:sums",
        "task:sums judges prompts of the kind 'math', not 'user :; set kinds=\"math\"; name a reward for all others",
    ),
    Case(
        "kinds of prompts that a file does not know",
        REWARDED + "-p dataset={here}/good.jsonl -p kinds=math -p reward_model={here}/mine.py:right",
        "kinds is 'math'; only the embedded world; good.jsonl; leave it empty",
    ),
    Case("kind without a weight", CHECKED + "-p kinds=math*0", "kinds is 'math*0'; a weight above 0; math*3, qa"),
    Case(
        "kind that does not exist", CHECKED + "-p kinds=mth", "The kind 'mth' does not exist; suggest, qa, harm, math"
    ),
    Case(
        "weight that is no number",
        REWARDED + "-p reward_model=task:sums*two",
        "'task:sums*two' can not be read; write each weight behind its name",
        started=False,
    ),
    Case(
        "reward file without the function",
        REWARDED + "-p reward_model={here}/mine.py:rihgt",
        "mine.py:rihgt names no function of its file, which has right, short, words: name one",
        started=False,
    ),
    Case(
        "reward with a wrong signature",
        REWARDED + "-p reward_model={here}/mine.py:short",
        "mine.py:short can not be called",
    ),
    Case(
        "reward with a wrong result",
        REWARDED + "-p reward_model={here}/mine.py:words",
        "mine.py:words gave 'yes' (str) for row 0, the completion; of the prompt; return a finite number",
    ),
    Case(
        "policy as reward model",
        "run 07_best_of_n --preset smoke --out {out} -p model={here}/model -p reward_model={here}/model",
        "model' is no reward model; at random; 05_reward_model",
    ),
    Case(
        "several datasets in one folder",
        FILE + "repository",
        "repository holds several datasets (main, socratic); give the folder of one",
    ),
    Case("model folder without tokenizer", MODEL + "wordless", "no usable tokenizer; wordless; save_pretrained"),
    Case("tokenizer without EOS", MODEL + "endless", "endless; no EOS token; set tokenizer.eos_token"),
    Case(
        "tokenizer without pad: mended, said",
        MODEL + "padless -p steps=30 -p learning_rate=0.01 -p evaluation_prompts=4",
        "no padding token; '<|pad|>'",
        code=0,
    ),
    Case(
        "prompt longer than the context",
        FILE + f"long.jsonl -p max_prompt_length={2 * CONTEXT}",
        f"a prompt of; tokens ('user : user; context of {CONTEXT}; max_prompt_length",
    ),
    Case("padding in an answer", FILE + "padding.jsonl", "Row; '<pad>' inside a completion; remove it"),
    Case("answer that goes on after its end", FILE + "ended.jsonl", "Row; '<eos>' inside a completion; remove it"),
    Case(
        "critic that reads other tokens",
        DIRECT.replace("08_direct_alignment", "06_policy_gradient") + "-p reward_model={here}/foreign",
        "foreign; another tokenizer; the policy's family; rloo",
    ),
    Case(
        "disk full at a checkpoint",
        FILE + "good.jsonl -p steps=2 -p evaluation_prompts=4",
        "checkpoint/train.pt was not written; disk is full; free some space",
        prepare=fill_the_disk,
    ),
    Case(
        "loss becomes NaN",
        FILE + "good.jsonl -p learning_rate=1e30 -p evaluation_prompts=4",
        "at step 2; nonfinite_batch.pt; lower learning_rate",
    ),
]


def write_rows(path: Path, rows: list[dict]) -> None:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_data(folder: Path, world) -> None:
    """Demonstrations and pairs, and every way to break them that is tested here."""
    rows = [{key: row[key] for key in ("prompt", "completion")} for row in world.demonstrations(120, random.Random(0))]
    pairs = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": row["completion"] + " no"} for row in rows
    ]
    write_rows(folder / "good.jsonl", rows)
    write_rows(folder / "secret.jsonl", rows)
    (folder / "secret.jsonl").chmod(0)
    write_rows(folder / "pairs.jsonl", pairs)
    write_rows(folder / "identical.jsonl", [*pairs[:3], pairs[3] | {"rejected": pairs[3]["chosen"]}, *pairs[4:]])
    write_rows(folder / "promptless.jsonl", [*rows[:5], {"completion": " yes"}, *rows[6:]])
    write_rows(folder / "long.jsonl", [*rows[:5], rows[5] | {"prompt": "user : " * CONTEXT}, *rows[6:]])
    for name, inside in {"padding": " yes <pad> no", "ended": " yes <eos> no"}.items():
        write_rows(folder / f"{name}.jsonl", [row | {"completion": inside} for row in rows])
    write_rows(folder / "truncated.jsonl.gz", rows)
    whole = (folder / "truncated.jsonl.gz").read_bytes()
    (folder / "truncated.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jsonl").touch()
    for name in ("main", "socratic"):
        (folder / "repository" / name).mkdir(parents=True)
        write_rows(folder / "repository" / name / "train.jsonl", rows)


def write_models(folder: Path, world) -> None:
    """A model folder that works, and one for every part that may be missing."""
    tokenizer = build_tokenizer(world)
    model = build_policy("llama-64x2", tokenizer, context=CONTEXT)
    bare = {"padless": word_tokenizer(eos_token="<eos>", unk_token="<unk>")}
    bare["endless"] = word_tokenizer(pad_token="<pad>", unk_token="<unk>")
    for name, words in {"model": tokenizer, "weightless": tokenizer, "wordless": None, **bare}.items():
        model.save_pretrained(folder / name)
        if words:
            words.save_pretrained(folder / name)
    (folder / "weightless" / "model.safetensors").unlink()
    weights = {name.replace("model.", "base."): weight for name, weight in model.state_dict().items()}
    del weights["lm_head.weight"]  # tied to the embedding
    model.save_pretrained(folder / "renamed", state_dict=weights)
    tokenizer.save_pretrained(folder / "renamed")
    tiny_model(auto=AutoModelForSequenceClassification).save_pretrained(folder / "foreign")
    word_tokenizer().save_pretrained(folder / "foreign")


@pytest.fixture(scope="module")
def here(tmp_path_factory, world) -> Path:
    """The folder of all inputs."""
    folder = tmp_path_factory.mktemp("bad_input")
    write_data(folder, world)
    write_models(folder, world)
    (folder / "mine.py").write_text(OWN_REWARDS)
    (folder / "locked").mkdir(mode=0o500)
    for name, content in {"shown": '{"cells": [], "metadata": {}}', "cellless": "{}"}.items():
        (folder / name / "report").mkdir(parents=True)
        (folder / name / "notebook.ipynb").write_text(content)
    (folder / "shown" / "report" / "mine.html").touch()
    (folder / "listed").mkdir()
    (folder / "listed" / "run.json").write_text("[]")
    (folder / "listed" / "metrics.jsonl").touch()
    held = {"parameters": {"learning_rate": 0.001}, "seed": 0, "inputs": {}, "status": "finished"}
    (folder / "other").mkdir()
    (folder / "other" / "run.json").write_text(json.dumps(held))
    (folder / "other" / "metrics.jsonl").write_text('{"step": 1}\n')
    return folder


@pytest.fixture(scope="module")
def stages_start_at_once() -> Iterator[None]:
    """All commands of this process share what a command keeps for its own stages, where the system can."""
    shared = workers.Processes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "Processes", lambda: contextlib.nullcontext(shared))
        patch.setattr(schedule, "closing", lambda processes: processes)
        yield
    shared.close()


def execute(case: Case, here: Path) -> Outcome:
    """Run the command as a user would: in a process of its own, or in this one where it starts a kernel."""
    out = here / "out" / re.sub(r"\W+", "_", case.name)
    words = case.command.format(here=here, out=out).split()
    if case.prepare is Case.prepare:
        with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(io.StringIO()) as told:
            code = cli.main(words)
        return Outcome(code=code, printed=printed.getvalue(), complained=told.getvalue(), out=out)
    command = [sys.executable, "-m", "workbench.cli", *words]
    ended = subprocess.run(command, capture_output=True, text=True, preexec_fn=case.prepare, timeout=300)
    return Outcome(code=ended.returncode, printed=ended.stdout, complained=ended.stderr, out=out)


def left_behind(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def is_whole(path: Path) -> bool:
    """Whether a file can be read to its end by what it was written for."""
    if path.suffix in (".json", ".ipynb"):
        return bool(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return path.read_text().endswith("\n") and all(json.loads(line) for line in path.read_text().splitlines())
    return path.suffix != ".pt" or bool(load_checkpoint(path))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
def test_bad_input_gets_one_sentence_and_an_exit_code_and_leaves_nothing_half_written(
    case, here, stages_start_at_once, record_property
):
    outcome = execute(case, here)
    told = outcome.complained if case.code else "\n".join(re.findall(".*padding token.*", outcome.printed))
    record_property("bad_input", [case.name, outcome.code, told.strip().replace(str(outcome.out.parent.parent), "DIR")])
    assert outcome.code == case.code, outcome
    assert told.count("\n") == bool(case.code) and told.strip().endswith((".", ")", "?"))
    assert [part for part in case.says.split("; ") if part not in told] == [], told
    assert "Traceback" not in outcome.printed + outcome.complained
    if not case.started:
        assert not outcome.out.exists()
        return
    found = left_behind(outcome.out)
    assert not [name for name in found if re.search(r"\.part\b|partial", name)]
    assert [name for name in found if not is_whole(outcome.out / name)] == []
    finished = {"notebook.ipynb", "model/model.safetensors", "summary.json"}
    assert found & finished == (finished if case.code == 0 else set())
    assert ("notebook.failed.ipynb" in found) == bool(case.code)


@pytest.mark.parametrize(
    ("refused", "says"),
    [
        (lambda world, model, words: WorldTask(world).rows("text", 0), "documents asked for is 0: give at least 1"),
        (lambda world, model, words: WorldTask(world).rows("demonstrations", -2), "demonstrations asked for is -2"),
        (lambda world, model, words: WorldTask(world).prompts(0, 0, split="test"), "prompts asked for is 0"),
        (lambda world, model, words: pack_documents([[1, 2]], 1), "row_length is 1: give at least 2"),
        (lambda world, model, words: build_policy("llama-64x2", words, context=0), "context is 0: give at least 2"),
        (lambda world, model, words: load_policy("  ", words), "No model was named: give"),
        (lambda world, model, words: load_policy("gpt2", words, device="tpu"), "device is 'tpu' .* use device='cpu'"),
        (lambda world, model, words: load_policy("runs/none", words), "'runs/none' does not exist: run the stage"),
        (lambda world, model, words: load_reward_model("gpt2", words, start="stf"), "start is 'stf': choose 'sft'"),
        (lambda world, model, words: WorldTask(world).labelers("nois"), "no panel 'nois': choose one of biased, noise"),
        (lambda world, model, words: add_lora(model, rank=-1), "lora_rank is -1: give"),
        (lambda world, model, words: sample(model, [[1]], max_completion_length=0, temperature=0), "length is 0: give"),
        (lambda world, model, words: requested({"seed": -1}, inputs={}, seed=None, threads=1), "seed is -1: give"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_number_or_name_that_means_nothing_is_refused_in_one_sentence(world, refused, says):
    words = word_tokenizer()
    with pytest.raises(WorkbenchError, match=says) as caught:
        refused(world, tiny_model(), words)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_a_negative_number_of_rows_of_a_file_is_refused(here):
    with pytest.raises(WorkbenchError, match="rows asked for is -3: give at least 0"):
        FileTask(str(here / "good.jsonl"), columns="", held_out=0.1).rows("demonstrations", -3)
