"""Heads that look at regions: what is in a box, and where exactly.

Source: Girshick, Fast R-CNN (2015); He, Gkioxari, Dollar and Girshick, Mask R-CNN (2017).

Shape legend: B batch, C channels, H height, W width of a map, R regions, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from dlplatform.task import Mean
from kernels.vision import batched_nms, roi_align, roi_pool
from trainers.blocks.anchors import OBJECT, REGION, Overlap, choose, judge
from trainers.blocks.boxes import clip, from_deltas, large_enough, to_deltas
from trainers.blocks.fcos import Limits
from trainers.blocks.rows import of_class
from trainers.data.instances import Found, Instances

POOLINGS = ("align", "pool")
WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Of the deltas of a region: they are small, and would hardly be learnt (Fast R-CNN, footnote)."""


@dataclass(frozen=True)
class Sampling:
    """Which regions a head learns from."""

    overlap: Overlap = REGION
    count: int = 64
    """Regions of a picture."""
    share: float = 0.25
    """Of them with objects, at most."""
    truth: bool = True
    """The true boxes are among what is sampled from."""


class Sampled(NamedTuple):
    """Regions of a batch that a head learns from."""

    boxes: list[Tensor]
    """[r, 4] of each picture."""
    labels_R: Tensor
    """Classes, K where there is no object."""
    truth_R4: Tensor
    """The object's box; the region's own where there is none."""
    owners: list[Tensor]
    """[r] of each picture: the number of its object, -1 where there is none."""


def sample_regions(
    boxes: Sequence[Tensor], truths: Sequence[Instances], classes: int, how: Sampling
) -> Sampled:
    """Return some proposals of each picture with what is in them."""
    chosen, labels, wanted, owners = [], [], [], []
    for every_R4, truth in zip(boxes, truths, strict=True):
        if how.truth:
            real = truth if truth.ignored_N is None else truth.take(~truth.ignored_N)
            every_R4 = torch.cat([every_R4, real.boxes_N4])
        judged = judge(every_R4, truth, how.overlap)
        picked = choose(judged.kind_A, how.count, how.share)
        there = judged.kind_A[picked] == OBJECT
        owner_R = torch.where(there, judged.object_A[picked], -1)
        picked_R4 = every_R4[picked]
        label_R, truth_R4 = torch.full_like(owner_R, classes), picked_R4.clone()
        label_R[there] = truth.labels_N[owner_R[there]]
        truth_R4[there] = truth.boxes_N4[owner_R[there]]
        chosen.append(picked_R4)
        labels.append(label_R)
        wanted.append(truth_R4)
        owners.append(owner_R)
    return Sampled(chosen, torch.cat(labels), torch.cat(wanted), owners)


def read_regions(
    map_BCHW: Tensor, boxes: Sequence[Tensor], size: int, stride: float, pooling: str = "align"
) -> Tensor:
    """Return what a map shows of regions as [R, C, size, size].

    ``align`` reads between pixels, two by two samples in each bin; ``pool`` takes the largest
    value of bins of whole pixels.
    """
    if pooling == "align":
        return roi_align(map_BCHW, list(boxes), size, 1 / stride, sampling_ratio=2)
    return roi_pool(map_BCHW, list(boxes), size, 1 / stride)


class BoxHead(nn.Module):
    """Two linear layers, then the class of a region and how its box should move for each class."""

    def __init__(self, channels: int, classes: int, size: int = 7, hidden: int = 128) -> None:
        """Build the layers; answers start near zero, with deviations 0.01 and 0.001."""
        super().__init__()
        self.classes = classes
        self.body = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * size**2, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
        )
        for layer in (self.body[1], self.body[3]):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.score = nn.Linear(hidden, classes + 1)
        self.move = nn.Linear(hidden, 4 * classes)
        for layer, deviation in ((self.score, 0.01), (self.move, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, read_RCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits_RK of the classes and of nothing, and deltas_RK4 of each class."""
        hidden_RC = self.body(read_RCHW)
        return self.score(hidden_RC), self.move(hidden_RC).unflatten(1, (self.classes, 4))


def best_moved(boxes_R4: Tensor, answer: tuple[Tensor, Tensor], size: tuple[int, int]) -> Tensor:
    """Return the boxes_R4 that a head makes of regions for the likeliest class of each."""
    logits_RK, deltas_RK4 = answer
    best_R = logits_RK[:, :-1].argmax(1)
    return moved(boxes_R4, of_class(deltas_RK4, best_R)[:, None], size)[:, 0]


def moved(boxes_R4: Tensor, deltas_RK4: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the boxes_RK4 that a head makes of regions, cut to pictures of (height, width)."""
    return clip(from_deltas(boxes_R4[:, None], deltas_RK4, WEIGHTS), *size)


def box_loss(answer: tuple[Tensor, Tensor], sampled: Sampled) -> dict[str, Mean]:
    """Return the terms of Fast R-CNN's loss, both means over all sampled regions."""
    logits_RK, deltas_RK4 = answer
    labels_R, boxes_R4 = sampled.labels_R, torch.cat(sampled.boxes)
    there = (labels_R < deltas_RK4.shape[1]).nonzero().flatten()
    wanted = to_deltas(boxes_R4[there], sampled.truth_R4[there], WEIGHTS)
    wrong = functional.cross_entropy(logits_RK, labels_R, reduction="sum")
    far = functional.smooth_l1_loss(deltas_RK4[there, labels_R[there]], wanted, reduction="sum")
    return {"class": Mean(wrong, len(labels_R)), "box": Mean(far, len(labels_R))}


def detected(chances_RK: Tensor, boxes_RK4: Tensor, limits: Limits) -> tuple[Found, Tensor]:
    """Return what a picture's regions are, of their chances and boxes for each class; and which.

    The last chance, of nothing, is left out; of boxes of a class that cover each other the best
    stays.
    """
    scores_RK = chances_RK[:, :-1]
    region, label = (scores_RK > limits.least).nonzero(as_tuple=True)
    scores_N, boxes_N4 = scores_RK[region, label], boxes_RK4[region, label]
    good = large_enough(boxes_N4, 1.0).nonzero()[:, 0]
    scores_N, boxes_N4, label, region = (
        values[good] for values in (scores_N, boxes_N4, label, region)
    )
    kept = batched_nms(boxes_N4, scores_N, label, limits.iou)[: limits.most]
    return Found(boxes_N4[kept], label[kept], scores_N[kept]), region[kept]
