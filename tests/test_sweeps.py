"""Sweeps: grids as they are written, what points share, what runs again. Oracle of a plan: the `run` of each point."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from test_cli import RUN_DIR, put, wait_for, write_notebook

from workbench import WorkbenchError, cli
from workbench.pipeline import notebooks, recipes
from workbench.pipeline.notebooks import Parameter
from workbench.pipeline.sweeps import Sweep, plan_sweep, read_values, sweep_table
from workbench.runs import files
from workbench.studies.measurements import experiment_of

MODEL = 'model: str = "runs/elsewhere/02_sft"\nseed: int = 0\n'
POLICY = MODEL + 'reward_model: str = "runs/elsewhere/05_reward_model"\nkl_coef: float = 0.15\nwhiten: bool = False\n'
TOUR = """
- {notebook: 01_pretrain}
- {notebook: 02_sft, parameters: {model: "{out}/01_pretrain/model"}}
- {notebook: 05_reward_model, parameters: {model: "{out}/02_sft"}}
- name: 06_free
  notebook: 06_policy_gradient
  parameters: {model: "{out}/02_sft", reward_model: "{out}/05_reward_model,{out}/02_sft", kl_coef: 0}
- name: 06_policy
  notebook: 06_policy_gradient
  parameters: {model: "{out}/02_sft", reward_model: "{out}/05_reward_model,{out}/02_sft"}
- {notebook: 12_compare_runs, parameters: {runs: "{out}"}}
- {notebook: 00_tour, parameters: {runs: "{out}"}}"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with a recipe like the tour, in place of the real one."""
    for module in (files, notebooks, recipes):
        monkeypatch.setattr(module, "repository_root", lambda: tmp_path)
    (tmp_path / "notebooks" / "recipes").mkdir(parents=True)
    texts = {
        "01_pretrain": "world_seed: int = 0\nsteps: int = 5\n",
        "02_sft": MODEL + "world_seed: int = 0\n",
        "05_reward_model": MODEL + "pairs: int = 0\n",
        "06_policy_gradient": POLICY,
        "12_compare_runs": 'runs: str = "runs/tour"\nseed: int = 0\nprompts_shown: int = 5\n',
        "00_tour": 'runs: str = "runs/tour"\npolicy: str = "06_policy"\n',
    }
    for name, parameters in texts.items():
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", parameters=RUN_DIR + parameters)
    (tmp_path / "notebooks" / "presets.yaml").write_text("smoke: {01_pretrain: {steps: 2}}\n")
    (tmp_path / "notebooks" / "recipes" / "tour.yaml").write_text(f"jobs: 2\nstages:{TOUR}\n")
    return tmp_path


def names(sweep: Sweep) -> list[str]:
    return [stage.name for stage in sweep.plan.stages]


# Values


@pytest.mark.parametrize(
    "kind, given, values, swept",
    [
        ("float", "0,.05,.15", [0.0, 0.05, 0.15], True),
        ("float", "1e-3", [0.001], False),
        ("float", "0:3", [0.0, 1.0, 2.0], True),
        ("int", "0:3", [0, 1, 2], True),
        ("int", "0:10:4", [0, 4, 8], True),
        ("int", "3:0:-1", [3, 2, 1], True),
        ("int", "0:2, 7", [0, 1, 7], True),
        ("int", "5", [5], False),
        ("int", "5:6", [5], True),
        ("bool", "true,false", [True, False], True),
        ("str", "ppo,rloo", ["ppo", "rloo"], True),
        ("str", ",mean", ["", "mean"], True),
        ("str", "", [""], False),
        ("str", "0:3", ["0:3"], False),
        ("str", '"a,b"', ["a,b"], False),
        ("str", 'x,"a,b"', ["x", "a,b"], True),
    ],
)
def test_values_are_lists_ranges_and_quoted_text(kind, given, values, swept):
    read = read_values(given, Parameter(name="it", kind=kind, default=None, comment=""), source="-p")
    assert read == (values, swept)
    assert [type(value) for value in read[0]] == [type(value) for value in values]


@pytest.mark.parametrize(
    "given, parts",
    [
        ([], ["A sweep varies something", "-p seed=0:3"]),
        (["seed="], ["-p seed= has no value", "0:3"]),
        (["seed=3:3"], ["-p seed=3:3 holds no number"]),
        (["seed=0:1:0"], ["'0:1:0' is no range"]),
        (["kl_coef=0:1:.1"], ["'0:1:.1' is no range"]),
        (["seed=0,1,0"], ["seed=0,1,0", "0 2 times"]),
        (["kl_coef=.1,0.1"], ["0.1 2 times"]),
        (["seed=0,1", "seed=2,3"], ["-p seed is given twice", "seed=A,B"]),
        (["seed=0,1", "seed=2"], ["-p seed is given twice"]),
        (["kl_coeff=0,1"], ["did you mean kl_coef?"]),
        (["02_stf.seed=0,1"], ["did you mean 02_sft?"]),
        (["kl_coef=0,high"], ["'high'", "a finite number (float)"]),
        (["seed=0,1.5"], ["'1.5'", "a whole number (int)"]),
        (["whiten=true,maybe"], ["'maybe'", "true or false (bool)"]),
        (["kl_coef"], ["not of the form name=value"]),
        (["run_dir=a,b"], ["use --out"]),
        (['model="a,b'], ["is no list", '"A,B","C"']),
        (["seed=0:100000"], ["100000 values", "at most 10000"]),
        (["seed=0:1000", "kl_coef=0:1000"], ["1000 of seed x 1000 of kl_coef points"]),
        (["02_sft.seed=0,1", "02_sft.seed=2"], ["02_sft.seed is given twice"]),
        (["whiten=true,false", "06_free.whiten=true", "06_policy.whiten=false"], ["reaches no stage"]),
    ],
)
def test_a_grid_that_does_not_fit_is_refused_in_a_sentence_before_anything_starts(repository, capsys, given, parts):
    assert cli.main(["sweep", "tour", *(word for text in given for word in ("-p", text))]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert all(part in captured.err for part in parts), captured.err
    assert not (repository / "runs").exists()


@pytest.mark.parametrize(
    "options, part",
    [
        (["--jobs", "-1"], "--jobs is -1"),
        (["--retries", "-1"], "--retries is -1"),
        (["--executor", "slurm"], "--executor is 'slurm': write local or dask://HOST:PORT"),
        (["--executor", "dask://here:1", "--jobs", "2"], "--jobs 2 is for this machine"),
        (["--preset", "smoek"], "did you mean smoke?"),
        (["--out", "notebooks/00_tour.ipynb/x"], "is a file"),
    ],
)
def test_options_that_do_not_fit_are_refused(repository, capsys, options, part):
    assert cli.main(["sweep", "tour", "-p", "seed=0,1", *options]) == 2
    assert part in capsys.readouterr().err
    assert not (repository / "runs").exists()


def test_help_shows_examples_and_needs_neither_dask_nor_pandas():
    code = "import sys, workbench.cli as cli\ntry: cli.main(['sweep', '--help'])\nfinally: print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "examples:\n  workbench sweep tour -p kl_coef=0,.05,.15,.5 -p seed=0:3 --jobs 2\n" in printed
    assert not {"distributed", "pandas", "torch"} & set(printed.split())


# Plans


def test_only_what_depends_on_a_parameter_is_repeated_and_says_so_in_its_name(repository):
    sweep = plan_sweep("tour", ["kl_coef=0,.05", "05_reward_model.seed=0:2"])
    shared, repeated = ["01_pretrain", "02_sft"], ["05_reward_model_seed0", "05_reward_model_seed1"]
    policies = [f"06_free_kl_coef={kl}_seed{seed}" for kl in ("0", "0.05") for seed in (0, 1)]
    assert names(sweep) == [*shared, *repeated, *policies, "12_compare_runs"]
    assert sweep.plan.folder == repository / "runs" / "tour_sweep" and sweep.plan.jobs == 2
    assert set(map(experiment_of, policies)) == {"06_free_kl_coef=0", "06_free_kl_coef=0.05"}
    assert [run["parameters"] for name, run in sweep.record["runs"].items() if name in repeated] == [
        {"seed": 0},
        {"seed": 1},
    ]


def test_every_point_does_what_run_would_do_with_its_values(repository):
    given = ["kl_coef=0,.05", "seed=0:2", "02_sft.world_seed=1,2", "05_reward_model.pairs=7", "01_pretrain.steps=3,4"]
    sweep = plan_sweep("tour", [*given, "06_policy.whiten=true"], out="runs/x", preset_name="smoke")
    stages = {stage.name: stage for stage in sweep.plan.stages}
    path, contents = repository / "notebooks" / "recipes" / "tour.yaml", set()
    assert len(sweep.record["points"]) == 2 * 2 * 2 * 2
    for point in sweep.record["points"]:
        values = point["parameters"]
        written = [f"{name.split('=')[0]}={values[name.split('=')[0].rpartition('.')[2]]}" for name in given[:3]]
        written += ["05_reward_model.pairs=7", f"01_pretrain.steps={values['steps']}", "06_policy.whiten=true"]
        run = recipes.plan_recipe(path, assignments=written, out="runs/x", preset_name="smoke")
        content = {}
        for stage in run.stages[:5]:
            ours = stages[point["folders"][stage.name]]
            expected = {
                name: renamed(value, point["folders"]) if name != "run_dir" else f"runs/x/{ours.name}"
                for name, value in stage.values.items()
            }
            assert ours.values == expected and ours.folder == repository / "runs" / "x" / ours.name
            assert set(ours.needs) == {point["folders"][need] for need in stage.needs}
            plain = {name: renamed(value, content) for name, value in stage.values.items() if name != "run_dir"}
            content[stage.name] = str(hash(json.dumps([stage.notebook.name, plain])))
        contents |= set(content.values())
    assert len(stages) == len(contents) + 1  # nothing runs twice; 12_compare_runs is for all of them


def renamed(value, folders: dict[str, str]):
    """Text with the folders of runs/x called by other names."""
    if not isinstance(value, str):
        return value
    return re.sub(r"runs/x/(\w+)", lambda found: f"runs/x/{folders[found[1]]}", value)


def test_stages_that_come_to_do_the_same_run_once_under_the_shorter_name(repository):
    path = repository / "notebooks" / "recipes" / "tour.yaml"
    path.write_text(path.read_text().replace("06_free", "06_policy_without_a_price"))
    sweep = plan_sweep("tour", ["kl_coef=0,.05"])
    assert [name for name in names(sweep) if name.startswith("06")] == ["06_policy_kl_coef=0", "06_policy_kl_coef=0.05"]
    assert "06_policy_without_a_price: the same work as 06_policy, run once" in sweep.notes
    different = plan_sweep("tour", ["06_policy.kl_coef=0.1,.05"])
    assert next(name for name in names(different) if name.startswith("06")) == "06_policy_without_a_price"


def test_a_larger_grid_keeps_the_folders_of_a_smaller_one(repository):
    small = plan_sweep("tour", ["kl_coef=0,.05", "seed=0:2"])
    large = plan_sweep("tour", ["kl_coef=.5,0,.05", "seed=0:3"])
    ours = {stage.name: stage for stage in large.plan.stages}
    alike = [stage for stage in small.plan.stages if not stage.name.startswith("12")]
    assert all(ours[stage.name] == stage for stage in alike) and len(ours) > len(alike) + 1


def test_what_compares_the_whole_folder_runs_once_after_everything_and_takes_only_values_meant_for_it(repository):
    sweep = plan_sweep("tour", ["kl_coef=0,.05", "seed=3:5"])
    last = sweep.plan.stages[-1]
    assert last.name == "12_compare_runs" and last.values["seed"] == 0
    assert set(last.needs) == set(names(sweep)) - {last.name}
    assert names(plan_sweep("tour", ["prompts_shown=2,3"]))[-3:-1] == [
        "12_compare_runs_prompts_shown=2",
        "12_compare_runs_prompts_shown=3",
    ]


def test_a_stage_that_looks_for_a_repeated_one_by_name_is_left_out_and_named(repository):
    assert "00_tour" in names(plan_sweep("tour", ["12_compare_runs.prompts_shown=2,3"]))
    sweep = plan_sweep("tour", ["06_policy.kl_coef=0,.05"])
    assert "00_tour" not in names(sweep)
    assert any("00_tour: left out" in note and "06_policy" in note for note in sweep.notes)
    assert "00_tour" not in sweep.record["points"][0]["folders"]


def test_worlds_and_seeds_come_last_also_where_the_recipe_has_its_own(repository):
    (repository / "notebooks" / "recipes" / "each.yaml").write_text(
        'each: {seed: [4, 5]}\nstages:\n- {name: "06_ppo_seed{seed}", notebook: 06_policy_gradient, '
        'parameters: {seed: "{seed}"}}\n- {name: "02_sft_seed{seed}", notebook: 02_sft, parameters: {seed: "{seed}"}}\n'
    )
    assert names(plan_sweep("each", ["kl_coef=1,2"]))[:2] == ["06_ppo_kl_coef=1_seed4", "06_ppo_kl_coef=2_seed4"]
    assert names(plan_sweep("each", ["world_seed=0:2"]))[-1] == "02_sft_world1_seed5"
    assert names(plan_sweep("02_sft", ["seed=0:2", "world_seed=3:4"])) == ["02_sft_world3_seed0", "02_sft_world3_seed1"]


def test_values_of_every_kind_make_plain_names_that_differ(repository):
    values = ["a/b", "c/b", "a b", "a_b", "", "x" * 60, "x" * 61, "b"]
    made = names(plan_sweep("06_policy_gradient", [f"model={','.join(values)}", "whiten=false,true"]))
    assert len(set(made)) == 2 * len(values)
    assert all(re.fullmatch(r"[\w.+=-]{1,120}", name) for name in made)
    assert "06_policy_gradient_model=b_whiten=true" in made
    close = names(plan_sweep("06_policy_gradient", ["kl_coef=0.1234567,0.1234568,1e-7,100"]))
    assert [name.split("=")[1] for name in close] == ["0.1234567", "0.1234568", "1e-07", "100"]


def test_paths_given_on_the_command_line_lead_into_the_sweep_as_well(repository):
    sweep = plan_sweep("tour", ["02_sft.seed=0,1", "06_policy.model={out}/02_sft,runs/other/02_sft"], out="runs/x")
    models = {stage.name: stage.values["model"] for stage in sweep.plan.stages if stage.name.startswith("06_policy")}
    assert set(models.values()) == {"runs/x/02_sft_seed0", "runs/x/02_sft_seed1", "runs/other/02_sft"}
    assert len(models) == 4  # the reward model of every one of them depends on the seed


def test_a_notebook_alone_is_swept_into_folders_of_its_own(repository):
    sweep = plan_sweep("06", ["kl_coef=0,1", "seed=7"])
    assert [stage.values["run_dir"] for stage in sweep.plan.stages] == [
        f"runs/06_policy_gradient_sweep/06_policy_gradient_kl_coef={kl}" for kl in (0, 1)
    ]
    assert all(stage.values["seed"] == 7 for stage in sweep.plan.stages)
    with pytest.raises(WorkbenchError, match=r"06_policy_gradient has no parameter kl_coeff \(did you mean kl_coef"):
        plan_sweep("06", ["kl_coeff=0,1"])


def test_a_folder_that_holds_other_work_is_refused_before_anything_is_written(repository, capsys):
    folder = repository / "runs" / "x" / "02_sft_seed1"
    put(folder / "run.json", json.dumps({"parameters": {"seed": 5}}))
    put(folder / "metrics.jsonl", '{"step": 1}\n')
    assert cli.main(["sweep", "tour", "-p", "seed=0:2", "--out", "runs/x"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "holds a run with seed=5 where now seed=1 is asked for" in captured.err
    assert os.listdir(repository / "runs" / "x") == ["02_sft_seed1"]


def test_the_table_needs_a_sweep(tmp_path):
    with pytest.raises(WorkbenchError, match=r"holds no sweep.json: give the folder of a `workbench sweep`"):
        sweep_table(tmp_path)
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(WorkbenchError, match="is damaged"):
        sweep_table(tmp_path)


# Executions

BASE = "import json, pathlib\npathlib.Path(run_dir, 'summary.json').write_text(json.dumps({'size': size}))"
FAILS = """
import json, pathlib
folder = pathlib.Path(run_dir)
with open(folder / "attempts", "a") as file:
    file.write("x")
attempts = len((folder / "attempts").read_text())
size = json.loads(pathlib.Path(base, "summary.json").read_text())["size"]
(folder / "summary.json").write_text('{"score": -1}')
assert kl_coef != 1 or attempts > 1, "the first attempt fails"
assert kl_coef != 2 or (folder.parent / "repaired").exists(), "not repaired"
(folder / "summary.json").write_text(json.dumps({"score": size + kl_coef, "kl_coef": kl_coef, "who": "nobody"}))
"""


@pytest.fixture
def small(tmp_path):
    """A recipe of three stages: a base, a policy that fails at some coefficients, and one that reads the policy."""
    write_notebook(tmp_path / "base.ipynb", BASE, parameters=RUN_DIR + "size: int = 10\n")
    write_notebook(
        tmp_path / "policy.ipynb",
        FAILS,
        parameters=RUN_DIR + 'base: str = ""\nkl_coef: float = 9.0\nflag: bool = False',
    )
    write_notebook(
        tmp_path / "after.ipynb", "assert open(f'{policy}/summary.json')", parameters=RUN_DIR + 'policy: str = ""'
    )
    (tmp_path / "small.yaml").write_text(
        f"out: '{tmp_path}/out'\nstages:\n- {{notebook: base.ipynb}}\n"
        "- {notebook: policy.ipynb, parameters: {base: '{out}/base'}}\n"
        "- {notebook: after.ipynb, parameters: {policy: '{out}/policy'}}\n"
    )
    return tmp_path


def swept(repository: Path, *options: str) -> tuple[int, pd.DataFrame]:
    """Exit code and sweep.csv by folder."""
    code = cli.main(["sweep", str(repository / "small.yaml"), "--jobs", "2", *options])
    return code, pd.read_csv(repository / "out_sweep" / "sweep.csv").set_index("folder")


def test_one_failed_point_stops_only_what_needs_it_and_the_same_command_tries_it_again(small, capsys):
    out = small / "out_sweep"
    code, table = swept(small, "-p", "kl_coef=2,0,1", "--retries", "1")
    captured = capsys.readouterr()
    assert code == 1
    status = {Path(folder).name: status for folder, status in table["status"].items()}
    fine = ("base", "policy_kl_coef=0", "policy_kl_coef=1", "after_kl_coef=0", "after_kl_coef=1")
    assert status == {name: "finished" for name in fine} | {"policy_kl_coef=2": "failed", "after_kl_coef=2": "skipped"}
    assert captured.out.startswith(f"3 points, 7 stages in {out}\n") and captured.out.endswith(f"{out}/sweep.csv\n")
    assert "5 of 7 stages done, 1 failed" in captured.out and re.search(r"about \d+ s left", captured.out)
    assert captured.out.count("base started") == 1 and "policy_kl_coef=1 retry 1 of 1" in captured.out
    last = captured.err.splitlines()[-4:]
    assert last[0] == "1 of 7 stages failed, 1 were not run because they need them:"
    assert "policy_kl_coef=2 failed in cell [3]: AssertionError: not repaired" in last[1]
    assert last[2] == "  after_kl_coef=2 needs policy_kl_coef=2."
    broken = table.loc[str(out / "policy_kl_coef=2")]
    assert "not repaired" in broken["problem"] and pd.isna(broken["score"])
    assert list(table.columns[:4]) == ["kl_coef", "stage", "status", "problem"] and "who" not in table

    (out / "repaired").touch()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("*/notebook.ipynb")}
    code, table = swept(small, "-p", "kl_coef=0,1,2,3")
    printed = capsys.readouterr().out
    assert code == 0 and len(table) == 9 and set(table["status"]) == {"finished"}
    assert printed.count("finished before, skipped") == 5 and len(finished) == 5
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    policies = table[table["stage"] == "policy"]
    assert list(policies["score"]) == [10, 11, 12, 13] and list(policies["summary_kl_coef"]) == [0, 1, 2, 3]
    assert pd.isna(table.loc[str(out / "base"), "kl_coef"]) and table.loc[str(out / "base"), "size"] == 10
    assert sorted(os.listdir(out)) == sorted(
        [".sweep.lock", "repaired", "sweep.csv", "sweep.json", *(Path(folder).name for folder in table.index)]
    )


def test_ctrl_c_stops_in_order_and_a_second_sweep_into_the_folder_is_refused(tmp_path):
    write_notebook(
        tmp_path / "slow.ipynb",
        "import time\nopen(run_dir + '/here', 'w')\ntime.sleep(100)",
        parameters=RUN_DIR + "n: int = 0",
    )
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "workbench.cli",
        "sweep",
        str(tmp_path / "slow.ipynb"),
        "-p",
        "n=0:3",
        "--out",
        out,
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for((out / "slow_n=0" / "here").exists)
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 2 and second.stdout == ""
    assert (
        second.stderr
        == f"workbench: Another process is writing in {out}: wait until it ends or choose another folder.\n"
    )
    process.send_signal(signal.SIGINT)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert message == "stopped at stage slow_n=0: run the same command again to continue\n"
    assert list(pd.read_csv(out / "sweep.csv")["status"]) == ["stopped", "not run", "not run"]
    assert not list(out.glob("*/*.ipynb")) and not (out / ".sweep.ticket").exists()
