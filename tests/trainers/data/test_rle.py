"""Run lengths and polygons of masks: there and back, and as the COCO tools read them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from trainers.data import rle
from trainers.synth.objects import objects

FRAME = np.pad(np.pad(np.zeros((2, 3), bool), 1, constant_values=True), 2)
CORNERS = np.eye(3, dtype=bool)
MASKS = {
    "nothing": np.zeros((3, 4), bool),
    "everything": np.ones((3, 4), bool),
    "frame": FRAME,
    "corners": CORNERS,
    "noise": np.random.RandomState(0).rand(37, 53) < 0.4,
}


@pytest.mark.parametrize("mask_HW", MASKS.values(), ids=MASKS)
def test_runs_and_their_text_give_the_mask_back(mask_HW: NDArray[np.bool_]) -> None:
    counts = rle.encode(mask_HW)
    assert rle.from_text(rle.to_text(counts)) == counts
    assert np.array_equal(rle.decode(counts, *mask_HW.shape), mask_HW)


def test_runs_go_down_the_columns_and_begin_outside() -> None:
    assert rle.encode(np.array([[0, 1], [1, 1]], bool)) == [1, 3]
    assert rle.encode(np.array([[1, 0], [0, 0]], bool)) == [0, 1, 3]


def test_the_coco_tools_read_the_same_text() -> None:
    tools = pytest.importorskip("faster_coco_eval.core.mask")
    for mask_HW in MASKS.values():
        theirs = tools.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
        text = rle.to_text(rle.encode(mask_HW))
        assert theirs["counts"] in (text, text.encode())
    seven = (3.0, 2.0, 40.5, 8.0, 30.0, 33.0, 12.0, 20.5)
    theirs = tools.decode(tools.frPyObjects([list(seven)], 37, 53))[..., 0].astype(bool)
    mine = rle.fill([seven], 37, 53)
    assert (mine & theirs).sum() / (mine | theirs).sum() > 0.95


def test_outlines_fill_to_the_same_mask() -> None:
    for number in range(10):
        masks_NHW = objects(5, 10, 8)[number][1].masks_NHW
        assert masks_NHW is not None
        for mask_HW in masks_NHW.numpy():
            polygons = rle.outline(mask_HW)
            if polygons is not None:
                assert np.array_equal(rle.fill(polygons, *mask_HW.shape), mask_HW)
    corners = rle.outline(CORNERS)
    assert corners is not None and len(corners) == 3
    assert np.array_equal(rle.fill(corners, 3, 3), CORNERS)
    assert rle.outline(MASKS["everything"]) == [[0.0, 0.0, 4.0, 0.0, 4.0, 3.0, 0.0, 3.0]]


def test_what_has_holes_or_nothing_has_no_outline() -> None:
    assert rle.outline(FRAME) is None
    assert rle.outline(MASKS["nothing"]) is None


def test_polygons_take_pixels_by_their_middle_and_may_leave_the_picture() -> None:
    half = rle.fill([[-5, -5, 2.4, -5, 2.4, 9, -5, 9]], 3, 4)
    assert np.array_equal(half, np.array([[1, 1, 0, 0]] * 3, bool))
    assert not rle.fill([[7, 7, 9, 7, 9, 9]], 3, 4).any()
    both = rle.fill([[0, 0, 1, 0, 1, 1, 0, 1], [3, 2, 4, 2, 4, 3, 3, 3]], 3, 4)
    assert both[0, 0] and both[2, 3] and both.sum() == 2


@pytest.mark.parametrize(
    ("text", "said"), [("0 ", "letter ' '"), ("e", "break off"), ("é", "letter 'é'")]
)
def test_texts_that_are_not_of_run_lengths(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rle.from_text(text)


@pytest.mark.parametrize("counts", [[3], [1, -2, 13], [5, 8]])
def test_runs_that_do_not_fill_the_picture(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="where 3 x 4 are needed"):
        rle.decode(counts, 3, 4)
