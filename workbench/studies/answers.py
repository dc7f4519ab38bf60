"""What policies said to held-out prompts, over any set of run folders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import pandas as pd

from workbench import WorkbenchError
from workbench.runs import Run
from workbench.studies.measurements import (
    DRAWN,
    SCORES,
    Gathered,
    experiment_of,
    experiments_named,
    has_table,
    is_evaluated,
    place_of,
    read_evaluation,
    read_pool,
    repetition_of,
    start_names,
    worlds_of,
)

POOL_SIZES = (4, 16, 64)  # of which n best-of-n stands among the policies


def answers(runs: Mapping[str, Run], *, temperature: float = 1.0) -> Gathered:
    """What every policy said to held-out prompts at one temperature: one row per policy, run, prompt and `nth` of it.

    Policies are experiments, the ones that they started from and, at temperature 1, the best of the first n of a pool
    by the proxy. Columns policy, run, repetition (its seed and world by name), world, judge (the reward model behind
    `proxy`), judge_id (one per set of its weights), and those of the evaluation: prompt, completion, and scores.
    """
    frames, left_out = [], []
    starts = start_names({name: run for name, run in runs.items() if is_evaluated(run, "before")})
    worlds = worlds_of(runs, starts)
    for name, source, policy in _sources(runs, starts):
        if source == "pool" and temperature != 1:
            continue
        run = runs[name]
        try:
            found = _best_of_n(run, name) if source == "pool" else [_said(run, source, policy, temperature)]
            frames += [rows.assign(world=worlds[name]) for rows in found]
        except WorkbenchError as error:
            left_out.append(str(error))
            continue
        if source != "pool" and (lost := read_evaluation(run, source).undefined):
            left_out.append(f"{place_of(run)}: {lost} rows lack a score.")
    return Gathered(pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["policy"]), left_out)


def _sources(runs: Mapping[str, Run], starts: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Run, what of it, and the policy: each start once by each reward model, and every run's own policy."""
    known = set()
    for name, run in runs.items():
        if name in starts and (starts[name], _judge(run)) not in known:
            known.add((starts[name], _judge(run)))
            yield name, "before", starts[name]
        # a start is measured by those that started from it, on their reward model
        if name not in starts.values() and is_evaluated(run, "after"):
            yield name, "after", name
        if has_table(run, "pool"):
            yield name, "pool", name


def _said(run: Run, when: str, policy: str, temperature: float) -> pd.DataFrame:
    """Answers of an evaluation; WorkbenchError where it has another form, or none at that temperature."""
    frame = read_evaluation(run, when).rows
    part = frame[frame["temperature"] == temperature]
    if part.empty:
        found = ", ".join(f"{value:g}" for value in sorted(frame["temperature"].unique()))
        raise WorkbenchError(f"{policy} was not measured at temperature {temperature:g}, only at {found}.")
    return _told(part.drop(columns=["n", *DRAWN], errors="ignore"), run, policy)


def _best_of_n(run: Run, name: str) -> Iterator[pd.DataFrame]:
    """Answers of the sample with the highest proxy among the first n of each prompt, for some n."""
    for n, best in best_of_first(read_pool(run), POOL_SIZES):
        best = best.drop(columns="prompt_index").assign(nth=best.groupby("prompt").cumcount())
        yield _told(best, run, name).assign(policy=f"{experiment_of(name)}, n = {n}", run=f"{name}, n = {n}")


def best_of_first(pool: pd.DataFrame, sizes: Iterable[int]) -> Iterator[tuple[int, pd.DataFrame]]:
    """(n, of each prompt the sample with the highest proxy among its first n), for each n of `sizes` that it holds."""
    known = pool.dropna(subset=["proxy", "completion"])
    place = known.groupby("prompt_index").cumcount()
    for n in (n for n in sizes if n <= place.max() + 1):
        yield n, known.loc[known[place < n].groupby("prompt_index")["proxy"].idxmax()]


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
    names = experiments_named(sources)
    if "ensemble" not in run.parameters:
        names, weights = names[:1], weights[:1]
    how = f" ({run.parameters['ensemble']})" if len(names) > 1 else ""
    return ", ".join(names) + how, "+".join(weights) + how if weights else sources


def side_by_side_answers(answered: pd.DataFrame, *, score: str, count: int) -> pd.DataFrame:
    """`count` of `prompts_in_turn` with the answer of every policy, by that run of it which comes first by name.

    The last prompt is where the scores differ most. Columns as in `answers`; prompts without a `score` are left out.
    """
    first = answered.groupby("policy")["run"].transform("min")
    rows = answered[(answered["run"] == first) & (answered["nth"] == 0)].dropna(subset=[score])
    rows = rows.drop_duplicates(["policy", "prompt"])
    order, scores = prompts_in_turn(rows, "policy"), rows.groupby("prompt", sort=False)[score]
    widest = (scores.max() - scores.min()).loc[order].idxmax() if order else ""
    chosen = [*[prompt for prompt in order if prompt != widest][: count - 1], widest]
    return in_order(rows, chosen)


def prompts_in_turn(rows: pd.DataFrame, who: str) -> list[str]:
    """Prompts that most of the column `who` answered, in the order of the rows, those of each `kind` by turns."""
    asked = rows.groupby("prompt", sort=False)[who].nunique()
    once = rows.drop_duplicates("prompt")
    once = once[once["prompt"].map(asked) == asked.max()]
    kinds = once["kind"].fillna("") if "kind" in once else pd.Series("", index=once.index)
    return list(once["prompt"].loc[kinds.groupby(kinds).cumcount().sort_values(kind="stable").index])


def in_order(rows: pd.DataFrame, prompts: Sequence[str]) -> pd.DataFrame:
    """The rows of these prompts, in their order, with their `place` in it."""
    place = rows["prompt"].map({prompt: number for number, prompt in enumerate(prompts)})
    return rows.assign(place=place).dropna(subset=["place"]).sort_values("place", kind="stable", ignore_index=True)


def scores_in(answered: pd.DataFrame) -> list[str]:
    """Which scores any answer has: gold, proxy, parts of gold, other reward models."""
    numbers = [column for column in answered.select_dtypes("number") if answered[column].notna().any()]
    others = [column for column in numbers if column.startswith(("gold_", "judge_"))]
    return [*[score for score in SCORES if score in numbers], *others]
