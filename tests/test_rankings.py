"""Oracle: rows written by hand."""

import pytest

from workbench.errors import WorkbenchError
from workbench.feedback.rankings import preference_rows
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
