"""Markers and options of all tests; those that take long run only with --slow.

Long forms of what others show, too, need --long besides.

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
    parser.addoption("--long", action="store_true", help="with --slow: long forms, too")
    parser.addoption("--outcomes", metavar="FILE", help="append a line of JSON for every test")


def pytest_configure(config: pytest.Config) -> None:
    if file := config.getoption("--outcomes"):
        config.pluginmanager.register(Outcomes(Path(file)))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    unasked = [name for name in ("slow", "long") if not config.getoption(f"--{name}")]
    out = {item for item in items if any(map(item.get_closest_marker, unasked))}
    config.hook.pytest_deselected(items=list(out))
    items[:] = [item for item in items if item not in out]
    if config.getoption("--slow") and not has_device():
        items[:] = moved(items, config.getoption("--long"))


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
