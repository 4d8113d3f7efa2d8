"""Falls in a video: told of once, in time, at the right place, and not when they are none."""

from __future__ import annotations

import pytest
import torch

from trainers.data.instances import Found
from trainers.human.events import Alert, FallRule, FallWatch, within
from trainers.synth.human_films import human_film

STATES = ("Lying", "Crouch", "Sitting", "Walking", "Standing", "Running")
RATE = 10
HERE, THERE = (10.0, 10.0, 30.0, 50.0), (60.0, 40.0, 100.0, 55.0)


def found(*people: tuple[tuple[float, ...], str], sure: float = 0.9) -> Found:
    states_NS = torch.full((len(people), len(STATES)), (1 - sure) / 5)
    for number, (_, state) in enumerate(people):
        states_NS[number, STATES.index(state)] = sure
    boxes_N4 = torch.tensor([box for box, _ in people]).reshape(-1, 4)
    count = len(people)
    return Found(boxes_N4, torch.zeros(count).long(), torch.ones(count), states_NS=states_NS)


def watched(line: list[tuple[float, str]], rule: FallRule | None = None) -> list[Alert]:
    """Return the alerts about somebody who is in each state for so many seconds."""
    watch, time, alerts = FallWatch(STATES, rule), 0, []
    for seconds, state in line:
        for _ in range(round(seconds * RATE)):
            alerts += watch.see(time / RATE, found((HERE, state)))
            time += 1
    return alerts


def test_a_fall_is_told_of_once_and_soon() -> None:
    (alert,) = watched([(2, "Walking"), (6, "Lying")])
    assert alert.state == "Lying" and alert.box == HERE and alert.person == 0
    assert 2 <= alert.began < 2.6 and 1 <= alert.time - alert.began < 1.2


def test_somebody_who_lies_there_from_the_first_picture_is_told_of() -> None:
    (alert,) = watched([(3, "Lying")])
    assert alert.began == 0 and alert.time == pytest.approx(1.0)


@pytest.mark.parametrize(
    "line",
    [
        [(2, "Walking"), (0.8, "Lying"), (3, "Standing")],
        [(3, "Sitting"), (3, "Crouch"), (3, "Sitting")],
        [(0.5, "Sitting"), (0.3, "Lying")] * 8,
    ],
)
def test_what_is_brief_or_no_fall_is_not_told_of(line: list[tuple[float, str]]) -> None:
    assert not watched(line)


def test_a_second_fall_is_told_of_after_the_first_is_over() -> None:
    assert len(watched([(2, "Lying"), (1, "Standing"), (2, "Lying")])) == 1
    assert len(watched([(2, "Lying"), (5, "Standing"), (2, "Lying")])) == 2


def test_crouching_counts_where_it_is_asked_for() -> None:
    rule = FallRule(states=("Lying", "Crouch"))
    assert len(watched([(3, "Crouch")], rule)) == 1


def test_everybody_is_followed_and_told_of_at_once() -> None:
    told: list[Alert] = []
    watch = FallWatch(STATES, tell=told.append)
    for time in range(30):
        moved = tuple(value + time * 0.5 for value in HERE)
        people = [(moved, "Walking"), (THERE, "Lying")]
        watch.see(time / RATE, found(*(people if time % 2 else people[::-1])))
    assert [alert.box for alert in told] == [THERE] and len(watch.everybody) == 2
    lines = sorted(tuple(state for _, state in one.line) for one in watch.everybody)
    assert lines == [("Lying",), ("Walking",)]


def test_who_is_lost_for_long_is_somebody_else_after() -> None:
    watch = FallWatch(STATES)
    watch.see(0.0, found((HERE, "Walking")))
    watch.see(1.0, found())
    watch.see(1.5, found((HERE, "Walking")))
    assert len(watch.everybody) == 1
    watch.see(5.0, found((HERE, "Walking")))
    assert len(watch.everybody) == 2


def test_only_in_zones_if_there_are_any() -> None:
    crosswalk = ((0.0, 40.0), (50.0, 40.0), (50.0, 60.0), (0.0, 60.0))
    elsewhere = tuple((x + 60, y) for x, y in crosswalk)
    assert len(watched([(3, "Lying")], FallRule(zones=(elsewhere, crosswalk)))) == 1
    assert not watched([(3, "Lying")], FallRule(zones=(elsewhere,)))
    assert within(5, 5, ((0, 0), (10, 0), (0, 10))) and not within(6, 6, ((0, 0), (10, 0), (0, 10)))


@pytest.mark.parametrize(
    ("script", "falls"), [("fall", 1), ("lie", 1), ("sit", 0), ("crouch", 0), ("walk", 0)]
)
def test_falls_of_films_are_told_of_when_states_are_right(script: str, falls: int) -> None:
    film = human_film(7, (script,))
    watch, alerts = FallWatch(film.kinds.states), []
    for number, truth in enumerate(film.truths):
        assert truth.states_N is not None
        people = [
            (tuple(box), STATES[state])
            for box, state in zip(truth.boxes_N4.tolist(), truth.states_N.tolist(), strict=True)
        ]
        alerts += watch.see(number / film.rate, found(*people))
    assert len(alerts) == falls == len(film.events)
    for alert, event in zip(alerts, film.events, strict=True):
        assert 1.0 <= alert.time - event.first / film.rate < 2.0
    assert len(watch.everybody) == 1
