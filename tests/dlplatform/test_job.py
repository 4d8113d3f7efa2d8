"""Job: joining, two-line use, and how a script's worker leaves."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from tinyjobs import attach, place, together
from tinytask import network, optimizer
from torch import nn

import dlplatform
from dlplatform import job as module
from dlplatform.errors import PeerLost, UsageError
from dlplatform.flat import FlatGroup
from dlplatform.job import Job, Place
from dlplatform.memorybox.process import Boxes
from dlplatform.rules.rule import find_rule
from dlplatform.world import World

SGD = partial(optimizer, "plain")


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    """Join a job of this process alone, as a script does, and leave it afterwards."""
    monkeypatch.setattr("atexit.register", lambda *_: None)
    job = dlplatform.init(boxes=2)
    yield job
    module._current.clear()
    job.finish()
    job.close()


def test_init_alone_has_boxes_in_this_process(joined: Job) -> None:
    assert (joined.rank, joined.size) == (0, 1)
    assert [t.uri.partition(":")[0] for t in joined.cluster.transports] == ["inproc"] * 2


def test_init_twice_is_refused(joined: Job) -> None:
    with pytest.raises(UsageError, match="a second time"):
        dlplatform.init()


def test_distribute_keeps_the_optimizer_and_steps_together(joined: Job) -> None:
    model = network()
    given = torch.optim.SGD(model.parameters(), lr=0.5)
    returned = dlplatform.distribute(given, model, rule="asgd", interval=2)
    assert returned is given
    before = [p.clone() for p in model.parameters()]
    for _ in range(2):
        given.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        given.step()
    group, rule = joined.groups["main"]
    shared = torch.empty(group.length)
    rule.master(shared.data_ptr())
    assert torch.equal(shared, group.weight)
    assert not torch.equal(next(model.parameters()), before[0])


def test_a_schedule_and_clipping_work_as_before(joined: Job) -> None:
    model = network()
    given = dlplatform.distribute(SGD(model.parameters()), model, rule="asgd")
    schedule = torch.optim.lr_scheduler.StepLR(given, 1, gamma=0.5)
    model(torch.ones(1, 2)).sum().backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    given.step()
    schedule.step()
    moved = torch.cat([p.detach().flatten() for p in model.parameters()]) - before
    assert norm > 0.1
    assert float(moved.norm()) == pytest.approx(0.1 * 0.1, rel=1e-3)
    assert given.param_groups[0]["lr"] == pytest.approx(0.05)


def test_several_optimizer_groups_keep_their_rates(joined: Job) -> None:
    model = nn.ParameterList([torch.ones(2), torch.ones(2)])
    groups = [{"params": [model[0]], "lr": 1.0}, {"params": [model[1]], "lr": 0.25}]
    given = dlplatform.distribute(torch.optim.SGD(groups), model, rule="asgd")
    (model[0].sum() + model[1].sum()).backward()
    given.step()
    assert [p.tolist() for p in model] == [[0, 0], [0.75, 0.75]]


def test_a_foreign_models_parameters_are_refused(joined: Job) -> None:
    with pytest.raises(UsageError, match="4 of the optimizer's 4 parameters are not the model's"):
        dlplatform.distribute(SGD(network().parameters()), network())


def test_a_name_is_distributed_once(joined: Job) -> None:
    model = network()
    dlplatform.distribute(SGD(model.parameters()), model)
    with pytest.raises(UsageError, match="group main is distributed already"):
        dlplatform.distribute(SGD(model.parameters()), model)


def test_an_unknown_rule_leaves_everything_as_it_was(joined: Job) -> None:
    model = network()
    kept = [p.data_ptr() for p in model.parameters()]
    with pytest.raises(UsageError, match="rule=esgd is not a rule; closest: "):
        dlplatform.distribute(SGD(model.parameters()), model, rule="esgd")
    assert [p.data_ptr() for p in model.parameters()] == kept


def test_torchrun_without_boxes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "0" if name == "RANK" else "2")
    with pytest.raises(UsageError, match=r"2 workers under torchrun without boxes or MASTER_ADDR"):
        dlplatform.init()


def test_a_worker_that_does_not_come_is_named() -> None:
    with place() as where, pytest.raises(PeerLost, match=r"1 of 2 workers came within 0\.3 s"):
        Job.open(World(0, 2), where, timeout_s=0.3)


def test_a_worker_that_dies_while_others_join_ends_the_wait() -> None:
    """The others learn from the box that it died, long before their patience ends."""
    begin = time.monotonic()

    def body(job: Job) -> None:
        if job.rank == 1:
            raise ZeroDivisionError
        attach(job, "ssgd", network(), SGD)

    with place("shm") as where, pytest.raises((ZeroDivisionError, PeerLost)):
        together(2, where, body)
    assert time.monotonic() - begin < 10


def test_time_in_exchanges_is_counted() -> None:
    def body(job: Job) -> float:
        net = attach(job, "ssgd", network(), SGD)
        if job.rank:
            threading.Event().wait(0.3)
        net.step(net.model(torch.ones(1, 2)).sum())
        return job.seconds

    with place() as where:
        waited, _ = together(2, where, body)
    assert 0.25 < waited < 5


def test_two_jobs_in_one_box_do_not_meet() -> None:
    def body(job: Job, value: float) -> float:
        model = nn.ParameterList([torch.full((4,), value)])
        net = attach(job, "asgd", model, SGD)
        net.step(model[0].sum())
        return float(model[0][0].detach())

    with place("shm") as one:
        other = Place(one.addresses, one.secret, one.name + "-other")
        assert together(1, one, partial(body, value=1.0)) == [pytest.approx(0.9)]
        assert together(1, other, partial(body, value=5.0)) == [pytest.approx(4.9)]


SCRIPT = """
import sys, torch, dlplatform
job = dlplatform.init()
model = torch.nn.Linear(2, 1)
optimizer = dlplatform.distribute(torch.optim.SGD(model.parameters(), lr=0.1), model, rule="ssgd")
for step in range(3):
    if job.rank == 1 and step == 1:
        {end}
    optimizer.zero_grad()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "word"), [("sys.exit(0)", "left"), ("raise RuntimeError('mine')", "died")]
)
def test_a_script_that_ends_early_does_not_leave_the_others_waiting(
    end: str, word: str, tmp_path: Path
) -> None:
    """A synchronous worker whose neighbour's script is over learns so, whatever the reason."""
    file = tmp_path / "script.py"
    file.write_text(textwrap.dedent(SCRIPT.format(end=end)))
    with Boxes(1, "shm", "memfd") as boxes:
        workers = []
        for rank in range(2):
            env = {**os.environ, "DLP_BOXES": " ".join(boxes.addresses), "DLP_JOB": "early"}
            env |= {"DLP_SECRET": boxes.secret, "DLP_RANK": str(rank), "DLP_SIZE": "2"}
            workers.append(
                subprocess.Popen(
                    [sys.executable, str(file)], env=env, stderr=subprocess.PIPE, text=True
                )
            )
        errors = [worker.communicate(timeout=60)[1] for worker in workers]
    assert workers[0].returncode == 1
    assert f"worker 1 {word} and this rule needs all 2" in errors[0].splitlines()[-1]
    assert workers[1].returncode == ("raise" in end)


@pytest.mark.parametrize("rule", ["ssgd", "asgd"])
def test_groups_are_zeroed_by_the_optimizer(rule: str) -> None:
    """Gradients stay views of the vector only where the rule reads them there."""
    with place() as where:

        def body(job: Job) -> tuple[bool, bool]:
            model = network()
            group = FlatGroup("main", model.parameters())
            optimizer = SGD(group.parameters)
            job.attach(optimizer, group, find_rule(rule)())
            model(torch.ones(1, 2)).sum().backward()
            optimizer.zero_grad(set_to_none=True)
            views = [p.grad is not None for p in group.parameters]
            assert all(views) or not any(views)
            return bool((group.grad == 0).all()), all(views)

        assert together(1, where, body) == [(True, rule == "ssgd")]
