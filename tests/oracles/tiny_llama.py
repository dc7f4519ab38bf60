"""A Llama of a few hundred weights and a tokenizer of ten words that any version of the libraries builds alike."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ["<pad>", "<eos>", "a", "b", "c", "d", "e", "f", "g", "h"]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One id per word."""
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def waved_llama(phase: float) -> LlamaForCausalLM:
    """One layer of width 8, with weights that follow a sine."""
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return waved(LlamaForCausalLM(config), phase)


def waved_llama_with_padding(phase: float) -> LlamaForCausalLM:
    """The same model with an eleventh word as padding, where a model is kept from saying its padding."""
    narrow = waved_llama(phase)
    config = LlamaConfig(**narrow.config.to_dict() | {"vocab_size": len(WORDS) + 1, "pad_token_id": len(WORDS)})
    model, weights = LlamaForCausalLM(config), narrow.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.cat([weights[name], torch.zeros(1, config.hidden_size)])
    model.load_state_dict(weights)
    return model


def waved(model, phase: float):
    """The model with weights that follow a sine from `phase` on."""
    with torch.no_grad():
        for index, (_, parameter) in enumerate(sorted(model.named_parameters())):
            count = torch.arange(parameter.numel(), dtype=torch.float64)
            parameter.copy_((0.4 * torch.sin(1.7 * count + index + phase)).reshape(parameter.shape))
    return model
