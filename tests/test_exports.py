"""Oracles: files read back by `datasets` and checked as standard columns, sentences and rows counted by hand."""

import json
import random

import pytest
from datasets import load_dataset
from judgements import judged as judgement
from standard_rows import load_dataset_rows

from workbench import WorkbenchError
from workbench.feedback.exchange import conversations, export, write_rows
from workbench.feedback.kinds import training_rows

ITEMS = [
    {"item_id": "two", "prompt": "which ?", "completions": [" this .", " that ."]},
    {"item_id": "four", "prompt": "order !", "completions": [" a", " b", " c", " d"]},
    {"item_id": "check", "prompt": "say that", "completions": [" this .", " that ."], "expected": 1},
]
SIZES = {item["item_id"]: len(item["completions"]) for item in ITEMS}


def judged(item_id, kind, value, labeler="ada", repeat=0, **details):
    size = SIZES[item_id]
    return judgement(item_id, value, labeler, kind=kind, repeat=repeat, size=size, details=details)


JUDGEMENTS = [
    judged("two", "pair", 1, strength=4),
    judged("two", "pair", "tie", "bob"),
    judged("two", "pair", 0, "cy"),
    judged("two", "pair", "skip", "dev"),
    judged("two", "pair", 0, repeat=1),
    judged("check", "pair", 1),
    judged("four", "ranking", [[3], [0, 2], [1]]),
    judged("four", "ranking", [[0], [1], [2], [3]], "bob"),
    judged("four", "best_of", 2),
    judged("two", "rating", [6, 2], flags=[[], ["rude"]]),
    judged("two", "rating", [4, None], "bob"),
    judged("two", "correction", " neither ."),
]

MADE = ["preferences", "margins", "rankings", "best_of", "ratings", "demonstrations"]


def rows_of(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_one_call_writes_every_kind_and_counts_what_became_of_it(tmp_path):
    sentence = export(ITEMS, JUDGEMENTS, tmp_path)
    assert sentence == (
        f"{tmp_path}: preferences: 16 pairs from 9 judgements; left out: 2 tie, 1 skip, 1 repeat, 1 check. "
        "rankings: 1 ranking from 2 judgements; left out: 1 tie. "
        "best_of: 1 row from 1 judgement; left out: nothing. "
        "ratings: 3 ratings from 2 judgements; left out: 1 unrated. "
        "demonstrations: 1 demonstration from 1 judgement; left out: nothing."
    )
    names = sorted([*MADE, "left_out"])
    assert sorted(path.stem for path in tmp_path.iterdir()) == names
    pair = {"prompt": "which ?", "chosen": " that .", "rejected": " this ."}
    assert rows_of(tmp_path, "preferences")[0] == {**pair, "labeler": "ada", "item_id": "two"}
    left_out = rows_of(tmp_path, "left_out")
    assert [(row["format"], row["reason"], row["value"]) for row in left_out] == [
        ("preferences", "tie", '"tie"'),
        ("preferences", "skip", '"skip"'),
        ("preferences", "repeat", "0"),
        ("preferences", "check", "1"),
        ("preferences", "tie", "[[3], [0, 2], [1]]"),
        ("rankings", "tie", "[[3], [0, 2], [1]]"),
        ("ratings", "unrated", "[4, null]"),
    ]


def test_every_format_holds_the_rows_counted_by_hand(tmp_path):
    export(ITEMS, JUDGEMENTS, tmp_path)
    assert [(row["chosen"], row["margin"]) for row in rows_of(tmp_path, "margins")] == [(" that .", 1.0)]
    assert rows_of(tmp_path, "best_of")[0]["best"] == 2
    assert [row.get("flags") for row in rows_of(tmp_path, "ratings")] == [[], ["rude"], None]


SCHEMAS = {name: name for name in ("preferences", "rankings", "ratings", "demonstrations")}
SCHEMAS["margins"] = "preferences"


@pytest.mark.parametrize("talk", [False, True])
def test_files_load_as_standard_columns_plain_and_as_conversations(tmp_path, talk):
    export(conversations(ITEMS) if talk else ITEMS, JUDGEMENTS, tmp_path)
    for name in [*MADE, "left_out"]:
        path = str(tmp_path / f"{name}.jsonl")
        loaded = load_dataset("json", data_files=path, split="train", cache_dir=str(tmp_path / "cache"))
        assert len(loaded) == len(rows_of(tmp_path, name))
        if name in SCHEMAS:
            rows = load_dataset_rows(path, schema=SCHEMAS[name])
            assert isinstance(rows[0]["prompt"], list if talk else str)
    if talk:
        row = rows_of(tmp_path, "preferences")[0]
        assert row["prompt"] == [{"role": "user", "content": "which ?"}]
        assert row["chosen"] == [{"role": "assistant", "content": " that ."}]
        assert rows_of(tmp_path, "demonstrations")[0]["completion"][0]["content"] == " neither ."


def test_conversations_stay_what_they_are():
    talks = conversations(ITEMS)
    assert conversations(talks) == talks and talks[2]["expected"] == 1
    assert ITEMS[0]["prompt"] == "which ?"


def test_a_format_without_rows_leaves_no_file_and_no_old_one(tmp_path):
    export(ITEMS, JUDGEMENTS[:1], tmp_path)
    assert (tmp_path / "preferences.jsonl").exists() and not (tmp_path / "left_out.jsonl").exists()
    sentence = export(ITEMS, JUDGEMENTS[1:2], tmp_path)
    assert "0 pairs from 1 judgement; left out: 1 tie" in sentence
    assert [path.name for path in tmp_path.iterdir()] == ["left_out.jsonl"]


@pytest.mark.parametrize(
    ("items", "judgements", "words"),
    [
        (ITEMS, [], "no judgements to export"),
        ([conversations(ITEMS)[0], ITEMS[1]], JUDGEMENTS[:1], r"conversations\(items\)"),
        ([{**ITEMS[0], "prompt": {1, 2}}], JUDGEMENTS[:1], "a prompt that is {1, 2}"),
    ],
)
def test_what_can_not_be_exported_gets_a_sentence_and_leaves_no_file(tmp_path, items, judgements, words):
    with pytest.raises(WorkbenchError, match=words):
        export(items, judgements, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "mine", ['{"prompt": "a", "chosen": "b"}\n', '{"prompt": "a"}', "text\n", "[1]\n", "3\n", "\n", "\xff\n"]
)
@pytest.mark.parametrize("name", ["preferences.jsonl", "left_out.jsonl", "ratings.jsonl"])
def test_a_file_that_no_export_wrote_is_neither_replaced_nor_removed(tmp_path, name, mine):
    (tmp_path / name).write_text(mine, encoding="latin-1")
    with pytest.raises(WorkbenchError, match=rf"{name} was not written by an export .* export into .*/export instead"):
        export(ITEMS, JUDGEMENTS, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text(encoding="latin-1") == mine


def test_a_folder_of_that_name_is_no_export(tmp_path):
    (tmp_path / "preferences.jsonl").mkdir()
    with pytest.raises(WorkbenchError, match="was not written by an export"):
        export(ITEMS, JUDGEMENTS, tmp_path)


def test_a_failed_export_leaves_the_old_files_as_they_were(tmp_path):
    export(ITEMS, JUDGEMENTS, tmp_path)
    before = (tmp_path / "preferences.jsonl").read_bytes()
    with pytest.raises(WorkbenchError, match="can not be stored"):
        write_rows([{"prompt": float("nan")}], tmp_path / "preferences.jsonl")
    with pytest.raises(WorkbenchError, match="not among the items"):
        export(ITEMS[1:], JUDGEMENTS, tmp_path)
    assert (tmp_path / "preferences.jsonl").read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".jsonl"]


def test_text_of_any_sort_comes_back_as_it_was(tmp_path):
    odd = 'quote " and \\ \n \u2028 <script> \u202e right-to-left 🙂 ' + "x" * 50_000
    item = {"item_id": "odd", "prompt": odd, "completions": [odd, "other"]}
    SIZES["odd"] = 2
    export([item], [judged("odd", "pair", 0)], tmp_path)
    path = str(tmp_path / "preferences.jsonl")
    loaded = load_dataset("json", data_files=path, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded[0]["prompt"] == odd and loaded[0]["chosen"] == odd


def test_rows_and_left_out_add_up_on_random_tables(tmp_path):
    draw = random.Random(0)
    for turn in range(10):
        judgements = [
            judged("two" if draw.random() < 0.8 else "check", "pair", draw.choice([0, 1, "tie", "skip"]), str(number))
            for number in range(draw.randrange(1, 30))
        ]
        sentence = export(ITEMS, judgements, tmp_path / str(turn))
        rows, left_out = training_rows("pair", ITEMS, judgements)
        said = [int(word) for word in sentence.replace(",", " ").replace(".", " ").split() if word.isdigit()]
        assert said[0] + sum(said[2:]) == said[1] == len(judgements) == len(rows) + len(left_out)
