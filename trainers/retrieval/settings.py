"""Settings of few-shot retrieval, and what follows from them alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trainers.blocks.settings import check
from trainers.blocks.supervised import Supervised
from trainers.data.episodes import Episodes

if TYPE_CHECKING:
    from trainers.blocks.maml import Inner
    from trainers.retrieval.domains import Domains

LOSS_NAMES = (
    *("contrastive", "triplet", "triplet_semi", "n_pair", "lifted", "multi_similarity"),
    "relative",
)
ORIGINS = ("source", "target", "both")


@dataclass
class FewShotSettings(Supervised):
    """What is trained on, the two stages, the adaptation and the episodes."""

    batch_size: int = 40
    """Pictures of a minibatch of stage 1: classes of ``shots`` pictures."""
    minibatches: int = 200
    lr: float = 1e-3
    data: str = ""
    """Folder with source/ and target/, each of class folders; empty: glyphs and digits."""
    database: str = ""
    """Folder of pictures that dlp predict searches; empty: the test pictures."""
    side: int = 16
    """Pixels; pictures of folders are fitted to it."""
    colour: bool = False
    """Read pictures of folders as RGB."""
    width: int = 24
    """Channels of the first convolution, doubled up to 64 by each further one; a multiple of 8."""
    blocks: int = 3
    """Convolutions."""
    metric: str = "multi_similarity"
    """contrastive, triplet, triplet_semi, n_pair, lifted, multi_similarity or relative."""
    pretrain: float = 0.9
    """Share of a cycle that is stage 1; 1: no MAML, that is simple fine-tuning."""
    cycles: int = 1
    """How often the stages alternate."""
    episodes: int = 2
    """Episodes of a minibatch of stage 2."""
    episodes_from: str = "source"
    """source, target (its few labelled pictures for training) or both in turn."""
    inner_steps: int = 5
    """Steps of adaptation in an episode of stage 2."""
    steps: int = 20
    """Steps of adaptation to the few labelled pictures of the target."""
    alpha: float = 0.1
    """Step size of adaptation."""
    second_order: bool = True
    """Differentiate through the steps of adaptation; false: FOMAML."""
    meta_sgd: bool = False
    """Learn the step size of every weight."""
    adapt: str = "all"
    """all weights, or a linear head alone (a Mahalanobis distance)."""
    shots: int = 5
    """Pictures of each class to adapt to."""
    support_classes: int = 8
    """Classes of the support of an episode."""
    query_classes: int = 4
    """Classes of the query of an episode."""
    class_shared: bool = False
    """Query classes are among those of the support, in other pictures."""
    criterion: int = 5
    """Labels of the support are more than this, those of the query fewer."""
    label_unit: str = "classes"
    """What the criterion counts: classes or images."""
    nearest: int = 6
    """Pictures that a search returns."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        super().__post_init__()
        check("metric", self.metric, self.metric in LOSS_NAMES, ", ".join(LOSS_NAMES))
        check("adapt", self.adapt, self.adapt in ("all", "head"), "all or head")
        origin = self.episodes_from
        check("episodes_from", origin, origin in ORIGINS, ", ".join(ORIGINS))
        check("pretrain", self.pretrain, 0 <= self.pretrain <= 1, "0 to 1")
        check("alpha", self.alpha, self.alpha > 0, "above 0")
        check("side", self.side, 16 <= self.side <= 512, "16 to 512")
        check("width", self.width, self.width >= 8 and self.width % 8 == 0, "a multiple of 8")
        check("blocks", self.blocks, 1 <= self.blocks <= 4, "1 to 4")
        for name in ("cycles", "episodes", "inner_steps", "steps", "nearest"):
            check(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        assert self.plan, "episodes check themselves"
        least = 2 * self.shots
        check("batch_size", self.batch_size, self.batch_size >= least, f"{least} or more")

    @property
    def cycle(self) -> int:
        """Return the minibatches of one cycle of both stages."""
        return max(self.minibatches // self.cycles, 1)

    def stage(self, number: int) -> int:
        """Return the stage of a minibatch: 1, metric learning, or 2, MAML."""
        return 1 if number % self.cycle < round(self.pretrain * self.cycle) else 2

    @property
    def plan(self) -> Episodes:
        """Return what episodes are made of."""
        return Episodes(
            self.support_classes, self.query_classes, self.shots, self.class_shared,
            self.criterion, self.label_unit,
        )  # fmt: skip

    @property
    def domains(self) -> Domains:
        """Return where pictures come from."""
        from trainers.retrieval.domains import Domains

        return Domains(self.data, self.side, 3 if self.data and self.colour else 1, self.seed)

    @property
    def inner(self) -> Inner:
        """Return how a network adapts in an episode."""
        from trainers.blocks.maml import Inner
        from trainers.blocks.metric import LOSSES

        part = "head" if self.adapt == "head" else ""
        return Inner(LOSSES[self.metric], self.inner_steps, self.alpha, self.second_order, part)

    @property
    def deployed(self) -> Inner:
        """Return how a trained network adapts to the target."""
        return replace(self.inner, steps=self.steps)
