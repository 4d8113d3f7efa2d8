"""Structural similarity: one for equal pictures, and as its definition says elsewhere."""

from __future__ import annotations

import pytest
import torch

from trainers.scores.ssim import C1, C2, luma, ssim


def test_equal_pictures_are_alike_and_inverse_ones_are_not() -> None:
    x_BCHW = torch.rand(2, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    assert ssim(x_BCHW, x_BCHW).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    assert float(ssim(x_BCHW, 1 - x_BCHW).max()) < 0


def test_flat_pictures_differ_by_their_light_only() -> None:
    dark, bright = torch.full((1, 1, 16, 16), 0.25), torch.full((1, 1, 16, 16), 0.75)
    expected = (2 * 0.25 * 0.75 + C1) / (0.25**2 + 0.75**2 + C1)
    assert float(ssim(dark, bright)) == pytest.approx(expected, rel=1e-3)


def test_one_window_by_hand() -> None:
    random = torch.Generator().manual_seed(1)
    x, y = torch.rand(2, 11, 11, generator=random, dtype=torch.float64)
    bell = torch.exp(-((torch.arange(11) - 5.0) ** 2) / 4.5).double()
    weight = torch.outer(bell, bell) / bell.sum() ** 2
    mx, my = (weight * x).sum(), (weight * y).sum()
    vx, vy = (weight * (x - mx) ** 2).sum(), (weight * (y - my) ** 2).sum()
    both = (weight * (x - mx) * (y - my)).sum()
    light = (2 * mx * my + C1) / (mx**2 + my**2 + C1)
    expected = light * (2 * both + C2) / (vx + vy + C2)
    got = ssim(x[None, None].float(), y[None, None].float())
    assert float(got) == pytest.approx(float(expected), abs=1e-4)


def test_luma_and_bad_shapes() -> None:
    assert float(luma(torch.ones(1, 3, 1, 1))) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="equal shapes of 11 pixels or more"):
        ssim(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))
