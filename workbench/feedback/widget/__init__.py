"""Judging completions in a notebook: one call shows a widget, every answer is on the disk before the next item comes.

>>> from workbench.feedback.widget import annotate
>>> annotate(items, labeler="ada", store="runs/labels.db", kind="pair", instructions="Prefer the true answer.")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import WorkbenchError
from workbench.feedback.queues import Queue
from workbench.feedback.session import Session
from workbench.feedback.store import Store
from workbench.feedback.widget.one_thread import OneThread

if TYPE_CHECKING:
    from ipywidgets import DOMWidget

# After the metadata that InstructGPT's labelers gave (Ouyang et al. 2022, table 3), and refusing what is harmless.
DEFAULT_FLAGS = (
    "fails the instruction",
    "breaks a stated constraint",
    "false statement",
    "inappropriate refusal",
    "harmful advice",
    "sexual or violent content",
    "denigrates a group",
    "gives an opinion",
    "unfit for an assistant",
)


def annotate(
    items: Sequence[Mapping[str, Any]],
    labeler: str,
    store: str | Path | Store,
    *,
    kind: str = "pair",
    instructions: str = "",
    flags: Sequence[str] = DEFAULT_FLAGS,
    queue: Queue | None = None,
    buttons_only: bool = False,
) -> DOMWidget:
    """The widget in which `labeler` judges `items`, to be shown by a notebook; it goes on where the store ends.

    items: dicts with item_id, prompt, completions (texts or role/content messages). store: a path, or a store whose
    file is then opened once more. kind: "pair", "ranking", "best_of", "rating" or "correction". flags: what may be said
    of a rated completion; the labeler can add more. queue: which item comes when, instead of each once in a random
    order; made of the same items. buttons_only: plain ipywidgets without keys, which is also what is shown where
    anywidget is not installed. WorkbenchError for items that can not be judged so, a labeler without a name, a store
    that can not be opened.
    """
    queue = Queue(items=items) if queue is None else queue
    if list(queue.items) != list(items):
        raise WorkbenchError("The queue holds other items than those given: make it of the same, Queue(items=items).")
    path = store.path if isinstance(store, Store) else store
    session = OneThread(lambda: Session(store=Store(path), queue=queue, labeler=labeler, kind=kind))
    show = _buttons() if buttons_only else _keyed_or_buttons()
    return show(session, labeler=labeler, kind=kind, instructions=instructions, flags=flags)


def _buttons() -> type:
    from workbench.feedback.widget.buttons import AnnotationButtons

    return AnnotationButtons


def _keyed_or_buttons() -> type:
    try:
        from workbench.feedback.widget.keyed import AnnotationWidget
    except ImportError:  # anywidget is not installed
        return _buttons()
    return AnnotationWidget
