"""A real JupyterLab on this machine, and a headless Chromium that looks at it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest
from chromium import opened_chromium

LAB_OPTIONS = (
    "--no-browser --ip=127.0.0.1 --allow-root --ServerApp.port_retries=0 --ServerApp.terminals_enabled=False "
    "--LabApp.expose_app_in_browser=True --LabApp.news_url=None "
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"
)
SETTINGS = {
    # a news toast would cover the page
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    # cells outside the window stay in the page
    "notebook-extension/tracker": {"windowingMode": "none"},
}
TOKEN = "browser-test"
SLOW_MS = 60_000  # for whatever starts a process


class Lab:
    """A JupyterLab server with nothing in it but what a test writes into `root`."""

    def __init__(self, folder: Path):
        self.root = folder / "root"
        self.root.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self._log = (folder / "lab.log").open("w")
        for name, content in SETTINGS.items():
            path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
        where = [f"--port={self.url.rsplit(':', 1)[1]}", f"--ServerApp.root_dir={self.root}"]
        command = [sys.executable, "-m", "jupyterlab", *LAB_OPTIONS.split(), *where]
        self._process = subprocess.Popen(
            [*command, f"--IdentityProvider.token={TOKEN}"],
            env=isolated(folder),
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self._wait()

    def _wait(self) -> None:
        until = time.monotonic() + SLOW_MS / 1000
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/api/status?token={TOKEN}", timeout=5).close()
                return
            except (urllib.error.URLError, OSError):
                if time.monotonic() > until or self._process.poll() is not None:
                    raise RuntimeError(f"JupyterLab did not start: {Path(self._log.name).read_text()}") from None
                time.sleep(0.05)

    def write_notebook(self, name: str, *cells: str) -> None:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, self.root / name)

    def stop(self) -> None:
        self._process.terminate()  # the server ends its kernels
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._log.close()


def isolated(folder: Path) -> dict[str, str]:
    """An environment in which nobody's own settings, extensions and workspaces are seen or changed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "IPYTHON"))}
    return kept | {
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_PLATFORM_DIRS": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "OMP_NUM_THREADS": "1",
    }


class Notebook:
    """A notebook in a tab of its own."""

    def __init__(self, page, lab: Lab, name: str):
        self.page, self.name = page, name
        page.goto(f"{lab.url}/lab/workspaces/{Path(name).stem}/tree/{name}?token={TOKEN}")
        self.wait_until_idle()

    def wait_until_idle(self) -> None:
        self.page.wait_for_function(
            """() => {
                const session = window.jupyterapp?.shell?.currentWidget?.sessionContext;
                return session?.isReady && session.session?.kernel?.status === "idle"
                    && session.session.kernel.connectionStatus === "connected";
            }""",
            timeout=SLOW_MS,
        )

    def command(self, name: str) -> None:
        self.page.evaluate("name => window.jupyterapp.commands.execute(name)", name)

    def run(self, after: int = 0) -> int:
        """Runs all cells, of which the first prints "kernel N"; N, which is not that of the kernel before."""
        from playwright.sync_api import expect

        self.command("notebook:run-all-cells")
        printed = self.cell(0).locator(".jp-OutputArea-output")
        expect(printed).to_have_text(re.compile(rf"kernel (?!{after}\b)\d+"), timeout=SLOW_MS)
        return int(printed.inner_text().split()[1])

    def cell(self, index: int):
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(index)

    def select(self, index: int) -> None:
        self.page.evaluate(
            """index => {
                const {content} = window.jupyterapp.shell.currentWidget;
                content.activeCellIndex = index;
                content.mode = "command";
            }""",
            index,
        )

    def state(self) -> dict:
        """What a key that the notebook takes would change."""
        return self.page.evaluate(
            """() => {
                const {content} = window.jupyterapp.shell.currentWidget;
                return {cells: content.model.cells.length, active: content.activeCellIndex, mode: content.mode,
                        types: content.widgets.map(cell => cell.model.type)};
            }"""
        )


@pytest.fixture(scope="module")
def browser():
    with opened_chromium("whether the labelling widgets work in a browser") as opened:
        yield opened


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    started = Lab(tmp_path_factory.mktemp("lab"))
    yield started
    started.stop()


class Tabs:
    """Tabs of one browser, with what they asked of other machines in `outside` and their errors in `complaints`."""

    def __init__(self, browser, lab: Lab):
        self.outside, self.complaints = [], []
        self._lab = lab
        self.context = browser.new_context(viewport={"width": 1300, "height": 950})
        self.context.set_default_timeout(20_000)
        self.context.route(re.compile(f"^(?!{re.escape(lab.url)}/|data:|blob:)"), self._refuse)

    def _refuse(self, route) -> None:
        self.outside.append(route.request.url)
        route.abort()

    def _note_socket(self, socket_opened) -> None:
        if not socket_opened.url.startswith(self._lab.url.replace("http:", "ws:")):
            self.outside.append(socket_opened.url)

    def open(self, name: str) -> Notebook:
        page = self.context.new_page()
        page.on("websocket", self._note_socket)
        page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        return Notebook(page, self._lab, name)


@pytest.fixture(scope="module")
def tabs(browser, lab):
    opened = Tabs(browser, lab)
    yield opened
    opened.context.close()
