"""Tokenizers made on the spot, of every kind that reads a text in its own way, and chat templates of every kind."""

import json
from collections.abc import Callable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LINES = ["Question: how long is a day?\nAnswer: twenty four hours.", "\n\nHuman: hi\n\nAssistant: hello there, human."]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
EACH, ASKED, END = "{% for m in messages %}", "{% if add_generation_prompt %}", "{% endif %}"
AS_MODEL = "{% set role = 'model' if m.role == 'assistant' else m.role %}"
REASONED = "{% set said = m.content.split('</think>')[-1].lstrip('\n') %}{% set why = m.content.split('</think>')[0] %}"
TEMPLATES = {
    # turns that end as texts do
    "chatml": EACH + "<turn>{{ m.role }}\n{{ m.content }}<eos>\n{% endfor %}" + ASKED + "<turn>assistant\n" + END,
    # BOS by the template, an end of turn that is not EOS, trimmed contents, roles of its own
    "gemma": "{{ bos_token }}"
    + EACH
    + AS_MODEL
    + "<turn>{{ role }}\n{{ m.content | trim }}<end>\n{% endfor %}"
    + ASKED
    + "<turn>model\n"
    + END,
    # no BOS, marks that are ordinary text
    "zephyr": EACH + "<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}" + ASKED + "<|assistant|>\n" + END,
    # nothing that asks for an answer, an answer right behind a bracket, a blank before its end
    "llama2": "{{ bos_token }}"
    + EACH
    + "{% if m.role == 'assistant' %}{{ m.content }} {{ eos_token }}{% else %}[INST] {{ m.content }} [/INST]{% endif %}"
    + "{% endfor %}",
    # another end of turn, and EOS behind a conversation that asks for nothing
    "phi": EACH
    + "<turn>{{ m.role }}\n{{ m.content }}<end>\n{% endfor %}"
    + ASKED
    + "<turn>assistant\n{% else %}{{ eos_token }}"
    + END,
    # a template that refuses to speak for nobody
    "system": "{% if messages[0].role != 'system' %}{{ raise_exception('who am I?') }}{% endif %}"
    + EACH
    + "<turn>{{ m.role }}\n{{ m.content }}<end>\n{% endfor %}"
    + ASKED
    + "<turn>assistant\n"
    + END,
    # nothing of its own at an answer's end
    "bare": EACH + "[{{ m.role }}] {{ m.content }}\n{% endfor %}" + ASKED + "[assistant]" + END,
    # reasoning is written, empty where there is none
    "thinking": EACH
    + "{% if m.role == 'assistant' %}"
    + REASONED
    + "<turn>assistant\n<think>\n{{ why.split('<think>')[-1].strip('\n') if '</think>' in m.content else '' }}\n"
    + "</think>\n\n{{ said }}<eos>\n{% else %}<turn>{{ m.role }}\n{{ m.content }}<eos>\n{% endif %}{% endfor %}"
    + ASKED
    + "<turn>assistant\n"
    + END,
    # the request opens reasoning, and what was reasoned is not shown again
    "opened": EACH
    + "<turn>{{ m.role }}\n{{ m.content.split('</think>')[-1].lstrip('\n') }}<eos>\n{% endfor %}"
    + ASKED
    + "<turn>assistant\n<think>\n"
    + END,
}
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]


def byte_bpe(*, before: str = "", after: str = "", chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer, of which every text has a round trip; it puts `before` and `after` around every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, SPECIAL[:3], before, after, chat_template, pre_tokenizers.ByteLevel.alphabet())


def prefixed_bpe(*, before: str = "", after: str = "", chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that puts a blank before every text, as RoBERTa's and OPT's may."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, SPECIAL[:3], before, after, chat_template, pre_tokenizers.ByteLevel.alphabet())


def sentencepiece(
    *, dummy: bool = True, before: str = "", after: str = "", chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    """A tokenizer that writes blanks as ▁ and, with `dummy`, one before every text and behind every special token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    prepended = [normalizers.Prepend("▁")] if dummy else []
    tokenizer.normalizer = normalizers.Sequence([*prepended, normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, *([decoders.Strip(" ", 1, 0)] if dummy else [])])
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    return _trained(tokenizer, special, before, after, chat_template, list("abcdefghijklmnopqrstuvwxyzABHQ.,:?|<>[]"))


def metaspace(
    *, scheme: str = "first", before: str = "", after: str = "", chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    """The same by a pre-tokenizer, as newer ones do it: ▁ before the "first" part alone, or "always"."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)])
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    return _trained(tokenizer, special, before, after, chat_template, list("abcdefghijklmnopqrstuvwxyzABHQ.,:?|<>[]"))


TOKENIZERS: dict[str, Callable[..., PreTrainedTokenizerFast]] = {
    "byte-level": byte_bpe,
    "byte-level, adds BOS": lambda **more: byte_bpe(before="<bos>", **more),
    "byte-level, adds BOS and EOS": lambda **more: byte_bpe(before="<bos>", after="<eos>", **more),
    "byte-level, adds a blank": prefixed_bpe,
    "dummy prefix, adds BOS": lambda **more: sentencepiece(before="<bos>", **more),
    "no dummy prefix": lambda **more: sentencepiece(dummy=False, **more),
    "blank before the first": lambda **more: metaspace(before="<bos>", **more),
    "blank before all": lambda **more: metaspace(scheme="always", **more),
}


def _trained(
    tokenizer: Tokenizer, special: list[str], before: str, after: str, chat_template: str | None, alphabet: list[str]
) -> PreTrainedTokenizerFast:
    """The tokenizer with 40 words beyond its alphabet, and with the marks of turns where it has a template."""
    size = len(special) + len(alphabet) + 41
    settings = {"special_tokens": special, "initial_alphabet": alphabet, "show_progress": False}
    tokenizer.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=size, **settings))
    made = json.loads(tokenizer.to_str())  # bytes are words, not special
    made["added_tokens"] = [token for token in made["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(made))
    if before or after:
        template = " ".join(part for part in (before, "$A", after) if part)
        ids = [(token, tokenizer.token_to_id(token)) for token in SPECIAL[:3]]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    names |= {"unk_token": "<unk>"} if "<unk>" in special else {}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **names)
    marks = [mark for mark in ("<turn>", "<end>") if mark in (chat_template or "")]
    if marks:
        wrapped.add_special_tokens({"additional_special_tokens": marks}, replace_extra_special_tokens=False)
    wrapped.chat_template = chat_template
    return wrapped
