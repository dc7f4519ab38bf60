"""Figures of the study: what they draw, what their menus and controls show, in a browser and with a kernel."""

import html
import math

import numpy as np
import pandas as pd
import pytest

from workbench import WorkbenchError
from workbench.studies.iterated.figures import plot_arms
from workbench.studies.overoptimization import figures as plots

HOSTILE = "<script>alert('x')</script>"
LABELS = ("4000 pairs", "250 pairs <b>")


def curves(*, gold=True, units=((0, 0), (0, 1), (1, 0))):
    rows = [
        {"label": label, "optimiser": optimiser, "world": world, "seed": seed, "step": step, "kl": kl, "proxy": kl**0.5}
        | {"prompt": "how ?", "completion": HOSTILE}
        | ({"gold": 0.1 * world + 0.05 * seed + step - 0.1 * kl - LABELS.index(label)} if gold else {})
        for label in LABELS
        for optimiser in ("RL", "best of n")
        for world, seed in units
        for step, kl in enumerate((0.0, 1.0, 4.0))
    ]
    return pd.DataFrame(rows)


def means(frame):
    grouped = frame.groupby(["label", "optimiser", "kl"], sort=False)
    table = grouped[[name for name in ("proxy", "gold") if name in frame]].mean().reset_index()
    several = frame.groupby(["world", "seed"]).ngroups > 1
    for name in set(table) & {"proxy", "gold"}:
        for side, end in (("low", -0.2), ("high", 0.2)):
            table[f"{name}_{side}"] = table[name] + end if several else math.nan
    return table.assign(runs=3)


@pytest.fixture
def figure():
    return plots.plot_pushes(curves(), means(curves()))


def shown(figure):
    return [trace for trace in figure.data if trace.visible is not False]


def test_the_first_reward_model_is_drawn_with_its_mean_band_and_units(figure):
    drawn = shown(figure)
    assert len(drawn) == 2 * 2 * (1 + 3 + 1) and len(figure.data) == 2 * len(drawn)
    thick = [trace for trace in drawn if trace.name]
    assert [trace.name for trace in thick] == ["proxy", "gold"] * 2
    last = curves()["gold"].loc[lambda g: g.index % 3 == 2][:3].mean()
    assert list(thick[1].x) == [0, 1, 2] and thick[1].y[-1] == pytest.approx(last)
    bands = [trace for trace in drawn if trace.fill == "toself"]
    assert len(bands) == 4 and bands[0].y[0] == pytest.approx(-0.2) and bands[0].hoverinfo == "skip"
    assert figure.layout.yaxis.title.text == "reward" and "√KL" in figure.layout.xaxis.title.text
    assert [note.text for note in figure.layout.annotations] == ["RL", "best of n"]


def test_titles_say_how_far_gold_fell(figure):
    assert "4000 pairs: gold is highest at the end under RL" in html.unescape(figure.layout.title.text)
    falling = means(curves()).assign(gold=lambda table: [0.0, 1.0, 0.25] * 4)
    drawn = plots.plot_pushes(curves(), falling)
    assert "gold ends 0.75 below its highest mean under RL" in drawn.layout.title.text
    assert "mine" in plots.plot_pushes(curves(), means(curves()), title="mine").layout.title.text


def test_what_a_model_wrote_is_text_in_the_hover_and_in_the_menu(figure):
    texts = "".join(str(text) for trace in figure.data if trace.customdata is not None for text in trace.customdata)
    assert "&lt;script&gt;" in texts and "<script" not in texts
    assert figure.layout.updatemenus[0].buttons[1].label == "250 pairs &lt;b&gt;"


def test_one_menu_shows_a_reward_model_and_the_other_brings_a_unit_forward(figure):
    models, units = figure.layout.updatemenus
    first, second = (np.array(button.args[0]["visible"]) for button in models.buttons)
    assert (first ^ second).all() and first.tolist() == [trace.visible is not False for trace in figure.data]
    assert "250 pairs" in models.buttons[1].args[1]["title.text"]
    named = [f"world {w}, seed {s}" for w, s in ((0, 0), (0, 1), (1, 0))]
    assert [button.label for button in units.buttons] == [plots.MEAN, *named]
    view = units.buttons[3].args[0]
    chosen = [trace for trace, opacity in zip(figure.data, view["opacity"], strict=True) if opacity == 1]
    assert len(chosen) == 2 * 2 * 2 and all("world 1, seed 0" in trace.customdata[0] for trace in chosen)
    answers = zip(view["hoverinfo"], view["opacity"], strict=True)
    assert all(answer == "skip" for answer, opacity in answers if opacity < 1)


def test_one_unit_has_no_band_and_no_menu_of_units_and_without_gold_the_proxy_stays():
    single = curves(units=((0, 0),), gold=False)
    figure = plots.plot_pushes(single, means(single))
    assert len(figure.layout.updatemenus) == 1 and not [trace for trace in figure.data if trace.fill == "toself"]
    assert {trace.name for trace in figure.data if trace.name} == {"proxy"}
    assert "the proxy rises by 2.00 under RL" in figure.layout.title.text


def test_the_menus_of_an_exported_page_work_without_a_kernel(tmp_path, figure, tab):
    figure.write_html(tmp_path / "page.html")
    tab.goto((tmp_path / "page.html").as_uri())
    tab.wait_for_selector("svg.main-svg")
    visible = "document.querySelector('.plotly-graph-div').data.filter(t => t.visible !== false)"
    before = tab.evaluate(f"{visible}.map(t => t.y[t.y.length - 1])")
    tab.locator(".updatemenu-header").nth(0).click()
    tab.locator(".updatemenu-dropdown-button").nth(1).click()
    tab.wait_for_function("document.querySelector('.gtitle').textContent.includes('250 pairs <b>')")
    assert tab.evaluate(f"{visible}.map(t => t.y[t.y.length - 1])") != before
    tab.locator(".updatemenu-header").nth(1).click()
    tab.locator(".updatemenu-dropdown-button", has_text="world 1, seed 0").click()
    tab.wait_for_function(f"{visible}.some(t => t.opacity === 0)")
    forward = tab.evaluate(f"{visible}.filter(t => t.opacity === 1).map(t => t.customdata[0])")
    assert len(forward) == 4 and all("world 1, seed 0" in text for text in forward)
    assert tab.complaints == [] and tab.outside == []


def law_tables():
    kl = np.linspace(0, 4, 5)
    points = pd.DataFrame({"optimiser": "RL", "run": HOSTILE, "kl": [1.0, 4.0], "gold_gain": [0.5, 0.2]})
    laws = [
        pd.DataFrame(
            {"optimiser": "RL", "law": law, "better": better, "kl": kl, "predicted": 0.2 * kl, "low": 0.0, "high": 1.0}
        )
        for law, better in (("d (a - b d)", False), ("d (a - b log d)", True))
    ]
    ends = {"kl_low": [0.5, 0.2], "kl_high": [2.0, math.inf]}
    peaks = pd.DataFrame({"optimiser": "RL", "kind": ["measured", "predicted"], "kl": [1.0, 1.5], **ends, "gain": 0.5})
    return points, pd.concat(laws), peaks


def test_laws_are_drawn_over_their_points_with_a_band_for_the_better_one():
    points, laws, peaks = law_tables()
    figure = plots.plot_laws(points, laws, peaks)
    title = figure.layout.title.text.replace("<br>", " ")
    assert "RL: d (a − b log d) fits better, peak predicted at 1.5 nats, measured at 1 nat</b>" in title
    names = [trace.name for trace in figure.data if trace.name]
    assert names == ["measured", "d (a − b d)", "d (a − b log d)", "peak, measured", "peak, predicted"]
    assert len([trace for trace in figure.data if trace.fill == "toself"]) == 1
    measured = next(trace for trace in figure.data if trace.name == "peak, measured")
    assert measured.x[0] == 1.0 and measured.error_x.array[0] == pytest.approx(math.sqrt(2) - 1)
    assert "<script" not in str(figure.data[0].hovertext)
    low, high = figure.layout.yaxis.range
    assert low < 0 < 0.5 < high < 0.6  # set by the points, not by where a law runs off to


def sweep():
    rows = [
        {"optimiser": optimiser, "world": world, "pairs": pairs, "peak_gold": 0.1 * world + pairs / 1000}
        for optimiser in ("RL", "best of n")
        for world in (0, 1)
        for pairs in (250, 1000)
    ]
    return pd.DataFrame(rows).assign(seed=0, peak_kl=4.0)


def test_sweeps_have_a_row_for_the_height_and_one_for_the_place():
    weights = sweep().rename(columns={"pairs": "weights"}).query("optimiser == 'best of n'")
    figure = plots.plot_sweeps({"pairs": sweep(), "weights": weights})
    thick = [trace for trace in figure.data if trace.name]
    assert [trace.name for trace in figure.data if trace.showlegend is not False] == ["RL", "best of n"]
    assert list(thick[0].y) == pytest.approx([0.3, 1.05]) and list(thick[2].y) == [2.0, 2.0]
    assert len({trace.line.color for trace in thick if trace.name == "best of n"}) == 1  # in both columns
    title = figure.layout.title.text.replace("<br>", " ")
    assert "from 250 to 1,000 pairs 0.30 to 1.05 (RL) and 0.30 to 1.05 (best of n)" in title
    axes = figure.layout.yaxis.title.text, figure.layout.yaxis3.title.text
    assert axes == ("gold at the peak", "√KL of the peak (√nats)")
    with pytest.raises(WorkbenchError, match="at least one factor"):
        plots.plot_sweeps({})


def effects(**columns):
    table = {"group": ["RL", "RL"], "level": ["min", HOSTILE], "value": [0.3, -0.1], "units": [9, 9]}
    return pd.DataFrame(table | {"low": [0.1, -0.3], "high": [0.5, 0.1], "significant": [True, False]} | columns)


def test_effects_have_their_intervals_and_a_title_that_counts_those_beyond_chance():
    figure = plots.plot_effects(effects(), axis="gold")
    assert "1 of 2 differences are beyond chance; most: min, 0.30" in figure.layout.title.text
    (dots,) = figure.data
    ends = [*dots.error_x.array, *dots.error_x.arrayminus]
    assert ends == pytest.approx([0.2] * 4)
    assert "<script" not in str(dots.y) + str(dots.customdata) and figure.layout.xaxis.title.text == "gold"
    assert list(dots.marker.symbol) == ["circle", "circle-open"]
    none = plots.plot_effects(effects(significant=False), axis="gold")  # not even where an interval leaves out 0
    assert "None of 2 differences is beyond chance" in none.layout.title.text
    single = plots.plot_effects(effects(low=math.nan, high=math.nan, significant=False), axis="gold")
    assert "One unit only" in single.layout.title.text and "2 differences in a single unit" in single.layout.title.text


def test_a_priced_run_stands_beside_the_path_of_the_free_one():
    free = pd.DataFrame({"kl": [0.0, 4.0], "gold": [0.0, 1.0], "gold_low": [-0.1, 0.9], "gold_high": [0.1, 1.1]})
    ends = pd.DataFrame({"level": ["ppo_kl0.5"], "kl": [1.0], "gold": [0.8], "gold_low": [0.7], "gold_high": [1.0]})
    figure = plots.plot_stopping(free, ends, "t")
    band, line, marker = figure.data[:3]
    assert band.fill == "toself" and list(line.x) == [0, 2]
    assert (marker.name, marker.x[0], marker.y[0]) == ("ppo_kl0.5", 1.0, 0.8)
    assert marker.error_y.array[0] == pytest.approx(0.2) and marker.error_y.arrayminus[0] == pytest.approx(0.1)
    alone = plots.plot_stopping(free.assign(gold_low=math.nan, gold_high=math.nan), ends, "t")
    assert "One unit" in alone.layout.title.text


def signals(falls=(True, False)):
    rows = [
        {"run": f"run{i}", "step": step, "falls": fell, "kl": step * (1 + i), "length": 0.0, "gold": 1.0}
        for i, fell in enumerate(falls)
        for step in (0, 10, 20)
    ]
    return pd.DataFrame(rows)


def test_every_measured_signal_has_a_panel_with_its_threshold():
    figure = plots.plot_signals(signals(), {"kl": 15.0, "length": math.inf, "absent": 1.0})
    panels = [note.text for note in figure.layout.annotations]
    assert panels == ["drift of length (tokens)", "KL alone (nats)", "gold reward, unseen"]
    assert [shape.y0 for shape in figure.layout.shapes] == [15.0]
    assert [trace.name for trace in figure.data if trace.showlegend] == ["falls", "never falls"]
    assert "Gold falls in 1 of 2 runs" in figure.layout.title.text
    unknown = signals(falls=(math.nan, math.nan)).drop(columns="gold")
    figure = plots.plot_signals(unknown, {})
    assert [trace.name for trace in figure.data if trace.showlegend] == ["gold unknown"]
    assert "whether their gold falls is not known" in figure.layout.title.text


def test_alarms_show_shares_of_verdicts_and_leads_of_runs_that_fell():
    rows = [("a", "kl", "in time", 5.0), ("b", "kl", "quiet", math.nan)]
    rows += [("a", "length", "late", -10.0), ("b", "length", "false alarm", math.nan)]
    alarms = pd.DataFrame(rows, columns=["run", "signal", "verdict", "lead_steps"])
    figure = plots.plot_alarms(alarms, "t")
    bars = {trace.name: dict(zip(trace.y, trace.x, strict=True)) for trace in figure.data if trace.type == "bar"}
    assert bars["in time"] == {"drift of length": 0, "KL alone": 0.5} and bars["late"]["drift of length"] == 0.5
    leads = {trace.y[0]: trace.x[0] for trace in figure.data if trace.type == "scatter" and len(trace.x)}
    assert leads == {"KL alone": 5.0, "drift of length": -10.0}


@pytest.mark.parametrize(
    "draw, name",
    [
        (lambda table: plots.plot_pushes(table, table), "plot_pushes"),
        (lambda table: plots.plot_laws(table, table, table), "plot_laws"),
        (lambda table: plots.plot_sweeps({"pairs": table}), "plot_sweeps"),
        (lambda table: plots.plot_effects(table, axis="x"), "plot_effects"),
        (lambda table: plots.plot_score_paths(table, "t"), "plot_score_paths"),
        (lambda table: plots.plot_stopping(table, table, "t"), "plot_stopping"),
        (lambda table: plot_arms(table), "plot_arms"),
        (lambda table: plots.plot_signals(table, {}), "plot_signals"),
        (lambda table: plots.plot_alarms(table, "t"), "plot_alarms"),
    ],
)
def test_empty_tables_and_other_tables_get_a_sentence(draw, name):
    with pytest.raises(WorkbenchError, match=f"{name} got a table without rows"):
        draw(pd.DataFrame({"kl": []}))
    with pytest.raises(WorkbenchError, match=f"{name} needs the columns"):
        draw(pd.DataFrame({"banana": [1.0]}))


def test_chosen_reward_models_of_a_unit_or_the_means_are_drawn_by_the_chosen_score():
    def drawn(pushed=LABELS, by="RL", unit=None, score="gold", gold=True):
        table, chosen = curves(gold=gold), {"pushed": pushed, "by": by, "unit": unit, "score": score}
        figure = plots.plot_chosen_pushes(table, means(table), **chosen)
        return figure, {trace.name: trace for trace in figure.data if trace.name}

    assert list(drawn()[1]) == ["4000 pairs", "250 pairs &lt;b&gt;"]
    line = drawn(unit=(1, 0))[1]["4000 pairs"]
    assert list(line.y) == pytest.approx([0.1, 1.0, 1.7]) and "&lt;script&gt;" in line.customdata[0]
    figure, lines = drawn(by="best of n", unit=(1, 0), score="proxy")
    assert list(lines["4000 pairs"].y) == [0.0, 1.0, 2.0]
    assert "proxy under best of n: 4000 pairs ends at 2.00" in figure.layout.title.text.replace("<br>", " ")
    assert drawn(score="proxy", gold=False)[1]
    with pytest.raises(WorkbenchError, match="No runs of RL against nothing"):
        drawn(pushed=())
