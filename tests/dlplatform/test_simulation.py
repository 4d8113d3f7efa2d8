"""The simulated clock and network: turns, times by hand, bytes, and what happens at a death."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
from places import at
from quadratic import worker

from dlplatform.errors import PeerLost, UsageError
from dlplatform.job import Job
from dlplatform.memorybox.buffer import SharedBuffer
from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.payload import Payload
from dlplatform.transports.fleet import Fleet, compute, lognormal, simulate
from dlplatform.transports.virtual import Deadlock

FLOATS = 4096
BYTES, RATE, LAG = 4 * FLOATS, 1e6, 0.001


def shared(job: Job, name: str = "g") -> SharedBuffer:
    """Return a buffer that all workers have, all zeros."""
    buffer = job.cluster.buffer(name, FLOATS, job.rank == 0)
    job.cluster.counter("ready").add(1)
    job.cluster.counter("ready").wait(job.size)
    return buffer


def timed(job: Job, act: Callable[[], Any]) -> float:
    begin = job.cluster.clock.now()
    act()
    return job.cluster.clock.now() - begin


# -- turns ------------------------------------------------------------------------------------


def test_workers_run_in_the_order_of_virtual_time() -> None:
    def body(job: Job) -> None:
        for _ in range(3):
            compute(job)
            seen.append((round(job.cluster.clock.now(), 6), job.rank))

    seen: list[tuple[float, int]] = []
    outcome = simulate(Fleet(3, step_s=[1.0, 2.0, 0.5]), body)
    assert seen == sorted(seen, key=lambda turn: turn[0])
    assert [when for when, rank in seen if rank == 2] == [0.5, 1.0, 1.5]
    assert outcome.finished == [3.0, 6.0, 1.5]
    assert outcome.seconds == 6.0
    assert outcome.steps == [3, 3, 3]


def test_speeds_are_drawn_by_seed() -> None:
    def ends(seed: int) -> list[float]:
        fleet = Fleet(4, step_s=lognormal(1.0, 0.5), seed=seed)
        return simulate(fleet, lambda job: [compute(job) for _ in range(5)]).finished

    assert ends(1) == ends(1)
    assert ends(1) != ends(2)
    assert len(set(ends(1))) == 4


def test_a_pace_may_differ_by_worker() -> None:
    paces = [1.0, lambda random: 2.0 + random.random()]
    fleet = Fleet(2, step_s=paces, seed=5)
    outcome = simulate(fleet, lambda job: compute(job))
    assert outcome.results == [1.0, 2.0 + Random("5/1").random()]


def test_the_first_error_of_a_worker_is_raised_and_ends_all() -> None:
    def body(job: Job) -> None:
        compute(job)
        if job.rank == 1:
            raise ZeroDivisionError("worker 1")
        try:
            job.cluster.counter("never").wait(1)
        finally:
            ended.append(job.rank)

    ended: list[int] = []
    with pytest.raises(ZeroDivisionError, match="worker 1"):
        simulate(Fleet(3), body)
    assert sorted(ended) == [0, 2]


def test_a_standstill_says_who_waits_for_what() -> None:
    def body(job: Job) -> None:
        flow = job.cluster.clock.flow()
        with flow:
            flow.wait_for(lambda: False)

    with pytest.raises(Deadlock, match=r"worker 1 for another thread of its worker"):
        simulate(Fleet(2), body)


def test_patience_is_virtual() -> None:
    def body(job: Job) -> float:
        counter = job.cluster.counter("never")
        with pytest.raises(PeerLost, match="never is 0, waited 60 s for 1"):
            counter.wait(1, 60.0)
        assert not counter.reached(1, 5000)
        return job.cluster.clock.now()

    begin = time.monotonic()
    (ended,) = simulate(Fleet(1), body).results
    assert ended == pytest.approx(65.1, abs=0.2)
    assert time.monotonic() - begin < 10


def test_threads_of_a_worker_hand_over_in_virtual_time() -> None:
    def body(job: Job) -> list[str]:
        def other() -> None:
            with flow:
                flow.wait_for(lambda: "asked" in said)
                clock.sleep(2.0)
                said.append(f"answered at {clock.now():g}")
                flow.notify_all()

        clock, said = job.cluster.clock, list[str]()
        flow = clock.flow()
        join = clock.start("other", other)
        clock.sleep(1.0)
        with flow:
            said.append("asked")
            flow.notify_all()
            flow.wait_for(lambda: len(said) == 2)
        join()
        return said

    assert simulate(Fleet(1), body).results == [["asked", "answered at 3"]]


@pytest.mark.parametrize("fields", [{"workers": 0}, {"workers": 2, "step_s": [1.0]}])
def test_a_fleet_that_cannot_be(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="fleet"):
        Fleet(**fields)


def test_simulated_boxes_exist_in_a_simulation_only() -> None:
    with pytest.raises(UsageError, match="belongs to no simulation under way"):
        Cluster(["sim://nowhere/0"])


# -- times by hand -----------------------------------------------------------------------------


def test_what_each_request_costs() -> None:
    def body(job: Job) -> list[float]:
        g, x = shared(job), np.zeros((2, FLOATS), np.float32)
        counter = job.cluster.counter("n")
        acts: list[Callable[[], Any]] = [
            lambda: counter.add(1),
            lambda: counter.wait(1),
            lambda: g.write(at(x[0])),
            lambda: g.read(at(x[0])),
            lambda: g.difference(0.5, at(x[0]), at(x[1])),
            lambda: g.merge(at(x[0]), at(x[1])),
            lambda: g.scal(0.5),
        ]
        return [timed(job, act) for act in acts]

    outcome = simulate(Fleet(1, latency_s=LAG, worker_rate=RATE), body)
    line = BYTES / RATE + 2 * LAG
    assert outcome.results[0] == pytest.approx([2 * LAG, 2 * LAG, *[line] * 4, 2 * LAG])
    assert outcome.sent == [3 * BYTES]
    assert outcome.received == [3 * BYTES]


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_a_box_to_which_all_push_at_once_is_so_many_times_slower(workers: int) -> None:
    def body(job: Job) -> float:
        g, x = shared(job), np.ones(FLOATS, np.float32)
        took = timed(job, lambda: g.axpy(1.0, at(x)))
        meet = job.cluster.counter("pushed")
        meet.add(1)
        meet.wait(job.size)
        took = max(took, timed(job, lambda: g.read(at(x))))
        assert (x == job.size).all()
        return took

    outcome = simulate(Fleet(workers, worker_rate=RATE, box_rate=RATE), body)
    times = [seconds or 0.0 for seconds in outcome.results]
    assert max(times) == pytest.approx(workers * BYTES / RATE)


@pytest.mark.parametrize("boxes", [1, 2, 4])
def test_boxes_are_used_at_the_same_time(boxes: int) -> None:
    def body(job: Job) -> float:
        g, x = shared(job), np.ones(FLOATS, np.float32)
        return timed(job, lambda: g.axpy(1.0, at(x)))

    fleet = Fleet(1, boxes=boxes, worker_rate=100 * RATE, box_rate=RATE)
    (seconds,) = simulate(fleet, body).results
    assert seconds == pytest.approx(BYTES / RATE / boxes, rel=0.05)


@pytest.mark.parametrize("format", ["fp16", "bf16", "int8", "topk"])
def test_narrow_payloads_count_their_narrow_bytes(format: str) -> None:
    def body(job: Job) -> int:
        g, x = shared(job), np.arange(FLOATS, dtype=np.float32)
        payload = Payload(format, FLOATS, share=0.1).pack(at(x))
        g.axpy(1.0, payload)
        expected, found = np.zeros(FLOATS, np.float32), np.zeros(FLOATS, np.float32)
        payload.unpack(at(expected))
        g.read(at(found))
        assert (expected == found).all()
        return payload.bytes

    outcome = simulate(Fleet(1, boxes=2), body)
    assert outcome.sent[0] == outcome.results[0]
    assert outcome.sent[0] <= BYTES / 2


def steps_of(fleet: Fleet, rule: str, count: int = 6, **fields: Any) -> np.ndarray[Any, Any]:
    """Return the seconds of each worker's later steps."""

    def body(job: Job) -> list[float]:
        def before(job: Job, step: int) -> None:
            moments.append(job.cluster.clock.now())
            compute(job)

        moments: list[float] = []
        worker(job, rule, np.ones(FLOATS), lambda x, *_: 0.1 * x, count, before=before, **fields)
        return moments

    return np.diff(np.array(simulate(fleet, body).results))[:, 2:]


@pytest.mark.parametrize("step_s", [0.005, 0.1])
def test_an_overlapped_exchange_hides_behind_computing(step_s: float) -> None:
    fleet = Fleet(1, step_s=step_s, latency_s=LAG, worker_rate=RATE)
    exchange = BYTES / RATE + 4 * LAG  # the difference, and one more on the count of updates
    found = steps_of(fleet, "easgd", rate=0.5)
    np.testing.assert_allclose(found, max(step_s, exchange), rtol=1e-6)


@pytest.mark.parametrize("step_s", [0.01, 0.2])
def test_overlapped_exchanges_queue_at_the_box(step_s: float) -> None:
    fleet = Fleet(4, step_s=step_s, worker_rate=RATE, box_rate=RATE)
    found = steps_of(fleet, "easgd", 12, rate=0.5)[:, 4:]
    np.testing.assert_allclose(found, max(step_s, 4 * BYTES / RATE), rtol=1e-3)


def test_an_exchange_in_line_adds_to_computing() -> None:
    fleet = Fleet(1, step_s=0.1, latency_s=LAG, worker_rate=RATE)
    found = steps_of(fleet, "easgd", rate=0.5, overlap=False)
    np.testing.assert_allclose(found, 0.1 + BYTES / RATE + 4 * LAG, rtol=1e-6)


@pytest.mark.parametrize("workers", [2, 8])
def test_ssgd_adds_writing_and_reading_to_computing(workers: int) -> None:
    found = steps_of(Fleet(workers, step_s=0.1, worker_rate=RATE), "ssgd")
    np.testing.assert_allclose(found, 0.1 + 2 * BYTES / RATE, rtol=1e-6)


def test_ssgd_at_a_narrow_box() -> None:
    """Who has read first computes first and writes first: the last waits for n + 1 transfers."""
    fleet = Fleet(2, step_s=0.1, worker_rate=RATE, box_rate=RATE)
    np.testing.assert_allclose(steps_of(fleet, "ssgd"), 0.1 + 3 * BYTES / RATE, rtol=1e-6)


# -- deaths ---------------------------------------------------------------------------------------


def claim(job: Job) -> list[int]:
    """Take numbers until none is left."""
    taken: list[int] = []
    while (number := job.work.next()) is not None:
        compute(job)
        taken.append(number)
        job.work.done()
    return taken


def test_what_a_dead_worker_held_is_given_out_again() -> None:
    outcome = simulate(Fleet(3, deaths={1: 4.5}), claim, total=20)
    assert outcome.results[1] is None
    assert outcome.finished[1] == 4.5
    assert outcome.steps[1] == 5
    mine, others = [outcome.results[rank] or [] for rank in (0, 2)]
    taken = mine + others
    assert len(taken) == len(set(taken)) == 16  # all but the four that worker 1 had done


def test_who_joins_takes_over_from_who_dies() -> None:
    fleet = Fleet(2, deaths={0: 4.5}, joins=[6.0, 1000.0])
    outcome = simulate(fleet, claim, total=20)
    assert outcome.steps == [5, 11, 5, 0]
    assert outcome.results[0] is outcome.results[3] is None
    taken = (outcome.results[1] or []) + (outcome.results[2] or [])
    assert len(taken) == len(set(taken)) == 16


def test_the_dead_are_seen_at_once_and_locks_are_free() -> None:
    def body(job: Job) -> float:
        if job.rank == 1:
            with job.cluster.locked("door"):
                compute(job)
        job.cluster.clock.sleep(1.0)
        with job.cluster.locked("door") as abandoned:
            assert abandoned
        with pytest.raises(PeerLost, match="worker 1 died"):
            job.cluster.counter("never").wait(1, 100.0, job.cluster.check_peers)
        return job.cluster.clock.now()

    outcome = simulate(Fleet(2, step_s=50.0, deaths={1: 10.0}), body)
    assert outcome.results[0] == pytest.approx(10.0, abs=0.11)


def test_a_lost_box_is_seen_by_all() -> None:
    def body(job: Job) -> float:
        with pytest.raises(PeerLost, match=r"sim://.*/1 is gone"):
            job.cluster.counter("never").wait(1, 100.0)
        return job.cluster.clock.now()

    assert simulate(Fleet(2, boxes=2, losses={1: 3.0}), body).results == [3.0, 3.0]


def test_a_view_is_taken_while_others_go_on() -> None:
    def body(job: Job) -> None:
        g, x = shared(job), np.ones(FLOATS, np.float32)
        for _ in range(20):
            if job.rank:
                g.axpy(1.0, at(x))
                continue
            with job.cluster.snapshot(g) as view:
                view.read(g, at(x))
            assert (x == x[0]).all()

    simulate(Fleet(3, boxes=2, latency_s=LAG, worker_rate=[1e6, 2e6, 3e6]), body)


def test_a_span_that_somebody_holds_is_not_changed() -> None:
    def body(job: Job) -> float:
        g, x = shared(job), np.ones(FLOATS, np.float32)
        if job.rank == 0:
            with g.locked():
                compute(job)
            return 0.0
        job.cluster.clock.sleep(0.1)
        return timed(job, lambda: g.axpy(1.0, at(x)))

    assert simulate(Fleet(2), body).results == [0.0, pytest.approx(0.9)]


@pytest.mark.slow
def test_a_hundred_thousand_events_of_64_workers_take_seconds() -> None:
    def body(job: Job) -> None:
        worker(job, "easgd", np.ones(64), lambda x, *_: 0.1 * x, 200)

    begin = time.monotonic()
    outcome = simulate(Fleet(64, step_s=lognormal(0.1, 0.3), latency_s=LAG), body)
    assert outcome.events > 80_000
    assert time.monotonic() - begin < 50
