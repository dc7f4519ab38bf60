"""The exact companion world: a few prompts, every completion, a known reward, on which real policies are measured."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from workbench import WorkbenchError
from workbench.models.load import seeded
from workbench.models.scoring import completion_logprobs
from workbench.models.tokens import collate
from workbench.records import LabelledExample, PairExample, PromptExample, Sequences
from workbench.studies.exact.optimum import Tree, build_tree, enumerate_completions, mean_reward, standing

WORDS = ("a", "b", "c", "d")
PROMPTS = ("a b", "b d", "c a")
STANDING = ("kl", "reward", "kl_to_optimum", "wasted_kl", "missed_reward")  # what `optimum.standing` measures
SPECIAL = {"pad_token": "<pad>", "eos_token": "<eos>"}


def exact_tokenizer() -> PreTrainedTokenizerFast:
    """Padding, EOS and four words, one id each, parted by spaces."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    backend = Tokenizer(WordLevel({word: index for index, word in enumerate((*SPECIAL.values(), *WORDS))}))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", **SPECIAL)


def random_reference(tokenizer: PreTrainedTokenizerFast, *, seed: int, context: int = 16):
    """A GPT-2 of one layer, width 32, whose random weights already prefer some words to others."""
    config = AutoConfig.for_model(
        "gpt2",
        **{"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": context, "vocab_size": len(tokenizer)},
        **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
        initializer_range=0.15,
    )
    with seeded(seed):
        model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # words and places must be told apart from the start: embeddings of about unit size
        model.transformer.wte.weight.mul_(5)
        model.transformer.wpe.weight.mul_(5)
    return model


@dataclass(frozen=True, kw_only=True)
class Enumeration:
    """P prompts and the C completions that each may get."""

    tokenizer: PreTrainedTokenizerFast
    prompts: tuple[str, ...]
    completions: list[tuple[int, ...]]  # C, token ids
    tree: Tree  # of the completions
    sequences: Sequences  # P*C rows, those of one prompt side by side

    def probabilities(self, model) -> np.ndarray:
        """The model's probability of every completion, (P, C) fp64."""
        with torch.no_grad():
            rows = self.sequences.to(model.device)
            logprobs = completion_logprobs(model, rows, group_size=len(self.completions))
        return logprobs.double().sum(1).exp().view(len(self.prompts), -1).cpu().numpy()

    def texts(self) -> list[str]:
        """The completions as they are written, EOS shown."""
        return self.tokenizer.batch_decode([list(ids) for ids in self.completions])


@dataclass(frozen=True, kw_only=True)
class ExactWorld(Enumeration):
    """What every completion is worth, and how likely the reference is to write it."""

    reference: np.ndarray  # (P, C) probabilities
    rewards: np.ndarray  # (P, C), of mean 0 for every prompt and standard deviation 1 under the reference

    def reward(self, prompts: list[str], completions: list[str], *, finished: list[bool], **columns) -> list[float]:
        """The reward of each completion, as trainers ask for it; WorkbenchError for one that is not in this world."""
        texts = [completion.strip() for completion in completions]  # a completion may bring the space before it
        keys = list(zip(prompts, texts, finished, strict=True))
        for prompt, completion, ended in keys:
            if (prompt, completion, ended) not in self._worth:
                raise WorkbenchError(
                    f"{completion!r} {'and EOS' if ended else 'without EOS'} is no completion of {prompt!r} here: "
                    "sample no more tokens than were enumerated."
                )
        return [self._worth[key] for key in keys]

    @cached_property
    def _worth(self) -> dict[tuple[str, str, bool], float]:
        """Reward by prompt, completion as text, and whether it ended."""
        texts = self.tokenizer.batch_decode([list(ids) for ids in self.completions], skip_special_tokens=True)
        ended = [ids[-1] == self.tokenizer.eos_token_id for ids in self.completions]
        return {
            (prompt, text, end): float(reward)
            for prompt, rewards in zip(self.prompts, self.rewards, strict=True)
            for text, end, reward in zip(texts, ended, rewards, strict=True)
        }

    def standing(self, model, *, beta: float) -> dict[str, float]:
        """`optimum.standing` of a model."""
        return standing(self.probabilities(model), self.reference, self.rewards, beta)

    def prompt_examples(self, count: int) -> list[PromptExample]:
        """`count` prompts to sample from, as many of each as of the others where it is a multiple of P."""
        texts = [self.prompts[row % len(self.prompts)] for row in range(count)]
        return [PromptExample(prompt_ids=self.tokenizer(text)["input_ids"], row={"prompt": text}) for text in texts]

    def pairs(self) -> list[PairExample]:
        """Every pair of two completions of a prompt, with the probability that a labeler takes the better one.

        The labelers are those of Bradley and Terry 1952: a difference of rewards is the log-odds of their choice.
        """
        return [
            _pair(self.tokenizer(text)["input_ids"], *sorted(two, key=lambda scored: -scored[1]))
            for text, rewards in zip(self.prompts, self.rewards, strict=True)
            for two in itertools.combinations(zip(self.completions, rewards.tolist(), strict=True), 2)
        ]

    def labelled(self) -> list[LabelledExample]:
        """Every completion, desirable where its reward is above the reference's mean."""
        return [
            LabelledExample(
                prompt_ids=self.tokenizer(text)["input_ids"], completion_ids=list(ids), label=float(reward > 0)
            )
            for text, rewards in zip(self.prompts, self.rewards, strict=True)
            for ids, reward in zip(self.completions, rewards, strict=True)
        ]


def _pair(prompt_ids: list[int], better: tuple, worse: tuple) -> PairExample:
    (chosen, high), (rejected, low) = better, worse
    return PairExample(
        prompt_ids=prompt_ids,
        chosen_ids=list(chosen),
        rejected_ids=list(rejected),
        margin=high - low,
        preference=1 / (1 + math.exp(low - high)),
    )


def enumerate_world(tokenizer: PreTrainedTokenizerFast, *, longest: int) -> Enumeration:
    """Three prompts with every completion of at most `longest` tokens."""
    words = tokenizer.convert_tokens_to_ids(list(WORDS))
    completions = enumerate_completions(words, eos=tokenizer.eos_token_id, longest=longest)
    prompt_ids = [tokenizer(text)["input_ids"] for text in PROMPTS for _ in completions]
    rows = [list(ids) for ids in completions] * len(PROMPTS)
    return Enumeration(
        tokenizer=tokenizer,
        prompts=PROMPTS,
        completions=completions,
        tree=build_tree(completions),
        sequences=collate(prompt_ids, rows, pad_id=tokenizer.pad_token_id),
    )


def with_rewards(enumeration: Enumeration, reference, *, seed: int) -> ExactWorld:
    """The world with random but orderly rewards, normalised on what `reference`, a model, writes.

    A completion is worth what its words are worth for its prompt, and each word besides for the one before it.
    """
    generator = np.random.default_rng(seed)
    words = enumeration.tokenizer.convert_tokens_to_ids(list(WORDS))
    alone = generator.normal(size=(len(enumeration.prompts), len(words)))
    after = generator.normal(size=(len(words), len(words)))
    raw = np.zeros((len(enumeration.prompts), len(enumeration.completions)))
    for column, ids in enumerate(enumeration.completions):
        places = [words.index(token) for token in ids if token in words]
        raw[:, column] = alone[:, places].sum(1) + sum(after[pair] for pair in itertools.pairwise(places))
    reference_policy = enumeration.probabilities(reference)
    reference_policy /= reference_policy.sum(1, keepdims=True)  # fp32 left it a ten-millionth off
    raw -= (reference_policy * raw).sum(1, keepdims=True)
    rewards = raw / math.sqrt(mean_reward(reference_policy, raw**2))
    return ExactWorld(**vars(enumeration), reference=reference_policy, rewards=rewards)


class MeasuredExactly:
    """A trainer whose rows also say where its policy stands, `exact_kl` and the like, every so many steps."""

    def __init__(self, trainer, world: ExactWorld, *, beta: float, every: int):
        self.trainer, self.world, self.beta, self.every = trainer, world, beta, every
        self.total_steps: int = trainer.total_steps
        self.progress_keys = ("exact_kl", "exact_reward")

    def step(self) -> dict[str, float | None]:
        """The trainer's own step and row, and what enumeration says of the policy after it."""
        row = self.trainer.step()
        due = row["step"] % self.every == 0 or row["step"] == self.total_steps
        measured = self.world.standing(self.trainer.policy, beta=self.beta) if due else {}
        return row | {f"exact_{name}": measured.get(name) for name in STANDING}

    def state_dict(self) -> dict[str, Any]:
        return self.trainer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.trainer.load_state_dict(state)


def exact_path(metrics: pd.DataFrame, start: dict[str, float], *, method: str) -> pd.DataFrame:
    """What `MeasuredExactly` wrote into a run's metrics, after a row for the policy before it: one row per measurement.

    Columns method, step, share (of training), place (the step in words) and those of `optimum.standing`.
    """
    measured = metrics.dropna(subset=["exact_kl"])
    rows = measured[[f"exact_{name}" for name in STANDING]].set_axis(STANDING, axis=1)
    path = pd.concat([pd.DataFrame([start]), rows], ignore_index=True)
    steps = [0, *measured["step"].astype(int)]
    shares = [step / max(1, steps[-1]) for step in steps]
    return path.assign(method=method, step=steps, share=shares, place=[f"step {step}" for step in steps])
