"""Token by token against passes over whole rows, the short way and the library's."""

import pytest
import torch
from tiny_models import EOS, FAMILIES, PAD, tiny_config, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from workbench import WorkbenchError
from workbench.models import add_lora
from workbench.models.decoding import Decoder, ShortDecoder, decoder_of

PROMPTS = torch.tensor([[PAD, PAD, 9], [4, 6, 7], [PAD, 10, 11]])
MASK = torch.tensor([[False, False, True], [True, True, True], [False, True, True]])
INDEX = [1, 0, 2, 1, 0, 1]
SPECIAL = {"pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": EOS, "vocab_size": 20}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.4}


def other_model(family, **sizes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SPECIAL, **sizes)).eval()


def said(decoder, seed: int = 0) -> tuple[list[torch.Tensor], list[list[list[int]]]]:
    """Logits of every step of a run in which rows leave at random, and the rows that they follow."""
    source = torch.Generator().manual_seed(seed)
    rows = [PROMPTS[place][MASK[place]].tolist() for place in INDEX]
    logits, read = [decoder.read_prompts(PROMPTS, MASK, torch.tensor(INDEX))], [rows]
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
    for logits, rows in zip(*said(decoder), strict=True):
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


@pytest.mark.parametrize("family", ["bloom", "mistral"])
@torch.no_grad()
def test_other_architectures_take_the_librarys_way(family):
    more = {"num_key_value_heads": 1, "intermediate_size": 24, "sliding_window": 4} if family == "mistral" else {}
    model = other_model(family, **SIZES, **more)
    decoder = decoder_of(model, steps=6)
    assert type(decoder) is Decoder
    assert_right(model, decoder)


@torch.no_grad()
def test_a_family_member_with_windows_takes_the_librarys_way():
    config = tiny_config("qwen2")
    config.sliding_window, config.layer_types = 4, ["sliding_attention", "full_attention"]
    model = AutoModelForCausalLM.from_config(config).eval()
    decoder = decoder_of(model, steps=6)
    assert type(decoder) is Decoder
    assert_right(model, decoder)


@torch.no_grad()
def test_a_family_member_that_was_rebuilt_takes_the_librarys_way():
    model = tiny_model()
    attention = model.model.layers[1].self_attn
    attention.register_forward_hook(lambda module, inputs, output: (2 * output[0], output[1]))
    decoder = decoder_of(model, steps=6)
    assert type(decoder) is Decoder
    assert_right(model, decoder)


def test_a_model_that_forgets_is_refused():
    model = other_model("mamba", hidden_size=16, num_hidden_layers=2, state_size=4)
    with pytest.raises(WorkbenchError, match="MambaForCausalLM says other things token by token"):
        decoder_of(model, steps=6)
