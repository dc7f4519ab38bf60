"""Batched sampling with a key-value cache: prompts in, `Rollout` out.

On-policy sampling has one knob, the temperature. Top-k, top-p, minimal lengths and repetition penalties are left out on
purpose: they change the distribution that was sampled from, and every ratio and KL afterwards would be wrong. For the
same reason a model's own generation settings are ignored, apart from its EOS ids.
"""

import torch
from torch import Tensor
from transformers import DynamicCache

from workbench.errors import WorkbenchError
from workbench.records import PromptExample, Rollout, Sequences
from workbench.scoring import ban_padding, position_ids

COMPACT_BELOW = 0.75  # finished rows leave the batch once fewer than this share of its rows are alive


@torch.no_grad()
def sample(
    model,
    prompt_ids: list[list[int]],
    *,
    max_completion_length: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    batch_size: int = 512,
) -> Rollout:
    """One completion per prompt, with the exact log-probabilities of what was sampled.

    `temperature` 0 takes the most likely token each time (its log-probabilities are those at temperature 1). The same
    `generator` state gives the same completions (up to rounding) whatever `batch_size` is; temperature 0 needs none.
    Raises WorkbenchError where prompt and completion do not fit into the model's positions.
    """
    if temperature < 0 or (temperature > 0 and generator is None):
        raise WorkbenchError(f"temperature is {temperature}: give a number >= 0, and a generator unless it is 0.")
    if max_completion_length < 1:
        raise WorkbenchError(f"max_completion_length is {max_completion_length}: give at least 1 token.")
    _check_context(model, max(map(len, prompt_ids)) + max_completion_length)
    count, device = len(prompt_ids), model.device
    uniforms = torch.zeros(max_completion_length, count)
    if temperature > 0:
        uniforms = torch.rand(max_completion_length, count, generator=generator)
    order = sorted(range(count), key=lambda row: len(prompt_ids[row]))  # rows of one length meet in one batch
    parts = []
    for start in range(0, count, batch_size):
        index = order[start : start + batch_size]
        prompts, mask = _left_padded([prompt_ids[row] for row in index], model.config.pad_token_id)
        noise = uniforms[:, index].to(device)
        parts.append(_sample_batch(model, prompts.to(device), mask.to(device), noise, temperature))
    back = torch.tensor(order).argsort().to(device)
    tokens, completion_mask, logprobs = (torch.cat(columns)[back] for columns in zip(*parts, strict=True))
    ends = torch.isin(tokens, eos_token_ids(model).to(device)) & completion_mask
    prompts, prompt_mask = _left_padded(prompt_ids, model.config.pad_token_id)
    return Rollout(
        tokens=torch.cat([prompts.to(device), tokens], 1),
        attention_mask=torch.cat([prompt_mask.to(device), completion_mask], 1),
        completion_mask=completion_mask,
        logprobs=logprobs,
        finished=ends.any(1),
    ).trimmed()


def completion_texts(tokenizer, sequences: Sequences) -> list[str]:
    """What each completion adds to its prompt, special tokens left out; B strings.

    A completion decoded alone may lose the space that parts it from its prompt; it is read off the whole text instead,
    or decoded alone where a character was split between the two.
    """
    prompts = _counted(sequences.tokens, sequences.attention_mask[:, : sequences.prompt_length])
    alone = _counted(sequences.completions, sequences.completion_mask)
    whole = [prompt + completion for prompt, completion in zip(prompts, alone, strict=True)]
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    decoded = (tokenizer.batch_decode(rows, **options) for rows in (prompts, whole, alone))
    return [
        text[len(prompt) :] if text.startswith(prompt) else completion
        for prompt, text, completion in zip(*decoded, strict=True)
    ]


def reward_arguments(tokenizer, prompts: list[PromptExample], rollout: Rollout) -> tuple[tuple, dict[str, list]]:
    """What a reward is called with: (prompt texts, completion texts), and `finished` beside the prompts' columns."""
    rows = [prompt.row for prompt in prompts]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    texts = [row["prompt"] for row in rows], completion_texts(tokenizer, rollout)
    return texts, {"finished": rollout.finished.tolist(), **columns}


def eos_token_ids(model) -> Tensor:
    """Every id that ends a completion, from the model's generation settings or its config; (E,)."""
    for config in (getattr(model, "generation_config", None), model.config):
        ids = getattr(config, "eos_token_id", None)
        if ids is not None:
            return torch.tensor([ids] if isinstance(ids, int) else list(ids))
    raise WorkbenchError("The model's config names no eos_token_id, so no completion could end: set it and save again.")


def inverse_cdf(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """One token per row from log-probabilities (B, V) and uniform numbers (B,) in [0, 1), none of probability 0."""
    cumulative = logprobs.exp().cumsum(-1)
    total = cumulative[:, -1:]
    # rounding may lift u * total to the total itself, past every token that has any probability
    target = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True)[:, 0]


def _counted(tokens: Tensor, mask: Tensor) -> list[list[int]]:
    """The tokens of each row where its mask (B, T) is True; `tokens` may go on beyond the mask."""
    rows = zip(tokens.tolist(), mask.tolist(), strict=True)
    return [[token for token, counts in zip(row, counted, strict=False) if counts] for row, counted in rows]


def _sample_batch(model, prompts: Tensor, prompt_mask: Tensor, uniforms: Tensor, temperature: float):
    """Completion tokens, mask and log-probabilities, each (B, R)."""
    steps, count = uniforms.shape
    pad, device = model.config.pad_token_id, prompts.device
    eos = eos_token_ids(model).to(device)
    tokens = torch.full((count, steps), pad, device=device)
    completion_mask = torch.zeros(count, steps, dtype=torch.bool, device=device)
    logprobs = torch.zeros(count, steps, device=device)
    rows, alive = torch.arange(count, device=device), torch.ones(count, dtype=torch.bool, device=device)
    cache, mask, inputs = DynamicCache(config=model.config), prompt_mask, prompts
    positions = position_ids(prompt_mask)
    for step in range(steps):
        logits = model(
            input_ids=inputs,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        token, logprob = _choose(ban_padding(logits.float(), pad), uniforms[step, rows], temperature)
        written = rows[alive]
        tokens[written, step], logprobs[written, step] = token[alive], logprob[alive]
        completion_mask[written, step] = True
        alive = alive & ~torch.isin(token, eos)
        if step + 1 == steps or not alive.any():
            break
        if alive.float().mean() < COMPACT_BELOW:
            kept = alive.nonzero()[:, 0]
            cache.batch_select_indices(kept)
            rows, mask, positions, token, alive = rows[kept], mask[kept], positions[kept], token[kept], alive[kept]
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        inputs, positions = token[:, None], positions[:, -1:] + 1
    return tokens, completion_mask, logprobs


def _choose(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logprobs = (logits / temperature if temperature > 0 else logits).log_softmax(-1)
    token = inverse_cdf(logprobs, uniforms) if temperature > 0 else logprobs.argmax(-1)
    return token, logprobs.gather(1, token[:, None])[:, 0]


def _left_padded(prompt_ids: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompt_ids))
    tokens = torch.full((len(prompt_ids), width), pad)
    mask = torch.zeros(len(prompt_ids), width, dtype=torch.bool)
    for row, ids in enumerate(prompt_ids):
        tokens[row, width - len(ids) :] = torch.tensor(ids)
        mask[row, width - len(ids) :] = True
    return tokens, mask


def _check_context(model, needed: int) -> None:
    context = int(getattr(model.config, "max_position_embeddings", 0) or 0)
    if context and needed > context:
        raise WorkbenchError(
            f"Prompt and completion need {needed} positions but the model has {context}: "
            "lower max_prompt_length or max_completion_length."
        )
