"""What is read off models: log-probabilities, values, rewards.

Everything takes `Sequences`: position ids come from the attention mask, so a row means the same alone or padded.
"""

import torch
from torch import Tensor, nn

from workbench.records import Sequences

PAD_LOGIT = -1e9  # padding can not be said; finite, so that p log p stays 0 and not NaN


def position_ids(attention_mask: Tensor) -> Tensor:
    """0, 1, 2, ... over the attended tokens of each row, 0 on the padding before them; (B, T)."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def completion_logits(model, sequences: Sequences, *, temperature: float = 1.0) -> Tensor:
    """Logits over the next token at every completion position, (B, R, V) fp32, divided by `temperature`."""
    logits = model(
        input_ids=_clean(model, sequences),
        attention_mask=sequences.attention_mask,
        position_ids=position_ids(sequences.attention_mask),
        use_cache=False,
        logits_to_keep=sequences.completion_mask.shape[1] + 1,  # one earlier: the logits that predict the first token
    ).logits[:, :-1]
    return ban_padding(logits.float() / temperature, model.config.pad_token_id)


def ban_padding(logits: Tensor, pad_token_id: int) -> Tensor:
    """The same logits with padding impossible; sampling and scoring both use this, so that they agree."""
    is_pad = torch.arange(logits.shape[-1], device=logits.device) == pad_token_id
    return logits.masked_fill(is_pad, PAD_LOGIT)


def token_logprobs(logits: Tensor, sequences: Sequences) -> Tensor:
    """Log-probability of every completion token, (B, R) nats, 0 where not counted; `logits` (B, R, V)."""
    tokens = sequences.completions.masked_fill(~sequences.completion_mask, 0)
    chosen = logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(-1)
    return torch.where(sequences.completion_mask, chosen, 0)


def completion_logprobs(model, sequences: Sequences, *, temperature: float = 1.0) -> Tensor:
    """Log-probability of every completion token under `model` at `temperature`, (B, R) nats, 0 where not counted."""
    return token_logprobs(completion_logits(model, sequences, temperature=temperature), sequences)


def completion_values(critic, sequences: Sequences) -> Tensor:
    """The critic's value before every completion token, (B, R) in reward units, 0 where not counted."""
    values = critic(
        input_ids=_clean(critic, sequences),
        attention_mask=sequences.attention_mask,
        position_ids=position_ids(sequences.attention_mask),
        use_cache=False,
    ).logits[..., 0]
    return torch.where(sequences.completion_mask, values[:, sequences.prompt_length - 1 : -1].float(), 0)


def sequence_rewards(reward_model, sequences: Sequences) -> Tensor:
    """The reward model's raw output at the last counted token of each row, (B,) fp32.

    The class itself takes the last token that differs from the padding id, so its head is applied here by the mask.
    """
    mask = sequences.attention_mask
    hidden = reward_model.base_model(
        input_ids=_clean(reward_model, sequences), attention_mask=mask, position_ids=position_ids(mask), use_cache=False
    ).last_hidden_state
    last = (torch.arange(mask.shape[1], device=mask.device) * mask).argmax(1)
    return scalar_head(reward_model)(hidden[torch.arange(len(last), device=mask.device), last])[:, 0].float()


def _clean(model, sequences: Sequences) -> Tensor:
    """The tokens with the padding id in every slot that the mask leaves out, whatever stood there."""
    return sequences.tokens.masked_fill(~sequences.attention_mask, model.config.pad_token_id)


def scalar_head(model) -> nn.Linear:
    """The last layer of a sequence or token classifier, under either of its two usual names."""
    return model.score if hasattr(model, "score") else model.classifier
