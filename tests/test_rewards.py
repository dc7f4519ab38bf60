"""The learned reward against the library's scoring of one text at a time and scipy's optimiser; ensembles."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import optimize, special
from tiny_models import EOS, FAMILIES, saved, tiny_model, word_tokenizer
from transformers import AutoModelForSequenceClassification

from workbench import WorkbenchError
from workbench.analysis.ensembles import ENSEMBLES, ensemble_scores, shared_errors
from workbench.models import load_reward_model, load_tokenizer
from workbench.models.rewards import (
    RIDGE,
    EnsembleReward,
    LearnedReward,
    all_right,
    make_pessimistic,
    normalise,
    preferred,
    rewards_named,
)
from workbench.records import LabelledExample, PairExample, scores_of
from workbench.runs import reward_names
from workbench.trainers.reward_model import RewardModelConfig, RewardModelTrainer

PROMPTS = ["user : what colour is the sky assistant :", "user : thanks assistant :", "the grass"] * 3
COMPLETIONS = [" blue", " yes please no", " is green", " red red red red", "", " the sky", " no", " green blue", " is"]
FINISHED = [True, True, False, False, True, True, True, False, True]


def reward_for(family="llama", *, max_length=24, batch_size=512) -> LearnedReward:
    model = tiny_model(family, auto=AutoModelForSequenceClassification)
    return LearnedReward(model, word_tokenizer(), max_length=max_length, batch_size=batch_size)


def reloaded(reward: LearnedReward, folder) -> LearnedReward:
    """The same reward from the folder in which it was saved."""
    tokenizer, _ = load_tokenizer(saved(reward.model, reward.tokenizer, folder))
    return LearnedReward(load_reward_model(str(folder), tokenizer), tokenizer, max_length=24)


def ids_of(text: str) -> list[int]:
    return word_tokenizer()(text)["input_ids"]


@torch.no_grad()
def plain_score(model, ids: list[int]) -> float:
    return model(input_ids=torch.tensor([ids])).logits[0, 0].item()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_score_is_the_librarys_for_prompt_and_completion_with_eos_if_it_finished(family):
    reward = reward_for(family)
    scores = reward(PROMPTS, COMPLETIONS, finished=FINISHED)
    for prompt, completion, done, score in zip(PROMPTS, COMPLETIONS, FINISHED, scores, strict=True):
        ids = ids_of(prompt) + ids_of(completion) + [EOS] * done
        assert score == pytest.approx(plain_score(reward.model, ids), abs=1e-5)


def test_batches_columns_and_order_change_nothing():
    expected = reward_for()(PROMPTS, COMPLETIONS, finished=FINISHED)
    assert reward_for(batch_size=2)(PROMPTS, COMPLETIONS, finished=FINISHED) == pytest.approx(expected, abs=1e-5)
    columns = {"kind": ["qa"] * 9, "tier": ["rare"] * 9}
    backwards = reward_for()(PROMPTS[::-1], COMPLETIONS[::-1], finished=FINISHED[::-1], **columns)
    assert backwards[::-1] == pytest.approx(expected, abs=1e-5)


def test_a_long_text_keeps_the_end_of_its_prompt_and_the_start_of_its_completion():
    prompt, completion = "user : what colour is the sky assistant :", " blue green red yes no"
    kept = [ids_of("sky assistant :") + ids_of(completion) + [EOS], ids_of(":") + ids_of(" blue green red")]
    assert list(map(len, kept)) == [9, 4]
    for expected in kept:
        reward = reward_for(max_length=len(expected))
        score = reward([prompt], [completion], finished=[True])[0]
        assert score == pytest.approx(plain_score(reward.model, expected), abs=1e-5)


def test_reference_samples_score_mean_zero_and_std_one_also_from_the_saved_folder(tmp_path):
    reward = reward_for()
    raw = reward.raw(PROMPTS, COMPLETIONS, finished=FINISHED)
    said = normalise(reward, PROMPTS, COMPLETIONS, finished=FINISHED)
    scores = torch.tensor(reward(PROMPTS, COMPLETIONS, finished=FINISHED))
    assert (scores.mean().item(), scores.std().item()) == pytest.approx((0, 1), abs=1e-5)
    assert said == pytest.approx({"reward_mean": raw.mean().item(), "reward_std": raw.std().item()})
    assert torch.equal(reward.raw(PROMPTS, COMPLETIONS, finished=FINISHED), raw)  # the training unit stays
    assert reloaded(reward, tmp_path)(PROMPTS, COMPLETIONS, finished=FINISHED) == pytest.approx(
        scores.tolist(), abs=1e-6
    )


def test_a_reward_model_that_does_not_vary_is_refused():
    reward = reward_for()
    torch.nn.init.zeros_(reward.model.score.weight)
    with pytest.raises(WorkbenchError, match="all 9 reference samples 0"):
        normalise(reward, PROMPTS, COMPLETIONS, finished=FINISHED)
    with pytest.raises(WorkbenchError, match="all 1 reference samples"):
        normalise(reward_for(), PROMPTS[:1], COMPLETIONS[:1], finished=[True])


# Process reward models: a completion is as good as all of its steps together

# " is" ends a step, for want of a full stop
STEPPED = [" red is blue is", " is is", " red green", "", " is yes", ""]
ENDED = [True, True, False, True, False, False]
STEP_LENGTHS = [[2, 3], [1, 2], [2], [1], [1, 1], [0]]  # EOS belongs to the last step, and so does a mark before it


def process_reward() -> LearnedReward:
    reward = reward_for()
    reward.model.config.step_end_ids = [ids_of(" is")[0]]
    return reward


def test_a_process_rewards_probability_is_the_product_of_its_steps():
    reward = process_reward()
    raw = reward.raw(PROMPTS[:6], STEPPED, finished=ENDED)
    for prompt, completion, done, lengths, value in zip(PROMPTS, STEPPED, ENDED, STEP_LENGTHS, raw, strict=False):
        ids, text, right = ids_of(completion) + [EOS] * done, ids_of(prompt), 1.0
        assert len(ids) == sum(lengths)
        for length in lengths:
            text, ids = text + ids[:length], ids[length:]
            right *= special.expit(plain_score(reward.model, text))
        assert special.expit(value.item()) == pytest.approx(right, abs=1e-6)


def test_the_odds_of_one_step_are_its_own_and_of_several_fewer_and_never_infinite():
    odds = torch.tensor([[2.0, 1.0], [2.0, 1.0], [500.0, 500.0], [-500.0, 0.0]])
    mask = torch.tensor([[True, False], [True, True], [True, True], [True, True]])
    together = all_right(odds, mask)
    assert together[0].item() == pytest.approx(2, rel=1e-6)
    assert together[1].item() == pytest.approx(special.logit(special.expit(2.0) * special.expit(1.0)), rel=1e-5)
    assert together[2] > 50 and together[2].isfinite()
    assert together[3].item() == pytest.approx(-500 - math.log(2), rel=1e-6)


# Pessimism

RADIUS = 0.7
GROUPS = [[[7, 8, EOS], [9, EOS]], [[10, 11, EOS], [12, EOS]], [[13], [14, 15, EOS]], [[4, EOS], [5, 5, EOS]]]
GROUP_PROMPTS = [[4, 5], [8], [9, 9, 9], [7]]


@torch.no_grad()
def plain_feature(model, ids: list[int]) -> np.ndarray:
    """The library's last hidden state at the end of one unpadded text."""
    hidden = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
    return hidden[0, -1].double().numpy()


def plain_confidence(model, groups=GROUPS) -> tuple[np.ndarray, np.ndarray]:
    """Sigma, (d, d), and the centre, (d,), from the definition."""
    rows = zip(GROUP_PROMPTS, groups, strict=True)
    features = [[plain_feature(model, prompt + ids) for ids in group] for prompt, group in rows]
    outer = [np.outer(a - b, a - b) for group in features for a, b in combinations(group, 2)]
    sigma = np.mean(outer, axis=0)
    sigma += RIDGE * np.trace(sigma) / len(sigma) * np.eye(len(sigma))
    return sigma, np.mean([feature for group in features for feature in group], axis=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pessimistic_reward_is_the_least_that_the_confidence_ellipsoid_allows(family):
    reward = reward_for(family)
    sigma, centre = plain_confidence(reward.model)
    theta = reward.model.score.weight[0].detach().double().numpy()
    make_pessimistic(reward.model, GROUP_PROMPTS, GROUPS, radius=RADIUS, batch_size=3)
    raw = reward.raw(PROMPTS[:4], COMPLETIONS[:4], finished=FINISHED[:4])
    limit = {"fun": lambda step: RADIUS**2 - step @ sigma @ step, "jac": lambda step: -2 * sigma @ step}
    for prompt, completion, done, value in zip(PROMPTS, COMPLETIONS, FINISHED, raw, strict=False):
        offset = plain_feature(reward.model, ids_of(prompt) + ids_of(completion) + [EOS] * done) - centre
        found = optimize.minimize(
            lambda step, o=offset: (theta + step) @ o,
            np.zeros(len(theta)),
            jac=lambda step, o=offset: o,
            constraints=[limit | {"type": "ineq"}],
            options={"ftol": 1e-12, "maxiter": 500},
        )
        assert value.item() == pytest.approx(found.fun, rel=1e-4, abs=1e-4)
        assert value < theta @ offset  # lower than the reward itself


def test_every_pair_of_a_ranking_counts():
    reward = reward_for()
    groups = [[*group, [6, EOS]] for group in GROUPS]
    sigma, centre = plain_confidence(reward.model, groups)
    make_pessimistic(reward.model, GROUP_PROMPTS, groups, radius=RADIUS)
    root = reward.model.doubt_root.double().numpy()
    np.testing.assert_allclose(root.T @ root @ sigma, np.eye(len(sigma)), atol=1e-3)
    np.testing.assert_allclose(reward.model.doubt_centre, centre, atol=1e-5)


def test_doubts_travel_with_the_folder(tmp_path):
    reward = reward_for()
    make_pessimistic(reward.model, GROUP_PROMPTS, GROUPS, radius=RADIUS)
    normalise(reward, PROMPTS, COMPLETIONS, finished=FINISHED)
    scores = reward(PROMPTS, COMPLETIONS, finished=FINISHED)
    assert reloaded(reward, tmp_path)(PROMPTS, COMPLETIONS, finished=FINISHED) == pytest.approx(scores, abs=1e-6)


def test_a_new_training_starts_without_the_old_doubts():
    reward = reward_for()
    make_pessimistic(reward.model, GROUP_PROMPTS, GROUPS, radius=RADIUS)
    pairs = [PairExample(prompt_ids=[4], chosen_ids=[5, EOS], rejected_ids=[6, EOS], margin=0.0)]
    RewardModelTrainer(reward.model, pairs, pairs, RewardModelConfig())
    plain = reward_for().raw(PROMPTS, COMPLETIONS, finished=FINISHED)
    assert reward.raw(PROMPTS, COMPLETIONS, finished=FINISHED).tolist() == pytest.approx(plain.tolist(), abs=1e-6)


def test_weights_that_lost_their_doubts_are_refused(tmp_path):
    reward = reward_for()
    reward.model.config.pessimism = RADIUS
    with pytest.raises(WorkbenchError, match="pessimistic, but its weights hold no doubt_root"):
        reloaded(reward, tmp_path)


def test_pessimism_needs_a_radius_and_comparisons():
    ratings = [LabelledExample(prompt_ids=[4], completion_ids=[5, EOS], label=label) for label in (1.0, 0.0)]
    trainer = RewardModelTrainer(reward_for().model, ratings, ratings, RewardModelConfig(objective="outcome"))
    with pytest.raises(WorkbenchError, match=r"pessimism needs completions that were compared, .*'outcome'"):
        trainer.comparisons(1.0)
    with pytest.raises(WorkbenchError, match="pessimism is -1"):  # before it was trained
        trainer.comparisons(-1)


# Several rewards at once


def members() -> list[LearnedReward]:
    models = [tiny_model(auto=AutoModelForSequenceClassification, seed=seed) for seed in range(3)]
    return [LearnedReward(model, word_tokenizer(), max_length=24) for model in models]


@pytest.mark.parametrize("how", ["mean", "min", "uncertainty"])
def test_an_ensemble_judges_each_completion_by_what_its_members_say_of_it_alone(how):
    together = EnsembleReward(members(), how=how, coef=0.7)(PROMPTS, COMPLETIONS, finished=FINISHED, kind=["qa"] * 9)
    for row, score in enumerate(together):
        asked = [PROMPTS[row]], [COMPLETIONS[row]]
        said = [member(*asked, finished=[FINISHED[row]])[0] for member in members()]
        expected = {"mean": np.mean(said), "min": min(said), "uncertainty": np.mean(said) - 0.7 * np.var(said)}[how]
        assert score == pytest.approx(expected, abs=1e-5)


def test_what_is_preferred_to_a_rival_is_said_by_raw_scores_in_log_odds_or_by_the_reward_itself():
    rivals, ended = COMPLETIONS[::-1], FINISHED[::-1]
    columns = {"finished": FINISHED, "rivals_finished": ended, "worth": [0.25] * 9}
    reward = reward_for()
    normalise(reward, PROMPTS, COMPLETIONS, finished=FINISHED)

    def score(prompt, completion, done):
        return plain_score(reward.model, ids_of(prompt) + ids_of(completion) + [EOS] * done)

    rows = zip(PROMPTS, COMPLETIONS, FINISHED, rivals, ended, strict=True)
    expected = [special.expit(score(p, ours, done) - score(p, its, its_done)) for p, ours, done, its, its_done in rows]
    assert preferred(reward, PROMPTS, COMPLETIONS, rivals, columns) == pytest.approx(expected, abs=1e-5)

    def longer(prompts, completions, *, finished, rivals=None, worth=(), **columns):
        return [worth[0] + 0.5 * (len(ours) > len(its)) for ours, its in zip(completions, rivals, strict=True)]

    said = [0.25 + 0.5 * (len(ours) > len(its)) for ours, its in zip(COMPLETIONS, rivals, strict=True)]
    assert preferred(longer, PROMPTS, COMPLETIONS, rivals, columns) == said
    panel = EnsembleReward([longer, reward], how="mean", coef=1.0)
    means = [(one + other) / 2 for one, other in zip(said, expected, strict=True)]
    assert preferred(panel, PROMPTS, COMPLETIONS, rivals, columns) == pytest.approx(means, abs=1e-5)
    with pytest.raises(WorkbenchError, match=r"takes rivals gave 1\.25: return a probability"):
        preferred(longer, PROMPTS, COMPLETIONS, rivals, columns | {"worth": [0.75] * 9})


@pytest.mark.parametrize(
    ("text", "weights", "worth"),
    [
        ("{}*1", [1, 1, 1], [0, 0, 0]),
        ("{}*0.5 + task:worth*2", [0.5, 0.5, 0.5], [2, 2, 2]),
        ("{} for short else task:worth*3", [0, 1, 0], [3, 0, 3]),
        ("task:worth for short else {}*2", [2, 0, 2], [0, 1, 0]),
    ],
)
def test_in_a_sum_a_preference_weighs_the_log_odds_of_a_reward_model_and_takes_others_as_they_are(
    text, weights, worth, tmp_path
):
    learned, prompts = reward_for(), ["the sky :", "a", "thanks :"]
    learned.model.config.reward_mean, learned.model.config.reward_std = 0.5, 3.0  # a unit that preferences do not see
    folder = saved(learned.model, learned.tokenizer, tmp_path / "rm")

    def of_worth(prompts, completions, *, finished, **columns):
        return [0.25 * len(text.split()) for text in completions]

    known = {"of_task": {"task:worth": of_worth}, "kinds": {"short": Short}}
    (reward,) = rewards_named(text.format(folder), word_tokenizer(), max_length=24, **known).values()
    ours, its = COMPLETIONS[:3], COMPLETIONS[3:6]
    said = preferred(reward, prompts, ours, its, {"finished": [True] * 3, "rivals_finished": [False] * 3})
    for row, prompt in enumerate(prompts):
        first = plain_score(learned.model, ids_of(prompt) + ids_of(ours[row]) + [EOS])
        second = plain_score(learned.model, ids_of(prompt) + ids_of(its[row]))
        longer = 0.25 * (len(ours[row].split()) - len(its[row].split()))
        assert said[row] == pytest.approx(
            special.expit(weights[row] * (first - second) + worth[row] * longer), abs=1e-5
        )


@pytest.mark.parametrize(
    "text", ["{}*2", "{} + task:worth", "{} for short else task:worth", "task:worth for short else {}"]
)
def test_a_preference_between_rivals_stands_alone(text, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def pref(prompts, completions, *, finished, rivals=None, **columns):\n    return [0.5] * len(prompts)"
    )
    known = {"of_task": OF_TASK, "kinds": {"short": Short}}
    with pytest.raises(WorkbenchError, match="pref' takes rivals, so it stands alone: without weight"):
        rewards_named(text.format(f"{file}:pref"), word_tokenizer(), max_length=24, **known)
    assert [*rewards_named(f"{file}:pref", word_tokenizer(), max_length=24, **known)] == ["pref"]


def test_reward_models_are_named_by_their_folders_and_read_in_the_order_given(tmp_path):
    folders = [tmp_path / name for name in ("zoe", "amy")]
    for folder, member in zip(folders, members()[:2], strict=True):
        member.model.save_pretrained(folder)
    found = rewards_named(f"{folders[0]}, {folders[1]}", word_tokenizer(), max_length=24)
    assert list(found) == ["zoe", "amy"]
    for loaded, member in zip(found.values(), members(), strict=False):
        scores = (reward(PROMPTS, COMPLETIONS, finished=FINISHED) for reward in (loaded, member))
        assert next(scores) == pytest.approx(next(scores), abs=1e-5)
        assert not any(weight.requires_grad for weight in loaded.model.parameters())
    assert rewards_named("", word_tokenizer(), max_length=24) == {}


def test_two_reward_models_of_one_name_are_refused(tmp_path):
    for place in ("one", "two"):
        members()[0].model.save_pretrained(tmp_path / place / "same")
    with pytest.raises(WorkbenchError, match="two rewards 'same'"):
        rewards_named(f"{tmp_path}/one/same,{tmp_path}/two/same", word_tokenizer(), max_length=24)


# Ensembles against hand-made tables, members whose errors are planted, and what must hold of any ensemble.


SCORES = np.array([[1.0, 0.0, -2.0], [3.0, 0.0, 4.0], [2.0, 0.0, 1.0]])  # 3 members, 3 completions


@pytest.mark.parametrize(
    "how, expected",
    [
        ("mean", [2.0, 0.0, 1.0]),
        ("min", [1.0, 0.0, -2.0]),
        ("uncertainty", [2 - 0.5 * 2 / 3, 0.0, 1 - 0.5 * 6.0]),  # variances over the three members: 2/3, 0 and 6
    ],
)
def test_ensembles_of_three_members_by_hand(how, expected):
    assert ensemble_scores(SCORES, how) == pytest.approx(expected)


@pytest.mark.parametrize("how", ENSEMBLES)
def test_equal_members_are_one_their_order_does_not_matter_and_none_exceeds_its_most_hopeful_member(how):
    assert ensemble_scores(SCORES[:1], how) == pytest.approx(SCORES[0])
    assert ensemble_scores(SCORES[[0, 0, 0]], how, coef=9.0) == pytest.approx(SCORES[0])
    scores = np.random.default_rng(0).normal(size=(4, 50))
    assert ensemble_scores(scores, how) == pytest.approx(ensemble_scores(scores[::-1], how))
    assert (ensemble_scores(scores, how) <= scores.max(axis=0)).all()


def test_doubt_costs_in_proportion_to_its_weight():
    assert ensemble_scores(SCORES, "uncertainty", coef=0.0) == pytest.approx(ensemble_scores(SCORES, "mean"))
    costs = [ensemble_scores(SCORES, "mean") - ensemble_scores(SCORES, "uncertainty", coef=coef) for coef in (0.1, 0.4)]
    assert costs[1] == pytest.approx(4 * costs[0])


@pytest.mark.parametrize(
    ("scores", "how", "coef", "message"),
    [
        (SCORES, "median", 1, "ensemble 'median' is not known: choose one of mean, min, uncertainty"),
        (SCORES[0], "mean", 1, r"shape \(3,\)"),
        (SCORES * np.nan, "mean", 1, "NaN"),
        (SCORES, "uncertainty", -1, "weight of the uncertainty is -1"),
    ],
)
def test_wrong_ensembles_get_a_sentence(scores, how, coef, message):
    with pytest.raises(WorkbenchError, match=message):
        ensemble_scores(scores, how, coef=coef)


def planted(shared: float, *, prompts=400, samples=64, seed=0):
    """Gold and two members: half gold, half errors of which the share `shared` of the variance is in common."""
    rng = np.random.default_rng(seed)
    gold, common, *own = rng.normal(size=(4, prompts, samples))
    members = [
        math.sqrt(0.5) * gold + math.sqrt(0.5) * (math.sqrt(shared) * common + math.sqrt(1 - shared) * part)
        for part in own
    ]
    scale = rng.uniform(0.5, 3, size=(prompts, 1))  # prompts differ in level and spread, which must not matter
    return {"a": members[0] * scale + 5 * scale, "b": 2 * members[1] - 7}, gold * scale


@pytest.mark.parametrize("shared", [0.0, 0.3, 0.9, 1.0])
def test_planted_errors_in_common_are_found(shared):
    row = shared_errors(*planted(shared)).iloc[0]
    assert (row["first"], row["second"]) == ("a", "b")
    assert row["errors_given_gold"] == pytest.approx(shared, abs=0.02)
    # errors z - g: variance 2 - 2r, covariance r_ab - 2r + 1, with r = sqrt(.5) and r_ab = .5 + .5 shared
    r = math.sqrt(0.5)
    assert row["errors"] == pytest.approx((0.5 + 0.5 * shared - 2 * r + 1) / (2 - 2 * r), abs=0.02)


def test_every_pair_of_members_has_a_row():
    scores, gold = planted(0.5, prompts=20)
    table = shared_errors(scores | {"c": scores["a"]}, gold)
    assert list(zip(table["first"], table["second"], strict=True)) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert table["errors"].tolist()[1] == pytest.approx(1.0)


def test_prompts_without_an_order_are_left_out():
    scores, gold = planted(0.5, prompts=30)
    expected = shared_errors({name: values[1:] for name, values in scores.items()}, gold[1:])
    gold[0] = 0.1 + 0.2
    assert shared_errors(scores, gold).equals(expected)


def test_where_nothing_varies_the_correlations_are_said_to_be_missing():
    table = shared_errors({"a": np.ones((2, 3)), "b": np.ones((2, 3))}, np.ones((2, 3)))
    assert table[["errors", "errors_given_gold"]].isna().all(axis=None)


def test_a_single_member_and_unequal_samples_get_a_sentence():
    scores, gold = planted(0.5, prompts=4)
    with pytest.raises(WorkbenchError, match="at least 2"):
        shared_errors({"a": scores["a"]}, gold)
    with pytest.raises(WorkbenchError, match="same samples"):
        shared_errors({"a": scores["a"], "b": scores["b"][:, :5]}, gold)


# Rewards by name


SPELLED = {
    "": {},
    "runs/x/05_reward_model": {"05_reward_model": [[("runs/x/05_reward_model", 1)]]},
    "a/rm , b/mine.py:score": {"rm": [[("a/rm", 1)]], "score": [[("b/mine.py:score", 1)]]},
    "task:sums*2 + runs/x/rm*0.3": {"task:sums*2 + rm*0.3": [[("task:sums", 2), ("runs/x/rm", 0.3)]]},
    "task:sums * -1e-2": {"task:sums * -1e-2": [[("task:sums", -0.01)]]},
    "task:sums*2 else x/rm, y/rm*.5": {
        "task:sums*2 else rm": [[("task:sums", 2)], [("x/rm", 1)]],
        "rm*.5": [[("y/rm", 0.5)]],
    },
    "x/safe*2 for harm + task:sums for math else y/a for b": {
        "safe*2 for harm + task:sums for math else a for b": [
            [("x/safe for harm", 2), ("task:sums for math", 1)],
            [("y/a for b", 1)],
        ]
    },
    "x/safe for harm*2": {"safe for harm*2": [[("x/safe for harm", 2)]]},
    "x/rm for harm, x/rm": {"rm for harm": [[("x/rm for harm", 1)]], "rm": [[("x/rm", 1)]]},
    "a for b/rm": {"rm": [[("a for b/rm", 1)]]},  # a folder of that name
    "a+b/c-d": {"c-d": [[("a+b/c-d", 1)]]},  # only between spaces does a + part two rewards
    "runs/elsewhere": {"elsewhere": [[("runs/elsewhere", 1)]]},
}


@pytest.mark.parametrize("text", SPELLED)
def test_a_text_names_rewards_with_their_weights(text):
    found = reward_names.read_rewards(text)
    spelled = {
        name: [[(each.sources[part], weight) for part, weight in one.items()] for one in each.sums]
        for name, each in found.items()
    }
    assert spelled == SPELLED[text]
    parts = [part[0] for sums in SPELLED[text].values() for one in sums for part in one]
    assert reward_names.sources_of(text) == [reward_names.without_kind(part)[0] for part in parts]
    assert reward_names.with_sources(text, str.upper).lower() == text.lower()


@pytest.mark.parametrize(
    "text",
    [
        *("task:sums*", "*2", "task:sums*two", "task:sums*2*3", "a*2.3.4", "a +  + b", "else", "a + ", "a else"),
        *("2*task:sums", "2 * task:sums", "task:facts + 0.5*x/rm", "2 task:sums", "2task:sums", "task:sums 2"),
        *("task:sums+task:facts", "x/rm+task:sums", "task:sums-task:facts", "task:sums for math*2*3", "a*2 for x*3"),
    ],
)
def test_a_text_that_can_not_be_read_as_rewards_is_quoted(text):
    with pytest.raises(
        WorkbenchError, match=r"'.*' can not be read: write each weight behind its name, as in task:sums\*2 \+ "
    ):
        reward_names.read_rewards(text)


@pytest.mark.parametrize("text", ["task:sums*0", "a/rm, task:sums*0 else b*0", "x*2 + x*-2", "x*1e-999", "x*0 for qa"])
def test_a_reward_of_which_no_part_counts_is_refused(text):
    with pytest.raises(WorkbenchError, match=r"'.*' counts nothing: give a part a weight other than 0"):
        reward_names.read_rewards(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [("a/rm + b/rm", "two rewards"), ("a.py:gold + task:sums", "part 'gold'"), ("x/kl*2 + task:sums", "part 'kl'")],
)
def test_parts_of_one_name_or_of_a_columns_name_are_refused(text, says):
    with pytest.raises(WorkbenchError, match=says):
        reward_names.read_rewards(text)


class OfLong:
    """Length of a completion, of prompts over one letter alone."""

    def judges(self, prompts):
        return [len(prompt) > 1 for prompt in prompts]

    def __call__(self, prompts, completions, *, finished, **columns):
        assert all(self.judges(prompts)), "OfLong was asked about another prompt"
        return [float(len(completion)) for completion in completions]


def of_column(prompts, completions, *, finished, worth):
    return list(worth)


ASKED = (["ab", "c", "de"], ["x", "yy", "zzz"]), {"finished": [True] * 3, "worth": [1.0, 2.0, 4.0]}
OF_TASK = {"task:long": OfLong(), "task:worth": of_column}


@pytest.mark.parametrize(
    ("text", "total", "long", "worth"),
    [
        ("task:long*2 + task:worth*0.5", [2.5, 1.0, 8.0], [1, None, 3], [1, 2, 4]),
        ("task:long + task:worth*0", [1.0, 0.0, 3.0], [1, None, 3], [1, 2, 4]),
        ("task:long*-1 else task:worth", [-1.0, 2.0, -3.0], [1, None, 3], [None, 2, None]),
    ],
)
def test_a_sum_adds_its_parts_and_else_asks_the_next_about_prompts_that_the_first_does_not_judge(
    text, total, long, worth
):
    ((name, reward),) = rewards_named(text, word_tokenizer(), max_length=24, of_task=OF_TASK).items()
    said = scores_of({"proxy": reward}, *ASKED)
    assert name == text and said["proxy"] == pytest.approx(total)
    assert [None if math.isnan(value) else value for value in said["task:long"]] == long
    assert [None if math.isnan(value) else value for value in said["task:worth"]] == worth
    alone = EnsembleReward([reward], how="mean", coef=1.0)
    assert str(scores_of({"proxy": alone}, *ASKED)) == str(said)  # NaN is not equal to itself


class Short:
    """A task's kind: prompts of one letter."""

    def __init__(self, name, reward):
        self.name, self.reward, self.log_odds = name, reward, getattr(reward, "log_odds", 1.0)

    def judges(self, prompts):
        return [len(prompt) == 1 for prompt in prompts]

    def __call__(self, prompts, completions, **columns):
        assert all(self.judges(prompts)), f"{self.name} was asked about another prompt"
        return self.reward(prompts, completions, **columns)


@pytest.mark.parametrize(
    ("text", "total"),
    [
        ("task:worth*10 for short else task:worth", [1.0, 20.0, 4.0]),
        ("task:worth for short + task:worth*0.5", [0.5, 3.0, 2.0]),
        ("task:worth for short + task:long*-1", [-1.0, 2.0, -3.0]),
    ],
)
def test_a_part_for_a_kind_is_asked_about_prompts_of_that_kind_alone(text, total):
    named = rewards_named(text, word_tokenizer(), max_length=24, of_task=OF_TASK, kinds={"short": Short})
    said = scores_of(named, *ASKED)
    assert said[text] == pytest.approx(total)
    assert [math.isnan(value) for value in said["task:worth for short"]] == [True, False, True]
    alone = rewards_named(
        "task:worth*2 for short", word_tokenizer(), max_length=24, of_task=OF_TASK, kinds={"short": Short}
    )
    with pytest.raises(WorkbenchError, match="task:worth for short was asked about another prompt"):
        scores_of(alone, *ASKED)


def test_a_kind_of_prompts_that_there_is_not_is_refused_with_those_that_there_are():
    with pytest.raises(WorkbenchError, match=r"'task:worth for shrt' is for prompts of a kind .*: choose one of short"):
        rewards_named("task:worth for shrt", word_tokenizer(), max_length=24, of_task=OF_TASK, kinds={"short": Short})
    with pytest.raises(WorkbenchError, match="only the embedded world knows kinds"):
        rewards_named("task:worth for short", word_tokenizer(), max_length=24, of_task=OF_TASK)


def test_prompts_that_no_part_judges_are_put_to_one_that_says_so():
    named = rewards_named("task:long*2", word_tokenizer(), max_length=24, of_task=OF_TASK)
    with pytest.raises(WorkbenchError, match="OfLong was asked about another prompt"):
        scores_of(named, *ASKED)


def test_a_reward_that_the_task_does_not_have_is_told_those_that_it_has():
    with pytest.raises(WorkbenchError, match="no reward 'task:lng': choose one of task:long, task:worth; or write"):
        rewards_named("task:lng", word_tokenizer(), max_length=24, of_task=OF_TASK)
    with pytest.raises(WorkbenchError, match="no reward 'task:sums': only the embedded world checks"):
        rewards_named("task:sums", word_tokenizer(), max_length=24)
