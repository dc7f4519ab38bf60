"""Tables and figures over any set of runs; oracles: hand-made runs whose numbers are known, and a browser."""

import json
import math
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from measured import as_measured
from scipy import stats
from test_notebook_branches import execute
from tiny_models import tiny_model, word_tokenizer
from transformers import AutoModelForSequenceClassification

from workbench import WorkbenchError
from workbench.models.rewards import LearnedReward
from workbench.pipeline import report
from workbench.plots.marks import by_trace, spread_out
from workbench.runs import Run
from workbench.studies import measurements
from workbench.studies.answers import answers, scores_in, side_by_side_answers
from workbench.studies.comparison import tables as compared
from workbench.studies.comparison.figures import (
    plot_chosen_metric,
    plot_key_numbers,
    plot_metric_curves,
    plot_score_distributions,
    plot_side_by_side,
)
from workbench.studies.measurements import find_runs

HOSTILE = "<script>alert('x')</script> & <b>bold</b>"
KINDS = ["qa", "math", "qa", "harm"]
PROMPTS = [f"user : prompt {number} ? assistant :" for number in range(4)]


def evaluation(gold: list[float], *, text="said", kl=1.0, prompts=PROMPTS, proxy=True) -> pd.DataFrame:
    """A table as `evaluate_at_temperatures` makes it, greedy one higher than sampled."""
    frames = []
    for temperature in (1.0, 0.0):
        frame = pd.DataFrame({"prompt": prompts, "kind": KINDS[: len(prompts)], "finished": True, "method": "PPO"})
        frame["completion"] = [f" {text} {number} at {temperature:g}" for number in range(len(prompts))]
        frame["gold"] = [value + (temperature == 0) for value in gold]
        frame["completion_length"], frame["temperature"] = 3, temperature
        frame["kl"] = kl if temperature == 1 else math.nan
        frames.append(frame.assign(proxy=2 * frame["gold"]) if proxy else frame)
    return pd.concat(frames, ignore_index=True)


def metrics(values: list[float], **columns) -> pd.DataFrame:
    return pd.DataFrame({"step": range(1, len(values) + 1), "reward": values, **columns})


def save(folder: Path, *, parameters=None, rows=None, summary=None, finished=True, **tables) -> Path:
    given = {"model": f"{folder.parent}/02_sft", "reward_model": "05_rm", "seed": 0}
    run = Run.open(folder, given | (parameters or {}))
    for name, frame in as_measured(tables).items():
        run.save_table(name, frame)
    if rows is not None:
        lines = rows.astype(object).where(rows.notna(), None).to_dict("records")
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    run.summary({"gold gain at T = 1": 1.0} if summary is None else summary)
    if finished:
        run.finish()
    return folder


def policy(folder: Path, gold: list[float], **settings) -> Path:
    """A run of a policy that started where the gold is 0 everywhere."""
    tables = {"evaluation_before": evaluation([0.0] * 4, text="before", kl=0.0), "evaluation": evaluation(gold)}
    return save(folder, **{**tables, **settings})


@pytest.fixture
def three(tmp_path) -> Path:
    """Two seeds of one experiment and a worse one, with metrics."""
    for seed in range(2):
        rows = metrics([1.0 + seed, 2.0 + 3 * seed, 3.0 + 5 * seed], kl=[0.0, 0.5, 1.0])
        policy(tmp_path / f"06_ppo_seed{seed}", [1.0, 2.0, 3.0, 4.0 + seed], rows=rows, parameters={"kl_coef": 0.1})
    worse = metrics([5.0, 4.0], loss=[1.0, 0.5])
    policy(tmp_path / "08_dpo", [-1.0, -9.0, 0.5, 0.5], rows=worse, parameters={"kl_coef": 0.5})
    return tmp_path


def runs_of(folder: Path) -> dict[str, Run]:
    return find_runs(str(folder)).runs


# Metrics


def test_a_curve_is_the_mean_over_runs_with_the_error_between_them(three):
    rows = compared.metric_rows(runs_of(three)).rows
    curve = compared.metric_curve(rows, "reward").set_index(["experiment", "step"])
    assert curve.loc["06_ppo", "value"].tolist() == [1.5, 3.5, 5.5]
    assert curve.loc["06_ppo", "value_se"].tolist() == pytest.approx([0.5, 1.5, 2.5])  # half the distance of two runs
    assert curve.loc["08_dpo", "value"].tolist() == [5.0, 4.0] and curve.loc["08_dpo", "value_se"].isna().all()
    assert compared.metrics_in(rows) == ["reward", "kl", "loss"]
    assert set(compared.metric_curve(rows, "loss")["experiment"]) == {"08_dpo"}


def test_runs_of_different_lengths_are_averaged_where_all_are_and_without_common_steps_stay_apart(tmp_path):
    save(tmp_path / "a_seed0", rows=metrics([1.0, 2.0, 3.0]))
    save(tmp_path / "a_seed1", rows=metrics([3.0, 4.0]))
    save(tmp_path / "b_seed0", rows=metrics([1.0, math.nan]))
    save(tmp_path / "b_seed1", rows=metrics([math.nan, 2.0]))
    curve = compared.metric_curve(compared.metric_rows(runs_of(tmp_path)).rows, "reward")
    assert curve[curve["experiment"] == "a"]["value"].tolist() == [2.0, 3.0]
    apart = curve[curve["experiment"].str.startswith("b")].set_index("experiment")["value"]
    assert apart.to_dict() == {"b_seed0": 1.0, "b_seed1": 2.0}


def test_damaged_metrics_are_a_sentence_and_texts_and_infinities_no_metrics(tmp_path):
    save(tmp_path / "good", rows=metrics([1.0, 2.0], note=["x", "y"]))
    with open(save(tmp_path / "endless", rows=metrics([1.0])) / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "reward": Infinity}\n')
    (save(tmp_path / "bad", rows=metrics([1.0])) / "metrics.jsonl").write_text("{\n")
    save(tmp_path / "none")
    gathered = compared.metric_rows(runs_of(tmp_path))
    assert set(gathered.rows["run"]) == {"good", "endless"} and "note" not in gathered.rows
    sizes = compared.metric_curve(gathered.rows, "reward").groupby("experiment").size()
    assert sizes.to_dict() == {"endless": 1, "good": 2}
    assert len(gathered.left_out) == 1 and "bad/metrics.jsonl" in gathered.left_out[0]


def test_the_menu_of_metrics_shows_those_experiments_that_measured_each(three):
    rows = compared.metric_rows(runs_of(three)).rows
    figure = plot_metric_curves({name: compared.metric_curve(rows, name) for name in compared.metrics_in(rows)})
    assert [trace.name for trace in figure.data if trace.showlegend] == ["06_ppo", "08_dpo"]
    assert "06_ppo ends highest (5.5), 08_dpo lowest (4)" in figure.layout.title.text
    band = figure.data[0]
    assert list(band.x) == [1, 2, 3, 3, 2, 1]
    half = stats.t.ppf(0.975, 1) * np.array([0.5, 1.5, 2.5])  # of two runs
    expected = [*(np.array([1.5, 3.5, 5.5]) + half), *(np.array([1.5, 3.5, 5.5]) - half)[::-1]]
    assert list(band.y) == pytest.approx(expected, rel=1e-3)
    menu = {button.label: button.args for button in figure.layout.updatemenus[0].buttons}
    assert list(menu) == ["reward", "kl", "loss"]
    loss = [change for change in by_trace(menu["loss"][0]) if change["showlegend"]]
    assert [(line["name"], list(line["x"]), list(line["y"])) for line in loss] == [("08_dpo", [1, 2], [1.0, 0.5])]
    layout = menu["loss"][1]
    assert layout["yaxis.title.text"] == "loss (nats)" and "goes from 1 to 0.5" in layout["title.text"]


def test_of_many_experiments_both_ends_are_drawn_and_the_title_says_how_many():
    curve = pd.DataFrame({"experiment": [f"e{n:02d}" for n in range(40)], "step": 1, "value": range(40)})
    curve["value_se"] = np.nan
    figure = plot_metric_curves({"reward": curve}, most=5)
    drawn = [trace.name for trace in figure.data if trace.showlegend]
    assert len(drawn) == 5 and drawn[0] == "e39" and drawn[-1] == "e00"
    assert "5 of 40 drawn" in figure.layout.title.text
    assert spread_out(pd.Series({"a": 1.0, "b": math.nan, "c": 2.0}), 5) == ["c", "a"]


def test_a_long_line_keeps_its_ends_and_a_page_stays_small():
    curve = pd.DataFrame({"experiment": "e", "step": range(100_000), "value": 1 / 3, "value_se": 0.1})
    figure = plot_metric_curves({"reward": curve})
    assert (figure.data[1].x[0], figure.data[1].x[-1]) == (0, 99_999) and len(figure.to_json()) < 20_000


# Answers


def test_answers_hold_every_policy_and_where_it_started_once(three):
    rows = answers(runs_of(three)).rows
    assert rows.groupby("policy")["run"].nunique().to_dict() == {"02_sft": 1, "06_ppo": 2, "08_dpo": 1}
    names = ["02_sft", "06_ppo_seed0", "06_ppo_seed1", "08_dpo"]
    assert rows.groupby("run").size().to_dict() == dict.fromkeys(names, 4)
    assert rows[rows["policy"] == "02_sft"]["completion"].str.contains("before").all()
    greedy = answers(runs_of(three), temperature=0.0).rows
    assert greedy["gold"].sum() == rows["gold"].sum() + len(rows)


def test_a_policy_measured_by_itself_is_taken_from_those_that_started_from_it(three):
    save(three / "02_sft", evaluation=evaluation([7.0] * 4, text="own", proxy=False))
    save(three / "01_base", evaluation=evaluation([-7.0] * 4, proxy=False))
    rows = answers(runs_of(three)).rows
    assert set(rows["policy"]) == {"01_base", "02_sft", "06_ppo", "08_dpo"}
    assert not rows["completion"].str.contains("own").any()


def test_best_of_n_is_the_sample_that_the_proxy_likes_best_among_the_first_n(tmp_path):
    rng = np.random.default_rng(0)
    pool = pd.DataFrame({"prompt_index": np.repeat(range(3), 20), "prompt": np.repeat(["a", "b", "a"], 20)})
    pool["proxy"], pool["gold"] = rng.normal(size=60), rng.normal(size=60)
    pool.loc[pool.groupby("prompt_index").cumcount().isin([4, 16]), "proxy"] += 9.0  # the first ones that are too late
    pool["completion"], pool["judge_05_split_seed0"] = [f"text {number}" for number in range(60)], 1.0
    save(tmp_path / "07_bon_seed0", pool=pool)
    rows = answers(runs_of(tmp_path)).rows.set_index(["policy", "prompt", "nth"])
    assert set(rows.index.get_level_values("policy")) == {"07_bon, n = 4", "07_bon, n = 16"}
    for n in (4, 16):
        for index, (prompt, nth) in enumerate([("a", 0), ("b", 0), ("a", 1)]):
            among = pool[pool["prompt_index"] == index].head(n)
            best = among.loc[among["proxy"].idxmax()]
            assert rows.loc[(f"07_bon, n = {n}", prompt, nth), "completion"] == best["completion"]
    assert set(rows["run"]) == {"07_bon_seed0, n = 4", "07_bon_seed0, n = 16"} and set(rows["repetition"]) == {"_seed0"}
    assert "judge_05_split" in rows and answers(runs_of(tmp_path), temperature=0.0).rows.empty


def test_rows_without_a_score_and_tables_of_another_form_are_left_out_and_named(three):
    gap = evaluation([1.0, 2.0, 3.0, 4.0])
    gap.loc[0, "gold"] = math.nan
    policy(three / "06_gap", [0.0] * 4, evaluation=gap)
    save(three / "06_old", evaluation=pd.DataFrame({"text": ["x"]}))
    policy(three / "06_cold", [0.0] * 4, evaluation=evaluation([1.0] * 4).query("temperature == 0"))
    gathered = answers(runs_of(three))
    assert gathered.rows.groupby("policy").size()["06_gap"] == 3
    said = " ".join(gathered.left_out)
    assert "06_gap/tables/measured.jsonl: 1 rows lack a score" in said
    assert (
        "06_old/tables/measured.jsonl holds no column prompt, completion, kl, temperature in its rows of evaluation"
        in said
    )
    assert "06_cold was not measured at temperature 1, only at 0" in said


def test_the_prompts_side_by_side_take_turns_and_end_with_the_widest_gap(three):
    rows = answers(runs_of(three)).rows
    said = side_by_side_answers(rows, score="gold", count=3)
    assert list(dict.fromkeys(said["prompt"])) == [PROMPTS[0], PROMPTS[3], PROMPTS[1]]  # gold 2 against -9
    assert said.groupby("prompt")["policy"].apply(set).map(len).tolist() == [3, 3, 3]
    assert set(said["run"]) == {"02_sft", "06_ppo_seed0", "08_dpo"}
    figure = plot_side_by_side(said, score="gold")
    policies, gold, _proxy, texts = figure.data[0].cells.values
    assert list(policies) == ["06_ppo", "02_sft", "08_dpo"] and list(gold) == ["1.00", "0.00", "−1.00"]
    labels = [button.label for button in figure.layout.updatemenus[0].buttons]
    assert texts[1] == "before 0 at 1" and labels == list(dict.fromkeys(said["prompt"]))


def test_distributions_show_the_values_their_means_and_errors_and_the_menu_another_score(three):
    rows = answers(runs_of(three)).rows
    figure = plot_score_distributions(rows, scores=["gold", "proxy"])
    halves = {trace.y0: sorted(trace.x) for trace in figure.data if trace.type == "violin" and trace.side == "positive"}
    assert list(halves) == ["08_dpo", "02_sft", "06_ppo"] and halves["06_ppo"] == [1, 1, 2, 2, 3, 3, 4, 5]
    means = figure.data[-1]
    assert list(means.x) == pytest.approx([-2.25, 0.0, 21 / 8], abs=1e-3)
    per_prompt = np.array([1.0, 2.0, 3.0, 4.5])  # two seeds answered each: prompts are what was drawn
    assert means.error_x.array[-1] == pytest.approx(2 * per_prompt.std(ddof=1) / 2, abs=1e-3)
    proxy = figure.layout.updatemenus[0].buttons[1].args
    assert list(by_trace(proxy[0])[-1]["x"]) == pytest.approx([-4.5, 0.0, 21 / 4], abs=1e-3)
    assert "highest mean 5.25" in proxy[1]["title.text"]


def test_what_a_model_wrote_is_never_markup(three):
    rows = answers(runs_of(three)).rows.assign(completion=HOSTILE, policy=lambda frame: HOSTILE + frame["run"])
    said = side_by_side_answers(rows, score="gold", count=2)
    for figure in (plot_side_by_side(said, score="gold"), plot_score_distributions(rows, scores=["gold"])):
        text = json.dumps(figure.to_plotly_json(), default=list)
        assert "&lt;script&gt;" in text and "<script" not in text and "<b>bold" not in text


# What runs are


def test_the_overview_says_what_each_experiment_holds(three):
    save(three / "05_reward_model", finished=False)
    found = find_runs(str(three))
    gathered = compared.metric_rows(found.runs), answers(found.runs)
    table = compared.overview(found.runs, gathered[0].rows, gathered[1].rows).set_index("experiment")
    assert table.loc["06_ppo", ["runs", "status", "last step"]].tolist() == [2, "finished", "3"]
    assert table.loc["06_ppo", "measured"] == "gold and proxy on 4 prompts"
    assert table.loc["05_reward_model", ["status", "measured"]].tolist() == ["unfinished", ""]
    said = compared.to_know(found, gathered[0].left_out, ["one thing."], scores=scores_in(gathered[1].rows))
    lines = ["4 runs of 3 experiments.", "Unfinished, and shown apart: 05_reward_model.", "Left out: one thing."]
    assert said.splitlines() == lines
    without = compared.to_know(found, scores=scores_in(gathered[1].rows.drop(columns="gold")))
    assert "Gold was not measured: scores are the proxy's" in without
    single = compared.to_know(find_runs(str(three / "08_dpo")), scores=["gold"])
    assert "there are no errors over seeds" in single


def test_only_parameters_that_differ_are_listed_by_kind_of_run_and_folders_by_their_names(tmp_path):
    shared = {"algorithm": "ppo", "steps": 100, "batch": 8, "world_seed": 0}
    for seed in range(2):
        model = {"model": f"{tmp_path}/02_sft_seed{seed}", "seed": seed}
        save(tmp_path / f"06_a_seed{seed}", parameters={**shared, **model, "kl_coef": 0.0})
        save(tmp_path / f"06_b_seed{seed}", parameters={**shared, **model, "kl_coef": 0.5, "steps": 50, "newer": 1})
    save(tmp_path / "03_labels", parameters={"kinds": "pairs", "labelers": "simulated"})
    tables = compared.differing_parameters(runs_of(tmp_path))
    assert list(tables) == ["06"]
    assert tables["06"].to_dict("records") == [
        {"experiment": "06_a", "runs": 2, "steps": "100", "kl_coef": "0"},
        {"experiment": "06_b", "runs": 2, "steps": "50", "kl_coef": "0.5"},
    ]


def test_versions_that_differ_are_listed_with_the_runs_that_have_them(tmp_path):
    folders = [save(tmp_path / f"06_a_seed{seed}") for seed in range(3)]
    assert compared.differing_versions(runs_of(tmp_path)).empty
    record = json.loads((folders[2] / "run.json").read_text())
    record["packages"]["torch"] = "1.0"
    record["git"] = {"commit": "a" * 40, "dirty": True}
    (folders[2] / "run.json").write_text(json.dumps(record))
    table = compared.differing_versions(runs_of(tmp_path)).set_index(["what", "version"])
    assert table.loc[("torch", "1.0"), "runs"] == 1 and table.loc["torch"]["runs"].tolist() == [2, 1]
    assert table.loc[("commit", "a" * 12 + ", with changes"), "which"] == "06_a"


def test_key_numbers_have_dots_bars_and_the_extremes_of_their_runs(tmp_path):
    for seed, value in enumerate((1.0, 2.0, 6.0)):
        save(tmp_path / f"a_seed{seed}", summary={"gain": value, "kl": 1.0})
    save(tmp_path / "b", summary={"gain": -1.0})
    figure = plot_key_numbers(measurements.summaries_over_seeds(runs_of(tmp_path)), first="kl")
    menu = {button.label: button.args for button in figure.layout.updatemenus[0].buttons}
    assert list(menu) == ["kl", "gain"]
    ticks, dots = by_trace(menu["gain"][0])
    assert list(dots["y"]) == ["b", "a"] and list(dots["x"]) == [-1.0, 3.0]
    assert list(dots["error_x.array"]) == pytest.approx([0.0, stats.t.ppf(0.975, 2) * math.sqrt(7 / 3)], rel=1e-3)
    assert list(ticks["x"]) == [1.0, 6.0] and list(ticks["y"]) == ["a", "a"]


@pytest.mark.parametrize(
    "draw",
    [
        lambda empty: plot_metric_curves({}),
        lambda empty: plot_metric_curves({"reward": empty}),
        lambda empty: plot_key_numbers(empty),
        lambda empty: plot_score_distributions(empty, scores=["gold"]),
        lambda empty: plot_side_by_side(empty, score="gold"),
        lambda empty: plot_chosen_metric(empty, metric=None, experiments=[], each_run=False, steps=1),
    ],
)
def test_nothing_to_show_is_a_sentence(draw):
    with pytest.raises(WorkbenchError, match=r"nothing to show|table without rows"):
        draw(pd.DataFrame())


def test_chosen_experiments_or_each_of_their_runs_are_drawn_and_a_metric_of_none_is_a_sentence(three):
    rows = compared.metric_rows(runs_of(three)).rows

    def names(metric="reward", experiments=("06_ppo", "08_dpo"), each_run=False):
        figure = plot_chosen_metric(rows, metric=metric, experiments=experiments, each_run=each_run, steps=15)
        return [trace.name for trace in figure.data if trace.showlegend]

    assert names() == ["06_ppo", "08_dpo"] and names(experiments=["06_ppo"]) == ["06_ppo"]
    assert names(each_run=True) == ["06_ppo_seed1", "08_dpo", "06_ppo_seed0"]
    with pytest.raises(WorkbenchError, match="None of the chosen experiments measured loss"):
        names(metric="loss", experiments=["06_ppo"])
    figure = plot_chosen_metric(rows, metric="kl", experiments=["06_ppo"], each_run=False, steps=1)
    assert "over 1 steps" in figure.layout.title.text and list(figure.data[1].y) == [0.0, 0.5, 1.0]


# The notebook, on whatever lies in a folder


def test_the_notebook_shows_what_can_be_shown_of_runs_with_every_fault(three, tmp_path_factory, capsys):
    policy(three / "deep" / "er" / "08_dpo", [5.0, 5.0, 5.0, 5.0])  # a second run of this name
    policy(three / "06_going", [1.0] * 4, finished=False, rows=metrics([1.0]))
    save(three / "06_old", evaluation=pd.DataFrame({"text": ["x"]}), rows=metrics([1.0] * 9))
    policy(
        three / "06_elsewhere",
        [1.0] * 4,
        evaluation=evaluation([1.0, 2.0], prompts=["x", "y"]),
        parameters={"model": "gpt2"},
        evaluation_before=evaluation([0.0, 0.0], prompts=["x", "y"]),
    )
    gap = evaluation([1.0, math.nan, 3.0, 4.0])
    policy(three / "06_gap", [0.0] * 4, evaluation=gap, rows=metrics([1.0, math.nan, 2.0]))
    (three / "06_bad").mkdir()
    (three / "06_bad" / "run.json").write_text("{")
    folder = execute("12_compare_runs", tmp_path_factory.mktemp("compared"), runs=str(three), prompts_shown=2)
    said = capsys.readouterr().out
    for part in (
        "Unfinished, and shown apart: 06_going",
        "06_bad/run.json is damaged",
        "06_old/tables",
        "2 rows lack a score",
    ):
        assert part in said
    assert "06_elsewhere, gpt2 answered other prompts than the rest" in said
    names = set(Run.read(folder).table("points")["run"])
    assert {"er/08_dpo", "06_going (unfinished)", "06_gap"} <= names and len([n for n in names if "08_dpo" in n]) == 2
    league = Run.read(folder).table("strengths")["name"]
    assert league[0] == "er/08_dpo" and "06_elsewhere" not in set(league)


def test_the_notebook_does_without_gold(three, tmp_path_factory, capsys):
    for path in three.glob("*/tables/*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "gold"}) + "\n" for row in rows))
    folder = execute("12_compare_runs", tmp_path_factory.mktemp("proxy"), runs=str(three))
    assert "Gold was not measured" in capsys.readouterr().out
    assert "strongest by proxy" in Run.read(folder).summary() and "highest proxy" in Run.read(folder).summary()


def test_a_reward_models_folder_judges_what_no_table_holds(tmp_path, tmp_path_factory, capsys):
    model, tokenizer = tiny_model(auto=AutoModelForSequenceClassification), word_tokenizer()
    judge = tmp_path_factory.mktemp("judges") / "05_other"
    model.save_pretrained(judge), tokenizer.save_pretrained(judge)
    texts = {"06_red": "red red", "06_sky": "the sky is"}
    for name, text in texts.items():
        policy(tmp_path / name, [0.0] * 4, evaluation=evaluation([0.0] * 4, text=text))
    folder = execute("12_compare_runs", tmp_path_factory.mktemp("judged"), runs=str(tmp_path), judge=str(judge))
    reward = LearnedReward(model, tokenizer, max_length=48)
    scores = [
        reward(PROMPTS, [f" {text} {number} at 1" for number in range(4)], finished=[True] * 4)
        for text in texts.values()
    ]
    rates = Run.read(folder).table("win_rates").set_index(["first", "second"])
    assert (
        rates.loc[tuple(texts), "win_rate"] == np.mean(np.greater(*scores))
        and "judged by 05_other" in capsys.readouterr().out
    )


def test_the_notebook_does_without_any_policy(tmp_path, capsys):
    save(tmp_path / "05_a", rows=metrics([1.0, 2.0]), summary={"accuracy": 0.7})
    folder = execute("12_compare_runs", tmp_path / "compared", runs=str(tmp_path))
    said = capsys.readouterr().out
    assert "None of these runs holds an evaluation" in said and Run.read(folder).finished
    with pytest.raises(WorkbenchError, match="holds no runs"):
        execute("12_compare_runs", tmp_path / "again", runs=str(tmp_path / "nowhere"))


# In a browser


def write_page(folder: Path, figures) -> Path:
    """The exported page of a notebook that drew these figures."""
    (folder / "12").mkdir()
    contents = [{"application/vnd.plotly.v1+json": json.loads(figure.to_json())} for figure in figures]
    outputs = [nbformat.v4.new_output("display_data", data=content) for content in contents]
    cells = [nbformat.v4.new_markdown_cell("# Which?"), nbformat.v4.new_code_cell("0", outputs=outputs)]
    metadata = {"workbench": {"notebook": "12"}, "papermill": {"duration": 1.0, "parameters": {}}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), folder / "12" / "notebook.ipynb")
    report.write_report(folder)
    return folder / "report" / "12.html"


def choose(figure, shown: str, label: str) -> None:
    """Another entry of the menu that shows the text `shown`."""
    figure.locator(".updatemenu-header", has_text=shown).click()
    figure.locator(".updatemenu-dropdown-button", has_text=label).click()
    figure.page.wait_for_function("!document.querySelector('.updatemenu-dropdown-button')")  # it fades


def wait_for_title(figure, text: str) -> None:
    figure.locator(".gtitle", has_text=text).wait_for()


def test_menus_of_the_exported_page_move_every_figure_and_nothing_leaves_the_machine(three, tmp_path_factory, tab):
    rows, answered = compared.metric_rows(runs_of(three)).rows, answers(runs_of(three)).rows
    save(three / "05_rm", summary={"accuracy": 0.75, "pairs": 100})
    figures = [
        plot_metric_curves({name: compared.metric_curve(rows, name) for name in compared.metrics_in(rows)}),
        plot_side_by_side(side_by_side_answers(answered, score="gold", count=3), score="gold"),
        plot_score_distributions(answered, scores=["gold", "proxy"]),
        plot_key_numbers(measurements.summaries_over_seeds(runs_of(three))),
    ]
    tab.goto(write_page(tmp_path_factory.mktemp("page"), figures).as_uri())
    tab.wait_for_function("document.querySelectorAll('.js-plotly-plot .gtitle').length == 4")
    curves, table, violins, numbers = (tab.locator(".js-plotly-plot").nth(place) for place in range(4))
    assert curves.locator(".legendtext").all_text_contents() == ["06_ppo", "08_dpo"]
    choose(curves, "reward", "loss")
    wait_for_title(curves, "loss of 08_dpo goes from 1 to 0.5")
    assert curves.locator(".legendtext").all_text_contents() == ["08_dpo"]
    choose(curves, "steps", "log of steps")
    tab.wait_for_function("document.querySelector('.js-plotly-plot').layout.xaxis.type == 'log'")
    choose(table, "prompt 0 ?", "prompt 1 ?")
    wait_for_title(table, "prompt 1 ?")
    assert "before 1 at 1" in table.locator(".table").first.text_content()
    choose(violins, "gold", "proxy")
    wait_for_title(violins, "highest mean 5.25")
    choose(numbers, "gold gain", "accuracy")
    wait_for_title(numbers, "accuracy: 05_rm has 0.75")
    assert tab.outside == [] and tab.complaints == []
