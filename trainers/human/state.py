"""human/state: who stands, walks, runs, sits, crouches or lies - with joints and outline, at once.

Shape legend: N people, S states.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from dlplatform.task import Models, task
from trainers.blocks.detector import Batch
from trainers.blocks.settings import check
from trainers.human.people import People

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.data.instances import Instances, InstanceSet, Kinds
    from trainers.nets.centermask import Regions
    from trainers.pipeline.watch import Watching
    from trainers.scores.overlap import What

_CORNER = r"\d+(\.\d+)?,\d+(\.\d+)?"
_ZONE = rf"\s*{_CORNER}(\s+{_CORNER}){{2,}}\s*"
ZONES = re.compile(rf"({_ZONE}(;{_ZONE})*)?")
"""Polygons of three corners or more."""


@task("human/state")
@dataclass
class State(People):
    """The state of everybody, told from their region, mask and joints together.

    A batch is a pair (x_BCHW normalised, the people of each picture).
    """

    primary: ClassVar[str] = "macro_f1"
    source: ClassVar[str] = "heads of CenterMask (2020) and Mask R-CNN (2017), one more for states"
    parameters: ClassVar[int] = 695_891
    expected: ClassVar[str] = "0.59"
    title: ClassVar[str] = "States of people"

    batch_size: int = 4
    minibatches: int = 1500
    lr: float = 3e-3
    overlap: float = 0.3
    use_box: bool = True
    """Tell states from what is seen of the region."""
    use_mask: bool = True
    """Tell states from the mask, too."""
    use_joints: bool = True
    """Tell states from the joints, too."""

    fallen: float = 1.0
    """Seconds that somebody has to lie in a moving picture to be told of as fallen."""
    crouched: bool = False
    """Tell of those who crouch, too."""
    zones: str = ""
    """Corners of where falls are told of, such as "0,50 99,50 99,127"; several apart by ;"""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        super().__post_init__()
        some = bool(self.inputs())
        check("zones", self.zones, ZONES.fullmatch(self.zones) is not None, "x,y x,y x,y; x,y …")
        check("fallen", self.fallen, self.fallen >= 0, "0 or more")
        check("use_box", self.use_box, some, "true, where neither mask nor joints are used")

    def inputs(self) -> tuple[str, ...]:
        """Return what states are told from."""
        used = {"box": self.use_box, "mask": self.use_mask, "joints": self.use_joints}
        return tuple(name for name, use in used.items() if use)

    def loaded(self, split: str) -> InstanceSet:
        """Return the pictures of a folder with COCO's keypoints and ``attributes.state``."""
        from trainers.data.coco import load_coco
        from trainers.data.skeletons import STATES

        return load_coco(self.data, "person_keypoints", STATES)[split]

    def regions(self, kinds: Kinds) -> Regions:
        """Return the heads of masks, joints and states."""
        from trainers.nets.centermask import Regions

        size = (self.attention, self.width, self.towers, self.coarse)
        return Regions(True, self.joints, *size, len(kinds.states), self.inputs())

    def state_weights(self) -> Tensor | None:
        """Return the weights_S of the states in the loss: what is rare weighs more."""
        return _weights(self.loaded("train")) if self.data else None

    def judged(self) -> tuple[What, ...]:
        """Return what of an object is judged."""
        return ("box", "mask", "joint")

    def score(self, models: Models, batches: Iterable[Batch]) -> dict[str, float]:
        """Return macro-F1 of the states, recall and precision of lying people, and COCO's scores.

        Somebody who is not found is an error of their state.
        """
        import torch

        from trainers.scores.detection import DetectionTally, state_table

        kinds = self.examples("test").kinds
        count = len(kinds.states)
        held, table_SS = DetectionTally(kinds, self.judged()), torch.zeros(count + 1, count + 1)
        for found, truth in self.answers(models, batches):
            held.add(found, truth)
            table_SS += state_table(found, truth, count, self.shown)
        return state_scores(table_SS, kinds.states) | held.scores()

    def baselines(self) -> dict[str, float]:
        """Return the test macro-F1 of no training, and of the shape of true boxes."""
        import torch

        from trainers.data.instances import Found
        from trainers.scores.detection import state_table

        kinds = self.examples("test").kinds
        count = len(kinds.states)
        lying, other = kinds.states.index("Lying"), kinds.states.index("Standing")
        table_SS = torch.zeros(count + 1, count + 1)
        for _, truths in self.batches("test"):
            for truth in truths:
                sides_N2 = truth.boxes_N4[:, 2:] - truth.boxes_N4[:, :2]
                said_N = torch.where(sides_N2[:, 0] > sides_N2[:, 1], lying, other)
                states_NS = torch.nn.functional.one_hot(said_N, count).float()
                sure_N = torch.ones(len(said_N))
                found = Found(truth.boxes_N4, truth.labels_N, sure_N, states_NS=states_NS)
                table_SS += state_table(found, truth, count, self.shown)
        return super().baselines() | {
            "wide boxes lie": state_scores(table_SS, kinds.states)["macro_f1"]
        }

    def watching(self) -> Watching:
        """Return that films tell of those who have fallen."""
        from trainers.pipeline.events import Rule, zones_of
        from trainers.pipeline.watch import Watching

        states = ("Lying", "Crouch") if self.crouched else ("Lying",)
        rule = Rule(states=states, lasts=self.fallen, zones=zones_of(self.zones))
        return Watching(rules=(rule,))

    def note(self, scores: dict[str, float]) -> str:
        """Return the words below the score on the picture."""
        return f"lying: {scores['lying_recall']:.1%} found, {scores['lying_precision']:.1%} right"


def state_scores(table_SS: Tensor, states: tuple[str, ...]) -> dict[str, float]:
    """Return macro-F1, and recall and precision of Lying, of counts (true, answered)."""
    from trainers.scores.f1 import f1

    lying = states.index("Lying")
    right = float(table_SS[lying, lying])
    return {
        "macro_f1": float(f1(table_SS)[: len(states)].nanmean()),
        "lying_recall": right / max(float(table_SS[lying].sum()), 1.0),
        "lying_precision": right / max(float(table_SS[:, lying].sum()), 1.0),
    }


@lru_cache(maxsize=4)
def _weights(train: InstanceSet, most: int = 500) -> Tensor:
    """Return the square root of the commonest state's count over each one's own."""
    import torch

    def count_S(truth: Instances) -> Tensor:
        state_N = torch.zeros(0).long() if truth.states_N is None else truth.states_N
        return state_N[state_N >= 0].bincount(minlength=len(train.kinds.states))

    step = max(1, len(train) // most)
    total_S = sum(count_S(train[index][1]) for index in range(0, len(train), step))
    assert isinstance(total_S, torch.Tensor), "a set has a picture"
    return (total_S.max() / total_S.clamp(min=1)).sqrt()
