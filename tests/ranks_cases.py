"""A step of every trainer in a process of several: `python ranks_cases.py FILE` with RANK and the like in place."""

import sys

import pytest
import torch
from test_micro_batches import CASES, taken

from workbench.models import ranks


def main(path: str) -> None:
    ranks.meet("cpu")
    with pytest.MonkeyPatch.context() as patch:
        torch.save({name: taken(make, patch) for name, make in CASES.items()}, path)


if __name__ == "__main__":
    main(sys.argv[1])
