"""A box process among bad clients, and its own beginning and end."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import psutil
import pytest

from dlplatform.errors import BoxError, EnvironmentMissing, PeerLost, UsageError
from dlplatform.memorybox import wire
from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.process import Boxes

COMMAND = [sys.executable, "-m", "dlplatform.memorybox"]


@pytest.fixture(scope="module")
def boxes() -> Iterator[Boxes]:
    with Boxes(1, "tcp") as started:
        yield started


@pytest.fixture
def alive(boxes: Boxes) -> Iterator[Callable[[], None]]:
    """Check that the box still serves a worker, at once; also at the end of the test."""

    def check() -> None:
        begin = time.monotonic()
        cluster = Cluster(boxes.addresses, "witness", boxes.secret.encode(), 5)
        assert cluster.counter("n").add() == 0
        cluster.close()
        assert time.monotonic() - begin < 2
        assert boxes.processes[0].poll() is None

    check()
    yield check
    check()


@pytest.fixture
def stranger(boxes: Boxes) -> Iterator[Callable[[], socket.socket]]:
    """Connect without a word."""
    with ExitStack() as stack:

        def connect() -> socket.socket:
            host, port = boxes.addresses[0].removeprefix("tcp://").split(":")
            return stack.enter_context(socket.create_connection((host, int(port)), timeout=5))

        yield connect


@pytest.fixture
def known(boxes: Boxes, stranger: Callable[[], socket.socket]) -> Callable[..., socket.socket]:
    """Connect, show the secret, and open a job."""

    def connect(job: str = "known") -> socket.socket:
        link = stranger()
        wire.introduce(link, boxes.secret.encode(), "tcp://box")
        if job:
            assert ask(link, do="open", job=job) == {"ok": {}}
        return link

    return connect


def ask(link: socket.socket, **frame: Any) -> dict[str, Any]:
    wire.send(link, frame)
    return wire.receive(link)


def closed(link: socket.socket) -> bool:
    try:
        while link.recv(1 << 16):
            continue
    except ConnectionError:
        pass
    return True


# -- bad clients -----------------------------------------------------------------------------


def test_a_wrong_secret_is_refused_on_one_line(boxes: Boxes, alive: object) -> None:
    with pytest.raises(UsageError, match="refused this job's secret") as error:
        Cluster(boxes.addresses, "job", b"wrong", 5)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 4096,
        os.urandom(100_000),
        struct.pack("<I", 513) + b"x" * 513,  # no greeting is that long
        struct.pack("<I", 1) + msgpack.packb(7),
        struct.pack("<I", 0),
    ],
)
def test_garbage_from_strangers_ends_their_connection(
    stranger: Callable[[], socket.socket], alive: object, data: bytes
) -> None:
    link = stranger()
    with suppress(ConnectionError):
        link.sendall(data)
    assert closed(link)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 4096,
        struct.pack("<I", wire.LONGEST + 1) + b"x" * 1000,
        struct.pack("<I", 3) + b"\xc1\xc1\xc1",
        struct.pack("<I", 1) + msgpack.packb(None),
    ],
)
def test_garbage_from_workers_ends_their_connection(
    known: Callable[[], socket.socket], alive: object, data: bytes
) -> None:
    link = known()
    with suppress(ConnectionError):
        link.sendall(data)
    assert closed(link)


@pytest.mark.parametrize(
    "frame",
    [
        {"do": "push", "op": "format", "count": 5},
        {"do": "write", "key": "no", "start": 0, "count": 1 << 50},
        {"do": "write", "key": "no", "start": 0, "count": "all"},
        {"do": "push", "op": "axpy", "key": "no", "count": -5},
    ],
)
def test_a_stream_without_bounds_ends_its_connection(
    known: Callable[[], socket.socket], alive: object, frame: dict[str, Any]
) -> None:
    link = known()
    wire.send(link, frame)
    assert closed(link)


def test_half_open_connections_hinder_nobody(
    stranger: Callable[[], socket.socket], alive: Callable[[], None]
) -> None:
    for _ in range(50):
        stranger()
    stranger().sendall(b"\x05")  # half a length
    alive()


def test_the_job_comes_first(known: Callable[..., socket.socket], alive: object) -> None:
    link = known(job="")
    for command in ("create", "read", "push", "lock", "status"):
        assert "no job" in ask(link, do=command)["refused"]
    assert ask(link, do="open", job="late") == {"ok": {}}


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        ({"do": "statsu"}, "unknown; closest: status"),
        ({"do": ["x"]}, "unknown"),
        ({}, "unknown"),
        ({"do": "add", "name": "n", "n": {}}, "wrong fields"),
        ({"do": "join", "rank": "first"}, "invalid literal"),
        ({"do": "read", "key": "no", "start": 0, "count": 1}, "opens nothing"),
        ({"do": "read", "key": {}, "start": None}, "int"),
        ({"do": "lock", "key": "no"}, "opens nothing"),
        ({"do": "map"}, "map over tcp"),
        ({"do": "stream_read"}, "unknown"),
        ({"do": "wait", "name": "n", "at_least": 1.5, "ms": 0}, "wrong fields"),
    ],
)
def test_wrong_requests_are_refused_and_the_connection_goes_on(
    known: Callable[[], socket.socket], alive: object, frame: dict[str, Any], text: str
) -> None:
    link = known()
    assert text in ask(link, **frame)["refused"]
    assert "value" in ask(link, do="get", name="n")["ok"]


@pytest.mark.parametrize("size", [4, 1 << 20])
@pytest.mark.parametrize(
    "frame",
    [
        {"do": "write", "key": "no", "start": 0},
        {"do": "write", "key": "no", "start": "zero"},
        {"do": "push", "op": "axpy", "key": "no", "start": 0, "a": 1.0},
        {"do": "push", "op": "axpby", "key": "no", "start": 0, "a": "x"},
    ],
)
def test_the_bytes_of_a_refused_request_are_thrown_away(
    known: Callable[[], socket.socket], alive: object, frame: dict[str, Any], size: int
) -> None:
    link = known()
    wire.send(link, {**frame, "count": size // 4})
    link.sendall(b"\xff" * size)
    assert wire.receive(link)["refused"]
    assert "value" in ask(link, do="get", name="n")["ok"]


@pytest.mark.parametrize("op", ["elastic", "merge", "difference", "fetch", "axpy"])
@pytest.mark.parametrize("size", [10, 1 << 20])
def test_a_refused_operation_leaves_the_worker_connected(
    boxes: Boxes, alive: object, op: str, size: int
) -> None:
    cluster = Cluster(boxes.addresses, "refused", boxes.secret.encode(), 5)
    x = np.ones(size, np.float32)
    transport = cluster.transports[0]
    for _ in range(2):
        with pytest.raises(BoxError, match="opens nothing"):
            transport.apply(op, "no", 0, size, x.ctypes.data, x.ctypes.data, 0.5, 0.0)
    assert cluster.counter("n").add() == 0
    cluster.close()


def test_memory_deleted_while_it_is_sent_stays_until_it_is_sent(
    known: Callable[..., socket.socket], alive: object
) -> None:
    floats = 8 << 20
    reader, master = known("deleter"), known("deleter")
    key = ask(master, do="create", name="w", floats=floats)["ok"]["key"]
    before = ask(master, do="status")["ok"]["bytes"]
    wire.send(reader, {"do": "read", "key": key, "start": 0, "count": floats})
    time.sleep(0.1)  # the box now waits for the reader
    assert ask(master, do="delete", key=key) == {"ok": {}}
    assert ask(master, do="status")["ok"]["bytes"] == before - 4 * floats
    assert wire.receive(reader) == {"ok": {}}
    left = 4 * floats
    while left:
        left -= len(reader.recv(min(left, 1 << 20)))
    assert "opens nothing" in ask(reader, do="read", key=key, start=0, count=1)["refused"]


def test_a_worker_cut_in_the_middle_of_its_bytes_leaves_the_box_well(
    known: Callable[..., socket.socket], alive: object
) -> None:
    master = known("cut")
    key = ask(master, do="create", name="w", floats=1 << 20)["ok"]["key"]
    link = known("cut")
    span = {"key": key, "start": 0, "count": 1 << 20}
    wire.send(link, {"do": "push", "op": "axpy", "a": 1.0, **span})
    link.sendall(np.ones(100_000, np.float32).tobytes())
    link.close()
    time.sleep(0.1)
    wire.send(master, {"do": "read", **span})
    assert wire.receive(master) == {"ok": {}}
    data = b""
    while len(data) < 4 << 20:
        data += master.recv(1 << 20)
    found = np.frombuffer(data, np.float32)
    assert set(found.tolist()) <= {0.0, 1.0}
    assert found[100_000:].sum() == 0


# -- beginning and end -----------------------------------------------------------------------


def start(*options: str, secret: str = "s3cret", **settings: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *options], env={**os.environ, wire.SECRET: secret}, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings,
    )  # fmt: skip


def ready(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    return dict(json.loads(process.stdout.readline()))


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()


def test_a_box_starts_quickly_and_is_small() -> None:
    begin = time.monotonic()
    process = start("--bind", "tcp://127.0.0.1:0")
    ready(process)
    took = time.monotonic() - begin
    try:
        memory = psutil.Process(process.pid).memory_info().rss
        assert memory < 40 << 20
        assert took < 3  # 0.2 s on an idle machine
    finally:
        end(process)


def test_the_box_imports_neither_torch_nor_numpy_nor_mpi() -> None:
    code = (
        "import sys, dlplatform.memorybox.server, dlplatform.memorybox.cluster\n"
        "from dlplatform.transports import inproc, shm, tcp\n"
        "print([m for m in ('torch', 'numpy', 'mpi4py', 'rich', 'hydra') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_one_box_may_listen_at_several_addresses() -> None:
    process = start("--bind", "tcp://127.0.0.1:0", "--bind", "shm://test-several")
    try:
        told = ready(process)
        assert told["address"] == told["addresses"][0]
        near, far = (Cluster([uri], "job", b"s3cret", 5) for uri in reversed(told["addresses"]))
        info = near.create("w", 1000)
        theirs, ours = far.attach(info), near.attach(info)
        theirs.axpy(2.0, np.ones(1000, np.float32).ctypes.data)
        out = np.zeros(1000, np.float32)
        ours.read(out.ctypes.data)
        near.counter("n").add(3)
        assert far.counter("n").value == 3
        assert out.shape == (1000,)
        near.close()
        far.close()
    finally:
        end(process)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--bind", "udp://x:1"], "--bind udp://x:1: not an address of a box - allowed: "),
        (["--bind", "tcp://127.0.0.1"], "not an address"),
        (["--bind", "tcp://127.0.0.1:99999"], "--bind tcp://127.0.0.1:99999: "),
        (["--bind", "shm://"], "not an address"),
        (["--bind", "tcp://192.0.2.1:0"], "Cannot assign"),
        (["--bind", "shm://x" + "y" * 200], "too long"),
        (["--bind", "shm://t", "--memory", "/proc"], "memory=/proc cannot hold shared memory"),
        (["--bind", "shm://t", "--memory", "/nowhere"], "No such file or directory"),
    ],
)
def test_a_box_that_cannot_start_says_why_on_one_line(options: list[str], text: str) -> None:
    process = start(*options)
    out, errors = process.communicate(timeout=10)
    assert process.returncode in (2, 3)
    assert out == ""
    (line,) = errors.splitlines()
    assert line.startswith("dlp: error: ")
    assert text in line
    assert " - do: " in line


def test_an_address_in_use_is_refused(boxes: Boxes) -> None:
    process = start("--bind", boxes.addresses[0])
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 2
    assert "in use" in errors
    assert len(errors.splitlines()) == 1


def test_sigterm_ends_a_box_in_order() -> None:
    process = start("--bind", "shm://test-term")
    ready(process)
    time.sleep(0.1)
    process.terminate()
    _, errors = process.communicate(timeout=5)
    assert process.returncode in (0, -signal.SIGTERM)
    assert errors == ""


def test_the_lifeline_ends_a_box_once_nobody_is_connected() -> None:
    process = start("--bind", "tcp://127.0.0.1:0", "--lifeline")
    address = ready(process)["address"]
    host, port = address.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port))):  # a stranger does not keep it alive
        worker = Cluster([address], "job", b"s3cret", 5)
        assert process.stdin is not None
        process.stdin.close()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.4)
        assert worker.counter("n").add() == 0
        worker.close()
        assert process.wait(5) == 0
    end(process)


def test_without_a_lifeline_a_box_outlives_its_starter() -> None:
    process = start("--bind", "shm://test-alone")
    ready(process)
    assert process.stdin is not None
    process.stdin.close()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.4)
    end(process)


# -- memory ----------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Mount a tmpfs of a given size."""
    folders = []

    def mount(size: str) -> str:
        folder = tmp_path / size
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("may not mount a tmpfs here")
        folders.append(folder)
        return str(folder)

    yield mount
    for folder in folders:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_folder_too_small_for_a_buffer_is_one_clear_error(small: Callable[[str], str]) -> None:
    folder = small("1m")
    with Boxes(1, "shm", folder) as boxes:
        cluster = Cluster(boxes.addresses, "job", boxes.secret.encode(), 5)
        with pytest.raises(EnvironmentMissing) as error:
            cluster.create("w", 1 << 20)
        text = str(error.value)
        assert text.startswith(f"{folder} is too small: a memory box needs 4.0 MiB more, 0.5 MiB")
        assert text.count(" - ") == 2
        assert "\n" not in text
        cluster.attach(cluster.create("w", 1 << 15)).scal(1.0)  # what fits still does
        cluster.close()


def test_a_folder_too_small_for_a_box_is_one_clear_error(small: Callable[[str], str]) -> None:
    with pytest.raises(EnvironmentMissing, match=r"^/\S+ is too small: .* do: mount -o remount"):
        Boxes(1, "shm", small("128k"))


def test_a_killed_box_leaves_nothing_in_its_folder(small: Callable[[str], str]) -> None:
    folder = small("64m")

    def used() -> int:
        stats = os.statvfs(folder)
        return (stats.f_blocks - stats.f_bfree) * stats.f_frsize

    boxes = Boxes(1, "shm", folder)
    cluster = Cluster(boxes.addresses, "job", boxes.secret.encode(), 5)
    buffer = cluster.attach(cluster.create("w", 4 << 20))
    buffer.scal(1.0)
    assert used() > 16 << 20
    boxes.processes[0].kill()
    boxes.processes[0].wait()
    assert os.listdir(folder) == []
    with pytest.raises(PeerLost, match="is gone"):
        buffer.release()
    cluster.close()
    deadline = time.monotonic() + 5
    while used() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert used() == 0
    boxes.stop()


def test_killing_a_box_leaves_no_file_in_dev_shm() -> None:
    before = set(os.listdir("/dev/shm"))
    boxes = Boxes(2, "shm")
    cluster = Cluster(boxes.addresses, "job", boxes.secret.encode(), 5)
    cluster.attach(cluster.create("w", 1 << 20)).scal(1.0)
    for process in boxes.processes:
        process.kill()
        process.wait()
    cluster.close()
    boxes.stop()
    assert {name for name in set(os.listdir("/dev/shm")) - before if "dlp" in name} == set()


# -- Boxes -----------------------------------------------------------------------------------


def test_boxes_end_with_their_block_and_keep_their_order() -> None:
    with Boxes(3, "shm") as boxes:
        assert [uri.rpartition("-")[2] for uri in boxes.addresses] == ["0", "1", "2"]
        running = list(boxes.processes)
        assert all(process.poll() is None for process in running)
    assert [process.poll() for process in running] == [0, 0, 0]
    with pytest.raises(PeerLost, match="no memory box answers"):
        Cluster(boxes.addresses, "job", boxes.secret.encode(), 2)


def test_the_secret_of_boxes_is_on_no_command_line() -> None:
    with Boxes(1, "tcp") as boxes:
        line = " ".join(psutil.Process(boxes.processes[0].pid).cmdline())
        assert boxes.secret not in line


def test_boxes_that_cannot_start_leave_no_process() -> None:
    before = {child.pid for child in psutil.Process().children()}
    with pytest.raises(EnvironmentMissing, match="cannot hold shared memory"):
        Boxes(2, "shm", "/proc")
    assert {child.pid for child in psutil.Process().children()} <= before


def test_many_workers_connect_at_once(boxes: Boxes, alive: object) -> None:
    outcomes: list[int] = []

    def work() -> None:
        cluster = Cluster(boxes.addresses, "crowd", boxes.secret.encode(), 20)
        outcomes.append(cluster.counter("n").add())
        ended.wait(20)
        cluster.close()

    ended = threading.Barrier(24)
    threads = [threading.Thread(target=work) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(outcomes) == list(range(24))
