"""A notebook-driven workbench for reinforcement learning from human feedback."""

# Exit codes of the command line and of the processes that it starts.
DONE = 0
FAILED = 1  # a notebook failed
BAD_INPUT = 2  # said in one sentence, nothing to debug
STOPPED = 130  # by Ctrl-C or SIGTERM; the same command continues

# Errors that a user can act on: one sentence that names the value, what was expected and what to do.


class WorkbenchError(ValueError):
    """Bad input, explained in one sentence; the command line prints it without a traceback and exits 2."""


class NonFiniteLoss(WorkbenchError):
    """A loss became NaN or infinite at `step`; `batch` holds the tensors that made it, for `Run.train` to save."""

    def __init__(self, step: int, batch: dict):
        super().__init__(
            f"The loss became NaN or infinite at step {step}: lower learning_rate or look at the saved batch."
        )
        self.step = step
        self.batch = batch
