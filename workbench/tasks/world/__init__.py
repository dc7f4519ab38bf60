"""The embedded world: a small controlled English with exact facts, scripted writers, gold reward and labelers.

>>> world = World.load()
>>> row = world.prompts(1, random.Random(0))[0]
>>> completion = world.answer(row["prompt"], 1.0, random.Random(0))
>>> world.gold([row["prompt"]], [completion], finished=[True])
"""

from __future__ import annotations

import random
from pathlib import Path

from workbench.tasks.world.gold import Gold
from workbench.tasks.world.judging import (
    judge,
    judge_again,
    judge_best_of,
    judge_corrections,
    judge_pairs,
    judge_rankings,
    judge_ratings,
    step_rows,
)
from workbench.tasks.world.labelers import NOISE_PANEL, PANEL, Labeler, calibrated, expected_agreement
from workbench.tasks.world.language import build_tokenizer
from workbench.tasks.world.lexicon import KINDS, Lexicon, WorldError, read_lexicon
from workbench.tasks.world.prompts import Prompts, Question, Sum, draw_facts
from workbench.tasks.world.sums import careless_working, judged_steps
from workbench.tasks.world.verifiers import of_kinds, verifiers
from workbench.tasks.world.writers import Writer

__all__ = [
    "NOISE_PANEL",
    "PANEL",
    "Labeler",
    "World",
    "WorldError",
    "build_tokenizer",
    "calibrated",
    "expected_agreement",
    "judge",
    "judge_again",
    "judge_best_of",
    "judge_corrections",
    "judge_pairs",
    "judge_rankings",
    "judge_ratings",
    "of_kinds",
    "step_rows",
    "verifiers",
]


class World:
    """Prompts, texts and truth; prompts and completions are plain text, completions start with a space."""

    def __init__(self, lexicon: Lexicon, seed: int):
        self.lexicon, self.seed = lexicon, seed
        self.facts = draw_facts(lexicon, seed)
        self._prompts = Prompts(lexicon, self.facts, seed)
        self._gold = Gold(lexicon, self.facts)
        self._writer = Writer(lexicon, self.facts, self._prompts, self._gold.language)

    @classmethod
    def load(cls, lexicon: str | Path | None = None, *, seed: int = 0) -> World:
        """The world of a lexicon folder, by default the embedded one; WorldError names file, key and reason."""
        return cls(read_lexicon(lexicon), seed)

    def prompts(
        self, count: int, rng: random.Random, *, split: str = "train", kind: str | None = None
    ) -> list[dict[str, str]]:
        """Rows prompt, kind, tier; no prompt is in both splits. Kinds come in their shares unless one is named."""
        if split not in ("train", "test"):
            raise WorldError(f"The split {split!r} does not exist: use 'train' or 'test'.")
        if kind not in (None, *KINDS):
            raise WorldError(f"The kind {kind!r} does not exist: use one of {', '.join(KINDS)}.")
        return [self._prompts.row(rng, split, kind) for _ in range(count)]

    def pretraining_rows(self, count: int, rng: random.Random) -> list[dict[str, str]]:
        """Documents of every quality: rows text, sort ("dialogue", "encyclopedia", "sums" or "kitchen note")."""
        documents = (self._writer.document(rng) for _ in range(count))
        return [{"text": text, "sort": sort} for sort, text in documents]

    def demonstrations(
        self,
        count: int,
        rng: random.Random,
        *,
        quality: tuple[float, float] = (0.55, 0.95),
        house_style: float = 0.6,
        split: str = "train",
    ) -> list[dict[str, str]]:
        """Rows prompt, completion, kind, tier by writers of uniform quality, a share of them in the house style."""
        rows = []
        for row in self.prompts(count, rng, split=split):
            sentences = self._writer.answer(self._prompts.parse(row["prompt"]), rng.uniform(*quality), rng)
            if rng.random() < house_style:
                sentences = self._writer.in_house_style(sentences, rng)
            rows.append({"prompt": row["prompt"], "completion": " " + " ".join(sentences)} | row)
        return rows

    def answer(self, prompt: str, quality: float, rng: random.Random) -> str:
        """A scripted completion of quality 0 (troll) to 1 (expert)."""
        if not 0 <= quality <= 1:
            raise WorldError(f"The quality {quality!r} is outside 0 to 1: give 0 for a troll, 1 for an expert.")
        return " " + " ".join(self._writer.answer(self._prompts.parse(prompt), quality, rng))

    def worked_sums(
        self, count: int, rng: random.Random, *, slip: float = 0.25, split: str = "train"
    ) -> list[dict[str, str]]:
        """Rows prompt, completion, kind, tier of sums worked in three steps; each step slips with this probability."""
        if not 0 <= slip <= 1:
            raise WorldError(f"slip is {slip!r}, outside 0 to 1: give 0 for a writer who is never wrong.")
        rows = []
        for row in self.prompts(count, rng, split=split, kind="math"):
            sentences = careless_working(self.lexicon.sums, self._prompts.parse(row["prompt"]), slip, rng)
            rows.append({"prompt": row["prompt"], "completion": " " + " ".join(sentences)} | row)
        return rows

    def steps(self, prompt: str, completion: str) -> list[tuple[str, bool]]:
        """The steps of an answer and whether each is right, exactly: those of a sum, none of any other prompt's."""
        asked = self._prompts.parse(prompt)
        return judged_steps(self._gold.language, asked, completion) if isinstance(asked, Sum) else []

    def possible_answers(self, prompt: str) -> dict[str, bool]:
        """Each value that a question may be answered with, as a completion, and whether it is true; {} of others."""
        asked = self._prompts.parse(prompt)
        if not isinstance(asked, Question):
            return {}
        told, truth = self.lexicon.attributes[asked.attribute], self.facts.truth[asked.animal, asked.attribute]
        return {" " + told.statement.format(animal=asked.animal, value=value): value == truth for value in told.values}

    def kind(self, prompt: str) -> str:
        """What a prompt is for, one of the kinds; WorldError for a prompt of another world."""
        return self._prompts.parse(prompt).kind

    def settled(self, prompt: str, completion: str) -> str:
        """The number, or value of the fact, that a completion answers with last, "not sure", or "" without any."""
        said = [claim for sentence in self._gold.language.sentences(completion) for claim in sentence.claims]
        values = {"answer": lambda value: str(value), "fact": lambda value: value[-1], "unsure": lambda _: "not sure"}
        return next((values[claim.role](claim.value) for claim in reversed(said) if claim.role in values), "")

    def ends_in_answer(self, completion: str) -> bool:
        """Whether the last sentence is the answer to a sum, word for word as it is asked for."""
        said = self._gold.language.sentences(completion)
        return bool(said) and said[-1].claim.role == "answer"

    def features(self, prompt: str, completion: str, finished: bool = True) -> dict[str, float]:
        """Unweighted gold components with coverage, answered, right, wrong, unsure, refused, complied, words, ..."""
        return self._gold.features(self._prompts.parse(prompt), completion, finished)

    def gold_components(self, prompt: str, completion: str, finished: bool = True) -> dict[str, float]:
        """Weighted components of the gold reward, which is their sum; WorldError for a prompt of another world."""
        return self._gold.components(self.features(prompt, completion, finished))

    def gold(self, prompts: list[str], completions: list[str], *, finished: list[bool], **columns: list) -> list[float]:
        """The gold reward of each completion (the reward contract; other columns are not needed)."""
        return [sum(self.gold_components(*row).values()) for row in zip(prompts, completions, finished, strict=True)]

    @property
    def vocabulary(self) -> list[str]:
        """Every word that a prompt, a writer or a document can hold."""
        return sorted({*self.lexicon.words, *self.facts.tier_of, *map(str, self.lexicon.sums.numbers)})
