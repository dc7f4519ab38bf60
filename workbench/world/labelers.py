"""Simulated labelers: Bradley-Terry choices on what each of them cares about and notices."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workbench.feedback.order import shown_order
from workbench.records import Judgement
from workbench.world.language import SENTENCE
from workbench.world.section import WorldError

if TYPE_CHECKING:
    from workbench.world import World


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

    def utility(self, world: World, prompt: str, completion: str, finished: bool = True) -> float:
        """How good the completion looks to this labeler."""
        text, cut = _first_sentences(completion, self.reads)
        features = world.features(prompt, text, finished or cut)
        if not self.checks and features["answered"]:
            features["helpful"], features["honest"] = world.lexicon.gold.points["answer"], 0.0
        elif not self.checks:
            features["honest"] = 0.0
        weights = {**world.lexicon.gold.weights, **self.weights}
        return sum(weight * features[name] for name, weight in weights.items())

    def choice(self, utilities: Sequence[float], rng: random.Random) -> int | str:
        """0 or 1, "tie" or "skip" for two completions with these utilities. Bradley and Terry 1952, with lapses."""
        difference = utilities[0] - utilities[1]
        if rng.random() < self.skip_rate:
            return "skip"
        if abs(difference) < self.same and rng.random() < self.tie_rate:
            return "tie"
        if rng.random() < self.lapse:
            return rng.randrange(2)
        logit = max(-30.0, min(30.0, difference / self.temperature))
        return 0 if rng.random() < 1 / (1 + math.exp(-logit)) else 1


# Each has a bias that a reward model can learn.
PANEL = (
    Labeler(name="ana", temperature=0.10, lapse=0.02),  # careful
    Labeler(name="ben", temperature=0.20, lapse=0.06, reads=14),  # hasty
    # long looks thorough
    Labeler(name="chi", temperature=0.20, lapse=0.04, weights={"words": 0.03, "brevity": 0.0, "repetition": 0.3}),
    Labeler(name="dev", temperature=0.20, lapse=0.04, weights={"nice": 0.25}),  # likes flattery
    Labeler(name="eli", temperature=0.20, lapse=0.06, checks=False),  # believes everything
)

# The same disagreement without bias, for comparison.
NOISE_PANEL = (
    Labeler(name="ana", temperature=0.10, lapse=0.02),
    Labeler(name="ben", temperature=0.40, lapse=0.08),
    Labeler(name="chi", temperature=0.30, lapse=0.06),
    Labeler(name="dev", temperature=0.30, lapse=0.06),
    Labeler(name="eli", temperature=0.40, lapse=0.08),
)


def judge_pairs(
    world: World,
    labelers: Sequence[Labeler],
    items: Sequence[Mapping],
    rng: random.Random,
    *,
    judgements_per_item: int = 1,
) -> list[Judgement]:
    """Judgements of each item by different labelers drawn at random.

    An item is a dict item_id, prompt, completions (two texts), finished (two flags); WorldError for any other number.
    """
    if not 1 <= judgements_per_item <= len(labelers):
        raise WorldError(f"judgements_per_item is {judgements_per_item}: the panel has {len(labelers)} labelers.")
    judgements = []
    for item in items:
        if len(item["completions"]) != 2 or len(item["finished"]) != 2:
            raise WorldError(f"Item {item['item_id']!r} has {len(item['completions'])} completions: a pair has 2.")
        for labeler in rng.sample(list(labelers), judgements_per_item):
            judgements.append(_judgement(world, labeler, item, rng))
    return judgements


def _judgement(world: World, labeler: Labeler, item: Mapping, rng: random.Random) -> Judgement:
    answers = zip(item["completions"], item["finished"], strict=True)
    utilities = [labeler.utility(world, item["prompt"], text, finished) for text, finished in answers]
    return Judgement(
        item_id=item["item_id"],
        labeler=labeler.name,
        kind="pair",
        value=labeler.choice(utilities, rng),
        shown_order=shown_order(labeler.name, item["item_id"], 2),
        elapsed_ms=0,
        note="",
        event_id=f"{labeler.name}-{item['item_id']}-{rng.getrandbits(32):08x}",
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
