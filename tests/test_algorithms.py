"""Every algorithm of the table: gradients against plain fp64 arithmetic and enumeration, and what all must do alike."""

import copy
import itertools
import math
from dataclasses import replace

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
    texts_for_pretraining,
    tiny_critic,
    trainer_for,
)
from tiny_models import (
    EOS,
    PAD,
    WORDS,
    assert_plain_logprobs,
    plain_next_logprobs,
    same_weights,
    tiny_model,
    weights_of,
)
from trainer_checks import assert_continues

from workbench import NonFiniteLoss, WorkbenchError
from workbench.models.sampling import masked_sample, sample
from workbench.models.scoring import completion_logprobs
from workbench.models.tokens import collate
from workbench.trainers import policy_gradient
from workbench.trainers.algorithms import ALGORITHMS, algorithm_table
from workbench.trainers.experience import Samples, joined, overlong_penalty
from workbench.trainers.policy_gradient_config import PolicyGradientConfig, require_models

GROUPED = [name for name, row in ALGORITHMS.items() if row.compares == "num_generations"]
ONE_UPDATE = [name for name, row in ALGORITHMS.items() if not row.has_ratio]
every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


def small(**settings):
    """One layer where depth does not matter."""
    models = {"policy": tiny_model(layers=1), "reference": tiny_model(layers=1, seed=1)}
    return trainer_for(**{**models, **settings})


def gradients_of(trainer, learner="policy") -> list[tuple[dict, dict]]:
    """Collects, from here on, the learner's weights before each update and the gradient that moves them."""
    model, optimizer = getattr(trainer, learner), getattr(trainer, f"{learner}_descent").optimizer
    seen, take = [], optimizer.step

    def watch():
        grads = {name: weight.grad.clone() for name, weight in model.named_parameters()}
        seen.append((weights_of(model), grads))
        take()

    optimizer.step = watch
    return seen


def assert_same_gradient(ours: dict, plain: dict, tolerance: float = 2e-4):
    first, second = (torch.cat([each[name].double().flatten() for name in plain]) for each in (ours, plain))
    assert second.norm() > 1e-4
    assert (first - second).norm() < tolerance * second.norm()


# One step again, in fp64, row by row, token by token


def nucleus_of(chances: np.ndarray, top_p: float) -> set[int]:
    """The most likely tokens, one after another, until they hold `top_p`."""
    kept, mass = set(), 0.0
    for token in np.argsort(-chances, kind="stable"):
        if mass >= top_p:
            break
        kept.add(int(token))
        mass += chances[token]
    return kept


def token_logprobs(model, prompt, completion, *, temperature, allowed=None):
    """Log-probability of each token with its graph, fp64; only `allowed[t]` can follow at token t."""
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    banned = torch.zeros_like(logits, dtype=torch.bool)
    banned[:, PAD] = True
    for place, kept in enumerate(allowed or []):
        banned[place] |= torch.tensor([token not in kept for token in range(logits.shape[1])])
    logprobs = (logits / temperature).masked_fill(banned, -math.inf).log_softmax(-1)
    return logprobs[range(len(completion)), completion]


def to_go(rewards, gamma):
    return [sum(gamma**k * reward for k, reward in enumerate(rewards[t:])) for t in range(len(rewards))]


def plain_gae(rewards, values, gamma, lam):
    following = [*values[1:], 0.0]
    errors = [reward + gamma * after - value for reward, after, value in zip(rewards, following, values, strict=True)]
    return [sum((gamma * lam) ** k * error for k, error in enumerate(errors[t:])) for t in range(len(errors))]


def normalised(rows):
    everything = np.concatenate(rows)
    return [(np.array(row) - everything.mean()) / everything.std(ddof=1) for row in rows]


def plain_advantages(algorithm, rewards, values, size):
    """Advantages of each row's tokens from lists of token rewards; gamma .9, lambda .8."""
    totals = np.array([sum(row) for row in rewards])
    groups = totals.reshape(-1, size)
    later = [np.array(to_go(row, 0.9)) for row in rewards]
    if algorithm in ("a2c", "ppo", "ppo_penalty", "nlpo"):
        rows = [np.array(plain_gae(row, value, 0.9, 0.8)) for row, value in zip(rewards, values, strict=True)]
        return rows if algorithm == "a2c" else normalised(rows)
    if algorithm in ("reinforce", "nash_md"):
        return later
    if algorithm == "reinforce_pp":
        return normalised(later)
    if algorithm == "reinforce_baseline":
        starts = [row[0] for row in later]
        return [row - np.mean([s for j, s in enumerate(starts) if j != i]) for i, row in enumerate(later)]
    if algorithm == "rloo":
        worth = [[one - (sum(group) - one) / (size - 1) for one in group] for group in groups]
    elif algorithm == "dr_grpo":
        worth = [[one - np.mean(group) for one in group] for group in groups]
    else:
        worth = [[(one - np.mean(group)) / (np.std(group, ddof=1) + 1e-4) for one in group] for group in groups]
    return [np.full(len(row), one) for row, one in zip(rewards, np.concatenate(worth), strict=True)]


CLIPS = {"dapo": (0.05, 0.6), "gspo": (3e-4, 4e-4), "cispo": (0.3, 0.1)}  # where not 5% both ways


def plain_losses(algorithm, new, old, reference, advantages, penalty):
    """Loss of each token of one completion, with its graph."""
    ratio, advantages = (new - old).exp(), torch.tensor(advantages)
    if algorithm in ("reinforce", "reinforce_baseline", "a2c", "rloo", "nash_md"):
        return -advantages * new
    if algorithm == "ppo_penalty":
        return -advantages * ratio + penalty * (ratio - 1 - (new - old))
    low, high = CLIPS.get(algorithm, (0.05, 0.05))
    if algorithm == "gspo":
        ratio = (new - old).mean().exp() * torch.ones_like(new)
    losses = -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
    if algorithm == "cispo":
        losses = -ratio.detach().clamp(1 - low, 1 + high) * advantages * new
    if algorithm in GROUPED:
        losses = losses + 0.2 * ((reference - new).exp() - 1 - (reference - new))
    return losses


def plain_total(algorithm, rows, *, mean_length):
    """What the token losses of a mini-batch's completions come to."""
    if algorithm in ("reinforce", "reinforce_baseline", "rloo", "nash_md"):
        return sum(row.sum() for row in rows) / len(rows)
    if algorithm in ("grpo", "gspo"):
        return sum(row.mean() for row in rows) / len(rows)
    if algorithm == "dr_grpo":
        return sum(row.sum() for row in rows) / (len(rows) * 6)
    if algorithm in ("dapo", "cispo"):
        return sum(row.sum() for row in rows) / (len(rows) * mean_length)
    return torch.cat(rows).mean()


class PlainStep:
    """One step of an algorithm from its samples, models in fp64, one unpadded row at a time."""

    def __init__(self, algorithm, trainer, policy, reference, critic):
        self.algorithm, self.policy = algorithm, copy.deepcopy(policy).double()
        self.size = trainer.config.num_generations
        self.rows = list(plain_rows(trainer.seen))
        self.allowed = [self.nucleus(*row) if algorithm == "nlpo" else None for row in self.rows]
        with torch.no_grad():
            self.old = [self.logprobs(self.policy, i) for i in range(len(self.rows))]
            self.reference = [self.logprobs(reference.double(), i) for i in range(len(self.rows))]
            every = [critic(input_ids=torch.tensor([p + c])).logits[0, :, 0] for p, c in self.rows]
        values = [row[len(p) - 1 : -1].tolist() for row, (p, _) in zip(every, self.rows, strict=True)]
        scores = [sample["won"] - 0.5 if "won" in sample else sample["reward"] for sample in trainer.samples()]
        rewards = [self.token_rewards(i, scores[i]) for i in range(len(self.rows))]
        self.advantages = plain_advantages(algorithm, rewards, values, self.size)

    def nucleus(self, prompt, completion):
        states = [prompt + completion[:t] for t in range(len(completion))]
        return [nucleus_of(plain_next_logprobs(self.policy, s, temperature=0.8).exp().numpy(), 0.7) for s in states]

    def logprobs(self, model, row):
        return token_logprobs(model, *self.rows[row], temperature=0.8, allowed=self.allowed[row])

    def token_rewards(self, row, score):
        in_reward = 0.0 if self.algorithm in GROUPED and self.algorithm != "rloo" else 0.2
        rewards = (-in_reward * (self.old[row] - self.reference[row])).tolist()
        rewards[-1] += score - 0.7 * (self.rows[row][1][-1] != EOS)
        return rewards

    def gradient(self, weights, part, penalty=1.0):
        """Gradient of the loss of a mini-batch at these weights."""
        self.policy.load_state_dict(weights)
        self.policy.zero_grad()
        known, losses = list(zip(self.old, self.reference, self.advantages, strict=True)), []
        for i in [self.rows.index(row) for row in plain_rows(part)]:
            losses.append(plain_losses(self.algorithm, self.logprobs(self.policy, i), *known[i], penalty))
        mean_length = np.mean([len(completion) for _, completion in self.rows])
        plain_total(self.algorithm, losses, mean_length=mean_length).backward()
        return {name: weight.grad.clone() for name, weight in self.policy.named_parameters()}


@every_algorithm
def test_the_gradients_of_a_step_are_those_of_plain_fp64_arithmetic(algorithm):
    policy, reference, critic = tiny_model(), tiny_model(seed=1), tiny_critic()
    updates = 1 if algorithm in ONE_UPDATE else 2
    settings = dict(zip(("cliprange", "cliprange_high"), CLIPS.get(algorithm, (0.05, 0.05)), strict=True))
    settings |= {"num_mini_batches": updates, "temperature": 0.8, "gamma": 0.9, "lam": 0.8, "kl_coef": 0.2}
    settings |= {"missing_eos_penalty": 0.7, "max_grad_norm": 1e6, "mask_top_p": 0.7, "learning_rate": 3e-2}
    given = copy.deepcopy(critic) if ALGORITHMS[algorithm].has_critic else None
    trainer = trainer_for(copy.deepcopy(policy), reference, critic=given, algorithm=algorithm, **settings)
    seen = gradients_of(trainer)
    trainer.step()
    plain = PlainStep(algorithm, trainer, policy, reference, critic)
    assert len(seen) == len(trainer.parts_seen) == updates
    for (weights, ours), part in zip(seen, trainer.parts_seen, strict=True):
        assert_same_gradient(ours, plain.gradient(weights, part))
    if updates > 1:
        moved = trainer.logprobs_seen[1] - trainer.parts_seen[1].logprobs
        assert (moved.exp() - 1).abs().max() > 0.3  # far enough for a clip to bind


@pytest.mark.parametrize("algorithm", ["a2c", "ppo"])
def test_the_gradients_of_the_critic_are_those_of_plain_fp64_arithmetic(algorithm):
    """One update shares its pass with the rollout; of two, the second is held near the values of the rollout."""
    critic = tiny_critic()
    trainer = trainer_for(
        critic=copy.deepcopy(critic), algorithm=algorithm, gamma=0.9, lam=0.8, kl_coef=0.0, missing_eos_penalty=0.0,
        critic_learning_rate=3e-2, cliprange_value=0.05, max_grad_norm=1e6,
    )  # fmt: skip
    seen = gradients_of(trainer, "critic")
    trainer.step()
    rewards = [sample["reward"] for sample in trainer.samples()]
    worth = {tuple(c): reward for (_, c), reward in zip(plain_rows(trainer.seen), rewards, strict=True)}
    model, held = copy.deepcopy(critic).double(), 0
    start = copy.deepcopy(model)
    for (weights, ours), part in zip(seen, trainer.parts_seen, strict=True):
        model.load_state_dict(weights)
        model.zero_grad()
        losses = []
        for prompt, completion in plain_rows(part):
            ids, places = torch.tensor([prompt + completion]), slice(len(prompt) - 1, -1)
            values, old = model(input_ids=ids).logits[0, places, 0], start(input_ids=ids).logits[0, places, 0].detach()
            rewards = [0.0] * (len(completion) - 1) + [worth[tuple(completion)]]
            returns = old + torch.tensor(plain_gae(rewards, old.tolist(), 0.9, 0.8))
            near = torch.minimum(torch.maximum(values, old - 0.05), old + 0.05)
            losses += [torch.maximum((values - returns) ** 2, (near - returns) ** 2) / 2]
            held += int(((near - returns) ** 2 > (values - returns) ** 2).sum())
        torch.cat(losses).mean().backward()
        assert_same_gradient(ours, {name: weight.grad for name, weight in model.named_parameters()})
    assert (held > 3) == (algorithm == "ppo")


# The expected gradient, by enumeration


def everything_of(model, prompt, length):
    """Every completion of at most `length` tokens of a model, those that end with EOS and the cut ones."""
    said, finished = [()], []
    for _ in range(length):
        longer = [(*start, token) for start in said for token in range(1, model.config.vocab_size)]
        finished += [row for row in longer if row[-1] == EOS]
        said = [row for row in longer if row[-1] != EOS]
    return [list(row) for row in finished + said]


def samples_of(policy, reference, prompt, completions, scores) -> Samples:
    batch = collate([prompt] * len(completions), completions, pad_id=PAD)
    with torch.no_grad():
        logprobs, reference_logprobs = (completion_logprobs(model, batch) for model in (policy, reference))
    return Samples(
        **vars(batch),
        logprobs=logprobs,
        reference_logprobs=reference_logprobs,
        scores=torch.tensor(scores),
        finished=torch.tensor([completion[-1] == EOS for completion in completions]),
        allowed=torch.ones(len(completions), 0, 0, dtype=torch.bool),
    )


@pytest.mark.parametrize(
    ("algorithm", "rows", "scale"),
    [
        ("reinforce", 1, 1),
        ("reinforce_baseline", 2, 1),
        ("rloo", 2, 1),
        ("dr_grpo", 2, 2 * 2),  # the group's mean holds the completion itself: half the gradient; and 2 is the longest
    ],
)
def test_the_expected_update_climbs_expected_reward_minus_the_price_of_kl(algorithm, rows, scale):
    policy, reference = tiny_model(vocab_size=4, layers=1), tiny_model(vocab_size=4, layers=1, seed=1)
    prompt, plain, start = [3, 1], copy.deepcopy(policy).double(), reference.double()
    completions = everything_of(policy, prompt, 2)
    scores = torch.randn(len(completions), generator=torch.Generator().manual_seed(2)).tolist()
    sums = torch.stack([token_logprobs(plain, prompt, c, temperature=1.0).sum() for c in completions])
    bases = torch.stack([token_logprobs(start, prompt, c, temperature=1.0).sum() for c in completions]).detach()
    worth = torch.tensor([s - 0.3 * (c[-1] != EOS) for s, c in zip(scores, completions, strict=True)])
    chances = sums.exp()
    assert chances.sum().item() == pytest.approx(1)
    (-(chances * (worth - 0.5 * (sums - bases))).sum()).backward()
    exact = {name: weight.grad for name, weight in plain.named_parameters()}

    reference.float()
    size = rows if algorithm in GROUPED else 1
    shape = {"batch_size": rows, "num_generations": size, "num_mini_batches": 1, "max_completion_length": 2}
    trainer = trainer_for(
        policy, reference, algorithm=algorithm, kl_in="reward", kl_estimator="k1", kl_coef=0.5, missing_eos_penalty=0.3,
        **shape,
    )  # fmt: skip
    expected = {name: torch.zeros_like(weight) for name, weight in policy.named_parameters()}
    for drawn in itertools.product(range(len(completions)), repeat=rows):
        samples = samples_of(policy, reference, prompt, [completions[i] for i in drawn], [scores[i] for i in drawn])
        loss, _, _ = trainer.policy_loss(trainer.experience(samples), mean_length=1.0)
        chance = math.prod(chances[i].item() for i in drawn)
        for total, grad in zip(expected.values(), torch.autograd.grad(loss, list(policy.parameters())), strict=True):
            total += chance * scale * grad
    assert_same_gradient(expected, exact, tolerance=1e-3)


# What all must do alike


@every_algorithm
def test_the_first_update_starts_at_the_policy_that_sampled_and_at_the_reference(algorithm):
    trainer = trainer_for(algorithm=algorithm, temperature=0.8)
    row, part = trainer.step(), trainer.parts_seen[0]
    torch.testing.assert_close(trainer.logprobs_seen[0], part.logprobs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(part.reference_logprobs, part.logprobs, rtol=1e-5, atol=1e-5)
    assert abs(row["kl"]) < 1e-4 and row["kl_se"] < 1e-4
    assert trainer.policy_loss(part, mean_length=1.0)[2]["entropy"] > 0


@pytest.mark.parametrize(("algorithm", "before"), [*((name, 3) for name in ALGORITHMS), ("ppo", 1)])
def test_a_stopped_training_continues_bit_for_bit(algorithm, before, tmp_path):
    def coarse(prompts, completions, *, finished, **columns):  # groups are often alike, so that some are replaced
        return [float("red" in text) for text in completions]

    settings = {"kl_in": "loss", "missing_eos_penalty": 0.0} if algorithm in GROUPED else {}
    settings |= {"kl_target": 0.1, "kl_horizon": 100, "penalty_target": 1e-5, "entropy_coef": 0.01, "ptx_coef": 0.1}
    settings |= {"resampling_rounds": 2, "mask_refresh_every": 2, "pretraining": texts_for_pretraining()}
    settings |= {"algorithm": algorithm, "reward": coarse}
    rows, _ = assert_continues(lambda: small(**settings), tmp_path, steps=4, before=before)
    if algorithm in GROUPED:
        assert max(row["sampling_rounds"] for row in rows) > 1


@every_algorithm
def test_it_learns_to_say_the_one_word_that_is_paid_for(algorithm):
    def red(prompts, completions, *, finished, **columns):
        return [float(said == " red") for said in completions]

    models = tiny_model(layers=1), tiny_model(layers=1)
    for model in models:
        model.lm_head.weight.data *= 0.1  # nearly every word is tried at the start
    settings = {"steps": 40, "batch_size": 32, "max_completion_length": 1, "evaluate_every": 1000, "mask_top_p": 1.0}
    rate = 1e-2 if algorithm == "cispo" else 2e-2  # no clip holds its updates back: a prompt may be lost for good
    settings |= {"learning_rate": rate, "critic_learning_rate": 1e-2, "cliprange": 0.2, "penalty_target": 0.01}
    settings |= {"prompts": prompts_with(TEXTS * 2), **UNPRICED}
    trainer = trainer_for(*models, algorithm=algorithm, reward=red, **settings)
    rows = [trainer.step() for _ in range(40)]
    assert rows[0]["reward"] < 0.4 and np.mean([row["reward"] for row in rows[-5:]]) > 0.9


@pytest.mark.parametrize("algorithm", GROUPED)
def test_groups_stay_whole_and_are_scored_as_groups(algorithm, monkeypatch):
    sizes = []
    for name in ("predictions", "completion_values"):
        plain = getattr(policy_gradient, name)

        def spy(model, sequences, plain=plain, *, group_size=1, **settings):
            sizes.append((len(sequences), group_size))
            return plain(model, sequences, group_size=group_size, **settings)

        monkeypatch.setattr(policy_gradient, name, spy)
    updates = 1 if algorithm in ONE_UPDATE else 2
    trainer = small(algorithm=algorithm, batch_size=12, num_generations=3, num_mini_batches=updates)
    trainer.step()
    for part in trainer.parts_seen:
        prompts = [prompt for prompt, _ in plain_rows(part)]
        assert len(part) % 3 == 0 and all(prompts[i : i + 3] == [prompts[i]] * 3 for i in range(0, len(prompts), 3))
    assert {size for rows, size in sizes if rows != 3} == {3}  # the three held-out prompts are not a group


@pytest.mark.parametrize(
    ("settings", "policy", "critic"),
    [
        ({"algorithm": "ppo"}, 2, 3),
        ({"algorithm": "ppo", "num_ppo_epochs": 3, "num_mini_batches": 1}, 3, 3),
        ({"algorithm": "a2c"}, 1, 1),
        ({"algorithm": "rloo"}, 1, 0),
        ({"algorithm": "grpo"}, 2, 0),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_nothing_is_computed_twice(settings, policy, critic, monkeypatch):
    calls = []
    for name in ("predictions", "completion_values"):
        plain = getattr(policy_gradient, name)
        monkeypatch.setattr(
            policy_gradient, name, lambda model, *a, plain=plain, **k: (calls.append(model), plain(model, *a, **k))[1]
        )
    trainer = small(evaluate_every=100, **settings)
    trainer.step()
    assert [calls.count(model) for model in (trainer.reference, trainer.policy, trainer.critic)] == [1, policy, critic]


def test_a_pass_of_the_critic_that_serves_twice_changes_no_update():
    thrifty, plain = (small(algorithm="ppo", num_ppo_epochs=3, num_mini_batches=1) for _ in range(2))
    experience = plain.experience

    def without_graph(rollout):
        found = experience(rollout)
        return replace(found, values=found.values.detach())

    plain.experience = without_graph
    for trainer in (thrifty, plain):
        trainer.step()
    for one, other in zip(thrifty.critic.parameters(), plain.critic.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


# Options


def test_the_pretraining_gradient_is_that_of_the_mean_cross_entropy():
    settings = {"ptx_coef": 0.5, "pretraining": texts_for_pretraining(), "max_grad_norm": 1e6, **UNPRICED}
    trainer = small(algorithm="rloo", reward=constant, **settings)
    plain = copy.deepcopy(trainer.policy).double()
    order = copy.deepcopy(trainer.pretraining_batches)
    seen = gradients_of(trainer)
    row = trainer.step()
    losses = []
    for example in [trainer.pretraining[index] for index in order.next()]:
        ids = example.prompt_ids + example.completion_ids
        logprobs = plain(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        losses.append(-logprobs[range(len(ids) - 1), ids[1:]])
    loss = torch.cat(losses).mean()
    assert len(losses) == 8 and row["ptx_loss"] == pytest.approx(loss.item(), rel=1e-5)
    (0.5 * loss).backward()
    assert_same_gradient(seen[0][1], {name: weight.grad for name, weight in plain.named_parameters()})


def test_pretraining_texts_are_held_on_to():
    def loss_after(coef):
        trainer = small(ptx_coef=coef, pretraining=texts_for_pretraining(), steps=20)
        return [trainer.step().get("ptx_loss") for _ in range(20)]

    rows = loss_after(1.0)
    assert rows[-1] < 0.5 * rows[0] and loss_after(0.0) == [None] * 20


def test_the_entropy_bonus_is_the_gradient_of_the_mean_entropy_and_raises_it():
    settings = {"algorithm": "rloo", "reward": constant, "max_grad_norm": 1e6, **UNPRICED}
    trainer = small(entropy_coef=0.1, steps=9, **settings)
    plain, seen = copy.deepcopy(trainer.policy).double(), gradients_of(trainer)
    rows, entropies = [trainer.step()], []
    for prompt, completion in plain_rows(trainer.seen):
        logits = plain(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1, 1:]
        entropies.append(torch.distributions.Categorical(logits=logits).entropy())
    (-0.1 * torch.cat(entropies).mean()).backward()
    assert_same_gradient(seen[0][1], {name: weight.grad for name, weight in plain.named_parameters()})
    rows += [trainer.step() for _ in range(7)]
    assert rows[-1]["entropy"] > rows[0]["entropy"] + 0.3
    idle = small(**settings)
    idle.step()
    assert same_weights(weights_of(idle.policy), weights_of(tiny_model(layers=1)))


def test_updates_end_where_the_policy_is_too_far_from_the_one_that_sampled():
    far = {"num_ppo_epochs": 4, "num_mini_batches": 2, "learning_rate": 2e-2, "steps": 3}
    free, held = small(**far), small(**far, kl_stop=1e-3)
    assert free.step()["updates"] == 8
    seen = gradients_of(held)
    rows = [held.step() for _ in range(3)]
    assert all(row["updates"] < 8 for row in rows) and rows[0]["updates"] == 1
    assert len(seen) == sum(row["updates"] for row in rows)
    left = [weight.grad for model in (held.policy, held.critic) for weight in model.parameters()]
    assert all(gradient is None for gradient in left)  # of the update that was not made, the critic's came first
    assert [row["learning_rate"] for row in rows] == pytest.approx([2e-2, 2e-2 * 2 / 3, 2e-2 / 3])
    loose = small(**far, kl_stop=1e6)
    assert loose.step()["updates"] == 8 and same_weights(weights_of(loose.policy), weights_of(free.policy))


@pytest.mark.parametrize("kl_in", ["reward", "loss"])
def test_the_exact_kl_is_that_of_the_whole_vocabulary_at_every_token(kl_in):
    policy, reference = tiny_model(), tiny_model(seed=1)
    settings = {"algorithm": "reinforce", "kl_estimator": "exact", "kl_in": kl_in, "temperature": 0.8, "gamma": 1.0}
    settings |= {"kl_coef": 0.5, "reward": constant, "missing_eos_penalty": 0.0}
    trainer = trainer_for(copy.deepcopy(policy), reference, **settings)
    row = trainer.step()
    sums, experience = [], trainer.seen
    for index, (prompt, completion) in enumerate(plain_rows(experience)):
        exact = []
        for state in [prompt + completion[:t] for t in range(len(completion))]:
            ours, theirs = (plain_next_logprobs(model, state, temperature=0.8)[1:] for model in (policy, reference))
            exact.append((ours.exp() * (ours - theirs)).sum().item())
        sums.append(sum(exact))
        assert experience.kl[index][: len(exact)].tolist() == pytest.approx(exact, abs=1e-4)
        assert experience.kl[index][len(exact) :].abs().sum() == 0
        price = 0.5 if kl_in == "reward" else 0.0
        assert experience.returns[index][0].item() == pytest.approx(1 - price * sum(exact), abs=1e-4)
    assert row["kl_exact"] == pytest.approx(np.mean(sums), abs=1e-4)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "k3_weighted"])
def test_the_estimator_is_the_one_asked_for(estimator):
    trainer = small(algorithm="reinforce", kl_estimator=estimator)
    row, seen = trainer.step(), trainer.seen
    log_ratio = (seen.logprobs - seen.reference_logprobs)[seen.completion_mask].double()
    k3 = torch.exp(-log_ratio) - 1 + log_ratio
    expected = {"k1": log_ratio, "k2": log_ratio**2 / 2, "k3": k3, "k3_weighted": k3}[estimator]  # the ratio is still 1
    torch.testing.assert_close(seen.kl[seen.completion_mask].double(), expected, rtol=1e-4, atol=1e-5)
    assert row["kl"] == pytest.approx(log_ratio.sum().item() / 8, abs=1e-4)  # whatever the price is made of


def test_the_error_of_the_kl_counts_prompts_and_not_their_completions():
    trainer = small(algorithm="rloo", batch_size=16)
    row, seen = trainer.step(), trainer.seen
    groups = (seen.logprobs - seen.reference_logprobs).double().sum(1).view(4, 4).mean(1)
    assert row["kl"] == pytest.approx(groups.mean().item(), abs=1e-4)
    assert row["kl_se"] == pytest.approx(groups.std().item() / 2, abs=1e-4)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "k3_weighted", "exact"])
def test_a_dear_kl_keeps_the_policy_near_the_reference_in_the_reward_of_ppo_and_in_the_loss_of_grpo(estimator):
    def final_kl(kl_coef):
        settings = {"algorithm": "ppo" if estimator == "k1" else "grpo", "prompts": prompts_with(TEXTS * 3)}
        settings |= {"kl_coef": kl_coef, "kl_estimator": estimator, "batch_size": 32, "steps": 20}
        trainer = trainer_for(tiny_model(layers=1), tiny_model(layers=1), **settings)
        return np.mean([trainer.step()["kl"] for _ in range(20)][-5:])

    assert final_kl(0.0) > 5 * abs(final_kl(2.0))


def test_the_price_on_the_distance_from_the_sampling_policy_follows_it():
    far = small(algorithm="ppo_penalty", penalty_target=1e-5, learning_rate=2e-2)
    near = small(algorithm="ppo_penalty", penalty_target=1.0, learning_rate=1e-6)
    kept = small(algorithm="ppo_penalty", penalty_target=0.0, penalty_coef=3.0)
    assert [far.step()["penalty_coef"] for _ in range(3)] == [1, 2, 4]
    assert [near.step()["penalty_coef"] for _ in range(3)] == [1, 0.5, 0.25]
    kept.step()
    assert kept.penalty_coef == 3


def test_whitened_advantages_can_be_asked_of_any_algorithm():
    trainer = small(algorithm="rloo", whiten_advantages=True)
    trainer.step()
    counted = trainer.seen.advantages[trainer.seen.completion_mask].double()
    assert counted.mean().item() == pytest.approx(0, abs=1e-5) and counted.std().item() == pytest.approx(1, abs=1e-3)


def test_long_completions_pay_in_proportion_to_how_far_they_reach_into_the_last_tokens():
    lengths = torch.tensor([1, 80, 85, 90, 100])
    assert overlong_penalty(lengths, longest=100, cache=20).tolist() == [0, 0, 0.25, 0.5, 1]
    assert overlong_penalty(lengths, longest=100, cache=0).tolist() == [0] * 5
    trainer = small(algorithm="reinforce", reward=constant, soft_punish_cache=3, missing_eos_penalty=0.0, kl_coef=0.0)
    trainer.step()
    earned = {3: 1, 4: 1 - 1 / 3, 5: 1 - 2 / 3, 6: 0}
    for returns, mask in zip(trainer.seen.returns, trainer.seen.completion_mask, strict=True):
        assert returns[0].item() == pytest.approx(earned.get(int(mask.sum()), 1), abs=1e-6)


# Groups of equal rewards


@pytest.mark.parametrize("algorithm", GROUPED)
def test_groups_of_equal_rewards_have_no_advantage_and_are_counted(algorithm):
    trainer = small(algorithm=algorithm, reward=constant, missing_eos_penalty=0.0, kl_coef=0.0, resampling_rounds=0)
    before = weights_of(trainer.policy)
    row = trainer.step()
    assert row["equal_reward_groups"] == 1 and (trainer.seen.advantages == 0).all()
    assert all(math.isfinite(value) for value in row.values())
    assert row["policy_grad_norm"] == 0 and same_weights(before, weights_of(trainer.policy))


def by_prompt(prompts, completions, *, finished, **columns):
    """All completions of prompts that begin with "yes" earn alike."""
    return [len(text) * (not prompt.startswith("yes")) for prompt, text in zip(prompts, completions, strict=True)]


def test_groups_that_teach_nothing_are_replaced_by_other_prompts():
    trainer = small(algorithm="dapo", reward=by_prompt, batch_size=16, missing_eos_penalty=0.0, resampling_rounds=3)
    for _ in range(3):
        row = trainer.step()
        groups = trainer.seen.scores.view(4, 4)
        assert (groups.std(1) > 0).all() and len(trainer.samples()) == 16
        assert not any(sample["prompt"].startswith("yes") for sample in trainer.samples())
        assert [sample["reward"] for sample in trainer.samples()] == trainer.seen.scores.tolist()
        assert 1 < row["sampling_rounds"] <= 4 and 0 < row["equal_reward_groups"] < 1


def test_rows_of_several_rounds_are_what_their_policy_said():
    policy = tiny_model(layers=1)
    settings = {"algorithm": "dapo", "reward": by_prompt, "batch_size": 16, "missing_eos_penalty": 0.0}
    trainer = small(policy=copy.deepcopy(policy), **settings)
    assert trainer.step()["sampling_rounds"] > 1
    prompts, completions = zip(*plain_rows(trainer.seen), strict=True)
    assert_plain_logprobs(trainer.seen.logprobs, policy, prompts, completions)
    assert_plain_logprobs(trainer.seen.reference_logprobs, trainer.reference, prompts, completions)
    assert len(set(map(len, prompts))) > 1


def test_resampling_ends_after_its_last_round_and_the_batch_stays_whole():
    calls = []

    def counted(prompts, completions, *, finished, **columns):
        calls.append(len(prompts))
        return constant(prompts, completions, finished=finished)

    trainer = small(algorithm="dapo", reward=counted, missing_eos_penalty=0.0, resampling_rounds=2, evaluate_every=100)
    row = trainer.step()
    assert calls == [8, 8, 8] and row["sampling_rounds"] == 3 and row["equal_reward_groups"] == 1
    assert len(trainer.seen) == 8
    calls.clear()
    small(algorithm="ppo", reward=counted, resampling_rounds=2, evaluate_every=100).step()
    assert calls == [8]  # a completion alone has no equals


def test_samples_of_two_rounds_are_joined_at_the_longer_widths():
    def samples(prompt, completions):
        model = tiny_model(layers=1)
        return samples_of(model, model, prompt, completions, [1.0] * len(completions))

    first, second = samples([4, 5, 6], [[7, EOS], [8, EOS]]), samples([9], [[7, 8, 9, EOS]])
    both = joined(first, second)
    rows = [*plain_rows(first), *plain_rows(second)]
    assert list(plain_rows(both)) == rows and both.tokens.shape == (3, 7) and both.allowed.shape == (3, 0, 0)
    assert both.logprobs[2].tolist() == second.logprobs[0].tolist()
    assert both.logprobs[0].tolist() == [*first.logprobs[0].tolist(), 0, 0]
    assert joined(second, first).tokens.shape == (3, 7)


# NLPO


def test_nlpo_never_says_what_its_masking_policy_finds_unlikely_and_scores_as_it_samples():
    policy = tiny_model()
    settings = {"algorithm": "nlpo", "mask_top_p": 0.6, "mask_refresh_every": 2}
    trainer = trainer_for(copy.deepcopy(policy), tiny_model(seed=1), **settings)
    masking, changed = policy, 0
    for step in range(1, 5):
        start = copy.deepcopy(trainer.policy)
        trainer.step()
        experience = trainer.seen
        for index, (prompt, completion) in enumerate(plain_rows(experience)):
            states = [prompt + completion[:t] for t in range(len(completion))]
            kept = [nucleus_of(plain_next_logprobs(masking, state).exp().numpy(), 0.6) for state in states]
            assert all(token in allowed for token, allowed in zip(completion, kept, strict=True))
            assert [set(row.nonzero()[:, 0].tolist()) for row in experience.allowed[index, : len(completion)]] == kept
            for model, logprobs in ((start, experience.logprobs), (trainer.reference, experience.reference_logprobs)):
                plain = token_logprobs(copy.deepcopy(model).double(), prompt, completion, temperature=1.0, allowed=kept)
                assert logprobs[index][: len(completion)].tolist() == pytest.approx(plain.tolist(), abs=1e-5)
            changed += sum(len(allowed) < 19 for allowed in kept)
        if step % 2 == 0:
            masking = copy.deepcopy(trainer.policy)
    assert changed > 50


def test_a_masking_policy_that_finds_everything_likely_changes_nothing():
    policy, prompts = tiny_model(), [[4, 6, 7], [9], [5, 5]] * 20
    draw = {"max_completion_length": 8, "temperature": 0.9}
    free = sample(policy, prompts, generator=torch.Generator().manual_seed(0), **draw)
    masked, allowed = masked_sample(
        policy, tiny_model(seed=1), prompts, top_p=1.0, generator=torch.Generator().manual_seed(0), **draw
    )
    assert torch.equal(free.tokens, masked.tokens) and torch.equal(free.logprobs, masked.logprobs)
    assert allowed.shape == (60, free.completion_mask.shape[1], 20)
    assert allowed[free.completion_mask].sum(1).min() >= 19  # all but padding


# Nash-MD


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_mixture_says_each_token_by_the_softmax_of_mixed_logits(share):
    policy, reference = tiny_model(), tiny_model(seed=1)
    prompts, draw = [[4, 6, 7], [9], [5, 5]] * 8, {"max_completion_length": 6, "temperature": 0.8}
    mixed = sample(policy, prompts, mixed_with=(reference, share), generator=torch.Generator().manual_seed(0), **draw)
    for row, (prompt, completion) in enumerate(plain_rows(mixed)):
        for place, token in enumerate(completion):
            said = prompt + completion[:place]
            ours, its = (plain_next_logprobs(model, said).clamp(min=-1e9) for model in (policy, reference))
            chances = (((1 - share) * ours + share * its) / 0.8).softmax(-1)
            assert mixed.logprobs[row, place].exp().item() == pytest.approx(chances[token].item(), rel=1e-4)
    if share in (0.0, 1.0):
        alone = sample((policy, reference)[int(share)], prompts, generator=torch.Generator().manual_seed(0), **draw)
        assert torch.equal(mixed.tokens, alone.tokens)


def test_a_score_is_the_chance_to_beat_the_rival_and_the_reward_is_reported_beside_it():
    for algorithm in ("nash_md", "rloo"):
        trainer = small(algorithm=algorithm, rival_mixture=0.5, monitors={"gold": constant})
        row = trainer.step()
        for sampled, score in zip(trainer.samples(), trainer.seen.scores.tolist(), strict=True):
            ours, its = (colourful([""], [sampled[side]], finished=[True])[0] for side in ("completion", "rival"))
            assert sampled["reward"] == ours
            assert (
                score + 0.5 == pytest.approx(sampled["won"], abs=1e-6) == pytest.approx(1 / (1 + math.exp(its - ours)))
            )
        known = trainer.samples()
        assert row["reward"] == pytest.approx(np.mean([one["reward"] for one in known]), abs=1e-6)
        assert row["won"] == pytest.approx(np.mean([one["won"] for one in known]), abs=1e-6)
        assert {one["rival"] for one in known} != {one["completion"] for one in known} and row["gold"] == 1
        assert not {"won", "rival"} & set(trainer.evaluate() | trainer.last_held_out[0])


# user is preferred to assistant, assistant to the colon, the colon to user, and all three to what else there is
CIRCLE = {("user", "assistant"): 1.0, ("assistant", ":"): 0.7, (":", "user"): 0.7}
SAID = WORDS[:8]


def preference(word: str, other: str) -> float:
    if (word, other) in CIRCLE or (other, word) in CIRCLE:
        return CIRCLE.get((word, other), 1 - CIRCLE.get((other, word), 0))
    return 0.5 + 0.45 * ((word in SAID[4:7]) - (other in SAID[4:7]))


def in_a_circle(prompts, completions, *, finished, rivals=None, **columns) -> list[float]:
    pairs = zip(completions, rivals or completions, strict=True)
    return [preference(said.strip(), other.strip()) for said, other in pairs]


TABLE = np.array([[preference(word, other) for other in SAID] for word in SAID])


def nash_point(start: np.ndarray, *, share: float, price: float) -> np.ndarray:
    """pi = start exp(P(. > pi^(1-b) start^b) / price), by damped iteration."""
    point = start
    for _ in range(2000):
        rival = point ** (1 - share) * start**share
        goal = start * np.exp((TABLE @ (rival / rival.sum())) / price)
        point = point**0.9 * goal**0.1
        point = point / point.sum()
    return point


def player(*, share: float, batch_size: int, **settings):
    """A trainer of one-word answers to one prompt, and the reference's chances of each word."""
    models = tiny_model(layers=1, vocab_size=8), tiny_model(layers=1, vocab_size=8)
    for model in models:
        model.lm_head.weight.data *= 0.1
    prompts = prompts_with(["user"] * batch_size)
    settings |= {"prompts": prompts, "held_out": prompts[:1], "max_completion_length": 1, "missing_eos_penalty": 0.0}
    settings |= {"reward": in_a_circle, "rival_mixture": share, "batch_size": batch_size, "evaluate_every": 1000}
    trainer = trainer_for(*models, algorithm="nash_md", **settings)
    return trainer, plain_next_logprobs(models[1], prompts[0].prompt_ids).exp().numpy()


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_where_preferences_go_in_circles_no_word_gains_at_the_nash_point_and_some_do_wherever_a_reward_leads(share):
    trainer, start = player(share=share, batch_size=1024, kl_coef=0.1)
    point, strength = nash_point(start, share=share, price=0.1), np.zeros(len(SAID))
    for _ in range(2000):  # Bradley and Terry's strengths, of comparisons of all words with one another
        strength += (TABLE - 1 / (1 + np.exp(strength[None] - strength[:, None]))).mean(1)

    def spread(policy: np.ndarray) -> float:
        rival = policy ** (1 - share) * start**share
        return np.ptp((TABLE @ (rival / rival.sum()))[4:7] - 0.1 * np.log(policy[4:7] / start[4:7]))

    rewarded = [start * np.exp(strength / price) for price in np.geomspace(0.01, 100, 200)]
    assert spread(point) < 1e-6 and min(spread(each / each.sum()) for each in rewarded) > 0.05

    hidden = trainer.policy.base_model(torch.tensor([trainer.prompts[0].prompt_ids])).last_hidden_state[0, -1].detach()
    moved = torch.from_numpy(np.log(point[1:] / start[1:])).float()
    trainer.policy.lm_head.weight.data[1:] += moved[:, None] * hidden / hidden.square().sum()  # now it is the point
    experience = trainer.experience(trainer.collect()[0])
    words, gains = experience.completions[:, 0], experience.advantages[:, 0]
    assert np.ptp([gains[words == word].mean().item() for word in range(4, 7)]) < 0.04


def test_playing_leads_to_the_nash_point():
    trainer, start = player(share=0.25, batch_size=64, kl_coef=0.2, steps=40, learning_rate=5e-3)
    for _ in range(40):
        trainer.step()
    found = plain_next_logprobs(trainer.policy, trainer.prompts[0].prompt_ids).exp().numpy()
    point = nash_point(start, share=0.25, price=0.2)
    assert np.abs(start - point).sum() / 2 > 0.4 and np.abs(found - point).sum() / 2 < 0.08


# Bad input


REFUSED = [
    ({"rival_mixture": 1.5}, "rival_mixture is 1.5"),
    ({"algorithm": "pppo"}, r"no algorithm 'pppo': choose one of reinforce, .*ppo.*gspo.*nlpo"),
    *(({"algorithm": name, "num_generations": 1}, f"num_generations is 1 but {name} compares") for name in GROUPED),
    *(({"algorithm": name, "num_ppo_epochs": 2}, f"is 2 but {name} has no ratio") for name in ONE_UPDATE),
    ({"algorithm": "grpo", "batch_size": 10}, "batch_size is 10 but num_generations is 4"),
    ({"algorithm": "grpo", "batch_size": 8, "num_mini_batches": 3}, "num_mini_batches is 3 .* at most 2"),
    ({"num_mini_batches": 9, "batch_size": 8}, "num_mini_batches is 9 but batch_size is 8"),
    ({"algorithm": "reinforce_baseline", "batch_size": 1}, "batch_size is 1 but reinforce_baseline compares"),
    ({"kl_in": "advantage"}, "kl_in is 'advantage': choose one of reward, loss"),
    ({"kl_estimator": "k4"}, "kl_estimator is 'k4': choose one of k1, k2, k3, k3_weighted, exact"),
    ({"kl_target": 6.0, "kl_horizon": 63}, "kl_horizon is 63, less than the 64 completions .*give at least that"),
    ({"kl_target": 6.0, "kl_coef": 0.0}, "kl_target needs a starting kl_coef"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_settings_that_mean_nothing_are_named(settings, message):
    with pytest.raises(WorkbenchError, match=message):
        PolicyGradientConfig(**settings)


def test_what_is_missing_or_idle_is_named():
    with pytest.raises(WorkbenchError, match="ppo needs a critic but none was given"):
        require_models(tiny_model(), tiny_model(seed=1), None, PolicyGradientConfig())
    with pytest.raises(WorkbenchError, match="rloo has no critic but one was given"):
        trainer_for(algorithm="rloo", critic=tiny_critic())
    with pytest.raises(WorkbenchError, match=r"ptx_coef is 0\.1 but there are no pretraining texts"):
        trainer_for(ptx_coef=0.1)
    with pytest.raises(WorkbenchError, match=r"16 prompts but batch_size is 72.* at least 18"):
        trainer_for(algorithm="grpo", batch_size=72)


def test_a_policy_that_shares_weights_with_its_reference_is_refused():
    policy, half = tiny_model(), tiny_model(seed=1)
    half.lm_head.weight = policy.lm_head.weight
    for reference in (policy, half):
        with pytest.raises(WorkbenchError, match="policy and reference share weights"):
            trainer_for(policy, reference)


def hold(model, tokens, logit):
    """The model gives these tokens that logit from now on."""
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits.index_fill(-1, tokens, logit))


@every_algorithm
def test_a_batch_without_a_single_end_is_learned_from(algorithm):
    trainer = small(algorithm=algorithm)
    hold(trainer.policy, torch.tensor([EOS]), -50)
    row = trainer.step()
    assert row["finished"] == 0 and row["completion_length"] == 6
    assert all(math.isfinite(value) for name, value in row.items() if name != "explained_variance")


@every_algorithm
def test_a_reference_that_excludes_what_was_said_is_named_and_nothing_moves(algorithm):
    trainer = small(algorithm=algorithm)
    hold(trainer.reference, torch.arange(4, 20), -math.inf)
    weights = weights_of(trainer.policy)
    with pytest.raises(NonFiniteLoss, match="step 1") as caught:
        trainer.step()
    assert caught.value.batch["reference_logprobs"].isneginf().any()
    assert same_weights(weights, weights_of(trainer.policy))


def test_a_judge_that_fails_is_named():
    trainer = small(algorithm="rloo")
    trainer.judges = {"odd": lambda prompts, completions, **columns: [1.0]}
    with pytest.raises(WorkbenchError, match="gave 1 number"):
        trainer.evaluate()


@pytest.mark.parametrize("broken", ["loss", "gradient"])
@pytest.mark.parametrize("algorithm", ["ppo", "a2c"])
def test_a_critic_that_breaks_stops_the_policy_too(algorithm, broken):
    trainer = small(algorithm=algorithm)
    trainer.step()
    if broken == "loss":
        torch.nn.init.constant_(trainer.critic.score.bias, 1e25)  # its square is infinite, its advantages are not
    else:
        trainer.critic.score.weight.register_hook(lambda gradient: gradient * math.inf)
    before = weights_of(trainer.policy), weights_of(trainer.critic)
    with pytest.raises(NonFiniteLoss, match="step 2"):
        trainer.step()
    assert same_weights(before[0], weights_of(trainer.policy)) and same_weights(before[1], weights_of(trainer.critic))
    assert all(weight.grad is None for model in (trainer.policy, trainer.critic) for weight in model.parameters())


# The table


def test_a_setting_left_open_is_the_algorithms_own_and_a_given_one_is_kept():
    config, row = PolicyGradientConfig(algorithm="dapo"), ALGORITHMS["dapo"]
    assert (config.num_generations, config.cliprange_high, config.kl_in) == (row.num_generations, 0.28, "loss")
    given = {"kl_coef": 0.0, "cliprange_high": 0.5, "kl_in": "reward", "whiten_advantages": True}
    config = PolicyGradientConfig(algorithm="dapo", **given)
    assert {name: getattr(config, name) for name in given} == given
    assert PolicyGradientConfig(cliprange=0.1).cliprange_high == 0.1
    assert PolicyGradientConfig(kl_target=0.0, kl_horizon=63, batch_size=64).kl_horizon == 63  # nothing adapts


def test_the_table_names_every_algorithm_and_tells_any_two_apart():
    rows = algorithm_table()
    assert [row["algorithm"] for row in rows] == list(ALGORITHMS)
    assert all(row["paper"] for row in rows)
