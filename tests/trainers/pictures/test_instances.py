"""Objects over pictures: what is drawn is what is there, and what is sure."""

from __future__ import annotations

import numpy as np
import torch

from trainers.data.instances import Found, Instances, Kinds
from trainers.data.skeletons import FACES
from trainers.pictures.instances import Compared, describe, draw_compared, draw_objects, ink
from trainers.pictures.sheet import Heading

BLUE = (10, 20, 250)
KINDS = Kinds(("face", "car"), (BLUE, (200, 0, 0)), FACES, ("open", "shut"))
GREY = np.full((48, 64, 3), 128, np.uint8)
BOX = torch.tensor([[8.0, 10.0, 40.0, 44.0]])


def found(score: float) -> Found:
    return Found(BOX, torch.tensor([0]), torch.tensor([score]))


def test_small_pictures_are_enlarged_and_a_box_is_drawn_where_it_is() -> None:
    plain = Kinds(KINDS.names, KINDS.colours)
    drawn = draw_objects(GREY, Instances(BOX, torch.tensor([0])), plain, side=96)
    assert drawn.size == (128, 96)
    pixels = np.asarray(drawn).astype(int)
    blue = np.abs(pixels - BLUE).sum(-1) < 60
    rows, columns = np.flatnonzero(blue[40]), np.flatnonzero(blue[:, 60])
    assert abs(int(rows.min()) - 16) <= 1 and abs(int(rows.max()) - 79) <= 1
    assert abs(int(columns.max()) - 87) <= 1
    assert not (np.abs(pixels[60, 60] - 128) > 2).any()


def test_unsure_answers_are_not_drawn_and_nothing_leaves_the_picture_as_it_is() -> None:
    plain = np.asarray(draw_objects(GREY, Instances.none(), KINDS))
    assert np.array_equal(plain, np.asarray(draw_objects(GREY, found(0.2), KINDS)))
    assert not np.array_equal(plain, np.asarray(draw_objects(GREY, found(0.9), KINDS)))


def test_masks_and_joints_change_the_picture_where_they_are() -> None:
    mask = torch.zeros(1, 48, 64, dtype=torch.bool)
    mask[0, 32:42, 12:22] = True
    one = Instances(BOX, torch.tensor([0]))
    plain = np.asarray(draw_objects(GREY, one, KINDS, side=48)).astype(int)
    masked = np.asarray(draw_objects(GREY, one._replace(masks_NHW=mask), KINDS, side=48))
    changed = np.abs(masked.astype(int) - plain).sum(-1) > 20
    assert changed[33:41, 13:21].all() and not changed[:, 26:].any()
    marks = torch.zeros(1, 5, 3)
    marks[0, 2] = torch.tensor([30.0, 38, 2])
    jointed = np.asarray(draw_objects(GREY, one._replace(joints_NJ3=marks), KINDS, side=48))
    changed = np.abs(jointed.astype(int) - plain).sum(-1) > 20
    assert changed[37:39, 29:31].all() and not changed[:32].any()


def test_words_say_state_or_class_and_how_sure() -> None:
    one = Instances(BOX, torch.tensor([1]), states_N=torch.tensor([-1]))
    assert describe(one, 0, KINDS) == "car"
    assert describe(one._replace(states_N=torch.tensor([1])), 0, KINDS) == "shut"
    assert describe(one._replace(ignored_N=torch.tensor([True])), 0, KINDS) == "car, ignored"
    assert describe(found(0.876), 0, KINDS) == "face 0.88"
    states = found(0.5)._replace(states_NS=torch.tensor([[0.9, 0.1]]))
    assert describe(states, 0, KINDS) == "open 0.50"


def test_words_can_be_read_on_bright_and_on_dark_colours() -> None:
    for bright in ((128, 255, 64), (255, 183, 3), (60, 220, 255), (255, 190, 40)):
        assert ink(bright) == (20, 20, 20)
    for deep in ((239, 71, 111), (131, 56, 236), (17, 138, 178), (0, 0, 0)):
        assert ink(deep) == (255, 255, 255)


def test_a_sheet_shows_truth_over_answers() -> None:
    shown = [Compared(GREY, Instances.none(), found(0.9), ["one too many"])] * 2
    sheet = draw_compared(Heading("Faces"), shown, KINDS, height=96)
    assert sheet.height > 2 * 96 and sheet.width > 2 * 128
