"""Losses that are means over what a batch holds: workers together divide as one would."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from synchronous import words
from tinyjobs import attach, place, together
from torch import Tensor, nn

from dlplatform.job import Job
from dlplatform.task import Mean, Terms, added, numbers

STEPS, WORKERS = 6, 3
FORMS: list[tuple[str, dict[str, Any]]] = [
    ("ssgd", {}),
    ("ssgd", {"bucket_mb": 0.001}),
    ("ssgd", {"optimizer": "box"}),
    ("ssgd", {"inner": "torch"}),
    ("hybrid", {"group_size": WORKERS, "interval": 100}),
]


class Heads(nn.Module):
    """A body with two heads; not every minibatch has labels for the second."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(8, 1)


def make(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def model() -> Heads:
    torch.manual_seed(1)
    return Heads()


def loss(net: Heads, number: int) -> Terms:
    """Return terms over 1 to 5 things, and over those few of them that have a second label."""
    random = torch.Generator().manual_seed(number)
    x = torch.randn(1 + number % 5, 4, generator=random)
    labelled = torch.arange(len(x)) < (number % 3 == 0) * 2
    h = torch.tanh(net.body(x))
    return {
        "plain": 0.01 * net.first(h).square().mean(),
        "first": Mean((net.first(h) - 1).square().sum(), len(x)),
        "second": Mean((net.second(h)[labelled] - 2).square().sum(), labelled.sum()),
    }


def merged() -> Tensor:
    """Train in one process, each sum divided by the things of all minibatches of a step."""
    net = model()
    optimizer = make(net.parameters())
    for step in range(STEPS):
        all_terms = [loss(net, step * WORKERS + rank) for rank in range(WORKERS)]
        own = [numbers(terms) for terms in all_terms]
        total = torch.stack([terms["plain"] for terms in all_terms]).mean()  # type: ignore[arg-type]
        for name in ("first", "second"):
            parts = [terms[name].total for terms in all_terms]  # type: ignore[union-attr]
            total = total + torch.stack(parts).sum() / max(sum(one[name] for one in own), 1.0)
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return nn.utils.parameters_to_vector(net.parameters()).detach()


@pytest.mark.parametrize(("name", "fields"), FORMS, ids=words)
@pytest.mark.parametrize("where", ["shm", "tcp"])
def test_workers_together_divide_as_one_would(
    where: str, name: str, fields: dict[str, Any]
) -> None:
    first, expected = model(), merged()  # threads share torch's random numbers

    def body(job: Job) -> Tensor:
        net = attach(job, name, copy.deepcopy(first), make, **fields)
        for step in range(STEPS):
            terms = loss(net.model, step * WORKERS + job.rank)  # type: ignore[arg-type]
            net.step(added(terms, net.rule.numbers(numbers(terms))))
        net.rule.finish()
        job.groups.clear()
        return nn.utils.parameters_to_vector(net.model.parameters()).detach().clone()

    with place(where) as there:
        found = together(WORKERS, there, body)
    for one in found:
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-6)


def test_rules_that_do_not_wait_divide_by_their_own() -> None:
    def body(job: Job) -> dict[str, float]:
        return attach(job, "easgd", model(), make).rule.numbers({"first": job.rank + 1.0})

    with place("shm") as there:
        assert together(2, there, body) == [{"first": 1.0}, {"first": 2.0}]


def test_nothing_is_no_loss() -> None:
    empty = torch.zeros((), requires_grad=True)
    total = added({"one": torch.tensor(2.0), "none": Mean(empty, 0)})
    assert float(total.detach()) == 2.0 and numbers({"none": Mean(empty, 0)}) == {"none": 0.0}
    assert numbers(torch.tensor(1.0)) == {}
