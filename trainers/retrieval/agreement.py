"""The agreement loop: train in cycles until source and target are separated alike.

Source: the patent on few-shot retrieval, claims 3 and 10, par. [0022] and [0030].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dlplatform.task import Models
from trainers.blocks.settings import check

if TYPE_CHECKING:
    from trainers.retrieval.fewshot import FewShot


@dataclass(frozen=True)
class Cycle:
    """Separability of held-out source (rho1) and adapted target (rho2), and how alike they are."""

    rho1: float
    rho2: float
    similarity: float


def train_until_agreement(
    task: FewShot, models: Models, similarity: float = 0.9, most: int = 5
) -> list[Cycle]:
    """Train whole cycles of both stages until they agree; return what was measured after each.

    A cycle trains the minibatches that a cycle of the task has, the next ones by number. The
    networks are trained in place, by this process alone.
    """
    check("similarity", similarity, 0 < similarity <= 1, "above 0 up to 1")
    check("cycles", most, most >= 1, "1 or more")
    done: list[Cycle] = []
    while len(done) < most and (not done or done[-1].similarity < similarity):
        train(task, models, range(len(done) * task.cycle, (len(done) + 1) * task.cycle))
        scores = task.score(models, task.batches("val"))
        done.append(Cycle(scores["rho1"], scores["rho2"], scores["similarity"]))
    return done


@torch.enable_grad()
def train(task: FewShot, models: Models, numbers: Sequence[int]) -> None:
    """Train minibatches in this process alone, with a fresh optimizer."""
    parameters = [p for ps in task.groups(models).values() for p in ps]
    optimizer = task.optimizer("main", parameters)
    for done, number in enumerate(numbers):
        optimizer.param_groups[0]["lr"] = task.lr * task.rate(done / len(numbers))
        optimizer.zero_grad()
        task.loss(models, task.batch("train", number)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
