"""A study read from its run folders: names, pools by brute force, older runs, and runs that can not be read."""

import json
import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from synthetic_study import KL, PROMPTS, SAMPLES, law, offset, write_policy, write_pool, write_reward_model, write_study

from workbench import WorkbenchError
from workbench.analysis.best_of_n import expected_of_best
from workbench.runs import Run
from workbench.studies.measurements import runs_below
from workbench.studies.overoptimization import tables as studies
from workbench.studies.overoptimization import tables as study_levels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"), worlds=(0, 1), seeds=(0,))


@pytest.fixture(scope="module")
def study(folder):
    return studies.read_study(runs_below(str(folder)))


@pytest.fixture(scope="module")
def models(folder):
    return study_levels.reward_models(runs_below(str(folder)))


@pytest.mark.parametrize(
    "name, beside, plain",
    [
        ("05_split_world0_seed1", "06_ppo_world0_seed1", "05_split"),
        ("05_seed101_world0_seed1", "07_best_of_n_world0_seed1", "05_seed101"),
        ("05_split_world0", "06_ppo_world0_seed1", "05_split"),  # shared by the seeds of a world
        ("05_split_world1_seed1", "06_ppo_world0_seed1", "05_split_world1_seed1"),  # of another unit
        ("05_seed101", "07_best_of_n_world0_seed1", "05_seed101"),
        ("05_reward_model", "06_policy_gradient", "05_reward_model"),
        ("05_rm_seed2", "06_free_seed2", "05_rm"),
    ],
)
def test_names_lose_the_unit_that_they_share_with_a_run(name, beside, plain):
    assert studies.plain_name(name, beside) == plain


def test_every_push_has_one_row(study):
    rl = study.pushes[study.pushes["optimiser"] == "RL"].drop(columns="run")
    assert len(rl) == 2 * 8 and rl["free"].sum() == 2 * 7 and set(rl.loc[~rl["free"], "kl_coef"]) == {0.5}
    assert set(rl.loc[rl["ensemble"] != "", "experiment"]) == {"06_ensemble_mean", "06_ensemble_min"}
    assert set(rl["policy"]) == {"02_sft"} and set(rl["algorithm"]) == {"ppo"}
    pools = study.pushes[study.pushes["optimiser"] == "best of n"]
    assert len(pools) == 2 * 9 and pools.groupby("world")["reward_model"].nunique().eq(9).all()
    assert study.said == [] and len(study.pools) == 2 and len(study.paths) == 16


def test_curves_of_rl_follow_the_planted_law(study):
    curve = study.curves[study.curves["run"] == "06_ppo_kl0_world1_seed0"]
    assert curve["kl"].tolist() == pytest.approx(KL.tolist())
    assert curve["gold_gain"].tolist() == pytest.approx(law(KL, 0.6).tolist(), abs=0.02)
    assert curve["gold"].iloc[0] == pytest.approx(offset("_world1_seed0"), abs=0.02)
    assert curve["prompt"].nunique() == 1 and curve["completion"].iloc[-1].startswith("mix the egg")


def test_the_completion_shown_is_of_the_prompt_on_which_gold_fell_most():
    rows = [
        {
            "step": step,
            "row": row,
            "prompt": f"p{row}",
            "completion": f"{row} at {step}",
            "kl": 0.1 * step,
            "proxy": step * row,
        }
        for step in (0, 5)
        for row in range(3)
    ]
    path = pd.DataFrame(rows).assign(gold=[0.0, 1.0, 2.0, 0.5, -3.0, 1.0])
    assert studies.curve_of(path)["completion"].tolist() == ["1 at 0", "1 at 5"]
    assert studies.curve_of(path.drop(columns="gold"))["completion"].tolist() == ["2 at 0", "2 at 5"]  # proxy rose most


def test_expectations_over_choices_of_n_are_means_over_all_subsets():
    rng = np.random.default_rng(0)
    proxy, gold = rng.integers(0, 4, size=(3, 6)).astype(float), rng.normal(size=(3, 6))  # with ties
    found = expected_of_best(proxy, gold, [1, 2, 4, 6])
    for place, n in enumerate((1, 2, 4, 6)):
        for row in range(3):
            subsets = [list(chosen) for chosen in combinations(range(6), n)]
            best = [[i for i in chosen if proxy[row, i] == proxy[row, chosen].max()] for chosen in subsets]
            brute = np.mean([gold[row, tied].mean() for tied in best])
            assert found[row, place] == pytest.approx(brute)


def test_a_pool_is_a_path_over_n_for_each_of_its_reward_models(study):
    pool = next(iter(study.pools.values()))
    path = studies.pool_path(pool, "05_split")
    assert (
        path["step"].unique().tolist() == [1, 2, 4, 8, 16] and path.groupby("step")["row"].nunique().eq(PROMPTS).all()
    )
    assert path.loc[path["step"] == 8, "kl"].unique() == pytest.approx(math.log(8) - 7 / 8)
    first = path[path["step"] == 1]
    proxy, gold = pool[pool["prompt_index"] == 3]["judge_05_split"], pool[pool["prompt_index"] == 3]["gold"]
    assert first["gold"].iloc[3] == pytest.approx(gold.mean())
    last = path[path["step"] == SAMPLES].iloc[3]
    best = pool.loc[proxy.idxmax()]
    assert (last["completion"], last["gold"], last["proxy"]) == (best["completion"], best["gold"], proxy.max())


def test_a_prompt_with_an_undefined_score_is_left_out_of_a_pool(tmp_path):
    run = write_pool(tmp_path, "_world0_seed0", gold=True, models=("05_reward_model", "05_split"))
    table = run.table("pool")
    table.loc[5, "gold"] = math.nan
    run = Run.open(tmp_path / "07_nan_world0_seed0", run.parameters)
    run.save_table("pool", table)
    run.finish()
    study = studies.read_study([Run.read(run.dir)])
    assert study.curves["prompts"].eq(PROMPTS - 1).all()


def test_a_pool_with_missing_samples_is_named_and_the_rest_is_read(tmp_path):
    good = write_policy(tmp_path, "06_ppo_kl0", "_world0_seed0", "05_reward_model")
    run = write_pool(tmp_path, "_world0_seed0", gold=True, models=("05_reward_model",))
    lines = run.path("tables/pool.jsonl").read_text().splitlines()
    run.path("tables/pool.jsonl").write_text("\n".join(lines[:-3]) + "\n")
    study = studies.read_study([good, run])
    assert study.said == [
        "07_best_of_n_world0_seed0: The pool does not hold equally many samples of each prompt in a row: run 07 again."
    ]
    assert study.pushes["run"].tolist() == ["06_ppo_kl0_world0_seed0"]


def test_unfinished_runs_are_named_and_a_folder_without_any_push_gets_a_sentence(tmp_path):
    run = write_policy(tmp_path, "06_ppo_kl0", "_world0_seed0", "05_reward_model")
    record = json.loads(run.path("run.json").read_text()) | {"status": "unfinished"}
    run.path("run.json").write_text(json.dumps(record))
    model = write_reward_model(tmp_path, "05_split", "_world0_seed0")
    with pytest.raises(WorkbenchError, match=r"None of these runs pushed.* not finished and was left out"):
        studies.read_study([Run.read(run.dir), model])


def test_without_gold_there_are_curves_of_the_proxy_and_no_peaks(tmp_path):
    study = studies.read_study([write_policy(tmp_path, "06_ppo_kl0", "_world0_seed0", "05_reward_model", gold=False)])
    assert "gold" not in study.curves and study.curves["proxy"].is_monotonic_increasing and len(study.peaks) == 0
    assert study.curves["completion"].notna().all()


def test_without_a_push_that_is_free_there_are_no_mean_curves(study):
    assert studies.mean_curves(study.curves.iloc[:0]).empty


def test_means_over_units_lie_between_them(study):
    plain = study_levels.plain_pushes(study.curves)
    means = studies.mean_curves(plain)
    own = means[(means["optimiser"] == "RL") & (means["reward_model"] == "05_reward_model")]
    assert own["runs"].eq(2).all() and own["kl"].max() == pytest.approx(KL[-1])
    at_four = np.interp(2.0, np.sqrt(own["kl"]), own["gold"])
    assert at_four == pytest.approx(law(np.array([4.0]), 0.6)[0] + 0.025, abs=0.03)
    assert (own["gold_low"] <= own["gold"]).all() and (own["gold"] <= own["gold_high"]).all()


def test_the_measured_kl_of_best_of_n_stays_below_the_bound(study):
    pool = next(iter(study.pools.values()))
    table = studies.measured_kl(pool, "05_reward_model")
    assert table["n"].tolist() == [1, 2, 4, 8, 16] and (table["kl"] <= table["kl_bound"] + 1e-9).all()
    assert studies.measured_kl(pool.drop(columns="logprob"), "05_reward_model").empty
    alike = pool.assign(completion="the same", logprob=-1.0)
    merged = studies.measured_kl(alike.assign(finished=True), "05_reward_model")
    told_apart = studies.measured_kl(alike.assign(finished=np.arange(len(alike)) % 2 == 0), "05_reward_model")
    assert merged["kl"].iloc[-1] != pytest.approx(told_apart["kl"].iloc[-1])
    texts = np.where(np.arange(len(alike)) % 2 == 0, "the same", "another")
    pd.testing.assert_frame_equal(told_apart, studies.measured_kl(alike.assign(completion=texts), "05_reward_model"))


def test_reward_models_are_described_by_what_they_learned_from(models):
    labels = models.set_index("reward_model")["label"]
    assert labels["05_reward_model"] == "4000 pairs" and labels["05_split"] == "4000 other pairs"
    assert labels["05_labeler_ana"] == "1000 pairs, by ana" and labels["05_noise"] == "4000 pairs, 25% flipped"
    assert labels["05_scratch_small"] == "4000 pairs, small from scratch"
    assert labels["05_seed101"] == "4000 pairs, seed 101" and models["runs"].eq(2).all()
    assert labels.is_unique


def test_reward_models_alike_in_words_are_told_apart_by_name(tmp_path):
    runs = [write_reward_model(tmp_path, name, "_world0_seed0") for name in ("05_reward_model", "05_pairs1000")]
    twin = Run.open(tmp_path / "05_twin_world0_seed0", runs[0].parameters)
    twin.save_table("accuracy", runs[0].table("accuracy"))
    twin.summary(runs[0].summary())
    twin.finish()
    labels = study_levels.reward_models([*runs, twin])["label"].tolist()
    assert labels == ["4000 pairs, 05_reward_model", "1000 pairs", "4000 pairs, 05_twin"]
    assert study_levels.reward_models([]).empty


def test_levels_differ_in_one_respect_alone(study, models):
    main = study_levels.main_reward_model(study.pushes, models)
    assert main == "05_reward_model"
    levels = {name: dict(table.to_numpy().tolist()) for name, table in study_levels.levels_of(models, main).items()}
    assert levels == {
        "pairs": {"05_pairs250": 250, "05_pairs1000": 1000, "05_reward_model": 4000},
        "weights": {"05_scratch_small": 20_000, "05_scratch_large": 180_000},
        "label_noise": {"05_reward_model": 0.0, "05_noise": 0.25},
        "labelers": {"05_labeler_ana": "ana", "05_pairs1000": "all"},
    }
    assert study_levels.levels_of(models, "absent") == {}
    assert study_levels.levels_of(models[models["reward_model"] == main], main) == {}


def test_swept_peaks_are_those_of_plain_pushes(study, models):
    levels = study_levels.levels_of(models, "05_reward_model")
    table = study_levels.swept(study.peaks, levels["pairs"], "pairs", policy="02_sft")
    assert table.groupby(["optimiser", "pairs"]).size().eq(2).all() and len(table) == 2 * 3 * 2
    assert table["ensemble"].eq("").all() and table["free"].all()


def test_of_several_algorithms_the_most_used_is_plain():
    rows = [
        {"free": True, "ensemble": "", "algorithm": name, "run": str(i)}
        for i, name in enumerate(["ppo"] * 2 + ["rloo"])
    ]
    table = pd.DataFrame([*rows, {"free": True, "ensemble": "", "algorithm": "", "run": "pool"}])
    assert study_levels.plain_pushes(table)["run"].tolist() == ["0", "1", "pool"]


def test_member_sets_hold_what_could_be_an_ensemble(models):
    sets = study_levels.member_sets(models, "05_reward_model")
    assert sets == {
        "seeds": ["05_reward_model", "05_seed101"],
        "split": ["05_reward_model", "05_split"],
        "bases": ["05_reward_model", "05_scratch_large", "05_scratch_small"],
    }
    assert study_levels.member_sets(models, "absent") == {}


def test_members_of_a_pool_err_alike_as_far_as_was_planted(study, models):
    sets = study_levels.member_sets(models, "05_reward_model")
    tables = [study_levels.errors_in_common(pool, sets).set_index("members") for pool in study.pools.values()]
    mean = sum(table["errors_given_gold"] for table in tables) / len(tables)
    assert mean.abs().max() < 0.25 and tables[0]["pairs"].to_dict() == {"seeds": 1, "split": 1, "bases": 3}


def test_ensembles_of_members_that_err_apart_choose_better(study, models):
    sets = study_levels.member_sets(models, "05_reward_model")
    gains = []
    for run, pool in study.pools.items():
        table = study_levels.ensemble_peaks(pool, sets, coef=0.5).set_index(["members", "how"])
        own = study.peaks[(study.peaks["run"] == run) & study.peaks["reward_model"].isin(sets["bases"])]
        gains.append(table.loc[("bases", "mean"), "end_gold"] - own["end_gold"].mean())
    assert np.mean(gains) > 0.1
    assert study_levels.ensemble_peaks(pool.drop(columns="gold"), sets, coef=0.5).empty
