"""What every transport must do, and do alike: buffers and operations.

A new transport joins with one line in TRANSPORTS (tests/support/places.py).
"""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from places import BOXES, GUEST, LENGTH, Open, Place, Vector, at, content, held, made, random

from dlplatform.errors import BoxError, EnvironmentMissing, UsageError
from dlplatform.memorybox.buffer import SharedBuffer, average
from dlplatform.memorybox.cluster import Cluster
from kernels import cpu, reference

# -- creation, sharing, deletion -------------------------------------------------------------


def test_a_buffer_lives_from_creation_to_deletion(join: Open) -> None:
    master, worker = join(BOXES), join(BOXES)
    before = held(master)
    info = master.create("w", LENGTH)
    assert sum(length for _, _, length in info["segments"]) == LENGTH
    mine, theirs = master.attach(info), worker.attach(info)
    data = random(1)
    mine.write(at(data))
    assert np.array_equal(content(theirs), data)
    assert held(master) > before
    mine.release()
    with pytest.raises(BoxError, match="1 still share it"):
        mine.delete()
    assert np.array_equal(content(theirs), data)
    theirs.release()
    mine.delete()
    assert held(master) == before
    with pytest.raises(BoxError, match="opens nothing"):
        worker.attach(info)


def test_a_new_buffer_is_zero_and_its_local_region_too(join: Open) -> None:
    cluster = join(2)
    buffer = cluster.buffer("w", LENGTH, True)
    assert not content(buffer).any()
    assert buffer.region % 4096 == 0
    first = (ctypes.c_float * 4).from_address(buffer.region)
    first[2] = 2.5
    buffer.write()
    assert content(buffer)[:4].tolist() == [0, 0, 2.5, 0]
    buffer.axpy(1.0, at(np.ones(LENGTH, np.float32)))
    buffer.read()
    assert list(first) == [1, 1, 3.5, 1]


def test_wrong_key_and_wrong_size_are_refused(join: Open) -> None:
    cluster = join(2)
    info = cluster.create("w", 5000)
    with pytest.raises(BoxError, match=r"creation key 'stolen' .* do: "):
        cluster.attach({**info, "key": "stolen"})
    wrong = [*info["segments"][:1], [1, info["segments"][1][1], 7]]
    with pytest.raises(BoxError, match=r"7 elements - allowed: "):
        cluster.attach({**info, "segments": wrong})
    buffer = cluster.attach(info)  # the refused attempts left nothing attached
    buffer.release()
    buffer.delete()


def test_creating_twice_is_refused(join: Open) -> None:
    cluster = join()
    info = cluster.create("w", 100)
    with pytest.raises(BoxError, match="exists already"):
        cluster.create("w", 100)
    cluster.attach(info).release()


@pytest.mark.parametrize("length", [0, -1])
def test_a_length_below_one_is_refused(join: Open, length: int) -> None:
    with pytest.raises(UsageError, match="cannot be cut"):
        join().create("w", length)


def test_all_segments_or_none_when_a_name_is_taken(join: Open) -> None:
    cluster = join(2)
    before = held(cluster)
    taken = cluster.transports[1].call("create", name="w", floats=10)["key"]
    with pytest.raises(BoxError, match="exists already"):
        cluster.create("w", 10_000)
    assert held(cluster) == before
    cluster.transports[1].call("delete", key=taken)
    cluster.attach(cluster.create("w", 10_000)).release()


def test_all_segments_or_none_when_memory_is_short(join: Open) -> None:
    cluster = join(2)
    before = held(cluster)
    with pytest.raises(EnvironmentMissing, match=r"is too small: .* MiB more, .* is free - "):
        cluster.create("w", 1 << 38, [1e-8, 1.0])
    assert held(cluster) == before


# -- reading and writing ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "count"), [(0, 1), (1023, 2), (100_000, 400_000), (LENGTH - 1, 1), (5, 0)]
)
def test_spans_are_read_and_written_exactly(join: Open, start: int, count: int) -> None:
    cluster = join(BOXES)
    data, patch = random(2), random(3, count)
    buffer = made(cluster, "w", data)
    buffer.write(at(patch), start, count)
    data[start : start + count] = patch
    assert np.array_equal(content(buffer), data)
    out = np.full(count + 2, 7, np.float32)
    buffer.read(at(out) + 4, start, count)
    assert out[0] == out[-1] == 7
    assert np.array_equal(out[1:-1], patch)


@pytest.mark.parametrize(("start", "count"), [(-1, 5), (0, 101), (100, 1), (50, -1)])
def test_spans_outside_are_refused(join: Open, start: int, count: int) -> None:
    buffer = join().buffer("w", 100, True)
    local = np.zeros(200, np.float32)
    for call in (buffer.read, buffer.write):
        with pytest.raises(UsageError, match="allowed: 0 to 100"):
            call(at(local), start, count)
    with pytest.raises(UsageError, match="allowed: 0 to 100"):
        buffer.apply("axpy", at(local), start=start, count=count)


# -- operations ------------------------------------------------------------------------------


SPANS = [(0, LENGTH), (1, 3), (cpu.STRIPE - 7, 70_000), (90_001, 300_000)][1 if GUEST else 0 :: 2]


@pytest.mark.parametrize("op", list(cpu.OPERATIONS))
def test_operations_mean_what_the_reference_says(place: Place, join: Open, op: str) -> None:
    cluster = join(2)
    for number, (start, count) in enumerate(SPANS):
        y, states = random(4), [np.abs(random(7 + n)) for n in range(cpu.STATES.get(op, 0))]
        buffer = made(cluster, f"w{number}", y)  # adam counts its steps: each span is the first
        kept = [made(cluster, f"w{number}/{n}", state) for n, state in enumerate(states)]
        rounded = op == "merge" and place.name != "inproc" and not buffer.mapped
        x, z = random(5, count), random(6, count)
        span = slice(start, start + count)
        z[::3] = y[span][::3]  # merge takes x as it is where nobody moved y
        k = (0.01, 0.9, 0.99, 1e-3, 0.1, 1.0) if op in cpu.STATES else (0.3, 1.7)
        given = [state[span].copy() for state in states] + [z, z]
        before = (y[span].copy(), given[0], given[1], x.copy(), z.copy())
        after = reference.apply(op, *before, (*k, 1.0) if op == "adam" else k)
        y[span], expected_x, expected_z = after[0], after[3], after[4]
        for n, state in enumerate(states):
            state[span] = after[1 + n]
        buffer.apply(op, at(x), at(z), k=k, states=kept, start=start, count=count)
        pairs = [(content(buffer), y), (x, expected_x), (z, expected_z)]
        for ours, theirs in [*pairs, *zip(map(content, kept), states, strict=True)]:
            if rounded:  # the gain is rounded once on its way
                np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
            else:
                assert np.array_equal(ours, theirs)


def test_short_forms_are_the_same_operations(join: Open) -> None:
    y, x = random(7), random(8)
    buffer = made(join(2), "w", y)
    buffer.scal(0.5)
    buffer.axpy(2.0, at(x))
    buffer.axpby(0.1, at(x), 0.9)
    expected = reference.axpy(reference.scal(y, x, x, 0.5, 0)[0], x, x, 2.0, 0)[0]
    expected = reference.axpby(expected, x, x, 0.1, 0.9)[0]
    assert np.array_equal(content(buffer), expected)
    pulled, step = x.copy(), np.zeros_like(x)
    buffer.difference(0.2, at(x), at(step))
    assert np.array_equal(step, np.float32(0.2) * (x - expected))
    expected = expected + step
    buffer.elastic(0.2, at(pulled))
    y, x, _ = reference.elastic(expected, x, x, 0.2, 0)
    assert np.array_equal(content(buffer), y)
    assert np.array_equal(pulled, x)


def test_operations_between_buffers_happen_in_the_boxes(join: Open) -> None:
    cluster = join(BOXES)
    y, x = random(9), random(10)
    target, source = made(cluster, "y", y), made(cluster, "x", x)
    target.axpy(0.25, source)
    target.axpby(2.0, source, 0.5)
    expected = reference.axpby(reference.axpy(y, x, x, 0.25, 0)[0], x, x, 2.0, 0.5)[0]
    assert np.array_equal(content(target), expected)
    assert np.array_equal(content(source), x)
    with pytest.raises(UsageError, match="cut differently"):
        target.axpy(1.0, cluster.buffer("short", 100, True))
    with pytest.raises(UsageError, match="allowed: axpy, axpby"):
        target.apply("elastic", source)
    assert np.array_equal(content(target), expected)


def test_sum_and_average_are_in_rank_order(join: Open) -> None:
    cluster = join(BOXES)
    data = [random(20 + rank) * 10.0**rank for rank in range(4)]
    regions = [made(cluster, f"region/{rank}", v) for rank, v in enumerate(data)]
    total = cluster.buffer("total", LENGTH, True)
    total.sum(regions, 0.25)
    assert np.array_equal(content(total), reference.total(data, 0.25))
    start, count = total.share(1, 4)
    average(regions, start, count, 0.25)
    for region, old in zip(regions, data, strict=True):
        new = old.copy()
        new[start : start + count] = reference.total(data, 0.25)[start : start + count]
        assert np.array_equal(content(region), new)


def test_shares_cover_a_buffer_without_overlap(join: Open) -> None:
    buffer = join(2).buffer("w", LENGTH, True)
    shares = [buffer.share(index, 3) for index in range(3)]
    assert [start for start, _ in shares] == [0, *np.cumsum([n for _, n in shares])[:-1]]
    assert sum(count for _, count in shares) == LENGTH


def history(buffer: SharedBuffer) -> list[Vector]:
    x, z = random(31), np.zeros(LENGTH, np.float32)
    buffer.axpy(0.7, at(x))
    buffer.elastic(0.3, at(x))
    buffer.difference(0.3, at(x), at(z))
    buffer.apply("axpby", at(x), a=0.1, b=0.2, start=77_777, count=333_333)
    buffer.apply("fetch", at(x), a=0.3)
    return [content(buffer), x, z]


def test_striped_over_three_boxes_is_bit_equal_to_one(join: Open) -> None:
    y = random(30)
    striped, one = made(join(3), "striped", y), made(join(1), "one", y)
    assert len(striped.segments) == 3
    assert len(one.segments) == 1
    for ours, theirs in zip(history(striped), history(one), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("weights", "shares"), [([3, 1, 0], (0.75, 0.25)), ([0, 1, 4], (0.2, 0.8))]
)
def test_a_cut_follows_its_weights(
    join: Open, weights: list[float], shares: tuple[float, ...]
) -> None:
    cluster = join(3)
    buffer = cluster.attach(cluster.create("w", LENGTH, weights))
    assert [s.box for s in buffer.segments] == [b for b, w in enumerate(weights) if w]
    for segment, share in zip(buffer.segments, shares, strict=True):
        assert segment.length == pytest.approx(share * LENGTH, abs=1024)
    data = random(33)
    buffer.write(at(data))
    assert np.array_equal(content(buffer), data)


# -- addresses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "text"),
    [("shn://x", "closest: shm"), ("nonsense", "allowed: "), ("", "allowed: ")],
)
def test_a_wrong_address_is_one_line(address: str, text: str) -> None:
    with pytest.raises(UsageError, match=text) as error:
        Cluster([address])
    assert "\n" not in str(error.value)


def test_no_boxes_are_refused() -> None:
    with pytest.raises(UsageError, match="0 boxes"):
        Cluster([])
