"""zoo/fast_rcnn: a net sees the picture once, a head looks at regions of selective search.

    dlp train task=zoo/fast_rcnn workers=2 rule=ssgd
    dlp train task=zoo/fast_rcnn workers=2 rule=ssgd task.search=quality

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from dlplatform.task import Mean, Models, task
from trainers.blocks.detector import Batch
from trainers.blocks.searched import Searched
from trainers.blocks.settings import check
from trainers.blocks.twostage import TwoStage, two_stages

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.blocks.anchors import Overlap
    from trainers.data.instances import Found


@task("zoo/fast_rcnn")
@dataclass
class FastRCNN(Searched, TwoStage):
    """Scenes of discs, squares and triangles, found among proposals that are not learnt.

    A batch is a pair (x_BCHW normalised, the objects of each picture, and its proposals as
    objects of no class).

    It answers the slowness of R-CNN: one network does all, and it runs once for a picture, not
    for each proposal; what is left to wait for is selective search.
    """

    source: ClassVar[str] = "Girshick, Fast R-CNN (2015)"
    parameters: ClassVar[int] = 1_104_336
    expected: ClassVar[str] = "0.93"
    title: ClassVar[str] = "Scenes, Fast R-CNN"

    minibatches: int = 240
    pooling: str = "pool"
    box_weight: float = 1.0
    """Of the loss of the boxes; lambda in the paper."""
    floor: float = 0.0
    """Regions that overlap no object by so much are not learnt from; the paper has 0.1."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        super().__post_init__()
        check("box_weight", self.box_weight, self.box_weight >= 0, "0 or more")
        check("floor", self.floor, 0 <= self.floor < 0.5, "0 up to, not including, 0.5")

    def overlap(self) -> Overlap:
        """Return which regions the head learns from."""
        return replace(super().overlap(), floor=self.floor)

    def loss(self, models: Models, batch: Batch) -> dict[str, Mean]:
        """Return the losses of classes and boxes, of some of the proposals.

        With the regions by which the head learns the class, it learns to move boxes: one stage,
        one loss of two terms.
        """
        from trainers.blocks.proposals import apart

        x_BCHW, rows = batch
        net, parts = two_stages(models), [apart(one) for one in rows]
        (map_BCHW,) = net(x_BCHW)
        truths, boxes = [truth for truth, _ in parts], [boxes for _, boxes in parts]
        terms = self.region_loss(net, map_BCHW, boxes, truths)
        far = terms["box"]
        return {**terms, "box": Mean(self.box_weight * far.total, far.number)}

    def found_in(self, models: Models, x_BCHW: Tensor, boxes: Sequence[Tensor]) -> list[Found]:
        """Return what is found in each picture among some boxes of it."""
        import torch

        net = two_stages(models)
        with torch.no_grad():
            (map_BCHW,) = net(x_BCHW)
            return self.answered(net, map_BCHW, boxes, (x_BCHW.shape[2], x_BCHW.shape[3]))
