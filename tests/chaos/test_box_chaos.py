"""Workers and boxes killed, cut, slowed and stopped at random: every element is accounted for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chaosparts.ledger import COUNTERS, LENGTHS, Account, Ledger, Sums, pattern
from seldom import LONG

CHAOS = Path(__file__).parents[2] / "scripts" / "chaos.py"


def chaos(*words: str) -> dict[str, Any]:
    """Run the script; return what it found."""
    done = subprocess.run(
        [sys.executable, str(CHAOS), *words], capture_output=True, text=True, timeout=200
    )
    found: dict[str, Any] = json.loads(done.stdout[: done.stdout.rindex("}") + 1])
    assert done.returncode == 0, found["wrong"] + [done.stderr]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("transport", "seed"), [("tcp", 11), pytest.param("shm", 12, marks=LONG)])
def test_nothing_is_lost_or_doubled_in_boxes_with_journals(transport: str, seed: int) -> None:
    words = ("--minutes", "0.3", "--transport", transport, "--seed", str(seed))
    found = chaos(*words)
    counts = found["counts"]
    assert found["wrong"] == []
    assert found["acknowledged"] > 1000
    assert counts["worker kills"] >= 3
    assert counts["cuts"] >= 10
    assert counts["box restarts"] >= 3, "two of them at the end"
    assert counts["views"] >= 1


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_in_mapped_memory() -> None:
    found = chaos("--minutes", "0.15", "--transport", "mapped", "--seed", "13")
    assert found["wrong"] == []
    assert found["acknowledged"] > 5000
    assert found["counts"]["worker kills"] >= 3 and found["counts"]["views"] >= 3


def test_the_judge_sees_what_is_lost_and_what_is_doubled(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.write("axpy", "small", 2, 10, 5)
    ledger.write("fetch", "small", 1, 12, 1)
    ledger.write("add", "red", 3)
    ledger.write("axpy", "one", 1, 0, 1)  # nobody knows how this one ended
    account = Account().take([tmp_path / "ledger"])
    assert (account.operations, account.last) == (3, 1)
    right = {name: np.zeros(n) for name, n in LENGTHS.items()}
    right["small"][10:15] = 2 * pattern(10, 5)
    right["small"][12] += pattern(12, 1)[0]
    counters = dict.fromkeys(COUNTERS, 0) | {"red": 3}
    assert account.wrong(right, counters) == []
    assert account.wrong({**right, "one": np.ones(1)}, counters) == []
    assert "doubled: 1 of 1" in account.wrong({**right, "one": np.full(1, 2.0)}, counters)[0]
    lost = right["small"].copy()
    lost[14] -= 1
    assert "lost: 1 of 1000" in account.wrong({**right, "small": lost}, counters)[0]
    assert "counter red: 2" in account.wrong(right, {**counters, "red": 2})[0]
    assert Sums().buffer("first").sum() == 0
