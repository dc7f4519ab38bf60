"""Batch and human feedback through one store: nothing twice, nothing lost, a sentence where nothing is there yet."""

import pytest
from judgements import judged as judgement

from workbench import WorkbenchError
from workbench.feedback.session import Collection


def items(count, prefix="i"):
    return [{"item_id": f"{prefix}{n}", "prompt": f"p{n}", "completions": ["a", "b"]} for n in range(count)]


def judged(item, labeler="sim", value=0):
    return judgement(item, value, labeler)


def simulate(asked):
    return [judged(item["item_id"]) for item in asked]


def test_a_batch_run_collects_what_programs_say_and_shows_no_widget(tmp_path):
    collection, asked = Collection(tmp_path / "a.db", labelers="simulated", labeler="you"), items(3)
    assert collection.collected("pair", asked, lambda: simulate(asked)) == simulate(asked)
    assert collection.widget("pair", asked) is None


def test_running_again_adds_nothing(tmp_path):
    for _ in range(2):
        collection, asked = Collection(tmp_path / "a.db", labelers="simulated", labeler="you"), items(3)
        collection.ask("pair", asked, lambda asked=asked: simulate(asked))
    assert len(collection.store.log()) == 3


def test_judgements_come_in_the_order_of_the_items_and_only_theirs(tmp_path):
    collection, asked = Collection(tmp_path / "a.db", labelers="simulated", labeler="you"), items(4)
    collection.ask("pair", asked, lambda: simulate(reversed(asked)))
    collection.ask("pair", items(2, "other"), lambda: simulate(items(2, "other")))
    assert [each.item_id for each in collection.judgements("pair", asked)] == ["i0", "i1", "i2", "i3"]
    assert len(collection.judgements("pair", asked[1:3])) == 2


def test_a_person_alone_is_asked_and_programs_are_not(tmp_path):
    collection, asked = Collection(tmp_path / "a.db", labelers="human", labeler="ada"), items(3)
    collection.ask("pair", asked, lambda: pytest.fail("programs were asked"))
    with pytest.raises(WorkbenchError, match=r"Nobody has judged any of 3 items yet .*judge some in the widget above"):
        collection.judgements("pair", asked)
    widget = collection.widget("pair", asked)
    shown = widget.showing["item_id"]
    message = {"type": "judge", "turn": 1, "item_id": shown, "event_id": "e", "action": "label", "elapsed_ms": 5}
    widget._handle_custom_msg({**message, "answer": {"choice": 0}}, [])
    (found,) = collection.judgements("pair", asked)
    assert (found.item_id, found.labeler) == (shown, "ada")


def test_a_person_starts_where_the_doubt_is_greatest(tmp_path):
    collection, asked = Collection(tmp_path / "a.db", labelers="human", labeler="ada"), items(9)
    collection.ask("pair", asked, lambda: [])
    widget = collection.widget("pair", asked, priorities={f"i{n}": (n * 5) % 9 for n in range(9)})
    assert widget.showing["item_id"] == "i7"


def test_both_share_a_store_and_the_person_may_judge_what_programs_did(tmp_path):
    collection, asked = Collection(tmp_path / "a.db", labelers="mixed", labeler="ada"), items(3)
    collection.ask("pair", asked, lambda: simulate(asked))
    widget = collection.widget("pair", asked)
    assert widget.progress["total"] == 3
    collection.store.record(judged("i1", labeler="ada", value=1))
    assert [(each.labeler, each.value) for each in collection.judgements("pair", asked)] == [
        ("sim", 0),
        ("sim", 0),
        ("ada", 1),
        ("sim", 0),
    ]


@pytest.mark.parametrize(
    ("labelers", "labeler", "sentence"),
    [("robots", "ada", "labelers is 'robots': use one of simulated, human, mixed"), ("human", " ", "labeler is ' '")],
)
def test_nobody_to_judge_is_said_before_anything_is_written(tmp_path, labelers, labeler, sentence):
    with pytest.raises(WorkbenchError, match=sentence):
        Collection(tmp_path / "a.db", labelers=labelers, labeler=labeler)
    assert not (tmp_path / "a.db").exists()
