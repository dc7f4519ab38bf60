"""Rows from anywhere -> the standard columns, which every trainer here and TRL read.

Three formats are recognised: plain text, conversations (lists of {role, content}), and preferences whose prompt is only
the shared beginning of `chosen` and `rejected`. Other names are never guessed: `columns` says what they mean.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from datasets import Dataset, concatenate_datasets

from workbench.errors import WorkbenchError
from workbench.sources import read_source

STANDARD_COLUMNS = {
    "text": ("text",),
    "prompts": ("prompt",),
    "demonstrations": ("prompt", "completion"),
    "preferences": ("prompt", "chosen", "rejected"),
}
OPTIONAL_COLUMNS = {"preferences": ("margin",)}  # margin: how much better the chosen completion is, any unit
ANSWER_MARKER = "\n\nAssistant:"  # what asks for an answer in the HH-RLHF dialogues


def load_dataset_rows(
    source: str, *, schema: str, split: str = "train", limit: int = 0, columns: dict[str, str] | None = None
) -> Dataset:
    """The first `limit` rows (0 = all) of a source that `sources.read_source` takes, in the columns of `schema`."""
    _require_schema(schema)
    if limit < 0:
        raise WorkbenchError(f"limit is {limit}, but it counts rows: use 0 for all rows, or a positive number.")
    dataset = read_source(source, split=split)
    if limit:
        dataset = dataset.select(range(min(limit, len(dataset))))
    return to_standard(dataset, schema, source=source, columns=columns)


def to_standard(dataset: Dataset, schema: str, *, source: str, columns: dict[str, str] | None = None) -> Dataset:
    """The rows in the columns of `schema`, first, and every other column after them.

    `columns` maps standard names to the data's. WorkbenchError names `source`, the row (the first is 0) and the column.
    """
    _require_schema(schema)
    columns = columns or {}
    if "prompt" in STANDARD_COLUMNS[schema]:
        dataset = _with_prompt_split_off(dataset, columns, source)
    dataset = _renamed(dataset, schema, columns, source)
    missing = [name for name in STANDARD_COLUMNS[schema] if name not in dataset.column_names]
    if missing:
        raise WorkbenchError(
            f"{source} has no column {missing[0]!r}, which {schema} need (found: {', '.join(dataset.column_names)}): "
            f'say which column it is with columns="{missing[0]}=NAME".'
        )
    _require_rows(dataset, schema, source)
    if schema == "preferences":
        _require_different(dataset, source)
        dataset = _with_numeric_margin(dataset, source)
    others = [name for name in dataset.column_names if name not in STANDARD_COLUMNS[schema]]
    return dataset.select_columns([*STANDARD_COLUMNS[schema], *others])


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


def split_by_prompt(dataset: Dataset, *, held_out: float, seed: int) -> tuple[Dataset, Dataset]:
    """Training rows and held-out rows, about `held_out` (a share) of the prompts; no prompt is on both sides.

    A prompt's place depends on its text and the seed alone, not on the order of rows.
    """
    if not 0 < held_out < 1:
        raise WorkbenchError(f"held_out is {held_out}, expected a share between 0 and 1: use 0.1 for a tenth.")
    keys = [hashlib.sha256(f"{seed} {_key(prompt)}".encode()).hexdigest() for prompt in dataset["prompt"][:]]
    unique = sorted(set(keys))
    if len(unique) < 2:
        raise WorkbenchError(
            f"A split by prompt needs at least 2 different prompts, but {len(keys)} rows have {len(unique)}: give more."
        )
    count = min(max(round(held_out * len(unique)), 1), len(unique) - 1)
    test = set(unique[:count])
    rows = range(len(keys))
    return (
        dataset.select([row for row in rows if keys[row] not in test]),
        dataset.select([row for row in rows if keys[row] in test]),
    )


def _key(prompt: str | list[dict[str, Any]]) -> str:
    """A prompt as text that is equal for equal prompts only."""
    return json.dumps(prompt, sort_keys=True)


def _require_schema(schema: str) -> None:
    if schema not in STANDARD_COLUMNS:
        raise WorkbenchError(f"The schema {schema!r} is unknown: use one of {', '.join(STANDARD_COLUMNS)}.")


def _renamed(dataset: Dataset, schema: str, columns: dict[str, str], source: str) -> Dataset:
    """The dataset with the user's columns under their standard names; a column that had such a name gives way."""
    known = STANDARD_COLUMNS[schema] + OPTIONAL_COLUMNS.get(schema, ())
    unknown = [name for name in columns if name not in known]
    if unknown:
        raise WorkbenchError(f"columns names {unknown[0]!r}, which {schema} do not have: use {', '.join(known)}.")
    absent = [name for name in columns.values() if name not in dataset.column_names]
    if absent:
        found = ", ".join(dataset.column_names)
        raise WorkbenchError(f"{source} has no column {absent[0]!r} (found: {found}): correct it in columns.")
    if len(set(columns.values())) < len(columns):
        raise WorkbenchError(f"columns uses one column twice ({columns}): give each standard name its own column.")
    replaced = [name for name in columns if name in dataset.column_names and name not in columns.values()]
    return dataset.remove_columns(replaced).rename_columns({theirs: ours for ours, theirs in columns.items()})


def _with_prompt_split_off(dataset: Dataset, columns: dict[str, str], source: str) -> Dataset:
    """The dataset with the shared beginning of `chosen` and `rejected` as its prompt, where they hold it."""
    prompt, chosen, rejected = (columns.get(name, name) for name in ("prompt", "chosen", "rejected"))
    if not {chosen, rejected} <= set(dataset.column_names) or len(dataset) == 0:
        return dataset
    repeated = prompt in dataset.column_names and isinstance(dataset[0][prompt], str)
    repeated = repeated and isinstance(dataset[0][chosen], list)
    if prompt in dataset.column_names and not repeated:
        return dataset
    pairs = zip(dataset[chosen][:], dataset[rejected][:], strict=True)
    parts = [_split_pair(*pair, where=f"{source}: row {row} (the first is 0)") for row, pair in enumerate(pairs)]
    if repeated:
        _require_repeated(dataset[prompt][:], [part[0] for part in parts], source)
    columns_of_parts = [list(values) for values in zip(*parts, strict=True)]
    split = Dataset.from_dict(dict(zip((prompt, chosen, rejected), columns_of_parts, strict=True)))
    others = dataset.remove_columns([name for name in split.column_names if name in dataset.column_names])
    return concatenate_datasets([split, others], axis=1) if others.column_names else split


def _split_pair(chosen: Any, rejected: Any, *, where: str) -> tuple[Any, Any, Any]:
    """The prompt that two texts or conversations share, and what each adds to it."""
    kind = _kind(chosen, f"{where}, column 'chosen'")
    if kind != _kind(rejected, f"{where}, column 'rejected'"):
        raise WorkbenchError(f"{where} has a chosen {kind} and a rejected of another kind: give two of one kind.")
    length = _shared_turns(chosen, rejected) if kind == "conversation" else _shared_text(chosen, rejected)
    if length == 0:
        raise WorkbenchError(
            f"{where} has no prompt column, and chosen and rejected share no beginning that ends where an answer "
            f"starts (text: {ANSWER_MARKER!r}; conversation: a message of the role 'assistant'): give a prompt column."
        )
    return chosen[:length], chosen[length:], rejected[length:]


def _shared_text(chosen: str, rejected: str) -> int:
    """Characters up to the end of the last answer marker before which both texts are equal, 0 without one."""
    start = chosen.rfind(ANSWER_MARKER)
    while start >= 0:
        end = start + len(ANSWER_MARKER)
        if chosen[:end] == rejected[:end]:
            return end
        start = chosen.rfind(ANSWER_MARKER, 0, start)
    return 0


def _shared_turns(chosen: list[dict], rejected: list[dict]) -> int:
    """How many leading messages both share such that an answer comes next in both, 0 without any."""
    answered = [
        turn
        for turn in range(1, min(len(chosen), len(rejected)))
        if chosen[:turn] == rejected[:turn] and chosen[turn]["role"] == rejected[turn]["role"] == "assistant"
    ]
    return max(answered, default=0)


def _require_repeated(prompts: list[str], shared: list[list[dict]], source: str) -> None:
    """Refuse a prompt column that says something else than the conversations it stands beside."""
    for row, (prompt, messages) in enumerate(zip(prompts, shared, strict=True)):
        if not isinstance(prompt, str) or prompt.strip() != messages[-1]["content"].strip():
            raise WorkbenchError(
                f"{source}: row {row} (the first is 0) has a prompt that is not the last message that chosen and "
                "rejected share: remove the prompt column, or give all three as conversations."
            )


def _require_rows(dataset: Dataset, schema: str, source: str) -> None:
    """Check every value of the standard columns: its type, one kind per row, and that prompts say something."""
    names = STANDARD_COLUMNS[schema]
    for row, values in enumerate(zip(*(dataset[name][:] for name in names), strict=True)):
        where = f"{source}: row {row} (the first is 0)"
        kinds = {_kind(value, f"{where}, column {name!r}") for name, value in zip(names, values, strict=True)}
        if len(kinds) > 1:
            raise WorkbenchError(f"{where} mixes text and conversations in {', '.join(names)}: give all of one kind.")
        if schema == "text" and kinds != {"text"}:
            raise WorkbenchError(f"{where}, column 'text' is a conversation: give text, or use it as demonstrations.")
        if names[0] == "prompt" and not _says_something(values[0]):
            raise WorkbenchError(f"{where} has an empty prompt: remove the row or give it a prompt.")


def _kind(value: Any, where: str) -> str:
    """ "text" or "conversation"; WorkbenchError says what else it is."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, list) and value and all(map(_is_message, value)):
        return "conversation"
    found = "missing" if value is None else f"{type(value).__name__} {repr(value)[:60]}"
    raise WorkbenchError(
        f"{where} is {found}, expected text or a list of messages with 'role' and 'content' as text: correct the row."
    )


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def _says_something(prompt: str | list[dict[str, Any]]) -> bool:
    return bool((prompt if isinstance(prompt, str) else prompt[-1]["content"]).strip())


def _require_different(dataset: Dataset, source: str) -> None:
    """Refuse pairs in which there is nothing to prefer."""
    pairs = zip(dataset["chosen"][:], dataset["rejected"][:], strict=True)
    same = [row for row, (chosen, rejected) in enumerate(pairs) if chosen == rejected]
    if same:
        raise WorkbenchError(
            f"{source} has {len(same)} rows whose chosen and rejected are identical, the first is row {same[0]} "
            "(counted from 0): remove them."
        )


def _with_numeric_margin(dataset: Dataset, source: str) -> Dataset:
    """The dataset with `margin` as finite floats or None, where there is such a column (CSV gives text)."""
    if "margin" not in dataset.column_names:
        return dataset
    margins = []
    for row, value in enumerate(dataset["margin"][:]):
        try:
            margins.append(None if value is None or value == "" else float(value))
        except (TypeError, ValueError):
            margins.append(math.nan)
        if margins[-1] is not None and not math.isfinite(margins[-1]):
            raise WorkbenchError(
                f"{source}: row {row} (the first is 0), column 'margin' is {value!r}, expected a finite number: "
                "correct it or leave it empty."
            )
    return dataset.remove_columns("margin").add_column("margin", margins)
