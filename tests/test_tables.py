"""Oracles: the same table with clean values, and the row and column that a sentence must name."""

import datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from workbench import WorkbenchError
from workbench.feedback.agreement import (
    agreement_matrix,
    labeler_vs_rest,
    pairwise_agreement,
    verdicts,
)
from workbench.feedback.labelers import (
    choice_shares,
    dawid_skene,
    keep,
    labeler_reliability,
    labeler_summary,
    length_bias,
    position_bias,
)
from workbench.feedback.strengths import bradley_terry, plackett_luce

NAN = float("nan")
ROWS = [("i0", "ana", 0), ("i0", "bo", 0), ("i1", "ana", 1), ("i1", "bo", 1), ("i2", "ana", 1), ("i2", "bo", 0)]
CLEAN = pd.DataFrame(ROWS, columns=["item_id", "labeler", "value"]).astype(object)
READINGS = [
    pairwise_agreement,
    agreement_matrix,
    labeler_vs_rest,
    dawid_skene,
    labeler_reliability,
]


def with_cell(table, row, column, value):
    changed = table.astype(object).copy()
    changed.at[row, column] = value
    return changed


def same(one, other):
    if isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other)
    elif hasattr(one, "posterior"):
        pd.testing.assert_frame_equal(one.posterior, other.posterior, check_column_type=False)
    else:
        assert one == pytest.approx(other)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize(
    ("column", "value"),
    [
        *((column, value) for column in ("item_id", "labeler") for value in (None, NAN, pd.NA, pd.NaT, "", "\u00a0 ")),
        *((column, value) for column in ("item_id", "labeler") for value in ("i0\u200b", "\ufeffana", "b\ud800")),
        *(("labeler", value) for value in ("nan", "None", "<NA>", True, np.True_, ["ana"], 1.5, b"ana", "a\u200bna")),
        *(("item_id", value) for value in (("i", 1), float("inf"), {"id": 1}, "NaT")),
        *(("value", value) for value in (float("inf"), "nan", Decimal("Infinity"), 1j, b"1", {"choice": 0}, 10**200)),
        *(("value", value) for value in ("inf", "-Infinity", "1e999")),
    ],
)
def test_what_says_nothing_is_refused_with_its_row_and_column(reading, column, value):
    with pytest.raises(WorkbenchError, match=rf"^Row 3 \(the first is 0\) has the {column} .*: give "):
        reading(with_cell(CLEAN, 3, column, value))


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("value", ["0", 0, "1 ", 1, 1.0, "0"]),
        ("value", [False, 0, True, "True", np.float32(1), "false"]),
        ("value", [Decimal(0), "0.0", np.int8(1), "+1", "1e0", "-0"]),
        ("value", ["0\u200b", "\ufeff0", "\uff11", "1\u2060", 1, "\u200e0"]),
        ("labeler", ["ana", "bo", " ana", "bo\t", "ana", "\u00a0bo"]),
        ("item_id", ["i0", "i0 ", "i1", "i1", "i2", " i2"]),
    ],
)
def test_one_value_in_several_spellings_is_one_value(reading, column, values):
    same(reading(CLEAN.assign(**{column: pd.Series(values, dtype=object)})), reading(CLEAN))


def test_names_are_one_in_every_unicode_form_and_numbers_are_names():
    composed = CLEAN.assign(labeler=["Zoe\u0308", "b", "Zo\u00eb", "b", "Zoe\u0308", "b"])
    assert list(agreement_matrix(composed)) == ["Zo\u00eb", "b"]
    assert list(agreement_matrix(CLEAN.assign(labeler=[0, "bo", "0", "bo", 0.0, "bo"]))) == ["0", "bo"]
    assert list(agreement_matrix(CLEAN.assign(labeler=[2.0, 10.0] * 3))) == [2, 10]
    days = [datetime.date(2026, 1, 1 + number // 2) for number in range(6)]
    assert dawid_skene(CLEAN.assign(item_id=days)).posterior.index[0] == "2026-01-01"
    assert pairwise_agreement(CLEAN.astype("category")) == pairwise_agreement(CLEAN)


def test_a_verdict_that_is_not_there_is_none():
    rows = CLEAN.to_dict("records") + [
        {"item_id": "i0", "labeler": "cy", "value": each} for each in (None, "", NAN, " ")
    ]
    table = pd.DataFrame(rows)
    assert pairwise_agreement(table) == pairwise_agreement(CLEAN)
    assert agreement_matrix(table).loc["cy"].isna().all()
    assert pairwise_agreement(CLEAN.replace({0: "Tie "})) == pairwise_agreement(CLEAN.replace({0: "tie"}))


def test_a_column_twice_and_what_is_no_table_are_refused():
    with pytest.raises(WorkbenchError, match="2 columns 'labeler'"):
        pairwise_agreement(pd.concat([CLEAN, CLEAN[["labeler"]]], axis=1))
    with pytest.raises(WorkbenchError, match="are a list: give a table"):
        pairwise_agreement(ROWS)


BATTLES = pd.DataFrame(
    [("a", "b", False), ("b", "a", False), ("a", "c", True), ("c", "a", False), ("b", "c", False), ("c", "b", True)],
    columns=["winner", "loser", "tie"],
)


@pytest.mark.parametrize(
    "ties",
    [
        ["False", "False", "True", "False", "False", "True"],
        ["no", "0", "YES", "false", "0.0", "1.0"],
        [None, NAN, 1, 0, "", 1.0],
        [np.False_, pd.NA, np.True_, 0.0, " ", "1"],
    ],
)
def test_a_tie_is_what_the_table_says_however_it_is_written(ties):
    table = BATTLES.assign(tie=pd.Series(ties, dtype=object))
    same(bradley_terry(table, clusters=""), bradley_terry(BATTLES, clusters=""))


@pytest.mark.parametrize(
    ("column", "value"),
    [("tie", "maybe"), ("tie", 2), ("tie", 1j), ("winner", NAN), ("loser", " "), ("winner", True), ("loser", ["b"])],
)
def test_a_comparison_that_says_nothing_is_refused_with_its_row(column, value):
    with pytest.raises(WorkbenchError, match=rf"^Row 2 \(the first is 0\) has the {column} "):
        bradley_terry(with_cell(BATTLES, 2, column, value), clusters="")


def test_what_belongs_together_is_named_by_any_column():
    table = BATTLES.assign(item_id=range(6), day=pd.to_datetime(["2026-01-01", "2026-01-02"] * 3))
    assert len(bradley_terry(table, clusters="day", prior_sd=1)) == 3
    with pytest.raises(WorkbenchError, match=r"Row 4 \(the first is 0\) has the day "):
        bradley_terry(with_cell(table, 4, "day", NAN), clusters="day")

    with pytest.raises(WorkbenchError, match="2 columns 'day': keep one"):
        bradley_terry(pd.concat([table, table[["day"]]], axis=1), clusters="day")


def test_a_best_one_is_the_same_index_as_a_number_of_any_type():
    orders = {"kind": "best_of", "shown_order": [[0, 1, 2]] * 6}
    table, told = judgements(**orders), [0.0, "0", 1, 1.0, "1.0", np.float32(0)]
    as_told = judgements(**orders, value=pd.Series(told, dtype=object))
    pd.testing.assert_frame_equal(verdicts(as_told), verdicts(table))
    pd.testing.assert_frame_equal(position_bias(as_told), position_bias(table))
    with pytest.raises(WorkbenchError, match=r"Row 0 \(the first is 0\) has the repeat 0\.5"):
        verdicts(judgements(repeat=0.5))


def test_labelers_are_kept_by_any_spelling_of_their_names():
    table = judgements(labeler=["Zo\u00eb", "7"] * 3)
    assert len(keep(table, labelers=["Zoe\u0308 "])) == len(keep(table, labelers=[7])) == 3
    with pytest.raises(WorkbenchError, match=r"has the labeler '8': choose from \['7', 'Zo"):
        keep(table, labelers=[8, "x"])


@pytest.mark.parametrize("completions", [None, ["x"], [1, 2], 5])
def test_items_without_their_completions_are_refused(completions):
    with pytest.raises(WorkbenchError, match=r"has the completions .* 0 and 1 were compared"):
        length_bias(judgements(), [{"item_id": f"i{n}", "completions": completions} for n in range(3)])


def test_rivals_are_one_under_a_number_and_its_text():
    numbers = BATTLES.replace({"a": 1, "b": 2, "c": 3})
    mixed = numbers.astype({"loser": str})
    found, again = (bradley_terry(table, clusters="") for table in (numbers, mixed))
    same(found.assign(name=found["name"].astype(str)), again)
    with pytest.raises(WorkbenchError, match="'1' with '1'"):
        bradley_terry(pd.DataFrame({"winner": [1], "loser": ["1 "]}), clusters="")


@pytest.mark.parametrize(
    ("groups", "rest"),
    [
        ("ab", None),
        ([], None),
        ([["a"], []], None),
        ([["a"], "b"], None),
        ([["a"], [None]], None),
        (NAN, None),
        ([["a"]], "b"),
        ([["a"]], [NAN]),
        ([["a"]], 5.0),
        ([[str(number) for number in range(13)]], None),
        ([["a"], [["b"]]], None),
    ],
)
def test_a_ranking_that_is_none_is_refused_with_its_row(groups, rest):
    table = pd.DataFrame({"groups": [[["a"], ["b"]], groups], "rest": [None, rest]})
    with pytest.raises(WorkbenchError, match=r"^Row 1 \(the first is 0\) has the (groups|rest) "):
        plackett_luce(table, clusters="", prior_sd=1)


def judgements(**columns):
    rows = pd.DataFrame(ROWS, columns=["item_id", "labeler", "value"])
    others = {"kind": "pair", "repeat": 0, "elapsed_ms": 1000, "event_id": [f"e{n}" for n in range(6)]}
    return rows.assign(**others, shown_order=[[0, 1], [1, 0]] * 3).assign(**columns)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"kind": [NAN, *["pair"] * 5]}, "Row 0 .* kind nan"),
        ({"repeat": [0, 0, "often", 0, 0, 0]}, "Row 2 .* repeat 'often'"),
        ({"repeat": [0, 0, -1, 0, 0, 0]}, "Row 2 .* repeat -1"),
        ({"shown_order": [[0, 1]] * 5 + [[1, 1]]}, r"Row 5 .* shown_order \[1, 1\]"),
        ({"shown_order": "[0, 1]"}, "Row 0 .* shown_order"),
        ({"shown_order": [[0]] * 6}, "was shown as .0., but 0 and 1 were compared"),
        ({"shown_order": None}, "was shown as None"),
        ({"event_id": ["e0"] * 6}, "event 'e0' is in the table twice"),
        ({"elapsed_ms": ["fast"] * 6}, "Row 0 .* elapsed_ms 'fast'"),
        ({"value": [0, 1, 2, 0, 1, 0]}, "A pair was judged 2"),
        ({"kind": "ranking", "value": pd.Series([[[0], ["b"]]] * 6)}, "does not name each"),
        ({"kind": "ranking", "value": pd.Series([[[0], [1], [1]]] * 6)}, "does not name each"),
        ({"kind": "rating", "value": pd.Series([[1, "good"]] * 6)}, "A rating is"),
        ({"kind": "rating", "value": pd.Series([[1, float("inf")]] * 6)}, "Row 0 .* value"),
    ],
)
def test_judgements_that_say_nothing_are_refused(columns, sentence):
    with pytest.raises(WorkbenchError, match=sentence):
        labeler_summary(judgements(**columns), [{"item_id": f"i{n}", "completions": ["x", "y"]} for n in range(3)])
        pairwise_agreement(judgements(**columns))


def test_judgements_read_from_a_file_are_those_that_were_written():
    clean = judgements()
    read_back = clean.assign(
        value=clean["value"].astype(str), repeat=[0, NAN, "0", 0.0, None, False], elapsed_ms=[1000, "1000", 1e3] * 2
    )
    pd.testing.assert_frame_equal(position_bias(read_back), position_bias(clean))
    pd.testing.assert_frame_equal(verdicts(read_back), verdicts(clean))
    assert len(keep(read_back.assign(elapsed_ms=[NAN, None, 0, 10, 10, 10]), slower_than_ms=20)) == 3
    unsure = clean.assign(kind="ranking", value=[np.array([[0], [1]], dtype=object)] * 6)  # as Parquet gives lists back
    assert pairwise_agreement(unsure).value == 1


def test_habits_are_read_from_numbers_only():
    choices = pd.DataFrame({"labeler": ["a", "b "], "chosen_words": [3, "4"], "rejected_words": [1, 9]})
    assert choice_shares(choices, ["words"])["share"].tolist() == [1, 0]
    for wrong in (NAN, "many", None, float("inf")):
        with pytest.raises(WorkbenchError, match=r"Row 1 .* has the chosen_words"):
            choice_shares(with_cell(choices, 1, "chosen_words", wrong), ["words"])
