"""Every example once per epoch, in another order each time, resumable anywhere."""

import pytest

from workbench.trainers.descent import EpochBatches

LENGTHS = [3, 9, 4, 1, 7, 7, 2, 5, 8, 6, 3]


def epoch(batches: EpochBatches) -> list[list[int]]:
    return [batches.next() for _ in range(batches.per_epoch)]


@pytest.mark.parametrize("lengths", [LENGTHS, [1] * 11])
@pytest.mark.parametrize("batch_size", [1, 4, 11, 50])
def test_each_epoch_uses_every_example_once(lengths, batch_size):
    batches = EpochBatches(lengths, batch_size, seed=0)
    for _ in range(3):
        drawn = epoch(batches)
        assert sorted(index for batch in drawn for index in batch) == list(range(11))
        assert max(map(len, drawn)) == min(batch_size, 11)


def test_each_epoch_is_a_new_permutation_and_the_seed_decides_it():
    batches = EpochBatches([1] * 30, 5, seed=0)
    first, second = epoch(batches), epoch(batches)
    assert first != second
    assert first == epoch(EpochBatches([1] * 30, 5, seed=0))
    assert first != epoch(EpochBatches([1] * 30, 5, seed=1))


@pytest.mark.parametrize("taken", range(9))
def test_a_restored_cursor_continues_where_it_stood(taken):
    batches = EpochBatches(LENGTHS, 3, seed=2)
    for _ in range(taken):
        batches.next()
    restored = EpochBatches(LENGTHS, 3, seed=99)
    restored.next()
    restored.load_state_dict(batches.state_dict())
    assert [restored.next() for _ in range(12)] == [batches.next() for _ in range(12)]


def test_whole_batches_leave_out_other_examples_each_epoch():
    batches = EpochBatches([1] * 11, 4, seed=0, whole=True)
    left_out = set()
    for _ in range(60):
        drawn = [index for batch in (batches.next(), batches.next()) for index in batch]
        assert len(set(drawn)) == 8
        left_out |= set(range(11)) - set(drawn)
    assert left_out == set(range(11))
