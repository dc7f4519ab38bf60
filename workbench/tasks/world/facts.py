"""The invented animals and their facts, and the split of what training prompts may ask."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

from workbench.tasks.world.lexicon import AnimalNames, Lexicon
from workbench.tasks.world.section import WorldError

TIERS = ("common", "rare", "never")  # how often pretraining text states an animal's facts
HELD_OUT = 0.3  # share of facts that no training prompt asks


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is true in one world."""

    animals: dict[str, tuple[str, ...]]  # tier -> names
    truth: dict[tuple[str, str], str]  # (animal, attribute) -> value
    questions: dict[tuple[str, str], list[tuple[str, str]]]  # (split, tier) -> facts that may be asked
    sums: dict[str, list[tuple[int, int, int]]]  # split -> operands

    @property
    def tier_of(self) -> dict[str, str]:
        """Tier of each animal."""
        return {animal: tier for tier, animals in self.animals.items() for animal in animals}


def draw_facts(lexicon: Lexicon, seed: int) -> Facts:
    """The facts of the world with this seed."""
    rng = random.Random(seed)
    names = _animal_names(lexicon.names, lexicon.words, rng)
    third = len(names) // 3
    animals = dict(zip(TIERS, (names[:third], names[third : 2 * third], names[2 * third :]), strict=True))
    truth = {(name, key): rng.choice(a.values) for name in names for key, a in lexicon.attributes.items()}
    questions = {}
    for tier, members in animals.items():
        asked = [(name, attribute) for name in members for attribute in lexicon.attributes]
        rng.shuffle(asked)
        cut = max(1, round(HELD_OUT * len(asked)))
        questions["test", tier], questions["train", tier] = asked[:cut], asked[cut:]
    sums = list(itertools.product(range(1, lexicon.sums.largest + 1), repeat=3))
    rng.shuffle(sums)
    held_out = lexicon.sums.held_out
    return Facts(
        animals=animals, truth=truth, questions=questions, sums={"test": sums[:held_out], "train": sums[held_out:]}
    )


def _animal_names(names: AnimalNames, taken: frozenset[str], rng: random.Random) -> tuple[str, ...]:
    """Different names, none of them a word of the lexicon; WorldError when the syllables make too few."""
    syllables = [onset + vowel for onset in names.onsets for vowel in names.vowels]
    possible = sorted(
        {"".join(parts) for parts in itertools.product(syllables, syllables, names.endings)}.difference(taken)
    )
    if len(possible) < names.count:
        raise WorldError(f"Lexicon animals.yaml: count is {names.count}, too many for {len(possible)} possible names.")
    return tuple(rng.sample(possible, names.count))
