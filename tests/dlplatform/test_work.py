"""Work: every number is trained exactly once; none is lost with a worker."""

from __future__ import annotations

import threading
import time
from collections import Counter
from functools import partial
from random import Random
from typing import Any

import pytest
import torch
from tinyjobs import Died, attach, place, together, until
from tinytask import network, optimizer, points
from torch.nn import functional

from dlplatform.job import Job
from dlplatform.memorybox.session import JOINED
from dlplatform.work import Work
from dlplatform.world import World

RULES: list[tuple[str, dict[str, Any], int]] = [
    ("alone", {}, 1),
    ("ssgd", {}, 3),
    ("asgd", {}, 3),
    ("asgd", {"interval": 4}, 3),
    ("easgd", {}, 3),
    ("easgd", {"overlap": False, "interval": 2}, 3),
    ("hybrid", {"group_size": 1}, 3),
    ("hybrid", {"group_size": 2}, 4),
    ("hybrid", {"group_size": 2}, 3),
    ("hybrid", {"group_size": 3}, 3),
]


def train(job: Job, rule: str, fields: dict[str, Any], names: tuple[str, ...] = ("main",)) -> Any:
    """Train until no number is left; return those this worker trained and the last position."""
    torch.set_num_threads(1)
    nets = [
        attach(job, rule, network(), partial(optimizer, "sgd"), name, **fields) for name in names
    ]
    done = []
    while (number := nets[0].rule.claim(job)) is not None:
        for net in nets:
            xy, labels = points(number)
            net.step(functional.cross_entropy(net.model(xy), labels))
        done.append(number)
    return done, job.work.position


@pytest.mark.parametrize("transport", ["inproc", "tcp"])
@pytest.mark.parametrize("total", [24, 25, 1])
@pytest.mark.parametrize(("rule", "fields", "size"), RULES)
def test_every_number_once(
    rule: str, fields: dict[str, Any], size: int, total: int, transport: str
) -> None:
    with place(transport) as where:
        seen = together(size, where, lambda job: train(job, rule, fields), total=total)
    assert sorted(number for done, _ in seen for number in done) == list(range(total))
    assert [position for _, position in seen] == [total] * size


@pytest.mark.parametrize(("rule", "fields", "size"), RULES)
def test_an_incomplete_last_round_with_two_groups(
    rule: str, fields: dict[str, Any], size: int
) -> None:
    total = 2 * size + 1
    with place() as where:
        names = ("one", "other")
        seen = together(size, where, lambda job: train(job, rule, fields, names), total=total)
    assert sorted(number for done, _ in seen for number in done) == list(range(total))


@pytest.mark.parametrize(("rule", "fields", "size"), RULES)
def test_numbers_go_on_from_the_first(rule: str, fields: dict[str, Any], size: int) -> None:
    with place() as where:
        seen = together(size, where, lambda job: train(job, rule, fields), first=10, total=21)
    assert sorted(number for done, _ in seen for number in done) == list(range(10, 21))


def test_dealt_numbers_go_by_rank() -> None:
    with place() as where:
        seen = together(3, where, lambda job: train(job, "ssgd", {}), total=7)
    assert [done for done, _ in seen] == [[0, 3, 6], [1, 4], [2, 5]]


def test_a_slow_worker_gets_less() -> None:
    slow = threading.Event()

    def body(job: Job) -> int:
        done = 0
        while job.work.next() is not None:
            done += 1
            if job.rank == 0:
                slow.wait(0.02)
            else:
                slow.wait(0.002)
        return done

    with place() as where:
        first, second = together(2, where, body, total=60)
    assert first + second == 60
    assert 1 <= first < second


def test_a_dead_workers_number_is_given_out_again() -> None:
    """One dies with a number in hand while the others work; one dies when all are done."""
    lost: list[int] = []

    def body(job: Job) -> list[int]:
        done = []
        while (number := job.work.next()) is not None:
            if (job.rank, number >= 5) == (2, True):
                lost.append(number)
                raise Died
            if job.rank == 1 and not job.cluster.dead():
                until(job.cluster.dead, 10)
            job.work.done()
            done.append(number)
            time.sleep(0.001)
        return done

    with place("shm") as where:
        first, second, _ = together(3, where, body, total=30)
    assert sorted(first + second)[-20:] == list(range(10, 30))
    assert set(lost) <= {*first, *second}


def test_the_last_number_of_a_worker_that_dies_at_the_end() -> None:
    """The others have nothing left to do but stay until nobody holds a number."""

    def body(job: Job) -> list[int]:
        first = job.work.next()
        assert first is not None
        until(lambda: job.cluster.counter("minibatch").value == 2)
        if job.rank == 0:
            time.sleep(0.3)
            raise Died
        assert first in (0, 1)
        job.work.done()
        second = job.work.next()
        assert second == 1 - first
        assert job.work.next() is None
        return [first, second]

    with place("shm") as where:
        assert sorted(together(2, where, body, total=2)[1]) == [0, 1]


def test_one_who_dies_between_two_looks_of_the_last_leaves_its_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked, usual = threading.Event(), Work._holds

    def holds(work: Work, claims: Any) -> bool:
        looked.set()
        until(lambda: work.cluster.state(claims.rank) != JOINED)
        return usual(work, claims)

    def body(job: Job) -> int | None:
        first = job.work.next()
        until(lambda: job.cluster.counter("minibatch").value == 2)
        if job.rank == 0:
            assert looked.wait(10)
            raise Died
        job.work.done()
        second = job.work.next()
        assert {first, second} == {0, 1}
        job.work.done()
        return job.work.next()

    monkeypatch.setattr(Work, "_holds", holds)
    with place("shm") as where:
        assert together(2, where, body, total=2)[1] is None


def test_accumulated_numbers_of_a_dead_worker_are_all_given_out_again() -> None:
    """A worker holds every number it claimed since its last step, not only the newest."""

    def body(job: Job) -> list[int]:
        if job.rank == 0:
            assert [job.work.next() for _ in range(3)] == [0, 1, 2]
            job.cluster.counter("held").add(1)
            raise Died
        job.cluster.counter("held").wait(1)
        until(job.cluster.dead, 10)
        done = []
        while (number := job.work.next()) is not None:
            job.work.done()
            done.append(number)
        return done

    with place("shm") as where:
        assert sorted(together(2, where, body, total=6)[1]) == list(range(6))


def test_the_position_to_resume_from_is_below_what_others_hold() -> None:
    def body(job: Job) -> int:
        if job.rank == 0:
            assert job.work.next() == 0
            assert job.work.next() == 1
            job.cluster.counter("turn").add(1)
            job.cluster.counter("turn").wait(2)
            return 0
        job.cluster.counter("turn").wait(1)
        numbers = [job.work.next(), job.work.next()]
        assert numbers == [2, 3]
        safe = job.work.safe_position()
        job.cluster.counter("turn").add(1)
        return safe

    with place() as where:
        assert together(2, where, body, total=9)[1] == 0


# -- stopping on request ------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "fields", "size"), [r for r in RULES if r[0] != "alone"])
def test_all_stop_on_request_and_nothing_is_skipped(
    rule: str, fields: dict[str, Any], size: int
) -> None:
    """Whoever asks, the numbers trained are the first ones, and the position says how many."""

    def body(job: Job) -> Any:
        torch.set_num_threads(1)
        net = attach(job, rule, network(), partial(optimizer, "sgd"), **fields)
        done = []
        while (number := net.rule.claim(job)) is not None:
            xy, labels = points(number)
            net.step(functional.cross_entropy(net.model(xy), labels))
            done.append(number)
            if job.rank == size - 1 and len(done) == 3:
                job.work.request_stop()
        return done, job.work.position, job.work.stopped

    with place() as where:
        seen = together(size, where, body, total=10_000)
    trained = sorted(number for done, _, _ in seen for number in done)
    assert trained == list(range(len(trained)))
    assert len(trained) < 10_000
    assert max(position for _, position, _ in seen) == len(trained)
    assert all(stopped for _, _, stopped in seen)


def test_a_request_before_the_first_round_stops_at_once() -> None:
    def body(job: Job) -> Any:
        if job.rank == 0:
            job.work.request_stop()
        job.cluster.counter("asked").add(1)
        job.cluster.counter("asked").wait(2)
        return train(job, "asgd", {})

    with place() as where:
        assert together(2, where, body, total=50) == [([], 0), ([], 0)]


def test_shares_of_a_round() -> None:
    with place() as where:

        def body(job: Job) -> list[Any]:
            work = Work(job.cluster, 0, 5)
            rows = []
            for _ in range(3):
                rows.append((work.deal(World(job.rank, 2)), work.present))
                work.done()
            return rows

        first, second = together(2, where, body)
    assert first == [(0, 2), (2, 2), (4, 1)]
    assert second == [(1, 2), (3, 2), (None, 1)]


# -- leases and speeds --------------------------------------------------------------------

LEASE_S = 0.2


def counts(seen: list[list[int]]) -> Counter[int]:
    return Counter(number for done in seen for number in done)


@pytest.mark.parametrize("seed", range(6))
def test_slow_and_dead_workers_leave_nothing_undone(seed: int) -> None:
    """Whatever sleeps or dies: at least once; and twice only what lapsed or died."""
    total, trained, lapsed, lost = 60, list[int](), list[int](), list[int]()

    def body(job: Job) -> None:
        random = Random(f"{seed}/{job.rank}")
        sleepy, deadly = random.random() < 0.5, job.rank > 0 and random.random() < 0.4
        while (number := job.work.next()) is not None:
            if deadly and random.random() < 0.1:
                lost.append(number)
                raise Died
            time.sleep(2 * LEASE_S if sleepy and random.random() < 0.05 else 0.005)
            trained.append(number)
            job.work.done()
            job.work.let_go()
        lapsed.extend(job.work.lapsed)

    with place("shm") as where:
        together(4, where, body, total=total, lease_s=LEASE_S)
    assert set(trained) == set(range(total))
    again = Counter(trained) - Counter(range(total))
    assert again <= Counter(lapsed) + Counter(lost)


def test_a_number_held_too_long_is_given_out_once_more_and_its_holder_notices() -> None:
    def body(job: Job) -> tuple[list[int], list[int]]:
        done = []
        if job.rank:
            job.cluster.counter("begun").wait(1, 10)
        while (number := job.work.next()) is not None:
            if job.rank == 0:
                job.cluster.counter("begun").add(1)
                job.cluster.counter("other").wait(1, 10)
            job.work.done()
            done.append(number)
        job.cluster.counter("other").add(1)
        return done, job.work.lapsed

    with place("tcp") as where:
        (slow, lapsed), (fast, none) = together(2, where, body, total=8, lease_s=LEASE_S)
    assert slow == lapsed and len(slow) == 1
    assert sorted(fast) == list(range(8))
    assert none == []


def test_without_a_lease_nothing_is_taken_from_the_living() -> None:
    def body(job: Job) -> tuple[list[int], list[int]]:
        done = []
        while (number := job.work.next()) is not None:
            time.sleep(0.5 if number == 0 else 0.005)
            job.work.done()
            done.append(number)
        return done, job.work.lapsed

    with place() as where:
        seen = together(3, where, body, total=30)
    assert counts([done for done, _ in seen]) == Counter(range(30))
    assert not any(lapsed for _, lapsed in seen)


def test_all_stop_within_one_minibatch_and_nobody_idles() -> None:
    """Speeds 1, 2 and 4: the job is as fast as the sum of its workers."""
    begin: list[float] = []

    def body(job: Job) -> tuple[int, float, float]:
        job.cluster.counter("ready").add(1)
        job.cluster.counter("ready").wait(3)
        begin.append(time.monotonic())
        count, busy, end = 0, 0.0, 0.0
        while job.work.next() is not None:
            since = time.monotonic()
            time.sleep(0.04 / 2**job.rank)
            job.work.done()
            job.work.let_go()
            end = time.monotonic()
            count, busy = count + 1, busy + end - since
        return count, busy, end

    with place("shm") as where:
        seen = together(3, where, body, total=350)
    ends = [end for _, _, end in seen]
    slowest = max(busy / count for count, busy, _ in seen)
    assert max(ends) - min(ends) < slowest
    speed = sum(count / busy for count, busy, _ in seen)
    assert 350 / (max(ends) - min(begin)) >= 0.97 * speed
