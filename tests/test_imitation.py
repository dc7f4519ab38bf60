"""Imitation of selected samples: choices by brute force, losses and KL by plain re-scoring, resuming, learning."""

import math

import pandas as pd
import pytest
import torch
from policy_gradient_cases import STARTS, prompts_with
from scipy import stats
from tiny_models import EOS, plain_logprobs, plain_next_logprobs, same_weights, tiny_model, weights_of, word_tokenizer
from trainer_checks import assert_continues

from workbench import NonFiniteLoss, WorkbenchError
from workbench.models.tokens import BAD_GOOD, QUANTILES, add_control_tokens
from workbench.trainers import imitation
from workbench.trainers.imitation import ImitationConfig, ImitationTrainer

PROMPTS = prompts_with(STARTS[:5], favourite=["red", "blue", "green", "yes", "no"])
QUANTILE_IDS = [20, 21, 22, 23, 24]


def shortness(prompts, completions, *, finished, favourite) -> list[float]:
    return [-float(len(completion.split())) for completion in completions]


def told_model(seed: int = 0):
    """A tiny policy that can read the five quantile tokens."""
    model = tiny_model(vocab_size=25, seed=seed)
    model.config.control_token_ids = QUANTILE_IDS
    return model


def trainer_for(selection="raft", *, policy=None, reference=None, reward=shortness, prompts=PROMPTS, **config):
    sizes = {"steps": 4, "prompts_per_step": 4, "num_generations": 6, "updates_per_step": 2, "batch_size": 3}
    config = {**sizes, "max_completion_length": 5, "learning_rate": 5e-3, "warmup_steps": 2} | config
    tokenizer = word_tokenizer()
    add_control_tokens(tokenizer, QUANTILES)
    return ImitationTrainer(
        policy or told_model(),
        reference or told_model(),
        reward,
        prompts,
        tokenizer,
        ImitationConfig(selection=selection, **config),
        monitors={"gold": lambda prompts, completions, *, finished, favourite: [2.0 * ended for ended in finished]},
    )


class Recorder:
    """A reward that is a different number for every call and row, and remembers what it gave."""

    def __init__(self, sign: float = 1.0):
        self.sign, self.calls = sign, []
        self.generator = torch.Generator().manual_seed(7)

    def __call__(self, prompts, completions, *, finished, favourite) -> list[float]:
        scores = (self.sign * torch.randn(len(prompts), generator=self.generator)).tolist()
        self.calls.append(list(zip(prompts, completions, scores, finished, strict=True)))
        return scores


def kept_texts(trainer) -> list[tuple[str, str]]:
    return [(sampled["prompt"], sampled["completion"]) for sampled in trainer.samples()]


# What is chosen


def test_raft_keeps_exactly_the_best_completion_of_every_prompt():
    reward = Recorder()
    trainer = trainer_for(reward=reward, missing_eos_penalty=0.0)
    for _ in range(3):
        trainer.step()
        call = reward.calls[-1]
        groups = [call[start : start + 6] for start in range(0, 24, 6)]
        assert all(len({prompt for prompt, *_ in group}) == 1 for group in groups)
        winners = [max(group, key=lambda sampled: sampled[2]) for group in groups]
        assert kept_texts(trainer) == [winner[:2] for winner in winners]
        assert [row["score"] for row in trainer.pool] == [pytest.approx(winner[2]) for winner in winners]
        assert trainer.pool[2]["prompt_ids"] == word_tokenizer()(winners[2][0])["input_ids"]
        said = [word_tokenizer().decode(row["completion_ids"], skip_special_tokens=True) for row in trainer.pool]
        assert [text.split() for text in said] == [winner[1].split() for winner in winners]


def test_of_equal_scores_raft_keeps_the_first():
    scores = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
    assert imitation.best_of_each(scores, torch.Generator()).tolist() == [[False, True, False], [True, False, False]]


def test_the_random_control_does_not_look_at_the_reward():
    likes, dislikes = (trainer_for("random", reward=Recorder(sign)) for sign in (1.0, -1.0))
    for _ in range(3):
        likes.step()
        dislikes.step()
        assert kept_texts(likes) == kept_texts(dislikes) and len(likes.pool) == 4
    assert same_weights(weights_of(likes.policy), weights_of(dislikes.policy))


def test_the_random_control_takes_every_completion_equally_often():
    generator = torch.Generator().manual_seed(0)
    kept = imitation.any_of_each(torch.randn(6000, 6), generator)
    assert (kept.sum(1) == 1).all() and stats.chisquare(kept.sum(0).tolist()).pvalue > 0.01


def test_both_make_as_many_updates_on_as_many_texts():
    counts = []
    for selection in ("raft", "random"):
        trainer = trainer_for(selection)
        trainer.step()
        counts.append((len(trainer.pool), trainer.descent.done))
    assert counts == [(4, 2), (4, 2)]


def test_an_unfinished_completion_is_scored_lower():
    trainer = trainer_for("quark", missing_eos_penalty=10.0)
    trainer.step()
    for row in trainer.pool:
        words = sum(token > 3 for token in row["completion_ids"])
        assert row["score"] == -words - 10.0 * (row["completion_ids"][-1] != EOS)
    assert {row["completion_ids"][-1] == EOS for row in trainer.pool} == {True, False}


# Control tokens


def test_quark_learns_everything_it_ever_sampled_after_the_token_of_its_quantile():
    trainer = trainer_for("quark", reward=Recorder(), missing_eos_penalty=0.0)
    for count in (24, 48, 72):
        trainer.step()
        scores = [row["score"] for row in trainer.pool]
        quantiles = pd.qcut([-score for score in scores], 5, labels=False)
        assert len(trainer.pool) == count
        for row, lesson, quantile in zip(trainer.pool, trainer.lessons(), quantiles, strict=True):
            assert lesson.prompt_ids == [24 - quantile, *row["prompt_ids"]]
            assert lesson.completion_ids == row["completion_ids"]


def test_quark_asks_for_the_best_from_the_second_round_on(monkeypatch):
    asked = []

    def spied(policy, prompt_ids, **arguments):
        asked.append(prompt_ids)
        return imitation_sample(policy, prompt_ids, **arguments)

    imitation_sample = imitation.sample
    monkeypatch.setattr(imitation, "sample", spied)
    trainer = trainer_for("quark")
    first, second = trainer.step(), trainer.step()
    assert all(ids[0] < 20 for ids in asked[0]) and first["kl"] == pytest.approx(0, abs=1e-6)
    assert all(ids[0] == 24 and ids[1] < 20 for ids in asked[1]) and second["kl"] != 0
    assert [prompt.prompt_ids for prompt in trainer.conditioned(PROMPTS[:1])] == [[24, *PROMPTS[0].prompt_ids]]
    assert all(row["prompt_ids"][0] < 20 for row in trainer.pool)  # the pool is not told
    assert not any(set(row["completion_ids"]) & set(QUANTILE_IDS) for row in trainer.pool)
    assert trainer_for("raft").conditioned(PROMPTS) == PROMPTS


def test_conditional_training_uses_the_median():
    tokenizer = word_tokenizer()
    ids = add_control_tokens(tokenizer, BAD_GOOD)
    policy = tiny_model(vocab_size=22)
    policy.config.control_token_ids = ids
    config = ImitationConfig(selection="conditional", steps=1, prompts_per_step=5, max_completion_length=5)
    trainer = ImitationTrainer(policy, tiny_model(vocab_size=22), Recorder(), PROMPTS, tokenizer, config, monitors={})
    trainer.step()
    scores = pd.Series([row["score"] for row in trainer.pool])
    expected = [ids[int(score >= scores.median())] for score in scores]
    assert [lesson.prompt_ids[0] for lesson in trainer.lessons()] == expected


# Losses


def plain_losses(policy, lessons) -> tuple[float, float]:
    """Mean negative log-probability over all tokens, and their number."""
    logprobs = [plain_logprobs(policy, lesson.prompt_ids, lesson.completion_ids) for lesson in lessons]
    return -sum(map(sum, logprobs)), sum(map(len, logprobs))


@pytest.mark.parametrize("selection", ["raft", "quark"])
def test_the_loss_is_the_mean_cross_entropy_of_the_kept_completions(selection):
    trainer = trainer_for(selection, updates_per_step=1, batch_size=100)
    row = trainer.step()
    total, count = plain_losses(told_model(), trainer.lessons())
    assert row["loss"] == pytest.approx(total / count, abs=1e-5)


def test_the_penalty_is_the_exact_kl_from_a_reference_that_reads_no_token():
    policy, reference = told_model(), told_model(seed=1)
    trainer = trainer_for("quark", reference=reference, updates_per_step=1, batch_size=100, kl_coef=0.3)
    row = trainer.step()
    kls = []
    for lesson in trainer.lessons():
        for index in range(len(lesson.completion_ids)):
            said = lesson.completion_ids[:index]
            ours = plain_next_logprobs(policy, lesson.prompt_ids + said)
            theirs = plain_next_logprobs(reference, lesson.prompt_ids[1:] + said)
            kls.append(sum(p.exp() * (p - q) for p, q in zip(ours, theirs, strict=True) if p > -math.inf).item())
    assert row["kl_penalty"] == pytest.approx(sum(kls) / len(kls), abs=1e-5) and row["kl_penalty"] > 0.5


def test_the_gradient_is_that_of_cross_entropy_plus_the_price_of_kl():
    trainer = trainer_for("quark", reference=told_model(seed=1), updates_per_step=1, batch_size=100, kl_coef=0.3)
    row = trainer.step()
    policy, reference, losses = told_model(), told_model(seed=1), []
    for lesson in trainer.lessons():
        ids = torch.tensor([lesson.prompt_ids + lesson.completion_ids])
        start = len(lesson.prompt_ids) - 1
        banned = torch.tensor([0, *QUANTILE_IDS])
        ours = policy(input_ids=ids).logits[0, start:-1].index_fill(1, banned, -1e9).log_softmax(-1)
        theirs = reference(input_ids=ids[:, 1:]).logits[0, start - 1 : -1].index_fill(1, banned, -1e9).log_softmax(-1)
        said = ours.gather(1, torch.tensor(lesson.completion_ids)[:, None])[:, 0]
        kl = torch.nn.functional.kl_div(theirs.detach(), ours, log_target=True, reduction="none").sum(-1)
        losses.append(0.3 * kl - said)
    torch.cat(losses).mean().backward()
    norm = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]).norm()
    assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


def test_a_high_price_keeps_the_policy_at_the_reference():
    free, dear = (trainer_for("raft", kl_coef=price, steps=10) for price in (0.0, 20.0))
    rows = [[trainer.step() for _ in range(10)][-1] for trainer in (free, dear)]
    assert rows[0]["kl"] > 3 * abs(rows[1]["kl"])


def test_kl_is_measured_on_what_was_sampled_against_the_untold_reference():
    reference = told_model(seed=1)
    trainer = trainer_for("quark", reference=reference)
    trainer.step()
    sampler = told_model()
    sampler.load_state_dict(weights_of(trainer.policy))
    row = trainer.step()
    log_ratios = [
        sum(plain_logprobs(sampler, [24, *sampled["prompt_ids"]], sampled["completion_ids"]))
        - sum(plain_logprobs(reference, sampled["prompt_ids"], sampled["completion_ids"]))
        for sampled in trainer.pool[24:]
    ]
    assert row["kl"] == pytest.approx(sum(log_ratios) / 24, abs=1e-4)


def test_a_row_has_the_means_of_all_and_of_the_kept():
    trainer = trainer_for("raft", missing_eos_penalty=0.0)
    row = trainer.step()
    assert row["kept_reward"] == pytest.approx(sum(sampled["score"] for sampled in trainer.pool) / 4)
    assert row["kept_reward"] > row["reward"]
    assert row["gold"] == pytest.approx(2 * row["finished"])  # the monitor above
    assert row["kept_gold"] == pytest.approx(sum(2.0 * (s["completion_ids"][-1] == EOS) for s in trainer.pool) / 4)


# Training


def favourite_first(prompts, completions, *, finished, favourite) -> list[float]:
    return [float(text.split()[:1] == [word]) for text, word in zip(completions, favourite, strict=True)]


def trained_on_four_prompts(selection, *, steps: int) -> list[dict]:
    """Rows of a training in which one word is the only good answer to each prompt, from a policy that knows nothing."""
    models = {"policy": told_model(), "reference": told_model()}
    for model in models.values():
        model.lm_head.weight.data *= 0.1  # close to uniform, so that every answer is met among the samples
    sizes = {"prompts_per_step": 4, "num_generations": 48, "updates_per_step": 16, "batch_size": 48, "steps": steps}
    sizes |= {"learning_rate": 2e-2, "max_completion_length": 2}
    sizes["missing_eos_penalty"] = 0.0  # with it a good answer that was cut would be worth no more than a bad one
    trainer = trainer_for(selection, reward=favourite_first, prompts=PROMPTS[:4], **models, **sizes)
    return [trainer.step() for _ in range(trainer.total_steps)]


@pytest.mark.parametrize(("selection", "steps"), [("raft", 7), ("quark", 12)])
def test_it_learns_the_best_answer_to_four_prompts_by_heart(selection, steps):
    rows = trained_on_four_prompts(selection, steps=steps)
    assert rows[0]["reward"] < 0.2 and rows[-1]["reward"] > 0.9


def test_without_selection_nothing_is_gained():
    assert trained_on_four_prompts("random", steps=7)[-1]["reward"] < 0.5


def passes(prompts, completions, *, finished, favourite) -> list[float]:
    return [float(len(text.split()) % 2) for text in completions]


def test_rest_em_keeps_what_passed_and_learns_it_from_the_reference_on():
    settings = {"reward": passes, "missing_eos_penalty": 0.0, "updates_per_step": 1, "learning_rate": 5e-3}
    trainer = trainer_for("rest_em", policy=told_model(seed=5), **settings)
    for _ in range(2):  # the second round, too, begins anew
        row = trainer.step()
        kept = [word_tokenizer().decode(each["completion_ids"], skip_special_tokens=True) for each in trainer.pool]
        assert {len(text.split()) % 2 for text in kept} == {1}
        assert row["kept_share"] == pytest.approx(len(trainer.pool) / 24) == row["reward"]
        weights = zip(trainer.policy.parameters(), trainer.reference.parameters(), strict=True)
        moved = max((new - old).abs().max().item() for new, old in weights)
        assert 0 < moved < 6e-3 / 2  # one step of Adam at the rate of the first of two warm-up steps


def test_a_round_that_nothing_passed_has_nothing_to_teach():
    trainer = trainer_for("rest_em", reward=lambda prompts, completions, **columns: [0.0] * len(completions))
    with pytest.raises(WorkbenchError, match="No completion of round 1 passed"):
        trainer.step()


def test_the_reference_never_moves():
    trainer = trainer_for("quark", kl_coef=0.1)
    start = weights_of(trainer.reference)
    assert same_weights(start, weights_of(trainer.policy))
    trainer.step()
    assert same_weights(start, weights_of(trainer.reference))
    assert not same_weights(start, weights_of(trainer.policy))


@pytest.mark.parametrize("selection", sorted(imitation.SELECTIONS.keys() - {"conditional"}))
@pytest.mark.parametrize("before", [1, 3])
def test_a_stopped_training_continues_bit_for_bit(selection, before, tmp_path):
    reward = passes if selection == "rest_em" else shortness
    assert_continues(lambda: trainer_for(selection, kl_coef=0.1, reward=reward), tmp_path, steps=4, before=before)


# What is refused


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"selection": "best"}, r"no selection 'best': choose one of raft, rest_em, random, quark, conditional\."),
        ({"selection": "raft", "num_generations": 1}, "num_generations is 1"),
        ({"selection": "random", "num_generations": 1}, "num_generations is 1"),
    ],
)
def test_settings_that_mean_nothing_are_named(settings, says):
    with pytest.raises(WorkbenchError, match=says):
        ImitationConfig(**settings)


def test_quark_may_take_one_completion_of_a_prompt():
    assert trainer_for("quark", num_generations=1).step()["step"] == 1


def test_fewer_prompts_than_a_round_takes_are_refused():
    with pytest.raises(WorkbenchError, match="5 prompts but prompts_per_step is 6"):
        trainer_for(prompts_per_step=6)


def test_missing_control_tokens_are_named():
    with pytest.raises(WorkbenchError, match=r"lacks <\|bad\|>, <\|good\|>"):
        trainer_for("conditional")
    with pytest.raises(WorkbenchError, match=r"lacks <\|reward_0\|>"):
        trainer_for("quark", policy=tiny_model(vocab_size=25))  # in the tokenizer alone


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_never_imitated(value):
    trainer = trainer_for(reward=lambda prompts, *_, **columns: [value] + [0.0] * (len(prompts) - 1))
    before = weights_of(trainer.policy)
    with pytest.raises(WorkbenchError, match=r"reward .* gave .* for row 0, .*finite number"):
        trainer.step()
    assert same_weights(before, weights_of(trainer.policy))


def test_a_group_of_equal_rewards_is_learned_from_without_nan():
    for selection in ("raft", "quark"):
        row = trainer_for(selection, reward=lambda prompts, *_, **columns: [1.0] * len(prompts)).step()
        assert all(math.isfinite(value) for value in row.values())


def test_a_loss_that_is_nan_is_named_and_moves_nothing():
    trainer = trainer_for("raft", kl_coef=0.1)
    trainer.reference.lm_head.weight.data[4, 0] = math.nan
    before = weights_of(trainer.policy)
    with pytest.raises((NonFiniteLoss, WorkbenchError)):
        trainer.step()
    assert same_weights(before, weights_of(trainer.policy))
