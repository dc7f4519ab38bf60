"""The pool of samples: what is in it, in which order, and that it can be filled in pieces."""

from collections import Counter

import pytest
import torch
from policy_gradient_cases import STARTS, prompts_with
from scipy import stats
from tiny_models import EOS, every_completion, plain_logprobs, tiny_model, word_tokenizer
from trainer_checks import assert_continues

from workbench import WorkbenchError
from workbench.records import PromptExample
from workbench.trainers.best_of_n import BestOfNConfig, BestOfNTrainer

PROMPTS = prompts_with(STARTS[:5], favourite=["red", "blue", "green", "yes", "no"])
UNWRITTEN = torch.tensor([0, 1, 0, 1] + [0] * 16)  # BOS and UNK leave no trace in a text


def shortness(prompts, completions, *, finished, favourite) -> list[float]:
    return [-float(len(completion.split())) for completion in completions]


def favourites(prompts, completions, *, finished, favourite) -> list[float]:
    return [float(text.split().count(word)) for text, word in zip(completions, favourite, strict=True)]


def trainer_for(policy=None, *, prompts=PROMPTS, rewards=None, **config) -> BestOfNTrainer:
    config = {"num_generations": 6, "prompts_per_step": 2, "max_completion_length": 7} | config
    rewards = rewards or {"proxy": favourites, "gold": shortness}
    return BestOfNTrainer(policy or tiny_model(), rewards, prompts, word_tokenizer(), BestOfNConfig(**config))


def filled(trainer: BestOfNTrainer) -> list[dict]:
    return [trainer.step() for _ in range(trainer.total_steps)]


def test_the_pool_holds_n_scored_completions_of_every_prompt_in_order():
    trainer = trainer_for()
    assert trainer.total_steps == 3
    filled(trainer)
    assert [row["prompt_index"] for row in trainer.pool] == [index for index in range(5) for _ in range(6)]
    for row in trainer.pool:
        prompt = PROMPTS[row["prompt_index"]]
        assert {name: row[name] for name in prompt.row} == prompt.row
        assert row["proxy"] == row["completion"].split().count(prompt.row["favourite"])
        assert row["gold"] == -len(row["completion"].split())
    assert [len(scores) for scores in trainer.scores("gold")] == [6] * 5
    assert trainer.scores("proxy")[3][2] == trainer.pool[3 * 6 + 2]["proxy"]
    assert trainer.samples() == trainer.pool[-6:]


def test_columns_of_the_data_that_are_named_as_ours_change_nothing():
    def own(prompts, completions, *, finished, favourite, **columns):
        assert set(columns) == {"prompt_index", "logprob"}
        return favourites(prompts, completions, finished=finished, favourite=favourite)

    odd = {"prompt_index": 7, "finished": "no", "logprob": 1.0, "prompts": ["x"], "self": 1, "proxy": "x"}
    rows = [PromptExample(prompt_ids=each.prompt_ids, row={**each.row, **odd}) for each in PROMPTS]
    plain, with_odd = trainer_for(), trainer_for(prompts=rows, rewards={"proxy": lambda *t, proxy, **c: own(*t, **c)})
    filled(plain), filled(with_odd)
    names = ("prompt_index", "completion", "finished", "logprob", "proxy")
    pools = [[[row[name] for name in names] for row in trainer.pool] for trainer in (plain, with_odd)]
    assert pools[0] == pools[1]


def test_a_row_has_the_means_of_all_samples_and_of_each_prompts_best_by_proxy():
    trainer = trainer_for()
    row = trainer.step()
    groups = [trainer.pool[:6], trainer.pool[6:12]]
    assert row["gold"] == pytest.approx(sum(sampled["gold"] for sampled in trainer.pool) / 12)
    assert row["best_proxy"] == sum(max(sampled["proxy"] for sampled in group) for group in groups) / 2
    winners = [next(s for s in group if s["proxy"] == max(t["proxy"] for t in group)) for group in groups]
    assert row["best_gold"] == sum(winner["gold"] for winner in winners) / 2
    assert (row["step"], row["prompts"]) == (1, 2)
    assert [row["prompts"] for row in filled(trainer_for())] == [2, 4, 5]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_those_of_the_text_at_the_sampling_temperature(temperature):
    policy = tiny_model()
    policy.lm_head.register_forward_hook(lambda module, inputs, logits: logits - 1e4 * UNWRITTEN)
    trainer = trainer_for(policy, temperature=temperature)
    filled(trainer)
    for row in trainer.pool:
        ids = word_tokenizer()(row["completion"])["input_ids"] + [EOS] * row["finished"]
        plain = plain_logprobs(policy, PROMPTS[row["prompt_index"]].prompt_ids, ids, temperature=temperature)
        assert row["logprob"] == pytest.approx(sum(plain), abs=1e-4)
    assert {row["finished"] for row in trainer.pool} == {True, False}


def test_samples_of_one_prompt_are_independent_draws_of_the_policy():
    policy, prompt = tiny_model(layers=1), PromptExample(prompt_ids=[9], row={"prompt": "the", "favourite": "red"})
    trainer = trainer_for(policy, prompts=[prompt], num_generations=3000, max_completion_length=1)
    filled(trainer)
    exact = every_completion(policy, [9], 1)
    words = word_tokenizer().convert_ids_to_tokens(range(20))
    said = Counter(row["completion"].strip() for row in trainer.pool)
    likely = [(words[ids[0]], chance) for ids, chance in exact.items() if ids[0] > 3 and chance * 3000 > 5]
    observed, expected = [said[word] for word, _ in likely], [3000 * chance for _, chance in likely]
    rest = 3000 - sum(observed), 3000 - sum(expected)
    assert len(likely) > 5 and stats.chisquare([*observed, rest[0]], [*expected, rest[1]]).pvalue > 0.01


def test_the_seed_decides_the_pool():
    pools = []
    for seed in (1, 1, 2):
        trainer = trainer_for(seed=seed)
        filled(trainer)
        pools.append(trainer.pool)
    assert pools[0] == pools[1] != pools[2]


@pytest.mark.parametrize("before", [1, 2])
def test_a_stopped_pool_is_filled_bit_for_bit(before, tmp_path):
    assert_continues(trainer_for, tmp_path, steps=3, before=before)


def test_without_a_proxy_there_are_samples_but_no_best():
    row = trainer_for(rewards={"gold": shortness}).step()
    assert set(row) == {"step", "prompts", "gold"}


def test_it_needs_prompts():
    with pytest.raises(WorkbenchError, match="no prompts"):
        trainer_for(prompts=[])
