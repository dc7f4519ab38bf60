"""Training state on disk, written whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workbench import WorkbenchError
from workbench.runs import files


def save_checkpoint(path: str | Path, state: dict) -> None:
    """Replace a checkpoint by `state`: tensors, numbers and text, in dicts and lists; WorkbenchError on a full disk."""
    import torch

    # Through a Python file, because torch's own writer hides why the disk refused.
    with files.replace_file(path) as partial, open(partial, "wb") as file:
        torch.save(state, file)


def load_checkpoint(path: str | Path) -> dict:
    """State, tensors on the CPU, without running code from the file; WorkbenchError where it is missing or broken."""
    import torch

    path = files.resolve(path)
    if not path.exists():
        raise WorkbenchError(
            f"{files.shown(path)} does not exist: run the notebook that makes it or give another path."
        )
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged file fails as RuntimeError, EOFError, UnpicklingError, KeyError, ...
        raise WorkbenchError(
            f"{files.shown(path)} is not a whole checkpoint of tensors, numbers and text: delete it to train again."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without the library's progress bars and notices, of a new head or of a saved shard."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
