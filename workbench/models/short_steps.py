"""A step of one token through the layers of known families, without what the library does for every other purpose.

Each takes a model's layers and the number of positions, and gives a function of tokens and positions (n,) and of what
attention sees, `attend(layer, query, new, scaling)`, to the last hidden states (n, width). It reads the weights as they
are when it is made.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

LARGE = 2**21  # weights: matrices of more together are not copied to be joined


def gpt2_step(base, slots: int) -> Callable:
    """GPT-2: learned positions, one projection for queries, keys and values."""
    layers = [_gpt2_layer(number, block) for number, block in enumerate(base.h)]

    def step(tokens: Tensor, positions: Tensor, attend: Callable) -> Tensor:
        states = base.wte(tokens) + base.wpe(positions)
        for layer in layers:
            states = layer(states, attend)
        return base.ln_f(states)

    return step


def _gpt2_layer(number: int, block) -> Callable:
    attention, feed_forward = block.attn, block.mlp
    project, out = _joined(attention.c_attn), _joined(attention.c_proj)
    widen, narrow = _joined(feed_forward.c_fc), _joined(feed_forward.c_proj)
    shape, scaling = (-1, 3, attention.num_heads, attention.head_dim), attention.scaling
    first_norm, second_norm, activation = block.ln_1, block.ln_2, feed_forward.act

    def layer(states: Tensor, attend: Callable) -> Tensor:
        parts = project(first_norm(states)).view(shape)
        states = states + out(attend(number, parts[:, 0], parts[:, 1:], scaling))
        return states + narrow(activation(widen(second_norm(states))))

    return layer


def llama_step(base, slots: int) -> Callable:
    """Llama and Qwen2: rotated queries and keys, gated feed-forward."""
    layers = [_llama_layer(number, block) for number, block in enumerate(base.layers)]
    positions = torch.arange(slots, device=base.embed_tokens.weight.device)
    cosines, sines = (part[0] for part in base.rotary_emb(base.embed_tokens.weight, positions[None]))  # (slots, d)
    first, second = sines.chunk(2, 1)
    sines, norm = torch.cat([-first, second], 1), _rms_norm(base.norm)

    def step(tokens: Tensor, positions: Tensor, attend: Callable) -> Tensor:
        states, cosine, sine = base.embed_tokens(tokens), cosines[positions, None], sines[positions, None]
        for layer in layers:
            states = layer(states, cosine, sine, attend)
        return norm(states)

    return step


def _llama_layer(number: int, block) -> Callable:
    attention, feed_forward = block.self_attn, block.mlp
    project, out = _joined(attention.q_proj, attention.k_proj, attention.v_proj), _joined(attention.o_proj)
    widen, narrow = _joined(feed_forward.gate_proj, feed_forward.up_proj), _joined(feed_forward.down_proj)
    first_norm, second_norm = _rms_norm(block.input_layernorm), _rms_norm(block.post_attention_layernorm)
    width, groups, scaling = attention.head_dim, attention.num_key_value_groups, attention.scaling
    activation = feed_forward.act_fn

    def layer(states: Tensor, cosine: Tensor, sine: Tensor, attend: Callable) -> Tensor:
        parts = project(first_norm(states)).unflatten(1, (groups + 2, -1, width))  # of queries `groups`, keys, values
        turned = parts[:, :-1]
        turned.copy_(torch.addcmul(turned * cosine[:, None], turned.roll(width // 2, -1), sine[:, None]))
        states = states + out(attend(number, parts[:, :-2].flatten(1, 2), parts[:, -2:], scaling))
        gate, up = widen(second_norm(states)).chunk(2, -1)
        return states + narrow(activation(gate) * up)

    return layer


def _rms_norm(norm) -> Callable:
    """Root-mean-square normalisation in one operation."""
    weight, eps = norm.weight, norm.variance_epsilon
    shape = weight.shape
    return lambda states: torch.rms_norm(states, shape, weight, eps)


def _joined(*modules) -> Callable:
    """The outputs of linear modules side by side: where they are plain and small by one product, without a detour."""
    plain = all(type(part) in (nn.Linear, Conv1D) for part in modules)
    if not plain or any(part._forward_hooks or part._forward_pre_hooks for part in modules):
        return lambda states: torch.cat([part(states) for part in modules], -1)
    weights, biases = [part.weight for part in modules], [part.bias for part in modules]
    if type(modules[0]) is Conv1D:
        return lambda states: torch.addmm(biases[0], states, weights[0])
    if len(modules) > 1 and sum(weight.numel() for weight in weights) > LARGE:
        return lambda states: torch.cat([F.linear(states, *part) for part in zip(weights, biases, strict=True)], -1)
    weight = torch.cat(weights) if len(modules) > 1 else weights[0]
    bias = None if biases[0] is None else torch.cat(biases)
    return lambda states: F.linear(states, weight, bias)


FAMILIES = {"gpt2": gpt2_step, "llama": llama_step, "qwen2": llama_step}
