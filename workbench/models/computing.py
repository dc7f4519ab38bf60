"""How a model is computed, whatever it is: in which precision, and its layers once or twice."""

import copy
from contextlib import AbstractContextManager, nullcontext
from types import MethodType

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from workbench import WorkbenchError

PRECISIONS = ("fp32", "bf16")


def require_precision(precision: str) -> None:
    """WorkbenchError for one that there is not."""
    if precision not in PRECISIONS:
        raise WorkbenchError(f"precision is {precision!r}: choose one of {', '.join(PRECISIONS)}.")


def compute_in(model, precision: str, *, stored: bool = False) -> None:
    """From now on the model's layers compute in `precision`: in bf16 by autocast, whatever its weights are.

    Embeddings, norms, sums and the head stay in fp32. `stored` keeps the layers' matrices in bf16 as well, for models
    that never learn: they say, bit for bit but for experts, what the same weights in fp32 say by autocast.
    WorkbenchError for another precision, and where the device has no bf16.
    """
    require_precision(precision)
    if precision == "fp32":
        return
    require_bf16(model.device)
    for each in (model, model.get_base_model() if hasattr(model, "get_base_model") else model):
        each.computes_in_bf16 = True
    matrices = [weight for layer in layers_of(model) for weight in layer.parameters() if weight.dim() > 1]
    for weight in matrices if stored else ():
        weight.data = weight.data.bfloat16()


def require_bf16(device: torch.device) -> None:
    """WorkbenchError where `device` has no arithmetic in bf16; on CUDA what stays in fp32 is multiplied in TF32."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
    if not (torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_has_bf16()):
        raise WorkbenchError(f"precision is 'bf16', which this machine's {device.type} cannot compute: take fp32.")


def _cpu_has_bf16() -> bool:
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def in_bf16(model) -> bool:
    """Whether its layers compute in bf16 by autocast."""
    return getattr(model, "computes_in_bf16", False)


def computed(model) -> AbstractContextManager:
    """Where its layers are to be called."""
    return torch.autocast(model.device.type, torch.bfloat16) if in_bf16(model) else nullcontext()


def sampler_of(model):
    """What samples in its place: a copy all in bf16 where it computes in bf16, whose weights no step casts anew."""
    if not in_bf16(model):
        return model
    every = [*model.named_parameters(), *model.named_buffers()]
    floats = [each for name, each in every if each.is_floating_point() and not name.endswith("inv_freq")]
    copied = copy.deepcopy(model, {id(each): nn.Parameter(each.detach().bfloat16(), False) for each in floats})
    copied.computes_in_bf16 = False
    return copied


def layers_of(model) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def compute_twice(model) -> None:
    """From now on layers keep their inputs alone, and are computed once more in the backward pass. Chen et al. 2016.

    The library's own switch asks for a model in training, of which other things are read. WorkbenchError where the
    layers are not the library's.
    """
    layers = layers_of(model)
    if not layers:
        raise WorkbenchError(f"{type(model).__name__} does not say what its layers are: unset checkpoint_activations.")
    for layer in layers:
        layer.forward = MethodType(_computed_twice, layer)  # a bound method, so that a copy of the model has its own


def _computed_twice(layer, *given, **named):
    forward = type(layer).forward
    if not torch.is_grad_enabled():
        return forward(layer, *given, **named)
    return checkpoint(forward, layer, *given, **named, use_reentrant=False, preserve_rng_state=False)
