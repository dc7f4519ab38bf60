"""Which examples come next: a new permutation each epoch, every example once in it, resumable anywhere."""

import torch

from workbench.models.batches import length_bucketed_batches


class EpochBatches:
    """Endless batches of indices; the state is the generator at the start of the epoch and the place in it.

    `lengths` gives each example's tokens, so that a batch holds similar lengths; all equal means plain permutation.
    Where `whole` is set, an epoch leaves out the few examples that fill no batch, other ones each time.
    """

    def __init__(self, lengths: list[int], batch_size: int, *, seed: int, whole: bool = False):
        self.lengths, self.batch_size, self.whole = lengths, batch_size, whole
        self.generator = torch.Generator().manual_seed(seed)
        self.epoch_start = self.generator.get_state()
        self.batches: list[list[int]] = []
        self.position = 0

    @property
    def per_epoch(self) -> int:
        """Batches in one epoch, the last one may be smaller."""
        return -(-len(self.lengths) // self.batch_size)

    def next(self) -> list[int]:
        """The next batch of indices."""
        if self.position >= len(self.batches):
            self._start_epoch()
        batch = self.batches[self.position]
        self.position += 1
        return batch

    def state_dict(self) -> dict:
        return {"epoch_start": self.epoch_start, "position": self.position}

    def load_state_dict(self, state: dict) -> None:
        self.generator.set_state(state["epoch_start"])
        self.batches, self.position = [], 0
        if state["position"]:
            self._start_epoch()
        self.position = state["position"]

    def _start_epoch(self) -> None:
        self.epoch_start = self.generator.get_state()
        batches = length_bucketed_batches(self.lengths, self.batch_size, generator=self.generator)
        self.batches = [batch for batch in batches if len(batch) == self.batch_size or not self.whole]
        self.position = 0
