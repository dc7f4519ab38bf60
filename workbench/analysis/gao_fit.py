"""Laws of overoptimization fitted to gold against KL: R(d) = d (a - b d) for best-of-n, d (a - b log d) for RL.

d is the square root of KL(policy || start) in nats, R the gold (or proxy) reward gained over the start, so that
R(0) = 0. Gao et al. 2022, section 3.1; the paper fits proxy curves only loosely, and so does this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.statistics import (
    Interval,
    MeanCovariance,
    covariance_of_mean,
    finite_array,
    interval_over_units,
    ratio_interval,
    student_quantile,
)

FORMS = ("best_of_n", "rl")


class Peak(NamedTuple):
    """Where a fitted law is highest: KL in nats (its upper end inf where the data set none) and the gain there."""

    kl: Interval
    gain: Interval
    inside: bool  # within the KL that was measured; else it is extrapolated


@dataclass(frozen=True, kw_only=True)
class OveroptimizationFit:
    """A fitted law; intervals have level .95."""

    form: str  # "best_of_n" or "rl"
    alpha: Interval  # reward per root nat
    beta: Interval
    peak: Peak | None  # None: the law has no highest point; `peak_sentence` says why
    r2: float  # 1 - residual / total variance of all gains; below 0 where their mean alone fits better
    own_r2: float  # mean over runs of that of each run's own law and gains: what the form can do where runs differ
    residual_sd: float  # reward units, of a point of mean weight
    aic: float  # takes points as independent; compare_forms holds runs out instead
    points: int  # with kl > 0: at 0 every law is 0
    runs: int
    left_out: int  # runs with too few points
    largest_kl: float
    law: MeanCovariance = field(repr=False)  # of (alpha, beta)

    def predicted(self, kl) -> np.ndarray:
        """Gain over the start at `kl` (M,) nats, (M,)."""
        return _design(_root(kl), self.form) @ self.law.mean

    def curve(self, kl) -> pd.DataFrame:
        """Columns kl, root_kl, predicted, and low and high, the 95% band of the law at each single KL."""
        rows = _design(_root(kl), self.form)
        half = _half_widths(rows, self.law)
        columns = {"kl": np.asarray(kl, dtype=float), "root_kl": _root(kl), "predicted": rows @ self.law.mean}
        return pd.DataFrame(columns | {"low": columns["predicted"] - half, "high": columns["predicted"] + half})

    @property
    def peak_sentence(self) -> str:
        """Where the law peaks, or why it does not."""
        if self.peak is None:
            course = "it falls from the start" if self.beta.value > 0 else "it never turns down"
            return f"No peak: with a = {self.alpha.value:.2g}, b = {self.beta.value:.2g} {course}."
        kl, gain, inside = self.peak
        ends = f"at least {kl.low:.2g}" if np.isinf(kl.high) else f"{kl.low:.2g} to {kl.high:.2g}"
        where = "" if inside else f", beyond the {self.largest_kl:.3g} nats measured"
        return (
            f"Peak at {kl.value:.2g} nats ({ends}){where}, gain {gain.value:.2g} ({gain.low:.2g} to {gain.high:.2g})."
        )


def fit_overoptimization(
    kl,
    gain,
    *,
    form: str,
    standard_errors=None,
    clusters: Sequence | None = None,
    worlds: Sequence | None = None,
) -> OveroptimizationFit:
    """Least squares of `form` over points `kl` (M,) nats and `gain` (M,), weighted by 1 / `standard_errors`^2 if given.

    Subtract the start before: gold on the same prompts at step 0 or n = 1. `clusters` (M,) names the run of each point.
    Every run is fitted alone and the coefficients are averaged (Swamy 1970, unweighted): with the same KLs in every run
    that is least squares over all points. Points of a run hang together, so intervals are Student's t over runs, with
    `worlds` (M,) treated as in `covariance_of_mean`; robust errors of one fit to all points cover less, because the few
    runs that go far rule it. Of a single run they come from residuals taken as independent, and are too narrow where
    these are not, as for best-of-n from one pool. Runs with fewer than 3 points, or 2 KLs, are left out. Raises
    WorkbenchError where none remains, for another form, KL below 0 and values not finite.
    """
    points = _points(kl, gain, standard_errors=standard_errors, clusters=clusters, worlds=worlds)
    design, scale = _design(points.d, form), np.sqrt(points.weight)
    own = np.array([_least_squares(design[run] * scale[run, None], (points.gain * scale)[run]) for run in points.runs])
    law = covariance_of_mean(own, points.worlds) if len(own) > 1 else _law_of_one_run(points, design, own[0])
    half = _half_widths(np.eye(2), law)
    alpha, beta = (Interval(*map(float, (v, v - h, v + h))) for v, h in zip(law.mean, half, strict=True))
    return OveroptimizationFit(
        form=form,
        alpha=alpha,
        beta=beta,
        peak=_peak(law, form, points.d.max()),
        **_goodness(points, design @ law.mean, sum(design[:, k] * own[points.run, k] for k in (0, 1))),
        points=len(points.d),
        runs=len(own),
        left_out=points.left_out,
        largest_kl=float(points.d.max() ** 2),
        law=law,
    )


class _Points(NamedTuple):
    """What is fitted: M points beyond the start, of R runs that have enough of them, run after run."""

    d: np.ndarray  # (M,)
    gain: np.ndarray  # (M,)
    weight: np.ndarray  # (M,), mean 1
    run: np.ndarray  # (M,), 0..R-1
    runs: list[np.ndarray]  # R times the rows of one
    worlds: list  # (R,)
    left_out: int


def _points(kl, gain, *, standard_errors, clusters, worlds) -> _Points:
    d = _root(kl)
    error = np.ones(len(d)) if standard_errors is None else finite_array(standard_errors, name="standard_errors")
    columns = {"kl": d, "gain": finite_array(gain, name="gain"), "standard_errors": error}
    columns |= {"clusters": np.zeros(len(d), dtype=int) if clusters is None else np.asarray(clusters)}
    columns |= {"worlds": columns["clusters"] if worlds is None else np.asarray(worlds)}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise WorkbenchError(f"Unequal lengths {lengths}: give one value per point.")
    if (error[d > 0] <= 0).any():
        raise WorkbenchError("standard_errors holds 0 or less at a KL above 0: give each point its own, or none.")
    runs = {}  # by world, too: two worlds may name their runs alike, by seeds
    for row in np.flatnonzero(d > 0):
        runs.setdefault((columns["worlds"][row], columns["clusters"][row]), []).append(row)
    used = {key: rows for key, rows in runs.items() if len(rows) >= 3 and len(np.unique(d[rows])) >= 2}
    if not used:
        raise WorkbenchError(f"{(d > 0).sum()} points with KL above 0: a fit needs a run with 3, at 2 different KLs.")
    order = np.concatenate(list(used.values()))
    run = np.repeat(np.arange(len(used)), [len(rows) for rows in used.values()])
    rows = np.split(np.arange(len(order)), np.flatnonzero(np.diff(run)) + 1)
    weight = error[order] ** -2.0
    named = [world for world, _ in used]
    return _Points(d[order], columns["gain"][order], weight / weight.mean(), run, rows, named, len(runs) - len(used))


def _root(kl) -> np.ndarray:
    kl = finite_array(kl, name="kl")
    if kl.min() < 0:
        raise WorkbenchError(f"kl holds {kl.min():.3g}: KL is never below 0; give the exact one or a mean of k3.")
    return np.sqrt(kl)


def _design(d: np.ndarray, form: str) -> np.ndarray:
    """Rows (d, -d f(d)), (M, 2), so that R = design @ (a, b)."""
    if form not in FORMS:
        raise WorkbenchError(f"form is {form!r}: choose one of {', '.join(FORMS)}.")
    shape = d if form == "best_of_n" else np.log(np.where(d > 0, d, 1.0))  # d log d is 0 at 0
    return np.stack([d, -d * shape], axis=1)


def _least_squares(design: np.ndarray, gain: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(design, gain, rcond=None)[0]


def _law_of_one_run(points: _Points, design: np.ndarray, law: np.ndarray) -> MeanCovariance:
    residuals, freedom = points.gain - design @ law, len(points.d) - 2
    inverse = np.linalg.inv(design.T @ (design * points.weight[:, None]))
    return MeanCovariance(law, inverse * (points.weight @ residuals**2) / freedom, freedom)


def _goodness(points: _Points, predicted: np.ndarray, own: np.ndarray) -> dict[str, float]:
    """r2, residual_sd and aic of the law's `predicted` (M,) and own_r2 of what each run's `own` predicts, (M,)."""
    gain, weight, count = points.gain, points.weight, len(points.gain)
    squares = float(weight @ (gain - predicted) ** 2)
    variance = max(squares / count, np.finfo(float).tiny)  # 0 of points that a law meets exactly
    aic = 4 + count * (math.log(2 * math.pi * variance) + 1) - np.log(weight).sum()  # Akaike 1974, normal errors
    of_runs = [_r2(gain[run], own[run], weight[run]) for run in points.runs]
    return {
        "r2": _r2(gain, predicted, weight),
        "own_r2": float(np.mean([value for value in of_runs if not math.isnan(value)] or [math.nan])),
        "residual_sd": (squares / (count - 2)) ** 0.5,
        "aic": float(aic),
    }


def _r2(gain: np.ndarray, predicted: np.ndarray, weight: np.ndarray) -> float:
    """1 - residual / total variance, NaN without any to explain."""
    total = float(weight @ (gain - np.average(gain, weights=weight)) ** 2)
    return 1 - float(weight @ (gain - predicted) ** 2) / total if total > 0 else math.nan


def _half_widths(rows: np.ndarray, law: MeanCovariance) -> np.ndarray:
    """Half the 95% intervals of `rows` (M, 2) @ (a, b), (M,)."""
    return student_quantile(0.975, law.freedom) * np.sqrt(np.einsum("mi,ij,mj->m", rows, law.covariance, rows))


def _peak(law: MeanCovariance, form: str, largest_d: float) -> Peak | None:
    """d* = a/2b or exp(a/b - 1): both rise with a/b, so the ends of its interval are those of d*."""
    a, b = law.mean
    if b <= 0 or (form == "best_of_n" and a <= 0):
        return None
    ratio = ratio_interval(law)
    with np.errstate(over="ignore"):  # beyond what a float holds, the peak is at inf
        places = np.maximum(ratio, 0) / 2 if form == "best_of_n" else np.exp(np.array(ratio) - 1)
        kl = Interval(*(places**2).tolist())
    if np.isinf(kl.value):
        return None
    rows = _design(places[:1], form)
    gain = float((rows @ law.mean)[0])
    # the law is flat at its peak, so a small error of the place adds nothing to that of the height
    half = float(_half_widths(rows, law)[0])
    return Peak(kl, Interval(gain, gain - half, gain + half), inside=bool(places[0] <= largest_d))


# --- Which law of overoptimization fits better, that of best-of-n or that of RL: on each run, and on runs held out.


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
