"""The C kernels against their definition in numpy, bit by bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import cpu, reference

STRIPE = cpu.STRIPE
SIZES = st.one_of(st.integers(0, 70), st.integers(0, 5000), st.sampled_from([1023, 4096, 65537]))
RATES = st.floats(-2, 2, width=32)
ODD = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3e38, 1e-38], dtype=np.float32)


def values(rng: np.random.Generator, size: int, odd: bool) -> np.ndarray:
    made = (rng.standard_normal(size) * 10.0 ** rng.integers(-3, 4)).astype(np.float32)
    if odd and size:
        made[rng.integers(0, size, min(size, 9))] = rng.choice(ODD, min(size, 9))
    return made


def unaligned(data: np.ndarray, shift: int) -> np.ndarray:
    """Copy into memory that starts ``shift`` elements after a 64-byte border."""
    raw = np.empty(len(data) + 32 + shift, np.float32)
    start = (-raw.ctypes.data % 64) // 4 + shift
    view = raw[start : start + len(data)]
    view[:] = data
    return view


def same(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Bit-equal, except that one NaN is as good as another."""
    nan = np.isnan(theirs)
    assert np.array_equal(np.isnan(ours), nan)
    assert np.array_equal(ours[~nan].view(np.uint32), theirs[~nan].view(np.uint32))


@pytest.mark.parametrize("op", list(cpu.OPERATIONS))
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), size=SIZES, shift=st.integers(0, 15), a=RATES, b=RATES,
    odd=st.booleans(),
)  # fmt: skip
def test_operation_is_bit_equal_to_its_definition(
    op: str, seed: int, size: int, shift: int, a: float, b: float, odd: bool
) -> None:
    rng = np.random.default_rng(seed)
    y, x, z = (unaligned(values(rng, size, odd), shift + i) for i in range(3))
    if op == "merge" and size:
        z[: size // 2] = y[: size // 2]  # where nobody moved y, x is taken as it is
    with np.errstate(all="ignore"):
        expected = [v.copy() for v in getattr(reference, op)(y.copy(), x.copy(), z.copy(), a, b)]
    cpu.apply(cpu.OPERATIONS[op], y.ctypes.data, x.ctypes.data, z.ctypes.data, size, a, b)
    for ours, theirs in zip((y, x, z), expected, strict=True):
        same(ours, theirs)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), size=SIZES, count=st.integers(1, 6), scale=RATES,
    average=st.booleans(),
)  # fmt: skip
def test_sum_and_average_add_in_order(
    seed: int, size: int, count: int, scale: float, average: bool
) -> None:
    rng = np.random.default_rng(seed)
    regions = [unaligned(values(rng, size, False), i % 5) for i in range(count)]
    expected = reference.total(regions, scale)
    addresses = cpu.pointers([region.ctypes.data for region in regions])
    if average:
        cpu.average(addresses, count, size, scale)
        for region in regions:
            same(region, expected)
    else:
        out = np.zeros(size, np.float32)
        cpu.sum_into(out.ctypes.data, addresses, count, size, scale)
        same(out, expected)


def test_order_of_a_sum_matters_and_is_kept() -> None:
    big, small = np.float32([1e8]), np.float32([1.0])
    out = np.zeros(1, np.float32)
    for regions, expected in (((big, -big, small), 1.0), ((big, small, -big), 0.0)):
        at = cpu.pointers([np.ascontiguousarray(region).ctypes.data for region in regions])
        cpu.sum_into(out.ctypes.data, at, 3, 1, 1.0)
        assert out[0] == expected


@pytest.fixture
def header() -> Iterator[tuple[int, int]]:
    """Locks for a little more than two stripes: (address, floats)."""
    floats = 2 * STRIPE + 100
    size = cpu.header_bytes(floats)
    address = cpu.check(cpu.allocate(size))
    cpu.check(cpu.header_init(address, floats))
    yield address, floats
    cpu.unmap(address, size)


@pytest.mark.parametrize("turn", [0, 1, 2, 12345])
@pytest.mark.parametrize(
    ("start", "count"),
    [(0, 0), (0, 1), (STRIPE - 1, 2), (STRIPE, STRIPE), (5, 2 * STRIPE), (0, 2 * STRIPE + 100)],
)
def test_locked_covers_a_span_once_whatever_the_turn(
    header: tuple[int, int], start: int, count: int, turn: int
) -> None:
    address, floats = header
    y = np.arange(floats, dtype=np.float32)
    x, z = np.full(count, 2, np.float32), np.zeros(count, np.float32)
    expected = y.copy()
    expected[start : start + count], _, difference = reference.difference(
        y[start : start + count], x, z, 0.5, 0
    )
    code = cpu.OPERATIONS["difference"]
    pointers = (x.ctypes.data, z.ctypes.data)
    cpu.check(cpu.locked(code, address, y.ctypes.data, start, count, *pointers, 0.5, 0, turn))
    same(y, expected)
    same(z, difference)


def test_many_threads_lose_nothing(header: tuple[int, int]) -> None:
    address, floats = header
    y, ones = np.zeros(floats, np.float32), np.ones(floats, np.float32)
    code, times, threads = cpu.OPERATIONS["axpy"], 25, 4

    def work(turn: int) -> None:
        for step in range(times):
            cpu.check(
                cpu.locked(code, address, y.ctypes.data, 0, floats, ones.ctypes.data, None,
                           1.0, 0.0, turn + step)
            )  # fmt: skip

    started = [threading.Thread(target=work, args=(turn,)) for turn in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    assert (y == times * threads).all()


def test_locking_twice_in_one_thread_is_an_error_not_a_deadlock(header: tuple[int, int]) -> None:
    address, _ = header
    cpu.check(cpu.lock(address, 1))
    with pytest.raises(OSError, match="deadlock"):
        cpu.check(cpu.lock(address, 1))
    assert cpu.try_lock(address, 0) == 0
    cpu.unlock(address, 0)
    cpu.unlock(address, 1)


def test_header_knows_its_size(header: tuple[int, int]) -> None:
    address, floats = header
    assert cpu.header_check(address, floats)
    assert not cpu.header_check(address, floats + 1)


# -- across processes ----------------------------------------------------------------------

CHILD = """
import os, sys, time
from kernels import cpu
fd, what = int(sys.argv[1]), sys.argv[2]
at = cpu.check(cpu.map_file(0, 1 << 16, fd, 0))
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
    address = cpu.check(cpu.map_file(0, 1 << 16, descriptor, 0))
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
    assert cpu.lock(address, 0) == 0
    cpu.unlock(address, 0)
    assert cpu.try_lock(address, 0) == 0  # consistent again: as good as new
    cpu.unlock(address, 0)


def test_errors_of_c_become_exceptions() -> None:
    assert cpu.check(5) == 5
    with pytest.raises(ConnectionResetError):
        cpu.check(cpu.CLOSED)
    with pytest.raises(FileNotFoundError):
        cpu.check(-2)
    with pytest.raises(OSError, match="Bad file descriptor"):
        cpu.check(cpu.map_file(0, 4096, -1, 0))
