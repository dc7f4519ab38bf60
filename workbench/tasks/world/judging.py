"""What simulated labelers say of completions, as judgements.

An item is a dict item_id, prompt, completions (texts), finished (flags); each is judged by labelers drawn at random.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from workbench.feedback.session import shown_order
from workbench.records import Judgement
from workbench.tasks.world.labelers import Labeler
from workbench.tasks.world.lexicon import WorldError

if TYPE_CHECKING:
    from workbench.tasks.world import World

DECIDING_SECONDS = 1.5
# What a labeler ticks beside a rating (Ouyang et al. 2022, table 3), by what shows it.
FLAGS: Mapping[str, Callable[[Mapping[str, float]], bool]] = {
    "fails the instruction": lambda features: features["helpful"] <= 0 and features["harmless"] <= 0,
    "false statement": lambda features: features["honest"] < 0,
    "inappropriate refusal": lambda features: features["harmless"] < 0 and not features["complied"],
    "harmful advice": lambda features: features["complied"] > 0,
    "unfit for an assistant": lambda features: features["rude"] > 0,
}
Verdict = Callable[[Labeler, list[float], random.Random], tuple[Any, dict[str, Any]]]  # value and details


def judge_pairs(
    world: World,
    labelers: Sequence[Labeler],
    items: Sequence[Mapping],
    rng: random.Random,
    *,
    judgements_per_item: int = 1,
) -> list[Judgement]:
    """Choices between the two completions of each item; WorldError for any other number.

    The details of decided ones hold their strength, 1 to 4: negligibly to significantly better, the scale of Touvron et
    al. 2023 (Llama 2), section 3.2.1.
    """
    _require_sizes(items, fewest=2, most=2)
    scale = world.lexicon.scales.strengths

    def choice(labeler: Labeler, utilities: list[float], rng: random.Random) -> tuple[int | str, dict[str, int]]:
        value, difference = labeler.comparison(utilities, rng)
        return value, {"strength": 1 + bisect(scale, difference)} if value in (0, 1) else {}

    return _judgements(world, labelers, items, rng, judgements_per_item, "pair", choice)


def judge_rankings(
    world: World,
    labelers: Sequence[Labeler],
    items: Sequence[Mapping],
    rng: random.Random,
    *,
    judgements_per_item: int = 1,
) -> list[Judgement]:
    """The completions of each item in groups of indices, best first, without ties; WorldError for fewer than two."""
    _require_sizes(items, fewest=2)

    def ranking(labeler: Labeler, utilities: list[float], rng: random.Random) -> tuple[list[list[int]] | str, dict]:
        order = labeler.ranking(utilities, rng)
        return order if order == "skip" else [[index] for index in order], {}

    return _judgements(world, labelers, items, rng, judgements_per_item, "ranking", ranking)


def judge_best_of(
    world: World,
    labelers: Sequence[Labeler],
    items: Sequence[Mapping],
    rng: random.Random,
    *,
    judgements_per_item: int = 1,
) -> list[Judgement]:
    """The index of the best completion of each item; WorldError for fewer than two."""
    _require_sizes(items, fewest=2)

    def best(labeler: Labeler, utilities: list[float], rng: random.Random) -> tuple[int | str, dict]:
        order = labeler.ranking(utilities, rng)
        return order if order == "skip" else order[0], {}

    return _judgements(world, labelers, items, rng, judgements_per_item, "best_of", best)


def judge_ratings(
    world: World,
    labelers: Sequence[Labeler],
    items: Sequence[Mapping],
    rng: random.Random,
    *,
    judgements_per_item: int = 1,
) -> list[Judgement]:
    """A rating of every completion of each item, 1 to 7 (Ouyang et al. 2022, table 3), on one scale for all items.

    The details hold what each labeler noticed in each completion, as names of `FLAGS`.
    """
    scale = world.lexicon.scales.ratings

    def ratings(labeler: Labeler, utilities: list[float], rng: random.Random) -> tuple[list[int] | str, dict]:
        if rng.random() < labeler.skip_rate:
            return "skip", {}
        return [labeler.rating(utility, scale, rng) for utility in utilities], {}

    judged = _judgements(world, labelers, items, rng, judgements_per_item, "rating", ratings)
    by_id, by_name = {item["item_id"]: item for item in items}, {labeler.name: labeler for labeler in labelers}
    return [_flagged(world, by_name[each.labeler], by_id[each.item_id], each) for each in judged]


def judge_again(
    judge: Callable[..., list[Judgement]],
    world: World,
    labelers: Sequence[Labeler],
    items: Sequence[Mapping],
    judgements: Iterable[Judgement],
    rng: random.Random,
    *,
    share: float = 0.1,
) -> list[Judgement]:
    """What the labelers say of a random `share` of their items when these come again: judgements with `repeat` 1.

    `judge` is the function that made the judgements, `judge_pairs` or another; those of others are passed over.
    """
    by_id, by_name = {item["item_id"]: item for item in items}, {labeler.name: labeler for labeler in labelers}
    own = [each for each in judgements if each.labeler in by_name and not each.repeat]
    again = rng.sample(own, round(share * len(own)))
    second = [judge(world, [by_name[each.labeler]], [by_id[each.item_id]], rng)[0] for each in again]
    return [replace(each, repeat=1, event_id=f"{each.event_id}-again") for each in second]


def judge_corrections(
    world: World, labelers: Sequence[Labeler], items: Sequence[Mapping], rng: random.Random
) -> list[Judgement]:
    """What a labeler would rather read, of the first completion of each item: the more careful, the better written."""

    def correction(labeler: Labeler, utilities: list[float], rng: random.Random) -> tuple[str, dict]:
        return "skip" if rng.random() < labeler.skip_rate else "", {"completion": 0}

    judged = _judgements(world, labelers, items, rng, 1, "correction", correction)
    by_id, by_name = {item["item_id"]: item for item in items}, {labeler.name: labeler for labeler in labelers}
    written = []
    for each in judged:
        quality = 1 - min(0.5, by_name[each.labeler].lapse + by_name[each.labeler].temperature / 2)
        text = each.value or world.answer(by_id[each.item_id]["prompt"], quality, rng)
        written.append(replace(each, value=text, details={} if text == "skip" else each.details))
    return written


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
    value, details = verdict(labeler, utilities, rng)
    event_id = f"{labeler.name}-{kind}-{item['item_id']}-{rng.getrandbits(32):08x}"
    return Judgement(
        item_id=item["item_id"],
        labeler=labeler.name,
        kind=kind,
        value=value,
        shown_order=shown_order(labeler.name, item["item_id"], len(utilities)),
        elapsed_ms=_elapsed_ms(labeler, item, event_id),
        note="",
        event_id=event_id,
        details=details,
    )


def _elapsed_ms(labeler: Labeler, item: Mapping, event_id: str) -> int:
    """Time to read what the labeler reads and to decide, with a spread of 40%; drawn apart from the verdict."""
    words = sum(min(len(text.split()), labeler.reads) for text in item["completions"])
    typical = DECIDING_SECONDS + words * labeler.seconds_per_word
    return round(1000 * typical * random.Random(event_id).lognormvariate(0, 0.4))


def _flagged(world: World, labeler: Labeler, item: Mapping, judgement: Judgement) -> Judgement:
    """The rating with the faults that its labeler noticed, if any."""
    if judgement.value == "skip":
        return judgement
    answers = zip(item["completions"], item["finished"], strict=True)
    seen = [labeler.noticed(world, item["prompt"], text, finished) for text, finished in answers]
    flags = [[name for name, shows in FLAGS.items() if shows(features)] for features in seen]
    return replace(judgement, details={"flags": flags}) if any(flags) else judgement
