"""`open_stage`: what a notebook's parameters mean, made when it is asked for."""

import json
import shutil
from dataclasses import dataclass, fields
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from workbench import WorkbenchError
from workbench.models import build_policy
from workbench.models.rewards import EnsembleReward
from workbench.tasks.stage import open_stage
from workbench.trainers.language_model import LanguageModelConfig
from workbench.trainers.policy_gradient_config import PolicyGradientConfig
from workbench.trainers.reward_model import RewardModelConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """A configuration with a field that the notebook has, one that it may leave open, and one that it lacks."""

    steps: int = 1
    kl_coef: float | None = None
    warmup_steps: int = 10


@pytest.fixture
def parameters(tmp_path, words) -> dict:
    build_policy("llama-32x1", words, context=32).save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "model")
    given = {"run_dir": str(tmp_path / "run"), "model": str(tmp_path / "model"), "dataset": "world", "seed": 3}
    return given | {"reward_model": "", "max_prompt_length": 8, "max_completion_length": 8, "steps": 4, "kl_coef": -1.0}


@pytest.fixture(scope="module")
def words(world):
    from workbench.tasks.world import build_tokenizer

    return build_tokenizer(world)


def stage_of(parameters: dict):
    return open_stage({**parameters, "__annotations__": dict.fromkeys(parameters), "helper": print})


def test_nothing_is_opened_before_it_is_asked_for(parameters, tmp_path):
    stage = stage_of(parameters)
    assert stage.task.reward is not None
    assert not (tmp_path / "run").exists()
    assert stage.run.dir == tmp_path / "run" and (tmp_path / "run" / "run.json").exists()


def test_a_count_below_one_is_refused_by_its_name_before_a_folder_is_made(parameters, tmp_path):
    for value in (0, -1):
        given = {**parameters, "steps": value, "__annotations__": dict.fromkeys(parameters)}
        with pytest.raises(WorkbenchError, match=f"^steps is {value}: give at least 1"):
            open_stage(given, counts="max_prompt_length steps").run  # noqa: B018
    assert not (tmp_path / "run").exists()


def test_the_run_records_the_parameters_and_depends_on_the_local_models_alone(parameters, tmp_path):
    stage_of(parameters).run  # noqa: B018
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["parameters"] == parameters
    assert set(record["inputs"]) == {"model"}  # the world is no folder, "" no reward model


def test_the_policy_learns_and_the_reference_does_not_though_both_are_the_model(parameters):
    stage = stage_of(parameters)
    assert all(weight.requires_grad for weight in stage.policy.parameters())
    assert not any(weight.requires_grad for weight in stage.reference.parameters())
    for ours, its in zip(stage.policy.parameters(), stage.reference.parameters(), strict=True):
        assert ours is not its and torch.equal(ours, its)
    assert stage.policy is stage.policy
    assert stage.limits(stage.policy) == {"max_prompt_length": 8, "context": 32}


def test_a_reference_and_a_rival_of_their_own_are_read_and_recorded(parameters, tmp_path):
    elsewhere = shutil.copytree(parameters["model"], tmp_path / "elsewhere")
    weights = load_file(elsewhere / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, elsewhere / "model.safetensors", {"format": "pt"})
    stage = stage_of(parameters | {"reference_model": str(elsewhere), "rival_model": parameters["model"]})
    parts = (stage.policy, stage.reference, stage.rival)
    for ours, its, theirs in zip(*(each.parameters() for each in parts), strict=True):
        assert torch.equal(ours + 1, its) and torch.equal(ours, theirs)
        assert ours.requires_grad and not its.requires_grad and not theirs.requires_grad
    inputs = json.loads((stage.run.dir / "run.json").read_text())["inputs"]
    assert set(inputs) == {"model", "reference", "rival"} and inputs["reference"] != inputs["model"]


def test_settings_are_the_fields_that_the_notebook_does_not_leave_open(parameters):
    assert stage_of(parameters).settings(Config) == {"steps": 4}
    assert stage_of(parameters | {"steps": -1, "kl_coef": 0.5}).settings(Config) == {"steps": -1, "kl_coef": 0.5}


OPEN_IN_06 = "num_generations rival_mixture learning_rate kl_coef num_ppo_epochs num_mini_batches cliprange"
OPEN = {PolicyGradientConfig: {*OPEN_IN_06.split(), "cliprange_high", "whiten_advantages"}}
OPEN[PolicyGradientConfig] |= {"penalty_target", "resampling_rounds", "kl_in", "kl_estimator"}


@pytest.mark.parametrize("config", [PolicyGradientConfig, LanguageModelConfig, RewardModelConfig])
def test_only_what_a_notebook_leaves_open_may_be_minus_one(config):
    accepted, needed = set(), {} if config is not LanguageModelConfig else {"steps": 3}
    plain = {field.name for field in fields(config) if isinstance(field.default, bool | str)}
    for name in {field.name for field in fields(config)} - plain - {"seed", "warmup_steps"}:
        try:
            config(**needed | stage_of({name: -1}).settings(config))
            accepted.add(name)
        except WorkbenchError as error:
            assert f"{name} is -1" in str(error)
    assert accepted == OPEN.get(config, set())


def test_a_policy_as_reward_model_is_refused_by_its_name(parameters):
    assert stage_of(parameters).rewards("reward_model") == {}
    with pytest.raises(WorkbenchError, match="is no reward model"):
        stage_of(parameters | {"reward_model": parameters["model"]}).rewards("reward_model")


OWN = """
import sys

def score(prompts, completions, *, finished, **columns):
    return [float(len(text)) for text in completions]

def fails(prompts, completions, *, finished, **columns):
    return columns["nowhere"]

def leaves(prompts, completions, *, finished, **columns):
    if "b" in prompts:
        raise SystemExit("no b")
    return [0.0 for _ in completions]

def yields(prompts, completions, *, finished, **columns):
    for prompt in prompts:
        yield 0.0 if prompt != "b" else sys.exit("no b")

def nothing(prompts, completions, *, finished, **columns):
    return None

def short(prompts, completions):
    return [0.0 for _ in completions]

def fussy(prompts, completions, *, finished, **columns):
    if "b" in prompts:
        raise ValueError("no b")
    return [0.0 for _ in completions]

def batch(prompts, completions, *, finished, **columns):
    if len(prompts) > 1:
        raise ValueError("too many")
    return [0.0]

NUMBER = 3
largest = max
"""


def test_a_function_of_a_file_is_a_reward_an_input_of_the_run_and_needs_no_critic_of_its_own(parameters, tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    stage = stage_of(parameters | {"reward_model": f"{tmp_path}/mine.py:score"})
    assert stage.rewards("reward_model")["score"](["a", "b"], ["cd", "efg"], finished=[True] * 2, tier=[1, 2]) == [2, 3]
    assert set(stage.run.record["inputs"]) == {"model", "reward_model"}
    assert stage.critic().num_parameters() > stage.policy.num_parameters()  # a head on the policy's own body


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("none.py:score", "none.py:score names a file that does not exist"),
        (
            "mine.py:scroe",
            "mine.py:scroe names no function of its file, which has score, fails, leaves, .*, batch: name",
        ),
        ("mine.py", "mine.py names no function of its file, which has score, .*: name one .* as in mine.py:score"),
        ("mine.py:NUMBER", "mine.py defines no function 'NUMBER'"),
        ("mine.py:short", "mine.py:short can not be called as a reward .*'finished'.*: take .prompts, completions"),
        ("mine.py:largest", "mine.py:largest can not be called as a reward .no signature found"),
        ("mine.py:", "mine.py names no function of its file"),
        ("mine.py::score", "mine.py::score' names no file and function: write my_file.py:score, or task:sums"),
        ("typo.py:score", "typo.py, the file of a reward, does not run .SyntaxError: "),
        ("broken.py:score", "broken.py, the file of a reward, does not run .NameError: name 'torhc'"),
    ],
    ids=["file", "function", "no-function", "number", "signature", "builtin", "name", "colons", "syntax", "code"],
)
def test_what_is_no_reward_is_refused_in_a_sentence_that_says_what_is(parameters, tmp_path, named, says):
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("torhc\ndef score(prompts, completions, **columns): ...")
    (tmp_path / "typo.py").write_text("def score(:")
    with pytest.raises(WorkbenchError, match=says):
        stage_of(parameters | {"reward_model": f"{tmp_path}/{named}"}).rewards("reward_model")


CHECKS = """
def score(prompts, completions, *, finished, solution, **columns):
    return [float(said.strip() == str(right)) for said, right in zip(completions, solution)]
"""


def test_a_function_checks_answers_of_a_file_by_its_own_column(parameters, tmp_path):
    (tmp_path / "mine.py").write_text(CHECKS)
    rows = [json.dumps({"prompt": f"{n} + 1 =", "solution": n + 1}) for n in range(30)]
    (tmp_path / "sums.jsonl").write_text("\n".join(rows))
    named = {"dataset": str(tmp_path / "sums.jsonl"), "reward_model": f"{tmp_path}/mine.py:score*2"}
    stage = stage_of(parameters | named)
    rows = stage.task.prompts(3, 0, split="train")
    right = [str(each) for each in rows["solution"]]
    columns = {"finished": [True] * 3, "solution": rows["solution"][:]}
    assert stage.reward("reward_model")(rows["prompt"][:], [right[0], "no", right[2]], **columns) == [2, 0, 2]
    assert stage.critic().num_parameters() > stage.policy.num_parameters()
    assert set(stage.run.record["inputs"]) == {"dataset", "model", "reward_model"}


def test_a_verifier_is_no_input_of_the_run_and_a_critic_starts_from_the_reward_model_beside_it(parameters, tmp_path):
    models = {"reward_model": f"task:sums*2 + {parameters['model']}*0.1", "judges": "task:facts"}
    stage = stage_of(parameters | models)
    assert set(stage.run.record["inputs"]) == {"model", "reward_model"}
    assert list(stage.rewards("judges")) == ["task:facts"]
    with pytest.raises(WorkbenchError, match="is no reward model"):
        stage.rewards("reward_model")


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (
            "fails",
            r"^The reward \S+mine.py:fails failed on row 0, the completion 'c' of the prompt 'a' .KeyError: 'nowhere'.",
        ),
        ("fails", "correct it; the columns that it is given are finished.$"),
        ("fussy", "mine.py:fussy failed on row 1, the completion 'd' of the prompt 'b' .ValueError: no b."),
        ("leaves", "mine.py:leaves failed on row 1, the completion 'd' of the prompt 'b' .SystemExit: no b."),
        ("yields", "mine.py:yields failed on row 1, the completion 'd' of the prompt 'b' .SystemExit: no b."),
        ("batch", "mine.py:batch failed on 2 completions, though on none by itself .ValueError: too many."),
        ("nothing", "mine.py:nothing gave NoneType"),
    ],
)
def test_a_reward_of_ones_own_that_fails_is_named_in_an_ensemble_too(parameters, tmp_path, function, says):
    (tmp_path / "mine.py").write_text(OWN)
    members = stage_of(parameters | {"reward_model": f"{tmp_path}/mine.py:{function}"}).rewards("reward_model")
    with pytest.raises(WorkbenchError, match=says):
        EnsembleReward([*members.values()], how="mean", coef=1.0)(["a", "b"], ["c", "d"], finished=[True, True])


def test_in_the_world_a_function_may_speak_for_one_kind_of_prompts_alone(parameters, tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    named = f"{tmp_path}/mine.py:score*10 for harm"
    stage = stage_of(parameters | {"reward_model": f"{named} else task:sums"})
    rows = stage.task.prompts(40, 0, split="train", kinds="harm, math")
    said = stage.reward("reward_model")(rows["prompt"][:], [" no"] * 40, finished=[True] * 40)
    assert said == [30.0 if kind == "harm" else 0.0 for kind in rows["kind"]]
    assert stage.task.kinds["harm"](name="rm for harm", reward=SimpleNamespace(log_odds=3.0)).log_odds == 3.0
    with pytest.raises(
        WorkbenchError, match=r"score for harm judges prompts of the kind 'harm', not .*'math'.*else runs"
    ):
        stage_of(parameters | {"reward_model": named}).reward("reward_model")(
            rows["prompt"][:], [" no"] * 40, finished=[True] * 40
        )


def test_where_a_reward_is_needed_none_is_refused(parameters):
    with pytest.raises(WorkbenchError, match="reward_model is '': name a reward, such as"):
        stage_of(parameters).rewards("reward_model", fewest=1)


def test_where_one_reward_is_meant_several_are_refused(parameters, tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    both = ",".join(f"{tmp_path}/mine.py:{name}" for name in ("score", "nothing"))
    with pytest.raises(WorkbenchError, match=r"reward_model is .*: give one reward here"):
        stage_of(parameters | {"reward_model": both}).reward("reward_model")
