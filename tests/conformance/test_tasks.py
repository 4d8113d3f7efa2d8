"""What every task keeps to, whatever it trains: one suite for all that ``dlp tasks`` lists."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from runs import weights
from seldom import LONG
from tinyjobs import Workers, at, judged_on, settings, until
from torch.utils._pytree import tree_leaves

from dlplatform.checkpoint import make_task
from dlplatform.errors import EnvironmentMissing, Preempted
from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.process import Boxes
from dlplatform.seeds import derive
from dlplatform.task import Models, Task, Terms, added, numbers, tasks
from dlplatform.trainer import Trainer
from dlplatform.world import World
from trainers.blocks import classifier

ROOT = Path(__file__).parents[2]
CURVES = Path(__file__).with_name("curves.json")
NAMES = [name for name, cls in tasks().items() if cls.__module__.startswith("trainers.")]
EPISODES = ("retrieval/fewshot",)  # whose size of a batch is that of its classes
SMALL = {"batch_size": 4, "utterances": 120}
SEED, STEPS, STOP, ROUNDS, WORKERS = 3, 12, 3, 2, 2
ROUNDING = 1e-7
"""Gradients below are zero but for rounding (of a bias before a softmax); Adam takes their sign."""
ALIKE = 3
"""Losses that are the same on all processors; where steps are large, later ones are not."""
FEW = 1
"""Batches that jobs are judged on here: that it learns is shown by the tests of each task."""
PICTURES = 100
"""Of 32 x 32 pixels, that baselines and result pictures of classifiers see here."""
PATIENCE_S = 240.0
"""Detectors take their time, beside other tests."""
KILL = 20
"""Minibatches of the job whose worker is killed."""
KINDS = {name.partition("/")[0]: name for name in reversed(NAMES)}
KILLED = {*KINDS.values(), "zoo/digits", "zoo/dcgan", "zoo/dqn", "zoo/mask_rcnn"}
"""One task of every family and kind of training; the others with --long."""
SPARE, HALVED = {*KINDS.values(), "zoo/nic", "zoo/mask_rcnn"}, 1
"""Tasks that train some minibatches in bf16, which takes long where a processor lacks it."""

every_task = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def small(name: str) -> dict[str, Any]:
    """Return fields that make minibatches, and what is spoken, small where a task has such."""
    known = {field.name for field in fields(tasks()[name])}
    known -= {"batch_size"} if name in EPISODES else set()
    return {key: value for key, value in SMALL.items() if key in known}


def task_of(name: str, seed: int = SEED, total: int | None = None) -> Task:
    return make_task({"name": name, "seed": seed, **small(name)}, total)


def equal(one: Any, other: Any) -> bool:
    """Tell whether two batches are equal, whatever they are made of."""
    leaves, others = tree_leaves(one), tree_leaves(other)
    return len(leaves) == len(others) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)
        for a, b in zip(leaves, others, strict=True)
    )


@every_task
def test_a_minibatch_is_a_function_of_seed_and_number(name: str) -> None:
    task, before = task_of(name), torch.get_rng_state()
    first, second = task.batch("train", 5), task.batch("train", 6)
    # A thread reads minibatches while networks draw from torch's own generator.
    assert torch.equal(torch.get_rng_state(), before)
    assert equal(first, task_of(name).batch("train", 5))
    assert equal(first, task.batch("train", 5))
    assert not equal(first, second)
    assert not equal(first, task_of(name, seed=SEED + 1).batch("train", 5))


@every_task
def test_it_says_what_it_is(name: str) -> None:
    cls = tasks()[name]
    assert cls.source and float(cls.expected.split()[0]) and cls.__doc__
    task = make_task({"name": name, "seed": SEED})
    models = task.models()
    trained = {id(p): p.numel() for group in task.groups(models).values() for p in group}
    assert sum(trained.values()) == cls.parameters


@every_task
def test_it_has_a_recipe(name: str) -> None:
    known = {field.name for field in fields(tasks()[name])}
    for end in ("", "_full") if "data" in known else ("",):
        recipe = ROOT / "configs" / "experiment" / f"{name}{end}.yaml"
        head, said, _ = recipe.read_text().partition("\ndefaults:")
        assert said and f"override /task: {name}" in recipe.read_text()
        assert f"dlp train experiment={name}{end}" in head


def merged(name: str, total: int) -> Models:
    """Train on pairs of minibatches in one process: what two synchronous workers must equal."""
    pair = [task_of(name, total=total) for _ in range(WORKERS)]
    torch.manual_seed(derive(SEED, "init"))
    models = pair[0].models()
    groups = {key: list(values) for key, values in pair[0].groups(models).items()}
    optimizers = {key: pair[0].optimizer(key, values) for key, values in groups.items()}
    rates = {key: [g["lr"] for g in one.param_groups] for key, one in optimizers.items()}
    for first in range(0, total, WORKERS):
        for model in models.values():
            model.train()
        factor = pair[0].rate(min(1.0, (first + WORKERS) / total))
        for key, one in optimizers.items():
            for group, rate in zip(one.param_groups, rates[key], strict=True):
                group["lr"] = rate * factor
        streams = [
            _losses(task, models, first + rank) for rank, task in enumerate(pair)
        ]  # both yield a group's loss before either group is stepped
        for steps in zip(*streams, strict=True):
            key, own = steps[0][0], [numbers(terms) for _, terms in steps]
            over = {term: sum(one[term] for one in own) / WORKERS for term in own[0]}
            optimizers[key].zero_grad(set_to_none=False)
            for _, terms in steps:
                (added(terms, over) / WORKERS).backward()
            for p in groups[key]:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            optimizers[key].step()
        for rank, task in enumerate(pair):
            task.after(models, first + rank)
    return models


def _losses(task: Task, models: Models, number: int) -> Iterator[tuple[str, torch.Tensor | Terms]]:
    """Yield a worker's losses, with the random numbers that it alone would draw."""
    torch.manual_seed(derive(SEED, "minibatch", number))
    stream = task.losses(models, task.batch("train", number))
    state = torch.get_rng_state()
    while True:
        torch.set_rng_state(state)
        found = next(stream, None)
        state = torch.get_rng_state()
        if found is None:
            return
        yield found


@pytest.mark.slow
@every_task
def test_two_synchronous_workers_equal_one_on_both_minibatches(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = ROUNDS * WORKERS
    length = {"minibatches": total, "eval_every": total, "extras": False}
    with Boxes(1) as boxes:
        config = settings(
            tmp_path, name, "ssgd", seed=SEED, run=length, cluster=at(boxes), **small(name)
        )
        ended = Workers(config, WORKERS, FEW).wait(PATIENCE_S)
    assert [one.code for one in ended] == [0] * WORKERS, ended
    expected = merged(name, total)
    trained = weights(tmp_path)
    for net, model in expected.items():
        for key, value in model.named_parameters():
            if value.grad is None or not 0 < float(value.grad.abs().max()) < ROUNDING:
                torch.testing.assert_close(
                    trained[f"{net}.{key}"], value.detach(), rtol=1e-3, atol=1e-5
                )
    monkeypatch.setattr(classifier, "MOST_VALUES", PICTURES * 3 * 32 * 32)
    task = judged_on(task_of(name, total=total), FEW)
    for model in expected.values():
        model.eval()
    assert task.baselines(), "a score means nothing without baselines"
    image = task.picture(expected)
    assert image is not None and min(image.size) > 100
    darkest, lightest = image.convert("L").getextrema()
    assert lightest - darkest > 100, "a picture shows something"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name in KILLED else pytest.param(name, marks=LONG) for name in NAMES]
)
def test_a_killed_worker_does_not_end_an_elastic_job(name: str, tmp_path: Path) -> None:
    length = {"minibatches": KILL, "eval_every": KILL, "extras": False}
    with Boxes(1) as boxes:
        place = at(boxes)
        config = settings(tmp_path, name, "easgd", seed=SEED, run=length, cluster=place,
                          **small(name))  # fmt: skip
        workers = Workers(config, WORKERS, FEW)
        secret = boxes.secret.encode()
        cluster = Cluster(boxes.addresses, place["job"], secret, 30.0)
        until(lambda: cluster.counter("minibatch").value >= WORKERS)
        workers.processes[0].kill()  # the chief, too, may die
        ended = workers.wait(PATIENCE_S)
        cluster.close()
    assert [one.code for one in ended] == [-signal.SIGKILL, 0], ended
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["lost_workers"] == [0] and result["minibatches"] == KILL
    assert all(math.isfinite(value) for value in result["test"].values())


class Watched(Trainer):
    """Notes the losses; judges nothing, since that takes longer than the steps."""

    def __init__(self, config: dict[str, Any], stop_at: int = -1) -> None:
        super().__init__(config, World())
        self.stop_at, self.losses = stop_at, list[float]()
        primary = self.task.primary
        self.task.score = lambda models, batches: {primary: 0.0}  # type: ignore[method-assign]
        self.task.baselines = dict  # type: ignore[method-assign, assignment]
        self.task.picture = lambda models: None  # type: ignore[method-assign]

    def step(self, number: int) -> float:
        self.losses.append(super().step(number))
        self.signalled |= number == self.stop_at
        return self.losses[-1]


@pytest.mark.slow
@every_task
def test_losses_are_as_recorded_and_go_on_after_a_stop(name: str, tmp_path: Path) -> None:
    config = settings(
        tmp_path / "whole", name, seed=SEED, run={"minibatches": STEPS, "eval_every": STEPS},
        **small(name),
    )  # fmt: skip
    whole = Watched(config)
    whole.fit()
    config["run"]["dir"] = str(tmp_path / "halves")
    again: list[float] = []
    for stop_at in (STOP, 2 * STOP):
        part = Watched(config, stop_at)
        with pytest.raises(Preempted):
            part.fit()
        again += part.losses
        config["resume"] = "auto"
    assert len(again) > STOP + 1, "it went on"
    torch.testing.assert_close(
        torch.tensor(again), torch.tensor(whole.losses[: len(again)]), rtol=1e-4, atol=1e-5
    )
    recorded = json.loads(CURVES.read_text())[name]
    said = (
        f"the losses have changed; if that is meant, record them: {name}: "
        f"{[round(loss, 4) for loss in whole.losses]}"
    )
    assert whole.losses[:ALIKE] == pytest.approx(recorded[:ALIKE], rel=0.03, abs=0.01), said
    assert fmean(whole.losses) == pytest.approx(fmean(recorded), rel=0.15), said


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name in SPARE else pytest.param(name, marks=LONG) for name in NAMES]
)
def test_it_trains_in_lower_precision(name: str, tmp_path: Path) -> None:
    config = settings(
        tmp_path, name, seed=SEED, run={"minibatches": HALVED, "precision": "bf16"}, **small(name)
    )
    part = Watched(config)
    try:
        part.fit()
    except EnvironmentMissing as missing:
        assert "run.precision=bf16: could not create" in str(missing)
        pytest.skip(str(missing))
    recorded = json.loads(CURVES.read_text())[name]
    assert part.losses == pytest.approx(recorded[:HALVED], rel=0.1, abs=0.05)


def test_every_curve_belongs_to_a_task() -> None:
    assert set(json.loads(CURVES.read_text())) == set(NAMES)
