"""Markers and options of all tests; the long ones run only with --slow.

Those marked rdma run here where there is a device; elsewhere in a guest that has one, if --slow
is given (tests/support/guest.py).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))

from guest import InGuest, Outcomes, has_device, moved


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")
    parser.addoption("--long", action="store_true", help="all of rdma in the guest: 15 minutes")
    parser.addoption("--outcomes", metavar="FILE", help="append a line of JSON for every test")


def pytest_configure(config: pytest.Config) -> None:
    if file := config.getoption("--outcomes"):
        config.pluginmanager.register(Outcomes(Path(file)))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        items[:] = items if has_device() else moved(items, config.getoption("--long"))
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not list(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("no CUDA device")
    if isinstance(item, InGuest):
        return
    if item.get_closest_marker("rdma") and not has_device():
        pytest.skip("no RDMA device; with --slow it runs in a guest that has one")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the variables of a launcher that runs the tests, and of earlier tests."""
    for name in list(os.environ):
        if name.startswith("DLP_") and name != "DLP_TORCH":
            monkeypatch.delenv(name)
