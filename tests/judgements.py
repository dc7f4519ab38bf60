"""A judgement in a line: what a test does not say is as it mostly is."""

import pandas as pd

from workbench.records import Judgement


def judged(item_id, value, labeler="ada", *, kind="pair", size=2, shown_order=None, repeat=0, details=None, **others):
    """Of an item with `size` completions, shown in their own order."""
    order = list(range(size)) if shown_order is None else list(shown_order)
    given = {"event_id": f"{item_id}-{labeler}-{kind}-{repeat}", "details": details or {}, **others}
    return Judgement(
        item_id=item_id, labeler=labeler, kind=kind, value=value, shown_order=order, repeat=repeat, **given
    )


def log_of(store):
    """Every row ever written, undone ones and the undoing too."""
    return pd.read_sql_query("SELECT * FROM judgement ORDER BY seq", store._db)
