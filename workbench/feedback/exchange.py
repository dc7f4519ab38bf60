"""Judgements as files of training data that this workbench and TRL load unchanged.

    file                  columns                                      made of
    preferences.jsonl     prompt, chosen, rejected                     pairs, rankings, choices of the best
    margins.jsonl         prompt, chosen, rejected, margin             pairs whose labeler said a strength
    rankings.jsonl        prompt, completions, ranking                 rankings without ties
    best_of.jsonl         prompt, completions, best                    choices of the best
    ratings.jsonl         prompt, completion, rating, perhaps flags    ratings
    demonstrations.jsonl  prompt, completion                           corrections
    left_out.jsonl        format, reason, prompt, completions, value   everything else, value as JSON

Rows also name labeler and item_id, which keep what belongs together together.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from workbench import WorkbenchError
from workbench.feedback.imports import (
    Feedback,
    Records,
    argilla_feedback,
    digest,
    judgement_of,
    label_studio_feedback,
    named,
    others_of,
    records_of,
    with_repeats,
)
from workbench.feedback.kinds import KINDS, Rows, require_kind, training_rows
from workbench.feedback.store import Store
from workbench.feedback.tables import jsonable, require_items
from workbench.records import Judgement
from workbench.runs import Run, names_in
from workbench.runs.files import read_json_lines, replace_file, resolve, shown

FILES = {name: file.noun for record in KINDS.values() for name, file in record.files.items()}


def export(items: Iterable[Mapping], judgements: Iterable[Judgement], folder: str | Path) -> str:
    """Write every file that the judgements can make and say what became of all of them.

    Every file is replaced whole or not at all, none before all rows are made; one without rows is none. WorkbenchError
    without judgements, for items of mixed form, and where a file can not be written.
    """
    items, judgements, folder = list(items), list(judgements), resolve(folder)
    require_items(items)
    _require_one_form(items)
    if not judgements:
        raise WorkbenchError("There are no judgements to export: judge some items first.")
    files, left_out, sentences = {}, [], []
    for name, noun in FILES.items():
        own = [judgement for judgement in judgements if name in KINDS[judgement.kind].files]
        if own:
            files[name], omitted = file_rows(name, items, own)
            left_out += [{"format": name, **row, "value": jsonable(row["value"], "A verdict")} for row in omitted]
            sentences.append(f"{name}: {account(files[name], omitted, judgements=len(own), noun=noun)}")
    if "preferences" in files:
        pairs = files["preferences"]
        files |= {"margins": [row for row in pairs if "margin" in row], "preferences": _without_margins(pairs)}
    files["left_out"] = left_out
    paths = {name: folder / f"{name}.jsonl" for name in files}
    for path in paths.values():
        _refuse_other_rows(path)
    for name, rows in files.items():
        write_rows(rows, paths[name])
    return f"{shown(folder)}: " + ". ".join(sentences) + "."


def _refuse_other_rows(path: Path) -> None:
    """WorkbenchError where a file is there already whose rows do not name labeler and item_id, as all of ours do."""
    if not path.exists() or not path.stat().st_size:
        return
    with suppress(WorkbenchError, TypeError, OSError):
        rows = read_json_lines(path)
        if rows and all({"labeler", "item_id"} <= set(row) for row in rows):
            return
    other = shown(path.parent / "export")
    raise WorkbenchError(f"{shown(path)} was not written by an export and would be lost: export into {other} instead.")


def write_rows(rows: Iterable[Mapping[str, Any]], path: str | Path) -> None:
    """Replace a JSON-lines file by these rows, whole or not at all; without rows there is none, for none would load.

    Rows name labelers: only the file's owner may read it.
    """
    lines = [jsonable(row, f"A row of {shown(path)}") for row in rows]
    if lines:
        with replace_file(path) as unfinished:
            unfinished.touch(mode=0o600)
            unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        resolve(path).unlink(missing_ok=True)


def conversations(items: Iterable[Mapping]) -> list[dict[str, Any]]:
    """The items as conversations: the text of a prompt becomes a message of the user, a completion the assistant's."""
    talks = []
    for item in items:
        completions = [_messages(completion, "assistant") for completion in item["completions"]]
        talks.append({**item, "prompt": _messages(item["prompt"], "user"), "completions": completions})
    return talks


def file_rows(name: str, items: Sequence[Mapping], judgements: Sequence[Judgement]) -> tuple[Rows, Rows]:
    """Rows of a file of judgements of every kind that gives it, one kind after the other, and what was left out."""
    rows, left_out = [], []
    for kind, record in KINDS.items():
        if name in record.files:
            own = [judgement for judgement in judgements if judgement.kind == kind]
            made, omitted = training_rows(kind, items, own, file=name)
            rows, left_out = rows + made, left_out + omitted
    return rows, left_out


def pair_rows(items: Sequence[Mapping], judgements: Sequence[Judgement]) -> tuple[Rows, Rows]:
    """Rows prompt, chosen, rejected, labeler, item_id of everything that compares two completions."""
    rows, left_out = file_rows("preferences", items, judgements)
    return _without_margins(rows), left_out


def _without_margins(rows: Rows) -> Rows:
    return [{name: value for name, value in row.items() if name != "margin"} for row in rows]


def placed(rows: Iterable[Mapping[str, Any]]) -> Rows:
    """Each completion of rows of `rankings` with its place, 1 the best: rows prompt, completion, place."""
    return [
        {"prompt": row["prompt"], "completion": row["completions"][index], "place": place}
        for row in rows
        for place, index in enumerate(row["ranking"], 1)
    ]


def account(rows: Iterable, left_out: Iterable[Mapping], *, judgements: int, noun: str = "pair") -> str:
    """What became of the judgements: "412 pairs from 430 judgements; left out: 11 tie, 4 skip, 3 check"."""
    made = sum(1 for _ in rows)
    counts = Counter(row["reason"] for row in left_out)
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common()) or "nothing"
    said = f"{judgements} judgement{'s' * (judgements != 1)}"
    return f"{made} {noun}{'s' * (made != 1)} from {said}; left out: {reasons}"


def _messages(text: str | list[dict[str, str]], role: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def _require_one_form(items: Sequence[Mapping]) -> None:
    """Refuse texts beside conversations, which no column can hold."""
    forms = {isinstance(text, str) for item in items for text in (item["prompt"], *item["completions"])}
    if len(forms) > 1:
        raise WorkbenchError("Some items are text and some conversations: export conversations(items) instead.")


# --- Files of training data in the standard columns, such as `export` writes, as items and judgements.


SOURCES = "give a run of 03_preferences, or a file of judgements"
OF_THE_JUDGEMENT = ("margin", "preference", "flags", "labeler", "item_id")  # columns that do not describe the item


def read_feedback(
    source: str, *, kind: str, question: str = "", prompt: str = "prompt", completions: str = "", labels: str = ""
) -> Feedback:
    """Items, and their judgements of a kind, of a run, or of a file: standard columns, or Argilla's or Label Studio's.

    Of a file of either tool `question` names what was asked (Argilla's question, several with commas for ratings; Label
    Studio's control, "" for the only one), `prompt` and `completions` (with commas, or "items.body") the fields that
    were shown, and `labels` ("1=0, 2=1, equal=tie") what other answers than names of completions mean.
    """
    require_kind(kind)
    path = _place(source)
    given = {"question": question, "prompt": prompt != "prompt", "completions": completions, "labels": labels}
    if path.is_dir():
        _refuse(given, f"{shown(path)} is a run")
        with closing(Store(path / "judgements.db")) as store:
            return store.items(), store.judgements(kind)
    found = {name for _, record in records_of(path) for name in record}
    shown_as = {"prompt": prompt, "labels": _meanings(labels)}
    if completions:
        shown_as["completions"] = completions if "." in completions else names_in(completions)
    if {"fields", "responses"} <= found:
        return argilla_feedback(path, kind=kind, question=names_in(question) or "", **shown_as)
    if {"data", "annotations"} <= found:
        return label_studio_feedback(path, kind=kind, control=question, **shown_as)
    _refuse(given, f"{shown(path)} is in standard columns")
    return standard_feedback(path, kind=kind)


def _place(source: str) -> Path:
    """The path of a run with judgements, or of a file that may hold some; WorkbenchError for anything else."""
    if not source.strip():
        raise WorkbenchError(f"feedback is {source!r}: {SOURCES}.")
    path = resolve(source)
    if not path.exists():
        raise WorkbenchError(f"{shown(path)} does not exist: {SOURCES}.")
    if path.is_dir():
        if not Run.read(path).path("judgements.db").is_file():  # opening a store would make one
            raise WorkbenchError(f"{shown(path)} holds no judgements.db: {SOURCES}.")
    elif path.suffix == ".db":
        raise WorkbenchError(f"{shown(path)} is the store of a run: give its run folder, {shown(path.parent)}.")
    elif path.suffix.lower() not in (".json", ".jsonl"):
        raise WorkbenchError(f"{shown(path)} can not be read: judgements are read from .json and .jsonl files.")
    return path


def _refuse(given: Mapping[str, object], why: str) -> None:
    """WorkbenchError for the first that is given: it says how to read files of other tools."""
    for name in filter(given.get, given):
        raise WorkbenchError(f"{why}, where {name} has no meaning: leave {name} out.")


def _meanings(labels: str) -> dict[str, int | str]:
    """`"1=0, equal=tie"` as {"1": 0, "equal": "tie"}."""
    said = [part.rpartition("=") for part in names_in(labels)]
    if wrong := [verdict for _, equals, verdict in said if not equals]:
        raise WorkbenchError(f"labels has {wrong[0]!r}: give answers with their meaning, as in '1=0, 2=1, equal=tie'.")
    return {label.strip(): int(verdict) if verdict.strip().isdigit() else verdict.strip() for label, _, verdict in said}


def standard_feedback(path: Path, *, kind: str) -> Feedback:
    """A JSON or JSON-lines file in the standard columns of a kind and labeler, as the judgements that it is made of.

    Of pairs, a preference of .5 is a tie and a `margin` the strength it stands for; others with the same item_id become
    items of their own. Ratings with one item_id and prompt are of completions of one item. Columns with another name go
    to the item, "expected" as "file_expected".
    """
    records, judgements, items = records_of(path), [], []
    for where, record in records:
        for name in ("labeler", "prompt", *KINDS[kind].columns):
            if record.get(name) is None:
                raise WorkbenchError(f"{where} has no {name!r}, which {KINDS[kind].file} need: add it.")
    for item, rows in _grouped(records, kind, path.stem):
        judgements += (_rated if KINDS[kind].shape == "numbers" else _judged)(item, rows, kind)
        items.append(item)
    return with_repeats(items, judgements, path)


def _grouped(records: Records, kind: str, stem: str) -> list[tuple[dict[str, Any], Records]]:
    """The items that rows are about, and the rows of each; the completions of ratings are still to come."""
    groups: dict[str, Records] = defaultdict(list)
    first = {}
    for number, (where, record) in enumerate(records):
        texts = record["completions"] if "completions" in KINDS[kind].columns else []
        if kind == "pair":  # in an order that does not tell which was chosen
            texts = sorted((record["chosen"], record["rejected"]), key=digest)
        name = named(record.get("item_id"), "item_id", where, otherwise=" ")
        key = digest([name, record["prompt"], texts])
        first.setdefault(key, (number, texts))
        groups[key].append((where, record))
    names: Counter = Counter()
    items = []
    for key, rows in groups.items():
        (number, texts), (where, record) = first[key], rows[0]
        name = named(record.get("item_id"), "item_id", where, otherwise=f"{stem}-{number:06d}")
        others = others_of(record, (*OF_THE_JUDGEMENT, *KINDS[kind].columns))
        item_id = f"{name}/{names[name]}" if names[name] else name
        items.append(({**others, "item_id": item_id, "completions": texts}, rows))
        names[name] += 1
    return items


def _judged(item: dict[str, Any], rows: Records, kind: str) -> list[Judgement]:
    """One judgement for each row about an item."""
    if "completion" in KINDS[kind].columns:
        texts = {digest(record["completion"]): record["completion"] for _, record in rows}
        item["completions"] = list(texts.values())
    judgements = []
    for where, record in rows:
        value, details = KINDS[kind].from_row(record, item["completions"], where)
        who = named(record["labeler"], "labeler", where)
        judgements.append(judgement_of(item, kind, value, labeler=who, where=where, details=details))
    return judgements


def _rated(item: dict[str, Any], rows: Records, kind: str) -> list[Judgement]:
    """One judgement for each labeler of an item, whose completions are all that anybody rated.

    Equal texts that one labeler rated are as many completions.
    """
    places: dict[tuple[str, int], int] = {}
    said: dict[str, dict[int, tuple]] = defaultdict(dict)
    seen: Counter = Counter()
    for where, record in rows:
        who = named(record["labeler"], "labeler", where)
        text = digest(record["completion"])
        place = places.setdefault((text, seen[who, text]), len(places))
        seen[who, text] += 1
        if place == len(item["completions"]):
            item["completions"] = [*item["completions"], record["completion"]]
        flags = record.get("flags")
        if not isinstance(flags, list | None):
            raise WorkbenchError(f"{where} has the flags {flags!r:.60}: give a list of names.")
        said[who][place] = (KINDS[kind].from_row(record, [], where)[0], flags, where)
    judgements = []
    for who, ratings in said.items():
        numbers = [ratings.get(place, (None,))[0] for place in range(len(places))]
        flags = [list(ratings[place][1] or []) if place in ratings else [] for place in range(len(places))]
        details = {"flags": flags} if any(each[1] is not None for each in ratings.values()) else {}
        where = next(iter(ratings.values()))[2]
        judgements.append(judgement_of(item, kind, numbers, labeler=who, where=where, details=details))
    return judgements
