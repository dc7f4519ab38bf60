"""What lies behind a place on a path: the completions there, the positions at which KL is spent, and its price."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.kl import ESTIMATORS, estimator_errors
from workbench.analysis.statistics import interval_over_units
from workbench.runs import Run
from workbench.studies.measured_paths import means_over_runs, score_columns, sizes_up_to, source_of, unit_of

SHOWN = ["experiment", "step", "prompt", "kind", "completion", "kl"]


def samples_of_unit(runs: Iterable[Run], *, world: int, seed: int) -> pd.DataFrame:
    """The completions along the paths of one world and seed: experiment, step, prompt, kind, completion, kl, scores.

    From each run's table `path`; of best-of-n, step n has the proxy's favourite among the first n of the pool, its kl
    NaN. Runs that kept neither have none. WorkbenchError where nothing is left.
    """
    tables = []
    for run in runs:
        unit = unit_of(run)
        if (unit["world"], unit["seed"]) == (world, seed):
            source = source_of(run)
            if source in ("path", "pool"):
                kept = run.table("path") if source == "path" else _favourites(run)
                tables.append(kept.assign(experiment=unit["experiment"]))
    if not tables:
        raise WorkbenchError(f"No run of world {world}, seed {seed} kept its completions: there are none to show.")
    samples = pd.concat(tables, ignore_index=True)
    return samples[[name for name in (*SHOWN, *score_columns(samples)) if name in samples]]


def _favourites(run: Run) -> pd.DataFrame:
    pool = run.table("pool").dropna(subset="proxy")
    place = pool.groupby("prompt_index").cumcount()
    tables = []
    for n in sizes_up_to(int(place.max()) + 1):
        best = pool[place < n].groupby("prompt_index")["proxy"].idxmax()
        tables.append(pool.loc[best].assign(step=n, kl=np.nan))
    return pd.concat(tables)


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
    asked = here.groupby("prompt", sort=False)["experiment"].nunique()
    common = here[here["prompt"].map(asked) == asked.max()].drop_duplicates("prompt")
    if "kind" in common:
        common = common.loc[common.groupby("kind").cumcount().sort_values(kind="stable").index]
    chosen = list(common["prompt"].head(count))
    shown = here[here["prompt"].isin(chosen)]
    place = shown["prompt"].map(chosen.index)
    return shown.assign(place=place).sort_values(["budget", "place"], kind="stable").drop(columns="place")


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
    rows, frame = [], pd.concat(tables, ignore_index=True)
    for (experiment, step), part in frame.groupby(["experiment", "step"], sort=False):
        means = means_over_runs(part, [column for column in columns if column in frame])
        rows.append({"experiment": experiment, "step": step, "runs": len(part), **means})
    return pd.DataFrame(rows)


def estimators_along(runs: Iterable[Run]) -> pd.DataFrame:
    """`estimator_errors` at each measured step of the paths of `runs` put together, the start left out.

    Completions are the draws: given the policies, each is a sample of its own. WorkbenchError without estimates.
    """
    tables = [run.table("path") for run in runs if run.path("tables/path.jsonl").exists()]
    tables = [table[table["step"] > 0] for table in tables if set(ESTIMATORS.values()) <= set(table)]
    if not tables:
        raise WorkbenchError("None of these runs kept k1 and k3 beside the exact KL of its completions.")
    parts = pd.concat(tables).groupby("step")
    return pd.concat([estimator_errors(part).assign(step=step) for step, part in parts], ignore_index=True)
