"""Best-of-n: draw n completions of a prompt, keep the one the proxy reward likes most."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from workbench.analysis.statistics import finite_array, mean_and_error
from workbench.errors import WorkbenchError


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
    proxy = _sample_matrix(proxy, name="proxy")
    weights = _rank_weights(proxy.shape[1], ns)  # (N, len(ns))
    order = np.argsort(proxy, axis=1)
    ranked = np.take_along_axis(proxy, order, axis=1)
    curve = pd.DataFrame({"n": list(ns), "kl": [best_of_n_kl(n) for n in ns]})
    curve["proxy"], curve["proxy_se"] = mean_and_error(ranked @ weights)
    if gold is not None:
        gold = _sample_matrix(gold, name="gold")
        if gold.shape != proxy.shape:
            raise WorkbenchError(f"gold has shape {gold.shape}, proxy {proxy.shape}: score the same samples with both.")
        ranked_gold = _average_over_ties(np.take_along_axis(gold, order, axis=1), ranked)
        curve["gold"], curve["gold_se"] = mean_and_error(ranked_gold @ weights)
        curve["random_gold"] = gold.mean()
    return curve


def _rank_weights(pool: int, ns: Sequence[int]) -> np.ndarray:
    """Probability C(i-1, n-1) / C(N, n) that rank i (1 = lowest) is the best of n out of `pool` = N, (N, len(ns))."""
    wrong = [n for n in ns if not 1 <= n <= pool]
    if wrong or len(ns) == 0:
        raise WorkbenchError(f"ns holds {wrong or 'nothing'}: give sizes between 1 and the {pool} samples per prompt.")
    columns = [[math.comb(rank, n - 1) / math.comb(pool, n) for rank in range(pool)] for n in map(int, ns)]
    return np.array(columns).T


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


def powers_of_two(largest: int) -> list[int]:
    """1, 2, 4, ... up to `largest`, which is always the last."""
    sizes = [2**exponent for exponent in range(largest.bit_length()) if 2**exponent <= largest]
    return sizes if sizes[-1] == largest else [*sizes, largest]


def split_half_peak(proxy, gold, ns: Sequence[int]) -> dict[str, float]:
    """Where gold is highest, found on every other prompt and measured on the rest, and the fall to the largest n.

    A peak read off the curve it was chosen on flatters itself; here n is chosen on even prompts and its gold, and that
    of the largest n, are those of odd prompts. `proxy`, `gold` (prompts, N). Keys n, gold, fall.
    """
    proxy, gold = np.asarray(proxy), np.asarray(gold)
    chosen_on = best_of_n_curve(proxy[::2], gold[::2], ns)
    measured_on = best_of_n_curve(proxy[1::2], gold[1::2], ns).set_index("n")
    n = int(chosen_on.loc[chosen_on["gold"].idxmax(), "n"])
    peak = float(measured_on.loc[n, "gold"])
    return {"n": n, "gold": peak, "fall": peak - float(measured_on["gold"].iloc[-1])}
