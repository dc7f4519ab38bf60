"""What simulated labelers say of completions, as judgements.

An item is a dict item_id, prompt, completions (texts), finished (flags); each is judged by labelers drawn at random.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from workbench.feedback.order import shown_order
from workbench.records import Judgement
from workbench.world.labelers import Labeler
from workbench.world.section import WorldError

if TYPE_CHECKING:
    from workbench.world import World

Verdict = Callable[[Labeler, list[float], random.Random], Any]


def judge_pairs(
    world: World,
    labelers: Sequence[Labeler],
    items: Sequence[Mapping],
    rng: random.Random,
    *,
    judgements_per_item: int = 1,
) -> list[Judgement]:
    """Choices between the two completions of each item; WorldError for any other number."""
    _require_sizes(items, fewest=2, most=2)
    return _judgements(world, labelers, items, rng, judgements_per_item, "pair", Labeler.choice)


def judge_strengths(
    world: World,
    labelers: Sequence[Labeler],
    items: Sequence[Mapping],
    rng: random.Random,
    *,
    judgements_per_item: int = 1,
) -> list[Judgement]:
    """How strongly those who judge pairs prefer what they choose, 1 to 4: negligibly better to significantly better.

    With the same arguments and the generator in the same state, the choices are those of `judge_pairs`; only decided
    ones have a strength. The scale is that of Touvron et al. 2023 (Llama 2), section 3.2.1.
    """
    _require_sizes(items, fewest=2, most=2)
    scale = world.lexicon.scales.strengths

    def strength(labeler: Labeler, utilities: list[float], rng: random.Random) -> int | None:
        value, difference = labeler.comparison(utilities, rng)
        return 1 + bisect(scale, difference) if value in (0, 1) else None

    judged = _judgements(world, labelers, items, rng, judgements_per_item, "strength", strength)
    return [replace(each, event_id=f"{each.event_id}-strength") for each in judged if each.value]


def judge_rankings(
    world: World,
    labelers: Sequence[Labeler],
    items: Sequence[Mapping],
    rng: random.Random,
    *,
    judgements_per_item: int = 1,
) -> list[Judgement]:
    """The completions of each item in order, as indices, best first; WorldError for fewer than two."""
    _require_sizes(items, fewest=2)
    return _judgements(world, labelers, items, rng, judgements_per_item, "ranking", Labeler.ranking)


def judge_ratings(
    world: World,
    labelers: Sequence[Labeler],
    items: Sequence[Mapping],
    rng: random.Random,
    *,
    judgements_per_item: int = 1,
) -> list[Judgement]:
    """A rating of every completion of each item, 1 to 7 (Ouyang et al. 2022, table 3), on one scale for all items."""
    scale = world.lexicon.scales.ratings

    def ratings(labeler: Labeler, utilities: list[float], rng: random.Random) -> list[int] | str:
        if rng.random() < labeler.skip_rate:
            return "skip"
        return [labeler.rating(utility, scale, rng) for utility in utilities]

    return _judgements(world, labelers, items, rng, judgements_per_item, "rating", ratings)


def step_rows(world: World, answers: Iterable[Mapping[str, Any]], *, writer: str) -> list[dict[str, Any]]:
    """Rows prompt, completions (the steps of an answer), labels (whether each is right, exactly) of answers to sums.

    `answers` have prompt and completion, and False in `finished` where they hit the length limit. Each row also has the
    whole `completion`, its `label` (whether it is right in the end) and its `writer`. Left out: answers that never end,
    are to no sum, or say nothing about it.
    """
    rows = []
    for answer in answers:
        prompt, completion = answer["prompt"], answer["completion"]
        steps = world.steps(prompt, completion) if answer.get("finished", True) else []
        if steps:
            texts, labels = map(list, zip(*steps, strict=True))
            right = bool(world.features(prompt, completion)["right"])
            whole = {"completion": completion, "label": right, "writer": writer}
            rows.append({"prompt": prompt, "completions": texts, "labels": labels, **whole})
    return rows


def _require_sizes(items: Sequence[Mapping], *, fewest: int, most: int | None = None) -> None:
    for item in items:
        size = len(item["completions"])
        if size < fewest or (most and size > most):
            expected = "a pair has 2" if most else f"give at least {fewest}"
            raise WorldError(f"Item {item['item_id']!r} has {size} completions: {expected}.")


def _judgements(
    world: World,
    labelers: Sequence[Labeler],
    items: Sequence[Mapping],
    rng: random.Random,
    per_item: int,
    kind: str,
    verdict: Verdict,
) -> list[Judgement]:
    """The verdicts on each item of `per_item` labelers."""
    if not 1 <= per_item <= len(labelers):
        raise WorldError(f"judgements_per_item is {per_item}: the panel has {len(labelers)} labelers.")
    return [
        _judgement(world, labeler, item, rng, kind, verdict)
        for item in items
        for labeler in rng.sample(list(labelers), per_item)
    ]


def _judgement(
    world: World, labeler: Labeler, item: Mapping, rng: random.Random, kind: str, verdict: Verdict
) -> Judgement:
    answers = zip(item["completions"], item["finished"], strict=True)
    utilities = [labeler.utility(world, item["prompt"], text, finished) for text, finished in answers]
    return Judgement(
        item_id=item["item_id"],
        labeler=labeler.name,
        kind=kind,
        value=verdict(labeler, utilities, rng),
        shown_order=shown_order(labeler.name, item["item_id"], len(utilities)),
        elapsed_ms=0,
        note="",
        event_id=f"{labeler.name}-{item['item_id']}-{rng.getrandbits(32):08x}",
    )
