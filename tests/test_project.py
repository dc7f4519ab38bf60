"""The project's own files agree with each other, and importing it is cheap."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pandas as pd
import paper_index
import pytest
import results_page
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from workbench.pipeline.clean_notebook import after_saving
from workbench.runs import Run

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INSTALLED_EXTRAS = ("dev", "lora", "dask")
MAXIMUM_IMPORT_SECONDS = 0.3
TARGETS = ("run", "lab", "test", "lint", "index", "results", "bench", "conformance", "peers", "lock", "clean")


def declared_requirements(*extras):
    """Requirements of the project with the given extras."""
    texts = list(PROJECT["dependencies"])
    for extra in extras:
        texts += PROJECT["optional-dependencies"][extra]
    return [Requirement(text) for text in texts]


def locked_requirements():
    """Every line of the lock that is not a comment."""
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.lock").read_text().splitlines()]
    return [Requirement(line) for line in lines if line]


def locked_versions():
    """Name -> version of what the lock installs on this Python and platform."""
    here = [item for item in locked_requirements() if item.marker is None or item.marker.evaluate()]
    assert len({canonicalize_name(item.name) for item in here}) == len(here), "a package is locked twice"
    return {canonicalize_name(item.name): str(item.specifier).removeprefix("==") for item in here}


# --- environment.yml and requirements.lock ---


def test_the_conda_environment_is_a_supported_python_and_this_project_and_nothing_twice():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, installed = environment["dependencies"]
    name, version = python.split("=", 1)
    assert name == "python"
    assert SpecifierSet(PROJECT["requires-python"]).contains(version)
    assert pip == "pip"
    assert installed == {"pip": ["-e .[dev]"]}


def test_the_lock_has_one_exact_version_per_package():
    for requirement in locked_requirements():
        (specifier,) = requirement.specifier
        assert specifier.operator == "=="
        assert "+" not in specifier.version, f"{requirement}: a local tag exists on one machine only"
        assert "*" not in specifier.version
        assert requirement.url is None
    assert locked_versions()


def test_the_lock_has_torch_for_every_machine():
    assert locked_versions()["torch"] == "2.13.0"
    vendor = [item.name for item in locked_requirements() if re.match(r"nvidia-|cuda-|triton", item.name)]
    assert vendor == [], "torch itself asks for its CUDA packages, where it needs them"


@pytest.mark.parametrize("requirement", declared_requirements(*INSTALLED_EXTRAS), ids=lambda item: item.name)
def test_the_lock_satisfies_every_dependency(requirement):
    versions = locked_versions()
    name = canonicalize_name(requirement.name)
    assert name in versions, f"{name} is not in requirements.lock: run make lock"
    assert requirement.specifier.contains(versions[name]), (
        f"{requirement} but {versions[name]} is locked: run make lock"
    )


def test_optional_trackers_are_not_installed_by_make():
    assert {"wandb", "trackio"}.isdisjoint(locked_versions())


def test_every_dependency_says_why_it_is_there():
    before_tools, _ = (ROOT / "pyproject.toml").read_text().split("\n[tool.", 1)
    lines = before_tools.splitlines()
    for requirement in declared_requirements(*PROJECT["optional-dependencies"]):
        listed = [line for line in lines if re.search(rf'"{re.escape(requirement.name)}[\["<>=~]', line)]
        assert listed
        assert all(re.search(r"# \S+", line) for line in listed), f"{requirement.name} has no comment in pyproject.toml"


# --- Makefile ---


@pytest.fixture
def folder(tmp_path):
    """A project folder that nothing was installed in."""
    if not shutil.which("make"):
        pytest.skip("SKIPPED BECAUSE make IS NOT INSTALLED")
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("workbench", "tests", "notebooks"):
        (tmp_path / name).mkdir()
    return tmp_path


def make(folder, *arguments, **environment):
    # MAKEFLAGS of a make that runs these tests would change what this one does.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=inherited | environment, capture_output=True, text=True, timeout=60
    )


def pretend_installed(folder, *, made_in):
    """A stamp newer than the lock and pyproject.toml, as if `make` had installed into `made_in`."""
    (folder / ".venv").mkdir()
    (folder / ".venv" / ".installed").write_text(f"{made_in}\n")
    for name in ("requirements.lock", "pyproject.toml"):
        os.utime(folder / name, (1, 1))


def installs(folder, target):
    """Whether `make target` would install something first."""
    dry = make(folder, "--dry-run", target)
    assert dry.returncode == 0, dry.stderr
    return "-r requirements.lock" in dry.stdout


@pytest.mark.parametrize("target", TARGETS)
def test_make_has_the_target_and_its_help_names_it(folder, target):
    assert make(folder, "--dry-run", target).returncode == 0
    assert f"make {target} " in make(folder, "help").stdout


@pytest.mark.parametrize("target", sorted(set(TARGETS) - {"clean"}))
def test_a_target_installs_once_until_the_dependencies_change(folder, target):
    assert installs(folder, target)
    pretend_installed(folder, made_in=folder)
    assert not installs(folder, target)
    os.utime(folder / "requirements.lock")
    assert installs(folder, target)


def test_a_notebook_that_was_run_and_saved_leaves_git_clean_and_an_edit_of_it_is_committed(folder):
    if not shutil.which("git"):
        pytest.skip("SKIPPED BECAUSE git IS NOT INSTALLED")

    def git(*arguments):
        named = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        return subprocess.run(
            ["git", *named, *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout

    pretend_installed(folder, made_in=folder)
    (folder / "workbench").rmdir()  # the one of this project is installed
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\ncase "$*" in *jupyterlab*) exit 0;; esac\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    shutil.copy(ROOT / ".gitattributes", folder)
    path = folder / "notebooks" / "00_tour.ipynb"
    shutil.copy(ROOT / "notebooks" / path.name, path)
    git("init", "-q")
    assert make(folder, "lab").returncode == 0
    git("add", ".gitattributes", "notebooks")
    git("commit", "-qm", "start")

    committed = json.loads(git("show", f":notebooks/{path.name}"))
    saved = json.loads(path.read_text())
    for cell in saved["cells"]:
        if cell["cell_type"] == "code":
            output = {"output_type": "stream", "name": "stdout", "text": ["gold 0.3\n"]}
            cell |= {"outputs": [output], "execution_count": 7}
            cell["metadata"] |= {"execution": {"shell.execute_reply": "now"}, "scrolled": True}
    saved["metadata"] |= {"language_info": {"name": "python", "version": "3.13.1"}, "widgets": {"state": {}}}
    path.write_text(json.dumps(saved, indent=1, sort_keys=True))
    after_saving(os_path=str(path), model={}, contents_manager=None)
    assert git("status", "--porcelain", "notebooks") == ""
    assert "gold 0.3" in path.read_text()  # what was run is still there to be read

    saved["cells"][0]["source"].append("\nA sentence of mine: “é”.")
    path.write_text(json.dumps(saved, indent=1, ensure_ascii=False), encoding="utf-8")
    after_saving(os_path=str(path), model={}, contents_manager=None)
    assert git("status", "--porcelain", "notebooks").split() == ["M", f"notebooks/{path.name}"]
    git("add", "notebooks")
    committed["cells"][0]["source"].append("\nA sentence of mine: “é”.")
    assert json.loads(git("show", f":notebooks/{path.name}")) == committed


def test_a_moved_project_is_installed_again(folder):
    pretend_installed(folder, made_in="/somewhere/else")
    assert installs(folder, "test")


def test_a_machine_without_python_is_told_so_in_one_sentence(folder):
    tools = folder / "tools"
    tools.mkdir()
    for name in ("make", "sh", "cat"):
        (tools / name).symlink_to(shutil.which(name))
    result = make(folder, "test", PATH=str(tools))
    assert result.returncode != 0
    assert result.stderr.startswith("No Python 3.11 or newer")
    assert "make PYTHON=" in result.stderr


def test_clean_removes_caches_and_keeps_runs_and_labels(folder):
    kept = [folder / "runs/tour/metrics.jsonl", folder / "runs/labels.sqlite", folder / "notebooks/00_tour.ipynb"]
    removed = [folder / "workbench/__pycache__/x.pyc", folder / ".pytest_cache/x", folder / "build/x"]
    for path in kept + removed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert make(folder, "clean").returncode == 0
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in removed)


def test_continuous_integration_runs_what_a_reader_runs():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert "set -euo pipefail" in lines
    assert {"make test", "make lint"} <= set(lines)


# --- what importing costs ---


def run_python(code):
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def light_modules():
    """Names of every module that promises to do without torch."""
    folders = ("analysis", "feedback", "pipeline", "plots", "runs")
    packages = [path for name in folders for path in (ROOT / "workbench" / name).rglob("*.py")]
    paths = [*packages, ROOT / "workbench" / "cli.py", ROOT / "workbench" / "records.py"]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return sorted(name.removesuffix(".__init__") for name in names)


def test_importing_the_package_is_quick_and_loads_nothing_heavy():
    code = """
import sys, time
start = time.perf_counter()
import workbench
print(time.perf_counter() - start, *sorted({"torch", "transformers", "pandas", "plotly"} & set(sys.modules)))
"""
    seconds, *heavy = run_python(code)
    assert heavy == []
    assert float(seconds) < MAXIMUM_IMPORT_SECONDS


def test_labels_figures_runs_and_the_command_line_start_without_torch():
    code = f"""
import importlib, sys
for name in {light_modules()!r}:
    importlib.import_module(name)
    if "torch" in sys.modules:
        print(name)
        break
"""
    assert light_modules()
    assert run_python(code) == [], "this module imports torch"


# --- text ---


def opens_text_in_the_locales_encoding(call: ast.Call) -> bool:
    """Whether a call reads or writes text without saying in which encoding."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name in ("Popen", "run", "check_output") and owner == "subprocess":
        return "text" in given or "universal_newlines" in given
    if name not in ("read_text", "write_text", "open", "fdopen", "TemporaryFile", "NamedTemporaryFile"):
        return False
    if (owner == "os" and name == "open") or (name == "write_text" and owner in ("files", "")):  # a descriptor, our own
        return False
    words = [part.value for part in call.args if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    if name == "open" and owner and call.args and not words:  # a run or a desk, not a path
        return False
    return "encoding" not in given and not any(word.endswith("b") for word in words)


def test_every_text_that_is_read_or_written_is_utf8_whatever_the_locale():
    found = []
    for path in sorted((ROOT / "workbench").rglob("*.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        found += [f"{path.name}: {ast.unparse(call)}" for call in calls if opens_text_in_the_locales_encoding(call)]
    assert found == [], "name encoding='utf-8'"


def test_the_readme_is_short_and_lists_every_method_of_the_tables_with_a_paper_and_a_test():
    page = paper_index.README.read_text(encoding="utf-8")
    assert page.count("\n") <= 300
    assert paper_index.with_index(page) == page, "Run `make index`."
    for line in paper_index.rows():
        assert all(cell.strip() for cell in line.strip("|").split("|")), f"{line} has an empty cell."


def test_the_page_of_results_is_filled_in_from_saved_tables_and_keeps_what_was_not_run(tmp_path):
    run = Run.open(tmp_path / "runs/one", {"seed": 3})
    rows = [{"method": "a|b", "gold": 0.5, "runs": 9}, {"method": "c", "gold": None, "runs": 1}]
    run.save_table("gains", pd.DataFrame(rows))
    known = "<!-- table runs/one gains gold,method,runs -->\nold\n<!-- end -->\n"
    unknown = known.replace("runs/one", "runs/two")
    page, absent = results_page.filled(f"before\n{known}between\n{unknown}after\n", tmp_path)
    assert len(absent) == 1 and "runs/two" in absent[0]
    assert unknown in page and page.startswith("before\n") and page.endswith("after\n")
    assert "| gold | method | runs |\n| --- | --- | --- |\n| 0.50 | a\\|b | 9 |\n|  | c | 1 |\n" in page
    assert run.record["started_at"][:10] in page and "\nold\n" not in page.split("between")[0]
    assert results_page.filled(page, tmp_path)[0] == page
    better = page.replace("| 9 |", "| 10 |")
    kept, why = results_page.filled(better, tmp_path)  # a smoke run takes no place of a whole one
    assert kept == better and "runs/one is of 9 runs, the table on the page of 10" in why[0]
