"""A Hub id, a local file or a folder -> its rows, as they are, in memory.

Local files are read here rather than by `datasets`, whose loaders write caches and do not say which line was wrong.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow.parquet
from datasets import Dataset, DatasetDict
from huggingface_hub import HfApi

from workbench.errors import WorkbenchError
from workbench.files import resolve, shown
from workbench.hub import hub_answers

Rows = list[dict[str, Any]]

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")  # "name" or "owner/name", with ":config" where there are several
SPLITS = ("train", "test", "validation", "valid", "dev")  # names that mark a file of a folder as one split
UNREACHABLE = "cannot be fetched (the Hub does not answer, and it is not in the cache)"


def read_source(source: str, *, split: str = "train") -> Dataset:
    """The rows of a Hub dataset ("owner/name" or "owner/name:config"), file, saved dataset or folder of files.

    Relative paths start at the repository root; WorkbenchError names the file, and the line where there is one.
    """
    if not source.strip():
        raise WorkbenchError("The data source is empty: name a Hub dataset, a file or a folder.")
    path = resolve(source)
    if not path.exists() and HUB_ID.fullmatch(source) and not _suffix(source):
        dataset = _read_hub(source, split)
    elif not path.exists():
        raise WorkbenchError(f"{shown(path)} does not exist: check the path (relative ones start at the repository).")
    elif path.is_dir():
        dataset = _read_folder(path, split)
    else:
        _require_train(path, split)
        dataset = _to_dataset(_read_file(path), path)
    if len(dataset) == 0:
        raise WorkbenchError(f"{source} holds no rows (split {split!r}): give a source with at least one.")
    return dataset


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
    with _explained(path):
        return READERS[suffix](path)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what reading a broken file raises into one sentence."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise WorkbenchError(
            f"{shown(path)} is a truncated or damaged gzip file ({error}): fetch or compress it again."
        ) from error
    except UnicodeDecodeError as error:
        raise WorkbenchError(
            f"{shown(path)} is not UTF-8 text (byte {error.start}, {error.reason}): save it as UTF-8."
        ) from error
    except OSError as error:
        raise WorkbenchError(f"{shown(path)} cannot be read ({error}): check the file and its permissions.") from error


def _read_json_lines(path: Path) -> Rows:
    """One JSON object per line, blank lines skipped."""
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8-sig") as lines:
        return [_parse_line(line, number, path) for number, line in enumerate(lines, start=1) if line.strip()]


def _parse_line(line: str, number: int, path: Path) -> dict[str, Any]:
    """The row on a line."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise WorkbenchError(
            f"{shown(path)}, line {number} is not valid JSON ({error.msg} at column {error.colno}): "
            "give one JSON object per line."
        ) from error
    return _require_object(row, f"{shown(path)}, line {number}")


def _require_object(row: Any, where: str) -> dict[str, Any]:
    """The row, if it is one."""
    if not isinstance(row, dict):
        raise WorkbenchError(f"{where} is {type(row).__name__}, expected an object of columns: write {{...}} per row.")
    return row


def _read_json(path: Path) -> Rows:
    """A list of JSON objects."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise WorkbenchError(
            f"{shown(path)}, line {error.lineno} is not valid JSON ({error.msg} at column {error.colno}): "
            "give one list of objects, or name it .jsonl if it has one object per line."
        ) from error
    if not isinstance(rows, list):
        raise WorkbenchError(f"{shown(path)} holds {type(rows).__name__}, expected a list of objects: write [{{...}}].")
    return [_require_object(row, f"{shown(path)}, row {number}") for number, row in enumerate(rows)]


def _read_csv(path: Path) -> Rows:
    """Rows of text under a header line; nothing is guessed to be a number, so an answer "72" stays text."""
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        rows = []
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise WorkbenchError(
                        f"{shown(path)}, line {reader.line_num} does not have the header's {len(reader.fieldnames)} "
                        "columns: quote texts that hold commas or line breaks."
                    )
                rows.append(row)
        except csv.Error as error:
            raise WorkbenchError(
                f"{shown(path)}, line {reader.line_num} is not valid CSV ({error}): correct it or use .jsonl."
            ) from error
    return rows


def _read_parquet(path: Path) -> Rows:
    """The rows of a Parquet file."""
    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise WorkbenchError(f"{shown(path)} is not a whole Parquet file ({error}): fetch it again.") from error


READERS = {
    ".jsonl": _read_json_lines,
    ".jsonl.gz": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _read_folder(path: Path, split: str) -> Dataset:
    """A saved dataset, or the files of a folder: those named after the split where any is named after one."""
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return _read_saved(path, split)
    files = sorted(file for file in path.iterdir() if file.is_file() and _suffix(file.name))
    if not files:
        raise WorkbenchError(
            f"{shown(path)} is neither a saved dataset nor does it hold files to read: use {', '.join(READERS)}."
        )
    words = {file: set(re.split(r"[^a-z]+", file.name.lower())) for file in files}
    if any(words[file].intersection(SPLITS) for file in files):
        chosen = [file for file in files if split in words[file]]
        if not chosen:
            names = ", ".join(file.name for file in files)
            raise WorkbenchError(
                f"{shown(path)} has no file for the split {split!r} (found: {names}): name one after it."
            )
    else:
        _require_train(path, split)
        chosen = files
    return _to_dataset([row for file in chosen for row in _read_file(file)], path)


def _read_saved(path: Path, split: str) -> Dataset:
    """What `Dataset.save_to_disk` wrote, in memory, so that nothing is cached inside the user's folder."""
    try:
        saved = datasets.load_from_disk(str(path), keep_in_memory=True)
    except Exception as error:  # missing files, broken JSON or Arrow: each raises its own kind
        raise WorkbenchError(f"{shown(path)} is not a whole saved dataset ({error}): save it again.") from error
    if not isinstance(saved, DatasetDict):
        _require_train(path, split)
        return saved
    if split not in saved:
        raise WorkbenchError(f"{shown(path)} has no split {split!r}: use one of {', '.join(saved)}.")
    return saved[split]


def _to_dataset(rows: Rows, path: Path) -> Dataset:
    """Rows as a dataset with the union of their columns; a column that a row lacks is None there."""
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    for name, values in columns.items():
        _require_one_type(values, name, path)
        try:
            Dataset.from_dict({name: values})
        except (ValueError, TypeError, OverflowError, pyarrow.ArrowException) as error:
            raise WorkbenchError(
                f"{shown(path)}: column {name!r} does not have one type in all rows ({error}): give it one."
            ) from error
    return Dataset.from_dict(columns)


def _require_one_type(values: list[Any], name: str, path: Path) -> None:
    """Name the first row whose type is not that of the rows before it."""
    kinds = [float if type(value) is int else type(value) for value in values]
    present = [row for row, value in enumerate(values) if value is not None]
    odd = next((row for row in present if kinds[row] is not kinds[present[0]]), None)
    if odd is not None:
        raise WorkbenchError(
            f"{shown(path)}: row {odd} (the first is 0), column {name!r} is {type(values[odd]).__name__}, but "
            f"{type(values[present[0]]).__name__} in the rows before it: give the column one type."
        )


def _read_hub(source: str, split: str) -> Dataset:
    """A dataset of the Hub, from the network or, where that is down, from this machine's cache."""
    name, _, config = source.partition(":")
    reachable = hub_answers(HfApi().dataset_info, name)
    try:
        with nullcontext() if reachable else _offline():
            return datasets.load_dataset(name, config or None, split=split)
    except Exception as error:  # unknown configs and splits, gated repositories, broken files: each raises its own kind
        what = f"could not be loaded from the Hub ({_first_line(error)})" if reachable else UNREACHABLE
        raise WorkbenchError(
            f"{source!r} is no local file or folder and {what}: check the name, its :config and the split {split!r}, "
            f"or give a local file ({', '.join(READERS)})."
        ) from error


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
