"""Every policy against every other on the same held-out prompts: win rates, and one strength for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.statistics import holm, mean_and_error, p_value_over_units
from workbench.feedback.paired_comparison import bradley_terry
from workbench.records import scores_of

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
