"""Each figure shows the columns it was given, escapes what a model wrote, and does without gold."""

import math
import re

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from scipy import stats

from workbench import WorkbenchError, plots
from workbench.analysis.best_of_n import best_of_n_curve
from workbench.analysis.statistics import Interval
from workbench.feedback.agreement import agreement_matrix, labeler_vs_rest
from workbench.feedback.labelers import labeler_summary
from workbench.plots import marks
from workbench.plots.theme import (
    GROUND,
    headline_of,
    hover_text,
    looks,
    number,
    smoothed,
    spoken,
    table_text,
    transparent,
)

HOSTILE = "<script>alert('x')</script> & <b>bold</b>"


def metrics(*, gold=True):
    step = np.arange(100)
    frame = pd.DataFrame({"step": step, "kl": 0.04 * step - 0.1, "proxy": 0.01 * step, "gold": 0.5 - 0.002 * step})
    return frame if gold else frame.drop(columns="gold")


def samples():
    scores = {"gold": np.linspace(-1, 1, 12), "proxy": np.linspace(0, 1, 12)}
    said = {"kind": ["qa"] * 6 + ["math"] * 6, "prompt": "user : hi assistant :", "completion": HOSTILE}
    return pd.DataFrame(said | scores)


def points():
    rows = [("sft", "SFT", 0.0, 0.4, 0.02, 0.0, "fine"), (HOSTILE, "PPO", 4.0, 0.7, 0.03, 1.5, HOSTILE)]
    return pd.DataFrame(rows, columns=["run", "method", "kl", "gold", "gold_se", "proxy", "completion"])


CALIBRATION = pd.DataFrame(
    {"predicted": [0.3, 0.7], "observed": [0.4, 0.6], "count": [5, 7], "observed_se": [0.1, 0.1]}
)
ACCURACY = pd.DataFrame(
    {"group": ["all", "qa"], "measured_against": "labels", "accuracy": [0.7, 0.6], "accuracy_se": [0.01, 0.02]}
)
SIZES = pd.DataFrame(
    [("small", "sft", 40_000, 0.6), ("large", "sft", 120_000, 0.7), (HOSTILE, "scratch", 120_000, 0.55)],
    columns=["model", "start", "parameters", "accuracy"],
).assign(policy_parameters=120_000, measured_against="gold", accuracy_se=0.02)
CURVE = best_of_n_curve(
    [[1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 0.0, 4.0]], [[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]], [1, 2, 4]
)
MATRIX = pd.DataFrame([[np.nan, 0.7], [0.7, np.nan]], index=["ada", "bob"], columns=["ada", "bob"])
SHARPENING = pd.DataFrame(
    {"run": ["sft"] * 2 + ["ppo"] * 2, "temperature": [1.0, 0.0] * 2, "gold": [0.4, 0.8, 0.7, 0.9], "gold_se": 0.02}
)
COMPONENTS = pd.DataFrame(
    {"run": ["sft", "ppo"] * 2, "component": ["helpful"] * 2 + ["honest"] * 2, "value": [1, 2, 0, -1]}
)
GAINS = pd.DataFrame(
    {"run": ["ppo", HOSTILE], "kl": [1.5, 0.6], "gain": [0.4, -0.1], "gain_se": [0.05, 0.1], "greedy_gain": [0.2, 0.1]}
)
SHARES = pd.DataFrame(
    {"labeler": ["ada", "bob", "eve"] * 2, "feature": ["words"] * 3 + ["gold"] * 3, "pairs": [10, 20, 30] * 2}
).assign(share=[0.5, 0.6, 0.5, 0.8, 0.2, 0.9], share_se=0.02)
MEASURED = {"agreement": [0.7, 0.8, np.nan], "agreement_low": [0.6, 0.7, np.nan], "agreement_high": [0.85, 0.9, np.nan]}
MEASURED |= {
    f"prefers_first{end}": values
    for end, values in zip(("", "_low", "_high"), ([0.5, 0.4, 0.55], [0.4, 0.3, 0.5], [0.6, 0.5, 0.6]), strict=True)
}
SUMMARY = pd.DataFrame({"labeler": ["ada", "bob", HOSTILE], "judgements": [10, 20, 30], **MEASURED})
MASK = pd.DataFrame(np.kron(np.eye(2, dtype=int), np.tri(2, dtype=int)) > 0, columns=["a", "b", "c", "<eos>"])

# panels' titles, or labelers' names, say what the vertical axis is
NAMED_OTHERWISE = {"plot_training_panels", "plot_agreement_matrix", "plot_gains", "plot_labeler_measures"}
FIGURES = {  # name: how it is drawn, a table of it
    "plot_learning_curve": (lambda frame: plots.plot_learning_curve(frame, ["proxy", "gold"], title="t"), metrics()),
    "plot_training_panels": (
        lambda frame: plots.plot_training_panels(frame, ["proxy", "gold", "kl"], title="t"),
        metrics(),
    ),
    "plot_reward_kl_path": (plots.plot_reward_kl_path, metrics()),
    "plot_reward_distributions": (plots.plot_reward_distributions, samples()),
    "plot_calibration": (plots.plot_calibration, CALIBRATION),
    "plot_accuracy_bars": (plots.plot_accuracy_bars, ACCURACY),
    "plot_accuracy_by_size": (plots.plot_accuracy_by_size, SIZES),
    "plot_gold_components": (plots.plot_gold_components, COMPONENTS),
    "plot_best_of_n": (plots.plot_best_of_n, CURVE),
    "plot_agreement_matrix": (lambda frame: plots.plot_agreement_matrix(frame, SUMMARY), MATRIX),
    "plot_frontier": (plots.plot_frontier, points()),
    "plot_gains": (plots.plot_gains, GAINS),
    "plot_sharpening_control": (plots.plot_sharpening_control, SHARPENING),
    "plot_choice_shares": (plots.plot_choice_shares, SHARES),
    "plot_attention_mask": (plots.plot_attention_mask, MASK),
    "plot_labeler_measures": (plots.plot_labeler_measures, SUMMARY),
}


def legend(figure):
    return [trace.name for trace in figure.data if trace.name and trace.showlegend is not False]


@pytest.mark.parametrize(("name", "draw", "table"), [(name, *given) for name, given in FIGURES.items()])
def test_every_figure_has_a_title_named_axes_its_own_ground_and_a_sentence_for_other_tables(name, draw, table):
    figure = draw(table)
    assert figure.layout.title.text and figure.layout.uirevision
    assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == GROUND
    assert "$" not in figure.to_json().replace("$schema", "")
    assert name in NAMED_OTHERWISE or figure.layout.yaxis.title.text
    with pytest.raises(WorkbenchError, match=f"{name} got a table without rows"):
        draw(table.iloc[:0])
    if name not in ("plot_agreement_matrix", "plot_attention_mask"):
        with pytest.raises(WorkbenchError, match=r"needs the columns .* the table has \['banana'\]"):
            draw(pd.DataFrame({"banana": [1.0]}))


@pytest.mark.parametrize("missing", [metrics(gold=False), metrics().assign(gold=np.nan)])
def test_without_gold_the_gold_line_is_left_out(missing):
    assert legend(plots.plot_reward_kl_path(metrics())) == ["gold", "proxy"]
    assert legend(plots.plot_reward_kl_path(missing)) == ["proxy"]
    assert legend(plots.plot_learning_curve(missing, ["proxy", "gold"], title="t")) == ["reward model's score"]
    panels = plots.plot_training_panels(missing, ["kl", "gold", "held_out_gold"], title="t")
    assert [annotation.text for annotation in panels.layout.annotations] == ["KL from the reference (nats)"]
    with pytest.raises(WorkbenchError, match="nothing to show"):
        plots.plot_training_panels(missing, ["gold"], title="t")


def test_without_gold_runs_are_compared_by_the_proxy():
    figure = plots.plot_frontier(points().drop(columns=["gold", "gold_se"]))
    assert [float(trace.y[0]) for trace in figure.data[:2]] == [0.0, 1.5]
    assert "gold" not in figure.to_json().replace("goldenrod", "")
    assert "gold" not in plots.plot_best_of_n(best_of_n_curve([[1.0, 2.0]] * 3, None, [1, 2])).to_json()
    control = plots.plot_sharpening_control(SHARPENING.rename(columns={"gold": "proxy"}))
    assert control.layout.yaxis.title.text == "reward model's score (proxy)"
    with pytest.raises(WorkbenchError, match="by gold quartile needs the columns"):
        plots.plot_reward_distributions(samples().drop(columns="gold"), by="gold_quartile")


def test_what_a_model_or_user_wrote_is_never_markup():
    for figure in (plots.plot_frontier(points()), plots.plot_reward_distributions(samples())):
        text = figure.to_json()  # plotly writes < and > as unicode escapes, so look at the decoded texts
        shown = "".join(
            str(entry) for trace in figure.data if trace.customdata is not None for entry in trace.customdata
        )
        assert "&lt;script&gt;" in shown
        assert "<script" not in shown + text + figure.layout.title.text


def test_hover_text_is_wrapped_and_cut():
    lines = hover_text("word " * 500).split("<br>")
    assert max(map(len, lines)) <= 60
    assert lines[-1].endswith("…")
    assert len(" ".join(lines)) < 500
    assert max(map(len, hover_text("x" * 50_000).split("<br>"))) <= 60
    assert hover_text("a < b") == "a &lt; b"


def test_the_path_runs_along_the_root_of_the_kl_and_ends_where_training_ended():
    frame = pd.DataFrame({"step": [0, 1, 2], "kl": [-0.1, 4.0, 9.0], "proxy": [0.0, 1.0, 3.0], "gold": [1.0, 2.0, 0.5]})
    gold, proxy = [trace for trace in plots.plot_reward_kl_path(frame).data if trace.mode == "lines+markers"]
    assert list(gold.x) == list(proxy.x) == [0.0, 2.0, 3.0]
    assert list(gold.y) == [1.0, 2.0, 0.5]
    assert list(gold.marker.size) == [0, 0, 11]
    assert "KL 4.00 nats" in gold.customdata[1]
    assert "ends 1.50 below its highest point" in plots.plot_reward_kl_path(frame).layout.title.text


def test_the_upper_axis_names_the_kl_of_the_place_below_it():
    upper = plots.plot_frontier(points()).layout.xaxis2
    assert upper.matches == "x"
    np.testing.assert_allclose([math.sqrt(float(text)) for text in upper.ticktext], upper.tickvals)
    best = plots.plot_best_of_n(CURVE).layout.xaxis2
    assert list(best.tickvals) == [1, 2, 4]
    assert list(best.ticktext) == ["0.00", "0.19", "0.64"]


def test_several_runs_have_one_legend_entry_each():
    frame = pd.concat([metrics().assign(run=name) for name in ("a", "b")])
    figure = plots.plot_reward_kl_path(frame)
    assert legend(figure) == ["a", "b"]
    assert len([trace for trace in figure.data if trace.line.dash == "dot"]) == 2


def test_noisy_lines_are_smoothed_over_a_faint_raw_line_and_rare_points_are_not():
    frame = pd.DataFrame({"step": range(200), "loss": [0.0, 2.0] * 100})
    frame["held_out_loss"] = np.where(frame["step"] % 50 == 0, 1.5, np.nan)
    raw, loss, heldout = plots.plot_learning_curve(frame, ["loss", "held_out_loss"], title="t").data
    assert list(raw.y) == [0.0, 2.0] * 100
    assert np.abs(np.asarray(loss.y) - 1).max() <= 0.2
    assert list(heldout.x) == [0, 50, 100, 150]
    assert list(heldout.y) == [1.5] * 4
    assert smoothed(pd.Series([1.0, 5.0]), 15).tolist() == [1.0, 5.0]


def test_gold_quartiles_hold_a_quarter_of_the_samples_each_even_when_gold_is_tied():
    figure = plots.plot_reward_distributions(samples().assign(gold=1.0), by="gold_quartile")
    violins = [trace for trace in figure.data if trace.points is False]
    assert [len(trace.y) for trace in violins] == [3, 3, 3, 3]
    assert [trace.x[0] for trace in violins] == ["lowest gold", "second", "third", "highest gold"]


def test_error_bars_are_95_percent_intervals():
    for figure in (
        plots.plot_frontier(points()),
        plots.plot_accuracy_bars(ACCURACY),
        plots.plot_accuracy_by_size(SIZES.iloc[:1]),
        plots.plot_sharpening_control(SHARPENING),
    ):
        expected = {"scatter": 0.0392, "bar": 0.0196}[figure.data[0].type]
        assert figure.data[0].error_y.array[0] == pytest.approx(expected, rel=1e-4)


def test_marks_escape_names_keep_silent_without_hover_and_know_the_ends_of_intervals():
    line = marks.points([1], [2], "<b>", {"color": "#000000", "width": 2, "group": "g"}, hover="%{y}")
    assert (line.mode, line.name, line.legendgroup, line.showlegend) == ("lines", "&lt;b&gt;", "g", True)
    silent = marks.points([1], [2], look={"size": 3, "symbol": "star"})
    assert (silent.mode, silent.hoverinfo, silent.showlegend, silent.name) == ("markers", "skip", False, None)
    around, line = marks.banded([1, 2], [0, 1], [-1, np.nan], [1, 2], "a", {"color": "#000000", "width": 2})
    assert list(around.x) == [1, 1] and list(around.y) == [-1, 1] and around.legendgroup == line.legendgroup == "a"
    known = pd.DataFrame({"value": [1.0, 2.0], "value_low": [0.5, np.nan], "value_high": [3.0, np.nan]})
    bar = marks.error_bar(known, "value")
    assert list(bar["array"]) == [2.0, 0.0] and list(bar["arrayminus"]) == [0.5, 0.0]
    both = marks.error_bar(known.assign(value_se=1.0), "value")
    assert list(both["array"]) == [2.0, 0.0]  # its own ends say more than its error
    of_error = marks.error_bar(known[["value"]].assign(value_se=1.0), "value")
    assert list(of_error["array"]) == pytest.approx([stats.norm.ppf(0.975)] * 2)
    assert marks.error_bar(known[["value"]], "value") == {"visible": False}


def test_error_bars_of_few_runs_are_students():
    few = SHARPENING.assign(freedom=[2, np.nan, 2, np.nan])
    bars = plots.plot_sharpening_control(few).data[0].error_y.array
    assert list(bars) == pytest.approx([0.02 * stats.t.ppf(0.975, 2), 0.02 * stats.norm.ppf(0.975)])


def test_greedy_comes_last_and_is_called_so():
    figure = plots.plot_sharpening_control(SHARPENING.sample(frac=1, random_state=1))
    assert list(figure.layout.xaxis.categoryarray) == ["T = 1", "greedy"]
    ppo = next(trace for trace in figure.data if trace.name == "ppo")
    assert (list(ppo.x), list(ppo.y)) == (["T = 1", "greedy"], [0.7, 0.9])
    assert "At T = 1 ppo is 0.30 above sft; at greedy ppo is 0.10 above sft" in title_of(figure)
    alone = plots.plot_sharpening_control(SHARPENING[SHARPENING["run"] == "ppo"])
    assert "At T = 1 ppo is 0.70; at greedy ppo is 0.90" in title_of(alone)


def test_titles_name_what_the_data_show():
    losses = pd.DataFrame({"step": [1, 2, 3], "loss": [5.0, 4.0, 3.0], "held_out_loss": [np.nan, 4.5, 3.5]})
    course = title_of(plots.plot_learning_curve(losses, ["loss", "held_out_loss"]))
    assert "Held-out loss goes from 4.5 at step 2 to 3.5 at step 3" in course
    unknown = losses.assign(held_out_loss=np.nan)
    assert "was not measured" in title_of(plots.plot_learning_curve(unknown, ["loss", "held_out_loss"]))
    assert "Gold is highest near n = 1 (0.62) and 0.00 at n = 4" in plots.plot_best_of_n(CURVE).layout.title.text
    assert "Largest gap 0.10" in plots.plot_calibration(CALIBRATION).layout.title.text
    assert "Most accurate on all" in plots.plot_accuracy_bars(ACCURACY).layout.title.text
    assert "differ most in “helpful”: 1.00" in plots.plot_gold_components(COMPONENTS).layout.title.text
    assert "mine" in plots.plot_gold_components(COMPONENTS, title="mine").layout.title.text
    assert number(-0.001) == "0.00"
    assert number(-1.234) == "−1.23"


def test_labelers_who_share_no_item_leave_nothing_to_draw():
    with pytest.raises(WorkbenchError, match="no two labelers share an item"):
        plots.plot_agreement_matrix(pd.DataFrame([[np.nan]], index=["ada"], columns=["ada"]), SUMMARY)


def test_the_labeler_who_stands_out_is_named_with_the_typical_one():
    title = plots.plot_choice_shares(SHARES).layout.title.text
    assert "“bob” stands out on “gold”: 20% where the typical labeler has 80%" in title


def test_each_labelers_shares_stand_over_their_features():
    figure = plots.plot_choice_shares(SHARES)
    assert legend(figure) == ["ada", "bob", "eve"]
    assert [list(trace.y) for trace in figure.data] == [[0.5, 0.8], [0.6, 0.2], [0.5, 0.9]]
    assert all(list(trace.x) == ["words", "gold"] for trace in figure.data)
    assert list(figure.data[1].customdata) == [20, 20]


def test_the_attention_mask_counts_documents_and_shows_who_sees_whom():
    figure = plots.plot_attention_mask(MASK)
    assert "4 tokens of one row hold 2 documents" in figure.layout.title.text
    assert figure.data[0].z.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert figure.data[0].text[3][2] == "“&lt;eos&gt;” sees “c”"
    assert figure.data[0].text[2][1] == "“c” does not see “b”"
    assert list(figure.layout.yaxis.ticktext) == ["a", "b", "c", "&lt;eos&gt;"]
    with pytest.raises(WorkbenchError, match=r"shape \(3, 4\)"):
        plots.plot_attention_mask(MASK.head(3))


def test_the_matrix_names_the_labelers_whom_the_measures_name():
    # ada and cy share 1 item, on which they agree; ada and bob 9 of 10, cy and bob 99 of 100
    rows = [(f"ab{n}", who, int(who == "bob" and n == 0)) for n in range(10) for who in ("ada", "bob")]
    rows += [(f"cb{n}", who, int(who == "bob" and n == 0)) for n in range(100) for who in ("cy", "bob")]
    rows += [("ac", "ada", 0), ("ac", "cy", 0)]
    judgements = pd.DataFrame(rows, columns=["item_id", "labeler", "value"]).assign(kind="pair", repeat=0, elapsed_ms=9)
    judgements = judgements.assign(shown_order=[[0, 1]] * len(rows))
    items = [{"item_id": item, "completions": ["x", "y"]} for item in judgements["item_id"].unique()]
    rest, matrix = labeler_vs_rest(judgements), agreement_matrix(judgements)
    said = "“ada” agrees least with the others (91%), “cy” most (99%)"
    assert said in plots.plot_agreement_matrix(matrix, rest).layout.title.text
    assert said in plots.plot_labeler_measures(labeler_summary(judgements, items)).layout.title.text


def test_measures_have_a_panel_each_and_a_line_only_where_nobody_would_be():
    figure = plots.plot_labeler_measures(SUMMARY)
    assert [note.text for note in figure.layout.annotations] == [
        "agrees with the others",
        "prefers what is shown first",
    ]
    agreement, first = figure.data
    assert list(agreement.x[:2]) == [70, 80] and list(first.x) == pytest.approx([50, 40, 55])
    assert agreement.error_x.array[0] == pytest.approx(15) and agreement.error_x.arrayminus[0] == pytest.approx(10)
    (line,) = figure.layout.shapes
    assert line.x0 == line.x1 == 50 and line.xref == "x2"
    assert "“ada” agrees least with the others (70%), “bob” most (80%)" in figure.layout.title.text


def test_measures_of_nobody_are_a_sentence():
    with pytest.raises(WorkbenchError, match="nothing was measured of any labeler"):
        plots.plot_labeler_measures(SUMMARY[["labeler", "judgements"]])


def test_the_menu_of_selections_shows_one_matrix_at_a_time_on_one_scale():
    others = pd.DataFrame([[np.nan, 0.9], [0.9, np.nan]], index=["ada", "bob"], columns=["ada", "bob"])
    overall = {"All": Interval(0.7, 0.6, 0.8), "Slow <b>": Interval(0.9, 0.85, 0.95)}
    figure = plots.plot_agreement_filters({"All": MATRIX, "Slow <b>": others}, overall)
    assert [trace.visible for trace in figure.data] == [True, False]
    assert {(trace.zmin, trace.zmax) for trace in figure.data} == {(65, 90)}
    assert "All: two labelers agree on 70.0% (60.0% to 80.0%)" in figure.layout.title.text
    buttons = figure.layout.updatemenus[0].buttons
    assert [button.label for button in buttons] == ["All", "Slow &lt;b&gt;"]
    assert [button.args[0]["visible"] for button in buttons] == [[True, False], [False, True]]
    assert "Slow &lt;b&gt;: two labelers agree on 90.0%" in buttons[1].args[1]["title.text"]
    with pytest.raises(WorkbenchError, match="nothing to show"):
        plots.plot_agreement_filters({"All": MATRIX * np.nan}, overall)


def test_a_gain_within_chance_is_not_counted_as_one():
    gains = pd.DataFrame({"run": ["a", "b", "c"], "gain": [0.3, 0.01, -0.2], "gain_se": [0.1, 0.02, 0.01]})
    gains = gains.assign(kl=1.0, greedy_gain=0.1)
    assert "1 of 3 gain at temperature 1 beyond their own 95% interval; most: a" in title_of(plots.plot_gains(gains))
    assert "2 of 3 gain at temperature 1; most: a" in title_of(plots.plot_gains(gains.drop(columns="gain_se")))


def test_more_methods_than_colours_differ_in_dash_and_symbol_or_in_pattern():
    many = [f"method {number}" for number in range(13)]
    control = pd.concat([SHARPENING.assign(run=name).head(2) for name in many])
    lines = [trace for trace in plots.plot_sharpening_control(control).data if trace.name]
    assert len({(trace.line.dash, trace.marker.symbol) for trace in lines}) == 13
    bars = plots.plot_gold_components(pd.concat([COMPONENTS.head(1).assign(run=name) for name in many])).data
    assert len({(trace.marker.line.color, trace.marker.pattern.shape) for trace in bars}) == 13
    few = plots.plot_gold_components(COMPONENTS).data
    assert {trace.marker.pattern.shape for trace in few} == {None}
    assert len({(look["dash"], look["symbol"]) for look in looks(40)}) == 40


def test_folders_of_experiments_are_called_as_one_says_them():
    called = {
        "ppo_kl0.15": "PPO, KL price 0.15",
        "best_of_n": "best of n",
        "grpo_kl0": "GRPO, KL price 0",
        "kto": "KTO",
    }
    called |= {"ensemble_mean": "ensemble mean", "scratch_llama-32x1": "scratch llama-32x1"}
    called |= {name: name for name in ("method 3", "klaus", HOSTILE)}
    assert {folder: spoken(folder) for folder in called} == called


def test_titles_wrap_before_plotlys_buttons_also_where_there_are_no_blanks():
    text, lines = headline_of("word " * 40 + "x" * 200, "more " * 60)
    bold, _, small = text.partition("</b>")
    assert max(map(len, bold.removeprefix("<b>").split("<br>"))) <= 70
    assert lines == bold.count("<br>") + 1 + small.count("<br>")


def title_of(figure):
    return " ".join(figure.layout.title.text.replace("<br>", " ").split())


@pytest.mark.parametrize("opacity", [0.25, 1, 9.9e-18, 1e-5, np.float64(1 / 3)])
def test_a_colour_of_any_opacity_is_one_for_plotly(opacity):
    line = go.Scatter(line={"color": transparent("#BE3A12", opacity)}).line.color
    assert line.startswith("rgba(190, 58, 18, ") and float(line[:-1].split()[-1]) == pytest.approx(opacity, abs=1e-4)


# Tables


def test_a_table_keeps_line_breaks_and_markup_as_text_and_sets_numbers_flush_right():
    frame = pd.DataFrame(
        {"completion": ["one\n  two $x$", HOSTILE, None], "gold": [0.5, np.nan, -1e-9], "runs": [3, 20, 1]}
    )
    html = plots.text_table(frame, digits=2).data
    cells = re.findall(r'<td style="text-align: (\w+); white-space: pre-wrap">(.*?)</td>', html, re.S)
    assert cells[:3] == [("left", "one\n  two $x$"), ("right", "0.50"), ("right", "3")]
    assert [text for _, text in cells[4::3]] == ["", "0.00"] and cells[6][1] == ""
    assert "<script" not in html and "&lt;script&gt;" in html and html.startswith('<div class="mathjax_ignore')
    heads = re.findall(r'<th style="text-align: (\w+);', html)
    assert heads == ["left", "right", "right"]


def test_a_cell_of_a_drawn_table_and_a_hover_break_lines_where_the_completion_does():
    assert table_text(" a < b\n\nc\n") == "a &lt; b<br><br>c"
    assert hover_text("first line\nsecond") == "first line<br>second"
