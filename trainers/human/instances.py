"""human/instances: where the objects of a picture are, of which of 80 kinds, and their outlines.

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dlplatform.seeds import derive
from dlplatform.task import Models, task
from trainers.blocks.anchorfree import AnchorFree
from trainers.blocks.detector import Batch
from trainers.blocks.settings import check

if TYPE_CHECKING:
    from trainers.data.instances import InstanceSet, Kinds
    from trainers.nets.centermask import Regions
    from trainers.scores.overlap import What

SUBJECTS = ("fish", "weapons")


@task("human/instances")
@dataclass
class Objects(AnchorFree):
    """Objects found and cut out at once.

    Every place of a pyramid over VoVNetV2 says which class an object around it has and how far
    its sides are (FCOS); a head reads each box from the level of its size, attends to some of
    its places and draws the mask of every class. With ``start`` it goes on from the weights of
    a run with other classes.

    A batch is a pair (x_BCHW normalised, the objects of each picture).
    """

    source: ClassVar[str] = "Lee and Park, CenterMask (2020)"
    parameters: ClassVar[int] = 385_514
    expected: ClassVar[str] = "0.82"
    title: ClassVar[str] = "Objects"

    batch_size: int = 4
    minibatches: int = 1000
    lr: float = 3e-3
    scale: float = 1.0
    masks: bool = True
    """Cut objects out, too; without it is quicker."""
    classes: int = 8
    """Kinds of objects that are drawn, up to 80."""
    subject: str = ""
    """Draw something else: fish (eight textures of one shape) or weapons (three small, rare kinds
    among others)."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        super().__post_init__()
        check("classes", self.classes, 1 <= self.classes <= 80, "1 to 80")
        known = self.subject in ("", *SUBJECTS)
        check("subject", self.subject, known, f"{', '.join(SUBJECTS)} or nothing")

    def drawn(self, split: str) -> InstanceSet:
        """Return pictures of shapes in textures."""
        from trainers.synth.objects import SUBJECTS as DRAWN
        from trainers.synth.objects import objects

        about = DRAWN[self.subject] if self.subject else None
        kinds, look = (about.classes, about.look) if about else (self.classes, None)
        return objects(derive(self.seed, split), self.count(split), kinds, self.side, look)

    def loaded(self, split: str) -> InstanceSet:
        """Return the pictures of a folder in COCO's format."""
        from trainers.data.coco import load_coco

        return load_coco(self.data, masks=self.masks)[split]

    def judged(self) -> tuple[What, ...]:
        """Return what of an object is judged."""
        return ("box", "mask") if self.masks else ("box",)

    def score(self, models: Models, batches: Iterable[Batch]) -> dict[str, float]:
        """Return COCO's scores, and ``top1``: the share of objects that are found and named right.

        The surest answer where an object is has to be of its kind.
        """
        from trainers.scores.detection import DetectionTally, named

        held, right, total = DetectionTally(self.examples("test").kinds, self.judged()), 0, 0
        for found, truth in self.answers(models, batches):
            held.add(found, truth)
            counts = named(found, truth)
            right, total = right + counts[0], total + counts[1]
        return held.scores() | ({"top1": right / total} if total else {})

    def note(self, scores: dict[str, float]) -> str:
        """Return the words below the score on the picture."""
        if not self.masks:
            return super().note(scores)
        return f"{scores['mask_AP50']:.1%} mask AP50; answers surer than {self.shown:g}"

    def regions(self, kinds: Kinds) -> Regions | None:
        """Return the head of the masks."""
        from trainers.nets.centermask import Regions

        wide = min(self.width, 256)
        return Regions(self.masks, 0, self.attention, wide, self.towers, self.coarse)
