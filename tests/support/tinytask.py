"""Tasks for tests: tiny networks on points of the plane, with switches for what may go wrong."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from dlplatform.checkpoint import Checkpoint, put_weights
from dlplatform.lean import leave_compiler_out
from dlplatform.seeds import derive
from dlplatform.task import Models, Split, Task, task

leave_compiler_out()  # as dlp train does; it takes every process seconds

Pair = tuple[Tensor, Tensor]
SPLITS = {"train": 0, "val": 1, "test": 2}


def points(seed: int, count: int = 8) -> Pair:
    """Return points of the plane and the third of the circle each lies in."""
    random = np.random.default_rng(seed)
    xy = random.normal(size=(count, 2)).astype(np.float32)
    third = (np.arctan2(xy[:, 1], xy[:, 0]) / (2 * np.pi / 3) + 1.5).astype(np.int64).clip(0, 2)
    return torch.from_numpy(xy), torch.from_numpy(third)


def network(seed: int = 0, width: int = 16) -> nn.Sequential:
    """Return a small network whose weights depend on the seed alone, also in threads."""
    net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 3))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator))
    return net


@task("test/points")
@dataclass
class Points(Task):
    """Three classes of points; written files tell which minibatches were trained by whom."""

    width: int = 16
    dropout: float = 0.0
    norm: bool = False
    optimizer_name: str = "sgd"
    lr: float = 0.1
    slow_s: float = 0.0
    """Time a minibatch takes longer."""
    nan_at: int = -1
    """Minibatch whose loss is not a number."""
    die_rank: int = -1
    die_at: int = -1
    """First minibatch in which the worker ``die_rank`` is killed."""
    die_backward: bool = False
    """Kill it in the middle of the backward pass."""
    falling: bool = False
    """Let the learning rate fall to zero along a line."""
    start: str = ""
    """Folder of a run to begin with."""
    record: str = ""
    """Folder for files of the minibatches begun and trained, one of each for a process."""

    def models(self) -> Models:
        layers: list[nn.Module] = [nn.Linear(2, self.width)]
        layers += [nn.BatchNorm1d(self.width)] if self.norm else []
        layers += [nn.Tanh(), nn.Dropout(self.dropout), nn.Linear(self.width, 3)]
        return {"net": nn.Sequential(*layers)}

    def begin(self, models: Models) -> str:
        if not self.start:
            return ""
        put_weights(models, Checkpoint.load(Path(self.start)).weights)
        return f"it begins as {self.start}"

    def batch(self, split: str, number: int) -> Pair:
        self._write("begun", number)
        if not self.die_backward and self._dies(number):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.slow_s)
        return points(derive(self.seed, split, number))

    def _dies(self, number: int) -> bool:
        return os.environ.get("DLP_RANK", "0") == str(self.die_rank) and number >= self.die_at

    def batches(self, split: str) -> Iterator[Pair]:
        for number in range(2):
            yield points(derive(self.seed, "fixed", SPLITS[split], number), 64)

    def loss(self, models: Models, batch: Pair) -> Tensor:
        xy, labels = batch
        if self.die_backward and self._dies(self._now):
            first = next(models["net"].parameters())
            first.register_hook(lambda grad: os.kill(os.getpid(), signal.SIGKILL))
        loss = functional.cross_entropy(models["net"](xy).float(), labels)
        return loss * float("nan") if self._now == self.nan_at else loss

    def score(self, models: Models, batches: Iterable[Pair]) -> dict[str, float]:
        right, total = 0, 0
        for xy, labels in batches:
            right += int((models["net"](xy).argmax(1) == labels).sum())
            total += len(labels)
        return {"accuracy": right / total}

    def predict(self, models: Models, raw: Path) -> dict[str, Any]:
        return {"size": raw.stat().st_size}

    def optimizer(self, group: str, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return optimizer(self.optimizer_name, parameters, self.lr)

    def rate(self, progress: float) -> float:
        return 1.0 - progress if self.falling else 1.0

    def after(self, models: Models, number: int) -> None:
        self._write("trained", number)

    def picture(self, models: Models) -> Image.Image:
        return Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))

    def _write(self, what: str, number: int) -> None:
        self._now = number
        if self.record:
            with (Path(self.record) / f"{what}-{os.getpid()}").open("a") as file:
                file.write(f"{number}\n")


def optimizer(
    name: str, parameters: Iterable[nn.Parameter], lr: float = 0.1
) -> torch.optim.Optimizer:
    """Return SGD with momentum, plain SGD or Adam."""
    if name == "adam":
        return torch.optim.Adam(parameters, lr=lr)
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9 if name == "sgd" else 0.0)


def recorded(folder: Path, what: str = "trained") -> list[int]:
    """Return the minibatches that all processes wrote down, in ascending order."""
    return sorted(
        int(line) for file in folder.glob(f"{what}-*") for line in file.read_text().splitlines()
    )


@task("test/rivals")
@dataclass
class Rivals(Points):
    """Two networks that train against each other, each a group of its own, one step after the
    other; the second loss depends on what the first step did."""

    def models(self) -> Models:
        return {"maker": nn.Linear(2, 2), "judge": nn.Linear(2, 1)}

    def groups(self, models: Models) -> dict[str, Iterable[nn.Parameter]]:
        return {name: net.parameters() for name, net in models.items()}

    def losses(self, models: Models, batch: Pair) -> Iterator[tuple[str, Tensor]]:
        xy, _ = batch
        made = models["maker"](xy)
        real, false = models["judge"](xy), models["judge"](made.detach())
        yield "judge", functional.softplus(-real).mean() + functional.softplus(false).mean()
        yield "maker", functional.softplus(-models["judge"](made)).mean()

    def score(self, models: Models, batches: Iterable[Pair]) -> dict[str, float]:
        (xy, _), *_ = batches
        return {"accuracy": float(models["judge"](xy).mean())}


@task("test/recalling")
@dataclass
class Recalling(Points):
    """A task that keeps the mean of the points it has seen, and moves all points by it."""

    def __post_init__(self) -> None:
        self.mean = torch.zeros(2)

    def loss(self, models: Models, batch: Pair) -> Tensor:
        xy, labels = batch
        self.mean.lerp_(xy.mean(0), 0.1)
        return super().loss(models, (xy - self.mean, labels))

    def state(self) -> dict[str, Tensor]:
        return {"mean": self.mean}

    def restore(self, models: Models, state: dict[str, Tensor]) -> None:
        self.mean.copy_(state["mean"])


@task("test/tied")
@dataclass
class Tied(Points):
    """A network with one weight used twice, a frozen layer, and a weight without gradient."""

    def models(self) -> Models:
        first, last = nn.Linear(2, 4), nn.Linear(4, 3)
        between, again = nn.Linear(4, 4), nn.Linear(4, 4)
        again.weight = between.weight
        first.weight.requires_grad_(False)
        net = nn.Sequential(first, nn.Tanh(), between, nn.Tanh(), again, nn.Tanh(), last)
        net.register_parameter("unused", nn.Parameter(torch.ones(3)))
        return {"net": net}


@task("test/chain")
@dataclass
class Chain(Points):
    """A deeper network that can be cut before each of its linear layers; seeded by itself, so
    that workers in threads have the same."""

    depth: int = 4
    samples: int = 8

    def models(self) -> Models:
        layers: list[nn.Module] = []
        for n in range(self.depth - 1):
            layers += [nn.Linear(self.width if n else 2, self.width), nn.Tanh()]
            layers += [nn.BatchNorm1d(self.width)] if self.norm else []
            layers += [nn.Dropout(self.dropout)] if self.dropout else []
        net = nn.Sequential(*layers, nn.Linear(self.width, 3))
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.4 * torch.randn(p.shape, generator=generator) - p)
        return {"net": net}

    def batch(self, split: str, number: int) -> Pair:
        super().batch(split, number)
        xy, third = points(derive(self.seed, split, number), self.samples)
        return xy.clone(), third  # where memory begins decides how products are rounded

    def split(self, models: Models, count: int) -> Split:
        layers = list(models["net"].children())
        starts = [n for n, layer in enumerate(layers) if isinstance(layer, nn.Linear)]
        borders = [starts[len(starts) * n // count] for n in range(count)] + [len(layers)]
        return Split(
            [nn.Sequential(*layers[a:b]) for a, b in itertools.pairwise(borders)],
            inputs=lambda batch: batch[0],
            loss=lambda logits, batch: self.loss({"net": nn.Identity()}, (logits, batch[1])),
        )
