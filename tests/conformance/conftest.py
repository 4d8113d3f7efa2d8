"""Puts the helpers of tests/support on the path; boxes for the suite of transports."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import hands
from places import APART, OPEN_S, TESTED, Open, Place, connect, each, standing

from dlplatform.memorybox.cluster import Cluster


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Inside an MPI job keep to what runs over it."""
    if hands.crew is not None:
        calls = ((item, getattr(item, "callspec", None)) for item in list(items))
        items[:] = [item for item, call in calls if call and "mpi" in call.params.values()]


@pytest.fixture(scope="session", params=each(TESTED))
def place(request: pytest.FixtureRequest) -> Place:
    return standing(request.param)


@pytest.fixture(scope="session", params=each(APART))
def apart(request: pytest.FixtureRequest) -> Place:
    return standing(request.param)


numbers = itertools.count()


@pytest.fixture
def job() -> str:
    return f"job-{next(numbers)}"


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def join(place: Place, job: str, opened: ExitStack) -> Open:
    """Open a cluster on the first ``boxes`` boxes, closed at the end of the test."""

    def open_cluster(boxes: int = 1, job: str = job, timeout_s: float = OPEN_S) -> Cluster:
        cluster = connect(place, job, boxes, timeout_s)
        opened.callback(cluster.close)
        return cluster

    return open_cluster
