"""What each objective asks of the data: the right rows where they are, one sentence where they are not."""

import json

import pytest
from tiny_models import word_tokenizer

from workbench import WorkbenchError
from workbench.tasks import open_task
from workbench.trainers.feedback_kinds import OBJECTIVES, objective_named, objective_rows

PROMPTS = [f"user : {word} assistant :" for word in ("red", "green", "blue", "sky")]
ROWS = {
    "pairs": {"chosen": " yes please", "rejected": " no"},
    "margins": {"chosen": " yes please", "rejected": " no", "margin": 1.5},
    "ties": {"chosen": " yes please", "rejected": " no", "preference": 0.5},
    "empty_margins": {"chosen": " yes please", "rejected": " no", "margin": None},
    "rankings": {"completions": [" yes", " no", " what"], "ranking": [2, 0, 1]},
    "ratings": {"completion": " yes", "rating": 5},
    "labels": {"completion": " yes", "label": True},
    "steps": {"completions": [" yes is", " no is"], "labels": [True, False]},
}
FITTING = {
    "bradley_terry": "pairs",
    "bradley_terry_margin": "margins",
    "soft": "ties",
    "pairwise_ranking": "rankings",
    "plackett_luce": "rankings",
    "best_of_k": "rankings",
    "rating": "ratings",
    "outcome": "labels",
    "process": "steps",
}


def task_of(kind, folder):
    """A file of that kind, every prompt twice."""
    path = folder / f"{kind}.jsonl"
    rows = [{"prompt": prompt, **ROWS[kind]} for prompt in PROMPTS for _ in range(2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_task(str(path), held_out=0.5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_finds_its_rows_and_makes_its_examples(objective, tmp_path):
    parts = objective_rows(objective, task_of(FITTING[objective], tmp_path), 0)
    if objective == "soft":  # a tie teaches, but no model can be measured on it
        assert (len(parts[0]), len(parts[1])) == (4, 0)
        parts = parts[:1]
    row = objective_named(objective)
    for part in parts:
        examples = row.examples(part, word_tokenizer(), max_prompt_length=8, max_completion_length=8)
        assert len(examples) == 4
        for example in examples:
            assert len(row.liked(example)) == len(row.completions(example))
    assert not set(parts[0]["prompt"]) & set(parts[-1]["prompt"]) or len(parts) == 1


@pytest.mark.parametrize(
    ("objective", "kind", "column"),
    [
        ("bradley_terry", "ratings", "chosen"),
        ("bradley_terry_margin", "pairs", "margin"),
        ("bradley_terry_margin", "empty_margins", "margin"),
        ("soft", "pairs", "preference"),
        ("plackett_luce", "pairs", "ranking"),
        ("best_of_k", "labels", "ranking"),
        ("rating", "labels", "rating"),
        ("outcome", "ratings", "label"),
        ("process", "rankings", "labels"),
    ],
)
def test_a_missing_column_is_named_with_the_objective_that_needs_it(objective, kind, column, tmp_path):
    with pytest.raises(WorkbenchError, match=rf"[Oo]bjective '{objective}' needs column '{column}'"):
        objective_rows(objective, task_of(kind, tmp_path), 0)


def test_the_world_says_which_run_has_what_an_objective_needs():
    with pytest.raises(WorkbenchError, match=r"'best_of_k' needs column 'ranking'.*03_preferences.*rankings"):
        objective_rows("best_of_k", open_task("world"), 100)


def test_an_unknown_objective_is_refused_before_any_data_is_read(tmp_path):
    with pytest.raises(WorkbenchError, match="no objective 'thurstone': choose one of bradley_terry"):
        objective_rows("thurstone", None, 0)
