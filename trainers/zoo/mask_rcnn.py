"""zoo/mask_rcnn: Faster R-CNN with a head that says of each pixel of a region whether it is of it.

    dlp train task=zoo/mask_rcnn workers=2 rule=ssgd
    dlp train task=zoo/mask_rcnn workers=2 rule=ssgd task.pooling=pool

Shape legend: B batch, C channels, H height, W width of a map, N objects, R regions, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from dlplatform.task import Mean, task
from trainers.blocks.settings import check
from trainers.blocks.twostage import Proposer

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.data.instances import Found, Instances, Kinds
    from trainers.nets.rcnn import Sampled
    from trainers.nets.twostage import Heads, Pass, TwoStageNet
    from trainers.scores.overlap import What


@task("zoo/mask_rcnn")
@dataclass
class MaskRCNN(Proposer):
    """Scenes of discs, squares and triangles, found and cut out.

    A batch is a pair (x_BCHW normalised, the objects of each picture).
    """

    source: ClassVar[str] = "He, Gkioxari, Dollar and Girshick, Mask R-CNN (2017)"
    parameters: ClassVar[int] = 1_231_488
    expected: ClassVar[str] = "0.95"
    title: ClassVar[str] = "Scenes, Mask R-CNN"

    masks: int = 32
    """Channels of the mask head; the paper has 256."""
    convs: int = 2
    """Its convolutions; the paper has 4."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        super().__post_init__()
        good = self.masks >= 8 and self.masks % 8 == 0
        check("masks", self.masks, good, "8 or more in steps of 8")
        check("convs", self.convs, 1 <= self.convs <= 8, "1 to 8")

    def judged(self) -> tuple[What, ...]:
        """Judge boxes and masks."""
        return ("box", "mask")

    def heads(self, kinds: Kinds) -> Heads:
        """Return the heads of boxes and masks."""
        return replace(super().heads(kinds), masks=self.masks, convs=self.convs)

    def further_loss(
        self,
        net: TwoStageNet,
        map_BCHW: Tensor,
        first: tuple[Pass, Sampled],
        truths: list[Instances],
    ) -> dict[str, Mean]:
        """Return the loss of the masks: of regions with an object, in the mask of its class."""
        from trainers.blocks.regions import Regions, mask_loss
        from trainers.nets.twostage import MASK_BINS

        assert net.masks is not None, "this task has a mask head"
        _, sampled = first
        boxes, owners = [], []
        for boxes_r4, owner_r in zip(sampled.boxes, sampled.owners, strict=True):
            boxes.append(boxes_r4[owner_r >= 0])
            owners.append(owner_r[owner_r >= 0])
        logits_RKHW = net.masks(net.read(map_BCHW, boxes, MASK_BINS))
        return {"mask": mask_loss(logits_RKHW, Regions(boxes, owners), truths)}

    def answered(
        self, net: TwoStageNet, map_BCHW: Tensor, boxes: Sequence[Tensor], size: tuple[int, int]
    ) -> list[Found]:
        """Return what is found in regions, with the masks of their classes."""
        from trainers.blocks.regions import pasted
        from trainers.blocks.rows import of_class, parted
        from trainers.nets.twostage import MASK_BINS

        assert net.masks is not None, "this task has a mask head"
        answers = super().answered(net, map_BCHW, boxes, size)
        again = [one.boxes_N4 for one in answers]
        chance_RKHW = net.masks(net.read(map_BCHW, again, MASK_BINS)).sigmoid()
        made = []
        for one, chance_NKHW in zip(answers, parted(chance_RKHW, again), strict=True):
            own_NHW = of_class(chance_NKHW, one.labels_N)
            made.append(one._replace(masks_NHW=pasted(own_NHW, one.boxes_N4, size)))
        return made
