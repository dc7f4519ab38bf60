"""Runs as points and over seeds: hand-made tables with known means."""

import math

import pandas as pd
import pytest

from workbench.analysis import frontier
from workbench.errors import WorkbenchError
from workbench.runs import Run

PROMPTS = ("a", "b", "c", "d")


def evaluation(gold: dict[float, list[float]], *, kl=0.0, proxy=None, method="PPO") -> pd.DataFrame:
    """A table as `evaluate_at_temperatures` makes it, gold by temperature."""
    frames = []
    for temperature, values in gold.items():
        frame = pd.DataFrame({"prompt": PROMPTS, "completion": "x", "completion_length": 3, "gold": values})
        frames.append(frame.assign(temperature=temperature, kl=kl if temperature == 1 else math.nan, method=method))
    table = pd.concat(frames, ignore_index=True)
    return table if proxy is None else table.assign(proxy=proxy)


@pytest.fixture
def save(tmp_path):
    """Writes a run with the given tables and summary and returns it as it is read back."""

    def saved(name: str, *, before=None, after=None, summary=None) -> Run:
        run = Run.open(tmp_path / name, {"model": "runs/sft", "seed": int(name[-1]) if name[-1].isdigit() else 0})
        for table, frame in (("evaluation_before", before), ("evaluation", after)):
            if frame is not None:
                run.save_table(table, frame)
        run.summary(summary or {"x": 1.0})
        run.finish()
        return Run.read(tmp_path / name)

    return saved


def three_seeds(save) -> list[Run]:
    """Gains of 1, 2 and 6 at temperature 1, of 0, 1 and -1 at greedy, from starts that differ."""
    runs = []
    for seed, (start, gain, greedy) in enumerate([(0.0, 1.0, 0.0), (5.0, 2.0, 1.0), (1.0, 6.0, -1.0)]):
        base = [start, start + 1, start + 2, start + 3]
        before = evaluation({1.0: base, 0.0: base}, method="SFT")
        after = {1.0: [value + gain for value in base], 0.0: [value + greedy for value in base]}
        runs.append(save(f"ppo_seed{seed}", before=before, after=evaluation(after, kl=float(seed))))
    return runs


def test_gains_are_means_over_seeds_of_the_difference_to_each_runs_own_start(save):
    row = frontier.gains_over_seeds(three_seeds(save)).to_dict("records")
    assert len(row) == 1 and row[0]["run"] == "ppo" and row[0]["runs"] == 3 and row[0]["seeds_above"] == 3
    assert row[0]["gain"] == pytest.approx(3.0)
    assert row[0]["gain_se"] == pytest.approx(math.sqrt(7 / 3))  # of 1, 2, 6: variance 7
    assert (row[0]["greedy_gain"], row[0]["greedy_gain_se"]) == pytest.approx((0.0, math.sqrt(1 / 3)))
    assert (row[0]["kl"], row[0]["kl_se"]) == pytest.approx((1.0, math.sqrt(1 / 3)))
    assert row[0]["gold"] == pytest.approx((2.5 + 8.5 + 8.5) / 3)


def test_a_single_run_has_the_error_of_paired_differences_over_prompts(save):
    before = evaluation({1.0: [0.0, 10.0, 20.0, 30.0], 0.0: [0.0] * 4})
    after = evaluation({1.0: [1.0, 11.0, 21.0, 35.0], 0.0: [0.0] * 4})
    row = frontier.gains_over_seeds([save("only", before=before, after=after)]).iloc[0]
    assert row["gain"] == 2.0 and row["gain_se"] == pytest.approx(1.0)  # of 1, 1, 1, 5: variance 4 over 4 prompts
    assert row["runs"] == 1 and row["seeds_above"] == 1


def test_a_policy_that_lost_is_not_counted_as_above_and_runs_without_evaluation_are_passed_over(save):
    before = evaluation({1.0: [1.0] * 4, 0.0: [1.0] * 4})
    lost = save("dpo", before=before, after=evaluation({1.0: [0.0] * 4, 0.0: [2.0] * 4}))
    table = frontier.gains_over_seeds([lost, save("sft")])
    assert table["run"].tolist() == ["dpo"]
    assert (table["gain"].iloc[0], table["greedy_gain"].iloc[0], table["seeds_above"].iloc[0]) == (-1.0, 1.0, 0)


def test_without_gold_the_gain_is_the_proxys(save):
    before = evaluation({1.0: [0.0] * 4, 0.0: [0.0] * 4}, proxy=1.0).drop(columns="gold")
    after = evaluation({1.0: [0.0] * 4, 0.0: [0.0] * 4}, proxy=4.0).drop(columns="gold")
    row = frontier.gains_over_seeds([save("ppo", before=before, after=after)]).iloc[0]
    assert row["gain"] == 3.0 and "gold" not in row


def test_runs_without_any_evaluation_get_a_sentence(save):
    with pytest.raises(WorkbenchError, match="None of these runs holds an evaluation"):
        frontier.gains_over_seeds([save("sft")])


def test_summaries_over_seeds_put_together_what_differs_only_in_the_seed(save):
    runs = [save(f"rm_seed{seed}", summary={"accuracy": value}) for seed, value in enumerate((0.7, 0.8, 0.9))]
    table = frontier.summaries_over_seeds([*runs, save("rm_other", summary={"accuracy": 0.5})]).set_index("stage")
    assert table.loc["rm", ["runs", "mean", "lowest", "highest"]].tolist() == pytest.approx([3, 0.8, 0.7, 0.9])
    assert table.loc["rm", "standard_error"] == pytest.approx(0.1 / math.sqrt(3))
    assert math.isnan(table.loc["rm_other", "standard_error"])


def test_curves_over_seeds_average_each_temperature(save):
    curves = frontier.curves_over_seeds({run.name: run.table("evaluation") for run in three_seeds(save)})
    assert curves["run"].unique().tolist() == ["ppo"] and curves["runs"].tolist() == [3, 3]
    hot = curves.set_index("temperature").loc[1.0]
    assert hot["gold"] == pytest.approx((2.5 + 8.5 + 8.5) / 3) and hot["gold_se"] == pytest.approx(2.0)


def test_points_hold_the_start_once_and_every_policy(save):
    points = frontier.run_points(three_seeds(save)).set_index("run")
    assert points.index.tolist() == ["sft", "ppo_seed0", "ppo_seed1", "ppo_seed2"]
    assert points.loc["ppo_seed2", "kl"] == 2.0 and points.loc["ppo_seed1", "greedy_gold"] == pytest.approx(7.5)
