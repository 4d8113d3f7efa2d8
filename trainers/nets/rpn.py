"""The region proposal network: at every place of a map, is there an object, and where exactly?

Source: Ren, He, Girshick and Sun, Faster R-CNN (2015), section 3.1.

Shape legend: B batch, C channels, H height, W width of a map, K anchors at a place, A all anchors,
N boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from dlplatform.task import Mean
from kernels.vision import nms
from trainers.blocks.anchors import ANCHOR, OBJECT, Anchors, Overlap, choose, judge, within
from trainers.blocks.boxes import clip, from_deltas, large_enough, to_deltas
from trainers.data.instances import Instances

LEAST = 2.0
"""Pixels of the shorter side of a proposal."""


@dataclass(frozen=True)
class Proposing:
    """How proposals are made, and what their network learns from."""

    overlap: Overlap = ANCHOR
    sampled: int = 128
    """Anchors of a picture to learn from, half of them of objects where there are so many; the
    paper has 256."""
    ranked: int = 600
    """Proposals before suppression."""
    kept: int = 100
    """Proposals after it."""
    iou: float = 0.7
    """Overlap from which the worse of two proposals goes."""


class ProposalNet(nn.Module):
    """A 3x3 convolution, then for each anchor whether it is an object and how far from it."""

    def __init__(
        self, channels: int, anchors: Anchors, inner: int = 256, how: Proposing | None = None
    ) -> None:
        """Build the layers, their weights from N(0, 0.01) as in the paper."""
        super().__init__()
        self.anchors, self.how = anchors, how or Proposing()
        self.shared = nn.Conv2d(channels, inner, 3, padding=1)
        self.objectness = nn.Conv2d(inner, len(anchors), 1)
        self.deltas = nn.Conv2d(inner, 4 * len(anchors), 1)
        for layer in (self.shared, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        # The map goes through a ReLU of its own: He's weights keep its strength.
        nn.init.kaiming_normal_(self.shared.weight, nonlinearity="relu")

    def forward(self, map_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits_BA of objects and deltas_BA4 from the anchors, place by place."""
        inner_BCHW = self.shared(map_BCHW).relu()
        logits_BA = self.objectness(inner_BCHW).permute(0, 2, 3, 1).flatten(1)
        deltas_BHWK = self.deltas(inner_BCHW).permute(0, 2, 3, 1)
        return logits_BA, deltas_BHWK.reshape(len(map_BCHW), -1, 4)

    def boxes(self, map_BCHW: Tensor) -> Tensor:
        """Return the anchors_A4 of a map."""
        return self.anchors.boxes(map_BCHW.shape[2], map_BCHW.shape[3], map_BCHW)

    @torch.no_grad()
    def propose(
        self, answer: tuple[Tensor, Tensor], anchors_A4: Tensor, size: tuple[int, int]
    ) -> list[Tensor]:
        """Return the proposals_N4 of each picture of (height, width), the likeliest first."""
        found = []
        for logits_A, deltas_A4 in zip(*answer, strict=True):
            top_N = logits_A.topk(min(self.how.ranked, len(logits_A))).indices
            boxes_N4 = clip(from_deltas(anchors_A4[top_N], deltas_A4[top_N]), *size)
            good_N = large_enough(boxes_N4, LEAST)
            boxes_N4, scores_N = boxes_N4[good_N], logits_A[top_N][good_N]
            found.append(boxes_N4[nms(boxes_N4, scores_N, self.how.iou)[: self.how.kept]])
        return found

    def loss(
        self,
        answer: tuple[Tensor, Tensor],
        anchors_A4: Tensor,
        truths: Sequence[Instances],
        size: tuple[int, int],
    ) -> dict[str, Mean]:
        """Return the terms of the loss over some anchors of each picture.

        Both are means over all sampled anchors (the paper's lambda = 1 with N_reg = N_cls).
        Anchors that cross the border of the pictures of (height, width) are left out.
        """
        inside_A = within(anchors_A4, *size)
        inside = inside_A.nonzero().flatten()
        logits, kinds, moved, wanted = [], [], [], []
        for logits_A, deltas_A4, truth in zip(*answer, truths, strict=True):
            judged = judge(anchors_A4[inside], truth, self.how.overlap)
            picked = choose(judged.kind_A, self.how.sampled, 0.5)
            kind_A = judged.kind_A[picked]
            logits.append(logits_A[inside[picked]])
            kinds.append(kind_A)
            found = picked[kind_A == OBJECT]
            moved.append(deltas_A4[inside[found]])
            boxes_N4 = truth.boxes_N4[judged.object_A[found]]
            wanted.append(to_deltas(anchors_A4[inside[found]], boxes_N4))
        kind_A = torch.cat(kinds)
        wrong = functional.binary_cross_entropy_with_logits(
            torch.cat(logits), kind_A.float(), reduction="sum"
        )
        far = functional.smooth_l1_loss(torch.cat(moved), torch.cat(wanted), reduction="sum")
        return {"rpn_class": Mean(wrong, len(kind_A)), "rpn_box": Mean(far, len(kind_A))}
