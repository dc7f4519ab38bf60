"""Records of files as items and judgements: what the imports of every format share.

Each import returns (items, judgements) that a store takes. WorkbenchError names the record (the first is 0), what is
missing in it and what to do. Names are never guessed: keywords say which fields are meant. Where a labeler judged an
item again, the later judgements are repeats.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench import WorkbenchError
from workbench.feedback.kinds import KINDS, require_kind, require_verdict
from workbench.feedback.tables import labeler_name, name_of, require_items
from workbench.records import Judgement
from workbench.runs.files import explain_read_errors, json_rows, shown

Records = list[tuple[str, dict[str, Any]]]  # where it stands, for messages, and what it says
Feedback = tuple[list[dict[str, Any]], list[Judgement]]
OTHER_NAMES = {"expected": "file_expected"}
SIDES = {"left": 0, "right": 1, "tie": "tie", "skip": "skip"}  # what pairs are usually labelled with


def records_of(path: Path) -> Records:
    """Where each record of a .json or .jsonl file stands, for messages, and the record; WorkbenchError without any."""
    with explain_read_errors(path):
        records = json_rows(path)
    if not records:
        raise WorkbenchError(f"{shown(path)} has no records: export it again.")
    return [(f"{shown(path)}: record {number} (the first is 0)", record) for number, record in enumerate(records)]


def field_of(record: Mapping[str, Any], name: str, where: str) -> Any:
    """What a record says under a name; WorkbenchError where it says nothing."""
    if not isinstance(record, Mapping):
        raise WorkbenchError(f"{where} is {record!r:.60}, not an object with named fields: export it again.")
    if record.get(name) is None:
        found = "it is null" if name in record else f"found: {', '.join(map(str, record))}"
        raise WorkbenchError(f"{where} has no {name!r} ({found}): name the right field, or export it again.")
    return record[name]


@contextmanager
def shaped(where: str) -> Iterator[None]:
    """WorkbenchError names the place, also where text or a number is in the place of an object or a list."""
    try:
        yield
    except WorkbenchError as error:
        said = str(error)
        raise WorkbenchError(said if said.startswith(where) else f"{where}: {said}") from None
    except (AttributeError, IndexError, KeyError, TypeError):
        raise WorkbenchError(f"{where} has another shape than records of its format: export it again.") from None


def verdict_of(label: Any, meaning: Mapping[str, Any], where: str) -> Any:
    """The verdict that a label stands for; 1, 1.0 and "1" are one label."""
    verdicts = {_text(known): verdict for known, verdict in meaning.items()}
    if _text(label) not in verdicts:
        raise WorkbenchError(f"{where} is labelled {label!r}: say what it means, as in labels={{{label!r}: 0}}.")
    return verdicts[_text(label)]


def _text(label: Any) -> str:
    return str(int(label) if isinstance(label, float) and label.is_integer() else label)


def named(name: Any, what: str, where: str, *, otherwise: str = "") -> str:
    """A name in a record as text, 0 as any other; `otherwise`, or WorkbenchError where there is none."""
    if name is None and otherwise:
        return otherwise
    try:
        return str(name_of(name))
    except (ValueError, ArithmeticError):
        raise WorkbenchError(f"{where} has the {what} {name!r:.60}: give each a name that prints.") from None


def others_of(columns: Mapping[str, Any], own: Iterable[str] = ()) -> dict[str, Any]:
    """What goes to the item as it is, without its `own` columns; "expected" as "file_expected".

    An item's `expected` verdict makes it an attention check, which nobody meant by a column of that name.
    """
    return {OTHER_NAMES.get(name, name): value for name, value in columns.items() if name not in own}


def judgement_of(
    item: Mapping[str, Any],
    kind: str,
    value: Any,
    *,
    labeler: str,
    where: str,
    details: Mapping[str, Any] | None = None,
    seconds: Any = None,  # what a file says of the time taken, perhaps nothing
) -> Judgement:
    """A judgement shown in the order of the completions; its event_id depends on what was said by whom of what."""
    said = [item["item_id"], item["prompt"], item["completions"], kind, value, labeler]
    timed = isinstance(seconds, int | float) and 0 <= seconds < math.inf
    with shaped(where):
        require_items([item])
        judgement = Judgement(
            item_id=item["item_id"],
            labeler=labeler_name(labeler),
            kind=kind,
            value=value,
            shown_order=list(range(len(item["completions"]))),
            elapsed_ms=round(1000 * seconds) if timed else 0,
            event_id=f"import-{digest(said)[:24]}",
            details=details or {},
        )
        require_verdict(judgement, item)
    return judgement


def with_repeats(items: list[dict[str, Any]], judgements: list[Judgement], path: Path) -> Feedback:
    """Both, with valid items, and the later judgements of an item by the same labeler as repeats."""
    with shaped(shown(path)):
        require_items(items)
    turns: Counter = Counter()
    numbered = []
    for judgement in judgements:
        turn = turns[judgement.item_id, judgement.labeler]
        numbered.append(replace(judgement, repeat=turn, event_id=f"{judgement.event_id}-{turn}"))
        turns[judgement.item_id, judgement.labeler] += 1
    return items, numbered


def digest(value: Any) -> str:
    """64 letters and digits that depend on nothing but a value that JSON can write."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# --- Records that Argilla exports, as items and judgements.


UNSAID = ("draft", "discarded")  # responses that are no answers


def argilla_feedback(
    path: Path,
    *,
    kind: str,
    question: str | Sequence[str],
    prompt: str = "prompt",
    completions: Sequence[str] = ("response1", "response2"),
    labels: Mapping[Any, Any] | None = None,
) -> Feedback:
    """The records that Argilla 2 writes by `dataset.records.to_json`, and what each user answered to a question.

    `prompt` and `completions` are names of fields. Answers are names of completions (labels, rankings), "tie", text
    (corrections) or numbers; for ratings of several completions name a question for each. `labels` says what other
    answers mean, such as {"first is better": 0}; a ranking of two may be a pair. Drafts and discarded responses are
    skips.
    """
    require_kind(kind)
    questions = [question] if isinstance(question, str) else list(question)
    meaning = {**SIDES, **{name: place for place, name in enumerate(completions)}, **(labels or {})}
    items, judgements, answered = [], [], set()
    for place, (where, record) in enumerate(records_of(path)):
        with shaped(where):
            fields = field_of(record, "fields", where)
            responses = record.get("responses") or {}
            texts = [field_of(fields, name, f"{where}, among its fields,") for name in completions]
            item_id = named(record.get("id"), "id", where, otherwise=f"record-{place:06d}")
            asked = field_of(fields, prompt, f"{where}, among its fields,")
            about = {"item_id": item_id, "prompt": asked, "completions": texts}
            items.append(others_of(record.get("metadata") or {}) | about)
            answered |= {name for name, given in responses.items() if given}
            for user, answers in _answers(responses, questions, where):
                value = _argilla_value(kind, answers, meaning, where)
                judgements.append(judgement_of(items[-1], kind, value, labeler=user, where=where))
    known = sorted(answered - {""})
    if known and not (judgements and all(questions)):
        found = f"no answers to {questions}, but to {known}" if all(questions) else f"answers to {known}"
        raise WorkbenchError(f"{shown(path)} has {found}: name one of these, as in question={known[0]}.")
    return with_repeats(items, judgements, path)


def _answers(responses: Mapping[str, Any], questions: Sequence[str], where: str) -> list[tuple[str, list]]:
    """Users with their response to every question, None where there is none; once more where they responded again."""
    answers: dict[tuple[str, int], list] = {}
    turns: Counter = Counter()
    for place, question in enumerate(questions):
        for response in responses.get(question) or []:
            there = f"{where}, in a response to {question!r},"
            user = named(field_of(response, "user_id", there), "user_id", there)
            if response.get("status") not in UNSAID:
                field_of(response, "value", there)
            answers.setdefault((user, turns[user, place]), [None] * len(questions))[place] = response
            turns[user, place] += 1
    return [(user, given) for (user, _), given in answers.items()]


def _argilla_value(kind: str, answers: list, meaning: Mapping[str, Any], where: str) -> Any:
    """The verdict in the responses of one user."""
    if any(answer and answer.get("status") in UNSAID for answer in answers):
        return "skip"
    values = [answer and answer["value"] for answer in answers]
    shape = KINDS[kind].shape
    if shape in ("numbers", "text"):
        return values if shape == "numbers" else values[0]
    several = isinstance(values[0], list)
    if not several or (len(values[0]) == 1 and shape != "order"):
        return verdict_of(values[0][0] if several else values[0], meaning, where)
    ranking = [verdict_of(name, meaning, where) for name in values[0]]
    return [[place] for place in ranking] if shape == "order" else ranking[0]


# --- Tasks that Label Studio exports, as items and judgements.


def label_studio_feedback(
    path: Path,
    *,
    kind: str,
    prompt: str = "prompt",
    completions: str | Sequence[str] = ("answer1", "answer2"),
    control: str = "",
    labels: Mapping[str, Any] | None = None,
) -> Feedback:
    """The tasks of a Label Studio export (JSON, not JSON-MIN), and what each annotator chose.

    `prompt` and `completions` are names in a task's data; "items.body" means a list `items` of completions with an id,
    and the text in `body`, as <List> and <Ranker> take it. Read are <Pairwise>, <Choices> (left, right, tie, names of
    completions, or what `labels` says), <Ranker> without buckets, <Rating> (of the tag that is named like a completion)
    and <TextArea>; `control` names the tag where annotations have several. Cancelled and empty ones are skips.
    """
    require_kind(kind)
    items, judgements = [], []
    for place, (where, task) in enumerate(records_of(path)):
        data, annotations = (field_of(task, name, where) for name in ("data", "annotations"))
        texts, others = _label_studio_texts(data, completions, where)
        asked = field_of(others, prompt, f"{where}, in its data,")
        item_id = named(task.get("id"), "id", where, otherwise=f"task-{place:06d}")
        items.append(
            {**others_of(others, [prompt]), "item_id": item_id, "prompt": asked, "completions": list(texts.values())}
        )
        meaning = {**SIDES, **{name: index for index, name in enumerate(texts)}, **(labels or {})}
        with shaped(where):
            for annotation in annotations:
                results = _results(annotation, kind, control, where)
                value, details = _label_studio_value(kind, results, meaning, list(texts), where)
                who = {"labeler": _annotator(annotation, where), "where": where, "seconds": annotation.get("lead_time")}
                judgements.append(judgement_of(items[-1], kind, value, details=details, **who))
    return with_repeats(items, judgements, path)


def _label_studio_texts(
    data: Mapping[str, Any], completions: str | Sequence[str], where: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The completions by their names, and the other fields of a task."""
    where = f"{where}, in its data,"
    if not isinstance(completions, str):
        texts = {name: field_of(data, name, where) for name in completions}
        return texts, {name: value for name, value in data.items() if name not in texts}
    name, _, text = completions.partition(".")
    listed = field_of(data, name, where)
    where = f"{where} in {name!r},"
    texts = {str(field_of(each, "id", where)): field_of(each, text, where) for each in listed}
    if len(texts) < len(listed):
        raise WorkbenchError(f"{where} has two completions of one id (found: {', '.join(texts)}): give each its own.")
    return texts, {other: value for other, value in data.items() if other != name}


def _results(annotation: Mapping[str, Any], kind: str, control: str, where: str) -> list[Mapping[str, Any]]:
    """What an annotation says of a kind, nothing where it was cancelled or is empty."""
    if annotation.get("was_cancelled"):
        return []
    given, sorts = field_of(annotation, "result", f"{where}, in an annotation,"), KINDS[kind].controls
    found = [each for each in given if each.get("type") in sorts and control in ("", each.get("from_name"))]
    if not found and given:
        others = ", ".join(sorted({f"{each.get('type')} {each.get('from_name')!r}" for each in given}))
        wanted = " or ".join(sorts) + (f" {control!r}" if control else "")
        raise WorkbenchError(
            f"{where} has an annotation without {wanted} (found: {others}): use another kind or control."
        )
    if len(found) > 1 and KINDS[kind].shape != "numbers":
        names = ", ".join(repr(each.get("from_name")) for each in found)
        raise WorkbenchError(f"{where} has an annotation with {len(found)} results ({names}): choose by control.")
    return found


def _label_studio_value(
    kind: str, results: list[Mapping[str, Any]], meaning: Mapping[str, Any], names: list[str], where: str
) -> tuple[Any, dict[str, Any]]:
    """The verdict in the results of one annotation, and its details."""
    if not results:
        return "skip", {}
    if KINDS[kind].shape == "numbers":
        return _label_studio_ratings(results, names, where), {}
    sort = results[0]["type"]
    inside = {"pairwise": "selected", "textarea": "text"}.get(sort, sort)
    said = field_of(field_of(results[0], "value", where), inside, where)
    if sort == "ranker":
        return [[verdict_of(name, meaning, where)] for name in _one_bucket(said, where)], {}
    if isinstance(said, list) and len(said) != 1:
        raise WorkbenchError(f"{where} is labelled {said!r:.60}: a verdict is a single choice, or one text.")
    said = said[0] if isinstance(said, list) else said
    if sort == "textarea":
        about = results[0].get("to_name")
        return said, {"completion": names.index(about)} if about in names else {}
    return verdict_of(said, meaning, where), {}


def _label_studio_ratings(results: list[Mapping[str, Any]], names: list[str], where: str) -> list[float | None]:
    """The rating of each completion, by the name of the tag that was rated."""
    ratings: list[float | None] = [None] * len(names)
    for result in results:
        about = result.get("to_name")
        if about not in names and len(names) > 1:
            raise WorkbenchError(f"{where} rates {about!r}, which is not among the completions {', '.join(names)}.")
        place = names.index(about) if about in names else 0
        if ratings[place] is not None:
            raise WorkbenchError(f"{where} rates {names[place]!r} more than once in an annotation: choose by control.")
        ratings[place] = field_of(field_of(result, "value", where), "rating", where)
    return ratings


def _one_bucket(ranked: Any, where: str) -> list:
    """The order that a ranker holds: a list, or the only one with anything in it."""
    if isinstance(ranked, list):
        return ranked
    filled = {name: order for name, order in ranked.items() if order}
    if len(filled) != 1:
        raise WorkbenchError(f"{where} sorts completions into {list(filled)}: a ranking is one order of all of them.")
    return next(iter(filled.values()))


def _annotator(annotation: Mapping[str, Any], where: str) -> str:
    """Who annotated: a number, or the address or number in what is known of them."""
    who = annotation.get("completed_by")
    return named((who.get("email") or who.get("id")) if isinstance(who, Mapping) else who, "completed_by", where)
