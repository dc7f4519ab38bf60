"""Standard columns: recognised formats, renamed columns, the split by prompt, and what bad rows are told."""

import json
import os
from pathlib import Path

import pytest
from datasets import Dataset
from standard_rows import load_dataset_rows

from workbench import WorkbenchError
from workbench.runs.files import repository_root
from workbench.tasks.columns import (
    parse_columns,
    selected_rows,
    split_by_prompt,
    to_standard,
    with_flipped_labels,
)
from workbench.tasks.schemas import SCHEMAS, unpaired, without_ties

HH_FILE = "hh_rlhf_harmless_base.jsonl.gz"


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def standard(schema, columns=None, **data):
    return to_standard(Dataset.from_dict(data), schema, source="rows", columns=columns)


def refused(schema, columns=None, **data):
    """The sentence that bad rows get."""
    with pytest.raises(WorkbenchError) as error:
        standard(schema, columns, **data)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- recognised formats


def test_plain_rows_keep_every_extra_column_after_the_standard_ones():
    rows = standard("demonstrations", topic=["x"], completion=["c"], prompt=["p"])
    assert rows.column_names == ["prompt", "completion", "topic"]
    assert rows[0] == {"prompt": "p", "completion": "c", "topic": "x"}


def test_an_implicit_preference_is_cut_after_the_last_shared_request_for_an_answer():
    start = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    rows = standard("preferences", chosen=[start + " yes, d"], rejected=[start + " yes, e"], id=[7])
    assert rows[0] == {"prompt": start, "chosen": " yes, d", "rejected": " yes, e", "id": 7}


def test_dialogues_that_part_early_keep_their_later_turns_in_the_completion():
    start = "\n\nHuman: a\n\nAssistant:"
    longer = start + " b\n\nHuman: c\n\nAssistant: d"
    rows = standard("preferences", chosen=[start + " b"], rejected=[longer])
    assert rows[0] == {"prompt": start, "chosen": " b", "rejected": longer[len(start) :]}


def test_an_implicit_preference_of_conversations_splits_off_the_shared_messages():
    shared = [user("a"), assistant("b"), user("c")]
    rows = standard("preferences", chosen=[[*shared, assistant("d")]], rejected=[[*shared, assistant("e")]])
    assert rows[0] == {"prompt": shared, "chosen": [assistant("d")], "rejected": [assistant("e")]}


def test_conversations_that_part_at_a_question_are_cut_before_the_answer_in_front_of_it():
    shared = [user("a"), assistant("b")]
    rows = standard(
        "preferences",
        chosen=[[*shared, user("c"), assistant("d")]],
        rejected=[[*shared, user("e"), assistant("f")]],
    )
    assert rows[0]["prompt"] == [user("a")]
    assert rows[0]["chosen"] == [assistant("b"), user("c"), assistant("d")]


def test_a_prompt_that_only_repeats_the_conversation_becomes_the_conversation():
    chosen, rejected = [user("q"), assistant("a")], [user("q"), assistant("b")]
    rows = standard("preferences", prompt=["q"], chosen=[chosen], rejected=[rejected])
    assert rows[0] == {"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
    message = refused("preferences", prompt=["other"], chosen=[chosen], rejected=[rejected])
    assert "row 0" in message and "not the last message" in message


def test_prompts_and_demonstrations_can_be_read_from_implicit_preferences():
    start = "\n\nHuman: a\n\nAssistant:"
    data = {"chosen": [start + " b"], "rejected": [start + " c"]}
    assert standard("prompts", **data)[0]["prompt"] == start
    demonstration = standard("demonstrations", {"completion": "chosen"}, **data)[0]
    assert (demonstration["prompt"], demonstration["completion"]) == (start, " b")


def test_rows_of_dicts_need_no_file():
    rows = Dataset.from_list([{"prompt": "p", "chosen": "a", "rejected": "b", "margin": 2}])
    assert to_standard(rows, "preferences", source="world")[0]["margin"] == 2.0


def hh_file():
    """The real comparisons, where this machine has them."""
    folder = os.environ.get("WORKBENCH_SHARED_DATA")
    places = [Path(folder)] if folder else [repository_root().parent / "shared" / "data"]
    found = [place / HH_FILE for place in places if (place / HH_FILE).is_file()]
    if not found:
        pytest.skip(f"{HH_FILE} is not here: put its folder into WORKBENCH_SHARED_DATA to run this test")
    return found[0]


def test_real_comparisons_are_split_without_losing_a_character():
    path = str(hh_file())
    raw = load_dataset_rows(path, schema="prompts", columns={"prompt": "chosen"})["prompt"][:]
    rejected_raw = load_dataset_rows(path, schema="prompts", columns={"prompt": "rejected"})["prompt"][:]
    rows = load_dataset_rows(path, schema="preferences")
    assert rows.column_names == ["prompt", "chosen", "rejected"] and len(rows) == len(raw) > 0
    for row, chosen, rejected in zip(rows, raw, rejected_raw, strict=True):
        assert row["prompt"] + row["chosen"] == chosen
        assert row["prompt"] + row["rejected"] == rejected
        assert row["prompt"].startswith("\n\nHuman:") and row["prompt"].endswith("\n\nAssistant:")
        assert row["chosen"] != row["rejected"]


# --- renamed columns


def test_columns_are_renamed_and_may_even_be_swapped():
    rows = standard("demonstrations", {"prompt": "question", "completion": "answer"}, question=["q"], answer=["a"])
    assert rows[0] == {"prompt": "q", "completion": "a"}
    swapped = standard(
        "preferences", {"chosen": "rejected", "rejected": "chosen"}, prompt=["p"], chosen=["a"], rejected=["b"]
    )
    assert swapped[0] == {"prompt": "p", "chosen": "b", "rejected": "a"}


def test_a_column_that_has_the_name_already_gives_way():
    rows = standard("demonstrations", {"prompt": "full"}, prompt=["short"], full=["long"], completion=["c"])
    assert rows[0] == {"prompt": "long", "completion": "c"}


def test_columns_text_is_parsed():
    assert parse_columns(" prompt = question, completion=the answer ") == {
        "prompt": "question",
        "completion": "the answer",
    }
    assert parse_columns("") == {}


@pytest.mark.parametrize("text", ["prompt", "prompt=", "=a", "prompt=a,", "a=b=c", "prompt=a,prompt=b"])
def test_columns_text_that_is_no_mapping_is_refused(text):
    with pytest.raises(WorkbenchError, match="write it like"):
        parse_columns(text)


def test_columns_that_do_not_fit_are_named():
    data = {"question": ["q"], "answer": ["a"]}
    assert "columns names 'label'" in refused("demonstrations", {"label": "answer"}, **data)
    assert "no column 'reply' (found: question, answer)" in refused("demonstrations", {"completion": "reply"}, **data)
    assert "twice" in refused("demonstrations", {"prompt": "answer", "completion": "answer"}, **data)


def test_a_missing_column_is_named_with_those_found_and_how_to_name_it():
    message = refused("demonstrations", question=["q"], answer=["a"])
    assert "no column 'prompt'" in message and "found: question, answer" in message
    assert 'columns="prompt=NAME"' in message


def test_an_unknown_schema_is_refused():
    assert all(schema in refused("pairs", prompt=["p"]) for schema in SCHEMAS)


# --- bad rows


def test_a_value_of_the_wrong_type_is_named_by_row_column_and_type():
    message = refused("demonstrations", prompt=["p", "q"], completion=["c", None])
    assert "row 1" in message and "'completion' is missing" in message
    assert "'completion' is int 5" in refused("demonstrations", prompt=["p"], completion=[5])
    assert "'prompt' is list" in refused("prompts", prompt=[["a", "b"]])
    assert "'prompt' is list" in refused("prompts", prompt=[[{"role": "user", "text": "a"}]])
    assert "is a conversation" in refused("text", text=[[user("a")]])
    assert "mixes text and conversations" in refused("demonstrations", prompt=["p"], completion=[[assistant("a")]])


@pytest.mark.parametrize("prompt", ["", " \n", [user(" ")]])
def test_an_empty_prompt_is_refused_by_its_row(prompt):
    other = "p" if isinstance(prompt, str) else [user("p")]
    assert "row 1 (the first is 0) has an empty prompt" in refused("prompts", prompt=[other, prompt])


def test_identical_pairs_are_counted_and_refused():
    message = refused("preferences", prompt=["p"] * 4, chosen=["a", "b", "c", "d"], rejected=["x", "b", "y", "d"])
    assert "2 rows" in message and "first is row 1" in message


def test_pairs_that_share_no_beginning_need_a_prompt_column():
    message = refused("preferences", chosen=["\n\nHuman: a\n\nAssistant: b"], rejected=["\n\nHuman: c\n\nAssistant: d"])
    assert "row 0" in message and "give a prompt column" in message
    messages = refused("preferences", chosen=[[assistant("a")]], rejected=[[assistant("b")]])
    assert "give a prompt column" in messages


# --- what people said of completions


def test_the_likelier_completion_becomes_the_chosen_one_with_its_margin():
    rows = standard(
        "preferences",
        prompt=["p", "q", "r", "s"],
        chosen=["a", "b", "c", "d"],
        rejected=["w", "x", "y", "z"],
        preference=["0.25", "1", "", "0.5"],
        margin=[-2, 3, 1, 0],
        id=[1, 2, 3, 4],
    )
    assert rows["chosen"][:] == ["w", "b", "c", "d"] and rows["rejected"][:] == ["a", "x", "y", "z"]
    assert rows["preference"][:] == [0.75, 1.0, None, 0.5]
    assert rows["margin"][:] == [2.0, 3.0, 1.0, 0.0]
    assert rows["id"][:] == [1, 2, 3, 4]


def test_ties_are_the_comparisons_with_even_odds():
    pairs = standard("preferences", prompt=["p"] * 3, chosen=["a"] * 3, rejected=["b"] * 3, preference=[1, 0.5, None])
    assert without_ties(pairs)["preference"][:] == [1.0, None]
    certain = pairs.remove_columns("preference")
    assert without_ties(certain)[:] == certain[:]


def test_comparisons_are_unpaired_into_the_chosen_as_true_and_the_rejected_as_false():
    pairs = standard(
        "preferences",
        prompt=["p", "q", [user("r")]][:2],
        chosen=["a", "b"],
        rejected=["x", "y"],
        margin=[1, 2],
        preference=[0.9, 0.5],
        labeler=["ada", "bob"],
    )
    assert unpaired(pairs).to_list() == [
        {"prompt": "p", "completion": "a", "label": True, "labeler": "ada"},
        {"prompt": "p", "completion": "x", "label": False, "labeler": "ada"},
    ]
    others = standard("preferences", prompt=["p"], chosen=["a"], rejected=["x"], label=[3], completion=["z"])
    assert unpaired(others)[:] == {"prompt": ["p"] * 2, "completion": ["a", "x"], "label": [True, False]}
    with pytest.raises(WorkbenchError, match="All comparisons for training, or all held out, are ties"):
        unpaired(pairs.select([1]))
    talk = standard("preferences", prompt=[[user("r")]], chosen=[[assistant("a")]], rejected=[[assistant("b")]])
    assert [row["completion"] for row in unpaired(talk)] == [[assistant("a")], [assistant("b")]]
    assert standard("unpaired", **unpaired(talk)[:])["label"][:] == [True, False]


GIVEN = {
    "preferences": {"prompt": ["p"], "chosen": ["a"], "rejected": ["b"]},
    "unpaired": {"prompt": ["p"], "completion": ["c"]},
    "ratings": {"prompt": ["p"], "completion": ["c"]},
}


@pytest.mark.parametrize(
    ("schema", "column", "values", "expected"),
    [
        ("preferences", "margin", ["much", float("nan"), float("inf")], "finite number"),
        ("preferences", "preference", ["likely", -0.1, 1.5, float("nan")], "from 0 to 1"),
        ("preferences", "rival", ["both", 1, "Chosen"], "chosen, rejected or nothing"),
        ("unpaired", "label", ["yes", 2, 0.5, None], "true or false"),
        ("ratings", "rating", ["good", float("inf"), None, True], "finite number"),
    ],
)
def test_a_value_that_means_nothing_is_refused_by_row_and_column(schema, column, values, expected):
    for value in values:
        message = refused(schema, **GIVEN[schema], **{column: [value]})
        assert "row 0" in message and repr(column) in message and expected in message


RANKED = {"prompt": ["p", "q"], "completions": [["a", "b", "c"], ["d", "e", "f"]], "ranking": [[2, 0, 1], [0, 1, 2]]}


def test_rankings_are_taken_as_they_are():
    assert standard("rankings", **RANKED, labeler=["ada", "bob"])[0] == {
        "prompt": "p",
        "completions": ["a", "b", "c"],
        "ranking": [2, 0, 1],
        "labeler": "ada",
    }
    talk = standard(
        "rankings", prompt=[[user("p")]], completions=[[[assistant("a")], [assistant("b")]]], ranking=[[1, 0]]
    )
    assert talk[0]["completions"][1] == [assistant("b")]


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("ranking", [0, 1, 1], "'ranking' is [0, 1, 1]"),
        ("ranking", [1, 2, 3], "the numbers 0, 1, 2, ... of the completions, each once"),
        ("ranking", [0, 1], "has 3 completions but ranks 2"),
        ("ranking", None, "'ranking' is None"),
        ("completions", ["a", "b", "a"], "ranks a completion against itself"),
        ("completions", ["a"], "'completions' is a list of 1, expected a list of at least 2"),
        ("completions", ["a", None, "b"], "'completions' is missing"),
        ("prompt", " ", "empty prompt"),
    ],
)
def test_a_ranking_that_ranks_nothing_or_not_everything_once_is_refused_by_its_row(column, value, words):
    message = refused("rankings", **RANKED | {column: [RANKED[column][0], value]})
    assert "row 1 (the first is 0)" in message and words in message


def test_rankings_of_different_sizes_are_refused_for_no_batch_holds_both():
    message = refused(
        "rankings", prompt=["p", "q"], completions=[["a", "b", "c"], ["d", "e"]], ranking=[[2, 0, 1], [0, 1]]
    )
    assert "row 1 (the first is 0) ranks 2 completions, but row 0 ranks 3" in message


STEPS = {"prompt": ["p", "q"], "completions": [["one.", " two."], ["three."]], "labels": [[True, False], [True]]}


def test_judged_steps_may_be_as_many_as_each_completion_has():
    assert standard("stepwise", **STEPS)[:] == STEPS
    assert standard("stepwise", **STEPS | {"labels": [[1, 0], [1]]})[:] == STEPS


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("labels", [True, False], "has 1 steps but 2 labels"),
        ("labels", None, "'labels' is None, expected a list of true and false"),
        ("completions", [" "], "has an empty step (0, the first is 0)"),
        ("completions", [], "expected a list of at least 1"),
        ("completions", None, "'completions' is NoneType"),
    ],
)
def test_steps_that_do_not_fit_their_labels_are_refused_by_their_row(column, value, words):
    message = refused("stepwise", **STEPS | {column: [STEPS[column][0], value]})
    assert "row 1 (the first is 0)" in message and words in message


def test_a_step_that_is_neither_right_nor_wrong_is_refused_by_its_row():
    message = refused("stepwise", **STEPS | {"labels": [[1, 0], [2]]})
    assert "row 1 (the first is 0), column 'labels' is [2]" in message


def test_steps_have_no_conversational_form():
    message = refused("stepwise", prompt=[[user("p")]], completions=[["a"]], labels=[[True]])
    assert "mixes text and conversations" in message
    both = refused("stepwise", prompt=[[user("p")]], completions=[[[assistant("a")]]], labels=[[True]])
    assert "is a conversation: give the prompt and each step as text" in both


@pytest.mark.parametrize("schema", ["unpaired", "ratings", "rankings", "stepwise"])
def test_data_without_feedback_are_told_every_column_that_is_missing(schema):
    message = refused(schema, question=["q"], answer=["a"])
    assert all(repr(column) in message for column in SCHEMAS[schema].columns)
    assert f"the schema {schema!r} needs (found: question, answer)" in message


# --- values that files write in several ways


def from_file(folder, schema, *rows, **columns):
    """The rows of a JSON-lines file in a schema."""
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_dataset_rows(str(folder / "a.jsonl"), schema=schema, columns=columns)


def refused_file(folder, schema, *rows, **columns):
    with pytest.raises(WorkbenchError) as error:
        from_file(folder, schema, *rows, **columns)
    return str(error.value)


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
ANSWER = {"prompt": "p", "completion": "c"}
SEVERAL = {"prompt": "p", "completions": ["a", "b"]}


@pytest.mark.parametrize("about", [[7, "n/a"], [{"a": 1}, ["a"]], [2**70, 5], [True, 1], [[1], ["a"]]], ids=str)
def test_a_column_that_nobody_needs_never_stops_a_file(about, tmp_path):
    rows = from_file(tmp_path, "preferences", *({**PAIR, "about": value} for value in about))
    assert len(rows) == 2 and rows.column_names == ["prompt", "chosen", "rejected", "about"]
    named = from_file(tmp_path, "prompts", *({"prompt": "p", "completion": value} for value in about))
    assert named["prompt"][:] == ["p", "p"]  # another schema's column is nobody's, too


@pytest.mark.parametrize(
    ("schema", "row", "column", "values", "meant"),
    [
        ("unpaired", ANSWER, "label", [True, 0, "true", 1.0, "0"], [True, False, True, True, False]),
        ("unpaired", ANSWER, "label", ["True", "0", " false ", "1"], [True, False, False, True]),
        ("unpaired", ANSWER, "label", [1, 0], [True, False]),
        ("unpaired", ANSWER, "label", [1.0, 0.0], [True, False]),
        ("unpaired", ANSWER, "label", [False, True], [False, True]),
        ("ratings", ANSWER, "rating", [7, "8", 0.5], [7.0, 8.0, 0.5]),
        ("ratings", ANSWER, "rating", ["6"], [6.0]),
        ("preferences", PAIR, "margin", [1, "0.5", None, ""], [1.0, 0.5, None, None]),
        ("preferences", PAIR, "margin", ["1.5", ""], [1.5, None]),
        ("preferences", PAIR, "preference", [1, "0.75", None], [1.0, 0.75, None]),
        ("preferences", PAIR, "rival", ["chosen", "rejected", None], ["chosen", "rejected", None]),
        ("stepwise", SEVERAL, "labels", [[True, 0], [1, "false"]], [[True, False], [True, False]]),
        ("rankings", SEVERAL, "ranking", [[1, 0], "[0, 1]"], [[1, 0], [0, 1]]),
    ],
)
def test_numbers_and_truth_values_mean_the_same_in_all_their_forms(schema, row, column, values, meant, tmp_path):
    assert from_file(tmp_path, schema, *({**row, column: value} for value in values))[column][:] == meant


@pytest.mark.parametrize(
    ("schema", "column", "values"),
    [("ratings", "rating", [1.5, True]), ("unpaired", "label", [True, "maybe"]), ("unpaired", "label", [1, "", "x"])],
    ids=str,
)
def test_a_mixed_column_of_values_is_refused_at_the_first_that_is_none(schema, column, values, tmp_path):
    message = refused_file(tmp_path, schema, *({**ANSWER, column: value} for value in values))
    assert f"row 1 (the first is 0), column {column!r} is" in message


def test_a_text_column_of_several_types_is_refused_by_its_first_row_that_is_no_text(tmp_path):
    message = refused_file(tmp_path, "prompts", {"prompt": "a"}, {"prompt": "b"}, {"prompt": 3})
    assert "row 2 (the first is 0), column 'prompt' is int 3, expected text" in message
    message = refused_file(tmp_path, "prompts", {"question": [user("a")]}, {"question": ["a"]}, prompt="question")
    assert "row 1 (the first is 0), column 'question' is list, whose item 0 (the first is 0) is 'a'" in message
    message = refused_file(tmp_path, "prompts", {"prompt": [user("a")]}, {"prompt": "a"})
    assert "column 'prompt' does not have one type in all rows" in message
    assert "'prompt' is missing" in refused_file(tmp_path, "prompts", {"prompt": None}, {"prompt": "a"})


def test_what_else_stands_in_messages_never_stops_a_file(tmp_path):
    calls = [[{"role": "user", "content": "q", "id": n}, assistant("a") | {"calls": {"x": n}}] for n in (1, "one")]
    rows = from_file(tmp_path, "demonstrations", *({"messages": call} for call in calls))
    assert rows[:] == {"prompt": [[user("q")]] * 2, "completion": [[assistant("a")]] * 2}
    pairs = [{"prompt": "p", "chosen": call[1:], "rejected": [assistant("b")]} for call in calls]
    assert "mixes text and conversations" in refused_file(tmp_path, "preferences", *pairs)


@pytest.mark.parametrize(
    ("turns", "odd"),
    [
        (
            [user("a"), {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}],
            "1 (the first is 0) is {'ro",
        ),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], "0 (the first is 0) is {'role': 'user', 'con"),
        ([{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "0 (the first is 0) is {'from': 'human', "),
    ],
    ids=["tool call", "parts", "sharegpt"],
)
def test_the_messages_of_a_file_that_hold_no_text_are_named(turns, odd, tmp_path):
    for schema, columns in (("prompts", {}), ("demonstrations", {"prompt": "talk"})):
        message = refused_file(tmp_path, schema, {columns.get("prompt", "prompt"): turns}, **columns)
        assert f"whose item {odd}" in message and "expected text or a list of messages with 'role'" in message


# --- answers that repeat their prompt, and conversations that hold their answers

HH = "\n\nHuman: hi\n\nAssistant:"
LONG = "What is the capital of France?"
NFD = "Ou\u0300 est la mer\u00a0? la\u0300"
TALK = {"prompt": [user("q")], "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]}
NAMED = {"prompt": [user("q")], "completion": [user("q") | {"name": "ada"}, assistant("a") | {"name": None}]}
OTHER = {"prompt": "other", "completion": "x", "chosen": "x", "rejected": "y", "completions": ["x", "y"]}


@pytest.mark.parametrize(
    ("schema", "row", "cut"),
    [
        ("preferences", {"prompt": HH, "chosen": HH + " A", "rejected": HH + " B"}, [" A", " B"]),
        ("demonstrations", {"prompt": LONG, "completion": LONG + " Paris"}, [" Paris"]),
        ("demonstrations", {"prompt": LONG + "\n", "completion": LONG + " Paris"}, [" Paris"]),
        ("unpaired", {"prompt": LONG, "completion": LONG + "\nParis", "label": True}, ["\nParis"]),
        ("demonstrations", {"prompt": f" {LONG}\r\nSay.", "completion": f"{LONG}\nSay. Paris"}, [" Paris"]),
        ("demonstrations", {"prompt": LONG, "completion": LONG.replace(" ", "\u00a0 ") + " Paris"}, [" Paris"]),
        ("demonstrations", {"prompt": "O\u00f9 est la mer ? l\u00e0", "completion": NFD + " oui"}, [" oui"]),
        ("demonstrations", {"prompt": [user("q")], "completion": [user("q \n"), assistant("a")]}, [[assistant("a")]]),
        ("ratings", {"prompt": LONG, "completion": LONG + " Paris", "rating": 3}, [" Paris"]),
        ("rankings", {"prompt": HH, "completions": [HH + "A", HH + "B"], "ranking": [1, 0]}, [["A", "B"]]),
        ("preferences", TALK, [[assistant("a")], [assistant("b")]]),
        ("demonstrations", NAMED, [[assistant("a") | {"name": None}]]),
    ],
    ids=[
        "hh",
        "text",
        "blank",
        "unpaired",
        "lines",
        "blanks",
        "letters",
        "turn",
        "ratings",
        "rankings",
        "conversation",
        "names",
    ],
)
def test_an_answer_that_repeats_its_prompt_is_told_apart_from_it(schema, row, cut, tmp_path):
    beside = row | {name: OTHER[name] for name in row if name in OTHER}
    rows = [row] if isinstance(row["prompt"], list) else [row, beside]
    found = from_file(tmp_path, schema, *rows)
    names = [name for name in row if name not in ("prompt", "label", "rating", "ranking")]
    assert [found[0][name] for name in names] == cut and found[0]["prompt"] == row["prompt"]
    assert all(found[each][name] == rows[each][name] for each in range(1, len(rows)) for name in names)


def test_an_answer_may_begin_as_its_prompt_does_by_chance(tmp_path):
    rows = [{"prompt": "Hi", "completion": "Hi there"}, {"prompt": "Bye", "completion": "See you"}]
    assert from_file(tmp_path, "demonstrations", *rows)["completion"][:] == ["Hi there", "See you"]
    half = {"prompt": LONG, "chosen": f"{LONG} Paris", "rejected": " Rome"}
    assert from_file(tmp_path, "preferences", half)[0] == {"prompt": LONG, "chosen": " Paris", "rejected": " Rome"}
    rows = [{"prompt": "The\n", "completion": "Therapist"}, {"prompt": "Bye", "completion": "See you"}]
    assert from_file(tmp_path, "demonstrations", *rows)["completion"][:] == ["Therapist", "See you"]
    said = {"prompt": LONG, "completion": LONG}  # nothing would be left
    assert from_file(tmp_path, "demonstrations", said)["completion"][:] == [LONG]


def test_short_prompts_are_split_off_where_every_answer_starts_with_its_own(tmp_path):
    rows = [{"prompt": f"{n}+1=", "completion": f"{n}+1={n + 1}"} for n in range(3)]
    assert from_file(tmp_path, "demonstrations", *rows)["completion"][:] == ["1", "2", "3"]


SYSTEM = {"role": "system", "content": "s"}


def test_sentences_about_prompts_and_answers_name_the_true_reason():
    message = refused("preferences", prompt=["q"], chosen=[[assistant("a")]], rejected=[[assistant("b")]])
    assert "mixes text and conversations in prompt, chosen, rejected" in message
    talk = {name: [TALK[name]] for name in ("chosen", "rejected")}
    message = refused("preferences", prompt=[[SYSTEM, user("q")]], **talk)
    assert "row 0 (the first is 0) has an answer that begins with a message of the role 'user'" in message
    message = refused("demonstrations", prompt=[[user("q")]], completion=[[user("q")]])
    assert "begins with a message of the role 'user'" in message
    message = refused("preferences", prompt=["q"], chosen=[[user("x"), assistant("a")]], rejected=[TALK["rejected"]])
    assert "no prompt column" not in message and "share no beginning" in message


@pytest.mark.parametrize(
    "turns",
    [[user("q")], [SYSTEM, user("q")], [user("a"), assistant("b"), user("q")], [user("q"), assistant("w")]],
    ids=["one turn", "system", "several turns", "two answers"],
)
@pytest.mark.parametrize("column", ["messages", "talk", "messages=messages"])
def test_messages_are_demonstrations_whose_answer_is_the_last_of_them(turns, column, tmp_path):
    column, _, named = column.partition("=")
    columns = {} if column == "messages" and not named else {"prompt": column}
    row = {column: [*turns, assistant("yes")], "prompt_id": 7} | ({"prompt": "q"} if column == "messages" else {})
    found = from_file(tmp_path, "demonstrations", row, **columns)
    assert found[0] == {"prompt": turns, "completion": [assistant("yes")], "prompt_id": 7}
    assert from_file(tmp_path, "prompts", row, **columns)[0] == {"prompt": turns, "prompt_id": 7}
    rated = from_file(tmp_path, "ratings", row | {"rating": 5}, **columns)[0]
    assert (rated["completion"], rated["rating"]) == ([assistant("yes")], 5.0)


def test_messages_without_an_answer_are_prompts_but_no_demonstrations(tmp_path):
    asked, answered = {"messages": [user("q")]}, {"messages": [user("q"), assistant("a")]}
    assert from_file(tmp_path, "prompts", asked, answered)["prompt"][:] == [[user("q")], [user("q")]]
    message = refused_file(tmp_path, "demonstrations", answered, asked)
    assert "row 1 (the first is 0), column 'messages' has 1 messages, the last of the role 'user'" in message
    assert "the last of the role 'assistant'" in refused_file(tmp_path, "prompts", {"messages": [assistant("a")]})
    assert "row 0 (the first is 0), column 'messages' is missing" in refused_file(
        tmp_path, "prompts", {"messages": None}, answered
    )


def test_messages_beside_answers_are_left_alone(tmp_path):
    talk = [user("q"), assistant("a")]
    row = {"prompt": "q", "completion": "c", "messages": talk}
    assert from_file(tmp_path, "demonstrations", row)[0] == row
    counted = {"prompt": "q", "messages": 3}
    assert from_file(tmp_path, "prompts", counted)[0] == counted
    pair = {"chosen": talk, "rejected": [user("q"), assistant("b")], "messages": talk}
    assert from_file(tmp_path, "prompts", pair)[0]["prompt"] == [user("q")]


# --- the split by prompt


def many_pairs():
    return Dataset.from_dict({"prompt": [f"p{i % 40}" for i in range(200)], "n": list(range(200))})


def test_no_prompt_is_on_both_sides_and_no_row_is_lost():
    train, test = split_by_prompt(many_pairs(), held_out=0.1, seed=0)
    assert len(set(test["prompt"])) == 4
    assert not set(train["prompt"]) & set(test["prompt"])
    assert sorted([*train["n"], *test["n"]]) == list(range(200))


def test_the_split_depends_on_the_seed_but_not_on_the_order_of_rows():
    rows = many_pairs()
    prompts = [set(split_by_prompt(rows, held_out=0.1, seed=seed)[1]["prompt"]) for seed in (0, 0, 1)]
    assert prompts[0] == prompts[1] != prompts[2]
    backwards = rows.select(range(199, -1, -1))
    assert set(split_by_prompt(backwards, held_out=0.1, seed=0)[1]["prompt"]) == prompts[0]


def test_conversations_are_split_by_prompt_too():
    rows = Dataset.from_dict({"prompt": [[user(f"p{i % 3}")] for i in range(9)]})
    train, test = split_by_prompt(rows, held_out=0.01, seed=0)
    assert (len(train), len(test)) == (6, 3)


ALIKE = [
    "What is 1 + 1?",
    " What is  1 + 1?\r\n",
    "What\u00a0is 1 +\u200b1?",
    "What is 1 + 1\uff1f",
    "What\ufe0f is\u034f 1 + 1?",
]
FORMS = ["Cafe\u0301 or tea?", "Caf\u00e9 or tea?"]


@pytest.mark.parametrize("kind", [str, user])
def test_prompts_that_differ_in_blanks_line_ends_or_unicode_form_are_on_one_side_as_they_are(kind):
    texts = [*ALIKE, *FORMS, *(f"other {n}" for n in range(40))]
    rows = Dataset.from_dict({"prompt": [kind(text) if kind is str else [kind(text)] for text in texts], "text": texts})
    for seed in range(20):
        train, test = (set(side["text"]) for side in split_by_prompt(rows, held_out=0.3, seed=seed))
        assert train | test == set(texts)
        assert all(train.issuperset(alike) or test.issuperset(alike) for alike in (ALIKE, FORMS))


def test_both_sides_have_rows_or_the_split_is_refused():
    two = Dataset.from_dict({"prompt": ["a", "b", "b"]})
    for share in (0.01, 0.99):
        assert all(len(side) > 0 for side in split_by_prompt(two, held_out=share, seed=0))
    with pytest.raises(WorkbenchError, match="at least 2 different prompts, but 2 rows have 1"):
        split_by_prompt(two.select([1, 2]), held_out=0.5, seed=0)
    with pytest.raises(WorkbenchError, match="held_out is 1"):
        split_by_prompt(two, held_out=1, seed=0)


# --- the example files


@pytest.mark.parametrize(
    ("name", "schema", "columns", "rows"),
    [
        ("demonstrations.jsonl", "demonstrations", "", 4),
        ("demonstrations.csv", "demonstrations", "prompt=question,completion=answer", 3),
        ("preferences.jsonl", "preferences", "", 4),
        ("preferences_implicit.jsonl.gz", "preferences", "", 3),
        ("preferences_conversational.json", "preferences", "", 3),
        ("prompts.parquet", "prompts", "", 3),
        ("unpaired.jsonl", "unpaired", "", 4),
        ("rankings.jsonl", "rankings", "", 3),
        ("steps.jsonl", "stepwise", "", 3),
    ],
)
def test_each_example_file_loads_in_its_schema(name, schema, columns, rows):
    dataset = load_dataset_rows(f"data/examples/{name}", schema=schema, columns=parse_columns(columns))
    assert len(dataset) == rows
    assert tuple(dataset.column_names[: len(SCHEMAS[schema].columns)]) == SCHEMAS[schema].columns


def test_every_example_file_is_tried_above():
    assert len(list((repository_root() / "data" / "examples").iterdir())) == 9


def test_an_answer_of_digits_in_csv_stays_text():
    columns = {"prompt": "question", "completion": "answer"}
    rows = load_dataset_rows("data/examples/demonstrations.csv", schema="demonstrations", columns=columns)
    assert rows[0]["completion"] == "72"


# --- which comparisons are learned from: halves, labelers, turned labels


def comparisons(count=400):
    names = ["ana", "ben", "chi"]
    return Dataset.from_list(
        [
            {"prompt": f"p{row}", "chosen": f"good {row}", "rejected": f"bad {row}", "labeler": names[row % 3]}
            for row in range(count)
        ]
    )


def test_the_two_halves_share_no_row_and_together_are_everything():
    rows = comparisons(401)
    first, second = (set(selected_rows(rows, count=0, half=half)["prompt"]) for half in (1, 2))
    assert not first & second
    assert first | second == set(rows["prompt"])
    assert {len(first), len(second)} == {200, 201}


def test_a_smaller_number_of_pairs_is_part_of_a_larger_one():
    rows = comparisons()
    small, large = (selected_rows(rows, count=count, half=1)["prompt"][:] for count in (20, 90))
    assert large[:20] == small
    assert len(large) == 90
    assert len(selected_rows(rows, count=10_000)) == 400


def test_only_the_chosen_labelers_are_kept():
    kept = selected_rows(comparisons(), count=50, labelers="ana, chi")
    assert set(kept["labeler"]) == {"ana", "chi"}
    assert len(kept) == 50


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"labelers": "zoe"}, "zoe.*ana, ben, chi"),
        ({"count": -1}, "-1"),
        ({"half": 3}, "half is 3"),
    ],
)
def test_what_the_data_does_not_have_is_refused(settings, said):
    with pytest.raises(WorkbenchError, match=said):
        selected_rows(comparisons(), **{"count": 0} | settings)
    with pytest.raises(WorkbenchError, match="no column `labeler`"):
        selected_rows(comparisons().remove_columns("labeler"), count=0, labelers="ana")


def test_labelers_may_have_numbers_for_names_or_none():
    rows = comparisons(4).remove_columns("labeler").add_column("labeler", [7, 8, None, 7])
    assert selected_rows(rows, count=0, labelers="7")["prompt"][:] == ["p0", "p3"]
    with pytest.raises(WorkbenchError, match=r"labelers names 9, but the data has 7, 8, None"):
        selected_rows(rows, count=0, labelers="9")


def test_about_that_share_of_labels_is_turned_and_nothing_else_changes():
    rows = comparisons()
    noisy = with_flipped_labels(rows, share=0.25, seed=0)
    turned = [chosen.startswith("bad") for chosen in noisy["chosen"]]
    assert 70 <= sum(turned) <= 130  # 100 expected, a standard deviation of 8.7
    for before, after, flip in zip(rows, noisy, turned, strict=True):
        assert after["prompt"] == before["prompt"]
        assert after["labeler"] == before["labeler"]
        assert (after["chosen"], after["rejected"])[:: -1 if flip else 1] == (before["chosen"], before["rejected"])


def test_noise_follows_the_seed():
    rows = comparisons()
    draws = [with_flipped_labels(rows, share=0.3, seed=seed)["chosen"][:] for seed in (0, 0, 1)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]
    assert with_flipped_labels(rows, share=0.0, seed=0)["chosen"][:] == rows["chosen"][:]


def test_rows_that_are_no_comparisons_and_impossible_shares_are_refused():
    ratings = Dataset.from_list([{"prompt": "p", "completion": "c", "rating": 3.0}])
    with pytest.raises(WorkbenchError, match="columns are prompt, completion, rating"):
        with_flipped_labels(ratings, share=0.1, seed=0)
    with pytest.raises(WorkbenchError, match=r"0\.6"):
        with_flipped_labels(comparisons(), share=0.6, seed=0)
