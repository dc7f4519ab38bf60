"""Several labelers' verdicts on the same two completions as one training row, or as one row each.

Every function takes judgements of pairs, rankings (each two completions) and best_of (the best and each other), mixed
or not. Rows have prompt, chosen, rejected, preference, labelers, agreement, item_id: how probable it is that the chosen
one is better, how many judged these two, and the share of pairs of them who said the same (a tie against a choice
counts half; None where one judged alone). What is left out has the reasons of `training_rows`, and `labelers`, too: all
rows and all that was left out add up to the verdicts that were given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.feedback.agreement import verdicts
from workbench.feedback.kinds import COMPARING, Rows, comparisons, judged, left_out_row
from workbench.feedback.tables import name_of
from workbench.records import Judgement

CLASSES = (0, 1, "tie")


class _Pair(NamedTuple):
    """What was said of the completions `first` < `second` of an item."""

    item: Mapping[str, Any]
    first: int
    second: int
    votes: dict[str, int | str]  # labeler -> 0 (the first is better), 1 or "tie"

    @property
    def texts(self) -> list:
        return [self.item["completions"][index] for index in (self.first, self.second)]

    @property
    def about(self) -> dict[str, Any]:
        """labelers, agreement (half for a tie against a choice, None of one), item_id."""
        credits = [1.0 if a == b else 0.5 * ("tie" in (a, b)) for a, b in combinations(self.votes.values(), 2)]
        agreement = sum(credits) / len(credits) if credits else None
        return {"labelers": len(self.votes), "agreement": agreement, "item_id": self.item["item_id"]}

    def row(self, verdict: int | str, preference: float) -> dict[str, Any]:
        sides = {"chosen": self.texts[verdict], "rejected": self.texts[1 - verdict]}
        return {"prompt": self.item["prompt"], **sides, "preference": preference, **self.about}

    def left_out(self, tied: bool) -> dict[str, Any] | None:
        """The row of what is left out, None where there is something to learn."""
        first, second = self.texts
        if first != second and not tied:
            return None
        reason = "identical" if first == second else "tie"
        return {"prompt": self.item["prompt"], "completions": self.texts, "reason": reason, **self.about}


def rating_orders(judgements: pd.DataFrame, *, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Which of an item's two answers is better by the ratings of two labelers, read in three ways.

    Either one labeler rates both, and a scale of one's own cancels; or two rate one each, as where answers come one by
    one; or these two after everybody's ratings are standardised to mean 0 and deviation 1. Each way makes two orders of
    the same four ratings: rows item_id, labeler ("first", "second"), value (0 or 1), for `pairwise_agreement`. A coin
    decides between equal ratings. Items that no two labelers rated are left out.
    """
    rated = verdicts(judgements).astype({"value": float})
    own = rated.groupby("labeler")["value"]
    rated["standard"] = (rated["value"] - own.transform("mean")) / own.transform("std").replace(0, 1)
    rows = rated.pivot(index=["item_id", "labeler"], columns="part", values=["value", "standard"])
    turn, coin = rows.groupby("item_id").cumcount(), np.random.default_rng(seed)
    second = rows[turn == 1].droplevel("labeler")
    first = rows[turn == 0].droplevel("labeler").loc[second.index]

    def order(scale: str, one: pd.DataFrame, other: pd.DataFrame) -> pd.Series:
        ahead = one[scale, "0"] - other[scale, "1"]
        better = np.where(ahead == 0, coin.integers(2, size=len(ahead)), ahead < 0)
        return pd.Series(better.astype(int), ahead.index, name="value")

    ways = {
        "ratings of one labeler": [order("value", first, first), order("value", second, second)],
        "ratings of two": [order("value", first, second), order("value", second, first)],
        "ratings of two, standardised": [order("standard", first, second), order("standard", second, first)],
    }
    return {
        way: pd.concat(both, keys=["first", "second"], names=["labeler"]).reset_index() for way, both in ways.items()
    }


def majority_rows(items: Iterable[Mapping], judgements: Iterable[Judgement]) -> tuple[Rows, Rows]:
    """One row for each pair of completions on which more labelers agree than on anything else.

    "tie" is a verdict like the others: where it has the most votes, or two verdicts have as many, the pair is left out
    as a tie. `preference` is the share of votes for the chosen one, a tie counting half.
    """
    return _one_row_each(items, judgements, lambda pair: _shares(Counter(pair.votes.values())))


def posterior_rows(
    items: Iterable[Mapping], judgements: Iterable[Judgement], posterior: pd.DataFrame
) -> tuple[Rows, Rows]:
    """One row for each pair of completions whose most probable class, in a table of probabilities, is a choice.

    `posterior` is that of `dawid_skene` on the same judgements: columns 0, 1 and perhaps "tie", index item_id, or
    item_id and part ("0-2") for rankings and best_of. `preference` is the probability that the chosen one is better,
    half that of a tie included. WorkbenchError where a judged pair is not in the table.
    """
    odd = [name for name in posterior.columns if name not in CLASSES]
    if odd:
        raise WorkbenchError(f"The posterior has the class {odd[0]!r}: a pair is 0, 1 or 'tie'.")
    return _one_row_each(items, judgements, lambda pair: _probabilities(pair, posterior))


def labeler_rows(items: Iterable[Mapping], judgements: Iterable[Judgement]) -> tuple[Rows, Rows]:
    """One row for each decided verdict, with its `labeler`: preference is 1. Others are left out one by one.

    Here `labelers` says how many judged the same two, of whom each has a row or is left out.
    """
    pairs, left_out = _verdicts(items, judgements)
    rows = []
    for pair in pairs:
        for labeler, vote in pair.votes.items():
            omitted = pair.left_out(vote == "tie")
            (left_out if omitted else rows).append({**(omitted or pair.row(vote, 1.0)), "labeler": labeler})
    return rows, left_out


def _one_row_each(
    items: Iterable[Mapping],
    judgements: Iterable[Judgement],
    probabilities: Callable[[_Pair], Mapping[int | str, float]],
) -> tuple[Rows, Rows]:
    """Rows of the pairs whose most probable class is a choice, and what was left out."""
    pairs, left_out = _verdicts(items, judgements)
    rows = []
    for pair in pairs:
        if omitted := pair.left_out(tied=False):
            left_out.append(omitted)
            continue
        chances = probabilities(pair)
        best = max(chances.values())
        likely = [verdict for verdict, chance in chances.items() if chance == best]
        if likely in ([0], [1]):
            rows.append(pair.row(likely[0], chances[likely[0]] + chances["tie"] / 2))
        else:
            left_out.append(pair.left_out(tied=True))
    return rows, left_out


def _verdicts(items: Iterable[Mapping], judgements: Iterable[Judgement]) -> tuple[list[_Pair], Rows]:
    """What every labeler said of every two completions, and the judgements that can teach nothing."""
    pairs: dict[tuple[str, int, int], _Pair] = {}
    left_out = []
    for judgement, item, reason in judged(items, judgements, *COMPARING):
        if reason:
            left_out.append({**left_out_row(judgement, item, reason), "labelers": 1})
            continue
        for better, worse, tied in comparisons(judgement, item):
            first, second = sorted((better, worse))
            pair = pairs.setdefault((judgement.item_id, first, second), _Pair(item, first, second, {}))
            if judgement.labeler in pair.votes:
                raise WorkbenchError(
                    f"Labeler {judgement.labeler!r} judged item {judgement.item_id!r} more than once: keep one verdict "
                    "of each, or mark later ones as repeat."
                )
            pair.votes[judgement.labeler] = "tie" if tied else int(better == second)
    return list(pairs.values()), left_out


def _shares(votes: Counter) -> dict[int | str, float]:
    return {verdict: votes[verdict] / votes.total() for verdict in CLASSES}


def _probabilities(pair: _Pair, posterior: pd.DataFrame) -> dict[int | str, float]:
    """Those of the three verdicts in the row of `posterior` that is about this pair."""
    item_id = name_of(pair.item["item_id"])  # as in the table that the posterior was made of
    key = (item_id, f"{pair.first}-{pair.second}") if posterior.index.nlevels == 2 else item_id
    if key not in posterior.index:
        raise WorkbenchError(f"The posterior has no row for {key!r}: make it from the same judgements.")
    row = posterior.loc[key]
    return {verdict: float(row[verdict]) if verdict in posterior.columns else 0.0 for verdict in CLASSES}
