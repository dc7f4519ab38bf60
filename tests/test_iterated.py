"""Labels on the current policy: who is asked about what, what a killed run asks again, what the proxies still know."""

import random
import shutil
from itertools import pairwise
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from safetensors.torch import load_file

from workbench import WorkbenchError
from workbench.models.examples import pair_examples
from workbench.runs import Run
from workbench.studies.iterated import rounds as iterated
from workbench.studies.iterated.figures import plot_reward_model_reach, plot_rounds
from workbench.studies.iterated.rounds import labels_by_round, reach_of_rewards, round_table
from workbench.studies.measurements import read_measured
from workbench.tasks import open_task

FOLDER = Path(__file__).parent.parent / "notebooks"
SMOKE = yaml.safe_load((FOLDER / "presets.yaml").read_text())["smoke"]
SIZES = {"rounds": 2, "pairs": 12, "steps_per_round": 2, "evaluate_every": 1, "batch_size": 8, "label_epochs": 1}
SIZES |= {"label_steps": 4, "label_batch_size": 6, "reference_prompts": 16, "evaluation_prompts": 8}
SIZES |= {"target_agreement": 0.0}
LOOP = "rewards, trainer = {}, None"  # how the cell begins that does the work


def execute(name: str, folder: Path, *, only_to: str = "", **parameters) -> dict:
    """Run a notebook's cells here, up to the one that begins with `only_to`; what they left behind."""
    namespace = {"__name__": "__main__", "display": lambda *shown: None}
    for number, cell in enumerate(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells):
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{name}, cell {number}", "exec"), namespace)
        if "parameters" in cell.metadata.get("tags", []):
            namespace |= {"run_dir": str(folder), **parameters}
        if only_to and cell.source.startswith(only_to):
            break
    return namespace


@pytest.fixture(scope="module")
def sft(tmp_path_factory) -> str:
    """A policy that knows little but ends its answers."""
    folder = tmp_path_factory.mktemp("policy")
    execute("01_pretrain", folder / "base", **SMOKE["01_pretrain"] | {"evaluation_prompts": 8})
    execute("02_sft", folder / "sft", model=str(folder / "base"), **SMOKE["02_sft"] | {"evaluation_prompts": 8})
    return str(folder / "sft")


@pytest.fixture(scope="module")
def fresh(sft, tmp_path_factory) -> tuple[Path, Path]:
    """A run with fresh labels, and what was on the disk whenever its policy was about to be measured."""
    folder, moments = tmp_path_factory.mktemp("fresh") / "run", tmp_path_factory.mktemp("moments")
    with pytest.MonkeyPatch.context() as patch:
        kept = kept_before(iterated.collect_answers, "collect_answers", folder, moments)
        patch.setattr(iterated, "collect_answers", kept)
        execute("13_iterated_labels", folder, model=sft, **SIZES)
    return folder, moments


def kept_before(function, name: str, folder: Path, moments: Path):
    """The function, with a copy of the run's folder made each time before it does anything."""

    def kept(*arguments, **settings):
        shutil.copytree(folder, moments / f"{name}{sum(1 for _ in moments.glob(f'{name}*'))}")
        return function(*arguments, **settings)

    return kept


def written(folder: Path) -> dict[str, bytes]:
    """All that a run says, without clocks and with its weights."""
    names = ["summary.json", "metrics.jsonl", "model/model.safetensors", "reward_model_round2/model.safetensors"]
    names += [f"tables/{path.name}" for path in (folder / "tables").glob("*.jsonl")]
    return {name: (folder / name).read_bytes() for name in sorted(names)}


def test_a_run_that_was_killed_between_two_rounds_ends_with_the_same_bytes(fresh, sft):
    folder, moments = fresh
    whole = written(folder)
    assert len(whole) >= 11  # of tables, one less where nothing was left undecided
    shutil.rmtree(folder)
    shutil.copytree(moments / "collect_answers1", folder)  # the first round is trained, but not yet measured
    assert not (folder / "summary.json").exists()
    execute("13_iterated_labels", folder, model=sft, **SIZES)
    assert {name for name, data in written(folder).items() if whole[name] != data} == set()


def test_a_finished_run_shows_itself_again_without_asking_anybody(fresh, sft, monkeypatch):
    folder, _ = fresh
    whole = written(folder)
    monkeypatch.setattr(iterated, "judge_pairs", lambda *_, **__: pytest.fail("somebody was asked"))
    held_out = lambda *_, **__: (Run.read(folder).table("held_out_preferences"), pd.DataFrame())  # noqa: E731
    monkeypatch.setattr(iterated, "judged", held_out)
    execute("13_iterated_labels", folder, model=sft, **SIZES)
    assert written(folder) == whole


def test_arms_differ_only_in_whose_answers_are_judged_and_when(fresh, sft, tmp_path):
    folder, _ = fresh
    for labels in ("none", "one_shot"):
        execute("13_iterated_labels", tmp_path / labels, model=sft, labels=labels, only_to=LOOP, **SIZES)
    runs = [Run.read(path) for path in (folder, tmp_path / "none", tmp_path / "one_shot")]
    asked = [run.table("preferences").sort_values(["batch", "item_id"], ignore_index=True) for run in runs]
    assert [int(labels_by_round(run, [[1], [1, 2]], vowels)["asked"].iloc[-1]) for run in runs] == [24] * 3
    pd.testing.assert_frame_equal(asked[1], asked[2])
    assert asked[0][asked[0].batch == 1].equals(asked[1][asked[1].batch == 1])
    assert not asked[0][asked[0].batch == 2].chosen.equals(asked[1][asked[1].batch == 2].chosen)
    # no refit, and the same labels as the control has in the end: the same reward model
    folders = runs[1].path("reward_model_round2"), runs[2].path("reward_model_round1")
    none, one_shot = (load_file(folder / "model.safetensors") for folder in folders)
    assert all(none[name].equal(one_shot[name]) for name in none)
    assert not runs[2].path("reward_model_round2").exists()


def test_the_path_of_a_run_is_counted_over_all_rounds(fresh):
    run = Run.read(fresh[0])
    path, rounds = read_measured(run, "path"), run.table("rounds")
    assert path.groupby("step")["round"].first().to_dict() == {0: 1, 1: 1, 2: 1, 3: 2, 4: 2}
    assert path.groupby("step").size().eq(8).all() and run.metrics()["step"].tolist() == [1, 2, 3, 4]
    assert path.loc[path.step == 0, "kl"].abs().max() < 1e-6
    # the refit changes who judges, not what was said: gold and KL go on where they were
    assert rounds["gold_start"].tolist()[1] == rounds["gold_end"].tolist()[0]
    assert rounds["proxy_start"].tolist()[1] != rounds["proxy_end"].tolist()[0]
    means = path.groupby("step")["proxy"].mean()
    assert rounds["proxy_end"].tolist() == pytest.approx(means[[2, 4]].tolist(), abs=1e-5)


def test_the_labels_of_a_run_teach_other_notebooks(fresh):
    train, test = open_task(str(fresh[0])).rows("preferences", 0)
    assert len(train) == len(Run.read(fresh[0]).table("preferences")) and not set(train["prompt"]) & set(test["prompt"])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"labels": "some"}, ("'some'", "fresh, none, one_shot")),
        ({"rounds": 0}, ("rounds is 0", "at least 1")),
        ({"steps_per_round": 5, "evaluate_every": 2}, ("steps_per_round is 5", "evaluate_every is 2", "divisor")),
        ({"panel": "kind"}, ("'kind'", "choose one of", "biased")),
        ({"dataset": "rows.jsonl"}, ("Simulated labelers know only the embedded world", "people")),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_can_not_be_done_is_refused_in_a_sentence_before_anything_is_written(settings, says, tmp_path):
    if "dataset" in settings:
        settings = {"dataset": str(tmp_path / "rows.jsonl")}
        (tmp_path / "rows.jsonl").write_text('{"prompt": "user : hello assistant :"}\n' * 40)
    with pytest.raises(WorkbenchError) as caught:
        execute("13_iterated_labels", tmp_path / "run", **settings)
    assert [part for part in says if part not in str(caught.value)] == [] and not (tmp_path / "run").exists()


@pytest.mark.parametrize("labels", iterated.ARMS)
def test_every_arm_ends_with_all_batches_and_never_forgets_one(labels):
    known = [set(iterated.batches_known(labels, number, 4)) for number in range(1, 5)]
    assert known[-1] == {1, 2, 3, 4} and all(a <= b for a, b in pairwise(known))
    assert (known[0] == known[-1]) == (labels == "one_shot")


@pytest.fixture
def asked(monkeypatch):
    """Who was asked, with answers in place of a policy's: different twice to every third prompt, else alike."""
    asked = []

    def two_answers(policy, tokenizer, prompts, *settings):
        asked.extend(prompts)
        said = {prompt: ("yes", "yes" if int(prompt) % 3 else "no") for prompt in prompts}
        return [{"prompt": prompt, "completion": each, "finished": True} for prompt in prompts for each in said[prompt]]

    monkeypatch.setattr(iterated, "_two_answers", two_answers)
    return asked


def pairs_of(prompts, wanted):
    how = {"max_completion_length": 5, "temperature": 1.0, "seed": 0}
    return [item["prompt"] for item in iterated.pairs_to_judge(None, None, list(prompts), wanted=wanted, **how)]


def test_a_decided_policy_is_asked_more_prompts_until_there_are_enough_pairs_or_no_prompts(asked):
    prompts = [str(number) for number in range(90)]
    assert pairs_of(prompts, 12) == prompts[:36:3]
    assert 34 <= len(asked) < 60 and asked == prompts[: len(asked)]
    asked.clear()
    assert pairs_of(prompts[:10], 12) == ["0", "3", "6", "9"] and asked == prompts[:10]
    assert pairs_of("123", 1) == ["3"]  # the first of all are answered alike
    with pytest.raises(WorkbenchError, match="All 2 pairs of answers read the same"):
        pairs_of("12", 2)


def test_labelers_who_decide_nothing_are_named_in_a_sentence(world, monkeypatch):
    monkeypatch.setattr(iterated, "training_rows", lambda kind, items, judgements: ([], []))
    item = {"item_id": "a", "prompt": world.prompts(1, random.Random(0))[0]["prompt"], "completions": ["x", "y"]}
    with pytest.raises(WorkbenchError, match="None of 1 pairs was decided: ask for more pairs"):
        iterated.judged(world, open_task("world").labelers("noise"), [item | {"finished": [True, True]}], seed=0)


def test_what_was_cut_is_judged_and_learned_without_an_end(world):
    tokens = open_task("world").tokenizer()
    prompt = world.prompts(1, random.Random(0))[0]["prompt"]
    answers = [
        {"prompt": prompt, "completion": " boil the rice ." * count, "finished": count == 1, "kind": "suggest"}
        for count in (1, 10)  # of four tokens
    ]
    (item,) = iterated.different_pairs(answers)
    assert item["finished"] == [True, False] and item["kind"] == "suggest"
    rows, _ = iterated.judged(world, open_task("world").labelers("noise"), [item], seed=0)
    limits = {"max_prompt_length": 24, "max_completion_length": 40}
    (pair,) = pair_examples(iterated.comparisons(rows.assign(batch=1), [1]), tokens, **limits)
    ends = {ids[-1] == tokens.eos_token_id for ids in (pair.chosen_ids, pair.rejected_ids)}
    lengths = {len(pair.chosen_ids), len(pair.rejected_ids)}
    assert ends == {True, False} and lengths == {5, 40}


def test_few_labels_are_passed_over_more_often():
    for count, epochs in ((600, 7), (1800, 3), (1920, 2), (5000, 2), (1, 3840)):
        found = iterated.epochs_of(range(count), epochs=2, batch_size=64, steps=60)
        assert found == epochs and found * count >= 60 * 64


def test_every_judgement_is_a_comparison_or_left_out_with_its_reason(world):
    rng = random.Random(0)
    prompts = world.prompts(400, rng)
    both = [[world.answer(row["prompt"], quality, rng) for quality in (0.3, 0.9)] for row in prompts]
    items = [
        {"item_id": f"i{n}", **row, "completions": texts, "finished": [True, True]}
        for n, (row, texts) in enumerate(zip(prompts, both, strict=True))
        if texts[0] != texts[1]
    ]
    decided, undecided = iterated.judged(world, open_task("world").labelers("biased"), items, seed=1)
    assert len(decided) + len(undecided) == len(items) and set(undecided["reason"]) == {"tie", "skip"}
    by_id = {item["item_id"]: item for item in items}
    for row in decided.to_dict("records"):
        item = by_id[row["item_id"]]
        assert {row["chosen"], row["rejected"]} == set(item["completions"]) and row["kind"] == item["kind"]


def test_a_batch_is_asked_once_and_the_others_stay(tmp_path):
    run, calls = Run.open(tmp_path / "run", {}, seed=0), []

    def ask(batch):
        calls.append(batch)
        row = {"prompt": f"p{batch}", "chosen": "a", "rejected": "b"}
        return pd.DataFrame([row] * batch), pd.DataFrame([row] if batch == 2 else [])

    for batch in (1, 2, 1, 2, 3):
        iterated.collect_batch(run, batch, ask)
    assert calls == [1, 2, 3]
    assert run.table("preferences")["batch"].tolist() == [1, 2, 2, 3, 3, 3] and len(run.table("left_out")) == 1
    kept = iterated.comparisons(run.table("preferences"), [1, 3])
    assert kept.column_names == ["prompt", "chosen", "rejected"] and kept["prompt"][:] == ["p1", "p3", "p3", "p3"]
    with pytest.raises(WorkbenchError, match="No pair was decided"):
        iterated.comparisons(run.table("preferences"), [4])


def length(prompts, completions, *, finished):
    return [float(len(text)) for text in completions]


def shortness(prompts, completions, *, finished):
    return [-float(len(text)) for text in completions]


def vowels(prompts, completions, *, finished):
    return [float(sum(text.count(letter) for letter in "aeiou")) for text in completions]


ANSWERS = pd.DataFrame(
    [
        (0, "p", "aa", True), (0, "p", "bbb", True),  # gold the first, longer the second
        (0, "q", "a", True), (0, "q", "aab", True),  # both the second
        (0, "r", "b", True), (0, "r", "bb", True),  # equal gold: no order
        (5, "p", "x", True), (5, "p", "y", True),  # equal gold
    ],
    columns=["step", "prompt", "completion", "finished"],
)  # fmt: skip


def test_accuracy_counts_the_pairs_that_a_reward_orders_as_gold_does():
    reach = reach_of_rewards(ANSWERS, {1: length, 2: vowels}, vowels).set_index(["reward_model", "step"])
    assert reach.loc[(1, 0), "accuracy"] == 0.5 and reach.loc[(2, 0), "accuracy"] == 1.0
    assert reach["pairs"].tolist() == [2, 2, 0, 0] and reach.loc[(1, 5)].isna()["accuracy"]


PATH = pd.DataFrame(
    {
        "step": [0, 0, 2, 2, 4, 4], "round": [1, 1, 1, 1, 2, 2], "prompt": ["p", "q"] * 3, "finished": [True] * 6,
        "completion": ["a", "aa", "aaa", "b", "bb", "aaaa"], "kl": [0.0, 0.0, 1.0, 3.0, 4.0, 4.0],
        "gold": [1.0, 2.0, 3.0, 0.0, 0.0, 4.0], "proxy": [1.0, 2.0, 3.0, 1.0, -2.0, -4.0],
    }
)  # fmt: skip
REACH = pd.DataFrame(
    [(r, s, 2, 0.5 + 0.1 * r - 0.05 * s, 0.01) for r in (1, 2) for s in (0, 2, 4)],
    columns=["reward_model", "step", "pairs", "accuracy", "accuracy_se"],
)


def test_a_round_is_read_by_its_own_reward_model_where_it_begins_and_where_it_ends():
    rounds = round_table(PATH, REACH, {1: length, 2: shortness})
    first, second = rounds.to_dict("records")
    assert (first["start"], first["end"], second["start"], second["end"]) == (0, 2, 2, 4)
    assert (first["proxy_start"], first["proxy_end"]) == (1.5, 2.0)
    assert (second["proxy_start"], second["proxy_end"]) == (-2.0, -3.0)  # of the same answers: the other sign
    assert (second["kl_start"], second["kl_end"], second["gold_end"]) == (2.0, 4.0, 2.0)
    assert second["kl_start_se"] == pytest.approx(1.0)  # 1 and 3
    assert (second["accuracy_start"], second["accuracy_end"]) == pytest.approx((0.6, 0.5))
    frozen = round_table(PATH, REACH, {1: length})  # never fitted again
    assert frozen["reward_model"].tolist() == [1, 1] and frozen["proxy_start"].tolist() == [1.5, 2.0]


def test_labels_are_counted_up_to_each_round_and_judged_by_gold_in_each(tmp_path):
    run = Run.open(tmp_path / "run", {}, seed=0)
    rows = [(1, "aa", "b"), (1, "b", "a"), (1, "b", "c"), (2, "a", "b")]
    run.save_table("preferences", pd.DataFrame(rows, columns=["batch", "chosen", "rejected"]).assign(prompt="p"))
    run.save_table("left_out", pd.DataFrame({"batch": [2, 2]}))
    table = labels_by_round(run, [[1], [1, 2]], vowels)
    assert table["asked"].tolist() == [3, 6] and table["decided"].tolist() == [3, 4]
    assert table["label_accuracy"].tolist() == [0.5, 1.0]  # right, wrong, and one of equal gold
    once = labels_by_round(run, [[1, 2]] * 2, vowels)
    assert once["asked"].tolist() == [6, 6] and once["label_accuracy"].isna().tolist() == [False, True]


def test_the_proxy_begins_anew_where_a_reward_model_was_fitted():
    rounds = round_table(PATH, REACH, {1: length, 2: shortness})
    means = PATH.groupby("step")[["kl", "gold", "proxy"]].mean().reset_index().assign(completion="<b>hi</b>")
    figure = plot_rounds(means, rounds)
    proxies = [trace for trace in figure.data if trace.name == "proxy"]
    assert [(list(line.x), list(line.y)) for line in proxies] == [([0, 2], [1.5, 2.0]), ([2, 4], [-2.0, -3.0])]
    assert [line.showlegend for line in proxies] == [True, False]
    assert len(figure.layout.shapes) == 4  # two fits, in two panels
    assert figure.layout.title.text.startswith("<b>Gold reward goes from 1.50 to 2.00, about its highest")
    assert not [
        text for trace in figure.data if trace.customdata is not None for text in trace.customdata if "<b>hi" in text
    ]
    assert len(plot_rounds(means, round_table(PATH, REACH, {1: length})).layout.shapes) == 2


@pytest.mark.parametrize(
    ("accuracy", "error", "says"),
    [(0.7, 0.05, "70% of the final pairs like gold: better than a coin"), (0.55, 0.05, "no surer"),
     (0.3, 0.05, "worse than a coin"), (0.7, None, "70%"), (None, None, "equally good")],
)  # fmt: skip
def test_the_title_says_whether_the_last_reward_model_still_knows(accuracy, error, says):
    reach = REACH.copy()
    reach.loc[(reach.reward_model == 2) & (reach.step == 4), ["accuracy", "accuracy_se"]] = [accuracy, error]
    figure = plot_reward_model_reach(reach, round_table(PATH, reach, {1: length, 2: shortness}))
    assert says in figure.layout.title.text.replace("<br>", " ").replace("&#x27;", "'")
    used = {trace.name: list(trace.x) for trace in figure.data if trace.name}
    assert used == {"fitted in round 1": [0, 2], "fitted in round 2": [2, 4]}


def test_a_table_without_its_columns_is_refused_in_a_sentence():
    with pytest.raises(WorkbenchError, match="plot_rounds needs the columns"):
        plot_rounds(pd.DataFrame({"step": [1]}), pd.DataFrame({"round": [1]}))
    with pytest.raises(WorkbenchError, match="plot_reward_model_reach got a table without rows"):
        plot_reward_model_reach(REACH.head(0), pd.DataFrame({"round": [1]}))
