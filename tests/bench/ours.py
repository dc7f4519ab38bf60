"""Our side of one case: the package's own trainers on the peer's models, data and settings. One RESULT line."""

import argparse
import json
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import cases
import torch
import transformers

from workbench import models
from workbench.models import sampling, scoring
from workbench.models.packing import collate_demonstrations, token_lengths
from workbench.models.rewards import LearnedReward, raw_rewards
from workbench.models.scoring import completion_logprobs
from workbench.models.tokens import collate
from workbench.records import CompletionExample, PairExample, PromptExample, Rollout
from workbench.trainers import policy_gradient
from workbench.trainers.direct_alignment import DirectAlignmentConfig, DirectAlignmentTrainer
from workbench.trainers.language_model import LanguageModelConfig, LanguageModelTrainer
from workbench.trainers.policy_gradient import PolicyGradientConfig, PolicyGradientTrainer
from workbench.trainers.reward_model import RewardModelConfig, RewardModelTrainer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    if given.device == "cpu":
        cases.keep_memory()
    case = cases.fitted(cases.CASES[given.case], cases.MODELS[given.model].width, given.device)
    folder = cases.build(given.model, given.folder)
    for command in cases.commands():
        side = Ours(case, folder, given.device)
        if "replay" in command:
            found = side.replay(json.loads(Path(command["replay"]).read_text()))
        else:
            found = side.generate() if case.method == "generate" else side.train()
        cases.report(side="workbench", transformers=transformers.__version__, **found)


class Ours:
    """A case on our trainers."""

    def __init__(self, case: cases.Case, folder: Path, device: str):
        self.case, self.folder, self.device = case, folder, device
        self.tokens, _ = models.load_tokenizer(str(folder / "policy"))
        self.dtype = "float32" if device == "cpu" else "bfloat16"
        self.phases: Counter = Counter()

    def policy(self):
        return models.load_policy(str(self.folder / "policy"), self.tokens, device=self.device, dtype=self.dtype)

    def scalar(self, load, part: str):
        return load(str(self.folder / part), self.tokens, device=self.device).to(getattr(torch, self.dtype))

    def prompts(self, count: int) -> list[PromptExample]:
        rows = cases.prompts(self.case, len(self.tokens), count)
        return [PromptExample(prompt_ids=ids, row={"prompt": cases.text(ids)}) for ids in rows]

    def completions(self, count: int, *, seed: int) -> list[list[int]]:
        rows = cases.completions(self.case, len(self.tokens), count, seed=seed)
        return [[*ids, cases.EOS] for ids in rows]

    def train(self) -> dict:
        """CPU seconds of each step."""
        trainer = getattr(self, self.case.method)()
        times = [cases.now(self.device)]
        for _ in range(self.case.steps):
            trainer.step()
            times.append(cases.now(self.device))
        shares = {name: seconds / self.case.steps for name, seconds in self.phases.items()}
        return cases.measured(times, self.device) | {"phases": shares}

    def sft(self):
        case, count = self.case, self.case.batch_size * self.case.steps
        pairs = zip(self.prompts(count), self.completions(count, seed=1), strict=True)
        examples = [CompletionExample(prompt_ids=p.prompt_ids, completion_ids=ids) for p, ids in pairs]
        config = LanguageModelConfig(steps=case.steps + 1, **self.shared())
        lengths = token_lengths(examples)
        settings = {"collate": collate_demonstrations, "lengths": lengths}
        return steady(LanguageModelTrainer(self.policy(), examples, examples[:1], config, **settings))

    def pairs(self) -> list[PairExample]:
        count = self.case.batch_size * self.case.steps
        sides = [self.completions(count, seed=seed) for seed in (1, 2)]
        return [
            PairExample(prompt_ids=prompt.prompt_ids, chosen_ids=chosen, rejected_ids=rejected, margin=0.0)
            for prompt, chosen, rejected in zip(self.prompts(count), *sides, strict=True)
        ]

    def dpo(self):
        pairs = self.pairs()
        config = DirectAlignmentConfig(beta=self.case.beta, epochs=2, **self.shared())
        reference = models.frozen(self.policy())
        return steady(DirectAlignmentTrainer(self.policy(), reference, pairs, pairs[:1], config))

    def reward_model(self):
        pairs = self.pairs()
        config = RewardModelConfig(epochs=2, weight_decay=0.0, **self.shared())
        model = self.scalar(models.load_reward_model, "reward")
        return steady(RewardModelTrainer(model, pairs, pairs[:1], config))

    def ppo(self):
        model = models.frozen(self.scalar(models.load_reward_model, "reward"))
        reward = LearnedReward(model, self.tokens, max_length=10_000)
        critic = self.scalar(models.load_critic, "critic")
        settings = {"num_ppo_epochs": self.case.passes, "max_grad_norm": 1e9, "kl_coef": self.case.beta}
        return self.policy_gradient("ppo", reward, critic, **settings)

    def rloo(self):
        return self.policy_gradient("rloo", words_score, None, num_generations=self.case.group, kl_coef=self.case.beta)

    def grpo(self):
        settings = {"num_generations": self.case.group, "kl_coef": self.case.beta, "kl_estimator": "k3_weighted"}
        return self.policy_gradient("grpo", words_score, None, **settings)

    def policy_gradient(self, algorithm: str, reward, critic, **settings):
        case = self.case
        prompts = self.prompts(case.batch_size * case.steps // settings.get("num_generations", 1))
        config = PolicyGradientConfig(
            algorithm=algorithm,
            steps=case.steps + 1,
            critic_learning_rate=case.learning_rate,
            max_completion_length=case.completion_length,
            num_mini_batches=1,
            missing_eos_penalty=0.0,
            **{**self.shared(), **settings},
        )
        reference = models.frozen(self.policy())
        self.time_phases(reward)
        trainer = PolicyGradientTrainer(
            self.policy(), reference, critic, self.timed("reward", reward), prompts, prompts[:1], self.tokens, config,
            monitors={},
        )  # fmt: skip
        trainer.update = self.timed("update", trainer.update)
        return steady(trainer)

    def shared(self) -> dict:
        """Settings that every trainer knows by the same name."""
        case = self.case
        return {
            "batch_size": case.batch_size,
            "learning_rate": case.learning_rate,
            "warmup_steps": 0,
            "evaluate_every": 1_000_000,
        }

    def time_phases(self, reward) -> None:
        """From here on, sampling and the reference's pass are timed."""
        policy_gradient.sample = self.timed("sampling", sampling.sample)

    def timed(self, name: str, function):
        """The same function, its CPU seconds added to a phase."""

        def timing(*arguments, **named):
            with self.phase(name):
                return function(*arguments, **named)

        return timing

    @contextmanager
    def phase(self, name: str):
        start = time.process_time()
        yield
        self.phases[name] += time.process_time() - start

    def generate(self) -> dict:
        """`sampling.sample` on the same prompts, with endings."""
        case, model = self.case, self.policy()
        model.generation_config.eos_token_id = list(range(1, cases.ENDING))
        prompts = self.prompts(case.batch_size * case.steps)
        generator, tokens = torch.Generator().manual_seed(0), 0
        times = [cases.now(self.device)]
        for step in range(case.steps):
            batch = [p.prompt_ids for p in prompts[step * case.batch_size : (step + 1) * case.batch_size]]
            found = sampling.sample(model, batch, max_completion_length=case.completion_length, generator=generator)
            tokens += int(found.completion_mask.sum())
            times.append(cases.now(self.device))
        return cases.measured(times, self.device) | {"tokens": tokens}

    def replay(self, recorded: dict) -> dict:
        """Our losses on exactly what the peer was trained on, beside the peer's: the largest relative difference.

        The peer's policies may say padding, ours never do: in the replay they may, too. Its reward model reads token
        ids, ours texts, which leave out special tokens: in the replay it reads ids, too.
        """
        scoring.ban_unsayable = lambda logits, config: logits
        trainer = getattr(self, self.case.method)()
        if recorded["sampled"]:
            rollouts = []
            replayed = iter(recorded["sampled"])

            def sampled(model, prompts, **settings):
                rollouts.append(self.as_rollout(model, prompts, next(replayed)))
                return rollouts[-1]

            policy_gradient.sample = sampled
            if self.case.method == "ppo":
                judge = models.frozen(self.scalar(models.load_reward_model, "reward"))
                trainer.reward = lambda *texts, **columns: raw_rewards(judge, rollouts[-1]).tolist()
        if hasattr(trainer, "batches"):
            trainer.batches = InOrder(len(trainer.batches.lengths), trainer.batches.batch_size)
        rows = [trainer.step() for _ in range(self.case.steps)]
        return {"differences": compared(rows, recorded["logs"], COMPARED[self.case.method])}

    def as_rollout(self, model, prompts: list[list[int]], sampled: list[list[int]]) -> Rollout:
        """The peer's samples as if our policy had just drawn them."""
        longest = self.case.completion_length
        if len(sampled[0]) > longest:  # whole rows, prompts included
            sampled = [row[-longest:] for row in sampled]
        rows = [row[: row.index(cases.EOS) + 1] if cases.EOS in row else row for row in sampled]
        if self.case.method == "ppo":  # there the peer takes what follows padding for padding
            rows = [row[: row.index(cases.PAD)] if cases.PAD in row else row for row in rows]
        prompts = [list(ids) for ids in prompts]
        if len(prompts) < len(rows):
            prompts = [ids for ids in prompts for _ in range(len(rows) // len(prompts))]
        batch = collate(prompts, rows, pad_id=cases.PAD).to(model.device)
        with torch.no_grad():
            logprobs = completion_logprobs(model, batch)
        finished = torch.tensor([row[-1] == cases.EOS for row in rows], device=model.device)
        return Rollout(**vars(batch), logprobs=logprobs, finished=finished)


class InOrder:
    """Batches in the order of the data, as the peer takes them when asked to."""

    def __init__(self, count: int, batch_size: int):
        self.batches = iter([list(range(i, min(count, i + batch_size))) for i in range(0, count, batch_size)])

    def next(self) -> list[int]:
        return next(self.batches)


# Our name of a number and the peer's, by method.
COMPARED = {
    "sft": {"loss": "loss", "grad_norm": "grad_norm"},
    "dpo": {"loss": "loss", "grad_norm": "grad_norm"},
    "reward_model": {"loss": "loss", "grad_norm": "grad_norm"},
    "ppo": {"policy_loss": "loss/policy_avg", "value_loss": "loss/value_avg", "reward": "objective/scores"},
    "rloo": {"reward": "reward", "policy_grad_norm": "grad_norm"},
    "grpo": {"reward": "reward", "policy_grad_norm": "grad_norm"},
}


def compared(rows: list[dict], logs: list[dict], names: dict[str, str]) -> dict[str, float]:
    """Largest difference over the steps by our name, in units of the largest value the peer logged."""
    differences = {}
    for ours, theirs in names.items():
        logged = [float(log[theirs]) for log in logs if theirs in log]
        values = [float(row[ours]) for row in rows]
        scale = max(abs(value) for value in logged)
        differences[ours] = max(abs(a - b) for a, b in zip(values, logged, strict=True)) / scale
    return differences


def words_score(prompts, completions, *, finished, **columns) -> list[float]:
    """`cases.score` of texts."""
    rows = [[int(word[1:]) for word in text.split() if word[0] == "w"] for text in completions]
    return [cases.score([token for token in row if token >= cases.ENDING]) for row in rows]


def steady(trainer):
    """The trainer at a constant learning rate, as the peer has it."""
    for name in ("descent", "policy_descent", "critic_descent"):
        if getattr(trainer, name, None) is not None:
            getattr(trainer, name).schedule = lambda step, total, *, warmup: 1.0
    return trainer


if __name__ == "__main__":
    main()
