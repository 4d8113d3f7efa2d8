"""Workers for tests: as threads of this process, or as processes that a server forks quickly."""

from __future__ import annotations

import atexit
import itertools
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from dlplatform.config import ClusterConfig, RunConfig
from dlplatform.flat import FlatGroup
from dlplatform.job import Job, Place
from dlplatform.memorybox import wire
from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.process import Boxes
from dlplatform.rules.rule import Rule, find_rule
from dlplatform.task import Task
from dlplatform.transports.fleet import Fleet, simulate
from dlplatform.world import World

T = TypeVar("T")
PATIENCE_S = 60.0
PRELOADED = [
    *("dlplatform.trainer", "dlplatform.rules", "dlplatform.report", "tinytask"),
    *("torch.utils.tensorboard", "matplotlib.pyplot", "torch.optim"),
]
_names = itertools.count()
_standing: dict[str, Boxes] = {}


@contextmanager
def place(transport: str = "inproc", boxes: int = 1) -> Iterator[Place]:
    """Give the place of a new job, in boxes of a transport that stand for all tests."""
    name = f"test-{next(_names)}"
    if transport in ("inproc", "sim"):
        yield Place([f"{transport}://{name}-{n}" for n in range(boxes)], name=name)
        return
    if transport not in _standing:
        _standing[transport] = Boxes(3, transport, "memfd")
        atexit.register(_standing[transport].stop)
    standing = _standing[transport]
    yield Place(standing.addresses[:boxes], standing.secret, name)


class Died(Exception):
    """Raised by a worker in a thread to end as a dead process does, without a goodbye."""


def together(
    size: int, where: Place, body: Callable[[Job], T], late: int = 0, **job: Any
) -> list[T]:
    """Run ``body(job)`` as every worker of a job, in threads; return the results by rank.

    Some may be ``late``: they join while the first ones start. The first error of a worker is
    raised; its connections break as if its process had died. At ``sim`` they are simulated.
    """
    if where.addresses[0].startswith("sim:"):
        fleet = Fleet(size, boxes=len(where.addresses), latency_s=1e-4, joins=[0.0] * late)
        return cast("list[T]", simulate(fleet, body, **{"timeout_s": 20.0, **job}).results)
    results: list[Any] = [None] * (size + late)
    errors: list[BaseException] = []

    def worker(number: int) -> None:
        opened: list[Job] = []
        try:
            rank = number if number < size else enrol(where)
            world = World(rank, size, rank, size)
            opened.append(Job.open(world, where, **{"timeout_s": 20.0, **job}))
            results[number] = body(opened[0])
            opened[0].finish()
            opened[0].close()
        except BaseException as error:
            if not isinstance(error, Died):
                errors.append(error)
            for job_of_one in opened:
                for _, rule in job_of_one.groups.values():
                    rule.close()
                for transport in job_of_one.cluster.transports:
                    transport.close()

    ranks = range(size + late)
    threads = [threading.Thread(target=worker, args=(r,), daemon=True) for r in ranks]
    for thread in threads:
        thread.start()
    end = time.monotonic() + PATIENCE_S
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a worker hangs"
    return results


def enrol(where: Place) -> int:
    """Take a new rank in a job that begins or runs."""
    cluster = Cluster(where.addresses, where.name, where.secret.encode(), 20.0)
    rank = cluster.enrol(1)
    cluster.close()
    return rank


@dataclass
class Net:
    """A network under a rule in one worker."""

    model: torch.nn.Module
    group: FlatGroup
    rule: Rule
    optimizer: torch.optim.Optimizer

    def step(self, loss: torch.Tensor) -> torch.Tensor:
        """Train one step and return a copy of the weights after it."""
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return self.group.weight.clone()


def attach(
    job: Job, rule: str, model: torch.nn.Module, make: Callable[..., Any], name: str = "main",
    **fields: Any,
) -> Net:  # fmt: skip
    """Put a model under a rule in a job."""
    group, chosen = FlatGroup.of(name, model.parameters()), find_rule(rule)(**fields)
    optimizer = make(group.parameters)
    job.attach(optimizer, group, chosen)
    return Net(model, group, chosen, optimizer)


def master(net: Net) -> torch.Tensor:
    """Return the job's weights as the rule keeps them."""
    weights = torch.empty(net.group.length)
    net.rule.master(weights.data_ptr())
    return weights


def settings(
    folder: Path, task: str = "test/points", rule: str = "alone", *, cluster: Any = None,
    resume: str = "", seed: int = 3, rule_fields: Any = None, run: Any = None, **fields: Any,
) -> dict[str, Any]:  # fmt: skip
    """Return a resolved configuration of a run of ``task(**fields)``."""
    given = {"dir": str(folder), "threads": 1, "progress": "none", **(run or {})}
    return {
        "task": {"name": task, "seed": seed, **fields},
        "rule": {"name": rule, **(rule_fields or {})},
        "cluster": asdict(ClusterConfig(**{"timeout_s": 30.0, **(cluster or {})})),
        "run": asdict(RunConfig(**given)),
        "workers": 1,
        "boxes": 1,
        "seed": seed,
        "resume": resume,
        "launcher": "local",
    }


def at(boxes: Boxes) -> dict[str, Any]:
    """Return the ``cluster`` settings of a new job in running boxes."""
    job = f"job-{next(_names)}"
    os.environ[wire.SECRET] = boxes.secret
    return {"boxes": boxes.addresses, "job": job}


def judged_on(task: Task, few: int) -> Task:
    """Let a task judge on its first batches alone: how good it is, other tests say."""
    whole = task.batches
    task.batches = lambda split: itertools.islice(whole(split), few)  # type: ignore[method-assign]
    return task


def _process(
    config: dict[str, Any], rank: int, size: int, secret: str, words: str, few: int
) -> None:
    import tinytask  # noqa: F401  registers the tasks

    from dlplatform import trainer
    from dlplatform.cli import guard

    if few:
        make = trainer.make_task
        trainer.make_task = lambda *given: judged_on(make(*given), few)

    names = ("DLP_RANK", "DLP_LOCAL_RANK", "DLP_SIZE", "DLP_LOCAL_SIZE")
    values = (rank, rank, size, size)
    os.environ |= {name: str(value) for name, value in zip(names, values, strict=True)}
    os.environ[wire.SECRET] = secret
    with open(words, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(guard(lambda: trainer.train(config) and None))


@dataclass
class Ended:
    """How a worker process ended: its exit code (negative: the signal) and its words."""

    code: int | None
    words: str


class Workers:
    """Worker processes of one job, started at once; with ``few`` they judge on so many batches."""

    def __init__(self, config: dict[str, Any], size: int, few: int = 0) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.folder = Path(config["run"]["dir"])
        self.folder.mkdir(parents=True, exist_ok=True)
        secret = os.environ.get(wire.SECRET, "")
        self.processes = [
            context.Process(
                target=_process, args=(config, rank, size, secret, str(self._words(rank)), few)
            )
            for rank in range(size)
        ]
        for process in self.processes:
            process.start()

    def _words(self, rank: int) -> Path:
        return self.folder / f"words-{rank}"

    def wait(self, seconds: float = PATIENCE_S) -> list[Ended]:
        """Wait for all; kill and fail on those that hang."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        hanging = [rank for rank, p in enumerate(self.processes) if p.is_alive()]
        for process in self.processes:
            process.kill()
        texts = [path.read_text() if path.exists() else "" for path in self._all_words()]
        assert not hanging, f"workers {hanging} hang after {seconds} s: {texts}"
        codes = [process.exitcode for process in self.processes]
        return [Ended(code, text) for code, text in zip(codes, texts, strict=True)]

    def _all_words(self) -> list[Path]:
        return [self._words(rank) for rank in range(len(self.processes))]


def run(config: dict[str, Any], size: int) -> list[Ended]:
    """Run a job's workers as processes to their end."""
    return Workers(config, size).wait()


def until(true: Callable[[], Any], seconds: float = PATIENCE_S) -> None:
    """Wait until something becomes true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"still not true after {seconds} s"
        time.sleep(0.02)
