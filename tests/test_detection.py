"""Alarms: hand-made paths, thresholds by brute force, known verdicts, and nothing leaks from the judged world."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from workbench import WorkbenchError
from workbench.studies.overoptimization import alarms as detection

STEPS = (0, 10, 20, 30, 40)
RISES_AND_FALLS = (0.0, 0.5, 0.9, 0.4, -0.2)
KEEPS = (0.0, 0.3, 0.5, 0.52, 0.55)


def path(gold=RISES_AND_FALLS, *, kl=(0.0, 1.0, 2.0, 4.0, 8.0), prompts=8, noise=0.0, **columns):
    """A table `path`: every prompt has the mean of its step, plus what makes prompts differ."""
    rng, rows = np.random.default_rng(0), []
    for place, step in enumerate(STEPS):
        for row in range(prompts):
            line = {"step": step, "row": row, "prompt": f"p{row}", "completion": "a b c", "completion_length": 10}
            line |= {"kl": kl[place], "proxy": float(place), "gold": gold[place] + 0.1 * row + noise * rng.normal()}
            rows.append(line | {name: values[place] for name, values in columns.items()})
    return pd.DataFrame(rows)


def test_repeated_trigrams_by_hand():
    shares = {"": 0, "one two": 0, "a b c": 0, "a b c d": 0, "mix it . mix it . mix it .": 4 / 7}
    shares |= {"no no no no": 0.5, "a b a b a b": 0.5}  # the same trigram twice; aba bab aba bab
    assert {text: detection.repeated_trigrams(text) for text in shares} == pytest.approx(shares)


def test_signals_are_drifts_from_the_reference():
    table = path(completion=["a b c", "a b c", "a a a a", "a a a a", "a a a a"], completion_length=[10, 8, 10, 14, 20])
    table["judge_twin"], table["judge_other"] = table["proxy"] + 0.5 * table["step"] / 10 + 3, 0.25 * table["proxy"] - 1
    signals = detection.path_signals(table, members=["proxy", "judge_twin"], other="judge_other").set_index("step")
    assert signals["disagreement"].tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])  # half of the distance of two
    assert signals["split_gap"].tolist() == pytest.approx([0, 0.75, 1.5, 2.25, 3.0])
    assert signals["length"].tolist() == [0, 2, 0, 4, 10]
    assert signals["repetition"].tolist() == [0, 0, 0.5, 0.5, 0.5]
    assert signals["kl"].tolist() == [0, 1, 2, 4, 8]
    assert signals["gold"].tolist() == pytest.approx([value + 0.35 for value in RISES_AND_FALLS])


def test_signals_that_need_other_reward_models_are_left_out_without_them():
    signals = detection.path_signals(path().drop(columns="gold"), members=["proxy"], other="judge_absent")
    assert list(signals) == ["step", "kl", "length", "repetition"]


def test_a_run_that_rises_and_falls_is_good_around_its_peak():
    outcome = detection.gold_outcome(path(), tolerance=0.05)
    assert (outcome["peak_step"], outcome["peak_kl"], outcome["falls"]) == (20, 2.0, True)
    assert (outcome["good_from"], outcome["good_until"]) == (20, 20)
    assert outcome["drop"] == pytest.approx(1.1)
    wide = detection.gold_outcome(path(), tolerance=0.45)
    assert (wide["good_from"], wide["good_until"]) == (10, 20)


def test_a_run_that_does_not_fall_is_good_to_its_end():
    outcome = detection.gold_outcome(path(KEEPS), tolerance=0.1)
    assert not outcome["falls"] and (outcome["good_from"], outcome["good_until"]) == (20, 40)


def test_a_fall_within_noise_is_no_fall():
    slight = (0.0, 0.3, 0.4, 0.35, 0.3)
    assert detection.gold_outcome(path(slight, prompts=200), tolerance=0.05)["falls"]
    assert not detection.gold_outcome(path(slight, prompts=8, noise=1.0), tolerance=0.05)["falls"]


def kept_by_brute_force(values, gold, threshold):
    """Mean gold where each run is stopped, step by step."""
    stops = []
    for run, signal in values.items():
        stop = len(signal) - 1
        for place in range(1, len(signal)):
            if signal[place] > threshold:
                stop = place
                break
        stops.append(gold[run][stop])
    return np.mean(stops)


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_keeps_as_much_gold_as_any_other(seed):
    rng = np.random.default_rng(seed)
    lengths = {f"run{i}": int(rng.integers(2, 9)) for i in range(6)}
    values = {run: rng.normal(size=length).cumsum() for run, length in lengths.items()}
    gold = {run: rng.normal(size=length).cumsum() for run, length in lengths.items()}
    chosen = detection.best_threshold(values, gold)
    lowest = min(map(min, values.values()))  # below it every run is stopped at once
    every = [kept_by_brute_force(values, gold, value) for value in [*np.linspace(lowest, 12, 2001), math.inf]]
    assert kept_by_brute_force(values, gold, chosen) == pytest.approx(max(every))


def test_of_equal_thresholds_the_highest_is_taken_and_without_anything_to_win_no_run_is_stopped():
    rising = {"a": np.array([0.0, 1.0, 2.0])}
    assert detection.best_threshold(rising, {"a": np.array([0.0, 1.0, 2.0])}) == math.inf
    assert detection.best_threshold(rising, {"a": np.array([0.0, 2.0, 1.0])}) == 0.5
    two = {"a": np.array([0.0, 1.0, 5.0, 5.0]), "b": np.array([0.0, 1.0, 1.0, 1.0])}
    gold = {"a": np.array([0.0, 1.0, 2.0, 0.0]), "b": np.array([0.0, 1.0, 2.0, 3.0])}
    assert detection.best_threshold(two, gold) == 3.0


def runs(good=("kl",), *, worlds=(0, 1, 2), seeds=(0, 1)):
    """Signals and outcomes of a falling and a lasting run per unit; `good` signals jump to 1 where gold peaks."""
    signals, outcomes = [], []
    for world in worlds:
        for seed in seeds:
            for name, gold in (("free", RISES_AND_FALLS), ("priced", KEEPS)):
                run = f"{name}_world{world}_seed{seed}"
                means = pd.DataFrame({"step": STEPS, "gold": gold, "run": run, "world": world, "seed": seed})
                means["kl"] = [0.0, 0.1, 1.0, 1.0, 1.0] if name == "free" and "kl" in good else 0.0
                means["length"] = [0.0, 9.0, 9.0, 9.0, 9.0]  # the same in every run: it can not tell them apart
                signals.append(means)
                outcomes.append({"run": run, **detection.gold_outcome(path(gold), tolerance=0.1)})
    return pd.concat(signals, ignore_index=True), pd.DataFrame(outcomes)


def test_a_perfect_signal_is_always_right_and_on_time():
    alarms = detection.held_out_alarms(*runs())
    perfect = alarms[alarms["signal"] == "kl"]
    assert set(perfect["verdict"]) == {"in time", "quiet"} and (perfect["threshold"] < 1).all()
    free = perfect[perfect["verdict"] == "in time"]
    assert (free["lead_steps"] == 0).all() and free["kept"].tolist() == pytest.approx([1.1] * 6)
    assert perfect.loc[perfect["verdict"] == "quiet", "kept"].eq(0).all()


def test_a_signal_that_can_not_tell_runs_apart_stops_all_or_none():
    alarms = detection.held_out_alarms(*runs())
    useless = alarms[alarms["signal"] == "length"]
    # stopping all at step 10 keeps .7 and loses .25, so all are stopped, too early and in vain
    assert useless["verdict"].value_counts().to_dict() == {"too early": 6, "false alarm": 6}
    assert useless.loc[useless["verdict"] == "too early", "lead_steps"].eq(10).all()


def test_thresholds_know_nothing_of_the_world_that_they_are_judged_on():
    signals, outcomes = runs()
    changed = signals.copy()
    changed.loc[changed["world"] == 1, "gold"] = 100.0 * changed["step"]  # there it would be best never to stop
    tables = [detection.held_out_alarms(table, outcomes) for table in (signals, changed)]
    inside, outside = (
        [table.loc[(table["world"] == 1) == of_it, "threshold"].tolist() for table in tables] for of_it in (True, False)
    )
    assert inside[0] == inside[1]
    assert outside[0] != outside[1] and set(outside[1]) == {math.inf}  # other worlds did learn from it


def test_with_one_world_its_seeds_are_held_out_and_with_one_unit_a_sentence_says_so():
    alarms = detection.held_out_alarms(*runs(worlds=(0,)))
    assert set(alarms.loc[alarms["signal"] == "kl", "verdict"]) == {"in time", "quiet"}
    with pytest.raises(WorkbenchError, match="need runs of another world or seed"):
        detection.held_out_alarms(*runs(worlds=(0,), seeds=(0,)))


def test_without_gold_no_alarm_is_judged():
    units = pd.DataFrame({"run": ["a"], "world": [0], "seed": [0]})
    signals, outcomes = detection.watched_runs({"a": path().drop(columns="gold")}, units)
    assert len(signals) == len(STEPS) and signals["falls"].isna().all()
    with pytest.raises(WorkbenchError, match="no watched run has a path whose gold is known"):
        detection.held_out_alarms(signals, outcomes)


def test_only_runs_with_all_signals_are_watched():
    units = pd.DataFrame({"run": ["a", "b"], "world": [0, 1], "seed": [0, 0]})
    paths = {"a": path(judge_twin=[0.0] * 5), "b": path()}
    signals, _ = detection.watched_runs(paths, units, members=["proxy", "judge_twin"])
    assert signals["run"].unique().tolist() == ["a"] and signals["falls"].all()
    assert len(detection.watched_runs({}, units)[0]) == 0


def test_verdicts_of_late_and_missed_alarms():
    signals, outcomes = runs()
    signals.loc[signals["run"].str.startswith("free"), "kl"] = np.tile([0.0, 0.0, 0.0, 1.0, 1.0], 6)
    late = detection.held_out_alarms(signals, outcomes)
    late = late[(late["signal"] == "kl") & late["run"].str.startswith("free")]
    assert set(late["verdict"]) == {"late"} and (late["lead_steps"] == -10).all() and (late["lead_nats"] == 1).all()
    assert late["kept"].tolist() == pytest.approx([0.6] * 6)
    signals["kl"] = 0.0
    missed = detection.held_out_alarms(signals, outcomes)
    missed = missed[(missed["signal"] == "kl") & missed["run"].str.startswith("free")]
    assert set(missed["verdict"]) == {"missed"} and missed["lead_steps"].isna().all() and missed["kept"].eq(0).all()


def test_scores_are_rates_over_units_with_exact_intervals_where_nothing_varies():
    scores = detection.alarm_scores(detection.held_out_alarms(*runs())).set_index("signal")
    assert scores.index[0] == "kl"
    best = scores.loc["kl"]
    assert (best["runs"], best["falling"], best["quiet_runs"]) == (12, 6, 6)
    assert (best["right"], best["false_alarms"], best["missed"]) == (1.0, 0.0, 0.0)
    never = stats.binomtest(0, 3).proportion_ci(method="exact")  # of three worlds
    assert (best["false_alarms_low"], best["false_alarms_high"]) == pytest.approx((never.low, never.high), abs=1e-6)
    assert best["share_kept"] == pytest.approx(1.0) and best["kept"] == pytest.approx(0.55)
    assert scores.loc["length", "false_alarms"] == 1.0 and scores.loc["length", "missed"] == 0.0


def test_intervals_of_rates_stay_within_0_and_1():
    alarms = detection.held_out_alarms(*runs())
    alarms = alarms[alarms["signal"] == "kl"].copy()
    alarms.loc[alarms.index[:1], "verdict"] = "missed"
    row = detection.alarm_scores(alarms).iloc[0]
    assert 0 <= row["right_low"] < row["right"] < row["right_high"] <= 1
    assert row["missed"] == pytest.approx(1 / 6)


def test_the_sentence_names_the_best_signal_beside_kl():
    scores = detection.alarm_scores(detection.held_out_alarms(*runs(good=("kl",))))
    said = detection.alarms_sentence(scores)
    assert said.startswith(
        "KL alone keeps most gold, told apart from 0 of 1 others: right in 100% of runs, false alarms"
    )
    assert said.count("KL") == 1
    other = detection.alarms_sentence(scores[::-1].reset_index(drop=True))
    assert other.startswith("Length keeps most gold, not told apart from KL alone: right")
    assert other.endswith("KL alone right in 100% of runs, false alarms in 0%")
    told_apart = detection.alarms_sentence(scores[::-1].assign(p_value=0.01).reset_index(drop=True))
    assert told_apart.startswith("Length keeps most gold: right")
    table = detection.readable_scores(scores)
    assert table.loc[0, "right"].startswith("1.00 (0.29 to 1.00)")
    assert table.loc[table["signal"] == "length", "lead_steps"].iloc[0].startswith("10.00")
