"""Labelers who agree as often as people do: one factor on everybody's noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from workbench.tasks.world.labelers import Labeler
from workbench.tasks.world.section import WorldError

if TYPE_CHECKING:
    from workbench.tasks.world import World

INSTRUCTGPT_AGREEMENT = 0.726  # of training labelers with each other, ± .015: Ouyang et al. 2022, section 3.4
WIDEST = 64.0  # factor up to which noise is raised or lowered
CLOSE = 1e-6  # of the agreement, where the search ends


def calibrated(
    world: World, labelers: Sequence[Labeler], items: Sequence[Mapping], *, target: float = INSTRUCTGPT_AGREEMENT
) -> tuple[Labeler, ...]:
    """The same tastes with all temperatures times one factor, so that two labelers agree with chance `target`.

    `items` are pairs, as for `judge_pairs`; the chance is computed, not sampled, so it holds for other pairs of the
    same kind within the error of their choice. WorldError where no noise leads there, with the range that is possible.
    """
    differences = _differences(world, labelers, items)

    def chance(factor: float) -> float:
        return _agreement([replace(each, temperature=each.temperature * factor) for each in labelers], differences)

    low, high = 1 / WIDEST, WIDEST
    if not chance(high) <= target <= chance(low):
        raise WorldError(
            f"target_agreement is {target}: these labelers agree on {chance(high):.3f} to {chance(low):.3f} of these "
            "pairs, however noisy they are; give a number between, or 0 to leave their noise as it is."
        )
    while chance(low) - chance(high) > CLOSE:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if chance(middle) > target else (low, middle)
    return tuple(replace(each, temperature=each.temperature * math.sqrt(low * high)) for each in labelers)


def expected_agreement(world: World, labelers: Sequence[Labeler], items: Sequence[Mapping]) -> float:
    """Chance that two labelers, drawn at random, give a pair the same verdict; a tie against a choice counts half.

    What `feedback.agreement.pairwise_agreement` estimates from their judgements; items that one of them skips count
    for neither.
    """
    return _agreement(labelers, _differences(world, labelers, items))


def _differences(world: World, labelers: Sequence[Labeler], items: Sequence[Mapping]) -> np.ndarray:
    """How much better each labeler finds the first completion of each item, (labelers, items), in units of utility."""
    if len(labelers) < 2 or not items:
        raise WorldError(f"{len(labelers)} labelers and {len(items)} items have no agreement: give two and an item.")
    return np.array([[_difference(world, labeler, item) for item in items] for labeler in labelers])


def _difference(world: World, labeler: Labeler, item: Mapping) -> float:
    answers = zip(item["completions"], item["finished"], strict=True)
    first, second = (labeler.utility(world, item["prompt"], text, finished) for text, finished in answers)
    return first - second


def _agreement(labelers: Sequence[Labeler], differences: np.ndarray) -> float:
    verdicts = [_verdicts(labeler, row) for labeler, row in zip(labelers, differences, strict=True)]
    agreed, weights = [], []
    for one, other in combinations(range(len(labelers)), 2):
        equal = (verdicts[one] * verdicts[other]).sum(axis=0)
        ties = verdicts[one][2], verdicts[other][2]
        agreed.append((equal + 0.5 * (ties[0] * (1 - ties[1]) + ties[1] * (1 - ties[0]))).mean())
        weights.append((1 - labelers[one].skip_rate) * (1 - labelers[other].skip_rate))
    return float(np.average(agreed, weights=weights))


def _verdicts(labeler: Labeler, differences: np.ndarray) -> np.ndarray:
    """Chances of the first, the second and a tie, (3, items), where the labeler does not skip."""
    tie = np.where(np.abs(differences) < labeler.same, labeler.tie_rate, 0.0)
    chosen = 1 / (1 + np.exp(-np.clip(differences / labeler.temperature, -30, 30)))
    first = labeler.lapse / 2 + (1 - labeler.lapse) * chosen
    return np.stack([(1 - tie) * first, (1 - tie) * (1 - first), tie])
