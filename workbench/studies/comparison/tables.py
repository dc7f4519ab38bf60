"""Tables over any set of runs: what each holds, and its metrics over seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.statistics import holm, mean_and_error, mean_over_units, p_value_over_units
from workbench.feedback.strengths import bradley_terry
from workbench.plots.theme import smoothed
from workbench.records import scores_of
from workbench.runs import Run
from workbench.studies.measurements import (
    SCORES,
    UNFINISHED,
    FoundRuns,
    Gathered,
    best_of_n_curves,
    by_experiment,
    experiment_of,
    experiments_named,
    worlds_of,
)

SMOOTHED = 15  # steps
WHOSE = ("run", "experiment", "world")
LISTED = 8  # names that a sentence lists before it counts the rest
FIRST_METRICS = ("held_out_gold", "gold", "held_out_reward", "reward", "held_out_kl", "kl", "held_out_loss", "loss")


def metric_rows(runs: Mapping[str, Run]) -> Gathered:
    """One row per run and step: run, experiment, world, step, and a column for every number that any run has measured.

    Undefined numbers are NaN. A run without metrics has no rows.
    """
    frames, left_out, worlds = [], [], worlds_of(runs, {})
    for name, run in runs.items():
        try:
            table = run.metrics()
        except WorkbenchError as error:
            left_out.append(str(error))
            continue
        if table.empty or "step" not in table:
            continue
        numbers = table.select_dtypes("number").replace([np.inf, -np.inf], np.nan)
        numbers = numbers.dropna(subset=["step"]).drop_duplicates("step", keep="last")
        frames.append(numbers.assign(run=name, experiment=experiment_of(name), world=worlds[name]))
    rows = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*WHOSE, "step"])
    return Gathered(rows, left_out)


def metrics_in(rows: pd.DataFrame) -> list[str]:
    """Names of what was measured, rewards, KL and loss first, then by how many runs measured it."""
    others = [column for column in rows if column not in (*WHOSE, "step") and rows[column].notna().any()]
    spread = {column: rows.loc[rows[column].notna(), "run"].nunique() for column in others}
    place = {name: number for number, name in enumerate(FIRST_METRICS)}
    return sorted(others, key=lambda column: (place.get(column, len(place)), -spread[column], column))


def metric_curve(rows: pd.DataFrame, metric: str, *, window: int = SMOOTHED) -> pd.DataFrame:
    """One metric of `metric_rows` over the runs of each experiment: experiment, step, value, value_se, freedom, runs.

    Each run is a running mean over `window` steps where it is long; the mean over runs covers the steps that all have.
    Runs of one experiment without common steps stay apart, as do single ones, whose error is NaN.
    """
    curves = []
    for experiment, part in rows.dropna(subset=[metric]).groupby("experiment", sort=False):
        lines = {run: smoothed(one.set_index("step")[metric], window) for run, one in part.groupby("run", sort=False)}
        together = pd.DataFrame(lines).dropna()
        if len(lines) == 1 or together.empty:
            for name, line in lines.items():
                curves.append(_curve(name if len(lines) > 1 else experiment, line.index, line, np.nan, 1))
        else:
            worlds = part.groupby("run")["world"].first().loc[list(together)]
            mean, error, freedom = mean_over_units(together.T.to_numpy(), worlds)
            curves.append(_curve(experiment, together.index, mean, error, len(lines)).assign(freedom=freedom))
    columns = ["experiment", "step", "value", "value_se", "freedom", "runs"]
    return pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(columns=columns)


def _curve(name: str, steps, values, errors, runs: int) -> pd.DataFrame:
    columns = {"step": np.asarray(steps), "value": np.asarray(values), "value_se": errors, "runs": runs}
    return pd.DataFrame({"experiment": name, **columns})


def overview(runs: Mapping[str, Run], metrics: pd.DataFrame, answered: pd.DataFrame) -> pd.DataFrame:
    """One row per experiment: its runs, status, last step, what was measured of its policy, and minutes of all runs.

    `metrics` and `answered` are the rows of `metric_rows` and `answers`.
    """
    steps = metrics.groupby("experiment")["step"].max() if len(metrics) else {}
    rows = []
    for experiment, group in by_experiment(runs).items():
        row = {"experiment": experiment.removesuffix(UNFINISHED), "runs": len(group)}
        row |= {"status": "unfinished" if experiment.endswith(UNFINISHED) else "finished"}
        row |= {"last step": f"{steps[experiment]:.0f}" if experiment in steps else ""}
        row |= {"measured": _measured(group, answered[answered["policy"] == experiment])}
        rows.append(row | {"minutes": sum(run.record.get("wall_seconds", np.nan) for run in group) / 60})
    return pd.DataFrame(rows)


def _measured(runs: Sequence[Run], said: pd.DataFrame) -> str:
    """What is known of a policy, from its answers, or of the best of n; "" for nothing."""
    if said.empty:
        return "gold and proxy by n" if any(map(best_of_n_curves, runs)) else ""
    scores = [score for score in SCORES if score in said and said[score].notna().any()]
    return f"{' and '.join(scores) or 'completions'} on {said.groupby(['run', 'judge_id']).size().max()} prompts"


def to_know(found: FoundRuns, *left_out: Sequence[str], scores: Sequence[str]) -> str:
    """What a reader must know before the figures, one line each: what is not there, and what was left out.

    `scores` are those that any answer has.
    """
    runs, said = found.runs, []
    experiments = len(by_experiment(runs))
    if unfinished := [name.removesuffix(UNFINISHED) for name in runs if name.endswith(UNFINISHED)]:
        said.append(f"Unfinished, and shown apart: {listed(unfinished)}.")
    if experiments == len(runs):
        said.append("Every experiment is a single run: there are no errors over seeds, only over prompts.")
    if "gold" not in scores:
        instead = "scores are the proxy's, what a reward model says" if "proxy" in scores else "nor was a proxy"
        said.append(f"Gold was not measured: {instead}.")
    lost = list(dict.fromkeys(sentence for each in (found.unread, *left_out) for sentence in each))
    said += [f"Left out: {sentence}" for sentence in lost[:LISTED]]
    said += [f"Left out: {len(lost) - LISTED} more."] * (len(lost) > LISTED)
    return "\n".join([f"{len(runs)} runs of {experiments} experiments.", *said])


def listed(names: Sequence[str]) -> str:
    """Names with commas, the first ones, and how many more."""
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


# --- In what runs differ: their parameters, and the versions of what made them.


ALIKE = 0.7  # share of parameter names in common from which two runs are of one notebook, perhaps of two versions of it
EVERYWHERE_DIFFERENT = ("run_dir", "seed", "world_seed")
RECORDED = ("python", "platform", "threads")


def differing_parameters(runs: Mapping[str, Run]) -> dict[str, pd.DataFrame]:
    """By what their runs are called alike, one table per kind of run: a row per experiment, a column per parameter.

    Runs that take the same parameters, but for a few, are of one kind. Columns are experiment, runs, and the parameters
    in which experiments differ, folders without their parents and seeds; none for a kind in which nothing differs.
    """
    tables = {}
    for kind in _kinds(runs):
        groups = by_experiment(kind)
        names = dict.fromkeys(key for run in kind.values() for key in run.parameters)
        rows = [
            {"experiment": experiment, "runs": len(group)} | {name: _values(group, name) for name in names}
            for experiment, group in groups.items()
        ]
        frame = pd.DataFrame(rows)
        differing = [name for name in names if _differs(name, frame[name])]
        if differing:
            tables[_called_alike(list(groups))] = frame[["experiment", "runs", *differing]]
    return tables


def _kinds(runs: Mapping[str, Run]) -> list[dict[str, Run]]:
    """Runs in groups with nearly the same parameter names."""
    kinds: list[tuple[set, dict[str, Run]]] = []
    for name, run in runs.items():
        own = set(run.parameters)
        for names, kind in kinds:
            if len(own & names) >= ALIKE * len(own | names):
                kind[name] = run
                break
        else:
            kinds.append((own, {name: run}))
    return [kind for _, kind in kinds]


def _values(runs: Sequence[Run], name: str) -> str:
    """All values of a parameter in these runs, as text; "" where none has it."""
    found = {_shown(run.parameters[name]) for run in runs if name in run.parameters}
    return ", ".join(sorted(found))


def _shown(value) -> str:
    """A value as text: of a number its digits, of paths their last parts without seed."""
    if isinstance(value, str) and "/" in value:
        return ", ".join(experiments_named(value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _differs(name: str, values: pd.Series) -> bool:
    return name not in EVERYWHERE_DIFFERENT and values[values != ""].nunique() > 1


def _called_alike(names: Sequence[str]) -> str:
    """What names begin with, up to the last whole word; of names without a common start the first and how many more."""
    words = [name.removesuffix(UNFINISHED).split("_") for name in names]
    common = [group[0] for group in zip(*words, strict=False) if len(set(group)) == 1]
    together = "_".join(common) if all(word[: len(common)] == common for word in words) else ""
    return together or f"{names[0]} and {len(names) - 1} more"


def differing_versions(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Packages, Python, machine, threads and commit in which runs differ: what, version, runs (how many), which.

    "not recorded" stands for runs that do not say; no rows where all runs agree.
    """
    records = {name: _versions(run.record) for name, run in runs.items()}
    rows = []
    for what in dict.fromkeys(key for record in records.values() for key in record):
        held: dict[str, list[str]] = {}
        for name, record in records.items():
            held.setdefault(record.get(what, "not recorded"), []).append(name)
        if len(held) > 1:
            for version, names in sorted(held.items(), key=lambda item: -len(item[1])):
                rows.append({"what": what, "version": version, "runs": len(names), "which": _examples(names)})
    return pd.DataFrame(rows, columns=["what", "version", "runs", "which"])


def _examples(names: Sequence[str]) -> str:
    different = list(dict.fromkeys(map(experiment_of, names)))
    return ", ".join(different[:5]) + (f" and {len(different) - 5} more" if len(different) > 5 else "")


def _versions(record: Mapping) -> dict[str, str]:
    """What made a run, as far as its record says."""
    git = record.get("git") or {}
    commit = {"commit": git["commit"][:12] + (", with changes" if git.get("dirty") else "")} if "commit" in git else {}
    told = {name: str(record[name]) for name in RECORDED if name in record}
    return {**(record.get("packages") or {}), **told, **commit}


# --- Every policy against every other on the same held-out prompts: win rates, and one strength for each.


LEVEL = 1e-6  # scores closer than this are equal: one text scored in two batches may differ in the last digits
PRIOR_SD = 1.0  # of strengths, where one policy beats every other so that the likeliest strengths are infinite


class Meetings(NamedTuple):
    """Rows of `outcomes`, and a sentence for each reason why some policies are not among them."""

    outcomes: pd.DataFrame
    left_out: list[str]


class Strengths(NamedTuple):
    """Rows name, score, low, high, comparisons, wins; and what to know about how they came to be, or ""."""

    table: pd.DataFrame
    note: str


def judge_column(answers: pd.DataFrame, judge: str) -> str:
    """The column to judge `answers` by: `judge` where it was measured; the proxy where gold was asked for and is not.

    WorkbenchError where neither was, naming what was.
    """
    numbers = [column for column in answers.select_dtypes("number") if answers[column].notna().any()]
    for column in (judge, *(["proxy"] if judge == "gold" else [])):
        if column in numbers:
            return column
    measured = ", ".join(column for column in numbers if column not in ("nth", "completion_length")) or "none"
    raise WorkbenchError(
        f"judge is {judge!r}, which no answer was scored by: choose one of those measured ({measured}) or a reward "
        "model's folder."
    )


def scored(answers: pd.DataFrame, reward: Callable[..., list[float]]) -> list[float]:
    """The reward of every row, equal for equal texts: each different one is scored once."""
    finished = answers["finished"].astype(bool) if "finished" in answers else pd.Series(True, index=answers.index)
    texts = answers[["prompt", "completion"]].assign(finished=finished)
    once = texts.drop_duplicates()
    columns = {name: answers.loc[once.index, name].tolist() for name in ("prompt_messages",) if name in answers}
    columns["finished"] = once["finished"].tolist()
    texts_once = once["prompt"].tolist(), once["completion"].tolist()
    scores = scores_of({"judge": reward}, texts_once, columns)["judge"]
    return texts.merge(once.assign(score=scores), how="left")["score"].tolist()


def meetings(answers: pd.DataFrame, score: str, *, most: int = 40) -> Meetings:
    """All outcomes that can be set against each other, and a sentence for each reason why policies are left out.

    Proxies by different reward models mean different things: only policies scored by the one that most have meet, and
    only runs that share its weights, so that each seed may have its own. Of policies on different prompts the largest
    group meets that common prompts link; of more than `most` some do, evenly spaced by their mean score.
    """
    kept, left_out = answers.dropna(subset=[score]), []
    if score == "proxy" and kept["judge"].nunique() > 1:
        policies = kept.groupby("judge", sort=False)["policy"].agg(set)
        main = policies.map(len).idxmax()
        if others := sorted(set().union(*policies) - policies[main]):
            left_out.append(f"The proxy of {', '.join(others)} is another reward model's than {main}'s.")
        kept = kept[kept["judge"] == main]
    means = kept.groupby("policy")[score].mean().sort_values()
    if len(means) > most:
        places = np.unique(np.linspace(0, len(means) - 1, most).round().astype(int))
        kept = kept[kept["policy"].isin(means.index[places])]
        left_out.append(f"{len(places)} of {len(means)} policies are compared, evenly spaced by their mean {score}.")
    met, apart = largest_group(outcomes(kept, score))
    never = sorted(set(kept["policy"]) - set(met["first"]) - set(met["second"]) - set(apart))
    if apart or never:
        left_out.append(f"{', '.join([*apart, *never])} answered other prompts than the rest.")
    return Meetings(met, left_out)


def outcomes(answers: pd.DataFrame, score: str) -> pd.DataFrame:
    """One row per two policies and prompt that both answered: first, second, prompt, repetition, outcome.

    `outcome` is 1 where the first scored higher, 0 where the second did, .5 where they are equal. Policies meet on the
    same prompt of the same world, by the same weights of a reward model; runs with the same seed meet each other, and
    all meet all where no seed is common. The n-th time that a prompt occurs meets the n-th time.
    """
    held = ["world", *(["judge_id"] if score == "proxy" else []), "prompt", "nth"]
    once = answers.drop_duplicates(["run", *held])
    table = once.pivot(index=held, columns="run", values=score)
    prompts = pd.factorize(table.index.get_level_values("prompt"))[0]
    scores = {run: table[run].to_numpy() for run in table}
    runs: dict[str, dict[str, str]] = {}  # by policy, the repetition of each
    for policy, run, repetition in once.drop_duplicates("run")[["policy", "run", "repetition"]].itertuples(index=False):
        runs.setdefault(policy, {})[run] = repetition
    found = []
    for first, second in combinations(runs, 2):
        for one, other, repetition in _meetings(runs[first], runs[second]):
            gaps = scores[one] - scores[other]
            both = np.isfinite(gaps)
            outcome = np.where(np.abs(gaps[both]) <= LEVEL, 0.5, gaps[both] > 0)
            found.append(((first, second, repetition), prompts[both], outcome))
    if not any(len(outcome) for _, _, outcome in found):
        raise WorkbenchError("No two policies answered the same prompts: evaluate them on the same held-out prompts.")
    return _one_table(found)


def _meetings(one: Mapping[str, str], other: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Which run of one policy meets which of the other, and under which seed; both map runs to their repetition."""
    common = set(one.values()) & set(other.values())
    for first, seed in one.items():
        for second, other_seed in other.items():
            if not common or seed == other_seed:
                yield first, second, seed if seed == other_seed else ""


def _one_table(found: Sequence[tuple[tuple[str, str, str], np.ndarray, np.ndarray]]) -> pd.DataFrame:
    """Names, prompts and outcomes of all meetings under one another; names as objects, which are quick to compare."""
    times = [len(outcome) for _, _, outcome in found]
    names = zip(("first", "second", "repetition"), zip(*(each for each, _, _ in found), strict=True), strict=True)
    columns = {
        name: pd.Series(np.repeat(np.array(values, dtype=object), times), dtype=object) for name, values in names
    }
    prompts, results = (np.concatenate([each[place] for each in found]) for place in (1, 2))
    return pd.DataFrame({**columns, "prompt": prompts, "outcome": results})


def largest_group(met: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The outcomes of the largest set of policies that meetings link, and the names of the other policies."""
    group: dict[str, set[str]] = {}
    for first, second in met[["first", "second"]].drop_duplicates().itertuples(index=False):
        together = group.get(first, {first}) | group.get(second, {second})
        group |= dict.fromkeys(together, together)
    largest = max(group.values(), key=len)
    return met[met["first"].isin(largest)], sorted(set(group) - largest)


def win_rates(met: pd.DataFrame) -> pd.DataFrame:
    """Each policy against each other, both ways round: first, second, win_rate, win_rate_se, p_value, ties,
    comparisons, seeds.

    A tie is half a win. The standard error is over prompts, for these trained runs; p_value, of a rate of one half, is
    Holm's over all pairs, so that it holds though the data chose whom one looks at; `seeds` has the rate of each.
    """
    parts = dict(list(met.groupby(["first", "second"], sort=False)))
    p_values = holm([p_value_over_units(part["outcome"] - 0.5, part["prompt"]) for part in parts.values()])
    rows = []
    for ((first, second), part), p_value in zip(parts.items(), p_values, strict=True):
        rate, error = map(float, mean_and_error(part["outcome"], clusters=part["prompt"]))
        by_seed = part.groupby("repetition")["outcome"].mean()
        row = {"ties": float((part["outcome"] == 0.5).mean()), "comparisons": len(part), "win_rate_se": error}
        row["p_value"] = float(p_value)
        for names, value, each in (((first, second), rate, by_seed), ((second, first), 1 - rate, 1 - by_seed)):
            seeds = ", ".join(f"{share:.0%}" for share in each) if len(each) > 1 else ""
            rows.append({"first": names[0], "second": names[1], "win_rate": value, **row, "seeds": seeds})
    return pd.DataFrame(rows)


def strengths(met: pd.DataFrame, *, seed: int = 0, resamples: int = 400) -> Strengths:
    """Bradley-Terry scores of all policies with 95% intervals over prompts: log-odds against one of score 0.

    All outcomes of a prompt are one draw; a tie is half a win for each. Where one policy, or several, never lost to
    the others, no finite strengths fit best: a normal prior then draws them towards 0, and the note says so.
    """
    first_won = met["outcome"] >= 0.5
    games = pd.DataFrame({"item_id": met["prompt"], "tie": met["outcome"] == 0.5})
    games["winner"] = met["first"].where(first_won, met["second"])
    games["loser"] = met["second"].where(first_won, met["first"])
    try:
        return Strengths(bradley_terry(games, seed=seed, resamples=resamples), "")
    except WorkbenchError as error:
        if "no finite scores" not in str(error).lower():
            raise
        table = bradley_terry(games, prior_sd=PRIOR_SD, seed=seed, resamples=resamples)
        who = str(error).split(":")[0]
        return Strengths(table, f"{who}: strengths are drawn towards 0 by a prior of standard deviation {PRIOR_SD:g}.")
