"""Consistent views while several workers write: each operation wholly or not at all."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import pytest
from places import (
    LENGTH,
    TRANSPORTS,
    Open,
    Place,
    Worker,
    at,
    connect,
    content,
    made,
    random,
    spawn,
)

from dlplatform.errors import BoxError
from dlplatform.memorybox.buffer import SharedBuffer
from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.process import Boxes
from dlplatform.memorybox.view import View

WRITERS, VIEWS = 3, 8
WRITE = """
def main(cluster, rank):
    buffers = [cluster.attach(cluster.lookup("buffer/" + name)) for name in "gdc"]
    x = numpy.ones(buffers[0].length, numpy.float32)
    stop, going, done = cluster.counter("stop"), cluster.counter("going"), 0
    while not stop.value:
        for buffer in buffers:
            buffer.axpy(1.0, x.ctypes.data)
        going.add()
        done += 1
    return done

import numpy
"""


def viewed(view: View, buffer: SharedBuffer) -> np.ndarray:
    out = np.empty(buffer.length, np.float32)
    view.read(buffer, at(out))
    return out


def check_views(cluster: Cluster, buffers: Sequence[SharedBuffer], count: int) -> list[float]:
    """Take views; return what the first buffer held in each."""
    seen = []
    for _ in range(count):
        with cluster.snapshot(*buffers) as view:
            found = [viewed(view, buffer) for buffer in buffers]
            again = viewed(view, buffers[0])
        assert [values.min() for values in found] == [values.max() for values in found]
        g, d, c = (float(values[0]) for values in found)
        assert g >= d >= c >= g - WRITERS
        assert np.array_equal(again, found[0])  # it stays while operations go on
        seen.append(g)
    return seen


@pytest.mark.parametrize("transport", ["inproc", "shm"])
def test_a_view_that_begins_between_two_gates_has_an_operation_everywhere_or_nowhere(
    transport: str, job: str, opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = opened.enter_context(TRANSPORTS[transport](3))
    writer, reader = connect(where, job, 3), connect(where, job, 3)
    for cluster in (writer, reader):
        opened.callback(cluster.close)
    buffer = writer.buffer("g", LENGTH, True)
    buffer.write(at(np.zeros(LENGTH, np.float32)))
    view = reader.snapshot(reader.attach(reader.lookup("buffer/g")))
    begun, settle, enter = threading.Event(), view._settle, writer.transports[1].enter  # type: ignore[attr-defined]
    began = threading.Thread(target=view.__enter__)

    def settling(box: int) -> None:
        begun.set()
        settle(box)

    def slowly() -> int:
        """Enter the second box after a whole view has begun since the first one was entered."""
        if not begun.is_set():
            began.start()
            assert begun.wait(20)
        return int(enter())

    monkeypatch.setattr(view, "_settle", settling)
    monkeypatch.setattr(writer.transports[1], "enter", slowly)
    buffer.axpy(1.0, at(np.ones(LENGTH, np.float32)))
    began.join(20)
    found = viewed(view, buffer)
    view.close()
    assert found.min() == found.max()


@pytest.mark.parametrize(
    ("transport", "boxes"),
    [
        *itertools.product(("inproc", "shm", "tcp"), (1, 3)),
        pytest.param("verbs", 3, marks=pytest.mark.rdma),
    ],
)
def test_view_is_consistent(transport: str, boxes: int, job: str, opened: ExitStack) -> None:
    """G, D and C belong together: writers add 1 to G, then D, then C, again and again."""
    where = opened.enter_context(TRANSPORTS[transport](boxes))
    cluster = connect(where, job, boxes)
    opened.callback(cluster.close)
    zeros = np.zeros(LENGTH, np.float32)
    buffers = [cluster.buffer(name, LENGTH, True) for name in "gdc"]
    for buffer in buffers:
        buffer.write(at(zeros))
    writers = [Worker(where, job, WRITE, rank, boxes) for rank in range(WRITERS)]
    try:
        cluster.counter("going").wait(WRITERS, 60)
        seen = check_views(cluster, buffers, VIEWS)
        before = cluster.counter("going").value
        cluster.counter("going").wait(before + 1, 60)  # nobody was stopped by the views
        seen += check_views(cluster, buffers, 1)
    finally:
        cluster.counter("stop").set(1)
        done = sum(writer.result() for writer in writers)
    assert seen == sorted(seen)
    assert seen[0] < seen[-1]
    for buffer in buffers:
        assert np.array_equal(content(buffer), zeros + done)


def test_a_view_does_not_wait_for_boxes_that_an_operation_leaves_out(join: Open) -> None:
    """Operations on a span, or on a buffer in one box, concern some of the boxes only."""
    writer, reader = join(3, timeout_s=9.0), join(3, timeout_s=9.0)
    wide, narrow = made(writer, "wide", random(1)), writer.create("narrow", 100)
    narrow_one = writer.attach(narrow)
    ones = np.ones(LENGTH, np.float32)
    wide.axpy(1.0, at(ones))
    wide.apply("axpy", at(ones), start=3, count=5)
    narrow_one.scal(2.0)
    narrow_one.axpy(1.0, at(ones))
    theirs = [reader.attach(buffer.info) for buffer in (wide, narrow_one)]
    begin = time.monotonic()
    with reader.snapshot(*theirs) as view:
        before = viewed(view, theirs[0])
        wide.scal(3.0)
        assert np.array_equal(viewed(view, theirs[0]), before)
        assert viewed(view, theirs[1]).tolist() == [1.0] * 100
    assert time.monotonic() - begin < 7
    assert np.array_equal(content(wide), np.float32(3) * before)


def test_operations_between_buffers_are_in_a_view_wholly(join: Open) -> None:
    """What a box does by itself to several segments saves and spares the view as well."""
    cluster, other = join(3), join(3)
    y, s = random(2), random(3)
    target, source = made(cluster, "y", y), made(cluster, "s", s)
    theirs = [other.attach(buffer.info) for buffer in (target, source)]
    with other.snapshot(*theirs) as view:
        target.axpy(2.0, source)
        target.settle(1.0, source)
        assert np.array_equal(viewed(view, theirs[0]), y)
        assert np.array_equal(viewed(view, theirs[1]), s)
    assert not content(source).any()


def test_a_cluster_of_mapped_and_other_boxes_has_views_in_each(
    opened: ExitStack, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where not all boxes are mapped, each box has an operation wholly or not at all."""
    with monkeypatch.context() as patch:
        patch.setattr("secrets.token_hex", lambda count: "5e" * count)
        boxes = [opened.enter_context(Boxes(1, name)) for name in ("shm", "tcp")]
    addresses = [box.addresses[0] for box in boxes]
    where = Place("mixed", addresses, boxes[0].secret)
    cluster = connect(where, job, 2)
    opened.callback(cluster.close)
    assert not cluster.mapped
    buffer = made(cluster, "g", np.zeros(LENGTH, np.float32))
    for name in "dc":
        cluster.publish(f"buffer/{name}", cluster.create(name, LENGTH))
    writers = [Worker(where, job, WRITE, rank, 2) for rank in range(2)]
    try:
        cluster.counter("going").wait(2, 20)
        for _ in range(VIEWS):
            with cluster.snapshot(buffer) as view:
                found = viewed(view, buffer)
            for segment in buffer.segments:
                part = found[segment.offset :][: segment.length]
                assert part.min() == part.max()
    finally:
        cluster.counter("stop").set(1)
        done = sum(writer.result() for writer in writers)
    assert np.array_equal(content(buffer), np.full(LENGTH, done, np.float32))


def test_one_view_at_a_time(join: Open) -> None:
    first, second = join(2, timeout_s=0.5), join(2, timeout_s=0.5)
    mine = made(first, "w", random(4))
    theirs = second.attach(mine.info)
    with first.snapshot(mine):
        with pytest.raises(BoxError, match="is being read - allowed: one at a time"):
            second.snapshot(theirs).__enter__()
        mine.scal(2.0)  # the attempt holds nobody up
    with second.snapshot(theirs) as view:
        assert np.array_equal(viewed(view, theirs), np.float32(2) * random(4))


READ = """
def main(cluster, rank):
    buffer = cluster.attach(cluster.lookup("buffer/w"))
    with cluster.snapshot(buffer):
        print("reading", flush=True)
        time.sleep(60)

import time
"""


def test_the_view_of_a_dead_reader_ends(apart: Place, job: str, opened: ExitStack) -> None:
    cluster = connect(apart, job, 2)
    opened.callback(cluster.close)
    buffer = made(cluster, "w", random(5))
    reader = spawn(apart, job, READ, 1, 2)
    assert reader.stdout is not None
    assert reader.stdout.readline() == "reading\n"
    buffer.scal(2.0)
    reader.kill()
    reader.wait(5)
    begin = time.monotonic()
    with cluster.snapshot(buffer) as view:
        assert np.array_equal(viewed(view, buffer), np.float32(2) * random(5))
    assert time.monotonic() - begin < 3
