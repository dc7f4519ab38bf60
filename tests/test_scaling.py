"""Oracles: statsmodels' regression with an intercept per unit, scipy's paired t test, planted effects, hand cases."""

import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats
from statsmodels.stats.multitest import multipletests

from workbench import WorkbenchError
from workbench.analysis.effects import effect_of, effects_against, gain_over_stopping, judged_together, mean_effects

UNITS = [(world, seed) for world in range(3) for seed in range(3)]


def study(effect, *, levels=(250, 1000, 4000), noise=0.1, seed=0, worlds=0.0, own=1.0):
    """One row per unit and number of pairs; `effect` per doubling, units that differ by `own` in level."""
    generator = np.random.default_rng(seed)
    rows = []
    for world, unit_seed in UNITS:
        level = own * generator.normal()
        for pairs in levels:
            value = level + effect * math.log2(pairs / 250) + noise * generator.normal()
            rows.append({"world": world, "seed": unit_seed, "pairs": pairs, "peak_gold": value})
    return pd.DataFrame(rows)


def test_the_slope_is_that_of_a_regression_with_an_intercept_per_unit():
    table = study(0.2).assign(
        unit=lambda rows: rows["world"] * 3 + rows["seed"], doubled=lambda rows: np.log2(rows["pairs"])
    )
    found = effect_of(table.sample(frac=1, random_state=0), "pairs", "peak_gold")
    theirs = smf.ols("peak_gold ~ doubled + C(unit)", table).fit()
    assert found.value == pytest.approx(theirs.params["doubled"])
    slopes = [stats.linregress(part["doubled"], part["peak_gold"]).slope for _, part in table.groupby("unit")]
    expected = stats.ttest_1samp(np.reshape(slopes, (3, 3)).mean(axis=1), 0)
    assert (found.low, found.high) == pytest.approx(expected.confidence_interval(), rel=1e-6)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.units, found.worlds, found.left_out) == (9, 3, 0) and found.significant
    assert "per doubling of pairs: +0.2" in found.sentence and "within chance" not in found.sentence


def test_planted_slopes_are_found_as_often_as_promised_and_none_is_an_honest_no():
    inside, claimed = [], []
    for seed in range(60):
        found = effect_of(study(0.05, seed=seed), "pairs", "peak_gold")
        inside.append(found.low <= 0.05 <= found.high)
        nothing = effect_of(study(0.0, seed=seed), "pairs", "peak_gold")
        claimed.append(nothing.significant)
        assert ("within chance" in nothing.sentence) == (not nothing.significant)
    assert np.mean(inside) >= 0.9 and np.mean(claimed) <= 0.1


def test_differences_from_a_baseline_are_paired_and_adjusted_for_their_number():
    generator = np.random.default_rng(1)
    kinds = {"one": 0.0, "mean": 0.02, "min": 0.6, "uncertainty": 0.12}
    rows = []
    for world, seed in UNITS:
        own = 2 * generator.normal()
        values = {kind: own + effect + 0.1 * generator.normal() for kind, effect in kinds.items()}
        rows += [{"world": world, "seed": seed, "ensemble": kind, "drop": value} for kind, value in values.items()]
    table = pd.DataFrame(rows)
    found = effects_against(table, "ensemble", "drop", baseline="one").set_index("level")
    assert list(found.index) == ["mean", "min", "uncertainty"]
    cells = table.pivot(index=["world", "seed"], columns="ensemble", values="drop")
    p_values = []
    for kind, row in found.iterrows():
        assert row["value"] == pytest.approx((cells[kind] - cells["one"]).mean())
        by_world = (cells[kind] - cells["one"]).to_numpy().reshape(3, 3)
        expected = stats.ttest_1samp(by_world.mean(axis=1), 0)
        assert (row["low"], row["high"]) == pytest.approx(expected.confidence_interval(), rel=1e-6)
        p_values.append(expected.pvalue)
    np.testing.assert_allclose(found["p_value"], multipletests(p_values, method="holm")[1], atol=1e-9)
    assert list(found["significant"]) == list(found["p_value"] < 0.05) and found.loc["min", "significant"]
    assert not found.loc["mean", "significant"] and "within chance" in found.loc["mean", "sentence"]
    assert found.loc["min", "sentence"].startswith("min: drop against one: +0.6")


def test_a_claim_needs_to_survive_its_company():
    generator = np.random.default_rng(2)
    rows = [
        {"world": w, "seed": s, "kind": kind, "gold": generator.normal(0.5 if kind == "a" else 0)}
        for w, s in UNITS
        for kind in "abcdefgh"
    ]
    table = pd.DataFrame(rows)
    alone = mean_effects(table[table["kind"] == "a"], "kind", "gold").iloc[0]
    among = mean_effects(table, "kind", "gold").iloc[0]
    assert alone["p_value"] < 0.05 and alone["significant"] and among["p_value"] > 0.05 and not among["significant"]
    assert (alone["value"], alone["low"], alone["high"]) == (among["value"], among["low"], among["high"])
    assert "within chance" in among["sentence"] and "within chance" not in alone["sentence"]
    tables = [mean_effects(table[table["kind"] == kind], "kind", "gold") for kind in "abcdefgh"]
    missing = mean_effects(table.assign(gold=table["gold"].where(table["kind"] == "a")), "kind", "gold")
    together = judged_together([*tables, missing.iloc[1:]]).set_index(
        "level"
    )  # what was not measured counts for nothing
    alike = mean_effects(table, "kind", "gold").set_index("level")
    assert list(together.index) == list("abcdefgh")
    pd.testing.assert_frame_equal(together, alike)  # in one table or in eight: one family
    assert judged_together([]).empty and judged_together([missing.iloc[1:]]).empty


def test_units_that_lack_something_are_left_out_and_counted():
    table = study(0.1)
    table.loc[(table["world"] == 0) & (table["seed"] == 0), "peak_gold"] = math.nan
    table = table[~((table["world"] == 1) & (table["seed"] == 1) & (table["pairs"] < 4000))]
    found = effect_of(table, "pairs", "peak_gold")
    assert (found.units, found.worlds, found.left_out) == (7, 3, 2)
    whole = table[table.groupby(["world", "seed"])["peak_gold"].transform("count") == 3]
    assert found._replace(left_out=0) == effect_of(whole, "pairs", "peak_gold")
    against = effects_against(table, "pairs", "peak_gold", baseline=4000).set_index("level")
    assert list(against.index) == [250, 1000] and list(against["left_out"]) == [2, 2]


def test_what_was_measured_nowhere_is_named_and_one_unit_has_no_interval():
    table = study(0.1)
    table.loc[table["pairs"] == 1000, "peak_gold"] = math.nan
    found = effects_against(table, "pairs", "peak_gold", baseline=250).set_index("level")
    assert found.loc[1000, "units"] == 0 and found.loc[1000, "sentence"] == "1000: peak_gold against 250: not measured."
    assert found.loc[4000, "units"] == 9 and not found.loc[1000, "significant"]
    one = effect_of(table[(table["world"] == 0) & (table["seed"] == 0)], "pairs", "peak_gold")
    assert one.units == 1 and math.isnan(one.low) and not one.significant and "no interval" in one.sentence
    assert "nan" not in one.sentence


def test_what_can_not_be_compared_is_refused_in_a_sentence():
    table = study(0.1)
    with pytest.raises(WorkbenchError, match=r"lacks .'size'"):
        effect_of(table, "size", "peak_gold")
    with pytest.raises(WorkbenchError, match="numbers above 0"):
        effect_of(table.assign(pairs=0), "pairs", "peak_gold")
    with pytest.raises(WorkbenchError, match="numbers above 0"):
        effect_of(table.assign(pairs="many"), "pairs", "peak_gold")
    with pytest.raises(WorkbenchError, match="No unit has peak_gold at two levels"):
        effect_of(table[table["pairs"] == 250], "pairs", "peak_gold")
    with pytest.raises(WorkbenchError, match="not known of any of 27 runs"):
        effect_of(table.assign(peak_gold=math.nan), "pairs", "peak_gold")
    for baseline, part in ((8000, table), (250, table[table["pairs"] == 250])):
        with pytest.raises(WorkbenchError, match=f"{baseline} has nothing to compare"):
            effects_against(part, "pairs", "peak_gold", baseline=baseline)


def free_paths():
    """Two units; gold falls 1 per root nat past √KL = 1, and the first goes back to KL 1 after having spent 9."""
    rows = []
    for seed, kls in ((0, [0, 1, 9, 1, 16]), (1, [0, 4])):
        for step, kl in enumerate(kls):
            gold = [1.0, 1.0, -1.0, 50.0, -2.0][step] if seed == 0 else [1.0, 2.0][step]
            rows.append({"world": 0, "seed": seed, "step": step, "kl": float(kl), "gold": gold})
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def test_a_penalty_is_compared_with_the_free_run_stopped_where_it_first_spends_as_much():
    penalised = pd.DataFrame({"world": 0, "seed": [0, 0, 1, 1, 2], "kl": [4.0, 12.25, 1.0, 9.0, 1.0], "gold": 3.0})
    found = gain_over_stopping(free_paths(), penalised.assign(kl_coef=0.1))
    # seed 0 at √KL 2: half way from 1 (at 1) to -1 (at 3); at 3.5, it has been at 3 and comes from 1 again
    expected = [0.0, 50 + (-2 - 50) * (3.5 - 1) / (4 - 1), 1.5, math.nan, math.nan]
    np.testing.assert_allclose(found["free_gold"], expected)
    np.testing.assert_allclose(found["difference"], 3 - np.array(expected))
    assert list(found["kl_coef"]) == [0.1] * 5
    gap = pd.DataFrame({"world": 0, "seed": 1, "step": [0.3, 0.6], "kl": [math.nan, 3.0], "gold": [7.0, math.nan]})
    np.testing.assert_allclose(gain_over_stopping(pd.concat([free_paths(), gap]), penalised)["free_gold"], expected)
    proxy = gain_over_stopping(
        free_paths().rename(columns={"gold": "proxy"}), penalised.assign(proxy=1.0), score="proxy"
    )
    assert proxy["difference"].iloc[0] == 1.0


def test_a_planted_gain_over_stopping_is_found_and_none_is_not():
    generator, free, penalised = np.random.default_rng(3), [], []
    for world, seed in UNITS:
        level = generator.normal()
        kl = np.linspace(0, 40, 30) * generator.uniform(0.9, 1.2)
        for step, nats in enumerate(kl):
            gold = level + math.sqrt(nats) * (1 - 0.3 * math.sqrt(nats)) + 0.02 * generator.normal()
            free.append({"world": world, "seed": seed, "step": step, "kl": nats, "gold": gold})
        for coefficient, gain in ((0.05, 0.0), (0.5, 0.3)):
            nats = generator.uniform(2, 6)
            gold = level + math.sqrt(nats) * (1 - 0.3 * math.sqrt(nats)) + gain + 0.1 * generator.normal()
            penalised.append({"world": world, "seed": seed, "kl_coef": coefficient, "kl": nats, "gold": gold})
    differences = gain_over_stopping(pd.DataFrame(free), pd.DataFrame(penalised))
    found = mean_effects(differences, "kl_coef").set_index("level")
    assert list(found["significant"]) == [False, True]
    assert found.loc[0.05, "low"] < 0 < found.loc[0.05, "high"] and found.loc[0.5, "low"] < 0.3 < found.loc[0.5, "high"]


def test_runs_without_gold_can_not_be_compared_with_stopping():
    with pytest.raises(WorkbenchError, match=r"free lacks .'gold'"):
        gain_over_stopping(free_paths().drop(columns="gold"), free_paths())
    diverged = free_paths().assign(gold=math.nan)
    found = gain_over_stopping(diverged, free_paths().drop(columns="step"))
    assert found["difference"].isna().all()
    with pytest.raises(WorkbenchError, match="difference is not known"):
        mean_effects(found, "seed")
