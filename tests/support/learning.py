"""Train a task as the loop does, but alone and without boxes."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch

from dlplatform.seeds import derive
from dlplatform.task import Models, Task, added


def trained(task: Task, minibatches: int, clip: float = 0.0) -> Models:
    """Return the networks of a task after so many minibatches, ready to be judged."""
    torch.manual_seed(derive(task.seed, "init"))
    models = task.models()
    task.begin(models)
    groups = {name: list(parameters) for name, parameters in task.groups(models).items()}
    optimizers = {name: task.optimizer(name, groups[name]) for name in groups}
    rates = {name: float(one.param_groups[0]["lr"]) for name, one in optimizers.items()}
    for number in range(minibatches):
        torch.manual_seed(derive(task.seed, "minibatch", number))
        for name, terms in task.losses(models, task.batch("train", number)):
            optimizer = optimizers[name]
            optimizer.param_groups[0]["lr"] = rates[name] * task.rate(number / minibatches)
            optimizer.zero_grad()
            added(terms).backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(groups[name], clip)
            optimizer.step()
        task.after(models, number)
    for net in models.values():
        net.eval()
    return models


def some(task: Task, split: str = "test") -> list[Any]:
    """Return two batches of a split: enough to tell whether a task has learnt."""
    return list(islice(task.batches(split), 2))
