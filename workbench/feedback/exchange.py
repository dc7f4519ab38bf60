"""Judgements as files of training data that this workbench and TRL load unchanged.

    file                    columns                                      made of
    preferences.jsonl       prompt, chosen, rejected                     pairs, rankings, choices of the best
    margins.jsonl           prompt, chosen, rejected, margin             pairs whose labeler said a strength
    soft_preferences.jsonl  prompt, chosen, rejected, preference         pairs, rankings, choices of the best, and ties
    rankings.jsonl          prompt, completions, ranking                 rankings without ties
    best_of.jsonl           prompt, completions, best                    choices of the best
    unpaired.jsonl          prompt, completion, label                    pairs, and ratings off a threshold
    ratings.jsonl           prompt, completion, rating, perhaps flags    ratings
    demonstrations.jsonl    prompt, completion                           corrections
    left_out.jsonl          format, reason, prompt, completions, value   everything else, value as JSON

Rows also name labeler and item_id, which keep what belongs together together. TRL knows no `preference`: it would take
the ties of soft_preferences.jsonl for choices.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
from workbench.feedback.kinds import COMPARING, KINDS, Rows, judged, left_out_row, require_kind, training_rows
from workbench.feedback.store import Store
from workbench.feedback.tables import jsonable, require_items
from workbench.records import Judgement
from workbench.runs import Run
from workbench.runs.files import read_json_lines, replace_file, resolve, shown

MIDDLE = 4.0  # of ratings from 1 to 7


class Format(NamedTuple):
    """How a file is made."""

    kinds: tuple[str, ...]  # of judgement that it takes
    noun: str
    rows: Callable[[Sequence[Mapping], Sequence[Judgement]], tuple[Rows, Rows]]


def export(
    items: Iterable[Mapping],
    judgements: Iterable[Judgement],
    folder: str | Path,
    *,
    formats: str | Sequence[str] = (),
    threshold: float = MIDDLE,
) -> str:
    """Write a file per format and say what became of all judgements.

    By default those of `USUAL` that the judgements can make. Every file is replaced whole or not at all, none before
    all rows are made; a format without rows leaves no file. Completions rated above `threshold` are desirable in
    unpaired.jsonl, those below are not. WorkbenchError for an unknown format, one that none of the judgements is for,
    items of mixed form, and where a file can not be written.
    """
    items, judgements, folder = list(items), list(judgements), resolve(folder)
    require_items(items)
    _require_one_form(items)
    wanted, files, left_out, sentences = _wanted(formats, judgements, threshold), {}, [], []
    for name, (kinds, noun, make) in wanted.items():
        own = [judgement for judgement in judgements if judgement.kind in kinds]
        files[name], omitted = make(items, own)
        left_out += [{"format": name, **row, "value": jsonable(row["value"], "A verdict")} for row in omitted]
        sentences.append(f"{name}: {account(files[name], omitted, judgements=len(own), noun=noun)}")
    paths = {name: folder / f"{name}.jsonl" for name in (*files, "left_out")}
    for path in paths.values():
        _refuse_other_rows(path)
    for name, rows in {**files, "left_out": left_out}.items():
        write_rows(rows, paths[name])
    used = {kind for each in wanted.values() for kind in each.kinds}
    unused = Counter(judgement.kind for judgement in judgements if judgement.kind not in used)
    if unused:
        sentences.append("in no file: " + ", ".join(f"{count} {kind}" for kind, count in unused.items()))
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
    return [{name: value for name, value in row.items() if name != "margin"} for row in rows], left_out


def soft_rows(items: Sequence[Mapping], judgements: Sequence[Judgement]) -> tuple[Rows, Rows]:
    """`pair_rows` with preference: 1 for choices, .5 for ties."""
    return with_ties(*pair_rows(items, judgements))


def with_ties(rows: Iterable[Mapping], left_out: Iterable[Mapping]) -> tuple[Rows, Rows]:
    """The pairs with `preference`, the probability that the chosen one is better: 1, and .5 for those left out as ties.

    A preference that a row has stays as it is. What one labeler said of one item stays together. Ties between identical
    texts remain left out.
    """
    soft = [{**row, "preference": row.get("preference", 1.0)} for row in rows]
    rest = []
    for row in left_out:
        if row["reason"] == "tie" and len(row["completions"]) == 2 and row["completions"][0] != row["completions"][1]:
            chosen, rejected = row["completions"]
            pair = {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected}
            others = {name: row[name] for name in row if name not in ("prompt", "completions", "reason", "value")}
            soft.append({**pair, **others, "preference": 0.5})
        else:
            rest.append(dict(row))
    places: dict[tuple, int] = {}
    for row in soft:
        places.setdefault((row["item_id"], row.get("labeler")), len(places))
    return sorted(soft, key=lambda row: places[row["item_id"], row.get("labeler")]), rest


def margin_rows(items: Sequence[Mapping], judgements: Sequence[Judgement]) -> tuple[Rows, Rows]:
    """The rows of pairs with a strength; other decided pairs are left out for "no strength"."""
    silent = [each for each in judgements if each.value in (0, 1) and each.details.get("strength") is None]
    names = {each.event_id for each in silent}
    rows, left_out = training_rows("pair", items, [each for each in judgements if each.event_id not in names])
    for judgement, item, reason in judged(items, silent, "pair"):
        left_out.append(left_out_row(judgement, item, reason or "no strength"))
    return rows, left_out


def unpaired_rows(
    items: Sequence[Mapping], judgements: Sequence[Judgement], *, threshold: float = MIDDLE
) -> tuple[Rows, Rows]:
    """Rows prompt, completion, label, labeler, item_id: the chosen ones of pairs True, the rejected ones False.

    Rated completions are True above `threshold`, False below, and left out on it.
    """
    own = {kind: [each for each in judgements if each.kind == kind] for kind in ("pair", "rating")}
    (pairs, left_out), (rated, unrated) = (training_rows(kind, items, said) for kind, said in own.items())
    rows, left_out = [], left_out + unrated
    for row in pairs:
        rows += [_labelled(row, row["chosen"], True), _labelled(row, row["rejected"], False)]
    for row in rated:
        rating = row["rating"]
        if rating == threshold:
            who = {"labeler": row["labeler"], "item_id": row["item_id"]}
            texts = {"prompt": row["prompt"], "completions": [row["completion"]]}
            left_out.append({**texts, "reason": "on the threshold", "value": rating, **who})
        else:
            rows.append(_labelled(row, row["completion"], bool(rating > threshold)))
    return rows, left_out


def _labelled(row: Mapping[str, Any], completion: Any, label: bool) -> dict[str, Any]:
    own = {"prompt": row["prompt"], "completion": completion, "label": label}
    return {**own, "labeler": row["labeler"], "item_id": row["item_id"]}


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


USUAL = {name: file.noun for record in KINDS.values() for name, file in record.files.items()}
FORMATS = {
    name: Format(tuple(kind for kind, record in KINDS.items() if name in record.files), noun, partial(file_rows, name))
    for name, noun in USUAL.items()
} | {
    "preferences": Format(COMPARING, "pair", pair_rows),
    "margins": Format(("pair",), "pair", margin_rows),
    "soft_preferences": Format(COMPARING, "pair", soft_rows),
    "unpaired": Format(("pair", "rating"), "row", unpaired_rows),
}


def _wanted(formats: str | Sequence[str], judgements: Sequence[Judgement], threshold: float) -> dict[str, Format]:
    """The formats to write; WorkbenchError for one that there is not, or that nothing here is for."""
    names = [formats] if isinstance(formats, str) else list(formats)
    found = {judgement.kind for judgement in judgements}
    unknown = [name for name in names if name not in FORMATS]
    if unknown:
        raise WorkbenchError(f"There is no format {unknown[0]!r}: use {', '.join(FORMATS)}.")
    if not found:
        raise WorkbenchError("There are no judgements to export: judge some items first.")
    for name in names:
        if not found & set(FORMATS[name].kinds):
            raise WorkbenchError(
                f"The format {name!r} is made of kind {' or '.join(FORMATS[name].kinds)}, but these judgements are of "
                f"kind {' and '.join(sorted(found))}: use another format."
            )
    known = {**FORMATS, "unpaired": FORMATS["unpaired"]._replace(rows=partial(unpaired_rows, threshold=threshold))}
    return {name: known[name] for name in names or USUAL if found & set(known[name].kinds)}


def _messages(text: str | list[dict[str, str]], role: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def _require_one_form(items: Sequence[Mapping]) -> None:
    """Refuse texts beside conversations, which no column can hold."""
    forms = {isinstance(text, str) for item in items for text in (item["prompt"], *item["completions"])}
    if len(forms) > 1:
        raise WorkbenchError("Some items are text and some conversations: export conversations(items) instead.")


# --- Files of training data in the standard columns, such as `export` writes, as items and judgements.


KIND_OF = {record.file: kind for kind, record in KINDS.items()}
COLUMNS = {record.file: record.columns for record in KINDS.values()} | {"unpaired": ("completion", "label")}
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
    found = dict.fromkeys(name for _, record in records_of(path) for name in record)
    shown_as = {"prompt": prompt, "labels": _meanings(labels)}
    if completions:
        shown_as["completions"] = completions if "." in completions else _listed(completions)
    if {"fields", "responses"} <= found.keys():
        return argilla_feedback(path, kind=kind, question=_listed(question), **shown_as)
    if {"data", "annotations"} <= found.keys():
        return label_studio_feedback(path, kind=kind, control=question, **shown_as)
    _refuse(given, f"{shown(path)} is in standard columns")
    if "labeler" not in found:
        columns = ", ".join(found)
        raise WorkbenchError(f"{shown(path)} has no column 'labeler' (found: {columns}): say who judged each row.")
    return standard_feedback(path, schema=KINDS[kind].file)


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


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _meanings(labels: str) -> dict[str, int | str]:
    """`"1=0, equal=tie"` as {"1": 0, "equal": "tie"}."""
    said = [part.rpartition("=") for part in _listed(labels) if part]
    if wrong := [verdict for _, equals, verdict in said if not equals]:
        raise WorkbenchError(f"labels has {wrong[0]!r}: give answers with their meaning, as in '1=0, 2=1, equal=tie'.")
    return {label.strip(): int(verdict) if verdict.strip().isdigit() else verdict.strip() for label, _, verdict in said}


def standard_feedback(path: str | Path, *, schema: str = "preferences", labeler: str = "imported") -> Feedback:
    """A JSON or JSON-lines file in standard columns, such as `export` writes, as the judgements that it is made of.

    In `preferences`, a preference of .5 is a tie and a `margin` the strength it stands for; other pairs with the same
    item_id become items of their own. Rows of `ratings` and `unpaired` with one item_id and prompt are completions of
    one item; a label is a rating of 1 or 0. Without a column labeler, the n-th judgement of an item is by another one.
    Columns with another name go to the item, "expected" as "file_expected".
    """
    if schema not in COLUMNS:
        raise WorkbenchError(f"There is no schema {schema!r} to import: use one of {', '.join(COLUMNS)}.")
    records = records_of(path)
    for where, record in records:
        for name in ("prompt", *COLUMNS[schema]):
            if record.get(name) is None:
                raise WorkbenchError(f"{where} has no {name!r}, which {schema} need: correct the file.")
    items, judgements = [], []
    for item, rows in _grouped(records, schema, Path(path).stem):
        numbers = schema == "unpaired" or KINDS[KIND_OF[schema]].shape == "numbers"
        judgements += (_rated if numbers else _judged)(item, rows, schema, labeler)
        items.append(item)
    return with_repeats(items, judgements, path)


def _grouped(records: Records, schema: str, stem: str) -> list[tuple[dict[str, Any], Records]]:
    """The items that rows are about, and the rows of each; the completions of ratings are still to come."""
    groups: dict[str, Records] = defaultdict(list)
    first = {}
    for number, (where, record) in enumerate(records):
        texts = record["completions"] if "completions" in COLUMNS[schema] else []
        if schema == "preferences":  # in an order that does not tell which was chosen
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
        others = others_of(record, (*OF_THE_JUDGEMENT, *COLUMNS[schema]))
        item_id = f"{name}/{names[name]}" if names[name] else name
        items.append(({**others, "item_id": item_id, "completions": texts}, rows))
        names[name] += 1
    return items


def _judged(item: dict[str, Any], rows: Records, schema: str, labeler: str) -> list[Judgement]:
    """One judgement for each row about an item."""
    if "completion" in COLUMNS[schema]:
        texts = {digest(record["completion"]): record["completion"] for _, record in rows}
        item["completions"] = list(texts.values())
    judgements = []
    for turn, (where, record) in enumerate(rows, 1):
        value, details = KINDS[KIND_OF[schema]].from_row(record, item["completions"], where)
        who = named(record.get("labeler"), "labeler", where, otherwise=labeler if turn == 1 else f"{labeler}-{turn}")
        judgements.append(judgement_of(item, KIND_OF[schema], value, labeler=who, where=where, details=details))
    return judgements


def _rated(item: dict[str, Any], rows: Records, schema: str, labeler: str) -> list[Judgement]:
    """One judgement for each labeler of an item, whose completions are all that anybody rated.

    Equal texts that one labeler rated are as many completions.
    """
    kind = KIND_OF.get(schema, "rating")
    number_of = KINDS[kind].from_row if schema in KIND_OF else _label_of
    places: dict[tuple[str, int], int] = {}
    said: dict[str, dict[int, tuple]] = defaultdict(dict)
    seen: Counter = Counter()
    for where, record in rows:
        who = named(record.get("labeler"), "labeler", where, otherwise=labeler)
        text = digest(record["completion"])
        place = places.setdefault((text, seen[who, text]), len(places))
        seen[who, text] += 1
        if place == len(item["completions"]):
            item["completions"] = [*item["completions"], record["completion"]]
        flags = record.get("flags")
        if not isinstance(flags, list | None):
            raise WorkbenchError(f"{where} has the flags {flags!r:.60}: give a list of names.")
        said[who][place] = (number_of(record, [], where)[0], flags, where)
    judgements = []
    for who, ratings in said.items():
        numbers = [ratings.get(place, (None,))[0] for place in range(len(places))]
        flags = [list(ratings[place][1] or []) if place in ratings else [] for place in range(len(places))]
        details = {"flags": flags} if any(each[1] is not None for each in ratings.values()) else {}
        where = next(iter(ratings.values()))[2]
        judgements.append(judgement_of(item, kind, numbers, labeler=who, where=where, details=details))
    return judgements


def _label_of(record: Mapping[str, Any], completions: list, where: str) -> tuple[int, dict]:
    """1 or 0 for a label."""
    if record["label"] not in (0, 1):
        raise WorkbenchError(f"{where} has the label {record['label']!r}: give true or false.")
    return int(record["label"]), {}
