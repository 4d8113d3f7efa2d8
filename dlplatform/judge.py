"""Judge: scores the job's weights on copies of the networks, while training goes on."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlplatform.device import moved
from dlplatform.flat import FlatGroup
from dlplatform.pipeline.cut import Cut

if TYPE_CHECKING:
    from dlplatform.rules.rule import Rule
    from dlplatform.task import Models, Task


class Judge:
    """Copies of a task's networks that hold the job's current (or averaged) weights.

    Args:
        task: gives data and scores.
        models: networks before they become views of flat vectors.
        decay: of the moving average of weights to judge; 0 judges the weights themselves.
        cut: which part of the networks this worker trains; none: all.
    """

    def __init__(
        self, task: Task, models: Models, decay: float = 0.0, cut: Cut | None = None
    ) -> None:
        self.task, self.decay = task, decay
        self.models = copy.deepcopy(models)
        self.cut = cut or Cut(task)
        self.modules = self.cut.modules(self.models)
        self.groups = {
            name: FlatGroup.of(name, parameters)
            for name, parameters in self.cut.groups(self.models).items()
        }
        self.raw: dict[str, Tensor] = {}
        """The weights behind the averages, for checkpoints: ``group/raw/weight``."""
        self.average = {name: group.weight.clone() for name, group in self.groups.items()}

    def observe(self, groups: dict[str, tuple[FlatGroup, Rule]]) -> None:
        """Move the averages towards this worker's weights, after a step."""
        if self.decay:
            for name, (group, _) in groups.items():
                self.average[name].lerp_(group.weight, 1.0 - self.decay)

    def take(self, groups: dict[str, tuple[FlatGroup, Rule]], models: Models) -> None:
        """Bring the job's weights (or the averages) and this worker's buffers here."""
        for name, (_, rule) in groups.items():
            rule.master(self.groups[name].weight_address)
            self.groups[name].give_back()
            if self.decay:
                self.raw[f"{name}/raw/weight"] = self.groups[name].weight.clone()
                self.groups[name].weight.copy_(self.average[name])
        with torch.no_grad():
            for name, model in models.items():
                mine = dict(self.models[name].named_buffers())
                for key, value in model.named_buffers():
                    mine[key].copy_(value)

    def score(self, split: str) -> dict[str, float]:
        """Return the task's scores on a split."""
        for model in self.models.values():
            model.eval()
        where = next(iter(self.groups.values())).device
        with torch.no_grad():
            batches = (moved(batch, where) for batch in self.task.batches(split))
            return self.task.score(self.models, batches)

    def on_host(self) -> Models:
        """Return the judged networks on the CPU, for pictures."""
        if all(group.device.type == "cpu" for group in self.groups.values()):
            return self.models
        return {name: copy.deepcopy(model).cpu() for name, model in self.models.items()}
