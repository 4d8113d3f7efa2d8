"""Tiny detectors and pictures of users for their tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from learning import trained
from PIL import Image

from dlplatform.seeds import derive
from dlplatform.task import Models, Terms, added, numbers
from trainers.blocks.anchorfree import AnchorFree
from trainers.blocks.detector import Batch

SMALL: dict[str, Any] = {"side": 64, "width": 16, "towers": 1, "batch_size": 2, "pictures": 6}


def scored(task: AnchorFree, minibatches: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return scores of twenty validation pictures after so many minibatches, and without any.

    The losses of these pictures are among them, as in ``loss_joints``.
    """
    task.minibatches, task.most, scores = minibatches, 10, []
    batch = next(iter(task.batches("val")))
    for count in (minibatches, 0):
        models = trained(task, count)
        with torch.no_grad():
            terms = task.loss(models, batch)
            scores.append(task.score(models, [batch]))
        for name, term in terms.items():
            scores[-1][f"loss_{name}"] = float(term.total) / max(1.0, float(term.number))
    return scores[0], scores[1]


def begun(task: AnchorFree) -> Models:
    """Return a task's networks before training, ready to answer."""
    torch.manual_seed(derive(task.seed, "init"))
    models = task.models()
    for net in models.values():
        net.eval()
    return models


def written(task: AnchorFree, folder: Path, frames: int = 1) -> Path:
    """Write a test picture to a file larger than the task's side, or a moving one of it."""
    image = Image.fromarray(task.examples("test")[0][0]).resize((160, 100))
    path = folder / ("moving.gif" if frames > 1 else "picture.png")
    more = [image.rotate(number, fillcolor=(90, 90, 90)) for number in range(1, frames)]
    options: dict[str, Any] = (
        {"save_all": True, "append_images": more, "duration": 500} if more else {}
    )
    image.save(path, **options)
    return path


def in_halves(task: AnchorFree, models: Models, batch: Batch) -> tuple[Terms, list[Terms]]:
    """Return the losses of a batch and of its halves, which have to be as large together."""
    with torch.no_grad():
        whole = task.loss(models, batch)
        parts: list[Terms] = [task.loss(models, half) for half in halves(batch)]
    names = numbers(whole)
    assert set(names) == set(whole), "all of them are means"
    shared = {name: sum(numbers(part)[name] for part in parts) for name in names}
    together = sum(float(added(part, shared)) for part in parts)
    assert float(added(whole)) == pytest.approx(together, rel=1e-4)
    return whole, parts


def halves(batch: Batch) -> list[Batch]:
    """Return the two halves of a batch, as two workers would have them."""
    x_BCHW, truths = batch
    middle = len(truths) // 2
    return [(x_BCHW[:middle], truths[:middle]), (x_BCHW[middle:], truths[middle:])]


def certain(models: Models) -> Models:
    """Let a network that has learnt nothing answer at all: with even chances of every class."""
    for name, parameter in models["net"].named_parameters():
        if name.endswith("logits.bias"):
            torch.nn.init.zeros_(parameter)
    return models
