"""What a policy did on held-out prompts: KL against enumeration; a run that resumed repeats its tables."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from policy_gradient_cases import prompts_with, trainer_for
from tiny_models import (
    EOS,
    PAD,
    every_completion,
    plain_logprobs,
    plain_next_logprobs,
    tiny_model,
    word_tokenizer,
)

from workbench import WorkbenchError
from workbench.analysis.evaluations import summarise_evaluation
from workbench.models.sampling import sample
from workbench.models.tokens import collate, conditioned
from workbench.records import PromptExample, Rollout
from workbench.runs import Run
from workbench.trainers.evaluation import (
    evaluate_at_temperatures,
    evaluate_policy,
    held_out_rows,
    kl_positions,
    record_measured,
    sequence_kl,
)

TEXTS = ["user : what colour is the sky assistant :", "the grass", "user : thanks assistant :"]


def prompt_examples() -> list[PromptExample]:
    return [
        PromptExample(prompt_ids=word_tokenizer()(text)["input_ids"], row={"prompt": text, "kind": kind})
        for text, kind in zip(TEXTS * 4, ["qa", "suggest", "qa", "harm"] * 3, strict=True)
    ]


def count_words(prompts, completions, *, finished, **columns) -> list[float]:
    assert len(prompts) == len(finished) == 12 and list(columns) == ["kind"] and columns["kind"][3] == "harm"
    return [float(len(completion.split())) for completion in completions]


def test_the_table_has_the_columns_of_the_prompts_what_was_said_and_every_reward():
    frame, rollout = evaluate_policy(
        tiny_model(), word_tokenizer(), prompt_examples(), {"words": count_words}, max_completion_length=5
    )
    assert list(frame) == ["prompt", "kind", "completion", "finished", "completion_length", "words"]
    assert frame["prompt"].tolist() == TEXTS * 4
    for row, (_, record) in enumerate(frame.iterrows()):
        tokens = rollout.completions[row][rollout.completion_mask[row]].tolist()
        assert record["completion_length"] == len(tokens)
        assert record["finished"] == (tokens[-1] == EOS)
        assert record["words"] == sum(token > 3 for token in tokens)  # ids up to 3 are special
        assert len(tokens) <= 5


def test_the_seed_decides_what_is_said_and_greedy_needs_none():
    def said(**arguments):
        return evaluate_policy(
            tiny_model(), word_tokenizer(), prompt_examples(), {}, max_completion_length=6, **arguments
        )[0]["completion"].tolist()

    assert said(seed=1) == said(seed=1) != said(seed=2)
    assert said(seed=1, temperature=0.0) == said(seed=2, temperature=0.0)
    assert said(temperature=0.0)[:3] == said(temperature=0.0)[3:6]  # equal prompts, equal answers


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sequence_kl_has_the_exact_kl_of_whole_completions_as_its_expectation(temperature):
    policy, reference = tiny_model(vocab_size=6, layers=1), tiny_model(vocab_size=6, layers=1, seed=1)
    prompt = [4, 5]
    ours = every_completion(policy, prompt, 3, temperature=temperature)
    theirs = every_completion(reference, prompt, 3, temperature=temperature)
    exact = sum(chance * math.log(chance / theirs[completion]) for completion, chance in ours.items())
    batch = collate([prompt] * len(ours), list(map(list, ours)), pad_id=PAD)
    rollout = Rollout(
        **vars(batch), logprobs=torch.zeros(batch.completion_mask.shape), finished=torch.ones(len(ours)).bool()
    )
    sums = sequence_kl(policy, reference, rollout, temperature=temperature, batch_size=7)
    expectation = sum(chance * value for chance, value in zip(ours.values(), sums, strict=True))
    assert exact > 0.1 and expectation == pytest.approx(exact, abs=1e-5)
    assert min(sums) > 0  # exact at every token, unlike the log-ratio of a sample


def test_a_reference_is_measured_without_the_control_token_that_the_policy_was_asked_with():
    policy, reference = tiny_model(vocab_size=6, layers=1), tiny_model(vocab_size=6, layers=1, seed=1)
    policy.config.control_token_ids = reference.config.control_token_ids = [5]
    ours, theirs = every_completion(policy, [5, 4, 3], 3), every_completion(reference, [4, 3], 3)
    exact = sum(chance * math.log(chance / theirs[completion]) for completion, chance in ours.items())
    prompts = conditioned([PromptExample(prompt_ids=[4, 3], row={"prompt": "x"})], 5) * len(ours)
    batch = collate([prompt.prompt_ids for prompt in prompts], list(map(list, ours)), pad_id=PAD)
    rollout = Rollout(
        **vars(batch), logprobs=torch.zeros(batch.completion_mask.shape), finished=torch.ones(len(ours)).bool()
    )
    sums = sequence_kl(policy, reference, rollout)
    assert exact > 0.1 and sum(c * kl for c, kl in zip(ours.values(), sums, strict=True)) == pytest.approx(
        exact, abs=1e-5
    )


def test_sequence_kl_of_one_token_is_the_kl_of_the_next_token():
    policy, reference = tiny_model(), tiny_model(seed=1)
    prompts = [[4, 6, 7], [9], [10, 11, 12, 13]]
    rollout = sample(policy, prompts, max_completion_length=1, generator=torch.Generator().manual_seed(0))
    for prompt, value in zip(prompts, sequence_kl(policy, reference, rollout), strict=True):
        ours, theirs = (plain_next_logprobs(model, prompt)[1:] for model in (policy, reference))
        assert value == pytest.approx((ours.exp() * (ours - theirs)).sum().item(), abs=1e-5)


def test_every_temperature_is_evaluated_and_kl_is_measured_at_one():
    policy, reference = tiny_model(), tiny_model(seed=1)
    arguments = policy, word_tokenizer(), prompt_examples(), {"gold": count_words}
    frame = evaluate_at_temperatures(*arguments, reference=reference, max_completion_length=5, seed=3)
    assert frame["temperature"].tolist() == [1.0] * 12 + [0.7] * 12 + [0.5] * 12 + [0.0] * 12
    alone, rollout = evaluate_policy(*arguments, max_completion_length=5, seed=3)
    assert frame["completion"][:12].tolist() == alone["completion"].tolist()
    assert frame["kl"][:12].tolist() == sequence_kl(policy, reference, rollout)
    assert frame["kl"][12:].isna().all()


def test_the_summary_has_means_and_their_errors_over_prompts():
    frame = pd.DataFrame(
        {
            "temperature": [1.0, 1.0, 1.0, 0.0, 0.0, 0.0],
            "gold": [1.0, 2.0, 6.0, 4.0, 4.0, 4.0],
            "kl": [0.5, 1.5, 1.0, *[math.nan] * 3],
            "completion_length": [2, 4, 6, 1, 1, 1],
        }
    )
    hot, greedy = summarise_evaluation(frame).to_dict("records")
    assert (hot["temperature"], hot["count"], hot["gold"], hot["kl"], hot["completion_length"]) == (1.0, 3, 3.0, 1.0, 4)
    assert hot["gold_se"] == pytest.approx(math.sqrt(7 / 3))  # variance (4 + 1 + 9) / 2 = 7, of 3 prompts
    assert (greedy["gold"], greedy["gold_se"]) == (4.0, 0.0) and math.isnan(greedy["kl"])


# The path of a policy in training


MODELS = {"policy": tiny_model(vocab_size=6, layers=1), "reference": tiny_model(vocab_size=6, layers=1, seed=1)}
PROMPT = [4, 5]


WIDE = {"policy": tiny_model(), "reference": tiny_model(seed=1)}


def exact_token_kl(prompt: list[int], completion: list[int]) -> list[float]:
    """KL of the next token at every position of a completion, one text at a time in float64."""
    kls = []
    for end in range(len(completion)):
        ours, theirs = (plain_next_logprobs(model, prompt + completion[:end]).double() for model in WIDE.values())
        kls.append(float((ours.exp() * (ours - theirs))[ours.exp() > 0].sum()))
    return kls


def rows_of(count: int, *, models=MODELS, seed: int = 0, length: int = 3) -> list[dict]:
    prompts = [PromptExample(prompt_ids=PROMPT, row={"prompt": "x", "kind": "qa"})] * count
    return held_out_rows(
        **models, tokenizer=word_tokenizer(), prompts=prompts, rewards={}, max_completion_length=length, seed=seed
    )


def test_every_row_has_the_exact_kl_of_its_own_tokens_and_the_sampled_estimates():
    ids = word_tokenizer().convert_tokens_to_ids
    checked = 0
    for row in rows_of(40, models=WIDE):
        completion = ids(row["completion"].split()) + [EOS] * row["finished"]
        if len(completion) != row["completion_length"]:  # a special token, which the text does not show
            continue
        assert row["token_kl"] == pytest.approx(exact_token_kl(PROMPT, completion), abs=1e-5)
        assert row["kl"] == pytest.approx(sum(row["token_kl"]), abs=1e-6)
        ours, theirs = (np.array(plain_logprobs(model, PROMPT, completion)) for model in WIDE.values())
        assert row["kl_k1"] == pytest.approx((ours - theirs).sum(), abs=1e-4)  # log-probabilities of 10, in fp32
        ratio = np.exp(theirs - ours)
        assert row["kl_k3"] == pytest.approx((ratio - 1 - np.log(ratio)).sum(), abs=1e-4)
        checked += 1
    assert checked > 10


def test_all_three_estimates_have_the_exact_sequence_kl_as_their_mean_and_the_exact_one_varies_least():
    ours, theirs = (every_completion(model, PROMPT, 3) for model in MODELS.values())
    exact = sum(chance * math.log(chance / theirs[completion]) for completion, chance in ours.items())
    frame = pd.DataFrame(rows_of(1500))
    for estimate in ("kl", "kl_k1", "kl_k3"):
        error = frame[estimate].std() / len(frame) ** 0.5
        assert abs(frame[estimate].mean() - exact) < 3.5 * error
    assert frame["kl"].std() < frame["kl_k3"].std()
    assert frame["kl"].std() < frame["kl_k1"].std()


def test_a_trainer_measures_what_the_function_measures():
    prompts = prompts_with(kind=["qa", "harm"] * 8)[:4]
    policy, reference = tiny_model(), tiny_model(seed=3)
    trainer = trainer_for(policy, reference, held_out=prompts, seed=5, num_generations=1)
    said = trainer.evaluate()
    ours = pd.DataFrame(trainer.last_held_out)
    settings = {"max_completion_length": 6, "seed": 7}  # the trainer's own stream of random numbers
    theirs = pd.DataFrame(held_out_rows(policy, reference, word_tokenizer(), prompts, {}, **settings))
    assert list(ours["kind"]) == ["qa", "harm", "qa", "harm"]
    for column in ("completion", "finished", "completion_length"):
        assert ours[column].tolist() == theirs[column].tolist()
    for column in ("kl", "kl_k1", "kl_k3"):
        np.testing.assert_allclose(ours[column], theirs[column], atol=1e-5)
    assert said["held_out_kl"] == pytest.approx(ours["kl"].mean())
    assert (ours["kl"] > 0).all()


def test_held_out_rows_are_there_only_after_an_evaluation_and_measuring_changes_no_training():
    rows, policies = [], [tiny_model() for _ in range(2)]
    for policy, every in zip(policies, (1, 100), strict=True):
        trainer = trainer_for(policy, evaluate_every=every)
        trainer.evaluate()
        rows.append([(trainer.step(), bool(trainer.last_held_out)) for _ in range(3)])
    assert [held for _, held in rows[0]] == [True] * 3
    assert [held for _, held in rows[1]] == [False] * 3
    for one, other in zip(policies[0].parameters(), policies[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_positions_add_up_to_the_sequence_kl_of_each_kind():
    path = pd.DataFrame(
        {"kind": ["qa", "qa", "harm"], "token_kl": [[0.5, 0.25], [0.1], [1.0, 2.0, 3.0]], "kl": [0.75, 0.1, 6.0]}
    )
    table = kl_positions(path)
    sums = table.groupby("kind")["kl"].sum()
    assert sums["qa"] == pytest.approx((0.75 + 0.1) / 2)
    assert sums["harm"] == pytest.approx(6.0)
    assert sums["all"] == pytest.approx(path["kl"].mean())
    first = table[table["position"] == 1].set_index("kind")
    assert first["kl"].to_dict() == pytest.approx({"all": 1.6 / 3, "qa": 0.3, "harm": 1.0})
    assert first["completions"].to_dict() == {"all": 3, "qa": 2, "harm": 1}


def recorded(run: Run, step: int, seed: int) -> None:
    components = lambda prompt, completion, finished: {"length": float(len(completion)), "end": float(finished)}  # noqa: E731
    record_measured(run, rows_of(4, seed=seed), step=step, components=components, round=1)


def test_a_step_that_is_measured_again_stands_there_once(tmp_path):
    once, resumed = (Run.open(tmp_path / name, {"seed": 0}) for name in ("once", "resumed"))
    for step in (0, 5, 10):
        recorded(once, step, seed=step)
    for step, seed in ((0, 0), (5, 5), (10, 99), (5, 5), (10, 10)):  # killed after step 10, continued from step 0
        recorded(resumed, step, seed=seed)
    for name in ("measured", "kl_positions"):
        files = [(run.path("tables") / f"{name}.jsonl").read_bytes() for run in (once, resumed)]
        assert files[0] == files[1]
    path = once.table("measured")
    assert path.groupby("step")["row"].apply(list).to_dict() == {0: [0, 1, 2, 3], 5: [0, 1, 2, 3], 10: [0, 1, 2, 3]}
    assert (path["gold_length"] == path["completion"].str.len()).all()
    assert (path["round"] == 1).all()
    assert "token_kl" not in path


def test_prompts_may_have_columns_of_every_name(tmp_path):
    run = Run.open(tmp_path / "run", {"seed": 0})
    names = {"row": 7, "n": 9, "step": 3, "temperature": 0.2, "draw": "x"}
    record_measured(run, [{"prompt": "a", "completion": "b", "gold": 1.0, "kl": 0.0, **names}] * 2, step=4)
    told = run.table("measured")[list(names)].to_dict("records")
    assert told == [{"row": row, "n": 1, "step": 4, "temperature": 1.0, "draw": "path"} for row in (0, 1)]


SOUND = {"prompt": "a", "completion": "b", "kl": 0.5, "gold": 1.0}


@pytest.mark.parametrize(
    "row, draw, said",
    [
        ({"prompt": "a", "completion": "b", "gold": 1.0}, "path", "no column kl"),
        ({"kl": 0.5, "gold": 1.0}, "path", "no column prompt, completion"),
        (SOUND, "mine", "'mine'.*choose from path, evaluation, best of n"),
        (SOUND, "evaluation", "no column temperature"),
        (SOUND, "best of n", "no column n "),
        (SOUND | {"kl": "0.5"}, "path", "kl '0.5', which is not a number"),
        (SOUND | {"completion": 7}, "path", "completion 7, which is not text"),
    ],
)
def test_rows_that_no_study_could_read_are_refused_before_they_are_written(tmp_path, row, draw, said):
    run = Run.open(tmp_path / "run", {"seed": 0})
    with pytest.raises(WorkbenchError, match=said):
        record_measured(run, [row], step=3, draw=draw)
    assert not run.path("tables").exists()


def test_nothing_measured_writes_nothing(tmp_path):
    run = Run.open(tmp_path / "run", {"seed": 0})
    record_measured(run, [], step=3)
    assert not run.path("tables").exists()
