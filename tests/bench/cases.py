"""What is measured: models built from a config, made-up data, settings.

Both sides import this, each in its own environment, so it imports nothing of the package.
"""

import ctypes
import itertools
import json
import random
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

PAD, BOS, EOS, UNK = 0, 1, 2, 3
ENDING = 24  # ids below this end a completion where a case asks for endings: about one token in 25 does


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """A decoder built from nothing."""

    family: str
    width: int
    layers: int
    heads: int
    vocabulary: int
    context: int

    @property
    def feed_forward(self) -> int:
        """Width of the feed-forward layer."""
        return 4 * self.width if self.family == "gpt2" else self.width * 8 // 3 // 8 * 8


MODELS = {
    "gpt2-128x4": ModelSize(family="gpt2", width=128, layers=4, heads=4, vocabulary=600, context=64),
    "llama-128x4": ModelSize(family="llama", width=128, layers=4, heads=4, vocabulary=600, context=64),
    "gpt2-384x6": ModelSize(family="gpt2", width=384, layers=6, heads=6, vocabulary=8000, context=128),
    "llama-384x6": ModelSize(family="llama", width=384, layers=6, heads=6, vocabulary=8000, context=128),
    # for a GPU: the shapes of Qwen2.5's smallest two, random weights measure speed as well as trained ones
    "llama-0.5b": ModelSize(family="llama", width=896, layers=24, heads=14, vocabulary=151_936, context=1024),
    "llama-1.5b": ModelSize(family="llama", width=1536, layers=28, heads=12, vocabulary=151_936, context=1024),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One line of the table."""

    name: str
    method: str  # ppo, rloo, grpo, dpo, reward_model, sft or generate
    gate: float  # the peer's CPU seconds over ours must reach this; 0 where no gate was set
    variable: bool = False  # lengths vary: prompts 4 to 16 tokens, completions 2 to 32
    steps: int = 4  # optimiser steps or rounds of sampling, the first of which is not timed
    batch_size: int = 64
    prompt_length: int = 16
    completion_length: int = 32
    group: int = 4  # completions per prompt, rloo and grpo
    passes: int = 4  # over each batch of samples, ppo
    learning_rate: float = 1e-5
    beta: float = 0.05  # coefficient of the KL penalty, or DPO's


CASES = {
    case.name: case
    for case in (
        Case(name="ppo", method="ppo", gate=1.3),
        Case(name="rloo", method="rloo", gate=1.7, steps=6),
        Case(name="grpo", method="grpo", gate=1.7, steps=6),
        Case(name="dpo", method="dpo", gate=1.4, steps=6),
        Case(name="dpo, variable", method="dpo", gate=1.8, variable=True, steps=16),
        Case(name="reward model", method="reward_model", gate=0, steps=6),
        Case(name="reward model, variable", method="reward_model", gate=1.8, variable=True, steps=16),
        Case(name="sft", method="sft", gate=0, steps=6),
        Case(name="sft, variable", method="sft", gate=1.8, variable=True, steps=24),
        Case(name="generate", method="generate", gate=2.0, steps=4),
        Case(name="generate, 256 rows", method="generate", gate=2.0, steps=4, batch_size=256),
    )
}
DEVICE_CASES = ("ppo", "grpo", "dpo", "sft", "generate")  # what a GPU runs, with longer texts


def fitted(case: Case, width: int, device: str) -> Case:
    """The case at lengths and batches that suit the device and a model of that width."""
    if device != "cpu":
        return replace(case, batch_size=32, prompt_length=256, completion_length=256, steps=4)
    if width > 128 and case.method in ("ppo", "grpo"):  # minutes per step otherwise
        return replace(case, batch_size=16, steps=3)
    return case


def build(name: str, folder: Path) -> Path:
    """Folder of the model with its tokenizer, a reward model and a critic beside it; made once, from seed 0."""
    target = folder / name
    if (target / "done").exists():
        return target
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        PreTrainedTokenizerFast,
    )

    size = MODELS[name]
    special = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "vocab_size": size.vocabulary}
    if size.family == "gpt2":
        shape = {"n_embd": size.width, "n_layer": size.layers, "n_head": size.heads, "n_positions": size.context}
        shape |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    else:
        shape = {"hidden_size": size.width, "num_hidden_layers": size.layers, "num_attention_heads": size.heads}
        shape |= {"num_key_value_heads": size.heads, "intermediate_size": size.feed_forward}
        shape |= {"max_position_embeddings": size.context}
    config = AutoConfig.for_model(size.family, tie_word_embeddings=True, num_labels=1, **special, **shape)
    words = ["<pad>", "<bos>", "<eos>", "<unk>", *(f"w{index}" for index in range(4, size.vocabulary))]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", **names)
    tokenizer.model_max_length = size.context
    parts = {
        "policy": AutoModelForCausalLM,
        "reward": AutoModelForSequenceClassification,
        "critic": AutoModelForTokenClassification,
        "value": AutoModelForSequenceClassification,  # the critic as the peer wants it, with the same weights
    }
    for part, auto in parts.items():
        torch.manual_seed({"policy": 0, "reward": 1}.get(part, 2))
        model = auto.from_config(config)
        if part in ("critic", "value"):
            head = model.score if hasattr(model, "score") else model.classifier
            torch.nn.init.zeros_(head.weight)
            if head.bias is not None:
                torch.nn.init.zeros_(head.bias)
        model.save_pretrained(target / part)
        tokenizer.save_pretrained(target / part)
    (target / "done").write_text("")
    return target


def prompts(case: Case, vocabulary: int, count: int) -> list[list[int]]:
    """Token ids of `count` prompts."""
    rng = random.Random(0)
    shortest = case.prompt_length // 4 if case.variable else case.prompt_length
    return [_ids(rng, vocabulary, rng.randint(shortest, case.prompt_length)) for _ in range(count)]


def completions(case: Case, vocabulary: int, count: int, *, seed: int) -> list[list[int]]:
    """Token ids of `count` completions without EOS, which is one more token; lognormal lengths where they vary."""
    rng, longest = random.Random(seed), case.completion_length - 1
    lengths = (
        min(longest, max(2, int(rng.lognormvariate(2.2, 0.7)))) if case.variable else longest for _ in range(count)
    )
    return [_ids(rng, vocabulary, length) for length in lengths]


def text(ids: list[int]) -> str:
    """The words of these ids."""
    return " ".join(f"w{index}" for index in ids)


def score(ids: list[int]) -> float:
    """What RLOO and GRPO maximise here: any function of the words serves to measure speed."""
    return sum(index % 7 for index in ids) / max(1, len(ids))


def keep_memory() -> None:
    """Raise glibc's thresholds, for both sides alike: memory is kept for the next step instead of returned."""
    libc = ctypes.CDLL(None)
    mmap_threshold, trim_threshold = -3, -1
    libc.mallopt(mmap_threshold, 1 << 30)
    libc.mallopt(trim_threshold, (1 << 31) - 1)


def now(device: str) -> tuple[float, float]:
    """CPU and wall seconds, once the device has done what it was asked to."""
    if device != "cpu":
        import torch

        torch.cuda.synchronize()
    return time.process_time(), time.perf_counter()


def measured(times: list[tuple[float, float]], device: str) -> dict:
    """CPU and wall seconds of each step, and the highest memory of process or device, MiB."""
    cpu, wall = zip(*times, strict=True)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device != "cpu":
        import torch

        memory = torch.cuda.max_memory_allocated() / 2**20
    return {
        "cpu": [after - before for before, after in itertools.pairwise(cpu)],
        "wall": [after - before for before, after in itertools.pairwise(wall)],
        "memory": memory,
    }


def commands() -> Iterator[dict]:
    """What the side is asked to do next, one JSON line at a time; it ends when nobody asks any more."""
    for line in sys.stdin:
        yield json.loads(line)


def report(**values) -> None:
    """The one line with which a side answers a command."""
    print("RESULT " + json.dumps(values), flush=True)


def _ids(rng: random.Random, vocabulary: int, length: int) -> list[int]:
    return [rng.randrange(ENDING, vocabulary) for _ in range(length)]
