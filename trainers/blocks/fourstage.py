"""What the stages of R-CNN learn: to name regions, to separate classes, to move boxes.

Source: Girshick, Donahue, Darrell and Malik, R-CNN (2014), section 2.3, appendices B and C.

Shape legend: R regions, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional

from dlplatform.task import Mean, Models
from trainers.blocks.anchors import NOTHING, Overlap, judge
from trainers.blocks.boxes import to_deltas
from trainers.blocks.svm import REFUSED, LinearSVM, hardest, hinge
from trainers.data.instances import Instances
from trainers.nets.crops import BoxRegressor, CropNet, even
from trainers.nets.rcnn import Sampling, sample_regions

FAR, NEAR = Overlap(0.3, 0.3, best=False), Overlap(0.6, 0.6, best=False)
"""Proposals below are no objects for support vector machines; from the other on they are moved."""


class Seen(NamedTuple):
    """The pictures of a minibatch."""

    truths: Sequence[Instances]
    boxes: Sequence[Tensor]
    """Proposals of each picture."""
    cut: Callable[[Sequence[Tensor]], Tensor]
    """Returns regions of the pictures, warped."""


def naming(models: Models, seen: Seen, how: Sampling) -> Mean:
    """Return the cross-entropy of the classes of some regions."""
    net = cast("CropNet", models["net"])
    sampled = sample_regions(seen.boxes, seen.truths, net.classes, how)
    logits_RK = net(seen.cut(sampled.boxes))
    wrong = functional.cross_entropy(logits_RK, sampled.labels_R, reduction="sum")
    return Mean(wrong, len(sampled.labels_R))


def separating(models: Models, seen: Seen, mined: int, penalty: float) -> Mean:
    """Return the hinges of true boxes and of hard negatives, with the penalty of the weights.

    Of the proposals that are far from every object, those are learnt from that most look like one:
    ``mined`` for each true box.
    """
    net, svm = cast("CropNet", models["net"]), cast("LinearSVM", models["svm"])
    true = [one if one.ignored_N is None else one.take(~one.ignored_N) for one in seen.truths]
    far = [
        boxes_R4[judge(boxes_R4, one, FAR).kind_A == NOTHING]
        for boxes_R4, one in zip(seen.boxes, seen.truths, strict=True)
    ]
    right_RF = even(net.seen(seen.cut([one.boxes_N4 for one in true]))[0])
    wrong_RF = even(net.seen(seen.cut(far))[0])
    with torch.no_grad():
        wrong_RF = wrong_RF[hardest(svm(wrong_RF), mined * max(len(right_RF), 1))]
    labels_R = torch.cat([one.labels_N for one in true])
    none_R = labels_R.new_full((len(wrong_RF),), REFUSED)
    scores_RK = svm(torch.cat([right_RF, wrong_RF]))
    total, number = hinge(scores_RK, torch.cat([labels_R, none_R]))
    return Mean(total + penalty * number * svm.penalty(), number)


def moving(models: Models, seen: Seen, penalty: float) -> Mean:
    """Return the squared errors of boxes that are near an object, with the penalty."""
    net, regressor = cast("CropNet", models["net"]), cast("BoxRegressor", models["boxes"])
    how = Sampling(NEAR, 10_000, 1.0, truth=False)
    sampled = sample_regions(seen.boxes, seen.truths, net.classes, how)
    near = (sampled.labels_R < net.classes).nonzero()[:, 0]
    own = [one[owner >= 0] for one, owner in zip(sampled.boxes, sampled.owners, strict=True)]
    deltas_RK4 = regressor(even(net.seen(seen.cut(own))[1]))
    told_R4 = deltas_RK4[torch.arange(len(near), device=near.device), sampled.labels_R[near]]
    wanted_R4 = to_deltas(torch.cat(own), sampled.truth_R4[near])
    error = (told_R4 - wanted_R4).square().sum()
    return Mean(error + penalty * len(near) * regressor.penalty(), len(near))
