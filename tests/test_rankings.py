"""Oracle: rows written by hand, and the count of judgements and of their parts on random tables."""

import itertools
import random
from collections import Counter
from functools import partial

import pytest
from datasets import Dataset
from judgements import judged as judgement

from workbench import WorkbenchError
from workbench.feedback.exchange import account, placed
from workbench.feedback.kinds import training_rows
from workbench.feedback.session import COLLECTED, parse_kinds
from workbench.tasks.columns import to_standard

preference_rows, ranking_rows, best_of_rows, rating_rows, correction_rows = (
    partial(training_rows, kind) for kind in ("pair", "ranking", "best_of", "rating", "correction")
)
ranking_pairs, best_of_pairs = (partial(training_rows, kind, file="preferences") for kind in ("ranking", "best_of"))
ITEMS = [
    {"item_id": "i1", "prompt": "p1", "completions": ["good", "bad"], "finished": [True, True]},
    {"item_id": "i2", "prompt": "p2", "completions": ["same", "same"], "finished": [True, True]},
    {"item_id": "i3", "prompt": "p3", "completions": ["x", "y", "z"]},
    {"item_id": "i4", "prompt": "p4", "completions": list("wxyz")},
    {"item_id": "c1", "prompt": "pick bad", "completions": ["good", "bad"], "expected": 1},
]
SIZES = {item["item_id"]: len(item["completions"]) for item in ITEMS}


def judged(item_id, value, *, shown_order=None, labeler="ada", kind="pair", repeat=0, **details):
    order = shown_order or range(SIZES.get(item_id, 2))
    given = {"kind": kind, "repeat": repeat, "shown_order": order, "details": details}
    return judgement(item_id, value, labeler, **given)


def ranked(item_id, *groups, labeler="ada"):
    return judged(item_id, [list(group) for group in groups], labeler=labeler, kind="ranking")


def sides(pairs):
    return [pair["chosen"] + pair["rejected"] for pair in pairs]


def reasons(left_out):
    return [row["reason"] for row in left_out]


def test_the_value_names_the_completion_and_not_the_side_it_was_shown_on():
    rows, left_out = preference_rows(
        ITEMS, [judged("i1", 0, shown_order=[1, 0]), judged("i1", 1, labeler="bob", shown_order=[1, 0])]
    )
    assert rows == [
        {"prompt": "p1", "chosen": "good", "rejected": "bad", "labeler": "ada", "item_id": "i1"},
        {"prompt": "p1", "chosen": "bad", "rejected": "good", "labeler": "bob", "item_id": "i1"},
    ]
    assert left_out == []


def test_what_teaches_nothing_is_left_out_by_name():
    judgements = [
        judged("i1", "tie"),
        judged("i1", "skip", labeler="bob"),
        judged("i2", 1),
        judged("i1", 0, labeler="cy"),
        judged("c1", 0),
        judged("c1", "skip", labeler="bob"),
        judged("i1", 1, labeler="cy", repeat=1),
    ]
    rows, left_out = preference_rows(ITEMS, judgements)
    assert reasons(left_out) == ["tie", "skip", "identical", "check", "check", "repeat"]
    about = {"prompt": "p2", "completions": ["same", "same"], "labeler": "ada", "item_id": "i2"}
    assert left_out[2] == {**about, "reason": "identical", "value": 1}
    assert len(rows) + len(left_out) == len(judgements)
    sentence = account(rows, left_out, judgements=len(judgements))
    assert sentence == "1 pair from 7 judgements; left out: 2 check, 1 tie, 1 skip, 1 identical, 1 repeat"
    assert account([], [], judgements=1, noun="ranking") == "0 rankings from 1 judgement; left out: nothing"


def test_an_item_of_a_table_without_checks_is_none():
    items = [{**ITEMS[0], "expected": float("nan")}]
    assert len(preference_rows(items, [judged("i1", 0)])[0]) == 1
    assert len(preference_rows([{**ITEMS[0], "expected": None}], [judged("i1", 0)])[0]) == 1
    assert reasons(preference_rows([{**ITEMS[0], "expected": 0}], [judged("i1", 0)])[1]) == ["check"]


@pytest.mark.parametrize(
    ("items", "judgement", "words"),
    [
        (ITEMS, judged("i9", 0), "not among the items"),
        (ITEMS, judged("i1", 2), "value 2"),
        (ITEMS, ranked("i1", [1], [0]), "is a ranking: these rows are made of kind 'pair'"),
        ([*ITEMS, ITEMS[0]], judged("i1", 0), "appears twice"),
        ([{"item_id": "i1", "prompt": "p", "completions": ["a"]}], judged("i1", 0), "has 1 completion"),
        (ITEMS, judged("i1", 0, strength=5), "strength 5"),
    ],
)
def test_bad_judgements_get_a_sentence(items, judgement, words):
    with pytest.raises(WorkbenchError, match=words):
        preference_rows(items, [judgement])


def test_strengths_become_margins_of_thirds():
    judgements = [judged("i1", 0, labeler=str(strength), strength=strength) for strength in (1, 2, 3, 4)]
    rows, left_out = preference_rows(ITEMS, [*judgements, judged("i1", "tie", labeler="e"), judged("i1", 0)])
    assert [row.get("margin") for row in rows] == [0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1, None]
    assert "margin" not in rows[-1] and reasons(left_out) == ["tie"]


def test_rankings_become_rows_where_the_order_is_complete():
    judgements = [
        ranked("i3", [2], [0], [1]),
        judged("i3", "skip", labeler="bob", kind="ranking"),
        ranked("i4", [3], [0, 2], [1]),
        ranked("i2", [0], [1]),
    ]
    rows, left_out = ranking_rows(ITEMS, judgements)
    own = {"prompt": "p3", "completions": ["x", "y", "z"], "ranking": [2, 0, 1], "labeler": "ada", "item_id": "i3"}
    assert rows == [own] and reasons(left_out) == ["skip", "tie", "identical"]
    assert len(to_standard(Dataset.from_list(rows), "rankings", source="rows")) == 1
    assert [(row["prompt"], row["completion"], row["place"]) for row in placed(rows)] == [
        ("p3", "z", 1),
        ("p3", "x", 2),
        ("p3", "y", 3),
    ]


def test_a_ranking_gives_all_of_its_pairs_side_by_side_and_keeps_its_name():
    pairs, left_out = ranking_pairs(ITEMS, [ranked("i4", [3], [0], [2], [1]), ranked("i1", [0], [1], labeler="bob")])
    assert sides(pairs) == ["zw", "zy", "zx", "wy", "wx", "yx", "goodbad"] and left_out == []
    assert [key for key, _ in itertools.groupby(pair["item_id"] for pair in pairs)] == ["i4", "i1"]
    assert pairs[0] == {"prompt": "p4", "chosen": "z", "rejected": "w", "labeler": "ada", "item_id": "i4"}
    assert len(to_standard(Dataset.from_list(pairs), "preferences", source="rows")) == 7


def test_a_ranking_with_ties_keeps_the_pairs_that_it_decides():
    pairs, left_out = ranking_pairs(ITEMS, [ranked("i4", [3], [2, 0], [1]), ranked("i3", [0, 1, 2])])
    assert sides(pairs) == ["zy", "zw", "zx", "yx", "wx"]
    assert ["".join(row["completions"]) for row in left_out] == ["wy", "xy", "xz", "yz"] and set(reasons(left_out)) == {
        "tie"
    }


def test_the_best_of_several_is_better_than_each_other():
    judgements = [judged("i3", 1, kind="best_of"), judged("i2", 0, kind="best_of"), judged("c1", 0, kind="best_of")]
    rows, left_out = best_of_rows(ITEMS, judgements)
    assert rows == [{"prompt": "p3", "completions": ["x", "y", "z"], "best": 1, "labeler": "ada", "item_id": "i3"}]
    assert reasons(left_out) == ["identical", "check"]
    pairs, left_out = best_of_pairs(ITEMS, judgements)
    assert sides(pairs) == ["yx", "yz"] and reasons(left_out) == ["identical", "check"]


def test_every_rated_completion_is_a_row_with_its_flags():
    flags = [["false"], [], ["rude", "harmful"]]
    judgements = [
        judged("i3", [7, None, 4.5], kind="rating", flags=flags),
        judged("i3", "skip", labeler="bob", kind="rating"),
        judged("i1", [1, 2], kind="rating"),
    ]
    rows, left_out = rating_rows(ITEMS, judgements)
    assert [(row["completion"], row["rating"], row.get("flags")) for row in rows] == [
        ("x", 7, ["false"]),
        ("z", 4.5, ["rude", "harmful"]),
        ("good", 1, None),
        ("bad", 2, None),
    ]
    assert rows[2] == {"prompt": "p1", "completion": "good", "rating": 1, "labeler": "ada", "item_id": "i1"}
    assert [(row["reason"], row["completions"]) for row in left_out] == [("unrated", ["y"]), ("skip", ["x", "y", "z"])]
    with pytest.raises(WorkbenchError, match="1 lists of flags for 3 ratings"):
        rating_rows(ITEMS, [judged("i3", [7, None, 4.5], kind="rating", flags=[[]])])


def test_corrections_are_demonstrations_in_the_form_of_their_prompt():
    talk = {"item_id": "i3", "prompt": [{"role": "user", "content": "hi"}], "completions": ["x", "y", "z"]}
    written = judged("i3", "well", kind="correction", completion=1)
    assert correction_rows(ITEMS, [written, judged("i1", "skip", kind="correction")])[0] == [
        {"prompt": "p3", "completion": "well", "labeler": "ada", "item_id": "i3"}
    ]
    rows, _ = correction_rows([talk], [written])
    assert rows[0]["completion"] == [{"role": "assistant", "content": "well"}]
    assert len(to_standard(Dataset.from_list(rows), "demonstrations", source="rows")) == 1


@pytest.mark.parametrize(
    ("collect", "judgement", "words"),
    [
        (ranking_rows, ranked("i3", [0], [1]), "index once"),
        (ranking_rows, judged("i3", [2, 0, 1], kind="ranking"), "groups of the completions' indices"),
        (ranking_rows, judged("i3", 0, kind="ranking"), "value 0"),
        (ranking_pairs, judged("i1", 0), "is a pair: these rows are made of kind 'ranking'"),
        (ranking_rows, ranked("i9", [0], [1], [2]), "not among the items"),
        (best_of_rows, judged("i3", 3, kind="best_of"), "index of the best"),
        (rating_rows, judged("i3", [7, 1], kind="rating"), "for each completion"),
        (rating_rows, judged("i3", 7, kind="rating"), "value 7"),
        (correction_rows, judged("i3", 7, kind="correction"), "the text that should"),
    ],
)
def test_bad_verdicts_of_every_kind_get_a_sentence(collect, judgement, words):
    with pytest.raises(WorkbenchError, match=words):
        collect(ITEMS, [judgement])


def drawn_verdict(kind, count, draw):
    """Any verdict on `count` completions, skips and ties among them."""
    if draw.random() < 0.1:
        return "skip"
    if kind == "pair":
        return draw.choice([0, 1, "tie"])
    if kind == "best_of":
        return draw.randrange(count)
    if kind == "rating":
        return [draw.randrange(1, 8), *(draw.choice([None, 3]) for _ in range(count - 1))]
    if kind == "correction":
        return "text"
    order = draw.sample(range(count), count)
    cuts = sorted(draw.sample(range(1, count), draw.randrange(count)))
    return [order[start:stop] for start, stop in itertools.pairwise([0, *cuts, count])]


PARTS = {  # how many rows or left-out parts one judgement, which is no skip, check or repeat, must give
    ("pair", preference_rows): lambda count: 1,
    ("ranking", ranking_rows): lambda count: 1,
    ("ranking", ranking_pairs): lambda count: count * (count - 1) // 2,
    ("best_of", best_of_rows): lambda count: 1,
    ("best_of", best_of_pairs): lambda count: count - 1,
    ("rating", rating_rows): lambda count: count,
    ("correction", correction_rows): lambda count: 1,
}


@pytest.mark.parametrize(("kind", "collect"), PARTS)
def test_every_judgement_is_in_the_rows_or_left_out(kind, collect):
    draw = random.Random(0)
    for _ in range(20):
        items, judgements, expected = [], [], Counter()
        for number in range(12):
            count = 2 if kind == "pair" else draw.randrange(2, 6)
            texts = [draw.choice("abcdefgh") for _ in range(count)]
            item = {"item_id": f"i{number}", "prompt": "p", "completions": texts}
            items.append(item | ({"expected": 0} if draw.random() < 0.2 else {}))
            for labeler, repeat in (("ada", 0), ("bob", 0), ("bob", 1)):
                value = drawn_verdict(kind, count, draw)
                order = list(range(count))
                given = judged(f"i{number}", value, labeler=labeler, kind=kind, shown_order=order, repeat=repeat)
                judgements.append(given)
                whole = "expected" in items[-1] or repeat or value == "skip"
                expected[given.item_id, labeler] += 1 if whole else PARTS[kind, collect](count)
        rows, left_out = collect(items, judgements)
        assert Counter((row["item_id"], row["labeler"]) for row in [*rows, *left_out]) == expected
        checks = {item["item_id"] for item in items if "expected" in item}
        assert not checks & {row["item_id"] for row in rows}
        if collect in (preference_rows, ranking_pairs, best_of_pairs):
            assert all(row["chosen"] != row["rejected"] for row in rows)


def test_kinds_are_parsed_and_unknown_ones_refused_with_those_that_exist():
    assert parse_kinds(" pairs, ratings,", completions_per_prompt=1) == {"pairs", "ratings"}
    assert parse_kinds(",".join(COLLECTED), completions_per_prompt=2) == set(COLLECTED)
    with pytest.raises(WorkbenchError, match=r"'rankngs'.* use pairs, margins, rankings, ratings, steps"):
        parse_kinds("pairs,rankngs", completions_per_prompt=4)
    for text in ("", "steps"):
        with pytest.raises(WorkbenchError, match="add pairs"):
            parse_kinds(text, completions_per_prompt=4)
    with pytest.raises(WorkbenchError, match="completions_per_prompt is 1, but a ranking has at least 2"):
        parse_kinds("pairs,rankings", completions_per_prompt=1)
