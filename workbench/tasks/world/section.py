"""Reading the lexicon's files: every complaint names the file, the key and the reason."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import yaml

from workbench import WorkbenchError
from workbench.runs.files import shown

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

    def number(self, key: str) -> float:
        """A number of at least 0."""
        expected = "a number of at least 0"
        value = self.value(key, kind=(int, float), expected=expected)
        if not 0 <= value < float("inf"):
            raise self.error(key, f"must be {expected}, not {value!r}")
        return float(value)

    def integer(self, key: str, *, minimum: int) -> int:
        """A whole number of at least `minimum`."""
        expected = f"a whole number of at least {minimum}"
        value = self.value(key, kind=int, expected=expected)
        if value < minimum:
            raise self.error(key, f"must be {expected}, not {value!r}")
        return value

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
        if not values or not all(type(value) in (int, float) and math.isfinite(value) for value in values):
            raise self.error(key, f"must be {expected}, not {values!r}")
        if any(after <= before for before, after in pairwise(values)):
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
        values = self.texts(key)
        for value in values:
            self.check_word(key, value)
        self.words.update(values)
        return values

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
        values = self.texts(key)
        for value in values:
            self.check_sentence(key, value, slots)
        return values

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
