"""IPython extension of the kernels that `workbench run` starts."""

from workbench import WorkbenchError


def load_ipython_extension(shell) -> None:
    """Report each kind of `WorkbenchError` under that one name, so that the command line knows bad input from a bug."""
    shell.set_custom_exc((WorkbenchError,), show_as_workbench_error)


def show_as_workbench_error(shell, kind, error, traceback, tb_offset=None) -> None:
    shell.showtraceback((WorkbenchError, error, traceback), tb_offset=tb_offset)
