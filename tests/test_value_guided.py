"""The policy that values make of another one: its probabilities by hand, sampling, scoring, saving."""

import pytest
import torch
from tiny_models import EOS, FAMILIES, PAD, plain_logprobs, plain_next_logprobs, tiny_model, word_tokenizer

from workbench import WorkbenchError, models
from workbench.models.sampling import sample
from workbench.models.scoring import completion_logprobs
from workbench.models.tokens import collate
from workbench.models.value_guided import guide
from workbench.trainers.evaluation import sequence_kl


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


def test_without_strength_it_is_the_reference():
    policy = guided(beta=0.0)
    batch = collate([[4, 6], [9, 10, 11]], [[7, EOS], [8, 8, EOS]], pad_id=PAD)
    with torch.no_grad():
        torch.testing.assert_close(completion_logprobs(policy, batch), completion_logprobs(tiny_model(), batch))


@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_with_a_cache_and_scoring_agree_with_one_row_at_a_time(family):
    policy = guided(family)
    prompts = [[4, 6, 7, 8], [9], [10, 11]] * 8  # enough that some end early and leave the batch
    rollout = sample(policy, prompts, max_completion_length=8, generator=torch.Generator().manual_seed(0))
    assert rollout.finished.any() and not rollout.finished.all()
    with torch.no_grad():
        torch.testing.assert_close(completion_logprobs(policy, rollout), rollout.logprobs, rtol=1e-4, atol=1e-4)
    for row in range(6):
        said = rollout.completions[row][rollout.completion_mask[row]].tolist()
        expected = plain_logprobs(policy, prompts[row], said)
        assert rollout.logprobs[row][: len(said)].tolist() == pytest.approx(expected, abs=1e-4)


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
    policy.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    tokenizer, _ = models.load_tokenizer(str(tmp_path))
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
