"""The task of finding the objects of a picture: all of it but the network and its losses.

Shape legend: B batch, C channels, H height, W width, 3 RGB, N objects.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dlplatform.seeds import derive
from dlplatform.task import Export, Mean, Models
from trainers.blocks.settings import check
from trainers.blocks.supervised import Supervised, cosine

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn

    from trainers.data.instances import Found, Instances, InstanceSet, Kinds
    from trainers.data.scenes import Bytes
    from trainers.pipeline.watch import Watching
    from trainers.scores.detection import DetectionTally
    from trainers.scores.overlap import What
    from trainers.synth.instance_views import Window

Batch = tuple["Tensor", list["Instances"]]
SPLITS = ("train", "val", "test")
TOGETHER = 20
"""Pictures of one batch of evaluation."""
SHOWN = 5
ONE_PLACE = 0.7
"""Overlap from which two boxes are of one object, whatever their kinds."""


@dataclass
class Detector(Supervised):
    """A task that finds objects; a subclass says what is drawn, the network, loss and ``found``.

    A batch is a pair (x_BCHW normalised, the objects of each picture).
    """

    primary: ClassVar[str] = "box_AP50"
    title: ClassVar[str] = "Objects"

    batch_size: int = 8
    minibatches: int = 400
    lr: float = 2e-3
    data: str = ""
    """Folder with pictures and their objects; empty: pictures that are drawn."""
    side: int = 128
    """Height and width in pixels of the square that pictures are fitted into."""
    scale: float = 1.25
    """Enlarge training pictures at random by 1 / scale to scale; 1: never."""
    flip: bool = True
    """Mirror half of the training pictures."""
    colour: float = 0.2
    """Largest random change of the strength of each colour of training pictures."""
    warmup: float = 0.05
    """Share of the run in which the rate rises to its peak."""
    decay: float = 1e-4
    """Weight decay."""
    momentum: float = 0.0
    """Of SGD; 0: Adam instead."""
    shown: float = 0.4
    """Score from which ``dlp predict`` tells of an object, and pictures show it."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        super().__post_init__()
        fits = 64 <= self.side <= 2048 and self.side % 32 == 0
        check("side", self.side, fits, "64 to 2048 in steps of 32")
        check("scale", self.scale, 1 <= self.scale <= 4, "1 to 4")
        check("colour", self.colour, 0 <= self.colour < 1, "0 up to, not including, 1")
        check("warmup", self.warmup, 0 <= self.warmup < 1, "0 up to, not including, 1")
        check("decay", self.decay, self.decay >= 0, "0 or more")
        check("momentum", self.momentum, 0 <= self.momentum < 1, "0 up to, not including, 1")
        check("shown", self.shown, 0 <= self.shown <= 1, "0 to 1")

    @abstractmethod
    def drawn(self, split: str) -> InstanceSet:
        """Return the pictures of a split that are drawn where no folder is given."""

    @abstractmethod
    def loaded(self, split: str) -> InstanceSet:
        """Return the pictures of a split in the folder ``data``."""

    @abstractmethod
    def network(self, kinds: Kinds) -> nn.Module:
        """Build the network for what the objects of a set may be."""

    @abstractmethod
    def loss(self, models: Models, batch: Batch) -> dict[str, Mean]:
        """Return the losses as means over what they are of: places, joints, regions."""

    @abstractmethod
    def found(self, models: Models, x_BCHW: Tensor) -> list[Found]:
        """Return what is found in each picture, on any device, the surest first."""

    def found_among(self, models: Models, x_1CHW: Tensor, *boxes_R4: Tensor) -> Found:
        """Return what is found in one picture, of what ``takes`` asks for."""
        return self.found(models, x_1CHW)[0]

    def examples(self, split: str) -> InstanceSet:
        """Return the pictures of ``train``, ``val`` or ``test``."""
        check("split", split, split in SPLITS, ", ".join(SPLITS))
        return self.loaded(split) if self.data else self.drawn(split)

    def models(self) -> Models:
        """Build the network."""
        from trainers.nets.convnet import channels_last

        return {"net": channels_last(self.network(self.examples("test").kinds))}

    def batch(self, split: str, number: int) -> Batch:
        """Return minibatch ``number``: random views of its pictures."""
        from trainers.data.readers import read_all
        from trainers.data.sampling import draw
        from trainers.synth.instance_views import random_view

        examples, window = self.examples(split), self._window()
        picked = draw(self.seed, number, self.batch_size, len(examples)).tolist()

        def view(place: int) -> tuple[Bytes, Instances]:
            seed = derive(self.seed, "view", number, place)
            return random_view(*examples[picked[place]], window, seed)

        return _stacked(read_all(view, range(len(picked))))

    def batches(self, split: str) -> Iterator[Batch]:
        """Yield all pictures of a split, fitted into the square, in a fixed order."""
        examples = self.examples(split)
        for first in range(0, len(examples), TOGETHER):
            last = min(first + TOGETHER, len(examples))
            yield _stacked(self._fitted(*examples[index]) for index in range(first, last))

    def answers(
        self, models: Models, batches: Iterable[Batch]
    ) -> Iterator[tuple[Found, Instances]]:
        """Yield what is found in each picture, and its objects, on the host."""
        from torch import Tensor

        from dlplatform.device import changed

        for x_BCHW, truths in batches:
            for found, truth in zip(self.found(models, x_BCHW), truths, strict=True):
                yield changed(found, Tensor.cpu), changed(truth, Tensor.cpu)

    def tally(self, models: Models, batches: Iterable[Batch]) -> DetectionTally:
        """Hold what is found in all pictures against their objects."""
        from trainers.scores.detection import DetectionTally

        held = DetectionTally(self.examples("test").kinds, self.judged())
        for found, truth in self.answers(models, batches):
            held.add(found, truth)
        return held

    def judged(self) -> tuple[What, ...]:
        """Return what of an object is judged: box, mask, joint (default: its box)."""
        return ("box",)

    def score(self, models: Models, batches: Iterable[Batch]) -> dict[str, float]:
        """Return COCO's average precisions and recall, such as ``box_AP50``."""
        return self.tally(models, batches).scores()

    def baselines(self) -> dict[str, float]:
        """Return the primary test score of no training."""
        import torch

        from trainers.blocks.alone import untrained

        with torch.no_grad():
            scores = self.score(untrained(self), self.batches("test"))
        return {"untrained": scores[self.primary]}

    def look(self, models: Models, image_HW3: Bytes) -> Found:
        """Return what is surely found in a picture of any size, in its own pixels."""
        return self.look_at(models, [image_HW3])[0]

    def look_at(self, models: Models, images: Sequence[Bytes]) -> list[Found]:
        """Return what is surely found in pictures of any sizes, each in its own pixels.

        Of what is found at one place as two kinds the surer one is kept.
        """
        import numpy as np
        import torch

        from dlplatform.device import changed
        from kernels.vision import nms
        from trainers.blocks.pixels import normalised
        from trainers.synth.instance_views import fitted, undone

        views = [fitted(image_HW3, self.side) for image_HW3 in images]
        squares = [view.image(image_HW3) for view, image_HW3 in zip(views, images, strict=True)]
        x_BCHW = normalised(torch.from_numpy(np.stack(squares)))
        where = next(iter(next(iter(models.values())).parameters())).device
        with torch.no_grad():
            answers = self.found(models, x_BCHW.to(where))
        looked = []
        for answer, view, image_HW3 in zip(answers, views, images, strict=True):
            found: Found = changed(answer, torch.Tensor.cpu)
            found = found.take(found.scores_N >= self.shown)
            found = found.take(nms(found.boxes_N4, found.scores_N, ONE_PLACE))
            looked.append(undone(found, view, image_HW3.shape[:2]))
        return looked

    def predict(self, models: Models, raw: Path) -> dict[str, Any]:
        """Return what is surely found in a picture file, or in a film, and the drawing's path."""
        from trainers.pipeline.watch import answer

        kinds = self.examples("test").kinds
        return answer(raw, lambda image_HW3: self.look(models, image_HW3), kinds, self.watching())

    def watching(self) -> Watching | None:
        """Return what is done with films besides following what is found (default: nothing)."""
        return None

    def picture(self, models: Models) -> Image.Image:
        """Draw test pictures, spread evenly, with their true objects and those found."""
        import torch

        from trainers.pictures.instances import Compared, draw_compared
        from trainers.pictures.sheet import Heading

        test = self.examples("test")
        with torch.no_grad():
            scores = self.score(models, self.batches("test"))
        step = max(1, len(test) // SHOWN)
        chosen = [test[index] for index in range(0, min(len(test), SHOWN * step), step)]
        shown = [Compared(image, truth, self.look(models, image)) for image, truth in chosen]
        heading = Heading(
            self.title,
            detail=f"{len(shown)} of {len(test)} test pictures, not chosen by their score",
            score=f"{scores[self.primary]:.1%} {self.primary.replace('_', ' ')}",
            note=self.note(scores),
        )
        return draw_compared(heading, shown, test.kinds, self.shown)

    def note(self, scores: dict[str, float]) -> str:
        """Return the words below the score on the picture."""
        return f"answers surer than {self.shown:g}; {scores['box_AP']:.1%} box AP"

    def optimizer(self, group: str, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return Adam with decoupled weight decay, or SGD where a momentum is set."""
        from torch.optim import SGD, AdamW

        if self.momentum:
            return SGD(parameters, self.lr, self.momentum, weight_decay=self.decay)
        return AdamW(parameters, lr=self.lr, weight_decay=self.decay)

    def rate(self, progress: float) -> float:
        """Rise linearly during the warm-up, then fall to 1 % along half a cosine."""
        return cosine(progress, self.warmup)

    def takes(self) -> dict[str, Tensor]:
        """Return what its file takes: a picture, here a blank one."""
        import torch

        return {"picture": torch.zeros(self.side, self.side, 3, dtype=torch.uint8)}

    def export(self, models: Models) -> Export:
        """Return all of it: from the pixels of a picture to what is found."""
        from trainers.blocks.exported import Finding

        return Finding(self, models).export()

    def _fitted(self, image_HW3: Bytes, truth: Instances) -> tuple[Bytes, Instances]:
        from trainers.synth.instance_views import fitted, seen

        return seen(image_HW3, truth, fitted(image_HW3, self.side), self._window())

    def _window(self) -> Window:
        from trainers.synth.instance_views import Window

        skeleton = self.examples("test").kinds.skeleton
        mirror = skeleton.mirrored if skeleton else ()
        return Window(self.side, self.scale, self.flip, self.colour, mirror)


def _stacked(seen: Iterable[tuple[Bytes, Instances]]) -> Batch:
    """Return (x_BCHW normalised, objects) of pictures of one size."""
    import numpy as np
    import torch

    from trainers.blocks.pixels import normalised

    images, truths = zip(*seen, strict=True)
    return normalised(torch.from_numpy(np.stack(images))), list(truths)
