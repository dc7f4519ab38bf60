"""Models and tokenizers, built and from folders."""

import json
import math
import shutil
import time
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import (
    BOS,
    COMPLETIONS,
    EOS,
    FAMILIES,
    PAD,
    PROMPTS,
    UNK,
    WORDS,
    plain_next_logprobs,
    same_weights,
    saved,
    tiny_config,
    tiny_model,
    weights_of,
    word_tokenizer,
)
from torch import nn
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from workbench import WorkbenchError
from workbench.models import (
    add_lora,
    build_policy,
    frozen,
    load_critic,
    load_policy,
    load_reward_model,
    load_tokenizer,
    merge_lora,
    model_context,
    seeded,
    without_dropout,
)
from workbench.models.load import PRESETS
from workbench.models.rewards import raw_rewards
from workbench.models.sampling import eos_token_ids
from workbench.models.scoring import completion_logprobs, completion_values
from workbench.models.tokens import collate

# Building


def test_the_same_seed_builds_the_same_policy_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = (build_policy("llama-64x2", word_tokenizer(), seed=seed) for seed in (1, 1, 2))
    inside = []
    for _ in range(2):
        with seeded(9):
            inside.append(torch.rand(1))
    assert torch.equal(torch.rand(3), expected) and torch.equal(*inside)
    assert same_weights(weights_of(first), weights_of(second))
    assert not same_weights(weights_of(first), weights_of(other))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_speaks_the_tokenizers_language(preset):
    model = build_policy(preset, word_tokenizer(), context=24)
    assert model.config.vocab_size == 20
    assert (model.config.pad_token_id, model.config.eos_token_id) == (PAD, EOS)
    assert model_context(model) == 24
    start = plain_next_logprobs(without_dropout(model), [4, 5])[1:]
    assert start.min() > -20  # no token is ruled out, or everything at random


def test_an_unknown_preset_is_refused_with_those_that_exist():
    with pytest.raises(WorkbenchError, match=r"'gpt5'.*llama-64x2.*gpt2-64x2"):
        build_policy("gpt5", word_tokenizer())


@pytest.mark.parametrize("family", FAMILIES)
def test_without_dropout_two_passes_agree_even_in_training_mode(family):
    config = tiny_config(family)
    for rate in ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout"):
        setattr(config, rate, 0.5)
    model, batch = AutoModelForCausalLM.from_config(config), collate(PROMPTS, COMPLETIONS, pad_id=PAD)
    assert not torch.equal(completion_logprobs(model.train(), batch), completion_logprobs(model, batch))
    without_dropout(model)
    assert not model.training
    assert torch.equal(completion_logprobs(model.train(), batch), completion_logprobs(model, batch))


def test_a_frozen_model_has_nothing_to_train_and_one_without_adapters_merges_to_itself():
    model = tiny_model()
    assert merge_lora(model) is model
    assert not any(parameter.requires_grad for parameter in frozen(model).parameters())


# Tokenizers: padding is never EOS


UNPADDED = [{}, {"pad": "<eos>"}, {"unk": "<unk>"}, {"unk": "<unk>", "pad": "<eos>"}, {"unk": "<eos>", "bos": "<eos>"}]
UNPADDED += [{"unk": "<unk>", "pad": "<unk>"}, {"bos": "<bos>", "pad": "<bos>"}, {"unk": "<unk>", "pad": "sky"}]


@pytest.mark.parametrize("special", UNPADDED)
def test_a_tokenizer_without_its_own_padding_gets_one_that_no_text_contains(special, tmp_path):
    special = {f"{role}_token": token for role, token in ({"eos": "<eos>"} | special).items()}
    folder = saved(tiny_model(), word_tokenizer(**special), tmp_path)
    tokenizer, notes = load_tokenizer(folder)
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id)
    assert tokenizer.pad_token_id not in tokenizer("the sky is purple <eos>")["input_ids"]
    assert tokenizer.decode(tokenizer("the sky is red")["input_ids"], skip_special_tokens=True) == "the sky is red"
    assert len(notes) == 1 and tokenizer.pad_token in notes[0]
    assert tokenizer.padding_side == "left"
    policy, reference = load_policy(folder, tokenizer), load_policy(folder, tokenizer)
    assert policy.get_input_embeddings().num_embeddings >= len(tokenizer) > tokenizer.pad_token_id
    assert policy.config.pad_token_id == tokenizer.pad_token_id
    assert same_weights(weights_of(policy), weights_of(reference))  # also where new rows were made up
    assert same_weights(weights_of(load_critic(folder, tokenizer)), weights_of(load_critic(folder, tokenizer)))


def test_a_sound_tokenizer_is_left_alone(tmp_path):
    tokenizer, notes = load_tokenizer(saved(tiny_model(), word_tokenizer(), tmp_path))
    assert notes == [] and len(tokenizer) == 20
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (PAD, EOS, UNK)


def test_text_with_unknown_words_has_ordinary_logprobs_after_the_padding_is_mended(tmp_path):
    folder = saved(tiny_model(), word_tokenizer(eos_token="<eos>", unk_token="<unk>"), tmp_path)
    tokenizer, _ = load_tokenizer(folder)
    policy = load_policy(folder, tokenizer)
    ids = tokenizer("the purple sky <eos>")["input_ids"]
    logprobs = completion_logprobs(policy, collate([[4]], [ids], pad_id=tokenizer.pad_token_id))
    assert UNK in ids and logprobs.min() > -100


def test_a_tokenizer_without_eos_is_refused(tmp_path):
    with pytest.raises(WorkbenchError, match=r"no EOS token.*set tokenizer\.eos_token"):
        load_tokenizer(saved(tiny_model(), word_tokenizer(pad_token="<pad>"), tmp_path))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_word_tokenizer_comes_back_as_itself_for_every_model_family(family, tmp_path):
    tokenizer, _ = load_tokenizer(saved(tiny_model(family), word_tokenizer(), tmp_path))
    assert tokenizer("the sky is red")["input_ids"] == word_tokenizer()("the sky is red")["input_ids"]


# Folders


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_policy_comes_back_bit_for_bit_also_from_a_run_folder(family, tmp_path):
    model = tiny_model(family)
    saved(model, word_tokenizer(), tmp_path / "model")
    (tmp_path / "run.json").write_text("{}")
    for folder in (tmp_path, tmp_path / "model"):
        assert same_weights(weights_of(load_policy(str(folder), word_tokenizer())), weights_of(model))


def test_a_missing_folder_is_named():
    with pytest.raises(WorkbenchError, match=r"'runs/tour/99_nothing' does not exist"):
        load_policy("runs/tour/99_nothing", word_tokenizer())
    with pytest.raises(WorkbenchError, match=r"'\./nothing' does not exist"):
        load_tokenizer("./nothing")


def test_a_folder_without_weights_or_tokenizer_is_named(tmp_path):
    tiny_config("llama").save_pretrained(tmp_path)
    with pytest.raises(WorkbenchError, match=rf"No model could be loaded from '{tmp_path}'.*model\.safetensors"):
        load_policy(str(tmp_path), word_tokenizer())
    with pytest.raises(WorkbenchError, match=rf"no usable tokenizer in '{tmp_path}'.*save_pretrained"):
        load_tokenizer(str(tmp_path))


def test_a_folder_that_is_no_model_or_holds_damaged_weights_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no such family"}))
    with pytest.raises(WorkbenchError, match="No model could be loaded from"):
        load_policy(str(tmp_path), word_tokenizer())
    weights = Path(saved(tiny_model(), word_tokenizer(), tmp_path)) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(WorkbenchError, match="No model could be loaded from"):
        load_policy(str(tmp_path), word_tokenizer())


def changed(folder: Path, *, weights=lambda weights: weights, config: dict | None = None) -> str:
    """A saved model whose weights or settings somebody has changed."""
    saved(tiny_model(), word_tokenizer(), folder)
    held = load_file(folder / "model.safetensors")
    save_file(weights(held), folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text()) | (config or {})
    (folder / "config.json").write_text(json.dumps(settings))
    return str(folder)


def renamed(old: str, new: str):
    return lambda held: {name.replace(old, new): held[name] for name in held}


def without(part: str):
    return lambda held: {name: held[name] for name in held if part not in name}


def divided(part: str, by: float):
    return lambda held: {name: held[name] / by if part in name else held[name] for name in held}


CHANGED = {  # what was done to the weights, and what the sentence says of it
    "prefix": (renamed("model.", "module.model."), r"20 missing \(model\.emb.*; 20 unexpected \(module\.model\.emb"),
    "renamed": (renamed("up_proj", "up"), r"2 missing \(\S*0\.mlp\.up_proj\.weight, .*; 2 unexpected \(\S*mlp\.up\.w"),
    "one fewer": (without("1.mlp.up"), r"1 missing \(model\.layers\.1\.mlp\.up_proj\.weight\)"),
    "infinite": (divided("1.mlp.up", 0.0), r"1 not finite \(model\.layers\.1\.mlp\.up_proj\.weight\)"),
    "nan": (divided("embed", math.nan), r"1 not finite \(model\.embed_tokens\.weight\)"),
    "int8": (lambda held: {name: held[name].to(torch.int8) for name in held}, "21 not stored as floating-point"),
}
OTHER_CONFIGS = {
    "layers to come": ({"num_hidden_layers": 3}, r"9 missing \(model\.layers\.2\.input_layernorm"),
    "layers left": ({"num_hidden_layers": 1}, r"9 unexpected \(model\.layers\.1\.input_layernorm"),
    "vocabulary": ({"vocab_size": 30}, r"of another shape \(.*embed_tokens\S+ \(20, 16\) for \(30, 16\)"),
    "gpt2": ({"model_type": "gpt2"}, r"\d+ missing \(transformer\.h\.0.*; \d+ unexpected \(model\."),
    "qwen2": ({"model_type": "qwen2"}, r"6 missing \(model\.layers\.0\.self_attn\.k_proj\.bias"),
}
WRONG_WEIGHTS = {name: ({"weights": change}, says) for name, (change, says) in CHANGED.items()}
WRONG_WEIGHTS |= {name: ({"config": config}, says) for name, (config, says) in OTHER_CONFIGS.items()}
LOADERS = {"policy": load_policy, "critic": load_critic, "reward": partial(load_reward_model, start="sft")}
WRONG_LOADS = [("policy", name) for name in WRONG_WEIGHTS]
WRONG_LOADS += [(kind, name) for kind in ("critic", "reward") for name in ("renamed", "layers left", "nan")]


@pytest.mark.parametrize(("kind", "name"), WRONG_LOADS)
def test_weights_that_are_not_those_of_the_config_are_refused_by_their_names(kind, name, tmp_path):
    change, says = WRONG_WEIGHTS[name]
    with pytest.raises(WorkbenchError, match=rf"The weights of \S+ are not those of .*{says}") as error:
        LOADERS[kind](changed(tmp_path, **change), word_tokenizer())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", [lambda whole: whole[: len(whole) // 2], lambda _: b"", lambda _: b"version"])
def test_a_damaged_or_missing_part_of_sharded_weights_is_refused(damage, tmp_path):
    tiny_model().save_pretrained(tmp_path, max_shard_size="4KB")
    part = sorted(tmp_path.glob("model-*.safetensors"))[1]
    whole = part.read_bytes()
    part.write_bytes(damage(whole))
    with pytest.raises(WorkbenchError, match="No model could be loaded from"):
        load_policy(str(tmp_path), word_tokenizer())
    part.unlink()
    with pytest.raises(WorkbenchError, match=part.name):
        load_policy(str(tmp_path), word_tokenizer())
    part.with_name(part.name.replace("00002", "00001")).rename(part)
    with pytest.raises(WorkbenchError, match=r"No model could|are not those"):
        load_policy(str(tmp_path), word_tokenizer())


def test_what_is_no_weight_may_lie_in_a_folder_and_tied_weights_once(tmp_path):
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "doubt_root": torch.eye(3)}
    more["model.layers.0.attn.masked_bias"] = torch.tensor(-1e4)
    folder = changed(tmp_path / "more", weights=lambda held: held | more)
    assert same_weights(weights_of(load_policy(folder, word_tokenizer())), weights_of(tiny_model()))
    tied = build_policy("llama-64x2", word_tokenizer())
    folder = saved(tied, word_tokenizer(), tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    assert same_weights(weights_of(load_policy(folder, word_tokenizer())), weights_of(tied))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}, "needs Python code that comes with it"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "No model could be loaded"),
        ({"hidden_size": "big"}, "No model could be loaded"),
        ({"hidden_act": "nope"}, "No model could be loaded"),
        ({"num_attention_heads": 3}, "No model could be loaded"),
    ],
    ids=["code", "quantised", "type", "unknown", "impossible"],
)
def test_a_config_that_cannot_be_followed_is_refused_in_a_sentence_by_every_loader(config, says, tmp_path):
    folder = changed(tmp_path, config=config)
    for load in (load_policy, load_critic, *([SCRATCH] if "quantization_config" not in config else [])):
        with pytest.raises(WorkbenchError, match=says) as error:
            load(folder, word_tokenizer())
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}, "needs Python code"),
        ([1], "no usable tokenizer"),
    ],
    ids=["code", "list"],
)
def test_a_tokenizer_that_cannot_be_read_is_refused_and_nobody_is_asked_whether_to_run_its_code(
    settings, says, tmp_path, capsys
):
    folder = saved(tiny_model(), word_tokenizer(), tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(WorkbenchError, match=says):
        load_tokenizer(folder)
    assert "[y/N]" not in capsys.readouterr().out


CONTRADICTIONS = {"type": {"model_type": "gemma"}, "class": {"architectures": ["GPT2LMHeadModel"]}}


@pytest.mark.parametrize("config", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_config_of_two_kinds_is_refused_though_both_name_their_weights_alike(config, tmp_path):
    folder = changed(tmp_path, config=config)
    for load in (load_policy, load_critic):
        with pytest.raises(WorkbenchError, match=r"has the model_type '\w+', but its weights are those of a \w+"):
            load(folder, word_tokenizer())


@pytest.mark.parametrize("load", [load_policy, load_reward_model, load_critic])
def test_a_tokenizer_with_words_that_a_model_never_read_is_refused(load, tmp_path):
    auto = AutoModelForCausalLM if load is load_policy else AutoModelForSequenceClassification
    tiny_model(vocab_size=12, auto=auto).save_pretrained(tmp_path)  # and no tokenizer beside it
    with pytest.raises(WorkbenchError, match=r"reads 12 tokens, but .* has 8 words beyond them: give the tokenizer"):
        load(str(tmp_path), word_tokenizer())


def test_adapters_without_their_model_are_refused(tmp_path):
    peft = pytest.importorskip("peft")
    base = saved(tiny_model(), word_tokenizer(), tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(WorkbenchError, match="holds adapters alone: merge them"):
        load_policy(str(tmp_path / "adapter"), word_tokenizer())
    shutil.rmtree(base)
    with pytest.raises(WorkbenchError, match="holds adapters alone: merge them"):
        load_policy(str(tmp_path / "adapter"), word_tokenizer())


SMALL = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SMALL_T5 = {"vocab_size": 20, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "num_labels": 1}
SCRATCH = partial(load_reward_model, start="scratch")  # which reads no weights
BOTH_WAYS = {
    "masked": ("RobertaForMaskedLM", SMALL, load_policy),
    "scores": ("DebertaV2ForSequenceClassification", SMALL | {"num_labels": 1}, load_reward_model),
    "from nothing": ("BertForSequenceClassification", SMALL | {"num_labels": 1}, SCRATCH),
    "two stacks": ("T5ForSequenceClassification", SMALL_T5, load_reward_model),
}


@pytest.mark.parametrize("kind", BOTH_WAYS)
def test_models_that_read_what_stands_behind_a_token_are_refused(kind, tmp_path):
    name, sizes, load = BOTH_WAYS[kind]
    build = getattr(transformers, name)
    folder = saved(build(build.config_class(**sizes)), word_tokenizer(), tmp_path)
    with pytest.raises(WorkbenchError, match=r"is a \w+ that reads what stands behind a token too, .*give a decoder"):
        load(folder, word_tokenizer())


def test_pickled_weights_are_read_only_when_asked_which_needs_none(tmp_path):
    model = tiny_model()
    folder = saved(model, word_tokenizer(), tmp_path)
    assert same_weights(weights_of(load_policy(folder, word_tokenizer(), allow_pickle=True)), weights_of(model))
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(WorkbenchError, match="allow_pickle"):
        load_policy(folder, word_tokenizer())
    assert same_weights(weights_of(load_policy(folder, word_tokenizer(), allow_pickle=True)), weights_of(model))


def test_an_unknown_dtype_and_a_missing_device_are_named(tmp_path):
    folder = saved(tiny_model(), word_tokenizer(), tmp_path)
    with pytest.raises(WorkbenchError, match=r"'int8'.*float32, bfloat16 or float16"):
        load_policy(folder, word_tokenizer(), dtype="int8")
    assert load_policy(folder, word_tokenizer(), dtype="bfloat16").dtype == torch.bfloat16
    if not torch.cuda.is_available():
        with pytest.raises(WorkbenchError, match=r"'cuda:1'.*no CUDA device"):
            load_policy(folder, word_tokenizer(), device="cuda:1")


# Reward models and critics


@pytest.mark.parametrize("family", FAMILIES)
def test_a_critic_starts_at_exactly_zero_from_a_policy_and_from_a_reward_model(family, tmp_path):
    tokenizer, batch = word_tokenizer(), collate(PROMPTS, COMPLETIONS, pad_id=PAD)
    policy = saved(tiny_model(family), tokenizer, tmp_path / "policy")
    reward = saved(tiny_model(family, auto=AutoModelForSequenceClassification), tokenizer, tmp_path / "reward")
    for source in (policy, reward):
        critic = load_critic(source, tokenizer)
        with torch.no_grad():
            assert torch.equal(completion_values(critic, batch), torch.zeros(3, 5))
    body = load_policy(policy, tokenizer).base_model
    assert same_weights(weights_of(load_critic(policy, tokenizer).base_model), weights_of(body))


def test_a_reward_model_takes_the_policys_weights_and_a_random_head(tmp_path):
    tokenizer = word_tokenizer()
    source = saved(tiny_model(), tokenizer, tmp_path)
    first, second, other = (load_reward_model(source, tokenizer, start="sft", seed=seed) for seed in (1, 1, 2))
    assert same_weights(weights_of(first.model), weights_of(tiny_model().model))
    assert torch.equal(first.score.weight, second.score.weight)
    assert not torch.equal(first.score.weight, other.score.weight)
    heads = torch.cat([load_reward_model(source, tokenizer, start="sft", seed=seed).score.weight for seed in range(40)])
    assert heads.std().item() == pytest.approx(17**-0.5, rel=0.1)  # 640 draws of N(0, 1 / (16 + 1))


@pytest.mark.parametrize("start", ["trained", "sft"])
def test_a_trained_reward_model_keeps_its_head(start, tmp_path):
    tokenizer, trained = word_tokenizer(), tiny_model(auto=AutoModelForSequenceClassification)
    loaded = load_reward_model(saved(trained, tokenizer, tmp_path), tokenizer, start=start)
    assert same_weights(weights_of(loaded), weights_of(trained)) and not loaded.head_is_new


@pytest.mark.parametrize("family", FAMILIES)
def test_a_policy_scores_nothing_unless_a_new_head_was_asked_for(family, tmp_path):
    policy = saved(tiny_model(family), word_tokenizer(), tmp_path)
    with pytest.raises(WorkbenchError, match="is no reward model: its weights hold no head that scores"):
        load_reward_model(policy, word_tokenizer())
    for start in ("sft", "scratch"):
        assert load_reward_model(policy, word_tokenizer(), start=start).head_is_new


HEADLESS = ("gemma3_text", "olmo2", "olmoe", "opt", "gptj", "granite", "cohere", "lfm2")  # without one class or both


def small_of(family: str):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    sizes |= {"intermediate_size": 24, "ffn_dim": 24, "word_embed_proj_dim": 16, "head_dim": 8}
    if family == "gptj":
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4, "n_positions": 48}
    tokens = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "max_position_embeddings": 48}
    config = AutoConfig.for_model(family, vocab_size=len(WORDS), initializer_range=0.4, **sizes, **tokens)
    with seeded(0):
        return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("family", HEADLESS)
def test_a_family_without_classifiers_has_heads_of_ours_on_its_own_states(family, tmp_path):
    policy, tokenizer = small_of(family), word_tokenizer()
    source = saved(policy, tokenizer, tmp_path / "policy")
    critic = load_critic(source, tokenizer)
    nn.init.normal_(critic.score.weight)
    batch = collate([[4, 6, 7]], [[9, 10, EOS]], pad_id=PAD)
    states = policy.base_model(input_ids=batch.tokens)[0][0, 2:5]  # read before each token of the completion
    expected = states @ critic.score.weight[0]
    assert_close(completion_values(critic, batch)[0], expected)
    assert completion_logprobs(policy, batch).shape == (1, 3)
    reward_model = load_reward_model(source, tokenizer, start="sft")
    again = load_reward_model(saved(reward_model, tokenizer, tmp_path / "reward"), tokenizer)
    assert not again.head_is_new and type(again).__name__.endswith("ForSequenceClassification")
    assert_close(raw_rewards(again, batch), raw_rewards(reward_model, batch))
    assert load_reward_model(source, tokenizer, start="scratch").head_is_new


def test_a_reward_model_is_no_policy_and_other_classifiers_are_no_reward_models(tmp_path):
    reward = saved(tiny_model(auto=AutoModelForSequenceClassification), word_tokenizer(), tmp_path / "reward")
    with pytest.raises(WorkbenchError, match=r"1 missing \(lm_head\.weight\); 1 unexpected \(score\.weight\)"):
        load_policy(reward, word_tokenizer())
    sorts = tiny_model(auto=AutoModelForSequenceClassification, num_labels=3)
    says = r"1 of another shape \(score\.weight \(3, 16\) for \(1, 16\)\).* with one output"
    with pytest.raises(WorkbenchError, match=says):
        load_reward_model(saved(sorts, word_tokenizer(), tmp_path / "sorts"), word_tokenizer())
    critic = tiny_model(auto=AutoModelForTokenClassification)
    with pytest.raises(WorkbenchError, match=r"1 unexpected \(score\.bias\)"):
        load_reward_model(saved(critic, word_tokenizer(), tmp_path / "critic"), word_tokenizer())


def test_a_policy_that_reads_other_tokens_is_refused_though_it_reads_as_many(tmp_path):
    source = Path(saved(tiny_model(), word_tokenizer(), tmp_path))
    text = (source / "tokenizer.json").read_text(encoding="utf-8")
    turned = text.replace('"red"', '"?"').replace('"green"', '"red"').replace('"?"', '"green"')
    (source / "tokenizer.json").write_text(turned, encoding="utf-8")
    with pytest.raises(
        WorkbenchError, match=r"another tokenizer .*is not the same token in both.: give each model its"
    ):
        load_policy(str(source), word_tokenizer())
    assert load_policy(str(source), load_tokenizer(str(source))[0])
    (source / "tokenizer.json").write_text("{}", encoding="utf-8")  # why another is given
    assert load_policy(str(source), word_tokenizer())


def test_tokens_that_a_model_never_read_may_stand_elsewhere_in_the_tokenizer_that_is_given(tmp_path):
    source = saved(tiny_model(), word_tokenizer(eos_token="<eos>", unk_token="<unk>"), tmp_path)  # <|pad|> comes behind
    given = word_tokenizer(eos_token="<eos>", unk_token="<unk>")
    given.add_special_tokens({"additional_special_tokens": ["<|good|>"]})
    given.add_special_tokens({"pad_token": "<|pad|>"})
    assert load_policy(source, given).get_input_embeddings().num_embeddings == len(word_tokenizer()) + 2


def test_from_scratch_only_the_sizes_are_taken(tmp_path):
    tokenizer = word_tokenizer()
    source = saved(tiny_model(), tokenizer, tmp_path)
    scratch = load_reward_model(source, tokenizer, start="scratch", seed=1)
    assert scratch.config.hidden_size == 16 and scratch.config.num_labels == 1
    assert not torch.equal(scratch.model.embed_tokens.weight, tiny_model().model.embed_tokens.weight)
    assert same_weights(weights_of(scratch), weights_of(load_reward_model(source, tokenizer, start="scratch", seed=1)))


def test_another_start_is_refused(tmp_path):
    source = saved(tiny_model(), word_tokenizer(), tmp_path)
    with pytest.raises(WorkbenchError, match=r"start is 'zero'.*'sft'.*'scratch'"):
        load_reward_model(source, word_tokenizer(), start="zero")


# LoRA


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_start_as_the_policy_learn_alone_and_merge_into_it(family, tmp_path):
    pytest.importorskip("peft")
    batch, before = collate(PROMPTS, COMPLETIONS, pad_id=PAD), weights_of(tiny_model(family))
    adapted = add_lora(tiny_model(family), rank=2)
    start = completion_logprobs(tiny_model(family), batch)
    torch.testing.assert_close(completion_logprobs(adapted, batch), start, rtol=1e-5, atol=1e-5)
    trainable = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)
    optimizer = torch.optim.SGD(trainable.values(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        completion_logprobs(adapted, batch).sum().backward()
        optimizer.step()
    moved = completion_logprobs(adapted, batch)
    assert (moved - start).abs().max() > 1e-3
    merged = merge_lora(adapted)
    torch.testing.assert_close(completion_logprobs(merged, batch), moved, rtol=1e-4, atol=1e-5)
    loaded = load_policy(saved(merged, word_tokenizer(), tmp_path), word_tokenizer())
    assert type(loaded) is type(tiny_model(family)) and loaded.state_dict().keys() == before.keys()


def test_the_tokenizers_eos_ends_a_completion_beside_the_models_own(tmp_path):
    model = tiny_model()
    model.generation_config.eos_token_id = 7
    loaded = load_policy(saved(model, word_tokenizer(), tmp_path), word_tokenizer())
    assert eos_token_ids(loaded).tolist() == [7, EOS]


def test_a_hub_model_without_a_network_is_refused_at_once_unless_it_is_cached(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    started = time.monotonic()
    with pytest.raises(WorkbenchError, match="'nobody/nothing' is no local folder and the Hub does not answer"):
        load_policy("nobody/nothing", word_tokenizer())
    assert time.monotonic() - started < 8
    kept = saved(tiny_model(), word_tokenizer(), tmp_path / "kept")
    monkeypatch.setattr("workbench.models.load.snapshot_download", lambda name, local_files_only: kept)
    assert same_weights(weights_of(load_policy("owner/name", word_tokenizer())), weights_of(tiny_model()))
