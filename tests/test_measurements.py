"""What is read from run folders: which there are, what they measured, and means over them; folders made by hand."""

import json
import math
import statistics
from pathlib import Path

import pandas as pd
import pytest
from measured import as_measured

from workbench import WorkbenchError
from workbench.analysis.evaluations import NEEDED
from workbench.runs import Run
from workbench.studies import measurements
from workbench.studies.answers import answers
from workbench.studies.comparison.tables import overview
from workbench.studies.measurements import find_runs
from workbench.studies.overoptimization.tables import accuracy_by_size

PROMPTS = ("a", "b", "c", "d")


def evaluation(gold: dict[float, list[float]], *, kl=0.0, proxy=None, method="PPO") -> pd.DataFrame:
    """A table as `evaluate_at_temperatures` makes it, gold by temperature."""
    frames = []
    for temperature, values in gold.items():
        frame = pd.DataFrame({"prompt": PROMPTS, "completion": "x", "completion_length": 3, "gold": values})
        frames.append(frame.assign(temperature=temperature, kl=kl if temperature == 1 else math.nan, method=method))
    table = pd.concat(frames, ignore_index=True)
    return table if proxy is None else table.assign(proxy=proxy)


def saved(folder: Path, name: str, *, parameters=None, summary=None, finished=True, **tables) -> Run:
    """A run with these tables, as it is read back; its start lies beside it."""
    run = Run.open(folder / name, {"model": f"runs/{folder.name}/02_sft", "seed": 0, **(parameters or {})})
    for table, frame in as_measured(tables).items():
        run.save_table(table, frame)
    run.summary(summary or {"x": 1.0})
    if finished:
        run.finish()
    return Run.read(run.dir)


@pytest.fixture
def save(tmp_path):
    """Writes a run that started from runs/sft, with the seed that its name ends in."""

    def of(name: str, *, before=None, after=None, summary=None) -> Run:
        tables = {"evaluation_before": before, "evaluation": after}
        parameters = {"model": "runs/sft", "seed": int(name[-1]) if name[-1].isdigit() else 0}
        held = {table: frame for table, frame in tables.items() if frame is not None}
        return saved(tmp_path, name, parameters=parameters, summary=summary, **held)

    return of


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
    row = measurements.gains_over_seeds(three_seeds(save)).to_dict("records")
    assert len(row) == 1 and row[0]["run"] == "ppo" and row[0]["runs"] == 3 and row[0]["seeds_above"] == 3
    assert row[0]["gain"] == pytest.approx(3.0)
    assert row[0]["gain_se"] == pytest.approx(math.sqrt(7 / 3))  # of 1, 2, 6: variance 7
    assert (row[0]["greedy_gain"], row[0]["greedy_gain_se"]) == pytest.approx((0.0, math.sqrt(1 / 3)))
    assert (row[0]["kl"], row[0]["kl_se"]) == pytest.approx((1.0, math.sqrt(1 / 3)))
    assert row[0]["gold"] == pytest.approx((2.5 + 8.5 + 8.5) / 3)


def test_a_single_run_has_the_error_of_paired_differences_over_prompts(save):
    before = evaluation({1.0: [0.0, 10.0, 20.0, 30.0], 0.0: [0.0] * 4})
    after = evaluation({1.0: [1.0, 11.0, 21.0, 35.0], 0.0: [0.0] * 4})
    row = measurements.gains_over_seeds([save("only", before=before, after=after)]).iloc[0]
    assert row["gain"] == 2.0 and row["gain_se"] == pytest.approx(1.0)  # of 1, 1, 1, 5: variance 4 over 4 prompts
    assert row["runs"] == 1 and row["seeds_above"] == 1


def test_a_policy_that_lost_is_not_counted_as_above_and_runs_without_evaluation_are_passed_over(save):
    before = evaluation({1.0: [1.0] * 4, 0.0: [1.0] * 4})
    lost = save("dpo", before=before, after=evaluation({1.0: [0.0] * 4, 0.0: [2.0] * 4}))
    table = measurements.gains_over_seeds([lost, save("sft")])
    assert table["run"].tolist() == ["dpo"]
    assert (table["gain"].iloc[0], table["greedy_gain"].iloc[0], table["seeds_above"].iloc[0]) == (-1.0, 1.0, 0)


def test_without_gold_the_gain_is_the_proxys(save):
    before = evaluation({1.0: [0.0] * 4, 0.0: [0.0] * 4}, proxy=1.0).drop(columns="gold")
    after = evaluation({1.0: [0.0] * 4, 0.0: [0.0] * 4}, proxy=4.0).drop(columns="gold")
    row = measurements.gains_over_seeds([save("ppo", before=before, after=after)]).iloc[0]
    assert row["gain"] == 3.0 and "gold" not in row


def test_runs_without_any_evaluation_get_a_sentence(save):
    with pytest.raises(WorkbenchError, match="None of these runs holds an evaluation"):
        measurements.gains_over_seeds([save("sft")])


def test_summaries_over_seeds_put_together_what_differs_only_in_the_seed(save):
    runs = [save(f"rm_seed{seed}", summary={"accuracy": value}) for seed, value in enumerate((0.7, 0.8, 0.9))]
    table = measurements.summaries_over_seeds([*runs, save("rm_other", summary={"accuracy": 0.5})]).set_index("stage")
    assert table.loc["rm", ["runs", "mean", "lowest", "highest"]].tolist() == pytest.approx([3, 0.8, 0.7, 0.9])
    assert table.loc["rm", "standard_error"] == pytest.approx(0.1 / math.sqrt(3))
    assert math.isnan(table.loc["rm_other", "standard_error"])


def test_curves_over_seeds_average_each_temperature(save):
    curves = measurements.curves_over_seeds(three_seeds(save))
    assert curves["run"].unique().tolist() == ["sft", "ppo"] and curves["runs"].tolist() == [1, 1, 3, 3]
    curves = curves[curves["run"] == "ppo"]
    hot = curves.set_index("temperature").loc[1.0]
    assert hot["gold"] == pytest.approx((2.5 + 8.5 + 8.5) / 3) and hot["gold_se"] == pytest.approx(2.0)


def test_curves_hold_the_pretrained_model_and_the_best_of_sixteen_at_its_own_temperatures(save, tmp_path):
    """A start that was measured by itself, too, comes once; of best-of-n each temperature has its last n up to 16."""
    alone = evaluation({1.0: [2.0] * 4, 0.0: [1.0] * 4})
    runs = [*three_seeds(save), save("sft", after=alone), save("base", after=alone)]
    sizes = pd.DataFrame({"n": [1, 4, 16, 64], "kl": 1.0, "gold": [0.0, 1.0, 2.0, 3.0], "step": 0})
    hot, cold = sizes.assign(draw="best of n", temperature=1.0), sizes.assign(draw="decided best of n", temperature=0.5)
    chooser = saved(tmp_path, "bon", measured=pd.concat([hot, cold[:3]]))
    curves = measurements.curves_over_seeds([*runs, chooser])
    assert curves["run"].unique().tolist() == ["base", "sft", "ppo", "bon, n = 16"]
    gold = curves.set_index(["run", "temperature"])["gold"]
    assert gold["base"].to_dict() == {1.0: 2.0, 0.0: 1.0} and gold["bon, n = 16"].to_dict() == {1.0: 2.0, 0.5: 2.0}
    assert gold["sft"].to_dict() == {1.0: 1.5, 0.0: 1.5}  # as those measured it that started from it


def test_margins_are_counted_run_by_run_against_the_policy_that_each_started_from(save, tmp_path):
    """SFT from a base, PPO from SFT; best-of-n's low temperature stands where it has no greedy answer."""
    runs = []
    for seed, (sft, ppo) in enumerate([(1.0, 3.0), (2.0, 2.5), (3.0, 2.0)]):
        name, base = f"sft_seed{seed}", evaluation({1.0: [0.0] * 4, 0.0: [0.5] * 4})
        start, end = (evaluation({1.0: [gold] * 4, 0.0: [gold] * 4}, kl=1.0) for gold in (sft, ppo))
        given = {"model": f"runs/{tmp_path.name}/base", "seed": seed}
        runs.append(saved(tmp_path, name, parameters=given, evaluation=start))
        given = {"model": f"runs/{tmp_path.name}/{name}", "seed": seed}
        runs.append(saved(tmp_path, f"ppo_seed{seed}", parameters=given, evaluation_before=start, evaluation=end))
    sizes = pd.DataFrame({"n": [1, 16], "kl": 1.0, "gold": [0.0, 7.0], "step": 0})
    drawn = sizes.assign(draw="decided best of n", temperature=0.5)
    runs.append(saved(tmp_path, "bon_seed0", parameters={"model": f"runs/{tmp_path.name}/sft_seed0"}, measured=drawn))
    base = evaluation({1.0: [0.0] * 4, 0.0: [0.5] * 4})
    runs.append(saved(tmp_path, "base", parameters={"model": "nothing"}, evaluation=base))
    table = measurements.margins_over_seeds(runs).set_index(["experiment", "temperature"])
    assert table["start"].to_dict() == {
        ("sft", 1.0): "base",
        ("sft", 0.0): "base",
        ("ppo", 1.0): "sft",
        ("ppo", 0.0): "sft",
        ("bon, n = 16", 0.0): "sft",
    }
    ppo = table.loc[("ppo", 1.0)]
    assert (ppo["runs"], ppo["above"], ppo["least"]) == (3, 2, -1.0) and ppo["margin"] == pytest.approx(0.5)
    half = 4.302653 * statistics.stdev([2.0, 0.5, -1.0]) / 3**0.5  # Student's t with two degrees of freedom
    assert ppo["margin_high"] - ppo["margin"] == pytest.approx(half, rel=1e-5)
    assert table.loc[("sft", 0.0), "margin"] == pytest.approx(1.5)
    assert table.loc[("bon, n = 16", 0.0), "margin"] == 6.0


def test_points_hold_the_start_once_and_every_policy(save):
    points = measurements.run_points(three_seeds(save)).set_index("run")
    assert points.index.tolist() == ["sft", "ppo_seed0", "ppo_seed1", "ppo_seed2"]
    assert points.loc["ppo_seed2", "kl"] == 2.0 and points.loc["ppo_seed1", "greedy_gold"] == pytest.approx(7.5)


# Runs of several folders, other versions, and with gaps


def both(gain: float, *, start: float = 0.0) -> dict[str, pd.DataFrame]:
    before = evaluation({1.0: [start] * 4, 0.0: [start] * 4}, method="SFT")
    after = evaluation({1.0: [start + gain] * 4, 0.0: [start + gain] * 4}, kl=1.0)
    return {"evaluation_before": before, "evaluation": after}


def test_equal_names_in_two_folders_are_two_runs_that_started_from_two_policies(tmp_path):
    runs = [saved(tmp_path / "a", "06_ppo", **both(1.0)), saved(tmp_path / "b", "06_ppo", **both(2.0, start=5.0))]
    points = measurements.run_points(runs).set_index("run")
    assert points.index.tolist() == ["a/02_sft", "b/02_sft", "a/06_ppo", "b/06_ppo"]
    assert points["gold"].tolist() == [0.0, 5.0, 1.0, 7.0]
    assert measurements.gains_over_seeds(runs).set_index("run")["gain"].to_dict() == {"a/06_ppo": 1.0, "b/06_ppo": 2.0}


def test_worlds_are_what_was_drawn(tmp_path):
    gains = {(0, 0): 1.0, (0, 1): 3.0, (1, 0): 6.0, (1, 1): 8.0}
    runs = [saved(tmp_path, f"ppo_world{w}_seed{s}", **both(gain)) for (w, s), gain in gains.items()]
    row = measurements.gains_over_seeds(runs).iloc[0]
    assert (row["run"], row["runs"], row["gain"]) == ("ppo", 4, 4.5)
    assert row["gain_se"] == pytest.approx(2.5)  # of the two worlds' means, 2 and 7


def test_rows_without_a_score_are_left_out_of_all_and_prompts_stay_paired(tmp_path):
    tables = both(1.0)
    tables["evaluation_before"]["gold"] = [0.0, 10.0, 20.0, 30.0] * 2
    tables["evaluation"]["gold"] = [1.0, math.nan, 22.0, 33.0] * 2
    run = saved(tmp_path, "ppo", **tables)
    assert measurements.gains_over_seeds([run])["gain"].iloc[0] == pytest.approx(2.0)
    assert [measurements.read_evaluation(run, when).undefined for when in ("after", "before")] == [2, 0]
    assert measurements.run_points([run]).set_index("run").loc["ppo", "gold"] == pytest.approx(56 / 3)


def test_the_nth_time_that_a_prompt_was_asked_meets_the_nth_time(tmp_path):
    tables = both(1.0)
    for table, gold in (("evaluation_before", [1.0, 2.0, 3.0, 4.0]), ("evaluation", [2.0, 2.0, 3.0, 9.0])):
        tables[table] = tables[table].assign(prompt=["x", "x", "x", "y"] * 2, gold=gold * 2)
    row = measurements.gains_over_seeds([saved(tmp_path, "ppo", **tables)]).iloc[0]
    assert row["gain"] == pytest.approx(6 / 4) and row["gain_se"] == pytest.approx(math.sqrt(17 / 3) / 2)  # 1, 0, 0, 5


@pytest.mark.parametrize(
    "broken",
    [
        {"evaluation": pd.DataFrame({"prompt": ["a"], "reward": [1.0]})},
        {"evaluation": both(1.0)["evaluation"].drop(columns="temperature")},
        {"evaluation": both(1.0)["evaluation"].drop(columns="kl")},
        {"evaluation": both(1.0)["evaluation"].query("temperature == 0")},
        {"evaluation": both(1.0)["evaluation"].drop(columns="gold")},
        {"curve": pd.DataFrame({"size": [1, 2]})},
    ],
    ids=["other columns", "no temperature", "no KL", "only greedy", "no score", "another curve"],
)
def test_a_run_of_another_version_is_passed_over_and_the_others_stay(tmp_path, broken):
    good = saved(tmp_path, "good", **both(1.0))
    other = saved(tmp_path, "other", **{"evaluation_before": both(1.0)["evaluation_before"], **broken})
    assert "other" not in set(measurements.run_points([good, other])["run"])
    assert "good" in set(measurements.gains_over_seeds([good, other])["run"])


def test_a_damaged_table_is_passed_over(tmp_path):
    good, bad = saved(tmp_path, "good", **both(1.0)), saved(tmp_path, "bad", **both(1.0))
    for damaged in ('{"prompt": \n', "[]\n", '{"prompt": "x"}\n'):
        bad.path("tables/measured.jsonl").write_text(damaged)
        assert set(measurements.run_points([good, bad])["run"]) == {"02_sft", "good"}
        found = answers({"good": good, "bad": bad})
        assert set(found.rows["run"]) == {"02_sft", "good"} and "bad/tables/measured.jsonl" in found.left_out[0]
        assert overview({"bad": bad}, pd.DataFrame(), pd.DataFrame({"policy": []}))["measured"].tolist() == [""]
    bad.path("summary.json").write_text("{")
    assert measurements.summaries_over_seeds([good, bad])["stage"].tolist() == ["good"]


STANDS = {"draw": "path", "step": 0, "row": 0, "prompt": "a", "completion": "x", "kl": 0.5, "gold": 1.0, "n": 1}
FLAWS = {f"no column {name}": {key: STANDS[key] for key in STANDS if key != name} for name in NEEDED["path"]}
FLAWS |= {f"without {name}": STANDS | {name: None} for name in ("step", "row", "prompt")}
FLAWS |= {f"{name} {value!r}, which": STANDS | {name: value} for name in ("kl", "gold", "step") for value in ("x", [1])}
FLAWS |= {"temperature 'hot'": STANDS | {"temperature": "hot"}, "completion 3, which": STANDS | {"completion": 3}}
FLAWS |= {"no kl": STANDS | {"kl": None}}
FLAWS |= {f"draw {value!r}": STANDS | {"draw": value} for value in ("mine", ["path"], None)}
TEXTS = {said: json.dumps(row) + "\n" for said, row in FLAWS.items()}
TEXTS |= {"no measurement, though": "", "half line": json.dumps(STANDS) + '\n{"draw": "pa'}


@pytest.mark.parametrize("said", TEXTS)
def test_a_run_whose_measurements_cannot_be_trusted_is_left_out_by_name(tmp_path, said):
    for name, text in {"bad": TEXTS[said], "good": json.dumps(STANDS) + "\n"}.items():
        run = saved(tmp_path, name)
        run.path("tables").mkdir()
        run.path("tables/measured.jsonl").write_text(text)
    kept, left_out = measurements.readable_runs(str(tmp_path))
    assert [run.name for run in kept] == ["good"] and len(left_out) == 1
    assert "bad/tables/measured.jsonl" in left_out[0] and said in left_out[0]
    with pytest.raises(WorkbenchError, match="bad was left out"):
        measurements.readable_runs(str(tmp_path / "bad"))


def test_a_run_of_an_older_version_is_named_with_what_to_do(tmp_path):
    run = saved(tmp_path, "old")
    run.path("tables").mkdir()
    run.path("tables/path.jsonl").write_text(json.dumps(STANDS) + "\n")
    with pytest.raises(WorkbenchError, match=r"old/tables/path.jsonl was made by an older version: run the"):
        measurements.readable_runs(str(tmp_path))


@pytest.mark.parametrize("text", ["", json.dumps(STANDS) + '\n{"draw": "pa'])
def test_an_unfinished_run_may_yet_measure(tmp_path, text):
    run = saved(tmp_path, "going", finished=False)
    run.path("tables").mkdir()
    run.path("tables/measured.jsonl").write_text(text)
    assert len(measurements.read_measured(run, "path")) == text.count("\n")


def test_without_key_numbers_there_are_no_rows(tmp_path):
    run = saved(tmp_path, "bad")
    run.path("summary.json").write_text("{")
    assert measurements.summaries_over_seeds([run]).empty


def test_one_point_per_experiment_is_the_mean_of_its_runs_and_of_each_n(save):
    curve = pd.DataFrame({"n": [1, 4], "kl": [0.0, 0.6], "gold": [1.0, 2.0], "gold_se": 0.5})
    points = measurements.run_points(three_seeds(save))
    single = curve.assign(method="best of n", run=[f"bon, n = {n}" for n in curve["n"]])
    pairs = [single.assign(run=[f"bon_seed{s}, n = {n}" for n in curve["n"]], gold=curve["gold"] + s) for s in (0, 2)]
    alone = single.assign(run="alone" + single["run"], experiment="alonebon")
    known = pd.concat([alone, pd.concat(pairs).assign(experiment="bon")]).assign(world="")
    together = measurements.points_over_seeds(pd.concat([points, known]))
    rows = together.set_index("run")
    assert rows.index.tolist() == ["sft", "ppo", "alonebon, n = 1", "alonebon, n = 4", "bon, n = 1", "bon, n = 4"]
    assert rows.loc["ppo", ["gold", "gold_se", "runs"]].tolist() == pytest.approx([19.5 / 3, 2.0, 3])
    assert rows.loc["bon, n = 4", ["gold", "gold_se", "kl"]].tolist() == pytest.approx([3.0, 1.0, 0.6])
    assert rows.loc["alonebon, n = 4", "gold_se"] == 0.5 and rows.loc["bon, n = 4", "method"] == "best of n"


def test_what_only_some_runs_measured_is_averaged_over_those_and_no_interval_is_too_narrow():
    rows = pd.DataFrame({"gold": [1.0, 2.0, 6.0], "proxy": [1.0, 3.0, math.nan], "kl": [math.nan, math.nan, 2.0]})
    for columns in (list(rows), list(rows)[::-1]):
        found = measurements.over_runs(rows.assign(experiment="a", world=""), ["experiment"], columns).iloc[0]
        assert found[["gold", "proxy", "kl", "runs"]].tolist() == [3.0, 2.0, 2.0, 3]
        assert found["freedom"] == 1 and found["proxy_se"] == pytest.approx(1.0) and math.isnan(found["kl_se"])


def test_runs_below_a_folder_are_all_or_none(tmp_path):
    saved(tmp_path, "good")
    assert [run.name for run in measurements.runs_below(str(tmp_path))] == ["good"]
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("{")
    with pytest.raises(WorkbenchError, match="is damaged"):
        measurements.runs_below(str(tmp_path))


# Which runs are found, and what they are called


def test_runs_are_found_at_any_depth_in_folders_lists_and_patterns(tmp_path):
    for place in ("a/06_ppo_seed0", "a/deep/er/06_dpo_seed0", "b/07_bon", "b/.hidden/08_x", "b/07_bon/inner"):
        saved(tmp_path, place)
    (tmp_path / "b" / "report").mkdir()
    assert sorted(find_runs(f"{tmp_path}/a").runs) == ["06_dpo_seed0", "06_ppo_seed0"]
    assert sorted(find_runs(f"{tmp_path}/a, {tmp_path}/b").runs) == [
        "06_dpo_seed0",
        "06_ppo_seed0",
        "07_bon",
        "inner",
    ]
    assert list(find_runs(f"{tmp_path}/*/06_*").runs) == ["06_ppo_seed0"]
    assert sorted(find_runs(f"{tmp_path}/**/06_*").runs) == ["06_dpo_seed0", "06_ppo_seed0"]
    assert list(find_runs(f"{tmp_path}/a/06_ppo_seed0").runs) == ["06_ppo_seed0"]
    assert len(find_runs(f"{tmp_path}, {tmp_path}/a").runs) == 4  # nothing twice


def test_the_comparison_itself_is_no_run_of_the_comparison(tmp_path):
    saved(tmp_path, "06_ppo")
    saved(tmp_path, "12_compare_runs", finished=False)
    assert list(find_runs(str(tmp_path), without=tmp_path / "12_compare_runs").runs) == ["06_ppo"]


def test_an_unfinished_run_is_marked_and_stays_apart_from_its_seeds(tmp_path):
    for seed in range(3):
        saved(tmp_path, f"06_ppo_seed{seed}", finished=seed < 2)
    names = list(find_runs(str(tmp_path)).runs)
    assert names == ["06_ppo_seed0", "06_ppo_seed1", "06_ppo_seed2 (unfinished)"]
    assert [measurements.experiment_of(name) for name in names] == ["06_ppo", "06_ppo", names[2]]


@pytest.mark.parametrize("damaged", ['{"parameters": {', "[]", "{}", '{"parameters": 3, "status": "finished"}', "\x00"])
def test_a_damaged_record_is_a_sentence_and_the_others_are_found(tmp_path, damaged):
    saved(tmp_path, "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text(damaged)
    found = find_runs(str(tmp_path))
    assert list(found.runs) == ["good"]
    assert len(found.unread) == 1 and "bad/run.json" in found.unread[0] and "delete this folder" in found.unread[0]


def test_no_runs_at_all_and_a_place_without_any_are_sentences(tmp_path):
    saved(tmp_path / "a", "good")
    assert find_runs(f"{tmp_path}/a, {tmp_path}/nowhere").unread == [f"'{tmp_path}/nowhere' holds no runs."]
    with pytest.raises(WorkbenchError, match=r"nowhere' holds no runs: give the folder"):
        find_runs(f"{tmp_path}/nowhere")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("{")
    with pytest.raises(WorkbenchError, match="is damaged"):
        find_runs(f"{tmp_path}/bad")


def test_an_older_record_without_inputs_packages_or_seed_is_still_a_run(tmp_path):
    folder = saved(tmp_path, "old").dir
    record = json.loads((folder / "run.json").read_text())
    kept = {"parameters": record["parameters"], "status": "finished"}
    (folder / "run.json").write_text(json.dumps(kept))
    assert list(find_runs(str(tmp_path)).runs) == ["old"]


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["a/x", "b/y"], ["x", "y"]),
        (["a/x", "b/x", "b/y"], ["a/x", "b/x", "y"]),
        (["1/a/x", "2/a/x"], ["1/a/x", "2/a/x"]),
        # one seed in both folders: all seeds say from which folder they are
        (["a/x_seed0", "a/x_seed1", "b/x_seed0"], ["a/x_seed0", "a/x_seed1", "b/x_seed0"]),
        # a folder per seed: nothing is there twice, and the seeds stay one experiment
        (["s0/x_seed0", "s1/x_seed1"], ["x_seed0", "x_seed1"]),
        (["a/x", "a/x"], ["x", "x"]),
    ],
)
def test_equal_names_get_as_many_parents_as_tell_them_apart(folders, names):
    assert measurements.distinct_names([Path("/r") / folder for folder in folders]) == names


@pytest.mark.parametrize(
    ("name", "experiment", "repetition"),
    [
        ("06_ppo_seed2", "06_ppo", "_seed2"),
        ("06_ppo-seed2", "06_ppo", "-seed2"),
        ("06_ppo_kl0.05_world1_seed2", "06_ppo_kl0.05", "_world1_seed2"),
        ("01_pretrain_world12", "01_pretrain", "_world12"),
        ("05_seed101_world0_seed1", "05_seed101", "_world0_seed1"),
        ("02_sft_llama-32x1_world0_seed0", "02_sft_llama-32x1", "_world0_seed0"),
        ("06_ppo", "06_ppo", ""),
        ("seed_study", "seed_study", ""),
        ("06_ppo_seed2_late", "06_ppo_seed2_late", ""),
    ],
)
def test_endings_of_seed_and_world_are_told_from_the_name(name, experiment, repetition):
    assert (measurements.experiment_of(name), measurements.repetition_of(name)) == (experiment, repetition)


# Reward models


def saved_run(folder, name, *, start="sft", parameters=1000, gold=0.7, labels=0.6, study_runs="") -> Run:
    """A run as 05_reward_model leaves it."""
    rows = [{"group": "all", "measured_against": "labels", "accuracy": labels, "accuracy_se": 0.02}]
    rows.append({"group": "qa", "measured_against": "labels", "accuracy": 0.1, "accuracy_se": 0.02})
    if gold:
        rows.append({"group": "all", "measured_against": "gold", "accuracy": gold, "accuracy_se": 0.01})
    given, summary = {"start": start, "study_runs": study_runs}, {"parameters": parameters, "policy_parameters": 2000}
    return saved(folder, name, parameters=given, summary=summary, accuracy=pd.DataFrame(rows))


def test_runs_that_differ_in_their_seed_are_one_point_with_the_error_over_them(tmp_path):
    runs = [
        saved_run(tmp_path, f"large_seed{seed}", parameters=3000, gold=value) for seed, value in enumerate([0.7, 0.8])
    ]
    runs += [saved_run(tmp_path, "small_seed0", gold=0.6), saved_run(tmp_path, "raw", start="scratch", gold=0.55)]
    runs.append(saved(tmp_path, "other"))  # a run of another notebook
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
        accuracy_by_size([saved(tmp_path, "other")])
