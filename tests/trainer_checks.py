"""What every trainer must do alike."""

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
