"""Disks and memory that are full or damaged, clocks that jump, snapshots beside the work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import Vector, at, content, made, random, wait_for

from dlplatform.errors import BoxError, EnvironmentMissing
from dlplatform.memorybox import wire
from dlplatform.transports.conduit import SocketConduit
from kernels import cpu

pytestmark = pytest.mark.slow

SMALL, NEVER = 1000, ("--every", "1000")
SECRET = "x" * 32


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount a tmpfs of so many KiB, or give the one there is another size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: int) -> Path:
        how = f"remount,size={size}k" if os.path.ismount(folder) else f"size={size}k"
        command = ["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(folder)]
        if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("only root mounts a small disk")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave no room on a disk."""
    path = folder / "filler"
    with open(path, "wb", buffering=0) as out:
        try:
            while True:
                out.write(bytes(4096))
        except OSError:
            return path


def ones(length: int = SMALL) -> Vector:
    return np.ones(length, np.float32)


def free(folder: Path) -> int:
    stats = os.statvfs(folder)
    return stats.f_bavail * stats.f_frsize


# -- full ------------------------------------------------------------------------------------------


def test_a_full_disk_keeps_the_old_snapshot_and_the_data_plane(
    disk: Any, start: Any, join: Any
) -> None:
    folder = disk(6 * 1024)
    box = start("--snapshot", str(folder), "--journal", *NEVER)
    cluster = join(box.address)
    buffer = made(cluster, "w", ones())
    large = cluster.attach(cluster.create("large", 1 << 20))  # 4 MiB
    old = box.order("snapshot")["written"]
    for _ in range(3):
        with pytest.raises(EnvironmentMissing, match=r"No space left .* - do: make room"):
            box.order("snapshot")
        buffer.axpy(1.0, at(ones()))
    assert Path(old[0]).is_dir() and not list(folder.glob("*/partial"))
    assert "No space left" in box.order("status")["snapshots"]["failed"]
    box.restart()
    buffer.axpy(1.0, at(ones()))
    assert np.array_equal(content(buffer), 5 * ones()), "an old snapshot and several journals"
    disk(20 * 1024)
    new = box.order("snapshot")["written"]
    assert box.order("status")["snapshots"]["failed"] == ""
    assert [str(p) for p in folder.glob("*/snapshot-*")] == new != old
    box.restart()
    assert np.array_equal(content(buffer), 5 * ones())
    assert not content(large).any()


def test_a_full_disk_for_the_journal_refuses_updates(disk: Any, start: Any, join: Any) -> None:
    folder = disk(3 * 1024)
    box = start("--snapshot", str(folder), "--journal", *NEVER)
    cluster = join(box.address)
    buffer, counter = made(cluster, "w", 0 * ones()), cluster.counter("n")
    done = added = 0
    for _ in range(2):
        filler = fill(folder)
        refused = 0
        while refused < 3:
            try:
                buffer.axpy(1.0, at(ones()))
                done += 1
            except EnvironmentMissing as error:
                assert "No space left" in str(error) and "do: " in str(error)
                refused += 1
        with pytest.raises(EnvironmentMissing, match="the update was not done"):
            while counter.add(1) < 1000:
                added += 1
        assert np.array_equal(content(buffer), done * ones())
        assert counter.value == added
        filler.unlink()
        buffer.axpy(1.0, at(ones()))
        assert counter.add(1) == added
        done, added = done + 1, added + 1
    box.restart()
    buffer.axpy(1.0, at(ones()))
    assert np.array_equal(content(buffer), (done + 1) * ones())
    assert counter.value == added


def test_memory_that_is_used_up_is_an_error_and_nothing_leaks(
    disk: Any, start: Any, join: Any
) -> None:
    folder = disk(10 * 1024)
    room = free(folder)
    box = start("--memory", str(folder))
    cluster = join(box.address)
    buffer = made(cluster, "w", random(1, 5 << 18))  # 5 MiB
    left = free(folder)
    for _ in range(3):
        with pytest.raises(EnvironmentMissing, match=r"too small: .* 8\.0 MiB more, .* is free"):
            cluster.create("more", 2 << 20)
    assert free(folder) == left
    more = cluster.attach(cluster.create("more", 1 << 18))
    with pytest.raises(BoxError, match=r"a snapshot needs .* more"), cluster.snapshot(buffer):
        raise AssertionError("there was no room for a view")
    with cluster.snapshot(more):
        buffer.axpy(1.0, at(random(2, 5 << 18)))
    assert np.array_equal(content(buffer), random(1, 5 << 18) + random(2, 5 << 18))
    cluster.close()
    wait_for(lambda: free(folder) == room, 5)


# -- damaged ---------------------------------------------------------------------------------------


def attempt(folder: Path) -> subprocess.CompletedProcess[str]:
    """Start a box that should refuse to."""
    command = [sys.executable, "-m", "dlplatform.memorybox", "--bind", "tcp://127.0.0.1:0"]
    return subprocess.run(
        [*command, "--snapshot", str(folder)], capture_output=True, text=True, timeout=20,
        env={**os.environ, "DLP_SECRET": SECRET},
    )  # fmt: skip


def test_half_a_snapshot_is_never_read(start: Any, join: Any, tmp_path: Path) -> None:
    folder = tmp_path / "box"
    box = start("--snapshot", str(folder), "--journal", *NEVER)
    buffer = made(join(box.address), "w", random(1, 5000))
    (snapshot,) = (Path(path) for path in box.order("snapshot")["written"])
    box.process.kill()
    box.process.wait()
    partial = snapshot.parent / "partial"
    partial.mkdir()
    (partial / "0.f32").write_bytes(bytes(20_000))
    for name in ("0.f32", "state.msgpack"):
        whole = (snapshot / name).read_bytes()
        for part in (whole[: len(whole) // 2], b"", whole[:-1]):
            (snapshot / name).write_bytes(part)
            done = attempt(folder)
            assert done.returncode == 3, done.stderr
            assert done.stderr.count("\n") == 1 and "is damaged: " in done.stderr
        (snapshot / name).write_bytes(whole)
    box.restart()
    assert not partial.exists()
    assert np.array_equal(content(buffer), random(1, 5000))


def test_a_torn_record_is_never_read(start: Any, join: Any, tmp_path: Path) -> None:
    box = start("--snapshot", str(tmp_path / "box"), "--journal", *NEVER)
    cluster = join(box.address)
    buffer = made(cluster, "w", 0 * ones())
    (journal,) = (tmp_path / "box").glob("*/journal-*.log")
    buffer.axpy(1.0, at(ones()))
    before = journal.stat().st_size
    buffer.axpy(1.0, at(ones()))
    whole = journal.read_bytes()
    for torn in (whole[: before + 30], whole[: before + 200], whole[:-1], whole[:-9] + b"\1" * 9,
                 whole[:before] + b"\0" * 64):  # fmt: skip
        box.process.kill()
        box.process.wait()
        journal.write_bytes(torn)
        box.restart()
        look = join(box.address, job="job")
        again = look.attach(buffer.info)
        assert np.array_equal(content(again), ones()), "the last record had no end"
        assert journal.stat().st_size <= before + 2000
    whole = journal.read_bytes()
    box.process.kill()
    box.process.wait()
    journal.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    done = attempt(tmp_path / "box")
    assert done.returncode == 3 and "is damaged at byte" in done.stderr, done.stderr
    assert journal.read_bytes()[:100] == whole[:100], "nothing was thrown away"


# -- mirrors ---------------------------------------------------------------------------------------


def held(box: Any, job: str, mirror: str, key: str, length: int) -> tuple[Vector, int]:
    """Read what a box has of another one: a buffer, and the counter n."""
    out, answers = ones(length), []
    with wire.connect(box.address, 5.0) as link:
        wire.introduce(link, SECRET.encode(), box.address)
        link.settimeout(None)
        for frame in (
            {"do": "open", "job": job, "token": "probe", "lane": "0", "mirror": mirror},
            {"do": "get", "name": "n"},
            {"do": "read", "key": key, "start": 0, "count": length},
        ):
            wire.send(link, frame)
            answer = wire.receive(link)
            assert "ok" in answer, answer
            answers.append(answer["ok"])
        conduit = SocketConduit(link)
        cpu.check(cpu.receive(conduit.address, at(out), 4 * length))
    return out, answers[1]["value"]


def test_a_mirror_with_a_journal_comes_back_with_everything(
    start: Any, join: Any, tmp_path: Path
) -> None:
    first = start()
    second = start("--snapshot", str(tmp_path / "box"), "--journal", "--every", "0.2")
    cluster = join(first.address, second.address, replicas=1, timeout_s=5.0)
    length = cpu.STRIPE
    buffer, counter = made(cluster, "w", 0 * ones(length)), cluster.counter("n")
    for number in range(40):
        if number == 20:
            first.process.kill()
        buffer.axpy(1.0, at(ones(length)))
        assert counter.add(1) == number
    piece = buffer.segments[0]
    second.restart()
    seen, value = held(second, "job", first.address, buffer.key, piece.length)
    assert np.array_equal(seen, 40 * ones(piece.length)) and value == 40


# -- clocks ----------------------------------------------------------------------------------------

SHIFT = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static volatile long shift;
static void jump(int number) { shift = number == SIGUSR1 ? shift + 3600 : shift - 7200; }
__attribute__((constructor)) static void begin(void) {
    signal(SIGUSR1, jump), signal(SIGUSR2, jump);
}
int clock_gettime(clockid_t id, struct timespec *t) {
    int r = (int)syscall(SYS_clock_gettime, id, t);
    if (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE || id == CLOCK_TAI) t->tv_sec += shift;
    return r;
}
int gettimeofday(struct timeval *restrict t, void *restrict z) {
    struct timespec now;
    (void)z, clock_gettime(CLOCK_REALTIME, &now);
    t->tv_sec = now.tv_sec, t->tv_usec = now.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *to) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to) *to = now.tv_sec;
    return now.tv_sec;
}
"""
WAITER = """
import json, os, signal, sys, threading, time
import numpy as np
from dlplatform.errors import PlatformError
from dlplatform.memorybox.cluster import Cluster
from kernels import cpu
cpu.patience(1500)
clusters = [Cluster([sys.argv[1]], "job", b"x" * 32, 3.0) for _ in (0, 1)]
buffer = clusters[0].buffer("w", 5000, True)
other = clusters[1].buffer("w", 5000, False)
wall, begin = time.time(), time.monotonic()

def jumps():
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1, signal.SIGUSR2):
        time.sleep(0.25)
        os.kill(os.getpid(), number), os.kill(int(sys.argv[2]), number)

def timed(work):
    begin = time.monotonic()
    try:
        work()
        how = "done"
    except PlatformError as error:
        how = type(error).__name__
    return [how, time.monotonic() - begin]

thread = threading.Thread(target=jumps)
thread.start()
x = np.ones(5000, np.float32)
found = [timed(lambda: clusters[0].counter("n").wait(1, 1.2))]
held = threading.Thread(target=lambda: found.append(timed(other.locked().__enter__)))
with buffer.locked():
    held.start()
    held.join()
thread.join()
found.append(timed(lambda: other.axpy(1.0, x.ctypes.data)))
found.append(["clock", time.time() - wall - (time.monotonic() - begin)])
print(json.dumps(found))
"""


@pytest.mark.parametrize("transport", ["tcp", "shm"])
def test_jumps_of_the_clock_change_no_wait_no_lock_no_lease(
    transport: str, start: Any, tmp_path: Path
) -> None:
    source, library = tmp_path / "shift.c", tmp_path / "shift.so"
    source.write_text(SHIFT)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    bind = "tcp://127.0.0.1:0" if transport == "tcp" else f"shm://{tmp_path.name}"
    env = {"LD_PRELOAD": str(library)}
    patience = "from kernels import cpu; cpu.patience(1500); import sys; "
    program = ("-c", patience + "from dlplatform.memorybox.server import main; main(sys.argv[1:])")
    box = start(bind=bind, env=env, program=program)
    command = [sys.executable, "-c", WAITER, box.address, str(box.process.pid)]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    waited, locked, pushed, clock = json.loads(done.stdout)
    assert clock[1] < -3600, "the clock did jump"
    assert waited[0] == "PeerLost" and 1.1 < waited[1] < 2.5
    assert locked[0] == "BoxError" and 1.2 < locked[1] < 3.5
    assert pushed[0] == "done" and pushed[1] < 1
    box.process.send_signal(signal.SIGUSR1)
    assert box.order("status")["uptime_s"] < 60


# -- snapshots beside the data plane ---------------------------------------------------------------


def longest(buffer: Any, seconds: float) -> tuple[float, int]:
    """Return the longest time of a small update, and how many there were."""
    small, worst, count, end = ones(), 0.0, 0, time.monotonic() + seconds
    while (begin := time.monotonic()) < end:
        buffer.apply("axpy", at(small), start=0, count=SMALL)
        worst, count = max(worst, time.monotonic() - begin), count + 1
    return worst, count


def test_snapshots_do_not_stop_the_data_plane(start: Any, join: Any, tmp_path: Path) -> None:
    box = start("--snapshot", str(tmp_path / "box"), "--journal", *NEVER)
    cluster = join(box.address)
    buffer = cluster.attach(cluster.create("w", 64 << 20))  # 256 MiB
    longest(buffer, 0.5)
    gaps = []
    for _ in range(3):
        quiet, _ = longest(buffer, 1.5)
        thread = threading.Thread(target=box.order, args=("snapshot",))
        thread.start()
        busy, done = longest(buffer, 1.5)
        thread.join()
        gaps.append((busy - quiet, busy, quiet))
        assert done > 100
    print("longest update beside a snapshot of 256 MiB, and without:",
          [f"{1000 * b:.1f} - {1000 * q:.1f} ms" for _, b, q in gaps])  # fmt: skip
    assert min(gaps)[0] < 0.05, gaps
