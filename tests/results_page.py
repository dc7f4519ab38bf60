"""The tables of notebooks/RESULTS.md, filled in from what runs saved (`make results`).

A table stands between two comments: the first names the run's folder, its table and perhaps the columns to show, as in
`<!-- table runs/units/12_compare_runs over_seeds number,mean -->`. What was not run here stays as it is.
"""

import re
import sys
from pathlib import Path

import pandas as pd

from workbench import WorkbenchError
from workbench.runs import Run

HERE = Path(__file__).parent
PAGE = HERE.parent / "notebooks/RESULTS.md"
TABLE = re.compile(r"<!-- table (\S+) (\w+)(?: (\S+))? -->\n.*?<!-- end -->\n", re.DOTALL)


def written(value: object) -> str:
    """A cell: whole numbers whole, others to two decimals, what is missing as nothing."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "" if value is None else str(value).replace("|", "\\|")
    if pd.isna(value):
        return ""
    small = 0 < abs(value) < 0.005
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.1e}" if small else f"{value:.2f}"


def table_of(run: Run, name: str, columns: str) -> str:
    """A run's table in Markdown, and under it which commit and machine made it, when."""
    frame = run.table(name)
    frame = frame[columns.split(",")] if columns else frame
    cells = [[written(value) for value in row] for row in frame.itertuples(index=False)]
    lines = [f"| {' | '.join(line)} |" for line in (list(frame), ["---"] * len(frame.columns), *cells)]
    commit = (run.record.get("git") or {}).get("commit", "no checkout")[:10]
    return "\n".join(lines) + f"\n\n*Commit {commit}, {run.record['platform']}, {run.record['started_at'][:10]}.*\n"


def most_runs(table: str) -> int:
    """How many runs or units the best founded row of a table in Markdown is a mean of, 0 where none says so."""
    rows = [re.split(r"(?<!\\)\|", line.strip("|")) for line in table.splitlines() if line.startswith("|")]
    told = [place for place, name in enumerate(rows[0] if rows else []) if name.strip() in ("runs", "units")]
    return max((int(row[place]) for row in rows[2:] for place in told if row[place].strip().isdigit()), default=0)


def filled(text: str, root: Path) -> tuple[str, list[str]]:
    """The page with each table whose run is in `root` made anew, and a sentence for each that can not be."""
    absent = []

    def fill(block: re.Match) -> str:
        folder, name, columns = block.groups()
        try:
            table = table_of(Run.read(root / folder), name, columns or "")
        except WorkbenchError as error:
            absent.append(str(error))
            return block[0]
        if most_runs(table) < most_runs(block[0]):
            absent.append(f"{folder} is of {most_runs(table)} runs, the table on the page of {most_runs(block[0])}.")
            return block[0]
        return f"{block[0].splitlines()[0]}\n{table}<!-- end -->\n"

    return TABLE.sub(fill, text), absent


if __name__ == "__main__":
    page, absent = filled(PAGE.read_text(encoding="utf-8"), Path(sys.argv[1]) if sys.argv[1:] else HERE.parent)
    PAGE.write_text(page, encoding="utf-8")
    print(*(f"Kept as it was: {sentence}" for sentence in dict.fromkeys(absent)), sep="\n")
