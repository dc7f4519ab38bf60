"""What a KL budget buys: where each run stands once it has spent so many nats, and who is ahead there."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.best_of_n import expected_of_best, measured_best_of_n_kl
from workbench.analysis.kl import ESTIMATORS, estimator_errors, places_on_path, values_at_places
from workbench.analysis.statistics import (
    draws,
    holm,
    interval_over_units,
    mean_and_error,
    nats,
    p_value_over_units,
    student_quantile,
)
from workbench.runs import Run, names_in
from workbench.studies.answers import best_of_first, in_order, prompts_in_turn
from workbench.studies.measurements import (
    experiments_named,
    has_table,
    means_by,
    read_measured,
    read_pool,
    written_at,
)

AT_BOUND = " (bound)"  # behind the name of best-of-n where it stands at the bound on its KL
SIGNIFICANT = 0.05
MOST_NAMES = 8  # methods that a sentence lists
ROUND = (1, 1.5, 2, 3, 4, 6, 8)  # budgets per factor of ten
UNIT = ["world", "seed"]
STAGE = re.compile(r"^\d+_")
LEAST_LARGER = 1.25  # ratio of the n of best-of-n that follow one another on its path


# --- Paths in the plane of KL and reward.


def unit_of(run: Run) -> dict[str, str | int]:
    """experiment (without the number of its notebook), world and seed of a run."""
    return {**run.unit._asdict(), "experiment": STAGE.sub("", run.unit.experiment)}


def comparable_runs(runs: Iterable[Run], names: str = "") -> list[Run]:
    """Runs whose paths may be compared: the experiments in `names` (commas between), or all that share their inputs.

    With "", those that start from the model and have the reward of most runs; the first of several rewards.
    Raises WorkbenchError where none is left, or a name is not among the experiments.
    """
    found = [run for run in runs if source_of(run)]
    if names:
        wanted = names_in(names)
        known = {unit_of(run)["experiment"] for run in found}
        if set(wanted) - known:
            raise WorkbenchError(f"No runs of {sorted(set(wanted) - known)}: choose from {sorted(known)}.")
        return [run for run in found if unit_of(run)["experiment"] in wanted]
    if not found:
        raise WorkbenchError("None of these runs measured a policy: run a notebook from 06 to 08 first.")
    inputs = pd.Series([_inputs(run) for run in found])
    return [run for run, its in zip(found, inputs, strict=True) if its == inputs.mode()[0]]


def _inputs(run: Run) -> str:
    """Experiments that a run's policy and reward come from."""
    sources = [str(run.parameters.get(name, "")) for name in ("model", "reward_model")]
    several = "," in sources[1] and "ensemble" in run.parameters
    names = [experiments_named(source)[0] for source in sources]
    return " ".join([*names, "ensemble"] if several else names)


def source_of(run: Run) -> str:
    """The most telling that a run has of its policy: path or evaluation; of best-of-n pool or curve; else "".

    What was fine-tuned on a choice of samples is a policy, though it holds the pool that it was chosen from, too.
    """
    if len(means := _policy_means(run.dir, written_at(run))):
        return means["source"].iloc[0]
    return "pool" if has_table(run, "pool") else "curve" if len(read_measured(run, "best of n")) else ""


def budget_paths(runs: Iterable[Run]) -> pd.DataFrame:
    """One row per run and measured step, 0 the reference (of best-of-n: per n), in the order of training.

    Columns run, experiment, world, seed, source (see `source_of`), step, kl (nats, mean over prompts) and kl_se, of
    best-of-n also kl_bound, the mean of every score that was measured, completions, left_out (those with NaN).
    """
    tables = []
    for run in runs:
        if source := source_of(run):
            path = _best_of_n_path(run) if source in ("pool", "curve") else _policy_means(run.dir, written_at(run))
            tables.append(path.assign(run=run.name, **unit_of(run), source=source))
    if not tables:
        raise WorkbenchError("None of these runs measured a policy: run a notebook from 06 to 08 first.")
    paths = pd.concat(tables, ignore_index=True).dropna(subset="kl")
    first = ["run", "experiment", "world", "seed", "source", "step", "kl"]
    return paths[[*first, *(column for column in paths if column not in first)]]


def score_columns(frame: pd.DataFrame) -> list[str]:
    """The scores that were measured: gold, proxy, then the components of gold."""
    names = [name for name in frame if str(name).startswith("gold_") and not name.endswith(("_low", "_high", "_se"))]
    names = [name for name in names if pd.api.types.is_numeric_dtype(frame[name])]  # not what a prompt calls gold_text
    return [name for name in ("gold", "proxy", *names) if name in frame and frame[name].notna().any()]


@lru_cache(maxsize=512)
def _policy_means(folder: Path, _stamps: tuple) -> pd.DataFrame:
    """Means over the completions of each step, of the path or, where none was kept, of both evaluations.

    A score of which some are NaN takes those completions with it.
    """
    run = Run.read(folder)
    source, table = "path", read_measured(run, "path")
    if table.empty:
        source, table = "evaluation", read_measured(run, "evaluation")
        ends = table[table["temperature"] == 1] if "temperature" in table else table.iloc[:0]
        ends = ends.reindex(columns=list(dict.fromkeys([*ends, "kl"])))  # perhaps nobody measured it
        table = ends.assign(kl=ends["kl"].where(ends["step"] > 0, 0.0)) if ends["step"].nunique() > 1 else ends.iloc[:0]
    scores, rows = score_columns(table), []
    for step, part in table.groupby("step"):
        known = part.dropna(subset=["kl", *(name for name in scores if part[name].notna().any())])
        if len(known):
            counts = {"completions": len(known), "left_out": len(part) - len(known), "source": source}
            kl, kl_se = map(float, mean_and_error(known["kl"]))
            rows.append({"step": step, "kl": kl, "kl_se": kl_se, **known[scores].mean(), **counts})
    return pd.DataFrame(rows)


def _best_of_n_path(run: Run) -> pd.DataFrame:
    """Best-of-n from a pool, with the KL that it measures; at the bound on its KL where the pool does not tell it."""
    pool = read_pool(run) if has_table(run, "pool") else pd.DataFrame()
    if "logprob" not in pool:
        curve = read_measured(run, "best of n").drop(columns="step").rename(columns={"n": "step"})
        return curve[["step", "kl", *score_columns(curve)]].assign(kl_bound=curve["kl"], left_out=0)
    scores = score_columns(pool)
    bad = pool.loc[pool[["logprob", *scores]].isna().any(axis=1), "prompt_index"]
    whole = pool[~pool["prompt_index"].isin(bad)]  # all of a prompt's pool: what is left would be another policy's
    size = whole.groupby("prompt_index").size().min()
    matrices = {name: _matrix(whole, name, size) for name in ("logprob", *scores)}
    texts = _matrix(whole.assign(text=marked_texts(whole)), "text", size)
    ns = sizes_up_to(size)
    path = measured_best_of_n_kl(matrices["proxy"], matrices["logprob"], texts, ns).rename(columns={"n": "step"})
    for name in scores:
        path[name] = expected_of_best(matrices["proxy"], matrices[name], ns).mean(axis=0)
    return path.assign(completions=texts.size, left_out=len(pool) - len(whole))


def marked_texts(pool: pd.DataFrame) -> pd.Series:
    """What the completions of a pool say, those that were cut marked: cut or ended are two different events.

    A pool that does not say which were cut is taken as it is.
    """
    if "finished" not in pool:
        return pool["completion"]
    return pool["completion"] + pool["finished"].map({True: "", False: " …"})


def _matrix(pool: pd.DataFrame, column: str, size: int) -> np.ndarray:
    return np.stack([part.to_numpy()[:size] for _, part in pool.groupby("prompt_index")[column]])


def sizes_up_to(largest: int) -> list[int]:
    """1, 2, 3, 4, 5, 7, ...: each n at least `LEAST_LARGER` times the one before, up to `largest`, the last."""
    sizes = [1]
    while sizes[-1] < largest:
        sizes.append(min(largest, max(sizes[-1] + 1, round(LEAST_LARGER * sizes[-1]))))
    return sizes


# --- Where runs stand at a budget.


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
    """`means_by` experiment and budget of every score, and how many runs have `reached` it."""
    by = ["experiment", "budget"]
    means, reached = means_by(landings, by, score_columns(landings)), landings.groupby(by, sort=False)["reached"].sum()
    means.insert(3, "reached", reached.to_numpy(dtype=int))
    return means


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
    ends = paths.groupby("run", sort=False).tail(1).sort_values("experiment", kind="stable")
    return means_by(ends, ["experiment"], ["kl", *score_columns(paths)])


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


# --- What lies behind a place on a path: the completions there, the positions at which KL is spent, and its price.


SHOWN = ["experiment", "step", "prompt", "kind", "completion", "kl"]


def samples_of_unit(runs: Iterable[Run], *, world: int, seed: int) -> pd.DataFrame:
    """The completions along the paths of one world and seed: experiment, step, prompt, kind, completion, kl, scores.

    From each run's path; of best-of-n, step n has the proxy's favourite among the first n of the pool, its kl
    NaN. Runs that kept neither have none. WorkbenchError where nothing is left.
    """
    tables = []
    for run in runs:
        if run.unit[1:] == (world, seed):
            kept = _favourites(run) if source_of(run) == "pool" else read_measured(run, "path")
            tables += [kept.assign(experiment=unit_of(run)["experiment"])] if len(kept) else []
    if not tables:
        raise WorkbenchError(f"No run of world {world}, seed {seed} kept its completions: there are none to show.")
    samples = pd.concat(tables, ignore_index=True)
    return samples[[name for name in (*SHOWN, *score_columns(samples)) if name in samples]]


def _favourites(run: Run) -> pd.DataFrame:
    pool = read_pool(run)
    sizes = sizes_up_to(int(pool.groupby("prompt_index").size().max()))
    return pd.concat([best.assign(step=n, kl=np.nan) for n, best in best_of_first(pool, sizes)])


def texts_at(runs: Iterable[Run], landings: pd.DataFrame, *, count: int = 4) -> pd.DataFrame:
    """`side_by_side_at` of the unit that `landings` are of, read from its runs; an empty table where none was kept."""
    units = landings[["world", "seed"]].drop_duplicates().to_dict("records")
    try:
        return side_by_side_at(samples_of_unit(runs, **units[0]), landings, count=count) if units else pd.DataFrame()
    except WorkbenchError:
        return pd.DataFrame()


def side_by_side_at(samples: pd.DataFrame, landings: pd.DataFrame, *, count: int = 4) -> pd.DataFrame:
    """The same held-out prompts through every method at the step measured nearest to a budget: one row each.

    `landings` are the rows of `at_budget` for one unit; methods that never get there are left out.
    Prompts come one of each `kind` first, those that most methods answered before others.
    """
    steps = landings.dropna(subset="step").drop_duplicates(["experiment", "budget"])
    here = samples.merge(steps[["experiment", "budget", "step"]], on=["experiment", "step"])
    if here.empty:
        raise WorkbenchError("No method spends that much in this world and seed: there are no completions to show.")
    here = here.drop_duplicates(["budget", "experiment", "prompt"])
    return in_order(here, prompts_in_turn(here, "experiment")[:count]).sort_values("budget", kind="stable")


def positions_at(runs: Iterable[Run], landings: pd.DataFrame) -> pd.DataFrame:
    """KL per token position at the measured step nearest to a budget: experiment, kind, position, kl, low, high, runs.

    `landings` are the rows of `at_budget` for one budget. kl is nats per completion of that kind, the mean over runs,
    with its 95% interval; over positions it adds up to the kind's mean KL. Runs without the table are left out.
    """
    tables, steps = [], landings.dropna(subset="step").set_index("run")
    for run in runs:
        if run.name in steps.index and run.path("tables/kl_positions.jsonl").exists():
            table = run.table("kl_positions")
            here = table[table["step"] == steps.loc[run.name, "step"]]
            tables.append(here.assign(run=run.name, **unit_of(run)))
    if not tables:
        raise WorkbenchError("None of these runs kept its KL by position at that budget.")
    spent, rows = pd.concat(tables, ignore_index=True), []
    for (experiment, kind), part in spent.groupby(["experiment", "kind"], sort=False):
        # a run whose completions had all ended spent nothing there, which is no missing value
        table = part.pivot_table(index=["run", "world"], columns="position", values="kl", fill_value=0.0)
        for position in table:
            kl, low, high = interval_over_units(table[position], table.index.get_level_values("world"))
            found = {"kl": kl, "low": low, "high": high, "runs": len(table)}
            rows.append({"experiment": experiment, "kind": kind, "position": int(position), **found})
    return pd.DataFrame(rows)


def training_over_units(runs: Iterable[Run], columns: Sequence[str], *, window: int = 5) -> pd.DataFrame:
    """Training metrics of each experiment, the mean over its runs per step: experiment, step, runs, and of `columns`
    that were written the mean, `_low` and `_high`, of running means over `window` steps.
    """
    tables = []
    for run in runs:
        metrics = run.metrics()
        found = [column for column in columns if column in metrics]
        if len(metrics) and found:
            smooth = metrics[found].rolling(window, min_periods=1).mean()
            tables.append(smooth.assign(step=metrics["step"], **unit_of(run)))
    if not tables:
        raise WorkbenchError(f"None of these runs wrote any of {list(columns)} while it trained.")
    frame = pd.concat(tables, ignore_index=True)
    return means_by(frame, ["experiment", "step"], [column for column in columns if column in frame])


def estimators_along(runs: Iterable[Run]) -> pd.DataFrame:
    """`estimator_errors` at each measured step of the paths of `runs` put together, the start left out.

    Completions are the draws: given the policies, each is a sample of its own. WorkbenchError without estimates.
    """
    tables = [read_measured(run, "path") for run in runs]
    tables = [table[table["step"] > 0] for table in tables if set(ESTIMATORS.values()) <= set(table)]
    if not tables:
        raise WorkbenchError("None of these runs kept k1 and k3 beside the exact KL of its completions.")
    parts = pd.concat(tables).groupby("step")
    return pd.concat([estimator_errors(part).assign(step=step) for step, part in parts], ignore_index=True)
