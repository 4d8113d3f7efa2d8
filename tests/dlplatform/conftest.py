"""Puts the helpers of tests/support on the path; boxes for runs, and signals as they were."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from dlplatform.memorybox.process import Boxes


@pytest.fixture(scope="module")
def boxes() -> Iterator[Boxes]:
    with Boxes(2, "shm", "memfd") as started:
        yield started


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
