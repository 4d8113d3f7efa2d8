"""Distortion of images: seeded, bounded, and the identity when switched off."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trainers.synth.augment import Distortion, distort

STILL = Distortion(degrees=0, pixels=0, scale=0, brightness=0)


def blob(across: int = 0, down: int = 0) -> Tensor:
    x = torch.zeros(64, 1, 28, 28)
    x[:, :, 12 + down : 16 + down, 12 + across : 16 + across] = 1
    return x


def centre(x: Tensor) -> Tensor:
    place = torch.arange(28.0) - 13.5
    mass = x.sum((1, 2, 3))
    across = (x.sum((1, 2)) * place).sum(1) / mass
    down = (x.sum((1, 3)) * place).sum(1) / mass
    return torch.stack([across, down], 1)


def test_is_pure_and_seeded() -> None:
    x = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    state = torch.get_rng_state()
    assert distort(x, 5).equal(distort(x, 5))
    assert not distort(x, 5).equal(distort(x, 6))
    assert torch.get_rng_state().equal(state) and x.equal(before)


def test_no_distortion_is_the_identity() -> None:
    x = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert distort(x, 1, STILL).allclose(x, atol=1e-5)


def test_shift_is_in_pixels_along_both_axes() -> None:
    moved = centre(distort(blob(), 1, Distortion(degrees=0, scale=0, brightness=0)))
    assert 1.5 < moved.abs().max() <= 2.01
    assert moved[:, 0].std() > 0.8 and moved[:, 1].std() > 0.8


def test_rotation_keeps_the_distance_and_is_within_15_degrees() -> None:
    turned = centre(distort(blob(across=8), 1, Distortion(pixels=0, scale=0, brightness=0)))
    angle = torch.atan2(turned[:, 1], turned[:, 0]) * 180 / math.pi
    assert turned.norm(dim=1).allclose(torch.tensor(8.0), atol=0.3)
    assert 12 < angle.abs().max() <= 15.5


def test_scale_is_within_a_tenth() -> None:
    still = Distortion(degrees=0, pixels=0, brightness=0)
    width = centre(distort(blob(across=8), 1, still))[:, 0] / 8
    assert 1.07 < width.max() <= 1.11 and 0.89 <= width.min() < 0.93


def test_brightness_stays_in_range() -> None:
    x = torch.full((64, 1, 28, 28), 0.9)
    lit = distort(x, 1, Distortion(degrees=0, pixels=0, scale=0))[:, 0, 14, 14]
    assert lit.max() == pytest.approx(1.0) and 0.72 <= lit.min() < 0.76
