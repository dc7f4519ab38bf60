"""PPO on language: every quantity of a step recomputed token by token, exact enumeration, and what must not move."""

import copy
import math

import numpy as np
import pytest
import torch
from policy_gradient_cases import (
    TEXTS,
    UNPRICED,
    colourful,
    constant,
    plain_rows,
    prompts_with,
    tiny_critic,
    trainer_for,
)
from tiny_models import (
    EOS,
    FAMILIES,
    assert_plain_logprobs,
    every_completion,
    plain_logprobs,
    plain_next_logprobs,
    same_weights,
    tiny_model,
    weights_of,
    word_tokenizer,
)
from transformers import AutoModelForTokenClassification

from workbench import WorkbenchError
from workbench.models import add_lora
from workbench.records import PromptExample

# What a step computes


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_returns_hold_the_penalised_score_at_the_end_and_the_kl_price_of_every_token(temperature):
    models, prices = (tiny_model(), tiny_model(seed=1)), {"kl_coef": 0.2, "missing_eos_penalty": 0.7}
    trainer = trainer_for(copy.deepcopy(models[0]), models[1], temperature=temperature, gamma=0.9, lam=1.0, **prices)
    trainer.step()
    rollout, returns, rows = trainer.seen, trainer.seen.returns, list(plain_rows(trainer.seen))
    texts = word_tokenizer().batch_decode([completion for _, completion in rows], skip_special_tokens=True)
    scores = colourful(None, texts, finished=None)
    for row, texts in enumerate(rows):
        ours, theirs = (np.array(plain_logprobs(model, *texts, temperature=temperature)) for model in models)
        rewards, length = -0.2 * (ours - theirs), len(texts[1])
        rewards[-1] += scores[row] - 0.7 * (texts[1][-1] != EOS)
        expected = [sum(0.9**delay * each for delay, each in enumerate(rewards[start:])) for start in range(length)]
        assert returns[row, :length].tolist() == pytest.approx(expected, abs=1e-4)
        assert returns[row, length:].abs().sum() == 0
    assert 0 < rollout.finished.sum() < 8


def test_whitened_rewards_have_variance_one_and_keep_their_mean():
    def token_rewards(**config):
        trainer = trainer_for(reference=tiny_model(seed=1), gamma=1.0, lam=1.0, **config)
        trainer.step()
        returns, mask = trainer.seen.returns, trainer.seen.completion_mask
        following = torch.nn.functional.pad(returns[:, 1:], (0, 1))
        return (returns - following)[mask].double()

    plain, whitened = token_rewards(), token_rewards(whiten_rewards=True)
    assert whitened.std().item() == pytest.approx(1, abs=1e-4)
    assert whitened.mean().item() == pytest.approx(plain.mean().item(), abs=1e-4)
    assert abs(plain.std().item() - 1) > 0.05


def test_kl_is_reported_as_a_sum_over_the_completion_with_its_standard_error_over_prompts():
    policy, reference = tiny_model(), tiny_model(seed=1)
    trainer = trainer_for(copy.deepcopy(policy), reference)
    row, rows = trainer.step(), list(plain_rows(trainer.seen))
    sums = [sum(plain_logprobs(policy, *texts)) - sum(plain_logprobs(reference, *texts)) for texts in rows]
    assert row["kl"] == pytest.approx(np.mean(sums), abs=1e-4)
    assert row["kl_se"] == pytest.approx(np.std(sums, ddof=1) / math.sqrt(8), abs=1e-4)
    assert row["reward"] == pytest.approx(trainer.seen.scores.mean().item())
    assert row["reward"] == pytest.approx(np.mean([sample["reward"] for sample in trainer.samples()]))
    assert row["completion_length"] == trainer.seen.completion_mask.sum().item() / 8


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_mean_kl_is_the_exact_one_within_its_error_and_not_negative(temperature):
    sizes, prompt = {"vocab_size": 8, "layers": 1}, [4, 5]
    models = tiny_model(**sizes), tiny_model(seed=1, **sizes)
    ours, theirs = (every_completion(model, prompt, 3, temperature=temperature) for model in models)
    exact = sum(chance * math.log(chance / theirs[completion]) for completion, chance in ours.items())
    prompts = [PromptExample(prompt_ids=prompt, row={"prompt": "user assistant"})] * 2000
    critic = tiny_model(auto=AutoModelForTokenClassification, **sizes)
    settings = {"batch_size": 2000, "max_completion_length": 3, "temperature": temperature, "kl_coef": 0.0}
    row = trainer_for(*models, critic=critic, prompts=prompts, **settings).step()
    assert exact > 0.2 and row["kl_se"] < 0.1 * exact
    assert abs(row["kl"] - exact) < 3 * row["kl_se"]
    assert row["kl"] > -2 * row["kl_se"]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_update_has_ratio_one_and_no_kl_and_clips_nothing(family, temperature):
    models, settings = (tiny_model(family), tiny_model(family)), {"num_mini_batches": 1, "num_ppo_epochs": 1}
    trainer = trainer_for(*models, critic=tiny_critic(family), temperature=temperature, **settings)
    row = trainer.step()
    ratio = (trainer.logprobs_seen[0] - trainer.parts_seen[0].logprobs).exp()
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=1e-5, atol=1e-5)
    assert row["approx_kl"] < 1e-9 and row["clip_fraction"] == 0
    assert row["policy_loss"] == pytest.approx(0, abs=1e-5)  # minus the mean of whitened advantages


def test_later_mini_batches_compare_with_the_policy_that_sampled():
    trainer = trainer_for(num_mini_batches=2, num_ppo_epochs=3, learning_rate=3e-2, cliprange=0.05)
    row = trainer.step()
    assert row["approx_kl"] > 1e-3 and row["clip_fraction"] > 0.1
    assert_plain_logprobs(trainer.seen.logprobs, tiny_model(), *zip(*plain_rows(trainer.seen), strict=True))


def test_entropy_is_that_of_the_next_token_averaged_over_counted_ones():
    trainer = trainer_for(num_mini_batches=1, temperature=0.8)
    row, model, entropies = trainer.step(), tiny_model(), []
    for prompt, completion in plain_rows(trainer.seen):
        for index in range(len(completion)):
            logprobs = plain_next_logprobs(model, prompt + completion[:index], temperature=0.8)[1:]
            entropies.append(-(logprobs.exp() * logprobs).sum().item())
    assert row["entropy"] == pytest.approx(np.mean(entropies), abs=1e-4)


# The gradient


def test_what_the_pad_slots_hold_changes_no_update():
    def after_update(disturb):
        trainer = trainer_for(num_ppo_epochs=2)
        trainer.step()
        experience = trainer.seen
        if disturb:
            fill = torch.randint(0, 20, experience.tokens.shape, generator=torch.Generator().manual_seed(0))
            experience.tokens[:] = torch.where(experience.attention_mask, experience.tokens, fill)
            for field in (experience.logprobs, experience.advantages, experience.values, experience.returns):
                field[~experience.completion_mask] = 3.0
        assert (~experience.completion_mask).any()
        trainer.update(experience)
        return weights_of(trainer.policy), weights_of(trainer.critic)

    for clean, disturbed in zip(after_update(False), after_update(True), strict=True):
        assert same_weights(clean, disturbed)


def test_a_constant_reward_without_kl_or_penalty_leaves_no_advantage_for_a_perfect_critic():
    policy, critic = tiny_model(), tiny_critic()
    torch.nn.init.zeros_(critic.score.weight)
    torch.nn.init.ones_(critic.score.bias)
    row = trainer_for(policy, critic=critic, reward=constant, **UNPRICED).step()
    assert row["value_loss"] == pytest.approx(0, abs=1e-9) and row["policy_grad_norm"] == pytest.approx(0, abs=1e-6)
    assert all(torch.allclose(value, weights_of(tiny_model())[name]) for name, value in weights_of(policy).items())


# Learning


@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns_what_to_say_to_four_prompts(family):
    targets = ["red", "green", "blue", "grass"]
    prompts = prompts_with(TEXTS[:4] * 32, target=targets * 32)

    def hits(prompts, completions, *, finished, target):
        return [float(said == f" {wanted}") for said, wanted in zip(completions, target, strict=True)]

    models = tiny_model(family), tiny_model(family)
    for model in models:
        model.lm_head.weight.data *= 0.1  # nearly every word is tried at the start
    settings = {"steps": 30, "batch_size": 128, "max_completion_length": 1, "evaluate_every": 1000, **UNPRICED}
    settings |= {"learning_rate": 2e-2, "critic_learning_rate": 2e-2, "held_out": prompts[:4]}
    trainer = trainer_for(*models, critic=tiny_critic(family), reward=hits, prompts=prompts, **settings)
    rows = [trainer.step() for _ in range(30)]
    assert rows[0]["reward"] < 0.3 and np.mean([row["reward"] for row in rows[-5:]]) > 0.95
    assert rows[-1]["held_out_reward"] > 0.7


def test_the_critic_learns_the_returns():
    trainer = trainer_for(steps=20, learning_rate=1e-6, critic_learning_rate=4e-2, lam=1.0, batch_size=16)
    rows = [trainer.step() for _ in range(20)]
    assert np.mean([row["value_loss"] for row in rows[-5:]]) < 0.5 * rows[0]["value_loss"]
    assert np.mean([row["explained_variance"] for row in rows[-5:]]) > rows[0]["explained_variance"]


def test_a_policy_with_adapters_learns_in_them_alone():
    pytest.importorskip("peft")
    policy = add_lora(tiny_model(), rank=2)
    before = weights_of(policy)
    trainer = trainer_for(policy)
    assert abs(trainer.step()["kl"]) < 1e-4
    trainer.step()
    changed = {name for name, value in weights_of(policy).items() if not torch.equal(value, before[name])}
    assert changed and all("lora_" in name for name in changed)
    assert all("lora_" in name for name in trainer.state_dict()["policy_descent"]["weights"])


# What must not move, and in which order things come


def test_the_reference_starts_as_the_policy_and_never_moves():
    trainer = trainer_for()
    start = weights_of(trainer.reference)
    assert same_weights(start, weights_of(trainer.policy))
    for _ in range(3):
        trainer.step()
    assert same_weights(start, weights_of(trainer.reference))
    assert not same_weights(start, weights_of(trainer.policy))
    assert not same_weights(weights_of(tiny_critic()), weights_of(trainer.critic))


def test_every_sample_is_used_once_per_pass_in_a_new_order():
    trainer = trainer_for(num_ppo_epochs=3, num_mini_batches=3)
    trainer.step()
    order = [prompt for part in trainer.parts_seen for prompt, _ in plain_rows(part)]
    passes = [order[i : i + 8] for i in (0, 8, 16)]
    assert len(trainer.parts_seen) == 9 and len(order) == 24
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(passes[2])
    assert passes[0] != passes[1] != passes[2]
    assert sorted(passes[0]) == sorted(prompt for prompt, _ in plain_rows(trainer.seen))


def test_a_prompt_is_used_at_most_once_per_epoch_and_every_batch_is_whole():
    trainer = trainer_for(batch_size=5, num_mini_batches=4, num_ppo_epochs=2, steps=6)
    seen = []
    for _ in range(6):
        row = trainer.step()
        assert math.isfinite(row["policy_loss"]) and math.isfinite(row["value_loss"])
        seen.append([prompt for prompt, _ in plain_rows(trainer.seen)])
    assert list(map(len, seen)) == [5] * 6
    everything = [prompt.prompt_ids for prompt in prompts_with()]
    for epoch in (seen[:3], seen[3:]):
        for prompt in (prompt for batch in epoch for prompt in batch):
            assert sum(batch.count(prompt) for batch in epoch) <= everything.count(prompt)
    assert seen[:3] != seen[3:]


def test_the_rate_falls_linearly_to_zero_over_all_updates():
    trainer = trainer_for(steps=4, num_ppo_epochs=2, num_mini_batches=2, learning_rate=1e-3)
    rates = [trainer.step()["learning_rate"] for _ in range(4)]
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    assert trainer.policy_descent.learning_rate == trainer.critic_descent.learning_rate == 0


def test_adams_eps_is_large_enough_to_calm_tiny_gradients():
    # gradients clipped to a norm of 1e-6 move a weight by at most lr * 1e-6 / (1e-6 + 1e-5); with eps 1e-8 it is lr
    trainer = trainer_for(max_grad_norm=1e-6, num_mini_batches=1, learning_rate=1e-2, critic_learning_rate=1e-2)
    trainer.step()
    for model, start in ((trainer.policy, tiny_model()), (trainer.critic, tiny_critic())):
        moves = [(value - weights_of(start)[name]).abs().max().item() for name, value in weights_of(model).items()]
        assert 0 < max(moves) < 1e-2 / 11 * 1.01


def test_the_adaptive_coefficient_follows_the_measured_kl_and_a_fixed_one_stays():
    far = {"reference": tiny_model(seed=1), "kl_coef": 0.1}
    adaptive = trainer_for(**far, kl_target=0.05, kl_horizon=80)
    rows = [adaptive.step() for _ in range(3)]
    assert min(row["kl"] for row in rows[:2]) > 0.06
    assert [row["kl_coef"] for row in rows] == pytest.approx([0.1, 0.102, 0.1 * 1.02**2])  # a fifth of 8 / 80 each
    fixed = trainer_for(**far)
    assert [fixed.step()["kl_coef"] for _ in range(2)] == [0.1, 0.1]


def test_monitors_see_every_completion_and_teach_nothing():
    def opposite(prompts, completions, *, finished, **columns):
        return [-score for score in colourful(prompts, completions, finished=finished)]

    alone, watched = trainer_for(), trainer_for(monitors={"gold": opposite})
    for _ in range(2):
        expected, row = alone.step(), watched.step()
        assert row["gold"] == pytest.approx(-row["reward"])
        assert {name: row[name] for name in expected} == expected
    assert same_weights(weights_of(alone.policy), weights_of(watched.policy))
    assert [set(sample) for sample in watched.samples()] == [{"prompt", "completion", "reward", "gold"}] * 8


def test_held_out_numbers_come_when_due_and_change_nothing():
    rarely, often = trainer_for(evaluate_every=3), trainer_for(evaluate_every=1)
    for step in range(1, 5):
        row, other = rarely.step(), often.step()
        assert ("held_out_reward" in row) == (step in (3, 4))  # the third, and the last of all
        measured = {"reward", "kl", "completion_length", "finished"}
        assert {name for name in other if name.startswith("held_out")} == {f"held_out_{name}" for name in measured}
        assert all(other[name] == value for name, value in row.items() if not name.startswith("held_out"))
        assert rarely.samples() == often.samples()
    assert rarely.evaluate() == rarely.evaluate()


@pytest.mark.parametrize("reward", [lambda p, c, *, finished: finished, lambda p, c, *, finished: [len(t) for t in c]])
def test_a_reward_may_give_truth_values_and_whole_numbers(reward):
    assert math.isfinite(trainer_for(reward=reward).step()["policy_loss"])


# Stopping and failing


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_is_named_and_moves_nothing(value):
    calls = []

    def breaks(prompts, completions, *, finished, **columns):
        calls.append(1)
        return [value if len(calls) == 2 and index == 3 else 1.0 for index in range(len(prompts))]

    trainer = trainer_for(reward=breaks)
    trainer.step()
    before = weights_of(trainer.policy), weights_of(trainer.critic)
    with pytest.raises(WorkbenchError, match=f"reward .*breaks.* gave '{value}' .*row 3, .*return a finite number"):
        trainer.step()
    assert same_weights(before[0], weights_of(trainer.policy)) and same_weights(before[1], weights_of(trainer.critic))


def test_there_must_be_enough_prompts_and_some_held_out():
    with pytest.raises(WorkbenchError, match="16 prompts but batch_size is 17"):
        trainer_for(batch_size=17)
    with pytest.raises(WorkbenchError, match="16 training and 0 held-out"):
        trainer_for(held_out=[])


def test_completions_that_do_not_fit_the_context_are_refused():
    critic = tiny_model(auto=AutoModelForTokenClassification, context=10)
    trainer = trainer_for(tiny_model(context=10), tiny_model(context=10), critic=critic)
    with pytest.raises(WorkbenchError, match="positions but the model has 10"):
        for _ in range(2):
            trainer.step()
