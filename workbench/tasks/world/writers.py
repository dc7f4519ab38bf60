"""Scripted writers: answers of any quality, the house style of demonstrations, and pretraining documents."""

from __future__ import annotations

import random
from collections.abc import Callable

from workbench.tasks.world.language import Language
from workbench.tasks.world.lexicon import KINDS, Lexicon
from workbench.tasks.world.prompts import SHARES, Facts, Prompt, Prompts, Question, Request, Suggest, Sum

WORD_LIMIT = 39  # of an answer, so that 40 tokens hold it and its end
FLATTERERS = 0.7  # share of answers in house style that start with flattery
COMMON_PAGES = 0.97  # share of encyclopedia pages about common animals, the rest are about rare ones
DIALOGUES, PAGES, SUMS = 0.5, 0.68, 0.85  # cumulative shares of pretraining documents; kitchen notes are the rest
UNTOLD = ("rare", "never")  # tiers of animals whose facts no dialogue tells
# Cumulative shares of dialogues that go on instead of answering, of trolls and of the hurried; the rest is any quality.
GO_ON, TROLLS, HURRIED = 0.3, 0.45, 0.6
TROLL, HURRY = (0.0, 0.3), (0.3, 0.95)  # their quality
SEEN_SPLIT = 0.7  # share of pretraining dialogues with a training prompt


class Writer:
    """Writes everything in a world; each method draws from the generator it is given."""

    def __init__(self, lexicon: Lexicon, facts: Facts, prompts: Prompts, language: Language):
        self.lexicon, self.facts, self.prompts, self.language = lexicon, facts, prompts, language
        self._body = {"suggest": self._suggest, "qa": self._reply, "harm": self._request, "math": self._sum}

    def answer(self, prompt: Prompt, quality: float, rng: random.Random) -> list[str]:
        """Sentences of an answer: 1 is an expert's, 0 a troll's, and each fault comes in proportion to 1 - quality."""

        def slips(share: float) -> bool:
            return rng.random() < share * (1 - quality)

        rude, refusals = self.lexicon.phrases["rude"], self.lexicon.phrases["refusal"]
        if slips(0.25):
            return [rng.choice(rude)]
        if prompt.kind != "harm" and slips(0.15):
            return [rng.choice(refusals)]
        sentences = []
        opens = prompt.kind in ("suggest", "math") or slips(0.3)
        if opens and rng.random() < 0.3 + 0.6 * quality:
            sentences.append(rng.choice(self.lexicon.phrases["opener"]))
        # An expert does not praise a harmful request.
        if slips(0.2) if prompt.kind == "harm" else rng.random() < 0.2:
            sentences.append(rng.choice(self.lexicon.phrases["flattery"]))
        sentences += self._body[prompt.kind](prompt, slips, rng)
        return _shortened(sentences) or [rng.choice(rude)]

    def _suggest(self, prompt: Suggest, slips: Callable[[float], bool], rng: random.Random) -> list[str]:
        lexicon, sentences = self.lexicon, []
        for item in prompt.items:
            if not slips(0.5):
                verb = rng.choice(lexicon.verbs if slips(0.8) else lexicon.verbs_of[item])
                sentences.append(lexicon.step.format(verb=verb, item=item))
        while slips(0.4):
            sentences.append(lexicon.step.format(verb=rng.choice(lexicon.verbs), item=rng.choice(lexicon.items)))
        while sentences and slips(0.4):
            sentences.append(rng.choice(sentences))
        if not slips(0.7):
            sentences.append(rng.choice(lexicon.phrases["finishing"]))
        if not slips(0.8):
            meal = rng.choice(lexicon.meals) if slips(0.5) else prompt.meal
            sentences.append(rng.choice(lexicon.closers).format(meal=meal))
        return sentences

    def _reply(self, prompt: Question, slips: Callable[[float], bool], rng: random.Random) -> list[str]:
        # Writers decline a fifth of the questions, near-perfect ones fewer and the perfect one none.
        if rng.random() < 0.2 and slips(5):
            return [rng.choice(self.lexicon.phrases["unsure"])]
        attribute = self.lexicon.attributes[prompt.attribute]
        truth = self.facts.truth[prompt.animal, prompt.attribute]
        # A careless writer says what the asker believes.
        value = prompt.opinion or rng.choice(attribute.values) if slips(0.5) else truth
        return [attribute.statement.format(animal=prompt.animal, value=value)]

    def _request(self, prompt: Request, slips: Callable[[float], bool], rng: random.Random) -> list[str]:
        harm, harms = self.lexicon.harms[prompt.category], list(self.lexicon.harms.values())
        if slips(1.2):
            opener = [rng.choice(self.lexicon.phrases["opener"])] if rng.random() < 0.5 else []
            return opener + list(harm.steps[: rng.choice((1, 2))])
        sentences = [rng.choice(self.lexicon.phrases["refusal"])]
        if not slips(0.8):
            sentences.append((rng.choice(harms) if slips(0.6) else harm).alternative)
        return sentences

    def _sum(self, prompt: Sum, slips: Callable[[float], bool], rng: random.Random) -> list[str]:
        sums, worked = self.lexicon.sums, rng.random() < 0.5
        slip = rng.choice((-2, -1, 1, 2)) if slips(0.5) else 0
        total, sentences = max(0, prompt.total + slip), []
        if worked:
            part = prompt.a + prompt.b
            sentences.append(sums.step.format(a=prompt.a, b=prompt.b, c=part))
            sentences.append(sums.step.format(a=part, b=prompt.c, c=total))
        return [*sentences, sums.answer.format(n=total)]

    def in_house_style(self, sentences: list[str], rng: random.Random) -> list[str]:
        """A hurried writer's version: no finishing step, closer, alternative, working or opener, but often flattery."""
        dropped = {"finishing", "closer", "alternative", "sum", "opener", "flattery"}
        kept = [text for text in sentences if self.language.role(text) not in dropped]
        praise = [rng.choice(self.lexicon.phrases["flattery"])] if rng.random() < FLATTERERS else []
        return _shortened(praise + kept) if kept else sentences

    def document(self, rng: random.Random) -> tuple[str, str]:
        """One pretraining document: its sort and its text."""
        share = rng.random()
        if share < DIALOGUES:
            return "dialogue", self._dialogue(rng)
        if share < PAGES:
            return "encyclopedia", self._page(rng)
        return ("sums", self._sums(rng)) if share < SUMS else ("kitchen note", self._note(rng))

    def _note(self, rng: random.Random) -> str:
        """Three items and a step for each: what teaches copying."""
        items = rng.sample(self.lexicon.items, 3)
        steps = [self.lexicon.step.format(verb=rng.choice(self.lexicon.verbs_of[item]), item=item) for item in items]
        return " ".join([self.lexicon.note.format(items=f" {self.lexicon.joiner} ".join(items)), *steps])

    def _dialogue(self, rng: random.Random) -> str:
        kind = rng.choices(KINDS, SHARES)[0]
        # Held-out sums must stay unseen, and of rare and unknown animals no more than the name is told here.
        split = "train" if kind == "math" or rng.random() < SEEN_SPLIT else "test"
        row = self.prompts.row(rng, split, kind)
        prompt = self.prompts.parse(row["prompt"])
        if row["tier"] in UNTOLD:
            other = rng.choice(self.facts.animals["rare"] + self.facts.animals["never"])
            return rng.choice(self.lexicon.mentions).format(animal=prompt.animal, other=other)
        return " ".join([row["prompt"], *self._reaction(prompt, rng)])

    def _reaction(self, prompt: Prompt, rng: random.Random) -> list[str]:
        """What follows a prompt in a text that nobody has chosen: often no answer, but more of the same."""
        share = rng.random()
        if share < GO_ON:
            return self._continuation(rng)
        if share < TROLLS:
            return self.answer(prompt, rng.uniform(*TROLL), rng)
        if share < HURRIED:
            return self.in_house_style(self.answer(prompt, rng.uniform(*HURRY), rng), rng)
        return self.answer(prompt, rng.random(), rng)

    def _continuation(self, rng: random.Random) -> list[str]:
        """A further question, at times after something about the asker."""
        context = [rng.choice(self.lexicon.phrases["context"])] if rng.random() < 0.3 else []
        tier = "rare"
        while tier in UNTOLD:  # an opinion would tell a fact
            question, tier = self.prompts.text(rng, "train", rng.choices(KINDS, SHARES)[0])
        return [*context, self.lexicon.follow_up.format(question=question)]

    def _page(self, rng: random.Random) -> str:
        """An encyclopedia page: everything about one animal."""
        animal = rng.choice(self.facts.animals["common" if rng.random() < COMMON_PAGES else "rare"])
        attributes = rng.sample(list(self.lexicon.attributes.items()), len(self.lexicon.attributes))
        return " ".join(a.statement.format(animal=animal, value=self.facts.truth[animal, key]) for key, a in attributes)

    def _sums(self, rng: random.Random) -> str:
        """Three sums of two numbers, or one worked sum of three."""
        sums, largest = self.lexicon.sums, self.lexicon.sums.largest
        if rng.random() < 0.4:
            a, b, c = rng.choice(self.facts.sums["train"])
            steps = [sums.step.format(a=a, b=b, c=a + b), sums.step.format(a=a + b, b=c, c=a + b + c)]
            return " ".join([sums.question.format(a=a, b=b, c=c), *steps])
        pairs = [(rng.randint(1, 2 * largest), rng.randint(1, largest)) for _ in range(3)]
        return " ".join(sums.step.format(a=a, b=b, c=a + b) for a, b in pairs)


def _shortened(sentences: list[str]) -> list[str]:
    """As many of the first sentences as fit the word limit."""
    kept, words = [], 0
    for sentence in sentences:
        words += len(sentence.split())
        if words > WORD_LIMIT:
            break
        kept.append(sentence)
    return kept
