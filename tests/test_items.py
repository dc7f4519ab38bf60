"""Sampled completions -> items to judge: every pair is shown to labelers or counted as left out."""

import pytest

from workbench import WorkbenchError
from workbench.feedback.queues import pair_items, ranking_items


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


def test_an_odd_number_of_completions_is_refused():
    with pytest.raises(WorkbenchError, match="3 completions make no pairs"):
        pair_items([completion("p", text) for text in "abc"])


def test_two_completions_of_different_prompts_are_refused():
    with pytest.raises(WorkbenchError, match="Completions 2 and 3 answer different prompts"):
        pair_items([completion(prompt, text) for prompt, text in ("pa", "pb", "pc", "qd")])


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


@pytest.mark.parametrize(("sampled", "kept"), [(3, 1), (2, 3), (4, 2)])
def test_sizes_that_make_no_ranking_are_refused(sampled, kept):
    with pytest.raises(WorkbenchError, match=f"{kept} of {sampled} completions"):
        ranking_items([completion("p", text) for text in "abcdef"], sampled=sampled, kept=kept)


def test_completions_of_several_prompts_are_no_ranking():
    with pytest.raises(WorkbenchError, match="The 2 completions from 2 on answer different prompts"):
        ranking_items([completion(prompt, text) for prompt, text in ("pa", "pb", "pc", "qd")], sampled=2, kept=2)
