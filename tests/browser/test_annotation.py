"""The labelling widgets in a real JupyterLab, by keys and by mouse; what was saved is read from the store.

Every test has a widget and a store of its own, all in one notebook, because opening a page takes seconds.
"""

import os
import random
import re
import signal
import sqlite3
from pathlib import Path

import pytest

from workbench.feedback import widget as widgets
from workbench.feedback.store import Store

expect = pytest.importorskip("playwright.sync_api", reason="PLAYWRIGHT IS MISSING: no browser is tested").expect

ANSWER_MS = 20_000  # the whole machine may be busy
DIFFERENCES = (Path(widgets.__file__).parent / "differences.js").read_text()
SCRIPT = "<script>window.ran = 1</script><img src=x onerror='window.ran = 1'><b>bold</b>"
HEBREW = "שלום עולם"
LONG = "an answer without an end " * 2000

RICH = f"""# Title

Some **bold** and *italic* text with `code`, 2*3*4.

1. one
3. three
   - inner

> quoted

| a | b |
|---|---|
| 1 | 2 |

```html
{SCRIPT}
```

{SCRIPT} <svg onload='window.ran = 1'></svg> <a href='javascript:window.ran=1'>a</a> <!-- comment -->
[link](javascript:window.ran=1) ![image](https://example.org/x.png) <https://example.org> &lt;

{"unbroken" * 500}

\u202eturned\u202c \x1b[31mred
"""

START = f"""
import os
import time
from workbench.feedback.queues import Queue
from workbench.feedback.widget import annotate

def texts(size, count=12):
    return [{{"item_id": f"item-{{number}}", "prompt": f"prompt {{number}}",
             "completions": [f"completion {{index}} of prompt {{number}}" for index in range(size)]}}
            for number in range(count)]

def show(kind, name, items, **options):
    return annotate(items, options.pop("labeler", "ada"), os.path.join(os.getcwd(), name + ".db"), kind=kind,
                    queue=Queue(items=items, order="given", judgements_per_item=2), **options)

chat = [{{"role": "user", "content": "Who?"}}, {{"role": "assistant", "content": {HEBREW!r}}}]
hard = [[{SCRIPT!r}, "plain"], [chat, chat[1:]], [{LONG!r}, {LONG[:-4]!r} + "stop"],
        ["the cat sat on the mat", "the dog sat on a mat"]]
prompts = ["prompt " + {SCRIPT!r}, chat, "long", "short"]
rich = [{{"item_id": "rich", "prompt": "See `x`", "completions": [{RICH!r}, {RICH.replace("**bold", "**loud")!r}]}},
        {{"item_id": "bare", "prompt": "p", "completions": ["", " \\n"]}},
        {{"item_id": "same", "prompt": "p", "completions": ["the same", "the same"]}}]
hard = [{{"item_id": f"hard-{{number}}", "prompt": prompt, "completions": both}}
        for number, (prompt, both) in enumerate(zip(prompts, hard))]
print("kernel", os.getpid())
"""
WIDGETS = {
    "pair_keys": 'show("pair", "pair_keys", texts(2))',
    "pair_mouse": 'show("pair", "pair_mouse", texts(2))',
    "ranking_keys": 'show("ranking", "ranking_keys", texts(5))',
    "ranking_mouse": 'show("ranking", "ranking_mouse", texts(4))',
    "rating_keys": 'show("rating", "rating_keys", texts(2))',
    "rating_mouse": 'show("rating", "rating_mouse", texts(2), flags=["false", "rude"])',
    "best_of": 'show("best_of", "best_of", texts(4))',
    "correction": 'show("correction", "correction", texts(2))',
    "hard": 'show("pair", "hard", hard, instructions="Read <b>both</b>.")',
    "rich": 'show("pair", "rich", rich)',
    "past": 'show("rating", "past", texts(2))',
    "leaks": 'show("pair", "leaks", texts(2))',
    "refused": 'show("pair", "refused", texts(2))',
    "stopped": 'show("pair", "stopped", texts(2))',
    "reloaded": 'show("ranking", "reloaded", texts(4))',
    "killed": 'show("ranking", "killed", texts(4))',
    "shared": 'show("pair", "shared", texts(2, 6))',
    "late": 'time.sleep("late" in globals()); late = show("pair", "late", texts(2)); late',  # a second, but at first
}


RUN_CELL = "() => void window.jupyterapp.commands.execute('notebook:run-cell')"  # without waiting for its end


class Widget:
    """A labelling widget on a page, and what its store holds."""

    def __init__(self, notebook, cell: int, store: Path):
        self.page, self.store = notebook.page, store
        self.root = notebook.cell(cell).locator(".wb-annotate")
        self.status = self.root.locator(".wb-status-text")
        expect(self.root).to_be_visible(timeout=ANSWER_MS)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.root.press(key)

    def button(self, action: str):
        return self.root.locator(f'[data-action="{action}"]')

    def click(self, action: str) -> None:
        self.button(action).click()

    def answered(self, act) -> None:
        """Does something that the kernel has to answer, and waits for the answer."""
        version = self.root.get_attribute("data-version")
        act()
        expect(self.root).not_to_have_attribute("data-version", version, timeout=ANSWER_MS)
        expect(self.root).to_have_attribute("data-state", re.compile("ready|done"))

    def judged(self, *keys: str) -> None:
        """Presses keys of which the last one saves."""
        self.press(*keys[:-1])
        self.answered(lambda: self.press(keys[-1]))

    def shown(self) -> list[int]:
        """At each place, the index of the completion that a labeler reads there."""
        found = self.root.locator(".wb-card .wb-text").all_inner_texts()
        return [int(re.match(r"completion (\d)", text).group(1)) for text in found]

    def stored(self) -> list:
        store = Store(self.store)
        try:
            return store.judgements()
        finally:
            store.close()

    def values(self) -> list:
        return [judgement.value for judgement in self.stored()]

    def has_focus(self) -> bool:
        return self.root.evaluate("root => root.contains(document.activeElement)")


@pytest.fixture(scope="module")
def ada(lab, tabs):
    """The notebook with all widgets, and the process of its kernel."""
    lab.write_notebook("ada.ipynb", START, *WIDGETS.values())
    notebook = tabs.open("ada.ipynb")
    notebook.kernel = notebook.run()
    return notebook


@pytest.fixture
def widget(ada, lab):
    names = list(WIDGETS)
    return lambda name: Widget(ada, 1 + names.index(name), lab.root / f"{name}.db")


@pytest.fixture(autouse=True)
def nothing_is_asked_of_others_and_nothing_breaks(tabs):
    yield
    assert tabs.outside == []
    assert tabs.complaints == []


def test_the_guard_sees_requests_that_leave_the_machine(ada, tabs):
    outcome = ada.page.evaluate("() => fetch('https://example.org/x.js').then(() => 'sent', () => 'refused')")
    assert outcome == "refused"
    assert tabs.outside == ["https://example.org/x.js"]
    assert any("ERR_FAILED" in complaint for complaint in tabs.complaints)
    tabs.outside.clear()
    tabs.complaints.clear()


def test_the_first_widget_of_a_notebook_that_was_run_has_the_keys(ada, widget):
    first, second = widget("pair_keys"), widget("pair_mouse")
    expect(first.root).to_be_focused()
    expect(first.root.locator(".wb-hint")).to_be_hidden()
    expect(second.root.locator(".wb-hint")).to_have_text(re.compile("^Click here first"))
    before = ada.state()
    for key in "ddxa0":  # in the notebook, they delete, cut and insert cells and restart the kernel
        ada.page.keyboard.press(key)
    assert ada.state() == before
    assert first.root.get_attribute("data-version") == "1"
    ada.page.keyboard.press("d")  # no more differences


def test_a_widget_that_comes_while_somebody_types_leaves_the_focus_there(ada, widget):
    late, editor = widget("late"), ada.cell(0).locator(".cm-content")
    ada.select(len(WIDGETS))
    ada.page.evaluate(RUN_CELL)
    editor.click()
    expect(late.root).to_have_count(0)  # the cell is running
    expect(late.root).to_be_visible(timeout=ANSWER_MS)
    expect(editor).to_be_focused()
    expect(late.root.locator(".wb-hint")).to_be_visible()
    ada.select(len(WIDGETS))
    ada.page.evaluate(RUN_CELL)
    expect(late.root).to_have_count(0)
    expect(late.root).to_be_focused(timeout=ANSWER_MS)
    late.root.click(position={"x": 5, "y": 5})
    expect(late.root.locator(".wb-hint")).to_be_hidden()


def test_pair_by_keys(widget):
    pair, expected = widget("pair_keys"), []
    for key, place in [("1", 0), ("ArrowRight", 1), ("2", 1), ("ArrowLeft", 0)]:
        expected.append(pair.shown()[place])
        pair.judged(key)
    pair.judged("3")
    pair.judged("t")
    pair.judged("s")
    assert pair.values() == [*expected, "tie", "tie", "skip"]
    pair.press("7")
    expect(pair.button("strength-3")).to_have_attribute("aria-pressed", "true")
    expected = pair.shown()[1]
    pair.judged("2")
    assert (pair.stored()[-1].value, pair.stored()[-1].details) == (expected, {"strength": 3})
    expect(pair.button("strength-3")).to_have_attribute("aria-pressed", "false")
    item = pair.root.get_attribute("data-item-id")
    pair.press("n")
    pair.page.keyboard.type("because 1 2 s u")  # none of them is a key here
    pair.page.keyboard.press("Enter")
    assert pair.root.get_attribute("data-item-id") == item
    pair.judged("1")
    assert pair.stored()[-1].note == "because 1 2 s u"
    assert all(judgement.elapsed_ms > 0 for judgement in pair.stored())
    pair.judged("u")
    assert pair.root.get_attribute("data-item-id") == item
    assert len(pair.values()) == 8
    expect(pair.root.locator(".wb-count")).to_have_text("8 of 12 judged by ada")


def test_pair_by_mouse(widget):
    pair = widget("pair_mouse")
    expected = [pair.shown()[0]]
    pair.click("strength-4")
    pair.answered(lambda: pair.click("choose-1"))
    assert pair.stored()[0].details == {"strength": 4}
    expected.append(pair.shown()[1])
    pair.answered(lambda: pair.page.keyboard.press("2"))  # the click left the keys to the widget
    pair.answered(lambda: pair.click("tie"))
    pair.answered(lambda: pair.click("skip"))
    assert pair.values() == [*expected, "tie", "skip"]
    pair.answered(lambda: pair.click("undo"))
    assert pair.values() == [*expected, "tie"]
    pair.answered(lambda: pair.button("choose-2").dblclick())
    pair.answered(lambda: pair.click("tie"))
    assert len(pair.values()) == 5  # a double click is one answer


def test_pair_by_tab_alone(widget):
    pair = widget("pair_mouse")
    before = len(pair.values())
    pair.button("tie").focus()
    pair.answered(lambda: pair.page.keyboard.press("Enter"))
    pair.answered(lambda: pair.page.keyboard.press("Space"))  # the focus stayed on the button
    assert pair.values()[before:] == ["tie", "tie"]
    reached = set()
    pair.root.focus()
    for _ in range(60):
        if not pair.has_focus():
            break
        reached.add(pair.page.evaluate("document.activeElement.dataset.action"))
        pair.page.keyboard.press("Tab")
    buttons = pair.root.locator("button:visible").evaluate_all("all => all.map(each => each.dataset.action)")
    assert set(buttons) <= reached
    unnamed = "all => all.filter(each => !each.getAttribute('aria-label') && !each.textContent).length"
    assert pair.root.locator("button, input, textarea, [tabindex]").evaluate_all(unnamed) == 0


def test_ranking_by_keys(widget):
    ranking = widget("ranking_keys")
    shown = ranking.shown()
    ranking.press("4", "1", "=", "5", "Backspace")
    expect(ranking.root).to_have_attribute("data-order", "[[3],[0]]")
    ranking.press("=", "5", "Enter")
    expect(ranking.status).to_have_text("Place all 5 first: 2 to go.")
    expect(ranking.root).to_have_attribute("data-order", "[[3],[0,4]]")
    ranking.judged("2", "4", "3", "Enter")  # 4 has its place already
    expected = [[shown[3]], sorted([shown[0], shown[4]]), [shown[1]], [shown[2]]]
    assert [[sorted(group) for group in value] for value in ranking.values()] == [expected]
    expect(ranking.root).to_have_attribute("data-order", "[]")
    ranking.judged("s")
    ranking.judged("u")
    assert len(ranking.values()) == 1


def test_ranking_by_mouse(widget):
    ranking = widget("ranking_mouse")
    shown = ranking.shown()
    cards = ranking.root.locator(".wb-card")
    cards.nth(1).locator(".wb-text").click()
    cards.nth(0).locator(".wb-text").click()
    cards.nth(1).locator(".wb-text").click()  # takes it back
    expect(ranking.root).to_have_attribute("data-order", "[[0]]")
    ranking.click("place-3")
    ranking.click("tie")
    ranking.click("place-4")
    ranking.click("back")
    expect(ranking.root).to_have_attribute("data-order", "[[0],[2]]")
    ranking.click("tie")
    cards.nth(3).locator(".wb-number").click()
    cards.nth(1).locator(".wb-text").click()
    ranking.answered(lambda: ranking.click("submit"))
    (value,) = ranking.values()
    assert [sorted(group) for group in value] == [[shown[0]], sorted([shown[2], shown[3]]), [shown[1]]]


def test_rating_by_keys(widget):
    rating = widget("rating_keys")
    shown = rating.shown()
    rating.press("6", "f", "3")  # the digit moves on, so the flag is the second's
    rating.press("Enter")
    expect(rating.status).to_contain_text("1 of 2 not rated")
    rating.judged("2", "Enter")
    (judgement,) = rating.stored()
    assert [judgement.value[index] for index in shown] == [6, 2]
    assert [judgement.details["flags"][index] for index in shown] == [[], ["false statement"]]
    shown = rating.shown()
    rating.press("5", "ArrowLeft", "f", "1", "f", "1", "4", "ArrowLeft", "Backspace", "ArrowRight", "7", "Enter")
    rating.judged("Enter")  # once more, as one is not rated
    judgement = rating.stored()[-1]
    assert [judgement.value[index] for index in shown] == [None, 7]
    assert not any(judgement.details.get("flags", []))
    rating.judged("u")
    assert len(rating.values()) == 1


def test_rating_by_mouse(widget):
    rating = widget("rating_mouse")
    shown = rating.shown()
    rating.click("rate-2-7")
    rating.click("rate-1-3")
    rating.click("flag-1-2")
    field = rating.root.locator(".wb-card").nth(1).locator("input")
    field.click()
    field.press_sequentially("too long 7")
    field.press("Enter")
    rating.click("flag-2-3")
    rating.answered(lambda: rating.click("submit"))
    (judgement,) = rating.stored()
    assert [judgement.value[index] for index in shown] == [3, 7]
    assert [judgement.details["flags"][index] for index in shown] == [["rude"], ["too long 7"]]
    expect(rating.button("flag-1-3")).to_contain_text("too long 7")  # for the next item, too


def test_best_of_by_key_and_by_mouse(widget):
    best = widget("best_of")
    expected = [best.shown()[2]]
    best.judged("3")
    expected.append(best.shown()[0])
    best.answered(lambda: best.click("best-1"))
    assert best.values() == expected


def test_a_correction_by_keys_and_by_mouse(widget):
    correction = widget("correction")
    shown, field = correction.shown(), correction.root.locator("textarea")
    correction.press("2")
    expect(field).to_have_value(re.compile(f"^completion {shown[1]} "))
    version = correction.root.get_attribute("data-version")
    correction.press("e")
    correction.page.keyboard.press("Control+a")
    correction.page.keyboard.type("Better.\nAnd 1 2 s u d longer")
    correction.page.keyboard.press("Escape")
    expect(correction.root).to_be_focused()
    correction.press("1")
    expect(field).to_have_value(re.compile(f"^completion {shown[0]} "))
    correction.press("2", "e")
    expect(field).to_be_focused()
    assert correction.root.get_attribute("data-version") == version
    correction.answered(lambda: correction.page.keyboard.press("Control+Enter"))
    (judgement,) = correction.stored()
    assert (judgement.value, judgement.details) == ("Better.\nAnd 1 2 s u d longer", {"completion": shown[1]})
    correction.click("correct-0")
    expect(field).to_have_value("")
    field.click()
    field.press_sequentially("From nothing")
    correction.answered(lambda: correction.click("submit"))
    assert (correction.stored()[1].value, correction.stored()[1].details) == ("From nothing", {})
    first = correction.shown()[0]
    correction.press("n")
    correction.page.keyboard.type("why")
    correction.answered(lambda: correction.page.keyboard.press("Control+Enter"))
    assert (correction.stored()[2].note, correction.stored()[2].details) == ("why", {"completion": first})
    correction.judged("2", "Control+Enter")  # from the widget itself, and from a button
    correction.answered(lambda: correction.button("skip").press("Control+Enter"))
    assert [value.split()[0] for value in correction.values()[2:]] == ["completion"] * 3


def test_markdown_is_shown_as_such_and_nothing_in_it_runs_or_loads(widget):
    rich = widget("rich")
    shown = rich.root.locator(".wb-completion").first
    tags = shown.evaluate("each => [...new Set([...each.querySelectorAll('.wb-text *')].map(made => made.localName))]")
    blocks = {"h1", "p", "ol", "ul", "li", "blockquote", "table", "thead", "tbody", "tr", "th", "td", "pre"}
    assert set(tags) == blocks | {"strong", "em", "code", "small"}
    attributes = "each => [...each.querySelectorAll('.wb-text *')].flatMap(made => made.getAttributeNames())"
    assert set(shown.evaluate(attributes)) == {"style"}  # of the list items
    markers = shown.locator("li").evaluate_all("all => all.map(each => each.getAttribute('style'))")
    assert markers == [f'list-style-type: "{marker} ";' for marker in ("1.", "3.", "-")]
    text = shown.inner_text()
    assert text.count(SCRIPT) == 2
    for part in ("2*3*4", "[link](javascript:window.ran=1)", "![image](https://example.org/x.png)", "<!-- comment -->"):
        assert part in text
    assert "⟨U+202E⟩turned" in text and "⟨U+001B⟩[31mred" in text
    assert rich.root.evaluate("root => root.scrollWidth <= root.clientWidth")
    assert shown.evaluate("each => each.scrollWidth <= each.clientWidth")
    rich.press("d")
    assert sorted(rich.root.locator("strong > mark").all_inner_texts()) == ["bold", "loud"]
    rich.press("m")
    assert sorted(rich.root.locator("mark").all_inner_texts()) == ["**bold**", "**loud**"]
    expect(rich.root.locator(".wb-text strong")).to_have_count(0)
    assert "| a | b |\n|---|---|" in shown.inner_text()
    expect(rich.root.locator(".wb-prompt")).to_have_text("See `x`")
    rich.click("raw")
    expect(rich.root.locator(".wb-prompt code")).to_have_text("x")
    rich.judged("1")
    assert sorted(rich.root.locator(".wb-card .wb-text").all_inner_texts()) == [" \n(only blanks)", "(empty)"]
    expect(rich.button("raw")).to_be_hidden()
    rich.judged("3")
    expect(rich.status).to_have_text(re.compile("No word differs"))
    assert rich.page.evaluate("window.ran") is None


def test_a_past_judgement_is_looked_at_left_and_changed(widget):
    past = widget("past")
    shown = past.shown()
    past.press("6", "2")
    past.judged("Enter")
    past.judged("s")
    past.press("5")  # an answer under way
    under_way, rows = past.root.get_attribute("data-item-id"), past.root.locator(".wb-past button")
    past.answered(lambda: past.press("p"))
    assert [re.sub(r", [\d:]+\s[AP]M$", "", each) for each in rows.all_inner_texts()] == [
        "prompt 1 (item-1): skipped",
        "prompt 0 (item-0): 6, 2",
    ]
    expect(rows.first).to_be_focused()
    past.page.keyboard.press("Escape")
    expect(past.root).to_be_focused()
    past.answered(lambda: past.page.keyboard.press("p"))
    expect(rows.first).to_be_focused()
    past.page.keyboard.press("Tab")
    past.answered(lambda: past.page.keyboard.press("Enter"))
    assert (past.root.get_attribute("data-item-id"), past.shown()) == ("item-0", shown)
    expect(past.root.locator(".wb-question")).to_contain_text("You said: 6, 2")
    expect(past.button("rate-1-6")).to_have_attribute("aria-pressed", "true")
    past.answered(lambda: past.button("leave").press("Enter"))
    expect(past.root).to_be_focused()  # the button is gone
    assert past.root.get_attribute("data-item-id") == under_way
    expect(past.button("rate-1-5")).to_have_attribute("aria-pressed", "true")
    assert len(past.values()) == 2
    past.answered(lambda: past.click("past"))
    past.answered(lambda: past.click("past-2"))
    past.press("4")
    past.answered(lambda: past.press("Escape"))
    past.answered(lambda: past.click("past"))
    past.answered(lambda: past.click("past-2"))
    past.press("3")
    past.judged("Enter")
    assert [past.stored()[1].value[index] for index in shown] == [3, 2]
    assert (past.stored()[0].value, len(past.values())) == ("skip", 2)
    assert past.root.get_attribute("data-item-id") == under_way


def test_texts_are_shown_as_they_are_and_long_ones_scroll(widget):
    hard = widget("hard")
    texts = hard.root.locator(".wb-card .wb-text")
    assert SCRIPT in texts.all_inner_texts()
    expect(hard.root.locator(".wb-prompt")).to_contain_text(SCRIPT)
    expect(hard.root.locator(".wb-instructions")).to_have_text("Read <b>both</b>.")
    hard.judged("1")
    assert set(hard.root.locator(".wb-prompt .wb-role").all_inner_texts()) == {"user", "assistant"}
    hebrew = hard.root.locator(".wb-card .wb-text", has_text=HEBREW).first
    assert hebrew.evaluate("text => getComputedStyle(text).direction") == "rtl"
    hard.judged("1")
    long = hard.root.locator(".wb-completion").first
    assert long.evaluate("text => text.scrollHeight > text.clientHeight && text.clientHeight <= 400")
    hard.press("d")  # too long for the table of the longest common subsequence is only what differs in the middle
    assert sorted(hard.root.locator("mark").all_inner_texts()) == ["end", "stop"]
    hard.judged("1")
    assert sorted(hard.root.locator("mark").all_inner_texts()) == ["a", "cat", "dog", "the"]
    hard.press("d")
    expect(hard.root.locator("mark")).to_have_count(0)
    hard.press("i")
    expect(hard.root.locator(".wb-instructions")).to_be_hidden()
    hard.press("?")
    expect(hard.root.locator(".wb-keys")).to_be_hidden()
    assert hard.page.evaluate("window.ran") is None


def longest_common(left: list[str], right: list[str]) -> int:
    """Length of the longest common subsequence."""
    lengths = [0] * (len(right) + 1)
    for word in left:
        row = [0]
        for place, other in enumerate(right):
            row.append(lengths[place] + 1 if word == other else max(row[place], lengths[place + 1]))
        lengths = row
    return lengths[-1]


def test_words_that_are_not_marked_are_a_longest_common_subsequence(ada):
    draw = random.Random(0)
    for _ in range(40):
        left, right = ([draw.choice("abcd") for _ in range(draw.randrange(12))] for _ in range(2))
        found = ada.page.evaluate(
            f"([left, right]) => {{ {DIFFERENCES} return wordDifferences(left, right); }}", [left, right]
        )
        kept = [word for word, marked in zip(left, found["left"], strict=True) if not marked]
        assert kept == [word for word, marked in zip(right, found["right"], strict=True) if not marked]
        assert len(kept) == longest_common(left, right)
    long = [[f"{name}{number % 900}" for number in range(10_000)] for name in "ab"]
    found = ada.page.evaluate(f"([left, right]) => {{ {DIFFERENCES} return wordDifferences(left, right); }}", long)
    assert not found["exact"]
    assert all(found["left"])


def test_the_notebook_takes_no_key_from_a_widget(ada, widget):
    pair = widget("leaks")
    pair.root.click(position={"x": 5, "y": 5})
    before = ada.state()
    pair.press("a", "b", "d", "d", "x", "z", "m", "y", "c", "v", "Enter", "Escape", "Shift+Enter", "j", "k", "0", "0")
    assert ada.state() == before
    assert pair.values() == []
    pair.press("Control+s")
    expect(pair.status).to_contain_text("Every judgement is saved when it is made")
    ada.page.evaluate(
        """() => {
            const {content} = window.jupyterapp.shell.currentWidget;
            content.activeCellIndex = content.model.cells.length - 1;
            content.mode = "command";
            content.node.focus();
        }"""
    )
    ada.page.keyboard.press("b")  # what happens to keys that reach the notebook
    assert ada.state()["cells"] == before["cells"] + 1


def test_an_answer_that_the_disk_refuses_stays_on_the_screen(widget):
    pair = widget("refused")
    item = pair.root.get_attribute("data-item-id")
    with sqlite3.connect(pair.store) as other:
        full = "SELECT RAISE(ABORT, 'database or disk is full')"
        other.execute(f"CREATE TRIGGER refuse BEFORE INSERT ON judgement BEGIN {full}; END")
    pair.press("8", "1")
    expect(pair.status).to_contain_text("NOT SAVED")
    expect(pair.status).to_contain_text("full")
    expect(pair.root).to_have_attribute("data-state", "failed")
    assert pair.root.get_attribute("data-item-id") == item
    expect(pair.button("strength-4")).to_have_attribute("aria-pressed", "true")
    assert pair.values() == []
    pair.press("p", "p", "u")  # nothing makes the sentence go away but an answer that is saved
    expect(pair.status).to_contain_text("NOT SAVED")
    with sqlite3.connect(pair.store) as other:
        other.execute("DROP TRIGGER refuse")
    pair.answered(lambda: pair.button("retry").press("Enter"))
    expect(pair.root).to_be_focused()  # that button is gone
    assert pair.root.get_attribute("data-item-id") != item
    assert [judgement.details for judgement in pair.stored()] == [{"strength": 4}]


def test_a_kernel_that_does_not_answer_is_told_and_its_late_answer_counts_once(ada, widget):
    pair = widget("stopped")
    item, version = pair.root.get_attribute("data-item-id"), pair.root.get_attribute("data-version")
    os.kill(ada.kernel, signal.SIGSTOP)
    try:
        pair.press("1")
        expect(pair.status).to_contain_text("NOT SAVED: the kernel did not answer", timeout=ANSWER_MS)
        assert pair.root.get_attribute("data-item-id") == item
        pair.press("r")
    finally:
        os.kill(ada.kernel, signal.SIGCONT)
    expect(pair.root).to_have_attribute("data-version", str(int(version) + 2), timeout=ANSWER_MS)  # it came twice
    expect(pair.root).not_to_have_attribute("data-item-id", item)
    pair.judged("2")
    assert len(pair.values()) == 2


def test_a_page_loaded_again_goes_on_where_it_was(ada, widget):
    ranking = widget("reloaded")
    ranking.judged("s")
    ranking.press("3", "1")
    item, shown = ranking.root.get_attribute("data-item-id"), ranking.shown()
    ada.command("docmanager:save")
    ada.page.reload()
    ada.wait_until_idle()
    ranking = widget("reloaded")
    assert ada.page.locator(".wb-annotate:focus-within").count() == 0  # nobody has just run a cell
    assert (ranking.root.get_attribute("data-item-id"), ranking.shown()) == (item, shown)
    expect(ranking.root).to_have_attribute("data-order", "[[2],[0]]")
    ranking.judged("2", "4", "Enter")
    assert ranking.values()[1] == [[shown[2]], [shown[0]], [shown[1]], [shown[3]]]


def test_two_labelers_in_two_tabs_share_a_store(ada, lab, tabs, widget):
    lab.write_notebook("bob.ipynb", START, WIDGETS["shared"].replace("texts(2, 6)", 'texts(2, 6), labeler="bob"'))
    notebook = tabs.open("bob.ipynb")
    notebook.run()
    bob, own = Widget(notebook, 1, lab.root / "shared.db"), widget("shared")
    for _ in range(3):
        for each in (own, bob):
            each.page.bring_to_front()
            each.judged("1")
            each.judged("3")
    judged = [(judgement.labeler, judgement.item_id) for judgement in own.stored()]
    assert sorted(judged) == [(name, f"item-{number}") for name in ("ada", "bob") for number in range(6)]
    expect(bob.root.locator(".wb-agreement")).to_contain_text("labelers agree on")
    expect(bob.root).to_have_attribute("data-state", "done")
    expect(bob.root.locator(".wb-over")).to_contain_text("Nothing is left")
    notebook.page.close()
    ada.page.bring_to_front()


def test_a_killed_kernel_loses_nothing_that_was_saved(ada, widget):
    ranking = widget("killed")
    ranking.judged("1", "2", "3", "4", "Enter")
    os.kill(ada.kernel, signal.SIGKILL)  # right after "saved"
    saved = ranking.values()
    assert len(saved) == 1
    item, shown = ranking.root.get_attribute("data-item-id"), ranking.shown()
    ada.page.locator(".jp-Dialog button").last.click(timeout=ANSWER_MS)  # JupyterLab: it will restart
    expect(ada.page.locator(".jp-Dialog")).to_have_count(0)
    ranking.press("4", "3", "2", "1", "Enter")
    expect(ranking.status).to_contain_text("NOT SAVED", timeout=ANSWER_MS)
    expect(ranking.status).to_contain_text("run this cell again")
    assert ranking.root.get_attribute("data-item-id") == item
    ada.wait_until_idle()
    ada.run(after=ada.kernel)
    ranking = widget("killed")
    expect(ranking.root.locator(".wb-count")).to_have_text("1 of 12 judged by ada")
    assert (ranking.root.get_attribute("data-item-id"), ranking.shown()) == (item, shown)
    expect(ranking.root).to_have_attribute("data-order", "[[3],[2],[1],[0]]")  # the answer under way came back, too
    ranking.judged("Enter")
    assert ranking.values() == [*saved, [[shown[3]], [shown[2]], [shown[1]], [shown[0]]]]
    with sqlite3.connect(ranking.store) as other:
        assert other.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_after_a_restart_of_the_kernel_a_widget_says_to_run_its_cell_again(ada, widget):
    pair = widget("leaks")
    ada.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    expect(pair.status).to_contain_text("The kernel was restarted")
    expect(pair.status).to_contain_text("run this cell again")
    pair.press("1")
    expect(pair.status).to_have_text(re.compile("^NOT SAVED.*run this cell again"))
    expect(pair.button("retry")).to_be_hidden()
    assert pair.values() == []


# The lowest contrast of texts, and of borders and bars, with what is behind them, and where each is found.
CONTRASTS = """root => {
    const parsed = color => {
        const parts = color.match(/[\\d.]+/g).map(Number), scale = color.startsWith("color(srgb") ? 1 : 255;
        return [...parts.slice(0, 3).map(part => part / scale), parts[3] ?? 1];
    };
    const over = (top, ground) => ground.map((part, index) => top[index] * top[3] + part * (1 - top[3]));
    const luminance = color => {
        const linear = color.map(part => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    };
    const known = new Map();
    const at = node => {
        if (!node) return {ground: [1, 1, 1], opacity: 1};
        if (!known.has(node)) {
            const {backgroundColor, opacity} = getComputedStyle(node), behind = at(node.parentElement);
            const ground = over(parsed(backgroundColor), behind.ground);
            known.set(node, {ground, opacity: behind.opacity * opacity});
        }
        return known.get(node);
    };
    const contrast = (color, node, ground = at(node).ground) => {
        const [red, green, blue, alpha] = parsed(color), own = [red, green, blue, alpha * at(node).opacity];
        const both = [luminance(ground), luminance(over(own, ground))];
        return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
    };
    const lowest = {text: [99, ""], mark: [99, ""]};
    const note = (kind, ratio, node) => {
        if (ratio < lowest[kind][0]) lowest[kind] = [ratio, node.outerHTML.slice(0, 120)];
    };
    for (const node of [root, ...root.querySelectorAll("*")]) {
        if (!node.checkVisibility({visibilityProperty: true})) continue;
        const style = getComputedStyle(node), holder = getComputedStyle(node, "::placeholder");
        if ([...node.childNodes].some(each => each.nodeType === 3 && each.data.trim()) || node.matches("textarea"))
            note("text", contrast(style.color, node), node);
        if (node.placeholder) note("text", contrast(holder.color, node), node);
        for (const side of ["Top", "Left", "Bottom"])
            if (parseFloat(style[`border${side}Width`])) {
                note("mark", contrast(style[`border${side}Color`], node, at(node.parentElement).ground), node);
            }
        if (node.matches(".wb-filled")) note("mark", contrast(style.backgroundColor, node.parentElement), node);
    }
    return lowest;
}"""


@pytest.mark.parametrize("theme", ["JupyterLab Dark", "JupyterLab Light"])
def test_a_narrow_page_is_readable_in_either_theme(ada, widget, theme):
    ada.page.set_viewport_size({"width": 900, "height": 900})
    ada.page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
    dark = "false" if "Dark" in theme else "true"
    expect(ada.page.locator("body")).to_have_attribute("data-jp-theme-light", dark)
    for name in ("pair_mouse", "rich", "ranking_mouse", "rating_mouse", "best_of", "correction", "past"):
        root = widget(name).root
        lowest = root.evaluate(CONTRASTS)
        assert lowest["text"][0] >= 4.5, lowest  # WCAG 2, 1.4.3 and 1.4.11
        assert lowest["mark"][0] >= 3, lowest
        assert root.evaluate("root => root.scrollWidth <= root.clientWidth")
        assert all(
            box > 250 for box in root.locator(".wb-card").evaluate_all("all => all.map(each => each.offsetWidth)")
        )
