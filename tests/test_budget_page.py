"""The moving budget in an exported page, in a real browser: the slider and the menu change what is shown."""

import json

import nbformat
import pytest
from budget_runs import HOSTILE, write_study
from chromium import watched_page

from workbench.pipeline import report
from workbench.studies import measurements
from workbench.studies.budget import tables
from workbench.studies.budget.figures import plot_budget_slider
from workbench.studies.budget.tables import budget_paths, comparable_runs

DRAWN = "document.querySelector('.js-plotly-plot')"


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The figure, what it was made from, and the page that holds it."""
    folder = tmp_path_factory.mktemp("page")
    runs = comparable_runs(measurements.runs_below(str(write_study(folder / "study", worlds=1, seeds=2))))
    paths = budget_paths(runs)
    landed = tables.at_budget(paths, [1.0, 4.0, 16.0])
    comparison = tables.compared_at_budget(landed, "gold")
    texts = tables.texts_at(runs, landed[landed["seed"] == 0], count=2)
    both = tables.with_bound(paths)
    figure = plot_budget_slider(tables.mean_paths(both), tables.mean_ends(both), comparison, texts, shown=1.0)
    output = nbformat.v4.new_output("display_data", {"application/vnd.plotly.v1+json": json.loads(figure.to_json())})
    cells = [nbformat.v4.new_markdown_cell("# Who is ahead?"), nbformat.v4.new_code_cell("x", outputs=[output])]
    (folder / "09").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "09" / "notebook.ipynb")
    report.write_report(folder / "09")
    return figure, comparison, folder / "09" / "report" / "09.html"


@pytest.fixture(scope="module")
def tab(shown, browser):
    """The page, opened once: nothing may be asked for elsewhere, and nothing complained about, in any of the tests."""
    with watched_page(browser, width=1000, height=1400) as page:
        page.goto(shown[2].as_uri())
        page.wait_for_selector(".slider-rail-touch-rect", state="attached")
        yield page
        assert page.outside == [] and page.complaints == []


def move_slider(tab, share: float) -> None:
    """Press the slider at this share of its length."""
    tab.locator(".slider-group").scroll_into_view_if_needed()
    box = tab.locator(".slider-rail-touch-rect").bounding_box()
    tab.mouse.click(box["x"] + 6 + share * (box["width"] - 12), box["y"] + box["height"] / 2)


def line_of(tab) -> float:
    return tab.locator(".shapelayer path").first.bounding_box()["x"]


def cells(tab, table: int) -> str:
    return tab.locator(".table").nth(table).text_content()


def test_the_slider_moves_the_line_both_tables_and_the_title(tab, shown):
    comparison = shown[1].set_index(["budget", "experiment"])
    move_slider(tab, 0.0)
    assert "At 1 nat " in tab.locator(".gtitle").text_content()
    before, numbers, texts = line_of(tab), cells(tab, 0), cells(tab, 1)
    move_slider(tab, 1.0)
    tab.wait_for_function("document.querySelector('.gtitle').textContent.includes('At 16 nats')")
    tab.wait_for_function(f"{DRAWN}.layout.shapes[0].x0 === 4")
    assert line_of(tab) > before + 200
    assert "does not reach" in cells(tab, 0) and cells(tab, 0) != numbers
    assert f"{comparison.loc[(16.0, 'ppo_kl0'), 'value']:.2f}" in cells(tab, 0)
    assert "—" in cells(tab, 1) and cells(tab, 1) != texts
    move_slider(tab, 0.0)
    tab.wait_for_function("document.querySelector('.gtitle').textContent.includes('At 1 nat ')")
    assert line_of(tab) == pytest.approx(before, abs=1) and cells(tab, 0) == numbers


def test_the_menu_shows_another_score_and_leaves_the_budget_alone(tab):
    move_slider(tab, 0.5)
    tab.wait_for_function("document.querySelector('.gtitle').textContent.includes('At 4 nats')")
    gold = tab.evaluate(f"Array.from({DRAWN}.data[1].y)")
    line = tab.locator(".scatterlayer .js-line").nth(1)
    drawn = line.get_attribute("d")
    tab.locator(".updatemenu-header").click()
    tab.locator(".updatemenu-dropdown-button", has_text="proxy").click()
    tab.wait_for_function("document.querySelector('.ytitle').textContent.includes('proxy')")
    assert tab.evaluate(f"Array.from({DRAWN}.data[1].y)") != gold and line.get_attribute("d") != drawn
    assert "At 4 nats" in tab.locator(".gtitle").text_content()
    assert tab.evaluate(f"{DRAWN}.layout.shapes[0].x0") == 2


def test_what_a_model_wrote_is_text_in_the_table(tab):
    assert HOSTILE in cells(tab, 1)
    assert tab.evaluate("document.querySelectorAll('.table script, .table b').length") == 0
