"""Command line: what is refused before anything starts, what is executed, skipped, stopped and left behind."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbclient.client import _RGX_CARRIAGERETURN

from workbench import WorkbenchError, cli, runs
from workbench.pipeline import execute, notebooks, recipes, schedule
from workbench.runs import files
from workbench.runs import record as run_record

RUN_DIR = 'run_dir: str = "runs/unused"  # folder for results\n'
POLICY = RUN_DIR + "\n".join(
    (
        "kl_coef: float = 0.15  # weight of the KL penalty",
        "steps: int = 60",
        'dataset: str = "world"  # a name, a file or a folder',
        "whiten_rewards: bool = False",
    )
)


def write_notebook(path: Path, *code: str, parameters: str = RUN_DIR, title: str = "What is asked?") -> Path:
    cells = [nbformat.v4.new_markdown_cell(f"# {title}\n\nTakes **2 minutes** and 1 GB.")]
    cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    cells += [nbformat.v4.new_code_cell(source) for source in code]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with three notebooks, one recipe and presets, in place of the real one."""
    for module in (files, notebooks, recipes):
        monkeypatch.setattr(module, "repository_root", lambda: tmp_path)
    (tmp_path / "notebooks" / "recipes").mkdir(parents=True)
    write_notebook(tmp_path / "notebooks" / "02_sft.ipynb", parameters=RUN_DIR + "seed: int = 0")
    write_notebook(tmp_path / "notebooks" / "06_policy_gradient.ipynb", parameters=POLICY, title="What does KL cost?")
    write_notebook(tmp_path / "notebooks" / "06_other.ipynb", parameters=RUN_DIR + 'sft: str = "runs/tour/02_sft"')
    (tmp_path / "notebooks" / "presets.yaml").write_text("smoke: {06_policy_gradient: {steps: 2}}\nlaptop: {}\n")
    write_recipe(tmp_path, "- notebook: 02_sft\n- {notebook: 06_policy_gradient, parameters: {steps: 9, kl_coef: 1}}")
    return tmp_path


def write_recipe(repository: Path, stages: str, head: str = "title: The story\n") -> Path:
    path = repository / "notebooks" / "recipes" / "tour.yaml"
    path.write_text(f"{head}stages:\n{stages}\n")
    return path


def put(path: Path, text: str) -> Path:
    """A file with this text, in folders that are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refusal(capsys, *arguments: str) -> str:
    """The one sentence of a command that must be refused with exit code 2."""
    assert cli.main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def plan(repository: Path, target: str, *assignments: str, out: str = "", preset: str = "") -> recipes.Plan:
    path = notebooks.find(target, recipes.recipe_paths())
    read = recipes.plan_notebook if path.suffix == ".ipynb" else recipes.plan_recipe
    return read(path, assignments=list(assignments), out=out, preset_name=preset)


# What is found and shown


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["report", "--help"], ["list", "--help"]])
def test_every_help_shows_examples(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(arguments)
    assert exit.value.code == 0
    assert "examples:\n  workbench " in capsys.readouterr().out


def test_help_and_list_import_nothing_heavy():
    code = "import sys, workbench.cli as cli; cli.main(['list']); print(*sorted(sys.modules), sep='\\n')"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "transformers", "pandas", "plotly", "papermill", "nbconvert"} & set(printed.split("\n"))


def test_list_shows_questions_minutes_and_recipes(repository, capsys):
    assert cli.main(["list"]) == 0
    printed = capsys.readouterr().out
    assert "06_policy_gradient      What does KL cost?\n" in printed
    assert "Takes 2 minutes and 1 GB." in printed
    assert "tour                    The story (2 stages, runs/tour)" in printed


def test_list_of_a_notebook_shows_type_default_and_comment_of_its_parameters(repository, capsys):
    assert cli.main(["list", "06_policy_gradient"]) == 0
    lines = [line.split(maxsplit=3) for line in capsys.readouterr().out.splitlines()]
    assert ["kl_coef", "float", "0.15", "weight of the KL penalty"] in lines
    assert ["whiten_rewards", "bool", "False"] in lines


def test_choices_on_two_lines_are_one_bracket_behind_the_comment():
    lines = 'loss: str = "dpo"  # a row (see below)\n# loss: dpo | ipo\n# loss: kto | orpo'
    (loss,) = notebooks.read_parameters(lines, Path("n.ipynb")).values()
    assert loss.comment == "a row (see below) (dpo, ipo, kto, orpo)" and loss.choices == ("dpo", "ipo", "kto", "orpo")


def test_list_of_a_recipe_keeps_its_columns_apart_however_long_the_names(repository, capsys):
    long = "06_policy_gradient_with_a_long_name"
    write_recipe(repository, f"- notebook: 02_sft\n- {{name: {long}, notebook: 02_sft, parameters: {{seed: 1}}}}")
    assert cli.main(["list", "tour"]) == 0
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert second.split() == [long, "02_sft", "seed=1"] and first.split() == ["02_sft", "02_sft"]
    assert first.rindex("02_sft") == second.index("02_sft")


def test_a_reader_that_stops_reading_is_no_error():
    code = "import sys, workbench.cli as cli; sys.exit(cli.main(['list']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.communicate()[1] == b""


def test_a_notebook_is_found_by_path_name_and_number(repository, monkeypatch):
    monkeypatch.chdir(repository / "notebooks")
    for text in ("02_sft.ipynb", "notebooks/02_sft.ipynb", "02_sft", "02", str(repository / "notebooks/02_sft.ipynb")):
        assert plan(repository, text).stages[0].notebook.path == repository / "notebooks" / "02_sft.ipynb"


# What is refused before anything starts


@pytest.mark.parametrize(
    ("arguments", "parts", "absent"),
    [
        (["06"], ["06_policy_gradient", "06_other"], "02_sft"),
        (["06_policy_gradeint"], ["did you mean 06_policy_gradient?", "02_sft", "tour"], ""),
        (["tour", "--preset", "smoek"], ["'smoek'", "did you mean smoke?", "laptop"], ""),
        (["06_policy_gradient", "-p", "kl_coeff=0.1"], ["kl_coeff", "did you mean kl_coef?", "whiten_rewards"], ""),
        (["06_policy_gradient", "-p", "steps=2.5"], ["steps", "'2.5'", "a whole number (int)"], ""),
        (["06_policy_gradient", "-p", "kl_coef=high"], ["kl_coef", "'high'", "a finite number (float)"], ""),
        (["06_policy_gradient", "-p", "kl_coef=nan"], ["kl_coef", "'nan'", "a finite number (float)"], ""),
        (
            ["06_policy_gradient", "-p", "whiten_rewards=maybe"],
            ["whiten_rewards", "'maybe'", "true or false (bool)"],
            "",
        ),
        (["tour", "-p", "kl_coef"], ["not of the form name=value"], ""),
        (["tour", "-p", "kl_coeff=1"], ["did you mean kl_coef?"], ""),
        (["tour", "-p", "02_sft.kl_coef=1"], ["02_sft has no parameter kl_coef"], ""),
        (["tour", "-p", "03_sft.seed=1"], ["did you mean 02_sft?"], ""),
        (["tour", "-p", "run_dir=x"], ["use --out"], ""),
        (["tour", "--jobs", "-1"], ["--jobs is -1"], ""),
        (["tour", "--out", "notebooks/02_sft.ipynb/below"], ["02_sft.ipynb is a file"], ""),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_fits_nothing_is_refused_with_the_nearest_and_all_that_there_is(
    repository, capsys, arguments, parts, absent
):
    message = refusal(capsys, "run", *arguments)
    assert [part for part in parts if part not in message] == []
    assert not absent or absent not in message


def test_text_is_read_with_the_type_of_its_parameter(repository):
    given = ("kl_coef=1", "steps=1_000", "dataset=7", "whiten_rewards=True")
    values = plan(repository, "06_policy_gradient", *given).stages[0].values
    assert [values[name] for name in ("kl_coef", "steps", "dataset", "whiten_rewards")] == [1.0, 1000, "7", True]
    assert isinstance(values["kl_coef"], float)
    assert plan(repository, "06_policy_gradient", "kl_coef=1e-3").stages[0].values["kl_coef"] == 0.001


@pytest.mark.parametrize("line", ["steps: int = 3 * 4", "import os", "steps: list = [1]", "steps: int", "a, b = 1, 2"])
def test_a_parameters_cell_with_anything_but_plain_values_is_refused(repository, capsys, line):
    write_notebook(repository / "notebooks" / "02_sft.ipynb", parameters=line)
    message = refusal(capsys, "run", "02_sft")
    assert line.split(" =")[0] in message.replace("(a, b)", "a, b") and "02_sft.ipynb" in message


def test_a_file_that_is_no_notebook_is_refused(repository, capsys):
    (repository / "notebooks" / "02_sft.ipynb").write_text("{}")
    assert "02_sft.ipynb is not a Jupyter notebook" in refusal(capsys, "run", "02_sft")
    with pytest.raises(WorkbenchError, match="steps"):
        notebooks.convert("steps", "int", True, "a recipe")


@pytest.mark.parametrize(
    "stages, head, part",
    [
        ("- notebook: 02_sft\n- notebook: 02_sft", "", "2 stages named 02_sft"),
        ("- notebook: 02_stf", "", "did you mean 02_sft?"),
        ("- {notebook: 02_sft, parameter: {}}", "", "did you mean parameters?"),
        ("- {notebook: 02_sft, parameters: {run_dir: x}}", "", "without run_dir"),
        ("- {notebook: 02_sft, name: ../x}", "", "'../x'"),
        ("- {notebook: 02_sft, parameters: {sead: 1}}", "", "did you mean seed?"),
        (
            "- {notebook: 06_policy_gradient, parameters: {dataset: 5}}",
            "",
            "dataset is 5 in stage 06_policy_gradient of tour.yaml and must be text (str)",
        ),
        ("- notebook: 06_other\n- notebook: 02_sft", "", "06_other reads stage 02_sft, which comes after it"),
        ("- name: a", "", "without a notebook"),
        ("  []", "", "no stages"),
        ("- notebook: 02_sft", "jobs: 0\n", "jobs 0"),
        ("- notebook: 02_sft", "report: maybe\n", "has report 'maybe': write true"),
        ("- notebook: 02_sft", "report: [02_sft, 03]\n", "a list of names of its stages"),
        ("- notebook: 02_sft", "presets: [smoke]\n", "write `presets: {smoke: {each: {seed: [0]}}}`"),
        ("- notebook: 02_sft", "a: b: c\n", "not valid YAML"),
        ("- notebook: tour.yaml", "", "needs a notebook"),
        ("- notebook: 02_sft", "each: [0, 1]\n", "each [0, 1]: write"),
        ("- notebook: 02_sft", "each: {seed: []}\n", "one list of values per name"),
        ("- {name: a, notebook: 02_sft, each: {seed: 3}}", "", "Stage a of"),
        (
            "- {name: a, notebook: 02_sft, parameters: {seed: '{n}'}}",
            "each: {n: [0, 1]}\n",
            "put it into its name as well",
        ),
        ("- {notebook: 02_sft, threads: 0}", "", "has threads 0: give a whole number, 1 to 9999"),
    ],
)
def test_a_broken_recipe_is_refused_with_what_is_wrong(repository, capsys, stages, head, part):
    write_recipe(repository, stages, head)
    assert part in refusal(capsys, "run", "tour")


def test_a_folder_that_holds_other_work_is_refused_before_anything_starts(repository, capsys):
    folder = repository / "runs" / "tour" / "06_policy_gradient"
    held = {"kl_coef": 0.5, "steps": 9, "run_dir": "elsewhere", "of_an_older_version": 1}
    put(folder / "run.json", json.dumps({"parameters": held}))
    put(folder / "metrics.jsonl", '{"step": 1}\n')
    message = refusal(capsys, "run", "tour")
    assert "kl_coef=0.5" in message and "kl_coef=1.0" in message and "--out" in message
    assert "steps" not in message and "run_dir=" not in message


def test_a_folder_that_is_not_writable_and_a_wrong_number_of_threads_are_refused(repository, capsys, monkeypatch):
    monkeypatch.setenv("WORKBENCH_THREADS", "many")
    assert "WORKBENCH_THREADS is 'many'" in refusal(capsys, "run", "tour")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    assert "cannot be written to" in refusal(capsys, "run", "tour")


# What a command is turned into


def test_command_line_beats_preset_beats_recipe_beats_default(repository):
    def policy(*given: str, preset: str = "") -> dict:
        return plan(repository, "tour", *given, preset=preset).stages[1].values

    assert (policy()["steps"], policy()["kl_coef"], policy()["dataset"]) == (9, 1.0, "world")
    assert (policy(preset="smoke")["steps"], policy(preset="smoke")["kl_coef"]) == (2, 1.0)
    assert policy("06_policy_gradient.steps=3", preset="smoke")["steps"] == 3
    assert plan(repository, "06_policy_gradient", preset="smoke").stages[0].values["steps"] == 2


def test_a_setting_without_a_stage_reaches_every_stage_that_has_it(repository):
    write_recipe(repository, "- notebook: 02_sft\n- {notebook: 02_sft, name: again}\n- notebook: 06_policy_gradient")
    values = [stage.values for stage in plan(repository, "tour", "seed=4", "again.seed=5").stages]
    assert [stage.get("seed") for stage in values] == [4, 5, None]


def test_a_preset_of_the_recipe_shortens_its_lists_and_leaves_others_alone(repository):
    head = "each: {seed: [0, 1, 2]}\npresets: {smoke: {each: {seed: [7], other: [1]}}}\n"
    write_recipe(repository, "- {name: 'a_{seed}_{n}', notebook: 02_sft, each: {n: [4, 5]}}", head)
    assert [stage.name for stage in plan(repository, "tour").stages] == [f"a_{s}_{n}" for s in range(3) for n in (4, 5)]
    assert [stage.name for stage in plan(repository, "tour", preset="smoke").stages] == ["a_7_4", "a_7_5"]


def test_a_list_of_one_value_is_a_setting_that_needs_no_place_in_names_and_a_preset_may_change(repository):
    head = "each: {n: [4]}\npresets: {smoke: {each: {n: [7]}}}\n"
    write_recipe(repository, "- {name: a, notebook: 02_sft, parameters: {seed: '{n}'}}", head)
    told = [plan(repository, "tour", preset=preset).stages for preset in ("", "smoke")]
    assert [(stage.name, stage.values["seed"]) for (stage,) in told] == [("a", 4), ("a", 7)]


def test_a_recipe_may_name_the_stages_that_its_report_shows(repository):
    stages = "- notebook: 02_sft\n- notebook: 06_other"
    for said, report, shown in (("true", True, ()), ("false", False, ()), ("[06_other]", True, ("06_other",))):
        write_recipe(repository, stages, f"report: {said}\n")
        made = plan(repository, "tour")
        assert (made.report, made.shown) == (report, shown)


def test_a_stage_is_repeated_for_every_value_that_its_name_holds(repository):
    stages = """
- {name: "sft_{n}", notebook: 02_sft, parameters: {seed: "{n}"}}
- name: "{what}_{n}"
  notebook: 06_policy_gradient
  each: {what: [fast, slow]}
  parameters: {dataset: "{out}/sft_{n}/{what}", steps: 3}
- {name: alone, notebook: 02_sft}"""
    write_recipe(repository, stages, "each: {n: [4, 5]}\n")
    made = plan(repository, "tour").stages
    assert [stage.name for stage in made] == ["sft_4", "sft_5", "fast_4", "slow_4", "fast_5", "slow_5", "alone"]
    assert [stage.given.get("seed") for stage in made] == [4, 5, None, None, None, None, None]
    assert made[4].given["dataset"] == "runs/tour/sft_5/fast" and made[4].needs == ("sft_5",)
    assert made[5].given["steps"] == 3


def test_out_moves_every_folder_and_every_reference_to_it(repository):
    stages = "- notebook: 02_sft\n- {notebook: 06_other, parameters: {sft: '{out}/02_sft'}}"
    write_recipe(repository, stages)
    for out, expected in (("", "runs/tour"), ("elsewhere", "elsewhere")):
        sft, other = plan(repository, "tour", out=out).stages
        assert sft.values["run_dir"] == f"{expected}/02_sft" and sft.folder == repository / expected / "02_sft"
        assert other.values["sft"] == f"{expected}/02_sft" and other.needs == ("02_sft",)


def test_out_of_a_single_notebook_is_its_run_dir(repository):
    alone = plan(repository, "02_sft", out="runs/x")
    assert alone.stages[0].values["run_dir"] == "runs/x" and alone.folder == repository / "runs" / "x"
    assert plan(repository, "02_sft").folder == repository / "runs" / "unused"


def test_a_stage_needs_the_stages_that_its_paths_name_contain_or_match(repository):
    parameters = RUN_DIR + 'runs: str = ""'
    write_notebook(repository / "notebooks" / "12_compare.ipynb", parameters=parameters)
    entries = ["- notebook: 02_sft", "- {notebook: 02_sft, name: again}", "- notebook: 06_policy_gradient"]
    for value, needs in (
        ("{out}/02_sft/model", ("02_sft",)),
        ("{out}/again,{out}/06_policy_gradient", ("again", "06_policy_gradient")),
        ("{out}/0*", ("02_sft", "06_policy_gradient")),
        ("{out}", ("02_sft", "again", "06_policy_gradient")),
        ("again", ()),
    ):
        write_recipe(repository, "\n".join([*entries, f"- {{notebook: 12_compare, parameters: {{runs: '{value}'}}}}"]))
        for out in ("runs/tour", "flat", "runs/../../elsewhere"):
            assert plan(repository, "tour", out=out).stages[-1].needs == needs


# What makes a finished stage count


def key_of(repository: Path, *given: str) -> str:
    return schedule.stage_key(plan(repository, "06_other", *given, out="runs/other").stages[0])


def test_the_key_follows_parameters_cells_threads_and_the_executions_and_bytes_of_inputs(repository, monkeypatch):
    keys = [key_of(repository)]
    keys.append(key_of(repository, "sft=runs/elsewhere"))
    sft = repository / "runs" / "tour" / "02_sft"
    (sft / "model").mkdir(parents=True)
    (sft / "model" / "weights").write_text("1")
    keys.append(key_of(repository))  # made outside: its bytes count
    (sft / "model" / "weights").write_text("2")
    keys.append(key_of(repository))
    for execution in "ab":
        metadata = {"workbench": {"key": "same", "execution": execution}}
        (sft / "notebook.ipynb").write_text(json.dumps({"metadata": metadata}))
        keys.append(key_of(repository))  # made by a stage: its execution counts
        keys.append(key_of(repository, "sft=runs/tour/02_sft/model"))
    other = repository / "notebooks" / "06_other.ipynb"
    write_notebook(other, "1 + 1", parameters=RUN_DIR + 'sft: str = "runs/tour/02_sft"')
    keys.append(key_of(repository))
    monkeypatch.setenv("WORKBENCH_THREADS", "2")
    keys.append(key_of(repository))
    assert len(set(keys)) == len(keys)


def test_the_key_stays_when_nothing_that_counts_changed(repository, monkeypatch):
    before = key_of(repository)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    own = repository / "runs" / "other"
    own.mkdir(parents=True)
    (own / "metrics.jsonl").write_text("{}")
    (repository / "runs" / "unrelated").mkdir()
    assert key_of(repository) == before


def test_a_stage_that_reads_the_whole_folder_is_not_outdated_by_later_stages(repository):
    write_notebook(repository / "notebooks" / "12_compare.ipynb", parameters=RUN_DIR + 'runs: str = ""')
    write_recipe(
        repository, "- notebook: 02_sft\n- {notebook: 12_compare, parameters: {runs: '{out}'}}\n- notebook: 06_other"
    )
    stage = plan(repository, "tour").stages[1]
    before = schedule.stage_key(stage)
    for name, changes in (("06_other", False), ("02_sft", True)):
        folder = repository / "runs" / "tour" / name
        folder.mkdir(parents=True)
        (folder / "notebook.ipynb").write_text(json.dumps({"metadata": {"workbench": {"execution": "new"}}}))
        assert (schedule.stage_key(stage) != before) == changes


# Executions


MEET = """
import pathlib, time
folder = pathlib.Path(run_dir)
(folder / "here").touch()
began = time.monotonic()
while not (folder.parent / other / "here").exists():
    assert time.monotonic() - began < 60, "the other stage did not start"
    time.sleep(0.05)
"""
FACTS = """
import os, sys
print("kernel", sys.executable, os.getcwd(), os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"])
print("value", value)
"""


@pytest.fixture
def chain(tmp_path):
    """A recipe of two independent stages, which wait for each other, and one that reads the first."""
    write_notebook(tmp_path / "a.ipynb", FACTS, MEET, parameters=RUN_DIR + 'value: float = 1.0\nother: str = ""')
    write_notebook(tmp_path / "b.ipynb", "assert open(f'{a}/here').read() == ''", parameters=RUN_DIR + 'a: str = ""')
    (tmp_path / "chain.yaml").write_text(
        f"out: '{tmp_path}/out {{x}}'\njobs: 2\nreport: true\nstages:\n"
        "- {notebook: a.ipynb, parameters: {value: 2, other: c}}\n"
        "- {notebook: b.ipynb, parameters: {a: '{out}/a'}}\n"
        "- {notebook: a.ipynb, name: c, threads: 2, parameters: {other: a}}\n"
    )
    return tmp_path


def test_a_recipe_runs_side_by_side_skips_what_is_finished_and_repeats_what_follows_a_change(
    chain, capsys, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # of the shell: the workbench decides
    recipe, out = str(chain / "chain.yaml"), chain / "out {x}"
    (out / "b").mkdir(parents=True)
    (out / "b" / "notebook.part.ipynb").write_text('{"cells": [')  # of a run that was killed
    (out / "b" / "notebook.failed.ipynb").write_text("{}")
    assert cli.main(["run", recipe]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"a | kernel {sys.executable} {files.repository_root()} 1 1" in lines
    assert f"c | kernel {sys.executable} {files.repository_root()} 2 2" in lines
    assert "a | value 2.0" in lines and "c | value 1.0" in lines
    assert any(line.startswith("[2/3] b ... done in ") for line in lines)
    assert lines[-1] == f"report: {out}/report/index.html" and (out / "report" / "index.html").is_file()
    assert sorted(path.name for path in out.glob("*/*.ipynb")) == ["notebook.ipynb"] * 3
    notebook = nbformat.read(out / "b" / "notebook.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.workbench.notebook == "b"

    assert cli.main(["run", recipe]) == 0
    assert capsys.readouterr().out.count("... finished before, skipped") == 3

    write_notebook(chain / "a.ipynb", "value", MEET, parameters=RUN_DIR + 'value: float = 1.0\nother: str = ""')
    (chain / "chain.yaml").write_text((chain / "chain.yaml").read_text().replace("- {notebook: a.ipynb, name: c", "#"))
    assert cli.main(["run", recipe, "--jobs", "1"]) == 0
    printed = capsys.readouterr().out
    assert "[1/2] a ... done" in printed and "[2/2] b ... done" in printed and " | " not in printed


def test_failures_name_notebook_cell_error_and_output_and_bad_input_has_its_own_code(tmp_path, capsys):
    bad = "from workbench import NonFiniteLoss\nclass Deeper(NonFiniteLoss): pass\nraise Deeper(3, {})"
    write_notebook(tmp_path / "bad.ipynb", "print('fine')", bad)
    write_notebook(tmp_path / "bug.ipynb", "raise KeyError('first\\nsecond')", parameters="seed: int = 0")
    write_notebook(tmp_path / "after.ipynb", parameters='sft: str = ""')
    stages = "- notebook: bad.ipynb\n- notebook: bug.ipynb\n- {notebook: after.ipynb, parameters: {sft: '{out}/bug'}}"
    (tmp_path / "r.yaml").write_text(f"out: {tmp_path}/out\njobs: 2\nstages:\n{stages}\n")
    assert cli.main(["run", str(tmp_path / "r.yaml")]) == 2  # of the first failed stage
    captured = capsys.readouterr()
    bad_line, bug_line = sorted(captured.err.splitlines())
    where = tmp_path / "out" / "bad" / "notebook.failed.ipynb"
    assert bad_line.startswith("bad failed in cell [4]: The loss became NaN or infinite at step 3")
    assert bad_line.endswith(f"(see {where})") and "fine" in where.read_text()
    assert bug_line.startswith("bug failed in cell [2]: KeyError: 'first\\nsecond' (see ")
    assert "] after" not in captured.out
    assert not list(tmp_path.rglob("out/*/notebook.ipynb")) and not list(tmp_path.rglob("out/*/*.part.ipynb"))


def test_a_kernel_that_dies_is_a_failure_that_says_so(tmp_path, capsys):
    write_notebook(tmp_path / "dies.ipynb", "import os\nos._exit(9)")
    assert cli.main(["run", str(tmp_path / "dies.ipynb"), "--out", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert message.startswith("dies failed because its kernel ended") and message.count("\n") == 1
    assert (tmp_path / "out" / "notebook.failed.ipynb").exists()


def test_a_disk_too_full_for_the_notebook_itself_leaves_no_half_of_it(tmp_path):
    write_notebook(tmp_path / "long.ipynb", "print('long ' * 2000)")
    command = [sys.executable, "-m", "workbench.cli", "run", str(tmp_path / "long.ipynb"), "--out", str(tmp_path / "o")]
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))}  # files fail as if full
    ended = subprocess.run(command, capture_output=True, text=True, **limit)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert "was not written because the disk is full" in ended.stderr
    assert [path.name for path in (tmp_path / "o").iterdir()] == [".notebook.lock"]


SLEEP = """
import os, pathlib, time
folder = pathlib.Path(run_dir)
try:
    (folder / "kernel").write_text(str(os.getpid()))
    time.sleep(100)
except KeyboardInterrupt:
    (folder / "interrupted").touch()
    raise
"""


def is_running(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for(condition, seconds: float = 60.0) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "waited too long"
        time.sleep(0.05)


def in_the_background() -> None:
    """In the child: Ctrl-C is ignored, as in a background job and under many CI runners."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def test_stopping_interrupts_the_cell_and_leaves_no_kernel_and_no_finished_looking_notebook(tmp_path):
    write_notebook(tmp_path / "sleep.ipynb", SLEEP)
    kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
    folders = {kind: tmp_path / kind.name for kind in kinds}
    command = [sys.executable, "-m", "workbench.cli", "run", str(tmp_path / "sleep.ipynb"), "--out"]
    started = {}
    for kind, folder in folders.items():
        folder.mkdir()
        (folder / "notebook.ipynb").write_text('{"metadata": {"workbench": {"key": "of an older version"}}}')
        run = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        run |= {"preexec_fn": in_the_background} if kind == signal.SIGTERM else {}
        started[kind] = subprocess.Popen([*command, str(folder)], **run)
    for kind, process in started.items():
        wait_for(lambda folder=folders[kind]: (folder / "kernel").exists() and (folder / "kernel").read_text())
        if kind == signal.SIGINT:
            os.killpg(process.pid, kind)  # a terminal's Ctrl-C reaches every process of the command
        else:
            process.send_signal(kind)
    for kind, process in started.items():
        folder, message = folders[kind], process.communicate(timeout=60)[1]
        kernel = int((folder / "kernel").read_text())
        wait_for(lambda kernel=kernel: not is_running(kernel))
        assert not (folder / "notebook.ipynb").exists() and not (folder / "notebook.failed.ipynb").exists()
        assert (folder / "interrupted").exists()
        if kind == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL
        else:
            assert process.returncode == 130
            assert message == "stopped at stage sleep: run the same command again to continue\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_of_either_kind_kills_the_kernel_that_the_first_interrupted(monkeypatch, number):
    sent, before = [], {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(execute, "signal_kernel", sent.append)
    stop = execute.Stop()
    try:
        for expected in ([signal.SIGINT], [signal.SIGINT, signal.SIGKILL]):
            os.kill(os.getpid(), number)
            assert sent == expected and stop.asked
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def test_a_second_command_on_the_same_folder_is_refused(tmp_path, capsys):
    write_notebook(tmp_path / "n.ipynb", "1")
    (tmp_path / "out").mkdir()
    with files.locked(tmp_path / "out" / ".notebook.lock"):
        assert cli.main(["run", str(tmp_path / "n.ipynb"), "--out", str(tmp_path / "out")]) == 2
    assert "Another process is writing" in capsys.readouterr().err


# What the workbench did not make


def test_a_command_without_a_word_shows_the_help(capsys):
    assert cli.main([]) == 2
    assert "examples:" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["model/", "metrics.jsonl", "notes.txt", "notebook.ipynb", "tables/"])
def test_a_folder_of_other_things_is_refused_before_and_in_the_kernel_and_left_alone(repository, capsys, name):
    mine = repository / "runs" / "mine"
    (mine / name).parent.mkdir(parents=True)
    (mine / name).mkdir() if name.endswith("/") else (mine / name).write_text("{}", encoding="utf-8")
    told = refusal(capsys, "run", "02", "--out", "runs/mine")
    assert f"mine holds {name} and no run" in told and "runs/mine/run." in told
    with pytest.raises(WorkbenchError, match="overwrites only what it made"):
        runs.Run.open(mine, {"seed": 0})
    assert [path.name for path in mine.iterdir()] == [name.rstrip("/")]


@pytest.mark.parametrize("name", ["run.json", "notebook.part.ipynb", "notebook.failed.ipynb", ".notebook.lock"])
def test_a_folder_that_an_earlier_version_or_a_killed_run_left_is_continued(tmp_path, name):
    put(tmp_path / name, '{"parameters": {}}')
    run_record.refuse_foreign(tmp_path)
    put(tmp_path / "executed" / "notebook.ipynb", '{"metadata": {"workbench": {}}}')
    run_record.refuse_foreign(tmp_path / "executed")


@pytest.mark.parametrize(
    "record",
    [
        *("[]", "3", '{"parameters', "null", "{}", "[" * 9999, '{"parameters": [], "seed": 0}'),
        *('{"parameters": {}, "inputs": [3]}', '{"parameters": {}, "seed": "0"}', '{"parameters": {}, "status": 1}'),
    ],
)
def test_a_run_json_of_something_else_is_a_sentence(repository, capsys, record):
    put(repository / "runs" / "mine" / "run.json", record)
    put(repository / "runs" / "mine" / "metrics.jsonl", "")
    assert "runs/mine/run.json" in refusal(capsys, "run", "02", "--out", "runs/mine")


def test_an_executed_notebook_is_not_replaced_by_its_own_results(repository, capsys):
    put(repository / "runs" / "mine" / "run.json", '{"parameters": {}}')
    own = write_notebook(repository / "runs" / "mine" / "notebook.ipynb")
    assert "replaced by its own results" in refusal(capsys, "run", str(own), "--out", "runs/mine")
    assert own.exists()


def test_a_table_of_another_sweep_is_not_written_over(repository, capsys):
    put(repository / "runs" / "mine" / "sweep.csv", "a,b")
    assert "sweep.csv of something else" in refusal(capsys, "sweep", "02", "-p", "seed=0,1", "--out", "runs/mine")
    put(repository / "runs" / "mine" / "sweep.json", "[1]")
    assert "sweep.json holds a list" in refusal(capsys, "sweep", "02", "-p", "seed=0,1", "--out", "runs/mine")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("runs/" + "a" * 256, "over 255 bytes"),
        ("runs/" + "é" * 128, "over 255 bytes"),
        ("~no_such_user/x", "a user who is not there"),
        ("a/" * 2001, "over 4000 in all"),
        ("a\0b", "a null character"),
        ("runs/\udcff", "not UTF-8"),
    ],
)
def test_a_path_that_no_file_could_have_is_refused(repository, capsys, path, says):
    for arguments in (["run", "02", "--out", path], ["report", path], ["list", path], ["run", path]):
        assert says in refusal(capsys, *arguments)


# What a notebook reads and what it may be set to


CHOICES = (
    RUN_DIR
    + """algorithm: str = ""  # how
# algorithm: ppo | rloo
# algorithm: grpo | dr_grpo
half: int = 0
# half: 1 | 2
sinks: str = ""
# sinks: any of wandb | trackio
note: str = "a"  # note: a | b
free: str = "x"  # one of these: a, b"""
)


@pytest.mark.parametrize(
    "given", ["algorithm=dr_grpo", "algorithm=", "half=2", "half=0", "sinks=trackio, wandb", "free=y"]
)
def test_what_the_parameters_cell_lists_may_be_chosen(repository, given):
    write_notebook(repository / "notebooks" / "02_sft.ipynb", parameters=CHOICES)
    assert plan(repository, "02_sft", given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("algorithm=pppo", "algorithm is 'pppo' in -p (did you mean ppo?): choose one of ppo, rloo, grpo, dr_grpo"),
        ("algorithm=ppo,rloo", "algorithm is 'ppo,rloo'"),
        ("half=3", "half is 3 in -p: choose one of 1, 2"),
        ("sinks=wandb,trakio", "sinks is 'trakio' in -p (did you mean trackio?): choose from wandb, trackio"),
        ("note=c", "note is 'c'"),
    ],
)
def test_what_it_does_not_list_is_refused_before_a_kernel_starts(repository, capsys, given, says):
    write_notebook(repository / "notebooks" / "02_sft.ipynb", parameters=CHOICES)
    assert says in refusal(capsys, "run", "02", "-p", given, "--out", "runs/new")
    if given != "algorithm=ppo,rloo":
        assert says in refusal(capsys, "sweep", "02", "-p", given, "--out", "runs/new")
    assert not (repository / "runs" / "new").exists()


READER = RUN_DIR + 'model: str = "runs/tour/02_sft"  # run folder\ndataset: str = "world"\nruns: str = ""'


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("seed=0", "and 06_reader reads it (model): make it with `workbench run 02_sft` or `make run`."),
        ("model=runs/mine/02_sft", "runs/mine/02_sft`."),
        ("model=runs/mine/02_sft/model", "runs/mine/02_sft`."),
        ("model=runs/tour/other", "make it with `make run`"),
        ("model=runs/none", "check the path"),
        ("model=runs/begun", "runs/begun holds a run without a model, and 06_reader reads it (model)"),
        ("dataset=data.jsonl", "data.jsonl does not exist, and 06_reader reads it (dataset): check the path"),
        ("dataset=/nowhere/data", "/nowhere/data does not exist"),
        ("dataset=notebooks/none", "notebooks/none does not exist"),
        ("runs=runs/study/*", "runs/study/* does not exist"),
        ("dataset=/", "/ holds the workbench itself"),
        ("runs=/usr/..", "holds the workbench itself"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_with_the_command_that_makes_it(repository, capsys, given, says):
    write_notebook(repository / "notebooks" / "02_sft.ipynb", parameters='run_dir: str = "runs/tour/02_sft"')
    write_notebook(repository / "notebooks" / "06_reader.ipynb", parameters=READER + "\nseed: int = 0")
    (repository / "runs" / "there").mkdir(parents=True)
    (repository / "runs" / "begun").mkdir()
    (repository / "runs" / "begun" / "run.json").touch()
    model = [] if given.startswith("model=") or given == "seed=0" else ["-p", "model=runs/there"]
    assert says in refusal(capsys, "run", "06_reader", "-p", given, *model, "--out", "runs/new")
    assert not (repository / "runs" / "new").exists()


REWARDED = RUN_DIR + 'dataset: str = "world"\nreward_model: str = "task:sums"  # reward\njudges: str = ""'


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("reward_model=task:nosuch", "no reward 'task:nosuch': choose one of task:sums, task:steps"),
        ("judges=task:sums, task:fact", "no reward 'task:fact'"),
        ("reward_model=task:sums else task:nosuch*2", "no reward 'task:nosuch'"),
        ("reward_model=2*task:sums", "'2*task:sums' can not be read: write each weight behind its name"),
        ("reward_model=task:sums*0", "'task:sums*0' counts nothing"),
        ("reward_model=none.py:score", "none.py:score names a file that does not exist"),
        ("reward_model=none.py", "none.py names a file that does not exist"),
        ("reward_model=mine/f.py", "mine/f.py names no function of its file, which has right, score: name one"),
        ("reward_model=mine/f.py:scor", "mine/f.py:scor names no function of its file, which has right, score"),
        ("reward_model=mine/broken.py:score*2 + task:sums", "mine/broken.py, the file of a reward, does not run (Syn"),
        ("reward_model=mine/f.py;score", "does not exist, and 06_reader reads it (reward_model)"),
        ("reward_model=Task:sums", "'Task:sums' names no file and function: write my_file.py:score, or task:sums"),
        ("reward_model=task:sums for maths", "kind that there is not: choose one of suggest, qa, harm, math"),
        ("reward_model=runs/none for harm", "runs/none does not exist, and 06_reader reads it (reward_model)"),
        ("dataset=mine/rows.jsonl", "no reward 'task:sums': only the embedded world checks answers itself"),
    ],
)  # fmt: skip
def test_a_reward_that_is_none_is_refused_before_anything_runs(repository, capsys, given, says):
    write_notebook(repository / "notebooks" / "06_reader.ipynb", parameters=REWARDED)
    (repository / "mine").mkdir()
    (repository / "mine" / "f.py").write_text("def right(x): ...\ndef score(x): ...\nraise SystemExit('it ran')")
    (repository / "mine" / "broken.py").write_text("def score(")
    (repository / "mine" / "rows.jsonl").write_text('{"prompt": "a"}')
    for command in ("run", "sweep"):
        assert says in refusal(capsys, command, "06_reader", "-p", given, "--out", "runs/new")
    assert not (repository / "runs" / "new").exists()


@pytest.mark.parametrize("given", ["task:gold*0 + task:sums", "mine.py:made", "mine.py:found", "mine.py:Other", "a/rm"])
def test_rewards_that_may_be_there_are_not_refused(repository, given):
    write_notebook(repository / "notebooks" / "06_reader.ipynb", parameters=REWARDED)
    (repository / "mine.py").write_text("from os import path as found\nmade = lambda *_: []\nclass Other: ...")
    recipes.refuse_missing_inputs(plan(repository, "06_reader", f"reward_model={given}").stages[0])


@pytest.mark.parametrize(
    "given", ["model=gpt2", "model=Qwen/Qwen2.5-0.5B", "model=runs/there", "dataset=imdb", "runs=runs/th*"]
)
def test_hub_ids_and_what_is_there_are_not_missing(repository, given):
    write_notebook(repository / "notebooks" / "06_reader.ipynb", parameters=READER)
    (repository / "runs" / "there").mkdir(parents=True)
    model = [] if given.startswith("model=") else ["model=runs/there"]
    recipes.refuse_missing_inputs(plan(repository, "06_reader", given, *model).stages[0])


# Long lines


def stream(name: str, text: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_output("stream", name=name, text=text)


@pytest.mark.parametrize(
    "text",
    ["", "a\rb", "a\r\n", "a\rb\r", "\r\r", "a\r\rb\rc\nd\re\n\r\n", "10%\r50%\r100%\n", "é\r√", "\n\n", "a\r\r\nb"],
)
def test_what_was_written_over_is_left_out_as_nbclient_does(text):
    kept = execute.coalesced([stream("stdout", text[:3]), stream("stdout", text[3:])])
    assert [each.text for each in kept] == [_RGX_CARRIAGERETURN.sub("", text)]


def test_a_long_line_takes_no_time_and_streams_become_one_block_each_stdout_first():
    began = time.process_time()
    data = nbformat.v4.new_output("display_data", data={"text/plain": "figure"})
    long = "x" * 1_000_000
    found = [stream("stderr", "a"), stream("stdout", "b"), data, stream("stdout", long), stream("stderr", "c")]
    kept = execute.coalesced(found)
    assert time.process_time() - began < 2
    assert [each.get("name") for each in kept] == ["stdout", "stderr", None]
    assert [kept[0].text, kept[1].text] == ["b" + long, "ac"]
