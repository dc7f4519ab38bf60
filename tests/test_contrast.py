"""WCAG 2.2: text stands out from its ground by 4.5 : 1 or more, marks by 3 : 1, on light and on dark pages."""

import re

import pytest
from test_plots import FIGURES

from workbench.pipeline import report
from workbench.plots.theme import GREY, GROUND, INK, PALETTE
from workbench.studies.comparison import figures

TEXT, MARK = 4.5, 3.0
NAMED = {"white": "#ffffff", "black": "#000000"}


def rgba(color: str) -> tuple[float, float, float, float]:
    """Red, green, blue from 0 to 255 and opacity of a colour as CSS or plotly writes it."""
    color = NAMED.get(color.strip(), color.strip())
    if color.startswith("#"):
        digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
        return (*(int(digits[place : place + 2], 16) for place in (0, 2, 4)), 1.0)
    numbers = [float(number) for number in re.findall(r"[\d.]+", color)]
    return (*numbers[:3], numbers[3] if len(numbers) > 3 else 1.0)


def luminance(color) -> float:
    """Relative luminance, https://www.w3.org/TR/WCAG22/#dfn-relative-luminance."""
    shares = [value / 255 for value in color[:3]]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def over(color: str, ground: str) -> tuple[float, ...]:
    """The colour as it is seen on an opaque ground."""
    *channels, opacity = rgba(color)
    return tuple(opacity * top + (1 - opacity) * below for top, below in zip(channels, rgba(ground)[:3], strict=True))


def contrast(color: str, ground: str) -> float:
    """https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio"""
    low, high = sorted((luminance(over(color, ground)), luminance(rgba(ground))))
    return (high + 0.05) / (low + 0.05)


def opaque(color: str, ground: str) -> str:
    return f"rgb{over(color, ground)}"


@pytest.mark.parametrize(
    ("color", "ground", "ratio"),
    [("#000", "white", 21.0), ("#767676", "#ffffff", 4.54), ("rgba(0, 0, 0, 0.5)", "white", 3.98)],
)
def test_contrast_is_that_of_known_pairs(color, ground, ratio):
    assert contrast(color, ground) == pytest.approx(ratio, abs=0.04)


# Figures, which bring their own ground


@pytest.mark.parametrize("color", [*PALETTE, GREY])
def test_marks_are_seen_on_the_ground_of_a_figure_and_on_the_dark_ones_of_notebooks(color):
    for ground in (GROUND, "#111111", "#1e1e1e"):
        assert contrast(color, ground) >= MARK


def colors_of(trace) -> list[str]:
    """What draws the data of a trace that is named or stands alone."""
    found = [trace.line.color, trace.marker.color] if trace.type == "scatter" else []
    found = [trace.marker.line.color or trace.marker.color] if trace.type == "bar" else found
    return [color for color in found if isinstance(color, str)]


@pytest.mark.parametrize("name", FIGURES)
def test_texts_and_named_marks_of_every_figure_are_legible(name):
    draw, table = FIGURES[name]
    figure = draw(table)
    assert contrast(figure.layout.font.color, figure.layout.paper_bgcolor) >= TEXT
    assert contrast(figure.layout.hoverlabel.font.color, figure.layout.hoverlabel.bgcolor) >= TEXT
    named = [trace for trace in figure.data if trace.name and trace.showlegend is not False]
    for color in (color for trace in named for color in colors_of(trace)):
        assert contrast(color, figure.layout.plot_bgcolor) >= MARK
    for menu in figure.layout.updatemenus:
        assert contrast(menu.font.color, menu.bgcolor) >= TEXT
    for heat in figure.select_traces({"type": "heatmap"}):
        for _, cell in heat.colorscale if heat.texttemplate else []:
            assert contrast(heat.textfont.color, opaque(cell, GROUND)) >= TEXT


def test_a_number_is_read_on_every_cell_of_win_rates():
    for cell in (figures.LOSS, figures.EVEN, figures.WIN):
        assert contrast(INK, opaque(cell, GROUND)) >= TEXT


# The report


def rules(css: str) -> list[tuple[str, dict[str, str]]]:
    """Selectors and declarations, in order."""
    found = re.findall(r"([^{}]+)\{([^{}]*)\}", re.sub(r"/\*.*?\*/", "", css, flags=re.S))
    lines = [(name.strip(), [line.split(":", 1) for line in body.split(";") if ":" in line]) for name, body in found]
    return [(name, {key.strip(): value.strip() for key, value in each}) for name, each in lines]


def schemes(css: str) -> dict[str, list]:
    """The rules by day, and those that come on top of them by night."""
    css = re.sub(r"/\*.*?\*/", "", css, flags=re.S)
    block = r"@media ([^{]*)\{((?:[^{}]*\{[^{}]*\})*)\s*\}"
    night = "".join(body for asked, body in re.findall(block, css) if "dark" in asked)
    day = rules(re.sub(block, "", css))
    return {"light": day, "dark": day + rules(night)}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_of_the_report_is_legible_on_the_page_and_on_its_panels(scheme):
    found = schemes(report.stylesheet())[scheme]
    colors = {}
    for selector, lines in found:
        colors |= {name: value for name, value in lines.items() if selector == ":root" and name.startswith("--")}
    grounds = [colors["--page"], colors["--panel"]]
    for name in ("--text", "--soft", "--link", "--good", "--bad"):
        assert min(contrast(colors[name], ground) for ground in grounds) >= TEXT, (scheme, name)
    code = {s: lines["color"] for s, lines in found if s.startswith(".highlight .") and "color" in lines}
    del code[".highlight .w"]  # blanks
    faint = {s: color for s, color in code.items() if contrast(color, colors["--panel"]) < TEXT}
    assert len(code) > 20 and faint == {}, (scheme, faint)
