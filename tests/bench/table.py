"""What the benchmark prints."""

COLUMNS = (
    "model",
    "method",
    "peer",
    "seconds per step, peer / ours",
    "ratio (lowest to highest)",
    "gate",
    "share of peak, peer / ours",
    "memory, ours / peer",
    "losses differ by",
)


def line(row: dict) -> str:
    """One comparison for the terminal."""
    start = f"{row['model']:12} {row['case']:22}"
    if "ratio" not in row:
        return f"{start} losses differ, so no ratio: {row['differences']}"
    gate = f"gate {row['gate']:.1f}" if row["gate"] else "no gate"
    shares = f"share of peak {row['peer_share']:.0%} / {row['ours_share']:.0%}"
    memory = f"memory {row['ours_memory'] / row['peer_memory']:.2f}"
    phases = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in row["phases"].items())
    return f"{start} {spread(row)}, {gate}; {shares}; {memory}{'; ' + phases if phases else ''}"


def markdown(rows: list[dict], heading: str) -> str:
    """The whole table under its heading."""
    lines = [heading, "", _joined(COLUMNS), _joined(["---"] * len(COLUMNS))]
    return "\n".join([*lines, *(_joined(_cells(row)) for row in rows)]) + "\n"


def spread(row: dict) -> str:
    """The median ratio with its extremes over the rounds."""
    return f"{row['ratio']:.2f} ({min(row['ratios']):.2f} to {max(row['ratios']):.2f})"


def _cells(row: dict) -> list[str]:
    agreement = f"{max(row['differences'].values()):.0e}" if row.get("differences") else "not compared"
    start = [row["model"], row["case"], row["peer"]]
    if "ratio" not in row:
        return [*start, "", "losses disagree", "", "", "", agreement]
    gate = f"{row['gate']:.1f} {'met' if row['ratio'] >= row['gate'] else 'missed'}" if row["gate"] else ""
    return [
        *start,
        f"{row['peer_seconds']:.3f} / {row['ours_seconds']:.3f}",
        spread(row),
        gate,
        f"{row['peer_share']:.0%} / {row['ours_share']:.0%}",
        f"{row['ours_memory'] / row['peer_memory']:.2f}",
        agreement,
    ]


def _joined(cells) -> str:
    return "| " + " | ".join(cells) + " |"
