"""Trains a task with a plain loop, as one process would."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dlplatform.task import Models
from trainers.blocks.photos import Photos


def _train(task: Photos, losses: list[float] | None = None) -> Models:
    torch.manual_seed(task.seed)
    models = task.models()
    optimizer = task.optimizer("main", models["net"].parameters())
    for number in range(task.minibatches):
        optimizer.param_groups[0]["lr"] = task.lr * task.rate(number / task.minibatches)
        optimizer.zero_grad()
        loss = task.loss(models, task.batch("train", number))
        whole = sum(loss.values()) if isinstance(loss, dict) else loss
        whole.backward()
        optimizer.step()
        if losses is not None:
            losses.append(whole.item())
    return models


@pytest.fixture
def train() -> Callable[..., Models]:
    torch.set_num_threads(1)
    return _train
