"""Controls that move a figure, without a browser: what they show is what the pure functions say."""

import json
import random
from functools import partial

import ipywidgets
import pandas as pd
import plotly.graph_objects as go
import pytest
from budget_runs import write_study

from workbench import WorkbenchError
from workbench.feedback.agreement import agreement_matrix, pairwise_agreement
from workbench.feedback.labelers import keep
from workbench.plots.agreement import plot_agreement_filters
from workbench.plots.explore import explore
from workbench.studies import measurements
from workbench.studies.budget import tables
from workbench.studies.budget.figures import plot_budget_slider
from workbench.studies.budget.tables import budget_paths, comparable_runs


def parts(box: ipywidgets.VBox) -> tuple:
    """Controls by name, figure and line of an explorer."""
    (several, (*others,)), figure, said = (
        (box.children[0].children[:-1], box.children[0].children[-1].children),
        *box.children[1:],
    )
    return {control.description: control for control in (*several, *others)}, figure, said


def test_each_kind_of_choice_has_its_control():
    drawn = lambda **chosen: go.Figure(layout={"title": {"text": repr(chosen)}})  # noqa: E731
    given = {"menu": ["a", "b"], "by_name": {"x": (1, 0)}, "several": ("a", "b"), "range": range(1, 8, 2), "box": False}
    controls, figure, _said = parts(explore(drawn, **given, own=ipywidgets.IntText(7)))
    first = {"menu": "a", "by_name": (1, 0), "several": ("a", "b"), "range": 1, "box": False, "own": 7}
    assert figure.layout.title.text == repr(first)
    assert list(controls) == ["several", "menu", "by name", "range", "box", ""]
    controls["range"].value, controls["menu"].value = 7, "b"
    assert figure.layout.title.text == repr(first | {"range": 7, "menu": "b"})


@pytest.fixture
def judgements():
    rng, rows = random.Random(0), []
    for item in range(60):
        for labeler in ("ada", "bob", "cy"):
            kind, elapsed = "pair" if item < 40 else "best_of", 9000 if labeler != "bob" else 1500
            said = {"value": rng.randrange(2), "shown_order": [0, 1], "elapsed_ms": elapsed, "note": "", "repeat": 0}
            rows.append({"item_id": f"i{item}", "labeler": labeler, "kind": kind, **said, "event_id": str(len(rows))})
    return pd.DataFrame(rows)


@pytest.fixture
def agreement(judgements):
    """The explorer of notebook 04, with a menu of kinds."""

    def filtered(labelers, kind, seconds):
        kept = keep(judgements[judgements["kind"] == kind], labelers=labelers, slower_than_ms=1000 * seconds)
        said = f"{len(kept)} judgements"
        return plot_agreement_filters({said: agreement_matrix(kept)}, {said: pairwise_agreement(kept)})

    return explore(filtered, labelers=("ada", "bob", "cy"), kind=["best_of", "pair"], seconds=range(10))


def test_the_figure_follows_every_control(judgements, agreement):
    controls, figure, said = parts(agreement)
    controls["kind"].value = "pair"
    pairs = judgements[judgements["kind"] == "pair"]
    assert f"{pairwise_agreement(pairs).value:.1%}" in figure.layout.title.text
    controls["labelers"].value = ["ada", "cy"]
    two = pairs[pairs["labeler"] != "bob"]
    assert f"80 judgements: two labelers agree on {pairwise_agreement(two).value:.1%}" in figure.layout.title.text
    assert figure.data[0].z[0][1] == pytest.approx(100 * agreement_matrix(two).loc["ada", "cy"])
    controls["labelers"].value, controls["seconds"].value = ["ada", "bob", "cy"], 2
    assert "80 judgements" in figure.layout.title.text and said.value == ""


def test_a_browser_is_sent_no_nan(agreement):
    controls, figure, _said = parts(agreement)
    for labelers in (("ada", "bob", "cy"), ("ada", "bob")):
        controls["labelers"].value = labelers
        json.dumps(figure.get_state(), allow_nan=False, default=lambda binary: "")  # what a message is made of


def test_a_choice_that_leaves_nothing_says_so_and_keeps_the_figure(agreement):
    controls, figure, said = parts(agreement)
    before = figure.layout.title.text
    controls["labelers"].value = ["ada"]
    assert "agreement needs at least 2" in said.value and figure.layout.title.text == before
    controls["labelers"].value = ["ada", "bob"]
    assert said.value == "" and figure.layout.title.text != before


def test_without_a_first_figure_the_sentence_is_raised(judgements):
    with pytest.raises(WorkbenchError, match="choose from"):
        explore(partial(keep, judgements), labelers=("nobody",))


def test_another_score_or_unit_changes_lines_tables_and_texts(tmp_path):
    runs = comparable_runs(measurements.runs_below(str(write_study(tmp_path, worlds=1))))
    paths = budget_paths(runs)
    landed, ends = tables.at_budget(paths, [1.0, 4.0]), tables.mean_ends(paths)
    curves = tables.mean_paths(paths)

    def moved(score, texts_of):
        mine = landed[(landed[["world", "seed"]] == list(texts_of)).all(axis=1)]
        texts = tables.texts_at(runs, mine, count=3)
        return plot_budget_slider(curves, ends, tables.compared_at_budget(landed, score), texts, score=score, shown=4.0)

    units = {"first": (0, 0), "second": (0, 1)}
    controls, figure, said = parts(explore(moved, score=["gold", "proxy"], texts_of=units))
    said_of = lambda place=1: str([trace for trace in figure.data if trace.type == "table"][place].cells.values)  # noqa: E731
    before, gold, span = said_of(), list(figure.data[1].y), figure.layout.yaxis.range
    assert "&lt;script&gt;" in before and "at step 20" in before and "most gold" in figure.layout.title.text
    assert figure.layout.shapes[0].x0 == figure.layout.shapes[0].x1 == 2.0
    controls["texts of"].value = (0, 1)
    assert said_of() != before and list(figure.data[1].y) == gold
    controls["score"].value = "proxy"
    assert figure.layout.yaxis.range != span and figure.layout.shapes[0].x0 == 2.0
    assert figure.layout.yaxis.title.text == "reward model's score (proxy)" and "most proxy" in figure.layout.title.text
    curve = tables.mean_paths(paths[paths["experiment"] == paths["experiment"].iloc[0]])
    assert list(figure.data[1].y) == pytest.approx(curve["proxy"].tolist()) and list(figure.data[1].y) != gold
    assert "does not reach" in said_of(0) and said.value == ""
