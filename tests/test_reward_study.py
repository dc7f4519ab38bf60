"""Numbers about reward models against scipy and hand arithmetic."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from workbench import WorkbenchError
from workbench.analysis.calibration import rank_correlation
from workbench.runs import Run
from workbench.studies.measurements import accuracy_by_size


def scored(prompts=6, samples=5) -> pd.DataFrame:
    """Scores with ties, offsets between prompts, and rows in no order."""
    rng = np.random.default_rng(0)
    prompt = np.repeat([f"p{index}" for index in range(prompts)], samples)
    frame = pd.DataFrame({"prompt": prompt, "proxy": rng.normal(size=len(prompt)) + np.repeat(range(prompts), samples)})
    frame["gold"] = (frame["proxy"] + rng.normal(size=len(prompt))).round()
    return frame.sample(frac=1, random_state=1)


def test_rank_correlation_is_scipys_within_each_prompt_and_averaged():
    frame = scored()
    each = [stats.spearmanr(part["proxy"], part["gold"])[0] for _, part in frame.groupby("prompt")]
    found = rank_correlation(frame)
    assert found.mean == pytest.approx(np.mean(each))
    assert found.standard_error == pytest.approx(stats.sem(each))


def test_prompts_whose_answers_are_all_equally_good_are_left_out():
    frame = scored()
    expected = rank_correlation(frame)
    flat = pd.DataFrame({"prompt": "flat", "proxy": [1.0, 2.0, 3.0], "gold": 0.5})
    alone = pd.DataFrame({"prompt": ["alone"], "proxy": [1.0], "gold": [1.0]})
    assert rank_correlation(pd.concat([frame, flat, alone])) == pytest.approx(expected)
    assert all(map(math.isnan, rank_correlation(flat)))


def saved_run(folder, name, *, start="sft", parameters=1000, gold=0.7, labels=0.6, study_runs="") -> Run:
    """A run as 05_reward_model leaves it."""
    run = Run.open(folder / name, {"start": start, "study_runs": study_runs, "seed": 0})
    rows = [{"group": "all", "measured_against": "labels", "accuracy": labels, "accuracy_se": 0.02}]
    rows.append({"group": "qa", "measured_against": "labels", "accuracy": 0.1, "accuracy_se": 0.02})
    if gold:
        rows.append({"group": "all", "measured_against": "gold", "accuracy": gold, "accuracy_se": 0.01})
    run.save_table("accuracy", pd.DataFrame(rows))
    run.summary({"parameters": parameters, "policy_parameters": 2000})
    return run


def test_runs_that_differ_in_their_seed_are_one_point_with_the_error_over_them(tmp_path):
    runs = [
        saved_run(tmp_path, f"large_seed{seed}", parameters=3000, gold=value) for seed, value in enumerate([0.7, 0.8])
    ]
    runs += [saved_run(tmp_path, "small_seed0", gold=0.6), saved_run(tmp_path, "raw", start="scratch", gold=0.55)]
    runs.append(Run.open(tmp_path / "other", {"seed": 0}))  # a run of another notebook
    runs.append(saved_run(tmp_path, "large_seed2", gold=0.1, study_runs=str(tmp_path)))  # the one that shows them
    table = accuracy_by_size(runs).set_index("model")
    assert list(table.index) == ["raw", "small", "large"]  # by start, then by size
    large = table.loc["large"]
    assert (large["runs"], large["parameters"], large["measured_against"]) == (2, 3000, "gold")
    assert large["accuracy"] == pytest.approx(0.75)
    assert large["accuracy_se"] == pytest.approx(0.05)
    assert table.loc["small", "accuracy_se"] == 0.01


def test_without_gold_labels_are_the_measure(tmp_path):
    table = accuracy_by_size([saved_run(tmp_path, "a", gold=None)])
    assert (table.loc[0, "measured_against"], table.loc[0, "accuracy"]) == ("labels", 0.6)


def test_a_folder_without_reward_models_is_refused(tmp_path):
    with pytest.raises(WorkbenchError, match="None of these runs"):
        accuracy_by_size([Run.open(tmp_path / "other", {"seed": 0})])
