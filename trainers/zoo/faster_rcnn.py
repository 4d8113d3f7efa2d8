"""zoo/faster_rcnn: a network that proposes regions itself, and a head that looks at each.

    dlp train task=zoo/faster_rcnn workers=2 rule=ssgd
    dlp train task=zoo/faster_rcnn workers=2 rule=ssgd task.schedule=alternating
    dlp train task=zoo/faster_rcnn workers=2 rule=ssgd task.ratios=1

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dlplatform.task import Mean, Models, Terms, task
from trainers.blocks.settings import check
from trainers.blocks.twostage import Proposer, two_stages

if TYPE_CHECKING:
    from torch import Tensor, nn

PROPOSALS, REGIONS, ASKED = ("rpn_class", "rpn_box"), ("class", "box"), ("for_class", "for_box")
"""Terms of the loss: of the proposals, of the regions, and of the layers that regions share."""
SCHEDULES = ("joint", "alternating")
PROPOSE, DETECT, PROPOSE_AGAIN, DETECT_AGAIN = range(4)
"""The four steps of the alternating schedule; in the last two the shared layers stay."""


@task("zoo/faster_rcnn")
@dataclass
class FasterRCNN(Proposer):
    """Scenes of discs, squares and triangles on an uneven ground.

    A batch is a pair (x_BCHW normalised, the objects of each picture); in the alternating schedule
    its number follows.
    """

    source: ClassVar[str] = "Ren, He, Girshick and Sun, Faster R-CNN (2015)"
    parameters: ClassVar[int] = 1_181_053
    expected: ClassVar[str] = "0.95"
    title: ClassVar[str] = "Scenes, Faster R-CNN"

    schedule: str = "joint"
    """joint: proposals and regions are learnt together; alternating: in four steps, first the
    proposals, then the regions, then each again above shared layers that stay."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        super().__post_init__()
        check("schedule", self.schedule, self.schedule in SCHEDULES, "joint or alternating")

    def batch(self, split: str, number: int) -> Any:
        """Return minibatch ``number``."""
        pair = super().batch(split, number)
        return pair if self.schedule == "joint" else (*pair, number)

    def groups(self, models: Models) -> dict[str, Iterable[nn.Parameter]]:
        """Return all as one group; in the alternating schedule the heads are one of their own."""
        if self.schedule == "joint":
            return super().groups(models)
        net = two_stages(models)
        assert net.rpn is not None, "this task has a proposal network"
        return {
            "rpn": [*net.trunk.parameters(), *net.rpn.parameters()],
            "head": net.boxes.parameters(),
        }

    def losses(self, models: Models, batch: Any) -> Iterator[tuple[str, Tensor | Terms]]:
        """Yield the loss; in the alternating schedule those of both groups, one of which rests."""
        if self.schedule == "joint":
            yield from super().losses(models, batch)
        else:
            yield from self._alternating(models, *batch)

    def step_of(self, number: int) -> int:
        """Return which of the four steps a minibatch is of: each has a quarter of the run."""
        return min(3, 4 * number // self.minibatches)

    def _alternating(
        self, models: Models, x_BCHW: Tensor, truths: list[Any], number: int
    ) -> Iterator[tuple[str, Tensor | Terms]]:
        import torch

        net, step = two_stages(models), self.step_of(number)
        assert net.rpn is not None, "this task has a proposal network"
        size = (x_BCHW.shape[2], x_BCHW.shape[3])
        map_BCHW = net.trunk(x_BCHW)
        seen_BCHW = map_BCHW.detach().requires_grad_()
        # Both groups step in every minibatch with the same terms: no worker waits for another
        # that is a step ahead.
        first, second = resting(net.rpn, PROPOSALS + ASKED), resting(net.boxes, REGIONS)
        if step in (PROPOSE, PROPOSE_AGAIN):
            own_BCHW = map_BCHW if step == PROPOSE else seen_BCHW
            first |= net.rpn.loss(net.rpn(own_BCHW), net.rpn.boxes(own_BCHW), truths, size)
        else:
            boxes = self.proposals(net, (seen_BCHW, *net.rpn(seen_BCHW)), x_BCHW)
            second |= self.region_loss(net, seen_BCHW, boxes, truths)
        if step == DETECT:  # what the regions ask of the shared layers, which the first group holds
            for asked, name in zip(ASKED, REGIONS, strict=True):
                total, count = second[name]
                (slope_BCHW,) = torch.autograd.grad(total, seen_BCHW, retain_graph=True)
                told = ((map_BCHW - seen_BCHW.detach()) * slope_BCHW).sum()
                first[asked] = Mean(told, count)
        yield "head", second
        yield "rpn", first


def resting(net: nn.Module, names: Iterable[str]) -> dict[str, Mean]:
    """Return terms of a loss that ask nothing of a network."""
    return {name: Mean(next(net.parameters()).sum() * 0.0, 0.0) for name in names}
