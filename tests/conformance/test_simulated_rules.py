"""Every rule with company, under the simulated clock: it learns, and repeats itself bit by bit."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from quadratic import Vector, descend, meet
from tinyjobs import attach, master, place, together
from tinytask import network, optimizer, points
from torch import Tensor
from torch.nn import functional

from dlplatform.job import Job
from dlplatform.rules.rule import rules
from dlplatform.transports.fleet import Fleet, compute, lognormal, simulate

WORKERS, EACH = 8, 60
FIELDS: dict[str, dict[str, Any]] = {
    "adiloco": {"interval": 5},
    "diloco": {"interval": 5},
    "halos": {"interval": 2, "updates": 2, "group_size": 2},
    "quorum": {"interval": 5, "momentum": 0.3},
}
"""Settings of rules whose own would exchange too seldom, or too boldly, for so few steps."""
COMPANY = [name for name in rules() if name != "alone"]
XY, LABELS = points(123456, 256)
SPEED = lognormal(0.05, 0.4)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def judge(weights: Tensor) -> float:
    """Return the loss of a flat vector of weights on points that nobody trained on."""
    model = network()
    sizes = [-(-p.numel() // 16) * 16 for p in model.parameters()]
    with torch.no_grad():
        for p, flat in zip(model.parameters(), weights.split(sizes), strict=True):
            p.copy_(flat[: p.numel()].view(p.shape))
        return float(functional.cross_entropy(model(XY), LABELS))


def train(job: Job, rule: str) -> tuple[Tensor, Tensor]:
    """Train what the rule claims, as the trainer does; return the first and the last master."""
    net = attach(job, rule, network(), partial(optimizer, "plain"), **FIELDS.get(rule, {}))
    first = net.group.weight.clone()
    while (number := net.rule.claim(job)) is not None:
        xy, labels = points(number)
        loss = functional.cross_entropy(net.model(xy), labels)
        compute(job)
        net.step(loss)
    job.finish()
    job.groups.clear()
    meet(job)
    return first, master(net)


@pytest.mark.parametrize("rule", COMPANY)
def test_it_learns_and_repeats_itself(rule: str) -> None:
    def run(seed: int) -> tuple[list[float], list[Any]]:
        fleet = Fleet(WORKERS, SPEED, 1e-3, worker_rate=1e6, box_rate=4e6, seed=seed)
        outcome = simulate(fleet, lambda job: train(job, rule), total=WORKERS * EACH)
        assert sum(outcome.steps) == WORKERS * EACH
        return outcome.finished, outcome.results

    (ends, results), (again_ends, again), (other_ends, _) = run(1), run(1), run(2)
    assert judge(results[0][1]) < 0.6 * judge(results[0][0])
    assert ends == again_ends
    assert all(torch.equal(one[1], other[1]) for one, other in zip(results, again, strict=True))
    assert ends != other_ends


# -- synchronous rules are exact ------------------------------------------------------------------

EIGHTH = 0.125


def dyadic(rank: int, step: int) -> Vector:
    """Return a gradient whose sums have no rounding."""
    return np.random.default_rng((rank, step)).integers(-8, 8, 32).astype(np.float32)


def test_ssgd_of_16_is_one_worker_on_the_full_batch_bit_by_bit() -> None:
    def mean(x: Vector, _: int, step: int) -> Vector:
        return x + np.mean([dyadic(rank, step) for rank in range(16)], 0, dtype=np.float32)

    start = np.arange(32) / 16
    fleet = Fleet(16, SPEED, latency_s=1e-3, boxes=2)
    many = descend(fleet, "ssgd", start, lambda x, r, s: x + dyadic(r, s), 5, lr=EIGHTH)
    (one,) = descend(Fleet(1), "alone", start, mean, 5, lr=EIGHTH)
    assert all((each.seen == one.seen).all() for each in many)
    assert (many[0].master == one.master).all()


needs_ssp = pytest.mark.skipif("ssp" not in rules(), reason="the rule ssp is not installed")


@needs_ssp
@pytest.mark.parametrize("staleness", [1, 3])
def test_no_worker_of_ssp_runs_ahead_further_than_it_may(staleness: int) -> None:
    def body(job: Job) -> None:
        net = attach(job, "ssp", network(), partial(optimizer, "plain"), staleness=staleness)
        for step in range(40):
            assert net.rule.claim(job) is not None
            gaps.append(step - min(done))
            compute(job)
            xy, labels = points(step)
            net.step(functional.cross_entropy(net.model(xy), labels))
            done[job.rank] = step + 1

    done, gaps = [0] * WORKERS, list[int]()
    simulate(Fleet(WORKERS, lognormal(0.05, 1.0)), body)
    assert max(gaps) == staleness


@needs_ssp
def test_ssp_without_staleness_is_ssgd_bit_by_bit() -> None:
    fleet, start = Fleet(WORKERS, SPEED), np.arange(32) / 16

    def slope(x: Vector, rank: int, step: int) -> Vector:
        return x + dyadic(rank, step)

    ssp = descend(fleet, "ssp", start, slope, 5, lr=EIGHTH, staleness=0)
    ssgd = descend(fleet, "ssgd", start, slope, 5, lr=EIGHTH)
    assert all((a.seen == b.seen).all() for a, b in zip(ssp, ssgd, strict=True))


# -- real workers agree ---------------------------------------------------------------------------


def seen(job: Job, rule: str, steps: int, in_turn: bool, **fields: Any) -> Vector:
    """Train a network, one worker after the other where asked to; return weights by step."""
    net = attach(job, rule, network(job.rank), partial(optimizer, "sgd"), **fields)
    turn, path = job.cluster.counter("turn"), []
    for step in range(steps):
        number = step * job.size + job.rank
        if in_turn:
            turn.wait(number)
        xy, labels = points(number)
        path.append(net.step(functional.cross_entropy(net.model(xy), labels)).numpy())
        turn.add(1)
    turn.wait(steps * job.size)
    net.rule.finish()
    job.groups.clear()
    return np.array(path)


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_ssgd_of_real_workers_is_the_simulation_bit_by_bit(transport: str) -> None:
    def body(job: Job) -> Vector:
        return seen(job, "ssgd", 20, in_turn=False)

    with place(transport) as where:
        real = together(4, where, body)
    simulated = simulate(Fleet(4, latency_s=1e-4), body).results
    assert all((a == b).all() for a, b in zip(real, simulated, strict=True))


@pytest.mark.parametrize(("rule", "fields"), [("easgd", {"overlap": False}), ("asgd", {})])
def test_real_workers_in_turn_are_the_simulation(rule: str, fields: dict[str, Any]) -> None:
    def body(job: Job) -> Vector:
        return seen(job, rule, 20, in_turn=True, **fields)

    with place("shm") as where:
        real = together(3, where, body)
    simulated = simulate(Fleet(3, latency_s=1e-4), body).results
    for one, other in zip(real, simulated, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
