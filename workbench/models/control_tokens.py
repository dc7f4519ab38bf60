"""Control tokens: what a policy reads before a prompt and can never say, here how good its answer shall be.

A policy learns each text after the token of that text's reward, and is asked with the best one. Good and bad are
Korbak et al. 2023's, quantiles of the reward Lu et al. 2022's. The tokens travel with the tokenizer; a model that is
loaded with it keeps their ids in `config.control_token_ids`, where sampling and scoring find what can not be said.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from workbench.analysis.statistics import finite_array
from workbench.records import PromptExample, Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BAD_GOOD = ("<|bad|>", "<|good|>")  # worst first, as all of them
QUANTILES = tuple(f"<|reward_{index}|>" for index in range(5))
PATTERN = re.compile(r"<\|(bad|good|reward_\d+)\|>")


def add_control_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> list[int]:
    """Their ids, after adding those that `tokenizer` does not have yet; load or build the models after this."""
    known = tokenizer.get_vocab()
    new = [token for token in tokens if token not in known]
    tokenizer.add_special_tokens({"additional_special_tokens": new}, replace_extra_special_tokens=False)
    return tokenizer.convert_tokens_to_ids(list(tokens))


def control_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of all control tokens that `tokenizer` has, in the order in which they were added."""
    return sorted(index for token, index in tokenizer.get_added_vocab().items() if PATTERN.fullmatch(token))


def conditioned(prompts: Sequence[PromptExample], token_id: int) -> list[PromptExample]:
    """The same prompts after a control token; their rows, which is what rewards read, stay as they are."""
    return [replace(prompt, prompt_ids=[token_id, *prompt.prompt_ids]) for prompt in prompts]


def unconditioned(sequences: Sequences, model) -> Sequences:
    """The same rows for a reader who is not told: the control tokens of `model` are left out of every prompt."""
    ids = getattr(model.config, "control_token_ids", ())
    told = torch.isin(sequences.tokens, torch.tensor(list(ids), device=sequences.tokens.device, dtype=torch.long))
    return replace(sequences, attention_mask=sequences.attention_mask & ~told) if told.any() else sequences


def quantile_indices(scores: Sequence[float], count: int) -> list[int]:
    """Which of `count` quantiles of all scores each one lies in, 0 the worst; equal scores lie in the same.

    With rewards of few values a quantile may be empty, but never the best one. Raises WorkbenchError where a score is
    not finite.
    """
    scores = finite_array(scores, name="scores")
    worse = np.searchsorted(np.sort(scores), scores)  # how many scores are lower
    indices = np.minimum(count * worse // max(1, len(scores) - 1), count - 1)
    return np.where(scores == scores.max(), count - 1, indices).tolist()
