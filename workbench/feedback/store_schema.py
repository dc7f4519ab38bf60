"""The tables of a store of judgements, and the marks in the file's header that tell one."""

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
