"""human/sensors: eleven body sensors tell what somebody does and in which posture.

Shape legend: B batch, C channels, T time, S samples, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dlplatform.task import Models, task
from trainers.blocks.annealed import Annealed
from trainers.blocks.settings import check

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image
    from torch import Tensor

    from trainers.blocks.stream import Stream
    from trainers.data.sensors import Windows

Batch = tuple["Tensor", "Tensor", "Tensor"]
SPLITS = {"train": range(20), "val": range(20, 23), "test": range(23, 28)}
"""Numbers of the subjects: nobody is in two of them."""
ROUNDS = 3  # of each activity
EVALUATION_BATCH = 256
VOTE, SHOWN = 5, 25  # windows that vote on a decision, and that a picture shows
STAIRS = (5, 6)


@task("human/sensors")
@dataclass
class Sensors(Annealed):
    """Windows of 2.56 s (11 channels, 50 Hz) of people who sit, stand, lie, walk, run, climb, turn.

    A batch is (x_BCT, activities, postures). NaN in x is what was not measured.
    """

    primary: ClassVar[str] = "macro_f1"
    source: ClassVar[str] = "Ordonez and Roggen, DeepConvLSTM (2016), one branch a sensor"
    parameters: ClassVar[int] = 212_827
    expected: ClassVar[str] = "0.98"

    batch_size: int = 32
    minibatches: int = 400
    lr: float = 2e-3
    data: str = ""
    """Folder with UCI-HAR, PAMAP2 or CSV files of the channels; empty: simulated subjects."""
    fusion: str = "late"
    """late: a branch of convolutions for each sensor; early: one for all."""
    units: int = 128
    """Units of the LSTM."""
    dropout: float = 0.1
    """Share of the windows in which a sensor is left out of training, for each sensor."""
    without: str = ""
    """A sensor to leave out of all data: acc, gyro, mag, alt or time."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        super().__post_init__()
        check("fusion", self.fusion, self.fusion in ("late", "early"), "late or early")
        check("units", self.units, 1 <= self.units <= 4096, "1 to 4096")
        check("dropout", self.dropout, 0 <= self.dropout < 1, "0 up to, not including, 1")
        known = "acc, gyro, mag, alt, time"
        check("without", self.without, self.without in ("", *known.split(", ")), known)

    def models(self) -> Models:
        """Build the network; mean and spread of the signals are those of the training set."""
        from trainers.nets.sensors import SensorNet
        from trainers.synth.imu import ACTIVITIES, POSTURES

        heads = (len(ACTIVITIES), len(POSTURES))
        net = SensorNet(heads, self.fusion == "early", self.units, self.dropout)
        net.normalise(self.windows("train").x_NCT)
        return {"net": net}

    def windows(self, split: str) -> Windows:
        """Return all windows of ``train``, ``val`` or ``test``."""
        from trainers.data.sensors import load_sensors, simulate

        check("split", split, split in SPLITS, ", ".join(SPLITS))
        if self.data:
            return load_sensors(self.data)[split]
        return simulate(self.seed, SPLITS[split], ROUNDS)

    def batch(self, split: str, number: int) -> Batch:
        """Return minibatch ``number``."""
        from trainers.data.sampling import draw

        count = len(self.windows(split))
        return self._take(split, draw(self.seed, number, self.batch_size, count))

    def batches(self, split: str) -> Iterator[Batch]:
        """Yield all windows of a split, in a fixed order."""
        for first in range(0, len(self.windows(split)), EVALUATION_BATCH):
            yield self._take(split, slice(first, first + EVALUATION_BATCH))

    def loss(self, models: Models, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropies of activity and posture."""
        from torch.nn import functional

        x_BCT, activity, posture = batch
        said = models["net"](x_BCT)
        return {
            "activity": functional.cross_entropy(said.activity_BK, activity),
            "posture": functional.cross_entropy(said.posture_BK, posture),
        }

    def score(self, models: Models, batches: Iterable[Batch]) -> dict[str, float]:
        """Return macro-F1 of activity and posture, accuracy, and F1 of stairs.

        ``stairs_without_alt`` is the latter with the altimeter switched off.
        """
        from trainers.nets.sensors import left_out
        from trainers.scores.f1 import f1, macro_f1

        batches = list(batches)
        counts_KK = self._confusion(models, batches)
        blind = [(left_out(x_BCT, "alt"), does, stands) for x_BCT, does, stands in batches]
        tables = (counts_KK, self._confusion(models, blind))
        stairs, lost = (float(f1(table_KK)[list(STAIRS)].nanmean()) for table_KK in tables)
        return {
            "macro_f1": macro_f1(counts_KK),
            "posture_f1": macro_f1(self._confusion(models, batches, posture=True)),
            "accuracy": float(counts_KK.diagonal().sum() / counts_KK.sum()),
            "stairs_f1": stairs,
            "stairs_without_alt": lost,
        }

    def predict(self, models: Models, raw: Path) -> dict[str, Any]:
        """Return what somebody does over time, from a CSV file with a header of channels."""
        from collections import Counter

        from dlplatform.errors import UsageError
        from trainers.blocks.stream import periods
        from trainers.data.sensors import STEP, WINDOW, read_csv
        from trainers.synth.imu import ACTIVITIES, POSTURES, RATE

        samples_SC = read_csv(raw).samples_SC
        if len(samples_SC) < WINDOW:
            raise UsageError(
                f"{raw} has {len(samples_SC)} samples - allowed: {WINDOW} or more, which are "
                f"{WINDOW / RATE} s at {RATE} Hz - record longer"
            )
        smooth = [vote for _, vote in self.stream(models).feed(samples_SC)]
        activity, posture = Counter(smooth).most_common(1)[0][0]
        return {
            "activity": ACTIVITIES[activity],
            "posture": POSTURES[posture],
            "periods": [
                {"from": first * STEP / RATE, "activity": ACTIVITIES[a], "posture": POSTURES[p]}
                for first, (a, p) in periods(smooth)
            ],
        }

    def stream(self, models: Models) -> Stream[tuple[int, int]]:
        """Return what decides (activity, posture) while samples arrive."""
        import torch

        from trainers.blocks.stream import Stream
        from trainers.data.sensors import STEP, WINDOW

        def decide(window_CT: NDArray[np.float32]) -> tuple[int, int]:
            x_1CT = torch.from_numpy(window_CT.copy())[None]
            with torch.no_grad():
                said = models["net"](self._seen(x_1CT).to(next(models["net"].parameters()).device))
            return int(said.activity_BK.argmax()), int(said.posture_BK.argmax())

        return Stream(decide, WINDOW, STEP, VOTE)

    def baselines(self) -> dict[str, float]:
        """Return the macro-F1 of a guess, an untrained net, a linear one, and early fusion."""
        import torch

        from trainers.blocks.alone import train_alone, untrained
        from trainers.nets.sensors import linear
        from trainers.scores.f1 import confusion, macro_f1
        from trainers.synth.imu import ACTIVITIES

        train, test = self.windows("train"), self.windows("test")
        seen_NCT, asked_NCT = self._seen(train.x_NCT), self._seen(test.x_NCT)
        common = train.activity_N.bincount().argmax()
        answers = {
            "commonest activity": torch.full_like(test.activity_N, int(common)),
            "linear": linear(seen_NCT, train.activity_N, len(ACTIVITIES), asked_NCT),
        }
        early = replace(self, fusion="early")
        nets = {"untrained": (self, untrained(self)), "early fusion": (early, train_alone(early))}
        return {
            name: macro_f1(confusion(test.activity_N, answer, len(ACTIVITIES)))
            for name, answer in answers.items()
        } | {
            name: how.score(models, how.batches("test"))[self.primary]
            for name, (how, models) in nets.items()
        }

    def picture(self, models: Models) -> Image.Image:
        """Draw a minute of a test subject with truth and decisions, and the confusion of all."""
        import torch

        from trainers.data.sensors import joined
        from trainers.pictures.sensors import draw_sensors
        from trainers.synth.imu import record

        with torch.no_grad():
            scores = self.score(models, self.batches("test"))
            counts_KK = self._confusion(models, self.batches("test"))
        subject = record(self.seed, SPLITS["test"][0], 1, mixed=True)
        subject = joined(self.windows("test"), SHOWN) if self.data else subject
        decided = [(raw[0], vote[0]) for raw, vote in self.stream(models).feed(subject.samples_SC)]
        return draw_sensors(subject, decided, counts_KK.numpy(), scores)

    def example(self) -> tuple[Tensor, ...]:
        """Return one window of silence."""
        import torch

        from trainers.data.sensors import WINDOW

        return (torch.zeros(1, 11, WINDOW),)

    def _seen(self, x_BCT: Tensor) -> Tensor:
        from trainers.nets.sensors import left_out

        return left_out(x_BCT, self.without) if self.without else x_BCT

    def _take(self, split: str, index: Tensor | slice) -> Batch:
        import torch

        from trainers.synth.imu import POSTURE_OF

        windows = self.windows(split)
        activity = windows.activity_N[index]
        return self._seen(windows.x_NCT[index]), activity, torch.tensor(POSTURE_OF)[activity]

    def _confusion(self, models: Models, batches: Iterable[Batch], posture: bool = False) -> Tensor:
        from trainers.scores.f1 import confusion

        total_KK: Tensor | int = 0
        for x_BCT, activity, stance in batches:
            said = models["net"](x_BCT)
            truth = stance if posture else activity
            logits_BK = said.posture_BK if posture else said.activity_BK
            counts_KK = confusion(truth.cpu(), logits_BK.argmax(1).cpu(), logits_BK.shape[1])
            total_KK = counts_KK + total_KK
        assert not isinstance(total_KK, int), "a split has at least one batch"
        return total_KK
