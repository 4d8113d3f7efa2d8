"""A user's film or folder through the whole pipeline: what ``dlp predict`` answers of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlplatform.errors import UsageError, closest
from trainers.data.instances import Found, Instances, Kinds
from trainers.data.scenes import Bytes
from trainers.pictures.found import FOLDER, answer_file
from trainers.pipeline.events import Alarm, Alert, Rule, TimeLine
from trainers.pipeline.frame import Frame, Pipeline, Speed, Stage, detector
from trainers.pipeline.sinks import Drawing, JsonLines
from trainers.pipeline.sources import open_source
from trainers.pipeline.tags import Tagger
from trainers.pipeline.tracker import Tracker, Tracking

if TYPE_CHECKING:
    from dlplatform.task import Models
    from trainers.blocks.detector import Detector

Look = Callable[[Bytes], Found]


@dataclass(frozen=True)
class Watching:
    """What is done with a film."""

    rules: Sequence[Rule] = ()
    """Alarms to raise."""
    tracking: Tracking = field(default_factory=Tracking)
    heads: Sequence[tuple[str, Stage]] = ()
    """Stages between the detector and the tracker, by name: crops, second networks."""
    tell: Callable[[Alert], object] | None = None
    """Is told of every alert at once."""
    folder: Path | None = None
    """For what is written; default: ``found`` beside the film."""
    seconds: float = float("inf")
    """Of the film after which to stop: a camera never ends."""
    tagger: Tagger | None = None
    """Takes note of what is seen when, of several films in one index."""


def answer(raw: Path, look: Look, kinds: Kinds, watching: Watching | None = None) -> dict[str, Any]:
    """Return what is found in a picture file, or in a film or moving picture (``watch``)."""
    source = open_source(raw)
    if not source.moving:
        return answer_file(raw, look, kinds)
    return watch(raw, look, kinds, watching)


def watch(
    name: str | Path, look: Look, kinds: Kinds, watching: Watching | None = None
) -> dict[str, Any]:
    """Follow what is found in a film or camera, raise alarms, and write all of it down.

    A line of JSON for every frame and a drawn film go to files; the answer, ready for JSON, names
    them and says how many tracks there are, who was in which state when, what was told, what was
    seen when, and how fast it went. Raises UsageError for a file that is no film.
    """
    watching, source = watching or Watching(), open_source(name)
    path = Path(name)
    folder = watching.folder or path.parent / FOLDER
    stem = "".join(c if c.isalnum() or c in "-_" else "_" for c in path.stem or "film")
    lines = folder / f"{stem}_found.jsonl"
    drawn = folder / f"{stem}_found{'.gif' if path.suffix.lower() in STILLS else '.mp4'}"
    line, tagger, speed = TimeLine(kinds), watching.tagger or Tagger(kinds), Speed()
    zones = {n: corners for rule in watching.rules for n, corners in rule.zones.items()}
    alarms = {f"alarm {rule.name}": Alarm(rule, kinds, watching.tell) for rule in watching.rules}
    stages: dict[str, Stage] = {
        "detector": detector(look),
        **dict(watching.heads),
        "tracker": Tracker(watching.tracking),
        **alarms,
        **{"time line": line, "tags": tagger, "lines": JsonLines(lines, kinds)},
        "drawing": Drawing(drawn, kinds, speed, zones),
    }
    alerts: list[Alert] = []
    tracks: set[int] = set()
    with Pipeline(stages, speed) as pipeline:
        for frame in pipeline.run(_until(source.frames, watching.seconds)):
            alerts += frame.alerts
            tracks |= {number for number in frame.ids if number > 0}
    return {
        **{"tracks": len(tracks), "alerts": [alert.record() for alert in alerts]},
        **{"states": line.record(), "seen": tagger.record().get(str(name), {}).get("seen", {})},
        **{"speed": speed.record(), "lines": str(lines), "picture": str(drawn)},
    }


STILLS = (".gif", ".webp", ".png")
"""Moving pictures, whose answer is drawn as one."""


def _until(frames: Iterable[Frame], seconds: float) -> Iterable[Frame]:
    return takewhile(lambda frame: frame.time < seconds, frames)


def answers_in(
    task: Detector, models: Models, split: str
) -> Iterator[tuple[Found, Instances]]:
    """Yield what a detector finds in the pictures of a split, and what is in them."""
    from dlplatform.device import moved

    where = next(iter(next(iter(models.values())).parameters())).device
    return task.answers(models, (moved(batch, where) for batch in task.batches(split)))


def labels_of(kinds: Kinds, names: Sequence[str]) -> list[int]:
    """Return the labels of kinds by name, none for none; raises UsageError for others."""
    for name in names:
        if name not in kinds.names:
            raise UsageError(
                f"kind {name} is none that is told apart here{closest(name, kinds.names)} - "
                f"allowed: {', '.join(kinds.names)} - do: choose"
            )
    return [kinds.names.index(name) for name in names]


def load_detector(folder: str | Path, device: str = "cpu") -> tuple[Detector, Models]:
    """Return the task and the networks of a run that trained a detector, on a device.

    Raises UsageError for a folder that is none.
    """
    from dlplatform.checkpoint import load_models
    from dlplatform.device import choose
    from dlplatform.world import World
    from trainers.blocks.detector import Detector

    if not Path(folder).is_dir():
        raise UsageError(f"{folder} is not a folder - allowed: a run - do: ls outputs/*/*")
    where = choose(device, World(), setting="device")
    task, models = load_models(folder)
    if not isinstance(task, Detector):
        raise UsageError(
            f"{folder} trained {type(task).__name__}, which finds no objects - allowed: runs of "
            "human/..., face/detection, zoo/...rcnn - do: name another run"
        )
    return task, {name: model.to(where) for name, model in models.items()}
