"""Models that are built from nothing: small enough for a CPU, and the two families of position encodings."""

from transformers import AutoConfig, PretrainedConfig

from workbench import WorkbenchError

PRESETS = {
    "llama-32x1": {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4},
    "llama-64x2": {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "llama-96x3": {"model_type": "llama", "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4},
    "qwen2-64x2": {"model_type": "qwen2", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gpt2-64x2": {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4},
}


def preset_config(preset: str, tokenizer, context: int) -> PretrainedConfig:
    """The configuration of PRESETS[preset] for `tokenizer`, `context` tokens; WorkbenchError for an unknown preset."""
    if preset not in PRESETS:
        raise WorkbenchError(f"There is no model preset {preset!r}: choose one of {', '.join(PRESETS)}.")
    if context < 2:
        raise WorkbenchError(f"context is {context}: give at least 2 tokens, one to read and one to predict.")
    sizes = dict(PRESETS[preset])
    family = sizes.pop("model_type")
    if family == "gpt2":
        sizes |= {"n_positions": context, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    else:
        sizes |= {"intermediate_size": sizes["hidden_size"] * 8 // 3 // 8 * 8, "max_position_embeddings": context}
        sizes |= {"num_key_value_heads": sizes["num_attention_heads"]}
    return AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        initializer_range=0.05,  # 1/sqrt(width) is .1-.125 at these widths; .02 trains several times more slowly
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **sizes,
    )
