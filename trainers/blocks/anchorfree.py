"""Detectors whose places say themselves what they are in: FCOS with heads for regions.

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlplatform.task import Mean, Models
from trainers.blocks.detector import Batch, Detector
from trainers.blocks.settings import check

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainers.blocks.fcos import Places
    from trainers.data.instances import Found, Kinds
    from trainers.nets.centermask import CenterMask, Regions
    from trainers.nets.fcos import Dense, HeadShape

BACKBONES = ("tiny", "19-slim-dw", "19-slim", "19", "39", "57", "99")
NORMS = ("group", "batch", "frozen")
KEPT = {
    "": (),
    "stem": ("backbone.layers.stem",),
    "backbone": ("backbone",),
    "detector": ("backbone", "pyramid", "head"),
}
"""Parts of the network whose weights are not trained."""

LEARNT = 0.6
"""Overlap of two boxes above which heads of regions learn from the surer one alone."""
HELD = {"val": 50, "test": 150}
"""Pictures that are drawn to choose and to judge by."""


@dataclass
class AnchorFree(Detector):
    """A detector that names boxes at every place of a pyramid; a subclass says what is drawn."""

    backbone: str = "tiny"
    """Size of VoVNet: tiny, 19-slim-dw, 19-slim, 19, 39, 57 or 99."""
    norm: str = "group"
    """Of the backbone: group, batch, or frozen (batch norm that keeps what was loaded)."""
    width: int = 48
    """Channels of the pyramid; 128 for the Lite and 256 for the full published sizes."""
    levels: int = 3
    """Maps of the pyramid, from stride 8 on: 3 to 5."""
    towers: int = 2
    """Convolutions before classes and before boxes."""
    reach: float = 4.0
    """Strides from a place to the furthest side of its box, at most; 8 for large pictures."""
    attention: bool = True
    """Spatial attention, to compare with and without."""
    fine: bool = False
    """Read regions from a map of stride 4, too."""
    coarse: int = 0
    """Map that a region of the whole picture is read from, 0 for the finest; each finer one is
    for half of the area. CenterMask has the third."""
    most: int = 50
    """Objects of a picture, at most."""
    overlap: float = 0.6
    """Share of two boxes in common above which they are of one object."""
    learnt: int = 6
    """Regions of a picture that masks and joints are learnt from, at most."""
    pictures: int = 600
    """Pictures to train on that are drawn."""
    start: str = ""
    """Folder of a finished run of a detector whose weights to begin with, where they fit."""
    keep: str = ""
    """What stays as it began: stem, backbone, or detector (all but heads of regions)."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        super().__post_init__()
        check("backbone", self.backbone, self.backbone in BACKBONES, ", ".join(BACKBONES))
        check("norm", self.norm, self.norm in NORMS, ", ".join(NORMS))
        fits = 8 <= self.width <= 1024 and self.width % 8 == 0
        check("width", self.width, fits, "8 to 1024 in steps of 8")
        check("levels", self.levels, 3 <= self.levels <= 5, "3 to 5")
        check("towers", self.towers, 1 <= self.towers <= 8, "1 to 8")
        check("reach", self.reach, self.reach > 0, "above 0")
        maps = self.levels + self.fine
        check("coarse", self.coarse, 0 <= self.coarse < maps, f"0 to {maps - 1}")
        check("learnt", self.learnt, 1 <= self.learnt <= 1000, "1 to 1000")
        check("keep", self.keep, self.keep in KEPT, "stem, backbone, detector or nothing")
        check("overlap", self.overlap, 0 < self.overlap <= 1, "above 0, up to 1")
        check("most", self.most, 1 <= self.most <= 1000, "1 to 1000")
        check("pictures", self.pictures, self.pictures >= 1, "1 or more")

    def count(self, split: str) -> int:
        """Return how many pictures of a split are drawn."""
        return HELD.get(split, self.pictures)

    def begin(self, models: Models) -> str:
        """Take the weights of the run ``start`` where they fit; say what begins anew."""
        if not self.start:
            return ""
        from trainers.data.weights import take_fitting

        anew = take_fitting(models, self.start, "task.start")
        return f"weights of {self.start}; anew: {', '.join(anew) or 'none'}"

    def groups(self, models: Models) -> dict[str, Iterable[nn.Parameter]]:
        """Return the parameters that are trained."""
        still = tuple(f"{part}." for part in KEPT[self.keep])
        named = models["net"].named_parameters()
        return {"main": [value for name, value in named if not name.startswith(still)]}

    def network(self, kinds: Kinds) -> nn.Module:
        """Build the network for what the objects of a set may be."""
        from trainers.nets.centermask import Body, CenterMask

        body = Body(self.backbone, self.norm, self.width, self.levels, self.fine)
        return CenterMask(body, self.head(kinds), self.regions(kinds))

    def head(self, kinds: Kinds) -> HeadShape:
        """Return the shape of the head of the boxes."""
        from trainers.nets.fcos import HeadShape

        return HeadShape(len(kinds.names), self.width, self.levels, self.towers)

    def regions(self, kinds: Kinds) -> Regions | None:
        """Return which heads look at regions (default: none)."""
        return None

    def state_weights(self) -> Tensor | None:
        """Return the weights_S of the states in the loss (default: all alike)."""
        return None

    def places(self, x_BCHW: Tensor) -> Places:
        """Return where the answers of all levels are in pictures of a size."""
        from trainers.blocks.fcos import places

        strides = [8 * 2**level for level in range(self.levels)]
        height, width = x_BCHW.shape[2:]
        # Of positive numbers only: ONNX rounds quotients to zero.
        sizes = [((height + s - 1) // s, (width + s - 1) // s) for s in strides]
        return places(sizes, strides, self.reach)

    def dense(self, models: Models, x_BCHW: Tensor) -> tuple[CenterMask, list[Tensor], Dense]:
        """Return the network, its maps of the pictures, and what every place says."""
        from trainers.nets.centermask import CenterMask

        net = models["net"]
        assert isinstance(net, CenterMask)
        maps = net.maps(x_BCHW)
        return net, maps, net.dense(maps)

    def loss(self, models: Models, batch: Batch) -> dict[str, Mean]:
        """Return the losses of classes, boxes and centres, and those of heads of regions."""
        from trainers.blocks.centermask import region_losses
        from trainers.blocks.fcos import dense_loss

        x_BCHW, truths = batch
        net, maps, dense = self.dense(models, x_BCHW)
        terms = dense_loss(dense, self.places(x_BCHW), truths)
        if net.looks:
            answers = self._boxes(dense, x_BCHW, LEARNT), truths
            terms |= region_losses(net, maps, answers, self.learnt, self.state_weights())
        return terms

    def found(self, models: Models, x_BCHW: Tensor) -> list[Found]:
        """Return the boxes that are found in each picture, and what heads of regions say."""
        from trainers.blocks.centermask import completed

        net, maps, dense = self.dense(models, x_BCHW)
        found = self._boxes(dense, x_BCHW, self.overlap)
        size = (x_BCHW.shape[2], x_BCHW.shape[3])
        return completed(net, maps, found, size) if net.looks else found

    def _boxes(self, dense: Dense, x_BCHW: Tensor, overlap: float) -> list[Found]:
        from trainers.blocks.fcos import Limits, decoded

        size = (x_BCHW.shape[2], x_BCHW.shape[3])
        return decoded(dense, self.places(x_BCHW), size, Limits(iou=overlap, most=self.most))
