"""An update made in parts is the update made at once, in what it learns and in what it reports, to fp32's rounding."""

import copy
import math
import re
from types import SimpleNamespace

import pytest
import torch
from policy_gradient_cases import colourful, prompts_with, texts_for_pretraining, trainer_for
from tiny_models import EOS, FAMILIES, PAD, tiny_model, word_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from workbench import WorkbenchError
from workbench.models.computing import compute_in, compute_twice
from workbench.models.load import without_dropout
from workbench.models.memory import KEPT, memory_line, update_memory
from workbench.models.packing import (
    collate_demonstrations,
    collate_packed,
    pack_documents,
    target_losses,
    token_lengths,
)
from workbench.records import (
    CompletionExample,
    LabelledExample,
    PairExample,
    RankingExample,
    StepwiseExample,
)
from workbench.trainers.algorithms import ALGORITHMS
from workbench.trainers.descent import Descent, Stateful
from workbench.trainers.direct_alignment import LOSSES, DirectAlignmentConfig, DirectAlignmentTrainer
from workbench.trainers.ilql import IlqlConfig, IlqlTrainer
from workbench.trainers.imitation import ImitationConfig, ImitationTrainer
from workbench.trainers.language_model import LanguageModelConfig, LanguageModelTrainer
from workbench.trainers.reward_model import OBJECTIVES, RewardModelConfig, RewardModelTrainer

DRAW = torch.Generator().manual_seed(3)
FEW = 24  # tokens: an example or two
ONE_STEP = {"batch_size": 8, "warmup_steps": 0, "evaluate_every": 1}


def words(low: int, high: int) -> list[int]:
    count = int(torch.randint(low, high, (), generator=DRAW))
    return torch.randint(4, 19, (count,), generator=DRAW).tolist()


PROMPTS = [words(2, 7) for _ in range(8)]
TEXTS = [[[*words(1, 9), EOS] for _ in range(3)] for _ in PROMPTS]
ASKED = list(enumerate(zip(PROMPTS, TEXTS, strict=True)))
DEMONSTRATIONS = [CompletionExample(prompt_ids=prompt, completion_ids=texts[0]) for _, (prompt, texts) in ASKED]
LABELLED = [
    LabelledExample(prompt_ids=prompt, completion_ids=texts[0], label=float(row % 3)) for row, (prompt, texts) in ASKED
]
DATA = {
    "pairs": [
        PairExample(
            prompt_ids=prompt,
            chosen_ids=texts[0],
            rejected_ids=texts[1],
            margin=0.5,
            preference=(1.0, 0.5, 0.8)[row % 3],
            rival=("chosen", "rejected")[row % 2],
        )
        for row, (prompt, texts) in ASKED
    ],
    "rankings": [
        RankingExample(prompt_ids=prompt, completion_ids=texts, ranking=[[0, 1, 2], [2, 0, 1]][row % 2])
        for row, (prompt, texts) in ASKED
    ],
    "labelled": LABELLED,
    "ratings": LABELLED,
    "steps": [
        StepwiseExample(
            prompt_ids=prompt,
            step_ids=[[5, 4]] * (row % 3) + texts[:1],
            labels=[True] * (row % 3) + [row % 2 == 0],
        )
        for row, (prompt, texts) in ASKED
    ],
}


class Watch:
    """Gradients as they are when they have been added up, and how many backward passes that took."""

    def __init__(self, monkeypatch):
        self.gradients, self.passes = [], 0
        move, backward = Descent.move, torch.Tensor.backward

        def moved(learner):
            self.gradients += [each.grad.clone() for each in learner.model.parameters() if each.grad is not None]
            move(learner)

        def counted(loss):
            self.passes += 1
            backward(loss)

        monkeypatch.setattr(Descent, "move", moved)
        monkeypatch.setattr(torch.Tensor, "backward", counted)


def language_model(collate, examples, **config):
    config = LanguageModelConfig(**{"steps": 1} | ONE_STEP | config)
    return LanguageModelTrainer(
        tiny_model(), examples, examples[:3], config, collate=collate, lengths=token_lengths(examples)
    )


def reward_model(name, **config):
    objective = OBJECTIVES[name]
    config |= {setting: 0.3 for setting in objective.settings}
    data = DATA[objective.data]
    scorer = tiny_model(auto=AutoModelForSequenceClassification)
    return RewardModelTrainer(scorer, data, data[:5], RewardModelConfig(objective=name, **ONE_STEP, **config))


def aligned(name, **config):
    data = DATA[LOSSES[name].data]
    config = DirectAlignmentConfig(loss=name, **ONE_STEP, **config)
    return DirectAlignmentTrainer(tiny_model(), tiny_model(seed=1), data, data[:5], config)


def imitated(**config):
    sizes = {"prompts_per_step": 4, "num_generations": 4, "max_completion_length": 6, "updates_per_step": 1}
    config = ImitationConfig(steps=1, batch_size=4, **sizes, **config)
    return ImitationTrainer(
        tiny_model(), tiny_model(seed=1), colourful, prompts_with(), word_tokenizer(), config, monitors={}
    )


def on_samples(name, **config):
    once = {"num_ppo_epochs": 1, "num_mini_batches": 1, "evaluate_every": 1, "entropy_coef": 0.1, "learning_rate": 1e-3}
    return trainer_for(
        reference=tiny_model(seed=1), algorithm=name, pretraining=texts_for_pretraining(), **once | config
    )


PACKED = pack_documents([row.prompt_ids + row.completion_ids for row in DEMONSTRATIONS], 24)
CASES = {
    "demonstrations": lambda **config: language_model(collate_demonstrations, DEMONSTRATIONS, **config),
    "packed documents": lambda **config: language_model(collate_packed, PACKED, **config),
    **{name: lambda name=name, **config: reward_model(name, **config) for name in OBJECTIVES},
    **{f"loss {name}": lambda name=name, **config: aligned(name, **config) for name in LOSSES},
    "raft": imitated,
    "raft with a price": lambda **config: imitated(kl_coef=0.2, **config),
    "ilql": lambda **config: IlqlTrainer(
        tiny_model(), tiny_model(seed=1), LABELLED, LABELLED[:5], IlqlConfig(conservatism=0.1, **ONE_STEP, **config)
    ),
    **{f"policy {name}": lambda name=name, **config: on_samples(name, **config) for name in ALGORITHMS},
    "whitened": lambda **config: on_samples("ppo", whiten_rewards=True, whiten_advantages=True, **config),
    "other texts": lambda **config: on_samples("grpo", ptx_coef=0.5, kl_estimator="exact", **config),
}


def taken(make, monkeypatch, **config):
    """The row of a step, the gradients of its update, and of how many parts they were made."""
    watch = Watch(monkeypatch)
    row = make(**config).step()
    monkeypatch.undo()
    return row, watch.gradients, watch.passes


def assert_same_update(step, other):
    (row, gradients, _), (expected, wholes, _) = step, other
    assert list(row) == list(expected)
    assert row == pytest.approx(expected, rel=2e-6, abs=1e-6, nan_ok=True)
    size = math.sqrt(sum(whole.square().sum().item() for whole in wholes))
    worst = max((mine - whole).norm().item() for mine, whole in zip(gradients, wholes, strict=True))
    assert worst <= 2e-6 * size


@pytest.mark.parametrize("name", CASES)
def test_an_update_in_parts_is_the_update_at_once(name, monkeypatch):
    at_once = taken(CASES[name], monkeypatch)
    parts = taken(CASES[name], monkeypatch, micro_batch_tokens=FEW)
    assert parts[2] > at_once[2]
    assert_same_update(parts, at_once)


CHECKPOINTED = ["demonstrations", "soft", "loss dpo", "raft with a price", "ilql", "policy ppo", "policy nlpo"]


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_layers_that_are_computed_twice_learn_the_same(name, monkeypatch):
    at_once = taken(CASES[name], monkeypatch)
    twice = taken(CASES[name], monkeypatch, checkpoint_activations=True)
    assert_same_update(twice, at_once)
    both = taken(CASES[name], monkeypatch, checkpoint_activations=True, micro_batch_tokens=FEW)
    assert_same_update(both, at_once)


def kept_bytes(model, batch) -> int:
    """Of all that the graph of a loss holds for its backward pass, weights left out."""
    kept, weights = {}, {each.untyped_storage().data_ptr() for each in model.parameters()}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = target_losses(model, batch).sum()
    loss.backward()
    return sum(size for place, size in kept.items() if place not in weights)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_that_are_computed_twice_keep_a_fraction(family):
    model = tiny_model(family, layers=6)
    batch = collate_demonstrations(DEMONSTRATIONS, PAD)
    whole = kept_bytes(without_dropout(model), batch)
    compute_twice(model)
    assert kept_bytes(model, batch) < 0.4 * whole


def test_a_copy_of_a_model_computes_its_own_layers_twice():
    model = tiny_model()
    compute_twice(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    batch = collate_demonstrations(DEMONSTRATIONS, PAD)
    assert torch.equal(target_losses(copied, batch), target_losses(tiny_model(), batch))


def test_a_model_of_other_parts_is_not_computed_twice():
    with pytest.raises(WorkbenchError, match="Linear does not say what its layers are: unset checkpoint_activations"):
        compute_twice(torch.nn.Linear(2, 2))


def test_parts_hold_every_item_once_and_no_more_tokens_than_were_asked_for():
    sizes = [5, 1, 9, 30, 2, 2, 7]
    trainer = SimpleNamespace(config=SimpleNamespace(micro_batch_tokens=12))
    parts = Stateful.micro_batches(trainer, list("abcdefg"), sizes)
    assert sorted(item for part in parts for item in part) == list("abcdefg")
    padded = [len(part) * max(sizes["abcdefg".index(item)] for item in part) for part in parts]
    assert padded[0] == 30 and max(padded[1:]) <= 12  # what is longer stands alone
    assert len(parts) == 5


@pytest.mark.parametrize(("tokens", "shared"), [(1, 1), (30, 2), (60, 4), (0, 4)])
def test_completions_of_a_prompt_go_together_as_far_as_they_fit(tokens, shared):
    trainer = on_samples("grpo", micro_batch_tokens=tokens)
    rollout, _ = trainer.rollout(trainer._next_prompts(), trainer.generator, group_size=4)
    longest = int(rollout.attention_mask.sum(1).max())
    assert 15 < 2 * longest < 30 < 4 * longest < 60  # of this draw
    parts, size = trainer.parts_of(rollout)
    assert size == shared
    if tokens:
        rows = torch.cat(parts)
        assert rows.sort().values.tolist() == list(range(8))
        assert all(group.unique().tolist() == [group[0]] for group in (rows // shared).split(shared))


@pytest.mark.parametrize("config", [LanguageModelConfig, RewardModelConfig, DirectAlignmentConfig, IlqlConfig])
def test_fewer_tokens_than_none_are_refused(config):
    given = {"steps": 1} if config is LanguageModelConfig else {}
    with pytest.raises(WorkbenchError, match="micro_batch_tokens is -1"):
        config(micro_batch_tokens=-1, **given)


# --- What an update needs of memory, by arithmetic.


def wide_model(*, layers: int = 6):
    sizes = {"hidden_size": 64, "intermediate_size": 168, "num_attention_heads": 4, "num_key_value_heads": 4}
    shared = {"pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": EOS, "max_position_embeddings": 64}
    config = AutoConfig.for_model("llama", vocab_size=19, num_hidden_layers=layers, **sizes, **shared)
    return without_dropout(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_are_within_a_sixth_of_what_a_graph_holds(precision):
    texts = [CompletionExample(prompt_ids=words(8, 9), completion_ids=words(56, 57)) for _ in range(8)]
    model = wide_model()
    compute_in(model, precision)
    copies = 2 * sum(weight.numel() for weight in model.parameters()) if precision == "bf16" else 0
    held = kept_bytes(model, collate_demonstrations(texts, PAD)) - copies
    line = memory_line([model], model, tokens=8 * 64, twice=False)
    told = float(re.search(r"activations ([\d.]+)", line)[1]) * 2**30
    outputs = 6 * (5 * 64 + 2 * 168)
    given = {"kept": KEPT[precision == "bf16"] * outputs, "states": 0, "layers": 6, "words": 0, "tokens": 512}
    needs = update_memory(weights=0, learned=0, **given, twice=False)
    assert needs["activations"] == pytest.approx(held, rel=1 / 6)
    assert told == pytest.approx(needs["activations"], abs=0.01 * 2**30)  # and the logits of few words


def test_weights_gradients_and_adam_are_counted_in_bytes():
    given = {"kept": 100.0, "states": 8.0, "layers": 4, "words": 50}
    needs = update_memory(weights=400, learned=100, **given, tokens=10, twice=False)
    assert needs == {"weights": 400, "Adam": 800, "gradients": 400, "activations": 10 * 100 + 10 * 50 * 12}
    twice = update_memory(weights=400, learned=100, **given, tokens=10, twice=True)
    assert twice["activations"] == 10 * (8 + 25) + 10 * 50 * 6
    many = update_memory(weights=400, learned=100, **given, tokens=10**9, twice=False)
    assert many["activations"] == 10**11 + 12 * 2**24  # logits are read a few at a time


@pytest.mark.parametrize("name", ["demonstrations", "soft", "loss dpo", "raft", "ilql", "policy ppo"])
def test_a_trainer_says_what_it_needs_and_what_there_is(name):
    assert "Learning 24 tokens at a time takes about" in CASES[name](micro_batch_tokens=FEW).memory()


def test_padded_tokens_of_the_longest_batch_are_counted():
    longest = max(len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids)) for pair in DATA["pairs"])
    assert f"Learning {8 * 2 * longest} tokens" in aligned("dpo").memory()
    prompt = max(len(each.prompt_ids) for each in prompts_with())
    assert f"Learning {8 * (prompt + 6)} tokens" in on_samples("ppo").memory()


def test_what_does_not_fit_is_said_and_only_what_can_not_fit_is_refused(monkeypatch):
    trainer = language_model(collate_demonstrations, DEMONSTRATIONS)
    weights = sum(weight.numel() for weight in trainer.model.parameters())
    for there, refused in ((17 * weights, False), (15 * weights, True)):
        monkeypatch.setattr("workbench.models.memory.os.sysconf", {"SC_PHYS_PAGES": there, "SC_PAGE_SIZE": 1}.get)
        if refused:
            with pytest.raises(WorkbenchError, match=r"of 0\.0 there: take adapters \(lora_rank\), a smaller model"):
                trainer.memory()
        else:
            assert "micro_batch_tokens, checkpoint_activations or precision make that less." in trainer.memory()
