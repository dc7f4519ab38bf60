"""Which runs are found, what they are called, and which belong together; folders made by hand."""

import json
from pathlib import Path

import pytest

from workbench import WorkbenchError
from workbench.runs import Run
from workbench.studies.measurements import distinct_names, experiment_of, find_runs, repetition_of


def make(folder: Path, *, finished=True) -> Path:
    run = Run.open(folder, {"seed": 0})
    run.summary({"x": 1.0})
    if finished:
        run.finish()
    return folder


def test_runs_are_found_at_any_depth_in_folders_lists_and_patterns(tmp_path):
    for place in ("a/06_ppo_seed0", "a/deep/er/06_dpo_seed0", "b/07_bon", "b/.hidden/08_x", "b/07_bon/inner"):
        make(tmp_path / place)
    (tmp_path / "b" / "report").mkdir()
    assert sorted(find_runs(f"{tmp_path}/a").runs) == ["06_dpo_seed0", "06_ppo_seed0"]
    assert sorted(find_runs(f"{tmp_path}/a, {tmp_path}/b").runs) == ["06_dpo_seed0", "06_ppo_seed0", "07_bon", "inner"]
    assert list(find_runs(f"{tmp_path}/*/06_*").runs) == ["06_ppo_seed0"]
    assert sorted(find_runs(f"{tmp_path}/**/06_*").runs) == ["06_dpo_seed0", "06_ppo_seed0"]
    assert list(find_runs(f"{tmp_path}/a/06_ppo_seed0").runs) == ["06_ppo_seed0"]
    assert len(find_runs(f"{tmp_path}, {tmp_path}/a").runs) == 4  # nothing twice


def test_the_comparison_itself_is_no_run_of_the_comparison(tmp_path):
    make(tmp_path / "06_ppo")
    make(tmp_path / "12_compare_runs", finished=False)
    assert list(find_runs(str(tmp_path), without=tmp_path / "12_compare_runs").runs) == ["06_ppo"]


def test_an_unfinished_run_is_marked_and_stays_apart_from_its_seeds(tmp_path):
    for seed in range(3):
        make(tmp_path / f"06_ppo_seed{seed}", finished=seed < 2)
    names = list(find_runs(str(tmp_path)).runs)
    assert names == ["06_ppo_seed0", "06_ppo_seed1", "06_ppo_seed2 (unfinished)"]
    assert [experiment_of(name) for name in names] == ["06_ppo", "06_ppo", names[2]]


@pytest.mark.parametrize("damaged", ['{"parameters": {', "[]", "{}", '{"parameters": 3, "status": "finished"}', "\x00"])
def test_a_damaged_record_is_a_sentence_and_the_others_are_found(tmp_path, damaged):
    make(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text(damaged)
    found = find_runs(str(tmp_path))
    assert list(found.runs) == ["good"]
    assert len(found.unread) == 1 and "bad/run.json" in found.unread[0] and "delete this folder" in found.unread[0]


def test_no_runs_at_all_and_a_place_without_any_are_sentences(tmp_path):
    make(tmp_path / "a" / "good")
    assert find_runs(f"{tmp_path}/a, {tmp_path}/nowhere").unread == [f"'{tmp_path}/nowhere' holds no runs."]
    with pytest.raises(WorkbenchError, match=r"nowhere' holds no runs: give the folder"):
        find_runs(f"{tmp_path}/nowhere")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("{")
    with pytest.raises(WorkbenchError, match="is damaged"):
        find_runs(f"{tmp_path}/bad")


def test_an_older_record_without_inputs_packages_or_seed_is_still_a_run(tmp_path):
    folder = make(tmp_path / "old")
    record = json.loads((folder / "run.json").read_text())
    kept = {"parameters": record["parameters"], "status": "finished"}
    (folder / "run.json").write_text(json.dumps(kept))
    assert list(find_runs(str(tmp_path)).runs) == ["old"]


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["a/x", "b/y"], ["x", "y"]),
        (["a/x", "b/x", "b/y"], ["a/x", "b/x", "y"]),
        (["1/a/x", "2/a/x"], ["1/a/x", "2/a/x"]),
        # one seed in both folders: all seeds say from which folder they are
        (["a/x_seed0", "a/x_seed1", "b/x_seed0"], ["a/x_seed0", "a/x_seed1", "b/x_seed0"]),
        # a folder per seed: nothing is there twice, and the seeds stay one experiment
        (["s0/x_seed0", "s1/x_seed1"], ["x_seed0", "x_seed1"]),
        (["a/x", "a/x"], ["x", "x"]),
    ],
)
def test_equal_names_get_as_many_parents_as_tell_them_apart(folders, names):
    assert distinct_names([Path("/r") / folder for folder in folders]) == names


@pytest.mark.parametrize(
    ("name", "experiment", "repetition"),
    [
        ("06_ppo_seed2", "06_ppo", "_seed2"),
        ("06_ppo-seed2", "06_ppo", "-seed2"),
        ("06_ppo_kl0.05_world1_seed2", "06_ppo_kl0.05", "_world1_seed2"),
        ("01_pretrain_world12", "01_pretrain", "_world12"),
        ("05_seed101_world0_seed1", "05_seed101", "_world0_seed1"),
        ("02_sft_llama-32x1_world0_seed0", "02_sft_llama-32x1", "_world0_seed0"),
        ("06_ppo", "06_ppo", ""),
        ("seed_study", "seed_study", ""),
        ("06_ppo_seed2_late", "06_ppo_seed2_late", ""),
    ],
)
def test_endings_of_seed_and_world_are_told_from_the_name(name, experiment, repetition):
    assert (experiment_of(name), repetition_of(name)) == (experiment, repetition)
