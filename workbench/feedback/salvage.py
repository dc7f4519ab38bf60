"""What can still be read of a damaged store, into a new one: `python -m workbench.feedback.salvage DAMAGED NEW`."""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from workbench import BAD_INPUT, DONE, WorkbenchError
from workbench.feedback.store import Store
from workbench.runs.files import resolve, shown

KEYS = {"item": "position", "judgement": "seq"}
PROBED = 1_000_000  # numbers tried where the damage hides how many rows there were


def salvage(damaged: str | Path, new: str | Path) -> dict[str, int]:
    """Copy every readable row into the store at `new`; how many of each table.

    `damaged` is only read, through a copy. A judgement whose item is unreadable is kept with an item that says so; an
    undoing is left out where what it undid is lost. WorkbenchError where `new` exists or nothing can be read.
    """
    source, target = resolve(damaged), resolve(new)
    if not source.is_file():
        raise WorkbenchError(f"There is no file {shown(source)}: give the path of the damaged store.")
    if target.exists():
        raise WorkbenchError(f"{shown(target)} exists: give the path of a new file for what is salvaged.")
    found = _readable_rows(source)
    if not any(found.values()):
        raise WorkbenchError(f"Nothing in {shown(source)} can be read as a store of judgements.")
    known, kept = {row["item_id"] for row in found["item"]}, {row["seq"] for row in found["judgement"]}
    found["judgement"] = [row for row in found["judgement"] if row["undoes"] is None or row["undoes"] in kept]
    for row in found["judgement"]:
        if row["item_id"] not in known:
            known.add(row["item_id"])
            found["item"].append(_unreadable_item(row))
    with closing(Store(target)) as store, store.transaction() as database:
        for table, rows in found.items():
            for row in rows:
                marks = ", ".join("?" * len(row))
                database.execute(f"INSERT INTO {table}({', '.join(row)}) VALUES({marks})", list(row.values()))
    return {table: len(rows) for table, rows in found.items()}


def _readable_rows(source: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of both tables, read from a copy: opening a damaged file may change it."""
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("", "-wal"):
            if source.with_name(source.name + suffix).exists():
                shutil.copyfile(source.with_name(source.name + suffix), Path(folder, "copy" + suffix))
        with closing(sqlite3.connect(Path(folder, "copy"))) as database:
            database.row_factory = sqlite3.Row
            return {table: list(_rows(database, table, key)) for table, key in KEYS.items()}


def _rows(database: sqlite3.Connection, table: str, key: str) -> Iterator[dict[str, Any]]:
    """Each row by its number, so that a bad page costs no rows but its own."""
    for number in range(1, _last(database, table, key) + 1):
        with suppress(sqlite3.DatabaseError, UnicodeDecodeError):
            row = database.execute(f"SELECT * FROM {table} NOT INDEXED WHERE {key} = ?", (number,)).fetchone()
            if row is not None:
                yield dict(row)


def _last(database: sqlite3.Connection, table: str, key: str) -> int:
    """The highest number of a row, 0 where not even the table can be found."""
    for query in (f"SELECT max({key}) FROM {table}", f"SELECT seq FROM sqlite_sequence WHERE name = '{table}'"):
        with suppress(sqlite3.DatabaseError):
            found = database.execute(query).fetchone()
            return found[0] or 0 if found else 0
    with suppress(sqlite3.DatabaseError):
        database.execute(f"SELECT 1 FROM {table} WHERE 0")
        return PROBED
    return 0


def _unreadable_item(judgement: dict[str, Any]) -> dict[str, Any]:
    completions = [f"(unreadable {number})" for number in range(len(json.loads(judgement["shown_order"])) or 1)]
    content = {"item_id": judgement["item_id"], "prompt": "(unreadable)", "completions": completions}
    return {"item_id": judgement["item_id"], "content": json.dumps(content), "added_at": judgement["created_at"]}


def main(arguments: list[str]) -> int:
    """The command line; the exit code."""
    if len(arguments) != 2:
        print("usage: python -m workbench.feedback.salvage DAMAGED NEW", file=sys.stderr)
        return BAD_INPUT
    try:
        counts = salvage(*arguments)
    except WorkbenchError as error:
        print(f"salvage: {error}", file=sys.stderr)
        return BAD_INPUT
    print(f"{counts['judgement']} rows of the log and {counts['item']} items are in {arguments[1]}")
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
