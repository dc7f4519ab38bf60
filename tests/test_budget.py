"""What a KL budget buys: planted paths, hand cases, scipy and statsmodels as oracles; folders that lack something."""

import math

import numpy as np
import pandas as pd
import pytest
from budget_runs import METHODS, path_table, planted, pool_table, positions_table, write_run, write_study
from scipy import stats
from statsmodels.stats.multitest import multipletests

from workbench import WorkbenchError
from workbench.analysis.best_of_n import best_of_n_curve
from workbench.analysis.kl import estimator_errors, places_on_path, values_at_places
from workbench.runs import Run
from workbench.studies import measurements
from workbench.studies.answers import answers
from workbench.studies.budget import tables as budget
from workbench.studies.budget import tables as budget_samples
from workbench.studies.budget.tables import budget_paths, comparable_runs, score_columns, sizes_up_to, unit_of
from workbench.studies.measurements import gains_over_seeds, run_points
from workbench.trainers.evaluation import record_measured


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return measurements.runs_below(str(write_study(tmp_path_factory.mktemp("study"))))


@pytest.fixture(scope="module")
def compared(study):
    return comparable_runs(study)


@pytest.fixture(scope="module")
def paths(compared):
    return budget_paths(compared)


# A place on a path


@pytest.mark.parametrize(
    ("kl", "nats", "place"),
    [
        ([0.0, 1.0, 4.0], 1.0, 1.0),
        ([0.0, 1.0, 4.0], 2.25, 1.5),  # half way in √KL
        ([0.0, 4.0, 1.0, 9.0], 2.25, 0.75),  # the first of three crossings
        ([0.0, 4.0], 5.0, math.nan),
        ([2.0, 4.0], 1.0, math.nan),  # begins beyond
        ([2.0, 4.0], 2.0, 0.0),
        ([-0.01, 1.0], 0.25, 0.5),  # an estimate below zero is zero
        ([0.0, 0.0, 1.0], 1.0, 2.0),
    ],
)
def test_a_budget_has_its_place_on_a_path(kl, nats, place):
    np.testing.assert_allclose(places_on_path(kl, [nats]), [place], atol=1e-7)


def test_values_between_two_points_are_linear_and_unknown_where_the_place_is():
    values = np.array([[0.0, 10.0], [1.0, math.nan], [3.0, 30.0]])
    found = values_at_places(values, [0.0, 1.5, math.nan, 2.0])
    np.testing.assert_array_equal(found[[0, 3]], [[0.0, 10.0], [3.0, 30.0]])
    assert found[1, 0] == 2.0 and np.isnan(found[1, 1]) and np.isnan(found[2]).all()
    np.testing.assert_array_equal(values_at_places([5.0, 7.0], [0.5, 1.0]), [6.0, 7.0])


# Reading runs


def test_a_run_is_a_method_in_a_world_with_a_seed(tmp_path):
    named = write_run(tmp_path, "06_ppo_kl0.05_world1_seed2", {"world_seed": 7, "seed": 7})
    assert named.unit == ("06_ppo_kl0.05", 7, 2)  # a world is no matter of taste, a seed may be the run's own
    assert unit_of(named) == {"experiment": "ppo_kl0.05", "world": 7, "seed": 2}
    assert write_run(tmp_path, "08_dpo_world1_seed2", {"seed": 2}).unit == ("08_dpo", 1, 2)  # only its name says where
    older = write_run(tmp_path, "08_direct_alignment_seed3", {"seed": 3})
    assert unit_of(older) == {"experiment": "direct_alignment", "world": 0, "seed": 3}
    assert unit_of(write_run(tmp_path, "mine", {"world_seed": 4, "seed": 5})) == {
        "experiment": "mine",
        "world": 4,
        "seed": 5,
    }


def test_runs_that_learned_from_another_reward_model_are_left_out_unless_asked_for(study, compared):
    names = {unit_of(run)["experiment"] for run in compared}
    assert names == {"ppo_kl0", "ppo_kl0.15", "rloo_kl0", "ppo_adaptive", "best_of_n"}
    asked = comparable_runs(study, "ppo_kl0, pairs250")
    assert {unit_of(run)["experiment"] for run in asked} == {"ppo_kl0", "pairs250"} and len(asked) == 8
    with pytest.raises(WorkbenchError, match=r"No runs of \['ppo'\]: choose from \['best_of_n'"):
        comparable_runs(study, "ppo")


def test_folders_without_policies_get_a_sentence(study):
    rewards = [run for run in study if run.name.startswith("05")]
    for read in (comparable_runs, budget_paths):
        with pytest.raises(WorkbenchError, match="measured a policy"):
            read(rewards)


def test_a_path_is_the_mean_over_completions_at_each_step(paths):
    path = paths[paths["run"] == "06_ppo_kl0_world1_seed0"]
    root = np.linspace(0, METHODS["06_ppo_kl0"][0], 6)
    np.testing.assert_allclose(path["kl"], root**2, atol=1e-12)
    np.testing.assert_allclose(path["gold"], planted(root, *METHODS["06_ppo_kl0"][1:]) + 0.4, atol=1e-12)
    assert path["step"].tolist() == [0, 10, 20, 30, 40, 50] and set(path["source"]) == {"path"}
    assert set(path["world"]) == {1} and set(path["seed"]) == {0} and set(path["completions"]) == {12}
    assert score_columns(paths) == ["gold", "proxy", "gold_helpful", "gold_style"]


def test_best_of_n_is_a_path_in_n_with_its_measured_kl_and_its_bound(paths):
    path = paths[paths["run"] == "07_best_of_n_world0_seed0"]
    assert path["step"].tolist() == [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 19, 24, 30, 32]
    np.testing.assert_allclose(path["kl_bound"], np.log(path["step"]) - (path["step"] - 1) / path["step"])
    assert (path["kl"] <= path["kl_bound"] + 1e-12).all() and path["kl"].is_monotonic_increasing
    pool = pool_table(seed=0)
    matrices = [pool[name].to_numpy().reshape(8, 32) for name in ("proxy", "gold")]
    np.testing.assert_allclose(path["gold"], best_of_n_curve(*matrices, path["step"].tolist())["gold"])
    assert sizes_up_to(1) == [1]


def test_completions_with_nan_are_left_out_and_counted(tmp_path):
    table = path_table(3.0, 0.5, 0.1, seed=0)
    table.loc[table.index[:2], "gold"] = math.nan
    table.loc[table.index[15], "kl"] = math.nan
    run = write_run(tmp_path, "06_ppo_seed0", {}, path=table)
    paths = budget_paths([run])
    assert paths["left_out"].tolist() == [2, 1, 0, 0, 0, 0] and paths["completions"].tolist()[:3] == [10, 11, 12]
    assert paths.notna().all(axis=None)
    pool = pool_table(seed=0)
    pool.loc[3, "proxy"] = math.nan  # one draw: the whole prompt can no longer be best-of-32
    best = budget_paths([write_run(tmp_path, "07_bon_seed0", {}, pool=pool)])
    assert set(best["left_out"]) == {32} and set(best["completions"]) == {7 * 32}


def evaluation(kl: float, gold: float) -> pd.DataFrame:
    frame = pd.DataFrame({"prompt": ["a", "b"], "completion": "x", "kl": [kl - 1, kl + 1], "gold": gold, "proxy": kl})
    return pd.concat([frame.assign(temperature=1.0), frame.assign(temperature=0.0, gold=9.0, kl=math.nan)])


def test_a_stage_that_records_its_policy_has_a_path_points_gains_and_answers(tmp_path):
    run = Run.open(tmp_path / "control", {"model": "start", "seed": 0})
    for step, kl, gold in ((0, 0.0, 1.0), (5, 2.0, 4.0)):
        rows = [{"prompt": prompt, "completion": "x", "kl": kl, "gold": gold} for prompt in "ab"]
        record_measured(run, rows, step=step)
    run.finish()
    runs = {"control": Run.read(run.dir)}
    assert budget_paths(runs.values())[["kl", "gold"]].to_numpy().tolist() == [[0.0, 1.0], [2.0, 4.0]]
    assert run_points(runs).set_index("run")["gold"].to_dict() == {"start": 1.0, "control": 4.0}
    assert gains_over_seeds(runs)["gain"].tolist() == [3.0]
    assert answers(runs).rows.groupby("policy").size().to_dict() == {"control": 2, "start": 2}


def test_runs_without_a_path_are_read_from_what_they_have(tmp_path):
    tables = {"evaluation_before": evaluation(0.0, 0.4), "evaluation": evaluation(4.0, 0.8)}
    ends = budget_paths([write_run(tmp_path, "08_dpo_seed0", {}, **tables)])
    assert ends["source"].unique().tolist() == ["evaluation"]
    assert ends[["kl", "gold"]].to_numpy().tolist() == [[0.0, 0.4], [4.0, 0.8]]
    curve = best_of_n_curve([[1.0, 2.0]] * 3, [[1.0, 0.0]] * 3, [1, 2])
    bounded = budget_paths([write_run(tmp_path, "07_bon_seed0", {}, curve=curve)])
    assert bounded["kl"].tolist() == bounded["kl_bound"].tolist() == curve["kl"].tolist()
    imitation = budget_paths([write_run(tmp_path, "07_raft_seed0", {}, curve=curve, pool=pool_table(seed=0), **tables)])
    assert imitation["source"].unique().tolist() == ["evaluation"] and imitation["kl"].tolist() == [0.0, 4.0]
    together = budget.mean_paths(pd.concat([ends, bounded]))
    assert together.groupby("experiment")["measured"].first().to_dict() == {"dpo": 2, "bon": 2}


def test_without_gold_the_proxy_is_what_is_compared(tmp_path):
    runs = comparable_runs(measurements.runs_below(str(write_study(tmp_path, worlds=1, seeds=2, gold=False))))
    paths = budget_paths(runs)
    assert score_columns(paths) == ["proxy"]
    comparison = budget.compared_at_budget(budget.at_budget(paths, [1.0]), "proxy")
    assert comparison["verdict"].iloc[0] == "highest" and comparison["value"].notna().all()


# At a budget


def test_every_run_stands_at_a_budget_where_its_planted_path_crosses_it(paths):
    landed = budget.at_budget(paths, [1, 4, 16])
    rloo = landed[(landed["experiment"] == "rloo_kl0") & (landed["budget"] == 4)]
    rise, loss = METHODS["06_rloo_kl0"][1:]
    corners = planted(np.array([1.8, 2.7]), rise, loss)  # measured on both sides of √4
    expected = corners[0] + (2 - 1.8) / 0.9 * (corners[1] - corners[0]) + 0.2 * np.arange(4)
    np.testing.assert_allclose(rloo["gold"], expected, atol=1e-9)
    np.testing.assert_allclose(rloo["proxy"], 0.5 * 2, atol=1e-9)  # planted as a line in √KL: no error at all
    assert rloo["step"].tolist() == [20.0] * 4 and rloo["reached"].all()
    never = landed[(landed["experiment"] == "ppo_kl0.15") & (landed["budget"] == 16)]
    assert not never["reached"].any() and never[["gold", "step"]].isna().all(axis=None)


def test_under_a_ceiling_a_run_is_its_last_policy_that_costs_no_more():
    path = pd.DataFrame({"kl": [0.0, 4.0, 1.0, 1.5, 9.0], "gold": [0.0, 1.0, 2.0, 3.0, 4.0], "step": range(5)})
    path = path.assign(run="a", experiment="a", world=0, seed=0)
    begins_beyond = path[path["kl"] > 2].assign(run="b")
    within = budget.within_budget(pd.concat([path, begins_beyond]), [2.0, 100.0])
    assert within["gold"].tolist()[:2] == [3.0, 4.0] and within["kl"].tolist()[:2] == [1.5, 9.0]
    assert within["reached"].tolist() == [True, True, False, True] and math.isnan(within["gold"].iloc[2])
    first_passage = budget.at_budget(path, [2.25])
    assert first_passage["gold"].item() == pytest.approx(0.75) and first_passage["step"].item() == 1


@pytest.mark.parametrize("budgets", [[], [0.0], [1.0, -2.0], [math.nan]])
def test_budgets_that_are_none_get_a_sentence(paths, budgets):
    with pytest.raises(WorkbenchError, match="nats above 0"):
        budget.at_budget(paths, budgets)


def test_round_budgets_end_with_the_largest_that_is_spent(paths):
    assert budget.round_budgets(paths, most=5) == [6.0, 8.0, 10.0, 15.0, 20.0]
    assert budget.round_budgets(paths.assign(kl=paths["kl"] / 1e6), most=3) == [1e-5, 1.5e-5, 2e-5]
    with pytest.raises(WorkbenchError, match="no KL to spend"):
        budget.round_budgets(paths.assign(kl=0.0))


def test_mean_paths_are_means_at_equal_kl_up_to_the_first_end(paths):
    part = paths[paths["experiment"] == "ppo_kl0"].copy()
    first = part["run"] == part["run"].iloc[0]
    part.loc[first, "kl"] *= 0.25  # the same path with half the √KL
    curve = budget.mean_paths(part, points=5)
    np.testing.assert_allclose(np.sqrt(curve["kl"]), [0, 0.625, 1.25, 1.875, 2.5])
    # the proxy is .5 √KL, and √KL itself where it was halved
    np.testing.assert_allclose(curve["proxy"], np.sqrt(curve["kl"]) * (3 * 0.5 + 1.0) / 4, atol=1e-9)
    spread = curve["proxy_high"] - curve["proxy"]
    values = np.array([1.0, 0.5, 0.5, 0.5]) * 2.5
    expected = stats.t.ppf(0.975, 3) * stats.sem(values)
    worlds_alike = expected, stats.t.ppf(0.975, 1) * abs(values[:2].mean() - values[2:].mean()) / 2
    assert min(abs(spread.iloc[-1] - other) for other in worlds_alike) < 1e-9
    ends = budget.mean_ends(part)
    assert ends["kl"].item() == pytest.approx((25 * 3 + 6.25) / 4) and ends["runs"].item() == 4


def landings(**values: list[float]) -> pd.DataFrame:
    """One budget, a world per value, NaN where a run never gets there."""
    rows = [
        {"run": f"{name}{world}", "experiment": name, "world": world, "seed": 0, "budget": 2.0, "step": 1.0}
        | {"gold": value, "reached": not math.isnan(value)}
        for name, column in values.items()
        for world, value in enumerate(column)
    ]
    return pd.DataFrame(rows)


def test_differences_from_the_highest_are_paired_t_tests_corrected_for_all_pairs():
    generator = np.random.default_rng(0)
    base = generator.normal(size=9)
    shifts = {"a": 0.0, "b": -0.4, "c": -0.15, "d": -0.05}
    values = {name: base + shift + 0.2 * generator.normal(size=9) for name, shift in shifts.items()}
    values["a"] = values["a"] + 0.5
    table = budget.compared_at_budget(landings(**values), "gold").set_index("experiment")
    tests = {name: stats.ttest_rel(values["a"], values[name]) for name in "bcd"}
    pairs = [stats.ttest_rel(values[one], values[other]).pvalue for one, other in ("ab", "ac", "ad", "bc", "bd", "cd")]
    corrected = multipletests(pairs, method="holm")[1][:3]
    np.testing.assert_allclose(table.loc[list("bcd"), "p_value"], corrected, rtol=1e-6)
    np.testing.assert_allclose(table["needed"], stats.t.ppf(1 - 0.025 / 6, 8))
    reversed_names = {new: values[old] for new, old in zip("dcba", "abcd", strict=True)}  # pairs the other way round
    other = budget.compared_at_budget(landings(**reversed_names), "gold")
    columns = ["behind", "behind_low", "behind_high", "p_value"]
    np.testing.assert_allclose(other[columns], table[columns], rtol=1e-9)
    for name, test in tests.items():
        low, high = test.confidence_interval(1 - 0.05 / 6)  # for all six pairs at once
        assert table.loc[name, ["behind_low", "behind_high"]].tolist() == pytest.approx([low, high])
    assert table.loc["a", "verdict"] == "highest"
    assert [table.loc[name, "verdict"] == "behind" for name in "bcd"] == (corrected < 0.05).tolist()


def test_seeds_of_a_world_are_no_further_draws():
    values = {"a": [1.0, 1.1, 1.2, 1.4, 1.5, 1.6], "b": [0.5] * 6}
    table = landings(**values).assign(world=[0, 0, 0, 1, 1, 1] * 2, seed=[0, 1, 2] * 4)
    found = budget.compared_at_budget(table, "gold").set_index("experiment").loc["b"]
    assert found["p_value"] == pytest.approx(stats.ttest_1samp([0.6, 1.0], 0).pvalue)
    assert found["verdict"] == "not told apart"  # of six independent runs it would be behind: p = .0005


def test_verdicts_name_what_can_not_be_said():
    nan = math.nan
    values = {"a": [1.0, 1.2, 1.1], "b": [0.9, 1.3, 1.0], "rare": [5.0, nan, nan], "never": [nan] * 3}
    table = budget.compared_at_budget(landings(**values), "gold")
    assert dict(zip(table["experiment"], table["verdict"], strict=True)) == {
        "a": "highest",  # what only one run reaches can not be
        "b": "not told apart",
        "rare": "one run",
        "never": "does not reach",
    }
    assert table["reached"].tolist() == [1, 3, 3, 0]
    sentence = budget.budget_sentences(table, "gold")[0]
    assert sentence.startswith("At 2 nats: a has the most gold, 1.10; not told apart: b; never there: never. (")
    assert f"must differ by {stats.t.ppf(0.975, 2):.1f} standard errors" in sentence  # one pair of three worlds
    alone = budget.compared_at_budget(landings(a=[1.0, 2.0]), "gold")
    assert budget.budget_sentences(alone, "gold") == ["At 2 nats: a has the most gold, 1.50."]
    nobody = budget.compared_at_budget(landings(a=[nan, nan]), "gold")
    assert budget.budget_sentences(nobody, "gold") == ["At 2 nats: no method gets there in most of its runs."]


def test_one_run_per_method_is_compared_without_intervals():
    table = budget.compared_at_budget(landings(a=[1.0], b=[0.5]), "gold")
    assert table["verdict"].tolist() == ["highest", "one run"] and table["behind"].tolist()[1] == 0.5
    assert table[["low", "high", "p_value"]].isna().all(axis=None)
    assert "one run of each, so no interval" in budget.budget_sentences(table, "gold")[0]


# What lies behind it


def test_the_same_prompts_are_shown_for_every_method_at_its_own_step(compared, paths):
    samples = budget_samples.samples_of_unit(compared, world=1, seed=0)
    landed = budget.at_budget(paths, [2.0, 16.0])
    mine = landed[(landed["world"] == 1) & (landed["seed"] == 0)]
    shown = budget_samples.side_by_side_at(samples, mine, count=3)
    two = shown[shown["budget"] == 2]
    assert set(two["experiment"]) == {"ppo_kl0", "ppo_kl0.15", "rloo_kl0", "ppo_adaptive", "best_of_n"}
    assert two.groupby("experiment")["prompt"].apply(list).map(tuple).nunique() == 1 and two["prompt"].nunique() == 3
    assert two["kind"].nunique() == 3
    steps = mine[mine["budget"] == 2].set_index("experiment")["step"]
    assert (two["step"] == two["experiment"].map(steps)).all()
    assert set(shown[shown["budget"] == 16]["experiment"]) == {"ppo_kl0", "rloo_kl0"}
    assert set(shown[shown["budget"] == 16]["prompt"]) == set(two["prompt"])
    with pytest.raises(WorkbenchError, match="No method spends that much"):
        budget_samples.side_by_side_at(samples, budget.at_budget(paths, [100.0]))
    with pytest.raises(WorkbenchError, match="world 9, seed 0 kept its completions"):
        budget_samples.samples_of_unit(compared, world=9, seed=0)
    assert budget_samples.texts_at(compared, mine.iloc[:0]).empty


def test_best_of_n_shows_the_favourite_among_the_first_n(compared):
    samples = budget_samples.samples_of_unit(compared, world=0, seed=0)
    pool = pool_table(seed=0)
    for n in (1, 5, 32):
        first = pool[pool["prompt_index"] == 4].head(n)
        here = samples[(samples["experiment"] == "best_of_n") & (samples["step"] == n)]
        best = here[here["prompt"] == "prompt 4"].iloc[0]
        assert best["proxy"] == first["proxy"].max() and best["completion"] in set(first["completion"])


def test_kl_by_position_adds_up_to_the_mean_kl_of_the_step(compared, paths):
    landed = budget.at_budget(paths, [4.0])
    positions = budget_samples.positions_at(compared, landed)
    ppo = positions[(positions["experiment"] == "ppo_kl0") & (positions["kind"] == "all")]
    step = landed.loc[landed["experiment"] == "ppo_kl0", "step"].iloc[0]
    kl = paths.loc[(paths["experiment"] == "ppo_kl0") & (paths["step"] == step), "kl"].iloc[0]
    assert ppo["kl"].sum() == pytest.approx(kl) and ppo["position"].tolist() == list(range(1, 9))
    of_kinds = positions[(positions["experiment"] == "ppo_kl0") & (positions["kind"] != "all")]
    kinds = of_kinds.groupby("kind")["kl"].sum()
    assert set(kinds.index) == {"suggest", "qa", "harm"} and kinds.mean() == pytest.approx(
        kl
    )  # as many prompts of each
    with pytest.raises(WorkbenchError, match="kept its KL by position"):
        budget_samples.positions_at(compared, budget.at_budget(paths, [100.0]))


def test_a_run_whose_completions_ended_earlier_spends_nothing_at_later_positions(tmp_path):
    path, runs = path_table(2.0, 0.5, 0.1, seed=0), []
    for seed, length in enumerate((8, 4)):
        tables = {"path": path, "kl_positions": positions_table(path, length)}
        runs.append(write_run(tmp_path, f"06_ppo_seed{seed}", {}, **tables))
    landed = budget.at_budget(budget_paths(runs), [1.0])
    positions = budget_samples.positions_at(runs, landed)
    every = positions[positions["kind"] == "all"]
    step = landed["step"].iloc[0]
    assert every["kl"].sum() == pytest.approx(path.loc[path["step"] == step, "kl"].mean())
    assert every["runs"].tolist() == [2] * 8


def test_training_is_averaged_over_runs_step_by_step(compared):
    adaptive = [run for run in compared if run.parameters.get("kl_target")]
    training = budget_samples.training_over_units(adaptive, ["kl_coef", "kl", "nothing"], window=1)
    np.testing.assert_allclose(training["kl"], np.linspace(0, 2, 6)[1:] ** 2)
    assert training["runs"].tolist() == [4] * 5 and "nothing" not in training
    with pytest.raises(WorkbenchError, match="while it trained"):
        budget_samples.training_over_units([run for run in compared if "best" in run.name], ["kl"])


def test_estimators_are_compared_on_the_same_completions():
    generator = np.random.default_rng(0)
    exact = generator.gamma(4, size=5000)
    frame = pd.DataFrame({"kl": exact, "kl_k1": exact + 2 * generator.normal(size=5000), "kl_k3": exact + 0.25})
    frame.loc[0, "kl_k1"] = math.nan
    table = estimator_errors(frame).set_index("estimator")
    assert table.loc["k3", ["bias", "bias_se"]].tolist() == pytest.approx([0.25, 0.0])
    assert table.loc["k1", "bias_se"] == pytest.approx(2 / math.sqrt(5000), rel=0.05)
    assert abs(table.loc["k1", "bias"]) < 4 * table.loc["k1", "bias_se"]
    assert table.loc["exact", "sd"] == pytest.approx(2.0, rel=0.05) and table.loc["k1", "completions"] == 4999
    with pytest.raises(WorkbenchError, match="did not estimate"):
        estimator_errors(frame.drop(columns="kl_k3"))
    with pytest.raises(WorkbenchError, match="nothing to compare"):
        estimator_errors(frame.assign(kl_k1=math.nan))


def test_sampled_estimators_agree_with_the_kl_of_two_known_policies():
    policy, reference = np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.3, 0.4])
    draws = np.random.default_rng(1).choice(3, p=policy, size=40_000)
    ratio = np.log(reference / policy)[draws]
    truth = float((policy * np.log(policy / reference)).sum())
    table = estimator_errors(pd.DataFrame({"kl": truth, "kl_k1": -ratio, "kl_k3": np.expm1(ratio) - ratio}))
    sampled = table[table["estimator"] != "exact"]
    assert (sampled["bias"].abs() < 3 * sampled["bias_se"]).all()
    spread = [math.sqrt(float((policy * (value - truth) ** 2).sum())) for value in _k1_and_k3(policy, reference)]
    np.testing.assert_allclose(sampled["sd"], spread, rtol=0.03)


def _k1_and_k3(policy, reference):
    ratio = reference / policy
    return -np.log(ratio), ratio - 1 - np.log(ratio)


def test_estimators_along_a_path_need_a_path(compared):
    free = [run for run in compared if unit_of(run)["experiment"] == "ppo_kl0"]
    errors = budget_samples.estimators_along(free)
    assert errors["step"].tolist() == sorted([10, 20, 30, 40, 50] * 3) and set(errors["completions"]) == {48}
    with pytest.raises(WorkbenchError, match="k1 and k3"):
        budget_samples.estimators_along([run for run in compared if "best" in run.name])
