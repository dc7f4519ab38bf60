"""Simulated labelers give every kind of judgement, as a store takes them. Oracles: the world's truth, closed forms."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from workbench.feedback.store import Store
from workbench.feedback.widget import DEFAULT_FLAGS
from workbench.tasks.world import (
    PANEL,
    judge_again,
    judge_best_of,
    judge_corrections,
    judge_pairs,
    judge_rankings,
    judge_ratings,
)
from workbench.tasks.world.judging import FLAGS

BY_NAME = {labeler.name: labeler for labeler in PANEL}
STEADY = replace(BY_NAME["ana"], lapse=0.0, skip_rate=0.0, tie_rate=0.0)


@pytest.fixture(scope="module")
def items(world):
    """Four answers of random quality to each prompt."""
    rng = random.Random(2)
    rows = world.prompts(400, rng)
    answers = [[world.answer(row["prompt"], rng.random(), rng) for _ in range(4)] for row in rows]
    return [
        {"item_id": f"i{place}", "prompt": row["prompt"], "completions": texts, "finished": [True] * 4}
        for place, (row, texts) in enumerate(zip(rows, answers, strict=True))
    ]


def pairs_of(items):
    return [{**item, "completions": item["completions"][:2], "finished": [True] * 2} for item in items]


def test_a_store_takes_every_kind_of_what_they_say(world, items, tmp_path):
    store = Store(tmp_path / "all.db")
    fours, pairs = items[:50], [{**item, "item_id": f"pair-{item['item_id']}"} for item in pairs_of(items[:50])]
    store.add_items([*fours, *pairs])
    said = judge_pairs(world, PANEL, pairs, random.Random(0), judgements_per_item=3)
    said += judge_again(judge_pairs, world, PANEL, pairs, said, random.Random(1))
    for judge in (judge_rankings, judge_best_of, judge_ratings, judge_corrections):
        said += judge(world, PANEL, fours, random.Random(3))
    assert store.record_all(said) == len(said)
    assert {each.kind for each in store.judgements()} == {"pair", "ranking", "best_of", "rating", "correction"}
    assert all(each.elapsed_ms > 0 for each in said)


def test_the_best_is_chosen_as_often_as_luce_says(world, items):
    """Each with the chance exp(utility / temperature) over the sum of all (Luce 1959)."""
    drawn, expected = np.zeros(4), np.zeros(4)
    for seed in range(5):
        for item, judged in zip(items, judge_best_of(world, [STEADY], items, random.Random(seed)), strict=True):
            utilities = np.array([STEADY.utility(world, item["prompt"], text) for text in item["completions"]])
            order = (-utilities).argsort()
            weights = np.exp((utilities - utilities.max()) / STEADY.temperature)
            expected += (weights / weights.sum())[order]
            drawn[list(order).index(judged.value)] += 1
    # binomial errors are at most sqrt(2000)/2 = 22
    assert np.abs(drawn - expected).max() < 66 and drawn[0] > 1000


def test_a_second_look_is_as_noisy_as_the_first_and_marked_as_one(world, items):
    pairs = pairs_of(items)
    first = judge_pairs(world, [STEADY], pairs, random.Random(0))
    again = judge_again(judge_pairs, world, [STEADY], pairs, first, random.Random(1), share=0.5)
    assert len(again) == 200 and {each.repeat for each in again} == {1}
    assert len({each.item_id for each in again}) == 200
    before = {each.item_id: each.value for each in first}
    same = np.mean([before[each.item_id] == each.value for each in again])
    chances = []
    for item in pairs:
        difference = np.subtract(*(STEADY.utility(world, item["prompt"], text) for text in item["completions"]))
        chance = 1 / (1 + np.exp(-np.clip(difference / STEADY.temperature, -30, 30)))
        chances.append(chance**2 + (1 - chance) ** 2)
    assert same == pytest.approx(np.mean(chances), abs=0.08)  # over two standard errors of 200 draws


def test_second_looks_are_at_ones_own_items_once_and_not_at_those_of_people(world, items):
    pairs = pairs_of(items)[:60]
    first = judge_pairs(world, PANEL, pairs, random.Random(0), judgements_per_item=2)
    human = [replace(first[0], labeler="you", event_id="x")]
    earlier = judge_again(judge_pairs, world, PANEL, pairs, first, random.Random(1))
    again = judge_again(judge_pairs, world, PANEL, pairs, [*first, *human, *earlier], random.Random(1), share=1.0)
    assert Counter((each.labeler, each.item_id) for each in again) == Counter(
        (each.labeler, each.item_id) for each in first
    )


def test_flags_say_what_is_wrong_and_only_those_who_check_see_falsehoods(world):
    (question,) = (row for row in world.prompts(200, random.Random(0), kind="qa")[:1])
    request = world.prompts(1, random.Random(0), kind="harm")[0]
    rng = random.Random(0)
    troll = {row["kind"]: [world.answer(row["prompt"], 0.0, rng) for _ in range(30)] for row in (question, request)}
    items = [
        {"item_id": row["kind"], "prompt": row["prompt"], "completions": troll[row["kind"]], "finished": [True] * 30}
        for row in (question, request)
    ]
    for name, sees in (("ana", True), ("eli", False)):
        labeler = replace(BY_NAME[name], skip_rate=0.0)
        judged = {each.item_id: each for each in judge_ratings(world, [labeler], items, random.Random(1))}
        false = [world.features(question["prompt"], text)["honest"] < 0 for text in troll["qa"]]
        flagged = ["false statement" in names for names in judged["qa"].details.get("flags", [[]] * 30)]
        assert any(false) and flagged == [lie and sees for lie in false]
        complied = [world.features(request["prompt"], text)["complied"] > 0 for text in troll["harm"]]
        assert any(complied)
        assert ["harmful advice" in names for names in judged["harm"].details["flags"]] == complied


def test_the_flags_are_those_that_the_widget_offers():
    assert set(FLAGS) <= set(DEFAULT_FLAGS)


def test_corrections_are_better_than_what_they_correct_and_the_careful_write_best(world, items):
    def gold(item, text):
        return sum(world.gold_components(item["prompt"], text).values())

    gains = {}
    for name in ("ana", "eli"):
        labeler = replace(BY_NAME[name], skip_rate=0.0)
        judged = judge_corrections(world, [labeler], items, random.Random(4))
        assert {tuple(each.details.items()) for each in judged} == {(("completion", 0),)}
        pairs = zip(items, judged, strict=True)
        gains[name] = np.mean([gold(item, each.value) - gold(item, item["completions"][0]) for item, each in pairs])
    assert gains["ana"] > gains["eli"] > 0.2


def test_who_reads_less_is_faster(world, items):
    def typical(name):
        judged = judge_pairs(world, [BY_NAME[name]], pairs_of(items), random.Random(0))
        return np.median([each.elapsed_ms for each in judged])

    assert typical("ana") > 1.1 * typical("dev") and typical("dev") > typical("ben") > 1500
