"""Job: this process's share of a training - who it is, its boxes, its work - in two lines.

job = dlplatform.init()
optimizer = dlplatform.distribute(optimizer, model, rule="easgd")
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlplatform.errors import PlatformError, UsageError
from dlplatform.meeting import way
from dlplatform.memorybox import wire
from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.process import Boxes
from dlplatform.rules.descent import Descent
from dlplatform.rules.rule import Rule, find_rule
from dlplatform.work import Work
from dlplatform.world import World, share

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dlplatform.flat import FlatGroup


SETTINGS, DOOR = "settings", "join.json"
"""A notice of what a job trains, and a file in its folder about its boxes, for those who join."""


@dataclass
class Place:
    """Where a job's boxes are: all its processes hold the same one."""

    addresses: list[str]
    secret: str = ""
    name: str = "job"
    ca: str = ""
    replicas: int = 0
    secret_file: str = ""
    """Where the secret came from; empty: from whoever started the boxes."""

    @staticmethod
    def given(addresses: Sequence[str], secret_file: str, name: str, ca: str = "") -> Place:
        """Return the place of boxes that somebody else runs."""
        remote = any(not address.startswith("inproc:") for address in addresses)
        secret = wire.load_secret(secret_file).decode() if remote else ""
        passed_on = not secret_file and wire.SECRET in os.environ
        file = "" if passed_on else os.path.abspath(secret_file or wire.default_secret_file())
        return Place(list(addresses), secret, name, ca, secret_file=file)

    def keep(self, path: Path) -> None:
        """Write it to a file that only its owner can read, for those who join later."""
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(asdict(self) | ({"secret": ""} if self.secret_file else {}), file)

    @staticmethod
    def found(path: Path, secret_file: str = "") -> Place:
        """Return the place that ``keep`` wrote; its secret may lie elsewhere here."""
        place = Place(**json.loads(path.read_text()))
        if file := secret_file or place.secret_file:
            place.secret = wire.load_secret(file).decode()
        return place


@dataclass
class Job:
    """One worker of a job; ``close`` (also at exit) finishes its rules and leaves politely."""

    world: World
    cluster: Cluster
    work: Work
    boxes: Boxes | None = None
    groups: dict[str, tuple[FlatGroup, Rule]] = field(default_factory=dict)
    seconds: float = 0.0
    """Time this worker's training thread spent in exchanges."""

    @staticmethod
    def open(
        world: World, place: Place, *, boxes: Boxes | None = None, first: int = 0,
        total: int = 1 << 62, timeout_s: float = 60.0, lease_s: float = 0.0,
    ) -> Job:  # fmt: skip
        """Connect to the boxes, wait for all workers, and get ready to work on first..total-1."""
        secret = place.secret.encode()
        cluster = Cluster(place.addresses, place.name, secret, timeout_s, place.replicas, place.ca)
        cluster.join(world.rank, world.size)
        return Job(world, cluster, Work(cluster, first, total, lease_s), boxes)

    @property
    def rank(self) -> int:
        """Return this worker's rank."""
        return self.world.rank

    @property
    def size(self) -> int:
        """Return how many workers the job has."""
        return self.world.size

    def attach(
        self, optimizer: torch.optim.Optimizer, group: FlatGroup, rule: Rule,
        seen: Job | None = None,
    ) -> None:  # fmt: skip
        """Put a group under a rule: exchange around every ``optimizer.step``.

        The rule runs among the workers of the job it sees: this one, or a part of it.
        """
        if group.name in self.groups:
            raise UsageError(
                f"group {group.name} is distributed already - allowed: a new name - do: give "
                "name=... to distribute"
            )
        group.describe = partial(Descent.of, optimizer, group)
        group.flat = rule.reads_gradients
        group.zero_grad()
        rule.start(seen or self, group)
        group.give_back()
        self.groups[group.name] = group, rule

        def before(*_: Any) -> None:
            begin = self.cluster.clock.now()
            if group.flat:
                group.collect_grad()
            rule.gradients()
            group.settle()
            self.seconds += self.cluster.clock.now() - begin

        def after(*_: Any) -> None:
            begin = self.cluster.clock.now()
            self.cluster.check()
            group.changed()
            rule.weights()
            group.give_back()
            self.work.done()
            self.seconds += self.cluster.clock.now() - begin

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
        optimizer.zero_grad = group.zero_grad  # type: ignore[method-assign]

    def finish(self) -> None:
        """Push what is left of every group and tell the others."""
        for group, rule in self.groups.values():
            rule.finish()
            group.give_back()
        self.cluster.finished()

    def wait_for_all(self) -> None:
        """Wait until nobody trains any more, as long as the cluster is patient."""
        clock = self.cluster.clock
        end = clock.now() + self.cluster.timeout_s
        while not self.cluster.everyone_finished() and clock.now() < end:
            self.cluster.check()
            clock.sleep(0.01)

    def close(self) -> None:
        """Leave the boxes; those started here end with their last worker."""
        for group, rule in self.groups.values():
            rule.close()
            group.close()
        self.cluster.close()
        if self.boxes is not None:
            self.boxes.stop()


_current: list[Job] = []


def init(
    boxes: int = 1, *, cluster: Sequence[str] = (), secret_file: str = "", transport: str = "auto"
) -> Job:
    """Join the job that mpirun, srun or torchrun started this process for.

    Args:
        boxes: memory boxes rank 0 starts on its host, unless ``cluster`` names running ones.
        cluster: addresses of running boxes, in order.
        secret_file: their secret's file.
        transport: how workers reach boxes started here: ``auto``, ``shm``, ``tcp`` or ``verbs``.
    """
    if _current:
        raise UsageError("dlplatform.init() a second time - allowed: once - do: keep the job")
    if "torch" in sys.modules:  # an optimizer made after this takes two seconds less
        from dlplatform.lean import leave_compiler_out

        leave_compiler_out()
    world = World.detect()
    place, started = _find_place(world, boxes, list(cluster), secret_file, transport)
    job = Job.open(world, place, boxes=started)
    _current.append(job)
    atexit.register(_leave)
    return job


def _find_place(
    world: World, boxes: int, cluster: list[str], secret_file: str, transport: str
) -> tuple[Place, Boxes | None]:
    name = os.environ.get("DLP_JOB") or os.environ.get("PMIX_NAMESPACE", "job")
    cluster = cluster or os.environ.get("DLP_BOXES", "").split()
    if cluster:
        secret_file = secret_file or os.environ.get("DLP_SECRET_FILE", "")
        return Place.given(cluster, secret_file, name), None
    if world.size == 1:
        return Place([f"inproc://{number}" for number in range(boxes)]), None
    return start_boxes(world, boxes, transport, "/dev/shm")


def start_boxes(
    world: World, count: int, transport: str, memory: str
) -> tuple[Place, Boxes | None]:
    """Start boxes on rank 0's host and tell all ranks of the launcher where they are."""
    started, message = None, {}
    if world.rank == 0:
        try:
            transport, host = way(world, transport)
            started = Boxes(count, transport, memory, host=host)
            message = {"addresses": started.addresses, "secret": started.secret}
        except PlatformError as error:
            message = {"error": str(error), "kind": type(error).__name__}
    try:
        message = share(message)
        if "error" in message:
            raise wire.refusal({"refused": message["error"], "kind": message["kind"]})
    except PlatformError:
        if started:
            started.stop()
        raise
    return Place(**message), started


def distribute(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    rule: str | Rule = "easgd",
    *,
    name: str = "main",
    **settings: Any,
) -> torch.optim.Optimizer:
    """Make an optimizer train together with the other workers' and return it.

    Model, loss and loop stay as they are. From now on the optimizer's parameters are views of
    one vector in which rank 0's initial weights are; every ``optimizer.step()`` exchanges by the
    rule, ``settings`` are its fields (``rate=0.1``).
    """
    from dlplatform.flat import FlatGroup

    if not _current:
        raise UsageError(
            "distribute before init - allowed: after - do: call job = dlplatform.init() first"
        )
    if isinstance(rule, str):
        rule = find_rule(rule)(**settings)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    known = {id(p) for p in model.parameters()}
    if strange := sum(id(p) not in known for p in parameters):
        raise UsageError(
            f"{strange} of the optimizer's {len(parameters)} parameters are not the model's - "
            "allowed: 0 - do: pass the model this optimizer trains"
        )
    _current[0].attach(optimizer, FlatGroup.of(name, parameters), rule)
    return optimizer


def _leave() -> None:
    job = _current.pop()
    if hasattr(sys, "last_type"):  # the script ends with an error: to the others, it died
        return
    try:
        job.finish()
        if job.groups and job.cluster.is_chief():
            job.wait_for_all()
    finally:
        job.close()
