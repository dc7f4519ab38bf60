"""What policies of any set of runs said to held-out prompts, with what was measured of each answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from workbench import WorkbenchError
from workbench.runs import Run, files
from workbench.studies.frontier import SCORES, read_evaluation, reference_names, undefined_rows
from workbench.studies.run_folders import Gathered, experiment_of, has_table, repetition_of

POOL_SIZES = (4, 16, 64)  # of which n best-of-n stands among the policies


def answers(runs: Mapping[str, Run], *, temperature: float = 1.0) -> Gathered:
    """What every policy said to held-out prompts at one temperature: one row per policy, run, prompt and `nth` of it.

    Policies are experiments, the ones that they started from and, at temperature 1, the best of the first n of a pool
    by the proxy. Columns policy, run, repetition (its seed and world by name), world, judge (the reward model behind
    `proxy`), judge_id (one per set of its weights), and those of the evaluation: prompt, completion, and scores.
    """
    starts = reference_names({name: run for name, run in runs.items() if has_table(run, "evaluation_before")})
    worlds = _worlds(runs, starts)
    frames, left_out = [], []
    for name, table, policy in _sources(runs, starts):
        run = runs[name]
        if table == "pool" and temperature != 1:
            continue
        try:
            found = _best_of_n(run, name) if table == "pool" else [_at_temperature(run, table, policy, temperature)]
            frames += [rows.assign(world=worlds[name]) for rows in found]
        except WorkbenchError as error:
            left_out.append(str(error))
            continue
        if lost := undefined_rows(run, table) if table != "pool" else 0:
            left_out.append(f"{files.shown(run.dir)}/tables/{table}.jsonl: {lost} rows lack a score.")
    return Gathered(pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["policy"]), left_out)


def _sources(runs: Mapping[str, Run], starts: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Run, table and the policy that it measures: each start once by each reward model, and every run's own policy."""
    known = set()
    for name, run in runs.items():
        if name in starts and (starts[name], _judge(run)) not in known:
            known.add((starts[name], _judge(run)))
            yield name, "evaluation_before", starts[name]
        # a start is measured by those that started from it, on their reward model
        if name not in starts.values() and has_table(run, "evaluation"):
            yield name, "evaluation", name
        if has_table(run, "pool"):
            yield name, "pool", name


def _worlds(runs: Mapping[str, Run], starts: Mapping[str, str]) -> dict[str, str]:
    """The seed of each run's world: its own parameter, or that of a run with the same start; "" where none says."""
    told = {name: str(run.parameters["world_seed"]) for name, run in runs.items() if "world_seed" in run.parameters}
    of_start = {start: told[name] for name, start in starts.items() if name in told}
    return {name: told.get(name, of_start.get(starts.get(name, ""), "")) for name in runs}


def _at_temperature(run: Run, table: str, policy: str, temperature: float) -> pd.DataFrame:
    """Answers of an evaluation; WorkbenchError where it has another form, or none at that temperature."""
    frame = read_evaluation(run, table)
    part = frame[frame["temperature"] == temperature]
    if part.empty:
        measured = ", ".join(f"{value:g}" for value in sorted(frame["temperature"].unique()))
        raise WorkbenchError(f"{policy} was not measured at temperature {temperature:g}, only at {measured}.")
    return _told(part.drop(columns="temperature"), run, policy)


def _best_of_n(run: Run, name: str) -> Iterator[pd.DataFrame]:
    """Answers of the sample with the highest proxy among the first n of each prompt, for some n."""
    pool = run.table("pool")
    missing = {"prompt_index", "prompt", "completion", "proxy"} - set(pool)
    if missing:
        raise WorkbenchError(f"{files.shown(run.dir)}/tables/pool.jsonl has no column {', '.join(sorted(missing))}.")
    pool = pool.dropna(subset=["proxy", "completion"])
    place = pool.groupby("prompt_index").cumcount()
    for n in (n for n in POOL_SIZES if n <= place.max() + 1):
        among = pool[place < n]
        best = among.loc[among.groupby("prompt_index")["proxy"].idxmax()]
        best = best.drop(columns="prompt_index").assign(nth=best.groupby("prompt").cumcount())
        yield _told(best, run, name).assign(policy=f"{experiment_of(name)}, n = {n}", run=f"{name}, n = {n}")


def _told(rows: pd.DataFrame, run: Run, policy: str) -> pd.DataFrame:
    """The answers with whose they are; other reward models' scores by their names without seeds."""
    label, identity = _judge(run)
    of_run = {"policy": experiment_of(policy), "run": policy, "repetition": repetition_of(policy)}
    of_run |= {"judge": label, "judge_id": identity}
    judges = {name: experiment_of(name) for name in rows if name.startswith("judge_")}
    return rows.drop(columns=["method", "logprob"], errors="ignore").rename(columns=judges).assign(**of_run)


def _judge(run: Run) -> tuple[str, str]:
    """What the reward model behind a run's proxy is called, seeds aside, and one text per set of weights.

    Of several reward models a run with an `ensemble` uses all, another one the first.
    """
    sources = str(run.parameters.get("reward_model", ""))
    inputs = run.record.get("inputs") or {}
    weights = [entry["sha256"] for name, entry in sorted(inputs.items()) if name.startswith("reward_model")]
    names = [experiment_of(Path(source.strip()).name) for source in sources.split(",")]
    if "ensemble" not in run.parameters:
        names, weights = names[:1], weights[:1]
    how = f" ({run.parameters['ensemble']})" if len(names) > 1 else ""
    return ", ".join(names) + how, "+".join(weights) + how if weights else sources


def side_by_side_answers(answered: pd.DataFrame, *, score: str, count: int) -> pd.DataFrame:
    """`count` prompts with the answer of every policy, by that run of it which comes first by name.

    Prompts take turns by `kind`, in the order of the tables; the last one is where the scores differ most. Prompts that
    all policies answered come before others. Columns as in `answers`; prompts without a `score` are left out.
    """
    first = answered.groupby("policy")["run"].transform("min")
    rows = answered[(answered["run"] == first) & (answered["nth"] == 0)].dropna(subset=[score])
    rows = rows.drop_duplicates(["policy", "prompt"])
    by_prompt = rows.groupby("prompt", sort=False)
    shared = by_prompt["policy"].size()
    shared = shared[shared == shared.max()].index
    kinds = by_prompt["kind"].first().loc[shared].fillna("") if "kind" in rows else pd.Series("", index=shared)
    order = list(kinds.groupby(kinds).cumcount().sort_values(kind="stable").index)
    widest = (by_prompt[score].max() - by_prompt[score].min()).loc[order].idxmax() if order else ""
    chosen = [*[prompt for prompt in order if prompt != widest][: count - 1], widest]
    place = rows["prompt"].map({prompt: number for number, prompt in enumerate(chosen)})
    return rows.assign(place=place).dropna(subset=["place"]).sort_values("place", kind="stable", ignore_index=True)


def scores_in(answered: pd.DataFrame) -> list[str]:
    """Which scores any answer has: gold, proxy, parts of gold, other reward models."""
    numbers = [column for column in answered.select_dtypes("number") if answered[column].notna().any()]
    others = [column for column in numbers if column.startswith(("gold_", "judge_"))]
    return [*[score for score in SCORES if score in numbers], *others]
