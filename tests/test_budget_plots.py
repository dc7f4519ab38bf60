"""Figures of the KL budget: they draw the numbers of their tables, escape texts, and do without what is missing."""

import math

import numpy as np
import pandas as pd
import pytest
from budget_runs import HOSTILE, METHODS, planted, write_study

from workbench import WorkbenchError
from workbench.studies import measurements
from workbench.studies.budget import figures, tables
from workbench.studies.budget.figures import plot_budget_slider
from workbench.studies.budget.tables import budget_paths, comparable_runs
from workbench.studies.measurements import means_by


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return comparable_runs(measurements.runs_below(str(write_study(tmp_path_factory.mktemp("study")))))


@pytest.fixture(scope="module")
def paths(runs):
    return budget_paths(runs)


@pytest.fixture(scope="module")
def means(paths):
    both = tables.with_bound(paths)
    return tables.mean_paths(both), tables.mean_ends(both)


@pytest.fixture(scope="module")
def landed(paths):
    return tables.at_budget(paths, [1.0, 4.0, 16.0])


@pytest.fixture(scope="module")
def comparison(landed):
    return tables.compared_at_budget(landed, "gold")


@pytest.fixture(scope="module")
def texts(runs, landed):
    return tables.texts_at(runs, landed[(landed["world"] == 0) & (landed["seed"] == 0)], count=2)


CALLED = {"ppo_kl0": "PPO, KL price 0", "ppo_kl0.15": "PPO, KL price 0.15", "rloo_kl0": "RLOO, KL price 0"} | {
    "ppo_adaptive": "PPO adaptive",
    "best_of_n": "best of n",
}


def title_of(figure):
    return " ".join(figure.layout.title.text.replace("<br>", " ").split())


def ends_of(figure, name):
    return next(trace for trace in figure.data if trace.name == CALLED[name] and trace.mode == "lines+markers")


# The frontier


def test_lines_are_mean_paths_with_bands_and_symbols_are_mean_ends(means):
    figure = figures.plot_budget_frontier(*means)
    curves = means[0][means[0]["experiment"] == "ppo_kl0"]
    band, line, end = figure.data[3 * list(means[0]["experiment"].unique()).index("ppo_kl0") :][:3]
    np.testing.assert_allclose(line.x, np.sqrt(curves["kl"]))
    np.testing.assert_allclose(line.y, curves["gold"])
    np.testing.assert_allclose(band.y, [*curves["gold_low"], *curves["gold_high"][::-1]])
    assert end.x[0] == pytest.approx(5.0)  # planted
    assert end.y[0] == pytest.approx(planted(5.0, *METHODS["06_ppo_kl0"][1:]) + 0.3)
    assert end.error_y.array[0] > 0 and end.error_x.array[0] == pytest.approx(0)


def test_the_menu_holds_every_score_with_the_values_of_its_lines(means):
    figure = figures.plot_budget_frontier(*means)
    buttons = figure.layout.updatemenus[0].buttons
    assert [button.label for button in buttons][:2] == ["gold reward", "reward model's score (proxy)"]
    data, layout, places = buttons[1].args
    line = next(place for place, trace in enumerate(figure.data) if trace.mode == "lines" and trace.line.width == 2.2)
    assert list(places) == list(range(len(data["y"]))) and len(data["error_y.array"]) == len(data["y"])
    rows = means[0][means[0]["experiment"] == means[0]["experiment"].iloc[0]]
    np.testing.assert_allclose(data["y"][line], rows["proxy"])
    assert layout["yaxis.title.text"] == "reward model's score (proxy)" and "proxy" in layout["title.text"]
    assert layout["yaxis.range"] == figures.score_range(*means, "proxy") != list(figure.layout.yaxis.range)


def test_a_long_bar_leaves_the_figure_and_the_lines_keep_their_height(means):
    curves, ends = means[0], means[1].assign(gold_low=-100.0, gold_high=100.0)
    low, high = figures.plot_budget_frontier(curves, ends).layout.yaxis.range
    shown = np.array([*curves["gold"], *ends["gold"]])
    assert low < shown.min() and high > shown.max() and high - low < 2 * np.ptp(shown)
    flat = curves.assign(gold=0.5), ends.assign(gold=0.5)
    assert figures.score_range(*flat, "gold") == [0.0, 1.0]
    assert figures.score_range(*(table.assign(gold=np.nan) for table in means), "gold") == [0.0, 1.0]


def test_the_title_says_who_has_most_and_least_where_half_of_the_methods_are(means):
    title = title_of(figures.plot_budget_frontier(*means))
    assert "PPO, KL price 0.15 has the most gold reward" in title and "RLOO, KL price 0 the least" in title
    assert "mine" in title_of(figures.plot_budget_frontier(*means, title="mine"))


def test_one_seed_has_lines_and_no_bands_and_two_points_no_line(paths):
    single = paths[(paths["world"] == 0) & (paths["seed"] == 0)]
    figure = figures.plot_budget_frontier(tables.mean_paths(single), tables.mean_ends(single))
    assert all(len(trace.y) == 0 for trace in figure.data if trace.fill == "toself")
    assert all(trace.error_y.array[0] == 0 for trace in figure.data if trace.error_y.array is not None)
    two = single[single["step"].isin([0, 50])]
    figure = figures.plot_budget_frontier(tables.mean_paths(two), tables.mean_ends(two))
    line, end = (trace for trace in figure.data if trace.legendgroup == "ppo_kl0" and trace.fill != "toself")
    assert len(line.x) == 0 and end.x[0] == pytest.approx(5.0)


def test_without_gold_the_proxy_is_drawn_and_without_both_nothing_can_be(means):
    curves, ends = (table[[name for name in table if not name.startswith("gold")]] for table in means)
    figure = figures.plot_budget_frontier(curves, ends)
    assert figure.layout.yaxis.title.text == "reward model's score (proxy)" and not figure.layout.updatemenus
    with pytest.raises(WorkbenchError, match="neither gold nor a proxy"):
        figures.plot_budget_frontier(curves[["experiment", "kl"]], ends)
    with pytest.raises(WorkbenchError, match="without rows"):
        figures.plot_budget_frontier(means[0].iloc[:0], means[1])


def test_a_method_keeps_its_colour_among_the_same_methods(means, runs, landed):
    everyone = list(means[0]["experiment"].unique())
    frontier_line = ends_of(figures.plot_budget_frontier(*means), "rloo_kl0").line
    positions = tables.positions_at(runs, landed[landed["budget"] == 16])
    assert set(positions["experiment"]) == {"ppo_kl0", "rloo_kl0"}
    drawn = figures.plot_kl_positions(positions, among=everyone)
    line = next(trace for trace in drawn.data if trace.name == "RLOO, KL price 0").line
    assert (line.color, line.dash) == (frontier_line.color, frontier_line.dash)
    many = means[0][means[0]["experiment"] == "ppo_kl0"]
    many = pd.concat([many.assign(experiment=f"method {number}") for number in range(14)])
    assert figures.plot_budget_frontier(many, means[1]).layout.legend.orientation == "v"
    looks = figures.method_looks(str(number) for number in range(18))
    assert len({(look["color"], look["dash"]) for look in looks.values()}) == 18


# At a few budgets


def test_each_budget_has_a_panel_with_a_star_on_the_best(comparison):
    figure = figures.plot_at_budgets(comparison)
    assert [note.text for note in figure.layout.annotations] == ["at 1 nat", "at 4 nats", "at 16 nats"]
    stars = [trace for trace in figure.data if trace.name == "highest"]
    best = comparison[comparison["verdict"] == "highest"].set_index("budget")
    assert [star.y[0] for star in stars] == [CALLED[name] for name in best["experiment"]]
    np.testing.assert_allclose([star.x[0] for star in stars], best["value"])
    assert stars[0].error_x.array[0] == pytest.approx(best["high"].iloc[0] - best["value"].iloc[0])
    drawn = sum(len(trace.x) for trace in figure.data if trace.xaxis == "x3")
    assert drawn == 2  # only free runs spend 16 nats
    assert "PPO, KL price 0 at 16" in title_of(figure)


def test_panels_of_single_runs_claim_no_interval(paths):
    single = tables.at_budget(paths[(paths["world"] == 0) & (paths["seed"] == 0)], [1.0])
    figure = figures.plot_at_budgets(tables.compared_at_budget(single, "gold"))
    assert "nothing says what another seed would do" in title_of(figure)
    nobody = tables.compared_at_budget(tables.at_budget(paths, [1000.0]), "gold")
    assert "No method spends any of these budgets" in title_of(figures.plot_at_budgets(nobody))


# The moving budget


def test_every_place_of_the_slider_has_its_line_its_title_and_both_tables(means, comparison, texts):
    figure = plot_budget_slider(*means, comparison, texts, shown=5.0)
    slider = figure.layout.sliders[0]
    assert [step.label for step in slider.steps] == ["1", "4", "16"] and slider.active == 1
    assert figure.layout.shapes[0].x0 == 2.0 and "At 4 nats" in title_of(figure)
    cells, layout, places = slider.steps[2].args
    assert [figure.data[place].type for place in places] == ["table", "table"]
    assert layout["shapes[0].x0"] == layout["shapes[0].x1"] == 4.0 and "At 16 nats" in layout["title.text"]
    numbers, words = cells["cells.values"]
    at = comparison[comparison["budget"] == 16]
    assert list(numbers[0]) == [CALLED[name] for name in at["experiment"]]
    assert list(numbers[1]) == [f"{row.reached} of 4" for row in at.itertuples()]
    assert numbers[2][0].startswith(f"{at['value'].iloc[0]:.2f} (") and list(numbers[4]) == at["verdict"].tolist()
    assert words[1].count("—") == 3 and list(words[0]) == list(numbers[0])
    first = figure.data[places[0]].cells.values
    assert list(first[0]) == [CALLED[name] for name in comparison[comparison["budget"] == 4]["experiment"]]


def test_texts_in_the_slider_are_escaped_and_scored(means, comparison, texts):
    figure = plot_budget_slider(*means, comparison, texts)
    cell = figure.data[-2].cells.values[1][0] if figure.data[-1].type != "table" else figure.data[-1].cells.values[1][0]
    row = texts[(texts["budget"] == 1) & (texts["experiment"] == comparison["experiment"].iloc[0])].iloc[0]
    assert cell.startswith(f"<b>{row['gold']:.2f}</b> ".replace("-", "−")) and "&lt;script&gt;" in cell
    assert "<script" not in figure.to_json().replace("\\u003c", "<")


def test_without_completions_the_slider_has_one_table(means, comparison):
    figure = plot_budget_slider(*means, comparison, pd.DataFrame())
    assert [trace.type for trace in figure.data].count("table") == 1
    assert len(figure.layout.sliders[0].steps[0].args[0]["cells.values"]) == 1


def test_an_end_whose_kl_may_be_nothing_has_a_bar_down_to_nothing():
    ends = {"experiment": "ppo", "runs": 3, "kl": 4.0, "kl_low": -1.0, "kl_high": 9.0}
    ends |= {"gold": 1.0, "gold_low": 0.5, "gold_high": 1.5}
    curves = {"experiment": "ppo", "kl": [0.0, 4.0], "measured": 9, "gold": 1.0, "gold_low": 0.5, "gold_high": 1.5}
    end = figures.frontier_traces(pd.DataFrame(curves), pd.DataFrame([ends]), "gold")[-1]
    assert (list(end.error_x.arrayminus), list(end.error_x.array)) == ([2.0], [1.0])


# KL itself


def test_the_cost_of_best_of_n_is_drawn_below_its_bound(paths):
    pools = paths[paths["source"] == "pool"]
    table = means_by(pools.sort_values("step"), ["step"], ["kl", "kl_bound"]).rename(columns={"step": "n"})
    figure = figures.plot_best_of_n_kl(table)
    bound = next(trace for trace in figure.data if trace.name == "bound")
    measured, gap = (trace for trace in figure.data if trace.name == "measured from pools")
    np.testing.assert_allclose(np.add(measured.y, gap.y), bound.y)
    assert f"At n = 32 best-of-n costs {table['kl'].iloc[-1]:.2f} nats" in title_of(figure)
    alone = figures.plot_best_of_n_kl(table[["n", "kl", "kl_bound"]])
    assert len(alone.data[1].x) == 0


def test_positions_and_kinds_are_drawn_and_half_of_the_kl_is_named(runs, landed):
    positions = tables.positions_at(runs, landed[landed["budget"] == 1])
    figure = figures.plot_kl_positions(positions)
    line = next(trace for trace in figure.data if trace.name == "PPO, KL price 0")
    assert line.y[0] == pytest.approx(2 * line.y[1])  # planted: half at the first token
    assert "Half of the KL is spent within the first token;" in title_of(figure)
    assert {kind for trace in figure.data if trace.type == "bar" for kind in trace.x} == {"suggest", "qa", "harm"}
    alike = figures.plot_kl_positions(positions[positions["kind"] == "all"])
    assert not [trace for trace in alike.data if trace.type == "bar"]


def test_the_adaptive_price_is_drawn_with_its_target(runs):
    training = tables.training_over_units(runs, ["kl_coef", "kl", "gold"])
    figure = figures.plot_coefficients(training, target=4.0)
    assert [shape.y0 for shape in figure.layout.shapes] == [4.0] and "the target was 4" in title_of(figure)
    assert figure.layout.yaxis.title.text == "coefficient (reward per nat)"
    assert figure.layout.yaxis3.title.text == "gold reward"
    proxies = training.rename(columns={name: name.replace("gold", "reward") for name in training})
    assert figures.plot_coefficients(proxies).layout.yaxis3.title.text == "reward that is optimised"
    with pytest.raises(WorkbenchError, match="needs the columns"):
        figures.plot_coefficients(training.drop(columns="kl_coef"))


def test_estimators_are_drawn_as_shares_of_the_kl_with_their_errors():
    rows = [
        {"estimator": name, "step": step, "mean": 2.0 * step, "bias": bias, "bias_se": 0.1, "sd": spread}
        for step in (1, 2)
        for name, bias, spread in (("exact", 0.0, 1.0), ("k1", 0.1, 3.0), ("k3", -0.5, 2.0))
    ]
    figure = figures.plot_estimator_errors(pd.DataFrame(rows))
    bias = next(trace for trace in figure.data if trace.xaxis == "x" and trace.name == "k3")
    np.testing.assert_allclose(bias.y, [-0.25, -0.125])
    np.testing.assert_allclose(bias.error_y.array, [0.098, 0.049], rtol=1e-4)
    assert "2 of 4 means agree" in title_of(figure) and "3.0 times (k1) and 2.0 times (k3)" in title_of(figure)
    alike = figures.plot_estimator_errors(pd.DataFrame(rows).assign(sd=0.0))
    assert "scatters" not in title_of(alike)
    with pytest.raises(WorkbenchError, match="never left"):
        figures.plot_estimator_errors(pd.DataFrame(rows).assign(mean=0.0))


@pytest.mark.parametrize(
    "draw",
    [
        figures.plot_at_budgets,
        figures.plot_best_of_n_kl,
        figures.plot_kl_positions,
        figures.plot_coefficients,
        figures.plot_estimator_errors,
    ],
)
def test_tables_of_something_else_get_a_sentence(draw):
    with pytest.raises(WorkbenchError, match="without rows"):
        draw(pd.DataFrame())
    with pytest.raises(WorkbenchError, match=r"needs the columns .* the table has \['banana'\]"):
        draw(pd.DataFrame({"banana": [1.0]}))


def test_names_of_methods_are_never_markup(means, comparison):
    hostile = [table.replace({"experiment": {"ppo_kl0": HOSTILE}}) for table in (*means, comparison)]
    for figure in (
        figures.plot_budget_frontier(*hostile[:2]),
        figures.plot_at_budgets(hostile[2]),
        plot_budget_slider(*hostile, pd.DataFrame()),
    ):
        names = [str(trace.name) for trace in figure.data] + [str(trace.hovertemplate) for trace in figure.data[:9]]
        assert "<script" not in "".join(names) + figure.layout.title.text
    assert math.isfinite(figure.layout.height)
