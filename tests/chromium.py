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
