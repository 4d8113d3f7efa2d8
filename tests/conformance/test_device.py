"""Groups on another device: every rule does on the host's copy what it does on the vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from synchronous import MAKES, WIDE, equal, words
from tinyjobs import Net, attach, master, place, together
from tinytask import network, points
from torch import Tensor

from dlplatform.device import DeviceGroup, choose, moved
from dlplatform.errors import EnvironmentMissing
from dlplatform.flat import FlatGroup
from dlplatform.job import Job
from dlplatform.rules.rule import find_rule, rules
from dlplatform.world import World

WORKERS, STEPS = 3, 7
MORE: list[tuple[str, dict[str, Any]]] = [
    ("ssgd", {"optimizer": "master"}),
    ("ssgd", {"optimizer": "box"}),
    ("ssgd", {"bucket_mb": 0.008}),
    ("easgd", {"overlap": False}),
    ("easgd", {"interval": 3, "window": 2}),
    ("asgd", {"interval": 2}),
    ("diloco", {"interval": 3, "delay": 1, "fragments": 2}),
    ("hybrid", {"group_size": 2, "between": "diloco", "interval": 2}),
]
CASES = [*((name, {}) for name in rules() if name != "alone"), *MORE]
GPU = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    yield


def train(
    name: str, fields: dict[str, Any], kind: type[FlatGroup], where: str = "sim",
    *devices: str,
) -> list[list[Tensor]]:  # fmt: skip
    """Return by worker its weights after every step, and last the job's.

    Workers are on the devices in turn.
    """

    def body(job: Job) -> list[Tensor]:
        device = devices[job.rank % len(devices)] if devices else "cpu"
        model = network(job.rank, WIDE).to(device)
        group, rule = kind("main", model.parameters()), find_rule(name)(**fields)
        make = MAKES["plain" if name in ("eamsgd", "dcasgd") else "momentum"]
        net = Net(model, group, rule, make(group.parameters))
        job.attach(net.optimizer, group, rule)
        seen = []
        while (number := rule.claim(job)) is not None:
            loss = loss_on(model, number, device)
            seen.append(net.step(loss).cpu())
        job.finish()
        job.wait_for_all()
        seen += [group.weight.clone().cpu(), master(net)]
        job.groups.clear()
        return seen

    with place(where) as there:
        return together(WORKERS, there, body, total=STEPS * WORKERS)


def loss_on(model: torch.nn.Module, number: int, device: str) -> Tensor:
    xy, labels = moved(points(number), torch.device(device))
    return torch.nn.functional.cross_entropy(model(xy), labels)


@pytest.mark.parametrize(("name", "fields"), CASES, ids=words)
def test_every_rule_gives_the_same_weights(name: str, fields: dict[str, Any]) -> None:
    usual, mirrored = (train(name, fields, kind) for kind in (FlatGroup, DeviceGroup))
    assert sum(map(len, usual)) >= (STEPS + 1) * WORKERS
    assert all(map(equal, usual, mirrored))


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "fields"), CASES, ids=words)
def test_every_rule_trains_on_a_gpu(name: str, fields: dict[str, Any]) -> None:
    usual = train(name, fields, FlatGroup)
    seen = train(name, fields, DeviceGroup, "sim", "cuda")
    for one, other in zip(usual, seen, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("where", ["inproc", "shm", "tcp"])
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_synchronous_groups_over_real_transports(where: str, device: str) -> None:
    usual = train("ssgd", {}, FlatGroup, where)
    seen = train("ssgd", {}, DeviceGroup, where, device)
    for a, b in zip(usual[0], seen[0], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0 if device == "cpu" else 1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["ssgd", "easgd", "asgd"])
def test_workers_on_cpu_and_gpu_share_one_buffer(name: str) -> None:
    usual = train(name, {}, FlatGroup)
    mixed = train(name, {}, DeviceGroup, "sim", "cpu", "cuda")
    for one, other in zip(usual, mixed, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


@pytest.mark.gpu
def test_torch_averages_in_a_group() -> None:
    """Two workers that share a GPU do it over gloo; whoever has one alone, over NCCL."""
    usual = train("ssgd", {}, FlatGroup, "shm")
    seen = train("ssgd", {"inner": "torch"}, DeviceGroup, "shm", "cuda")
    for a, b in zip(usual[0], seen[0], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)

    def body(job: Job) -> tuple[str, bool]:
        net = attach(job, "ssgd", network(0, WIDE).cuda(), MAKES["plain"], inner="torch")
        loss_on(net.model, 0, "cuda").backward()
        before = net.group.grad.clone()
        members = net.rule.way._members(1)  # type: ignore[attr-defined]
        members.allreduce([net.group.grad]).wait()
        net.rule.finish()
        return type(members).__name__, bool(before.any() and torch.equal(before, net.group.grad))

    with place("shm") as there:
        assert together(1, there, body) == [("ProcessGroupNCCL", True)]


def test_a_device_that_is_not_there() -> None:
    world = World(3, 4, 3, 4)
    assert choose("cpu", world) == torch.device("cpu")
    here = torch.cuda.device_count()
    with pytest.raises(
        EnvironmentMissing, match=f"run.device=cuda:{here} on a machine with {here} "
    ):
        choose(f"cuda:{here}", world)
    assert choose("auto", world).type == ("cuda" if here else "cpu")
    assert choose("auto", world, stages=2).type == "cpu"


def test_batches_move_whatever_their_form() -> None:
    batch = {"x": torch.ones(2), "more": [torch.zeros(1), ("name", 3)]}
    there = moved(batch, torch.device("meta"))
    assert there["x"].device.type == there["more"][0].device.type == "meta"
    assert there["more"][1] == ("name", 3)
