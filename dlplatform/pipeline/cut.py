"""Cut: which part of a task's networks a worker trains, and who trains the same or the rest.

Neighbouring ranks form a pipeline: of 4 workers and 2 stages, ranks 0 and 1 are one pipeline, 2
and 3 another; the rule runs among 0 and 2 for the first stage, among 1 and 3 for the second.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor, nn

from dlplatform.errors import UsageError
from dlplatform.job import Job
from dlplatform.task import Models, Split, Task
from dlplatform.world import World


@dataclass(frozen=True)
class Cut:
    """One worker's place in the pipelines of a job; one stage: the whole networks, as ever."""

    task: Task
    world: World = field(default_factory=World)
    stages: int = 1

    @property
    def stage(self) -> int:
        """Return this worker's stage, from 0."""
        return self.world.rank % self.stages

    @property
    def pipeline(self) -> int:
        """Return the number of this worker's pipeline."""
        return self.world.rank // self.stages

    @property
    def hands_over(self) -> bool:
        """Tell whether the chief, in the same pipeline, gets its stage's weights from here."""
        return self.pipeline == 0 and self.stage > 0

    def share(self, job: Job) -> Job:
        """Return a job as the rule of this worker's stage sees it: those with the same stage."""
        if self.world.size % self.stages:
            raise UsageError(
                f"stages={self.stages} of {self.world.size} workers - allowed: a multiple of "
                f"{self.stages} workers - do: workers={self.stages}"
            )
        if self.stages == 1:
            return job
        same = job.world.part(range(self.stage, self.world.size, self.stages))
        return dataclasses.replace(job, world=same)

    def split(self, models: Models) -> Split:
        """Return the stages of networks; together they train every weight, each its own."""
        split = self.task.split(models, self.stages)
        assert len(split.stages) == self.stages, "a task's split returns as many stages as asked"
        given = [p for stage in split.stages for p in _trained(stage.parameters())]
        groups = self.task.groups(models)
        wanted = {p for parameters in groups.values() for p in _trained(parameters)}
        if len(groups) > 1 or len(given) > len(wanted) or set(given) != wanted:
            raise UsageError(
                f"stages={self.stages} of {len(wanted)} weights in {len(groups)} group(s), the "
                f"stages have {len(given)} - allowed: one group, each weight in one stage - do: "
                "untie weights across the cut, or stages=1"
            )
        return split

    def modules(self, models: Models) -> Models:
        """Return what this worker trains of networks."""
        if self.stages == 1:
            return models
        return {f"stage{self.stage}": self.split(models).stages[self.stage]}

    def groups(self, models: Models) -> dict[str, Iterable[nn.Parameter]]:
        """Return the parameters of this worker's groups: ``main``, or ``main/stage1``."""
        groups = self.task.groups(models)
        if self.stages == 1:
            return groups
        ((name, module),) = self.modules(models).items()
        return {f"{next(iter(groups))}/{name}": list(module.parameters())}

    def origin(self, group: str) -> str:
        """Return the task's name of a group of this worker's."""
        return group if self.stages == 1 else group.rpartition("/")[0]

    def outward(self, models: Models, moments: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return moments by the names they have without stages, so that any number resumes."""
        return _renamed(moments, self._places(models))

    def inward(self, models: Models, moments: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a checkpoint's moments by the names they have in this worker's groups."""
        return _renamed(moments, {there: here for here, there in self._places(models).items()})

    def _places(self, models: Models) -> dict[str, str]:
        if self.stages == 1:
            return {}
        ((whole, everything),) = self.task.groups(models).items()
        ((own, parameters),) = self.groups(models).items()
        number = {p: n for n, p in enumerate(_trained(everything))}
        return {f"{own}/{n}": f"{whole}/{number[p]}" for n, p in enumerate(_trained(parameters))}


def _trained(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return list(dict.fromkeys(p for p in parameters if p.requires_grad))


def _renamed(moments: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    found = {}
    for name, value in moments.items():
        home, _, key = name.rpartition("/")
        found[f"{names.get(home, home)}/{key}"] = value
    return found
