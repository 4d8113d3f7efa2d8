"""Alarms: who lies long enough is told of once, wherever that counts, and nobody else."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from dlplatform.errors import UsageError
from trainers.data.instances import Found, Kinds
from trainers.data.skeletons import PEOPLE, STATES
from trainers.pipeline.events import Alarm, Alert, Rule, TimeLine, inside, zones_of
from trainers.pipeline.frame import Frame
from trainers.pipeline.judged import Happened, judge_alerts
from trainers.pipeline.tracker import Tracker
from trainers.synth.films import Film
from trainers.synth.human_films import human_film

KINDS = Kinds(("person",), (), PEOPLE, STATES)
RATE = 10
IMAGE = np.arange(100 * 200 * 3, dtype=np.uint32).reshape(100, 200, 3).astype(np.uint8)
STREET = {"crosswalk": ((100.0, 0.0), (200.0, 0.0), (200.0, 100.0), (100.0, 100.0))}


def states(name: str, sure: float = 0.85) -> torch.Tensor:
    chances_S = torch.full((len(STATES),), (1 - sure) / (len(STATES) - 1))
    chances_S[STATES.index(name)] = sure
    return chances_S


def film(
    story: Sequence[tuple[str, float]], middle: tuple[float, float] = (150.0, 50.0), track: int = 1
) -> list[Frame]:
    """Return frames of one person who is in each state for so many seconds."""
    names = [name for name, seconds in story for _ in range(round(seconds * RATE))]
    x, y = middle
    frames = []
    for number, name in enumerate(names):
        found = Found(
            torch.tensor([[x - 20, y - 10, x + 20, y + 10]]),
            torch.zeros(1, dtype=torch.int64),
            torch.ones(1),
            joints_NJ3=torch.full((1, 17, 3), 0.5),
            states_NS=states(name)[None],
        )
        frames.append(Frame(IMAGE, number / RATE, "camera", number, found, (track,)))
    return frames


def alerts(frames: Sequence[Frame], rule: Rule | None = None) -> list[Alert]:
    alarm = Alarm(rule or Rule(), KINDS)
    return [alert for frame in frames for alert in alarm(frame).alerts]


FALL = (("Walking", 2.0), ("Lying", 4.0))


def test_a_fall_is_told_of_once_after_it_lasted() -> None:
    told: queue.Queue[Alert] = queue.Queue()
    alarm = Alarm(Rule(), KINDS, told.put)
    shown = [alarm(frame).alerts for frame in film(FALL)]
    (alert,) = [alert for one in shown for alert in one]
    assert told.get_nowait() is alert and told.empty()
    # from the first frame that shows it: smoothing takes 0.3 s to believe it, then it must last
    assert 3.0 <= alert.time <= 3.5 and alert.latency == pytest.approx(alert.time - 2.0)
    assert (alert.what, alert.track, alert.source, alert.rule) == ("Lying", 1, "camera", "fallen")
    assert (alert.crop_HW3 == IMAGE[40:60, 130:170]).all()
    assert alert.joints_J3 is not None and alert.joints_J3.shape == (17, 3)
    assert alert.record()["box"] == [130, 40, 170, 60]


def test_who_lies_in_the_first_frame_is_told_of() -> None:
    (alert,) = alerts(film([("Lying", 2.0)]))
    assert alert.time == pytest.approx(1.0) and alert.latency == pytest.approx(1.0)


@pytest.mark.parametrize("story", [
    [("Walking", 1.0), ("Sitting", 5.0), ("Standing", 1.0)],
    [("Walking", 1.0), ("Crouch", 4.0), ("Walking", 1.0)],
    [("Walking", 2.0), ("Lying", 0.8), ("Standing", 2.0)],
    [("Lying", 0.2), ("Crouch", 0.4)] * 8,
])  # fmt: skip
def test_who_sits_crouches_or_lies_shortly_is_not(story: list[tuple[str, float]]) -> None:
    assert not alerts(film(story))


def test_crouching_counts_where_it_is_asked_for() -> None:
    story = [("Walking", 1.0), ("Crouch", 4.0)]
    (alert,) = alerts(film(story), Rule(states=("Lying", "Crouch")))
    assert alert.what == "Crouch"


def test_on_a_bench_outside_the_zone_nobody_is_told_of() -> None:
    rule = Rule(zones=STREET)
    assert not alerts(film(FALL, middle=(60.0, 50.0)), rule)
    (alert,) = alerts(film(FALL, middle=(150.0, 50.0)), rule)
    assert alert.zone == "crosswalk"


def test_who_enters_the_zone_lying_is_told_of_from_then_on() -> None:
    outside = film([("Lying", 3.0)], middle=(90.0, 50.0))
    within = film([("Lying", 6.0)], middle=(110.0, 50.0))[len(outside) :]
    (alert,) = alerts([*outside, *within], Rule(zones=STREET))
    assert alert.time == pytest.approx(4.0)


def test_only_who_was_up_for_a_while_is_told_of_again() -> None:
    def story(up: float) -> list[Frame]:
        return film([("Lying", 2.0), ("Sitting", up), ("Lying", 2.0)])

    assert len(alerts(story(2.0))) == 1
    assert len(alerts(story(4.0))) == 2


def test_two_people_are_two_alerts_and_two_films_do_not_mix() -> None:
    one, other = film(FALL), film(FALL, middle=(40.0, 50.0), track=2)
    both = [frame for pair in zip(one, other, strict=True) for frame in pair]
    assert sorted(alert.track for alert in alerts(both)) == [1, 2]
    half = [Frame(f.image_HW3, f.time, "other", f.number, f.found, f.ids) for f in film(FALL)[25:]]
    assert not alerts([*film(FALL)[:25], *half[:9]])


def test_out_of_sight_the_time_begins_again() -> None:
    frames = film([("Lying", 3.0)])
    assert not alerts(blinking(frames, range(8, 20))[:29])
    assert alerts(blinking(frames, range(8, 11))[:15])


def blinking(frames: Sequence[Frame], hidden: range) -> list[Frame]:
    """Return the frames, the person out of sight in some."""
    empty = Found(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0))
    return [replace(one, found=empty, ids=()) if one.number in hidden else one for one in frames]


def test_few_frames_a_second_are_enough() -> None:
    slow = [replace(one, time=one.number * 0.8) for one in film([("Lying", 0.4)])]
    (alert,) = alerts(slow)
    assert alert.time == pytest.approx(1.6)


def test_who_moves_on_is_not_told_of_where_they_must_lie_still() -> None:
    crawling = [film([("Lying", 3.0)], middle=(40.0 + 4 * n, 50.0))[n] for n in range(30)]
    assert alerts(crawling) and not alerts(crawling, Rule(still=0.3))
    assert alerts(film(FALL), Rule(still=0.3))


def test_weapons_raise_an_alarm_by_their_score() -> None:
    kinds = Kinds(("phone", "knife"))
    frames = [
        Frame(IMAGE, n / RATE, "shop", n, Found(
            torch.tensor([[10.0, 10, 30, 30], [50.0, 50, 70, 70]]),
            torch.tensor([0, 1]), torch.tensor([0.99, 0.4]),
        ), (1, 2))
        for n in range(20)
    ]  # fmt: skip
    alarm = Alarm(Rule("weapon", kinds=("knife",), sure=0.3, lasts=0.5), kinds)
    (alert,) = [alert for frame in frames for alert in alarm(frame).alerts]
    assert (alert.track, alert.what) == (2, "knife") and alert.time == pytest.approx(0.5)


def test_a_rule_for_what_there_is_not_is_refused() -> None:
    with pytest.raises(UsageError, match=r"state Lieing is none.*closest: Lying.*allowed: Lying,"):
        Alarm(Rule(states=("Lieing",)), KINDS)
    with pytest.raises(UsageError, match="kind knife"):
        Alarm(Rule(kinds=("knife",)), KINDS)


def test_the_time_line_tells_who_was_in_which_state_when() -> None:
    line = TimeLine(KINDS)
    for frame in film([("Walking", 2.0), ("Lying", 2.0), ("Standing", 1.0)]):
        line(frame)
    spans = line.spans["camera", 1]
    assert [one.state for one in spans] == ["Walking", "Lying", "Standing"]
    assert [one.begin for one in spans] == pytest.approx([0, 2, 4], abs=0.31)
    assert [one.end for one in spans] == pytest.approx([2, 4, 4.9], abs=0.31)
    assert line.record()["1"][0] == {"state": "Walking", "begin": 0, "end": spans[0].end}


def test_one_wrong_frame_does_not_cut_a_time_line() -> None:
    line = TimeLine(KINDS)
    for frame in film([("Walking", 1.0), ("Lying", 0.1), ("Walking", 1.0)]):
        line(frame)
    assert [one.state for one in line.spans["camera", 1]] == ["Walking"]


def test_polygons_with_a_dent_hold_what_is_inside_only() -> None:
    dented = ((0.0, 0.0), (4.0, 0.0), (4.0, 4.0), (2.0, 1.0), (0.0, 4.0))
    assert inside((0.5, 2.0), dented) and inside((3.5, 2.0), dented)
    assert not inside((2.0, 3.0), dented) and not inside((5.0, 1.0), dented)


def test_zones_are_read_from_a_text() -> None:
    square = ((0.0, 5.5), (9.0, 0.0), (9.0, 9.0))
    assert zones_of("0,5.5 9,0 9,9; 1,1 2,2 3,1") == {"1": square, "2": ((1, 1), (2, 2), (3, 1))}
    assert zones_of("") == {}


def test_alerts_are_right_where_and_while_it_happens() -> None:
    told = alerts(film(FALL))
    box = told[0].box
    true = Happened("camera", 2.0, 6.0, {n: box for n in range(20, 60)})
    scores = judge_alerts([*told, *told], [true, Happened("other", 0, 9, {})], seconds=1800)
    assert scores["recall"] == 0.5 and scores["precision"] == 0.5
    assert scores["false_alarms_per_hour"] == 2
    assert scores["median_latency"] == pytest.approx(told[0].latency)
    away = Happened("camera", 2.0, 6.0, {n: (0.0, 0.0, 9.0, 9.0) for n in range(20, 60)})
    assert judge_alerts(told, [away], 60)["recall"] == 0


def doubtful(film: Film, number: int, random: np.random.RandomState) -> tuple[Found, list[int]]:
    """Return who is found in a frame by a detector that misses and errs, and who these truly are.

    Boxes are off by 3 % of their size, one in twenty is missed, one state in ten is wrong.
    """
    truth, count = film.truths[number], len(film.who[number])
    sides_N2 = truth.boxes_N4[:, 2:] - truth.boxes_N4[:, :2]
    off_N4 = torch.from_numpy(random.normal(0, 0.03, (count, 4))) * sides_N2.mean(1, keepdim=True)
    states_N = [
        random.randint(len(STATES)) if random.rand() < 0.1 else int(state)
        for state in (() if truth.states_N is None else truth.states_N)
    ]
    chances = [states(STATES[state], 0.75) for state in states_N]
    kept_N = torch.from_numpy(random.rand(count) >= 0.05)
    found = Found(
        (truth.boxes_N4 + off_N4).float(), truth.labels_N, torch.full((count,), 0.9),
        states_NS=torch.stack(chances) if chances else torch.zeros(0, len(STATES)),
    )  # fmt: skip
    return found.take(kept_N), film.who[number][kept_N].tolist()


def test_in_drawn_films_falls_are_told_of_and_benches_are_left_out_by_a_zone() -> None:
    film = human_film(0, ("fall", "bench"))
    random, tracker = np.random.RandomState(0), Tracker()
    frames, whose = [], {}
    for number, image_HW3 in enumerate(film.frames):
        found, who = doubtful(film, number, random)
        frames.append(tracker(Frame(image_HW3, number / film.rate, "street", number, found)))
        for person, track in zip(who, frames[-1].ids, strict=True):
            whose.setdefault(person, set()).add(track)
    assert whose == {0: {1}, 1: {2}}
    (event,) = film.events
    boxes = {
        number: tuple(film.truths[number].boxes_N4[film.who[number] == event.who][0].tolist())
        for number in range(event.first, event.last + 1)
        if (film.who[number] == event.who).any()
    }
    true = Happened("street", event.first / film.rate, event.last / film.rate, boxes)
    x0, y0, x1, y1 = torch.tensor([*boxes.values()]).mean(0).tolist()
    zone = ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    alarms = {"all": Alarm(Rule(), film.kinds), "zone": Alarm(Rule(zones={"z": zone}), film.kinds)}
    told = {
        name: [alert for frame in frames for alert in alarm(frame).alerts]
        for name, alarm in alarms.items()
    }
    assert len(told["all"]) == 2
    scores = judge_alerts(told["zone"], [true], len(film) / film.rate)
    assert scores["recall"] == scores["precision"] == 1 and scores["false_alarms_per_hour"] == 0
    assert 1.0 <= scores["median_latency"] <= 1.8
