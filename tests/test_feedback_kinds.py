"""Kinds of feedback: what a loss is given, and how far rewards agree with it, found one couple at a time."""

import itertools
import json

import pytest
import torch
from tiny_models import EOS, word_tokenizer

from workbench import WorkbenchError
from workbench.records import LabelledExample, PairExample, RankingExample
from workbench.tasks import open_task
from workbench.trainers.direct_alignment import RememberedLogprobs, mismatched
from workbench.trainers.feedback_kinds import KINDS, load_examples
from workbench.trainers.reward_model import OBJECTIVES, objective_named, objective_rows


def pair(chosen=(9,), rejected=(10, 11), preference=1.0) -> PairExample:
    return PairExample(
        prompt_ids=[4, 5], chosen_ids=list(chosen), rejected_ids=list(rejected), margin=0.0, preference=preference
    )


def labelled(label, prompt=(4,), completion=(9,)) -> LabelledExample:
    return LabelledExample(prompt_ids=list(prompt), completion_ids=list(completion), label=label)


def ranked(ranking) -> RankingExample:
    return RankingExample(prompt_ids=[4], completion_ids=[[9], [10, 11], [12]], ranking=list(ranking))


def scored(*shape) -> dict[str, torch.Tensor]:
    logprobs = torch.arange(torch.Size(shape).numel()).float().view(shape)
    return {"logprobs": -logprobs, "reference_logprobs": -100 - logprobs, "lengths": (1 + logprobs).long()}


def accuracies(kind, rewards, examples):
    return KINDS[kind].accuracies(KINDS[kind].arguments({"rewards": rewards}, examples))


def better_and_worse(kind, rewards, examples):
    better, worse = KINDS[kind].better_and_worse(KINDS[kind].arguments({"rewards": rewards}, examples))
    return better.tolist(), worse.tolist()


def test_certain_pairs_are_seen_in_one_direction():
    ((weight, arguments),) = KINDS["pairs"].directions(scored(2, 2), [pair(), pair()])
    assert weight == 1
    assert {name: values.tolist() for name, values in arguments.items()} == {
        "chosen_logprobs": [0, -2],
        "rejected_logprobs": [-1, -3],
        "reference_chosen_logprobs": [-100, -102],
        "reference_rejected_logprobs": [-101, -103],
        "chosen_lengths": [1, 3],
        "rejected_lengths": [2, 4],
        "margin": [0, 0],
        "preference": [1, 1],
    }


def test_one_soft_label_shows_every_pair_of_the_batch_from_both_sides():
    (stated_weight, stated), (flipped_weight, flipped) = KINDS["pairs"].directions(
        scored(2, 2), [pair(preference=0.75), pair()]
    )
    assert (stated_weight.tolist(), flipped_weight.tolist()) == ([0.75, 1.0], [0.25, 0.0])
    for name in stated.keys() - {"margin", "preference"}:
        other = name.replace("chosen", "*").replace("rejected", "chosen").replace("*", "rejected")
        assert torch.equal(stated[name], flipped[other])


def test_the_best_of_a_ranking_is_its_chosen_completion():
    ((_, arguments),) = KINDS["rankings"].directions(scored(2, 3), [ranked([2, 0, 1]), ranked([1, 2, 0])])
    assert arguments["chosen_logprobs"].tolist() == [-2, -4]
    assert arguments["chosen_lengths"].tolist() == [3, 5]


def test_accuracy_of_pairs_is_the_probability_of_the_side_with_the_higher_reward():
    rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
    pairs = [pair(), pair(), pair(preference=0.75), pair(preference=0.75), pair()]
    assert accuracies("pairs", rewards, pairs).tolist() == [1.0, 0.0, 0.75, 0.25, 0.0]


def test_accuracy_of_rankings_is_the_share_of_couples_in_order():
    generator = torch.Generator().manual_seed(0)
    rankings = list(itertools.permutations(range(3)))
    rewards = torch.randint(0, 3, (6, 3), generator=generator).float()  # with draws
    shares = accuracies("rankings", rewards, [ranked(ranking) for ranking in rankings])
    for row, ranking in enumerate(rankings):
        couples = list(itertools.combinations(ranking, 2))
        right = sum(bool(rewards[row, better] > rewards[row, worse]) for better, worse in couples)
        assert shares[row].item() == pytest.approx(right / 3)


def test_accuracy_of_labels_is_the_share_of_the_other_label_on_the_right_side():
    generator = torch.Generator().manual_seed(1)
    labels = [1, 0, 0, 1, 1, 0, 1]
    rewards = torch.randint(0, 4, (7, 1), generator=generator).float()  # with draws
    shares = accuracies("labelled", rewards, [labelled(label) for label in labels])
    for row, label in enumerate(labels):
        others = [rewards[other, 0] for other in range(7) if labels[other] != label]
        right = [rewards[row, 0] > other if label else rewards[row, 0] < other for other in others]
        assert shares[row].item() == pytest.approx(sum(map(bool, right)) / len(others))


def test_labels_that_are_all_alike_have_no_accuracy():
    assert accuracies("labelled", torch.zeros(2, 1), [labelled(1), labelled(1)]).isnan().all()


def test_better_and_worse_completions_are_told_apart_in_every_kind():
    two = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert better_and_worse("pairs", two, [pair(), pair()]) == ([1, 3], [2, 4])
    assert better_and_worse("labelled", two[:, :1], [labelled(0), labelled(1)]) == ([3], [1])
    assert better_and_worse("rankings", torch.tensor([[1.0, 2.0, 3.0]]), [ranked([1, 0, 2])]) == ([2], [[1, 3]])


def test_mismatched_prompts_get_the_completion_before_theirs_as_far_as_the_model_reads():
    batch = [labelled(1, (4,), (9, 2)), labelled(0, (5, 6, 7), (10, 11, 2)), labelled(1, (8, 8), (12, 2))]
    found = mismatched(batch, context=0)
    assert [example.prompt_ids for example in found] == [[4], [5, 6, 7], [8, 8]]
    assert [example.completion_ids for example in found] == [[12, 2], [9, 2], [10, 11, 2]]
    assert [example.completion_ids for example in mismatched(batch, context=4)] == [[12, 2], [9], [10, 11]]


@pytest.mark.parametrize(
    ("kind", "examples", "lengths"),
    [
        ("pairs", [pair(), pair((7, 8, 2), (2,))], [[1, 2], [3, 1]]),
        ("labelled", [labelled(1), labelled(0, (4, 4), (5, 6))], [[1], [2]]),
        ("rankings", [ranked([2, 1, 0])], [[1, 2, 1]]),
    ],
)
def test_the_completions_of_a_prompt_are_neighbouring_rows(kind, examples, lengths):
    batch = KINDS[kind].collated(examples, pad_id=0)
    assert batch.completion_mask.sum(1).view(len(examples), -1).tolist() == lengths
    prompts = [example.prompt_ids for example in examples for _ in KINDS[kind].completions(example)]
    width = batch.prompt_length
    rows = zip(batch.tokens[:, :width].tolist(), batch.attention_mask[:, :width].tolist(), strict=True)
    assert [[t for t, kept in zip(tokens, mask, strict=True) if kept] for tokens, mask in rows] == prompts


def test_what_is_remembered_is_saved_and_not_computed_again(monkeypatch):
    calls = []

    def counted(model, batch, *, group_size):
        calls.append(len(batch))
        return torch.full((len(batch) // group_size, group_size), float(len(calls)))

    monkeypatch.setattr("workbench.trainers.direct_alignment.summed_logprobs", counted)
    batch = KINDS["pairs"].collated([pair(), pair()], pad_id=0)
    remembered = RememberedLogprobs(None, count=4, group_size=2)
    assert remembered.of([3, 1], batch).tolist() == [[1, 1], [1, 1]]
    assert remembered.of([1, 3], batch).tolist() == [[1, 1], [1, 1]]
    assert remembered.of([0, 2], batch).tolist() == [[2, 2], [2, 2]]
    restored = RememberedLogprobs(None, count=4, group_size=2)
    restored.load_state_dict(remembered.state_dict())
    assert restored.of([0, 1], batch).tolist() == [[2, 2], [1, 1]]
    assert calls == [4, 4]


PROMPTS = ["sky is", "grass is", "what colour", "the sky", "the grass", "yes please", "no thanks", "sky please"]
ROWS = {
    "pairs": {"chosen": "blue", "rejected": "red please"},
    "sure": {"chosen": "blue", "rejected": "red please", "preference": 1.0},
    "ties": {"chosen": "blue", "rejected": "red please", "preference": 0.5},
    "margins": {"chosen": "blue", "rejected": "red please", "margin": 1.5},
    "empty_margins": {"chosen": "blue", "rejected": "red please", "margin": None},
    "labelled": {"completion": "blue", "label": False},
    "rankings": {"completions": ["blue", "red", "green please"], "ranking": [1, 0, 2]},
    "ratings": {"completion": "blue", "rating": 5},
    "steps": {"completions": ["yes is", " no is"], "labels": [True, False]},
}
LIMITS = {"max_prompt_length": 8, "max_completion_length": 8}


def task_of(folder, rows: str):
    """A file of rows of such sorts in turn, every prompt twice, a quarter of them held out."""
    path, sorts = folder / "rows.jsonl", itertools.cycle(rows.split(","))
    given = [{"prompt": prompt, **ROWS[next(sorts)]} for prompt in PROMPTS for _ in range(2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return open_task(str(path), held_out=0.25)


def load(folder, rows: str, *, kind: str, ties: bool = False):
    """Training rows and examples, and held-out examples."""
    return load_examples(task_of(folder, rows), word_tokenizer(), loss="this", kind=kind, count=0, ties=ties, **LIMITS)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_rows_becomes_its_kind_of_examples(kind, tmp_path):
    rows, train, held_out = load(tmp_path, kind, kind=kind)
    assert len(rows) + len(held_out) == len(train) + len(held_out) == 2 * len(PROMPTS)
    assert {type(example) for example in [*train, *held_out]} == {KINDS[kind].record}
    assert all(ids[-1] == EOS for example in train for ids in KINDS[kind].completions(example))


def test_pairs_serve_where_labels_are_asked_for(tmp_path):
    _, train, _ = load(tmp_path, "pairs", kind="labelled")
    blue = word_tokenizer()("blue")["input_ids"]
    assert {example.label for example in train} == {0.0, 1.0}
    assert all((example.completion_ids[:-1] == blue) == (example.label == 1) for example in train)


def test_ties_come_only_where_they_are_asked_for_and_are_never_held_out(tmp_path):
    for ties, preferences in ((True, {1.0, 0.5}), (False, {1.0})):
        _, train, held_out = load(tmp_path, "sure,ties", kind="pairs", ties=ties)
        assert {pair.preference for pair in train} == preferences
        assert {pair.preference for pair in held_out} == {1.0}


@pytest.mark.parametrize(
    ("rows", "kind", "says"),
    [
        ("pairs", "rankings", "The loss 'this' learns from rankings: .*no column 'completions', 'ranking'"),
        ("labelled", "pairs", "The loss 'this' learns from pairs: .*no column 'chosen', 'rejected'"),
        ("rankings", "labelled", "The loss 'this' learns from labelled completions: .*no column 'completion', 'label'"),
    ],
)
def test_missing_data_are_named_with_the_loss_and_the_column(rows, kind, says, tmp_path):
    with pytest.raises(WorkbenchError, match=says):
        load(tmp_path, rows, kind=kind)


# What each objective of a reward model asks of the data


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_finds_its_rows_and_makes_its_examples(objective, tmp_path):
    own = {"bradley_terry_margin": "margins", "soft": "ties"}
    kind = objective_named(objective).kind
    parts = objective_rows(objective, task_of(tmp_path, own.get(objective, objective_named(objective).data)), 0)
    assert len(parts[0]) == 12  # a tie teaches, but no model can be measured on it
    assert len(parts[1]) == (0 if objective == "soft" else 4)
    for part in parts[: 1 if objective == "soft" else 2]:
        examples = kind.encode(part, word_tokenizer(), **LIMITS)
        assert len(examples) == len(part)
        assert all(len(kind.liked(example)) == len(kind.completions(example)) for example in examples)
    assert not set(parts[0]["prompt"]) & set(parts[1]["prompt"])


@pytest.mark.parametrize(
    ("objective", "rows", "column"),
    [
        ("bradley_terry", "ratings", "chosen"),
        ("bradley_terry_margin", "pairs", "margin"),
        ("bradley_terry_margin", "empty_margins", "margin"),
        ("soft", "pairs", "preference"),
        ("plackett_luce", "pairs", "ranking"),
        ("best_of_k", "labelled", "ranking"),
        ("rating", "labelled", "rating"),
        ("outcome", "ratings", "label"),
        ("process", "rankings", "labels"),
    ],
)
def test_a_missing_column_is_named_with_the_objective_that_needs_it(objective, rows, column, tmp_path):
    with pytest.raises(WorkbenchError, match=rf"[Oo]bjective '{objective}' needs column '{column}'"):
        objective_rows(objective, task_of(tmp_path, rows), 0)


def test_what_the_world_lacks_and_an_unknown_objective_are_named_before_any_data_is_read():
    with pytest.raises(WorkbenchError, match=r"'best_of_k' needs column 'ranking'.*03_preferences.*rankings"):
        objective_rows("best_of_k", open_task("world"), 100)
    with pytest.raises(WorkbenchError, match="no objective 'thurstone': choose one of bradley_terry"):
        objective_rows("thurstone", None, 0)
