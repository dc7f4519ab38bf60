"""The standard columns by schema, and what every value in them must be: one sentence names row, column and cure."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from workbench import WorkbenchError
from workbench.records import is_message

TIE = 0.5  # the preference between two completions of which neither is better
TRUTHS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def checked(dataset: Dataset, schema: str, source: str) -> Dataset:
    """The dataset, which has the columns of `schema`, with numbers and truth values as such (CSV gives text).

    WorkbenchError names `source`, the first bad row (counted from 0) and the column.
    """
    _require_texts(dataset, schema, source)
    if schema == "preferences":
        _require_different(dataset, source)
    for name in SCHEMAS[schema].known:
        if name in VALUES and name in dataset.column_names:
            dataset = _with_values(dataset, name, source)
    if problem_of := SCHEMAS[schema].problem:
        columns = zip(*(dataset[name][:] for name in SCHEMAS[schema].columns[1:]), strict=True)
        for row, values in enumerate(columns):
            if problem := problem_of(*values):
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
    names = SCHEMAS[schema].texts
    for row, values in enumerate(zip(*(dataset[name][:] for name in names), strict=True)):
        where = _place(source, row)
        kinds = set()
        for name, value in zip(names, values, strict=True):
            texts = _several(value, where, SCHEMAS[schema].fewest) if name == "completions" else [value]
            kinds |= {kind_of(text, f"{where}, column {name!r}") for text in texts}
        if len(kinds) > 1:
            raise WorkbenchError(f"{where} mixes text and conversations in {', '.join(names)}: give all of one kind.")
        if SCHEMAS[schema].plain and kinds != {"text"}:
            raise WorkbenchError(f"{where}, column {names[-1]!r} is a conversation: {SCHEMAS[schema].plain}.")
        if names[0] == "prompt" and not (values[0] if kinds == {"text"} else values[0][-1]["content"]).strip():
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


def _require_different(dataset: Dataset, source: str) -> None:
    """Refuse pairs in which there is nothing to prefer."""
    pairs = zip(dataset["chosen"][:], dataset["rejected"][:], strict=True)
    if same := [row for row, (chosen, rejected) in enumerate(pairs) if chosen == rejected]:
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


def _probability(value: Any) -> float:
    number = _number(value)
    if not 0 <= number <= 1:
        raise ValueError
    return number


def _perhaps(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None or value == "" else parse(value)


def _truth(value: Any) -> bool:
    return TRUTHS[str(value).strip().lower()]


def _listed(values: Any) -> list:
    """A list, perhaps written as JSON."""
    values = json.loads(values) if isinstance(values, str) else values
    if not isinstance(values, list):
        raise TypeError
    return values


def _order(values: Any) -> list[int]:
    values = _listed(values)
    if not all(type(value) is int for value in values) or sorted(values) != list(range(len(values))):
        raise ValueError
    return values


VALUES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "margin": (_perhaps(_number), "a finite number or nothing"),
    "preference": (_perhaps(_probability), "a probability from 0 to 1 or nothing"),
    "rival": (_perhaps({"chosen": "chosen", "rejected": "rejected"}.__getitem__), "chosen, rejected or nothing"),
    "label": (_truth, "true or false (or 1 or 0)"),
    "labels": (lambda values: list(map(_truth, _listed(values))), "a list of true and false, one for each step"),
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


def _require_one_size(dataset: Dataset, source: str) -> None:
    """Refuse rankings of different lengths, which no batch could hold side by side."""
    sizes = [len(ranking) for ranking in dataset["ranking"][:]]
    odd = next((row for row, size in enumerate(sizes) if size != sizes[0]), None)
    if odd is not None:
        raise WorkbenchError(
            f"{_place(source, odd)} ranks {sizes[odd]} completions, but row 0 ranks {sizes[0]}: give every row as "
            "many, and rankings of another size as a source of their own."
        )


def without_ties(pairs: Dataset) -> Dataset:
    """The comparisons that somebody decided: those whose `preference` is not .5."""
    if "preference" not in pairs.column_names:
        return pairs
    return pairs.select([row for row, preference in enumerate(pairs["preference"][:]) if preference != TIE])


def require_decided(pairs: Dataset) -> Dataset:
    """Those that somebody decided; WorkbenchError where there is none."""
    decided = without_ties(pairs)
    if not len(decided):
        raise WorkbenchError(
            f"All comparisons for training, or all held out, are ties (preference {TIE}): give more that were decided."
        )
    return decided


def chosen_sides(pairs: Dataset) -> Dataset:
    """The chosen side of each comparison as a demonstration."""
    others = {"rejected", "completion"}.intersection(pairs.column_names)
    return pairs.remove_columns(list(others)).rename_column("chosen", "completion")


def unpaired(pairs: Dataset) -> Dataset:
    """Each decided comparison as two rows prompt, completion, label: the chosen one True, then the rejected one False.

    What else a comparison has, apart from its margin and preference, stands in both rows.
    """
    rows = []
    for pair in require_decided(pairs):
        others = {name: value for name, value in pair.items() if name not in SCHEMAS["preferences"].known}
        for side in ("chosen", "rejected"):
            own = {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
            rows.append(own | others | own)  # which come first, and win where data has columns of such names
    return Dataset.from_list(rows)


@dataclass(frozen=True, kw_only=True)
class Schema:
    """A kind of rows."""

    columns: tuple[str, ...]  # the first says what the rest is about: a split parts rows by it
    optional: tuple[str, ...] = ()
    noun: str  # what its rows are called
    table: str = ""  # of a run that collected feedback: where such rows are, or those that they are made from
    made_from: Mapping[str, Callable[[Dataset], Dataset]] = field(default_factory=dict)  # rows of other schemas
    fewest: int = 0  # completions of a row
    plain: str = ""  # what to do with conversations, where there is no form for them
    problem: Callable[..., str] | None = None  # what is wrong between the columns of a row after its prompt, or ""

    @property
    def known(self) -> tuple[str, ...]:
        """The columns that mean something, the optional ones last."""
        return self.columns + self.optional

    @property
    def texts(self) -> list[str]:
        """The columns of texts or conversations."""
        return [name for name in self.columns if name not in VALUES]


SCHEMAS = {
    "text": Schema(columns=("text",), noun="documents", plain="give text, or use it as demonstrations"),
    "prompts": Schema(columns=("prompt",), noun="prompts"),
    "demonstrations": Schema(
        columns=("prompt", "completion"), noun="demonstrations", made_from={"preferences": chosen_sides}
    ),
    # margin: how much better the chosen completion is, any unit; preference: probability that it is better, .5 a tie;
    # rival: the side that the reference wrote, for XPO
    "preferences": Schema(
        columns=("prompt", "chosen", "rejected"),
        optional=("margin", "preference", "rival"),
        noun="comparisons",
        table="preferences",
    ),
    "unpaired": Schema(
        columns=("prompt", "completion", "label"),
        noun="labels",
        table="preferences",
        made_from={"preferences": unpaired},
    ),
    "ratings": Schema(columns=("prompt", "completion", "rating"), noun="ratings", table="ratings"),
    "rankings": Schema(
        columns=("prompt", "completions", "ranking"),
        noun="rankings",
        table="rankings",
        fewest=2,
        problem=_ranking_problem,
    ),
    "stepwise": Schema(
        columns=("prompt", "completions", "labels"),
        noun="judged steps",
        table="steps",
        fewest=1,
        plain="give the prompt and each step as text",
        problem=_stepwise_problem,
    ),
}


def schema_named(name: str) -> Schema:
    """The row of `SCHEMAS`; WorkbenchError lists those that exist."""
    if name not in SCHEMAS:
        raise WorkbenchError(f"The schema {name!r} is unknown: use one of {', '.join(SCHEMAS)}.")
    return SCHEMAS[name]
