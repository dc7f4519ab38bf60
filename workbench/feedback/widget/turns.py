"""What becomes of the messages of a front end: an item moves on only when its judgement is committed.

A front end sends {"type": "judge", "turn", "item_id", "event_id", "action", "answer", "elapsed_ms", "note"},
{"type": "undo", "turn", "event_id"}, {"type": "past", "turn", "event_id"} for a list of what was judged, {"type":
"review", "turn", "event_id", "of"} to be shown one of those again ("" for the next item) or, where nothing was left,
{"type": "look", "turn", "event_id"}. Turn t is the t-th item that it was shown: what was meant for another turn (a
double click, a second tab) is refused. The same event id a second time is a repeated message, and stored once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workbench import WorkbenchError
from workbench.feedback.session import Session
from workbench.feedback.widget.one_thread import OneThread


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the front end is told about one message."""

    event_id: str
    status: str  # "saved", "undone", "listed", "looked", "stale" (not for the item that is shown) or "failed" (retry)
    text: str


class Turns:
    """The item that one labeler is shown, and what was asked about it.

    `session` does what it is given with one (workbench.feedback.session), which knows the items and the store; `view`
    is what that wants shown in this `turn`.
    """

    def __init__(self, session: OneThread):
        self.session = session
        self.view = session(Session.view)
        self.turn = 1
        self.past: list[dict[str, Any]] = []  # what was listed last
        self._done: set[str] = set()  # event ids that are committed
        self._behind: Reply | None = None  # to a commit after which the next item could not be read

    def receive(self, message: Mapping[str, Any]) -> Reply:
        """Commits a judgement or an undo and goes on to the next turn; never raises, so that no answer is lost."""
        event_id = str(message.get("event_id", ""))
        if event_id in self._done:
            again = Reply(event_id=event_id, status="saved", text="saved")
            return self._advance(self._behind) if self._behind else again
        if not self._is_current(message):
            text = "NOT SAVED: that answer was for an item that is no longer shown; undo brings the last one back."
            return Reply(event_id=event_id, status="stale", text=text)
        try:
            reply = self._commit(message, event_id)
        except WorkbenchError as error:
            return Reply(event_id=event_id, status="failed", text=f"NOT SAVED: {error}")
        except Exception as error:  # a full disk, a message cut short: whatever it is, the answer stays on the screen
            return Reply(event_id=event_id, status="failed", text=f"NOT SAVED: {type(error).__name__}: {error}")
        self._done.add(event_id)
        return reply if reply.status == "listed" else self._advance(reply)

    def _is_current(self, message: Mapping[str, Any]) -> bool:
        item_id = message.get("item_id", self.view.item_id)
        return message.get("turn") == self.turn and item_id == self.view.item_id

    def _commit(self, message: Mapping[str, Any], event_id: str) -> Reply:
        if not event_id:
            raise WorkbenchError("The message has no event id, so a repeated one could be stored twice: send one.")
        if message["type"] == "undo":
            return Reply(event_id=event_id, status="undone", text=self.session(lambda session: session.undo(event_id)))
        if message["type"] == "past":
            self.past = self.session(Session.past)
            return Reply(event_id=event_id, status="listed", text="")
        if message["type"] == "review":
            text = self.session(lambda session: session.review(message["of"]))
            return Reply(event_id=event_id, status="looked", text=text)
        if message["type"] == "look":
            return Reply(event_id=event_id, status="looked", text="")
        said = {
            "answer": message.get("answer", {}),
            "elapsed_ms": int(message.get("elapsed_ms", 0)),
            "note": str(message.get("note", "")),
        }
        text = self.session(lambda each: each.judge(message["item_id"], event_id, message["action"], **said))
        return Reply(event_id=event_id, status="saved", text=text)

    def _advance(self, reply: Reply) -> Reply:
        self._behind = reply
        try:
            self.view = self.session(Session.view)
        except Exception as error:
            text = f"{reply.text}, but the next item could not be read: {error} Retry shows it."
            return Reply(event_id=reply.event_id, status="failed", text=text)
        self._behind = None
        self.turn += 1
        return reply


def messages(text: Any) -> list[dict[str, str]]:
    """A text, or role/content messages, as messages {"role", "content"}; a plain text has role ""."""
    if isinstance(text, str):
        return [{"role": "", "content": text}]
    return [{"role": each["role"], "content": each["content"]} for each in text]
