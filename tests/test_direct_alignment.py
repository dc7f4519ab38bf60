"""Direct alignment against TRL's trainers, plain re-scoring and invariants."""

import inspect
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracles.tiny_llama import waved_llama
from tiny_models import EOS, FAMILIES, plain_logprobs, same_weights, tiny_model, weights_of
from trainer_checks import assert_continues
from transformers import LlamaConfig, LlamaForCausalLM

from workbench import NonFiniteLoss, WorkbenchError
from workbench.losses.direct import xpo_loss
from workbench.records import LabelledExample, PairExample, RankingExample
from workbench.trainers.direct_alignment import LOSSES, DirectAlignmentConfig, DirectAlignmentTrainer, summed_logprobs

TRL = json.loads((Path(__file__).parent / "oracles" / "trl_direct.json").read_text())


def pair(prompt, chosen, rejected, preference=1.0) -> PairExample:
    return PairExample(prompt_ids=prompt, chosen_ids=chosen, rejected_ids=rejected, margin=0.0, preference=preference)


def labelled(prompt, completion, label) -> LabelledExample:
    return LabelledExample(prompt_ids=prompt, completion_ids=completion, label=label)


def ranked(prompt, completions, ranking) -> RankingExample:
    return RankingExample(prompt_ids=prompt, completion_ids=completions, ranking=ranking)


PAIRS = [
    pair([4, 6, 7, 8], [9, EOS], [10, 11, 12, EOS]),
    pair([4], [10, 11, 12, 13, EOS], [9, 9, EOS]),
    pair([5, 12], [14, EOS], [15, EOS]),
    pair([5, 13], [15, 4], [14, EOS]),
]
HELD_OUT = [pair([8, 8], [9, EOS], [12, EOS]), pair([8], [5, 6, EOS], [4, EOS]), pair([9], [4, EOS], [7, 7, EOS])]
SIDES = ["chosen", "rejected", "rejected", "chosen"]  # that the reference wrote
DATA = {
    "pairs": ([replace(each, rival=side) for each, side in zip(PAIRS, SIDES, strict=True)], HELD_OUT),
    "labelled": (
        [
            labelled([4, 6, 7], [9, EOS], 1),
            labelled([4], [10, 11, 12, EOS], 0),
            labelled([5, 12], [14, EOS], 0),
            labelled([5, 13, 13], [15, 4, 9, EOS], 1),
        ],
        [labelled([8, 8], [9, EOS], 0), labelled([8], [5, 6, EOS], 1), labelled([9], [4, EOS], 1)],
    ),
    "rankings": (
        [
            ranked([4, 6], [[9, EOS], [10, 11, EOS], [12, EOS]], [2, 0, 1]),
            ranked([5], [[9], [4], [8]], [1, 2, 0]),
            ranked([7, 8, 9], [[15, EOS], [EOS], [14, 4, EOS]], [0, 1, 2]),
            ranked([6], [[4], [5, 5], [6]], [1, 0, 2]),
        ],
        [ranked([8], [[5, 6, EOS], [4, EOS], [7, EOS]], [2, 1, 0])],
    ),
}


XPO = {"dpo": {}, "xpo": {"alpha": 0.2}}  # losses of which the second is the first and an optimism


def trainer_for(family="llama", *, reference_seed=0, examples=None, held_out=None, **config):
    config = {"epochs": 3, "batch_size": 2, "learning_rate": 5e-3, "warmup_steps": 2, "evaluate_every": 4} | config
    settings = DirectAlignmentConfig(**config)
    given = DATA[settings.objective.data]
    examples, held_out = given[0] if examples is None else examples, given[1] if held_out is None else held_out
    return DirectAlignmentTrainer(
        tiny_model(family), tiny_model(family, seed=reference_seed), examples, held_out, settings
    )


def plain_log_ratio(policy, reference, prompt, completion) -> float:
    """Log-ratio of a whole completion, one token at a time, in nats."""
    ours, theirs = (sum(plain_logprobs(model, prompt, completion)) for model in (policy, reference))
    return ours - theirs


def plain_margin(policy, reference, pair: PairExample) -> float:
    """Difference of log-ratios of a pair, in nats."""
    chosen, rejected = (
        plain_log_ratio(policy, reference, pair.prompt_ids, ids) for ids in (pair.chosen_ids, pair.rejected_ids)
    )
    return chosen - rejected


@pytest.mark.parametrize("family", FAMILIES)
def test_rewards_are_beta_times_plain_log_ratios_in_the_order_given(family):
    trainer = trainer_for(family, reference_seed=1, held_out=PAIRS, beta=0.3)
    models = trainer.policy, trainer.reference
    rewards = trainer.held_out_rewards()
    for row, example in enumerate(PAIRS):
        for column, ids in enumerate((example.chosen_ids, example.rejected_ids)):
            expected = 0.3 * plain_log_ratio(*models, example.prompt_ids, ids)
            assert rewards[row, column].item() == pytest.approx(expected, abs=1e-5)
    assert trainer.held_out_accuracies().tolist() == [plain_margin(*models, pair) > 0 for pair in PAIRS]


def test_a_step_reports_loss_accuracy_and_margin_of_its_batch():
    trainer = trainer_for(reference_seed=1, batch_size=4, beta=0.3)
    margins = [0.3 * plain_margin(tiny_model(), tiny_model(seed=1), pair) for pair in PAIRS]
    row = trainer.step()
    assert row["loss"] == pytest.approx(sum(math.log1p(math.exp(-margin)) for margin in margins) / 4, abs=1e-5)
    assert row["accuracy"] == sum(margin > 0 for margin in margins) / 4
    assert row["margin"] == pytest.approx(sum(margins) / 4, abs=1e-5)
    assert row["chosen_reward"] - row["rejected_reward"] == pytest.approx(row["margin"], abs=1e-6)


def test_held_out_accuracy_is_of_the_policy_after_the_step_and_comes_when_due():
    trainer = trainer_for()
    rows = [trainer.step() for _ in range(6)]
    assert trainer.total_steps == 6
    assert [row["held_out_accuracy"] is not None for row in rows] == [False, False, False, True, False, True]
    right = sum(plain_margin(trainer.policy, tiny_model(), pair) > 0 for pair in HELD_OUT)
    assert rows[-1]["held_out_accuracy"] == pytest.approx(right / 3)


def test_it_starts_at_log_two_with_the_reference_equal_to_the_policy_and_never_moves_the_reference():
    trainer = trainer_for()
    start = weights_of(trainer.reference)
    assert same_weights(start, weights_of(trainer.policy))
    row = trainer.step()
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-6)
    for _ in range(5):
        trainer.step()
    assert same_weights(start, weights_of(trainer.reference))
    assert not same_weights(start, weights_of(trainer.policy))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "llama"])  # which learns them all below
def test_it_learns_four_comparisons_by_heart(family):
    trainer = trainer_for(family, epochs=60, batch_size=4, beta=0.5)
    rows = [trainer.step() for _ in range(trainer.total_steps)]
    assert rows[-1]["accuracy"] == 1 and rows[-1]["loss"] < 0.05
    assert rows[-1]["margin"] > 3 > abs(rows[0]["margin"])


def oracle_model(phase: float) -> LlamaForCausalLM:
    """The model that TRL was given, and an eleventh word as padding: TRL's can say its own, which ours is kept from."""
    model = waved_llama(phase)
    wider = model.config.to_dict() | {"vocab_size": 11, "pad_token_id": 10}
    same = LlamaForCausalLM(LlamaConfig(**wider))
    weights = model.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.cat([weights[name], torch.zeros(1, 8)])
    same.load_state_dict(weights)
    return same


def trl_settings(name: str) -> dict[str, float]:
    """TRL's settings of that loss by our names."""
    theirs = TRL["kto"]["settings"] if name == "kto_loss" else TRL["losses"][name]["settings"]
    renamed = {"simpo_gamma": "gamma", "f_alpha_divergence_coef": "alpha"}
    other = ("loss_type", "f_divergence_type", "cpo_alpha")
    return {renamed.get(key, key): value for key, value in theirs.items() if key not in other}


def trl_examples(name: str) -> list:
    """The examples that TRL's trainer had."""
    if name == "kto_loss":
        return [labelled(row["prompt"], row["completion"], row["label"]) for row in TRL["labelled"]]
    rows = TRL["pairs"][:1] if name in ("cpo_loss", "simpo_loss") else TRL["pairs"]
    return [pair(row["prompt"], row["chosen"], row["rejected"]) for row in rows]


def in_order(lengths, *_, **__) -> list[list[int]]:
    """Everything in one batch, in the order given."""
    return [list(range(len(lengths)))]


@pytest.mark.parametrize("name", TRL["trainers"])
def test_loss_gradient_and_implied_rewards_are_those_of_trls_trainers(name, monkeypatch):
    # all in one batch in TRL's order, on which KTO's mismatched pairs depend
    monkeypatch.setattr("workbench.trainers.descent.length_bucketed_batches", in_order)
    loss = next(row for row, objective in LOSSES.items() if objective.loss.__name__ == name)
    examples, frozen = trl_examples(name), TRL["trainers"][name]
    phases = TRL["phases"].get(name, TRL["phases"]["others"])
    policy, reference = oracle_model(phases["policy"]), oracle_model(phases["reference"])
    without_nll = {"nll_coef": 0.0} if name == "orpo_loss" else {}
    config = DirectAlignmentConfig(loss=loss, batch_size=max(2, len(examples)), **trl_settings(name), **without_nll)
    row = DirectAlignmentTrainer(policy, reference, examples, examples, config).step()
    if name == "orpo_loss":  # TRL's likelihood is of prompt and completion, so only the odds ratio is compared
        rewards = {key: frozen[key] for key in ("chosen_reward", "rejected_reward")}
        frozen = rewards | {"loss": -config.beta * frozen["log_odds_ratio"]}
    if name == "ipo_normalised_loss":  # TRL reports sums beside a loss per token
        frozen = {key: frozen[key] for key in ("loss", "gradient_norm")}
    for theirs, value in frozen.items():
        ours = {"gradient_norm": "grad_norm"}.get(theirs, theirs)
        assert row[ours] == pytest.approx(value, rel=1e-5, abs=1e-6), theirs


# Every row of the table


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns_four_examples_by_heart(loss):
    trainer = trainer_for(loss=loss, epochs=25, batch_size=4, learning_rate=2e-2)
    rows = [trainer.step() for _ in range(trainer.total_steps)]
    assert rows[-1]["accuracy"] == 1
    assert rows[-1]["margin"] > max(0.0, rows[0]["margin"])
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_rows_settings_are_the_keywords_of_its_loss_and_all_its_inputs_exist(loss):
    objective, config = LOSSES[loss], DirectAlignmentConfig(loss=loss)
    assert (config.learning_rate, config.nll_coef) == (objective.learning_rate, objective.nll_coef)
    assert config.settings == dict(objective.settings)
    parameters = inspect.signature(objective.loss).parameters.values()
    assert set(objective.settings) == {
        parameter.name for parameter in parameters if parameter.kind.name == "KEYWORD_ONLY"
    }
    assert trainer_for(loss=loss, epochs=1).step()["step"] == 1
    assert set(objective.described()) == set(LOSSES["dpo"].described())


@pytest.mark.parametrize("loss", LOSSES)
def test_the_reference_is_run_once_per_example_or_never_and_does_not_change(loss, monkeypatch):
    trainer = trainer_for(loss=loss, epochs=3)
    start, scored = weights_of(trainer.reference), []

    def counted(model, batch, *, group_size):
        scored.append((model is trainer.reference) * len(batch) // group_size)
        return summed_logprobs(model, batch, group_size=group_size)

    monkeypatch.setattr("workbench.trainers.direct_alignment.summed_logprobs", counted)
    for _ in range(trainer.total_steps):
        trainer.step()
    # KTO's mismatched completions are new ones in every batch
    once = len(trainer.examples) + len(trainer.held_out) + (12 if loss == "kto" else 0)
    assert sum(scored) == (once if LOSSES[loss].needs_reference else 0)
    assert same_weights(start, weights_of(trainer.reference))


@pytest.mark.parametrize("loss", ["simpo", "orpo", "rrhf", "sft_chosen"])
def test_rewards_of_losses_per_token_are_means_over_the_completions_tokens_without_a_reference(loss):
    trainer = trainer_for(loss=loss, reference_seed=1)
    beta, rewards = trainer.config.settings.get("beta", 1.0), trainer.held_out_rewards()
    for row, example in zip(rewards.tolist(), trainer.held_out, strict=True):
        for reward, ids in zip(row, trainer.kind.completions(example), strict=True):
            plain = plain_logprobs(trainer.policy, example.prompt_ids, ids)
            assert reward == pytest.approx(beta * sum(plain) / len(ids), abs=1e-5)


def test_xpos_optimism_is_the_policys_own_log_probability_of_what_the_reference_wrote():
    written = [getattr(pair, f"{side}_ids") for pair, side in zip(PAIRS, SIDES, strict=True)]
    sums = [sum(plain_logprobs(tiny_model(), *row)) for row in zip((p.prompt_ids for p in PAIRS), written, strict=True)]
    rows = [trainer_for(batch_size=4, beta=0.3, loss=loss, **own).step() for loss, own in XPO.items()]
    assert rows[1]["loss"] - rows[0]["loss"] == pytest.approx(0.2 * sum(sums) / 4, abs=1e-5)
    assert rows[1]["accuracy"] == rows[0]["accuracy"] and rows[1]["margin"] == rows[0]["margin"]


@pytest.mark.parametrize(("alpha", "best"), [(0.2, math.log(0.5) / 0.3), (0.05, math.log(5) / 0.3), (0.3, -60)])
def test_xpo_has_an_end_for_what_the_reference_wrote_and_won_with_only_where_alpha_is_below_beta(alpha, best):
    moved = torch.linspace(-60, 60, 120_001, dtype=torch.float64)  # nats of the chosen completion, the reference's own
    zero = torch.zeros_like(moved)
    loss = xpo_loss(moved, zero, zero, zero, moved, beta=0.3, alpha=alpha)
    # alpha = beta / (1 + exp(beta m)) where m = log(beta / alpha - 1) / beta; at alpha = beta nowhere
    assert moved[loss.argmin()].item() == pytest.approx(best, abs=1e-3)


def test_xpo_refuses_pairs_of_which_nobody_says_what_the_reference_wrote():
    with pytest.raises(WorkbenchError, match=r"'xpo' has to know which completion .* column 'rival'"):
        trainer_for(loss="xpo", examples=[*DATA["pairs"][0], PAIRS[0]])


def test_a_likelihood_can_be_added_to_any_loss_on_pairs():
    plain = [plain_logprobs(tiny_model(), pair.prompt_ids, pair.chosen_ids) for pair in PAIRS]
    likelihood = sum(sum(logprobs) / len(logprobs) for logprobs in plain) / 4
    rows = [trainer_for(batch_size=4, nll_coef=coef, beta=0.3).step() for coef in (0.0, 0.5)]
    assert rows[1]["loss"] - rows[0]["loss"] == pytest.approx(-0.5 * likelihood, abs=1e-5)


@pytest.mark.parametrize("loss", ["dpo", "xpo", "ipo_normalised", "orpo", "apo_down"])
def test_a_soft_label_weighs_the_loss_of_both_directions(loss):
    def first_loss(preference, *, flipped):
        pairs = [replace(pair, preference=preference) for pair in DATA["pairs"][0]]
        if flipped:
            other = {"chosen": "rejected", "rejected": "chosen"}
            pairs = [
                replace(pair, chosen_ids=pair.rejected_ids, rejected_ids=pair.chosen_ids, rival=other[pair.rival])
                for pair in pairs
            ]
        return trainer_for(loss=loss, examples=pairs, batch_size=4, reference_seed=1).step()["loss"]

    expected = 0.7 * first_loss(1.0, flipped=False) + 0.3 * first_loss(1.0, flipped=True)
    assert first_loss(0.7, flipped=False) == pytest.approx(expected, rel=1e-5)


def test_ties_teach_dpo_that_both_completions_are_as_good():
    ties = [replace(pair, preference=0.5) for pair in PAIRS]
    trainer = trainer_for(examples=ties, held_out=ties, reference_seed=1, epochs=60, batch_size=4, beta=0.5)
    first = trainer.held_out_rewards().diff().abs().max()
    for _ in range(trainer.total_steps):
        trainer.step()
    assert trainer.held_out_rewards().diff().abs().max() < 0.1 * first


def test_ktos_reference_point_is_the_mean_log_ratio_behind_the_prompt_after(monkeypatch):
    monkeypatch.setattr("workbench.trainers.descent.length_bucketed_batches", in_order)
    examples = DATA["labelled"][0]
    trainer = trainer_for(loss="kto", reference_seed=2, batch_size=4)
    shifted = zip(examples, [examples[-1], *examples[:-1]], strict=True)
    models = trainer.policy, trainer.reference
    ratios = [plain_log_ratio(*models, this.prompt_ids, before.completion_ids) for this, before in shifted]
    assert sum(ratios) > 0
    assert trainer.step()["reference_point"] == pytest.approx(sum(ratios) / 4, abs=1e-5)


def test_a_completion_alone_in_its_batch_has_the_reference_point_zero():
    for example in DATA["labelled"][0]:
        trainer = trainer_for(loss="kto", reference_seed=2, examples=[example])
        assert trainer.step()["reference_point"] == 0


@pytest.mark.parametrize(
    ("loss", "before"), [("dpo", 1), ("dpo", 2), ("dpo", 5), ("kto", 3), ("rrhf", 3), ("simpo", 3)]
)
def test_a_stopped_training_continues_bit_for_bit(loss, before, tmp_path):
    assert_continues(lambda: trainer_for(loss=loss, reference_seed=1), tmp_path, steps=6, before=before)


def test_a_continued_training_knows_what_the_reference_said_before():
    before, continued = trainer_for(), trainer_for()
    for _ in range(2):  # one epoch
        before.step()
    continued.load_state_dict(before.state_dict())
    with torch.no_grad():
        continued.reference.lm_head.weight.fill_(math.nan)
    assert math.isfinite(continued.step()["loss"])


def test_a_loss_that_is_nan_is_named_and_moves_nothing():
    trainer = trainer_for()
    trainer.step()
    with torch.no_grad():
        trainer.reference.lm_head.weight.fill_(math.nan)
    before = weights_of(trainer.policy)
    with pytest.raises(NonFiniteLoss, match="step 2") as caught:
        trainer.step()
    assert set(caught.value.batch) == {"tokens", "attention_mask", "completion_mask"}
    assert same_weights(before, weights_of(trainer.policy))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"learning_rate": -1e-3}, "learning_rate is -0.001"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"beta": 0.0}, "beta is 0.0"),
        ({"beta": -0.1}, "beta is -0.1"),
        ({"nll_coef": -1.0}, "nll_coef is -1.0"),
        ({"loss": "dop"}, "no loss 'dop': choose one of dpo, xpo, conservative_dpo"),
        ({"loss": "dpo", "gamma": 0.5}, "'dpo' has no gamma: it takes beta, nll_coef"),
        ({"loss": "slic", "beta": 0.5}, "'slic' has no beta: it takes delta"),
        ({"loss": "robust_dpo", "label_smoothing": 0.5}, "label_smoothing is 0.5"),
        ({"loss": "simpo", "gamma": -0.5}, "gamma is -0.5"),
        ({"loss": "f_dpo_alpha", "alpha": 2.0}, "alpha is 2.0"),
        (
            {"loss": "xpo", "beta": 0.1, "alpha": 0.1},
            "alpha is 0.1 but beta is 0.1: 'xpo' would make what the reference",
        ),
        ({"loss": "xpo", "alpha": 0.5}, "alpha is 0.5 but beta is 0.3"),
        ({"loss": "kto", "desirable_weight": 0.0}, "desirable_weight is 0.0"),
        ({"loss": "kto", "nll_coef": 1.0}, "'kto' knows no chosen completion"),
        ({"loss": "kto", "batch_size": 1}, "batch_size is 1, but the loss 'kto'"),
    ],
)
def test_a_setting_that_does_not_fit_the_loss_is_refused(config, says):
    with pytest.raises(WorkbenchError, match=says):
        DirectAlignmentConfig(**config)


@pytest.mark.parametrize(
    ("loss", "examples", "says"),
    [
        ("kto", PAIRS, "'kto' learns from labelled completions .columns prompt, completion, label., not from Pair"),
        ("rrhf", PAIRS, "'rrhf' learns from rankings .columns prompt, completions, ranking."),
        ("dpo", DATA["labelled"][0], "'dpo' learns from pairs .columns prompt, chosen, rejected."),
        ("rrhf", [ranked([4], [[5], [6]], [0, 1]), *DATA["rankings"][0]], "2 and with 3 completions"),
        ("dpo", [], "0 training"),
    ],
)
def test_data_of_another_kind_and_none_are_refused(loss, examples, says):
    with pytest.raises(WorkbenchError, match=says):
        trainer_for(loss=loss, examples=examples)
    with pytest.raises(WorkbenchError, match="0 held-out"):
        trainer_for(held_out=[])
