"""The benchmark: its count of operations against that of torch, its comparison of losses, our side of every case."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent / "bench"))
import cases
import operations
import ours
import table

TINY = {
    "gpt2": cases.ModelSize(family="gpt2", width=16, layers=2, heads=2, vocabulary=60, context=64),
    "llama": cases.ModelSize(family="llama", width=24, layers=2, heads=2, vocabulary=60, context=64),
}


@pytest.fixture(params=TINY)
def tiny(request, tmp_path, monkeypatch):
    monkeypatch.setitem(cases.MODELS, request.param, TINY[request.param])
    return request.param, cases.build(request.param, tmp_path)


def test_a_forward_pass_costs_what_torch_counts(tiny):
    name, folder = tiny
    model, tokens = AutoModelForCausalLM.from_pretrained(folder / "policy", attn_implementation="eager"), 32
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.full((1, tokens), 5), use_cache=False)
    size = TINY[name]
    # torch counts the whole square of attention scores, half of which a causal model needs
    hidden_half = size.layers * 2 * size.width * tokens**2
    counted = operations._forward(size, tokens, tokens) + hidden_half
    assert counted == pytest.approx(counter.get_total_flops(), rel=2e-3)  # rotary angles are left out


def test_variable_lengths_count_their_own_tokens_and_no_padding(monkeypatch):
    monkeypatch.setattr(cases, "prompts", lambda case, vocabulary, count: [[5] * 3] * count)
    lengths = [1, 9]
    monkeypatch.setattr(
        cases, "completions", lambda case, vocabulary, count, seed: [[5] * (lengths[i % 2] - 1) for i in range(count)]
    )
    case = replace(cases.CASES["sft, variable"], batch_size=2, steps=1)
    each = [3 * operations._forward(TINY["llama"], 3 + length, length) for length in lengths]
    assert operations.useful_operations(TINY["llama"], case, "cpu") == pytest.approx(sum(each))


@pytest.mark.parametrize("name", cases.CASES)
def test_our_side_runs_every_case(tiny, name):
    case = replace(cases.CASES[name], batch_size=8, steps=2, prompt_length=6, completion_length=5)
    side = ours.Ours(case, tiny[1], "cpu")
    found = side.generate() if case.method == "generate" else side.train()
    assert len(found["cpu"]) == 2 and min(found["cpu"]) > 0 and found["memory"] > 0


def test_differences_are_relative_to_the_largest_value_and_refuse_unequal_lengths():
    logs = [{"loss": 2.0}, {"other": 1.0}, {"loss": 4.0}]
    assert ours.compared([{"loss": 2.0}, {"loss": 4.4}], logs, {"loss": "loss"}) == {"loss": pytest.approx(0.1)}
    with pytest.raises(ValueError):
        ours.compared([{"loss": 2.0}], logs, {"loss": "loss"})


def test_a_ratio_is_printed_only_where_the_losses_agree():
    row = {"model": "m", "case": "dpo", "peer": "trl", "gate": 1.4, "differences": {"loss": 0.5}}
    assert "losses disagree" in table.markdown([row], "heading") and "no ratio" in table.line(row)
    numbers = {"peer_seconds": 2.0, "ours_seconds": 1.0, "peer_share": 0.2, "ours_share": 0.4}
    numbers |= {"peer_memory": 10.0, "ours_memory": 8.0, "ratio": 1.3, "ratios": [1.2, 1.3, 1.5], "phases": {}}
    assert "1.4 missed" in table.markdown([row | numbers], "heading")
    assert "1.4 met" in table.markdown([row | numbers | {"ratio": 1.4}], "heading")
