"""What an update of a model needs of memory, by arithmetic, and what is there."""

import os
from collections.abc import Sequence

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from workbench import WorkbenchError
from workbench.models.computing import in_bf16, layers_of
from workbench.models.scoring import LOGITS_AT_ONCE

KEPT = {False: 8.3, True: 5.6}  # bytes a token and output of a layer's matrices, in fp32 and bf16: measured on Llama
GIB, CURES = 2**30, "; micro_batch_tokens, checkpoint_activations or precision make that less"


def update_memory(
    *, weights: int, learned: int, kept: float, states: float, layers: int, words: int, tokens: int, twice: bool
) -> dict[str, float]:
    """Bytes, by what they are, of an update of `learned` parameters by `tokens` tokens at a time, `weights` bytes held.

    All layers keep `kept` bytes of a token or, computed `twice`, their `states` and one layer the rest; `words` in the
    vocabulary. After Korthikanti et al. 2022, section 4.
    """
    logits = 12.0 * min(LOGITS_AT_ONCE, tokens * words)  # they, their probabilities and gradients
    activations = (states + kept / layers) * tokens + logits / 2 if twice else kept * tokens + logits
    return {"weights": weights, "Adam": 8.0 * learned, "gradients": 4.0 * learned, "activations": activations}


def memory_line(models: Sequence, learner, *, tokens: int, twice: bool) -> str:
    """`update_memory` of `learner` beside all `models`, and the memory there is; WorkbenchError where it cannot be."""
    layers, embeddings = layers_of(learner), learner.get_input_embeddings()
    parts = [part for layer in layers for part in layer.modules() if isinstance(part, nn.Linear | Conv1D)]
    outputs = sum(part.nf if isinstance(part, Conv1D) else part.out_features for part in parts)
    models, count = {id(each): each for each in models if isinstance(each, nn.Module)}, max(1, len(layers))
    weights = [weight for model in models.values() for weight in model.parameters()]
    shape = {"kept": KEPT[in_bf16(learner)] * outputs, "states": 4.0 * count * embeddings.embedding_dim}
    shape |= {"layers": count, "words": embeddings.num_embeddings, "tokens": tokens, "twice": twice}
    held, learned = sum(each.nbytes for each in weights), sum(each.numel() for each in weights if each.requires_grad)
    needs = {name: size / GIB for name, size in update_memory(weights=held, learned=learned, **shape).items()}
    ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    there = torch.cuda.get_device_properties(learner.device).total_memory if learner.device.type == "cuda" else ram
    needed, parted = sum(needs.values()), ", ".join(f"{name} {size:.3g}" for name, size in needs.items())
    line = f"Learning {tokens:,} tokens at a time takes about {needed:.3g} GiB ({parted}) of {there / GIB:.1f} there"
    if needed - needs["activations"] > there / GIB:
        raise WorkbenchError(f"{line}: take adapters (lora_rank), a smaller model, or a device with more memory.")
    return f"{line}{CURES if needed > 0.7 * there / GIB else ''}."
