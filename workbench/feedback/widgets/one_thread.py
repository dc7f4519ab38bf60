"""A session that lives in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class OneThread:
    """Makes a session and calls it in one thread, whoever asks.

    Kernels may handle the messages of widgets in another thread than the cells (a subshell), but an SQLite connection
    belongs to the thread that opened it.
    """

    def __init__(self, make: Callable[[], Any]):
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="judgements")
        self._session = self._thread.submit(make).result()

    def view(self) -> Any:
        """What is to be shown now."""
        return self._thread.submit(self._session.view).result()

    def judge(
        self, item_id: str, event_id: str, action: str, *, answer: Mapping[str, Any], elapsed_ms: int, note: str
    ) -> str:
        """Commits a judgement; what happened, in a word."""
        said = {"answer": answer, "elapsed_ms": elapsed_ms, "note": note}
        return self._thread.submit(self._session.judge, item_id, event_id, action, **said).result()

    def undo(self, event_id: str) -> str:
        """Takes the last judgement back; what happened, in a word."""
        return self._thread.submit(self._session.undo, event_id).result()
