"""What a recipe's stages did to skills and what they cost, against arithmetic by hand; and every recipe as a plan."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from workbench import WorkbenchError
from workbench.runs import Run
from workbench.studies.recipes import plot_stage_costs, read_contrasts, skill_effects, stage_costs

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
