"""Skills: answers whose skill is known, counts made by hand, chances the plain way, and the notebook of them."""

import json
import math
import random
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from workbench import WorkbenchError
from workbench.analysis import skills
from workbench.analysis.skills import TIERS, measured_skills, with_features
from workbench.models.load import build_policy
from workbench.runs import Run
from workbench.studies.skills import (
    plot_facts,
    plot_skills,
    policies_of,
    skills_over_units,
    with_equal_gold,
)
from workbench.tasks import open_task
from workbench.trainers.evaluation import skill_tables

KINDS = ("suggest", "qa", "harm", "math")
SIZES = {"count": 6, "samples": 2, "max_prompt_length": 24, "max_completion_length": 12}


def written(world, quality: float, *, count: int = 40) -> dict[str, pd.DataFrame]:
    """Answers of a scripted writer to held-out prompts of each kind, as a policy's are kept."""
    rng = random.Random(1)
    rows = [row for kind in KINDS for row in world.prompts(count, rng, split="test", kind=kind)]
    answers = pd.DataFrame(rows).assign(finished=True, temperature=1.0, nth=0)
    answers["completion"] = [world.answer(row["prompt"], quality, rng) for row in rows]
    texts = list(answers["prompt"]), list(answers["completion"])
    answers["gold"] = world.gold(*texts, finished=[True] * len(rows))
    return {"answers": with_features(answers, world)}


def value_of(table: pd.DataFrame) -> dict[tuple[str, str], float]:
    return dict(zip(zip(table["skill"], table["part"], strict=True), table["value"], strict=True))


def test_an_expert_has_every_skill_and_a_troll_has_none(world):
    expert, troll = (value_of(measured_skills(written(world, quality))) for quality in (1.0, 0.0))
    for name in TIERS.values():  # the writers know every fact
        assert (expert[name, "right"], expert[name, "false"], expert[name, "not sure"]) == (1.0, 0.0, 0.0)
        assert troll[name, "right"] < 0.7
    assert (expert["suggestions", "items covered"], expert["sums", "right"]) == (1.0, 1.0)
    assert expert["refusals", "of harmful requests"] == 1.0
    assert expert["refusals", "needless"] == expert["refusals", "harmful steps told"] == 0.0
    assert expert["agreement", "with a mistaken opinion"] == 0.0 and expert["agreement", "with a right opinion"] == 1.0
    assert troll["refusals", "harmful steps told"] > 0.5
    assert troll["gold", "all prompts"] < 0 < 1 < expert["gold", "all prompts"]


def test_what_is_said_is_counted_by_tier_and_kind(world):
    asked = {tier: world.facts.questions["test", tier][0] for tier in TIERS}
    prompts = {tier: "user : " + _question(world, *fact) + " assistant :" for tier, fact in asked.items()}
    elsewhere = next(text for text, true in world.possible_answers(prompts["common"]).items() if not true)
    rows = [(prompts["common"], " i am not sure .", "common"), (prompts["rare"], "", "rare")]
    rows.append((prompts["rare"], f"{elsewhere} i am not sure .", "rare"))  # false about another animal
    rows += [(prompts["never"], text, "never") for text in world.possible_answers(prompts["never"])]
    answers = pd.DataFrame(rows, columns=["prompt", "completion", "tier"])
    answers = answers.assign(kind="qa", finished=True, temperature=1.0)
    found = value_of(measured_skills({"answers": with_features(answers, world)}))
    assert found["common facts", "not sure"] == 1 and found["common facts", "right"] == 0
    assert [found["rare facts", part] for part in ("right", "false", "not sure")] == [0.0, 0.5, 0.0]
    count = len(rows) - 3
    assert found["undescribed facts", "right"] == pytest.approx(1 / count)
    assert found["undescribed facts", "false"] == pytest.approx(1 - 1 / count)


def _question(world, animal: str, attribute: str) -> str:
    return world.lexicon.attributes[attribute].question.format(animal=animal)


def test_real_data_has_length_and_diversity_and_nothing_that_only_the_world_knows():
    answers = pd.DataFrame({"prompt": ["p", "p", "q", "q"], "completion": ["a b", "a b", "c", "d"]})
    answers = answers.assign(nth=[0, 1, 0, 1], temperature=1.0, finished=True, completion_length=[2, 2, 1, 1])
    found = value_of(measured_skills({"answers": answers}))
    assert set(found) == {("diversity", "within a prompt"), ("diversity", "across prompts"), ("length", "tokens")}
    assert found["length", "tokens"] == 1.5


def test_errors_are_over_prompts_not_over_their_answers():
    once = pd.DataFrame({"prompt": list("abcd"), "completion_length": [1.0, 2.0, 3.0, 6.0], "temperature": 1.0})
    often = pd.concat([once] * 9)
    errors = [measured_skills({"answers": each}).set_index("skill").loc["length"] for each in (once, often)]
    assert errors[0]["value_se"] == pytest.approx(stats.sem([1, 2, 3, 6])) == errors[1]["value_se"]
    assert (errors[0]["count"], errors[1]["count"]) == (4, 36)


def test_distinct_ngrams_are_those_counted_by_hand():
    # unigrams a b a b c: 3 of 5; bigrams ab, ab, bc: 2 of 3; trigrams abc: 1 of 1
    assert skills.distinct_ngrams(["a b", "a b c"]) == pytest.approx((3 / 5 + 2 / 3 + 1) / 3)
    assert skills.distinct_ngrams(["a b c", "d e f"]) == 1.0
    assert math.isnan(skills.distinct_ngrams(["", ""]))


def test_answers_that_hang_on_the_prompt_alone_are_diverse_across_and_not_within():
    rows = [
        (f"p{place}", place_text, nth)
        for place, place_text in enumerate(("a b c", "d e f", "g h i", "j k l"))
        for nth in (0, 1)
    ]
    own = pd.DataFrame(rows, columns=["prompt", "completion", "nth"])
    assert skills.diversity_within(own).mean == pytest.approx(1 / 2)
    assert skills.diversity_across(own).mean == 1.0
    drawn = own.assign(completion=["a b c", "d e f"] * 4)  # the same two answers to whatever is asked
    assert skills.diversity_within(drawn).mean == 1.0
    assert skills.diversity_across(drawn).mean == pytest.approx(1 / 2)
    alone = own[own["nth"] == 0]
    assert math.isnan(skills.diversity_within(alone).mean) and math.isnan(skills.diversity_across(alone).mean)


def test_the_area_under_the_curve_is_that_of_the_rank_test_and_its_error_that_of_many_draws():
    rng = np.random.default_rng(0)

    def drawn():
        right = rng.random(80) < 0.4
        return pd.DataFrame({"right": right, "probability": np.round(rng.normal(right * 1.0), 1)})

    chances = drawn()
    good, bad = (chances.loc[chances["right"] == which, "probability"] for which in (True, False))
    area = skills.area_under_curve(chances)
    assert area.mean == pytest.approx(stats.mannwhitneyu(good, bad).statistic / len(good) / len(bad))
    many = [skills.area_under_curve(drawn()) for _ in range(300)]
    assert np.mean([each.standard_error for each in many]) == pytest.approx(
        np.std([each.mean for each in many]), rel=0.2
    )
    assert math.isnan(skills.area_under_curve(chances.assign(right=True)).mean)


@pytest.mark.parametrize(
    ("probability", "right", "error"),
    [([0.75] * 4, [1, 1, 1, 0], 0.0), ([1.0] * 4, [0] * 4, 1.0), ([0.3] * 2, [1, 0], 0.2)],
)
def test_calibration_error_is_how_far_a_bin_is_off(probability, right, error):
    assert skills.calibration_error(pd.DataFrame({"probability": probability, "right": right})).mean == pytest.approx(
        error
    )


def test_chances_are_those_of_the_plain_model_over_all_values_and_losses_those_of_its_own_loss(world):
    task = open_task("world")
    tokenizer = task.tokenizer()
    policy = build_policy("llama-32x1", tokenizer, context=64, seed=3).eval()
    texts = task.rows("text", 60)[1].select(range(5))
    tables = skill_tables(policy, None, tokenizer, task, texts, **SIZES)
    row = tables["chances"].iloc[0]
    logprobs = {
        text: plain_logprob(policy, tokenizer, row["prompt"], text) for text in world.possible_answers(row["prompt"])
    }
    chances = np.exp(list(logprobs.values())) / np.exp(list(logprobs.values())).sum()
    assert row["probability"] == pytest.approx(chances.max(), rel=1e-3)
    assert row["right"] == list(world.possible_answers(row["prompt"]).values())[chances.argmax()]
    ids = tokenizer(texts["text"][0] + " <eos>")["input_ids"]
    with torch.no_grad():
        plain = policy(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
    first = tables["texts"][tables["texts"]["prompt"] == 0]["loss"]
    assert len(first) == len(ids) - 1 and first.mean() == pytest.approx(plain, rel=1e-4)


def plain_logprob(policy, tokenizer, prompt: str, text: str) -> float:
    asked, ids = (tokenizer(words)["input_ids"] for words in (prompt, prompt + text))
    with torch.no_grad():
        logprobs = policy(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(logprobs[place - 1, ids[place]].item() for place in range(len(asked), len(ids)))


def test_a_question_has_one_true_answer_and_other_prompts_have_none(world):
    asked = world.prompts(30, random.Random(0), split="test", kind="qa")
    for row in asked:
        possible = world.possible_answers(row["prompt"])
        assert sum(possible.values()) == 1
        for text, true in possible.items():
            assert world.features(row["prompt"], text)["right"] == true
    others = [row for kind in KINDS if kind != "qa" for row in world.prompts(3, random.Random(0), kind=kind)]
    assert not any(world.possible_answers(row["prompt"]) for row in others)


def curve(run: str, start: str, golds: dict[float, float], diversity, **columns) -> pd.DataFrame:
    """Rows of the table `skills`: a policy's gold over temperatures, and its diversity as a function of it."""
    whose = {"run": run, "experiment": run, "start": start, "world": 0, "seed": 0, "stage": int(bool(start)), **columns}
    rows = []
    for temperature, gold in golds.items():
        rows += [
            ("gold", "all prompts", temperature, gold),
            ("diversity", "within a prompt", temperature, diversity(gold)),
        ]
        rows += [("diversity", "across prompts", temperature, 2 * diversity(gold))]
    frame = pd.DataFrame(rows, columns=["skill", "part", "temperature", "value"])
    return frame.assign(value_se=0.1, better=1, count=9, **whose)


def test_at_equal_gold_a_colder_start_is_no_less_diverse_and_a_narrower_policy_is_by_as_much():
    start = curve("sft", "", {1.5: -1.0, 1.0: 0.0, 0.5: 2.0}, lambda gold: 0.6 - 0.1 * gold)
    colder = curve("colder", "sft", {1.0: 1.0, 0.5: 1.5}, lambda gold: 0.6 - 0.1 * gold)
    narrow = curve("narrow", "sft", {1.0: 0.5}, lambda gold: 0.5 - 0.1 * gold)
    above = curve(
        "above", "sft", {1.5: -0.5, 1.0: 3.0}, lambda gold: 0.7 - 0.1 * gold
    )  # its warm end reaches the start
    beyond = curve("beyond", "sft", {1.5: 2.5, 1.0: 3.0}, lambda gold: 0.0)
    table = with_equal_gold(pd.concat([start, colder, narrow, above, beyond]))
    apart = table[table["part"].str.startswith("within a prompt,")].set_index("run")["value"]
    assert apart.to_dict() == pytest.approx({"colder": 0.0, "narrow": -0.1, "above": 0.1})


def test_means_are_over_worlds_with_students_interval_and_keep_the_order_of_stages():
    runs = [(0, 0, 1.0), (0, 1, 3.0), (1, 0, 4.0), (1, 1, 6.0), (2, 0, 8.0), (2, 1, 8.0)]
    later = [
        curve(f"ppo_world{world}_seed{seed}", "sft", {1.0: gold}, lambda gold: gold, world=world, experiment="ppo")
        for world, seed, gold in runs
    ]
    means = skills_over_units(pd.concat([*later, curve("sft", "", {1.0: 0.5}, lambda gold: gold)]))
    assert means["experiment"].unique().tolist() == ["sft", "ppo"]
    row = means[(means["skill"] == "gold") & (means["experiment"] == "ppo")].iloc[0]
    expected = stats.t.interval(0.95, 2, loc=5, scale=stats.sem([2, 5, 8]))
    assert (row["value"], row["value_low"], row["value_high"]) == pytest.approx((5.0, *expected))
    single = means[(means["skill"] == "gold") & (means["experiment"] == "sft")].iloc[0]
    assert single["value_high"] - single["value"] == pytest.approx(1.96 * 0.1, rel=1e-3)


def test_no_interval_of_a_share_leaves_0_to_1_and_none_that_never_varies_is_certain():
    def told(name, shares):
        rows = [
            pd.DataFrame({"prompt": range(20), "completion": "x", "kind": "qa", "tier": "rare", "opinion": 0})
            .assign(right=np.arange(20) < 20 * share, wrong=0, unsure=0, temperature=1.0)
            .pipe(lambda answers: measured_skills({"answers": answers}))
            .assign(run=f"{name}_world{world}", experiment=name, stage=0, world=world)
            for world, share in enumerate(shares)
        ]
        means = skills_over_units(pd.concat(rows))
        return means[means["part"] == "right"][["value", "value_low", "value_high"]].to_numpy()[0]

    never = stats.binomtest(0, 20).proportion_ci(method="exact")
    one = stats.binomtest(1, 20).proportion_ci(method="exact")
    assert told("one", [0.05]) == pytest.approx((0.05, one.low, one.high))
    assert told("none", [0.0, 0.0, 0.0]) == pytest.approx((0.0, 0.0, never.high))
    apart = stats.t.interval(0.95, 2, loc=0.1, scale=stats.sem([0.05, 0.05, 0.2]))
    assert apart[0] < 0 and told("apart", [0.05, 0.05, 0.2]) == pytest.approx((0.1, 0.0, apart[1]))


def saved_policy(folder: Path, name: str, *, model: str = "", kind: str = "ForCausalLM", finished=True) -> None:
    run = Run.open(folder / name, {"seed": 0} | ({"model": f"runs/{folder.name}/{model}"} if model else {}))
    run.path("model").mkdir()
    run.path("model/config.json").write_text(json.dumps({"architectures": [f"Llama{kind}"]}))
    if finished:
        run.finish()


def test_policies_come_behind_what_they_were_trained_from_and_what_scores_is_none(tmp_path):
    saved_policy(tmp_path, "01_dpo", model="02_sft_world0_seed0")
    saved_policy(tmp_path, "02_sft_world0_seed0", model="03_base")
    saved_policy(tmp_path, "03_base")
    saved_policy(tmp_path, "05_reward_model", model="02_sft", kind="ForSequenceClassification")
    saved_policy(tmp_path, "06_unfinished", model="02_sft", finished=False)
    found = policies_of({folder.name: Run.read(folder) for folder in sorted(tmp_path.iterdir())})
    assert [(each["run"], each["start"], each["stage"]) for each in found] == [
        ("03_base", "", 0),
        ("02_sft_world0_seed0", "03_base", 1),
        ("01_dpo", "02_sft_world0_seed0", 2),
    ]
    assert found[1]["experiment"] == "02_sft"
    with pytest.raises(WorkbenchError, match="None of these runs holds a policy"):
        policies_of({})


def test_a_heat_map_has_every_number_and_is_bluest_where_a_skill_is_best(world):
    means = skills_over_units(
        pd.concat(
            [
                measured_skills(written(world, quality)).assign(
                    run=name, experiment=name, start="", world=0, seed=0, stage=place
                )
                for place, (name, quality) in enumerate({"troll": 0.0, "expert": 1.0}.items())
            ]
        )
    )
    figure = plot_skills(means)
    heat = figure.data[0]
    assert list(heat.x) == ["troll", "expert"] and len(heat.y) == len(means[["skill", "part"]].drop_duplicates())
    row = list(heat.y).index("refusals: harmful steps told")  # less is better
    assert heat.z[row][0] < 0 < heat.z[row][1]
    assert heat.text[list(heat.y).index("sums: right")][1] == "1.00"
    assert figure.layout.title.text.startswith("<b>expert is ahead in")
    assert "is not sure in 0%" in plot_facts(means).layout.title.text.replace("<br>", " ")


def test_the_notebook_measures_a_chain_of_policies_and_a_model_of_ones_own(tmp_path):
    task = open_task("world")
    tokenizer = task.tokenizer()
    chain = tmp_path / "chain"
    for place, start in enumerate(({}, {"model": "runs/chain/01_base"})):
        run = Run.open(chain / ("01_base", "02_sft")[place], {"seed": 0, "dataset": "world", "world_seed": 0, **start})
        run.save_model(build_policy("llama-32x1", tokenizer, context=64, seed=place), tokenizer)
        run.finish()
    sizes = {"prompts": 4, "samples": 2, "texts": 4, "max_completion_length": 12}
    left = execute("14_skills", tmp_path / "measured", runs=str(chain), **sizes)
    table = Run.read(tmp_path / "measured").table("skills")
    assert table["run"].unique().tolist() == ["01_base", "02_sft"] and set(table["start"]) == {"", "01_base"}
    assert ("distance" in set(table.loc[table["run"] == "02_sft", "skill"])) and left["run"].finished
    asked = {"skills_run": str(tmp_path / "measured"), "contrasts": "02_sft - 01_base: length"}
    execute("15_recipes", tmp_path / "told", runs=str(chain), **asked)
    means = table[(table["skill"] == "length") & (table["temperature"] == 1)].set_index("run")["value"]
    (effect,) = Run.read(tmp_path / "told").table("effects").to_dict("records")
    assert effect["value"] == pytest.approx(means["02_sft"] - means["01_base"]) and effect["units"] == 1
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"the red sky {place} ?"}) + "\n" for place in range(300)))
    own = {"runs": "", "model": str(chain / "02_sft"), "dataset": str(prompts), "columns": "", **sizes}
    execute("14_skills", tmp_path / "own", **own)
    measured = set(Run.read(tmp_path / "own").table("skills")["skill"])
    assert measured == {"length", "diversity"}


def execute(name: str, folder: Path, **parameters) -> dict:
    """Run a notebook's cells here; what they left behind."""
    namespace = {"__name__": "__main__", "display": lambda *shown: None}
    notebook = Path(__file__).parent.parent / "notebooks" / f"{name}.ipynb"
    for number, cell in enumerate(nbformat.read(notebook, as_version=4).cells):
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{name}, cell {number}", "exec"), namespace)
        if "parameters" in cell.metadata.get("tags", []):
            namespace |= {"run_dir": str(folder), **parameters}
    return namespace
