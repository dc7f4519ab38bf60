"""A policy that another one becomes under a learned value of its next token: what implicit Q-learning extracts.

It is a standard transformers model: sampled, scored, saved and loaded as any policy.
"""

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from workbench import WorkbenchError


class ValueGuidedConfig(PreTrainedConfig):
    """The configuration of the policy that is guided, and how strongly it is."""

    model_type = "value_guided"

    def __init__(self, reference: dict | None = None, beta: float = 1.0, **settings):
        self.reference = reference or {}  # the whole configuration of the guided policy, `model_type` included
        self.beta = beta  # logits per unit of reward
        super().__init__(**settings)


class ValueGuidedPolicy(PreTrainedModel):
    """pi(a | h) proportional to reference(a | h) exp(beta (Q(h, a) - V(h))). Snell et al. 2023, eq. 4.

    Q is the lower of two target heads on the states of `values`, a network beside the untouched `reference`. V is the
    same for all tokens, so it drops out here; training needs it.
    """

    config_class = ValueGuidedConfig

    def __init__(self, config: ValueGuidedConfig):
        super().__init__(config)
        settings = dict(config.reference)
        guided = AutoConfig.for_model(settings.pop("model_type"), **settings)
        self.reference, self.values = AutoModelForCausalLM.from_config(guided), AutoModel.from_config(guided)
        width, words = self.reference.get_input_embeddings().weight.shape[1], guided.vocab_size
        self.q_heads = nn.ModuleList([_head(width, words), _head(width, words)])
        self.target_heads = nn.ModuleList([_head(width, words), _head(width, words)])
        self.v_head = _head(width, 1)
        self.layers = guided.num_hidden_layers
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: every part has made its own first weights."""

    def get_input_embeddings(self) -> nn.Module:
        """Those of the guided policy."""
        return self.reference.get_input_embeddings()

    def get_output_embeddings(self) -> None:
        """None: no single layer makes the logits."""
        return None

    def resize_token_embeddings(self, *arguments, **settings):
        """WorkbenchError: the heads know the words that they were trained with."""
        raise WorkbenchError("A value-guided policy can not learn new tokens: use the tokenizer of its own run.")

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
    ) -> CausalLMOutputWithPast:
        """Next-token logits at the last `logits_to_keep` positions (0 = all); both networks share one cache."""
        caches = _halves(past_key_values, self.layers) if past_key_values is not None else (None, None)
        read = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        logits = self.reference(
            **read, past_key_values=caches[0], use_cache=use_cache, logits_to_keep=logits_to_keep
        ).logits
        states = self.values(**read, past_key_values=caches[1], use_cache=use_cache).last_hidden_state
        values = lowest(self.target_heads, states[:, -logits_to_keep:])
        return CausalLMOutputWithPast(logits=logits + self.config.beta * values, past_key_values=past_key_values)


AutoConfig.register(ValueGuidedConfig.model_type, ValueGuidedConfig)
AutoModelForCausalLM.register(ValueGuidedConfig, ValueGuidedPolicy)


def guide(reference, values, *, beta: float) -> ValueGuidedPolicy:
    """A policy of these weights and random heads: `reference` is guided, the trunk of `values` makes the states.

    WorkbenchError where the two are not of one architecture, which a saved policy has one description of.
    """
    shapes = [
        {name: tuple(part.shape) for name, part in each.base_model.named_parameters()} for each in (values, reference)
    ]
    if other := next((name for name in shapes[0] | shapes[1] if shapes[0].get(name) != shapes[1].get(name)), ""):
        ours, its = (each.get(other, "no such weights") for each in shapes)
        raise WorkbenchError(
            f"ILQL guides a reference by values on the model's weights, but {other} is {ours} in the model and {its} "
            "in the reference: give a reference_model of the model's architecture, or leave it out."
        )
    guided = reference.config
    kinds = getattr(guided, "layer_types", None) or ["full_attention"] * guided.num_hidden_layers
    known = ("vocab_size", "hidden_size", "max_position_embeddings", "sliding_window")
    known += ("pad_token_id", "bos_token_id", "eos_token_id", "control_token_ids", "wordless_ids")
    config = ValueGuidedConfig(
        reference=guided.to_dict(),
        beta=beta,
        num_hidden_layers=2 * guided.num_hidden_layers,  # a cache for both
        layer_types=2 * kinds,
        **{name: getattr(guided, name) for name in known if getattr(guided, name, None) is not None},
    )
    policy = ValueGuidedPolicy(config).to(device=reference.device, dtype=reference.dtype)
    policy.reference, policy.values = reference, values.base_model
    policy.target_heads.load_state_dict(policy.q_heads.state_dict())
    return policy.eval()


def lowest(heads: nn.ModuleList, states: Tensor) -> Tensor:
    """The lowest output of several heads, (..., V), which keeps chance from being taken for value (Fujimoto 2018)."""
    return torch.stack([head(states) for head in heads]).amin(0)


def _head(width: int, outputs: int) -> nn.Sequential:
    """Two layers, as in the paper; its first values are exactly 0, so that untrained values move no policy."""
    head = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, outputs))
    nn.init.zeros_(head[2].weight)
    nn.init.zeros_(head[2].bias)
    return head


def _halves(cache: DynamicCache, layers: int) -> tuple[DynamicCache, DynamicCache]:
    """Two caches over the first and the other layers of one, so that rows are dropped from both at once."""
    first, second = DynamicCache(), DynamicCache()
    first.layers, second.layers = cache.layers[:layers], cache.layers[layers:]
    return first, second
