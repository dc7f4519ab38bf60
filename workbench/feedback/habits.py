"""What labelers go by: how often they choose the longer, the more flattering, the better completion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from workbench.analysis.statistics import mean_and_error
from workbench.feedback.tables import read


def choice_shares(choices: pd.DataFrame, features: Sequence[str]) -> pd.DataFrame:
    """Of each labeler's choices that differ in a feature, the share in which the chosen completion has more of it.

    `choices` has labeler and, for every feature, chosen_<feature> and rejected_<feature>. Rows labeler, feature, share,
    share_se, pairs (those that differ); none where a labeler saw no difference. WorkbenchError for missing columns and
    for what is no number.
    """
    choices = read(
        choices, ["labeler", *(f"{side}_{feature}" for feature in features for side in ("chosen", "rejected"))]
    )
    rows = []
    for labeler, own in choices.groupby("labeler"):
        for feature in features:
            gap = own[f"chosen_{feature}"] - own[f"rejected_{feature}"]
            gap = gap[gap.abs() > 1e-9]  # sums of weighted parts may differ in the last bit
            if len(gap):
                share, error = mean_and_error(gap > 0)
                rows.append([labeler, feature, float(share), float(error), len(gap)])
    return pd.DataFrame(rows, columns=["labeler", "feature", "share", "share_se", "pairs"])


def standing_out(shares: pd.DataFrame) -> pd.DataFrame:
    """For each feature of `choice_shares` the labeler furthest from all others together, the clearest case first.

    Rows feature, labeler, share, others (their share), difference, standard_errors (how many of them the difference
    is); features that fewer than two labelers saw a difference in have none.
    """
    rows = []
    for feature, table in shares.groupby("feature", sort=False):
        if len(table) > 1:
            share, pairs = table["share"], table["pairs"]
            rest = pairs.sum() - pairs
            others = ((share * pairs).sum() - share * pairs) / rest
            difference = share - others
            spread = np.sqrt(share * (1 - share) / pairs + others * (1 - others) / rest)
            errors = (difference / spread).where(difference != 0, 0.0)
            furthest = errors.abs().idxmax()
            values = [column[furthest] for column in (table["labeler"], share, others, difference, errors)]
            rows.append([feature, *values])
    columns = ["feature", "labeler", "share", "others", "difference", "standard_errors"]
    found = pd.DataFrame(rows, columns=columns)
    return found.sort_values("standard_errors", key=abs, ascending=False, ignore_index=True)
