"""Exact identities of pipelines: a network in stages trains what the whole network trains."""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tinytask  # noqa: F401  registers the tasks
import torch
from runs import equal, state, weights, well
from seldom import LONG
from tinyjobs import PATIENCE_S, Workers, at, place, run, settings
from torch import Tensor

from dlplatform.errors import PlatformError
from dlplatform.job import Place
from dlplatform.memorybox import wire
from dlplatform.memorybox.process import Boxes
from dlplatform.trainer import Trainer
from dlplatform.world import World

numbers = itertools.count()
each_transport = pytest.mark.parametrize("transport", ["inproc", "shm", "tcp"])
each_schedule = pytest.mark.parametrize("schedule", ["1f1b", "async"])


@pytest.fixture(autouse=True)
def _threads_may_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trainers run in threads, where no signal handler can be set."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    torch.set_num_threads(1)


def config(
    folder: Path, where: Place, *, workers: int, stages: int, microbatches: int = 1,
    schedule: str = "1f1b", minibatches: int = 30, run: Any = None, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """Return the settings of a job in stages."""
    cluster = {"boxes": where.addresses, "job": f"stages-{next(numbers)}"}
    options = {"minibatches": minibatches, **(run or {})}
    given = settings(folder, "test/chain", cluster=cluster, run=options, **more)
    pipeline = {"schedule": schedule, "microbatches": microbatches}
    return given | {"workers": workers, "stages": stages, "pipeline": pipeline}


def train(folder: Path, where: Place, workers: int = 1, stages: int = 1, **more: Any) -> Any:
    """Train with every worker as a thread; return the trainers by rank."""
    given = config(folder, where, workers=workers, stages=stages, **more)
    trainers: list[Any] = [None] * workers
    errors: list[BaseException] = []

    def worker(rank: int) -> None:
        try:
            trainers[rank] = Trainer(given, World(rank, workers, rank, workers))
            trainers[rank].fit()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=worker, args=(r,), daemon=True) for r in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a worker hangs"
    return trainers


@pytest.fixture
def at_boxes(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Return the boxes of a transport, with their secret where trainers look for it."""

    def open_place(transport: str) -> Place:
        with place(transport) as where:
            monkeypatch.setenv(wire.SECRET, where.secret)
            return where

    return open_place


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        float((one[name] - other[name]).abs().max()) <= 1e-6 for name in one
    )


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize(
    "optimizer", [pytest.param("plain", marks=LONG), pytest.param("sgd", marks=LONG), "adam"]
)
def test_two_stages_are_the_whole_network_bit_by_bit(
    optimizer: str, transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In processes: threads of one process disturb each other's rounding now and then."""
    with place(transport) as where:
        monkeypatch.setenv(wire.SECRET, where.secret)
        for stages in (1, 2):
            folder = tmp_path / str(stages)
            fields = {"optimizer_name": optimizer, "falling": True}
            given = config(folder, where, workers=stages, stages=stages, rule="ssgd", **fields)
            well(run(given, stages))
    assert equal(weights(tmp_path / "1"), weights(tmp_path / "2"))


@each_transport
def test_two_stages_are_the_whole_network(
    transport: str, at_boxes: Callable[[str], Place], tmp_path: Path
) -> None:
    fields = {"optimizer_name": "plain", "minibatches": 10}
    train(tmp_path / "whole", at_boxes("inproc"), **fields)
    train(tmp_path / "cut", at_boxes(transport), 2, 2, rule="ssgd", **fields)
    assert close(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


@pytest.mark.parametrize(("stages", "microbatches"), [(2, 4), (3, 3), (4, 8)])
def test_micro_batches_add_up_to_the_minibatch(
    stages: int, microbatches: int, at_boxes: Callable[[str], Place], tmp_path: Path
) -> None:
    where = at_boxes("inproc")
    fields = {"optimizer_name": "plain", "minibatches": 10}
    train(tmp_path / "whole", where, **fields)
    train(tmp_path / "cut", where, stages, stages, microbatches=microbatches, **fields)
    assert close(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


@each_transport
def test_pipelines_side_by_side_are_synchronous_workers(
    transport: str, at_boxes: Callable[[str], Place], tmp_path: Path
) -> None:
    """31 minibatches: in the last round one of the two pipelines has nothing to train."""
    fields = {"optimizer_name": "plain", "minibatches": 31}
    train(tmp_path / "whole", at_boxes("inproc"), 2, 1, rule="ssgd", **fields)
    train(tmp_path / "cut", at_boxes(transport), 4, 2, rule="ssgd", **fields)
    assert close(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


@each_schedule
def test_no_more_activations_live_than_needed(
    schedule: str, at_boxes: Callable[[str], Place], tmp_path: Path
) -> None:
    where = at_boxes("inproc")
    trainers = train(tmp_path, where, 4, 4, microbatches=8, schedule=schedule)
    assert [trainer.stage.most for trainer in trainers] == [4, 3, 2, 1]


@pytest.mark.parametrize("rule", ["alone", "ssgd", "asgd", "easgd", "hybrid"])
@pytest.mark.parametrize("pipelines", [pytest.param(1, marks=LONG), 2])
@each_schedule
def test_every_rule_learns_in_stages(
    schedule: str, pipelines: int, rule: str, at_boxes: Callable[[str], Place], tmp_path: Path
) -> None:
    if rule == "alone" and pipelines > 1:
        pytest.skip("alone has no company")
    more = {"schedule": schedule, "microbatches": 2, "minibatches": 240, "samples": 32}
    train(tmp_path, at_boxes("shm"), 2 * pipelines, 2, rule=rule, **more)
    scores = state(tmp_path)["scores"]
    assert scores["accuracy"] > 0.85, scores
    assert state(tmp_path)["position"] == 240


def test_async_with_one_minibatch_alive_is_synchronous(
    at_boxes: Callable[[str], Place], tmp_path: Path
) -> None:
    """Where every minibatch is judged, the pipeline runs empty after each."""
    where, options = at_boxes("inproc"), {"eval_every": 1}
    for schedule in ("1f1b", "async"):
        train(tmp_path / schedule, where, 3, 3, schedule=schedule, run=options, minibatches=6)
    assert close(weights(tmp_path / "1f1b"), weights(tmp_path / "async"))


def test_async_computes_a_backward_with_the_weights_of_its_forward(
    at_boxes: Callable[[str], Place], tmp_path: Path
) -> None:
    """Stage 0 of 2 sees minibatch n+1 before it steps with n: x(n+1) = x(n) - lr g(x(n-1))."""
    where, fields = at_boxes("inproc"), {"optimizer_name": "plain", "minibatches": 3}
    options = {"eval_every": 100}
    trainers = train(tmp_path, where, 2, 2, schedule="async", run=options, **fields)
    got = [p.detach().clone() for trainer in trainers for p in trainer.stage.module.parameters()]
    expected = delayed(trainers[0].task, steps=3)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def delayed(task: Any, steps: int) -> list[Tensor]:
    """Train two stages by hand as the asynchronous schedule does, with autograd alone."""
    models = task.models()
    split = task.split(models, 2)
    stages = [list(stage.parameters()) for stage in split.stages]
    versions = [[p.detach().clone() for p in stages[0]]]
    for number in range(steps):
        batch = task.batch("train", number)
        # The forward of minibatch n is computed before the step of minibatch n-1.
        for p, old in zip(stages[0], versions[max(0, number - 1)], strict=True):
            p.data.copy_(old)
        everything = stages[0] + stages[1]
        loss = split.loss(split.stages[1](split.stages[0](split.inputs(batch))), batch)
        gradients = torch.autograd.grad(loss, everything)
        with torch.no_grad():
            first = gradients[: len(stages[0])]
            versions.append([x - task.lr * g for x, g in zip(versions[-1], first, strict=True)])
            for p, g in zip(stages[1], gradients[len(stages[0]) :], strict=True):
                p -= task.lr * g
    return versions[-1] + [p.detach() for p in stages[1]]


def test_buffers_of_every_stage_reach_the_checkpoint(
    at_boxes: Callable[[str], Place], tmp_path: Path
) -> None:
    """BatchNorm sees the same samples in one micro-batch as in the whole network."""
    where = at_boxes("inproc")
    fields = {"norm": True, "optimizer_name": "plain", "minibatches": 10}
    train(tmp_path / "whole", where, **fields)
    train(tmp_path / "cut", where, 2, 2, **fields)
    assert close(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_the_average_of_weights_is_judged_in_stages_too(
    at_boxes: Callable[[str], Place], tmp_path: Path
) -> None:
    where, options = at_boxes("inproc"), {"ema": 0.9}
    fields = {"optimizer_name": "plain", "run": options}
    train(tmp_path / "whole", where, **fields)
    train(tmp_path / "cut", where, 2, 2, **fields)
    assert close(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_a_loss_that_is_no_number_ends_every_stage(
    at_boxes: Callable[[str], Place], tmp_path: Path
) -> None:
    with pytest.raises(PlatformError, match="loss is nan"):
        train(tmp_path, at_boxes("inproc"), 2, 2, nan_at=7)


@pytest.fixture(scope="module")
def boxes() -> Any:
    with Boxes(1, "shm", "memfd") as started:
        yield started


@each_schedule
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_stage_ends_its_pipeline(
    killed: int, schedule: str, boxes: Boxes, tmp_path: Path
) -> None:
    """The others wait for activations or gradients that never come, and notice."""
    given = config(
        tmp_path, Place([]), workers=2, stages=2, microbatches=2, schedule=schedule,
        rule="asgd", minibatches=400, die_rank=killed, die_at=10,
    ) | {}  # fmt: skip
    given["cluster"] |= at(boxes)
    ended = Workers(given, 2).wait()
    assert ended[killed].code == -9
    assert ended[1 - killed].code == 4, ended
    assert "is gone - allowed: every stage" in ended[1 - killed].words
