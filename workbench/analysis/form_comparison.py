"""Which law of overoptimization fits better, that of best-of-n or that of RL: on each run, and on runs held out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from workbench.analysis.gao_fit import FORMS, OveroptimizationFit, fit_overoptimization
from workbench.analysis.statistics import Interval, interval_over_units

LAWS = {"best_of_n": "d (a - b d)", "rl": "d (a - b log d)"}


def compare_forms(
    kl, gain, *, standard_errors=None, clusters: Sequence | None = None, worlds: Sequence | None = None
) -> pd.DataFrame:
    """Both laws fitted to the same points (arguments of `fit_overoptimization`): one row each, the better one first.

    Columns form, law; r2, own_r2, residual_sd and aic as in `OveroptimizationFit`, and aic_difference to the lower one;
    points, runs; own_rmse, how far a run's points are from the law fitted to that run alone, and left_out_rmse, from
    the law of all other runs, means over runs in reward units; and how much more these are than those of the other law,
    own_excess and left_out_excess, each with its interval over runs in _low and _high. Better is the lower own_rmse
    (both laws have two coefficients, so neither has an advantage). aic takes the points of a run as independent. Of a
    single run there are no intervals and nothing to leave out: NaN.
    """
    given = {"kl": kl, "gain": gain, "standard_errors": standard_errors, "run": clusters, "world": worlds}
    points = pd.DataFrame({name: np.asarray(values) for name, values in given.items() if values is not None})
    points["run"] = points.groupby(
        [name for name in ("world", "run") if name in points] or [np.zeros(len(points))]
    ).ngroup()
    fits = {form: _fit(points, form) for form in FORMS}
    errors = {form: _errors_of_runs(points, form) for form in FORMS}
    lowest = min(fit.aic for fit in fits.values())
    rows = []
    for form, other in (FORMS, FORMS[::-1]):
        row = {"form": form, "law": LAWS[form]}
        row |= {name: getattr(fits[form], name) for name in ("r2", "own_r2", "residual_sd", "aic", "points", "runs")}
        rows.append(row | {"aic_difference": row["aic"] - lowest} | _compared(errors[form], errors[other]))
    return pd.DataFrame(rows).sort_values("own_rmse", ignore_index=True)


def _fit(points: pd.DataFrame, form: str) -> OveroptimizationFit:
    columns = {"standard_errors": "standard_errors", "clusters": "run", "worlds": "world"}
    given = {name: points[column] for name, column in columns.items() if column in points}
    return fit_overoptimization(points["kl"], points["gain"], form=form, **given)


def _errors_of_runs(points: pd.DataFrame, form: str) -> pd.DataFrame:
    """Root mean squared errors of each run that can be fitted: own, left_out (NaN for a single run), and its world."""
    beyond = points[points["kl"] > 0]
    enough = beyond.groupby("run")["kl"].agg(["size", "nunique"])
    rows = {}
    usable = enough.index[(enough["size"] >= 3) & (enough["nunique"] >= 2)]
    beyond = beyond[beyond["run"].isin(usable)]
    for name in usable:
        own, others = beyond[beyond["run"] == name], beyond[beyond["run"] != name]
        row = {"own": _error(own, own, form), "world": own["world"].iloc[0] if "world" in own else name}
        rows[name] = row | {"left_out": _error(others, own, form) if len(others) else np.nan}
    return pd.DataFrame.from_dict(rows, orient="index")


def _error(fitted: pd.DataFrame, measured: pd.DataFrame, form: str) -> float:
    return float(((measured["gain"] - _fit(fitted, form).predicted(measured["kl"])) ** 2).mean() ** 0.5)


def _compared(errors: pd.DataFrame, others: pd.DataFrame) -> dict[str, float]:
    """The columns of `compare_forms` that average over runs."""
    row = {}
    for name in ("own", "left_out"):
        more = errors[name] - others[name]
        excess = interval_over_units(more, errors["world"]) if more.notna().all() else Interval(*[np.nan] * 3)
        row |= {f"{name}_rmse": errors[name].mean(), f"{name}_excess": excess.value}
        row |= {f"{name}_excess_low": excess.low, f"{name}_excess_high": excess.high}
    return row


def forms_sentence(table: pd.DataFrame) -> str:
    """What `compare_forms` found, in words."""
    best, other = table.iloc[0], table.iloc[1]
    text = (
        f"{best['law']} fits better: mean R² {best['own_r2']:.2f} against {other['own_r2']:.2f} of each run's own fit"
    )
    low, high = other["own_excess_low"], other["own_excess_high"]
    if np.isnan(low):
        return f"{text}, AIC lower by {other['aic'] - best['aic']:.1f}; one run, so by chance or not is open."
    verdict = "" if low > 0 else ": the two can not be told apart"
    return (
        f"{text}, a run's points are {other['own_excess']:.2g} further from the other law "
        f"({low:.2g} to {high:.2g} over {best['runs']} runs){verdict}."
    )
