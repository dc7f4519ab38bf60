"""The first cell of a notebook, from its parameters alone: run, task, tokenizer, policy, reference, rewards, limits."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cached_property
from math import inf
from typing import Any

from workbench import WorkbenchError
from workbench.runs import Run, names_in, parameters_of
from workbench.runs.reward_names import is_model, sources_of
from workbench.tasks import ORIGIN, open_task, task_inputs

# parameters that name rows, and what `run.json` calls them
DATASETS = {"dataset": "dataset", "feedback": "dataset", "comparisons": "comparisons", "mixed_with": "mixed_with"}
SOURCES = {"model": "model", "policy": "policy", "tokenizer": "tokenizer", "reward_model": "reward_model"}
SOURCES |= {"reference_model": "reference", "rival_model": "rival"}
SOURCES |= {"judges": "judge", "verifier": "verifier", "others": "other"}  # those that name models, several with commas
OPEN = ("", -1)  # what leaves a setting to the configuration, where that knows more than one value for it
Value = str | int | float | bool


def open_stage(namespace: Mapping, *, counts: str = "") -> "Stage":
    """The stage of a notebook, from its parameters: `namespace` is its `globals()`. Nothing is opened before its use.

    What the parameters do not name is not there: a stage without `model` has no policy. WorkbenchError where one of
    `counts`, names of parameters, is below 1: only what a configuration or the task checks itself is not among them.
    """
    parameters = parameters_of(namespace)
    for name in counts.split():
        if parameters[name] < 1:
            raise WorkbenchError(f"{name} is {parameters[name]}: give at least 1.")
    if "WORLD_SIZE" in os.environ:
        from workbench.models import ranks

        ranks.meet(parameters.get("device", "cpu"))
    return Stage(parameters)


class Stage:
    """What the parameters mean. Each part is made when it is first asked for; WorkbenchError where it cannot be."""

    def __init__(self, parameters: dict[str, Value]):
        self.parameters = parameters

    @cached_property
    def task(self):
        """Where prompts, rows and the gold reward come from: `dataset`, or `feedback`."""
        given = self.parameters
        origin = {name: given[name] for name in ORIGIN if name in given}
        return open_task(given.get("dataset", given.get("feedback", "world")), **origin)

    @cached_property
    def run(self) -> Run:
        """The run of `run_dir`, which depends on every local dataset and model that a parameter names."""
        given = self.parameters
        rows = {role: task_inputs(given[name]) for name, role in DATASETS.items() if given.get(name)}
        inputs = {role: place["dataset"] for role, place in rows.items() if place}
        if named := {role: given[name] for name, role in SOURCES.items() if given.get(name)}:
            inputs |= self._models.listed_folders(**named)
        first = os.environ.get("RANK", "0") == "0"  # of processes that share the work
        return Run.open(given["run_dir"], given, inputs=inputs, sinks=names_in(given.get("sinks", "")) if first else [])

    @cached_property
    def _models(self):
        from workbench import models  # brings torch, which a notebook that reads runs does without

        return models

    @cached_property
    def _read(self) -> tuple[Any, list[str]]:
        source = self.parameters.get("tokenizer") or self.parameters.get("model")
        return self._models.load_tokenizer(source) if source else (self.task.tokenizer(), [])

    @property
    def tokens(self):
        """The tokenizer: `tokenizer`, else the model's own, else the task's."""
        return self._read[0]

    @property
    def notes(self) -> list[str]:
        """What to know of tokenizer and data, in sentences."""
        return [*self._read[1], *self.task.notes]

    @cached_property
    def policy(self):
        """What is trained: `model`, with adapters where `lora_rank` asks for them."""
        rank, seed = self.parameters.get("lora_rank", 0), self.parameters["seed"]
        policy = self._load("model")
        return self._models.add_lora(policy, rank=rank, seed=seed) if rank else policy

    @cached_property
    def reference(self):
        """`reference_model`, or `model` once more, frozen."""
        return self._frozen("reference_model" if self.parameters.get("reference_model") else "model")

    @cached_property
    def rival(self):
        """Whose completions are compared with the policy's: `rival_model`, frozen."""
        return self._frozen("rival_model")

    def _frozen(self, parameter: str):
        return self._models.frozen(self._load(parameter), precision=self._precision)

    def _load(self, parameter: str):
        return self._models.load_policy(self.parameters[parameter], self.tokens, device=self._device)

    @property
    def _device(self) -> str:
        return self.parameters.get("device", "cpu")

    @property
    def _precision(self) -> str:
        return self.parameters.get("precision", "fp32")

    def rewards(self, name: str, *, fewest: int = 0) -> dict[str, Callable[..., list[float]]]:
        """The rewards that the parameter `name` lists, by their names; WorkbenchError where they are under `fewest`."""
        from workbench.models.rewards import rewards_named

        longest = self.parameters["max_prompt_length"] + self.parameters["max_completion_length"]
        text = self.parameters[name]
        its = {"of_task": self.task.rewards, "kinds": self.task.kinds, "precision": self._precision}
        rewards = rewards_named(text, self.tokens, max_length=longest, device=self._device, **its)
        if len(rewards) < fewest:
            raise WorkbenchError(f"{name} is {text!r}: name a reward, such as a run of 05_reward_model or task:sums.")
        return rewards

    def reward(self, name: str) -> Callable[..., list[float]]:
        """The one reward that the parameter `name` names; WorkbenchError where it lists several."""
        rewards = [*self.rewards(name).values()]
        if len(rewards) != 1:
            raise WorkbenchError(f"{name} is {self.parameters[name]!r}: give one reward here.")
        return rewards[0]

    def critic(self):
        """A critic that starts from the first reward model of `reward_model`, or from `model` where there is none."""
        learned = [source for source in sources_of(self.parameters["reward_model"]) if is_model(source)]
        return self._models.load_critic([*learned, self.parameters["model"]][0], self.tokens, device=self._device)

    def limits(self, model) -> dict[str, int]:
        """How many tokens of a prompt `model` is given, and how many it can read in all."""
        return {"max_prompt_length": self.parameters["max_prompt_length"], "context": self._models.model_context(model)}

    def settings(self, config: type) -> dict[str, Value]:
        """Those parameters that are fields of a configuration, but for "" and -1 where a field may be left open."""
        own = {field.name: OPEN if field.default is None else () for field in fields(config)}
        return {name: value for name, value in self.parameters.items() if name in own and value not in own[name]}


def numbers_in(name: str, text: str, *, most: float = inf) -> list[float]:
    """The numbers from 0 to `most` between commas of the parameter `name`; WorkbenchError names what is none."""
    for piece in map(str.strip, text.split(",")):
        if not re.fullmatch(r"\d*\.?\d+", piece) or float(piece) > most:
            range_of = "numbers from 0" if most == inf else f"numbers from 0 to {most:g}"
            raise WorkbenchError(f"{name} holds {piece!r}: write {range_of} with commas, such as 0,0.5,1.")
    return [float(piece) for piece in text.split(",")]
