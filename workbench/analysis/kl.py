"""How far a policy moved: KL(policy || reference) of whole completions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench.analysis.statistics import MeanAndError, finite_array, mean_and_error
from workbench.errors import WorkbenchError


def sequence_kl_summary(token_kl, completion_mask, prompts: Sequence) -> MeanAndError:
    """Mean sequence KL, nats, and its standard error over prompts.

    `token_kl` (B, R) nats holds any per-token estimate, `completion_mask` (B, R) is True where one counts, `prompts`
    (B,) says which rows share a prompt. A sum over the completion, never a mean; WorkbenchError for unequal shapes.
    """
    mask = np.asarray(completion_mask, dtype=bool)
    if mask.shape != np.shape(token_kl):
        raise WorkbenchError(
            f"completion_mask has shape {mask.shape}, token_kl {np.shape(token_kl)}: give one mask value per token."
        )
    counted = np.where(mask, np.asarray(token_kl, dtype=float), 0.0)  # padding may hold anything, NaN included
    return mean_and_error(finite_array(counted, name="token_kl").sum(axis=1), clusters=prompts)
