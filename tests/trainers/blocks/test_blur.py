"""Blurring: everything in a region, nothing outside it, and plates that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate, normalize

from trainers.blocks.blur import Blur, audit, blurred, write_blurred
from trainers.data.digits import load_digits
from trainers.data.instances import Found, Kinds
from trainers.synth.panorama import draw_panorama

KINDS = Kinds(("plate", "face"))


def found(*boxes: tuple[float, ...]) -> Found:
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    where = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Found(where, labels, torch.full((len(boxes),), 0.9))


def noise(height: int = 60, width: int = 80) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("method", ["gauss", "mosaic"])
def test_pixels_outside_the_regions_are_the_same_bits(method: str) -> None:
    image_HW3, regions, how = noise(), found((10, 10, 40, 30), (60, 40, 90, 70)), Blur(method)
    made_HW3 = blurred(image_HW3, regions, how)
    outside_HW = np.ones(image_HW3.shape[:2], bool)
    for record in audit(regions, KINDS, (60, 80), how):
        left, top, right, bottom = record["blurred"]
        assert left <= record["box"][0] and top <= record["box"][1]
        assert right >= min(80, record["box"][2]) and bottom >= min(60, record["box"][3])
        outside_HW[top:bottom, left:right] = False
    assert outside_HW.any() and np.array_equal(made_HW3[outside_HW], image_HW3[outside_HW])
    for x0, y0, x1, y1 in ((10, 10, 40, 30), (60, 40, 80, 60)):
        inside, before = made_HW3[y0:y1, x0:x1], image_HW3[y0:y1, x0:x1]
        assert np.abs(np.diff(inside.astype(int), axis=1)).mean() < 12
        assert np.abs(np.diff(before.astype(int), axis=1)).mean() > 60
    assert np.array_equal(image_HW3, noise()), "the picture itself stays"


def test_regions_beyond_the_picture_and_none_at_all() -> None:
    image_HW3 = noise()
    assert np.array_equal(blurred(image_HW3, found()), image_HW3)
    assert np.array_equal(blurred(image_HW3, found((200, 200, 210, 220))), image_HW3)


def test_plates_cannot_be_read_any_more() -> None:
    train = load_digits()["train"]
    known = train.images_NCHW.flatten(1).float()
    known = normalize(known - known.mean(1, keepdim=True))
    right: dict[str, list[bool]] = {"as it was": [], "gauss": [], "mosaic": []}
    for seed in range(8):
        street = draw_panorama(seed)
        boxes_N4 = street.true.boxes_N4
        regions = Found(boxes_N4, street.true.labels_N, torch.ones(len(boxes_N4)))
        pictures = {
            "as it was": street.image_HW3,
            **{
                name: blurred(street.image_HW3, regions, Blur(name)) for name in ("gauss", "mosaic")
            },
        }
        for plate in street.plates:
            hidden = street.true.ignored_N is not None and bool(street.true.ignored_N[plate.index])
            x0, y0, x1, y1 = boxes_N4[plate.index].tolist()
            if hidden or x1 - x0 < 60 or x1 - x0 < 1.9 * (y1 - y0):
                continue
            for name, image_HW3 in pictures.items():
                grey_HW = torch.from_numpy(image_HW3).float().mean(-1)
                for digit, (a, b, c, d) in zip(
                    plate.number, plate.boxes_D4.astype(int), strict=True
                ):
                    cut = interpolate(grey_HW[None, None, b:d, a:c], (28, 28)).flatten()
                    alike = (known @ normalize(cut - cut.mean(), dim=0)).abs()
                    right[name].append(int(train.labels[alike.argmax()]) == digit)
    shares = {name: float(np.mean(values)) for name, values in right.items()}
    print(shares, len(right["gauss"]))
    assert len(right["gauss"]) >= 24 and shares["as it was"] > 0.7
    assert shares["gauss"] < 0.3 and shares["mosaic"] < 0.3


def test_a_folder_has_one_line_of_what_was_done_for_each_picture(tmp_path: Path) -> None:
    for name in ("b", "a", "b"):
        raw = tmp_path / f"{name}.jpg"
        Image.fromarray(noise()).save(raw)
        answer = write_blurred(raw, noise(), found((10, 10, 40, 30)), KINDS, Blur())
        assert Image.open(answer["picture"]).size == (80, 60)
    lines = [json.loads(line) for line in Path(answer["audit"]).read_text().splitlines()]
    assert [line["file"] for line in lines] == ["a.jpg", "b.jpg"]
    assert lines[0]["regions"][0] == {
        **{"kind": "plate", "score": 0.9, "box": [10, 10, 40, 30]},
        **{"blurred": [8, 9, 42, 31], "method": "gauss"},
    }
