"""Objects keep their numbers: when they cross, hide, are missed, and while frames are dropped."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from trainers.data.instances import Found
from trainers.pipeline.frame import UNTRACKED, Frame
from trainers.pipeline.tracker import Tracker, Tracking

BLANK = np.zeros((100, 200, 3), np.uint8)
SIDE = 20


def found(middles: Iterable[tuple[float, float]], labels: Iterable[int] | None = None) -> Found:
    places_N2 = torch.from_numpy(np.array([*middles], np.float32).reshape(-1, 2))
    boxes_N4 = torch.cat([places_N2 - SIDE / 2, places_N2 + SIDE / 2], 1)
    count = len(boxes_N4)
    kinds_N = torch.zeros(count, dtype=torch.int64) if labels is None else torch.tensor([*labels])
    return Found(boxes_N4, kinds_N, torch.ones(count))


def followed(tracker: Tracker, frames: Iterable[tuple[int, Found]]) -> list[tuple[int, ...]]:
    return [tracker(Frame(BLANK, n / 10, "film", n, one)).ids for n, one in frames]


def test_two_that_cross_keep_their_numbers_though_one_hides_the_other() -> None:
    random = np.random.RandomState(0)
    frames, order = [], []
    for time in range(50):
        left, right = (10 + 3.5 * time, 45.0), (190 - 3.5 * time, 55.0)
        seen = [("left", left), ("right", right)]
        if abs(left[0] - right[0]) < 14:  # a detector gives one box for both
            seen = seen[:1]
        random.shuffle(seen)
        order.append([name for name, _ in seen])
        jitter = random.normal(0, 0.6, (len(seen), 2))
        frames.append((time, found(np.array([place for _, place in seen]) + jitter)))
    ids = followed(Tracker(), frames)
    numbers = [dict(zip(names, one, strict=True)) for names, one in zip(order, ids, strict=True)]
    assert {one["left"] for one in numbers[3:]} == {numbers[5]["left"]}
    assert {one["right"] for one in numbers[3:] if "right" in one} == {numbers[5]["right"]}
    assert {numbers[5]["left"], numbers[5]["right"]} == {1, 2}


def test_one_that_is_hidden_for_a_while_is_known_again_where_it_comes_out() -> None:
    hidden = range(15, 27)
    moving = [(10 + 4.0 * time, 50.0) for time in range(45)]
    frames = [(t, found([] if t in hidden else [place])) for t, place in enumerate(moving)]
    ids = followed(Tracker(), frames)
    assert {one for t, (one,) in enumerate(i for i in ids if i) if t > 1} == {1}
    # over the same gap a box that waits where it was last seen is too far away
    assert 4.0 * len(hidden) > 2 * SIDE


def test_frames_that_were_dropped_count() -> None:
    tracker = Tracker()
    frames = [(t, found([(10 + 4.0 * t, 50.0)])) for t in (*range(10), 20, 21, 35, 36)]
    assert {one for (one,) in followed(tracker, frames)[2:]} == {1}


def test_what_is_found_once_has_no_number_and_numbers_never_come_again() -> None:
    tracker = Tracker(Tracking(patience=5))
    ids = followed(tracker, [(0, found([])), (1, found([(20, 20)])), (2, found([]))])
    assert ids == [(), (UNTRACKED,), ()]
    every = []
    for visit in range(3):
        first = 10 + 20 * visit
        every += followed(tracker, [(first + t, found([(20, 20)])) for t in range(6)])
    assert every == [(n,) for n in (UNTRACKED, UNTRACKED, 1, 1, 1, 1)] + [
        (n,) for number in (2, 3) for n in (*[UNTRACKED] * 2, *[number] * 4)
    ]


def test_who_falls_keeps_the_number_though_the_box_turns_at_once() -> None:
    tracker = Tracker()
    upright, flat = torch.tensor([[50.0, 10, 64, 50]]), torch.tensor([[50.0, 34, 90, 50]])
    shapes = [*[upright] * 5, *[flat] * 5]
    seen = [Found(box_14, torch.zeros(1).long(), torch.ones(1)) for box_14 in shapes]
    assert [one for (one,) in followed(tracker, enumerate(seen))[3:]] == [1] * 7


def test_what_is_there_in_the_first_frame_has_a_number_at_once() -> None:
    tracker = Tracker()
    ids = followed(tracker, [(t, found([(50, 50), (90, 50)][: t + 1])) for t in range(4)])
    assert ids == [(1,), (1, UNTRACKED), (1, UNTRACKED), (1, 2)]


def test_an_object_does_not_become_one_of_another_kind() -> None:
    tracker = Tracker()
    followed(tracker, [(t, found([(50, 50)], [0])) for t in range(5)])
    assert followed(tracker, [(5, found([(50, 50)], [1]))]) == [(UNTRACKED,)]


def test_expected_boxes_move_as_the_object_did() -> None:
    tracker = Tracker()
    followed(tracker, [(t, found([(10 + 4.0 * t, 50.0)])) for t in range(20)])
    followed(tracker, [(20 + t, found([])) for t in range(5)])
    middle = tracker.expected()[0].reshape(2, 2).mean(0)
    np.testing.assert_allclose(middle, (10 + 4.0 * 24, 50), atol=1)


def test_many_objects_appear_and_leave_without_exchange() -> None:
    random = np.random.RandomState(3)
    tracker, whose = Tracker(), {}
    starts = [(time, lane) for time in range(0, 40, 8) for lane in (15.0, 50.0, 85.0)]
    for time in range(80):
        there = [(start, lane) for start, lane in starts if 0 <= time - start < 40]
        places = [(5 + 4.5 * (time - start), lane) for start, lane in there]
        jitter = random.normal(0, 0.5, (len(places), 2)) if places else 0
        frame = Frame(BLANK, time / 10, "film", time, found(np.array(places) + jitter))
        for truth, number in zip(there, tracker(frame).ids, strict=True):
            if number > 0:
                whose.setdefault(truth, set()).add(number)
    assert len(whose) == len(starts) and all(len(numbers) == 1 for numbers in whose.values())
    assert len(set().union(*whose.values())) == len(starts)
