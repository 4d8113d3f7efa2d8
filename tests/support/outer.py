"""Training by number, for tests of rules that exchange now and then."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from tinyjobs import attach, master, together
from tinytask import network, optimizer, points
from torch import Tensor, nn
from torch.nn import functional

from dlplatform.job import Job, Place

PLAIN = partial(optimizer, "plain")
STEPS, F = 12, np.float32


def loss_of(model: nn.Module, number: int) -> Tensor:
    xy, labels = points(number)
    return functional.cross_entropy(model(xy), labels)


def train(
    rule: str, where: Place, size: int, steps: int = STEPS, first: int = 0, **fields: Any
) -> list[Tensor]:
    """Train numbers dealt by rank; return every worker's weights, then the master's."""

    def body(job: Job) -> tuple[Tensor, Tensor]:
        net = attach(job, rule, network(job.rank), PLAIN, **fields)
        for step in range(steps):
            net.step(loss_of(net.model, first + step * size + job.rank))
        net.rule.finish()
        job.cluster.finished()
        job.wait_for_all()
        job.groups.clear()
        return net.group.weight.clone(), master(net)

    pairs = together(size, where, body)
    return [*(weights for weights, _ in pairs), pairs[0][1]]
