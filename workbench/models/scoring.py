"""What is read off models: log-probabilities, values, hidden states.

Everything takes `Sequences`, and computes only what is read: no padding where it can be helped, a shared prompt once,
the head where its output counts (`layouts`). A row means the same alone or beside others, to rounding.
"""

from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.models.layouts import Layout, layout_of
from workbench.records import Sequences

BANNED_LOGIT = -1e9  # of what can not be said; finite, so that p log p stays 0 and not NaN


def position_ids(attention_mask: Tensor) -> Tensor:
    """0, 1, 2, ... over the attended tokens of each row, 0 on the padding before them; (B, T)."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def counted_logits(model, sequences: Sequences, *, temperature: float = 1.0, group_size: int = 1) -> Tensor:
    """Logits over the next token at the N counted completion positions, (N, V) fp32, divided by `temperature`.

    Row by row, as `completion_mask` indexes; `spread` puts what is made of them back in place. `group_size` G says that
    rows i*G to i*G+G-1 have the same prompt: it is then computed once.
    """
    logits = _head_outputs(model, model.get_output_embeddings(), sequences, group_size).float()
    return ban_unsayable(logits if temperature == 1 else logits / temperature, model.config)


def completion_logits(model, sequences: Sequences, *, temperature: float = 1.0, group_size: int = 1) -> Tensor:
    """Logits over the next token at every completion position, (B, R, V) fp32, 0 where not counted."""
    return spread(counted_logits(model, sequences, temperature=temperature, group_size=group_size), sequences)


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


def token_logprobs(logits: Tensor, sequences: Sequences) -> Tensor:
    """Log-probability of every completion token, (B, R) nats, 0 where not counted; `logits` (B, R, V) or (N, V)."""
    mask = sequences.completion_mask
    counted = logits if logits.dim() == 2 else logits.flatten(0, 1) if mask.all() else logits[mask]
    return spread(-F.cross_entropy(counted, sequences.completions[mask], reduction="none"), sequences)


def completion_logprobs(model, sequences: Sequences, *, temperature: float = 1.0, group_size: int = 1) -> Tensor:
    """Log-probability of every completion token under `model` at `temperature`, (B, R) nats, 0 where not counted."""
    return token_logprobs(counted_logits(model, sequences, temperature=temperature, group_size=group_size), sequences)


def completion_values(critic, sequences: Sequences, *, group_size: int = 1) -> Tensor:
    """The critic's value before every completion token, (B, R) in reward units, 0 where not counted."""
    return spread(_head_outputs(critic, scalar_head(critic), sequences, group_size)[:, 0].float(), sequences)


def completion_states(model, sequences: Sequences, *, group_size: int = 1) -> Tensor:
    """Last hidden states at the last prompt token and at every completion token, (B, R+1, d), 0 on padding."""
    read = F.pad(sequences.attention_mask[:, sequences.prompt_length :], (1, 0), value=True)
    layout = _layout(model, sequences, read, group_size)
    states = model.base_model(**layout.inputs, use_cache=False).last_hidden_state[layout.row, layout.slot]
    return states.new_zeros(*read.shape, states.shape[-1]).index_put((read,), states)


def scalar_head(model) -> nn.Linear:
    """The last layer of a sequence or token classifier, under either of its two usual names."""
    return model.score if hasattr(model, "score") else model.classifier


def outputs_at(model, head: nn.Module | None, inputs: dict[str, Tensor], places: tuple[Tensor, Tensor]) -> Tensor:
    """What `model` says at N places (rows, slots) of its `inputs`, (N, outputs): its `head` is given those alone."""
    if head is None:
        return model(**inputs, use_cache=False).logits[places]
    with head.register_forward_pre_hook(lambda module, states: (states[0][places],)):
        return model(**inputs, use_cache=False).logits


def _head_outputs(model, head: nn.Module | None, sequences: Sequences, group_size: int) -> Tensor:
    """What `model` says before each counted completion token, (N, outputs)."""
    layout = _layout(model, sequences, F.pad(sequences.completion_mask, (0, 1)), group_size)
    return outputs_at(model, head, layout.inputs, (layout.row, layout.slot))


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
            found.append(model.base_model(**layout.inputs, use_cache=False)[0][layout.row, layout.slot])
        except Exception:  # whatever another architecture makes of such a mask, plain rows remain
            return False
    near = (1e-3 if model.dtype == torch.float32 else 5e-2) * found[0].abs().max().item()
    return torch.allclose(*found, rtol=0, atol=near)
