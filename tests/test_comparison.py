"""Policies side by side and in summary; oracles: tables small enough to count, gold that its components add up to."""

import json
import random

import numpy as np
import pandas as pd
import pytest

from workbench import WorkbenchError
from workbench.analysis.evaluations import gold_components, side_by_side, summarise_evaluation
from workbench.runs import Run
from workbench.studies.comparison import reuse

KINDS = ["qa", "qa", "qa", "math", "math", "harm"]


def evaluation(gold, *, name, kinds=KINDS, temperatures=(1.0, 0.0)):
    rows = [
        {"prompt": f"prompt {row}", "completion": f"{name} {row} at {temperature:g}", "kind": kind}
        | {"gold": value, "temperature": temperature}
        for temperature in temperatures
        for row, (value, kind) in enumerate(zip(gold, kinds, strict=False))
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def two():
    before = evaluation([0.0, 0.0, 0.0, 0.0, 0.0, 0.0], name="before")
    return {"before": before, "after": evaluation([0.5, 1.0, -2.0, 0.5, -1.0, 3.0], name="after")}


def test_each_row_shows_one_prompt_with_its_completions_and_scores(two):
    table = side_by_side(two, count=6)
    for row in table.itertuples(index=False):
        number = int(row[0].removeprefix("prompt "))
        assert row[1:2] + row[3:] == (f"before {number} at 1", f"after {number} at 1", two["after"]["gold"][number])
    assert table.columns.tolist() == ["prompt", "before", "before gold", "after", "after gold"]


def test_kinds_take_turns_and_the_largest_fall_comes_last(two):
    table = side_by_side(two, count=4)
    assert table["prompt"].tolist() == ["prompt 0", "prompt 3", "prompt 5", "prompt 2"]
    assert (table["after gold"] - table["before gold"]).iloc[-1] == -2


def test_no_prompt_comes_twice_even_if_the_largest_fall_is_the_first(two):
    two["after"] = evaluation([-9.0, 0, 0, 0, 0, 0], name="after")
    table = side_by_side(two, count=6)
    assert sorted(table["prompt"]) == [f"prompt {row}" for row in range(6)]
    assert table["prompt"].iloc[-1] == "prompt 0"


def test_the_fall_is_counted_from_the_first_policy_to_the_last(two):
    two["before"] = evaluation([4.0, 0, 0, 0, 0, 0], name="before")
    two["after"] = evaluation([0.5, 0, -2.0, 0, 0, 0], name="after")
    assert side_by_side(two, count=3)["prompt"].iloc[-1] == "prompt 0"
    two["later"] = evaluation([4.0, -5.0, 0, 0, 0, 0], name="later")
    assert side_by_side(two, count=3)["prompt"].iloc[-1] == "prompt 1"


def test_one_policy_alone_every_prompt_and_another_temperature_can_be_asked_for(two):
    assert len(side_by_side({"before": two["before"]}, count=3)) == 3
    assert len(side_by_side(two, count=50)) == 6
    assert side_by_side(two, temperature=0.0)["after"].str.endswith("at 0").all()
    with pytest.raises(WorkbenchError, match=r"temperature 0.7.*\[1.0, 0.0\]"):
        side_by_side(two, temperature=0.7)


def test_without_gold_the_proxy_decides_and_without_both_the_texts_are_shown(two):
    proxies = {name: frame.rename(columns={"gold": "proxy"}) for name, frame in two.items()}
    assert side_by_side(proxies, count=2)["prompt"].tolist() == ["prompt 0", "prompt 2"]
    bare = {name: frame.drop(columns=["gold", "kind"]) for name, frame in two.items()}
    assert side_by_side(bare, count=2).columns.tolist() == ["prompt", "before", "after"]


def test_only_common_scores_and_prompts_are_compared_and_other_prompts_refused(two):
    without = two | {"after": two["after"].drop(columns="gold")}
    assert side_by_side(without).columns.tolist() == ["prompt", "before", "after"]
    fewer = two | {"after": evaluation([0.0, -1.0], name="after")}
    assert side_by_side(fewer, count=6)["prompt"].tolist() == ["prompt 0", "prompt 1"]
    two["after"]["prompt"] = two["after"]["prompt"].tolist()[::-1]
    with pytest.raises(WorkbenchError, match="'after' answers other prompts than 'before'"):
        side_by_side(two)


def test_components_add_up_to_the_gold_reward(world):
    rng = random.Random(0)
    frame = pd.DataFrame(world.prompts(40, rng))
    frame["completion"] = [world.answer(prompt, rng.random(), rng) for prompt in frame["prompt"]]
    frame["finished"] = [row % 4 > 0 for row in range(40)]
    gold = world.gold(frame["prompt"].tolist(), frame["completion"].tolist(), finished=frame["finished"].tolist())
    table = gold_components(world, {"all": frame, "first": frame.head(10)})
    expected = {"all": np.mean(gold), "first": np.mean(gold[:10])}
    assert table.groupby("run")["value"].sum().to_dict() == pytest.approx(expected)
    unended = table[(table["run"] == "all") & (table["component"] == "finish")]["value"].item()
    assert unended == pytest.approx(-0.5 * 10 / 40)


def test_a_summary_has_the_mean_and_its_error_at_each_temperature():
    frame = evaluation([1.0, 2.0, 3.0, 6.0], name="x")
    frame.loc[frame["temperature"] == 0, "gold"] = 5.0
    table = summarise_evaluation(frame).set_index("temperature")
    assert table.index.tolist() == [1.0, 0.0]
    assert table.loc[1.0, ["count", "gold", "gold_se"]].tolist() == pytest.approx([4, 3.0, (14 / 3 / 4) ** 0.5])
    assert table.loc[0.0, ["gold", "gold_se"]].tolist() == [5.0, 0.0]
    frame = evaluation([1.0, 2.0], name="x").assign(kl=[0.5, 1.5, np.nan, np.nan])
    table = summarise_evaluation(frame).set_index("temperature")  # what was not measured is left out
    assert table.loc[1.0, "kl"] == 1.0 and np.isnan(table.loc[0.0, "kl"]) and "proxy" not in table


def ppo_run(folder, name, *, passes, cliprange=0.2, algorithm="ppo", golds=(0.1, 0.2, 0.6, 0.7), clipped=0.1, world=0):
    (folder / name).mkdir()
    given = {"cliprange": cliprange, "num_ppo_epochs": passes, "algorithm": algorithm, "batch_size": 32, "steps": 8}
    record = {"parameters": given | {"world_seed": world}, "seed": 0, "status": "finished", "cpu_seconds": 40.0}
    (folder / name / "run.json").write_text(json.dumps(record))
    rows = [{"step": step, "clip_fraction": clipped * (step > 4)} for step in range(1, 9)]
    for row, gold in zip(rows[1::2], golds, strict=True):
        row["held_out_gold"] = gold
    (folder / name / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return Run.read(folder / name)


def test_reuse_counts_samples_and_seconds_and_averages_the_last_three_measurements_over_units(tmp_path):
    runs = {
        "06_wide_world0": ppo_run(tmp_path, "06_wide_world0", passes=4, cliprange=1000.0, clipped=0.0),
        "06_wide_world1": ppo_run(tmp_path, "06_wide_world1", passes=4, cliprange=1000.0, clipped=0.0, world=1),
        "06_once": ppo_run(tmp_path, "06_once", passes=1, golds=(0.0, 0.3, 0.3, 0.9)),
        "06_penalty": ppo_run(tmp_path, "06_penalty", passes=1, algorithm="ppo_penalty", golds=(0.9, 0.1, 0.2, 0.3)),
        "06_own": ppo_run(tmp_path, "06_own", passes=-1),  # the algorithm's own number is not in the run
    }
    rows = reuse.reuse_rows(runs)
    assert set(rows["run"]) == set(runs) - {"06_own"}
    once = rows[rows["run"] == "06_once"]
    assert once[["samples", "seconds"]].to_numpy().tolist() == [[64, 10], [128, 20], [192, 30], [256, 40]]
    ends = reuse.reuse_ends(rows).set_index(["passes", "clip"])
    assert ends.loc[(1, "0.2"), "value"] == pytest.approx(0.5)
    assert ends.loc[(1, "0.2"), "clip_fraction"] == pytest.approx(0.05)  # half of the steps clip a tenth
    assert ends.loc[(4, "none"), "runs"] == 2 and ends.loc[(4, "none"), "value"] == pytest.approx(0.5)
    assert (1, "penalty") in ends.index
    beyond = reuse.reuse_effects(rows).set_index("label")
    assert beyond["value"].to_dict() == pytest.approx(
        {
            "clip none, passes 4 less clip 0.2, passes 1": 0.0,  # both runs of world 0 end at .5
            "clip penalty, passes 1 less clip 0.2, passes 1": -0.3,
        }
    )
    assert beyond["units"].tolist() == [1, 1]  # in world 1 nothing stands beside it
    figure = reuse.plot_reuse(rows)
    assert [note.text for note in figure.layout.annotations[2:5]] == ["clip 0.2", "no clip", "penalty on KL"]
    assert list(figure.layout.xaxis.categoryarray) == ["0.2", "no clip", "penalty on KL"]
    assert "at most 5.0% of tokens are outside" in figure.layout.title.text.replace("<br>", " ")
    with pytest.raises(WorkbenchError, match="no two runs of 06 differ in num_ppo_epochs and cliprange"):
        reuse.reuse_rows({"06_once": runs["06_once"]})
