"""What a factor (pairs, weights, noise, ensemble, penalty) does to an outcome, compared within units.

A unit is what was drawn anew and went through all levels of the factor: a (world, seed). Tables have one row per unit
and level, with columns world, seed, the factor and outcomes. Intervals have level .95 and are over units, those of one
world treated as in `covariance_of_mean`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.kl import places_on_path, values_at_places
from workbench.analysis.statistics import holm, interval_over_units, p_value_over_units

UNIT = ["world", "seed"]


class Effect(NamedTuple):
    """A mean over units with its interval; NaN where one unit, or none, says nothing about it."""

    label: str  # what it is an effect of, on what
    value: float
    low: float
    high: float
    p_alone: float
    p_value: float  # Holm's over all effects that are judged together
    units: int
    worlds: int
    left_out: int  # units that lack a level or the outcome

    @property
    def significant(self) -> bool:
        """p below .05, so an interval of one effect alone leaves out 0."""
        return self.p_value < 0.05

    @property
    def sentence(self) -> str:
        """The finding in words, an honest "no" among them."""
        if self.units == 0:
            return f"{self.label}: not measured."
        if self.units == 1:
            return f"{self.label}: {self.value:+.3g} in the only unit; one unit has no interval."
        interval = f"{self.value:+.3g} ({self.low:+.3g} to {self.high:+.3g})"
        verdict = "" if self.significant else f", within chance (p = {self.p_value:.2g})"
        return f"{self.label}: {interval} over {self.units} units of {self.worlds} worlds{verdict}."


def effect_of(table: pd.DataFrame, factor: str, outcome: str) -> Effect:
    """Slope of `outcome` per doubling of `factor` (a number above 0: pairs, weights), mean over units.

    Each unit has its own least-squares line through all its levels, so that what makes units differ takes no part.
    Units with fewer than two levels are left out. WorkbenchError where none is left, and for a factor not above 0.
    """
    known = _measured(table, factor, outcome)
    if not (pd.to_numeric(known[factor], errors="coerce") > 0).all():
        raise WorkbenchError(f"{factor} holds {known[factor].unique().tolist()}: a doubling needs numbers above 0.")
    known = known.assign(doublings=np.log2(known[factor].astype(float)))
    slopes = {
        unit: np.polyfit(part["doublings"], part[outcome], 1)[0]
        for unit, part in known.groupby(UNIT)
        if part["doublings"].nunique() > 1
    }
    if not slopes:
        raise WorkbenchError(f"No unit has {outcome} at two levels of {factor}: a slope needs runs that differ in it.")
    return _effect(pd.Series(slopes), f"{outcome} per doubling of {factor}", table)


def effects_against(table: pd.DataFrame, factor: str, outcome: str, *, baseline) -> pd.DataFrame:
    """Difference in `outcome` of every other level of `factor` (a kind or number) from `baseline`, within units.

    One row per level, as `mean_effects`. WorkbenchError where the baseline, or every other level, is missing.
    """
    known = _measured(table, factor, outcome)
    levels = [level for level in table[factor].unique() if level != baseline]
    if baseline not in set(known[factor]) or not levels:
        raise WorkbenchError(
            f"{outcome} is known at {factor} {known[factor].unique().tolist()}: {baseline!r} has nothing to compare."
        )
    cells = known.groupby([*UNIT, factor], sort=False)[outcome].mean().unstack(factor)
    differences = cells.reindex(columns=levels).sub(cells[baseline], axis=0)
    return _compared({level: differences[level].dropna() for level in levels}, f"{outcome} against {baseline}", table)


def mean_effects(differences: pd.DataFrame, factor: str, outcome: str = "difference") -> pd.DataFrame:
    """Mean over units of an `outcome` that is itself a difference, for each level of `factor`, in their order.

    Columns level, those of `Effect` (low and high of each level alone, p_value Holm's over the levels), significant
    and sentence; a level that was measured nowhere is NaN with 0 units.
    """
    known = _measured(differences, factor, outcome)
    means = known.groupby([factor, *UNIT])[outcome].mean()
    units = {level: means.get(level, pd.Series(dtype=float)) for level in differences[factor].unique()}
    return _compared(units, outcome, differences)


def judged_together(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """The effects (columns of `Effect`) of all `tables`, corrected as one family (Holm 1979); those of 0 units are out.

    What stands in one figure or list is looked at together, and the largest of it is what one remembers.
    """
    return _judged([row for table in tables for row in table.to_dict("records") if row["units"] > 0])


def _measured(table: pd.DataFrame, factor: str, outcome: str) -> pd.DataFrame:
    missing = {*UNIT, factor, outcome} - set(table)
    if missing:
        raise WorkbenchError(f"The table lacks {sorted(missing)}: give a row per unit and level, with world and seed.")
    known = table[np.isfinite(table[outcome].astype(float))]
    if known.empty:
        raise WorkbenchError(f"{outcome} is not known of any of {len(table)} runs: nothing can be said about {factor}.")
    return known


def _compared(values: dict, label: str, table: pd.DataFrame) -> pd.DataFrame:
    """Rows of `mean_effects` from the values over units, indexed (world, seed), of each level."""
    effects = {level: _effect(own, f"{level}: {label}", table) for level, own in values.items()}
    return _judged([{"level": level, **effect._asdict()} for level, effect in effects.items()])


def _judged(rows: list[dict]) -> pd.DataFrame:
    """Rows with the fields of `Effect` as one family: p_value, and significant and sentence, which follow from it."""
    for row, p_value in zip(rows, holm([row["p_alone"] for row in rows]), strict=True):
        row["p_value"] = float(p_value)
        effect = Effect(*(row[name] for name in Effect._fields))
        row |= {"significant": effect.significant, "sentence": effect.sentence}
    return pd.DataFrame(rows, columns=None if rows else ["units"])


def _effect(values: pd.Series, label: str, table: pd.DataFrame) -> Effect:
    """`values` of units, indexed (world, seed), averaged; `table` tells how many units there could have been."""
    units, possible = len(values), len(table[UNIT].drop_duplicates())
    if not units:
        return Effect(label, *[math.nan] * 5, units=0, worlds=0, left_out=possible)
    worlds = values.index.get_level_values(0)
    interval, p_value = (measure(values, worlds) for measure in (interval_over_units, p_value_over_units))
    return Effect(label, *interval, p_value, p_value, units=units, worlds=worlds.nunique(), left_out=possible - units)


def gain_over_stopping(free: pd.DataFrame, penalised: pd.DataFrame, *, score: str = "gold") -> pd.DataFrame:
    """What a KL penalty gives over stopping the free run of its unit early: `score` at equal KL, row by row.

    `free` has world, seed, step, kl (nats) and `score`, means of each unit's path without penalty; `penalised` has
    world, seed, kl, `score` and what else tells its rows apart, such as kl_coef. A free run is stopped where it first
    spends that KL, between its steps linearly in √KL. Adds free_<score> and difference, NaN where a unit has no free
    run or one that never spends as much; `mean_effects` averages them. WorkbenchError without those columns.
    """
    for name, part, columns in (
        ("free", free, [*UNIT, "step", "kl", score]),
        ("penalised", penalised, [*UNIT, "kl", score]),
    ):
        if not set(columns) <= set(part):
            raise WorkbenchError(
                f"{name} lacks {sorted(set(columns) - set(part))}: give means of runs that have {score}."
            )
    paths = {unit: part.sort_values("step") for unit, part in free.groupby(UNIT)}
    points = zip(penalised["world"], penalised["seed"], penalised["kl"], strict=True)
    stopped = [_stopped(paths.get((world, seed)), kl, score) for world, seed, kl in points]
    return penalised.assign(**{f"free_{score}": stopped, "difference": penalised[score] - np.array(stopped)})


def _stopped(path: pd.DataFrame | None, kl: float, score: str) -> float:
    if path is None or not np.isfinite(kl):
        return math.nan
    known = path[np.isfinite(path["kl"]) & np.isfinite(path[score])]
    return math.nan if known.empty else float(values_at_places(known[score], places_on_path(known["kl"], [kl]))[0])
