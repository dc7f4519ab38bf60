"""What is read off models: log-probabilities, values, hidden states.

Everything takes `Sequences`, and computes only what is read: no padding where it can be helped, a shared prompt once,
the head where its output counts (`layouts`). A row means the same alone or beside others, to rounding.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from workbench.losses.policy import exact_kl
from workbench.models.computing import computed, in_bf16
from workbench.models.layouts import Layout, layout_of
from workbench.records import Sequences

Reader = Callable[[Tensor, slice], Tensor]

LOGITS_AT_ONCE = 2**24  # numbers over the vocabulary that are held at a time: 64 MiB
STATES_AT_ONCE = 2**25  # tokens times width that one pass reads where nothing is learned from it
BANNED_LOGIT = -1e9  # of what can not be said; finite, so that p log p stays 0 and not NaN


def position_ids(attention_mask: Tensor) -> Tensor:
    """0, 1, 2, ... over the attended tokens of each row, 0 on the padding before them; (B, T)."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


@dataclass(frozen=True)
class Predictions:
    """Logits over the next token at N places, made of hidden states when they are read, and never all there."""

    states: Tensor  # (N, d), what the head is given
    logits_of: Callable[[Tensor, slice], Tensor]  # some of the states, which ones they are -> their logits, (n, V) fp32

    def __len__(self) -> int:
        return len(self.states)

    def logits(self, rows: slice = slice(None)) -> Tensor:
        """Those of some places, (n, V) fp32."""
        return self.logits_of(self.states[rows], rows)

    def read(self, *readers: Reader) -> tuple[Tensor, ...]:
        """What each reader makes of the logits, (N,) each: `reader(logits (n, V), rows)` is given a few at a time.

        Beyond LOGITS_AT_ONCE numbers the backward pass makes them once more instead of keeping them.
        """
        size = max(1, LOGITS_AT_ONCE // self.logits_of(self.states[:0], slice(0)).shape[1])
        if len(self) <= size:
            return self._read(readers, self.states, slice(None))
        parts = []
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            parts.append(
                checkpoint(self._read, readers, self.states[rows], rows, use_reentrant=False, preserve_rng_state=False)
            )
        return tuple(map(torch.cat, zip(*parts, strict=True)))

    def _read(self, readers: tuple[Reader, ...], states: Tensor, rows: slice) -> tuple[Tensor, ...]:
        logits = self.logits_of(states, rows)
        return tuple(reader(logits, rows) for reader in readers)


def chosen(tokens: Tensor) -> Reader:
    """Reads the log-probability of `tokens` (N,), nats."""
    return lambda logits, rows: -F.cross_entropy(logits, tokens[rows], reduction="none")


def kl_from(reference: Predictions) -> Reader:
    """Reads KL(policy || reference) over the whole vocabulary, nats; `reference` says it of the same places."""

    def read(logits: Tensor, rows: slice) -> Tensor:
        with torch.no_grad():
            reference_logits = reference.logits(rows)
        return exact_kl(logits, reference_logits)

    return read


def predictions(
    model, sequences: Sequences, *, temperature: float = 1.0, group_size: int = 1, allowed: Tensor | None = None
) -> Predictions:
    """What `model` says of the next token at the N counted completion positions, divided by `temperature`.

    Row by row, as `completion_mask` indexes; `spread` puts what is read of them back in place. `group_size` G says that
    rows i*G to i*G+G-1 have the same prompt: it is then computed once. `allowed` (B, R, V) bool makes all other tokens
    impossible, where it is not empty.
    """
    kept = allowed[sequences.completion_mask] if allowed is not None and allowed.numel() else None
    states, head = _states(model, model.get_output_embeddings(), sequences, group_size)

    def logits_of(some: Tensor, rows: slice) -> Tensor:
        logits = head(some).float()
        logits = ban_unsayable(logits if temperature == 1 else logits / temperature, model.config)
        return logits if kept is None else logits.masked_fill(~kept[rows], BANNED_LOGIT)

    return Predictions(states, logits_of)


def ban_unsayable(logits: Tensor, config) -> Tensor:
    """The same logits with padding, control tokens and rows without a word impossible, in sampling as in scoring."""
    banned = [config.pad_token_id, *getattr(config, "control_token_ids", ()), *getattr(config, "wordless_ids", ())]
    return logits.index_fill(-1, torch.tensor(banned, device=logits.device), BANNED_LOGIT)


def spread(counted: Tensor, sequences: Sequences) -> Tensor:
    """Values of the N counted completion positions (N, ...) in their places, (B, R, ...), 0 elsewhere."""
    mask = sequences.completion_mask
    if len(counted) == mask.numel():
        return counted.unflatten(0, mask.shape)
    return counted.new_zeros(*mask.shape, *counted.shape[1:]).index_put((mask,), counted)


def completion_logprobs(model, sequences: Sequences, *, temperature: float = 1.0, group_size: int = 1) -> Tensor:
    """Log-probability of every completion token under `model` at `temperature`, (B, R) nats, 0 where not counted."""
    said = predictions(model, sequences, temperature=temperature, group_size=group_size)
    return spread(*said.read(chosen(sequences.counted)), sequences)


def completion_values(critic, sequences: Sequences, *, group_size: int = 1) -> Tensor:
    """The critic's value before every completion token, (B, R) in reward units, 0 where not counted."""
    states, head = _states(critic, scalar_head(critic), sequences, group_size)
    return spread(head(states)[:, 0].float(), sequences)


def completion_states(model, sequences: Sequences, *, group_size: int = 1) -> Tensor:
    """Last hidden states at the last prompt token and at every completion token, (B, R+1, d), 0 on padding."""
    read = F.pad(sequences.attention_mask[:, sequences.prompt_length :], (1, 0), value=True)
    layout = _layout(model, sequences, read, group_size)
    with computed(model):
        states = model.base_model(**layout.inputs, use_cache=False).last_hidden_state[layout.row, layout.slot]
    states = states.to(model.dtype)
    return states.new_zeros(*read.shape, states.shape[-1]).index_put((read,), states)


def scalar_head(model) -> nn.Linear:
    """The last layer of a sequence or token classifier, under either of its two usual names."""
    return model.score if hasattr(model, "score") else model.classifier


def states_at(model, head: nn.Module | None, inputs: dict[str, Tensor], places: tuple[Tensor, Tensor]):
    """What `head` is given at N places (rows, slots) of a model's `inputs`, (N, d), and what makes outputs of it.

    Where a model has no such head, or does to its outputs what is not known, (N, outputs) stand there as they are.
    """
    finish = _finishing(model, head)
    if finish is None:
        with computed(model):
            return model(**inputs, use_cache=False).logits[places], nn.Identity()
    kept = []
    hooked = head.register_forward_pre_hook(lambda module, given: kept.append(given[0][places]) or (kept[0][:0],))
    with hooked, computed(model):
        model(**inputs, use_cache=False)
    return kept[0].to(model.dtype), lambda states: finish(head(states))


def _states(model, head: nn.Module | None, sequences: Sequences, group_size: int):
    """`states_at` before each counted completion token; without a gradient, some of the rows after others."""
    size = len(sequences)
    if not torch.is_grad_enabled():
        width = sequences.tokens.shape[1] * model.get_input_embeddings().embedding_dim
        size = max(1, STATES_AT_ONCE // (width * group_size)) * group_size
    parts = [sequences.rows(slice(start, start + size)) for start in range(0, len(sequences), size)]
    layouts = [_layout(model, part, F.pad(part.completion_mask, (0, 1)), group_size) for part in parts]
    found = [states_at(model, head, layout.inputs, (layout.row, layout.slot)) for layout in layouts]
    return found[0][0] if len(found) == 1 else torch.cat([states for states, _ in found]), found[0][1]


def _layout(model, sequences: Sequences, read: Tensor, group_size: int) -> Layout:
    longest = int(sequences.attention_mask.sum(1).max())
    settings = {"width": model.get_input_embeddings().embedding_dim, "dtype": model.dtype}
    return layout_of(sequences, read, group_size=group_size, trees=_reads_trees(model, longest), **settings)


_TREE_READERS: WeakKeyDictionary = WeakKeyDictionary()  # model -> what a trial has shown


def _reads_trees(model, longest: int) -> bool:
    """Whether `model` obeys masks and position ids to the letter, so that a sequence may share its row with others.

    A window that hides what is far away lies over plain rows only: sequences must be shorter. Nor is a model with
    dropout tried.
    """
    windows = (getattr(model.config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    if model.training or any(window is not None and window < longest for window in windows):
        return False
    if model not in _TREE_READERS:
        _TREE_READERS[model] = _trial(model)
    return _TREE_READERS[model]


@torch.no_grad()
def _trial(model) -> bool:
    """Whether the states of three tokens after each of two prompts are the same in a tree as in plain rows."""
    embeddings = model.get_input_embeddings()
    tokens = torch.arange(6 * 10, device=model.device).view(6, 10) % embeddings.num_embeddings
    tokens[:, :7] = tokens[:, :7].view(2, 3, 7)[:, :1].expand(2, 3, 7).flatten(0, 1)
    attended = torch.ones_like(tokens, dtype=torch.bool)
    attended[:3, :2] = attended[::2, 8:] = False
    sequences = Sequences(tokens=tokens, attention_mask=attended, completion_mask=attended[:, 7:])
    read = F.pad(sequences.completion_mask, (1, 0), value=True)
    found = []
    for trees in (False, True):
        layout = layout_of(
            sequences, read, group_size=3, trees=trees, width=embeddings.embedding_dim, dtype=model.dtype
        )
        try:
            with computed(model):
                found.append(model.base_model(**layout.inputs, use_cache=False)[0][layout.row, layout.slot])
        except Exception:  # whatever another architecture makes of such a mask, plain rows remain
            return False
    exact = model.dtype == torch.float32 and not in_bf16(model)
    near = (1e-3 if exact else 5e-2) * found[0].abs().max().item()
    return torch.allclose(*found, rtol=0, atol=near)


_FINISHES: WeakKeyDictionary = WeakKeyDictionary()  # head -> what its model makes of its outputs


def _finishing(model, head: nn.Module | None) -> Callable[[Tensor], Tensor] | None:
    """What `model` does to the outputs of its head: nothing, a factor, or a soft cap; None if that cannot be told."""
    if head is None or model.training:  # dropout would draw
        return None
    if head not in _FINISHES:
        _FINISHES[head] = _tried_finish(model, head)
    return _FINISHES[head]


@torch.no_grad()
def _tried_finish(model, head: nn.Module) -> Callable[[Tensor], Tensor] | None:
    raw = []
    with head.register_forward_hook(lambda module, given, output: raw.append(output)):
        tokens = torch.arange(1, 5, device=model.device)[None] % model.get_input_embeddings().num_embeddings
        with computed(model):
            logits = model(input_ids=tokens, use_cache=False).logits
    if len(raw) != 1:
        return None
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    factor = (logits.double() * raw[0]).sum() / (raw[0].double() ** 2).sum()
    tried = [nn.Identity(), functools.partial(torch.mul, other=factor.item())]
    if cap:  # first: rounded, small logits look as they would without it
        tried.insert(0, lambda given: cap * torch.tanh(given / cap))
    near = (1e-5 if logits.dtype == torch.float32 else 1e-2) * logits.abs().max()
    if not near.isfinite():
        return None
    return next((finish for finish in tried if (finish(raw[0]) - logits).abs().max() <= near), None)
