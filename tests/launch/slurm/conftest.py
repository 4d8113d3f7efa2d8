"""One Slurm cluster for all tests here, and long jobs that run in it meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

from slurmhere import LIMIT, SIX, Followed, Here


@pytest.fixture(scope="session")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    cluster = Here(tmp_path_factory.mktemp("cluster"), 8)
    yield cluster
    cluster.down()


@pytest.fixture(scope="session")
def long(here: Here, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Followed]]:
    """Start what takes long by waiting; the tests that look at it come last."""
    started = {}
    for name, words in {"limit": (*LIMIT, "task.slow_s=0.1"), "six": SIX}.items():
        started[name] = here.follow(*words, cwd=tmp_path_factory.mktemp(name))
    yield started
    for one in started.values():
        one.end()


@pytest.fixture(autouse=True)
def _long_first(request: pytest.FixtureRequest) -> None:
    """Start the long ones before the first of the slow tests."""
    if request.node.get_closest_marker("slow"):
        request.getfixturevalue("long")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that look at the long jobs behind the others of this folder."""
    places = [n for n, item in enumerate(items) if Path(__file__).parent in item.path.parents]
    ours = sorted((items[n] for n in places), key=lambda item: "long" in item.fixturenames)  # type: ignore[attr-defined]
    for place, item in zip(places, ours, strict=True):
        items[place] = item
