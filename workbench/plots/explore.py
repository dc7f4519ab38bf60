"""Any figure behind controls, redrawn by a running kernel; in exported pages plotly's own menus and sliders do it."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets
import plotly.graph_objects as go

from workbench import WorkbenchError


def explore(draw: Callable[..., go.Figure], **choices) -> ipywidgets.VBox:
    """The figure that `draw` makes of one choice each, drawn again when a control moves.

    `choices` are by the name of draw's argument: a list or dict is a menu, its first entry chosen, a tuple what may be
    ticked, all of it at first, a range a slider, a bool a box; a widget is taken as it is. Where a choice leaves
    nothing to draw (WorkbenchError) the figure stays and a line below says why; without a first figure that is raised.
    """
    controls = {name: _control(name.replace("_", " "), choice) for name, choice in choices.items()}
    figure = go.FigureWidget(draw(**{name: control.value for name, control in controls.items()}))
    said = ipywidgets.Label()

    def redraw(_change: dict) -> None:
        try:
            drawn = draw(**{name: control.value for name, control in controls.items()})
        except WorkbenchError as error:
            said.value = str(error)
            return
        said.value = ""
        with figure.batch_update():
            figure.data = ()
            figure.add_traces(drawn.data)
            figure.layout = drawn.layout

    for control in controls.values():
        control.observe(redraw, names="value")
    lists = [control for control in controls.values() if isinstance(control, ipywidgets.SelectMultiple)]
    others = [control for control in controls.values() if control not in lists]
    return ipywidgets.VBox([ipywidgets.HBox([*lists, ipywidgets.VBox(others)]), figure, said])


def _control(name: str, choice) -> ipywidgets.Widget:
    if isinstance(choice, ipywidgets.Widget):
        return choice
    if isinstance(choice, bool):
        return ipywidgets.Checkbox(choice, description=name)
    if isinstance(choice, range):
        ends = {"min": choice.start, "max": choice[-1], "step": choice.step}
        return ipywidgets.IntSlider(value=choice.start, description=name, continuous_update=False, **ends)
    if isinstance(choice, tuple):
        several = {"options": choice, "value": choice, "rows": min(12, len(choice))}
        return ipywidgets.SelectMultiple(description=name, layout={"width": "420px"}, **several)
    return ipywidgets.Dropdown(options=choice, description=name)
