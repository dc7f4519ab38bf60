"""Verdicts of pairs, rankings and best_of as rankings of names: the writers of the completions, or their numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import pandas as pd

from workbench import WorkbenchError
from workbench.feedback.rankings import groups_and_rest, judged
from workbench.records import Judgement


def model_rankings(items: Iterable[Mapping], judgements: Iterable[Judgement]) -> tuple[pd.DataFrame, dict[str, int]]:
    """Verdicts of pairs, rankings and best_of on the writers of the completions, and how many were left out and why.

    Rows item_id, labeler, groups (of names, best first, ties in one group), rest (names below them in no known order).
    The names stand in an item's `models`, one per completion; WorkbenchError where they do not.
    """
    return _named_rankings(items, judgements, _models)


def completion_rankings(
    items: Iterable[Mapping], judgements: Iterable[Judgement]
) -> tuple[pd.DataFrame, dict[str, int]]:
    """As `model_rankings`, with the numbers of the completions as names: each item has scores of its own."""
    return _named_rankings(items, judgements, lambda item: list(range(len(item["completions"]))))


def _named_rankings(
    items: Iterable[Mapping], judgements: Iterable[Judgement], names_of: Callable[[Mapping], list]
) -> tuple[pd.DataFrame, dict[str, int]]:
    rows, left_out = [], Counter()
    for judgement, item, reason in judged(items, judgements, "pair", "ranking", "best_of"):
        if reason:
            left_out[reason] += 1
            continue
        names = names_of(item)
        groups, rest = groups_and_rest(judgement, len(names))
        named = [[names[index] for index in group] for group in groups]
        rows.append((judgement.item_id, judgement.labeler, named, [names[index] for index in rest]))
    return pd.DataFrame(rows, columns=["item_id", "labeler", "groups", "rest"]), dict(left_out)


def _models(item: Mapping) -> list[str]:
    models, count = item.get("models"), len(item["completions"])
    if not isinstance(models, Sequence) or isinstance(models, str) or len(models) != count:
        raise WorkbenchError(
            f"Item {item['item_id']!r} has models {models!r}: name the writer of each of its {count} completions."
        )
    return list(models)
