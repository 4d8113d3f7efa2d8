"""The functions of the memory box, named as in the specification: B11 to B14, and B16."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
import pytest
from places import (
    BOXES,
    LENGTH,
    Open,
    Place,
    at,
    connect,
    content,
    dial,
    held,
    made,
    random,
    wait_for,
)

from dlplatform.errors import BoxError, PlatformError, UsageError
from dlplatform.memorybox import wire
from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.payload import Payload
from dlplatform.memorybox.process import Boxes
from kernels import reference

ONES = np.ones(LENGTH, np.float32)


# -- B11: the mapping table ------------------------------------------------------------------------


def test_b11_mapping_table(join: Open) -> None:
    """The first who looks a parameter up allocates it; the last who frees it frees the memory."""
    clusters = [join(BOXES) for _ in range(3)]
    before = held(clusters[0], 2)
    buffers = [cluster.allocate("layer1.weight", LENGTH) for cluster in clusters]
    assert len({buffer.key for buffer in buffers}) == 1
    assert held(clusters[0], 2) - before == 4 * buffers[0].segments[2].length
    buffers[0].axpy(1.0, at(ONES))
    buffers[1].axpy(2.0, at(ONES))
    assert np.array_equal(content(buffers[2]), 3 * ONES)
    with pytest.raises(BoxError, match=r"5000 elements - allowed: "):
        clusters[0].allocate("layer1.weight", 5000, [1, 0, 0])
    assert [buffer.free() for buffer in buffers] == [2, 1, 0]
    assert held(clusters[0], 2) == before
    again = clusters[1].allocate("layer1.weight", LENGTH)
    assert again.key != buffers[0].key
    assert not content(again).any()
    with pytest.raises(UsageError, match=r"allowed: buffers of cluster.allocate"):
        clusters[0].attach(clusters[0].create("other", 100)).free()


def test_b11_allocations_at_the_same_time_find_one_buffer(join: Open) -> None:
    clusters = [join(2) for _ in range(4)]
    wrong: list[Exception] = []

    def work(cluster: Cluster) -> None:
        try:
            for _ in range(10):
                buffer = cluster.allocate("shared", 5000)
                buffer.scal(1.0)
                buffer.free()
        except PlatformError as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(cluster,)) for cluster in clusters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert clusters[0].allocate("shared", 5000).free() == 0


def test_b11_a_worker_that_leaves_counts_one_less(join: Open) -> None:
    stays, leaves = join(2), join(2)
    buffer = stays.allocate("w", LENGTH)
    leaves.allocate("w", LENGTH)
    leaves.close()
    wait_for(lambda: sharers_now(stays, buffer.key) == 1)
    assert buffer.free() == 0


def sharers_now(cluster: Cluster, key: str) -> int:
    try:
        cluster.transports[0].call("delete", key=key)
    except BoxError as error:
        return int(str(error).partition(" still share it")[0].split()[-1])
    return 0


# -- B12: a box without accumulate function --------------------------------------------------------


@pytest.fixture(scope="module")
def plain() -> Iterator[Place]:
    with Boxes(2, "tcp", options=("--plain",)) as boxes:
        yield Place("tcp", boxes.addresses, boxes.secret, boxes.processes)


@pytest.fixture
def join_plain(plain: Place, job: str, opened: ExitStack) -> Open:
    def open_cluster(boxes: int = 2) -> Cluster:
        cluster = connect(plain, job, boxes)
        opened.callback(cluster.close)
        return cluster

    return open_cluster


def test_b12_box_without_accumulate(join_plain: Open) -> None:
    """Workers know before; they read, add and write; the box itself refuses to compute."""
    cluster = join_plain()
    assert cluster.plain
    assert not any(transport.can for transport in cluster.transports)
    y, x = random(1), random(2)
    buffer = made(cluster, "w", y)
    buffer.axpy(0.5, at(x))
    y = y + np.float32(0.5) * x
    assert np.array_equal(content(buffer), y)
    source = made(cluster, "x", x)
    buffer.axpy(2.0, source)
    pulled, z = x.copy(), np.zeros_like(x)
    buffer.elastic(0.25, at(pulled))
    y = y + np.float32(2) * x
    y, expected, _ = reference.elastic(y, x, z, 0.25, 0.0)
    assert np.array_equal(content(buffer), y)
    assert np.array_equal(pulled, expected)
    payload = Payload("int8", LENGTH - 512)
    buffer.apply("axpy", payload.pack(at(x)), start=512)
    payload.unpack(at(z))
    y[512:] = y[512:] + z[: LENGTH - 512]
    assert np.array_equal(content(buffer), y)
    with pytest.raises(BoxError, match="adam in a box without accumulate function - allowed: "):
        buffer.adam(at(x), 0.1, [made(cluster, "m", x), made(cluster, "v", x)])
    with pytest.raises(BoxError, match="scal in a box without accumulate function - allowed: "):
        cluster.transports[0].call("apply", op="scal", keys=[buffer.key], start=0, count=9, k=[2.0])
    assert np.array_equal(content(buffer), y)


def test_b12_two_workers_without_accumulate_lose_nothing(join_plain: Open) -> None:
    clusters = [join_plain() for _ in range(2)]
    info = clusters[0].create("w", LENGTH)
    buffers = [cluster.attach(info) for cluster in clusters]

    def work(n: int) -> None:
        for _ in range(5):
            buffers[n].axpy(n + 1.0, int(ONES.ctypes.data))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert np.array_equal(content(buffers[0]), 15 * ONES)


def test_b12_a_value_just_read_is_not_read_again(
    join_plain: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = join_plain()
    buffer, reads = made(cluster, "w", random(3)), []
    real = type(buffer).read

    def counted(self: Any, *where: Any) -> None:
        reads.append(where)
        real(self, *where)

    monkeypatch.setattr(type(buffer), "read", counted)
    cluster.window_s = 60.0
    buffer.read()
    for _ in range(2):  # the region keeps up with what this worker adds
        buffer.axpy(1.0, at(ONES))
    assert len(reads) == 1
    assert np.array_equal(content(buffer), random(3) + ONES + ONES)
    cluster.window_s = 0.0
    buffer.axpy(1.0, at(ONES))
    assert len(reads) > 2
    cluster.window_s = 60.0
    reads.clear()
    buffer.read_at -= 120.0  # read too long ago
    buffer.axpy(1.0, at(ONES))
    assert reads


# -- B13, B14: rights, regions of layers -----------------------------------------------------------


def refused(work: Any, *arguments: Any, **fields: Any) -> None:
    with pytest.raises(BoxError, match=r"is the region of worker 1, asked for by worker \d"):
        work(*arguments, **fields)


def test_b13_rights(place: Place, join: Open) -> None:
    """A worker may touch the master's regions and its own one; the master all it created."""
    master, one, two = (join(2) for _ in range(3))
    for rank, cluster in enumerate((master, one, two)):
        for transport in cluster.transports:
            transport.lease("join", rank=rank)
    common = master.create("g", LENGTH)
    region = master.create("g/1", LENGTH, owner=1)
    ours = one.attach(region)
    ours.axpy(1.0, at(ONES))
    one.attach(common).axpy(1.0, ours)
    two.attach(common).axpy(1.0, at(ONES))
    mine = master.attach(region)
    mine.axpy(1.0, at(ONES))
    assert np.array_equal(content(ours), 2 * ONES)
    refused(two.attach, region)
    key, spot = region["key"], {"start": 0, "count": 4}
    call = two.transports[0].call
    refused(call, "changed", key=key, since=0)
    refused(call, "apply", op="scal", keys=[key], k=[0.0], **spot)
    refused(call, "apply", op="axpy", keys=[common["key"]], k=[1.0], source=key, **spot)
    refused(call, "total", key=common["key"], sources=[key], scale=1.0, **spot)
    refused(call, "average", sources=[key], scale=1.0, **spot)
    refused(call, "matrix", keys=[common["key"], key, key], shape=[1, 1, 1], a=1.0, b=0.0)
    refused(call, "prepare", keys=[key])
    refused(call, "delete", key=key)
    assert np.array_equal(content(ours), 2 * ONES)


def by_hand(place: Place, job: str, rank: int) -> Any:
    """Join the job as any program could that knows the secret."""
    link = dial(place, 10.0)
    wire.introduce(link, place.secret.encode(), place.addresses[0])
    opening = {"do": "open", "job": job, "token": "by hand", "lane": "0", "lease": True}
    for number, frame in enumerate((opening, {"do": "join", "rank": rank, "seq": 1})):
        wire.send(link, frame)
        assert "ok" in wire.receive(link), number
    return link


def test_b13_the_box_itself_refuses(apart: Place, job: str, opened: ExitStack) -> None:
    master, one = (connect(apart, job) for _ in range(2))
    opened.callback(master.close)
    opened.callback(one.close)
    one.transports[0].lease("join", rank=1)
    info = master.create("g/1", 5000, owner=1)
    ours = one.attach(info)
    ours.axpy(1.0, at(ONES[:5000]))
    with closing(by_hand(apart, job, 2)) as link:
        spot = {"key": info["key"], "start": 0, "count": 4}
        update = {"do": "push", "op": "copy", "keys": [info["key"]], "start": 0, "count": 4}
        frames: list[tuple[dict[str, Any], bytes]] = [
            ({"do": "read", **spot}, b""),
            ({"do": "read", **spot, "cut": True}, b""),
            ({"do": "map", "key": info["key"]}, b""),
            ({"do": "lock", **spot}, b""),
            ({"do": "attach", "key": info["key"], "floats": 5000, "seq": 2}, b""),
            ({**update, "seq": 3}, bytes(16)),
            ({**update, "op": "difference", "k": [1.0], "seq": 4}, bytes(16)),
        ]
        for frame, payload in frames:
            wire.send(link, frame)
            link.sendall(payload)
            answer = wire.receive(link)
            if frame["do"] == "map" and apart.name not in ("shm", "mpi"):
                assert "allowed: shm" in answer["refused"]
            else:
                assert "is the region of worker 1, asked for by worker 2" in answer["refused"]
        wire.send(link, {"do": "join", "rank": 1, "seq": 5})
        assert "that worker is alive" in wire.receive(link)["refused"]
    assert np.array_equal(content(ours), ONES[:5000])


def test_b14_per_layer_regions(join: Open) -> None:
    """The master's region and every worker's exist for each layer."""
    sizes = {"conv1": 448, "conv2": 4640, "linear": 5130}
    master, worker = join(2), join(2)
    worker.transports[0].lease("join", rank=1)
    worker.transports[1].lease("join", rank=1)
    weights = master.layers("weight", sizes)
    gradients = master.layers("gradient/1", sizes, owner=1)
    assert [info["length"] for info in weights.values()] == list(sizes.values())
    assert gradients["conv2"]["name"] == "gradient/1/conv2"
    for layer, size in sizes.items():
        mine, whole = worker.attach(gradients[layer]), worker.attach(weights[layer])
        mine.write(at(random(size, size)))
        whole.axpy(-0.5, mine)
        assert np.array_equal(content(whole), np.float32(-0.5) * random(size, size))
    with pytest.raises(BoxError, match="weight/conv1: exists already"):
        master.layers("weight", {"conv1": 448})


# -- B16 to B19: the end, the library, the framework, the speed -----------------------------------


def test_b16_release_before_delete(join: Open) -> None:
    """Workers release, then the master deletes; local region and table entry go last."""
    master, worker = join(BOXES), join(BOXES)
    before = [held(master, box) for box in range(BOXES)]
    info = master.create("w", LENGTH)
    mine, theirs = master.attach(info), worker.attach(info)
    for buffer, left in ((mine, 2), (theirs, 1)):
        with pytest.raises(BoxError, match=rf"delete w: {left} still share it - allowed: 0"):
            mine.delete()
        buffer.release()
        with pytest.raises(UsageError, match="w is released - allowed: attached"):
            buffer.region  # noqa: B018
        with pytest.raises(UsageError, match="w is released"):
            buffer.scal(2.0)
        buffer.release()  # a second time changes nothing
    assert not master.attached
    again = worker.attach(info)  # released is not deleted
    again.release()
    mine.delete()
    assert [held(master, box) for box in range(BOXES)] == before
    with pytest.raises(BoxError, match="opens nothing"):
        worker.attach(info)
    with pytest.raises(BoxError, match="opens nothing"):
        mine.delete()
