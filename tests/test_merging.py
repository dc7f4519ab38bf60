"""Merging of models: against torch's averaged model, geometry and what changes of separate weights must give."""

import math

import pytest
import torch
from tiny_models import saved, tiny_model, weights_of, word_tokenizer
from torch.optim.swa_utils import AveragedModel

from workbench import WorkbenchError
from workbench.models.merging import METHODS, load_to_merge, merged_weights, slerp
from workbench.tasks.stage import numbers_in

START = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([[2.0]])}


def moved(**changes: list) -> dict[str, torch.Tensor]:
    return {name: old + torch.tensor(changes.get(name, 0.0)) for name, old in START.items()}


def test_all_of_a_linear_merge_is_the_average_that_torch_takes_of_checkpoints():
    models = [tiny_model(layers=1, seed=seed) for seed in range(3)]
    theirs = AveragedModel(models[0])
    for model in models:
        theirs.update_parameters(model)
    ours = merged_weights(*split([model.state_dict() for model in models]), method="linear", share=1.0)
    for name, weight in theirs.module.state_dict().items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-5, atol=1e-7)


def split(states: list) -> tuple[dict, list]:
    """A start that does not matter where all of the change is taken, and those that are merged."""
    return {name: torch.zeros_like(weight) for name, weight in states[0].items()}, states


@pytest.mark.parametrize("method", METHODS)
def test_a_share_of_none_is_the_start_and_of_all_of_one_model_that_model(method):
    other = moved(a=[0.5, 3.0], b=[[-1.0]])
    for share, expected in ((0.0, START), (1.0, other), (0.5, moved(a=[0.25, 1.5], b=[[-0.5]]))):
        found = merged_weights(START, [other], method=method, share=share)
        assert all(torch.equal(found[name], expected[name]) for name in START)


def test_what_was_learned_in_other_weights_is_whole_in_a_sum_of_task_vectors_and_half_in_a_mean():
    specialists = [moved(a=[0.0, 3.0]), moved(b=[[4.0]])]
    whole = merged_weights(START, specialists, method="task", share=1.0)
    half = merged_weights(START, specialists, method="linear", share=1.0)
    assert whole["a"].tolist() == [1.0, 3.0] and whole["b"].item() == 6.0
    assert half["a"].tolist() == [1.0, 1.5] and half["b"].item() == 4.0


def test_the_way_along_the_arc_keeps_length_and_turns_by_its_share_of_the_angle():
    first, second = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    found = slerp(first, second, 0.25)
    assert found.norm().item() == pytest.approx(2.0)
    assert math.degrees(math.atan2(found[1], found[0])) == pytest.approx(0.25 * 90, abs=1e-3)
    assert slerp(first, 2 * first, 0.5).tolist() == [3.0, 0.0]  # no arc: straight
    assert slerp(torch.zeros(2), second, 0.5).tolist() == [0.0, 1.0]  # no direction
    three = [{"a": START["a"] + axis, "b": START["b"]} for axis in (first, second, first)]
    round_the_sphere = merged_weights(START, three, method="spherical", share=1.0)["a"] - START["a"]
    assert round_the_sphere.norm().item() == pytest.approx(2.0)


def test_a_merge_changes_none_of_the_models_it_is_made_of():
    first, second = tiny_model(layers=1), tiny_model(layers=1, seed=1)
    before = weights_of(first), weights_of(second)
    merged_weights(first.state_dict(), [second.state_dict()], method="linear", share=0.3)
    assert all(torch.equal(weights_of(model)[name], old[name])
               for model, old in zip((first, second), before, strict=True) for name in old)  # fmt: skip


def test_models_that_can_not_be_merged_are_refused_in_a_sentence(tmp_path):
    start, tokens = tiny_model(layers=1), word_tokenizer()
    good = saved(tiny_model(layers=1, seed=1), tokens, tmp_path / "good")
    assert load_to_merge(start, good, tokens).keys() == start.state_dict().keys()
    deeper = saved(tiny_model(layers=2), tokens, tmp_path / "deeper")
    gpt = saved(tiny_model("gpt2"), tokens, tmp_path / "gpt")
    others = word_tokenizer()
    others.add_tokens(["unheard"])
    spoken = saved(tiny_model(layers=1, vocab_size=len(others)), others, tmp_path / "other_words")
    for source, said in (
        (deeper, "has num_hidden_layers 2 and not 1: only models of one architecture"),
        (gpt, "has model_type 'gpt2' and not 'llama': only models of one architecture"),
        (spoken, "has another vocabulary .'unheard' is not the same"),
    ):
        with pytest.raises(WorkbenchError, match=said):
            load_to_merge(start, source, tokens)
    with pytest.raises(WorkbenchError, match="no way 'ties' to merge: choose one of linear, spherical, task"):
        merged_weights(START, [START], method="ties", share=0.5)
    for text, piece in (("0.2,,1", "''"), ("0.2,half", "'half'"), ("nan", "'nan'"), ("", "''"), ("0,2", "'2'")):
        with pytest.raises(WorkbenchError, match=f"shares holds {piece}: write numbers from 0 to 1 with commas"):
            numbers_in("shares", text, most=1)
    assert numbers_in("shares", "0.1, 1,.5", most=1) == [0.1, 1.0, 0.5]
