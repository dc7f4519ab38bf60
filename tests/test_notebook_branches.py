"""What the tour leaves out of the notebooks, at smoke size: other kinds of feedback, objectives, algorithms, losses.

Cells run here one after the other instead of in a kernel of their own, whose start would take most of the time.
"""

import functools
import json
import math
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from workbench import WorkbenchError, models
from workbench.feedback.store import Store
from workbench.feedback.widget import annotate
from workbench.tasks.world import World

FOLDER = Path(__file__).parent.parent / "notebooks"
SMOKE = yaml.safe_load((FOLDER / "presets.yaml").read_text())["smoke"]
for name in ("01_pretrain", "02_sft", "06_policy_gradient", "08_direct_alignment"):
    SMOKE[name]["evaluation_prompts"] = 8  # the tour measures on more
SMOKE["06_policy_gradient"]["steps"] = 2


def execute(name: str, folder: Path, **parameters) -> Path:
    """Run all cells of a notebook with these parameters; the folder with what it leaves."""
    parameters = {"run_dir": str(folder), **SMOKE.get(name, {}), **parameters}
    namespace = {"__name__": "__main__", "display": lambda *shown: None}
    for number, cell in enumerate(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells):
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{name}, cell {number}", "exec"), namespace)
        if "parameters" in cell.metadata.get("tags", []):
            assert parameters.keys() <= namespace.keys(), f"{name} has no such parameter"
            namespace |= parameters
    return folder


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def metrics_of(folder: Path) -> pd.DataFrame:
    return pd.read_json(folder / "metrics.jsonl", lines=True)


@pytest.fixture(scope="module", autouse=True)
def one_world():
    """Notebooks share the world that each would read anew in a kernel of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(World, "load", staticmethod(functools.cache(World.load)))
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Pretraining, SFT, every kind of feedback and a reward model, as inputs of the other notebooks."""
    folder = tmp_path_factory.mktemp("branches")
    base = execute("01_pretrain", folder / "base")
    sft = execute("02_sft", folder / "sft", model=str(base))
    kinds = "pairs,margins,rankings,ratings,steps"
    feedback = execute("03_preferences", folder / "feedback", model=str(sft), kinds=kinds)
    execute("05_reward_model", folder / "reward", model=str(sft), dataset=str(feedback), policy=str(sft))
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "bradley_terry_margin", "center_rewards_coefficient": 0.01, "lm_coef": 0.1},
        {"objective": "plackett_luce", "pessimism": 1.0},
        {"objective": "rating", "start": "scratch", "preset": "llama-32x1"},
        {"objective": "process"},
    ],
    ids=lambda settings: settings["objective"],
)
def test_a_reward_model_learns_from_every_kind_of_feedback(settings, runs, tmp_path):
    inputs = {"model": str(runs / "sft"), "dataset": str(runs / "feedback"), "policy": str(runs / "sft")}
    summary = summary_of(execute("05_reward_model", tmp_path / "run", **inputs, **settings))
    assert summary["reward_std"] > 0 and 0 < summary["accuracy vs gold"] < 1
    assert summary["parameters"] < summary["policy_parameters"] or "preset" not in settings


@pytest.mark.parametrize(
    "settings",
    [
        {"algorithm": "a2c", "whiten_rewards": True, "kl_target": 2.0},
        {"algorithm": "dapo", "num_generations": 4, "soft_punish_cache": 8},
        {"algorithm": "nlpo", "entropy_coef": 0.01, "ptx_coef": 1.0},
        {"algorithm": "rloo", "num_generations": 2, "kl_estimator": "exact", "kl_in": "loss"},
        {"algorithm": "nash_md", "rival_mixture": 0.0},
    ],
    ids=lambda settings: settings["algorithm"],
)
def test_a_policy_gradient_runs_from_the_notebook(settings, runs, tmp_path):
    inputs = {"model": str(runs / "sft"), "reward_model": str(runs / "reward")}
    folder = execute("06_policy_gradient", tmp_path / "run", **inputs, **settings)
    assert summary_of(folder)["algorithm"] == settings["algorithm"]
    rows = metrics_of(folder)
    assert rows[["kl", "reward", "policy_loss"]].map(math.isfinite).all(axis=None)
    assert ("won" in rows) == ("rival_mixture" in settings)
    assert ("ptx_loss" in rows) == ("ptx_coef" in settings) and ("value_loss" in rows) == (
        settings["algorithm"] in ("a2c", "nlpo")
    )


def test_a_verifier_and_a_reward_model_reward_a_mix_of_prompts_and_each_is_logged(runs, tmp_path):
    (tmp_path / "liked").symlink_to(runs / "reward")
    inputs = {"model": str(runs / "sft"), "reward_model": f"task:sums*2 else {tmp_path}/liked*0.5", "algorithm": "ppo"}
    folder = execute("06_policy_gradient", tmp_path / "run", **inputs, kinds="math, suggest")
    measured = pd.read_json(folder / "tables" / "measured.jsonl", lines=True)
    sums, others = (measured[measured["kind"] == kind] for kind in ("math", "suggest"))
    assert len(sums) and len(others) and set(measured["kind"]) == {"math", "suggest"}
    assert (sums["proxy"] == 2 * sums["task:sums"]).all() and sums["liked"].isna().all()
    assert (
        others["proxy"].to_numpy() == pytest.approx(0.5 * others["liked"].to_numpy())
        and others["task:sums"].isna().all()
    )
    assert {"task:sums", "liked", "value_loss"} <= set(metrics_of(folder))
    assert set(json.loads((folder / "run.json").read_text())["inputs"]) == {"model", "reward_model"}


@pytest.mark.parametrize(
    "settings",
    [{"loss": "kto"}, {"loss": "rrhf"}, {"loss": "ilql"}, {"loss": "simpo", "gamma": 0.5, "ties": True}],
    ids=lambda settings: settings["loss"],
)
def test_a_direct_loss_runs_from_the_notebook_on_the_feedback_it_needs(settings, runs, tmp_path):
    inputs = {"model": str(runs / "sft"), "dataset": str(runs / "feedback"), "reward_model": str(runs / "reward")}
    folder = execute("08_direct_alignment", tmp_path / "run", **inputs, **settings)
    assert summary_of(folder)["loss"] == settings["loss"]
    assert metrics_of(folder)["loss"].map(math.isfinite).all()


def log_ratio(first: Path, second: Path, prompt: str, completion: str) -> float:
    """How much likelier one model finds a completion than another, in nats."""
    sums = []
    for folder in (first, second):
        model, tokens = load_once(folder)
        ids, start = tokens(prompt + completion)["input_ids"], len(tokens(prompt)["input_ids"])
        logprobs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        sums.append(sum(logprobs[at - 1, ids[at]].item() for at in range(start, len(ids))))
    return sums[0] - sums[1]


@functools.cache
def load_once(folder: Path):
    tokens, _ = models.load_tokenizer(str(folder))
    return models.load_policy(str(folder), tokens).eval(), tokens


def test_pairs_of_policy_and_rival_say_who_wrote_which_and_xpo_learns_from_them_held_to_the_rival(runs, tmp_path):
    models = {"model": str(runs / "sft"), "rival_model": str(runs / "base")}
    pairs = execute("03_preferences", tmp_path / "pairs", **models)
    rows = pd.read_json(pairs / "tables" / "preferences.jsonl", lines=True)
    sure = []  # by how much each model likes what it is said to have written better than the other model does
    for row in rows.to_dict("records"):
        texts = {"rival": row[row["rival"]], "policy": row[{"chosen": "rejected", "rejected": "chosen"}[row["rival"]]]}
        ratios = {writer: log_ratio(runs / "base", runs / "sft", row["prompt"], text) for writer, text in texts.items()}
        sure.append(ratios["rival"] - ratios["policy"])
    assert len(sure) > 40 and sum(sure) / len(sure) > 1
    held = {"reference_model": str(runs / "base"), "loss": "xpo", "dataset": str(pairs)}
    folder = execute("08_direct_alignment", tmp_path / "run", model=str(runs / "sft"), **held)
    measured = pd.read_json(folder / "tables" / "measured.jsonl", lines=True)
    started = measured[(measured["step"] == 0) & (measured["draw"] != "evaluation")]
    assert summary_of(folder)["loss"] == "xpo" and started["kl"].mean() > 0.1  # from base, where sft begins


def test_a_merge_of_a_model_into_its_start_is_measured_on_the_way_and_kept(runs, tmp_path):
    folder = execute("18_merging", tmp_path / "run", model=str(runs / "base"), others=str(runs / "sft"), share=1.0)
    measured = pd.read_json(folder / "tables" / "measured.jsonl", lines=True)
    path = measured[measured["draw"] == "path"].groupby("step")["kl"].mean()
    assert [*path.index] == [0, 50, 100] and 0 == path[0] < path[50] < path[100]
    kept, merged = (load_file(place / "model" / "model.safetensors") for place in (folder, runs / "sft"))
    assert all(torch.allclose(kept[name], merged[name], atol=1e-6) for name in merged)


def test_what_a_verifier_passed_is_learned_from_beside_other_demonstrations(runs, tmp_path):
    """Rejection sampling: right answers to training prompts, mixed three to one, into the model from before."""
    passes = "[float('a' in completion.split()) for completion in completions]"
    (tmp_path / "own.py").write_text(f"def score(prompts, completions, *, finished, **columns):\n    return {passes}\n")
    right = {"reward_model": f"{tmp_path}/own.py:score*2", "split": "train", "evaluation_prompts": 60}
    pool = execute("07_best_of_n", tmp_path / "pool", model=str(runs / "sft"), **right)
    drawn = pd.read_json(pool / "tables" / "pool.jsonl", lines=True)
    chosen = pd.read_json(pool / "tables" / "demonstrations.jsonl", lines=True)
    passed = drawn[drawn["proxy"] == 2]
    assert len(chosen) == passed["prompt_index"].nunique() > 10
    assert set(chosen["completion"]) <= set(passed["completion"])
    mixed = {"dataset": str(pool), "mixed_with": "world", "mixed_share": 0.25, "model": str(runs / "base")}
    folder = execute("02_sft", tmp_path / "mixed", **mixed)
    inputs = json.loads((folder / "run.json").read_text())["inputs"]
    assert inputs["dataset"]["path"].endswith("pool/tables") and metrics_of(folder)["loss"].map(math.isfinite).all()
    record = json.loads((pool / "run.json").read_text())
    (pool / "run.json").write_text(json.dumps(record | {"parameters": record["parameters"] | {"split": "test"}}))
    with pytest.raises(WorkbenchError, match="answered held-out prompts, on which everything is measured"):
        execute("02_sft", tmp_path / "leaky", **mixed)
    (pool / "run.json").write_text(json.dumps(record))
    (pool / "tables" / "demonstrations.jsonl").write_text("")  # as where nothing passed
    with pytest.raises(WorkbenchError, match="pool kept no answer: take a policy"):
        execute("02_sft", tmp_path / "none", **mixed)


@pytest.mark.parametrize("fine_tune", ["raft", "quark"])
def test_best_of_n_goes_on_to_fine_tuning(fine_tune, runs, tmp_path):
    sizes = {"steps": 2, "prompts_per_step": 4, "training_prompts": 16, "measured_prompts": 8, "batch_size": 8}
    inputs = {"model": str(runs / "sft"), "reward_model": str(runs / "reward")}
    folder = execute("07_best_of_n", tmp_path / "run", **inputs, fine_tune=fine_tune, **sizes)
    assert (folder / "model" / "model.safetensors").exists()


SHORT = """
def short(prompts, completions, *, finished, **columns):
    return [float(len(completion.split()) < 5) for completion in completions]
"""


def test_where_answers_are_checked_choices_are_compared_and_rest_em_learns_what_passed(runs, tmp_path):
    (tmp_path / "mine.py").write_text(SHORT)
    sizes = {"steps": 2, "prompts_per_step": 8, "training_prompts": 16, "measured_prompts": 8, "batch_size": 8}
    rewards = {"reward_model": f"{tmp_path}/mine.py:short, {runs}/reward, task:sums", "kinds": "math"}
    inputs = {"model": str(runs / "sft"), "fine_tune": "rest_em"}
    folder = execute("07_best_of_n", tmp_path / "run", **inputs, **rewards, **sizes)
    chosen = pd.read_json(folder / "tables" / "choices.jsonl", lines=True)
    names = ["oracle (pass@n)", "majority vote", "best by reward", "best by task:sums", "one at random"]
    assert list(dict.fromkeys(chosen["choice"])) == names and set(chosen["n"]) == {1, 2, 4, 8}
    assert pd.read_json(folder / "metrics-imitation.jsonl", lines=True)["kept_reward"].eq(1).all()


def test_verifiable_rewards_are_told_of_policies_that_it_trains_and_of_those_that_06_trained(runs, tmp_path):
    (tmp_path / "mine.py").write_text(SHORT)  # something that an untrained policy passes now and then
    rewards = {"reward_model": f"{tmp_path}/mine.py:short", "judges": "task:sums"}
    inputs = {"model": str(runs / "sft"), "policy": str(runs / "base")} | rewards
    first = execute("16_verifiable_rewards", tmp_path / "first", **inputs)
    passes = pd.read_json(first / "tables" / "passes.jsonl", lines=True)
    assert set(passes["policy"]) == {"sft", "sft + RLVR", "base", "base + RLVR"}
    assert set(passes["verifier"]) == {"right", "task:sums"} and passes["accuracy"].between(0, 1).all()
    again = {**inputs, "policy": "", "trained": str(first / "model-sft")}
    second = execute("16_verifiable_rewards", tmp_path / "second", **again)
    told = pd.read_json(second / "tables" / "passes.jsonl", lines=True)
    same = [table[table["policy"] == "sft + RLVR"]["accuracy"].tolist() for table in (passes, told)]
    assert same[0] == same[1] and not (second / "model-sft").exists()


def test_hallucination_is_measured_on_animals_that_no_demonstration_and_no_reward_tells_of(runs, tmp_path):
    folder = execute("17_hallucination", tmp_path / "run", runs=str(runs), model=str(runs / "base"))
    tables = {path.stem: pd.read_json(path, lines=True) for path in (folder / "tables").glob("*.jsonl")}
    assert set(tables["stages"]["part"]) == {"right", "false", "not sure"}
    assert tables["prices"]["price"].tolist() == ["0.0", "1.0", "before"]
    assert tables["cloning"]["share"].unique().tolist() == [0, 1]
    asked = tables["asked"]
    assert asked["experiment"].iloc[-1] == "taught the words" and set(asked["part"]) == {"not sure", "false"}
    known = asked.dropna(subset="value_low")  # what is the same for every prompt has no width
    assert asked["value"].between(-1, 1).all() and known["value_low"].le(known["value"]).all()
    assert tables["brevity"]["experiment"].unique().tolist() == ["0 a word", "0.1 a word"]
    assert len(tables["self_delusion"]) == 16


def test_fresh_labels_and_a_verifier_reward_together(runs, tmp_path):
    settings = {"model": str(runs / "sft"), "verifier": "task:sums*2", "kinds": "math, qa"}
    path = pd.read_json(execute("13_iterated_labels", tmp_path / "run", **settings) / "metrics.jsonl", lines=True)
    assert {"reward", "fitted", "task:sums*2"} <= set(path)


def test_the_exact_world_puts_no_method_above_the_frontier(tmp_path):
    table = pd.read_json(execute("11_exact_optimum", tmp_path / "run") / "tables" / "ends.jsonl", lines=True)
    assert {"PPO", "RLOO", "DPO"} <= set(table["method"])
    assert table["wasted_kl"].min() > -1e-5


def judge_in_the_widget(folder: Path, *, verdicts: list) -> None:
    """What the front end sends: a verdict for each item that is shown, where "longer" goes by what is shown."""
    store = Store(folder / "judgements.db")
    widget = annotate(store.items(), "ada", store)
    for number, verdict in enumerate(verdicts, 1):
        texts = [completion[0]["content"] for completion in widget.showing["completions"]]
        choice = int(len(texts[1]) > len(texts[0])) if verdict == "longer" else verdict
        said = {"action": "skip"} if verdict == "skip" else {"action": "label", "answer": {"choice": choice}}
        message = {"type": "judge", "turn": number, "item_id": widget.showing["item_id"], "event_id": f"e{number}"}
        widget._handle_custom_msg({**message, **said, "elapsed_ms": 1500}, [])
        assert widget.reply["status"] == "saved", widget.reply
    store.close()


def test_twenty_pairs_judged_in_the_widget_train_a_reward_model(runs, tmp_path, capsys):
    sizes = {"training_prompts": 60, "held_out_prompts": 30}
    asked = {"model": str(runs / "sft"), "labelers": "human", "labeler": "ada", **sizes}
    with pytest.raises(WorkbenchError, match="Nobody has judged any of"):
        execute("03_preferences", tmp_path / "feedback", **asked)
    judge_in_the_widget(tmp_path / "feedback", verdicts=["longer"] * 18 + ["tie", "skip"])
    capsys.readouterr()
    feedback = execute("03_preferences", tmp_path / "feedback", **asked)
    said = capsys.readouterr().out
    assert "1 tie" in said and "1 skip" in said and "One labeler agrees with nobody" in said
    rows = [pd.read_json(feedback / "tables" / f"{part}preferences.jsonl", lines=True) for part in ("", "held_out_")]
    assert sum(map(len, rows)) == 18 and {*rows[0]["labeler"], *rows[1]["labeler"]} == {"ada"}
    assert all((row["chosen"].str.len() >= row["rejected"].str.len()).all() for row in rows)
    model = str(runs / "sft")
    reward = execute("05_reward_model", tmp_path / "reward", model=model, dataset=str(feedback), policy=model)
    assert (reward / "model" / "model.safetensors").exists()
    doubted = {"ask_first": f"{runs / 'reward'}, {reward}"}  # two reward models, where they disagree
    with pytest.raises(WorkbenchError, match="Nobody has judged any of"):
        execute("03_preferences", tmp_path / "more", **asked, **doubted)


def test_agreement_is_measured_of_what_was_collected(runs, tmp_path):
    folder = execute("04_labeler_agreement", tmp_path / "agreement", feedback=str(runs / "feedback"))
    assert 0.4 < summary_of(folder)["labeler agreement"] < 1
    with pytest.raises(WorkbenchError, match=r"No item of kind 'ranking' in .* was judged by two labelers"):
        execute("04_labeler_agreement", tmp_path / "ranking", feedback=str(runs / "feedback"), kind="ranking")


def argilla(number: int, said: dict) -> list[dict]:
    answers = [{"value": value, "user_id": user} for user, value in said.items()]
    fields = {"prompt": f"p{number}", "response1": "a short one", "response2": "another , longer one"}
    return [{"id": f"r{number}", "fields": fields, "responses": {"better": answers}}]


def label_studio(number: int, said: dict) -> list[dict]:
    made = [
        {"completed_by": user, "result": [{"type": "pairwise", "from_name": "better", "value": {"selected": value}}]}
        for user, value in said.items()
    ]
    data = {"prompt": f"p{number}", "answer1": "a short one", "answer2": "another , longer one"}
    return [{"id": number, "data": data, "annotations": made}]


def standard(number: int, said: dict) -> list[dict]:
    texts = ["a short one", "another , longer one"]
    sides = {user: texts if value == "left" else texts[::-1] for user, value in said.items()}
    about = {"prompt": f"p{number}", "item_id": str(number)}
    return [about | {"chosen": one, "rejected": other, "labeler": user} for user, (one, other) in sides.items()]


@pytest.mark.parametrize(
    ("record", "settings"),
    [
        (argilla, {"question": "better", "labels": "left=0, right=1"}),
        (label_studio, {"question": "better", "completions": "answer1,answer2"}),
        (standard, {}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_agreement_is_measured_of_a_file_that_people_judged_elsewhere(record, settings, tmp_path):
    """Three of four items are judged alike: 75%."""
    said = [("left", "left"), ("right", "right"), ("right", "right"), ("left", "right")]
    rows = [row for number, (ada, bob) in enumerate(said) for row in record(number, {"ada": ada, "bob": bob})]
    (tmp_path / "judged.json").write_text(json.dumps(rows))
    folder = execute("04_labeler_agreement", tmp_path / "run", feedback=str(tmp_path / "judged.json"), **settings)
    assert summary_of(folder)["labeler agreement"] == 0.75
    exported = pd.read_json(folder / "export" / "preferences.jsonl", lines=True)
    assert exported["labeler"].value_counts().to_dict() == {"ada": 4, "bob": 4}


@pytest.mark.parametrize(
    ("texts", "preference", "choices"),
    [(["a", "b b"], 0.5, 0), (["天气很好", "我不知道"], 1.0, 8)],
    ids=["ties", "no blanks"],
)
def test_agreement_goes_on_where_no_choice_shows_a_habit(texts, preference, choices, tmp_path, capsys):
    about = {"chosen": texts[0], "rejected": texts[1], "preference": preference}
    rows = [about | {"prompt": f"p{n}", "item_id": str(n), "labeler": who} for n in range(4) for who in ("ada", "bob")]
    (tmp_path / "judged.json").write_text(json.dumps(rows), encoding="utf-8")
    folder = execute("04_labeler_agreement", tmp_path / "run", feedback=str(tmp_path / "judged.json"))
    said = capsys.readouterr().out
    assert f"Of {choices} choices none is between texts that differ in words: habits are left out." in said
    assert "No two labelers to compare in a habit." in said and summary_of(folder)["labeler agreement"] == 1
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


DEMONSTRATIONS = [{"prompt": f"user : is {number} red ? assistant :", "completion": " yes ."} for number in range(20)]
PAIRS = [{"prompt": row["prompt"], "chosen": " yes .", "rejected": " no ."} for row in DEMONSTRATIONS]
REFUSED = [
    ("03_preferences", {"kinds": "pairs,rankngs"}, ("'rankngs'", "use pairs, margins, rankings, ratings, steps")),
    ("05_reward_model", {"objective": "bradly_terry"}, ("'bradly_terry'", "choose one of", "plackett_luce", "process")),
    ("05_reward_model", {"objective": "plackett_luce"}, ("'plackett_luce'", "'ranking'", "found: prompt, chosen")),
    ("05_reward_model", {"objective": "bradley_terry_margin"}, ("'bradley_terry_margin'", "'margin'", "found: prompt")),
    ("06_policy_gradient", {"algorithm": "pppo"}, ("'pppo'", "choose one of", "rloo", "dr_grpo", "nlpo")),
    ("06_policy_gradient", {"algorithm": "grpo", "num_generations": 1}, ("num_generations is 1", "grpo", "at least 2")),
    ("08_direct_alignment", {"loss": "dppo"}, ("'dppo'", "choose one of", "conservative_dpo", "kto", "f_dpo_js")),
    ("08_direct_alignment", {"loss": "kto", "rows": DEMONSTRATIONS}, ("'kto'", "'label'", "found: prompt, completion")),
    ("08_direct_alignment", {"beta": -0.1}, ("beta is -0.1", "above 0")),
]


@pytest.mark.parametrize(("name", "settings", "says"), REFUSED)
def test_what_an_objective_can_not_use_is_refused_in_one_sentence(name, settings, says, runs, tmp_path):
    given = {"model": str(runs / "sft")} | {key: value for key, value in settings.items() if key != "rows"}
    if name == "05_reward_model":
        given["policy"] = str(runs / "sft")
    if name == "06_policy_gradient":
        given["reward_model"] = str(runs / "reward")
    elif name != "03_preferences":
        given["dataset"] = str(tmp_path / "rows.jsonl")
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in settings.get("rows", PAIRS)))
    with pytest.raises(WorkbenchError) as caught:
        execute(name, tmp_path / "run", **given)
    sentence = str(caught.value)
    assert [part for part in says if part not in sentence] == [] and "\n" not in sentence
    assert not (tmp_path / "run" / "model").exists() and not (tmp_path / "run" / "summary.json").exists()
