"""Figures that a running kernel redraws when a control moves; in exported pages plotly's own menus do it."""

from __future__ import annotations

from collections.abc import Sequence

import ipywidgets
import pandas as pd
import plotly.graph_objects as go

from workbench import WorkbenchError
from workbench.analysis.statistics import nats
from workbench.feedback.agreement import agreement_matrix, pairwise_agreement
from workbench.feedback.labelers import keep
from workbench.plots.agreement import plot_agreement_filters
from workbench.plots.marks import text_table
from workbench.plots.theme import GREY, axis_label, headline_of
from workbench.runs import Run
from workbench.studies.budget import tables as budgets
from workbench.studies.budget.figures import FRONTIER_READING, frontier_traces, plot_budget_frontier, score_range
from workbench.studies.budget.tables import samples_of_unit, side_by_side_at
from workbench.studies.measured_paths import score_columns


def explore_agreement(judgements: pd.DataFrame) -> ipywidgets.VBox:
    """Agreement of the labelers that are ticked, in answers of one kind that took long enough.

    Where a choice leaves nothing to compare, the figure stays and a line below says why.
    """
    labelers, kinds = sorted(judgements["labeler"].unique()), sorted(judgements["kind"].unique())
    slowest = round(judgements["elapsed_ms"].quantile(0.9) / 1000)
    who = ipywidgets.SelectMultiple(options=labelers, value=labelers, description="labelers", rows=len(labelers))
    kind = ipywidgets.Dropdown(options=kinds, description="kind")
    seconds = ipywidgets.IntSlider(max=max(1, slowest), description="at least (s)", continuous_update=False)
    figure, said = go.FigureWidget(_figure(judgements, kind=kinds[0], labelers=labelers, seconds=0)), ipywidgets.Label()

    def redraw(_change: dict) -> None:
        try:
            drawn = _figure(judgements, kind=kind.value, labelers=who.value, seconds=seconds.value)
        except WorkbenchError as error:
            said.value = str(error)
            return
        said.value = ""
        with figure.batch_update():
            figure.data[0].update(drawn.data[0].to_plotly_json())
            figure.layout.title.text = drawn.layout.title.text

    for control in (who, kind, seconds):
        control.observe(redraw, names="value")
    return ipywidgets.VBox([ipywidgets.HBox([who, ipywidgets.VBox([kind, seconds])]), figure, said])


def _figure(judgements: pd.DataFrame, *, kind: str, labelers, seconds: int) -> go.Figure:
    kept = keep(judgements, labelers=labelers, kinds=[kind], slower_than_ms=1000 * seconds)
    name = f"{len(kept)} judgements"
    figure = plot_agreement_filters({name: agreement_matrix(kept)}, {name: pairwise_agreement(kept)})
    return figure.update_layout(updatemenus=[])


def explore_budget(runs: Sequence[Run], paths: pd.DataFrame, *, prompts: int = 3) -> ipywidgets.VBox:
    """The frontier of `budget_paths` with a budget that moves: a line on it, who stands where, and what they write.

    The table compares by the chosen score; the texts are those of one world and seed. Where nobody spends that much, or
    no completions were kept, a line says so.
    """
    return _BudgetExplorer(runs, paths, prompts=prompts).box


class _BudgetExplorer:
    def __init__(self, runs: Sequence[Run], paths: pd.DataFrame, *, prompts: int):
        self.runs, self.paths, self.prompts, self.samples = runs, paths, prompts, {}
        self.curves, self.ends = budgets.mean_paths(paths), budgets.mean_ends(paths)
        choices = budgets.round_budgets(paths)
        options = [(nats(value), value) for value in choices]
        middle = min(choices, key=lambda budget: abs(budget - 2))  # nats
        self.budget = ipywidgets.SelectionSlider(options=options, value=middle, description="budget")
        self.budget.layout.width = "600px"
        self.score = ipywidgets.Dropdown(options=score_columns(paths), description="score")
        units = sorted(set(zip(paths["world"], paths["seed"], strict=True)))
        self.unit = ipywidgets.Dropdown(
            options=[(f"world {world}, seed {seed}", (world, seed)) for world, seed in units], description="texts of"
        )
        self.figure = go.FigureWidget(plot_budget_frontier(self.curves, self.ends).update_layout(updatemenus=[]))
        self.figure.add_vline(x=middle**0.5, line={"dash": "dash", "color": GREY})
        self.numbers, self.texts, self.said = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.Label()
        for control in (self.budget, self.score, self.unit):
            control.observe(self.redraw, names="value")
        controls = ipywidgets.VBox([self.budget, ipywidgets.HBox([self.score, self.unit])])
        self.box = ipywidgets.VBox([controls, self.figure, self.numbers, self.texts, self.said])
        self.redraw({"owner": self.budget})

    def redraw(self, change: dict) -> None:
        """Everything that follows the controls; lines only where it was the score that changed."""
        landed = budgets.at_budget(self.paths, [self.budget.value])
        table = budgets.compared_at_budget(landed, self.score.value)
        sentence = budgets.budget_sentences(table, self.score.value)[0]
        place = self.budget.value**0.5
        with self.figure.batch_update():
            self.figure.layout.shapes[0].update(x0=place, x1=place)
            self.figure.layout.title.text = headline_of(sentence, FRONTIER_READING)[0]
            if change["owner"] is self.score:
                span = score_range(self.curves, self.ends, self.score.value)
                self.figure.layout.yaxis.update(title={"text": axis_label(self.score.value)}, range=span)
                traces = frontier_traces(self.curves, self.ends, self.score.value)
                for shown, drawn in zip(self.figure.data, traces, strict=False):
                    shown.update(x=drawn.x, y=drawn.y, error_y=drawn.error_y)
        self.numbers.value = text_table(table.drop(columns="budget"), digits=2).data
        self._show_texts(landed)

    def _show_texts(self, landed: pd.DataFrame) -> None:
        world, seed = self.unit.value
        self.said.value = self.texts.value = ""
        try:
            if (world, seed) not in self.samples:
                self.samples[world, seed] = samples_of_unit(self.runs, world=world, seed=seed)
            here = landed[(landed["world"] == world) & (landed["seed"] == seed)]
            shown = side_by_side_at(self.samples[world, seed], here, count=self.prompts)
        except WorkbenchError as error:
            self.said.value = str(error)
            return
        shown = shown[
            [name for name in ("prompt", "experiment", "completion", "kl", self.score.value) if name in shown]
        ]
        self.texts.value = text_table(shown, digits=2).data
