"""Alarms that are raised once for what lasts: somebody lies on the ground, a weapon is shown.

A rule looks at the tracked objects of a frame: how likely is what it waits for? That chance is
smoothed over time, must stay high for a while, and raises one alert for a track until it has been
low for a longer while. A state counts whatever went before, so people who already lie when the
film begins are found, too.

Shape legend: N objects, J joints, S states, H height, W width, 3 RGB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlplatform.errors import UsageError, closest
from trainers.data.instances import Found, Instances, Kinds
from trainers.data.scenes import Bytes
from trainers.pipeline.frame import Frame

Polygon = Sequence[tuple[float, float]]
Box = tuple[float, float, float, float]
FORGOTTEN = 60.0
"""Seconds after which a track that is not seen is forgotten."""
TINY = 1e-6
"""Times are sums of fractions."""


@dataclass(frozen=True)
class Rule:
    """What raises an alarm: people in some states, or objects of some kinds."""

    name: str = "fallen"
    states: tuple[str, ...] = ("Lying",)
    kinds: tuple[str, ...] = ()
    """Names of kinds to wait for in place of states; their chance is their score."""
    sure: float = 0.5
    """The chance must be above this."""
    lasts: float = 1.0
    """Seconds it must be so before the alarm."""
    rests: float = 3.0
    """Seconds it must not be so before the same track can raise the alarm again."""
    smoothing: float = 0.3
    """Seconds in which smoothed chances come within 1/e of a change; 0: no smoothing."""
    zones: Mapping[str, Polygon] = field(default_factory=dict)
    """Corners (x, y) in pixels of the areas that count, by name; none: everywhere."""
    still: float = 0.0
    """Most that the middle may move meanwhile, in longer sides of the box; 0: any."""
    gap: float = 0.5
    """Seconds unseen in frames that came after which it must last from the beginning again."""

    def chances(self, found: Found, kinds: Kinds) -> Tensor:
        """Return the chance_N of what is waited for, of each object that was found.

        Raises UsageError for a state or a kind that there is not.
        """
        if self.kinds:
            wanted = torch.tensor([_place("kind", name, kinds.names) for name in self.kinds])
            return found.scores_N.cpu() * torch.isin(found.labels_N.cpu(), wanted)
        places = [_place("state", name, kinds.states) for name in self.states]
        if found.states_NS is None:
            return torch.zeros(len(found.scores_N))
        return found.states_NS.cpu()[:, places].sum(1)

    def zone(self, box: Box) -> str | None:
        """Return the name of the zone that the middle of a box is in, None for none."""
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        if not self.zones:
            return ""
        return next((n for n, corners in self.zones.items() if inside(middle, corners)), None)


@dataclass(frozen=True)
class Alert:
    """What the operator is told."""

    rule: str
    source: str
    time: float
    """Seconds since the source began."""
    frame: int
    track: int
    box: Box
    chance: float
    zone: str
    latency: float
    """Seconds since the first frame in which it looked so."""
    what: str
    """The likeliest state, else the kind."""
    crop_HW3: Bytes
    joints_J3: Tensor | None = None
    mask_HW: Tensor | None = None

    def record(self) -> dict[str, Any]:
        """Return it ready for JSON, without pictures."""
        return {
            **{"rule": self.rule, "source": self.source, "time": round(self.time, 3)},
            **{"frame": self.frame, "track": self.track, "what": self.what, "zone": self.zone},
            "box": [round(value, 1) for value in self.box],
            "chance": round(self.chance, 4),
            "latency": round(self.latency, 3),
            "joints": None if self.joints_J3 is None else self.joints_J3.tolist(),
        }


@dataclass
class _Case:
    """What is known of one track."""

    seen: float
    chance: float
    first: float | None = None
    since: float | None = None
    place: tuple[float, float] = (0.0, 0.0)
    away: float | None = None
    told: bool = False


class Alarm:
    """The stage that raises alerts by a rule, and tells somebody at once, if given."""

    def __init__(
        self, rule: Rule, kinds: Kinds, tell: Callable[[Alert], object] | None = None
    ) -> None:
        self.rule, self.kinds, self.tell = rule, kinds, tell
        rule.chances(Found(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0)), kinds)
        self._cases: dict[tuple[str, int], _Case] = {}
        self._before: dict[str, float] = {}

    def __call__(self, frame: Frame) -> Frame:
        """Look at the tracked objects of a frame."""
        alerts = []
        for number, chance in enumerate(self.rule.chances(frame.found, self.kinds).tolist()):
            if frame.track(number) > 0:
                alerts += self._look(frame, number, chance)
        for alert in alerts:
            if self.tell is not None:
                self.tell(alert)
        _forget(self._cases, frame)
        self._before[frame.source] = frame.time
        return replace(frame, alerts=(*frame.alerts, *alerts)) if alerts else frame

    def _look(self, frame: Frame, number: int, chance: float) -> list[Alert]:
        rule, now, key = self.rule, frame.time, (frame.source, frame.track(number))
        box = box_of(frame.found, number)
        zone = rule.zone(box)
        case = self._cases.setdefault(key, _Case(now, chance))
        if case.seen < self._before.get(frame.source, now) and now - case.seen > rule.gap:
            case.first = case.since = None
        case.chance = smoothed(case.chance, chance, now - case.seen, rule.smoothing)
        case.seen = now
        if chance > rule.sure and zone is not None and case.first is None:
            case.first = now
        if case.chance <= rule.sure or zone is None:
            case.since = None
            if chance <= rule.sure or zone is None:
                case.first = None
            case.away = now if case.away is None else case.away
            case.told = case.told and now - case.away < rule.rests - TINY
            return []
        case.away = None
        if case.since is None or self._moved(case, box):
            case.since, case.place = now, (box[0] + box[2], box[1] + box[3])
        if case.told or now - case.since < rule.lasts - TINY:
            return []
        case.told = True
        latency = now - (case.since if case.first is None else case.first)
        return [_alert(self, frame, number, (case.chance, latency, zone))]

    def _moved(self, case: _Case, box: Box) -> bool:
        """Tell whether somebody who must lie still went elsewhere."""
        way = math.hypot(box[0] + box[2] - case.place[0], box[1] + box[3] - case.place[1]) / 2
        return 0 < self.rule.still * max(box[2] - box[0], box[3] - box[1]) < way


@dataclass
class Span:
    """A time in which somebody was in one state."""

    state: str
    begin: float
    end: float


class TimeLine:
    """The stage that writes down who was in which state when, by the smoothed states."""

    def __init__(self, kinds: Kinds, smoothing: float = 0.3) -> None:
        self.kinds, self.smoothing = kinds, smoothing
        self.spans: dict[tuple[str, int], list[Span]] = {}
        """By source and track."""
        self._states: dict[tuple[str, int], tuple[float, Tensor]] = {}

    def __call__(self, frame: Frame) -> Frame:
        """Take note of the states of a frame."""
        states_NS = frame.found.states_NS
        for number in range(0 if states_NS is None else len(states_NS)):
            if states_NS is not None and frame.track(number) > 0:
                self._note((frame.source, frame.track(number)), frame.time, states_NS[number].cpu())
        return frame

    def record(self) -> dict[str, list[dict[str, Any]]]:
        """Return it ready for JSON: the spans of each track; of several sources with their name."""
        several = len({source for source, _ in self.spans}) > 1
        return {
            f"{source} {track}" if several else str(track): [
                {"state": one.state, "begin": round(one.begin, 3), "end": round(one.end, 3)}
                for one in spans
            ]
            for (source, track), spans in self.spans.items()
        }

    def _note(self, key: tuple[str, int], now: float, states_S: Tensor) -> None:
        before, old_S = self._states.get(key, (now, states_S))
        states_S = smoothed(old_S, states_S, now - before, self.smoothing)
        self._states[key] = (now, states_S)
        state, spans = self.kinds.states[int(states_S.argmax())], self.spans.setdefault(key, [])
        if spans:
            spans[-1].end = now
        if not spans or spans[-1].state != state:
            spans.append(Span(state, now, now))


def smoothed(old: Any, new: Any, seconds: float, smoothing: float) -> Any:
    """Return an old value moved towards a new one that came some seconds later."""
    kept = math.exp(-seconds / smoothing) if smoothing > 0 else 0.0
    return kept * old + (1 - kept) * new


def inside(point: tuple[float, float], corners: Polygon) -> bool:
    """Tell whether a point is in a polygon: a ray from it meets the border an odd number of times.

    Source: Shimrat, "Algorithm 112: position of point relative to polygon" (1962).
    """
    x, y = point
    crossings = 0
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        crossings += (y0 > y) != (y1 > y) and x < x0 + (x1 - x0) * (y - y0) / (y1 - y0)
    return crossings % 2 == 1


def zones_of(text: str) -> dict[str, Polygon]:
    """Return the zones of a text such as ``0,50 99,50 99,127; 10,0 20,0 20,9``, numbered."""
    zones: dict[str, Polygon] = {}
    for part in filter(str.strip, text.split(";")):
        corners = [corner.split(",") for corner in part.split()]
        zones[str(len(zones) + 1)] = tuple((float(x), float(y)) for x, y in corners)
    return zones


def box_of(found: Found | Instances, number: int) -> Box:
    """Return a box as numbers."""
    x0, y0, x1, y1 = found.boxes_N4[number].tolist()
    return x0, y0, x1, y1


def _alert(alarm: Alarm, frame: Frame, number: int, facts: tuple[float, float, str]) -> Alert:
    chance, latency, zone = facts
    found, kinds = frame.found, alarm.kinds
    box, (height, width) = box_of(found, number), frame.image_HW3.shape[:2]
    x0, x1 = (min(max(0, round(value)), width) for value in box[::2])
    y0, y1 = (min(max(0, round(value)), height) for value in box[1::2])
    what = kinds.names[int(found.labels_N[number])]
    if not alarm.rule.kinds and found.states_NS is not None:
        what = kinds.states[int(found.states_NS[number].argmax())]
    return Alert(
        rule=alarm.rule.name,
        source=frame.source,
        time=frame.time,
        frame=frame.number,
        track=frame.track(number),
        box=box,
        chance=chance,
        zone=zone,
        latency=latency,
        what=what,
        crop_HW3=np.ascontiguousarray(frame.image_HW3[y0:y1, x0:x1]),
        joints_J3=None if found.joints_NJ3 is None else found.joints_NJ3[number].cpu(),
        mask_HW=None if found.masks_NHW is None else found.masks_NHW[number].cpu(),
    )


def _forget(cases: dict[tuple[str, int], _Case], frame: Frame) -> None:
    """Drop the tracks of a source that ended long ago: a camera goes on for ever."""
    old = [k for k, c in cases.items() if k[0] == frame.source and frame.time - c.seen > FORGOTTEN]
    for key in old:
        del cases[key]


def _place(what: str, name: str, allowed: Sequence[str]) -> int:
    if name not in allowed:
        raise UsageError(
            f"{what} {name} is none that is told apart here{closest(name, allowed)} - allowed: "
            f"{', '.join(allowed) or 'none'} - do: choose"
        )
    return list(allowed).index(name)
