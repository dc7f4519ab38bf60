"""Worlds so small that everything can be enumerated: optimal policies, frontiers and best-of-n without sampling.

A policy is an array (P, C): the probability of each of the C completions that there are, for each of P prompts. Rewards
have the same shape, in the unit in which `beta` prices a nat. Prompts weigh the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from workbench import WorkbenchError

HALVINGS = 60  # of an interval in which a root is searched: to the last bit
ROUNDS = 60  # towards a fixed point: to the last digits


def enumerate_completions(words: Sequence[int], *, eos: int, longest: int) -> list[tuple[int, ...]]:
    """Every completion of at most `longest` tokens: those that end with EOS, then those that the limit cuts."""
    if longest < 1 or not words:
        raise WorkbenchError(
            f"There are {len(words)} words and completions of at most {longest} tokens: give at least one of each."
        )
    ended = [(*text, eos) for length in range(longest) for text in itertools.product(words, repeat=length)]
    return ended + list(itertools.product(words, repeat=longest))


@dataclass(frozen=True, kw_only=True)
class Tree:
    """C completions as paths from the empty prefix: N prefixes that something follows, A tokens that may follow."""

    states: np.ndarray  # (C, R) which prefix stands before each token, 0 where not counted
    actions: np.ndarray  # (C, R) which token it is, 0 where not counted
    mask: np.ndarray  # (C, R) bool, True where a completion has a token
    next_state: np.ndarray  # (N, A) the longer prefix that a token leads to, -1 where it ends the completion
    finished: np.ndarray  # (N, A) the completion that a token ends, -1 where it goes on
    depth: np.ndarray  # (N,) tokens of each prefix


def build_tree(completions: Sequence[Sequence[int]]) -> Tree:
    """The tree of all completions, none of which goes on where another ends; its prefixes are the shortest first."""
    prefixes = sorted({tuple(ids[:end]) for ids in completions for end in range(len(ids))}, key=len)
    number = {prefix: index for index, prefix in enumerate(prefixes)}
    symbols = {token: index for index, token in enumerate(sorted({token for ids in completions for token in ids}))}
    shape = len(completions), max(map(len, completions))
    states, actions, mask = np.zeros(shape, dtype=int), np.zeros(shape, dtype=int), np.zeros(shape, dtype=bool)
    next_state, finished = np.full((2, len(prefixes), len(symbols)), -1)
    for row, ids in enumerate(completions):
        for place, token in enumerate(ids):
            state, action = number[tuple(ids[:place])], symbols[token]
            states[row, place], actions[row, place], mask[row, place] = state, action, True
            if place + 1 == len(ids):
                finished[state, action] = row
            else:
                next_state[state, action] = number[tuple(ids[: place + 1])]
    depth = np.array(list(map(len, prefixes)))
    return Tree(states=states, actions=actions, mask=mask, next_state=next_state, finished=finished, depth=depth)


def step_probabilities(policy: np.ndarray, tree: Tree) -> np.ndarray:
    """Probability of each next token after each prefix, (P, N, A); NaN after a prefix that never occurs."""
    mass = np.zeros((len(policy), *tree.finished.shape))
    rows, places = np.nonzero(tree.mask)
    np.add.at(mass, (slice(None), tree.states[rows, places], tree.actions[rows, places]), policy[:, rows])
    with np.errstate(invalid="ignore"):
        return mass / mass.sum(-1, keepdims=True)


def completion_probabilities(steps: np.ndarray, tree: Tree) -> np.ndarray:
    """Probability of each completion, (P, C), from those of its tokens, (P, N, A)."""
    return np.where(tree.mask, steps[:, tree.states, tree.actions], 1).prod(-1)


def mean_kl(policy: np.ndarray, other: np.ndarray) -> float:
    """KL(policy || other) of whole completions, nats, mean over prompts; infinite where `other` excludes one."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(policy > 0, policy * np.log(policy / other), 0.0)
    return float(terms.sum(1).mean())


def mean_reward(policy: np.ndarray, rewards: np.ndarray) -> float:
    """Expected reward, mean over prompts."""
    return float((policy * rewards).sum(1).mean())


def optimal_policy(reference: np.ndarray, rewards: np.ndarray, beta: float) -> np.ndarray:
    """reference * exp(rewards / beta) / Z: what maximises expected reward minus `beta` times the KL, (P, C).

    Rafailov et al. 2023, eq. 4; Korbak et al. 2022. `beta` in reward per nat, above 0.
    """
    if not beta > 0:
        raise WorkbenchError(f"beta is {beta}: give a price above 0, without one the optimum knows no reference.")
    with np.errstate(divide="ignore"):
        logits = np.log(reference) + rewards / beta
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def exact_frontier(reference: np.ndarray, rewards: np.ndarray, betas: Sequence[float]) -> pd.DataFrame:
    """The most reward that each KL can buy: one row per `beta` with beta, kl (nats) and reward of the optimum."""
    return pd.DataFrame([_frontier_row(reference, rewards, beta) for beta in betas])


def frontier_point(reference: np.ndarray, rewards: np.ndarray, *, column: str, value: float) -> dict[str, float]:
    """The row of the frontier whose `column`, kl (nats) or reward, has this value; its end where that is beyond it."""
    low, high = -12.0, 18.0  # of log beta: from the best completion alone to the reference itself
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        too_far = _frontier_row(reference, rewards, math.exp(middle))[column] > value
        low, high = (middle, high) if too_far else (low, middle)
    return _frontier_row(reference, rewards, math.exp(high))


def _frontier_row(reference: np.ndarray, rewards: np.ndarray, beta: float) -> dict[str, float]:
    optimum = optimal_policy(reference, rewards, beta)
    return {"beta": beta, "kl": mean_kl(optimum, reference), "reward": mean_reward(optimum, rewards)}


def standing(policy: np.ndarray, reference: np.ndarray, rewards: np.ndarray, beta: float) -> dict[str, float]:
    """Where a policy stands: kl and reward, kl_to_optimum (from the optimum at `beta`), wasted_kl and missed_reward.

    `wasted_kl` (nats) is what the policy spends beyond the frontier point of its reward, `missed_reward` what it earns
    less than the frontier point of its KL; neither can be negative. A policy below the reference wastes all it spends.
    """
    kl, reward = mean_kl(policy, reference), mean_reward(policy, rewards)
    cheapest = frontier_point(reference, rewards, column="reward", value=reward)
    return {
        "kl": kl,
        "reward": reward,
        "kl_to_optimum": mean_kl(policy, optimal_policy(reference, rewards, beta)),
        "wasted_kl": kl - cheapest["kl"],
        "missed_reward": frontier_point(reference, rewards, column="kl", value=kl)["reward"] - reward,
    }


def best_of_n_policy(reference: np.ndarray, rewards: np.ndarray, n: int) -> np.ndarray:
    """Probability that a completion is the best of `n` draws, (P, C); equal rewards share by their probability.

    F(r)^n - F(r-)^n per level of reward. Beirami et al. 2024, lemma 1.
    """
    if n < 1:
        raise WorkbenchError(f"n is {n}: best-of-n needs at least 1 sample per prompt.")
    levels = rewards[:, :, None] == rewards[:, None, :]
    below = (reference[:, None, :] * (rewards[:, :, None] > rewards[:, None, :])).sum(-1)
    level = (reference[:, None, :] * levels).sum(-1)
    return reference / level * ((below + level) ** n - below**n)


def self_delusion(turns: int, *, skill: float, payoff: float) -> pd.DataFrame:
    """How often who imitates an expert takes the good one of two arms: columns model, turn, good. Ortega et al. 2021.

    The expert knows which arm is good and takes it with probability `skill`; that pays with `payoff`, the other arm
    with the rest. One model reads its own actions as those of an expert, the other learns from outcomes alone.
    """
    expert, pays = (np.array([[high, 1 - high], [1 - high, high]]) for high in (skill, payoff))  # truth x arm
    outcome, rows = np.stack([pays, 1 - pays], axis=2), []  # truth x arm x outcome
    for name, evidence in {"its own actions count as evidence": expert, "only outcomes do": np.ones((2, 2))}.items():
        joint = belief = np.full((1, 2), 0.5)  # history x truth: how likely it is, and what the model makes of it
        for turn in range(1, turns + 1):
            act = belief / belief.sum(axis=1, keepdims=True) @ expert  # history x arm
            rows.append({"model": name, "turn": turn, "good": float((joint * act).sum())})
            joint = np.einsum("ht,ha,tao->haot", joint, act, outcome).reshape(-1, 2)
            belief = np.einsum("ht,ta,tao->haot", belief, evidence, outcome).reshape(-1, 2)
    return pd.DataFrame(rows)


def win_rates(rewards: np.ndarray) -> np.ndarray:
    """Mean Bradley-Terry probability of beating a completion drawn uniformly, (P, C), from rewards in log-odds.

    IPO on all pairs alike has its optimum at this reward instead of the one labelers felt. Azar et al. 2023, eq. 10.
    """
    return (1 / (1 + np.exp(rewards[:, None, :] - rewards[:, :, None]))).mean(-1)


def penalty_in_loss_optimum(
    reference: np.ndarray, rewards: np.ndarray, tree: Tree, answer: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Where a policy gradient rests whose KL penalty is a loss at each sampled token, (P, C).

    Such a gradient weighs a token by the reward to come alone; the penalties to come are not in it. `answer` takes the
    reference's next-token probabilities and the expected reward after each token, (P, n, A), and gives probabilities
    at which single states are at rest: `optimal_policy` for k2 or the exact KL, `rational_policy` for k3.
    """
    return _at_rest(reference, rewards, tree, lambda start, to_come, _: answer(start, to_come), np.ones(len(tree.mask)))


def _at_rest(
    reference: np.ndarray, rewards: np.ndarray, tree: Tree, answer: Callable[..., np.ndarray], weights: np.ndarray
) -> np.ndarray:
    """`penalty_in_loss_optimum` where the losses of a completion weigh `weights` (C,), its reward's share among them.

    `answer` takes the expected weight after each token, too, (P, n, A), and rewards that are multiplied by it.
    """
    start = step_probabilities(reference, tree)
    steps, values, shares = np.empty_like(start), np.empty(start.shape[:2]), np.empty(start.shape[:2])
    for depth in reversed(range(tree.depth.max() + 1)):  # longest prefixes first: what follows them is known
        here = tree.depth == depth
        ends, longer = tree.finished[here], tree.next_state[here]
        to_come = np.where(ends >= 0, (rewards * weights)[:, ends], values[:, longer])
        weighs = np.where(ends >= 0, weights[ends], shares[:, longer])
        steps[:, here] = answer(start[:, here], to_come, weighs)
        values[:, here], shares[:, here] = ((steps[:, here] * each).sum(-1) for each in (to_come, weighs))
    return completion_probabilities(steps, tree)


def group_relative_optimum(reference: np.ndarray, rewards: np.ndarray, tree: Tree, beta: float) -> np.ndarray:
    """Where GRPO with k3 in its loss rests, (P, C), as its groups grow large; Shao et al. 2024, eq. 3.

    Rewards are centred and divided by their standard deviation under the policy itself, prompt by prompt, the penalty
    is not; the tokens of a completion share one weight, so that those of a long one weigh less.
    """
    policy, weights = reference, 1 / tree.mask.sum(1)
    for _ in range(ROUNDS):  # a policy, and the mean and the deviation that it answers to, in turn
        means = (policy * rewards).sum(1, keepdims=True)
        price = beta * np.sqrt((policy * (rewards - means) ** 2).sum(1))[:, None, None]
        policy = _at_rest(reference, rewards - means, tree, partial(_weighted_answer, beta=price), weights)
    return policy


def _weighted_answer(reference: np.ndarray, rewards: np.ndarray, weights: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """`rational_policy` where tokens weigh differently: beta * w * reference / (level + beta * w - rewards)."""
    return rational_policy(weights * reference, rewards - beta * weights, beta)


def rational_policy(reference: np.ndarray, rewards: np.ndarray, beta: float | np.ndarray) -> np.ndarray:
    """beta * reference / (level - rewards): the best answer to a price on KL(reference || policy), (..., A).

    That is what k3 prices when its gradient is taken at the policy's own samples. The level, above every reward, is
    the one at which the probabilities sum to 1. `beta` may be an array that fits, (..., 1).
    """
    top = rewards.max(-1, keepdims=True)
    low, high = top + beta * np.where(rewards == top, reference, 0).max(-1, keepdims=True), top + beta
    for _ in range(HALVINGS):
        level = (low + high) / 2
        too_much = (beta * reference / (level - rewards)).sum(-1, keepdims=True) > 1
        low, high = np.where(too_much, level, low), np.where(too_much, high, level)
    policy = beta * reference / (high - rewards)
    return policy / policy.sum(-1, keepdims=True)
