"""What the rules are studied on: two problems, and one run of a rule by a simulated fleet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dlplatform.flat import FlatGroup
from dlplatform.job import Job
from dlplatform.rules.rule import find_rule
from dlplatform.seeds import derive
from dlplatform.transports.fleet import Fleet, Outcome, compute, simulate
from trainers.data.sampling import draw

TEST_SEEDS, TUNING_SEEDS = range(5), range(100, 102)


@dataclass(frozen=True)
class Problem:
    """A network, its data and a recipe that suits one worker."""

    name: str
    network: Callable[[], nn.Module]
    data: Callable[[int], dict[str, tuple[Tensor, Tensor]]]
    """Splits of a seed: train, val and test as (x, labels)."""
    lr: float
    minibatches: int
    batch: int = 16


@lru_cache(maxsize=8)
def digits(seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return scikit-learn's 1,797 digits of 8 x 8, split anew for every seed."""
    from sklearn.datasets import load_digits

    bundle = load_digits()
    x, labels = torch.tensor(bundle.data).float() / 16, torch.tensor(bundle.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    cuts = dict(zip(("train", "val", "test"), order.split([1197, 250, 350]), strict=True))
    return {split: (x[cut], labels[cut]) for split, cut in cuts.items()}


@lru_cache(maxsize=8)
def shapes(seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return pictures of shapes, drawn anew for every seed."""
    from trainers.zoo.shapes import COUNTS, pictures

    return {split: pictures(derive(seed, split), count, 0.15) for split, count in COUNTS.items()}


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def _cnn() -> nn.Module:
    from trainers.nets.convnet import small_cnn

    return small_cnn(20, 12, 10)


PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem("digits", _mlp, digits, 0.1, 3000),
        Problem("shapes", _cnn, shapes, 0.1, 8000, batch=8),
    )
}


@dataclass(frozen=True)
class Trial:
    """One run: a rule with settings, on a problem, by a fleet."""

    problem: str
    rule: str
    fields: dict[str, Any] = field(default_factory=dict)
    workers: int = 1
    factor: float = 1.0
    """Of the learning rate, beside what suits one worker: of rate / (1 - momentum)."""
    momentum: float = 0.0
    """Of the workers' SGD."""
    seed: int = 0
    fleet: dict[str, Any] = field(default_factory=dict)
    split: str = "test"
    minibatches: int = 0
    """None: what the problem recommends."""
    every_s: float = 0.0
    """Virtual seconds between scores on the way; 0: only at the end."""


@dataclass
class Result:
    """What a trial came to."""

    accuracy: float
    loss: float
    seconds: float
    sent: int
    """Bytes from one worker to the boxes, the mean of all."""
    received: int
    steps: list[int]
    curve: list[tuple[float, float, float]]
    """(virtual seconds, accuracy, loss) on the way."""


def run(trial: Trial) -> Result:
    """Train as the trial says; score the job's final weights."""
    torch.set_num_threads(1)
    problem = PROBLEMS[trial.problem]
    total = trial.minibatches or problem.minibatches
    data = problem.data(trial.seed)
    curve: list[tuple[float, float, float]] = []

    def body(job: Job) -> tuple[float, float]:
        worker = Worker(job, trial, problem, data)
        due = trial.every_s
        while (number := worker.rule.claim(job)) is not None:
            worker.step(number)
            if trial.every_s and job.rank == 0 and job.cluster.clock.now() >= due:
                curve.append((job.cluster.clock.now(), *worker.score()))
                due = job.cluster.clock.now() + trial.every_s
        worker.rule.finish()
        job.cluster.finished()
        job.wait_for_all()
        job.groups.clear()
        return worker.score() if job.cluster.is_chief() else (0.0, 0.0)

    fleet = Fleet(workers=trial.workers, seed=trial.seed, **trial.fleet)
    outcome: Outcome[tuple[float, float]] = simulate(fleet, body, total=total)
    accuracy, loss = max(result for result in outcome.results if result is not None)
    mean = [sum(values) // len(values) for values in (outcome.sent, outcome.received)]
    return Result(accuracy, loss, outcome.seconds, *mean, outcome.steps, curve)


class Worker:
    """One worker's network under the rule.

    Args:
        job: its job.
        trial: what to run.
        problem: the network and the recipe.
        data: splits.
        pause: lets the time of a step's computation pass.
    """

    def __init__(
        self, job: Job, trial: Trial, problem: Problem, data: dict[str, tuple[Tensor, Tensor]],
        pause: Callable[[Job], object] = compute,
    ) -> None:  # fmt: skip
        self.job, self.trial, self.problem, self.data, self.pause = job, trial, problem, data, pause
        torch.manual_seed(derive(trial.seed, "init"))
        self.model, self.judge = problem.network(), problem.network()
        self.group = FlatGroup("main", self.model.parameters())
        self.judged = FlatGroup("judge", self.judge.parameters())
        self.rule = find_rule(trial.rule)(**trial.fields)
        self.peak = problem.lr * trial.factor * (1.0 - trial.momentum)
        self.optimizer = torch.optim.SGD(
            self.group.parameters, lr=self.peak, momentum=trial.momentum
        )
        job.attach(self.optimizer, self.group, self.rule)

    def step(self, number: int) -> None:
        """Train one minibatch: full rate after a warm-up, falling in the second half."""
        done = self.job.work.position / self.job.work.total
        rate = min(1.0, done / 0.05 + 0.05, 2.02 - 2 * done)
        self.optimizer.param_groups[0]["lr"] = self.peak * rate
        x, labels = self.data["train"]
        picked = draw(self.trial.seed, number, self.problem.batch, len(x))
        self.optimizer.zero_grad()
        loss = functional.cross_entropy(self.model(x[picked]), labels[picked])
        loss.backward()
        self.pause(self.job)
        self.optimizer.step()

    def score(self) -> tuple[float, float]:
        """Return accuracy and loss of the job's weights."""
        self.rule.master(self.judged.weight_address)
        x, labels = self.data[self.trial.split]
        with torch.no_grad():
            logits = self.judge(x)
        loss = float(functional.cross_entropy(logits, labels).nan_to_num(99.0, 99.0, 99.0))
        return float((logits.argmax(1) == labels).float().mean()), loss
