"""How far labelers agree, from a table of judgements with the columns item_id, labeler and value.

`pandas.DataFrame(judgements)` makes that table from a list of `Judgement`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from workbench.analysis.statistics import Interval, bootstrap_interval
from workbench.errors import WorkbenchError


def pairwise_agreement(table: pd.DataFrame, *, seed: int = 0) -> Interval:
    """Share of equal verdicts over all pairs of labelers of an item, with a 95% bootstrap interval over items.

    Equal values (two ties included) agree, a tie against a choice counts half, skips and missing values are no verdict.
    WorkbenchError when fewer than two labelers, or fewer than two items judged by two, leave nothing to measure.
    """
    pairs = _verdict_pairs(table)
    items = pairs.groupby("item_id")["agreement"].agg(["sum", "count"]).to_numpy()
    if len(items) < 2:
        raise WorkbenchError(
            "Only 1 item was judged by two labelers: agreement with an interval needs at least 2 such items."
        )
    return bootstrap_interval(items, lambda rows: rows[:, 0].sum() / rows[:, 1].sum(), seed=seed)


def agreement_matrix(table: pd.DataFrame) -> pd.DataFrame:
    """Agreement of each labeler (row) with each other (column), counted as in `pairwise_agreement`.

    NaN on the diagonal, where nothing was compared, and where two labelers share no item.
    """
    pairs = _verdict_pairs(table)
    mirrored = pairs.rename(columns={"labeler": "other", "other": "labeler"})
    means = pd.concat([pairs, mirrored]).groupby(["labeler", "other"])["agreement"].mean().unstack()
    labelers = sorted(table["labeler"].unique())
    return means.reindex(index=labelers, columns=labelers)


def _verdict_pairs(table: pd.DataFrame) -> pd.DataFrame:
    """One row per item and pair of its labelers: item_id, labeler, other, agreement (0, .5 or 1)."""
    verdicts = _verdicts(table)
    pairs = verdicts.merge(verdicts.rename(columns={"labeler": "other", "value": "other_value"}), on="item_id")
    pairs = pairs[pairs["labeler"] < pairs["other"]]
    if pairs.empty:
        raise WorkbenchError("No item was judged by two labelers: give at least two of them the same items.")
    equal = pairs["value"] == pairs["other_value"]
    half = (pairs["value"] == "tie") | (pairs["other_value"] == "tie")
    return pairs.assign(agreement=np.select([equal, half], [1.0, 0.5], 0.0))[
        ["item_id", "labeler", "other", "agreement"]
    ]


def _verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `table` that hold a verdict, each labeler and item once."""
    missing = {"item_id", "labeler", "value"} - set(table.columns)
    if missing:
        raise WorkbenchError(f"The judgement table lacks {sorted(missing)}: it has {list(table.columns)}.")
    verdicts = table[["item_id", "labeler", "value"]].astype({"value": object})
    verdicts = verdicts[verdicts["value"].notna() & (verdicts["value"] != "skip")]
    if verdicts["labeler"].nunique() < 2:
        raise WorkbenchError(
            f"The table holds verdicts of {verdicts['labeler'].nunique()} labeler(s): agreement needs at least 2."
        )
    repeated = verdicts[verdicts.duplicated(["item_id", "labeler"])]
    if len(repeated):
        item, labeler = repeated.iloc[0][["item_id", "labeler"]]
        raise WorkbenchError(
            f"Labeler {labeler!r} judged item {item!r} more than once: keep one verdict of each labeler per item."
        )
    return verdicts
