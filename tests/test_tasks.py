"""The task behind `dataset`: oracles are files written here, the world itself, and set algebra on prompts."""

import json
import random

import pandas as pd
import pytest
from datasets import Dataset

from workbench import WorkbenchError
from workbench.runs import Run
from workbench.runs.reward_names import KINDS, OF_WORLD
from workbench.tasks import mixed, open_task, task_inputs
from workbench.tasks.sources import read_source
from workbench.tasks.world import NOISE_PANEL, PANEL

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def comparisons(tmp_path):
    """Sixty comparisons of thirty prompts under other names than the standard ones."""
    rows = [{"q": f"question {n % 30}", "good": f" yes {n}", "bad": f" no {n}"} for n in range(60)]
    return open_task(write_rows(tmp_path / "pairs.jsonl", rows), columns="prompt=q,chosen=good,rejected=bad")


@pytest.fixture
def demonstrations(tmp_path):
    rows = [{"question": f"question {n}", "answer": f" answer {n}"} for n in range(40)]
    return open_task(write_rows(tmp_path / "demos.jsonl", rows), columns="prompt=question,completion=answer")


@pytest.fixture
def finished_run(tmp_path):
    """A run on world 3 that saved comparisons."""
    run = Run.open(tmp_path / "run", {"dataset": "world", "world_seed": 3, "seed": 0})
    train = [{"prompt": f"p{n}", "chosen": "a", "rejected": "b", "labeler": "ada"} for n in range(5)]
    run.save_table("preferences", pd.DataFrame(train))
    run.save_table(
        "held_out_preferences", pd.DataFrame([{"prompt": "q", "chosen": "c", "rejected": "d", "kind": "qa"}])
    )
    run.finish()
    return run


# World


def test_the_names_that_a_plan_knows_are_those_of_the_worlds_rewards_and_kinds():
    task = open_task("world")
    assert tuple(task.rewards) == OF_WORLD and tuple(task.kinds) == KINDS


def test_the_worlds_gold_is_the_tasks_gold(world):
    task = open_task("world")
    rows = task.prompts(20, 0, split="train")
    answers = [world.answer(prompt, 1.0, random.Random(0)) for prompt in rows["prompt"]]
    ended = {"finished": [True] * 20}
    assert task.reward(rows["prompt"], answers, **ended) == world.gold(rows["prompt"], answers, **ended)


def test_nothing_held_out_of_the_world_is_ever_trained_on():
    task = open_task("world")
    trained = set(task.prompts(2000, 0, split="train")["prompt"])
    assert not trained & set(task.prompts(500, 1, split="test")["prompt"])
    assert not trained & set(task.prompts(100, 2, split="test", schema="text")["prompt"])
    train, test = task.rows("demonstrations", 2000)
    assert (len(train), len(test)) == (2000, 200)
    assert not set(train["prompt"]) & set(test["prompt"])


def test_kinds_of_the_worlds_prompts_come_in_the_shares_that_are_asked_for(comparisons):
    task = open_task("world")
    drawn = task.prompts(2000, 0, split="train", kinds="math*3, qa")["kind"][:]
    assert set(drawn) == {"math", "qa"} and abs(drawn.count("math") / 2000 - 0.75) < 0.03  # three standard errors
    only = task.prompts(50, 0, split="test", kinds="math")["prompt"][:]
    assert all("plus" in prompt for prompt in only)
    assert not set(only) & set(task.prompts(1000, 0, split="train", kinds="math")["prompt"])
    for kinds, says in {"mth": "'mth' does not exist", "math*0": "weight above 0", "math*x": "can not be read"}.items():
        with pytest.raises(WorkbenchError, match=says):
            task.prompts(5, 0, split="train", kinds=kinds)
    with pytest.raises(WorkbenchError, match="kinds is 'math', but only the embedded world"):
        comparisons.prompts(5, 0, split="train", kinds="math")


def test_a_seed_changes_what_the_world_trains_on_but_not_what_it_is_measured_on():
    task = open_task("world")
    for schema in ("text", "demonstrations"):
        (first, held_out), (second, again), (same, _) = (task.rows(schema, 50, seed=seed) for seed in (0, 1, 0))
        assert first[:] == same[:]
        assert first[:] != second[:]
        assert held_out[:] == again[:]


def test_the_worlds_documents_are_of_four_sorts_whose_every_word_its_tokenizer_knows():
    task = open_task("world")
    train, tokenizer = task.rows("text", 400)[0], task.tokenizer()
    shown = train.to_pandas().groupby("sort")["text"].first()
    assert set(shown.index) == {"dialogue", "encyclopedia", "kitchen note", "sums"}
    assert shown["kitchen note"].startswith("i have ")
    assert " plus " in shown["sums"]
    texts = list(train["text"][:100])
    assert tokenizer.unk_token_id not in {token for ids in tokenizer(texts)["input_ids"] for token in ids}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ("preferences", "no comparisons: run 03_preferences and give"),
        ("unpaired", "no labels: run 03_preferences and give"),
        ("ratings", 'no ratings: run 03_preferences with kinds="pairs,ratings"'),
        ("rankings", 'no rankings: run 03_preferences with kinds="pairs,rankings"'),
        ("stepwise", 'no judged steps: run 03_preferences with kinds="pairs,steps"'),
    ],
)
def test_the_world_has_no_feedback_and_says_where_it_is_made(schema, words):
    with pytest.raises(WorkbenchError, match=words):
        open_task("world").rows(schema, 10)


def test_panels_are_chosen_by_name():
    task = open_task("world")
    assert task.labelers("biased") is PANEL
    assert task.labelers("noise") is NOISE_PANEL
    with pytest.raises(WorkbenchError, match=r"'kind'.*biased, noise"):
        task.labelers("kind")


# Files


def test_rows_under_other_names_serve_every_stage(comparisons, demonstrations):
    train, test = comparisons.rows("preferences", 0)
    assert len(train) + len(test) == 60
    demos, _ = comparisons.rows("demonstrations", 0)
    assert set(demos.column_names) == {"prompt", "completion"}
    assert set(demos["completion"]) == set(train["chosen"])
    prompts = comparisons.prompts(1000, 0, split="train")["prompt"]  # each is sampled for once
    assert set(prompts) == set(train["prompt"]) and len(prompts) == len(set(prompts)) == 27
    train, test = demonstrations.rows("demonstrations", 0)
    assert len(train) + len(test) == 40
    assert set(demonstrations.prompts(100, 0, split="test")["prompt"]) == set(test["prompt"])


def test_no_held_out_prompt_is_ever_trained_on_whatever_the_stage_seed_or_number_of_rows(comparisons):
    held_out = set(comparisons.prompts(1000, 0, split="test")["prompt"])
    trained = set()
    for count, seed in ((0, 0), (7, 1), (20, 2)):
        trained |= set(comparisons.rows("demonstrations", count, seed=seed)[0]["prompt"])
        trained |= set(comparisons.rows("preferences", count)[0]["prompt"])
        trained |= set(comparisons.prompts(count + 1, seed, split="train")["prompt"])
    assert len(held_out) == 3  # a tenth of thirty prompts
    assert not held_out & trained


def test_a_number_of_rows_is_that_many_for_training_which_a_seed_draws(comparisons, demonstrations):
    assert len(comparisons.rows("preferences", 7)[0]) == 7
    assert len(demonstrations.prompts(5, 0, split="train")) == 5
    assert len(demonstrations.rows("demonstrations", 1000)[0]) == 36
    (first, held_out), (second, again) = (demonstrations.rows("demonstrations", 9, seed=seed) for seed in (0, 1))
    assert len(first) == 9 and set(first["prompt"]) != set(second["prompt"])
    assert held_out[:] == again[:]


def test_a_file_is_read_once_whatever_is_asked_of_it(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("workbench.tasks.read_source", lambda source: (read.append(source), read_source(source))[1])
    rows = [{"prompt": f"p{n}", "chosen": f"a{n}", "rejected": f"b{n}"} for n in range(30)]
    task = open_task(write_rows(tmp_path / "a.jsonl", rows))
    assert read == []  # a run's own data may be gone
    (
        task.rows("demonstrations", 0),
        task.rows("preferences", 0),
        task.prompts(5, 0, split="test"),
        task.rows("unpaired", 0),
    )
    assert len(read) == 1 and task.notes == ()


def test_the_split_that_is_read_is_said(tmp_path):
    for split in ("train", "test"):
        write_rows(tmp_path / f"{split}.jsonl", [{"prompt": f"{split} {n}"} for n in range(3)])
    task = open_task(str(tmp_path))
    assert set(task.prompts(9, 0, split="train")["prompt"]) < {f"train {n}" for n in range(3)}
    assert task.notes == (f"Of {tmp_path} the split 'train' is read, not test.jsonl.",)


def test_prompts_of_a_file_keep_what_a_reward_may_read_and_no_answer(tmp_path):
    rows = [{"prompt": f"{n} + 1 =", "chosen": str(n + 1), "rejected": "no", "solution": n + 1} for n in range(40)]
    path = write_rows(tmp_path / "pairs.jsonl", [{**row, "finished": True} for row in rows])
    prompts = open_task(path, held_out=0.5).prompts(0, 0, split="train")
    assert set(prompts.column_names) == {"prompt", "solution"}
    assert all(row["prompt"] == f"{row['solution'] - 1} + 1 =" for row in prompts)


def test_documents_of_a_file_are_split_by_text(tmp_path):
    texts = [f"text {letter} of a few more words than eight in all" for letter in LETTERS] * 2
    task = open_task(write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in texts]), held_out=0.25)
    train, test = task.rows("text", 0)
    assert set(train["text"]) | set(test["text"]) == set(texts)
    assert not set(train["text"]) & set(test["text"])
    openings = task.prompts(3, 0, split="test", schema="text")["prompt"]
    assert len(openings) == 3
    assert all(any(text.startswith(opening) for text in test["text"]) for opening in openings)
    assert {len(opening.split()) for opening in openings} == {8}


def feedback_file(tmp_path, **columns):
    """Sixty rows of thirty prompts; each column is made from the number of the row."""
    rows = [{"q": f"question {n % 30}"} | {name: make(n) for name, make in columns.items()} for n in range(60)]
    return write_rows(tmp_path / "feedback.jsonl", rows)


RANKED = {"texts": lambda n: [f" a{n}", f" b{n}", f" c{n}"], "order": lambda n: [n % 3, (n + 1) % 3, (n + 2) % 3]}


@pytest.mark.parametrize(
    ("schema", "columns", "names"),
    [
        ("unpaired", {"a": lambda n: f" {n}", "good": lambda n: n % 2 == 0}, "completion=a,label=good"),
        ("ratings", {"a": lambda n: f" {n}", "stars": lambda n: n % 5}, "completion=a,rating=stars"),
        ("rankings", RANKED, "completions=texts,ranking=order"),
        (
            "stepwise",
            {"parts": lambda n: [f" {n}.", " end."], "right": lambda n: [True, False]},
            "completions=parts,labels=right",
        ),
    ],
)
def test_feedback_of_a_file_comes_by_prompt_in_training_and_held_out_rows(tmp_path, schema, columns, names):
    task = open_task(feedback_file(tmp_path, **columns), columns=f"prompt=q,{names}")
    train, test = task.rows(schema, 0)
    assert (len(train), len(test)) == (54, 6)
    assert not set(train["prompt"]) & set(test["prompt"])
    assert len(task.rows(schema, 7)[0]) == 7
    prompts = task.prompts(99, 0, split="test")
    assert prompts.column_names == ["prompt"] and set(prompts["prompt"]) == set(test["prompt"])


def test_comparisons_serve_as_labelled_completions(comparisons):
    (pairs, held_out), (train, test) = comparisons.rows("preferences", 0), comparisons.rows("unpaired", 0)
    for labelled, of in ((train, pairs), (test, held_out)):
        said = zip(labelled["completion"], labelled["label"], strict=True)
        wanted = [(text, True) for text in of["chosen"]] + [(text, False) for text in of["rejected"]]
        assert sorted(said) == sorted(wanted)
    assert len(comparisons.rows("unpaired", 9)[0]) == 9


def test_the_error_of_a_bad_row_is_told_and_not_that_other_columns_would_have_been_missing(tmp_path):
    columns = {"chosen": lambda n: f" {n}", "rejected": lambda n: " 7"}
    task = open_task(feedback_file(tmp_path, **columns), columns="prompt=q")
    for rows in (
        lambda: task.rows("unpaired", 0),
        lambda: task.rows("demonstrations", 0),
        lambda: task.rows("preferences", 0),
    ):
        with pytest.raises(WorkbenchError, match="1 rows whose chosen and rejected are identical, the first is row 7"):
            rows()


def test_ties_of_a_file_are_left_out_unless_asked_for_and_never_held_out(tmp_path):
    columns = {"chosen": lambda n: f" {n}", "rejected": lambda n: " no", "preference": lambda n: [0.8, 0.5][n // 30]}
    task = open_task(feedback_file(tmp_path, **columns), columns="prompt=q")  # each prompt has a tie
    (decided, held_out), (asked, again) = task.rows("preferences", 0), task.rows("preferences", 0, ties=True)
    assert set(decided["preference"]) == {0.8} == set(held_out["preference"])
    assert held_out[:] == again[:] and len(held_out) == 3
    said = dict(zip(asked["chosen"], asked["preference"], strict=True))
    assert len(asked) == 54 and all(said[f" {n}"] == 0.5 for n in range(30, 60) if f" {n}" in said)
    assert set(decided["chosen"]) == {text for text, preference in said.items() if preference == 0.8}
    assert {int(text) // 30 for text in task.rows("unpaired", 0)[0]["completion"] if text != " no"} == {0}


def test_other_columns_of_comparisons_and_texts_may_have_any_name(tmp_path):
    names = {"chosen": lambda n: f" {n}", "rejected": lambda n: " no", "label": lambda n: 3}
    train, _ = open_task(feedback_file(tmp_path, **names), columns="prompt=q").rows("unpaired", 0)
    assert all(row["label"] == (row["completion"] != " no") for row in train)
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(f'{{"prompt": {n}, "text": "t{n}"}}\n' for n in range(9)), encoding="utf-8")
    assert open_task(str(path)).rows("text", 0)[0].column_names == ["text"]


def test_a_file_without_rankings_is_told_every_column_that_they_need(demonstrations):
    with pytest.raises(WorkbenchError, match=r"columns names 'completion', which the schema 'rankings' does not have"):
        demonstrations.rows("rankings", 0)


def test_real_data_have_no_gold_no_world_no_simulated_labelers_and_no_tokenizer(comparisons):
    assert comparisons.reward is None and comparisons.world is None
    with pytest.raises(WorkbenchError, match=r"can not judge .*pairs\.jsonl"):
        comparisons.labelers("biased")
    with pytest.raises(WorkbenchError, match="set tokenizer"):
        comparisons.tokenizer()


@pytest.mark.parametrize(
    ("row", "columns", "schema", "says"),
    [
        ({"question": "a"}, "", "demonstrations", r"no column 'prompt'.*found: question"),
        ({"question": "a"}, "", "prompts", r"no column 'prompt'.*found: question"),
        (
            {"q": "a", "good": "b", "bad": "c"},
            "prompt=q,chosen=better,rejected=bad",
            "prompts",
            r"no column 'better' \(found: q, good, bad\)",
        ),
        ({"prompt": "a", "extra": "b"}, "solution=extra", "prompts", "'solution'"),
    ],
)
def test_the_column_that_is_missing_or_misnamed_is_named(row, columns, schema, says, tmp_path):
    task = open_task(write_rows(tmp_path / "odd.jsonl", [row]), columns=columns)
    with pytest.raises(WorkbenchError, match=says):
        task.prompts(5, 0, split="train") if schema == "prompts" else task.rows(schema, 0)


@pytest.mark.parametrize("held_out", [0.0, 1.0])
def test_a_share_that_leaves_one_side_empty_is_refused(tmp_path, held_out):
    source = write_rows(tmp_path / "texts.jsonl", [{"text": letter} for letter in LETTERS])
    with pytest.raises(WorkbenchError, match="held_out"):
        open_task(source, held_out=held_out).rows("text", 0)


# Runs


def test_a_run_gives_the_comparisons_that_it_saved(finished_run):
    train, test = open_task(str(finished_run.dir)).rows("preferences", 0)
    assert (len(train), test[:]) == (5, {"prompt": ["q"], "chosen": ["c"], "rejected": ["d"], "kind": ["qa"]})
    assert open_task(str(finished_run.dir)).rows("preferences", 2)[0]["prompt"] == ["p0", "p1"]


def test_a_run_unpairs_its_comparisons(finished_run):
    train, test = open_task(str(finished_run.dir)).rows("unpaired", 3)
    assert train[:] == {
        "prompt": ["p0", "p0", "p1"],
        "completion": ["a", "b", "a"],
        "label": [True, False, True],
        "labeler": ["ada"] * 3,
    }
    assert test["label"][:] == [True, False]


def test_a_run_gives_its_ties_where_they_were_judged_and_only_when_asked(tmp_path):
    run = Run.open(tmp_path / "run", {"dataset": "world", "seed": 0})
    sides = {"chosen": "a", "rejected": "b", "labeler": "ada"}
    decided = [{"prompt": f"p{n}", "item_id": f"pair-{n}", **sides, "kind": "qa"} for n in (0, 2, 3)]
    undecided = {"completions": ["c", "d"], "labeler": "bob"}
    left_out = [
        {"prompt": "p1", "reason": "tie", "item_id": "pair-1", **undecided},
        {"prompt": "p4", "reason": "skip", "item_id": "pair-4", **undecided},
        {"prompt": "p5", "reason": "tie", "item_id": "pair-5", **undecided},
    ]
    for prefix in ("", "held_out_"):
        run.save_table(f"{prefix}preferences", pd.DataFrame(decided))
        run.save_table(f"{prefix}left_out", pd.DataFrame(left_out))
    task = open_task(str(run.dir))
    train, test = task.rows("preferences", 0, ties=True)
    assert train["prompt"][:] == ["p0", "p1", "p2", "p3", "p5"]
    assert train["preference"][:] == [1, 0.5, 1, 1, 0.5]
    assert (train[1]["chosen"], train[1]["rejected"], train[1]["kind"]) == ("c", "d", None)
    assert test["prompt"][:] == ["p0", "p2", "p3"]
    assert task.rows("preferences", 2, ties=True)[0]["preference"][:] == [1, 0.5]
    assert task.rows("preferences", 0)[0]["prompt"][:] == ["p0", "p2", "p3"]


def test_a_run_without_ties_still_says_how_sure_its_comparisons_are(finished_run):
    assert open_task(str(finished_run.dir)).rows("preferences", 0, ties=True)[0]["preference"][:] == [1.0] * 5
    finished = Run.open(finished_run.dir.parent / "second", {"dataset": "world", "seed": 0})
    for table in ("preferences", "held_out_preferences"):
        finished.save_table(table, finished_run.table(table))
    finished.save_table("left_out", pd.DataFrame(columns=["prompt", "completions", "reason", "labeler", "item_id"]))
    assert open_task(str(finished.dir)).rows("preferences", 0, ties=True)[0]["preference"][:] == [1.0] * 5


@pytest.mark.parametrize(
    ("schema", "table", "row"),
    [
        ("ratings", "ratings", {"completion": "c", "rating": 3}),
        ("rankings", "rankings", {"completions": ["c", "d"], "ranking": [1, 0]}),
        ("stepwise", "steps", {"completions": ["c", "d"], "labels": [True, False]}),
    ],
)
def test_a_run_gives_each_kind_of_feedback_that_it_saved_and_says_how_to_make_what_it_has_not(
    finished_run, tmp_path, schema, table, row
):
    with pytest.raises(WorkbenchError, match=rf"no table '{table}': run 03_preferences with kinds=\"pairs,{table}\""):
        open_task(str(finished_run.dir)).rows(schema, 0)
    run = Run.open(tmp_path / "other", {"dataset": "world", "seed": 0})
    run.save_table(table, pd.DataFrame([{"prompt": f"p{n}", **row} for n in range(5)]))
    run.save_table(f"held_out_{table}", pd.DataFrame([{"prompt": "q", **row}]))
    train, test = open_task(str(run.dir)).rows(schema, 3)
    assert train["prompt"][:] == ["p0", "p1", "p2"]
    assert test[0] == {"prompt": "q"} | row


def test_a_run_brings_its_own_world_also_to_runs_on_it(finished_run, tmp_path):
    task, world_3 = open_task(str(finished_run.dir), world_seed=0), open_task("world", world_seed=3)
    assert task.prompts(30, 0, split="train")[:] == world_3.prompts(30, 0, split="train")[:]
    assert task.world.facts.truth == world_3.world.facts.truth
    assert task.labelers("biased") is PANEL
    second = Run.open(tmp_path / "second", {"dataset": str(finished_run.dir), "seed": 0})
    assert open_task(str(second.dir)).world.seed == 3


def test_a_run_that_judged_prompts_of_one_kind_draws_that_kind_unless_another_is_asked_for(finished_run, tmp_path):
    judged = Run.open(tmp_path / "safety", {"dataset": "world", "world_seed": 3, "prompt_kinds": "harm", "seed": 0})
    task, every = open_task(str(judged.dir)), open_task(str(finished_run.dir))
    assert set(task.prompts(60, 0, split="train")["kind"]) == {"harm"}
    assert set(task.prompts(60, 0, split="test", kinds="qa, math")["kind"]) == {"qa", "math"}
    assert len(set(every.prompts(60, 0, split="train")["kind"])) == 4


def test_a_run_on_a_file_splits_it_as_the_file_itself_is_split(tmp_path):
    source = write_rows(tmp_path / "q.jsonl", [{"ask": letter} for letter in LETTERS])
    given = {"dataset": source, "columns": "prompt=ask", "held_out": 0.5, "seed": 0}
    Run.open(tmp_path / "run", given)
    task = open_task(str(tmp_path / "run"))
    direct = open_task(source, columns="prompt=ask", held_out=0.5)
    assert task.prompts(99, 0, split="test")[:] == direct.prompts(99, 0, split="test")[:]
    assert len(task.prompts(99, 0, split="test")) == 13
    assert task.reward is None


def test_a_run_without_comparisons_says_which_tables_it_has(tmp_path):
    run = Run.open(tmp_path / "run", {"dataset": "world", "seed": 0})
    run.save_table("evaluation", pd.DataFrame([{"gold": 1.0}]))
    with pytest.raises(WorkbenchError, match=r"no table 'preferences'.*evaluation"):
        open_task(str(run.dir)).rows("preferences", 0)


# What a run is made of


def test_inputs_are_the_tables_of_a_run_a_file_or_nothing(finished_run, tmp_path):
    source = write_rows(tmp_path / "a.jsonl", [{"text": "a"}])
    assert task_inputs(str(finished_run.dir)) == {"dataset": str(finished_run.dir / "tables")}
    assert task_inputs(source) == {"dataset": source}
    assert task_inputs("world") == task_inputs("some/hub-dataset") == {}
    assert task_inputs(str(tmp_path)) == {"dataset": str(tmp_path)}


@pytest.mark.parametrize("place", ["/", "~no-such-user", "empty", "a" * 300])
def test_what_holds_no_rows_is_refused_before_it_is_hashed(place, tmp_path, monkeypatch):
    (tmp_path / "empty" / "deep" / "deeper" / "deepest").mkdir(parents=True)
    write_rows(tmp_path / "empty" / "deep" / "deeper" / "deepest" / "a.jsonl", [{"text": "a"}])
    monkeypatch.setattr("workbench.tasks.files.repository_root", lambda: tmp_path)
    with pytest.raises(WorkbenchError):
        task_inputs(str(tmp_path / place) if place == "empty" else place)


def test_mixed_rows_are_all_of_the_first_and_their_share_of_the_others():
    first, others = (Dataset.from_dict({"prompt": [f"{name}{i}" for i in range(9)], "kind": [0] * 9}) for name in "ab")
    found = mixed(first, others, share=0.25, columns=("prompt",))
    assert found["prompt"][:] == [*(f"a{i}" for i in range(9)), "b0", "b1", "b2"]
    assert found.column_names == ["prompt"]
    for share, said in ((0.75, "share is 0.75, but there are 9 rows and 9 to mix with: give a share from 0 to 0.50"),
                        (1.0, "share is 1.0"), (-0.1, "share is -0.1")):  # fmt: skip
        with pytest.raises(WorkbenchError, match=said):
            mixed(first, others, share=share, columns=("prompt",))
