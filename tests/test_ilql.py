"""Implicit Q-learning: scipy's expectiles, value iteration, the guided policy by hand, training."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from tiny_models import (
    EOS,
    FAMILIES,
    PAD,
    assert_plain_logprobs,
    plain_logprobs,
    plain_next_logprobs,
    same_weights,
    saved,
    tiny_model,
    weights_of,
    word_tokenizer,
)
from trainer_checks import assert_continues

from workbench import NonFiniteLoss, WorkbenchError, models
from workbench.losses.offline import conservative_loss, expectile_loss, td_loss
from workbench.models import add_lora
from workbench.models.sampling import sample
from workbench.models.scoring import completion_logprobs
from workbench.models.tokens import collate
from workbench.models.value_guided import guide
from workbench.records import LabelledExample
from workbench.trainers.evaluation import sequence_kl
from workbench.trainers.ilql import IlqlConfig, IlqlTrainer


def example(prompt, completion, label) -> LabelledExample:
    return LabelledExample(prompt_ids=prompt, completion_ids=completion, label=label)


EXAMPLES = [
    example([4, 6, 7, 8], [9, EOS], 1),
    example([4, 6, 7, 8], [10, 11, 12, EOS], 0),
    example([5, 12], [14, 14, EOS], 1),
    example([5, 12], [15, 4], 0),
]
HELD_OUT = [example([8, 8], [9, EOS], 1), example([8], [5, 6, EOS], 0), example([9], [7, 7, EOS], 1)]


def trainer_for(family="llama", *, examples=EXAMPLES, held_out=HELD_OUT, **config) -> IlqlTrainer:
    config = {"epochs": 3, "batch_size": 2, "learning_rate": 5e-3, "warmup_steps": 2, "evaluate_every": 4} | config
    return IlqlTrainer(tiny_model(family), tiny_model(family), examples, held_out, IlqlConfig(**config))


@torch.no_grad()
def token_by_token(policy, given: LabelledExample):
    """Q of both heads, both target Q and V before every token of one completion, and V after the last; unpadded."""
    rows = []
    for index in range(len(given.completion_ids) + 1):
        ids = given.prompt_ids + given.completion_ids[:index]
        state = policy.values(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        heads = [[head(state).double() for head in group] for group in (policy.q_heads, policy.target_heads)]
        rows.append((*heads, policy.v_head(state).item()))
    return rows


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_reports_the_losses_of_its_tokens(family):
    settings = {"batch_size": 4, "gamma": 0.9, "expectile": 0.8, "conservatism": 0.3}
    before, trainer = trainer_for(family, **settings), trainer_for(family, **settings)
    torch.nn.init.normal_(before.policy.target_heads[1][2].bias, generator=torch.Generator().manual_seed(0))
    trainer.policy.target_heads.load_state_dict(before.policy.target_heads.state_dict())
    q_loss = v_loss = conservative = count = 0
    for given in EXAMPLES:
        rows = token_by_token(before.policy, given)
        for index, token in enumerate(given.completion_ids):
            heads, targets, value = rows[index]
            last = index + 1 == len(given.completion_ids)
            aim = given.label if last else 0.9 * rows[index + 1][2]  # what follows the last token counts for nothing
            q_loss += sum((aim - head[token].item()) ** 2 for head in heads)
            error = min(target[token].item() for target in targets) - value
            v_loss += (0.8 if error > 0 else 0.2) * error**2
            conservative += sum(math.log(sum(head.exp())) - head[token].item() for head in heads)
            count += 1
    row = trainer.step()
    expected = q_loss / count, v_loss / count, conservative / count
    assert (row["q_loss"], row["v_loss"], row["conservative_loss"]) == pytest.approx(expected, rel=1e-4)
    assert row["loss"] == pytest.approx(expected[0] + expected[1] + 0.3 * expected[2], rel=1e-4)


def test_the_value_of_a_completion_is_the_lower_target_of_its_last_token():
    trainer = trainer_for(batch_size=4)
    lasts = []
    for given in EXAMPLES:
        _, targets, _ = token_by_token(trainer.policy, given)[-2]
        lasts.append(min(target[given.completion_ids[-1]].item() for target in targets))
    row = trainer.step()
    assert row["chosen_reward"] == pytest.approx((lasts[0] + lasts[2]) / 2, abs=1e-5)
    assert row["rejected_reward"] == pytest.approx((lasts[1] + lasts[3]) / 2, abs=1e-5)
    assert row["accuracy"] == sum((last > 0.5) == bool(e.label) for last, e in zip(lasts, EXAMPLES, strict=True)) / 4


def test_target_heads_follow_by_their_share_and_are_not_trained():
    trainer = trainer_for(polyak=0.25)
    before = weights_of(trainer.targets)
    trainer.step()
    after, trained = weights_of(trainer.targets), weights_of(trainer.policy.q_heads)
    for name, value in before.items():
        torch.testing.assert_close(after[name], 0.75 * value + 0.25 * trained[name], rtol=1e-5, atol=1e-7)
    assert not any(parameter.requires_grad for parameter in trainer.targets.parameters())


def test_the_reference_inside_the_policy_never_moves():
    trainer = trainer_for()
    start = weights_of(trainer.policy.reference)
    values = weights_of(trainer.policy.values)
    for _ in range(3):
        trainer.step()
    assert same_weights(start, weights_of(trainer.policy.reference))
    assert same_weights(start, weights_of(tiny_model()))
    assert not same_weights(values, weights_of(trainer.policy.values))  # the trunk under the heads learns


@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns_four_labels_by_heart_and_says_what_was_good(family):
    trainer = trainer_for(family, epochs=100, batch_size=4, polyak=0.4, learning_rate=1e-2, beta=12.0)
    rows = [trainer.step() for _ in range(trainer.total_steps)]
    assert rows[-1]["accuracy"] == 1 and rows[-1]["margin"] > 0.9 and rows[-1]["q_loss"] < 0.02
    for good, bad in (EXAMPLES[:2], EXAMPLES[2:]):
        ours, before = (
            sum(plain_logprobs(model, good.prompt_ids, good.completion_ids[:1]))
            - sum(plain_logprobs(model, bad.prompt_ids, bad.completion_ids[:1]))
            for model in (trainer.policy, tiny_model(family))
        )
        assert ours > before + 3  # the first token already leads to the good end


def test_ratings_are_rewards_too():
    examples = [replace(given, label=rating) for given, rating in zip(EXAMPLES, (7, 2, 5, 1), strict=True)]
    trainer = trainer_for(examples=examples, epochs=150, batch_size=4, polyak=0.4, learning_rate=1e-2, gamma=1.0)
    rows = [trainer.step() for _ in range(trainer.total_steps)]
    assert rows[-1]["chosen_reward"] == pytest.approx(6, abs=0.2)
    assert rows[-1]["rejected_reward"] == pytest.approx(1.5, abs=0.2)


def test_held_out_accuracy_comes_when_due():
    trainer = trainer_for()
    rows = [trainer.step() for _ in range(6)]
    assert trainer.total_steps == 6
    assert [row["held_out_accuracy"] is not None for row in rows] == [False, False, False, True, False, True]
    assert trainer.held_out_accuracies().shape == (3,)


def test_a_batch_of_one_kind_has_no_margin():
    trainer = trainer_for(examples=[EXAMPLES[0], EXAMPLES[2], EXAMPLES[1]], batch_size=1, epochs=1)
    rows = [trainer.step() for _ in range(3)]
    assert all(row["margin"] is None and math.isfinite(row["loss"]) for row in rows)


@pytest.mark.parametrize("before", [1, 2, 5])
def test_a_stopped_training_continues_bit_for_bit(before, tmp_path):
    assert_continues(trainer_for, tmp_path, steps=6, before=before)  # the target heads are in it


def test_the_seed_decides_the_heads():
    first, again, other = (trainer_for(seed=seed).policy for seed in (0, 0, 1))
    assert same_weights(weights_of(first), weights_of(again))
    assert not same_weights(weights_of(first.q_heads), weights_of(other.q_heads))
    assert same_weights(weights_of(first.q_heads), weights_of(first.target_heads))


def test_a_loss_that_is_nan_is_named_and_moves_nothing():
    trainer = trainer_for(examples=[example([4], [9, EOS], math.nan), *EXAMPLES], batch_size=5)
    before = weights_of(trainer.policy)
    with pytest.raises(NonFiniteLoss, match="step 1"):
        trainer.step()
    assert same_weights(before, weights_of(trainer.policy))


@pytest.mark.parametrize(("empty", "says"), [("examples", "0 training"), ("held_out", "0 held-out")])
def test_nothing_to_train_on_or_to_measure_on_is_refused(empty, says):
    with pytest.raises(WorkbenchError, match=says):
        trainer_for(**{empty: []})


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        (
            lambda: tiny_model("llama", vocab_size=24),
            r"embed_tokens.weight is \(\d+, 16\) in the model and \(24, 16\) in",
        ),
        (lambda: tiny_model("llama", layers=3), r"layers.2.\S+ is no such weights in the model and \("),
        (lambda: tiny_model("gpt2"), r"is \(\d+, 16\) in the model and no such weights in the reference"),
    ],
)
def test_a_reference_of_another_architecture_is_refused(reference, says):
    with pytest.raises(WorkbenchError, match=says):
        IlqlTrainer(tiny_model(), reference(), EXAMPLES, HELD_OUT, IlqlConfig())


def test_adapters_are_refused():
    pytest.importorskip("peft")
    with pytest.raises(WorkbenchError, match="lora_rank to 0"):
        IlqlTrainer(add_lora(tiny_model(), rank=2), tiny_model(), EXAMPLES, HELD_OUT, IlqlConfig())


# Losses of implicit Q-learning: scipy's expectiles, value iteration on a chain, where the gradient stops.


# Four states in a row. "go" (1) leads on, and from the last state to the end with reward 1; "stop" (0) ends with LEFT.
LEFT = [0.5, 0.1, 0.2, 0.3]
GAMMA = 0.9


def minimised(loss_of, *shapes, steps=1500, learning_rate=0.05) -> list[torch.Tensor]:
    """The tables of numbers at which a loss is lowest, by gradient descent with a rate that falls to 0."""
    tables = [torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    optimizer = torch.optim.Adam(tables, lr=learning_rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
        optimizer.zero_grad()
        loss_of(*tables).backward()
        optimizer.step()
    return [table.detach() for table in tables]


@pytest.mark.parametrize("expectile", [0.5, 0.7, 0.9, 0.99])
def test_regression_finds_the_expectile_that_scipy_computes(expectile):
    targets = torch.from_numpy(np.random.default_rng(0).gamma(1.0, 1.0, 400))
    (value,) = minimised(lambda value: expectile_loss(targets, value.expand(400), expectile=expectile).mean(), ())
    assert value.item() == pytest.approx(stats.expectile(targets.numpy(), expectile), abs=1e-3)


def value_iteration() -> np.ndarray:
    """Optimal Q of the chain, (states, actions)."""
    q_values = np.zeros((4, 2))
    for _ in range(50):
        best = q_values.max(1)
        q_values = np.array([[LEFT[state], 1.0 if state == 3 else GAMMA * best[state + 1]] for state in range(4)])
    return q_values


def chain_loss(expectile: float):
    """Both value losses over every transition of the chain, each met equally often; Q is its own target."""
    states = torch.arange(4).repeat_interleave(2)
    actions = torch.tensor([0, 1] * 4)
    rewards = torch.tensor([LEFT[s] if a == 0 else float(s == 3) for s, a in zip(states, actions, strict=True)])

    def loss_of(q_table, v_table):
        q_values, values = q_table[states, actions][:, None], v_table[states][:, None]
        following = torch.where((actions == 1) & (states < 3), v_table[(states + 1).clamp(max=3)], 0)[:, None]
        errors = td_loss(q_values, rewards[:, None].double(), following, gamma=GAMMA)
        return (errors + expectile_loss(q_values, values, expectile=expectile)).sum()

    return loss_of


def test_on_a_chain_the_optimal_values_are_found_as_the_expectile_nears_one():
    q_table, v_table = minimised(chain_loss(0.999), (4, 2), (4,))
    optimal = value_iteration()
    np.testing.assert_allclose(q_table.numpy(), optimal, atol=5e-3)
    np.testing.assert_allclose(v_table.numpy(), optimal.max(1), atol=5e-3)
    assert optimal.argmax(1).tolist() == q_table.argmax(1).tolist() == [1, 1, 1, 1]


def test_at_one_half_the_values_are_those_of_the_data():
    q_table, _ = minimised(chain_loss(0.5), (4, 2), (4,))
    value, expected = 0.0, []
    for state in reversed(range(4)):  # half of the data stops in every state
        go = 1.0 if state == 3 else GAMMA * value
        expected.append([LEFT[state], go])
        value = (LEFT[state] + go) / 2
    np.testing.assert_allclose(q_table.numpy(), expected[::-1], atol=1e-3)


def test_the_gradient_stops_at_both_targets():
    q_values, next_values, values = (torch.randn(2, 3, requires_grad=True) for _ in range(3))
    td_loss(q_values, torch.zeros(2, 3), next_values, gamma=0.9).sum().backward()
    assert next_values.grad is None and q_values.grad.abs().min() > 0
    q_values.grad = None
    expectile_loss(q_values, values, expectile=0.7).sum().backward()
    assert q_values.grad is None and values.grad.abs().min() > 0


def test_shapes_are_per_token_and_nothing_is_summed():
    q_values = torch.randn(2, 3, 5)
    losses = conservative_loss(q_values, torch.zeros(2, 3, dtype=torch.long))
    assert losses.shape == (2, 3)
    for row in range(2):
        for column in range(3):
            share = q_values[row, column].exp() / q_values[row, column].exp().sum()
            assert losses[row, column].item() == pytest.approx(-share[0].log().item(), abs=1e-6)


# The policy that values make of another one: its probabilities by hand, sampling, scoring, saving.


def guided(family="llama", beta=2.0, **sizes):
    """Heads wide enough that they move the reference."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        policy = guide(tiny_model(family, **sizes), tiny_model(family, seed=1, **sizes), beta=beta)
        for head in (*policy.q_heads, *policy.target_heads):
            torch.nn.init.normal_(head[2].weight, std=0.3)
    return policy


@torch.no_grad()
def by_hand(policy, ids: list[int]) -> torch.Tensor:
    """reference * exp(beta (Q - V)) / Z after one unpadded row, from its parts; (V,) in fp64."""
    chances = plain_next_logprobs(policy.reference, ids).exp()
    state = policy.values(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
    first, second = (head(state) for head in policy.target_heads)
    advantages = torch.where(first < second, first, second) - policy.v_head(state)
    weighted = chances * (policy.config.beta * advantages).double().exp()
    return weighted / weighted.sum()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beta", [0.5, 4.0])
def test_it_is_the_reference_times_the_exponential_of_the_advantage(family, beta):
    policy = guided(family, beta)
    for ids in ([4, 6, 7], [9], [11, 12, 13, 14, 5]):
        ours, expected = plain_next_logprobs(policy, ids).exp(), by_hand(policy, ids)
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-7)
        assert (ours - plain_next_logprobs(policy.reference, ids).exp()).abs().max() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_with_a_cache_and_scoring_agree_with_one_row_at_a_time(family):
    policy = guided(family)
    prompts = [[4, 6, 7, 8], [9], [10, 11]] * 8  # enough that some end early and leave the batch
    rollout = sample(policy, prompts, max_completion_length=8, generator=torch.Generator().manual_seed(0))
    assert rollout.finished.any() and not rollout.finished.all()
    with torch.no_grad():
        torch.testing.assert_close(completion_logprobs(policy, rollout), rollout.logprobs, rtol=1e-4, atol=1e-4)
    said = [row[mask].tolist() for row, mask in zip(rollout.completions[:6], rollout.completion_mask, strict=False)]
    assert_plain_logprobs(rollout.logprobs[:6], policy, prompts[:6], said, tolerance=1e-4)


def test_a_group_scored_together_is_the_same_as_alone():
    policy = guided()
    batch = collate([[4, 6, 7]] * 2 + [[9]] * 2, [[7, EOS], [8, 8, EOS], [10], [11, EOS]], pad_id=PAD)
    with torch.no_grad():
        together = completion_logprobs(policy, batch, group_size=2)
        torch.testing.assert_close(together, completion_logprobs(policy, batch), rtol=1e-4, atol=1e-5)


def test_its_distance_from_the_reference_grows_with_its_strength():
    distances = []
    for beta in (0.0, 1.0, 4.0):
        policy = guided(beta=beta)
        prompts = [[4, 6, 7], [9]] * 40
        rollout = sample(policy, prompts, max_completion_length=6, generator=torch.Generator().manual_seed(0))
        distances.append(sum(sequence_kl(policy, policy.reference, rollout)))
    assert distances[0] == pytest.approx(0, abs=1e-4) and distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize("tied", [True, False])
def test_it_is_saved_and_loaded_as_any_policy(tied, tmp_path):
    policy = guided()
    if tied:
        policy.reference.config.tie_word_embeddings = policy.config.reference["tie_word_embeddings"] = True
        policy.reference.tie_weights()
    tokenizer, _ = models.load_tokenizer(saved(policy, word_tokenizer(), tmp_path))
    loaded = models.load_policy(str(tmp_path), tokenizer)
    assert type(loaded) is type(policy) and models.model_context(loaded) == 48
    batch = collate([[4, 6], [9, 10, 11]], [[7, EOS], [8, 8, EOS]], pad_id=PAD)
    with torch.no_grad():
        assert torch.equal(completion_logprobs(loaded, batch), completion_logprobs(policy, batch))
    assert loaded.config.beta == 2.0


def test_it_can_not_learn_new_tokens():
    policy, tokenizer = guided(), word_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    with pytest.raises(WorkbenchError, match="tokenizer of its own run"):
        policy.resize_token_embeddings(len(tokenizer))
