"""Rules that step alone and exchange now and then: narrow wires, stragglers, deaths."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from outer import PLAIN, F, loss_of, train
from places import at
from tinyjobs import attach, master, place, together
from tinytask import network
from torch import Tensor

from dlplatform.errors import UsageError
from dlplatform.job import Job
from dlplatform.memorybox.cluster import Cluster
from dlplatform.rules.rule import rules
from dlplatform.transports.fleet import Fleet, compute, simulate
from kernels import reference


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("wire", ["bf16", "fp16", "int8", "topk:0.25"])
@pytest.mark.parametrize("rule", ["diloco", "adiloco", "halos"])
def test_a_narrow_wire_ends_near_the_wide_one(rule: str, wire: str) -> None:
    fields: dict[str, Any] = {"interval": 2}
    with place() as where, place() as other:
        narrow = train(rule, where, 1, 60, wire=wire, **fields)[-1]
        wide = train(rule, other, 1, 60, **fields)[-1]
    begin = attach_nothing()
    assert float((narrow - wide).norm()) < 0.2 * float((wide - begin).norm())


def attach_nothing() -> Tensor:
    from dlplatform.flat import FlatGroup

    return FlatGroup("begin", network().parameters()).weight.clone()


# -- several workers -------------------------------------------------------------------------------


@pytest.mark.parametrize("staleness", [1, 3])
def test_ssp_keeps_the_clocks_together(staleness: int) -> None:
    """A slow worker holds the fast ones; nobody is ever further ahead than allowed."""
    most = [0]

    def body(job: Job) -> None:
        net = attach(job, "ssp", network(), PLAIN, staleness=staleness)
        while (number := net.rule.claim(job)) is not None:
            slowest = min(job.cluster.counter(f"main/clock/{rank}").value for rank in range(3))
            most[0] = max(most[0], net.rule.steps - slowest)  # type: ignore[attr-defined]
            time.sleep(0.01 if job.rank == 0 else 0.0)
            net.step(loss_of(net.model, number))
        net.rule.finish()

    with place("shm") as where:
        together(3, where, body, total=60)
    assert 0 < most[0] <= staleness


SURVIVORS = [name for name, cls in rules().items() if cls.survives]
SHORT = {"diloco": {"interval": 4}, "quorum": {"interval": 4}, "adiloco": {"interval": 4},
         "halos": {"interval": 2, "updates": 2, "group_size": 1}}  # fmt: skip


@pytest.mark.parametrize("rule", SURVIVORS)
@pytest.mark.parametrize("at_s", [0.05, 0.315, 0.62])
def test_the_others_finish_when_one_dies(rule: str, at_s: float) -> None:
    """Under the simulated clock, in the middle of a step, an exchange, or between them."""
    done: list[int] = []

    def body(job: Job) -> Tensor:
        net = attach(job, rule, network(), PLAIN, **SHORT.get(rule, {}))
        while (number := net.rule.claim(job)) is not None:
            loss = loss_of(net.model, number)
            compute(job)
            net.step(loss)
            done.append(number)
        net.rule.finish()
        job.cluster.finished()
        job.wait_for_all()
        job.groups.clear()
        return master(net)

    fleet = Fleet(3, step_s=0.03, latency_s=0.001, worker_rate=1e5, deaths={1: at_s})
    outcome = simulate(fleet, body, total=90)
    assert set(done) == set(range(90))
    assert outcome.results[1] is None
    assert torch.equal(outcome.results[0], outcome.results[2])  # type: ignore[arg-type]


def test_an_outer_step_that_broke_off_is_taken_once() -> None:
    """Whoever takes over repeats the fold: elements that took their step stay as they are."""
    length = 3000
    random = np.random.default_rng(0)
    w, m, t = (random.normal(size=length).astype(F) for _ in range(3))
    cluster = Cluster(["inproc://fold"], "fold")
    cluster.join(0, 1)
    try:
        buffers = [cluster.buffer(name, length, True) for name in "wmt"]
        for buffer, values in zip(buffers, (w, m, t), strict=True):
            buffer.write(at(values))
        weights, velocity, gathered = buffers
        k, states = (0.5, 0.7, 0.9, 1.0, 1.0), [velocity, gathered]
        weights.apply("fold", k=k, states=states, start=0, count=1111)  # and then it died
        weights.apply("fold", k=k, states=states)
        weights.apply("fold", k=(0.0, 0.0, 1.0, 0.0, 0.0), states=states)
        expected = reference.fold(w, m, t, t, t, k)
        for buffer, values in zip(buffers, (*expected[:2], np.zeros(length, F)), strict=True):
            held = np.empty(length, F)
            buffer.read(at(held))
            assert np.array_equal(held, values) and not np.signbit(held[values == 0]).any()
    finally:
        cluster.close()


# -- groups as workers ---------------------------------------------------------------------------


@pytest.mark.parametrize("between", ["diloco", "quorum", "adiloco"])
@pytest.mark.parametrize("transport", ["inproc", "tcp"])
def test_a_group_is_one_worker_of_the_rule_between(between: str, transport: str) -> None:
    """Groups of one are that rule; members of a larger group hold equal weights."""
    with place(transport) as where, place(transport) as other:
        ours = train("hybrid", where, 1, between=between, interval=3, group_size=1)
        theirs = train(between, other, 1, interval=3)
    assert all(map(torch.equal, ours, theirs))
    with place(transport, 2) as where:
        a, b, c, d, shared = train("hybrid", where, 4, 12, between=between, interval=3)
    assert torch.equal(a, b) and torch.equal(c, d)
    if between == "diloco":  # all have just taken the shared weights over
        assert torch.equal(a, c) and torch.equal(a, shared)


def test_a_group_under_diloco_is_one_worker_on_the_merged_batch() -> None:
    with place() as where, place() as other:
        group = train("hybrid", where, 2, 12, between="diloco", interval=3, group_size=2)
        local = train("hybrid", other, 2, 12, rate=0.0, group_size=2)  # ssgd
    assert torch.equal(group[0], group[1])
    assert not torch.equal(group[0], local[0])


def test_an_unknown_rule_between_is_refused() -> None:
    with place() as where, pytest.raises(UsageError, match=r"rule\.between=asgd - allowed: easgd"):
        train("hybrid", where, 2, 1, between="asgd")


@pytest.mark.parametrize("rule", [name for name, cls in rules().items() if cls.elastic])
def test_a_worker_that_joins_takes_part(rule: str) -> None:
    """Two begin, a third comes later: every number is trained once, and all end together."""
    done: dict[int, list[int]] = {0: [], 1: [], 2: []}

    def body(job: Job) -> Tensor:
        net = attach(job, rule, network(), PLAIN, **SHORT.get(rule, {}))
        while (number := net.rule.claim(job)) is not None:
            loss = loss_of(net.model, number)
            compute(job)
            net.step(loss)
            done[job.rank].append(number)
        net.rule.finish()
        job.cluster.finished()
        job.wait_for_all()
        job.groups.clear()
        return master(net)

    fleet = Fleet(2, step_s=0.03, latency_s=0.001, joins=[0.6])
    outcome = simulate(fleet, body, total=120)
    assert sorted(number for numbers in done.values() for number in numbers) == list(range(120))
    assert len(done[2]) > 20
    first, *others = outcome.results
    assert all(torch.equal(first, other) for other in others)  # type: ignore[arg-type]
    assert max(outcome.finished) - min(outcome.finished) < 0.4


def test_an_exchange_longer_than_a_step_hides_behind_several() -> None:
    """An exchange of 2.4 steps, every fourth step: hidden whole with a window of three."""

    def body(job: Job) -> None:
        net = attach(job, "easgd", network(), PLAIN, interval=4, window=window)
        for number in range(41):
            loss = loss_of(net.model, number)
            compute(job)
            net.step(loss)

    seconds = {}
    for window in (1, 3):
        fleet = Fleet(2, step_s=0.1, worker_rate=4 * 112 / 0.24)
        begin = simulate(Fleet(2, step_s=1e-9, worker_rate=4 * 112 / 0.24), body).seconds
        seconds[window] = simulate(fleet, body).seconds
        assert begin > 2.4  # ten exchanges
    assert seconds[1] - seconds[3] == pytest.approx(9 * 0.14, rel=0.05)
    assert seconds[3] < 1.12 * 4.1 + 0.5  # the first weights come in view, too
