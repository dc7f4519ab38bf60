"""Makes the oracles again with the libraries they come from, compares them with the frozen ones, runs their tests.

    make conformance    builds what is missing in .peers first

Every tests/oracles/make_*.py names its library as PEER = "trl==1.16.0" and writes its JSON files into a given folder.
"""

import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
ORACLES, TESTS, PEERS = ROOT / "tests" / "oracles", ROOT / "tests", ROOT / ".peers"
TOLERANCE = 1e-5
FLOOR = 0.01  # smaller numbers are compared as parts of it: rounding is no difference
QUIET = {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def peer_of(maker: Path) -> str:
    """The requirement that a maker's header names, `trl==1.16.0`."""
    found = re.search(r'^PEER = "([^"]+)"', maker.read_text(), re.MULTILINE)
    if not found:
        sys.exit(f'{maker.name} does not say what it is run with: give it a line like PEER = "trl==1.16.0".')
    return found[1]


def remade(maker: Path, folder: Path) -> list[Path]:
    """The files that a maker writes into an empty folder."""
    folder.mkdir()
    python = PEERS / peer_of(maker).replace("==", "-") / "bin" / "python"
    if not python.exists():
        sys.exit(f"{peer_of(maker)} is not installed in .peers: run make peers.")
    result = subprocess.run(
        [python, maker, folder], cwd=ROOT, env=os.environ | QUIET, capture_output=True, text=True, check=False
    )
    if result.returncode:
        sys.exit(f"{maker.name} failed with {peer_of(maker)}:\n{result.stderr[-3000:]}")
    return sorted(folder.glob("*.json"))


def differences(made, frozen) -> Iterator[float]:
    """Relative difference of every entry, infinite where the two differ in shape, name, text or truth."""
    if isinstance(made, dict) and isinstance(frozen, dict) and made.keys() == frozen.keys():
        for name, value in made.items():
            yield from differences(value, frozen[name])
    elif isinstance(made, list) and isinstance(frozen, list) and len(made) == len(frozen):
        for one, other in zip(made, frozen, strict=True):
            yield from differences(one, other)
    elif type(made) is float and type(frozen) is float and math.isfinite(made) and math.isfinite(frozen):
        yield abs(made - frozen) / max(abs(frozen), FLOOR)
    else:
        yield 0.0 if str(made) == str(frozen) else math.inf


def compared(made: Path, frozen: Path) -> tuple[int, float]:
    """Number of entries and the largest relative difference; versions may differ."""
    if not frozen.exists():
        return 0, math.inf
    pair = [json.loads(path.read_text()) for path in (made, frozen)]
    for content in pair:
        content.pop("made_with")
    found = list(differences(*pair))
    return len(found), max(found)


def readers(names: list[str]) -> list[Path]:
    """The test files that read one of these oracles; their tests that do have trl in their names."""
    return [path for path in sorted(TESTS.glob("test_*.py")) if any(name in path.read_text() for name in names)]


def main() -> int:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for maker in sorted(ORACLES.glob("make_*.py")):
            print(f"{maker.name} with {peer_of(maker)}", flush=True)
            for made in remade(maker, Path(folder) / maker.stem):
                rows.append((made.name, peer_of(maker), *compared(made, ORACLES / made.name)))
    unmade = {path.name for path in ORACLES.glob("*.json")} - {name for name, *_ in rows}
    rows += [(name, "nothing", 0, math.inf) for name in sorted(unmade)]
    print(f"\n{'oracle':20} {'made with':12} {'entries':>7}   largest relative difference (at most {TOLERANCE:g})")
    for name, peer, entries, largest in rows:
        print(f"{name:20} {peer:12} {entries:7}   {largest:.1e}{'' if largest <= TOLERANCE else '   DIFFERS'}")
    print(flush=True)
    files = readers([name for name, *_ in rows])
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "trl", *files], cwd=ROOT, env=os.environ | QUIET
    )
    return tests.returncode or int(any(largest > TOLERANCE for *_, largest in rows))


if __name__ == "__main__":
    sys.exit(main())
