"""Faces: whose they are stays, how they are seen changes, and truth follows what is drawn."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from trainers.data.instances import InstanceSet
from trainers.synth.faces import POOLS, Domain, identity, portrait
from trainers.synth.faces_scene import GATE, Look, face_film, face_scenes


@pytest.fixture(scope="module")
def drawn() -> InstanceSet:
    return face_scenes(1, 50, side=96)


def recognised(domain: Domain) -> float:
    """Return how many pictures look most like the gallery picture of the same person."""
    people = range(12)
    gallery = torch.stack(
        [torch.from_numpy(portrait(1, "gallery", n, 0, side=32).image_HW3).float() for n in people]
    )
    right = 0
    for number in people:
        image = portrait(1, "gallery", number, 7, domain, side=32).image_HW3
        off = (gallery - torch.from_numpy(image).float())[:, 6:28, 6:26].square().flatten(1).sum(1)
        right += int(off.argmin()) == number
    return right / len(people)


def test_pictures_of_a_person_are_alike_in_the_gallery_and_less_so_as_probes() -> None:
    assert recognised("gallery") > 0.8 > recognised("probe") + 0.15


def test_an_identity_and_a_portrait_are_functions_of_their_seeds() -> None:
    assert identity(5) == identity(5) != identity(6)
    one, same = portrait(1, "large", 3, 2), portrait(1, "large", 3, 2)
    assert np.array_equal(one.image_HW3, same.image_HW3) and torch.equal(one.box_4, same.box_4)
    others = [portrait(1, pool, 3, 2).image_HW3 for pool in POOLS]
    assert not np.array_equal(others[0], others[1]) and not np.array_equal(others[1], others[2])


def test_landmarks_lie_as_in_a_face() -> None:
    for number in range(20):
        _, box, marks = portrait(2, "gallery", number, 0)
        left, right, nose, left_mouth, right_mouth = marks[:, :2].tolist()
        assert left[0] < nose[0] < right[0] and left_mouth[0] < right_mouth[0]
        assert max(left[1], right[1]) < nose[1] < min(left_mouth[1], right_mouth[1])
        assert (marks[:, :2] > box[:2]).all() and (marks[:, :2] < box[2:]).all()
        assert (marks[:, 2] == 2).all()


def test_a_scene_is_a_function_of_its_seed_and_none_to_six_faces_occur(drawn: InstanceSet) -> None:
    image, faces = drawn[4]
    face_scenes.cache_clear()
    again, same = face_scenes(1, 50, side=96)[4]
    assert np.array_equal(image, again) and torch.equal(faces.boxes_N4, same.boxes_N4)
    counts = {len(drawn[number][1].boxes_N4) for number in range(len(drawn))}
    assert {0, 1, 2, 3, 4} <= counts <= set(range(7))


def test_masks_lie_in_their_boxes_and_landmarks_that_are_seen_on_them(drawn: InstanceSet) -> None:
    seen = hidden = ignored = 0
    for _, faces in map(drawn.read, range(len(drawn))):
        if faces.masks_NHW is None or faces.joints_NJ3 is None or faces.ignored_N is None:
            assert not len(faces.labels_N)
            continue
        assert faces.masks_NHW.sum(0).max() <= 1 and (faces.labels_N == 0).all()
        for box, mask, marks in zip(faces.boxes_N4, faces.masks_NHW, faces.joints_NJ3, strict=True):
            rows, columns = torch.nonzero(mask, as_tuple=True)
            if len(rows):
                assert columns.min() >= box[0] - 1 and columns.max() <= box[2] + 1
                assert rows.min() >= box[1] - 1 and rows.max() <= box[3] + 1
            for x, y, visible in marks.tolist():
                if visible == 2:
                    assert mask[
                        max(0, int(y) - 1) : int(y) + 2, max(0, int(x) - 1) : int(x) + 2
                    ].any()
                seen, hidden = seen + (visible == 2), hidden + (visible == 1)
        ignored += int(faces.ignored_N.sum())
    assert 0.02 < hidden / seen < 0.4 and ignored > 0


def test_there_may_be_no_faces_at_all_but_things_like_them() -> None:
    empty = face_scenes(3, 3, side=96, look=Look(least=0, most=0))
    plain = face_scenes(3, 3, side=96, look=Look(least=0, most=0, decoys=0))
    assert all(len(empty[number][1].boxes_N4) == 0 for number in range(3))
    assert any(not np.array_equal(empty[n][0], plain[n][0]) for n in range(3))


def test_those_who_come_through_the_gate_are_told_when_they_do() -> None:
    entries = 0
    for seed in range(3):
        film = face_film(seed, people=3, seconds=4, look=Look(side=64))
        assert len(film) == len(film.truths) == len(film.who) == 40
        middles: dict[int, list[tuple[int, float]]] = {}
        for frame, (truth, who) in enumerate(zip(film.truths, film.who, strict=True)):
            for box, number in zip(truth.boxes_N4, who.tolist(), strict=True):
                middles.setdefault(number, []).append((frame, float(box[0] + box[2]) / 2))
        crossings = {
            (number, frame)
            for number, path in middles.items()
            for (_, before), (frame, after) in pairwise(path)
            if before < GATE * 64 <= after
        }
        assert all(
            any(who == event.who and abs(frame - event.first) <= 1 for who, frame in crossings)
            for event in film.events
        )
        assert len(crossings) == len(film.events)
        entries += len(film.events)
    assert entries > 2
