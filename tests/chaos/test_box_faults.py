"""One fault at a time, each with the outcome that was promised for it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import Vector, at, content, made, random
from relay import TO_BOX, TO_WORKER

from dlplatform.errors import BoxError, PeerLost, PlatformError
from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.payload import Payload
from kernels import cpu

pytestmark = pytest.mark.slow

LENGTH = 2 * cpu.STRIPE + 70_001
IMPATIENT = (
    "import sys; from kernels import cpu; cpu.patience(500); "
    "from dlplatform.memorybox.server import main; sys.exit(main(sys.argv[1:]))"
)


def passed(begin: float) -> float:
    return time.monotonic() - begin


# -- cuts in the middle of something -----------------------------------------------------------


def push(buffer: Any, x: Vector, z: Vector) -> None:
    buffer.axpy(0.5, at(x))


def narrow(buffer: Any, x: Vector, z: Vector) -> None:
    payload = Payload("int8", len(x), feedback=False).pack(at(x))
    buffer.axpy(1.0, payload)


def sparse(buffer: Any, x: Vector, z: Vector) -> None:
    payload = Payload("topk", len(x), share=0.2, feedback=False).pack(at(x))
    buffer.axpy(1.0, payload)


def elastic(buffer: Any, x: Vector, z: Vector) -> None:
    buffer.elastic(0.25, at(x))


def difference(buffer: Any, x: Vector, z: Vector) -> None:
    buffer.difference(0.25, at(x), at(z))


def merge(buffer: Any, x: Vector, z: Vector) -> None:
    buffer.merge(at(x), at(z))


def fetch(buffer: Any, x: Vector, z: Vector) -> None:
    buffer.apply("fetch", at(x), a=0.5)


ONE_WAY, BOTH_WAYS = (push, narrow, sparse), (elastic, difference, merge, fetch)
EARLY = [(TO_BOX, 1), (TO_BOX, 90), (TO_WORKER, 1), (TO_WORKER, 5)]
OUTWARDS = [(TO_BOX, 200_001), (TO_BOX, 400_000)]
MIDDLE = [(TO_BOX, 1_048_577), (TO_BOX, 2_300_003), (TO_WORKER, 300_001), (TO_WORKER, 1_900_000)]


@pytest.mark.parametrize("journal", [False, True], ids=["memory", "journal"])
@pytest.mark.parametrize("work", [*ONE_WAY, *BOTH_WAYS], ids=lambda work: work.__name__)
def test_a_cut_in_the_middle_of_a_transfer_changes_nothing(
    work: Callable[..., None], journal: bool, start: Any, relayed: Any, join: Any,
    tmp_path: Path,
) -> None:  # fmt: skip
    lasting = ("--snapshot", str(tmp_path / "box"), "--journal") if journal else ()
    box = start(*lasting)
    where = [*EARLY, *OUTWARDS, *(MIDDLE if work in BOTH_WAYS else ())]
    relay = relayed(box.address)
    direct, cut = join(box.address), join(relay.address)
    expected = made(direct, "expected", random(1, LENGTH))
    tried = made(cut, "tried", random(1, LENGTH))
    for number, (way, count) in enumerate(where):
        ours = [random(2 + number, LENGTH), random(3 + number, LENGTH)]
        theirs = [array.copy() for array in ours]
        work(expected, *ours)
        relay.cut_after(count, way)
        before = relay.cuts
        work(tried, *theirs)
        assert relay.cuts == before + 1, f"no cut at {way, count}"
        for one, other in zip(ours, theirs, strict=True):
            assert np.array_equal(one, other), f"cut at {way, count}"
        assert np.array_equal(content(expected), content(tried)), f"cut at {way, count}"


@pytest.mark.parametrize("transport", ["tcp", "shm"])
def test_a_cut_in_a_counter_add_counts_once(
    transport: str, start: Any, relayed: Any, join: Any, tmp_path: Path
) -> None:
    bind = "tcp://127.0.0.1:0" if transport == "tcp" else f"shm://{tmp_path.name}-{transport}"
    box = start("--snapshot", str(tmp_path / "box"), "--journal", bind=bind)
    relay = relayed(box.address)
    counter = join(relay.address).counter("n")
    for count in range(1, 41):
        relay.cut_after(count, TO_BOX if count % 2 else TO_WORKER)
        before = relay.cuts
        while relay.cuts == before:
            value = counter.value  # a question, which may be asked twice
            assert counter.add(1) == value
    assert relay.cuts >= 40


def test_a_lost_answer_does_not_leave_a_view_behind(start: Any, relayed: Any, join: Any) -> None:
    box = start()
    relay = relayed(box.address)
    reader, other = join(relay.address), join(box.address)
    buffer = made(reader, "w", random(1, 5000))
    for count in (1, 4, 6):
        relay.cut_after(count, TO_WORKER)
        with reader.snapshot(buffer) as view:
            out = np.zeros(5000, np.float32)
            view.read(buffer, at(out))
        assert np.array_equal(out, random(1, 5000))
    begin = time.monotonic()
    with other.snapshot():
        assert passed(begin) < 5


# -- slow and silent connections -----------------------------------------------------------------


def test_nobody_waits_for_a_slow_connection(start: Any, relayed: Any, join: Any) -> None:
    box = start()
    relay = relayed(box.address)
    quick = join(box.address)
    buffer = made(quick, "w", np.zeros(LENGTH, np.float32))
    late = join(relay.address).attach(buffer.info)
    relay.rate = 1_000_000.0
    one = np.ones(LENGTH, np.float32)
    pusher = threading.Thread(target=late.axpy, args=(1.0, at(one)))
    begin = time.monotonic()
    pusher.start()
    times, small = [], np.ones(1000, np.float32)
    while pusher.is_alive():
        before = time.monotonic()
        buffer.apply("axpy", at(small), a=1.0, start=1000, count=1000)
        times.append(passed(before))
    assert passed(begin) > 1.5, "it was slow indeed"
    assert len(times) > 100 and max(times) < 0.5
    expected = np.ones(LENGTH, np.float32)
    expected[1000:2000] += len(times)
    assert np.array_equal(content(buffer), expected)


def test_a_silent_connection_is_waited_for_and_then_lost(
    start: Any, relayed: Any, join: Any
) -> None:
    box = start()
    relay = relayed(box.address)
    cluster = join(relay.address, timeout_s=2.0)
    buffer = made(cluster, "w", random(1, 5000))
    relay.swallow()
    threading.Timer(0.5, relay.swallow, [False]).start()
    buffer.axpy(1.0, at(random(2, 5000)))
    assert np.array_equal(content(buffer), random(1, 5000) + random(2, 5000))
    relay.swallow()
    begin = time.monotonic()
    with pytest.raises(PeerLost, match=r"is gone: .* - allowed: .* - do: "):
        buffer.axpy(1.0, at(random(2, 5000)))
    assert passed(begin) < 12


def test_who_is_cut_off_again_and_again_is_not_given_up(
    start: Any, relayed: Any, join: Any
) -> None:
    relay = relayed(start("--grace", "1").address)
    buffer = made(join(relay.address), "w", random(1, 5000))
    relay.cut()
    time.sleep(0.8)
    relay.swallow()
    relay.cut()
    time.sleep(0.4)  # 1.2 s after the first cut, but 0.4 s after the second one
    relay.swallow(False)
    assert np.array_equal(content(buffer), random(1, 5000))


# -- locks ---------------------------------------------------------------------------------------

HOLDER = """
import sys, time
from dlplatform.memorybox.cluster import Cluster
cluster = Cluster([sys.argv[1]], "job", b"x" * 32, 20.0)
with cluster.buffer("w", 5000, False).locked() as told:
    print(told, flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(address: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of the buffer w."""
    command = [sys.executable, "-c", HOLDER, address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "False\n"
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(params=["tcp", "shm"])
def impatient(request: Any, start: Any, join: Any, tmp_path: Path) -> Iterator[Any]:
    """A buffer whose locks are waited for 0.5 s, and the address of its box."""
    bind = "tcp://127.0.0.1:0" if request.param == "tcp" else f"shm://{tmp_path.name}"
    box = start(bind=bind, program=("-c", IMPATIENT))
    cluster = join(box.address)
    cpu.patience(500)
    yield made(cluster, "w", np.zeros(5000, np.float32)), box.address
    cpu.patience(60_000)


def test_the_lock_of_a_stopped_worker_is_an_error_that_names_it(impatient: Any) -> None:
    buffer, address = impatient
    with holder(address) as process:
        process.send_signal(signal.SIGSTOP)
        for work in (lambda: buffer.axpy(1.0, at(random(1, 5000))), buffer.locked().__enter__):
            begin = time.monotonic()
            with pytest.raises(BoxError, match=r"lock|stopped after 0") as told:
                work()
            assert 0.3 < passed(begin) < 5
            assert not buffer.mapped or f"by process {process.pid}" in str(told.value)
        process.send_signal(signal.SIGCONT)
    buffer.axpy(1.0, at(np.ones(5000, np.float32)))
    assert np.array_equal(content(buffer), np.ones(5000, np.float32)), "refused were not done"


def test_the_lock_of_a_killed_worker_is_free_at_once_and_the_next_is_told(impatient: Any) -> None:
    buffer, address = impatient
    with holder(address) as process:
        process.kill()
        begin = time.monotonic()
        with buffer.locked() as abandoned:
            assert passed(begin) < 1
            assert abandoned
    with buffer.locked() as abandoned:
        assert not abandoned


# -- the end of a box ------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["tcp", "shm"])
def test_workers_of_a_box_with_a_journal_go_on_after_its_end(
    transport: str, start: Any, join: Any, tmp_path: Path
) -> None:
    bind = "tcp://127.0.0.1:0" if transport == "tcp" else f"shm://{tmp_path.name}"
    box = start("--snapshot", str(tmp_path / "box"), "--journal", "--every", "0.5", bind=bind)
    cluster = join(box.address)
    buffer, counter = made(cluster, "w", np.zeros(LENGTH, np.float32)), cluster.counter("n")
    one, x = np.ones(LENGTH, np.float32), np.zeros(LENGTH, np.float32)
    killer = threading.Thread(target=lambda: [time.sleep(0.7) or box.restart(0.1) for _ in "123"])
    killer.start()
    done = 0
    while killer.is_alive():
        buffer.axpy(1.0, at(one))
        buffer.elastic(0.0, at(x))
        done += 1
        assert counter.add(1) == done - 1
    assert box.restarts == 3 and done > 3
    assert np.array_equal(content(buffer), done * one)


def test_what_was_refused_does_not_keep_a_box_from_coming_back(
    start: Any, join: Any, tmp_path: Path
) -> None:
    """Numbers of refused requests are missing in the journal."""
    box = start("--snapshot", str(tmp_path / "box"), "--journal")
    cluster = join(box.address)
    buffer = made(cluster, "w", np.zeros(5000, np.float32))
    other = cluster.attach(cluster.create("other", 4000))
    payload = Payload("int8", 4900, feedback=False).pack(at(random(1, 4900)))
    for _ in range(3):
        with pytest.raises(BoxError):
            buffer.apply("axpy", payload, start=100, count=4900)
        with pytest.raises(BoxError):
            cluster.transports[0].call("apply", op="axpy", keys=[buffer.key], start=0, count=5000,
                                       k=[0.0] * 9, source=other.key)  # fmt: skip
        buffer.axpy(1.0, at(np.ones(5000, np.float32)))
    with pytest.raises(BoxError):
        buffer.apply("axpy", payload, start=100, count=4900)
    box.restart()
    buffer.axpy(1.0, at(np.ones(5000, np.float32)))
    box.restart()
    assert np.array_equal(content(buffer), np.full(5000, 4.0, np.float32))


def test_a_view_that_ended_with_its_box_is_not_read(start: Any, join: Any, tmp_path: Path) -> None:
    box = start("--snapshot", str(tmp_path / "box"), "--journal")
    cluster = join(box.address)
    buffer = made(cluster, "w", np.zeros(5000, np.float32))
    out = np.zeros(5000, np.float32)
    with cluster.snapshot(buffer) as view:
        box.restart()
        buffer.axpy(1.0, at(np.ones(5000, np.float32)))
        with pytest.raises(BoxError, match="no view was begun"):
            view.read(buffer, at(out))
    with cluster.snapshot(buffer) as view:
        view.read(buffer, at(out))
    assert np.array_equal(out, np.ones(5000, np.float32))


@pytest.mark.parametrize("transport", ["tcp", "shm"])
def test_the_end_of_a_box_without_a_journal_is_one_line(
    transport: str, start: Any, join: Any, tmp_path: Path
) -> None:
    bind = "tcp://127.0.0.1:0" if transport == "tcp" else f"shm://{tmp_path.name}"
    box = start(bind=bind)
    cluster: Cluster = join(box.address)
    buffer = made(cluster, "w", random(1, 5000))
    box.process.kill()
    begin = time.monotonic()
    with pytest.raises(PeerLost, match=r"memory box .* is gone: .* - allowed: .* - do: ") as told:
        while passed(begin) < 10:
            buffer.axpy(1.0, at(random(1, 5000)))
    assert passed(begin) < 2 and told.value.exit_code == 4 and "\n" not in str(told.value)


def test_workers_go_on_at_the_mirror(start: Any, join: Any) -> None:
    boxes = [start(), start()]
    addresses = [box.address for box in boxes]
    done, gaps = [0, 0], [0.0, 0.0]
    clusters = [join(*addresses, replicas=1) for _ in done]
    length = 300_000
    infos = [clusters[0].create(f"w{n}", length) for n in (0, 1)]
    ended = threading.Event()

    def work(number: int) -> None:
        buffer, one = clusters[number].attach(infos[number]), np.ones(length, np.float32)
        counter = clusters[number].counter(f"n{number}")
        while not ended.is_set():
            begin = time.monotonic()
            buffer.axpy(1.0, at(one))
            counter.add(1)
            done[number] += 1
            gaps[number] = max(gaps[number], passed(begin))

    threads = [threading.Thread(target=work, args=(n,)) for n in (0, 1)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    boxes[0].process.kill()
    before = list(done)
    time.sleep(3.0)
    ended.set()
    for thread in threads:
        thread.join(30)
    print("longest step, failover included:", [f"{gap:.3f} s" for gap in gaps])
    assert max(gaps) < 2 and all(after > b + 5 for after, b in zip(done, before, strict=True))
    for number, cluster in enumerate(clusters):
        out = np.zeros(length, np.float32)
        buffer = cluster.attach(infos[1 - number])
        buffer.read(at(out))
        assert out.min() == out.max() == done[1 - number]
        assert cluster.counter(f"n{number}").value == done[number]


def test_of_two_masters_exactly_one_creates(start: Any, join: Any) -> None:
    addresses = [start().address for _ in range(2)]
    masters = [join(*addresses) for _ in range(4)]
    barrier = threading.Barrier(len(masters))

    def create(master: Any, name: str) -> Any:
        barrier.wait(10)
        try:
            return master.create(name, 5000)
        except PlatformError as error:
            return error

    with ThreadPoolExecutor(len(masters)) as pool:
        for number in range(20):
            found = list(pool.map(create, masters, [f"b{number}"] * len(masters)))
            (info,) = (each for each in found if isinstance(each, dict))
            lost = [each for each in found if each is not info]
            assert all(
                isinstance(each, BoxError) and "exists already" in str(each) for each in lost
            )
            buffers = [master.attach(info) for master in masters]
            buffers[0].write(at(random(number, 5000)))
            assert all(np.array_equal(content(b), random(number, 5000)) for b in buffers)
