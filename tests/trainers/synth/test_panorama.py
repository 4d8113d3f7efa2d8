"""Streets with plates and faces: what is told is where it is drawn, and plates can be read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainers.data.digits import load_digits
from trainers.synth.panorama import FACE, PLATE, SMALL, Look, Panorama, draw_panorama, panoramas


@pytest.fixture(scope="module")
def streets() -> list[Panorama]:
    return [draw_panorama(seed) for seed in range(12)]


def test_plates_and_faces_lie_in_the_picture(streets: list[Panorama]) -> None:
    labels = []
    for street in streets:
        assert street.image_HW3.shape == (512, 1024, 3) and street.image_HW3.dtype == np.uint8
        boxes_N4, labels_N = street.true.boxes_N4, street.true.labels_N
        assert boxes_N4.dtype == torch.float32 and (boxes_N4[:, 2:] > boxes_N4[:, :2]).all()
        assert boxes_N4.min() >= 0
        assert (boxes_N4[:, 2:] <= torch.tensor([1024.0, 512])).all()
        assert [int(labels_N[plate.index]) for plate in street.plates] == [PLATE] * int(
            (labels_N == PLATE).sum()
        )
        labels += labels_N.tolist()
    assert min(labels.count(PLATE), labels.count(FACE)) > 15


def test_plates_can_be_read_where_their_digits_are_told(streets: list[Panorama]) -> None:
    train = load_digits()["train"]
    known = train.images_NCHW.flatten(1).float()
    known = torch.nn.functional.normalize(known - known.mean(1, keepdim=True))
    right = []
    for street in streets:
        grey_HW = torch.from_numpy(street.image_HW3).float().mean(-1)
        ignored_N = street.true.ignored_N
        for plate in street.plates:
            hidden = ignored_N is not None and bool(ignored_N[plate.index])
            x0, y0, x1, y1 = street.true.boxes_N4[plate.index].tolist()
            if hidden or x1 - x0 < 60 or (x1 - x0) < 1.9 * (y1 - y0):
                continue
            assert len(plate.number) == 4 and plate.boxes_D4.shape == (4, 4)
            for digit, (a, b, c, d) in zip(plate.number, plate.boxes_D4.astype(int), strict=True):
                cut = torch.nn.functional.interpolate(grey_HW[None, None, b:d, a:c], (28, 28))
                flat = cut.flatten() - cut.mean()
                alike = (known @ torch.nn.functional.normalize(flat, dim=0)).abs()
                right.append(int(train.labels[alike.argmax()]) == digit)
    assert len(right) >= 40 and np.mean(right) > 0.7


def test_skin_is_what_fills_a_face(streets: list[Panorama]) -> None:
    for street in streets:
        ignored_N = street.true.ignored_N
        for index in torch.nonzero(street.true.labels_N == FACE).flatten().tolist():
            x0, y0, x1, y1 = street.true.boxes_N4[index].int().tolist()
            if (ignored_N is None or not ignored_N[index]) and y1 - y0 > 1.1 * (x1 - x0):
                cheek = street.image_HW3[y0:y1, x0:x1].astype(float)
                red, _, blue = np.median(cheek, (0, 1))
                assert red > blue - 25


def test_what_is_tiny_or_mostly_hidden_is_ignored() -> None:
    strict = Look(128, 256, least=1e9)
    true = panoramas(0, 1, strict)[0][1]
    assert true.ignored_N is not None and true.ignored_N.all() and len(true.ignored_N)
    ignored, small = 0, 0
    for number in range(20):
        true = panoramas(1, 20, SMALL)[number][1]
        none = torch.zeros(len(true.labels_N), dtype=torch.bool)
        sides_N = (true.boxes_N4[:, 2:] - true.boxes_N4[:, :2]).amin(1)
        told_N = none if true.ignored_N is None else true.ignored_N
        assert told_N[sides_N < SMALL.least].all()
        ignored, small = ignored + int(told_N.sum()), small + int((sides_N < 4).sum())
    assert ignored > small


def test_a_street_is_a_function_of_its_seed(streets: list[Panorama]) -> None:
    again = draw_panorama(3)
    assert np.array_equal(again.image_HW3, streets[3].image_HW3)
    assert torch.equal(again.true.boxes_N4, streets[3].true.boxes_N4)
    wide = draw_panorama(3, Look(256, 1536))
    assert wide.image_HW3.shape == (256, 1536, 3)
    some = panoramas(5, 2, SMALL)
    assert some[0][0] is some[0][0] and some[0][0].shape == (128, 256, 3)
    assert some.kinds.names == ("plate", "face")
