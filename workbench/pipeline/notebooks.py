"""Notebooks that can be run: where they are, what they ask, and their parameters with types."""

import ast
import difflib
import io
import math
import re
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from workbench import WorkbenchError
from workbench.runs import names_in
from workbench.runs.files import parse_json, repository_root, resolve, shown, user_path

Value = str | int | float | bool
KINDS = {"str": str, "int": int, "float": float, "bool": bool}
TRUTH = {"true": True, "false": False}
CHOICES = re.compile(r"(\w+): (any of )?([\w.-]+(?: \| [\w.-]+)+)")


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One line of a notebook's parameters cell: `name: kind = default  # comment`.

    Comment lines `# name: a | b` or, for text that lists several with commas, `# name: any of a | b` give its choices.
    """

    name: str
    kind: str
    default: Value
    comment: str
    choices: tuple[Value, ...] = ()  # besides the default; empty where any value may do
    several: bool = False

    def read(self, value: object, source: str) -> Value:
        """The value with the parameter's type; WorkbenchError where it does not fit, or is none of the choices."""
        found = convert(self.name, self.kind, value, source)
        parts = names_in(found) if self.several else [found]
        unknown = [part for part in parts if self.choices and part not in (*self.choices, self.default)]
        if unknown:
            names = [str(choice) for choice in self.choices]
            raise WorkbenchError(
                f"Parameter {self.name} is {unknown[0]!r} in {source}{nearest(str(unknown[0]), names)}: "
                f"choose {'from' if self.several else 'one of'} {', '.join(names)}."
            )
        return found


@dataclass(frozen=True, kw_only=True)
class Notebook:
    """A notebook that can be run, as far as it is known without running it."""

    path: Path
    title: str
    minutes: str  # the line of its introduction that says how long it takes, "" where none does
    sources: tuple[str, ...]  # of every cell, in order
    parameters: dict[str, Parameter]

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    @property
    def defaults(self) -> dict[str, Value]:
        """Every parameter with its default."""
        return {name: parameter.default for name, parameter in self.parameters.items()}


def notebook_paths() -> list[Path]:
    """The notebooks of the repository, in order of their numbers."""
    return sorted((repository_root() / "notebooks").glob("*.ipynb"))


def find(text: str, recipes: list[Path]) -> Path:
    """Notebook or recipe given by path, name or leading number; WorkbenchError names those that exist."""
    for path in (user_path(text), resolve(text)):
        if path.suffix in (".ipynb", ".yaml", ".yml") and path.is_file():
            return path.absolute()
    known = [*notebook_paths(), *recipes]
    exact = [path for path in known if text in (path.stem, path.name)]
    numbered = [path for path in notebook_paths() if path.stem.startswith(f"{text}_")]
    if exact or len(numbered) == 1:
        return (exact or numbered)[0]
    names = [path.stem for path in numbered or known]
    choice = f"choose one of {', '.join(names)}" if names else "give the path of one"
    problem = f"{text} could be several notebooks" if numbered else f"There is no notebook or recipe {text!r}"
    raise WorkbenchError(f"{problem}{nearest(text, names)}: {choice}.")


def nearest(text: str, names: Iterable[str]) -> str:
    """A question to add to a message where one of the names looks like a misspelling of the text, else ""."""
    close = difflib.get_close_matches(text, list(names), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def read_notebook(path: Path) -> Notebook:
    """Title, minutes, cell texts and parameters of a notebook; WorkbenchError where it is not one."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        cells = [(cell["cell_type"], "".join(cell["source"]), cell["metadata"]) for cell in content["cells"]]
        if type(content["nbformat"]) is not int or content["nbformat"] != 4:
            raise ValueError("another format")
        tagged = [source for _, source, about in cells if "parameters" in about.get("tags", [])]
        lines = [line for kind, source, _ in cells if kind == "markdown" for line in source.split("\n")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorkbenchError(
            f"{shown(path)} is not a Jupyter notebook (nbformat 4): open and save it again."
        ) from error
    titles = [line.removeprefix("# ").strip() for line in lines if line.startswith("# ")]
    minutes = [re.sub(r"[*`>]", "", line).strip() for line in lines if re.search(r"\b(minute|second)s?\b.* GB", line)]
    return Notebook(
        path=path,
        title=next(iter(titles), path.stem),
        minutes=next(iter(minutes), ""),
        sources=tuple(source for _, source, _ in cells),
        parameters=read_parameters("\n".join(tagged), path),
    )


def read_parameters(source: str, path: Path) -> dict[str, Parameter]:
    """Parameters of the parameters cell by name; WorkbenchError for a line that is not `name: kind = literal`."""
    try:
        statements = ast.parse(source).body
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, tokenize.TokenError) as error:
        raise WorkbenchError(f"The parameters cell of {shown(path)} is not Python ({error}): correct it.") from error
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    found = [read_parameter(line, comments.get(line.end_lineno or 0, ""), path) for line in statements]
    parameters = {parameter.name: parameter for parameter in found}
    for name, several, named in (match.groups() for match in map(CHOICES.fullmatch, comments.values()) if match):
        if parameter := parameters.get(name):
            read = [convert(name, parameter.kind, text, f"the choices of {shown(path)}") for text in named.split(" | ")]
            choices = (*parameter.choices, *read)  # a second line goes on
            said = f"{parameter.comment.removesuffix(')')}, " if parameter.choices else f"{parameter.comment} ("
            comment = f"{said}{named.replace(' |', ',')})"
            parameters[name] = replace(parameter, choices=choices, several=bool(several), comment=comment)
    return parameters


def read_parameter(statement: ast.stmt, comment: str, path: Path) -> Parameter:
    """One statement of the parameters cell; where it has no annotation the value's type counts."""
    target, kind, default = None, "", None
    if isinstance(statement, ast.AnnAssign | ast.Assign) and statement.value:
        target = statement.target if isinstance(statement, ast.AnnAssign) else statement.targets[0]
        try:
            default = ast.literal_eval(statement.value)
            kind = type(default).__name__ if isinstance(statement, ast.Assign) else ast.unparse(statement.annotation)
        except ValueError:  # not a literal: `kind` stays empty
            pass
    if not isinstance(target, ast.Name) or kind not in KINDS:
        raise WorkbenchError(
            f"The parameters cell of {shown(path)} holds `{ast.unparse(statement)}`: "
            f"write `name: type = value  # comment` with a plain value of type {', '.join(KINDS)}."
        )
    default = convert(target.id, kind, default, f"the parameters cell of {shown(path)}")
    return Parameter(name=target.id, kind=kind, default=default, comment=comment)


def convert(name: str, kind: str, value: object, source: str) -> Value:
    """The value with the parameter's type, text read as on a command line; WorkbenchError where it does not fit."""
    given = value
    try:
        if isinstance(value, str):
            value = TRUTH[value.lower()] if kind == "bool" else KINDS[kind](value)
        if kind == "float" and type(value) is int:
            value = float(value)
        if type(value) is KINDS[kind] and (kind != "float" or math.isfinite(value)):
            return value
    except (ValueError, KeyError, OverflowError):
        pass
    expected = {"str": "text", "int": "a whole number", "float": "a finite number", "bool": "true or false"}[kind]
    raise WorkbenchError(f"Parameter {name} is {given!r:.80} in {source} and must be {expected} ({kind}): correct it.")


def checked(notebook: Notebook, parameters: dict[str, object], source: str) -> dict[str, Value]:
    """The parameters with the notebook's types; WorkbenchError for a name that the notebook does not have."""
    for name in parameters:
        if name not in notebook.parameters:
            raise unknown_parameter(name, notebook.parameters, f"{source}: {notebook.name}")
    return {name: notebook.parameters[name].read(value, source) for name, value in parameters.items()}


def unknown_parameter(name: str, known: Iterable[str], owner: str) -> WorkbenchError:
    """Error for a parameter that its owner does not have, with the nearest and all that it has."""
    known = list(known)
    return WorkbenchError(
        f"{owner} has no parameter {name}{nearest(name, known)}: its parameters are {', '.join(known) or 'none'}."
    )
