"""Inside mpirun: ranks agree with MPI, share a word at the start, and then one cluster.

mpirun -n 4 --oversubscribe python -m pytest --with-mpi -m mpi tests/mpi
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from tinyjobs import attach
from tinytask import network, optimizer, points
from torch.nn import functional

from dlplatform import world as module
from dlplatform.errors import BoxError
from dlplatform.job import Job, start_boxes
from dlplatform.world import World, share

pytestmark = pytest.mark.mpi(min_size=2)


@pytest.fixture
def comm(monkeypatch: pytest.MonkeyPatch) -> Any:
    from mpi4py import MPI

    monkeypatch.setattr(module, "_shared", [])
    return MPI.COMM_WORLD


@pytest.fixture(params=["shm", "tcp"])
def job(request: pytest.FixtureRequest, comm: Any) -> Iterator[Job]:
    world = World.detect()
    place, boxes = start_boxes(world, 2, request.param, "memfd")
    opened = Job.open(world, place, boxes=boxes, total=101)
    yield opened
    opened.finish()
    comm.Barrier()
    opened.close()
    comm.Barrier()


def test_rank_and_size_agree_with_mpi(comm: Any) -> None:
    world = World.detect()
    assert (world.rank, world.size) == (comm.rank, comm.size)
    # Open MPI counts them by processor, not by rank.
    assert sorted(comm.allgather(world.local_rank)) == list(range(comm.size))
    assert world.local_size == comm.size
    assert world.mpi


def test_one_word_reaches_all(comm: Any) -> None:
    word = {"boxes": ["shm://a", "shm://b"], "rank": comm.rank, "text": "ä"}
    assert share(word) == {**word, "rank": 0}
    with pytest.raises(AssertionError, match="one broadcast"):
        share(word)


def test_counters_are_shared_by_all_ranks(job: Job, comm: Any) -> None:
    counter = job.cluster.counter("tickets")
    mine = [counter.add(1) for _ in range(200)]
    tickets = [ticket for one in comm.allgather(mine) for ticket in one]
    assert sorted(tickets) == list(range(200 * comm.size))
    assert counter.value == 200 * comm.size


def test_a_counter_is_a_barrier(job: Job, comm: Any) -> None:
    here = job.cluster.counter("here")
    for turn in range(1, 51):
        here.add(1)
        here.wait(turn * comm.size)
        assert here.value >= turn * comm.size


def test_minibatches_are_claimed_once(job: Job, comm: Any) -> None:
    mine = []
    while (number := job.work.next()) is not None:
        mine.append(number)
        job.work.done()
    assert sorted(number for one in comm.allgather(mine) for number in one) == list(range(101))


def test_b05_sharing_over_mpi(job: Job, comm: Any) -> None:
    """The master hands the information over MPI; the others attach instead of creating (B5)."""
    length = 300_001
    made = job.cluster.create("w", length) if comm.rank == 0 else None
    info = comm.bcast(made, root=0)
    assert {"name", "length", "key", "segments"} <= set(info)
    buffer = job.cluster.attach(info)
    ones = np.ones(length, np.float32)
    buffer.axpy(float(comm.rank + 1), ones.ctypes.data)
    comm.Barrier()
    out = np.zeros(length, np.float32)
    buffer.read(out.ctypes.data)
    assert (out == sum(range(1, comm.size + 1))).all()
    buffer.release()
    comm.Barrier()
    if comm.rank == 0:
        buffer.delete()  # all have released it
    comm.Barrier()
    with pytest.raises(BoxError, match="opens nothing"):
        job.cluster.attach(info)


def test_ssgd_keeps_the_weights_of_all_ranks_equal(job: Job, comm: Any) -> None:
    torch.set_num_threads(1)
    net = attach(job, "ssgd", network(job.rank), partial(optimizer, "adam"))
    while (number := net.rule.claim(job)) is not None and number < 100 // comm.size * comm.size:
        xy, labels = points(number)
        weights = net.step(functional.cross_entropy(net.model(xy), labels))
    seen = comm.allgather(weights.numpy().tobytes())
    assert seen == [seen[0]] * comm.size
