"""Policy gradients on sampled completions with a KL budget: REINFORCE, A2C, PPO, RLOO, GRPO and their kin.

One trainer; what tells the algorithms apart is a row of `algorithms.ALGORITHMS`. Ziegler et al. 2019; Ouyang et al.
2022.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from workbench.losses.advantages import adaptive_kl_coef, masked_mean, masked_rescale, masked_whiten, token_rewards
from workbench.losses.policy import clipped_value_loss, entropy, kl_k2
from workbench.models import ranks
from workbench.models.load import frozen, without_dropout
from workbench.models.packing import collate_demonstrations, target_losses, token_lengths
from workbench.models.rewards import preferred
from workbench.models.sampling import masked_sample, reward_arguments, sample
from workbench.models.scoring import Predictions, Reader, chosen, completion_values, kl_from, predictions, spread
from workbench.records import CompletionExample, PromptExample, Rollout, Sequences
from workbench.trainers.algorithms import ALGORITHMS, SAMPLED_KL, adapted_penalty_coef
from workbench.trainers.descent import (
    Descent,
    EpochBatches,
    Share,
    Stateful,
    add_gradients,
    forget_gradients,
    linear_schedule,
    move_together,
    require_examples,
)
from workbench.trainers.evaluation import held_out_kl
from workbench.trainers.experience import (
    Experience,
    Samples,
    batch_means,
    divergence,
    earned,
    equal_groups,
    held_out_table,
    joined,
    placed,
    require_finite,
    rows_of_groups,
)
from workbench.trainers.policy_gradient_config import PolicyGradientConfig, require_models, require_texts

__all__ = ["ALGORITHMS", "PolicyGradientConfig", "PolicyGradientTrainer"]


class PolicyGradientTrainer(Stateful):
    """Sample, score, reference log-probabilities, rewards, advantages, updates.

    `reward` is any reward callable; `monitors` are others that are evaluated on the same completions and never learned
    from (the gold reward), `judges` those that are asked about held-out prompts alone. `critic` is a token classifier
    with one output, None where the algorithm has none. `pretraining` are the texts of `ptx_coef`: documents (their
    first token as prompt) or demonstrations. Left out: value-function warm-up, sharing of policy and critic.
    """

    progress_keys = ("kl", "reward", "gold")

    def __init__(
        self,
        policy,
        reference,
        critic,
        reward: Callable[..., list[float]],
        prompts: list[PromptExample],
        held_out: list[PromptExample],
        tokenizer,
        config: PolicyGradientConfig,
        *,
        monitors: dict[str, Callable[..., list[float]]],
        judges: Mapping[str, Callable[..., list[float]]] = MappingProxyType({}),
        pretraining: Sequence[CompletionExample] = (),
    ):
        require_examples(prompts, held_out)
        require_models(policy, reference, critic, config)
        require_texts(prompts, pretraining, config)
        self.policy, self.reference, self.critic = without_dropout(policy), without_dropout(reference), critic
        self.reward, self.monitors, self.judges, self.tokenizer = reward, monitors, judges, tokenizer
        self.prompts, self.held_out, self.pretraining = prompts, held_out, pretraining
        self.config, self.algorithm, self.total_steps = config, ALGORITHMS[config.algorithm], config.steps
        self.batches = EpochBatches([1] * len(prompts), config.prompts_per_step, seed=config.seed, whole=True)
        self.generator = torch.Generator().manual_seed(config.seed + 1)
        self.last_samples: list[dict[str, Any]] = []
        self.last_held_out: list[dict[str, Any]] = []
        self._build_learners()

    def _build_learners(self) -> None:
        """Whatever moves during training, and the names of what has to be saved of it."""
        config = self.config
        self.kl_coef, self.penalty_coef, self.masking = config.kl_coef, config.penalty_coef, None
        # Huang et al. 2022: Adam's usual eps of 1e-8 makes early PPO updates erratic
        settings = {"steps": config.steps * config.updates_per_step, "schedule": linear_schedule, "eps": 1e-5}
        self.policy_descent = Descent(self.policy, config, **settings)
        self.descents = [self.policy_descent]
        self.parts = ("policy_descent", "batches", "generator", "kl_coef", "penalty_coef")
        if self.critic is not None:
            own = replace(config, learning_rate=config.critic_learning_rate)
            self.critic_descent = Descent(without_dropout(self.critic), own, **settings)
            self.descents.append(self.critic_descent)
            self.parts += ("critic_descent",)
        if self.algorithm.masked:
            self.masking = frozen(copy.deepcopy(self.policy))
            self.parts += ("masking",)
        if config.ptx_coef > 0:
            rows = max(1, config.batch_size // config.num_mini_batches)
            self.pretraining_batches = EpochBatches(token_lengths(self.pretraining), rows, seed=config.seed + 3)
            self.parts += ("pretraining_batches",)

    def step(self) -> dict[str, float]:
        """Sample a batch, score it, learn from it; KL is nats per completion, rewards are in the reward's unit."""
        self.step_number += 1
        self.last_held_out = []
        rollout, self.last_samples, sampling = self.collect()
        experience = self.experience(rollout)
        row = {"step": self.step_number, **batch_means(rollout, self.last_samples), **sampling}
        row |= divergence(experience, self.config)
        row |= {"kl_coef": self.kl_coef, "learning_rate": self.policy_descent.learning_rate}
        if self.config.penalty_target > 0:
            row["penalty_coef"] = self.penalty_coef
        row |= self.update(experience)
        if self.due:
            row |= self.evaluate()
        self._adapt(row["kl"])
        return row

    def collect(self) -> tuple[Samples, list[dict[str, Any]], dict[str, float]]:
        """A batch of samples, the same as rows to read, and how often groups earned alike.

        Where all completions of a prompt earned the same there is no advantage. Such groups are replaced by those of
        other prompts; the last round leaves them where others are too few to fill the batch. Yu et al. 2025, section
        3.2.
        """
        size, wanted, rounds = self.config.num_generations, self.config.prompts_per_step, 1
        rollout, samples = self._next_samples()
        equal = equal_groups(earned(rollout, self.config), size)
        while rounds <= self.config.resampling_rounds and (~equal).sum() < wanted:
            more, more_samples = self._next_samples()
            rollout, samples, rounds = joined(rollout, more), samples + more_samples, rounds + 1
            equal = equal_groups(earned(rollout, self.config), size)
        rows = rows_of_groups(equal.int().argsort(stable=True)[:wanted], size)
        said = {"equal_reward_groups": equal.float().mean().item(), "sampling_rounds": rounds} if size > 1 else {}
        return rollout.rows(rows), [samples[row] for row in rows.tolist()], said

    def _next_samples(self) -> tuple[Samples, list[dict[str, Any]]]:
        """Completions of the next prompts and their scores.

        With `rival_mixture` the score is the probability that a completion is preferred to one of that mixture, less
        one half. Munos et al. 2023.
        """
        prompts, config = self._next_prompts(), self.config
        rollout, samples = self.rollout(prompts, self.generator, group_size=config.num_generations)
        if config.rival_mixture is None:
            return rollout, samples
        rivals, _ = self._sample(prompts, self.generator, mixed_with=(self.reference, config.rival_mixture))
        (asked, theirs), columns = reward_arguments(self.tokenizer, prompts, rivals)
        columns |= {"finished": rollout.finished.tolist(), "rivals_finished": columns["finished"]}
        won = preferred(self.reward, asked, [sample["completion"] for sample in samples], theirs, columns)
        rows = [sample | {"rival": text, "won": p} for sample, text, p in zip(samples, theirs, won, strict=True)]
        return replace(rollout, scores=torch.tensor(won, device=rollout.scores.device) - 0.5), rows

    @torch.no_grad()
    def rollout(
        self, prompts: list[PromptExample], generator: torch.Generator, *, group_size: int = 1
    ) -> tuple[Samples, list[dict[str, Any]]]:
        """Completions of the current policy with scores and reference log-probabilities; the same as rows to read."""
        sampled, allowed = self._sample(prompts, generator, group_size=group_size)
        texts, columns = reward_arguments(self.tokenizer, prompts, sampled)
        scores = ranks.shared_scores(self._rewards(), texts, columns)
        names = ("prompt", "completion", *scores)
        samples = [dict(zip(names, values, strict=True)) for values in zip(*texts, *scores.values(), strict=True)]

        def reference_logprobs(rows: slice) -> Tensor:
            part = sampled.rows(rows)
            said = self._said(self.reference, part, allowed[rows], group_size)
            return spread(*said.read(chosen(part.counted)), part)

        rollout = Samples(
            **vars(sampled),
            reference_logprobs=ranks.by_rows(reference_logprobs, len(sampled), group_size=group_size),
            scores=torch.tensor(scores["reward"], dtype=torch.float32, device=sampled.tokens.device),
            allowed=allowed,
        )
        return rollout, samples

    def experience(self, rollout: Samples) -> Experience:
        """Rewards and advantages of a rollout: the price of KL on every token, the score on the last one."""
        config, mask = self.config, rollout.completion_mask
        require_finite(rollout, step=self.step_number)
        with torch.no_grad():
            kl = self._kl(rollout, rollout.logprobs)
        price = self.kl_coef if config.kl_in == "reward" else 0.0
        rewards = token_rewards(kl, earned(rollout, config), mask, kl_coef=price)
        if config.whiten_rewards:
            rewards = masked_rescale(rewards, mask)
        at_once = config.num_mini_batches == 1 and not config.micro_batch_tokens and ranks.size() == 1
        with torch.set_grad_enabled(at_once):  # the pass is then that of the first update, too
            every, size = len(rollout), config.num_generations
            values = ranks.by_rows(lambda rows: self._values(rollout.rows(rows)), every, group_size=size)
        advantages, returns = self.algorithm.baseline(rewards, values.detach(), mask, config)
        if config.whiten_advantages:
            advantages = masked_whiten(advantages, mask)
        return Experience(**vars(rollout), kl=kl, advantages=advantages, values=values, returns=returns)

    def update(self, experience: Experience) -> dict[str, float]:
        """All passes over one batch of samples; returns the mean of what each mini-batch reports.

        They end before an update once the policy is `kl_stop` away from the one that sampled.
        """
        reports = []
        mean_length = (experience.completion_mask.sum() / len(experience)).item()
        for batch in self._mini_batches(experience):
            report = self._gradients(batch, mean_length=mean_length)
            if reports and 0 < self.config.kl_stop < report["approx_kl"]:
                forget_gradients(self.descents)
                break
            norms = move_together(self.descents, trainer_step=self.step_number)
            reports.append({**report, "policy_grad_norm": norms[0]})
        for descent in self.descents:
            descent.done = self.step_number * self.config.updates_per_step  # as if none had been left out
        if self.config.penalty_target > 0:
            moved = reports[-1]["approx_kl"]
            self.penalty_coef = adapted_penalty_coef(self.penalty_coef, moved, target=self.config.penalty_target)
        means = {name: sum(report[name] for report in reports) / len(reports) for name in reports[0]}
        return {**means, "updates": len(reports)}

    def parts_of(self, batch: Experience) -> tuple[list[Any], int]:
        """Rows of a batch that go through a model at a time, and how many side by side are completions of one prompt.

        As many of those of a group stay together as fit, so that their prompt is read once.
        """
        tokens, group_size = self.config.micro_batch_tokens, self.config.num_generations
        if not tokens and ranks.size() == 1:
            return [slice(None)], group_size
        lengths = batch.attention_mask.sum(1)
        sizes = [size for size in range(1, group_size + 1) if group_size % size == 0]
        size = max((size for size in sizes if size * int(lengths.max()) <= (tokens or inf)), default=1)
        rows = torch.arange(len(batch), device=lengths.device).view(-1, size)
        parts = self.micro_batches(list(rows), lengths.view(-1, size).sum(1).tolist())
        return [torch.cat(part) for part in parts], size

    def _gradients(self, batch: Experience, *, mean_length: float) -> dict[str, float]:
        """Those of one update, of a micro-batch at a time; what there is to report."""
        report, learn = Counter(), partial(add_gradients, descents=self.descents, trainer_step=self.step_number)
        (parts, size), texts = self.parts_of(batch), self._pretraining_parts()

        def value_share(rows: Any) -> Share:
            return self.value_loss(batch, rows, group_size=size), batch, None

        def policy_share(part: tuple[Any, Any]) -> Share:
            (rows, text), loss, logprobs, said = part, 0.0, None, {}
            if rows is not None:
                loss, logprobs, said = self.policy_loss(batch, rows, mean_length=mean_length, group_size=size)
            if text is not None:
                text_loss = self._pretraining_loss(*text)
                loss, said = loss + self.config.ptx_coef * text_loss, said | {"ptx_loss": text_loss.item()}
            return loss, batch, (logprobs if logprobs is None else logprobs.detach(), said)

        value_loss = {}
        if self.critic is not None:  # first, so that its graph is gone before the policy's is made
            value_loss = {"value_loss": sum(loss for loss, _ in learn(parts, value_share))}
        # texts with the last rows, so that both are learned from at once where nothing is split
        both = [*((rows, None) for rows in parts[:-1]), (parts[-1], next(iter(texts), None))]
        both += [(None, text) for text in texts[1:]]
        logprobs = 0.0
        for (rows, _), (_, (each, said)) in zip(both, learn(both, policy_share), strict=True):
            report.update(said)
            logprobs = logprobs if rows is None else logprobs + placed(each, rows, batch)
        return {**report, **value_loss, **self._distance(logprobs, batch)}

    def policy_loss(
        self, batch: Experience, rows: Any = slice(None), *, mean_length: float, group_size: int | None = None
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """What rows add to the policy's loss, a scalar, their log-probabilities, (n, R) nats, and to what is reported.

        `mean_length` in tokens is that of the whole batch of which this is a mini-batch; `group_size` rows side by side
        share a prompt.
        """
        config, mask, part = self.config, batch.completion_mask, batch.rows(rows)
        group_size = group_size or config.num_generations
        priced = config.kl_in == "loss" and self.kl_coef > 0
        readers = [chosen(part.counted), self._entropies]
        if priced and config.kl_estimator not in SAMPLED_KL:
            readers.append(self._from_reference(part, group_size))
        said = self._said(self.policy, part, part.allowed, group_size)
        logprobs, entropies, *exact_kl = said.read(*readers)
        logprobs, mean_entropy = spread(logprobs, part), entropies.sum() / mask.sum()
        losses = self.algorithm.surrogate(logprobs, part, config, penalty_coef=self.penalty_coef)
        if priced:
            losses = losses + self.kl_coef * self._kl(part, logprobs, *exact_kl)
        loss = self.algorithm.aggregate(placed(losses, rows, batch), mask, config, mean_length=mean_length)
        report = {"policy_loss": loss.item(), "entropy": mean_entropy.item()}
        if config.entropy_coef > 0:
            loss = loss - config.entropy_coef * mean_entropy
        return loss, logprobs, report

    def value_loss(self, batch: Experience, rows: Any = slice(None), *, group_size: int | None = None) -> Tensor:
        """What rows add to the critic's loss, a scalar; the graph of `batch.values` serves where they have one."""
        part = batch.rows(rows)
        values = part.values if part.values.requires_grad else self._values(part, group_size)
        old = {"old_values": part.values.detach(), "returns": part.returns}
        losses = clipped_value_loss(values, **old, cliprange_value=self.config.cliprange_value)
        return masked_mean(placed(losses, rows, batch), batch.completion_mask)

    @torch.no_grad()
    def _distance(self, logprobs: Tensor, part: Experience) -> dict[str, float]:
        """How far the policy is from the one that sampled, and how often that is too far."""
        mask, config = part.completion_mask, self.config
        ratio = self.algorithm.clipped(logprobs - part.logprobs, mask).exp()
        outside = (ratio < 1 - config.cliprange) | (ratio > 1 + config.cliprange_high)
        approx_kl = masked_mean(kl_k2(logprobs, part.logprobs), mask).item()
        return {"approx_kl": approx_kl, "clip_fraction": masked_mean(outside.float(), mask).item()}

    def evaluate(self) -> dict[str, float]:
        """Reward, KL and monitors on held-out prompts as the policy is now, from the same random numbers each time.

        `last_held_out` then has a row per prompt: its own columns, completion, rewards and what `held_out_kl` says.
        """
        rollout, samples = self.rollout(self.held_out, torch.Generator().manual_seed(self.config.seed + 2))
        with torch.no_grad():
            kl = held_out_kl(rollout, self._exact_kl(rollout))
        texts, columns = reward_arguments(self.tokenizer, self.held_out, rollout) if self.judges else ((), {})
        judged = {name: ranks.shared_scores({name: judge}, texts, columns)[name] for name, judge in self.judges.items()}
        self.last_held_out = held_out_table(self.held_out, samples, kl, judged)
        means = batch_means(rollout, samples)
        means["kl"] = sum(row["kl"] for row in kl) / len(kl)
        return {f"held_out_{name}": value for name, value in means.items()}

    def samples(self) -> list[dict[str, Any]]:
        """The last batch: prompt, completion, reward and the monitors' values."""
        return self.last_samples

    def _next_prompts(self) -> list[PromptExample]:
        """The next prompts, each as often as it is completed, side by side."""
        return [self.prompts[index] for index in self.batches.next() for _ in range(self.config.num_generations)]

    def _rewards(self) -> dict[str, Callable[..., list[float]]]:
        return {"reward": self.reward, **self.monitors}

    def _sample(
        self,
        prompts: list[PromptExample],
        generator: torch.Generator,
        *,
        group_size: int = 1,
        mixed_with: tuple[Any, float] | None = None,
    ) -> tuple[Rollout, Tensor]:
        """Completions, and which tokens they were chosen from (`Samples.allowed`); a mixture is never masked."""
        prompt_ids = [prompt.prompt_ids for prompt in prompts]
        config = self.config
        settings = {"max_completion_length": config.max_completion_length, "temperature": config.temperature}
        settings |= {"generator": generator, "group_size": group_size}
        if self.masking is not None and not mixed_with:
            return masked_sample(self.policy, self.masking, prompt_ids, top_p=config.mask_top_p, **settings)
        rollout = sample(self.policy, prompt_ids, mixed_with=mixed_with, **settings)
        return rollout, torch.ones(len(rollout), 0, 0, dtype=torch.bool, device=rollout.tokens.device)

    def _said(self, model, sequences: Sequences, allowed: Tensor, group_size: int) -> Predictions:
        """The distributions that are sampled from, at counted tokens; the reference is masked as the policy is."""
        return predictions(
            model, sequences, temperature=self.config.temperature, group_size=group_size, allowed=allowed
        )

    def _entropies(self, logits: Tensor, rows: slice) -> Tensor:
        with torch.set_grad_enabled(self.config.entropy_coef > 0):
            return entropy(logits)

    def _from_reference(self, part: Samples, group_size: int) -> Reader:
        """Reads the KL from the reference over the whole vocabulary."""
        with torch.no_grad():
            return kl_from(self._said(self.reference, part, part.allowed, group_size))

    def _kl(self, part: Samples, logprobs: Tensor, exact: Tensor | None = None) -> Tensor:
        """KL from the reference by the chosen estimator, (B, R) nats, with a gradient where the arguments have one.

        `exact` (N,) is that over the whole vocabulary at counted tokens; where it is needed and None, it is computed.
        """
        config = self.config
        if config.kl_estimator in SAMPLED_KL:
            return SAMPLED_KL[config.kl_estimator](logprobs, part.logprobs, part.reference_logprobs)
        return self._exact_kl(part, group_size=config.num_generations) if exact is None else spread(exact, part)

    def _exact_kl(self, part: Samples, *, group_size: int = 1) -> Tensor:
        """KL from the reference over the whole vocabulary, (B, R) nats."""

        def some(rows: slice) -> Tensor:
            its = part.rows(rows)
            said = self._said(self.policy, its, its.allowed, group_size)
            return spread(*said.read(self._from_reference(its, group_size)), its)

        return ranks.by_rows(some, len(part), group_size=group_size)

    def _values(self, sequences: Sequences, group_size: int | None = None) -> Tensor:
        """The critic's values, (B, R) in reward units; 0 without a critic."""
        if self.critic is None:
            return torch.zeros(sequences.completion_mask.shape, device=sequences.tokens.device)
        return completion_values(self.critic, sequences, group_size=group_size or self.config.num_generations)

    def _mini_batches(self, experience: Experience) -> Iterator[Experience]:
        """Every group once per pass, in a new order each time; groups stay whole."""
        for number in range(self.config.num_ppo_epochs):
            if number:  # the critic has moved: a graph of its values served the first pass
                experience = replace(experience, values=experience.values.detach())
            permutation = torch.randperm(self.config.prompts_per_step, generator=self.generator)
            for groups in permutation.tensor_split(self.config.num_mini_batches):
                yield experience.rows(rows_of_groups(groups, self.config.num_generations))

    def _pretraining_parts(self) -> list[tuple[list[CompletionExample], int]]:
        """The next texts, some at a time, beside how many tokens all of them have."""
        if self.config.ptx_coef == 0:
            return []
        texts = [self.pretraining[index] for index in self.pretraining_batches.next()]
        targets = sum(len(text.completion_ids) for text in texts)
        return [(part, targets) for part in self.micro_batches(texts, token_lengths(texts))]

    def _pretraining_loss(self, texts: list[CompletionExample], targets: int) -> Tensor:
        """What some texts add to the mean cross-entropy of all, nats per token. Ouyang et al. 2022, eq. 2."""
        batch = collate_demonstrations(texts, self.policy.config.pad_token_id).to(self.policy.device)
        return target_losses(self.policy, batch).sum() / targets

    def _adapt(self, kl: float) -> None:
        """What follows the policy between steps: the price of KL, the masking policy."""
        config = self.config
        if config.kl_target > 0:
            self.kl_coef = adaptive_kl_coef(
                self.kl_coef, kl, target=config.kl_target, episodes=config.batch_size, horizon=config.kl_horizon
            )
        if self.algorithm.masked and self.step_number % config.mask_refresh_every == 0:
            self.masking.load_state_dict(self.policy.state_dict())
