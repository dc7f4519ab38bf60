"""Oracles: judgements counted by hand, statsmodels' intervals, habits planted in simulated labelers."""

import math
import random

import numpy as np
import pandas as pd
import pytest
from judgements import judged as judgement
from statsmodels.stats.proportion import proportion_confint

from workbench import WorkbenchError
from workbench.feedback.agreement import labeler_vs_rest
from workbench.feedback.kinds import training_rows
from workbench.feedback.labelers import (
    attention_checks,
    choice_shares,
    keep,
    labeler_summary,
    length_bias,
    position_bias,
    seconds_per_item,
    self_consistency,
    standing_out,
    wilson_interval,
)
from workbench.tasks.world import PANEL, judge_pairs

ITEMS = [
    {"item_id": "short", "prompt": "p", "completions": ["one two three", "one"]},
    {"item_id": "same", "prompt": "p", "completions": ["a b", "c d"]},
    {"item_id": "chat", "prompt": "p", "completions": [[{"role": "assistant", "content": "a b"}], "a b c"]},
    {"item_id": "four", "prompt": "p", "completions": ["a", "a b", "a b c", "a b c d"]},
    {"item_id": "check", "prompt": "p", "completions": ["good", "b a d"], "expected": 0},
]


def judged(item, labeler, value, shown, **others):
    return judgement(item, value, labeler, shown_order=shown, **others)


HAND = pd.DataFrame(
    [
        judged("short", "ada", 0, [1, 0], elapsed_ms=1000),
        judged("same", "ada", 1, [1, 0], elapsed_ms=3000),
        judged("chat", "ada", 1, [0, 1]),
        judged("check", "ada", 0, [0, 1], elapsed_ms=2000),
        judged("short", "bob", "tie", [0, 1]),
        judged("same", "bob", "skip", [0, 1]),
        judged("check", "bob", "skip", [0, 1]),
        judged("short", "ada", 0, [0, 1], repeat=1),
        judged("chat", "ada", "tie", [0, 1], repeat=1),
        judged("same", "ada", 0, [0, 1], repeat=1),
        judged("four", "cy", [[3], [1, 2], [0]], [3, 2, 1, 0], kind="ranking"),
        judged("four", "cy", [[3], [2], [1], [0]], [3, 2, 1, 0], kind="ranking", repeat=1),
        judged("four", "dee", 2, [0, 1, 2, 3], kind="best_of"),
        judged("four", "dee", [5, None, 1, 7], [0, 1, 2, 3], kind="rating"),
        judged("four", "dee", [5, 4, 2, 7], [0, 1, 2, 3], kind="rating", repeat=1),
        judged("four", "dee", "better", [0], kind="correction"),
    ]
)


def shares(table):
    return {row.labeler: (row.share, row.items) for row in table.itertuples()}


def test_position_bias_counted_by_hand():
    # ada: short 0 was second, same 1 first, chat 1 second, check 0 first; bob decided nothing
    # cy: shown 3 2 1 0, all five decided pairs in that order; dee: 2 before 3, after 0 and 1
    assert shares(position_bias(HAND)) == {"ada": (0.5, 4), "cy": (1, 1), "dee": (pytest.approx(1 / 3), 1)}


def test_length_bias_counted_by_hand():
    # ada: short longer, chat longer, check shorter, same does not count; cy: all longer; dee: 2 over 0 and 1, not 3
    expected = {"ada": (pytest.approx(2 / 3), 3), "cy": (1, 1), "dee": (pytest.approx(2 / 3), 1)}
    assert shares(length_bias(HAND, ITEMS)) == expected
    assert shares(length_bias(HAND, pd.DataFrame(ITEMS))) == expected


def test_self_consistency_counted_by_hand():
    # ada: short the same, chat half, same another; cy: five of six pairs and half; dee: two of three ratings
    expected = {"ada": (0.5, 3), "cy": (pytest.approx(5.5 / 6), 1), "dee": (pytest.approx(2 / 3), 1)}
    assert shares(self_consistency(HAND)) == expected


def test_attention_counted_by_hand():
    assert shares(attention_checks(HAND, ITEMS)) == {"ada": (1, 1), "bob": (0, 1)}
    assert shares(attention_checks(HAND, pd.DataFrame(ITEMS))) == {"ada": (1, 1), "bob": (0, 1)}


def test_the_order_within_a_tie_is_no_failed_check():
    items = [{"item_id": "four", "completions": list("abcd"), "expected": [[3], [2, 1], [0]]}]
    assert shares(attention_checks(HAND[HAND["kind"] == "ranking"], items)) == {"cy": (1, 1)}


def test_seconds_counted_by_hand():
    (row,) = seconds_per_item(HAND).itertuples()
    assert (row.labeler, row.median, row.measured, row.unmeasured) == ("ada", 2, 3, 4)
    assert (row.p10, row.p90) == (pytest.approx(1.2), pytest.approx(2.8))


@pytest.mark.parametrize(("count", "passed"), [(1, 1), (10, 0), (10, 7), (200, 150)])
def test_the_interval_is_wilsons(count, passed):
    expected = proportion_confint(passed, count, method="wilson")
    assert wilson_interval(passed / count, count) == pytest.approx(expected, abs=1e-12)
    frame = pd.DataFrame([judged(str(i), "ada", int(i >= passed), [0, 1]) for i in range(count)])
    (row,) = position_bias(frame).itertuples()
    assert (row.low, row.high) == pytest.approx(expected, abs=1e-12)


def simulated(generator, *, items, first, longer):
    """A labeler who picks what is shown first, or what is longer, with these probabilities, else tosses a coin."""
    rows, texts = [], []
    for i in range(items):
        words, order = generator.choice(20, size=2, replace=False) + 1, generator.permutation(2).tolist()
        texts.append({"item_id": str(i), "completions": ["w " * count for count in words]})
        habit = generator.random()
        if habit < first:
            value = order[0]
        elif habit < first + longer:
            value = int(words.argmax())
        else:
            value = int(generator.integers(2))
        rows.append(judged(str(i), "ada", value, order))
    return pd.DataFrame(rows), texts


def test_planted_habits_are_covered():
    generator, inside = np.random.default_rng(0), []
    for _ in range(60):
        frame, items = simulated(generator, items=80, first=0.3, longer=0.2)
        for table, truth in ((position_bias(frame), 0.65), (length_bias(frame, items), 0.6)):
            inside.append(table["low"][0] <= truth <= table["high"][0])
    assert 0.92 <= np.mean(inside) <= 0.99


def test_several_pairs_of_an_item_count_as_one_draw():
    # half of the items are ranked as shown, half the other way round: 20 coin flips, not 120
    rows = [
        judged(str(i), "ada", [[k] for k in (range(4) if i % 2 else range(3, -1, -1))], [0, 1, 2, 3], kind="ranking")
        for i in range(20)
    ]
    (row,) = position_bias(pd.DataFrame(rows)).itertuples()
    assert (row.share, row.items) == (0.5, 20)
    assert (row.low, row.high) == pytest.approx(proportion_confint(10, 20, method="wilson"))


def test_what_is_kept():
    assert set(keep(HAND, labelers=["bob", "cy"])["labeler"]) == {"bob", "cy"}
    slow = keep(HAND, slower_than_ms=2000)
    assert sorted(slow.loc[slow["elapsed_ms"] > 0, "elapsed_ms"]) == [2000, 3000]
    assert (slow["elapsed_ms"] == 0).sum() == (HAND["elapsed_ms"] == 0).sum()  # nobody measured these
    pd.testing.assert_frame_equal(keep(HAND), HAND)


def test_the_summary_joins_what_was_measured():
    frame = pd.concat([HAND, pd.DataFrame([judged("chat", "bob", 1, [1, 0])])])
    summary = labeler_summary(frame, ITEMS).set_index("labeler")
    assert summary["judgements"].to_dict() == {"ada": 7, "bob": 4, "cy": 2, "dee": 4}
    assert summary["skipped"].to_dict() == {"ada": 0, "bob": 2, "cy": 0, "dee": 0}
    assert summary.loc["ada", ["prefers_first", "attention", "seconds"]].tolist() == [0.5, 1, 2]
    pairs = frame[(frame["kind"] == "pair") & (frame["repeat"] == 0)]
    expected = labeler_vs_rest(pairs).set_index("labeler").loc["bob", ["agreement", "low", "high"]]
    assert summary.loc["bob", ["agreement", "agreement_low", "agreement_high"]].tolist() == expected.tolist()
    assert summary["seconds"].isna().to_dict() == {"ada": False, "bob": True, "cy": True, "dee": True}


def test_the_summary_leaves_out_what_nobody_measured():
    summary = labeler_summary(pd.DataFrame([judged("same", "ada", "tie", [0, 1])]), ITEMS)
    assert summary.to_dict("records") == [{"labeler": "ada", "judgements": 1, "skipped": 0}]


@pytest.mark.parametrize(
    "measure",
    [
        position_bias,
        self_consistency,
        seconds_per_item,
        lambda frame: length_bias(frame, ITEMS),
        lambda frame: attention_checks(frame, ITEMS),
        lambda frame: labeler_summary(frame, ITEMS),
    ],
)
def test_no_judgements_make_an_empty_table(measure):
    assert len(measure(HAND.head(0))) == 0


@pytest.mark.parametrize(
    ("measure", "words"),
    [
        (lambda: keep(HAND, labelers=["eve"]), r"No judgement has the labeler 'eve': choose from \['ada'"),
        (lambda: length_bias(HAND, ITEMS[1:]), "Item 'short' was judged, but is not among the 4 items"),
        (lambda: position_bias(HAND.drop(columns="shown_order")), r"lacks \['shown_order'\]"),
        (lambda: seconds_per_item(HAND.drop(columns="elapsed_ms")), r"lacks \['elapsed_ms'\]"),
    ],
)
def test_what_can_not_be_measured_gets_a_sentence(measure, words):
    with pytest.raises(WorkbenchError, match=words):
        measure()


# What labelers go by.


CHOICES = pd.DataFrame(
    {
        "labeler": ["ada", "ada", "ada", "bob"],
        "chosen_words": [5, 3, 4, 1],
        "rejected_words": [2, 9, 4, 2],
        "chosen_praise": [0, 0, 0, 3],
        "rejected_praise": [0, 0, 0, 1],
    }
)


def test_shares_count_only_pairs_that_differ_in_the_feature():
    table = choice_shares(CHOICES, ["words", "praise"]).set_index(["labeler", "feature"])
    assert table.loc[("ada", "words"), ["share", "pairs"]].tolist() == [0.5, 2]
    assert table.loc[("bob", "words"), ["share", "pairs"]].tolist() == [0.0, 1]
    assert table.loc[("bob", "praise"), ["share", "pairs"]].tolist() == [1.0, 1]


def test_a_feature_that_never_differs_for_a_labeler_has_no_row():
    table = choice_shares(CHOICES, ["words", "praise"])
    assert ("ada", "praise") not in set(zip(table["labeler"], table["feature"], strict=True))


def test_the_error_is_that_of_a_share_of_independent_choices():
    chosen = np.array([1.0] * 30 + [0.0] * 70)
    frame = pd.DataFrame({"labeler": "ada", "chosen_words": chosen, "rejected_words": 1 - chosen})
    (row,) = choice_shares(frame, ["words"]).itertuples()
    assert row.share == pytest.approx(0.3)
    assert (row.share_low, row.share_high) == pytest.approx(proportion_confint(30, 100, method="beta"))


def test_rounding_errors_are_no_difference():
    frame = pd.DataFrame({"labeler": ["ada"], "chosen_gold": [0.1 + 0.2], "rejected_gold": [0.3]})
    assert len(choice_shares(frame, ["gold"])) == 0


def test_a_missing_column_is_named():
    with pytest.raises(WorkbenchError, match=r"lacks .*chosen_gold.*it has"):
        choice_shares(CHOICES, ["gold"])


def test_the_habits_of_the_biased_panel_are_found(world):
    rng = random.Random(0)
    items = []
    for number, row in enumerate(world.prompts(1500, rng)):
        answers = [world.answer(row["prompt"], rng.uniform(0.5, 1), rng) for _ in range(2)]
        items.append({"item_id": str(number), "completions": answers, "finished": [True, True]} | row)
    rows, _ = training_rows("pair", items, judge_pairs(world, PANEL, items, rng, judgements_per_item=5))
    choices = pd.DataFrame(rows)
    for side in ("chosen", "rejected"):
        found = [world.features(*pair) for pair in zip(choices["prompt"], choices[side], strict=True)]
        for name in ("words", "nice", "honest", "agreed"):
            choices[f"{side}_{name}"] = [features[name] for features in found]
    shares = choice_shares(choices, ["words", "nice", "honest", "agreed"]).pivot(
        index="feature", columns="labeler", values="share"
    )
    assert shares.loc["words"].idxmax() == "chi"  # loves length
    assert shares.loc["nice"].idxmax() == shares.loc["agreed"].idxmax() == "dev"  # loves flattery, and to be confirmed
    assert shares.loc["honest"].idxmin() == "eli"  # checks nothing


def test_who_stands_out_is_the_one_furthest_from_the_others_together():
    seen = [
        ("ada", "words", 0.5, 100),
        ("bob", "words", 0.6, 300),
        ("cy", "words", 0.8, 100),
        ("ada", "praise", 0.5, 9),
    ]
    shares = pd.DataFrame(seen, columns=["labeler", "feature", "share", "pairs"])
    (row,) = standing_out(shares).itertuples()  # only one labeler saw a difference in niceness
    assert (row.feature, row.labeler) == ("words", "cy")
    # the others chose the longer one 50 + 180 times of 400
    assert row.others == pytest.approx(230 / 400) and row.difference == pytest.approx(0.8 - 230 / 400)
    spread = math.sqrt(0.8 * 0.2 / 100 + 0.575 * 0.425 / 400)
    assert row.standard_errors == pytest.approx((0.8 - 0.575) / spread)


def test_chance_stands_out_by_more_than_three_errors_about_as_rarely_as_it_should():
    generator = np.random.default_rng(0)
    pairs = generator.integers(80, 200, size=(600, 4))
    errors = []
    for counts in pairs:
        share = generator.binomial(counts, 0.55) / counts
        table = pd.DataFrame({"labeler": list("abcd"), "feature": "words", "share": share, "pairs": counts})
        errors.append(abs(standing_out(table)["standard_errors"].iloc[0]))
    # the largest of four nearly independent normal values exceeds 2.5 in 4.9% of cases
    assert 0.03 < np.mean(np.array(errors) > 2.5) < 0.07
