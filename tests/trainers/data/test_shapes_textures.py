"""Procedural shapes with textures: pure functions of the seed, inside the picture, two textures."""

from __future__ import annotations

import torch

from trainers.synth.augment import mirror_shift_tint
from trainers.synth.shapes_textures import NAMES, Look, draw_shapes_textures, shapes_textures


def test_pictures_are_a_pure_function_of_the_seed() -> None:
    x_NCHW, labels = draw_shapes_textures(3, 200)
    again_NCHW, same = draw_shapes_textures(3, 200)
    assert torch.equal(x_NCHW, again_NCHW) and torch.equal(labels, same)
    assert not torch.equal(x_NCHW, draw_shapes_textures(4, 200)[0])
    assert x_NCHW.shape == (200, 3, 32, 32)
    assert float(x_NCHW.min()) >= 0 and float(x_NCHW.max()) <= 1
    assert labels.bincount().tolist() == [20] * len(NAMES)
    assert draw_shapes_textures(0, 10, Look(64))[0].shape == (10, 3, 64, 64)


def test_the_shape_is_inside_and_stands_out() -> None:
    x_NCHW, _ = draw_shapes_textures(0, 300, Look(noise=0.0))
    ground_NC11 = x_NCHW[:, :, :1, :1]
    changed_NHW = ((x_NCHW - ground_NC11).abs() > 0.1).any(1)
    share = changed_NHW.double().mean((1, 2))
    assert float(share.min()) > 0.01 and float(share.max()) < 0.75
    border = torch.cat([changed_NHW[:, 0], changed_NHW[:, :, 0]], 1)
    assert float(border.double().mean()) < 0.01
    most = (x_NCHW - ground_NC11).abs().amax((1, 2, 3))
    assert float(most.min()) > 0.35


def test_striped_shapes_have_gaps_and_solid_ones_have_none() -> None:
    x_NCHW, labels = draw_shapes_textures(0, 400, Look(side=64, noise=0.0))
    ink_NHW = (x_NCHW - x_NCHW[:, :, :1, :1]).abs().amax(1)
    ink_NHW /= ink_NHW.amax((1, 2), keepdim=True)
    # Along a row of a solid disc the ink rises once; along one of a striped disc, often.
    rises = ((ink_NHW[:, :, 1:] > 0.5) & (ink_NHW[:, :, :-1] <= 0.5)).sum(2).amax(1)
    solid, striped = (rises[labels == NAMES.index(f"{kind} disc")] for kind in ("solid", "striped"))
    assert int(solid.max()) == 1 and float(striped.double().mean()) > 2


def test_pictures_are_kept() -> None:
    samples = shapes_textures(5, 30)
    assert samples is shapes_textures(5, 30)
    assert samples.shape == (3, 32, 32) and samples.images_NCHW.dtype == torch.uint8


def test_mirror_shift_and_tint() -> None:
    x_BCHW = draw_shapes_textures(1, 64)[0]
    moved_BCHW = mirror_shift_tint(x_BCHW, 9, 4)
    assert torch.equal(moved_BCHW, mirror_shift_tint(x_BCHW, 9, 4))
    assert not torch.equal(moved_BCHW, mirror_shift_tint(x_BCHW, 8, 4))
    still_BCHW = mirror_shift_tint(x_BCHW, 9, 0, tint=0.0)
    kept = [torch.equal(a, b) for a, b in zip(still_BCHW, x_BCHW, strict=True)]
    turned = [torch.equal(a, b.flip(2)) for a, b in zip(still_BCHW, x_BCHW, strict=True)]
    assert all(a != b for a, b in zip(kept, turned, strict=True)) and 20 < sum(kept) < 44
    shifted_BCHW = mirror_shift_tint(x_BCHW, 9, 4, tint=0.0)
    corners = [row[0, 0, 0] in whole[0] for row, whole in zip(shifted_BCHW, x_BCHW, strict=True)]
    assert all(corners)
    tinted_BCHW = mirror_shift_tint(torch.full((8, 3, 4, 4), 0.5), 3, 0)
    levels = tinted_BCHW.flatten(2)
    assert torch.equal(levels.amin(2), levels.amax(2)) and len(levels.unique()) == 24
    assert 0.45 <= float(levels.min()) < float(levels.max()) <= 0.55
