"""The standard columns, and what every value in them must be: one sentence names the row, the column and the cure."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from datasets import Dataset

from workbench import WorkbenchError
from workbench.records import is_message

STANDARD_COLUMNS = {
    "text": ("text",),
    "prompts": ("prompt",),
    "demonstrations": ("prompt", "completion"),
    "preferences": ("prompt", "chosen", "rejected"),
    "unpaired": ("prompt", "completion", "label"),
    "ratings": ("prompt", "completion", "rating"),
    "rankings": ("prompt", "completions", "ranking"),
    "stepwise": ("prompt", "completions", "labels"),
}
OPTIONAL_COLUMNS = {
    # margin: how much better the chosen completion is, any unit; preference: probability that it is better, .5 a tie
    "preferences": ("margin", "preference"),
}
FEWEST = {"rankings": 2, "stepwise": 1}  # completions of a row
PLAIN = {  # schemas without a conversational form, and what to do
    "text": "give text, or use it as demonstrations",
    "stepwise": "give the prompt and each step as text",
}
TRUTHS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def require_schema(schema: str) -> None:
    """WorkbenchError lists the schemas where there is none of this name."""
    if schema not in STANDARD_COLUMNS:
        raise WorkbenchError(f"The schema {schema!r} is unknown: use one of {', '.join(STANDARD_COLUMNS)}.")


def columns_of(schema: str) -> tuple[str, ...]:
    """The columns that mean something in a schema, the optional ones last."""
    return STANDARD_COLUMNS[schema] + OPTIONAL_COLUMNS.get(schema, ())


def checked(dataset: Dataset, schema: str, source: str) -> Dataset:
    """The dataset, which has the columns of `schema`, with numbers and truth values as such (CSV gives text).

    WorkbenchError names `source`, the first bad row (counted from 0) and the column.
    """
    _require_texts(dataset, schema, source)
    if schema == "preferences":
        _require_different(dataset, source)
    for name in columns_of(schema):
        if name in VALUES and name in dataset.column_names:
            dataset = _with_values(dataset, name, source)
    if schema in AGREES:
        columns = zip(*(dataset[name][:] for name in STANDARD_COLUMNS[schema][1:]), strict=True)
        for row, values in enumerate(columns):
            problem = AGREES[schema](*values)
            if problem:
                raise WorkbenchError(f"{_place(source, row)} {problem}.")
    if schema == "rankings":
        _require_one_size(dataset, source)
    return dataset


def kind_of(value: Any, where: str) -> str:
    """ "text" or "conversation"; WorkbenchError says what else it is."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, list) and value and all(map(is_message, value)):
        return "conversation"
    found = "missing" if value is None else f"{type(value).__name__} {repr(value)[:60]}"
    if isinstance(value, list) and value:
        odd = next(place for place, message in enumerate(value) if not is_message(message))
        found = f"list, whose item {odd} (the first is 0) is {repr(value[odd])[:80]}"
    raise WorkbenchError(
        f"{where} is {found}, expected text or a list of messages with 'role' and 'content' as text: correct the row."
    )


def _place(source: str, row: int) -> str:
    return f"{source}: row {row} (the first is 0)"


def _require_texts(dataset: Dataset, schema: str, source: str) -> None:
    """Check every text of the standard columns: its type, one kind per row, and that prompts say something."""
    names = [name for name in STANDARD_COLUMNS[schema] if name not in VALUES]
    for row, values in enumerate(zip(*(dataset[name][:] for name in names), strict=True)):
        where = _place(source, row)
        kinds = set()
        for name, value in zip(names, values, strict=True):
            texts = _several(value, where, FEWEST[schema]) if name == "completions" else [value]
            kinds |= {kind_of(text, f"{where}, column {name!r}") for text in texts}
        if len(kinds) > 1:
            raise WorkbenchError(f"{where} mixes text and conversations in {', '.join(names)}: give all of one kind.")
        if schema in PLAIN and kinds != {"text"}:
            raise WorkbenchError(f"{where}, column {names[-1]!r} is a conversation: {PLAIN[schema]}.")
        if names[0] == "prompt" and not _says_something(values[0]):
            raise WorkbenchError(f"{where} has an empty prompt: remove the row or give it a prompt.")


def _several(value: Any, where: str, fewest: int) -> list:
    """The completions of a row."""
    if not isinstance(value, list) or len(value) < fewest:
        found = f"a list of {len(value)}" if isinstance(value, list) else f"{type(value).__name__} {repr(value)[:60]}"
        raise WorkbenchError(
            f"{where}, column 'completions' is {found}, expected a list of at least {fewest} texts or conversations: "
            "correct the row."
        )
    return value


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


def _with_values(dataset: Dataset, name: str, source: str) -> Dataset:
    """The dataset with each value of a column as what it means."""
    parse, expected = VALUES[name]
    values = []
    for row, value in enumerate(dataset[name][:]):
        try:
            values.append(parse(value))
        except (TypeError, ValueError, KeyError):
            raise WorkbenchError(
                f"{_place(source, row)}, column {name!r} is {repr(value)[:60]}, expected {expected}: correct it."
            ) from None
    return dataset.remove_columns(name).add_column(name, values)


def _number(value: Any) -> float:
    number = float(value)
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError
    return number


def _number_or_none(value: Any) -> float | None:
    return None if value is None or value == "" else _number(value)


def _probability_or_none(value: Any) -> float | None:
    number = _number_or_none(value)
    if number is not None and not 0 <= number <= 1:
        raise ValueError
    return number


def _truth(value: Any) -> bool:
    return TRUTHS[str(value).strip().lower()]


def _listed(values: Any) -> list:
    """A list, perhaps written as JSON."""
    values = json.loads(values) if isinstance(values, str) else values
    if not isinstance(values, list):
        raise TypeError
    return values


def _truths(values: Any) -> list[bool]:
    values = _listed(values)
    return [_truth(value) for value in values]


def _order(values: Any) -> list[int]:
    values = _listed(values)
    if not all(type(value) is int for value in values):
        raise TypeError
    if sorted(values) != list(range(len(values))):
        raise ValueError
    return values


VALUES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "margin": (_number_or_none, "a finite number or nothing"),
    "preference": (_probability_or_none, "a probability from 0 to 1 or nothing"),
    "label": (_truth, "true or false (or 1 or 0)"),
    "labels": (_truths, "a list of true and false, one for each step"),
    "rating": (_number, "a finite number"),
    "ranking": (_order, "the numbers 0, 1, 2, ... of the completions, each once, the best first"),
}


def _ranking_problem(completions: list, ranking: list[int]) -> str:
    if len(ranking) != len(completions):
        return f"has {len(completions)} completions but ranks {len(ranking)}: rank each of them once"
    if any(completion in completions[:place] for place, completion in enumerate(completions)):
        return "ranks a completion against itself: keep each text once"
    return ""


def _stepwise_problem(steps: list[str], labels: list[bool]) -> str:
    if len(labels) != len(steps):
        return f"has {len(steps)} steps but {len(labels)} labels: label each step once"
    empty = next((number for number, step in enumerate(steps) if not step.strip()), None)
    return "" if empty is None else f"has an empty step ({empty}, the first is 0): remove it with its label"


AGREES: dict[str, Callable[..., str]] = {  # what is wrong between the columns of a row after its prompt, or nothing
    "rankings": _ranking_problem,
    "stepwise": _stepwise_problem,
}


def _require_one_size(dataset: Dataset, source: str) -> None:
    """Refuse rankings of different lengths, which no batch could hold side by side."""
    sizes = [len(ranking) for ranking in dataset["ranking"][:]]
    odd = next((row for row, size in enumerate(sizes) if size != sizes[0]), None)
    if odd is not None:
        raise WorkbenchError(
            f"{_place(source, odd)} ranks {sizes[odd]} completions, but row 0 ranks {sizes[0]}: give every row as "
            "many, and rankings of another size as a source of their own."
        )
