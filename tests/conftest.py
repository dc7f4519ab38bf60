"""Fixtures that several test files share, the order of the files, and the table of bad inputs at the end of a run."""

import os
import sys

import pytest
from chromium import opened_chromium, watched_page

from workbench.tasks.world import World

# or a worker ends up alone
LONGEST_FIRST = (
    "test_pipeline.py",
    "test_study.py",
    "test_annotation.py",
    "test_bad_input.py",
    "test_sweeps.py",
    "test_executors.py",
    "test_cli.py",
    "test_report.py",
)


def pytest_configure(config) -> None:
    """Tests read and write texts as the command does, which sees to it itself; and, as it, leave out a slow import."""
    sys.modules.setdefault("rfc3987_syntax", None)  # jsonschema would compile a grammar, for 1.7 s in each worker
    if sys.getfilesystemencoding() != "utf-8":
        raise pytest.UsageError("The locale is not UTF-8: set PYTHONUTF8=1, as `make test` does.")


def pytest_xdist_auto_num_workers(config) -> int:
    """One worker more than cores: many tests wait for a kernel, a browser or a process."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(scope="session")
def world() -> World:
    """The embedded world with seed 0."""
    return World.load()


@pytest.fixture(scope="session")
def browser():
    """One Chromium for all tests of a worker."""
    with opened_chromium("what pages do in a browser") as opened:
        yield opened


@pytest.fixture
def tab(browser):
    """A page that records requests to elsewhere in `outside` and complaints in `complaints`."""
    with watched_page(browser) as page:
        yield page


def pytest_collection_modifyitems(items) -> None:
    """The files that take longest come first."""
    place = {name: index for index, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def pytest_terminal_summary(terminalreporter) -> None:
    """A line per bad input: what it was, the exit code and what the user was told."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    cases = [value for report in reports for name, value in report.user_properties if name == "bad_input"]
    if cases:
        terminalreporter.section("bad input: case | exit code | what the user is told")
        width = max(len(case) for case, _, _ in cases)
        for case, code, sentence in cases:
            terminalreporter.write_line(f"{case:{width}} | {code} | {sentence}")
