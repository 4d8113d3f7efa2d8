"""What workers see when a box is started again at its address: with a journal, and without."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from places import Place, at, connect, content, made, wait_for

from dlplatform.errors import PeerLost
from dlplatform.memorybox.cluster import Cluster

SECRET = "a secret of tests"
ONES = np.ones(5000, np.float32)


class Box:
    """A box with a folder, at one address for all of its starts."""

    def __init__(self, bind: str, folder: Path, *options: str) -> None:
        self.words = ["--snapshot", str(folder), "--every", "600", *options]
        self.address = bind
        self.start()

    def start(self) -> None:
        line = [sys.executable, "-m", "dlplatform.memorybox", "--bind", self.address, *self.words]
        env = {**os.environ, "DLP_SECRET": SECRET}
        self.process = subprocess.Popen(line, env=env, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = str(json.loads(self.process.stdout.readline())["address"])

    def again(self) -> None:
        self.end(signal.SIGKILL)
        self.start()

    def end(self, how: int = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.communicate(timeout=10)

    @property
    def place(self) -> Place:
        return Place("apart", [self.address], SECRET)


Start = Callable[..., Box]


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def box(scheme: str, *options: str) -> Box:
            bind = (
                f"shm://{tmp_path.name}-{os.getpid()}" if scheme == "shm" else "tcp://127.0.0.1:0"
            )
            started = Box(bind, tmp_path / "box", *options)
            stack.callback(started.end)
            return started

        yield box


def snapshot(cluster: Cluster) -> None:
    cluster.transports[0].link.ask("box/snapshot", {})  # type: ignore[attr-defined]


def test_workers_that_map_a_box_end_when_it_comes_back(start: Start, opened: ExitStack) -> None:
    """Their memory is that of the box before: nobody else would see what they write."""
    box = start("shm")
    cluster = connect(box.place, "job", timeout_s=5)
    opened.callback(cluster.close)
    buffer = made(cluster, "w", ONES)
    snapshot(cluster)
    box.again()
    wait_for(lambda: bool(cluster.transports[0].lost))
    with pytest.raises(PeerLost, match=r"has forgotten what it acknowledged .* resume=auto"):
        buffer.axpy(1.0, at(ONES))


@pytest.mark.parametrize("later", [0, 1])
def test_a_snapshot_alone_keeps_what_came_before_it(
    start: Start, opened: ExitStack, later: int
) -> None:
    box = start("tcp")
    cluster = connect(box.place, "job", timeout_s=5)
    opened.callback(cluster.close)
    buffer = made(cluster, "w", ONES)
    snapshot(cluster)
    for _ in range(later):
        buffer.axpy(1.0, at(ONES))
    box.again()
    if not later:
        buffer.axpy(1.0, at(ONES))
        assert np.array_equal(content(buffer), ONES + ONES)
        return
    with pytest.raises(PeerLost, match="has forgotten what it acknowledged"):
        buffer.axpy(1.0, at(ONES))


@pytest.mark.parametrize("scheme", ["shm", "tcp"])
def test_a_journal_brings_back_updates_and_locks(
    start: Start, opened: ExitStack, scheme: str
) -> None:
    box = start(scheme, "--journal")
    owner, other = (connect(box.place, "job", timeout_s=5) for _ in range(2))
    for cluster in (owner, other):
        opened.callback(cluster.close)
    buffer = made(owner, "w", ONES)
    assert not buffer.mapped
    with owner.locked("table"):
        snapshot(owner)
        with owner.locked("second"):
            buffer.axpy(1.0, at(ONES))
            box.again()
            buffer.axpy(1.0, at(ONES))
            assert np.array_equal(content(buffer), 3 * ONES)
            other.timeout_s = 0.3
            for name in ("table", "second"):
                with pytest.raises(PeerLost, match=f"lock {name} is held by worker"):
                    other.locked(name).__enter__()
    other.timeout_s = 5.0
    with other.locked("table") as abandoned:
        assert not abandoned
