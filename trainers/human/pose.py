"""human/pose: people are found, then each one's joints, with how sure each joint is.

Shape legend: N people, J joints.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dlplatform.task import Models, task
from trainers.blocks.detector import Batch
from trainers.human.people import People

if TYPE_CHECKING:
    from trainers.data.instances import InstanceSet, Kinds
    from trainers.nets.centermask import Regions
    from trainers.scores.overlap import What


@task("human/pose")
@dataclass
class Pose(People):
    """People and their 17 joints (18 with the neck), also of those who lie or crouch.

    A batch is a pair (x_BCHW normalised, the people of each picture).
    """

    primary: ClassVar[str] = "joint_AP50"
    source: ClassVar[str] = "He et al., Mask R-CNN (2017), section 5, on CenterMask (2020)"
    parameters: ClassVar[int] = 450_778
    expected: ClassVar[str] = "0.24"
    title: ClassVar[str] = "Joints of people"

    batch_size: int = 4
    minibatches: int = 1500
    lr: float = 3e-3

    def loaded(self, split: str) -> InstanceSet:
        """Return the pictures of a folder with COCO's keypoints."""
        from trainers.data.coco import load_coco

        return load_coco(self.data, "person_keypoints", masks=False)[split]

    def regions(self, kinds: Kinds) -> Regions:
        """Return the head of the joints."""
        from trainers.nets.centermask import Regions

        return Regions(False, self.joints, False, self.width, self.towers, self.coarse)

    def judged(self) -> tuple[What, ...]:
        """Return what of an object is judged."""
        return ("box", "joint")

    def score(self, models: Models, batches: Iterable[Batch]) -> dict[str, float]:
        """Return COCO's box and keypoint AP; PCK in true boxes; AUROC of the confidence.

        PCK is the share of labelled joints within a fifth of the torso.
        """
        from trainers.human.people import joint_scores

        batches = list(batches)
        counted = self.tally(models, batches).scores()
        return counted | joint_scores(self.at_truth(models, batches), self)

    def baselines(self) -> dict[str, float]:
        """Return the test AP50 of joints of no training, and of the mean pose in true boxes."""
        from trainers.human.people import mean_pose, placed
        from trainers.scores.detection import DetectionTally

        train, test = self.examples("train"), self.examples("test")
        mean_J2 = mean_pose(train[index][1] for index in range(min(len(train), 300)))
        held = DetectionTally(test.kinds, self.judged())
        for _, truths in self.batches("test"):
            for truth in truths:
                held.add(placed(mean_J2, truth), truth)
        return super().baselines() | {"mean pose": held.scores()[self.primary]}

    def note(self, scores: dict[str, float]) -> str:
        """Return the words below the score on the picture."""
        return f"{scores['pck']:.1%} of joints within a fifth of the torso, in true boxes"
