"""Operations on segments: under the locks of stripes, beside snapshots, with versions."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from vectors import at, packed, same

from dlplatform.memorybox.memory import File, Mapping, give_room, nameless_file, pages
from kernels import cpu, reference

STRIPE = cpu.STRIPE
FLOATS = 2 * STRIPE + 100


@pytest.fixture
def made() -> Iterator[list[Mapping]]:
    """Three segments of a little more than two stripes, with memory for their shadows."""
    segments, files = [], []
    for _ in range(3):
        used = cpu.header_bytes(FLOATS) + 4 * FLOATS
        files.append(File(nameless_file("memfd", used, pages(used) - used + 4 * FLOATS)))
        give_room(files[-1], pages(used), 4 * FLOATS)
        segments.append(Mapping(files[-1], FLOATS))
        cpu.check(cpu.header_init(segments[-1].header, FLOATS))
    yield segments
    for segment, file in zip(segments, files, strict=True):
        segment.unmap()
        file.close()


def where(*segments: Mapping) -> object:
    return cpu.Where(*(segment.pointer for segment in segments))


def view(address: int) -> np.ndarray:
    return np.ctypeslib.as_array((cpu.c_float * FLOATS).from_address(address))


def run(
    order: object, segments: list[Mapping], x: np.ndarray, z: np.ndarray | None = None,
    start: int = 0, epoch: int = 0, turn: int = 0, count: int | None = None,
) -> int:  # fmt: skip
    n = len(x) if count is None else count
    return cpu.locked(order, where(*segments), start, n, at(x), at(z), 0, turn, epoch)


@pytest.mark.parametrize("turn", [0, 1, 2, 12345])
@pytest.mark.parametrize(
    ("start", "count"),
    [(0, 0), (0, 1), (STRIPE - 1, 2), (STRIPE, STRIPE), (5, 2 * STRIPE), (0, FLOATS)],
)
def test_a_span_is_covered_once_whatever_the_turn(
    made: list[Mapping], start: int, count: int, turn: int
) -> None:
    y = view(made[0].data)
    y[:] = np.arange(FLOATS)
    x, z = np.full(count, 2, np.float32), np.zeros(count, np.float32)
    expected, span = y.copy(), slice(start, start + count)
    expected[span], _, difference = reference.difference(y[span].copy(), x, z, 0.5, 0)
    order = cpu.operation("difference", (0.5,))
    assert run(order, made[:1], x, z, start, turn=turn) == 0
    same(y.copy(), expected)
    same(z, difference)


@pytest.mark.parametrize("op", ["axpy", "copy"])
def test_many_threads_lose_nothing(made: list[Mapping], op: str) -> None:
    y, ones = view(made[0].data), np.ones(FLOATS, np.float32)
    times, threads = 25, 4

    def work(turn: int) -> None:
        for step in range(times):
            assert run(cpu.operation(op, (1.0,)), made[:1], ones, turn=turn + step) == 0

    started = [threading.Thread(target=work, args=(turn,)) for turn in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    assert (y == (times * threads if op == "axpy" else 1)).all()


def test_locking_twice_in_one_thread_is_an_error_not_a_deadlock(made: list[Mapping]) -> None:
    header = made[0].header
    cpu.check(cpu.lock(header, 1))
    with pytest.raises(OSError, match="deadlock"):
        cpu.check(cpu.lock(header, 1))
    assert cpu.try_lock(header, 0) == 0
    cpu.unlock(header, 0)
    assert run(cpu.operation("axpy", (1.0,)), made[:1], np.ones(FLOATS, np.float32)) == 0
    cpu.unlock(header, 1)
    assert (view(made[0].data) == 1).all()  # who holds a lock may operate under it


def test_the_next_owner_of_an_abandoned_lock_is_told_even_after_operations(
    made: list[Mapping],
) -> None:
    header = made[0].header
    cpu.check(cpu.lock(header, 0))
    cpu.abandon(header, 0)
    assert run(cpu.operation("axpy", (1.0,)), made[:1], np.ones(FLOATS, np.float32)) == 0
    assert cpu.lock(header, 0) == 1
    cpu.unlock(header, 0)
    assert cpu.lock(header, 0) == 0
    cpu.unlock(header, 0)


def test_header_knows_its_size(made: list[Mapping]) -> None:
    assert cpu.header_check(made[0].header, FLOATS)
    assert not cpu.header_check(made[0].header, FLOATS + 1)


def changed(segment: Mapping, since: int) -> tuple[list[int], int]:
    stripes, now = (cpu.c_uint32 * 3)(), cpu.c_uint64()
    count = cpu.changed(segment.header, since, stripes, 3, cpu.ctypes.addressof(now))
    return list(stripes[:count]), now.value


def test_versions_name_the_stripes_that_changed(made: list[Mapping]) -> None:
    segment, one = made[0], np.ones(1, np.float32)
    assert changed(segment, 0) == ([], 0)
    for start in (2 * STRIPE + 3, 5):
        run(cpu.operation("axpy", (1.0,)), made[:1], one, start=start)
    stripes, now = changed(segment, 0)
    assert stripes == [0, 2]
    assert changed(segment, now) == ([], now)
    run(cpu.operation("axpy", (1.0,)), made[:1], one, start=STRIPE)
    assert changed(segment, now)[0] == [1]


def read_cut(segment: Mapping) -> np.ndarray:
    out = np.empty(FLOATS, np.float32)
    cpu.check(cpu.read_cut(segment.pointer, 0, FLOATS, at(out)))
    return out


@pytest.mark.parametrize("form", ["fp32", "bf16", "int8", "topk"])
def test_a_cut_holds_earlier_operations_and_no_later_ones(made: list[Mapping], form: str) -> None:
    """An operation of the epoch before that is still under way changes the shadow, too."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal(FLOATS).astype(np.float32)
    payload = x if form == "fp32" else packed(form, x, FLOATS // 9)
    entries = FLOATS // 9 if form == "topk" else 0
    order = cpu.operation("axpy", (0.5,), form, entries)
    assert run(order, made[:1], payload, epoch=0, count=FLOATS) == 0
    first = view(made[0].data).copy()
    cpu.cut(made[0].header, 1)
    assert np.array_equal(read_cut(made[0]), first)
    assert run(order, made[:1], payload, epoch=1, count=FLOATS) == 0  # later
    assert np.array_equal(read_cut(made[0]), first)
    assert run(order, made[:1], payload, epoch=0, count=FLOATS) == 0  # a straggler
    assert run(order, made[:1], payload, epoch=1, count=FLOATS) == 0
    again = read_cut(made[0])
    same(again, view_after(made[1:], [first, x * 0], order, payload))
    cpu.cut(made[0].header, 0)
    assert np.array_equal(read_cut(made[0]), view(made[0].data))


def view_after(
    segments: list[Mapping], states: list[np.ndarray], order: object, payload: np.ndarray
) -> np.ndarray:
    """What one operation makes of a state, elsewhere."""
    view(segments[0].data)[:] = states[0]
    assert run(order, segments[:1], payload, count=FLOATS) == 0
    return view(segments[0].data).copy()


@pytest.mark.parametrize("op", ["elastic", "difference", "merge", "fetch", "delay", "sgd", "adam"])
def test_a_straggler_changes_shadow_and_live_alike(made: list[Mapping], op: str) -> None:
    """Operations that write to x and z write what is live; states with a shadow get theirs."""
    rng = np.random.default_rng(2)
    vectors = [rng.standard_normal(FLOATS).astype(np.float32) for _ in range(5)]
    vectors[2] = np.abs(vectors[2])
    segments = made[: 1 + cpu.STATES.get(op, 0)]
    for segment, vector in zip(segments, vectors, strict=False):
        view(segment.data)[:] = vector
    k = (0.01, 0.9, 0.99, 1e-3, 0.1, 1.0, 1.0)
    for segment in segments:
        cpu.cut(segment.header, 1)
    x, z = vectors[3].copy(), vectors[4].copy()
    nothing = np.zeros(FLOATS, np.float32)
    for segment in segments:  # a later operation on each saves its shadow
        assert run(cpu.operation("axpy", (0.0,)), [segment], nothing, epoch=1) == 0
    with_z = z if op in ("difference", "merge") else None
    assert run(cpu.operation(op, k), segments, x, with_z, epoch=0) == 0
    expected = reference.apply(op, *vectors[:3], vectors[3], vectors[4], k)
    for n, segment in enumerate(segments):
        same(view(segment.data).copy(), expected[n])
        same(read_cut(segment), expected[n])
    same(x, expected[3])
