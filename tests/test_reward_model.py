"""Reward model training against the library's scores of one text at a time, hand arithmetic and TRL's trainer."""

import json
import math
from pathlib import Path

import pytest
import torch
from oracles.tiny_llama import waved, waved_llama
from tiny_models import (
    EOS,
    FAMILIES,
    plain_logprobs,
    same_weights,
    tiny_config,
    tiny_model,
    weights_of,
    word_tokenizer,
)
from trainer_checks import assert_continues
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaForSequenceClassification

from workbench import NonFiniteLoss, WorkbenchError
from workbench.losses.preference import best_of_k_loss, pairwise_ranking_loss, plackett_luce_loss
from workbench.models import build_policy, load_reward_model
from workbench.records import LabelledExample, PairExample, RankingExample, StepwiseExample
from workbench.trainers.reward_model import OBJECTIVES, RewardModelConfig, RewardModelTrainer

TRL = json.loads((Path(__file__).parent / "oracles" / "trl_reward.json").read_text())
STOP = 6  # ends a step


def pair(prompt, chosen, rejected, margin=0.0, preference=1.0) -> PairExample:
    return PairExample(
        prompt_ids=prompt, chosen_ids=chosen, rejected_ids=rejected, margin=margin, preference=preference
    )


def labelled(prompt, completion, label) -> LabelledExample:
    return LabelledExample(prompt_ids=prompt, completion_ids=completion, label=label)


PAIRS = [
    pair([4, 6, 7, 8], [9, EOS], [10, 11, 12, EOS]),
    pair([4], [10, 11, 12, 13, EOS], [9, 9, EOS], margin=0.5, preference=0.8),
    pair([5, 12], [14, EOS], [15, EOS], margin=2.0, preference=0.5),
    pair([5, 13], [15, 4], [14, EOS]),
]
HELD_OUT = [pair([8, 8], [9, EOS], [12, EOS]), pair([8], [5, 6, EOS], [4, EOS]), pair([9], [4, EOS], [7, 7, EOS])]
COMPLETIONS = [[9, EOS], [10, 11, EOS], [12, 13, 14, 15, EOS]]
RANKINGS = [
    RankingExample(prompt_ids=[4, 5], completion_ids=COMPLETIONS, ranking=[2, 0, 1]),
    RankingExample(prompt_ids=[8], completion_ids=COMPLETIONS[::-1], ranking=[1, 2, 0]),
    RankingExample(prompt_ids=[7, 7, 7], completion_ids=COMPLETIONS, ranking=[0, 1, 2]),
    RankingExample(prompt_ids=[9, 4], completion_ids=[[4], [5, EOS], [7, 8, EOS]], ranking=[1, 0, 2]),
]
RATINGS = [labelled([4, 5], [9, EOS], 6.0), labelled([8], [10, 11, EOS], 2.0), labelled([7], [12, 13, 14, EOS], 4.0)]
RATINGS.append(labelled([9, 9, 9], [4], 7.0))
OUTCOMES = [labelled([4, 5], [9, EOS], 1.0), labelled([8], [10, 11, EOS], 0.0), labelled([7], [12, 13, EOS], 0.0)]
OUTCOMES.append(labelled([9, 9, 9], [4], 1.0))
STEPS = [
    StepwiseExample(prompt_ids=[4, 5], step_ids=[[9, STOP], [10, 11, STOP, EOS]], labels=[True, False]),
    StepwiseExample(prompt_ids=[8], step_ids=[[12, STOP, EOS]], labels=[True]),
    StepwiseExample(prompt_ids=[7], step_ids=[[13, STOP], [14, STOP], [15, 4, STOP]], labels=[True, True, False]),
    StepwiseExample(prompt_ids=[9, 9], step_ids=[[5, 7, STOP], [4, STOP, EOS]], labels=[False, False]),
]
EXAMPLES = {
    "bradley_terry": PAIRS,
    "bradley_terry_margin": PAIRS,
    "soft": PAIRS,
    "pairwise_ranking": RANKINGS,
    "plackett_luce": RANKINGS,
    "best_of_k": RANKINGS,
    "rating": RATINGS,
    "outcome": OUTCOMES,
    "process": STEPS,
}


def scorer(family="llama", seed=0):
    return tiny_model(family, auto=AutoModelForSequenceClassification, seed=seed)


def trainer_for(model=None, examples=None, held_out=None, **config) -> RewardModelTrainer:
    config = {"epochs": 3, "batch_size": 2, "learning_rate": 1e-2, "warmup_steps": 2, "evaluate_every": 4} | config
    known = EXAMPLES[config.get("objective", "bradley_terry")]
    held_out = held_out or (HELD_OUT if known is PAIRS else known[:3])
    return RewardModelTrainer(model or scorer(), examples or known, held_out, RewardModelConfig(**config))


@torch.no_grad()
def plain_reward(model, ids: list[int]) -> float:
    """The library's score of one unpadded text."""
    return model(input_ids=torch.tensor([ids])).logits[0, 0].item()


def plain_margin(model, pair: PairExample) -> float:
    """Chosen minus rejected."""
    return plain_reward(model, pair.prompt_ids + pair.chosen_ids) - plain_reward(
        model, pair.prompt_ids + pair.rejected_ids
    )


def cross_entropy(margin: float, preference: float = 1.0) -> float:
    """Of log-odds `margin`, in the numbers of a textbook."""
    probability = 1 / (1 + math.exp(-margin))
    return -preference * math.log(probability) - (1 - preference) * math.log(1 - probability)


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def plain_ranking_loss(model, loss) -> float:
    """`loss(rewards, ranking)` of all rankings, from the library's scores."""
    rewards = [[plain_reward(model, each.prompt_ids + ids) for ids in each.completion_ids] for each in RANKINGS]
    return loss(torch.tensor(rewards), torch.tensor([each.ranking for each in RANKINGS])).mean().item()


def plain_labels(model, examples) -> list[tuple[float, float]]:
    """Reward and label of each completion."""
    return [(plain_reward(model, each.prompt_ids + each.completion_ids), each.label) for each in examples]


def plain_steps(model) -> list[tuple[float, bool]]:
    """Reward and label of each step: the text up to its end is scored as a text of its own."""
    scored = []
    for each in STEPS:
        text = list(each.prompt_ids)
        for step, label in zip(each.step_ids, each.labels, strict=True):
            text += step
            scored.append((plain_reward(model, text), label))
    return scored


PLAIN_LOSSES = {
    "bradley_terry": lambda model: mean(cross_entropy(plain_margin(model, each)) for each in PAIRS),
    "bradley_terry_margin": lambda model: mean(
        cross_entropy(plain_margin(model, each) - each.margin) for each in PAIRS
    ),
    "soft": lambda model: mean(cross_entropy(plain_margin(model, each), each.preference) for each in PAIRS),
    "pairwise_ranking": lambda model: plain_ranking_loss(model, pairwise_ranking_loss),
    "plackett_luce": lambda model: plain_ranking_loss(model, plackett_luce_loss),
    "best_of_k": lambda model: plain_ranking_loss(model, lambda rewards, order: best_of_k_loss(rewards, order[:, 0])),
    # mean 4.75, variance 59/16
    "rating": lambda model: mean((r - (y - 4.75) / (59 / 16) ** 0.5) ** 2 for r, y in plain_labels(model, RATINGS)),
    "outcome": lambda model: mean(cross_entropy(r, y) for r, y in plain_labels(model, OUTCOMES)),
    "process": lambda model: mean(cross_entropy(r, y) for r, y in plain_steps(model)),
}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_the_librarys_unpadded_scores(family, objective):
    row = trainer_for(scorer(family), objective=objective, batch_size=4).step()
    assert row["loss"] == pytest.approx(PLAIN_LOSSES[objective](scorer(family)), abs=2e-5)


def test_the_share_of_coin_tosses_reaches_the_loss():
    """Each side's probability is .9 of what the rewards say plus .05."""
    row = trainer_for(objective="soft", error_rate=0.1, batch_size=4).step()
    expected = []
    for each in PAIRS:
        said = 0.9 / (1 + math.exp(-plain_margin(scorer(), each))) + 0.05
        expected.append(-each.preference * math.log(said) - (1 - each.preference) * math.log(1 - said))
    assert row["loss"] == pytest.approx(mean(expected), abs=2e-5)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("soft", [[True, False], [True, False], [False, False], [True, False]]),
        ("best_of_k", [[False, False, True], [False, True, False], [True, False, False], [False, True, False]]),
        ("outcome", [[True], [False], [False], [True]]),
        ("process", [[False], [True], [False], [False]]),
    ],
)
def test_what_is_worth_imitating_is_what_was_preferred_or_wholly_right(objective, expected):
    assert [OBJECTIVES[objective].kind.liked(example) for example in EXAMPLES[objective]] == expected


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_padding_and_company_change_neither_held_out_loss_nor_fit(objective):
    together = trainer_for(objective=objective, batch_size=4)
    alone = trainer_for(objective=objective, batch_size=1)
    expected = together.evaluate(together.examples)
    assert alone.evaluate(alone.examples) == pytest.approx(expected, abs=1e-5)
    assert expected["loss"] == pytest.approx(PLAIN_LOSSES[objective](scorer()), abs=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_margins_are_the_librarys_in_the_given_order(family):
    model = scorer(family)
    expected = [plain_margin(model, pair) for pair in PAIRS + HELD_OUT]
    margins = trainer_for(scorer(family)).margins(PAIRS + HELD_OUT)
    assert margins.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_margins_of_comparisons_can_be_had_whatever_the_objective(objective):
    margins = trainer_for(objective=objective).margins(HELD_OUT)
    if objective != "process":  # whose rewards are no outputs of the head at the end (test_rewards)
        assert margins.tolist() == pytest.approx([plain_margin(scorer(), pair) for pair in HELD_OUT], abs=1e-5)
    assert len(margins) == 3 and margins.isfinite().all()


def test_a_step_reports_accuracy_and_margin_of_its_batch():
    row = trainer_for(batch_size=4).step()
    margins = [plain_margin(scorer(), pair) for pair in PAIRS]
    assert row["margin"] == pytest.approx(sum(margins) / 4, abs=1e-5)
    decided = [margin > 0 for margin, pair in zip(margins, PAIRS, strict=True) if pair.preference != 0.5]
    assert row["accuracy"] == pytest.approx(mean(decided))


def test_the_fit_of_rankings_is_the_share_of_ordered_pairs_and_of_best_completions_on_top():
    row = trainer_for(objective="plackett_luce", batch_size=4).step()
    right, on_top = [], []
    for each in RANKINGS:
        rewards = [plain_reward(scorer(), each.prompt_ids + ids) for ids in each.completion_ids]
        order = [rewards[index] for index in each.ranking]
        right += [order[0] > order[1], order[0] > order[2], order[1] > order[2]]
        on_top.append(order[0] == max(order))
    assert row["accuracy"] == pytest.approx(mean(right))
    assert row["best_accuracy"] == pytest.approx(mean(on_top))


def test_the_fit_of_ratings_is_a_correlation_and_that_of_verdicts_a_share():
    rewards, ratings = zip(*plain_labels(scorer(), RATINGS), strict=True)
    row = trainer_for(objective="rating", batch_size=4).step()
    expected = torch.corrcoef(torch.tensor([rewards, ratings]))[0, 1].item()
    assert row["correlation"] == pytest.approx(expected, abs=1e-5)
    for objective, scored in (("outcome", plain_labels(scorer(), OUTCOMES)), ("process", plain_steps(scorer()))):
        row = trainer_for(objective=objective, batch_size=4).step()
        assert row["accuracy"] == pytest.approx(mean((reward > 0) == (label > 0) for reward, label in scored))


def test_held_out_numbers_are_of_the_model_after_the_step_and_come_when_due():
    trainer = trainer_for()
    rows = [trainer.step() for _ in range(6)]
    assert trainer.total_steps == 6
    assert [row["held_out_loss"] is not None for row in rows] == [False, False, False, True, False, True]
    margins = [plain_margin(trainer.model, pair) for pair in HELD_OUT]
    expected = sum(math.log1p(math.exp(-margin)) for margin in margins) / 3
    assert rows[-1]["held_out_loss"] == pytest.approx(expected, abs=1e-5)
    assert rows[-1]["held_out_accuracy"] == pytest.approx(sum(margin > 0 for margin in margins) / 3)


def test_a_model_that_cannot_tell_pays_log_two():
    model = scorer()
    torch.nn.init.zeros_(model.score.weight)
    row = trainer_for(model, examples=[PAIRS[0], PAIRS[3]]).step()
    assert row["loss"] == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns_four_comparisons_by_heart(family):
    trainer = trainer_for(scorer(family, seed=3), epochs=60, batch_size=4)
    rows = [trainer.step() for _ in range(trainer.total_steps)]
    assert rows[-1]["accuracy"] == 1 and rows[-1]["loss"] < 0.05 < rows[0]["loss"]


LEAST = {"soft": math.log(2) / 4 + cross_entropy(math.log(4), 0.8) / 4}  # a tie and a label of .8 keep their entropy


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_learns_four_examples_by_heart(objective):
    trainer = trainer_for(scorer(seed=3), objective=objective, epochs=60, batch_size=4)
    rows = [trainer.step() for _ in range(trainer.total_steps)]
    assert rows[-1]["loss"] - LEAST.get(objective, 0) < 0.05 < rows[0]["loss"] - LEAST.get(objective, 0)
    fit = "best_accuracy" if objective == "best_of_k" else trainer.progress_keys[1]  # the best is all that it learns
    assert rows[-1][fit] > 0.99


@pytest.mark.parametrize(
    ("objective", "example", "up", "down"),
    [
        ("bradley_terry", PAIRS[0], [9, EOS], [10, 11, 12, EOS]),
        ("bradley_terry_margin", PAIRS[0], [9, EOS], [10, 11, 12, EOS]),
        ("soft", PAIRS[0], [9, EOS], [10, 11, 12, EOS]),
        ("pairwise_ranking", RANKINGS[0], COMPLETIONS[2], COMPLETIONS[1]),
        ("plackett_luce", RANKINGS[0], COMPLETIONS[2], COMPLETIONS[1]),
        ("best_of_k", RANKINGS[0], COMPLETIONS[2], COMPLETIONS[1]),
    ],
)
def test_one_step_moves_the_better_completion_above_the_worse(objective, example, up, down):
    trainer = trainer_for(examples=[example], objective=objective, learning_rate=1e-3, weight_decay=0.0)
    apart = lambda: (  # noqa: E731
        plain_reward(trainer.model, example.prompt_ids + up) - plain_reward(trainer.model, example.prompt_ids + down)
    )
    before = apart()
    trainer.step()
    assert apart() > before + 1e-3


def test_one_step_moves_rewards_towards_their_labels():
    for example, sign in ((OUTCOMES[0], 1), (OUTCOMES[1], -1)):
        trainer = trainer_for(examples=[example], objective="outcome", learning_rate=1e-3, weight_decay=0.0)
        text = example.prompt_ids + example.completion_ids
        before = plain_reward(trainer.model, text)
        trainer.step()
        assert sign * (plain_reward(trainer.model, text) - before) > 1e-3


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("before", [1, 5])
def test_a_stopped_training_continues_bit_for_bit(before, objective, tmp_path):
    settings = {"objective": objective} | {name: 0.1 for name in OBJECTIVES[objective].settings}
    assert_continues(lambda: trainer_for(**settings), tmp_path, steps=6, before=before)


@pytest.mark.parametrize("case", ["plain", "margin", "centred", "margin_centred"])
def test_a_step_on_trls_pairs_has_the_loss_and_gradient_of_trls_trainer(case):
    expected, inputs = TRL[case], TRL["inputs"]
    config = waved_llama(0.0).config
    config.num_labels = 1
    model = waved(LlamaForSequenceClassification(config), inputs["phase"])
    model.score.weight.data *= inputs["head"]
    pairs = [PairExample(**row) for row in inputs["pairs"]]
    coefficient = expected["settings"].get("center_rewards_coefficient", 0.0)
    objective = "bradley_terry_margin" if expected["settings"].get("margin") else "bradley_terry"
    row = trainer_for(
        model, pairs, pairs, objective=objective, center_rewards_coefficient=coefficient, batch_size=3
    ).step()
    assert row["grad_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-4)
    uncentred = "margin" if "margin" in case else "plain"
    assert row["loss"] == pytest.approx(TRL[uncentred]["loss"], rel=1e-5)
    for name in ("accuracy", "margin", "mean_reward"):
        assert row[name] == pytest.approx(expected["metrics"][name], rel=1e-4)


@pytest.mark.parametrize("objective", ["bradley_terry", "plackett_luce"])
def test_centering_brings_the_mean_reward_to_zero_and_leaves_the_order(objective):
    free, centred = (
        trainer_for(scorer(seed=1), objective=objective, epochs=50, batch_size=4, center_rewards_coefficient=weight)
        for weight in (0.0, 0.1)
    )
    for trainer in (free, centred):
        rows = [trainer.step() for _ in range(trainer.total_steps)]
        assert rows[-1]["accuracy"] == 1
    assert abs(rows[-1]["mean_reward"]) < 0.05 < abs(rows[0]["mean_reward"])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lm_loss_is_that_of_the_policy_with_the_same_weights_on_the_liked_completions(family):
    config = tiny_config(family)
    config.tie_word_embeddings = True
    with torch.random.fork_rng():
        torch.manual_seed(5)
        policy = AutoModelForCausalLM.from_config(config).eval()
    model = scorer(family)
    model.base_model.load_state_dict(policy.base_model.state_dict())
    examples = [*PAIRS[:2], pair([7], [13, 14, EOS], [15, EOS], preference=0.5), pair([8], [4], [5, 6], preference=0.2)]
    row = trainer_for(model, examples, objective="soft", lm_coef=0.5, batch_size=4).step()
    liked = [*((each.prompt_ids, each.chosen_ids) for each in PAIRS[:2]), ([8], [5, 6])]  # a tie has no good side
    logprobs = [value for prompt, ids in liked for value in plain_logprobs(policy, prompt, ids)]
    assert row["lm_loss"] == pytest.approx(-mean(logprobs), abs=1e-4)


def test_the_lm_loss_is_learned_beside_the_rewards():
    trainer = trainer_for(scorer(seed=3), objective="best_of_k", lm_coef=1.0, epochs=80, batch_size=4)
    rows = [trainer.step() for _ in range(trainer.total_steps)]
    assert rows[-1]["lm_loss"] < rows[0]["lm_loss"] / 2
    assert rows[-1]["accuracy"] >= 0.5 and rows[-1]["best_accuracy"] == 1


def test_verdicts_of_which_none_is_good_have_no_lm_loss():
    bad = [each for each in OUTCOMES if not each.label]
    row = trainer_for(examples=bad, objective="outcome", lm_coef=1.0).step()
    assert row["lm_loss"] == 0 and math.isfinite(row["grad_norm"])


def test_a_loss_that_is_nan_is_named_and_moves_nothing():
    broken = [pair([4], [5, EOS], [6, EOS], margin=math.nan)] * 2
    trainer = trainer_for(examples=broken, objective="bradley_terry_margin")
    before = weights_of(trainer.model)
    with pytest.raises(NonFiniteLoss, match="step 1") as caught:
        trainer.step()
    assert caught.value.batch["tokens"].shape == (4, 3)
    assert same_weights(before, weights_of(trainer.model))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinite_rewards_are_refused_and_move_nothing(objective, value):
    model = scorer()
    model.score.weight.data[0, 0] = value
    trainer = trainer_for(model, objective=objective)
    before = weights_of(model)
    with pytest.raises(NonFiniteLoss, match="step 1"):
        trainer.step()
    assert same_weights(before, weights_of(model))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"objective": "bradley"}, "no objective 'bradley': choose one of bradley_terry, .*process"),
        (
            {"objective": "rating", "center_rewards_coefficient": 0.1},
            "center_rewards_coefficient is 0.1, .* objective 'rating'.* bradley_terry, .*best_of_k",
        ),
        ({"objective": "rating", "lm_coef": 0.1}, "lm_coef is 0.1, .* objective 'rating'.* bradley_terry, .*process"),
        ({"objective": "plackett_luce", "error_rate": 0.1}, "error_rate is 0.1, .* objective 'plackett_luce'.* soft"),
    ],
)
def test_a_setting_that_means_nothing_is_named_with_its_value(config, says):
    with pytest.raises(WorkbenchError, match=says):
        RewardModelConfig(**config)


def test_from_scratch_a_preset_gives_the_size_and_the_source_the_tokens_and_the_context(tmp_path):
    tokenizer = word_tokenizer()
    build_policy("llama-64x2", tokenizer, context=40).save_pretrained(tmp_path)
    own, small = (
        load_reward_model(str(tmp_path), tokenizer, start="scratch", preset=preset) for preset in ("", "llama-32x1")
    )
    assert (own.config.hidden_size, small.config.hidden_size, small.config.num_hidden_layers) == (64, 32, 1)
    assert small.config.max_position_embeddings == 40 and small.config.vocab_size == len(tokenizer)
    assert (small.config.num_labels, small.config.pad_token_id) == (1, tokenizer.pad_token_id)
    heads = [
        load_reward_model(str(tmp_path), tokenizer, start="scratch", preset="llama-32x1", seed=seed).score.weight
        for seed in range(20)
    ]
    assert torch.cat(heads).std().item() == pytest.approx(33**-0.5, rel=0.1)
    with pytest.raises(WorkbenchError, match="preset is 'llama-32x1', but start 'sft' takes its size"):
        load_reward_model(str(tmp_path), tokenizer, start="sft", preset="llama-32x1")


WILD = [StepwiseExample(prompt_ids=[4], step_ids=[[5, mark], [6, EOS]], labels=[True] * 2) for mark in range(4, 16)]


@pytest.mark.parametrize(
    ("objective", "examples", "held_out", "says"),
    [
        ("rating", [labelled([4], [5, EOS], 4.0), labelled([5], [6, EOS], 4.0)], RATINGS, "All 2 ratings are 4"),
        ("process", WILD, STEPS, "12 different tokens"),
        ("bradley_terry", [], PAIRS, "0 training"),
        ("bradley_terry", PAIRS, [], "0 held-out"),
    ],
)
def test_examples_that_teach_nothing_are_refused(objective, examples, held_out, says):
    with pytest.raises(WorkbenchError, match=says):
        RewardModelTrainer(scorer(), examples, held_out, RewardModelConfig(objective=objective))
