"""road/deformable: every pixel of a road scene, with a context module of few, moving samples.

Shape legend: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, ClassVar

from dlplatform.errors import closest
from dlplatform.task import Models, task
from trainers.blocks.segmenter import Pair, Segmenter
from trainers.blocks.settings import check
from trainers.road.choices import CONTEXTS, HOSTS, OFFSETS, VALIDITY

if TYPE_CHECKING:
    from torch import Tensor, nn

MIB = 2**20


@task("road/deformable")
@dataclass
class DeformableRoad(Segmenter):
    """Road scenes, with squeezed deformable convolutions in a pyramid of shared kernels (DSPP).

    A batch is a pair (x_B3HW normalised, labels_BHW with 255 where ignored).
    """

    source: ClassVar[str] = "KR 10-2023-0017679 (DSPP); ESPNetv2 (2019); DeepLabv3+ (2018)"
    parameters: ClassVar[int] = 233_160
    expected: ClassVar[str] = "0.83"
    title: ClassVar[str] = "Road scenes"

    lr: float = 0.05
    scale: float = 1.0
    module: str = "dspp"
    """Context module: conv, df (deformable), sdf (squeezed deformable), spp, aspp or dspp at
    stride 16; spp_ext, aspp_ext, dspp_ext and dspp_ext_dup at strides 16 and 8."""
    host: str = "tiny"
    """Network around it: tiny, espnet (ESPNetV2 of scale 1.5) or deeplab (v3+, ResNet-50)."""
    validity: str = "gate"
    """Where the paths of a DSPP disagree: implicit (they only share kernels), gate (the more
    valid offsets count more), gate+guide (and pull the others)."""
    skip: bool = True
    """The module at stride 8 sees the encoder's features there, too."""
    share: bool = False
    """The DSPP at stride 8 has the kernels of the one at stride 16."""
    tied: bool = True
    """The paths of a DSPP share their kernels; false: each learns alone, to compare."""
    at_once: bool = False
    """Compute the paths of a DSPP in threads of their own."""
    offsets: str = "real"
    """real: read between pixels; integer: round when it does not train; auto: round then if the
    samples need more than the budget; tuned: round in training, too, offsets stay as they are."""
    budget: float = 64.0
    """MiB of samples of one layer above which auto rounds."""
    offset_rate: float = 1.0
    """Factor on the gradient of offsets; 0.1 where they run away."""
    start: str = ""
    """Folder of a finished run to start from, as for tuned offsets."""
    encoder: str = ""
    """File with weights of the encoder, .safetensors or a state dictionary of torch."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        super().__post_init__()
        for name, allowed in (
            ("module", CONTEXTS), ("host", HOSTS), ("validity", VALIDITY), ("offsets", OFFSETS),
        ):  # fmt: skip
            value = getattr(self, name)
            check(name, f"{value}{closest(value, allowed)}", value in allowed, ", ".join(allowed))
        check("budget", self.budget, self.budget >= 0, "0 or more (MiB)")
        check("offset_rate", self.offset_rate, self.offset_rate > 0, "above 0")
        tuned = self.offsets == "tuned"
        check("offsets", self.offsets, not tuned or bool(self.start), "tuned with a task.start")

    def network(self, classes: int) -> nn.Module:
        """Build the host with its context module."""
        from trainers.nets.deformable import deformables, set_offsets
        from trainers.road.contexts import Wiring
        from trainers.road.hosts import host
        from trainers.road.starts import load_encoder

        names = ("validity", "skip", "share", "tied", "at_once")
        wiring = Wiring(**{name: getattr(self, name) for name in names})
        net = host(self.host, self.module, classes, wiring)
        set_offsets(net, self.offsets, int(self.budget * MIB))
        for layer in deformables(net):
            layer.rate = self.offset_rate
        if self.encoder:
            load_encoder(net.encoder, self.encoder)  # type: ignore[arg-type]
        return net

    def begin(self, models: Models) -> str:
        """Take the weights of the run ``start``."""
        from trainers.road.starts import continue_run

        if not self.start:
            return ""
        continue_run(models, self.start)
        return f"weights of {self.start}"

    def groups(self, models: Models) -> dict[str, Iterable[nn.Parameter]]:
        """Return all parameters, without those of offsets while these are rounded in training.

        They get no gradient then, and neither momentum nor decay nor a box may move them.
        """
        from trainers.nets.deformable import offset_parameters

        still = offset_parameters(models["net"]) if self.offsets == "tuned" else set()
        return {"main": [p for p in models["net"].parameters() if p not in still]}

    def loss(self, models: Models, batch: Pair) -> Tensor | dict[str, Tensor]:
        """Return the cross-entropy of the pixels, and the pull on offsets if there is a guide."""
        from trainers.nets.pyramids import take_guides

        terms = super().loss(models, batch)
        guides = take_guides(models["net"])
        if not guides:
            return terms
        named = terms if isinstance(terms, dict) else {"pixels": terms}
        return {**named, "guide": sum(guides[1:], guides[0])}

    def score(self, models: Models, batches: Iterable[Pair]) -> dict[str, float]:
        """Return mIoU, accuracies and boundary F1, and what the paths of DSPPs say of offsets.

        The latter are means over all DSPPs for the first batch: offset_disagreement in pixels,
        offset_ratio of the first to the second path (the patent expects 2), offset_correlation of
        the two, the validity of each path and the share of pixels where it was the most valid one.
        """
        from trainers.nets.pyramids import inspect

        rest = iter(batches)
        first = next(rest)
        said = inspect(models["net"], first[0])
        return {**super().score(models, chain([first], rest)), **said}

    def baselines(self) -> dict[str, float]:
        """Return those of every segmenter; for a run that starts from another, what that reached.

        With tuned offsets: what rounding costs, and this run's score says what tuning won back.
        """
        said = super().baselines()
        if self.start:
            from trainers.blocks.alone import untrained
            from trainers.nets.deformable import set_offsets

            models = untrained(self)
            self.begin(models)
            del said["untrained"]
            said["start"] = self.score(models, self.batches("test"))["mIoU"]
            if set_offsets(models["net"], "real"):
                said["start, real offsets"] = self.score(models, self.batches("test"))["mIoU"]
        return said
