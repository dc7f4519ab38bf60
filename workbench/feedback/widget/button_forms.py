"""What a labeler fills in for one item, in plain ipywidgets: a form per kind, for pages without the keyed widget.

A form shows the completions and calls `answered(answer)` with places as shown (see `workbench.feedback.session`).
Model text is only ever shown in text areas, where it can not run as HTML.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import ipywidgets as widgets

Answered = Callable[[dict], None]
Completions = Sequence[list[dict[str, str]]]  # messages {"role", "content"}, role "" for a plain text
STRENGTHS = {"not said": 0, "negligibly": 1, "slightly": 2, "clearly": 3, "significantly": 4}
RATINGS = {"not rated": None} | {str(number): number for number in range(1, 8)}


def plain_text(messages: Sequence[dict[str, str]]) -> str:
    """What was said, the role before each message that has one."""
    said = [(each["role"], each["content"]) for each in messages]
    return "\n\n".join(f"[{role}]\n{content}" if role else content for role, content in said)


def text_area(text: str, *, editable: bool = False, rows: int = 8) -> widgets.Textarea:
    """Text that scrolls."""
    return widgets.Textarea(text, disabled=not editable, rows=rows, layout=widgets.Layout(width="auto"))


def button(label: str, pressed: Callable[[], None]) -> widgets.Button:
    """A button that calls `pressed`."""
    made = widgets.Button(description=label, layout=widgets.Layout(width="auto"))
    made.on_click(lambda _: pressed())
    return made


def side_by_side(columns: Sequence[Sequence[widgets.Widget]]) -> widgets.HBox:
    """Columns beside each other, one below the other where there is no room."""
    return row(*(widgets.VBox(column, layout=widgets.Layout(flex="1 1 320px")) for column in columns))


def row(*children: widgets.Widget) -> widgets.HBox:
    """Widgets beside each other, as far as there is room."""
    return widgets.HBox(children, layout=widgets.Layout(flex_flow="row wrap", align_items="center"))


def numbered(completions: Completions) -> list[list[widgets.Widget]]:
    """A column for each completion: its number and its text."""
    texts = [plain_text(each) for each in completions]
    return [[widgets.Label(f"Completion {place}"), text_area(text)] for place, text in enumerate(texts, 1)]


class PairForm(widgets.VBox):
    """Which of two is better, and how much if somebody wants to say."""

    def __init__(self, completions: Completions, answered: Answered):
        self.strength = widgets.ToggleButtons(options=STRENGTHS, value=0, description="How much?")
        choices = [("First is better", 0), ("Tie", "tie"), ("Second is better", 1)]
        self.choices = [button(label, lambda choice=choice: answered(self.answer(choice))) for label, choice in choices]
        super().__init__([side_by_side(numbered(completions)), self.strength, row(*self.choices)])

    def answer(self, choice: int | str) -> dict:
        """The answer as it is now; a tie has no strength."""
        strength = 0 if choice == "tie" else self.strength.value
        return {"choice": choice} | ({"strength": strength} if strength else {})


class RankingForm(widgets.VBox):
    """All completions in order: the next best is placed, one after the other."""

    def __init__(self, completions: Completions, answered: Answered):
        self.groups: list[list[int]] = []
        self.order = widgets.Label()
        self.tied = widgets.Checkbox(description="ties with the last placed", indent=False)
        count = len(completions)
        self.places = [button(f"{place + 1} next", lambda place=place: self.place(place)) for place in range(count)]
        self.back = button("Take back", self.take_back)
        self.save = button("Save the order", lambda: answered({"groups": self.groups}))
        placing, saving = row(*self.places, self.tied, self.back), row(self.save)
        super().__init__([side_by_side(numbered(completions)), placing, self.order, saving])
        self._draw()

    def place(self, place: int) -> None:
        """Puts one behind, or beside, the last placed."""
        if self.tied.value and self.groups:
            self.groups[-1].append(place)
        else:
            self.groups.append([place])
        self._draw()

    def take_back(self) -> None:
        """Takes the last placed out again."""
        if self.groups:
            self.groups[-1].pop()
            self.groups = [group for group in self.groups if group]
        self._draw()

    def _draw(self) -> None:
        placed = list(chain.from_iterable(self.groups))
        self.tied.value = False
        for place, each in enumerate(self.places):
            each.disabled = place in placed
        self.save.disabled = len(placed) < len(self.places)
        order = "  >  ".join(" = ".join(str(place + 1) for place in group) for group in self.groups)
        self.order.value = f"Best first:  {order}" if order else "Nothing is placed yet."


class BestOfForm(widgets.VBox):
    """Which of several is best."""

    def __init__(self, completions: Completions, answered: Answered):
        count = len(completions)
        self.choices = [
            button(f"{place + 1} is best", lambda place=place: answered({"best": place})) for place in range(count)
        ]
        super().__init__([side_by_side(numbered(completions)), row(*self.choices)])


class RatingForm(widgets.VBox):
    """A number and flags for every completion; `flags` is the list that all items share, and may grow."""

    def __init__(self, completions: Completions, answered: Answered, flags: list[str]):
        look = {"button_width": "auto"}
        self.ratings = [widgets.ToggleButtons(options=RATINGS, value=None, style=look) for _ in completions]
        self.flags = [widgets.SelectMultiple(options=flags, rows=min(10, max(1, len(flags)))) for _ in completions]
        self.new_flag = widgets.Text(placeholder="new flag")
        self.add = button("Add the flag", lambda: self.add_flag(flags))
        self.save = button("Save the ratings", lambda: answered(self.answer()))
        columns = zip(numbered(completions), self.ratings, self.flags, strict=True)
        both = side_by_side([[*column, rating, flag] for column, rating, flag in columns])
        super().__init__([both, row(self.new_flag, self.add), row(self.save)])

    def add_flag(self, flags: list[str]) -> None:
        """One more name in the list, for this item and all that follow; what was picked stays picked."""
        name = self.new_flag.value.strip()
        if name and name not in flags:
            flags.append(name)
        for each in self.flags:
            picked = each.value
            each.options = flags
            each.value = picked
        self.new_flag.value = ""

    def answer(self) -> dict:
        """The answer as it is now."""
        ratings = [each.value for each in self.ratings]
        return {"ratings": ratings, "flags": [list(each.value) for each in self.flags]}


class CorrectionForm(widgets.VBox):
    """The text as it should have been, starting from one of the completions or from nothing."""

    def __init__(self, completions: Completions, answered: Answered):
        texts = [each[-1]["content"] for each in completions]
        starts = {f"completion {place + 1}": place for place in range(len(texts))} | {"nothing": None}
        self.texts = dict(enumerate(texts)) | {None: ""}  # as they are now, each with its own changes
        self.start = widgets.ToggleButtons(options=starts, value=0, description="Start from")
        self.text = text_area(texts[0], editable=True, rows=10)
        self.start.observe(self._change_start, "value")
        self.save = button("Save the text", lambda: answered({"text": self.text.value, "completion": self.start.value}))
        super().__init__([side_by_side(numbered(completions)), self.start, self.text, row(self.save)])

    def _change_start(self, change) -> None:
        self.texts[change.old] = self.text.value
        self.text.value = self.texts[change.new]


FORMS = {
    "pair": PairForm,
    "ranking": RankingForm,
    "best_of": BestOfForm,
    "rating": RatingForm,
    "correction": CorrectionForm,
}
