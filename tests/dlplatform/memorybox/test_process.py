"""The beginning and the end of box processes, and what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from liverun import shared_memory

from dlplatform.errors import EnvironmentMissing, PeerLost
from dlplatform.memorybox import wire
from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.process import Boxes

COMMAND = [sys.executable, "-m", "dlplatform.memorybox"]

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
        "from dlplatform.transports import inproc, shm, stream\n"
        "print([m for m in ('torch', 'numpy', 'mpi4py', 'rich', 'hydra',"
        " 'ssl', 'http', 'prometheus_client') if m in sys.modules])"
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
        assert text.startswith(f"{folder} is too small: a memory box needs 4.0 MiB more, 0.8 MiB")
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
    before = shared_memory()
    boxes = Boxes(2, "shm")
    cluster = Cluster(boxes.addresses, "job", boxes.secret.encode(), 5)
    cluster.attach(cluster.create("w", 1 << 20)).scal(1.0)
    for process in boxes.processes:
        process.kill()
        process.wait()
    cluster.close()
    boxes.stop()
    assert shared_memory() <= before


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


def test_an_address_in_use_is_refused() -> None:
    with Boxes(1, "tcp") as boxes:
        process = start("--bind", boxes.addresses[0])
        _, errors = process.communicate(timeout=10)
    assert process.returncode == 2
    assert "in use" in errors
    assert len(errors.splitlines()) == 1
