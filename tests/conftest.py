"""Markers and options of all tests; the long ones run only with --slow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not list(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("no CUDA device")
    rdma = Path("/sys/class/infiniband")
    if item.get_closest_marker("rdma") and not (rdma.is_dir() and any(rdma.iterdir())):
        pytest.skip("no RDMA device")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the variables of a launcher that runs the tests, and of earlier tests."""
    for name in list(os.environ):
        if name.startswith("DLP_") and name != "DLP_TORCH":
            monkeypatch.delenv(name)
