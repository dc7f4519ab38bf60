"""Labelling widgets without a browser: what becomes of the messages that a page would send."""

import html
import importlib
import random
import re
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path

import mistune
import pytest

from workbench import WorkbenchError
from workbench.feedback import store as store_module
from workbench.feedback import widget as widgets
from workbench.feedback.queues import Queue
from workbench.feedback.store import Store
from workbench.feedback.widget import annotate
from workbench.feedback.widget.markup import DEEPEST, LONGEST, markup

SOURCES = Path(widgets.__file__).parent
SCRIPT = "<script>window.ran = true</script><img src=x onerror='window.ran = true'>"
COUNTS = {"pair": 2, "ranking": 5, "best_of": 4, "rating": 2, "correction": 2}  # completions per item


def made_items(kind: str, count: int = 3) -> list[dict]:
    """Items whose completions say their own index, so that what was shown where can be read from the text."""
    return [
        {
            "item_id": f"item-{number}",
            "prompt": f"prompt {number}",
            "completions": [f"completion {index}" for index in range(COUNTS[kind])],
            "models": [f"model {index}" for index in range(COUNTS[kind])],
        }
        for number in range(count)
    ]


def widget_of(path: Path, kind: str = "pair", labeler: str = "ada", **options):
    items = options.pop("items", None) or made_items(kind)
    return annotate(items, labeler, path, kind=kind, **options)


def send(widget, **message) -> dict:
    """What the page sends, and the reply that it gets."""
    widget._handle_custom_msg({"turn": widget.showing["turn"], **message}, [])
    return widget.reply


def judge(widget, answer: dict, event_id: str, **message) -> dict:
    said = {"type": "judge", "item_id": widget.showing["item_id"], "action": "label", "elapsed_ms": 900, "note": ""}
    return send(widget, **{**said, "answer": answer, "event_id": event_id, **message})


def places(widget) -> dict[int, int]:
    """At which place the completion with each index is shown, as a labeler reads it."""
    texts = [completion[0]["content"] for completion in widget.showing["completions"]]
    return {int(text.split()[1]): place for place, text in enumerate(texts)}


def stored(path: Path) -> list:
    store = Store(path)
    try:
        return store.judgements()
    finally:
        store.close()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "judgements.db"


def by_place(at: dict[int, int], values: list) -> list:
    """What is said of each completion, as a list over places."""
    return [value for _, value in sorted(zip(at.values(), (values[index] for index in at), strict=True))]


def verdict(kind: str, at: dict[int, int]) -> tuple[dict, object, dict]:
    """An answer about the completions shown at the places `at`, the value and the details to be stored."""
    if kind == "pair":
        return {"choice": at[1], "strength": 3}, 1, {"strength": 3}
    if kind == "ranking":
        return {"groups": [[at[3]], [at[0], at[4]], [at[1]], [at[2]]]}, [[3], [0, 4], [1], [2]], {}
    if kind == "best_of":
        return {"best": at[2]}, 2, {}
    if kind == "rating":
        ratings, flags = [2, 6], [[], ["false statement"]]
        return {"ratings": by_place(at, ratings), "flags": by_place(at, flags)}, ratings, {"flags": flags}
    return {"text": "better", "completion": at[1]}, "better", {"completion": 1}


@pytest.mark.parametrize("kind", COUNTS)
def test_an_answer_about_places_is_stored_about_completions(path, kind):
    widget = widget_of(path, kind)
    item_id, version = widget.showing["item_id"], widget.version
    answer, value, details = verdict(kind, places(widget))
    reply = judge(widget, answer, "e1", note="  why ", elapsed_ms=1234.5)
    assert (reply["status"], reply["event_id"]) == ("saved", "e1")
    (judgement,) = stored(path)
    assert (judgement.item_id, judgement.labeler, judgement.kind) == (item_id, "ada", kind)
    assert (judgement.value, judgement.details) == (value, details)
    assert (judgement.event_id, judgement.elapsed_ms, judgement.note.strip()) == ("e1", 1234, "why")
    assert widget.showing["item_id"] not in ("", item_id)
    assert widget.version == version + 1
    assert (widget.progress["done"], widget.progress["can_undo"]) == (1, True)


@pytest.mark.parametrize("kind", COUNTS)
def test_a_skip_and_its_undo(path, kind):
    widget = widget_of(path, kind)
    first = widget.showing
    judge(widget, {}, "e1", action="skip")
    assert [judgement.value for judgement in stored(path)] == ["skip"]
    reply = send(widget, type="undo", event_id="e2")
    assert (reply["status"], reply["text"]) == ("undone", "undone")
    assert stored(path) == []
    assert {**widget.showing, "turn": 0} == {**first, "turn": 0}
    assert widget.showing["turn"] > first["turn"]


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("pair", {"choice": 2}),
        ("pair", {"choice": 0, "strength": 9}),
        ("pair", {}),
        ("ranking", {"groups": [[0], [1, 2]]}),
        ("ranking", {"groups": "all of them"}),
        ("best_of", {"best": None}),
        ("rating", {"ratings": [None, None], "flags": [[], []]}),
        ("rating", {"ratings": [3]}),
        ("correction", {"text": "  ", "completion": 0}),
        ("correction", {"text": "better", "completion": 7}),
    ],
)
def test_an_answer_that_says_nothing_is_not_saved_and_its_item_stays(path, kind, answer):
    widget = widget_of(path, kind)
    before, version = widget.showing, widget.version
    reply = judge(widget, answer, "e1")
    assert reply["status"] == "failed"
    assert len(reply["text"]) > 20
    assert widget.showing == before
    assert widget.version == version + 1
    assert stored(path) == []
    answer, value, _ = verdict(kind, places(widget))
    assert judge(widget, answer, "e2")["status"] == "saved"
    assert [judgement.value for judgement in stored(path)] == [value]


@pytest.mark.parametrize("error", [WorkbenchError("The disk is full: free some space."), OSError(5, "broken")])
def test_what_could_not_be_written_stays_and_is_saved_by_the_same_message_later(path, monkeypatch, error):
    widget = widget_of(path)
    before = widget.showing

    def refuse(*_):
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(store_module.Store, "record", refuse)
        reply = judge(widget, {"choice": 0}, "e1")
    assert reply["status"] == "failed"
    assert str(error) in reply["text"]
    assert widget.showing == before
    assert judge(widget, {"choice": 0}, "e1")["status"] == "saved"
    assert widget.showing["item_id"] != before["item_id"]
    assert len(stored(path)) == 1


def test_a_message_that_arrives_twice_is_stored_once_and_moves_once(path):
    widget = widget_of(path)
    message = {"item_id": widget.showing["item_id"], "turn": widget.showing["turn"]}
    judge(widget, {"choice": 0}, "e1")
    second = widget.showing
    reply = judge(widget, {"choice": 0}, "e1", **message)
    assert (reply["status"], reply["event_id"]) == ("saved", "e1")
    assert widget.showing == second
    assert len(stored(path)) == 1


def test_a_click_on_what_is_gone_is_refused(path):
    widget = widget_of(path)
    message = {"item_id": widget.showing["item_id"], "turn": widget.showing["turn"]}
    judge(widget, {"choice": 0}, "e1")
    second = widget.showing
    assert judge(widget, {"choice": 1}, "e2", **message)["status"] == "stale"
    assert send(widget, type="undo", event_id="e3", turn=message["turn"])["status"] == "stale"
    assert widget.showing == second
    assert [judgement.event_id for judgement in stored(path)] == ["e1"]


def test_a_commit_is_not_repeated_when_the_next_item_could_not_be_read(path, monkeypatch):
    widget = widget_of(path)
    first = widget.showing

    def refuse(*_, **__):
        raise WorkbenchError("The file is held by another program.")

    with monkeypatch.context() as broken:
        broken.setattr(Queue, "turn", refuse)
        reply = judge(widget, {"choice": 0}, "e1")
    assert (reply["status"], widget.showing) == ("failed", first)
    assert "saved" in reply["text"]
    assert judge(widget, {"choice": 0}, "e1")["status"] == "saved"
    assert widget.showing["item_id"] != first["item_id"]
    assert len(stored(path)) == 1


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"type": "judge"},
        {"type": "judge", "event_id": "e1", "action": "label"},
        {"type": "judge", "event_id": "", "action": "skip", "item_id": "here"},
        {"type": "judge", "event_id": "e1", "action": "erase", "item_id": "here", "answer": {"choice": 0}},
        {"type": "judge", "event_id": "e1", "action": "label", "item_id": "here", "answer": None},
        {"type": "judge", "event_id": "e1", "action": "skip", "item_id": "here", "elapsed_ms": "soon"},
        {"type": "judge", "event_id": "e1", "action": "skip", "item_id": "elsewhere"},
    ],
)
def test_a_message_that_is_none_is_answered_and_stores_nothing(path, message):
    widget = widget_of(path)
    before = widget.showing
    if message.get("item_id") == "here":
        message = {**message, "item_id": before["item_id"]}
    assert send(widget, **message)["status"] in ("failed", "stale")
    assert widget.showing == before
    assert stored(path) == []


def test_the_last_item_is_followed_by_the_reason_and_can_be_undone(path):
    widget = widget_of(path, items=made_items("pair", 1))
    judge(widget, {"choice": "tie"}, "e1")
    assert (widget.showing["item_id"], widget.showing["completions"]) == ("", [])
    assert widget.progress["message"]
    assert judge(widget, {"choice": 0}, "e2", action="skip")["status"] == "failed"
    send(widget, type="undo", event_id="e3")
    assert widget.showing["item_id"] == "item-0"


def test_a_past_judgement_is_listed_looked_at_and_changed(path):
    widget = widget_of(path, "ranking")
    item_id, at = widget.showing["item_id"], places(widget)
    answer, value, _ = verdict("ranking", at)
    judge(widget, answer, "e1", note="why")
    turn = widget.showing["turn"]
    assert send(widget, type="past", event_id="e2")["status"] == "listed"
    assert widget.showing["turn"] == turn  # the item under way stays
    (said,) = widget.past
    assert (said["event_id"], said["item_id"], said["prompt"]) == ("e1", item_id, f"prompt {item_id[-1]}")
    assert send(widget, type="review", of="e1", event_id="e3")["status"] == "looked"
    assert (widget.showing["item_id"], places(widget)) == (item_id, at)
    assert (widget.showing["earlier"]["answer"], widget.showing["earlier"]["note"]) == (answer, "why")
    judge(widget, {"groups": answer["groups"][::-1]}, "e4")
    judge(widget, {"groups": answer["groups"][::-1]}, "e4", turn=turn + 1)  # the message comes twice
    assert "earlier" not in widget.showing
    assert [(each.item_id, each.value) for each in stored(path)] == [(item_id, value[::-1])]


def test_a_past_judgement_that_is_left_or_not_there_stands(path):
    widget = widget_of(path)
    judge(widget, {"choice": 0}, "e1")
    assert send(widget, type="review", of="e1", event_id="e2")["status"] == "failed"  # never listed
    send(widget, type="past", event_id="e3")
    send(widget, type="review", of="e1", event_id="e4")
    assert send(widget, type="review", of="", event_id="e5")["text"] == "left as it was"
    assert [each.event_id for each in stored(path)] == ["e1"]


def test_two_labelers_share_a_store(path):
    ada, bob = widget_of(path), widget_of(path, labeler=" bob ")
    assert ada.showing["item_id"] != bob.showing["item_id"]  # one judgement each: nobody does the other's work
    judge(ada, {"choice": 0}, "e1")
    judge(bob, {"choice": 1}, "e2")
    judge(ada, {"choice": 0}, "e3")
    assert sorted(judgement.labeler for judgement in stored(path)) == ["ada", "ada", "bob"]
    judge(bob, {"choice": 0}, "e4", item_id=bob.showing["item_id"])
    assert bob.showing["item_id"] == ""
    assert len({judgement.item_id for judgement in stored(path)}) == 3


def test_what_others_left_is_found_by_looking_again(path):
    items = made_items("pair", 1)
    ada = widget_of(path, items=items)
    bob = widget_of(path, labeler="bob", items=items)
    assert bob.showing["item_id"] == ""  # ada looks at it
    judge(ada, {}, "e1", action="skip")
    assert send(bob, type="look", event_id="e2")["status"] == "looked"
    assert bob.showing["item_id"] == "item-0"


def test_one_labeler_in_two_tabs_judges_no_item_twice(path):
    one, other = widget_of(path), widget_of(path)
    assert one.showing["item_id"] == other.showing["item_id"]
    judge(one, {"choice": 0}, "e1")
    reply = judge(other, {"choice": 1}, "e2")
    assert reply["text"] == "judged before, in another tab: nothing was changed"
    assert [judgement.event_id for judgement in stored(path)] == ["e1"]
    assert other.showing["item_id"] == one.showing["item_id"]


def test_messages_are_handled_in_whatever_thread_the_kernel_chooses(path):
    widget = widget_of(path)
    thread = threading.Thread(target=judge, args=(widget, {"choice": 0}, "e1"))
    thread.start()
    thread.join()
    assert widget.reply["status"] == "saved"
    judge(widget, {"choice": 0}, "e2")
    assert len(stored(path)) == 2


def test_an_open_store_is_taken_as_well(path):
    store = Store(path)
    widget = annotate(made_items("pair"), "ada", store)
    judge(widget, {"choice": 0}, "e1")
    assert len(store.judgements()) == 1


HARD = [SCRIPT, "שלום עולם مرحبا", "👩‍👩‍👧 \u202e abc", "word " * 10_000, "\x00\ud7ff\n\t", "$x$ **b** &lt;"]


@pytest.mark.parametrize("text", HARD, ids=["script", "right-to-left", "emoji", "long", "control", "markup"])
def test_what_a_model_wrote_is_shown_as_it_is(path, text):
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]
    widget = widget_of(path, items=[{"item_id": "i", "prompt": said, "completions": [text, [said[1]]]}])
    assert widget.showing["prompt"] == said
    plain, chat = [{"role": "", "content": text}], [said[1]]
    assert sorted(widget.showing["completions"], key=str) == sorted([plain, chat], key=str)


MARKDOWN = """# Title

Some **bold**, *italic* and `code` of _any_
kind:

1. one
2. two
   - inner
   - ```python
     def f(x):
         return x
     ```

Under
-----

> quoted
> > twice

| a | b |
|---|:-:|
| 1 | **2** |

---

~~~
<b>tilde</b>
~~~
"""


class Outline(HTMLParser):
    """Tags and words of HTML in their order."""

    def __init__(self, html: str):
        super().__init__()
        self.found, self.hidden = [], {"thead", "tbody"}
        self.feed(html)

    def handle_starttag(self, tag, _):
        self.found += [f"<{tag}>"] * (tag not in self.hidden)

    def handle_endtag(self, tag):
        self.found += [f"</{tag}>"] * (tag not in self.hidden)

    def handle_data(self, data):
        self.found += data.split()


def html_of(nodes: list) -> str:
    def written(node):
        if isinstance(node, str):
            return html.escape(node)
        inner = "".join(map(written, node["nodes"]))
        return f"<{node['tag']}>{inner}</{node['tag']}>"

    return "".join(map(written, nodes))


def test_markdown_has_the_structure_that_another_parser_finds():
    theirs = mistune.create_markdown(plugins=["table"])(MARKDOWN)
    theirs = re.sub(r'<pre><code(?: class="language-(.*?)")?>(.*?)</code>', r"<pre>\1 \2", theirs, flags=re.DOTALL)
    ours = re.sub("</?small>", "", html_of(markup(MARKDOWN)))
    assert Outline(ours).found == Outline(theirs).found


PLAIN = {
    "sentence": "the cat sat on the mat.\n\n  It is 3 - 2 = 1 year old: 12 + 4.",
    "products": "2*3*4 = 24, 2**3**2, x*(y)*z, 5 * 6 * 7",
    "names": "snake_case_name and __ and a_b_",
    "formulas": r"$a{b}_{c} d{e}_{f}$, \(x_1*y*z\), \[\mathbf{W}_{1}\,\mathbf{W}_{2}\], $$a*b*c$$ and \\ \{",
    "html": SCRIPT + "<svg onload=alert(1)></svg><!-- x --> &lt;b&gt; &#42;",
    "links": "[a](javascript:alert(1)) ![b](http://x.org/p.png) <http://x.org> [c]: http://x.org 'title'",
    "indented": "    a poem\n      in steps",
    "blank": " \n\t\n",
    "empty": "",
    "rule of stars": "*" * 500,
    "repeated rule": "- " * 500,
    "fence of nothing": "```\n" * 200,
    "blank lines": "**a**" + "\n \n" * 20 + "b",
    "cell lost": "| a |\n|---|\n| 1 | 2 |\n",
    "too deep": "> " * (DEEPEST + 1) + "x",
    "too deep a list": "".join("  " * depth + "- x\n" for depth in range(DEEPEST)),
    "too many parts": "# h\n" * (LONGEST // 4),
    "too long": "**b** " * (LONGEST // 6 + 1),
}


@pytest.mark.parametrize("text", PLAIN.values(), ids=PLAIN)
def test_what_is_no_markdown_or_would_lose_something_is_shown_as_it_is(text):
    assert markup(text) is None


STRUCTURE = {"p", *(f"h{level}" for level in range(1, 7)), "strong", "em", "code", "pre", "small", "ol", "ul", "li"}
STRUCTURE |= {"blockquote", "table", "thead", "tbody", "tr", "th", "td", "hr"}
ODD = {
    "html": f"**a** {SCRIPT} <a href='javascript:alert(1)'>x</a>",
    "html in code": f"`{SCRIPT}`\n\n```html\n{SCRIPT}\n```",
    "links": "**a** [b](javascript:alert(1)) ![c](//x.org/p.png)\n\n[d]: javascript:alert(2) 'e'",
    "html block": f"<div>\n{SCRIPT}\n\n**a**\n</div>",
    "language": "```<img src=x onerror=alert(1)>\nx\n```",
    "signs": "+ more\n- less\n\n007) agent",
    "numbers": "3. three\n3. three again\n7. seven",
    "nested fences": "````md\n```py\nx\n```\n````",
    "open fence": "so:\n```js\nlet a = '<b>'",
    "formulas": r"# $x_1$ and \(a*b*c\)",
    "chinese": "这是**重要**的",
    "control": "**a**\x00\x1b[31m\u202eb\u2066\u200bc",
    "combining": "*e\u0301* **👩‍👩‍👧** \u0e49",
}


def read(text: str) -> tuple[set[str], str]:
    """Tags in the Markdown of a text, and all that is shown of it."""
    tags, shown, waiting = set(), [], [text] if (nodes := markup(text)) is None else nodes[::-1]
    while waiting:
        node = waiting.pop()
        if isinstance(node, str):
            shown.append(node)
            continue
        assert node.keys() <= {"tag", "nodes", "marker"}
        tags.add(node["tag"])
        shown.append(node.get("marker", ""))
        waiting += node["nodes"][::-1]
    return tags, "".join(shown)


def letters(text: str) -> str:
    return "".join(filter(str.isalnum, text))


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_of_markdown_no_letter_is_lost_and_nothing_but_structure_is_made(text):
    tags, shown = read(text)
    assert tags and tags <= STRUCTURE
    assert letters(shown) == letters(text)
    kept = [part for part in re.split(r"[*`#\s]+", text) if "<" in part or "(" in part]
    assert all(part in shown for part in kept)  # HTML, links and formulas are there as they were written


def test_no_text_of_marks_and_words_loses_a_letter_or_stops_the_widget():
    draw = random.Random(0)
    pieces = [*"*_`#>|~$\\-+=[]()<>&!:. \n\n\n\t", "**", "```", "~~~\n", "\n- ", "\n1. ", "\n> ", "    ", "|--|\n"]
    pieces += ["value", "tag", "nodes", "word", "2", "é", "重", "http://x.org", "<b>", "\x00", "\r\n", "\u2028", "\\\n"]
    pieces, tags = [*pieces, "$$"], set()
    for _ in range(1500):
        text = "".join(draw.choices(pieces, k=draw.randrange(40)))
        found, shown = read(text)
        assert letters(shown) == letters(text)
        tags |= found
    assert len(tags) > 12 and tags <= STRUCTURE


def test_the_page_is_told_the_markdown_of_what_it_shows(path):
    item = {"item_id": "i", "prompt": "see `x`", "completions": ["**a**", [{"role": "assistant", "content": "plain"}]]}
    widget = widget_of(path, items=[item])
    prompt, *completions = widget.rendered
    assert prompt == [[{"tag": "p", "nodes": ["see ", {"tag": "code", "nodes": ["x"]}]}]]
    assert sorted(completions, key=str) == [
        [None],
        [[{"tag": "p", "nodes": ["", {"tag": "strong", "nodes": ["a"]}, ""]}]],
    ]
    judge(widget, {"choice": 0}, "e1")
    assert widget.rendered == [[None]]


def test_the_page_is_not_told_what_would_give_the_answer_away(path):
    items = made_items("pair", 1)
    items[0]["expected"] = 1
    widget = widget_of(path, items=items)
    assert set(widget.showing) == {"turn", "item_id", "prompt", "completions"}
    state = repr({name: value for name, value in widget.get_state().items() if not name.startswith("_")})
    assert "model 0" not in state
    assert "expected" not in state


def test_flags_that_the_page_adds_are_known_to_python(path):
    widget = widget_of(path, "rating", flags=["false"])
    widget.set_state({"flags": ["false", "rude"]})
    assert widget.flags == ["false", "rude"]
    judge(widget, {"ratings": [2, 6], "flags": [["rude"], []]}, "e1")
    assert widget.flags == ["false", "rude"]
    assert sorted(stored(path)[0].details["flags"]) == [[], ["rude"]]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"kind": "essay"}, "essay"),
        ({"labeler": "  "}, "labeler"),
        ({"labeler": "x" * 10_000}, "10000"),
        ({"items": [{"item_id": "i", "prompt": "p", "completions": ["only one"]}]}, "1 completion"),
        ({"items": made_items("pair") + made_items("pair")}, "twice"),
        ({"queue": Queue(items=made_items("pair", 2))}, "other items"),
    ],
)
def test_what_can_not_be_judged_is_refused(path, options, named):
    with pytest.raises(WorkbenchError, match=named):
        annotate(**{"items": made_items("pair"), "labeler": "ada", "store": path} | options)


@pytest.mark.parametrize("kind", COUNTS)
def test_the_front_end_of_a_kind_is_one_module_that_sets_text_as_text(kind):
    source = widgets.front_end(kind)
    assert source.count("export default") == 1
    assert source.count("function makeKind(") == 1
    assert "import " not in source
    for unsafe in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "http:", "https:"):
        assert unsafe not in source
    for file in SOURCES.glob("*.js"):
        assert len(file.read_text().splitlines()) <= 150


def test_an_undo_is_not_repeated_when_the_next_item_could_not_be_read(path, monkeypatch):
    widget = widget_of(path)
    judge(widget, {"choice": 0}, "e1")
    judge(widget, {"choice": 0}, "e2")

    def refuse(*_, **__):
        raise WorkbenchError("The file is held by another program.")

    with monkeypatch.context() as broken:
        broken.setattr(Queue, "turn", refuse)
        assert "undone, but" in send(widget, type="undo", event_id="e3")["text"]
    send(widget, type="undo", event_id="e3")
    assert len(stored(path)) == 1


def test_a_sentence_says_why_nothing_can_be_judged_where_there_is_no_anywidget(path, monkeypatch):
    no_widgets_here = widget_of(path)._repr_mimebundle_()[0]["text/plain"]
    assert no_widgets_here.startswith("Nothing can be judged here") and "anywidget" in no_widgets_here
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "workbench.feedback.widget")
    with pytest.raises(WorkbenchError, match=r"anywidget.*pip install anywidget"):
        importlib.import_module("workbench.feedback.widget")
