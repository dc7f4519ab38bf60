"""What a study found and what its remedies save: planted laws, differences and completions."""

import math

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests
from synthetic_study import PROMPTS, finished, law, write_policy, write_study

from workbench.studies.iterated import rounds
from workbench.studies.iterated.figures import plot_arms
from workbench.studies.measurements import runs_below
from workbench.studies.overoptimization import findings
from workbench.studies.overoptimization import tables as study_levels
from workbench.studies.overoptimization.tables import read_study

WHO = {"main": "05_reward_model", "policy": "02_sft"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def study(folder):
    return read_study(runs_below(str(folder)))


@pytest.fixture(scope="module")
def models(folder):
    return study_levels.reward_models(runs_below(str(folder)))


@pytest.fixture(scope="module")
def levels(models):
    return study_levels.levels_of(models, WHO["main"])


@pytest.fixture(scope="module")
def curves(study, models):
    return findings.labelled(study_levels.plain_pushes(study.curves), models, **WHO)


def test_the_main_push_comes_first_and_labels_say_what_was_learned(curves):
    assert curves["label"].unique().tolist()[0] == "4000 pairs"
    assert set(curves.loc[curves["reward_model"] == "05_pairs250", "label"]) == {"250 pairs"}


def test_another_policy_and_an_unknown_reward_model_are_named():
    table = pd.DataFrame({"reward_model": ["05_rm", "05_rm"], "policy": ["02_sft", "02_small"]})
    named = findings.labelled(table, pd.DataFrame(columns=["reward_model", "label"]), main="05_rm", policy="02_sft")
    assert named["label"].tolist() == ["05_rm", "05_rm, policy 02_small"]
    pushes = pd.DataFrame({"run": ["a", "a", "b", "c"], "policy": ["x", "x", "y", "y"]})
    assert findings.main_policy(pushes) == "y"  # of two runs of three


def test_planted_laws_are_recovered_and_the_right_one_fits_better(curves):
    own = curves[curves["reward_model"] == WHO["main"]]
    lines, fits = findings.fitted_laws(own)
    rl = fits[fits["optimiser"] == "RL"].set_index("better")
    assert rl.loc[True, "law"] == "d (a - b log d)"
    assert (rl.loc[True, "a"], rl.loc[True, "b"]) == pytest.approx((1.0, 0.6), abs=0.02)
    assert rl.loc[True, "peak_kl"] == pytest.approx(math.exp(2 * (1 / 0.6 - 1)), rel=0.05)
    assert rl.loc[True, "peak_kl_low"] < rl.loc[True, "peak_kl"] < rl.loc[True, "peak_kl_high"]
    assert "d (a - b log d) fits better" in rl.loc[True, "comparison"]
    drawn = lines[(lines["optimiser"] == "RL") & lines["better"]]
    assert drawn["predicted"].to_numpy() == pytest.approx(law(drawn["kl"].to_numpy(), 0.6), abs=0.03)

    few = curves[curves["step"] <= 5]
    assert findings.fitted_laws(few[few["optimiser"] == "RL"])[1].empty


def test_measured_and_predicted_peaks_stand_beside_each_other(study, curves):
    own = study_levels.plain_pushes(study.peaks)
    own = own[own["reward_model"] == WHO["main"]]
    _, fits = findings.fitted_laws(curves[curves["reward_model"] == WHO["main"]])
    beside = findings.peaks_beside_laws(own, fits)
    table = beside.set_index(["optimiser", "kind"])
    assert table.loc[("RL", "measured"), "kl"] == pytest.approx(4.0)  # of the measured steps the nearest to 3.8
    assert table.loc[("RL", "predicted"), "kl"] == pytest.approx(3.79, abs=0.1)
    assert table.loc[("RL", "measured"), "gain"] == pytest.approx(law(np.array([4.0]), 0.6)[0], abs=0.03)
    for interval, verdict in (((3.0, 5.0), "holds"), ((3.5, 3.9), "excludes"), ((4.1, 9.0), "excludes")):
        rl = beside[beside["optimiser"] == "RL"].copy()
        rl.loc[rl["kind"] == "predicted", ["kl_low", "kl_high"]] = interval
        (said,) = findings.peaks_sentences(rl)
        assert said.startswith("RL: the law predicts a peak at 3.8 nats (") and "measured it is at 4 nats" in said
        assert said.endswith(f"The predicted interval {verdict} the measured place.")
    assert findings.peaks_sentences(beside[beside["kind"] == "measured"]) == []  # no law has a peak


def test_runs_that_rise_and_fall_are_counted_per_optimiser(study):
    found = findings.risen_and_fallen(study_levels.plain_pushes(study.peaks)).set_index("optimiser")
    assert found.loc["RL", "share"] == 1.0 and found.loc["RL", "drop"] > 0.4
    assert found.loc["RL", "sentence"].startswith("RL: Gold rises")
    unknown = study.peaks.assign(rise=math.nan)
    assert findings.risen_and_fallen(unknown).empty


def test_slopes_per_doubling_are_those_of_the_planted_peaks(study, levels):
    effects = findings.sweep_effects(study.peaks, levels, policy=WHO["policy"])
    rl = effects[(effects["optimiser"] == "RL") & (effects["factor"] == "pairs")].set_index("outcome")
    # gold at the measured peak: law(1) = 1 for b = .9 and .75, law(4) for b = .6; doublings 0, 2, 4
    heights = [1.0, 1.0, law(np.array([4.0]), 0.6)[0]]
    assert rl.loc["gold at the peak", "value"] == pytest.approx(np.polyfit([0, 2, 4], heights, 1)[0], abs=0.01)
    assert rl.loc["√KL of the peak", "value"] == pytest.approx(0.25, abs=0.01)
    assert rl["units"].eq(4).all() and rl["sentence"].str.contains("per doubling of pairs").all()
    together = multipletests(effects["p_alone"], method="holm")[1]  # of both factors, optimisers and outcomes
    assert len(effects) == 8 and effects["p_value"].tolist() == pytest.approx(list(together))
    assert findings.sweep_effects(study.peaks, {}, policy=WHO["policy"]).empty


def test_kinds_are_compared_with_their_own_controls(study, levels):
    table = findings.kind_effects(study.peaks, levels, **WHO)
    assert table["level"].tolist() == ["25% of labels flipped", "only labeler ana"]
    assert table["group"].eq("best of n").all() and table["units"].eq(4).all()
    assert table["value"].iloc[0] < 0 < table["value"].iloc[1]  # noisier than the main one; better than 1000 pairs
    assert findings.kind_effects(study.peaks, {}, **WHO).empty


def test_another_policy_is_compared_in_height_and_rise(study, levels, tmp_path):
    small = write_policy(tmp_path, "06_small", "_world0_seed0", "05_reward_model")
    other = read_study([small]).peaks.assign(policy="02_small")
    other[["peak_gold", "start_gold"]] -= 0.5
    both = pd.concat([study.peaks, other])
    table = findings.kind_effects(both, {}, **WHO).set_index("level")
    assert table.loc["policy 02_small", "value"] == pytest.approx(-0.5, abs=0.03)
    assert table.loc["policy 02_small, over its start", "value"] == pytest.approx(0.0, abs=0.03)
    places = findings.kind_effects(both, {}, **WHO, outcome="peak_root_kl")
    assert places["value"].tolist() == pytest.approx([0.0])


def test_a_priced_run_on_the_path_of_the_free_one_gives_nothing_over_stopping(study):
    free = findings.free_paths(study.curves, **WHO)
    priced = findings.priced_ends(study.curves, free)
    assert priced["level"].eq("ppo_kl0.5").all() and len(priced) == 4
    assert priced["difference"].abs().max() < 0.03
    best = law(np.array([4.0]), 0.6)[0]
    assert priced["against_best"].tolist() == pytest.approx([1.0 - best] * 4, abs=0.03)
    prices = findings.remedy_effects(priced, "level", findings.PRICE_OUTCOMES)
    assert prices.set_index("group")["units"].to_dict() == {"at equal KL": 4, "against the free run at its best": 4}
    sentence = findings.price_sentence(prices)
    assert sentence.startswith("Gold against the free run stopped at equal KL: ppo_kl0.5 ")
    assert findings.priced_ends(study.curves, free.iloc[:0]).empty


def test_one_unit_has_differences_without_any_verdict():
    row = {"group": "at equal KL", "level": "ppo_kl0.5", "value": -0.25, "low": math.nan, "high": math.nan}
    row["significant"] = False
    assert findings.price_sentence(pd.DataFrame([row])).endswith("ppo_kl0.5 −0.25")
    known = pd.DataFrame([row | {"low": -0.4, "high": -0.1}])  # alone beyond chance, but not beside the other prices
    assert findings.price_sentence(known).endswith("ppo_kl0.5 −0.25 (within chance)")
    both = pd.concat([known, known.assign(level="ppo-kl0.1", value=0.5)])
    assert findings.price_sentence(both).endswith("ppo_kl0.5 −0.25, ppo-kl0.1 +0.50 (all within chance)")
    both["significant"] = [True, False]
    assert findings.price_sentence(both).endswith("ppo_kl0.5 −0.25, ppo-kl0.1 +0.50 (within chance)")


def test_ensembles_under_rl_save_what_was_planted(study):
    table = findings.ensemble_runs(study, **WHO)
    assert len(table) == 8 and set(table["how"]) == {"mean", "min"}
    ends, peaks = law(np.array([16.0]), 0.6)[0], law(np.array([4.0]), 0.6)[0]
    better_end, better_peak = law(np.array([16.0]), 0.5)[0], law(np.array([9.0]), 0.5)[0]
    assert table["saved"].tolist() == pytest.approx([peaks - ends - (better_peak - better_end)] * 8, abs=0.03)
    assert table["end"].tolist() == pytest.approx([better_end - ends] * 8, abs=0.03)
    assert table["difference"].tolist() == pytest.approx(table["end"].tolist(), abs=1e-9)  # both end at 16 nats
    assert findings.ensemble_runs(study, main="absent", policy="02_sft").empty


def test_an_ensemble_that_paid_for_kl_is_not_taken_for_a_free_one(folder, study, tmp_path):
    members = "05_reward_model,05_seed101"
    priced = write_policy(tmp_path, "06_priced_mean", "_world0_seed0", members, kl_coef=0.5, ensemble="mean", gold=True)
    both = read_study([*runs_below(str(folder)), priced])
    assert len(both.peaks) == len(study.peaks) + 1
    pd.testing.assert_frame_equal(findings.ensemble_runs(both, **WHO), findings.ensemble_runs(study, **WHO))


def test_effects_of_ensembles_are_named_by_optimiser_and_members(study, models):
    sets = study_levels.member_sets(models, WHO["main"])
    effects = findings.ensemble_effects(study, sets, **WHO, coef=0.5)
    assert {"RL: mean", "RL: min", "best of n, bases: min", "best of n, split: uncertainty"} <= set(effects["level"])
    saved = effects[(effects["level"] == "RL: mean") & (effects["group"] == "less fall from the peak")].iloc[0]
    table = findings.ensemble_runs(study, **WHO)
    mean = table[table["how"] == "mean"]
    assert saved["share"] == pytest.approx(mean["saved"].sum() / mean["drop"].sum())
    assert f"RL: mean saves {saved['share']:.0%} of the fall" in findings.ensemble_sentence(effects)
    rows = pd.DataFrame([saved.to_dict() | {"share": share} for share in (-0.001, -0.2)])
    said = findings.ensemble_sentence(rows)
    assert "saves nothing of the fall" in said and "adds 20% to the fall" in said
    assert findings.ensemble_effects(study, {}, main="absent", policy="02_sft", coef=0.5).empty
    errors = findings.errors_over_units(study, sets, policy="02_sft")
    assert errors["members"].tolist() == ["seeds", "split", "bases"] and errors["runs"].eq(4).all()


def test_ensembles_of_a_pool_are_compared_with_the_mean_of_their_members(study, models):
    sets = study_levels.member_sets(models, WHO["main"])
    table = findings.pool_ensembles(study, sets, policy=WHO["policy"], coef=0.5)
    row = table.query("world == 1 and seed == 0 and members == 'split' and how == 'min'").iloc[0]
    run = "07_best_of_n_world1_seed0"
    own = study.peaks[(study.peaks["run"] == run) & study.peaks["reward_model"].isin(["05_reward_model", "05_split"])]
    pool = study.pools[run]
    scores = pool[["judge_05_reward_model", "judge_05_split"]].min(axis=1)
    best = pool.loc[scores.groupby(pool["prompt_index"]).idxmax(), "gold"].mean()  # of all samples, by the lower score
    assert row["end"] == pytest.approx(best - own["end_gold"].mean())
    assert row["drop"] == pytest.approx(own["drop"].mean())


def test_only_runs_with_judges_are_watched_and_those_that_fall_are_known(study, models):
    sets = study_levels.member_sets(models, WHO["main"])
    signals, outcomes = findings.watched(study, sets, **WHO, tolerance=0.05)
    assert {"disagreement", "split_gap", "length", "repetition", "kl"} <= set(signals)
    falls = signals.groupby("run")["falls"].first().groupby(lambda run: run.split("_world")[0]).all()
    assert falls.to_dict() == {"06_ppo_kl0": True, "06_ppo_kl0.5": False} and len(outcomes) == 8


def hacked_path():
    """Three prompts: one hacked by repetition, one by dishonesty, one that the proxy likes less, too."""
    before = pd.DataFrame({"step": 0, "row": range(3), "prompt": list("abc"), "completion": ["fine"] * 3, "proxy": 0.0})
    before = before.assign(gold=1.0, gold_helpful=0.5, gold_honest=0.5, gold_repetition=0.0, gold_style=0.0)
    after = before.assign(step=9, completion=["no no no", "a lie", "bad"], proxy=[2.0, 1.0, -1.0])
    after["gold_repetition"], after["gold_honest"] = [-1.5, -0.1, -3.0], [0.5, -0.5, 0.5]
    after["gold_style"] = [0.5, 0.5, 0.5]
    parts = ["gold_helpful", "gold_honest", "gold_repetition", "gold_style"]
    return pd.concat([before, after.assign(gold=after[parts].sum(axis=1))], ignore_index=True)


def test_each_way_of_hacking_is_shown_where_the_proxy_rose_and_gold_fell():
    table = findings.hacked_samples({"run": hacked_path()})
    assert table["fell"].tolist() == ["repetition", "honest"]  # by their mean fall; helpful kept, style rose
    assert table["prompt"].tolist() == ["a", "b"] and table["after"].tolist() == ["no no no", "a lie"]
    assert table["component"].tolist() == [-1.5, -1.0] and table["proxy"].tolist() == [2.0, 1.0]
    assert table["gold"].tolist() == pytest.approx([-1.0, -0.6])
    assert table["where"].tolist() == pytest.approx([1.0, 1 / 3])
    assert findings.hacked_samples({"run": hacked_path()}, count=1)["fell"].tolist() == ["repetition"]


def test_a_gallery_without_hacking_components_or_runs_is_empty():
    assert findings.hacked_samples({}).empty
    plain = hacked_path()
    assert findings.hacked_samples({"run": plain[[name for name in plain if not name.startswith("gold_")]]}).empty
    assert findings.hacked_samples({"run": plain.drop(columns="gold")}).empty
    honest = plain.assign(proxy=np.where(plain["step"] > 0, -1.0, 0.0))
    assert findings.hacked_samples({"run": honest}).empty


def write_arm(folder, labels, unit, end, *, accuracy=0.6):
    """A run of 13 whose gold rises to 1 and goes to `end`."""
    rows = [
        {"step": step, "row": row, "prompt": f"p{row}", "kl": kl, "proxy": kl, "gold": gold + 0.1 * row}
        for step, kl, gold in ((0, 0.0, 0.0), (15, 1.0, 1.0), (30, 4.0, end))
        for row in range(PROMPTS)
    ]
    summary, path = {"last accuracy": accuracy} if accuracy else {"x": 1}, pd.DataFrame(rows).assign(completion="c")
    about = {"labels": labels, "algorithm": "ppo"}
    return finished(folder, f"13_iterated_{labels}{unit}", about, {"path": path}, summary=summary)


def test_fresh_labels_are_compared_with_the_control_of_their_unit(tmp_path):
    runs = []
    for seed, gap in enumerate((0.4, 0.6)):
        unit = f"_world0_seed{seed}"
        runs += [write_arm(tmp_path, "none", unit, -0.5 - seed, accuracy=0.4)]
        runs += [write_arm(tmp_path, "fresh", unit, -0.5 - seed + gap, accuracy=0.7)]
    curves, ends = rounds.iterated_arms(runs)
    assert len(curves) == 12 and set(curves["label"]) == {"fresh labels", "none fresh, refitted"}
    effects = rounds.arm_effects(ends).set_index("group")
    assert effects["level"].eq("fresh labels").all() and effects["units"].eq(2).all()
    assert effects.loc["gold at the end", "value"] == pytest.approx(0.5)
    assert effects.loc["less fall from the peak", "value"] == pytest.approx(0.5)
    assert effects.loc["accuracy of the last reward model", "value"] == pytest.approx(0.3)


def test_arms_are_drawn_along_training_with_their_means(tmp_path):
    runs = [write_arm(tmp_path, "fresh", f"_world0_seed{seed}", end) for seed, end in enumerate((0.2, 0.6))]
    figure = plot_arms(rounds.iterated_arms([*runs, write_arm(tmp_path, "none", "_world0_seed0", -0.5)])[0])
    drawn = {axis: [trace for trace in figure.data if trace.yaxis == axis] for axis in ("y", "y2")}
    means = {trace.name: list(trace.y) for trace in drawn["y"] if trace.line.width == 3}
    rows = 0.1 * (PROMPTS - 1) / 2  # what the prompts add
    assert means["fresh labels"] == pytest.approx([rows, 1 + rows, 0.4 + rows])
    assert means["none fresh, refitted"] == pytest.approx([rows, 1 + rows, -0.5 + rows])
    assert len(drawn["y"]) == 5 and all(list(trace.y) == [0, 1, 4] for trace in drawn["y2"])
    assert f"Gold ends at {0.4 + rows:.2f} with fresh labels" in figure.layout.title.text


def test_arms_without_a_control_or_accuracy_and_folders_without_arms(tmp_path):
    fresh = write_arm(tmp_path, "fresh", "_world0_seed0", 0.5, accuracy=None)
    _, ends = rounds.iterated_arms([fresh])
    assert math.isnan(ends["accuracy"].iloc[0]) and rounds.arm_effects(ends).empty
    control = write_arm(tmp_path, "none", "_world0_seed1", 0.5)  # of another unit
    assert rounds.arm_effects(rounds.iterated_arms([fresh, control])[1]).empty
    curves, ends = rounds.iterated_arms([])
    assert curves.empty and ends.empty
