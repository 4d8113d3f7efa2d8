"""What models and loops may look like, under every rule."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from tinyjobs import attach, place, together
from tinytask import network, optimizer, points
from torch import Tensor, nn
from torch.nn import functional

from dlplatform.job import Job
from dlplatform.rules.rule import rules

SGD, PLAIN = (partial(optimizer, name) for name in ("sgd", "plain"))
each_rule = pytest.mark.parametrize("rule", rules())


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def odd_network() -> nn.Sequential:
    """Return a network with a tied, a frozen and an unused parameter."""
    net = nn.Sequential(
        nn.Linear(2, 4), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 3)
    )
    torch.manual_seed(1)
    for p in net.parameters():
        nn.init.normal_(p, std=0.5)
    net[3].weight = net[1].weight
    net[0].weight.requires_grad_(False)
    net.register_parameter("unused", nn.Parameter(torch.ones(3)))
    return net


@each_rule
def test_tied_frozen_and_unused_parameters(rule: str) -> None:
    model = odd_network()

    def body(job: Job) -> nn.Sequential:
        net = attach(job, rule, copy.deepcopy(model), PLAIN)
        for step in range(5):
            net.step(loss_of(net.model, points(step)))
        return net.model  # type: ignore[return-value]

    with place() as where:
        for trained in together(1 if rule == "alone" else 2, where, body):
            assert trained[3].weight is trained[1].weight
            assert torch.equal(trained[0].weight, model[0].weight)
            assert torch.equal(trained.unused, model.unused)  # type: ignore[arg-type]
            assert not torch.equal(trained[1].weight, model[1].weight)


def test_no_gradient_counts_as_zero() -> None:
    """One worker's loss leaves a layer out: the mean is half of the other's gradient."""

    def body(job: Job) -> Tensor:
        model = nn.ParameterDict(
            {"a": nn.Parameter(torch.ones(2)), "b": nn.Parameter(torch.ones(2))}
        )
        net = attach(job, "ssgd", model, partial(torch.optim.SGD, lr=1.0))
        net.step(model["a"].sum() if job.rank else (model["a"] + 4 * model["b"]).sum())
        return torch.cat([model["a"], model["b"]]).detach()

    with place() as where:
        for seen in together(2, where, body):
            assert seen.tolist() == [0, 0, -1, -1]


@each_rule
@pytest.mark.parametrize("clear", ["none", "zero", "model", "fresh"])
def test_any_way_to_clear_gradients_gives_the_same(rule: str, clear: str) -> None:
    """A foreign loop may set gradients to None, zero them in place, or replace them."""

    def body(job: Job, clear: str) -> list[Tensor]:
        net = attach(job, rule, network(), SGD)
        seen = []
        for step in range(6):
            clear_gradients(net.model, net.optimizer, clear)
            loss_of(net.model, points(step)).backward()
            net.optimizer.step()
            seen.append(net.group.weight.clone())
        return seen

    with place() as one, place() as other:
        (usual,) = together(1, one, partial(body, clear="usual"))
        (seen,) = together(1, other, partial(body, clear=clear))
    assert all(map(torch.equal, usual, seen))


def clear_gradients(model: nn.Module, optimizer: Any, how: str) -> None:
    if how == "usual":
        optimizer.zero_grad()
    elif how == "none":
        for p in model.parameters():
            p.grad = None
    elif how == "zero":
        optimizer.zero_grad(set_to_none=False)
    elif how == "model":
        model.zero_grad()
    else:
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
