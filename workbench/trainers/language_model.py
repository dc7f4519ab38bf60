"""Next-token prediction: pretraining on packed documents, supervised fine-tuning on completions."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch

from workbench import WorkbenchError
from workbench.models import ranks
from workbench.models.examples import text_documents
from workbench.models.load import without_dropout
from workbench.models.packing import TokenBatch, target_losses, token_lengths
from workbench.models.tokens import BAD_GOOD, add_control_tokens, quantile_indices
from workbench.records import scores_of
from workbench.trainers.descent import Descent, EpochBatches, Share, Stateful, require_examples
from workbench.trainers.settings import Settings, require_in, require_positive

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig(Settings):
    """How a language model is trained."""

    steps: int  # optimiser steps
    batch_size: int = 64  # rows per step
    learning_rate: float = 1e-3  # peak; 5e-3 from nothing at width 64, 1e-5 .. 1e-4 for large pretrained models
    weight_decay: float = 0.0  # on matrices only
    evaluate_every: int = 25  # steps between measurements of the held-out loss
    seed: int = 0  # order of the examples

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "steps", "batch_size", "learning_rate", "max_grad_norm", "evaluate_every")
        require_in(0, 1, self, "weight_decay")


class LanguageModelTrainer(Stateful):
    """Minimises the mean cross-entropy per target token.

    `collate(examples, pad_id) -> TokenBatch` decides what a row is and which of its tokens are targets:
    `packing.collate_packed` for documents, `packing.collate_demonstrations` for completions. Left out: dropout (off, as
    in every trainer here).
    """

    progress_keys = ("loss", "held_out_loss")

    def __init__(
        self,
        model,
        examples: list,
        held_out: list,
        config: LanguageModelConfig,
        *,
        collate: Callable[[list, int], TokenBatch],
        lengths: list[int],
    ):
        require_examples(examples, held_out)
        self.model, self.examples, self.held_out, self.config = without_dropout(model), examples, held_out, config
        self.collate = collate
        self.descent = Descent(model, config, steps=config.steps)
        self.batches = EpochBatches(lengths, config.batch_size, seed=config.seed)
        self.total_steps = config.steps

    def step(self) -> dict[str, float | None]:
        """One optimiser step; `loss` and `held_out_loss` are nats per target token."""
        self.step_number += 1
        parts = list(self._parts([self.examples[index] for index in self.batches.next()]))
        targets = sum(int(part.target_mask.sum()) for part in parts)
        learning_rate = self.descent.learning_rate

        def share(part: TokenBatch) -> Share:
            return target_losses(self.model, part).sum() / targets, part, None

        said, grad_norm = self.descent.step(parts, share, trainer_step=self.step_number)
        return {
            "step": self.step_number,
            "loss": sum(loss for loss, _ in said),
            "held_out_loss": self.held_out_loss() if self.due else None,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "target_tokens": targets,
        }

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Mean cross-entropy over all held-out target tokens, nats per token."""
        size = self.config.batch_size
        batches = (self._parts(self.held_out[i : i + size]) for i in range(0, len(self.held_out), size))
        losses = ranks.shared(list(chain(*batches)), lambda part: target_losses(self.model, part))
        return torch.cat(losses).mean().item()

    def _parts(self, examples: list) -> Iterator[TokenBatch]:
        """The rows of a batch that go through the model at a time."""
        for part in self.micro_batches(examples, token_lengths(examples)):
            yield self.collate(part, self.model.config.pad_token_id).to(self.model.device)


# --- Pretraining with preferences: a document is read after a control token that says whether a reward likes it.

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
    if not 0 <= plain <= 1:
        raise WorkbenchError(f"plain is {plain}: give a number between 0 and 1.")
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
