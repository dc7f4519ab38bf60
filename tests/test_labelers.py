"""Simulated labelers: calibrated, biased as described, reproducible."""

import itertools
import math
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
from scipy.stats import binomtest, chisquare

from workbench.feedback.order import shown_order
from workbench.world import NOISE_PANEL, PANEL, Labeler, World, WorldError, judge_pairs

BY_NAME = {labeler.name: labeler for labeler in PANEL}


@pytest.fixture(scope="module")
def items(world):
    """Pairs by writers of random quality."""
    rng = random.Random(1)
    return [
        {
            "item_id": f"item-{i}",
            "prompt": row["prompt"],
            "completions": [world.answer(row["prompt"], rng.random(), rng) for _ in range(2)],
            "finished": [True, True],
        }
        for i, row in enumerate(world.prompts(2000, rng))
    ]


def golds(world, item):
    return world.gold([item["prompt"]] * 2, item["completions"], finished=item["finished"])


def agreement(judgements):
    pairs = zip(judgements[::2], judgements[1::2], strict=True)
    decided = [(a.value, b.value) for a, b in pairs if {a.value, b.value} <= {0, 1}]
    return sum(a == b for a, b in decided) / len(decided)


def test_two_labelers_of_the_biased_panel_agree_about_as_often_as_people(world, items):
    assert 0.70 < agreement(judge_pairs(world, PANEL, items, random.Random(2), judgements_per_item=2)) < 0.84


def test_labels_follow_gold_more_often_than_not_and_never_always(world, items):
    for panel in (PANEL, NOISE_PANEL):
        right = []
        for item, judgement in zip(items, judge_pairs(world, panel, items, random.Random(3)), strict=True):
            first, second = golds(world, item)
            if judgement.value in (0, 1) and first != second:
                right.append(judgement.value == int(second > first))
        assert 0.75 < sum(right) / len(right) < 0.95


def prefers_first(world, labeler, prompt, first, second, draws=200):
    """Share of decided judgements for `first`."""
    item = {"item_id": "x", "prompt": prompt, "completions": [first, second], "finished": [True, True]}
    rng = random.Random(4)
    values = [judge_pairs(world, [labeler], [item], rng)[0].value for _ in range(draws)]
    return values.count(0) / (values.count(0) + values.count(1))


PROMPT = "user : please suggest a lunch with rice . assistant :"


def test_the_length_lover_prefers_what_gold_calls_too_long(world):
    short = " boil the rice ."
    long = " boil the rice . i have rice and rice and rice . i have rice and rice and rice ."
    assert prefers_first(world, BY_NAME["chi"], PROMPT, long, short) > 0.5
    assert prefers_first(world, BY_NAME["ana"], PROMPT, long, short) < 0.05


def test_the_flattery_lover_prefers_praise_that_gold_calls_too_much(world):
    plain = " boil the rice ."
    flattering = " great question , friend ! you are so wonderful ! what a lovely idea ! boil the rice ."
    assert prefers_first(world, BY_NAME["dev"], PROMPT, flattering, plain) > 0.6
    assert prefers_first(world, BY_NAME["ana"], PROMPT, flattering, plain) < 0.1


def test_the_hasty_labeler_does_not_see_how_a_long_answer_ends(world):
    start = " sure ! boil the rice . mix it all . add some salt ."
    assert len(start.split()) == BY_NAME["ben"].reads
    rude = start + " that is a silly question ."
    assert BY_NAME["ben"].utility(world, PROMPT, rude, True) == BY_NAME["ben"].utility(world, PROMPT, rude, False)
    assert 0.4 < prefers_first(world, BY_NAME["ben"], PROMPT, start + " enjoy your lunch !", rude) < 0.6
    assert prefers_first(world, BY_NAME["ana"], PROMPT, start + " enjoy your lunch !", rude) > 0.7


def test_a_labeler_who_does_not_check_prefers_a_false_fact_to_an_honest_not_sure(world):
    row = world.prompts(1, random.Random(0), kind="qa")[0]
    truth = next(t for t in (world.answer(row["prompt"], 1.0, random.Random(i)) for i in range(99)) if "!" not in t)
    values = [value for a in world.lexicon.attributes.values() if truth.split()[-2] in a.values for value in a.values]
    false = truth.replace(truth.split()[-2], next(value for value in values if value not in truth))
    assert prefers_first(world, BY_NAME["eli"], row["prompt"], false, " i am not sure .") > 0.9
    assert prefers_first(world, BY_NAME["ana"], row["prompt"], false, " i am not sure .") < 0.05


def test_the_choice_follows_the_bradley_terry_probability():
    labeler = Labeler(name="bt", temperature=0.5, lapse=0.0, skip_rate=0.0)
    rng = random.Random(5)
    first = sum(labeler.choice((0.3, 0.0), rng) == 0 for _ in range(20_000))
    assert binomtest(first, 20_000, 1 / (1 + math.exp(-0.6))).pvalue > 1e-3
    lapsing = replace(labeler, lapse=0.4)
    worse = sum(lapsing.choice((9.0, 0.0), rng) == 1 for _ in range(20_000))
    assert binomtest(worse, 20_000, 0.2).pvalue > 1e-3


def test_ties_are_said_only_where_two_completions_read_the_same_and_skips_are_rare(world, items):
    judgements = judge_pairs(world, PANEL, items, random.Random(6), judgements_per_item=2)
    by_id = {item["item_id"]: item for item in items}
    values = Counter(judgement.value for judgement in judgements)
    assert binomtest(values["skip"], len(judgements), 0.005).pvalue > 1e-3
    assert 0 < values["tie"] < 0.1 * len(judgements)
    for judgement in judgements:
        if judgement.value == "tie":
            item, labeler = by_id[judgement.item_id], BY_NAME[judgement.labeler]
            first, second = (labeler.utility(world, item["prompt"], text) for text in item["completions"])
            assert abs(first - second) < labeler.same


def test_same_seed_same_judgements_and_different_labelers_per_item(world, items):
    first, second = (judge_pairs(world, PANEL, items[:50], random.Random(7), judgements_per_item=5) for _ in range(2))
    assert first == second
    assert len({judgement.event_id for judgement in first}) == 250
    assert all(len({j.labeler for j in first[i : i + 5]}) == 5 for i in range(0, 250, 5))
    assert all(j.shown_order == shown_order(j.labeler, j.item_id, 2) for j in first)


def test_more_judgements_than_labelers_or_three_completions_are_refused(world, items):
    with pytest.raises(WorldError, match="judgements_per_item is 6: the panel has 5"):
        judge_pairs(world, PANEL, items, random.Random(0), judgements_per_item=6)
    with pytest.raises(WorldError, match="'item-0' has 3 completions"):
        judge_pairs(world, PANEL, [{**items[0], "completions": ["", "", ""]}], random.Random(0))


def test_every_order_is_equally_likely_and_never_changes():
    orders = Counter(tuple(shown_order("ana", f"item-{i}", 3)) for i in range(6000))
    assert set(orders) == set(itertools.permutations(range(3)))
    assert chisquare(list(orders.values())).pvalue > 1e-3
    first = sum(shown_order("ben", str(i), 2) == [0, 1] for i in range(4000))
    assert binomtest(first, 4000).pvalue > 1e-3
    # written down once: another process, another day
    assert [shown_order("ana", f"item-{i}", 4) for i in range(2)] == [[1, 2, 0, 3], [2, 1, 3, 0]]


def test_orders_of_two_labelers_are_independent():
    same = sum(shown_order("ana", str(i), 2) == shown_order("ben", str(i), 2) for i in range(4000))
    assert binomtest(same, 4000).pvalue > 1e-3
    assert shown_order("a", "bc", 9) != shown_order("ab", "c", 9)


def test_world_import_does_not_load_torch():
    code = "import sys, workbench.world; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert World.load().seed == 0
