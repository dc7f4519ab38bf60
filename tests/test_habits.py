"""What labelers go by; oracles: counting by hand, and simulated labelers whose habits are known."""

import math
import random

import numpy as np
import pandas as pd
import pytest

from workbench import WorkbenchError
from workbench.feedback.kinds import training_rows
from workbench.feedback.labelers import choice_shares, standing_out
from workbench.tasks.world import PANEL, judge_pairs

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
    assert row.share_se == pytest.approx((0.3 * 0.7 / 99) ** 0.5)


def test_rounding_errors_are_no_difference():
    frame = pd.DataFrame({"labeler": ["ada"], "chosen_gold": [0.1 + 0.2], "rejected_gold": [0.3]})
    assert len(choice_shares(frame, ["gold"])) == 0


def test_a_missing_column_is_named():
    with pytest.raises(WorkbenchError, match=r"lacks .*chosen_gold.*it has"):
        choice_shares(CHOICES, ["gold"])


def test_the_habits_of_the_biased_panel_are_found(world):
    rng = random.Random(0)
    items = []
    for number, row in enumerate(world.prompts(600, rng)):
        answers = [world.answer(row["prompt"], rng.uniform(0.5, 1), rng) for _ in range(2)]
        items.append({"item_id": str(number), "completions": answers, "finished": [True, True]} | row)
    rows, _ = training_rows("pair", items, judge_pairs(world, PANEL, items, rng, judgements_per_item=5))
    choices = pd.DataFrame(rows)
    for side in ("chosen", "rejected"):
        found = [world.features(*pair) for pair in zip(choices["prompt"], choices[side], strict=True)]
        for name in ("words", "nice", "honest"):
            choices[f"{side}_{name}"] = [features[name] for features in found]
    shares = choice_shares(choices, ["words", "nice", "honest"]).pivot(
        index="feature", columns="labeler", values="share"
    )
    assert shares.loc["words"].idxmax() == "chi"  # loves length
    assert shares.loc["nice"].idxmax() == "dev"  # loves flattery
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
