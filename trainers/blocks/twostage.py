"""Detectors that first propose regions and then look at each: all but what tells them apart.

Shape legend: B batch, C channels, H height, W width, R regions, K classes, N objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from dlplatform.task import Mean, Models
from trainers.blocks.candidates import Judging
from trainers.blocks.detector import Batch
from trainers.blocks.settings import check

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainers.data.instances import Found, Instances, Kinds
    from trainers.nets.rcnn import Sampled
    from trainers.nets.rpn import ProposalNet
    from trainers.nets.twostage import Heads, Pass, Trunk, TwoStageNet

NETS = {
    "tiny": ((11, 0.25, True), ("relu4_2",), 0),
    "fine": ((11, 0.25, True), ("relu3_2", "relu4_2"), 96),
    "vgg16": ((16, 1.0, False), ("relu5_3",), 0),
}
"""Depth, width and BatchNorm of a VGG; the layers whose maps are looked at; channels if joined."""
POOLINGS = ("align", "pool")
ROW = "numbers above 0 with spaces between"


@dataclass
class TwoStage(Judging):
    """A detector of two stages; a subclass says where proposals come from.

    A batch is a pair (x_BCHW normalised, the objects of each picture).
    """

    net: str = "tiny"
    """tiny: VGG-11 of a quarter of the channels with BatchNorm, a map of stride 8; fine: the same,
    joined with the map of stride 4; vgg16: as published, stride 16."""
    pooling: str = "align"
    """align reads regions between pixels (Mask R-CNN); pool takes whole ones (Fast R-CNN)."""
    hidden: int = 128
    """Units of both hidden layers of the head; the papers have 4096."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        super().__post_init__()
        check("net", self.net, self.net in NETS, ", ".join(NETS))
        check("pooling", self.pooling, self.pooling in POOLINGS, "align or pool")
        check("hidden", self.hidden, self.hidden >= 1, "1 or more")

    def network(self, kinds: Kinds) -> nn.Module:
        """Build trunk, proposal network and heads."""
        from trainers.nets.twostage import Trunk, TwoStageNet
        from trainers.nets.vgg import VGG, Head

        shape, names, joined = NETS[self.net]
        trunk = Trunk(VGG(*shape, Head(1, 1, 32)), names, joined)
        return TwoStageNet(trunk, self.proposer(trunk), self.heads(kinds))

    def proposer(self, trunk: Trunk) -> ProposalNet | None:
        """Return the proposal network for a trunk's map (default: none)."""
        return None

    def heads(self, kinds: Kinds) -> Heads:
        """Return what looks at regions."""
        from trainers.nets.twostage import Heads

        return Heads(len(kinds.names), self.pooling, hidden=self.hidden)

    def loss(self, models: Models, batch: Batch) -> dict[str, Mean]:
        """Return the losses of the proposal network and of the heads."""
        x_BCHW, truths = batch
        net = two_stages(models)
        map_BCHW, *answer = net(x_BCHW)
        size = (x_BCHW.shape[2], x_BCHW.shape[3])
        assert net.rpn is not None, "who has none overrides this"
        anchors_A4 = net.rpn.boxes(map_BCHW)
        logits_BA, deltas_BA4 = answer
        terms = net.rpn.loss((logits_BA, deltas_BA4), anchors_A4, truths, size)
        boxes = net.rpn.propose((logits_BA, deltas_BA4), anchors_A4, size)
        return {**terms, **self.region_loss(net, map_BCHW, boxes, truths)}

    def region_loss(
        self, net: TwoStageNet, map_BCHW: Tensor, boxes: Sequence[Tensor], truths: list[Instances]
    ) -> dict[str, Mean]:
        """Return the losses of the heads, which learn from some of the proposals."""
        from trainers.nets.rcnn import Sampling, box_loss, sample_regions

        how = Sampling(self.overlap(), self.regions)
        sampled = sample_regions(boxes, truths, net.shape.classes, how)
        look = net.look(map_BCHW, sampled.boxes)
        further = self.further_loss(net, map_BCHW, (look, sampled), truths)
        return {**box_loss(look.answer, sampled), **further}

    def further_loss(
        self,
        net: TwoStageNet,
        map_BCHW: Tensor,
        first: tuple[Pass, Sampled],
        truths: list[Instances],
    ) -> dict[str, Mean]:
        """Return more losses of regions, after the first look (default: none)."""
        return {}

    def proposals(self, net: TwoStageNet, answer: Sequence[Tensor], x_BCHW: Tensor) -> list[Tensor]:
        """Return the boxes of each picture that the heads should look at.

        ``answer`` is what the network says of the pictures: the map, and more if it proposes.
        """
        map_BCHW, logits_BA, deltas_BA4 = answer
        assert net.rpn is not None, "who has none overrides this"
        size = (x_BCHW.shape[2], x_BCHW.shape[3])
        return net.rpn.propose((logits_BA, deltas_BA4), net.rpn.boxes(map_BCHW), size)

    def candidates(self, models: Models, x_BCHW: Tensor) -> list[Tensor]:
        """Return the proposals of each picture."""
        net = two_stages(models)
        return self.proposals(net, net(x_BCHW), x_BCHW)

    def found(self, models: Models, x_BCHW: Tensor) -> list[Found]:
        """Return what is found in each picture."""
        import torch

        net = two_stages(models)
        with torch.no_grad():
            answer = net(x_BCHW)
            boxes = self.proposals(net, answer, x_BCHW)
            return self.answered(net, answer[0], boxes, (x_BCHW.shape[2], x_BCHW.shape[3]))

    def answered(
        self, net: TwoStageNet, map_BCHW: Tensor, boxes: Sequence[Tensor], size: tuple[int, int]
    ) -> list[Found]:
        """Return what is found in regions."""
        return self.decided(net.passes(map_BCHW, boxes, size), size)

    def decided(self, looks: list[Pass], size: tuple[int, int]) -> list[Found]:
        """Return what is found: chances are the mean of all looks at a region."""
        import torch

        from trainers.blocks.rows import parted
        from trainers.nets.rcnn import detected, moved

        chances_RK = torch.stack([look.logits_RK.softmax(1) for look in looks]).mean(0)
        last = looks[-1]
        boxes_RK4 = moved(torch.cat(last.boxes), last.deltas_RK4, size)
        return [
            detected(chances_rK, boxes_rK4, self.limits())[0]
            for chances_rK, boxes_rK4 in zip(
                parted(chances_RK, last.boxes), parted(boxes_RK4, last.boxes), strict=True
            )
        ]


@dataclass
class Proposer(TwoStage):
    """A detector of two stages whose first is a region proposal network."""

    anchors: str = "16 32 64"
    """Square roots of the anchors' areas in pixels; the paper has 128 256 512, of 600 pixels."""
    ratios: str = "0.5 1 2"
    """Heights of the anchors by their widths."""
    inner: int = 64
    """Channels of the proposal network; the papers have 512."""
    minibatches: int = 300
    sampled: int = 128
    """Anchors of a picture that it learns from; the paper has 256."""
    ranked: int = 400
    """Proposals before suppression."""
    kept: int = 100
    """Proposals after it."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        super().__post_init__()
        check("anchors", self.anchors, all(n > 0 for n in numbers("anchors", self.anchors)), ROW)
        check("ratios", self.ratios, all(n > 0 for n in numbers("ratios", self.ratios)), ROW)
        check("inner", self.inner, self.inner >= 1, "1 or more")
        check("sampled", self.sampled, self.sampled >= 2, "2 or more")
        check("kept", self.kept, 1 <= self.kept <= self.ranked, f"1 to ranked={self.ranked}")

    def proposer(self, trunk: Trunk) -> ProposalNet | None:
        """Return the proposal network."""
        from trainers.blocks.anchors import Anchors
        from trainers.nets.rpn import ProposalNet, Proposing

        sizes, ratios = numbers("anchors", self.anchors), numbers("ratios", self.ratios)
        how = Proposing(sampled=self.sampled, ranked=self.ranked, kept=self.kept)
        return ProposalNet(trunk.channels, Anchors(sizes, ratios, trunk.stride), self.inner, how)


def numbers(name: str, text: str) -> tuple[float, ...]:
    """Return the numbers in a setting; raises UsageError where there are others or none."""
    words = text.split()
    check(name, text, bool(words) and all(_is_number(word) for word in words), ROW)
    return tuple(map(float, words))


def _is_number(word: str) -> bool:
    return word.replace(".", "", 1).isdigit()


def two_stages(models: Models) -> TwoStageNet:
    """Return the network of a task."""
    return cast("TwoStageNet", models["net"])
