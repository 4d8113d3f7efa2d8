"""What every transport must do, and do alike: a new one joins with one line in TRANSPORTS."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlplatform.errors import BoxError, EnvironmentMissing, PeerLost, UsageError
from dlplatform.memorybox.box import DIED, JOINED, LEFT
from dlplatform.memorybox.buffer import SharedBuffer, average
from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.process import Boxes
from kernels import cpu, reference

BOXES = 3
LENGTH = 2 * cpu.STRIPE + 3001
Vector = np.ndarray


@dataclass
class Place:
    """Running boxes and how to open a cluster on them."""

    name: str
    addresses: list[str]
    secret: str = ""
    processes: list[Any] = field(default_factory=list)


@contextmanager
def inproc(count: int) -> Iterator[Place]:
    yield Place("inproc", [f"inproc://conformance-{n}" for n in range(count)])


def processes(transport: str) -> Callable[[int], Any]:
    @contextmanager
    def start(count: int) -> Iterator[Place]:
        with Boxes(count, transport) as boxes:
            yield Place(transport, boxes.addresses, boxes.secret, boxes.processes)

    return start


TRANSPORTS: dict[str, Callable[[int], Any]] = {
    "inproc": inproc,
    "shm": processes("shm"),
    "tcp": processes("tcp"),
}
APART = [name for name in TRANSPORTS if name != "inproc"]
"""Those whose boxes are processes, so that one side can die without the other."""

Open = Callable[..., Cluster]


@pytest.fixture(scope="module", params=list(TRANSPORTS))
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with TRANSPORTS[request.param](BOXES) as started:
        yield started


@pytest.fixture(scope="module", params=APART)
def apart(request: pytest.FixtureRequest) -> Iterator[Place]:
    with TRANSPORTS[request.param](2) as started:
        yield started


numbers = itertools.count()


@pytest.fixture
def job() -> str:
    return f"job-{next(numbers)}"


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def connect(where: Place, job: str, boxes: int = 1, timeout_s: float = 20.0) -> Cluster:
    return Cluster(where.addresses[:boxes], job, where.secret.encode(), timeout_s)


@pytest.fixture
def join(place: Place, job: str, opened: ExitStack) -> Open:
    """Open a cluster on the first ``boxes`` boxes, closed at the end of the test."""

    def open_cluster(boxes: int = 1, job: str = job, timeout_s: float = 20.0) -> Cluster:
        cluster = connect(place, job, boxes, timeout_s)
        opened.callback(cluster.close)
        return cluster

    return open_cluster


alive: deque[Vector] = deque(maxlen=16)


def at(array: Vector) -> int:
    """Return the address of an array, and keep it for the next few calls."""
    alive.append(array)
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    return int(array.ctypes.data)


def random(seed: int, size: int = LENGTH) -> Vector:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def content(buffer: SharedBuffer) -> Vector:
    out = np.empty(buffer.length, np.float32)
    buffer.read(at(out))
    return out


def made(cluster: Cluster, name: str, data: Vector) -> SharedBuffer:
    buffer = cluster.buffer(name, len(data), True)
    buffer.write(at(data))
    return buffer


def held(cluster: Cluster, box: int = 0) -> int:
    return int(cluster.transports[box].call("status")["bytes"])


# -- worker processes (threads where the box is inside this process) -------------------------

RUNNER = """
import json, os, sys
from dlplatform.memorybox.cluster import Cluster
exec(sys.argv[1])
rank = int(sys.argv[2])
cluster = Cluster(sys.argv[4:], sys.argv[3], os.environ["DLP_SECRET"].encode(), 20.0)
result = main(cluster, rank)
cluster.close()
print(json.dumps(result), flush=True)
"""


def spawn(where: Place, job: str, code: str, rank: int, boxes: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUNNER, code, str(rank), job, *where.addresses[:boxes]]
    env = {**os.environ, "DLP_SECRET": where.secret}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


class Worker:
    """Code run by another worker of the job; ``result`` waits for what its main returns."""

    def __init__(self, where: Place, job: str, code: str, rank: int) -> None:
        self.process = None if where.name == "inproc" else spawn(where, job, code, rank)
        self.done: Any = None
        if self.process is None:
            names: dict[str, Any] = {}
            exec(code, names)
            self.thread = threading.Thread(target=self._run, args=(where, job, names, rank))
            self.thread.start()

    def _run(self, where: Place, job: str, names: dict[str, Any], rank: int) -> None:
        cluster = connect(where, job)
        self.done = names["main"](cluster, rank)
        cluster.close()

    def result(self) -> Any:
        if self.process is None:
            self.thread.join(20)
            return self.done
        out, _ = self.process.communicate(timeout=30)
        assert self.process.returncode == 0
        return json.loads(out.splitlines()[-1])


# -- creation, sharing, deletion -------------------------------------------------------------


def test_a_buffer_lives_from_creation_to_deletion(join: Open) -> None:
    master, worker = join(BOXES), join(BOXES)
    before = held(master)
    info = master.create("w", LENGTH)
    assert sum(length for _, _, length in info["segments"]) == LENGTH
    mine, theirs = master.attach(info), worker.attach(info)
    data = random(1)
    mine.write(at(data))
    assert np.array_equal(content(theirs), data)
    assert held(master) > before
    mine.release()
    with pytest.raises(BoxError, match="1 still share it"):
        mine.delete()
    assert np.array_equal(content(theirs), data)
    theirs.release()
    mine.delete()
    assert held(master) == before
    with pytest.raises(BoxError, match="opens nothing"):
        worker.attach(info)


def test_a_new_buffer_is_zero_and_its_local_region_too(join: Open) -> None:
    cluster = join(2)
    buffer = cluster.buffer("w", LENGTH, True)
    assert not content(buffer).any()
    assert buffer.region % 4096 == 0
    first = (np.ctypeslib.ctypes.c_float * 4).from_address(buffer.region)
    first[2] = 2.5
    buffer.write()
    assert content(buffer)[:4].tolist() == [0, 0, 2.5, 0]
    buffer.axpy(1.0, at(np.ones(LENGTH, np.float32)))
    buffer.read()
    assert list(first) == [1, 1, 3.5, 1]


def test_wrong_key_and_wrong_size_are_refused(join: Open) -> None:
    cluster = join(2)
    info = cluster.create("w", 5000)
    with pytest.raises(BoxError, match=r"creation key 'stolen' .* do: "):
        cluster.attach({**info, "key": "stolen"})
    wrong = [*info["segments"][:1], [1, info["segments"][1][1], 7]]
    with pytest.raises(BoxError, match=r"7 elements - allowed: "):
        cluster.attach({**info, "segments": wrong})
    buffer = cluster.attach(info)  # the refused attempts left nothing attached
    buffer.release()
    buffer.delete()


def test_creating_twice_is_refused(join: Open) -> None:
    cluster = join()
    info = cluster.create("w", 100)
    with pytest.raises(BoxError, match="exists already"):
        cluster.create("w", 100)
    cluster.attach(info).release()


@pytest.mark.parametrize("length", [0, -1])
def test_a_length_below_one_is_refused(join: Open, length: int) -> None:
    with pytest.raises(UsageError, match="cannot be cut"):
        join().create("w", length)


def test_all_segments_or_none_when_a_name_is_taken(join: Open) -> None:
    cluster = join(2)
    before = held(cluster)
    taken = cluster.transports[1].call("create", name="w", floats=10)["key"]
    with pytest.raises(BoxError, match="exists already"):
        cluster.create("w", 10_000)
    assert held(cluster) == before
    cluster.transports[1].call("delete", key=taken)
    cluster.attach(cluster.create("w", 10_000)).release()


def test_all_segments_or_none_when_memory_is_short(join: Open) -> None:
    cluster = join(2)
    before = held(cluster)
    with pytest.raises(EnvironmentMissing, match=r"is too small: .* MiB more, .* is free - "):
        cluster.create("w", 1 << 38, [1e-8, 1.0])
    assert held(cluster) == before


# -- reading and writing ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "count"), [(0, 1), (1023, 2), (100_000, 400_000), (LENGTH - 1, 1), (5, 0)]
)
def test_spans_are_read_and_written_exactly(join: Open, start: int, count: int) -> None:
    cluster = join(BOXES)
    data, patch = random(2), random(3, count)
    buffer = made(cluster, "w", data)
    buffer.write(at(patch), start, count)
    data[start : start + count] = patch
    assert np.array_equal(content(buffer), data)
    out = np.full(count + 2, 7, np.float32)
    buffer.read(at(out) + 4, start, count)
    assert out[0] == out[-1] == 7
    assert np.array_equal(out[1:-1], patch)


@pytest.mark.parametrize(("start", "count"), [(-1, 5), (0, 101), (100, 1), (50, -1)])
def test_spans_outside_are_refused(join: Open, start: int, count: int) -> None:
    buffer = join().buffer("w", 100, True)
    local = np.zeros(200, np.float32)
    for call in (buffer.read, buffer.write):
        with pytest.raises(UsageError, match="allowed: 0 to 100"):
            call(at(local), start, count)
    with pytest.raises(UsageError, match="allowed: 0 to 100"):
        buffer.apply("axpy", at(local), start=start, count=count)


# -- operations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "count"), [(0, LENGTH), (1, 3), (cpu.STRIPE - 7, 70_000), (90_001, 300_000)]
)
@pytest.mark.parametrize("op", list(cpu.OPERATIONS))
def test_operations_mean_what_the_reference_says(
    place: Place, join: Open, op: str, start: int, count: int
) -> None:
    y, x, z = random(4), random(5, count), random(6, count)
    span = slice(start, start + count)
    z[::3] = y[span][::3]  # merge takes x as it is where nobody moved y
    buffer = made(join(2), "w", y)
    a, b = 0.3, -1.7
    news = getattr(reference, op)(y[span].copy(), x.copy(), z.copy(), a, b)
    y[span], expected_x, expected_z = news
    buffer.apply(op, at(x), at(z), a=a, b=b, start=start, count=count)
    gained = op == "merge" and place.name != "inproc" and not buffer.mapped
    for ours, theirs in ((content(buffer), y), (x, expected_x), (z, expected_z)):
        if gained:  # the gain is rounded once on its way
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
        else:
            assert np.array_equal(ours, theirs)


def test_short_forms_are_the_same_operations(join: Open) -> None:
    y, x = random(7), random(8)
    buffer = made(join(2), "w", y)
    buffer.scal(0.5)
    buffer.axpy(2.0, at(x))
    buffer.axpby(0.1, at(x), 0.9)
    expected = reference.axpy(reference.scal(y, x, x, 0.5, 0)[0], x, x, 2.0, 0)[0]
    expected = reference.axpby(expected, x, x, 0.1, 0.9)[0]
    assert np.array_equal(content(buffer), expected)
    pulled, step = x.copy(), np.zeros_like(x)
    buffer.difference(0.2, at(x), at(step))
    assert np.array_equal(step, np.float32(0.2) * (x - expected))
    expected = expected + step
    buffer.elastic(0.2, at(pulled))
    y, x, _ = reference.elastic(expected, x, x, 0.2, 0)
    assert np.array_equal(content(buffer), y)
    assert np.array_equal(pulled, x)


def test_operations_between_buffers_happen_in_the_boxes(join: Open) -> None:
    cluster = join(BOXES)
    y, x = random(9), random(10)
    target, source = made(cluster, "y", y), made(cluster, "x", x)
    target.axpy(0.25, source)
    target.axpby(2.0, source, 0.5)
    expected = reference.axpby(reference.axpy(y, x, x, 0.25, 0)[0], x, x, 2.0, 0.5)[0]
    assert np.array_equal(content(target), expected)
    assert np.array_equal(content(source), x)
    with pytest.raises(UsageError, match="cut differently"):
        target.axpy(1.0, cluster.buffer("short", 100, True))
    with pytest.raises(UsageError, match="allowed: axpy, axpby"):
        target.apply("elastic", source)
    assert np.array_equal(content(target), expected)


def test_sum_and_average_are_in_rank_order(join: Open) -> None:
    cluster = join(BOXES)
    data = [random(20 + rank) * 10.0**rank for rank in range(4)]
    regions = [made(cluster, f"region/{rank}", v) for rank, v in enumerate(data)]
    total = cluster.buffer("total", LENGTH, True)
    total.sum(regions, 0.25)
    assert np.array_equal(content(total), reference.total(data, 0.25))
    start, count = total.share(1, 4)
    average(regions, start, count, 0.25)
    for region, old in zip(regions, data, strict=True):
        new = old.copy()
        new[start : start + count] = reference.total(data, 0.25)[start : start + count]
        assert np.array_equal(content(region), new)


def test_shares_cover_a_buffer_without_overlap(join: Open) -> None:
    buffer = join(2).buffer("w", LENGTH, True)
    shares = [buffer.share(index, 3) for index in range(3)]
    assert [start for start, _ in shares] == [0, *np.cumsum([n for _, n in shares])[:-1]]
    assert sum(count for _, count in shares) == LENGTH


def history(buffer: SharedBuffer) -> list[Vector]:
    x, z = random(31), np.zeros(LENGTH, np.float32)
    buffer.axpy(0.7, at(x))
    buffer.elastic(0.3, at(x))
    buffer.difference(0.3, at(x), at(z))
    buffer.apply("axpby", at(x), a=0.1, b=0.2, start=77_777, count=333_333)
    buffer.apply("fetch", at(x), a=0.3)
    return [content(buffer), x, z]


def test_striped_over_three_boxes_is_bit_equal_to_one(join: Open) -> None:
    y = random(30)
    striped, one = made(join(3), "striped", y), made(join(1), "one", y)
    assert len(striped.segments) == 3
    assert len(one.segments) == 1
    for ours, theirs in zip(history(striped), history(one), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("weights", "shares"), [([3, 1, 0], (0.75, 0.25)), ([0, 1, 4], (0.2, 0.8))]
)
def test_a_cut_follows_its_weights(
    join: Open, weights: list[float], shares: tuple[float, ...]
) -> None:
    cluster = join(3)
    buffer = cluster.attach(cluster.create("w", LENGTH, weights))
    assert [s.box for s in buffer.segments] == [b for b, w in enumerate(weights) if w]
    for segment, share in zip(buffer.segments, shares, strict=True):
        assert segment.length == pytest.approx(share * LENGTH, abs=1024)
    data = random(33)
    buffer.write(at(data))
    assert np.array_equal(content(buffer), data)


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


CLAIM = """
def main(cluster, rank):
    counter, taken = cluster.counter("n"), []
    cluster.counter("ready").add()
    cluster.counter("ready").wait(4, 20)
    while (seen := counter.value) < 300:
        if counter.swap(seen, seen + 1) == seen:
            taken.append(seen)
    return taken
"""


def test_compare_and_swap_hands_out_every_number_once(place: Place, job: str, join: Open) -> None:
    join()  # keeps the job while workers come and go
    workers = [Worker(place, job, CLAIM, rank) for rank in range(4)]
    taken = [worker.result() for worker in workers]
    assert sorted(itertools.chain(*taken)) == list(range(300))


UPDATE = """
def main(cluster, rank):
    buffer = cluster.attach(cluster.lookup("buffer/w"))
    cluster.counter("here").add()
    buffer.updated.wait(1, 20)
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
    cluster.counter("here").wait(1, 20)
    buffer.axpy(1.5, at(np.ones(5000, np.float32)))
    buffer.updated.add()
    assert worker.result() == [1.5, 1.5, 1.5]


def test_notices_are_of_small_values_and_waited_for(join: Open) -> None:
    cluster = join(timeout_s=0.3)
    value = {"a": [1, 2.5, "x"], "b": None}
    cluster.publish("note", value)
    assert cluster.lookup("note") == value
    with pytest.raises(PeerLost, match=r"nobody published other within 0.3 s"):
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

    with buffer.locked(cpu.STRIPE + 5):
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
    with pytest.raises(FileNotFoundError, match="mine"), buffer.locked(0):
        raise FileNotFoundError("mine")
    with buffer.locked(0):
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
    with pytest.raises(BoxError, match="key is taken"):
        theirs.transports[0].call("create", name="mine", floats=5, key=info["key"])
    ours.attach(info).release()


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
    with pytest.raises(PeerLost, match=r"1 of 3 workers came within 0.3 s"):
        join(timeout_s=0.3).join(0, 3)


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> float:
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds, "waited too long"
        time.sleep(0.005)
    return time.monotonic() - begin


DIE = """
def main(cluster, rank):
    cluster.join(rank, 2)
    buffer = cluster.attach(cluster.lookup("buffer/w"))
    with buffer.locked(0):
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


@pytest.mark.parametrize("transport", APART)
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
            Cluster(addresses, job, apart.secret.encode(), 2)
    wait_for(lambda: descriptors() <= before)


def test_opening_and_closing_leaks_nothing(apart: Place, job: str) -> None:
    def round_trip() -> None:
        cluster = connect(apart, job, 2)
        cluster.join(0, 1)
        buffer = cluster.buffer("w", 5000, True)
        buffer.scal(2.0)
        buffer.release()
        buffer.delete()
        cluster.close()

    round_trip()
    time.sleep(0.1)
    threads, files, maps = threading.active_count(), descriptors(), mappings()
    for _ in range(10):
        round_trip()
    wait_for(lambda: threading.active_count() <= threads)
    assert descriptors() <= files
    assert mappings() <= maps + 4


# -- addresses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "text"),
    [("shn://x", "closest: shm"), ("nonsense", "allowed: "), ("", "allowed: ")],
)
def test_a_wrong_address_is_one_line(address: str, text: str) -> None:
    with pytest.raises(UsageError, match=text) as error:
        Cluster([address])
    assert "\n" not in str(error.value)


def test_no_boxes_are_refused() -> None:
    with pytest.raises(UsageError, match="0 boxes"):
        Cluster([])
