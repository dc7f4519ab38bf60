"""Files are whole or as they were, whatever happens while they are written."""

import datetime
import decimal
import hashlib
import json
import math
import os
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_runs import refused

from workbench import WorkbenchError
from workbench.runs import files


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)


def test_relative_paths_start_at_the_repository_whatever_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert files.resolve("runs/x") == Path(__file__).parents[1] / "runs" / "x"
    assert files.resolve(tmp_path / "x") == tmp_path / "x"
    assert files.shown(files.repository_root() / "runs" / "x") == files.shown("runs/x") == "runs/x"


def test_a_written_text_reads_back_and_makes_its_folder(tmp_path):
    files.write_text(tmp_path / "a" / "b.txt", "größer\n")
    assert contents(tmp_path) == {"a/b.txt": "größer\n".encode()}


def test_an_interrupted_file_leaves_the_previous_one_whose_readers_read_it_to_its_end(tmp_path):
    files.write_text(tmp_path / "a.txt", "before")
    with pytest.raises(KeyboardInterrupt), files.replace_file(tmp_path / "a.txt") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert contents(tmp_path) == {"a.txt": b"before"}
    with open(tmp_path / "a.txt") as reader:
        files.write_text(tmp_path / "a.txt", "after")
        assert reader.read() == "before"


def test_a_folder_is_replaced_with_everything_in_it_and_an_interrupted_one_leaves_it(tmp_path):
    for text in ("first", "second"):
        with files.replace_folder(tmp_path / "model") as folder:
            (folder / f"{text}.txt").write_text(text)
    with pytest.raises(KeyboardInterrupt), files.replace_folder(tmp_path / "model") as folder:
        (folder / "second.txt").write_text("half")
        raise KeyboardInterrupt
    assert contents(tmp_path) == {"model/second.txt": b"second"}


def test_a_folder_whose_last_rename_fails_comes_back(tmp_path, monkeypatch):
    with files.replace_folder(tmp_path / "model") as folder:
        (folder / "a.txt").write_text("before")
    rename, calls = os.rename, []

    def fails_second(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails_second)
    with pytest.raises(WorkbenchError, match="disk is full"), files.replace_folder(tmp_path / "model") as folder:
        (folder / "a.txt").write_text("after")
    assert contents(tmp_path) == {"model/a.txt": b"before"}


FILL_THE_DISK = """
import resource, signal, sys
from pathlib import Path
from workbench.runs import files
folder = Path(sys.argv[1])
files.write_text(folder / "a.txt", "before")
files.append_lines(folder / "rows.jsonl", ["{}"])
with files.replace_folder(folder / "model") as model:
    (model / "w").write_text("before")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing past the limit is then an error, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
def write_model():
    with files.replace_folder(folder / "model") as model:
        (model / "w").write_text("x" * 20_000)
for write in (
    lambda: files.write_text(folder / "a.txt", "x" * 20_000),
    lambda: files.append_lines(folder / "rows.jsonl", ["x" * 6_000, "x" * 6_000]),
    write_model,
):
    try:
        write()
    except ValueError as error:
        print(type(error).__name__, error)
"""


def test_a_full_disk_is_one_sentence_and_changes_nothing(tmp_path):
    lines = run_python(FILL_THE_DISK, str(tmp_path)).stdout.splitlines()
    assert len(lines) == 3
    for line, name in zip(lines, ("a.txt", "rows.jsonl", "model"), strict=True):
        assert line.startswith(f"WorkbenchError {tmp_path}/{name} was not written because the disk is full")
    assert contents(tmp_path) == {"a.txt": b"before", "rows.jsonl": b"{}\n", "model/w": b"before"}


def test_a_full_disk_in_the_words_of_a_library_is_the_same_sentence(tmp_path):
    with refused("disk is full"), files.replace_file(tmp_path / "a"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    assert contents(tmp_path) == {}


def test_errors_of_the_writer_itself_keep_their_own_words(tmp_path):
    with pytest.raises(KeyError), files.replace_file(tmp_path / "a"):
        raise KeyError("mine")


def test_a_path_below_a_file_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "a").write_text("I am a file")
    for write in (lambda path: files.write_text(path, "x"), lambda path: files.append_lines(path, ["x"])):
        with refused("cannot be written"):
            write(tmp_path / "a" / "b.txt")


def test_what_a_killed_writer_left_is_removed_and_a_living_writer_is_not_disturbed(tmp_path):
    dead = run_python("import os; print(os.getpid())").stdout.strip()
    (tmp_path / f".a.txt.{dead}.partial").write_text("half")
    others = {f".a.txt.{os.getppid()}.partial", f".a.txt.gz.{dead}.partial"}
    for name in others:
        (tmp_path / name).write_text("someone else's half")
    files.write_text(tmp_path / "a.txt", "whole")
    assert set(contents(tmp_path)) == {"a.txt", *others}


def test_the_hash_of_a_file_is_the_published_one(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert files.sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_hash_of_a_folder_depends_on_names_and_contents_and_nothing_else(tmp_path):
    def folder_hash(name: str, **texts: str) -> str:
        for key, text in texts.items():
            files.write_text(tmp_path / name / "deep" / key, text)
        return files.sha256(tmp_path / name)

    original = folder_hash("one", a="x", b="y")
    assert folder_hash("two", b="y", a="x") == original
    assert len({original, folder_hash("3", a="y", b="x"), folder_hash("4", a="x"), folder_hash("5", a="x", c="y")}) == 4


def test_hashing_what_is_missing_names_it_in_one_sentence(tmp_path):
    with refused("no_such_model does not exist"):
        files.sha256(tmp_path / "no_such_model")


def test_a_half_written_last_line_is_not_read(tmp_path):
    files.append_lines(tmp_path / "rows.jsonl", ['{"a": 1}', '{"a": 2}'])
    with open(tmp_path / "rows.jsonl", "a") as file:
        file.write('{"a": 3')
    assert files.read_json_lines(tmp_path / "rows.jsonl") == [{"a": 1}, {"a": 2}]
    assert files.read_json_lines(tmp_path / "none.jsonl") == []


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    files.append_lines(tmp_path / "rows.jsonl", ['{"a": 1}', '{"a"', '{"a": 2}'])
    with pytest.raises(WorkbenchError, match=r"rows\.jsonl holds a line that is not JSON"):
        files.read_json_lines(tmp_path / "rows.jsonl")


def test_numbers_keep_every_digit(tmp_path):
    value = 0.1 + 0.2
    files.append_lines(tmp_path / "rows.jsonl", [files.json_line({"a": value})])
    assert files.read_json_lines(tmp_path / "rows.jsonl") == [{"a": value}]
    assert hashlib.sha256(b'{"a": 0.30000000000000004}\n').hexdigest() == files.sha256(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (datetime.datetime(2024, 3, 31, 2, 30, tzinfo=datetime.UTC), '"2024-03-31 02:30:00+00:00"'),
        (datetime.timedelta(seconds=90), '"0:01:30"'),
        (decimal.Decimal("0.10"), '"0.10"'),
        (uuid.UUID(int=3), '"00000000-0000-0000-0000-000000000003"'),
        (pd.Timestamp("2024-03-31"), '"2024-03-31 00:00:00"'),
        (b"\x00\xff", '"2 bytes"'),
        (2**70, "1180591620717411303424"),
        (math.nan, "null"),
        (-math.inf, "null"),
        (np.float32("nan"), "null"),
        (decimal.Decimal("NaN"), "null"),
        (pd.NaT, "null"),
        (pd.NA, "null"),
        (np.array([[1.5, np.nan]]), "[[1.5, null]]"),
        ({1: {"a": (math.nan, True)}}, '{"1": {"a": [null, true]}}'),
        (Path("a/b"), '"a/b"'),
    ],
    ids=str,
)
def test_what_json_cannot_hold_is_written_as_text_a_size_or_nothing_and_read_by_strict_readers(
    value, written, tmp_path
):
    files.append_lines(tmp_path / "rows.jsonl", [files.json_line({"a": value})])
    assert (tmp_path / "rows.jsonl").read_text() == f'{{"a": {written}}}\n'
    json.loads((tmp_path / "rows.jsonl").read_text(), parse_constant=pytest.fail)  # NaN is none of JSON's constants


def test_half_a_character_never_ends_the_writing_and_comes_back(tmp_path):
    files.append_lines(tmp_path / "rows.jsonl", [files.json_line({"a": "hm \ud83d"})])
    assert files.read_json_lines(tmp_path / "rows.jsonl") == [{"a": "hm \ud83d"}]
    files.write_json(tmp_path / "run.json", {"dataset": "caf\udce9.jsonl"})  # how Python names a file that is not UTF-8
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8")) == {"dataset": "caf\udce9.jsonl"}


@pytest.mark.parametrize("text", ["plain é😀", "\ufeff\u0000", ""])
def test_whole_characters_stay_as_they_are(text):
    assert files.whole_characters(text) == text


@pytest.mark.parametrize("half", ["\ud83d", "\ude00", "\udcff"])
def test_half_a_character_becomes_the_sign_for_one_that_is_lost(half):
    assert files.whole_characters(f"a{half}b{half}") == "a\ufffdb\ufffd"
    assert files.parse_json(json.dumps({half: [f"{half} 😀"]})) == {"\ufffd": ["\ufffd 😀"]}


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "1" * 5_000])
def test_json_that_python_cannot_hold_is_a_value_error(text):
    with pytest.raises(ValueError):
        files.parse_json(text)


LOCK = "import sys\nfrom workbench.runs import files\nwith files.locked(sys.argv[1]): print('in')"


def test_two_processes_do_not_enter_one_lock(tmp_path):
    with files.locked(tmp_path / ".lock"):
        refused = run_python(LOCK, str(tmp_path / ".lock"))
    assert refused.returncode != 0 and f"Another process is writing in {tmp_path}" in refused.stderr
    assert run_python(LOCK, str(tmp_path / ".lock")).stdout == "in\n"
