"""What every trainer must do alike."""

from tiny_models import same_weights, weights_of
from torch import nn

from workbench.runs.resume import load_checkpoint, save_checkpoint


def rows_equal(first: list[dict], second: list[dict]) -> bool:
    """Whether two lists of metrics rows are equal bit for bit, NaN equal to itself."""
    return [list(map(repr, row.items())) for row in first] == [list(map(repr, row.items())) for row in second]


def continued_rows(make_trainer, path, *, before: int, after: int):
    """Rows and trainer of a training that is stopped after `before` steps, rebuilt from its file and continued."""
    stopped = make_trainer()
    rows = [stopped.step() for _ in range(before)]
    save_checkpoint(path, stopped.state_dict())
    continued = make_trainer()
    continued.load_state_dict(load_checkpoint(path))
    return rows + [continued.step() for _ in range(after)], continued


def assert_continues(make_trainer, folder, *, steps: int, before: int):
    """A training that is stopped and continued is the same as a straight one bit for bit; its rows and its trainer."""
    straight = make_trainer()
    expected = [straight.step() for _ in range(steps)]
    rows, continued = continued_rows(make_trainer, folder / "state.pt", before=before, after=steps - before)
    assert rows_equal(rows, expected)
    for name, value in vars(straight).items():
        if isinstance(value, nn.Module):
            assert same_weights(weights_of(getattr(continued, name)), weights_of(value)), name
        assert name not in ("pool", "last_samples") or getattr(continued, name) == value
    return rows, continued
