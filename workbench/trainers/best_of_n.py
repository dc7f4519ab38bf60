"""Best-of-n: one pool of N scored completions per prompt, from which every n <= N is read. Nakano et al. 2021."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from workbench import WorkbenchError
from workbench.models import ranks
from workbench.models.load import without_dropout
from workbench.models.sampling import reward_arguments, sample
from workbench.records import PromptExample, known_mean
from workbench.trainers.descent import Stateful
from workbench.trainers.settings import require_positive


@dataclass(frozen=True, kw_only=True)
class BestOfNConfig:
    """How large the pool is."""

    num_generations: int = 256  # N, completions per prompt
    prompts_per_step: int = 4  # prompts sampled for in one step
    temperature: float = 1.0  # of sampling
    max_completion_length: int = 40  # tokens
    seed: int = 0  # samples

    def __post_init__(self):
        require_positive(self, "num_generations", "prompts_per_step", "temperature", "max_completion_length")


class BestOfNTrainer(Stateful):
    """Fills the pool, a few prompts per step; it has no gradient, but steps and resumes as every trainer does.

    All `rewards` are evaluated on every completion; the one named "proxy", where there is one, selects the best.
    """

    parts = ("generator", "pool")
    progress_keys = ("proxy", "best_proxy", "best_gold")

    def __init__(
        self,
        policy,
        rewards: dict[str, Callable[..., list[float]]],
        prompts: list[PromptExample],
        tokenizer,
        config: BestOfNConfig,
    ):
        if not prompts:
            raise WorkbenchError("There are no prompts to sample for: check the dataset.")
        self.policy, self.rewards, self.prompts, self.tokenizer = without_dropout(policy), rewards, prompts, tokenizer
        self.config = config
        self.generator = torch.Generator().manual_seed(config.seed)
        self.pool: list[dict[str, Any]] = []  # one row per completion
        self.total_steps = -(-len(prompts) // config.prompts_per_step)

    def step(self) -> dict[str, float]:
        """N completions for the next prompts; means of each reward over all of them, and over each prompt's best."""
        first = self.step_number * self.config.prompts_per_step
        self.step_number += 1
        prompts = self.prompts[first : first + self.config.prompts_per_step]
        new, scores = self._complete([prompt for prompt in prompts for _ in range(self.config.num_generations)], first)
        self.pool += new
        row = {"step": self.step_number, "prompts": first + len(prompts)}
        row |= {name: known_mean(sampled[name] for sampled in new) for name in scores}
        if "proxy" in self.rewards:
            size = self.config.num_generations
            groups = [new[i : i + size] for i in range(0, len(new), size)]
            best = [max(group, key=lambda sampled: sampled["proxy"]) for group in groups]
            row |= {f"best_{name}": known_mean(winner[name] for winner in best) for name in scores}
        return row

    def samples(self) -> list[dict[str, Any]]:
        """The last prompts' completions."""
        return self.pool[-self.config.num_generations :]

    def scores(self, name: str) -> list[list[float]]:
        """One reward of the whole pool, (prompts, N)."""
        size = self.config.num_generations
        return [[row[name] for row in self.pool[i : i + size]] for i in range(0, len(self.pool), size)]

    def _complete(self, examples: list[PromptExample], first: int) -> tuple[list[dict[str, Any]], list[str]]:
        """Rows of the pool, and which of their columns are scores."""
        sampled = sample(
            self.policy,
            [example.prompt_ids for example in examples],
            max_completion_length=self.config.max_completion_length,
            temperature=self.config.temperature,
            generator=self.generator,
        )
        arguments, columns = reward_arguments(self.tokenizer, examples, sampled)
        scored = ranks.shared_scores(self.rewards, arguments, columns)
        rows = [
            {"prompt_index": first}  # comes first, and is ours whatever the data calls so
            | example.row
            | {
                "prompt_index": first + index // self.config.num_generations,
                "completion": arguments[1][index],
                "finished": columns["finished"][index],
                "logprob": sampled.logprobs[index].sum().item(),
                **{name: scored[name][index] for name in scored},
            }
            for index, example in enumerate(examples)
        ]
        return rows, list(scored)
