"""How weights of models with one start are combined: their mean, a mean on the sphere, the sum of their changes."""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from workbench import WorkbenchError
from workbench.models.load import load_own_tokenizer, load_policy

Weights = Mapping[str, Tensor]


def mean_change(changes: Sequence[Tensor]) -> Tensor:
    """The mean: a share of 1 gives the average of the models, or checkpoints. Wortsman et al. 2022."""
    return torch.stack([*changes]).mean(0)


def summed_change(changes: Sequence[Tensor]) -> Tensor:
    """The sum of task vectors, each for something else that was learned. Ilharco et al. 2023."""
    return torch.stack([*changes]).sum(0)


def spherical_change(changes: Sequence[Tensor]) -> Tensor:
    """A mean direction as long as the changes are, where their mean is shorter. Ramé et al. 2024 (WARP).

    More than two are taken one after another, the n-th with weight 1/n.
    """
    return reduce(lambda merged, new: slerp(merged, new[1], 1 / new[0]), enumerate(changes[1:], 2), changes[0])


def slerp(first: Tensor, second: Tensor, share: float) -> Tensor:
    """From one vector to another along the arc between them; straight where they are parallel. Shoemake 1985."""
    lengths = first.norm() * second.norm()
    angle = torch.arccos(((first * second).sum() / lengths.clamp(min=1e-30)).clamp(-1, 1))
    if lengths == 0 or angle.sin() < 1e-4:
        return (1 - share) * first + share * second
    return (((1 - share) * angle).sin() * first + (share * angle).sin() * second) / angle.sin()


METHODS: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "linear": mean_change,
    "spherical": spherical_change,
    "task": summed_change,
}


def merged_weights(start: Weights, others: Sequence[Weights], *, method: str, share: float) -> dict[str, Tensor]:
    """`start` plus `share` times the change that METHODS makes, tensor by tensor, of those of `others` from it.

    A share of 0 is `start`; of 1, with "linear", the mean of `others`. WorkbenchError for an unknown method.
    """
    if method not in METHODS:
        raise WorkbenchError(f"There is no way {method!r} to merge: choose one of {', '.join(METHODS)}.")
    combined = METHODS[method]
    return {name: old + share * combined([other[name] - old for other in others]) for name, old in start.items()}


def load_to_merge(start, source: str, tokenizer, *, device: str = "cpu") -> dict[str, Tensor]:
    """The weights of the model in `source`; WorkbenchError unless `start` is of its architecture and vocabulary."""
    own, known = load_own_tokenizer(source), tokenizer.get_vocab()
    words = own.get_vocab() if own else known
    if words != known:
        word = sorted(set(words.items()) ^ set(known.items()))[0][0]
        raise WorkbenchError(
            f"{source!r} has another vocabulary ({word!r} is not the same token in both): only models that read the "
            "same tokens can be merged."
        )
    model = load_policy(source, tokenizer, device=device)
    if other := _difference(start, model):
        raise WorkbenchError(f"{source!r} {other}: only models of one architecture can be merged.")
    return model.state_dict()


def _difference(*models) -> str:
    """What tells the architecture of the second model from the first, "" where nothing does."""
    first, second = (
        {name: value for name, value in model.config.to_dict().items() if isinstance(value, int | float)}
        | {"model_type": model.config.model_type}
        for model in models
    )
    names = sorted(name for name in first | second if first.get(name) != second.get(name))
    names.sort(key="model_type".__ne__)  # which says most
    return f"has {names[0]} {second.get(names[0])!r} and not {first.get(names[0])!r}" if names else ""
