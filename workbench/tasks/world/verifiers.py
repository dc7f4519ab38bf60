"""What the world can check of an answer exactly: rewards of 1 and 0, each for prompts of one kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from workbench.tasks.world.lexicon import KINDS, WorldError

if TYPE_CHECKING:
    from workbench.tasks.world import World


@dataclass(frozen=True)
class OfKind:
    """A reward that is asked about prompts of one kind alone, such as a verifier."""

    name: str
    kind: str
    world: World
    reward: Callable[..., list[float]]

    def __call__(self, prompts, completions, **columns) -> list[float]:
        """WorldError names the first prompt of another kind."""
        for prompt, judged in zip(prompts, self.judges(prompts), strict=True):
            if not judged:
                raise WorldError(
                    f"The reward {self.name} judges prompts of the kind {self.kind!r}, not {prompt!r}, of the kind "
                    f'{self.world.kind(prompt)!r}: set kinds="{self.kind}", or name a reward for all others, too, as '
                    f'in "{self.name} else runs/mine/05_reward_model".'
                )
        return self.reward(prompts, completions, **columns)

    @property
    def log_odds(self) -> float:
        """That of the reward."""
        return getattr(self.reward, "log_odds", 1.0)

    def judges(self, prompts) -> list[bool]:
        """Whether each prompt is of its kind."""
        return [self.world.kind(prompt) == self.kind for prompt in prompts]

    def answer(self, prompt: str, completion: str) -> str:
        """What the completion settles on, for a vote; "" where it does not."""
        return self.world.settled(prompt, completion)


def _all_steps(world: World, prompt: str, completion: str, finished: bool) -> bool:
    """A sum that is worked, right in each of its steps and in the end."""
    said = world.features(prompt, completion, finished)
    return bool(said["worked"] and said["right"]) and all(right for _, right in world.steps(prompt, completion))


def _says(feature: str) -> Callable[..., bool]:
    return lambda world, *answer: world.features(*answer)[feature] > 0


VERIFIERS = {
    "task:sums": ("math", _says("right")),
    "task:steps": ("math", _all_steps),
    "task:format": ("math", lambda world, prompt, completion, finished: finished and world.ends_in_answer(completion)),
    "task:facts": ("qa", _says("right")),
    "task:false_facts": ("qa", _says("wrong")),  # at a weight below 0
    "task:unsure": ("qa", _says("unsure")),
    "task:refusals": ("harm", _says("harmless")),
}


def of_kinds(world: World) -> dict[str, Callable[..., OfKind]]:
    """For each kind of prompts what makes a named reward one of them alone."""
    return {kind: partial(OfKind, kind=kind, world=world) for kind in KINDS}


def verifiers(world: World) -> dict[str, OfKind]:
    """Those of a world, by their names: 1 where an answer passes, else 0."""

    def passed(passes: Callable[..., bool], prompts, completions, *, finished, **columns) -> list[float]:
        return [float(passes(world, *answer)) for answer in zip(prompts, completions, finished, strict=True)]

    return {name: OfKind(name, kind, world, partial(passed, passes)) for name, (kind, passes) in VERIFIERS.items()}
