"""What is tried against overoptimization, within units: a price on KL, stopping, ensembles, alarms without gold."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from workbench.analysis.effects import UNIT, gain_over_stopping, judged_together, mean_effects
from workbench.studies.measured_paths import means_over_runs
from workbench.studies.overoptimization.alarms import watched_runs
from workbench.studies.overoptimization.levels import ensemble_peaks, errors_in_common, plain_pushes
from workbench.studies.overoptimization.tables import BEST_OF_N, JUDGE, RL, Study

ENSEMBLE_OUTCOMES = {"saved": "less fall from the peak", "end": "gold at the end", "difference": "gold at equal KL"}
PRICE_OUTCOMES = {"difference": "at equal KL", "against_best": "against the free run at its best"}


def free_paths(curves: pd.DataFrame, *, main: str, policy: str) -> pd.DataFrame:
    """Curves of the RL runs without a price on KL of the main policy against the main reward model."""
    plain = plain_pushes(curves)
    return plain[(plain["optimiser"] == RL) & (plain["reward_model"] == main) & (plain["policy"] == policy)]


def priced_ends(curves: pd.DataFrame, free: pd.DataFrame) -> pd.DataFrame:
    """Ends of the runs with a price on KL that otherwise are like the `free` ones, beside the free run of their unit.

    Adds of `gain_over_stopping` free_gold and difference (at equal KL), level (the experiment) and `against_best`, the
    gold that the end has over the free run stopped at its best step, by gold chosen on the same prompts: a bound that
    needs gold and flatters stopping.
    """
    alike = ["optimiser", "algorithm", "policy", "reward_model", "ensemble"]
    ends = curves[~curves["free"].astype(bool)].groupby("run", sort=False).tail(1)
    if free.empty or "gold" not in curves:
        return ends.iloc[:0]
    ends = ends.merge(free[alike].drop_duplicates(), on=alike)
    best = free.groupby(UNIT)["gold"].max().rename("best").reset_index()
    ends = gain_over_stopping(free, ends).merge(best, on=UNIT, how="left")
    return ends.assign(
        level=ends["experiment"].str.replace(r"^\d+_", "", regex=True), against_best=ends["gold"] - ends["best"]
    )


def ensemble_runs(study: Study, *, main: str, policy: str) -> pd.DataFrame:
    """RL against ensembles beside the free run of their unit against `main` alone, one row per ensemble and unit.

    Columns world, seed, how, saved (how much less gold drops from its peak), end (gold at the end, difference),
    difference (gold at equal KL, where the free run was when it had spent as much) and drop (of the free run).
    """
    free = free_paths(study.curves, main=main, policy=policy)
    peaks = study.peaks[study.peaks["policy"] == policy]
    single = plain_pushes(peaks)
    single = single[(single["optimiser"] == RL) & (single["reward_model"] == main)]
    several = peaks[peaks["free"].astype(bool) & (peaks["ensemble"] != "")]
    if several.empty or single.empty:
        return pd.DataFrame(columns=[*UNIT, "how", "saved", "end", "difference", "drop"])
    both = several.merge(single[[*UNIT, "drop", "end_gold"]], on=UNIT, suffixes=("", "_single"))
    ends = study.curves[study.curves["run"].isin(both["run"])].groupby("run").tail(1)
    equal = gain_over_stopping(free, ends)[["run", "difference"]]
    both = both.assign(how=both["ensemble"], saved=both["drop_single"] - both["drop"])
    both = both.assign(end=both["end_gold"] - both["end_gold_single"], drop=both["drop_single"])
    return both.merge(equal, on="run")[[*UNIT, "how", "saved", "end", "difference", "drop"]]


def pool_ensembles(study: Study, sets: Mapping[str, list[str]], *, policy: str, coef: float) -> pd.DataFrame:
    """Best-of-n by ensembles against the mean of their members alone: world, seed, members, how, saved, end, drop."""
    columns, tables = [*UNIT, "members", "how", "saved", "end", "drop"], []
    own = study.peaks[(study.peaks["optimiser"] == BEST_OF_N) & (study.peaks["policy"] == policy)]
    for run, peaks in own.groupby("run"):
        table = ensemble_peaks(study.pools[run], sets, coef=coef) if run in study.pools else pd.DataFrame()
        if table.empty:
            continue
        alone = {name: peaks[peaks["reward_model"].isin(members)] for name, members in sets.items()}
        drop, end = ([alone[name][key].mean() for name in table["members"]] for key in ("drop", "end_gold"))
        table = table.assign(saved=drop - table["drop"], end=table["end_gold"] - end, drop=drop)
        tables.append(table.assign(**peaks.iloc[0][UNIT])[columns])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def ensemble_effects(
    study: Study, sets: Mapping[str, list[str]], *, main: str, policy: str, coef: float
) -> pd.DataFrame:
    """What ensembles do under RL and in best-of-n: rows for `plot_effects`, with `share`, what of the fall they save.

    Without rows where no ensemble is known, NaN shares where nothing falls.
    """
    tables = {"RL": ensemble_runs(study, main=main, policy=policy)}
    pools = pool_ensembles(study, sets, policy=policy, coef=coef)
    tables |= {f"best of n, {name}": part for name, part in pools.groupby("members", sort=False)}
    effects = []
    for name, table in tables.items():
        known = remedy_effects(table, "how", ENSEMBLE_OUTCOMES)
        if len(known):
            drops = known["level"].map(table.groupby("how")["drop"].mean())
            share = (known["value"] / drops).where((known["group"] == ENSEMBLE_OUTCOMES["saved"]) & (drops > 0))
            effects.append(known.assign(share=share, level=name + ": " + known["level"]))
    return judged_together(effects)


def errors_over_units(study: Study, sets: Mapping[str, list[str]], *, policy: str) -> pd.DataFrame:
    """`errors_in_common` of every pool of `policy`, means over units with _low and _high; no rows without any."""
    own = study.pushes[study.pushes["policy"] == policy]
    units = own.drop_duplicates("run").set_index("run")[UNIT]
    pools = {run: pool for run, pool in study.pools.items() if run in units.index}
    tables = [errors_in_common(pool, sets).assign(**units.loc[run]) for run, pool in pools.items()]
    known = [table for table in tables if len(table)]
    return means_of(pd.concat(known), "members", ["errors", "errors_given_gold"]) if known else pd.DataFrame()


def remedy_effects(table: pd.DataFrame, factor: str, outcomes: Mapping[str, str]) -> pd.DataFrame:
    """`mean_effects` of each outcome (column: its words, the group) per level of `factor`; rows for `plot_effects`."""
    known = {column: words for column, words in outcomes.items() if column in table and table[column].notna().any()}
    return judged_together(mean_effects(table, factor, column).assign(group=words) for column, words in known.items())


def watched(
    study: Study, sets: Mapping[str, list[str]], *, main: str, policy: str, tolerance: float
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`watched_runs` of every RL run of `policy` against `main` alone, whatever its algorithm and price on KL.

    The reward models that differ only in their seed disagree, one of other comparisons is the one to leave behind.
    """
    kept = study.pushes[(study.pushes["reward_model"] == main) & (study.pushes["ensemble"] == "")]
    kept = kept[(kept["policy"] == policy) & kept["run"].isin(list(study.paths))]
    members = ["proxy", *(JUDGE + name for name in sets.get("seeds", []) if name != main)]
    other = next((JUDGE + name for name in sets.get("split", []) if name != main), "")
    paths = {run: study.paths[run] for run in kept["run"]}
    return watched_runs(paths, kept, members=members, other=other, tolerance=tolerance)


def means_of(table: pd.DataFrame, column: str, values: list[str]) -> pd.DataFrame:
    """Means over units of each level of `column`, with _low and _high, one row per level; NaN ends for one unit."""
    rows = []
    for level, part in table.groupby(column, sort=False):
        rows.append({column: level, "units": len(part), **means_over_runs(part, values)})
    return pd.DataFrame(rows)


def price_sentence(prices: pd.DataFrame) -> str:
    """What each price on KL gives at equal KL, in words."""
    equal = prices[prices["group"] == PRICE_OUTCOMES["difference"]]
    values = [f"{value:+.2f}".replace("-", "−") for value in equal["value"]]
    texts = [f"{level} {value}" for level, value in zip(equal["level"], values, strict=True)]
    return "Gold against the free run stopped at equal KL: " + _judged(texts, equal)


def ensemble_sentence(effects: pd.DataFrame) -> str:
    """How much of the fall under RL each ensemble saves, in words; of best-of-n where no RL run had one."""
    saved = effects[(effects["group"] == ENSEMBLE_OUTCOMES["saved"]) & effects["share"].notna()]
    rl = saved[saved["level"].str.startswith("RL")]
    rows = rl if len(rl) else saved
    texts = [f"{level} {_saved(share)} the fall" for level, share in zip(rows["level"], rows["share"], strict=True)]
    return _judged(texts, rows) or "Nothing falls that ensembles could save"


def _judged(texts: list[str], rows: pd.DataFrame) -> str:
    """The texts of differences in one line, with a word where they are not significant; none without an interval."""
    doubtful = (~rows["significant"].astype(bool) & rows["low"].notna()).tolist()
    if len(texts) > 1 and all(doubtful):
        return f"{', '.join(texts)} (all within chance)"
    return ", ".join(text + " (within chance)" * doubt for text, doubt in zip(texts, doubtful, strict=True))


def _saved(share: float) -> str:
    if abs(share) < 0.005:
        return "saves nothing of"
    return f"saves {share:.0%} of" if share > 0 else f"adds {-share:.0%} to"
