"""How far a training run went past its best: the peak of gold, and the fall from there. Gao et al. 2022."""

import pandas as pd

from workbench.errors import WorkbenchError


def peak_and_fall(metrics: pd.DataFrame, *, window: int = 10) -> dict[str, float]:
    """Step, KL and gold of a run at its best, and how much lower it ended; nats and gold units.

    The peak is chosen where the running mean of `gold` over `window` training batches is highest, and its gold is read
    from the next measurement on held-out prompts (`held_out_gold`), which had no part in choosing it; so is the end's.
    Keys peak_step, peak_kl, peak_gold, end_gold, fall. Raises WorkbenchError where nothing was measured.
    """
    if "held_out_gold" not in metrics or metrics["held_out_gold"].isna().all():
        raise WorkbenchError("The metrics hold no held_out_gold: this run has no gold reward, or never measured it.")
    running = metrics["gold"].rolling(window, min_periods=1, center=True).mean()
    peak_step = metrics.loc[running.idxmax(), "step"]
    measured = metrics.dropna(subset=["held_out_gold"])
    after = measured[measured["step"] >= peak_step].iloc[0]
    end = measured.iloc[-1]
    return {
        "peak_step": int(after["step"]),
        "peak_kl": float(after["held_out_kl"]),
        "peak_gold": float(after["held_out_gold"]),
        "end_gold": float(end["held_out_gold"]),
        "fall": float(after["held_out_gold"] - end["held_out_gold"]),
    }
