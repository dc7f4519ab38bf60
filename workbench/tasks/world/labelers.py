"""Simulated labelers: Bradley-Terry choices on what each of them cares about and notices."""

from __future__ import annotations

import math
import random
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workbench.tasks.world.language import SENTENCE

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

    def rating(self, utility: float, scale: Sequence[float], rng: random.Random) -> int:
        """1 plus how many steps of the scale a completion with this utility seems to be above, or anything in a lapse.

        The noise is that of `ranking`, with mean 0.
        """
        if rng.random() < self.lapse:
            return 1 + rng.randrange(len(scale) + 1)
        return 1 + bisect(scale, utility + self.temperature * (gumbel(rng) - EULER))


def gumbel(rng: random.Random) -> float:
    """A draw of the standard Gumbel distribution, whose mean is `EULER`."""
    return -math.log(-math.log(max(rng.random(), 1e-300)))


# Each has a bias that a reward model can learn.
PANEL = (
    Labeler(name="ana", temperature=0.10, lapse=0.02, seconds_per_word=0.5),  # careful
    Labeler(name="ben", temperature=0.20, lapse=0.06, reads=14),  # hasty
    # long looks thorough
    Labeler(name="chi", temperature=0.20, lapse=0.04, weights={"words": 0.03, "brevity": 0.0, "repetition": 0.3}),
    Labeler(name="dev", temperature=0.20, lapse=0.04, weights={"nice": 0.25}),  # likes flattery
    Labeler(name="eli", temperature=0.20, lapse=0.06, checks=False, seconds_per_word=0.25),  # believes everything
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
