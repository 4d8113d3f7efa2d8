"""Rule: what one parameter group exchanges with the boxes, and when.

A rule sees flat vectors, counters and ranks; never a model and never an optimizer.
Its dataclass fields are its configuration.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

from dlplatform.errors import UsageError, closest
from dlplatform.plugins import plugins

if TYPE_CHECKING:
    from dlplatform.flat import FlatGroup
    from dlplatform.job import Job
    from dlplatform.memorybox.buffer import SharedBuffer

R = TypeVar("R", bound="type[Rule]")
_REGISTRY: dict[str, type[Rule]] = {}


@dataclass
class Rule(ABC):
    """One way to train together; subclass as a dataclass.

    Life: ``start``, then for every minibatch ``claim`` - forward and backward -
    ``gradients`` - ``optimizer.step`` - ``weights``; at the end ``finish``.
    """

    survives: ClassVar[bool] = False
    """Whether the others go on when a worker dies."""
    reads_gradients: ClassVar[bool] = True
    """Whether gradients must lie in the group's vector; without, a step is a little quicker."""
    elastic: ClassVar[bool] = False
    """Whether workers may join and leave a running job: nobody counts on their number."""

    @abstractmethod
    def start(self, job: Job, group: FlatGroup) -> None:
        """Create or attach the group's buffers and give all workers the same weights."""

    def claim(self, job: Job) -> int | None:
        """Return the next minibatch number for this worker; None ends its training."""
        return job.work.next()

    def numbers(self, own: dict[str, float]) -> dict[str, float]:
        """Return what to divide sums of a loss by: means over all whose gradients are averaged."""
        return own

    def gradients(self) -> None:
        """Run before ``optimizer.step``, on the group's gradients in place."""

    def weights(self) -> None:
        """Run after ``optimizer.step``, on the group's weights in place."""

    @abstractmethod
    def master(self, into: int) -> None:
        """Copy the job's current weights to the memory at address ``into``."""

    @abstractmethod
    def finish(self) -> None:
        """Push what is left; afterwards ``master`` gives the job's final weights."""

    def moments(self) -> None:
        """Give the worker's optimizer its state, where the boxes have it; before a checkpoint."""

    def restore(self) -> None:
        """Take the state over that a checkpoint gave the worker's optimizer."""

    def states(self) -> dict[str, SharedBuffer]:
        """Return the rule's own buffers that a checkpoint keeps, by name."""
        return {}

    def close(self) -> None:
        """End the rule's threads, whatever has happened; before the boxes are left."""

    def report(self) -> dict[str, float]:
        """Return figures for the board: ``sync/staleness``, ``sync/distance`` and the like."""
        return {}


def rule(name: str) -> Callable[[R], R]:
    """Register a rule class under a name."""

    def register(cls: R) -> R:
        _REGISTRY[name] = cls
        return cls

    return register


def rules() -> dict[str, type[Rule]]:
    """Return every registered rule: the platform's own and those of installed packages."""
    import dlplatform.rules  # noqa: F401  registers the platform's own

    for entry in plugins("rules"):
        entry.load()
    return dict(sorted(_REGISTRY.items()))


def find_rule(name: str) -> type[Rule]:
    """Return the class of a rule, or say which name was probably meant."""
    known = rules()
    if name not in known:
        raise UsageError(
            f"rule={name} is not a rule{closest(name, known)}. Allowed: {', '.join(known)}"
        )
    return known[name]
