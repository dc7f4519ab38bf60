"""Tasks that Label Studio exports, as items and judgements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench import WorkbenchError
from workbench.feedback.import_records import (
    SIDES,
    Feedback,
    field_of,
    judgement_of,
    named,
    others_of,
    records_of,
    shaped,
    verdict_of,
    with_repeats,
)
from workbench.feedback.validity import require_kind

CONTROLS = {  # sorts of Label Studio results that say something of a kind
    "pair": ("pairwise", "choices"),
    "best_of": ("choices",),
    "ranking": ("ranker",),
    "rating": ("rating",),
    "correction": ("textarea",),
}


def label_studio_feedback(
    path: str | Path,
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
    given = field_of(annotation, "result", f"{where}, in an annotation,")
    found = [each for each in given if each.get("type") in CONTROLS[kind] and control in ("", each.get("from_name"))]
    if not found and given:
        sorts = ", ".join(sorted({f"{each.get('type')} {each.get('from_name')!r}" for each in given}))
        wanted = " or ".join(CONTROLS[kind]) + (f" {control!r}" if control else "")
        raise WorkbenchError(
            f"{where} has an annotation without {wanted} (found: {sorts}): use another kind or control."
        )
    if len(found) > 1 and kind != "rating":
        names = ", ".join(repr(each.get("from_name")) for each in found)
        raise WorkbenchError(f"{where} has an annotation with {len(found)} results ({names}): choose by control.")
    return found


def _label_studio_value(
    kind: str, results: list[Mapping[str, Any]], meaning: Mapping[str, Any], names: list[str], where: str
) -> tuple[Any, dict[str, Any]]:
    """The verdict in the results of one annotation, and its details."""
    if not results:
        return "skip", {}
    if kind == "rating":
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
