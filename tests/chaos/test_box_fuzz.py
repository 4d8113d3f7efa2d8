"""Frames that are wrong in every way: a box lives, answers, stays small, and keeps its secrets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import pytest
from chaosparts.hostile import Mutator
from seldom import LONG

FUZZ = Path(__file__).parents[2] / "scripts" / "fuzz_box.py"
KEYS = ["a" * 32, "b" * 32, "c" * 32]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [pytest.param(("--seed", "5"), marks=LONG), ("--seed", "6", "--journal")]
)
def test_thirty_thousand_frames_harm_nobody(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, str(FUZZ), "--frames", "30000", *words], capture_output=True, text=True,
        timeout=250,
    )  # fmt: skip
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == 0 and found["wrong"] == [], found["wrong"]
    assert found["frames"] >= 30_000 and min(found["strangers"], found["mirrors"]) >= 300
    assert found["requests_seen"] > 8000, "most requests are understood"
    assert 0.2 < found["refused"] / found["requests_seen"] < 0.95


def test_the_same_seed_makes_the_same_frames() -> None:
    one, other, third = (Mutator(seed, KEYS) for seed in ("1", "1", "2"))
    batch = one.batch(50, slowly=True)
    assert batch == other.batch(50, slowly=True) != third.batch(50, slowly=True)
    assert one.records(5) == other.records(5)
    assert one.stranger(b"n" * 32) == other.stranger(b"n" * 32)


def test_some_requests_are_right_and_some_are_not() -> None:
    mutator = Mutator("1", KEYS)
    frames = [(mutator.command(), mutator.rng.getstate()) for _ in range(400)]
    right = [msgpack.packb(frame) for frame, _ in frames]
    changed = [msgpack.packb(mutator.mutated(dict(frame))) for frame, _ in frames]
    share = sum(one == other for one, other in zip(right, changed, strict=True)) / len(frames)
    assert 0.1 < share < 0.5
