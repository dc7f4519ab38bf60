"""Which comparisons are learned from: halves, labelers, turned labels."""

import pytest
from datasets import Dataset

from workbench import WorkbenchError
from workbench.tasks.columns import selected_rows, with_flipped_labels


def comparisons(count=400):
    names = ["ana", "ben", "chi"]
    return Dataset.from_list(
        [
            {"prompt": f"p{row}", "chosen": f"good {row}", "rejected": f"bad {row}", "labeler": names[row % 3]}
            for row in range(count)
        ]
    )


def test_the_two_halves_share_no_row_and_together_are_everything():
    rows = comparisons(401)
    first, second = (set(selected_rows(rows, count=0, half=half)["prompt"]) for half in (1, 2))
    assert not first & second
    assert first | second == set(rows["prompt"])
    assert {len(first), len(second)} == {200, 201}


def test_a_smaller_number_of_pairs_is_part_of_a_larger_one():
    rows = comparisons()
    small, large = (selected_rows(rows, count=count, half=1)["prompt"][:] for count in (20, 90))
    assert large[:20] == small
    assert len(large) == 90
    assert len(selected_rows(rows, count=10_000)) == 400


def test_only_the_chosen_labelers_are_kept():
    kept = selected_rows(comparisons(), count=50, labelers="ana, chi")
    assert set(kept["labeler"]) == {"ana", "chi"}
    assert len(kept) == 50


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"count": 0, "labelers": "zoe"}, "zoe.*ana, ben, chi"),
        ({"count": -1}, "-1"),
        ({"count": 0, "half": 3}, "half is 3"),
    ],
)
def test_what_the_data_does_not_have_is_refused(settings, said):
    with pytest.raises(WorkbenchError, match=said):
        selected_rows(comparisons(), **settings)


def test_labelers_of_data_without_that_column_are_refused():
    with pytest.raises(WorkbenchError, match="no column `labeler`"):
        selected_rows(comparisons().remove_columns("labeler"), count=0, labelers="ana")


def test_labelers_may_have_numbers_for_names_or_none():
    rows = comparisons(4).remove_columns("labeler").add_column("labeler", [7, 8, None, 7])
    assert selected_rows(rows, count=0, labelers="7")["prompt"][:] == ["p0", "p3"]
    with pytest.raises(WorkbenchError, match=r"labelers names 9, but the data has 7, 8, None"):
        selected_rows(rows, count=0, labelers="9")


def test_about_that_share_of_labels_is_turned_and_nothing_else_changes():
    rows = comparisons()
    noisy = with_flipped_labels(rows, share=0.25, seed=0)
    turned = [chosen.startswith("bad") for chosen in noisy["chosen"]]
    assert 70 <= sum(turned) <= 130  # 100 expected, a standard deviation of 8.7
    for before, after, flip in zip(rows, noisy, turned, strict=True):
        assert after["prompt"] == before["prompt"]
        assert after["labeler"] == before["labeler"]
        assert (after["chosen"], after["rejected"])[:: -1 if flip else 1] == (before["chosen"], before["rejected"])


def test_noise_follows_the_seed():
    rows = comparisons()
    draws = [with_flipped_labels(rows, share=0.3, seed=seed)["chosen"][:] for seed in (0, 0, 1)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]
    assert with_flipped_labels(rows, share=0.0, seed=0)["chosen"][:] == rows["chosen"][:]


def test_rows_that_are_no_comparisons_and_impossible_shares_are_refused():
    ratings = Dataset.from_list([{"prompt": "p", "completion": "c", "rating": 3.0}])
    with pytest.raises(WorkbenchError, match="columns are prompt, completion, rating"):
        with_flipped_labels(ratings, share=0.1, seed=0)
    with pytest.raises(WorkbenchError, match=r"0\.6"):
        with_flipped_labels(comparisons(), share=0.6, seed=0)
