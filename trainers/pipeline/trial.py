"""Drawn films of which all is known, watched as a user's are: how good alarms and tags become.

Shape legend: N objects, S states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional

from dlplatform.seeds import derive
from trainers.data.instances import Found
from trainers.data.scenes import Bytes
from trainers.pipeline.events import Alarm, Alert, Rule, box_of
from trainers.pipeline.frame import Frame, Pipeline, detector
from trainers.pipeline.judged import Happened, judge_alerts
from trainers.pipeline.tags import Tagger, tag_f1
from trainers.pipeline.tracker import Tracker
from trainers.synth.films import Film
from trainers.synth.human_films import FALLEN, human_film
from trainers.synth.objects import object_film

Watch = Callable[[Film], Callable[[Bytes], Found]]
"""Returns what looks at the frames of a film, one after the other."""
STORIES = {
    "falls": ("fall", "walk"),
    "lies from the start": ("lie", "walk"),
    "sits down": ("sit", "stand"),
    "crouches": ("crouch", "walk"),
    "runs": ("run", "walk"),
    "lies on a bench": ("bench",),
}
"""What people do in films; who lies on a bench looks fallen, unless a zone leaves it out."""
BENCH = "lies on a bench"
THEMES = 3


def true_look(film: Film) -> Callable[[Bytes], Found]:
    """Return what finds the truth of a film, and nothing else, frame by frame."""
    answers = iter(film.truths)

    def look(image_HW3: Bytes) -> Found:
        truth, states_NS = next(answers), None
        if truth.states_N is not None and film.kinds.states:
            states_NS = functional.one_hot(truth.states_N, len(film.kinds.states)).float()
        sure_N = torch.ones(len(truth.labels_N))
        return Found(truth.boxes_N4, truth.labels_N, sure_N, states_NS=states_NS)

    return look


def frames_of(film: Film, name: str) -> Iterator[Frame]:
    """Yield the frames of a film as a source of some name."""
    for number, image_HW3 in enumerate(film.frames):
        yield Frame(image_HW3, number / film.rate, name, number)


def happened(film: Film, name: str, what: str = FALLEN) -> list[Happened]:
    """Return the events of a film of some name."""
    events = []
    for event in (event for event in film.events if event.what == what):
        boxes = {}
        for number in range(event.first, event.last + 1):
            for place in (film.who[number] == event.who).nonzero()[:, 0].tolist():
                boxes[number] = box_of(film.truths[number], place)
        events.append(Happened(name, event.first / film.rate, event.last / film.rate, boxes))
    return events


def alerts_of(film: Film, name: str, watch: Watch, rule: Rule) -> list[Alert]:
    """Return the alerts that a film raises."""
    pipeline = Pipeline(
        {
            "detector": detector(watch(film)),
            "tracker": Tracker(),
            "alarm": Alarm(rule, film.kinds),
        }
    )
    return [alert for frame in pipeline.run(frames_of(film, name)) for alert in frame.alerts]


def judge_falls(
    watch: Watch, films: int = 3, seed: int = 0, rate: float = 5.0, rule: Rule | None = None
) -> dict[str, dict[str, float]]:
    """Return how good the alarm of fallen people is in so many films of each of ``STORIES``.

    Each row has what ``judge_alerts`` returns, seconds and events of its films; the last one is of
    all stories but that of the bench.
    """
    rows, every = {}, _Watched()
    for story, scripts in STORIES.items():
        own = _Watched()
        for number in range(films):
            name = f"{story} {number}"
            film = human_film(derive(seed, "trial", name), scripts, rate)
            own.alerts += alerts_of(film, name, watch, rule or Rule())
            own.events += happened(film, name)
            own.seconds += len(film) / rate
        rows[story] = own.row()
        if story != BENCH:
            every.alerts += own.alerts
            every.events += own.events
            every.seconds += own.seconds
    return {**rows, "all but the bench": every.row()}


@dataclass
class _Watched:
    """What came of some films."""

    alerts: list[Alert] = field(default_factory=list)
    events: list[Happened] = field(default_factory=list)
    seconds: float = 0.0

    def row(self) -> dict[str, float]:
        scores = judge_alerts(self.alerts, self.events, self.seconds)
        if not self.events:
            del scores["recall"], scores["precision"]
        counts = {"events": len(self.events), "alerts": len(self.alerts)}
        return {"seconds": self.seconds, **counts, **scores}


def judge_tags(
    watch: Watch, names: Sequence[str], films: int = 3, seed: int = 0, sure: float = 0.5
) -> dict[str, float]:
    """Return the F1 of tags, and how often the film most like another is about the same.

    Films pass over drawn objects of some of the names of ``trainers/synth/objects.py``, each film
    over those of one of three themes. ``chance`` is how often any other film is of its theme.
    """
    names, theme = tuple(names), {f"theme {t}, {n}": t for t in range(THEMES) for n in range(films)}
    taggers: list[Tagger] = []
    for name, number in theme.items():
        film = object_film(derive(seed, "trial", name), names, names[number::THEMES])
        taggers = taggers or [Tagger(film.kinds, sure), Tagger(film.kinds)]
        for tagger, look in zip(taggers, (watch(film), true_look(film)), strict=True):
            stages = Pipeline({"detector": detector(look), "tags": tagger})
            for _ in stages.run(frames_of(film, name)):
                pass
    said = taggers[0]
    tags = [{(name, *tag) for name in theme for tag in one.tags(name)} for one in taggers]
    alike = [theme[said.alike(name, 1)[0][0]] == own for name, own in theme.items()]
    return {
        "tag_f1": tag_f1(*tags),
        "alike": sum(alike) / len(alike),
        "chance": (films - 1) / (len(theme) - 1),
    }
