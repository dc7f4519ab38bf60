"""What evaluations say: their means, and the same prompts answered by several policies side by side."""

from collections.abc import Mapping
from numbers import Number

import pandas as pd

from workbench import WorkbenchError
from workbench.analysis.statistics import mean_and_error

# what the rows of each draw of the table `measured` need beside draw and step
NEEDED = {
    "path": ("row", "prompt", "completion", "kl"),
    "evaluation": ("row", "prompt", "completion", "kl", "temperature"),
    "best of n": ("n", "kl"),
    "decided best of n": ("n", "kl"),  # from samples at a low temperature: the control
}
NUMBERS = ("step", "row", "n", "temperature", "kl", "proxy", "gold")
FILLED = ("step", "row", "n", "prompt")  # in every row


def flaw_of(rows: pd.DataFrame, draw: str) -> str:
    """What keeps rows of this draw from being read, such as "no column kl"; "" where nothing does."""
    if missing := [name for name in NEEDED[draw] if name not in rows]:
        return f"no column {', '.join(missing)} in its rows of {draw}"
    for name in rows.columns.intersection([*NUMBERS, "prompt", "completion"]):
        kind, word = (str, "text") if name in ("prompt", "completion") else (Number, "a number")
        known = rows[name].dropna()
        if name in FILLED and len(known) < len(rows):
            return f"a row without {name}"
        if wrong := [value for value in known if not isinstance(value, kind)]:
            return f"{name} {wrong[0]!r}, which is not {word}"
    return ""


def side_by_side(evaluations: Mapping[str, pd.DataFrame], *, count: int = 6, temperature: float = 1.0) -> pd.DataFrame:
    """`count` prompts with each policy's completion and score, last the one that fell most from first to last policy.

    `evaluations` maps names to tables of `evaluate_at_temperatures` over the same prompts. The score is `gold` where it
    was measured, else `proxy`, else none. Prompts come in the order of the tables, one of each `kind` first.
    WorkbenchError where the tables hold other prompts, or not that temperature.
    """
    parts = {name: _at_temperature(frame, temperature, name) for name, frame in evaluations.items()}
    parts = _over_common_prompts(parts)
    first, *_, last = [*parts.values()] * 2
    score = next((name for name in ("gold", "proxy") if all(name in part for part in parts.values())), None)
    order = first.index
    if "kind" in first:  # the n-th prompt of every kind before the (n+1)-th of any
        order = first.groupby("kind").cumcount().sort_values(kind="stable").index
    rows = list(order[:count])
    if score is not None:
        worst = (last[score] - first[score]).idxmin()
        rows = [*[row for row in rows if row != worst][: count - 1], worst]
    table = {"prompt": first.loc[rows, "prompt"]}
    for name, part in parts.items():
        table[name] = part.loc[rows, "completion"]
        if score is not None:
            table[f"{name} {score}"] = part.loc[rows, score].round(2)
    return pd.DataFrame(table).reset_index(drop=True)


def _at_temperature(frame: pd.DataFrame, temperature: float, name: str) -> pd.DataFrame:
    part = frame[frame["temperature"] == temperature].reset_index(drop=True)
    if part.empty:
        measured = frame["temperature"].unique().tolist()
        raise WorkbenchError(f"{name!r} was not measured at temperature {temperature}: choose one of {measured}.")
    return part


def _over_common_prompts(parts: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The tables cut to the length of the shortest; WorkbenchError unless they hold the same prompts up to there."""
    shortest = min(map(len, parts.values()))
    cut = {name: part.head(shortest) for name, part in parts.items()}
    (name, first), *others = cut.items()
    for other, part in others:
        if part["prompt"].tolist() != first["prompt"].tolist():
            raise WorkbenchError(f"{other!r} answers other prompts than {name!r}: evaluate both on the same prompts.")
    return cut


def gold_components(world, samples: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Mean of each component of `world`'s gold reward per run: columns run, component, value, value_se.

    `samples` maps run names to tables with prompt, completion and finished.
    """
    rows = []
    for run, frame in samples.items():
        scored = zip(frame["prompt"], frame["completion"], frame["finished"], strict=True)
        parts = pd.DataFrame([world.gold_components(*row) for row in scored])
        for component in parts:
            mean, error = mean_and_error(parts[component])
            rows.append({"run": run, "component": component, "value": float(mean), "value_se": float(error)})
    return pd.DataFrame(rows)


def summarise_evaluation(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per temperature: `count`, and mean and standard error over prompts of every score that was measured.

    Scores are `gold`, `proxy`, `kl` (nats), `completion_length` (tokens); errors are named `<score>_se`.
    """
    rows = []
    for temperature, part in frame.groupby("temperature", sort=False):
        row = {"temperature": temperature, "count": len(part)}
        for name in ("gold", "proxy", "kl", "completion_length"):
            if name in part and part[name].notna().all():
                row[name], row[f"{name}_se"] = map(float, mean_and_error(part[name]))
        rows.append(row)
    return pd.DataFrame(rows)


def key_numbers(before: pd.DataFrame, after: pd.DataFrame) -> dict[str, float]:
    """What a policy gained over its reference, for `Run.summary`: gold gains first, then KL and scores at T = 1.

    Both are tables of `evaluate_at_temperatures` over the same prompts; without gold there are no gains.
    """
    first, last = (summarise_evaluation(table).set_index("temperature") for table in (before, after))
    numbers = {}
    if "gold" in last:
        for temperature, name in ((1.0, "T = 1"), (0.0, "greedy")):
            numbers[f"gold gain at {name}"] = float(last.loc[temperature, "gold"] - first.loc[temperature, "gold"])
    measured = [name for name in ("kl", "gold", "proxy") if name in last]
    return numbers | {f"{name} at T = 1": float(last.loc[1.0, name]) for name in measured}
