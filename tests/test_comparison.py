"""Policies side by side and in summary; oracles: tables small enough to count, gold that its components add up to."""

import random

import numpy as np
import pandas as pd
import pytest

from workbench import WorkbenchError
from workbench.analysis.evaluations import gold_components, side_by_side, summarise_evaluation

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
