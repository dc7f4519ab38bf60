"""How often the tests of this project are wrong, and its intervals right, in worlds where the truth is planted.

`python tests/simulate_statistics.py` prints every row, in a few minutes on one core; the decisive ones are asserted,
with fewer draws, in test_statistics.py. ICC: the share of a run's variance that all seeds of its world have in common.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from workbench.analysis.best_of_n import expected_of_best, powers_of_two
from workbench.analysis.effects import effect_of, effects_against, judged_together
from workbench.analysis.overoptimization import crossfit_peak, fit_overoptimization
from workbench.analysis.statistics import interval_over_units, mean_over_units, p_value_over_units, share_over_units
from workbench.plots.marks import half_width
from workbench.studies.budget.tables import compared_at_budget
from workbench.studies.comparison.tables import win_rates
from workbench.studies.overoptimization.alarms import alarm_scores, gold_outcome

ICCS = (0.0, 0.3, 0.5, 0.7)


class Row(NamedTuple):
    """One line of the table: how often something happened in `count` draws, and how often it should."""

    what: str
    setting: str
    nominal: str
    simulated: float
    count: int

    @property
    def error(self) -> float:
        """Monte Carlo standard error."""
        return (max(self.simulated * (1 - self.simulated), 1 / self.count) / self.count) ** 0.5


def units(generator, icc: float, *, worlds: int = 3, seeds: int = 3, methods: int = 1, noise: str = "normal"):
    """Values (methods, worlds * seeds) of mean 0 and variance 1, and the world of each column."""
    draw = {"normal": generator.standard_normal, "skewed": lambda size: generator.exponential(size=size) - 1}[noise]
    shared, own = draw((methods, worlds, 1)) * icc**0.5, draw((methods, worlds, seeds)) * (1 - icc) ** 0.5
    return (shared + own).reshape(methods, -1), np.repeat(np.arange(worlds), seeds)


def table_of(generator, icc: float, **sizes) -> pd.DataFrame:
    """`units` as rows method, world, seed, value."""
    values, worlds = units(generator, icc, **sizes)
    rows = [
        {"method": f"m{method}", "world": world, "seed": seed % sizes.get("seeds", 3), "value": value}
        for method, own in enumerate(values)
        for seed, (world, value) in enumerate(zip(worlds, own, strict=True))
    ]
    return pd.DataFrame(rows)


def one_mean(level: float, icc: float, count: int, **sizes) -> float:
    """How often a mean of 0 is found to be another one."""
    generator = np.random.default_rng(0)
    drawn = (units(generator, icc, **sizes) for _ in range(count))
    return np.mean([p_value_over_units(values[0], worlds) < level for values, worlds in drawn])


def interval_of_mean(icc: float, count: int) -> float:
    """How often the interval of a mean over three worlds of three seeds holds the true one."""
    generator = np.random.default_rng(1)
    found = [interval_over_units(values[0], worlds) for values, worlds in (units(generator, icc) for _ in range(count))]
    return np.mean([low <= 0 <= high for _, low, high in found])


def bars_over_runs(worlds: int, seeds: int, count: int) -> float:
    """How often the bar that a figure draws around the mean of an experiment's runs holds the true one."""
    generator, inside = np.random.default_rng(2), 0
    for _ in range(count):
        values, of = units(generator, 0.5, worlds=worlds, seeds=seeds)
        mean, error, freedom = mean_over_units(values[0], of)
        bar = half_width(pd.DataFrame({"value_se": [error], "freedom": [freedom]}), "value_se")[0]
        inside += abs(mean) <= bar
    return inside / count


def share(chance: float, icc: float, count: int) -> float:
    """How often the interval of a share holds the true one, `chance`, where worlds differ in it."""
    generator, inside = np.random.default_rng(3), 0
    cut = np.quantile(np.random.default_rng(4).standard_normal(100_000), chance)
    for _ in range(count):
        values, worlds = units(generator, icc)
        _, low, high = share_over_units(values[0] < cut, worlds)
        inside += low <= chance <= high
    return inside / count


def claims_at_a_budget(icc: float, methods: int, count: int, **sizes) -> float:
    """How often some method is told apart from the one that the data call highest, where all are equal."""
    generator, claims = np.random.default_rng(5), 0
    for _ in range(count):
        table = table_of(generator, icc, methods=methods, **sizes)
        table["run"] = table["method"] + table["world"].astype(str) + table["seed"].astype(str)
        landed = table.rename(columns={"method": "experiment", "value": "gold"}).assign(
            budget=1.0, reached=True, step=1
        )
        claims += compared_at_budget(landed, "gold")["verdict"].isin(["behind", "ahead"]).any()
    return claims / count


def claims_of_effects(icc: float, count: int) -> float:
    """How often one of two figures' eight differences from a baseline is called significant, where there are none."""
    generator, claims = np.random.default_rng(6), 0
    for _ in range(count):
        tables = [table_of(generator, icc, methods=5) for _ in range(2)]
        together = judged_together(effects_against(each, "method", "value", baseline="m0") for each in tables)
        claims += together["significant"].any()
    return claims / count


def claims_of_slopes(icc: float, count: int) -> float:
    """How often one of eight slopes per doubling is called significant, where all are 0."""
    generator, claims = np.random.default_rng(7), 0
    for _ in range(count):
        effects = []
        for _ in range(8):
            table = table_of(generator, icc, methods=3)
            table["pairs"] = table["method"].map({"m0": 250, "m1": 1000, "m2": 4000})
            effects.append(effect_of(table, "pairs", "value")._asdict())
        claims += judged_together([pd.DataFrame(effects)])["significant"].any()
    return claims / count


def claims_of_a_league(policies: int, count: int, *, prompts: int = 60) -> float:
    """How often one policy is said to beat another beyond chance, where all are equally good."""
    generator, claims = np.random.default_rng(8), 0
    pairs = [(first, second) for first in range(policies) for second in range(first)]
    for _ in range(count):
        scores = generator.standard_normal((policies, prompts)) + generator.standard_normal(prompts)
        games = [
            pd.DataFrame({"first": a, "second": b, "prompt": range(prompts), "repetition": ""}).assign(
                outcome=(scores[a] > scores[b]).astype(float)
            )
            for a, b in pairs
        ]
        claims += (win_rates(pd.concat(games))["p_value"] < 0.05).any()
    return claims / count


def claims_of_alarms(icc: float, count: int) -> float:
    """How often the signal that keeps most gold is told apart from KL alone, where all keep as much."""
    generator, claims = np.random.default_rng(9), 0
    for _ in range(count):
        table = table_of(generator, icc, methods=5).rename(columns={"value": "kept"})
        table["signal"] = table["method"].replace({"m0": "kl"})
        given = {"verdict": "in time", "drop": 1.0, "lead_steps": 1.0, "lead_nats": 1.0}
        claims += alarm_scores(table.assign(**given))["p_value"].iloc[0] < 0.05
    return claims / count


def law(icc: float, count: int) -> dict[str, float]:
    """How often the intervals of a fitted law hold a = 1 and its peak at 4 nats, where units differ in both."""
    generator, kl = np.random.default_rng(10), np.linspace(0.3, 3, 8) ** 2
    root, inside = np.sqrt(kl), {"a": 0, "peak": 0}
    for _ in range(count):
        (a, b), worlds = units(generator, icc, methods=2)
        gain = root * ((1 + 0.2 * a[:, None]) - (0.25 + 0.03 * b[:, None]) * root)
        gain += 0.02 * generator.standard_normal(gain.shape)
        given = {"clusters": np.repeat(range(9), 8), "worlds": np.repeat(worlds, 8)}
        fit = fit_overoptimization(np.tile(kl, 9), gain.ravel(), form="best_of_n", **given)
        inside["a"] += fit.alpha.low <= 1 <= fit.alpha.high
        inside["peak"] += fit.peak is not None and fit.peak.kl.low <= 4 <= fit.peak.kl.high
    return {name: times / count for name, times in inside.items()}


@cache
def pool_of_prompts() -> np.ndarray:
    """Gold of the proxy's favourite among 1, 2, 4, .. 128 for 3000 prompts (3000, 8): it rises, then falls a little."""
    generator = np.random.default_rng(11)
    quality, tricks = generator.standard_normal((2, 3000, 256))
    bad = tricks > 1.6  # what the reward model likes and gold does not
    proxy, gold = quality + 2.5 * bad + 0.7 * generator.standard_normal(quality.shape), quality - 1.5 * bad
    return expected_of_best(proxy, 0.4 * gold + 0.5 * generator.standard_normal((3000, 1)), powers_of_two(128))


def courses() -> dict[str, np.ndarray]:
    """Populations (prompts, places) whose means rise and fall, stay flat, rise to the end, or only fall."""
    generator = np.random.default_rng(12)
    noise = 0.6 * generator.standard_normal((3000, 1)) + 0.5 * generator.standard_normal((3000, 11))
    noise -= noise.mean(axis=0)
    steps, pool = np.linspace(0, 1, 11), pool_of_prompts()
    return {
        "best of n": pool,
        "best of n, all n alike": pool - pool.mean(axis=0),
        "rises and falls": noise + 1.2 * steps - 1.4 * steps**2,
        "flat": noise,
        "rises to the end": noise + 0.5 * np.sqrt(steps),
        "only falls": noise - 0.8 * steps,
    }


def peak(course: np.ndarray, count: int, *, prompts: int = 150) -> dict[str, float]:
    """How often the intervals of `crossfit_peak` hold the highest true mean, its rise and its fall."""
    generator, inside = np.random.default_rng(13), {"height": 0, "rise": 0, "fall": 0}
    means = course.mean(axis=0)
    truth = {"height": means.max(), "rise": means.max() - means[0], "fall": means.max() - means[-1]}
    for _ in range(count):
        found = crossfit_peak(course[generator.integers(len(course), size=prompts)], {})
        for name, value in truth.items():
            inside[name] += found[name].low <= value <= found[name].high
    return {name: times / count for name, times in inside.items()}


def falls_called(course: np.ndarray, count: int, *, prompts: int = 150) -> float:
    """How often `gold_outcome` says that a run falls."""
    generator, called = np.random.default_rng(14), 0
    for _ in range(count):
        gold = course[generator.integers(len(course), size=prompts)]
        rows, steps = np.indices(gold.shape)
        path = {"row": rows.ravel(), "step": steps.ravel(), "gold": gold.ravel(), "kl": steps.ravel() * 1.0}
        called += gold_outcome(pd.DataFrame(path).assign(prompt=path["row"]))["falls"]
    return called / count


def simulations(scale: float = 1.0) -> Iterator[Row]:
    """Every row of the table, from `scale` times as many draws."""

    def row(what: str, setting: str, nominal: str, simulate: Callable, count: int, *given, **sizes) -> Row:
        count = max(20, int(scale * count))
        return Row(what, setting, nominal, float(simulate(*given, count, **sizes)), count)

    for icc in ICCS:
        for level, count in ((0.05, 4000), (0.001, 30_000)):
            yield row("p-value of a mean", f"3 x 3, ICC {icc}", f"{level}", one_mean, count, level, icc)
    for sizes in ({"worlds": 2}, {"worlds": 5, "seeds": 2}, {"worlds": 9, "seeds": 1}, {"noise": "skewed"}):
        named = ", ".join(f"{name} {value}" for name, value in sizes.items())
        yield row("p-value of a mean", f"{named}, ICC 0.5", "0.05", one_mean, 4000, 0.05, 0.5, **sizes)
    for icc in ICCS:
        yield row("interval of a mean", f"3 x 3, ICC {icc}", "0.95", interval_of_mean, 4000, icc)
    for seeds in (1, 3):
        yield row("bar over runs", f"3 x {seeds}, ICC 0.5", "0.95", bars_over_runs, 2000, 3, seeds)
    for chance, icc in ((0.5, 0.0), (0.5, 0.7), (0.8, 0.3), (0.95, 0.5)):
        yield row("interval of a share", f"{chance}, ICC {icc}", ">= 0.95", share, 2000, chance, icc)
    for icc in ICCS:
        setting = f"8 methods, 3 x 3, ICC {icc}"
        yield row("any verdict at a budget", setting, "<= 0.05", claims_at_a_budget, 300, icc, 8)
    for methods, sizes in ((3, {}), (8, {"worlds": 9, "seeds": 1}), (8, {"worlds": 20, "seeds": 1})):
        setting = f"{methods} methods, {sizes.get('worlds', 3)} x {sizes.get('seeds', 3)}, ICC 0.5"
        yield row("any verdict at a budget", setting, "<= 0.05", claims_at_a_budget, 300, 0.5, methods, **sizes)
    for icc in ICCS:
        yield row("any of 8 differences", f"3 x 3, ICC {icc}", "<= 0.05", claims_of_effects, 300, icc)
    for icc in (0.0, 0.5):
        yield row("any of 8 slopes", f"3 x 3, ICC {icc}", "<= 0.05", claims_of_slopes, 150, icc)
        yield row("best alarm against KL", f"5 signals, 3 x 3, ICC {icc}", "<= 0.05", claims_of_alarms, 200, icc)
    yield row("any pair of a league", "6 equal policies, 60 prompts", "<= 0.05", claims_of_a_league, 300, 6)
    for icc in (0.0, 0.7):
        count = max(20, int(scale * 1000))
        for name, found in law(icc, count).items():
            yield Row(f"interval of a law's {name}", f"3 x 3, ICC {icc}", "0.95", found, count)
    populations = courses()
    for name, course in populations.items():
        count = max(20, int(scale * 1500))
        for part, found in peak(course, count).items():
            yield Row(f"interval of the peak's {part}", f"{name}, 150 prompts", "0.95", found, count)
    for name in ("flat", "rises to the end"):
        yield row("called a fall", f"{name}, 150 prompts", "<= 0.05", falls_called, 300, populations[name])
    yield row("called a fall", "only falls, by 0.8", "power", falls_called, 100, populations["only falls"])


def main() -> None:
    """The table, line by line as it is found."""
    print(f"{'what':<28} {'setting':<38} {'nominal':>8}  simulated ± Monte Carlo error")
    for row in simulations():
        print(f"{row.what:<28} {row.setting:<38} {row.nominal:>8}  {row.simulated:.4f} ± {row.error:.4f}", flush=True)


if __name__ == "__main__":
    main()
