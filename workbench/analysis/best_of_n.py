"""Several completions of a prompt: the one that a proxy likes most, what most of them say, or any that is right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.statistics import finite_array, mean_and_error


def best_of_n_kl(n: int) -> float:
    """log n - (n - 1) / n, nats: an upper bound on KL(best-of-n || policy), tight when no two completions are likely
    to coincide (Beirami et al. 2024); WorkbenchError below n = 1."""
    if n < 1:
        raise WorkbenchError(f"n is {n}: best-of-n needs at least 1 sample per prompt.")
    return math.log(n) - (n - 1) / n


def best_of_n_curve(proxy, gold, ns: Sequence[int]) -> pd.DataFrame:
    """Expected proxy and gold reward of the proxy's favourite among n, for each n of `ns`, from (prompts, N) samples.

    Unbiased: averages over all C(N, n) subsets, a tie in the proxy going to each tied sample equally. Columns n, kl
    (nats, upper bound), proxy, proxy_se and, unless `gold` is None, gold, gold_se and random_gold, the control that
    picks at random. Standard errors are over prompts; WorkbenchError for unequal shapes and n outside 1..N.
    """
    curve = pd.DataFrame({"n": list(ns), "kl": [best_of_n_kl(n) for n in ns]})
    curve["proxy"], curve["proxy_se"] = mean_and_error(expected_of_best(proxy, proxy, ns))
    if gold is not None:
        curve["gold"], curve["gold_se"] = mean_and_error(expected_of_best(proxy, gold, ns))
        curve["random_gold"] = np.mean(gold)
    return curve


def expected_of_best(proxy, gold, ns: Sequence[int]) -> np.ndarray:
    """Expected gold reward of the proxy's favourite among n, for each prompt and each n of `ns`, (prompts, len(ns)).

    What `best_of_n_curve` averages over prompts, with its estimator and errors.
    """
    proxy, gold = _sample_matrix(proxy, name="proxy"), _sample_matrix(gold, name="gold")
    if gold.shape != proxy.shape:
        raise WorkbenchError(f"gold has shape {gold.shape}, proxy {proxy.shape}: score the same samples with both.")
    order = np.argsort(proxy, axis=1)
    ranked, ranked_gold = (np.take_along_axis(values, order, axis=1) for values in (proxy, gold))
    return _average_over_ties(ranked_gold, ranked) @ _rank_weights(proxy.shape[1], ns)  # weights (N, len(ns))


def _rank_weights(pool: int, ns: Sequence[int]) -> np.ndarray:
    """Probability C(i-1, n-1) / C(N, n) that rank i (1 = lowest) is the best of n out of `pool` = N, (N, len(ns))."""
    columns = [[math.comb(rank, n - 1) / math.comb(pool, n) for rank in range(pool)] for n in _sizes(ns, pool)]
    return np.array(columns).T


def _sizes(ns: Sequence[int], pool: int) -> list[int]:
    wrong = [n for n in ns if not 1 <= n <= pool]
    if wrong or len(ns) == 0:
        raise WorkbenchError(f"ns holds {wrong or 'nothing'}: give sizes between 1 and the {pool} samples per prompt.")
    return [int(n) for n in ns]


def _average_over_ties(gold: np.ndarray, proxy: np.ndarray) -> np.ndarray:
    """`gold` with the samples of equal `proxy` in a row (sorted, both (prompts, N)) given their common mean."""
    starts = np.diff(proxy, axis=1, prepend=np.nan) != 0  # NaN != 0: every row opens a group
    groups = starts.ravel().cumsum() - 1
    means = np.bincount(groups, weights=gold.ravel()) / np.bincount(groups)
    return means[groups].reshape(gold.shape)


def _sample_matrix(values, *, name: str) -> np.ndarray:
    array = finite_array(values, name=name)
    if array.ndim != 2:
        raise WorkbenchError(f"{name} has shape {array.shape}: give one row per prompt and one column per sample.")
    return array


def measured_best_of_n_kl(proxy, logprob, completions, ns: Sequence[int]) -> pd.DataFrame:
    """KL(best-of-n || policy) as pools of samples show it, for each n of `ns`: columns n, kl_bound, kl, kl_se (nats).

    `proxy`, `logprob` (nats, of the whole completion under the policy) and `completions` (any labels) are (prompts, N).
    Best-of-n picks a place u on the policy's completions in the order of the proxy with density n u^(n-1); those of one
    reward share an interval and its mean density, and what that mean loses is taken off the bound, so that no estimate
    is above it. Intervals are as long as `logprob` says; where they begin is estimated, with a bias of order 1 / N that
    is small where n is well below N. Beirami et al. 2024, lemma 1 and theorem 1; their own estimator looks at the
    winner's probability alone. Errors are over prompts. WorkbenchError for other shapes, values that are not finite and
    a logprob above 0.
    """
    proxy, logprob = _sample_matrix(proxy, name="proxy"), _sample_matrix(logprob, name="logprob")
    completions = np.asarray(completions)
    shapes = [proxy.shape, logprob.shape, completions.shape]
    if len(set(shapes)) > 1:
        raise WorkbenchError(f"proxy, logprob and completions have shapes {shapes}: give the same samples in each.")
    if logprob.max() > 1e-4:
        raise WorkbenchError(f"logprob is {logprob.max():g}: give the log-probability, at most 0, of each completion.")
    if any(n < 1 for n in ns) or len(ns) == 0:
        raise WorkbenchError(f"ns is {list(ns)}: give sizes of at least 1.")
    bounds, sizes = np.array([best_of_n_kl(n) for n in ns]), np.array(ns, dtype=float)
    rows = zip(proxy, logprob, completions, strict=True)
    kl, error = mean_and_error(np.array([bounds - _lost_to_coincidence(*row, sizes) for row in rows]))
    return pd.DataFrame({"n": list(ns), "kl_bound": bounds, "kl": np.maximum(kl, 0.0), "kl_se": error})


def _lost_to_coincidence(proxy, logprob, completions, sizes: np.ndarray) -> np.ndarray:
    """How far below its bound the KL of best-of-n is for one prompt, nats, (len(sizes),), from (N,) samples."""
    _, first = np.unique(completions, return_index=True)
    proxy, chance = proxy[first], np.exp(np.minimum(logprob[first], 0.0))  # (K,) different completions
    # each stands for those like it that the pool missed: Horvitz and Thompson 1952
    weight = chance / -np.expm1(len(completions) * np.log1p(-np.minimum(chance, 1 - 1e-12)))
    order = np.argsort(proxy)
    proxy, chance, weight = proxy[order], chance[order], weight[order]
    start, end = np.searchsorted(proxy, proxy, "left"), np.searchsorted(proxy, proxy, "right")
    cumulative = np.concatenate([[0.0], np.cumsum(weight)])
    others = np.maximum(cumulative[-1] - weight, 1e-300)
    scale = (1 - chance) / others  # a completion's own probability is known, the others share the rest
    low = cumulative[start] * scale
    width = chance + (cumulative[end] - cumulative[start] - weight) * scale
    return (weight[:, None] * _lost_density(low, np.minimum(low + width, 1.0), sizes)).sum(axis=0)


def _lost_density(low: np.ndarray, high: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Mean over the interval of f log(f / mean f), f(u) = n u^(n-1), (K, len(sizes)), for intervals (K,) in [0, 1]."""
    n, low, high = sizes[None], low[:, None], np.maximum(high, 1e-300)[:, None]
    width, middle = np.maximum(high - low, 1e-300), (low + high) / 2

    def entropy(u):  # antiderivative of f log f
        return u**n * (np.log(n) + (n - 1) * np.log(np.maximum(u, 1e-300)) - (n - 1) / n)

    mass = high**n - low**n
    exact = entropy(high) - entropy(low) - mass * np.log(np.maximum(mass, 1e-300) / width)
    narrow = n * (n - 1) ** 2 * middle ** (n - 3) * width**3 / 24  # the same to third order, without cancellation
    return np.maximum(np.where(n * width < 1e-3 * high, narrow, exact), 0.0) / width


def pass_at_k(right, ks: Sequence[int]) -> np.ndarray:
    """Probability that one of k completions is right, of each prompt and each k of `ks`, (prompts, len(ks)).

    `right` (prompts, N) is 1 or 0. Unbiased: 1 - C(N - c, k) / C(N, k) where c of N are right, in whole numbers. Chen
    et al. 2021, eq. 1. WorkbenchError for k outside 1..N and for verdicts other than 1 and 0.
    """
    right = checked_verdicts(right)
    pool = right.shape[1]
    all_wrong = [[math.comb(pool - c, k) / math.comb(pool, k) for k in _sizes(ks, pool)] for c in range(pool + 1)]
    return 1 - np.array(all_wrong)[right.sum(axis=1).astype(int)]


def majority_vote(answers, right, ns: Sequence[int], *, seed: int = 0, orders: int = 256) -> np.ndarray:
    """Probability that what most of n completions answer is right, of each prompt and n of `ns`, (prompts, len(ns)).

    `answers` (prompts, N) are texts, "" where a completion gives none and has no vote; `right` (prompts, N) is 1 or 0.
    Means over the beginnings of about so many `orders` of the N, in which each is as often first; tied answers share
    the win. Wang et al. 2023, without weights. WorkbenchError as in `pass_at_k`.
    """
    right, rng = checked_verdicts(right), np.random.default_rng(seed)
    pool, won = right.shape[1], np.zeros((len(right), len(ns)))
    chosen = np.array(_sizes(ns, pool)) - 1
    turned = (np.arange(pool)[:, None] + np.arange(pool)) % pool  # all rotations of one order
    for row, (said, verdicts) in enumerate(zip(np.asarray(answers, dtype=object), right, strict=True)):
        names, of = np.unique(said.astype(str), return_inverse=True)
        worth, votes = (
            np.bincount(of, weights=verdicts) / np.bincount(of),
            np.eye(len(names), dtype=np.int16)[of] * (names != ""),
        )
        for order in (rng.permutation(pool) for _ in range(-(-orders // pool))):
            counts = votes[order[turned]].cumsum(axis=1)[:, chosen]  # (N, len(ns), different answers)
            most = (counts == counts.max(axis=-1, keepdims=True)) & (counts > 0)
            won[row] += ((most * worth).sum(-1) / np.maximum(most.sum(-1), 1)).mean(axis=0)
    return won / -(-orders // pool)


def accuracy_by_choice(right, answers, judges: Mapping[str, Sequence], ns: Sequence[int], *, seed: int = 0):
    """How often one chosen of n completions is right: columns n, choice, accuracy, accuracy_se (over prompts).

    Choices: an oracle (pass@n), the majority of `answers`, the favourite of each of `judges` (scores by name), chance.
    """
    right = checked_verdicts(right)
    rates = {"oracle (pass@n)": pass_at_k(right, ns), "majority vote": majority_vote(answers, right, ns, seed=seed)}
    rates |= {f"best by {name}": expected_of_best(scores, right, ns) for name, scores in judges.items()}
    rates["one at random"] = np.repeat(right.mean(axis=1, keepdims=True), len(ns), axis=1)
    parts = []
    for choice, rate in rates.items():
        mean, error = mean_and_error(rate)
        parts.append(pd.DataFrame({"n": list(ns), "choice": choice, "accuracy": mean, "accuracy_se": error}))
    return pd.concat(parts, ignore_index=True)


def checked_verdicts(right, *, name: str = "right") -> np.ndarray:
    """`right` (prompts, N) as numbers; WorkbenchError says what `name` holds where one is neither 1 nor 0."""
    right = _sample_matrix(right, name="right")
    if other := set(np.unique(right)) - {0.0, 1.0}:
        raise WorkbenchError(f"{name} holds {other.pop():g}: give 1 for each completion that passes and 0 for others.")
    return right


def powers_of_two(largest: int) -> list[int]:
    """1, 2, 4, ... up to `largest`, which is always the last."""
    sizes = [2**exponent for exponent in range(largest.bit_length()) if 2**exponent <= largest]
    return sizes if sizes[-1] == largest else [*sizes, largest]
