"""Policies against each other; oracles: counting by hand, the closed form for two, and simulated leagues."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from workbench import WorkbenchError
from workbench.studies.comparison.figures import plot_strengths, plot_win_rates
from workbench.studies.comparison.tables import judge_column, meetings, outcomes, scored, strengths, win_rates

HOSTILE = "<script>x</script>"


def answered(
    scores: dict[str, list], *, score="gold", prompts=None, world="0", judge="rm", judge_id="a"
) -> pd.DataFrame:
    """Answers by run: name -> a score per prompt; runs of one policy end in _seedN."""
    frames = []
    for run, values in scores.items():
        policy, _, seed = run.partition("_seed")
        asked = prompts or [f"prompt {number}" for number in range(len(values))]
        frame = pd.DataFrame({"prompt": asked, "completion": [f"{run} {text}" for text in asked], score: values})
        frame["nth"] = frame.groupby("prompt").cumcount()
        shared = {"repetition": f"_seed{seed}" if seed else "", "world": world, "judge": judge, "judge_id": judge_id}
        frames.append(frame.assign(policy=policy, run=run, **shared))
    return pd.concat(frames, ignore_index=True)


def test_win_rates_are_what_counting_by_hand_gives():
    rng = np.random.default_rng(0)
    scores = {name: rng.integers(0, 4, size=30).astype(float).tolist() for name in ("a", "b", "c")}
    rates, alone = win_rates(outcomes(answered(scores), "gold")).set_index(["first", "second"]), {}
    for one, other in itertools.permutations(scores, 2):
        pairs = list(zip(scores[one], scores[other], strict=True))
        counted = [1.0 if x > y else 0.5 if x == y else 0.0 for x, y in pairs]
        row = rates.loc[(one, other)]
        assert row["win_rate"] == pytest.approx(sum(counted) / 30)
        assert row["win_rate_se"] == pytest.approx(np.std(counted, ddof=1) / math.sqrt(30))
        alone[frozenset((one, other))] = stats.ttest_1samp(counted, 0.5).pvalue
        assert row["ties"] == pytest.approx(counted.count(0.5) / 30) and row["comparisons"] == 30
    together = multipletests(list(alone.values()), method="holm")[1]  # whom one looks at is found in the same games
    for pair, p_value in zip(alone, together, strict=True):
        assert rates.loc[tuple(pair), "p_value"] == pytest.approx(p_value)


def test_runs_meet_those_with_their_seed_and_all_meet_where_no_seed_is_common():
    scores = {
        "a_seed0": [1.0, 1.0],
        "a_seed1": [0.0, 0.0],
        "b_seed0": [0.0, 0.0],
        "b_seed1": [1.0, 1.0],
        "c": [0.5, 0.5],
    }
    met = outcomes(answered(scores), "gold")
    ab = met[(met["first"] == "a") & (met["second"] == "b")]
    assert ab.groupby("repetition")["outcome"].mean().to_dict() == {"_seed0": 1.0, "_seed1": 0.0} and len(ab) == 4
    ac = met[(met["first"] == "a") & (met["second"] == "c")]
    assert sorted(ac["outcome"]) == [0.0, 0.0, 1.0, 1.0]
    rates = win_rates(met).set_index(["first", "second"])
    assert rates.loc[("a", "b"), "seeds"] == "100%, 0%" and rates.loc[("b", "a"), "seeds"] == "0%, 100%"
    assert rates.loc[("a", "c"), "seeds"] == ""


def test_a_prompt_that_comes_twice_meets_its_own_place_and_is_one_draw():
    same = answered({"a": [1.0, 0.0, 1.0], "b": [0.0, 1.0, 0.0]}, prompts=["x", "x", "y"])
    met = outcomes(same, "gold")
    assert met["outcome"].tolist() == [1.0, 0.0, 1.0] and met["prompt"].nunique() == 2
    moved = win_rates(outcomes(same.sample(frac=1, random_state=0), "gold")).set_index("first")
    assert moved.loc["a", "win_rate"] == pytest.approx(2 / 3)
    expected = math.sqrt(2 * 2 * (1 / 3) ** 2) / 3  # x: .5 - 2/3 twice
    assert win_rates(met)["win_rate_se"].iloc[0] == pytest.approx(expected)


def test_scores_that_differ_only_by_rounding_are_a_tie_and_rows_without_one_are_passed_over():
    assert len(outcomes(answered({"a": [1.0, math.nan, 1.0], "b": [0.0, 0.0, math.nan]}), "gold")) == 1
    met = outcomes(answered({"a": [1.0, 1.0 + 1e-9], "b": [1.0, 1.0]}), "gold")
    assert met["outcome"].tolist() == [0.5, 0.5]


def test_two_policies_are_as_far_apart_as_the_log_odds_of_their_win_rate():
    values = [1.0] * 30 + [-1.0] * 10 + [0.0] * 8
    met = outcomes(answered({"a": values, "b": [0.0] * 48}), "gold")
    table = strengths(met, resamples=50).table.set_index("name")
    rate = (30 + 8 / 2) / 48
    assert table.loc["a", "score"] - table.loc["b", "score"] == pytest.approx(math.log(rate / (1 - rate)), abs=1e-6)
    assert table["score"].sum() == pytest.approx(0, abs=1e-9)
    assert (table["low"] < table["score"]).all() and (table["score"] < table["high"]).all()


def test_a_policy_that_never_lost_gets_a_finite_strength_and_a_sentence():
    found = strengths(outcomes(answered({"a": [1.0] * 5, "b": [0.0] * 5, "c": [0.0] * 5}), "gold"), resamples=50)
    assert found.table["name"][0] == "a" and np.isfinite(found.table[["score", "low", "high"]]).all(axis=None)
    assert "'a' never lost" in found.note and "prior" in found.note


def test_intervals_of_strengths_cover_what_many_prompts_would_show():
    """Scores share a part per prompt, so that the pairs of a prompt are no independent evidence."""
    means = {"a": 0.6, "b": 0.2, "c": 0.0, "d": -0.4}

    def league(rng, prompts):
        shared = rng.normal(size=prompts)
        noise = {name: mean + 0.7 * shared * (name in "ab") + rng.normal(size=prompts) for name, mean in means.items()}
        return outcomes(answered({name: values.tolist() for name, values in noise.items()}), "gold")

    rng = np.random.default_rng(1)
    truth = strengths(league(rng, 4000), resamples=2).table.set_index("name")["score"]
    covered = []
    for _ in range(20):
        table = strengths(league(rng, 60), resamples=120).table.set_index("name")
        covered += [table.loc[name, "low"] < truth[name] < table.loc[name, "high"] for name in means]
    assert np.mean(covered) >= 0.85  # 95% is meant: 400 leagues gave 95.4%


# What can not be compared


def test_only_policies_on_common_prompts_meet_and_the_others_are_named():
    here = answered({"a": [1.0, 0.0, 1.0], "b": [0.0, 1.0, 0.0]})
    there = answered({"c": [1.0, 0.0], "d": [0.0, 1.0]}, prompts=["other 1", "other 2"])
    alone = answered({"e": [1.0]}, prompts=["of its own"])
    found = meetings(pd.concat([here, there, alone]), "gold")
    assert set(found.outcomes["first"]) | set(found.outcomes["second"]) == {"a", "b"}
    assert found.left_out == ["c, d, e answered other prompts than the rest."]
    with pytest.raises(WorkbenchError, match="No two policies answered the same prompts"):
        meetings(pd.concat([here[here["policy"] == "a"], alone]), "gold")


def test_the_same_prompt_in_another_world_is_another_prompt():
    both = pd.concat([answered({"a_seed0": [1.0], "b_seed0": [0.0]}), answered({"c_seed0": [2.0]}, world="1")])
    assert meetings(both, "gold").left_out == ["c answered other prompts than the rest."]


def test_a_proxy_is_compared_within_one_reward_model_and_within_its_weights():
    values = [{f"a_seed{seed}": [1.0, 1.0, 0.0], f"b_seed{seed}": [0.0, 0.0, 1.0]} for seed in (0, 1)]
    seeds = [answered(each, score="proxy", judge_id=str(seed)) for seed, each in enumerate(values)]
    other = answered({"c_seed0": [9.0] * 3}, score="proxy", judge="rm_small", judge_id="z")
    found = meetings(pd.concat([*seeds, other]), "proxy")
    assert len(found.outcomes) == 6 and found.left_out == ["The proxy of c is another reward model's than rm's."]
    crossed = pd.concat([seeds[0][seeds[0]["policy"] == "a"], seeds[1][seeds[1]["policy"] == "b"]])
    with pytest.raises(WorkbenchError, match="No two policies"):
        meetings(crossed, "proxy")
    assert len(meetings(crossed.rename(columns={"proxy": "gold"}), "gold").outcomes) == 3


def test_of_many_policies_some_meet_from_the_worst_to_the_best():
    many = answered({f"p{number:02d}": [float(number), float(-number)] for number in range(20)})
    found = meetings(many.assign(gold=many["gold"] + many["policy"].str[1:].astype(int)), "gold", most=5)
    assert len({*found.outcomes["first"], *found.outcomes["second"]}) == 5
    assert "p00" in set(found.outcomes["first"]) and "5 of 20 policies" in found.left_out[0]


def test_without_gold_the_proxy_judges_and_an_unknown_judge_is_refused_in_a_sentence():
    rows = answered({"a": [1.0], "b": [0.0]}, score="proxy")
    assert judge_column(rows, "gold") == judge_column(rows, "proxy") == "proxy"
    assert judge_column(rows.assign(gold=1.0), "gold") == "gold"
    with pytest.raises(WorkbenchError, match=r"judge is 'runs/none', .* measured \(proxy\) or a reward model's folder"):
        judge_column(rows, "runs/none")


def test_a_reward_scores_each_different_text_once_and_equal_texts_alike():
    rows = answered({"a": [0, 0, 0], "b": [0, 0, 0]}).assign(completion=["x", "y", "x", "x", "z", "x"])
    seen = []

    def reward(prompts, completions, *, finished):
        seen.extend(zip(prompts, completions, finished, strict=True))
        return list(range(len(prompts)))

    values = scored(rows, reward)
    assert len(seen) == len(set(seen)) == 4 and values[0] == values[3] and values[1] != values[4]
    asked = [(row.prompt, row.completion) for row in rows.itertuples()]
    assert [seen[int(value)][:2] for value in values] == asked


# Figures


def league():
    values = {"a": [1.0] * 30 + [0.0] * 10, "b": [0.5] * 40, HOSTILE: [0.4] * 20 + [1.5] * 20}
    met = outcomes(answered(values), "gold")
    return win_rates(met), strengths(met, resamples=100).table


def test_the_matrix_shows_row_against_column_and_marks_what_chance_does_not_explain():
    rates, _ = league()
    figure = plot_win_rates(rates, order=["a", "b", HOSTILE], by="gold")
    heat = figure.data[0]
    assert heat.z[0][1] == pytest.approx(75) and heat.z[1][0] == pytest.approx(25) and heat.z[0][0] is None
    assert heat.text[0][1] == "<b>75</b>" and heat.text[1][2] == "50"
    assert heat.zmax - 50 == pytest.approx(50 - heat.zmin) and heat.y[2].startswith("&lt;")
    assert "75.0% ±" in heat.customdata[0][1] and "&lt;script&gt;" in heat.customdata[0][2]
    assert "beats" in figure.layout.title.text and "<script" not in figure.to_json()


def test_strengths_stand_in_order_with_what_they_mean_as_win_rates_above():
    rates, table = league()
    figure = plot_strengths(table, rates, by="gold")
    dots = figure.data[0]
    assert list(dots.x) == sorted(dots.x)
    assert np.asarray(dots.error_x.array) == pytest.approx((table["high"] - table["score"])[::-1].to_numpy())
    assert dots.customdata[-1][0] == pytest.approx(1 / (1 + math.exp(-table["score"][0])))
    for place, label in zip(figure.layout.xaxis2.tickvals, figure.layout.xaxis2.ticktext, strict=True):
        assert 1 / (1 + math.exp(-place)) == pytest.approx(float(label.rstrip("%")) / 100)
    assert table["name"][0] in figure.layout.title.text.replace("&lt;", "<").replace("&gt;", ">")


def test_policies_that_always_tie_are_equally_strong():
    met = outcomes(answered({"a": [1.0] * 4, "b": [1.0] * 4}), "gold")
    rates, found = win_rates(met), strengths(met, resamples=20)
    assert found.table[["score", "low", "high"]].abs().max(axis=None) < 1e-9 and found.note == ""
    assert "No policy beats another" in plot_win_rates(rates, order=["a", "b"], by="gold").layout.title.text
    assert "equally strong" in plot_strengths(found.table, rates, by="gold").layout.title.text


@pytest.mark.parametrize(
    "draw",
    [lambda frame: plot_win_rates(frame, order=[], by="gold"), lambda frame: plot_strengths(frame, frame, by="gold")],
)
def test_tables_without_rows_get_a_sentence(draw):
    with pytest.raises(WorkbenchError, match="got a table without rows"):
        draw(pd.DataFrame())
