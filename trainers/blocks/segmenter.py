"""The task of naming every pixel of a picture: all of it but the network.

Shape legend: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dlplatform.seeds import derive
from dlplatform.task import Models
from trainers.blocks.settings import check
from trainers.blocks.supervised import Supervised, poly

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn

    from trainers.data.scenes import Bytes, Scene, Scenes
    from trainers.scores.segmentation import Tally
    from trainers.synth.views import Window

Pair = tuple["Tensor", "Tensor"]
TOGETHER = 20
"""Pictures of one batch of evaluation; those of folders, which are large, come one by one."""
SHOWN = 5


@dataclass
class Segmenter(Supervised):
    """A task that names the class of every pixel; a subclass says ``network``.

    A batch is a pair (x_BCHW normalised, labels_BHW with 255 where ignored).
    """

    primary: ClassVar[str] = "mIoU"
    title: ClassVar[str] = "Road scenes"
    auxiliary: ClassVar[float] = 1.0
    """Weight of the loss of auxiliary logits, where a network has some."""

    batch_size: int = 8
    minibatches: int = 300
    data: str = ""
    """Folder of Cityscapes or CamVid; empty: road scenes of 64 x 128 that are drawn."""
    momentum: float = 0.9
    """Of SGD; asynchronous rules bring their own."""
    decay: float = 1e-4
    """Weight decay."""
    crop: int = 0
    """Height and width in pixels of the square views to train on; 0: the pictures' own size."""
    scale: float = 2.0
    """Enlarge training pictures at random by 1 / scale to scale; 1: never."""
    flip: bool = True
    """Mirror half of the training pictures."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        super().__post_init__()
        check("momentum", self.momentum, 0 <= self.momentum < 1, "0 up to, not including, 1")
        check("decay", self.decay, self.decay >= 0, "0 or more")
        check("crop", self.crop, self.crop == 0 or self.crop >= 32, "0, or 32 or more")
        check("scale", self.scale, 1 <= self.scale <= 4, "1 to 4")

    @abstractmethod
    def network(self, classes: int) -> nn.Module:
        """Build the network: logits_BKHW of x_BCHW, both of any one size.

        In training it may return them as ``{"out": …, "aux": …}`` with auxiliary ones of that
        size.
        """

    def weights(self) -> Tensor | None:
        """Return the weights_K of the classes in the loss (default: all alike)."""
        return None

    def scenes(self, split: str) -> Scenes:
        """Return the pictures of ``train``, ``val`` or ``test``."""
        from trainers.data.roads import load_roads
        from trainers.synth.road import COUNTS, road_scenes

        check("split", split, split in COUNTS, ", ".join(COUNTS))
        if self.data:
            return load_roads(self.data)[split]
        return road_scenes(derive(self.seed, split), COUNTS[split])

    def models(self) -> Models:
        """Build the network."""
        from trainers.nets.convnet import channels_last

        return {"net": channels_last(self.network(len(self.scenes("test").kinds)))}

    def batch(self, split: str, number: int) -> Pair:
        """Return minibatch ``number``: random views of its pictures."""
        from trainers.blocks.pixels import stacked
        from trainers.data.readers import read_all
        from trainers.data.sampling import draw
        from trainers.synth.views import random_view

        scenes, window = self.scenes(split), self._window()
        picked = draw(self.seed, number, self.batch_size, len(scenes)).tolist()

        def view(place: int) -> Scene:
            seed = derive(self.seed, "view", number, place)
            return random_view(scenes[picked[place]], window, seed)

        return stacked(read_all(view, range(len(picked))))

    def batches(self, split: str) -> Iterator[Pair]:
        """Yield all pictures of a split, whole and as they are, in a fixed order."""
        from trainers.blocks.pixels import stacked

        scenes = self.scenes(split)
        step = 1 if self.data else TOGETHER
        for first in range(0, len(scenes), step):
            last = min(first + step, len(scenes))
            yield stacked([scenes[index] for index in range(first, last)])

    def loss(self, models: Models, batch: Pair) -> Tensor | dict[str, Tensor]:
        """Return the cross-entropy of the pixels, also of auxiliary logits if there are any."""
        from trainers.blocks.pixels import pixel_loss

        x_BCHW, labels_BHW = batch
        weight_K = self.weights()
        weight_K = None if weight_K is None else weight_K.to(x_BCHW.device)
        answer = models["net"](x_BCHW)
        if not isinstance(answer, dict):
            return pixel_loss(answer, labels_BHW, weight_K)
        return {
            "pixels": pixel_loss(answer["out"], labels_BHW, weight_K),
            "auxiliary": self.auxiliary * pixel_loss(answer["aux"], labels_BHW, weight_K),
        }

    def tally(self, models: Models, batches: Iterable[Pair]) -> Tally:
        """Count right and wrong pixels and boundaries; counts of shards may be added."""
        from trainers.blocks.pixels import class_map
        from trainers.scores.segmentation import tally, total

        classes = len(self.scenes("test").kinds)
        return total(
            tally(class_map(models["net"], x_BCHW), labels_BHW.cpu(), classes)
            for x_BCHW, labels_BHW in batches
        )

    def score(self, models: Models, batches: Iterable[Pair]) -> dict[str, float]:
        """Return mIoU, accuracies, frequency-weighted IoU and boundary F1."""
        return self.tally(models, batches).scores()

    def predict(self, models: Models, raw: Path) -> dict[str, Any]:
        """Write the class map of a picture file and what it shows; return classes and files.

        Of a moving picture (GIF) it writes the overlay alone, moving, too.
        """
        import numpy as np

        from trainers.pictures.classmaps import FOLDER, write_maps
        from trainers.pictures.files import frames, open_picture, write_film
        from trainers.pictures.sheet import overlay

        kinds = self.scenes("test").kinds
        counts, shown, milliseconds = np.zeros(len(kinds), np.int64), [], []
        for frame, each in frames(raw):
            labels_HW = self._named(models, frame)
            counts += np.bincount(labels_HW.ravel(), minlength=len(kinds))
            shown.append(overlay(np.array(frame), kinds.paint(labels_HW), 0.5))
            milliseconds.append(each)
        if shown:
            path = raw.parent / FOLDER / f"{raw.stem}_overlay.gif"
            write_film(path, shown, milliseconds)
            files = {"overlay": str(path)}
        else:
            picture = open_picture(raw, "RGB")
            labels_HW = self._named(models, picture)
            counts += np.bincount(labels_HW.ravel(), minlength=len(kinds))
            files = write_maps(raw, np.array(picture), labels_HW, kinds)
        shares = (counts / counts.sum()).round(4).tolist()
        return {"shares": dict(zip(kinds.names, shares, strict=True)), **files}

    def _named(self, models: Models, picture: Image.Image) -> Bytes:
        """Return the classes_HW of a picture of any size."""
        import numpy as np
        import torch

        from trainers.blocks.pixels import class_map, normalised

        # A network knows objects as large as those it was trained on.
        height = self.scenes("test")[0][1].shape[0]
        small = picture.resize((max(1, round(picture.width * height / picture.height)), height))
        x_1CHW = normalised(torch.from_numpy(np.array(small))[None])
        answer: Bytes = class_map(models["net"], x_1CHW, (picture.height, picture.width))[0].numpy()
        return answer

    def baselines(self) -> dict[str, float]:
        """Return the test mIoU of the commonest class, no training, and colour with place."""
        from trainers.blocks.alone import untrained
        from trainers.blocks.pixels import ColourAndPlace, Commonest

        scenes = self.scenes("train")
        nets = {
            "commonest": Commonest(scenes),
            "untrained": untrained(self)["net"],
            "linear": ColourAndPlace(scenes),
        }
        return {
            name: self.score({"net": net}, self.batches("test"))["mIoU"]
            for name, net in nets.items()
        }

    def picture(self, models: Models) -> Image.Image:
        """Draw test pictures, spread evenly, with their true and their answered class maps."""
        from trainers.blocks.pixels import class_map, stacked
        from trainers.data.scenes import some
        from trainers.pictures.classmaps import Example, draw_maps
        from trainers.pictures.sheet import Heading

        test = self.scenes("test")
        counted = self.tally(models, self.batches("test"))
        examples = [
            Example(*scene, class_map(models["net"], stacked([scene])[0])[0].numpy())
            for scene in some(test, SHOWN)
        ]
        heading = Heading(
            self.title,
            detail=f"{len(examples)} of {len(test)} test pictures, not chosen by their score",
            score=f"{counted.scores()['mIoU']:.1%} mIoU",
            note=f"{counted.scores()['accuracy']:.1%} of pixels right",
        )
        return draw_maps(heading, examples, test.kinds, counted.iou().tolist())

    def example(self) -> tuple[Tensor, ...]:
        """Return one blank picture."""
        import torch

        window = self._window()
        return (torch.zeros(1, 3, window.height, window.width),)

    def optimizer(self, group: str, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return SGD."""
        from torch.optim import SGD

        return SGD(parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.decay)

    def rate(self, progress: float) -> float:
        """Fall as (1 - progress) ** 0.9."""
        return poly(progress)

    def _window(self) -> Window:
        from trainers.synth.views import Window

        size = (self.crop, self.crop) if self.crop else self.scenes("test")[0][1].shape
        return Window(size[0], size[1], self.scale, self.flip)
