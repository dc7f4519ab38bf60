"""A study's run folders as tidy tables: which run pushed which reward model how far, and what that bought.

A push is one optimiser (RL, or best-of-n read from a pool) against one reward model from one policy in one unit (world
and seed). Both have paths of one kind: a row per step and held-out prompt, where a step of best-of-n is its n.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.best_of_n import best_of_n_kl, expected_of_best, measured_best_of_n_kl, powers_of_two
from workbench.analysis.ensembles import ENSEMBLES, ensemble_scores, shared_errors
from workbench.analysis.overoptimization import held_out_peak, path_means
from workbench.runs import Run
from workbench.runs.reward_names import with_sources
from workbench.studies.budget.tables import marked_texts, mean_paths
from workbench.studies.measurements import (
    OLDER,
    experiment_of,
    has_table,
    over_runs,
    read_measured,
    read_pool,
    repetition_of,
)

BEST_OF_N, RL = "best of n", "RL"
JUDGE = "judge_"
# what says who was pushed by what; `free` is without a price on KL
KIND = ["optimiser", "algorithm", "experiment", "policy", "reward_model", "ensemble", "kl_coef", "free"]
PUSH = [*KIND, "world", "seed", "run"]
MEASURED = ["step", "row", "kl", "proxy", "gold"]


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a folder of runs holds; tables without rows where it holds nothing of a kind."""

    pushes: pd.DataFrame  # one row per push: the columns of PUSH
    curves: pd.DataFrame  # one row per push and step: PUSH, step, kl, proxy, gold, their gains, prompt, completion
    peaks: pd.DataFrame  # one row per push whose gold is known: PUSH and the keys of `held_out_peak`
    paths: dict[str, pd.DataFrame] = field(repr=False)  # table path of each RL run, by the run's name
    pools: dict[str, pd.DataFrame] = field(repr=False)  # table pool of each best-of-n run
    said: list[str]  # what could not be read, in sentences


def read_study(runs: Iterable[Run]) -> Study:
    """Every push in the finished runs of 06 and 07; what could not be read is named in `said`.

    WorkbenchError where no run pushed anything.
    """
    pushes, curves, peaks, paths, pools, said = [], [], [], {}, {}, []
    for run in filter(optimiser_of, runs):
        if not run.finished:
            said.append(f"{run.name} is not finished and was left out.")
            continue
        try:
            for about, path, means in _pushes(run, paths, pools):
                pushes.append(about)
                curves.append(means.assign(**about))
                found = _peak(path)
                peaks += [about | found] if found else []
        except WorkbenchError as error:
            said.append(f"{run.name}: {error}")
    if not pushes:
        raise WorkbenchError(" ".join(["None of these runs pushed a reward model: run 06 or 07 there first.", *said]))
    return Study(
        pushes=pd.DataFrame(pushes),
        curves=pd.concat(curves, ignore_index=True),
        peaks=pd.DataFrame(peaks, columns=None if peaks else PUSH),
        paths=paths,
        pools=pools,
        said=said,
    )


def optimiser_of(run: Run) -> str:
    """`BEST_OF_N` or `RL`; "" for runs that pushed no reward model."""
    if has_table(run, "pool"):
        return BEST_OF_N
    if not {"algorithm", "reward_model"} <= set(run.parameters):
        return ""
    return RL if any(has_table(run, name) for name in ("measured", *OLDER)) or "kl" in run.metrics() else ""


def _pushes(run: Run, paths: dict, pools: dict):
    """(columns of PUSH, path, curve) of every push in a run; its tables are added to `paths` or `pools`."""
    about = _about(run)
    if about["optimiser"] != BEST_OF_N:
        path = read_measured(run, "path")
        if path.empty:
            raise WorkbenchError("it kept no path: run the stage again with held-out prompts.")
        paths[run.name] = _with_plain_judges(path, run.name)
        yield about, paths[run.name], curve_of(paths[run.name])
        return
    pool = _with_plain_judges(read_pool(run), run.name)
    pools[run.name] = _whole_prompts(pool.rename(columns={"proxy": JUDGE + about["reward_model"]}))
    for name in judges_of(pools[run.name]):
        path = pool_path(pools[run.name], name)
        yield about | {"reward_model": name}, path, curve_of(path)


def _about(run: Run) -> dict:
    """The columns of PUSH, of a run's first reward model."""
    given, summary = run.parameters, run.summary()
    listed = str(given.get("reward_model", "")).split(",")
    models = [with_sources(each.strip(), lambda it: plain_name(Path(it).name, run.name)) for each in listed]
    optimiser, unit = optimiser_of(run), run.unit
    price = float(summary.get("kl_coef", given.get("kl_coef", 0.0)) or 0.0) if optimiser == RL else np.nan
    return {
        "optimiser": optimiser,
        "algorithm": str(given["algorithm"]) if optimiser == RL else "",
        "experiment": experiment_of(run.name),
        "policy": plain_name(Path(str(given.get("model", ""))).name, run.name),
        "reward_model": models[0],
        "ensemble": str(given.get("ensemble", "")) if len(models) > 1 and optimiser == RL else "",
        "kl_coef": price,
        "free": optimiser == BEST_OF_N or (optimiser == RL and price == 0 and not given.get("kl_target", 0.0)),
        "world": unit.world,
        "seed": unit.seed,
        "run": run.name,
    }


def plain_name(name: str, beside: str) -> str:
    """The name of a run without the unit that it shares with the run `beside` it: 05_split_world0_seed1 -> 05_split."""
    ending = repetition_of(beside)
    world = ending.split("_seed")[0] if "_seed" in ending else ""
    for shared in (ending, world):  # a run of the same unit, or one that a whole world shares
        if shared and name.endswith(shared):
            return name.removesuffix(shared)
    return name


def _with_plain_judges(table: pd.DataFrame, run: str) -> pd.DataFrame:
    judges = [column for column in table if column.startswith(JUDGE)]
    return table.rename(columns={name: JUDGE + plain_name(name.removeprefix(JUDGE), run) for name in judges})


def _whole_prompts(pool: pd.DataFrame) -> pd.DataFrame:
    """The pool without the prompts of which a score is NaN: what is left of them would be another policy's samples."""
    scores = [name for name in [*pool.columns[pool.columns.str.startswith(JUDGE)], "gold"] if name in pool]
    known = [name for name in scores if pool[name].notna().any()]
    bad = pool.loc[pool[known].isna().any(axis=1), "prompt_index"]
    return pool[~pool["prompt_index"].isin(bad)].drop(columns=[name for name in scores if name not in known])


def judges_of(table: pd.DataFrame) -> list[str]:
    """The reward models that scored a table, by their columns."""
    return [column.removeprefix(JUDGE) for column in table if column.startswith(JUDGE)]


def pool_scores(pool: pd.DataFrame, column: str) -> np.ndarray:
    """A column of a pool as (prompts, N); WorkbenchError unless all prompts have equally many samples in a row."""
    prompts = pool["prompt_index"].to_numpy()
    starts = np.flatnonzero(np.diff(prompts, prepend=prompts[:1] - 1))
    sizes = np.diff(starts, append=len(prompts))
    if len(set(prompts[starts])) != len(starts) or len(set(sizes)) != 1:
        raise WorkbenchError("The pool does not hold equally many samples of each prompt in a row: run 07 again.")
    return pool[column].to_numpy().reshape(len(starts), -1)


def pool_path(pool: pd.DataFrame, reward_model: str, ns: Sequence[int] = ()) -> pd.DataFrame:
    """Best-of-n by one reward model as a path: step (n), row, prompt, kl, proxy, gold where known, completion.

    kl is the upper bound in nats. Scores are expectations over all choices of n from the prompt's N samples; the
    completion is the favourite of its first n. `ns` are powers of two up to N unless given.
    """
    proxy = pool_scores(pool, JUDGE + reward_model).astype(float)
    ns = list(ns) or powers_of_two(proxy.shape[1])
    texts, rows = pool_scores(pool, "completion"), np.arange(len(proxy))
    prompts = pool_scores(pool, "prompt")[:, 0]
    expected = {"proxy": expected_of_best(proxy, proxy, ns)}
    if "gold" in pool:
        expected["gold"] = expected_of_best(proxy, pool_scores(pool, "gold").astype(float), ns)
    parts = []
    for place, n in enumerate(ns):
        part = {"step": n, "row": rows, "prompt": prompts, "kl": best_of_n_kl(n)}
        part |= {name: values[:, place] for name, values in expected.items()}
        parts.append(pd.DataFrame(part | {"completion": texts[rows, proxy[:, :n].argmax(axis=1)]}))
    return pd.concat(parts, ignore_index=True)


def curve_of(path: pd.DataFrame) -> pd.DataFrame:
    """`path_means` of KL, proxy and gold, and what the policy says to one prompt at each step: prompt, completion.

    The prompt is the one on which gold fell most from the first step to the last, without gold where the proxy rose
    most: the plainest case, not the typical one.
    """
    means = path_means(path[[column for column in MEASURED if column in path]])
    first, last = (path[path["step"] == step].set_index("row") for step in (means["step"].min(), means["step"].max()))
    measured = "gold" in path and path["gold"].notna().all()
    change = (last["gold"] - first["gold"]) if measured else first["proxy"] - last["proxy"]
    shown = path[path["row"] == change.idxmin()].set_index("step")[["prompt", "completion"]]
    return means.join(shown, on="step")


def _peak(path: pd.DataFrame) -> Mapping[str, float]:
    """Peak of gold and drop from there, of held-out prompts; nothing without gold."""
    return held_out_peak(path) if "gold" in path and path["gold"].notna().any() else {}


def mean_curves(curves: pd.DataFrame) -> pd.DataFrame:
    """Means over units at equal KL of every kind of push: columns KIND, kl, runs, proxy and gold with _low and _high.

    Intervals are 95% over units, NaN for a single one; curves reach as far as the first of their runs. No curves give
    no rows.
    """
    if curves.empty:
        return curves
    kinds = curves.groupby(KIND, sort=False, dropna=False).ngroup().rename("experiment")
    scores = [name for name in ("proxy", "gold") if name in curves]
    means = mean_paths(curves[["run", "world", "seed", "step", "kl", *scores]].join(kinds))
    names = curves[KIND].groupby(kinds).first()
    return names.join(means.set_index("experiment")).reset_index(drop=True)


def measured_kl(pool: pd.DataFrame, reward_model: str) -> pd.DataFrame:
    """`measured_best_of_n_kl` of a pool by one reward model: n, kl_bound, kl, kl_se; no rows without logprob."""
    if "logprob" not in pool:
        return pd.DataFrame(columns=["n", "kl_bound", "kl", "kl_se"])
    names = (JUDGE + reward_model, "logprob", "completion")
    matrices = [pool_scores(pool.assign(completion=marked_texts(pool)), name) for name in names]
    return measured_best_of_n_kl(*matrices, powers_of_two(matrices[0].shape[1]))


# --- The reward models of a study by what was varied in them: comparisons, weights, noise, labelers, seeds.


TRAITS = ("asked", "half", "start", "preset", "label_noise", "labelers", "repeat")


def reward_models(runs: Iterable[Run]) -> pd.DataFrame:
    """One row per kind of finished reward model: reward_model (the experiment), runs, `TRAITS`, pairs, weights,
    accuracy and label, which says in words what it learned from.

    `pairs` are the comparisons it learned from (mean over runs; `asked` is what was asked for), `half` says of which
    half of the data, `repeat` is its own seed where that is not its unit's, accuracy is against gold where known.
    Without rows where there is none.
    """
    rows = [_described(run) for run in runs if run.finished and run.path("tables/accuracy.jsonl").exists()]
    columns = ["reward_model", "runs", *TRAITS, "pairs", "weights", "accuracy", "label"]
    if not rows:
        return pd.DataFrame(columns=columns)
    kinds = pd.DataFrame(rows).groupby("reward_model", sort=False)
    table = kinds[list(TRAITS)].first().join(kinds[["pairs", "weights", "accuracy"]].mean()).assign(runs=kinds.size())
    main = table["half"].mode()[0]
    table["label"] = [_label(row, main) for row in table.to_dict("records")]
    repeated = table["label"].duplicated(keep=False)
    table["label"] = table["label"].where(~repeated, table["label"] + ", " + table.index)
    return table.reset_index()[columns]


def _described(run: Run) -> dict:
    given, summary = run.parameters, run.summary()
    row = {"reward_model": experiment_of(run.name), "asked": given.get("pairs", 0), "half": given.get("half", 0)}
    row |= {"pairs": summary.get("pairs", given.get("pairs", 0)), "start": given.get("start", "sft")}
    row |= {"preset": given.get("preset", ""), "label_noise": given.get("label_noise", 0.0)}
    row |= {"labelers": given.get("labelers", "")}
    row |= {"repeat": "" if given.get("seed", 0) == run.unit.seed else str(given["seed"])}
    accuracy = summary.get("accuracy vs gold", summary.get("accuracy vs labels", np.nan))
    return row | {"weights": summary.get("parameters", np.nan), "accuracy": accuracy}


def _label(row: Mapping, main_half: int) -> str:
    pairs = row["pairs"] if row["pairs"] == round(row["pairs"]) else round(row["pairs"], -2)  # a mean of several runs
    words = [f"{pairs:.0f}{' other' if row['half'] not in (0, main_half) else ''} pairs"]
    words += [f"by {row['labelers']}"] if row["labelers"] else []
    words += [f"{row['label_noise']:.0%} flipped"] if row["label_noise"] else []
    words += [f"{row['preset'] or 'same size'} from scratch"] if row["start"] == "scratch" else []
    words += [f"seed {row['repeat']}"] if row["repeat"] else []
    return ", ".join(words)


def accuracy_by_size(runs: Iterable[Run]) -> pd.DataFrame:
    """Held-out accuracy of reward models, by `over_runs`; against gold where it is known, else against labels.

    Rows model (the run's name without its seed), start, parameters and policy_parameters (counts of weights), runs,
    measured_against, accuracy, accuracy_se. Smaller ones first. WorkbenchError where no run has the numbers.
    """
    tables = []
    for run in (run for run in runs if has_table(run, "accuracy") and not run.parameters.get("study_runs")):
        about = {"model": experiment_of(run.name), "start": run.parameters["start"], "world": run.unit.world}
        about |= {name: run.summary().get(name) for name in ("parameters", "policy_parameters")}
        table = run.table("accuracy").query("group == 'all'")
        tables.append(table[["measured_against", "accuracy", "accuracy_se"]].assign(**about))
    rows = pd.concat(tables).dropna(subset="parameters") if tables else []
    if not len(rows):
        raise WorkbenchError(
            "None of these runs holds a reward model's accuracy: give a folder of 05_reward_model runs."
        )
    against = "gold" if (rows["measured_against"] == "gold").any() else "labels"
    table = over_runs(rows[rows["measured_against"] == against], ["model"], ["accuracy"])
    return table.sort_values(["start", "parameters"], ignore_index=True)


def main_reward_model(pushes: pd.DataFrame, models: pd.DataFrame) -> str:
    """The reward model that most RL runs push alone, without RL the one that most pools were drawn for."""
    single = pushes[pushes["ensemble"] == ""]
    rl = single[single["optimiser"] == "RL"]
    known = rl if len(rl) else single
    trained = known[known["reward_model"].isin(models["reward_model"])]
    names = (trained if len(trained) else known)["reward_model"]
    return str(names.value_counts(sort=True).index[0])


def levels_of(models: pd.DataFrame, main: str) -> dict[str, pd.DataFrame]:
    """What was varied: reward models that differ from `main` in one respect alone, with columns reward_model, level.

    Keys pairs (comparisons), weights (all from scratch), label_noise (share), labelers (one labeler alone, or "all" of
    them with as many comparisons); a key is missing where fewer than two levels were trained.
    """
    kinds = models[models["repeat"] == ""]
    if main not in set(kinds["reward_model"]):
        return {}
    own = kinds[kinds["reward_model"] == main].iloc[0]
    same = pd.DataFrame({trait: kinds[trait] == own[trait] for trait in TRAITS})
    alike = {
        "pairs": same.drop(columns="asked").all(axis=1),
        "weights": same.drop(columns=["start", "preset"]).all(axis=1) & (kinds["start"] == "scratch"),
        "label_noise": same.drop(columns="label_noise").all(axis=1),
        "labelers": same.drop(columns=["labelers", "asked", "half"]).all(axis=1)
        & kinds["asked"].isin(kinds.loc[~same["labelers"], "asked"]),
    }
    tables = {name: kinds[rows].rename(columns={name: "level"}) for name, rows in alike.items()}
    tables = {name: table.replace({"level": {"": "all"}})[["reward_model", "level"]] for name, table in tables.items()}
    kept = {name: table for name, table in tables.items() if table["level"].nunique() > 1}
    return {name: table.sort_values("level", ignore_index=True) for name, table in kept.items()}


def plain_pushes(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of pushes without a price on KL, by one reward model alone; of RL the algorithm that most runs used."""
    plain = table[table["free"].astype(bool) & (table["ensemble"] == "")]
    runs = plain[plain["algorithm"] != ""].drop_duplicates("run")["algorithm"]
    return plain[plain["algorithm"].isin(["", *runs.mode()[:1]])]


def swept(peaks: pd.DataFrame, levels: pd.DataFrame, factor: str, *, policy: str) -> pd.DataFrame:
    """Peaks of the plain pushes of one `policy` against the reward models of `levels`, the level in column `factor`."""
    own = plain_pushes(peaks)
    return own[own["policy"] == policy].merge(levels.rename(columns={"level": factor}), on="reward_model")


def member_sets(models: pd.DataFrame, main: str) -> dict[str, list[str]]:
    """Reward models that make an ensemble: seeds (other seeds, same comparisons), split (other comparisons), bases
    (from scratch, other sizes), labelers (one each). `main` is in all but the last; sets of one are left out."""
    kinds = models.set_index("reward_model")
    if main not in kinds.index:
        return {}
    plain = (kinds["labelers"] == "") & (kinds["label_noise"] == kinds.loc[main, "label_noise"])
    plain &= kinds["asked"] == kinds.loc[main, "asked"]
    chosen = {
        "seeds": plain & (kinds["repeat"] != ""),
        "split": plain & (kinds["half"] != kinds.loc[main, "half"]),
        "bases": plain & (kinds["start"] == "scratch") & (kinds["repeat"] == ""),
    }
    sets = {name: [main, *kinds.index[rows & (kinds.index != main)]] for name, rows in chosen.items()}
    sets["labelers"] = list(kinds.index[kinds["labelers"] != ""])
    return {name: members for name, members in sets.items() if len(members) > 1}


def ensemble_peaks(pool: pd.DataFrame, sets: Mapping[str, list[str]], *, coef: float) -> pd.DataFrame:
    """Best-of-n by each ensemble of each set that a pool's reward models allow: members (the set), how, and the keys of
    `held_out_peak`. Without rows for a pool without gold."""
    rows = []
    for name, members in _judging(pool, sets).items():
        scores = np.stack([pool[JUDGE + member] for member in members])
        for how in ENSEMBLES:
            chosen = pool.assign(**{JUDGE + how: ensemble_scores(scores, how, coef=coef)})
            rows.append({"members": name, "how": how, **held_out_peak(pool_path(chosen, how))})
    return pd.DataFrame(rows)


def _judging(pool: pd.DataFrame, sets: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The sets all of whose members scored the pool; none without gold."""
    known = set(judges_of(pool)) if "gold" in pool else set()
    return {name: members for name, members in sets.items() if set(members) <= known}


def errors_in_common(pool: pd.DataFrame, sets: Mapping[str, list[str]]) -> pd.DataFrame:
    """Means over pairs of members of `shared_errors`, one row per set: members, errors, errors_given_gold."""
    rows = []
    for name, members in _judging(pool, sets).items():
        scores = {member: pool_scores(pool, JUDGE + member) for member in members}
        common = shared_errors(scores, pool_scores(pool, "gold"))
        rows.append({"members": name, "pairs": len(common), **common[["errors", "errors_given_gold"]].mean()})
    return pd.DataFrame(rows)
