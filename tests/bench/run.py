"""Times every case against its peer in alternating rounds and writes one table. See `make bench`."""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import cases
import operations
import table

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PEERS = {"ppo": "trl-1.12.0"}  # every other method: trl-1.16.0
SMALL = ("gpt2-128x4", "llama-128x4")
WIDE = ("llama-384x6",)
WIDE_CASES = ("ppo", "grpo", "dpo, variable", "sft, variable", "generate")
AGREEMENT = 2e-3  # largest relative difference of losses before a ratio is printed
# TRL's PPO rewards a text that ended early one token after its end, and counts that token's value.
AGREEMENT_OF = {"ppo": 1e-2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", default="", help="comma-separated; all that suit the machine unless given")
    parser.add_argument("--cases", default="", help="semicolon-separated; all unless given")
    parser.add_argument("--peers", type=Path, default=ROOT / ".peers", help="folder that make peers filled")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench")
    given = parser.parse_args()
    device = device_here()
    plan = chosen(given.models, given.cases, device)
    missing = sorted({peer(name) for _, name in plan if not python_of(given.peers, name).exists()})
    if missing:
        sys.exit(f"The peers {', '.join(missing)} are not installed in {given.peers}: run make peers.")
    given.out.mkdir(parents=True, exist_ok=True)
    peak = measured_peak(device)
    setting = "one thread, fp32, CPU seconds" if device == "cpu" else "one GPU, bf16, wall seconds"
    heading = (
        f"{machine()}, {setting}, measured peak {peak / 1e9:.0f} GFLOP/s; Python {platform.python_version()}, "
        f"{time.strftime('%Y-%m-%d')}; median of {given.rounds} alternating rounds."
    )
    print(f"{len(plan)} comparisons. {heading}", flush=True)
    rows = []
    for model, name in plan:
        rows.append(compare(model, name, given, device, peak))
        print(table.line(rows[-1]), flush=True)
        page = table.markdown(rows, heading)
        write_whole(given.out / "bench.md", page)
        write_whole(given.out / "bench.json", json.dumps({"machine": machine(), "peak": peak, "rows": rows}, indent=1))
    print("\n" + page)


def chosen(models: str, names: str, device: str) -> list[tuple[str, str]]:
    """(model, case) pairs to measure."""
    if device != "cpu":
        every = [(model, name) for model in ("llama-0.5b", "llama-1.5b") for name in cases.DEVICE_CASES]
    else:
        every = [(model, name) for model in SMALL for name in cases.CASES]
        every += [(model, name) for model in WIDE for name in WIDE_CASES]
    kept_models, kept_names = (
        [part.strip() for part in text.split(mark)] for text, mark in ((models, ","), (names, ";"))
    )
    for kept, known in ((kept_models, cases.MODELS), (kept_names, cases.CASES)):
        for part in kept:
            if part and part not in known:
                sys.exit(f"There is no {part!r} to measure: choose from {', '.join(known)}.")
    return [pair for pair in every if (not models or pair[0] in kept_models) and (not names or pair[1] in kept_names)]


def compare(model: str, name: str, given, device: str, peak: float) -> dict:
    """One line of the table: agreement first, then rounds in which the two sides take turns to go first."""
    common = ["--case", name, "--model", model, "--folder", str(given.out / "models"), "--device", device]
    row = {"model": model, "case": name, "peer": peer(name), "gate": cases.CASES[name].gate}
    with (
        Side([str(python_of(given.peers, name)), str(HERE / "peer.py"), *common]) as theirs,
        Side([sys.executable, str(HERE / "ours.py"), *common]) as ours,
    ):
        if cases.CASES[name].method != "generate":
            dump = str(given.out / "replay.json")
            theirs.ask(dump=dump)
            row["differences"] = ours.ask(replay=dump)["differences"]
            if not max(row["differences"].values()) <= AGREEMENT_OF.get(cases.CASES[name].method, AGREEMENT):
                return row | {"disagree": True}
        found: dict[str, list[dict]] = {"peer": [], "ours": []}
        for number in range(given.rounds):
            turns = [("peer", theirs), ("ours", ours)]
            for side, process in turns if number % 2 else turns[::-1]:
                found[side].append(process.ask())
    return row | summary(
        found, operations.useful_operations(cases.MODELS[model], cases.CASES[name], device), device, peak
    )


def summary(found: dict[str, list[dict]], work: float, device: str, peak: float) -> dict:
    """Medians over the rounds of both sides: seconds per step, ratio, share of the peak, memory, our phases."""
    clock = "cpu" if device == "cpu" else "wall"
    seconds = {side: [statistics.mean(run[clock][1:]) for run in runs] for side, runs in found.items()}
    ratios = [theirs / ours for theirs, ours in zip(seconds["peer"], seconds["ours"], strict=True)]
    row = {"ratio": statistics.median(ratios), "ratios": ratios, "phases": found["ours"][-1].get("phases") or {}}
    for side, runs in found.items():
        row |= {
            f"{side}_seconds": statistics.median(seconds[side]),
            f"{side}_share": work / statistics.median(seconds[side]) / peak,
            f"{side}_memory": max(run["memory"] for run in runs),
        }
    return row


class Side:
    """One side's process, which waits between its turns."""

    def __init__(self, command: list[str]):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        self.command, self.errors = command, tempfile.TemporaryFile("w+")  # noqa: SIM115
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen(command, text=True, env=environment, **pipes)

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        self.process.stdin.close()
        self.process.wait()

    def ask(self, **command) -> dict:
        """What it reports on this command; ends the benchmark with what it said where it fails."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("RESULT "):
                return json.loads(line.removeprefix("RESULT "))
        self.errors.seek(0)
        sys.exit(f"{' '.join(self.command)} failed:\n{self.errors.read()[-2000:]}")


def measured_peak(device: str) -> float:
    """Operations per second of one large matrix product on one core, or on the GPU in bf16; best of twenty."""
    import torch

    torch.set_num_threads(1)
    size, dtype = (1024, torch.float32) if device == "cpu" else (8192, torch.bfloat16)
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    clock = 0 if device == "cpu" else 1
    seconds = []
    for _ in range(20):
        start = cases.now(device)[clock]
        matrix @ matrix
        seconds.append(cases.now(device)[clock] - start)
    return 2 * size**3 / min(seconds)


def device_here() -> str:
    """ "cuda" where torch sees one, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def peer(name: str) -> str:
    return PEERS.get(cases.CASES[name].method, "trl-1.16.0")


def python_of(peers: Path, name: str) -> Path:
    return peers / peer(name) / "bin" / "python"


def machine() -> str:
    """The processor's name as the system tells it, and how many cores."""
    info = Path("/proc/cpuinfo")
    names = (
        [text.split(":", 1)[1].strip() for text in info.read_text().splitlines() if text.startswith("model name")]
        if info.exists()
        else []
    )
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def write_whole(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


if __name__ == "__main__":
    main()
