"""The learned reward against the library's own scoring of one text at a time."""

import pytest
import torch
from tiny_models import EOS, FAMILIES, tiny_model, word_tokenizer
from transformers import AutoModelForSequenceClassification

from workbench.errors import WorkbenchError
from workbench.models import load_reward_model, load_tokenizer
from workbench.rewards import LearnedReward, normalise

PROMPTS = ["user : what colour is the sky assistant :", "user : thanks assistant :", "the grass"] * 3
COMPLETIONS = [" blue", " yes please no", " is green", " red red red red", "", " the sky", " no", " green blue", " is"]
FINISHED = [True, True, False, False, True, True, True, False, True]


def reward_for(family="llama", *, max_length=24, batch_size=512) -> LearnedReward:
    model = tiny_model(family, auto=AutoModelForSequenceClassification)
    return LearnedReward(model, word_tokenizer(), max_length=max_length, batch_size=batch_size)


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
    for room, expected in [
        (9, ids_of("sky assistant :") + ids_of(completion) + [EOS]),
        (4, ids_of(":") + ids_of(" blue green red")),
    ]:
        reward = reward_for(max_length=room)
        assert len(expected) == room
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
    reward.model.save_pretrained(tmp_path)
    reward.tokenizer.save_pretrained(tmp_path)
    tokenizer, _ = load_tokenizer(str(tmp_path))
    loaded = LearnedReward(load_reward_model(str(tmp_path), tokenizer), tokenizer, max_length=24)
    assert loaded(PROMPTS, COMPLETIONS, finished=FINISHED) == pytest.approx(scores.tolist(), abs=1e-6)


def test_a_reward_model_that_does_not_vary_is_refused():
    reward = reward_for()
    torch.nn.init.zeros_(reward.model.score.weight)
    with pytest.raises(WorkbenchError, match="all 9 reference samples 0"):
        normalise(reward, PROMPTS, COMPLETIONS, finished=FINISHED)
    with pytest.raises(WorkbenchError, match="all 1 reference samples"):
        normalise(reward_for(), PROMPTS[:1], COMPLETIONS[:1], finished=[True])
