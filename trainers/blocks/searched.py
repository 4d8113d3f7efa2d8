"""Detectors that judge what selective search proposes: all but how.

Shape legend: B batch, C channels, H height, W width, 3 RGB.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlplatform.task import Models
from trainers.blocks.candidates import Judging
from trainers.blocks.detector import Batch
from trainers.blocks.settings import check

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.data.instances import Found, Instances, InstanceSet

SEARCHES = ("fast", "quality")


@dataclass
class Searched(Judging):
    """A detector whose candidates are not learnt.

    A batch is a pair (x_BCHW normalised, the objects of each picture, and its proposals as
    objects of no class).
    """

    search: str = "fast"
    """Of selective search: fast has one colour space and grouping, quality eight."""
    proposed: int = 300
    """Proposals of a picture, at most; the papers have 2000."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        super().__post_init__()
        check("search", self.search, self.search in SEARCHES, "fast or quality")
        check("proposed", self.proposed, self.proposed >= 1, "1 or more")

    def examples(self, split: str) -> InstanceSet:
        """Return the pictures of a split; those to train on with their proposals."""
        from trainers.blocks.proposals import with_proposals

        examples = super().examples(split)
        if split == "train":
            return with_proposals(examples, self.search, self.proposed)
        return examples

    def candidates(self, models: Models, x_BCHW: Tensor) -> list[Tensor]:
        """Return what selective search finds in the pictures."""
        from trainers.blocks.pixels import shown
        from trainers.blocks.proposals import proposals_of

        images_BHW3 = shown(x_BCHW).cpu().numpy()
        return [
            proposals_of(image_HW3, self.search, self.proposed).to(x_BCHW.device)
            for image_HW3 in images_BHW3
        ]

    @abstractmethod
    def found_in(self, models: Models, x_BCHW: Tensor, boxes: Sequence[Tensor]) -> list[Found]:
        """Return what is found in each picture among some boxes of it."""

    def found(self, models: Models, x_BCHW: Tensor) -> list[Found]:
        """Return what is found in each picture among the boxes of selective search."""
        return self.found_in(models, x_BCHW, self.candidates(models, x_BCHW))

    def found_among(self, models: Models, x_1CHW: Tensor, *boxes_R4: Tensor) -> Found:
        """Return what is found in one picture among boxes."""
        return self.found_in(models, x_1CHW, boxes_R4)[0]

    def takes(self) -> dict[str, Tensor]:
        """Return what its file takes: a picture, and the boxes of selective search in it."""
        import torch

        middle_4 = torch.tensor([0.25, 0.25, 0.75, 0.75]) * self.side
        return {**super().takes(), "proposals": middle_4.expand(2, 4)}

    def answers(
        self, models: Models, batches: Iterable[Batch]
    ) -> Iterator[tuple[Found, Instances]]:
        """Yield what is found in each picture, and its objects, on the host."""
        from trainers.blocks.proposals import apart

        for found, rows in super().answers(models, batches):
            yield found, apart(rows)[0]

    def baselines(self) -> dict[str, float]:
        """Return the test scores of no training, and of proposals all named after one class."""
        import torch

        from trainers.blocks.proposals import proposals_of
        from trainers.data.instances import Found
        from trainers.scores.detection import DetectionTally

        test = self.examples("test")
        held = DetectionTally(test.kinds)
        for image_HW3, truth in (test[index] for index in range(len(test))):
            boxes_N4 = proposals_of(image_HW3, self.search, self.proposed)
            none_N = torch.zeros(len(boxes_N4), dtype=torch.int64)
            held.add(Found(boxes_N4, none_N, torch.linspace(1, 0.1, len(none_N))), truth)
        return {**super().baselines(), "proposals": held.scores()[self.primary]}
