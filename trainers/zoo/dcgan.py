"""zoo/dcgan: a generator learns to draw new pictures, against a discriminator that learns to tell.

Two networks, two groups of parameters, two optimizers: in every minibatch the discriminator
steps first, then the generator, each while the other stands still.

Shape legend: B batch, S steps of the generator, Z noise, C channels, H height, W width, N pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dlplatform.seeds import derive
from dlplatform.task import Models, Terms, task
from trainers.blocks.settings import check
from trainers.blocks.supervised import Supervised

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn

    from trainers.data.unlabelled import Pictures
    from trainers.scores.made import Expert

SIZES = (8, 16, 32, 64, 128)
JUDGED, MADE = 1000, 500
"""Real pictures of a split at most, and made ones, that a score looks at."""


@task("zoo/dcgan")
@dataclass
class DCGAN(Supervised):
    """Draws digits of 16x16 pixels as it has never seen them; or pictures as in a folder.

    A batch is (x_BCHW in [-1, 1], noise_SBZ). The score weighs two shares alike: of made pictures
    that lie among real held-out ones, and of those that lie among made ones.
    """

    primary: ClassVar[str] = "f1"
    source: ClassVar[str] = "Radford et al. 2016"
    parameters: ClassVar[int] = 33_970
    expected: ClassVar[str] = "0.63"

    batch_size: int = 64
    minibatches: int = 400
    lr: float = 1e-3
    data: str = ""
    """Folder of pictures in files, as of CelebA or LSUN; empty: the bundled digits."""
    size: int = 16
    """Height and width of the pictures: 8, 16, 32, 64 or 128."""
    width: int = 16
    """Channels next to the picture; they double with every halving. The paper has 128."""
    noise: int = 32
    """Numbers that a picture is made from, in [-1, 1]; the paper has 100."""
    g_steps: int = 1
    """Steps of the generator for one of the discriminator."""
    beta: float = 0.5
    """Adam's decay of the mean gradient."""
    grids: str = ""
    """Folder for a grid of samples every ``grid_every`` minibatches; empty: none."""
    grid_every: int = 250

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        super().__post_init__()
        check("size", self.size, self.size in SIZES, ", ".join(map(str, SIZES)))
        for name in ("width", "noise", "g_steps", "grid_every"):
            check(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        check("beta", self.beta, 0 <= self.beta < 1, "0 up to, not including, 1")
        check("batch_size", self.batch_size, self.batch_size > 1, "2 or more, for batch norm")

    def models(self) -> Models:
        """Build generator and discriminator."""
        from trainers.nets.dcgan import Discriminator, Generator

        form = self.size, self._channels(), self.width
        return {"G": Generator(*form, self.noise), "D": Discriminator(*form)}

    def groups(self, models: Models) -> dict[str, Iterable[nn.Parameter]]:
        """Return a group for each network."""
        return {name: models[name].parameters() for name in ("D", "G")}

    def batch(self, split: str, number: int) -> tuple[Tensor, Tensor]:
        """Return real pictures, and noise for every step of the generator."""
        from trainers.data.sampling import draw

        real = self._real(split)
        x_BCHW = real.take(draw(self.seed, number, self.batch_size, len(real)))
        seed = derive(self.seed, "noise", split, number)
        noise_NZ = self._noise(seed, self.g_steps * self.batch_size)
        return 2 * x_BCHW - 1, noise_NZ.view(self.g_steps, self.batch_size, self.noise)

    def batches(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the real pictures of a split at once, and noise for as many made ones as judged."""
        import torch

        real = self._real(split)
        x_NCHW = real.take(torch.arange(min(JUDGED, len(real))))
        yield 2 * x_NCHW - 1, self._noise(derive(self.seed, "noise", split), MADE)[None]

    def losses(
        self, models: Models, batch: tuple[Tensor, Tensor]
    ) -> Iterator[tuple[str, Tensor | Terms]]:
        """Yield the discriminator's loss, then the generator's: real is 1, made is 0."""
        from trainers.nets.dcgan import judged

        yield "D", self.loss(models, batch)
        for noise_BZ in batch[1]:
            # Not the negative of the other loss: that one is flat as long as all is found out.
            yield "G", judged(models["D"](models["G"](noise_BZ)), real=True)

    def loss(self, models: Models, batch: tuple[Tensor, Tensor]) -> Terms:
        """Return the discriminator's loss on real and on made pictures."""
        from trainers.nets.dcgan import judged

        x_BCHW, noise_SBZ = batch
        made_BCHW = models["G"](noise_SBZ[0]).detach()
        return {
            "real": judged(models["D"](x_BCHW), real=True),
            "made": judged(models["D"](made_BCHW), real=False),
        }

    def after(self, models: Models, number: int) -> None:
        """Write a grid of samples, if so configured."""
        if self.grids and (number + 1) % self.grid_every == 0:
            from trainers.pictures.made import save_grid

            noise_NZ = self._noise(derive(self.seed, "grid"), 64)
            save_grid(self._made(models, noise_NZ), Path(self.grids) / f"{number + 1:07d}.png")

    def score(self, models: Models, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Return how alike made and real pictures are, and how sure the experts are of them."""
        from trainers.scores.made import coverage, likeness, novelty, told_apart

        ((x_NCHW, noise_SNZ),) = batches
        real_NCHW, made_NCHW = (x_NCHW.cpu() + 1) / 2, self._made(models, noise_SNZ[0])
        found = likeness(self._expert(), real_NCHW, made_NCHW, self._first(noise_SNZ[0]))
        found["novelty"] = novelty(made_NCHW, real_NCHW, self._known())
        found["told_apart"] = told_apart(models["D"], x_NCHW, 2 * made_NCHW - 1)
        if not self.data:
            sure_N, answer_N = self._expert().sure(made_NCHW)
            found |= {"confidence": float(sure_N.mean()), "coverage": coverage(sure_N, answer_N)}
        return found

    def optimizer(self, group: str, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return Adam with a short memory."""
        from torch.optim import Adam

        return Adam(parameters, lr=self.lr, betas=(self.beta, 0.999))

    def rate(self, progress: float) -> float:
        """Stay for half of the run, then fall to a tenth along a line."""
        return 1.0 - 1.8 * max(0.0, progress - 0.5)

    def baselines(self) -> dict[str, float]:
        """Return the score of other ways to make pictures, and of real ones as the best there is.

        ``gaussian`` has the mean and covariance of the pixels.
        """
        from trainers.scores.made import gaussian_like, likeness

        ((x_NCHW, noise_SNZ),) = self.batches("test")
        known_NCHW, first_NCHW = self._known(), self._first(noise_SNZ[0])
        ways = {
            "untrained": first_NCHW,
            "gaussian": gaussian_like(known_NCHW, MADE, derive(self.seed, "gaussian")),
            "real": known_NCHW[:MADE],
        }
        expert, real_NCHW = self._expert(), (x_NCHW + 1) / 2
        return {
            name: likeness(expert, real_NCHW, made_NCHW, first_NCHW)["f1"]
            for name, made_NCHW in ways.items()
        }

    def picture(self, models: Models) -> Image.Image:
        """Draw made pictures beside the real ones nearest to them, and a walk through the noise."""
        from trainers.nets.dcgan import between
        from trainers.pictures.made import draw_made

        scores = self.score(models, self.batches("test"))
        made_NCHW = self._made(models, self._noise(derive(self.seed, "picture"), 40))
        walk_BZ = between(self._noise(derive(self.seed, "ends"), 2), 10)
        said = None if self.data else self._expert().sure(made_NCHW)
        return draw_made(made_NCHW, self._known(), self._made(models, walk_BZ), said, scores)

    def predict(self, models: Models, raw: Path) -> dict[str, Any]:
        """Return how real the discriminator finds a picture, or make some.

        A JSON file ``{"seed": 7, "count": 16}`` makes pictures; they are written beside it as PNG.
        """
        from trainers.pictures.made import answer

        def make(seed: int, count: int) -> Tensor:
            return self._made(models, self._noise(derive(seed, "asked"), count))

        return answer(raw, make, models["D"], (self._channels(), self.size, self.size))

    def example(self) -> tuple[Tensor, ...]:
        """Return the noise of one picture, for the generator."""
        return (self._noise(0, 1),)

    def _channels(self) -> int:
        return 3 if self.data else 1

    def _real(self, split: str) -> Pictures:
        from trainers.data.unlabelled import Kept, load_pictures
        from trainers.scores.made import resized_digits

        check("split", split, split in ("train", "val", "test"), "train, val, test")
        if self.data:
            return load_pictures(self.data, self.size)[split]
        return Kept(resized_digits(split, self.size)[0])

    def _known(self) -> Tensor:
        """Return pictures for training, as many as a score looks at, in [0, 1]."""
        import torch

        real = self._real("train")
        return real.take(torch.arange(min(2 * JUDGED, len(real))))

    def _expert(self) -> Expert:
        from trainers.scores.made import blind_expert, digit_expert

        return blind_expert(self.size, 3) if self.data else digit_expert(self.size)

    def _noise(self, seed: int, count: int) -> Tensor:
        import torch

        draw = torch.Generator().manual_seed(seed)
        return 2 * torch.rand(count, self.noise, generator=draw) - 1

    def _made(self, models: Models, noise_NZ: Tensor) -> Tensor:
        """Return pictures in [0, 1], in eval mode, on the CPU."""
        from trainers.blocks.classify import logits

        return (logits(models["G"], noise_NZ).cpu() + 1) / 2

    def _first(self, noise_NZ: Tensor) -> Tensor:
        """Return what the generator makes before any training."""
        from trainers.blocks.alone import untrained

        return self._made(untrained(self), noise_NZ)
