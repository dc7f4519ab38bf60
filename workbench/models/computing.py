"""How a model is computed, whatever it is: its layers once or twice."""

from types import MethodType

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from workbench import WorkbenchError


def compute_twice(model) -> None:
    """From now on layers keep their inputs alone, and are computed once more in the backward pass. Chen et al. 2016.

    The library's own switch asks for a model in training, of which other things are read. WorkbenchError where the
    layers are not the library's.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise WorkbenchError(
            f"{type(model).__name__} does not say what its layers are, so checkpoint_activations can do nothing: set "
            "it to False."
        )
    for layer in layers:
        layer.forward = MethodType(_computed_twice, layer)  # a bound method, so that a copy of the model has its own


def _computed_twice(layer, *given, **named):
    forward = type(layer).forward
    if not torch.is_grad_enabled():
        return forward(layer, *given, **named)
    return checkpoint(forward, layer, *given, **named, use_reentrant=False, preserve_rng_state=False)
