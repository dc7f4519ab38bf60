"""Controls that move a figure, without a browser: what they show is what the pure functions say."""

import random

import pandas as pd
import pytest

from workbench.explore import explore_agreement
from workbench.feedback.agreement import agreement_matrix, pairwise_agreement


@pytest.fixture
def judgements():
    rng, rows = random.Random(0), []
    for item in range(60):
        for labeler in ("ada", "bob", "cy"):
            kind, elapsed = "pair" if item < 40 else "best_of", 9000 if labeler != "bob" else 1500
            said = {"value": rng.randrange(2), "shown_order": [0, 1], "elapsed_ms": elapsed, "note": "", "repeat": 0}
            rows.append({"item_id": f"i{item}", "labeler": labeler, "kind": kind, **said, "event_id": str(len(rows))})
    return pd.DataFrame(rows)


def parts(box):
    (who, (kind, seconds)), figure, said = (
        (box.children[0].children[0], box.children[0].children[1].children),
        box.children[1],
        box.children[2],
    )
    return who, kind, seconds, figure, said


def test_the_figure_follows_every_control(judgements):
    who, kind, seconds, figure, said = parts(explore_agreement(judgements))
    assert kind.options == ("best_of", "pair")
    kind.value = "pair"
    pairs = judgements[judgements["kind"] == "pair"]
    assert f"{pairwise_agreement(pairs).value:.1%}" in figure.layout.title.text
    who.value = ["ada", "cy"]
    two = pairs[pairs["labeler"] != "bob"]
    assert f"80 judgements: two labelers agree on {pairwise_agreement(two).value:.1%}" in figure.layout.title.text
    assert figure.data[0].z[0][1] == pytest.approx(100 * agreement_matrix(two).loc["ada", "cy"])
    who.value, seconds.value = ["ada", "bob", "cy"], 2
    assert "80 judgements" in figure.layout.title.text and said.value == ""


def test_a_choice_that_leaves_nothing_says_so_and_keeps_the_figure(judgements):
    who, _kind, _seconds, figure, said = parts(explore_agreement(judgements))
    before = figure.layout.title.text
    who.value = ["ada"]
    assert "agreement needs at least 2" in said.value and figure.layout.title.text == before
    who.value = ["ada", "bob"]
    assert said.value == "" and figure.layout.title.text != before
