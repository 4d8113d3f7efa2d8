"""Parts of the transport mpi that need no mpirun."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest

from dlplatform.errors import EnvironmentMissing, UsageError
from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.memory import File, Mapping, nameless_file, pages
from dlplatform.transports.mpi.pool import Pool
from dlplatform.transports.mpi.ranks import deal
from dlplatform.world import World, become
from kernels import cpu
from launch import compose

MIB = 1 << 20


# -- who becomes a box -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "boxes", "chosen"),
    [
        ([0] * 6, 2, [4, 5]),
        ([0, 0, 1, 1, 2, 2], 2, [3, 5]),
        ([0, 0, 1, 1, 2, 2], 3, [1, 3, 5]),
        ([0, 1, 0, 1], 2, [2, 3]),
        ([0, 1, 2], 2, [1, 2]),
        ([0, 0, 0, 3], 3, [1, 2, 3]),
    ],
)
def test_boxes_are_spread_over_nodes_and_rank_0_works(
    nodes: list[int], boxes: int, chosen: list[int]
) -> None:
    assert deal(nodes, boxes) == chosen


@pytest.mark.parametrize(("ranks", "boxes"), [(1, 1), (2, 2), (4, 9)])
def test_a_job_without_workers_is_refused(ranks: int, boxes: int) -> None:
    with pytest.raises(
        UsageError, match=rf"boxes={boxes} of {ranks} MPI rank.* mpirun -n {boxes + 1}"
    ):
        deal([0] * ranks, boxes)


# -- the pool --------------------------------------------------------------------------------------


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool of 8 MiB, in memory that could be an MPI window."""
    file = File(nameless_file("memfd", cpu.PAGE, 8 * MIB - cpu.PAGE))
    base = file.map(0, 8 * MIB, populate=False)
    yield Pool(base, 0, 8 * MIB, "the pool of MPI rank 3")
    cpu.unmap(base, 8 * MIB)
    file.close()


def test_a_piece_is_mapped_as_often_as_one_likes(pool: Pool) -> None:
    floats = 100_000
    head = cpu.header_bytes(floats)
    piece = pool.cut(head + 4 * floats, pages(4 * floats))
    at = cpu.check(cpu.reserve(pages(4 * floats)))
    one, two = Mapping(piece, floats), Mapping(piece, floats, at)
    cpu.counter_set(one.data, 77)
    assert two.data == at
    assert cpu.counter_get(two.data) == 77
    one.unmap()
    assert cpu.counter_get(at) == 77
    two.unmap()
    cpu.unmap(at, pages(4 * floats))


def test_what_is_given_back_is_joined_and_zero_again(pool: Pool) -> None:
    pieces = [pool.cut(MIB) for _ in range(8)]
    with pytest.raises(EnvironmentMissing, match=r"rank 3 is too small: 1.0 MiB more, .* is free"):
        pool.cut(MIB)
    for piece in pieces:
        ctypes.memset(pool.base + piece.offset, 1, MIB)
    for number in (3, 1, 0, 2, 7, 5, 6, 4):
        pieces[number].close()
    whole = pool.cut(8 * MIB)
    assert whole.offset == 0
    assert not any(ctypes.string_at(pool.base, 8 * MIB))


def test_more_than_the_machine_has_is_refused_and_forgotten(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlplatform.transports.mpi.pool.available", lambda: MIB)
    with pytest.raises(EnvironmentMissing, match=r"machine is too small: 2.0 MiB more, 1.0 MiB is"):
        pool.cut(2 * MIB)
    assert pool.cut(MIB, 7 * MIB).offset == 0  # room is addresses only


# -- words -----------------------------------------------------------------------------------------


def settle(ranks: int | None, *words: str) -> dict[str, Any]:
    compose.register()
    composed = compose.compose(["task=zoo/digits", *words])
    return compose.settle(composed, ranks)


def test_transport_is_short_for_the_clusters_and_leaves_the_other_ranks_to_work() -> None:
    config = settle(6, "transport=mpi", "boxes=2")
    assert config["cluster"]["transport"] == "mpi"
    assert (config["workers"], config["boxes"]) == (4, 2)
    assert settle(6, "boxes=2")["workers"] == 6
    assert settle(None, "transport=tcp", "workers=2")["cluster"]["transport"] == "tcp"


@pytest.mark.parametrize(
    ("ranks", "words", "text"),
    [
        (None, ("transport=mpi", "workers=4", "boxes=2"), r"launcher=mpirun, or mpirun -n 6 dlp"),
        (None, ("transport=mpu",), r"transport=mpu cannot work - allowed: .*mpi"),
        (2, ("transport=mpi", "boxes=2"), r"boxes=2 of 2 MPI rank\(s\) leave no worker"),
        (6, ("transport=mpi", "cluster=tcp"), r"transport=mpi and cluster.transport=tcp"),
        (6, ("transport=mpi", "cluster.replicas=1", "boxes=2"), r"cluster.replicas=1 with"),
        (6, ("transport=mpi", "cluster.boxes=[tcp://h:1]"), r"cluster.boxes=.* with transport=mpi"),
        (6, ("transport=mpi", "cluster.pool_gib=-1"), r"cluster.pool_gib=-1.0 cannot work"),
    ],
)
def test_what_cannot_be_is_one_line(ranks: int | None, words: tuple[str, ...], text: str) -> None:
    with pytest.raises(UsageError, match=text) as error:
        settle(ranks, *words)
    assert "\n" not in str(error.value)


def test_an_address_outside_of_mpirun_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"mpi://3: no rank of this MPI job is that box - "):
        Cluster(["mpi://3"])


def test_a_worker_is_no_longer_the_rank_that_mpirun_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started = {
        "OMPI_COMM_WORLD_RANK": "3",
        "OMPI_COMM_WORLD_SIZE": "6",
        "RANK": "3",
        "WORLD_SIZE": "6",
    }
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    for name in ("DLP_RANK", "DLP_SIZE", "DLP_LOCAL_RANK", "DLP_LOCAL_SIZE"):
        monkeypatch.setenv(name, "0")  # so that they are gone after the test
    become(World(2, 4, 1, 2))
    world = World.detect()
    assert (world.rank, world.size, world.local_rank, world.local_size) == (2, 4, 1, 2)
