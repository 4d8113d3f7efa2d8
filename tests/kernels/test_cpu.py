"""Counters, locks and mappings of the C kernels, across processes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from kernels import cpu

STRIPE = cpu.STRIPE


# -- across processes ----------------------------------------------------------------------

CHILD = """
import os, sys, time
from kernels import cpu
fd, what = int(sys.argv[1]), sys.argv[2]
at = cpu.check(cpu.map_file(0, 1 << 16, fd, 0, 1))
if what == "add":
    for _ in range(int(sys.argv[3])):
        cpu.counter_add(at, 1)
elif what == "wait":
    print("waiting", flush=True)
    reached = 0
    while not reached:
        reached = cpu.counter_wait(at, int(sys.argv[3]), 5000)
    print("woken", flush=True)
elif what == "hold":
    cpu.check(cpu.lock(at, 0))
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def shared() -> Iterator[tuple[int, int]]:
    """64 KiB that child processes can map: (descriptor, address here)."""
    descriptor = os.memfd_create("test", 0)
    os.ftruncate(descriptor, 1 << 16)
    address = cpu.check(cpu.map_file(0, 1 << 16, descriptor, 0, 1))
    yield descriptor, address
    cpu.unmap(address, 1 << 16)
    os.close(descriptor)


def child(descriptor: int, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(descriptor), *arguments]
    return subprocess.Popen(command, pass_fds=[descriptor], stdout=subprocess.PIPE, text=True)


def test_processes_add_without_losing(shared: tuple[int, int]) -> None:
    descriptor, address = shared
    children = [child(descriptor, "add", "20000") for _ in range(3)]
    assert [process.wait(20) for process in children] == [0, 0, 0]
    assert cpu.counter_get(address) == 60000
    assert cpu.counter_add(address, -60001) == 60000
    assert cpu.counter_get(address) == -1


def test_swap_replaces_only_what_is_expected(shared: tuple[int, int]) -> None:
    _, address = shared
    cpu.counter_set(address, 7)
    assert cpu.counter_swap(address, 6, 100) == 7
    assert cpu.counter_get(address) == 7
    assert cpu.counter_swap(address, 7, 1 << 62) == 7
    assert cpu.counter_get(address) == 1 << 62


def test_wait_ends_in_time_and_when_woken(shared: tuple[int, int]) -> None:
    descriptor, address = shared
    begin = time.monotonic()
    assert cpu.counter_wait(address, 1, 120) == 0
    assert 0.1 <= time.monotonic() - begin < 2
    process = child(descriptor, "wait", "2")
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.1)
    cpu.counter_add(address, 1)
    time.sleep(0.1)
    assert process.poll() is None  # 1 is not enough
    begin = time.monotonic()
    cpu.counter_swap(address, 1, 2)
    assert process.stdout.readline() == "woken\n"
    assert time.monotonic() - begin < 2  # a wake-up, not the end of its 5 s
    assert process.wait(5) == 0


def test_a_killed_owner_frees_its_lock(shared: tuple[int, int]) -> None:
    descriptor, address = shared
    cpu.check(cpu.header_init(address, STRIPE))
    process = child(descriptor, "hold")
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(OSError, match="busy"):
        cpu.check(cpu.try_lock(address, 0))
    process.send_signal(signal.SIGKILL)
    process.wait(5)
    begin = time.monotonic()
    assert cpu.lock(address, 0) == 1  # freed at once, and the next owner is told
    assert time.monotonic() - begin < 1
    cpu.unlock(address, 0)
    assert cpu.lock(address, 0) == 0  # consistent again: as good as new
    cpu.unlock(address, 0)


def test_a_lock_whose_owner_lives_but_stands_still_is_given_up(shared: tuple[int, int]) -> None:
    descriptor, address = shared
    cpu.check(cpu.header_init(address, STRIPE))
    process = child(descriptor, "hold")
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGSTOP)
    cpu.patience(300)
    try:
        assert cpu.lock(address, 0) == -errno.EBUSY
        assert cpu.owner(address, 0) == process.pid
    finally:
        cpu.patience(60_000)
        process.kill()
        process.wait(5)
    assert cpu.lock(address, 0) == 1
    cpu.unlock(address, 0)


def test_errors_of_c_become_exceptions() -> None:
    assert cpu.check(5) == 5
    with pytest.raises(ConnectionResetError):
        cpu.check(cpu.CLOSED)
    with pytest.raises(FileNotFoundError):
        cpu.check(-2)
    with pytest.raises(OSError, match="Bad file descriptor"):
        cpu.check(cpu.map_file(0, 4096, -1, 0, 1))
