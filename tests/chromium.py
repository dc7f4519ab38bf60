"""A headless Chromium for the tests that look at pages; where there is none they skip, loudly."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = Path("/usr/bin/chromium")
OPTIONS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
)


@contextmanager
def opened_chromium(untested: str) -> Iterator:
    """The browser, closed at the end; a skip says what is `untested` where it or playwright is missing."""
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} IS MISSING: {untested} is not tested")
    sync_api = pytest.importorskip("playwright.sync_api", reason=f"PLAYWRIGHT IS MISSING: {untested} is not tested")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(CHROMIUM), args=OPTIONS.split())
        yield opened
        opened.close()


@contextmanager
def watched_page(browser, *, width: int = 1100, height: int = 900) -> Iterator:
    """A page that asks nobody: what it wanted from elsewhere is in `outside`, errors of its scripts in `complaints`."""
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    page.outside, page.complaints = [], []

    def guard(route):
        if route.request.url.startswith(("file:", "data:", "blob:")):
            route.continue_()
        else:
            page.outside.append(route.request.url)
            route.abort()

    context.route("**/*", guard)
    page.on("console", lambda message: page.complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    yield page
    context.close()
