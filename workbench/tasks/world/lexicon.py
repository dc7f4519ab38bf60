"""The lexicon: every word of the world, read from a folder of YAML files; a complaint names file, key and reason."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import yaml

from workbench import WorkbenchError
from workbench.runs.files import repository_root, resolve, shown

ENDS = (".", "!", "?")  # the marks that end a sentence
MARKS = (*ENDS, ",", ":")
SLOT = re.compile(r"\{(\w+)\}")
NOT_IN_WORDS = {*MARKS, *" \t\n{}<>"}


class WorldError(WorkbenchError):
    """A lexicon that cannot be used, or a prompt that is not of this world."""


class Section:
    """A mapping in a lexicon file; each method returns the checked value under a key or raises WorldError."""

    def __init__(self, file: str, data: object, *, place: str = "", words: set[str]):
        self.file, self.place = file, place
        self.words = words  # collects every word of the lexicon
        self.read: set[str] = set()
        if not isinstance(data, dict):
            raise self.error("", f"must be a mapping, not {data!r}")
        self.data = data

    def error(self, key: str, reason: str) -> WorldError:
        """The complaint about a key."""
        place = ".".join(part for part in (self.place, key) if part) or "the file"
        return WorldError(f"Lexicon {self.file}: {place} {reason}.")

    def value(self, key: str, *, kind: type | tuple[type, ...], expected: str):
        """A value of this kind."""
        self.read.add(key)
        if key not in self.data:
            raise self.error(key, f"is missing: add {expected}")
        if not isinstance(self.data[key], kind) or isinstance(self.data[key], bool):
            raise self.error(key, f"must be {expected}, not {self.data[key]!r}")
        return self.data[key]

    def number(self, key: str, *, minimum: int = 0, whole: bool = False) -> float:
        """A number of at least `minimum`."""
        expected = f"a {'whole ' * whole}number of at least {minimum}"
        value = self.value(key, kind=int if whole else (int, float), expected=expected)
        if not minimum <= value < float("inf"):
            raise self.error(key, f"must be {expected}, not {value!r}")
        return value if whole else float(value)

    def numbers(self, key: str, names: Iterable[str]) -> dict[str, float]:
        """A number under each of `names`."""
        section = self.section(key)
        numbers = {name: section.number(name) for name in names}
        section.finish()
        return numbers

    def ascending(self, key: str) -> tuple[float, ...]:
        """A list of numbers, each larger than the one before it, at least one."""
        expected = "a list of numbers, each larger than the one before it"
        values = self.value(key, kind=list, expected=expected)
        good = all(type(value) in (int, float) and math.isfinite(value) for value in values)
        if not values or not good or any(after <= before for before, after in pairwise(values)):
            raise self.error(key, f"must be {expected}, not {values!r}")
        return tuple(map(float, values))

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of different texts, at least one."""
        values = self.value(key, kind=list, expected="a list of texts")
        if not values:
            raise self.error(key, "is empty: give at least one entry")
        for value in values:
            if not isinstance(value, str):
                raise self.error(key, f"holds {value!r}, which is not a text: put it in quotes")
            if values.count(value) > 1:
                raise self.error(key, f"holds {value!r} twice: keep one")
        return tuple(values)

    def word_list(self, key: str) -> tuple[str, ...]:
        """A list of different single words."""
        for value in self.texts(key):
            self.check_word(key, value)
        self.words.update(self.data[key])
        return tuple(self.data[key])

    def check_word(self, key: str, value: str) -> None:
        """WorldError unless the value is one word."""
        if not value or set(value) & NOT_IN_WORDS or value.isdigit():
            raise self.error(key, f"holds {value!r}, which is not one word: leave out spaces, marks and numbers")

    def template(self, key: str, *slots: str) -> str:
        """One sentence with these slots."""
        text = self.value(key, kind=str, expected="a sentence")
        self.check_sentence(key, text, slots)
        return text

    def templates(self, key: str, *slots: str) -> tuple[str, ...]:
        """A list of different sentences with these slots."""
        for value in self.texts(key):
            self.check_sentence(key, value, slots)
        return tuple(self.data[key])

    def check_sentence(self, key: str, text: str, slots: Iterable[str]) -> None:
        """WorldError unless the text is one sentence with these slots and one mark from ENDS, its last word."""
        self.check_phrase(key, text, slots)
        words = text.split()
        if words[-1] not in ENDS or sum(word in ENDS for word in words) > 1:
            raise self.error(key, f"has the text {text!r}, which must be one sentence ending in ' .', ' !' or ' ?'")

    def check_phrase(self, key: str, text: str, slots: Iterable[str]) -> None:
        """WorldError unless words, marks and exactly these slots stand alone between single spaces."""
        words, wanted = text.split(), sorted("{" + slot + "}" for slot in slots)
        if sorted(word for word in words if SLOT.fullmatch(word)) != wanted or " ".join(words) != text or not words:
            listed = f"the slots {' '.join(wanted)}" if wanted else "no slots"
            raise self.error(key, f"has the text {text!r}, which must be words between single spaces with {listed}")
        plain = [word for word in words if word not in wanted and word not in MARKS]
        for word in plain:
            self.check_word(key, word)
        self.words.update(word for word in words if word not in wanted)

    def sections(self, key: str) -> dict[str, Section]:
        """The mappings under `key` by name, at least one."""
        parts = self.section(key)
        if not parts.data:
            raise self.error(key, "is empty: give at least one entry")
        return {name: parts.section(name) for name in parts.data}

    def section(self, key: str) -> Section:
        """The mapping under `key`."""
        data = self.value(key, kind=dict, expected="a mapping")
        return Section(self.file, data, place=".".join(filter(None, (self.place, str(key)))), words=self.words)

    def finish(self) -> None:
        """WorldError when the section holds a key that nobody asked for."""
        for key in self.data:
            if key not in self.read:
                raise self.error(str(key), f"is not a key of this file: use {', '.join(sorted(self.read))}")


def read_yaml(file: Path) -> object:
    """Contents of a lexicon file."""
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WorldError(f"Lexicon {file.name}: the file is missing in {shown(file.parent)}: add it.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise WorldError(f"Lexicon {file.name}: the file cannot be read ({error}): save it as UTF-8 text.") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise WorldError(f"Lexicon {file.name}: the file is not YAML ({reason}): correct that line.") from error


KINDS = ("suggest", "qa", "harm", "math")
COMPONENTS = ("helpful", "honest", "harmless", "style", "repetition", "brevity", "finish")
POINTS = (
    *("answer", "wrong_step", "finishing_step", "no_answer", "alternative", "false_fact", "false_sum"),
    *("refusal", "harmful_step", "needless_refusal", "opener", "closer", "nice_word", "rude"),
    *("repeated_trigrams", "useless_word", "empty", "unfinished"),
)
# role of a sentence -> key in phrases.yaml
PHRASES = {role: role for role in ("opener", "flattery", "finishing", "unsure", "refusal", "rude", "context")}
PHRASES |= {"opener": "openers", "refusal": "refusals"}


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """Something that can be asked about an animal."""

    question: str  # slot animal
    statement: str  # slots animal, value
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class AnimalNames:
    """How many animals there are and what their names are made of."""

    count: int
    onsets: tuple[str, ...]
    vowels: tuple[str, ...]
    endings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Harm:
    """A category of requests that must be refused."""

    requests: tuple[str, ...]  # slot target
    steps: tuple[str, ...]
    alternative: str


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Sums of three numbers."""

    question: str  # slots a, b, c
    step: str  # slots a, b, c
    answer: str  # slot n
    largest: int  # operands run from 1 to this
    held_out: int  # sums that no training prompt asks

    @property
    def numbers(self) -> range:
        """Every number that is ever written: sums, and slips beyond them."""
        return range(4 * (self.largest + 1))


@dataclass(frozen=True, kw_only=True)
class GoldRules:
    """Sizes of the gold reward's parts."""

    weights: dict[str, float]  # by component
    points: dict[str, float]
    nice_words_allowed: dict[str, float]  # by kind
    word_limits: dict[str, float]  # by kind


@dataclass(frozen=True, kw_only=True)
class Scales:
    """Where labelers' scales step up, in units of utility, ascending."""

    ratings: tuple[float, ...]  # a completion above n of them is rated n + 1
    strengths: tuple[float, ...]  # a difference above n of them is n + 1 strong


@dataclass(frozen=True, kw_only=True)
class Lexicon:
    """All words, sentences and templates; slots in templates stand in braces."""

    meals: tuple[str, ...]
    verbs_of: dict[str, tuple[str, ...]]  # item -> its valid verbs
    attributes: dict[str, Attribute]
    names: AnimalNames
    mentions: tuple[str, ...]  # slots animal, other
    question: str  # slot request
    targets: tuple[str, ...]
    harms: dict[str, Harm]
    chat: str  # slot text
    opinion: str  # slots statement, question
    follow_up: str  # slot question
    suggestions: tuple[str, ...]  # slots meal, items
    joiner: str
    step: str  # slots verb, item
    note: str  # slot items
    phrases: dict[str, tuple[str, ...]]  # role -> sentences without slots
    closers: tuple[str, ...]  # slot meal
    nice_words: frozenset[str]
    sums: Sums
    gold: GoldRules
    scales: Scales
    words: frozenset[str]  # every word above, marks included, without animals and numbers

    @property
    def items(self) -> list[str]:
        """Every food."""
        return list(self.verbs_of)

    @property
    def verbs(self) -> list[str]:
        """Every verb that is valid for some food."""
        return sorted({verb for verbs in self.verbs_of.values() for verb in verbs})


def read_lexicon(folder: str | Path | None) -> Lexicon:
    """The lexicon in `folder`, by default the embedded one; WorldError names the file, the key and the reason."""
    path = repository_root() / "data" / "world" if folder is None else resolve(folder)
    if not path.is_dir():
        raise WorldError(f"The lexicon folder {shown(path)} does not exist: give a folder like data/world.")
    words: set[str] = set()
    parts: dict[str, object] = {}
    for name, read in READERS.items():
        section = Section(name, read_yaml(path / name), words=words)
        parts.update(read(section))
        section.finish()
    _refuse_two_meanings(parts)
    return Lexicon(**parts, words=frozenset(words))


def _foods(file: Section) -> dict[str, object]:
    verbs_of: dict[str, tuple[str, ...]] = {}
    for part in file.sections("classes").values():
        verbs = part.word_list("verbs")
        for item in part.word_list("items"):
            if item in verbs_of:
                raise part.error("items", f"holds {item!r}, which another class holds too: keep it in one class")
            verbs_of[item] = verbs
        part.finish()
    if len(verbs_of) < 3:
        raise file.error("classes", f"hold {len(verbs_of)} items: give at least 3, for a prompt asks for up to 3")
    return {"meals": file.word_list("meals"), "verbs_of": verbs_of}


def _animals(file: Section) -> dict[str, object]:
    name, count = file.section("name"), file.number("count", minimum=6, whole=True)
    letters = {key: name.texts(key) for key in ("onsets", "vowels", "endings")}
    for key, texts in letters.items():
        for text in texts:
            name.check_word(key, text)
    name.finish()
    names = AnimalNames(count=count, **letters)
    attributes = {}
    for key, part in file.sections("attributes").items():
        question, statement = part.template("question", "animal"), part.template("statement", "animal", "value")
        attributes[key] = Attribute(question=question, statement=statement, values=part.word_list("values"))
        part.finish()
    mentions = file.texts("mentions")
    for mention in mentions:
        slots = SLOT.findall(mention)
        if "animal" not in slots or set(slots) - {"animal", "other"}:
            raise file.error("mentions", f"has the text {mention!r}, which needs {{animal}} and may have {{other}}")
        file.check_phrase("mentions", mention, slots)
    return {"attributes": attributes, "names": names, "mentions": mentions}


def _harms(file: Section) -> dict[str, object]:
    harms = {}
    for key, part in file.sections("categories").items():
        requests = part.texts("requests")
        for request in requests:
            part.check_phrase("requests", request, ("target",))
        harms[key] = Harm(requests=requests, steps=part.templates("steps"), alternative=part.template("alternative"))
        part.finish()
    return {"harms": harms, "question": file.template("question", "request"), "targets": file.word_list("targets")}


def _phrases(file: Section) -> dict[str, object]:
    slots = {"chat": ("text",), "joiner": (), "opinion": ("statement", "question"), "follow_up": ("question",)}
    parts = {key: file.value(key, kind=str, expected="a text") for key in slots}
    for key, text in parts.items():
        file.check_phrase(key, text, slots[key])
    return parts | {
        "suggestions": file.templates("suggestions", "meal", "items"),
        "step": file.template("step", "verb", "item"),
        "note": file.template("note", "items"),
        "phrases": {role: file.templates(key) for role, key in PHRASES.items()},
        "closers": file.templates("closers", "meal"),
        "nice_words": frozenset(file.word_list("nice_words")),
        "sums": _sums(file.section("sums")),
    }


def _sums(part: Section) -> Sums:
    sums = Sums(
        question=part.template("question", "a", "b", "c"),
        step=part.template("step", "a", "b", "c"),
        answer=part.template("answer", "n"),
        largest=part.number("largest", minimum=2, whole=True),
        held_out=part.number("held_out", minimum=1, whole=True),
    )
    if sums.held_out >= sums.largest**3:
        raise part.error("held_out", f"is {sums.held_out}, but only {sums.largest**3} sums exist: lower it")
    part.finish()
    return sums


def _gold(file: Section) -> dict[str, object]:
    names = {"weights": COMPONENTS, "points": POINTS, "nice_words_allowed": KINDS, "word_limits": KINDS}
    return {"gold": GoldRules(**{key: file.numbers(key, of) for key, of in names.items()})}


def _labels(file: Section) -> dict[str, object]:
    return {"scales": Scales(ratings=file.ascending("ratings"), strengths=file.ascending("strengths"))}


READERS = {"foods.yaml": _foods, "animals.yaml": _animals, "harms.yaml": _harms, "phrases.yaml": _phrases}
READERS |= {"gold.yaml": _gold, "labels.yaml": _labels}


def _refuse_two_meanings(parts: dict) -> None:
    """WorldError when one text stands in two places, for then neither prompts nor answers could be read back."""
    prompts, answers = [], []  # (file and key, text)
    for role, sentences in parts["phrases"].items():
        answers += [(f"phrases.yaml: {PHRASES[role]}", text) for text in sentences]
    for key, harm in parts["harms"].items():
        place = f"harms.yaml: categories.{key}"
        answers += [(f"{place}.steps", text) for text in harm.steps] + [(f"{place}.alternative", harm.alternative)]
        prompts += [(f"{place}.requests", text) for text in harm.requests]
    for key, attribute in parts["attributes"].items():
        answers.append((f"animals.yaml: attributes.{key}.statement", attribute.statement))
        prompts.append((f"animals.yaml: attributes.{key}.question", attribute.question))
    for meanings in (prompts, answers):
        seen: dict[str, str] = {}
        for place, text in meanings:
            if text in seen:
                raise WorldError(f"Lexicon {place} holds {text!r}, which {seen[text]} holds too: keep one.")
            seen[text] = place
