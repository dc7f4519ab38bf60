"""What tests plant of a policy, by draw, as the one table in which runs hold it."""

import pandas as pd

DRAWS = {"path": "path", "evaluation_before": "evaluation", "evaluation": "evaluation", "curve": "best of n"}


def as_measured(tables: dict[str, pd.DataFrame], *, last: int = 1) -> dict[str, pd.DataFrame]:
    """Tables for a run, with those named in `DRAWS` as rows of `measured`; an evaluation is of the step `last`."""
    steps, rows = {"evaluation_before": 0, "evaluation": last, "curve": 0}, []
    for name in tables.keys() & DRAWS:
        frame = tables[name].assign(draw=DRAWS[name])
        frame = frame.assign(step=steps[name]) if name in steps else frame.assign(temperature=1.0)
        for column, value in {"n": 1, "row": range(len(frame))}.items():
            frame = frame if column in frame else frame.assign(**{column: value})
        rows.append(frame)
    others = {name: frame for name, frame in tables.items() if name not in DRAWS}
    return others | ({"measured": pd.concat(rows, ignore_index=True)} if rows else {})
