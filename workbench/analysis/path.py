"""The path of a policy in training: what it did on held-out prompts every few steps, kept with the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import pandas as pd

from workbench.resumable import interrupt_waits
from workbench.runs import Run

Components = Callable[[str, str, bool], dict[str, float]]


def record_path(
    run: Run, rows: list[dict[str, Any]], *, step: int, components: Components | None = None, **columns
) -> None:
    """Add what a policy did at `step` to the run's tables `path` and `kl_positions`; nothing where `rows` is empty.

    `rows` are those of `held_out_rows` or of a trainer's `last_held_out`: one per held-out prompt, always the same
    prompts. `components` splits gold into parts, kept as gold_<part>. `columns` are added to every row. Measured again,
    a step replaces itself, so a run that was killed and resumed ends with the same tables.
    """
    if not rows:
        return
    path = pd.DataFrame(rows).rename(columns={"reward": "proxy"})
    positions = kl_positions(path).assign(step=step, **columns)
    path = with_components(path.drop(columns="token_kl"), components)
    path.insert(0, "row", range(len(path)))
    with interrupt_waits():
        run.add_to_table("path", path.assign(step=step, **columns), key="step")
        run.add_to_table("kl_positions", positions, key="step")


def with_components(frame: pd.DataFrame, components: Components | None) -> pd.DataFrame:
    """`frame` (prompt, completion, finished) with a column gold_<part> for each part of gold, which adds up to it."""
    if components is None:
        return frame
    texts = zip(frame["prompt"], frame["completion"], frame["finished"], strict=True)
    parts = pd.DataFrame([components(*text) for text in texts], index=frame.index)
    return frame.join(parts.add_prefix("gold_"))


def kl_positions(path: pd.DataFrame) -> pd.DataFrame:
    """Where in the completion the KL is spent: columns kind ("all" and each), position (from 1), completions, kl.

    `path` has token_kl, a list of nats per token, and perhaps kind. kl is the sum over completions of what they spend
    at that position, over their number, ended ones included: over positions it adds up to the mean sequence KL.
    """
    parts = {"all": path} | (dict(list(path.groupby("kind"))) if "kind" in path else {})
    tables = []
    for kind, part in parts.items():
        spent = [math.fsum(terms) / len(part) for terms in zip_longest(*part["token_kl"], fillvalue=0.0)]
        positions = range(1, len(spent) + 1)
        tables.append(pd.DataFrame({"kind": kind, "position": positions, "completions": len(part), "kl": spent}))
    return pd.concat(tables, ignore_index=True)
