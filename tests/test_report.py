"""Report: what an executed folder becomes, and that a browser draws it without asking anybody for anything."""

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import kaleido
import nbformat
import pandas as pd
import plotly.graph_objects as go
import pytest
from chromium import CHROMIUM

from workbench import WorkbenchError, cli, plots
from workbench.analysis.statistics import Interval
from workbench.pipeline import report
from workbench.pipeline.report import story

PLOTLY = "application/vnd.plotly.v1+json"
EQUATION = (
    r"$$J(\theta) = \mathbb{E}_{y\sim\pi_\theta}\left[r(x, y) - \beta\log\frac{\pi_\theta}{\pi_\text{ref}}\right]$$"
)


def output(kind: str, content) -> nbformat.NotebookNode:
    return nbformat.v4.new_output("display_data", data={kind: content})


def figure() -> nbformat.NotebookNode:
    drawn = go.Figure(go.Scatter(x=[0, 1, 2], y=[0, 2, 1], mode="markers+lines", marker={"size": 12}, name="gold"))
    drawn.update_layout(title="Gold turns down", xaxis_title="√KL (√nats)")
    return output(PLOTLY, json.loads(drawn.to_json()))


def table(text: str) -> nbformat.NotebookNode:
    frame = pd.DataFrame({"completion": [text], **{f"column_{number}": [number] for number in range(40)}})
    return output("text/html", frame.to_html())


def write_stage(folder: Path, *outputs, text: str = "", name: str = "notebook.ipynb", **summary) -> Path:
    folder.mkdir(parents=True)
    cells = [
        nbformat.v4.new_markdown_cell(f"# What does {folder.name} ask?\n\n{text}"),
        nbformat.v4.new_code_cell("secret_code = 1", outputs=list(outputs)),
    ]
    metadata = {
        "workbench": {"notebook": folder.name},
        "papermill": {"duration": 90.0, "parameters": {"kl_coef": 0.05}},
    }
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), folder / name)
    if summary:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def read(folder: Path, name: str) -> str:
    return (folder / "report" / name).read_text()


@pytest.fixture
def executed(tmp_path):
    """A tour, a finished stage and a failed one."""
    write_stage(tmp_path / "00_tour", figure(), table("<b>bold</b> <script>hack()</script>"), text=EQUATION)
    write_stage(
        tmp_path / "06_policy", figure(), text="Price: $x^2$, not `$HOME`.", gold=0.91234, best="ppo", empty=None
    )
    write_stage(tmp_path / "07_failed", name="notebook.failed.ipynb")
    return tmp_path


# The files


def test_the_index_has_a_row_per_stage_with_question_status_minutes_and_numbers(executed):
    assert report.write_report(executed) == executed / "report" / "index.html"
    rows = [
        re.sub(r"<[^>]+>", " ", row).split()
        for row in re.findall("<tr><td>.*?</tr>", read(executed, "index.html"), re.S)
    ]
    assert " ".join(rows[1]) == "06_policy What does 06_policy ask? finished 1.5 gold 0.912 best ppo empty undefined"
    assert rows[2][-2:] == ["failed", "1.5"]
    for name in ("00_tour", "06_policy", "07_failed"):
        assert f'href="{name}.html"' in read(executed, "index.html")


def test_the_index_tells_the_tour_without_its_code_and_pages_fold_code_away(executed):
    report.write_report(executed)
    index, page = read(executed, "index.html"), read(executed, "00_tour.html")
    assert "secret_code" not in index and "<details" not in index
    assert index.count("What does 00_tour ask?</h1>") == 1
    assert 'id="figure-1-0"' in index and "<math" in index
    assert page.index('<details class="code">') < page.index("secret_code")


def test_the_index_opens_with_the_story_of_the_runs_and_its_words_and_the_table_follows(tmp_path):
    gold = {"gold at T = 1": 0.25, "kl at T = 1": 2.5}
    for name, notebook, numbers in (
        ("pre", "01_pretrain", {"parameters": 120_000, "held-out loss": 0.5, "gold at T = 1": -0.125}),
        ("tuned", "02_sft", gold),
        ("06_policy", "06_policy_gradient", {"kl_coef": 0.5, "algorithm": "grpo", "proxy at T = 1": 1.5, **gold}),
        ("07_other", "07_best_of_n", {"gold at its peak": None, "n at the peak": 8}),
    ):
        path = write_stage(tmp_path / name, **numbers) / "notebook.ipynb"
        content = json.loads(path.read_text())
        content["metadata"]["workbench"]["notebook"] = notebook
        path.write_text(json.dumps(content))
    report.write_report(tmp_path)
    index = read(tmp_path, "index.html")
    assert re.findall("<li>(.*?)</li>", index) == [
        "A model of 120,000 weights reads text until it loses 0.50 nats per token of other text; its answers earn "
        "−0.12 of gold reward; after demonstrations they earn 0.25 of gold.",
        "GRPO with a price of 0.5 per nat of KL moves 2.5 nats, to a score of 1.50 by the reward model.",
    ]
    words = re.findall("<dt>(.*?)</dt>", index)
    assert words == ["gold", "reward model", "demonstrations", "nat", "KL", "price"]  # the words of the sentences
    assert index.index("<ol") < index.index("<dl") < index.index('<table class="stages">')


def test_runs_of_several_seeds_are_no_single_story():
    numbers = {"gold at T = 1": 0.25, "kl at T = 1": 2.5, "kl_coef": 0.0, "algorithm": "ppo", "proxy at T = 1": 1.0}
    once = [("06_policy_gradient", numbers)]
    assert story(once) == ["Without a price PPO moves 2.5 nats, to a score of 1.00 by the reward model."]
    assert story(2 * once) == [] == story([("06_policy_gradient", {"kl_coef": "none"})])


def test_without_a_tour_the_index_is_the_table(tmp_path):
    write_stage(tmp_path / "02_sft")
    report.write_report(tmp_path)
    assert "<section" not in read(tmp_path, "index.html")


def test_without_a_tour_the_index_shows_the_first_figure_of_each_chosen_stage(tmp_path):
    write_stage(tmp_path / "02_sft", figure())
    write_stage(tmp_path / "09_budget", table("words"), figure(), figure())
    write_stage(tmp_path / "10_more", table("words"))
    report.write_report(tmp_path, only=["09_budget", "10_more"])
    index = read(tmp_path, "index.html")
    assert '<h2><a href="09_budget.html">What does 09_budget ask?</a></h2>' in index
    assert index.count('<div class="figure">') == 1 and "secret_code" not in index and '<h2><a href="10' not in index


def test_the_folder_of_a_single_notebook_has_a_report_too(tmp_path):
    report.write_report(write_stage(tmp_path / "low_kl"))
    assert "What does low_kl ask?" in read(tmp_path / "low_kl", "low_kl.html")


def test_writing_twice_gives_the_same_bytes_and_leaves_nothing_else(executed):
    contents = []
    for _ in range(2):
        report.write_report(executed)
        contents.append({path.name: path.read_bytes() for path in (executed / "report").iterdir()})
    assert contents[0] == contents[1]
    assert sorted(contents[0]) == sorted(
        ["index.html", "00_tour.html", "06_policy.html", "07_failed.html", "plotly.min.js", "style.css"]
    )
    assert sorted(path.name for path in executed.iterdir()) == ["00_tour", "06_policy", "07_failed", "report"]


def test_an_error_on_the_way_leaves_the_old_report(executed, monkeypatch):
    report.write_report(executed)
    before = read(executed, "index.html")
    (executed / "06_policy" / "summary.json").write_text('{"gold": 0.1}')
    monkeypatch.setattr(report, "page_html", lambda page, pages: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.write_report(executed)
    assert read(executed, "index.html") == before
    assert len(list(executed.iterdir())) == 4


@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} IS MISSING: pictures of figures are not tested")
@pytest.mark.filterwarnings("ignore:The kopts argument is ignored")
def test_pictures_are_of_the_named_stages_or_of_the_tour(executed, monkeypatch, request):
    monkeypatch.setenv("BROWSER_PATH", str(CHROMIUM))
    kaleido.start_sync_server()  # one Chromium for both
    request.addfinalizer(kaleido.stop_sync_server)
    pictures = executed / "pictures"
    for options, name in (["--only", " 06_policy,"], "06_policy-1.png"), ([], "00_tour-1.png"):
        assert cli.main(["report", str(executed), *options, "--pictures", str(pictures)]) == 0
        drawn = (pictures / name).read_bytes()
        assert drawn.startswith(b"\x89PNG") and int.from_bytes(drawn[16:20], "big") == 1350  # 900 points wide, 1.5 each
    assert sorted(path.name for path in pictures.iterdir()) == ["00_tour-1.png", "06_policy-1.png"]


def test_a_folder_without_executed_notebooks_and_a_damaged_one_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(WorkbenchError, match="holds no executed notebook"):
        report.write_report(tmp_path)
    assert not (tmp_path / "report").exists()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notebook.ipynb").write_text('{"cells": [')
    with pytest.raises(WorkbenchError, match="damaged"):
        report.write_report(tmp_path)


@pytest.mark.parametrize(
    "name", ["mine.html", "index.html", "notes.txt", "style.css", "figures/", ".git/", "index.html/"]
)
def test_a_report_that_the_workbench_did_not_write_is_left_alone(executed, name, capsys):
    own = executed / "report" / name
    own.parent.mkdir()
    own.mkdir() if name.endswith("/") else own.write_text("<p>mine</p>", encoding="utf-8")
    assert cli.main(["report", str(executed)]) == 2
    told = capsys.readouterr().err
    assert name.rstrip("/") in told and "rename it, for example to" in told and told.count("\n") == 1
    assert [path.name for path in (executed / "report").iterdir()] == [name.rstrip("/")]


def test_what_lies_beside_the_pages_or_in_their_place_is_left_alone(executed, tmp_path_factory):
    for _ in range(2):  # our own is replaced
        report.write_report(executed)
    (executed / "report" / "notes.txt").touch()
    with pytest.raises(WorkbenchError, match=r"no report of the workbench \(notes.txt\)"):
        report.write_report(executed)
    assert (executed / "report" / "notes.txt").exists()
    (executed / "report").rename(executed / "report-1")
    for put in (lambda path: path.write_text("mine"), lambda path: path.symlink_to(tmp_path_factory.mktemp("other"))):
        put(executed / "report")
        with pytest.raises(WorkbenchError, match="no report of the workbench"):
            report.write_report(executed)
        (executed / "report").unlink()


def test_a_picture_that_the_workbench_did_not_draw_is_left_alone(executed, capsys):
    (executed / "pictures").mkdir()
    (executed / "pictures" / "00_tour-1.png").write_bytes(b"mine")
    assert cli.main(["report", str(executed), "--pictures", str(executed / "pictures")]) == 2
    assert "00_tour-1.png is no picture of the workbench" in capsys.readouterr().err
    assert (executed / "pictures" / "00_tour-1.png").read_bytes() == b"mine"


NAMES = ["index", "Index", 'a"b', "<script>hack()<", "a#b?c%20d", "é√", "r" * 250, "a'onload='x", "{{ x }}", "&amp;"]


def tags(html: str) -> list[tuple]:
    """What a browser would make elements of: the names of tags and of their attributes, in order."""
    found, parser = [], HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, [name for name, _ in attributes]))
    parser.feed(html)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_stage_is_text_and_leads_to_its_page(tmp_path, name):
    made = {}
    for stage in ("plain", name):
        folder = tmp_path / str(len(made))
        written = write_stage(folder / "written", figure()).rename(folder / stage)
        (written / "summary.json").write_text(json.dumps({stage: stage}))
        report.write_report(folder, only=[stage])
        index = read(folder, "index.html")
        (link,) = {unquote(unescape(link)) for link in re.findall(r'<a href="([^"]+)">', index)}
        assert link != "index.html" and "What does written ask?</h1>" in read(folder, link)
        assert f"<b>{stage}</b>" in unescape(read(folder, link))
        made[stage] = tags(index) + tags(read(folder, link))
    assert made["plain"] == made[name]


def odd_notebook(cell: dict, **metadata) -> str:
    return json.dumps({"cells": [cell], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})


CODE = {"cell_type": "code", "source": "x"}
PICTURE = {"a.png": {"image/png": "aGVsbG8="}}
SHOWN = [
    {"cell_type": "markdown", "source": "![x](attachment:a.png)", "attachments": PICTURE},
    CODE,
    CODE | {"outputs": [{"output_type": "display_data"}]},
    {"cell_type": "raw"},
    {"cell_type": "markdown"},
]
REFUSED = [
    *("[]", "3", "null", "{}", '{"cells": {"a": 1}}', '{"cells": [3]}', '{"cells": [', "\xff", "", "[" * 9999),
    '{"worksheets": []}',
    odd_notebook(CODE | {"outputs": [3]}),
    odd_notebook(CODE | {"outputs": [{"output_type": "stream", "name": "stdout", "text": 3}]}),
    odd_notebook(CODE | {"outputs": [{"output_type": "error", "traceback": 3}]}),
    odd_notebook(CODE | {"outputs": [{"output_type": "display_data", "data": {PLOTLY: "x"}}]}),
    odd_notebook(CODE | {"outputs": [{"output_type": "display_data", "data": {"image/png": 3}}]}),
    odd_notebook(CODE | {"source": 3, "outputs": []}),
    odd_notebook(CODE | {"metadata": {"tags": 3}}),
    odd_notebook(CODE, papermill="x"),
    odd_notebook(CODE, papermill={"duration": "long"}),
    odd_notebook(CODE, papermill={"parameters": [1]}),
    odd_notebook(CODE, workbench=[]),
    odd_notebook({"cell_type": "markdown", "source": "![x](attachment:a.png)"}),
]


@pytest.mark.parametrize("cell", SHOWN)
def test_parts_that_other_tools_leave_out_are_empty(tmp_path, cell):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notebook.ipynb").write_text(odd_notebook(cell, kernelspec={}), encoding="utf-8")
    assert report.write_report(tmp_path).exists()


@pytest.mark.parametrize("content", REFUSED)
def test_what_is_no_notebook_is_a_sentence_and_leaves_no_report(tmp_path, capsys, content):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notebook.ipynb").write_text(content, encoding="latin-1")
    assert cli.main(["report", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and str(tmp_path / "a") in told
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_streams_errors_and_pictures_are_shown_and_plain_text_is_escaped(tmp_path):
    error = nbformat.v4.new_output(
        "error", ename="ValueError", evalue="no", traceback=["\x1b[31mValueError\x1b[0m: <no>"]
    )
    stream = nbformat.v4.new_output("stream", name="stdout", text="loss < 1\n")
    assert report.output_html(nbformat.v4.new_output("stream", name="stdout", text="\n"), "x") == ""
    picture, drawing = output("image/png", "iVBORw0=\n"), output("image/svg+xml", "<svg><script>x</script></svg>")
    write_stage(tmp_path / "a", error, stream, picture, drawing, output("text/plain", "<Figure>"))
    report.write_report(tmp_path)
    page = read(tmp_path, "a.html")
    assert "ValueError</span>: &lt;no&gt;</pre>" in page and "loss &lt; 1</pre>" in page
    assert 'src="data:image/png;base64,iVBORw0="' in page and "data:image/svg+xml;base64," in page
    assert "<script>x" not in page and "<pre>&lt;Figure&gt;</pre>" in page


# Markdown


@pytest.mark.parametrize(
    "tex",
    [
        r"\mathrm{KL}(\pi\,\|\,\pi_\text{ref})",
        r"\begin{aligned} a &= b \\ c &= d \end{aligned}",
        r"\hat{A}_t = \delta_t + \gamma\lambda\hat{A}_{t+1}",
        r"\text{kl\_coef}\cdot x",
        r"\operatorname{clip}(\rho, 1-\epsilon, 1+\epsilon)",
    ],
)
def test_equations_become_mathml_that_an_xml_parser_reads(tex):
    mathml = report.to_mathml(tex, "block")
    root = ElementTree.fromstring(mathml)
    assert root.tag.endswith("math") and root.get("display") == "block"
    assert "\\" not in mathml


@pytest.mark.parametrize("tex", [r"\undefined{x}", r"\frac{a", "a & b", r"\frac{1}{2}}", ""])
def test_what_cannot_be_converted_stays_as_it_was_written(tex):
    html = report.to_mathml(tex, "inline")
    assert html == f'<code class="tex">{tex.replace("&", "&amp;")}</code>'


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("`$HOME` and $x$\n\n```\n$y$ and $$z$$\n```\n", {"<code>$HOME</code>": 1, "$y$ and $$z$$": 1, "<math": 1}),
        ("before\n\n$$\nx\n= y\n$$\n\nafter *it*", {'display="block"': 1, "<em>it</em>": 1}),
        ("[sft](02_sft.ipynb)", {'href="my_sft.html"': 1}),
        ("[gone](99_gone.ipynb)", {"<p>gone</p>\n": 1, "<a": 0}),
        ("![chart](https://example.com/x.png)", {"<img": 0, 'href="https://example.com/x.png"': 1}),
    ],
    ids=["dollars in code", "lines of one equation", "link to a page", "link to no page", "picture elsewhere"],
)
def test_markdown_becomes_html_that_needs_nothing_else(text, counts):
    html = report.markdown_html(text, {"02_sft": "my_sft.html"}, attachments={})
    assert {part: html.count(part) for part in counts} == counts


# In a browser


def show(tab, folder: Path, page: str) -> None:
    """Write the report and open one of its pages."""
    report.write_report(folder)
    tab.goto((folder / "report" / page).as_uri())


@pytest.mark.parametrize("name", ["index.html", "00_tour.html", "06_policy.html"])
def test_a_browser_draws_figures_and_equations_without_asking_anybody(executed, tab, name):
    show(tab, executed, name)
    tab.wait_for_selector("svg.main-svg")
    assert tab.locator("math").count() == 1
    assert tab.locator("math").bounding_box()["height"] > 10
    points = tab.locator(".scatterlayer .point")
    points.nth(1).scroll_into_view_if_needed()
    box = points.nth(1).bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.wait_for_selector(".hoverlayer .hovertext")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1100  # wide tables scroll in themselves
    assert tab.outside == [] and tab.complaints == []


def accessible(tab, role: str) -> list[str]:
    """The names that the browser's accessibility tree, which screen readers read, has for this role."""
    session = tab.context.new_cdp_session(tab)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    names = [node["name"]["value"] for node in nodes if not node["ignored"] and node["role"]["value"] == role]
    return [name for name in names if name]


def test_a_figure_is_named_by_its_title_also_after_a_menu_changed_it(tmp_path, tab):
    drawn = go.Figure(go.Scatter(y=[1, 2]), {"title": {"text": "<b>Gold &lt; proxy</b><br><span>Bars: 95%.</span>"}})
    words = go.Figure(go.Table(cells={"values": [["hello"]]}), {"title": {"text": "Words"}})
    write_stage(tmp_path / "a", *(output(PLOTLY, json.loads(each.to_json())) for each in (drawn, words)))
    show(tab, tmp_path, "a.html")
    tab.wait_for_selector(".js-plotly-plot[aria-label]")
    assert accessible(tab, "image") == ["Gold < proxy Bars: 95%."]
    assert accessible(tab, "figure") == ["Words"] and "hello" in accessible(tab, "StaticText")
    tab.evaluate("Plotly.relayout(document.querySelector('.js-plotly-plot'), {'title.text': 'Gold is <b>ahead</b>'})")
    tab.wait_for_selector(".js-plotly-plot[aria-label='Gold is ahead']")
    assert tab.complaints == []


def test_model_text_in_a_table_is_text_and_a_wide_table_scrolls(executed, tab):
    show(tab, executed, "index.html")
    assert "<script>hack()</script>" in tab.locator("table.dataframe").inner_text()
    wrapped = tab.locator("div.html:has(table.dataframe)")
    assert wrapped.evaluate("element => element.scrollWidth > element.clientWidth")
    assert tab.complaints == []


def test_code_opens_on_a_click_and_links_lead_from_page_to_page(executed, tab):
    show(tab, executed, "index.html")
    tab.click("text=06_policy")
    assert not tab.locator("text=secret_code").is_visible()
    tab.click("summary:has-text('code')")
    assert tab.locator("details.code pre").is_visible()
    tab.click("text=00_tour")
    tab.click("text=All stages")
    assert tab.url.endswith("index.html") and tab.complaints == []


def test_a_menu_in_the_page_moves_the_figure_without_a_kernel(tmp_path, tab):
    names = ["ada", "bob"]
    selections = {
        name: pd.DataFrame([[float("nan"), share], [share, float("nan")]], index=names, columns=names)
        for name, share in (("All judgements", 0.61), ("Without <cy>", 0.87))
    }
    overall = {name: Interval(matrix.iloc[0, 1], 0.5, 0.9) for name, matrix in selections.items()}
    drawn = plots.plot_agreement_filters(selections, overall)
    write_stage(tmp_path / "a", output(PLOTLY, json.loads(drawn.to_json())))
    show(tab, tmp_path, "a.html")
    tab.wait_for_selector("svg.main-svg")
    assert "agree on 61.0%" in tab.locator(".gtitle").text_content()
    assert tab.locator("text=61%").count()
    tab.locator(".updatemenu-header").click()
    tab.locator(".updatemenu-dropdown-button", has_text="Without <cy>").click()
    tab.wait_for_function("document.querySelector('.gtitle').textContent.includes('agree on 87.0%')")
    assert "Without <cy>" in tab.locator(".gtitle").text_content()
    assert tab.locator("text=87%").count() and not tab.locator("text=61%").count()
    assert tab.outside == [] and tab.complaints == []


def test_an_output_that_loads_from_the_network_does_not_get_there(tmp_path, tab):
    hostile = '<img src="https://example.com/a.png"><script src="https://example.com/a.js"></script>'
    hostile += '<script>fetch("https://example.com/b")</script><link rel="stylesheet" href="https://example.com/c.css">'
    write_stage(tmp_path / "a", output("text/html", hostile), figure())
    show(tab, tmp_path, "a.html")
    tab.wait_for_selector("svg.main-svg")
    assert tab.outside == []
    assert tab.complaints  # refused by the page's own policy
