"""Whether wins link all names to each other; where they do not, no finite scores fit best (Ford 1957)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench import WorkbenchError


def require_linked(names: Sequence, above: np.ndarray) -> None:
    """WorkbenchError unless wins lead from every name to every other (Ford 1957).

    above (n, n) bool: row placed above column, or level with it, at least once.
    """
    if _reached(above).all() and _reached(above.T).all():
        return
    beats = _closure(above)
    cure = "no finite scores fit best: compare more, or give prior_sd=1, which draws scores towards 0"
    met = _closure(above | above.T)
    if not met.all():
        raise WorkbenchError(f"{_listed(names, met[0])} and {_listed(names, ~met[0])} were never compared: {cure}.")
    unbeaten = [beats[number] & beats[:, number] for number in range(len(names)) if not _beaten(beats, number)]
    beaten = [beats[number] & beats[:, number] for number in range(len(names)) if not _beaten(beats.T, number)]
    top, bottom = unbeaten[0], beaten[0]
    if top.sum() <= bottom.sum():
        raise WorkbenchError(f"{_listed(names, top)} never lost to any of the others: {cure}.")
    raise WorkbenchError(f"{_listed(names, bottom)} never won against any of the others: {cure}.")


def _reached(linked: np.ndarray) -> np.ndarray:
    """What can be reached from the first name, (n,), in any number of steps."""
    reached = new = np.arange(len(linked)) == 0
    while new.any():
        new = linked[new].any(axis=0) & ~reached
        reached = reached | new
    return reached


def _closure(linked: np.ndarray) -> np.ndarray:
    """What can be reached from what in any number of steps, none included."""
    reached = linked | np.eye(len(linked), dtype=bool)
    while True:
        further = (reached.astype(np.float32) @ reached.astype(np.float32)) > 0
        if (further == reached).all():
            return reached
        reached = further


def _beaten(beats: np.ndarray, number: int) -> bool:
    """Whether somebody beats it, perhaps through others, and is never beaten in turn."""
    return bool((beats[:, number] & ~beats[number]).any())


def _listed(names: Sequence, chosen: np.ndarray) -> str:
    listed = [repr(name) for name, among in zip(names, chosen, strict=True) if among]
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
