"""Controls that move a figure, without a browser: what they show is what the pure functions say."""

import json
import random

import pandas as pd
import pytest
from budget_runs import write_study

from workbench.feedback.agreement import agreement_matrix, pairwise_agreement
from workbench.studies import frontier
from workbench.studies.budget import tables
from workbench.studies.explore import explore_agreement, explore_budget
from workbench.studies.measured_paths import budget_paths, comparable_runs


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


def test_a_browser_is_sent_no_nan(judgements):
    box = explore_agreement(judgements)
    controls, figure, _ = box.children
    for labelers in (controls.children[0].options, controls.children[0].options[:2]):
        controls.children[0].value = labelers
        json.dumps(figure.get_state(), allow_nan=False, default=lambda binary: "")  # what a message is made of


def test_a_choice_that_leaves_nothing_says_so_and_keeps_the_figure(judgements):
    who, _kind, _seconds, figure, said = parts(explore_agreement(judgements))
    before = figure.layout.title.text
    who.value = ["ada"]
    assert "agreement needs at least 2" in said.value and figure.layout.title.text == before
    who.value = ["ada", "bob"]
    assert said.value == "" and figure.layout.title.text != before


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    runs = comparable_runs(frontier.runs_below(str(write_study(tmp_path_factory.mktemp("study"), worlds=1))))
    return runs, budget_paths(runs)


def budget_parts(box):
    controls, figure, numbers, texts, said = box.children
    slider, (score, unit) = controls.children[0], controls.children[1].children
    return slider, score, unit, figure, numbers, texts, said


def test_the_budget_moves_the_line_the_table_and_the_texts(study):
    runs, paths = study
    slider, _score, unit, figure, numbers, texts, said = budget_parts(explore_budget(runs, paths))
    slider.value = 4.0
    assert figure.layout.shapes[0].x0 == figure.layout.shapes[0].x1 == 2.0
    table = tables.compared_at_budget(tables.at_budget(paths, [4.0]), "gold")
    title = " ".join(figure.layout.title.text.replace("<br>", " ").split())
    assert tables.budget_sentences(table, "gold")[0] in title
    assert f"{table['value'].iloc[0]:.2f}" in numbers.value and "does not reach" in numbers.value
    assert "&lt;script&gt;" in texts.value and "at step 20" in texts.value and said.value == ""
    before = texts.value
    unit.value = (0, 1)
    assert texts.value != before
    slider.value = 1.0
    assert "at step 10" in texts.value and "At 1 nat:" in figure.layout.title.text


def test_another_score_changes_the_lines_and_what_is_compared(study):
    runs, paths = study
    slider, score, _unit, figure, numbers, _texts, _said = budget_parts(explore_budget(runs, paths))
    slider.value = 2.0
    gold, place, span = list(figure.data[1].y), figure.layout.shapes[0].x0, figure.layout.yaxis.range
    score.value = "proxy"
    assert figure.layout.yaxis.range != span
    assert figure.layout.yaxis.title.text == "reward model's score (proxy)" and "most proxy" in figure.layout.title.text
    curve = tables.mean_paths(paths[paths["experiment"] == paths["experiment"].iloc[0]])
    assert list(figure.data[1].y) == pytest.approx(curve["proxy"].tolist()) and list(figure.data[1].y) != gold
    assert figure.layout.shapes[0].x0 == place and "gold" in numbers.value


def test_where_no_completions_were_kept_a_line_says_so(study):
    _runs, paths = study
    _slider, _score, _unit, figure, numbers, texts, said = budget_parts(explore_budget([], paths))
    assert "kept its completions" in said.value and texts.value == ""
    assert figure.layout.title.text and "best" in numbers.value
