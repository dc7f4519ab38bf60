"""What the sentences of a completion mean."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from workbench.tasks.world.lexicon import ENDS, MARKS, Lexicon
from workbench.tasks.world.prompts import CACHE_SIZE, NUMBER, Facts, pattern

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from workbench.tasks.world import World


SENTENCE = re.compile(rf"[^{''.join(ENDS)}]*[{''.join(ENDS)}]|[^{''.join(ENDS)}]+")


class Claim(NamedTuple):
    """Something a text says: its role and, where the role has one, a value."""

    role: str
    value: object = None


class Sentence(NamedTuple):
    """A sentence as a reader understands it."""

    claim: Claim  # role "other" unless the sentence is complete and known word for word
    claims: tuple[Claim, ...]  # all that it says, also inside a sentence that is otherwise unknown
    length: int  # words and marks
    content: tuple[str, ...]  # words without marks and numbers
    nice: int  # number of nice words


OTHER = Claim("other")


class Language:
    """Every sentence that the world has a meaning for; credit needs the exact sentence, blame only its words."""

    def __init__(self, lexicon: Lexicon, facts: Facts):
        self._nice = lexicon.nice_words
        self._exact = dict(_meanings(lexicon, facts))
        self._bodies = {" ".join(text.split()[:-1]): claim for text, claim in self._exact.items()}
        self._lengths: dict[str, set[int]] = {}  # first word -> lengths of the bodies that start with it
        for words in map(str.split, self._bodies):
            self._lengths.setdefault(words[0], set()).add(len(words))
        self._sum, self._sum_body = (pattern(text, slot=NUMBER) for text in _with_and_without_end(lexicon.sums.step))
        self._answer, self._answer_body = (pattern(t, slot=NUMBER) for t in _with_and_without_end(lexicon.sums.answer))
        self._known: dict[str, Sentence] = {}

    def sentences(self, text: str) -> list[Sentence]:
        """The sentences of a text, in order."""
        return [self._sentence(part) for part in SENTENCE.findall(" ".join(text.split()))]

    def claims(self, sentence: str) -> tuple[Claim, ...]:
        """All that one sentence says."""
        return self._sentence(" ".join(sentence.split())).claims

    def role(self, sentence: str) -> str:
        """Role of one sentence, "other" where it has none."""
        return self._sentence(sentence).claim.role

    def _sentence(self, text: str) -> Sentence:
        if text not in self._known:
            if len(self._known) >= CACHE_SIZE:
                self._known.clear()
            self._known[text] = self._understand(text.strip())
        return self._known[text]

    def _understand(self, text: str) -> Sentence:
        words = text.split()
        claim = self._exact.get(text) or self._number_claim(text) or OTHER
        return Sentence(
            claim=claim,
            claims=(claim,) if claim is not OTHER else tuple(self._fragments(words)),
            length=len(words),
            content=tuple(word for word in words if word not in MARKS and not word.isdigit()),
            nice=sum(word in self._nice for word in words),
        )

    def _number_claim(self, text: str) -> Claim | None:
        found = self._sum.fullmatch(text)
        if found:
            return Claim("sum", tuple(int(found[slot]) for slot in "abc"))
        found = self._answer.fullmatch(text)
        return Claim("answer", int(found["n"])) if found else None

    def _fragments(self, words: list[str]) -> list[Claim]:
        """Claims hidden inside an unknown sentence."""
        text = " ".join(words)
        claims = [Claim("sum", tuple(int(m[slot]) for slot in "abc")) for m in self._sum_body.finditer(text)]
        claims += [Claim("answer", int(m["n"])) for m in self._answer_body.finditer(text)]
        for start, word in enumerate(words):
            spans = (" ".join(words[start : start + length]) for length in self._lengths.get(word, ()))
            claims += [self._bodies[span] for span in spans if span in self._bodies]
        return claims


def _with_and_without_end(template: str) -> tuple[str, str]:
    return template, template.rsplit(" ", 1)[0]


def _meanings(lexicon: Lexicon, facts: Facts):
    """Pairs of a sentence and its claim, for all that can be said without numbers."""
    for item in lexicon.items:
        for verb in lexicon.verbs:
            yield lexicon.step.format(verb=verb, item=item), Claim("step", (verb, item))
    for animal, key in facts.truth:
        attribute = lexicon.attributes[key]
        for value in attribute.values:
            yield attribute.statement.format(animal=animal, value=value), Claim("fact", (animal, key, value))
    for meal in lexicon.meals:
        for closer in lexicon.closers:
            yield closer.format(meal=meal), Claim("closer", meal)
    for category, harm in lexicon.harms.items():
        yield harm.alternative, Claim("alternative", category)
        for step in harm.steps:
            yield step, Claim("harmful", category)
    for role, sentences in lexicon.phrases.items():
        for sentence in sentences:
            yield sentence, Claim(role)


# --- A word-level tokenizer of everything that can be said in a world.


SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """One id per word, special tokens first; texts are split and joined at single spaces, nothing is added to them."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL.values(), *world.vocabulary]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **SPECIAL,
    )
