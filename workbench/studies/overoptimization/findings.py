"""What an overoptimization study found: fitted laws, and what moves the peak of gold.

Everything is compared within units (one world and seed), with the methods of `gao_fit` and `scaling`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.effects import effect_of, effects_against, judged_together
from workbench.analysis.form_comparison import compare_forms, forms_sentence
from workbench.analysis.gao_fit import fit_overoptimization
from workbench.analysis.overoptimization import rise_and_fall
from workbench.analysis.statistics import interval_over_units
from workbench.studies.overoptimization.levels import plain_pushes, swept

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
    row = {"R²": fit.r2}
    for name, interval in (("a", fit.alpha), ("b", fit.beta)):
        row |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    kl, gain = (fit.peak.kl, fit.peak.gain.value) if fit.peak else ((np.nan,) * 3, np.nan)
    row |= dict(zip(("peak_kl", "peak_kl_low", "peak_kl_high"), kl, strict=True))
    return row | {"peak_gain": gain, "peak": fit.peak_sentence}


def peaks_beside_laws(peaks: pd.DataFrame, fits: pd.DataFrame) -> pd.DataFrame:
    """Measured peaks (held out, mean over units in √KL) and those that the better laws predict, for `plot_laws`."""
    rows = []
    for optimiser, part in peaks.groupby("optimiser", sort=False):
        root = interval_over_units(np.sqrt(part["peak_kl"]), part["world"])
        gain = part["rise"].mean()
        place = dict(zip(("kl", "kl_low", "kl_high"), (max(end, 0.0) ** 2 for end in root), strict=True))
        rows.append({"optimiser": optimiser, "kind": "measured", **place, "gain": gain})
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
    rows = []
    if "label_noise" in levels:
        table = swept(peaks, levels["label_noise"], "label_noise", policy=policy)
        rows += _against(table, "label_noise", outcome, baseline=0.0, words="{:.0%} of labels flipped")
    if "labelers" in levels:
        table = swept(peaks, levels["labelers"], "labelers", policy=policy)
        rows += _against(table, "labelers", outcome, baseline="all", words="only labeler {}")
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
