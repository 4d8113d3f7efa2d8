"""Synchronous SGD in all its forms: who steps, who sums, and when gradients leave."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import tinyjobs
import torch
from synchronous import MAKES, WIDE, WORKERS, equal, loss_of, train, words
from tinyjobs import Died, attach, place, together
from tinytask import network
from torch import Tensor, nn

from dlplatform.errors import PeerLost, UsageError
from dlplatform.job import Job
from dlplatform.transports.fleet import Fleet, simulate

EXACT: list[dict[str, Any]] = [
    {"optimizer": "master"},
    {"bucket_mb": 0.008},
    {"bucket_mb": 1000},
    {"inner": "host"},
    {"inner": "host", "bucket_mb": 0.008},
]
CLOSE: list[dict[str, Any]] = [
    {"optimizer": "box"},
    {"optimizer": "box", "bucket_mb": 0.008},
    {"optimizer": "box", "order": "arrival"},
    {"optimizer": "master", "order": "arrival"},
    {"inner": "torch"},
]
REPEATABLE = [*EXACT, *CLOSE[:2], CLOSE[-1]]
PLACES = [("inproc", 1), ("inproc", 3), ("shm", 1), ("shm", 3), ("tcp", 1), ("tcp", 3)]


each_place = pytest.mark.parametrize(("transport", "boxes"), PLACES)
each_make = pytest.mark.parametrize("make", MAKES)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def close(one: list[Tensor], other: list[Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)


# -- who steps, who sums ------------------------------------------------------------------


@each_place
@each_make
def test_every_way_gives_the_same_weights(make: str, transport: str, boxes: int) -> None:
    with place(transport, boxes) as where:
        usual = train(where, make)[0]
    for fields in [*EXACT, *CLOSE]:
        with place(transport, boxes) as where:
            seen = train(where, make, **fields)
        assert all(equal(seen[0], other) for other in seen[1:]), fields
        if fields in EXACT:
            assert equal(usual, seen[0]), fields
        close(usual, seen[0])


@pytest.mark.parametrize("fields", [*EXACT, *CLOSE], ids=words)
def test_gradients_of_several_passes_add_up(fields: dict[str, Any]) -> None:
    with place("tcp", 3) as one, place("tcp", 3) as other:
        close(train(one, passes=2)[0], train(other, passes=2, **fields)[0])


@pytest.mark.parametrize("fields", REPEATABLE, ids=words)
def test_repeatable_over_all_transports(fields: dict[str, Any]) -> None:
    results = []
    for transport, boxes in (("inproc", 1), ("inproc", 3), ("shm", 1), ("tcp", 3)):
        with place(transport, boxes) as where:
            results.append(train(where, "adam", **fields)[0])
    assert all(equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("fields", [*EXACT, *CLOSE], ids=words)
def test_one_worker_is_no_exception(fields: dict[str, Any]) -> None:
    with place() as one, place() as other:
        close(train(one, size=1)[0], train(other, size=1, **fields)[0])


def test_who_does_not_step_keeps_no_state() -> None:
    def body(job: Job) -> int:
        net = attach(job, "ssgd", network(), MAKES["adam"], optimizer="box")
        for step in range(3):
            net.step(loss_of(net.model, step))
        return len(net.optimizer.state)

    with place() as where:
        assert together(2, where, body) == [0, 0]


def test_groups_of_parameters_have_their_own_rates() -> None:
    def make(parameters: Any) -> torch.optim.Optimizer:
        first, *others = parameters
        groups = [{"params": others, "lr": 0.01}, {"params": [first], "weight_decay": 0.1}]
        return torch.optim.AdamW(groups, lr=0.02)

    def body(job: Job, optimizer: str) -> list[Tensor]:
        net = attach(job, "ssgd", network(), make, optimizer=optimizer)
        return [net.step(loss_of(net.model, step * 2 + job.rank)) for step in range(5)]

    with place("shm") as one, place("shm") as other:
        usual = together(2, one, partial(body, optimizer="worker"))
        close(usual[0], together(2, other, partial(body, optimizer="box"))[1])


# -- gradients that leave during backward --------------------------------------------------


class Branches(nn.Module):
    """Layers in an order that may differ from worker to worker; some may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(32, 32) for _ in range(6)])

    def forward(self, x: Tensor, order: list[int]) -> Tensor:
        for index in order:
            x = torch.tanh(self.layers[index](x))
        return x.square().mean()


@pytest.mark.parametrize(("transport", "boxes"), [("inproc", 1), ("tcp", 3)])
@pytest.mark.parametrize("optimizer", ["worker", "box"])
def test_any_order_of_layers_and_unused_ones(optimizer: str, transport: str, boxes: int) -> None:
    torch.manual_seed(1)
    first = Branches()  # threads share torch's random numbers

    def body(job: Job, bucket_mb: float) -> Tensor:
        model = copy.deepcopy(first)
        fields = {"optimizer": optimizer, "bucket_mb": bucket_mb}
        net = attach(job, "ssgd", model, MAKES["plain"], **fields)
        for step in range(12):
            order = torch.randperm(6, generator=torch.Generator().manual_seed(step * 7 + job.rank))
            x = torch.randn(4, 32, generator=torch.Generator().manual_seed(step * 9 + job.rank))
            net.step(model(x, order[: 6 - step % 3].tolist()))
        net.rule.finish()
        job.groups.clear()
        return net.group.weight.clone()

    results = []
    for bucket_mb in (0.0, 0.004):
        with place(transport, boxes) as where:
            results += together(3, where, partial(body, bucket_mb=bucket_mb))
    assert equal(results, [results[0]] * 6)


def twice(net: tinyjobs.Net) -> None:
    loss_of(net.model, 0).backward()
    loss_of(net.model, 1).backward()


def cleared(net: tinyjobs.Net) -> None:
    loss_of(net.model, 0).backward()
    net.optimizer.zero_grad()


def clipped(net: tinyjobs.Net) -> None:
    loss_of(net.model, 0).backward()
    nn.utils.clip_grad_norm_(net.model.parameters(), 1e-3)
    net.optimizer.step()


@pytest.mark.parametrize(
    ("loop", "reason"),
    [
        (twice, "a second backward pass before the step"),
        (cleared, "gradients zeroed after they were sent"),
        (clipped, "gradients changed after they were sent"),
    ],
)
def test_what_cannot_be_right_any_more_is_refused(
    loop: Callable[[tinyjobs.Net], None], reason: str
) -> None:
    def body(job: Job) -> None:
        net = attach(job, "ssgd", network(), MAKES["plain"], bucket_mb=1)
        net.optimizer.zero_grad()
        loop(net)

    with place() as where, pytest.raises(UsageError, match=f"{reason}.* allowed: "):
        together(2, where, body)


class Slow(torch.autograd.Function):
    """Computes for a while in the backward pass, in the time of the job."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, job: Job) -> Tensor:
        ctx.job = job
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.job.cluster.clock.sleep(0.1)
        return grads[0], None


def test_backward_hides_the_exchange() -> None:
    """Eight layers of 0.1 s, and as long on the line: only the last layer's way is seen."""
    layers, steps = 8, 4

    def body(job: Job, bucket_mb: float) -> tuple[float, Tensor]:
        torch.manual_seed(1)
        model = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(layers)])
        net = attach(job, "ssgd", model, MAKES["plain"], bucket_mb=bucket_mb)
        for step in range(steps):
            x = torch.randn(2, 64, generator=torch.Generator().manual_seed(job.rank + 2 * step))
            for layer in model:
                x = Slow.apply(layer(x), job)
            net.step(x.square().mean())
        hidden = net.rule.report().get("sync/hidden", 0.0)
        net.rule.finish()
        job.groups.clear()
        return hidden, net.group.weight.clone()

    fleet = Fleet(workers=2, worker_rate=layers * 4 * 64 * 64 / 0.8 * 2)
    after, during = (simulate(fleet, partial(body, bucket_mb=mb)) for mb in (0.0, 1 / 64))
    weights = [result[1] for run in (after, during) for result in run.results if result]
    assert equal(weights, [weights[0]] * 4)
    assert during.results[0] is not None and during.results[0][0] > 0.7
    assert during.seconds < 0.7 * after.seconds


# -- the end of a worker -------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["inproc", "tcp"])
@pytest.mark.parametrize("fields", [{}, *EXACT, *CLOSE], ids=words)
def test_the_others_see_that_a_worker_died(transport: str, fields: dict[str, Any]) -> None:
    def body(job: Job) -> None:
        net = attach(job, "ssgd", network(0, WIDE), MAKES["adam"], **fields)
        for step in range(20):
            loss = loss_of(net.model, step)
            if step == 3 and job.rank == 1:
                raise Died
            net.step(loss)

    with place(transport) as where, pytest.raises(PeerLost, match="worker 1 died"):
        together(WORKERS, where, body)


# -- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "make", "reason"),
    [
        ({"optimizer": "boxes"}, torch.optim.SGD, "rule.optimizer=boxes - allowed: worker, "),
        ({"order": "size"}, torch.optim.SGD, "rule.order=size - allowed: rank, arrival"),
        ({"inner": "mpi"}, torch.optim.SGD, "rule.inner=mpi - allowed: boxes, host, auto, torch"),
        ({"bucket_mb": -1}, torch.optim.SGD, "rule.bucket_mb=-1 - allowed: 0 or more"),
        ({"bucket_mb": 1, "optimizer": "master"}, torch.optim.SGD, "rule.bucket_mb=1 with "),
        ({"inner": "torch", "optimizer": "box"}, torch.optim.SGD, "rule.inner=torch with "),
        ({"inner": "host", "optimizer": "box"}, torch.optim.SGD, "rule.inner=host with "),
        ({"optimizer": "box"}, torch.optim.RMSprop, "RMSprop cannot be done by memory boxes"),
        (
            {"optimizer": "box"},
            partial(torch.optim.Adam, amsgrad=True),
            "Adam with amsgrad=True cannot be done by memory boxes",
        ),
    ],
)
def test_settings_that_cannot_work(fields: Any, make: Any, reason: str) -> None:
    with place() as where, pytest.raises(UsageError, match=reason):
        together(2, where, lambda job: attach(job, "ssgd", network(), make, **fields) and None)
