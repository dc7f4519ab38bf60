"""Judgements by simulated labelers, by a person in a widget, or by both, in one store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from IPython.display import display

from workbench import WorkbenchError
from workbench.feedback.queues import Queue
from workbench.feedback.store import Store
from workbench.feedback.validity import labeler_name
from workbench.records import Judgement
from workbench.runs.files import shown

WHO = ("simulated", "human", "mixed")
Items = Sequence[Mapping[str, Any]]
NO_PRIORITIES: Mapping[str, float] = MappingProxyType({})


class Collection:
    """What a notebook collects: the same calls in batch, where programs judge, and in JupyterLab, where people do."""

    def __init__(self, path: str | Path, *, labelers: str, labeler: str) -> None:
        """Collect in the store at `path`; WorkbenchError where nobody of that sort exists, or has no name."""
        if labelers not in WHO:
            raise WorkbenchError(f"labelers is {labelers!r}: use one of {', '.join(WHO)}.")
        self.labelers, self.labeler = labelers, labeler_name(labeler)
        self.store = Store(path)

    def ask(self, kind: str, items: Items, simulate: Callable[[], list[Judgement]]) -> None:
        """Put the items up for judgement, and write what simulated labelers say, unless only a person judges.

        The same judgements again are none, so a notebook may be run again.
        """
        self.store.add_items(items)
        if self.labelers != "human":
            self.store.record_all(simulate())

    def widget(
        self, kind: str, items: Items, *, priorities: Mapping[str, float] = NO_PRIORITIES, **settings: Any
    ) -> Any:
        """Where the person judges; None where only programs judge.

        First come the items of the highest `priorities` (by item_id), without any those judged least; what simulated
        labelers have judged is open to the person, too. `settings` are those of `widgets.annotate`.
        """
        if self.labelers == "simulated":
            return None
        from workbench.feedback.widget import annotate  # a batch run needs no widgets

        others = max((len(judged) for judged in self._by_item(kind, items).values()), default=0)
        order = {"order": "uncertain", "priorities": priorities} if priorities else {"order": "fewest"}
        queue = Queue(items=items, judgements_per_item=others + 1, **order)
        return annotate(items, self.labeler, self.store, kind=kind, queue=queue, **settings)

    def collected(self, kind: str, items: Items, simulate: Callable[[], list[Judgement]]) -> list[Judgement]:
        """`ask`, show the `widget`, and `judgements`: a cell to be run again after a person judged."""
        self.ask(kind, items, simulate)
        widget = self.widget(kind, items)
        if widget is not None:
            display(widget)
        return self.judgements(kind, items)

    def judgements(self, kind: str, items: Items) -> list[Judgement]:
        """What stands about these items; WorkbenchError asks the person to judge where nothing does yet."""
        found = [each for judged in self._by_item(kind, items).values() for each in judged]
        if not found:
            raise WorkbenchError(
                f"Nobody has judged any of {len(items)} items yet (kind {kind!r}, {shown(self.store.path)}): judge "
                "some in the widget above, then run this cell and those below it."
            )
        return found

    def _by_item(self, kind: str, items: Items) -> dict[str, list[Judgement]]:
        """Judgements of each item that has any, items in their order."""
        known: dict[str, list[Judgement]] = {item["item_id"]: [] for item in items}
        for judgement in self.store.judgements(kind):
            if judgement.item_id in known:
                known[judgement.item_id].append(judgement)
        return {item_id: judged for item_id, judged in known.items() if judged}
