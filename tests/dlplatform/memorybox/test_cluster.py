"""Cluster, SharedBuffer and Counter beyond what the conformance suite asks of transports."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from dlplatform.errors import BoxError, PeerLost, UsageError
from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.counter import MappedCounter, RemoteCounter
from dlplatform.transports.inproc import InprocTransport

numbers = itertools.count()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster(["inproc://cluster-a", "inproc://cluster-b"], f"job-{next(numbers)}")
    yield made
    made.close()


def test_operations_on_mapped_boxes_run_here_in_this_thread(cluster: Cluster) -> None:
    seen: list[int] = []
    cluster.parallel([lambda: seen.append(threading.get_ident())] * 2)
    assert seen == [threading.get_ident()] * 2
    assert cluster.mapped


def test_pieces_of_two_boxes_lie_side_by_side(cluster: Cluster) -> None:
    buffer = cluster.buffer("w", 5000, True)
    view = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_float * 5000).from_address(buffer.region))
    view[:] = np.arange(5000)
    out = np.zeros(5000, np.float32)
    buffer.read(out.ctypes.data)
    assert np.array_equal(out, np.arange(5000))
    assert buffer.segments[0].length % 1024 == 0


def test_a_failing_creation_reports_the_failure_even_if_undoing_fails(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real = InprocTransport.call

    def call(self: InprocTransport, command: str, **fields: object) -> dict[str, object]:
        calls.append(command)
        if command == "delete" or (command == "create" and self is cluster.transports[1]):
            raise BoxError(f"no {command}")
        return real(self, command, **fields)

    monkeypatch.setattr(InprocTransport, "call", call)
    with pytest.raises(BoxError, match="no create"):
        cluster.create("w", 5000)
    assert calls == ["create", "create", "delete"]


def test_attaching_twice_in_one_process_is_refused_and_harms_nothing(cluster: Cluster) -> None:
    buffer = cluster.buffer("w", 5000, True)
    with pytest.raises(UsageError, match="attached already"):
        cluster.attach(buffer.info)
    buffer.scal(2.0)
    buffer.release()
    cluster.attach(buffer.info).release()


def test_a_released_buffer_is_not_touched_any_more(cluster: Cluster) -> None:
    buffer = cluster.buffer("w", 5000, True)
    buffer.release()
    buffer.release()
    for use in (lambda: buffer.region, lambda: buffer.scal(2.0), lambda: buffer.read(1)):
        with pytest.raises(UsageError, match="w is released"):
            use()


def test_a_counter_waits_with_its_clusters_check(cluster: Cluster) -> None:
    counter = cluster.counter("n")
    assert isinstance(counter, MappedCounter)
    assert cluster.counter("n") is counter
    checked: list[bool] = []

    def check() -> None:
        checked.append(True)
        raise PeerLost("gone")

    begin = time.monotonic()
    with pytest.raises(PeerLost, match="gone"):
        counter.wait(1, 20, check)
    assert checked == [True]
    assert time.monotonic() - begin < 2


def test_a_remote_counter_asks_its_box() -> None:
    asked: list[tuple[str, dict[str, object]]] = []

    def call(command: str, **fields: object) -> dict[str, object]:
        asked.append((command, fields))
        return {"value": 7, "reached": True}

    counter = RemoteCounter("n", call)
    assert [counter.value, counter.add(2), counter.swap(1, 2)] == [7, 7, 7]
    counter.set(3)
    assert counter.reached(5, 10)
    assert asked == [
        ("get", {"name": "n"}),
        ("add", {"name": "n", "n": 2}),
        ("swap", {"name": "n", "expected": 1, "desired": 2}),
        ("set", {"name": "n", "value": 3}),
        ("wait", {"name": "n", "at_least": 5, "ms": 10}),
    ]


def test_the_first_living_rank_is_chief(cluster: Cluster) -> None:
    other = Cluster(["inproc://cluster-a"], cluster.job)
    third = Cluster(["inproc://cluster-a"], cluster.job)
    joining = [threading.Thread(target=c.join, args=(r, 3)) for r, c in ((0, other), (2, third))]
    for thread in joining:
        thread.start()
    cluster.join(1, 3)
    for thread in joining:
        thread.join(5)
    assert [other.is_chief(), cluster.is_chief(), third.is_chief()] == [True, False, False]
    other.transports[0].close()  # without a goodbye
    assert cluster.dead() == [0]
    assert [cluster.is_chief(), third.is_chief()] == [True, False]
    third.close()
