"""What is read off models against plain unpadded passes, one row at a time: whatever is shared, packed or left out."""

from contextlib import contextmanager

import pytest
import torch
from tiny_models import (
    COMPLETIONS,
    EOS,
    FAMILIES,
    PAD,
    PROMPTS,
    assert_plain_logprobs,
    plain_next_logprobs,
    tiny_config,
    tiny_model,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from workbench import WorkbenchError
from workbench.models import scoring
from workbench.models.scoring import (
    chosen,
    completion_logprobs,
    completion_states,
    completion_values,
    kl_from,
    position_ids,
    predictions,
    scalar_head,
    spread,
)
from workbench.models.tokens import collate, collate_groups
from workbench.records import Sequences

GROUPS = [
    [[9, 10, EOS], [12, 13, 14, 15, EOS], [16, EOS], [5]],
    [[EOS], [16, 17, 18], [4, 4], [6, 7, 8, EOS]],
    [[5, 6, 7, 8, 9, 10, EOS], [11], [12, EOS], [13, 14]],
]


def padded(prompt, completion, *, left, right, garbage) -> Sequences:
    """One row with that much padding on both sides, the pad slots filled with `garbage` ids."""
    fill = torch.Generator().manual_seed(garbage)
    slots = torch.randint(0, 20, (left + right,), generator=fill).tolist() if garbage else [PAD] * (left + right)
    tokens = slots[:left] + prompt + completion + slots[left:]
    attends = [False] * left + [True] * len(prompt + completion) + [False] * right
    counts = [True] * len(completion) + [False] * right
    return Sequences(
        tokens=torch.tensor([tokens]), attention_mask=torch.tensor([attends]), completion_mask=torch.tensor([counts])
    )


def last_outputs(model, sequences: Sequences, *, group_size: int = 1) -> torch.Tensor:
    """The head's output at the last token of each row, (B,)."""
    states = completion_states(model, sequences, group_size=group_size)
    last = sequences.completion_mask.sum(1)
    return scalar_head(model)(states[torch.arange(len(states)), last])[:, 0]


def readers(family):
    """Everything that is read off a model, with a model to read it off."""
    return [
        (completion_logprobs, tiny_model(family)),
        (completion_values, tiny_model(family, auto=AutoModelForTokenClassification)),
        (last_outputs, tiny_model(family, auto=AutoModelForSequenceClassification)),
    ]


def slots_read(model) -> list[int]:
    """Filled with the slots of every later forward pass of the model."""
    counts = []
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: counts.append(inputs[0].numel()))
    return counts


def gradients(model, result) -> torch.Tensor:
    """Of a weighted sum of what was read, (number of weights,)."""
    model.zero_grad()
    (result * torch.linspace(-1, 1, result.numel()).view(result.shape)).sum().backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


# A row means the same alone or padded


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_are_those_of_plain_unpadded_passes(family):
    model = tiny_model(family)
    logprobs = completion_logprobs(model, collate(PROMPTS, COMPLETIONS, pad_id=PAD))
    assert_plain_logprobs(logprobs, model, PROMPTS, COMPLETIONS)


@pytest.mark.parametrize("garbage", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_what_it_holds_change_neither_logprobs_nor_values_nor_states(family, garbage):
    prompt, completion = PROMPTS[0], COMPLETIONS[1]
    with torch.no_grad():
        for read, model in readers(family):
            alone = read(model, padded(prompt, completion, left=0, right=0, garbage=0))[0]
            assert alone.abs().min() > 0
            for amount in range(8):
                row = read(model, padded(prompt, completion, left=amount, right=7 - amount, garbage=garbage))[0]
                counted = row[: len(completion)] if row.dim() else row
                torch.testing.assert_close(counted, alone, rtol=1e-5, atol=1e-5)
                assert row.dim() == 0 or row[len(completion) :].abs().sum() == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_those_before_each_token(family):
    critic = tiny_model(family, auto=AutoModelForTokenClassification)
    with torch.no_grad():
        values = completion_values(critic, collate(PROMPTS, COMPLETIONS, pad_id=PAD))
        for row, prompt, completion in zip(values, PROMPTS, COMPLETIONS, strict=True):
            for index, value in enumerate(row[: len(completion)].tolist()):
                seen = torch.tensor([prompt + completion[:index]])
                assert value == pytest.approx(critic(input_ids=seen).logits[0, -1, 0].item(), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_after_the_prompt_and_after_each_token(family):
    model = tiny_model(family)
    with torch.no_grad():
        states = completion_states(model, collate([*PROMPTS, [4]], [*COMPLETIONS, []], pad_id=PAD))
        assert states.shape == (4, 6, 16)
        for row, (prompt, completion) in enumerate(zip([*PROMPTS, [4]], [*COMPLETIONS, []], strict=True)):
            alone = model.base_model(input_ids=torch.tensor([prompt + completion])).last_hidden_state[0]
            counted = states[row, : len(completion) + 1]
            torch.testing.assert_close(counted, alone[len(prompt) - 1 :], rtol=1e-5, atol=1e-5)


def test_positions_count_attended_tokens():
    mask = torch.tensor([[0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]).bool()
    assert position_ids(mask).tolist() == [[0, 0, 0, 1, 2, 2], [0, 1, 2, 3, 4, 5]]


def test_padding_has_no_probability_and_the_rest_has_all_of_it():
    model, batch = tiny_model(), collate([PROMPTS[0]], [COMPLETIONS[0]], pad_id=PAD)
    chance = spread(predictions(model, batch).logits(), batch).softmax(-1)
    assert chance[..., PAD].max() == 0
    expected = plain_next_logprobs(model, PROMPTS[0] + COMPLETIONS[0][:1])[1:]
    torch.testing.assert_close(chance[0, 1].double().log()[1:], expected, rtol=1e-5, atol=1e-5)


def test_logprobs_of_a_half_precision_model_are_computed_in_fp32():
    model, batch = tiny_model().bfloat16(), collate([PROMPTS[0]], [COMPLETIONS[0]], pad_id=PAD)
    said = predictions(model, batch)
    (logprobs,) = said.read(chosen(batch.counted))
    assert said.logits().dtype == logprobs.dtype == torch.float32
    expected = said.logits().double().log_softmax(-1).gather(-1, batch.counted[:, None])[:, 0]
    torch.testing.assert_close(logprobs.double(), expected, rtol=1e-6, atol=1e-6)


def test_a_prompt_without_tokens_is_refused_by_its_row():
    batch = padded([4, 6], [7, EOS], left=1, right=0, garbage=0)
    batch.attention_mask[:, :3] = False
    with pytest.raises(WorkbenchError, match="Row 0 has a prompt of 0 tokens"):
        completion_logprobs(tiny_model(), batch)


# Logits only where they count


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_reads_the_counted_positions_alone(family):
    model, sizes = tiny_model(family), []
    batch = collate(PROMPTS, COMPLETIONS, pad_id=PAD)
    predictions(model, batch)  # what the model is like is tried once
    model.lm_head.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape)))
    said = predictions(model, batch)
    assert sizes == [(0, 20)]  # nothing is said before it is read
    said.read(chosen(batch.counted))
    assert sizes[-1] == said.logits().shape == (9, 20)


def test_spread_values_stand_where_they_were_counted():
    batch = collate(PROMPTS, COMPLETIONS, pad_id=PAD)
    assert spread(torch.arange(1.0, 10), batch).tolist() == [[1, 2, 3, 0, 0], [4, 5, 6, 7, 8], [9, 0, 0, 0, 0]]


# After EOS: nothing


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_after_eos_has_a_gradient(family):
    """The gradient of a batch is that of its rows alone, so padding adds nothing to it."""
    for read, model in readers(family):
        weight = torch.linspace(0.5, 1.5, 5)
        alone = 0
        for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
            row = read(model, padded(prompt, completion, left=0, right=0, garbage=0))
            model.zero_grad()
            (row * weight[: row.shape[-1]] if row.dim() == 2 else row).sum().backward()
            alone = alone + model.get_input_embeddings().weight.grad
        model.zero_grad()
        result = read(model, collate(PROMPTS, COMPLETIONS, pad_id=PAD))
        (result * weight if result.dim() == 2 else result).sum().backward()
        torch.testing.assert_close(model.get_input_embeddings().weight.grad, alone, rtol=1e-4, atol=1e-5)


# Logits that are never all there


@contextmanager
def rows_said(model):
    """Filled with the places of every use of the head."""
    rows = []
    with model.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(len(output))):
        yield rows


def said_of(model, reference, batch, **settings):
    """Log-probabilities, entropies and KL at counted tokens, and the gradient of a mixture of them."""
    readers = [chosen(batch.counted), lambda logits, rows: torch.distributions.Categorical(logits=logits).entropy()]
    readers.append(kl_from(predictions(reference, batch, **settings)))
    read = predictions(model, batch, **settings).read(*readers)
    model.zero_grad()
    sum(weight * (each * torch.linspace(0.5, 1, len(each))).sum() for weight, each in enumerate(read, 1)).backward()
    return torch.stack(read), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("at_once", [1, 20, 45, 100])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_few_logits_at_a_time_say_and_teach_what_all_of_them_do(family, at_once, monkeypatch):
    model, reference = (tiny_model(family, seed=seed) for seed in (0, 1))
    batch, allowed = collate(PROMPTS, COMPLETIONS, pad_id=PAD), torch.rand(3, 5, 20) < 0.9
    allowed |= torch.nn.functional.one_hot(batch.completions, 20).bool()
    for settings in ({}, {"temperature": 0.7, "allowed": allowed}):
        expected, gradient = said_of(model, reference, batch, **settings)
        with monkeypatch.context() as patch, rows_said(model) as rows:
            patch.setattr(scoring, "LOGITS_AT_ONCE", at_once)
            found, few = said_of(model, reference, batch, **settings)
        assert max(rows) == max(1, at_once // 20)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        assert (few - gradient).norm() <= 1e-6 * gradient.norm()


def test_rows_that_nothing_is_learned_from_are_read_some_after_others(monkeypatch):
    model, batch = tiny_model(), collate_groups([[4, 6, 7], [9], [10, 11]], GROUPS, pad_id=PAD)
    with torch.no_grad():
        expected, slots = completion_logprobs(model, batch, group_size=4), slots_read(model)
        monkeypatch.setattr(scoring, "STATES_AT_ONCE", 1)
        found = completion_logprobs(model, batch, group_size=4)
    assert len(slots) == 3 and completion_logprobs(model, batch, group_size=4).requires_grad  # a group is not parted
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gemma2", {"final_logit_softcapping": 2.0}),
        ("cohere", {"logit_scale": 0.3}),
        ("granite", {"logits_scaling": 7.0}),
        ("phi", {}),  # a head with a bias
    ],
)
def test_what_a_model_does_to_the_outputs_of_its_head_is_done_here(kind, settings):
    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": PAD, "eos_token_id": EOS}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **heads, **settings)).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30)
    batch = collate(PROMPTS, COMPLETIONS, pad_id=PAD)
    assert predictions(model, batch).states.shape == (9, 16)
    assert_plain_logprobs(completion_logprobs(model, batch), model, PROMPTS, COMPLETIONS)


def test_a_head_whose_outputs_are_changed_in_another_way_is_read_whole():
    class Odd(type(tiny_model())):
        def forward(self, *arguments, **named):
            said = super().forward(*arguments, **named)
            said.logits = said.logits**3
            return said

    model, batch = tiny_model(), collate(PROMPTS, COMPLETIONS, pad_id=PAD)
    plain = predictions(model, batch).logits()
    model.__class__ = Odd
    scoring._FINISHES.clear()
    words = torch.arange(20) != PAD
    torch.testing.assert_close(predictions(model, batch).logits()[:, words], plain[:, words] ** 3)


# A prompt that several completions share is computed once


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_shared_prompts_change_neither_what_is_read_nor_its_gradients(family, attention):
    batch = collate_groups([[4, 6, 7, 8, 9, 10, 11], [9], [10, 11, 4, 12, 13]], GROUPS, pad_id=PAD)
    for read, model in readers(family):
        model.set_attn_implementation(attention)
        apart = read(model, batch)
        slots, expected = slots_read(model), gradients(model, apart)
        read(model, batch)
        for group_size in (2, 4):
            together = read(model, batch, group_size=group_size)
            torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
            difference = gradients(model, together) - expected
            assert difference.norm() <= 1e-4 * expected.norm()
        assert max(slots[1:]) < slots[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_prompt_costs_what_it_costs_once(family):
    model, prompt = tiny_model(family), [4 + index % 16 for index in range(30)]
    completions = [[4 + index, 5 + index, EOS] for index in range(8)]
    completion_logprobs(model, collate([[4]], [[5]], pad_id=PAD))  # the trial
    slots = slots_read(model)
    logprobs = completion_logprobs(model, collate_groups([prompt], [completions], pad_id=PAD), group_size=8)
    assert slots == [30 + 8 * 2]  # the last token of a completion predicts nothing
    assert_plain_logprobs(logprobs, model, [prompt] * 8, completions)


def test_rows_that_are_no_groups_are_refused():
    batch = collate(PROMPTS, COMPLETIONS, pad_id=PAD)
    with pytest.raises(WorkbenchError, match="3 rows are no groups of 2"):
        completion_logprobs(tiny_model(), batch, group_size=2)
    with pytest.raises(WorkbenchError, match="group_size is 3 but the prompts within a group differ"):
        completion_logprobs(tiny_model(), batch, group_size=3)


# Short rows share a row


@pytest.mark.parametrize("family", FAMILIES)
def test_little_is_computed_on_padding_and_nothing_changes(family):
    model, source = tiny_model(family), torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 24, (40, 2), generator=source).tolist()
    rows = [[torch.randint(4, 20, (size,), generator=source).tolist() for size in pair] for pair in sizes]
    prompts, completions = map(list, zip(*rows, strict=True))
    completion_logprobs(model, collate([[4]], [[5]], pad_id=PAD))  # the trial
    slots = slots_read(model)
    logprobs = completion_logprobs(model, collate(prompts, completions, pad_id=PAD))
    needed = sum(map(sum, sizes)) - len(sizes)
    assert needed <= slots[0] <= 1.1 * needed
    assert_plain_logprobs(logprobs[::7], model, prompts[::7], completions[::7])


# Any causal model


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.4}
GROUPED_HEADS = {**SIZES, "num_key_value_heads": 1, "intermediate_size": 24}
OTHERS = {
    "bloom": SIZES,  # positions by distance in the row: no trees
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},  # recurrent: no attention at all
    "mistral": {**GROUPED_HEADS, "sliding_window": 4},
    "gemma2": {**GROUPED_HEADS, "head_dim": 8, "final_logit_softcapping": 3.0},
    "opt": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24, "init_std": 0.4}
    | {"word_embed_proj_dim": 16, "max_position_embeddings": 48},
}


@pytest.mark.parametrize("family", OTHERS)
def test_other_architectures_read_the_same_shared_or_not(family):
    special = {"pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": EOS, "vocab_size": 20}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **special, **OTHERS[family])).eval()
    logprobs = completion_logprobs(model, collate_groups(PROMPTS, GROUPS, pad_id=PAD), group_size=4)
    prompts = [prompt for prompt in PROMPTS for _ in range(4)]
    assert_plain_logprobs(logprobs, model, prompts, [completion for group in GROUPS for completion in group])


@pytest.mark.parametrize("obedience", ["deaf", "refusing"])
def test_a_model_that_does_not_obey_a_mask_is_given_plain_rows(obedience):
    model, read = tiny_model(), tiny_model().model.forward
    batch = collate_groups(PROMPTS, GROUPS, pad_id=PAD)
    expected = completion_logprobs(tiny_model(), batch)

    def forward(*, attention_mask=None, **named):
        if attention_mask is not None and obedience == "refusing":
            raise NotImplementedError("no such mask")
        return read(**named)

    model.model.forward = forward
    torch.testing.assert_close(completion_logprobs(model, batch, group_size=4), expected, rtol=1e-5, atol=1e-5)


def test_a_model_with_dropout_is_not_tried_and_reads_plain_rows():
    config = tiny_config("gpt2")
    model, batch = AutoModelForCausalLM.from_config(config).train(), collate_groups(PROMPTS, GROUPS, pad_id=PAD)
    slots = slots_read(model)
    completion_logprobs(model, batch, group_size=4)
    assert len(slots) == 1 and slots[0] % 12 == 0
