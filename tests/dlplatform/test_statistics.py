"""Statistics: the mean of all living workers' BatchNorm figures, never exchanged as weights."""

from __future__ import annotations

import pytest
import torch
from tinyjobs import Died, place, together, until
from torch import nn

from dlplatform.job import Job
from dlplatform.statistics import Statistics, floating


def networks(value: float) -> dict[str, nn.Module]:
    models: dict[str, nn.Module] = {"one": nn.BatchNorm1d(3), "other": nn.BatchNorm2d(20)}
    for model in models.values():
        model.running_mean.fill_(value)  # type: ignore[operator,union-attr]
        model.running_var.fill_(10 * value)  # type: ignore[operator,union-attr]
        model.num_batches_tracked.fill_(int(value))  # type: ignore[operator,union-attr]
    return models


def all_here(job: Job, name: str) -> None:
    job.cluster.counter(name).add(1)
    job.cluster.counter(name).wait(job.size)


@pytest.mark.parametrize("transport", ["inproc", "shm", "tcp"])
def test_the_mean_over_the_workers(transport: str) -> None:
    def body(job: Job) -> None:
        models = networks(job.rank + 1.0)
        statistics = Statistics(job, models)
        statistics.publish(now=True)
        all_here(job, "published")
        judged = networks(0.0)
        statistics.average(judged)
        all_here(job, "averaged")
        for name in models:
            assert (judged[name].running_mean == 2).all()  # type: ignore[union-attr]
            assert (judged[name].running_var == 20).all()  # type: ignore[union-attr]
            assert judged[name].num_batches_tracked == 0
            assert (models[name].running_mean == job.rank + 1).all()  # type: ignore[union-attr]

    with place(transport, boxes=2) as where:
        together(3, where, body)


def test_the_dead_do_not_count() -> None:
    def body(job: Job) -> None:
        statistics = Statistics(job, networks(job.rank + 1.0))
        statistics.publish(now=True)
        all_here(job, "published")
        if job.rank == 2:
            raise Died
        until(job.cluster.dead)
        judged = networks(0.0)
        statistics.average(judged)
        job.cluster.counter("judged").add(1)
        job.cluster.counter("judged").wait(2)  # who has left does not count either
        assert (judged["one"].running_mean == 1.5).all()  # type: ignore[union-attr]

    with place("shm") as where:
        together(3, where, body)


def test_what_is_published_is_what_is_now() -> None:
    def body(job: Job) -> None:
        models = networks(1.0)
        statistics = Statistics(job, models)
        models["one"].running_mean.fill_(5.0)  # type: ignore[operator,union-attr]
        statistics.publish()
        judged = networks(0.0)
        statistics.average(judged)
        assert (judged["one"].running_mean == 5).all()  # type: ignore[union-attr]

    with place() as where:
        together(1, where, body)


def test_networks_without_figures_need_nothing() -> None:
    def body(job: Job) -> None:
        models = {"net": nn.Linear(2, 2)}
        statistics = Statistics(job, models)
        statistics.publish()
        before = models["net"].weight.clone()
        statistics.average(models)
        assert torch.equal(before, models["net"].weight)
        assert not statistics.regions

    with place() as where:
        together(1, where, body)


def test_whole_numbers_and_repeated_buffers_are_left_out() -> None:
    norm = nn.BatchNorm1d(3)
    assert len(floating({"one": norm, "same": norm})) == 2
