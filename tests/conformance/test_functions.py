"""The functions of the memory box, named as in the specification: B1 to B9.

Locks (B10) and events (B15) are in test_functions_waiting.py, the rest of B11 to B16 in
test_functions_more.py, B17 to B19 in test_functions_whole.py. B5 is inside mpirun, in
tests/mpi/test_ranks.py.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from contextlib import ExitStack

import numpy as np
import pytest
from places import (
    BOXES,
    LENGTH,
    TESTED,
    TRANSPORTS,
    Open,
    Place,
    at,
    connect,
    content,
    held,
    in_background,
    made,
    random,
    wait_for,
)

from dlplatform.errors import BoxError, EnvironmentMissing, PeerLost, UsageError
from dlplatform.memorybox.cluster import Cluster
from dlplatform.transports.transport import MAPPED, ONE_SIDED
from kernels import cpu, reference

NOT_YET_S = 0.15
LIBC = ctypes.CDLL(None, use_errno=True)


# -- B1 to B5: boxes, segments, keys, the local region, sharing ------------------------------------


def test_b01_ordered_registration(place: Place, join: Open, job: str, opened: ExitStack) -> None:
    """Every process names the boxes in one order; each box tells about itself; closing forgets."""
    first, second = join(BOXES), join(BOXES)
    assert [t.uri for t in first.transports] == place.addresses
    for transport in first.transports:
        assert transport.call("status")["jobs"] >= 1
        assert transport.can >= {"accumulate"}
    data = random(1)
    info = first.create("w", LENGTH, [3, 2, 1])
    first.attach(info).write(at(data))
    assert np.array_equal(content(second.attach(info)), data)
    back = Place(place.name, place.addresses[::-1], place.secret, place.processes, place.ca)
    with pytest.raises(BoxError, match=r"box 0 for this worker and box 2 for the others"):
        connect(back, job, BOXES)
    second.close()
    if place.name != "inproc":
        with pytest.raises(PeerLost):
            second.transports[0].call("status")


@pytest.mark.parametrize("weights", [None, [3, 1, 0], [1, 0, 1]], ids=str)
def test_b02_equal_and_weighted_segments(join: Open, weights: list[float] | None) -> None:
    cluster = join(BOXES)
    status = [transport.call for transport in cluster.transports]
    wait_for(lambda: all(call("status")["jobs"] == 1 for call in status), 30)  # no earlier test's
    before = [held(cluster, box) for box in range(BOXES)]
    info = cluster.create("w", LENGTH, weights)
    parts = weights or [1, 1, 1]
    grown = [held(cluster, box) - before[box] for box in range(BOXES)]
    assert sum(grown) == 4 * LENGTH
    for size, part in zip(grown, parts, strict=True):
        assert size == pytest.approx(4 * LENGTH * part / sum(parts), abs=4096)
    ends = [(offset, offset + count) for _, offset, count in info["segments"]]
    assert [end for _, end in ends[:-1]] == [start for start, _ in ends[1:]]
    assert (ends[0][0], ends[-1][1]) == (0, LENGTH)
    buffer, data = cluster.attach(info), random(2)
    buffer.write(at(data))
    assert np.array_equal(content(buffer), data)


def test_b02_all_or_nothing(join: Open) -> None:
    """When the last box cannot make its segment, those of the others are undone."""
    cluster = join(BOXES)
    before = [held(cluster, box) for box in range(BOXES)]
    taken = cluster.transports[2].call("create", name="w", floats=10)["key"]
    with pytest.raises(BoxError, match="exists already"):
        cluster.create("w", LENGTH)
    cluster.transports[2].call("delete", key=taken)
    with pytest.raises(EnvironmentMissing, match=r"is too small: .* is free - "):
        cluster.create("w", 1 << 38, [1e-8, 1e-8, 1.0])
    assert [held(cluster, box) for box in range(BOXES)] == before
    cluster.attach(cluster.create("w", LENGTH))


def test_b03_creation_keys(join: Open) -> None:
    """A key names one buffer in all boxes, stops a second creation and grants attach."""
    master, worker = join(2), join(2)
    info, other = master.create("w", LENGTH), master.create("v", LENGTH)
    assert len(bytes.fromhex(info["key"])) == 16
    assert info["key"] != other["key"]
    with pytest.raises(BoxError, match="exists already - allowed: one creation"):
        worker.create("w", LENGTH)
    for key in ("", "0" * 32, info["key"][:-1], info["key"].upper() + "x"):
        with pytest.raises(BoxError, match="opens nothing in this box"):
            worker.attach({**info, "key": key})
    box, offset, count = info["segments"][1]
    with pytest.raises(BoxError, match=rf"{count + 1} elements - allowed: {count} "):
        worker.attach({**info, "segments": [info["segments"][0], [box, offset, count + 1]]})
    buffer = worker.attach(info)
    for transport in worker.transports:
        with pytest.raises(BoxError, match="1 still share it"):
            transport.call("delete", key=info["key"])
    buffer.release()
    buffer.delete()  # the refused attempts had left no sharer behind


def resident(address: int, size: int) -> bool:
    """Tell whether every page of a range has memory behind it."""
    pages = (ctypes.c_ubyte * -(-size // 4096))()
    asked = LIBC.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages)
    assert asked == 0, os.strerror(ctypes.get_errno())
    return all(page & 1 for page in pages)


def test_b04_local_region(join: Open) -> None:
    """Once all segments exist there is real memory of the same size in this process."""
    cluster = join(BOXES)
    with pytest.raises(EnvironmentMissing):
        cluster.create("w", 1 << 38, [1e-8, 1e-8, 1.0])
    assert not cluster.attached
    buffer = cluster.attach(cluster.create("w", LENGTH))
    assert cluster.attached == {buffer.key}
    assert buffer.region % 4096 == 0
    assert resident(buffer.region, 4 * LENGTH)
    local = np.ctypeslib.as_array((ctypes.c_float * LENGTH).from_address(buffer.region))
    local[:] = random(3)
    buffer.write()
    assert np.array_equal(content(buffer), random(3))
    del local
    with pytest.raises(UsageError, match="attached already"):
        cluster.attach(buffer.info)


# -- B6, B7: reading and writing -------------------------------------------------------------------


@pytest.mark.parametrize("transport", [name for name in ("shm", "mpi") if name in TESTED])
def test_b06_one_sided_read_and_write(transport: str, job: str, opened: ExitStack) -> None:
    """On one host nothing needs the box's processor: it may even be stopped."""
    shm = opened.enter_context(TRANSPORTS[transport](2))
    clusters = [connect(shm, job, 2) for _ in range(2)]
    for cluster in clusters:
        opened.callback(cluster.close)
    ours = made(clusters[0], "w", random(4))
    if not ours.mapped:
        pytest.skip("these ranks share no memory")
    theirs = clusters[1].attach(ours.info)
    counter = clusters[0].counter("n")
    ours.scal(1.0)  # this thread has entered the job's gate before
    theirs.scal(1.0)
    for process in shm.processes:
        process.send_signal(signal.SIGSTOP)
    try:
        data, x = random(5), random(6)
        ours.write(at(data))
        assert np.array_equal(content(theirs), data)
        theirs.axpy(2.0, at(x))
        assert np.array_equal(content(ours), data + np.float32(2) * x)
        with ours.locked(5, 10):
            assert counter.add() == 0
    finally:
        for process in shm.processes:
            process.send_signal(signal.SIGCONT)
    assert counter.value == 1
    clusters[0].check()


def moved(cluster: Cluster) -> tuple[int, int]:
    """Return how many bytes all boxes have received and sent for this job."""
    name = cluster.job
    found = [t.link.ask("box/status", {})["jobs"][name] for t in cluster.transports]  # type: ignore[attr-defined]
    return sum(job["in"] for job in found), sum(job["out"] for job in found)


def test_b07_dirty_ranges_are_written(apart: Place, job: str, opened: ExitStack) -> None:
    """Only marked spans go to the boxes; what touches is sent once."""
    cluster = connect(apart, job, 2)
    opened.callback(cluster.close)
    buffer = made(cluster, "w", random(7))
    expected = content(buffer)
    local = np.ctypeslib.as_array((ctypes.c_float * LENGTH).from_address(buffer.region))
    buffer.read()
    before = moved(cluster)[0]
    spans = [(10, 5), (12, 8), (20, 1), (LENGTH // 2 - 50, 100), (LENGTH - 1, 1)]
    for start, count in spans:
        local[start : start + count] = expected[start : start + count] = start
        buffer.mark(start, count)
    assert buffer.write_changes() == 11 + 100 + 1
    assert moved(cluster)[0] - before == (0 if buffer.mapped else 4 * 112)
    assert np.array_equal(content(buffer), expected)
    assert buffer.write_changes() == 0
    with pytest.raises(UsageError, match="allowed: 0 to"):
        buffer.mark(LENGTH, 1)
    del local


def test_b07_dirty_ranges_are_read(join: Open, place: Place) -> None:
    """A reader gets the stripes (1 MiB) that somebody changed since it asked last."""
    writer, reader = join(2), join(2)
    ours = made(writer, "w", random(8, 4 * cpu.STRIPE))
    theirs = reader.attach(ours.info)
    into = np.zeros(ours.length, np.float32)
    assert theirs.read_changes(at(into)) == ours.length
    assert np.array_equal(into, random(8, 4 * cpu.STRIPE))
    assert theirs.read_changes(at(into)) == 0
    ours.apply("axpy", at(np.ones(3, np.float32)), start=3 * cpu.STRIPE + 7, count=3)
    before = moved(reader)[1] if place.name != "inproc" else 0
    assert theirs.read_changes(at(into)) == cpu.STRIPE
    if place.name != "inproc":
        asked = not any({MAPPED, ONE_SIDED} & t.can for t in reader.transports)
        assert moved(reader)[1] - before == (4 * cpu.STRIPE if asked else 0)
    assert np.array_equal(into, content(ours))
    ours.axpy(1.0, made(writer, "x", random(9, 4 * cpu.STRIPE)))
    assert theirs.read_changes(at(into)) == ours.length
    assert np.array_equal(into, content(ours))


# -- B8, B9: the boxes compute ---------------------------------------------------------------------


def test_b08_accumulate_between_buffers(join: Open) -> None:
    """X is synced, every box adds it to Y under Y's lock, the call returns when all are done."""
    first, second = join(BOXES), join(BOXES)
    y, x = random(10), random(11)
    mine, source = made(first, "y", y), made(first, "x", x)
    theirs, theirs_x = second.attach(mine.info), second.attach(source.info)
    done = []

    def add() -> None:
        theirs.axpy(0.5, theirs_x)
        done.append(content(theirs))

    with ExitStack() as stack, mine.locked():
        stack.enter_context(in_background(add))
        time.sleep(NOT_YET_S)
        assert not done
        assert np.array_equal(content(mine), y)
        mine.axpy(1.0, source)  # who holds the lock may go on
    expected = y + x
    expected = expected + np.float32(0.5) * x
    assert np.array_equal(done[0], expected)


def test_b08_concurrent_accumulation_loses_nothing(join: Open) -> None:
    clusters = [join(BOXES) for _ in range(3)]
    target = clusters[0].create("y", LENGTH)
    targets = [cluster.attach(target) for cluster in clusters]
    sources = [made(c, f"x{n}", np.full(LENGTH, n + 1, np.float32)) for n, c in enumerate(clusters)]

    def add(n: int) -> None:
        for _ in range(20):
            targets[n].axpy(1.0, sources[n])

    with ExitStack() as stack:
        for n in range(3):
            stack.enter_context(in_background(lambda n=n: add(n)))  # type: ignore[misc]
    assert np.array_equal(content(targets[0]), np.full(LENGTH, 20 * 6, np.float32))


def test_b09_vector_operations(join: Open) -> None:
    cluster = join(BOXES)
    y, x = random(12), random(13)
    target, source = made(cluster, "y", y), made(cluster, "x", x)
    target.scal(-1.5)
    target.axpy(0.25, source)
    target.axpby(2.0, source, 0.75)
    y = np.float32(-1.5) * y
    y = y + np.float32(0.25) * x
    y = np.float32(2) * x + np.float32(0.75) * y
    assert np.array_equal(content(target), y)
    assert np.array_equal(content(source), x)


@pytest.mark.parametrize(("box", "b"), [(0, 0.0), (1, 0.5)])
def test_b09_matrix_operations(join: Open, box: int, b: float) -> None:
    cluster = join(2)
    rows, inner, columns = 5, 300, 33
    sizes = {"c": rows * columns, "a": rows * inner, "b": inner * columns}
    weights = [float(n == box) for n in range(2)]
    data = {name: random(14 + n, size) for n, (name, size) in enumerate(sizes.items())}
    buffers = {}
    for name, size in sizes.items():
        buffers[name] = cluster.attach(cluster.create(name, size, weights))
        buffers[name].write(at(data[name]))
        assert [s.box for s in buffers[name].segments] == [box]
    buffers["c"].matrix(0.5, buffers["a"], buffers["b"], (rows, inner, columns), b)
    left, right = data["a"].reshape(rows, inner), data["b"].reshape(inner, columns)
    expected = reference.matrix(data["c"].reshape(rows, columns), left, right, 0.5, b)
    assert np.array_equal(content(buffers["c"]), expected.reshape(-1))
    with pytest.raises(BoxError, match="elements 0 to"):
        buffers["c"].matrix(1.0, buffers["a"], buffers["b"], (rows, inner, columns + 1))
    with pytest.raises((BoxError, UsageError), match=r"three different|same box"):
        buffers["c"].matrix(1.0, buffers["c"], buffers["b"], (1, 1, 1))
    spread = cluster.attach(cluster.create("spread", LENGTH))
    with pytest.raises(UsageError, match="whole in the same box"):
        spread.matrix(1.0, buffers["a"], buffers["b"], (1, 1, 1))
