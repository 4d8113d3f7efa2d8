"""Episodes of a labelled set: support to adapt to, query to be judged on, never one picture twice.

Shape legend: N pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlplatform.errors import UsageError
from trainers.blocks.settings import check

# torch comes in with the first draw: the command line checks episodes and must answer at once.
if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Episodes:
    """What an episode is made of; by the patent (claims 5 and 12) support has more labels.

    Classes of support and query differ (par. [0025]) unless ``shared``: then those of the query
    are some of the support's, in other pictures.
    """

    support_classes: int = 8
    query_classes: int = 4
    shots: int = 5
    """Pictures of each class."""
    shared: bool = False
    criterion: int = 5
    """Labels of the support are more than this, those of the query fewer."""
    label_unit: str = "classes"
    """What counts as labels: classes, or labelled images."""

    def __post_init__(self) -> None:
        """Refuse an episode that breaks the criterion, or that has no pairs."""
        check(
            "label_unit",
            self.label_unit,
            self.label_unit in ("classes", "images"),
            "classes or images",
        )
        check("shots", self.shots, self.shots >= 2, "2 or more")
        check("query_classes", self.query_classes, self.query_classes >= 2, "2 or more")
        each = self.shots if self.label_unit == "images" else 1
        support, query = self.support_classes * each, self.query_classes * each
        allowed = (
            f"fewer than the {support} {self.label_unit} of support, more than the {query} of query"
        )
        check("criterion", self.criterion, query < self.criterion < support, allowed)

    def draw(self, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Return the indices of support and query: a pure function of labels and seed."""
        apart = 0 if self.shared else self.query_classes
        each = self.shots * 2 if self.shared else self.shots
        picked = draw_classes(labels, self.support_classes + apart, each, seed)
        support, query = picked[: self.support_classes], picked[-self.query_classes :]
        return support[:, : self.shots].flatten(), query[:, -self.shots :].flatten()


def draw_classes(labels: Tensor, classes: int, each: int, seed: int) -> Tensor:
    """Return the indices (classes, each) of pictures of some classes, all drawn at random.

    Raises UsageError when the set has fewer classes of so many pictures.
    """
    import torch

    random = torch.Generator().manual_seed(seed)
    known, sizes = _classes(labels)
    known = known[sizes >= each]
    if len(known) < classes:
        raise UsageError(
            f"a minibatch of {classes} classes of {each} pictures and the set has only "
            f"{len(known)} such classes - allowed: as many as there are - do: lower "
            "task.batch_size, task.shots, task.support_classes or task.query_classes"
        )
    known = known[torch.randperm(len(known), generator=random)[:classes]]
    return torch.stack([_some(labels == label, each, random) for label in known])


def few_of_each(labels: Tensor, shots: int, seed: int, spare: int = 0) -> tuple[Tensor, Tensor]:
    """Return the indices of ``shots`` pictures of every class, and those of all others.

    Raises UsageError where a class does not have so many and ``spare`` ones.
    """
    import torch

    random = torch.Generator().manual_seed(seed)
    least = int(_classes(labels)[1].min())
    if least < shots + spare:
        raise UsageError(
            f"a part of the target has a class of {least} pictures - allowed: {shots + spare} or "
            "more - do: add pictures, or lower task.shots"
        )
    few = torch.cat([_some(labels == label, shots, random) for label in _classes(labels)[0]])
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[few] = False
    return few, rest.nonzero()[:, 0]


def _some(mask: Tensor, count: int, random: torch.Generator) -> Tensor:
    import torch

    members = mask.nonzero()[:, 0]
    return members[torch.randperm(len(members), generator=random)[:count]]


def _classes(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the classes there are, in order, and how many pictures each has."""
    counts = labels.bincount()
    known = counts.nonzero()[:, 0]
    return known, counts[known]
