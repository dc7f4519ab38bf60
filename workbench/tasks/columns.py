"""Rows from anywhere -> the standard columns, which every trainer here and TRL read.

Four formats are recognised: plain text, conversations (lists of {role, content}), conversations in a column `messages`
whose last message is the answer, and preferences whose prompt is only the shared beginning of `chosen` and `rejected`.
Other names are never guessed: `columns` says what they mean.
"""

from __future__ import annotations

import hashlib
import random
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

from datasets import Dataset, concatenate_datasets

from workbench import WorkbenchError
from workbench.runs import names_in
from workbench.runs.files import WIDTHLESS
from workbench.tasks.schemas import SCHEMAS, TIE, checked, kind_of, schema_named

ANSWER_MARKER = "\n\nAssistant:"  # what asks for an answer in the HH-RLHF dialogues
ANSWERS = ("completion", "completions", "chosen", "rejected")  # columns of what may follow a prompt
LONGEST_LETTER = 8  # characters that may make one, such as a vowel and its accents
FEW_WORDS = 5  # an answer may begin with a prompt of fewer by chance ("Hi" with "Hi there")
NOTHING: Mapping[str, list] = {}


class MissingColumn(WorkbenchError):
    """Data without a column of the schema."""


def to_standard(
    dataset: Dataset,
    schema: str,
    *,
    source: str,
    columns: dict[str, str] | None = None,
    mixed: Mapping[str, list] = NOTHING,
) -> Dataset:
    """The rows in the columns of `schema`, first, and every other column after them.

    `columns` maps standard names to the data's; `mixed` is that of a `sources.Source`. WorkbenchError names `source`,
    the row (the first is 0) and the column.
    """
    needed, columns = schema_named(schema).columns, columns or {}
    dataset = _of_one_type(dataset, schema, columns, mixed, source)
    if "prompt" in needed:
        dataset = _with_answer_split_off(dataset, schema, columns, source)
        dataset = _with_prompt_split_off(dataset, columns, source)
    dataset = _renamed(dataset, schema, columns, source)
    missing = [name for name in needed if name not in dataset.column_names]
    if missing:
        raise MissingColumn(
            f"{source} has no column {', '.join(map(repr, missing))}, which the schema {schema!r} needs (found: "
            f"{', '.join(dataset.column_names)}): say which column it is with "
            f'columns="{missing[0]}=NAME", or take data with it.'
        )
    dataset = _without_repeated_prompts(checked(dataset, schema, source), schema, source)
    if schema == "preferences" and "preference" in dataset.column_names:
        dataset = Dataset.from_list([_with_better_chosen(row) for row in dataset])
    return dataset.select_columns([*needed, *(name for name in dataset.column_names if name not in needed)])


def parse_columns(text: str) -> dict[str, str]:
    """`"prompt=question,completion=answer"` as a mapping from standard names to the data's; empty text as none."""
    columns: dict[str, str] = {}
    for part in text.split(",") if text.strip() else []:
        ours, _, theirs = (side.strip() for side in part.partition("="))
        if not ours or not theirs or "=" in theirs or ours in columns:
            raise WorkbenchError(
                f"columns is {text!r}, expected each standard name once with the data's name: "
                'write it like "prompt=question,completion=answer".'
            )
        columns[ours] = theirs
    return columns


def split_by_prompt(dataset: Dataset, *, held_out: float, seed: int, column: str = "prompt") -> tuple[Dataset, Dataset]:
    """Training rows and held-out rows, about `held_out` (a share) of the prompts in `column`, none on both sides.

    A prompt's place depends on its text and the seed alone, not on the order of rows.
    """
    if not 0 < held_out < 1:
        raise WorkbenchError(f"held_out is {held_out}, expected a share between 0 and 1: use 0.1 for a tenth.")
    keys = [hashlib.sha256(f"{seed} {_key(prompt)}".encode()).hexdigest() for prompt in dataset[column][:]]
    unique = sorted(set(keys))
    if len(unique) < 2:
        raise WorkbenchError(
            f"A split by prompt needs at least 2 different prompts, but {len(keys)} rows have {len(unique)}: give more."
        )
    test = set(unique[: min(max(round(held_out * len(unique)), 1), len(unique) - 1)])
    sides = ([row for row, key in enumerate(keys) if (key in test) == held] for held in (False, True))
    return tuple(map(dataset.select, sides))


def _key(prompt: str | list[dict[str, Any]]) -> str:
    """What prompts share that differ in blanks, line ends or Unicode form alone."""
    texts = [prompt] if isinstance(prompt, str) else [f"{turn['role']}: {turn['content']}" for turn in prompt]
    seen = [each if each.isascii() else WIDTHLESS.sub("", unicodedata.normalize("NFKC", each)) for each in texts]
    return "\n".join("".join(each.split()) for each in seen)


def _renamed(dataset: Dataset, schema: str, columns: dict[str, str], source: str) -> Dataset:
    """The dataset with the user's columns under their standard names; a column that had such a name gives way."""
    known = SCHEMAS[schema].known
    unknown = [name for name in columns if name not in known]
    if unknown:
        raise WorkbenchError(
            f"columns names {unknown[0]!r}, which the schema {schema!r} does not have: use {', '.join(known)}."
        )
    absent = [name for name in columns.values() if name not in dataset.column_names]
    if absent:
        found = ", ".join(dataset.column_names)
        raise WorkbenchError(f"{source} has no column {absent[0]!r} (found: {found}): correct it in columns.")
    if len(set(columns.values())) < len(columns):
        raise WorkbenchError(f"columns uses one column twice ({columns}): give each standard name its own column.")
    replaced = [name for name in columns if name in dataset.column_names and name not in columns.values()]
    return dataset.remove_columns(replaced).rename_columns({theirs: ours for ours, theirs in columns.items()})


def _with_better_chosen(pair: dict[str, Any]) -> dict[str, Any]:
    """The comparison with the likelier completion as `chosen`: where `preference` is below .5, they change places."""
    preference = pair["preference"]
    if preference is None or preference >= TIE:
        return pair
    turned = {"chosen": pair["rejected"], "rejected": pair["chosen"], "preference": 1 - preference}
    return pair | turned | ({"margin": -pair["margin"]} if pair.get("margin") else {})


def _with_answer_split_off(dataset: Dataset, schema: str, columns: dict[str, str], source: str) -> Dataset:
    """Conversations that hold their answers as prompts and completions.

    They are those of the column `messages`, or of the prompt's where no other column has answers. The last message is
    the answer; earlier ones are part of its prompt.
    """
    name = columns.get("prompt", "messages" if "messages" in dataset.column_names else "prompt")
    answered = {columns.get(answer, answer) for answer in ANSWERS}.intersection(dataset.column_names)
    fits = schema == "prompts" or "completion" in SCHEMAS[schema].columns
    if not fits or answered or not _first_message(dataset, name):
        return dataset
    prompts, answers = [], []
    for row, turns in enumerate(dataset[name][:]):
        where = f"{source}: row {row} (the first is 0), column {name!r}"
        kind_of(turns, where)
        end = len(turns) - (turns[-1]["role"] == "assistant")
        if end == 0 or (end == len(turns) and schema != "prompts"):
            raise WorkbenchError(
                f"{where} has {len(turns)} messages, the last of the role {turns[-1]['role']!r}: end it with a prompt "
                "and its answer (role 'assistant'), or remove the row."
            )
        prompts.append(turns[:end])
        answers.append(turns[end:])
    split = {columns.get("prompt", "prompt"): prompts} | ({} if schema == "prompts" else {"completion": answers})
    return _beside(Dataset.from_dict(split), dataset, leaving_out=name)


def _of_one_type(
    dataset: Dataset, schema: str, columns: dict[str, str], mixed: Mapping[str, list], source: str
) -> Dataset:
    """The dataset with `mixed` conversations as roles and contents alone; other texts without one type are refused.

    Numbers and truth values are read whatever they are written as.
    """
    names = SCHEMAS[schema].texts
    if "prompt" in names and columns.get("prompt", "prompt") not in dataset.column_names:
        names += ["messages", "chosen", "rejected"]  # which may hold the prompt
    for name in (theirs for theirs in (columns.get(name, name) for name in names) if theirs in mixed):
        where = f"{source}: row %d (the first is 0), column {name!r}"
        kinds = {kind_of(value, where % row) for row, value in enumerate(mixed[name])} if name != "completions" else {}
        if kinds != {"conversation"}:
            raise WorkbenchError(f"{source}: column {name!r} does not have one type in all rows: give it one.")
        turns = [[{key: turn[key] for key in ("role", "content")} for turn in value] for value in mixed[name]]
        dataset = _beside(Dataset.from_dict({name: turns}), dataset)
    return dataset


def _first_message(dataset: Dataset, name: str) -> dict[str, Any]:
    """The first message of the first conversation in a column, {} where it has none."""
    first = next(filter(None, dataset[name]), None) if name in dataset.column_names else None
    return first[0] if isinstance(first, list) and isinstance(first[0], dict) else {}


def _beside(first: Dataset, others: Dataset, *, leaving_out: str = "") -> Dataset:
    """The columns of `first`, and of the others those that are no older form of them."""
    others = others.remove_columns([name for name in others.column_names if name in (leaving_out, *first.column_names)])
    return concatenate_datasets([first, others], axis=1) if others.column_names else first


def _with_prompt_split_off(dataset: Dataset, columns: dict[str, str], source: str) -> Dataset:
    """The dataset with the shared beginning of `chosen` and `rejected` as its prompt, where they hold it."""
    prompt, chosen, rejected = (columns.get(name, name) for name in ("prompt", "chosen", "rejected"))
    if not {chosen, rejected} <= set(dataset.column_names) or len(dataset) == 0:
        return dataset
    repeated = prompt in dataset.column_names and isinstance(dataset[0][prompt], str)
    repeated = repeated and _first_message(dataset, chosen).get("role", "assistant") != "assistant"
    if prompt in dataset.column_names and not repeated:
        return dataset
    parts, given = [], dataset[prompt][:] if repeated else []
    for row, pair in enumerate(zip(dataset[chosen][:], dataset[rejected][:], strict=True)):
        where = f"{source}: row {row} (the first is 0)"
        parts.append(_split_pair(*pair, where=where))
        if repeated and str(given[row]).strip() != parts[-1][0][-1]["content"].strip():
            raise WorkbenchError(
                f"{where} has a prompt that is not the last message that chosen and rejected share: remove the prompt "
                "column, or give all three as conversations."
            )
    columns_of_parts = [list(values) for values in zip(*parts, strict=True)]
    return _beside(Dataset.from_dict(dict(zip((prompt, chosen, rejected), columns_of_parts, strict=True))), dataset)


def _split_pair(chosen: Any, rejected: Any, *, where: str) -> tuple[Any, Any, Any]:
    """The prompt that two texts or conversations share, and what each adds to it."""
    kind = kind_of(chosen, f"{where}, column 'chosen'")
    if kind != kind_of(rejected, f"{where}, column 'rejected'"):
        raise WorkbenchError(f"{where} has a chosen {kind} and a rejected of another kind: give two of one kind.")
    length = (_shared_turns if kind == "conversation" else _shared_text)(chosen, rejected)
    if length == 0:
        raise WorkbenchError(
            f"{where}: chosen and rejected share no beginning that ends where an answer starts (text: "
            f"{ANSWER_MARKER!r}; conversation: a message of the role 'assistant'), so they have no prompt: "
            "give a prompt column of their kind."
        )
    return chosen[:length], chosen[length:], rejected[length:]


def _shared_text(chosen: str, rejected: str) -> int:
    """Characters up to the end of the last answer marker before which both texts are equal, 0 without one."""
    ends = [marker.end() for marker in re.finditer(ANSWER_MARKER, chosen)]
    return max((end for end in ends if chosen[:end] == rejected[:end]), default=0)


def _shared_turns(chosen: list[dict], rejected: list[dict]) -> int:
    """How many leading messages both share such that an answer comes next in both, 0 without any."""
    next_turns = list(enumerate(zip(chosen, rejected, strict=False)))[1:]
    answers = [turn for turn, both in next_turns if both[0]["role"] == both[1]["role"] == "assistant"]
    return max((turn for turn in answers if chosen[:turn] == rejected[:turn]), default=0)


def _without_repeated_prompts(dataset: Dataset, schema: str, source: str) -> Dataset:
    """The rows without the prompt at the start of their answers, where it would be trained on a second time.

    In text that may be chance: the prompt has `FEW_WORDS` words or a line break, or all answers start with theirs.
    WorkbenchError where an answer still starts with a question.
    """
    names = [name for name in ANSWERS if name in SCHEMAS[schema].columns and schema != "stepwise"]
    if not names:
        return dataset
    rows = dataset.select_columns(["prompt", *names]).to_list()
    cut = [row | {name: _rest(row["prompt"], row[name], name) for name in names} for row in rows]
    everywhere = all(before[name] != after[name] for before, after in zip(rows, cut, strict=True) for name in names)
    for number, row in enumerate(rows):
        short = isinstance(row["prompt"], str) and len(row["prompt"].split()) < FEW_WORDS
        if not everywhere and short and "\n" not in row["prompt"].strip():
            cut[number] = row
        texts = [cut[number][name] for name in names if name != "completions"] or cut[number]["completions"]
        if odd := {text[0]["role"] for text in texts if not isinstance(text, str)}.intersection(("user", "system")):
            raise WorkbenchError(
                f"{source}: row {number} (the first is 0) has an answer that begins with a message of the role "
                f"{odd.pop()!r}: give the answer alone (role 'assistant'), or with all of its prompt before it."
            )
    return dataset if cut == rows else _beside(Dataset.from_list(cut), dataset)


def _rest(prompt: Any, answer: Any, name: str) -> Any:
    """What an answer says after its whole prompt in any spelling that `_key` knows, all of it without one."""
    if name == "completions":
        return [_rest(prompt, each, "") for each in answer]
    if not isinstance(prompt, str):
        return answer[len(prompt) :] or answer if _key(answer[: len(prompt)]) == _key(prompt) else answer
    asked = _key(prompt)
    if answer.startswith(prompt) or not _key(answer).startswith(asked):
        return answer.removeprefix(prompt) or answer
    least = bisect_left(range(len(answer)), len(asked), key=lambda end: len(_key(answer[:end])))
    ends = range(least, min(least + LONGEST_LETTER, len(answer)))
    return next((answer[end:] for end in ends if _key(answer[:end]) == asked), answer)


# --- Which comparisons a reward model learns from, and how wrong their labels are made: what a study varies.


def selected_rows(rows: Dataset, *, count: int, half: int = 0, labelers: str = "") -> Dataset:
    """At most `count` rows (0 = all) of one half of the data (1 or 2; 0 = both) that `labelers` (with commas) judged.

    The halves are the odd and the even rows: reward models of different halves share no comparison.
    WorkbenchError where nothing is left, or a labeler is not in the data.
    """
    if count < 0 or half not in (0, 1, 2):
        raise WorkbenchError(f"pairs is {count} and half is {half}: give a whole number from 0, and 0, 1 or 2.")
    kept = range(len(rows)) if half == 0 else range(half - 1, len(rows), 2)
    if labelers:
        wanted = set(names_in(labelers))
        names = [str(name) for name in rows["labeler"][:]] if "labeler" in rows.column_names else []
        if missing := wanted - set(names):
            found = ", ".join(sorted(set(names))) or "no column `labeler`"
            raise WorkbenchError(f"labelers names {', '.join(sorted(missing))}, but the data has {found}.")
        kept = [row for row in kept if names[row] in wanted]
    if not kept:
        raise WorkbenchError(f"half is {half} and labelers is {labelers!r}: no row is left of {len(rows)}.")
    return rows.select(kept[: count or None])


def with_flipped_labels(rows: Dataset, *, share: float, seed: int) -> Dataset:
    """The same comparisons with each label turned round with probability `share`, independently.

    WorkbenchError where the share is outside 0 to .5 or the rows are no comparisons.
    """
    if not 0 <= share <= 0.5:
        raise WorkbenchError(f"label_noise is {share}: give a share from 0 to .5, where labels say nothing any more.")
    if share == 0:
        return rows
    if not {"chosen", "rejected"} <= set(rows.column_names):
        found = ", ".join(rows.column_names)
        raise WorkbenchError(f"label_noise turns comparisons round, but the columns are {found}: set it to 0.")
    generator = random.Random(seed)
    sides = zip(rows["chosen"][:], rows["rejected"][:], strict=True)
    sides = [(loser, winner) if generator.random() < share else (winner, loser) for winner, loser in sides]
    chosen, rejected = (list(side) for side in zip(*sides, strict=True))
    return Dataset.from_dict(rows.to_dict() | {"chosen": chosen, "rejected": rejected}, features=rows.features)
