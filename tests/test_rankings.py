"""Oracle: rows written by hand."""

import itertools

import pytest
from datasets import Dataset

from workbench.datasets import to_standard
from workbench.errors import WorkbenchError
from workbench.feedback.kinds import KINDS, parse_kinds
from workbench.feedback.rankings import placed, preference_rows, ranking_pairs, ranking_rows, rating_rows
from workbench.records import Judgement

ITEMS = [
    {"item_id": "i1", "prompt": "p1", "completions": ["good", "bad"], "finished": [True, True]},
    {"item_id": "i2", "prompt": "p2", "completions": ["same", "same"], "finished": [True, True]},
]


def judged(item_id, value, *, labeler="ada", shown_order=(0, 1), kind="pair"):
    return Judgement(
        item_id=item_id,
        labeler=labeler,
        kind=kind,
        value=value,
        shown_order=list(shown_order),
        elapsed_ms=0,
        note="",
        event_id=f"{item_id}-{labeler}",
    )


def test_the_value_names_the_completion_and_not_the_side_it_was_shown_on():
    rows, left_out = preference_rows(
        ITEMS, [judged("i1", 0, shown_order=(1, 0)), judged("i1", 1, labeler="bob", shown_order=(1, 0))]
    )
    assert rows == [
        {"prompt": "p1", "chosen": "good", "rejected": "bad", "labeler": "ada", "item_id": "i1"},
        {"prompt": "p1", "chosen": "bad", "rejected": "good", "labeler": "bob", "item_id": "i1"},
    ]
    assert left_out == []


def test_ties_skips_and_identical_completions_are_left_out_by_name():
    judgements = [
        judged("i1", "tie"),
        judged("i1", "skip", labeler="bob"),
        judged("i2", 1),
        judged("i1", 0, labeler="cy"),
    ]
    rows, left_out = preference_rows(ITEMS, judgements)
    assert [row["reason"] for row in left_out] == ["tie", "skip", "identical"]
    assert left_out[2] == {
        "prompt": "p2",
        "completions": ["same", "same"],
        "reason": "identical",
        "labeler": "ada",
        "item_id": "i2",
    }
    assert len(rows) + len(left_out) == len(judgements)


@pytest.mark.parametrize(
    ("items", "judgement", "words"),
    [
        (ITEMS, judged("i9", 0), "not among the items"),
        (ITEMS, judged("i1", 2), "value 2"),
        (ITEMS, judged("i1", [1, 0], kind="ranking"), "is a ranking"),
        ([*ITEMS, ITEMS[0]], judged("i1", 0), "appears twice"),
        ([{"item_id": "i1", "prompt": "p", "completions": ["a"]}], judged("i1", 0), "has 1 completions"),
    ],
)
def test_bad_judgements_get_a_sentence(items, judgement, words):
    with pytest.raises(WorkbenchError, match=words):
        preference_rows(items, [judgement])


def test_strengths_become_margins_of_thirds():
    judgements = [judged("i1", 0, labeler=name) for name in "abcd"] + [judged("i1", "tie", labeler="e")]
    strengths = [judged("i1", strength, labeler=name, kind="strength") for strength, name in enumerate("abcd", 1)]
    rows, left_out = preference_rows(ITEMS, judgements, strengths)
    assert [row["margin"] for row in rows] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert len(left_out) == 1
    assert "margin" not in preference_rows(ITEMS, judgements)[0][0]


THREE = [{"item_id": "i3", "prompt": "p3", "completions": ["x", "y", "z"], "finished": [True] * 3}]


def test_rankings_and_ratings_become_rows_and_skips_are_left_out_by_name():
    skip = {"prompt": "p3", "completions": ["x", "y", "z"], "reason": "skip", "labeler": "bob", "item_id": "i3"}
    rows, left_out = ranking_rows(
        THREE, [judged("i3", [2, 0, 1], kind="ranking"), judged("i3", "skip", labeler="bob", kind="ranking")]
    )
    own = {"prompt": "p3", "completions": ["x", "y", "z"], "ranking": [2, 0, 1], "labeler": "ada", "item_id": "i3"}
    assert (rows, left_out) == ([own], [skip])
    rows, left_out = rating_rows(
        THREE, [judged("i3", [7, 1, 4], kind="rating"), judged("i3", "skip", labeler="bob", kind="rating")]
    )
    assert [(row["completion"], row["rating"]) for row in rows] == [("x", 7), ("y", 1), ("z", 4)]
    assert rows[0] == {"prompt": "p3", "completion": "x", "rating": 7, "labeler": "ada", "item_id": "i3"}
    assert left_out == [skip]


@pytest.mark.parametrize(
    ("collect", "judgement", "words"),
    [
        (ranking_rows, judged("i3", [0, 1], kind="ranking"), "name each of its 3 completions"),
        (ranking_rows, judged("i3", 0, kind="ranking"), "is ranked 0"),
        (ranking_rows, judged("i3", [0, 1, 2]), "is a pair: rows of rankings need kind 'ranking'"),
        (ranking_rows, judged("i9", [0, 1, 2], kind="ranking"), "not among the items"),
        (rating_rows, judged("i3", [7, 1], kind="rating"), "one rating for each of its 3 completions"),
        (rating_rows, judged("i3", 7, kind="rating"), "is rated 7"),
    ],
)
def test_bad_rankings_and_ratings_get_a_sentence(collect, judgement, words):
    with pytest.raises(WorkbenchError, match=words):
        collect(THREE, [judgement])


def test_a_ranking_gives_all_of_its_pairs_side_by_side_and_keeps_its_name():
    rows = [
        {"prompt": "p", "completions": list("wxyz"), "ranking": [3, 0, 2, 1], "item_id": "a", "labeler": "ada"},
        {"prompt": "q", "completions": list("st"), "ranking": [0, 1], "item_id": "b", "labeler": "bob"},
    ]
    pairs = ranking_pairs(rows)
    assert [pair["chosen"] + pair["rejected"] for pair in pairs] == ["zw", "zy", "zx", "wy", "wx", "yx", "st"]
    assert [key for key, _ in itertools.groupby(pair["item_id"] for pair in pairs)] == ["a", "b"]
    assert list(pairs[0]) == ["prompt", "chosen", "rejected", "item_id", "labeler"]
    assert len(to_standard(Dataset.from_list(pairs), "preferences", source="rows")) == 7


def test_every_ranked_completion_has_its_place():
    rows = [{"prompt": "p", "completions": list("xyz"), "ranking": [2, 0, 1]}]
    assert [(row["prompt"], row["completion"], row["place"]) for row in placed(rows)] == [
        ("p", "z", 1),
        ("p", "x", 2),
        ("p", "y", 3),
    ]


def test_kinds_are_parsed_and_unknown_ones_refused_with_those_that_exist():
    assert parse_kinds(" pairs, ratings,", completions_per_prompt=1) == {"pairs", "ratings"}
    assert parse_kinds(",".join(KINDS), completions_per_prompt=2) == set(KINDS)
    with pytest.raises(WorkbenchError, match=r"'rankngs'.* use pairs, margins, rankings, ratings, steps"):
        parse_kinds("pairs,rankngs", completions_per_prompt=4)
    for text in ("", "steps"):
        with pytest.raises(WorkbenchError, match="add pairs"):
            parse_kinds(text, completions_per_prompt=4)
    with pytest.raises(WorkbenchError, match="completions_per_prompt is 1, but a ranking has at least 2"):
        parse_kinds("pairs,rankings", completions_per_prompt=1)
