"""A user's film or folder through the whole pipeline: what ``dlp predict`` answers of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlplatform.errors import UsageError, closest
from trainers.blocks.blur import FOLDER as BLURRED
from trainers.blocks.blur import Blur, write_blurred
from trainers.data.instances import Found, Instances, Kinds
from trainers.data.scenes import Bytes
from trainers.pictures.found import FOLDER, answer_file
from trainers.pipeline.events import Alarm, Alert, Rule, TimeLine
from trainers.pipeline.frame import Frame, Pipeline, Speed, Stage, detector
from trainers.pipeline.sinks import Blurring, Drawing, JsonLines
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
    folder = watching.folder or Path(name).parent / FOLDER
    stem, ending = named(name)
    lines, drawn = folder / f"{stem}_found.jsonl", folder / f"{stem}_found{ending}"
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
    votes = Votes()
    with Pipeline(stages, speed) as pipeline:
        for frame in pipeline.run(_until(source.frames, watching.seconds)):
            alerts += frame.alerts
            tracks |= {number for number in frame.ids if number > 0}
            votes.add(frame)
    return {
        **{"tracks": len(tracks), "alerts": [alert.record() for alert in alerts]},
        **({"said": votes.record()} if watching.heads else {}),
        **{"states": line.record(), "seen": tagger.record().get(str(name), {}).get("seen", {})},
        **{"speed": speed.record(), "lines": str(lines), "picture": str(drawn)},
    }


STILLS = (".gif", ".webp", ".png")
"""Moving pictures, whose answer is drawn as one."""


def named(name: str | Path) -> tuple[str, str]:
    """Return the stem and the ending of what is written of a film or a camera."""
    path = Path(name)
    stem = "".join(c if c.isalnum() or c in "-_" else "_" for c in path.stem or "film")
    return stem, ".gif" if path.suffix.lower() in STILLS else ".mp4"


def blur_file(raw: Path, look: Look, kinds: Kinds, how: Blur) -> dict[str, Any]:
    """Write a picture or a film with all that is found blurred, and what was done, in ``blurred``.

    Of a film, ``audit`` is a file of its own with a line for every frame.
    """
    source = open_source(raw)
    if not source.moving:
        image_HW3 = next(source.frames).image_HW3
        return write_blurred(raw, image_HW3, look(image_HW3), kinds, how)
    stem, ending = named(raw)
    folder = raw.parent / BLURRED
    film, lines = folder / f"{stem}{ending}", folder / f"{stem}_audit.jsonl"
    blurring, speed = Blurring(film, lines, kinds, how), Speed()
    with Pipeline({"detector": detector(look), "blurring": blurring}, speed) as pipeline:
        for _ in pipeline.run(source.frames):
            pass
    told = {"regions": blurring.regions, "speed": speed.record()}
    return {**told, "picture": str(film), "audit": str(lines)}


class Votes:
    """What heads say most often of each track, of names and other words."""

    def __init__(self) -> None:
        self._counts: dict[int, dict[str, Counter[str]]] = {}

    def add(self, frame: Frame) -> None:
        """Take note of a frame."""
        for head, answers in frame.said.items():
            for number, word in enumerate(answers):
                if frame.track(number) > 0 and isinstance(word, str):
                    counts = self._counts.setdefault(frame.track(number), {})
                    counts.setdefault(head, Counter())[word] += 1

    def record(self) -> dict[str, dict[str, str]]:
        """Return the commonest word of each head, by track."""
        return {
            str(track): {head: counts.most_common(1)[0][0] for head, counts in heads.items()}
            for track, heads in self._counts.items()
        }


def _until(frames: Iterable[Frame], seconds: float) -> Iterable[Frame]:
    return takewhile(lambda frame: frame.time < seconds, frames)


def answers_in(task: Detector, models: Models, split: str) -> Iterator[tuple[Found, Instances]]:
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
