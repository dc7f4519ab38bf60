"""Judging completions in a notebook: one call shows a widget, every answer is on the disk before the next item comes.

>>> from workbench.feedback.widget import annotate
>>> annotate(items, labeler="ada", store="runs/labels.db", kind="pair", instructions="Prefer the true answer.")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import traitlets

from workbench import WorkbenchError
from workbench.feedback.queues import Queue
from workbench.feedback.session import Session
from workbench.feedback.store import Store
from workbench.feedback.widget.markup import markup

try:
    import anywidget
except ImportError:
    raise WorkbenchError(
        "The labelling widget needs anywidget, which is not installed: `pip install anywidget`, restart the kernel and "
        "reload the page; nothing that was judged is lost."
    ) from None

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
) -> AnnotationWidget:
    """The widget in which `labeler` judges `items`, to be shown by a notebook; it goes on where the store ends.

    items: dicts with item_id, prompt, completions (texts or role/content messages). store: a path, or a store whose
    file is then opened once more. kind: one of `kinds.KINDS`. flags: what may be said
    of a rated completion; the labeler can add more. queue: which item comes when, instead of each once in a random
    order; made of the same items. WorkbenchError for items that can not be judged so, a labeler without a name, a store
    that can not be opened.
    """
    queue = Queue(items=items) if queue is None else queue
    if list(queue.items) != list(items):
        raise WorkbenchError("The queue holds other items than those given: make it of the same, Queue(items=items).")
    path = store.path if isinstance(store, Store) else store
    session = OneThread(lambda: Session(store=Store(path), queue=queue, labeler=labeler, kind=kind))
    return AnnotationWidget(session, labeler=labeler, kind=kind, instructions=instructions, flags=flags)


# --- The labelling widget for keys and mouse; what it looks like and does is in the .js and .css files beside it.


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
        super().__init__(_esm=front_end(kind), kind=kind, labeler=labeler, instructions=instructions, flags=list(flags))
        self._turns = Turns(session)
        self._show(Reply(event_id="", status="saved", text=""))
        self.on_msg(self._receive)

    def __repr__(self) -> str:
        """What a page shows in the widget's place where it can not show any."""
        return (
            "Nothing can be judged here: this page shows no widgets. Open the notebook in a JupyterLab that has "
            "anywidget installed; nothing that was judged is lost."
        )

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


# --- What becomes of the messages of a front end: an item moves on only when its judgement is committed.
#
# A front end sends {"type": "judge", "turn", "item_id", "event_id", "action", "answer", "elapsed_ms", "note"},
# {"type": "undo", "turn", "event_id"}, {"type": "past", "turn", "event_id"} for a list of what was judged,
# {"type": "review", "turn", "event_id", "of"} to be shown one of those again ("" for the next item) or, where
# nothing was left, {"type": "look", "turn", "event_id"}. Turn t is the t-th item that it was shown: what was
# meant for another turn (a double click, a second tab) is refused. The same event id a second time is a repeated
# message, and stored once.


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


# --- A session that lives in a thread of its own.


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
