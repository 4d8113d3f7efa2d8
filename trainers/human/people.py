"""What tasks about people share: pictures of them, joints of given boxes, how good these are.

Shape legend: B batch, C channels, H height, W width, N people, J joints, S states.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlplatform.seeds import derive
from dlplatform.task import Models
from trainers.blocks.anchorfree import AnchorFree
from trainers.blocks.detector import Batch
from trainers.blocks.settings import check

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.data.instances import Found, Instances, InstanceSet


@dataclass
class People(AnchorFree):
    """Finds people and their joints; a subclass says what else."""

    scale: float = 1.1
    fine: bool = True
    most: int = 10
    learnt: int = 4
    pictures: int = 1200
    joints: int = 17
    """17 as COCO has them, or 18 with the neck."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        super().__post_init__()
        check("joints", self.joints, self.joints in (17, 18), "17 or 18")

    def drawn(self, split: str) -> InstanceSet:
        """Return pictures of people of capsules before a tilted camera."""
        from trainers.synth.human_scenes import people

        return people(
            derive(self.seed, split), self.count(split), self.side, neck=self.joints == 18
        )

    def at_truth(
        self, models: Models, batches: Iterable[Batch]
    ) -> Iterator[tuple[Tensor, Instances]]:
        """Yield the joints_NJ3 that are found in the true boxes of each picture, and the truth."""
        import torch

        from dlplatform.device import changed
        from trainers.blocks.centermask import heads
        from trainers.blocks.regions import located

        for x_BCHW, truths in batches:
            net, maps, _ = self.dense(models, x_BCHW)
            boxes = [truth.boxes_N4 for truth in truths]
            labels = torch.cat([truth.labels_N for truth in truths])
            said = heads(net, maps, boxes, labels).joints_RJHW
            assert said is not None, "people have joints"
            counts = [len(one) for one in boxes]
            found = torch.split(located(said, torch.cat(boxes)).cpu(), counts)
            for joints_NJ3, truth in zip(found, truths, strict=True):
                yield joints_NJ3, changed(truth, torch.Tensor.cpu)


def joint_scores(
    pairs: Iterable[tuple[Tensor, Instances]], task: AnchorFree, lying: tuple[int, ...] = (0, 1)
) -> dict[str, float]:
    """Return PCK at 0.2 torsos of joints in true boxes, and how well confidence tells right ones.

    ``pck_low`` is of people in the ``lying`` states, ``pck_upright`` of the others.
    """
    import torch

    from trainers.scores.joints import auroc, joints_right, pck, torso

    skeleton = task.examples("test").kinds.skeleton
    assert skeleton is not None, "people have joints"
    found, truth, low = [], [], []
    for joints_NJ3, own in pairs:
        assert own.joints_NJ3 is not None, "people have joints"
        kept = torch.ones(len(own.labels_N), dtype=torch.bool)
        kept = kept if own.ignored_N is None else ~own.ignored_N
        found.append(joints_NJ3[kept])
        truth.append(own.joints_NJ3[kept])
        state_N = torch.full((len(kept),), -1) if own.states_N is None else own.states_N
        low.append(torch.isin(state_N, torch.tensor(lying))[kept])
    found_NJ3, truth_NJ3, low_N = torch.cat(found), torch.cat(truth), torch.cat(low)
    size_N = torso(truth_NJ3, skeleton)
    right_NJ, judged_NJ = joints_right(found_NJ3, truth_NJ3, size_N)
    scores = {
        "pck": pck(found_NJ3, truth_NJ3, size_N),
        "pck_low": pck(found_NJ3[low_N], truth_NJ3[low_N], size_N[low_N]),
        "pck_upright": pck(found_NJ3[~low_N], truth_NJ3[~low_N], size_N[~low_N]),
        "joint_auroc": auroc(found_NJ3[..., 2][judged_NJ], right_NJ[judged_NJ]),
    }
    return {name: value for name, value in scores.items() if value == value}


def mean_pose(truths: Iterable[Instances]) -> Tensor:
    """Return the mean place_J2 of each joint in its box, from 0 to 1, where it is labelled."""
    import torch

    places, known = [], []
    for truth in truths:
        assert truth.joints_NJ3 is not None, "people have joints"
        low_N12 = truth.boxes_N4[:, None, :2]
        sides_N12 = (truth.boxes_N4[:, None, 2:] - low_N12).clamp(min=1e-3)
        places.append((truth.joints_NJ3[..., :2] - low_N12) / sides_N12)
        known.append(truth.joints_NJ3[..., 2:] > 0)
    place_NJ2, known_NJ1 = torch.cat(places), torch.cat(known)
    return (place_NJ2 * known_NJ1).sum(0) / known_NJ1.sum(0).clamp(min=1)


def placed(mean_J2: Tensor, truth: Instances) -> Found:
    """Return the mean pose in each true box, as an answer."""
    import torch

    from trainers.data.instances import Found

    low_N12 = truth.boxes_N4[:, None, :2]
    place_NJ2 = low_N12 + mean_J2 * (truth.boxes_N4[:, None, 2:] - low_N12)
    sure_NJ1 = torch.ones_like(place_NJ2[..., :1])
    joints_NJ3 = torch.cat([place_NJ2, sure_NJ1], -1)
    scores_N = torch.ones(len(truth.labels_N))
    return Found(truth.boxes_N4, truth.labels_N, scores_N, joints_NJ3=joints_NJ3)
