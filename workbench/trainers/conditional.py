"""Pretraining with preferences: a document is read after a control token that says whether a reward likes it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from workbench.models.examples import text_documents
from workbench.models.tokens import BAD_GOOD, add_control_tokens, quantile_indices
from workbench.records import scores_of
from workbench.trainers.descent import require_in

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

JUDGED = "dialogue"  # the sort of document that a reward was made for


def conditional_documents(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    reward: Callable[..., list[float]],
    *,
    seed: int,
    plain: float = 0.01,
) -> list[list[int]]:
    """Token ids of each row of `text`, EOS at its end, after <|good|> if half of the others score less, else <|bad|>.

    Where a column `sort` tells dialogues from other documents, only dialogues are judged and the others get no token.
    A share `plain` of the judged gets none either, so that the model also knows texts that nobody asked for. Korbak et
    al. 2023, section 3 (conditional training); they judge sentences, here it is whole documents.
    """
    require_in(0, 1, plain=plain)
    dataset = dataset.select([row for row, text in enumerate(dataset["text"][:]) if text.strip()])
    sorts = dataset["sort"][:] if "sort" in dataset.column_names else [JUDGED] * len(dataset)
    judged = [row for row, sort in enumerate(sorts) if sort == JUDGED]
    documents = text_documents(dataset, tokenizer)
    token_ids, draw = add_control_tokens(tokenizer, BAD_GOOD), random.Random(seed)
    halves = quantile_indices(_scores([dataset["text"][row] for row in judged], reward), 2) if judged else []
    for row, half in zip(judged, halves, strict=True):
        if draw.random() >= plain:
            documents[row] = [token_ids[half], *documents[row]]
    return documents


def _scores(texts: list[str], reward: Callable[..., list[float]]) -> list[float]:
    """The reward of whole documents; it reads two texts one after the other, so where they part does not matter."""
    starts = [len(text) - len(text.lstrip()) + len(text.split()[0]) for text in texts]
    parts = [(text[:start], text[start:]) for text, start in zip(texts, starts, strict=True)]
    split = tuple(map(list, zip(*parts, strict=True)))
    return scores_of({"reward": reward}, split, {"finished": [True] * len(texts)})["reward"]
