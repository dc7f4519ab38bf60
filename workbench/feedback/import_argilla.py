"""Records that Argilla exports, or that its server holds, as items and judgements."""

from __future__ import annotations

from collections import Counter, defaultdict
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
from workbench.runs.files import shown

UNSAID = ("draft", "discarded")  # responses that are no answers


def argilla_feedback(
    path: str | Path,
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
    answers mean, such as {"first is better": 0}; a ranking of two may be a pair. Rankings that Argilla exports have no
    ties; values with a rank, as its server holds them, may. Drafts and discarded responses are skips.
    """
    require_kind(kind)
    questions = [question] if isinstance(question, str) else list(question)
    meaning = {**SIDES, **{name: place for place, name in enumerate(completions)}, **(labels or {})}
    items, judgements, answered = [], [], set()
    for place, (where, record) in enumerate(records_of(path)):
        with shaped(where):
            fields = field_of(record, "fields", where)
            responses = _by_question(record.get("responses") or {}, questions, where)
            texts = [field_of(fields, name, f"{where}, among its fields,") for name in completions]
            item_id = named(record.get("id"), "id", where, otherwise=f"record-{place:06d}")
            asked = field_of(fields, prompt, f"{where}, among its fields,")
            about = {"item_id": item_id, "prompt": asked, "completions": texts}
            items.append(others_of(record.get("metadata") or {}) | about)
            answered |= {name for name, given in responses.items() if given}
            for user, answers in _answers(responses, questions, where):
                value = _argilla_value(kind, answers, meaning, where)
                judgements.append(judgement_of(items[-1], kind, value, labeler=user, where=where))
    if answered and not judgements:
        raise WorkbenchError(
            f"{shown(path)} has no answers to {questions}, but to {sorted(answered)}: name one of these."
        )
    return with_repeats(items, judgements, path)


def _by_question(responses: Any, questions: Sequence[str], where: str) -> dict[str, list]:
    """Responses by question, also where the server lists them by user: user_id, status, values by question."""
    if isinstance(responses, Mapping):
        return dict(responses)
    found: dict[str, list] = defaultdict(list)
    for response in responses:
        who = {name: response[name] for name in ("user_id", "status") if name in response}
        if response.get("values", "none") in (None, {}) and who.get("status") in UNSAID:
            values = {question: {"value": None} for question in questions}
        else:
            values = field_of(response, "values", f"{where}, in a response,")
        for question, answer in values.items():
            found[question].append({**answer, **who})
    return found


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
    if kind == "rating":
        return values
    if kind == "correction":
        return values[0]
    several = isinstance(values[0], list)
    if not several or (len(values[0]) == 1 and kind != "ranking"):
        return verdict_of(values[0][0] if several else values[0], meaning, where)
    groups: dict[Any, list[int]] = {}
    for place, each in enumerate(values[0]):
        ranked = isinstance(each, Mapping)
        name, rank = [field_of(each, key, where) for key in ("value", "rank")] if ranked else (each, place)
        groups.setdefault(rank, []).append(verdict_of(name, meaning, where))
    ranking = [sorted(groups[rank]) for rank in sorted(groups)]
    if kind == "ranking":
        return ranking
    return "tie" if len(ranking) == 1 else ranking[0][0]
