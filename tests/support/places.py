"""Running boxes for the conformance suite of transports, and workers of their jobs."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hands
import numpy as np
import pytest

from dlplatform.memorybox.buffer import SharedBuffer
from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.process import Boxes
from dlplatform.transports.conduit import Conduit, dial_socket
from kernels import cpu

BOXES = 3
LENGTH = 2 * cpu.STRIPE + 3001
Vector = np.ndarray
GUEST = "RDMA_VM" in os.environ
PATIENCE = 4.0 if GUEST else 1.0
"""An emulated machine takes longer, the more so with others beside it."""
OPEN_S = 20.0 * PATIENCE


@dataclass
class Place:
    """Running boxes and how to open a cluster on them."""

    name: str
    addresses: list[str]
    secret: str = ""
    processes: list[Any] = field(default_factory=list)
    ca: str = ""


@contextmanager
def inproc(count: int) -> Iterator[Place]:
    yield Place("inproc", [f"inproc://conformance-{n}" for n in range(count)])


def processes(transport: str) -> Callable[[int], Any]:
    @contextmanager
    def start(count: int) -> Iterator[Place]:
        with Boxes(count, transport) as boxes:
            yield Place(transport, boxes.addresses, boxes.secret, boxes.processes)

    return start


def certificate(folder: Path, name: str = "127.0.0.1") -> tuple[str, str]:
    """Make a self-signed certificate; return its file and its key's."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command to make a certificate with")
    cert, key = folder / "cert.pem", folder / "key.pem"
    kind = "IP" if name[0].isdigit() else "DNS"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=box", "-addext", f"subjectAltName={kind}:{name}",
         "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    return str(cert), str(key)


@contextmanager
def encrypted(count: int) -> Iterator[Place]:
    with TemporaryDirectory() as folder:
        cert, key = certificate(Path(folder))
        options = ("--tls-cert", cert, "--tls-key", key)
        with Boxes(count, "tls", options=options) as boxes:
            yield Place("tls", boxes.addresses, boxes.secret, boxes.processes, cert)


@contextmanager
def ranks(count: int) -> Iterator[Place]:
    assert hands.crew is not None
    boxes = hands.crew.addresses(count)
    processes = [hands.crew.box(rank) for rank in boxes]
    yield Place("mpi", [f"mpi://{rank}" for rank in boxes], hands.SECRET, processes)


TRANSPORTS: dict[str, Callable[[int], Any]] = {
    "inproc": inproc,
    "shm": processes("shm"),
    "tcp": processes("tcp"),
    "tls": encrypted,
    "verbs": processes("verbs"),
}
if hands.crew is not None:  # inside an MPI job: tests/support/hands.py
    TRANSPORTS["mpi"] = ranks
TESTED = ["mpi"] if hands.crew is not None else list(TRANSPORTS)
APART = [name for name in TESTED if name != "inproc"]
"""Those whose boxes are processes, so that one side can die without the other."""


def each(names: Iterable[str]) -> list[Any]:
    """Return names of transports as parameters: one that needs a device is marked so."""
    return [pytest.param(n, marks=pytest.mark.rdma) if n == "verbs" else n for n in names]


@cache
def standing(transport: str) -> Place:
    """Return boxes that stand for all tests of this process: tests must leave them as they were."""
    started = ExitStack()
    atexit.register(started.close)
    return started.enter_context(TRANSPORTS[transport](BOXES))


Open = Callable[..., Cluster]


def connect(where: Place, job: str, boxes: int = 1, timeout_s: float = OPEN_S) -> Cluster:
    return Cluster(where.addresses[:boxes], job, where.secret.encode(), timeout_s, ca=where.ca)


def dial(where: Place, timeout_s: float) -> Conduit:
    """Return a connection to the first box, for frames made by hand."""
    if hands.crew is not None:
        return hands.crew.ranks.dial(where.addresses[0], timeout_s)
    return dial_socket(where.addresses[0], timeout_s, where.ca)


alive: deque[Vector] = deque(maxlen=16)


def at(array: Vector) -> int:
    """Return the address of an array, and keep it for the next few calls."""
    alive.append(array)
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    return int(array.ctypes.data)


@cache
def _drawn(seed: int, size: int) -> Vector:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def random(seed: int, size: int = LENGTH) -> Vector:
    return _drawn(seed, size).copy()


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


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> float:
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds * PATIENCE, "waited too long"
        time.sleep(0.005)
    return time.monotonic() - begin


@contextmanager
def in_background(work: Callable[[], object]) -> Iterator[threading.Thread]:
    """Run work in a thread that has to end with the block, or soon after."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(20 * PATIENCE)
        assert not thread.is_alive()


# -- worker processes (threads where the box is inside this process) -------------------------

RUNNER = """
import json, os, sys
from dlplatform.memorybox.cluster import Cluster
exec(sys.argv[1])
rank = int(sys.argv[2])
cluster = Cluster(sys.argv[5:], sys.argv[3], os.environ["DLP_SECRET"].encode(), float(sys.argv[4]))
result = main(cluster, rank)
cluster.close()
print(json.dumps(result), flush=True)
"""


def spawn(where: Place, job: str, code: str, rank: int, boxes: int = 1) -> Any:
    if hands.crew is not None and where.name == "mpi":
        return hands.crew.spawn(code, rank, job, where.addresses[:boxes])
    command = [sys.executable, "-c", RUNNER, code, str(rank), job, str(OPEN_S)]
    command += where.addresses[:boxes]
    env = {**os.environ, "DLP_SECRET": where.secret, "DLP_CA": where.ca}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


class Worker:
    """Code run by another worker of the job; ``result`` waits for what its main returns."""

    def __init__(self, where: Place, job: str, code: str, rank: int, boxes: int = 1) -> None:
        self.process = None if where.name == "inproc" else spawn(where, job, code, rank, boxes)
        self.done: Any = None
        if self.process is None:
            names: dict[str, Any] = {}
            exec(code, names)
            self.thread = threading.Thread(target=self._run, args=(where, job, names, rank, boxes))
            self.thread.start()

    def _run(self, where: Place, job: str, names: dict[str, Any], rank: int, boxes: int) -> None:
        cluster = connect(where, job, boxes)
        self.done = names["main"](cluster, rank)
        cluster.close()

    def result(self) -> Any:
        if self.process is None:
            self.thread.join(20)
            return self.done
        out, _ = self.process.communicate(timeout=60 * PATIENCE)
        assert self.process.returncode == 0
        return json.loads(out.splitlines()[-1])
