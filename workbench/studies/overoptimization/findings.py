"""What an overoptimization study found: fitted laws, and what moves the peak of gold.

Everything is compared within units (one world and seed), by `analysis.overoptimization` and `analysis.effects`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.effects import (
    UNIT,
    effect_of,
    effects_against,
    gain_over_stopping,
    judged_together,
    mean_effects,
)
from workbench.analysis.overoptimization import compare_forms, fit_overoptimization, forms_sentence, rise_and_fall
from workbench.analysis.statistics import UNKNOWN, Interval, interval_over_units
from workbench.studies.measurements import means_by
from workbench.studies.overoptimization.alarms import watched_runs
from workbench.studies.overoptimization.tables import (
    BEST_OF_N,
    JUDGE,
    RL,
    Study,
    ensemble_peaks,
    errors_in_common,
    plain_pushes,
    swept,
)

POINTS = 80  # of a fitted curve


def labelled(table: pd.DataFrame, models: pd.DataFrame, *, main: str, policy: str) -> pd.DataFrame:
    """`table` of pushes with a column label, what its reward model learned from and which other policy was pushed.

    Rows of the main reward model and policy come first, then in the order of their labels.
    """
    words = models.set_index("reward_model")["label"]
    names = table["reward_model"].map(lambda name: words.get(name, name))
    names = names.where(table["policy"] == policy, names + ", policy " + table["policy"])
    first = ~((table["reward_model"] == main) & (table["policy"] == policy))
    order = table.assign(label=names, _later=first).sort_values(["_later", "label"], kind="stable")
    return order.drop(columns="_later").reset_index(drop=True)


def main_policy(pushes: pd.DataFrame) -> str:
    """The policy that most runs started from."""
    return str(pushes.drop_duplicates("run")["policy"].mode()[0])


def fitted_laws(curves: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both laws fitted to the gold that each optimiser gained over units: their curves, and a table of the fits.

    The table has optimiser, law, better, R², a and b with intervals, peak (a sentence), peak_kl with _low and _high and
    peak_gain, NaN where a law has none, and comparison (a sentence, the same for both). The curves are those of
    `OveroptimizationFit.curve`. Optimisers with too few points are left out.
    """
    lines, rows = [], []
    for optimiser, part in curves.dropna(subset=["gold_gain"]).groupby("optimiser", sort=False):
        given = {"clusters": part["run"], "worlds": part["world"]}
        try:
            compared = compare_forms(part["kl"], part["gold_gain"], **given)
        except WorkbenchError:
            continue
        for place, form in enumerate(compared["form"]):
            fit = fit_overoptimization(part["kl"], part["gold_gain"], form=form, **given)
            about = {"optimiser": optimiser, "law": compared["law"][place], "better": place == 0}
            grid = np.linspace(0, np.sqrt(part["kl"].max()), POINTS) ** 2
            lines.append(fit.curve(grid).assign(**about))
            rows.append(about | _fit_row(fit) | {"comparison": f"{optimiser}: {forms_sentence(compared)}"})
    return pd.concat(lines, ignore_index=True) if lines else pd.DataFrame(), pd.DataFrame(rows)


def _fit_row(fit) -> dict:
    kl, gain = (fit.peak.kl, fit.peak.gain.value) if fit.peak else (UNKNOWN, np.nan)
    row = {"R²": fit.r2} | fit.alpha.columns("a") | fit.beta.columns("b") | kl.columns("peak_kl")
    return row | {"peak_gain": gain, "peak": fit.peak_sentence}


def peaks_beside_laws(peaks: pd.DataFrame, fits: pd.DataFrame) -> pd.DataFrame:
    """Measured peaks (held out, mean over units in √KL) and those that the better laws predict, for `plot_laws`."""
    rows = []
    for optimiser, part in peaks.groupby("optimiser", sort=False):
        root = interval_over_units(np.sqrt(part["peak_kl"]), part["world"])
        place = Interval(*(max(end, 0.0) ** 2 for end in root)).columns("kl")
        rows.append({"optimiser": optimiser, "kind": "measured", **place, "gain": part["rise"].mean()})
    better = fits[fits["better"]] if len(fits) else fits
    for row in better.to_dict("records"):
        place = {name: row[f"peak_{name}"] for name in ("kl", "kl_low", "kl_high", "gain")}
        rows.append({"optimiser": row["optimiser"], "kind": "predicted", **place})
    return pd.DataFrame(rows)


def peaks_sentences(beside: pd.DataFrame) -> list[str]:
    """Whether the peak that each law of `peaks_beside_laws` predicts is the measured one, in words."""
    said = []
    for optimiser, rows in beside.groupby("optimiser", sort=False):
        rows = rows.set_index("kind")
        if set(rows.index) != {"measured", "predicted"} or np.isnan(rows.loc["predicted", "kl"]):
            continue
        law, seen = rows.loc["predicted"], rows.loc["measured"]
        verdict = "holds" if law["kl_low"] <= seen["kl"] <= law["kl_high"] else "excludes"
        places = [f"{row['kl']:.2g} nats{_between(row)} and a gain of {row['gain']:.2g}" for row in (law, seen)]
        text = "{}: the law predicts a peak at {}; measured it is at {}. The predicted interval {} the measured place."
        said.append(text.format(optimiser, *places, verdict))
    return said


def _between(row: pd.Series) -> str:
    return "" if np.isnan(row["kl_low"]) else f" ({row['kl_low']:.2g} to {row['kl_high']:.2g})"


def risen_and_fallen(peaks: pd.DataFrame, *, by: float = 0.1) -> pd.DataFrame:
    """`rise_and_fall` per optimiser: columns optimiser, runs, share (of runs that did both), rise, drop, sentence.

    Optimisers of which no run has both numbers are left out.
    """
    rows = []
    for optimiser, part in peaks.groupby("optimiser", sort=False):
        if part["rise"].notna().any():
            found = rise_and_fall(part, by=by)
            row = {"optimiser": optimiser, "runs": found.runs, "share": found.share.value, "rise": found.rise.value}
            rows.append(row | {"drop": found.drop.value, "sentence": f"{optimiser}: {found.sentence}"})
    return pd.DataFrame(rows, columns=["optimiser", "runs", "share", "rise", "drop", "sentence"])


def sweep_effects(peaks: pd.DataFrame, levels: Mapping[str, pd.DataFrame], *, policy: str) -> pd.DataFrame:
    """Slope of the height and of the place (√KL) of the peak per doubling of pairs and weights, per optimiser.

    Columns factor, optimiser, outcome and those of `judged_together`. Without rows where nothing was swept.
    """
    rows = []
    for factor in ("pairs", "weights"):
        table = swept(peaks, levels[factor], factor, policy=policy) if factor in levels else peaks.iloc[:0]
        for optimiser, part in table.groupby("optimiser", sort=False):
            part = part.assign(**{"√KL of the peak": np.sqrt(part["peak_kl"]), "gold at the peak": part["peak_gold"]})
            for outcome in ("gold at the peak", "√KL of the peak"):
                try:
                    effect = effect_of(part, factor, outcome)
                except WorkbenchError:  # no unit went through two levels
                    continue
                rows.append({"factor": factor, "optimiser": optimiser, "outcome": outcome, **effect._asdict()})
    return judged_together([pd.DataFrame(rows)])


def kind_effects(
    peaks: pd.DataFrame, levels: Mapping[str, pd.DataFrame], *, main: str, policy: str, outcome: str = "peak_gold"
) -> pd.DataFrame:
    """Differences in `outcome` that noise, a single labeler and another policy make; rows for `plot_effects`.

    `outcome` is a key of `held_out_peak`, or peak_root_kl. group is the optimiser. Label noise is compared with none, a
    labeler with all of them and as many comparisons, a policy with the main one, both pushed by the main reward model;
    as policies start apart, their rise is compared, too. Columns of `judged_together`.
    """
    peaks = peaks.assign(peak_root_kl=np.sqrt(peaks["peak_kl"])) if "peak_kl" in peaks else peaks
    own = plain_pushes(peaks)
    own = own[own["reward_model"] == main]
    rows, told = [], {"label_noise": (0.0, "{:.0%} of labels flipped"), "labelers": ("all", "only labeler {}")}
    for factor, (baseline, words) in told.items():
        if factor in levels:
            table = swept(peaks, levels[factor], factor, policy=policy)
            rows += _against(table, factor, outcome, baseline=baseline, words=words)
    rows += _against(own, "policy", outcome, baseline=policy, words="policy {}")
    if outcome == "peak_gold" and "rise" in own:
        rows += _against(own, "policy", "rise", baseline=policy, words="policy {}, over its start")
    return judged_together(rows)


def _against(table: pd.DataFrame, factor: str, outcome: str, *, baseline, words: str) -> list[pd.DataFrame]:
    """`effects_against` per optimiser, levels named in `words`; none where there is nothing to compare."""
    rows = []
    for optimiser, part in table.groupby("optimiser", sort=False):
        try:
            effects = effects_against(part, factor, outcome, baseline=baseline)
        except WorkbenchError:  # no unit has the baseline and another level
            continue
        rows.append(effects.assign(group=optimiser, level=effects["level"].map(words.format)))
    return rows


# --- What is tried against overoptimization, within units: a price on KL, stopping, ensembles, alarms without gold.


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
    levels = ends["experiment"].str.replace(r"^\d+_", "", regex=True)
    return ends.assign(level=levels, against_best=ends["gold"] - ends["best"])


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
    return means_by(pd.concat(known), ["members"], ["errors", "errors_given_gold"]) if known else pd.DataFrame()


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


# --- Hacked completions: what the proxy came to like and gold did not, a case for each way in which gold fell.


COMPONENT = "gold_"


def hacked_samples(paths: Mapping[str, pd.DataFrame], *, count: int = 6) -> pd.DataFrame:
    """One prompt per component of gold that fell, the reference's answer beside that of the policy at the end.

    `paths` are tables `path` with gold_<component>, by run. Components come by how much they fell on average, `count`
    at most; each is shown where it fell most among the answers that the proxy likes better and gold less than before,
    on a prompt that no row above shows, where there is one.
    Columns fell (the component), prompt, before, after, proxy, gold and component (changes), where (share of all
    prompts in which that component fell), run. Without rows where nothing was hacked or no component is known.
    """
    changes = [_changes(path).assign(run=run) for run, path in paths.items()]
    changes = pd.concat(changes, ignore_index=True) if changes else pd.DataFrame()
    names = [name for name in changes if name.startswith(COMPONENT) and changes[name].notna().all()]
    means, rows = changes[names].mean().sort_values() if names else pd.Series(dtype=float), []
    for name in means.index[means < 0]:
        fell = changes[(changes["proxy"] > 0) & (changes["gold"] < 0) & (changes[name] < 0)].sort_values(name)
        new = fell[~fell["prompt"].isin([row["prompt"] for row in rows])]
        if len(fell) and len(rows) < count:
            case = (new if len(new) else fell).iloc[0]
            row = {"fell": name.removeprefix(COMPONENT), **case[["prompt", "before", "after", "proxy", "gold"]]}
            where = float((changes[name] < 0).mean())
            rows.append(row | {"component": case[name], "where": where, "run": case["run"]})
    return pd.DataFrame(rows)


def _changes(path: pd.DataFrame) -> pd.DataFrame:
    """Prompt by prompt, what changed from the first step to the last: the texts, and every score's difference."""
    first, last = (path[path["step"] == step].set_index("row") for step in (path["step"].min(), path["step"].max()))
    if "gold" not in path or "proxy" not in path:
        return pd.DataFrame()
    scores = ["proxy", "gold", *(name for name in path if name.startswith(COMPONENT))]
    changes = last[scores] - first[scores]
    return changes.assign(prompt=first["prompt"], before=first["completion"], after=last["completion"]).reset_index()
