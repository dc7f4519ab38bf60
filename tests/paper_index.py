"""The README's index of methods: paper, formula, tests, notebook, read off the tables in the code (`make index`)."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from workbench.losses import advantages, direct, offline, policy, preference
from workbench.trainers.algorithms import ALGORITHMS
from workbench.trainers.direct_alignment import LOSSES
from workbench.trainers.imitation import SELECTIONS
from workbench.trainers.reward_model import OBJECTIVES

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
FIRST, LAST = "<!-- made by `make index` -->\n", "<!-- end of the index -->\n"
PAPER = re.compile(
    r"[A-Z][\w'-]+(?: et al\.)?\s+\d{4}(?:\s\([^)]*\))?(?:,\s+(?:eq\.|section|appendix|algorithm)\s[\w.]+)?"
)
ROOMS = {module: module.__name__.rpartition(".")[2] for module in (advantages, direct, offline, policy, preference)}
TESTS = {path: path.read_text(encoding="utf-8") for path in sorted(HERE.glob("test_*.py"))}


def formulas(*rows: Callable) -> list[tuple[ModuleType, str]]:
    """The formulas of `losses/` that functions are or call, each once: module and name."""
    names = [name for row in rows for name in (row.__name__, *row.__code__.co_names)]
    places = [(room, name) for name in dict.fromkeys(names) for room in ROOMS if name in vars(room) and name[0] != "_"]
    return [(room, name) for room, name in places if getattr(vars(room)[name], "__module__", "") == room.__name__]


def cited(text: str) -> str:
    """The papers that a docstring names, "" where it names none."""
    return "; ".join(dict.fromkeys(found.rstrip(".") for found in PAPER.findall(" ".join((text or "").split()))))


def tests_of(words: list[str]) -> str:
    """The test file that names these words most often, and another that does so half as often."""
    pattern = re.compile("|".join(rf"(?<!\w){word}(?!\w)" for word in words))
    counts = {path.stem: len(pattern.findall(text)) for path, text in TESTS.items()}
    most = sorted(counts, key=lambda name: -counts[name])[:2]
    return ", ".join(name for name in most if 2 * counts[name] >= max(1, counts[most[0]]))


def row(notebook: str, name: str, paper: str, *functions: Callable) -> str:
    """One line of the table; what calls no formula of `losses/` is one itself."""
    found = formulas(*functions)
    files = [f"`losses/{ROOMS[room]}.{formula}`" for room, formula in found]
    own = [f"`{each.__module__.removeprefix('workbench.').replace('.', '/')}.{each.__name__}`" for each in functions]
    paper = paper or next((cited(getattr(*place).__doc__) for place in found), "") or cited(functions[0].__doc__)
    words = [formula for _, formula in found] or [f'"{name}"']
    return f"| `{name}` | {paper or 'no paper'} | {', '.join(files or own)} | {tests_of(words)} | {notebook} |"


def rows() -> Iterator[str]:
    """Every method, notebook by notebook."""
    yield from (row("05", name, "", objective.loss) for name, objective in OBJECTIVES.items())
    for name, algorithm in ALGORITHMS.items():
        yield row("06", name, algorithm.paper, algorithm.baseline, algorithm.surrogate)
    yield from (row("07", name, selection.paper, selection.choose) for name, selection in SELECTIONS.items())
    yield from (row("08", name, objective.paper, objective.loss) for name, objective in LOSSES.items())
    yield row("08", "ilql", "", offline.td_loss, offline.expectile_loss, offline.conservative_loss)


def index() -> str:
    """The table in Markdown."""
    head = "| method | paper | formula | tests | notebook |\n|---|---|---|---|---|\n"
    return head + "\n".join(rows()) + "\n"


def with_index(text: str) -> str:
    """A page with what stands between the two marks made anew."""
    before, rest = text.split(FIRST)
    return before + FIRST + index() + LAST + rest.split(LAST)[1]


if __name__ == "__main__":
    README.write_text(with_index(README.read_text(encoding="utf-8")), encoding="utf-8")
