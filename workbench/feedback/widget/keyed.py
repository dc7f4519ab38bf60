"""The labelling widget for keys and mouse; what it looks like and does is in the .js and .css files beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from workbench.feedback.widget.markup import markup
from workbench.feedback.widget.turns import Reply, Turns, messages

HERE = Path(__file__).parent
SHARED = ("elements.js", "differences.js", "saving.js", "drafts.js", "focus.js", "past.js", "panels.js")


def front_end(kind: str) -> str:
    """The one JavaScript module of a kind: the shared files, the kind's own, and the frame that uses them all."""
    return "\n".join((HERE / name).read_text(encoding="utf-8") for name in (*SHARED, f"{kind}.js", "frame.js"))


class AnnotationWidget(anywidget.AnyWidget):
    """Shows one item after the other and commits what the labeler says about it.

    All that is shown is in these traits, so a page that is loaded again goes on where it was. `version` grows with
    every reply: the front end looks at the others when it changes.
    """

    _css = HERE / "style.css"
    kind = traitlets.Unicode().tag(sync=True)
    labeler = traitlets.Unicode().tag(sync=True)
    instructions = traitlets.Unicode().tag(sync=True)
    flags = traitlets.List(traitlets.Unicode()).tag(sync=True)  # the labeler may add to it
    showing = traitlets.Dict().tag(sync=True)  # turn, item_id ("" when nothing is left), prompt, completions, earlier?
    rendered = traitlets.List().tag(sync=True)  # of the prompt and of each completion, the `markup` of its messages
    past = traitlets.List().tag(sync=True)  # judgements, the latest first: see `Session.past`
    fresh = traitlets.Bool(True).tag(sync=True)  # until a page has shown it
    progress = traitlets.Dict().tag(sync=True)  # done, total, seconds_left, agreement, message, can_undo
    reply = traitlets.Dict().tag(sync=True)  # event_id, status, text
    version = traitlets.Int(0).tag(sync=True)

    def __init__(self, session: Any, *, labeler: str, kind: str, instructions: str = "", flags: Sequence[str] = ()):
        super().__init__(
            _esm=front_end(kind),
            kind=kind,
            labeler=labeler,
            instructions=instructions,
            flags=list(flags),
        )
        self._turns = Turns(session)
        self._show(Reply(event_id="", status="saved", text=""))
        self.on_msg(self._receive)

    def _receive(self, _widget: Any, message: dict, _buffers: list) -> None:
        self._show(self._turns.receive(message))

    def _show(self, reply: Reply) -> None:
        view = self._turns.view
        with self.hold_sync():  # one update: the front end never sees the reply without the item
            self.showing, self.past = showing(self._turns), self._turns.past
            texts = [self.showing["prompt"], *self.showing["completions"]]
            self.rendered = [[markup(message["content"]) for message in each] for each in texts]
            names = ("done", "total", "seconds_left", "agreement", "message", "can_undo")
            self.progress = {name: getattr(view, name) for name in names}
            self.reply = asdict(reply)
            self.version += 1


def showing(turns: Turns) -> dict[str, Any]:
    """What a labeler may see of an item: no names of writers, no expected answer, not whether it is asked again."""
    told = {
        "turn": turns.turn,
        "item_id": turns.view.item_id,
        "prompt": messages(turns.view.prompt),
        "completions": [messages(each) for each in turns.view.completions],
    }
    return told | ({"earlier": turns.view.earlier} if turns.view.earlier else {})
