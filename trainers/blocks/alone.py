"""A plain training loop in this process, for the baselines that have to be trained."""

from __future__ import annotations

import torch

from dlplatform.seeds import derive
from dlplatform.task import Models, added
from trainers.blocks.supervised import Supervised


@torch.enable_grad()
def train_alone(task: Supervised) -> Models:
    """Return the networks of a task of one group, trained for as long as it recommends."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(task.seed, "alone"))
        models = task.models()
        optimizer = task.optimizer("main", [p for n in models.values() for p in n.parameters()])
        for number in range(task.minibatches):
            for group in optimizer.param_groups:
                group["lr"] = task.lr * task.rate(number / task.minibatches)
            optimizer.zero_grad()
            total = added(task.loss(models, task.batch("train", number)))
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    for net in models.values():
        net.eval()
    return models


def untrained(task: Supervised) -> Models:
    """Return the networks of a task as they are before any training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(task.seed, "untrained"))
        models = task.models()
    for net in models.values():
        net.eval()
    return models
