"""Who has fallen: people followed through a video, their states over time, and alerts.

Everybody is followed by the overlap of their boxes from picture to picture. Somebody whose state
is one of the fallen ones for long enough is told of once, until they have been up for a while;
somebody who lies there in the first picture is told of, too.

Shape legend: N people, S states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainers.blocks.boxes import pair_iou
from trainers.data.instances import Found

Polygon = Sequence[tuple[float, float]]
OVERLAP = 0.3
"""Of somebody's boxes in two pictures that follow each other, at least."""


@dataclass(frozen=True)
class FallRule:
    """When somebody is told of; times in seconds."""

    states: tuple[str, ...] = ("Lying",)
    """Those that count as fallen."""
    chance: float = 0.5
    """Of these states together, from which somebody is taken to have fallen."""
    after: float = 1.0
    """How long they have to be in such a state."""
    again: float = 3.0
    """How long they have to be in another one before they are told of again."""
    memory: float = 0.5
    """Time in which what was seen before counts half."""
    lost: float = 2.0
    """Out of sight so long, somebody is forgotten."""
    zones: tuple[Polygon, ...] = ()
    """Places (x, y) in the picture, such as crosswalks, outside of which nobody is told of."""


@dataclass(frozen=True)
class Alert:
    """Somebody has fallen."""

    person: int
    began: float
    """When they were first seen so."""
    time: float
    """When they were told of."""
    state: str
    box: tuple[float, ...]


@dataclass
class Person:
    """Somebody who is followed."""

    number: int
    box_4: Tensor
    chances_S: Tensor
    """Of the states, smoothed."""
    seen: float
    """When they were last seen."""
    fell: float | None = None
    """Since when they have been in a fallen state."""
    rose: float | None = None
    told: bool = False
    line: list[tuple[float, str]] = field(default_factory=list)
    """Their states over time: when each began."""


class FallWatch:
    """Takes what is found in each picture of a video, and tells of those who have fallen.

    Args:
        states: names of the states, in the order of ``Found.states_NS``.
        rule: when somebody is told of.
        tell: is called with every alert at once.
    """

    def __init__(
        self,
        states: Sequence[str],
        rule: FallRule | None = None,
        tell: Callable[[Alert], None] | None = None,
    ) -> None:
        self.states, self.rule = tuple(states), rule or FallRule()
        self.tell, self.people = tell, list[Person]()
        self.everybody: list[Person] = []
        """Also those who have left."""
        self._fallen = [self.states.index(name) for name in self.rule.states]

    def see(self, time: float, found: Found) -> list[Alert]:
        """Take what is found in the picture of a time, and return the new alerts."""
        assert found.states_NS is not None, "somebody's state is needed"
        self.people = [one for one in self.people if time - one.seen <= self.rule.lost]
        alerts = []
        for number, whom in enumerate(self._followed(found)):
            box_4, chances_S = found.boxes_N4[number], found.states_NS[number]
            if whom is None:
                whom = Person(len(self.everybody), box_4, chances_S, time)
                self.everybody.append(whom)
                self.people.append(whom)
            kept = 0.5 ** ((time - whom.seen) / self.rule.memory)
            whom.chances_S = kept * whom.chances_S + (1 - kept) * chances_S
            whom.box_4, whom.seen = box_4, time
            state = self.states[int(whom.chances_S.argmax())]
            if not whom.line or whom.line[-1][1] != state:
                whom.line.append((time, state))
            if self._falls(whom, time):
                began = time if whom.fell is None else whom.fell
                alerts.append(Alert(whom.number, began, time, state, tuple(box_4.tolist())))
        for alert in alerts:
            if self.tell:
                self.tell(alert)
        return alerts

    def _followed(self, found: Found) -> list[Person | None]:
        """Return who each found one is, by the largest overlaps first; None for somebody new."""
        who: list[Person | None] = [None] * len(found.boxes_N4)
        if not self.people or not who:
            return who
        known_N4 = torch.stack([one.box_4 for one in self.people])
        overlap_NN = pair_iou(found.boxes_N4, known_N4)
        free = set(range(len(self.people)))
        for flat in overlap_NN.flatten().argsort(descending=True).tolist():
            number, person = divmod(flat, len(self.people))
            if overlap_NN[number, person] < OVERLAP:
                break
            if who[number] is None and person in free:
                who[number] = self.people[person]
                free.discard(person)
        return who

    def _falls(self, whom: Person, time: float) -> bool:
        """Note whether somebody is down, and return whether they are to be told of now."""
        down = float(whom.chances_S[self._fallen].sum()) > self.rule.chance
        if down and self._inside(whom.box_4):
            whom.fell, whom.rose = time if whom.fell is None else whom.fell, None
            if not whom.told and time - whom.fell >= self.rule.after:
                whom.told = True
                return True
        else:
            whom.rose = time if whom.rose is None else whom.rose
            if not whom.told:
                whom.fell = None
            elif time - whom.rose >= self.rule.again:
                whom.told, whom.fell = False, None
        return False

    def _inside(self, box_4: Tensor) -> bool:
        """Return whether the middle of the lower side of a box is in a zone, if there are any."""
        x, y = float(box_4[0] + box_4[2]) / 2, float(box_4[3])
        return not self.rule.zones or any(within(x, y, zone) for zone in self.rule.zones)


def zones_of(text: str) -> tuple[Polygon, ...]:
    """Return the zones of a text such as ``0,50 99,50 99,127; 10,0 20,0 20,9``."""
    zones = []
    for part in filter(str.strip, text.split(";")):
        corners = [corner.split(",") for corner in part.split()]
        zones.append(tuple((float(x), float(y)) for x, y in corners))
    return tuple(zones)


def within(x: float, y: float, polygon: Polygon) -> bool:
    """Return whether a point is in a polygon, by the edges on its left."""
    inside = False
    for (x0, y0), (x1, y1) in zip(polygon, (*polygon[1:], polygon[0]), strict=True):
        if (y0 > y) != (y1 > y) and x > x0 + (y - y0) / (y1 - y0) * (x1 - x0):
            inside = not inside
    return inside
