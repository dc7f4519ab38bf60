"""What each labeler's judgements look like: habits, care and speed, a row per labeler.

Judgements are a table, `pd.DataFrame` of a list of `Judgement`; items are dicts, or a table, with item_id and
completions. Pairs, rankings and best-of-k choices are read alike, as the pairs of completions that they put in order,
and an item is one draw: it counts by the mean over its pairs, and 95% intervals are Wilson's (1927) for as many draws
as items, which are never of width 0, and too wide rather than too narrow where an item's mean is neither 0 nor 1.
Labelers who were not measured have no row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.feedback.agreement import labeler_vs_rest
from workbench.feedback.tables import name_of, read
from workbench.feedback.verdicts import is_verdict, parts_of, read_judgements

JUDGEMENT = ("item_id", "labeler", "kind", "value", "shown_order", "repeat")
IN_ORDER = ("pair", "ranking", "best_of")  # kinds that say which of two completions is better


def keep(
    judgements: pd.DataFrame, *, labelers: Sequence[str] = (), kinds: Sequence[str] = (), slower_than_ms: int = 0
) -> pd.DataFrame:
    """The judgements by these labelers, of these kinds, that took at least so long; () and 0 leave nothing out.

    Those whose time nobody measured (0) stay. WorkbenchError for a labeler or kind that the table does not have.
    """
    judgements = read(judgements, ["labeler", "kind", "elapsed_ms"])
    kept = np.ones(len(judgements), dtype=bool)
    for column, wanted in (("labeler", labelers), ("kind", kinds)):
        names, wanted = judgements[column].astype(str), {str(name_of(each)) for each in wanted}
        if unknown := sorted(wanted.difference(names)):
            raise WorkbenchError(f"No judgement has the {column} {unknown[0]!r}: choose from {sorted(set(names))}.")
        if wanted:
            kept &= names.isin(wanted).to_numpy()
    elapsed = judgements["elapsed_ms"].to_numpy()
    return judgements[kept & ((elapsed == 0) | (elapsed >= slower_than_ms))]


def position_bias(judgements: pd.DataFrame) -> pd.DataFrame:
    """Share of the decided pairs in which the completion that was shown before the other is preferred: .5 if unbiased.

    Rows labeler, share, low, high, items. Ties and second judgements of an item are left out.
    """
    pairs = _decided(judgements)
    earlier = [
        order.index(winner) < order.index(loser)
        for order, winner, loser in zip(pairs["shown_order"], pairs["winner"], pairs["loser"], strict=True)
    ]
    return _shares(pairs, np.array(earlier, dtype=float))


def length_bias(judgements: pd.DataFrame, items: pd.DataFrame | Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Share of the decided pairs of different length in which the longer completion is preferred.

    Length is the number of words, of all messages where a completion is a list of them. Rows as in `position_bias`.
    WorkbenchError for a judgement of an unknown item.
    """
    pairs, known = _decided(judgements), _column(items, "completions")
    pairs = pairs.assign(item_id=[str(item) for item in pairs["item_id"]])
    unknown = set(pairs["item_id"]).difference(known)
    if unknown:
        raise WorkbenchError(f"Item {min(unknown)!r} was judged, but is not among the {len(known)} items: give all.")
    gaps = []
    for item, i, j in pairs[["item_id", "winner", "loser"]].to_numpy():
        try:
            gaps.append(_words(known[item][i]) - _words(known[item][j]))
        except (TypeError, IndexError, KeyError, AttributeError):
            raise WorkbenchError(
                f"Item {item!r} has the completions {known[item]!r:.60}, of which {i} and {j} were compared: give a "
                "text or messages for each."
            ) from None
    gap = np.array(gaps, dtype=int)
    return _shares(pairs[gap != 0], (gap[gap != 0] > 0).astype(float))


def self_consistency(judgements: pd.DataFrame) -> pd.DataFrame:
    """Agreement of labelers with themselves, where they judged an item a second time (`repeat` 1).

    Rows labeler, share, low, high, items. Verdicts are compared as in `pairwise_agreement`, a tie against a choice
    counting half; ratings agree where they are the same number. An item that was skipped once is left out.
    """
    judgements = read_judgements(judgements, JUDGEMENT)
    first, again = (parts_of(judgements[judgements["repeat"] == number]) for number in (0, 1))
    pairs = first.merge(again, on=["item_id", "labeler", "kind", "part"])
    one, other = pairs["value_x"], pairs["value_y"]
    half = ((one == "tie") != (other == "tie")) / 2
    return _shares(pairs, np.where(one == other, 1.0, half))


def attention_checks(judgements: pd.DataFrame, items: pd.DataFrame | Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Share of the items with an `expected` verdict in which the labeler gave just this one, and did not skip.

    Rows labeler, share, low, high, items. Second judgements are left out. In a ranking, tied completions have no order.
    """
    judgements = read_judgements(judgements, JUDGEMENT)
    expected = {item: value for item, value in _column(items, "expected").items() if value is not None}
    judgements = judgements.assign(item_id=[str(item) for item in judgements["item_id"]])
    rows = judgements[(judgements["repeat"] == 0) & judgements["item_id"].isin(list(expected))]
    passed = [_plain(value) == _plain(expected[item]) for item, value in rows[["item_id", "value"]].to_numpy()]
    return _shares(rows, np.array(passed, dtype=float))


def seconds_per_item(judgements: pd.DataFrame) -> pd.DataFrame:
    """How long labelers took: rows labeler, median, p10, p90 (seconds), measured, unmeasured (judgements).

    Judgements whose time nobody measured (0) are counted and left out; second judgements and skips took time, too.
    """
    judgements = read(judgements, ["labeler", "elapsed_ms"])
    rows = []
    for labeler, elapsed in judgements.groupby("labeler")["elapsed_ms"]:
        measured = elapsed[elapsed > 0]
        if len(measured):
            median, low, high = np.quantile(measured / 1000, [0.5, 0.1, 0.9]).tolist()
            rows.append([labeler, median, low, high, len(measured), len(elapsed) - len(measured)])
    return pd.DataFrame(rows, columns=["labeler", "median", "p10", "p90", "measured", "unmeasured"])


def labeler_summary(
    judgements: pd.DataFrame, items: pd.DataFrame | Iterable[Mapping[str, Any]], *, seed: int = 0
) -> pd.DataFrame:
    """All of this in a row per labeler: labeler, judgements, skipped (counts), and what was measured of anybody.

    agreement (with all others, `labeler_vs_rest` of what was put in order), prefers_first, prefers_longer, consistency
    and attention, each with <name>_low and <name>_high; seconds (median). Missing where that labeler was not measured.
    """
    judgements = read_judgements(judgements, [*JUDGEMENT, "elapsed_ms"])
    skipped = judgements["value"].map(lambda value: not is_verdict(value)).groupby(judgements["labeler"]).sum()
    summary = pd.DataFrame({"judgements": judgements["labeler"].value_counts(), "skipped": skipped}).sort_index()
    tables = {
        "agreement": _agreement(judgements, seed),
        "prefers_first": position_bias(judgements),
        "prefers_longer": length_bias(judgements, items),
        "consistency": self_consistency(judgements),
        "attention": attention_checks(judgements, items),
    }
    for name, table in tables.items():
        if len(table):
            columns = {"share": name, "low": f"{name}_low", "high": f"{name}_high"}
            summary = summary.join(table.set_index("labeler")[list(columns)].rename(columns=columns))
    seconds = seconds_per_item(judgements).set_index("labeler")["median"].rename("seconds")
    summary = summary.join(seconds) if len(seconds) else summary
    return summary.rename_axis("labeler").reset_index()


def wilson_interval(share: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """Ends of the interval of a share of `count` independent draws (Wilson 1927)."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5 / (1 + z**2 / count)
    return max(0.0, middle - half), min(1.0, middle + half)  # rounding aside, it never leaves them


def _shares(rows: pd.DataFrame, scores: np.ndarray) -> pd.DataFrame:
    """Mean over each labeler's items of the mean score, 0 to 1, of an item's rows."""
    means = rows[["labeler", "item_id"]].assign(score=scores).groupby(["labeler", "item_id"])["score"].mean()
    table = []
    for labeler, own in means.groupby("labeler"):
        table.append([labeler, own.mean(), *wilson_interval(own.mean(), len(own)), len(own)])
    return pd.DataFrame(table, columns=["labeler", "share", "low", "high", "items"])


def _decided(judgements: pd.DataFrame) -> pd.DataFrame:
    """The pairs of completions of which one is preferred: item_id, labeler, winner, loser (indices), shown_order."""
    pairs = _in_order(judgements)
    pairs = pairs[pairs["value"] != "tie"].reset_index(drop=True)
    ends = pairs["part"].str.split("-", expand=True).reindex(columns=[0, 1]).astype(int)
    for item, order, one, other in zip(pairs["item_id"], pairs["shown_order"], ends[0], ends[1], strict=True):
        if order is None or not {one, other} <= set(order):
            raise WorkbenchError(
                f"Item {item!r} was shown as {order!r}, but {one} and {other} were compared: give both."
            )
    first = pairs["value"] == 0
    return pairs.assign(winner=ends[0].where(first, ends[1]), loser=ends[1].where(first, ends[0]))


def _in_order(judgements: pd.DataFrame) -> pd.DataFrame:
    """The parts of first judgements that say which of two completions is better."""
    judgements = read_judgements(judgements, JUDGEMENT)
    return parts_of(judgements[(judgements["repeat"] == 0) & judgements["kind"].isin(IN_ORDER)])


def _agreement(judgements: pd.DataFrame, seed: int) -> pd.DataFrame:
    """`labeler_vs_rest` over all kinds that put completions in order; empty where no two labelers can be compared."""
    pairs = _in_order(judgements)
    pairs = pairs.assign(part=pairs["kind"] + " " + pairs["part"]).drop(columns="kind")
    if pairs.groupby(["item_id", "part"])["labeler"].nunique().max() > 1:
        return labeler_vs_rest(pairs, seed=seed).rename(columns={"agreement": "share"})
    return pd.DataFrame()


def _column(items: pd.DataFrame | Iterable[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Each item's entry by the text of its item_id, None where it has none."""
    table = items if isinstance(items, pd.DataFrame) else pd.DataFrame([dict(item) for item in items])
    table = read(table, ["item_id"], perhaps=["expected"])
    return dict(zip(map(str, table["item_id"]), table.get(name, [None] * len(table)), strict=True))


def _words(completion: str | Sequence[Mapping[str, Any]]) -> int:
    texts = [completion] if isinstance(completion, str) else [message["content"] for message in completion]
    return sum(len(text.split()) for text in texts)


def _plain(value: Any) -> Any:
    """A ranking with the indices of each group in order; anything else as it is."""
    if isinstance(value, list) and all(isinstance(group, list) for group in value):
        return [sorted(group) for group in value]
    return value
