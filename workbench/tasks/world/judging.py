"""What simulated labelers say of completions, as judgements.

An item is a dict item_id, prompt, completions (texts), finished (flags); each is judged by labelers drawn at random.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from workbench.feedback.kinds import KINDS
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


def judge(
    kind: str,
    world: World,
    labelers: Sequence[Labeler],
    items: Sequence[Mapping],
    rng: random.Random,
    *,
    judgements_per_item: int = 1,
) -> list[Judgement]:
    """What `judgements_per_item` labelers say of each item in a kind of judgement; WorldError for a wrong size.

    Rankings have no ties. Strengths of pairs are 1 to 4, negligibly to significantly better, the scale of Touvron et
    al. 2023 (Llama 2), section 3.2.1; ratings are 1 to 7 (Ouyang et al. 2022, table 3), on one scale for all items.
    """
    fewest, most = KINDS[kind].fewest, KINDS[kind].most
    for item in items:
        size = len(item["completions"])
        if size < fewest or (most and size > most):
            expected = "a pair has 2" if most else f"give at least {fewest}"
            raise WorldError(f"Item {item['item_id']!r} has {size} completions: {expected}.")
    if not 1 <= judgements_per_item <= len(labelers):
        raise WorldError(f"judgements_per_item is {judgements_per_item}: the panel has {len(labelers)} labelers.")
    return [
        _judgement(kind, _Reader(world, labeler, item, rng, done=place / len(items)))
        for place, item in enumerate(items)
        for labeler in rng.sample(list(labelers), judgements_per_item)
    ]


judge_pairs, judge_rankings, judge_best_of, judge_ratings, judge_corrections = (
    partial(judge, kind) for kind in ("pair", "ranking", "best_of", "rating", "correction")
)


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


class _Reader:
    """A labeler before the completions of an item: what `Kind.said` asks."""

    def __init__(self, world: World, labeler: Labeler, item: Mapping, rng: random.Random, *, done: float):
        self.world, self.labeler, self.item, self.rng, self.done = world, labeler, item, rng, done
        self.answers = list(zip(item["completions"], item["finished"], strict=True))
        self.utilities = [labeler.utility(world, item["prompt"], text, finished) for text, finished in self.answers]

    def comparison(self) -> tuple[int | str, int]:
        value, difference = self.labeler.comparison(self.utilities, self.rng)
        return value, 1 + bisect(self.world.lexicon.scales.strengths, difference)

    def order(self) -> list[int] | str:
        return self.labeler.ranking(self.utilities, self.rng)

    def ratings(self) -> list[int] | str:
        if self.rng.random() < self.labeler.skip_rate:
            return "skip"
        scale = self.world.lexicon.scales.ratings
        return [self.labeler.rating(utility, scale, self.rng, done=self.done) for utility in self.utilities]

    def flags(self) -> list[list[str]]:
        seen = [self.labeler.noticed(self.world, self.item["prompt"], *answer) for answer in self.answers]
        return [[name for name, shows in FLAGS.items() if shows(features)] for features in seen]

    def text(self) -> str:
        """The more careful the labeler, the better written."""
        if self.rng.random() < self.labeler.skip_rate:
            return "skip"
        quality = 1 - min(0.5, self.labeler.lapse + self.labeler.temperature / 2)
        return self.world.answer(self.item["prompt"], quality, self.rng)


def _judgement(kind: str, reader: _Reader) -> Judgement:
    labeler, item = reader.labeler, reader.item
    value, details = KINDS[kind].said(reader)
    event_id = f"{labeler.name}-{kind}-{item['item_id']}-{reader.rng.getrandbits(32):08x}"
    return Judgement(
        item_id=item["item_id"],
        labeler=labeler.name,
        kind=kind,
        value=value,
        shown_order=shown_order(labeler.name, item["item_id"], len(item["completions"])),
        elapsed_ms=_elapsed_ms(labeler, item, event_id),
        event_id=event_id,
        details=details,
    )


def _elapsed_ms(labeler: Labeler, item: Mapping, event_id: str) -> int:
    """Time to read what the labeler reads and to decide, with a spread of 40%; drawn apart from the verdict."""
    words = sum(min(len(text.split()), labeler.reads) for text in item["completions"])
    typical = DECIDING_SECONDS + words * labeler.seconds_per_word
    return round(1000 * typical * random.Random(event_id).lognormvariate(0, 0.4))
