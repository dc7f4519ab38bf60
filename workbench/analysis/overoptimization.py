"""Laws of overoptimization fitted to gold against KL: R(d) = d (a - b d) for best-of-n, d (a - b log d) for RL.

d is the square root of KL(policy || start) in nats, R the gold (or proxy) reward gained over the start, so that
R(0) = 0. Gao et al. 2022, section 3.1; the paper fits proxy curves only loosely, and so does this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.statistics import (
    UNKNOWN,
    Interval,
    MeanCovariance,
    covariance_of_mean,
    finite_array,
    interval_over_units,
    mean_and_error,
    ratio_interval,
    share_over_units,
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
        gained = f"{gain.value:.2g} ({gain.low:.2g} to {gain.high:.2g})"
        return f"Peak at {kl.value:.2g} nats ({ends}){where}, gain {gained}."


def fit_overoptimization(
    kl, gain, *, form: str, standard_errors=None, clusters: Sequence | None = None, worlds: Sequence | None = None
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
    weighted, gains = design * scale[:, None], points.gain * scale
    own = np.array([np.linalg.lstsq(weighted[run], gains[run])[0] for run in points.runs])
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
    keys = [name for name in ("world", "run") if name in points] or [np.zeros(len(points))]
    points["run"] = points.groupby(keys).ngroup()
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
    beyond = points[points["kl"] > 0].groupby("run").filter(lambda own: len(own) >= 3 and own["kl"].nunique() >= 2)
    rows = {}
    for name, own in beyond.groupby("run"):
        others = beyond[beyond["run"] != name]
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
        excess = interval_over_units(more, errors["world"]) if more.notna().all() else UNKNOWN
        row |= {f"{name}_rmse": errors[name].mean()} | excess.columns(f"{name}_excess")
    return row


def forms_sentence(table: pd.DataFrame) -> str:
    """What `compare_forms` found, in words."""
    best, other = table.iloc[0], table.iloc[1]
    r2 = f"{best['own_r2']:.2f} against {other['own_r2']:.2f}"
    text = f"{best['law']} fits better: mean R² {r2} of each run's own fit"
    low, high = other["own_excess_low"], other["own_excess_high"]
    if np.isnan(low):
        return f"{text}, AIC lower by {other['aic'] - best['aic']:.1f}; one run, so by chance or not is open."
    verdict = "" if low > 0 else ": the two can not be told apart"
    return (
        f"{text}, a run's points are {other['own_excess']:.2g} further from the other law "
        f"({low:.2g} to {high:.2g} over {best['runs']} runs){verdict}."
    )


# --- Where a mean over prompts is highest among several places (steps, sizes), without flattering what is found
# there.


PARTS, SPLITS, RESAMPLES = 3, 7, 200


def crossfit_peak(
    values, reads: Mapping[str, np.ndarray], *, prompts: Sequence | None = None, seed: int = 0
) -> dict[str, Interval]:
    """What the place with the highest mean of `values` (M, S) is worth, chosen and read on different prompts.

    The highest of S noisy means is too high. So two thirds of the prompts choose the place and the last third is read
    there, each third in turn, over `SPLITS` splits: chance then sets the peak too low on average, never too high. Keys
    height, rise (over the first place), fall (to the last) and each of `reads` (M, S) at the place chosen; and place,
    the highest of all prompts, 0..S-1. Rows of equal `prompts` (M,) are one draw. Intervals have level .95, over
    prompts drawn anew, of which the place is chosen anew, so they include the choice: .94 to .97 of simulated heights
    hold the highest true mean, and of rises and falls .94 to 1 (1 where all are equal or the peak itself is the place
    compared with). WorkbenchError for fewer than two places or prompts, and values that are not finite.
    """
    values = finite_array(values, name="values")
    groups = np.arange(len(values)) if prompts is None else pd.factorize(np.asarray(prompts))[0]
    if values.shape[1] < 2 or groups.max() < 1:
        raise WorkbenchError(f"{values.shape[1]} steps of {groups.max() + 1} prompts: a peak needs 2 of each.")
    read, means = _drawn_anew(np.stack([values, *reads.values()], axis=2), groups, np.random.default_rng(seed))
    half = student_quantile(0.975, groups.max())
    names = ("height", *reads)
    found = {name: _interval(read[:, k], read[1:, k].std(ddof=1), half) for k, name in enumerate(names)}
    for name, place in (("rise", 0), ("fall", -1)):
        change = read[:, 0] - means[:, place]
        found[name] = _interval(change, _least_error(change, means, place), half)
    places = means.argmax(axis=1)
    ends = np.quantile(places[1:], [0.025, 0.975], method="nearest")
    return found | {"place": Interval(int(places[0]), *map(int, ends))}


def _drawn_anew(rows: np.ndarray, groups: np.ndarray, generator) -> tuple[np.ndarray, np.ndarray]:
    """What is read of `rows` (M, S, Q) at the place chosen, (B, Q), and the means (B, S) of what chooses, the first Q.

    First of the prompts (`groups`, (M,)) as they are, then of `RESAMPLES` times as many drawn with replacement.
    """
    count = groups.max() + 1
    sums = np.zeros((count, *rows.shape[1:]))
    np.add.at(sums, groups, rows)
    times = generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    times = np.concatenate([np.ones((1, count)), times])  # how often each prompt is there
    drawn = (times @ np.bincount(groups))[:, None, None]
    every, samples = np.tensordot(times, sums, axes=1) / drawn, np.arange(len(times))
    read = np.zeros((len(times), rows.shape[2]))
    for parts in generator.permuted(np.tile(np.arange(count) % PARTS, (SPLITS, 1)), axis=1):
        for own in (parts == part for part in range(PARTS)):
            held_out = np.tensordot(times[:, own], sums[own], axes=1) / drawn
            read += held_out[samples, (every - held_out)[:, :, 0].argmax(axis=1)] / SPLITS
    return read, every[:, :, 0]


def _least_error(change: np.ndarray, means: np.ndarray, place: int) -> float:
    """Standard error of a change (B,) from `place`, at least that of the best other place.

    Where the place itself seems highest, all choose it: a change of 0 without spread, and no less uncertain.
    """
    others = np.delete(means, place, axis=1)
    best = others[1:, others[0].argmax()] - means[1:, place]
    return max(change[1:].std(ddof=1), best.std(ddof=1))


def _interval(values: np.ndarray, error: float, half: float) -> Interval:
    return Interval(float(values[0]), float(values[0] - half * error), float(values[0] + half * error))


# --- How far training runs went past their best: the peak of gold, and the fall from there. Gao et al. 2022.


SCORES = ("kl", "kl_k1", "kl_k3", "proxy", "gold", "completion_length", "finished")
SCORE_PREFIXES = ("gold_", "judge_")


def peak_and_fall(metrics: pd.DataFrame, *, window: int = 10) -> dict[str, float]:
    """Step, KL and gold of a run at its best, and how much lower it ended; nats and gold units.

    The peak is chosen where the running mean of `gold` over `window` training batches is highest, and its gold is read
    from the next measurement on held-out prompts (`held_out_gold`), which had no part in choosing it; so is the end's.
    Batches after the last measurement are left out.
    Keys peak_step, peak_kl, peak_gold, end_gold, fall. Raises WorkbenchError where nothing was measured.
    """
    if "held_out_gold" not in metrics or metrics["held_out_gold"].isna().all():
        raise WorkbenchError("The metrics hold no held_out_gold: this run has no gold reward, or never measured it.")
    measured = metrics.dropna(subset=["held_out_gold"])
    followed = metrics[metrics["step"] <= measured["step"].iloc[-1]]  # a run may stop between two measurements
    running = followed["gold"].rolling(window, min_periods=1, center=True).mean()
    peak_step = followed.loc[running.idxmax(), "step"]
    after = measured[measured["step"] >= peak_step].iloc[0]
    end = measured.iloc[-1]
    return {
        "peak_step": int(after["step"]),
        "peak_kl": float(after["held_out_kl"]),
        "peak_gold": float(after["held_out_gold"]),
        "end_gold": float(end["held_out_gold"]),
        "fall": float(after["held_out_gold"] - end["held_out_gold"]),
    }


def path_means(path: pd.DataFrame) -> pd.DataFrame:
    """One row per step of a run's table `path`: prompts, and mean and standard error over prompts of every score.

    Scores are the KL (nats, exact and by estimators), proxy, gold and its components, judges, completion_length and
    finished, errors are named <score>_se. gold_gain and proxy_gain are taken prompt by prompt over the first step, so
    their errors are of that difference. A score with NaN at a step has NaN there: a mean of the rest would mislead.
    """
    steps = [(step, part) for step, part in path.groupby("step")]
    measured = {name: _by_prompt(path, name) for name in _scores(path)}
    for name in ("gold", "proxy"):
        if name in measured:
            measured[f"{name}_gain"] = measured[name].sub(measured[name].iloc[0], axis=1)
    means = pd.DataFrame({"step": [step for step, _ in steps], "prompts": [len(part) for _, part in steps]})
    for name, rows in measured.items():
        pairs = [_mean_of_known(row) for row in rows.to_numpy(dtype=float)]
        means[name], means[f"{name}_se"] = np.array(pairs).T
    return means


def _scores(path: pd.DataFrame) -> list[str]:
    named = [name for name in path if name in SCORES or name.startswith(SCORE_PREFIXES)]
    return [name for name in named if path[name].notna().any()]


def _by_prompt(path: pd.DataFrame, score: str) -> pd.DataFrame:
    """Steps by prompts, in order of training; WorkbenchError unless every step answers the same prompts once."""
    if path.duplicated(["step", "row"]).any() or path.groupby("step")["row"].nunique().nunique() > 1:
        said = "The table path does not hold each prompt once per step: it is of several runs, or cut off."
        raise WorkbenchError(said)
    return path.pivot(index="step", columns="row", values=score)


def _mean_of_known(row: np.ndarray) -> tuple[float, float]:
    return tuple(map(float, mean_and_error(row))) if np.isfinite(row).all() else (np.nan, np.nan)


def held_out_peak(path: pd.DataFrame) -> dict[str, float]:
    """Where the gold of a run is highest and how far it falls from there to its end, without flattering the peak.

    Each third of the prompts of the table `path` is read at the step (step 0, the start, among them) where the mean
    gold of the others is highest: see `crossfit_peak`. Keys peak_kl (nats), peak_gold; rise (peak - start) and drop
    (peak - end), each of these with _low and _high, 95% over prompts, the choice included; peak_step, the highest of
    all prompts; start_gold, end_gold, end_kl. Raises WorkbenchError without gold, for gold or KL that is NaN, and for
    fewer than two steps or two prompts.
    """
    if "gold" not in path or path["gold"].isna().all():
        raise WorkbenchError("The table path holds no gold: this run has no gold reward to fall from.")
    gold, kl = _by_prompt(path, "gold"), _by_prompt(path, "kl")
    wrong = gold.index[~(np.isfinite(gold) & np.isfinite(kl)).all(axis=1)]
    if len(wrong):
        raise WorkbenchError(f"gold or KL is NaN or infinite at step {wrong[0]}: drop the steps from there on.")
    prompts = path.drop_duplicates("row").set_index("row").loc[gold.columns, "prompt"]
    found = crossfit_peak(gold.T.to_numpy(), {"kl": kl.T.to_numpy()}, prompts=prompts)
    peak = {"peak_step": int(gold.index[found["place"].value])}
    names = {"peak_kl": "kl", "peak_gold": "height", "rise": "rise", "drop": "fall"}
    for name, key in names.items():
        peak |= found[key].columns(name)
    ends = {"start_gold": gold.iloc[0], "end_gold": gold.iloc[-1], "end_kl": kl.iloc[-1]}
    return peak | {name: float(values.mean()) for name, values in ends.items()}


class RiseAndFall(NamedTuple):
    """How regularly runs rose and then fell; intervals of level .95 over runs, worlds as in `covariance_of_mean`."""

    share: Interval  # of runs that did both
    rise: Interval  # gold units, start to peak
    drop: Interval  # peak to end
    runs: int
    worlds: int
    by: float

    @property
    def sentence(self) -> str:
        """The finding in words."""
        count = round(self.share.value * self.runs)
        text = f"Gold rises by more than {self.by:g} and then falls by more than that in {count} of {self.runs} runs"
        if self.runs == 1:
            return f"{text}: up {self.rise.value:.2f}, down {self.drop.value:.2f}; one run has no interval."
        up, down = (f"{value:.2f} ({low:.2f} to {high:.2f})" for value, low, high in (self.rise, self.drop))
        return f"{text} ({self.share.low:.0%} to {self.share.high:.0%}): up {up}, down {down} on average."


def rise_and_fall(peaks: pd.DataFrame, *, by: float = 0.1) -> RiseAndFall:
    """Share of runs that rise and then fall by more than `by` gold each, and the mean rise and drop, with intervals.

    `peaks` has a row per run: world, rise, drop. Runs whose rise is NaN are left out; WorkbenchError where all are.
    """
    known = peaks[peaks["rise"].notna()]
    if known.empty:
        raise WorkbenchError(f"None of {len(peaks)} runs has a peak to count: they need gold at the start and later.")
    both = (known["rise"] > by) & (known["drop"] > by)
    return RiseAndFall(
        share=share_over_units(both, known["world"])._replace(value=float(both.mean())),
        rise=interval_over_units(known["rise"], known["world"]),
        drop=interval_over_units(known["drop"], known["world"]),
        runs=len(known),
        worlds=known["world"].nunique(),
        by=by,
    )
