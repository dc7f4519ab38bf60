"""Oracles: what the store holds after answers that speak of places on the screen."""

import itertools
import random

import pytest
from judgements import judged, log_of

from workbench import WorkbenchError
from workbench.analysis.statistics import mean_and_error
from workbench.feedback.queues import Desk, Queue
from workbench.feedback.session import Collection, Session, answer, shown_order, verdict
from workbench.feedback.store import Store


def items(count, completions=("zero", "one")):
    return [{"item_id": f"i{n}", "prompt": f"p{n}", "completions": list(completions)} for n in range(count)]


def session(tmp_path, labeler="ada", kind="pair", completions=("zero", "one"), count=6, **queue):
    store = Store(tmp_path / "labels.db")
    return Session(store=store, queue=Queue(items=items(count, completions), **queue), labeler=labeler, kind=kind)


@pytest.mark.parametrize(
    ("kind", "answer", "value", "details"),
    [
        # order [2, 0, 1]: the first place shows completion 2, the second 0, the third 1
        ("pair", {"choice": 0}, 2, {}),
        ("pair", {"choice": 2, "strength": 3}, 1, {"strength": 3}),
        ("pair", {"choice": "tie", "strength": 3}, "tie", {}),
        ("ranking", {"groups": [[1], [2, 0]]}, [[0], [1, 2]], {}),
        ("best_of", {"best": 1}, 0, {}),
        ("rating", {"ratings": [7, 1, None]}, [1, None, 7], {}),
        (
            "rating",
            {"ratings": [7, 1, 2], "flags": [["x"], [], ["y", "z"]]},
            [1, 2, 7],
            {"flags": [[], ["y", "z"], ["x"]]},
        ),
        ("correction", {"text": "better", "completion": 2}, "better", {"completion": 1}),
        ("correction", {"text": "better", "completion": None}, "better", {}),
    ],
)
def test_places_on_the_screen_become_indices_of_the_item(kind, answer, value, details):
    assert verdict(kind, answer, [2, 0, 1]) == (value, details)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("pair", {"choice": 1, "strength": 3}),
        ("pair", {"choice": "tie"}),
        ("ranking", {"groups": [[1], [0, 2]]}),
        ("best_of", {"best": 2}),
        ("rating", {"ratings": [7, None, 2], "flags": [["x"], [], ["y", "z"]]}),
        ("rating", {"ratings": [7, 1, 2], "flags": [[], [], []]}),
        ("correction", {"text": "better", "completion": 2}),
        ("correction", {"text": "better", "completion": None}),
    ],
)
def test_what_was_answered_is_read_back_from_what_was_stored(kind, said):
    value, details = verdict(kind, said, [2, 0, 1])
    again = answer({"kind": kind, "value": value, "details": details, "shown_order": [2, 0, 1]})
    assert verdict(kind, again, [2, 0, 1]) == (value, details)
    assert {name: list(map(sorted, each)) if name == "groups" else each for name, each in again.items()} == said


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("pair", {}),
        ("pair", {"choice": 3}),
        ("pair", {"choice": "0"}),
        ("ranking", {"groups": 5}),
        ("ranking", {"groups": [[0], [7]]}),
        ("best_of", {"best": None}),
        ("rating", {"ratings": [1]}),
        ("correction", {}),
    ],
)
def test_answers_that_say_nothing_are_refused(kind, answer):
    with pytest.raises(WorkbenchError, match=f"is no {kind}"):
        verdict(kind, answer, [2, 0, 1])


def test_a_campaign_is_stored_unshuffled_and_both_sides_are_shown(tmp_path):
    ada, firsts = session(tmp_path, count=40), 0
    for number in range(40):
        view = ada.view()
        assert (view.done, view.total) == (number, 40)
        assert view.completions == [("zero", "one")[index] for index in view.shown_order]
        firsts += view.completions[0] == "zero"
        answer = {"choice": view.completions.index("one"), "strength": 2}
        assert ada.judge(view.item_id, f"e{number}", "label", answer=answer, elapsed_ms=2000) == "saved"
    assert 8 < firsts < 32
    stored = ada.store.judgements()
    assert {each.value for each in stored} == {1} and {each.details["strength"] for each in stored} == {2}
    assert all(each.shown_order == shown_order("ada", each.item_id, 2) for each in stored)
    done = ada.view()
    assert done.item_id == "" and done.message.startswith("Nothing is left for you") and done.completions == []


def test_a_restart_goes_on_with_the_same_item_and_order(tmp_path):
    before = session(tmp_path)
    view = before.view()
    before.judge(view.item_id, "e", "label", answer={"choice": 0}, elapsed_ms=1)
    view = before.view()
    before.store.close()
    again = session(tmp_path).view()
    assert (again.item_id, again.completions, again.done) == (view.item_id, view.completions, 1)


def test_an_answer_is_kept_once_whatever_arrives(tmp_path):
    ada = session(tmp_path)
    first = ada.view()
    assert ada.judge(first.item_id, "e", "label", answer={"choice": 0}, elapsed_ms=1) == "saved"
    ada.view()
    assert ada.judge(first.item_id, "e", "label", answer={"choice": 0}, elapsed_ms=1) == "saved"  # sent again
    ignored = ada.judge(first.item_id, "f", "label", answer={"choice": 1}, elapsed_ms=1)
    assert ignored == "an answer to an earlier item was ignored"
    assert len(ada.store.judgements()) == 1


def test_undo_shows_the_item_again(tmp_path):
    ada = session(tmp_path)
    assert ada.undo("u0") == "there is nothing to undo" and not ada.view().can_undo
    first = ada.view()
    ada.judge(first.item_id, "e", "skip", answer={}, elapsed_ms=1)
    assert ada.view().item_id != first.item_id and ada.view().can_undo
    assert ada.undo("u1") == "undone"
    assert ada.view().item_id == first.item_id
    ada.judge(first.item_id, "f", "label", answer={"choice": "tie"}, elapsed_ms=1)
    assert [each.value for each in ada.store.judgements()] == ["tie"]


def test_an_earlier_judgement_is_changed_in_its_own_order_and_the_log_keeps_both(tmp_path):
    ada = session(tmp_path, judgements_per_item=1)
    first = ada.view()
    for number in range(3):
        ada.judge(ada.view().item_id, f"e{number}", "label", answer={"choice": 0}, elapsed_ms=1, note=f"n{number}")
    waiting = ada.view().item_id
    assert [said["event_id"] for said in ada.past()] == ["e2", "e1", "e0"]
    ada.review("e0")
    shown = ada.view()
    assert (shown.item_id, shown.shown_order, shown.done) == (first.item_id, first.shown_order, 3)
    assert (shown.earlier["answer"], shown.earlier["note"], shown.can_undo) == ({"choice": 0}, "n0", False)
    assert ada.judge(first.item_id, "e3", "label", answer={"choice": 1}, elapsed_ms=1) == "changed"
    assert ada.view().item_id == waiting
    stands = {each.event_id: each.value for each in ada.store.judgements()}
    assert stands.keys() == {"e1", "e2", "e3"} and stands["e3"] == first.shown_order[1]
    log = log_of(ada.store)
    assert log["event_id"].tolist()[:3] == ["e0", "e1", "e2"] and log["action"].tolist()[3:] == ["undo", "label"]
    assert ada.judge(waiting, "e4", "label", answer={"choice": 0}, elapsed_ms=1) == "saved"


def test_an_earlier_judgement_that_is_only_looked_at_stands_whatever_happens(tmp_path):
    ada = session(tmp_path)
    ada.judge(ada.view().item_id, "e0", "skip", answer={}, elapsed_ms=1)
    waiting = ada.view().item_id
    assert ada.past()[0]["answer"] == {}
    ada.review("e0")
    ada.view()
    with pytest.raises(WorkbenchError, match="is no pair"):
        ada.judge(ada.view().item_id, "e1", "label", answer={}, elapsed_ms=1)
    assert [each.value for each in session(tmp_path).store.judgements()] == ["skip"]  # as after a crash
    assert ada.review("") == "left as it was"
    assert ada.view().item_id == waiting


def test_a_repeat_is_stored_as_such_and_may_be_undone(tmp_path):
    ada = session(tmp_path, count=30, repeat_share=0.2)
    for number in range(30):
        view = ada.view()
        if view.repeat:
            break
        ada.judge(view.item_id, f"e{number}", "label", answer={"choice": 0}, elapsed_ms=1)
    ada.judge(view.item_id, "again", "label", answer={"choice": 1}, elapsed_ms=1)
    stored = [each for each in ada.store.judgements() if each.item_id == view.item_id]
    assert [each.repeat for each in stored] == [0, 1]
    ada.undo("u")
    again = ada.view()
    assert (again.item_id, again.repeat) == (view.item_id, 1)


def test_a_failed_write_is_said_and_can_be_tried_again(tmp_path):
    ada = session(tmp_path)
    view = ada.view()
    ada.store._db.execute(f"PRAGMA max_page_count = {ada.store._db.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(WorkbenchError, match="disk is full"):
        ada.judge(view.item_id, "e", "label", answer={"choice": 0}, elapsed_ms=1, note="x" * 90_000)
    ada.store._db.execute("PRAGMA max_page_count = 100000")
    assert ada.judge(view.item_id, "e", "label", answer={"choice": 0}, elapsed_ms=1, note="x" * 90_000) == "saved"


def test_time_left_is_the_typical_time_for_what_is_left(tmp_path):
    ada = session(tmp_path)
    assert ada.view().seconds_left is None
    for number, seconds in enumerate([2, 4, 90]):
        ada.judge(ada.view().item_id, f"e{number}", "label", answer={"choice": 0}, elapsed_ms=1000 * seconds)
    assert ada.view().seconds_left == pytest.approx(4 * 3)


def test_live_agreement_counts_ties_half_and_waits_for_enough(tmp_path):
    store = Store(tmp_path / "a.db")
    watched, rated = (
        Session(store=store, queue=Queue(items=items(6)), labeler="eve", kind=kind) for kind in ("pair", "rating")
    )
    verdicts = {"ada": [0, 1, 0, 1, "tie", "skip"], "bob": [0, 1, 1, 1, 0, 0]}
    for labeler, values in verdicts.items():
        for number, value in enumerate(values):
            assert watched.view().agreement == ""
            store.record(judged(f"i{number}", value, labeler))
            if labeler == "bob" and number == 4:
                break
    # equal, equal, different, equal, half: 3.5 of 5, standard error over 5 items .2
    assert watched.view().agreement == "labelers agree on 70% ± 40% of 5 items judged by two"
    assert rated.view().agreement == ""


def test_live_agreement_is_the_mean_and_error_over_items_whatever_is_taken_back():
    draw, desk, standing = random.Random(0), Desk("ada", "pair", set()), []
    for number in range(400):
        if standing and draw.random() < 0.3:
            item, value = standing.pop(draw.randrange(len(standing)))
            desk._count(-1, number, item, "bob", 0, True, value, 0)
        else:
            standing.append((f"i{draw.randrange(40)}", draw.choice(["0", "1", '"tie"'])))
            desk._count(1, number, standing[-1][0], "bob", 0, True, standing[-1][1], 0)
    pairs = [
        (item, 1.0 if one == other else 0.5 if '"tie"' in (one, other) else 0.0)
        for (item, one), (same, other) in itertools.combinations(standing, 2)
        if item == same
    ]
    mean, error = mean_and_error([credit for _, credit in pairs], [item for item, _ in pairs])
    found = f"labelers agree on {mean:.0%} ± {2 * error:.0%} of {len({item for item, _ in pairs})} items judged by two"
    assert desk.agreement() == found


def test_what_another_process_writes_or_takes_back_is_seen_at_once(tmp_path):
    ada, bob = session(tmp_path, count=4), session(tmp_path, labeler="bob", count=4)
    seen = ada.view(), bob.view()
    assert seen[0].item_id != seen[1].item_id and seen[1].total == 3  # one is on the other's screen
    bob.judge(seen[1].item_id, "b0", "label", answer={"choice": 0}, elapsed_ms=1)
    counts = ada.queue.desk(ada.store, "ada", "pair").counts
    assert ada.view().total == 3 and counts[seen[1].item_id] == 1
    bob.undo("u0")
    assert ada.view().total == 3 and counts[seen[1].item_id] == 0  # it is on the other's screen again


@pytest.mark.parametrize(("labeler", "kind", "sentence"), [(" ", "pair", "labeler is ' '"), ("a", "x", "kind 'x'")])
def test_a_session_without_a_name_or_a_kind_is_refused(tmp_path, labeler, kind, sentence):
    with pytest.raises(WorkbenchError, match=sentence):
        session(tmp_path, labeler=labeler, kind=kind)


# What a notebook collects.


def pairs(count, prefix="i"):
    return [{"item_id": f"{prefix}{n}", "prompt": f"p{n}", "completions": ["a", "b"]} for n in range(count)]


def simulate(asked):
    return [judged(item["item_id"], 0, "sim") for item in asked]


def test_a_batch_run_collects_what_programs_say_and_shows_no_widget(tmp_path):
    collection, asked = Collection(tmp_path / "a.db", labelers="simulated", labeler="you"), pairs(3)
    assert collection.collected("pair", asked, lambda: simulate(asked)) == simulate(asked)
    assert collection.widget("pair", asked) is None


def test_running_again_adds_nothing(tmp_path):
    for _ in range(2):
        collection, asked = Collection(tmp_path / "a.db", labelers="simulated", labeler="you"), pairs(3)
        collection.ask("pair", asked, lambda asked=asked: simulate(asked))
    assert len(log_of(collection.store)) == 3


def test_judgements_come_in_the_order_of_the_items_and_only_theirs(tmp_path):
    collection, asked = Collection(tmp_path / "a.db", labelers="simulated", labeler="you"), pairs(4)
    collection.ask("pair", asked, lambda: simulate(reversed(asked)))
    collection.ask("pair", pairs(2, "other"), lambda: simulate(pairs(2, "other")))
    assert [each.item_id for each in collection.judgements("pair", asked)] == ["i0", "i1", "i2", "i3"]
    assert len(collection.judgements("pair", asked[1:3])) == 2


def test_a_person_alone_is_asked_and_programs_are_not(tmp_path):
    collection, asked = Collection(tmp_path / "a.db", labelers="human", labeler="ada"), pairs(3)
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
    collection, asked = Collection(tmp_path / "a.db", labelers="human", labeler="ada"), pairs(9)
    collection.ask("pair", asked, lambda: [])
    widget = collection.widget("pair", asked, priorities={f"i{n}": (n * 5) % 9 for n in range(9)})
    assert widget.showing["item_id"] == "i7"


def test_both_share_a_store_and_the_person_may_judge_what_programs_did(tmp_path):
    collection, asked = Collection(tmp_path / "a.db", labelers="mixed", labeler="ada"), pairs(3)
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
