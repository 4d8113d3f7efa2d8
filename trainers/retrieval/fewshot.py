"""retrieval/fewshot: a distance between pictures that a few labelled ones adapt to new classes.

Shape legend: G sets, N pictures, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dlplatform.seeds import derive
from dlplatform.task import Models, task
from trainers.blocks.settings import check
from trainers.blocks.supervised import cosine
from trainers.retrieval.settings import FewShotSettings

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from trainers.blocks.maml import Labelled, Weights
    from trainers.data.samples import Samples
    from trainers.retrieval.device import SearchDevice
    from trainers.retrieval.domains import Draw

DRAWS = {"train": 1, "val": 1, "test": 5}
Sets = tuple["Labelled", ...]


@task("retrieval/fewshot")
@dataclass
class FewShot(FewShotSettings):
    """Retrieval trained on many classes, adapted to other classes by a few labelled pictures.

    Stage 1 is metric learning on the source, stage 2 MAML on episodes; which one a minibatch is
    of depends on its number alone. A batch is (sets,) or (support, query): Labelled sets stacked.
    A draw of a split is a few pictures to adapt to, and the rest, searched by each of them.
    """

    primary: ClassVar[str] = "map_r"
    source: ClassVar[str] = "patent on few-shot retrieval; Finn et al. (2017), Jung et al. (2022)"
    parameters: ClassVar[int] = 38_640
    expected: ClassVar[str] = "0.40"

    def models(self) -> Models:
        """Build the network, and the step sizes if they are learnt."""
        from trainers.blocks.maml import StepSizes
        from trainers.nets.embedding import Embedding

        widths = tuple(max(min(self.width << n, 64), self.width) for n in range(self.blocks))
        net = Embedding(self.domains.channels, widths, head=self.adapt == "head")
        return {"net": net} | ({"sizes": StepSizes(net, self.alpha)} if self.meta_sgd else {})

    def batch(self, split: str, number: int) -> Sets:
        """Return minibatch ``number``: a set for metric learning, or episodes."""
        from trainers.retrieval.domains import stacked

        source = self.domains.source()["train"]
        if self.stage(number) == 1:
            return (stacked([source.take(self.picked(number))]),)
        drawn = [self._episode(number * self.episodes + n) for n in range(self.episodes)]
        return tuple(stacked(part) for part in zip(*drawn, strict=True))

    def picked(self, number: int) -> Tensor:
        """Return the indices into the source of a minibatch of stage 1: some of some classes."""
        from trainers.data.episodes import draw_classes

        labels, classes = self.domains.source()["train"].labels, self.batch_size // self.shots
        return draw_classes(labels, classes, self.shots, derive(self.seed, "set", number)).flatten()

    def _episode(self, number: int) -> tuple[Samples, Samples]:
        few = self.episodes_from == "target" or (self.episodes_from == "both" and number % 2)
        samples = self.few(2 * self.shots) if few else self.domains.source()["train"]
        parts = self.plan.draw(samples.labels, derive(self.seed, "episode", number))
        return samples.take(parts[0]), samples.take(parts[1])

    def few(self, each: int) -> Samples:
        """Return dataset 2 as training and deployment see it: ``each`` pictures of every class."""
        from trainers.data.episodes import few_of_each

        samples = self.domains.target()["train"]
        return samples.take(few_of_each(samples.labels, each, derive(self.seed, "few"))[0])

    def batches(self, split: str) -> Iterator[Draw]:
        """Yield draws of a split: each is other pictures to adapt to, and all the rest."""
        from trainers.data.episodes import few_of_each
        from trainers.retrieval.domains import Draw

        check("split", split, split in DRAWS, ", ".join(DRAWS))
        samples = self.domains.target()[split]
        for number in range(DRAWS[split]):
            seed = derive(self.seed, "draw", split, number)
            yield Draw.of(samples, *few_of_each(samples.labels, self.shots, seed, spare=2))

    def loss(self, models: Models, batch: Sets) -> Tensor:
        """Return the metric loss of a set, or that on the query after adapting to the support."""
        import torch

        from trainers.blocks.maml import query_loss

        net, inner = models["net"], self.inner
        if len(batch) == 1:
            losses = [inner.loss(net(one.pictures), one.labels) for one in batch[0].sets()]
        else:
            pairs = zip(batch[0].sets(), batch[1].sets(), strict=True)
            sizes = self.sizes(models)
            losses = [query_loss(net, *pair, inner, sizes) for pair in pairs]
        return torch.stack(losses).mean()

    def sizes(self, models: Models) -> Weights | None:
        """Return the learnt step sizes, if there are any."""
        return models["sizes"].named(models["net"]) if self.meta_sgd else None  # type: ignore

    def score(self, models: Models, batches: Iterable[Draw]) -> dict[str, float]:
        """Return how well adapted and unadapted copies search, and how source and target agree."""
        from trainers.retrieval.compare import scores

        return scores(self, models, list(batches))

    def rate(self, progress: float) -> float:
        """Fall to a tenth along half a cosine."""
        return cosine(progress, least=0.1)

    def optimizer(self, group: str, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """Return Adam."""
        from torch.optim import Adam

        return Adam(parameters, lr=self.lr)

    def baselines(self) -> dict[str, float]:
        """Return MAP@R of hand-made descriptors and of networks that do without MAML."""
        from trainers.retrieval.compare import references

        return references(self)

    def searcher(self, models: Models) -> SearchDevice:
        """Return a device adapted to the few labelled pictures, with the database in its index."""
        from trainers.blocks.maml import Labelled
        from trainers.retrieval.device import SearchDevice

        few = self.few(self.shots)
        device = SearchDevice(models["net"], self.deployed, few.names, self.sizes(models))
        database = self.domains.database(self.database)
        device.adapt("target", Labelled(*few.pair()), database)
        return device

    def predict(self, models: Models, raw: Path) -> dict[str, Any]:
        """Return the pictures of the database nearest to a picture file, and its class.

        A JSON file ``{"picture": FILE, "relevant": [true, false, ...]}`` judges what that picture
        finds, nearest first; the answer is the search after that feedback.
        """
        from trainers.retrieval.feedback import read_feedback

        picture, flags = read_feedback(raw)
        device = self.searcher(models)
        device.receive(self.domains.read(picture))
        if flags:
            device.search("target", self.nearest)
            device.feedback("target", flags)
        label, same = device.same_class("target")
        nearest = [
            {"image": hit.name, "class": hit.label, "distance": round(hit.distance, 4)}
            for hit in device.search("target", self.nearest)
        ]
        return {"class": label, "pictures_of_class": len(same), "nearest": nearest}

    def picture(self, models: Models) -> Image.Image:
        """Draw what a few test pictures find without and with adaptation."""
        from trainers.retrieval.sheet import draw_searches, searches

        draw, names = next(self.batches("test")), self.domains.target()["test"].names
        found = searches(
            models["net"], draw, names, self.deployed, self.sizes(models), self.nearest
        )
        return draw_searches(found, draw.rest.pictures, self.shots)

    def example(self) -> tuple[Tensor, ...]:
        """Return one blank picture."""
        import torch

        return (torch.zeros(1, self.domains.channels, self.side, self.side),)
