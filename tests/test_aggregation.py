"""Oracles: votes counted by hand, posteriors made up, the count of verdicts, planted labelers of known reliability."""

import random

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from judgements import judged as judgement

from workbench import WorkbenchError
from workbench.feedback.aggregation import labeler_rows, majority_rows, posterior_rows, rating_orders
from workbench.feedback.agreement import pairwise_agreement
from workbench.feedback.exchange import account
from workbench.feedback.labelers import dawid_skene
from workbench.tasks.columns import to_standard

ITEMS = [
    {"item_id": "i", "prompt": "p", "completions": ["good", "bad"]},
    {"item_id": "j", "prompt": "q", "completions": ["x", "y", "z"]},
    {"item_id": "same", "prompt": "r", "completions": ["s", "s"]},
    {"item_id": "check", "prompt": "c", "completions": ["a", "b"], "expected": 0},
]
SIZES = {item["item_id"]: len(item["completions"]) for item in ITEMS}


def judged(item_id, labeler, value, kind="pair", repeat=0, size=0):
    return judgement(item_id, value, labeler, kind=kind, repeat=repeat, size=size or SIZES[item_id])


def votes(*values, item_id="i"):
    return [judged(item_id, labeler, value) for labeler, value in zip("abcdefgh", values, strict=False)]


def verdict(rows, left_out):
    return rows[0]["chosen"] if rows else left_out[0]["reason"]


@pytest.mark.parametrize(
    ("values", "expected", "preference", "agreement"),
    [
        ((0,), "good", 1, None),
        ((1, 1), "bad", 1, 1),
        ((0, 0, 1), "good", 2 / 3, 1 / 3),
        ((0, 1), "tie", None, 0),
        ((0, "tie", "tie"), "tie", None, (0.5 + 0.5 + 1) / 3),
        ((0, 0, "tie"), "good", 5 / 6, 2 / 3),
        ((0, 0, 1, "tie"), "good", 2.5 / 4, (1 + 0 + 0 + 0.5 * 3) / 6),
        ((1, 1, "tie", "tie"), "tie", None, (1 + 1 + 0.5 * 4) / 6),
    ],
)
def test_the_majority_counted_by_hand(values, expected, preference, agreement):
    rows, left_out = majority_rows(ITEMS, votes(*values))
    assert verdict(rows, left_out) == expected
    about = (rows + left_out)[0]
    assert about["labelers"] == len(values) and about["agreement"] == pytest.approx(agreement)
    assert not rows or rows[0]["preference"] == pytest.approx(preference)


def test_rows_are_standard():
    rows, left_out = majority_rows(ITEMS, [*votes(0, 0, 1), *votes(0, 1, item_id="same"), judged("check", "a", 1)])
    assert list(rows[0]) == ["prompt", "chosen", "rejected", "preference", "labelers", "agreement", "item_id"]
    assert [row["reason"] for row in left_out] == ["check", "identical"]
    assert account(rows, left_out, judgements=6) == "1 pair from 6 judgements; left out: 1 check, 1 identical"
    standard = to_standard(Dataset.from_list(rows), "preferences", source="rows")
    assert standard["preference"][:] == [pytest.approx(2 / 3)]


def test_rankings_and_bests_are_votes_on_their_pairs():
    judgements = [
        judged("j", "a", [[2], [0, 1]], "ranking"),
        judged("j", "b", [[2], [1], [0]], "ranking"),
        judged("j", "c", 0, "best_of"),
    ]
    rows, left_out = majority_rows(ITEMS, judgements)
    assert [(row["chosen"], row["rejected"], row["labelers"]) for row in rows] == [("z", "x", 3), ("z", "y", 2)]
    # x against y: a tie, y, x; nobody chose twice
    assert [(row["completions"], row["reason"], row["labelers"]) for row in left_out] == [(["x", "y"], "tie", 3)]


def test_posteriors_become_probabilities():
    posterior = pd.DataFrame({0: [0.7, 0.2], 1: [0.1, 0.2], "tie": [0.2, 0.6]}, index=["i", "same"])
    rows, _ = posterior_rows(ITEMS, votes(1, 1), posterior)
    assert (rows[0]["chosen"], rows[0]["preference"], rows[0]["agreement"]) == ("good", pytest.approx(0.8), 1)
    undecided = pd.DataFrame({0: [0.4], 1: [0.1], "tie": [0.5]}, index=["i"])
    assert posterior_rows(ITEMS, votes(0, 0), undecided)[1][0]["reason"] == "tie"
    no_ties = pd.DataFrame({0: [0.25], 1: [0.75]}, index=["i"])
    assert posterior_rows(ITEMS, votes(0, 0), no_ties)[0][0]["chosen"] == "bad"
    parts = pd.DataFrame({0: [0.9] * 3, 1: [0.1] * 3}, index=pd.MultiIndex.from_product([["j"], ["0-1", "0-2", "1-2"]]))
    rows, _ = posterior_rows(ITEMS, [judged("j", "a", [[2], [1], [0]], "ranking")], parts)
    assert sorted(row["chosen"] + row["rejected"] for row in rows) == ["xy", "xz", "yz"]
    with pytest.raises(WorkbenchError, match="no row for 'i'"):
        posterior_rows(ITEMS, votes(0), no_ties.rename(index={"i": "other"}))
    with pytest.raises(WorkbenchError, match="the class 'better'"):
        posterior_rows(ITEMS, votes(0), pd.DataFrame({"better": [1.0]}, index=["i"]))


def test_verdicts_kept_per_labeler_say_how_far_the_others_agree():
    rows, left_out = labeler_rows(ITEMS, [*votes(0, 1, "tie"), *votes(0, item_id="same")])
    assert [(row["labeler"], row["chosen"], row["preference"]) for row in rows] == [("a", "good", 1), ("b", "bad", 1)]
    assert all(row["labelers"] == 3 and row["agreement"] == pytest.approx(1 / 3) for row in rows)
    assert [(row["labeler"], row["reason"]) for row in left_out] == [("c", "tie"), ("a", "identical")]


def test_two_verdicts_of_one_labeler_are_refused_unless_repeated():
    with pytest.raises(WorkbenchError, match="'a' judged item 'i' more than once"):
        majority_rows(ITEMS, [judged("i", "a", 0), judged("i", "a", 1)])
    rows, left_out = majority_rows(ITEMS, [judged("i", "a", 0), judged("i", "a", 1, repeat=1)])
    assert len(rows) == 1 and left_out[0]["reason"] == "repeat"


def test_every_verdict_is_counted_once():
    draw = random.Random(0)
    for _ in range(30):
        items, judgements, parts = [], [], 0
        for number in range(8):
            kind, size = draw.choice([("pair", 2), ("ranking", 4), ("best_of", 3)])
            texts = [draw.choice("uvwxyz") for _ in range(size)]
            items.append({"item_id": f"n{number}", "prompt": "p", "completions": texts})
            items[-1] |= {"expected": 0} if draw.random() < 0.1 else {}
            for labeler in draw.sample("abcd", draw.randrange(5)):
                value = {"pair": draw.choice([0, 1, "tie"]), "ranking": [[3], [0, 2], [1]], "best_of": 2}[kind]
                value = "skip" if draw.random() < 0.1 else value
                judgements.append(judged(f"n{number}", labeler, value, kind, size=size))
                whole = value == "skip" or "expected" in items[-1]
                parts += 1 if whole else {"pair": 1, "ranking": 6, "best_of": 2}[kind]
        rows, left_out = majority_rows(items, judgements)
        assert sum(row["labelers"] for row in [*rows, *left_out]) == parts
        rows, left_out = labeler_rows(items, judgements)
        assert len(rows) + len(left_out) == parts


def test_a_scale_of_ones_own_turns_orders_round_where_two_rate_one_answer_each():
    """Both like the same answers and one gives 4 more: what the milder one rated wins, until their scales are equal."""
    tastes = {"i": [1, 3], "j": [3, 2], "k": [2, 1]}
    given = [(item, name, taste, more) for item, taste in tastes.items() for name, more in (("a", 0), ("b", 4))]
    said = [judgement(i, [v + more for v in taste], name, kind="rating", size=2) for i, name, taste, more in given]
    alone = judgement("l", [1, 2], "a", kind="rating", size=2)
    orders = rating_orders(pd.DataFrame([*said[::-1], alone]))
    assert list(orders) == ["ratings of one labeler", "ratings of two", "ratings of two, standardised"]
    for way, agreement in zip(orders, (1, 0, 1), strict=True):
        rows = orders[way]
        assert pairwise_agreement(rows).value == agreement
        assert set(rows["item_id"]) == {"i", "j", "k"} and len(rows) == 6  # nobody else rated l
        if agreement:
            assert all(rows["value"] == rows["item_id"].map({"i": 1, "j": 0, "k": 0}))


def test_a_coin_decides_between_equal_ratings():
    said = [judgement(f"i{i}", [2, 2], name, kind="rating", size=2) for i in range(400) for name in "ab"]
    for rows in rating_orders(pd.DataFrame(said)).values():
        assert abs(rows["value"].mean() - 0.5) < 0.06 and abs(pairwise_agreement(rows).value - 0.5) < 0.09


def test_posteriors_are_right_more_often_than_majorities_where_labelers_differ():
    generator = np.random.default_rng(0)
    items = [{"item_id": f"{n:03d}", "prompt": "p", "completions": ["a", "b"]} for n in range(400)]
    truth = generator.integers(2, size=400)
    judgements = []
    for labeler, reliability in zip("abcde", (0.95, 0.9, 0.55, 0.55, 0.55), strict=True):
        right = generator.random(400) < reliability
        for item, true, hit in zip(items, truth, right, strict=True):
            value = int(true if hit else 1 - true)
            judgements.append(judged(item["item_id"], labeler, value, size=2))
    fit = dawid_skene(pd.DataFrame(judgements))
    right = {}
    for name, (rows, _) in {
        "majority": majority_rows(items, judgements),
        "posterior": posterior_rows(items, judgements, fit.posterior),
    }.items():
        right[name] = np.mean([row["chosen"] == "ab"[truth[int(row["item_id"])]] for row in rows])
    assert right["posterior"] > right["majority"] + 0.05
