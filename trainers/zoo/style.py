"""zoo/style: a network learns to repaint any picture in the style of some paintings.

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dlplatform.errors import UsageError
from dlplatform.task import Models, task
from trainers.blocks.annealed import Annealed

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

    from trainers.data.photos import Studio

SMALLEST = 16
"""Pixels each way of a picture to repaint."""
SHOWN = 7


@task("zoo/style")
@dataclass
class StyleTransfer(Annealed):
    """Photos repainted in one pass, in the common style of several paintings.

    A batch is x_BCHW in [0, 1]. What judges is frozen: no group has it.
    """

    primary: ClassVar[str] = "quality"
    source: ClassVar[str] = (
        "Johnson et al., Perceptual Losses for Style Transfer (2016); "
        "Heitz et al., A Sliced Wasserstein Loss (2021)"
    )
    parameters: ClassVar[int] = 111_822
    expected: ClassVar[str] = "0.69"

    batch_size: int = 4
    minibatches: int = 160
    lr: float = 4e-3
    data: str = ""
    """Folder with content/ and style/; empty: parts of two photos and scenes, drawn paintings."""
    weights: str = ""
    """Safetensors file of a VGG-16 that judges; empty: patches are compared."""
    image: int = 64
    """Pixels of the square pictures in training; any size is repainted afterwards."""
    width: int = 10
    """Channels of the first convolution of the network that repaints; the paper has 32."""
    residual: int = 3
    """Residual blocks; the paper has 5."""
    loss_width: int = 16
    """Random filters of each view, or channels of the first block of the VGG, which has 64."""
    paintings: int = 4
    """Paintings that are drawn to learn from, where no folder is given."""
    style_weight: float = 4.0
    """Weight of the style in the loss; that of the content is 1."""
    smooth_weight: float = 0.2
    """Weight of the total variation."""
    strength: float = 1.0
    """How far an answer goes from the picture (0) to the repainted one (1)."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        from trainers.blocks.settings import check

        super().__post_init__()
        check("image", self.image, 32 <= self.image <= 2048, "32 to 2048")
        for name in ("width", "residual", "loss_width", "paintings"):
            check(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        for name in ("style_weight", "smooth_weight"):
            check(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        check("strength", self.strength, 0 <= self.strength <= 1, "0 to 1")

    @property
    def studio(self) -> Studio:
        """Return the pictures and the paintings."""
        from trainers.data.photos import studio

        return studio(self.data, self.image, self.paintings, self.seed)

    def models(self) -> Models:
        """Build the network that repaints, and what judges it."""
        from trainers.nets.convnet import channels_last
        from trainers.nets.style import Patches, Transform, Vgg

        style_BCHW, width = self.studio.style_BCHW, self.loss_width
        weights = Path(self.weights)
        judge = Vgg(style_BCHW, width, weights) if self.weights else Patches(style_BCHW, width)
        net = Transform(self.width, self.residual)
        return {"net": channels_last(net), "judge": channels_last(judge)}

    def groups(self, models: Models) -> dict[str, Iterable[nn.Parameter]]:
        """Return the network that repaints only."""
        return {"main": models["net"].parameters()}

    def batch(self, split: str, number: int) -> Tensor:
        """Return minibatch ``number``."""
        return self.studio.batch(number, self.batch_size)

    def batches(self, split: str) -> Iterator[Tensor]:
        """Yield the held-out pictures."""
        import torch

        yield from torch.split(self.studio.held_out(split), 16)

    def loss(self, models: Models, batch: Tensor) -> dict[str, Tensor]:
        """Return the losses of the content, the style and the total variation."""
        from trainers.nets.style import total_variation

        y_BCHW = models["net"](batch)
        content_B, style_B = models["judge"](y_BCHW, batch)
        return {
            "content": content_B.mean(),
            "style": self.style_weight * style_B.mean(),
            "smooth": self.smooth_weight * total_variation(y_BCHW),
        }

    def score(self, models: Models, batches: Iterable[Tensor]) -> dict[str, float]:
        """Return how near to the style, and how like the picture, what is repainted is.

        ``style`` and ``texture`` are the style loss as a share of that of the pictures as they are,
        and of the pictures in the paintings' colours; ``ssim`` is the structural similarity of the
        brightness; ``quality`` is 1 - texture, less where ``ssim`` is below 0.3; ``content`` is the
        content loss.
        """
        import torch

        x_BCHW = torch.cat(list(batches))
        return self._rated(models, x_BCHW, self.repaint(models, x_BCHW))

    def _rated(self, models: Models, x_BCHW: Tensor, y_BCHW: Tensor) -> dict[str, float]:
        from trainers.scores.style import rated

        return rated(models["judge"], self.studio.style_BCHW, x_BCHW, y_BCHW)

    def repaint(self, models: Models, x_BCHW: Tensor) -> Tensor:
        """Return pictures of any size repainted, as far as ``strength`` says."""
        import torch

        y_BCHW: Tensor = torch.lerp(x_BCHW, models["net"](x_BCHW), self.strength)
        return y_BCHW

    def baselines(self) -> dict[str, float]:
        """Return the quality of an untrained network, a painting, and the paintings' colours."""
        import torch

        from trainers.blocks.alone import untrained
        from trainers.nets.style import recoloured

        models = untrained(self)
        x_BCHW, style_BCHW = self.studio.held_out("test"), self.studio.style_BCHW
        with torch.no_grad():
            answers = {
                "untrained": models["net"](x_BCHW),
                "painting": style_BCHW[:1].expand_as(x_BCHW),
                "colours": recoloured(x_BCHW, style_BCHW),
            }
            return {name: self._rated(models, x_BCHW, y)["quality"] for name, y in answers.items()}

    def predict(self, models: Models, raw: Path) -> dict[str, Any]:
        """Repaint a picture file in its own size; the answer is a PNG file beside it."""
        import numpy as np
        import torch
        from PIL import Image

        from trainers.pictures.files import open_picture

        picture = open_picture(raw, "RGB")
        if min(picture.size) < SMALLEST:
            raise UsageError(
                f"{raw} has {picture.width} x {picture.height} pixels - allowed: {SMALLEST} or "
                "more each way - do: take a larger picture"
            )
        x_1HWC = torch.from_numpy(np.array(picture))[None] / 255
        with torch.no_grad():
            y_1CHW = self.repaint(models, x_1HWC.movedim(3, 1))
        path = raw.with_name(f"{raw.stem}-stylised.png")
        Image.fromarray(_bytes(y_1CHW)[0]).save(path)
        return {"picture": str(path), "width": picture.width, "height": picture.height}

    def picture(self, models: Models) -> Image.Image:
        """Draw held-out pictures, what becomes of them, and the paintings."""
        import torch

        from trainers.pictures.sheet import Heading, Row, Tile, draw_sheet

        x_BCHW = self.studio.held_out("test")
        with torch.no_grad():
            y_BCHW = self.repaint(models, x_BCHW)
            scores = self._rated(models, x_BCHW, y_BCHW)
        rows = {
            "held out": x_BCHW[:SHOWN],
            "repainted": y_BCHW[:SHOWN],
            "paintings": self.studio.style_BCHW[:SHOWN],
        }
        heading = Heading(
            "Style transfer",
            "pictures it never saw, repainted in one pass",
            f"{1 - scores['texture']:.0%}",
            f"of the way from the colours to the style; similarity {scores['ssim']:.2f}",
        )
        tiles = {label: [Tile(image) for image in _bytes(x)] for label, x in rows.items()}
        return draw_sheet(heading, [Row(some, label) for label, some in tiles.items()], smooth=True)

    def example(self) -> tuple[Tensor, ...]:
        """Return one blank picture."""
        import torch

        return (torch.zeros(1, 3, self.image, self.image),)


def _bytes(x_BCHW: Tensor) -> Any:
    """Return pictures as arrays (B, H, W, C) of bytes."""
    return (x_BCHW * 255).round().clamp(0, 255).byte().movedim(1, -1).numpy()
