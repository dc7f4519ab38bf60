"""What a recipe's stages did to each skill, compared within units, and what each of them cost."""

from __future__ import annotations

import html
from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from workbench import WorkbenchError
from workbench.analysis.effects import mean_effects
from workbench.plots.theme import PALETTE, require_columns, spoken, styled
from workbench.runs import Run, names_in
from workbench.studies.measurements import by_experiment


def read_contrasts(text: str) -> list[tuple[str, str, list[str]]]:
    """Which two experiments are compared by which skills, from "A - B: skill, skill; C - D: ..."; [] for ""."""
    asked = []
    for line in filter(None, map(str.strip, text.split(";"))):
        pair, _, skills = line.partition(":")
        first, _, second = (name.strip() for name in pair.partition(" - "))
        names = names_in(skills)
        if not (first and second and names):
            raise WorkbenchError(f'contrasts holds {line!r}: write "08_dpo - 02_sft: sums, gold; ...".')
        asked.append((first, second, names))
    return asked


def skill_effects(table: pd.DataFrame, contrasts: str, *, temperature: float = 1.0) -> pd.DataFrame:
    """What `contrasts` ask of the table `skills`: rows of `mean_effects`, judged together; `group` is what is compared.

    A skill takes all of its parts, "sums: right" only that. Differences are taken within units; an experiment that was
    run once per world, such as pretraining, stands for all of its seeds. No rows for "". WorkbenchError lists
    experiments or skills where one is not in the table.
    """
    rows = table[table["temperature"].fillna(temperature) == temperature]
    rows = rows.assign(level=rows["skill"] + ": " + rows["part"])
    asked = [(*pair, skill) for *pair, skills in read_contrasts(contrasts) for skill in skills]
    if not asked:
        return pd.DataFrame(columns=["group", "level"])
    differences = pd.concat([_differences(rows, *each) for each in asked], ignore_index=True)
    named = differences.drop_duplicates("effect").set_index("effect")
    found = mean_effects(differences, "effect")
    return found.assign(**{name: found["level"].map(named[name]) for name in ("group", "level")})


def _differences(rows: pd.DataFrame, first: str, second: str, skill: str) -> pd.DataFrame:
    """By how much `first` is above `second` in each part of a skill and unit, column `difference`."""
    experiments, skills = rows["experiment"].unique(), rows["skill"].unique()
    if unknown := [name for name in (first, second) if name not in experiments]:
        raise WorkbenchError(f"contrasts names {unknown[0]!r}: choose from {', '.join(experiments)}.")
    its = rows[(rows["skill"] == skill) | (rows["level"] == skill)]
    if its.empty:
        raise WorkbenchError(f"contrasts names the skill {skill!r}: choose from {', '.join(skills)}.")
    ours, theirs = its[its["experiment"] == first], its[its["experiment"] == second]
    once = not theirs.duplicated(["world", "level"]).any()
    by = ["world", "level"] if once else ["world", "seed", "level"]
    both = ours.merge(theirs, on=by, suffixes=("", "_other"))
    group = f"{spoken(first)} less {spoken(second)}"
    both = both.assign(group=group, effect=f"{group}, " + both["level"])
    return both.assign(difference=both["value"] - both["value_other"])


def stage_costs(runs: Mapping[str, Run]) -> pd.DataFrame:
    """One row per experiment in order of names: notebook, runs, CPU seconds of one run on average, share of all."""
    rows = [
        {"experiment": name, "runs": len(own), "seconds": sum(run.record["cpu_seconds"] for run in own) / len(own)}
        for name, own in by_experiment(runs).items()
        if all("cpu_seconds" in run.record for run in own)
    ]
    costs = pd.DataFrame(rows, columns=["experiment", "runs", "seconds"]).sort_values("experiment", ignore_index=True)
    return costs.assign(share=costs["seconds"] / costs["seconds"].sum())


def plot_stage_costs(costs: pd.DataFrame) -> go.Figure:
    """CPU seconds of every stage of one unit, the first on top, each with its share."""
    require_columns(costs, ["experiment", "seconds", "share"], "plot_stage_costs")
    names = [html.escape(spoken(name)) for name in costs["experiment"]]
    texts = [f"{share:.0%}" for share in costs["share"]]
    bars = go.Bar(
        x=costs["seconds"], y=names, text=texts, orientation="h", marker_color=PALETTE[0], textposition="outside"
    )
    figure = go.Figure(bars.update(hovertemplate="%{y}: %{x:.1f} CPU seconds<extra></extra>"))
    figure.update_xaxes(title="CPU seconds of a run").update_yaxes(autorange="reversed", automargin=True)
    most = costs.loc[costs["seconds"].idxmax()]
    title = f"{spoken(most['experiment'])} takes {most['share']:.0%} of {costs['seconds'].sum():.0f} CPU seconds a unit"
    reading = "Means over units. What several recipes share is made once."
    return styled(figure, title=title, reading=reading, height=180 + 26 * len(costs))
