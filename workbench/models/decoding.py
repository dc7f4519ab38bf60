"""One token after another with a memory of keys and values: what a model says next, for rows that come and go.

`decoder_of` takes the short way where it knows one: for two families of models a step through the model's own layers,
without what the library does around them for every other purpose, and with a memory that is allocated once. Either way
is tried when a model is first used, against passes over whole rows.
"""

from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from workbench import WorkbenchError
from workbench.models.scoring import position_ids
from workbench.models.short_steps import FAMILIES


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
