"""The tables of a store of judgements, and the marks in the file's header that tell one."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench import WorkbenchError
from workbench.feedback.kinds import require_kind, require_verdict
from workbench.feedback.tables import jsonable, labeler_name, require_items
from workbench.records import Judgement
from workbench.runs.files import file_system, resolve, shown, whole_characters

SCHEMA_VERSION = 1
APPLICATION_ID = 0x524C4846  # says in the file's header that it is a store of judgements
SCHEMA = (
    """CREATE TABLE item(
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        item_id TEXT NOT NULL UNIQUE,
        content TEXT NOT NULL,
        added_at REAL NOT NULL)""",
    """CREATE TABLE judgement(
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        event_id TEXT NOT NULL UNIQUE,
        item_id TEXT NOT NULL REFERENCES item(item_id),
        labeler TEXT NOT NULL,
        kind TEXT NOT NULL,
        repeat INTEGER NOT NULL,
        action TEXT NOT NULL CHECK(action IN ('label', 'skip', 'undo')),
        value TEXT NOT NULL,
        details TEXT NOT NULL,
        shown_order TEXT NOT NULL,
        elapsed_ms INTEGER NOT NULL,
        note TEXT NOT NULL,
        created_at REAL NOT NULL,
        undoes INTEGER UNIQUE REFERENCES judgement(seq))""",
    "CREATE INDEX judgement_of ON judgement(kind, labeler, item_id, repeat)",
    "CREATE INDEX judgement_on ON judgement(kind, action, item_id, repeat)",
    """CREATE TRIGGER judgement_stays BEFORE UPDATE ON judgement
        BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END""",
    """CREATE TRIGGER judgement_remains BEFORE DELETE ON judgement
        BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END""",
    """CREATE VIEW current_judgement AS
        SELECT * FROM judgement
        WHERE action <> 'undo' AND seq NOT IN (SELECT undoes FROM judgement WHERE undoes IS NOT NULL)""",
    # what a labeler looks at right now, so that nobody else is given it in the meantime
    """CREATE TABLE claim(
        item_id TEXT NOT NULL, labeler TEXT NOT NULL, kind TEXT NOT NULL, until REAL NOT NULL,
        PRIMARY KEY(kind, labeler))""",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
COLUMNS = "item_id, labeler, kind, repeat, value, details, shown_order, elapsed_ms, note, event_id, created_at"
JUDGEMENT_FIELDS = [name for name in COLUMNS.split(", ") if name != "created_at"]


# --- A durable log of judgements: one SQLite file that several labelers and processes write at once.
#
# Nothing is ever changed or removed: undoing is a row of its own. Each judgement is on the disk before its
# labeler is told so. The log survives a killed process; see `salvage` for a damaged disk.


BUSY_SECONDS = 10  # that a writer waits for another
# File systems of this machine; write-ahead logging needs memory that all readers share, which a network can not give.
LOCAL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "f2fs", "jfs", "apfs", "hfs", "bcachefs"}


class AlreadyJudged(WorkbenchError):
    """The labeler has judged this item before, perhaps in another tab."""


class Store:
    """The judgements in one file. A relative path starts at the repository root."""

    def __init__(self, path: str | Path) -> None:
        """Open the file, or make it with its folder.

        WorkbenchError where it can not be written, is damaged (it is left as it is), belongs to another program or was
        written by a newer version.
        """
        self.path = resolve(path)
        with self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.path.exists():
                self.path.touch(mode=0o600)
            self._db = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
            try:
                self._open()
            except BaseException:
                self._db.close()
                raise

    @property
    def journal(self) -> str:
        """ "wal", or "delete" on a network disk: slower, but no judgement depends on shared memory."""
        return self._db.execute("PRAGMA journal_mode").fetchone()[0]

    def close(self) -> None:
        """Let go of the file; another process may go on."""
        self._db.close()

    def add_items(self, items: Sequence[Mapping[str, Any]]) -> int:
        """Add what is to be judged, all or nothing; those that are there already stay. Returns how many were new.

        WorkbenchError for an item that can not be judged, and for one whose id is in the file with other content.
        """
        require_items(items)
        new = {item["item_id"]: jsonable(dict(item), f"Item {item['item_id']!r}") for item in items}
        with self.transaction():
            held = {item_id: content for item_id, content in self._db.execute("SELECT item_id, content FROM item")}
            for item_id in new.keys() & held.keys():
                if json.loads(held[item_id]) != json.loads(new[item_id]):
                    raise WorkbenchError(
                        f"Item {item_id!r} is in {shown(self.path)} with other content, and may have been judged: give "
                        "the changed item a new item_id, or another store."
                    )
            rows = [(item_id, content, time.time()) for item_id, content in new.items() if item_id not in held]
            self._db.executemany("INSERT INTO item(item_id, content, added_at) VALUES(?, ?, ?)", rows)
        return len(rows)

    def items(self) -> list[dict[str, Any]]:
        """Every item, in the order in which they were added."""
        with self._explained():
            found = self._db.execute("SELECT content FROM item ORDER BY position").fetchall()
        return [json.loads(content) for (content,) in found]

    def item(self, item_id: str) -> dict[str, Any]:
        """One item; WorkbenchError where there is none of this id."""
        with self._explained():
            found = self._db.execute("SELECT content FROM item WHERE item_id = ?", (item_id,)).fetchone()
        if found is None:
            raise WorkbenchError(f"There is no item {item_id!r} in {shown(self.path)}: add it first.")
        return json.loads(found[0])

    def record(self, judgement: Judgement) -> bool:
        """Write one judgement to the disk; False where this very event was written before.

        AlreadyJudged where the labeler has another judgement of this item, kind and repeat; WorkbenchError where it
        says nothing about its item, its event id belongs to another judgement, or the disk refuses it.
        """
        return self.record_all([judgement]) == 1

    def record_all(self, judgements: Iterable[Judgement]) -> int:
        """`record` of several, all or none; how many were new."""
        judgements = [replace(each, labeler=labeler_name(each.labeler)) for each in judgements]
        contents = {item_id: self.item(item_id) for item_id in {each.item_id for each in judgements}}
        for judgement in judgements:
            require_verdict(judgement, contents[judgement.item_id])
        with self.transaction():
            return sum(self._insert(judgement) for judgement in judgements)

    def replace(self, judgement: Judgement) -> None:
        """`record`, where what the labeler said of the item before no longer counts; both stay in the log."""
        judgement = replace(judgement, labeler=labeler_name(judgement.labeler))
        require_verdict(judgement, self.item(judgement.item_id))
        key = (judgement.kind, judgement.labeler, judgement.item_id, judgement.repeat)
        where = "WHERE kind = ? AND labeler = ? AND item_id = ? AND repeat = ? AND event_id <> ?"
        with self.transaction() as db:
            before = db.execute(f"SELECT seq FROM current_judgement {where}", (*key, judgement.event_id)).fetchone()
            if before:
                self._take_back(*before, key, uuid.uuid4().hex)
            self._insert(judgement)

    def knows(self, event_id: str) -> bool:
        """Whether an event was written, undone or not."""
        with self._explained():
            found = self._db.execute("SELECT 1 FROM judgement WHERE event_id = ?", (event_id,)).fetchone()
        return found is not None

    def undo(self, labeler: str, kind: str, *, event_id: str = "") -> str:
        """Take back the labeler's last judgement of a kind that still stands; its item's id, "" where there is none.

        The same `event_id` undoes once, however often it arrives.
        """
        require_kind(kind)
        event_id = event_id or uuid.uuid4().hex
        with self.transaction():
            known = self._db.execute("SELECT item_id FROM judgement WHERE event_id = ?", (event_id,)).fetchone()
            if known:
                return known[0]
            last = self._db.execute(
                "SELECT seq, item_id, repeat FROM current_judgement WHERE +labeler = ? AND +kind = ? "
                "ORDER BY seq DESC LIMIT 1",
                (labeler, kind),
            ).fetchone()
            if last is None:
                return ""
            seq, item_id, repeat = last
            self._take_back(seq, (kind, labeler, item_id, repeat), event_id)
        return item_id

    def judgements(self, kind: str = "") -> list[Judgement]:
        """Judgements that stand, of one kind or all, in the order in which they were made."""
        where, values = ("WHERE kind = ?", (kind,)) if kind else ("", ())
        rows = self._rows(f"{where} ORDER BY seq", values)
        return [Judgement(**{name: row[name] for name in JUDGEMENT_FIELDS}) for row in rows]

    def latest(self, labeler: str, kind: str, count: int) -> list[dict[str, Any]]:
        """The labeler's last judgements of a kind that stand, the latest first: their fields, and created_at."""
        return self._rows("WHERE +labeler = ? AND +kind = ? ORDER BY seq DESC LIMIT ?", (labeler, kind, count))

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The connection while nobody else writes; everything is kept at its end, nothing where it fails."""
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _take_back(self, seq: int, key: tuple[str, str, str, int], event_id: str) -> None:
        self._db.execute(
            "INSERT INTO judgement(event_id, kind, labeler, item_id, repeat, action, value, details, shown_order, "
            "elapsed_ms, note, created_at, undoes) VALUES(?, ?, ?, ?, ?, 'undo', 'null', '{}', '[]', 0, '', ?, ?)",
            (event_id, *key, time.time(), seq),
        )

    def _insert(self, judgement: Judgement) -> bool:
        key = (judgement.kind, judgement.labeler, judgement.item_id, judgement.repeat)
        asked = "SELECT kind, labeler, item_id, repeat, value FROM judgement WHERE event_id = ?"
        known = self._db.execute(asked, (judgement.event_id,)).fetchone()
        if known:
            if known[:4] == key and json.loads(known[4]) == judgement.value:
                return False
            raise WorkbenchError(
                f"The event {judgement.event_id!r} is in {shown(self.path)} as another judgement: give each its own."
            )
        where = "WHERE kind = ? AND labeler = ? AND item_id = ? AND repeat = ?"
        if self._db.execute(f"SELECT 1 FROM current_judgement {where}", key).fetchone():
            raise AlreadyJudged(
                f"{judgement.labeler!r} has judged item {judgement.item_id!r} already: undo that to change it."
            )
        what = f"The judgement of item {judgement.item_id!r}"
        texts = [jsonable(value, what) for value in (judgement.value, dict(judgement.details), judgement.shown_order)]
        action = "skip" if judgement.value == "skip" else "label"
        self._db.execute(
            f"INSERT INTO judgement(action, {COLUMNS}) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                action,
                *(judgement.item_id, judgement.labeler, judgement.kind, judgement.repeat),
                *(*texts, judgement.elapsed_ms, whole_characters(judgement.note), judgement.event_id, time.time()),
            ),
        )
        return True

    def _rows(self, which: str, values: Sequence[Any]) -> list[dict[str, Any]]:
        names = COLUMNS.split(", ")
        with self._explained():
            found = self._db.execute(f"SELECT {COLUMNS} FROM current_judgement {which}", values).fetchall()
        rows = [dict(zip(names, row, strict=True)) for row in found]
        for row in rows:
            for column in ("value", "details", "shown_order"):
                row[column] = json.loads(row[column])
        return rows

    def _open(self) -> None:
        """Check what is there, choose how it is written, make the tables where there are none."""
        self._require_ours()
        for suffix in ("", "-wal", "-shm"):
            _close_to_others(self.path.with_name(self.path.name + suffix))
        self._set_journal("wal" if file_system(self.path.parent) in LOCAL else "delete")
        # FULL: a commit in write-ahead mode outlives a power cut; EXTRA: the removed journal does, too
        self._db.execute(f"PRAGMA synchronous={'FULL' if self.journal == 'wal' else 'EXTRA'}")
        self._db.execute("PRAGMA foreign_keys=ON")
        with self.transaction():
            if not self._db.execute("PRAGMA application_id").fetchone()[0]:
                for statement in SCHEMA:
                    self._db.execute(statement)

    def _set_journal(self, wanted: str) -> None:
        """SQLite does not wait for others when the journal changes, so this does."""
        until = time.monotonic() + BUSY_SECONDS
        while self.journal != wanted:
            try:
                self._db.execute(f"PRAGMA journal_mode={wanted}")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.02)

    def _require_ours(self) -> None:
        damage = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if damage != "ok":
            raise sqlite3.DatabaseError(damage)
        application = self._db.execute("PRAGMA application_id").fetchone()[0]
        if application != APPLICATION_ID and self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise WorkbenchError(f"{shown(self.path)} is a database of another program: give another path.")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise WorkbenchError(
                f"{shown(self.path)} was written by a newer version (its schema is {version}, this one knows up to "
                f"{SCHEMA_VERSION}): update the workbench, or give another path as the store."
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Whatever the disk or SQLite has to say, in a sentence."""
        name = shown(self.path)
        try:
            yield
        except sqlite3.Error as error:
            raise WorkbenchError(_explanation(name, error)) from None
        except OSError as error:
            raise WorkbenchError(
                f"{name} can not be written ({error.strerror}): give a store in a folder that can be."
            ) from None


def _close_to_others(file: Path) -> None:
    """Judgements name people: only the owner reads them, also in a file of before; SQLite's own files follow it."""
    with suppress(PermissionError, FileNotFoundError):  # somebody else's file is theirs to close; there may be none
        if file.stat().st_mode & 0o077:
            file.chmod(file.stat().st_mode & 0o700)


def _explanation(name: str, error: sqlite3.Error) -> str:
    text = " ".join(str(error).split())
    if "unable to open" in text or "readonly" in text or "read-only" in text:
        return f"{name} can not be written ({text}): give a store in a folder that can be."
    if "full" in text:
        return f"{name} could not be written, the disk is full: free some space, then save again; nothing else is lost."
    if "locked" in text or "busy" in text:
        return f"{name} is held by another program for over {BUSY_SECONDS} seconds: close that one, then save again."
    if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
        return f"{name} refused the row ({text})."
    return (
        f"{name} is damaged or no store ({text}); it was left as it is. To get the readable judgements out of it, run "
        f"`python -m workbench.feedback.salvage {name} NEW_FILE`, or give another path as the store."
    )
