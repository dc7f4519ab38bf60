"""Classifiers of families that the library has none of: the family's own base model under a linear head."""

from functools import cache

from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForSequenceClassification, GenericForTokenClassification

GENERIC = {
    AutoModelForSequenceClassification: GenericForSequenceClassification,
    AutoModelForTokenClassification: GenericForTokenClassification,
}


def class_for(auto_class, config):
    """What makes a model of `config`: `auto_class`, or a class of ours where that makes classifiers and has none of it.

    Ours is named as the library would, such as Olmo2ForTokenClassification, and saves and loads as others do. A family
    without a causal model is left to the library, which refuses it.
    """
    kind = type(config)
    if (
        auto_class not in GENERIC
        or kind in auto_class._model_mapping
        or kind not in AutoModelForCausalLM._model_mapping
    ):
        return auto_class
    return _made(GENERIC[auto_class], kind)


@cache
def _made(generic: type, kind: type) -> type:
    parents = AutoModelForCausalLM._model_mapping[kind].__mro__[1:]
    family = next(parent for parent in parents if issubclass(parent, PreTrainedModel))
    name = family.__name__.removesuffix("PreTrainedModel") + generic.__name__.removeprefix("Generic")
    own = {"base_model_prefix": family.base_model_prefix, "config_class": kind}
    own["from_config"] = classmethod(lambda made, config: made(config))
    return type(name, (generic, family), own)
