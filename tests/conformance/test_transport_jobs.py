"""What every transport must do, and do alike: jobs, members, failures.

A new transport joins with one line in TRANSPORTS (tests/support/places.py).
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from places import (
    APART,
    GUEST,
    LENGTH,
    OPEN_S,
    PATIENCE,
    TRANSPORTS,
    Open,
    Place,
    Worker,
    at,
    connect,
    content,
    each,
    held,
    made,
    random,
    spawn,
    wait_for,
)

from dlplatform.errors import BoxError, PeerLost, UsageError
from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.session import DIED, JOINED, LEFT
from kernels import cpu

SOON_S = 0.3 * PATIENCE
CLAIMS, CLAIMANTS, ROUNDS = (20, 2, 3) if GUEST else (300, 4, 10)


# -- counters, events, notices, locks --------------------------------------------------------


def test_a_counter_counts(join: Open) -> None:
    counter = join().counter("n")
    assert [counter.value, counter.add(), counter.add(5), counter.value] == [0, 0, 1, 6]
    counter.set(-3)
    assert counter.swap(0, 9) == -3
    assert counter.value == -3
    assert counter.swap(-3, 1 << 60) == -3
    assert counter.value == 1 << 60
    assert counter.reached(1 << 60, 0)
    begin = time.monotonic()
    assert not counter.reached((1 << 60) + 1, 100)
    assert time.monotonic() - begin >= 0.09
    with pytest.raises(PeerLost, match=r"n is \d+, waited 0.1 s for"):
        counter.wait((1 << 60) + 1, 0.1)


CLAIM = f"""
def main(cluster, rank):
    counter, taken = cluster.counter("n"), []
    cluster.counter("ready").add()
    cluster.counter("ready").wait({CLAIMANTS}, 60)
    while (seen := counter.value) < {CLAIMS}:
        if counter.swap(seen, seen + 1) == seen:
            taken.append(seen)
    return taken
"""


def test_compare_and_swap_hands_out_every_number_once(place: Place, job: str, join: Open) -> None:
    join()  # keeps the job while workers come and go
    workers = [Worker(place, job, CLAIM, rank) for rank in range(CLAIMANTS)]
    taken = [worker.result() for worker in workers]
    assert sorted(itertools.chain(*taken)) == list(range(CLAIMS))


UPDATE = """
def main(cluster, rank):
    buffer = cluster.attach(cluster.lookup("buffer/w"))
    cluster.counter("here").add()
    buffer.updated.wait(1, 80)
    out = (c_float * 3)()
    buffer.read(addressof(out), 0, 3)
    return list(out)

from ctypes import addressof, c_float
"""


def test_an_update_wakes_who_waits_for_it(place: Place, job: str, join: Open) -> None:
    cluster = join()
    worker = Worker(place, job, UPDATE, 1)
    time.sleep(0.1)
    buffer = cluster.buffer("w", 5000, True)  # found through the notice board
    cluster.counter("here").wait(1, OPEN_S)
    buffer.axpy(1.5, at(np.ones(5000, np.float32)))
    buffer.updated.add()
    assert worker.result() == [1.5, 1.5, 1.5]


def test_notices_are_of_small_values_and_waited_for(join: Open) -> None:
    cluster = join(timeout_s=SOON_S)
    value = {"a": [1, 2.5, "x"], "b": None}
    cluster.publish("note", value)
    assert cluster.lookup("note") == value
    with pytest.raises(PeerLost, match=f"nobody published other within {SOON_S} s"):
        cluster.lookup("other")
    with pytest.raises((UsageError, BoxError), match="bytes"):
        cluster.publish("big", "x" * (2 << 20))
    assert cluster.lookup("note") == value


def test_a_lock_is_of_one_stripe(join: Open) -> None:
    cluster, other = join(), join()
    buffer = cluster.buffer("w", 3 * cpu.STRIPE, True)
    theirs = other.attach(cluster.lookup("buffer/w"))
    one = np.ones(1, np.float32)
    done: list[int] = []

    def add(stripe: int) -> None:
        theirs.apply("axpy", at(one), start=stripe * cpu.STRIPE, count=1)
        done.append(stripe)

    with buffer.locked(cpu.STRIPE + 5, 1):
        blocked = threading.Thread(target=add, args=(1,))
        blocked.start()
        free = threading.Thread(target=add, args=(2,))
        free.start()
        free.join(10)
        blocked.join(0.2)
        assert done == [2]
    blocked.join(10)
    assert done == [2, 1]
    assert content(buffer)[:: cpu.STRIPE].tolist() == [0, 1, 1]


def test_an_error_inside_a_lock_is_passed_on_and_frees_it(join: Open) -> None:
    buffer = join().buffer("w", 100, True)
    with pytest.raises(FileNotFoundError, match="mine"), buffer.locked():
        raise FileNotFoundError("mine")
    with buffer.locked():
        pass
    assert not content(buffer).any()


# -- jobs and members ------------------------------------------------------------------------


def test_jobs_on_one_box_do_not_see_each_other(join: Open, job: str) -> None:
    ours, theirs = join(), join(job=f"{job}-other")
    info = ours.create("w", 1000)
    ours.publish("note", 1)
    ours.counter("n").set(5)
    assert theirs.transports[0].call("lookup", name="note")["value"] is None
    assert theirs.counter("n").value == 0
    with pytest.raises(BoxError, match="opens nothing"):
        theirs.attach(info)
    theirs.attach(theirs.create("w", 2000)).release()
    with pytest.raises(BoxError, match="opens nothing"):
        theirs.transports[0].call("delete", key=info["key"])
    theirs.transports[0].call("create", name="mine", floats=5, key=info["key"])
    assert ours.attach(info).length == 1000  # a key names a segment of its own job only


def test_a_job_that_is_gone_leaves_nothing(join: Open, job: str) -> None:
    witness, gone = join(job="witness"), join(job=f"{job}-gone")
    before = held(witness)
    made(gone, "w", random(40))
    gone.counter("n").set(5)
    gone.publish("note", 1)
    assert held(witness) == before + 4 * LENGTH
    gone.close()
    deadline = time.monotonic() + 5
    while held(witness) != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert held(witness) == before
    again = join(job=f"{job}-gone")
    assert again.counter("n").value == 0
    assert again.transports[0].call("lookup", name="note")["value"] is None


def test_members_come_finish_and_leave(join: Open) -> None:
    first, second = join(), join()
    waiting = threading.Thread(target=first.join, args=(0, 2))
    waiting.start()
    second.join(1, 2)
    waiting.join(10)
    assert [first.state(0), first.state(1), first.state(2)] == [JOINED, JOINED, 0]
    assert not first.everyone_finished()
    second.finished()
    first.finished()
    assert first.everyone_finished()
    assert [first.is_chief(), second.is_chief()] == [True, False]
    second.close()
    wait_for(lambda: first.state(1) == LEFT)
    assert first.dead() == []


def test_waiting_for_workers_that_do_not_come_ends(join: Open) -> None:
    with pytest.raises(PeerLost, match=f"1 of 3 workers came within {SOON_S} s"):
        join(timeout_s=SOON_S).join(0, 3)


DIE = """
def main(cluster, rank):
    cluster.join(rank, 2)
    buffer = cluster.attach(cluster.lookup("buffer/w"))
    with buffer.locked():
        print("locked", flush=True)
        time.sleep(60)

import time
"""


def test_a_killed_worker_is_seen_and_blocks_nobody(
    apart: Place, job: str, opened: ExitStack
) -> None:
    cluster = connect(apart, job)
    opened.callback(cluster.close)
    buffer = cluster.buffer("w", 1000, True)
    worker = spawn(apart, job, DIE, 1)
    cluster.join(0, 2)
    assert worker.stdout is not None
    assert worker.stdout.readline() == "locked\n"
    worker.send_signal(signal.SIGKILL)
    worker.wait(5)
    assert wait_for(lambda: cluster.state(1) == DIED) < 2
    assert cluster.dead() == [1]
    with pytest.raises(PeerLost, match=r"worker 1 died and this rule needs all 2 - "):
        cluster.check_peers()
    buffer.axpy(1.0, at(np.ones(1000, np.float32)))
    assert content(buffer)[0] == 1
    buffer.release()
    buffer.delete()  # what the dead worker shared was given back


SPIN = """
def main(cluster, rank):
    buffer = cluster.attach(cluster.lookup("buffer/w"))
    x = numpy.ones(buffer.length, numpy.float32)
    print("going", flush=True)
    while True:
        buffer.axpy(1.0, x.ctypes.data)

import numpy
"""


def test_a_worker_killed_in_the_middle_of_an_update_leaves_whole_elements(
    apart: Place, job: str, opened: ExitStack
) -> None:
    cluster = connect(apart, job)
    opened.callback(cluster.close)
    buffer = cluster.buffer("w", LENGTH, True)
    for delay in (0.02, 0.047):
        worker = spawn(apart, job, SPIN, 1)
        assert worker.stdout is not None
        assert worker.stdout.readline() == "going\n"
        time.sleep(delay)
        worker.kill()
        worker.wait(5)
    buffer.axpy(1.0, at(np.ones(LENGTH, np.float32)))
    found = content(buffer)
    assert np.array_equal(found, np.round(found))
    assert found.max() - found.min() <= 2  # each victim's last update, applied at most once
    assert found.min() >= 1


@pytest.mark.parametrize("transport", each(APART))
def test_a_killed_box_is_seen_while_waiting_and_at_the_next_operation(
    transport: str, job: str, opened: ExitStack
) -> None:
    lone = opened.enter_context(TRANSPORTS[transport](1))
    cluster = connect(lone, job)
    opened.callback(cluster.close)
    buffer, counter = cluster.buffer("w", 1000, True), cluster.counter("never")
    local = np.zeros(1000, np.float32)
    killer = threading.Timer(0.2, lone.processes[0].kill)
    killer.start()
    begin = time.monotonic()
    with pytest.raises(PeerLost) as lost:
        counter.wait(1, 20)
    assert time.monotonic() - begin < 2.2
    text = str(lost.value)
    assert text.startswith(f"memory box {lone.addresses[0]} is gone: ")
    assert "\n" not in text
    assert text.count(" - ") == 2
    for operation in (buffer.read, buffer.write, lambda x: buffer.axpy(1.0, x)):
        with pytest.raises(PeerLost, match="is gone"):
            operation(at(local))
    with pytest.raises(PeerLost, match="is gone"):
        cluster.publish("note", 1)
    with pytest.raises(PeerLost, match="is gone"):
        cluster.check()
    with pytest.raises(PeerLost, match="no memory box answers"):
        connect(lone, job, timeout_s=2)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("\n")


def test_boxes_that_are_not_there_leave_no_connection_behind(apart: Place, job: str) -> None:
    before = descriptors()
    missing = [*apart.addresses[:1], "tcp://127.0.0.1:1", "shm://nobody"]
    for addresses in (missing, missing[::2]):
        with pytest.raises(PeerLost, match=r"no memory box answers at .* - do: "):
            Cluster(addresses, job, apart.secret.encode(), 2, ca=apart.ca)
    wait_for(lambda: descriptors() <= before)


def test_opening_and_closing_leaks_nothing(apart: Place, job: str, opened: ExitStack) -> None:
    witness = connect(apart, "witness", 2)
    opened.callback(witness.close)

    def sessions() -> int:
        return sum(int(t.call("status")["sessions"]) for t in witness.transports)

    before = sessions()

    def round_trip() -> None:
        cluster = connect(apart, job, 2)
        cluster.join(0, 1)
        buffer = cluster.buffer("w", 5000, True)
        buffer.scal(2.0)
        buffer.release()
        buffer.delete()
        cluster.close()
        wait_for(lambda: sessions() <= before)  # then its rank is free again

    round_trip()
    time.sleep(0.1)
    threads, files, maps = threading.active_count(), descriptors(), mappings()
    for _ in range(ROUNDS):
        round_trip()
    wait_for(lambda: threading.active_count() <= threads)
    assert descriptors() <= files
    assert mappings() <= maps + 9  # ten would be one each time
