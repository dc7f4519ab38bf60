"""Exit codes of the command line and of the processes that it starts."""

DONE = 0
FAILED = 1  # a notebook failed
BAD_INPUT = 2  # said in one sentence, nothing to debug
STOPPED = 130  # by Ctrl-C or SIGTERM; the same command continues
