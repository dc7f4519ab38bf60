"""Real models and trainers in a world where every completion is counted: nothing is sampled to measure them."""

import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import EOS, PAD, every_completion, tiny_model, word_tokenizer
from trainer_checks import continued_rows, rows_equal

from workbench import WorkbenchError, models
from workbench.models.tokens import collate
from workbench.studies.exact import optimum
from workbench.studies.exact import world as enumeration
from workbench.trainers.direct_alignment import DirectAlignmentConfig, DirectAlignmentTrainer
from workbench.trainers.policy_gradient import ALGORITHMS, PolicyGradientConfig, PolicyGradientTrainer

BETA = 0.7
TOKENS = enumeration.exact_tokenizer()


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The folder of a reference with random weights."""
    folder = tmp_path_factory.mktemp("exact") / "reference"
    enumeration.random_reference(TOKENS, seed=0).save_pretrained(folder)
    TOKENS.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def reference(start):
    return models.frozen(models.load_policy(start, TOKENS))


@pytest.fixture(scope="module")
def world(reference):
    return enumeration.with_rewards(enumeration.enumerate_world(TOKENS, longest=2), reference, seed=0)


# The world


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_gives_every_completion_the_probability_that_plain_passes_give_it_and_1_to_all(family):
    model, tokenizer = tiny_model(family), word_tokenizer()
    words = [token for token in range(model.config.vocab_size) if token not in (PAD, EOS)]
    completions = optimum.enumerate_completions(words, eos=EOS, longest=2)
    prompts = [[4, 6, 7], [5, 9, 4]]
    rows = [prompt for prompt in prompts for _ in completions], [list(ids) for ids in completions] * 2
    parts = {"tree": optimum.build_tree(completions), "sequences": collate(*rows, pad_id=PAD)}
    listed = enumeration.Enumeration(tokenizer=tokenizer, prompts=("a", "b"), completions=completions, **parts)
    found = listed.probabilities(model)
    np.testing.assert_allclose(found.sum(1), 1, atol=2e-6)
    for prompt, row in zip(prompts, found, strict=True):
        expected = every_completion(model, prompt, 2)
        assert set(expected) == set(completions)
        np.testing.assert_allclose(row, [expected[ids] for ids in completions], rtol=1e-4, atol=1e-9)


def test_rewards_have_mean_0_for_each_prompt_and_deviation_1_over_all_and_no_two_are_equal(world):
    assert world.rewards.shape == world.reference.shape == (3, 1 + 4 + 16)
    np.testing.assert_allclose((world.reference * world.rewards).sum(1), 0, atol=1e-12)
    assert (world.reference * world.rewards**2).sum() / 3 == pytest.approx(1, rel=1e-12)
    assert all(len(set(row)) == len(row) for row in world.rewards.round(9).tolist())


def test_a_completion_is_worth_its_words_and_their_neighbours(world):
    worth = dict(zip(world.texts(), world.rewards[1], strict=True))
    empty = worth["<eos>"]
    assert {"a <eos>", "b d"} <= set(worth)
    alone = {word: worth[f"{word} <eos>"] - empty for word in enumeration.WORDS}
    after = {pair: worth[" ".join(pair)] - empty - alone[pair[0]] - alone[pair[1]] for pair in ("ab", "cd", "bb")}
    for prompt in (0, 2):  # what follows what is the same for every prompt
        other = dict(zip(world.texts(), world.rewards[prompt], strict=True))
        for pair, value in after.items():
            parts = sum(other[f"{word} <eos>"] - other["<eos>"] for word in pair)
            assert other[" ".join(pair)] - other["<eos>"] - parts == pytest.approx(value, abs=1e-9)


def test_trainers_are_told_the_reward_of_what_was_written_and_nothing_outside_the_world(world):
    prompts, texts = ["a b", "b d", "c a"], [" c", "c d", ""]
    column = {text: index for index, text in enumerate(world.texts())}
    expected = [world.rewards[0, column["c <eos>"]], world.rewards[1, column["c d"]], world.rewards[2, column["<eos>"]]]
    assert world.reward(prompts, texts, finished=[True, False, True], kind=["x"] * 3) == pytest.approx(expected)
    with pytest.raises(WorkbenchError, match="'c d' and EOS is no completion of 'b d' here: sample no more tokens"):
        world.reward(["b d"], ["c d"], finished=[True])


def test_all_pairs_come_with_the_probability_of_the_label(world):
    pairs = world.pairs()
    assert len(pairs) == 3 * 21 * 20 / 2
    column = {ids: index for index, ids in enumerate(world.completions)}
    for pair in pairs[::37]:
        prompt = world.prompts.index(TOKENS.decode(pair.prompt_ids))
        chosen, rejected = (world.rewards[prompt, column[tuple(ids)]] for ids in (pair.chosen_ids, pair.rejected_ids))
        assert pair.margin == pytest.approx(chosen - rejected)
        assert pair.preference / (1 - pair.preference) == pytest.approx(math.exp(chosen - rejected))
        assert pair.preference > 0.5


def test_every_completion_is_labelled_by_its_side_of_the_mean_and_prompts_are_as_many_of_each(world):
    labelled, texts = world.labelled(), [example.row["prompt"] for example in world.prompt_examples(12)]
    assert [example.label for example in labelled] == (world.rewards.flatten() > 0).tolist()
    assert [tuple(example.completion_ids) for example in labelled] == world.completions * 3
    assert sorted(texts) == sorted([*world.prompts] * 4)


def test_the_same_seed_builds_the_same_world(reference, world):
    again = enumeration.with_rewards(enumeration.enumerate_world(TOKENS, longest=2), reference, seed=0)
    other = enumeration.with_rewards(enumeration.enumerate_world(TOKENS, longest=2), reference, seed=1)
    assert (again.rewards == world.rewards).all()
    assert not np.allclose(other.rewards, world.rewards)
    first, second = (enumeration.random_reference(TOKENS, seed=seed).lm_head.weight for seed in (0, 1))
    assert torch.equal(first, enumeration.random_reference(TOKENS, seed=0).lm_head.weight)
    assert not torch.equal(first, second)


# Trainers, measured


def on_policy(start, reference, world, algorithm, *, steps=100, **settings):
    """A trainer of the notebook's kind, measured every ten steps."""
    sizes = {"steps": steps, "evaluate_every": steps, "batch_size": 96, "max_completion_length": 2, "kl_coef": BETA}
    rates = {"lam": 1.0, "learning_rate": 1e-2, "critic_learning_rate": 1e-2, "missing_eos_penalty": 0.0}
    config = PolicyGradientConfig(algorithm=algorithm, **sizes, **rates, **settings)
    critic = models.load_critic(start, TOKENS) if ALGORITHMS[algorithm].has_critic else None
    prompts = world.prompt_examples(config.prompts_per_step)
    parts = (models.load_policy(start, TOKENS), reference, critic, world.reward, prompts, prompts[:3], TOKENS, config)
    return enumeration.MeasuredExactly(PolicyGradientTrainer(*parts, monitors={}), world, beta=BETA, every=10)


def from_pairs(start, reference, world, loss, **settings):
    """A direct trainer on all pairs, measured every ten steps."""
    config = DirectAlignmentConfig(loss=loss, batch_size=32, learning_rate=1e-2, evaluate_every=10**6, **settings)
    pairs = world.pairs()
    trainer = DirectAlignmentTrainer(models.load_policy(start, TOKENS), reference, pairs, pairs[:32], config)
    return enumeration.MeasuredExactly(trainer, world, beta=BETA, every=10)


PRICED = {"kl_in": "reward", "kl_estimator": "k1"}
PROMISED = {
    "PPO": partial(on_policy, algorithm="ppo"),
    "RLOO": partial(on_policy, algorithm="rloo", num_generations=8),
    "Dr. GRPO, KL in the reward": partial(on_policy, algorithm="dr_grpo", num_generations=8, **PRICED),
    "DPO": partial(from_pairs, loss="dpo", beta=BETA, epochs=5),
}


@pytest.mark.parametrize("name", PROMISED)
def test_methods_that_promise_the_optimum_end_within_a_fiftieth_of_a_nat_and_never_above_the_frontier(
    name, start, reference, world
):
    trainer = PROMISED[name](start, reference, world)
    rows = [trainer.step() for _ in range(trainer.total_steps)]
    measured = [row for row in rows if row["exact_kl"] is not None]
    assert [row["step"] for row in measured] == [*range(10, trainer.total_steps, 10), trainer.total_steps]
    assert measured[0]["exact_kl_to_optimum"] > 0.05 and measured[-1]["exact_kl_to_optimum"] < 0.02
    assert min(row["exact_wasted_kl"] for row in measured) > -1e-6


def test_with_k3_in_its_loss_dr_grpo_ends_where_enumeration_says_it_rests(start, reference, world):
    trainer = on_policy(start, reference, world, "dr_grpo", num_generations=8)
    rows = [trainer.step() for _ in range(trainer.total_steps)]
    answer = partial(optimum.rational_policy, beta=BETA)
    own = optimum.penalty_in_loss_optimum(world.reference, world.rewards, world.tree, answer)
    distance = optimum.mean_kl(world.probabilities(trainer.trainer.policy), own)
    assert distance < 0.02 and rows[-1]["exact_kl_to_optimum"] > 2 * distance


def test_with_one_update_per_batch_weighted_k3_trains_as_k2_does(start, reference, world):
    """Their gradients are one on the policy's own samples, sample by sample, though their values are not."""
    settings = {"num_generations": 8, "num_mini_batches": 1, "steps": 10}
    found = []
    for estimator in ("k2", "k3_weighted", "k3"):
        trainer = on_policy(start, reference, world, "dr_grpo", kl_estimator=estimator, **settings)
        for _ in range(10):
            trainer.step()
        found.append(world.probabilities(trainer.trainer.policy))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3, atol=1e-6)
    assert np.abs(found[2] - found[0]).max() > 1e-3


def test_ipo_ends_at_the_optimum_of_win_rates(start, reference, world):
    trainer = from_pairs(start, reference, world, "ipo", beta=0.2, epochs=5)
    rows = [trainer.step() for _ in range(trainer.total_steps)]
    own = optimum.optimal_policy(world.reference, optimum.win_rates(world.rewards), 0.2)
    assert optimum.mean_kl(world.probabilities(trainer.trainer.policy), own) < 0.02
    assert rows[-1]["exact_kl_to_optimum"] > 0.05


def test_measuring_is_part_of_the_row_and_changes_nothing_in_the_training(start, reference, world, tmp_path):
    make = partial(on_policy, start, reference, world, "rloo", num_generations=8, steps=12)
    trainer, plain = make(), make().trainer
    rows, bare = ([one.step() for _ in range(12)] for one in (trainer, plain))
    assert rows_equal([{name: row[name] for name in bare[0]} for row in rows[:-1]], bare[:-1])
    assert [row["exact_kl"] is not None for row in rows] == [False] * 9 + [True, False, True]
    continued, _ = continued_rows(make, tmp_path / "checkpoint.pt", before=5, after=7)
    assert rows_equal(continued, rows)
    expected = optimum.standing(world.probabilities(plain.policy), world.reference, world.rewards, BETA)
    assert {name.removeprefix("exact_"): rows[-1][name] for name in rows[-1] if name.startswith("exact_")} == expected


def test_a_path_starts_where_training_did_and_holds_what_was_measured(world, reference):
    columns = {f"exact_{name}": [None, 1.0 + index, None, 2.0] for index, name in enumerate(enumeration.STANDING)}
    metrics = pd.DataFrame({"step": [1, 2, 3, 4], "loss": 0.0, **columns})
    begin = world.standing(reference, beta=BETA)
    path = enumeration.exact_path(metrics, begin, method="PPO")
    assert path["step"].tolist() == [0, 2, 4] and path["share"].tolist() == [0, 0.5, 1]
    assert path["place"].tolist() == ["step 0", "step 2", "step 4"] and set(path["method"]) == {"PPO"}
    assert path["kl"].tolist() == [begin["kl"], 1.0, 2.0] and path["reward"].tolist() == [begin["reward"], 2.0, 2.0]
    assert begin["kl"] == pytest.approx(0, abs=1e-6)
