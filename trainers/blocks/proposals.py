"""Proposals of selective search: kept for each picture, and carried beside its objects.

Shape legend: H height, W width, 3 RGB, N boxes.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b

import torch
from torch import Tensor

from trainers.blocks.selective import selective_search
from trainers.data.instances import Instances, InstanceSet
from trainers.data.scenes import Bytes

PROPOSED = -1
"""The class of a proposal among objects: views move it as they move them."""
KEPT = 5000
"""Pictures whose proposals are remembered."""

_KEPT: OrderedDict[tuple[bytes, str, int], Tensor] = OrderedDict()


def proposals_of(image_HW3: Bytes, mode: str, most: int) -> Tensor:
    """Return the boxes_N4 that selective search proposes; those of a picture are remembered."""
    key = (blake2b(image_HW3.tobytes(), digest_size=16).digest(), mode, most)
    if key not in _KEPT:
        _KEPT[key] = torch.from_numpy(selective_search(image_HW3, mode, most))
        if len(_KEPT) > KEPT:
            _KEPT.popitem(last=False)
    return _KEPT[key]


def with_proposals(examples: InstanceSet, mode: str, most: int) -> InstanceSet:
    """Return pictures whose objects are followed by proposals, without masks and joints."""

    def read(index: int) -> tuple[Bytes, Instances]:
        image_HW3, truth = examples[index]
        return image_HW3, joined(truth, proposals_of(image_HW3, mode, most))

    return InstanceSet(examples.kinds, examples.count, read)


def joined(truth: Instances, boxes_N4: Tensor) -> Instances:
    """Return objects followed by proposals."""
    ignored_N = truth.ignored_N
    if ignored_N is None:
        ignored_N = torch.zeros(len(truth.boxes_N4), dtype=torch.bool)
    none_N = truth.labels_N.new_full((len(boxes_N4),), PROPOSED)
    return Instances(
        torch.cat([truth.boxes_N4, boxes_N4]),
        torch.cat([truth.labels_N, none_N]),
        ignored_N=torch.cat([ignored_N, torch.ones(len(boxes_N4), dtype=torch.bool)]),
    )


def apart(rows: Instances) -> tuple[Instances, Tensor]:
    """Return objects and the boxes_N4 of the proposals among them."""
    proposed_N = rows.labels_N == PROPOSED
    return rows.take(~proposed_N), rows.boxes_N4[proposed_N]
