"""The invented animals and their facts, and the split of what training prompts may ask."""

from __future__ import annotations

import itertools
import random
import re
import zlib
from dataclasses import dataclass
from typing import NamedTuple

from workbench.tasks.world.lexicon import ENDS, KINDS, SLOT, AnimalNames, Lexicon, WorldError

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


# --- Prompts: drawn from the lexicon's templates, and read back from their text alone.


SHARES = (0.45, 0.25, 0.15, 0.15)  # of the KINDS
OPINIONS = 0.25  # share of questions about animals that come with an opinion
INFORMED = 0.45  # share of opinions that are the truth; the others are any value, so half of all are right
ITEMS_ASKED = (1, 2, 2, 3)  # drawn uniformly
HELD_OUT_OF_TEN = 3  # of ten suggest or harm prompts, those that belong to the test split
ATTEMPTS = 1000  # draws until a prompt of the wanted split must have come up
CACHE_SIZE = 100_000  # texts
NUMBER = r"\d{1,9}"
ONE_SENTENCE = rf"[^{''.join(ENDS)}]+[{''.join(ENDS)}]"


class Suggest(NamedTuple):
    """A meal to be made from some items."""

    meal: str
    items: tuple[str, ...]

    kind = "suggest"


class Question(NamedTuple):
    """A question about an animal, and the value that the asker believes in, if any."""

    animal: str
    attribute: str
    opinion: str = ""

    kind = "qa"


class Request(NamedTuple):
    """A harmful request."""

    category: str

    kind = "harm"


class Sum(NamedTuple):
    """A sum of three numbers."""

    a: int
    b: int
    c: int

    kind = "math"

    @property
    def total(self) -> int:
        """The right answer."""
        return self.a + self.b + self.c


Prompt = Suggest | Question | Request | Sum


def pattern(template: str, slot: str = r"\S+") -> re.Pattern:
    """Regular expression of a template's text with a named group per slot."""
    parts = SLOT.split(template)  # text, slot name, text, ...
    escaped = [f"(?P<{part}>{slot})" if i % 2 else re.escape(part) for i, part in enumerate(parts)]
    return re.compile("".join(escaped))


class Prompts:
    """Draws prompts of a world and reads them."""

    def __init__(self, lexicon: Lexicon, facts: Facts, seed: int):
        self.lexicon, self.facts, self.seed = lexicon, facts, seed
        self._draw = {"suggest": self._suggest, "qa": self._question, "harm": self._request, "math": self._sum}
        self._tier_of = facts.tier_of
        self._parsed: dict[str, Prompt] = {}
        self._chat = pattern(lexicon.chat, slot=".+")
        self._suggestions = [pattern(template, slot=".+") for template in lexicon.suggestions]
        self._questions = {key: (pattern(a.question), pattern(a.statement)) for key, a in lexicon.attributes.items()}
        self._opinion = pattern(lexicon.opinion, slot=ONE_SENTENCE)
        self._requests = [
            (category, pattern(lexicon.question.replace("{request}", request)))
            for category, harm in lexicon.harms.items()
            for request in harm.requests
        ]
        self._sums = pattern(lexicon.sums.question, slot=NUMBER)

    def row(self, rng: random.Random, split: str, kind: str | None) -> dict[str, str]:
        """A prompt of this split with its kind and, for questions, the tier of the animal."""
        kind = kind or rng.choices(KINDS, SHARES)[0]
        text, tier = self.text(rng, split, kind)
        return {"prompt": self.lexicon.chat.format(text=text), "kind": kind, "tier": tier}

    def text(self, rng: random.Random, split: str, kind: str) -> tuple[str, str]:
        """What a user asks, outside the chat form, and the tier."""
        return self._draw[kind](rng, split)

    def _suggest(self, rng: random.Random, split: str) -> tuple[str, str]:
        for _ in range(ATTEMPTS):
            items = f" {self.lexicon.joiner} ".join(rng.sample(self.lexicon.items, rng.choice(ITEMS_ASKED)))
            text = rng.choice(self.lexicon.suggestions).format(meal=rng.choice(self.lexicon.meals), items=items)
            if self._belongs(text, split):
                return text, "none"
        raise WorldError(f"The lexicon has no suggest prompt for the {split} split: add meals or foods to foods.yaml.")

    def _question(self, rng: random.Random, split: str) -> tuple[str, str]:
        tier = rng.choice(TIERS)
        animal, attribute = rng.choice(self.facts.questions[split, tier])
        asked = self.lexicon.attributes[attribute]
        question = asked.question.format(animal=animal)
        if rng.random() < OPINIONS:
            informed = rng.random() < INFORMED
            value = self.facts.truth[animal, attribute] if informed else rng.choice(asked.values)
            statement = asked.statement.format(animal=animal, value=value)
            return self.lexicon.opinion.format(statement=statement, question=question), tier
        return question, tier

    def _request(self, rng: random.Random, split: str) -> tuple[str, str]:
        for _ in range(ATTEMPTS):
            request = rng.choice(self.lexicon.harms[rng.choice(list(self.lexicon.harms))].requests)
            text = self.lexicon.question.format(request=request.format(target=rng.choice(self.lexicon.targets)))
            if self._belongs(text, split):
                return text, "none"
        raise WorldError(
            f"The lexicon has no harm prompt for the {split} split: add targets or requests to harms.yaml."
        )

    def _sum(self, rng: random.Random, split: str) -> tuple[str, str]:
        a, b, c = rng.choice(self.facts.sums[split])
        return self.lexicon.sums.question.format(a=a, b=b, c=c), "none"

    def _belongs(self, text: str, split: str) -> bool:
        """Whether a text is of this split: a hash decides, so that no list of all prompts is needed."""
        return (zlib.crc32(f"{self.seed} {text}".encode()) % 10 < HELD_OUT_OF_TEN) == (split == "test")

    def parse(self, text: str) -> Prompt:
        """What a prompt asks; WorldError when it is not of this world."""
        if text not in self._parsed:
            if len(self._parsed) >= CACHE_SIZE:
                self._parsed.clear()
            self._parsed[text] = self._read(text)
        return self._parsed[text]

    def _read(self, text: str) -> Prompt:
        chat = self._chat.fullmatch(text.strip())
        body = chat["text"] if chat else ""
        prompt = self._read_suggest(body) or self._read_question(body) or self._read_request(body)
        sums = self._sums.fullmatch(body)
        if sums:
            prompt = Sum(*(int(sums[slot]) for slot in "abc"))
        if not prompt:
            expected = self.lexicon.chat.format(text="...")
            raise WorldError(f"The prompt {text!r} is not of this world: expected {expected!r} from its templates.")
        return prompt

    def _read_suggest(self, body: str) -> Prompt | None:
        for template in self._suggestions:
            found = template.fullmatch(body)
            items = tuple(found["items"].split(f" {self.lexicon.joiner} ")) if found else ()
            if items and found["meal"] in self.lexicon.meals and self.lexicon.verbs_of.keys() >= set(items):
                return Suggest(found["meal"], items)
        return None

    def _read_question(self, body: str) -> Prompt | None:
        held = self._opinion.fullmatch(body)
        for attribute, (question, statement) in self._questions.items():
            asked = question.fullmatch(held["question"] if held else body)
            said = statement.fullmatch(held["statement"]) if held else None
            if asked and asked["animal"] in self._tier_of:
                values = self.lexicon.attributes[attribute].values if said and said["animal"] == asked["animal"] else ()
                opinion = said["value"] if said else ""
                return Question(asked["animal"], attribute, opinion) if not held or opinion in values else None
        return None

    def _read_request(self, body: str) -> Prompt | None:
        for category, template in self._requests:
            found = template.fullmatch(body)
            if found and found["target"] in self.lexicon.targets:
                return Request(category)
        return None
