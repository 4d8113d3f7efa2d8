"""Optimizers, narrow formats and quorums inside the boxes, over every transport."""

from __future__ import annotations

import time
from contextlib import ExitStack

import numpy as np
import pytest
from places import BOXES, LENGTH, Open, Place, Vector, at, connect, content, made, random, spawn

from dlplatform.errors import PeerLost, UsageError
from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.payload import Payload
from dlplatform.memorybox.quorum import Quorum
from kernels import cpu, packing, reference

# -- optimizers ------------------------------------------------------------------------------------

RECIPES = {
    "sgd": (0.1, 0.9, 1e-4, 0.0),
    "outer": (0.7, 0.9),
    "adam": (1e-3, 0.9, 0.999, 1e-8, 0.01, 1.0),
    "delay": (0.1, 2.0),
    "settle": (0.5,),
    "gather": (-0.25, 1.0),
    "fold": (0.5, 0.7, 0.9, 1.0, 0.0),
    "adapt": (0.1, 2.0, 0.95, 1e-7),
}


@pytest.mark.parametrize("op", list(RECIPES))
def test_optimizers_in_the_box_of_several_workers(join: Open, op: str) -> None:
    """Two workers take turns; the box holds the state and counts the steps of both."""
    clusters, k = [join(BOXES) for _ in range(2)], RECIPES[op]
    y, s, t = random(1), np.abs(random(2)), np.abs(random(3))
    buffers = [made(clusters[0], name, v) for name, v in (("y", y), ("s", s), ("t", t))]
    states = buffers[1 : 1 + cpu.STATES[op]]
    theirs = [clusters[1].attach(buffer.info) for buffer in (buffers[0], *states)]
    for step in range(1, 6):
        x = random(10 + step)
        expected_x = x.copy()
        scalars = (*k, float(step)) if op == "adam" else k
        y, s, t, expected_x, _ = reference.apply(op, y, s, t, expected_x, x, scalars)
        target, *held = theirs if step % 2 else (buffers[0], *states)
        target.apply(op, at(x), k=k, states=held)
        assert np.array_equal(x, expected_x)
    for buffer, expected in zip(buffers, (y, s, t), strict=True):
        assert np.array_equal(content(buffer), expected)


def test_optimizers_between_buffers(join: Open) -> None:
    """A gradient that lies in the boxes never leaves them."""
    cluster = join(BOXES)
    y, m, g = random(4), np.zeros(LENGTH, np.float32), random(5)
    target, momentum, gradient = (made(cluster, n, v) for n, v in (("y", y), ("m", m), ("g", g)))
    for _ in range(3):
        target.sgd(gradient, 0.1, momentum, mu=0.9, nesterov=True)
        y, m, *_ = reference.sgd(y, m, m, g, g, (0.1, 0.9, 0.0, 1.0))
    assert np.array_equal(content(target), y)
    assert np.array_equal(content(momentum), m)
    with pytest.raises(UsageError, match="sgd on y with 0 states - allowed: 1"):
        target.apply("sgd", gradient)


# -- formats ---------------------------------------------------------------------------------------

FORMATS = ["fp16", "bf16", "int8", "topk"]
SPANS = [(0, LENGTH), (5 * 256, LENGTH - 9 * 256 - 3), (LENGTH // 2048 * 1024 - 256, 512)]


@pytest.mark.parametrize("span", SPANS, ids=["whole", "span", "border"])
@pytest.mark.parametrize("format", FORMATS)
def test_payload_formats_with_feedback(join: Open, format: str, span: tuple[int, int]) -> None:
    """Three boxes get exactly what the format can carry; what it cannot comes the next time."""
    start, count = span
    y, gathered = random(6), np.zeros(count, np.float64)
    buffer, payload = made(join(BOXES), "w", y), Payload(format, count, share=0.02)
    residual, carried = np.zeros(count, np.float32), np.zeros(count, np.float64)
    for turn in range(3):
        x = random(20 + turn, count)
        gathered += x
        buffer.apply("axpy", payload.pack(at(x)), a=0.5, start=start, count=count)
        packed, residual = packing.pack_with_residual(format, x, residual, payload.entries)
        seen = packing.unpack(format, packed, count, payload.entries)
        carried += seen
        y[start : start + count] += np.float32(0.5) * seen
        assert np.array_equal(content(buffer), y)
    np.testing.assert_allclose(carried + residual, gathered, rtol=0, atol=1e-5)


@pytest.mark.parametrize("op", ["axpby", "copy", "clip", "sgd"])
@pytest.mark.parametrize("format", FORMATS)
def test_any_streamed_operation_takes_any_format(join: Open, format: str, op: str) -> None:
    cluster, y, s = join(BOXES), random(7), random(8)
    x = random(9)
    payload = Payload(format, LENGTH, share=0.01, feedback=False).pack(at(x))
    buffer, state = made(cluster, "y", y), made(cluster, "s", s)
    k = (0.1, 0.5, 0.0, 1.0)
    buffer.apply(op, payload, k=k, states=[state] if op == "sgd" else [])
    seen = np.empty_like(x)
    payload.unpack(at(seen))
    expected = reference.apply(op, y, s, s, seen, seen, k)
    assert np.array_equal(content(buffer), expected[0])
    assert payload.residual == 0


def test_a_payload_has_the_length_of_its_span(join: Open) -> None:
    buffer = made(join(), "w", random(10, 5000))
    payload = Payload("bf16", 4999).pack(at(random(11, 4999)))
    with pytest.raises(UsageError, match="axpy of 5000 elements of w with a payload of 4999"):
        buffer.axpy(1.0, payload)
    buffer.apply("axpy", payload, count=4999)
    assert content(buffer)[4999] == random(10, 5000)[4999]


# -- quorum ----------------------------------------------------------------------------------------


def quorums(clusters: list[Cluster], needed: int, grace_s: float = 0.0) -> list[Quorum]:
    """Make one merge for every worker, from buffers that the first one creates."""
    names = ("target", "even", "odd")
    infos = [clusters[0].create(name, LENGTH) for name in names]
    found = []
    for rank, cluster in enumerate(clusters):
        cluster.rank, cluster.size = rank, len(clusters)
        for transport in cluster.transports:
            transport.lease("join", rank=rank)
        target, even, odd = (cluster.attach(info) for info in infos)
        found.append(Quorum(target, (even, odd), needed, len(clusters), grace_s))
    return found


def close(ours: Vector, theirs: Vector) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_quorum_merges_two_of_three_and_loses_nothing_of_the_late_one(join: Open) -> None:
    one, two, late = quorums([join(2) for _ in range(3)], needed=2)
    x = [random(30 + n) for n in range(4)]
    assert one.contribute(at(x[0]), weight=1.0) == 0
    with pytest.raises(PeerLost, match="round 0 of target: 1 of 2 needed"):
        one.wait(0, timeout_s=0.1)
    assert two.contribute(at(x[1]), weight=3.0) == 0
    two.wait(0)
    merged = (x[0] + 3 * x[1]) / 4
    close(content(one.target), merged)
    one.wait(0)
    assert late.contribute(at(x[2]), weight=2.0) == 1
    assert one.contribute(at(x[3]), weight=2.0) == 1
    one.wait(1)
    late.wait(1)
    close(content(two.target), merged + (x[2] + x[3]) / 2)
    assert not content(late.accumulators[0]).any()
    assert not content(late.accumulators[1]).any()


def test_quorum_waits_a_moment_for_more_than_it_needs(join: Open) -> None:
    one, two, three = quorums([join() for _ in range(3)], needed=1, grace_s=1.5)
    x = random(34)
    begin = time.monotonic()
    assert [q.contribute(at(x)) for q in (one, two)] == [0, 0]
    one.wait(0)
    assert time.monotonic() - begin >= 1.5
    close(content(three.target), x)
    begin = time.monotonic()
    assert [q.contribute(at(x)) for q in (one, two, three)] == [1, 1, 1]
    three.wait(1)  # all are in: nobody is waited for
    assert time.monotonic() - begin < 1.5


def test_a_quorum_needs_ranks_and_sense(join: Open) -> None:
    cluster = join()
    target, even, odd = (cluster.buffer(name, 100, True) for name in ("t", "a", "b"))
    with pytest.raises(UsageError, match=r"without a rank .* cluster.join"):
        Quorum(target, (even, odd), 1, 1)
    cluster.join(0, 1)
    with pytest.raises(UsageError, match="a quorum of 3 of 2 - allowed: 1 to 2"):
        Quorum(target, (even, odd), 3, 2)


CLOSE = """
def main(cluster, rank):
    class Stuck(Quorum):
        def _merge(self, number):
            print("merging", flush=True)
            time.sleep(60)

    cluster.join(rank, 2)
    buffers = [cluster.attach(cluster.lookup(name)) for name in ("target", "even", "odd")]
    quorum = Stuck(buffers[0], tuple(buffers[1:]), 2, 2)
    x = numpy.full(buffers[0].length, 3.0, numpy.float32)
    cluster.counter("arrived first").wait(1)
    quorum.wait(quorum.contribute(x.ctypes.data))

import time
import numpy
from dlplatform.memorybox.quorum import Quorum
"""


def test_a_closer_that_dies_in_the_middle_is_replaced(
    apart: Place, job: str, opened: ExitStack
) -> None:
    cluster = connect(apart, job, 2)
    opened.callback(cluster.close)
    for name in ("target", "even", "odd"):
        cluster.publish(name, cluster.create(name, LENGTH))
    worker = spawn(apart, job, CLOSE, 1, 2)
    cluster.join(0, 2)
    target, even, odd = (cluster.attach(cluster.lookup(n)) for n in ("target", "even", "odd"))
    quorum = Quorum(target, (even, odd), 2, 2)
    number = quorum.contribute(at(np.ones(LENGTH, np.float32)))
    cluster.counter("arrived first").add()
    assert worker.stdout is not None
    assert worker.stdout.readline() == "merging\n"
    worker.kill()
    worker.wait(5)
    quorum.wait(number)
    assert np.array_equal(content(target), np.full(LENGTH, 2, np.float32))
    again = Quorum(target, (even, odd), 1, 2)  # and the next round is open
    again.wait(again.contribute(at(np.ones(LENGTH, np.float32))))
    assert np.array_equal(content(target), np.full(LENGTH, 3, np.float32))
