"""Worked sums in steps: what a step is, whether it is right, and a writer who slips in any of them."""

from __future__ import annotations

import random

from workbench.tasks.world.language import SENTENCE, Claim, Language
from workbench.tasks.world.lexicon import Sums
from workbench.tasks.world.prompts import Sum

SLIPS = (-2, -1, 1, 2)  # how far a writer is off


def step_of_sum(prompt: Sum, operands: tuple[int, int]) -> str | None:
    """Which of the two steps of a worked sum adds these operands, None where neither does."""
    a, b, c = prompt.a, prompt.b, prompt.c
    for first, second, third in ((a, b, c), (a, c, b), (b, c, a)):
        if operands in ((first, second), (second, first)):
            return "first step"
        if operands in ((first + second, third), (third, first + second)):
            return "second step"
    return None


def judged_steps(language: Language, prompt: Sum, completion: str) -> list[tuple[str, bool]]:
    """The steps of an answer to a sum and whether each is right; joined they are the whole answer. [] without any.

    A step ends with a sentence that adds or answers. It is right where it follows from the question: an addition of two
    of its terms, or of the third to their sum, with the right result; an answer that is the total. What goes on from a
    slip is wrong as well, however well it is added.
    """
    steps, begun = [], ""
    for sentence in SENTENCE.findall(completion):
        begun += sentence
        claims = [claim for claim in language.claims(sentence) if claim.role in ("sum", "answer")]
        if claims:
            steps.append((begun, all(_is_right(prompt, claim) for claim in claims)))
            begun = ""
    if steps and begun:
        last, right = steps[-1]
        steps[-1] = (last + begun, right)
    return steps


def _is_right(prompt: Sum, claim: Claim) -> bool:
    if claim.role == "answer":
        return claim.value == prompt.total
    a, b, result = claim.value
    return a + b == result and step_of_sum(prompt, (a, b)) is not None


def careless_working(sums: Sums, prompt: Sum, slip: float, rng: random.Random) -> list[str]:
    """The sentences of a worked sum: each goes on from what the last one says, and slips with probability `slip`."""

    def written(number: int) -> int:
        slipped = number + rng.choice(SLIPS) if rng.random() < slip else number
        return max(sums.numbers[0], min(slipped, sums.numbers[-1]))

    part = written(prompt.a + prompt.b)
    total = written(part + prompt.c)
    steps = [(prompt.a, prompt.b, part), (part, prompt.c, total)]
    return [*(sums.step.format(a=a, b=b, c=c) for a, b, c in steps), sums.answer.format(n=written(total))]
