"""Groups of the hybrid rule: which workers they are, who averages in them, what is hidden."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
from synchronous import MAKES, STEPS, WIDE, WORKERS, equal, loss_of, train, words
from tinyjobs import attach, master, place, together
from tinytask import network
from torch import Tensor

from dlplatform.errors import PeerLost, UsageError
from dlplatform.job import Job
from dlplatform.rules.hybrid import Hybrid
from dlplatform.transports.fleet import Fleet, compute, simulate
from dlplatform.world import World


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Hosted(World):
    """A worker of a host that the test names."""

    host: str = ""

    @property
    def node(self) -> str:
        return self.host


@pytest.mark.parametrize(
    ("hosts", "members"),
    [
        ("aaabc", [(0, 1, 2), (0, 1, 2), (0, 1, 2), (3,), (4,)]),
        ("abab", [(0, 2), (1, 3), (0, 2), (1, 3)]),
        ("aaaa", [(0, 1), (0, 1), (2, 3), (2, 3)]),
    ],
)
@pytest.mark.parametrize("fields", [{}, {"inner": "torch"}, {"bucket_mb": 0.008}], ids=words)
def test_a_group_of_hybrid_is_a_host(
    fields: dict[str, Any], hosts: str, members: list[tuple[int, ...]]
) -> None:
    def body(job: Job) -> tuple[Any, Tensor]:
        host = hosts[job.rank]
        job.world = Hosted(job.rank, job.size, 0, hosts.count(host), host=host)
        net = attach(job, "hybrid", network(job.rank, WIDE), MAKES["momentum"], **fields)
        for step in range(STEPS):
            net.step(loss_of(net.model, step * job.size + job.rank))
        seen = net.group.weight.clone()
        rule = cast(Hybrid, net.rule)
        assert rule.moving_rate == pytest.approx(0.9 / len(set(members)))
        net.rule.finish()
        job.groups.clear()
        return tuple(rule.company.ranks), seen

    with place("shm") as where:
        results = together(len(hosts), where, body)
    assert [ranks for ranks, _ in results] == members
    for rank, (ranks, weights) in enumerate(results):
        assert torch.equal(weights, results[ranks[0]][1]), rank


@pytest.mark.parametrize("inner", ["auto", "host", "boxes"])
def test_a_group_on_one_host_exchanges_inside_it(inner: str) -> None:
    """Over tcp nothing of a group is in the job's boxes, unless it is to be there."""

    def body(job: Job) -> bool:
        net = attach(job, "hybrid", network(job.rank, WIDE), MAKES["momentum"], inner=inner)
        for step in range(STEPS):
            net.step(loss_of(net.model, step))
        names = ("gradient/0", "difference/1")
        board = [job.cluster.glance(f"buffer/main/group/0/{name}") for name in names]
        net.rule.finish()
        assert len({one is None for one in board}) == 1
        return board[0] is None

    with place("tcp") as where:
        assert together(4, where, body) == [inner != "boxes"] * 4


@pytest.mark.parametrize(("inner", "refused"), [("host", True), ("auto", False)])
def test_a_group_over_hosts_needs_the_boxes(
    inner: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = threading.local()
    monkeypatch.setattr("dlplatform.rules.inside.place", lambda: str(here.host))

    def body(job: Job) -> bool:
        here.host = job.rank
        net = attach(job, "hybrid", network(job.rank, WIDE), MAKES["momentum"], inner=inner)
        net.step(loss_of(net.model, 0))
        net.rule.finish()
        return cast(Hybrid, net.rule).cluster is job.cluster

    with place("tcp") as where:
        if refused:
            with pytest.raises(UsageError, match=r"rule\.inner=host with a group on 2 hosts"):
                together(2, where, body)
        else:
            assert together(2, where, body) == [True, True]


def test_the_box_of_a_group_is_killed() -> None:
    def body(job: Job) -> None:
        net = attach(job, "hybrid", network(job.rank, WIDE), MAKES["momentum"])
        for step in range(100):
            if step == 3 and (box := cast(Hybrid, net.rule).sync.inside.box):
                box.processes[0].kill()
            net.step(loss_of(net.model, step))
            time.sleep(0.02)

    with place("tcp") as where, pytest.raises(PeerLost, match=r"memory box shm://.* is gone"):
        together(2, where, body)


@pytest.mark.parametrize("transport", ["inproc", "tcp"])
@pytest.mark.parametrize("fields", [{"inner": "torch"}, {"bucket_mb": 0.008}], ids=words)
def test_one_group_at_rate_0_is_ssgd(fields: dict[str, Any], transport: str) -> None:
    with place(transport) as one, place(transport) as other:
        hybrid = train(one, rule="hybrid", group_size=WORKERS, rate=0.0, **fields)
        assert all(map(equal, hybrid, train(other, **fields)))


@pytest.mark.parametrize("transport", ["inproc", "tcp"])
def test_the_weights_of_one_group_are_the_jobs_and_stay_in_the_boxes(transport: str) -> None:
    def body(job: Job) -> tuple[Tensor, Tensor, Tensor]:
        net = attach(job, "hybrid", network(job.rank), MAKES["plain"], group_size=WORKERS)
        for step in range(3):
            mine = net.step(loss_of(net.model, step * WORKERS + job.rank))
            assert torch.equal(master(net), mine)
        net.rule.finish()
        job.groups.clear()
        job.cluster.counter("finished").add()
        job.cluster.counter("finished").wait(WORKERS, 20.0)
        left = torch.empty_like(mine)
        cast(Hybrid, net.rule).centre.read(left.data_ptr())
        return mine, master(net), left

    with place(transport) as where:
        for mine, masters, left in together(WORKERS, where, body):
            assert torch.equal(mine, masters) and torch.equal(mine, left)


@pytest.mark.parametrize("rule", ["easgd", "hybrid"])
def test_the_hidden_share_of_an_elastic_exchange(rule: str) -> None:
    """An exchange of 0.1 s is hidden behind a step of 1 s, and a fifth of it behind 0.02 s."""

    def body(job: Job) -> float:
        fields = {"group_size": 1} if rule == "hybrid" else {}
        net = attach(job, rule, network(0, WIDE), MAKES["plain"], rate=0.9, **fields)
        for step in range(8):
            compute(job)
            net.step(loss_of(net.model, step))
        net.rule.gradients()
        hidden = net.rule.report()["sync/hidden"]
        net.rule.finish()
        job.groups.clear()
        return hidden

    size = 4 * 6 * WIDE
    for step_s, low, high in ((1.0, 0.8, 1.0), (0.02, 0.05, 0.5)):
        outcome = simulate(Fleet(workers=1, step_s=step_s, worker_rate=size / 0.1), body)
        assert outcome.results[0] is not None and low <= outcome.results[0] <= high, outcome
