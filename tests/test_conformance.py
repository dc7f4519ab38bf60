"""What compares remade oracles with the frozen ones: planted differences are found, and every oracle has its maker."""

import json
import math
import re

import pytest
from conformance.run import ORACLES, ROOT, compared, differences, peer_of, readers

MAKERS = sorted(ORACLES.glob("make_*.py"))


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ({"a": [1.0, 2.0], "b": "x", "c": [True]}, 0.0),
        ({"a": [1.0, 2.0002], "b": "x", "c": [True]}, 1e-4),
        ({"a": [1.0, 2.0, 3.0], "b": "x", "c": [True]}, math.inf),
        ({"a": [1.0, 2.0], "b": "y", "c": [True]}, math.inf),
        ({"a": [1.0, 2.0], "b": "x", "c": [False]}, math.inf),
        ({"a": [1.0, math.nan], "b": "x", "c": [True]}, math.inf),
        ({"a": [1.0, 2], "b": "x", "c": [True]}, math.inf),
        ({"a": [1.0, 2.0], "b": "x"}, math.inf),
        ({"a": 1.0, "b": "x", "c": [True]}, math.inf),
    ],
)
def test_the_largest_difference_is_found(made, expected):
    frozen = {"a": [1.0, 2.0], "b": "x", "c": [True]}
    assert max(differences(made, frozen)) == pytest.approx(expected, rel=1e-6)


def test_rounding_of_numbers_near_zero_is_no_difference():
    assert max(differences([1e-9], [-1e-9])) < 1e-6


def test_versions_may_differ_and_a_missing_oracle_may_not(tmp_path):
    for name, version, value in (("made", "2", 1.0), ("frozen", "1", 1.0)):
        (tmp_path / name).write_text(json.dumps({"made_with": version, "x": [value, 3.0]}))
    assert compared(tmp_path / "made", tmp_path / "frozen") == (2, 0.0)
    assert compared(tmp_path / "made", tmp_path / "nowhere") == (0, math.inf)


def test_make_builds_what_every_maker_asks_for():
    (line,) = [line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("PEERS := ")]
    built = {name.replace("-", "==") for name in line.removeprefix("PEERS := ").split()}
    assert {peer_of(maker) for maker in MAKERS} <= built


@pytest.mark.parametrize("oracle", sorted(ORACLES.glob("*.json")), ids=lambda path: path.stem)
def test_a_frozen_oracle_says_what_made_it(oracle):
    made_with = json.loads(oracle.read_text())["made_with"]
    (maker,) = [maker for maker in MAKERS if oracle.stem in maker.read_text().partition('"""\n')[0]]
    assert peer_of(maker) == f"trl=={made_with['trl']}"


@pytest.mark.parametrize("oracle", sorted(ORACLES.glob("*.json")), ids=lambda path: path.stem)
def test_a_frozen_oracle_is_read_by_a_test_that_conformance_runs(oracle):
    assert any(re.search(r"^def test_\w*trl", path.read_text(), re.MULTILINE) for path in readers([oracle.name]))
