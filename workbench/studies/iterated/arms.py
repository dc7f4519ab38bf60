"""Runs that asked for labels again and again, by whose answers were judged: fresh ones, the start's, or all at once."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.effects import effects_against, judged_together
from workbench.analysis.overoptimization import held_out_peak
from workbench.runs import Run
from workbench.studies.measured_paths import unit_of
from workbench.studies.overoptimization.tables import curve_of

ARMS = {"fresh": "fresh labels", "none": "none fresh, refitted", "one_shot": "all labels at once"}
CONTROL = ARMS["none"]
OUTCOMES = {
    "gold": "gold at the end",
    "saved": "less fall from the peak",
    "accuracy": "accuracy of the last reward model",
}


def iterated_arms(runs: Iterable[Run]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Curves and ends of the finished runs of 13, without rows where there are none.

    Curves are those of `curve_of` with label (the arm), world, seed, run. Ends have one row per run: label, world,
    seed, run, kl and gold at the end, saved (the fall of gold from its held-out peak, with its sign turned) and
    accuracy (of the last reward model, against gold, on what the policy says at the end); NaN where not measured.
    """
    curves, ends = [], []
    for run in runs:
        if run.parameters.get("labels") not in ARMS or not run.finished or not run.path("tables/path.jsonl").exists():
            continue
        path, unit = run.table("path"), unit_of(run)
        about = {"label": ARMS[run.parameters["labels"]], "world": unit["world"], "seed": unit["seed"], "run": run.name}
        curve = curve_of(path)
        curves.append(curve.assign(**about))
        last = {name: curve[name].iloc[-1] if name in curve else np.nan for name in ("kl", "gold")}
        accuracy = run.summary().get("last accuracy")
        ends.append(about | last | {"saved": -_drop(path), "accuracy": np.nan if accuracy is None else accuracy})
    columns = ["label", "world", "seed", "run", "kl", "gold", "saved", "accuracy"]
    return pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(), pd.DataFrame(ends, columns=columns)


def arm_effects(ends: pd.DataFrame) -> pd.DataFrame:
    """Differences of each arm from the control within units, rows for `plot_effects`; none without a unit of both."""
    known = [name for name in OUTCOMES if ends[name].notna().any()] if CONTROL in set(ends["label"]) else []
    rows = []
    for outcome in known:
        try:
            effects = effects_against(ends, "label", outcome, baseline=CONTROL)
        except WorkbenchError:  # no unit has another arm, too
            continue
        rows.append(effects.assign(group=OUTCOMES[outcome]))
    return judged_together(rows)


def _drop(path: pd.DataFrame) -> float:
    try:
        return held_out_peak(path)["drop"]
    except WorkbenchError:
        return np.nan
