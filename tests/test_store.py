"""Oracles: what is in the file, read with SQLite itself; processes that are killed; real disk limits."""

import json
import multiprocessing
import random
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
from judgements import judged as judgement
from judgements import log_of

from workbench import WorkbenchError
from workbench.feedback import store as store_module
from workbench.feedback.exchange import export
from workbench.feedback.salvage import main as salvage_command
from workbench.feedback.salvage import salvage
from workbench.feedback.store import AlreadyJudged, Store

WRITER = Path(__file__).parent / "killed_writer.py"


def items(count, completions=2):
    texts = [f"text {place}" for place in range(completions)]
    return [{"item_id": f"i{number}", "prompt": f"prompt {number}", "completions": texts} for number in range(count)]


def judged(item, value=0, labeler="ada", kind="pair", shown_order=(1, 0), **others):
    given = {"elapsed_ms": 900, "event_id": f"{labeler}-{item}-{kind}", "shown_order": shown_order, **others}
    return judgement(item, value, labeler, kind=kind, **given)


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "labels.db")
    opened.add_items(items(4))
    yield opened
    opened.close()


def test_every_kind_comes_back_as_it_was_given(tmp_path):
    with_all = Store(tmp_path / "all.db")
    with_all.add_items(items(1))
    given = [
        judged("i0", 1, details={"strength": 3}, note="zögerlich · 😀"),
        judged("i0", [[1], [0]], kind="ranking"),
        judged("i0", 1, kind="best_of"),
        judged("i0", [6, None], kind="rating", details={"flags": [["false"], []]}),
        judged("i0", "what it should say\n", kind="correction", details={"completion": 1}),
        judged("i0", "skip", labeler="bob"),
        judged("i0", "tie", labeler="cy", repeat=0),
        judged("i0", 0, labeler="cy", repeat=1, event_id="again"),
    ]
    assert with_all.record_all(given) == len(given)
    assert with_all.judgements() == given
    assert [each.value for each in with_all.judgements("pair")] == [1, "skip", "tie", 0]
    with_all.close()
    assert Store(tmp_path / "all.db").judgements() == given


def test_an_event_is_stored_once_and_an_item_judged_once(store):
    assert store.record(judged("i0", 1))
    assert not store.record(judged("i0", 1))
    with pytest.raises(AlreadyJudged, match="'ada' has judged item 'i0' already: undo"):
        store.record(judged("i0", 0, event_id="other tab"))
    assert store.record(judged("i0", 0, labeler="bob"))
    assert [each.value for each in store.judgements()] == [1, 0]


def test_an_event_that_says_something_else_is_refused_rather_than_lost(store):
    store.record(judged("i0", 1, event_id="e"))
    for other in (judged("i0", 0, event_id="e"), judged("i1", 1, event_id="e"), judged("i0", 1, "bob", event_id="e")):
        with pytest.raises(WorkbenchError, match=r"The event 'e' is in .* as another judgement"):
            store.record(other)


def test_undo_is_a_row_and_the_item_can_be_judged_again(store):
    store.record(judged("i0"))
    store.record(judged("i1"))
    assert store.undo("ada", "pair", event_id="u1") == "i1"
    assert store.undo("ada", "pair", event_id="u1") == "i1"  # delivered twice, undone once
    assert [each.item_id for each in store.judgements()] == ["i0"]
    store.record(judged("i1", 1, event_id="second thoughts"))
    assert [each.value for each in store.judgements()] == [0, 1]
    log = log_of(store)
    assert log["action"].tolist() == ["label", "label", "undo", "label"]
    assert log["undoes"].tolist()[2] == log["seq"].tolist()[1]


def test_a_judgement_in_the_place_of_another_is_stored_once_or_not_at_all(store):
    store.record(judged("i0", 0, event_id="a"))
    store.record(judged("i0", 0, labeler="bob", event_id="b"))
    for _ in range(2):  # a repeated message changes nothing
        store.replace(judged("i0", 1, event_id="c"))
        assert [(each.event_id, each.value) for each in store.judgements()] == [("b", 0), ("c", 1)]
    with pytest.raises(WorkbenchError, match="another judgement"):
        store.replace(judged("i0", 0, event_id="b"))
    assert len(store.judgements()) == 2
    assert [row["event_id"] for row in store.latest("ada", "pair", 9)] == ["c"]
    assert log_of(store)["action"].tolist() == ["label", "label", "undo", "label"]


def test_undo_takes_back_only_ones_own_of_the_same_kind(store):
    store.record(judged("i0"))
    store.record(judged("i1", 0, kind="best_of"))
    store.record(judged("i2", labeler="bob"))
    assert store.undo("ada", "pair") == "i0"
    assert store.undo("ada", "pair") == ""
    assert [each.item_id for each in store.judgements()] == ["i1", "i2"]


def test_the_file_itself_refuses_to_forget(store):
    store.record(judged("i0"))
    raw = sqlite3.connect(store.path)
    for statement in ("UPDATE judgement SET value = '1'", "DELETE FROM judgement"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            raw.execute(statement)
    raw.close()


def test_several_are_kept_whole_or_not_at_all(store):
    with pytest.raises(AlreadyJudged):
        store.record_all([judged("i0"), judged("i1"), judged("i1", event_id="twice")])
    assert store.judgements() == []


@pytest.mark.parametrize(
    ("judgement", "sentence"),
    [
        (judged("i9"), "There is no item 'i9' in"),
        (judged("i0", 2), "has the value 2: give 0, 1 or 'tie'"),
        (judged("i0", True), "has the value True"),
        (judged("i0", float("nan"), kind="rating"), "has the value nan: give a number or None"),
        (judged("i0", [float("nan"), 1], kind="rating"), "has the value \\[nan, 1\\]: give a number or None"),
        (judged("i0", [[0]], kind="ranking"), "groups of the completions' indices"),
        (judged("i0", [[0], [0, 1]], kind="ranking"), "each index once"),
        (judged("i0", [None, None], kind="rating"), "not None for all"),
        (judged("i0", "  ", kind="correction"), "the text that should have been written"),
        (judged("i0", kind="mood"), "no judgement of kind 'mood': use one of pair, ranking"),
        (judged("i0", shown_order=[0]), "was shown as \\[0\\]: name each completion once"),
        (judged("i0", labeler=""), "labeler is '': give the name of who judges"),
        (judged("i0", labeler="a" * 10_000), "has 10000 characters .* at most 100"),
        (judged("i0", labeler="ada\n"), None),
        (judged("i0", labeler="a\x00b"), "characters that do not print"),
        (judged("i0", details={"strength": 9}), "strength 9: give one of"),
    ],
)
def test_what_means_nothing_is_not_stored(store, judgement, sentence):
    if sentence is None:  # blanks around a name are nobody's fault
        assert store.record(judgement)
        return
    with pytest.raises(WorkbenchError, match=sentence):
        store.record(judgement)
    assert store.judgements() == []


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([{"item_id": "a", "prompt": "p"}], "Item 'a' lacks item_id, prompt or completions"),
        ([{"item_id": "", "prompt": "p", "completions": ["x"]}], "place 6 has the id ''"),
        (2 * [{"item_id": "a", "prompt": "p", "completions": ["x"]}], "Item 'a' appears twice"),
        ([{"item_id": "a", "prompt": "p", "completions": []}], "has completions \\[\\]"),
        ([{"item_id": "a", "prompt": "p", "completions": [3]}], "a completion that is 3"),
        ([{"item_id": "a", "prompt": None, "completions": ["x"]}], "a prompt that is None"),
        ([{"item_id": "a", "prompt": "p", "completions": ["x"], "when": object()}], "can not be stored"),
    ],
)
def test_items_that_nobody_can_judge_are_refused_with_all_that_came_along(store, given, sentence):
    before = store.items()
    with pytest.raises(WorkbenchError, match=sentence):
        store.add_items([*items(6), *given])
    assert store.items() == before


def test_an_item_never_changes_under_its_judgements(store):
    assert store.add_items(items(5)) == 1  # four are there, the same
    changed = [{**items(1)[0], "prompt": "another"}]
    with pytest.raises(WorkbenchError, match=r"Item 'i0' is in .* with other content"):
        store.add_items(changed)
    assert store.item("i0")["prompt"] == "prompt 0"


def test_any_text_is_kept_to_the_letter(tmp_path):
    texts = ["<script>alert(1)</script>", "אבג שלום", "😀‍🔥" * 10, "x" * 50_000, "tab\tnew\nline \x01"]
    store = Store(tmp_path / "a.db")
    store.add_items([{"item_id": "a", "prompt": [{"role": "user", "content": "hi"}], "completions": texts}])
    assert store.items()[0]["completions"] == texts


def write_rows(path, labeler, count):
    store = Store(path)
    for number in range(count):
        assert store.record(judged(f"i{number}", number % 2, labeler=labeler))


def test_three_processes_lose_nothing_to_each_other(tmp_path):
    path = tmp_path / "shared.db"
    Store(path).add_items(items(120))
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=write_rows, args=(path, labeler, 120)) for labeler in ("ada", "bob", "cy")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    table = pd.DataFrame([vars(each) for each in Store(path).judgements()])
    assert len(table) == 360 and not table.duplicated(["labeler", "item_id"]).any()
    assert (table["value"] == table["item_id"].str[1:].astype(int) % 2).all()


def test_a_killed_writer_loses_nothing_that_it_was_told_is_saved(tmp_path):
    """The writer prints each event after `record` returned; it is killed at random moments, 20 times on one file.

    `python tests/killed_writer.py DATABASE KILLS` does the same a thousand times.
    """
    result = subprocess.run(
        [sys.executable, WRITER, tmp_path / "k.db", "20"], capture_output=True, text=True, check=True, timeout=120
    )
    report = json.loads(result.stdout)
    assert report["kills"] == 20 and report["acknowledged"] > 20
    assert report["lost"] == 0 and report["integrity"] == "ok"


def test_a_network_disk_is_written_without_shared_memory(tmp_path, monkeypatch):
    assert Store(tmp_path / "here.db").journal == "wal"
    monkeypatch.setattr(store_module, "file_system", lambda folder: "nfs4")
    remote = Store(tmp_path / "there.db")
    assert remote.journal == "delete"
    remote.add_items(items(1))
    remote.record(judged("i0"))
    assert sorted(path.name for path in tmp_path.glob("there*")) == ["there.db"]


def test_a_file_of_a_newer_version_is_refused_untouched(store):
    store.close()
    raw = sqlite3.connect(store.path)
    raw.execute("PRAGMA user_version = 2")
    raw.close()
    before = store.path.read_bytes()
    with pytest.raises(WorkbenchError, match=r"written by a newer version .its schema is 2, this one knows up to 1.:"):
        Store(store.path)
    assert store.path.read_bytes() == before


def test_a_database_of_another_program_is_refused(tmp_path):
    raw = sqlite3.connect(tmp_path / "other.db")
    raw.execute("CREATE TABLE contacts(name)")
    raw.close()
    with pytest.raises(WorkbenchError, match=r"other\.db is a database of another program"):
        Store(tmp_path / "other.db")


def damaged_copy(tmp_path, *, start):
    """A store of 400 judgements with a page of garbage at `start`."""
    path = tmp_path / "whole.db"
    store = Store(path)
    store.add_items(items(400))
    store.record_all([judged(f"i{number}") for number in range(400)])
    store.undo("ada", "pair")
    store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()
    data = bytearray(path.read_bytes())
    data[start : start + 4096] = random.Random(0).randbytes(4096)
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(data)
    return damaged


def test_a_damaged_file_is_refused_untouched_and_what_is_readable_is_salvaged(tmp_path, capsys):
    damaged = damaged_copy(tmp_path, start=4096 * 20)
    before = damaged.read_bytes()
    with pytest.raises(WorkbenchError, match=r"damaged\.db is damaged .* left as it is.*feedback.salvage"):
        Store(damaged)
    assert salvage_command([str(damaged), str(tmp_path / "new.db")]) == 0
    assert "rows of the log and" in capsys.readouterr().out
    assert damaged.read_bytes() == before
    saved = Store(tmp_path / "new.db")
    whole = {each.event_id: each for each in Store(tmp_path / "whole.db").judgements()}
    found = saved.judgements()
    assert 300 <= len(found) <= 400
    assert all(each == whole.get(each.event_id, each) for each in found)


def test_a_file_without_a_readable_row_is_said_to_be_so(tmp_path):
    (tmp_path / "noise.db").write_bytes(random.Random(1).randbytes(20_000))
    with pytest.raises(WorkbenchError, match=r"noise\.db is damaged or no store"):
        Store(tmp_path / "noise.db")
    with pytest.raises(WorkbenchError, match=r"Nothing in .*noise.db can be read"):
        salvage(tmp_path / "noise.db", tmp_path / "new.db")
    assert salvage_command([str(tmp_path / "none.db"), str(tmp_path / "new.db")]) == 2
    assert not (tmp_path / "new.db").exists()


def test_a_full_disk_is_said_and_what_was_saved_stays(store):
    store.record(judged("i0"))
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own limit fails as a full disk does
    with pytest.raises(WorkbenchError, match="the disk is full: free some space, then save again"):
        store.record(judged("i1", note="x" * 50_000))
    assert [each.item_id for each in store.judgements()] == ["i0"]
    store._db.execute("PRAGMA max_page_count = 100000")
    assert store.record(judged("i1"))


READ_ONLY = """
import os, sys
from workbench import WorkbenchError
from workbench.feedback.store import Store
if os.getuid() == 0:  # whom no folder refuses
    os.setgid(65534); os.setuid(65534)
try:
    Store(sys.argv[1])
except WorkbenchError as error:
    print(error)
"""


def test_a_folder_that_may_not_be_written_is_said_to_be_so(tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    for parent in (folder, *folder.parents[:3]):
        parent.chmod(0o755)
    asked = [sys.executable, "-c", READ_ONLY, folder / "labels.db"]
    said = subprocess.run(asked, capture_output=True, text=True)
    assert "labels.db can not be written" in said.stdout and "in a folder that can be" in said.stdout, said.stderr
    assert list(folder.iterdir()) == []


def test_a_writer_that_waits_too_long_says_so(store, monkeypatch):
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store._db.execute("PRAGMA busy_timeout = 50")
    with pytest.raises(WorkbenchError, match="held by another program"):
        store.record(judged("i0"))
    other.execute("ROLLBACK")
    assert store.record(judged("i0"))


def test_acknowledged_rows_are_on_the_disk_not_only_in_memory(store):
    """A second connection sees the row, and the log's file holds its bytes, before the process ends."""
    store.record(judged("i0", note="find me in the file"))
    written = store.path.read_bytes() + store.path.with_name("labels.db-wal").read_bytes()
    assert b"find me in the file" in written
    assert store._db.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL


def test_a_store_and_its_exports_are_for_their_owner_only(tmp_path):
    path = tmp_path / "labels.db"
    path.touch(mode=0o644)  # as one of before
    old = Store(path)
    old.add_items(items(2))
    old.record(judged("i0"))
    files = sorted(tmp_path.glob("labels.db*"))
    assert len(files) == 3  # with what SQLite writes beside it
    export(old.items(), old.judgements(), tmp_path / "out")
    for file in (*files, tmp_path / "out" / "preferences.jsonl"):
        assert file.stat().st_mode & 0o777 == 0o600
    old.close()


def test_a_file_of_somebody_else_is_left_as_it_is(tmp_path):
    (tmp_path / "notes.db").write_text("my notes\n" * 200, encoding="utf-8")
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE a(b)")
    for path in (tmp_path / "notes.db", tmp_path / "other.db"):
        path.chmod(0o664)
        before = path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes()
        with pytest.raises(WorkbenchError, match=r"no store|of another program"):
            Store(path)
        assert (path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes()) == before


def test_a_labeler_is_one_under_every_spelling_of_the_name(store):
    store.add_items(items(2))
    assert store.record(judged("i0", labeler=" Zoe\u0308  M"))
    assert store.record(judged("i1", labeler="Zo\u00eb\u00a0M "))
    assert {each.labeler for each in store.judgements()} == {"Zo\u00eb M"}
    with pytest.raises(AlreadyJudged):
        store.record(judged("i0", labeler="Zoe\u0308 M", event_id="later"))


def test_half_a_character_in_a_note_is_replaced(store):
    store.add_items(items(1))
    store.record(judged("i0", note="hm \ud83d"))
    assert [each.note for each in store.judgements()] == ["hm \ufffd"]
