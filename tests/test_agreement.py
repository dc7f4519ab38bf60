"""Oracles: tables counted by hand, agreement planted in a simulation."""

import numpy as np
import pandas as pd
import pytest

from workbench.errors import WorkbenchError
from workbench.feedback.agreement import agreement_matrix, pairwise_agreement
from workbench.records import Judgement


def table(text):
    """One 'item labeler value' per line; digits become ints as in a Judgement."""
    rows = [line.split() for line in text.strip().splitlines()]
    return pd.DataFrame(
        [(item, labeler, int(value) if value.isdigit() else value) for item, labeler, value in rows],
        columns=["item_id", "labeler", "value"],
    )


HAND = table(
    """
    1 ada 0
    1 bob 0
    1 cy  1
    2 ada tie
    2 bob 1
    3 ada tie
    3 bob tie
    4 ada 1
    4 cy  skip
    5 bob 0
    """
)


def test_a_table_counted_by_hand():
    # item 1: ab 1, ac 0, bc 0; item 2: ab half; item 3: ab 1; items 4 and 5 have one verdict
    assert pairwise_agreement(HAND).value == pytest.approx(2.5 / 5)


def test_the_matrix_counted_by_hand():
    matrix = agreement_matrix(HAND)
    assert list(matrix.index) == list(matrix.columns) == ["ada", "bob", "cy"]
    assert matrix.loc["ada", "bob"] == matrix.loc["bob", "ada"] == pytest.approx(2.5 / 3)
    assert matrix.loc["ada", "cy"] == matrix.loc["cy", "bob"] == 0
    assert np.isnan(np.diag(matrix)).all()


def test_labelers_who_share_no_item_have_no_agreement():
    matrix = agreement_matrix(table("1 ada 0\n1 bob 0\n2 bob 1\n2 cy 1"))
    assert np.isnan(matrix.loc["ada", "cy"])
    assert matrix.loc["bob", "cy"] == 1


def simulated(generator, *, items, labelers, difficulty):
    """Verdicts that hit a per-item truth with a per-item probability, so that judgements of an item are dependent."""
    chance = generator.choice(difficulty, size=items)
    correct = generator.random((items, labelers)) < chance[:, None]
    frame = pd.DataFrame(correct.astype(int)).rename_axis("item_id").reset_index()
    return frame.melt(id_vars="item_id", var_name="labeler", value_name="value")


def test_the_interval_covers_the_planted_agreement():
    generator = np.random.default_rng(0)
    difficulty = np.array([0.5, 1.0])
    truth = np.mean(difficulty**2 + (1 - difficulty) ** 2)
    intervals = [
        pairwise_agreement(simulated(generator, items=60, labelers=5, difficulty=difficulty), seed=i) for i in range(60)
    ]
    assert 0.87 <= np.mean([low <= truth <= high for _, low, high in intervals]) <= 1.0
    assert abs(np.mean([interval.value for interval in intervals]) - truth) < 0.01


def test_the_interval_resamples_items_not_judgements():
    # every labeler agrees on easy items and nobody on hard ones: 10 judgements of an item say one thing
    frame = pd.concat([table("\n".join(f"{i} l{k} {0 if i % 2 else k}" for k in range(10))) for i in range(20)])
    interval = pairwise_agreement(frame)
    assert interval.value == pytest.approx(0.5)
    assert interval.high - interval.low > 0.35  # 20 coin flips: about .44; 900 pairs would give .07


def test_the_same_seed_gives_the_same_interval():
    frame = simulated(np.random.default_rng(1), items=20, labelers=3, difficulty=[0.8])
    assert pairwise_agreement(frame, seed=4) == pairwise_agreement(frame.sample(frac=1, random_state=0), seed=4)


def test_all_equal_labels_agree_completely():
    assert pairwise_agreement(table("1 ada 0\n1 bob 0\n2 ada 0\n2 bob 0")) == (1.0, 1.0, 1.0)


def test_a_list_of_judgements_is_such_a_table():
    common = {"kind": "pair", "shown_order": [1, 0], "elapsed_ms": 9, "note": ""}
    judgements = [
        Judgement(item_id=item, labeler=labeler, value=value, event_id=item + labeler, **common)
        for item, labeler, value in [("1", "ada", 0), ("1", "bob", "tie"), ("2", "ada", 1), ("2", "bob", 1)]
    ]
    assert pairwise_agreement(pd.DataFrame(judgements)).value == 0.75


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 ada 0\n2 ada 1", "1 labeler"),
        ("1 ada 0\n2 bob 1", "No item was judged by two"),
        ("1 ada 0\n1 bob skip\n2 bob 1", "No item was judged by two"),
        ("1 ada 0\n1 bob 1\n2 bob 1", "Only 1 item"),
        ("1 ada 0\n1 ada 1\n1 bob 1", "more than once"),
        ("1 ada skip", "0 labeler"),
    ],
)
def test_degenerate_tables_get_a_sentence(text, words):
    with pytest.raises(WorkbenchError, match=words):
        pairwise_agreement(table(text))


def test_a_missing_column_gets_a_sentence():
    with pytest.raises(WorkbenchError, match=r"lacks \['labeler'\]"):
        agreement_matrix(HAND.drop(columns="labeler"))
