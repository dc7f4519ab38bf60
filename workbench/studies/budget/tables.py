"""What a KL budget buys: where each run stands once it has spent so many nats, and who is ahead there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.kl import places_on_path, values_at_places
from workbench.analysis.statistics import draws, holm, interval_over_units, nats, p_value_over_units, student_quantile
from workbench.studies.measured_paths import means_over_runs, score_columns

AT_BOUND = " (bound)"  # behind the name of best-of-n where it stands at the bound on its KL
SIGNIFICANT = 0.05
MOST_NAMES = 8  # methods that a sentence lists
ROUND = (1, 1.5, 2, 3, 4, 6, 8)  # budgets per factor of ten
UNIT = ["world", "seed"]


def at_budget(paths: pd.DataFrame, budgets: Sequence[float]) -> pd.DataFrame:
    """Where each run of `budget_paths` first spends each of `budgets` (nats): one row per run and budget.

    Columns run, experiment, world, seed, budget, reached, step (the measured one nearest to it), and every score, by
    linear interpolation in √KL between the measured points on both sides; NaN where a run never spends that much.
    WorkbenchError for budgets that are not above 0.
    """
    budgets = np.asarray(budgets, dtype=float)
    if len(budgets) == 0 or not (budgets > 0).all():
        raise WorkbenchError(f"The budgets are {budgets.tolist()}: give KL in nats above 0, such as 1,2,4,8.")
    scores, parts, names = score_columns(paths), [], []
    for _, path in paths.groupby("run", sort=False):
        places = places_on_path(path["kl"], budgets)
        nearest = path["step"].to_numpy(dtype=float)[np.rint(np.nan_to_num(places)).astype(int)]
        steps = np.where(np.isnan(places), np.nan, nearest)
        parts.append(np.column_stack([budgets, steps, values_at_places(path[scores], places)]))
        names += [path.iloc[0]] * len(budgets)
    landed = pd.DataFrame(np.concatenate(parts), columns=["budget", "step", *scores])
    landed.insert(1, "reached", landed["step"].notna())
    whose = pd.DataFrame({name: [row[name] for row in names] for name in ("run", "experiment", *UNIT)})
    return pd.concat([whose, landed], axis=1)


def within_budget(paths: pd.DataFrame, budgets: Sequence[float]) -> pd.DataFrame:
    """The last measured policy of each run that costs at most each of `budgets` (nats): columns of `at_budget` and kl.

    A run that stays at its budget goes on learning there, which its first passage does not show. The last one is not
    chosen by its score, so no maximum flatters it. `reached` is False where even the first point costs more.
    """
    scores, rows = score_columns(paths), []
    for _, path in paths.groupby("run", sort=False):
        for budget in map(float, budgets):
            last = path[path["kl"] <= budget].tail(1)
            row = {**path.iloc[0][["run", "experiment", *UNIT]], "budget": budget, "reached": len(last) > 0}
            rows.append(row | (last.iloc[0][["step", "kl", *scores]].to_dict() if len(last) else {}))
    return pd.DataFrame(rows)


def round_budgets(paths: pd.DataFrame, *, most: int = 16) -> list[float]:
    """At most `most` round budgets (nats), 1, 1.5, 2, 3, 4, 6, 8, 10, ..., the largest that any run spends, rising."""
    furthest = paths["kl"].max()
    if not furthest > 0:
        raise WorkbenchError("None of these runs ever left the policy it started from: there is no KL to spend.")
    top = math.floor(math.log10(furthest))
    values = [step * 10.0**power for power in range(top - most, top + 1) for step in ROUND]
    return [float(f"{value:.3g}") for value in values if value <= furthest][-most:]


def over_units(landings: pd.DataFrame) -> pd.DataFrame:
    """Means over the runs of each experiment at each budget: experiment, budget, runs, reached, and of every score the
    mean, `_low` and `_high`: 95% over runs, NaN where a single one is known, with worlds as in `interval_over_units`.
    """
    scores, rows = score_columns(landings), []
    for (experiment, budget), part in landings.groupby(["experiment", "budget"], sort=False):
        counts = {"runs": len(part), "reached": int(part["reached"].sum())}
        rows.append({"experiment": experiment, "budget": budget, **counts, **means_over_runs(part, scores)})
    return pd.DataFrame(rows)


def mean_paths(paths: pd.DataFrame, *, points: int = 30) -> pd.DataFrame:
    """`over_units` along the way: the mean of each experiment's runs at equal KL, up to where the first of them ends.

    Columns experiment, kl (nats, evenly spaced in √KL, 0 the reference), runs, measured (the fewest points that a run
    was measured at: with 2, all between is a straight line), and the scores with `_low` and `_high`.
    """
    tables = []
    for _, part in paths.groupby("experiment", sort=False):
        furthest = part.groupby("run")["kl"].max().min()
        grid = np.linspace(0, np.sqrt(max(furthest, 1e-6)), points)[1:] ** 2
        starts = part.groupby("run", sort=False).head(1).assign(budget=0.0, reached=True)
        means = over_units(pd.concat([starts, at_budget(part, grid)], ignore_index=True))
        fewest = part.groupby("run").size().min()
        tables.append(means.rename(columns={"budget": "kl"}).drop(columns="reached").assign(measured=fewest))
    return pd.concat(tables, ignore_index=True)


def mean_ends(paths: pd.DataFrame) -> pd.DataFrame:
    """Where the runs of each experiment end, on average: experiment, runs, and kl and every score with its interval."""
    ends, columns = paths.groupby("run", sort=False).tail(1), ["kl", *score_columns(paths)]
    parts = ends.groupby("experiment", sort=False)
    rows = [{"experiment": name, "runs": len(part), **means_over_runs(part, columns)} for name, part in parts]
    return pd.DataFrame(rows)


def with_bound(paths: pd.DataFrame) -> pd.DataFrame:
    """`paths` with best-of-n a second time, as an experiment of its own at the bound on its KL, if both are known."""
    if "kl_bound" not in paths:
        return paths
    pools = paths[paths["source"] == "pool"]
    names = {"run": pools["run"] + AT_BOUND, "experiment": pools["experiment"] + AT_BOUND}
    return pd.concat([paths, pools.assign(kl=pools["kl_bound"], **names)], ignore_index=True)


def compared_at_budget(landings: pd.DataFrame, score: str) -> pd.DataFrame:
    """Every experiment against the highest at each budget of `at_budget`, by `score`, on the units that both have.

    Columns budget, experiment, runs, reached, value, low, high and the means of the other scores; behind, behind_low,
    behind_high, the mean paired difference from the highest with an interval (95% for all pairs of experiments at a
    budget at once, so that it holds though the data chose the highest); p_value (two-sided, Holm 1979 over all pairs);
    needed, the standard errors by which the first of these pairs must differ; verdict "highest", "behind" or "not told
    apart" at 5%, "one run" without a spread, "reached too seldom", "does not reach". Only experiments that reach the
    budget in more than half of their runs can be the highest; another, on the units where it does, may be "ahead".
    """
    tables = [_against_highest(part, score).assign(budget=budget) for budget, part in landings.groupby("budget")]
    table = pd.concat(tables, ignore_index=True)
    return table[["budget", *(column for column in table if column != "budget")]]


def _against_highest(landings: pd.DataFrame, score: str) -> pd.DataFrame:
    """The rows of one budget, highest first."""
    others = [name for name in score_columns(landings) if name != score]
    means = over_units(landings).rename(columns={score: "value", f"{score}_low": "low", f"{score}_high": "high"})
    table = means.reindex(columns=["experiment", "runs", "reached", "value", "low", "high", *others])
    able = table[2 * table["reached"] > table["runs"]]
    highest = able.loc[able["value"].idxmax(), "experiment"] if able["value"].notna().any() else ""
    values = landings.pivot_table(index=UNIT, columns="experiment", values=score, dropna=False)
    pairs = {pair: _behind(values, *pair) for pair in combinations(sorted(values), 2)}
    alone = [p_value_over_units(*each) if len(each[0]) else np.nan for each in pairs.values()]
    together = dict(zip(pairs, holm(alone), strict=True))
    drawn = [len(draws(*each)) for each, p_value in zip(pairs.values(), alone, strict=True) if np.isfinite(p_value)]
    tests = max(1, len(drawn))
    rows = []
    for name in table["experiment"]:
        found, pair = _behind(values, highest, name), (min(highest, name), max(highest, name))
        ends = interval_over_units(*found, level=1 - SIGNIFICANT / tests) if len(found[0]) else (np.nan,) * 3
        rows.append((*ends, together.get(pair, np.nan)))
    table[["behind", "behind_low", "behind_high", "p_value"]] = rows
    table["needed"] = student_quantile(1 - SIGNIFICANT / 2 / tests, max(drawn) - 1) if drawn else np.nan
    table["verdict"] = [_verdict(row, highest) for row in table.to_dict("records")]
    return table.sort_values("value", ascending=False, ignore_index=True)


def _behind(values: pd.DataFrame, first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    """How far `second` is behind `first` in each unit where both have a value, and the worlds of these units."""
    known = first != second and {first, second} <= set(values)
    behind = (values[first] - values[second]).dropna() if known else values.iloc[:0].sum(axis=1)
    return behind.to_numpy(), behind.index.get_level_values("world").to_numpy()


def _verdict(row: dict, highest: str) -> str:
    if row["reached"] == 0:
        return "does not reach"
    if row["experiment"] == highest:
        return "highest"
    if np.isnan(row["behind"]):
        return "reached too seldom"
    if np.isnan(row["p_value"]):
        return "one run"
    if row["p_value"] >= SIGNIFICANT:
        return "not told apart"
    return "behind" if row["behind"] > 0 else "ahead"


def budget_sentences(comparison: pd.DataFrame, score: str) -> list[str]:
    """`compared_at_budget` in words, a sentence per budget: who is highest, and who is, or not, told apart from it."""
    return [_sentence(budget, part, score) for budget, part in comparison.groupby("budget")]


def _sentence(budget: float, rows: pd.DataFrame, score: str) -> str:
    highest = rows[rows["verdict"] == "highest"]
    if highest.empty:
        return f"At {nats(budget)}: no method gets there in most of its runs."
    highest = highest.iloc[0]
    text = f"At {nats(budget)}: {highest['experiment']} has the most {score}, {highest['value']:.2f}"
    for verdict, words in (("behind", "less"), ("not told apart", "not told apart"), ("does not reach", "never there")):
        names = rows.loc[rows["verdict"] == verdict, "experiment"]
        said = ", ".join(names) if len(names) <= MOST_NAMES else f"{len(names)} others"
        text += f"; {words}: {said}" if len(names) else ""
    needed = rows["needed"].iloc[0]
    if np.isnan(needed):
        return f"{text}; one run of each, so no interval." if "one run" in set(rows["verdict"]) else f"{text}."
    return f"{text}. (Of all pairs there the first must differ by {needed:.1f} standard errors to be told apart.)"
