"""What a recipe's stages did to skills and what they cost, against arithmetic by hand; and every recipe as a plan."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from workbench import WorkbenchError
from workbench.feedback.session import COLLECTED
from workbench.pipeline import recipes
from workbench.pipeline.schedule import refuse_what_can_not_run
from workbench.runs import Run
from workbench.runs.files import repository_root
from workbench.studies.recipes import plot_stage_costs, read_contrasts, skill_effects, stage_costs
from workbench.trainers import direct_alignment, reward_model

VALUES = {  # share of sums that are right, in worlds 0, 1, 2
    "01_pretrain": [0.2, 0.3, 0.1],
    "02_sft": [0.4, 0.5, 0.3],
    "06_rlvr": [0.8, 0.8, 0.7],
}


def skills(values=VALUES, seeds=(0,)) -> pd.DataFrame:
    rows = [
        {"experiment": name, "skill": "sums", "part": part, "world": world, "seed": seed, "temperature": 1.0,
         "value": value + (part == "worked")}
        for name, each in values.items()
        for world, value in enumerate(each)
        for seed in (seeds if name != "01_pretrain" else (world,))
        for part in ("right", "worked")
    ]  # fmt: skip
    greedy = pd.DataFrame(rows).assign(temperature=0.0, value=9.0)
    return pd.concat([pd.DataFrame(rows), greedy], ignore_index=True)


def test_a_contrast_is_the_mean_difference_within_units_with_students_interval():
    (found,) = skill_effects(skills(), "06_rlvr - 02_sft: sums: right").to_dict("records")
    differences = np.array([0.4, 0.3, 0.4])
    low, high = stats.t.interval(0.95, 2, differences.mean(), stats.sem(differences))
    assert (found["value"], found["low"], found["high"]) == pytest.approx((differences.mean(), low, high))
    assert (found["group"], found["level"], found["units"]) == ("06 rlvr less 02 SFT", "sums: right", 3)
    assert found["sentence"].startswith("06 rlvr less 02 SFT, sums: right: difference: +0.367 (")


def test_what_ran_once_per_world_is_compared_with_every_seed_of_its_world():
    (found,) = skill_effects(skills(seeds=(0, 1)), "06_rlvr - 01_pretrain: sums: worked").to_dict("records")
    assert found["units"] == 6 and found["worlds"] == 3
    assert found["value"] == pytest.approx(np.mean([0.6, 0.5, 0.6]))


def test_a_skill_takes_all_of_its_parts_and_temperatures_stay_apart():
    found = skill_effects(skills(), "06_rlvr - 02_sft: sums; 02_sft - 01_pretrain: sums: right", temperature=0.0)
    assert [*found["level"]] == ["sums: right", "sums: worked", "sums: right"]
    assert found["value"].tolist() == [0.0, 0.0, 0.0]
    assert skill_effects(skills(), "").empty and read_contrasts(" ; ") == []


@pytest.mark.parametrize(
    ("contrasts", "said"),
    [
        ("06_rlvr: sums", "contrasts holds '06_rlvr: sums': write \"08_dpo - 02_sft: sums, gold"),
        ("06_rlvr - 02_sft", "contrasts holds"),
        ("06_rlvr - 02_stf: sums", "contrasts names '02_stf': choose from 01_pretrain, 02_sft, 06_rlvr"),
        ("06_rlvr - 02_sft: sumz", "contrasts names the skill 'sumz': choose from sums"),
    ],
)
def test_contrasts_that_can_not_be_made_are_refused_in_a_sentence(contrasts, said):
    with pytest.raises(WorkbenchError, match=said):
        skill_effects(skills(), contrasts)


def test_costs_are_cpu_seconds_of_a_unit_and_their_shares(tmp_path):
    for name, seconds in {"01_pretrain_world0": 60, "02_sft_world0_seed0": 10, "02_sft_world0_seed1": 30}.items():
        folder = tmp_path / name
        folder.mkdir()
        record = {"parameters": {}, "seed": 0, "status": "finished", "cpu_seconds": seconds}
        (folder / "run.json").write_text(json.dumps(record))
    costs = stage_costs({path.name: Run.read(path) for path in sorted(tmp_path.iterdir())})
    assert costs.to_dict("list") == {
        "experiment": ["01_pretrain", "02_sft"], "runs": [1, 2], "seconds": [60.0, 20.0], "share": [0.75, 0.25],
    }  # fmt: skip
    figure = plot_stage_costs(costs)
    assert figure.layout.title.text.startswith("<b>01 pretrain takes 75% of 80 CPU seconds a unit")
    assert [*figure.data[0].text] == ["75%", "25%"]


# Recipes as plans

SHIPPED = repository_root() / "notebooks" / "recipes"
OURS = ("checkpoints", "instructgpt", "llama2", "llama3", "merge", "online", "r1", "skip", "tulu3")


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_recipe_says_in_a_line_of_the_list_what_it_is_for(path):
    title = recipes.read_recipe(path)["title"]
    assert 20 < len(title) <= 100 and title != path.stem


def planned(path, out: str):
    plan = recipes.plan_recipe(path, assignments=[], out=out, preset_name="smoke")
    refuse_what_can_not_run(plan)
    return plan


def test_a_notebook_opened_after_the_tour_goes_on_with_the_run_that_it_names():
    plan = recipes.plan_recipe(
        repository_root() / "notebooks" / "recipes" / "tour.yaml", assignments=[], out="", preset_name=""
    )
    named = [stage for stage in plan.stages if stage.notebook.defaults["run_dir"] == f"runs/tour/{stage.name}"]
    assert len(named) == len(plan.stages) - 1  # all but the policy that pays nothing for KL
    for stage in named:
        assert stage.values == stage.notebook.defaults, stage.name


def test_recipes_of_one_folder_share_stages_so_that_what_one_made_is_not_made_again(tmp_path):
    stages = {}
    for name in OURS:
        for stage in planned(SHIPPED / f"{name}.yaml", str(tmp_path)).stages:
            stages.setdefault(stage.name, []).append((name, stage.notebook.name, stage.values))
    shared = {name: made for name, made in stages.items() if len(made) > 1}
    assert {"01_pretrain_world0", "02_sft_world0_seed0", "06_rlvr_sft_world0_seed0"} <= shared.keys()
    for name, made in shared.items():
        assert all(other[1:] == made[0][1:] for other in made), f"{name} is not the same stage in all recipes"


def test_only_in_the_preset_smoke_r1_learns_from_other_than_right_sums(tmp_path):
    for preset, reward in {"": "task:sums", "smoke": "task:gold"}.items():
        plan = recipes.plan_recipe(SHIPPED / "r1.yaml", assignments=[], out=str(tmp_path), preset_name=preset)
        found = {stage.values["reward_model"] for stage in plan.stages if stage.notebook.name == "07_best_of_n"}
        assert found == {reward}


@pytest.mark.parametrize("name", OURS)
def test_what_a_recipe_claims_is_about_policies_that_it_makes(name, tmp_path):
    plan = planned(SHIPPED / f"{name}.yaml", str(tmp_path))
    made = {stage.name.partition("_world")[0] for stage in plan.stages if {"model", "preset"} & set(stage.values)}
    (claims,) = (stage.values["contrasts"] for stage in plan.stages if stage.notebook.name == "15_recipes")
    compared = {name for first, second, _ in read_contrasts(claims) for name in (first, second)}
    assert compared and compared <= made
    (measured,) = (stage for stage in plan.stages if stage.notebook.name == "14_skills")
    assert set(measured.needs) == {stage.name for stage in plan.stages} - {f"14_{name}", f"15_{name}"}


@pytest.mark.parametrize(
    ("dataset", "settings", "said"),
    [
        (
            "03_a",
            {"objective": "rating"},
            'learns from ratings .rating., but 03_a, .* makes pairs: give 03_a kinds: "pairs,r',
        ),
        ("03_a", {"objective": "plackett_luce"}, "learns from rankings"),
        ("03_a", {"objective": "bradley_terry_margin"}, "learns from margins"),
        ("03_a", {"objective": "process"}, "learns from steps"),
        ("03_b", {"objective": "rating"}, "learns from ratings .* makes pairs,margins: give 03_b"),
        ("02_a", {}, "learns from pairs .bradley_terry., but 02_a, .* makes no feedback: read a stage of 03_pref"),
        ("03_b", {"objective": "bradley_terry_margin"}, ""),
        ("03_a", {"objective": "outcome"}, ""),
    ],
)
def test_a_stage_that_asks_for_feedback_that_no_stage_makes_is_refused_before_anything_runs(
    dataset, settings, said, tmp_path
):
    model = str(tmp_path / "model")
    (tmp_path / "model").mkdir()
    reads = {"model": model, "policy": model, "dataset": f"{{out}}/{dataset}"} | settings
    stages = [
        {"name": "02_a", "notebook": "02_sft", "parameters": {"model": model}},
        {"name": "03_a", "notebook": "03_preferences", "parameters": {"model": model}},
        {"name": "03_b", "notebook": "03_preferences", "parameters": {"model": model, "kinds": "pairs,margins"}},
        {"name": "05_c", "notebook": "05_reward_model", "parameters": reads},
    ]
    path = tmp_path / "asked.yaml"
    path.write_text(json.dumps({"stages": stages}))
    if not said:
        assert planned(path, str(tmp_path / "out")).stages[-1].needs == (dataset,)
        return
    with pytest.raises(WorkbenchError, match=f"Stage 05_c {said}"):
        planned(path, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_feedback_of_objectives_and_losses_is_that_of_their_tables():
    kinds = {"pairs": "pairs", "labelled": "pairs", "rankings": "rankings", "ratings": "ratings", "steps": "steps"}
    tables = {name: kinds[row.data] for name, row in (reward_model.OBJECTIVES | direct_alignment.LOSSES).items()}
    tables["bradley_terry_margin"] = "margins"
    assert {name: recipes.FEEDBACK.get(name, "pairs") for name in tables} == tables
    assert set(recipes.FEEDBACK.values()) < set(COLLECTED)
