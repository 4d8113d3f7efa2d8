"""The one training loop: every task, every rule, every transport."""

from __future__ import annotations

import math
import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dlplatform import checkpoint, report
from dlplatform.checkpoint import Checkpoint, make_task
from dlplatform.chief import Chief
from dlplatform.config import ClusterConfig, RunConfig
from dlplatform.errors import Diverged, Preempted, UsageError
from dlplatform.flat import FlatGroup
from dlplatform.job import Job, Place, start_boxes
from dlplatform.judge import Judge
from dlplatform.memorybox.counter import SLICE_MS
from dlplatform.rules.rule import find_rule
from dlplatform.seeds import derive
from dlplatform.statistics import Statistics
from dlplatform.task import Terms
from dlplatform.world import World


class Trainer:
    """One worker's training: networks in flat groups, each under its rule, and one loop.

    Args:
        settings: a resolved ``Config`` as plain values.
        world: this worker's rank and size.
    """

    def __init__(self, settings: dict[str, Any], world: World) -> None:
        self.settings, self.world = settings, world
        self.run = RunConfig(**settings["run"])
        self.folder = Path(self.run.dir)
        self.seed = int(settings["seed"])
        _threads(self.run, world)
        self.task = make_task({**settings["task"], "seed": self.seed})
        torch.manual_seed(derive(self.seed, "init"))
        self.models = self.task.models()
        self.saved = self._saved()
        self.judge = Judge(self.task, self.models, self.run.ema)
        self.total = self.run.minibatches or int(getattr(self.task, "minibatches", 1000))
        self.signalled = False
        for name in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(name, self._on_signal)
        self.job = self._join()
        self.start = self.job.work.position
        self.chief = Chief(self)
        if self.job.cluster.is_chief():  # said before the optimizers, which take seconds to load
            self.chief.progress.say(report.banner(self))
        self._distribute()
        self.statistics = Statistics(self.job, self.models)
        self._prepare()
        self.chief.begin()

    def _prepare(self) -> None:
        """Get ready to compute as the run asks for: compiled, in its precision."""
        self.forward = self.models
        if self.run.compile:
            self.forward = {
                name: cast(nn.Module, torch.compile(model)) for name, model in self.models.items()
            }
        self.autocast = torch.autocast(
            "cpu", torch.bfloat16, enabled=self.run.precision == "bf16", cache_enabled=False
        )

    def _saved(self) -> Checkpoint | None:
        resume = str(self.settings["resume"])
        folder = self.folder if resume == "auto" else Path(resume)
        if not resume or (resume == "auto" and not checkpoint.exists(folder)):
            return None
        saved = Checkpoint.load(folder)
        checkpoint.put_weights(self.models, saved.weights)
        return saved

    def _join(self) -> Job:
        cluster = ClusterConfig(**self.settings["cluster"])
        boxes = None
        if cluster.boxes:
            place = Place.given(
                cluster.boxes, cluster.secret_file, cluster.job or "job", cluster.ca
            )
        elif (
            self.world.size == 1
            and cluster.transport in ("auto", "inproc")
            and not cluster.replicas
        ):
            numbers = range(int(self.settings["boxes"]))
            token = secrets.token_hex(4)
            place = Place([f"inproc://{token}-{number}" for number in numbers])
        else:
            transport = "shm" if cluster.transport == "auto" else cluster.transport
            count = int(self.settings["boxes"])
            place, boxes = start_boxes(self.world, count, transport, cluster.memory)
        place.replicas = cluster.replicas
        return Job.open(
            self.world,
            place,
            boxes=boxes,
            first=self.saved.position if self.saved else 0,
            total=self.total,
            timeout_s=cluster.timeout_s,
        )

    def _distribute(self) -> None:
        rule = {key: value for key, value in self.settings["rule"].items() if key != "name"}
        self.optimizers = {}
        self.rates: dict[str, list[float]] = {}
        for name, parameters in self.task.groups(self.models).items():
            group = FlatGroup(name, parameters)
            if self.saved and f"{name}/raw/weight" in self.saved.moments:
                group.weight.copy_(self.saved.moments[f"{name}/raw/weight"])
            optimizer = self.task.optimizer(name, group.parameters)
            self.optimizers[name] = optimizer
            self.rates[name] = [float(g["lr"]) for g in optimizer.param_groups]
            self.job.attach(optimizer, group, find_rule(self.settings["rule"]["name"])(**rule))
        if self.saved:
            checkpoint.put_moments(self.optimizers, self.saved.moments)
        self.groups = self.job.groups
        self.rule = next(iter(self.groups.values()))[1]

    # -- the loop ------------------------------------------------------------------------

    def fit(self) -> float:
        """Train to the end and return the primary test score (nan where another reports)."""
        try:
            self._loop()
            self.statistics.publish(now=True)
            self.job.finish()
            return self._end()
        finally:
            self._close()

    def _loop(self) -> None:
        while (number := self._claim()) is not None:
            loss = self.step(number)
            self.statistics.publish()
            self.chief.after(loss)

    def _claim(self) -> int | None:
        if self.signalled:
            self.job.work.request_stop()
        self.job.cluster.check()
        return self.rule.claim(self.job)

    def step(self, number: int) -> float:
        """Train one step: this minibatch, and with run.accumulate the next few claimed."""
        torch.manual_seed(derive(self.seed, "minibatch", number))
        self._set_rates()
        for model in self.models.values():
            model.train()
        if self.run.accumulate > 1:
            return self._accumulated(number)
        value = 0.0
        for name, terms in self._losses(number):
            value += self._update(name, terms)
        self.task.after(self.models, number)
        self.judge.observe(self.groups)
        return value

    def _losses(self, number: int) -> Iterator[tuple[str, Tensor | Terms]]:
        """Yield the task's losses of a minibatch, computed in the run's precision."""
        batch = self.task.batch("train", number)
        losses = self.task.losses(self.forward, batch)
        while True:
            with self.autocast:
                pair = next(losses, None)
            if pair is None:
                return
            yield pair

    def _update(self, name: str, terms: Tensor | Terms) -> float:
        group, _ = self.groups[name]
        group.zero_grad()
        value = self._backward(terms, 1.0)
        self._apply(name)
        return value

    def _backward(self, terms: Tensor | Terms, weight: float) -> float:
        loss = terms if isinstance(terms, Tensor) else torch.stack(list(terms.values())).sum()
        (loss * weight).backward()  # type: ignore[no-untyped-call]
        value = float(loss.detach())
        if not math.isfinite(value):
            raise Diverged(
                f"loss is {value} at minibatch {self.job.work.position} - allowed: a finite loss "
                "- do: lower the learning rate or set run.clip=1, then resume=auto"
            )
        return value

    def _apply(self, name: str) -> None:
        group, _ = self.groups[name]
        if self.run.clip:
            group.collect_grad()
            norm = float(group.grad.norm())
            if norm > self.run.clip:
                group.grad.mul_(self.run.clip / norm)
        self.optimizers[name].step()

    def _accumulated(self, number: int) -> float:
        """Add the gradients of several claimed minibatches before each group's step."""
        numbers = [number]
        while len(numbers) < self.run.accumulate:
            more = self.rule.claim(self.job)
            if more is None:
                break
            numbers.append(more)
        for group, _ in self.groups.values():
            group.zero_grad()
        value = 0.0
        for one in numbers:
            torch.manual_seed(derive(self.seed, "minibatch", one))
            for _, terms in self._losses(one):
                value += self._backward(terms, 1.0 / len(numbers)) / len(numbers)
        for name in self.groups:
            self._apply(name)
        self.task.after(self.models, numbers[-1])
        self.judge.observe(self.groups)
        return value

    def _set_rates(self) -> None:
        factor = self.task.rate(min(1.0, self.job.work.position / self.total))
        for name, optimizer in self.optimizers.items():
            for group, rate in zip(optimizer.param_groups, self.rates[name], strict=True):
                group["lr"] = rate * factor

    # -- the end ---------------------------------------------------------------------------

    def _end(self) -> float:
        """Leave once the result is written, by the chief or by whoever outlives it."""
        stopped, concluded = self.job.work.stopped, self.job.cluster.counter("concluded")
        while not self.job.cluster.is_chief():
            self.job.cluster.check()
            if not concluded.reached(1, SLICE_MS):
                continue
            if stopped:
                raise Preempted("stopped on request - checkpoint by rank 0 - do: resume=auto")
            return math.nan
        self.job.wait_for_all()
        if self.chief.behind():
            self.chief.evaluate()
        score = math.nan if stopped else self.chief.conclude()
        concluded.add(1)
        if stopped:
            raise Preempted(
                f"stopped on request at minibatch {self.job.work.position} of {self.total} - "
                f"checkpoint in {self.folder} - do: continue with resume=auto run.dir={self.folder}"
            )
        return score

    def _close(self) -> None:
        self.chief.close()
        self.job.close()

    def _on_signal(self, *_: object) -> None:
        self.signalled = True


def _threads(run: RunConfig, world: World) -> None:
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(run.threads or max(1, cores // world.local_size))


def train(settings: dict[str, Any]) -> float:
    """Train this process's share of a job and return the primary test score."""
    folder = str(settings["run"]["dir"])
    if not folder:
        raise UsageError("run.dir is empty - allowed: a folder - do: run.dir=outputs/mine")
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Trainer(settings, World.detect()).fit()
