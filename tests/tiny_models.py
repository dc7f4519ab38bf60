"""Models of a few thousand weights, a tokenizer of twenty words, and what they say, computed the slow and plain way."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]
TEXT = "user assistant : the sky is red green blue grass yes no what colour please thanks"
WORDS = [*SPECIAL, *TEXT.split()]
FAMILIES = ("llama", "qwen2", "gpt2")
PROMPTS = [[4, 6, 7, 8], [9], [10, 11, 4, 12, 13, 14]]
COMPLETIONS = [[9, 10, EOS], [12, 13, 14, 15, EOS], [16]]


def word_tokenizer(**special_tokens: str) -> PreTrainedTokenizerFast:
    """One id per word; all four special tokens unless others are given."""
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = special_tokens or dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", **special)


def tiny_config(family: str, *, vocab_size: int = len(WORDS), context: int = 48, layers: int = 2):
    """Width 16; wide random weights, so that the next token is far from uniform; GPT-2 with its usual dropout."""
    shared = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "initializer_range": 0.4}
    if family == "gpt2":
        sizes = {"n_embd": 16, "n_layer": layers, "n_head": 2, "n_positions": context}
    else:
        sizes = {"hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 24}
        sizes |= {"num_key_value_heads": 1, "max_position_embeddings": context}
    return AutoConfig.for_model(family, vocab_size=vocab_size, tie_word_embeddings=False, **shared, **sizes)


def tiny_model(family: str = "llama", *, auto=AutoModelForCausalLM, seed: int = 0, num_labels: int = 1, **sizes):
    """A model of that family with random weights, without dropout's effect."""
    config = tiny_config(family, **sizes)
    if auto is not AutoModelForCausalLM:
        config.num_labels = num_labels
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = auto.from_config(config).eval()
        for name, parameter in model.named_parameters():
            if "bias" in name:
                torch.nn.init.normal_(parameter, std=0.2)
    return model


def saved(model, tokenizer, folder) -> str:
    """The folder in which a model and its tokenizer were saved, as an earlier run leaves them."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def unsayable(model) -> list[int]:
    """Ids that the model can read but never say."""
    return [PAD, *getattr(model.config, "control_token_ids", ())]


@torch.no_grad()
def plain_next_logprobs(model, ids: list[int], *, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities of what follows one unpadded row, in fp64, padding and control tokens impossible; (V,)."""
    logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
    logits[unsayable(model)] = -torch.inf
    return (logits / temperature).log_softmax(-1)


def plain_logprobs(model, prompt: list[int], completion: list[int], *, temperature: float = 1.0) -> list[float]:
    """Log-probability of each completion token, one forward pass per token."""
    return [
        plain_next_logprobs(model, prompt + completion[:index], temperature=temperature)[token].item()
        for index, token in enumerate(completion)
    ]


def assert_plain_logprobs(rows, model, prompts, completions, *, temperature: float = 1.0, tolerance: float = 1e-5):
    """Rows of log-probabilities are those of passes over unpadded rows, and 0 behind each completion."""
    for row, prompt, completion in zip(rows, prompts, completions, strict=True):
        plain = plain_logprobs(model, prompt, completion, temperature=temperature)
        assert row[: len(completion)].tolist() == pytest.approx(plain, abs=tolerance)
        assert row[len(completion) :].abs().sum() == 0


def every_completion(model, prompt: list[int], length: int, *, temperature: float = 1.0) -> dict[tuple, float]:
    """Probability of every completion of at most `length` tokens: those with EOS at their end, and the cut ones."""
    vocabulary, finished, growing = range(model.config.vocab_size), {}, {(): 1.0}
    for _ in range(length):
        longer = {}
        for start, chance in growing.items():
            following = plain_next_logprobs(model, prompt + list(start), temperature=temperature).exp()
            for token in vocabulary:
                if token not in unsayable(model):
                    target = finished if token == EOS else longer
                    target[(*start, token)] = chance * following[token].item()
        growing = longer
    return finished | growing


def weights_of(model) -> dict[str, torch.Tensor]:
    """A copy of every weight."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same_weights(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are equal bit for bit."""
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
