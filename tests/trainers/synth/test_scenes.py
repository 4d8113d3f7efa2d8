"""Scenes: boxes, masks, labels and sentences say the same."""

from __future__ import annotations

import numpy as np
import pytest

from trainers.synth.scenes import COLOURS, SHAPES, Look, Scene, Thing, captions, draw_scene


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(seed) for seed in range(60)]


def test_a_scene_is_a_function_of_its_seed(scenes: list[Scene]) -> None:
    again = draw_scene(7)
    assert np.array_equal(again.image_HWC, scenes[7].image_HWC)
    assert again.captions == scenes[7].captions
    assert not np.array_equal(again.image_HWC, scenes[8].image_HWC)


def test_shapes_dtypes_and_counts(scenes: list[Scene]) -> None:
    for scene in scenes:
        count = len(scene.things)
        assert 1 <= count <= 5
        assert scene.image_HWC.shape == (128, 128, 3) and scene.image_HWC.dtype == np.uint8
        assert scene.boxes_N4.shape == (count, 4) and scene.boxes_N4.dtype == np.float32
        assert scene.labels_N.shape == (count,) and scene.labels_N.dtype == np.int64
        assert scene.masks_NHW.shape == (count, 128, 128) and scene.masks_NHW.dtype == np.bool_
        assert scene.labels_N.max() < len(SHAPES)
    assert {len(scene.things) for scene in scenes} == {1, 2, 3, 4, 5}
    assert {int(label) for scene in scenes for label in scene.labels_N} == {0, 1, 2}


def test_boxes_are_tight_around_the_masks_and_masks_do_not_overlap(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.masks_NHW.sum(0).max() == 1
        for box, mask in zip(scene.boxes_N4.astype(int), scene.masks_NHW, strict=True):
            x1, y1, x2, y2 = box
            assert 0 <= x1 < x2 <= 128 and 0 <= y1 < y2 <= 128
            assert mask.sum() == mask[y1:y2, x1:x2].sum() > 20
            inner = mask[y1:y2, x1:x2]
            assert inner[0].any() and inner[-1].any() and inner[:, 0].any() and inner[:, -1].any()


def test_pixels_under_a_mask_have_the_colour_the_caption_says(scenes: list[Scene]) -> None:
    for scene in scenes[:20]:
        for thing, mask in zip(scene.things, scene.masks_NHW, strict=True):
            mean = scene.image_HWC[mask].mean(0)
            apart = {
                colour: np.linalg.norm(mean / mean.max() - np.array(rgb) / max(rgb))
                for colour, rgb in COLOURS.items()
            }
            assert min(apart, key=lambda colour: apart[colour]) == thing.colour


def test_some_shapes_are_partly_hidden_but_never_gone(scenes: list[Scene]) -> None:
    widths = [
        (box[2] - box[0]) / thing.size
        for scene in scenes
        for box, thing in zip(scene.boxes_N4, scene.things, strict=True)
    ]
    assert min(widths) > 0.4
    apart = [draw_scene(seed, Look(overlap=0.0)) for seed in range(20)]
    for scene in apart:
        for thing, mask in zip(scene.things, scene.masks_NHW, strict=True):
            whole = {"disc": np.pi / 4, "square": 0.81, "triangle": 0.5}[SHAPES[thing.label]]
            assert mask.sum() == pytest.approx(whole * thing.size**2, rel=0.25)


def test_sentences_say_how_the_two_largest_shapes_lie() -> None:
    red, blue = Thing(0, "red", False, 60, 20, 30), Thing(1, "blue", True, 64, 90, 14)
    assert captions((red,)) == ("a red disc",)
    assert captions((blue, red)) == (
        "a red disc above a small blue square",
        "a small blue square below a red disc",
    )
    left = Thing(2, "white", False, 10, 22, 40)
    assert captions((red, blue, left))[0] == (
        "a white triangle left of a red disc and one more shape"
    )
    assert captions((red, blue, left, blue))[1].endswith(
        "right of a white triangle and two more shapes"
    )


def test_a_condition_on_the_shapes_is_kept() -> None:
    wanted = Look(64, least=2, most=2)
    for seed in range(10):
        scene = draw_scene(seed, wanted, accept=lambda things: things[0].label == 1)
        assert scene.labels_N[0] == 1 and len(scene.things) == 2
