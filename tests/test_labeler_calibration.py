"""Oracles: agreement of judgements that were drawn, counted by `pairwise_agreement`, which knows no labeler."""

import functools
import random
from dataclasses import replace

import pandas as pd
import pytest

from workbench.feedback.agreement import pairwise_agreement
from workbench.tasks.world import NOISE_PANEL, PANEL, World, WorldError, calibrated, expected_agreement, judge_pairs


@pytest.fixture(scope="module")
def world():
    """The embedded world, which looks at every answer once."""
    with pytest.MonkeyPatch.context() as patch:
        loaded = World.load()
        known = functools.cache(loaded.features)
        patch.setattr(loaded, "features", lambda *answer: dict(known(*answer)))  # who checks nothing changes theirs
        yield loaded


@pytest.fixture(scope="module")
def pairs(world):
    """Pairs of answers of similar quality, as those of one policy: 1200 to calibrate on, as many others."""
    rng = random.Random(5)

    def answers(prompt):
        quality = rng.uniform(0.3, 0.7)
        return [world.answer(prompt, quality, rng) for _ in range(2)]

    rows = world.prompts(2400, rng)
    made = [
        {"item_id": f"i{i}", "prompt": row["prompt"], "completions": answers(row["prompt"]), "finished": [True] * 2}
        for i, row in enumerate(rows)
    ]
    return made[:1200], made[1200:]


def measured(world, labelers, items, seed):
    judged = judge_pairs(world, labelers, items, random.Random(seed), judgements_per_item=2)
    return pairwise_agreement(pd.DataFrame(judged), seed=seed)


@pytest.mark.parametrize("panel", [PANEL, NOISE_PANEL], ids=["biased", "noise"])
def test_the_expected_agreement_is_what_judgements_show(world, pairs, panel):
    """Also with many ties, skips of one labeler and lapses, whose weights are easily wrong."""
    odd = [replace(panel[0], same=0.5, tie_rate=0.6), replace(panel[1], skip_rate=0.4, lapse=0.3), *panel[2:]]
    for labelers in (panel, odd):
        expected = expected_agreement(world, labelers, pairs[0])
        counts = [measured(world, labelers, pairs[0], seed).value for seed in range(3)]
        assert sum(counts) / 3 == pytest.approx(expected, abs=0.025)  # three standard errors


def test_calibrated_labelers_agree_as_often_as_asked_on_pairs_that_they_were_not_calibrated_on(world, pairs):
    labelers = calibrated(world, PANEL, pairs[0], target=0.726)
    inside = 0
    for seed in range(5):
        agreement = measured(world, labelers, pairs[1], seed)
        inside += agreement.low <= 0.726 <= agreement.high
        assert agreement.value == pytest.approx(0.726, abs=0.04)
    assert inside >= 4  # each of five intervals misses one time in twenty


def test_only_noise_changes_and_for_all_by_one_factor(world, pairs):
    before, after = PANEL, calibrated(world, PANEL, pairs[0], target=0.70)
    factors = [new.temperature / old.temperature for old, new in zip(before, after, strict=True)]
    assert factors == pytest.approx([factors[0]] * 5) and factors[0] > 1
    assert [replace(new, temperature=old.temperature) for old, new in zip(before, after, strict=True)] == list(before)
    quieter = calibrated(world, PANEL, pairs[0], target=0.78)
    assert quieter[0].temperature < after[0].temperature
    assert expected_agreement(world, quieter, pairs[0]) == pytest.approx(0.78, abs=1e-5)


@pytest.mark.parametrize("target", [0.2, 0.99])
def test_a_target_that_no_noise_reaches_is_refused_with_the_range(world, pairs, target):
    with pytest.raises(WorldError, match=rf"target_agreement is {target}: these labelers agree on 0\.5\d\d to 0\.\d+"):
        calibrated(world, PANEL, pairs[0][:200], target=target)


def test_one_labeler_agrees_with_nobody(world, pairs):
    with pytest.raises(WorldError, match="1 labelers and 1200 items"):
        expected_agreement(world, PANEL[:1], pairs[0])
