"""Oracles: whole labelling campaigns played through, counted by hand."""

import time
from collections import Counter

import numpy as np
import pytest
from judgements import judged

from workbench import WorkbenchError
from workbench.feedback import queues
from workbench.feedback.queues import Queue, closeness, ensemble_disagreement, pair_items, ranking_items
from workbench.feedback.store import Store


def items(count, **columns):
    return [
        {"item_id": f"i{number:02}", "prompt": f"p{number}", "completions": ["a", "b"], **columns}
        for number in range(count)
    ]


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "labels.db")
    yield opened
    opened.close()


def judge(store, turn, labeler, value=0):
    event = f"{labeler}-{turn.item_id}-{turn.repeat}-{time.monotonic_ns()}"
    store.record(judged(turn.item_id, value, labeler, elapsed_ms=1000, repeat=turn.repeat, event_id=event))


def play(store, queue, labelers, rounds=1000):
    """Labelers take turns until nobody has anything left; [(labeler, item, repeat)]."""
    queue.register(store, "pair")
    seen, active = [], list(labelers)
    for _ in range(rounds):
        for labeler in list(active):
            turn = queue.turn(store, labeler, "pair")
            if not turn.item_id:
                active.remove(labeler)
                continue
            judge(store, turn, labeler)
            seen.append((labeler, turn.item_id, turn.repeat))
        if not active:
            return seen
    raise AssertionError("the queue never ends")


@pytest.mark.parametrize("order", ["random", "given", "fewest"])
def test_each_item_is_judged_by_as_many_as_asked_for_and_by_nobody_twice(store, order):
    seen = play(store, Queue(items=items(12), judgements_per_item=2, order=order), ["ada", "bob", "cy"])
    assert Counter(item for _, item, _ in seen) == {f"i{number:02}": 2 for number in range(12)}
    assert max(Counter((labeler, item) for labeler, item, _ in seen).values()) == 1


def test_given_keeps_the_order_and_random_has_one_of_its_own_for_each_labeler(store, tmp_path):
    assert [item for _, item, _ in play(store, Queue(items=items(9), order="given"), ["ada"])] == [
        f"i{number:02}" for number in range(9)
    ]
    orders = {}
    for labeler in ("ada", "bob"):
        for attempt in range(2):
            fresh = Store(tmp_path / f"{labeler}{attempt}.db")
            orders[labeler, attempt] = [item for _, item, _ in play(fresh, Queue(items=items(9)), [labeler])]
    assert orders["ada", 0] == orders["ada", 1] != orders["bob", 0]
    assert sorted(orders["ada", 0]) == sorted(orders["bob", 0])


def test_fewest_evens_out_what_is_uneven(store):
    queue = Queue(items=items(6), judgements_per_item=3, order="fewest")
    queue.register(store, "pair")
    for _ in range(3):
        turn = queue.turn(store, "ada", "pair")
        judge(store, turn, "ada")
    first = {queue_turn(store, queue, "bob") for _ in range(3)}
    assert first == {f"i{number:02}" for number in range(6)} - {each.item_id for each in store.judgements()[:3]}


def queue_turn(store, queue, labeler):
    turn = queue.turn(store, labeler, "pair")
    judge(store, turn, labeler)
    return turn.item_id


def test_uncertain_goes_by_priority(store):
    priorities = {f"i{number:02}": (number * 7) % 5 + number / 100 for number in range(10)}
    seen = play(store, Queue(items=items(10), order="uncertain", priorities=priorities), ["ada"])
    assert [item for _, item, _ in seen] == sorted(priorities, key=priorities.get, reverse=True)


def test_two_labelers_at_once_get_different_items_and_a_stale_claim_expires(store, monkeypatch):
    queue = Queue(items=items(3))
    queue.register(store, "pair")
    shown = {labeler: queue.turn(store, labeler, "pair").item_id for labeler in ("ada", "bob", "cy")}
    assert len(set(shown.values())) == 3
    waiting = queue.turn(store, "dan", "pair")
    assert waiting.item_id == "" and "on other labelers' screens" in waiting.reason
    assert queue.turn(store, "ada", "pair").item_id == shown["ada"]  # a reload shows the same again
    later = time.time() + queues.CLAIM_SECONDS + 1
    monkeypatch.setattr(queues.time, "time", lambda: later)
    assert queue.turn(store, "dan", "pair").item_id in shown.values()


def test_hidden_repeats_have_their_share_come_late_and_only_once(store):
    seen = play(store, Queue(items=items(60), repeat_share=0.1), ["ada"])
    repeats = [place for place, (_, _, repeat) in enumerate(seen) if repeat]
    assert len(repeats) == pytest.approx(0.1 * len(seen), abs=1.5)
    assert len({seen[place][1] for place in repeats}) == len(repeats)
    for place in repeats:
        first = next(early for early, (_, item, repeat) in enumerate(seen) if item == seen[place][1] and not repeat)
        assert place - first > queues.LEAST_GAP
    assert Counter(item for _, item, repeat in seen if not repeat) == Counter(f"i{n:02}" for n in range(60))


def test_everybody_gets_every_attention_check_spread_over_the_items(store):
    checks = [{**item, "item_id": f"check{place}", "expected": 1} for place, item in enumerate(items(3))]
    seen = play(store, Queue(items=[*items(20), *checks]), ["ada", "bob"])
    for labeler in ("ada", "bob"):
        own = [item for name, item, _ in seen if name == labeler]
        assert {item for item in own if item.startswith("check")} == {"check0", "check1", "check2"}
    places = [place for place, (name, item, _) in enumerate(seen) if item.startswith("check")]
    assert min(places) < len(seen) / 2


def test_skipping_passes_an_item_on(store):
    queue = Queue(items=items(2))
    queue.register(store, "pair")
    skipped = queue.turn(store, "ada", "pair")
    judge(store, skipped, "ada", value="skip")
    other = queue.turn(store, "ada", "pair")
    assert other.item_id not in ("", skipped.item_id)
    judge(store, other, "ada")
    assert queue.turn(store, "ada", "pair").item_id == ""
    assert queue.turn(store, "bob", "pair").item_id == skipped.item_id


def test_the_budget_stops_everybody(store):
    seen = play(store, Queue(items=items(50), judgements_per_item=2, budget=17), ["ada", "bob", "cy"])
    assert len(seen) == 17
    turn = Queue(items=items(50), budget=17).turn(store, "dan", "pair")
    assert turn.reason == "The budget of 17 judgements is used up."


def test_progress_is_what_is_done_and_what_is_left_for_this_labeler(store):
    queue = Queue(items=items(8))
    queue.register(store, "pair")
    turn = queue.turn(store, "ada", "pair")
    assert (turn.done, turn.total) == (0, 8)
    judge(store, turn, "ada")
    turn = queue.turn(store, "bob", "pair")
    assert (turn.done, turn.total) == (0, 7)  # ada's is done
    assert queue.turn(store, "ada", "pair").total == 7  # one done, and bob looks at another


@pytest.mark.parametrize("order", ["random", "fewest"])
def test_a_queue_that_has_watched_the_log_says_what_one_says_that_reads_it_anew(store, order):
    checks = [{**item, "item_id": f"check{place}", "expected": 1} for place, item in enumerate(items(2))]
    made = {"items": [*items(14), *checks], "judgements_per_item": 2, "order": order, "repeat_share": 0.2, "budget": 25}
    watching, draw = Queue(**made), np.random.default_rng(0)
    watching.register(store, "pair")
    for number in range(60):
        labeler = str(draw.choice(["ada", "bob", "cy"]))
        if draw.random() < 0.2:
            store.undo(labeler, "pair", event_id=f"u{number}")
        found = watching.turn(store, labeler, "pair")
        assert found == Queue(**made).turn(store, labeler, "pair")
        if found.item_id and draw.random() < 0.8:
            judge(store, found, labeler, value=draw.choice(["skip", "tie"]))


def test_the_next_item_costs_the_same_however_many_labels_there_are(tmp_path):
    statements, counts = [], {}
    for size in (40, 400):
        store, queue = Store(tmp_path / f"{size}.db"), Queue(items=items(size), judgements_per_item=2)
        queue.register(store, "pair")
        store.record_all(judged(f"i{n:02}", 0, "bob", event_id=f"b{n}") for n in range(size - 9))
        queue.turn(store, "ada", "pair")
        statements.clear()
        store._db.set_progress_handler(lambda: statements.append(1), 1)  # called for every step of SQLite's machine
        queue.turn(store, "ada", "pair")
        counts[size] = len(statements)
        store.close()
    assert counts[400] < 1.3 * counts[40]


def test_an_undone_item_comes_first(store):
    queue = Queue(items=items(8), order="given")
    queue.register(store, "pair")
    for _ in range(3):
        judge(store, queue.turn(store, "ada", "pair"), "ada")
    undone = store.undo("ada", "pair")
    assert queue.turn(store, "ada", "pair", first=undone).item_id == undone == "i02"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"order": "best"}, "order is 'best': use one of random, given, fewest, uncertain"),
        ({"judgements_per_item": 0}, "judgements_per_item is 0"),
        ({"budget": -1}, "budget -1"),
        ({"repeat_share": 0.9}, "repeat_share is 0.9: give a share from 0 to 0.5"),
        ({"order": "uncertain"}, "3 items have no priority, the first is 'i00'"),
    ],
)
def test_a_queue_that_makes_no_sense_is_refused(settings, sentence):
    with pytest.raises(WorkbenchError, match=sentence):
        Queue(items=items(3), **settings)


def test_items_are_refused_for_a_kind_that_they_do_not_suit(store):
    one = [{"item_id": "a", "prompt": "p", "completions": ["x"]}]
    with pytest.raises(WorkbenchError, match="Item 'a' has 1 completion: a judgement of kind 'pair' needs exactly 2"):
        Queue(items=one).register(store, "pair")
    three = [{"item_id": "a", "prompt": "p", "completions": ["x", "y", "z"]}]
    with pytest.raises(WorkbenchError, match="needs exactly 2"):
        Queue(items=three).register(store, "pair")
    Queue(items=one).register(store, "rating")


def test_an_ensemble_disagrees_most_where_its_members_contradict_each_other():
    # members x items x completions: sure and agreed, sure but opposite, unsure and agreed
    scores = np.array([[[4.0, 0.0], [4.0, 0.0], [0.1, 0.0]], [[4.0, 0.0], [0.0, 4.0], [0.1, 0.0]]])
    disagreement = ensemble_disagreement(scores)
    assert disagreement.argmax() == 1 and disagreement[[0, 2]] == pytest.approx(0, abs=1e-12)
    sure = 1 / (1 + np.exp(-4))
    assert disagreement[1] == pytest.approx(((sure - 0.5) ** 2 + (1 - sure - 0.5) ** 2) / 2)
    assert closeness(scores) == pytest.approx([2 - 2 * sure, 1, 2 - 2 / (1 + np.exp(-0.1))])


def test_scores_that_are_no_ensemble_are_refused():
    with pytest.raises(WorkbenchError, match="An ensemble of 1 reward model can not disagree"):
        ensemble_disagreement(np.zeros((1, 3, 2)))
    with pytest.raises(WorkbenchError, match=r"shape \(3, 2\)"):
        closeness(np.zeros((3, 2)))
    with pytest.raises(WorkbenchError, match="NaN"):
        closeness(np.full((2, 3, 2), np.nan))


# Sampled completions as items: every pair is shown to labelers or counted as left out.


def completion(prompt, text, *, finished=True, **columns):
    return {"prompt_index": 0, "prompt": prompt, "completion": text, "finished": finished, "logprob": -1.0, **columns}


GOOD = [completion("q", "one"), completion("q", "two")]


def test_two_completions_in_a_row_become_one_item_in_their_order():
    rows = [completion("p", " first", kind="qa"), completion("p", " second", kind="qa")]
    items, left_out = pair_items(rows)
    expected = {"prompt": "p", "completions": [" first", " second"], "finished": [True, True], "kind": "qa"}
    (item,) = items
    assert {name: item[name] for name in item if name != "item_id"} == expected
    assert item["item_id"].startswith("pair-000000-")
    assert left_out == {"identical": 0, "unfinished": 0}


def test_pairs_that_differ_in_spaces_only_read_the_same_and_are_left_out():
    items, left_out = pair_items([completion("p", " the  end ."), completion("p", "the end ."), *GOOD])
    assert (len(items), left_out) == (1, {"identical": 1, "unfinished": 0})


@pytest.mark.parametrize("ends", [(True, False), (False, True), (False, False)])
def test_a_pair_with_an_answer_that_never_ends_is_left_out(ends):
    rows = [completion("p", text, finished=end) for text, end in zip(["a", "b"], ends, strict=True)]
    items, left_out = pair_items([*rows, *GOOD])
    assert (len(items), left_out) == (1, {"identical": 0, "unfinished": 1})


def test_a_model_that_never_ends_an_answer_gets_a_sentence_instead_of_no_items():
    rows = [completion("p", text, finished=False) for text in ("a", "b", "c", "d")]
    with pytest.raises(WorkbenchError, match=r"None of 2 pairs .*0 identical, 2 unfinished.*max_completion_length"):
        pair_items(rows)


def test_every_pair_is_an_item_or_counted():
    pairs = [("a", "b", True), ("a", "a", True), ("a", "b", False), ("c", "d", True)]
    rows = [completion(str(n), text, finished=ended) for n, (*texts, ended) in enumerate(pairs) for text in texts]
    items, left_out = pair_items(rows)
    assert len(items) + sum(left_out.values()) == len(pairs)
    assert [item["completions"] for item in items] == [["a", "b"], ["c", "d"]]


def test_an_items_name_tells_which_prompt_it_was_whatever_was_left_out_before_it():
    rows = [completion("p", text) for text in ("same", "same", "one", "two")]
    (item,), _ = pair_items(rows)
    assert item["item_id"].startswith("pair-000001-")


def test_an_items_name_changes_with_every_text_in_it():
    pairs = [("p", "one", "two"), ("p", "two", "one"), ("p", "one", "too"), ("q", "one", "two"), ("p", "one", "two")]
    ids = [pair_items([completion(prompt, text) for text in texts])[0][0]["item_id"] for prompt, *texts in pairs]
    assert len(set(ids)) == 4 and ids[0] == ids[4]


def test_columns_of_the_data_never_replace_those_of_the_item():
    odd = {"item_id": "mine", "completions": "mine", "topic": "sums"}
    (item,), _ = pair_items([completion("p", "a", **odd), completion("p", "b", **odd)])
    assert item["item_id"].startswith("pair-000000-")
    assert (item["completions"], item["topic"]) == (["a", "b"], "sums")


def test_a_ranking_has_the_first_completions_that_end_and_differ():
    texts = [("a", True), (" a ", True), ("b", False), ("c", True), ("b", True), ("d", True)]
    rows = [completion("p", text, finished=ended, kind="qa") for text, ended in texts]
    items, left_out = ranking_items(rows, sampled=6, kept=3)
    expected = {"prompt": "p", "completions": ["a", "c", "b"], "finished": [True] * 3, "kind": "qa"}
    (item,) = items
    assert {name: item[name] for name in item if name != "item_id"} == expected
    assert item["item_id"].startswith("ranking-000000-")
    assert left_out == {"too few different": 0}


def test_a_prompt_with_too_few_different_completions_is_counted_and_named_by_none():
    rows = [completion("p", "a")] * 3 + [completion("q", text) for text in "abc"]
    (item,), left_out = ranking_items(rows, sampled=3, kept=2)
    assert item["item_id"].startswith("ranking-000001-")
    assert (item["prompt"], left_out) == ("q", {"too few different": 1})
    with pytest.raises(WorkbenchError, match=r"None of 1 prompts can be judged \(1 too few different\)"):
        ranking_items(rows[:3], sampled=3, kept=2)


@pytest.mark.parametrize(
    ("prompts", "sizes", "words"),
    [
        ("ppp", {}, "3 completions make no pairs"),
        ("pppq", {}, "Completions 2 and 3 answer different prompts"),
        ("pppq", {"sampled": 2, "kept": 2}, "The 2 completions from 2 on answer different prompts"),
        ("pppppp", {"sampled": 3, "kept": 1}, "1 of 3 completions"),
        ("pppppp", {"sampled": 2, "kept": 3}, "3 of 2 completions"),
        ("pppppp", {"sampled": 4, "kept": 2}, "2 of 4 completions"),
    ],
)
def test_completions_that_make_no_items_are_refused(prompts, sizes, words):
    rows = [completion(prompt, text) for prompt, text in zip(prompts, "abcdef", strict=False)]
    with pytest.raises(WorkbenchError, match=words):
        (ranking_items if sizes else pair_items)(rows, **sizes)
