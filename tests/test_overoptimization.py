"""Oracles: paths whose true course is planted, cases computed by hand, simulation."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from workbench import WorkbenchError
from workbench.analysis.overoptimization import held_out_peak, path_means, peak_and_fall, rise_and_fall

RISE_AND_FALL = [0.0, 0.3, 0.5, 0.2, -0.4]


def simulated_path(course, *, prompts=40, noise=0.5, seed=0):
    """A table path whose expected gold per step is `course`; kl grows by 2 nats a step, proxy by 1."""
    generator = np.random.default_rng(seed)
    own = generator.normal(size=prompts)
    rows = [
        {"step": 10 * step, "row": row, "prompt": f"prompt {row}", "completion": "x", "finished": True}
        | {"kl": 2.0 * step, "proxy": float(step), "gold": mean + own[row] + noise * generator.normal()}
        for step, mean in enumerate(course)
        for row in range(prompts)
    ]
    return pd.DataFrame(rows)


def test_path_means_are_those_of_each_step_and_gains_are_paired():
    path = simulated_path(RISE_AND_FALL).sample(frac=1, random_state=1).assign(gold_style=1.5, judge_other=2.5)
    means = path_means(path)
    assert list(means["step"]) == [0, 10, 20, 30, 40] and set(means["prompts"]) == {40}
    by_step = {step: part.sort_values("row")["gold"].to_numpy() for step, part in path.groupby("step")}
    for row in means.itertuples():
        gold = by_step[row.step]
        assert (row.gold, row.gold_se) == pytest.approx((gold.mean(), stats.sem(gold)))
        gain = gold - by_step[0]
        assert (row.gold_gain, row.gold_gain_se) == pytest.approx((gain.mean(), stats.sem(gain)), abs=1e-12)
        assert (row.kl, row.gold_style, row.judge_other) == pytest.approx((row.step / 5, 1.5, 2.5))
    assert (means["proxy_gain"] == [0, 1, 2, 3, 4]).all()
    assert means["gold_gain_se"].iloc[-1] < means["gold_se"].iloc[-1]  # what prompts differ in is gone
    assert "prompt" not in means and "row" not in means


def test_a_score_that_is_partly_missing_is_missing_at_that_step_alone():
    path = simulated_path(RISE_AND_FALL)
    path.loc[(path["step"] == 30) & (path["row"] == 3), "proxy"] = math.nan
    path["judge_old"] = math.nan
    means = path_means(path)
    assert list(means["proxy"].isna()) == [False, False, False, True, False]
    assert means["gold"].notna().all() and "judge_old" not in means
    without_gold = path_means(path.drop(columns="gold"))
    assert "gold" not in without_gold and "gold_gain" not in without_gold and "kl" in without_gold


def test_a_path_of_two_runs_or_cut_off_is_refused():
    path = simulated_path(RISE_AND_FALL)
    for wrong in (pd.concat([path, path]), path.iloc[:-1]):
        with pytest.raises(WorkbenchError, match="each prompt once per step"):
            path_means(wrong)


def test_the_peak_of_a_clear_course_is_found_where_it_is():
    found = held_out_peak(simulated_path(RISE_AND_FALL, prompts=60, noise=0.1))
    assert (found["peak_step"], found["peak_kl"], found["end_kl"]) == pytest.approx((20, 4, 8))
    assert found["rise"] == pytest.approx(found["peak_gold"] - found["start_gold"])
    assert found["drop"] == pytest.approx(found["peak_gold"] - found["end_gold"])
    for name, true in (("rise", 0.5), ("drop", 0.9), ("peak_gold", 0.5 + found["start_gold"])):
        assert found[f"{name}_low"] < true < found[f"{name}_high"]
    assert found["rise_high"] - found["rise_low"] < 0.1 and found["peak_kl_low"] == pytest.approx(4)


def test_the_order_of_rows_does_not_matter():
    path = simulated_path(RISE_AND_FALL, noise=2.0)
    path["prompt"] = (path["row"] // 3).astype(str)  # some prompts stand there several times
    assert held_out_peak(path) == pytest.approx(held_out_peak(path.sample(frac=1, random_state=2)), rel=1e-12)


def test_a_flat_course_has_no_rise_though_its_highest_mean_has():
    flat, naive, rises, drops, covered = [0.0] * 12, [], [], [], []
    for seed in range(80):
        path = simulated_path(flat, prompts=12, noise=1.0, seed=seed)
        means = path.groupby("step")["gold"].mean()
        naive.append(means.max() - means.iloc[0])
        found = held_out_peak(path)
        rises.append(found["rise"]), drops.append(found["drop"])
        covered.append(found["rise_low"] <= 0 <= found["rise_high"])
    assert np.mean(naive) > 0.4  # reading the peak off the curve it was chosen on
    assert abs(np.mean(rises)) < 4 * stats.sem(rises) and abs(np.mean(drops)) < 4 * stats.sem(drops)
    assert stats.sem(rises) < 0.07 and np.mean(covered) > 0.93


def test_prompts_do_not_choose_their_own_peak():
    path = simulated_path([0.0, 0.0, 0.0], prompts=2, noise=0.0)
    path.loc[(path["step"] == 10) & (path["row"] == 0), "gold"] += (
        9  # each prompt's best is where the other gains nothing
    )
    path.loc[(path["step"] == 20) & (path["row"] == 1), "gold"] += 9
    found = held_out_peak(path)
    assert found["rise"] == pytest.approx(0) and found["drop"] == pytest.approx(-4.5)
    path["prompt"] = "the same"  # then they may not tell on each other, either
    with pytest.raises(WorkbenchError, match="of 1 prompts"):
        held_out_peak(path)


def test_a_run_without_a_peak_says_why():
    path = simulated_path(RISE_AND_FALL)
    diverged = path.copy()
    diverged.loc[diverged["step"] >= 30, "gold"] = math.nan
    without_kl = path.assign(kl=np.where(path["step"] == 20, np.inf, path["kl"]))
    reasons = {
        "no gold": path.drop(columns="gold"),
        "gold reward": path.assign(gold=math.nan),
        "step 30": diverged,
        "step 20": without_kl,
        "1 steps": path[path["step"] == 0],
        "of 1 prompts": path[path["row"] == 0],
    }
    for reason, wrong in reasons.items():
        with pytest.raises(WorkbenchError, match=reason):
            held_out_peak(wrong)
    peaks = pd.DataFrame([{"world": 0, **held_out_peak(path)}, {"world": 0, "rise": math.nan, "drop": 0.5}])
    assert rise_and_fall(peaks).runs == 1
    with pytest.raises(WorkbenchError, match="None of 1 runs has a peak to count: they need gold at the start"):
        rise_and_fall(peaks.tail(1))


def test_runs_are_counted_and_averaged_with_their_intervals():
    drops = [0.5, 0.6, 0.7, 0.9, 1.0, 1.1, 0.3, 0.4, 0.05]
    peaks = pd.DataFrame({"world": np.repeat([0, 1, 2], 3), "seed": [0, 1, 2] * 3, "rise": 0.2, "drop": drops})
    found = rise_and_fall(peaks)
    theirs = stats.ttest_1samp([1, 1, 2 / 3], 0).confidence_interval()  # worlds are the draws
    assert found.share == pytest.approx((8 / 9, theirs.low, 1.0))
    worlds = np.reshape(drops, (3, 3))
    interval = stats.ttest_1samp(worlds.mean(axis=1), 0).confidence_interval()
    assert found.drop == pytest.approx((np.mean(drops), *interval)) and found.rise == pytest.approx((0.2, 0.2, 0.2))
    assert (found.runs, found.worlds) == (9, 3)
    assert "in 8 of 9 runs (41% to 100%)" in found.sentence and "up 0.20" in found.sentence
    assert "in 2 of 3 runs" in rise_and_fall(peaks.iloc[[0, 1, 8]]).sentence  # though half of the worlds
    assert rise_and_fall(peaks, by=0.2).share.value == 0  # a rise of just as much is not more


def test_a_single_run_is_shown_without_an_interval():
    found = rise_and_fall(pd.DataFrame([{"world": 0, **held_out_peak(simulated_path(RISE_AND_FALL))}]))
    assert found.runs == 1 and math.isnan(found.drop.low)
    assert "1 of 1 runs" in found.sentence and "no interval" in found.sentence and "nan" not in found.sentence


def test_the_fall_of_one_run_is_read_from_the_next_held_out_measurement():
    metrics = pd.DataFrame({"step": range(1, 9), "gold": [0, 5, 5, 5, 0, 0, 9, -1.0]})  # the 9 is a lucky batch
    metrics["held_out_gold"] = [1.1, math.nan, 1.9, math.nan, 1.7, math.nan, math.nan, -0.5]
    metrics["held_out_kl"] = metrics["step"] / 2
    found = peak_and_fall(metrics, window=3)
    assert found == {"peak_step": 3, "peak_kl": 1.5, "peak_gold": 1.9, "end_gold": -0.5, "fall": pytest.approx(2.4)}
    metrics.loc[2, "held_out_gold"] = math.nan
    assert peak_and_fall(metrics, window=3)["peak_step"] == 5
    stopped = metrics.iloc[:7].assign(gold=range(7))  # the budget was spent between two measurements: the best is last
    assert peak_and_fall(stopped, window=3)["peak_step"] == 5
    with pytest.raises(WorkbenchError, match="no held_out_gold"):
        peak_and_fall(metrics.drop(columns="held_out_gold"))
