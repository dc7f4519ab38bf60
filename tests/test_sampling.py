"""Sampling against exact enumeration, plain re-scoring and the library's own greedy search; decoding token by token."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from tiny_models import (
    BOS,
    EOS,
    FAMILIES,
    PAD,
    assert_plain_logprobs,
    every_completion,
    tiny_config,
    tiny_model,
    word_tokenizer,
)
from transformers import AutoConfig, AutoModelForCausalLM

import workbench.models.sampling
from workbench import WorkbenchError
from workbench.models import add_lora
from workbench.models.decoding import Decoder, ShortDecoder, decoder_of
from workbench.models.sampling import COMPACT_BELOW, completion_texts, eos_token_ids, inverse_cdf, sample
from workbench.models.scoring import completion_logprobs
from workbench.models.tokens import collate
from workbench.records import scores_of

PROMPTS = [[4, 6, 7, 8], [9], [10, 11, 4, 12, 13, 14], [5, 5], [16, 4, 9]]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def completions_of(rollout) -> list[list[int]]:
    lengths = rollout.completion_mask.sum(1).tolist()
    return [row[:length].tolist() for row, length in zip(rollout.completions, lengths, strict=True)]


# What is drawn


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_whole_completions_come_with_their_exact_probability(temperature):
    model, prompt, count = tiny_model(vocab_size=6, layers=1), [4, 5], 20_000
    exact = every_completion(model, prompt, 3, temperature=temperature)
    assert sum(exact.values()) == pytest.approx(1)
    limits = {"max_completion_length": 3, "temperature": temperature, "batch_size": 4000}
    rollout = sample(model, [prompt] * count, generator=generator(), **limits)
    drawn = list(map(tuple, completions_of(rollout)))
    assert set(drawn) <= set(exact)
    common = [completion for completion, chance in exact.items() if chance * count >= 5]
    observed = [drawn.count(completion) for completion in common]
    expected = [exact[completion] * count for completion in common]
    rest = count - sum(expected)
    result = stats.chisquare([*observed, count - sum(observed)], [*expected, rest])
    assert len(common) > 20 and result.pvalue > 0.01


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_logprobs_are_those_of_scoring_the_same_tokens_again(family, temperature, decoder):
    model = tiny_model(family)
    limits = {"max_completion_length": 9, "temperature": temperature, "batch_size": 16}
    rollout = sample(model, PROMPTS * 8, generator=generator(), **limits)
    again = completion_logprobs(model, rollout, temperature=temperature)
    torch.testing.assert_close(rollout.logprobs, again, rtol=1e-5, atol=1e-5)
    said = completions_of(rollout)[:5]
    assert_plain_logprobs(rollout.logprobs[:5], model, PROMPTS, said, temperature=temperature)


def test_the_row_ends_at_its_first_eos_which_counts_and_only_padding_follows():
    rollout = sample(tiny_model(), PROMPTS * 40, max_completion_length=12, generator=generator())
    for row, completion in enumerate(completions_of(rollout)):
        assert EOS not in completion[:-1]
        assert rollout.finished[row].item() == (completion[-1] == EOS)
        assert rollout.finished[row] or len(completion) == 12
        assert set(rollout.completions[row][len(completion) :].tolist()) <= {PAD}
        assert rollout.logprobs[row][len(completion) :].abs().sum() == 0
        assert rollout.tokens[row][rollout.attention_mask[row]].tolist() == PROMPTS[row % 5] + completion
        assert rollout.tokens[row, :6].tolist() == [PAD] * (6 - len(PROMPTS[row % 5])) + PROMPTS[row % 5]
    assert 0 < rollout.finished.sum() < len(rollout)


def test_a_batch_of_short_completions_is_as_wide_as_the_longest():
    model = tiny_model()
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + 1000 * one_hot(EOS))
    rollout = sample(model, PROMPTS, max_completion_length=30, generator=generator())
    assert completions_of(rollout) == [[EOS]] * 5
    assert rollout.tokens.shape == (5, 7) and rollout.logprobs.shape == (5, 1)


def one_hot(token: int, size: int = 20) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(token), size)


def test_padding_is_never_said_even_by_a_model_that_wants_nothing_else():
    model = tiny_model()
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + 50 * one_hot(PAD))
    for temperature in (1.0, 0.3, 0.0):
        rollout = sample(model, PROMPTS * 20, max_completion_length=6, temperature=temperature, generator=generator())
        assert not (rollout.completions[rollout.completion_mask] == PAD).any()
        again = completion_logprobs(model, rollout, temperature=temperature or 1.0)
        torch.testing.assert_close(rollout.logprobs, again, rtol=1e-4, atol=1e-4)


def test_any_of_several_eos_ids_ends_a_row():
    model = tiny_model()
    model.generation_config.eos_token_id = [EOS, 9, 12]
    rollout = sample(model, PROMPTS * 20, max_completion_length=12, generator=generator())
    ends = {completion[-1] for completion, done in zip(completions_of(rollout), rollout.finished, strict=True) if done}
    assert ends == {EOS, 9, 12}
    assert not {EOS, 9, 12} & {token for completion in completions_of(rollout) for token in completion[:-1]}


def test_a_model_without_eos_is_refused():
    model = tiny_model()
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    with pytest.raises(WorkbenchError, match="eos_token_id"):
        eos_token_ids(model)


# What must not matter


@pytest.fixture(params=["its own way", "the library's way"])
def decoder(request, monkeypatch):
    """Both ways of decoding."""
    if request.param == "the library's way":
        monkeypatch.setattr("workbench.models.decoding.FAMILIES", {})


def rows_said(model) -> list[int]:
    """Filled with the rows whose next token the model is asked for, step by step."""
    sizes = []
    model.lm_head.register_forward_hook(lambda module, inputs, logits: sizes.append(len(logits)))
    return sizes


@pytest.mark.parametrize("family", FAMILIES)
def test_finished_rows_leave_the_batch_and_nothing_changes(family, decoder, monkeypatch):
    model = tiny_model(family)
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + 2 * one_hot(EOS))  # ends come early
    sample(model, PROMPTS, max_completion_length=1, generator=generator())
    sizes = rows_said(model)
    compacted = sample(model, PROMPTS * 20, max_completion_length=20, generator=generator())
    alive = [int(column.sum()) for column in compacted.completion_mask.T]
    assert sizes[0] == 5 and len(sizes) == len(alive)  # equal prompts are read once
    assert all(size < row / COMPACT_BELOW + 1 for size, row in zip(sizes[1:], alive[1:], strict=True))
    monkeypatch.setattr(workbench.models.sampling, "COMPACT_BELOW", 0.0)
    sizes.clear()
    whole = sample(model, PROMPTS * 20, max_completion_length=20, generator=generator())
    assert set(sizes[1:]) == {100}
    assert torch.equal(compacted.tokens, whole.tokens)
    torch.testing.assert_close(compacted.logprobs, whole.logprobs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_how_rows_are_batched_changes_nothing(family):
    model = tiny_model(family)
    together = sample(model, PROMPTS * 4, max_completion_length=8, generator=generator(3))
    for size in (1, 7):
        apart = sample(model, PROMPTS * 4, max_completion_length=8, generator=generator(3), batch_size=size)
        assert torch.equal(together.tokens, apart.tokens)
        torch.testing.assert_close(together.logprobs, apart.logprobs, rtol=1e-5, atol=1e-5)


def test_the_same_generator_state_draws_the_same_and_the_next_state_draws_anew():
    model, source = tiny_model(), generator(1)
    first = sample(model, PROMPTS * 4, max_completion_length=8, generator=source)
    second = sample(model, PROMPTS * 4, max_completion_length=8, generator=source)
    again = sample(model, PROMPTS * 4, max_completion_length=8, generator=generator(1))
    assert torch.equal(first.tokens, again.tokens)
    assert completions_of(first) != completions_of(second)


def test_a_models_own_generation_settings_do_not_bend_the_distribution():
    model = tiny_model()
    free = sample(model, PROMPTS * 10, max_completion_length=8, generator=generator())
    settings = {"top_k": 1, "top_p": 0.1, "repetition_penalty": 9.0, "min_new_tokens": 7, "temperature": 0.1}
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    bent = sample(model, PROMPTS * 10, max_completion_length=8, generator=generator())
    assert torch.equal(free.tokens, bent.tokens) and torch.equal(free.logprobs, bent.logprobs)


@pytest.mark.parametrize("argument", ["top_k", "top_p", "min_new_tokens", "repetition_penalty"])
def test_an_argument_that_would_bend_the_distribution_is_refused_by_name(argument):
    with pytest.raises(TypeError, match=argument):
        sample(tiny_model(), PROMPTS, max_completion_length=2, generator=generator(), **{argument: 1})


# Greedy


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_the_librarys_greedy_search(family):
    model, length = tiny_model(family, seed=2), 10
    rollout = sample(model, PROMPTS, max_completion_length=length, temperature=0.0)
    for prompt, completion in zip(PROMPTS, completions_of(rollout), strict=True):
        given = {"inputs": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt), dtype=torch.long)}
        expected = model.generate(**given, do_sample=False, max_new_tokens=length, suppress_tokens=[PAD])
        assert completion == expected[0, len(prompt) :].tolist()
    assert_plain_logprobs(rollout.logprobs, model, PROMPTS, completions_of(rollout))


# Inverse cumulative distribution


def test_inverse_cdf_takes_the_token_whose_interval_holds_the_number():
    logprobs = torch.tensor([0.2, 0.0, 0.5, 0.3]).log().expand(6, 4)
    uniforms = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 0.999])
    assert inverse_cdf(logprobs, uniforms).tolist() == [0, 0, 2, 2, 3, 3]


def test_inverse_cdf_never_takes_a_token_of_probability_zero():
    almost_one = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)).item()
    shape, source = (2000, 50), generator()
    logits = torch.randn(shape, generator=source).masked_fill(torch.rand(shape, generator=source) < 0.5, -1e9)
    logits[:, 0], logits[:, -1] = -1e9, -1e9
    logprobs = logits.log_softmax(-1)
    for uniform in (0.0, 0.25, almost_one, 1.0):  # 1 itself, should a machine round up to it
        token = inverse_cdf(logprobs, torch.full((2000,), uniform))
        assert (logprobs.gather(1, token[:, None]) > -1e8).all()


# Bad input, text


@pytest.mark.parametrize("family", FAMILIES)
def test_what_does_not_fit_into_the_context_is_refused_and_what_just_fits_is_sampled(family):
    model = tiny_model(family, context=16)
    with pytest.raises(WorkbenchError, match=r"17 positions but the model has 16.*max_completion_length"):
        sample(model, PROMPTS, max_completion_length=11, generator=generator())
    assert len(sample(model, PROMPTS, max_completion_length=10, generator=generator())) == 5


def test_a_negative_temperature_or_a_missing_generator_is_refused():
    with pytest.raises(WorkbenchError, match=r"temperature is -1"):
        sample(tiny_model(), PROMPTS, max_completion_length=2, temperature=-1.0, generator=generator())
    with pytest.raises(WorkbenchError, match=r"generator"):
        sample(tiny_model(), PROMPTS, max_completion_length=2, temperature=1.0)


def test_texts_are_what_counted_tokens_add_to_their_prompt_without_special_ones():
    completions = [[6, 7, EOS], [8, 9, 10], [BOS, 11, EOS], [EOS], []]
    batch = collate([*PROMPTS[:3], [BOS, 5, 5], PROMPTS[4]], completions, pad_id=PAD)
    batch.tokens[~batch.attention_mask] = 12  # what the pad slots hold is nobody's business
    assert completion_texts(word_tokenizer(), batch) == [" : the", " sky is red", " green", "", ""]


TEXTS = (["a"] * 3, ["x", "y", "z"])


def said(given):
    """What a reward that returns `given` is taken to say of three completions."""
    proxy = {"proxy": lambda prompts, completions, *, finished: given}
    return scores_of(proxy, TEXTS, {"finished": [True] * 3})["proxy"]


@pytest.mark.parametrize(
    "given",
    [
        [1, 0.5, -2],
        (1.0, 0.5, -2.0),
        np.array([1.0, 0.5, -2.0], dtype=np.float32),
        [np.float64(1), np.float16(0.5), np.int64(-2)],
        torch.tensor([1.0, 0.5, -2.0], requires_grad=True),
        [torch.tensor(1.0), torch.tensor(0.5), np.array(-2)],
        pd.Series([1.0, 0.5, -2.0], index=[7, 8, 9]),
        (value for value in (True, 0.5, -2)),
    ],
    ids=["list", "tuple", "array", "numpy", "tensor", "tensors", "series", "generator"],
)
def test_whatever_holds_finite_numbers_is_a_list_of_scores(given):
    scores = said(given)
    assert scores == [1.0, 0.5, -2.0] and {type(score) for score in scores} == {float}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "gave NoneType 'None' for 3 completions"),
        (1.0, "gave float '1.0' for 3 completions"),
        ("abc", "gave str 'abc' for 3 completions"),
        ({0: 1.0, 1: 1.0, 2: 1.0}, "gave dict .* for 3 completions"),
        (torch.tensor(1.0), "gave Tensor .* for 3 completions"),
        ([], "gave 0 numbers for 3 completions"),
        ([1.0, 2.0], "gave 2 numbers for 3 completions"),
        ([1.0] * 4, "gave 4 numbers for 3 completions"),
        ([1.0, None, 1.0], "gave 'None' .*row 1, the completion 'y'"),
        ([1.0, 1.0, "1"], "gave '1' .*str.* row 2, the completion 'z'"),
        ([[1.0], [1.0], [1.0]], "row 0, the completion 'x'"),
        (torch.ones(3, 1), "row 0"),
        ([1.0, math.nan, math.nan], "gave 'nan' .*row 1"),
        (np.array([1.0, 1.0, -np.inf]), "gave '-inf' .*row 2"),
        ([1.0, 1e39, 1.0], "gave '1e.39' .*row 1"),
        ([1.0, 10**400, 1.0], "row 1"),
        ([1.0, 1j, 1.0], "gave '1j' .*row 1"),
    ],
)
def test_what_is_no_finite_number_for_every_completion_names_the_reward_and_the_row(given, says):
    with pytest.raises(WorkbenchError, match=rf"^The reward \S+test_sampling.py:\S+ .*{says}.*: return a .*number"):
        said(given)


# Token by token against passes over whole rows, the short way and the library's.


PADDED = torch.tensor([[PAD, PAD, 9], [4, 6, 7], [PAD, 10, 11]])
MASK = torch.tensor([[False, False, True], [True, True, True], [False, True, True]])
INDEX = [1, 0, 2, 1, 0, 1]
SPECIAL = {"pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": EOS, "vocab_size": 20}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.4}


def other_model(family, **sizes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SPECIAL, **sizes)).eval()


def spoken(decoder, seed: int = 0) -> tuple[list[torch.Tensor], list[list[list[int]]]]:
    """Logits of every step of a run in which rows leave at random, and the rows that they follow."""
    source = torch.Generator().manual_seed(seed)
    rows = [PADDED[place][MASK[place]].tolist() for place in INDEX]
    logits, read = [decoder.read_prompts(PADDED, MASK, torch.tensor(INDEX))], [rows]
    for kept in (None, [0, 5, 2, 3, 4], None, [0, 4, 2], [2], None):
        if kept is not None:
            decoder.keep(torch.tensor(kept))
            rows = [rows[place] for place in kept]
        tokens = torch.randint(4, 20, (len(rows),), generator=source)
        rows = [[*row, token] for row, token in zip(rows, tokens.tolist(), strict=True)]
        logits.append(decoder.read(tokens))
        read.append(rows)
    return logits, read


@torch.no_grad()
def assert_right(model, decoder) -> None:
    for logits, rows in zip(*spoken(decoder), strict=True):
        expected = torch.stack([model(input_ids=torch.tensor([row])).logits[0, -1] for row in rows])
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [Decoder, ShortDecoder])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_what_is_said_step_by_step_is_said_at_once(family, kind):
    model = tiny_model(family)
    assert type(decoder_of(model, steps=6)) is ShortDecoder
    assert_right(model, kind(model, steps=6))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_adapters_take_the_short_way_too(family):
    model = add_lora(tiny_model(family), rank=2)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    decoder = decoder_of(model.eval(), steps=6)
    assert type(decoder) is ShortDecoder
    assert_right(model, decoder)


def windowed():
    config = tiny_config("qwen2")
    config.sliding_window, config.layer_types = 4, ["sliding_attention", "full_attention"]
    return AutoModelForCausalLM.from_config(config).eval()


def rebuilt():
    model = tiny_model()
    attention = model.model.layers[1].self_attn
    attention.register_forward_hook(lambda module, inputs, output: (2 * output[0], output[1]))
    return model


OTHERS = {
    "bloom": lambda: other_model("bloom", **SIZES),
    "mistral": lambda: other_model("mistral", **SIZES, num_key_value_heads=1, intermediate_size=24, sliding_window=4),
    "a family member with windows": windowed,
    "a family member that was rebuilt": rebuilt,
}


@pytest.mark.parametrize("kind", OTHERS)
@torch.no_grad()
def test_other_architectures_take_the_librarys_way(kind):
    model = OTHERS[kind]()
    decoder = decoder_of(model, steps=6)
    assert type(decoder) is Decoder
    assert_right(model, decoder)


def test_a_model_that_forgets_is_refused():
    model = other_model("mamba", hidden_size=16, num_hidden_layers=2, state_size=4)
    with pytest.raises(WorkbenchError, match="MambaForCausalLM says other things token by token"):
        decoder_of(model, steps=6)
