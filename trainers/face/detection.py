"""face/detection: where faces are in a picture, with eyes, nose and corners of the mouth.

Shape legend: B batch, C channels, H height, W width, J landmarks, N faces.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from dlplatform.seeds import derive
from dlplatform.task import Models, task
from trainers.blocks.anchorfree import AnchorFree
from trainers.blocks.detector import Batch

if TYPE_CHECKING:
    from trainers.data.instances import InstanceSet, Kinds
    from trainers.nets.centermask import Regions
    from trainers.nets.fcos import HeadShape

SURE = 0.5
"""Score from which a face is good enough to be recognised; 0.2 is for hiding faces."""


@task("face/detection")
@dataclass
class Faces(AnchorFree):
    """Faces among what only looks like one, with five landmarks to align them by.

    A batch is a pair (x_BCHW normalised, the faces of each picture).
    """

    source: ClassVar[str] = "Tian et al., FCOS (2019); landmarks as Mask R-CNN's keypoints (2017)"
    parameters: ClassVar[int] = 441_568
    expected: ClassVar[str] = "0.94"
    title: ClassVar[str] = "Faces"

    batch_size: int = 4
    minibatches: int = 1500
    lr: float = 3e-3
    scale: float = 1.1
    shown: float = SURE
    fine: bool = True
    learnt: int = 4

    def drawn(self, split: str) -> InstanceSet:
        """Return pictures of none to some faces on clutter, with ellipses that are none."""
        from trainers.synth.faces_scene import face_scenes

        return face_scenes(derive(self.seed, split), self.count(split), self.side)

    def loaded(self, split: str) -> InstanceSet:
        """Return the pictures of a folder of WIDER FACE."""
        from trainers.data.widerface import load_faces

        return load_faces(self.data)[split]

    def head(self, kinds: Kinds) -> HeadShape:
        """Return the shape of the head of the boxes: places are weighed before its towers."""
        return replace(super().head(kinds), attention=self.attention)

    def regions(self, kinds: Kinds) -> Regions | None:
        """Return the head of the landmarks, where there are any.

        Places of maps of stride 8 cannot tell of eyes that are 8 pixels apart: landmarks that they
        name are three times as far off as these.
        """
        from trainers.nets.centermask import Regions

        marks = len(kinds.skeleton.names) if kinds.skeleton else 0
        return Regions(False, marks, False, self.width, self.towers, self.coarse)

    def score(self, models: Models, batches: Iterable[Batch]) -> dict[str, float]:
        """Return COCO's AP, the error of landmarks between the eyes, and false alarms.

        ``false_alarms`` is of surely found faces in a picture without any.
        """
        import torch

        from trainers.scores.detection import DetectionTally, pairs
        from trainers.scores.joints import nme

        held = DetectionTally(self.examples("test").kinds)
        marks, truths, alarms = [], [], []
        for found, truth in self.answers(models, batches):
            held.add(found, truth)
            if not len(truth.labels_N):
                alarms.append(int((found.scores_N >= SURE).sum()))
            if found.joints_NJ3 is not None and truth.joints_NJ3 is not None:
                own_P, whose_P, _ = pairs(found, truth)
                marks.append(found.joints_NJ3[own_P])
                truths.append(truth.joints_NJ3[whose_P])
        scores = held.scores() | {f"{k}_at_0.5": v for k, v in held.at(SURE).items()}
        if alarms:
            scores["false_alarms"] = sum(alarms) / len(alarms)
        if sum(len(one) for one in marks):
            scores["nme"] = nme(torch.cat(marks), torch.cat(truths))
        return {name: value for name, value in scores.items() if value == value}

    def note(self, scores: dict[str, float]) -> str:
        """Return the words below the score on the picture."""
        if "nme" not in scores:
            return super().note(scores)
        return f"landmarks {scores['nme']:.1%} of the eyes' distance off"
