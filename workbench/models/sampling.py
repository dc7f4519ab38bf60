"""Batched sampling with a key-value cache: prompts in, `Rollout` out.

On-policy sampling has one knob, the temperature. Top-k, top-p, minimal lengths and repetition penalties are left out on
purpose: they change the distribution that was sampled from, and every ratio and KL afterwards would be wrong. For the
same reason a model's own generation settings are ignored, apart from its EOS ids.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from workbench import WorkbenchError
from workbench.models import ranks
from workbench.models.chat_templates import end_ids, turn_of
from workbench.models.computing import in_bf16, sampler_of
from workbench.models.decoding import decoder_of
from workbench.models.load import model_context
from workbench.models.scoring import BANNED_LOGIT, ban_unsayable, chosen, predictions, spread
from workbench.models.tokens import batches_by_length
from workbench.records import PromptExample, Rollout, Sequences

COMPACT_BELOW = 0.95  # finished rows leave the batch once fewer than this share of its rows are alive
ARGUMENTS = ("prompt", "prompts", "completions", "self")  # columns that a reward is given first, or could not be given


@torch.no_grad()
def sample(
    model,
    prompt_ids: list[list[int]],
    *,
    max_completion_length: int,
    temperature: float = 1.0,
    mixed_with: tuple[Any, float] | None = None,
    generator: torch.Generator | None = None,
    batch_size: int = 512,
    group_size: int = 1,
) -> Rollout:
    """One completion per prompt, with the log-probabilities of what was sampled, as scoring reads them.

    `temperature` 0 takes the most likely token each time (its log-probabilities are those at temperature 1). The same
    `generator` state gives the same completions (up to rounding) whatever `batch_size` is; temperature 0 needs none.
    `mixed_with` another model and its share b samples from model^(1-b) other^b, normalised token by token: Nash-MD's
    rival, Munos et al. 2023. `group_size` prompts side by side are equal, which scoring in bf16 makes use of. Raises
    WorkbenchError where prompt and completion do not fit into the model's positions.
    """
    limits, decoder = {"max_completion_length": max_completion_length, "temperature": temperature}, decoder_of
    if mixed_with:
        other, share = sampler_of(mixed_with[0]), mixed_with[1]
        decoder = functools.partial(_BothDecoders, other, lambda ours, its: ours.float().lerp(its.float(), share))
    rollout, allowed = _sample(
        sampler_of(model), prompt_ids, decoder, **limits, generator=generator, batch_size=batch_size
    )
    return rollout if mixed_with else _rescored(model, rollout, allowed, temperature, group_size)


@torch.no_grad()
def masked_sample(
    model,
    masking_policy,
    prompt_ids: list[list[int]],
    *,
    top_p: float,
    max_completion_length: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    batch_size: int = 512,
    group_size: int = 1,
) -> tuple[Rollout, Tensor]:
    """`sample` restricted, token by token, to what `masking_policy` finds likely: its nucleus of mass `top_p`.

    The log-probabilities are those of the restricted distribution. The second result is that restriction, (B, R, V)
    bool: give it to `keep_allowed` to score alike. NLPO's masked sampling, Ramamurthy et al. 2023, section 4.
    """
    masked = functools.partial(_MaskedDecoder, sampler_of(masking_policy), top_p, temperature)
    limits = {"max_completion_length": max_completion_length, "temperature": temperature}
    rollout, allowed = _sample(
        sampler_of(model), prompt_ids, masked, **limits, generator=generator, batch_size=batch_size
    )
    return _rescored(model, rollout, allowed, temperature, group_size), allowed


def _rescored(model, rollout: Rollout, allowed: Tensor, temperature: float, group_size: int) -> Rollout:
    """The rollout with the log-probabilities that training reads, where a copy in bf16 sampled."""
    if not in_bf16(model):
        return rollout

    def logprobs(rows: slice) -> Tensor:
        part, settings = rollout.rows(rows), {"temperature": temperature or 1.0, "group_size": group_size}
        said = predictions(model, part, allowed=allowed[rows], **settings)
        return spread(*said.read(chosen(part.counted)), part)

    return replace(rollout, logprobs=ranks.by_rows(logprobs, len(rollout), group_size=group_size))


def keep_allowed(logits: Tensor, allowed: Tensor) -> Tensor:
    """The same logits with every token impossible that is not allowed; both (..., V)."""
    return logits.masked_fill(~allowed, BANNED_LOGIT)


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """True for the fewest most likely tokens that hold `top_p` of the probability, (..., V); Holtzman et al. 2020."""
    chances, order = logits.softmax(-1).sort(-1, descending=True)
    before = chances.cumsum(-1) - chances
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before < top_p)


def _sample(
    model, prompt_ids: list[list[int]], decoder, *, max_completion_length, temperature, generator, batch_size
) -> tuple[Rollout, Tensor]:
    """The rollout, and what it was chosen from: (B, R, V) where there is masking, else (B, 0, 0)."""
    if temperature < 0 or (temperature > 0 and generator is None):
        raise WorkbenchError(f"temperature is {temperature}: give a number >= 0, and a generator unless it is 0.")
    if max_completion_length < 1:
        raise WorkbenchError(f"max_completion_length is {max_completion_length}: give at least 1 token.")
    needed = max(map(len, prompt_ids)) + max_completion_length
    if 0 < (context := model_context(model)) < needed:
        raise WorkbenchError(
            f"Prompt and completion need {needed} positions but the model has {context}: "
            "lower max_prompt_length or max_completion_length."
        )
    count, device = len(prompt_ids), model.device
    uniforms = torch.zeros(max_completion_length, count)
    if temperature > 0:
        uniforms = torch.rand(max_completion_length, count, generator=generator)
    batches = batches_by_length([len(prompt) for prompt in prompt_ids], min(batch_size, -(-count // ranks.size())))

    def draw(index: list[int]) -> tuple[Tensor, ...]:
        chosen = [prompt_ids[row] for row in index], uniforms[:, index].to(device), temperature
        return _sample_batch(model, decoder(model, steps=max_completion_length), *chosen)

    parts = ranks.shared(batches, draw)
    back = torch.tensor([row for rows in batches for row in rows]).argsort().to(device)
    tokens, completion_mask, logprobs, allowed = (torch.cat(columns)[back] for columns in zip(*parts, strict=True))
    ends = torch.isin(tokens, eos_token_ids(model).to(device)) & completion_mask
    prompts, prompt_mask = _left_padded(prompt_ids, model.config.pad_token_id)
    rollout = Rollout(
        tokens=torch.cat([prompts.to(device), tokens], 1),
        attention_mask=torch.cat([prompt_mask.to(device), completion_mask], 1),
        completion_mask=completion_mask,
        logprobs=logprobs,
        finished=ends.any(1),
    ).trimmed()
    return rollout, allowed[:, : rollout.completion_mask.shape[1]]


def completion_texts(tokenizer, sequences: Sequences) -> list[str]:
    """What each completion adds to its prompt, special tokens left out; B strings.

    A completion decoded alone may lose the space that parts it from its prompt; it is read off the whole text instead,
    or decoded alone where a character was split between the two.
    """
    prompts = _counted(sequences.tokens, sequences.attention_mask[:, : sequences.prompt_length])
    ends, turn = end_ids(tokenizer), turn_of(tokenizer)  # not every tokenizer calls what ends a turn special
    alone = _counted(sequences.completions, sequences.completion_mask)
    ended = [ids[-1] in ends if ids else False for ids in alone]
    alone = [ids[:-1] if end else ids for ids, end in zip(alone, ended, strict=True)]
    whole = [prompt + completion for prompt, completion in zip(prompts, alone, strict=True)]
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    decoded = (tokenizer.batch_decode(rows, **options) for rows in (prompts, whole, alone))
    texts = [
        text[len(prompt) :] if text.startswith(prompt) else completion
        for prompt, text, completion in zip(*decoded, strict=True)
    ]
    if turn.heard or turn.closing != turn.end:  # more than words in an answer
        asked = tokenizer.batch_decode(prompts, clean_up_tokenization_spaces=False)
        chat = (prompt.endswith(turn.shown) for prompt in asked)
        blank = turn.closing.removesuffix(turn.end)
        texts = [
            text.removeprefix(turn.heard).removesuffix(blank if end else "") if answers else text
            for text, answers, end in zip(texts, chat, ended, strict=True)
        ]
    return texts


def reward_arguments(tokenizer, prompts: list[PromptExample], rollout: Rollout) -> tuple[tuple, dict[str, list]]:
    """What a reward is called with: (prompt texts, completion texts), and `finished` beside the prompts' columns.

    Columns that are named like its first arguments stay behind: it could not be called with them.
    """
    rows = [prompt.row for prompt in prompts]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name not in ARGUMENTS}
    texts = [row["prompt"] for row in rows], completion_texts(tokenizer, rollout)
    return texts, {**columns, "finished": rollout.finished.tolist()}


def eos_token_ids(model) -> Tensor:
    """Every id that ends a completion, from the model's generation settings or its config; (E,)."""
    for config in (getattr(model, "generation_config", None), model.config):
        ids = getattr(config, "eos_token_id", None)
        if ids is not None:
            return torch.tensor([ids] if isinstance(ids, int) else list(ids))
    raise WorkbenchError("The model's config names no eos_token_id, so no completion could end: set it and save again.")


def inverse_cdf(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """One token per row from log-probabilities (B, V) and uniform numbers (B,) in [0, 1), none of probability 0.

    Where they are NaN it is the last one, and its log-probability says so.
    """
    cumulative = logprobs.exp().cumsum(-1)
    total = cumulative[:, -1:]
    # rounding may lift u * total to the total itself, past every token that has any probability
    target = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=logprobs.shape[1] - 1)


def _counted(tokens: Tensor, mask: Tensor) -> list[list[int]]:
    """The tokens of each row where its mask (B, T) is True; `tokens` may go on beyond the mask."""
    rows = zip(tokens.tolist(), mask.tolist(), strict=True)
    return [[token for token, counts in zip(row, counted, strict=False) if counts] for row, counted in rows]


class _BothDecoders:
    """The decoders of a policy and of another model that reads along; `combined` makes one's logits of both."""

    def __init__(self, other, combined: Callable[[Tensor, Tensor], Tensor], model, *, steps: int):
        self.decoders = [decoder_of(reader, steps=steps) for reader in (model, other)]
        self.combined = combined

    def read_prompts(self, prompts: Tensor, mask: Tensor, index: Tensor) -> Tensor:
        return self.combined(*(decoder.read_prompts(prompts, mask, index) for decoder in self.decoders))

    def read(self, tokens: Tensor) -> Tensor:
        return self.combined(*(decoder.read(tokens) for decoder in self.decoders))

    def keep(self, order: Tensor) -> None:
        for decoder in self.decoders:
            decoder.keep(order)


class _MaskedDecoder(_BothDecoders):
    """A policy's decoder restricted to what a masking policy finds likely; it remembers to what."""

    def __init__(self, masking_policy, top_p: float, temperature: float, model, *, steps: int):
        super().__init__(masking_policy, self._restricted, model, steps=steps)
        self.config, self.top_p, self.temperature = masking_policy.config, top_p, temperature or 1.0
        self.steps, self.step = steps, 0

    def read_prompts(self, prompts: Tensor, mask: Tensor, index: Tensor) -> Tensor:
        self.rows = torch.arange(len(index), device=index.device)
        self.allowed = None
        return super().read_prompts(prompts, mask, index)

    def read(self, tokens: Tensor) -> Tensor:
        self.step += 1
        return super().read(tokens)

    def keep(self, order: Tensor) -> None:
        self.rows = self.rows[order]
        super().keep(order)

    def _restricted(self, logits: Tensor, masking_logits: Tensor) -> Tensor:
        allowed = nucleus(ban_unsayable(masking_logits.float() / self.temperature, self.config), self.top_p)
        if self.allowed is None:
            self.allowed = allowed.new_zeros(len(allowed), self.steps, allowed.shape[1])  # (B, R, V)
        self.allowed[self.rows, self.step] = allowed
        return keep_allowed(logits, allowed)


def _sample_batch(model, decoder, prompt_ids: list[list[int]], uniforms: Tensor, temperature: float):
    """Completion tokens, mask and log-probabilities, each (B, R), and what was allowed, (B, R, V) or (B, 0, 0)."""
    (steps, count), pad, device = uniforms.shape, model.config.pad_token_id, uniforms.device
    tokens = torch.full((count, steps), pad, device=device)
    logprobs = torch.zeros(count, steps, device=device)
    rows, alive = torch.arange(count, device=device), torch.ones(count, dtype=torch.bool, device=device)
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(map(tuple, prompt_ids)))}  # equal: read once
    prompts, mask = _left_padded(list(places), pad)
    index = torch.tensor([places[tuple(prompt)] for prompt in prompt_ids])
    logits = decoder.read_prompts(prompts.to(device), mask.to(device), index.to(device))
    ends = torch.isin(torch.arange(logits.shape[1], device=device), eos_token_ids(model).to(device))  # (V,)
    for step in range(steps):
        token, logprob = _choose(ban_unsayable(logits.float(), model.config), uniforms[step, rows], temperature)
        tokens[rows, step], logprobs[rows, step] = token, logprob
        alive = alive & ~ends[token]
        remaining = int(alive.sum())
        if step + 1 == steps or not remaining:
            break
        if remaining < COMPACT_BELOW * alive.shape[0]:
            order = _compacted(alive)
            decoder.keep(order)
            rows, token, alive = rows[order], token[order], alive[order]
        logits = decoder.read(token)
    ended = ends[tokens].long()
    counted = ended.cumsum(1) == ended  # up to and including the first EOS, and not what finished rows went on with
    allowed = getattr(decoder, "allowed", counted.new_ones(count, 0, 0))
    return tokens.masked_fill(~counted, pad), counted, logprobs.masked_fill(~counted, 0), allowed


def _compacted(alive: Tensor) -> Tensor:
    """The rows that are alive, (n,), each in its place but for the last ones, which take the places of others."""
    first, last = alive.tensor_split([int(alive.sum())])
    order = torch.arange(len(first), device=alive.device)
    order[~first] = len(first) + last.nonzero()[:, 0]
    return order


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
