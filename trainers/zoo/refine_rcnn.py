"""zoo/refine_rcnn: Faster R-CNN that looks at its boxes again, and blurs plates and faces.

    dlp train task=zoo/refine_rcnn workers=2 rule=ssgd
    dlp predict runs/NAME street.jpg

Shape legend: B batch, C channels, H height, W width of a map, R regions, 3 RGB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dlplatform.seeds import derive
from dlplatform.task import Mean, Models, task
from trainers.blocks.candidates import COUNTS
from trainers.blocks.detector import Batch
from trainers.blocks.settings import check
from trainers.blocks.twostage import Proposer, two_stages

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.data.instances import Found, Instances, InstanceSet, Kinds
    from trainers.data.scenes import Bytes
    from trainers.nets.rcnn import Sampled
    from trainers.nets.twostage import Heads, Pass, TwoStageNet

RISE = 0.1
"""By how much more boxes must overlap in each look of heads of their own (Cascade R-CNN)."""


@task("zoo/refine_rcnn")
@dataclass
class RefineRCNN(Proposer):
    """Streets with number plates and faces, which it finds and blurs.

    A batch is a pair (x_BCHW normalised, the objects of each picture).
    """

    source: ClassVar[str] = "Roh and Lee, Refining Faster-RCNN for accurate object detection (2017)"
    parameters: ClassVar[int] = 979_800
    expected: ClassVar[str] = "0.96"
    title: ClassVar[str] = "Plates and faces, RF-R-CNN"

    net: str = "fine"
    anchors: str = "8 16 32"
    minibatches: int = 320
    lr: float = 3e-3
    shown: float = 0.3
    refine: int = 2
    """How often boxes are looked at again; 0: Faster R-CNN."""
    shared: bool = True
    """All looks share one head, the repeated section; else each has its own, and its objects
    must overlap more and more: Cascade R-CNN."""
    shared_px: int = 64
    """Pixels that neighbouring tiles of large pictures share, at least as large as an object."""
    halvings: int = 2
    """How often a picture is halved and looked at again, for what is nearer than in the
    pictures that it learnt from."""
    crops: int = 8
    """Squares of ``side`` pixels that are cut out of each picture of a folder."""
    blur: str = "gauss"
    """gauss, or mosaic."""
    grow: float = 0.1
    """Share of its sides by which a box is enlarged before it is blurred."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        super().__post_init__()
        check("refine", self.refine, 0 <= self.refine <= 8, "0 to 8")
        fits = 0 <= self.shared_px < self.side
        check("shared_px", self.shared_px, fits, f"0 up to, not including, side={self.side}")
        check("halvings", self.halvings, 0 <= self.halvings <= 8, "0 to 8")
        check("crops", self.crops, self.crops >= 1, "1 or more")
        check("blur", self.blur, self.blur in ("gauss", "mosaic"), "gauss or mosaic")
        check("grow", self.grow, 0 <= self.grow <= 1, "0 to 1")

    def drawn(self, split: str) -> InstanceSet:
        """Return squares of streets, drawn."""
        from trainers.synth.panorama import SMALL, panoramas

        look = replace(SMALL, height=self.side, width=self.side)
        return panoramas(derive(self.seed, split), COUNTS[split], look)

    def loaded(self, split: str) -> InstanceSet:
        """Return squares cut out of the pictures of a folder, at their own size."""
        from trainers.blocks.tiles import crops

        return crops(super().loaded(split), self.side, self.crops, derive(self.seed, split))

    def heads(self, kinds: Kinds) -> Heads:
        """Return the head, or heads, of all looks."""
        return replace(super().heads(kinds), passes=1 + self.refine, shared=self.shared)

    def further_loss(
        self,
        net: TwoStageNet,
        map_BCHW: Tensor,
        first: tuple[Pass, Sampled],
        truths: list[Instances],
    ) -> dict[str, Mean]:
        """Return the losses of the looks at where the first one moved its regions."""
        from trainers.nets.rcnn import Sampling, box_loss, sample_regions

        look, terms = first[0], dict[str, Mean]()
        size = (map_BCHW.shape[2] * net.trunk.stride, map_BCHW.shape[3] * net.trunk.stride)
        for number in range(1, 1 + self.refine):
            must = self.overlap()
            if not self.shared:
                most = must.high + RISE * number
                must = replace(must, high=most, low=most)
            # All of them, and nothing else: the head learns what to say where it leads to.
            how = Sampling(must, count=1_000_000, share=1.0, truth=False)
            boxes = net.moved(look, size)
            sampled = sample_regions(boxes, truths, net.shape.classes, how)
            look = net.look(map_BCHW, sampled.boxes, number)
            found = box_loss(look.answer, sampled)
            terms |= {f"{name}{number + 1}": term for name, term in found.items()}
        return terms

    def look(self, models: Models, image_HW3: Bytes) -> Found:
        """Return what is surely found in a picture of any size, tile by tile, at a few sizes."""
        from trainers.blocks.tiles import Tiles, found_in_tiles
        from trainers.synth.instance_views import View

        whole = super().look

        def at(tile_HW3: Bytes) -> Found:
            return whole(models, View(self.side, 1.0).image(tile_HW3))

        tiles = Tiles(self.side, self.shared_px, self.halvings)
        return found_in_tiles(image_HW3, at, tiles, self.iou)

    def predict(self, models: Models, raw: Path) -> dict[str, Any]:
        """Write a picture or a film with plates and faces blurred, and an audit, in ``blurred``."""
        from trainers.blocks.blur import Blur
        from trainers.pipeline.watch import blur_file

        kinds, how = self.examples("test").kinds, Blur(self.blur, self.grow)
        return blur_file(raw, lambda image_HW3: self.look(models, image_HW3), kinds, how)

    def score(self, models: Models, batches: Iterable[Batch]) -> dict[str, float]:
        """Return average precision, recall of what would be blurred, and IoU after each look.

        ``missed`` is the share of plates and faces that are not blurred; ``iou1`` is the mean
        overlap of regions with their objects after the first look, ``iou2`` after the second, ...
        """
        totals = [0.0] * (2 + self.refine)

        def watched() -> Iterator[Batch]:
            for x_BCHW, truths in batches:
                for place, more in enumerate(self.overlaps(models, x_BCHW, truths)):
                    totals[place] += more
                yield x_BCHW, truths

        held = self.tally(models, watched())
        at = held.at(self.shown)
        counted = max(totals[-1], 1.0)
        grown = {f"iou{number + 1}": total / counted for number, total in enumerate(totals[:-1])}
        return {**held.scores(), "recall": at["recall"], "missed": 1 - at["recall"], **grown}

    def overlaps(self, models: Models, x_BCHW: Tensor, truths: list[Instances]) -> list[float]:
        """Return sums of the overlaps of regions with their objects after each look; their number.

        The regions are the proposals that overlap an object by a half or more.
        """
        import torch

        from trainers.blocks.anchors import OBJECT, judge
        from trainers.blocks.boxes import iou

        net, size = two_stages(models), (x_BCHW.shape[2], x_BCHW.shape[3])
        with torch.no_grad():
            answer = net(x_BCHW)
            boxes = self.proposals(net, answer, x_BCHW)
            looks = net.passes(answer[0], boxes, size)
            places = [*(look.boxes for look in looks[1:]), net.moved(looks[-1], size)]
        sums = [0.0] * (len(places) + 1)
        for number, truth in enumerate(truths):
            judged = judge(boxes[number], truth, self.overlap())
            there = judged.kind_A == OBJECT
            truth_R4 = truth.boxes_N4[judged.object_A[there]]
            for place, moved in enumerate(places):
                sums[place] += float(iou(moved[number][there], truth_R4).sum())
            sums[-1] += float(there.sum())
        return sums
