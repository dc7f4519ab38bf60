"""A Hub id, a local file or a folder -> its rows, as they are, in memory.

Local files are read here rather than by `datasets`, whose loaders write caches and do not say which line was wrong.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow.parquet
from datasets import Dataset, DatasetDict, concatenate_datasets
from huggingface_hub import HfApi

from workbench import WorkbenchError
from workbench.runs.files import explain_read_errors, hub_answers, json_line, json_rows, plain, resolve, shown, text_of

Rows = list[dict[str, Any]]

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")  # "name" or "owner/name", with ":config" where there are several
SPLITS = {  # words that mark a file or folder as one split
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}
SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.")  # how the Hub names the parts of a split
ABOUT_ROWS = ("dataset_infos.json", "dataset_info.json")  # what the Hub's library writes beside rows
NOT_JSON = re.compile(
    "(^|: )(date|time|duration|month|decimal|(large_|fixed_size_)?binary|map)"
)  # names of Arrow types
UNREACHABLE = "cannot be fetched (the Hub does not answer, and it is not in the cache)"


@dataclass(frozen=True, kw_only=True)
class Source:
    """The rows of a data source."""

    rows: Dataset
    mixed: dict[str, list[Any]]  # values of columns that are text now, having no common type or none that JSON has
    note: str  # which part of the source these rows are, "" where they are all of it


def read_source(source: str, *, split: str = "train") -> Source:
    """The rows of a Hub dataset ("owner/name" or "owner/name:config"), file, saved dataset or folder of files.

    Relative paths start at the repository root; WorkbenchError names the file, and the line where there is one.
    """
    if not source.strip():
        raise WorkbenchError("The data source is empty: name a Hub dataset, a file or a folder.")
    path = resolve(source)
    with explain_read_errors(path):
        if not path.exists() and HUB_ID.fullmatch(source) and not _suffix(source):
            found = _read_hub(source, split)
        elif not path.exists():
            raise WorkbenchError(
                f"{shown(path)} does not exist: check the path (relative ones start at the repository)."
            )
        elif path.is_dir():
            found = _read_folder(path, split)
        else:
            _require_train(path, split)
            found = _typed(_read_file(path))
    if len(found.rows) == 0:
        raise WorkbenchError(f"{source} holds no rows (split {split!r}): give a source with at least one.")
    return found


def _suffix(name: str) -> str:
    """The supported extension that a file name ends with, or nothing."""
    return next((suffix for suffix in READERS if name.lower().endswith(suffix)), "")


def _require_train(path: Path, split: str) -> None:
    """Refuse another split than "train" of data that has no splits: training and test rows would be the same."""
    if split != "train":
        raise WorkbenchError(f"{shown(path)} has no split {split!r}, it is all 'train': give a source for {split!r}.")


def _read_file(path: Path) -> Rows:
    """The rows of one file, by its extension."""
    suffix = _suffix(path.name)
    if not suffix:
        raise WorkbenchError(f"{shown(path)} has an unsupported extension: use one of {', '.join(READERS)}.")
    with explain_read_errors(path):
        return READERS[suffix](path)


def _read_csv(path: Path) -> Rows:
    """Rows of text under a header line; nothing is guessed to be a number, so an answer "72" stays text."""
    csv.field_size_limit(sys.maxsize)  # the library's own limit is 131072 characters, less than a long document has
    reader = csv.reader(io.StringIO(text_of(path), newline=""), strict=True)
    header, rows, line = [], [], 1  # the line on which a row starts
    try:
        for values in reader:
            if not header:
                header = values
            elif values and len(values) != len(header):
                raise WorkbenchError(
                    f"{shown(path)}, line {line} does not have the header's {len(header)} "
                    "columns: quote texts that hold commas or line breaks."
                )
            elif values:
                rows.append(dict(zip(header, values, strict=True)))
            line = reader.line_num + 1
    except csv.Error as error:
        raise WorkbenchError(
            f"{shown(path)}, line {line} is not valid CSV ({error}): correct it or use .jsonl."
        ) from error
    _require_names(header, path)
    return rows


def _require_names(columns: list[str], path: Path) -> None:
    """Refuse columns of which one would be lost."""
    if len(set(columns)) < len(columns):
        raise WorkbenchError(f"{shown(path)} names a column twice ({', '.join(columns)}): give each its own name.")


def _read_parquet(path: Path) -> Rows:
    """The rows of a Parquet file."""
    try:
        _require_names(pyarrow.parquet.read_schema(path).names, path)
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise WorkbenchError(
            f"{shown(path)} is not a whole Parquet file ({_first_line(error)}): fetch it again."
        ) from error


READERS = {
    ".jsonl": json_rows,
    ".jsonl.gz": json_rows,
    ".json": json_rows,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _read_folder(path: Path, split: str) -> Source:
    """A saved dataset, or the files of a folder: those named after the split where any is named after one."""
    if is_saved(path):
        return _read_saved(path, split)
    files = data_files(path)
    words = {file: set(re.split(r"[^a-z]+", file.relative_to(path).as_posix().lower())) for file in files}
    chosen = [file for file in files if split in words[file].union(map(SPLITS.get, words[file]))]
    if not any(words[file].intersection(SPLITS) for file in files):
        _require_train(path, split)
        chosen = files
    if not chosen:
        names = ", ".join(file.name for file in files)
        raise WorkbenchError(f"{shown(path)} has no file for the split {split!r} (found: {names}): name one after it.")
    missing = _missing_parts(path, split, chosen)
    note = _split_note(shown(path), split, [file.name for file in files if file not in chosen])
    return _typed([row for file in chosen for row in _read_file(file)], note=" ".join(filter(None, [note, missing])))


def _missing_parts(path: Path, split: str, chosen: list[Path]) -> str:
    """How many parts of a split are there, "" where it is whole; WorkbenchError where rows would be read twice."""
    stems = [file.with_name(file.name[: -len(_suffix(file.name))]) for file in chosen]
    if twice := next((stem for stem in stems if stems.count(stem) > 1), None):
        raise WorkbenchError(f"{shown(path)} holds {twice.name!r} in several formats: keep one of them.")
    shards = [part for part in map(SHARD.match, (file.name for file in chosen)) if part]
    parts = sorted({part[1] for part in shards})
    if len(parts) > 1:
        raise WorkbenchError(
            f"{shown(path)} has several splits {split!r} ({', '.join(parts)}): give one file, or a folder of one."
        )
    whole = max((int(part[2]) for part in shards), default=0)
    return f"{shown(path)} has {len(shards)} of the {whole} parts of {parts[0]!r}." if len(shards) < whole else ""


def is_saved(path: Path) -> bool:
    """Whether a folder is what `Dataset.save_to_disk` wrote."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def data_files(path: Path) -> list[Path]:
    """The files of a folder that hold rows, or those of the only folder in it that has any, as on the Hub.

    WorkbenchError where there are none, or several folders that are not the splits of one dataset.
    """
    if path == path.parent:
        raise WorkbenchError(f"{path} is the whole disk: give the folder that holds the rows.")
    for pattern in ("*", "*/*", "*/*/*"):
        named = [file for file in sorted(path.glob(pattern)) if _suffix(file.name) and file.name not in ABOUT_ROWS]
        files = [file for file in named if file.is_file() and "/." not in f"/{file.relative_to(path)}"]
        places = sorted({file.parents[file.parent.name in SPLITS] for file in files})
        if len(places) > 1:
            names = ", ".join([place.name for place in places[:6]] + ["..."] * (len(places) > 6))
            raise WorkbenchError(f"{shown(path)} holds several datasets ({names}): give the folder of one of them.")
        if places:
            return files
    raise WorkbenchError(
        f"{shown(path)} is neither a saved dataset nor does it hold files to read: use {', '.join(READERS)}."
    )


def _read_saved(path: Path, split: str) -> Source:
    """What `Dataset.save_to_disk` wrote, in memory, so that nothing is cached inside the user's folder."""
    try:
        saved = datasets.load_from_disk(str(path), keep_in_memory=True)
    except Exception as error:  # missing files, broken JSON or Arrow: each raises its own kind
        raise WorkbenchError(
            f"{shown(path)} is not a whole saved dataset ({_first_line(error)}): save it again."
        ) from error
    if not isinstance(saved, DatasetDict):
        _require_train(path, split)
        saved = DatasetDict({split: saved})
    if split not in saved:
        raise WorkbenchError(f"{shown(path)} has no split {split!r}: use one of {', '.join(saved)}.")
    return _typed(_as_rows(saved[split]), note=_split_note(shown(path), split, set(saved) - {split}))


def _as_rows(dataset: Dataset) -> Rows:
    return dataset.with_format("arrow")[:].to_pylist()  # which leaves pictures and sounds as they are stored


def _split_note(source: str, split: str, others: Iterable[str]) -> str:
    """Which of several splits is read, "" where there is one."""
    return f"Of {source} the split {split!r} is read, not {', '.join(sorted(others))}." if others else ""


def _typed(rows: Rows, *, note: str = "") -> Source:
    """Rows with the union of their columns; a column that a row lacks is None there."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name.replace("\0", ""): [row.get(name) for row in rows] for name in names}  # Arrow ends names there
    mixed, parts = {}, []
    for name, values in columns.items():
        column = _column(name, values)
        if column is None:
            mixed[name] = values
            column = Dataset.from_dict({name: [_as_text(plain(value)) for value in values]})
        parts.append(column)
    rows = concatenate_datasets(parts, axis=1) if parts else Dataset.from_dict({})
    return Source(rows=rows, mixed=mixed, note=note)


def _column(name: str, values: list[Any]) -> Dataset | None:
    """A column of one type that JSON has, too, None where it is none."""
    kinds = {float if type(value) is int else type(value) for value in values} - {type(None)}
    with suppress(ValueError, TypeError, OverflowError, pyarrow.ArrowException):
        column = Dataset.from_dict({name: values})
        if len(kinds) < 2 and not NOT_JSON.search(str(column.data.schema.field(name).type)):
            return column
    return None


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json_line(value)


def _read_hub(source: str, split: str) -> Source:
    """A dataset of the Hub, from the network or, where that is down, from this machine's cache."""
    name, _, config = source.partition(":")
    reachable = hub_answers(HfApi().dataset_info, name)
    try:
        with nullcontext() if reachable else _offline():
            rows = datasets.load_dataset(name, config or None, split=split)
    except Exception as error:  # unknown configs and splits, gated repositories, broken files: each raises its own kind
        what = f"could not be loaded from the Hub ({_first_line(error)})" if reachable else UNREACHABLE
        raise WorkbenchError(
            f"{source!r} is no local file or folder and {what}: check the name, its :config and the split {split!r}, "
            f"or give a local file ({', '.join(READERS)})."
        ) from error
    return _typed(_as_rows(rows), note=_split_note(source, split, set(rows.info.splits or ()) - {split}))


def _first_line(error: Exception) -> str:
    """What an exception says first."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _offline() -> Iterator[None]:
    """Let the Hub's libraries look only in their cache."""
    modules = (datasets.config, huggingface_hub.constants)
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value
