"""human/instances: where the objects of a picture are, of which of 80 kinds, and their outlines.

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dlplatform.seeds import derive
from dlplatform.task import Mean, Models, task
from trainers.blocks.anchorfree import AnchorFree
from trainers.blocks.detector import Batch
from trainers.blocks.settings import check

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.data.instances import Found, InstanceSet, Kinds
    from trainers.nets.centermask import Regions

COUNTS = {"train": 600, "val": 100, "test": 200}


@task("human/instances")
@dataclass
class Objects(AnchorFree):
    """Objects found and cut out at once.

    A batch is a pair (x_BCHW normalised, the objects of each picture).
    """

    source: ClassVar[str] = "Lee and Park, CenterMask (2020)"
    parameters: ClassVar[int] = 1
    expected: ClassVar[str] = "0.80"
    title: ClassVar[str] = "Objects"

    masks: bool = True
    """Cut objects out, too; without it is quicker."""
    learnt: int = 16
    """Regions of a picture that masks are learnt from, at most."""
    classes: int = 8
    """Kinds of objects that are drawn, up to 80."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        super().__post_init__()
        check("classes", self.classes, 1 <= self.classes <= 80, "1 to 80")

    def regions(self, kinds: Kinds) -> Regions | None:
        """Return the head of the masks."""
        from trainers.nets.centermask import Regions

        if not self.masks:
            return None
        return Regions(True, 0, self.attention, self.width, self.towers)

    def loss(self, models: Models, batch: Batch) -> dict[str, Mean]:
        """Return the losses of classes, boxes, centres and masks."""
        from trainers.blocks.fcos import decoded, dense_loss
        from trainers.blocks.levels import pooled
        from trainers.blocks.regions import mask_loss, regions_of, with_mask
        from trainers.nets.roi_heads import BINS

        x_BCHW, truths = batch
        net, maps, dense = self.dense(models, x_BCHW)
        terms = dense_loss(dense, self.places(x_BCHW), truths)
        if net.masks is not None:
            found = decoded(dense, self.places(x_BCHW), x_BCHW.shape[2:], self.limits())
            regions = regions_of(found, truths, self.learnt, with_mask)
            read_RCHW = pooled(maps, net.strides, regions.boxes, BINS)
            terms["masks"] = mask_loss(net.masks(read_RCHW), regions, truths)
        return terms

    def found(self, models: Models, x_BCHW: Tensor) -> list[Found]:
        """Return the boxes that are found in each picture, with their masks."""
        import torch

        from trainers.blocks.fcos import decoded
        from trainers.blocks.levels import pooled
        from trainers.blocks.regions import pasted
        from trainers.nets.roi_heads import BINS

        net, maps, dense = self.dense(models, x_BCHW)
        size = (x_BCHW.shape[2], x_BCHW.shape[3])
        answers = decoded(dense, self.places(x_BCHW), size, self.limits())
        if net.masks is None:
            return answers
        boxes = [one.boxes_N4 for one in answers]
        chances = net.masks(pooled(maps, net.strides, boxes, BINS)).sigmoid()
        made = []
        for one, chance_DKHW in zip(answers, chances.split([len(b) for b in boxes]), strict=True):
            own_DHW = chance_DKHW[torch.arange(len(one.labels_N)), one.labels_N]
            made.append(one._replace(masks_NHW=pasted(own_DHW, one.boxes_N4, size)))
        return made

    def drawn(self, split: str) -> InstanceSet:
        """Return pictures of shapes in textures."""
        from trainers.synth.objects import objects

        return objects(derive(self.seed, split), COUNTS[split], self.classes, self.side)

    def loaded(self, split: str) -> InstanceSet:
        """Return the pictures of a folder in COCO's format."""
        raise NotImplementedError
