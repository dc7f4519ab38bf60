"""Markdown cells as HTML that needs no network: equations become MathML, links to notebooks lead to their pages."""

import re
from collections.abc import Mapping
from html import escape
from types import MappingProxyType

from latex2mathml.converter import convert
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from workbench.runs.files import repository_root

FUNCTION = "(<m[io]>(?:log|ln|exp|sin|cos|tan|tanh|max|min|sup|inf|det|lim|Pr)</m[io]>)"
NONE: Mapping = MappingProxyType({})
THIN_SPACE = '<mspace width="0.167em" />'


def to_html(text: str, pages: dict[str, str], *, attachments: Mapping[str, dict] = NONE) -> str:
    """HTML of a markdown cell with its `attachments`; `pages` maps names of notebooks to the files of their pages."""
    return MarkdownWithMath(renderer=Renderer(pages, attachments)).render(text)


def to_mathml(tex: str, display: str) -> str:
    """MathML of an equation, `display` "block" or "inline"; the TeX itself where it cannot be converted."""
    plain = re.sub(r"(begin|end)\{aligned\}", r"\1{split}", tex)  # the same layout by the name that is known
    try:
        mathml = convert(plain, display=display)
    except Exception:  # the converter has no common class for what it does not understand
        return unconverted(tex, display)
    mathml = mathml.replace(r"\_", "_")
    mathml = mathml.replace("<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>")  # \sim, which comes out as a letter
    mathml = re.sub(rf"(</m(?:i|n|row|sub|sup|frac)>){FUNCTION}", rf"\1{THIN_SPACE}\2", mathml)
    mathml = re.sub(rf"{FUNCTION}(?=<m(?:i|n|frac|sub|sup|sqrt)\b)", rf"\1{THIN_SPACE}", mathml)
    understood = "\\" not in mathml and "<mi>&</mi>" not in mathml and tex.count("{") == tex.count("}")
    return mathml if understood else unconverted(tex, display)


def unconverted(tex: str, display: str) -> str:
    """The equation as its author wrote it."""
    tag = "pre" if display == "block" else "code"
    return f'<{tag} class="tex">{escape(tex.strip())}</{tag}>'


class Renderer(IPythonRenderer):
    """nbconvert's renderer with MathML, links between pages, and no picture from elsewhere."""

    def __init__(self, pages: dict[str, str], attachments: Mapping[str, dict]):
        folder = str(repository_root() / "notebooks")
        shown = {"escape": False, "exclude_anchor_links": True, "embed_images": True, "path": folder}
        super().__init__(**shown, attachments=dict(attachments))
        self.pages = pages

    def block_math(self, body: str) -> str:
        """A displayed equation."""
        return to_mathml(body, "block")

    def inline_math(self, body: str) -> str:
        """An equation in a line of text."""
        return to_mathml(body, "inline")

    def latex_environment(self, name: str, body: str) -> str:
        """An equation of several lines."""
        body = body if name.startswith("equation") else rf"\begin{{{name}}}{body}\end{{{name}}}"
        return to_mathml(body, "block")

    def link(self, text: str, url: str, title: str | None = None) -> str:
        """A link; to a notebook without a page of this report just its text."""
        notebook = re.fullmatch(r"(?:\./)?([^/:]+)\.ipynb(?:#.*)?", url)
        if notebook and notebook[1] not in self.pages:
            return text
        return super().link(text, self.pages[notebook[1]] if notebook else url, title)

    def image(self, text: str, url: str, title: str | None = None) -> str:
        """An embedded picture; one on the network becomes a link."""
        if url.startswith(("http:", "https:", "//")):
            return self.link(text or url, url, title)
        return super().image(text, url, title)
