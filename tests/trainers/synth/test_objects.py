"""Objects of eighty classes, and scenes of three: masks, boxes and classes say the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dlplatform.errors import UsageError
from trainers.data.instances import InstanceSet
from trainers.synth.objects import NAMES, Look, chosen, objects, scene_boxes

SETS = {"objects": lambda: objects(0, 40), "scenes": lambda: scene_boxes(0, 40)}


@pytest.fixture(scope="module", params=SETS)
def pictures(request: pytest.FixtureRequest) -> InstanceSet:
    return SETS[request.param]()


def test_boxes_are_tight_around_masks_that_share_no_pixel(pictures: InstanceSet) -> None:
    for number in range(len(pictures)):
        image_HW3, (boxes_N4, labels_N, masks_NHW, *_) = pictures[number]
        assert image_HW3.shape == (128, 128, 3) and image_HW3.dtype == np.uint8
        assert masks_NHW is not None and masks_NHW.dtype == torch.bool
        assert boxes_N4.dtype == torch.float32 and labels_N.dtype == torch.int64
        assert len(boxes_N4) == len(labels_N) == len(masks_NHW) > 0
        assert labels_N.min() >= 0 and labels_N.max() < len(pictures.kinds.names)
        assert masks_NHW.sum(0).max() == 1
        for (x0, y0, x1, y1), mask_HW in zip(boxes_N4.int().tolist(), masks_NHW, strict=True):
            inner_HW = mask_HW[y0:y1, x0:x1]
            assert inner_HW.sum() == mask_HW.sum() > 20
            assert inner_HW[0].any() and inner_HW[-1].any()
            assert inner_HW[:, 0].any() and inner_HW[:, -1].any()


def test_a_picture_is_a_function_of_seed_and_index_and_is_drawn_once(pictures: InstanceSet) -> None:
    image_HW3, true = pictures[3]
    assert pictures[3][0] is image_HW3
    scene_boxes.cache_clear()
    objects.cache_clear()
    again = (objects if len(pictures.kinds.names) == 80 else scene_boxes)(0, 40)
    assert again[3][0] is not image_HW3 and np.array_equal(again[3][0], image_HW3)
    assert torch.equal(again[3][1].boxes_N4, true.boxes_N4)
    assert not np.array_equal(again[4][0], image_HW3)


def test_all_classes_come_and_a_small_set_mixes_shapes_and_textures() -> None:
    assert len(set(NAMES)) == 80
    seen = {int(label) for n in range(200) for label in objects(1, 200, side=64)[n][1].labels_N}
    assert len(seen) > 75
    eight = objects(1, 1, 8).kinds.names
    assert len({name.split()[-1] for name in eight}) == 8
    assert len({name.rsplit(" ", 1)[0] for name in eight}) == 8


def test_textures_keep_their_direction_and_shapes_turn() -> None:
    look = Look(least=1, most=1, sizes=(0.4, 0.45), clutter=0, noise=0.0)
    for name, along in (("horizontal stripe square", 1), ("vertical stripe square", 0)):
        ratios, fills = [], []
        for number in range(12):
            image_HW3, true = objects(2, 12, (name,), look=look)[number]
            assert true.masks_NHW is not None
            x0, y0, x1, y1 = true.boxes_N4[0].int().tolist()
            middle = image_HW3[(y0 + y1) // 2 - 12 :, (x0 + x1) // 2 - 12 :][:24, :24].astype(float)
            ratios.append(middle.std(along).mean() / middle.std(1 - along).mean())
            fills.append(float(true.masks_NHW[0].sum()) / ((x1 - x0) * (y1 - y0)))
        assert max(ratios) < 0.1
        assert min(fills) < 0.7 and max(fills) > 0.9


def test_distractors_are_drawn_and_not_told() -> None:
    look = Look(least=3, most=3, overlap=0.0, distractors=0.6)
    wanted = objects(3, 30, ("solid star", "dot star"), look=look)
    counts = [len(wanted[n][1].labels_N) for n in range(30)]
    assert min(counts) == 0 and sum(counts) / 30 == pytest.approx(1.2, abs=0.4)
    empty = wanted[counts.index(0)][1]
    assert empty.boxes_N4.shape == (0, 4) and empty.masks_NHW is not None
    assert empty.masks_NHW.shape == (0, 128, 128)


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (0, "classes=0 cannot be drawn - allowed: 1 to 80"),
        (81, "classes=81 cannot be drawn"),
        (("solid star", "blue star"), "class 'blue star' is not known - allowed: a texture of"),
    ],
)
def test_classes_that_there_are_not(classes: int | tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        chosen(classes)
