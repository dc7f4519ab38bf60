"""One token after another with a memory of keys and values: what a model says next, for rows that come and go.

`decoder_of` takes the short way where it knows one: for two families of models a step through the model's own layers,
without what the library does around them for every other purpose, and with a memory that is allocated once. Either way
is tried when a model is first used, against passes over whole rows.
"""

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.pytorch_utils import Conv1D

from workbench import WorkbenchError
from workbench.models.scoring import position_ids


class Decoder:
    """The library's own forward pass and cache."""

    def __init__(self, model, *, steps: int):
        self.model, self.steps = model, steps  # tokens that will be read after the prompts, at most
        self.cache = DynamicCache(config=model.config)

    def read_prompts(self, prompts: Tensor, mask: Tensor, index: Tensor) -> Tensor:
        """Logits (n, V) after prompts (U, P), left-padded: row i goes on from prompt `index[i]`."""
        self.mask, self.positions = mask[index], position_ids(mask)[index, -1]
        logits = self._forward(prompts, mask, position_ids(mask))
        self.cache.reorder_cache(index)
        return logits[index]

    def read(self, tokens: Tensor) -> Tensor:
        """Logits after one more token of each row, (n,) -> (n, V)."""
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)
        self.positions = self.positions + 1
        return self._forward(tokens[:, None], self.mask, self.positions[:, None])

    def keep(self, order: Tensor) -> None:
        """Go on with these rows; `order` (m,) holds i at place i but for those that fill the places of others."""
        self.cache.reorder_cache(order)
        self.mask, self.positions = self.mask[order], self.positions[order]

    def _forward(self, tokens: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        read = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions}
        return self.model(**read, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits[:, -1]


class ShortDecoder(Decoder):
    """A step through the layers of a known family, with (2, n, heads, slots, d) of memory per layer."""

    def read_prompts(self, prompts: Tensor, mask: Tensor, index: Tensor) -> Tensor:
        self.positions, self.end = position_ids(mask)[index, -1], prompts.shape[1]
        logits = self._forward(prompts, mask, position_ids(mask))
        self.memory = [self._grown(layer.keys, layer.values, index) for layer in self.cache.layers]
        del self.cache
        hidden = torch.zeros(mask.shape, dtype=self.model.dtype, device=mask.device)
        hidden = hidden.masked_fill(~mask, torch.finfo(hidden.dtype).min)[index, None]
        self.hidden = None if mask.all() else F.pad(hidden, (0, self.steps))  # (n, 1, slots)
        self.step = FAMILIES[self.model.config.model_type](_base(self.model), self.end + self.steps)
        return logits[index]

    @torch.inference_mode()
    def read(self, tokens: Tensor) -> Tensor:
        self.positions, self.end = self.positions + 1, self.end + 1
        return self.model.get_output_embeddings()(self.step(tokens, self.positions, self.attend))

    def keep(self, order: Tensor) -> None:
        count = len(order)
        moved = (order != torch.arange(count, device=order.device)).nonzero()[:, 0]
        for part in self.memory:
            part[:, moved, :, : self.end] = part[:, order[moved], :, : self.end]
        self.memory = [part[:, :count] for part in self.memory]
        self.positions = self.positions[order]
        self.hidden = self.hidden if self.hidden is None else self.hidden[order]

    def attend(self, layer: int, query: Tensor, new: Tensor, scaling: float) -> Tensor:
        """What each row's new token sees in its row, (n, heads * d): `query` (n, heads, d), `new` (n, 2, heads, d).

        The new keys and values are remembered.
        """
        memory, count = self.memory[layer], query.shape[0]
        memory[:, :, :, self.end - 1] = new.transpose(0, 1)
        keys, values = memory.flatten(1, 2)[:, :, : self.end].unbind()  # (n * heads, T, d) each
        scores = torch.bmm((query * scaling).view(keys.shape[0], -1, keys.shape[2]), keys.transpose(1, 2))
        if self.hidden is not None:
            scores = (scores.view(count, -1, self.end) + self.hidden[..., : self.end]).view_as(scores)
        return torch.bmm(scores.softmax(-1, dtype=torch.float32).to(values.dtype), values).view(count, -1)

    def _grown(self, keys: Tensor, values: Tensor, index: Tensor) -> Tensor:
        """Keys and values of the prompts, (U, heads, P, d), for every row and with room for all steps."""
        grown = keys.new_empty(2, len(index), keys.shape[1], self.end + self.steps, keys.shape[3])
        grown[0, :, :, : self.end], grown[1, :, :, : self.end] = keys[index], values[index]
        return grown


_CHOSEN: WeakKeyDictionary = WeakKeyDictionary()  # model -> the decoder that a trial has shown to be right


def decoder_of(model, *, steps: int) -> Decoder:
    """The quickest decoder that is right for `model`, for prompts that at most `steps` tokens follow.

    A model with dropout can not be tried. Raises WorkbenchError for one that does not go on from what it remembers.
    """
    if model.training:
        return Decoder(model, steps=steps)
    if model not in _CHOSEN:
        right = [kind for kind in _candidates(model) if _reads_as_at_once(model, kind)]
        if not right:
            raise WorkbenchError(
                f"{type(model).__name__} says other things token by token than at once: choose another architecture."
            )
        _CHOSEN[model] = right[0]
    return _CHOSEN[model](model, steps=steps)


def _candidates(model) -> list[type[Decoder]]:
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    growing = (getattr(model.config, "rope_parameters", None) or {}).get("rope_type") in ("dynamic", "longrope")
    known = model.config.model_type in FAMILIES and kinds == {"full_attention"} and not growing
    return [ShortDecoder, Decoder] if known else [Decoder]


@torch.no_grad()
def _reads_as_at_once(model, kind: type[Decoder]) -> bool:
    """Whether a trial with padding, equal prompts and rows that leave gives the logits of plain, unpadded passes."""
    words = torch.arange(9, device=model.device) % model.get_input_embeddings().num_embeddings
    prompts, mask = words[:6].view(2, 3), torch.tensor([[False, False, True], [True] * 3], device=model.device)
    index, order = torch.tensor([[1, 0, 1], [0, 2, 2]], device=model.device)
    decoder, near = kind(model, steps=2), 1e-3 if model.dtype == torch.float32 else 5e-2
    rows = [prompts[place][mask[place]] for place in index]
    try:
        found = [decoder.read_prompts(prompts, mask, index), decoder.read(words[6:])]
        decoder.keep(order[:2])
        found.append(decoder.read(words[:2]))
    except Exception:  # of a model that was built from other parts than its family's, or knows no such memory
        return False
    longer = [torch.cat([row, words[6 + place, None]]) for place, row in enumerate(rows)]
    last = [torch.cat([longer[place], words[step, None]]) for step, place in enumerate(order[:2])]
    expected = torch.stack([model(input_ids=row[None]).logits[0, -1] for row in [*rows, *longer, *last]])
    return torch.allclose(torch.cat(found), expected, rtol=0, atol=near * expected.abs().max().item())


def _base(model):
    """The layers of a causal LM, whether or not adapters are laid over them."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return plain.base_model


# --- A step of one token through the layers of known families, without what the library does for every other purpose.
#
# Each takes a model's layers and the number of positions, and gives a function of tokens and positions (n,) and
# of what attention sees, `attend(layer, query, new, scaling)`, to the last hidden states (n, width). It reads the
# weights as they are when it is made.


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
