"""A session that lives in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class OneThread:
    """Makes a session, and does with it what it is given, in one thread, whoever asks.

    Kernels may handle the messages of widgets in another thread than the cells (a subshell), but an SQLite connection
    belongs to the thread that opened it.
    """

    def __init__(self, make: Callable[[], Any]):
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="judgements")
        self._session = self._thread.submit(make).result()

    def __call__(self, do: Callable[[Any], Any]) -> Any:
        return self._thread.submit(do, self._session).result()
