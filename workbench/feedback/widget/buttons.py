"""The labelling widget in plain ipywidgets: everything by mouse, no keys, nothing to install in the page."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any

import ipywidgets as widgets

from workbench.feedback.widget.button_forms import FORMS, Answered, RatingForm, button, plain_text, row, text_area
from workbench.feedback.widget.turns import Turns, messages


class AnnotationButtons(widgets.VBox):
    """Shows one item after the other and commits what the labeler says about it."""

    def __init__(self, session: Any, *, labeler: str, kind: str, instructions: str = "", flags: Sequence[str] = ()):
        self._turns = Turns(session)
        self.kind, self.labeler, self.flags = kind, labeler, list(flags)
        self.head, self.status = widgets.Label(), widgets.Label()
        self.guide = [text_area(instructions, rows=4)] if instructions else []
        super().__init__()
        self.add_class("wb-buttons")
        self._show()

    def _show(self) -> None:
        """New widgets for every turn: the second half of a double click then belongs to the turn before."""
        view, turn = self._turns.view, self._turns.turn
        self._shown_at, self._event_ids = time.monotonic(), {}
        answered = partial(self._judge, turn, view.item_id)
        self.note = widgets.Text(description="Note")
        self.skip = button("Skip", partial(answered, {}, "skip"))
        self.undo = button("Undo", partial(self._ask, "undo", turn))
        self.skip.disabled, self.undo.disabled = not view.item_id, not view.can_undo
        self.form = self._form(answered) if view.item_id else self._over(view.message, turn)
        prompt = [text_area(plain_text(messages(view.prompt)), rows=4)] if view.item_id else []
        self.head.value = f"{view.done} of {view.total} judged by {self.labeler}   {view.agreement}"
        self.children = [self.head, *self.guide, *prompt, self.form, self.note, row(self.skip, self.undo), self.status]

    def _form(self, answered: Answered) -> widgets.Widget:
        completions = [messages(each) for each in self._turns.view.completions]
        form = FORMS[self.kind]
        return form(completions, answered, self.flags) if form is RatingForm else form(completions, answered)

    def _over(self, message: str, turn: int) -> widgets.Widget:
        return row(widgets.Label(message), button("Look again", partial(self._ask, "look", turn)))

    def _judge(self, turn: int, item_id: str, answer: dict, action: str = "label") -> None:
        elapsed_ms = round(1000 * (time.monotonic() - self._shown_at))
        said = {"type": "judge", "turn": turn, "item_id": item_id, "action": action, "answer": answer}
        self._deliver(said | {"elapsed_ms": elapsed_ms, "note": self.note.value.strip()})

    def _ask(self, what: str, turn: int) -> None:
        self._deliver({"type": what, "turn": turn})

    def _deliver(self, message: dict) -> None:
        same = repr([message.get(name) for name in ("type", "action", "answer", "note")])
        event_id = self._event_ids.setdefault(same, uuid.uuid4().hex)  # an answer sent again is the same event
        before = self._turns.turn
        reply = self._turns.receive(message | {"event_id": event_id})
        if self._turns.turn != before:
            self._show()
        if reply.status != "stale":  # said by a click on what is gone
            self.status.value = reply.text
