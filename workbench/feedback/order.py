"""In which order a labeler sees the completions of an item."""

from __future__ import annotations

import hashlib
import json


def shown_order(labeler: str, item_id: str, count: int) -> list[int]:
    """Permutation of range(count), order[position] = index of the completion shown there.

    A hash of labeler and item: the same after a restart and in every process, each order equally likely.
    """
    digest = hashlib.sha256(json.dumps([labeler, item_id]).encode()).digest()
    number, order = int.from_bytes(digest, "big"), list(range(count))
    for last in range(count - 1, 0, -1):  # Fisher-Yates with the digits of the hash
        number, position = divmod(number, last + 1)
        order[last], order[position] = order[position], order[last]
    return order
