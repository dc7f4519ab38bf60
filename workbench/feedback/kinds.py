"""Which kinds of feedback are collected."""

from __future__ import annotations

from workbench import WorkbenchError

KINDS = ("pairs", "margins", "rankings", "ratings", "steps")


def parse_kinds(text: str, *, completions_per_prompt: int) -> set[str]:
    """`"pairs,ratings"` as {"pairs", "ratings"}; WorkbenchError lists the kinds that exist, and asks for pairs.

    Rankings need at least 2 `completions_per_prompt`.
    """
    kinds = {part.strip() for part in text.split(",")} - {""}
    unknown = sorted(kinds.difference(KINDS))
    if unknown:
        raise WorkbenchError(f"There is no kind of feedback {unknown[0]!r} (kinds={text!r}): use {', '.join(KINDS)}.")
    if "pairs" not in kinds:
        raise WorkbenchError(f"kinds is {text!r}, but only pairs can be asked how far labelers agree: add pairs to it.")
    if "rankings" in kinds and completions_per_prompt < 2:
        raise WorkbenchError(
            f"completions_per_prompt is {completions_per_prompt}, but a ranking has at least 2: raise it."
        )
    return kinds
