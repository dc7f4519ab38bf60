"""The studies from nothing at smoke size, as `make study` runs them: every stage, both notebooks, the report."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.pipeline.recipes import Plan, plan_recipe
from workbench.runs.files import repository_root

STUDY = repository_root() / "notebooks" / "recipes" / "study.yaml"
FIRST_OF_EACH = "other: [101], pairs: [250], size: [llama-32x1], labeler: [ana], kl_coef: [0], ensemble: [uncertainty]"
OTHERS = "05_(?:seed102|pairs1000|scratch_llama-(?:64x2|96x3)|labeler_(?:chi|dev))_"


def thinned(folder: Path) -> Path:
    """The study's recipe with the first value of each of its lists, and only those runs named that are then made."""
    text, given = re.subn(r"(?<=seed: \[0\])\}\}(?=\}\s)", f", {FIRST_OF_EACH}}}}}", STUDY.read_text())
    text = re.sub(rf",\s*\{{out\}}/{OTHERS}world\{{world\}}_seed\{{seed\}}", "", text)
    assert given == 1 and not re.search(OTHERS, text)
    recipe = folder / "study.yaml"
    recipe.write_text(text)
    return recipe


def command(folder: Path) -> list[str]:
    """The smallest study, whose answers are short but for those that are compared."""
    lengths = ["-p", "max_completion_length=12", "-p", "03_preferences_world0_seed0.max_completion_length=40"]
    run = [sys.executable, "-m", "workbench.cli", "run", str(thinned(folder.parent)), "--preset", "smoke"]
    return [*run, *lengths, "--out", str(folder)]


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> tuple[Path, str]:
    """The folder of the smallest study and what its command printed."""
    folder = tmp_path_factory.mktemp("study")
    ended = subprocess.run(command(folder), capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    return folder, ended.stdout


def planned(recipe: Path, out: Path, preset: str = "smoke") -> Plan:
    return plan_recipe(recipe, assignments=[], out=str(out), preset_name=preset)


@pytest.mark.parametrize(("preset", "count"), [("smoke", 40), ("", 300)])
def test_every_stage_of_the_whole_recipe_reads_only_what_earlier_ones_make(preset, count, tmp_path):
    made = {tmp_path, repository_root() / "data" / "world"}
    stages = planned(STUDY, tmp_path, preset).stages
    for stage in stages:
        assert stage.inputs or stage.notebook.name == "01_pretrain"
        assert set(stage.inputs) <= made, stage.name
        made.add(stage.folder)
    assert len(stages) == count


@pytest.mark.parametrize("recipe", sorted(STUDY.parent.glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("preset", ["", "smoke"])
def test_every_recipe_that_is_shipped_can_be_planned(recipe, preset, tmp_path):
    assert planned(recipe, tmp_path, preset).stages


def test_the_thinned_recipe_has_every_kind_of_stage_of_the_whole_one(tmp_path):
    recipes = STUDY, thinned(tmp_path)
    whole, few = (
        {(stage.notebook.name, *sorted(stage.given)) for stage in planned(recipe, tmp_path / "study").stages}
        for recipe in recipes
    )
    assert whole == few


def test_every_stage_of_the_study_finishes(study):
    folder, printed = study
    records = [json.loads(path.read_text()) for path in folder.glob("*/run.json")]
    assert len(records) == printed.count("... done in") == 27
    assert {record["status"] for record in records} == {"finished"}


def test_the_report_shows_the_two_studies_and_nothing_else(study):
    pages = {path.name for path in (study[0] / "report").glob("*.html")}
    assert pages == {"index.html", "09_kl_budget.html", "10_overoptimization.html"}


def test_every_policy_left_its_path_and_every_pool_was_judged_by_all(study):
    folder, _ = study
    for run in (*folder.glob("06_*"), *folder.glob("08_*"), *folder.glob("13_*")):
        rows = [json.loads(line) for line in (run / "tables" / "measured.jsonl").read_text().splitlines()]
        rows = [row for row in rows if row["draw"] == "path"]
        assert rows[0]["step"] == 0
        assert {"kl", "kl_k1", "kl_k3", "proxy", "gold", "gold_helpful"} <= set(rows[0])
        assert sum(abs(row["kl"]) for row in rows if row["step"] == 0) < 1e-4
    pool = json.loads((folder / "07_best_of_n_world0_seed0" / "tables" / "pool.jsonl").open().readline())
    reward_models = {path.name for path in folder.glob("05_*")} - {"05_reward_model_world0_seed0"}
    assert {name.removeprefix("judge_") for name in pool if name.startswith("judge_")} == reward_models
    assert len(reward_models) == 6


def test_the_same_command_again_repeats_nothing(study):
    folder, _ = study
    printed = subprocess.run(command(folder), capture_output=True, text=True, timeout=300).stdout
    assert printed.count("finished before, skipped") == 27
