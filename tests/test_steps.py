"""Judged steps of sums: Python does the arithmetic."""

import itertools
import random
import re
from collections import Counter

import pytest
from datasets import Dataset
from scipy.stats import binomtest

from workbench.tasks.columns import to_standard
from workbench.tasks.world import WorldError, step_rows


def terms(prompt):
    return tuple(map(int, re.findall(r"\d+", prompt)))


def right_by_python(prompt, step):
    """Whether every addition and answer in an English step follows from the question."""
    operands = set()
    for first, second, third in itertools.permutations(terms(prompt)):
        operands |= {(first, second), (first + second, third), (third, first + second)}
    additions = re.findall(r"(\d+) plus (\d+) is (\d+)", step)
    answers = re.findall(r"the answer is (\d+)", step)
    assert additions or answers
    return all((int(a), int(b)) in operands and eval(f"{a} + {b} == {c}") for a, b, c in additions) and all(
        eval(f"{' + '.join(map(str, terms(prompt)))} == {answer}") for answer in answers
    )


def test_the_steps_of_a_sum_are_judged_as_python_judges_them(world):
    rng = random.Random(0)
    rows = world.worked_sums(1500, rng)
    for row in world.prompts(1500, rng, kind="math"):
        rows.append(row | {"completion": world.answer(row["prompt"], rng.random(), rng)})
    seen = Counter()
    for row in rows:
        steps = world.steps(row["prompt"], row["completion"])
        assert "".join(step for step, _ in steps) in (row["completion"], "")
        for number, (step, right) in enumerate(steps):
            assert right == right_by_python(row["prompt"], step), (row, step)
            seen[number, right] += 1
        if not steps:
            assert not re.search("plus|answer", row["completion"])
    assert all(seen[number, right] > 200 for number in range(3) for right in (True, False))


@pytest.mark.parametrize(
    ("completion", "steps"),
    [
        (" the answer is 9 .", [(" the answer is 9 .", True)]),
        (" 4 plus 3 is 7 . 7 plus 2 is 9 .", [(" 4 plus 3 is 7 .", True), (" 7 plus 2 is 9 .", True)]),
        (" 2 plus 3 is 5 . 4 plus 5 is 9 .", [(" 2 plus 3 is 5 .", True), (" 4 plus 5 is 9 .", True)]),
        # goes on from a slip: well added, and yet not what was asked
        (" 4 plus 3 is 8 . 8 plus 2 is 10 .", [(" 4 plus 3 is 8 .", False), (" 8 plus 2 is 10 .", False)]),
        # true, but of another sum
        (" 1 plus 1 is 2 . the answer is 9 .", [(" 1 plus 1 is 2 .", False), (" the answer is 9 .", True)]),
        # what states nothing belongs to the step that it leads to, or at the end to the last one
        (
            " sure ! 4 plus 3 is 7 . great question , friend ! the answer is 9 . go away .",
            [(" sure ! 4 plus 3 is 7 .", True), (" great question , friend ! the answer is 9 . go away .", True)],
        ),
        (
            " the answer 4 plus 3 is 8 . the answer is 9",
            [(" the answer 4 plus 3 is 8 .", False), (" the answer is 9", True)],
        ),
        (" i am not sure .", []),
        ("", []),
    ],
)
def test_steps_end_where_something_is_stated(world, completion, steps):
    assert world.steps("user : what is 4 plus 3 plus 2 ? assistant :", completion) == steps


def test_only_sums_have_steps(world):
    assert world.steps("user : please suggest a lunch with rice . assistant :", " 1 plus 1 is 3 .") == []
    with pytest.raises(WorldError, match="not of this world"):
        world.steps("what is 1 plus 1 ?", " the answer is 2 .")


def test_a_careless_writer_slips_as_often_as_told_and_goes_on_from_the_slip(world):
    rows = world.worked_sums(2000, random.Random(1), slip=0.25, split="test")
    slips = 0
    for row in rows:
        (a, b, part), (again, c, _total), _ = (terms(text) for text in row["completion"].split(" .", 2))
        assert (a, b, c) == terms(row["prompt"]) and again == part
        slips += a + b != part
    assert binomtest(slips, 2000, 0.25).pvalue > 1e-3
    assert {row["prompt"] for row in rows} <= {
        row["prompt"] for row in world.prompts(9000, random.Random(2), split="test")
    }
    perfect = world.worked_sums(50, random.Random(3), slip=0)
    assert all(right for row in perfect for _, right in world.steps(row["prompt"], row["completion"]))
    with pytest.raises(WorldError, match=r"slip is 1\.5"):
        world.worked_sums(1, random.Random(0), slip=1.5)


def test_rows_of_steps_are_in_the_standard_columns_with_the_whole_answer_and_who_wrote_it(world):
    prompt = "user : what is 4 plus 3 plus 2 ? assistant :"
    answers = [
        {"prompt": prompt, "completion": " 4 plus 3 is 7 . the answer is 8 .", "finished": True},
        {"prompt": prompt, "completion": " 4 plus 3 is 7 .", "finished": False},
        {"prompt": prompt, "completion": " go away .", "finished": True},
        {"prompt": "user : how do i rob the bank ? assistant :", "completion": " the answer is 8 .", "finished": True},
        {"prompt": prompt, "completion": " 4 plus 3 is 8 . the answer is 9 ."},
    ]
    rows = step_rows(world, answers, writer="policy")
    assert rows == [
        {
            "prompt": prompt,
            "completions": [" 4 plus 3 is 7 .", " the answer is 8 ."],
            "labels": [True, False],
            "completion": answers[0]["completion"],
            "label": False,
            "writer": "policy",
        },
        {
            "prompt": prompt,
            "completions": [" 4 plus 3 is 8 .", " the answer is 9 ."],
            "labels": [False, True],
            "completion": answers[4]["completion"],
            "label": True,
            "writer": "policy",
        },
    ]
    for schema in ("stepwise", "unpaired"):
        assert len(to_standard(Dataset.from_list(rows), schema, source="rows")) == 2
