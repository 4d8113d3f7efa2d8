"""zoo/rcnn: selective search, a net for each region, support vector machines, box regressors.

    dlp train task=zoo/rcnn workers=2 rule=ssgd
    dlp train task=zoo/rcnn workers=2 rule=ssgd task.scorer=softmax task.regress=false

Four stages follow each other in a run: the net learns to name warped regions; from then on it only
describes them, and support vector machines, then regressors, learn from what it says.

Shape legend: B batch, C channels, H height, W width, R regions, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from dlplatform.task import Mean, Models, task
from trainers.blocks.searched import Searched
from trainers.blocks.settings import check
from trainers.blocks.supervised import cosine

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from trainers.data.instances import Found, Kinds
    from trainers.nets.crops import CropNet


NET, SVM, BOXES = range(3)
"""What learns; the features, the second stage, are made when they are asked for."""
SCORERS = ("svm", "softmax")


@task("zoo/rcnn")
@dataclass
class RCNN(Searched):
    """Scenes of discs, squares and triangles, each proposal seen by a net of its own.

    A batch is (x_BCHW normalised, objects and proposals of each picture, its number).
    """

    source: ClassVar[str] = "Girshick, Donahue, Darrell and Malik, R-CNN (2014)"
    parameters: ClassVar[int] = 157_107
    expected: ClassVar[str] = "0.94"
    title: ClassVar[str] = "Scenes, R-CNN"

    batch_size: int = 4
    minibatches: int = 600
    warped: int = 32
    """Height and width that regions are warped to; the paper has 227."""
    context: float = 2.0
    """Pixels of these that show what is around a box; the paper has 16."""
    width: float = 0.125
    """Factor on the channels of VGG-11."""
    hidden: int = 64
    """Units of both hidden layers: the second one's are what support vector machines see."""
    shares: str = "0.6 0.2"
    """Shares of the run in which the net and the support vector machines learn; the rest is the
    regressors'."""
    mined: int = 3
    """Hard negatives for each object that support vector machines learn from."""
    linear_lr: float = 0.05
    """Peak learning rate of support vector machines and regressors."""
    penalty: float = 1e-4
    """Of the weights of support vector machines and regressors."""
    scorer: str = "svm"
    """svm, or softmax: the net's own chances, to compare."""
    regress: bool = True
    """Move boxes by the regressors."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        super().__post_init__()
        check("warped", self.warped, self.warped % 32 == 0 and self.warped > 0, "32, 64, 96, ...")
        fits = 0 <= self.context < self.warped / 4
        check("context", self.context, fits, f"0 up to, not including, {self.warped // 4}")
        check("width", self.width, self.width > 0, "above 0")
        check("hidden", self.hidden, self.hidden >= 1, "1 or more")
        words = self.shares.split()
        fits = len(words) == 2 and all(word.replace(".", "", 1).isdigit() for word in words)
        fits = fits and min(map(float, words)) > 0 and sum(map(float, words)) < 1
        check("shares", self.shares, fits, "two numbers above 0, together below 1")
        check("mined", self.mined, self.mined >= 1, "1 or more")
        check("linear_lr", self.linear_lr, self.linear_lr > 0, "above 0")
        check("penalty", self.penalty, self.penalty >= 0, "0 or more")
        check("scorer", self.scorer, self.scorer in SCORERS, "svm or softmax")

    def network(self, kinds: Kinds) -> nn.Module:
        """Build the net that sees regions."""
        from trainers.nets.crops import CropNet

        return CropNet(len(kinds.names), self.warped, self.width, self.hidden)

    def models(self) -> Models:
        """Build the net, the support vector machines and the regressors."""
        from trainers.blocks.svm import LinearSVM
        from trainers.nets.crops import BoxRegressor

        net = cast("CropNet", super().models()["net"])
        return {
            "net": net,
            "svm": LinearSVM(self.hidden, net.classes),
            "boxes": BoxRegressor(net.place_features, net.classes),
        }

    def groups(self, models: Models) -> dict[str, Iterable[nn.Parameter]]:
        """Return three groups, one for each stage that learns."""
        return {name: model.parameters() for name, model in models.items()}

    def batch(self, split: str, number: int) -> Any:
        """Return minibatch ``number``."""
        return (*super().batch(split, number), number)

    def ends(self) -> tuple[float, float]:
        """Return the progress at which the net is done, and the support vector machines."""
        net, svm = map(float, self.shares.split())
        return net, net + svm

    def stage(self, number: int) -> int:
        """Return what learns in a minibatch."""
        return sum(number >= end * self.minibatches for end in self.ends())

    def rate(self, progress: float) -> float:
        """Rise and fall in every stage anew."""
        edges = (0.0, *self.ends(), 1.0)
        stage = sum(progress >= end for end in edges[1:3])
        begin, end = edges[stage], edges[stage + 1]
        # What momentum is left of the stage before must not carry far.
        return cosine((progress - begin) / (end - begin), max(self.warmup, 0.2 * (stage > 0)))

    def losses(self, models: Models, batch: Any) -> Iterator[tuple[str, dict[str, Mean]]]:
        """Yield the loss of every group; those whose stage it is not ask for nothing.

        All groups step in every minibatch with the same terms, so that no worker waits for
        another that is a stage ahead.
        """
        from trainers.blocks.fourstage import Seen, moving, naming, separating
        from trainers.blocks.proposals import apart
        from trainers.nets.rcnn import Sampling

        x_BCHW, rows, number = batch
        parts, stage = [apart(one) for one in rows], self.stage(number)
        truths, boxes = [truth for truth, _ in parts], [boxes for _, boxes in parts]
        seen = Seen(truths, boxes, lambda boxes: self.cut(x_BCHW, boxes))
        learn = (
            lambda: naming(models, seen, Sampling(self.overlap(), self.regions)),
            lambda: separating(models, seen, self.mined, self.penalty),
            lambda: moving(models, seen, self.penalty),
        )
        for place, (name, model) in enumerate(models.items()):
            if place == stage:
                yield name, {name: learn[place]()}
            else:
                yield name, {name: Mean(next(model.parameters()).sum() * 0.0, 0.0)}

    def loss(self, models: Models, batch: Any) -> dict[str, Mean]:
        """Return the losses of all groups together."""
        terms: dict[str, Mean] = {}
        for _, own in self.losses(models, batch):
            terms |= own
        return terms

    def cut(self, x_BCHW: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """Return regions of pictures, warped."""
        from trainers.nets.crops import warped

        return warped(x_BCHW, boxes, self.warped, self.context)

    def found_in(self, models: Models, x_BCHW: Tensor, boxes: Sequence[Tensor]) -> list[Found]:
        """Return what is found among boxes: the net runs once for every one of them."""
        import torch

        net, answers = cast("CropNet", models["net"]), []
        for x_1CHW, boxes_R4 in zip(torch.split(x_BCHW, 1), boxes, strict=True):
            seen = net.seen(self.cut(x_1CHW, [boxes_R4]))
            answers.append(self.answered(models, seen, boxes_R4, x_1CHW))
        return answers

    def answered(
        self, models: Models, seen: tuple[Tensor, Tensor], boxes_R4: Tensor, x_1CHW: Tensor
    ) -> Found:
        """Return what is found in the regions of a picture: suppressed first, then moved.

        ``seen`` is what the net says of the regions.
        """
        import torch

        from trainers.blocks.boxes import clip, from_deltas
        from trainers.blocks.rows import of_class
        from trainers.nets.crops import even
        from trainers.nets.rcnn import detected

        net, (features_RF, places_RF) = cast("CropNet", models["net"]), seen
        with torch.no_grad():
            chances_RK = self._chances(models, features_RF)
            same_RK4 = boxes_R4[:, None].expand(-1, net.classes, -1)
            found, region = detected(chances_RK, same_RK4, self.limits())
            if not self.regress:
                return found
            deltas_NK4 = models["boxes"](even(places_RF[region]))
        moved_N4 = from_deltas(found.boxes_N4, of_class(deltas_NK4, found.labels_N))
        return found._replace(boxes_N4=clip(moved_N4, x_1CHW.shape[2], x_1CHW.shape[3]))

    def _chances(self, models: Models, features_RF: Tensor) -> Tensor:
        """Return how sure it is of each class in regions, 0 to 1, and of nothing."""
        import torch

        from trainers.nets.crops import even

        if self.scorer == "softmax":
            return cast("CropNet", models["net"]).named(features_RF).softmax(1)
        scores_RK = models["svm"](even(features_RF))
        # A half on the border of a machine, nearly sure beyond its margin.
        return torch.cat([(2 * scores_RK).sigmoid(), torch.zeros_like(scores_RK[:, :1])], 1)

    def optimizer(self, group: str, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the net's optimizer; SGD at a rate of its own for what is linear."""
        from torch.optim import SGD

        if group == "net":
            return super().optimizer(group, parameters)
        return SGD(parameters, lr=self.linear_lr, momentum=0.9)
