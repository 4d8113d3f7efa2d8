"""Judge: scores the job's weights on copies, and leaves the training networks alone."""

from __future__ import annotations

from functools import partial

import torch
from tinyjobs import place, together
from tinytask import Points, Tied, optimizer

from dlplatform.flat import FlatGroup
from dlplatform.job import Job
from dlplatform.judge import Judge
from dlplatform.rules.rule import find_rule

SGD = partial(optimizer, "plain")


def distributed(job: Job, task: Points, decay: float, rule: str = "easgd") -> tuple[Judge, dict]:  # type: ignore[type-arg]
    models = task.models()
    judge = Judge(task, models, decay)
    group = FlatGroup("main", task.groups(models)["main"])
    job.attach(SGD(group.parameters), group, find_rule(rule)())
    return judge, models


def test_takes_the_masters_weights_not_the_workers() -> None:
    def body(job: Job) -> None:
        judge, models = distributed(job, Points(), 0.0)
        group, _ = job.groups["main"]
        start = group.weight.clone()
        group.weight.add_(1.0)
        judge.take(job.groups, models)
        assert torch.equal(judge.groups["main"].weight, start)
        assert not torch.equal(models["net"][0].weight, judge.models["net"][0].weight)

    with place() as where:
        together(1, where, body)


def test_the_training_mode_and_weights_stay() -> None:
    def body(job: Job) -> None:
        judge, models = distributed(job, Points(dropout=0.5), 0.0)
        before = job.groups["main"][0].weight.clone()
        judge.take(job.groups, models)
        one, other = judge.score("val"), judge.score("val")
        assert one == other, "no dropout while judging"
        assert models["net"].training
        assert torch.equal(job.groups["main"][0].weight, before)

    with place() as where:
        together(1, where, body)


def test_averages_move_by_the_decay() -> None:
    def body(job: Job) -> None:
        judge, models = distributed(job, Points(), 0.75)
        group, _ = job.groups["main"]
        start = group.weight.clone()
        group.weight.copy_(start + 4.0)
        judge.observe(job.groups)
        judge.take(job.groups, models)
        torch.testing.assert_close(judge.groups["main"].weight, start + 1.0)

    with place() as where:
        together(1, where, body)


def test_buffers_come_along_and_tied_weights_stay_tied() -> None:
    def body(job: Job) -> None:
        judge, models = distributed(job, Points(norm=True), 0.0)
        models["net"][1].running_mean.fill_(3.0)
        judge.take(job.groups, models)
        assert (judge.models["net"][1].running_mean == 3).all()

    with place() as where:
        together(1, where, body)
    task = Tied()
    net = Judge(task, task.models()).models["net"]
    assert net[4].weight is net[2].weight  # type: ignore[index]
