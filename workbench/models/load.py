"""Policies, reward models and critics as standard transformers classes, built from nothing or loaded."""

import contextlib
import json
import re
from pathlib import Path

import torch
import transformers
from huggingface_hub import HfApi, snapshot_download
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    AddedToken,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.activations import NewGELUActivation
from transformers.utils import find_adapter_config_file

from workbench import WorkbenchError
from workbench.models.chat_templates import end_ids, turn_of
from workbench.models.computing import compute_in
from workbench.models.heads import class_for
from workbench.models.scoring import scalar_head
from workbench.models.tokens import control_token_ids
from workbench.models.value_guided import ValueGuidedPolicy  # noqa: F401  known to AutoModelForCausalLM from now on
from workbench.runs.files import file_and_function, hub_answers, resolve
from workbench.runs.resume import quiet
from workbench.runs.reward_names import OF_TASK, sources_of

PRESETS = {
    "llama-32x1": {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4},
    "llama-64x2": {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "llama-96x3": {"model_type": "llama", "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4},
    "qwen2-64x2": {"model_type": "qwen2", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gpt2-64x2": {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4},
}


def preset_config(preset: str, tokenizer, context: int) -> PretrainedConfig:
    """The configuration of PRESETS[preset] for `tokenizer`, `context` tokens; WorkbenchError for an unknown preset."""
    if preset not in PRESETS:
        raise WorkbenchError(f"There is no model preset {preset!r}: choose one of {', '.join(PRESETS)}.")
    if context < 2:
        raise WorkbenchError(f"context is {context}: give at least 2 tokens, one to read and one to predict.")
    sizes = dict(PRESETS[preset])
    family = sizes.pop("model_type")
    if family == "gpt2":
        sizes |= {"n_positions": context, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    else:
        sizes |= {"intermediate_size": sizes["hidden_size"] * 8 // 3 // 8 * 8, "max_position_embeddings": context}
        sizes |= {"num_key_value_heads": sizes["num_attention_heads"]}
    return AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        initializer_range=0.05,  # 1/sqrt(width) is .1-.125 at these widths; .02 trains several times more slowly
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **sizes,
    )


HEADS = ("lm_head", "embed_out", "score", "classifier")  # last layers: a folder has the one of what it was trained as
NO_WEIGHTS = re.compile(r"doubt_|.*(inv_freq|masked_bias|attn\.bias|position_ids)$")  # our own, and buffers of old
GIVE_A_MODEL = (
    "give a folder made by save_pretrained, with config.json and model.safetensors (pickled weights: allow_pickle)"
)
ITS_OWN = "give each model its own, and a reference, a rival or a part one of its family"  # of tokenizers
OF_ITS_FAMILY = (
    "read a reward model with its own tokenizer, and start a critic, which reads the policy's tokens, from a model of "
    "the policy's family (name that first) or take an algorithm without one (rloo, grpo)"
)
FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors names them
PADDING = re.compile(r"[<\[].+[>\]]")  # a padding token that looks like one; anything else may be a word


@contextlib.contextmanager
def seeded(seed: int):
    """Inside, torch's global generator starts at `seed`; outside, it never moved."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def build_policy(preset: str, tokenizer, *, context: int = 128, seed: int = 0, device: str = "cpu"):
    """A causal LM with random weights for `tokenizer`; raises WorkbenchError for an unknown preset."""
    config = preset_config(preset, tokenizer, context)
    _note_tokens(config, tokenizer, config.vocab_size)
    _require_device(device)
    with seeded(seed):
        return _quicker(AutoModelForCausalLM.from_config(config)).to(device)


def load_tokenizer(source: str):
    """The tokenizer of a Hub id or folder, and a list of sentences about what was mended in it.

    Padding must be a token of its own, or real text would be taken for padding: where it is EOS, BOS, a word or the
    unknown one, or missing, `<|pad|>` is added (and `load_policy` enlarges the embedding). A tokenizer without EOS
    raises WorkbenchError: no text would ever end.
    """
    folder = _model_folder(source)
    with _explained(source, "There is no usable tokenizer in", "save one there with tokenizer.save_pretrained"):
        tokenizer = _tokenizer_class(folder).from_pretrained(folder, trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise WorkbenchError(
            f"The tokenizer of {source!r} has no EOS token, so no completion could end: "
            "set tokenizer.eos_token and save it again."
        )
    tokenizer.padding_side = "left"
    return tokenizer, _with_own_padding(tokenizer)


def load_own_tokenizer(source: str):
    """`load_tokenizer` of a folder or Hub id without its notes, None for a folder that holds no tokenizer."""
    folder = Path(_model_folder(source))
    holds = any(re.search("token|vocab|spiece", path.name) for path in folder.iterdir()) if folder.is_dir() else True
    return load_tokenizer(source)[0] if holds else None


def _with_own_padding(tokenizer) -> list[str]:
    """What had to be mended, as sentences, so that no text holds the padding token."""
    pad, end = tokenizer.pad_token, turn_of(tokenizer).end
    roles = {"EOS": tokenizer.eos_token, "BOS": tokenizer.bos_token, "the unknown token": tokenizer.unk_token}
    had = next(
        (role for role, token in {**roles, "the end of a turn": end}.items() if token == pad), f"the word {pad!r}"
    )
    is_word = pad and pad not in (*roles.values(), end)
    if is_word and PADDING.fullmatch(pad):
        return []
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    if is_word and tokenizer.is_fast:  # it is no longer special, and so no longer left out of texts
        tokenizer.add_tokens([AddedToken(pad, special=False, normalized=False)])
        tokenizer._tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    had = f"{had} as its padding token" if pad else "no padding token"
    return [f"The tokenizer had {had}; it now pads with {tokenizer.pad_token!r}."]


def load_policy(source: str, tokenizer, *, device: str = "cpu", dtype: str = "float32", allow_pickle: bool = False):
    """A causal LM from a Hub id or folder, ready for `tokenizer`.

    Only safetensors weights are read unless `allow_pickle` (a pickle can run code). Raises WorkbenchError where the
    folder, its config or its weights are missing, the weights are not those that the config asks for, or the tokens are
    not those that it was trained with.
    """
    model, _ = _load(AutoModelForCausalLM, source, device=device, dtype=dtype, allow_pickle=allow_pickle)
    _require_rows(model, source, tokenizer)
    _require_own_tokens(model, source, tokenizer, ITS_OWN)
    _fit_vocabulary(model, tokenizer)
    return model


def load_reward_model(source: str, tokenizer, *, start="trained", preset="", seed: int = 0, device="cpu"):
    """A sequence classifier with one output, (B,) per row; its `head_is_new` says whether that was ever trained.

    `start`: "trained" takes a reward model as it is, to score with; to be trained, "sft" takes the weights of `source`
    (a policy, or a reward model with its head), "scratch" only its configuration, or that of `preset` with the context
    of `source`. A new head starts at N(0, 1/(d+1)) (Stiennon et al. 2020, appendix B.1). WorkbenchError where a head
    should be trained and is not there.
    """
    if preset and start != "scratch":
        raise WorkbenchError(f"preset is {preset!r}, but start {start!r} takes its size from {source!r}: set it to ''.")
    settings = {"start": start, "preset": preset, "seed": seed, "device": device}
    return _load_scalar(AutoModelForSequenceClassification, source, tokenizer, **settings)


def load_critic(source: str, tokenizer, *, start: str = "sft", device="cpu"):
    """A token classifier with one output, (B, T) values, whose head starts at zero: the first values are exactly 0.

    `source` is the SFT policy or the reward model it starts from; `start` "scratch" takes only the configuration.
    WorkbenchError where its tokenizer is not the policy's, whose token ids it is to read.
    """
    critic = _load_scalar(AutoModelForTokenClassification, source, tokenizer, start=start, device=device)
    for weight in scalar_head(critic).parameters():
        nn.init.zeros_(weight)
    return critic


def frozen(model, *, precision: str = "fp32"):
    """The same model without gradients and without dropout, its matrices kept in that precision."""
    compute_in(model, precision, stored=True)
    return without_dropout(model).requires_grad_(False)


def without_dropout(model):
    """The same model with every dropout rate at 0, so that training and scoring see one function."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return model.eval()


def add_lora(policy, *, rank: int, seed: int = 0):
    """The policy with trainable low-rank adapters on every linear layer, all else frozen. Hu et al. 2022.

    Raises WorkbenchError where the `lora` extra is not installed.
    """
    if rank < 1:
        raise WorkbenchError(f"lora_rank is {rank}: give a rank of at least 1, or 0 to train every weight.")
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise WorkbenchError("LoRA needs the package peft: install it with pip install -e .[lora].") from error
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with seeded(seed):
        return get_peft_model(policy, config)


def merge_lora(policy):
    """The policy as a standard transformers model: adapters, where there are any, merged into the weights."""
    return policy.merge_and_unload() if hasattr(policy, "merge_and_unload") else policy


def _load_scalar(auto_class, source: str, tokenizer, *, start: str, device: str, seed: int = 0, preset: str = ""):
    if start not in ("trained", "sft", "scratch"):
        raise WorkbenchError(f"start is {start!r}: choose 'sft' (the weights of {source!r}) or 'scratch'.")
    with seeded(seed):
        if start == "scratch":
            with _explained(source):
                config = AutoConfig.from_pretrained(_model_folder(source), num_labels=1, trust_remote_code=False)
                if preset:
                    config = preset_config(preset, tokenizer, model_context(config))
                    _note_tokens(config, tokenizer, config.vocab_size)
                    config.num_labels = 1
                model = _quicker(class_for(auto_class, config).from_config(config))
                model.to(device, torch.float32)  # whatever it was saved in
                _require_causal(model.eval(), source)
            model.head_is_new = True
        else:
            model, model.head_is_new = _load(auto_class, source, device=device, num_labels=1)
            _require_own_tokens(model, source, tokenizer, OF_ITS_FAMILY)
            _require_rows(model, source, tokenizer)
        if start == "trained" and model.head_is_new:
            raise WorkbenchError(
                f"{source!r} is no reward model: its weights hold no head that scores, and a new one would score at "
                "random; give the folder of a trained one (05_reward_model makes it)."
            )
        if model.head_is_new:
            nn.init.normal_(scalar_head(model).weight, std=(scalar_head(model).in_features + 1) ** -0.5)
    _fit_vocabulary(model, tokenizer)
    return without_dropout(model)


def _require_own_tokens(model, source: str, tokenizer, cure: str) -> None:
    """WorkbenchError unless a trained model knows the words of `tokenizer`, all under its ids but for added ones."""
    words, added, own = tokenizer.get_vocab(), tokenizer.added_tokens_encoder, None
    with contextlib.suppress(WorkbenchError):  # its folder may hold none that can be read, which is why one is given
        own = load_own_tokenizer(source)
    rows = model.get_input_embeddings().num_embeddings  # a token beyond them was added, too, and never read
    known = {word: index for word, index in own.get_vocab().items() if index < rows} if own else words
    other = next(
        (word for word, index in words.items() if known.get(word, index if word in added else -1) != index), ""
    )
    if other:
        raise WorkbenchError(
            f"{source!r} was trained with another tokenizer than that of {tokenizer.name_or_path!r} ({other!r} is not "
            f"the same token in both): {cure}."
        )


def _require_rows(model, source: str, tokenizer) -> None:
    """WorkbenchError where a trained model lacks words of `tokenizer`: only tokens that were added may be new to it."""
    rows, added = model.get_input_embeddings().num_embeddings, tokenizer.added_tokens_encoder
    lacking = sum(index >= rows for word, index in tokenizer.get_vocab().items() if word not in added)
    if lacking:
        raise WorkbenchError(
            f"{source!r} reads {rows} tokens, but the tokenizer {tokenizer.name_or_path!r} has {lacking} words beyond "
            "them: give the tokenizer that the model was trained with."
        )


def _load(auto_class, source: str, *, device: str, dtype: str = "float32", allow_pickle: bool = False, **config):
    """The model, and whether its last layer is new because the folder is of another kind of model."""
    _require_device(device)
    if dtype not in ("float32", "bfloat16", "float16"):
        raise WorkbenchError(f"dtype is {dtype!r}: choose float32, bfloat16 or float16.")
    folder = _model_folder(source)
    with _explained(source), quiet():
        if find_adapter_config_file(folder):
            raise WorkbenchError(f"{source!r} holds adapters alone: merge them into their model and save that.")
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model, found = class_for(auto_class, settings).from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            use_safetensors=None if allow_pickle else True,  # None: pickled weights where there are no others
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the library would not say which
            **config,
        )
    new_head = _require_all_weights(model, found, source)
    kinds = [getattr(transformers, name, None) for name in settings.architectures or []]
    if kinds and all(kind is not None and kind.config_class is not type(settings) for kind in kinds):
        raise WorkbenchError(  # kinds that name their weights alike compute differently
            f"config.json of {source!r} has the model_type {settings.model_type!r}, but its weights are those of a "
            f"{settings.architectures[0]}: correct it, or give a folder as save_pretrained wrote it."
        )
    with _explained(source):
        _require_causal(model, source)
    return _quicker(model).to(device), new_head


@torch.no_grad()
def _require_causal(model, source: str) -> None:
    """WorkbenchError where what a model makes of a token depends on those behind it, which sampling can not know."""
    both = getattr(model.config, "is_encoder_decoder", False)
    if not both:
        tokens = torch.tensor([[0, 1, 2, 2], [0, 1, 3, 3]], device=model.device)
        first, second = model.base_model(input_ids=tokens, attention_mask=torch.ones_like(tokens))[0][:, 1].float()
    if both or (first - second).abs().max() > 1e-3 * first.abs().max():
        raise WorkbenchError(
            f"{source!r} is a {type(model).__name__} that reads what stands behind a token too, but policies, rewards "
            "and critics here are read from left to right: give a decoder (GPT-2, Llama, Qwen, ...)."
        )


@contextlib.contextmanager
def _explained(source: str, problem: str = "No model could be loaded from", cure: str = GIVE_A_MODEL):
    """Turn whatever the library says of a folder, in exceptions of many kinds, into one sentence."""
    try:
        yield
    except WorkbenchError:
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise WorkbenchError(
                f"{source!r} needs Python code that comes with it (auto_map in its settings), which is never run here: "
                "give one of a kind that transformers has."
            ) from error
        (said,) = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise WorkbenchError(f"{problem} {source!r} ({said[:160]}): {cure}.") from error


def _require_all_weights(model, found: dict, source: str) -> bool:
    """Whether the scalar head is new; WorkbenchError where any other weight is: the library makes up what it lacks."""
    own = tuple(f"{name}." for name in ("score", "classifier") if hasattr(model, name))
    others = tuple(f"{name}." for name in HEADS if own and f"{name}." not in own)
    stored = {name for path in Path(model.name_or_path).glob("*.safetensors") for name in _not_floats(path)}
    wrong = {
        "missing": [name for name in found["missing_keys"] if not name.startswith(own)],
        "unexpected": [
            name for name in found["unexpected_keys"] if not NO_WEIGHTS.match(name) and not name.startswith(others)
        ],
        "of another shape": [f"{name} {(*held,)} for {(*asked,)}" for name, held, asked in found["mismatched_keys"]],
        "not stored as floating-point numbers": stored,
        "not finite": [name for name, weight in model.named_parameters() if not weight.isfinite().all()],
    }
    said = [f"{len(names)} {what} ({', '.join(sorted(names)[:3])})" for what, names in wrong.items() if names]
    if said:
        raise WorkbenchError(
            f"The weights of {source!r} are not those of the {type(model).__name__} that its config.json describes: "
            f"{'; '.join(said)}; give a folder as save_pretrained wrote it{', of a model with one output' * bool(own)}."
        )
    return bool(own) and any(name.startswith(own) for name in found["missing_keys"])


def _not_floats(path: Path) -> list[str]:
    """Names of weights that a file holds as integers, say quantised, and which would be read as if they were floats."""
    with safe_open(path, framework="pt") as weights:
        names = [name for name in weights.keys() if name.endswith(".weight")]  # noqa: SIM118 - no dict
        return [name for name in names if weights.get_slice(name).get_dtype() not in FLOATS]


def _quicker(model):
    """The same model with GPT-2's activation as one operation instead of eight, equal to rounding."""
    for module in list(model.modules()):
        for name, part in module.named_children():
            if isinstance(part, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
    return model


def _require_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # unknown to torch; known, but not built in
        kind = device.split(":")[0].upper()
        raise WorkbenchError(
            f"device is {device!r} but this machine has no {kind} device: use device='cpu'."
        ) from error


def _model_folder(source: str) -> str:
    """A local folder where there is one (relative to the repository root), else the Hub id or what is cached of it."""
    if not source.strip():
        raise WorkbenchError("No model was named: give a run folder, a model folder or a Hub id.")
    folder = resolve(source)
    if folder.is_dir():
        inner = folder / "model"  # a run folder keeps its model there
        return str(inner if inner.is_dir() and not (folder / "config.json").exists() else folder)
    looks_local = source.startswith((".", "/", "~", "runs/")) or source.count("/") > 1 or folder.exists()
    if looks_local:
        raise WorkbenchError(
            f"The model folder {source!r} does not exist: run the stage that makes it, or give a Hub id."
        )
    return source if hub_answers(HfApi().model_info, source) else _cached(source)


def _cached(source: str) -> str:
    """The folder in which the Hub's library keeps its copy of a model."""
    try:
        return snapshot_download(source, local_files_only=True)
    except (OSError, ValueError) as error:  # never downloaded, or no valid name
        raise WorkbenchError(
            f"{source!r} is no local folder and the Hub does not answer: check the name, or give a model folder."
        ) from error


def _fit_vocabulary(model, tokenizer) -> None:
    """The embedding holds every token of `tokenizer`; the config says which end a text and which are never said."""
    known, needed = model.get_input_embeddings().num_embeddings, max(tokenizer.get_vocab().values()) + 1
    if needed > known:
        with seeded(0), quiet():  # new rows are random, and equal for a policy and its reference
            model.resize_token_embeddings(needed)
            _tell_apart(model, [index for index in control_token_ids(tokenizer) if index >= known])
    model.config.pad_token_id = tokenizer.pad_token_id
    _note_tokens(model.config, tokenizer, max(needed, known))
    settings = getattr(model, "generation_config", None)  # scalar models have none
    if settings is not None:
        known = settings.eos_token_id
        ids = [known] if isinstance(known, int) else list(known or [])
        # a chat tokenizer may end with another token than its base model did; training appends the tokenizer's
        settings.eos_token_id = list(dict.fromkeys([*ids, *end_ids(tokenizer)]))


@torch.no_grad()
def _tell_apart(model, rows: list[int]) -> None:
    """As far from one another as words are: the mean word, which new rows start as, would make control tokens alike."""
    weight = model.get_input_embeddings().weight
    weight[rows] = torch.randn(len(rows), weight.shape[1]).to(weight) * weight.std()


def _note_tokens(config, tokenizer, rows: int) -> None:
    """What sampling and scoring must know: which tokens end a text, and which of all `rows` are never said."""
    if ids := control_token_ids(tokenizer):
        config.control_token_ids = ids
    ends = end_ids(tokenizer)
    config.eos_token_id = ends if len(ends) > 1 else ends[0]
    wordless = sorted(set(range(rows)).difference(tokenizer.get_vocab().values()))  # rows of padded embeddings
    if wordless or hasattr(config, "wordless_ids"):
        config.wordless_ids = wordless


def _tokenizer_class(folder: str):
    """The class that reads the folder's tokenizer as it was saved.

    AutoTokenizer replaces a generic tokenizer by the one its model family usually has (Qwen2's byte-level one, say),
    which then reads a word-level vocabulary as nonsense; a tokenizer that says it is generic is taken at its word.
    """
    settings, data = Path(folder) / "tokenizer_config.json", Path(folder) / "tokenizer.json"
    if not (settings.is_file() and data.is_file()):
        return AutoTokenizer
    declared = json.loads(settings.read_text(encoding="utf-8")).get("tokenizer_class")
    generic = declared in ("TokenizersBackend", "PreTrainedTokenizerFast")
    return PreTrainedTokenizerFast if generic else AutoTokenizer


def model_context(model) -> int:
    """The longest sequence that a model, or one of that config, can read, in tokens; 0 where nothing says."""
    config = getattr(model, "config", model)
    return int(getattr(config, "max_position_embeddings", 0) or getattr(config, "n_positions", 0) or 0)


def local_folders(**sources: str) -> dict[str, str]:
    """Those sources that are here, by name: the folder of a model's weights, the file of "my_file.py:score".

    For `Run.open(inputs=)`. A Hub id has no folder and "" means none was given; both are left out.
    """
    asked = {name: (source, *file_and_function(source)) for name, source in sources.items() if source}
    places = {name: str(resolve(file)) if own else _model_folder(source) for name, (source, file, own) in asked.items()}
    return {name: place for name, place in places.items() if Path(place).exists()}


def listed_folders(**sources: str) -> dict[str, str]:
    """`local_folders` of lists, of models or rewards: the first has its list's name, the others a number behind it."""
    numbered = {}
    for name, listed in sources.items():
        read = [source for source in dict.fromkeys(sources_of(listed)) if not source.startswith(OF_TASK)]
        numbered |= {f"{name}_{at}" if at > 1 else name: source for at, source in enumerate(read, 1)}
    return local_folders(**numbered)
