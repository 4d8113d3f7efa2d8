"""The functions of the memory box that have to do with waiting: locks (B10), events (B15)."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack

import numpy as np
import pytest
from places import (
    BOXES,
    LENGTH,
    Open,
    Place,
    at,
    connect,
    content,
    held,
    in_background,
    made,
    spawn,
    wait_for,
)

from dlplatform.errors import BoxError, PeerLost, UsageError
from dlplatform.memorybox.buffer import SharedBuffer
from dlplatform.memorybox.cluster import Cluster

NOT_YET_S = 0.15


# -- B10: locks ------------------------------------------------------------------------------------


def add_one(buffer: SharedBuffer, start: int, done: list[int]) -> None:
    buffer.apply("axpy", at(np.ones(1, np.float32)), start=start, count=1)
    done.append(start)


def test_b10_locks_of_a_buffer(join: Open) -> None:
    first, second = join(BOXES), join(BOXES)
    mine = made(first, "w", np.zeros(LENGTH, np.float32))
    theirs = second.attach(mine.info)
    done: list[int] = []
    with ExitStack() as stack, mine.locked() as abandoned:
        assert not abandoned
        for start in (0, LENGTH // 2, LENGTH - 1):
            stack.enter_context(
                in_background(lambda s=start: add_one(theirs, s, done))  # type: ignore[misc]
            )
        time.sleep(NOT_YET_S)
        assert not done
        seen = content(mine)  # the owner reads and writes undisturbed
        mine.write(at(seen + 5))
    assert sorted(done) == [0, LENGTH // 2, LENGTH - 1]
    assert content(mine)[[0, 1, LENGTH // 2, LENGTH - 1]].tolist() == [6, 5, 6, 6]


def test_b10_locks_of_a_segment(join: Open) -> None:
    """The lock of one box's segment leaves the other segments free."""
    first, second = join(2), join(2)
    mine = made(first, "w", np.zeros(LENGTH, np.float32))
    theirs = second.attach(mine.info)
    segment = mine.segments[1]
    done: list[int] = []
    with ExitStack() as stack, mine.locked(segment.offset, segment.length):
        stack.enter_context(in_background(lambda: add_one(theirs, segment.offset, done)))
        add_one(theirs, 0, done)
        time.sleep(NOT_YET_S)
        assert done == [0]
    assert done == [0, segment.offset]


def test_b10_locks_of_the_mapping_table(join: Open) -> None:
    """Three workers add to a number by reading and writing it: none is lost under the lock."""
    clusters = [join() for _ in range(3)]
    for rank, cluster in enumerate(clusters):
        cluster.rank = rank
    number = clusters[0].counter("number")

    def work(cluster: Cluster) -> None:
        mine = cluster.counter("number")
        for _ in range(10):
            with cluster.locked():
                seen = mine.value
                time.sleep(0.001)
                mine.set(seen + 1)

    with ExitStack() as stack:
        for cluster in clusters:
            stack.enter_context(in_background(lambda c=cluster: work(c)))  # type: ignore[misc]
    assert number.value == 30
    with clusters[0].locked("a"), clusters[1].locked("b"):
        clusters[2].timeout_s = 0.2
        with pytest.raises(PeerLost, match=r"lock a is held by worker .* waited 0.2 s"):
            clusters[2].locked("a").__enter__()


HOLD = """
def main(cluster, rank):
    cluster.join(rank, 1)
    with cluster.locked("table"):
        print("locked", flush=True)
        time.sleep(60)

import time
"""


def test_b10_a_lock_of_the_dead_is_free(apart: Place, job: str, opened: ExitStack) -> None:
    cluster = connect(apart, job)
    opened.callback(cluster.close)
    worker = spawn(apart, job, HOLD, 0)
    assert worker.stdout is not None
    assert worker.stdout.readline() == "locked\n"
    worker.kill()
    worker.wait(5)
    begin = time.monotonic()
    with cluster.locked("table") as abandoned:
        assert abandoned
    assert time.monotonic() - begin < 3
    with cluster.locked("table") as abandoned:
        assert not abandoned
    wait_for(lambda: cluster.state(0) != 1)


# -- B15: events ----------------------------------------------------------------------------------


def members(join: Open, count: int) -> list[Cluster]:
    clusters = [join() for _ in range(count)]
    threads = [
        threading.Thread(target=cluster.join, args=(rank, count))
        for rank, cluster in enumerate(clusters)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return clusters


def test_b15_updated_tells_named_processes(join: Open) -> None:
    master, first, second, other = members(join, 4)
    told = [first.event("w/updated"), second.event("w/updated")]
    master.event("w/updated").set_up([1, 2])
    for turn in (1, 2):
        waiting = [threading.Thread(target=event.wait, args=(20.0,)) for event in told]
        for thread in waiting:
            thread.start()
        time.sleep(0.05)
        assert all(thread.is_alive() for thread in waiting)
        master.event("w/updated").announce()
        for thread in waiting:
            thread.join(20)
        assert [event.seen for event in told] == [turn, turn]
    for cluster in (master, other):
        with pytest.raises(PeerLost, match=r"waited 0.1 s for 1"):
            cluster.event("w/updated").wait(0.1)


def test_b15_accumulated_tells_the_master_when_all_are_in(join: Open) -> None:
    clusters = members(join, 4)
    event = clusters[0].event("g/accumulated").set_up([0], expect=3)
    for cluster in clusters[1:3]:
        cluster.event("g/accumulated").announce()
    with pytest.raises(PeerLost):
        event.wait(0.1)
    clusters[3].event("g/accumulated").announce()
    assert event.wait(20) == 1
    for cluster in clusters[1:]:
        cluster.event("g/accumulated").announce()
    assert event.wait(20) == 2
    with pytest.raises(UsageError, match="allowed: one rank and one report"):
        event.set_up([], 1)
    with pytest.raises(BoxError, match="event never was not set up"):
        clusters[0].transports[0].call("announce", event="never")


def test_b11_the_memory_goes_with_the_last_worker_that_used_it(join: Open) -> None:
    stays, leaves = join(2), join(2)
    before = held(stays, 1)
    leaves.allocate("w", LENGTH)
    leaves.close()
    wait_for(lambda: held(stays, 1) == before)
