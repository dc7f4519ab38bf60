"""Executed notebooks as offline pages: a summary of the stages with their story, the tour, a page per notebook."""

import base64
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path

import jinja2
import nbformat
import plotly.io
from latex2mathml.converter import convert
from nbconvert.filters.ansi import ansi2html
from nbconvert.filters.markdown_mistune import InvalidNotebook, IPythonRenderer, MarkdownWithMath
from plotly.offline import get_plotlyjs
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from workbench import WorkbenchError
from workbench.runs.files import read_json, replace_file, replace_folder, repository_root, shown
from workbench.runs.record import refuse_other_report

# Filled in with the key numbers of the notebooks' stages; a clause whose numbers were not measured is left out.
SENTENCES = (
    "a model of {pretrain[parameters]:,} weights reads text until it loses {pretrain[held-out loss]:.2f} nats per "
    "token of other text; its answers earn {pretrain[gold at T = 1]:.2f} of gold reward; "
    "after demonstrations they earn {sft[gold at T = 1]:.2f} of gold",
    "two labelers agree on {preferences[labeler agreement]:.0%} of pairs of answers; "
    "what they choose is better by gold in {preferences[agreement with gold]:.0%} of pairs; "
    "the reward model orders {reward_model[accuracy vs labels]:.0%} of held-out pairs as labelers do; "
    "it orders {reward_model[accuracy vs gold]:.0%} as gold does",
    "{policy_gradient[algorithm]} with a price of {policy_gradient[kl_coef]:g} per nat of KL moves "
    "{policy_gradient[kl at T = 1]:.1f} nats, to a score of {policy_gradient[proxy at T = 1]:.2f} by the reward model; "
    "its gold is {policy_gradient[gold at T = 1]:.2f}, a change of {policy_gradient[gold gain at T = 1]:+.2f}",
    "without a price {free[algorithm]} moves {free[kl at T = 1]:.1f} nats, to a score of {free[proxy at T = 1]:.2f} by "
    "the reward model; its gold is {free[gold at T = 1]:.2f}, a change of {free[gold gain at T = 1]:+.2f}",
    "with no training, the best of {best_of_n[n at the peak]} answers by the reward model have "
    "{best_of_n[gold at its peak]:.2f} of gold; "
    "{direct_alignment[method]}, trained on comparisons alone, moves {direct_alignment[kl at T = 1]:.1f} nats; "
    "its gold is {direct_alignment[gold at T = 1]:.2f}",
)
GLOSSARY = {
    "gold": "the true reward, which nobody has outside a toy world: measured here, never trained on",
    "reward model": "fitted to comparisons; its score, the proxy, stands in for gold while a policy is trained",
    "demonstrations": "answers that were written for prompts, imitated in supervised fine-tuning (SFT)",
    "labelers": "those, people or simulated, who say which of two answers is better",
    "nat": "unit of loss and KL: one nat more of loss, and a text is e times less likely",
    "KL": "how far a policy has moved from the one it started from, in nats per answer",
    "price": "what a nat of KL costs in reward during training (kl_coef)",
    "PPO": "trains a policy on the reward model's scores of its own answers, in small steps",
    "DPO": "trains a policy on comparisons directly, without a reward model",
    "the best of": "draw so many answers to each prompt, and keep the one that the reward model likes most",
}


def story(stages: Iterable[tuple[str, Mapping[str, object]]]) -> list[str]:
    """Sentences of stages, each (name of the notebook, key numbers); only of notebooks run once, 06 once free of KL."""
    found = defaultdict(list)
    for notebook, numbers in stages:
        free = notebook == "06_policy_gradient" and numbers.get("kl_coef") == 0
        found["free" if free else notebook[3:]].append(numbers)
    facts = {name: runs[0] for name, runs in found.items() if len(runs) == 1}
    told = ["; ".join(filter(None, (_filled(each, facts) for each in text.split("; ")))) for text in SENTENCES]
    return [f"{sentence[0].upper()}{sentence[1:]}." for sentence in told if sentence]


def _filled(clause: str, facts: Mapping[str, Mapping[str, object]]) -> str:
    try:
        text = clause.format_map(facts)
    except (KeyError, TypeError, ValueError):  # not measured
        return ""
    text = re.sub(r"(?<![\w-])(a2c|[a-z]{1,3}po|rloo)\b", lambda name: name[0].upper(), text)
    return re.sub(r"(?<![\w.])-(?=\d)", "−", text)


def words_of(sentences: Iterable[str]) -> dict[str, str]:
    """The entries of the glossary that these sentences use."""
    text = " ".join(sentences)
    return {word: said for word, said in GLOSSARY.items() if re.search(rf"\b{word}", text, re.IGNORECASE)}


# The pages

PLOTLY = "application/vnd.plotly.v1+json"
PICTURES = ("image/svg+xml", "image/png", "image/jpeg")
# Executed notebook of a folder, and what finding it says about the stage: the first that exists counts.
STATUS = {"notebook.ipynb": "finished", "notebook.part.ipynb": "unfinished", "notebook.failed.ipynb": "failed"}
MARK_OF_FAILURE = "papermill-error-cell-tag"  # cells that papermill adds; the error itself is shown anyway
TOUR = "00_tour"
HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Page:
    """One executed notebook."""

    name: str  # of the stage
    notebook: str  # name of the notebook that was executed
    title: str
    status: str
    minutes: float
    numbers: dict[str, float | str | None]  # the stage's key numbers
    parameters: dict[str, object]  # those that differ from the notebook's own
    cells: list[dict]

    @property
    def file(self) -> str:
        """Name of the page's file: the stage's; one that is long, not plain or "index" is told apart by its hash."""
        plain = re.sub(r"[^\w.+=-]+", "_", self.name)[:60]
        if plain == self.name and plain.lower() != "index":
            return f"{plain}.html"
        return f"{plain}-{hashlib.sha256(self.name.encode(errors='replace')).hexdigest()[:6]}.html"


def write_report(folder: Path, *, only: Sequence[str] = ()) -> Path:
    """Write `folder`/report whole or not at all; path of its index.

    `only` names the stages that are shown, all where it is empty. WorkbenchError where nothing was executed there.
    """
    found = executed_notebooks(folder)
    if not found:
        raise WorkbenchError(f"{shown(folder)} holds no executed notebook: make some with `workbench run ... --out`.")
    if missing := set(only) - {path.parent.name for path in found}:
        raise WorkbenchError(f"{shown(folder)} holds no executed notebook of stage {', '.join(sorted(missing))}.")
    refuse_other_report(folder)
    pages = [read_page(path) for path in found if not only or path.parent.name in only]
    content = {"plotly.min.js": get_plotlyjs(), "style.css": stylesheet()}
    with explained(folder):
        content["index.html"] = index_html(pages, shown(folder), chosen=bool(only))
    for page in pages:
        with explained(folder / page.name):
            content[page.file] = page_html(page, pages)
    with replace_folder(folder / "report") as report:
        for name, text in content.items():
            (report / name).write_text(text, encoding="utf-8", errors="replace")
    return folder / "report" / "index.html"


def index_html(pages: list[Page], place: str, *, chosen: bool) -> str:
    """The story and its words, the table of stages, then the tour, or without one the first figure of `chosen` ones."""
    tour = next((page for page in pages if page.notebook == TOUR), None)
    cells = rendered(without_title(tour.cells), pages) if tour else first_figures(pages) if chosen else []
    told = story((page.notebook, page.numbers) for page in pages if page.status == "finished")
    about = {"title": tour.title if tour else place, "place": place, "story": told, "words": words_of(told)}
    return template().render(page=None, pages=pages, cells=cells, **about)


def first_figures(pages: list[Page]) -> list[dict]:
    """For the template: the question of each page as a link to it, and the first figure there."""
    cells = []
    for page in pages:
        outputs = (output for cell in page.cells for output in cell.get("outputs", []))
        figure = next((output["data"] for output in outputs if PLOTLY in output.get("data", {})), None)
        if figure:
            cells.append({"text": f'<h2><a href="{page.file}">{escape(page.title)}</a></h2>'})
            cells.append({"outputs": [data_html(figure, f"first-{len(cells)}")]})
    return cells


def page_html(page: Page, pages: list[Page]) -> str:
    """One executed notebook, code folded away."""
    return template().render(page=page, pages=pages, cells=rendered(page.cells, pages), title=page.title)


def template() -> jinja2.Template:
    """The one template of the index and the pages."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True)
    environment.filters["number"] = number
    return environment.get_template("report.html")


def executed_notebooks(folder: Path) -> list[Path]:
    """The executed notebook of the folder itself and of each folder in it."""
    places = [folder, *sorted(path for path in folder.glob("*") if path.is_dir() and path.name != "report")]
    found = [next((place / name for name in STATUS if (place / name).is_file()), None) for place in places]
    return [path for path in found if path]


def read_page(path: Path) -> Page:
    """An executed notebook and its stage's key numbers; WorkbenchError where the file is damaged."""
    content, summary = read_json(path), path.with_name("summary.json")
    numbers = read_json(summary) if summary.exists() else {}
    with explained(path.parent):
        cells, about = content["cells"], content.get("metadata", {})
        cells = [{"metadata": {}, "source": "", "outputs": []} | cell for cell in cells]  # other tools leave some out
        titles = [line[2:].strip() for cell in cells for line in lines_of(cell) if line.startswith("# ")]
        executed = about.get("papermill", {})
        return Page(
            name=path.parent.name,
            notebook=about.get("workbench", {}).get("notebook", path.parent.name),
            title=next(iter(titles), path.parent.name),
            status=STATUS[path.name],
            minutes=(executed.get("duration") or 0) / 60,
            numbers=dict(numbers),
            parameters=dict(executed.get("parameters", {})),
            cells=[cell for cell in cells if MARK_OF_FAILURE not in cell["metadata"].get("tags", [])],
        )


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn what an odd notebook or summary does to the code that shows it into one sentence."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, InvalidNotebook) as error:
        if isinstance(error, WorkbenchError):
            raise
        raise WorkbenchError(
            f"{shown(folder)} holds a damaged file or no notebook of nbformat 4 ({type(error).__name__}: {error}): run "
            "that stage again, or name the others with --only."
        ) from error


def lines_of(cell: dict) -> list[str]:
    """Lines of a markdown cell, none of other cells."""
    return joined(cell["source"]).split("\n") if cell["cell_type"] == "markdown" else []


def joined(text: str | list[str]) -> str:
    """Text that a notebook file may hold as a list of lines."""
    return text if isinstance(text, str) else "".join(text)


def number(value: float | str | None) -> str:
    """A key number for reading."""
    if value is None:
        return "undefined"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def without_title(cells: list[dict]) -> list[dict]:
    """The cells without the first title line, which the index has as its own."""
    for index, cell in enumerate(cells):
        lines = lines_of(cell)
        titles = [line for line in lines if line.startswith("# ")]
        if titles:
            lines.remove(titles[0])
            return [*cells[:index], cell | {"source": "\n".join(lines)}, *cells[index + 1 :]]
    return cells


def rendered(cells: list[dict], pages: list[Page]) -> list[dict]:
    """For the template, per cell: HTML of `text`, or of `code` and `outputs`."""
    links, shown_cells = {page.notebook: page.file for page in pages}, []
    for index, cell in enumerate(cells):
        source = joined(cell["source"])
        if cell["cell_type"] == "markdown":
            text = markdown_html(source, links, attachments=cell.get("attachments", {}))
            shown_cells.append({"text": text})
        elif cell["cell_type"] == "code" and source.strip():
            outputs = [output_html(output, f"{index}-{count}") for count, output in enumerate(cell["outputs"])]
            code = highlight(source, PythonLexer(), HtmlFormatter())
            shown_cells.append({"code": code, "outputs": [output for output in outputs if output]})
    return shown_cells


def output_html(output: dict, name: str) -> str:
    """HTML of one output of a cell, none of empty lines; `name` is unique on its page."""
    if output["output_type"] == "stream":
        text = joined(output["text"]).rstrip()
        return f'<pre class="{escape(output["name"])}">{ansi2html(text)}</pre>' if text else ""
    if output["output_type"] == "error":
        return f'<pre class="error">{ansi2html(chr(10).join(output.get("traceback", [])))}</pre>'
    return data_html(output.get("data", {}), name)


def data_html(data: dict, name: str) -> str:
    """HTML of the richest form of an output that works without a kernel and a network."""
    if PLOTLY in data:
        return f'<div class="figure">{figure_html(data[PLOTLY], name)}</div>'
    if "text/html" in data:
        return f'<div class="html">{joined(data["text/html"])}</div>'
    for kind in PICTURES:
        if kind in data:
            return f'<div class="figure"><img src="{escape(picture_url(kind, joined(data[kind])))}" alt="figure"></div>'
    if "text/markdown" in data or "text/latex" in data:
        text = joined(data.get("text/markdown", data.get("text/latex", "")))
        return f'<div class="html">{markdown_html(text, {}, attachments={})}</div>'
    return f"<pre>{escape(joined(data.get('text/plain', '')))}</pre>"


def figure_html(figure: dict, name: str) -> str:
    """A plotly figure that the page's plotly.min.js draws, and report.js names for those who hear the page."""
    content = {key: figure[key] for key in ("data", "layout", "frames") if key in figure}
    plain = {key: value for key, value in figure.get("config", {}).items() if "<" not in f"{key}{value}"}
    return plotly.io.to_html(
        content,
        config={"displaylogo": False, "responsive": True} | plain,
        include_plotlyjs=False,
        include_mathjax=False,
        full_html=False,
        validate=False,
        div_id=f"figure-{name}",
        post_script=(HERE / "report.js").read_text(encoding="utf-8"),
    )


def picture_url(kind: str, content: str) -> str:
    """A picture inside the page; notebooks hold SVG as text and the others in base64."""
    encoded = base64.b64encode(content.encode()).decode() if kind == "image/svg+xml" else content.replace("\n", "")
    return f"data:{kind};base64,{encoded}"


def stylesheet() -> str:
    """The report's own style and the colours of code, by day and by night."""
    light, dark = (HtmlFormatter(style=style).get_style_defs(".highlight") for style in ("default", "github-dark"))
    own = (HERE / "report.css").read_text(encoding="utf-8")
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n{own}"


# Markdown: equations become MathML, links to notebooks lead to their pages, nothing needs a network

FUNCTION = "(<m[io]>(?:log|ln|exp|sin|cos|tan|tanh|max|min|sup|inf|det|lim|Pr)</m[io]>)"
THIN_SPACE = '<mspace width="0.167em" />'


def markdown_html(text: str, pages: dict[str, str], *, attachments: Mapping[str, dict]) -> str:
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


# Pictures, for pages that can not run JavaScript


def write_pictures(notebook: Path, folder: Path, *, width: int = 900, scale: float = 1.5) -> list[Path]:
    """Write each figure of `notebook`, in order, to `folder`/<stage>-<number>.png on white; the files.

    Raises WorkbenchError where the notebook was not executed, or no Chromium is there to draw with.
    """
    if not notebook.exists():
        raise WorkbenchError(f"{shown(notebook)} does not exist: run its notebook first.")
    outputs = (output for cell in nbformat.read(notebook, as_version=4).cells for output in cell.get("outputs", []))
    figures = [output["data"][PLOTLY] for output in outputs if PLOTLY in output.get("data", {})]
    written = []
    for number, spec in enumerate(figures, start=1):
        figure = plotly.io.from_json(plotly.io.json.to_json_plotly({key: spec[key] for key in ("data", "layout")}))
        figure.update_layout(paper_bgcolor="white", plot_bgcolor="white")
        path = folder / f"{notebook.parent.name}-{number}.png"
        refuse_other_picture(path, pixels=round(width * scale))
        with replace_file(path) as partial:
            try:
                partial.write_bytes(figure.to_image(format="png", width=width, scale=scale))
            except Exception as error:  # kaleido raises many kinds, all about the browser it drives
                raise WorkbenchError(
                    f"No picture could be drawn ({str(error).splitlines()[0][:120]}): "
                    "install Chromium and set BROWSER_PATH to it, and install this project with [dev]."
                ) from error
        written.append(path)
    return written


def refuse_other_picture(path: Path, *, pixels: int) -> None:
    """WorkbenchError where a file is there already that is no PNG as wide as ours."""
    if path.exists() and path.read_bytes()[16:20] != pixels.to_bytes(4, "big"):
        raise WorkbenchError(
            f"{shown(path)} is no picture of the workbench and would be lost: choose another --pictures."
        )
