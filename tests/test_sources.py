"""Reading files, folders and the Hub: the same rows from every format, and one sentence for each broken source."""

import datetime
import decimal
import gzip
import json
import math
import time
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict

from workbench import WorkbenchError
from workbench.tasks.sources import read_source

ROWS = [{"prompt": 'a, "b"\nc', "completion": "é😀"}, {"prompt": "d", "completion": " 72"}]


def write(path: Path, content) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def json_lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def refused(source, split="train") -> str:
    with pytest.raises(WorkbenchError) as error:
        read_source(str(source), split=split)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_format_gives_the_same_rows(tmp_path):
    frame = Dataset.from_list(ROWS).to_pandas()
    write(tmp_path / "a.jsonl", json_lines(ROWS))
    write(tmp_path / "b.jsonl.gz", gzip.compress(json_lines(ROWS).encode()))
    write(tmp_path / "c.json", json.dumps(ROWS))
    frame.to_csv(tmp_path / "d.csv", index=False)
    frame.to_parquet(tmp_path / "e.parquet")
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "f")
    (tmp_path / "g").mkdir()
    write(tmp_path / "g" / "only.jsonl", json_lines(ROWS))
    for name in ("a.jsonl", "b.jsonl.gz", "c.json", "d.csv", "e.parquet", "f", "g"):
        assert read_source(str(tmp_path / name)).rows.to_list() == ROWS, name


def test_a_byte_order_mark_and_blank_lines_do_no_harm(tmp_path):
    assert read_source(write(tmp_path / "a.jsonl", "\ufeff\n" + json_lines(ROWS) + "\n")).rows.to_list() == ROWS
    assert read_source(write(tmp_path / "a.csv", "\ufeffprompt\nx\n")).rows.to_list() == [{"prompt": "x"}]


def test_a_column_that_appears_late_is_kept(tmp_path):
    source = write(tmp_path / "a.jsonl", json_lines([{"prompt": "a"}, {"prompt": "b", "margin": 1}]))
    assert read_source(source).rows.to_list() == [{"prompt": "a", "margin": None}, {"prompt": "b", "margin": 1}]


def test_reading_leaves_nothing_behind(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    write(tmp_path / "a.jsonl", json_lines(ROWS))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for name in ("saved", "a.jsonl", "."):
        read_source(str(tmp_path / name)).rows.map(
            lambda row: {**row, "n": 1}
        )  # which caches beside rows read from disk
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_relative_paths_do_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(read_source("data/examples/demonstrations.jsonl").rows) == 4


# --- splits


def test_files_of_a_folder_named_after_splits_are_its_splits(tmp_path):
    write(tmp_path / "train-0.jsonl", json_lines(ROWS[:1]))
    write(tmp_path / "train-1.jsonl", json_lines(ROWS[1:]))
    write(tmp_path / "test.jsonl", json_lines(ROWS[1:]))
    write(tmp_path / "notes.txt", "not data")
    assert read_source(str(tmp_path)).rows.to_list() == ROWS
    assert read_source(str(tmp_path), split="test").rows.to_list() == ROWS[1:]
    assert "no file for the split 'validation' (found: test.jsonl" in refused(tmp_path, "validation")


def test_a_saved_dataset_with_splits_gives_the_one_asked_for(tmp_path):
    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])).save_to_disk(tmp_path / "d")
    assert len(read_source(str(tmp_path / "d"), split="test").rows) == 1
    assert "use one of train, test" in refused(tmp_path / "d", "dev")


def test_data_without_splits_does_not_pass_its_training_rows_for_a_test_split(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    write(tmp_path / "a.jsonl", json_lines(ROWS))
    for name in ("saved", "a.jsonl", "."):
        assert "no split 'test'" in refused(tmp_path / name, "test")


def repository(folder: Path, *names: str) -> str:
    """A dataset as the Hub's client downloads it: rows in these files, and what lies beside them."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list([{"prompt": f"{number}"}]).to_pandas().to_parquet(folder / name)
    for name in ("README.md", ".gitattributes", "dataset_infos.json", ".cache/huggingface/x.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / name, "{}")
    return str(folder)


@pytest.mark.parametrize(
    ("names", "prompts"),
    [
        (["rows.parquet"], ["0"]),
        (["data/train-00000-of-00001.parquet"], ["0"]),
        (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"], ["0", "1"]),
        (["data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"], ["1"]),
        (["default/test/0000.parquet", "default/train/0000.parquet"], ["1"]),
        (["test/a.parquet", "train/a.parquet", "train/b.parquet"], ["1", "2"]),
        (["main/train.parquet"], ["0"]),
        (["train.parquet", "main/test.parquet"], ["0"]),
        (["testing.parquet", "training.parquet"], ["1"]),
    ],
    ids=str,
)
def test_a_repository_of_the_hub_is_read_as_it_was_downloaded(names, prompts, tmp_path):
    found = read_source(repository(tmp_path, *names))
    assert found.rows["prompt"][:] == prompts
    left = [name for name in names if "test" in name and "main" not in name]
    assert found.note == (f"Of {tmp_path} the split 'train' is read, not {Path(left[0]).name}." if left else "")


def test_several_datasets_in_one_folder_are_not_mixed(tmp_path):
    message = refused(repository(tmp_path / "a", "main/train.parquet", "socratic/train.parquet"))
    assert "a holds several datasets (main, socratic): give the folder of one of them" in message
    shards = [f"data/{split}-00000-of-00001.parquet" for split in ("test_sft", "train_gen", "train_sft")]
    message = refused(repository(tmp_path / "b", *shards))
    assert "b has several splits 'train' (train_gen, train_sft): give one file, or a folder of one" in message
    assert "neither a saved dataset" in refused(repository(tmp_path / "c"))


def test_no_row_is_read_twice_and_a_missing_part_is_said(tmp_path):
    message = refused(repository(tmp_path / "a", "train.parquet", "train.jsonl.gz"))
    assert message.endswith("a holds 'train' in several formats: keep one of them.")
    part = repository(tmp_path / "b", "data/train-00001-of-00003.parquet", "data/test-00000-of-00001.parquet")
    said = read_source(part).note.split(f"Of {part} the split 'train' is read, ")[1]
    assert said == f"not test-00000-of-00001.parquet. {part} has 1 of the 3 parts of 'train'."


@pytest.mark.parametrize(
    "source", ["/", "**", "~nobody/a.jsonl", "~no-such-user", "a" * 300, f"{'a/' * 3000}b", "a\0b"]
)
def test_what_is_no_place_of_data_is_refused_in_a_sentence(source):
    assert refused(source).endswith(".")


# --- broken files


def test_missing_unsupported_and_empty_sources_are_named(tmp_path):
    assert "gone.jsonl does not exist" in refused(tmp_path / "gone.jsonl")
    assert "gone/ever does not exist" in refused(tmp_path / "gone/ever")
    message = refused(write(tmp_path / "a.txt", "x"))
    assert "a.txt" in message and ".jsonl, .jsonl.gz, .json, .csv, .parquet" in message
    assert "source is empty" in refused(" ")
    (tmp_path / "empty").mkdir()
    assert "empty is neither a saved dataset" in refused(tmp_path / "empty")


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", ""), ("a.json", "[]"), ("a.csv", "prompt\n"), ("b.csv", ""), ("c.jsonl", "\n\n")]
)
def test_files_without_rows_are_refused(tmp_path, name, content):
    assert f"{name} holds no rows" in refused(write(tmp_path / name, content))


def test_a_truncated_or_damaged_gzip_is_called_so(tmp_path):
    whole = gzip.compress(json_lines([{"prompt": str(i) * 50} for i in range(500)]).encode())
    damaged = whole[:100] + bytes([whole[100] ^ 255, whole[101] ^ 255]) + whole[102:]
    for content in (whole[: len(whole) // 2], whole[:5], damaged, b"plain text"):
        assert "a.jsonl.gz is a truncated or damaged gzip file" in refused(write(tmp_path / "a.jsonl.gz", content))


def test_invalid_json_is_named_by_its_line(tmp_path):
    assert "a.jsonl, line 3 is not valid JSON" in refused(write(tmp_path / "a.jsonl", '{"a": 1}\n\n{"a": \n'))
    assert "line 2 is list, expected an object" in refused(write(tmp_path / "b.jsonl", '{"a": 1}\n[1]\n'))
    assert "name it .jsonl" in refused(write(tmp_path / "c.json", json_lines(ROWS)))
    assert "holds dict, expected a list" in refused(write(tmp_path / "d.json", '{"rows": []}'))
    assert "row 1 is int" in refused(write(tmp_path / "e.json", '[{"a": 1}, 2]'))


def test_broken_csv_is_named_by_its_line(tmp_path):
    for name, content in (("short", "a,b\n1,2\n3\n"), ("long", "a,b\n1,2\n3,4,5\n")):
        message = refused(write(tmp_path / f"{name}.csv", content))
        assert "line 3 does not have the header's 2 columns" in message
    assert "quote.csv, line 3 is not valid CSV" in refused(write(tmp_path / "quote.csv", 'a,b\n1,2\n1,"2\n3,4\n\n'))
    assert "line 5 does not" in refused(write(tmp_path / "after.csv", 'a,b\r\n1,"x\r\ny"\r\n\r\n3\r\n'))
    assert "names a column twice (a, b, a)" in refused(write(tmp_path / "twice.csv", "a,b,a\n1,2,3\n"))
    pyarrow.parquet.write_table(pyarrow.table([["x"], ["y"]], names=["a", "a"]), tmp_path / "twice.parquet")
    assert "names a column twice (a, a)" in refused(tmp_path / "twice.parquet")
    odd = write(tmp_path / "odd.jsonl", '{"a": "x", "b\\u0000c": 1}\n')
    assert read_source(str(odd)).rows.column_names == ["a", "bc"]


def test_a_long_document_is_one_cell_of_a_csv(tmp_path):
    text = "word " * 30_000
    assert read_source(write(tmp_path / "a.csv", f'text\nshort\n"{text}"\n')).rows["text"][:] == ["short", text]


def test_json_that_no_column_could_hold_is_named_by_its_line(tmp_path):
    for value in ("[" * 100_000, "1" * 5_000):
        message = refused(write(tmp_path / "a.jsonl", f'{{"a": 1}}\n{{"a": {value}'))
        assert "a.jsonl, line 2 is not valid JSON" in message
        assert "a.json is not valid JSON" in refused(write(tmp_path / "a.json", f'[{{"a": {value}'))


def test_text_that_is_not_utf8_is_named(tmp_path):
    for name in ("a.jsonl", "a.csv", "a.json"):
        content = "{}\n" * 9_000 + '{"a": "é"}'  # longer than what is read at once
        message = refused(write(tmp_path / name, content.encode("latin-1")))
        assert "line 9001 is not UTF-8 text (byte 27007, " in message and "save it as UTF-8" in message
        assert "line 1 is not UTF-8 text" in refused(write(tmp_path / name, "a,b".encode("utf-16")))


def test_a_truncated_parquet_file_and_a_broken_saved_dataset_are_named(tmp_path):
    Dataset.from_list(ROWS).to_pandas().to_parquet(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", (tmp_path / "a.parquet").read_bytes()[:-9])
    assert "b.parquet is not a whole Parquet file" in refused(tmp_path / "b.parquet")
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).unlink()
    assert "saved is not a whole saved dataset" in refused(tmp_path / "saved")


def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "a.jsonl").mkdir()
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "b.jsonl")  # a loop, which even root cannot read
    assert "neither a saved dataset" in refused(tmp_path / "a.jsonl")
    assert "b.jsonl" in refused(tmp_path / "b.jsonl")


def test_numbers_are_one_type(tmp_path):
    numbers = read_source(write(tmp_path / "b.jsonl", json_lines([{"margin": 1}, {"margin": 0.5}])))
    assert numbers.rows["margin"][:] == [1.0, 0.5] and numbers.mixed == {}


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([7, "n/a", None], ["7", "n/a", None]),
        ([True, 1], ["true", "1"]),
        ([1.5, True], ["1.5", "true"]),
        ([2**70, 5], ["1180591620717411303424", "5"]),
        ([{"year": 1999}, {"year": "unknown"}], ['{"year": 1999}', '{"year": "unknown"}']),
        ([{"a": 1}, ["a"], 3], ['{"a": 1}', '["a"]', "3"]),
        ([[1, "a"], []], ['[1, "a"]', "[]"]),
        ([{"a": [{"b": 1}]}, {"a": {"b": 1}}], ['{"a": [{"b": 1}]}', '{"a": {"b": 1}}']),
        ([math.nan, "x"], [None, "x"]),
    ],
    ids=str,
)
def test_a_column_without_a_common_type_is_read_as_text(values, texts, tmp_path):
    found = read_source(write(tmp_path / "a.jsonl", json_lines([{"prompt": "p", "about": value} for value in values])))
    assert found.rows["about"][:] == texts and list(found.mixed) == ["about"]


WHEN = datetime.datetime(2024, 3, 31, 2, 30, tzinfo=datetime.UTC)
ODD = {  # what databases export and JSON has no word for, and what is kept of it
    "asked_at": (WHEN, "2024-03-31 02:30:00+00:00"),
    "day": (WHEN.date(), "2024-03-31"),
    "clock": (WHEN.time(), "02:30:00"),
    "took": (datetime.timedelta(seconds=90), "0:01:30"),
    "price": (decimal.Decimal("12.50"), "12.50"),
    "blob": (b"\x00\xff", "2 bytes"),
    "nested": ({"at": [WHEN.date()]}, '{"at": ["2024-03-31"]}'),
    "picture": ({"bytes": b"\x89PNG", "path": "a.png"}, '{"bytes": "4 bytes", "path": "a.png"}'),
}


@pytest.mark.parametrize("form", ["parquet", "saved", "splits"])
def test_what_json_cannot_hold_is_text_from_every_kind_of_source(form, tmp_path):
    table = pa.table({"prompt": ["p"], **{name: [value] for name, (value, _) in ODD.items()}})
    rows = Dataset(table)
    if form == "parquet":
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    else:
        (rows if form == "saved" else DatasetDict(train=rows)).save_to_disk(tmp_path / "a.parquet")
    (row,) = read_source(str(tmp_path / "a.parquet")).rows
    assert row == {"prompt": "p", **{name: text for name, (_, text) in ODD.items()}}
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_objects_stay_objects_whatever_their_fields_are_called(tmp_path):
    about = {"time_limit": 2, "date": "today", "binary": [{"map": True}], "decimal": {"duration": 0.5}}
    found = read_source(write(tmp_path / "a.jsonl", json_lines([{"prompt": "p", "about": about}])))
    assert found.rows["about"][:] == [about] and found.mixed == {}


def test_a_picture_is_not_opened(tmp_path):
    rows = Dataset.from_dict({"prompt": ["p"], "image": [{"bytes": b"no picture", "path": None}]})
    rows.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
    assert read_source(str(tmp_path / "saved")).rows["image"][:] == ['{"bytes": "10 bytes", "path": null}']


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_half_a_character_is_replaced_and_whole_ones_are_kept(name, tmp_path):
    rows = [{"prompt": "cut \ud83d", "id": "\ude00"}, {"prompt": "whole 😀", "id": "\\ud83d"}]
    source = write(tmp_path / name, json.dumps(rows) if name.endswith("json") else json_lines(rows))
    assert read_source(source).rows["prompt"][:] == ["cut \ufffd", "whole 😀"]
    assert read_source(source).rows["id"][:] == ["\ufffd", "\\ud83d"]


# --- the Hub


def test_an_unreachable_hub_is_reported_within_seconds(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    offline_before, start = datasets.config.HF_HUB_OFFLINE, time.monotonic()
    message = refused("nobody/nothing:config")
    assert time.monotonic() - start < 8
    assert "'nobody/nothing:config'" in message and "Hub does not answer" in message and "give a local file" in message
    assert offline_before == datasets.config.HF_HUB_OFFLINE


def test_offline_mode_is_reported_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    assert "Hub does not answer" in refused("imdb")


def test_a_hub_dataset_is_asked_for_with_its_config_and_split(monkeypatch):
    asked = []
    monkeypatch.setattr("workbench.tasks.sources.HfApi.dataset_info", lambda *args, **options: asked.append(args[1]))

    def load_dataset(name, config, *, split):
        asked.extend([name, config, split])
        return Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_source("owner/name:main", split="test").rows.to_list() == ROWS
    assert asked == ["owner/name", "owner/name", "main", "test"]


def test_what_the_hub_says_is_passed_on(monkeypatch):
    monkeypatch.setattr("workbench.tasks.sources.HfApi.dataset_info", lambda *args, **options: None)

    def load_dataset(name, config, *, split):
        raise ValueError("Config name is missing.\nPick one of a, b")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert "Config name is missing." in refused("owner/name")
