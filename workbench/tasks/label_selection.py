"""Which comparisons a reward model learns from, and how wrong their labels are made: what a study varies."""

import random

from datasets import Dataset

from workbench import WorkbenchError


def selected_rows(rows: Dataset, *, count: int, half: int = 0, labelers: str = "") -> Dataset:
    """At most `count` rows (0 = all) of one half of the data (1 or 2; 0 = both) that `labelers` (with commas) judged.

    The halves are the odd and the even rows: reward models of different halves share no comparison.
    WorkbenchError where nothing is left, or a labeler is not in the data.
    """
    if count < 0 or half not in (0, 1, 2):
        raise WorkbenchError(f"pairs is {count} and half is {half}: give a whole number from 0, and 0, 1 or 2.")
    kept = range(len(rows)) if half == 0 else range(half - 1, len(rows), 2)
    if labelers:
        wanted = {name.strip() for name in labelers.split(",")}
        names = [str(name) for name in rows["labeler"][:]] if "labeler" in rows.column_names else []
        if missing := wanted - set(names):
            found = ", ".join(sorted(set(names))) or "no column `labeler`"
            raise WorkbenchError(f"labelers names {', '.join(sorted(missing))}, but the data has {found}.")
        kept = [row for row in kept if names[row] in wanted]
    if not kept:
        raise WorkbenchError(f"half is {half} and labelers is {labelers!r}: no row is left of {len(rows)}.")
    return rows.select(kept[: count or None])


def with_flipped_labels(rows: Dataset, *, share: float, seed: int) -> Dataset:
    """The same comparisons with each label turned round with probability `share`, independently.

    WorkbenchError where the share is outside 0 to .5 or the rows are no comparisons.
    """
    if not 0 <= share <= 0.5:
        raise WorkbenchError(f"label_noise is {share}: give a share from 0 to .5, where labels say nothing any more.")
    if share == 0:
        return rows
    if not {"chosen", "rejected"} <= set(rows.column_names):
        found = ", ".join(rows.column_names)
        raise WorkbenchError(f"label_noise turns comparisons round, but the columns are {found}: set it to 0.")
    generator = random.Random(seed)
    sides = zip(rows["chosen"][:], rows["rejected"][:], strict=True)
    sides = [(loser, winner) if generator.random() < share else (winner, loser) for winner, loser in sides]
    chosen, rejected = (list(side) for side in zip(*sides, strict=True))
    return Dataset.from_dict(rows.to_dict() | {"chosen": chosen, "rejected": rejected}, features=rows.features)
