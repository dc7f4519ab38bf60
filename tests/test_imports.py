"""Oracles: files that `export` wrote, and records in the shapes that Argilla and Label Studio write, read by hand."""

import itertools
import json
import random

import pytest
from judgements import judged

from workbench import WorkbenchError
from workbench.feedback.exchange import conversations, export, read_feedback, standard_feedback
from workbench.feedback.imports import argilla_feedback, label_studio_feedback
from workbench.feedback.kinds import require_verdict, training_rows
from workbench.feedback.store import Store
from workbench.feedback.tables import require_items
from workbench.runs import Run


def written(path, records):
    path.write_text(json.dumps(records))
    return path


def lines(path, records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return path


def argilla(folder, *records, kind="pair", question="preference", **settings):
    return argilla_feedback(written(folder / "a.json", list(records)), kind=kind, question=question, **settings)


def studio(folder, *tasks, kind="pair", **settings):
    return label_studio_feedback(written(folder / "l.json", list(tasks)), kind=kind, **settings)


def said(judgements):
    return [(each.item_id, each.labeler, each.value) for each in judgements]


# --- the standard columns


def drawn(kind, draw):
    """Items and judgements of a kind, as many completions each as it can have, and texts of every sort."""
    items, judgements = [], []
    for number in range(8):
        count = 2 if kind == "pair" else draw.randrange(2, 5)
        texts = draw.sample(["a\u2028b", "🙂", "c\n", " d ", "<b>", "ü"], count)
        items.append({"item_id": f"i{number}", "prompt": f"p{number % 3}", "completions": texts, "tier": number})
        for labeler in draw.sample(["ada", "bob", "cy"], draw.randrange(1, 4)):
            order, details = draw.sample(range(count), count), {}
            value = {
                "pair": draw.choice([0, 1, "tie"]),
                "ranking": [[index] for index in order],
                "best_of": order[0],
                "rating": [draw.choice([None, 1, 6.5]) for _ in range(count - 1)] + [7],
                "correction": f"text of {labeler}",
            }[kind]
            if kind == "pair" and value != "tie" and draw.random() < 0.5:
                details = {"strength": draw.randrange(1, 5)}
            if kind == "rating":
                details = {"flags": [draw.choice([[], ["rude"]]) if each else [] for each in value]}
            given = {"kind": kind, "size": count, "event_id": f"{number}-{labeler}", "details": details}
            judgements.append(judged(f"i{number}", value, labeler, **given))
    return items, judgements


ROUNDTRIPS = [
    ("preferences", "pair"),
    ("margins", "pair"),
    ("rankings", "ranking"),
    ("best_of", "best_of"),
    ("ratings", "rating"),
    ("demonstrations", "correction"),
]


@pytest.mark.parametrize("talk", [False, True])
@pytest.mark.parametrize(("name", "kind"), ROUNDTRIPS)
def test_what_was_exported_and_imported_is_exported_the_same(tmp_path, name, kind, talk):
    draw = random.Random(kind)
    for turn in range(5):
        items, judgements = drawn(kind, draw)
        items = conversations(items) if talk else items
        export(items, judgements, tmp_path / f"{turn}-first")
        first = tmp_path / f"{turn}-first" / f"{name}.jsonl"
        if not first.exists():
            continue
        again = standard_feedback(first, kind=kind)
        require_items(again[0])
        assert {each.kind for each in again[1]} == {kind}
        export(*again, tmp_path / f"{turn}-second")
        second = tmp_path / f"{turn}-second" / f"{name}.jsonl"
        assert contents(first) == contents(second)


def contents(path):
    """The rows of a file in any order."""
    rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


def test_judgements_come_back_with_what_was_said(tmp_path):
    items, judgements = drawn("pair", random.Random(3))
    judgements = [each for each in judgements if each.value != "tie"]
    export(items, judgements, tmp_path)
    found_items, found = standard_feedback(tmp_path / "preferences.jsonl", kind="pair")
    by_id = {item["item_id"]: item["completions"] for item in items}
    found_by_id = {item["item_id"]: item["completions"] for item in found_items}

    def meaning(judgement, texts):
        return judgement.item_id, judgement.labeler, texts[judgement.item_id][judgement.value]

    assert {meaning(each, found_by_id) for each in found} == {meaning(each, by_id) for each in judgements}
    assert len(found) == len(judgements) and len({each.event_id for each in found}) == len(found)


def test_pairs_of_a_ranking_become_items_of_their_own(tmp_path):
    items, judgements = drawn("ranking", random.Random(2))
    pairs, _ = training_rows("ranking", items, judgements, file="preferences")
    export(items, judgements, tmp_path)
    found_items, found = standard_feedback(tmp_path / "preferences.jsonl", kind="pair")
    assert len(found) == len(pairs)
    sizes = {item["item_id"]: len(item["completions"]) for item in items}
    judged = {each.item_id for each in judgements}
    assert len(found_items) == sum(sizes[name] * (sizes[name] - 1) // 2 for name in judged)


def test_a_preference_says_which_is_better_and_a_margin_how_strongly(tmp_path):
    rows = [
        {
            "prompt": str(number),
            "chosen": "a",
            "rejected": "b",
            "preference": likely,
            "margin": margin,
            "labeler": "ada",
        }
        for number, (likely, margin) in enumerate([(1, 1 / 3), (0, 1), (0.5, 1), (None, None), (1.0, 0.6666667)])
    ]
    items, judgements = standard_feedback(lines(tmp_path / "soft.jsonl", rows), kind="pair")
    texts = [
        each.value if each.value == "tie" else item["completions"][each.value]
        for item, each in zip(items, judgements, strict=True)
    ]
    assert texts == ["a", "b", "tie", "a", "a"]
    assert [each.details.get("strength") for each in judgements] == [2, 4, None, None, 3]


def test_a_second_judgement_by_the_same_labeler_is_a_repeat(tmp_path):
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "labeler": "ada", "item_id": "i"}
    _, judgements = standard_feedback(lines(tmp_path / "twice.jsonl", [row, row]), kind="pair")
    assert [each.repeat for each in judgements] == [0, 1]
    assert len({each.event_id for each in judgements}) == 2


def test_equal_texts_that_were_rated_twice_are_two_completions(tmp_path):
    rows = [{"prompt": "p", "completion": "same", "rating": rating, "labeler": "ada"} for rating in (2, 5)]
    items, judgements = standard_feedback(lines(tmp_path / "r.jsonl", rows), kind="rating")
    assert items[0]["completions"] == ["same", "same"] and judgements[0].value == [2, 5]


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b", "labeler": "ada"}
RATED = {"prompt": "p", "completion": "a", "labeler": "ada"}
SEVERAL = {"prompt": "p", "completions": ["a", "b"], "labeler": "ada"}


@pytest.mark.parametrize(
    ("kind", "records", "words"),
    [
        (
            "pair",
            [PAIR, {"prompt": "p", "chosen": "a", "labeler": "x"}],
            r"record 1 \(the first is 0\) has no 'rejected'",
        ),
        ("pair", [PAIR, ["p", "a", "b"]], "(line 2|row 1) is list, expected an object of columns"),
        ("pair", [{**PAIR, "preference": 0.7}], "record 0 .* preference 0.7, which several labelers make"),
        ("pair", [{**PAIR, "margin": 2.5}], "record 0 .* margin 2.5"),
        ("pair", [{**PAIR, "margin": "large"}], "record 0 .* margin 'large'"),
        ("pair", [{**PAIR, "chosen": 3}], "record 0 .*completion that is 3"),
        ("pair", [PAIR, {**PAIR, "labeler": " "}], "record 1 .* has the labeler ' '"),
        ("pair", [PAIR, {**PAIR, "labeler": "nan"}], "record 1 .* has the labeler 'nan'"),
        ("pair", [PAIR, {**PAIR, "labeler": ["ada"]}], "record 1 .* has the labeler"),
        ("pair", [{**PAIR, "item_id": True}], "record 0 .* has the item_id True"),
        ("rating", [{**RATED, "rating": float("nan")}], "record 0 .* a number or None"),
        ("rating", [{**RATED, "rating": 1, "flags": 5}], "record 0 .* flags 5: give a list"),
        ("ranking", [{**SEVERAL, "completions": 5, "ranking": [0]}], "record 0 .* completions 5"),
        ("ranking", [{**SEVERAL, "ranking": [0, 0]}], "record 0 .*index once"),
        ("ranking", [{**SEVERAL, "ranking": "ab"}], "ranking 'ab': give indices"),
        ("best_of", [{**SEVERAL, "best": 2}], "record 0 .*index of the best"),
        ("rating", [{**RATED, "rating": "good"}], "record 0 .* rating 'good': give a number"),
        ("correction", [{**RATED, "completion": ["a", "b"]}], "record 0 .*give text or a single message"),
        ("pair", [], "has no records"),
        ("pair", [PAIR, {**PAIR, "labeler": None}], "record 1 .* has no 'labeler', which preferences need"),
    ],
)
def test_bad_files_name_the_record(tmp_path, kind, records, words):
    for path in (lines(tmp_path / "bad.jsonl", records), written(tmp_path / "bad.json", records)):
        with pytest.raises(WorkbenchError, match=words):
            standard_feedback(path, kind=kind)


def test_files_that_can_not_be_read_get_a_sentence(tmp_path):
    with pytest.raises(WorkbenchError, match=r"missing\.jsonl cannot be read"):
        standard_feedback(tmp_path / "missing.jsonl", kind="pair")
    (tmp_path / "half.jsonl").write_text(json.dumps(PAIR) + '\n{"prompt": "p", "cho')
    with pytest.raises(WorkbenchError, match=r"half.jsonl, line 2 is not valid JSON"):
        standard_feedback(tmp_path / "half.jsonl", kind="pair")
    (tmp_path / "picture.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WorkbenchError, match="line 1 is not UTF-8 text"):
        standard_feedback(tmp_path / "picture.jsonl", kind="pair")


def test_imported_feedback_goes_into_a_store(tmp_path):
    items, judgements = drawn("pair", random.Random(3))
    export(items, judgements, tmp_path)
    found_items, found = standard_feedback(tmp_path / "preferences.jsonl", kind="pair")
    for item, judgement in itertools.product(found_items, found):
        if item["item_id"] == judgement.item_id:
            require_verdict(judgement, item)
    store = Store(tmp_path / "feedback.sqlite")
    store.add_items(found_items)
    store.record_all(found)
    assert len(store.judgements()) == len(found)


# --- Argilla: what Dataset.records.to_json writes, one object for each record

ADA, BOB = "2d2a4c6e-5a46-4f4a-9d7e-5f2b8b0a5a01", "8b1f1d0c-93c8-4a0f-8f0b-3f0f3a2b7c02"


def argilla_record(name, **responses):
    """A record as Record.to_dict of argilla 2 gives it."""
    answers = {
        question: [{"value": value, "user_id": user} for user, value in given.items()]
        for question, given in responses.items()
    }
    return {
        "id": name,
        "fields": {"prompt": f"prompt of {name}", "response1": "first", "response2": "second"},
        "metadata": {"model": "tiny"},
        "suggestions": {"preference": {"value": "response1", "score": 0.9, "agent": "judge"}},
        "responses": answers,
        "vectors": {},
        "status": "completed" if answers else "pending",
        "_server_id": "0c7a3f52-1f5d-4c3e-8a3b-6a0a7a7d9b03",
    }


def test_labels_of_argilla_are_pairs(tmp_path):
    path = written(
        tmp_path / "records.json",
        [
            argilla_record("r1", preference={ADA: "response2", BOB: "tie"}),
            argilla_record("r2", preference={ADA: "response1"}),
            argilla_record("r3"),
        ],
    )
    items, judgements = argilla_feedback(path, kind="pair", question="preference")
    assert items[0] == {"model": "tiny", "item_id": "r1", "prompt": "prompt of r1", "completions": ["first", "second"]}
    assert said(judgements) == [("r1", ADA, 1), ("r1", BOB, "tie"), ("r2", ADA, 0)] and len(items) == 3
    assert {each.kind for each in judgements} == {"pair"}
    other = argilla_record("r1", best={ADA: "the second one"})
    assert argilla(tmp_path, other, question="best", labels={"the second one": 1})[1][0].value == 1


def test_rankings_of_argilla_are_rankings_or_pairs(tmp_path):
    exported = argilla_record("r1", rank={ADA: ["response2", "response1"]})
    assert argilla(tmp_path, exported, kind="ranking", question="rank")[1][0].value == [[1], [0]]
    assert argilla(tmp_path, exported, question="rank")[1][0].value == 1


def test_responses_as_the_server_of_argilla_lists_them_are_no_export(tmp_path):
    record = argilla_record("r1")
    level = [{"value": "response1", "rank": 1}, {"value": "response2", "rank": 1}]
    with pytest.raises(WorkbenchError, match=r"record 0 .* is labelled \{'value': 'response1', 'rank': 1\}"):
        argilla(tmp_path, argilla_record("r1", rank={ADA: level}), question="rank")
    record["responses"] = [
        {"id": "x", "user_id": ADA, "status": "submitted", "values": {"rank": {"value": level}, "why": {"value": "-"}}},
        {"id": "y", "user_id": BOB, "status": "draft", "values": {"rank": {"value": level}}},
    ]
    with pytest.raises(WorkbenchError, match=r"record 0 .* has another shape than records of its format: export it"):
        argilla(tmp_path, record, question="rank")


def test_ratings_and_texts_of_argilla(tmp_path):
    record = argilla_record("r1", first={ADA: 4, BOB: 5}, second={ADA: 1}, better={ADA: "well written"})
    _, judgements = argilla(tmp_path, record, kind="rating", question=["first", "second"])
    assert said(judgements) == [("r1", ADA, [4, 1]), ("r1", BOB, [5, None])]
    _, judgements = argilla(tmp_path, record, kind="correction", question="better", completions=["response1"])
    assert said(judgements) == [("r1", ADA, "well written")]


def test_chats_of_argilla_are_conversations_and_what_was_not_submitted_is_a_skip(tmp_path):
    record = argilla_record("r1", preference={ADA: "response1", BOB: "response2"})
    record["fields"]["prompt"] = [{"role": "user", "content": "hello"}]
    for completion in ("response1", "response2"):
        record["fields"][completion] = [{"role": "assistant", "content": completion}]
    record["responses"]["preference"][0]["status"] = "discarded"
    record["responses"]["preference"][1]["status"] = "submitted"
    items, judgements = argilla(tmp_path, record)
    assert items[0]["prompt"][0]["content"] == "hello"
    assert [each.value for each in judgements] == ["skip", 1]


def test_who_answers_twice_in_argilla_has_said_two_things(tmp_path):
    record = argilla_record("r1", preference={ADA: "response1", BOB: "response2"})
    record["responses"]["preference"][1]["user_id"] = ADA
    _, judgements = argilla(tmp_path, record)
    assert [(each.labeler, each.value, each.repeat) for each in judgements] == [(ADA, 0, 0), (ADA, 1, 1)]


def test_the_only_label_of_several_is_the_choice(tmp_path):
    for kind in ("pair", "best_of"):
        assert argilla(tmp_path, argilla_record("r1", preference={ADA: ["response2"]}), kind=kind)[1][0].value == 1


def without(record, *path):
    for name in path[:-1]:
        record = record[name]
    del record[path[-1]]


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (("fields",), "record 1 .* has no 'fields'"),
        (("fields", "response2"), r"record 1 .*among its fields, has no 'response2' \(found: prompt, response1\)"),
        (("fields", "prompt"), "record 1 .*among its fields, has no 'prompt'"),
        (("responses", "preference", 0, "user_id"), "record 1 .*in a response to 'preference', has no 'user_id'"),
        (("responses", "preference", 0, "value"), "record 1 .*in a response to 'preference', has no 'value'"),
    ],
)
def test_records_of_argilla_that_lack_something_are_named(tmp_path, missing, words):
    records = [argilla_record(name, preference={ADA: "response1"}) for name in ("r1", "r2")]
    without(records[1], *missing)
    with pytest.raises(WorkbenchError, match=words):
        argilla(tmp_path, *records)


def test_a_field_that_is_null_is_not_said_to_be_missing(tmp_path):
    record = argilla_record("r1", preference={None: "response1"})
    with pytest.raises(WorkbenchError, match=r"record 0 .*to 'preference', has no 'user_id' \(it is null\)"):
        argilla(tmp_path, record)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, r"record 0 .*is labelled 'A': say what it means, as in labels=\{'A': 0\}"),
        ({"question": "rank"}, r"no answers to \['rank'\], but to \['preference'\]"),
        ({"kind": "pairs"}, "no judgement of kind 'pairs'"),
        ({"kind": "rating"}, r"record 0 .*: give a number or None"),
    ],
)
def test_questions_and_labels_of_argilla_that_do_not_exist_are_named(tmp_path, asked, words):
    with pytest.raises(WorkbenchError, match=words):
        argilla(tmp_path, argilla_record("r1", preference={ADA: "A"}), **asked)


# --- Label Studio: a JSON export, one object for each task


def annotation(*results, by=2, cancelled=False, seconds=12.51):
    """An annotation with the fields of an export of Label Studio 1."""
    return {
        "id": 68045,
        "completed_by": by,
        "result": list(results),
        "was_cancelled": cancelled,
        "ground_truth": False,
        "created_at": "2023-04-17T21:54:20.457543Z",
        "updated_at": "2023-04-17T21:54:20.457580Z",
        "lead_time": seconds,
        "prediction": {},
        "result_count": 0,
        "unique_id": "80f751c6-c26a-47ef-9eea-8208d33a172a",
        "task": 401635,
        "project": 183,
    }


def result(sort, value, *, name="comparison", to="comparison"):
    return {"value": value, "id": "Sba4F4tuVh", "from_name": name, "to_name": to, "type": sort, "origin": "manual"}


def task(*annotations, number=401635, **data):
    data = data or {"prompt": "What is new?", "answer1": "Nothing.", "answer2": "Much."}
    return {
        "id": number,
        "annotations": list(annotations),
        "file_upload": "65af2932-ls_input_data.json",
        "drafts": [],
        "predictions": [],
        "data": data,
        "meta": {},
        "created_at": "2023-04-17T21:53:56.689509Z",
        "inner_id": 1,
        "total_annotations": len(annotations),
        "cancelled_annotations": 0,
        "project": 183,
    }


def test_pairs_of_label_studio(tmp_path):
    first = [
        annotation(result("pairwise", {"selected": "left"})),
        annotation(result("pairwise", {"selected": "right"}), by={"id": 3, "email": "bob@example.org"}),
        annotation(cancelled=True, by=4),
        annotation(by=5, seconds=None),
    ]
    other = task(annotation(result("choices", {"choices": ["tie"]})), number=401636)
    items, judgements = studio(tmp_path, task(*first), other)
    assert items[0] == {"item_id": "401635", "prompt": "What is new?", "completions": ["Nothing.", "Much."]}
    assert said(judgements) == [
        ("401635", "2", 0),
        ("401635", "bob@example.org", 1),
        ("401635", "4", "skip"),
        ("401635", "5", "skip"),
        ("401636", "2", "tie"),
    ]
    assert [each.elapsed_ms for each in judgements] == [12510, 12510, 12510, 0, 12510]


DOCUMENTS = [
    {"id": "blog", "title": "10 tips", "body": "There is nothing worse"},
    {"id": "mdn", "title": "Arrow functions", "body": "A compact alternative"},
    {"id": "wiki", "title": "Arrow", "body": "In computer science"},
]


@pytest.mark.parametrize("value", [["mdn", "wiki", "blog"], {"rank": ["mdn", "wiki", "blog"]}])
def test_rankings_of_label_studio(tmp_path, value):
    ranked = result("ranker", {"ranker": value}, name="rank", to="results")
    asked = task(annotation(ranked), task="rank", prompt="find", items=DOCUMENTS)
    items, judgements = studio(tmp_path, asked, kind="ranking", completions="items.body")
    texts = ["There is nothing worse", "A compact alternative", "In computer science"]
    assert items[0] == {"item_id": "401635", "task": "rank", "prompt": "find", "completions": texts}
    assert judgements[0].value == [[1], [2], [0]]


def test_buckets_of_label_studio_are_no_ranking(tmp_path):
    sorted_out = result("ranker", {"ranker": {"_": [], "best": ["mdn"], "ads": ["blog", "wiki"]}})
    asked = task(annotation(sorted_out), prompt="find", items=DOCUMENTS)
    with pytest.raises(WorkbenchError, match=r"record 0 .* sorts completions into \['best', 'ads'\]"):
        studio(tmp_path, asked, kind="ranking", completions="items.body")


def test_no_completion_and_no_text_of_label_studio_is_lost(tmp_path):
    ranked = result("ranker", {"ranker": {"rank": [1.0, 0]}}, to="items")
    listed = [{"id": 0, "body": "a"}, {"id": 1, "body": "b"}]
    asked = {"kind": "ranking", "completions": "items.body"}
    _, judgements = studio(tmp_path, task(annotation(ranked), prompt="p", items=listed), **asked)
    assert judgements[0].value == [[1], [0]]
    with pytest.raises(WorkbenchError, match=r"in 'items', has two completions of one id \(found: 0, 1\)"):
        studio(tmp_path, task(annotation(ranked), prompt="p", items=[*listed, listed[1]]), **asked)
    for texts in (["x", "y"], []):
        with pytest.raises(WorkbenchError, match=r"is labelled \[.*\]: a verdict is a single choice, or one text"):
            studio(tmp_path, task(annotation(result("textarea", {"text": texts}, to="answer1"))), kind="correction")


def test_ratings_bests_and_texts_of_label_studio(tmp_path):
    rated = annotation(
        result("rating", {"rating": 4}, name="quality2", to="answer2"),
        result("choices", {"choices": ["answer2"]}, name="best", to="prompt"),
        result("choices", {"choices": ["Yes"]}, name="safe", to="prompt"),
        result("textarea", {"text": ["Better."]}, name="rewrite", to="answer1"),
    )
    path = written(tmp_path / "all.json", [task(rated)])
    assert label_studio_feedback(path, kind="rating")[1][0].value == [None, 4]
    assert label_studio_feedback(path, kind="best_of", control="best")[1][0].value == 1
    written_over = label_studio_feedback(path, kind="correction")[1][0]
    assert (written_over.value, written_over.details) == ("Better.", {"completion": 0})
    chosen = label_studio_feedback(path, kind="pair", control="safe", labels={"Yes": 0, "No": 1})[1][0]
    assert chosen.value == 0
    with pytest.raises(WorkbenchError, match=r"record 0 .*2 results \('best', 'safe'\): choose by control"):
        label_studio_feedback(path, kind="pair")


@pytest.mark.parametrize(
    ("kind", "bad", "words"),
    [
        ("pair", {"id": 1, "text": "JSON-MIN"}, "record 1 .* has no 'data'"),
        ("pair", task(prompt="p", answer1="a"), "in its data, has no 'answer2'"),
        ("pair", task(answer1="a", answer2="b"), "in its data, has no 'prompt'"),
        ("pair", task(annotation(result("rating", {"rating": 3}))), "without pairwise or choices .found: rating"),
        ("pair", task(annotation(result("choices", {"choices": ["A"]}))), "labelled 'A': say what it means"),
        ("pair", task(annotation(result("choices", {"choices": ["left", "right"]}))), "a verdict is a single choice"),
        ("pair", task(annotation(result("pairwise", {}))), "has no 'selected'"),
        ("rating", task(annotation(result("rating", {"rating": 3}, to="chat"))), "rates 'chat', which is not among"),
        ("rating", task(annotation(result("rating", {"rating": "3"}, to="answer1"))), "number or None"),
        (
            "rating",
            task(annotation(*(result("rating", {"rating": n}, name=f"q{n}", to="answer1") for n in (1, 2)))),
            "rates 'answer1' more than once",
        ),
        ("pair", task(annotation(by=None)), "has the completed_by None: give each a name"),
        ("pair", task(annotation(by={"id": None, "email": ""})), "has the completed_by None: give each a name"),
        ("pair", task(annotation("left")), "another shape"),
    ],
)
def test_tasks_of_label_studio_that_lack_something_are_named(tmp_path, kind, bad, words):
    good = {"pair": result("pairwise", {"selected": "left"}), "rating": result("rating", {"rating": 2}, to="answer1")}
    with pytest.raises(WorkbenchError, match=f"record 1 .*{words}|{words}"):
        studio(tmp_path, task(annotation(good[kind]), number=1), bad, kind=kind)


def test_numbers_from_zero_on_are_names_as_any_other(tmp_path):
    rows = [{**PAIR, "labeler": who, "item_id": item} for item in (0, 1) for who in (0, 1, " 0", 1.0)]
    items, judgements = standard_feedback(lines(tmp_path / "pairs.jsonl", rows), kind="pair")
    assert [item["item_id"] for item in items] == ["0", "1"]
    assert [(each.labeler, each.repeat) for each in judgements] == [("0", 0), ("1", 0), ("0", 1), ("1", 1)] * 2
    ratings = [{"prompt": "p", "completion": "a", "rating": 3, "labeler": who} for who in (0, 1)]
    rated = standard_feedback(lines(tmp_path / "ratings.jsonl", ratings), kind="rating")[1]
    assert [each.labeler for each in rated] == ["0", "1"]
    record = argilla_record("r", preference={0: "response1"}) | {"id": 0}
    assert said(argilla(tmp_path, record)[1]) == [("0", "0", 0)]
    shown = task(annotation(result("pairwise", {"selected": "left"}), by={"id": 0, "email": None}), number=0)
    assert said(studio(tmp_path, shown)[1]) == [("0", "0", 0)]


def test_a_column_named_expected_makes_no_attention_check(tmp_path):
    answer = result("pairwise", {"selected": "left"})
    data = {"prompt": "What is new?", "answer1": "Nothing.", "answer2": "Much.", "expected": "4"}
    record = argilla_record("r", preference={ADA: "response1"}) | {"metadata": {"expected": 1}}
    for items, judgements in (
        standard_feedback(lines(tmp_path / "p.jsonl", [{**PAIR, "expected": "4"}]), kind="pair"),
        argilla(tmp_path, record),
        studio(tmp_path, task(annotation(answer), **data)),
    ):
        assert "expected" not in items[0] and items[0]["file_expected"] in ("4", 1)
        assert export(items, judgements, tmp_path / "out").endswith("1 pair from 1 judgement; left out: nothing.")


def test_a_number_is_a_label_of_argilla_and_no_answer_is_a_skip(tmp_path):
    record = argilla_record("r", preference={ADA: 1, BOB: 2.0})
    for labels in ({1: 0, 2: 1}, {"1": 0, "2": 1}, {1.0: 0, "2": 1}):
        assert [each.value for each in argilla(tmp_path, record, labels=labels)[1]] == [0, 1]
    with pytest.raises(WorkbenchError, match=r"labels=\{1: 0\}"):
        argilla(tmp_path, record)
    for status in ("draft", "discarded"):
        given = [{"value": None, "user_id": ADA, "status": status}]
        record = argilla_record("r") | {"responses": {"preference": given}}
        assert said(argilla(tmp_path, record)[1]) == [("r", ADA, "skip")]


def test_a_file_is_known_by_its_fields_and_what_answers_mean_is_read_from_text(tmp_path):
    pending = {name: value for name, value in argilla_record("r0").items() if name != "responses"}
    path = written(tmp_path / "a.json", [pending, argilla_record("r1", q={ADA: "A = B", BOB: "C"})])
    asked = {"kind": "pair", "question": "q", "completions": "response2, response1"}
    items, judgements = read_feedback(str(path), labels=" A = B = 1, C=tie", **asked)
    assert (items[1]["completions"], [each.value for each in judgements]) == (["second", "first"], [1, "tie"])
    for labels, words in (("A", "labels has 'A': give answers with their meaning"), ("A = B=x,C=0", "value 'x'")):
        with pytest.raises(WorkbenchError, match=words):
            read_feedback(str(path), labels=labels, **asked)
    path = lines(tmp_path / "p.jsonl", [{**PAIR, "labeler": who} for who in ("ada", "bob")])
    assert [each.labeler for each in read_feedback(str(path), kind="pair")[1]] == ["ada", "bob"]
    with pytest.raises(WorkbenchError, match="no judgement of kind 'pairs'"):
        read_feedback(str(path), kind="pairs")


def test_a_run_without_judgements_is_refused_and_stays_as_it_is(tmp_path):
    Run.open(tmp_path / "sft", {"seed": 0}).finish()
    before = sorted(path.name for path in (tmp_path / "sft").iterdir())
    with pytest.raises(WorkbenchError, match=r"sft holds no judgements.db: give a run of 03_preferences, or a file of"):
        read_feedback(str(tmp_path / "sft"), kind="pair")
    assert sorted(path.name for path in (tmp_path / "sft").iterdir()) == before


@pytest.mark.parametrize(
    ("source", "settings", "words"),
    [
        *(
            (source, {name: "x=1"}, f"{kind}, where {name} has no meaning: leave {name} out")
            for source, kind in (("run", "is a run"), ("p.jsonl", "is in standard columns"))
            for name in ("question", "prompt", "completions", "labels")
        ),
        ("a.json", {}, "has answers to .*: name one of these, as in question=preference"),
        ("away.json", {}, "away.json does not exist: give a run"),
        ("run/judgements.db", {}, "give its run folder, .*run"),
        ("p.csv", {}, "judgements are read from .json and .jsonl files"),
        (
            "nobody.jsonl",
            {},
            "nobody.jsonl: record 0 .the first is 0. has no 'labeler', which preferences need: add it",
        ),
    ],
)
def test_what_read_feedback_can_not_follow_is_named(source, settings, words, tmp_path):
    Run.open(tmp_path / "run", {"seed": 0}).finish()
    Store(tmp_path / "run" / "judgements.db").close()
    written(tmp_path / "a.json", [argilla_record("r", preference={ADA: "response1"})])
    lines(tmp_path / "p.jsonl", [{**PAIR, "labeler": "ada"}])
    lines(tmp_path / "nobody.jsonl", [{name: PAIR[name] for name in ("prompt", "chosen", "rejected")}])
    (tmp_path / "p.csv").write_text("prompt,chosen,rejected,labeler\n")
    with pytest.raises(WorkbenchError, match=words):
        read_feedback(str(tmp_path / source), kind="pair", **settings)
    with pytest.raises(WorkbenchError, match="feedback is '': give a run"):
        read_feedback("", kind="pair")


def leaves(value, path=()):
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield from leaves(each, (*path, key))


def with_leaf(value, path, leaf):
    if not path:
        return leaf
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[path[0]] = with_leaf(value[path[0]], path[1:], leaf)
    return changed


def test_whatever_stands_in_a_field_is_read_or_refused_in_a_sentence(tmp_path):
    exported = argilla_record("r", preference={ADA: "response1"})
    choice, one = result("choices", {"choices": ["left"]}), result("rating", {"rating": 2}, to="answer1")
    order = result("ranker", {"ranker": {"rank": ["answer2", "answer1"]}})
    cases = [
        (
            {**PAIR, "labeler": "a", "item_id": "i", "margin": 1, "preference": 1},
            lambda path: standard_feedback(path, kind="pair"),
        ),
        ({**RATED, "rating": 1, "flags": ["rude"]}, lambda path: standard_feedback(path, kind="rating")),
        ({**SEVERAL, "ranking": [1, 0]}, lambda path: standard_feedback(path, kind="ranking")),
        (exported, lambda path: argilla_feedback(path, kind="pair", question="preference")),
        (task(annotation(choice)), lambda path: label_studio_feedback(path, kind="pair")),
        (task(annotation(one)), lambda path: label_studio_feedback(path, kind="rating")),
        (task(annotation(order)), lambda path: label_studio_feedback(path, kind="ranking")),
    ]
    odd = [None, True, 0, -1, 1.5, float("nan"), float("inf"), "", "nan", "\ud83d", [], [[]], {}, {"a": 1}, [None]]
    for number, (record, read) in enumerate(cases):
        for path, leaf in itertools.islice(itertools.product(leaves(record), [*odd, 10**400]), number, None, 7):
            try:
                items, judgements = read(written(tmp_path / "odd.json", [with_leaf(record, path, leaf)]))
                require_items(items)
            except WorkbenchError as error:
                assert "\n" not in str(error), (path, leaf)
            else:
                assert all(each.labeler.strip() not in ("", "nan", "None") for each in judgements), (path, leaf)
