"""The paths of runs in the plane of KL and reward, whatever table each of them kept of its policy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.best_of_n import best_of_n_curve, measured_best_of_n_kl
from workbench.analysis.statistics import interval_over_units, mean_and_error
from workbench.runs import Run

UNIT = re.compile(r"(?:[-_]world(?P<world>\d+))?(?:[-_]seed(?P<seed>\d+))?$")
STAGE = re.compile(r"^\d+_")
LEAST_LARGER = 1.25  # ratio of the n of best-of-n that follow one another on its path
HELD_OUT = {"step": "step", "held_out_kl": "kl", "held_out_reward": "proxy", "held_out_gold": "gold"}


def unit_of(run: Run) -> dict[str, str | int]:
    """experiment, world and seed of a run, from a name such as 06_ppo_kl0_world1_seed2, else from its parameters."""
    ending = UNIT.search(run.name)
    world = ending["world"] or run.parameters.get("world_seed", 0)
    seed = ending["seed"] or run.parameters.get("seed", 0)
    return {"experiment": STAGE.sub("", run.name[: ending.start()]), "world": int(world), "seed": int(seed)}


def comparable_runs(runs: Iterable[Run], names: str = "") -> list[Run]:
    """Runs whose paths may be compared: the experiments in `names` (commas between), or all that share their inputs.

    With "", those that start from the model and have the reward of most runs; the first of several rewards.
    Raises WorkbenchError where none is left, or a name is not among the experiments.
    """
    measured = [run for run in runs if source_of(run)]
    if names:
        wanted = [name.strip() for name in names.split(",")]
        known = {unit_of(run)["experiment"] for run in measured}
        if set(wanted) - known:
            raise WorkbenchError(f"No runs of {sorted(set(wanted) - known)}: choose from {sorted(known)}.")
        return [run for run in measured if unit_of(run)["experiment"] in wanted]
    if not measured:
        raise WorkbenchError("None of these runs measured a policy: run a notebook from 06 to 08 first.")
    inputs = pd.Series([_inputs(run) for run in measured])
    return [run for run, its in zip(measured, inputs, strict=True) if its == inputs.mode()[0]]


def _inputs(run: Run) -> str:
    """Experiments that a run's policy and reward come from."""
    sources = [str(run.parameters.get(name, "")) for name in ("model", "reward_model")]
    several = "," in sources[1] and "ensemble" in run.parameters
    names = [UNIT.sub("", source.split(",")[0].rstrip("/").rsplit("/", 1)[-1]) for source in sources]
    return " ".join([*names, "ensemble"] if several else names)


def source_of(run: Run) -> str:
    """The most telling that a run has of its policy: path, metrics or evaluation; of best-of-n pool or curve; else "".

    What was fine-tuned on a choice of samples is a policy, though it holds the pool that it was chosen from, too.
    """
    found = {path.stem for path in run.path("tables").glob("*.jsonl")}
    if "path" in found:
        return "path"
    if {"evaluation", "evaluation_before"} <= found:
        return "metrics" if "held_out_kl" in run.metrics() else "evaluation"
    return next((name for name in ("pool", "curve") if name in found), "")


def budget_paths(runs: Iterable[Run]) -> pd.DataFrame:
    """One row per run and measured step, 0 the reference (of best-of-n: per n), in the order of training.

    Columns run, experiment, world, seed, source (see `source_of`), step, kl (nats, mean over prompts) and kl_se, of
    best-of-n also kl_bound, the mean of every score that was measured, completions, left_out (those with NaN).
    """
    tables = []
    for run in runs:
        source = source_of(run)
        if source:
            path = READERS[source](run)
            tables.append(path.assign(run=run.name, **unit_of(run), source=source))
    if not tables:
        raise WorkbenchError("None of these runs measured a policy: run a notebook from 06 to 08 first.")
    paths = pd.concat(tables, ignore_index=True).dropna(subset="kl")
    first = ["run", "experiment", "world", "seed", "source", "step", "kl"]
    return paths[[*first, *(column for column in paths if column not in first)]]


def score_columns(frame: pd.DataFrame) -> list[str]:
    """The scores that were measured: gold, proxy, then the components of gold."""
    names = [name for name in frame if str(name).startswith("gold_") and not name.endswith(("_low", "_high", "_se"))]
    return [name for name in ("gold", "proxy", *names) if name in frame and frame[name].notna().any()]


def means_over_runs(runs: pd.DataFrame, columns: Sequence[str]) -> dict[str, float]:
    """Mean of each column over runs, with the ends of its interval as `_low` and `_high`."""
    means, worlds = {}, runs["world"].to_numpy()
    for column in columns:
        values = runs[column].to_numpy(dtype=float)
        known = ~np.isnan(values)
        ends = interval_over_units(values[known], worlds[known]) if known.any() else (np.nan,) * 3
        means |= dict(zip((column, f"{column}_low", f"{column}_high"), ends, strict=True))
    return means


def _means(table: pd.DataFrame) -> pd.DataFrame:
    """Means over the completions of each step; a score of which some are NaN takes those completions with it."""
    scores, rows = score_columns(table), []
    for step, part in table.groupby("step"):
        known = part.dropna(subset=["kl", *(name for name in scores if part[name].notna().any())])
        if len(known) == 0:
            continue
        counts = {"completions": len(known), "left_out": len(part) - len(known)}
        kl, kl_se = map(float, mean_and_error(known["kl"]))
        rows.append({"step": step, "kl": kl, "kl_se": kl_se, **known[scores].mean(), **counts})
    return pd.DataFrame(rows, columns=None if rows else ["step", "kl"])


def _recorded(run: Run) -> pd.DataFrame:
    return _means(run.table("path"))


def _evaluated(run: Run) -> pd.DataFrame:
    """The reference, at KL 0 from itself, and the policy at the end, as a path of two points."""
    before, after = (run.table(name).query("temperature == 1") for name in ("evaluation_before", "evaluation"))
    last = run.metrics()["step"].max() if len(run.metrics()) else 1
    return _means(pd.concat([before.assign(step=0, kl=0.0), after.assign(step=last)]))


def _held_out(run: Run) -> pd.DataFrame:
    """What training measured on held-out prompts, after the reference: means alone, without components of gold."""
    metrics = run.metrics()
    columns = {column: name for column, name in HELD_OUT.items() if column in metrics}
    measured = metrics[list(columns)].rename(columns=columns).dropna(subset="kl").assign(left_out=0)
    return pd.concat([_evaluated(run).head(1), measured], ignore_index=True)


def _bounded(run: Run) -> pd.DataFrame:
    """Best-of-n where the pool was not kept: its KL is the bound."""
    curve = run.table("curve")
    columns = [name for name in ("n", "kl", "proxy", "gold") if name in curve]
    return curve[columns].rename(columns={"n": "step"}).assign(kl_bound=curve["kl"], left_out=0)


def _pooled(run: Run) -> pd.DataFrame:
    """Best-of-n from a pool, with the KL that it measures."""
    pool = run.table("pool")
    if "logprob" not in pool:
        return _bounded(run)
    scores = score_columns(pool)
    bad = pool.loc[pool[["logprob", *scores]].isna().any(axis=1), "prompt_index"]
    left_out = len(pool)
    pool = pool[~pool["prompt_index"].isin(bad)]  # all of a prompt's pool: what is left would be another policy's
    left_out -= len(pool)
    size = pool.groupby("prompt_index").size().min()
    matrices = {name: _matrix(pool, name, size) for name in ("logprob", *scores)}
    texts = _matrix(pool.assign(text=marked_texts(pool)), "text", size)
    ns = sizes_up_to(size)
    path = measured_best_of_n_kl(matrices["proxy"], matrices["logprob"], texts, ns).rename(columns={"n": "step"})
    for name in scores:
        gold = None if name == "proxy" else matrices[name]
        path[name] = best_of_n_curve(matrices["proxy"], gold, ns)["proxy" if gold is None else "gold"]
    return path.assign(completions=texts.size, left_out=left_out)


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


READERS = {"path": _recorded, "pool": _pooled, "curve": _bounded, "metrics": _held_out, "evaluation": _evaluated}
