"""Simulated labelers: biased as described, reproducible, in every kind of judgement. Oracles: truth, closed forms."""

import itertools
import math
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest, chisquare, gumbel_r, kstest, logistic

from workbench.feedback.session import shown_order
from workbench.feedback.store import Store
from workbench.feedback.widget import DEFAULT_FLAGS
from workbench.tasks.world import (
    NOISE_PANEL,
    PANEL,
    Labeler,
    World,
    WorldError,
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


def test_one_labeler_likes_to_hear_what_one_thinks_and_only_where_one_thinks_something(world):
    prompts = [row["prompt"] for row in world.prompts(400, random.Random(0), kind="qa")]
    mistaken = next(each for each in prompts if world.features(each, "")["mistaken"])
    words = mistaken.split(" . ")[0].removeprefix("user : i think") + " ."
    truth = next(
        text
        for i in range(99)
        if world.features(mistaken, text := world.answer(mistaken, 1.0, random.Random(i)))["right"]
    )
    plain = "user : " + mistaken.split(" . ")[1]
    assert prefers_first(world, BY_NAME["dev"], mistaken, words, truth) > 0.8
    for name, prompt in (("ana", mistaken), ("dev", plain)):
        assert prefers_first(world, BY_NAME[name], prompt, words, truth) < 0.1


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
    first = sum(labeler.comparison((0.3, 0.0), rng)[0] == 0 for _ in range(20_000))
    assert binomtest(first, 20_000, 1 / (1 + math.exp(-0.6))).pvalue > 1e-3
    lapsing = replace(labeler, lapse=0.4)
    worse = sum(lapsing.comparison((9.0, 0.0), rng)[0] == 1 for _ in range(20_000))
    assert binomtest(worse, 20_000, 0.2).pvalue > 1e-3


UTILITIES = (0.4, 0.1, 0.0, -0.3)
DRAWS = 30_000


def plain(**settings):
    """A labeler who never skips or calls ties."""
    return Labeler(name="pl", **{"temperature": 0.5, "lapse": 0.0, "skip_rate": 0.0, "tie_rate": 0.0} | settings)


def plackett_luce(order, temperature):
    """Probability of an order: the best of those that are left is drawn, again and again."""
    strengths = [math.exp(UTILITIES[index] / temperature) for index in order]
    return math.prod(strength / sum(strengths[place:]) for place, strength in enumerate(strengths))


@pytest.mark.parametrize("lapse", [0.0, 0.3])
def test_rankings_come_as_often_as_plackett_and_luce_say(lapse):
    labeler, rng = plain(lapse=lapse), random.Random(8)
    found = Counter(tuple(labeler.ranking(UTILITIES, rng)) for _ in range(DRAWS))
    orders = list(itertools.permutations(range(4)))
    chances = [(1 - lapse) * plackett_luce(order, 0.5) + lapse / 24 for order in orders]
    assert sum(chances) == pytest.approx(1)
    assert chisquare([found[order] for order in orders], [DRAWS * chance for chance in chances]).pvalue > 1e-3


@pytest.mark.parametrize("lapse", [0.0, 0.3])
def test_a_ranking_places_one_above_another_as_often_as_the_pair_is_chosen(lapse):
    labeler, rng = plain(lapse=lapse), random.Random(9)
    orders = [labeler.ranking(UTILITIES, rng) for _ in range(DRAWS)]
    for first, second in itertools.combinations(range(4), 2):
        above = sum(order.index(first) < order.index(second) for order in orders)
        chosen = sum(labeler.comparison([UTILITIES[first], UTILITIES[second]], rng)[0] == 0 for _ in range(DRAWS))
        chance = (1 - lapse) / (1 + math.exp((UTILITIES[second] - UTILITIES[first]) / 0.5)) + lapse / 2
        assert binomtest(above, DRAWS, chance).pvalue > 1e-3
        assert binomtest(chosen, DRAWS, chance).pvalue > 1e-3


def test_ratings_fall_between_the_steps_of_the_scale_as_often_as_their_noise_does(world):
    scale, rng = world.lexicon.scales.ratings, random.Random(10)
    noise = gumbel_r(loc=0.6 - 0.5 * 0.5772156649, scale=0.5)
    assert noise.mean() == pytest.approx(0.6)
    bounds = [-math.inf, *scale, math.inf]
    for lapse in (0.0, 0.3):
        labeler = plain(lapse=lapse)
        found = Counter(labeler.rating(0.6, scale, rng) for _ in range(DRAWS))
        chances = [
            (1 - lapse) * (noise.cdf(high) - noise.cdf(low)) + lapse / 7 for low, high in itertools.pairwise(bounds)
        ]
        assert chisquare([found[rating] for rating in range(1, 8)], [DRAWS * c for c in chances]).pvalue > 1e-3


def test_a_sure_labeler_rates_by_the_scale_alone(world):
    sure, scale, rng = plain(temperature=1e-6), world.lexicon.scales.ratings, random.Random(11)
    between = [scale[0] - 1, *((low + high) / 2 for low, high in itertools.pairwise(scale)), scale[-1] + 1]
    assert [sure.rating(utility, scale, rng) for utility in between] == [1, 2, 3, 4, 5, 6, 7]


def test_shift_spread_and_drift_move_ratings_and_nothing_else(world, items):
    own = replace(STEADY, shift=0.4, spread=1.5, drift=0.8)
    scale, rng, other = world.lexicon.scales.ratings, random.Random(15), random.Random(15)
    for utility in (-1.0, 0.1, 0.7, 1.3):
        steady = replace(STEADY, shift=0.0, temperature=1.5 * STEADY.temperature)  # the noise is stretched as well
        assert own.rating(utility, scale, rng, done=0.5) == steady.rating(1.5 * utility + 0.4 + 0.4, scale, other)
    for judge in (judge_pairs, judge_rankings):
        one, two = (
            [each.value for each in judge(world, [labeler], items[:200], random.Random(3))] for labeler in (own, STEADY)
        )
        assert one == two


def test_who_drifts_rates_the_same_answer_higher_as_the_session_goes_on(world):
    same = [
        {"item_id": f"{i}", "prompt": PROMPT, "completions": [" boil the rice ."], "finished": [True]}
        for i in range(40)
    ]
    rated = judge_ratings(world, [replace(STEADY, temperature=1e-6, drift=2.0)], same, random.Random(0))
    ratings = [each.value[0] for each in rated]
    assert ratings == sorted(ratings) and ratings[-1] - ratings[0] in (3, 4)  # a step of the scale is half a unit wide


def test_the_difference_that_a_labeler_sees_is_the_true_one_with_logistic_noise():
    rng = random.Random(12)
    seen = [plain().comparison((0.3, 0.0), rng) for _ in range(DRAWS)]
    signed = [difference if value == 0 else -difference for value, difference in seen]
    assert kstest(signed, logistic(loc=0.3, scale=0.5).cdf).pvalue > 1e-3
    wandering = plain(lapse=1.0)
    lapses = [wandering.comparison((9.0, 0.0), rng) for _ in range(DRAWS)]
    for value in (0, 1):  # a coin toss of any strength
        differences = [difference for tossed, difference in lapses if tossed == value]
        assert binomtest(len(differences), DRAWS).pvalue > 1e-3
        assert kstest(differences, "uniform", args=(0, 2)).pvalue > 1e-3


def test_decided_pairs_say_how_strong_the_preference_is(world, items):
    pairs = judge_pairs(world, PANEL, items, random.Random(13), judgements_per_item=2)
    assert all(("strength" in pair.details) == (pair.value in (0, 1)) for pair in pairs)
    decided = [pair for pair in pairs if pair.value in (0, 1)]
    by_id, right = {item["item_id"]: golds(world, item) for item in items}, {strength: [] for strength in (1, 2, 3, 4)}
    assert {pair.details["strength"] for pair in decided} == set(right)
    for pair in decided:
        first, second = by_id[pair.item_id]
        if pair.labeler == "ana" and first != second:
            right[pair.details["strength"]].append(pair.value == int(second > first))
    shares = [sum(found) / len(found) for found in right.values()]
    assert shares[0] < shares[1] < shares[2] <= shares[3], "the surer, the more often right"


def test_rankings_and_ratings_follow_gold_and_are_sometimes_skipped(world, items):
    rankings = judge_rankings(world, PANEL, items, random.Random(14))
    ratings = judge_ratings(world, PANEL, items, random.Random(14))
    for judged, kind in ((rankings, "ranking"), (ratings, "rating")):
        assert {each.kind for each in judged} == {kind} and len(judged) == len(items)
        assert 0 < sum(each.value == "skip" for each in judged) < 0.02 * len(items)
        assert len({each.event_id for each in judged}) == len(judged)
    right, rated = [], {rating: [] for rating in range(1, 8)}
    for item, ranking, rating in zip(items, rankings, ratings, strict=True):
        gold = golds(world, item)
        if ranking.value != "skip" and gold[0] != gold[1]:
            (best,), (worst,) = ranking.value
            right.append(gold[best] > gold[worst])
        for value, each in zip(gold, [] if rating.value == "skip" else rating.value, strict=False):
            rated[each].append(value)
    assert 0.75 < sum(right) / len(right) < 0.95
    means = [sum(values) / len(values) for values in rated.values()]
    assert means == sorted(means)


def test_items_of_the_wrong_size_are_refused_by_every_judge(world, items):
    one = [{**items[0], "completions": [""], "finished": [True]}]
    with pytest.raises(WorldError, match="'item-0' has 1 completions: give at least 2"):
        judge_rankings(world, PANEL, one, random.Random(0))
    with pytest.raises(WorldError, match="'item-0' has 1 completions: a pair has 2"):
        judge_pairs(world, PANEL, one, random.Random(0))
    assert len(judge_ratings(world, PANEL, one, random.Random(0))[0].value) == 1


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
    code = "import sys, workbench.tasks.world; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert World.load().seed == 0


# Every kind of judgement, as a store takes them


@pytest.fixture(scope="module")
def fours(world):
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


def test_a_store_takes_every_kind_of_what_they_say(world, fours, tmp_path):
    store = Store(tmp_path / "all.db")
    items, pairs = fours[:50], [{**item, "item_id": f"pair-{item['item_id']}"} for item in pairs_of(fours[:50])]
    store.add_items([*items, *pairs])
    said = judge_pairs(world, PANEL, pairs, random.Random(0), judgements_per_item=3)
    said += judge_again(judge_pairs, world, PANEL, pairs, said, random.Random(1))
    for judge in (judge_rankings, judge_best_of, judge_ratings, judge_corrections):
        said += judge(world, PANEL, items, random.Random(3))
    assert store.record_all(said) == len(said)
    assert {each.kind for each in store.judgements()} == {"pair", "ranking", "best_of", "rating", "correction"}
    assert all(each.elapsed_ms > 0 for each in said)


def test_the_best_is_chosen_as_often_as_luce_says(world, fours):
    """Each with the chance exp(utility / temperature) over the sum of all (Luce 1959)."""
    drawn, expected = np.zeros(4), np.zeros(4)
    for seed in range(5):
        for item, judged in zip(fours, judge_best_of(world, [STEADY], fours, random.Random(seed)), strict=True):
            utilities = np.array([STEADY.utility(world, item["prompt"], text) for text in item["completions"]])
            order = (-utilities).argsort()
            weights = np.exp((utilities - utilities.max()) / STEADY.temperature)
            expected += (weights / weights.sum())[order]
            drawn[list(order).index(judged.value)] += 1
    # binomial errors are at most sqrt(2000)/2 = 22
    assert np.abs(drawn - expected).max() < 66 and drawn[0] > 1000


def test_a_second_look_is_as_noisy_as_the_first_and_marked_as_one(world, fours):
    pairs = pairs_of(fours)
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


def test_second_looks_are_at_ones_own_items_once_and_not_at_those_of_people(world, fours):
    pairs = pairs_of(fours)[:60]
    first = judge_pairs(world, PANEL, pairs, random.Random(0), judgements_per_item=2)
    human = [replace(first[0], labeler="you", event_id="x")]
    earlier = judge_again(judge_pairs, world, PANEL, pairs, first, random.Random(1))
    again = judge_again(judge_pairs, world, PANEL, pairs, [*first, *human, *earlier], random.Random(1), share=1.0)
    assert Counter((each.labeler, each.item_id) for each in again) == Counter(
        (each.labeler, each.item_id) for each in first
    )


def test_flags_say_what_is_wrong_and_only_those_who_check_see_falsehoods(world):
    assert set(FLAGS) <= set(DEFAULT_FLAGS)  # those that the widget offers
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


def test_corrections_are_better_than_what_they_correct_and_the_careful_write_best(world, fours):
    def gold(item, text):
        return sum(world.gold_components(item["prompt"], text).values())

    gains = {}
    for name in ("ana", "eli"):
        labeler = replace(BY_NAME[name], skip_rate=0.0)
        judged = judge_corrections(world, [labeler], fours, random.Random(4))
        assert {tuple(each.details.items()) for each in judged} == {(("completion", 0),)}
        pairs = zip(fours, judged, strict=True)
        gains[name] = np.mean([gold(item, each.value) - gold(item, item["completions"][0]) for item, each in pairs])
    assert gains["ana"] > gains["eli"] > 0.2


def test_who_reads_less_is_faster(world, fours):
    def typical(name):
        judged = judge_pairs(world, [BY_NAME[name]], pairs_of(fours), random.Random(0))
        return np.median([each.elapsed_ms for each in judged])

    assert typical("ana") > 1.1 * typical("dev") and typical("dev") > typical("ben") > 1500
