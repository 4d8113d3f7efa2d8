"""The one training loop: every task, every rule, every transport."""

from __future__ import annotations

import math
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from dlplatform import checkpoint, device, lean, report
from dlplatform.ahead import Ahead
from dlplatform.checkpoint import Checkpoint, make_task
from dlplatform.chief import Chief
from dlplatform.config import ClusterConfig, PipelineConfig, RunConfig
from dlplatform.errors import Diverged, Preempted, UsageError
from dlplatform.flat import FlatGroup
from dlplatform.job import DOOR, SETTINGS, Job, Place, start_boxes
from dlplatform.judge import Judge
from dlplatform.memorybox import numa
from dlplatform.memorybox.counter import SLICE_MS
from dlplatform.pipeline.cut import Cut
from dlplatform.pipeline.stage import Stage
from dlplatform.rules.rule import find_rule
from dlplatform.seeds import derive
from dlplatform.statistics import Statistics
from dlplatform.task import Terms, added, numbers
from dlplatform.world import ROOM, World

T = TypeVar("T")


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
        self.task = make_task({**settings["task"], "seed": self.seed}, self.run.minibatches)
        torch.manual_seed(derive(self.seed, "init"))
        self.models = self.task.models()
        self.device = device.choose(self.run.device, world, int(settings.get("stages", 1)))
        for model in self.models.values():
            model.to(self.device)
        self.saved = self._saved()
        begun = "" if self.saved else self.task.begin(self.models)
        self.cut = Cut(self.task, world, int(settings.get("stages", 1)))
        self.pipeline = PipelineConfig(**settings.get("pipeline", {}))
        self.judge = Judge(self.task, self.models, self.run.ema, self.cut)
        self.total = self.run.minibatches or int(getattr(self.task, "minibatches", 1000))
        self.signalled = False
        for name in (*ROOM, *[signal.SIGINT] * world.late):
            signal.signal(name, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ROOM)
        self.job = self._join()
        self.part = self.cut.share(self.job)
        self.start = self.job.work.position
        self.chief = Chief(self)
        if self.job.cluster.is_chief():  # said before anything slow
            self.chief.progress.say("\n".join(filter(None, (report.banner(self), begun))))
        self._distribute()
        self.statistics = Statistics(self.part, self.cut.modules(self.models))
        self._open_door()
        self._prepare()
        self.chief.begin()

    def _open_door(self) -> None:
        """Tell those who want to join: what is trained on the board, where the boxes are here."""
        if self.world.rank:
            return
        told = {"settings": self.settings, "workers": self.world.size, "total": self.total}
        self.job.cluster.publish(SETTINGS, told)
        if self.rule.elastic and not self.place.addresses[0].startswith("inproc:"):
            self.place.keep(self.folder / DOOR)

    def _prepare(self) -> None:
        """Get ready to compute as the run asks for."""
        self.forward = self.models
        if self.run.compile:
            self.forward = {
                name: cast(nn.Module, torch.compile(model)) for name, model in self.models.items()
            }
        self.ahead = Ahead(self)
        self.stage = Stage(self) if self.cut.stages > 1 else None

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
            count = int(self.settings["boxes"])
            place, boxes = start_boxes(self.world, count, cluster.transport, cluster.memory)
        place.replicas = cluster.replicas
        self.place = place
        job = Job.open(
            self.world,
            place,
            boxes=boxes,
            first=self.saved.position if self.saved else 0,
            total=self.total,
            timeout_s=cluster.timeout_s,
            lease_s=self.run.lease_s,
        )
        job.work.leaving = lambda: self.world.late and self.signalled
        return job

    def _distribute(self) -> None:
        rule = {key: value for key, value in self.settings["rule"].items() if key != "name"}
        if not self.run.compile:
            lean.leave_compiler_out()
        self.optimizers = {}
        self.rates: dict[str, list[float]] = {}
        for name, parameters in self.cut.groups(self.models).items():
            group = FlatGroup.of(name, parameters)
            if self.saved and f"{name}/raw/weight" in self.saved.moments:
                group.weight.copy_(self.saved.moments[f"{name}/raw/weight"])
            optimizer = self.task.optimizer(self.cut.origin(name), group.parameters)
            self.optimizers[name] = optimizer
            self.rates[name] = [float(g["lr"]) for g in optimizer.param_groups]
            chosen = find_rule(self.settings["rule"]["name"])(**rule)
            self.job.attach(optimizer, group, chosen, self.part)
        if self.saved:
            moments = self.cut.inward(self.models, self.saved.moments)
            checkpoint.put_moments(self.optimizers, moments)
            for _, chosen in self.job.groups.values():
                chosen.restore()
            if self.world.rank == 0:
                checkpoint.put_states(self.job.groups, moments)
            self.task.restore(self.models, self.saved.kept)
        self.groups = self.job.groups
        if self.world.late:  # should it become chief, it judges averages from now on
            self.judge.average = {n: group.weight.clone() for n, (group, _) in self.groups.items()}
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
        for loss in self.stage.steps() if self.stage else self._steps():
            self.statistics.publish()
            self.chief.after(loss)

    def _steps(self) -> Iterator[float]:
        while (number := self.claim()) is not None:
            yield self.step(number)

    def claim(self, ahead: int = 2) -> int | None:
        """Return the next minibatch of this worker, None at the end."""
        self.heed(ahead)
        return self.rule.claim(self.part)

    def heed(self, ahead: int = 2) -> None:
        """Pass a request to stop on, so many rounds ahead; raise PeerLost for what is gone."""
        if self.signalled and not self.world.late:
            self.job.work.request_stop(ahead)
        (self.stage or self.job.cluster).check()

    def safe_position(self) -> int:
        """Return the number to resume from: all below it have been trained."""
        safe = self.job.work.safe_position()
        return self.stage.safe(safe) if self.stage else safe

    def step(self, number: int) -> float:
        """Train one step: this minibatch, and with run.accumulate the next few claimed."""
        device.reseed(derive(self.seed, "minibatch", number))
        self.set_rates()
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
        batch = device.moved(self.ahead.read(number), self.device)
        losses = self.task.losses(self.forward, batch)
        while True:
            with device.computing(self.device, self.run.precision):
                pair = next(losses, None)
            if pair is None:
                return
            yield pair

    def _update(self, name: str, terms: Tensor | Terms) -> float:
        group, rule = self.groups[name]
        group.zero_grad()
        group.final = not self.run.clip  # clipping needs the whole gradient first
        own = numbers(terms)
        value = self._backward(added(terms, rule.numbers(own) if own else None), 1.0)
        self._apply(name)
        return value

    def _backward(self, loss: Tensor, weight: float) -> float:
        (loss * weight).backward()  # type: ignore[no-untyped-call]
        value = float(loss.detach())
        self.must_be_finite(value)
        return value

    def must_be_finite(self, value: float) -> None:
        """Raise Diverged unless a loss is a finite number."""
        if not math.isfinite(value):
            raise Diverged(
                f"loss is {value} at minibatch {self.job.work.position} - allowed: a finite loss "
                "- do: lower the learning rate or set run.clip=1, then resume=auto"
            )

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
        claimed = [number]
        while len(claimed) < self.run.accumulate:
            more = self.rule.claim(self.job)
            if more is None:
                break
            claimed.append(more)
        for group, _ in self.groups.values():
            group.zero_grad()
            group.final = False
        value = 0.0
        for one in claimed:
            device.reseed(derive(self.seed, "minibatch", one))
            for (_, terms), last in with_last(self._losses(one)):
                for group, _ in self.groups.values():
                    group.final = last and one == claimed[-1] and not self.run.clip
                value += self._backward(added(terms), 1.0 / len(claimed)) / len(claimed)
        self.apply(claimed[-1])
        return value

    def apply(self, number: int) -> None:
        """Step every group on the gradients it has; ``number`` is the last minibatch of them."""
        for name in self.groups:
            self._apply(name)
        self.task.after(self.models, number)
        self.judge.observe(self.groups)

    def set_rates(self) -> None:
        """Set every optimizer's learning rate for how far the job is."""
        factor = self.task.rate(min(1.0, self.job.work.position / self.total))
        for name, optimizer in self.optimizers.items():
            for group, rate in zip(optimizer.param_groups, self.rates[name], strict=True):
                group["lr"] = rate * factor

    # -- the end ---------------------------------------------------------------------------

    def _end(self) -> float:
        """Leave once the result is written, by the chief or by whoever outlives it."""
        stopped, concluded = self.job.work.stopped, self.job.cluster.counter("concluded")
        self.chief.over = True
        if self.cut.hands_over:
            self.job.wait_for_all()
            self.chief.hand_over()
        if self.job.work.left:
            self._say_where(" left")
            return math.nan
        while concluded.value or not self.job.cluster.is_chief():
            self.job.cluster.check()
            if not concluded.reached(1, SLICE_MS):
                continue
            if stopped:
                raise Preempted("stopped on request - checkpoint by rank 0 - do: resume=auto")
            self._say_where("'s job is done")
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

    def _say_where(self, what: str) -> None:
        """Say in one line how it ended for a worker that joined."""
        if self.world.late:
            position = self.job.work.position
            print(f"worker {self.world.rank}{what} at minibatch {position} of {self.total}")

    def _close(self) -> None:
        if not self.world.late:
            (self.folder / DOOR).unlink(missing_ok=True)
        self.ahead.pool.shutdown(cancel_futures=True)
        self.chief.close()
        self.job.close()

    def _on_signal(self, *_: object) -> None:
        self.signalled = True


def with_last(items: Iterator[T]) -> Iterator[tuple[T, bool]]:
    """Yield each item, and whether it is the last one."""
    item = next(items, None)
    while item is not None:
        following = next(items, None)
        yield item, following is None
        item = following


def _threads(run: RunConfig, world: World) -> None:
    """Share the processors of this host, and its NUMA nodes, out among its workers."""
    torch.set_num_threads(run.threads or world.threads)
    if run.numa:
        numa.stay(world.local_rank, world.local_size)


def train(settings: dict[str, Any]) -> float:
    """Train this process's share of a job and return the primary test score."""
    folder = str(settings["run"]["dir"])
    if not folder:
        raise UsageError("run.dir is empty - allowed: a folder - do: run.dir=outputs/mine")
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Trainer(settings, World.detect()).fit()
