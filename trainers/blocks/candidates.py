"""Detectors that judge candidate regions, wherever these come from: what all of them share.

Shape legend: B batch, C channels, H height, W width, N objects.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlplatform.seeds import derive
from dlplatform.task import Models
from trainers.blocks.detector import Batch, Detector
from trainers.blocks.settings import check

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from trainers.blocks.anchors import Overlap
    from trainers.blocks.fcos import Limits
    from trainers.data.instances import Instances, InstanceSet
    from trainers.data.scenes import Bytes

COUNTS = {"train": 500, "val": 50, "test": 100}


@dataclass
class Judging(Detector):
    """A detector that judges regions of scenes; a subclass says where they come from, and how."""

    regions: int = 32
    """Regions of a picture to learn from; Faster R-CNN has 128."""
    iou: float = 0.3
    """Overlap above which the worse of two boxes of a class goes."""
    most: int = 50
    """Objects of a picture, at most."""
    least: float = 0.05
    """Lowest score of an object."""
    momentum: float = 0.0
    """Of SGD; 0: Adam."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        super().__post_init__()
        check("regions", self.regions, self.regions >= 4, "4 or more")
        check("iou", self.iou, 0 < self.iou < 1, "between 0 and 1")
        check("most", self.most, 1 <= self.most <= 1000, "1 to 1000")
        check("least", self.least, 0 <= self.least < 1, "0 up to, not including, 1")
        check("momentum", self.momentum, 0 <= self.momentum < 1, "0 up to, not including, 1")

    @abstractmethod
    def candidates(self, models: Models, x_BCHW: Tensor) -> list[Tensor]:
        """Return the boxes of each picture that are judged."""

    def drawn(self, split: str) -> InstanceSet:
        """Return scenes of one to five discs, squares and triangles."""
        from trainers.synth.objects import scene_boxes

        scenes = scene_boxes(derive(self.seed, split), COUNTS[split], self.side)
        return scenes if "mask" in self.judged() else without_masks(scenes)

    def loaded(self, split: str) -> InstanceSet:
        """Return the pictures of a folder of PASCAL VOC, else of COCO."""
        from pathlib import Path

        from trainers.data.coco import load_coco
        from trainers.data.voc import load_voc

        if (Path(self.data) / "ImageSets").is_dir():
            return load_voc(self.data)[split]
        return load_coco(self.data, masks="mask" in self.judged())[split]

    def overlap(self) -> Overlap:
        """Return by how much regions must overlap an object to be of it, or of none."""
        from trainers.blocks.anchors import REGION

        return REGION

    def limits(self) -> Limits:
        """Return which answers are kept."""
        from trainers.blocks.fcos import Limits

        return Limits(self.least, iou=self.iou, most=self.most)

    def score(self, models: Models, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the average precision, and how many objects a proposal overlaps by a half."""
        tally = [0, 0, 0, 0]

        def watched() -> Iterator[Batch]:
            for x_BCHW, truths in batches:
                counts = self.met(models, (x_BCHW, truths))
                tally[:] = [one + more for one, more in zip(tally, counts, strict=True)]
                yield x_BCHW, truths

        scores = super().score(models, watched())
        met, objects, boxes, pictures = tally
        return {**scores, "recall": met / max(objects, 1), "proposals": boxes / max(pictures, 1)}

    def met(self, models: Models, batch: Batch) -> tuple[int, int, int, int]:
        """Return how many objects are met by a proposal, of how many; proposals, and pictures."""
        import torch

        from trainers.blocks.boxes import pair_iou

        (x_BCHW, truths), met = batch, 0
        with torch.no_grad():
            boxes = self.candidates(models, x_BCHW)
        for one, truth in zip(boxes, truths, strict=True):
            if len(one) and len(truth.boxes_N4):
                met += int((pair_iou(truth.boxes_N4.to(one), one).amax(1) >= 0.5).sum())
        objects = sum(len(truth.boxes_N4) for truth in truths)
        return met, objects, sum(map(len, boxes)), len(truths)

    def optimizer(self, group: str, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return SGD if it has momentum, else Adam."""
        from torch.optim import SGD

        if not self.momentum:
            return super().optimizer(group, parameters)
        return SGD(parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.decay)


def without_masks(examples: InstanceSet) -> InstanceSet:
    """Return pictures whose objects have boxes only."""
    from trainers.data.instances import InstanceSet

    def read(index: int) -> tuple[Bytes, Instances]:
        image_HW3, truth = examples[index]
        return image_HW3, truth._replace(masks_NHW=None)

    return InstanceSet(examples.kinds, examples.count, read)
