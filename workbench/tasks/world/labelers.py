"""Simulated labelers: Bradley-Terry choices on what each of them cares about and notices."""

from __future__ import annotations

import math
import random
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from workbench.tasks.world.language import SENTENCE
from workbench.tasks.world.lexicon import WorldError

if TYPE_CHECKING:
    from workbench.tasks.world import World


EULER = 0.5772156649015329  # mean of the standard Gumbel distribution
LARGEST_DIFFERENCE = 2.0  # in utility, that a labeler claims to see whose mind wanders


@dataclass(frozen=True, kw_only=True)
class Labeler:
    """A labeler's taste and attention."""

    name: str
    temperature: float  # of the Bradley-Terry choice, in units of utility: 0.1 is sure, 1 is noisy
    lapse: float  # share of judgements made by tossing a coin
    weights: Mapping[str, float] = field(default_factory=dict)  # of features, instead of the gold weights
    reads: int = 1000  # words read, to the last whole sentence among them
    checks: bool = True  # looks facts and sums up
    same: float = 0.01  # difference in utility below which two completions read the same
    tie_rate: float = 0.3  # share of ties among pairs that read the same
    skip_rate: float = 0.005  # share of items passed over
    seconds_per_word: float = 0.4  # of reading
    # A scale of their own, which only ratings show: comparisons have no zero and no unit.
    shift: float = 0.0  # added to every utility, in its unit: above 0 gives more throughout
    spread: float = 1.0  # times the utility: above 1 goes further towards the ends of the scale
    drift: float = 0.0  # by how much the shift grows from the first item of a session to its last

    def utility(self, world: World, prompt: str, completion: str, finished: bool = True) -> float:
        """How good the completion looks to this labeler."""
        features = self.noticed(world, prompt, completion, finished)
        weights = {**world.lexicon.gold.weights, **self.weights}
        return sum(weight * features[name] for name, weight in weights.items())

    def noticed(self, world: World, prompt: str, completion: str, finished: bool = True) -> dict[str, float]:
        """Features of the completion as far as it is read, and believed where nothing is looked up."""
        text, cut = _first_sentences(completion, self.reads)
        features = world.features(prompt, text, finished or cut)
        if not self.checks and features["answered"]:
            features["helpful"], features["honest"] = world.lexicon.gold.points["answer"], 0.0
        elif not self.checks:
            features["honest"] = 0.0
        return features

    def comparison(self, utilities: Sequence[float], rng: random.Random) -> tuple[int | str, float]:
        """0 or 1, "tie" or "skip" for two completions with these utilities, and how much better the chosen one seemed.

        Bradley and Terry 1952, with lapses. The latter is in units of utility: anything in a lapse, 0 undecided.

        The difference that is seen is the true one with logistic noise; that it is above 0 has the probability of the
        choice, so one draw decides both.
        """
        difference = utilities[0] - utilities[1]
        if rng.random() < self.skip_rate:
            return "skip", 0.0
        if abs(difference) < self.same and rng.random() < self.tie_rate:
            return "tie", 0.0
        lapse = rng.random()
        if lapse < self.lapse:
            return rng.randrange(2), LARGEST_DIFFERENCE * lapse / self.lapse
        logit, draw = max(-30.0, min(30.0, difference / self.temperature)), rng.random()
        seen = logit - math.log(max(draw, 1e-13) / (1 - draw))
        return 0 if draw < 1 / (1 + math.exp(-logit)) else 1, abs(seen) * self.temperature

    def ranking(self, utilities: Sequence[float], rng: random.Random) -> list[int] | str:
        """Indices of completions with these utilities, best first, or "skip". Plackett 1975, Luce 1959, with lapses.

        Gumbel noise makes it (Yellott 1977): of any two completions, the one is placed above the other as often as
        `comparison` prefers it. There are no ties.
        """
        if rng.random() < self.skip_rate:
            return "skip"
        if rng.random() < self.lapse:
            return rng.sample(range(len(utilities)), len(utilities))
        seen = [utility + self.temperature * gumbel(rng) for utility in utilities]
        return sorted(range(len(seen)), key=seen.__getitem__, reverse=True)

    def rating(self, utility: float, scale: Sequence[float], rng: random.Random, *, done: float = 0.0) -> int:
        """1 plus how many steps of the scale a completion with this utility seems to be above, or anything in a lapse.

        The noise is that of `ranking`, with mean 0; `done` is the share of the session that lies behind.
        """
        if rng.random() < self.lapse:
            return 1 + rng.randrange(len(scale) + 1)
        seen = utility + self.temperature * (gumbel(rng) - EULER)
        return 1 + bisect(scale, self.spread * seen + self.shift + self.drift * done)


def gumbel(rng: random.Random) -> float:
    """A draw of the standard Gumbel distribution, whose mean is `EULER`."""
    return -math.log(-math.log(max(rng.random(), 1e-300)))


# Each has a bias that a reward model can learn.
PANEL = (
    Labeler(name="ana", temperature=0.10, lapse=0.02, seconds_per_word=0.5, shift=-0.3),  # careful, and strict
    Labeler(name="ben", temperature=0.20, lapse=0.06, reads=14, drift=0.6),  # hasty, ever easier to please
    # long looks thorough
    Labeler(name="chi", temperature=0.20, lapse=0.04, weights={"words": 0.03, "brevity": 0.0, "repetition": 0.3}),
    # likes flattery, and to hear what one thinks already; goes to the ends of the scale
    Labeler(name="dev", temperature=0.20, lapse=0.04, weights={"nice": 0.25, "agreed": 2.5}, spread=1.5),
    # believes everything, and rates it high
    Labeler(name="eli", temperature=0.20, lapse=0.06, checks=False, seconds_per_word=0.25, shift=0.5, spread=0.7),
)

# The same disagreement without bias, for comparison.
NOISE_PANEL = (
    Labeler(name="ana", temperature=0.10, lapse=0.02),
    Labeler(name="ben", temperature=0.40, lapse=0.08),
    Labeler(name="chi", temperature=0.30, lapse=0.06),
    Labeler(name="dev", temperature=0.30, lapse=0.06),
    Labeler(name="eli", temperature=0.40, lapse=0.08),
)


def _first_sentences(text: str, reads: int) -> tuple[str, bool]:
    """Whole sentences within the first `reads` words, at least one, and whether anything was left out."""
    words = text.split()
    if len(words) <= reads:
        return text, False
    sentences = SENTENCE.findall(" ".join(words))
    kept, length = sentences[:1], len(sentences[0].split())
    for sentence in sentences[1:]:
        length += len(sentence.split())
        if length > reads:
            break
        kept.append(sentence)
    return "".join(kept), True


# --- Labelers who agree as often as people do: one factor on everybody's noise.


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
