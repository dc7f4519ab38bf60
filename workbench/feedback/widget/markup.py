"""The Markdown of a text as nested nodes: a page makes elements of them and sets all text as text, so nothing runs."""

from __future__ import annotations

import re
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

LONGEST, MOST = 30_000, 4_000  # characters, parsed in less than a second; parts, laid out in another
DEEPEST = 50  # elements in each other
# Links, images, HTML, entities and references are not among the rules: a labeler reads of them what the model wrote.
RULES = ("code", "fence", "blockquote", "hr", "list", "heading", "lheading", "table", "escape", "backticks", "emphasis")
PLAIN = {"paragraph_open", "paragraph_close", "inline", "text", "text_special", "code_block"}
MARKS = re.compile(r"[*_`#>|~]|^[ \t]*([-+=]|\d+[.)]\s)", re.MULTILINE)  # without any of these a text is plain
ENDLESS = re.compile(r"([-*_=~`#>|+][ \n]?)\1{79}|(?:\n[ \t\r]*){12}")  # would become a line or nothing
# Formulas, products and powers are no emphasis. The lengths are bounded so that no text takes quadratic time.
VERBATIM = re.compile(
    r"\$\$.{1,500}?\$\$|\$(?!\s)[^$\n]{1,300}(?<!\s)\$(?!\d)|\\\(.{1,300}?\\\)|\\\[.{1,500}?\\\]"
    r"|(?<=[0-9A-Za-z)])\*{1,2}(?=[0-9A-Za-z(])",
    re.DOTALL,
)


def markup(text: str) -> list | None:
    """Texts and nodes {"tag", "nodes", "marker"? of a list item}, or None where `text` is to be shown as it is.

    So is a text without Markdown, too long or too deep, or of which a letter or digit would be lost.
    """
    if len(text) > LONGEST or not MARKS.search(text) or ENDLESS.search(text):
        return None
    found = [part for token in PARSER.parse(text) if not token.hidden for part in token.children or [token]]
    if len(found) > MOST or PLAIN.issuperset(token.type for token in found):
        return None
    unfinished, shown = [[]], ""
    for token in found:
        if token.nesting == -1:
            unfinished.pop()
            continue
        node = _node(token)
        unfinished[-1].append(node)
        if token.nesting == 1:
            unfinished.append(node["nodes"])
        if len(unfinished) > DEEPEST:
            return None
        shown += token.info * (token.type == "fence") + token.content
        if isinstance(node, dict):
            shown += node.get("marker", "")
    letters = ["".join(filter(str.isalnum, each)) for each in (text, shown)]
    return unfinished[0] if letters[0] and letters[0] == letters[1] else None


def _node(token: Token) -> dict[str, Any] | str:
    if token.type == "text_special":  # LaTeX keeps its backslashes
        return token.content if token.content in "*_`#~|>-+." else token.markup
    if not token.tag or token.type == "hardbreak":
        return "\n" if token.tag else token.content
    if token.type == "list_item_open" and token.markup != "*":
        return {"tag": "li", "nodes": [], "marker": token.info + token.markup}
    if token.type in ("fence", "code_block"):
        language = [{"tag": "small", "nodes": [token.info.strip()]}, "\n"] if token.info.strip() else []
        return {"tag": "pre", "nodes": [*language, token.content]}
    return {"tag": token.tag, "nodes": [token.content] if token.content else []}


def _verbatim(state: StateInline, silent: bool) -> bool:
    found = VERBATIM.match(state.src, state.pos, state.posMax)
    if found and not silent:
        state.push("text", "", 0).content = found[0]
    state.pos = found.end() if found else state.pos
    return found is not None


PARSER = MarkdownIt("zero", {"maxNesting": DEEPEST}).enable([*RULES]).disable("text_join")
PARSER.inline.ruler.before("escape", "verbatim", _verbatim)
