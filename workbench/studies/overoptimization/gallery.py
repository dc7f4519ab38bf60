"""Hacked completions: what the proxy came to like and gold did not, a case for each way in which gold fell."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

COMPONENT = "gold_"


def hacked_samples(paths: Mapping[str, pd.DataFrame], *, count: int = 6) -> pd.DataFrame:
    """One prompt per component of gold that fell, the reference's answer beside that of the policy at the end.

    `paths` are tables `path` with gold_<component>, by run. Components come by how much they fell on average, `count`
    at most; each is shown where it fell most among the answers that the proxy likes better and gold less than before,
    on a prompt that no row above shows, where there is one.
    Columns fell (the component), prompt, before, after, proxy, gold and component (changes), where (share of all
    prompts in which that component fell), run. Without rows where nothing was hacked or no component is known.
    """
    changes = [_changes(path).assign(run=run) for run, path in paths.items()]
    changes = pd.concat(changes, ignore_index=True) if changes else pd.DataFrame()
    names = [name for name in changes if name.startswith(COMPONENT) and changes[name].notna().all()]
    hacked = changes[(changes["proxy"] > 0) & (changes["gold"] < 0)] if names else changes
    means = changes[names].mean().sort_values() if names else pd.Series(dtype=float)
    rows = []
    for name in means.index[means < 0]:
        fell = hacked[hacked[name] < 0].sort_values(name)
        new = fell[~fell["prompt"].isin([row["prompt"] for row in rows])]
        if len(fell) and len(rows) < count:
            case = (new if len(new) else fell).iloc[0]
            row = {"fell": name.removeprefix(COMPONENT), "prompt": case["prompt"], "before": case["before"]}
            row |= {"after": case["after"], "proxy": case["proxy"], "gold": case["gold"], "component": case[name]}
            rows.append(row | {"where": float((changes[name] < 0).mean()), "run": case["run"]})
    return pd.DataFrame(rows)


def _changes(path: pd.DataFrame) -> pd.DataFrame:
    """Prompt by prompt, what changed from the first step to the last: the texts, and every score's difference."""
    first, last = (path[path["step"] == step].set_index("row") for step in (path["step"].min(), path["step"].max()))
    if "gold" not in path or "proxy" not in path:
        return pd.DataFrame()
    scores = ["proxy", "gold", *(name for name in path if name.startswith(COMPONENT))]
    changes = last[scores] - first[scores]
    return changes.assign(prompt=first["prompt"], before=first["completion"], after=last["completion"]).reset_index()
