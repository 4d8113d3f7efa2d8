"""Training in step, for tests: optimizers by name, and a wide network with a falling rate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tinyjobs import attach, together
from tinytask import network, points
from torch import Tensor, nn
from torch.nn import functional

from dlplatform.job import Job, Place

WIDE, STEPS, WORKERS = 1024, 8, 3
MAKES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "plain": partial(torch.optim.SGD, lr=0.05),
    "momentum": partial(torch.optim.SGD, lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": partial(torch.optim.Adam, lr=0.01, weight_decay=0.01),
    "adamw": partial(torch.optim.AdamW, lr=0.01),
}


def words(fields: Any) -> str:
    return "-".join(f"{k}={v}" for k, v in fields.items()) if isinstance(fields, dict) else ""


def loss_of(model: nn.Module, number: int) -> Tensor:
    xy, labels = points(number)
    return functional.cross_entropy(model(xy), labels)


def train(
    where: Place, make: str = "momentum", size: int = WORKERS, rule: str = "ssgd", passes: int = 1,
    **fields: Any,
) -> list[list[Tensor]]:  # fmt: skip
    """Train with a falling rate; return each worker's weights after every step."""

    def body(job: Job) -> list[Tensor]:
        net = attach(job, rule, network(job.rank, WIDE), MAKES[make], **fields)
        falling = torch.optim.lr_scheduler.LinearLR(net.optimizer, 1.0, 0.1, STEPS)
        seen = []
        for step in range(STEPS):
            net.optimizer.zero_grad()
            for one in range(passes):
                net.group.final = one == passes - 1
                loss_of(net.model, (step * passes + one) * size + job.rank).backward()
            net.optimizer.step()
            falling.step()
            seen.append(net.group.weight.clone())
        net.rule.finish()
        job.groups.clear()
        return seen

    return together(size, where, body)


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))
