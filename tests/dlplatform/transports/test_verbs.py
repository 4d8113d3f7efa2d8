"""Boxes over RDMA: what only they can do, faults of their own, and a training through them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
from places import Place, Worker, at, connect, content, made, random, standing

from dlplatform.errors import BoxError, PeerLost
from dlplatform.memorybox import wire
from dlplatform.memorybox.box import Limits, MemoryBox
from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.connection import Connection
from dlplatform.memorybox.memory import Memory
from dlplatform.memorybox.process import Boxes
from dlplatform.memorybox.server import Server, listen
from dlplatform.transports.verbs import fabric
from dlplatform.transports.verbs.box import pair, prepare
from dlplatform.transports.verbs.conduit import VerbsConduit
from kernels import cpu
from launch.doctor.machine import rdma as rdma_report

LENGTH = 2 * cpu.CHUNK + 70_001
rdma = pytest.mark.rdma


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def place() -> Place:
    return standing("verbs")


def joined(place: Place, opened: ExitStack, job: str, boxes: int = 2) -> Cluster:
    cluster = connect(place, job, boxes)
    opened.callback(cluster.close)
    return cluster


def conduits(cluster: Cluster) -> list[VerbsConduit]:
    lanes = [lane for t in cluster.transports for lane in t.link._lanes]  # type: ignore[attr-defined]
    found = [lane.conduit for lane in lanes]
    return [conduit for conduit in found if conduit is not None]


# -- what the box has no part in -------------------------------------------------------------------


@rdma
def test_stopped_boxes_are_read(place: Place, opened: ExitStack) -> None:
    """A buffer striped over two boxes, and a counter, while both processes stand still."""
    cluster = joined(place, opened, "stopped")
    data, patch = random(1, LENGTH), random(2, 1000)
    buffer, counter = made(cluster, "w", data), cluster.counter("n")
    assert len(buffer.segments) == 2
    counter.add(7)
    content(buffer)  # now it is known where the segments are
    assert counter.value == 7
    buffer.write(at(patch), LENGTH // 2 - 500, 1000)  # in both boxes
    data[LENGTH // 2 - 500 : LENGTH // 2 + 500] = patch
    for process in place.processes:
        process.send_signal(signal.SIGSTOP)
    try:
        assert np.array_equal(content(buffer), data)
        buffer.read()  # its local region, without a stage between
        assert counter.value == 7
    finally:
        for process in place.processes:
            process.send_signal(signal.SIGCONT)
    region = np.ctypeslib.as_array((cpu.c_float * LENGTH).from_address(buffer.region))
    assert np.array_equal(region, data)
    assert counter.add() == 7


@rdma
@pytest.mark.parametrize("floats", [1, cpu.CHUNK, 20 * cpu.CHUNK + 5])
@pytest.mark.parametrize("kind", ["kept", "other"])
def test_memory_of_either_kind_is_read_into(
    place: Place, opened: ExitStack, kind: str, floats: int
) -> None:
    """More pieces than may be on their way; beyond the end nothing is touched."""
    cluster = joined(place, opened, f"into-{kind}-{floats}", 1)
    data = random(3, floats)
    buffer, memory, other = made(cluster, "w", data), Memory(floats + 2), np.zeros(floats + 2, "f4")
    kept = np.ctypeslib.as_array((cpu.c_float * (floats + 2)).from_address(memory.address))
    into = kept if kind == "kept" else other
    into[[0, -1]] = 5
    buffer.read(into.ctypes.data + 4)
    assert np.array_equal(into[1:-1], data)
    assert into[[0, -1]].tolist() == [5, 5]
    assert bool(memory.pins) == (kind == "kept")


@rdma
def test_what_was_deleted_cannot_be_read_any_more(place: Place, opened: ExitStack) -> None:
    """The box takes the memory from the device; a worker that knows where it was is cut off."""
    cluster, other = (joined(place, opened, "deleted", 1) for _ in range(2))
    buffer = made(cluster, "w", random(4, LENGTH))
    theirs = other.attach(buffer.info)
    content(theirs)
    for one in (theirs, buffer):
        one.release()
    buffer.delete()
    with pytest.raises(BoxError, match="opens nothing in this box"):
        other.transports[0].read(buffer.key, 0, 10, at(np.zeros(10, np.float32)))
    assert np.array_equal(content(made(other, "again", random(5, 100))), random(5, 100))


@contextmanager
def box(*words: str, before: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    """Start a box by hand; ``before`` runs it in other conditions."""
    line = [*before, sys.executable, "-m", "dlplatform.memorybox", *words]
    with subprocess.Popen(
        line, env={**os.environ, "DLP_SECRET": "secret"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def addresses(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    found: list[str] = json.loads(process.stdout.readline())["addresses"]
    return found


@rdma
def test_workers_over_rdma_and_on_the_host_of_the_box_share_a_buffer(opened: ExitStack) -> None:
    words = ("--bind", f"shm://both-{os.getpid()}", "--bind", "verbs://10.99.1.1:0")
    where = addresses(opened.enter_context(box(*words)))
    near, far = (joined(Place("", [uri], "secret"), opened, "both", 1) for uri in where)
    assert (near.mapped, far.mapped) == (True, False)
    assert conduits(far)[0].end.outlet.device == "rxe1"  # of the address
    buffer = made(far, "w", random(6, LENGTH))
    ours = near.attach(buffer.info)
    ours.axpy(2.0, at(np.ones(LENGTH, np.float32)))
    assert np.array_equal(content(buffer), random(6, LENGTH) + np.float32(2))
    near.counter("n").add(3)
    assert far.counter("n").value == 3
    begin = time.monotonic()
    waker = threading.Timer(0.3, partial(far.counter("n").add, 1))
    waker.start()
    near.counter("n").wait(4, 20)  # who waits in mapped memory is woken
    assert 0.2 < time.monotonic() - begin < 5


# -- faults ----------------------------------------------------------------------------------------


class Here:
    """A box in this process, so that both ends of a connection are in reach."""

    def __init__(self) -> None:
        box = MemoryBox(Limits(grace_s=20))  # connecting takes its time under emulation
        self.server, self.made = Server(box, b"secret"), []
        prepare([""])
        self.server.pair = self.pair
        self.listener, self.address = listen("verbs://127.0.0.1:0")
        threading.Thread(target=self.server.accept, args=(self.listener,), daemon=True).start()

    def pair(self, connection: Connection, card: Any) -> None:
        pair(connection, card)
        self.made.append(connection.link)


@rdma
@pytest.mark.parametrize("side", ["worker", "box"])
def test_a_queue_pair_torn_in_mid_transfer_is_made_again_and_nothing_is_done_twice(
    opened: ExitStack, side: str
) -> None:
    here = Here()
    cluster = joined(Place("verbs", [here.address], "secret"), opened, "torn", 1)
    buffer, ones = cluster.buffer("w", LENGTH, True), np.ones(LENGTH, np.float32)
    z, torn = np.empty_like(ones), []

    def tear() -> None:
        """Break each new connection when it is in the middle of something."""
        end = time.monotonic() + 60
        while len(torn) < 6:
            assert time.monotonic() < end
            for one in conduits(cluster) if side == "worker" else here.made[-2:]:
                moved = one._sent if side == "worker" else one._in.filled
                if one not in torn and moved > 3 + len(torn):
                    one._pair.tear()
                    torn.append(one)
            time.sleep(0.001)

    with ThreadPoolExecutor(1) as pool:
        tearing, count = pool.submit(tear), 0
        while not tearing.done():
            buffer.axpy(1.0, at(ones))
            buffer.difference(0.0, at(ones), at(z))  # bytes both ways
            content(buffer)
            count += 1
        tearing.result()
    assert len(here.made) > 6
    assert (content(buffer) == count).all()
    assert not z.any()


@rdma
def test_a_box_killed_in_mid_transfer_is_one_line_and_exit_code_4(opened: ExitStack) -> None:
    lone = opened.enter_context(Boxes(1, "verbs"))
    cluster = joined(Place("verbs", lone.addresses, lone.secret), opened, "killed", 1)
    buffer, ones = cluster.buffer("w", LENGTH, True), np.ones(LENGTH, np.float32)
    killed: list[float] = []

    def kill() -> None:
        killed.append(time.monotonic())
        lone.processes[0].kill()

    threading.Timer(0.5, kill).start()
    with pytest.raises(PeerLost, match=r"memory box verbs://.* is gone: .* - do: ") as lost:
        while True:
            buffer.axpy(1.0, at(ones))
            content(buffer)
    assert killed
    assert time.monotonic() - killed[0] < 5
    assert lost.value.exit_code == 4
    assert "\n" not in str(lost.value)


@rdma
def test_a_limit_on_locked_memory_is_one_line_with_the_remedy(place: Place) -> None:
    """Root may lock what it likes, unless it has lost the right to."""
    poor = ("prlimit", "--memlock=65536", "setpriv", "--bounding-set=-ipc_lock")
    with box("--bind", "verbs://127.0.0.1:0", before=poor) as process:
        assert process.wait(90) == 3
        assert process.stderr is not None
        said = process.stderr.read()
    assert said.startswith("dlp: error: registering 1.0 MiB with the RDMA device: ")
    assert "allowed: ulimit -l is 0.0625 MiB - do: ulimit -l unlimited" in said
    assert said.count("\n") == 1
    code = f"""
from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.connection import Connection
Cluster({place.addresses!r}, secret=b"{place.secret}")
"""
    done = subprocess.run([*poor, sys.executable, "-c", code], capture_output=True, text=True)
    assert "EnvironmentMissing: registering 1.0 MiB" in done.stderr.splitlines()[-1]


@rdma
@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"qpn": -1}, "queue pair at ::ffff:"), ({"gid": "x"}, "queue pair at x: "),
        ({"reads": None}, "queue pair at "), ({"rkey": 1 << 40}, "slots at "),
        ({"qpn": 0}, ""),  # somebody, or nobody, is there: the secret is not proved
    ],
)  # fmt: skip
def test_a_false_card_is_refused_and_harms_nobody(
    place: Place, wrong: dict[str, Any], text: str, opened: ExitStack
) -> None:
    card = {"qpn": 17, "gid": fabric.choose().gid, "lid": 0, "mtu": 3, "reads": 1}
    with wire.connect(place.addresses[0], 10) as link:
        wire.introduce(link, place.secret.encode(), place.addresses[0])
        wire.send(link, {"do": "pair", "card": {**card, "at": 0, "rkey": 0, **wrong}})
        answer = wire.receive(link)
        assert text in answer.get("refused", "") if text else "ok" in answer
    assert joined(place, opened, "after", 1).counter("n").value == 0


@rdma
def test_a_box_that_speaks_tcp_only_says_so(opened: ExitStack) -> None:
    with Boxes(1, "tcp") as plain:
        uri = plain.addresses[0].replace("tcp", "verbs")
        with pytest.raises(BoxError, match=r"pair .* - allowed: .*--bind verbs://HOST:PORT"):
            connect(Place("verbs", [uri], plain.secret), "job")


@rdma
def test_a_box_is_looked_after_over_tcp(place: Place) -> None:
    """Orders need no queue pair, so a desk without RDMA can give them."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from launch.boxes import main; main(sys.argv[1:])",
         "status", place.addresses[0], "--json"],
        capture_output=True, text=True, check=True, env={**os.environ, "DLP_SECRET": place.secret},
    )  # fmt: skip
    assert json.loads(done.stdout)["jobs"] is not None


# -- a training ------------------------------------------------------------------------------------

TRAIN = """
def main(cluster, rank):
    weights = cluster.attach(cluster.lookup("buffer/weights"))
    claimed, here = cluster.counter("claimed"), cluster.counter("here")
    here.add()
    here.wait(2, 60)
    flat, taken = numpy.empty(weights.length, numpy.float32), 0
    while (number := claimed.add()) < MINIBATCHES:
        weights.read(flat.ctypes.data)
        x, y = batch(number)
        gradient = descent(flat, x, y)
        weights.axpy(-0.02, gradient.ctypes.data)
        taken += 1
    return taken

import numpy
"""
PROBLEM = """
import numpy
FEATURES, CLASSES, MINIBATCHES = 128, 10, 40
CENTRES = numpy.random.default_rng(0).standard_normal((CLASSES, FEATURES))

def batch(number):
    draw = numpy.random.default_rng([1, number])
    y = draw.integers(0, CLASSES, 32)
    return (CENTRES[y] + 1.5 * draw.standard_normal((32, FEATURES))).astype(numpy.float32), y

def scores(flat, x):
    return x @ flat.reshape(FEATURES, CLASSES)

def descent(flat, x, y):
    p = scores(flat, x)
    p = numpy.exp(p - p.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[numpy.arange(len(y)), y] -= 1
    return numpy.ascontiguousarray(x.T @ p / len(y), numpy.float32).ravel()
"""


@rdma
def test_two_workers_train_through_two_boxes(place: Place, opened: ExitStack) -> None:
    """Asynchronous SGD: numbers claimed by counter, weights read, gradients added."""
    problem: dict[str, Any] = {}
    exec(PROBLEM, problem)
    cluster = joined(place, opened, "training")
    size = problem["FEATURES"] * problem["CLASSES"]
    weights = made(cluster, "weights", np.zeros(size, np.float32))
    assert len(weights.segments) == 2
    workers = [Worker(place, "training", TRAIN + PROBLEM, rank, 2) for rank in range(2)]
    taken = [worker.result() for worker in workers]
    assert sum(taken) == problem["MINIBATCHES"]
    assert min(taken) > 0
    x, y = problem["batch"](10_000)
    found = problem["scores"](content(weights), x).argmax(1)
    assert (found == y).mean() > 0.95


@rdma
def test_the_doctor_names_ports_and_gids() -> None:
    found = {one.what: one.value for one in rdma_report()}
    assert found["RDMA rxe0:1"].startswith("active; GIDs 0 fe80:")
    assert found["RDMA rxe1:1"].endswith("1 ::ffff:a63:101")
    assert found["RDMA choice"].startswith("rxe0:1, GID 1;")
