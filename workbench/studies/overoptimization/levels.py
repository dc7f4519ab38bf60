"""The reward models of a study by what was varied in them: comparisons, weights, noise, labelers, seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from workbench.analysis.ensembles import ENSEMBLES, ensemble_scores, shared_errors
from workbench.analysis.overoptimization import held_out_peak
from workbench.runs import Run
from workbench.studies.measured_paths import unit_of
from workbench.studies.overoptimization.tables import JUDGE, judges_of, pool_path, pool_scores
from workbench.studies.run_folders import experiment_of

TRAITS = ("asked", "half", "start", "preset", "label_noise", "labelers", "repeat")
UNIT = ["world", "seed"]


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
    row |= {"repeat": "" if given.get("seed", 0) == unit_of(run)["seed"] else str(given["seed"])}
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
    for name, members in sets.items():
        if set(members) <= set(judges_of(pool)) and "gold" in pool:
            scores = np.stack([pool[JUDGE + member] for member in members])
            for how in ENSEMBLES:
                chosen = pool.assign(**{JUDGE + how: ensemble_scores(scores, how, coef=coef)})
                rows.append({"members": name, "how": how, **held_out_peak(pool_path(chosen, how))})
    return pd.DataFrame(rows)


def errors_in_common(pool: pd.DataFrame, sets: Mapping[str, list[str]]) -> pd.DataFrame:
    """Means over pairs of members of `shared_errors`, one row per set: members, errors, errors_given_gold."""
    rows = []
    for name, members in sets.items():
        if set(members) <= set(judges_of(pool)) and "gold" in pool:
            scores = {member: pool_scores(pool, JUDGE + member) for member in members}
            common = shared_errors(scores, pool_scores(pool, "gold"))
            rows.append({"members": name, "pairs": len(common), **common[["errors", "errors_given_gold"]].mean()})
    return pd.DataFrame(rows)
