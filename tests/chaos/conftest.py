"""Puts tests/support and scripts on the path; boxes and clusters that end with their test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "scripts")]

SECRET = "x" * 32


@pytest.fixture
def start() -> Iterator[Callable[..., Any]]:
    """Start a box: ``start(*options, bind=...)``."""
    from chaosparts.boxes import Box

    with ExitStack() as stack:

        def one(*options: str, bind: str = "tcp://127.0.0.1:0", **more: Any) -> Box:
            box = Box(bind, SECRET, options, **more)
            stack.callback(box.close)
            return box

        yield one


@pytest.fixture
def relayed() -> Iterator[Callable[..., Any]]:
    """Put a relay in front of an address; ask for it before ``join``, whose goodbyes need it."""
    from relay import Relay

    with ExitStack() as stack:
        yield lambda address: stack.enter_context(Relay(address))


@pytest.fixture
def join() -> Iterator[Callable[..., Any]]:
    """Open boxes: ``join(address, ..., job=..., timeout_s=..., replicas=...)``."""
    from dlplatform.memorybox.cluster import Cluster

    with ExitStack() as stack:

        def one(*boxes: str, job: str = "job", timeout_s: float = 20.0, **more: Any) -> Cluster:
            cluster = Cluster(boxes, job, SECRET.encode(), timeout_s, **more)
            stack.callback(cluster.close)
            return cluster

        yield one
