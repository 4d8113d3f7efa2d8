"""Exact identities that every rule keeps; a new rule joins with one line in RULES."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from tinyjobs import attach, master, place, together
from tinytask import Pair, network, optimizer, points
from torch import Tensor, nn
from torch.nn import functional

from dlplatform.errors import UsageError
from dlplatform.flat import FlatGroup
from dlplatform.job import Job, Place
from dlplatform.rules.rule import find_rule, rules

STEPS = 20
SGD, ADAM, PLAIN = (partial(optimizer, name) for name in ("sgd", "adam", "plain"))
MAPPED = ("inproc", "shm")


@dataclass(frozen=True)
class Case:
    """A rule with settings, and which identities hold for it."""

    rule: str
    fields: dict[str, Any] = field(default_factory=dict)
    company: bool = True
    repeatable: bool = False

    def __str__(self) -> str:
        return "-".join([self.rule, *(f"{k}={v}" for k, v in self.fields.items())])


RULES = [
    Case("alone", company=False, repeatable=True),
    Case("ssgd", repeatable=True),
    Case("ssgd", {"optimizer": "master"}, repeatable=True),
    Case("ssgd", {"optimizer": "box", "bucket_mb": 0.004}, repeatable=True),
    Case("asgd"),
    Case("asgd", {"interval": 3}),
    Case("easgd"),
    Case("easgd", {"overlap": False}),
    Case("easgd", {"interval": 3}),
    Case("hybrid", {"group_size": 2}),
    Case("hybrid", {"group_size": 1, "interval": 3}),
    Case("hybrid", {"group_size": 2, "rate": 0.0}, repeatable=True),
    Case("localsgd", {"interval": 3}, repeatable=True),
    Case("ssp", {"staleness": 0}, repeatable=True),
    *map(Case, ("ssp", "dcasgd", "eamsgd")),
    *(Case(name, {"interval": 5}) for name in ("diloco", "quorum", "adiloco", "halos")),
]
each_rule = pytest.mark.parametrize("case", RULES, ids=str)
each_optimizer = pytest.mark.parametrize("make", [SGD, ADAM], ids=["sgd", "adam"])
each_transport = pytest.mark.parametrize("transport", ["inproc", "shm", "tcp", "sim"])


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def loss_of(model: nn.Module, batch: Pair) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def plain(batches: list[Pair], make: Callable[..., Any]) -> list[Tensor]:
    """Train without the platform; return the weights after every step."""
    model, seen = network(), []
    optimizer = make(model.parameters())
    for batch in batches:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
        seen.append(torch.cat([p.detach().flatten() for p in model.parameters()]).clone())
    return seen


def bare(model: nn.Module, weights: Tensor, offsets: list[int]) -> Tensor:
    """Return a flat vector without the gaps between parameters."""
    sizes = [p.numel() for p in model.parameters()]
    return torch.cat([weights[at : at + n] for at, n in zip(offsets, sizes, strict=True)])


def train(
    rule: str, where: Place, size: int, make: Callable[..., Any] = SGD, steps: int = STEPS,
    **fields: Any,
) -> list[list[Tensor]]:  # fmt: skip
    """Train numbers dealt by rank; return each worker's weights after every step."""

    def body(job: Job) -> list[Tensor]:
        net = attach(job, rule, network(job.rank), make, **fields)
        seen = []
        for step in range(steps):
            weights = net.step(loss_of(net.model, points(step * size + job.rank)))
            seen.append(bare(net.model, weights, net.group.offsets))
        net.rule.finish()
        job.groups.clear()
        return seen

    return together(size, where, body)


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def test_the_suite_knows_every_rule() -> None:
    assert {case.rule for case in RULES} == set(rules())


# -- one worker ---------------------------------------------------------------------------


@each_optimizer
def test_alone_is_plain_torch(make: Callable[..., Any]) -> None:
    with place() as where:
        (seen,) = train("alone", where, 1, make)
    assert equal(seen, plain([points(n) for n in range(STEPS)], make))


@each_optimizer
@pytest.mark.parametrize("interval", [1, 3])
@each_transport
def test_asgd_with_one_worker_is_alone(
    make: Callable[..., Any], transport: str, interval: int
) -> None:
    with place(transport) as where:
        (seen,) = train("asgd", where, 1, make, interval=interval)
    reference = plain([points(n) for n in range(STEPS)], make)
    if transport in MAPPED:
        assert equal(seen, reference)
    torch.testing.assert_close(seen[-1], reference[-1], rtol=0, atol=1e-5)


def test_asgd_pushes_an_incomplete_last_interval() -> None:
    def body(job: Job) -> tuple[Tensor, Tensor]:
        net = attach(job, "asgd", network(), PLAIN, interval=3)
        for step in range(4):
            net.step(loss_of(net.model, points(step)))
        before = master(net)
        net.rule.finish()
        job.groups.clear()
        assert torch.equal(master(net), net.group.weight)
        return before, master(net)

    with place() as where:
        ((before, after),) = together(1, where, body)
    assert not torch.equal(before, after)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("transport", MAPPED)
def test_easgd_with_rate_0_is_alone(size: int, overlap: bool, transport: str) -> None:
    with place(transport) as where:
        seen = train("easgd", where, size, rate=0.0, overlap=overlap)
    for rank, weights in enumerate(seen):
        numbers = range(rank, STEPS * size, size)
        assert equal(weights, from_rank_0(numbers))


def from_rank_0(numbers: range) -> list[Tensor]:
    return plain([points(number) for number in numbers], SGD)


@pytest.mark.parametrize("rule", ["easgd", "hybrid"])
@pytest.mark.parametrize("interval", [1, 2])
@each_transport
def test_overlapped_exchange_by_hand(rule: str, interval: int, transport: str) -> None:
    """What was learnt in step n meets the centre during n+1; D of step n enters after n+1."""
    x, centre, d = start(), start(), np.zeros(5, np.float32)
    with place(transport) as where:
        fields = {"group_size": 1} if rule == "hybrid" else {}
        seen, last = by_hand(where, rule, rate=0.5, interval=interval, **fields)
    for step, weights in enumerate(seen, 1):
        x = x - RATE * slope(step - 1)
        x, d = x - d, np.zeros(5, np.float32)
        assert weights == x.tolist()
        if step % interval == 0:
            d = np.float32(0.5) * (x - centre)
            centre = centre + d
    assert last == centre.tolist()


@each_transport
def test_exchange_in_line_by_hand(transport: str) -> None:
    x, centre = start(), start()
    with place(transport) as where:
        seen, last = by_hand(where, "easgd", rate=0.5, overlap=False)
    for step, weights in enumerate(seen):
        x = x - RATE * slope(step)
        d = np.float32(0.5) * (x - centre)
        centre, x = centre + d, x - d
        assert weights == x.tolist()
    assert last == centre.tolist()


RATE = np.float32(0.125)


def start() -> np.ndarray[Any, Any]:
    return np.arange(5, dtype=np.float32)


def slope(step: int) -> np.ndarray[Any, Any]:
    return np.float32(8.0) * np.arange(1, 6, dtype=np.float32) * (step + 1)


def by_hand(where: Place, rule: str, **fields: Any) -> tuple[list[Any], list[float]]:
    """Take three steps down known slopes, all numbers exact in binary."""

    def body(job: Job) -> tuple[list[Any], list[float]]:
        model = nn.ParameterList([nn.Parameter(torch.from_numpy(start()))])
        make = partial(torch.optim.SGD, lr=float(RATE))
        net = attach(job, rule, model, make, **fields)
        losses = ((torch.from_numpy(slope(step)) * model[0]).sum() for step in range(3))
        seen = [net.step(loss)[:5].tolist() for loss in losses]
        net.rule.finish()
        centre = master(net)[:5].tolist()
        job.groups.clear()
        return seen, centre

    return together(1, where, body)[0]


# -- several workers ----------------------------------------------------------------------


@each_optimizer
@each_transport
def test_ssgd_is_one_worker_on_the_merged_batch(make: Callable[..., Any], transport: str) -> None:
    with place(transport, boxes=2) as where:
        seen = train("ssgd", where, 4, make)
    merged = [
        tuple(
            torch.cat(parts) for parts in zip(*(points(4 * s + r) for r in range(4)), strict=True)
        )
        for s in range(STEPS)
    ]
    for weights, reference in zip(seen[0], plain(merged, make), strict=True):
        torch.testing.assert_close(weights, reference, rtol=0, atol=1e-6)


@each_transport
def test_ssgd_weights_are_equal_after_every_step(transport: str) -> None:
    with place(transport) as where:
        seen = train("ssgd", where, 4, ADAM)
    assert all(equal(seen[0], other) for other in seen[1:])


@pytest.mark.parametrize("case", [c for c in RULES if c.repeatable], ids=str)
def test_repeatable_and_equal_over_all_transports(case: Case) -> None:
    results = []
    for transport in ("inproc", "inproc", "shm", "tcp", "sim"):
        with place(transport) as where:
            size = 4 if case.company else 1
            results.append(train(case.rule, where, size, ADAM, **case.fields)[0])
    assert all(equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("transport", ["inproc", "tcp"])
@pytest.mark.parametrize("rule", ["ssgd", "asgd", "easgd"])
def test_three_boxes_are_one_box(rule: str, transport: str) -> None:
    size = 3 if rule == "ssgd" else 1
    results = []
    for boxes in (1, 3):
        with place(transport, boxes) as where:
            results.append(train(rule, where, size)[0])
    assert equal(*results)


@pytest.mark.parametrize("rate", [None, 0.0])
@pytest.mark.parametrize("transport", ["inproc", "tcp"])
def test_hybrid_with_one_group_is_ssgd(transport: str, rate: float | None) -> None:
    with place(transport) as one, place(transport) as other:
        hybrid = train("hybrid", one, 3, group_size=3, rate=rate)
        ssgd = train("ssgd", other, 3)
    assert all(map(equal, hybrid, ssgd))


@pytest.mark.parametrize("rule", ["ssgd", "asgd", "easgd", "hybrid"])
def test_a_slow_starter_begins_with_the_first_weights_of_rank_0(rule: str) -> None:
    """The others do not train before everybody has read them."""

    def body(job: Job) -> Tensor:
        model = network(job.rank)
        time.sleep(0.4 * job.rank)
        net = attach(job, rule, model, SGD)
        first = net.group.weight.clone()
        for step in range(3):
            net.step(loss_of(net.model, points(step)))
        net.rule.finish()
        job.groups.clear()
        return first

    with place("shm") as where:
        seen = together(2, where, body)
    assert torch.equal(*seen)


@each_transport
def test_members_of_a_hybrid_group_hold_equal_weights(transport: str) -> None:
    with place(transport) as where:
        seen = train("hybrid", where, 4, group_size=2, interval=2)
    assert equal(seen[0], seen[1])
    assert equal(seen[2], seen[3])
    assert not equal(seen[0], seen[2])


@pytest.mark.parametrize(
    ("rule", "fields", "size", "rate"),
    [
        ("easgd", {}, 3, 0.9 / 3),
        ("easgd", {"rate": 0.25}, 3, 0.25),
        ("hybrid", {"group_size": 2}, 4, 0.9 / 2),
        ("hybrid", {"group_size": 2}, 3, 0.9 / 2),
        ("hybrid", {"group_size": 3}, 3, 0.0),
        ("hybrid", {"group_size": 1, "rate": 0.125}, 2, 0.125),
    ],
)
def test_moving_rate(rule: str, fields: dict[str, Any], size: int, rate: float) -> None:
    def body(job: Job) -> float:
        return attach(job, rule, network(), SGD, **fields).rule.moving_rate  # type: ignore[attr-defined,no-any-return]

    with place() as where:
        assert together(size, where, body) == [rate] * size


@each_rule
def test_all_start_from_the_weights_of_rank_0(case: Case) -> None:
    def body(job: Job) -> Tensor:
        return attach(job, case.rule, network(job.rank), SGD, **case.fields).group.weight.clone()

    with place() as where:
        seen = together(4 if case.company else 1, where, body)
    assert equal(seen, [seen[0]] * len(seen))
    assert seen[0].count_nonzero() > 90


@each_rule
def test_the_master_is_near_the_workers_at_the_end(case: Case) -> None:
    size = 4 if case.company else 1

    def body(job: Job) -> tuple[Tensor, Tensor]:
        net = attach(job, case.rule, network(), PLAIN, **case.fields)
        for step in range(STEPS):
            net.step(loss_of(net.model, points(step * size + job.rank)))
        net.rule.finish()
        job.groups.clear()
        job.cluster.counter("here").add(1)
        job.cluster.counter("here").wait(size)
        return master(net), net.group.weight.clone()

    with place() as where:
        ended = together(size, where, body)
    masters = [weights for weights, _ in ended]
    assert equal(masters, [masters[0]] * size)
    begin = FlatGroup("begin", network().parameters()).weight
    moved = float((masters[0] - begin).norm())
    if case.fields.get("rate") == 0.0:
        assert moved == 0
        return
    assert moved > 0.1
    assert all(float((masters[0] - own).norm()) < max(1.0, moved) for _, own in ended)


# -- refusals -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "fields", "size", "words"),
    [
        ("alone", {}, 2, "rule=alone with 2 workers"),
        ("asgd", {"interval": 0}, 1, "rule.interval=0"),
        ("easgd", {"interval": 0}, 1, "rule.interval=0"),
        ("easgd", {"rate": 1.5}, 1, "rule.rate=1.5"),
        ("easgd", {"rate": -0.1}, 1, "rule.rate=-0.1"),
        ("hybrid", {"group_size": 0}, 2, "rule.group_size=0"),
        ("hybrid", {"group_size": 3}, 2, "rule.group_size=3 of 2 workers"),
        ("hybrid", {"interval": -1}, 2, "rule.interval=-1"),
    ],
)
def test_settings_that_cannot_work(
    rule: str, fields: dict[str, Any], size: int, words: str
) -> None:
    with place() as where, pytest.raises(UsageError, match=words.replace(".", r"\.")):
        together(size, where, lambda job: attach(job, rule, network(), SGD, **fields) and None)


def test_an_unknown_rule_names_the_closest() -> None:
    with pytest.raises(UsageError, match="rule=esgd is not a rule; closest: "):
        find_rule("esgd")
